//! The metadata chain under load: it must not grow without bound while a pool is small.

mod support;

use flagstone_block::{BLOCK_SIZE, Durability, ZeroMode};
use flagstone_engine::{OpenOptions, SnapshotSpec, SubmitError, VolumeSpec};
use support::{OPEN, World, block};

const B: u64 = BLOCK_SIZE as u64;
/// What a leaf of the map covers.
const LEAF_BYTES: u64 = 2 << 20;

/// Discards that never pause: there is no moment at which every record is in a written page, and
/// compaction must not wait for one.
#[test]
fn compaction_ends_under_a_steady_load_of_discards() {
    const DEPTH: usize = 64;
    const REQUESTS: u64 = 150_000;
    let mut world = World::format(64 << 20, 1 << 20);
    let volume = world.create("data", 1 << 20);
    let (mut sent, mut in_flight, mut meta_max) = (0, 0, 0);
    while sent < REQUESTS {
        while in_flight < DEPTH {
            let offset = sent % DEPTH as u64 * BLOCK_SIZE as u64;
            let tag = world.tag();
            let (engine, arena) = (&mut world.engine, &mut world.arena);
            // All blocks are written, then all are discarded.
            let submitted = if (sent / DEPTH as u64).is_multiple_of(2) {
                let data = block(sent);
                engine.write(arena, tag, volume, offset, &data, Durability::Completed).map(drop)
            } else {
                let (len, mode) = (BLOCK_SIZE as u64, ZeroMode::Discard);
                engine.zero(arena, tag, volume, offset, len, mode, Durability::Completed).map(drop)
            };
            match submitted {
                Ok(()) => (sent, in_flight) = (sent + 1, in_flight + 1),
                Err(SubmitError::Busy) => break,
                Err(error) => panic!("request {sent}: {error:?}"),
            }
        }
        world.turn();
        world.now_ns += 100_000;
        while let Some(completion) = world.engine.next_completion() {
            completion.result.unwrap();
            in_flight -= 1;
        }
        meta_max = meta_max.max(world.engine.usage().segments_meta);
    }
    assert!(world.engine.counters().compactions > 0);
    assert!(meta_max <= 8, "{meta_max} segments of metadata for one volume of 64 blocks");
    world.engine.check().unwrap();
    // What the compactions wrote, and what has come since, is all there.
    let before: Vec<_> = (0..DEPTH as u64).map(|lba| world.read(volume, lba, 1).unwrap()).collect();
    let mut world = world.kill();
    for (lba, bytes) in before.iter().enumerate() {
        assert_eq!(world.read(volume, lba as u64, 1).unwrap(), *bytes, "block {lba}");
    }
}

/// So many discards at once that they alone could use every page that a flush gives back, while
/// hundreds of leaves have to be stated: the statements must get their share.
#[test]
fn a_flood_of_discards_leaves_room_for_the_statements() {
    const LEAVES: u64 = 600;
    const LEAF_BYTES: u64 = 2 << 20;
    const DEPTH: usize = 2000;
    let mut world = World::format(64 << 20, 1 << 20);
    let volume = world.create("data", LEAVES * LEAF_BYTES);
    for leaf in 0..LEAVES {
        world.write(volume, leaf * LEAF_BYTES, &block(leaf)).unwrap();
    }
    let (mut sent, mut in_flight, mut meta_max) = (0u64, 0, 0);
    while world.engine.counters().compactions < 3 {
        assert!(sent < 300_000, "{:?}", world.engine.counters());
        while in_flight < DEPTH {
            let offset = sent % LEAVES * LEAF_BYTES + BLOCK_SIZE as u64;
            let tag = world.tag();
            let (engine, arena) = (&mut world.engine, &mut world.arena);
            let (len, mode) = (BLOCK_SIZE as u64, ZeroMode::Discard);
            match engine.zero(arena, tag, volume, offset, len, mode, Durability::Completed) {
                Ok(_) => (sent, in_flight) = (sent + 1, in_flight + 1),
                Err(SubmitError::Busy) => break,
                Err(error) => panic!("request {sent}: {error:?}"),
            }
        }
        world.turn();
        world.now_ns += 100_000;
        while let Some(completion) = world.engine.next_completion() {
            completion.result.unwrap();
            in_flight -= 1;
        }
        meta_max = meta_max.max(world.engine.usage().segments_meta);
    }
    // The pages of 600 leaves take three segments, and as many again during a checkpoint.
    assert!(meta_max <= 8 + 6, "{meta_max} segments of metadata");
    world.engine.check().unwrap();
}

/// Volumes with the longest names, until there is no more: refused while compaction still fits,
/// so that the pool goes on, opens again, and takes back what is deleted.
#[test]
fn volumes_that_fill_the_metadata_are_refused_in_time() {
    let mut world = World::format(64 << 20, 4 << 20);
    let data = world.create("data", 1 << 20);
    let mut ids = Vec::new();
    let (mut turns, mut refused) = (0, false);
    while !refused {
        let name = format!("{:0>128}", ids.len());
        let spec =
            VolumeSpec { uuid: [1; 16], name: &name, size: 4096, settings: Default::default() };
        let tag = world.tag();
        match world.engine.create_volume(&mut world.arena, tag, &spec) {
            Ok(id) => {
                ids.push(id);
                turns = 0;
            }
            Err(SubmitError::Busy) => {
                turns += 1;
                assert!(turns < 20_000, "busy for ever after {} volumes", ids.len());
                world.turn();
                while let Some(completion) = world.engine.next_completion() {
                    completion.result.unwrap();
                }
            }
            Err(error) => {
                assert_eq!(error, SubmitError::NoSpace);
                refused = true;
            }
        }
    }
    world.flush();
    world.engine.check().unwrap();
    let mut world = world.kill();
    assert_eq!(world.engine.volumes().count(), 1 + ids.len());
    for id in ids {
        world.delete(id);
    }
    world.write(data, 0, &block(1)).unwrap();
    world.engine.check().unwrap();
}

/// Snapshots of a volume that is written all over have a map each. When their pages fill the pool, snapshots and
/// writes are refused; nothing waits for ever, and what deletions give back is enough to go on.
#[test]
fn maps_of_snapshots_that_fill_the_pool_are_refused_in_time() {
    for (seed, options) in
        (0..2).zip([OPEN, OpenOptions { map_memory: Some(2 << 20), ..OPEN }].iter().cycle())
    {
        let mut random = 0x9e37_79b9_u64 + seed;
        let mut draw = |below: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut world = World::format(128 << 20, 1 << 20);
        world = World::open_with(world.stop(), options).unwrap();
        let leaves = 150 + 100 * seed;
        let sparse = world.create("sparse", leaves * LEAF_BYTES);
        let dense = world.create("dense", 64 << 20);
        let stamp = block(1);
        for lba in 0..8 * 1024 + 1024 * (seed % 4) {
            world.write(dense, lba * B, &stamp).unwrap();
        }
        let mut snapshots = Vec::new();
        let refused = 'fill: loop {
            let name = format!("s{}", snapshots.len());
            let specs = [SnapshotSpec { volume: sparse, uuid: [1; 16], name: &name }];
            match world.snapshot(&specs) {
                Ok(id) => snapshots.push(id),
                Err(error) => break error,
            }
            for leaf in 0..leaves {
                if let Err(error) = world.write(sparse, leaf * LEAF_BYTES, &stamp) {
                    break 'fill error;
                }
                world.write(dense, draw(8 * 1024) * B, &stamp).unwrap_or_else(|error| {
                    panic!("an overwrite was refused: {error}, {} snapshots", snapshots.len())
                });
            }
        };
        assert_eq!(refused, SubmitError::NoSpace, "seed {seed}, {} snapshots", snapshots.len());
        world.engine.check().unwrap();
        // Overwrites go on for as long as anybody likes.
        for i in 0..2_000 {
            world.write(dense, draw(8 * 1024) * B, &stamp).unwrap_or_else(|error| {
                let (usage, counters) = (world.engine.usage(), world.engine.counters());
                panic!("seed {seed}, overwrite {i}: {error}: {usage:?} {counters:?}")
            });
        }
        for id in snapshots {
            world.delete(id);
        }
        for leaf in 0..leaves {
            world.write(sparse, leaf * LEAF_BYTES + B, &stamp).unwrap();
        }
        world.flush();
        world.engine.check().unwrap();
    }
}
