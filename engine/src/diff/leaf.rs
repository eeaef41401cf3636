//! Two leaves, block by block.

use super::{DiffExtent, DiffKind};
use crate::format::record::{LeafBits, marked};
use crate::map::{LEAF_BLOCKS, Leaf, LeafSlab, LeafState, VolumeMap};
use flagstone_block::BLOCK_BITS;
use std::ops::Range;

/// A leaf of one of the two.
pub(super) struct Side<'a> {
    /// Blocks with data, before the volume's end.
    data: LeafBits,
    /// Where they lie, if that is in memory.
    leaf: Option<&'a Leaf>,
}

impl<'a> Side<'a> {
    /// A leaf of zeroes.
    pub(super) const NOTHING: Side<'static> = Side { data: [0; LEAF_BLOCKS / 64], leaf: None };

    /// Leaf number `leaf` of a volume of so many blocks.
    pub(super) fn of(slab: &'a LeafSlab, map: &VolumeMap, leaf: u64, blocks: u64) -> Self {
        let (data, leaf_here) = match map.leaf(slab, leaf).0 {
            LeafState::Dense(index) => (slab.get(index).data(), Some(slab.get(index))),
            LeafState::Away(away) => (slab.away_leaf(away).data(), None),
            _ => return Self::NOTHING,
        };
        // What a shrink is about to discard reads as zeroes.
        let left = blocks.saturating_sub(leaf * LEAF_BLOCKS as u64);
        let data = std::array::from_fn(|i| {
            let bits = left.saturating_sub(i as u64 * 64).min(64) as u32;
            data[i] & 1u64.checked_shl(bits).map_or(u64::MAX, |bit| bit - 1)
        });
        Self { data, leaf: leaf_here }
    }
}

/// Which blocks of a leaf differ.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Changes {
    changed: LeafBits,
    /// Those of them, among others, that have data now.
    data: LeafBits,
}

impl Changes {
    /// `None` if it can't be told before both are in memory.
    pub(super) fn between(older: &Side<'_>, newer: &Side<'_>) -> Option<Self> {
        let both: LeafBits = std::array::from_fn(|i| older.data[i] & newer.data[i]);
        let mut changed: LeafBits = std::array::from_fn(|i| older.data[i] ^ newer.data[i]);
        if both != LeafBits::default() {
            let same = newer.leaf?.same_as(older.leaf?);
            changed.iter_mut().zip(both.iter().zip(&same)).for_each(|(changed, (both, same))| {
                *changed |= both & !same;
            });
        }
        Some(Self { changed, data: newer.data })
    }

    /// Appends what differs in the blocks `range`, of a leaf that begins at block `first`, until there are
    /// `extents_max`; returns how far that came.
    pub(super) fn append(
        &self,
        first: u64,
        range: Range<u64>,
        out: &mut Vec<DiffExtent>,
        extents_max: usize,
    ) -> u64 {
        for at in range.clone() {
            let i = (at - first) as usize;
            if !marked(&self.changed, i) {
                continue;
            }
            let kind = if marked(&self.data, i) { DiffKind::Data } else { DiffKind::Zero };
            let (offset, len) = (at << BLOCK_BITS, 1 << BLOCK_BITS);
            let full = out.len() >= extents_max.max(1);
            match out.last_mut() {
                Some(last) if last.kind == kind && last.offset + last.len == offset => {
                    last.len += len;
                }
                _ if full => return at,
                _ => out.push(DiffExtent { offset, len, kind }),
            }
        }
        range.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::Mapping;

    fn block(pbn: u64) -> Mapping {
        Mapping::Block { pbn, crc: 7 }
    }

    fn leaf(blocks: &[(usize, Mapping)]) -> Leaf {
        let mut leaf = Leaf::new();
        blocks.iter().for_each(|&(i, mapping)| _ = leaf.set(i, mapping));
        leaf
    }

    fn side(leaf: &Leaf) -> Side<'_> {
        Side { data: leaf.data(), leaf: Some(leaf) }
    }

    #[test]
    fn zeroes_do_not_differ_and_data_does_where_it_lies_elsewhere() {
        let older = leaf(&[(0, block(1)), (1, block(2)), (2, block(3)), (4, Mapping::Kept)]);
        let newer = leaf(&[(0, block(1)), (1, block(9)), (3, block(4)), (5, Mapping::Kept)]);
        let changes = Changes::between(&side(&older), &side(&newer)).unwrap();
        let mut out = Vec::new();
        assert_eq!(changes.append(1024, 1024..1536, &mut out, 10), 1536);
        let extent = |block: u64, blocks: u64, kind| DiffExtent {
            offset: block * 4096,
            len: blocks * 4096,
            kind,
        };
        let expected = [
            extent(1025, 1, DiffKind::Data),
            extent(1026, 1, DiffKind::Zero),
            extent(1027, 1, DiffKind::Data),
        ];
        assert_eq!(out, expected);
        // In parts, it is the same, and no further than the bound.
        out.truncate(0);
        assert_eq!(changes.append(1024, 1024..1536, &mut out, 2), 1027);
        assert_eq!(out, expected[..2]);
    }

    #[test]
    fn a_leaf_that_is_away_is_only_needed_where_both_have_data() {
        let here = leaf(&[(0, block(1)), (9, block(2))]);
        let away = |blocks: &[(usize, Mapping)]| Side { data: leaf(blocks).data(), leaf: None };
        assert!(Changes::between(&away(&[(9, block(2))]), &side(&here)).is_none());
        assert!(Changes::between(&away(&[(8, block(2))]), &side(&here)).is_some());
        assert!(Changes::between(&Side::NOTHING, &away(&[(8, block(2))])).is_some());
    }
}
