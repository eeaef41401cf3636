//! Snapshots: a volume as it was at one point of the pool's order.

mod support;

use flagstone_block::{BLOCK_SIZE, Durability, Tag, VolumeId, ZeroMode};
use flagstone_engine::{OpenOptions, Shrink, SnapshotSpec, SubmitError, VolumeSettings};
use support::{Numbers, OPEN, World, block};

const B: u64 = BLOCK_SIZE as u64;

fn snapshot(world: &mut World, volumes: &[(VolumeId, &str)]) -> Result<VolumeId, SubmitError> {
    let specs: Vec<_> = volumes
        .iter()
        .map(|&(volume, name)| SnapshotSpec { volume, uuid: [9; 16], name })
        .collect();
    world.snapshot(&specs)
}

fn content(stamp: u64) -> Vec<u8> {
    if stamp == 0 { vec![0; BLOCK_SIZE] } else { block(stamp).to_vec() }
}

/// A volume, or a snapshot, and what it must hold.
type Expected = (VolumeId, Vec<u64>);

fn verify(world: &mut World, expected: &[Expected]) {
    for (volume, stamps) in expected {
        for (lba, &stamp) in stamps.iter().enumerate() {
            let found = world.read(*volume, lba as u64, 1).unwrap();
            assert!(found == content(stamp), "block {lba} of {volume:?}, stamp {stamp}");
        }
    }
    world.engine.check().unwrap();
}

#[test]
fn a_snapshot_stays_as_it_was() {
    let mut world = World::format(64 << 20, 1 << 20);
    let volume = world.create("v", 2000 * B);
    let mut stamps = vec![0; 2000];
    for lba in 0..1000 {
        world.write(volume, lba * B, &block(1 + lba)).unwrap();
        stamps[lba as usize] = 1 + lba;
    }
    let first = snapshot(&mut world, &[(volume, "v@first")]).unwrap();
    let mut expected = vec![(first, stamps.clone())];
    for lba in 500..1500 {
        world.write(volume, lba * B, &block(10_000 + lba)).unwrap();
        stamps[lba as usize] = 10_000 + lba;
    }
    world.zero(volume, 100 * B, 50 * B, ZeroMode::Discard).unwrap();
    stamps[100..150].fill(0);
    expected.push((volume, stamps));
    verify(&mut world, &expected);

    let refused = world.write(first, 0, &block(1)).unwrap_err();
    assert_eq!(refused, SubmitError::IsSnapshot);
    assert_eq!(snapshot(&mut world, &[(first, "again")]), Err(SubmitError::IsSnapshot));
    assert_eq!(snapshot(&mut world, &[(volume, "v@first")]), Err(SubmitError::VolumeExists));
    assert_eq!(world.resize(first, 4000 * B, Shrink::Never), Err(SubmitError::IsSnapshot));

    let mut world = world.kill();
    verify(&mut world, &expected);
    let mut world = World::open(world.stop());
    verify(&mut world, &expected);
}

/// Overwrites, discards, checkpoints, cleaning, crashes, with all of the map in memory or nearly
/// nothing.
#[test]
fn snapshots_outlive_cleaning_checkpoints_and_crashes() {
    for map_memory in [None, Some(0)] {
        let options = OpenOptions { map_memory, ..OPEN };
        let mut world = World::format(64 << 20, 1 << 20);
        world = World::open_with(world.stop(), &options).unwrap();
        const BLOCKS: u64 = 3000;
        let volume = world.create("v", BLOCKS * B);
        let mut stamps = vec![0u64; BLOCKS as usize];
        let mut expected: Vec<Expected> = Vec::new();
        let mut numbers = Numbers(3);
        for stamp in 1..=40_000u64 {
            let lba = numbers.below(BLOCKS);
            if stamp % 301 == 0 {
                let blocks = 40.min(BLOCKS - lba);
                world.zero(volume, lba * B, blocks * B, ZeroMode::Discard).unwrap();
                stamps[lba as usize..(lba + blocks) as usize].fill(0);
            } else {
                // Mostly a small part, so that snapshots share most of what they have.
                let lba = if numbers.below(8) > 0 { lba % 400 } else { lba };
                world.write(volume, lba * B, &block(stamp)).unwrap();
                stamps[lba as usize] = stamp;
            }
            if stamp % 6000 == 0 {
                let name = format!("v@{stamp}");
                let id = snapshot(&mut world, &[(volume, &name)]).unwrap();
                expected.push((id, stamps.clone()));
            }
            if stamp % 9000 == 0 && expected.len() > 1 {
                let gone = expected.remove(numbers.below(expected.len() as u64) as usize);
                world.delete(gone.0);
                assert!(world.engine.volume(gone.0).is_none());
            }
            if stamp % 7000 == 0 {
                let mut all = expected.clone();
                all.push((volume, stamps.clone()));
                world = World::open_with(world.disk, &options).unwrap();
                verify(&mut world, &all);
            }
        }
        let counters = world.engine.counters();
        assert!(counters.segments_cleaned > 0, "{counters:?}");
        expected.push((volume, stamps));
        verify(&mut world, &expected);
        let mut world = World::open_with(world.stop(), &options).unwrap();
        verify(&mut world, &expected);
        let (volume, _) = expected.pop().unwrap();
        for (snapshot, _) in expected {
            world.delete(snapshot);
        }
        world.delete(volume);
        (0..1000).for_each(|_| world.turn());
        assert_eq!(world.engine.usage().live, 0);
        world.engine.check().unwrap();
    }
}

/// Space comes back to the block, whatever the order.
#[test]
fn deleting_gives_back_what_only_the_snapshot_has() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
        for crash in [false, true] {
            let mut world = World::format(64 << 20, 1 << 20);
            let volume = world.create("v", 2000 * B);
            let fill = |world: &mut World, range: std::ops::Range<u64>, stamp: u64| {
                range.for_each(|lba| world.write(volume, lba * B, &block(stamp + lba)).unwrap());
            };
            fill(&mut world, 0..1000, 1);
            let mut snapshots = vec![snapshot(&mut world, &[(volume, "a")]).unwrap()];
            fill(&mut world, 200..600, 10_000);
            snapshots.push(snapshot(&mut world, &[(volume, "b")]).unwrap());
            fill(&mut world, 500..900, 20_000);
            world.zero(volume, 950 * B, 20 * B, ZeroMode::Discard).unwrap();
            snapshots.push(snapshot(&mut world, &[(volume, "c")]).unwrap());
            fill(&mut world, 0..100, 30_000);
            let live = |world: &World| world.engine.usage().live / B;
            assert_eq!(live(&world), 1000 + 400 + 400 + 100);
            // Which versions each of the three, and the volume, has of a block.
            let version = |node: u64, lba: u64| match (node, lba) {
                (3, 0..100) => 30_000,
                (2.., 500..900) => 20_000,
                (2.., 950..970) => 0,
                (1.., 200..600) => 10_000,
                _ => 1,
            };
            let mut left: Vec<u64> = vec![0, 1, 2, 3];
            for gone in order {
                world.delete(snapshots[gone as usize]);
                left.retain(|node| *node != gone);
                if crash {
                    world = world.kill();
                }
                (0..200).for_each(|_| world.turn());
                let due: usize = (0..1000)
                    .map(|lba| {
                        let versions = left.iter().map(|&node| version(node, lba));
                        versions.filter(|&v| v > 0).collect::<std::collections::HashSet<_>>().len()
                    })
                    .sum();
                assert_eq!(live(&world), due as u64, "after {gone} of {order:?}");
                world.engine.check().unwrap();
                for &node in &left {
                    let id = snapshots.get(node as usize).copied().unwrap_or(volume);
                    for lba in (0..1000).step_by(7) {
                        let stamp = match version(node, lba) {
                            0 => 0,
                            version => version + lba,
                        };
                        assert!(world.read(id, lba, 1).unwrap() == content(stamp), "{node} {lba}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_group_is_one_instant() {
    let mut world = World::format(64 << 20, 1 << 20);
    let volumes: Vec<VolumeId> =
        (0..32).map(|i| world.create(&format!("volume-{i}"), 100 * B)).collect();
    for (i, volume) in volumes.iter().enumerate() {
        world.write(*volume, 0, &block(1 + i as u64)).unwrap();
    }
    let names: Vec<String> = (0..32).map(|i| format!("volume-{i}@group")).collect();
    let group: Vec<_> = volumes.iter().copied().zip(names.iter().map(String::as_str)).collect();
    let first = snapshot(&mut world, &group).unwrap();
    for volume in &volumes {
        world.write(*volume, 0, &block(1000)).unwrap();
    }
    let mut world = world.kill();
    for i in 0..32 {
        let snapshot = VolumeId(first.0 + i);
        assert_eq!(world.read(snapshot, 0, 1).unwrap(), block(1 + u64::from(i)));
    }
    world.engine.check().unwrap();
}

/// Blocks of an older snapshot are moved while a younger one, which the volume inherits them through, is taken
/// apart: in one life, and in the next after a checkpoint of half of it.
#[test]
fn what_is_moved_is_found_behind_a_snapshot_that_is_half_taken_apart() {
    const LEAVES: u64 = 300;
    // Few leaves stay in memory, so that taking apart waits for pages.
    let options = OpenOptions { map_memory: Some(1 << 20), ..OPEN };
    let leaf = |leaf: u64| leaf * (2 << 20);
    for crash in [false, true] {
        let mut world = World::format(64 << 20, 1 << 20);
        world = World::open_with(world.stop(), &options).unwrap();
        let volume = world.create("v", leaf(LEAVES));
        let other = world.create("other", LEAVES * 20 * B);
        // Between each two blocks of the volume those of the other, whose death has the cleaner come.
        for i in 0..LEAVES {
            world.write(volume, leaf(i), &block(1 + i)).unwrap();
            (0..20).for_each(|j| world.write(other, (i * 20 + j) * B, &block(1)).unwrap());
        }
        let first = snapshot(&mut world, &[(volume, "v@first")]).unwrap();
        for i in 0..LEAVES {
            world.write(volume, leaf(i) + B, &block(10_000 + i)).unwrap();
            world.write(volume, leaf(i) + 2 * B, &block(15_000 + i)).unwrap();
        }
        let second = snapshot(&mut world, &[(volume, "v@second")]).unwrap();
        for i in 0..LEAVES {
            // Half of it dies with the snapshot, half passes.
            world.write(volume, leaf(i) + B, &block(20_000 + i)).unwrap();
        }
        let mut numbers = Numbers(5);
        let overwrite = |world: &mut World, times: u64, numbers: &mut Numbers| {
            for stamp in 0..times {
                let lba = numbers.below(LEAVES * 20);
                world.write(other, lba * B, &block(100 + stamp)).unwrap();
            }
        };
        overwrite(&mut world, 4000, &mut numbers);
        world.delete(second);
        if crash {
            world = World::open_with(world.disk, &options).unwrap();
        }
        let cleaned = world.engine.counters().segments_cleaned;
        for _ in 0..200 {
            overwrite(&mut world, 10, &mut numbers);
            world.engine.check().unwrap();
        }
        assert!(world.engine.counters().segments_cleaned > cleaned);
        for i in 0..LEAVES {
            for id in [first, volume] {
                assert!(world.read(id, i * 512, 1).unwrap() == block(1 + i), "{i} of {id:?}");
            }
            assert!(world.read(volume, i * 512 + 1, 1).unwrap() == block(20_000 + i));
            assert!(world.read(volume, i * 512 + 2, 1).unwrap() == block(15_000 + i));
        }
    }
}

/// A snapshot that is under way has what its volume maps as if it were taken already: for reservations, and for
/// what is written after it.
#[test]
fn what_a_snapshot_under_way_will_have_is_counted() {
    let mut world = World::format(64 << 20, 1 << 20);
    let capacity = world.engine.usage().capacity / B;
    let (blocks, spare) = (capacity * 7 / 10, capacity * 3 / 10);
    let volume = world.create("v", blocks * B);
    let other = world.create("other", spare * B);
    (0..blocks).for_each(|lba| world.write(volume, lba * B, &block(1 + lba)).unwrap());
    let reserved = VolumeSettings { reserved: spare / 2 * B, ..VolumeSettings::default() };
    // Its own blocks back it until the snapshot has them.
    world.set(volume, reserved).unwrap();
    let tag = world.tag();
    let specs = [SnapshotSpec { volume, uuid: [9; 16], name: "v@s" }];
    let (engine, arena) = (&mut world.engine, &mut world.arena);
    engine.snapshot_volumes(arena, tag, &specs).unwrap();
    for (id, times) in [(volume, 4), (other, 2)] {
        let settings = VolumeSettings { reserved: spare * times / 4 * B, ..reserved };
        let refused = engine.set_volume(arena, Tag(1 << 40), id, settings);
        assert!(matches!(refused, Err(SubmitError::ReservationUnbacked { .. })), "{refused:?}");
    }
    engine.check().unwrap();
    world.wait(tag).result.unwrap();
    // What the reservation covers can be overwritten.
    for lba in 0..spare / 2 {
        world.write(volume, lba * B, &block(10_000 + lba)).unwrap();
    }
    world.set(volume, VolumeSettings::default()).unwrap();
    while world.engine.usage().available > 8 * B {
        let lba = world.engine.usage().available / B % blocks;
        if world.write(volume, (blocks - 1 - lba) * B, &block(3)).is_err() {
            break;
        }
    }
    // Nearly full: what is written while a snapshot is under way takes space.
    let (tag, specs) = (world.tag(), [SnapshotSpec { volume, uuid: [9; 16], name: "v@t" }]);
    let (engine, arena) = (&mut world.engine, &mut world.arena);
    engine.snapshot_volumes(arena, tag, &specs).unwrap();
    let mut taken = 0;
    for lba in 0..100 {
        let data = block(lba);
        let tag = Tag(1 << 40 | lba);
        taken += u64::from(
            engine.write(arena, tag, volume, lba * B, &data, Durability::Completed).is_ok(),
        );
    }
    assert!(taken <= 8, "{taken}");
    world.wait(tag).result.unwrap();
    (0..100).for_each(|_| world.turn());
    world.engine.check().unwrap();
}
