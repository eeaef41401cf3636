//! Writes: admission, the open segments, and copying into a batch.

use crate::batch::{Effect, Place, Source, Waiter};
use crate::engine::Engine;
use crate::error::{IoFault, SubmitError};
use crate::format::record::{Record, layout, write_bytes};
use crate::leaf_loader::Paging;
use crate::limits::{BATCH_BLOCKS, FLUSH_WAITERS, USER_STREAMS};
use crate::map::{LEAF_BLOCKS, Takes};
use crate::plant::Plant;
use crate::segment::{OpenSegment, SegmentState};
use crate::stream::HOT;
use crate::volume::{Volume, VolumeState};
use flagstone_block::{BLOCK_SIZE, Buffers, Durability, Lba, Tag, VolumeId};

/// Requests for a segment that come longer after each other than this do not wait for the same one.
const WAITS_APART_NS: u64 = 1_000_000_000;

/// Since when requests wait for a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stall {
    /// Sum of what counts what brings one closer.
    progress: u64,
    since_ns: u64,
    /// When it was asked for last.
    asked_ns: u64,
}

/// Bytes of a SEGMENT_OPEN record.
const SEGMENT_OPEN_BYTES: usize = 32;

impl Engine {
    /// Writes a prefix of `data` at byte `offset` and returns how much was taken; the bytes are
    /// copied, so the caller may reuse them. One completion with `tag` follows per call.
    ///
    /// A block-aligned call with at least one whole block takes whole blocks. Otherwise the call
    /// takes the rest of one block, which is read, modified and written; `data` must then hold
    /// all bytes that the request has for that block.
    ///
    /// # Errors
    /// `Busy`, `NoSpace`, `OutOfRange`, `NoVolume`, `Failed`, `Stopping`: nothing happened.
    pub fn write(
        &mut self,
        bufs: &mut impl Buffers,
        tag: Tag,
        volume: VolumeId,
        offset: u64,
        data: &[u8],
        durability: Durability,
    ) -> Result<usize, SubmitError> {
        self.disturb();
        self.ready()?;
        self.writable(volume)?;
        self.check_range(volume, offset, data.len() as u64)?;
        self.check_flush_room(durability)?;
        let in_block = offset as usize % BLOCK_SIZE;
        if in_block != 0 || data.len() < BLOCK_SIZE {
            let bytes = data.len().min(BLOCK_SIZE - in_block);
            self.begin_rmw(bufs, tag, volume, offset, Some(&data[..bytes]), bytes, durability)?;
            return Ok(bytes);
        }
        let lba = Lba::containing(offset);
        let blocks = self.rmws.unguarded(volume.0, lba.0, (data.len() / BLOCK_SIZE) as u64);
        if blocks == 0 {
            return Err(SubmitError::Busy);
        }
        let blocks = blocks.min(u64::from(BATCH_BLOCKS)) as u32;
        match self.leaves_here(volume.0, lba, u64::from(blocks), false) {
            Paging::Here => {}
            Paging::Coming => return Err(SubmitError::Busy),
            Paging::Bad => {
                self.complete(tag, Err(IoFault::BadBlock { lba: lba.0 }));
                return Ok(blocks as usize * BLOCK_SIZE);
            }
        }
        let blocks = self.charge(volume.0, lba, blocks)?;
        let blocks = self.pace(blocks)?;
        let (leaves, copies) = self.leaves_taken(volume.0, lba.0, u64::from(blocks));
        self.charge_leaves(leaves, copies)?;
        self.charge_more_leaves(volume.0, lba, (blocks, leaves))?;
        let stream = self.stream_of(volume.0, lba, blocks);
        let place = self.data_room(bufs, stream, blocks)?;
        let bytes = place.blocks as usize * BLOCK_SIZE;
        let write = Some(self.batches[place.batch as usize].records());
        self.await_batch(place.batch, Waiter { tag, durability, rmw: None, write });
        self.append_blocks(bufs, place, volume.0, lba.0, Source::Bytes(&data[..bytes]));
        Ok(bytes)
    }

    pub(crate) fn active(&self, volume: VolumeId) -> Result<&Volume, SubmitError> {
        let volume = self.volumes.get(volume.0).ok_or(SubmitError::NoVolume)?;
        if volume.state == VolumeState::Active { Ok(volume) } else { Err(SubmitError::NoVolume) }
    }

    pub(crate) fn check_range(
        &self,
        volume: VolumeId,
        offset: u64,
        bytes: u64,
    ) -> Result<(), SubmitError> {
        let volume = self.active(volume)?;
        let size = match self.planted.has(Plant::ShrinkAdmits) {
            true => volume.info.size,
            false => volume.end(),
        };
        match offset.checked_add(bytes) {
            Some(end) if end <= size && bytes > 0 => Ok(()),
            _ => Err(SubmitError::OutOfRange),
        }
    }

    /// FUA requests become flush waiters; half of those are kept for flushes.
    pub(crate) fn check_flush_room(&self, durability: Durability) -> Result<(), SubmitError> {
        if durability == Durability::Fua && self.flush.waiters() >= FLUSH_WAITERS / 2 {
            return Err(SubmitError::Busy);
        }
        Ok(())
    }

    /// Refuses a request that may make `leaves` more leaves dense if the segment that their pages
    /// need is not there, or if there is no memory for these and `copies` of others.
    pub(crate) fn charge_leaves(&mut self, leaves: u64, copies: u64) -> Result<(), SubmitError> {
        if leaves + copies == 0 {
            return Ok(());
        }
        if !self.has_leaf_room(leaves + copies) {
            self.starve_for_leaves();
            return Err(SubmitError::Busy);
        }
        if self.leaf_segments(leaves) > self.leaf_segments(0) && self.segs.free() <= self.floor() {
            return Err(self.no_segment());
        }
        Ok(())
    }

    /// How many of the leaves of `blocks` blocks from `lba` have no entries yet, and how many must be
    /// copied to be changed.
    pub(crate) fn leaves_taken(&self, volume: u32, lba: u64, blocks: u64) -> (u64, u64) {
        let Some(volume) = self.volumes.get(volume) else { return (0, 0) };
        let leaves = lba / LEAF_BLOCKS as u64..(lba + blocks).div_ceil(LEAF_BLOCKS as u64);
        leaves.fold((0, 0), |(new, copies), leaf| match volume.map.change_takes(&self.slab, leaf) {
            Takes::Leaf => (new + 1, copies),
            Takes::Copy => (new, copies + 1),
            Takes::Nothing => (new, copies),
        })
    }

    /// Where at least one of `wanted` blocks may be appended: to `stream`, or to another if there
    /// is no segment for that and none to come.
    pub(crate) fn data_room(
        &mut self,
        bufs: &mut impl Buffers,
        mut stream: usize,
        wanted: u32,
    ) -> Result<Place, SubmitError> {
        for stream in 0..USER_STREAMS {
            if self.open[stream].as_ref().is_some_and(|o| o.lsn_span_used_up(self.next_lsn)) {
                self.seal_open(bufs, stream);
            }
        }
        if self.open[stream].is_none() {
            match self.open_segment(bufs, stream) {
                Err(SubmitError::NoSpace) => {
                    let open = self.open.iter().position(Option::is_some);
                    stream = open.ok_or(SubmitError::NoSpace)?;
                }
                opened => opened?,
            }
        }
        let batch = self.batch_with_room(bufs, write_bytes(1), false)?;
        let by_records = (self.batches[batch as usize].record_room() - layout::write::at::CRCS) / 4;
        let by_batch = BATCH_BLOCKS - self.batches[batch as usize].run_blocks(stream);
        let open = self.open[stream].as_ref().expect("opened above");
        let by_segment = self.geo.shape.data_blocks - open.next;
        // An even count of checksums needs no padding that might not fit.
        let by_records = if by_records > 1 { by_records & !1 } else { by_records };
        let blocks = wanted.min(by_records as u32).min(by_batch).min(by_segment);
        Ok(Place { batch, stream, blocks })
    }

    fn open_segment(&mut self, bufs: &mut impl Buffers, stream: usize) -> Result<(), SubmitError> {
        if self.summaries.is_empty() || self.sealing.len() == self.sealing.capacity() {
            self.flush.want();
            return Err(SubmitError::Busy);
        }
        if self.segs.free() <= self.floor() {
            return Err(self.no_segment());
        }
        let batch = self.batch_with_room(bufs, SEGMENT_OPEN_BYTES + write_bytes(1), false)?;
        debug_assert_eq!(self.batches[batch as usize].run_blocks(stream), 0);
        let segment = self.segs.take(SegmentState::Open).ok_or(SubmitError::NoSpace)?;
        let generation = self.next_generation;
        self.next_generation += 1;
        let row = self.segs.row_mut(segment);
        (row.generation, row.hot) = (generation, stream == HOT);
        let summary = self.summaries.pop().expect("asked above");
        self.open[stream] = Some(OpenSegment {
            segment,
            generation,
            next: 0,
            first_lsn: 0,
            last_lsn: 0,
            first_jseq: self.batch_jseq(batch),
            summary,
            in_meta: 0,
        });
        self.log(bufs, batch, Effect::SegmentOpen, |lsn| Record::SegmentOpen {
            segment,
            lsn,
            class: 0,
            generation,
        });
        Ok(())
    }

    /// Refuses what makes the metadata chain longer, when it would take what the next checkpoint needs
    /// and none can begin now: not before all is counted what is live.
    pub(crate) fn check_chain_room(&mut self) -> Result<(), SubmitError> {
        if self.is_counting() && self.segs.free() <= self.reserve() {
            return Err(self.no_segment());
        }
        Ok(())
    }

    /// Refuses a volume or snapshot, with `bytes` bytes of records, if these would make the metadata a segment longer
    /// that is not there: what is taken already must find its place.
    pub(crate) fn charge_records(&mut self, bytes: usize) -> Result<(), SubmitError> {
        let longer = self.chain_segments_with(0, 0, bytes) - self.chain_segments(0);
        self.charge_longer(longer)
    }

    /// Refuses what makes the metadata `longer` segments longer if these are not there.
    pub(crate) fn charge_longer(&mut self, longer: u32) -> Result<(), SubmitError> {
        if longer == 0 {
            return Ok(());
        }
        self.charge_metadata(self.usable_blocks_beside(0, longer))
    }

    /// Refuses a write of `blocks` blocks that makes `leaves` leaves if their pages would take a segment more from
    /// what volumes take already. What was kept for it is written all the same; and with reservations every write
    /// is charged for that, see [`Engine::charge`].
    pub(crate) fn charge_more_leaves(
        &mut self,
        volume: u32,
        lba: Lba,
        (blocks, leaves): (u32, u64),
    ) -> Result<(), SubmitError> {
        if leaves == 0 || self.space.reserved > 0 {
            return Ok(());
        }
        let grows = |of: fn(&Self, u64) -> u32| of(self, leaves) > of(self, 0);
        let grows = grows(Self::leaf_segments) || grows(Self::chain_segments);
        let takes = |volume| self.new_blocks(volume, lba.0, blocks) > 0;
        if !grows || !self.volumes.get(volume).is_some_and(takes) {
            return Ok(());
        }
        self.charge_metadata(self.usable_blocks_beside(leaves, 0))
    }

    /// Refuses what would leave volumes no more than `usable` blocks if they need more.
    pub(crate) fn charge_metadata(&mut self, usable: u64) -> Result<(), SubmitError> {
        let needed = self.needed_blocks();
        if usable >= needed {
            return Ok(());
        }
        // No segment that the cleaner sets free would help: volumes must take less, or metadata.
        let under_way = self.space.coming + self.space.promising;
        let is_discard = |effect| matches!(effect, Effect::Zero { keep: false, .. });
        let settles = self.takes_dying()
            || !self.graves.is_empty()
            || self.are_copies_leaving()
            || self.is_compacting()
            || self.effects_under_way().any(is_discard)
            // Writes to one leaf count it once each until the first is applied.
            || self.new_leaves_in_flight() > 0
            || (under_way > 0 && usable >= needed.saturating_sub(under_way));
        let busy = settles && !self.is_stalled();
        Err(if busy { SubmitError::Busy } else { SubmitError::NoSpace })
    }

    /// Whether a checkpoint is under way or about to begin.
    pub(crate) fn is_compacting(&self) -> bool {
        let may_begin = !self.stop.is_begun() && !self.is_counting_stuck();
        self.compaction.is_some() || (may_begin && self.compaction_due())
    }

    /// Whether deleted snapshots are being taken apart. Before all is counted nothing dies.
    pub(crate) fn takes_dying(&self) -> bool {
        !self.dying.is_empty() && !self.is_counting_stuck()
    }

    /// No segment may be taken: whether one is on its way, or the pool is full.
    pub(crate) fn no_segment(&mut self) -> SubmitError {
        // What is dead in segments that are being sealed counts once they are.
        let flush_helps = self.segs.dying() > 0 || !self.sealing.is_empty() || !self.is_quiet();
        if flush_helps {
            self.flush.want();
        }
        let coming = flush_helps
            || !self.graves.is_empty()
            || self.takes_dying()
            || self.are_copies_leaving()
            || self.is_compacting();
        let busy = (self.starve() || coming) && !self.is_stalled();
        if busy { SubmitError::Busy } else { SubmitError::NoSpace }
    }

    /// Whether requests that wait for a segment have waited for as long as they may while nothing came closer to giving
    /// one: no block was moved, no page of the map read or written, no checkpoint ended.
    fn is_stalled(&mut self) -> bool {
        let counters = &self.counters;
        let progress = [counters.blocks_moved, counters.leaf_pages, counters.leaves_read];
        let progress = [self.segs.events(), counters.compactions].into_iter().chain(progress).sum();
        let now_ns = self.now_ns;
        let wait_ns = self.full_wait_ns.max(WAITS_APART_NS);
        let stall =
            self.stall.get_or_insert(Stall { progress, since_ns: now_ns, asked_ns: now_ns });
        let waited_on = now_ns.saturating_sub(stall.asked_ns) < WAITS_APART_NS;
        if stall.progress != progress || !waited_on {
            *stall = Stall { progress, since_ns: now_ns, asked_ns: now_ns };
        }
        stall.asked_ns = now_ns;
        now_ns.saturating_sub(stall.since_ns) >= wait_ns
    }
}
