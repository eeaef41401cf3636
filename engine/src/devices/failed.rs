//! Going on without a device that failed a write or a flush.
//!
//! A device that holds neither the journal nor metadata can be spared: what lay on it can't all be trusted
//! any more, but everything else can. The pool *parts* with it:
//!
//! ```text
//! failure -> nothing is retired, accepted or answered
//!   -> what is under way on it has ended -> it is asked for one more flush, unless it failed one
//!   -> its open segments are orphans, the cleaner's outputs there are given up, losses are noted
//!   -> a superblock says that it failed, from journal block F on -> durable on all the others
//!   -> batches from F on are retired; what they have there is written again elsewhere -> requests are taken again
//! ```
//!
//! Invariants:
//! 1. Nothing is written to a device that failed, nor is it flushed: not in this life, and not in any later
//!    one, until it was emptied and removed. It takes no superblock.
//! 2. A record before F whose data lies there counts, proven or not: recovery does not cut the log there
//!    ([`crate::recover`]). Its blocks are right or an I/O error, since their checksums stand elsewhere.
//! 3. A write from F on whose data lies there did not happen: recovery leaves it out, and so does the map. None
//!    was answered. It is logged once more, with a higher LSN, but for blocks that something accepted later is
//!    about; that has a higher LSN than the first time, and a lower one than the second. Nothing else is
//!    accepted until all are logged, and read-modify-writes wait until that is retired.
//! 4. Between failure and superblock nothing is answered: a crash then may cut the log at a record whose data
//!    is not there, as after any failure, and takes nothing with it that a flush had covered.
//! 5. If the device failed a flush, what was acknowledged and no flush had covered is lost there, as far as it
//!    can't be read. The next flush of each volume that has written there since the last flush fails, once
//!    ([`IoFault::Lost`]); those that wait already fail too. If it failed writes only, the last flush that it is
//!    asked for covers what was acknowledged, and nobody is told anything.
//! 6. An *orphan*, a segment there that was not sealed, gets no summary any more; of one that was written before, the
//!    entries count that are not void. It holds the tail of
//!    the journal until a checkpoint that began later counts: that states it as sealed, and its leaf pages say
//!    what lies in it. An opening puts its records into the metadata chain, where they stay until then.
//! 7. As long as no checkpoint has ended since, what was sealed there since the last one is known from there
//!    only, unless there is a copy: so one is due at once, which begins when the last seal there is retired.
//!
//! The pool fails as a whole (see [`Engine::fail`]) if the device can't be spared, if another fails before the
//! parting has ended, and while it is being opened or closed. No checkpoint can be had while leaves can't be
//! counted; then it fails before the journal is full.
//!
//! Not here: moving what can be read from the device. That is its removal (see `evacuate.rs`).

use crate::batch::{Effect, Waiter};
use crate::engine::Engine;
use crate::error::{IoFault, SubmitError};
use crate::flush::FlushWaiter;
use crate::format::device::Failure;
use crate::leaf_loader::Paging;
use crate::limits::{SEGMENTS_MIN, USER_STREAMS};
use crate::plant::Plant;
use crate::segment::{OpenSegment, SealStage};
use crate::token::Token;
use crate::volume::{VolumeState, Volumes};
use flagstone_block::{BLOCK_SIZE, Buffer, Buffers, DEVICES, DeviceCommand, DeviceError, Lba};
use std::collections::VecDeque;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// What is under way there is awaited.
    Draining,
    /// The last flush.
    Asking,
    /// A superblock may be under way that is not the one.
    Deciding,
    /// The one.
    Writing,
}

#[derive(Clone, Copy, Debug)]
struct Parting {
    device: usize,
    stage: Stage,
    /// It failed a flush.
    spoilt: bool,
}

/// Blocks that are to be written again.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// The batch that they are in, which is not used before all of it is written.
    batch: u32,
    volume: u32,
    lba: u64,
    from: Buffer,
    /// Of which request they are: the record's batch and number.
    request: (u32, usize),
    /// Who waits for them, if these are the last, and all that there is to wait for.
    waiter: Option<Waiter>,
}

/// A write that did not happen, of which at least a part is not written again, since something later is about the same
/// blocks.
#[derive(Clone, Copy, Debug)]
struct Superseded {
    request: (u32, usize),
    volume: u32,
    lba: u64,
    blocks: u32,
    waiter: Waiter,
}

impl Superseded {
    fn overlaps(&self, volume: u32, lba: u64, blocks: u32) -> bool {
        let (end, own_end) = (lba + u64::from(blocks), self.lba + u64::from(self.blocks));
        self.volume == volume && self.lba < end && lba < own_end
    }
}

/// A segment without a summary.
#[derive(Debug)]
pub(crate) struct Orphan {
    pub(crate) segment: u32,
    /// Journal block of its first record; none if they are in the metadata chain.
    pub(crate) first_jseq: u64,
    /// What it was, with its entries, if some of its records are in the chain.
    pub(crate) open: Option<OpenSegment>,
    /// The checkpoint under way states it.
    pub(crate) stated: bool,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    parting: Option<Parting>,
    /// What failed it.
    reasons: [Option<DeviceError>; DEVICES],
    /// Batches below this one may have data that is to be written again, as long as they are not retired.
    unretired: Option<u64>,
    again: VecDeque<Piece>,
    /// Who waits for what something later has superseded, in part at least: that must be written first.
    superseded: Vec<Superseded>,
    pub(crate) orphans: Vec<Orphan>,
    wants_checkpoint: bool,
}

impl Failures {
    /// Of a pool with these orphans, whose records are in the chain.
    pub(crate) fn new(orphans: Vec<u32>, wants_checkpoint: bool) -> Self {
        let orphan = |segment| Orphan { segment, first_jseq: u64::MAX, open: None, stated: false };
        let orphans = orphans.into_iter().map(orphan).collect();
        Self { orphans, wants_checkpoint, ..Self::default() }
    }

    /// Whether something is to be written again, or may be.
    pub(crate) fn has_again(&self) -> bool {
        self.unretired.is_some() || !self.again.is_empty() || !self.superseded.is_empty()
    }

    /// Whether requests have to wait.
    pub(crate) fn holds_requests(&self) -> bool {
        self.parting.is_some() || self.has_again()
    }

    pub(crate) fn is_parting(&self) -> bool {
        self.parting.is_some()
    }

    /// Whether the device that the pool parts with failed a flush.
    pub(crate) fn is_spoilt(&self) -> bool {
        self.parting.is_some_and(|parting| parting.spoilt)
    }

    pub(crate) fn parts_with(&self, device: usize) -> bool {
        self.parting.is_some_and(|parting| parting.device == device)
    }

    /// What failed a device, in this life.
    pub(super) fn reason(&self, device: usize) -> Option<DeviceError> {
        self.reasons[device]
    }

    /// The oldest journal block that an orphan's records are in.
    pub(crate) fn holds_tail(&self) -> Option<u64> {
        self.orphans.iter().map(|orphan| orphan.first_jseq).min()
    }

    /// Whether a segment is one that the checkpoint under way must not speak of.
    pub(crate) fn is_unstated(&self, segment: u32) -> bool {
        self.orphans.iter().any(|orphan| orphan.segment == segment && !orphan.stated)
    }

    /// A checkpoint begins.
    pub(crate) fn checkpoint_begun(&mut self) {
        self.wants_checkpoint = false;
        self.orphans.iter_mut().for_each(|orphan| orphan.stated = true);
    }
}

impl Engine {
    /// Whether the pool is about to go on without a device that failed, and takes no requests so long.
    #[must_use]
    pub fn is_parting(&self) -> bool {
        self.failures.holds_requests()
    }

    /// Whether a device is not to be written to, because it failed.
    pub(crate) fn has_failed(&self, device: usize) -> bool {
        self.geo.extents[device].failed || self.failures.parts_with(device)
    }

    /// A write or a flush failed.
    pub(crate) fn io_failed(&mut self, device: usize, token: Token, error: DeviceError) {
        if !self.has_failed(device) {
            if self.failed.is_some() || !self.can_spare(device) {
                if self.failed.is_none() {
                    self.failed_device = Some(device);
                }
                return self.fail(error);
            }
            self.failures.reasons[device] = Some(error);
            let stage = Stage::Draining;
            self.failures.parting = Some(Parting { device, stage, spoilt: false });
            // A checkpoint under way goes on, and must not take a segment there for its pages.
            self.segs.close(device);
            self.space.epoch += 1;
            self.super_write.reserved = true;
        }
        if token == Token::Flush
            && let Some(parting) = &mut self.failures.parting
        {
            parting.spoilt |= parting.device == device;
        }
    }

    /// Whether the pool can go on without a device.
    fn can_spare(&self, device: usize) -> bool {
        let geo = self.geo.failed(device);
        let journal = self.geo.journal;
        let old = journal.old as usize == device && !self.journal_has_moved();
        let changes = self.change.is_some_and(|change| change.is_about(device));
        // Their first records are in the chain, and a checkpoint waits for their seals.
        let resumed = self.compaction.is_some()
            && self.sealing.iter().any(|sealing| {
                sealing.resumed && self.geo.device_of(sealing.segment) == Some(device)
            });
        self.devices.get(device).is_some()
            && !(self.opening || self.is_degraded() || self.stop.is_begun())
            && !self.failures.holds_requests()
            && journal.device as usize != device
            && !(old || changes || resumed || self.is_counting_stuck())
            && self.segs.metas_on(device) == 0
            && geo.capacity >= SEGMENTS_MIN
            && self.segs.free_but(device) >= self.reserve()
    }

    /// Goes on with parting from a device.
    pub(crate) fn advance_parting(&mut self, bufs: &mut impl Buffers) {
        let Some(Parting { device, stage, spoilt }) = self.failures.parting else { return };
        let next = match stage {
            Stage::Draining => {
                self.close_batch(bufs);
                let here = |segment: u32| self.geo.device_of(segment) == Some(device);
                let summary = self
                    .sealing
                    .iter()
                    .any(|sealing| sealing.stage == SealStage::Writing && here(sealing.segment));
                let batches = self.flight.iter().any(|&i| !self.batches[i as usize].is_written());
                let idle = !batches && !summary && !self.flush.is_busy(device);
                if !idle || self.flush.is_in_flight() {
                    return;
                }
                match spoilt {
                    true => Stage::Deciding,
                    false => {
                        self.emit_to(device, Token::LastFlush, DeviceCommand::Flush);
                        Stage::Asking
                    }
                }
            }
            Stage::Asking => return,
            Stage::Deciding => {
                let switching = self.compaction.as_ref().is_some_and(|c| c.is_switching());
                if switching || !self.super_write.may_begin() {
                    return;
                }
                self.decide_parting(device, spoilt);
                if self.planted.has(Plant::PartSilently) {
                    return self.end_parting();
                }
                let superblock = self.superblock(0);
                self.super_write.reserved = false;
                self.begin_superblock(bufs, superblock);
                self.super_write.reserved = true;
                Stage::Writing
            }
            Stage::Writing => {
                if self.super_write.take_done() {
                    self.end_parting();
                }
                return;
            }
        };
        self.failures.parting = Some(Parting { device, stage: next, spoilt });
        self.again = true;
    }

    /// The last flush of a device has ended: after a failed write it still covers what was written before.
    pub(crate) fn last_flush_done(&mut self, result: Result<(), DeviceError>) {
        if let Some(parting) = &mut self.failures.parting {
            parting.stage = Stage::Deciding;
            parting.spoilt |= result.is_err();
        }
    }

    /// Nothing is under way on the device: what is there is what there will be.
    fn decide_parting(&mut self, device: usize, spoilt: bool) {
        if spoilt && !self.planted.has(Plant::KeepLossSecret) {
            self.note_losses(device);
        }
        self.give_up_outputs(device);
        self.orphan_segments(device);
        let reason = self.failures.reasons[device];
        let errno = reason.map_or(0, |reason| reason.errno().unsigned_abs());
        let failure = Failure { from: self.journal.retired, errno };
        if let Some(Some(row)) = self.devices.0.get_mut(device) {
            row.failed = Some(failure);
        }
        self.geo = self.geo.failed(device);
        self.segs.fail(device);
        self.leave_out_void();
        if let Some(change) = &mut self.change {
            change.device_failed(device, failure);
        }
        self.space.epoch += 1;
    }

    /// Nobody needs the device any more.
    fn end_parting(&mut self) {
        self.failures.parting = None;
        self.failures.unretired = Some(self.journal.next);
        self.failures.wants_checkpoint = true;
        self.super_write.reserved = false;
        self.flush.want();
        self.again = true;
    }

    /// The segments there that were not sealed become orphans.
    fn orphan_segments(&mut self, device: usize) {
        let lsn = self.applied_lsn;
        for stream in 0..USER_STREAMS {
            let here = |open: &OpenSegment| self.geo.device_of(open.segment) == Some(device);
            let Some(open) = self.open[stream].take_if(|open| here(open)) else { continue };
            let (segment, first_jseq) = (open.segment, open.first_jseq);
            let row = self.segs.row_mut(segment);
            row.entries = open.next as u16;
            (row.first_lsn, row.mean_lsn) = (open.first_lsn, open.described().mean_lsn);
            let open = match open.in_meta {
                0 => {
                    self.summaries.push(open.summary);
                    None
                }
                _ => Some(open),
            };
            self.orphan(Orphan { segment, first_jseq, open, stated: false }, lsn);
        }
        let mut k = 0;
        while k < self.sealing.len() {
            let sealing = &self.sealing[k];
            let durable = matches!(sealing.stage, SealStage::Durable | SealStage::Logged(_));
            if durable || self.geo.device_of(sealing.segment) != Some(device) {
                k += 1;
                continue;
            }
            let sealing = self.sealing.remove(k);
            self.summaries.extend(sealing.summary);
            let (segment, first_jseq) = (sealing.segment, sealing.first_jseq);
            // What the cleaner copied there was given up.
            if !sealing.moved {
                self.orphan(Orphan { segment, first_jseq, open: None, stated: false }, lsn);
            }
        }
    }

    /// The summary of an orphan may be there, and tell of writes that did not happen. They are its last: its row says
    /// how many entries count.
    fn leave_out_void(&mut self) {
        let under_way: Vec<Effect> = self.effects_under_way().collect();
        for effect in under_way {
            let Effect::Write { pbn, .. } = effect else { continue };
            let (segment, block) = self.geo.locate(pbn);
            if self.segs.has_failed(segment) {
                let row = self.segs.row_mut(segment);
                row.entries = row.entries.min(block as u16);
            }
        }
    }

    fn orphan(&mut self, orphan: Orphan, lsn: u64) {
        let epoch = self.next_checkpoint_epoch();
        self.segs.sealed(orphan.segment, lsn, epoch);
        if !self.planted.has(Plant::ForgetOrphans) {
            self.failures.orphans.push(orphan);
        }
    }

    /// A checkpoint counts: what it has stated needs no records any more.
    pub(crate) fn end_orphans(&mut self) {
        let summaries = &mut self.summaries;
        self.failures.orphans.retain_mut(|orphan| {
            if orphan.stated {
                summaries.extend(orphan.open.take().map(|open| open.summary));
            }
            !orphan.stated
        });
    }

    /// Whether a checkpoint is due because of a device that failed.
    pub(crate) fn failures_want_checkpoint(&self) -> bool {
        self.failures.wants_checkpoint || !self.failures.orphans.is_empty()
    }

    /// Whether a stop waits for that, so that the device is not needed afterwards.
    pub(crate) fn stop_wants_checkpoint(&self) -> bool {
        let wanted = self.failures.wants_checkpoint && !self.is_counting_stuck();
        wanted || !self.failures.orphans.is_empty()
    }

    /// Whether a summary on a device that failed counts, and the seal that names it is not retired. It soon will be; a
    /// checkpoint that began before would need the summary.
    pub(crate) fn seals_on_failed(&self) -> bool {
        let retired = self.journal.retired;
        self.sealing.iter().any(|sealing| {
            let pending = match sealing.stage {
                SealStage::Durable => true,
                SealStage::Logged(jseq) => jseq >= retired,
                _ => false,
            };
            pending && self.segs.has_failed(sealing.segment)
        })
    }

    /// Without a checkpoint the journal would be full in the end, and nobody would know why.
    pub(crate) fn check_orphans(&mut self) {
        let waits = self.journal.is_pressed() || self.stop.is_begun();
        if waits && !self.failures.orphans.is_empty() && self.is_counting_stuck() {
            let reason = self.failures.reasons.iter().flatten().next().copied();
            self.fail(reason.unwrap_or(DeviceError::Os { errno: 5 }));
        }
    }

    /// Notes which volumes have lost what was acknowledged, and tells those that wait for a flush.
    fn note_losses(&mut self, device: usize) {
        let sound = self.flush.sound;
        for volume in self.volumes.iter_mut() {
            volume.lost |= volume.unflushed.on(device, sound);
        }
        let lost = |volumes: &Volumes, id: Option<u32>| {
            id.and_then(|id| volumes.get(id)).is_some_and(|volume| volume.lost)
        };
        let waiters: Vec<FlushWaiter> = self.flush.take_waiters().collect();
        let (told, others): (Vec<_>, Vec<_>) =
            waiters.into_iter().partition(|waiter| lost(&self.volumes, waiter.volume));
        self.flush.put_back(others);
        for FlushWaiter { tag, volume, fua, .. } in told {
            // A write with FUA that fails says nothing of what was written before.
            if let Some(volume) = volume.filter(|_| !fua).and_then(|id| self.volumes.get_mut(id)) {
                volume.lost = false;
            }
            self.complete(tag, Err(IoFault::Lost));
        }
    }

    /// Whether a record that is not retired says that its data lies on a device that failed: then it did not
    /// happen.
    pub(crate) fn is_void(&self, effect: Effect) -> bool {
        match effect {
            Effect::Write { pbn, .. } => self.segs.has_failed(self.geo.locate(pbn).0),
            _ => false,
        }
    }

    /// Takes the blocks of a write that did not happen to those that are to be written again. What is logged
    /// later in batch `i`, or in one that is not retired, supersedes them.
    pub(crate) fn write_again(&mut self, i: u32, waiter: Waiter, record: usize) {
        let Some((volume, lba, from)) = self.data_of(i, record) else { return };
        let supersedes = |effect: Effect, at: u64| match effect {
            Effect::Write { volume: of, lba, blocks, .. } => {
                of == volume && (lba..lba + u64::from(blocks)).contains(&at)
            }
            Effect::Zero { volume: of, lba, blocks, .. } => {
                of == volume && (lba..lba + blocks).contains(&at)
            }
            _ => false,
        };
        let over = self.planted.has(Plant::AgainOverNewer);
        let is_due = |b: &u32| {
            let at = lba + u64::from(*b);
            over || !self.effects_behind(i, record).any(|effect| supersedes(effect, at))
        };
        let mut due = (0..from.blocks).filter(is_due).peekable();
        let mut pieces: Vec<Piece> = Vec::new();
        while let Some(first) = due.next() {
            let mut blocks = 1;
            while due.next_if_eq(&(first + blocks)).is_some() {
                blocks += 1;
            }
            let (lba, from) = (lba + u64::from(first), from.part(first, blocks));
            let request = (i, record);
            pieces.push(Piece { batch: i, volume, lba, from, request, waiter: None });
        }
        let blocks: u32 = pieces.iter().map(|piece| piece.from.blocks).sum();
        match pieces.last_mut() {
            Some(last) if blocks == from.blocks => last.waiter = Some(waiter),
            _ => {
                let (request, blocks) = ((i, record), from.blocks);
                let superseded = Superseded { request, volume, lba, blocks, waiter };
                self.failures.superseded.push(superseded);
            }
        }
        self.failures.again.extend(pieces);
    }

    /// Whether batch `i` has blocks that are to be written again.
    pub(crate) fn is_written_again(&self, i: u32) -> bool {
        self.failures.again.back().is_some_and(|piece| piece.batch == i)
    }

    /// Writes again what did not happen, as far as there is room now.
    pub(crate) fn advance_again(&mut self, bufs: &mut impl Buffers) {
        if self.failures.is_parting() {
            return;
        }
        let any = self.failures.has_again();
        if self.failures.unretired.is_some_and(|jseq| jseq > self.journal.retired) {
            return;
        }
        self.failures.unretired = None;
        while let Some(piece) = self.failures.again.front().copied() {
            let rest = match self.append_again(bufs, piece) {
                Ok(rest) => rest,
                Err(SubmitError::Busy) => return,
                Err(error) => {
                    let lba = piece.lba;
                    let is_full = error == SubmitError::NoSpace;
                    let bad = IoFault::BadBlock { lba };
                    self.fail_again(if is_full { IoFault::NoSpace } else { bad });
                    continue;
                }
            };
            self.again = true;
            match rest {
                Some(rest) => self.failures.again[0] = rest,
                None => drop(self.end_piece()),
            }
        }
        while let Some(&Superseded { waiter, .. }) = self.failures.superseded.last() {
            let Ok(batch) = self.batch_with_room(bufs, BLOCK_SIZE / 64, true) else { return };
            self.failures.superseded.pop();
            self.await_batch(batch, Waiter { write: None, ..waiter });
            self.again = true;
        }
        if any {
            self.rmws.settle_again(self.journal.next);
        }
    }

    /// Logs a piece, or a part of it; returns the rest.
    fn append_again(
        &mut self,
        bufs: &mut impl Buffers,
        mut piece: Piece,
    ) -> Result<Option<Piece>, SubmitError> {
        let Piece { volume: id, lba, .. } = piece;
        let volume = self.volumes.get(id).filter(|v| v.state == VolumeState::Active);
        // What was cut off or deleted since is gone, with what would have been there.
        let end = volume.map_or(0, |volume| volume.end() / BLOCK_SIZE as u64);
        let blocks = end.saturating_sub(lba).min(u64::from(piece.from.blocks)) as u32;
        if blocks == 0 {
            let (request, blocks) = (piece.request, piece.from.blocks);
            let over = |waiter| Superseded { request, volume: id, lba, blocks, waiter };
            self.failures.superseded.extend(piece.waiter.map(over));
            return Ok(None);
        }
        piece.from = piece.from.part(0, blocks);
        match self.leaves_here(id, Lba(lba), u64::from(blocks), false) {
            Paging::Here => {}
            Paging::Coming => return Err(SubmitError::Busy),
            Paging::Bad => return Err(SubmitError::OutOfRange),
        }
        let (leaves, copies) = self.leaves_taken(id, lba, u64::from(blocks));
        self.charge_leaves(leaves, copies)?;
        let stream = self.stream_of(id, Lba(lba), blocks);
        let place = self.data_room(bufs, stream, blocks)?;
        let taken = place.blocks;
        if taken == blocks
            && let Some(waiter) = piece.waiter
        {
            let write = Some(self.batches[place.batch as usize].records());
            self.await_batch(place.batch, Waiter { write, ..waiter });
        }
        let from = crate::batch::Source::Again(piece.from.part(0, taken));
        self.append_blocks(bufs, place, id, lba, from);
        let rest = Piece {
            lba: lba + u64::from(taken),
            from: piece.from.part(taken, blocks - taken),
            ..piece
        };
        Ok((taken < blocks).then_some(rest))
    }

    /// The first piece is done with; its batch may be used again after the last of it.
    fn end_piece(&mut self) -> Option<Waiter> {
        let piece = self.failures.again.pop_front()?;
        if self.failures.again.front().is_none_or(|next| next.batch != piece.batch) {
            self.spare_batches.push(piece.batch);
        }
        piece.waiter
    }

    /// The first of those that wait is told that it failed, whatever pieces its request still has; and so are those that
    /// it would have superseded there: what they wrote is not there either.
    fn fail_again(&mut self, fault: IoFault) {
        let Some(request) = self.failures.again.front().map(|piece| piece.request) else { return };
        let mut waiter = None;
        while let Some(&piece) = self.failures.again.front()
            && piece.request == request
        {
            waiter = waiter.or(self.end_piece());
            let is_lost = |other: &Superseded| {
                other.request == request
                    || other.overlaps(piece.volume, piece.lba, piece.from.blocks)
            };
            while let Some(at) = self.failures.superseded.iter().position(is_lost) {
                let lost = self.failures.superseded.swap_remove(at);
                self.fail_waiter(lost.waiter, fault);
            }
        }
        if let Some(waiter) = waiter {
            self.fail_waiter(waiter, fault);
        }
    }

    /// After a failure of the pool.
    pub(crate) fn fail_all_again(&mut self) {
        while !self.failures.again.is_empty() {
            self.fail_again(IoFault::Device);
        }
        while let Some(Superseded { waiter, .. }) = self.failures.superseded.pop() {
            self.fail_waiter(waiter, IoFault::Device);
        }
    }
}
