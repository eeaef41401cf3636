//! What is kept in memory of a leaf whose page alone is: what must be known without reading it.

use super::{LEAF_BLOCKS, LeafPage, Mapping, Unread};
use crate::format::record::{LeafBits, LeafMarks, marked};

/// A leaf that is not in memory.
#[derive(Clone, Debug)]
pub struct PagedLeaf {
    /// Where it is.
    pub page: LeafPage,
    holes: LeafBits,
    /// Kept zeroes and inherited blocks: most leaves have neither.
    rare: Option<Box<Rare>>,
    /// Not read since the opening, or not since what was logged before it.
    pub(super) unread: Option<Box<Unread>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rare {
    kept: LeafBits,
    inherited: LeafBits,
}

impl PagedLeaf {
    /// A leaf whose blocks are what `marks` says.
    #[must_use]
    pub fn new(page: LeafPage, marks: &LeafMarks) -> Self {
        let rare = Rare { kept: marks.kept, inherited: marks.inherited };
        let rare = (rare != Rare::default()).then(|| Box::new(rare));
        Self { page, holes: marks.holes, rare, unread: None }
    }

    /// As [`PagedLeaf::new`], for one that nobody has read yet, as it was at `lsn`.
    #[must_use]
    pub fn unread(page: LeafPage, marks: &LeafMarks, lsn: u64) -> Self {
        Self { unread: Some(Box::new(Unread::new(lsn))), ..Self::new(page, marks) }
    }

    /// The same for a child of whose leaf it is: all data is inherited.
    #[must_use]
    pub fn inherited(&self) -> Self {
        let mut child = self.clone();
        let rare = child.rare.get_or_insert_default();
        for (i, inherited) in rare.inherited.iter_mut().enumerate() {
            *inherited = !(self.holes[i] | rare.kept[i]);
        }
        child
    }

    /// Blocks with data.
    #[must_use]
    pub fn mapped(&self) -> u64 {
        LEAF_BLOCKS as u64 - ones(&self.holes) - self.kept()
    }

    /// Which blocks have data.
    #[must_use]
    pub fn data(&self) -> LeafBits {
        let kept = self.rare.as_ref().map_or(LeafBits::default(), |rare| rare.kept);
        std::array::from_fn(|i| !(self.holes[i] | kept[i]))
    }

    /// Blocks with data that is the leaf's own.
    #[must_use]
    pub fn owned(&self) -> u64 {
        self.mapped() - self.rare.as_ref().map_or(0, |rare| ones(&rare.inherited))
    }

    /// Blocks with data that is the leaf's own.
    #[must_use]
    pub fn owned_bits(&self) -> LeafBits {
        let marks = self.marks();
        std::array::from_fn(|i| !(marks.holes[i] | marks.kept[i] | marks.inherited[i]))
    }

    /// Makes blocks that were inherited the leaf's own.
    pub(super) fn own_all(&mut self, bits: &LeafBits) {
        if let Some(rare) = &mut self.rare {
            rare.inherited.iter_mut().zip(bits).for_each(|(word, own)| *word &= !own);
        }
    }

    /// Kept zero blocks.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.rare.as_ref().map_or(0, |rare| ones(&rare.kept))
    }

    /// Notes what block `i` was changed to; data is the leaf's own.
    pub(super) fn set_kind(&mut self, i: usize, mapping: Mapping) {
        put(&mut self.holes, i, mapping == Mapping::Hole);
        if mapping == Mapping::Kept {
            self.rare.get_or_insert_default();
        }
        if let Some(rare) = &mut self.rare {
            put(&mut rare.kept, i, mapping == Mapping::Kept);
            put(&mut rare.inherited, i, false);
        }
    }

    /// Whether block `i` is a hole, and whether it is a kept zero.
    #[must_use]
    pub fn bit(&self, i: usize) -> (bool, bool) {
        let kept = self.rare.as_ref().is_some_and(|rare| marked(&rare.kept, i));
        (marked(&self.holes, i), kept)
    }

    /// Whether block `i` has data that is the leaf's own.
    #[must_use]
    pub fn owns(&self, i: usize) -> bool {
        let inherited = self.rare.as_ref().is_some_and(|rare| marked(&rare.inherited, i));
        self.bit(i) == (false, false) && !inherited
    }

    /// What the blocks are.
    #[must_use]
    pub fn marks(&self) -> LeafMarks {
        let rare = self.rare.as_deref().cloned().unwrap_or_default();
        LeafMarks { holes: self.holes, kept: rare.kept, inherited: rare.inherited }
    }
}

fn put(bits: &mut LeafBits, i: usize, value: bool) {
    bits[i / 64] = bits[i / 64] & !(1 << (i % 64)) | u64::from(value) << (i % 64);
}

fn ones(bits: &LeafBits) -> u64 {
    bits.iter().map(|word| u64::from(word.count_ones())).sum()
}
