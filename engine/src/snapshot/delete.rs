//! Deleting a snapshot: what it has passes to its child, or dies.
//!
//! The snapshot is gone for users at once. Its map is taken apart leaf by leaf, in the background:
//!
//! * a leaf that the child shares becomes the child's, with all that it owns;
//! * of any other, a block that the child inherits becomes the child's, and a block that it does not
//!   dies. The child's marks tell; its page need not be read.
//!
//! Invariants:
//! 1. At any time a block is owned by the snapshot, or by the child, but not by nobody.
//! 2. Of a leaf that has passed the snapshot has nothing left, in memory and in every checkpoint. Who looks for
//!    the [owner](crate::volume::Volumes::owner) of a block, or for those who inherit it, looks past it.
//! 3. One is taken apart at a time, to the end, and none before a child that has begun to be: what is
//!    passed goes to the nearest child.
//! 4. One with several children is not taken apart before all but one are gone. Deleted, it lives on for
//!    them, and nobody else sees it.
//! 5. One that a clone was made from stays when that has all it had, empty: the log of its line is about
//!    the clone's blocks from now on, and it says so. It has its parent's map.
//! 6. After a crash it is done again, on what the last checkpoint stated. While one is under way nothing
//!    passes, so that it states snapshot and child as they were at the same time.

use crate::engine::Engine;
use crate::format::record::{LeafBits, marked};
use crate::leaf_loader::Paging;
use crate::map::{LEAF_BLOCKS, LeafState, Mapping, VolumeMap};
use crate::plant::Plant;
use crate::volume::{Volume, VolumeState};

/// Leaves that pass in one turn.
const LEAVES: usize = 64;

/// What became of a leaf.
enum Passed {
    Yes,
    /// Its page must be read first.
    Coming,
    /// Its page can't be read.
    Bad,
}

impl Engine {
    /// The record that a volume or snapshot is deleted is retired.
    pub(crate) fn apply_delete(&mut self, id: u32) {
        let Some(volume) = self.volumes.get_mut(id) else { return };
        if volume.info.snapshot.is_some() {
            self.volumes.let_die(id);
            return self.may_die(id);
        }
        // The log of it up to a snapshot that was taken since belongs to that one.
        let stated = self.compaction.as_ref().is_some_and(|compaction| {
            let newest = self.volumes.snapshots(id).last();
            newest.is_some_and(|(cut, _)| *cut > compaction.lsn())
        });
        if stated && !self.planted.has(Plant::LeaveUnstated) {
            self.volumes.leave(id);
            return self.leaving.push(id);
        }
        self.bury(id);
    }

    /// Gives the space of a volume back that is deleted.
    fn bury(&mut self, id: u32) {
        if let Some(volume) = self.take_out(id) {
            self.release_reservation(&volume);
            self.kept -= volume.kept();
            self.touched -= volume.map.touched();
            self.graves.bury(volume.map);
        }
    }

    /// A checkpoint has ended: what it had still to state of deleted volumes is stated.
    pub(crate) fn bury_leaving(&mut self) {
        while let Some(id) = self.leaving.pop() {
            self.bury(id);
        }
    }

    /// Takes a volume or snapshot out. Its parent may have lived on for it alone.
    fn take_out(&mut self, id: u32) -> Option<Volume> {
        let volume = self.volumes.take_out(id)?;
        if let Some(parent) = volume.parent {
            self.may_die(parent);
        }
        Some(volume)
    }

    /// Takes a snapshot apart, in its turn, if it is deleted and has one child at most.
    pub(crate) fn may_die(&mut self, id: u32) {
        let hidden = self.planted.has(Plant::DieForOne);
        if let Some(snapshot) = self.volumes.get_mut(id)
            && snapshot.state == VolumeState::Dying
            && snapshot.heir.is_none()
            && !snapshot.queued
            && (snapshot.children.len() <= 1 || hidden)
        {
            snapshot.queued = true;
            self.dying.push_back(id);
        }
    }

    /// Whether there is something to do now for snapshots that are deleted.
    pub(crate) fn dying_goes_on(&self) -> bool {
        (!self.dying.is_empty() || self.volumes.has_idle())
            && !self.is_counting()
            && self.compaction.is_none()
            && !self.leaf_loader.is_reading()
    }

    /// Goes on with the first of them.
    pub(crate) fn advance_dying(&mut self) {
        // What nobody has counted yet can't die. And a checkpoint states snapshot and child as they were
        // when it began, which it can only while both are there.
        let stated = self.compaction.is_some() && !self.planted.has(Plant::DieWhileStating);
        if self.opening || self.is_counting() || stated {
            return;
        }
        for _ in 0..LEAVES {
            if !self.volumes.forget_idle() {
                break;
            }
            self.space.epoch += 1;
        }
        if self.volumes.has_idle() {
            return;
        }
        let Some(&id) = self.dying.front() else { return };
        let Some(snapshot) = self.volumes.get_mut(id) else {
            self.dying.pop_front();
            return;
        };
        let child = snapshot.children.first().copied();
        let mut map = std::mem::replace(&mut snapshot.map, VolumeMap::new(id));
        let mut next = snapshot.passed;
        let touched = |engine: &Self| {
            child.and_then(|c| engine.volumes.get(c)).map_or(0, |c| c.map.touched())
        };
        let before = touched(self);
        for _ in 0..LEAVES {
            let Some(leaf) = map.next_different(next) else {
                next = u64::MAX;
                break;
            };
            next = leaf;
            match self.pass_leaf(&mut map, child, leaf) {
                Passed::Yes => next = leaf + 1,
                // Where those lie that die is not known any more, and what they take is not given back.
                Passed::Bad => {
                    self.want_rebuild();
                    next = leaf + 1;
                }
                Passed::Coming => break,
            }
        }
        self.touched = self.touched + touched(self) - before;
        if let Some(child) = child {
            self.recount_held(child);
        }
        if next == u64::MAX {
            self.touched -= map.touched();
            self.dying.pop_front();
            if self.volumes.is_base(id) && !self.planted.has(Plant::NoHeir) {
                self.volumes.hollow(id);
            } else {
                self.take_out(id);
            }
            self.forks.push_back(map);
            self.space.epoch += 1;
            self.again = true;
        } else if let Some(snapshot) = self.volumes.get_mut(id) {
            (snapshot.map, snapshot.passed) = (map, next);
        }
    }

    fn pass_leaf(&mut self, map: &mut VolumeMap, child: Option<u32>, leaf: u64) -> Passed {
        let state = map.leaf(&self.slab, leaf).0;
        let shares = |child: &u32| {
            self.volumes.get(*child).is_some_and(|child| !child.map.is_different(leaf))
        };
        if let Some(child) = child.filter(shares) {
            if let Some(child) = self.volumes.get_mut(child) {
                child.map.adopt(&mut self.slab, map, leaf);
            }
            return Passed::Yes;
        }
        let owned = match state {
            LeafState::Dense(index) => self.slab.get(index).owned(),
            LeafState::Away(away) => self.slab.away_leaf(away).owned_bits(),
            _ => return Passed::Yes,
        };
        let mut inherited =
            child.map_or([0; LEAF_BLOCKS / 64], |child| self.inherited(child, leaf));
        if self.planted.has(Plant::PassNothing) {
            inherited = LeafBits::default();
        }
        let passes: LeafBits = std::array::from_fn(|i| owned[i] & inherited[i]);
        let dies: LeafBits = std::array::from_fn(|i| owned[i] & !inherited[i]);
        let mut passed = Passed::Yes;
        if let LeafState::Away(away) = state
            && dies != LeafBits::default()
        {
            let page = self.slab.away_leaf(away).page;
            match self.request_leaf(map.volume(), leaf, page) {
                // What passes must not be nobody's: it is not counted as live by the next opening then.
                Paging::Bad => passed = Passed::Bad,
                _ => return Passed::Coming,
            }
        }
        if let LeafState::Dense(index) = state {
            let lsn = self.applied_lsn;
            for i in (0..LEAF_BLOCKS).filter(|&i| marked(&dies, i)) {
                if let Mapping::Block { pbn, .. } = self.slab.get(index).get(i) {
                    self.segs.died(self.geo.locate(pbn).0, lsn);
                }
            }
        }
        if let Some(child) = child.and_then(|child| self.volumes.get_mut(child)) {
            child.map.take_over(&mut self.slab, leaf, &passes);
        }
        map.lose(&mut self.slab, leaf);
        passed
    }

    /// Blocks of a leaf that a child does not own.
    fn inherited(&self, child: u32, leaf: u64) -> LeafBits {
        let Some(child) = self.volumes.get(child) else { return LeafBits::default() };
        match child.map.leaf(&self.slab, leaf).0 {
            LeafState::Dense(index) => self.slab.get(index).marks().inherited,
            LeafState::Away(away) => self.slab.away_leaf(away).marks().inherited,
            _ => LeafBits::default(),
        }
    }
}
