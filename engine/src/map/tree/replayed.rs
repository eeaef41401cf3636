//! A map as recovery makes it: leaves in pages that nobody has read, and what was logged since.

use super::{ALL_HOLE, ALL_KEPT, LEAF, LeafState, VolumeMap, split};
use crate::format::record::LeafBits;
use crate::map::{LEAF_BLOCKS, LeafSlab, Mapping, PagedLeaf, Place, Unread};
use flagstone_block::Lba;

impl VolumeMap {
    /// Puts a leaf that nobody has read where there is none but perhaps the parent's; false if
    /// there is one.
    pub fn place_away(&mut self, slab: &mut LeafSlab, leaf: u64, content: PagedLeaf) -> bool {
        let lba = leaf * LEAF_BLOCKS as u64;
        if self.differs.has(leaf) {
            return false;
        }
        self.place_empty(slab, leaf, false);
        if content.mapped() == 0 && content.kept() == 0 {
            return true;
        }
        self.mapped += content.mapped();
        self.owned += content.owned();
        self.kept += content.kept();
        self.dense += 1;
        let id = slab.make_away(leaf, content);
        self.set_slot(slab, lba, id + LEAF);
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
        let leaf = lba / LEAF_BLOCKS as u64;
        let LeafState::Away(away) = self.leaf(slab, leaf).0 else { return false };
        let Some(read_lsn) = slab.unread(away).map(Unread::lsn) else { return false };
        let sure = lsn > read_lsn;
        // A discard never supersedes what the page says at its LSN or before. Nor does anything else in a
        // leaf that is the parent's: this volume, which is gone, had a leaf of its own then.
        if !sure && (!matches!(new, Mapping::Block { .. }) || !self.differs.has(leaf)) {
            return true;
        }
        let away = if sure { self.own_unread(slab, lba, away) } else { away };
        let paged = slab.away_mut(away);
        let Some(mut unread) = paged.unread.take() else { return false };
        // Most leaves are only told where a block lies that they had before: then nothing is counted anew.
        let data = matches!(new, Mapping::Block { .. });
        let same = |paged: &PagedLeaf| {
            data && (lba..end).all(|block| paged.owns(block as usize % LEAF_BLOCKS))
        };
        let before = (!same(paged)).then(|| (paged.mapped(), paged.kept(), paged.owned()));
        for block in lba..end {
            let i = block as usize % LEAF_BLOCKS;
            if unread.note(i, lsn, new) {
                paged.set_kind(i, new);
            }
        }
        paged.unread = Some(unread);
        let Some(before) = before else { return true };
        let (mapped, kept) = (paged.mapped(), paged.kept());
        self.mapped = self.mapped + mapped - before.0;
        self.owned = self.owned + paged.owned() - before.2;
        self.kept = self.kept + kept - before.1;
        let empty = match (mapped, kept) {
            (0, 0) => Some(ALL_HOLE),
            (0, kept) if kept == LEAF_BLOCKS as u64 => Some(ALL_KEPT),
            _ => None,
        };
        if let Some(state) = empty {
            self.drop_leaf(slab, lba, state);
        }
        true
    }

    /// Makes leaf number `leaf` this map's own, if it is in memory and the parent's: a statement says that it
    /// is not the parent's.
    pub fn own(&mut self, slab: &mut LeafSlab, leaf: u64) {
        if !self.differs.has(leaf) && matches!(self.leaf(slab, leaf).0, LeafState::Dense(_)) {
            self.own_leaf(slab, Lba(leaf * LEAF_BLOCKS as u64));
        }
    }

    /// Says which data of a leaf in memory that is not the parent's is this map's own.
    pub fn set_owned(&mut self, slab: &mut LeafSlab, leaf: u64, owned: &LeafBits) {
        let (number, slot, _) = split(Lba(leaf * LEAF_BLOCKS as u64));
        if let Some(Some(node)) = self.nodes.get(number)
            && node[slot] >= LEAF
        {
            let id = node[slot] - LEAF;
            let before = slab.counts(id).1;
            slab.set_owned(id, owned);
            self.owned = self.owned + slab.counts(id).1 - before;
        }
    }

    /// The unread leaf of `lba`, which is at `away`, for this map alone.
    fn own_unread(&mut self, slab: &mut LeafSlab, lba: u64, away: u32) -> u32 {
        if !self.differ(Lba(lba)) {
            return away;
        }
        let (number, slot, _) = split(Lba(lba));
        let content = slab.away_leaf(away).inherited();
        let id = slab.make_away(lba / LEAF_BLOCKS as u64, content);
        let node = Self::node_mut(&mut self.nodes, slab, number);
        let parents = std::mem::replace(&mut node[slot], id + LEAF) - LEAF;
        self.dense += 1;
        slab.part(parents);
        match slab.at(id) {
            Place::Away(away) => away,
            Place::Dense(_) => unreachable!("it was just made"),
        }
    }

    /// Makes leaf number `leaf`, of which a statement says that it has no data, what that says.
    pub fn place_empty(&mut self, slab: &mut LeafSlab, leaf: u64, keep: bool) {
        let lba = leaf * LEAF_BLOCKS as u64;
        let before = self.leaf(slab, leaf).0;
        if let LeafState::Away(away) = before {
            let paged = slab.away_leaf(away);
            let (mapped, kept, owned) = (paged.mapped(), paged.kept(), paged.owned());
            if self.differ(Lba(lba)) {
                let (number, slot, _) = split(Lba(lba));
                let node = Self::node_mut(&mut self.nodes, slab, number);
                let parents = std::mem::replace(&mut node[slot], ALL_HOLE) - LEAF;
                slab.part(parents);
            } else {
                self.owned -= owned;
                self.drop_leaf(slab, lba, ALL_HOLE);
            }
            (self.mapped, self.kept) = (self.mapped - mapped, self.kept - kept);
        } else if before == LeafState::AllKept {
            self.kept -= LEAF_BLOCKS as u64;
        }
        self.set_slot(slab, lba, if keep { ALL_KEPT } else { ALL_HOLE });
        self.kept += if keep { LEAF_BLOCKS as u64 } else { 0 };
    }
}
