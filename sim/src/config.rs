//! What a seed does: every seed enables its own subset of requests and faults.
//!
//! Swarm testing (Groce et al., ISSTA 2012): runs that leave things out go deeper into what they
//! keep than runs that do a little of everything.

use crate::disk::FaultRates;
use crate::rng::Rng;
use flagstone_engine::plant::Plant;

const MIB: u64 = 1 << 20;

/// What a seed is mainly about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    /// A little of everything, short.
    Mixed,
    /// Few blocks, many of them unaligned, at high depth.
    Hot,
    /// Volumes come, grow and go.
    Volumes,
    /// Tiny batches until the journal ring wraps.
    Ring,
    /// Segments are filled, die and are used again.
    Churn,
    /// The pool is filled to the brim.
    Full,
    /// The map does not fit its memory.
    Paging,
    /// Most of the pool is at rest, so that the few segments left are used again and again.
    Reuse,
    /// The same while a scrub reads, whose commands take long.
    Scrub,
    /// Most of the pool is live, and all of it is overwritten: the cleaner works all the time.
    Clean,
    /// What was written block by block is read in sequence, so that it is rewritten.
    Scan,
    /// So many discards that the metadata chain is compacted while serving.
    Metadata,
    /// The disk damages what it holds.
    Damage,
    /// Commands fail.
    Errors,
    /// Snapshots come and go, in a pool that is cleaned.
    Snapshots,
    /// So do clones of them, and volumes become again what they were.
    Clones,
    /// Trees of them: about 200 requests, more than a third of which change the tree, checked after every event.
    Trees,
    /// Disks come and go.
    Disks,
    /// One disk at a time begins to fail.
    Failing,
}

impl Theme {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Mixed,
        Self::Hot,
        Self::Volumes,
        Self::Ring,
        Self::Churn,
        Self::Full,
        Self::Paging,
        Self::Reuse,
        Self::Scrub,
        Self::Clean,
        Self::Scan,
        Self::Metadata,
        Self::Damage,
        Self::Errors,
        Self::Snapshots,
        Self::Clones,
        Self::Trees,
        Self::Disks,
        Self::Failing,
    ];
}

/// The theme that a bug shows in, where a mixture of all would take thousands of seeds.
#[must_use]
pub fn theme_for(plant: Plant) -> Option<Theme> {
    match plant {
        Plant::RewriteUnsettled
        | Plant::RewriteStale
        | Plant::RewriteDamaged
        | Plant::RewriteHoles => Some(Theme::Scan),
        Plant::FlushOneDevice
        | Plant::SuperblockOnOneDevice
        | Plant::JoinTooSoon
        | Plant::RemoveTooSoon
        | Plant::JournalForgetsOld => Some(Theme::Disks),
        Plant::PartSilently
        | Plant::AgainOverNewer
        | Plant::ReplayVoid
        | Plant::ProveFailed
        | Plant::ForgetOrphans
        | Plant::TellOneVolume
        | Plant::KeepLossSecret => Some(Theme::Failing),
        Plant::ReuseTooSoon | Plant::DiscardTooSoon => Some(Theme::Reuse),
        Plant::ScrubUnpinned => Some(Theme::Scrub),
        Plant::SwitchBlindly
        | Plant::MoveAsNew
        | Plant::SealMovedBeforeFlush
        | Plant::SwitchBeforeSeal
        | Plant::UsersTakeReserve
        | Plant::PaceForGood
        | Plant::FinishAnyMove
        | Plant::TakeReserved => Some(Theme::Clean),
        Plant::InheritedDies
        | Plant::SplitGroup
        | Plant::CutLate
        | Plant::PassNothing
        | Plant::DieWhileStating
        | Plant::ReviveDeleted
        | Plant::MoveOwnerOnly => Some(Theme::Snapshots),
        Plant::DieForOne
        | Plant::NoHeir
        | Plant::LeaveUnstated
        | Plant::SplitRollback
        | Plant::ForgetGhosts => Some(Theme::Clones),
        Plant::ScrubKeepsPage => Some(Theme::Damage),
        Plant::ForgetPatches => Some(Theme::Paging),
        _ => None,
    }
}

/// Where the search for a bug begins, a little before the seed that was once found to show it: only to spare minutes. A
/// search from 0 finds it, too, and where a change has moved it, so does this one, later.
#[must_use]
pub fn first_seed_for(plant: Plant) -> u64 {
    match plant {
        Plant::ScrubKeepsPage => 2750,
        Plant::LeaveUnstated => 1275,
        Plant::ProveFailed => 900,
        Plant::TellOneVolume => 880,
        Plant::SealBeforeFlush => 810,
        Plant::PartSilently => 540,
        Plant::RewriteDamaged => 505,
        Plant::ScrubUnpinned => 480,
        Plant::SplitGroup => 260,
        Plant::ForgetPatches => 245,
        Plant::UsersTakeReserve => 170,
        Plant::KeepLossSecret => 160,
        Plant::CutAtMissing => 140,
        Plant::IgnoreWriteErrors => 130,
        Plant::SealMovedBeforeFlush | Plant::LoseReturned => 105,
        Plant::GrowTooSoon => 100,
        Plant::SkipMissingSummaries | Plant::SplitRollback => 90,
        Plant::SwitchBeforeSeal => 15,
        _ => 0,
    }
}

/// Weights of requests.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Whole-block writes.
    pub write: u32,
    /// Writes of any bytes.
    pub partial: u32,
    /// Reads.
    pub read: u32,
    /// Flushes.
    pub flush: u32,
    /// Discards.
    pub discard: u32,
    /// Write-zeroes that may unmap.
    pub zero: u32,
    /// Write-zeroes that keep the space.
    pub keep: u32,
    /// Block status.
    pub status: u32,
    /// New volumes.
    pub create: u32,
    /// Deletions.
    pub delete: u32,
    /// Growth.
    pub resize: u32,
    /// Changes of settings.
    pub set: u32,
    /// The disk and the pool grow.
    pub grow: u32,
    /// Reads of whole regions in sequence.
    pub scan: u32,
    /// Disks are added, emptied and kept.
    pub disks: u32,
    /// Snapshots.
    pub snapshot: u32,
    /// Clones of snapshots.
    pub clone: u32,
    /// Volumes that become again what a snapshot has.
    pub rollback: u32,
}

impl Mix {
    /// As an array, in the order of the fields.
    #[must_use]
    pub fn weights(&self) -> [u32; 18] {
        [
            self.write,
            self.partial,
            self.read,
            self.flush,
            self.discard,
            self.zero,
            self.keep,
            self.status,
            self.create,
            self.delete,
            self.resize,
            self.set,
            self.grow,
            self.scan,
            self.disks,
            self.snapshot,
            self.clone,
            self.rollback,
        ]
    }
}

/// In which order commands in flight end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Any.
    Any,
    /// As submitted.
    Oldest,
    /// The newest first.
    Newest,
    /// Flushes only when nothing else is left.
    FlushesLast,
    /// Flushes before all else.
    FlushesFirst,
    /// Reads only when nothing else is left.
    ReadsLast,
}

/// How a life ends.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The process is killed.
    pub kill: u32,
    /// The power goes.
    pub power: u32,
    /// A clean stop.
    pub stop: u32,
    /// A clean stop that is cut short.
    pub stop_cut: u32,
}

/// Everything that is drawn once per seed.
#[derive(Clone, Debug)]
pub struct Config {
    /// What it is about.
    pub theme: Theme,
    /// Bytes of the first disk.
    pub pool_bytes: u64,
    /// Bytes of the others that the pool has at the start.
    pub more_disks: Vec<u64>,
    /// Bytes of a segment.
    pub segment_bytes: u32,
    /// Volumes at the start, in bytes.
    pub volumes: Vec<u64>,
    /// Volumes and snapshots at once, at most.
    pub volumes_max: usize,
    /// Over the network protocol.
    pub nbd: bool,
    /// Times the pool is opened.
    pub lives: u32,
    /// Events of one life, at least and at most.
    pub events: (u64, u64),
    /// Requests under way, at most.
    pub depth: usize,
    /// Requests.
    pub mix: Mix,
    /// Of a hundred discards and zeroings, how many are of whole blocks.
    pub whole: u32,
    /// FUA requests, of a hundred.
    pub fua: u32,
    /// Longest write or zeroing, in blocks.
    pub blocks_max: u64,
    /// Blocks that most requests go to; 0 for all alike.
    pub hot_blocks: u64,
    /// Half of the requests count from the end of the volume.
    pub far: bool,
    /// Of a hundred discards and zeroings, how many go on to anywhere.
    pub long: u32,
    /// Order of completions.
    pub order: Order,
    /// Of a hundred turns, in how many a request is sent although a command could complete.
    pub eager: u32,
    /// Pumps, of a hundred turns; at least one in eight turns pumps.
    pub pump: u32,
    /// Nanoseconds per turn, at most.
    pub tick_ns: u64,
    /// Turns between two commands to begin or end a scrub, on average.
    pub scrub_turns: u64,
    /// How lives end.
    pub ends: Ends,
    /// Crashes during one recovery, at most.
    pub recrashes: u64,
    /// Of a hundred recoveries, how many are tried at every crash point.
    pub exhaustive: u32,
    /// Of a hundred crashes, after how many something is damaged.
    pub rot: u32,
    /// Of a million turns, in how many something is damaged while serving.
    pub rot_running: u32,
    /// Of a hundred lives, in how many a disk begins to fail.
    pub trouble: u32,
    /// Of those, in how many its reads fail too.
    pub trouble_reads: u32,
    /// Faults of commands.
    pub rates: FaultRates,
    /// Faults of commands while opening, in one of three lives.
    pub rates_open: FaultRates,
    /// Blocks that are left when the pool has been filled with data at rest, if it is.
    pub ballast_leaves: Option<u64>,
    /// Bytes that the map may take.
    pub map_memory: Option<u64>,
    /// Whether free segments are discarded.
    pub discard: bool,
    /// Blocks that the arena has beyond what the engine needs.
    pub arena_blocks: u32,
}

impl Config {
    /// Draws what a seed does; `forced` replaces the theme that it draws.
    pub fn draw(rng: &mut Rng, forced: Option<Theme>) -> Self {
        let themes = [
            (Theme::Mixed, 75),
            (Theme::Hot, 40),
            (Theme::Volumes, 22),
            (Theme::Ring, 6),
            (Theme::Churn, 15),
            (Theme::Full, 3),
            (Theme::Paging, 15),
            (Theme::Reuse, 8),
            (Theme::Clean, 8),
            (Theme::Scan, 15),
            (Theme::Metadata, 2),
            (Theme::Damage, 20),
            (Theme::Errors, 17),
            (Theme::Disks, 25),
        ];
        let weights = themes.map(|(_, weight)| weight);
        let drawn = themes[rng.weighted(&weights)].0;
        let theme = forced.unwrap_or(drawn);
        let mut config = Self::common(rng, theme);
        config.specialise(rng);
        if theme == Theme::Disks && config.rot == 0 && rng.clone().one_in(4) {
            config.trouble = 60;
        }
        if theme == Theme::Trees {
            config.volumes_max = 40;
        } else if matches!(theme, Theme::Snapshots | Theme::Clones) || rng.clone().one_in(5) {
            let mut rng = rng.clone();
            config.mix.snapshot = rng.pick(&[1, 2, 6]);
            if theme == Theme::Clones || (theme != Theme::Snapshots && rng.one_in(2)) {
                (config.mix.clone, config.mix.rollback) = (rng.pick(&[0, 1, 3]), rng.pick(&[0, 1]));
            }
        }
        if config.nbd {
            // Volumes come and go by another way than NBD.
            (config.mix.create, config.mix.delete, config.mix.resize) = (0, 0, 0);
            (config.mix.set, config.mix.grow, config.mix.disks) = (0, 0, 0);
            (config.mix.snapshot, config.mix.clone, config.mix.rollback) = (0, 0, 0);
        }
        config
    }

    fn common(rng: &mut Rng, theme: Theme) -> Self {
        let mut some = |weight: u32| if rng.one_in(3) { 0 } else { weight };
        let mix = Mix {
            write: 30,
            partial: some(12),
            read: some(12),
            flush: some(4),
            discard: some(6),
            zero: some(4),
            keep: some(2),
            status: some(2),
            create: some(1),
            delete: some(1),
            resize: some(1),
            set: some(1),
            grow: if rng.clone().one_in(3) { 1 } else { 0 },
            scan: if rng.clone().one_in(2) { 1 } else { 0 },
            disks: if rng.one_in(6) { 1 } else { 0 },
            snapshot: 0,
            clone: 0,
            rollback: 0,
        };
        let more = if rng.one_in(4) { rng.between(1, 3) } else { 0 };
        let disk = |rng: &mut Rng| (20 + rng.skewed(32)) * MIB + 4096 * rng.below(255);
        let more_disks = (0..more).map(|_| disk(rng)).collect();
        let volumes = rng.between(1, 3);
        let volumes = (0..volumes).map(|_| (1 + rng.skewed(2048)) * 4096).collect();
        Self {
            theme,
            pool_bytes: 64 * MIB
                + rng.skewed(32) * MIB
                + if rng.one_in(4) { 4096 * rng.below(255) } else { 0 },
            more_disks,
            segment_bytes: (MIB as u32) << rng.weighted(&[6, 1, 1]),
            volumes,
            volumes_max: 12,
            nbd: rng.one_in(6),
            lives: rng.between(1, 4) as u32,
            events: (1, 20 + rng.skewed(1200)),
            depth: rng.between(1, rng.clone().pick(&[1, 2, 4, 16, 64])) as usize,
            mix,
            whole: rng.pick(&[50, 80, 100]),
            fua: rng.pick(&[0, 0, 5, 30]),
            blocks_max: rng.pick(&[1, 2, 8, 40, 100]),
            hot_blocks: rng.pick(&[0, 0, 4, 16, 64]),
            far: rng.one_in(4),
            long: rng.pick(&[0, 0, 2, 20]),
            order: rng.pick(&[
                Order::Any,
                Order::Any,
                Order::Any,
                Order::Oldest,
                Order::Newest,
                Order::FlushesLast,
                Order::FlushesFirst,
                Order::ReadsLast,
            ]),
            eager: rng.pick(&[10, 50, 50, 90]),
            pump: rng.pick(&[30, 100, 100]),
            tick_ns: rng.pick(&[1_000, 100_000, 100_000, 50_000_000]),
            scrub_turns: 600,
            ends: Ends { kill: 4, power: 8, stop: 3, stop_cut: 1 },
            recrashes: rng.pick(&[0, 0, 1, 2, 3]),
            exhaustive: if rng.one_in(30) { 40 } else { 0 },
            rot: 0,
            rot_running: 0,
            trouble: 0,
            trouble_reads: 0,
            rates: FaultRates::default(),
            rates_open: FaultRates::default(),
            ballast_leaves: None,
            map_memory: rng.one_in(3).then_some(0),
            discard: rng.percent(60),
            arena_blocks: rng.pick(&[300, 800, 2048]),
        }
    }

    fn specialise(&mut self, rng: &mut Rng) {
        match self.theme {
            Theme::Mixed => {}
            Theme::Hot => {
                self.volumes = vec![rng.between(1, 8) * 4096];
                self.mix.partial = rng.pick(&[10, 30, 60]);
                self.mix.read = 20;
                self.depth = rng.between(2, 40) as usize;
                (self.mix.create, self.mix.delete) = (0, 0);
                self.blocks_max = 4;
            }
            Theme::Volumes => {
                (self.mix.create, self.mix.delete, self.mix.resize) = (6, 5, 3);
                let huge = rng.pick(&[1 << 20, 1 << 30, 1 << 42, 1 << 52]);
                self.volumes = vec![4096 * 16, 4096 * (1 + rng.skewed(1 << 18)), huge];
            }
            Theme::Ring => {
                self.events = (1, rng.between(4_000, 14_000));
                self.depth = rng.pick(&[1, 1, 2, 3]);
                self.blocks_max = 1;
                self.lives = rng.between(1, 2) as u32;
                self.mix.flush = rng.pick(&[0, 0, 1]);
                self.fua = 0;
                self.nbd = false;
                self.tick_ns = 1_000;
                (self.mix.create, self.mix.delete) = (0, 0);
            }
            Theme::Churn => {
                self.segment_bytes = MIB as u32;
                self.volumes = vec![rng.pick(&[300, 600, 4000, 9000]) * 4096];
                self.blocks_max = 100;
                self.events = (1, rng.between(1_000, 4_000));
                self.depth = rng.pick(&[4, 16, 40]);
                self.eager = 50;
                self.mix.partial = rng.pick(&[0, 0, 4]);
                self.mix.flush = rng.pick(&[0, 1, 3]);
                self.mix.discard = rng.pick(&[0, 4, 12]);
                (self.mix.create, self.mix.delete) = (rng.pick(&[0, 1]), rng.pick(&[0, 1]));
                self.fua = 0;
                self.hot_blocks = 0;
                self.nbd = false;
            }
            Theme::Full => {
                self.segment_bytes = MIB as u32;
                self.pool_bytes = 64 * MIB;
                self.volumes = vec![rng.pick(&[12_000, 14_000, 20_000]) * 4096];
                if rng.one_in(2) {
                    self.volumes.push(rng.pick(&[40, 700, 3_000]) * 4096);
                    self.mix.set = 2;
                }
                self.blocks_max = 100;
                self.events = (1_000, rng.between(1_000, 5_000));
                self.depth = rng.pick(&[8, 32]);
                self.eager = 60;
                self.mix.discard = rng.pick(&[1, 4, 8]);
                self.mix.keep = rng.pick(&[0, 1, 4]);
                self.lives = rng.between(2, 3) as u32;
                self.hot_blocks = 0;
                self.nbd = false;
            }
            Theme::Paging => {
                self.segment_bytes = MIB as u32;
                self.volumes = vec![rng.pick(&[8, 40, 300]) * 512 * 4096, 64 * 4096];
                self.blocks_max = rng.pick(&[1, 8, 100]);
                self.events = (200, rng.between(400, 5_000));
                self.depth = rng.pick(&[1, 4, 16, 40]);
                self.mix.read = rng.pick(&[10, 30]);
                self.mix.discard = rng.pick(&[0, 4, 12]);
                self.hot_blocks = 0;
                self.long = rng.pick(&[0, 1, 10]);
                self.lives = rng.between(2, 4) as u32;
                self.map_memory = Some(rng.pick(&[0, 0, 150_000, 300_000]));
                if rng.one_in(3) {
                    // So much at rest that the cleaner has to work.
                    self.ballast_leaves = Some(rng.pick(&[300, 1_500]) + rng.below(100));
                }
                if rng.one_in(8) {
                    self.rot = 50;
                    self.rot_running = rng.pick(&[0, 3_000]);
                }
            }
            Theme::Reuse | Theme::Scrub => {
                self.segment_bytes = MIB as u32;
                self.pool_bytes = 64 * MIB;
                self.ballast_leaves = Some(rng.between(900, 3_000));
                self.volumes = vec![rng.pick(&[260, 400, 700]) * 4096];
                self.blocks_max = 100;
                self.events = (300, rng.between(600, 3_000));
                self.depth = rng.pick(&[4, 16, 40]);
                self.eager = 60;
                self.mix.partial = rng.pick(&[0, 0, 2]);
                self.mix.read = rng.pick(&[0, 5, 20]);
                self.mix.flush = rng.pick(&[0, 0, 1]);
                self.mix.discard = rng.pick(&[0, 2, 6]);
                (self.mix.create, self.mix.delete) = (rng.pick(&[0, 1]), rng.pick(&[0, 1]));
                self.long = 0;
                self.fua = 0;
                self.hot_blocks = 0;
                self.tick_ns = 1_000;
                self.nbd = false;
                self.lives = rng.between(1, 3) as u32;
                if self.theme == Theme::Scrub {
                    // What is being read dies all at once, and its segments are discarded.
                    self.scrub_turns = 60;
                    self.order = rng.pick(&[Order::ReadsLast, Order::ReadsLast, Order::Any]);
                    self.discard = true;
                    (self.mix.read, self.mix.discard, self.long) = (0, 12, 20);
                    (self.mix.create, self.mix.delete) = (2, 2);
                }
            }
            Theme::Clean => {
                self.segment_bytes = MIB as u32;
                self.pool_bytes = if rng.one_in(4) { 96 * MIB } else { 64 * MIB };
                self.ballast_leaves = Some(rng.pick(&[40, 300, 1_500, 4_000]) + rng.below(100));
                self.volumes = vec![rng.pick(&[20, 260]) * 4096];
                self.blocks_max = rng.pick(&[1, 8, 40, 100]);
                self.events = (300, rng.between(600, 6_000));
                self.depth = rng.pick(&[4, 16, 40]);
                self.eager = 60;
                self.mix.partial = rng.pick(&[0, 0, 2, 10]);
                self.mix.read = rng.pick(&[0, 5, 20]);
                self.mix.flush = rng.pick(&[0, 0, 1]);
                self.mix.discard = rng.pick(&[0, 2, 6]);
                (self.mix.create, self.mix.delete) = (rng.pick(&[0, 1]), rng.pick(&[0, 0, 1]));
                self.long = rng.pick(&[0, 0, 1]);
                self.fua = rng.pick(&[0, 0, 5]);
                self.hot_blocks = 0;
                self.tick_ns = rng.pick(&[1_000, 100_000]);
                self.nbd = false;
                self.lives = rng.between(1, 4) as u32;
                if rng.one_in(6) {
                    self.rot = 50;
                    self.rot_running = rng.pick(&[0, 3_000]);
                    self.rates.read_flip = rng.pick(&[0, 3_000]);
                    self.rates.read_error = rng.pick(&[0, 3_000]);
                }
                if rng.one_in(8) {
                    self.rates.write_error = 300;
                    self.rates.flush_error = rng.pick(&[0, 1_000]);
                }
            }
            Theme::Scan => {
                self.segment_bytes = MIB as u32;
                self.volumes = vec![rng.pick(&[70, 300, 600, 1_100]) * 4096];
                self.blocks_max = rng.pick(&[1, 1, 2, 8]);
                self.events = (200, rng.between(400, 2_000));
                self.depth = rng.pick(&[2, 4, 16, 40]);
                self.tick_ns = rng.pick(&[100_000, 1_000_000, 10_000_000]);
                self.mix.scan = 3;
                self.mix.partial = rng.pick(&[0, 0, 6]);
                self.mix.read = rng.pick(&[0, 5]);
                self.mix.flush = rng.pick(&[0, 1, 4]);
                self.mix.discard = rng.pick(&[0, 4, 12]);
                self.hot_blocks = 0;
                self.long = rng.pick(&[0, 0, 5]);
                self.lives = rng.between(2, 4) as u32;
                self.nbd = false;
                self.map_memory = rng.one_in(5).then_some(0);
                if rng.one_in(3) {
                    self.rot = 50;
                    self.rot_running = rng.pick(&[3_000, 30_000]);
                    self.rates.read_flip = rng.pick(&[0, 0, 3_000]);
                    // A damaged page of a leaf that is not in memory is another matter.
                    self.map_memory = None;
                }
                if rng.one_in(8) {
                    self.rates.write_error = 300;
                }
            }
            Theme::Metadata => {
                self.segment_bytes = MIB as u32;
                self.volumes = vec![rng.pick(&[64, 500, 2000]) * 4096];
                self.whole = 99;
                self.hot_blocks = 0;
                self.mix.discard = 300;
                self.mix.zero = 100;
                self.mix.flush = 1;
                self.mix.partial = 0;
                self.mix.status = 0;
                self.mix.read = 2;
                self.blocks_max = 4;
                self.fua = 0;
                self.depth = 400;
                self.eager = 90;
                self.pump = 30;
                self.events = (60_000, 160_000);
                self.lives = 2;
                self.tick_ns = 1_000;
                self.nbd = false;
                self.order = Order::Any;
            }
            Theme::Trees => {
                self.segment_bytes = MIB as u32;
                self.pool_bytes = 64 * MIB;
                self.more_disks.clear();
                self.volumes = vec![rng.pick(&[8, 600, 1_500]) * 4096];
                self.blocks_max = rng.pick(&[1, 4, 40]);
                self.events = (500, 700);
                self.depth = rng.pick(&[1, 4]);
                self.lives = 2;
                self.recrashes = 0;
                self.nbd = false;
                self.map_memory = rng.one_in(3).then_some(rng.pick(&[0, 150_000]));
                (self.mix.grow, self.mix.disks, self.mix.scan) = (0, 0, 0);
                (self.mix.create, self.mix.resize, self.mix.set) = (1, 1, 0);
                (self.mix.snapshot, self.mix.clone, self.mix.rollback) = (10, 7, 4);
                self.mix.delete = rng.pick(&[8, 12, 16]);
            }
            Theme::Snapshots | Theme::Clones => {
                self.segment_bytes = MIB as u32;
                self.pool_bytes = 64 * MIB;
                self.volumes = vec![rng.pick(&[100, 1_000, 3_000]) * 4096];
                if rng.one_in(2) {
                    self.volumes.push(rng.pick(&[40, 700]) * 4096);
                }
                self.blocks_max = rng.pick(&[1, 8, 40]);
                self.events = (200, rng.between(400, 4_000));
                self.depth = rng.pick(&[1, 4, 16]);
                self.mix.partial = rng.pick(&[0, 4]);
                self.mix.discard = rng.pick(&[0, 2, 6]);
                self.mix.delete = rng.pick(&[1, 2]);
                self.lives = rng.between(2, 4) as u32;
                self.map_memory = rng.one_in(3).then_some(rng.pick(&[0, 150_000]));
                self.nbd = false;
            }
            Theme::Damage => {
                self.rot = 70;
                self.rot_running = rng.pick(&[0, 30_000, 200_000]);
                self.rates.read_error = rng.pick(&[0, 0, 10_000]);
                self.rates.read_flip = rng.pick(&[0, 0, 30_000]);
                self.rates.misdirect = rng.pick(&[0, 0, 5_000]);
                self.rates_open.read_error = rng.pick(&[0, 0, 50_000]);
                self.rates_open.read_flip = rng.pick(&[0, 50_000, 200_000]);
                self.mix.read = 40;
                self.hot_blocks = rng.pick(&[4, 16, 64]);
            }
            Theme::Disks => {
                self.segment_bytes = MIB as u32;
                self.pool_bytes = (40 + rng.skewed(40)) * MIB;
                let more = rng.between(1, 3);
                self.more_disks = (0..more).map(|_| (30 + rng.skewed(30)) * MIB).collect();
                self.mix.disks = rng.pick(&[1, 2, 6]);
                self.mix.write = 40;
                self.volumes = vec![rng.pick(&[64, 400, 1_500]) * 4096];
                self.blocks_max = rng.pick(&[1, 8, 40, 100]);
                self.events = (200, rng.between(600, 4_000));
                self.depth = rng.pick(&[2, 8, 32]);
                self.hot_blocks = 0;
                self.lives = rng.between(2, 5) as u32;
                self.nbd = false;
                if rng.one_in(3) {
                    self.ballast_leaves = Some(rng.pick(&[1_000, 4_000, 8_000]));
                }
                if rng.one_in(8) {
                    self.rot = 50;
                    self.rates.read_flip = rng.pick(&[0, 3_000]);
                }
            }
            Theme::Failing => {
                self.segment_bytes = MIB as u32;
                self.pool_bytes = (40 + rng.skewed(40)) * MIB;
                let more = rng.between(1, 3);
                self.more_disks = (0..more).map(|_| (30 + rng.skewed(30)) * MIB).collect();
                self.mix.disks = rng.pick(&[0, 0, 1, 3]);
                (self.mix.write, self.mix.flush) = (40, rng.pick(&[1, 4, 10]));
                self.volumes = vec![rng.pick(&[8, 64, 400, 1_500]) * 4096, 64 * 4096];
                self.blocks_max = rng.pick(&[1, 8, 40, 100]);
                self.events = (100, rng.between(300, 3_000));
                self.depth = rng.pick(&[2, 8, 32]);
                self.hot_blocks = rng.pick(&[0, 0, 16]);
                self.lives = rng.between(2, 5) as u32;
                self.nbd = false;
                self.trouble = 80;
                self.trouble_reads = rng.pick(&[0, 0, 0, 50]);
                if rng.one_in(4) {
                    self.ballast_leaves = Some(rng.pick(&[1_000, 4_000, 8_000]));
                }
            }
            Theme::Errors => {
                let rate = rng.pick(&[300, 3_000, 20_000]);
                let mut maybe = || if rng.one_in(2) { rate } else { 0 };
                self.rates.write_error = maybe();
                self.rates.discard_error = maybe();
                self.rates.flush_error = maybe();
                self.rates.read_error = maybe();
                self.rates_open = self.rates;
            }
        }
    }
}
