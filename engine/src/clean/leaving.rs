//! Victims on devices that are being emptied: every sealed segment, however full.
//!
//! These gain no segment, so they come after those that are cleaned because segments run out, and
//! none is taken while users would get none for it.

use super::OutputStage;
use crate::engine::Engine;
use crate::limits::{CLEAN_SCAN, CLEAN_SUMMARIES};
use crate::segment::SegmentState;

/// Where the search for the next one is.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    cursor: u32,
    searched: u32,
    last_resort: Option<u32>,
    /// There is a last resort, which waits for all outputs.
    waits: bool,
    searched_from: u64,
    /// A search found nothing when the segment table had seen this many events.
    exhausted_at: Option<u64>,
    /// It is still to be said what can't be moved, when the last seals are durable.
    owed: bool,
}

impl Engine {
    /// Takes a victim on a device that is being emptied, if it may be now.
    pub(super) fn begin_leaving(&mut self) {
        if self.cleaner.victim.is_some()
            || !self.segs.any_leaving()
            || self.opening
            || self.is_counting()
            || self.stop.is_begun()
            || self.summaries.len() <= CLEAN_SUMMARIES
            || self.segs.free() <= self.floor()
        {
            return;
        }
        if self.cleaner.leaving.exhausted_at == Some(self.segs.events()) {
            if self.cleaner.leaving.owed && self.sealing.is_empty() && self.graves.is_empty() {
                self.end_leaving();
            }
            return;
        }
        if let Some(segment) = self.next_leaving() {
            self.take_victim(segment);
        } else if self.cleaner.leaving.searched > 0 {
            self.again = true;
        } else {
            self.cleaner.leaving.exhausted_at = Some(self.cleaner.leaving.searched_from);
            self.end_leaving();
        }
    }

    /// The devices have changed: what was given up, or found to be nothing, is worth another look.
    pub(crate) fn look_for_leaving(&mut self) {
        self.cleaner.leaving.exhausted_at = None;
    }

    /// The next segment to be emptied; none, and nothing `searched`, if there is none.
    fn next_leaving(&mut self) -> Option<u32> {
        let segments = self.segs.len();
        let events = self.segs.events();
        let leaving = &mut self.cleaner.leaving;
        if leaving.searched == 0 {
            (leaving.searched_from, leaving.last_resort) = (events, None);
        }
        let window = CLEAN_SCAN.min(segments - leaving.searched);
        for _ in 0..window {
            let segment = leaving.cursor % segments;
            leaving.cursor = (segment + 1) % segments;
            leaving.searched += 1;
            let row = self.segs.row(segment);
            let leaves = self.segs.is_closed(segment) && self.segs.is_leaving(segment);
            if row.state != SegmentState::Sealed || !leaves {
                continue;
            }
            if !row.left_alone {
                leaving.searched = 0;
                return Some(segment);
            }
            if self.segs.holds_bad(segment) {
                leaving.last_resort = Some(segment);
            }
        }
        if leaving.searched < segments {
            return None;
        }
        leaving.searched = 0;
        let last_resort = leaving.last_resort.take();
        // Not before the copies of its other blocks count.
        let ready = last_resort.filter(|_| !self.has_outputs());
        self.cleaner.leaving.waits = last_resort.is_some() && ready.is_none();
        ready
    }

    /// Nothing more is to be copied: what was, must count. Outputs with nothing from those devices are left to
    /// be filled: sealed as they are they would be victims again, for ever.
    fn end_leaving(&mut self) {
        self.cleaner.leaving.owed = false;
        let left = |device: usize| self.segs.leaves(device) && self.segs.sealed_on(device) > 0;
        if !self.geo.devices().any(left) {
            return;
        }
        let waits = self.cleaner.leaving.waits;
        for o in self.cleaner.filling.into_iter().flatten() {
            if waits || self.holds_leaving(o as usize) {
                self.close_output(o);
                self.again = true;
            }
        }
        let copied = (0..self.cleaner.outputs.len()).any(|o| self.holds_leaving(o));
        let over = !waits && !copied && self.sealing.is_empty() && self.graves.is_empty();
        self.cleaner.leaving.owed = !over;
        if over {
            self.note_stuck();
        }
    }

    /// Whether an output has blocks from a device that is being emptied.
    fn holds_leaving(&self, o: usize) -> bool {
        let output = &self.cleaner.outputs[o];
        output.stage != OutputStage::Idle
            && output.targets.iter().any(|target| self.segs.is_closed(target.segment))
    }

    /// Outputs that are being filled on a device that takes nothing any more are ended.
    pub(crate) fn close_leaving_outputs(&mut self) {
        for o in self.cleaner.filling.into_iter().flatten() {
            let output = &self.cleaner.outputs[o as usize];
            if output.stage == OutputStage::Filling && self.segs.is_closed(output.segment) {
                self.close_output(o);
                self.again = true;
            }
        }
    }
}
