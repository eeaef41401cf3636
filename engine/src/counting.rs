//! Counting what is live after an opening, while the pool serves.
//!
//! How much each volume maps follows from the checkpoint's statements and the log, so that the pool's
//! space is exact from the first request on. Which segments these blocks lie in only the leaf pages know.
//! They are read in the background, in the order in which they lie on the device, beside those that
//! requests ask for; each is counted when it is read first.
//!
//! Invariants:
//! 1. Until every leaf is counted a segment's live count may be too small. So no segment is buried,
//!    no victim chosen, and no checkpoint begun: what the log says of a leaf is kept beside its page
//!    only (see [`crate::map::Unread`]).
//! 2. A leaf is counted once: when what was known of it and its page become one.
//! 3. If a page can't be read, or contradicts the log, nothing is freed any more, and the superblock
//!    says that the next opening is to make the map from the summaries of all segments. When segments
//!    run out, such pages are asked for again. If that does not help the pool is full: nobody waits
//!    for a checkpoint, and the metadata chain does not take what the next opening needs for one.

use crate::engine::Engine;
use crate::format::record::{LeafMarks, marked};
use crate::format::superblock::FLAG_REBUILD;
use crate::geometry::Geometry;
use crate::limits::LEAF_READS;
use crate::map::{LEAF_BLOCKS, Leaf, LeafPage, LeafState, Mapping, Unread, Verdict, VolumeMap};
use crate::plant::{Plant, Planted};
use crate::segment::{SegmentState, SegmentTable};
use crate::volume::VolumeState;
use flagstone_block::Buffers;
use std::collections::HashMap;

/// Pages that are read to be counted at a time; the others are for requests.
const COUNTING_READS: usize = LEAF_READS / 2;
/// Leaves looked at in one turn.
const COUNTING_STEPS: usize = 64;
/// Pages that could not be read are asked for again, if somebody waits for space, after this time at
/// the earliest.
const COUNT_AGAIN_NS: u64 = 10_000_000_000;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Counting {
    /// Volume and number of each leaf, in the order of their pages.
    order: Vec<(u32, u64)>,
    /// The next of them to be asked for.
    next: usize,
    /// Volumes that were cut since, and the first snapshot of each: it has what the volume had then. What the
    /// volume has changed before was counted for that.
    cuts: HashMap<u32, u32>,
    /// Leaves that are not counted yet.
    left: usize,
    /// The LSN that each segment was last freed at before the opening.
    freed: Vec<u64>,
    /// The opening can't end before.
    pub(crate) urgent: bool,
    /// When pages that could not be read may be asked for again.
    again_ns: u64,
    planted: Planted,
}

impl Counting {
    pub(crate) fn new(order: Vec<(u32, u64)>, freed: Vec<u64>, planted: Planted) -> Self {
        let (left, cuts) = (order.len(), HashMap::new());
        Self { left, order, next: 0, cuts, freed, urgent: false, again_ns: 0, planted }
    }

    /// A snapshot is taken of a volume.
    pub(crate) fn cut(&mut self, volume: u32, snapshot: u32) {
        self.cuts.entry(volume).or_insert(snapshot);
    }

    /// The next leaf to be asked for, in the name of who has it now.
    fn next(&self) -> Option<(u32, u64)> {
        let &(volume, leaf) = self.order.get(self.next)?;
        Some((self.cuts.get(&volume).copied().unwrap_or(volume), leaf))
    }

    /// The leaves that there are to count, for who reads them all at once.
    pub(crate) fn take_order(&mut self) -> Vec<(u32, u64)> {
        std::mem::take(&mut self.order)
    }

    /// Leaves that are not counted yet.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// What an entry of a page that was right at `lsn` is worth.
    fn judge(&self, geo: &Geometry, segs: &SegmentTable, lsn: u64, pbn: u64) -> Verdict {
        if !geo.is_data(pbn, 1) {
            return Verdict::Wrong;
        }
        let segment = geo.locate(pbn).0;
        let freed = self.freed.get(segment as usize).is_some_and(|&freed| freed > lsn);
        if freed && !self.planted.has(Plant::StaleEntriesStay) {
            return Verdict::Stale;
        }
        match segs.row(segment).state {
            SegmentState::Sealed | SegmentState::Open | SegmentState::Sealing => Verdict::Good,
            _ => Verdict::Wrong,
        }
    }

    /// Makes what a page says, `content`, what its leaf says, and counts that. False if the page
    /// contradicts what is known of the leaf without it.
    pub(crate) fn count(
        &mut self,
        geo: &Geometry,
        segs: &mut SegmentTable,
        known: &Known,
        unread: &mut Unread,
        content: &mut Leaf,
    ) -> bool {
        let lsn = unread.lsn();
        let judge = |pbn| self.judge(geo, segs, lsn, pbn);
        let right = unread.apply(content, known.dying, judge);
        if !right || !(known.dying || content.is_marked(&known.marks)) {
            return false;
        }
        let owned = |i: &usize| !marked(&known.marks.inherited, *i);
        let block = |i| match content.get(i) {
            Mapping::Block { pbn, .. } => Some(pbn),
            _ => None,
        };
        let here = (0..LEAF_BLOCKS).filter(owned).filter_map(block);
        let Some(gone) = known.owned.checked_sub(here.clone().count() as u64) else { return false };
        here.for_each(|pbn| segs.count(geo.locate(pbn).0));
        segs.counted(gone);
        self.left -= 1;
        unread.count();
        true
    }
}

/// What is known of a leaf without its page.
pub(crate) struct Known {
    /// Holes, kept zeroes, and blocks that are an ancestor's.
    pub(crate) marks: LeafMarks,
    /// Blocks that only this leaf holds.
    pub(crate) owned: u64,
    /// Its volume is being taken apart: more may be gone than is marked.
    pub(crate) dying: bool,
}

/// What a page that was read is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The leaf is in memory, or counted, or was not wanted any more.
    Taken,
    /// It contradicts what is known of its leaf.
    Wrong,
}

impl Engine {
    /// Whether it is still being counted what is live, so that a segment's live count may be too small:
    /// nothing that is dead is given back before.
    #[must_use]
    pub fn is_counting(&self) -> bool {
        self.counting.is_some() && !self.is_degraded()
    }

    /// Whether the counting can't end, because of a leaf whose page can't be read. As long as one that
    /// is not counted is being read, for whatever purpose, nobody knows that yet.
    pub(crate) fn is_counting_stuck(&self) -> bool {
        let asked = |c: &Counting| c.left > 0 && c.next == c.order.len();
        let coming = |(volume, leaf)| self.uncounted_page(volume, leaf).is_some();
        self.counting.as_ref().is_some_and(asked) && !self.leaf_loader.reading().any(coming)
    }

    /// Whether the counting goes on, and the cleaner after it.
    pub(crate) fn may_count(&self) -> bool {
        self.is_counting() && !self.is_counting_stuck()
    }

    /// Somebody waits for space: what could not be read for a while only must not cost it all.
    pub(crate) fn count_again(&mut self) {
        if self.is_counting_stuck()
            && let Some(counting) = &mut self.counting
            && self.now_ns >= counting.again_ns
        {
            counting.next = 0;
            counting.again_ns = self.now_ns.saturating_add(COUNT_AGAIN_NS);
            self.again = true;
        }
    }

    /// Reads further pages, and ends when all are counted.
    pub(crate) fn advance_counting(&mut self) {
        let Some(counting) = &self.counting else { return };
        if (self.opening && !counting.urgent) || self.stop.has_drained() {
            return;
        }
        if counting.left == 0 {
            return self.end_counting();
        }
        for _ in 0..COUNTING_STEPS {
            let Some(counting) = &mut self.counting else { return };
            let Some((volume, leaf)) = counting.next() else { return };
            if self.leaf_loader.counting_reads() == COUNTING_READS {
                return;
            }
            if let Some(page) = self.uncounted_page(volume, leaf)
                && !self.is_leaf_coming(volume, leaf)
                && !self.request_count(volume, leaf, page)
            {
                // Requests have all the buffers.
                return;
            }
            if let Some(counting) = &mut self.counting {
                counting.next += 1;
            }
        }
        self.again = true;
    }

    fn end_counting(&mut self) {
        self.counting = None;
        self.segs.end_counting();
        if !self.opening {
            self.segs.bury_empty(self.applied_lsn);
        }
        self.space.epoch += 1;
        self.again = true;
    }

    /// The map of a volume, or of one that is being deleted.
    fn map(&self, volume: u32) -> Option<&VolumeMap> {
        match self.volumes.get(volume) {
            Some(volume) => Some(&volume.map),
            None => self.graves.get(volume),
        }
    }

    /// The page of a leaf that is not counted yet.
    fn uncounted_page(&self, volume: u32, leaf: u64) -> Option<LeafPage> {
        let LeafState::Away(away) = self.map(volume)?.leaf(&self.slab, leaf).0 else { return None };
        let counted = self.slab.unread(away)?.is_counted();
        (!counted).then(|| self.slab.away_leaf(away).page)
    }

    /// The page of a leaf was read: it and what was known of the leaf become one, in memory or, if
    /// it was only read `to_count` and there is no room, beside the page.
    pub(crate) fn leaf_arrived(
        &mut self,
        (volume, leaf): (u32, u64),
        page: LeafPage,
        mut content: Leaf,
        to_count: bool,
    ) -> Arrival {
        let in_room = !to_count || self.has_counting_room();
        let dying = self.volumes.get(volume).is_some_and(|v| v.state == VolumeState::Dying);
        let map = match self.volumes.get(volume) {
            Some(volume) => &volume.map,
            None => return self.take_apart((volume, leaf), page, content),
        };
        let LeafState::Away(away) = map.leaf(&self.slab, leaf).0 else { return Arrival::Taken };
        if self.slab.away_leaf(away).page != page {
            return Arrival::Taken;
        }
        let Some(mut unread) = self.slab.take_unread(away) else {
            self.slab.bring_back(away, content, true);
            return Arrival::Taken;
        };
        if !unread.is_counted()
            && let Some(counting) = &mut self.counting
        {
            let paged = self.slab.away_leaf(away);
            let known = Known { marks: paged.marks(), owned: paged.owned(), dying };
            if !counting.count(&self.geo, &mut self.segs, &known, &mut unread, &mut content) {
                self.slab.put_unread(away, unread);
                return Arrival::Wrong;
            }
            if dying {
                self.slab.mark_holes(away, &content);
            }
        } else {
            unread.apply(&mut content, false, |_| Verdict::Good);
        }
        match (in_room, unread.is_empty()) {
            (true, clean) => self.slab.bring_back(away, content, clean),
            (false, false) => self.slab.put_unread(away, unread),
            (false, true) => {}
        }
        self.again |= self.counting.is_some();
        Arrival::Taken
    }

    /// The page of a leaf was read whose volume is being deleted: what lies there dies, and the leaf is
    /// gone without ever coming to memory.
    fn take_apart(
        &mut self,
        (volume, leaf): (u32, u64),
        page: LeafPage,
        mut content: Leaf,
    ) -> Arrival {
        let Some(away) = self.buried_leaf(volume, leaf) else {
            self.count_as_snapshots(volume);
            return Arrival::Taken;
        };
        if self.slab.away_leaf(away).page != page || self.forget_uncounted(volume, leaf) {
            return Arrival::Taken;
        }
        if let Some(mut unread) = self.slab.take_unread(away) {
            unread.apply(&mut content, false, |_| Verdict::Good);
        }
        for i in 0..LEAF_BLOCKS {
            if let Mapping::Block { pbn, .. } = content.get(i)
                && self.slab.away_leaf(away).owns(i)
            {
                self.segs.died(self.geo.locate(pbn).0, self.applied_lsn);
            }
        }
        self.graves.give_up(&mut self.slab, volume, leaf);
        Arrival::Taken
    }

    /// A leaf that was asked for in the name of a volume was not counted, since that is gone. If it is its
    /// snapshot's, it is to be asked for in that one's name.
    pub(crate) fn count_as_snapshots(&mut self, volume: u32) {
        if let Some(counting) = &mut self.counting
            && counting.cuts.contains_key(&volume)
        {
            counting.next = 0;
            self.again = true;
        }
    }

    /// A leaf, not in memory, of a volume that is being deleted. One that it has of a snapshot lives on, though
    /// somebody may have asked for it in this one's name.
    fn buried_leaf(&self, volume: u32, leaf: u64) -> Option<u32> {
        let map = self.graves.get(volume).filter(|map| map.is_different(leaf))?;
        match map.leaf(&self.slab, leaf).0 {
            LeafState::Away(away) => Some(away),
            _ => None,
        }
    }

    /// Gives up a leaf of a volume that is being deleted if it is not counted yet: of what was never
    /// counted nothing need be known. Returns whether it was.
    pub(crate) fn forget_uncounted(&mut self, volume: u32, leaf: u64) -> bool {
        let Some(away) = self.buried_leaf(volume, leaf) else { return false };
        let uncounted = self.slab.unread(away).is_some_and(|unread| !unread.is_counted());
        if uncounted && let Some(counting) = &mut self.counting {
            counting.left -= 1;
            self.segs.counted(self.slab.away_leaf(away).owned());
            self.graves.give_up(&mut self.slab, volume, leaf);
        }
        uncounted
    }

    /// A leaf of a volume that is there can't be read: the next opening makes the map anew. Of a pool
    /// that has failed, no page that was written last is what counts then.
    pub(crate) fn want_rebuild(&mut self) {
        if !self.rebuild.wanted && !self.is_read_only() {
            self.rebuild.wanted = true;
            self.again = true;
        }
    }

    /// Whether the next opening will make the map anew, because a page of it can't be read.
    #[must_use]
    pub fn wants_rebuild(&self) -> bool {
        self.rebuild.wanted
    }

    /// Writes the superblock that says so.
    pub(crate) fn advance_rebuild_flag(&mut self, bufs: &mut impl Buffers) {
        let rebuild = &mut self.rebuild;
        if rebuild.writing {
            if self.super_write.take_done() {
                (rebuild.writing, rebuild.written) = (false, true);
            }
        } else if rebuild.wanted
            && !rebuild.written
            && !self.opening
            && self.compaction.is_none()
            && self.change.is_none()
            && !self.stop.has_drained()
            && self.super_write.is_idle()
        {
            rebuild.writing = true;
            let superblock = self.superblock(0);
            self.begin_superblock(bufs, superblock);
        }
    }

    /// Flags that every superblock of this life carries.
    pub(crate) fn lasting_flags(&self) -> u32 {
        if self.rebuild.wanted { FLAG_REBUILD } else { 0 }
    }
}

/// Whether the superblock says that the next opening is to make the map anew.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rebuild {
    wanted: bool,
    written: bool,
    pub(crate) writing: bool,
}
