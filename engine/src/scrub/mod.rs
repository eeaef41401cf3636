//! Scrub: reads everything that counts, while the pool serves, and says what is damaged.
//!
//! ```text
//! superblocks -> journal -> metadata chain -> leaf pages -> copies of summaries -> segments -> repair
//!                                                                              |
//!   sealed: summary, then the blocks of it that the map names
//!   open: the blocks that the map names, as its summary in memory lists them
//!   being sealed: later, when it is sealed
//!   summary damaged: the blocks of it that a walk through all maps finds
//! ```
//!
//! A copy of the cleaner's that the map does not name yet is left out: its original is read. A
//! block that the cleaner moves while a scrub is under way was verified by the cleaner.
//!
//! What is damaged is never written in place. The engine knows what all metadata should say, so a
//! checkpoint writes the chain and the damaged leaf pages anew, two superblock writes renew all
//! places of the superblock, and the journal's tail moves past damaged blocks. Data and summaries
//! stay as they are and are reported only; a checkpoint sees to it that opening needs no damaged
//! summary, and neither its copy, of which it takes the place.
//!
//! Invariants:
//! 1. Nothing is written where it reads: a segment is pinned while it is read as data; no
//!    checkpoint ends, and no segment of copies is let go of, while pages are read; superblocks
//!    and the slots of journal blocks wait.
//! 2. What does not match is read once more, alone, and reported only if it still counts then:
//!    the map names that block, the chain is the present one, the journal's tail is below.
//! 3. It writes nothing by itself: checkpoints, seals and superblocks are written as ever.
//! 4. A repair is reported when a superblock that makes the damage irrelevant is durable.
//!
//! It does not touch what is free or superseded, nor the older superblock slot.

mod judge;
mod repair;
mod report;
mod walk;

use crate::engine::Engine;
use crate::limits::{SCRUB_BLOCKS, SCRUB_BUFFERS};
use crate::map::LeafPage;
use crate::segment::SegmentState;
use crate::summary_copies::Copied;
use flagstone_block::{BLOCK_SIZE, Buffer, Buffers, DeviceError};
use repair::Repair;

pub use report::{ScrubFinding, ScrubPlace, ScrubRefused, ScrubReport, ScrubState};

/// Blocks that it takes from the arena.
pub(crate) const OWN_BLOCKS: u32 = SCRUB_BUFFERS as u32 * SCRUB_BLOCKS;

/// A block of the segment at hand that the map named when the segment was listed.
#[derive(Clone, Copy, Debug)]
struct Named {
    block: u32,
    volume: u32,
    lba: u64,
    crc: u32,
}

/// What a read is of. Each has items that are verified one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Superblock {
        place: usize,
    },
    /// Journal blocks from `first` on.
    Journal {
        first: u64,
    },
    /// Pages from number `first` on; two items each, the copies.
    Chain {
        segment: u32,
        first: u64,
        epoch: u64,
    },
    Leaf {
        volume: u32,
        lba: u64,
        page: LeafPage,
    },
    /// The copy of a summary.
    Copy(Copied),
    Summary {
        segment: u32,
        generation: u64,
    },
    /// Items of `named` from `from` on; `first` is the block that the read begins with.
    Blocks {
        segment: u32,
        from: usize,
        first: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    Reading,
    Ready,
}

/// A read, from its beginning until all its items are judged.
#[derive(Clone, Copy, Debug)]
struct Slot {
    buffer: Buffer,
    /// In use instead of `buffer`.
    summary: Option<Buffer>,
    stage: Stage,
    work: Work,
    /// Items judged, and in all.
    at: usize,
    items: usize,
    /// The device refused the whole read: each item is read alone.
    refused: bool,
    /// Item `at` was read again, alone, with this result.
    alone: Option<Result<(), DeviceError>>,
    issued_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Superblocks {
        place: usize,
    },
    Journal {
        next: u64,
        end: u64,
    },
    Chain {
        epoch: u64,
        page: u64,
        end: u64,
    },
    Leaves {
        slot: usize,
        leaf: u64,
    },
    /// Of the summaries of segments from `next` on.
    Copies {
        next: u32,
    },
    Segments {
        next: u32,
    },
    /// Segments that were being sealed when the walk came to them.
    Later {
        next: usize,
    },
    Repair,
}

/// A scrub under way.
#[derive(Debug)]
struct Run {
    phase: Phase,
    /// Ends as soon as nothing of it is under way.
    ending: Option<ScrubState>,
    /// Segment at hand, in this generation, its blocks, and the next of them to be read.
    segment: u32,
    generation: u64,
    named: Vec<Named>,
    /// Until every leaf that may name a block of the list was asked: the blocks that were asked
    /// about, and those of them that are named.
    asking: Option<(usize, usize)>,
    next: usize,
    later: Vec<u32>,
    /// A segment whose summary is damaged, and how far the maps were searched for its blocks:
    /// volume slot and leaf.
    search: Option<(u32, usize, u64)>,
    /// Not before this time.
    pace_ns: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Scrub {
    slots: Vec<Slot>,
    run: Option<Run>,
    repair: Repair,
    report: Option<ScrubReport>,
}

impl Scrub {
    /// Takes its buffers from the arena; `None` if that is too small.
    pub(crate) fn new(bufs: &mut impl Buffers) -> Option<Self> {
        let mut slots = Vec::with_capacity(SCRUB_BUFFERS);
        for _ in 0..SCRUB_BUFFERS {
            slots.push(Slot {
                buffer: bufs.alloc(SCRUB_BLOCKS)?,
                summary: None,
                stage: Stage::Idle,
                work: Work::Superblock { place: 0 },
                at: 0,
                items: 0,
                refused: false,
                alone: None,
                issued_ns: 0,
            });
        }
        Some(Self { slots, run: None, repair: Repair::default(), report: None })
    }

    /// Gives every buffer back.
    pub(crate) fn release(&mut self, bufs: &mut impl Buffers) {
        for slot in self.slots.drain(..) {
            bufs.free(slot.buffer);
            slot.summary.into_iter().for_each(|buffer| bufs.free(buffer));
        }
    }

    /// Whether nothing of it is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.run.is_none()
    }

    /// Whether pages are being read that a checkpoint's end may set free.
    pub(crate) fn is_reading_pages(&self) -> bool {
        let page =
            |work: &Work| matches!(work, Work::Chain { .. } | Work::Leaf { .. } | Work::Copy(_));
        self.slots.iter().any(|slot| slot.stage != Stage::Idle && page(&slot.work))
    }

    /// Whether copies of summaries are being read.
    pub(crate) fn is_reading_copies(&self) -> bool {
        self.slots.iter().any(|s| s.stage != Stage::Idle && matches!(s.work, Work::Copy(_)))
    }

    fn is_reading(&self) -> bool {
        self.slots.iter().any(|slot| slot.stage != Stage::Idle)
    }
}

impl Engine {
    /// Begins to verify everything that counts, reading at most `rate` bytes per second; 0 for no
    /// bound. See [`Engine::scrub`] for what becomes of it.
    ///
    /// # Errors
    /// See [`ScrubRefused`].
    pub fn start_scrub(&mut self, rate: u64) -> Result<(), ScrubRefused> {
        if self.is_read_only() {
            return Err(ScrubRefused::Failed);
        }
        if self.stop.is_begun() {
            return Err(ScrubRefused::Stopping);
        }
        if !self.scrub.is_idle() {
            return Err(ScrubRefused::Running);
        }
        self.scrub.run = Some(Run {
            phase: Phase::Superblocks { place: 0 },
            ending: None,
            segment: 0,
            generation: 0,
            named: Vec::with_capacity(self.geo.shape.data_blocks as usize),
            next: 0,
            later: Vec::new(),
            search: None,
            asking: None,
            pace_ns: 0,
        });
        self.scrub.report = Some(ScrubReport {
            state: ScrubState::Running,
            rate,
            done: 0,
            total: self.bytes_to_scrub(),
            data_blocks: 0,
            bad_blocks: 0,
            bad_metadata: 0,
            repaired: 0,
            findings: Vec::new(),
            unlisted: 0,
        });
        self.scrub.repair.begin_scrub();
        self.again = true;
        Ok(())
    }

    /// The scrub under way, or the last one since the pool was opened.
    #[must_use]
    pub fn scrub(&self) -> Option<&ScrubReport> {
        self.scrub.report.as_ref()
    }

    /// Whether a scrub is under way.
    #[must_use]
    pub fn is_scrubbing(&self) -> bool {
        !self.scrub.is_idle()
    }

    /// Ends the scrub under way, once its reads are over; does nothing if there is none.
    pub fn cancel_scrub(&mut self) {
        self.end_scrub(ScrubState::Cancelled);
        self.again = true;
    }

    fn end_scrub(&mut self, state: ScrubState) {
        if let Some(run) = &mut self.scrub.run {
            run.ending.get_or_insert(state);
        }
    }

    /// What a walk would read now, in bytes.
    fn bytes_to_scrub(&self) -> u64 {
        let shape = &self.geo.shape;
        let summaries =
            u64::from(self.segs.census()[SegmentState::Sealed as usize] * shape.summary_blocks());
        let copies = self.counted_copies().count() as u64 * u64::from(shape.summary_blocks());
        let pages = self.slab.used() as u64 * u64::from(self.geo.leaf_page_blocks());
        let journal = self.journal.durable - self.journal.tail_durable;
        let fixed = self.superblock_places() as u64;
        let metadata = summaries + copies + pages + journal + 2 * self.meta.durable_pages() + fixed;
        let blocks = self.segs.live() + metadata;
        blocks * BLOCK_SIZE as u64
    }

    /// Takes the scrub as far as it can go now.
    pub(crate) fn advance_scrub(&mut self, bufs: &mut impl Buffers) {
        if self.scrub.run.is_none() {
            return;
        }
        if self.stop.is_begun() {
            self.end_scrub(ScrubState::Cancelled);
        }
        for i in 0..self.scrub.slots.len() {
            if self.scrub.slots[i].stage == Stage::Ready {
                self.judge_slot(bufs, i);
            }
        }
        self.issue_scrub_reads(bufs);
        self.advance_scrub_repair(bufs);
        let Some(run) = &self.scrub.run else { return };
        if let Some(state) = run.ending
            && !self.scrub.is_reading()
            && !self.scrub.repair.is_writing()
        {
            self.finish_scrub(state);
        }
    }

    fn finish_scrub(&mut self, state: ScrubState) {
        self.scrub.run = None;
        if let Some(report) = &mut self.scrub.report {
            report.state = state;
            if state == ScrubState::Finished {
                report.done = report.total;
                self.counters.scrubs += 1;
            }
        }
        self.again = true;
    }

    /// The pool failed: nothing more is begun.
    pub(crate) fn fail_scrub(&mut self) {
        if self.scrub.run.is_none() {
            return;
        }
        for i in 0..self.scrub.slots.len() {
            if self.scrub.slots[i].stage == Stage::Ready {
                self.release_slot(i);
            }
        }
        if !self.scrub.is_reading() {
            self.finish_scrub(ScrubState::Failed);
        }
    }

    /// When the scrub may go on, if it waits for nothing but that.
    pub(crate) fn scrub_timer_ns(&self) -> Option<u64> {
        let run = self.scrub.run.as_ref()?;
        let waits = run.ending.is_none() && run.phase != Phase::Repair;
        (waits && run.pace_ns > self.now_ns && !self.scrub.is_reading()).then_some(run.pace_ns)
    }
}
