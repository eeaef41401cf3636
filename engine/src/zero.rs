//! Discard and write-zeroes: a record and an unmap, no data.

use crate::batch::{Effect, Waiter};
use crate::engine::Engine;
use crate::error::{IoFault, SubmitError};
use crate::flush::FlushWaiter;
use crate::format::record::{Record, ZERO_BYTES};
use crate::leaf_loader::Paging;
use crate::limits::ZERO_BLOCKS;
use crate::map::{LEAF_BLOCKS, LeafState};
use crate::plant::Plant;
use flagstone_block::{BLOCK_SIZE, Buffers, Durability, Lba, Tag, VolumeId, ZeroMode};

impl Engine {
    /// Makes a prefix of `offset..offset + len` read as zeroes, as `mode` says, and returns how
    /// many bytes were taken. One completion with `tag` follows per call.
    ///
    /// Partial blocks at the ends are read, modified and written, except by a discard, which
    /// leaves them alone.
    ///
    /// # Errors
    /// `Busy`, `NoSpace`, `OutOfRange`, `NoVolume`, `Failed`, `Stopping`: nothing happened.
    #[allow(clippy::too_many_arguments)] // one request
    pub fn zero(
        &mut self,
        bufs: &mut impl Buffers,
        tag: Tag,
        volume: VolumeId,
        offset: u64,
        len: u64,
        mode: ZeroMode,
        durability: Durability,
    ) -> Result<u64, SubmitError> {
        self.disturb();
        self.ready()?;
        self.writable(volume)?;
        self.check_range(volume, offset, len)?;
        self.check_flush_room(durability)?;
        let block = BLOCK_SIZE as u64;
        let in_block = offset % block;
        if in_block != 0 || len < block {
            let bytes = len.min(block - in_block);
            if mode == ZeroMode::Discard {
                self.answer_without_record(tag, durability);
            } else {
                self.begin_rmw(bufs, tag, volume, offset, None, bytes as usize, durability)?;
            }
            return Ok(bytes);
        }
        let lba = offset / block;
        let keep = mode == ZeroMode::KeepAllocated;
        let unguarded = self.rmws.unguarded(volume.0, lba, len / block);
        if unguarded == 0 {
            return Err(SubmitError::Busy);
        }
        if !keep {
            let untouched = self.untouched(volume.0, lba, unguarded);
            if untouched > 0 {
                self.answer_without_record(tag, durability);
                return Ok(untouched * block);
            }
        }
        self.check_chain_room()?;
        let blocks = match self.zero_prefix(volume.0, lba, unguarded.min(ZERO_BLOCKS)) {
            Some(0) => return Err(SubmitError::Busy),
            Some(blocks) => blocks,
            None => {
                self.complete(tag, Err(IoFault::BadBlock { lba }));
                return Ok(block);
            }
        };
        // What is kept already, or mapped, is not charged again.
        let promised = match self.volumes.get(volume.0) {
            Some(vol) if keep => self.newly_kept(vol, lba, blocks)?,
            _ => 0,
        };
        // A leaf in which only some blocks are kept zeroes has entries: that at either end. So has one of which only
        // some are a snapshot's still.
        let ends = if keep || promised > 0 { 2 } else { self.new_ends(volume.0, lba, blocks) };
        self.charge_leaves(ends, 0)?;
        if !keep {
            self.charge_statements(volume.0, (lba, blocks), ends)?;
        }
        let batch = self.batch_with_room(bufs, ZERO_BYTES, false)?;
        self.expect_new_leaves(batch, ends);
        let vol = self.volumes.get_mut(volume.0).expect("checked above");
        if keep {
            // Metadata compaction states the kept zeroes of touched leaves only.
            let mut at = lba;
            while at < lba + blocks {
                self.touched += u64::from(vol.map.touch(&mut self.slab, Lba(at)));
                at = (at / LEAF_BLOCKS as u64 + 1) * LEAF_BLOCKS as u64;
            }
        }
        self.log_zero(bufs, batch, volume.0, (lba, blocks), keep, promised);
        self.await_batch(batch, Waiter { tag, durability, rmw: None, write: None });
        Ok(blocks * block)
    }

    /// Logs that `blocks` blocks from `lba` become holes or, with `keep`, kept zeroes, `promised` of
    /// them newly.
    pub(crate) fn log_zero(
        &mut self,
        bufs: &mut impl Buffers,
        batch: u32,
        volume: u32,
        (lba, blocks): (u64, u64),
        keep: bool,
        promised: u64,
    ) {
        let Some(vol) = self.volumes.get_mut(volume) else { return };
        let vseq = vol.next_vseq;
        vol.next_vseq += 1;
        self.begin_zero(volume, keep, promised);
        let effect = Effect::Zero { volume, lba, blocks, keep, promised };
        self.log(bufs, batch, effect, |lsn| Record::Zero {
            volume,
            lsn,
            lba,
            blocks: blocks as u32,
            keep,
            vseq,
        });
    }

    /// How many of `blocks` blocks from `lba` lie in leaves that are in memory; begins to read the
    /// next ones. `None` if the first can't be read.
    pub(crate) fn zero_prefix(&mut self, volume: u32, lba: u64, blocks: u64) -> Option<u64> {
        if self.slab.away() == 0 {
            return Some(blocks);
        }
        let per_leaf = LEAF_BLOCKS as u64;
        let end = lba + blocks;
        let (mut at, mut asked, mut here) = (lba, 0, None);
        let ahead = self.leaves_ahead();
        while at < end && asked < ahead {
            let vol = self.volumes.get(volume)?;
            let (state, leaves) = vol.map.leaf(&self.slab, at / per_leaf);
            if let LeafState::Away(away) = state {
                let page = self.slab.away_leaf(away).page;
                if self.request_leaf(volume, at / per_leaf, page) == Paging::Bad && at == lba {
                    return None;
                }
                here.get_or_insert(at);
                asked += 1;
            }
            at = (at / per_leaf + leaves) * per_leaf;
        }
        Some(here.unwrap_or(end) - lba)
    }

    /// How many of the leaves at the ends of a range have entries of their own once it is discarded, and have
    /// none now: because they are kept zeroes as a whole, or a snapshot's.
    pub(crate) fn new_ends(&self, volume: u32, lba: u64, blocks: u64) -> u64 {
        let Some(volume) = self.volumes.get(volume) else { return 0 };
        let (per_leaf, end) = (LEAF_BLOCKS as u64, lba + blocks);
        let (first, last) = (lba / per_leaf, (end - 1) / per_leaf);
        let is_new = |leaf: &u64| {
            let whole = lba <= leaf * per_leaf && (leaf + 1) * per_leaf <= end;
            let inherited = volume.cuts > 0 || !volume.map.is_different(*leaf);
            let kept = volume.map.leaf(&self.slab, *leaf).0 == LeafState::AllKept;
            kept || (!whole && inherited && volume.map.has_leaf(*leaf))
        };
        let last = Some(last).filter(|last| *last != first);
        [first].into_iter().chain(last).filter(is_new).count() as u64
    }

    /// Refuses a discard of what is a snapshot's, which makes `ends` leaves, if there is no room for the statements
    /// about these, and about those of which there is nothing any more: what is taken already must find its place.
    pub(crate) fn charge_statements(
        &mut self,
        volume: u32,
        (lba, blocks): (u64, u64),
        ends: u64,
    ) -> Result<(), SubmitError> {
        let per_leaf = LEAF_BLOCKS as u64;
        let Some(vol) = self.volumes.get(volume) else { return Ok(()) };
        // All of it is its own: nobody need look at each leaf.
        if vol.parent.is_none() && vol.cuts == 0 {
            return Ok(());
        }
        let inherits = |leaf: &u64| {
            let state = vol.map.leaf(&self.slab, *leaf).0;
            let empty = matches!(state, LeafState::Untouched | LeafState::AllHole);
            !empty && (vol.cuts > 0 || !vol.map.is_different(*leaf))
        };
        let leaves = (lba / per_leaf..(lba + blocks).div_ceil(per_leaf)).filter(inherits).count();
        if leaves == 0 {
            return Ok(());
        }
        let inherits = |volume: u32| self.volumes.get(volume).is_some_and(|v| v.parent.is_some());
        let under_way = self.effects_under_way().map(|effect| match effect {
            Effect::Zero { volume, blocks, keep: false, .. } if inherits(volume) => {
                blocks / per_leaf + 2
            }
            _ => 0,
        });
        let touched = leaves as u64 + under_way.sum::<u64>();
        let longer = self.chain_segments_with(ends, touched, 0) - self.chain_segments(0);
        if self.leaf_segments(ends) > self.leaf_segments(0) {
            return self.charge_metadata(self.usable_blocks_beside(ends, longer));
        }
        self.charge_longer(longer)
    }

    /// Blocks from `lba`, up to `blocks`, that were never written to: there is nothing to undo,
    /// so a discard of a new terabyte costs a walk over its absent nodes.
    fn untouched(&self, volume: u32, lba: u64, blocks: u64) -> u64 {
        let Some(volume) = self.volumes.get(volume) else { return 0 };
        let per_leaf = LEAF_BLOCKS as u64;
        let mut at = lba;
        while at < lba + blocks {
            let (state, leaves) = volume.map.leaf(&self.slab, at / per_leaf);
            if state != LeafState::Untouched {
                break;
            }
            at = (at / per_leaf + leaves) * per_leaf;
        }
        at.min(lba + blocks) - lba
    }

    /// Answers a request that changes nothing; with FUA it still means that what was
    /// acknowledged before is durable.
    pub(crate) fn answer_without_record(&mut self, tag: Tag, durability: Durability) {
        if durability == Durability::Fua && self.journal.next > self.journal.durable {
            let jseq = self.journal.next;
            self.flush.wait(FlushWaiter { tag, jseq, volume: None, fua: true });
        } else {
            self.complete(tag, Ok(()));
        }
    }

    /// Unmaps whole blocks; what was never mapped costs nothing.
    pub(crate) fn unmap(&mut self, volume: u32, lba: u64, blocks: u64, keep: bool, lsn: u64) {
        let Some(vol) = self.volumes.get_mut(volume) else { return };
        let (segs, geo) = (&mut self.segs, self.geo);
        let (before, taken, touched) = (vol.map.kept(), vol.taken(), vol.map.touched());
        let mut dead = |pbn| segs.died(geo.locate(pbn).0, lsn);
        vol.map.zero(&mut self.slab, lba, lba + blocks, keep, &mut dead);
        self.kept = self.kept + vol.map.kept() - before;
        self.touched = self.touched + vol.map.touched() - touched;
        self.space.epoch += u64::from(vol.taken() < taken);
        if !self.planted.has(Plant::LoseReturned) {
            self.recount_held(volume);
        }
    }
}
