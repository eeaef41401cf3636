//! Pacing: how writers and the cleaner share the device while segments are few.
//!
//! Each block of a victim that the cleaner has read or copied *earns* writers a part of what
//! emptying the victim gains; each block that is written spends it, and a write for which nothing is
//! left waits for the next. How large the part is depends on what is left to writers: all of it at
//! half of what the cleaner tries to keep, more above, less below. And the cleaner reads the more at a
//! time the less is left. So the shorter segments run, the more of the device is the
//! cleaner's, and writers become slower little by little instead of going on at full speed until
//! there is no segment, and then waiting for a whole one.
//!
//! Invariants:
//! 1. It stops nobody for good: a write waits only while the cleaner empties a victim because segments
//!    are few, something is under way whose end brings the next try, and the cleaner got on lately. However little
//!    victims gain, [`PACE_RATIO_MAX`] of them earn a block.
//! 2. It decides when, never whether: what a pool has room for is a matter of [`crate::space`].

use super::idle::Need;
use crate::engine::Engine;
use crate::error::SubmitError;
use crate::limits::{
    CLEAN_READS, PACE_BLOCKS_MIN, PACE_OWED_SEGMENTS, PACE_RATIO_MAX, PACE_WAIT_NS,
};
use crate::plant::Plant;

/// Parts of a block that are counted: what a single block of a victim with one dead block earns at the least is
/// many of them, so that nothing is lost by rounding.
const PARTS: u64 = 1 << 24;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// What writers may take, in parts of a block.
    credit: i64,
    /// What one block read or copied gains, in parts of a block.
    gain: u64,
    /// When the cleaner got on last.
    earned_ns: u64,
}

impl Engine {
    /// Blocks that are left to writers before they have to wait for a segment, and how many the
    /// cleaner tries to keep.
    fn left_to_writers(&self) -> (u64, u64) {
        let data_blocks = u64::from(self.geo.shape.data_blocks);
        let floor = self.floor();
        let free = self.segs.free() + self.segs.dying();
        let open = self.open.iter().flatten().map(|open| data_blocks - u64::from(open.next));
        let segments = u64::from(free.saturating_sub(floor));
        let kept = u64::from(self.clean_below() - floor);
        (segments * data_blocks + open.sum::<u64>(), kept * data_blocks)
    }

    /// What writers may take for a block that the cleaner gains, in parts.
    fn writers_part(&self) -> u64 {
        let (left, kept) = self.left_to_writers();
        let most = PARTS * PACE_RATIO_MAX;
        if left >= kept {
            return most;
        }
        (PARTS * left / (kept - left)).clamp(PARTS / PACE_RATIO_MAX, most)
    }

    /// Reads of a victim at a time: what others ask of the device has to wait for them, too.
    pub(super) fn clean_reads(&self) -> usize {
        if self.cleaning_need() != Need::Due {
            return CLEAN_READS;
        }
        let (left, kept) = self.left_to_writers();
        match 4 * left / kept.max(1) {
            0 => CLEAN_READS,
            1 | 2 => CLEAN_READS / 2,
            _ => 1,
        }
    }

    /// A victim is about to be read. What is live in it counts, not what is listed: of leaves that are not in
    /// memory everything is, since nobody knows yet.
    pub(super) fn pace_victim(&mut self, segment: u32) {
        let live = u64::from(self.segs.row(segment).live).max(1);
        let dead = u64::from(self.geo.shape.data_blocks).saturating_sub(live).max(1);
        // Each is read, and copied.
        self.cleaner.pace.gain = (dead * PARTS).div_ceil(2 * live);
        self.cleaner.pace.earned_ns = self.now_ns;
    }

    /// The cleaner has read or copied `blocks` blocks of its victim.
    pub(super) fn earn(&mut self, blocks: u32) {
        let gained = u128::from(blocks) * u128::from(self.cleaner.pace.gain);
        let earned = gained * u128::from(self.writers_part()) / u128::from(PARTS);
        let most = u64::from(self.geo.shape.data_blocks / 4).max(PACE_BLOCKS_MIN) * PARTS;
        let pace = &mut self.cleaner.pace;
        pace.credit = (pace.credit + earned as i64).min(most as i64);
        pace.earned_ns = self.now_ns;
    }

    /// Victims with little that is live fill outputs slowly, and are free only when those are sealed:
    /// if many wait for that while segments are few, outputs are sealed as full as they are.
    pub(super) fn close_outputs_if_owed(&mut self) {
        if self.cleaner.emptied < PACE_OWED_SEGMENTS {
            return;
        }
        let (left, kept) = self.left_to_writers();
        if left < kept / 4 && matches!(self.cleaning_need(), Need::Due | Need::Pressed) {
            for o in self.cleaner.filling.into_iter().flatten() {
                self.close_output(o);
            }
        }
    }

    /// How many of `blocks` blocks may be written now.
    pub(crate) fn pace(&mut self, blocks: u32) -> Result<u32, SubmitError> {
        let for_good = self.planted.has(Plant::PaceForGood);
        if self.cleaner.victim.is_none() && !for_good {
            return Ok(blocks);
        }
        let parts = PARTS as i64;
        if self.cleaner.pace.credit >= parts {
            return Ok(blocks.min((self.cleaner.pace.credit / parts) as u32));
        }
        if !(self.is_pacing() || for_good && self.is_pressed()) {
            return Ok(blocks);
        }
        self.counters.writes_paced += 1;
        Err(SubmitError::Busy)
    }

    /// Whether what writers may write is what the cleaner earns them.
    pub(crate) fn is_pacing(&self) -> bool {
        self.cleaner.victim.is_some()
            && self.io_in_flight > 0
            && self.now_ns.saturating_sub(self.cleaner.pace.earned_ns) < PACE_WAIT_NS
            && matches!(self.cleaning_need(), Need::Due | Need::Pressed)
    }

    /// Blocks are being written.
    pub(crate) fn spend(&mut self, blocks: u32) {
        let least = -((PACE_BLOCKS_MIN * PARTS) as i64);
        let pace = &mut self.cleaner.pace;
        pace.credit = (pace.credit - i64::from(blocks) * PARTS as i64).max(least);
    }
}
