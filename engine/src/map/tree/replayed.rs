//! A map as recovery makes it: leaves in pages that nobody has read, and what was logged since.

use super::{ALL_HOLE, ALL_KEPT, LEAF, LeafState, VolumeMap, split};
use crate::format::record::LeafBits;
use crate::map::{LEAF_BLOCKS, LeafSlab, Mapping, PagedLeaf, Place, Unread};
use flagstone_block::Lba;

/// A leaf of which a map has a copy of its own now, and those below it do not yet.
#[derive(Debug)]
pub struct Copied {
    leaf: u64,
    raw: u32,
    copy: u32,
}

impl Copied {
    /// All that share it have followed.
    pub fn end(self, slab: &mut LeafSlab) {
        slab.part(self.raw - LEAF);
    }
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
    /// is not the parent's. Those that share it go on with it: see [`VolumeMap::follow`].
    pub fn own(&mut self, slab: &mut LeafSlab, leaf: u64) -> Option<Copied> {
        let (number, slot, _) = split(Lba(leaf * LEAF_BLOCKS as u64));
        let raw = self.nodes.get(number)?.as_ref()?[slot];
        if self.differs.has(leaf) || !matches!(Self::state(slab, raw), LeafState::Dense(_)) {
            return None;
        }
        // It must not be given back before those that share it have let it go.
        slab.share(raw - LEAF);
        self.own_leaf(slab, Lba(leaf * LEAF_BLOCKS as u64));
        let copy = self.nodes[number].as_ref()?[slot];
        Some(Copied { leaf, raw, copy })
    }

    /// If a leaf is the parent's here, it is the copy that the parent has now.
    pub fn follow(&mut self, slab: &mut LeafSlab, copied: &Copied) {
        let (number, slot, _) = split(Lba(copied.leaf * LEAF_BLOCKS as u64));
        let raw = self.nodes.get(number).and_then(Option::as_ref).map(|node| node[slot]);
        if raw == Some(copied.raw) && !self.differs.has(copied.leaf) {
            slab.share(copied.copy - LEAF);
            Self::node_mut(&mut self.nodes, slab, number)[slot] = copied.copy;
            slab.part(copied.raw - LEAF);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Geometry;

    #[test]
    fn those_that_share_a_leaf_go_on_with_the_copy_of_their_parent() {
        let mut slab = LeafSlab::new(&Geometry::choose(&[1 << 30], 4 << 20).unwrap());
        let mut head = VolumeMap::new(1);
        head.set(&mut slab, Lba(0), Mapping::Block { pbn: 10, crc: 10 });
        let mut oldest = head.snapshot(2);
        let mut older = head.snapshot(3);
        let mut other = older.child(4);
        other.set(&mut slab, Lba(1), Mapping::Block { pbn: 11, crc: 11 });

        assert!(oldest.own(&mut slab, 0).is_none(), "it is its own already");
        let before = head.leaf(&slab, 0).0;
        let copied = older.own(&mut slab, 0).unwrap();
        assert!(older.own(&mut slab, 0).is_none());
        let of_other = other.leaf(&slab, 0).0;
        for map in [&mut head, &mut other, &mut oldest] {
            map.follow(&mut slab, &copied);
        }
        copied.end(&mut slab);
        assert!(older.is_different(0) && !head.is_different(0));
        assert_eq!(head.leaf(&slab, 0), older.leaf(&slab, 0));
        assert_eq!((oldest.leaf(&slab, 0).0, other.leaf(&slab, 0).0), (before, of_other));
        assert_eq!((head.mapped(), older.mapped()), (1, 1));

        // Each leaf is given back when the last map lets it go, and none before.
        assert_eq!(slab.used(), 3);
        for (map, left) in [(oldest, 2), (older, 2), (head, 1), (other, 0)] {
            let mut map = map;
            assert!(map.let_go(&mut slab, usize::MAX));
            drop(map);
            assert_eq!(slab.used(), left);
        }
    }
}
