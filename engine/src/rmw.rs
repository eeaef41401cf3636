//! Read-modify-write: requests that don't cover whole blocks.
//!
//! Each holds a guard on its block from admission until its write is applied. While the guard is
//! held no other write, discard or zero of that block is admitted; and the block is read only
//! after everything admitted before has been applied. Otherwise a neighbour's acknowledged
//! sectors would be overwritten with what they held before.

use crate::batch::{Source, Waiter};
use crate::engine::Engine;
use crate::error::{IoFault, SubmitError};
use crate::leaf_loader::Paging;
use crate::limits::RMWS;
use crate::plant::Plant;
use crate::read::Reader;
use crate::volume::VolumeState;
use flagstone_block::{BLOCK_SIZE, Buffer, Buffers, Durability, Lba, Tag, VolumeId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Vacant,
    /// Until journal blocks below this one are retired.
    Settling(u64),
    Reading,
    /// Merged; waits for room in a batch.
    Merged,
    /// In a batch; the guard ends when that is retired.
    Logged,
}

#[derive(Clone, Copy, Debug)]
struct Rmw {
    stage: Stage,
    tag: Tag,
    durability: Durability,
    volume: u32,
    lba: u64,
    from: u32,
    bytes: u32,
    zero: bool,
    /// It is counted as taking a block.
    charged: bool,
    /// Since when there has been no space for it.
    full_since_ns: Option<u64>,
    /// Block 0 is the block, block 1 holds the new bytes.
    buffer: Buffer,
}

#[derive(Debug)]
pub(crate) struct Rmws {
    slots: Vec<Rmw>,
    spare: Vec<u32>,
    guards_off: bool,
    held_until_ns: Option<u64>,
}

impl Rmws {
    /// Takes the buffers of all slots from the arena; `None` if it is too small.
    pub(crate) fn new(bufs: &mut impl Buffers, guards_off: bool) -> Option<Self> {
        let mut slots = Vec::with_capacity(RMWS);
        for _ in 0..RMWS {
            slots.push(Rmw {
                stage: Stage::Vacant,
                tag: Tag(0),
                durability: Durability::Completed,
                volume: 0,
                lba: 0,
                from: 0,
                bytes: 0,
                zero: false,
                charged: false,
                full_since_ns: None,
                buffer: bufs.alloc(2)?,
            });
        }
        Some(Self {
            slots,
            spare: (0..RMWS as u32).rev().collect(),
            guards_off,
            held_until_ns: None,
        })
    }

    pub(crate) fn release(&mut self, bufs: &mut impl Buffers) {
        self.slots.drain(..).for_each(|rmw| bufs.free(rmw.buffer));
        self.spare.clear();
    }

    /// When the first of those that wait for space gives up.
    pub(crate) fn held_until(&self) -> Option<u64> {
        self.held_until_ns
    }

    /// Those that are counted as taking a block.
    pub(crate) fn charged(&self) -> impl Iterator<Item = u32> {
        let charged = |r: &&Rmw| r.stage != Stage::Vacant && r.charged;
        self.slots.iter().filter(charged).map(|r| r.volume)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.spare.len() == self.slots.len()
    }

    /// How many of `blocks` blocks from `lba` lie before the first guarded one.
    pub(crate) fn unguarded(&self, volume: u32, lba: u64, blocks: u64) -> u64 {
        if self.is_idle() || self.guards_off {
            return blocks;
        }
        let guards = self.slots.iter().filter(|r| r.stage != Stage::Vacant && r.volume == volume);
        let distance = |r: &Rmw| r.lba.checked_sub(lba).filter(|d| *d < blocks);
        guards.filter_map(distance).min().unwrap_or(blocks)
    }

    /// What was logged before those that wait to be read is logged again, in blocks below this one.
    pub(crate) fn settle_again(&mut self, jseq: u64) {
        for rmw in &mut self.slots {
            if let Stage::Settling(settled) = &mut rmw.stage
                && !self.guards_off
            {
                *settled = jseq;
            }
        }
    }

    /// The write of slot `i` is applied, or failed: its guard ends.
    pub(crate) fn finish(&mut self, i: u32) {
        self.slots[i as usize].stage = Stage::Vacant;
        self.spare.push(i);
    }
}

impl Engine {
    /// Begins to change `bytes` bytes of one block at `offset`: to `data`, or to zeroes.
    #[allow(clippy::too_many_arguments)] // one request
    pub(crate) fn begin_rmw(
        &mut self,
        bufs: &mut impl Buffers,
        tag: Tag,
        volume: VolumeId,
        offset: u64,
        data: Option<&[u8]>,
        bytes: usize,
        durability: Durability,
    ) -> Result<(), SubmitError> {
        let lba = Lba::containing(offset);
        if self.rmws.unguarded(volume.0, lba.0, 1) == 0 {
            return Err(SubmitError::Busy);
        }
        if self.rmws.spare.is_empty() {
            return Err(SubmitError::Busy);
        }
        // Its space is set aside now, so that it is not refused when its data is nobody's any more.
        self.charge(volume.0, lba, 1)?;
        let charged = self.new_blocks(self.active(volume)?, lba.0, 1) > 0;
        if charged {
            self.begin_taking(volume.0, 1);
        }
        let i = self.rmws.spare.pop().ok_or(SubmitError::Busy)?;
        let from = offset as usize % BLOCK_SIZE;
        let settled = if self.rmws.guards_off { 0 } else { self.journal.next };
        let rmw = &mut self.rmws.slots[i as usize];
        rmw.stage = Stage::Settling(settled);
        (rmw.tag, rmw.durability, rmw.volume, rmw.lba) = (tag, durability, volume.0, lba.0);
        (rmw.from, rmw.bytes, rmw.zero) = (from as u32, bytes as u32, data.is_none());
        (rmw.charged, rmw.full_since_ns) = (charged, None);
        if let Some(data) = data {
            bufs.bytes_mut(rmw.buffer.part(1, 1))[..bytes].copy_from_slice(data);
        }
        self.counters.rmws += 1;
        Ok(())
    }

    /// Takes each read-modify-write as far as it can go.
    pub(crate) fn advance_rmws(&mut self, bufs: &mut impl Buffers) {
        if self.rmws.is_idle() {
            return;
        }
        self.rmws.held_until_ns = None;
        for i in 0..self.rmws.slots.len() as u32 {
            let rmw = self.rmws.slots[i as usize];
            match rmw.stage {
                Stage::Settling(jseq) if jseq <= self.journal.retired => self.read_for_rmw(bufs, i),
                Stage::Merged => self.log_rmw(bufs, i),
                _ => {}
            }
        }
    }

    fn read_for_rmw(&mut self, bufs: &mut impl Buffers, i: u32) {
        let rmw = self.rmws.slots[i as usize];
        match self.leaves_here(rmw.volume, Lba(rmw.lba), 1, false) {
            Paging::Here => {}
            Paging::Coming => return,
            Paging::Bad => return self.end_rmw(i, Err(IoFault::BadBlock { lba: rmw.lba })),
        }
        self.rmws.slots[i as usize].stage = Stage::Reading;
        let block = rmw.buffer.part(0, 1);
        match self.start_read(bufs, Reader::Rmw(i), rmw.volume, Lba(rmw.lba), block) {
            Ok(()) => {
                // A hole needs no device read, so the block may be here already.
                if self.rmws.slots[i as usize].stage == Stage::Merged {
                    self.log_rmw(bufs, i);
                }
            }
            Err(SubmitError::Busy) => self.rmws.slots[i as usize].stage = rmw.stage,
            Err(_) => self.end_rmw(i, Err(IoFault::Gone)),
        }
    }

    /// The block was read; called from the read's completion.
    pub(crate) fn rmw_read_done(&mut self, i: u32, result: Result<(), IoFault>) {
        match result {
            Ok(()) => self.rmws.slots[i as usize].stage = Stage::Merged,
            Err(fault) => self.end_rmw(i, Err(fault)),
        }
    }

    fn log_rmw(&mut self, bufs: &mut impl Buffers, i: u32) {
        let rmw = self.rmws.slots[i as usize];
        if !self.volumes.get(rmw.volume).is_some_and(|v| v.state == VolumeState::Active) {
            self.end_rmw(i, Err(IoFault::Gone));
            return;
        }
        match self.leaves_here(rmw.volume, Lba(rmw.lba), 1, false) {
            Paging::Here => {}
            Paging::Coming => return,
            Paging::Bad => return self.end_rmw(i, Err(IoFault::BadBlock { lba: rmw.lba })),
        }
        // What it was charged at its admission is its own until it is in a batch.
        self.uncharge_rmw(i);
        let (leaves, copies) = self.leaves_taken(rmw.volume, rmw.lba, 1);
        let stream = self.stream_of(rmw.volume, Lba(rmw.lba), 1);
        // Asked for room last, since that may begin a batch: one that stays empty would keep the
        // journal moving, and what is under way from ever settling.
        let (volume, lba) = (rmw.volume, Lba(rmw.lba));
        let charged = self
            .charge(volume, lba, 1)
            .and_then(|_| self.charge_more_leaves(volume, lba, (1, leaves)));
        let room = charged.and_then(|()| {
            let room =
                self.charge_leaves(leaves, copies).and_then(|()| self.data_room(bufs, stream, 1));
            if room.is_err() && rmw.charged {
                self.begin_taking(rmw.volume, 1);
                self.rmws.slots[i as usize].charged = true;
            }
            room
        });
        let place = match room {
            Ok(place) => place,
            // Metadata has grown since, and what it was charged with it.
            Err(SubmitError::NoSpace) => return self.hold_rmw(i),
            Err(_) => return,
        };
        let (from, bytes) = (rmw.from as usize, rmw.bytes as usize);
        let (block, new) = bufs.bytes_mut(rmw.buffer).split_at_mut(BLOCK_SIZE);
        if rmw.zero {
            block[from..from + bytes].fill(0);
        } else {
            block[from..from + bytes].copy_from_slice(&new[..bytes]);
        }
        self.rmws.slots[i as usize].stage = Stage::Logged;
        let write = Some(self.batches[place.batch as usize].records());
        let waiter = Waiter { tag: rmw.tag, durability: rmw.durability, rmw: Some(i), write };
        self.await_batch(place.batch, waiter);
        self.append_blocks(bufs, place, rmw.volume, rmw.lba, Source::Block(rmw.buffer));
    }

    /// There is no space for a write that was taken: it fails, or it waits as its volume does.
    fn hold_rmw(&mut self, i: u32) {
        let (now_ns, wait_ns) = (self.now_ns, self.full_wait_ns);
        let rmw = &mut self.rmws.slots[i as usize];
        let until_ns = rmw.full_since_ns.get_or_insert(now_ns).saturating_add(wait_ns);
        let volume = rmw.volume;
        if now_ns >= until_ns || !self.waits(volume) {
            return self.end_rmw(i, Err(IoFault::NoSpace));
        }
        let first = self.rmws.held_until_ns.get_or_insert(until_ns);
        *first = (*first).min(until_ns);
    }

    fn uncharge_rmw(&mut self, i: u32) {
        let rmw = &mut self.rmws.slots[i as usize];
        if std::mem::take(&mut rmw.charged) {
            let volume = rmw.volume;
            self.end_taking(volume, 1);
            self.recount_held(volume);
        }
    }

    fn end_rmw(&mut self, i: u32, result: Result<(), IoFault>) {
        if !self.planted.has(Plant::KeepCharge) {
            self.uncharge_rmw(i);
        }
        let tag = self.rmws.slots[i as usize].tag;
        self.rmws.finish(i);
        // Another may have waited for what this one took.
        self.again = true;
        self.complete(tag, result);
    }

    /// After a device failure: those that are in no batch and not reading end here; the others
    /// end with their batch or their read.
    pub(crate) fn fail_rmws(&mut self, _bufs: &mut impl Buffers) {
        for i in 0..self.rmws.slots.len() as u32 {
            if matches!(self.rmws.slots[i as usize].stage, Stage::Settling(_) | Stage::Merged) {
                self.end_rmw(i, Err(IoFault::Device));
            }
        }
    }

    pub(crate) fn guards_off(planted: crate::plant::Planted) -> bool {
        planted.has(Plant::Unguarded)
    }
}
