//! A map as recovery makes it: leaves in pages that nobody has read, and what was logged since.

use super::{ALL_HOLE, ALL_KEPT, LEAF, LeafState, UNTOUCHED, VolumeMap, split};
use crate::format::record::{LeafBits, LeafMarks, marked};
use crate::map::{LEAF_BLOCKS, LeafSlab, Mapping, PagedLeaf, Place, Unread};
use flagstone_block::Lba;
use std::sync::Arc;

/// What the log says of a leaf that a statement is about; nobody else refers to it.
#[derive(Debug)]
#[must_use = "it must be placed or let go"]
pub struct Logged(u32);

impl Logged {
    /// The log says nothing.
    pub const NOTHING: Self = Self(UNTOUCHED);
}

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

    /// Notes what the record `lsn` says of the blocks `lba..end` of one leaf, `from` where they were if they were
    /// moved, if that leaf is in a page that nobody has read; false if it is not. A leaf that has no entries left needs its
    /// page no more.
    pub fn patch(
        &mut self,
        slab: &mut LeafSlab,
        (lba, end): (u64, u64),
        (lsn, from): (u64, Option<u64>),
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
            if unread.note(i, (lsn, from), new) {
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

    /// A leaf of which a statement says what in it is a hole or kept; the rest is what the log says. It is this map's
    /// own from now on.
    pub fn place_logged(
        &mut self,
        slab: &mut LeafSlab,
        logged: Logged,
        leaf: u64,
        marks: &LeafMarks,
    ) {
        let id = match logged.0 {
            ALL_KEPT => {
                let id = slab.make(leaf);
                if let Place::Dense(index) = slab.at(id) {
                    slab.get_mut(index).fill(Mapping::Kept);
                }
                id
            }
            raw if raw >= LEAF => raw - LEAF,
            _ => slab.make(leaf),
        };
        let Place::Dense(index) = slab.at(id) else { unreachable!("what was logged is in memory") };
        let content = slab.get_mut(index);
        for i in 0..LEAF_BLOCKS {
            if marked(&marks.holes, i) {
                content.set(i, Mapping::Hole);
            } else if marked(&marks.kept, i) {
                content.set(i, Mapping::Kept);
            }
        }
        let (mapped, owned, kept) = slab.counts(id);
        self.place_empty(slab, leaf, false);
        if mapped == 0 && (kept == 0 || kept == LEAF_BLOCKS as u64) {
            slab.part(id);
            return self.place_empty(slab, leaf, kept > 0);
        }
        self.set_slot(slab, leaf * LEAF_BLOCKS as u64, id + LEAF);
        (self.mapped, self.owned) = (self.mapped + mapped, self.owned + owned);
        (self.kept, self.dense) = (self.kept + kept, self.dense + 1);
    }

    /// A leaf of which a statement says that it has no data. It is this map's own from now on.
    pub fn place_empty(&mut self, slab: &mut LeafSlab, leaf: u64, keep: bool) {
        let lba = leaf * LEAF_BLOCKS as u64;
        let (number, slot, _) = split(Lba(lba));
        let raw = self.nodes.get(number).and_then(Option::as_ref).map_or(UNTOUCHED, |n| n[slot]);
        let new = if keep { ALL_KEPT } else { ALL_HOLE };
        if raw >= LEAF {
            // Usually the parent's: a statement is made once.
            let (mapped, owned, kept) = slab.counts(raw - LEAF);
            (self.mapped, self.kept) = (self.mapped - mapped, self.kept - kept);
            if self.differ(Lba(lba)) {
                Self::node_mut(&mut self.nodes, slab, number)[slot] = new;
                slab.part(raw - LEAF);
            } else {
                self.owned -= owned;
                self.drop_leaf(slab, lba, new);
            }
        } else if raw == ALL_KEPT {
            self.kept -= LEAF_BLOCKS as u64;
        }
        self.set_slot(slab, lba, new);
        self.kept += if keep { LEAF_BLOCKS as u64 } else { 0 };
    }

    /// What the log says of a leaf, taken out if nobody else has it, copied otherwise.
    pub fn take_leaf(&mut self, slab: &mut LeafSlab, leaf: u64) -> Logged {
        let (number, slot, _) = split(Lba(leaf * LEAF_BLOCKS as u64));
        let Some(Some(node)) = self.nodes.get_mut(number) else { return Logged::NOTHING };
        let raw = node[slot];
        if raw < LEAF {
            return Logged(raw);
        }
        match Arc::get_mut(node) {
            Some(node) if !slab.is_shared(raw - LEAF) => {
                node[slot] = ALL_HOLE;
                Logged(raw)
            }
            _ => Logged(slab.copy_of(raw - LEAF, leaf, false) + LEAF),
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Geometry;

    const NONE: LeafMarks = LeafMarks { holes: [0; 8], kept: [0; 8], inherited: [0; 8] };

    fn block(pbn: u64) -> Mapping {
        Mapping::Block { pbn, crc: pbn as u32 }
    }

    /// What is stated is as the log has it but for the marks, and its own; all else is the parent's again.
    #[test]
    fn a_map_is_what_was_stated_and_what_its_parent_has() {
        let mut slab = LeafSlab::new(&Geometry::choose(&[1 << 30], 4 << 20).unwrap());
        let mut head = VolumeMap::new(1);
        for lba in [0, 1, 600, 1100, 600_000] {
            head.set(&mut slab, Lba(lba), block(lba + 1));
        }
        let mut older = head.snapshot(2);
        head.set(&mut slab, Lba(600), block(7));
        let before = slab.used();
        // Children first: what the log takes for one leaf is copied if both have it stated.
        let mut take = |map: &mut VolumeMap| {
            let leaves = [0, 1].map(|leaf| map.take_leaf(&mut slab, leaf));
            assert!(map.let_go(&mut slab, usize::MAX));
            (leaves, slab.used())
        };
        let ([head_0, head_1], used) = take(&mut head);
        assert_eq!(used, before + 1);
        let ([older_0, older_1], used) = take(&mut older);
        assert_eq!(used, 4);
        let mut marks = NONE;
        marks.holes[0] = 2;
        let mut older = VolumeMap::new(2);
        older.place_logged(&mut slab, older_0, 0, &marks);
        older.place_logged(&mut slab, older_1, 1, &NONE);
        older.place_empty(&mut slab, 2, true);
        let mut head = older.child(1);
        head.place_logged(&mut slab, head_1, 1, &NONE);
        // Identical to the parent's, and all the same stated.
        head.place_logged(&mut slab, head_0, 0, &marks);
        for map in [&older, &head] {
            assert_eq!(map.get(&slab, Lba(0)), block(1));
            assert_eq!(
                (map.get(&slab, Lba(1)), map.get(&slab, Lba(1100))),
                (Mapping::Hole, Mapping::Kept)
            );
            assert_eq!((map.mapped(), map.kept()), (2, 512));
        }
        assert_eq!((older.get(&slab, Lba(600)), head.get(&slab, Lba(600))), (block(601), block(7)));
        assert!(head.is_different(0) && head.is_different(1) && !head.is_different(2));
        assert_eq!((head.touched(), older.touched(), slab.used()), (2, 3, 4));
        let mut empty = head.child(3);
        empty.place_empty(&mut slab, 0, false);
        assert_eq!((empty.mapped(), empty.kept(), empty.is_different(0)), (1, 512, true));
        for mut map in [empty, head, older] {
            assert!(map.let_go(&mut slab, usize::MAX));
        }
        assert_eq!(slab.used(), 0);
    }
}
