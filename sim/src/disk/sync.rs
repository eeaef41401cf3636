//! The disk's blocking face, used to format and open; the process may die at any call.

use super::{Disk, EIO, share};
use crate::content::Block;
use flagstone_block::{BLOCK_SIZE, BlockIo, DeviceError};

impl Disk {
    /// The process dies at the blocking write or flush after the next `calls`.
    pub fn die_after(&mut self, calls: u64) {
        self.calls_left = Some(calls);
    }

    /// Whether the process died at a blocking call; the next process lives again.
    pub fn take_death(&mut self) -> bool {
        self.calls_left = None;
        std::mem::take(&mut self.dead)
    }

    /// Whether the process dies at this call.
    fn dies(&mut self) -> bool {
        if let Some(left) = &mut self.calls_left {
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => self.dead = true,
            }
        }
        self.dead
    }
}

impl BlockIo for Disk {
    fn size(&self) -> u64 {
        self.current.len() as u64 * BLOCK_SIZE as u64
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        if self.dead {
            return Err(EIO);
        }
        if offset + into.len() as u64 > self.size() {
            return Err(DeviceError::OutOfRange { offset });
        }
        self.read_blocks(offset, into).0
    }

    fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<(), DeviceError> {
        if self.dead {
            return Err(EIO);
        }
        if offset + from.len() as u64 > self.size() {
            return Err(DeviceError::OutOfRange { offset });
        }
        let first = (offset / BLOCK_SIZE as u64) as u32;
        let blocks: Vec<Block> = from.chunks_exact(BLOCK_SIZE).map(share).collect();
        if self.dies() {
            self.counters.writes += 1;
            self.write_part(first, &blocks);
            return Err(EIO);
        }
        self.write_blocks(first, &blocks)
    }

    fn flush(&mut self) -> Result<(), DeviceError> {
        if self.dead || self.dies() {
            return Err(EIO);
        }
        self.flush_blocks(self.seq)
    }
}
