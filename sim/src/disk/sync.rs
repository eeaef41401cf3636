//! The disk's blocking face, used to format and open; the process may die at any call.

use super::{Disk, EIO, share, store};
use crate::content::Block;
use flagstone_block::{BLOCK_SIZE, BlockIo, DeviceError, split_offset};

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

    fn check(&self, offset: u64, len: usize) -> Result<(), DeviceError> {
        let (disk, at) = split_offset(offset);
        let inside = at + len as u64 <= self.bytes(disk);
        if inside { Ok(()) } else { Err(DeviceError::OutOfRange { offset }) }
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
        self.current.len() * BLOCK_SIZE as u64
    }

    fn device_bytes(&self, device: usize) -> Option<u64> {
        self.current.blocks(device).map(|blocks| blocks as u64 * BLOCK_SIZE as u64)
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        if self.dead {
            return Err(EIO);
        }
        self.check(offset, into.len())?;
        self.read_blocks(store::number(offset), into).0
    }

    fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<(), DeviceError> {
        if self.dead {
            return Err(EIO);
        }
        self.check(offset, from.len())?;
        let first = store::number(offset);
        let blocks: Vec<Block> = from.chunks_exact(BLOCK_SIZE).map(share).collect();
        if self.dies() {
            self.counters.writes += 1;
            self.write_part(first, &blocks);
            return Err(EIO);
        }
        self.write_blocks(first, &blocks)
    }

    fn flush(&mut self) -> Result<(), DeviceError> {
        self.flush_devices(&|_| true)
    }

    fn flush_devices(&mut self, wanted: &dyn Fn(usize) -> bool) -> Result<(), DeviceError> {
        if self.dead {
            return Err(EIO);
        }
        let (dies, seq) = (self.dies(), self.seq);
        for disk in self.disks().into_iter().filter(|disk| wanted(*disk)) {
            // One after the other, and perhaps not all of them.
            if dies && self.rng.one_in(2) {
                break;
            }
            self.flush_blocks(disk, seq)?;
        }
        if dies { Err(EIO) } else { Ok(()) }
    }
}
