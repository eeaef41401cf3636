//! Which segment to clean.

use super::idle::Need;
use crate::engine::Engine;
use crate::limits::CLEAN_SCAN;
use crate::segment::SegmentState;

/// What a search for a victim came to.
pub(super) enum Search {
    Found(u32),
    /// Not all of the table was looked at yet.
    GoOn,
    Nothing,
}

impl Engine {
    /// The segment that pays best, by cost and benefit: `(1 - u) * sqrt(age) / (1 + u)` with `u`
    /// the live part, after Rosenblum and Ousterhout, "The Design and Implementation of a
    /// Log-Structured File System", 1992. A large table is searched window by window, one per
    /// call.
    ///
    /// The age is the segment's, in segments written since, and not that of its blocks: those
    /// that were moved are old in a segment that has not had time to decay. Under overwrites of
    /// all blocks alike the blocks' age costs up to a third more moves, and the age without its
    /// root up to a fifth under skewed ones.
    pub(super) fn choose_victim(&mut self, need: Need) -> Search {
        let segments = self.segs.len();
        let data_blocks = self.geo.shape.data_blocks;
        // Without a segment's worth of garbage in all, moving would not set one free.
        let pressed = need == Need::Pressed;
        let gain = self.segs.can_gain(data_blocks);
        // One that could not be read is taken again when segments run out and there is nothing
        // else; not before the copies of its other blocks count.
        let last_resort = pressed && !self.has_outputs() && self.segs.holding_bad() > 0;
        if self.cleaner.searched == 0 {
            self.cleaner.searched_from = self.segs.events();
            self.cleaner.last_resort = None;
        }
        if !gain && !last_resort {
            self.cleaner.searched = 0;
            return Search::Nothing;
        }
        let most = self.victim_live_max(need);
        let window = CLEAN_SCAN.min(segments - self.cleaner.searched);
        let mut best: Option<(f64, u32)> = None;
        for k in 0..window {
            let segment = (self.cleaner.cursor + k) % segments;
            let row = self.segs.row(segment);
            if last_resort && self.segs.holds_bad(segment) && !self.segs.gains_nothing(segment) {
                self.cleaner.last_resort = Some(segment);
            }
            // On a device that is being emptied, or that failed, nothing is gained.
            let gains = gain && !self.segs.gains_nothing(segment);
            let fit = gains && !row.left_alone && row.live <= most;
            if row.state != SegmentState::Sealed || !fit {
                continue;
            }
            let age = self.next_generation.saturating_sub(row.generation) as f64;
            let dead = f64::from(data_blocks - row.live);
            let score = dead * age.sqrt() / f64::from(data_blocks + row.live);
            if best.is_none_or(|(other, _)| score > other) {
                best = Some((score, segment));
            }
        }
        self.cleaner.cursor = (self.cleaner.cursor + window) % segments;
        self.cleaner.searched += window;
        if let Some((_, segment)) = best {
            self.cleaner.searched = 0;
            return Search::Found(segment);
        }
        if self.cleaner.searched < segments {
            return Search::GoOn;
        }
        self.cleaner.searched = 0;
        match self.cleaner.last_resort.take() {
            Some(segment) if last_resort && self.segs.holds_bad(segment) => Search::Found(segment),
            _ => Search::Nothing,
        }
    }

    /// Learns from a victim how long short-lived user data lives; from any user data if that is
    /// not known at all.
    pub(super) fn learn_lifetime(&mut self, segment: u32) {
        let row = self.segs.row(segment);
        if row.hot || (row.class == 0 && self.cleaner.lifetime == 0) {
            let lived = self.applied_lsn.saturating_sub(row.mean_lsn);
            let mean = &mut self.cleaner.lifetime;
            *mean = if *mean == 0 { lived } else { *mean - *mean / 16 + lived / 16 };
        }
    }

    /// The class of a block by its age, after SepBIT (Wang et al., "Separating Data via Block
    /// Invalidation Time Inference for Write Amplification Reduction in Log-Structured Storage",
    /// FAST 2022): what has lived long will live long.
    pub(super) fn class_of(&self, lsn: u64) -> usize {
        let age = self.applied_lsn.saturating_sub(lsn);
        let lifetime = self.cleaner.lifetime.max(1);
        let class = match age / lifetime {
            0..4 => 0,
            4..16 => 1,
            _ => 2,
        };
        class.min(self.clean_classes() - 1)
    }
}
