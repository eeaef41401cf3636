//! Volumes that change their size: what a shrink cuts off is gone for good, also when the volume grows
//! again, however the pool was opened meanwhile.

mod support;

use flagstone_block::{BLOCK_SIZE, Durability, VolumeId, ZeroMode};
use flagstone_engine::{IoFault, OnFull, OpenOptions, Shrink, SubmitError, VolumeSettings};
use support::{OPEN, World, block};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = BLOCK_SIZE as u64;

fn fill(world: &mut World, volume: VolumeId, blocks: std::ops::Range<u64>) {
    for lba in blocks {
        world.write(volume, lba * BLOCK, &block(lba)).unwrap();
    }
}

/// Writes to another volume until a checkpoint has come and gone.
fn checkpoint(world: &mut World) {
    let named = world.engine.volume_by_name("other").map(|info| VolumeId(info.id));
    let other = named.unwrap_or_else(|| world.create("other", MIB));
    let before = world.engine.counters().compactions;
    while world.engine.counters().compactions == before {
        world.write(other, 0, &vec![1; MIB as usize]).unwrap();
    }
}

/// The blocks below `end` hold what [`fill`] wrote, the others zeroes.
fn verify(world: &mut World, volume: VolumeId, blocks: std::ops::Range<u64>, end: u64) {
    for lba in blocks {
        let expected = if lba < end { block(lba) } else { vec![0; BLOCK_SIZE] };
        assert!(world.read(volume, lba, 1).unwrap() == expected, "block {lba}");
    }
    world.engine.check().unwrap();
}

#[test]
fn a_volume_shrinks_only_as_it_is_told_to() {
    let mut world = World::format(128 * MIB, MIB as u32);
    let v = world.create("v", 16 * MIB);
    fill(&mut world, v, 0..3000);
    world.zero(v, 3500 * BLOCK, BLOCK, ZeroMode::KeepAllocated).unwrap();
    let size = 2500 * BLOCK;
    assert_eq!(world.resize(v, size, Shrink::Never), Err(SubmitError::VolumeSize));
    let refused = world.resize(v, size, Shrink::Unused);
    assert_eq!(refused, Err(SubmitError::VolumeHasData { bytes: 501 * BLOCK }));
    assert_eq!(world.resize(v, 0, Shrink::Discard), Err(SubmitError::VolumeSize));
    assert_eq!(world.resize(v, 100, Shrink::Discard), Err(SubmitError::VolumeSize));
    // What is reserved must fit.
    let settings = VolumeSettings { on_full: OnFull::Error, reserved: 11 * MIB };
    world.set(v, settings).unwrap();
    assert_eq!(world.resize(v, size, Shrink::Discard), Err(SubmitError::ReservationSize));
    world.set(v, VolumeSettings { reserved: size, ..settings }).unwrap();
    verify(&mut world, v, 0..4096, 3000);

    world.resize(v, size, Shrink::Discard).unwrap();
    assert_eq!(world.engine.volume(v).unwrap().size, size);
    let usage = world.engine.volume_usage(v).unwrap();
    assert_eq!((usage.mapped, usage.kept), (size, 0));
    verify(&mut world, v, 0..2500, 2500);
    let beyond = world.write(v, size, &block(1));
    assert_eq!(beyond, Err(SubmitError::OutOfRange));
    // The rest is unused once it was discarded.
    world.zero(v, 2000 * BLOCK, 500 * BLOCK, ZeroMode::Discard).unwrap();
    world.set(v, VolumeSettings::default()).unwrap();
    world.resize(v, 2000 * BLOCK, Shrink::Unused).unwrap();
    verify(&mut world, v, 0..2000, 2000);
}

#[test]
fn what_was_cut_off_does_not_come_back() {
    let rebuild = OpenOptions { rebuild: true, ..OPEN };
    let small = OpenOptions { map_memory: Some(0), ..OPEN };
    // Whether a checkpoint comes between, and how the pool is opened again.
    for (between, clean, options) in [
        (false, false, &OPEN),
        (false, false, &rebuild),
        (false, true, &OPEN),
        (true, false, &OPEN),
        (true, true, &rebuild),
        (true, false, &small),
        (true, true, &small),
    ] {
        let mut world = World::format(128 * MIB, MIB as u32);
        let v = world.create("v", 32 * MIB);
        fill(&mut world, v, 0..2000);
        if between {
            checkpoint(&mut world);
        }
        // In the middle of a leaf.
        world.resize(v, 700 * BLOCK, Shrink::Discard).unwrap();
        if between {
            checkpoint(&mut world);
        }
        let reopen = |world: World| {
            let disk = if clean { world.stop() } else { world.disk };
            World::open_with(disk, options).unwrap()
        };
        let mut world = reopen(world);
        assert_eq!(world.engine.volume(v).unwrap().size, 700 * BLOCK);
        verify(&mut world, v, 0..700, 700);
        world.resize(v, 32 * MIB, Shrink::Never).unwrap();
        verify(&mut world, v, 0..2100, 700);
        let mut world = reopen(world);
        verify(&mut world, v, 0..2100, 700);
        if between {
            checkpoint(&mut world);
        }
        let mut world = World::open_with(world.stop(), &rebuild).unwrap();
        verify(&mut world, v, 0..2100, 700);
        fill(&mut world, v, 700..1000);
        verify(&mut reopen(world), v, 0..2100, 1000);
    }
}

#[test]
fn leaves_that_are_away_are_cut_off_too() {
    let options = OpenOptions { map_memory: Some(300 << 10), ..OPEN };
    let mut world = World::format(256 * MIB, MIB as u32);
    let v = world.create("v", 1 << 40);
    let places: Vec<u64> = (0..200).map(|leaf| leaf * 512 * 7 + leaf % 512).collect();
    for &lba in &places {
        world.write(v, lba * BLOCK, &block(lba)).unwrap();
    }
    let mut world = World::open_with(world.stop(), &options).unwrap();
    let unused = world.resize(v, (places[100] + 1) * BLOCK, Shrink::Unused);
    assert_eq!(unused, Err(SubmitError::VolumeHasData { bytes: 99 * BLOCK }));
    world.resize(v, (places[100] + 1) * BLOCK, Shrink::Discard).unwrap();
    world.resize(v, 1 << 40, Shrink::Never).unwrap();
    assert_eq!(world.engine.volume_usage(v).unwrap().mapped, 101 * BLOCK);
    let mut world = World::open_with(world.disk, &options).unwrap();
    for (i, &lba) in places.iter().enumerate() {
        let expected = if i <= 100 { block(lba) } else { vec![0; BLOCK_SIZE] };
        assert!(world.read(v, lba, 1).unwrap() == expected, "block {lba}");
    }
    world.engine.check().unwrap();
}

#[test]
fn requests_under_way_and_a_deletion_keep_out_of_each_others_way() {
    let mut world = World::format(128 * MIB, MIB as u32);
    let v = world.create("v", 16 * MIB);
    fill(&mut world, v, 0..100);
    // A write and a part of a block, both beyond the end that is to be.
    let (write, part, shrink) = (world.tag(), world.tag(), world.tag());
    let (engine, arena) = (&mut world.engine, &mut world.arena);
    engine.write(arena, write, v, 60 * BLOCK, &block(7), Durability::Completed).unwrap();
    engine.write(arena, part, v, 70 * BLOCK + 5, &[7; 9], Durability::Completed).unwrap();
    let unused = engine.resize_volume(arena, shrink, v, 50 * BLOCK, Shrink::Unused);
    assert_eq!(unused, Err(SubmitError::Busy));
    engine.resize_volume(arena, shrink, v, 50 * BLOCK, Shrink::Discard).unwrap();
    let late = engine.write(arena, part, v, 60 * BLOCK, &block(7), Durability::Completed);
    assert_eq!(late, Err(SubmitError::OutOfRange));
    let again = engine.resize_volume(arena, part, v, 16 * MIB, Shrink::Never);
    assert_eq!(again, Err(SubmitError::Busy));
    assert_eq!(engine.delete_volume(arena, part, v), Err(SubmitError::Busy));
    assert_eq!(world.wait(shrink).result, Ok(()));
    world.resize(v, 16 * MIB, Shrink::Never).unwrap();
    verify(&mut world, v, 0..100, 50);
    world.delete(v);
    let mut world = world.kill();
    assert_eq!(world.engine.volumes().count(), 0);
    let again = world.create("v", 16 * MIB);
    verify(&mut world, again, 0..100, 0);
}

#[test]
fn a_shrink_ends_with_a_clean_stop_and_fails_with_its_device() {
    let mut world = World::format(128 * MIB, MIB as u32);
    let v = world.create("v", 64 * MIB);
    fill(&mut world, v, 0..4000);
    let tag = world.tag();
    world.engine.resize_volume(&mut world.arena, tag, v, BLOCK, Shrink::Discard).unwrap();
    let mut world = World::open(world.stop());
    assert_eq!(world.engine.volume(v).unwrap().size, BLOCK);
    verify(&mut world, v, 0..1, 1);

    let w = world.create("w", 64 * MIB);
    fill(&mut world, w, 0..1000);
    world.disk.fail_from = Some(world.disk.writes);
    let tag = world.tag();
    world.engine.resize_volume(&mut world.arena, tag, w, BLOCK, Shrink::Discard).unwrap();
    assert_eq!(world.wait(tag).result, Err(IoFault::Device));
    world.disk.fail_from = None;
    let mut world = world.kill();
    // What was discarded before the device failed stays so.
    assert_eq!(world.engine.volume(w).unwrap().size, 64 * MIB);
    verify(&mut world, w, 0..1, 1);
}
