//! Damage at rest, placed by what a block is for.

use super::{Disk, FaultRates, share, store};
use crate::content::{Block, SECTOR, SECTORS};
use flagstone_block::{BLOCK_BITS, BLOCK_SIZE, join_offset, split_offset};
use flagstone_engine::Geometry;
use flagstone_engine::format::superblock::{SLOTS, SUPERBLOCK_END};

/// Where the parts of a pool lie.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    geometry: Geometry,
}

/// What a block is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Area {
    /// A superblock copy.
    Superblock,
    /// The journal ring.
    Journal,
    /// One copy of a metadata page.
    MetaCopy,
    /// A leaf page of the map.
    LeafPage,
    /// Entry table or footer of a data segment.
    Summary,
    /// The footer of a copy of those.
    SummaryCopy,
    /// A data block.
    Data,
}

impl Layout {
    /// The layout of a pool.
    #[must_use]
    pub fn new(geometry: Geometry) -> Self {
        Self { geometry }
    }

    /// Superblocks, journal, segments: 0, 1, 2.
    pub(super) fn area_index(&self, block: u32) -> usize {
        let (disk, block) = store::split(block);
        let offset = u64::from(block) << BLOCK_BITS;
        let journal_end = SUPERBLOCK_END + (u64::from(self.geometry.journal_blocks) << BLOCK_BITS);
        let (_, tail) = split_offset(self.geometry.superblock_tail(disk));
        match offset {
            _ if offset < SUPERBLOCK_END || offset >= tail => 0,
            _ if offset < journal_end => 1,
            _ => 2,
        }
    }

    fn area(&self, block: u32, bytes: &[u8]) -> Area {
        match self.area_index(block) {
            0 => Area::Superblock,
            1 => Area::Journal,
            _ => {
                let at = u64::from(store::split(block).1) << BLOCK_BITS;
                let from = at.saturating_sub(self.geometry.data_offset);
                let in_segment = (from >> BLOCK_BITS) % u64::from(self.geometry.shape.blocks);
                if bytes[..4] == *b"LSBM" {
                    Area::MetaCopy
                } else if bytes[..4] == *b"LSBL" {
                    Area::LeafPage
                } else if in_segment >= u64::from(self.geometry.shape.data_blocks) {
                    Area::Summary
                } else if bytes[..4] == *b"LSBG" {
                    Area::SummaryCopy
                } else {
                    Area::Data
                }
            }
        }
    }

    /// The places of all superblock copies.
    fn superblocks(&self) -> impl Iterator<Item = u32> {
        let places = |device| {
            let slots = SLOTS.into_iter().flatten().map(move |offset| join_offset(device, offset));
            slots.chain([self.geometry.superblock_tail(device)])
        };
        self.geometry.devices().flat_map(places).map(store::number)
    }
}

/// Whether what a block says is said elsewhere too: a superblock, a metadata page, a leaf page.
pub(super) fn has_copies(bytes: &[u8]) -> bool {
    [*b"LSBS", *b"LSBM", *b"LSBL"].contains(&[bytes[0], bytes[1], bytes[2], bytes[3]])
}

impl Disk {
    /// Whether anything is damaged.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        !self.damaged.is_empty() || !self.unreadable.is_empty()
    }

    /// Whether block `b` from an offset of the pool is damaged at rest.
    #[must_use]
    pub fn is_bad(&self, offset: u64, b: u32) -> bool {
        let block = store::number(offset) + b;
        self.damaged.contains_key(&block) || self.unreadable.contains(&block)
    }

    /// Forgets which reads faults have touched.
    pub fn begin_doubt(&mut self) {
        self.doubtful.clear();
    }

    /// Whether a fault touched the last read, since [`Disk::begin_doubt`], of a block that is
    /// there only once.
    #[must_use]
    pub fn doubts(&self) -> bool {
        !self.doubtful.is_empty()
    }

    /// Journal blocks that could not be read never come back.
    pub fn lose_doubtful_journal(&mut self, layout: &Layout) {
        for block in std::mem::take(&mut self.doubtful) {
            if layout.area_index(block) == 1 {
                self.current[block as usize] = None;
                self.pending.remove(&block);
                self.damaged.remove(&block);
                self.unreadable.remove(&block);
            }
        }
    }

    /// Whether nothing is damaged and no command will fail.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        !self.is_damaged() && self.rates == FaultRates::default() && self.trouble.is_none()
    }

    /// Undoes all damage.
    pub fn repair(&mut self) {
        self.damaged.clear();
        self.unreadable.clear();
        if let Some(trouble) = &mut self.trouble {
            trouble.reads = 0;
        }
    }

    /// Damages one block of `area` that holds something; returns its number. Of superblocks and
    /// metadata pages one copy at most is damaged, since no format survives the loss of all.
    pub fn rot(&mut self, area: Area, layout: &Layout) -> Option<u32> {
        let block = self.find(area, layout)?;
        let before = self.shown(block);
        let mut bytes = *before;
        match self.rng.below(5) {
            0 | 1 => {
                let bit = self.rng.below(BLOCK_SIZE as u64 * 8) as usize;
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            2 => {
                let sector = self.rng.below(SECTORS as u64) as usize;
                bytes[sector * SECTOR..(sector + 1) * SECTOR].fill(0);
            }
            3 => {
                self.unreadable.insert(block);
                return Some(block);
            }
            _ => {
                // Something that was meant for another place.
                let other = self.find(Area::Data, layout).unwrap_or(block);
                bytes = *self.shown(other);
            }
        }
        if bytes[..] != before[..] {
            self.damaged.insert(block, share(&bytes));
        }
        Some(block)
    }

    fn find(&mut self, area: Area, layout: &Layout) -> Option<u32> {
        let fits = |disk: &Self, block: u32| {
            let Some(bytes) = &disk.current[block as usize] else { return false };
            if layout.area(block, &bytes[..]) != area || bytes[..8] == [0; 8] {
                return false;
            }
            let damaged = |b: u32| disk.damaged.contains_key(&b) || disk.unreadable.contains(&b);
            match area {
                Area::Superblock => !layout.superblocks().any(damaged),
                // Copies lie side by side.
                Area::MetaCopy => !damaged(block ^ 1) && !damaged(block + 1) && !damaged(block - 1),
                _ => true,
            }
        };
        if area == Area::Superblock {
            // The newest is the one that matters; it may be the only one after a crash.
            let places: Vec<u32> = layout.superblocks().collect();
            let generation = |disk: &Self, place: u32| {
                let bytes = disk.current[place as usize].as_ref();
                bytes.map_or([0; 8], |bytes| std::array::from_fn(|i| bytes[32 + 7 - i]))
            };
            let newest = places.iter().copied().max_by_key(|&place| generation(self, place));
            let any = self.rng.pick(&places);
            let block = newest.filter(|_| self.rng.one_in(2)).unwrap_or(any);
            return fits(self, block).then_some(block);
        }
        let blocks = self.current.len();
        let start = self.rng.below(blocks);
        let mut order = (0..blocks).map(|i| self.current.nth((start + i) % blocks));
        order.find(|&block| fits(self, block))
    }

    /// The write that should have gone to `first` went elsewhere as well as nowhere.
    pub(super) fn misdirect(&mut self, first: u32, blocks: &[Block]) {
        self.counters.misdirected += 1;
        // On the same disk.
        let (disk, at) = store::split(first);
        let room = self.current.blocks(disk).unwrap_or(0) as u64 - blocks.len() as u64;
        let near = self.rng.between(1, 64);
        let to = if self.rng.one_in(2) { u64::from(at) + near } else { self.rng.below(room) };
        let to = first - at + to.min(room) as u32;
        for (block, bytes) in (to..).zip(blocks) {
            // Its own place keeps what was there; and free space is no place to notice.
            let own = (first..first + blocks.len() as u32).contains(&block);
            if !own && self.current[block as usize].is_some() {
                self.damaged.insert(block, bytes.clone());
            }
        }
    }
}
