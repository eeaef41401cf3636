//! Bytes of an image stream: `docs/formats/image.md`.
//!
//! A header, then records in the order of their offsets, then an end record. Each names the checksum of
//! the one before it, so that nothing can be left out, repeated or exchanged unnoticed, and the end's
//! stands for all. Decoders take arbitrary bytes and never panic.

use flagstone_block::BLOCK_SIZE;
use flagstone_engine::format::field::Layout;

use super::ImageError;
use crate::name::{FULL_NAME_BYTES_MAX, check_name, split_snapshot_name};
use crate::size::check_blocks;

/// What every stream begins with.
pub const MAGIC: [u8; 8] = *b"FLAGSIMG";

/// Version written by this release; others are refused.
pub const VERSION: u16 = 1;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 512;

/// Bytes of a record without its payload, and of the end record.
pub const RECORD_BYTES: usize = 40;

/// Longest data of one record in bytes, before compression: what a reader must hold.
pub const CHUNK_BYTES: usize = 1 << 20;

/// What every record begins with.
pub const RECORD_MAGIC: [u8; 4] = *b"FIMR";

const FLAG_INCREMENT: u16 = 1;
const FLAG_LIVE: u16 = 2;
const FLAGS: u16 = FLAG_INCREMENT | FLAG_LIVE;

/// The header's fields.
pub mod header {
    flagstone_engine::layout! {
        /// See `docs/formats/image.md`.
        LAYOUT, "header" {
            MAGIC: 0, 8;
            VERSION: 8, 2;
            FLAGS: 10, 2;
            CHUNK_BYTES: 12, 4;
            VOLUME_UUID: 16, 16;
            SNAPSHOT_UUID: 32, 16;
            BASE_UUID: 48, 16;
            VOLUME_BYTES: 64, 8;
            BASE_BYTES: 72, 8;
            DATA_BYTES: 80, 8;
            NAME: 96, 128;
            BASE_NAME: 224, 128;
            CRC32: 508, 4;
        }
    }
}

/// A record's fields.
pub mod record {
    flagstone_engine::layout! {
        /// See `docs/formats/image.md`.
        LAYOUT, "record" {
            MAGIC: 0, 4;
            TYPE: 4, 1;
            COMPRESSION: 5, 1;
            OFFSET: 8, 8;
            LENGTH: 16, 8;
            STORED: 24, 4;
            PAYLOAD_CRC32: 28, 4;
            PREVIOUS_CRC32: 32, 4;
            CRC32: 36, 4;
        }
    }
}

/// The end record's fields.
pub mod end {
    flagstone_engine::layout! {
        /// See `docs/formats/image.md`.
        LAYOUT, "end" {
            MAGIC: 0, 4;
            TYPE: 4, 1;
            DATA_BYTES: 8, 8;
            ZERO_BYTES: 16, 8;
            RECORDS: 24, 8;
            PREVIOUS_CRC32: 32, 4;
            CRC32: 36, 4;
        }
    }
}

/// All structures of the stream.
pub const LAYOUTS: [&Layout; 3] = [&header::LAYOUT, &record::LAYOUT, &end::LAYOUT];

const TYPE_DATA: u8 = 1;
const TYPE_ZEROES: u8 = 2;
const TYPE_END: u8 = 3;

/// What an image is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Identity of the volume.
    pub volume_uuid: [u8; 16],
    /// Identity of the snapshot whose content this is.
    pub snapshot_uuid: [u8; 16],
    /// Where an increment begins; absent from a full image.
    pub base: Option<Base>,
    /// Size of the snapshot in bytes.
    pub size_bytes: u64,
    /// Bytes of all data records, before compression.
    pub data_bytes: u64,
    /// `VOLUME@SNAPSHOT`; of an image of the volume itself, whose snapshot was a passing one, `VOLUME`.
    pub name: String,
}

/// The snapshot that an increment begins at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its identity.
    pub uuid: [u8; 16],
    /// Its size in bytes.
    pub size_bytes: u64,
    /// `VOLUME@SNAPSHOT`.
    pub name: String,
}

impl Header {
    /// Whether the image is of a volume itself and not of a snapshot that its owner took.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.name.contains('@')
    }

    /// Name of the volume that it is of.
    #[must_use]
    pub fn volume(&self) -> &str {
        self.name.split('@').next().unwrap_or_default()
    }

    /// Name of the snapshot without the volume's, unless it was a passing one.
    #[must_use]
    pub fn snapshot(&self) -> Option<&str> {
        self.name.split_once('@').map(|(_, snapshot)| snapshot)
    }

    /// Whether both are of the same content, so that one may go on where the other was interrupted.
    #[must_use]
    pub fn is_same_image(&self, other: &Self) -> bool {
        let base = |header: &Self| header.base.as_ref().map(|base| base.uuid);
        self.snapshot_uuid == other.snapshot_uuid
            && self.volume_uuid == other.volume_uuid
            && self.size_bytes == other.size_bytes
            && self.data_bytes == other.data_bytes
            && base(self) == base(other)
    }

    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        use header::at;
        let mut bytes = [0; HEADER_BYTES];
        bytes[at::MAGIC..at::MAGIC + 8].copy_from_slice(&MAGIC);
        let mut flags = if self.is_live() { FLAG_LIVE } else { 0 };
        put(&mut bytes, at::VERSION, &VERSION.to_le_bytes());
        put(&mut bytes, at::CHUNK_BYTES, &(CHUNK_BYTES as u32).to_le_bytes());
        put(&mut bytes, at::VOLUME_UUID, &self.volume_uuid);
        put(&mut bytes, at::SNAPSHOT_UUID, &self.snapshot_uuid);
        put(&mut bytes, at::VOLUME_BYTES, &self.size_bytes.to_le_bytes());
        put(&mut bytes, at::DATA_BYTES, &self.data_bytes.to_le_bytes());
        put_name(&mut bytes, at::NAME, &self.name);
        if let Some(base) = &self.base {
            flags |= FLAG_INCREMENT;
            put(&mut bytes, at::BASE_UUID, &base.uuid);
            put(&mut bytes, at::BASE_BYTES, &base.size_bytes.to_le_bytes());
            put_name(&mut bytes, at::BASE_NAME, &base.name);
        }
        put(&mut bytes, at::FLAGS, &flags.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..at::CRC32]);
        put(&mut bytes, at::CRC32, &crc.to_le_bytes());
        bytes
    }

    /// The header that `bytes` are, and its checksum, which the first record names.
    ///
    /// # Errors
    /// [`ImageError::NotAnImage`], [`ImageError::Version`], [`ImageError::Damaged`].
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<(Self, u32), ImageError> {
        use header::at;
        if bytes[..8] != MAGIC {
            return Err(ImageError::NotAnImage);
        }
        let crc = u32_at(bytes, at::CRC32);
        let damaged = |what| ImageError::Damaged { at: 0, what };
        if crc32fast::hash(&bytes[..at::CRC32]) != crc {
            return Err(damaged("the header's checksum does not match"));
        }
        let found = u16_at(bytes, at::VERSION);
        let flags = u16_at(bytes, at::FLAGS);
        let chunk = u32_at(bytes, at::CHUNK_BYTES) as usize;
        if found != VERSION || flags & !FLAGS != 0 || chunk > CHUNK_BYTES {
            return Err(ImageError::Version { found });
        }
        let named = |at: usize| name_at(bytes, at).ok_or(damaged("a name can't be one"));
        let sized = |at: usize| {
            let size = u64_at(bytes, at);
            check_blocks(size).map_err(|_| damaged("a size can't be one"))?;
            Ok(size)
        };
        let name = named(at::NAME)?;
        let live = flags & FLAG_LIVE != 0;
        let good = if live { check_name(&name).is_ok() } else { is_snapshot(&name) };
        if !good {
            return Err(damaged("a name can't be one"));
        }
        let base = if flags & FLAG_INCREMENT == 0 {
            None
        } else {
            let name = named(at::BASE_NAME)?;
            if !is_snapshot(&name) {
                return Err(damaged("a name can't be one"));
            }
            let uuid = uuid_at(bytes, at::BASE_UUID);
            Some(Base { uuid, size_bytes: sized(at::BASE_BYTES)?, name })
        };
        let size_bytes = sized(at::VOLUME_BYTES)?;
        let data_bytes = u64_at(bytes, at::DATA_BYTES);
        if data_bytes > size_bytes || !data_bytes.is_multiple_of(BLOCK_SIZE as u64) {
            return Err(damaged("it has more data than there is room for"));
        }
        let header = Self {
            volume_uuid: uuid_at(bytes, at::VOLUME_UUID),
            snapshot_uuid: uuid_at(bytes, at::SNAPSHOT_UUID),
            base,
            size_bytes,
            data_bytes,
            name,
        };
        Ok((header, crc))
    }
}

fn is_snapshot(name: &str) -> bool {
    split_snapshot_name(name).is_ok()
}

/// How a record's payload is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// As it is.
    Plain,
    /// As one zstd frame (RFC 8878).
    Zstd,
}

/// Sums over all records: what the end record says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes of data, before compression.
    pub data_bytes: u64,
    /// Bytes of zeroes.
    pub zero_bytes: u64,
    /// Records before the end record.
    pub records: u64,
}

/// A record without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// Data, which follow.
    Data {
        /// First byte in the volume, a multiple of 4096.
        offset: u64,
        /// Bytes in the volume, a multiple of 4096 up to [`CHUNK_BYTES`].
        length: u32,
        /// How they are stored.
        stored: Stored,
        /// Bytes that follow: at most `length`.
        stored_bytes: u32,
        /// Their checksum, as they are stored.
        payload_crc: u32,
    },
    /// Zeroes.
    Zeroes {
        /// First byte in the volume, a multiple of 4096.
        offset: u64,
        /// Bytes in the volume, a multiple of 4096.
        length: u64,
    },
    /// The end.
    End(Totals),
}

impl Record {
    /// The bytes, and their checksum, which the next record names. `previous` is that of the one before.
    #[must_use]
    pub fn encode(&self, previous: u32) -> ([u8; RECORD_BYTES], u32) {
        use record::at;
        let mut bytes = [0; RECORD_BYTES];
        put(&mut bytes, at::MAGIC, &RECORD_MAGIC);
        match *self {
            Self::Data { offset, length, stored, stored_bytes, payload_crc } => {
                bytes[at::TYPE] = TYPE_DATA;
                bytes[at::COMPRESSION] = u8::from(stored == Stored::Zstd);
                put(&mut bytes, at::OFFSET, &offset.to_le_bytes());
                put(&mut bytes, at::LENGTH, &u64::from(length).to_le_bytes());
                put(&mut bytes, at::STORED, &stored_bytes.to_le_bytes());
                put(&mut bytes, at::PAYLOAD_CRC32, &payload_crc.to_le_bytes());
            }
            Self::Zeroes { offset, length } => {
                bytes[at::TYPE] = TYPE_ZEROES;
                put(&mut bytes, at::OFFSET, &offset.to_le_bytes());
                put(&mut bytes, at::LENGTH, &length.to_le_bytes());
            }
            Self::End(totals) => {
                bytes[at::TYPE] = TYPE_END;
                put(&mut bytes, end::at::DATA_BYTES, &totals.data_bytes.to_le_bytes());
                put(&mut bytes, end::at::ZERO_BYTES, &totals.zero_bytes.to_le_bytes());
                put(&mut bytes, end::at::RECORDS, &totals.records.to_le_bytes());
            }
        }
        put(&mut bytes, at::PREVIOUS_CRC32, &previous.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..at::CRC32]);
        put(&mut bytes, at::CRC32, &crc.to_le_bytes());
        (bytes, crc)
    }

    /// The record that `bytes` are, and its checksum. `previous` is that of the one before.
    ///
    /// Whether offsets and totals are right in the stream is the reader's to check.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn decode(bytes: &[u8; RECORD_BYTES], previous: u32) -> Result<(Self, u32), &'static str> {
        use record::at;
        if bytes[..4] != RECORD_MAGIC {
            return Err("no record begins here");
        }
        let crc = u32_at(bytes, at::CRC32);
        if crc32fast::hash(&bytes[..at::CRC32]) != crc {
            return Err("the record's checksum does not match");
        }
        if u32_at(bytes, at::PREVIOUS_CRC32) != previous {
            return Err("the record does not continue the one before");
        }
        let (offset, length) = (u64_at(bytes, at::OFFSET), u64_at(bytes, at::LENGTH));
        let blocks = |number: u64| number.is_multiple_of(BLOCK_SIZE as u64);
        let whole = blocks(offset) && blocks(length) && length > 0;
        let record = match (bytes[at::TYPE], bytes[at::COMPRESSION]) {
            (TYPE_DATA, compression @ (0 | 1)) if whole && length <= CHUNK_BYTES as u64 => {
                let length = length as u32;
                let stored_bytes = u32_at(bytes, at::STORED);
                let stored = if compression == 0 { Stored::Plain } else { Stored::Zstd };
                let fits = match stored {
                    Stored::Plain => stored_bytes == length,
                    Stored::Zstd => (1..length).contains(&stored_bytes),
                };
                if !fits {
                    return Err("the record's length can't be");
                }
                let payload_crc = u32_at(bytes, at::PAYLOAD_CRC32);
                Self::Data { offset, length, stored, stored_bytes, payload_crc }
            }
            (TYPE_ZEROES, 0) if whole => Self::Zeroes { offset, length },
            (TYPE_END, 0) => Self::End(Totals {
                data_bytes: u64_at(bytes, end::at::DATA_BYTES),
                zero_bytes: u64_at(bytes, end::at::ZERO_BYTES),
                records: u64_at(bytes, end::at::RECORDS),
            }),
            _ => return Err("the record's fields can't be"),
        };
        Ok((record, crc))
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Names have been checked to fit: [`FULL_NAME_BYTES_MAX`].
fn put_name(bytes: &mut [u8], at: usize, name: &str) {
    let name = &name.as_bytes()[..name.len().min(FULL_NAME_BYTES_MAX)];
    put(bytes, at, name);
}

fn name_at(bytes: &[u8], at: usize) -> Option<String> {
    let field = &bytes[at..at + FULL_NAME_BYTES_MAX];
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    if field[end..].iter().any(|&byte| byte != 0) {
        return None;
    }
    std::str::from_utf8(&field[..end]).ok().map(str::to_owned)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

fn uuid_at(bytes: &[u8], at: usize) -> [u8; 16] {
    array(bytes, at)
}

const _: () = assert!(FULL_NAME_BYTES_MAX == 128, "as wide as the fields NAME and BASE_NAME");
