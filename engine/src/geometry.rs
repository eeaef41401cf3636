//! Where things lie on the device; pure arithmetic over the superblock's numbers.

use crate::format::meta::PAGE_BLOCKS;
use crate::format::segment::SegmentShape;
use crate::format::superblock::{SUPERBLOCK_END, Superblock, TAIL_BYTES};
use crate::limits::{
    JOURNAL_BLOCKS_MAX, JOURNAL_BLOCKS_MIN, POOL_BYTES_MIN, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN,
    SEGMENTS_MIN,
};
use flagstone_block::{BLOCK_BITS, BLOCK_SIZE};

/// Layout of one pool. `Copy`, so that it can be used while the engine is borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the device in bytes, a multiple of a block.
    pub device_bytes: u64,
    /// Slots in the journal ring.
    pub journal_blocks: u32,
    /// Byte offset of segment 0.
    pub data_offset: u64,
    /// Number of segments.
    pub segments: u32,
    /// Division of a segment.
    pub shape: SegmentShape,
}

/// Why no pool fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The device is too small.
    #[error("{bytes} bytes are too few: a pool needs at least 64 MiB and {SEGMENTS_MIN} segments")]
    TooSmall {
        /// Size of the device.
        bytes: u64,
    },
    /// The segment size is not a power of two in range.
    #[error("a segment of {bytes} bytes: choose a power of two from 1 MiB to 64 MiB")]
    SegmentSize {
        /// Size asked for.
        bytes: u32,
    },
    /// The superblock's numbers contradict each other or the device.
    #[error("the superblock's layout does not fit a device of {device_bytes} bytes")]
    Inconsistent {
        /// Size of the device.
        device_bytes: u64,
    },
}

impl Geometry {
    /// The layout that formatting a device of `device_bytes` bytes gives.
    ///
    /// # Errors
    /// `TooSmall`, `SegmentSize`.
    pub fn choose(device_bytes: u64, segment_bytes: u32) -> Result<Self, GeometryError> {
        if !segment_bytes.is_power_of_two()
            || !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes)
        {
            return Err(GeometryError::SegmentSize { bytes: segment_bytes });
        }
        let device_bytes = device_bytes & !(BLOCK_SIZE as u64 - 1);
        if device_bytes < POOL_BYTES_MIN {
            return Err(GeometryError::TooSmall { bytes: device_bytes });
        }
        let journal_blocks = (device_bytes >> BLOCK_BITS >> 7)
            .clamp(u64::from(JOURNAL_BLOCKS_MIN), u64::from(JOURNAL_BLOCKS_MAX))
            as u32;
        let geo = Self::fit(device_bytes, segment_bytes >> BLOCK_BITS, journal_blocks)?;
        if geo.segments < SEGMENTS_MIN {
            return Err(GeometryError::TooSmall { bytes: device_bytes });
        }
        Ok(geo)
    }

    fn fit(
        device_bytes: u64,
        segment_blocks: u32,
        journal_blocks: u32,
    ) -> Result<Self, GeometryError> {
        let segment_bytes = u64::from(segment_blocks) << BLOCK_BITS;
        let data_offset = (SUPERBLOCK_END + (u64::from(journal_blocks) << BLOCK_BITS))
            .next_multiple_of(segment_bytes);
        let room = device_bytes.saturating_sub(TAIL_BYTES).saturating_sub(data_offset);
        let segments = room / segment_bytes;
        // Fewer could not hold the metadata chain, its reserve and data at once. More could not
        // be named by a 40-bit block number.
        if segments < 8 {
            return Err(GeometryError::TooSmall { bytes: device_bytes });
        }
        if segments * u64::from(segment_blocks) >= (1 << 40) - 2
            || segments > u64::from(u32::MAX - 1)
        {
            return Err(GeometryError::Inconsistent { device_bytes });
        }
        let shape = SegmentShape::new(segment_blocks);
        Ok(Self { device_bytes, journal_blocks, data_offset, segments: segments as u32, shape })
    }

    /// The layout that a superblock describes, checked against the device.
    ///
    /// # Errors
    /// `Inconsistent` if any number is not what formatting would have chosen.
    pub fn of(superblock: &Superblock, device_bytes: u64) -> Result<Self, GeometryError> {
        let inconsistent = GeometryError::Inconsistent { device_bytes };
        let segment_bytes = u64::from(superblock.segment_blocks) << BLOCK_BITS;
        if superblock.device_bytes > device_bytes
            || !superblock.device_bytes.is_multiple_of(BLOCK_SIZE as u64)
            || !superblock.segment_blocks.is_power_of_two()
            || segment_bytes < u64::from(SEGMENT_BYTES_MIN)
            || segment_bytes > u64::from(SEGMENT_BYTES_MAX)
            || superblock.journal_blocks < JOURNAL_BLOCKS_MIN
            || superblock.journal_blocks > JOURNAL_BLOCKS_MAX
        {
            return Err(inconsistent);
        }
        let fit = Self::fit(
            superblock.device_bytes,
            superblock.segment_blocks,
            superblock.journal_blocks,
        )
        .map_err(|_| inconsistent)?;
        if fit.data_offset != superblock.data_offset
            || u64::from(fit.segments) != superblock.segments
            || superblock.meta_segment >= superblock.segments
        {
            return Err(inconsistent);
        }
        Ok(fit)
    }

    /// The layout when the device has grown to `device_bytes` bytes; `None` if it has become
    /// smaller, or too large for its segments to be numbered, or for its leaf pages: those written
    /// so far have the size that goes with a pool up to 8 TiB, or with a larger one.
    #[must_use]
    pub fn grown(&self, device_bytes: u64) -> Option<Self> {
        let device_bytes = device_bytes & !(BLOCK_SIZE as u64 - 1);
        if device_bytes < self.device_bytes {
            return None;
        }
        let grown = Self::fit(device_bytes, self.shape.blocks, self.journal_blocks).ok()?;
        debug_assert_eq!(grown.data_offset, self.data_offset);
        (grown.leaf_page_blocks() == self.leaf_page_blocks()).then_some(grown)
    }

    /// Byte offset of a journal block.
    #[must_use]
    pub fn journal_offset(&self, jseq: u64) -> u64 {
        SUPERBLOCK_END + ((jseq % u64::from(self.journal_blocks)) << BLOCK_BITS)
    }

    /// Byte offset of block `block` of `segment`.
    #[must_use]
    pub fn segment_offset(&self, segment: u32, block: u32) -> u64 {
        self.data_offset
            + ((u64::from(segment) * u64::from(self.shape.blocks) + u64::from(block)) << BLOCK_BITS)
    }

    /// Pool block number of block `block` of `segment`.
    #[must_use]
    pub fn pbn(&self, segment: u32, block: u32) -> u64 {
        u64::from(segment) * u64::from(self.shape.blocks) + u64::from(block)
    }

    /// Segment and block of a pool block number.
    #[must_use]
    pub fn locate(&self, pbn: u64) -> (u32, u32) {
        // A power of two; a division here would show in the time that opening takes.
        let blocks = self.shape.blocks;
        ((pbn >> blocks.trailing_zeros()) as u32, pbn as u32 & (blocks - 1))
    }

    /// Whether `blocks` data blocks from `pbn` lie in one segment's data area.
    #[must_use]
    pub fn is_data(&self, pbn: u64, blocks: u32) -> bool {
        let (segment, block) = self.locate(pbn);
        pbn < self.pbn(self.segments, 0)
            && segment < self.segments
            && block + blocks <= self.shape.data_blocks
    }

    /// Metadata pages in a segment.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.shape.blocks / PAGE_BLOCKS
    }

    /// Bits that a pool block number takes in a leaf page, where two more values are used.
    #[must_use]
    pub fn pbn_bits(&self) -> u32 {
        64 - (self.pbn(self.segments, 0) + 1).leading_zeros()
    }

    /// Blocks of a leaf page: one in pools up to 8 TiB, two in larger ones.
    #[must_use]
    pub fn leaf_page_blocks(&self) -> u32 {
        crate::format::leaf::page_blocks(self.pbn_bits())
    }

    /// Leaf pages in a segment.
    #[must_use]
    pub fn leaf_pages(&self) -> u32 {
        self.shape.blocks / self.leaf_page_blocks()
    }

    /// The third superblock place.
    #[must_use]
    pub fn superblock_tail(&self) -> u64 {
        self.device_bytes - TAIL_BYTES
    }
}
