//! What the disks of a pool hold: each in a range of block numbers of its own, so that all of them
//! can be looked at as one.

use crate::content::Block;
use flagstone_block::{BLOCK_SIZE, split_offset};
use std::ops::{Index, IndexMut};

/// Where the number of the disk begins in a block number.
const DISK_BITS: u32 = 20;

/// Blocks by number; `None` where nothing was ever written.
#[derive(Clone, Debug)]
pub(super) struct Store(Vec<Option<Vec<Option<Block>>>>);

/// Number of the block at an offset of the pool.
pub(super) fn number(offset: u64) -> u32 {
    let (disk, offset) = split_offset(offset);
    (disk as u32) << DISK_BITS | (offset / BLOCK_SIZE as u64) as u32
}

/// The disk of a block, and the block's number there.
pub(super) fn split(block: u32) -> (usize, u32) {
    ((block >> DISK_BITS) as usize, block & ((1 << DISK_BITS) - 1))
}

impl Store {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    /// Puts an empty disk in a place.
    pub(super) fn put(&mut self, disk: usize, blocks: usize) {
        if self.0.len() <= disk {
            self.0.resize(disk + 1, None);
        }
        self.0[disk] = Some(vec![None; blocks]);
    }

    /// Takes a disk away.
    pub(super) fn remove(&mut self, disk: usize) {
        if let Some(disk) = self.0.get_mut(disk) {
            *disk = None;
        }
    }

    /// Blocks of a disk; `None` if it is not there.
    pub(super) fn blocks(&self, disk: usize) -> Option<usize> {
        self.0.get(disk)?.as_ref().map(Vec::len)
    }

    pub(super) fn enlarge(&mut self, disk: usize, blocks: usize) {
        if let Some(Some(disk)) = self.0.get_mut(disk) {
            disk.resize(blocks.max(disk.len()), None);
        }
    }

    /// The disks there are.
    pub(super) fn disks(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.0.len()).filter(|&disk| self.0[disk].is_some())
    }

    /// Blocks of all disks.
    pub(super) fn len(&self) -> u64 {
        self.0.iter().flatten().map(|disk| disk.len() as u64).sum()
    }

    /// Number of the block that has `i` others before it.
    pub(super) fn nth(&self, mut i: u64) -> u32 {
        for disk in self.disks() {
            let blocks = self.blocks(disk).unwrap_or(0) as u64;
            if i < blocks {
                return (disk as u32) << DISK_BITS | i as u32;
            }
            i -= blocks;
        }
        0
    }
}

impl Index<usize> for Store {
    type Output = Option<Block>;

    fn index(&self, block: usize) -> &Self::Output {
        let (disk, block) = split(block as u32);
        &self.0[disk].as_ref().expect("the disk is there")[block as usize]
    }
}

impl IndexMut<usize> for Store {
    fn index_mut(&mut self, block: usize) -> &mut Self::Output {
        let (disk, block) = split(block as u32);
        &mut self.0[disk].as_mut().expect("the disk is there")[block as usize]
    }
}
