//! Checkpoints: what they write is what opening makes the map of.

mod support;

use flagstone_block::{BLOCK_SIZE, VolumeId, ZeroMode};
use flagstone_engine::OpenOptions;
use flagstone_engine::plant::Planted;
use support::{Numbers, OPEN, World, block};

const B: u64 = BLOCK_SIZE as u64;
const BLOCKS: u64 = 6000;

/// A pool that has gone through several checkpoints, with the stamp of each block, 0 for none.
fn worn() -> (World, Vec<u64>) {
    let mut world = World::format(64 << 20, 1 << 20);
    let volume = world.create("data", BLOCKS * B);
    let mut stamps = vec![0; BLOCKS as usize];
    let mut x = 1u64;
    for stamp in 1..=40_000u64 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let lba = (x >> 33) % BLOCKS;
        if stamp % 97 == 0 {
            let blocks = 300.min(BLOCKS - lba);
            let mode = if stamp % 2 == 0 { ZeroMode::Discard } else { ZeroMode::KeepAllocated };
            world.zero(volume, lba * B, blocks * B, mode).unwrap();
            stamps[lba as usize..(lba + blocks) as usize].fill(0);
        } else {
            world.write(volume, lba * B, &block(stamp)).unwrap();
            stamps[lba as usize] = stamp;
        }
    }
    assert!(world.engine.counters().compactions > 3, "{:?}", world.engine.counters());
    (world, stamps)
}

fn verify(world: &mut World, stamps: &[u64]) {
    let volume = flagstone_block::VolumeId(world.engine.volume_by_name("data").unwrap().id);
    for (lba, &stamp) in stamps.iter().enumerate() {
        let wanted = if stamp == 0 { vec![0; BLOCK_SIZE] } else { block(stamp).to_vec() };
        assert_eq!(world.read(volume, lba as u64, 1).unwrap(), wanted, "block {lba}");
    }
    world.engine.check().unwrap();
}

#[test]
fn opening_reads_only_what_was_logged_since() {
    let (world, stamps) = worn();
    let mut world = world.kill();
    assert!(!world.report.rebuilt);
    assert!(world.report.leaf_pages > 0, "{:?}", world.report);
    // Sixteen mebibytes of log at most lie between two checkpoints of such a pool.
    assert!(world.report.summaries <= 18, "{:?}", world.report);
    verify(&mut world, &stamps);
    let mut world = World::open(world.stop());
    assert!(world.report.clean && world.report.summaries <= 18, "{:?}", world.report);
    verify(&mut world, &stamps);
}

#[test]
fn pages_and_summaries_say_the_same() {
    let (mut world, _) = worn();
    let found = flagstone_engine::compare_maps(&mut world.disk, Planted::NONE).unwrap();
    assert_eq!(found, None);
    let mut disk = World::open(world.disk).stop();
    assert_eq!(flagstone_engine::compare_maps(&mut disk, Planted::NONE).unwrap(), None);
}

/// Opening reads no pages. That one is damaged shows when everything is counted; what lies there
/// can't be read then, nothing is freed any more, and the next opening makes the map anew.
#[test]
fn a_damaged_page_costs_another_opening() {
    let (world, stamps) = worn();
    let mut disk = world.stop();
    let page = |bytes: &[u8; BLOCK_SIZE]| bytes[..4] == *b"LSBL";
    let pages: Vec<u64> =
        disk.blocks.iter().filter(|(_, bytes)| page(bytes)).map(|(at, _)| *at).collect();
    pages.into_iter().for_each(|at| disk.flip(at, 1000, 1));
    let mut world = World::open(disk);
    assert!(!world.report.rebuilt, "{:?}", world.report);
    (0..20).for_each(|_| world.turn());
    assert!(world.engine.wants_rebuild());
    let volume = VolumeId(world.engine.volume_by_name("data").unwrap().id);
    let first = stamps.iter().position(|&stamp| stamp > 0).unwrap() as u64;
    world.read(volume, first, 1).unwrap_err();
    // A leaf of which nothing was known does not need its page.
    let new = world.create("new", 20 * B);
    (0..20).for_each(|lba| world.write(new, lba * B, &block(lba)).unwrap());
    world.engine.check().unwrap();
    let checkpoints = world.engine.counters().compactions;
    // Whether it was stopped or killed.
    let mut killed = World::open(world.disk.clone());
    assert!(killed.report.rebuilt, "{:?}", killed.report);
    verify(&mut killed, &stamps);
    let mut world = World::open(world.stop());
    assert!(world.report.rebuilt && checkpoints == 0, "{:?}", world.report);
    verify(&mut world, &stamps);
    let world = World::open(world.stop());
    assert!(!world.report.rebuilt, "{:?}", world.report);
}

/// What is live in each segment is known when all pages were read; until then nothing is freed, and
/// what the pool has to give is known all the same.
#[test]
fn everything_is_counted_after_an_opening() {
    let (world, stamps) = worn();
    let before = world.engine.usage();
    for options in [OPEN, OpenOptions { map_memory: Some(0), ..OPEN }] {
        let mut world = World::open_with(world.disk.clone(), &options).unwrap();
        assert!(world.engine.is_counting());
        let opened = world.engine.usage();
        assert_eq!((opened.live, opened.available), (before.live, before.available));
        for _ in 0..100 {
            world.turn();
            world.engine.check().unwrap();
        }
        assert!(!world.engine.is_counting());
        assert_eq!(world.engine.usage().live, before.live);
        verify(&mut world, &stamps);
    }
}

/// The map can be made without any checkpoint, and a new checkpoint is written then.
#[test]
fn a_rebuild_does_without_the_checkpoint() {
    let (world, stamps) = worn();
    let options = OpenOptions { rebuild: true, ..OPEN };
    let mut world = World::open_with(world.stop(), &options).unwrap();
    assert!(world.report.rebuilt, "{:?}", world.report);
    verify(&mut world, &stamps);
    let mut world = World::open(world.stop());
    assert!(!world.report.rebuilt && world.report.summaries == 0, "{:?}", world.report);
    verify(&mut world, &stamps);
    // After a crash as well.
    let mut world = World::open_with(world.disk, &options).unwrap();
    assert!(world.report.rebuilt, "{:?}", world.report);
    verify(&mut world, &stamps);
}

/// A map that never fits its memory is as good as one that does.
#[test]
fn leaves_are_dropped_and_read_back() {
    let (world, mut stamps) = worn();
    let options = OpenOptions { map_memory: Some(0), ..OPEN };
    let mut world = World::open_with(world.stop(), &options).unwrap();
    assert!(!world.report.rebuilt);
    verify(&mut world, &stamps);
    let volume = flagstone_block::VolumeId(world.engine.volume_by_name("data").unwrap().id);
    for stamp in 100_000..110_000u64 {
        let lba = stamp * 7919 % BLOCKS;
        world.write(volume, lba * B, &block(stamp)).unwrap();
        stamps[lba as usize] = stamp;
    }
    world.zero(volume, 100 * B, 1000 * B, ZeroMode::Discard).unwrap();
    stamps[100..1100].fill(0);
    verify(&mut world, &stamps);
    let counters = world.engine.counters();
    assert!(counters.leaves_read > 5_000 && counters.leaves_dropped > 5_000, "{counters:?}");
    assert!(world.engine.usage().map_bytes < 8 * 5_000, "{:?}", world.engine.usage());
    let disk = world.disk.clone();
    let found = flagstone_engine::compare_maps(&mut disk.clone(), Planted::NONE).unwrap();
    assert_eq!(found, None);
    let mut world = World::open_with(disk, &options).unwrap();
    verify(&mut world, &stamps);
    world.delete(volume);
    let world = World::open(world.stop());
    assert_eq!(world.engine.usage().live, 0);
    world.engine.check().unwrap();
}

/// A leaf that a checkpoint has read, to write it again elsewhere, is written by a client before
/// the checkpoint finds room for it: what was read is of no use any more, not even later. Pages
/// are held back, so that there is no room, and a little more than fits is read and written.
#[test]
fn a_leaf_changes_while_it_waits_to_be_moved() {
    const LEAVES: u64 = 48;
    let options = OpenOptions { map_memory: Some(300 << 10), ..OPEN };
    let disk = World::format(64 << 20, 1 << 20).stop();
    let mut world = World::open_with(disk, &options).unwrap();
    let volume = world.create("data", LEAVES * 512 * B);
    let mut stamps = vec![0; LEAVES as usize];
    let mut numbers = Numbers(3);
    let (mut stamp, mut waited) = (LEAVES, 0);
    for leaf in 0..LEAVES {
        world.write(volume, leaf * 512 * B, &block(leaf + 1)).unwrap();
        stamps[leaf as usize] = leaf + 1;
    }
    for round in 0..100 {
        world.hold = (round % 2 == 1).then_some(*b"LSBL");
        let before = world.engine.counters().compactions;
        // Until a checkpoint has ended or, if its pages are held back, has used all buffers.
        while world.engine.counters().compactions == before && world.held.len() < 2 {
            stamp += 1;
            let leaf = numbers.below(LEAVES);
            world.write(volume, leaf * 512 * B, &block(stamp)).unwrap();
            stamps[leaf as usize] = stamp;
        }
        waited += u32::from(world.held.len() == 2);
        for _ in 0..numbers.below(12) {
            stamp += 1;
            let leaf = numbers.below(LEAVES);
            world.write(volume, leaf * 512 * B, &block(stamp)).unwrap();
            stamps[leaf as usize] = stamp;
        }
        world.release();
        for _ in 0..200 {
            let leaf = numbers.below(LEAVES);
            let found = world.read(volume, leaf * 512, 1).unwrap();
            assert_eq!(found, block(stamps[leaf as usize]), "leaf {leaf}, round {round}");
        }
        world.engine.check().unwrap();
    }
    assert!(waited > 10, "{waited}");
}
