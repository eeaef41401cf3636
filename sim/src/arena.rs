//! The simulated buffer arena: plain memory that notices misuse.
//!
//! What `alloc` returns holds a fixed poison pattern: whoever takes undefined bytes for defined
//! ones does so in every run alike. Freeing what is not allocated panics, which fails the seed.

use flagstone_block::{BLOCK_SIZE, Buffer, Buffers};
use std::collections::BTreeMap;

/// Byte that undefined memory is made of.
const POISON: u8 = 0xa5;

/// Memory for buffers of a bounded number of blocks.
#[derive(Debug)]
pub struct Arena {
    bytes: Vec<u8>,
    slots: u32,
    /// Free runs: first slot and length. Neighbours are merged.
    free: BTreeMap<u32, u32>,
    /// Length of the allocated run that starts at a slot, else 0.
    allocated: Vec<u32>,
    taken: u32,
}

impl Arena {
    /// An arena of `slots` blocks.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        Self {
            bytes: vec![0; slots as usize * BLOCK_SIZE],
            slots,
            free: BTreeMap::from([(0, slots)]),
            allocated: vec![0; slots as usize],
            taken: 0,
        }
    }

    /// Forgets every allocation, as the end of a process does.
    pub fn reset(&mut self) {
        self.free = BTreeMap::from([(0, self.slots)]);
        self.allocated.fill(0);
        self.taken = 0;
    }

    /// Blocks allocated now.
    #[must_use]
    pub fn taken(&self) -> u32 {
        self.taken
    }
}

impl Buffers for Arena {
    fn alloc(&mut self, blocks: u32) -> Option<Buffer> {
        assert!(blocks > 0, "an empty buffer was asked for");
        let (slot, run) = self.free.iter().map(|(&s, &r)| (s, r)).find(|&(_, r)| r >= blocks)?;
        self.free.remove(&slot);
        if run > blocks {
            self.free.insert(slot + blocks, run - blocks);
        }
        self.allocated[slot as usize] = blocks;
        self.taken += blocks;
        let buffer = Buffer { slot, blocks };
        self.bytes_mut(buffer).fill(POISON);
        Some(buffer)
    }

    fn free(&mut self, buffer: Buffer) {
        let allocated = &mut self.allocated[buffer.slot as usize];
        assert_eq!(*allocated, buffer.blocks, "freed a buffer that was not allocated like this");
        *allocated = 0;
        self.taken -= buffer.blocks;
        let (mut first, mut run) = (buffer.slot, buffer.blocks);
        if let Some(after) = self.free.remove(&(first + run)) {
            run += after;
        }
        if let Some((&before, &length)) = self.free.range(..first).next_back()
            && before + length == first
        {
            (first, run) = (before, run + length);
        }
        self.free.insert(first, run);
    }

    fn bytes(&self, buffer: Buffer) -> &[u8] {
        &self.bytes[buffer.slot as usize * BLOCK_SIZE..][..buffer.len()]
    }

    fn bytes_mut(&mut self, buffer: Buffer) -> &mut [u8] {
        &mut self.bytes[buffer.slot as usize * BLOCK_SIZE..][..buffer.len()]
    }
}
