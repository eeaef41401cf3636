//! Reservations and settings: what is held back, who is refused, and what a crash leaves of it.

mod support;

use flagstone_block::{BLOCK_SIZE, Durability, VolumeId, ZeroMode};
use flagstone_engine::{OnFull, SubmitError, VolumeSettings};
use support::World;

const BLOCK: u64 = BLOCK_SIZE as u64;
const MIB: u64 = 1 << 20;

fn reserve(reserved: u64) -> VolumeSettings {
    VolumeSettings { on_full: OnFull::Error, reserved }
}

/// Writes runs of 32 blocks from `at` on until there is no space, and then block by block; how
/// many bytes went.
fn fill(world: &mut World, volume: VolumeId, at: u64) -> u64 {
    let data = vec![0x5a; 32 * BLOCK_SIZE];
    let mut done = 0;
    for bytes in [data.len(), BLOCK_SIZE] {
        while world.write(volume, at + done, &data[..bytes]).is_ok() {
            done += bytes as u64;
        }
    }
    done
}

#[test]
fn a_reservation_is_held_back_and_served_in_full() {
    let mut world = World::format(96 * MIB, MIB as u32);
    let free = world.engine.usage().available;
    let kept = world.create_with("kept", 32 * MIB, reserve(16 * MIB)).unwrap();
    let greedy = world.create("greedy", 1 << 30);
    let usage = world.engine.usage();
    assert_eq!(usage.held, 16 * MIB);
    assert!(usage.available <= free - 16 * MIB);

    let written = fill(&mut world, greedy, 0);
    assert!(written > 32 * MIB, "{written}");
    assert_eq!(world.engine.usage().available, 0);
    assert_eq!(world.engine.usage().held, 16 * MIB);
    world.engine.check().unwrap();
    // To the last block: the metadata that its map takes is held back as well.
    let data = vec![1; MIB as usize];
    for at in (0..16 * MIB).step_by(MIB as usize) {
        world.write(kept, at, &data).unwrap();
    }
    assert_eq!(world.engine.usage().held, 0);
    // What it discards is its own again, not the others'.
    world.zero(kept, 0, 8 * MIB, ZeroMode::Discard).unwrap();
    world.flush();
    assert_eq!(world.engine.usage().held, 8 * MIB);
    assert_eq!(fill(&mut world, greedy, written), 0);
    world.write(kept, 0, &data).unwrap();

    // The same after a crash, from records and map alone.
    world.flush();
    let mut world = world.kill();
    let usage = world.engine.volume_usage(kept).unwrap();
    assert_eq!((usage.mapped, usage.exclusive, usage.held), (9 * MIB, 9 * MIB, 7 * MIB));
    assert_eq!(world.engine.volume(kept).unwrap().settings, reserve(16 * MIB));
    assert_eq!(fill(&mut world, greedy, written), 0);
    for at in (0..8 * MIB).step_by(MIB as usize) {
        world.write(kept, at, &data).unwrap();
    }
    world.delete(kept);
    for _ in 0..1000 {
        world.turn();
    }
    assert_eq!(world.engine.usage().held, 0);
    assert!(fill(&mut world, greedy, written) > 8 * MIB);
    world.engine.check().unwrap();
}

#[test]
fn reservations_that_the_pool_can_not_back_are_refused() {
    let mut world = World::format(96 * MIB, MIB as u32);
    let free = world.engine.usage().available;
    let unbacked = world.create_with("v", 1 << 30, reserve(free + 16 * MIB)).unwrap_err();
    let SubmitError::ReservationUnbacked { available } = unbacked else { panic!("{unbacked}") };
    assert!(available < free && available > free / 2, "{available} of {free}");
    assert!(world.engine.volume_by_name("v").is_none());
    let v = world.create_with("v", 1 << 30, reserve(available & !(BLOCK - 1))).unwrap();
    world.create_with("w", MIB, reserve(MIB)).unwrap_err();
    // Odd sizes, and more than the volume could ever take.
    for reserved in [1, BLOCK + 1, (1 << 30) + BLOCK] {
        assert_eq!(world.set(v, reserve(reserved)), Err(SubmitError::ReservationSize));
    }
    // Less makes room, and more is refused again.
    world.set(v, reserve(MIB)).unwrap();
    world.create_with("w", MIB, reserve(MIB)).unwrap();
    let refused = world.set(v, reserve(1 << 30)).unwrap_err();
    assert!(matches!(refused, SubmitError::ReservationUnbacked { .. }), "{refused}");
    assert_eq!(world.engine.volume(v).unwrap().settings, reserve(MIB));
    assert_eq!(world.engine.usage().held, 2 * MIB);
    world.engine.check().unwrap();
}

#[test]
fn settings_survive_compaction_stop_and_kill() {
    let mut world = World::format(64 * MIB, MIB as u32);
    let wait = VolumeSettings { on_full: OnFull::Wait, reserved: 3 * MIB };
    let v = world.create_with("v", 8 * MIB, reserve(MIB)).unwrap();
    world.set(v, wait).unwrap();
    world.write(v, 0, &[7; 4096]).unwrap();
    let mut world = world.kill();
    assert_eq!(world.engine.volume(v).unwrap().settings, wait);
    // Recovery has compacted; once more from the compacted chain, and after a clean stop.
    world = world.kill();
    assert_eq!(world.engine.volume(v).unwrap().settings, wait);
    world = World::open(world.stop());
    assert_eq!(world.engine.volume(v).unwrap().settings, wait);
    assert_eq!(world.engine.usage().held, 3 * MIB - 4096);
    // Setting the same again is a success that logs nothing.
    let batches = world.engine.counters().batches;
    world.set(v, wait).unwrap();
    assert_eq!(world.engine.counters().batches, batches);
}

#[test]
fn the_epoch_rises_when_space_comes_back() {
    let mut world = World::format(64 * MIB, MIB as u32);
    let v = world.create("v", 1 << 30);
    let other = world.create_with("other", MIB, reserve(MIB)).unwrap();
    let written = fill(&mut world, v, 0);
    world.flush();
    let mut epoch = world.engine.space_epoch();
    let mut rose = |world: &World, what: &str| {
        let now = world.engine.space_epoch();
        assert!(now > epoch, "{what}");
        epoch = now;
    };
    world.zero(v, 0, MIB, ZeroMode::Discard).unwrap();
    rose(&world, "a discard");
    assert!(fill(&mut world, v, written) > 0);
    world.set(other, VolumeSettings::default()).unwrap();
    rose(&world, "a smaller reservation");
    world.delete(other);
    rose(&world, "a deletion");
}

/// Part of a block takes its space when it is accepted, not when it is written: it is refused in
/// time, and what was accepted is not.
#[test]
fn a_part_of_a_block_is_refused_before_it_is_taken() {
    let mut world = World::format(64 * MIB, MIB as u32);
    let v = world.create("v", 1 << 30);
    let written = fill(&mut world, v, 0);
    world.turn();
    let tag = world.tag();
    let (e, a) = (&mut world.engine, &mut world.arena);
    let refused = e.write(a, tag, v, written + 8192, &[1; 512], Durability::Completed);
    assert_eq!(refused, Err(SubmitError::NoSpace));
    // One block comes back; two parts of new blocks want it.
    world.zero(v, 0, BLOCK, ZeroMode::Discard).unwrap();
    let (first, second) = (world.tag(), world.tag());
    let (e, a) = (&mut world.engine, &mut world.arena);
    e.write(a, first, v, written + 8192, &[1; 512], Durability::Completed).unwrap();
    // As long as the first is under way it may count more than it takes.
    let refused = e.write(a, second, v, written + 16384, &[1; 512], Durability::Completed);
    assert_eq!(refused, Err(SubmitError::Busy));
    e.check().unwrap();
    world.wait(first).result.unwrap();
    let (e, a) = (&mut world.engine, &mut world.arena);
    let refused = e.write(a, second, v, written + 16384, &[1; 512], Durability::Completed);
    assert_eq!(refused, Err(SubmitError::NoSpace));
    world.engine.check().unwrap();
    // Parts of blocks that are there go on.
    world.write(v, written - 4096 + 512, &[2; 512]).unwrap();
}

#[test]
fn debt_is_what_is_dead_and_not_free() {
    let mut world = World::format(96 * MIB, MIB as u32);
    let v = world.create("v", 32 * MIB);
    let data = vec![3; 8 * MIB as usize];
    world.write(v, 0, &data).unwrap();
    assert_eq!(world.engine.usage().debt, 0);
    // Every second block dies; no segment of them is empty.
    for lba in (0..8 * MIB / BLOCK).step_by(2) {
        world.zero(v, lba * BLOCK, BLOCK, ZeroMode::Discard).unwrap();
    }
    assert_eq!(world.engine.usage().debt, 4 * MIB);
    assert_eq!(world.engine.usage().live, 4 * MIB);
    world.zero(v, 0, 8 * MIB, ZeroMode::Discard).unwrap();
    for _ in 0..100 {
        world.flush();
        world.turn();
    }
    // What is left lies in the segment that is open.
    assert!(world.engine.usage().debt < MIB, "{:?}", world.engine.usage());
    assert_eq!(world.engine.fullness().0, 0);
}
