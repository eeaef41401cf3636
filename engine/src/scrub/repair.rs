//! Writing damaged metadata anew.
//!
//! Each kind of damage asks for something that the engine does anyway: a checkpoint, two
//! superblock writes, a journal tail that moves on. A checkpoint under way may have named the
//! damaged page already, so it is the next one that counts.

use super::{Phase, ScrubFinding, ScrubPlace, ScrubState, Work};
use crate::engine::Engine;
use crate::limits::SCRUB_PATIENCE;
use crate::plant::Plant;
use flagstone_block::Buffers;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Checkpoint {
    #[default]
    None,
    Wanted,
    /// Done when the present chain has this epoch.
    Begun(u64),
}

/// What is still to be done.
#[derive(Debug, Default)]
pub(super) struct Repair {
    checkpoint: Checkpoint,
    /// Superblock writes to be begun, and whether one is under way.
    superblocks: u32,
    writing: bool,
    /// The journal's tail must reach this block.
    tail: u64,
    /// Damaged metadata of which the engine knows what it should say.
    found: u64,
    /// Those of them that are pages of leaves which are not in memory.
    lost_pages: u64,
    /// Turns at rest before it is given up: a pool without any free segment can't be repaired now.
    patience: u32,
    /// What a checkpoint under way had done when it was looked last: while it goes on nothing is
    /// at rest.
    done: u64,
}

impl Repair {
    pub(super) fn begin_scrub(&mut self) {
        (self.superblocks, self.tail) = (0, 0);
        (self.found, self.lost_pages) = (0, 0);
        self.patience = SCRUB_PATIENCE;
    }

    pub(super) fn is_writing(&self) -> bool {
        self.writing
    }
}

impl super::Scrub {
    /// Whether a checkpoint is due because something that only it can repair is damaged. One for
    /// all that is found.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.repair.checkpoint == Checkpoint::Wanted
            && self.run.as_ref().is_none_or(|run| run.phase == Phase::Repair)
    }

    /// A checkpoint has begun; its chain has this epoch.
    pub(crate) fn checkpoint_begun(&mut self, epoch: u64) {
        if self.repair.checkpoint == Checkpoint::Wanted {
            self.repair.checkpoint = Checkpoint::Begun(epoch);
        }
    }

    /// Whether the journal's tail is to move beyond `tail`: a block from there on is damaged.
    pub(crate) fn wants_tail_beyond(&self, tail: u64) -> bool {
        let repairing = self.run.as_ref().is_some_and(|run| run.phase == Phase::Repair);
        repairing && tail < self.repair.tail
    }
}

impl Engine {
    /// Notes what the damage of an item calls for.
    pub(super) fn want_repair(&mut self, work: Work, item: usize) {
        let repair = &mut self.scrub.repair;
        repair.found += u64::from(!matches!(work, Work::Summary { .. } | Work::Blocks { .. }));
        match work {
            Work::Superblock { .. } => repair.superblocks = 2,
            Work::Journal { first } => repair.tail = repair.tail.max(first + item as u64 + 1),
            Work::Chain { .. } | Work::Summary { .. } => repair.checkpoint = Checkpoint::Wanted,
            Work::Copy(copy) => {
                repair.checkpoint = Checkpoint::Wanted;
                self.summary_copies.lose(copy);
            }
            Work::Leaf { volume, lba, .. } => {
                match self.leaf_at(volume, lba) {
                    // Parted from its page, the leaf gets a new one.
                    Some((Some(index), _)) => {
                        self.scrub.repair.checkpoint = Checkpoint::Wanted;
                        if !self.planted.has(Plant::ScrubKeepsPage) {
                            self.slab.get_mut(index);
                        }
                    }
                    // Only the next opening makes it anew, from summaries.
                    _ => {
                        self.scrub.repair.lost_pages += 1;
                        self.want_rebuild();
                    }
                }
            }
            Work::Blocks { .. } => {}
        }
    }

    /// Goes on with the repair, once everything was read.
    pub(super) fn advance_scrub_repair(&mut self, bufs: &mut impl Buffers) {
        if self.scrub.repair.writing && self.super_write.take_done() {
            self.scrub.repair.writing = false;
            self.again = true;
        }
        let Some(run) = &self.scrub.run else { return };
        if run.phase != Phase::Repair || run.ending.is_some() || self.scrub.is_reading() {
            return;
        }
        if let Checkpoint::Begun(epoch) = self.scrub.repair.checkpoint
            && self.meta.epoch >= epoch
        {
            self.scrub.repair.checkpoint = Checkpoint::None;
        }
        let repair = &mut self.scrub.repair;
        let tail_moved = self.journal.tail_durable >= repair.tail;
        let checkpointed = repair.checkpoint == Checkpoint::None;
        if checkpointed && tail_moved && repair.superblocks == 0 && !repair.writing {
            if let Some(report) = &mut self.scrub.report {
                let lost = |f: &ScrubFinding| {
                    repair.lost_pages > 0 && matches!(f.place, ScrubPlace::LeafPage { .. })
                };
                let findings = report.findings.iter_mut();
                for finding in findings.filter(|f| f.is_repairable() && !lost(f)) {
                    finding.repaired = true;
                }
                let repaired = repair.found - repair.lost_pages;
                report.repaired = repaired;
                self.counters.scrub_repairs += repaired;
            }
            return self.end_scrub(ScrubState::Finished);
        }
        let pages = self.compaction.as_ref().map_or(0, |c| c.chain.page);
        let counters = &self.counters;
        let done = counters.leaf_pages + counters.leaves_read + counters.flushes + pages;
        if std::mem::replace(&mut repair.done, done) != done {
            repair.patience = SCRUB_PATIENCE;
        }
        if repair.patience == 0 {
            return self.end_scrub(ScrubState::Finished);
        }
        if self.io_in_flight == 0 {
            repair.patience -= 1;
            self.again = true;
        }
        let free = self.super_write.is_idle() && self.compaction.is_none() && checkpointed;
        if repair.superblocks > 0 && !repair.writing && free {
            // The older slot first, then the one that held the newest: so all places are new,
            // and one good copy is there at any time.
            repair.superblocks -= 1;
            repair.writing = true;
            let superblock = self.superblock(0);
            self.begin_superblock(bufs, superblock);
        }
    }
}
