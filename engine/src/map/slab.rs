//! Storage of dense leaves: chunks that never move, and a free list.

use super::Leaf;

const CHUNK_LEAVES: usize = 64;

/// All dense leaves of a pool. Grows by a chunk when a new region is first written; a steady
/// load allocates nothing.
#[derive(Debug, Default)]
pub struct LeafSlab {
    chunks: Vec<Box<[Leaf]>>,
    free: Vec<u32>,
    used: usize,
}

impl LeafSlab {
    /// Takes a leaf of holes.
    pub fn take(&mut self) -> u32 {
        if self.free.is_empty() {
            let first = (self.chunks.len() * CHUNK_LEAVES) as u32;
            self.chunks.push(vec![Leaf::new(); CHUNK_LEAVES].into_boxed_slice());
            self.free.reserve(self.chunks.len() * CHUNK_LEAVES);
            self.free.extend((first..first + CHUNK_LEAVES as u32).rev());
        }
        self.used += 1;
        self.free.pop().expect("a chunk was just added")
    }

    /// Gives a leaf back; it must hold holes only.
    pub fn release(&mut self, index: u32) {
        debug_assert_eq!((self.get(index).mapped(), self.get(index).kept()), (0, 0));
        self.used -= 1;
        self.free.push(index);
    }

    /// The leaf `index`.
    #[must_use]
    pub fn get(&self, index: u32) -> &Leaf {
        &self.chunks[index as usize / CHUNK_LEAVES][index as usize % CHUNK_LEAVES]
    }

    /// The leaf `index`, to be changed.
    pub fn get_mut(&mut self, index: u32) -> &mut Leaf {
        &mut self.chunks[index as usize / CHUNK_LEAVES][index as usize % CHUNK_LEAVES]
    }

    /// Dense leaves in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }
}
