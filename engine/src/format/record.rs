//! Records: what a journal block and a metadata page hold.
//!
//! A record is a multiple of 8 bytes and starts with `type u8, flags u8, count u16, volume u32,
//! lsn u64`. Data records also carry the volume's write sequence number and the writer's epoch,
//! which replication will need. Types 9..=14 are reserved: MARK, EPOCH, INTENT, WRITE_INLINE,
//! SNAP_CREATE, SNAP_DELETE.

use super::DecodeError;
use super::bytes::{get_u16, get_u32, get_u48, get_u64, put_u16, put_u32, put_u48, put_u64};
use crate::limits::NAME_BYTES;
use crate::map::LEAF_BLOCKS;
use crate::volume::{OnFull, VolumeSettings};

const WRITE: u8 = 1;
const ZERO: u8 = 2;
const VOLUME: u8 = 3;
const VOLUME_RESIZE: u8 = 4;
const VOLUME_DELETE: u8 = 5;
const SEGMENT_SEAL: u8 = 6;
const SEGMENT_FREE: u8 = 7;
const LEAF: u8 = 8;
const SEGMENT_OPEN: u8 = 15;
const VOLUME_SET: u8 = 16;
const CHECKPOINT: u8 = 17;

const ZERO_KEEP: u8 = 1;
/// In VOLUME and VOLUME_SET: writes wait when the pool is full.
const VOLUME_WAITS: u8 = 1;
const LEAF_KEPT: u8 = 1;
const LEAF_HOLES: u8 = 2;
const SEAL_STATED: u8 = 1;
/// Bytes of a leaf bitmap.
const BITMAP_BYTES: usize = LEAF_BLOCKS / 8;

/// One bit per block of a map leaf.
pub type LeafBits = [u64; LEAF_BLOCKS / 64];

/// Byte tables of the record types, in the order of their numbers.
pub mod layout {
    use crate::format::field::Layout;
    macro_rules! record_layouts {
        ($($module:ident, $title:literal { $($name:ident : $offset:literal, $size:literal;)* })*) => {
            $(#[allow(missing_docs)] pub mod $module {
                crate::format::field::layout! {
                    /// Byte table of the record.
                    LAYOUT, $title { $($name : $offset, $size;)* }
                }
            })*
            /// All of them.
            pub const ALL: &[Layout] = &[$($module::LAYOUT),*];
        };
    }
    record_layouts! {
        write, "record WRITE" {
            TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8;
            LBA: 16, 6; EPOCH_LOW: 22, 2; PBN: 24, 6; EPOCH_HIGH: 30, 2; VSEQ: 32, 8; CRCS: 40, 4;
        }
        zero, "record ZERO" {
            TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8;
            LBA: 16, 6; EPOCH_LOW: 22, 2; BLOCKS: 24, 4; EPOCH_HIGH: 30, 2; VSEQ: 32, 8;
        }
        volume, "record VOLUME" {
            TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8;
            UUID: 16, 16; SIZE: 32, 8; VSEQ: 40, 8; NAME_BYTES: 48, 2; PARENT: 52, 4; RESERVED: 56, 8; NAME: 64, 1;
        }
        volume_resize, "record VOLUME_RESIZE" {
            TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8; SIZE: 16, 8; VSEQ: 24, 8;
        }
        volume_set, "record VOLUME_SET" {
            TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8; RESERVED: 16, 8; VSEQ: 24, 8;
        }
        volume_delete, "record VOLUME_DELETE" {
            TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8; VSEQ: 16, 8;
        }
        segment_seal, "record SEGMENT_SEAL" {
            TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8;
            SEGMENT: 16, 4; CLASS: 20, 1; ENTRIES: 22, 2; GENERATION: 24, 8; FIRST_LSN: 32, 8;
            FOOTER_CRC: 40, 4; MEAN_LSN: 48, 8;
        }
        segment_free, "record SEGMENT_FREE" {
            TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8;
            SEGMENT: 16, 4; GENERATION: 24, 8;
        }
        leaf, "record LEAF" {
            TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8;
            LBA: 16, 6; PAGE: 24, 6; PAGE_CRC: 32, 4; BITMAPS: 40, 128;
        }
        segment_open, "record SEGMENT_OPEN" {
            TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8;
            SEGMENT: 16, 4; CLASS: 20, 1; GENERATION: 24, 8;
        }
        checkpoint, "record CHECKPOINT" {
            TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8;
        }
    }
}

/// A decoded record, borrowing checksums and names from the block it lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// `crcs.len() / 4` blocks of a volume, from `lba`, lie at `pbn`.
    Write {
        /// Volume number.
        volume: u32,
        /// Place in the pool's order.
        lsn: u64,
        /// First block in the volume.
        lba: u64,
        /// First block in the pool.
        pbn: u64,
        /// Place in the volume's order.
        vseq: u64,
        /// One little-endian CRC per block.
        crcs: &'a [u8],
    },
    /// `blocks` blocks from `lba` read as zero from here on.
    Zero {
        /// Volume number.
        volume: u32,
        /// Place in the pool's order.
        lsn: u64,
        /// First block.
        lba: u64,
        /// Number of blocks.
        blocks: u32,
        /// The space stays charged.
        keep: bool,
        /// Place in the volume's order.
        vseq: u64,
    },
    /// The volume exists and looks like this.
    Volume {
        /// Volume number.
        volume: u32,
        /// Place in the pool's order.
        lsn: u64,
        /// Identity.
        uuid: [u8; 16],
        /// Bytes.
        size: u64,
        /// Place in the volume's order.
        vseq: u64,
        /// What its owner has set.
        settings: VolumeSettings,
        /// Unique in the pool.
        name: &'a str,
    },
    /// The volume has this size from here on.
    VolumeResize {
        /// Volume number.
        volume: u32,
        /// Place in the pool's order.
        lsn: u64,
        /// Bytes.
        size: u64,
        /// Place in the volume's order.
        vseq: u64,
    },
    /// The volume has these settings from here on.
    VolumeSet {
        /// Volume number.
        volume: u32,
        /// Place in the pool's order.
        lsn: u64,
        /// What its owner has set.
        settings: VolumeSettings,
        /// Place in the volume's order.
        vseq: u64,
    },
    /// The volume is gone.
    VolumeDelete {
        /// Volume number.
        volume: u32,
        /// Place in the pool's order.
        lsn: u64,
    },
    /// Data and summary of a segment were flushed before this record was written.
    SegmentSeal(Seal),
    /// Nothing refers to the segment any more; it may be written again once this is durable.
    SegmentFree {
        /// Segment number.
        segment: u32,
        /// Place in the pool's order.
        lsn: u64,
        /// Generation that was freed.
        generation: u64,
    },
    /// A leaf of the map as it is at `lsn`: where its page lies, and, for when that is damaged,
    /// which of its blocks are not mapped.
    Leaf {
        /// Volume number.
        volume: u32,
        /// Comes after the records up to and with this LSN.
        lsn: u64,
        /// First block of the leaf.
        lba: u64,
        /// Pool block of its page.
        page: u64,
        /// Checksum of the page.
        page_crc: u32,
        /// Blocks that are holes.
        holes: LeafBits,
        /// Blocks that are zero with their space kept.
        kept: LeafBits,
    },
    /// A segment begins to be filled.
    SegmentOpen {
        /// Segment number.
        segment: u32,
        /// Place in the pool's order.
        lsn: u64,
        /// Placement class.
        class: u8,
        /// Its new generation.
        generation: u64,
    },
    /// The statements of the chain that begins with this record describe the pool at this LSN or
    /// later.
    Checkpoint {
        /// Comes after the records up to and with this LSN.
        lsn: u64,
    },
}

/// A sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Segment number.
    pub segment: u32,
    /// Place in the pool's order.
    pub lsn: u64,
    /// Placement class.
    pub class: u8,
    /// Entries in the summary.
    pub entries: u16,
    /// Generation that was sealed.
    pub generation: u64,
    /// LSN of the summary's oldest entry.
    pub first_lsn: u64,
    /// Checksum of the footer, which in turn vouches for the entries.
    pub footer_crc: u32,
    /// Mean LSN of the entries.
    pub mean_lsn: u64,
    /// Stated by a checkpoint: the leaf pages that it names hold all of the entries already.
    pub stated: bool,
}

/// Bytes that a WRITE record of `blocks` blocks takes.
#[must_use]
pub const fn write_bytes(blocks: usize) -> usize {
    (layout::write::at::CRCS + 4 * blocks).next_multiple_of(8)
}
/// Bytes that the VOLUME record of a volume with this name takes.
#[must_use]
pub const fn volume_bytes(name: &str) -> usize {
    (layout::volume::at::NAME + name.len()).next_multiple_of(8)
}
/// Bytes of a ZERO record.
pub const ZERO_BYTES: usize = 40;
const CHECKPOINT_BYTES: usize = 16;
/// Bytes of a SEGMENT_SEAL record.
pub const SEGMENT_SEAL_BYTES: usize = 56;
/// Largest record of any kind but WRITE.
pub const RECORD_BYTES_MAX: usize = layout::volume::at::NAME + NAME_BYTES.next_multiple_of(8) + 16;

const fn volume_flags(settings: VolumeSettings) -> u8 {
    match settings.on_full {
        OnFull::Error => 0,
        OnFull::Wait => VOLUME_WAITS,
    }
}

fn volume_settings(flags: u8, reserved: u64) -> Result<VolumeSettings, DecodeError> {
    let on_full = match flags {
        0 => OnFull::Error,
        VOLUME_WAITS => OnFull::Wait,
        _ => return Err(DecodeError::Field { at: 1 }),
    };
    Ok(VolumeSettings { on_full, reserved })
}

/// Bytes of a LEAF record at most.
pub const LEAF_BYTES_MAX: usize = leaf_bytes(LEAF_KEPT | LEAF_HOLES);

const fn leaf_bytes(flags: u8) -> usize {
    layout::leaf::at::BITMAPS
        + (flags & (LEAF_KEPT | LEAF_HOLES)).count_ones() as usize * BITMAP_BYTES
}

/// Which bitmaps a LEAF record carries: those that are not empty.
fn leaf_flags(holes: &LeafBits, kept: &LeafBits) -> u8 {
    let some = |bits: &LeafBits| bits.iter().any(|word| *word != 0);
    (u8::from(some(holes)) * LEAF_HOLES) | (u8::from(some(kept)) * LEAF_KEPT)
}

fn put_bits(b: &mut [u8], at: usize, bits: &LeafBits) {
    for (i, word) in bits.iter().enumerate() {
        put_u64(b, at + 8 * i, *word);
    }
}

fn get_bits(b: &[u8], at: usize) -> LeafBits {
    std::array::from_fn(|i| get_u64(b, at + 8 * i))
}

impl<'a> Record<'a> {
    /// Bytes that this record takes.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        match self {
            Self::Write { crcs, .. } => write_bytes(crcs.len() / 4),
            Self::Zero { .. } => ZERO_BYTES,
            Self::Volume { name, .. } => volume_bytes(name),
            Self::VolumeResize { .. } | Self::VolumeSet { .. } => 32,
            Self::SegmentFree { .. } | Self::SegmentOpen { .. } => 32,
            Self::VolumeDelete { .. } => 24,
            Self::Checkpoint { .. } => CHECKPOINT_BYTES,
            Self::SegmentSeal(_) => SEGMENT_SEAL_BYTES,
            Self::Leaf { holes, kept, .. } => leaf_bytes(leaf_flags(holes, kept)),
        }
    }

    /// The record's place in the pool's order.
    #[must_use]
    pub fn lsn(&self) -> u64 {
        match *self {
            Self::Write { lsn, .. }
            | Self::Zero { lsn, .. }
            | Self::Volume { lsn, .. }
            | Self::VolumeResize { lsn, .. }
            | Self::VolumeSet { lsn, .. }
            | Self::VolumeDelete { lsn, .. }
            | Self::SegmentSeal(Seal { lsn, .. })
            | Self::SegmentFree { lsn, .. }
            | Self::Leaf { lsn, .. }
            | Self::SegmentOpen { lsn, .. }
            | Self::Checkpoint { lsn } => lsn,
        }
    }

    /// Encodes at the start of `b`; returns the bytes used, or `None` if `b` is too short.
    pub fn encode(&self, b: &mut [u8]) -> Option<usize> {
        let bytes = self.encoded_bytes();
        let b = b.get_mut(..bytes)?;
        b.fill(0);
        let head = |b: &mut [u8], kind: u8, flags: u8, count: u16, volume: u32, lsn: u64| {
            b[0] = kind;
            b[1] = flags;
            put_u16(b, 2, count);
            put_u32(b, 4, volume);
            put_u64(b, 8, lsn);
        };
        match *self {
            Self::Write { volume, lsn, lba, pbn, vseq, crcs } => {
                use layout::write::at;
                head(b, WRITE, 0, (crcs.len() / 4) as u16, volume, lsn);
                put_u48(b, at::LBA, lba);
                put_u48(b, at::PBN, pbn);
                put_u64(b, at::VSEQ, vseq);
                b[at::CRCS..at::CRCS + crcs.len()].copy_from_slice(crcs);
            }
            Self::Zero { volume, lsn, lba, blocks, keep, vseq } => {
                use layout::zero::at;
                head(b, ZERO, if keep { ZERO_KEEP } else { 0 }, 0, volume, lsn);
                put_u48(b, at::LBA, lba);
                put_u32(b, at::BLOCKS, blocks);
                put_u64(b, at::VSEQ, vseq);
            }
            Self::Volume { volume, lsn, uuid, size, vseq, settings, name } => {
                use layout::volume::at;
                head(b, VOLUME, volume_flags(settings), 0, volume, lsn);
                put_u64(b, at::RESERVED, settings.reserved);
                b[at::UUID..at::UUID + 16].copy_from_slice(&uuid);
                put_u64(b, at::SIZE, size);
                put_u64(b, at::VSEQ, vseq);
                put_u16(b, at::NAME_BYTES, name.len() as u16);
                put_u32(b, at::PARENT, u32::MAX);
                b[at::NAME..at::NAME + name.len()].copy_from_slice(name.as_bytes());
            }
            Self::VolumeResize { volume, lsn, size, vseq } => {
                use layout::volume_resize::at;
                head(b, VOLUME_RESIZE, 0, 0, volume, lsn);
                put_u64(b, at::SIZE, size);
                put_u64(b, at::VSEQ, vseq);
            }
            Self::VolumeSet { volume, lsn, settings, vseq } => {
                use layout::volume_set::at;
                head(b, VOLUME_SET, volume_flags(settings), 0, volume, lsn);
                put_u64(b, at::RESERVED, settings.reserved);
                put_u64(b, at::VSEQ, vseq);
            }
            Self::VolumeDelete { volume, lsn } => head(b, VOLUME_DELETE, 0, 0, volume, lsn),
            Self::Checkpoint { lsn } => head(b, CHECKPOINT, 0, 0, 0, lsn),
            Self::SegmentSeal(seal) => {
                use layout::segment_seal::at;
                let flags = if seal.stated { SEAL_STATED } else { 0 };
                head(b, SEGMENT_SEAL, flags, 0, 0, seal.lsn);
                put_u64(b, at::MEAN_LSN, seal.mean_lsn);
                put_u32(b, at::SEGMENT, seal.segment);
                b[at::CLASS] = seal.class;
                put_u16(b, at::ENTRIES, seal.entries);
                put_u64(b, at::GENERATION, seal.generation);
                put_u64(b, at::FIRST_LSN, seal.first_lsn);
                put_u32(b, at::FOOTER_CRC, seal.footer_crc);
            }
            Self::SegmentFree { segment, lsn, generation } => {
                use layout::segment_free::at;
                head(b, SEGMENT_FREE, 0, 0, 0, lsn);
                put_u32(b, at::SEGMENT, segment);
                put_u64(b, at::GENERATION, generation);
            }
            Self::Leaf { volume, lsn, lba, page, page_crc, holes, kept } => {
                use layout::leaf::at;
                let flags = leaf_flags(&holes, &kept);
                head(b, LEAF, flags, 0, volume, lsn);
                put_u48(b, at::LBA, lba);
                put_u48(b, at::PAGE, page);
                put_u32(b, at::PAGE_CRC, page_crc);
                if flags & LEAF_HOLES != 0 {
                    put_bits(b, at::BITMAPS, &holes);
                }
                if flags & LEAF_KEPT != 0 {
                    put_bits(b, bytes - BITMAP_BYTES, &kept);
                }
            }
            Self::SegmentOpen { segment, lsn, class, generation } => {
                use layout::segment_open::at;
                head(b, SEGMENT_OPEN, 0, 0, 0, lsn);
                put_u32(b, at::SEGMENT, segment);
                b[at::CLASS] = class;
                put_u64(b, at::GENERATION, generation);
            }
        }
        Some(bytes)
    }

    /// Decodes the record at the start of `b`; returns it and its length.
    ///
    /// # Errors
    /// `Field` names the first field that can't be.
    pub fn decode(b: &'a [u8]) -> Result<(Self, usize), DecodeError> {
        let bad = |at: usize| DecodeError::Field { at: at as u16 };
        let need = |bytes: usize| b.get(..bytes).ok_or(bad(0));
        need(16)?;
        let (flags, count) = (b[1], usize::from(get_u16(b, 2)));
        let (volume, lsn) = (get_u32(b, 4), get_u64(b, 8));
        if lsn >= super::SEQUENCE_MAX {
            return Err(bad(8));
        }
        let record = match b[0] {
            WRITE => {
                use layout::write::at;
                if count == 0 || count > crate::limits::BATCH_BLOCKS as usize {
                    return Err(bad(at::COUNT));
                }
                let b = need(write_bytes(count))?;
                let crcs = &b[at::CRCS..at::CRCS + 4 * count];
                let lba = get_u48(b, at::LBA);
                if lba + count as u64 > 1 << 48 {
                    return Err(bad(at::LBA));
                }
                Self::Write {
                    volume,
                    lsn,
                    lba,
                    pbn: get_u48(b, at::PBN),
                    vseq: get_u64(b, at::VSEQ),
                    crcs,
                }
            }
            ZERO => {
                use layout::zero::at;
                let b = need(ZERO_BYTES)?;
                let blocks = get_u32(b, at::BLOCKS);
                if blocks == 0 || u64::from(blocks) > crate::limits::ZERO_BLOCKS {
                    return Err(bad(at::BLOCKS));
                }
                let vseq = get_u64(b, at::VSEQ);
                let lba = get_u48(b, at::LBA);
                Self::Zero { volume, lsn, lba, blocks, keep: flags & ZERO_KEEP != 0, vseq }
            }
            VOLUME => {
                use layout::volume::at;
                let b = need(at::NAME)?;
                let name_bytes = usize::from(get_u16(b, at::NAME_BYTES));
                if name_bytes == 0 || name_bytes > NAME_BYTES {
                    return Err(bad(at::NAME_BYTES));
                }
                let b = need((at::NAME + name_bytes).next_multiple_of(8))?;
                let mut uuid = [0; 16];
                uuid.copy_from_slice(&b[at::UUID..at::UUID + 16]);
                let name = std::str::from_utf8(&b[at::NAME..at::NAME + name_bytes])
                    .map_err(|_| bad(at::NAME))?;
                let (size, vseq) = (get_u64(b, at::SIZE), get_u64(b, at::VSEQ));
                let settings = volume_settings(flags, get_u64(b, at::RESERVED))?;
                Self::Volume { volume, lsn, uuid, size, vseq, settings, name }
            }
            VOLUME_RESIZE => {
                use layout::volume_resize::at;
                let b = need(32)?;
                let (size, vseq) = (get_u64(b, at::SIZE), get_u64(b, at::VSEQ));
                Self::VolumeResize { volume, lsn, size, vseq }
            }
            VOLUME_SET => {
                use layout::volume_set::at;
                let b = need(32)?;
                let settings = volume_settings(flags, get_u64(b, at::RESERVED))?;
                Self::VolumeSet { volume, lsn, settings, vseq: get_u64(b, at::VSEQ) }
            }
            VOLUME_DELETE => {
                need(24)?;
                Self::VolumeDelete { volume, lsn }
            }
            SEGMENT_SEAL => {
                use layout::segment_seal::at;
                let b = need(SEGMENT_SEAL_BYTES)?;
                Self::SegmentSeal(Seal {
                    segment: get_u32(b, at::SEGMENT),
                    lsn,
                    class: b[at::CLASS],
                    entries: get_u16(b, at::ENTRIES),
                    generation: get_u64(b, at::GENERATION),
                    first_lsn: get_u64(b, at::FIRST_LSN),
                    footer_crc: get_u32(b, at::FOOTER_CRC),
                    mean_lsn: get_u64(b, at::MEAN_LSN),
                    stated: flags & SEAL_STATED != 0,
                })
            }
            SEGMENT_FREE => {
                use layout::segment_free::at;
                let b = need(32)?;
                let generation = get_u64(b, at::GENERATION);
                Self::SegmentFree { segment: get_u32(b, at::SEGMENT), lsn, generation }
            }
            LEAF => {
                use layout::leaf::at;
                let b = need(leaf_bytes(flags))?;
                let lba = get_u48(b, at::LBA);
                if !lba.is_multiple_of(LEAF_BLOCKS as u64) {
                    return Err(bad(at::LBA));
                }
                let bits = |flag: u8, at: usize| {
                    if flags & flag != 0 { get_bits(b, at) } else { LeafBits::default() }
                };
                let holes = bits(LEAF_HOLES, at::BITMAPS);
                let kept = bits(LEAF_KEPT, b.len().saturating_sub(BITMAP_BYTES));
                // A flag whose bitmap is empty would make the length ambiguous.
                if leaf_flags(&holes, &kept) != flags & (LEAF_HOLES | LEAF_KEPT) {
                    return Err(bad(1));
                }
                Self::Leaf {
                    volume,
                    lsn,
                    lba,
                    page: get_u48(b, at::PAGE),
                    page_crc: get_u32(b, at::PAGE_CRC),
                    holes,
                    kept,
                }
            }
            SEGMENT_OPEN => {
                use layout::segment_open::at;
                let b = need(32)?;
                let generation = get_u64(b, at::GENERATION);
                Self::SegmentOpen {
                    segment: get_u32(b, at::SEGMENT),
                    lsn,
                    class: b[at::CLASS],
                    generation,
                }
            }
            CHECKPOINT => Self::Checkpoint { lsn },
            _ => return Err(bad(0)),
        };
        let sequence = match record {
            Self::Write { vseq, .. } | Self::Zero { vseq, .. } => vseq,
            Self::Volume { vseq, .. }
            | Self::VolumeResize { vseq, .. }
            | Self::VolumeSet { vseq, .. } => vseq,
            Self::SegmentSeal(Seal { generation, first_lsn, mean_lsn, .. }) => {
                generation.max(first_lsn).max(mean_lsn)
            }
            Self::SegmentFree { generation, .. } | Self::SegmentOpen { generation, .. } => {
                generation
            }
            Self::VolumeDelete { .. } | Self::Leaf { .. } | Self::Checkpoint { .. } => 0,
        };
        if sequence >= super::SEQUENCE_MAX {
            return Err(bad(8));
        }
        Ok((record, record.encoded_bytes()))
    }
}

/// The records of a block: `records` of them in `bytes`, stopping with an error at the first
/// that can't be.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    left: u16,
}

impl<'a> Records<'a> {
    /// Reads `records` records from `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8], records: u16) -> Self {
        Self { bytes, left: records }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        Some(match Record::decode(self.bytes) {
            Ok((record, bytes)) => {
                self.bytes = &self.bytes[bytes..];
                Ok(record)
            }
            Err(error) => {
                self.left = 0;
                Err(error)
            }
        })
    }
}
