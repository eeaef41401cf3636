//! A dense leaf: 512 mappings and their checksums.

use super::LEAF_BLOCKS;
use crate::format::record::{LeafBits, LeafMarks};

const HOLE: u64 = 0xff_ffff_ffff;
const KEPT: u64 = 0xff_ffff_fffe;

/// What one block of a volume maps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Nothing: reads as zero, charged nothing.
    Hole,
    /// Zeroes whose space stays charged (write-zeroes that keeps the allocation).
    Kept,
    /// A data block.
    Block {
        /// Block number in the pool, below `2^40 - 2`.
        pbn: u64,
        /// Its checksum.
        crc: u32,
    },
}

/// 2 MiB of a volume: 40-bit block numbers, split so that no byte is padding.
#[derive(Clone, Debug)]
pub struct Leaf {
    low: [u32; LEAF_BLOCKS],
    high: [u8; LEAF_BLOCKS],
    crc: [u32; LEAF_BLOCKS],
    /// Data blocks that are this leaf's own; the others are inherited.
    owned: LeafBits,
    mapped: u16,
    kept: u16,
    page: Option<LeafPage>,
}

/// Where a leaf's page lies, and which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafPage {
    /// Pool block.
    pub pbn: u64,
    /// Checksum of the page.
    pub crc: u32,
}

impl Leaf {
    /// A leaf of holes.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            low: [HOLE as u32; LEAF_BLOCKS],
            high: [(HOLE >> 32) as u8; LEAF_BLOCKS],
            crc: [0; LEAF_BLOCKS],
            owned: [0; LEAF_BLOCKS / 64],
            mapped: 0,
            kept: 0,
            page: None,
        }
    }

    /// The page on the device that says what the leaf says; `None` if it has changed since.
    #[must_use]
    pub fn page(&self) -> Option<LeafPage> {
        self.page
    }

    /// Notes that `page` says what the leaf says.
    pub(super) fn set_page(&mut self, page: LeafPage) {
        self.page = Some(page);
    }

    /// Parts the leaf from its page, because it is about to change.
    pub(super) fn take_page(&mut self) -> Option<LeafPage> {
        self.page.take()
    }

    fn raw(&self, i: usize) -> u64 {
        u64::from(self.high[i]) << 32 | u64::from(self.low[i])
    }

    /// Mapping of block `i` of the leaf.
    #[must_use]
    pub fn get(&self, i: usize) -> Mapping {
        match self.raw(i) {
            HOLE => Mapping::Hole,
            KEPT => Mapping::Kept,
            pbn => Mapping::Block { pbn, crc: self.crc[i] },
        }
    }

    /// Whether block `i` has data that is the leaf's own.
    #[must_use]
    pub fn owns(&self, i: usize) -> bool {
        self.owned[i / 64] >> (i % 64) & 1 != 0
    }

    /// Which data blocks are the leaf's own.
    #[must_use]
    pub fn owned(&self) -> LeafBits {
        self.owned
    }

    /// Makes data that was inherited the leaf's own. Its page says the same still.
    pub(super) fn own_all(&mut self, bits: &LeafBits) {
        self.owned.iter_mut().zip(bits).for_each(|(word, own)| *word |= own);
    }

    /// Makes all data inherited: of a copy whose original lives on.
    pub(super) fn disown(&mut self) {
        self.owned = LeafBits::default();
    }

    /// As [`Leaf::set`], for data that is inherited.
    pub fn inherit(&mut self, i: usize, new: Mapping) -> Mapping {
        let old = self.set(i, new);
        self.owned[i / 64] &= !(1 << (i % 64));
        old
    }

    /// Replaces the mapping of block `i`; data is the leaf's own then. Returns the old mapping.
    pub fn set(&mut self, i: usize, new: Mapping) -> Mapping {
        debug_assert_eq!(self.page, None);
        let old = self.get(i);
        let owns = matches!(new, Mapping::Block { .. });
        self.owned[i / 64] = self.owned[i / 64] & !(1 << (i % 64)) | u64::from(owns) << (i % 64);
        match old {
            Mapping::Hole => {}
            Mapping::Kept => self.kept -= 1,
            Mapping::Block { .. } => self.mapped -= 1,
        }
        let (raw, crc) = match new {
            Mapping::Hole => (HOLE, 0),
            Mapping::Kept => {
                self.kept += 1;
                (KEPT, 0)
            }
            Mapping::Block { pbn, crc } => {
                debug_assert!(pbn < KEPT);
                self.mapped += 1;
                (pbn, crc)
            }
        };
        self.low[i] = raw as u32;
        self.high[i] = (raw >> 32) as u8;
        self.crc[i] = crc;
        old
    }

    /// Maps every block to `new`, which is no data block.
    pub fn fill(&mut self, new: Mapping) {
        for i in 0..LEAF_BLOCKS {
            self.set(i, new);
        }
    }

    /// Data blocks in the leaf.
    #[must_use]
    pub fn mapped(&self) -> u16 {
        self.mapped
    }

    /// Kept zero blocks in the leaf.
    #[must_use]
    pub fn kept(&self) -> u16 {
        self.kept
    }

    /// Which blocks have data.
    #[must_use]
    pub fn data(&self) -> LeafBits {
        let mut bits = LeafBits::default();
        for i in 0..LEAF_BLOCKS {
            bits[i / 64] |= u64::from(self.raw(i) < KEPT) << (i % 64);
        }
        bits
    }

    /// Which blocks have the same mapping in `other`.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> LeafBits {
        let mut bits = LeafBits::default();
        for i in 0..LEAF_BLOCKS {
            bits[i / 64] |= u64::from(self.raw(i) == other.raw(i)) << (i % 64);
        }
        bits
    }

    /// What the blocks are.
    #[must_use]
    pub fn marks(&self) -> LeafMarks {
        let mut marks = LeafMarks::default();
        for i in 0..LEAF_BLOCKS {
            let bits = match self.raw(i) {
                HOLE => &mut marks.holes,
                KEPT => &mut marks.kept,
                _ if !self.owns(i) => &mut marks.inherited,
                _ => continue,
            };
            bits[i / 64] |= 1 << (i % 64);
        }
        marks
    }

    /// Whether holes and kept zeroes are where `marks` says.
    #[must_use]
    pub fn is_marked(&self, marks: &LeafMarks) -> bool {
        let own = self.marks();
        (own.holes, own.kept) == (marks.holes, marks.kept)
    }

    /// Makes these blocks inherited.
    pub(super) fn inherit_all(&mut self, inherited: &LeafBits) {
        self.owned.iter_mut().zip(inherited).for_each(|(owned, word)| *owned &= !word);
    }
}

impl Default for Leaf {
    fn default() -> Self {
        Self::new()
    }
}
