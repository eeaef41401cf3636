//! Differences of snapshots and volumes, told from the maps.

mod support;

use flagstone_block::{BLOCK_SIZE, VolumeId, ZeroMode};
use flagstone_engine::{
    DiffError, DiffExtent, DiffKind, DiffSpec, OpenOptions, Shrink, SnapshotSpec,
};
use support::{Numbers, OPEN, World, block};

const B: u64 = BLOCK_SIZE as u64;

fn snapshot(world: &mut World, volume: VolumeId, name: &str) -> VolumeId {
    world.snapshot(&[SnapshotSpec { volume, uuid: [9; 16], name }]).unwrap()
}

/// All that differs, and how many calls that took that were not `Busy`; at most `extents_max` at a time.
fn diff(
    world: &mut World,
    older: Option<VolumeId>,
    newer: VolumeId,
    extents_max: usize,
) -> (Vec<DiffExtent>, usize) {
    let spec = DiffSpec { older, newer };
    let (mut at, mut calls, mut all) = (0, 0, Vec::<DiffExtent>::new());
    for _ in 0..1_000_000 {
        if at == u64::MAX {
            return (all, calls);
        }
        let mut page = Vec::new();
        match world.engine.diff(&spec, at..u64::MAX, &mut page, extents_max) {
            Ok(next) => {
                let next = next.unwrap_or(u64::MAX);
                assert!(next > at && page.len() <= extents_max);
                assert!(page.iter().all(|e| e.offset >= at && e.offset + e.len <= next));
                (at, calls) = (next, calls + 1);
            }
            Err(DiffError::Busy) => {
                assert!(page.is_empty());
                world.turn();
            }
            Err(error) => panic!("{error}"),
        }
        all.extend(page);
    }
    panic!("the walk does not end");
}

/// What the blocks are that differ: `true` for data.
fn blocks(extents: &[DiffExtent]) -> Vec<(u64, bool)> {
    let mut blocks = Vec::new();
    for extent in extents {
        assert!(extent.offset % B == 0 && extent.len % B == 0 && extent.len > 0);
        let (first, end) = (extent.offset / B, (extent.offset + extent.len) / B);
        blocks.extend((first..end).map(|lba| (lba, extent.kind == DiffKind::Data)));
    }
    assert!(blocks.is_sorted_by(|a, b| a.0 < b.0), "{extents:?}");
    blocks
}

/// The same from what the blocks were stamped with; 0 for zeroes.
fn expected(older: &[u64], newer: &[u64]) -> Vec<(u64, bool)> {
    let at = |stamps: &[u64], lba: usize| stamps.get(lba).copied().unwrap_or(0);
    let differs = |lba: &usize| at(older, *lba) != at(newer, *lba);
    let all = (0..older.len().max(newer.len())).filter(differs);
    all.map(|lba| (lba as u64, at(newer, lba) != 0)).collect()
}

/// Overwrites, discards, snapshots and their deletion, checkpoints, cleaning, crashes; with all of the map
/// in memory, or nearly nothing.
#[test]
fn a_diff_is_what_was_written_whatever_the_pool_did_meanwhile() {
    for map_memory in [None, Some(0)] {
        let options = OpenOptions { map_memory, ..OPEN };
        let mut world = World::format(64 << 20, 1 << 20);
        world = World::open_with(world.stop(), &options).unwrap();
        const BLOCKS: u64 = 3000;
        let volume = world.create("v", BLOCKS * B);
        let mut stamps = vec![0u64; BLOCKS as usize];
        let mut snapshots: Vec<(VolumeId, Vec<u64>)> = Vec::new();
        let mut numbers = Numbers(5);
        let (mut cleaned, mut dropped) = (0, 0);
        for stamp in 1..=30_000u64 {
            let lba = numbers.below(BLOCKS);
            if stamp % 301 == 0 {
                let mode = match numbers.below(3) {
                    0 => ZeroMode::Discard,
                    1 => ZeroMode::MayUnmap,
                    _ => ZeroMode::KeepAllocated,
                };
                let blocks = (1 + numbers.below(600)).min(BLOCKS - lba);
                world.zero(volume, lba * B, blocks * B, mode).unwrap();
                stamps[lba as usize..(lba + blocks) as usize].fill(0);
            } else {
                let lba = if numbers.below(8) > 0 { lba % 400 } else { lba };
                world.write(volume, lba * B, &block(stamp)).unwrap();
                stamps[lba as usize] = stamp;
            }
            if stamp % 3000 == 0 {
                let id = snapshot(&mut world, volume, &format!("v@{stamp}"));
                snapshots.push((id, stamps.clone()));
            }
            if stamp % 7000 == 0 {
                let at = numbers.below(snapshots.len() as u64) as usize;
                let gone = snapshots.remove(at);
                world.delete(gone.0);
            }
            if stamp % 5000 == 0 {
                let counters = world.engine.counters();
                cleaned += counters.segments_cleaned;
                dropped += counters.leaves_dropped;
                world = World::open_with(world.disk, &options).unwrap();
            }
            if stamp % 1250 != 0 {
                continue;
            }
            let mut sides = snapshots.clone();
            sides.push((volume, stamps.clone()));
            let nothing = [];
            for (newer, now) in &sides {
                let (found, _) = diff(&mut world, None, *newer, 1000);
                assert_eq!(blocks(&found), expected(&nothing, now), "{newer:?}, all of it");
                let (older, then) = &sides[numbers.below(sides.len() as u64) as usize];
                let extents_max = 1 + numbers.below(50) as usize;
                let (found, _) = diff(&mut world, Some(*older), *newer, extents_max);
                assert_eq!(blocks(&found), expected(then, now), "{older:?} to {newer:?}");
            }
            world.engine.check().unwrap();
        }
        assert!(cleaned > 0);
        assert_eq!(dropped > 0, map_memory.is_some(), "{dropped}");
    }
}

#[test]
fn what_lies_behind_the_end_of_the_smaller_one_is_zeroes() {
    let mut world = World::format(64 << 20, 1 << 20);
    let volume = world.create("v", 1000 * B);
    world.write(volume, 10 * B, &block(1)).unwrap();
    world.write(volume, 990 * B, &block(2)).unwrap();
    let small = snapshot(&mut world, volume, "small");
    world.resize(volume, 5000 * B, Shrink::Never).unwrap();
    world.write(volume, 4990 * B, &block(3)).unwrap();
    let large = snapshot(&mut world, volume, "large");
    world.resize(volume, 500 * B, Shrink::Discard).unwrap();

    let mut found = |older, newer| blocks(&diff(&mut world, Some(older), newer, 100).0);
    assert_eq!(found(small, large), [(4990, true)]);
    assert_eq!(found(large, small), [(4990, false)]);
    assert_eq!(found(large, volume), [(990, false), (4990, false)]);
    assert_eq!(found(volume, large), [(990, true), (4990, true)]);
    assert_eq!(found(large, large), []);
}

/// A range is answered for alone, widened to whole blocks; what is merged across calls is one extent.
#[test]
fn a_range_is_asked_about_and_extents_go_on() {
    let mut world = World::format(64 << 20, 1 << 20);
    let volume = world.create("v", 4000 * B);
    let before = snapshot(&mut world, volume, "before");
    for lba in 500..530 {
        world.write(volume, lba * B, &block(lba)).unwrap();
    }
    let spec = DiffSpec { older: Some(before), newer: volume };
    let mut out = Vec::new();
    assert_eq!(world.engine.diff(&spec, 505 * B + 1..510 * B + 1, &mut out, 9), Ok(None));
    assert_eq!(world.engine.diff(&spec, 511 * B..u64::MAX, &mut out, 1), Ok(None));
    assert_eq!(out, [DiffExtent { offset: 505 * B, len: 25 * B, kind: DiffKind::Data }]);
    let nobody = DiffSpec { older: Some(VolumeId(77)), newer: volume };
    assert_eq!(world.engine.diff(&nobody, 0..B, &mut out, 9), Err(DiffError::NoVolume));
}

/// What both share costs next to nothing, and one call never does much.
#[test]
fn the_work_is_bounded_by_what_differs() {
    const TIB: u64 = 1 << 40;
    let mut world = World::format(256 << 20, 1 << 20);
    let volume = world.create("v", TIB);
    let mut numbers = Numbers(9);
    for stamp in 1..=8000 {
        world.write(volume, numbers.below(TIB / B) * B, &block(stamp)).unwrap();
    }
    let before = snapshot(&mut world, volume, "before");
    let mut changed: Vec<u64> = (0..1000).map(|_| numbers.below(TIB / B)).collect();
    for lba in &changed {
        world.write(volume, lba * B, &block(10_000 + lba)).unwrap();
    }
    changed.sort_unstable();
    changed.dedup();
    let (found, calls) = diff(&mut world, Some(before), volume, 10_000);
    let found: Vec<u64> = blocks(&found).into_iter().map(|(lba, _)| lba).collect();
    assert_eq!(found, changed);
    // 64 leaves a call at least, however many are not looked at.
    assert!((10..=32).contains(&calls), "{calls}");
    let (found, calls) = diff(&mut world, Some(before), before, 10);
    assert_eq!((found.len(), calls), (0, 1));
}
