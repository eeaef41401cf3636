//! An arena of buffers that notices leaks and double frees.

use flagstone_block::{BLOCK_SIZE, Buffer, Buffers};

/// More than an engine and some readers need.
const BLOCKS: usize = 4096;

/// Hands out runs from the front, and again what was given back, in classes of powers of two.
#[derive(Debug)]
pub(crate) struct Arena {
    bytes: Vec<u8>,
    /// Length of the run that begins at each slot, zero if none does.
    runs: Vec<u32>,
    next: u32,
    /// Starts of free runs, by class.
    free: Vec<Vec<u32>>,
    in_use: u32,
}

impl Arena {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0xaa; BLOCKS * BLOCK_SIZE],
            runs: vec![0; BLOCKS],
            next: 0,
            free: vec![Vec::new(); 32],
            in_use: 0,
        }
    }

    /// Takes everything back, from an engine that is no more.
    pub(crate) fn reset(&mut self) {
        self.runs.fill(0);
        self.free.iter_mut().for_each(Vec::clear);
        (self.next, self.in_use) = (0, 0);
    }

    /// Blocks that were taken and not given back.
    pub(crate) fn in_use(&self) -> u32 {
        self.in_use
    }
}

fn class(blocks: u32) -> usize {
    blocks.next_power_of_two().ilog2() as usize
}

impl Buffers for Arena {
    fn alloc(&mut self, blocks: u32) -> Option<Buffer> {
        let slot = match self.free[class(blocks)].pop() {
            Some(slot) => slot,
            None => {
                let slot = self.next;
                let end = slot + blocks.next_power_of_two();
                if end as usize > BLOCKS {
                    return None;
                }
                self.next = end;
                slot
            }
        };
        self.runs[slot as usize] = blocks;
        self.in_use += blocks;
        Some(Buffer { slot, blocks })
    }

    fn free(&mut self, buffer: Buffer) {
        let run = &mut self.runs[buffer.slot as usize];
        assert_eq!(*run, buffer.blocks, "freed twice, or not as it was taken");
        *run = 0;
        self.in_use -= buffer.blocks;
        self.free[class(buffer.blocks)].push(buffer.slot);
    }

    fn bytes(&self, buffer: Buffer) -> &[u8] {
        &self.bytes[buffer.slot as usize * BLOCK_SIZE..][..buffer.len()]
    }

    fn bytes_mut(&mut self, buffer: Buffer) -> &mut [u8] {
        &mut self.bytes[buffer.slot as usize * BLOCK_SIZE..][..buffer.len()]
    }
}
