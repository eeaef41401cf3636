//! Storage of dense leaves: chunks that never move, and a free list. It also counts, for each
//! segment, the leaves whose page lies there and still says what they say.

use super::{Leaf, LeafPage};
use crate::geometry::Geometry;

const CHUNK_LEAVES: usize = 64;

/// All dense leaves of a pool. Grows by a chunk when a new region is first written; a steady
/// load allocates nothing.
#[derive(Debug)]
pub struct LeafSlab {
    chunks: Vec<Box<[Leaf]>>,
    free: Vec<u32>,
    used: usize,
    /// Leaves with a page, by the segment that it lies in.
    paged: Vec<u32>,
    geo: Geometry,
}

impl LeafSlab {
    /// Room for the leaves of a pool.
    #[must_use]
    pub fn new(geo: &Geometry) -> Self {
        let paged = vec![0; geo.segments as usize];
        Self { chunks: Vec::new(), free: Vec::new(), used: 0, paged, geo: *geo }
    }

    /// The pool has grown.
    pub(crate) fn grow(&mut self, geo: &Geometry) {
        self.paged.resize(geo.segments as usize, 0);
        self.geo = *geo;
    }

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

    fn leaf(&mut self, index: u32) -> &mut Leaf {
        &mut self.chunks[index as usize / CHUNK_LEAVES][index as usize % CHUNK_LEAVES]
    }

    /// The leaf `index`, to be changed: its page no longer says what it says.
    pub fn get_mut(&mut self, index: u32) -> &mut Leaf {
        if let Some(page) = self.leaf(index).take_page() {
            self.paged[self.geo.locate(page.pbn).0 as usize] -= 1;
        }
        self.leaf(index)
    }

    /// Notes that `page` says what the leaf `index` says.
    pub fn set_page(&mut self, index: u32, page: LeafPage) {
        self.get_mut(index).set_page(page);
        self.paged[self.geo.locate(page.pbn).0 as usize] += 1;
    }

    /// Leaves whose page lies in `segment`.
    #[must_use]
    pub fn paged(&self, segment: u32) -> u32 {
        self.paged[segment as usize]
    }

    /// Dense leaves in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }
}
