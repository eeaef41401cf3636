//! A seed from beginning to end: several lives of one pool, then a reckoning.

use crate::client::{Client, Offer, settings};
use crate::config::{Ends, Theme};
use crate::disk::{Area, CrashKind, FaultRates};
use crate::log::{Detail, Failure};
use crate::nbd::Front;
use crate::oracle::Oracle;
use crate::world::{Check, Stats, Submitted, Twist, World, WritePart, payload};
use flagstone_block::{BLOCK_SIZE, Durability};
use flagstone_engine::{Counters, PoolState, SubmitError, VolumeSettings};

/// How a seed ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What is wrong, if anything.
    pub failure: Option<Failure>,
    /// Equal for equal runs.
    pub hash: u64,
    /// Steps taken.
    pub events: u64,
    /// What was done.
    pub stats: Stats,
}

/// Runs a seed. A panic of the engine is the caller's to catch.
#[must_use]
pub fn run_seed(seed: u64, twist: Twist, detail: Detail) -> Outcome {
    let mut world = World::new(seed, detail, twist);
    let failure = live(&mut world).err();
    world.bury();
    Outcome { failure, hash: world.log.hash(), events: world.log.events(), stats: world.stats }
}

/// When a life ends, besides after all its events: soon after something rare has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trigger {
    None,
    Flushes(u64),
    Seals(u64),
    Freed(u64),
    Compactions(u64),
    Moved(u64),
    Rewritten(u64),
    DisksRemoved(u64),
    DiskChanges(u64),
    /// A rollback was sent.
    Rollbacks(u32),
    /// The pool goes on without a disk.
    Spared,
}

impl Trigger {
    fn fires(self, counters: &Counters, rollbacks: u32) -> bool {
        match self {
            Self::None | Self::Spared => false,
            Self::Rollbacks(n) => rollbacks >= n,
            Self::Flushes(n) => counters.flushes >= n,
            Self::Seals(n) => counters.seals >= n,
            Self::Freed(n) => counters.segments_freed >= n,
            Self::Compactions(n) => counters.compactions >= n,
            Self::Moved(n) => counters.blocks_moved >= n,
            Self::Rewritten(n) => counters.blocks_rewritten >= n,
            Self::DisksRemoved(n) => counters.devices_removed >= n,
            Self::DiskChanges(n) => counters.device_changes >= n,
        }
    }
}

/// Who sends the requests.
#[derive(Debug)]
enum Clients {
    Direct(Client),
    Nbd(Front),
}

impl Clients {
    fn offer(&mut self, world: &mut World) -> Check<Offer> {
        match self {
            Self::Direct(client) => client.offer(world),
            Self::Nbd(front) => front.offer(world),
        }
    }

    fn forget(&mut self) {
        match self {
            Self::Direct(client) => client.forget(),
            Self::Nbd(front) => front.forget(),
        }
    }

    /// Gives back what is held in memory.
    fn finish(&mut self, world: &mut World) -> Check {
        world.settle()?;
        match self {
            Self::Direct(client) => client.forget(),
            Self::Nbd(front) => front.finish(world)?,
        }
        Ok(())
    }
}

fn live(world: &mut World) -> Check {
    if world.rng.one_in(16) {
        // What another pool left behind must not be taken for this one's.
        previous_pool(world)?;
    }
    world.format()?;
    let mut clients = if world.config.nbd {
        Clients::Nbd(Front::default())
    } else {
        Clients::Direct(Client::default())
    };
    world.open()?;
    first_volumes(world)?;
    fill(world)?;
    for life in 0..world.config.lives {
        if life > 0 {
            if world.rng.one_in(3) {
                world.disk.set_rates(world.config.rates_open);
            }
            world.open()?;
            if world.moved_bad() {
                return Ok(());
            }
        }
        world.disk.set_rates(world.config.rates);
        serve(world, &mut clients)?;
        end_life(world, &mut clients)?;
        if world.moved_bad() {
            // What the damage took is gone for good, and the model does not know what that was.
            return Ok(());
        }
        clients.forget();
        world.disk.set_rates(FaultRates::default());
        if world.rng.percent(world.config.rot) {
            for _ in 0..world.rng.between(1, 3) {
                world.rot();
            }
        }
    }
    reckon(world)
}

/// A pool that lived on this disk before.
fn previous_pool(world: &mut World) -> Check {
    world.format()?;
    world.open()?;
    first_volumes(world)?;
    serve(world, &mut Clients::Direct(Client::default()))?;
    let kind = world.rng.pick(&[CrashKind::Kill, CrashKind::Power]);
    world.crash(kind);
    world.oracle = Oracle::default();
    Ok(())
}

fn first_volumes(world: &mut World) -> Check {
    for (i, size) in world.config.volumes.clone().into_iter().enumerate() {
        let name = format!("first{i}");
        let settings = settings(world, size);
        let mut created = world.create(&name, size, settings)?;
        if let Submitted::Refused(SubmitError::ReservationUnbacked { .. }) = created {
            created = world.create(&name, size, VolumeSettings::default())?;
        }
        if let Submitted::Refused(error) = created {
            return Err(world.fail(format!("the first volume was refused: {error}")));
        }
        world.settle()?;
    }
    Ok(())
}

/// Fills the pool with data at rest, as far as the seed wants it.
fn fill(world: &mut World) -> Check {
    let Some(leaves) = world.config.ballast_leaves else { return Ok(()) };
    let block = BLOCK_SIZE as u64;
    let blocks = (world.engine().usage().available / block).saturating_sub(leaves);
    if blocks == 0 {
        return Ok(());
    }
    let Submitted::Taken(volume) =
        world.create("ballast", blocks * block, VolumeSettings::default())?
    else {
        return Err(world.fail("the ballast was refused"));
    };
    world.settle()?;
    let stamp = world.stamps(blocks);
    let mut offset = 0;
    while offset < blocks * block {
        let len = (32 * block).min(blocks * block - offset);
        let data = payload(volume, offset, len, stamp + offset / block);
        let durability = Durability::Completed;
        let part = WritePart { volume, offset, data: &data, stamp, start: 0, durability };
        match world.write(0, part)? {
            Submitted::Taken(taken) => offset += taken,
            Submitted::Refused(_) => break,
            Submitted::Busy => {}
        }
        world.pump()?;
        world.end_one()?;
    }
    world.quiesce()
}

/// One life: requests, completions, time.
fn serve(world: &mut World, clients: &mut Clients) -> Check {
    let (least, most) = world.config.events;
    let events = world.rng.between(least, most);
    let trigger = match world.rng.below(8) {
        0..6 if world.config.theme == Theme::Metadata => Trigger::Compactions(2),
        0..4 if world.config.theme == Theme::Failing => Trigger::Spared,
        0..4 if world.config.theme == Theme::Clean => Trigger::Moved(world.rng.skewed(2_000)),
        0..3 if world.config.theme == Theme::Disks => {
            Trigger::DiskChanges(world.rng.between(1, 12))
        }
        2 | 3 if world.config.theme == Theme::Clones && world.config.mix.rollback > 0 => {
            Trigger::Rollbacks(world.rng.between(1, 3) as u32)
        }
        0 | 1 => Trigger::Flushes(world.rng.between(1, 6)),
        2 => Trigger::Seals(world.rng.between(1, 4)),
        3 => Trigger::Freed(world.rng.between(1, 4)),
        4 | 5 if world.config.theme == Theme::Disks => {
            Trigger::DisksRemoved(world.rng.between(1, 2))
        }
        4 => Trigger::Compactions(1),
        5 if world.config.mix.scan > 0 => Trigger::Rewritten(1 + world.rng.skewed(300)),
        _ => Trigger::None,
    };
    world.begin_trouble();
    let rolled_back = world.rollbacks;
    let mut left = events;
    let mut triggered = false;
    let mut blocked = 0;
    let mut unpumped = 0;
    while left > 0 {
        left -= 1;
        let spared = trigger == Trigger::Spared && world.has_spared();
        let fires = trigger.fires(&world.engine().counters(), world.rollbacks - rolled_back);
        if !triggered && (fires || spared) {
            triggered = true;
            left = left.min(world.rng.skewed(30));
        }
        let in_flight = world.disk.in_flight() > 0;
        let may_send = world.outstanding() < world.config.depth && (blocked == 0 || !in_flight);
        let mut moved = false;
        if may_send && (!in_flight || world.rng.percent(world.config.eager)) {
            if blocked > 8
                && world.engine().is_holding()
                && let Some(at) = world.engine().next_timer_ns()
            {
                // What is about a block that waits for space waits with it, until that gives up.
                world.now_ns = world.now_ns.max(at);
                blocked = 1;
            }
            if blocked > 8 {
                let usage = world.engine().usage();
                let what = "stuck: the engine is busy although nothing is under way";
                return Err(world.fail(format!("{what}: {usage:?}")));
            }
            match clients.offer(world)? {
                Offer::Busy => blocked += 1,
                Offer::Idle => {}
                Offer::Progress => (blocked, moved) = (0, true),
            }
        } else if in_flight {
            moved = world.end_one()?;
            blocked = 0;
        }
        if world.config.rot_running > 0
            && world.rng.below(1_000_000) < u64::from(world.config.rot_running)
        {
            world.rot_area(Area::Data);
        }
        let tick = world.config.tick_ns;
        world.now_ns += 1 + world.rng.below(tick);
        unpumped += 1;
        if !moved || unpumped >= 8 || world.rng.percent(world.config.pump) {
            unpumped = 0;
            let news = world.pump()?;
            if news {
                blocked = 0;
            }
            if !moved && !news {
                idle(world)?;
            }
        } else {
            world.drain()?;
        }
        let now_and_then = world.rng.one_in(500);
        let changed = moved && world.config.theme == Theme::Trees;
        if now_and_then || changed || world.check_every_event {
            world.check_engine()?;
        }
        if world.rng.one_in(world.config.scrub_turns) {
            world.toggle_scrub();
        }
        if world.device_failed() && world.rng.one_in(20) {
            return Ok(());
        }
    }
    Ok(())
}

/// Nothing moves: either time has to pass, or somebody is forgotten.
fn idle(world: &mut World) -> Check {
    if world.disk.in_flight() > 0 {
        return Ok(());
    }
    if let Some(at) = world.engine().next_timer_ns()
        && world.outstanding() >= world.config.depth
    {
        // Those that wait for space give up in time.
        world.now_ns = world.now_ns.max(at);
        return Ok(());
    }
    if world.outstanding() >= world.config.depth {
        return Err(world.fail("stuck: every request waits, and nothing is under way"));
    }
    if let Some(at) = world.engine().next_timer_ns()
        && world.rng.one_in(3)
    {
        world.now_ns = world.now_ns.max(at);
    }
    Ok(())
}

fn end_life(world: &mut World, clients: &mut Clients) -> Check {
    let Ends { kill, power, stop, stop_cut } = world.config.ends;
    let end = world.rng.weighted(&[kill, power, stop, stop_cut]);
    match end {
        0 => world.crash(CrashKind::Kill),
        1 => world.crash(CrashKind::Power),
        2 => {
            // Half of the time requests are under way; over NBD their memory is the clients'.
            if world.config.nbd || world.rng.one_in(2) {
                clients.finish(world)?;
            }
            stop_cleanly(world)?;
        }
        _ => {
            world.log.step(&[50], || "clean stop, cut short".into());
            world.engine().shutdown();
            for _ in 0..world.rng.skewed(60) {
                world.pump()?;
                world.end_one()?;
            }
            let kind = world.rng.pick(&[CrashKind::Kill, CrashKind::Power]);
            world.crash(kind);
        }
    }
    Ok(())
}

/// A clean stop: everything is answered, every buffer given back, nothing in flight.
fn stop_cleanly(world: &mut World) -> Check {
    world.log.step(&[51], || "clean stop".into());
    world.engine().shutdown();
    for _ in 0..200_000 {
        let news = world.pump()?;
        if world.engine().is_stopped() {
            break;
        }
        if !world.end_one()? && !news && !world.pump()? && world.disk.in_flight() == 0 {
            break;
        }
    }
    if !world.engine().is_stopped() {
        let state = world.engine().state();
        return Err(world.fail(format!("stuck: the clean stop does not end ({state:?})")));
    }
    world.drain()?;
    if world.outstanding() > 0 {
        let count = world.outstanding();
        return Err(world.fail(format!("stopped with {count} requests unanswered")));
    }
    if world.arena.taken() > 0 {
        let blocks = world.arena.taken();
        return Err(
            world.fail(format!("stopped, but {blocks} blocks of memory are not given back"))
        );
    }
    if world.device_failed() {
        // Not clean: what was never flushed may be gone.
        world.crash(CrashKind::Kill);
        return Ok(());
    }
    if world.unflushed() > 0 {
        return Err(world.fail("stopped cleanly, but not all is flushed"));
    }
    world.stopped();
    Ok(())
}

/// The last life: everything is looked at, nothing leaks, a clean pool opens as clean.
fn reckon(world: &mut World) -> Check {
    world.disk.set_trouble(None);
    world.open()?;
    if world.moved_bad() {
        return Ok(());
    }
    world.quiesce()?;
    world.check_state()?;
    world.check_evacuated()?;
    world.compare_all()?;
    world.quiesce()?;
    world.check_shared()?;
    world.check_accounts()?;
    world.check_engine()?;
    if world.rng.one_in(4) && !world.oracle.has_losses() {
        world.scrub_at_rest()?;
        world.quiesce()?;
        if world.moved_bad() {
            return Ok(());
        }
    }
    stop_cleanly(world)?;
    if world.rng.one_in(2) {
        world.check_offline()?;
    }
    // An opening that makes the map anew, and dies, has written metadata already.
    let rebuilding = world.is_rebuild_due();
    let report = world.open()?;
    if !report.clean && !rebuilding {
        return Err(world.fail(format!("stopped cleanly, but opened with {report:?}")));
    }
    if world.rng.one_in(2) {
        return Ok(());
    }
    let mut volumes: Vec<u32> = world.oracle.live_volumes().collect();
    // Snapshots first, or last.
    let last = world.rng.clone().one_in(2);
    volumes.sort_by_key(|&volume| (world.oracle.line(volume) == volume) != last);
    if world.oracle.snapshots_taken && !volumes.is_empty() {
        // One alone, so that it can be told what came back.
        world.quiesce()?;
        world.check_frees(volumes.remove(0))?;
    }
    for volume in volumes {
        while world.delete(volume)? == Submitted::Busy {
            if !world.pump()? && !world.end_one()? {
                return Err(world.fail("stuck: a volume can't be deleted"));
            }
        }
    }
    world.quiesce()?;
    world.check_engine()?;
    world.check_empty()?;
    stop_cleanly(world)?;
    world.open()?;
    if world.engine().state() != PoolState::Running {
        return Err(world.fail("the pool does not run"));
    }
    if world.oracle.snapshots_taken {
        // Those that were deleted since the last checkpoint are taken apart again.
        world.quiesce()?;
    }
    world.check_empty()
}
