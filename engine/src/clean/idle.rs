//! When the cleaner works: because segments run out, or because nobody else does.
//!
//! After [`IDLE_CLEAN_NS`] without a request the cleaner works ahead on victims that pay well, so that
//! a burst finds free segments, and what was discarded comes back as whole ones. A request keeps it
//! from taking another victim. Invariants:
//! 1. It comes to rest, unless part of the map can't be read (see docs/known-faults.md): each victim
//!    gives at least half a segment back. Outputs that are not full are sealed only if the victims
//!    that they empty are more than they are, so each round of sealing gains a segment.
//! 2. At rest it asks for no timer. There is one only between the last request and the moment from
//!    which on nobody is disturbed, and only if something has died since the last search.

use super::OutputStage;
use crate::engine::Engine;
use crate::limits::{CLEAN_AHEAD_SEGMENTS, IDLE_CLEAN_NS, IDLE_FREE_DIVISOR};

/// How much the pool needs another free segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Nothing,
    /// There is time for what will have to be done one day.
    Idle,
    /// Few segments are left.
    Due,
    /// User writes have to wait.
    Pressed,
}

impl Engine {
    /// Free segments below which the cleaner works: as few as will do, since garbage that is
    /// left alone for longer costs less to collect.
    pub(crate) fn clean_below(&self) -> u32 {
        self.floor() + CLEAN_AHEAD_SEGMENTS.max(self.geo.capacity / 128).min(self.geo.capacity / 8)
    }

    /// Whether another victim should be taken, and why.
    pub(super) fn cleaning_need(&self) -> Need {
        // A deleted volume gives its space back by itself; and what is live must be known.
        if self.opening || self.is_counting() || !self.graves.is_empty() {
            return Need::Nothing;
        }
        let free = self.segs.free() + self.segs.dying();
        if self.is_pressed() {
            Need::Pressed
        } else if free < self.clean_below() {
            Need::Due
        } else if self.now_ns >= self.idle_from_ns()
            && !self.stop.is_begun()
            // What is moved from a device that is being emptied is sealed before it fills an output.
            && !self.segs.any_leaving()
        {
            Need::Idle
        } else {
            Need::Nothing
        }
    }

    /// Live blocks that a victim may have. One that is nearly full of them only makes sense when
    /// nothing else is left; and the more segments are free, the more one that need not be
    /// cleaned yet must pay.
    pub(super) fn victim_live_max(&self, need: Need) -> u32 {
        let data_blocks = self.geo.shape.data_blocks;
        match need {
            Need::Pressed => data_blocks - 1,
            Need::Due | Need::Nothing => data_blocks * 31 / 32,
            Need::Idle if self.segs.free() < self.geo.capacity / IDLE_FREE_DIVISOR => {
                data_blocks / 2
            }
            Need::Idle => data_blocks / 4,
        }
    }

    /// Notes, at the beginning of a turn, whether requests came since the last.
    pub(crate) fn note_requests(&mut self) {
        if std::mem::take(&mut self.cleaner.requested) {
            self.cleaner.requested_ns = self.now_ns;
        }
    }

    /// A request came.
    pub(crate) fn disturb(&mut self) {
        self.cleaner.requested = true;
    }

    fn idle_from_ns(&self) -> u64 {
        self.cleaner.requested_ns.saturating_add(IDLE_CLEAN_NS)
    }

    /// When the cleaner has time to look for something to do. After that its own work keeps it
    /// going.
    pub(crate) fn idle_timer_ns(&self) -> Option<u64> {
        let at = self.idle_from_ns();
        let searched = |(events, _)| events == self.segs.events();
        let hope = self.segs.can_gain(self.geo.shape.data_blocks)
            && !self.segs.any_leaving()
            && !self.cleaner.exhausted_at.is_some_and(searched);
        (at > self.now_ns && hope && !self.opening && !self.stop.is_begun()).then_some(at)
    }

    /// Nothing more pays: what was moved so far is sealed if that sets more segments free than it
    /// takes. Not all victims were taken for want of anything else to do: such may have been nearly full.
    pub(super) fn close_outputs_if_idle(&mut self) {
        let outputs = self.cleaner.filling.iter().flatten().count();
        if self.cleaner.emptied as usize > outputs {
            for o in self.cleaner.filling.into_iter().flatten() {
                self.close_output(o);
                self.again = true;
            }
        }
    }

    /// Nothing is left to clean, and somebody waits: what was moved so far must do.
    pub(super) fn close_outputs_if_starved(&mut self) {
        if self.cleaner.starved && self.is_pressed() {
            for o in self.cleaner.filling.into_iter().flatten() {
                self.close_output(o);
                self.again = true;
            }
        }
    }

    /// Whether a seal of moved blocks is worth a flush of its own.
    pub(super) fn is_seal_urgent(&self) -> bool {
        self.segs.any_leaving() || matches!(self.cleaning_need(), Need::Due | Need::Pressed)
    }

    /// Whether outputs are being sealed or switched, or may be soon.
    pub(super) fn has_outputs(&self) -> bool {
        self.cleaner.outputs.iter().any(|output| output.stage != OutputStage::Idle)
    }
}
