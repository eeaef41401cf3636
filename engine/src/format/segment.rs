//! Segment summary: what each data block of a segment holds, written once when it is sealed.
//!
//! ```text
//! block 0 .. data          data blocks
//! data .. data + entries   entry table, 40 bytes per data block
//! last block               footer
//! ```
//!
//! A footer proves nothing by itself: it can reach the disk before the data it describes. It
//! counts only when a seal record, written after a flush, names its generation and checksum.

use super::bytes::{
    get_u16, get_u24, get_u32, get_u40, get_u48, get_u64, put_u16, put_u24, put_u32, put_u40,
    put_u48, put_u64,
};
use super::field::layout;
use super::{BlockKind, DecodeError, finish_block, verify_block};
use flagstone_block::BLOCK_SIZE;

const KIND: BlockKind = BlockKind { magic: *b"LSBG", number: 3 };
/// Bytes of one entry.
pub const ENTRY_BYTES: usize = 40;

/// How the blocks of a segment are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentShape {
    /// Blocks in the segment.
    pub blocks: u32,
    /// Data blocks, at the start.
    pub data_blocks: u32,
    /// Blocks of the entry table, after the data.
    pub entry_blocks: u32,
}

impl SegmentShape {
    /// The division of a segment of `blocks` blocks: as many data blocks as can be described.
    #[must_use]
    pub const fn new(blocks: u32) -> Self {
        let mut entry_blocks = 1;
        loop {
            let data_blocks = blocks - 1 - entry_blocks;
            if data_blocks as usize * ENTRY_BYTES <= entry_blocks as usize * BLOCK_SIZE {
                return Self { blocks, data_blocks, entry_blocks };
            }
            entry_blocks += 1;
        }
    }

    /// Blocks of entry table and footer together.
    #[must_use]
    pub const fn summary_blocks(&self) -> u32 {
        self.entry_blocks + 1
    }
}

/// One data block of a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Volume it was written to.
    pub volume: u32,
    /// Checksum of the block.
    pub crc: u32,
    /// Block number in the volume.
    pub lba: u64,
    /// The volume's write sequence number.
    pub vseq: u64,
    /// LSN of the write, less the footer's `first_lsn`.
    pub lsn_delta: u32,
    /// Where it was moved from.
    pub source: Option<Source>,
}

/// Where a block was that the cleaner has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Block number in the pool.
    pub pbn: u64,
    /// Low 24 bits of its segment's generation.
    pub generation: u32,
}

impl Source {
    /// Block `pbn` of a segment in this generation.
    #[must_use]
    pub const fn new(pbn: u64, generation: u64) -> Self {
        Self { pbn, generation: generation as u32 & GENERATION_BITS }
    }

    /// Whether its segment may be in this generation. Between two checkpoints no segment is opened so often that the low
    /// bits come round.
    #[must_use]
    pub const fn is_of(&self, generation: u64) -> bool {
        self.generation == generation as u32 & GENERATION_BITS
    }
}

const GENERATION_BITS: u32 = (1 << 24) - 1;
/// The entry has a source.
const MOVED: u16 = 1;

mod entry {
    use super::*;
    layout! {
        /// Byte table of a segment entry.
        LAYOUT, "segment entry" {
            VOLUME: 0, 4; CRC32: 4, 4; LBA: 8, 6; FLAGS: 14, 2; VSEQ: 16, 8;
            SOURCE_PBN: 24, 5; SOURCE_GENERATION: 29, 3; LSN_DELTA: 32, 4; NODE: 36, 4;
        }
    }
    impl Entry {
        /// Encodes into [`ENTRY_BYTES`] bytes.
        pub fn encode(&self, b: &mut [u8]) {
            put_u32(b, at::VOLUME, self.volume);
            put_u32(b, at::CRC32, self.crc);
            put_u48(b, at::LBA, self.lba);
            put_u16(b, at::FLAGS, if self.source.is_some() { MOVED } else { 0 });
            put_u64(b, at::VSEQ, self.vseq);
            let Source { pbn, generation } =
                self.source.unwrap_or(Source { pbn: 0, generation: 0 });
            put_u40(b, at::SOURCE_PBN, pbn);
            put_u24(b, at::SOURCE_GENERATION, generation);
            put_u32(b, at::LSN_DELTA, self.lsn_delta);
            put_u32(b, at::NODE, 0);
        }

        /// Decodes from [`ENTRY_BYTES`] bytes that a footer's checksum vouched for.
        #[must_use]
        pub fn decode(b: &[u8]) -> Self {
            Self {
                volume: get_u32(b, at::VOLUME),
                crc: get_u32(b, at::CRC32),
                lba: get_u48(b, at::LBA),
                vseq: get_u64(b, at::VSEQ),
                lsn_delta: get_u32(b, at::LSN_DELTA),
                source: (get_u16(b, at::FLAGS) & MOVED != 0).then(|| Source {
                    pbn: get_u40(b, at::SOURCE_PBN),
                    generation: get_u24(b, at::SOURCE_GENERATION),
                }),
            }
        }
    }
}
pub use entry::LAYOUT as ENTRY_LAYOUT;

layout! {
    /// Byte table of the segment footer.
    LAYOUT, "segment footer" {
        MAGIC: 0, 4; TYPE: 4, 2; VERSION: 6, 2; CRC32: 8, 4; SEGMENT: 12, 4;
        POOL_UUID: 16, 16; GENERATION: 32, 8; FIRST_LSN: 40, 8; LAST_LSN: 48, 8;
        MEAN_LSN: 56, 8; ENTRIES_CRC: 64, 4; ENTRIES: 68, 2; CLASS: 70, 1;
    }
}

/// The last block of a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Own position: the segment's number.
    pub segment: u32,
    /// Raised each time a segment is opened; never used twice in a pool.
    pub generation: u64,
    /// LSN of the oldest entry.
    pub first_lsn: u64,
    /// LSN of the newest entry.
    pub last_lsn: u64,
    /// Mean LSN of the entries: how old the segment's blocks are.
    pub mean_lsn: u64,
    /// Checksum of the entries in use.
    pub entries_crc: u32,
    /// Entries in use, from data block 0.
    pub entries: u16,
    /// Placement class of the stream.
    pub class: u8,
}

impl Footer {
    /// Encodes the footer; returns its checksum.
    pub fn encode(&self, pool: &[u8; 16], block: &mut [u8]) -> u32 {
        block.fill(0);
        put_u32(block, at::SEGMENT, self.segment);
        block[at::POOL_UUID..at::POOL_UUID + 16].copy_from_slice(pool);
        put_u64(block, at::GENERATION, self.generation);
        put_u64(block, at::FIRST_LSN, self.first_lsn);
        put_u64(block, at::LAST_LSN, self.last_lsn);
        put_u64(block, at::MEAN_LSN, self.mean_lsn);
        put_u32(block, at::ENTRIES_CRC, self.entries_crc);
        put_u16(block, at::ENTRIES, self.entries);
        block[at::CLASS] = self.class;
        finish_block(block, KIND)
    }

    /// Decodes the footer of segment `segment`; also returns its checksum.
    ///
    /// # Errors
    /// Any [`DecodeError`].
    pub fn decode(
        pool: &[u8; 16],
        segment: u32,
        shape: &SegmentShape,
        block: &[u8],
    ) -> Result<(Self, u32), DecodeError> {
        let crc = verify_block(block, KIND)?;
        if block[at::POOL_UUID..at::POOL_UUID + 16] != *pool {
            return Err(DecodeError::ForeignPool);
        }
        let footer = Self {
            segment: get_u32(block, at::SEGMENT),
            generation: get_u64(block, at::GENERATION),
            first_lsn: get_u64(block, at::FIRST_LSN),
            last_lsn: get_u64(block, at::LAST_LSN),
            mean_lsn: get_u64(block, at::MEAN_LSN),
            entries_crc: get_u32(block, at::ENTRIES_CRC),
            entries: get_u16(block, at::ENTRIES),
            class: block[at::CLASS],
        };
        for (at, value) in [
            (at::GENERATION, footer.generation),
            (at::FIRST_LSN, footer.first_lsn),
            (at::LAST_LSN, footer.last_lsn),
            (at::MEAN_LSN, footer.mean_lsn),
        ] {
            if value >= super::SEQUENCE_MAX {
                return Err(DecodeError::Field { at: at as u16 });
            }
        }
        if footer.segment != segment {
            return Err(DecodeError::Position);
        }
        if u32::from(footer.entries) > shape.data_blocks {
            return Err(DecodeError::Field { at: at::ENTRIES as u16 });
        }
        Ok((footer, crc))
    }
}
