//! Copies of summaries, so that neither a block that can't be read nor the loss of a device takes away
//! what was written since the last checkpoint.
//!
//! What a segment holds that was sealed since the last checkpoint stands in its summary only. If that is
//! damaged, or gone with its device, nobody can tell which blocks were overwritten there, and not one block of the
//! pool could be trusted to be the newest. So such summaries are written twice: to the end of their
//! segment, and to a segment on the journal's device, without which nothing can be opened anyway.
//!
//! Invariants:
//! 1. A seal names a copy only if a flush covered it, as it did the summary.
//! 2. A segment of copies is free when a checkpoint counts whose leaf pages hold what all of its summaries
//!    say, or when it is in the way of a device that is to be removed. No recovery depends on a copy: it
//!    has the checksum that the seal names, or it is none.
//! 3. There are at most [`Engine::copy_segments`] of them, which users may not take, and the cleaner only where they are not
//!    to be had otherwise; when the last is begun, a checkpoint is due.
//!
//! Copies that were made before the pool was opened stay as long as any: the next opening may need them as this one
//! did. A checkpoint follows.

use crate::engine::Engine;
use crate::format::record::SummaryCopy;
use crate::limits::{CHECKPOINT_LOG_BYTES_MAX, CHECKPOINT_LOG_BYTES_MIN, COPIES_SEGMENTS_MIN};
use crate::segment::{SealStage, SegmentState};
use crate::token::Token;
use flagstone_block::{BLOCK_BITS, Buffer, DeviceCommand};
use std::cell::Cell;
use std::collections::VecDeque;

/// A summary that was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) of: u32,
    pub(crate) generation: u64,
    pub(crate) place: SummaryCopy,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct SummaryCopies {
    /// Oldest first; the last is being filled.
    segments: VecDeque<u32>,
    /// Its next slot.
    next: u32,
    /// What they hold.
    copied: Vec<Copied>,
    /// So many of the segments are of no use once the checkpoint under way counts.
    old: usize,
    wants_checkpoint: bool,
    /// How many there may be in a pool of so many segments: asked for at every turn, several times.
    most: Cell<(u32, u32)>,
}

impl SummaryCopies {
    /// Of a pool with summaries that no checkpoint covers, and copies of some.
    pub(crate) fn new(uncovered: bool, copied: Vec<Copied>) -> Self {
        let mut segments: VecDeque<u32> = VecDeque::new();
        for segment in copied.iter().map(|copied| copied.place.segment) {
            if !segments.contains(&segment) {
                segments.push_back(segment);
            }
        }
        let next = u32::MAX;
        Self { segments, next, copied, wants_checkpoint: uncovered, ..Self::default() }
    }

    /// Segments that hold copies.
    fn len(&self) -> u32 {
        self.segments.len() as u32
    }

    /// Where the summary of a segment was copied to, if it was.
    pub(crate) fn of(&self, segment: u32, generation: u64) -> Option<SummaryCopy> {
        let is_it = |copied: &&Copied| (copied.of, copied.generation) == (segment, generation);
        self.copied.iter().rev().find(is_it).map(|copied| copied.place)
    }

    /// Forgets a copy that is damaged: no seal names it any more.
    pub(crate) fn lose(&mut self, lost: Copied) {
        self.copied.retain(|copied| *copied != lost);
    }

    /// Forgets a segment of copies.
    fn forget(&mut self, at: usize) -> Option<u32> {
        let segment = self.segments.remove(at)?;
        self.copied.retain(|copied| copied.place.segment != segment);
        self.old -= usize::from(at < self.old);
        if at == self.segments.len() {
            // Nothing of the one that is last now is left.
            self.next = u32::MAX;
        }
        Some(segment)
    }
}

impl Engine {
    /// The copies of summaries of segments that are sealed, as they are now.
    pub(crate) fn counted_copies(&self) -> impl Iterator<Item = Copied> + '_ {
        self.summary_copies.copied.iter().copied().filter(|copied| {
            let row = self.segs.row(copied.of);
            (row.state, row.generation) == (SegmentState::Sealed, copied.generation)
        })
    }

    /// Whether a checkpoint should make copies unnecessary.
    pub(crate) fn copies_want_checkpoint(&self) -> bool {
        self.summary_copies.wants_checkpoint && self.copy_segments() > 0
    }

    /// Segments that copies take at most: none in a pool so small that it can't
    /// spare any; otherwise what the log between two checkpoints takes, one more for what is sealed while
    /// a checkpoint is under way, and one for what was being sealed when it began.
    pub(crate) fn copy_segments(&self) -> u32 {
        let (capacity, known) = self.summary_copies.most.get();
        if capacity == self.geo.capacity {
            debug_assert_eq!(known, self.count_copy_segments());
            return known;
        }
        let most = self.count_copy_segments();
        self.summary_copies.most.set((self.geo.capacity, most));
        most
    }

    fn count_copy_segments(&self) -> u32 {
        if self.geo.capacity < COPIES_SEGMENTS_MIN {
            return 0;
        }
        let bytes = u64::from(self.geo.shape.blocks) << BLOCK_BITS;
        let (least, most) = (CHECKPOINT_LOG_BYTES_MIN / bytes, CHECKPOINT_LOG_BYTES_MAX / bytes);
        let capacity = u64::from(self.geo.capacity);
        let log = (capacity / 8).clamp(least.min(capacity / 4), most);
        (log / u64::from(self.copy_slots())) as u32 + 2
    }

    /// Those of them that are still to be taken.
    pub(crate) fn copy_segments_left(&self) -> u32 {
        self.copy_segments().saturating_sub(self.summary_copies.len())
    }

    /// Those that are taken.
    pub(crate) fn copy_segments_taken(&self) -> u32 {
        self.summary_copies.len()
    }

    fn copy_slots(&self) -> u32 {
        (self.geo.shape.blocks / self.geo.shape.summary_blocks()).min(1 << 8)
    }

    /// Writes the summary of a segment that is being sealed, and a copy if it is to have one; returns
    /// the number of writes.
    pub(crate) fn write_summary(&mut self, segment: u32, generation: u64, summary: Buffer) -> u8 {
        let shape = self.geo.shape;
        let buffer = summary.part(0, shape.summary_blocks());
        let mut places = [Some(self.geo.segment_offset(segment, shape.data_blocks)), None];
        if let Some(place) = self.take_copy_slot() {
            places[1] = Some(self.geo.copy_offset(place));
            self.summary_copies.copied.push(Copied { of: segment, generation, place });
        }
        let mut writes = 0;
        for offset in places.into_iter().flatten() {
            self.flush.dirty(self.now_ns, buffer.len() as u64);
            self.emit(Token::Summary(segment), DeviceCommand::Write { offset, buffer });
            writes += 1;
        }
        writes
    }

    fn take_copy_slot(&mut self) -> Option<SummaryCopy> {
        let (most, primary) = (self.copy_segments(), self.geo.journal.device as usize);
        if most == 0 {
            return None;
        }
        let slots = self.copy_slots();
        if self.summary_copies.segments.is_empty() || self.summary_copies.next >= slots {
            if self.summary_copies.len() >= most {
                self.summary_copies.wants_checkpoint = true;
                return None;
            }
            // What the cleaner needs comes first: a full pool may have been made without copies.
            let others = self.reserve() - self.copy_segments_left() + self.cleaner_reserve();
            if self.segs.free_all() <= others {
                return None;
            }
            let taken = self.segs.take(SegmentState::Copies)?;
            if self.geo.device_of(taken) != Some(primary) {
                // It would be no better there.
                self.segs.release(taken);
                return None;
            }
            self.summary_copies.segments.push_back(taken);
            self.summary_copies.next = 0;
            self.summary_copies.wants_checkpoint |= self.summary_copies.len() == most;
        }
        let slot = self.summary_copies.next as u8;
        self.summary_copies.next += 1;
        let segment = *self.summary_copies.segments.back()?;
        Some(SummaryCopy { segment, slot })
    }

    /// The first segment of copies that holds one of a summary whose seal is not retired, not switched to, or too late
    /// for a checkpoint that begins now.
    fn first_pending_copy(&self) -> usize {
        let pending = |copied: &&Copied| {
            let is_sealing = self.sealing.iter().any(|sealing| sealing.segment == copied.of);
            let row = self.segs.row(copied.of);
            let late = row.in_map_epoch > self.meta.epoch + 1;
            (is_sealing || self.is_switching(copied.of) || late)
                && row.generation == copied.generation
        };
        let segments = &self.summary_copies.segments;
        let place = |copied: &Copied| segments.iter().position(|s| *s == copied.place.segment);
        let pending = self.summary_copies.copied.iter().filter(pending);
        pending.filter_map(place).min().unwrap_or(segments.len())
    }

    /// A checkpoint begins: its leaf pages will hold what all summaries say whose seal is retired.
    pub(crate) fn begin_summary_copies(&mut self) {
        let (old, slots) = (self.first_pending_copy(), self.copy_slots());
        let copies = &mut self.summary_copies;
        copies.wants_checkpoint = false;
        // The one being filled goes on being filled.
        let full = copies.segments.len() - usize::from(copies.next < slots);
        copies.old = old.min(full);
    }

    /// It counts.
    pub(crate) fn end_summary_copies(&mut self) {
        while self.summary_copies.old > 0 {
            let Some(segment) = self.summary_copies.forget(0) else { return };
            self.segs.release(segment);
        }
    }

    /// Whether summaries may be lost with a device that failed, until the checkpoint that is due or under way counts.
    fn copies_are_needed(&self) -> bool {
        let failed = self.geo.extents.iter().any(|extent| extent.failed);
        let due = self.failures_want_checkpoint() && !self.is_counting_stuck();
        failed && (due || self.compaction.is_some())
    }

    /// Whether there are more of them than there may be: they are let go of, now or after the next checkpoint.
    pub(crate) fn are_copies_leaving(&self) -> bool {
        self.summary_copies.len() > self.copy_segments()
    }

    /// Whether there are more of them than the pool has room for, which will soon be let go of.
    pub(crate) fn are_copies_in_the_way(&self) -> bool {
        self.are_copies_leaving() && self.copies_are_needed()
    }

    /// Lets go of copies that are in the way of a device that is to be removed, or that a pool which has
    /// become small has no room for.
    pub(crate) fn advance_summary_copies(&mut self) {
        if self.summary_copies.segments.is_empty() || self.scrub.is_reading_copies() {
            return;
        }
        let most = self.copy_segments() as usize;
        let too_many = self.summary_copies.segments.len() > most;
        if !too_many && !self.segs.any_leaving() {
            return;
        }
        let needed = self.copies_are_needed();
        for at in (0..self.summary_copies.segments.len()).rev() {
            let segment = self.summary_copies.segments[at];
            let too_many = self.summary_copies.segments.len() > most && !needed;
            if (too_many || self.segs.is_leaving(segment)) && !self.is_copying_to(segment) {
                self.summary_copies.forget(at);
                self.segs.release(segment);
                self.summary_copies.wants_checkpoint |= most > 0;
                self.again = true;
            }
        }
    }

    /// Whether a copy is being written to this segment.
    fn is_copying_to(&self, segment: u32) -> bool {
        self.sealing.iter().any(|sealing| {
            let generation = self.segs.row(sealing.segment).generation;
            let copy = self.summary_copies.of(sealing.segment, generation);
            sealing.stage == SealStage::Writing && copy.is_some_and(|copy| copy.segment == segment)
        })
    }

    /// Summaries have no copies, or none that help: the journal lies elsewhere now, or an opening has sealed something.
    pub(crate) fn want_copies(&mut self) {
        self.summary_copies.wants_checkpoint |= self.copy_segments() > 0;
    }
}
