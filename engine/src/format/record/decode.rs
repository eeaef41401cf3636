//! Reading records: whatever the bytes are, a record or an error.

use super::super::bytes::{get_u16, get_u32, get_u48, get_u64};
use super::*;

fn volume_settings(flags: u8, reserved: u64) -> Result<VolumeSettings, DecodeError> {
    let on_full = match flags {
        0 => OnFull::Error,
        VOLUME_WAITS => OnFull::Wait,
        _ => return Err(DecodeError::Field { at: 1 }),
    };
    Ok(VolumeSettings { on_full, reserved })
}

fn get_bits(b: &[u8], at: usize) -> LeafBits {
    std::array::from_fn(|i| get_u64(b, at + 8 * i))
}

/// The number of a volume or snapshot, if there is one.
fn number(raw: u32) -> Option<u32> {
    (raw != u32::MAX).then_some(raw)
}

/// Identity and name of a VOLUME or SNAPSHOT record, where both have them, and its bytes.
fn named(b: &[u8]) -> Result<([u8; 16], &str, &[u8]), DecodeError> {
    use layout::volume::at;
    let bad = |at: usize| DecodeError::Field { at: at as u16 };
    let head = b.get(..at::NAME).ok_or(bad(0))?;
    let name_bytes = usize::from(get_u16(head, at::NAME_BYTES));
    if name_bytes == 0 || name_bytes > NAME_BYTES {
        return Err(bad(at::NAME_BYTES));
    }
    let b = b.get(..(at::NAME + name_bytes).next_multiple_of(8)).ok_or(bad(0))?;
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&b[at::UUID..at::UUID + 16]);
    let name =
        std::str::from_utf8(&b[at::NAME..at::NAME + name_bytes]).map_err(|_| bad(at::NAME))?;
    Ok((uuid, name, b))
}

impl<'a> Record<'a> {
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
        if lsn >= crate::format::SEQUENCE_MAX {
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
                let (uuid, name, b) = named(b)?;
                let (size, vseq) = (get_u64(b, at::SIZE), get_u64(b, at::VSEQ));
                let settings = volume_settings(flags, get_u64(b, at::RESERVED))?;
                let base = number(get_u32(b, at::BASE));
                Self::Volume { volume, lsn, uuid, size, vseq, settings, base, name }
            }
            SNAPSHOT => {
                use layout::snapshot::at;
                let (uuid, name, b) = named(b)?;
                let (size, cut) = (get_u64(b, at::SIZE), get_u64(b, at::CUT));
                if cut > lsn {
                    return Err(bad(at::CUT));
                }
                let (line, base) = (get_u32(b, at::LINE), number(get_u32(b, at::BASE)));
                let deleted = flags & SNAPSHOT_DELETED != 0;
                Self::Snapshot { volume, lsn, uuid, size, cut, line, base, deleted, name }
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
                    copy: (flags & SEAL_COPIED != 0).then(|| SummaryCopy {
                        segment: get_u32(b, at::COPY_SEGMENT),
                        slot: b[at::COPY_SLOT],
                    }),
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
                let mut next = at::BITMAPS;
                let mut bits = |flag: u8| {
                    if flags & flag == 0 {
                        return LeafBits::default();
                    }
                    next += BITMAP_BYTES;
                    get_bits(b, next - BITMAP_BYTES)
                };
                let (holes, kept) = (bits(LEAF_HOLES), bits(LEAF_KEPT));
                let marks = LeafMarks { holes, kept, inherited: bits(LEAF_INHERITED) };
                // A flag whose bitmap is empty would make the length ambiguous.
                if leaf_flags(&marks) != flags {
                    return Err(bad(1));
                }
                Self::Leaf {
                    volume,
                    lsn,
                    lba,
                    page: get_u48(b, at::PAGE),
                    page_crc: get_u32(b, at::PAGE_CRC),
                    marks,
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
            Self::VolumeDelete { .. }
            | Self::Snapshot { .. }
            | Self::Leaf { .. }
            | Self::Checkpoint { .. } => 0,
        };
        if sequence >= crate::format::SEQUENCE_MAX {
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
