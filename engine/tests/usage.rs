//! What volumes and snapshots have alone, and what deleting them gives back.

mod support;

use flagstone_block::{BLOCK_SIZE, VolumeId, ZeroMode};
use flagstone_engine::{OpenOptions, SharedUsage, SnapshotSpec};
use support::{Numbers, OPEN, World, block};

const B: u64 = BLOCK_SIZE as u64;
const BLOCKS: u64 = 3000;

fn count(world: &World, id: VolumeId) -> SharedUsage {
    let mut usage = SharedUsage::default();
    for _ in 0..100_000 {
        match world.engine.count_shared(id, usage).unwrap() {
            Ok(usage) => return usage,
            Err(so_far) => usage = so_far,
        }
    }
    panic!("the count does not end");
}

/// What the pool holds when everything that was deleted is through.
fn settle(world: &mut World) -> u64 {
    let taken = |world: &World| world.engine.usage().live + world.engine.usage().kept;
    let mut before = 0;
    for _ in 0..100 {
        (0..100).for_each(|_| world.turn());
        let now = taken(world);
        if now == before && !world.engine.is_counting() {
            return now;
        }
        before = now;
    }
    panic!("it never comes to rest");
}

/// Each, with what its blocks were stamped with; 0 for zeroes.
fn verify(world: &mut World, all: &[(VolumeId, Vec<u64>)], options: &OpenOptions) {
    for (at, (id, stamps)) in all.iter().enumerate() {
        let is_alone = |lba: usize, stamp: u64| {
            let mut others = all.iter().enumerate().filter(|(other, _)| *other != at);
            others.all(|(_, (_, other))| other[lba] != stamp)
        };
        let mapped = stamps.iter().filter(|stamp| **stamp > 0).count() as u64;
        let alone = stamps.iter().enumerate().filter(|(lba, s)| **s > 0 && is_alone(*lba, **s));
        let alone = alone.count() as u64;
        let usage = count(world, *id);
        let told = (usage.exclusive / B, (usage.exclusive + usage.shared) / B);
        assert_eq!(told, (alone, mapped), "{id:?}");
        assert_eq!(world.engine.volume_usage(*id).unwrap().mapped, mapped * B);
        if world.engine.volume(*id).unwrap().snapshot.is_none() {
            // It can't be deleted before its snapshots.
            let kept = world.engine.volume_usage(*id).unwrap().kept;
            assert_eq!(usage.frees, usage.exclusive + kept);
            continue;
        }
        let mut fork = World::open_with(world.disk.clone(), options).unwrap();
        let before = settle(&mut fork);
        assert_eq!(count(&fork, *id), usage);
        fork.delete(*id);
        assert_eq!(before - settle(&mut fork), usage.frees, "{id:?}");
        fork.engine.check().unwrap();
    }
}

#[test]
fn what_is_counted_is_what_a_deletion_gives_back() {
    for map_memory in [None, Some(0)] {
        let options = OpenOptions { map_memory, ..OPEN };
        let mut world = World::format(96 << 20, 1 << 20);
        world = World::open_with(world.stop(), &options).unwrap();
        let volume = world.create("v", BLOCKS * B);
        let mut stamps = vec![0u64; BLOCKS as usize];
        let mut snapshots: Vec<(VolumeId, Vec<u64>)> = Vec::new();
        let mut numbers = Numbers(7);
        for stamp in 1..=9000u64 {
            let lba = numbers.below(BLOCKS);
            if stamp % 201 == 0 {
                let mode =
                    if numbers.below(2) == 0 { ZeroMode::Discard } else { ZeroMode::KeepAllocated };
                let blocks = (1 + numbers.below(600)).min(BLOCKS - lba);
                world.zero(volume, lba * B, blocks * B, mode).unwrap();
                stamps[lba as usize..(lba + blocks) as usize].fill(0);
            } else {
                let lba = if numbers.below(8) > 0 { lba % 400 } else { lba };
                world.write(volume, lba * B, &block(stamp)).unwrap();
                stamps[lba as usize] = stamp;
            }
            if stamp % 1000 == 0 {
                let spec = SnapshotSpec { volume, uuid: [9; 16], name: &format!("v@{stamp}") };
                let id = world.snapshot(&[spec]).unwrap();
                snapshots.push((id, stamps.clone()));
            }
            if stamp % 2300 == 0 && snapshots.len() > 1 {
                let at = numbers.below(snapshots.len() as u64) as usize;
                world.delete(snapshots.remove(at).0);
                // While it is being taken apart, it is the others' already.
                let mut all = snapshots.clone();
                all.push((volume, stamps.clone()));
                verify(&mut world, &all, &options);
            }
            if stamp % 3000 == 0 {
                let mut all = snapshots.clone();
                all.push((volume, stamps.clone()));
                verify(&mut world, &all, &options);
                world = World::open_with(world.disk, &options).unwrap();
            }
        }
    }
}

/// A call looks at so much at most, and a huge volume costs little.
#[test]
fn a_count_goes_on_where_it_stopped() {
    let mut world = World::format(256 << 20, 1 << 20);
    let volume = world.create("v", 1 << 40);
    for stamp in 1..=3000 {
        // A leaf each.
        world.write(volume, stamp * (4 << 20), &block(stamp)).unwrap();
    }
    let id = world.snapshot(&[SnapshotSpec { volume, uuid: [9; 16], name: "v@s" }]).unwrap();
    for stamp in 1..=100 {
        world.write(volume, stamp * (4 << 20), &block(stamp)).unwrap();
    }
    let first = world.engine.count_shared(id, SharedUsage::default()).unwrap().unwrap_err();
    assert!(first.exclusive == 100 * B && first.shared < 2900 * B, "{first:?}");
    let usage = count(&world, id);
    assert_eq!((usage.exclusive, usage.shared, usage.frees), (100 * B, 2900 * B, 100 * B));
    assert_eq!(count(&world, volume).shared, 2900 * B);
    assert!(world.engine.count_shared(VolumeId(99), usage).is_none());
}
