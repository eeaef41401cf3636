//! Batches: a run of data per stream and one journal block, written together.
//!
//! A batch is filled by requests, leaves when the device has room for it or when it is full, and
//! is *retired* in journal order: only then does the map change and are its requests answered.

mod append;

pub(crate) use append::{Place, Source};

use crate::engine::Engine;
use crate::error::{IoFault, SubmitError};
use crate::flush::FlushWaiter;
use crate::format::journal::{HEADER_BYTES, JournalHeader, RECORD_BYTES};
use crate::format::record::Record;
use crate::journal::Slot;
use crate::limits::{BATCH_BLOCKS, BATCH_RECORDS, BATCHES_EAGER, USER_STREAMS};
use crate::map::Mapping;
use crate::plant::Plant;
use crate::token::Token;
use crate::volume::{VolumeSettings, VolumeState};
use flagstone_block::{BLOCK_SIZE, Buffer, Buffers, DeviceCommand, Durability, Lba, Tag};

/// What a record does when its batch is retired.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Effect {
    /// This part of a volume now lies at `pbn`; its checksums are the batch's from `crcs` on.
    Write {
        volume: u32,
        lba: u64,
        pbn: u64,
        crcs: u32,
        blocks: u32,
        /// Those of them that take space that was free, at most.
        new: u32,
    },
    /// `promised` of the blocks are newly kept.
    Zero {
        volume: u32,
        lba: u64,
        blocks: u64,
        keep: bool,
        promised: u64,
    },
    VolumeCreate {
        volume: u32,
    },
    VolumeResize {
        volume: u32,
        size: u64,
    },
    VolumeSet {
        volume: u32,
        settings: VolumeSettings,
    },
    VolumeDelete {
        volume: u32,
    },
    Snapshot {
        volume: u32,
    },
    SegmentOpen,
    SegmentSeal {
        segment: u32,
    },
    SegmentFree {
        segment: u32,
    },
}

impl Effect {
    /// Whether the record must outlive the journal ring in the metadata chain.
    fn is_lasting(self) -> bool {
        !matches!(self, Self::Write { .. } | Self::SegmentOpen)
    }
}

#[derive(Clone, Copy, Debug)]
struct Logged {
    effect: Effect,
    lsn: u64,
    /// Place of the encoded record in the journal block.
    at: u16,
    bytes: u16,
}

/// Who is answered when a batch is retired.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiter {
    pub(crate) tag: Tag,
    pub(crate) durability: Durability,
    /// Read-modify-write whose guard ends.
    pub(crate) rmw: Option<u32>,
    /// Which of the batch's records says where its data lies, if it has any.
    pub(crate) write: Option<u16>,
}

/// Consecutive blocks of one stream's segment.
#[derive(Clone, Copy, Debug)]
struct Run {
    data: Buffer,
    /// Pool block of the first.
    pbn: u64,
    blocks: u32,
}

#[derive(Debug)]
pub(crate) struct Batch {
    runs: [Run; USER_STREAMS],
    journal: Buffer,
    io_left: u32,
    /// Leaves that its records may make dense, at most.
    pub(crate) new_leaves: u64,
    jseq: u64,
    tail: u64,
    used: usize,
    lasting_bytes: usize,
    first_lsn: u64,
    /// [`BATCH_BLOCKS`] per stream.
    crcs: [u32; USER_STREAMS * BATCH_BLOCKS as usize],
    logged: Vec<Logged>,
    waiters: Vec<Waiter>,
}

impl Batch {
    pub(crate) fn new(data: [Buffer; USER_STREAMS], journal: Buffer) -> Self {
        Self {
            runs: data.map(|data| Run { data, pbn: 0, blocks: 0 }),
            journal,
            io_left: 0,
            new_leaves: 0,
            jseq: 0,
            tail: 0,
            used: 0,
            lasting_bytes: 0,
            first_lsn: 0,
            crcs: [0; USER_STREAMS * BATCH_BLOCKS as usize],
            logged: Vec::with_capacity(BATCH_RECORDS),
            waiters: Vec::with_capacity(BATCH_RECORDS),
        }
    }

    /// Bytes left for records; none once the number of records is at its bound.
    pub(crate) fn record_room(&self) -> usize {
        if self.logged.len() == BATCH_RECORDS { 0 } else { RECORD_BYTES - self.used }
    }

    /// Blocks of `stream`'s data in it.
    pub(crate) fn run_blocks(&self, stream: usize) -> u32 {
        self.runs[stream].blocks
    }

    /// How many records it has.
    pub(crate) fn records(&self) -> u16 {
        self.logged.len() as u16
    }

    /// Whether nothing of it is under way any more.
    pub(crate) fn is_written(&self) -> bool {
        self.io_left == 0
    }

    /// A command of its is done.
    pub(crate) fn io_done(&mut self) {
        self.io_left -= 1;
    }

    /// Gives its buffers back.
    pub(crate) fn release(self, bufs: &mut impl Buffers) {
        self.runs.into_iter().for_each(|run| bufs.free(run.data));
        bufs.free(self.journal);
    }

    /// Whether it holds nothing.
    fn is_empty(&self) -> bool {
        self.logged.is_empty()
    }
}

impl Engine {
    /// The batch being filled, with room for a record of `bytes` bytes; begins one if needed.
    pub(crate) fn batch_with_room(
        &mut self,
        bufs: &mut impl Buffers,
        bytes: usize,
        internal: bool,
    ) -> Result<u32, SubmitError> {
        if let Some(i) = self.filling {
            if self.batches[i as usize].record_room() >= bytes {
                return Ok(i);
            }
            self.close_batch(bufs);
        }
        self.begin_batch(if internal { Slot::Internal } else { Slot::User })
    }

    fn begin_batch(&mut self, slot: Slot) -> Result<u32, SubmitError> {
        // The last one is for what must be written again: all others may be full of that.
        let kept = usize::from(!self.failures.has_again());
        if !self.journal.has_slot(slot)
            || self.spare_batches.len() <= kept
            || self.failures.is_parting()
        {
            return Err(SubmitError::Busy);
        }
        let i = self.spare_batches.pop().expect("just asked");
        let batch = &mut self.batches[i as usize];
        batch.jseq = self.journal.next;
        batch.first_lsn = self.next_lsn;
        batch.runs.iter_mut().for_each(|run| run.blocks = 0);
        batch.new_leaves = 0;
        (batch.used, batch.lasting_bytes) = (0, 0);
        batch.logged.clear();
        batch.waiters.clear();
        self.journal.next += 1;
        self.filling = Some(i);
        Ok(i)
    }

    /// Sequence number of the batch `i`.
    pub(crate) fn batch_jseq(&self, i: u32) -> u64 {
        self.batches[i as usize].jseq
    }

    /// Appends a record to batch `i`, which must have room; takes the next LSN.
    pub(crate) fn log(
        &mut self,
        bufs: &mut impl Buffers,
        i: u32,
        effect: Effect,
        record: impl FnOnce(u64) -> Record<'static>,
    ) -> u64 {
        let lsn = self.next_lsn;
        self.log_encoded(bufs, i, effect, &record(lsn))
    }

    /// As [`Engine::log`], for a record that was made with `self.next_lsn`.
    pub(crate) fn log_encoded(
        &mut self,
        bufs: &mut impl Buffers,
        i: u32,
        effect: Effect,
        record: &Record<'_>,
    ) -> u64 {
        let lsn = self.next_lsn;
        debug_assert_eq!(record.lsn(), lsn);
        self.next_lsn += 1;
        match effect {
            Effect::Write { volume, lba, blocks, .. } => {
                self.note_change(volume, lba, u64::from(blocks));
            }
            Effect::Zero { volume, lba, blocks, .. } => self.note_change(volume, lba, blocks),
            _ => {}
        }
        let batch = &mut self.batches[i as usize];
        let at = HEADER_BYTES + batch.used;
        let bytes =
            record.encode(&mut bufs.bytes_mut(batch.journal)[at..]).expect("room was asked for");
        batch.logged.push(Logged { effect, lsn, at: at as u16, bytes: bytes as u16 });
        batch.used += bytes;
        if effect.is_lasting() {
            batch.lasting_bytes += bytes;
        }
        lsn
    }

    /// Answers `waiter` when batch `i` is retired.
    pub(crate) fn await_batch(&mut self, i: u32, waiter: Waiter) {
        if self.planted.has(Plant::AcknowledgeEarly)
            && waiter.rmw.is_none()
            && waiter.durability == Durability::Completed
        {
            self.complete(waiter.tag, Ok(()));
            return;
        }
        self.batches[i as usize].waiters.push(waiter);
    }

    /// Sends the batch being filled, if few are under way. A batch beyond that waits for company.
    pub(crate) fn close_batch_if_due(&mut self, bufs: &mut impl Buffers) {
        if self.flight.len() < BATCHES_EAGER || self.flush.has_waiters() {
            self.close_batch(bufs);
        }
    }

    /// Sends the batch being filled: data and journal block at once.
    pub(crate) fn close_batch(&mut self, bufs: &mut impl Buffers) {
        let Some(i) = self.filling.take() else { return };
        let tail = self.journal_tail(self.batches[i as usize].jseq);
        let batch = &mut self.batches[i as usize];
        batch.tail = tail;
        let header = JournalHeader {
            records: batch.logged.len() as u16,
            used: batch.used as u16,
            jseq: batch.jseq,
            first_lsn: batch.first_lsn,
            tail,
            flushed: self.journal.durable,
            prev_crc: self.journal.prev_crc,
            meta_pages: self.meta.durable_pages(),
            meta_epoch: self.meta.epoch,
        };
        self.journal.prev_crc =
            header.encode(self.pool_tag, self.geo.journal_blocks, bufs.bytes_mut(batch.journal));
        let (journal, offset) = (batch.journal, self.geo.journal_offset(batch.jseq));
        let runs = batch.runs;
        batch.io_left = 1 + runs.iter().filter(|run| run.blocks > 0).count() as u32;
        self.flight.push_back(i);
        self.counters.batches += 1;
        self.flush.dirty(self.now_ns, BLOCK_SIZE as u64);
        for (stream, run) in (0..).zip(runs).filter(|(_, run)| run.blocks > 0) {
            let (segment, block) = self.geo.locate(run.pbn);
            let offset = self.geo.segment_offset(segment, block);
            let buffer = run.data.part(0, run.blocks);
            self.emit(
                Token::BatchData { batch: i, stream },
                DeviceCommand::Write { offset, buffer },
            );
        }
        self.emit(Token::BatchJournal(i), DeviceCommand::Write { offset, buffer: journal });
    }

    /// Makes sure that there is a journal block under way or waiting, even an empty one.
    pub(crate) fn force_batch(&mut self, bufs: &mut impl Buffers) {
        if self.filling.is_none() && self.begin_batch(Slot::Tail).is_err() {
            return;
        }
        self.close_batch(bufs);
    }

    /// Retires completed batches in journal order.
    pub(crate) fn retire(&mut self, bufs: &mut impl Buffers) {
        if self.planted.has(Plant::AcknowledgeOutOfOrder) {
            self.acknowledge_completed();
        }
        while let Some(&i) = self.flight.front() {
            let batch = &self.batches[i as usize];
            if batch.io_left > 0 || self.failed.is_some() || self.failures.is_parting() {
                return;
            }
            if batch.lasting_bytes > 0
                && !(self.meta.has_room(batch.lasting_bytes)
                    && self.compaction.as_ref().is_none_or(|c| c.has_room(batch.lasting_bytes)))
            {
                // Pages wait for a flush of the journal; nothing may overtake this batch.
                self.flush.want();
                return;
            }
            self.flight.pop_front();
            self.forget_new_leaves(i);
            self.retire_batch(bufs, i);
        }
    }

    fn acknowledge_completed(&mut self) {
        for i in self.flight.clone() {
            if self.batches[i as usize].io_left == 0 {
                for waiter in std::mem::take(&mut self.batches[i as usize].waiters) {
                    if let Some(rmw) = waiter.rmw {
                        self.rmws.finish(rmw);
                    }
                    self.complete(waiter.tag, Ok(()));
                }
            }
        }
    }

    fn retire_batch(&mut self, bufs: &mut impl Buffers, i: u32) {
        let jseq = self.batches[i as usize].jseq;
        for k in 0..self.batches[i as usize].logged.len() {
            let logged = self.batches[i as usize].logged[k];
            if self.is_void(logged.effect) {
                self.drop_effect(logged.effect);
            } else {
                self.apply(i, logged.effect, logged.lsn);
            }
            self.applied_lsn = logged.lsn;
            if logged.effect.is_lasting() {
                self.keep_record(bufs, i, &logged, jseq);
            }
        }
        self.journal.retired = jseq + 1;
        self.journal.tail_retired = self.batches[i as usize].tail;
        for k in 0..self.batches[i as usize].waiters.len() {
            let waiter = self.batches[i as usize].waiters[k];
            let write = waiter.write.map(|record| {
                (usize::from(record), self.batches[i as usize].logged[usize::from(record)].effect)
            });
            if let Some((record, effect)) = write
                && self.is_void(effect)
            {
                self.write_again(i, waiter, record);
                continue;
            }
            if let Some(rmw) = waiter.rmw {
                self.rmws.finish(rmw);
            }
            if waiter.durability == Durability::Fua && !self.planted.has(Plant::IgnoreFua) {
                let volume = match write {
                    Some((_, Effect::Write { volume, .. })) => Some(volume),
                    _ => None,
                };
                let (tag, jseq) = (waiter.tag, jseq + 1);
                self.flush.wait(FlushWaiter { tag, jseq, volume, fua: true });
            } else {
                self.complete(waiter.tag, Ok(()));
            }
        }
        if !self.is_written_again(i) {
            self.spare_batches.push(i);
        }
    }

    /// The volume and first block of a record of batch `i`, and the data that was to be written.
    pub(crate) fn data_of(&self, i: u32, record: usize) -> Option<(u32, u64, Buffer)> {
        let batch = &self.batches[i as usize];
        let Effect::Write { volume, lba, pbn, blocks, .. } = batch.logged.get(record)?.effect
        else {
            return None;
        };
        let holds = |run: &&Run| (run.pbn..run.pbn + u64::from(run.blocks)).contains(&pbn);
        let run = batch.runs.iter().find(holds)?;
        Some((volume, lba, run.data.part((pbn - run.pbn) as u32, blocks)))
    }

    /// What the records behind one of batch `i` do, which is being retired.
    pub(crate) fn effects_behind(&self, i: u32, record: usize) -> impl Iterator<Item = Effect> {
        let own = self.batches[i as usize].logged.iter().skip(record + 1);
        own.map(|logged| logged.effect).chain(self.effects_under_way())
    }

    /// Copies a record from the journal block to the metadata chains.
    fn keep_record(&mut self, bufs: &mut impl Buffers, i: u32, logged: &Logged, jseq: u64) {
        let forget = match logged.effect {
            Effect::Zero { .. } => self.planted.has(Plant::ForgetDiscards),
            Effect::VolumeDelete { .. } => self.planted.has(Plant::ForgetDeletes),
            Effect::VolumeSet { .. } => self.planted.has(Plant::ForgetSettings),
            _ => false,
        };
        if forget {
            return;
        }
        // The largest lasting record is small; a copy on the stack frees the journal buffer.
        let mut copy = [0; crate::format::record::RECORD_BYTES_MAX];
        let bytes = usize::from(logged.bytes);
        let at = usize::from(logged.at);
        copy[..bytes]
            .copy_from_slice(&bufs.bytes(self.batches[i as usize].journal)[at..at + bytes]);
        let (record, _) = Record::decode(&copy[..bytes]).expect("the engine encoded it");
        self.meta.append(bufs, &self.geo, &mut self.segs, self.pool_tag, jseq, &record);
        if let Some(compaction) = &mut self.compaction {
            compaction.chain.append(bufs, &self.geo, &mut self.segs, self.pool_tag, jseq, &record);
        }
    }

    fn apply(&mut self, i: u32, effect: Effect, lsn: u64) {
        match effect {
            Effect::Write { volume, lba, pbn, crcs, blocks, new } => {
                self.end_taking(volume, u64::from(new));
                self.note_unflushed(volume, pbn);
                for b in 0..blocks {
                    let crc = self.batches[i as usize].crcs[(crcs + b) as usize];
                    let mapping = Mapping::Block { pbn: pbn + u64::from(b), crc };
                    self.map_block(volume, Lba(lba + u64::from(b)), mapping, lsn);
                }
                self.stamp_leaves(volume, lba, blocks);
                self.recount_held(volume);
            }
            Effect::Zero { volume, lba, blocks, keep, promised } => {
                self.end_zero(volume, keep, promised);
                self.unmap(volume, lba, blocks, keep, lsn);
            }
            Effect::VolumeCreate { volume } => {
                if let Some(volume) = self.volumes.get_mut(volume) {
                    volume.state = VolumeState::Active;
                }
            }
            Effect::VolumeResize { volume, size } => {
                if let Some(volume) = self.volumes.get_mut(volume) {
                    volume.info.size = size;
                }
            }
            Effect::VolumeSet { volume, settings } => {
                if let Some(volume) = self.volumes.get_mut(volume) {
                    volume.info.settings = settings;
                }
            }
            Effect::VolumeDelete { volume } => self.apply_delete(volume),
            Effect::Snapshot { volume } => self.cut(volume),
            Effect::SegmentSeal { segment } => {
                self.begin_switch(segment, lsn);
            }
            Effect::SegmentFree { segment } => self.segs.free_logged(segment),
            Effect::SegmentOpen => {}
        }
    }

    /// After a failure: answers everything that waited, once the device has let go of it.
    pub(crate) fn drain_failed(&mut self, bufs: &mut impl Buffers) {
        while let Some(&i) = self.flight.front() {
            if self.batches[i as usize].io_left > 0 {
                break;
            }
            self.flight.pop_front();
            self.forget_new_leaves(i);
            self.fail_batch(i);
        }
        if let Some(i) = self.filling.take() {
            self.forget_new_leaves(i);
            self.fail_batch(i);
        }
        while let Some(tag) = self.flush.next_waiter() {
            self.complete(tag, Err(IoFault::Device));
        }
        self.fail_all_again();
        self.fail_shrinks();
        self.fail_change();
        self.fail_rmws(bufs);
        self.fail_scrub();
    }

    fn fail_batch(&mut self, i: u32) {
        for k in 0..self.batches[i as usize].waiters.len() {
            let waiter = self.batches[i as usize].waiters[k];
            self.fail_waiter(waiter, IoFault::Device);
        }
        for k in 0..self.batches[i as usize].logged.len() {
            self.drop_effect(self.batches[i as usize].logged[k].effect);
        }
        self.spare_batches.push(i);
    }

    pub(crate) fn fail_waiter(&mut self, waiter: Waiter, fault: IoFault) {
        if let Some(rmw) = waiter.rmw {
            self.rmws.finish(rmw);
        }
        self.complete(waiter.tag, Err(fault));
    }

    /// A record will not be applied.
    fn drop_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Write { volume, new, .. } => {
                self.end_taking(volume, u64::from(new));
                self.recount_held(volume);
            }
            Effect::Zero { volume, keep, promised, .. } => {
                self.end_zero(volume, keep, promised);
                self.recount_held(volume);
            }
            _ => {}
        }
    }

    /// Data of a volume lies at `pbn` that no flush covers yet.
    fn note_unflushed(&mut self, volume: u32, pbn: u64) {
        let (issued, sound) = (self.flush.issued(), self.flush.sound);
        let device = self.geo.device_of(self.geo.locate(pbn).0);
        if let (Some(device), Some(volume)) = (device, self.volumes.get_mut(volume)) {
            volume.unflushed.note(device, issued, sound);
        }
    }

    /// The tail that a block `jseq` may claim: the oldest block that something still needs.
    pub(crate) fn journal_tail(&self, jseq: u64) -> u64 {
        let mut tail = jseq;
        if !self.planted.has(Plant::TailTooFar) {
            let streams = if self.planted.has(Plant::TailOfOneStream) { 1 } else { USER_STREAMS };
            for open in self.open[..streams].iter().flatten() {
                tail = tail.min(open.first_jseq);
            }
            for sealing in &self.sealing {
                tail = tail.min(sealing.first_jseq);
            }
            tail = tail.min(self.failures.holds_tail().unwrap_or(tail));
        }
        if let Some(meta) = self.meta.holds_tail() {
            tail = tail.min(meta);
        }
        if let Some(chain) = self.compaction.as_ref().and_then(|c| c.chain.holds_tail()) {
            // Once the superblock names the new chain, only that one covers these records.
            tail = tail.min(chain);
        }
        // Records that are not retired are in no page yet.
        tail.min(self.journal.retired).max(self.journal.tail_durable)
    }

    /// What records do that are not retired.
    pub(crate) fn effects_under_way(&self) -> impl Iterator<Item = Effect> {
        let batches = self.flight.iter().chain(&self.filling);
        batches.flat_map(|&i| self.batches[i as usize].logged.iter().map(|logged| logged.effect))
    }

    /// A batch may make so many more leaves dense, at most.
    pub(crate) fn expect_new_leaves(&mut self, batch: u32, leaves: u64) {
        self.batches[batch as usize].new_leaves += leaves;
        self.leaves_coming += leaves;
    }

    /// It has, or it will not.
    fn forget_new_leaves(&mut self, batch: u32) {
        self.leaves_coming -= std::mem::take(&mut self.batches[batch as usize].new_leaves);
    }

    /// Leaves that batches which are not retired may make dense, at most.
    pub(crate) fn new_leaves_in_flight(&self) -> u64 {
        debug_assert_eq!(self.leaves_coming, {
            let batches = self.flight.iter().chain(&self.filling);
            batches.map(|&i| self.batches[i as usize].new_leaves).sum()
        });
        self.leaves_coming
    }

    /// Whether nothing waits in the journal's batches.
    pub(crate) fn is_quiet(&self) -> bool {
        self.flight.is_empty() && self.filling.is_none_or(|i| self.batches[i as usize].is_empty())
    }
}
