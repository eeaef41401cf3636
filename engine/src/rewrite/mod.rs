//! Rewriting what was scanned: regions that are read in sequence although their blocks lie
//! scattered are written once more, in sequence, so that the next scan of them is fast.
//!
//! ```text
//! reads in sequence --> end of a region --> scattered and cold? --> queue
//!                                                                     |
//!   part of it: all records before are applied --> read, verified --> appended as a write
//! ```
//!
//! A region is what one leaf of the map holds (2 MiB); it is read and written in parts. To the rest
//! of the engine it is a write: a new version of the same content, with an LSN of its own.
//!
//! Invariants:
//! 1. The content of a block never changes. A part is read only after every record that was
//!    logged before has been applied; if a write, discard or zeroing of any of its blocks is logged
//!    before it is appended itself, it is dropped. From then on the LSNs keep the order.
//! 2. Only what is mapped is appended, so no hole comes into being and no space is taken.
//! 3. Nobody waits for it: no request is ever refused or held for its sake. It stops while a pool
//!    has no room to spare ([`Engine::may_rewrite`]), and takes no segment that anybody could miss.
//! 4. What does not have the checksum that was written with it stays where it is.
//! 5. What it reads and writes is at most [`REWRITE_BYTES_PER_S`], and no more than a part of the
//!    time on a device that is slower than that.
//! 6. A region that was written lately, by it or by anybody, is left alone.
//!
//! It does not bring leaves of the map back to memory, and keeps no record across a restart.

mod scan;

use crate::batch::Source;
use crate::engine::Engine;
use crate::error::IoFault;
use crate::limits::{
    BATCH_BLOCKS, BATCHES, REWRITE_BLOCKS, REWRITE_BYTES_PER_S, REWRITE_DUTY, REWRITE_HOLD_NS,
    REWRITE_HOLDS, REWRITE_QUEUE, REWRITE_ROOM_DIVISOR, REWRITE_RUNS, RUN_BLOCKS, SCAN_COLD_NS,
};
use crate::map::{LEAF_BLOCKS, Leaf, LeafState, Mapping};
use crate::plant::Plant;
use crate::read::Reader;
use crate::volume::VolumeState;
use flagstone_block::{BLOCK_SIZE, Buffer, Buffers, Lba};
use scan::Scans;
use std::collections::VecDeque;

/// Blocks that it takes from the arena.
pub(crate) const OWN_BLOCKS: u32 = REWRITE_BLOCKS;

/// Runs that a part may have beyond what its holes make of it, and still is not worth writing.
const RUNS_OF_PART: u32 = 1;

/// A leaf of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    volume: u32,
    leaf: u64,
}

/// Blocks of a volume that are read and written as one.
#[derive(Clone, Copy, Debug)]
struct Part {
    volume: u32,
    /// First block, and first block behind it. What lies before `at` is appended.
    lba: u64,
    at: u64,
    end: u64,
    begun_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    /// Until journal blocks below this one are retired.
    Settling(u64),
    Reading,
    /// Read; waits for room in a batch.
    Ready,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Rewriter {
    scans: Scans,
    queue: VecDeque<Region>,
    /// Where the region at hand goes on.
    next: Option<(Region, u64)>,
    stage: Stage,
    part: Part,
    /// The part must not be appended: it has changed, or could not be read.
    dropped: bool,
    buffer: Buffer,
    /// Nothing is begun before.
    pace_ns: u64,
    /// Times in a row that there was no room to spare.
    held: u32,
}

/// How the blocks of a range lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Layout {
    mapped: u32,
    /// Device reads that it takes to read them.
    runs: u32,
    /// As many would do if they lay in order.
    ideal: u32,
}

impl Layout {
    fn of(leaf: &Leaf, blocks: std::ops::Range<usize>) -> Self {
        let mut layout = Self::default();
        let mut before = None;
        for i in blocks {
            let Mapping::Block { pbn, .. } = leaf.get(i) else {
                before = None;
                continue;
            };
            layout.mapped += 1;
            layout.ideal += u32::from(before.is_none());
            layout.runs += u32::from(before.is_none_or(|before: u64| before + 1 != pbn));
            before = Some(pbn);
        }
        layout
    }

    /// Device reads that rewriting saves.
    fn gain(self) -> u32 {
        self.runs - self.ideal
    }
}

impl Rewriter {
    /// Takes its buffer from the arena; `None` if that is too small.
    pub(crate) fn new(bufs: &mut impl Buffers) -> Option<Self> {
        Some(Self {
            scans: Scans::default(),
            queue: VecDeque::with_capacity(REWRITE_QUEUE),
            next: None,
            stage: Stage::Idle,
            part: Part { volume: 0, lba: 0, at: 0, end: 0, begun_ns: 0 },
            dropped: false,
            buffer: bufs.alloc(OWN_BLOCKS)?,
            pace_ns: 0,
            held: 0,
        })
    }

    /// Gives its buffer back.
    pub(crate) fn release(&mut self, bufs: &mut impl Buffers) {
        bufs.free(self.buffer);
    }

    /// When it has to be called next, if nothing else happens.
    pub(crate) fn timer_ns(&self) -> Option<u64> {
        let waits = self.stage == Stage::Idle && (self.next.is_some() || !self.queue.is_empty());
        waits.then_some(self.pace_ns)
    }
}

impl Engine {
    /// Takes note of a client's read; at the end of a region that was read in sequence, decides
    /// whether to rewrite it.
    pub(crate) fn note_read(&mut self, volume: u32, lba: Lba, blocks: u32) {
        let Some(end) = self.volumes.get(volume).map(|volume| volume.blocks()) else { return };
        let Some(leaf) = self.rewriter.scans.note(volume, lba.0, blocks, end) else { return };
        let region = Region { volume, leaf };
        if self.rewriter.queue.len() < REWRITE_QUEUE
            && self.may_rewrite()
            && self.is_worth_rewriting(region)
            && !self.rewriter.queue.contains(&region)
        {
            self.rewriter.queue.push_back(region);
        }
    }

    /// A record about these blocks is being logged: what was read of them is out of date.
    pub(crate) fn note_change(&mut self, volume: u32, lba: u64, blocks: u64) {
        let Part { volume: of, at, end, .. } = self.rewriter.part;
        if self.rewriter.stage != Stage::Idle
            && of == volume
            && lba < end
            && at < lba + blocks
            && !self.planted.has(Plant::RewriteStale)
        {
            self.rewriter.dropped = true;
        }
    }

    /// Blocks were written: their leaves are not cold.
    pub(crate) fn stamp_leaves(&mut self, volume: u32, lba: u64, blocks: u32) {
        let Some(volume) = self.volumes.get(volume) else { return };
        let leaf = |lba: u64| lba / LEAF_BLOCKS as u64;
        for leaf in leaf(lba)..=leaf(lba + u64::from(blocks) - 1) {
            if let LeafState::Dense(index) = volume.map.leaf(&self.slab, leaf).0 {
                self.slab.stamp(index, self.now_ns);
            }
        }
    }

    /// Whether the pool has room to spare. A region's old blocks are garbage that the cleaner has
    /// to collect, which costs the more the fuller the pool is.
    fn may_rewrite(&self) -> bool {
        !self.opening
            && self.failed.is_none()
            && !self.stop.is_begun()
            && self.graves.is_empty()
            && !self.is_counting()
            && self.segs.free() > self.floor() + 1
            && !self.is_pressed()
            && !self.is_reserve_short()
            && !self.leaves_want_pages()
            && self.room() >= self.usable_blocks() / REWRITE_ROOM_DIVISOR
    }

    fn is_worth_rewriting(&self, region: Region) -> bool {
        let Some(leaf) = self.region_leaf(region) else { return false };
        let written_ns = self.slab.written_ns(leaf);
        written_ns.is_none_or(|at| self.now_ns.saturating_sub(at) >= SCAN_COLD_NS)
            && Layout::of(self.slab.get(leaf), 0..LEAF_BLOCKS).gain() >= REWRITE_RUNS
    }

    /// The leaf of a region, if it is in memory and its volume is in use.
    fn region_leaf(&self, region: Region) -> Option<u32> {
        let volume = self.volumes.get(region.volume)?;
        match volume.map.leaf(&self.slab, region.leaf).0 {
            // Where others share blocks, another copy would be one more.
            LeafState::Dense(index)
                if volume.state == VolumeState::Active
                    && volume.info.snapshot.is_none()
                    && volume.parent.is_none() =>
            {
                Some(index)
            }
            _ => None,
        }
    }

    /// Takes the rewriting as far as it can go.
    pub(crate) fn advance_rewriting(&mut self, bufs: &mut impl Buffers) {
        if self.rewriter.stage == Stage::Idle
            && self.rewriter.next.is_none()
            && self.rewriter.queue.is_empty()
        {
            return;
        }
        let may = self.may_rewrite();
        if !may {
            self.hold_rewriting();
        }
        if self.rewriter.dropped && matches!(self.rewriter.stage, Stage::Settling(_) | Stage::Ready)
        {
            self.end_part();
        }
        if may && self.rewriter.stage == Stage::Idle && self.now_ns >= self.rewriter.pace_ns {
            self.begin_part();
        }
        match self.rewriter.stage {
            Stage::Settling(jseq) if jseq <= self.journal.retired => self.read_part(bufs),
            _ => {}
        }
        if self.rewriter.stage == Stage::Ready {
            self.append_part(bufs);
        }
    }

    /// There is no room to spare, or a stop has begun.
    fn hold_rewriting(&mut self) {
        let rewriter = &mut self.rewriter;
        rewriter.dropped = true;
        if self.now_ns >= rewriter.pace_ns {
            rewriter.pace_ns = self.now_ns.saturating_add(REWRITE_HOLD_NS);
            rewriter.held += 1;
        }
        if rewriter.held > REWRITE_HOLDS || self.stop.is_begun() {
            rewriter.queue.clear();
            (rewriter.next, rewriter.held) = (None, 0);
        }
    }

    /// Turns to the next part that is worth it.
    fn begin_part(&mut self) {
        while let Some((region, from)) = self.next_of_region() {
            let Some(index) = self.region_leaf(region) else {
                self.rewriter.next = None;
                continue;
            };
            let to = (from + u64::from(REWRITE_BLOCKS)).min(LEAF_BLOCKS as u64);
            self.rewriter.next = (to < LEAF_BLOCKS as u64).then_some((region, to));
            let layout = Layout::of(self.slab.get(index), from as usize..to as usize);
            if layout.gain() <= RUNS_OF_PART {
                continue;
            }
            let first = region.leaf * LEAF_BLOCKS as u64;
            let (lba, end) = (first + from, first + to);
            let end = self.volumes.get(region.volume).map_or(lba, |v| end.min(v.blocks()));
            if end <= lba {
                // A shrink is about to discard it.
                self.rewriter.next = None;
                continue;
            }
            let begun_ns = self.now_ns;
            self.rewriter.part = Part { volume: region.volume, lba, at: lba, end, begun_ns };
            self.rewriter.dropped = false;
            let settled =
                if self.planted.has(Plant::RewriteUnsettled) { 0 } else { self.journal.next };
            self.rewriter.stage = Stage::Settling(settled);
            return;
        }
    }

    /// The region at hand, or the next one that is still worth it.
    fn next_of_region(&mut self) -> Option<(Region, u64)> {
        while self.rewriter.next.is_none() {
            let region = self.rewriter.queue.pop_front()?;
            if self.is_worth_rewriting(region) {
                self.rewriter.next = Some((region, 0));
            }
        }
        self.rewriter.next
    }

    fn read_part(&mut self, bufs: &mut impl Buffers) {
        let Part { volume, lba, end, .. } = self.rewriter.part;
        let region = Region { volume, leaf: lba / LEAF_BLOCKS as u64 };
        if self.region_leaf(region).is_none() {
            return self.end_part();
        }
        self.rewriter.stage = Stage::Reading;
        let buffer = self.rewriter.buffer.part(0, (end - lba) as u32);
        if self.start_read(bufs, Reader::Rewriter, volume, Lba(lba), buffer).is_err() {
            // As many reads are under way as there may be: this is not the time.
            self.end_part();
        }
    }

    /// The part was read; called from the read's completion.
    pub(crate) fn rewrite_read_done(&mut self, result: Result<(), IoFault>) {
        self.rewriter.stage = Stage::Ready;
        self.rewriter.dropped |= result.is_err() && !self.planted.has(Plant::RewriteDamaged);
    }

    /// Logs what was read, as far as there is room.
    fn append_part(&mut self, bufs: &mut impl Buffers) {
        let Part { volume, lba, end, .. } = self.rewriter.part;
        let region = Region { volume, leaf: lba / LEAF_BLOCKS as u64 };
        let stream = self.stream_of(volume, Lba(lba), RUN_BLOCKS);
        while let Some((at, blocks)) = self.next_extent(region) {
            // Clients' batches come first.
            if self.flight.len() >= BATCHES / 2 {
                return;
            }
            let Ok(place) = self.data_room(bufs, stream, blocks.min(BATCH_BLOCKS)) else { return };
            let blocks = place.blocks;
            let from = self.rewriter.buffer.part((at - lba) as u32, blocks);
            // Before it is logged, so that it does not clash with itself.
            self.rewriter.part.at = at + u64::from(blocks);
            self.append_blocks(bufs, place, volume, at, Source::Moved(from));
            self.rewriter.held = 0;
            if !self.may_rewrite() {
                break;
            }
        }
        debug_assert!(self.rewriter.part.at <= end);
        self.end_part();
    }

    /// The first blocks of the part that are mapped and not appended yet.
    fn next_extent(&self, region: Region) -> Option<(u64, u32)> {
        let Part { mut at, end, .. } = self.rewriter.part;
        let leaf = self.slab.get(self.region_leaf(region)?);
        let mapped = |at: u64| {
            matches!(leaf.get(at as usize % LEAF_BLOCKS), Mapping::Block { .. })
                || self.planted.has(Plant::RewriteHoles)
        };
        while at < end && !mapped(at) {
            at += 1;
        }
        let blocks = (at..end).take_while(|at| mapped(*at)).count() as u32;
        (blocks > 0).then_some((at, blocks))
    }

    /// The part is appended, or dropped: the next may begin when the budget allows.
    fn end_part(&mut self) {
        let Part { lba, end, begun_ns, .. } = self.rewriter.part;
        let bytes = (end - lba) * BLOCK_SIZE as u64;
        let fair_ns = bytes * 1_000_000_000 / REWRITE_BYTES_PER_S;
        let took_ns = self.now_ns.saturating_sub(begun_ns);
        let rest_ns = begun_ns.saturating_add(fair_ns.max(took_ns.saturating_mul(REWRITE_DUTY)));
        self.rewriter.pace_ns = self.rewriter.pace_ns.max(rest_ns);
        self.rewriter.stage = Stage::Idle;
    }
}
