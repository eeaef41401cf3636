//! The radix tree of one volume.

use super::slab::PagedLeaf;
use super::{LEAF_BLOCKS, Leaf, LeafSlab, Mapping, NODE_LEAVES};
use crate::status::StatusKind;
use flagstone_block::Lba;

const UNTOUCHED: u32 = 0;
const ALL_HOLE: u32 = 1;
const ALL_KEPT: u32 = 2;
const DENSE: u32 = 3;
/// From here on: the number of a leaf that is not in memory.
const AWAY: u32 = 1 << 31;

/// Leaves that certainly lie beyond the last node: more than the largest volume has.
const BEYOND_LEAVES: u64 = 1 << 40;

type Node = Box<[u32; NODE_LEAVES]>;

/// What a leaf's slot in the tree says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafState {
    /// Never written to: no record anywhere speaks of it.
    Untouched,
    /// Written to once; nothing mapped now.
    AllHole,
    /// Zeroes whose space is kept, all of it.
    AllKept,
    /// Number in the [`LeafSlab`].
    Dense(u32),
    /// Not in memory: number among those of the [`LeafSlab`].
    Away(u32),
}

/// Where each block of one volume lies.
#[derive(Debug)]
pub struct VolumeMap {
    volume: u32,
    nodes: Vec<Option<Node>>,
    mapped: u64,
    kept: u64,
    touched: u64,
    /// Leaves with entries, in memory or not.
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
        Self { volume, nodes: Vec::new(), mapped: 0, kept: 0, touched: 0, dense: 0 }
    }

    /// Number of the volume.
    #[must_use]
    pub fn volume(&self) -> u32 {
        self.volume
    }

    /// The node numbered `node`; the vector grows to the highest node ever touched, so that a
    /// volume's size alone costs nothing.
    fn node_mut(nodes: &mut Vec<Option<Node>>, node: usize) -> &mut Node {
        if node >= nodes.len() {
            nodes.resize_with(node + 1, || None);
        }
        nodes[node].get_or_insert_with(|| Box::new([UNTOUCHED; NODE_LEAVES]))
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

    /// State of leaf number `leaf`, and how many leaves from it on share an absent node and so
    /// are certainly untouched (at least 1): what a walk may skip.
    #[must_use]
    pub fn leaf(&self, leaf: u64) -> (LeafState, u64) {
        let (node, slot) = (leaf as usize / NODE_LEAVES, leaf as usize % NODE_LEAVES);
        match self.nodes.get(node) {
            Some(Some(node)) => (Self::state(node[slot]), 1),
            Some(None) => (LeafState::Untouched, (NODE_LEAVES - slot) as u64),
            None => (LeafState::Untouched, BEYOND_LEAVES),
        }
    }

    fn state(raw: u32) -> LeafState {
        match raw {
            UNTOUCHED => LeafState::Untouched,
            ALL_HOLE => LeafState::AllHole,
            ALL_KEPT => LeafState::AllKept,
            dense if dense < AWAY => LeafState::Dense(dense - DENSE),
            away => LeafState::Away(away - AWAY),
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
        match Self::state(node[slot]) {
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
        match self.leaf(lba.0 / LEAF_BLOCKS as u64).0 {
            LeafState::Away(index) => {
                slab.away_leaf(index).bit(lba.0 as usize % LEAF_BLOCKS) == (false, false)
            }
            _ => false,
        }
    }

    /// Drops a dense leaf that has a page from memory.
    pub fn evict(&mut self, slab: &mut LeafSlab, leaf: u64, index: u32) {
        debug_assert_eq!(self.leaf(leaf).0, LeafState::Dense(index));
        let away = slab.evict(index);
        self.set_slot(leaf * LEAF_BLOCKS as u64, AWAY + away);
    }

    /// Takes the leaf `away` back, which was read from its page; `clean` if it still says what
    /// the page says.
    pub fn bring_back(
        &mut self,
        slab: &mut LeafSlab,
        leaf: u64,
        away: u32,
        content: Leaf,
        clean: bool,
    ) {
        debug_assert_eq!(self.leaf(leaf).0, LeafState::Away(away));
        let index = slab.return_leaf(away, (self.volume, leaf), content, clean);
        self.set_slot(leaf * LEAF_BLOCKS as u64, index + DENSE);
    }

    /// Puts a leaf that nobody has read where there is none; false if there is one.
    pub fn place_away(&mut self, slab: &mut LeafSlab, leaf: u64, content: PagedLeaf) -> bool {
        let lba = leaf * LEAF_BLOCKS as u64;
        if self.leaf(leaf).0 != LeafState::Untouched {
            return false;
        }
        self.touch(Lba(lba));
        if content.mapped() == 0 && content.kept() == 0 {
            return true;
        }
        self.mapped += content.mapped();
        self.kept += content.kept();
        self.dense += 1;
        let away = slab.put_away(content);
        self.set_slot(lba, AWAY + away);
        true
    }

    /// Notes what the record `lsn` says of the blocks `lba..end` of one leaf, if that leaf is in a
    /// page that nobody has read; false if it is not. A leaf that has no entries left needs its
    /// page no more.
    pub fn patch(
        &mut self,
        slab: &mut LeafSlab,
        (lba, end): (u64, u64),
        lsn: u64,
        new: Mapping,
    ) -> bool {
        let LeafState::Away(away) = self.leaf(lba / LEAF_BLOCKS as u64).0 else { return false };
        let leaf = slab.away_mut(away);
        let Some(mut unread) = leaf.unread.take() else { return false };
        let before = (leaf.mapped(), leaf.kept());
        for block in lba..end {
            let i = block as usize % LEAF_BLOCKS;
            // A discard never supersedes what the page says at its LSN or before.
            let may_count = lsn > unread.lsn() || matches!(new, Mapping::Block { .. });
            if may_count && unread.note(i, lsn, new) {
                leaf.set_kind(i, new);
            }
        }
        leaf.unread = Some(unread);
        let (mapped, kept) = (leaf.mapped(), leaf.kept());
        self.mapped = self.mapped + mapped - before.0;
        self.kept = self.kept + kept - before.1;
        let empty = match (mapped, kept) {
            (0, 0) => Some(ALL_HOLE),
            (0, kept) if kept == LEAF_BLOCKS as u64 => Some(ALL_KEPT),
            _ => None,
        };
        if let Some(state) = empty {
            self.dense -= 1;
            slab.forget(away);
            self.set_slot(lba, state);
        }
        true
    }

    /// Notes that the leaf of `lba` is about to be written to, so that a discard that is logged
    /// meanwhile knows that there is something to discard. Returns whether it is the first time.
    pub fn touch(&mut self, lba: Lba) -> bool {
        let (node, slot, _) = split(lba);
        let node = Self::node_mut(&mut self.nodes, node);
        let first = node[slot] == UNTOUCHED;
        if first {
            node[slot] = ALL_HOLE;
            self.touched += 1;
        }
        first
    }

    /// Replaces the mapping of `lba`, which must lie in the volume; returns the old one.
    pub fn set(&mut self, slab: &mut LeafSlab, lba: Lba, new: Mapping) -> Mapping {
        let (node, slot, block) = split(lba);
        let now = self.get(slab, lba);
        if now == new && !matches!(new, Mapping::Block { .. }) {
            return now;
        }
        let node = Self::node_mut(&mut self.nodes, node);
        assert!(node[slot] < AWAY, "a leaf is read before it is changed");
        if node[slot] < DENSE {
            self.touched += u64::from(node[slot] == UNTOUCHED);
            self.dense += 1;
            let index = slab.take(self.volume, lba.0 / LEAF_BLOCKS as u64);
            if node[slot] == ALL_KEPT {
                slab.get_mut(index).fill(Mapping::Kept);
            }
            node[slot] = index + DENSE;
        }
        let index = node[slot] - DENSE;
        let leaf = slab.get_mut(index);
        let old = leaf.set(block, new);
        match old {
            Mapping::Hole => {}
            Mapping::Kept => self.kept -= 1,
            Mapping::Block { .. } => self.mapped -= 1,
        }
        match new {
            Mapping::Hole => {
                if leaf.mapped() == 0 && leaf.kept() == 0 {
                    self.dense -= 1;
                    slab.release(index);
                    node[slot] = ALL_HOLE;
                }
            }
            Mapping::Kept => {
                self.kept += 1;
                if usize::from(leaf.kept()) == LEAF_BLOCKS {
                    leaf.fill(Mapping::Hole);
                    self.dense -= 1;
                    slab.release(index);
                    node[slot] = ALL_KEPT;
                }
            }
            Mapping::Block { .. } => self.mapped += 1,
        }
        old
    }

    /// Makes the blocks `lba..end` holes or, with `keep`, kept zeroes, and calls `dead` for each
    /// data block that was there. A whole leaf without data costs one step, so that a huge range
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
            let (state, leaves) = self.leaf(at / per_leaf);
            match state {
                LeafState::Untouched | LeafState::AllHole if !keep => {
                    at = (at / per_leaf + leaves) * per_leaf;
                    continue;
                }
                LeafState::Untouched | LeafState::AllHole if whole => {
                    self.touch(Lba(at));
                    self.kept += per_leaf;
                    self.set_slot(at, ALL_KEPT);
                }
                LeafState::AllKept if keep => {}
                LeafState::AllKept if whole => {
                    self.kept -= per_leaf;
                    self.set_slot(at, ALL_HOLE);
                }
                _ => {
                    let new = if keep { Mapping::Kept } else { Mapping::Hole };
                    for block in at..leaf_end.min(end) {
                        if let Mapping::Block { pbn, .. } = self.set(slab, Lba(block), new) {
                            dead(pbn);
                        }
                    }
                }
            }
            at = leaf_end;
        }
    }

    fn set_slot(&mut self, lba: u64, raw: u32) {
        let (node, slot, _) = split(Lba(lba));
        Self::node_mut(&mut self.nodes, node)[slot] = raw;
    }

    /// How many of the blocks `lba..end` are kept zeroes.
    #[must_use]
    pub fn kept_in(&self, slab: &LeafSlab, lba: u64, end: u64) -> u64 {
        let per_leaf = LEAF_BLOCKS as u64;
        let (mut at, mut kept) = (lba, 0);
        while at < end {
            let (state, leaves) = self.leaf(at / per_leaf);
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
            let (state, leaves) = self.leaf(leaf);
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

    /// Takes up to `leaves` dense leaves off the end of the tree and calls `dead` for each data
    /// block. For volumes that are being deleted.
    pub fn reclaim(
        &mut self,
        slab: &mut LeafSlab,
        mut leaves: usize,
        dead: &mut dyn FnMut(u64),
    ) -> Reclaim {
        while let Some(number) = self.nodes.len().checked_sub(1) {
            if let Some(node) = &mut self.nodes[number] {
                for (i, slot) in node.iter_mut().enumerate() {
                    if *slot == ALL_KEPT {
                        self.kept -= LEAF_BLOCKS as u64;
                        *slot = ALL_HOLE;
                    }
                    if *slot < DENSE {
                        continue;
                    }
                    if leaves == 0 {
                        return Reclaim::GoOn;
                    }
                    if *slot >= AWAY {
                        return Reclaim::Away((number * NODE_LEAVES + i) as u64);
                    }
                    leaves -= 1;
                    let leaf = slab.get_mut(*slot - DENSE);
                    for i in 0..LEAF_BLOCKS {
                        match leaf.set(i, Mapping::Hole) {
                            Mapping::Hole => {}
                            Mapping::Kept => self.kept -= 1,
                            Mapping::Block { pbn, .. } => {
                                self.mapped -= 1;
                                dead(pbn);
                            }
                        }
                    }
                    self.dense -= 1;
                    slab.release(*slot - DENSE);
                    *slot = ALL_HOLE;
                }
            }
            self.nodes.pop();
        }
        Reclaim::Done
    }

    /// Gives up a leaf that is not in memory, in a volume that is being deleted: whoever knows where its
    /// blocks lay has seen to them.
    pub fn give_up(&mut self, slab: &mut LeafSlab, leaf: u64) {
        if let LeafState::Away(away) = self.leaf(leaf).0 {
            let known = slab.away_leaf(away);
            self.mapped -= known.mapped();
            self.kept -= known.kept();
            self.dense -= 1;
            slab.forget(away);
            self.set_slot(leaf * LEAF_BLOCKS as u64, ALL_HOLE);
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
