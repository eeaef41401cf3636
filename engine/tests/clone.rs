//! Clones: what is theirs, and what they have of a snapshot.

mod support;

use flagstone_block::{BLOCK_SIZE, Buffers, DeviceCommand, Lba, VolumeId};
use flagstone_engine::{CloneSpec, OpenOptions, SnapshotSpec, SubmitError, VolumeSettings};
use support::{OPEN, World, block};

const B: u64 = BLOCK_SIZE as u64;
/// Blocks in a leaf of the map.
const LEAF: u64 = 512;
/// Leaves: more than stay in memory.
const LEAVES: u64 = 400;

/// A snapshot with a block in each leaf, and a clone of it with a leaf of its own, the first.
fn cloned() -> (World, VolumeId, VolumeId) {
    let mut world = World::format(64 << 20, 1 << 20);
    let volume = world.create("v", LEAVES * LEAF * B);
    for leaf in 0..LEAVES {
        world.write(volume, leaf * LEAF * B, &block(1 + leaf)).unwrap();
    }
    let spec = SnapshotSpec { volume, uuid: [9; 16], name: "v@s" };
    let snapshot = world.snapshot(&[spec]).unwrap();
    let settings = VolumeSettings::default();
    let spec = CloneSpec { snapshot, uuid: [8; 16], name: "c", settings };
    let tag = world.tag();
    let clone = world.engine.clone_volume(&mut world.arena, tag, &spec).unwrap();
    world.wait(tag).result.unwrap();
    world.write(clone, 0, &block(1000)).unwrap();
    (world, snapshot, clone)
}

/// The leaf that a clone has of its snapshot is asked for in the clone's name, which is deleted before the
/// page is there. The snapshot's blocks were taken for the clone's, and died with it.
#[test]
fn a_leaf_that_is_read_for_a_deleted_clone_is_still_the_snapshots() {
    let (world, snapshot, clone) = cloned();
    let options = OpenOptions { map_memory: Some(0), ..OPEN };
    let mut world = World::open_with(world.stop(), &options).unwrap();
    (0..1000).for_each(|_| world.turn());
    assert!(!world.engine.is_counting());
    // Neither the clone's own leaf nor the next one stays in memory.
    (2..LEAVES).for_each(|leaf| drop(world.read(snapshot, leaf * LEAF, 1).unwrap()));
    let buffer = world.arena.alloc(1).unwrap();
    let (read, delete) = (world.tag(), world.tag());
    let asked = world.engine.read(&mut world.arena, read, clone, Lba(LEAF), buffer);
    assert_eq!(asked, Err(SubmitError::Busy), "its leaf is being read");
    world.engine.delete_volume(&mut world.arena, delete, clone).unwrap();
    let (mut held, mut deleted) = (Vec::new(), false);
    for _ in 0..100 {
        world.engine.pump(&mut world.arena, 0);
        while let Some(io) = world.engine.next_io() {
            match io.command {
                DeviceCommand::Read { .. } => held.push(io),
                _ => world.perform(io),
            }
        }
        while let Some(completion) = world.engine.next_completion() {
            deleted |= completion.tag == delete;
        }
    }
    assert!(deleted && held.len() == 2, "both leaves must be read: {held:?}");
    held.into_iter().for_each(|io| world.perform(io));
    (0..100).for_each(|_| world.turn());
    world.arena.free(buffer);
    world.engine.check().unwrap();
    assert_eq!(world.engine.usage().live, LEAVES * B);
    for leaf in 0..LEAVES {
        let found = world.read(snapshot, leaf * LEAF, 1).unwrap();
        assert!(found == block(1 + leaf), "leaf {leaf}");
    }
}

/// Each turn looks at some thousands of maps. The clones have the image, wherever it lies.
#[test]
fn the_image_of_ten_thousand_clones_is_moved() {
    let mut world = World::format(64 << 20, 1 << 20);
    let volume = world.create("v", 600 * B);
    let filler = world.create("filler", 8000 * B);
    // Every segment has some of the image, and much that will be garbage.
    for lba in 0..600 {
        world.write(volume, lba * B, &block(1 + lba)).unwrap();
        (0..10).for_each(|i| world.write(filler, (lba * 10 + i) * B, &block(lba)).unwrap());
    }
    let snapshot = world.snapshot(&[SnapshotSpec { volume, uuid: [9; 16], name: "v@s" }]).unwrap();
    let mut clones = Vec::new();
    for i in 0..10_000_u32 {
        let settings = VolumeSettings::default();
        let name = format!("c{i}");
        let spec = CloneSpec { snapshot, uuid: [8; 16], name: &name, settings };
        let tag = world.tag();
        clones.push(world.engine.clone_volume(&mut world.arena, tag, &spec).unwrap());
        world.wait(tag).result.unwrap();
    }
    // One that has the first leaf for itself, and most of it from the image.
    world.write(clones[77], 0, &block(5000)).unwrap();
    let mut moves = 0;
    for round in 0..40_000 {
        world.write(filler, round * 7919 % 8000 * B, &block(round)).unwrap();
        moves = world.engine.counters().blocks_moved;
    }
    assert!(moves > 600, "{moves}");
    world.engine.check().unwrap();
    for &clone in [snapshot, clones[0], clones[5000], clones[9999], clones[77]].iter() {
        for lba in 0..600 {
            let stamp = if clone == clones[77] && lba == 0 { 5000 } else { 1 + lba };
            assert!(world.read(clone, lba, 1).unwrap() == block(stamp), "block {lba} of {clone:?}");
        }
    }
}
