//! Storage of leaves, in memory or not.
//!
//! A leaf has a number that stays while it is read back or dropped from memory, and maps refer to it by
//! that. Several may refer to one leaf as long as they say the same. Dense leaves lie in chunks that never
//! move; of the others there is what must be known without reading them. It also counts, for each segment,
//! the leaves whose page lies there and says what they say.
//!
//! Invariants:
//! 1. A leaf that more than one map node refers to is not changed but copied.
//! 2. Numbers, and places in memory, are given out again only when nobody refers to them.

use super::tree::Node;
use super::{LEAF_BLOCKS, Leaf, LeafPage, Mapping, PagedLeaf, Unread};
use crate::format::record::LeafBits;
use crate::geometry::Geometry;
use std::sync::Arc;

const CHUNK_LEAVES: usize = 64;
/// Nodes kept for the next copies: 2 KiB each.
const SPARE_NODES: usize = 256;
/// Passes of the clock that a leaf survives after it was used.
const WARM: u8 = 2;

/// Where a leaf is, and how many map nodes refer to it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    refs: u32,
    /// Only a checkpoint still refers to it.
    left: bool,
    place: Place,
    /// Its number in the volumes that have it.
    leaf: u64,
}

/// Where a leaf is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory: index among the dense leaves.
    Dense(u32),
    /// Not in memory: index among those.
    Away(u32),
}

/// Which leaf lies in a place in memory, and how lately it was used.
#[derive(Clone, Copy, Debug, Default)]
struct Owner {
    id: u32,
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
    /// Its number in the volumes that have it.
    pub leaf: u64,
    /// Its place in memory.
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
    entries: Vec<Entry>,
    free_entries: Vec<u32>,
    chunks: Vec<Vec<Leaf>>,
    owners: Vec<Owner>,
    free: Vec<u32>,
    used: usize,
    /// Leaves that only a checkpoint still refers to.
    left: usize,
    /// Dense leaves with a page.
    clean: usize,
    /// Those that are not in memory, with their numbers.
    away: Vec<(PagedLeaf, u32)>,
    away_free: Vec<u32>,
    /// Nodes that nobody refers to any more, so that a checkpoint needs no memory.
    nodes: Vec<Node>,
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
            entries: Vec::new(),
            free_entries: Vec::new(),
            chunks: Vec::new(),
            owners: Vec::new(),
            free: Vec::new(),
            used: 0,
            left: 0,
            clean: 0,
            away: Vec::new(),
            away_free: Vec::new(),
            nodes: Vec::new(),
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

    /// Makes a leaf of holes, as leaf number `leaf`; returns its number.
    pub fn make(&mut self, leaf: u64) -> u32 {
        let index = self.take(Leaf::new());
        self.enter(leaf, Place::Dense(index))
    }

    fn enter(&mut self, leaf: u64, place: Place) -> u32 {
        let entry = Entry { refs: 1, left: false, place, leaf };
        let id = match self.free_entries.pop() {
            Some(id) => {
                self.entries[id as usize] = entry;
                id
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        };
        self.place(id, place);
        id
    }

    /// Notes where a leaf is.
    fn place(&mut self, id: u32, place: Place) {
        self.entries[id as usize].place = place;
        match place {
            Place::Dense(index) => self.owners[index as usize].id = id,
            Place::Away(away) => self.away[away as usize].1 = id,
        }
    }

    /// Where leaf number `id` is.
    #[must_use]
    pub fn at(&self, id: u32) -> Place {
        self.entries[id as usize].place
    }

    /// A copy of a node.
    pub(super) fn copy_node(&mut self, node: &Node) -> Node {
        let mut copy = self.nodes.pop().unwrap_or_else(|| Arc::clone(node));
        *Arc::make_mut(&mut copy) = **node;
        copy
    }

    /// Takes a node that a map has let go, for the next copy.
    pub(super) fn keep_node(&mut self, mut node: Node) {
        if self.nodes.len() < SPARE_NODES && Arc::get_mut(&mut node).is_some() {
            self.nodes.push(node);
        }
    }

    /// Another map node refers to a leaf.
    pub fn share(&mut self, id: u32) {
        self.entries[id as usize].refs += 1;
    }

    /// Whether several map nodes refer to a leaf.
    #[must_use]
    pub fn is_shared(&self, id: u32) -> bool {
        self.entries[id as usize].refs > 1
    }

    /// A map node refers to a leaf no more. The last one leaves it only when nothing it maps counts
    /// any longer.
    pub fn part(&mut self, id: u32) {
        let entry = &mut self.entries[id as usize];
        entry.refs -= 1;
        if entry.refs > 0 {
            return;
        }
        self.left -= usize::from(entry.left);
        match entry.place {
            Place::Dense(index) => self.release(index),
            Place::Away(away) => self.forget(away),
        }
        self.free_entries.push(id);
    }

    /// As [`LeafSlab::part`], by the only volume that a leaf is of: only checkpoints go on with it.
    pub fn leave(&mut self, id: u32) {
        self.entries[id as usize].left = true;
        self.left += 1;
        self.part(id);
    }

    /// A copy of a leaf in memory that only checkpoints refer to beside its volume, for that: it takes
    /// over what the leaf owns.
    pub fn copy(&mut self, id: u32, leaf: u64) -> u32 {
        let copy = self.copy_of(id, leaf, false);
        self.leave(id);
        copy
    }

    /// A copy of a leaf in memory for a child of the volume that goes on with it; it owns nothing.
    pub fn copy_inherited(&mut self, id: u32, leaf: u64) -> u32 {
        let copy = self.copy_of(id, leaf, true);
        self.part(id);
        copy
    }

    /// A copy of a leaf in memory.
    pub(super) fn copy_of(&mut self, id: u32, leaf: u64, inherits: bool) -> u32 {
        let Place::Dense(from) = self.at(id) else {
            unreachable!("a leaf is read before it is copied")
        };
        let mut content = self.get(from).clone();
        content.take_page();
        if inherits {
            content.disown();
        }
        let index = self.take(content);
        self.owners[index as usize].written = self.owners[from as usize].written;
        self.enter(leaf, Place::Dense(index))
    }

    /// Puts a leaf into a place in memory. A new chunk is filled leaf by leaf: to touch all of it at once
    /// would hold up whatever else is done in that turn.
    fn take(&mut self, content: Leaf) -> u32 {
        self.used += 1;
        let owner = Owner { id: 0, used: true, warmth: WARM, written: 0 };
        if let Some(index) = self.free.pop() {
            *self.leaf(index) = content;
            self.owners[index as usize] = owner;
            return index;
        }
        let index = self.owners.len();
        if index.is_multiple_of(CHUNK_LEAVES) {
            self.chunks.push(Vec::with_capacity(CHUNK_LEAVES));
            self.owners.reserve(CHUNK_LEAVES);
            self.free.reserve(index + CHUNK_LEAVES);
        }
        self.chunks[index / CHUNK_LEAVES].push(content);
        self.owners.push(owner);
        index as u32
    }

    /// Gives a place in memory back.
    fn release(&mut self, index: u32) {
        // Parts it from its page. What it holds stays until the place is taken again.
        self.get_mut(index);
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

    /// Leaves in all, without those that only a checkpoint still refers to.
    #[must_use]
    pub fn leaves(&self) -> usize {
        self.used + self.away() - self.left
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
        let Owner { id, used, warmth, .. } = self.owners[index];
        self.owners[index].warmth = warmth.saturating_sub(1);
        let index = index as u32;
        let page = self.get(index).page().filter(|_| used)?;
        let leaf = self.entries[id as usize].leaf;
        Some(Candidate { leaf, index, page, cold: warmth == 0 })
    }

    /// A leaf that is not in memory has another page now, which says all that is known.
    pub fn move_away(&mut self, away: u32, page: LeafPage) {
        self.uncount(self.away_leaf(away).page);
        let leaf = self.away_mut(away);
        (leaf.page, leaf.unread) = (page, None);
        self.count(page);
    }

    /// What is kept of a leaf that is not in memory.
    #[must_use]
    pub fn away_leaf(&self, away: u32) -> &PagedLeaf {
        &self.away[away as usize].0
    }

    /// A leaf that is not in memory, to be changed.
    pub(super) fn away_mut(&mut self, away: u32) -> &mut PagedLeaf {
        &mut self.away[away as usize].0
    }

    /// Makes a leaf that is not in memory; returns its number.
    pub fn make_away(&mut self, leaf: u64, content: PagedLeaf) -> u32 {
        self.count(content.page);
        let away = self.store_away(content);
        self.enter(leaf, Place::Away(away))
    }

    fn store_away(&mut self, leaf: PagedLeaf) -> u32 {
        match self.away_free.pop() {
            Some(away) => {
                self.away[away as usize] = (leaf, 0);
                away
            }
            None => {
                self.away.push((leaf, 0));
                (self.away.len() - 1) as u32
            }
        }
    }

    /// Drops a dense leaf from memory, all but what must be known; it must have a page.
    pub fn evict(&mut self, index: u32) {
        let marks = self.get(index).marks();
        let page = self.leaf(index).take_page().expect("a clean leaf has a page");
        let id = self.owners[index as usize].id;
        self.clean -= 1;
        self.release(index);
        let away = self.store_away(PagedLeaf::new(page, &marks));
        self.place(id, Place::Away(away));
    }

    /// Takes back a leaf that was read from its page; `clean` if it still says what the page says.
    pub fn bring_back(&mut self, away: u32, content: Leaf, clean: bool) {
        let page = self.away_leaf(away).page;
        let marks = self.away_leaf(away).marks();
        let id = self.away[away as usize].1;
        self.forget(away);
        let index = self.take(content);
        self.leaf(index).inherit_all(&marks.inherited);
        self.place(id, Place::Dense(index));
        if clean {
            self.set_page(index, page);
        }
    }

    /// Notes that a leaf that is not in memory has no data where `content` has none.
    pub fn mark_holes(&mut self, away: u32, content: &Leaf) {
        for i in (0..LEAF_BLOCKS).filter(|&i| content.get(i) == Mapping::Hole) {
            self.away_mut(away).set_kind(i, Mapping::Hole);
        }
    }

    /// Makes blocks that a leaf inherited its own.
    pub(super) fn own_all(&mut self, id: u32, bits: &LeafBits) {
        match self.at(id) {
            Place::Dense(index) => self.leaf(index).own_all(bits),
            Place::Away(away) => self.away_mut(away).own_all(bits),
        }
    }

    /// Says which data of a leaf in memory is its own.
    pub(super) fn set_owned(&mut self, id: u32, bits: &LeafBits) {
        if let Place::Dense(index) = self.at(id) {
            self.leaf(index).disown();
            self.leaf(index).own_all(bits);
        }
    }

    /// Data blocks that a leaf maps, that it owns, and kept zeroes.
    pub(super) fn counts(&self, id: u32) -> (u64, u64, u64) {
        match self.at(id) {
            Place::Dense(index) => {
                let leaf = self.get(index);
                let owned = leaf.owned().iter().map(|word| u64::from(word.count_ones())).sum();
                (u64::from(leaf.mapped()), owned, u64::from(leaf.kept()))
            }
            Place::Away(away) => {
                let leaf = self.away_leaf(away);
                (leaf.mapped(), leaf.owned(), leaf.kept())
            }
        }
    }

    /// Notes that data of a leaf that is not in memory lies elsewhere than its page says.
    pub fn note_moved(&mut self, away: u32, block: usize, to: Mapping) {
        let unread = self.away_mut(away).unread.get_or_insert_with(|| Box::new(Unread::counted()));
        unread.note_moved(block, to);
    }

    /// Forgets a leaf that is not in memory.
    fn forget(&mut self, away: u32) {
        self.uncount(self.away_leaf(away).page);
        self.away_mut(away).unread = None;
        self.away_free.push(away);
    }

    /// What is known of a leaf that is not in memory beside its page.
    #[must_use]
    pub fn unread(&self, away: u32) -> Option<&Unread> {
        self.away_leaf(away).unread.as_deref()
    }

    /// As [`LeafSlab::unread`], but from now on there is nothing.
    pub fn take_unread(&mut self, away: u32) -> Option<Box<Unread>> {
        self.away_mut(away).unread.take()
    }

    /// The opposite of [`LeafSlab::take_unread`].
    pub fn put_unread(&mut self, away: u32, unread: Box<Unread>) {
        self.away_mut(away).unread = Some(unread);
    }
}
