//! Storage of leaves: dense ones in chunks that never move, and, for those whose page alone is kept,
//! what must be known without reading it. It also counts, for each segment, the leaves whose page
//! lies there and says what they say.

use super::{LEAF_BLOCKS, Leaf, LeafPage, Mapping, Unread};
use crate::format::record::LeafBits;
use crate::geometry::Geometry;

const CHUNK_LEAVES: usize = 64;
/// Passes of the clock that a leaf survives after it was used.
const WARM: u8 = 2;

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

/// Whose a dense leaf is, and how lately it was used.
#[derive(Clone, Copy, Debug, Default)]
struct Owner {
    volume: u32,
    leaf: u64,
    used: bool,
    warmth: u8,
    /// Second in which a block of it was written last, plus one; 0 if that is not known.
    written: u32,
}

/// Nanoseconds of a second.
const SECOND_NS: u64 = 1_000_000_000;

/// A leaf in memory that has a page.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Whose it is.
    pub volume: u32,
    /// Its number in the volume.
    pub leaf: u64,
    /// Its number in the slab.
    pub index: u32,
    /// Its page.
    pub page: LeafPage,
    /// It was not used lately.
    pub cold: bool,
}

/// All leaves of a pool. Grows by a chunk when a new region is first written; a steady load
/// allocates nothing.
#[derive(Debug)]
pub struct LeafSlab {
    chunks: Vec<Box<[Leaf]>>,
    owners: Vec<Owner>,
    free: Vec<u32>,
    used: usize,
    /// Dense leaves with a page.
    clean: usize,
    away: Vec<PagedLeaf>,
    away_free: Vec<u32>,
    /// Leaves with a page, by the segment that it lies in.
    paged: Vec<u32>,
    /// Where the clock stands.
    hand: usize,
    geo: Geometry,
}

impl LeafSlab {
    /// Room for the leaves of a pool.
    #[must_use]
    pub fn new(geo: &Geometry) -> Self {
        Self {
            chunks: Vec::new(),
            owners: Vec::new(),
            free: Vec::new(),
            used: 0,
            clean: 0,
            away: Vec::new(),
            away_free: Vec::new(),
            paged: vec![0; geo.segments as usize],
            hand: 0,
            geo: *geo,
        }
    }

    /// The pool has grown.
    pub(crate) fn grow(&mut self, geo: &Geometry) {
        self.paged.resize(geo.segments as usize, 0);
        self.geo = *geo;
    }

    /// Takes a leaf of holes, for leaf number `leaf` of a volume.
    pub fn take(&mut self, volume: u32, leaf: u64) -> u32 {
        if self.free.is_empty() {
            let first = (self.chunks.len() * CHUNK_LEAVES) as u32;
            self.chunks.push(vec![Leaf::new(); CHUNK_LEAVES].into_boxed_slice());
            self.owners.resize(self.chunks.len() * CHUNK_LEAVES, Owner::default());
            self.free.reserve(self.chunks.len() * CHUNK_LEAVES);
            self.free.extend((first..first + CHUNK_LEAVES as u32).rev());
        }
        self.used += 1;
        let index = self.free.pop().expect("a chunk was just added");
        self.owners[index as usize] = Owner { volume, leaf, used: true, warmth: WARM, written: 0 };
        index
    }

    /// Gives a leaf back; it must hold holes only.
    pub fn release(&mut self, index: u32) {
        debug_assert_eq!((self.get(index).mapped(), self.get(index).kept()), (0, 0));
        self.owners[index as usize].used = false;
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
            self.clean -= 1;
            self.uncount(page);
        }
        self.leaf(index)
    }

    /// Notes that `page` says what the leaf `index` says.
    pub fn set_page(&mut self, index: u32, page: LeafPage) {
        self.get_mut(index).set_page(page);
        self.clean += 1;
        self.count(page);
    }

    fn count(&mut self, page: LeafPage) {
        self.paged[self.geo.locate(page.pbn).0 as usize] += 1;
    }

    fn uncount(&mut self, page: LeafPage) {
        self.paged[self.geo.locate(page.pbn).0 as usize] -= 1;
    }

    /// Leaves whose page lies in `segment`.
    #[must_use]
    pub fn paged(&self, segment: u32) -> u32 {
        self.paged[segment as usize]
    }

    /// Places for dense leaves.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.owners.len()
    }

    /// Dense leaves in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// Leaves that are not in memory.
    #[must_use]
    pub fn away(&self) -> usize {
        self.away.len() - self.away_free.len()
    }

    /// Leaves in all.
    #[must_use]
    pub fn leaves(&self) -> usize {
        self.used + self.away()
    }

    /// Dense leaves that have changed since their last page.
    #[must_use]
    pub fn dirty(&self) -> usize {
        self.used - self.clean
    }

    /// Notes that a leaf was used.
    pub fn warm(&mut self, index: u32) {
        self.owners[index as usize].warmth = WARM;
    }

    /// Notes that blocks of a leaf were written.
    pub fn stamp(&mut self, index: u32, now_ns: u64) {
        self.owners[index as usize].written = (now_ns / SECOND_NS) as u32 + 1;
    }

    /// When blocks of a leaf were written last, to the second, if it has been in memory since.
    #[must_use]
    pub fn written_ns(&self, index: u32) -> Option<u64> {
        let second = self.owners[index as usize].written.checked_sub(1)?;
        Some(u64::from(second) * SECOND_NS)
    }

    /// Moves the clock on by one leaf, and describes it if it has a page.
    pub fn tick(&mut self) -> Option<Candidate> {
        let index = self.hand.checked_rem(self.owners.len())?;
        self.hand = index + 1;
        let Owner { volume, leaf, used, warmth, .. } = self.owners[index];
        self.owners[index].warmth = warmth.saturating_sub(1);
        let index = index as u32;
        let page = self.get(index).page().filter(|_| used)?;
        Some(Candidate { volume, leaf, index, page, cold: warmth == 0 })
    }

    /// A leaf that is not in memory has another page now, which says all that is known.
    pub fn move_away(&mut self, away: u32, page: LeafPage) {
        self.uncount(self.away[away as usize].page);
        self.away[away as usize].page = page;
        self.away[away as usize].unread = None;
        self.count(page);
    }

    /// What is kept of a leaf that is not in memory.
    #[must_use]
    pub fn away_leaf(&self, index: u32) -> &PagedLeaf {
        &self.away[index as usize]
    }

    /// Notes a leaf that is not in memory; returns its number among these.
    pub fn put_away(&mut self, leaf: PagedLeaf) -> u32 {
        self.count(leaf.page);
        self.store_away(leaf)
    }

    fn store_away(&mut self, leaf: PagedLeaf) -> u32 {
        match self.away_free.pop() {
            Some(index) => {
                self.away[index as usize] = leaf;
                index
            }
            None => {
                self.away.push(leaf);
                (self.away.len() - 1) as u32
            }
        }
    }

    /// Drops a dense leaf from memory, all but what must be known; it must have a page.
    pub(super) fn evict(&mut self, index: u32) -> u32 {
        let (holes, kept) = self.get(index).bits();
        let page = self.leaf(index).take_page().expect("a clean leaf has a page");
        *self.leaf(index) = Leaf::new();
        self.clean -= 1;
        self.release(index);
        self.store_away(PagedLeaf::new(page, holes, kept))
    }

    /// Takes back a leaf that was read from its page; `clean` if it still says what the page says.
    pub(super) fn return_leaf(
        &mut self,
        away: u32,
        (volume, leaf): (u32, u64),
        content: Leaf,
        clean: bool,
    ) -> u32 {
        let page = self.away[away as usize].page;
        self.forget(away);
        let index = self.take(volume, leaf);
        *self.leaf(index) = content;
        if clean {
            self.set_page(index, page);
        }
        index
    }

    /// Forgets a leaf that is not in memory.
    pub(super) fn forget(&mut self, away: u32) {
        self.uncount(self.away[away as usize].page);
        self.away[away as usize].unread = None;
        self.away_free.push(away);
    }

    /// A leaf that is not in memory, to be changed.
    pub(super) fn away_mut(&mut self, away: u32) -> &mut PagedLeaf {
        &mut self.away[away as usize]
    }

    /// What is known of a leaf that is not in memory beside its page.
    #[must_use]
    pub fn unread(&self, away: u32) -> Option<&Unread> {
        self.away[away as usize].unread.as_deref()
    }

    /// As [`LeafSlab::unread`], but from now on there is nothing.
    pub fn take_unread(&mut self, away: u32) -> Option<Box<Unread>> {
        self.away[away as usize].unread.take()
    }

    /// The opposite of [`LeafSlab::take_unread`].
    pub fn put_unread(&mut self, away: u32, unread: Box<Unread>) {
        self.away[away as usize].unread = Some(unread);
    }
}
