//! One machine: engine, disk, memory, clock, and the model that watches them.
//!
//! Every request goes through [`World`], which tells the model what was accepted and what was
//! answered, and every device command passes through it on its way to the disk and back.

mod degraded;
mod device;
mod diff;
mod disks;
mod look;
mod open;
mod requests;
mod scrub;
mod usage;

use crate::arena::Arena;
use crate::config::{Config, Theme};
use crate::content::Place;
use crate::disk::{Disk, Layout};
use crate::log::{Detail, Failure, Log};
use crate::oracle::{Bounds, OpId, Oracle};
use crate::rng::Rng;
use flagstone_block::{Buffer, Tag};
use flagstone_engine::plant::{Plant, Planted};
use flagstone_engine::{Engine, IoFault, SubmitError};

pub use requests::{WritePart, payload};

/// A run's result: `Err` is a bug of the engine, or of the simulator.
pub type Check<T = ()> = Result<T, Failure>;

/// What became of an attempt to submit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted<T> {
    /// Accepted.
    Taken(T),
    /// Try again later.
    Busy,
    /// Refused for good.
    Refused(SubmitError),
}

impl<T> Submitted<T> {
    /// Changes what was taken.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Submitted<U> {
        match self {
            Self::Taken(taken) => Submitted::Taken(change(taken)),
            Self::Busy => Submitted::Busy,
            Self::Refused(error) => Submitted::Refused(error),
        }
    }
}

/// Who hears of an answer; 0 for nobody.
pub type Owner = u64;

#[derive(Debug)]
enum Request {
    Change {
        op: OpId,
        /// The one block of a read-modify-write.
        part: Option<Place>,
        durable: bool,
        /// Reads of the engine's own that a fault had touched when this was accepted.
        touched_before: u64,
    },
    /// Of this volume.
    Flush(OpId, u32),
    Volume(OpId),
    /// The pool is to have so many segments.
    Grow(u32),
    Disk(disks::DiskChange),
    Read {
        place: Place,
        buffer: Buffer,
        oldest: Vec<u32>,
        attempts: Vec<Attempts>,
    },
}

/// What faults did to the attempts to read a block.
#[derive(Clone, Copy, Debug, Default)]
struct Attempts {
    /// Attempts in a row in which some block of the run was touched.
    count: u32,
    /// Whether the last one touched this block.
    touched: bool,
}

#[derive(Debug)]
struct Slot {
    serial: u32,
    owner: Owner,
    request: Request,
}

/// What a run did, for the statistics.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Requests accepted.
    pub requests: u64,
    /// Crashes.
    pub crashes: u64,
    /// Recoveries, also those that were cut short.
    pub recoveries: u64,
    /// Segments freed, sealed, and compactions, over all lives.
    pub segments_freed: u64,
    /// See `segments_freed`.
    pub seals: u64,
    /// See `segments_freed`.
    pub compactions: u64,
    /// Requests refused because the pool was full.
    pub full: u64,
    /// Damaged blocks reported as such.
    pub bad_blocks: u64,
    /// Journal blocks written, over all lives.
    pub batches: u64,
    /// Times that a journal ring was filled within one life.
    pub ring_turns: u64,
    /// Compactions while serving.
    pub compactions_serving: u64,
    /// Segments that the cleaner emptied, and blocks that it moved.
    pub segments_cleaned: u64,
    /// See `segments_cleaned`.
    pub blocks_moved: u64,
    /// Damaged blocks that the cleaner moved.
    pub bad_moved: u64,
    /// Segments that were discarded.
    pub discards: u64,
    /// Blocks that were rewritten because they were scanned.
    pub blocks_rewritten: u64,
    /// Disks that were emptied and removed.
    pub disks_removed: u64,
    /// Pools that were looked at without a disk, those that could not be, and blocks that were missed.
    pub degraded: u64,
    /// See `degraded`.
    pub needed: u64,
    /// See `degraded`.
    pub missed: u64,
    /// Disks that failed and that the pool went on without, and those that it could not spare.
    pub spared: u64,
    /// See `spared`.
    pub needed_disks: u64,
    /// Blocks that were lost, and flushes that said so.
    pub lost: u64,
    /// See `lost`.
    pub told: u64,
    /// Blocks that were written again.
    pub again: u64,
}

impl Stats {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.crashes += other.crashes;
        self.recoveries += other.recoveries;
        self.segments_freed += other.segments_freed;
        self.seals += other.seals;
        self.compactions += other.compactions;
        self.full += other.full;
        self.bad_blocks += other.bad_blocks;
        self.batches += other.batches;
        self.ring_turns += other.ring_turns;
        self.compactions_serving += other.compactions_serving;
        self.segments_cleaned += other.segments_cleaned;
        self.blocks_moved += other.blocks_moved;
        self.bad_moved += other.bad_moved;
        self.discards += other.discards;
        self.blocks_rewritten += other.blocks_rewritten;
        self.disks_removed += other.disks_removed;
        self.degraded += other.degraded;
        self.needed += other.needed;
        self.missed += other.missed;
        self.spared += other.spared;
        self.needed_disks += other.needed_disks;
        self.lost += other.lost;
        self.told += other.told;
        self.again += other.again;
    }
}

/// What is different from the plain seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Twist {
    /// This bug is planted.
    pub plant: Option<Plant>,
    /// This theme instead of the one that the seed draws.
    pub theme: Option<Theme>,
    /// Recount all that the engine counts after every event.
    pub check_every_event: bool,
}

/// The machine.
#[derive(Debug)]
pub struct World {
    /// What happened.
    pub log: Log,
    /// Chance.
    pub rng: Rng,
    /// What the seed does.
    pub config: Config,
    /// The disk.
    pub disk: Disk,
    /// The memory.
    pub arena: Arena,
    /// The model.
    pub oracle: Oracle,
    /// The engine, while the process lives.
    pub engine: Option<Engine>,
    /// The clock.
    pub now_ns: u64,
    /// What happened, in numbers.
    pub stats: Stats,
    /// Times that the disk became larger.
    pub growths: u32,
    /// Rollbacks that were accepted.
    pub rollbacks: u32,
    /// Answers for the owners of requests.
    pub answers: Vec<(Owner, Result<(), IoFault>)>,
    layout: Option<Layout>,
    plant: Option<Plant>,
    /// See [`Twist::check_every_event`].
    pub check_every_event: bool,
    slots: Vec<Option<Slot>>,
    vacant: Vec<u32>,
    serial: u32,
    next_stamp: u64,
    /// What must have survived when the pool is opened next.
    bounds: Bounds,
    /// A write or flush failed in this life.
    device_failed: bool,
    /// Requests that failed because a leaf page could not be read, in this life.
    bad_leaves_told: u64,
    /// Reads that faults had touched when this life began.
    tainted_at_open: u64,
    /// A leaf page could not be read in an earlier life: the next opening may make the map anew.
    rebuild_due: bool,
    /// One was found wanting that no fault had touched.
    unfounded_rebuild: bool,
    /// Reads into buffers of the engine's own that a fault touched.
    own_reads_touched: u64,
    /// Whether any read under way was touched.
    any_touched: bool,
    compactions_at_open: u64,
    /// Segments that the pool has at least, because a growth was answered, and at most.
    segments: (u32, u32),
    scrubbed: scrub::Seen,
    /// A comparison under way.
    comparing: Option<diff::Comparing>,
    members: disks::Members,
    /// Disks that failed in this life, and that the pool went on without.
    failing: Vec<usize>,
    /// A change failed although the pool goes on: what it did is not known.
    unsure: bool,
}

impl World {
    /// A machine with an unformatted disk.
    #[must_use]
    pub fn new(seed: u64, detail: Detail, twist: Twist) -> Self {
        let mut rng = Rng::new(seed);
        let config = Config::draw(&mut rng, twist.theme);
        let disk = Disk::new(Rng::new(rng.next()));
        let mut log = Log::new(detail);
        log.step(&[seed], || format!("{config:?}"));
        Self {
            log,
            rng,
            disk,
            arena: Arena::new(2865 + config.arena_blocks),
            config,
            oracle: Oracle::default(),
            engine: None,
            now_ns: 1,
            stats: Stats::default(),
            growths: 0,
            rollbacks: 0,
            answers: Vec::new(),
            layout: None,
            plant: twist.plant,
            check_every_event: twist.check_every_event,
            slots: Vec::new(),
            vacant: Vec::new(),
            serial: 0,
            next_stamp: 1,
            bounds: Bounds::Answered,
            device_failed: false,
            bad_leaves_told: 0,
            tainted_at_open: 0,
            rebuild_due: false,
            unfounded_rebuild: false,
            own_reads_touched: 0,
            any_touched: false,
            compactions_at_open: 0,
            segments: (0, 0),
            scrubbed: scrub::Seen::default(),
            comparing: None,
            members: disks::Members::default(),
            failing: Vec::new(),
            unsure: false,
        }
    }

    /// Ends the run as failed.
    pub fn fail(&mut self, what: impl Into<String>) -> Failure {
        self.log.fail(what)
    }

    /// The living engine.
    pub(crate) fn engine(&mut self) -> &mut Engine {
        self.engine.as_mut().expect("the process lives")
    }

    /// Requests accepted and not yet answered.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }

    /// Whether a write or flush failed in this life.
    #[must_use]
    pub fn device_failed(&self) -> bool {
        self.device_failed
    }

    /// Whether the pool went on without a disk in this life.
    #[must_use]
    pub fn has_spared(&self) -> bool {
        !self.failing.is_empty()
    }

    /// Stamps for `blocks` blocks; none is ever given twice.
    pub fn stamps(&mut self, blocks: u64) -> u64 {
        self.next_stamp += blocks;
        self.next_stamp - blocks
    }

    /// The tag that the next request will have.
    fn peek_tag(&mut self) -> Tag {
        if self.vacant.is_empty() {
            self.vacant.push(self.slots.len() as u32);
            self.slots.push(None);
        }
        let slot = *self.vacant.last().expect("just pushed");
        Tag(u64::from(self.serial.wrapping_add(1)) << 32 | u64::from(slot))
    }

    fn enter(&mut self, owner: Owner, request: Request) -> Check {
        if self.device_failed && !matches!(request, Request::Read { .. }) {
            return Err(self.fail("a change was accepted after the device failed"));
        }
        let slot = self.vacant.pop().expect("peek_tag made one");
        self.serial = self.serial.wrapping_add(1);
        self.slots[slot as usize] = Some(Slot { serial: self.serial, owner, request });
        self.stats.requests += 1;
        Ok(())
    }

    fn leave(&mut self, tag: Tag) -> Option<Slot> {
        let i = tag.0 as u32 as usize;
        let slot = self.slots.get_mut(i)?;
        if slot.as_ref()?.serial != (tag.0 >> 32) as u32 {
            return None;
        }
        self.vacant.push(i as u32);
        slot.take()
    }

    /// The process is gone: nobody waits for anything.
    fn forget_requests(&mut self) {
        self.slots.clear();
        self.vacant.clear();
        self.answers.clear();
        self.comparing = None;
        self.any_touched = false;
    }
}

/// The switch for `plant`; without the feature `planted-bugs` there is none.
///
/// # Panics
/// If a plant is asked for without the feature.
#[must_use]
pub fn planted(plant: Option<Plant>) -> Planted {
    #[cfg(feature = "planted-bugs")]
    {
        Planted(plant)
    }
    #[cfg(not(feature = "planted-bugs"))]
    {
        assert!(plant.is_none(), "built without the feature planted-bugs");
        Planted::default()
    }
}
