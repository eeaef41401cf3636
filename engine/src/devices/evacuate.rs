//! Emptying devices: what keeps a device that takes nothing any more from being removed is moved.
//!
//! Data is the cleaner's (see [`Engine::begin_leaving`]), metadata a checkpoint's; open segments are
//! sealed, and the journal goes on elsewhere. All of that would happen in time anyway, so an
//! evacuation needs no state of its own but the mark in the superblock.

use super::change::Kind;
use crate::engine::Engine;
use crate::limits::USER_STREAMS;
use crate::plant::Plant;
use flagstone_block::{Buffers, DEVICES};
use std::collections::VecDeque;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Evacuation {
    /// Devices that are no more, for [`Engine::take_removed`].
    removed: VecDeque<usize>,
    /// Metadata segments on devices that take nothing when the last checkpoint began; `None` if one
    /// more such device has come since.
    before: Option<u32>,
    /// What was left on each device can't be moved.
    stuck: [bool; DEVICES],
}

impl Evacuation {
    pub(super) fn removed(&mut self, device: usize) {
        self.removed.push_back(device);
    }

    pub(super) fn has_removed(&self) -> bool {
        !self.removed.is_empty()
    }

    pub(super) fn take_removed(&mut self) -> Option<usize> {
        self.removed.pop_front()
    }

    pub(super) fn is_stuck(&self, device: usize) -> bool {
        self.stuck[device]
    }

    pub(super) fn changed(&mut self) {
        (self.before, self.stuck) = (None, [false; DEVICES]);
    }
}

impl Engine {
    /// Whether a checkpoint is due to move metadata from devices that are being emptied.
    pub(crate) fn leaving_wants_checkpoint(&self) -> bool {
        let left = self.segs.meta_closed();
        if left == 0 || !self.graves.is_empty() || self.stop.is_begun() || self.is_counting() {
            return false;
        }
        // One that moved nothing can't be helped by another.
        self.evacuation.before.is_none_or(|before| left < before)
    }

    /// A checkpoint begins.
    pub(crate) fn leaving_checkpoint_begun(&mut self) {
        self.evacuation.before = self.segs.any_leaving().then(|| self.segs.meta_closed());
    }

    /// Deleted volumes are gone: what kept pages of their leaves in segments may be why the last checkpoint moved nothing.
    pub(crate) fn graves_are_empty(&mut self) {
        self.evacuation.before = None;
        // Metadata has become shorter.
        self.space.epoch += 1;
    }

    /// Does what only this module sees to, for devices that are being emptied.
    pub(crate) fn advance_evacuation(&mut self, bufs: &mut impl Buffers) {
        if self.opening || self.stop.is_begun() || !self.segs.any_leaving() {
            return;
        }
        // Until the others have what cleaner and metadata need, the cleaner goes on everywhere.
        while let Some(device) = self.segs.next_shunned()
            && self.segs.free() > self.floor()
        {
            self.segs.close(device);
            self.evacuation.changed();
            self.look_for_leaving();
        }
        for stream in 0..USER_STREAMS {
            let open = self.open[stream].as_ref();
            if open.is_some_and(|open| self.segs.is_closed(open.segment)) {
                self.seal_open(bufs, stream);
                self.again = true;
            }
        }
        self.close_leaving_outputs();
        // Each step towards being free waits for a flush, which need not wait for its time.
        let waits = self.segs.dead_waits_for().is_some_and(|lsn| lsn > self.flush.lsn_durable);
        if waits || self.segs.has_freeing(self.journal.retired) || self.has_written_seals() {
            self.flush.want();
        }
        if self.change.is_some() {
            return;
        }
        for device in self.geo.devices() {
            if !self.segs.leaves(device) {
                continue;
            }
            if self.journal_leaves(device) || self.remove_if_empty(device) {
                return;
            }
        }
    }

    fn has_written_seals(&self) -> bool {
        let written = |s: &crate::segment::Sealing| s.stage == crate::segment::SealStage::Written;
        self.is_quiet() && self.sealing.iter().any(written)
    }

    /// Whether no block of the journal that counts lies where it lay before it moved last.
    pub(super) fn journal_has_moved(&self) -> bool {
        let journal = self.geo.journal;
        journal.old == journal.device || self.journal.tail_durable >= journal.from
    }

    /// The journal block that the tail must reach so that a device can be removed.
    pub(crate) fn leaving_wants_tail(&self) -> Option<u64> {
        let leaving = self.segs.any_leaving() && !self.journal_has_moved();
        (leaving && !self.opening && !self.stop.is_begun()).then_some(self.geo.journal.from)
    }

    /// Moves the journal from a device; true if that has begun or must wait.
    fn journal_leaves(&mut self, device: usize) -> bool {
        if self.geo.journal.device as usize != device {
            return false;
        }
        if !self.journal_has_moved() {
            return true;
        }
        let open = self.geo.devices().filter(|&other| self.geo.extents[other].open);
        let Some(to) = open.max_by_key(|&other| self.geo.extents[other].segments) else {
            return false;
        };
        let mut geo = self.geo;
        (geo.journal.old, geo.journal.device) = (device as u32, to as u32);
        self.begin_change(None, to, Kind::Journal, geo);
        true
    }

    /// Removes a device that holds nothing any more; true if that has begun.
    fn remove_if_empty(&mut self, device: usize) -> bool {
        let extent = self.geo.extents[device];
        let early = self.planted.has(Plant::RemoveTooSoon)
            && self.segs.absent(device) + self.segs.dying_on(device) == extent.segments;
        let empty = self.segs.absent(device) == extent.segments || early;
        let journal = self.geo.journal;
        let old = journal.old as usize == device && !self.journal_has_moved();
        if !empty || old || self.discards.is_under_way() || !self.scrub.is_idle() {
            return false;
        }
        let mut geo = self.geo.without(device);
        if journal.old as usize == device {
            geo.journal.old = journal.device;
        }
        self.begin_change(None, device, Kind::Remove, geo);
        true
    }

    /// The cleaner has found nothing more to move on devices that are being emptied, and nothing is
    /// under way: what is still there can't be read.
    pub(crate) fn note_stuck(&mut self) {
        for device in self.geo.devices().filter(|&device| self.geo.extents[device].leaving) {
            self.evacuation.stuck[device] = self.segs.sealed_on(device) > 0;
        }
    }
}
