//! Flushes: one device flush serves everyone who waited when it was issued.
//!
//! A flush covers the journal blocks that were *retired* when it was issued: those, their data,
//! summaries and metadata pages had completed by then.
//!
//! Of several devices, every one is flushed that was written to since its last flush was issued, or
//! had writes under way then; the flush has ended when all of them have. So a device that nobody
//! writes to is left in peace.
//!
//! While the pool parts with a device that failed (see `devices/failed.rs`), flushes ask the others only, for the
//! superblock's sake, and cover nothing else.

use crate::engine::Engine;
use crate::error::{IoFault, SubmitError};
use crate::limits::{FLUSH_WAITERS, SELF_FLUSH_BYTES, SELF_FLUSH_NS};
use crate::meta_chain::MetaChain;
use crate::plant::Plant;
use crate::segment::SealStage;
use crate::token::Token;
use flagstone_block::{DEVICES, DeviceCommand, Tag, VolumeId};
use std::collections::VecDeque;

/// What a flush under way will make durable.
#[derive(Clone, Copy, Debug)]
struct Covers {
    /// The pool parts with a device that is not asked: others use this flush, but it makes nothing of what
    /// was answered durable.
    partial: bool,
    jseq: u64,
    lsn: u64,
    tail: u64,
    meta: ChainPages,
    compaction: Option<ChainPages>,
}

/// Pages of one metadata chain: chains may be switched while a flush is under way.
#[derive(Clone, Copy, Debug)]
struct ChainPages {
    epoch: u64,
    pages: u64,
}

impl ChainPages {
    fn written(chain: &MetaChain) -> Self {
        Self { epoch: chain.epoch, pages: chain.written_pages() }
    }

    /// Tells `chain` that the pages are durable, if they are its own.
    fn tell(self, chain: &mut MetaChain) {
        if self.epoch == chain.epoch {
            chain.flushed(self.pages);
        }
    }
}

/// Writes to one device.
#[derive(Clone, Copy, Debug, Default)]
struct Writes {
    in_flight: u32,
    /// Whether any ended or was begun since the last flush was issued.
    unflushed: bool,
}

/// Who waits for a flush.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlushWaiter {
    pub(crate) tag: Tag,
    /// The journal block below which everything must be durable.
    pub(crate) jseq: u64,
    /// Whose data it is about.
    pub(crate) volume: Option<u32>,
    /// It is about a request's own data only.
    pub(crate) fua: bool,
}

#[derive(Debug, Default)]
pub(crate) struct FlushState {
    waiters: VecDeque<FlushWaiter>,
    in_flight: Option<Covers>,
    wanted: bool,
    issued: u64,
    finished: u64,
    /// Number of the last that covered all devices.
    pub(crate) sound: u64,
    dirty_since_ns: Option<u64>,
    dirty_bytes: u64,
    devices: [Writes; DEVICES],
    /// Devices whose part of the flush under way has not ended.
    left: u32,
    pub(crate) lsn_durable: u64,
}

impl FlushState {
    pub(crate) fn new(lsn_durable: u64) -> Self {
        Self { waiters: VecDeque::with_capacity(FLUSH_WAITERS), lsn_durable, ..Self::default() }
    }

    /// A write to this device was issued.
    pub(crate) fn write_begun(&mut self, device: usize) {
        let writes = &mut self.devices[device];
        writes.in_flight += 1;
        writes.unflushed = true;
    }

    /// It has ended, somehow.
    pub(crate) fn write_ended(&mut self, device: usize) {
        self.devices[device].in_flight -= 1;
    }

    /// A device is no more: nothing is left there that would have to be flushed.
    pub(crate) fn forget(&mut self, device: usize) {
        self.devices[device].unflushed = false;
    }

    pub(crate) fn waiters(&self) -> usize {
        self.waiters.len()
    }

    pub(crate) fn has_waiters(&self) -> bool {
        !self.waiters.is_empty()
    }

    pub(crate) fn wait(&mut self, waiter: FlushWaiter) {
        self.waiters.push_back(waiter);
    }

    pub(crate) fn next_waiter(&mut self) -> Option<Tag> {
        self.waiters.pop_front().map(|waiter| waiter.tag)
    }

    /// Takes all that wait.
    pub(crate) fn take_waiters(&mut self) -> impl Iterator<Item = FlushWaiter> {
        self.waiters.drain(..)
    }

    pub(crate) fn put_back(&mut self, waiters: Vec<FlushWaiter>) {
        self.waiters.extend(waiters);
    }

    /// Whether writes to this device are under way.
    pub(crate) fn is_busy(&self, device: usize) -> bool {
        self.devices[device].in_flight > 0
    }

    /// Number of the last flush that was issued.
    pub(crate) fn issued(&self) -> u64 {
        self.issued
    }

    /// Something was written that only a flush makes durable.
    pub(crate) fn dirty(&mut self, now_ns: u64, bytes: u64) {
        self.dirty_since_ns.get_or_insert(now_ns);
        self.dirty_bytes += bytes;
    }

    /// Asks for a flush; returns the number that [`FlushState::is_past`] takes.
    pub(crate) fn want(&mut self) -> u64 {
        self.wanted = true;
        self.issued + 1
    }

    /// Whether the flush that [`FlushState::want`] promised has finished.
    pub(crate) fn is_past(&self, number: u64) -> bool {
        self.finished >= number
    }

    pub(crate) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// When the engine flushes by itself.
    pub(crate) fn deadline_ns(&self) -> Option<u64> {
        if self.in_flight.is_some() {
            return None;
        }
        self.dirty_since_ns.map(|since| since + SELF_FLUSH_NS)
    }
}

impl Engine {
    /// Makes everything acknowledged or submitted before, of every volume, survive power loss. Fails with
    /// [`IoFault::Lost`], once, if what `volume` wrote was lost with a device.
    ///
    /// # Errors
    /// `Busy`, `Failed`, `Stopping`: nothing happened.
    pub fn flush(&mut self, tag: Tag, volume: VolumeId) -> Result<(), SubmitError> {
        self.disturb();
        if self.is_degraded() && !self.stop.is_begun() {
            // Nothing was written.
            self.complete(tag, Ok(()));
            return Ok(());
        }
        self.ready()?;
        if self.flush.waiters() >= FLUSH_WAITERS {
            return Err(SubmitError::Busy);
        }
        if self.take_loss(volume.0) {
            self.complete(tag, Err(IoFault::Lost));
        } else if self.journal.next <= self.journal.durable {
            self.complete(tag, Ok(()));
        } else {
            let (jseq, volume) = (self.journal.next, Some(volume.0));
            self.flush.wait(FlushWaiter { tag, jseq, volume, fua: false });
        }
        Ok(())
    }

    /// Whether a volume has lost something that nobody was told of; now somebody is.
    fn take_loss(&mut self, volume: u32) -> bool {
        let lost =
            self.volumes.get_mut(volume).is_some_and(|volume| std::mem::take(&mut volume.lost));
        if lost && self.planted.has(Plant::TellOneVolume) {
            self.volumes.iter_mut().for_each(|volume| volume.lost = false);
        }
        lost
    }

    pub(crate) fn start_flush_if_due(&mut self) {
        if self.flush.in_flight.is_some() || self.failed.is_some() {
            return;
        }
        let retired = self.journal.retired;
        let due = self.flush.wanted
            || (self.flush.waiters.iter().any(|waiter| waiter.jseq <= retired)
                && !self.failures.is_parting())
            || self.flush.dirty_bytes >= SELF_FLUSH_BYTES
            || self.flush.deadline_ns().is_some_and(|deadline| deadline <= self.now_ns);
        if !due {
            return;
        }
        for sealing in &mut self.sealing {
            if sealing.stage == SealStage::Written && sealing.last_jseq < retired {
                sealing.stage = SealStage::Flushing;
            }
        }
        self.flush.in_flight = Some(Covers {
            partial: self.failures.is_parting(),
            jseq: retired,
            lsn: self.applied_lsn,
            tail: self.journal.tail_retired,
            meta: ChainPages::written(&self.meta),
            compaction: self.compaction.as_ref().map(|c| ChainPages::written(&c.chain)),
        });
        self.flush.issued += 1;
        self.flush.wanted = false;
        // What is still in flight is not covered and makes the pool dirty at once.
        let uncovered = !self.is_quiet()
            || self.cleaner.is_writing()
            || !self.leaf_writer.is_written()
            || self.meta.is_writing()
            || self.sealing.iter().any(|sealing| sealing.stage == SealStage::Writing);
        self.flush.dirty_since_ns = uncovered.then_some(self.now_ns);
        self.flush.dirty_bytes = 0;
        self.counters.flushes += 1;
        if self.planted.has(Plant::SkipFlush) {
            self.flush_done();
            return;
        }
        let journal = self.geo.journal.device as usize;
        // Of any number: one that is about to be added has a superblock to keep.
        for device in 0..DEVICES {
            let writes = &mut self.flush.devices[device];
            let skipped = device != journal && self.planted.has(Plant::FlushOneDevice);
            // Somebody waits for an answer: one device is asked in any case.
            let skipped =
                skipped || self.geo.extents[device].failed || self.failures.parts_with(device);
            if (writes.unflushed || device == journal) && !skipped {
                writes.unflushed = writes.in_flight > 0;
                self.flush.left += 1;
                self.emit_to(device, Token::Flush, DeviceCommand::Flush);
            }
        }
    }

    /// One device's part of the flush has ended.
    pub(crate) fn device_flushed(&mut self) {
        self.flush.left -= 1;
        if self.flush.left == 0 {
            self.flush_done();
        }
    }

    fn flush_done(&mut self) {
        let Some(covers) = self.flush.in_flight.take() else { return };
        if self.failed.is_some() {
            return;
        }
        self.flush.finished = self.flush.issued;
        if covers.partial || self.failures.is_spoilt() {
            for sealing in &mut self.sealing {
                if sealing.stage == SealStage::Flushing {
                    sealing.stage = SealStage::Written;
                }
            }
            return;
        }
        self.flush.sound = self.flush.issued;
        self.flush.lsn_durable = covers.lsn;
        self.journal.durable = covers.jseq;
        self.journal.tail_durable = covers.tail;
        for pages in [Some(covers.meta), covers.compaction].into_iter().flatten() {
            pages.tell(&mut self.meta);
            if let Some(compaction) = &mut self.compaction {
                pages.tell(&mut compaction.chain);
            }
        }
        for sealing in &mut self.sealing {
            if sealing.stage == SealStage::Flushing {
                sealing.stage = SealStage::Durable;
            }
        }
        for _ in 0..self.flush.waiters.len() {
            let waiter = self.flush.waiters.pop_front().expect("counted");
            if waiter.jseq <= covers.jseq {
                self.complete(waiter.tag, Ok(()));
            } else {
                self.flush.waiters.push_back(waiter);
            }
        }
        self.segs.settle(covers.jseq);
    }
}
