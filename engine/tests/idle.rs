//! The cleaner while nobody asks for anything: it works ahead, is kept from it by any request, and
//! comes to rest.

mod support;

use flagstone_block::{BLOCK_SIZE, VolumeId, ZeroMode};
use flagstone_engine::limits::IDLE_CLEAN_NS;
use support::{Numbers, World, block};

const B: u64 = BLOCK_SIZE as u64;
const MIB: u64 = 1 << 20;

/// Lets time pass until the engine asks for no more of it; returns how often it did.
fn rest(world: &mut World) -> u32 {
    let (mut timers, mut quiet) = (0, 0);
    for _ in 0..200_000 {
        // Commands are work, too, and carried out in the next turn.
        world.turn();
        quiet += 1;
        if let Some(at) = world.engine.next_timer_ns() {
            (timers, quiet) = (timers + 1, 0);
            world.now_ns = world.now_ns.max(at);
        } else if quiet == 200 {
            return timers;
        }
    }
    panic!("no rest: {:?} {:?}", world.engine.usage(), world.engine.counters());
}

/// A pool whose volume filled `percent` of it, with `dead` of 16 blocks discarded everywhere.
fn with_garbage(percent: u64, dead: u64) -> (World, VolumeId, u64) {
    let mut world = World::format(128 * MIB, 1 << 20);
    let blocks = world.engine.usage().available / B * percent / 100 / 16 * 16;
    let volume = world.create("data", blocks * B);
    for lba in 0..blocks {
        world.write(volume, lba * B, &block(lba)).unwrap();
    }
    for lba in (0..blocks).step_by(16) {
        world.zero(volume, lba * B, dead * B, ZeroMode::Discard).unwrap();
    }
    world.flush();
    (world, volume, blocks)
}

fn verify(world: &mut World, volume: VolumeId, blocks: u64, dead: u64) {
    for lba in 0..blocks {
        let want = if lba % 16 < dead { vec![0; BLOCK_SIZE] } else { block(lba) };
        assert!(world.read(volume, lba, 1).unwrap() == want, "block {lba}");
    }
}

#[test]
fn discarded_space_comes_back_as_whole_segments() {
    let (mut world, volume, blocks) = with_garbage(60, 13);
    let before = world.engine.usage();
    rest(&mut world);
    let after = world.engine.usage();
    let gained = u64::from(after.segments_free - before.segments_free) * MIB;
    assert!(gained as f64 > before.debt as f64 * 0.9, "{before:?} {after:?}");
    let counters = world.engine.counters();
    assert!(counters.blocks_moved * B * 2 < before.debt, "{counters:?}");
    world.engine.check().unwrap();
    verify(&mut world, volume, blocks, 13);
    let mut world = world.kill();
    verify(&mut world, volume, blocks, 13);
}

/// Half live segments are worth it while few are free, and only then.
#[test]
fn a_full_pool_gets_room_for_the_next_burst() {
    let (mut world, volume, blocks) = with_garbage(95, 9);
    let before = world.engine.usage();
    assert!(before.segments_free < before.segments / 5, "{before:?}");
    rest(&mut world);
    let after = world.engine.usage();
    let free = f64::from(after.segments_free) / f64::from(after.segments);
    assert!((0.2..0.35).contains(&free), "{after:?}");
    world.engine.check().unwrap();
    verify(&mut world, volume, blocks, 9);
}

/// Moving costs more than it gives while there is no need.
#[test]
fn what_pays_little_is_left_alone() {
    // Not so full that the cleaner works because segments are few.
    let (mut world, ..) = with_garbage(90, 5);
    rest(&mut world);
    // The last segments may not have been full.
    assert!(world.engine.counters().blocks_moved < 250);
}

#[test]
fn an_idle_pool_asks_for_nothing() {
    let (mut world, volume, _) = with_garbage(60, 13);
    rest(&mut world);
    let cleaned = world.engine.counters().segments_cleaned;
    assert!(cleaned > 0);
    // One request wakes it for what is new at most, and not again.
    world.read(volume, 15, 1).unwrap();
    assert!(rest(&mut world) <= 3, "a read leaves nothing to do");
    for _ in 0..100 {
        world.now_ns += 10 * IDLE_CLEAN_NS;
        world.turn();
        assert_eq!(world.engine.next_timer_ns(), None);
    }
    assert_eq!(world.engine.counters().segments_cleaned, cleaned);
}

#[test]
fn a_request_keeps_it_from_another_victim() {
    let (mut world, volume, blocks) = with_garbage(60, 13);
    world.now_ns += IDLE_CLEAN_NS / 2;
    world.turn();
    assert_eq!(world.engine.counters().segments_cleaned, 0, "too soon");
    let mut numbers = Numbers(5);
    for _ in 0..200 {
        world.now_ns += IDLE_CLEAN_NS / 2;
        world.read(volume, numbers.below(blocks), 1).unwrap();
    }
    assert_eq!(world.engine.counters().segments_cleaned, 0, "there was always a request");
    // From the pause on, one victim is taken; a request lets that one be finished.
    world.now_ns += IDLE_CLEAN_NS;
    world.engine.pump(&mut world.arena, world.now_ns);
    for _ in 0..200 {
        world.read(volume, numbers.below(blocks), 1).unwrap();
        world.now_ns += 1000;
    }
    assert_eq!(world.engine.counters().segments_cleaned, 1);
    rest(&mut world);
    assert!(world.engine.counters().segments_cleaned > 10);
}

/// The segments of a deleted volume are free as soon as its map is taken apart, without a request.
#[test]
fn a_deleted_volume_needs_no_request_to_be_reclaimed() {
    let (mut world, volume, _) = with_garbage(60, 0);
    world.delete(volume);
    rest(&mut world);
    let usage = world.engine.usage();
    assert_eq!(usage.live, 0);
    // One segment of each stream is open.
    let taken = usage.segments - usage.segments_free - usage.segments_meta;
    assert!(taken <= 2, "{usage:?}");
}
