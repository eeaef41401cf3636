//! The radix tree of one volume.
//!
//! Nodes are shared between maps, and leaves between nodes, as long as they say the same; what is about
//! to change is copied first, if it is shared.
//!
//! A snapshot's map is the parent of the one that goes on. A leaf that has not changed since is the parent's,
//! and a copy of it inherits all that it maps; of one that has changed, a checkpoint at most has a share, and
//! a copy takes over what it owns.
//!
//! Invariants:
//! 1. Each block of the pool that maps name is owned by exactly one leaf of one map: the map for which that leaf
//!    is not the parent's. There it counts as live, and there it dies. What a checkpoint has a share in counts for
//!    its volume only, never for the checkpoint.
//! 2. A copy that a child makes of a leaf owns nothing of what its parent owns; what is written to it since is its own.
//! 3. What a leaf maps and does not own the parent's leaf maps to the same place, or that of one further up if the
//!    parent is being taken apart.

mod compare;
mod replayed;

pub use compare::Unlike;
pub use replayed::Logged;

use super::differs::Differs;
use super::{LEAF_BLOCKS, LeafSlab, Mapping, NODE_LEAVES, Place};
use crate::format::record::LeafBits;
use crate::status::StatusKind;
use flagstone_block::Lba;
use std::sync::Arc;

const UNTOUCHED: u32 = 0;
const ALL_HOLE: u32 = 1;
const ALL_KEPT: u32 = 2;
/// From here on: the number of a leaf.
const LEAF: u32 = 3;

/// Leaves that certainly lie beyond the last node: more than the largest volume has.
const BEYOND_LEAVES: u64 = 1 << 40;

/// What the slots of a node's leaves say.
pub(super) type Node = Arc<[u32; NODE_LEAVES]>;

/// What a leaf's slot in the tree says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafState {
    /// Never written to: no record anywhere speaks of it.
    Untouched,
    /// Written to once; nothing mapped now.
    AllHole,
    /// Zeroes whose space is kept, all of it.
    AllKept,
    /// In memory: place in the [`LeafSlab`].
    Dense(u32),
    /// Not in memory: place among those of the [`LeafSlab`].
    Away(u32),
}

/// What a change of a leaf takes beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// A leaf: there are no entries yet.
    Leaf,
    /// Memory for a copy: a checkpoint under way refers to it.
    Copy,
    /// It is there, for this map alone.
    Nothing,
}

/// What a block was mapped to before a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The old mapping.
    pub mapping: Mapping,
    /// It was data that no other map knows: it is dead now.
    pub owned: bool,
}

/// Where each block of one volume lies.
#[derive(Debug)]
pub struct VolumeMap {
    volume: u32,
    nodes: Vec<Option<Node>>,
    /// Leaves that are not the parent's: all that were ever touched, if there is no parent.
    differs: Differs,
    mapped: u64,
    /// Data blocks that no parent maps.
    owned: u64,
    kept: u64,
    touched: u64,
    /// Leaves with entries that are not the parent's, in memory or not.
    dense: u64,
}

fn split(lba: Lba) -> (usize, usize, usize) {
    let leaf = lba.0 / LEAF_BLOCKS as u64;
    (
        (leaf / NODE_LEAVES as u64) as usize,
        (leaf % NODE_LEAVES as u64) as usize,
        (lba.0 % LEAF_BLOCKS as u64) as usize,
    )
}

impl VolumeMap {
    /// The map of a volume in which nothing was written yet.
    #[must_use]
    pub fn new(volume: u32) -> Self {
        Self {
            volume,
            nodes: Vec::new(),
            differs: Differs::default(),
            mapped: 0,
            owned: 0,
            kept: 0,
            touched: 0,
            dense: 0,
        }
    }

    /// Number of the volume.
    #[must_use]
    pub fn volume(&self) -> u32 {
        self.volume
    }

    /// The node numbered `node`, for this map alone; the vector grows to the highest node ever
    /// touched, so that a volume's size alone costs nothing.
    fn node_mut<'a>(
        nodes: &'a mut Vec<Option<Node>>,
        slab: &mut LeafSlab,
        node: usize,
    ) -> &'a mut [u32; NODE_LEAVES] {
        if node >= nodes.len() {
            nodes.resize_with(node + 1, || None);
        }
        let node = nodes[node].get_or_insert_with(|| Arc::new([UNTOUCHED; NODE_LEAVES]));
        if Arc::get_mut(node).is_none() {
            node.iter().filter(|&&slot| slot >= LEAF).for_each(|slot| slab.share(slot - LEAF));
            *node = slab.copy_node(node);
        }
        Arc::make_mut(node)
    }

    /// A map that says the same, and shares everything, in the memory of one that was let go.
    #[must_use]
    pub fn fork(&self, spare: Option<Self>) -> Self {
        let (mut nodes, mut differs) =
            spare.map(|map| (map.nodes, map.differs)).unwrap_or_default();
        nodes.clone_from(&self.nodes);
        differs.clone_from(&self.differs);
        Self { nodes, differs, ..*self }
    }

    /// The map as it is now becomes that of `snapshot`, and the parent of this one.
    #[must_use]
    pub fn snapshot(&mut self, snapshot: u32) -> Self {
        let differs = std::mem::take(&mut self.differs);
        let before = Self { volume: snapshot, nodes: self.nodes.clone(), differs, ..*self };
        (self.owned, self.touched, self.dense) = (0, 0, 0);
        before
    }

    /// A map for `volume` whose parent this one is.
    #[must_use]
    pub fn child(&self, volume: u32) -> Self {
        let nodes = self.nodes.clone();
        let differs = Differs::default();
        Self { volume, nodes, differs, owned: 0, touched: 0, dense: 0, ..*self }
    }

    /// Data blocks that no parent maps.
    #[must_use]
    pub fn owned(&self) -> u64 {
        self.owned
    }

    /// Whether leaf number `leaf` is not the parent's.
    #[must_use]
    pub fn is_different(&self, leaf: u64) -> bool {
        self.differs.has(leaf)
    }

    /// The first leaf from `leaf` on that is not the parent's.
    #[must_use]
    pub fn next_different(&self, leaf: u64) -> Option<u64> {
        self.differs.next(leaf)
    }

    /// Takes a fork apart, up to `leaves` leaves of it: what it says counts no more. Returns whether
    /// nothing is left.
    pub fn let_go(&mut self, slab: &mut LeafSlab, mut leaves: usize) -> bool {
        while let Some(node) = self.nodes.last_mut() {
            // What others go on with is theirs.
            if let Some(node) = node.as_mut().and_then(Arc::get_mut) {
                for slot in node.iter_mut().filter(|slot| **slot >= LEAF) {
                    if leaves == 0 {
                        return false;
                    }
                    leaves -= 1;
                    slab.part(*slot - LEAF);
                    *slot = ALL_HOLE;
                }
            }
            if let Some(Some(node)) = self.nodes.pop() {
                slab.keep_node(node);
            }
        }
        true
    }

    /// Data blocks mapped.
    #[must_use]
    pub fn mapped(&self) -> u64 {
        self.mapped
    }

    /// Kept zero blocks.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.kept
    }

    /// Leaves that were ever written to: metadata compaction makes a statement about each.
    #[must_use]
    pub fn touched(&self) -> u64 {
        self.touched
    }

    /// Leaves with entries of their own, in memory or not.
    #[must_use]
    pub fn dense(&self) -> u64 {
        self.dense
    }

    /// Number of leaf slots up to the highest node ever touched.
    #[must_use]
    pub fn leaves(&self) -> u64 {
        (self.nodes.len() * NODE_LEAVES) as u64
    }

    /// Whether leaf number `leaf` has entries, in memory or not.
    #[must_use]
    pub fn has_leaf(&self, leaf: u64) -> bool {
        let (node, slot) = (leaf as usize / NODE_LEAVES, leaf as usize % NODE_LEAVES);
        matches!(self.nodes.get(node), Some(Some(node)) if node[slot] >= LEAF)
    }

    /// State of leaf number `leaf`, and how many leaves from it on share an absent node and so
    /// are certainly untouched (at least 1): what a walk may skip.
    #[must_use]
    pub fn leaf(&self, slab: &LeafSlab, leaf: u64) -> (LeafState, u64) {
        let (node, slot) = (leaf as usize / NODE_LEAVES, leaf as usize % NODE_LEAVES);
        match self.nodes.get(node) {
            Some(Some(node)) => (Self::state(slab, node[slot]), 1),
            Some(None) => (LeafState::Untouched, (NODE_LEAVES - slot) as u64),
            None => (LeafState::Untouched, BEYOND_LEAVES),
        }
    }

    fn state(slab: &LeafSlab, raw: u32) -> LeafState {
        match raw {
            UNTOUCHED => LeafState::Untouched,
            ALL_HOLE => LeafState::AllHole,
            ALL_KEPT => LeafState::AllKept,
            leaf => match slab.at(leaf - LEAF) {
                Place::Dense(index) => LeafState::Dense(index),
                Place::Away(away) => LeafState::Away(away),
            },
        }
    }

    /// What a change of leaf number `leaf` takes.
    #[must_use]
    pub fn change_takes(&self, slab: &LeafSlab, leaf: u64) -> Takes {
        let (node, slot) = (leaf as usize / NODE_LEAVES, leaf as usize % NODE_LEAVES);
        match self.nodes.get(node) {
            Some(Some(node)) if node[slot] >= LEAF && self.differs.has(leaf) => {
                let shared = Arc::strong_count(node) > 1 || slab.is_shared(node[slot] - LEAF);
                if shared { Takes::Copy } else { Takes::Nothing }
            }
            _ => Takes::Leaf,
        }
    }

    /// Whether a write of `lba` takes a block: because it maps none, or one that is a parent's.
    /// Kept zeroes take none.
    #[must_use]
    pub fn write_takes(&self, slab: &LeafSlab, lba: Lba) -> bool {
        let (leaf, block) = (lba.0 / LEAF_BLOCKS as u64, lba.0 as usize % LEAF_BLOCKS);
        match self.kind(slab, lba) {
            StatusKind::Hole => true,
            StatusKind::Zero => false,
            StatusKind::Data if !self.differs.has(leaf) => true,
            StatusKind::Data => match self.leaf(slab, leaf).0 {
                LeafState::Dense(index) => !slab.get(index).owns(block),
                LeafState::Away(away) => !slab.away_leaf(away).owns(block),
                _ => true,
            },
        }
    }

    /// The mapping of `lba`; a hole beyond the end.
    ///
    /// # Panics
    /// If the block has data and its leaf is not in memory: see [`VolumeMap::is_away`].
    #[must_use]
    pub fn get(&self, slab: &LeafSlab, lba: Lba) -> Mapping {
        let (node, slot, block) = split(lba);
        let Some(Some(node)) = self.nodes.get(node) else { return Mapping::Hole };
        match Self::state(slab, node[slot]) {
            LeafState::Dense(index) => slab.get(index).get(block),
            LeafState::AllKept => Mapping::Kept,
            LeafState::Untouched | LeafState::AllHole => Mapping::Hole,
            LeafState::Away(index) => match slab.away_leaf(index).bit(block) {
                (true, _) => Mapping::Hole,
                (_, true) => Mapping::Kept,
                _ => unreachable!("a leaf is read before its blocks are looked up"),
            },
        }
    }

    /// What kind of block `lba` is, wherever its leaf is.
    #[must_use]
    pub fn kind(&self, slab: &LeafSlab, lba: Lba) -> StatusKind {
        if self.is_away(slab, lba) {
            return StatusKind::Data;
        }
        match self.get(slab, lba) {
            Mapping::Hole => StatusKind::Hole,
            Mapping::Kept => StatusKind::Zero,
            Mapping::Block { .. } => StatusKind::Data,
        }
    }

    /// Whether `lba` has data of which only a page knows where it is.
    #[must_use]
    pub fn is_away(&self, slab: &LeafSlab, lba: Lba) -> bool {
        match self.leaf(slab, lba.0 / LEAF_BLOCKS as u64).0 {
            LeafState::Away(index) => {
                slab.away_leaf(index).bit(lba.0 as usize % LEAF_BLOCKS) == (false, false)
            }
            _ => false,
        }
    }

    /// A leaf that this map has of its parent, which is being taken apart, becomes its own.
    pub fn adopt(&mut self, slab: &mut LeafSlab, parent: &mut Self, leaf: u64) {
        let lba = Lba(leaf * LEAF_BLOCKS as u64);
        self.differ(lba);
        let (number, slot, _) = split(lba);
        let Some(Some(node)) = self.nodes.get(number) else { return };
        if node[slot] >= LEAF {
            let (mapped, owned, kept) = slab.counts(node[slot] - LEAF);
            (self.dense, self.owned) = (self.dense + 1, self.owned + owned);
            (parent.dense, parent.owned) = (parent.dense - 1, parent.owned - owned);
            (parent.mapped, parent.kept) = (parent.mapped - mapped, parent.kept - kept);
            let id = {
                let node = Self::node_mut(&mut parent.nodes, slab, number);
                std::mem::replace(&mut node[slot], ALL_HOLE) - LEAF
            };
            slab.part(id);
        }
    }

    /// These blocks of a leaf, which were inherited, are this map's own from now on.
    pub fn take_over(&mut self, slab: &mut LeafSlab, leaf: u64, bits: &LeafBits) {
        let (number, slot, _) = split(Lba(leaf * LEAF_BLOCKS as u64));
        if let Some(Some(node)) = self.nodes.get(number)
            && node[slot] >= LEAF
        {
            slab.own_all(node[slot] - LEAF, bits);
            self.owned += bits.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        }
    }

    /// Lets a leaf go whose blocks have died or passed to others.
    pub fn lose(&mut self, slab: &mut LeafSlab, leaf: u64) {
        let lba = leaf * LEAF_BLOCKS as u64;
        let (number, slot, _) = split(Lba(lba));
        if let Some(Some(node)) = self.nodes.get(number)
            && node[slot] >= LEAF
        {
            let (mapped, owned, kept) = slab.counts(node[slot] - LEAF);
            (self.mapped, self.owned) = (self.mapped - mapped, self.owned - owned);
            self.kept -= kept;
            self.drop_leaf(slab, lba, ALL_HOLE);
        }
    }

    /// Notes that the leaf of `lba` is about to be written to, so that a discard that is logged
    /// meanwhile knows that there is something to discard. Returns whether it is the first time.
    pub fn touch(&mut self, slab: &mut LeafSlab, lba: Lba) -> bool {
        let (number, slot, _) = split(lba);
        let raw = self.nodes.get(number).and_then(Option::as_ref).map_or(UNTOUCHED, |n| n[slot]);
        if raw == UNTOUCHED {
            Self::node_mut(&mut self.nodes, slab, number)[slot] = ALL_HOLE;
        }
        raw == UNTOUCHED && self.differ(lba)
    }

    /// Notes that the leaf of `lba` is not the parent's; returns whether it was.
    fn differ(&mut self, lba: Lba) -> bool {
        let first = self.differs.note(lba.0 / LEAF_BLOCKS as u64);
        self.touched += u64::from(first);
        first
    }

    /// The place in memory of the leaf of `lba`, for this map alone, with how the others go on.
    ///
    /// # Panics
    /// If the leaf is not in memory.
    fn own_leaf(&mut self, slab: &mut LeafSlab, lba: Lba) -> u32 {
        let (number, slot, _) = split(lba);
        let leaf = lba.0 / LEAF_BLOCKS as u64;
        let inherits = self.differ(lba);
        let node = Self::node_mut(&mut self.nodes, slab, number);
        let raw = node[slot];
        let id = if raw < LEAF {
            self.dense += 1;
            slab.make(leaf)
        } else if inherits {
            self.dense += 1;
            slab.copy_inherited(raw - LEAF, leaf)
        } else if slab.is_shared(raw - LEAF) {
            slab.copy(raw - LEAF, leaf)
        } else {
            raw - LEAF
        };
        node[slot] = id + LEAF;
        let Place::Dense(index) = slab.at(id) else {
            unreachable!("a leaf is read before it is changed")
        };
        if raw == ALL_KEPT {
            slab.get_mut(index).fill(Mapping::Kept);
        }
        index
    }

    /// Lets the leaf of `lba`, which is not the parent's, go; its slot says `raw` from now on.
    fn drop_leaf(&mut self, slab: &mut LeafSlab, lba: u64, raw: u32) {
        let (node, slot, _) = split(Lba(lba));
        let node = Self::node_mut(&mut self.nodes, slab, node);
        let id = std::mem::replace(&mut node[slot], raw) - LEAF;
        self.dense -= 1;
        slab.leave(id);
    }

    /// Replaces the mapping of `lba`, which must lie in the volume; data is this map's own then.
    pub fn set(&mut self, slab: &mut LeafSlab, lba: Lba, new: Mapping) -> Replaced {
        let block = lba.0 as usize % LEAF_BLOCKS;
        let now = self.get(slab, lba);
        if now == new && !matches!(new, Mapping::Block { .. }) {
            return Replaced { mapping: now, owned: false };
        }
        let index = self.own_leaf(slab, lba);
        let leaf = slab.get_mut(index);
        let owned = leaf.owns(block);
        let old = leaf.set(block, new);
        let (mapped, kept) = (leaf.mapped(), leaf.kept());
        self.owned -= u64::from(owned);
        match old {
            Mapping::Hole => {}
            Mapping::Kept => self.kept -= 1,
            Mapping::Block { .. } => self.mapped -= 1,
        }
        match new {
            Mapping::Hole if mapped == 0 && kept == 0 => self.drop_leaf(slab, lba.0, ALL_HOLE),
            Mapping::Hole => {}
            Mapping::Kept => {
                self.kept += 1;
                if usize::from(kept) == LEAF_BLOCKS {
                    self.drop_leaf(slab, lba.0, ALL_KEPT);
                }
            }
            Mapping::Block { .. } => (self.mapped, self.owned) = (self.mapped + 1, self.owned + 1),
        }
        Replaced { mapping: old, owned }
    }

    /// Makes the blocks `lba..end` holes or, with `keep`, kept zeroes, and calls `dead` for each
    /// data block that nobody maps any more. A whole leaf without data costs one step, so that a huge range
    /// takes neither long nor memory.
    pub fn zero(
        &mut self,
        slab: &mut LeafSlab,
        lba: u64,
        end: u64,
        keep: bool,
        dead: &mut dyn FnMut(u64),
    ) {
        let per_leaf = LEAF_BLOCKS as u64;
        let mut at = lba;
        while at < end {
            let leaf_end = (at / per_leaf + 1) * per_leaf;
            let whole = at.is_multiple_of(per_leaf) && leaf_end <= end;
            let (state, leaves) = self.leaf(slab, at / per_leaf);
            match state {
                LeafState::Untouched | LeafState::AllHole if !keep => {
                    at = (at / per_leaf + leaves) * per_leaf;
                    continue;
                }
                LeafState::Untouched | LeafState::AllHole if whole => {
                    self.touch(slab, Lba(at));
                    self.kept += per_leaf;
                    self.set_slot(slab, at, ALL_KEPT);
                }
                LeafState::AllKept if keep => {}
                LeafState::AllKept if whole => {
                    self.kept -= per_leaf;
                    self.set_slot(slab, at, ALL_HOLE);
                }
                _ => {
                    let new = if keep { Mapping::Kept } else { Mapping::Hole };
                    for block in at..leaf_end.min(end) {
                        let old = self.set(slab, Lba(block), new);
                        if let Replaced { mapping: Mapping::Block { pbn, .. }, owned: true } = old {
                            dead(pbn);
                        }
                    }
                }
            }
            at = leaf_end;
        }
    }

    /// Sets the slot of a leaf without entries.
    fn set_slot(&mut self, slab: &mut LeafSlab, lba: u64, raw: u32) {
        self.differ(Lba(lba));
        let (node, slot, _) = split(Lba(lba));
        Self::node_mut(&mut self.nodes, slab, node)[slot] = raw;
    }

    /// How many of the blocks `lba..end` are kept zeroes.
    #[must_use]
    pub fn kept_in(&self, slab: &LeafSlab, lba: u64, end: u64) -> u64 {
        let per_leaf = LEAF_BLOCKS as u64;
        let (mut at, mut kept) = (lba, 0);
        while at < end {
            let (state, leaves) = self.leaf(slab, at / per_leaf);
            let next = ((at / per_leaf + leaves) * per_leaf).min(end);
            kept += match state {
                LeafState::Untouched | LeafState::AllHole => 0,
                LeafState::AllKept => next - at,
                LeafState::Dense(index) => {
                    let leaf = slab.get(index);
                    let blocks = (at % per_leaf) as usize..;
                    let is_kept = |i: &usize| leaf.get(*i) == Mapping::Kept;
                    blocks.take((next - at) as usize).filter(is_kept).count() as u64
                }
                LeafState::Away(index) => {
                    let leaf = slab.away_leaf(index);
                    let blocks = (at % per_leaf) as usize..;
                    let is_kept = |i: &usize| leaf.bit(*i).1;
                    blocks.take((next - at) as usize).filter(is_kept).count() as u64
                }
            };
            at = next;
        }
        kept
    }

    /// How many blocks from `first` on have data or are kept zeroes.
    #[must_use]
    pub fn used_from(&self, slab: &LeafSlab, first: u64) -> u64 {
        let per_leaf = LEAF_BLOCKS as u64;
        let (mut leaf, mut used) = (first / per_leaf, 0);
        while leaf < self.leaves() {
            let from = first.saturating_sub(leaf * per_leaf) as usize;
            let (state, leaves) = self.leaf(slab, leaf);
            used += match state {
                LeafState::Untouched | LeafState::AllHole => 0,
                LeafState::AllKept => per_leaf - from as u64,
                LeafState::Dense(index) if from == 0 => {
                    let leaf = slab.get(index);
                    u64::from(leaf.mapped()) + u64::from(leaf.kept())
                }
                LeafState::Dense(index) => {
                    let is_used = |i: &usize| slab.get(index).get(*i) != Mapping::Hole;
                    (from..LEAF_BLOCKS).filter(is_used).count() as u64
                }
                LeafState::Away(index) => {
                    let is_used = |i: &usize| !slab.away_leaf(index).bit(*i).0;
                    (from..LEAF_BLOCKS).filter(is_used).count() as u64
                }
            };
            leaf += leaves;
        }
        used
    }

    /// Takes up to `leaves` leaves off the end of the tree and calls `dead` for each data block that
    /// nobody maps any more. For volumes that are being deleted.
    pub fn reclaim(
        &mut self,
        slab: &mut LeafSlab,
        mut leaves: usize,
        dead: &mut dyn FnMut(u64),
    ) -> Reclaim {
        while let Some(number) = self.nodes.len().checked_sub(1) {
            if self.nodes[number].is_none() {
                self.nodes.pop();
                continue;
            }
            let node = Self::node_mut(&mut self.nodes, slab, number);
            for (i, slot) in node.iter_mut().enumerate() {
                if *slot == ALL_KEPT {
                    self.kept -= LEAF_BLOCKS as u64;
                    *slot = ALL_HOLE;
                }
                if *slot < LEAF {
                    continue;
                }
                if leaves == 0 {
                    return Reclaim::GoOn;
                }
                let id = *slot - LEAF;
                let (mapped, owned, kept) = slab.counts(id);
                if !self.differs.has((number * NODE_LEAVES + i) as u64) {
                    // The parent goes on with it.
                    (self.mapped, self.kept) = (self.mapped - mapped, self.kept - kept);
                    slab.part(id);
                    *slot = ALL_HOLE;
                    continue;
                }
                let Place::Dense(index) = slab.at(id) else {
                    return Reclaim::Away((number * NODE_LEAVES + i) as u64);
                };
                let leaf = slab.get(index);
                self.kept -= kept;
                (self.mapped, self.owned) = (self.mapped - mapped, self.owned - owned);
                for i in 0..LEAF_BLOCKS {
                    if let Mapping::Block { pbn, .. } = leaf.get(i)
                        && leaf.owns(i)
                    {
                        dead(pbn);
                    }
                }
                leaves -= 1;
                self.dense -= 1;
                slab.leave(id);
                *slot = ALL_HOLE;
            }
            self.nodes.pop();
        }
        Reclaim::Done
    }

    /// Gives up a leaf that is not in memory, in a volume that is being deleted: whoever knows where its
    /// blocks lay has seen to them.
    pub fn give_up(&mut self, slab: &mut LeafSlab, leaf: u64) {
        if let LeafState::Away(away) = self.leaf(slab, leaf).0 {
            let known = slab.away_leaf(away);
            self.mapped -= known.mapped();
            self.owned -= known.owned();
            self.kept -= known.kept();
            self.drop_leaf(slab, leaf * LEAF_BLOCKS as u64, ALL_HOLE);
        }
    }
}

/// How far [`VolumeMap::reclaim`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// Something is left.
    GoOn,
    /// This leaf must be read first.
    Away(u64),
    /// Nothing is left.
    Done,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Geometry;

    fn block(pbn: u64) -> Mapping {
        Mapping::Block { pbn, crc: pbn as u32 }
    }

    fn slab() -> LeafSlab {
        LeafSlab::new(&Geometry::choose(&[1 << 30], 4 << 20).unwrap())
    }

    /// Takes a whole map apart; returns the blocks that died.
    fn dead(map: &mut VolumeMap, slab: &mut LeafSlab) -> Vec<u64> {
        let mut dead = Vec::new();
        assert_eq!(map.reclaim(slab, usize::MAX, &mut |pbn| dead.push(pbn)), Reclaim::Done);
        dead.sort_unstable();
        dead
    }

    #[test]
    fn a_snapshot_stays_as_it_was_and_owns_what_it_has() {
        let mut slab = slab();
        let mut head = VolumeMap::new(1);
        for lba in 0..3 {
            head.set(&mut slab, Lba(lba), block(10 + lba));
        }
        head.set(&mut slab, Lba(5000), block(20));
        let mut snapshot = head.snapshot(2);
        assert_eq!((snapshot.owned(), head.owned()), (4, 0));
        assert_eq!((snapshot.mapped(), head.mapped()), (4, 4));
        assert_eq!(head.change_takes(&slab, 0), Takes::Leaf);
        assert!(head.write_takes(&slab, Lba(0)) && head.next_different(0).is_none());

        // What is inherited does not die; what is written since does.
        let old = head.set(&mut slab, Lba(0), block(30));
        assert_eq!(old, Replaced { mapping: block(10), owned: false });
        let old = head.set(&mut slab, Lba(0), block(31));
        assert_eq!(old, Replaced { mapping: block(30), owned: true });
        assert!(!head.write_takes(&slab, Lba(0)) && head.write_takes(&slab, Lba(1)));
        let old = head.set(&mut slab, Lba(1), Mapping::Hole);
        assert_eq!(old, Replaced { mapping: block(11), owned: false });
        assert_eq!((head.owned(), head.mapped(), head.next_different(0)), (1, 3, Some(0)));
        assert_eq!(head.next_different(1), None);
        for (lba, was) in [(0, 10), (1, 11), (2, 12), (5000, 20)] {
            assert_eq!(snapshot.get(&slab, Lba(lba)), block(was));
        }
        assert_eq!(dead(&mut head, &mut slab), [31]);
        assert_eq!(dead(&mut snapshot, &mut slab), [10, 11, 12, 20]);
        assert_eq!(slab.leaves(), 0);
    }

    #[test]
    fn a_checkpoint_owns_nothing_and_sees_no_change() {
        let mut slab = slab();
        let mut head = VolumeMap::new(1);
        head.set(&mut slab, Lba(0), block(10));
        head.set(&mut slab, Lba(1), block(11));
        let mut fork = head.fork(None);
        assert_eq!(head.change_takes(&slab, 0), Takes::Copy);
        let old = head.set(&mut slab, Lba(0), block(12));
        assert_eq!(old, Replaced { mapping: block(10), owned: true });
        assert_eq!(fork.get(&slab, Lba(0)), block(10));
        assert_eq!((slab.leaves(), slab.used()), (1, 2));
        assert_eq!(head.change_takes(&slab, 0), Takes::Nothing);
        assert!(fork.let_go(&mut slab, usize::MAX));
        assert_eq!((slab.leaves(), slab.used()), (1, 1));
        let fork = head.fork(None);
        assert_eq!(dead(&mut head, &mut slab), [11, 12]);
        assert_eq!(fork.get(&slab, Lba(0)), block(12));
    }

    /// Under a checkpoint, with a snapshot before and another after it.
    #[test]
    fn a_copy_takes_over_what_is_the_volumes_own_only() {
        let mut slab = slab();
        let mut head = VolumeMap::new(1);
        head.set(&mut slab, Lba(0), block(10));
        let mut first = head.snapshot(2);
        head.set(&mut slab, Lba(1), block(11));
        let mut fork = head.fork(None);
        head.set(&mut slab, Lba(2), block(12));
        let mut second = head.snapshot(3);
        head.set(&mut slab, Lba(1), block(13));
        assert!(fork.let_go(&mut slab, usize::MAX));
        assert_eq!(second.owned(), 2);
        assert_eq!(dead(&mut head, &mut slab), [13]);
        assert_eq!(dead(&mut second, &mut slab), [11, 12]);
        assert_eq!(dead(&mut first, &mut slab), [10]);
        assert_eq!(slab.leaves(), 0);
    }
}
