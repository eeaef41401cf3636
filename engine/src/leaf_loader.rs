//! Leaves that are not in memory: reading them back from their pages, and dropping others for it.
//!
//! With a bound on the map's memory, leaves that have not changed since their last page and were
//! not used lately are dropped, and read back when a request needs to know where their blocks lie.
//! A request that meets such a leaf is answered `Busy` while it is being read. Which blocks are
//! holes is known without it.
//!
//! Invariants:
//! 1. A leaf is dropped only if its page is on the device and says what the leaf says, and no
//!    record under way is about it: what is applied finds its leaf in memory.
//! 2. Leaves in memory and on their way there are at most the bound and its slack; at that point
//!    a request that needs another waits until one could be dropped. When most have changed, a
//!    checkpoint gives them pages.

use crate::batch::Effect;
use crate::counting::Arrival;
use crate::engine::Engine;
use crate::format::leaf::Header;
use crate::limits::{LEAF_READS, LEAF_SLACK, MAP_LEAVES_MIN};
use crate::map::{Candidate, LEAF_BLOCKS, Leaf, LeafPage, LeafState};
use crate::plant::Plant;
use crate::token::Token;
use flagstone_block::{Buffer, Buffers, DeviceCommand, DeviceError, Lba};
use std::collections::VecDeque;

/// Leaves that the clock looks at in one turn.
const CLOCK_STEPS: usize = 256;
/// Leaves dropped in one turn.
const EVICTIONS: usize = 32;
/// Leaves that could not be read, and nobody has asked for again.
const BAD_LEAVES: usize = 64;

/// Blocks that it takes from the arena: a page has two at most.
pub(crate) const OWN_BLOCKS: u32 = 2 * LEAF_READS as u32;

/// Whether leaves are in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paging {
    /// They are.
    Here,
    /// One is being read, or will be when there is room.
    Coming,
    /// One can't be read.
    Bad,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    Reading { retried: bool },
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    buffer: Buffer,
    stage: Stage,
    volume: u32,
    leaf: u64,
    page: LeafPage,
    purpose: Purpose,
}

/// What a leaf is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Its blocks are to be looked up.
    Request,
    /// Only to be written again elsewhere.
    Move,
    /// Only to be counted.
    Count,
    /// Only to be taken apart, in a volume that is being deleted.
    Reclaim,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct LeafLoader {
    slots: Vec<Slot>,
    reading: usize,
    bad: VecDeque<(u32, u64)>,
    /// A leaf that was read to be written again elsewhere, and the page that it was read from: the
    /// leaf may have changed, and have another page, before it is asked for.
    moved: Option<Box<(LeafPage, Leaf)>>,
    /// Leaves that may be in memory; `None` for all.
    limit: Option<usize>,
    /// Somebody found no room.
    starved: bool,
    /// Places that the clock has looked at without finding anything to drop, or anything warm.
    fruitless: usize,
}

/// Leaves that fit in `bytes` bytes of memory, so that the slack fits too.
pub(crate) fn leaves_in(bytes: u64) -> usize {
    let leaves = usize::try_from(bytes).unwrap_or(usize::MAX) / size_of::<Leaf>();
    (leaves - leaves / 8).saturating_sub(LEAF_SLACK).max(MAP_LEAVES_MIN)
}

impl LeafLoader {
    /// Takes its buffers from the arena; `None` if that is too small.
    pub(crate) fn new(bufs: &mut impl Buffers, limit: Option<usize>) -> Option<Self> {
        let mut slots = Vec::with_capacity(LEAF_READS);
        for _ in 0..LEAF_READS {
            let page = LeafPage { pbn: 0, crc: 0 };
            let (buffer, stage) = (bufs.alloc(2)?, Stage::Idle);
            let purpose = Purpose::Request;
            slots.push(Slot { buffer, stage, volume: 0, leaf: 0, page, purpose });
        }
        let bad = VecDeque::with_capacity(BAD_LEAVES);
        Some(Self { slots, reading: 0, bad, moved: None, limit, starved: false, fruitless: 0 })
    }

    /// Gives every buffer back.
    pub(crate) fn release(&mut self, bufs: &mut impl Buffers) {
        self.slots.drain(..).for_each(|slot| bufs.free(slot.buffer));
    }

    /// Whether a page is being read.
    pub(crate) fn is_reading(&self) -> bool {
        self.reading > 0
    }

    /// Pages that are being read to be counted.
    pub(crate) fn counting_reads(&self) -> usize {
        let counts = |s: &&Slot| s.stage != Stage::Idle && s.purpose == Purpose::Count;
        self.slots.iter().filter(counts).count()
    }

    /// The leaves that are being read.
    pub(crate) fn reading(&self) -> impl Iterator<Item = (u32, u64)> {
        let slots = self.slots.iter().filter(|s| s.stage != Stage::Idle);
        slots.map(|s| (s.volume, s.leaf))
    }

    /// What lies in a page that [`Engine::request_move`] asked for, if it is there.
    pub(crate) fn take_moved(&mut self, page: LeafPage) -> Option<Box<(LeafPage, Leaf)>> {
        self.moved.take_if(|moved| moved.0 == page)
    }

    /// Gives it back, for later.
    pub(crate) fn keep_moved(&mut self, moved: Box<(LeafPage, Leaf)>) {
        self.moved = Some(moved);
    }

    fn take_bad(&mut self, volume: u32, leaf: u64) -> bool {
        let at = self.bad.iter().position(|bad| *bad == (volume, leaf));
        at.and_then(|at| self.bad.remove(at)).is_some()
    }
}

impl Engine {
    /// Whether the leaves of `blocks` blocks from `lba` are in memory, or can be answered for
    /// without: with `data`, those whose part of the range is all holes need not be. Begins to
    /// read those that are not.
    pub(crate) fn leaves_here(&mut self, volume: u32, lba: Lba, blocks: u64, data: bool) -> Paging {
        if self.leaf_loader.limit.is_none() && self.slab.away() == 0 {
            return Paging::Here;
        }
        let per_leaf = LEAF_BLOCKS as u64;
        let (mut at, end) = (lba.0, lba.0 + blocks);
        let mut found = Paging::Here;
        while at < end {
            let leaf_end = ((at / per_leaf + 1) * per_leaf).min(end);
            let Some(vol) = self.volumes.get(volume) else { return Paging::Here };
            match vol.map.leaf(&self.slab, at / per_leaf).0 {
                LeafState::Dense(index) => self.slab.warm(index),
                LeafState::Away(away) => {
                    let needed = !data || {
                        let leaf = self.slab.away_leaf(away);
                        (at..leaf_end).any(|b| leaf.bit((b % per_leaf) as usize) == (false, false))
                    };
                    if needed {
                        let page = self.slab.away_leaf(away).page;
                        match self.request_leaf(volume, at / per_leaf, page) {
                            Paging::Bad => return Paging::Bad,
                            paging => found = paging,
                        }
                    }
                }
                _ => {}
            }
            at = leaf_end;
        }
        found
    }

    /// Begins to read the leaf of a data block that will be looked up soon, if there is room.
    pub(crate) fn prefetch_leaf(&mut self, volume: u32, lba: Lba) {
        let Some(vol) = self.volumes.get(volume) else { return };
        let leaf = lba.0 / LEAF_BLOCKS as u64;
        if let LeafState::Away(away) = vol.map.leaf(&self.slab, leaf).0
            && self.has_prefetch_room()
            && !self.leaf_loader.bad.contains(&(volume, leaf))
        {
            let page = self.slab.away_leaf(away).page;
            self.request_leaf(volume, leaf, page);
        }
    }

    /// Begins to read a leaf that is not in memory, if there is room.
    pub(crate) fn request_leaf(&mut self, volume: u32, leaf: u64, page: LeafPage) -> Paging {
        self.request_page((volume, leaf), page, Purpose::Request)
    }

    /// Begins to read a leaf to be counted; false if there is no buffer for it.
    pub(crate) fn request_count(&mut self, volume: u32, leaf: u64, page: LeafPage) -> bool {
        let idle = self.leaf_loader.slots.iter().position(|slot| slot.stage == Stage::Idle);
        if let Some(i) = idle {
            self.begin_leaf_read(i, (volume, leaf), page, Purpose::Count);
        }
        idle.is_some()
    }

    /// Whether a leaf that was read to be counted may stay in memory.
    pub(crate) fn has_counting_room(&self) -> bool {
        self.leaf_loader.limit.is_none_or(|limit| self.leaves_in_memory() < limit)
    }

    /// Begins to read a leaf that is to be written again elsewhere, without bringing it to memory.
    pub(crate) fn request_move(&mut self, volume: u32, leaf: u64, page: LeafPage) -> Paging {
        self.request_page((volume, leaf), page, Purpose::Move)
    }

    /// Begins to read a leaf of a volume that is being deleted.
    pub(crate) fn request_reclaim(&mut self, volume: u32, leaf: u64, page: LeafPage) -> Paging {
        self.request_page((volume, leaf), page, Purpose::Reclaim)
    }

    fn request_page(&mut self, key: (u32, u64), page: LeafPage, purpose: Purpose) -> Paging {
        if self.is_leaf_coming(key.0, key.1) {
            return Paging::Coming;
        }
        if self.leaf_loader.take_bad(key.0, key.1) {
            return Paging::Bad;
        }
        if self.leaf_writer.is_pending(&self.geo, page) {
            self.send_leaf_pages();
            return Paging::Coming;
        }
        let idle = self.leaf_loader.slots.iter().position(|slot| slot.stage == Stage::Idle);
        let stays = purpose == Purpose::Request;
        let room = !stays || self.has_leaf_room(1);
        match idle.filter(|_| room) {
            Some(i) => self.begin_leaf_read(i, key, page, purpose),
            None if !stays => {}
            None => self.leaf_loader.starved = true,
        }
        Paging::Coming
    }

    fn begin_leaf_read(&mut self, i: usize, key: (u32, u64), page: LeafPage, purpose: Purpose) {
        let slot = &mut self.leaf_loader.slots[i];
        (slot.volume, slot.leaf, slot.page, slot.purpose) = (key.0, key.1, page, purpose);
        slot.stage = Stage::Reading { retried: false };
        self.leaf_loader.reading += 1;
        self.counters.leaves_read += 1;
        self.read_leaf(i);
    }

    /// Whether the leaf is being read.
    pub(crate) fn is_leaf_coming(&self, volume: u32, leaf: u64) -> bool {
        let slots = &self.leaf_loader.slots;
        slots.iter().any(|s| s.stage != Stage::Idle && (s.volume, s.leaf) == (volume, leaf))
    }

    fn read_leaf(&mut self, i: usize) {
        let slot = &self.leaf_loader.slots[i];
        let (segment, block) = self.geo.locate(slot.page.pbn);
        let offset = self.geo.segment_offset(segment, block);
        let buffer = slot.buffer.part(0, self.geo.leaf_page_blocks());
        self.segs.row_mut(segment).pins += 1;
        self.emit(Token::LeafRead(i as u32), DeviceCommand::Read { offset, buffer });
    }

    /// Notes that somebody waits for room for another leaf.
    pub(crate) fn starve_for_leaves(&mut self) {
        self.leaf_loader.starved = true;
    }

    /// Whether `more` leaves may be brought to memory beside those that are there or on their way.
    pub(crate) fn has_leaf_room(&self, more: u64) -> bool {
        let Some(limit) = self.leaf_loader.limit else { return true };
        if self.is_read_only() || self.is_counting_stuck() {
            // Requests go on, but no checkpoint will make room.
            return true;
        }
        let slack = limit / 8 + LEAF_SLACK;
        self.leaves_in_memory() + more as usize <= limit + slack
    }

    /// Leaves that one request may ask for at a time: where only a few fit, those behind the first would push it out before the
    /// request comes again.
    pub(crate) fn leaves_ahead(&self) -> usize {
        let most = LEAF_READS / 2;
        self.leaf_loader.limit.map_or(most, |limit| (limit / 4).clamp(1, most))
    }

    /// Whether a leaf may be read that nobody waits for yet. Where only a few fit it must not push
    /// out what somebody does wait for: two that read ahead would do so to each other for ever. Nor may it
    /// take the last buffers: a checkpoint that needs one is what the others may be waiting for.
    fn has_prefetch_room(&self) -> bool {
        if self.leaf_loader.reading >= LEAF_READS / 4 * 3 {
            return false;
        }
        match self.leaf_loader.limit {
            Some(limit) if limit < 4 * LEAF_READS => self.leaves_in_memory() < limit,
            _ => self.has_leaf_room(1),
        }
    }

    fn leaves_in_memory(&self) -> usize {
        self.slab.used() + self.leaf_loader.reading + self.new_leaves_in_flight() as usize
    }

    /// A page was read, or could not be.
    pub(crate) fn leaf_read_done(
        &mut self,
        bufs: &mut impl Buffers,
        i: u32,
        result: Result<(), DeviceError>,
    ) {
        let i = i as usize;
        let slot = self.leaf_loader.slots[i];
        let Stage::Reading { retried } = slot.stage else { return };
        let bytes = bufs.bytes(slot.buffer.part(0, self.geo.leaf_page_blocks()));
        let content = result.ok().and_then(|()| Header::decode(self.pool_tag, bytes).ok());
        let right = content.filter(|(header, _, crc)| header.is_of(slot.leaf, slot.page, *crc));
        let segment = self.geo.locate(slot.page.pbn).0;
        self.segs.row_mut(segment).pins -= 1;
        if right.is_none() && !retried {
            self.leaf_loader.slots[i].stage = Stage::Reading { retried: true };
            self.counters.read_retries += 1;
            return self.read_leaf(i);
        }
        self.leaf_loader.slots[i].stage = Stage::Idle;
        self.leaf_loader.reading -= 1;
        self.again = true;
        if let Some((_, content, _)) = right {
            let key = (slot.volume, slot.leaf);
            let to_count = match slot.purpose {
                Purpose::Move => {
                    self.leaf_loader.moved = Some(Box::new((slot.page, content)));
                    return;
                }
                purpose => purpose == Purpose::Count,
            };
            if self.leaf_arrived(key, slot.page, content, to_count) == Arrival::Taken {
                return;
            }
        }
        self.leaf_is_bad(slot.volume, slot.leaf, slot.purpose == Purpose::Count);
    }

    /// A leaf's page can't be read, or is wrong.
    fn leaf_is_bad(&mut self, volume: u32, leaf: u64, to_count: bool) {
        self.counters.leaf_pages_bad += 1;
        match self.volumes.get(volume) {
            Some(_) => self.want_rebuild(),
            None => self.count_as_snapshots(volume),
        }
        if to_count {
            // Nobody waits for it.
            return;
        }
        if self.leaf_loader.bad.len() == BAD_LEAVES {
            self.leaf_loader.bad.pop_front();
        }
        self.leaf_loader.bad.push_back((volume, leaf));
    }

    /// Drops leaves from memory when there are more than the bound allows; returns whether there
    /// is more to do. The clock goes round once at most, so that a leaf that was just read is
    /// still there when the request that asked for it comes again.
    pub(crate) fn advance_paging(&mut self) -> bool {
        let Some(limit) = self.leaf_loader.limit else { return false };
        let (mut steps, mut dropped) = (CLOCK_STEPS.min(self.slab.slots()), 0);
        let mut warm = false;
        while (self.leaves_in_memory() > limit || self.leaf_loader.starved)
            && dropped < EVICTIONS
            && steps > 0
        {
            steps -= 1;
            let Some(candidate) = self.slab.tick() else { continue };
            let Candidate { leaf, index, page, cold } = candidate;
            if self.leaf_writer.is_pending(&self.geo, page) || self.is_leaf_under_way(leaf) {
                continue;
            }
            if !cold {
                warm = true;
                continue;
            }
            self.slab.evict(index);
            self.counters.leaves_dropped += 1;
            self.leaf_loader.starved = false;
            dropped += 1;
        }
        let more = self.leaves_in_memory() > limit || self.leaf_loader.starved;
        let looked = CLOCK_STEPS.min(self.slab.slots()) - steps;
        let loader = &mut self.leaf_loader;
        match dropped > 0 || warm || !more {
            true => loader.fruitless = 0,
            false => loader.fruitless = loader.fruitless.saturating_add(looked),
        }
        // What was still warm in this turn may not be in the next; and there may be something where nobody has looked.
        let further = loader.fruitless > 0 && loader.fruitless < self.slab.slots();
        loader.starved &= further;
        dropped > 0 || (more && (warm || further))
    }

    /// Whether a record under way is about this leaf, of any volume: several may share it.
    fn is_leaf_under_way(&self, leaf: u64) -> bool {
        if self.planted.has(Plant::DropBusyLeaves) {
            return false;
        }
        let first = leaf * LEAF_BLOCKS as u64;
        let end = first + LEAF_BLOCKS as u64;
        self.effects_under_way().any(|effect| match effect {
            Effect::Write { lba, blocks, .. } => lba < end && first < lba + u64::from(blocks),
            Effect::Zero { lba, blocks, .. } => lba < end && first < lba + blocks,
            _ => false,
        })
    }

    /// Whether what has to end before a stop waits for room for a leaf that only a checkpoint can
    /// make.
    pub(crate) fn stop_wants_pages(&self) -> bool {
        let waits = !self.cleaner.is_idle()
            || !self.rmws.is_idle()
            || !self.shrinks.is_empty()
            || self.failures.has_again();
        // Those that have not changed may be kept warm by who waits for another. One record may need two.
        waits && !self.has_leaf_room(2) && self.slab.dirty() > 0
    }

    /// Whether so many leaves have changed that a checkpoint should give them pages, so that
    /// they can be dropped.
    pub(crate) fn leaves_want_pages(&self) -> bool {
        self.leaf_loader.limit.is_some_and(|limit| self.slab.dirty() > limit / 4 * 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A leaf that changed while what was read of it waited to be written elsewhere has another
    /// page, and the old content must not become that of the new.
    #[test]
    fn what_was_read_to_be_moved_counts_for_its_page_only() {
        let old = LeafPage { pbn: 7, crc: 1 };
        let mut loader = LeafLoader {
            slots: Vec::new(),
            reading: 0,
            bad: VecDeque::new(),
            moved: None,
            limit: None,
            starved: false,
            fruitless: 0,
        };
        loader.keep_moved(Box::new((old, Leaf::default())));
        assert!(loader.take_moved(LeafPage { pbn: 8, crc: 1 }).is_none());
        assert!(loader.take_moved(LeafPage { pbn: 7, crc: 2 }).is_none());
        assert!(loader.take_moved(old).is_some());
        assert!(loader.take_moved(old).is_none());
    }
}
