//! Formatting: an empty metadata chain and every superblock copy.

use crate::engine::Engine;
use crate::error::FormatError;
use crate::format::journal::pool_tag;
use crate::format::meta::PageHeader;
use crate::format::superblock::{FLAG_CLEAN, SLOTS, Superblock};
use crate::geometry::Geometry;
use flagstone_block::{BLOCK_SIZE, BlockIo};

/// How a pool is laid out.
#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    /// Identity, chosen by the caller.
    pub pool_uuid: [u8; 16],
    /// Told apart from other attempts by this random number.
    pub nonce: u64,
    /// Bytes of a segment, a power of two from 1 MiB to 64 MiB.
    pub segment_bytes: u32,
}

impl Engine {
    /// Makes an empty pool of a device. Whatever was there is lost.
    ///
    /// # Errors
    /// `Geometry` before anything is written; `Device`.
    pub fn format(io: &mut dyn BlockIo, options: &FormatOptions) -> Result<Geometry, FormatError> {
        let geo = Geometry::choose(io.size(), options.segment_bytes)?;
        // An old superblock must not outlive the structures it refers to.
        let zeroes = [0; BLOCK_SIZE];
        let places = SLOTS.into_iter().flatten().chain([geo.superblock_tail()]);
        for offset in places.clone() {
            io.write_at(offset, &zeroes)?;
        }
        io.flush()?;
        let mut page = [0; BLOCK_SIZE];
        let header = PageHeader {
            records: 0,
            used: 0,
            epoch: 1,
            page: 0,
            segment: 0,
            index: 0,
            next_segment: 1,
            prev_crc: 0,
            nonce: options.nonce,
        };
        header.encode(pool_tag(&options.pool_uuid), &mut page);
        io.write_at(geo.segment_offset(0, 0), &page)?;
        io.write_at(geo.segment_offset(0, 1), &page)?;
        io.flush()?;
        let superblock = Superblock {
            pool_uuid: options.pool_uuid,
            generation: 1,
            device_bytes: geo.device_bytes,
            segment_blocks: geo.shape.blocks,
            segments: u64::from(geo.segments),
            data_offset: geo.data_offset,
            journal_blocks: geo.journal_blocks,
            flags: FLAG_CLEAN,
            meta_segment: 0,
            meta_epoch: 1,
            meta_pages: 1,
            meta_nonce: options.nonce,
            journal_start: 1,
            next_lsn: 1,
            next_generation: 1,
            next_volume: 1,
        };
        let mut block = [0; BLOCK_SIZE];
        for offset in places {
            superblock.encode(offset, &mut block);
            io.write_at(offset, &block)?;
        }
        io.flush()?;
        Ok(geo)
    }
}
