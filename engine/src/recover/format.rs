//! Formatting: an empty metadata chain, and every superblock copy on every device.

use crate::engine::Engine;
use crate::error::FormatError;
use crate::format::device::{DeviceRow, DeviceState, DeviceTable, Label};
use crate::format::journal::pool_tag;
use crate::format::meta::PageHeader;
use crate::format::superblock::{FLAG_CLEAN, SLOTS, Superblock, TAIL_BYTES};
use crate::geometry::{Extent, Geometry};
use flagstone_block::{BLOCK_SIZE, BlockIo, join_offset};

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
    /// Makes an empty pool of a device, or of several: those that `io` has, from 0 on. The journal
    /// lies on the first. Whatever was there is lost.
    ///
    /// # Errors
    /// `Geometry` before anything is written; `Device`.
    pub fn format(io: &mut dyn BlockIo, options: &FormatOptions) -> Result<Geometry, FormatError> {
        let sizes: Vec<u64> = (0..).map_while(|device| io.device_bytes(device)).collect();
        let geo = Geometry::choose(&sizes, options.segment_bytes)?;
        // An old superblock must not outlive the structures it refers to.
        let zeroes = [0; BLOCK_SIZE];
        for device in geo.devices() {
            for offset in every_place(geo.extents[device].bytes) {
                io.write_at(join_offset(device, offset), &zeroes)?;
            }
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
            device: 0,
            devices: table(&geo, options),
            journal: geo.journal,
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
            journal_flushed: 1,
            next_lsn: 1,
            next_generation: 1,
            next_volume: 1,
        };
        let mut block = [0; BLOCK_SIZE];
        for device in geo.devices() {
            for offset in every_place(geo.extents[device].bytes) {
                superblock.on(device).encode(offset, &mut block);
                io.write_at(join_offset(device, offset), &block)?;
            }
        }
        io.flush()?;
        Ok(geo)
    }
}

/// Every place of a superblock on a device of `bytes` bytes.
pub(crate) fn every_place(bytes: u64) -> impl Iterator<Item = u64> {
    SLOTS.into_iter().flatten().chain([bytes - TAIL_BYTES])
}

/// The devices of a new pool. What makes the pool's identity unique makes theirs, too.
fn table(geo: &Geometry, options: &FormatOptions) -> DeviceTable {
    let mut table = DeviceTable::default();
    for device in geo.devices() {
        let Extent { first, segments, bytes, .. } = geo.extents[device];
        let mut uuid = options.pool_uuid;
        for (byte, random) in uuid.iter_mut().zip(options.nonce.to_le_bytes()) {
            *byte ^= random;
        }
        uuid[15] ^= device as u8 + 1;
        table.0[device] = Some(DeviceRow {
            uuid,
            bytes,
            first_segment: first,
            segments,
            state: DeviceState::Present,
            failed: None,
            label: Label::new(""),
        });
    }
    table
}
