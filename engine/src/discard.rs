//! Discards on the device: the space of free segments goes back to a thin disk or a sparse file, and
//! a flash disk need not copy what is of no use.
//!
//! Invariants:
//! 1. Only free segments are discarded: their SEGMENT_FREE record, or the superblock that no longer
//!    names them, is durable, so no recovery looks at them. A discard is to others as an overwrite.
//! 2. Nobody takes a segment while its discard is under way ([`SegmentTable::begin_discard`]); one is
//!    at a time.
//! 3. Discards stand back: none while segments are scarce, none of a segment that was free for less
//!    than [`DISCARD_DELAY_NS`], no more than [`DISCARD_BYTES_PER_SECOND`].
//! 4. A device that fails one is asked for none again until the pool is reopened; the pool does not
//!    suffer otherwise.
//! 5. Without free segments that wait for it there is no timer.
//!
//! What was free when the pool was opened is not discarded: nobody knows whether it was before.
//!
//! [`SegmentTable::begin_discard`]: crate::segment::SegmentTable::begin_discard

use crate::engine::Engine;
use crate::limits::{DISCARD_BYTES_PER_SECOND, DISCARD_DELAY_NS};
use crate::plant::Plant;
use crate::token::Token;
use flagstone_block::{BLOCK_BITS, DeviceCommand, DeviceError};

#[derive(Debug, Default)]
pub(crate) struct Discards {
    on: bool,
    under_way: bool,
    /// Whether the segment under discard was taken off the free list.
    taken: bool,
    /// Segments at the head of the queue that have waited long enough.
    ripe: u32,
    /// When those that wait now have waited long enough, if any do.
    ripe_at_ns: Option<u64>,
    /// When the next may begin.
    next_ns: u64,
    /// What a planted bug has discarded last.
    planted: Option<u32>,
}

impl Discards {
    /// Whether the device is at it.
    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way
    }
}

impl Engine {
    /// Whether segments that become free from now on are discarded on the device; they are not
    /// unless told. Ends by itself if the device can't do it.
    pub fn set_device_discard(&mut self, on: bool) {
        self.discards.on = on;
        self.segs.set_discards(on);
        (self.discards.ripe, self.discards.ripe_at_ns) = (0, None);
    }

    /// Whether free segments are discarded on the device.
    #[must_use]
    pub fn discards(&self) -> bool {
        self.discards.on
    }

    pub(crate) fn advance_discards(&mut self) {
        if !self.discards.on || self.opening || self.stop.is_begun() {
            (self.discards.ripe, self.discards.ripe_at_ns) = (0, None);
            return;
        }
        if self.planted.has(Plant::DiscardTooSoon)
            && !self.discards.under_way
            && let Some(segment) = self.segs.newest_dead()
            && self.discards.planted != Some(segment)
        {
            self.discards.planted = Some(segment);
            return self.emit_discard(segment);
        }
        // Those that are left will be taken soon.
        let scarce = self.segs.free() <= 2 * self.clean_below();
        if scarce || self.segs.stale() == 0 {
            (self.discards.ripe, self.discards.ripe_at_ns) = (0, None);
            return;
        }
        match self.discards.ripe_at_ns {
            None => {
                self.segs.ripen();
                self.discards.ripe_at_ns = Some(self.now_ns + DISCARD_DELAY_NS);
            }
            Some(at) if at <= self.now_ns => {
                self.discards.ripe = self.segs.ripen();
                self.discards.ripe_at_ns = Some(self.now_ns + DISCARD_DELAY_NS);
            }
            Some(_) => {}
        }
        self.discards.ripe = self.discards.ripe.min(self.segs.stale());
        if self.planted.has(Plant::DiscardTaken)
            && self.discards.ripe > 0
            && !self.discards.under_way
            && let Some(segment) = self.open.iter().flatten().next().map(|open| open.segment)
            && self.discards.planted != Some(segment)
        {
            self.discards.planted = Some(segment);
            return self.emit_discard(segment);
        }
        let may = self.discards.ripe > 0 && self.discards.next_ns <= self.now_ns;
        if may
            && !self.discards.under_way
            && let Some(segment) = self.segs.begin_discard()
        {
            self.discards.ripe -= 1;
            self.discards.taken = true;
            self.emit_discard(segment);
        }
    }

    fn emit_discard(&mut self, segment: u32) {
        let bytes = u64::from(self.geo.shape.blocks) << BLOCK_BITS;
        let pause_ns = u128::from(bytes) * 1_000_000_000 / u128::from(DISCARD_BYTES_PER_SECOND);
        self.discards.under_way = true;
        self.discards.next_ns = self.now_ns + pause_ns as u64;
        let offset = self.geo.segment_offset(segment, 0);
        self.emit(Token::Discard(segment), DeviceCommand::Discard { offset, bytes });
    }

    pub(crate) fn discard_done(&mut self, segment: u32, result: Result<(), DeviceError>) {
        self.discards.under_way = false;
        if std::mem::take(&mut self.discards.taken) {
            self.segs.discarded(segment);
        }
        match result {
            Ok(()) => self.counters.segments_discarded += 1,
            Err(_) => self.set_device_discard(false),
        }
    }

    /// When a discard may be due.
    pub(crate) fn discard_timer_ns(&self) -> Option<u64> {
        let Discards { on, under_way, ripe, ripe_at_ns, next_ns, .. } = self.discards;
        let next = (ripe > 0 && !under_way).then_some(next_ns);
        next.into_iter().chain(ripe_at_ns).min().filter(|_| on)
    }
}
