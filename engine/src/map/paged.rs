//! What is kept in memory of a leaf whose page alone is: what must be known without reading it.

use super::{LEAF_BLOCKS, LeafPage, Mapping, Unread};
use crate::format::record::LeafBits;

/// A leaf that is not in memory.
#[derive(Clone, Debug)]
pub struct PagedLeaf {
    /// Where it is.
    pub page: LeafPage,
    holes: LeafBits,
    kept: Option<Box<LeafBits>>,
    /// Not read since the opening, or not since what was logged before it.
    pub(super) unread: Option<Box<Unread>>,
}

impl PagedLeaf {
    /// A leaf with these holes and kept zeroes.
    #[must_use]
    pub fn new(page: LeafPage, holes: LeafBits, kept: LeafBits) -> Self {
        let kept = (kept != LeafBits::default()).then(|| Box::new(kept));
        Self { page, holes, kept, unread: None }
    }

    /// As [`PagedLeaf::new`], for one that nobody has read yet, as it was at `lsn`.
    #[must_use]
    pub fn unread(page: LeafPage, holes: LeafBits, kept: LeafBits, lsn: u64) -> Self {
        Self { unread: Some(Box::new(Unread::new(lsn))), ..Self::new(page, holes, kept) }
    }

    /// Blocks with data.
    #[must_use]
    pub fn mapped(&self) -> u64 {
        LEAF_BLOCKS as u64 - ones(&self.holes) - self.kept()
    }

    /// Kept zero blocks.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.kept.as_deref().map_or(0, ones)
    }

    /// Notes what kind of block `i` is.
    pub(super) fn set_kind(&mut self, i: usize, mapping: Mapping) {
        let put = |bits: &mut LeafBits, value: bool| {
            bits[i / 64] = bits[i / 64] & !(1 << (i % 64)) | u64::from(value) << (i % 64);
        };
        put(&mut self.holes, mapping == Mapping::Hole);
        match &mut self.kept {
            Some(kept) => put(kept, mapping == Mapping::Kept),
            None if mapping == Mapping::Kept => put(self.kept.get_or_insert_default(), true),
            None => {}
        }
    }

    /// Whether block `i` is a hole, and whether it is a kept zero.
    #[must_use]
    pub fn bit(&self, i: usize) -> (bool, bool) {
        let has = |bits: &LeafBits| bits[i / 64] >> (i % 64) & 1 != 0;
        (has(&self.holes), self.kept.as_deref().is_some_and(has))
    }

    /// Which blocks are holes and which are kept zeroes.
    #[must_use]
    pub fn bits(&self) -> (LeafBits, LeafBits) {
        (self.holes, self.kept.as_deref().copied().unwrap_or_default())
    }
}

fn ones(bits: &LeafBits) -> u64 {
    bits.iter().map(|word| u64::from(word.count_ones())).sum()
}
