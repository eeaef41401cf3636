//! The engine: one pool's state, driven by requests, device completions and time.
//!
//! Events come in through `write`, `read`, `zero`, `flush`, the volume calls and
//! [`Engine::device_done`]; [`Engine::pump`] does the upkeep; effects leave through
//! [`Engine::next_io`] and [`Engine::next_completion`]. There is no I/O, clock, lock or
//! randomness here, and no allocation on the data path once queues have grown to their bounds.
//!
//! Invariants (asserted in code, and by [`Engine::check`] in tests):
//! 1. A block is written at most once per segment generation.
//! 2. A write is answered when its record and every earlier one of the journal are on the
//!    device; with FUA, or after a flush, when they are durable.
//! 3. A segment is reused only if whatever superseded its blocks, and its free record, are
//!    durable.
//! 4. LSNs rise strictly; the map changes in LSN order only.
//! 5. User writes never take the segments reserved for metadata and the cleaner.

use crate::batch::Batch;
use crate::clean::Cleaner;
use crate::compact::Compaction;
use crate::counting::{Counting, Rebuild};
use crate::degraded::Degraded;
use crate::devices::{Change, Evacuation, Failures};
use crate::discard::Discards;
use crate::error::{IoFault, SubmitError};
use crate::flush::FlushState;
use crate::format::device::DeviceTable;
use crate::geometry::Geometry;
use crate::graves::Graves;
use crate::journal::Journal;
use crate::leaf_loader::LeafLoader;
use crate::leaf_writer::LeafWriter;
use crate::limits::{BATCHES, FLUSH_WAITERS, READS, RMWS, SUMMARIES, USER_STREAMS};
use crate::map::{LeafSlab, Mapping};
use crate::meta_chain::{MetaChain, Remains};
use crate::plant::{Plant, Planted};
use crate::read::Reads;
use crate::reserve::Needs;
use crate::resize::Shrinking;
use crate::rewrite::Rewriter;
use crate::rmw::Rmws;
use crate::scrub::Scrub;
use crate::segment::{OpenSegment, Sealing, SegmentTable};
use crate::snapshot::Heirs;
use crate::space::Space;
use crate::stop::Stop;
use crate::summary_copies::SummaryCopies;
use crate::super_write::SuperWrite;
use crate::token::Token;
use crate::volume::{VolumeInfo, Volumes};
use crate::write::Stall;
use flagstone_block::{
    Buffer, Buffers, DeviceCommand, DeviceError, DeviceIo, IoToken, Lba, Tag, split_offset,
};
use std::cell::Cell;
use std::collections::VecDeque;

/// Steps of the background state machines in one call of `pump`; what is left then is due at once.
const STEPS_PER_PUMP: usize = 8;

/// The answer to one accepted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// As submitted.
    pub tag: Tag,
    /// What became of it.
    pub result: Result<(), IoFault>,
}

/// Whether the pool serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolState {
    /// Serves.
    Running,
    /// A write or flush failed: reads go on, everything else is refused until reopened.
    Failed(DeviceError),
    /// A device is missing: reads go on, everything else is refused.
    Degraded,
    /// A clean stop is under way.
    Stopping,
    /// Stopped; every buffer was given back.
    Stopped,
}

/// Space of a pool, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUsage {
    /// What volumes may map in all: without metadata, and what it and the cleaner need.
    pub capacity: u64,
    /// Blocks that volumes map.
    pub live: u64,
    /// Zero blocks whose space is kept.
    pub kept: u64,
    /// What writes of volumes without a reservation may still take before the pool is full; up to a
    /// segment less where the map has to grow by a segment for it.
    pub available: u64,
    /// What reservations hold back beyond what their volumes take.
    pub held: u64,
    /// Dead blocks in segments that are not free: what cleaning has still to bring back.
    pub debt: u64,
    /// What was logged since the last checkpoint: what opening after a crash has to replay.
    pub log_debt: u64,
    /// Segments in all.
    pub segments: u32,
    /// Segments that may be taken.
    pub segments_free: u32,
    /// Segments that only metadata and the cleaner may take.
    pub segments_reserved: u32,
    /// Segments that hold metadata, the map's leaf pages among it.
    pub segments_meta: u32,
    /// Memory that leaves of the map take.
    pub map_bytes: u64,
}

/// Counts since the pool was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Blocks written for users.
    pub blocks_written: u64,
    /// Those of them that went to the stream of long-lived data.
    pub blocks_cold: u64,
    /// Blocks read for users, from the device.
    pub blocks_read: u64,
    /// Blocks answered as zeroes without the device.
    pub blocks_zero_read: u64,
    /// Journal blocks.
    pub batches: u64,
    /// Device flushes.
    pub flushes: u64,
    /// Segments sealed.
    pub seals: u64,
    /// Segments freed.
    pub segments_freed: u64,
    /// Reads repeated because the checksum did not match.
    pub read_retries: u64,
    /// Blocks reported as damaged.
    pub bad_blocks: u64,
    /// Blocks that were written again in sequence because they were scanned; not among those
    /// written for users.
    pub blocks_rewritten: u64,
    /// Blocks that were written once more because a device failed; not among those written for users.
    pub blocks_again: u64,
    /// Read-modify-writes.
    pub rmws: u64,
    /// Checkpoints.
    pub compactions: u64,
    /// Leaf pages that they wrote.
    pub leaf_pages: u64,
    /// Leaves of the map that were read back from their pages.
    pub leaves_read: u64,
    /// Leaves of the map that were dropped from memory.
    pub leaves_dropped: u64,
    /// Leaf pages that could not be read, or were damaged.
    pub leaf_pages_bad: u64,
    /// Segments that the cleaner emptied.
    pub segments_cleaned: u64,
    /// Live blocks that it wrote again elsewhere. Write amplification is
    /// `1 + (blocks_moved + blocks_rewritten) / blocks_written`.
    pub blocks_moved: u64,
    /// Times that a write was put off for what the cleaner had to do first.
    pub writes_paced: u64,
    /// Blocks that it read, with the dead ones in between.
    pub clean_blocks_read: u64,
    /// Damaged blocks that it left where they are.
    pub clean_bad_blocks: u64,
    /// Damaged blocks that it moved, still damaged, because segments ran out.
    pub clean_bad_moved: u64,
    /// Segments that it can't empty because their summary is damaged.
    pub summaries_damaged: u64,
    /// Scrubs that came to their end.
    pub scrubs: u64,
    /// Blocks that scrubs read, with what lay in between.
    pub scrub_blocks_read: u64,
    /// Damaged blocks that scrubs found, of data and metadata.
    pub scrub_findings: u64,
    /// Damaged metadata that was written anew.
    pub scrub_repairs: u64,
    /// Free segments that were discarded on the device.
    pub segments_discarded: u64,
    /// Devices that were emptied and removed.
    pub devices_removed: u64,
    /// Changes of the devices that were begun: each is a superblock write.
    pub device_changes: u64,
}

/// One pool. See the module's documentation.
#[derive(Debug)]
pub struct Engine {
    pub(crate) geo: Geometry,
    /// Who the devices are; `geo` says what they hold.
    pub(crate) devices: DeviceTable,
    pub(crate) pool: [u8; 16],
    pub(crate) pool_tag: [u8; 8],
    pub(crate) session: u64,
    pub(crate) planted: Planted,
    pub(crate) now_ns: u64,

    pub(crate) out: VecDeque<DeviceIo>,
    pub(crate) done: VecDeque<Completion>,
    pub(crate) io_in_flight: u32,

    pub(crate) segs: SegmentTable,
    pub(crate) slab: LeafSlab,
    pub(crate) volumes: Volumes,
    pub(crate) next_volume: u32,
    /// Maps of deleted volumes, being taken apart.
    pub(crate) graves: Graves,
    /// Snapshots that are deleted, and pass what they have on.
    pub(crate) dying: VecDeque<u32>,
    /// Volumes that are deleted, and wait for the checkpoint under way to end.
    pub(crate) leaving: Vec<u32>,
    /// Whose maps a moved block is switched in.
    pub(crate) heirs: Heirs,
    /// Maps as they were when the last checkpoint began, being taken apart.
    pub(crate) forks: VecDeque<crate::map::VolumeMap>,
    /// The memory of some that were let go, for the next checkpoint's.
    pub(crate) spare_forks: Vec<crate::map::VolumeMap>,
    pub(crate) spare_frozen: Vec<crate::map::VolumeMap>,
    pub(crate) kept: u64,
    pub(crate) space: Space,
    pub(crate) shrinks: VecDeque<Shrinking>,
    /// A change of the devices under way, and a buffer for it.
    pub(crate) change: Option<Change>,
    pub(crate) change_buffer: Buffer,
    pub(crate) evacuation: Evacuation,
    pub(crate) failures: Failures,
    /// See [`Engine::set_full_wait_ns`].
    pub(crate) full_wait_ns: u64,
    /// Whether requests wait for a segment, and since when.
    pub(crate) stall: Option<Stall>,
    /// Leaves that were ever written to, of all volumes.
    pub(crate) touched: u64,

    pub(crate) next_lsn: u64,
    pub(crate) applied_lsn: u64,
    pub(crate) next_generation: u64,
    /// The segment that each stream of user writes fills.
    pub(crate) open: [Option<OpenSegment>; USER_STREAMS],
    pub(crate) sealing: Vec<Sealing>,
    pub(crate) summaries: Vec<Buffer>,

    pub(crate) batches: Vec<Batch>,
    pub(crate) spare_batches: Vec<u32>,
    pub(crate) filling: Option<u32>,
    /// Leaves that the batches that are not retired may make dense, at most.
    pub(crate) leaves_coming: u64,
    pub(crate) flight: VecDeque<u32>,

    pub(crate) journal: Journal,
    pub(crate) meta: MetaChain,
    /// Memory for the next chain.
    pub(crate) meta_remains: Option<Remains>,
    /// Chain segments when the last compaction ended, to judge when the next is due.
    pub(crate) meta_baseline: usize,
    pub(crate) compaction: Option<Compaction>,
    pub(crate) leaf_writer: LeafWriter,
    pub(crate) leaf_loader: LeafLoader,
    pub(crate) counting: Option<Counting>,
    pub(crate) rebuild: Rebuild,
    pub(crate) summary_copies: SummaryCopies,
    /// See [`Engine::reserve`].
    pub(crate) needs: Cell<Needs>,
    pub(crate) degraded: Degraded,
    /// Blocks in segments that were sealed since the last checkpoint began: what recovery reads
    /// the summaries of.
    pub(crate) log_since: u64,
    pub(crate) super_write: SuperWrite,
    pub(crate) flush: FlushState,
    pub(crate) reads: Reads,
    pub(crate) rmws: Rmws,
    pub(crate) rewriter: Rewriter,
    pub(crate) cleaner: Cleaner,
    pub(crate) discards: Discards,
    pub(crate) scrub: Scrub,
    /// A state machine moved on without any I/O that would bring the next call of `pump`.
    pub(crate) again: bool,
    /// Being opened: until the superblock that ends recovery is durable, nothing may be written
    /// but the metadata that it will name, in segments that are free in the old state too.
    pub(crate) opening: bool,
    pub(crate) failed: Option<DeviceError>,
    /// The device whose failure that was.
    pub(crate) failed_device: Option<usize>,
    pub(crate) stop: Stop,
    pub(crate) counters: Counters,
}

/// Blocks that the engine takes from the arena when it opens a pool of `geo`, rounded to powers
/// of two as a buddy allocator does.
#[must_use]
pub fn own_blocks(geo: &Geometry) -> u32 {
    let summary = geo.shape.summary_blocks().next_power_of_two();
    let batch = USER_STREAMS as u32 * crate::limits::BATCH_BLOCKS + 1;
    (BATCHES as u32 + 1) * batch
        + SUMMARIES as u32 * summary
        + 4 * crate::limits::META_PAGES as u32
        + 3
        + 2 * RMWS as u32
        + crate::clean::OWN_BLOCKS
        + crate::scrub::OWN_BLOCKS
        + crate::rewrite::OWN_BLOCKS
        + crate::leaf_writer::OWN_BLOCKS
        + crate::leaf_loader::OWN_BLOCKS
}

impl Engine {
    /// Takes the next device command; the caller must issue it.
    pub fn next_io(&mut self) -> Option<DeviceIo> {
        self.out.pop_front()
    }

    /// Takes the next answer.
    pub fn next_completion(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    /// Issues a command whose offset is one of the pool.
    pub(crate) fn emit(&mut self, token: Token, mut command: DeviceCommand) {
        let device = match &mut command {
            DeviceCommand::Read { offset, .. }
            | DeviceCommand::Write { offset, .. }
            | DeviceCommand::Discard { offset, .. } => {
                let (device, rest) = split_offset(*offset);
                *offset = rest;
                device
            }
            DeviceCommand::Flush => self.geo.journal.device as usize,
        };
        self.emit_to(device, token, command);
    }

    /// Issues a command whose offset is one of this device.
    pub(crate) fn emit_to(&mut self, device: usize, token: Token, command: DeviceCommand) {
        self.io_in_flight += 1;
        if token.is_write() {
            self.flush.write_begun(device);
        }
        let refused = (token.is_write() || token == Token::Flush) && self.has_failed(device);
        let token = token.encode(device);
        if self.degraded.is_missing(device) || refused {
            return self.degraded.refuse(token);
        }
        self.out.push_back(DeviceIo { device: device as u8, token, command });
    }

    pub(crate) fn complete(&mut self, tag: Tag, result: Result<(), IoFault>) {
        self.done.push_back(Completion { tag, result });
    }

    /// Reports the end of a device command. Call [`Engine::pump`] before sleeping.
    pub fn device_done(
        &mut self,
        bufs: &mut impl Buffers,
        token: IoToken,
        result: Result<(), DeviceError>,
    ) {
        let Some((token, device)) = Token::decode(token) else {
            debug_assert!(false, "a token that was never given out");
            return;
        };
        self.io_in_flight -= 1;
        if token.is_write() {
            self.flush.write_ended(device);
        }
        if let Token::Read { op, first, blocks, retried } = token {
            self.read_done(bufs, op, first, blocks, retried, result);
            return;
        }
        // A read that fails is no failure of the pool.
        match token {
            Token::Discard(segment) => return self.discard_done(segment, result),
            Token::Change => return self.change_io_done(result),
            Token::LastFlush => return self.last_flush_done(result),
            Token::CleanSummary => return self.clean_summary_read(bufs, result),
            Token::CleanRead(i) => return self.clean_read_done(i, result),
            Token::ScrubRead(i) => return self.scrub_read_done(i, result),
            Token::LeafRead(i) => return self.leaf_read_done(bufs, i, result),
            _ => {}
        }
        let ignored =
            matches!(token, Token::BatchData { .. }) && self.planted.has(Plant::IgnoreWriteErrors);
        if let Err(error) = result
            && !ignored
        {
            self.io_failed(device, token, error);
        }
        match token {
            Token::BatchData { batch: i, .. } | Token::BatchJournal(i) => {
                self.batches[i as usize].io_done();
            }
            Token::Summary(segment) => self.summary_written(segment),
            Token::MetaPage(page) => self.meta.written(page),
            Token::CompactionPage(page) => {
                if let Some(compaction) = &mut self.compaction {
                    compaction.chain.written(page);
                }
            }
            Token::Superblock => self.super_write.io_left -= 1,
            Token::Flush => self.device_flushed(),
            Token::CleanWrite(chunk) => self.clean_write_done(chunk),
            Token::LeafWrite(chunk) => self.leaf_writer.written(chunk),
            Token::CleanSummary
            | Token::Change
            | Token::LastFlush
            | Token::Discard(_)
            | Token::CleanRead(_)
            | Token::ScrubRead(_)
            | Token::LeafRead(_)
            | Token::Read { .. } => {}
        }
    }

    /// Poisons the pool: after a failed write or flush nothing since the last good flush may be
    /// believed, so nothing more is acknowledged (Rebello et al., "Can Applications Recover from
    /// fsync Failures?", ATC 2020).
    pub(crate) fn fail(&mut self, error: DeviceError) {
        self.failed.get_or_insert(error);
    }

    /// Does the upkeep that is due: answers what has completed, closes batches, seals, writes
    /// metadata, starts flushes. Call once per turn of the reactor, after the events.
    pub fn pump(&mut self, bufs: &mut impl Buffers, now_ns: u64) {
        self.now_ns = now_ns;
        self.note_requests();
        while let Some((token, result)) = self.take_refused() {
            self.device_done(bufs, token, result);
        }
        self.retire(bufs);
        if self.is_read_only() {
            self.again = false;
            self.advance_paging();
            self.drain_failed(bufs);
        } else if self.failures.is_parting() {
            self.advance_paging();
            for _ in 0..STEPS_PER_PUMP {
                self.again = false;
                // What is writing a superblock must come to its end; nothing new is begun.
                self.advance_change(bufs);
                self.advance_scrub(bufs);
                self.advance_superblock(bufs);
                self.advance_rebuild_flag(bufs);
                self.advance_compaction(bufs);
                self.advance_parting(bufs);
                if !self.again {
                    break;
                }
            }
            self.start_flush_if_due();
        } else {
            let paging = self.advance_paging();
            self.advance_counting();
            for _ in 0..STEPS_PER_PUMP {
                self.again = false;
                self.advance_again(bufs);
                if !self.failures.has_again() {
                    self.advance_rmws(bufs);
                    self.advance_rewriting(bufs);
                    self.advance_shrinks(bufs);
                }
                self.advance_seals(bufs);
                self.advance_segments(bufs);
                self.advance_switches();
                self.advance_cleaner(bufs);
                self.advance_change(bufs);
                self.advance_evacuation(bufs);
                self.advance_summary_copies();
                self.advance_scrub(bufs);
                self.advance_meta(bufs);
                self.advance_superblock(bufs);
                self.advance_rebuild_flag(bufs);
                self.advance_compaction(bufs);
                self.relieve_journal(bufs);
                self.check_orphans();
                self.advance_stop(bufs);
                if !self.again {
                    break;
                }
            }
            self.again |= paging;
            let graves = self.graves.len();
            if !self.leaves_deleted() {
                self.advance_reclaim();
                self.advance_dying();
            }
            self.advance_forks();
            // What has died last can be freed now, and the cleaner may begin.
            self.again |= self.graves.len() < graves;
            self.advance_discards();
            self.close_batch_if_due(bufs);
            self.start_flush_if_due();
        }
        self.finish_stop(bufs);
    }

    /// When [`Engine::pump`] must be called at the latest, on the clock given to it; `None` if
    /// only a request or a completion can bring work.
    #[must_use]
    pub fn next_timer_ns(&self) -> Option<u64> {
        if self.is_read_only() {
            return self.has_refused().then_some(self.now_ns);
        }
        let graves = !self.graves.is_empty() && !self.leaf_loader.is_reading();
        let deleted = (graves || self.dying_goes_on()) && !self.leaves_deleted();
        let upkeep = (deleted || !self.forks.is_empty()) && !self.failures.is_parting();
        if self.again || self.has_refused() || upkeep {
            return Some(self.now_ns);
        }
        let background = [
            self.scrub_timer_ns(),
            self.idle_timer_ns(),
            self.discard_timer_ns(),
            self.rewriter.timer_ns(),
        ];
        let timers = [self.flush.deadline_ns(), self.rmws.held_until()];
        timers.into_iter().chain(background).flatten().min()
    }

    /// How long a read-modify-write of a volume that waits may be held when the pool has become
    /// full since it was taken, in nanoseconds; 60 seconds unless told otherwise. Requests that
    /// were not taken are the caller's to hold.
    pub fn set_full_wait_ns(&mut self, wait_ns: u64) {
        self.full_wait_ns = wait_ns;
        self.again |= self.rmws.held_until().is_some();
    }

    /// Whether a part of a block that was taken is held until there is space for it, for as long as
    /// [`Engine::set_full_wait_ns`] says at most. Requests about that block are `Busy` until then.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.rmws.held_until().is_some()
    }

    /// Blocks that were written and are dead, in segments that are not free.
    fn dead_blocks(&self) -> u64 {
        let open = self.open.iter().flatten();
        let open =
            open.map(|open| u64::from(open.next.saturating_sub(self.segs.row(open.segment).live)));
        (open.sum::<u64>() + self.segs.dead_blocks()).saturating_sub(self.segs.uncounted())
    }

    /// The pool's state.
    #[must_use]
    pub fn state(&self) -> PoolState {
        match (self.failed, self.stop.is_begun(), self.is_stopped()) {
            (_, _, true) => PoolState::Stopped,
            (Some(error), _, _) => PoolState::Failed(error),
            (None, false, _) if self.is_degraded() => PoolState::Degraded,
            (None, true, _) => PoolState::Stopping,
            (None, false, _) => PoolState::Running,
        }
    }

    /// The pool's identity.
    #[must_use]
    pub fn pool_uuid(&self) -> [u8; 16] {
        self.pool
    }

    /// The pool's layout.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geo
    }

    /// Counts since the pool was opened.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Bytes that can be written now by volumes without a reservation, without looking at every
    /// segment as [`Engine::usage`] does.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.room() * flagstone_block::BLOCK_SIZE as u64
    }

    /// Space of the pool.
    #[must_use]
    pub fn usage(&self) -> PoolUsage {
        let block = flagstone_block::BLOCK_SIZE as u64;
        PoolUsage {
            capacity: self.usable_blocks() * block,
            live: self.segs.live() * block,
            kept: self.kept * block,
            available: self.available(),
            held: self.space.held * block,
            debt: self.dead_blocks() * block,
            log_debt: self.log_since * block,
            segments: self.geo.capacity,
            segments_free: self.segs.free(),
            segments_reserved: self.floor().min(self.segs.free()),
            segments_meta: self.segs.meta(),
            map_bytes: (self.slab.used() * size_of::<crate::map::Leaf>()) as u64,
        }
    }

    /// The volumes, in no particular order.
    pub fn volumes(&self) -> impl Iterator<Item = &VolumeInfo> {
        self.active_infos().filter(|info| info.snapshot.is_none())
    }

    /// The snapshots, in no particular order.
    pub fn snapshots(&self) -> impl Iterator<Item = &VolumeInfo> {
        self.active_infos().filter(|info| info.snapshot.is_some())
    }

    fn active_infos(&self) -> impl Iterator<Item = &VolumeInfo> {
        let active = |v: &&crate::volume::Volume| v.state == crate::volume::VolumeState::Active;
        self.volumes.iter().filter(active).map(|v| &v.info)
    }

    /// The volume named `name`.
    #[must_use]
    pub fn volume_by_name(&self, name: &str) -> Option<&VolumeInfo> {
        let volume = self.volumes.named(name)?;
        (volume.state == crate::volume::VolumeState::Active).then_some(&volume.info)
    }

    /// The volume with this number.
    #[must_use]
    pub fn volume(&self, id: flagstone_block::VolumeId) -> Option<&VolumeInfo> {
        let volume = self.volumes.get(id.0)?;
        (volume.state == crate::volume::VolumeState::Active).then_some(&volume.info)
    }

    pub(crate) fn ready(&self) -> Result<(), SubmitError> {
        if self.failed.is_some() {
            return Err(SubmitError::Failed);
        }
        if self.stop.is_begun() {
            return Err(SubmitError::Stopping);
        }
        if self.is_degraded() {
            return Err(SubmitError::ReadOnly);
        }
        if self.failures.holds_requests() {
            return Err(SubmitError::Busy);
        }
        Ok(())
    }

    /// Changes one map entry and the live counts with it; the block at the old place dies.
    pub(crate) fn map_block(&mut self, volume: u32, lba: Lba, new: Mapping, lsn: u64) {
        let Some(volume) = self.volumes.get_mut(volume) else { return };
        let touched = volume.map.touched();
        let old = volume.map.set(&mut self.slab, lba, new);
        self.touched = self.touched + volume.map.touched() - touched;
        if let Mapping::Block { pbn, .. } = new {
            self.segs.born(self.geo.locate(pbn).0);
        }
        match old.mapping {
            Mapping::Block { pbn, .. } if old.owned || self.planted.has(Plant::InheritedDies) => {
                self.segs.died(self.geo.locate(pbn).0, lsn);
            }
            Mapping::Kept => self.kept -= 1,
            Mapping::Block { .. } | Mapping::Hole => {}
        }
        if new == Mapping::Kept {
            self.kept += 1;
        }
    }

    pub(crate) fn new_queues() -> (VecDeque<DeviceIo>, VecDeque<Completion>) {
        (VecDeque::with_capacity(READS * 2), VecDeque::with_capacity(READS + FLUSH_WAITERS))
    }
}
