//! The cleaner: moves what is live out of segments that are mostly not, so that they can be
//! written again.
//!
//! ```text
//! choose victim --> read its summary --> read its live blocks, verify, copy to an output
//!                                             |
//!   output full: summary written --> flush --> SEGMENT_SEAL logged --> map entries switched
//!                                                                          |
//!                        victim: nothing live --> SEGMENT_FREE, as any dead segment
//! ```
//!
//! A moved block keeps the LSN and sequence number of the write that made it. It is the same
//! version in another place, so recovery, which takes the newest version of each block, can never
//! prefer it to a later write, discard or deletion; moves need no journal records of their own,
//! and one that a crash cuts short simply did not happen.
//!
//! Live blocks are copied in the order of volume and address, as far as the read buffers hold them
//! at once: streams that were written at the same time come apart into runs, and the map is asked
//! and switched leaf by leaf. See docs/decisions/0010-moves-are-sorted-per-victim.md.
//!
//! Invariants:
//! 1. A block is copied only if its content has the checksum that was written with it; or, when
//!    segments run out, if it was read five times without that: it stays as damaged as it is.
//! 2. The map is switched to an output only when its seal record is retired: data and summary are
//!    durable then. An entry that changed meanwhile is left alone.
//! 3. A victim is freed like any other segment: by its live count, once the seal that emptied it
//!    is durable.
//! 4. A segment of which something can't be read is set aside and tried once more when segments
//!    run out; until then, and if it fails again, what is dead in it counts as lost. So a wait for
//!    the cleaner always ends: with a free segment, or because nothing is left to try.
//! 5. Outputs come from segments that user writes may not take ([`Engine::cleaner_reserve`]). Those that
//!    are being filled are part of what is reserved, but for the last: there is always one more.

mod advance;
mod choose;
mod idle;
mod leaving;
mod output;
mod pace;

use crate::engine::Engine;
use crate::geometry::Geometry;
use crate::limits::{CLEAN_CHUNKS, CLEAN_CLASSES, CLEAN_RUN_BLOCKS, CLEAN_SPANS};
use crate::map::LEAF_BLOCKS;
use crate::plant::Plant;
use flagstone_block::{Buffer, Buffers};

/// A live block of the victim.
#[derive(Clone, Copy, Debug)]
struct Move {
    block: u32,
    volume: u32,
    lba: u64,
    vseq: u64,
    lsn: u64,
    crc: u32,
}

impl Move {
    /// The leaf of the map that names it.
    fn leaf(&self) -> (u32, u64) {
        (self.volume, self.lba / LEAF_BLOCKS as u64)
    }
}

/// A block that was copied to an output, and where it came from.
#[derive(Clone, Copy, Debug)]
struct Target {
    moved: Move,
    /// Segment it lay in, in this generation: a block number alone may mean another block later.
    segment: u32,
    generation: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VictimStage {
    ReadingSummary { retried: bool },
    Moving,
}

/// The segment that is being emptied.
#[derive(Debug)]
struct Victim {
    segment: u32,
    generation: u64,
    stage: VictimStage,
    summary: Option<Buffer>,
    /// It was left before, for what could not be read: this time damaged blocks are moved too,
    /// and what is refused again is given up.
    again: bool,
    /// Next of [`Cleaner::moves`] that is in no window yet.
    next: usize,
}

/// The moves whose blocks are in the read buffers, sorted by volume and block address.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    /// Moves `at..to` are not copied yet.
    at: usize,
    to: usize,
    /// Times that the block of move `at` was read again, alone, and whether the device refused
    /// the last.
    retries: u8,
    refused: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SpanStage {
    Idle,
    /// Is to be read.
    Waiting,
    Reading,
    /// Read; not all of it is copied yet.
    Ready,
}

/// A run of the victim's blocks in a read buffer.
#[derive(Clone, Copy, Debug)]
struct Span {
    buffer: Buffer,
    stage: SpanStage,
    /// First block in the segment, and how many.
    first: u32,
    blocks: u32,
    /// Moves that it was read for, until they are counted as read.
    moves: u32,
}

/// A write buffer: consecutive blocks of one output.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    buffer: Buffer,
    output: u32,
    /// Position of its first block in the output.
    first: u32,
    blocks: u32,
    idle: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OutputStage {
    Idle,
    /// Takes blocks.
    Filling,
    /// Takes no more; its last writes are under way.
    Closing,
    /// Its summary is written or its seal is on its way.
    Sealing,
    /// Its seal record `lsn` is retired; the map is being switched to it.
    Switching {
        next: usize,
        lsn: u64,
    },
}

/// A segment that moved blocks are written to.
#[derive(Debug)]
struct Output {
    stage: OutputStage,
    segment: u32,
    generation: u64,
    /// Index of its placement class.
    class: usize,
    first_lsn: u64,
    last_lsn: u64,
    lsn_sum: u128,
    /// Chunk being filled.
    chunk: Option<u32>,
    writes: u32,
    summary: Option<Buffer>,
    /// One per block, in order.
    targets: Vec<Target>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Cleaner {
    victim: Option<Victim>,
    moves: Vec<Move>,
    spans: Vec<Span>,
    window: Window,
    chunks: Vec<Chunk>,
    outputs: Vec<Output>,
    /// Output that is being filled, per class.
    filling: [Option<u32>; CLEAN_CLASSES],
    /// Where the next search for a victim begins.
    cursor: u32,
    /// Rows that this search has looked at, and the events when it began.
    searched: u32,
    searched_from: u64,
    /// A row that this search met which is worth another try if there is nothing better.
    last_resort: Option<u32>,
    /// A search found nothing when the segment table had seen this many events, and this was why.
    exhausted_at: Option<(u64, idle::Need)>,
    /// A request came since the last turn, and when the last did.
    requested: bool,
    requested_ns: u64,
    leaving: leaving::Leaving,
    pace: pace::Pace,
    /// Somebody was refused space since the last victim.
    starved: bool,
    /// Victims that were emptied since an output was closed last.
    emptied: u32,
    /// Mean lifetime of short-lived user data, in LSNs: the measure of hot and cold; 0 if not
    /// known yet.
    lifetime: u64,
}

/// Blocks that the cleaner takes from the arena.
pub(crate) const OWN_BLOCKS: u32 =
    CLEAN_SPANS as u32 * CLEAN_RUN_BLOCKS + CLEAN_CHUNKS as u32 * crate::limits::CLEAN_CHUNK_BLOCKS;

impl Cleaner {
    /// Takes its buffers from the arena; `None` if that is too small.
    pub(crate) fn new(bufs: &mut impl Buffers, geo: &Geometry) -> Option<Self> {
        let entries = geo.shape.data_blocks as usize;
        let mut spans = Vec::with_capacity(CLEAN_SPANS);
        for _ in 0..CLEAN_SPANS {
            spans.push(Span {
                buffer: bufs.alloc(CLEAN_RUN_BLOCKS)?,
                stage: SpanStage::Idle,
                first: 0,
                blocks: 0,
                moves: 0,
            });
        }
        let mut chunks = Vec::with_capacity(CLEAN_CHUNKS);
        for _ in 0..CLEAN_CHUNKS {
            let buffer = bufs.alloc(crate::limits::CLEAN_CHUNK_BLOCKS)?;
            chunks.push(Chunk { buffer, output: 0, first: 0, blocks: 0, idle: true });
        }
        let output = || Output {
            stage: OutputStage::Idle,
            segment: 0,
            generation: 0,
            class: 0,
            first_lsn: 0,
            last_lsn: 0,
            lsn_sum: 0,
            chunk: None,
            writes: 0,
            summary: None,
            targets: Vec::with_capacity(entries),
        };
        Some(Self {
            victim: None,
            moves: Vec::with_capacity(entries),
            spans,
            window: Window::default(),
            chunks,
            // Those being filled, and one more on its way to being sealed.
            outputs: (0..=CLEAN_CLASSES).map(|_| output()).collect(),
            filling: [None; CLEAN_CLASSES],
            cursor: 0,
            searched: 0,
            searched_from: 0,
            last_resort: None,
            exhausted_at: None,
            requested: true,
            requested_ns: 0,
            leaving: leaving::Leaving::default(),
            pace: pace::Pace::default(),
            starved: false,
            emptied: 0,
            lifetime: 0,
        })
    }

    /// The read buffer that holds a block of the window, and where.
    fn place_of(&self, block: u32) -> (usize, Buffer) {
        let holds = |span: &Span| (span.first..span.first + span.blocks).contains(&block);
        let i = self.spans.iter().position(holds).expect("the window is what was read");
        let span = &self.spans[i];
        (i, span.buffer.part(block - span.first, 1))
    }

    /// Mean lifetime of short-lived user data, in LSNs, if known.
    pub(crate) fn lifetime(&self) -> Option<u64> {
        (self.lifetime > 0).then_some(self.lifetime)
    }

    /// Whether it holds nothing and waits for nothing.
    pub(crate) fn is_idle(&self) -> bool {
        self.victim.is_none()
            && self.outputs.iter().all(|output| output.stage == OutputStage::Idle)
            && self.spans.iter().all(|span| span.stage == SpanStage::Idle)
            && self.chunks.iter().all(|chunk| chunk.idle)
    }

    /// Whether a chunk is on its way to the device.
    pub(crate) fn is_writing(&self) -> bool {
        self.outputs.iter().any(|output| output.writes > 0)
    }

    /// Gives every buffer back.
    pub(crate) fn release(&mut self, bufs: &mut impl Buffers) {
        self.spans.drain(..).for_each(|span| bufs.free(span.buffer));
        self.chunks.drain(..).for_each(|chunk| bufs.free(chunk.buffer));
        let victim = self.victim.take().and_then(|victim| victim.summary);
        let summaries = self.outputs.drain(..).filter_map(|output| output.summary);
        summaries.chain(victim).for_each(|buffer| bufs.free(buffer));
    }
}

impl Engine {
    /// Placement classes in use: streams of moved blocks of like age. Each holds a segment open,
    /// which a small pool can't spare.
    pub(crate) fn clean_classes(&self) -> usize {
        if self.geo.in_all >= crate::limits::CLEAN_CLASSES_SEGMENTS { CLEAN_CLASSES } else { 1 }
    }

    /// Segments that user writes may not take, so that the cleaner can always go on: an output
    /// per class and one more, while the first is being sealed.
    pub(crate) fn cleaner_reserve(&self) -> u32 {
        if self.planted.has(Plant::UsersTakeReserve) {
            return 0;
        }
        self.clean_classes() as u32 + 1
    }

    /// Segments below which user writes take none.
    pub(crate) fn floor(&self) -> u32 {
        // Outputs that are being filled are what was reserved, and still have room.
        let filling = self.cleaner.filling.iter().flatten().count() as u32;
        self.floor_at_rest() - filling.min(self.cleaner_reserve().saturating_sub(1))
    }

    /// As [`Engine::floor`], while the cleaner fills nothing.
    fn floor_at_rest(&self) -> u32 {
        self.reserve() + self.cleaner_reserve()
    }

    /// Whether user writes have to wait for the cleaner.
    pub(crate) fn is_pressed(&self) -> bool {
        self.segs.free() + self.segs.dying() <= self.floor()
    }

    /// Whether the reserve has shrunk to less than the cleaner needs: not because its outputs lie
    /// there, but because metadata has grown. One output may just have been sealed whose victims
    /// are not free yet.
    pub(crate) fn is_reserve_short(&self) -> bool {
        let outputs = self.cleaner.outputs.iter().filter(|o| o.stage != OutputStage::Idle).count();
        self.segs.free_all() + self.segs.dying() + outputs as u32 + 1 < self.floor_at_rest()
    }

    /// Whether there is a place for moved blocks, or may be when what is under way has ended. There is none where
    /// metadata needs all that is free: when a device has failed that had the rest.
    fn may_move(&self) -> bool {
        self.has_outputs() || self.has_output_room()
    }

    /// Whether a segment may be taken for moved blocks: those below the reserve are the metadata's. Copies of
    /// summaries that are still to be made wait for better times.
    pub(super) fn has_output_room(&self) -> bool {
        self.segs.free_all() > self.reserve() - self.copy_segments_left()
    }

    /// Notes that somebody waits for space; returns whether the cleaner can do something for them.
    pub(crate) fn starve(&mut self) -> bool {
        self.cleaner.starved = true;
        self.count_again();
        let searched = self.cleaner.exhausted_at == Some((self.segs.events(), idle::Need::Pressed));
        let hope = self.segs.can_gain(self.geo.shape.data_blocks) || self.segs.holding_bad() > 0;
        let counted = !self.is_counting();
        let works = !self.cleaner.is_idle() || (counted && hope && !searched);
        (works && self.may_move()) || self.may_count()
    }
}
