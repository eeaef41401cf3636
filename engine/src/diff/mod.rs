//! Differences: which blocks of a volume are not those of a snapshot, from the maps alone.
//!
//! Two maps are walked side by side. A node of 1 GiB that both share, and a leaf of 2 MiB that both share,
//! is passed over without a look at what it says; what remains is compared block by block. It does not
//! matter how the two are related: a map that was cloned or rolled back shares with its ancestors what it
//! has of them. No data is read, and of the map only leaf pages that are not in memory.
//!
//! Invariants:
//! 1. Two blocks differ if they have data in different places, or only one has data. Holes, kept zeroes and
//!    what lies behind a volume's end are zeroes, and zeroes don't differ.
//! 2. A block that nobody has written to since does not differ: all that map a block map the same copy of
//!    it, wherever the cleaner moves it ([`crate::snapshot`], invariant 3). Of a leaf that is away, moves
//!    are noted beside its page, so it is compared only once it is in memory with these.
//! 3. What is copied without a request, for a sequence of reads, is never what a snapshot shares.
//! 4. A call looks at so much at most ([`STEPS`]), whatever the volumes' sizes. It keeps nothing between
//!    calls: the address to go on from is all there is.
//!
//! A volume that is written meanwhile is compared, leaf by leaf, as it is when the walk comes there: what
//! was answered before the first call is told, what is sent later may be or not. Who wants one moment
//! takes a snapshot first.
//!
//! It does not look at data: a block that was overwritten with the same bytes differs.

mod leaf;

use crate::engine::Engine;
use crate::error::DiffError;
use crate::leaf_loader::Paging;
use crate::limits::LEAF_READS;
use crate::map::{LEAF_BLOCKS, LeafState, Unlike};
use crate::volume::Volume;
use flagstone_block::{BLOCK_BITS, BLOCK_SIZE, Lba, VolumeId};
use leaf::{Changes, Side};
use std::ops::Range;

/// What one call does at most: a node that is shared counts one, another four, a leaf that is compared
/// [`LEAF_STEPS`].
const STEPS: u32 = 4096;
const LEAF_STEPS: u32 = 64;
/// Pages being read, for whomever, beyond which none is asked for before it is its turn.
const READ_AHEAD: usize = LEAF_READS / 2;

/// What a stretch that differs is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiffKind {
    /// Data.
    Data,
    /// Zeroes: nothing is mapped there any more.
    Zero,
}

/// A stretch in which all blocks differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffExtent {
    /// Bytes from the volume's beginning, a multiple of 4096.
    pub offset: u64,
    /// Bytes, a multiple of 4096, at least one block.
    pub len: u64,
    /// What it is in the newer of the two.
    pub kind: DiffKind,
}

/// What is compared with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiffSpec {
    /// The older: a snapshot or a volume; `None` for one that holds nothing, from which all that is mapped
    /// differs.
    pub older: Option<VolumeId>,
    /// The newer.
    pub newer: VolumeId,
}

impl Engine {
    /// Compares bytes `range` of two volumes or snapshots, of which the older may have any relation to the
    /// newer, or none. Whole blocks are compared: the range is widened to them, and cut at the end of the
    /// larger of the two.
    ///
    /// Appends what differs to `out`, in order, merged with its last extent where they touch, until
    /// that has `extents_max`. Returns the offset of the first block that was not compared, to go on from;
    /// `None` if all were.
    ///
    /// # Errors
    /// `Busy` if not a block could be compared before a page of the map is read: call again after the next
    /// completion or `pump`. `NoVolume`, `Damaged`, `Stopping`. A failed pool still answers.
    pub fn diff(
        &mut self,
        spec: &DiffSpec,
        range: Range<u64>,
        out: &mut Vec<DiffExtent>,
        extents_max: usize,
    ) -> Result<Option<u64>, DiffError> {
        if self.stop.is_begun() {
            return Err(DiffError::Stopping);
        }
        let per_leaf = LEAF_BLOCKS as u64;
        let end = self.diff_end(spec)?.min(range.end.div_ceil(BLOCK_SIZE as u64));
        let first = range.start >> BLOCK_BITS;
        let (mut at, mut steps) = (first, STEPS);
        while at < end {
            let (newer, older) = self.diff_sides(spec)?;
            let older_map = older.map(|older| &older.map);
            let leaves = end.div_ceil(per_leaf);
            let unlike = newer.map.next_unlike(older_map, at / per_leaf, leaves, &mut steps);
            let leaf = match unlike {
                Unlike::Leaf(leaf) => leaf,
                Unlike::LikeUntil(leaf) => {
                    at = at.max(leaf.saturating_mul(per_leaf));
                    break;
                }
            };
            at = at.max(leaf * per_leaf);
            let Some(left) = steps.checked_sub(LEAF_STEPS) else { break };
            steps = left;
            let Some(changes) = self.compare_leaf(newer, older, leaf) else {
                match self.bring_leaves(spec, leaf, leaves)? {
                    Paging::Here => continue,
                    Paging::Bad => return Err(DiffError::Damaged { lba: leaf * per_leaf }),
                    Paging::Coming => break,
                }
            };
            let stop = end.min((leaf + 1) * per_leaf);
            at = changes.append(leaf * per_leaf, at..stop, out, extents_max);
            if at < stop {
                return Ok(Some(at << BLOCK_BITS));
            }
        }
        if at >= end {
            return Ok(None);
        }
        if at == first { Err(DiffError::Busy) } else { Ok(Some(at << BLOCK_BITS)) }
    }

    /// Blocks of the larger of the two.
    fn diff_end(&self, spec: &DiffSpec) -> Result<u64, DiffError> {
        let (newer, older) = self.diff_sides(spec)?;
        Ok(newer.blocks().max(older.map_or(0, Volume::blocks)))
    }

    fn diff_sides(&self, spec: &DiffSpec) -> Result<(&Volume, Option<&Volume>), DiffError> {
        let side = |id| self.active(id).map_err(|_| DiffError::NoVolume);
        Ok((side(spec.newer)?, spec.older.map(side).transpose()?))
    }

    /// How a leaf differs; `None` if a page must be read first.
    fn compare_leaf(&self, newer: &Volume, older: Option<&Volume>, leaf: u64) -> Option<Changes> {
        let side = |volume: &Volume| Side::of(&self.slab, &volume.map, leaf, volume.blocks());
        Changes::between(&older.map_or(Side::NOTHING, side), &side(newer))
    }

    /// Has the leaf of both in memory, or sees to it that it comes, and those that will be wanted next.
    fn bring_leaves(
        &mut self,
        spec: &DiffSpec,
        leaf: u64,
        leaves: u64,
    ) -> Result<Paging, DiffError> {
        let mut found = Paging::Here;
        for id in spec.older.into_iter().chain([spec.newer]) {
            let volume = self.active(id).map_err(|_| DiffError::NoVolume)?;
            match volume.map.leaf(&self.slab, leaf).0 {
                LeafState::Dense(index) => self.slab.warm(index),
                LeafState::Away(away) => {
                    let page = self.slab.away_leaf(away).page;
                    match self.request_leaf(id.0, leaf, page) {
                        Paging::Bad => return Ok(Paging::Bad),
                        paging => found = paging,
                    }
                }
                _ => {}
            }
        }
        self.read_leaves_ahead(spec, leaf + 1, leaves)?;
        Ok(found)
    }

    fn read_leaves_ahead(
        &mut self,
        spec: &DiffSpec,
        mut from: u64,
        leaves: u64,
    ) -> Result<(), DiffError> {
        let mut steps = STEPS / 4;
        while self.leaf_loader.reading().count() < READ_AHEAD {
            let (newer, older) = self.diff_sides(spec)?;
            let older_map = older.map(|older| &older.map);
            let unlike = newer.map.next_unlike(older_map, from, leaves, &mut steps);
            let Unlike::Leaf(leaf) = unlike else { break };
            if self.compare_leaf(newer, older, leaf).is_none() {
                for id in spec.older.into_iter().chain([spec.newer]) {
                    if !self.is_leaf_coming(id.0, leaf) {
                        self.prefetch_leaf(id.0, Lba(leaf * LEAF_BLOCKS as u64));
                    }
                }
            }
            let Some(left) = steps.checked_sub(LEAF_STEPS) else { break };
            (steps, from) = (left, leaf + 1);
        }
        Ok(())
    }
}
