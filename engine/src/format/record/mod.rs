//! Records: what a journal block and a metadata page hold.
//!
//! A record is a multiple of 8 bytes and starts with `type u8, flags u8, count u16, volume u32,
//! lsn u64`. Data records also carry the volume's write sequence number and the writer's epoch,
//! which replication will need. Types 9..=12 and 14 are reserved: MARK, EPOCH, INTENT, WRITE_INLINE.
mod decode;
mod encode;
pub mod layout;

use super::DecodeError;
use crate::limits::NAME_BYTES;
use crate::map::LEAF_BLOCKS;
use crate::volume::{OnFull, VolumeSettings};

pub use decode::Records;

const WRITE: u8 = 1;
const ZERO: u8 = 2;
const VOLUME: u8 = 3;
const VOLUME_RESIZE: u8 = 4;
const VOLUME_DELETE: u8 = 5;
const SEGMENT_SEAL: u8 = 6;
const SEGMENT_FREE: u8 = 7;
const LEAF: u8 = 8;
const SNAPSHOT: u8 = 13;
const SEGMENT_OPEN: u8 = 15;
const VOLUME_SET: u8 = 16;
const CHECKPOINT: u8 = 17;

const ZERO_KEEP: u8 = 1;
const SNAPSHOT_DELETED: u8 = 1;
/// In VOLUME and VOLUME_SET: writes wait when the pool is full.
const VOLUME_WAITS: u8 = 1;
const LEAF_KEPT: u8 = 1;
const LEAF_HOLES: u8 = 2;
const LEAF_INHERITED: u8 = 4;
const SEAL_STATED: u8 = 1;
const LEAF_BITMAPS: u8 = LEAF_KEPT | LEAF_HOLES | LEAF_INHERITED;
const SEAL_COPIED: u8 = 2;
/// Bytes of a leaf bitmap.
const BITMAP_BYTES: usize = LEAF_BLOCKS / 8;

/// One bit per block of a map leaf.
pub type LeafBits = [u64; LEAF_BLOCKS / 64];

/// What is known of the blocks of a leaf without its page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafMarks {
    /// Blocks that are holes.
    pub holes: LeafBits,
    /// Blocks that are zero with their space kept.
    pub kept: LeafBits,
    /// Blocks with data that is where the parent says.
    pub inherited: LeafBits,
}

/// Place in a volume's order of what no request but a checkpoint says: all of these are higher.
pub const STATED: u64 = 0;

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
        /// The snapshot that it was cloned from.
        base: Option<u32>,
        /// Unique in the pool.
        name: &'a str,
    },
    /// The snapshot exists: its volume as it was when the record with the LSN `cut` was written.
    Snapshot {
        /// Number of the snapshot, from the same numbers as those of volumes.
        volume: u32,
        /// Place in the pool's order.
        lsn: u64,
        /// Identity.
        uuid: [u8; 16],
        /// Bytes.
        size: u64,
        /// What has this LSN or a lower one belongs to it.
        cut: u64,
        /// Number of the volume that it was taken of.
        line: u32,
        /// The snapshot that this volume was cloned from.
        base: Option<u32>,
        /// It is being taken apart.
        deleted: bool,
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
        /// What its blocks are.
        marks: LeafMarks,
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
    /// Where there is a copy of the summary, on another device.
    pub copy: Option<SummaryCopy>,
}

/// Where a copy of a summary lies: in a segment of copies, one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SummaryCopy {
    /// Number of that segment.
    pub segment: u32,
    /// Its place there, in summaries.
    pub slot: u8,
}

/// Bytes that a WRITE record of `blocks` blocks takes.
#[must_use]
pub const fn write_bytes(blocks: usize) -> usize {
    (layout::write::at::CRCS + 4 * blocks).next_multiple_of(8)
}
/// Bytes that the VOLUME or SNAPSHOT record with this name takes.
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
pub const RECORD_BYTES_MAX: usize = {
    let named = layout::volume::at::NAME + NAME_BYTES.next_multiple_of(8);
    if named > LEAF_BYTES_MAX { named } else { LEAF_BYTES_MAX }
};

/// Bytes of a LEAF record at most.
pub const LEAF_BYTES_MAX: usize = leaf_bytes(LEAF_BITMAPS);

const fn leaf_bytes(flags: u8) -> usize {
    layout::leaf::at::BITMAPS + (flags & LEAF_BITMAPS).count_ones() as usize * BITMAP_BYTES
}

/// Which bitmaps a LEAF record carries: those that are not empty.
fn leaf_flags(marks: &LeafMarks) -> u8 {
    let flag = |bits: &LeafBits, flag: u8| if *bits == LeafBits::default() { 0 } else { flag };
    flag(&marks.holes, LEAF_HOLES)
        | flag(&marks.kept, LEAF_KEPT)
        | flag(&marks.inherited, LEAF_INHERITED)
}

/// Whether bit `i` is set.
#[must_use]
pub fn marked(bits: &LeafBits, i: usize) -> bool {
    bits[i / 64] >> (i % 64) & 1 != 0
}

impl LeafMarks {
    /// Whether no block is two things.
    #[must_use]
    pub fn are_apart(&self) -> bool {
        let words = self.holes.iter().zip(&self.kept).zip(&self.inherited);
        words.into_iter().all(|((h, k), i)| (h & k) | (h & i) | (k & i) == 0)
    }
}

impl<'a> Record<'a> {
    /// Bytes that this record takes.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        match self {
            Self::Write { crcs, .. } => write_bytes(crcs.len() / 4),
            Self::Zero { .. } => ZERO_BYTES,
            Self::Volume { name, .. } | Self::Snapshot { name, .. } => volume_bytes(name),
            Self::VolumeResize { .. } | Self::VolumeSet { .. } => 32,
            Self::SegmentFree { .. } | Self::SegmentOpen { .. } => 32,
            Self::VolumeDelete { .. } => 24,
            Self::Checkpoint { .. } => CHECKPOINT_BYTES,
            Self::SegmentSeal(_) => SEGMENT_SEAL_BYTES,
            Self::Leaf { marks, .. } => leaf_bytes(leaf_flags(marks)),
        }
    }

    /// The record's place in the pool's order.
    #[must_use]
    pub fn lsn(&self) -> u64 {
        match *self {
            Self::Write { lsn, .. }
            | Self::Zero { lsn, .. }
            | Self::Volume { lsn, .. }
            | Self::Snapshot { lsn, .. }
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
}
