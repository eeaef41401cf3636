//! Pools of several devices of which one fails.

mod support;

use flagstone_block::{
    BLOCK_SIZE, BlockIo, Buffers as _, DeviceError, Devices, Durability, Lba, VolumeId, join_offset,
};
use flagstone_engine::format::device::Failure;
use flagstone_engine::format::superblock::{SLOTS, Superblock};
use flagstone_engine::{
    Engine, Geometry, IoFault, OpenOptions, PoolState, SnapshotSpec, SubmitError, check,
};
use std::collections::HashSet;
use std::sync::Arc;
use support::devices::{MIB, OPTIONS, Pool, disks};
use support::{Numbers, OPEN};

#[test]
fn a_pool_goes_on_without_a_device_that_fails_a_write_and_nothing_is_lost() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB, 48 * MIB]);
    let volume = pool.create(30 * MIB);
    let blocks = 24 * MIB / BLOCK_SIZE as u64;
    pool.fill(volume, blocks, 1);
    pool.fail_writes(2);
    // What is under way there is written elsewhere: every write is answered as it should be.
    pool.fill(volume, blocks, 2);
    assert_eq!(
        (pool.engine.state(), pool.failed()),
        (PoolState::Running, vec![false, false, true])
    );
    assert!(pool.engine.counters().blocks_again > 0);
    assert_eq!(pool.flush(volume), Ok(()));
    pool.verify(volume, blocks, 2);
    let written = pool.disks.get_mut(2).unwrap().writes;
    let mut pool = pool.kill();
    pool.verify(volume, blocks, 2);
    pool.fill(volume, blocks / 2, 3);
    pool.settle();
    assert_eq!(pool.disks.get_mut(2).unwrap().writes, written, "written to, although it failed");
    let reason = pool.devices()[2].reason;
    assert_eq!(reason, Some(DeviceError::Os { errno: 5 }));
    // It can be done without, emptied, and nothing else.
    let tag = pool.next_tag();
    assert_eq!(pool.engine.keep_device(tag, 2), Err(SubmitError::DeviceFailed));
    assert_eq!(pool.engine.grow(tag, 2, 64 * MIB), Err(SubmitError::DeviceFailed));
    pool.remove(2);
    pool.settle();
    assert_eq!(pool.engine.take_removed(), Some(2));
    pool.verify(volume, blocks / 2, 3);
    pool.disks.0[2] = None;
    let mut pool = pool.kill();
    assert_eq!(pool.failed(), [false, false]);
    assert_eq!(pool.read_all(volume, blocks / 2, 3), blocks / 2);
}

#[test]
fn what_a_failed_flush_has_lost_is_told_once_to_each_volume() {
    // Nearly all segments lie on the second.
    let mut pool = Pool::format(&[40 * MIB, 240 * MIB]);
    let one = pool.create_named("one", 20 * MIB);
    let other = pool.create_named("other", 20 * MIB);
    let idle = pool.create_named("idle", 20 * MIB);
    pool.fill(idle, 600, 1);
    pool.settle();
    pool.fill(one, 50, 1);
    pool.fill(other, 50, 1);
    pool.flush_fails = Some(1);
    assert_eq!(pool.flush(one), Err(IoFault::Lost));
    assert_eq!(pool.engine.state(), PoolState::Running);
    assert_eq!(pool.flush(one), Ok(()));
    assert_eq!(pool.flush(idle), Ok(()));
    assert_eq!(pool.flush(other), Err(IoFault::Lost));
    assert_eq!(pool.flush(other), Ok(()));
    // This disk has kept what it was given, and checksums say so.
    pool.verify(one, 50, 1);
    pool.fill(one, 50, 2);
    let mut pool = pool.kill();
    pool.verify(one, 50, 2);
    pool.verify(other, 50, 1);
    assert_eq!(pool.failed(), [false, true]);
}

#[test]
fn blocks_on_a_dead_device_are_errors_until_they_are_overwritten_and_the_pool_opens_without_it() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB, 48 * MIB]);
    let volume = pool.create(40 * MIB);
    let blocks = 24 * MIB / BLOCK_SIZE as u64;
    pool.fill(volume, blocks, 1);
    pool.settle();
    pool.disks.0[2] = None;
    let right = pool.read_all(volume, blocks, 1);
    assert!(right > blocks / 2 && right < blocks, "{right} of {blocks}");
    // Sooner or later something is written there.
    let more = pool.create_named("more", 20 * MIB);
    pool.fill(more, 2_000, 4);
    pool.settle();
    assert_eq!(
        (pool.engine.state(), pool.failed()),
        (PoolState::Running, vec![false, false, true])
    );
    let mut pool = pool.kill();
    assert_eq!(
        (pool.engine.state(), pool.failed()),
        (PoolState::Running, vec![false, false, true])
    );
    assert_eq!(pool.read_all(volume, blocks, 1), right);
    pool.verify(more, 2_000, 4);
    pool.fill(volume, blocks, 2);
    pool.verify(volume, blocks, 2);
    pool.remove(2);
    pool.settle();
    assert_eq!(pool.devices().len(), 2);
    let mut pool = pool.kill();
    pool.verify(volume, blocks, 2);
}

#[test]
fn what_cannot_be_read_of_a_failed_device_keeps_it_in_the_pool() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB, 48 * MIB]);
    let volume = pool.create(40 * MIB);
    let blocks = 16 * MIB / BLOCK_SIZE as u64;
    pool.fill(volume, blocks, 1);
    pool.settle();
    pool.disks.0[1] = None;
    let more = pool.create_named("more", 20 * MIB);
    pool.fill(more, 2_000, 4);
    pool.remove(1);
    pool.settle();
    let device = pool.devices()[1];
    assert!(device.failed && device.leaving && device.stuck, "{device:?}");
    pool.fill(volume, blocks, 2);
    pool.fill(more, 2_000, 5);
    pool.settle();
    assert_eq!(pool.devices().len(), 2);
    pool.verify(volume, blocks, 2);
}

/// The checkpoint that follows a failure states all that was sealed there: also what was about to be.
#[test]
fn after_the_checkpoint_that_follows_its_failure_a_device_is_not_needed() {
    for first in 245..256 {
        // Nearly all segments lie on the second.
        let mut pool = Pool::format(&[40 * MIB, 240 * MIB]);
        let volume = pool.create(20 * MIB);
        pool.settle();
        let disk = pool.disks.get_mut(1).unwrap();
        disk.fail_from = Some(disk.writes + first);
        let mut blocks = 0;
        // Each turn flushes what the one before has written.
        while !pool.failed()[1] {
            blocks += u64::from(pool.submit(volume, blocks, 1));
            pool.now_ns += 2_000_000_000;
            pool.turn();
            pool.take_answers();
        }
        let before = pool.engine.counters().compactions;
        for turns in 0.. {
            pool.turn();
            pool.take_answers();
            if pool.engine.counters().compactions > before {
                break;
            }
            assert!(turns < 100_000, "no checkpoint after write {first}");
        }
        // Nor are copies of summaries kept any longer: a pool as small as this is now makes none.
        let mut disks = pool.disks;
        let there: HashSet<_> = disks.0[1].take().unwrap().blocks.into_values().collect();
        disks.get_mut(0).unwrap().blocks.retain(|_, block| !there.contains(block));
        if let Err(error) = Pool::try_open(disks, &OPEN) {
            panic!("write {first} failed: {error}");
        }
    }
}

/// The summary of a segment may have been written, all of it, when writes that it tells of failed. They did not
/// happen, and a snapshot that was taken behind them has what was there before.
#[test]
fn what_did_not_happen_is_left_out_of_a_map_from_summaries() {
    // As many blocks as a segment has.
    let full = 252;
    let mut checked = 0;
    for already in full - 8..=full {
        let mut pool = Pool::format(&[40 * MIB, 240 * MIB]);
        let volume = pool.create(20 * MIB);
        pool.fill(volume, 252, 1);
        pool.fill(volume, already, 1);
        assert_eq!(pool.flush(volume), Ok(()));
        pool.version_fails = Some((1, 9));
        while !pool.submit(volume, 5, 9) {
            pool.turn();
        }
        let tag = pool.next_tag();
        let spec = SnapshotSpec { volume, uuid: [2; 16], name: "v@s" };
        let taken = pool.engine.snapshot_volumes(&mut pool.arena, tag, &[spec]);
        assert_eq!(taken.map(drop), Ok(()));
        assert!(pool.submit(volume, 6, 9));
        pool.settle();
        pool.take_answers();
        assert_eq!(pool.failed(), [false, true]);
        let mut disks = Devices(pool.disks.0.clone());
        // A segment that has no summary at all can't be told of by it.
        let Ok(report) = check(&mut disks, &mut |_, _| {}) else { continue };
        checked += 1;
        assert_eq!(report.disagreement, None, "{already} blocks before");
    }
    assert!(checked > 0);
}

/// Blocks of which a page of the map that can't be read would have to tell whether they count.
#[test]
fn a_device_that_cannot_be_emptied_for_want_of_the_map_is_left_in_peace() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB, 48 * MIB]);
    let volume = pool.create(40 * MIB);
    let blocks = 24 * MIB / BLOCK_SIZE as u64;
    pool.fill(volume, blocks, 1);
    let disks = pool.stop();
    // So little that nearly all of the map is away.
    let options = OpenOptions { map_memory: Some(16 << 10), ..OPEN };
    let mut pool = Pool::try_open(disks, &options).unwrap();
    pool.settle();
    let mut flipped = 0;
    for disk in pool.disks.0.iter_mut().flatten() {
        let is_page =
            |(&at, bytes): (&u64, &Arc<[u8; BLOCK_SIZE]>)| bytes.starts_with(b"LSBL").then_some(at);
        let pages: Vec<u64> = disk.blocks.iter().filter_map(is_page).collect();
        pages.iter().for_each(|&page| disk.flip(page, 100, 1));
        flipped += pages.len();
    }
    assert!(flipped > 10);
    let tag = pool.next_tag();
    pool.engine.remove_device(tag, 1).unwrap();
    pool.settle();
    pool.take_answers();
    let device = pool.devices()[1];
    assert!(device.leaving && device.stuck, "{device:?}");
    // Blocks were moved as far as that goes, and nothing is tried over and over.
    let reads = pool.disks.0.iter().flatten().map(|disk| disk.reads).sum::<u64>();
    pool.settle();
    assert_eq!(pool.disks.0.iter().flatten().map(|disk| disk.reads).sum::<u64>(), reads);
}

/// What was not sealed on a failed device holds the journal's tail until a checkpoint counts, however long that takes.
#[test]
fn a_journal_that_a_failed_device_holds_has_slots_left_when_the_checkpoint_ends() {
    // Nearly all segments lie on the second.
    let mut pool = Pool::format(&[40 * MIB, 240 * MIB]);
    let volume = pool.create(24 * MIB);
    pool.fill(volume, 300, 1);
    // Into a segment of its own, which is not filled for long.
    pool.fill(volume, 8, 2);
    let mut next = 300;
    while next < 1_300 {
        next += u64::from(pool.submit(volume, next, 1));
        pool.turn();
        pool.take_answers();
    }
    pool.holds = true;
    pool.fail_writes(1);
    for _ in 0..5_000 {
        next += u64::from(pool.submit(volume, next, 1));
        pool.now_ns += 1_000_000;
        pool.turn();
        pool.take_answers();
    }
    assert_eq!(pool.failed(), [false, true]);
    assert!(!pool.held.is_empty() && next < 2_500, "the journal is not full after {next} blocks");
    pool.holds = false;
    for io in std::mem::take(&mut pool.held) {
        pool.perform(io);
    }
    pool.settle();
    pool.take_answers();
    assert_eq!(pool.flush(volume), Ok(()));
    pool.fill(volume, 300, 3);
    pool.verify(volume, 300, 3);
}

#[test]
fn a_pool_fails_with_the_device_of_its_journal() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB, 48 * MIB]);
    let volume = pool.create(40 * MIB);
    pool.fill(volume, 1_000, 1);
    pool.settle();
    pool.fail_writes(0);
    let tag = pool.next_tag();
    let data = [2; BLOCK_SIZE];
    let (arena, engine) = (&mut pool.arena, &mut pool.engine);
    engine.write(arena, tag, volume, 0, &data, Durability::Completed).unwrap();
    assert_eq!(pool.answer(tag), Err(IoFault::Device));
    assert!(matches!(pool.engine.state(), PoolState::Failed(_)));
    assert_eq!(pool.failed(), [true, false, false]);
    pool.verify(volume, 1_000, 1);
}

/// A table like that is nobody's doing but an attacker's: opened, what is logged would go nowhere.
#[test]
fn no_superblock_names_the_device_of_the_journal_as_failed() {
    let mut disks = disks(&[48 * MIB, 48 * MIB]);
    Engine::format(&mut disks, &OPTIONS).unwrap();
    let mut bytes = [0; BLOCK_SIZE];
    disks.read_at(join_offset(0, SLOTS[0][0]), &mut bytes).unwrap();
    let mut superblock = Superblock::decode(SLOTS[0][0], &bytes).unwrap();
    let mut geometry = |failed: [bool; 2]| {
        for (device, failed) in failed.into_iter().enumerate() {
            let row = superblock.devices.0[device].as_mut().unwrap();
            row.failed = failed.then_some(Failure { from: 1, errno: 5 });
        }
        Geometry::of(&superblock, |_| Some(48 * MIB))
    };
    geometry([false, false]).unwrap();
    geometry([false, true]).unwrap();
    geometry([true, false]).unwrap_err();
    geometry([true, true]).unwrap_err();
}

/// The blocks of a volume that can be read, and their versions.
fn readable(pool: &mut Pool, volume: VolumeId, blocks: u64) -> Vec<Option<u8>> {
    let buffer = pool.arena.alloc(1).unwrap();
    let mut found = Vec::new();
    for block in 0..blocks {
        let tag = pool.next_tag();
        while pool.engine.read(&mut pool.arena, tag, volume, Lba(block), buffer).is_err() {
            pool.turn();
        }
        let read = pool.answer(tag);
        let bytes = pool.arena.bytes(buffer);
        assert!(read.is_err() || bytes[..8] == block.to_le_bytes(), "block {block}");
        found.push(read.is_ok().then(|| bytes[8]));
    }
    pool.arena.free(buffer);
    found
}

/// A device fails, and is dead from then on, while the cleaner moves blocks there from others. They were still served from
/// where they had been; and so they are after a crash, wherever the moves stood.
#[test]
fn what_was_being_moved_to_a_device_when_it_failed_is_read_where_it_was() {
    let (mut skipped, mut spared) = (0, 0);
    for first in 0..28 {
        let mut pool = Pool::format(&[48 * MIB, 48 * MIB, 48 * MIB]);
        let blocks = pool.engine.usage().available / BLOCK_SIZE as u64 / 2;
        let volume = pool.create(blocks * BLOCK_SIZE as u64);
        pool.fill(volume, blocks, 1);
        let mut numbers = Numbers(first + 1);
        let (mut version, mut left) = (2, 0);
        let turn = |pool: &mut Pool, left: &mut u32| {
            pool.turn();
            while let Some(done) = pool.engine.next_completion() {
                let failed = pool.engine.state() != PoolState::Running;
                assert!(failed || done.result == Ok(()), "{done:?}");
                *left -= 1;
            }
        };
        let mut overwrite = |pool: &mut Pool, left: &mut u32| {
            let block = numbers.below(blocks);
            version = version % 200 + 1;
            while pool.engine.state() == PoolState::Running && !pool.submit(volume, block, version)
            {
                turn(pool, left);
            }
            *left += 1;
        };
        while pool.engine.counters().blocks_moved < 2000 {
            overwrite(&mut pool, &mut left);
        }
        // Soon after a summary was written its seal is in a journal block, which is not there yet when the device fails.
        let summaries = pool.summaries + first % 4;
        while pool.summaries <= summaries {
            overwrite(&mut pool, &mut left);
        }
        pool.holds_journal = true;
        for i in 0..200 {
            if i == first / 4 {
                let disk = pool.disks.get_mut(2).unwrap();
                disk.fail_from = Some(disk.writes);
            }
            if pool.failed()[2] || pool.engine.state() != PoolState::Running {
                break;
            }
            left += u32::from(pool.submit(volume, i * 4099 % blocks, 201));
            turn(&mut pool, &mut left);
        }
        pool.release_held();
        while !pool.failed()[2] && pool.engine.state() == PoolState::Running {
            overwrite(&mut pool, &mut left);
            turn(&mut pool, &mut left);
        }
        if pool.engine.state() != PoolState::Running {
            // It could not be spared then.
            continue;
        }
        while pool.engine.is_parting() || left > 0 {
            turn(&mut pool, &mut left);
        }
        if first % 5 == 3 {
            // The checkpoint that follows states that, too.
            pool.settle();
            let mut disks = pool.disks;
            disks.0[2] = None;
            Pool::try_open(disks, &OPEN).unwrap();
            continue;
        }
        // What is left of it are summaries, which a map from summaries can't do without.
        let geo = pool.engine.geometry();
        let from = geo.data_offset / BLOCK_SIZE as u64;
        let (blocks_each, data) = (u64::from(geo.shape.blocks), u64::from(geo.shape.data_blocks));
        let is_data = |at: u64| at >= from && (at - from) % blocks_each < data;
        pool.disks.get_mut(2).unwrap().blocks.retain(|at, _| !is_data(*at));
        let crashed = Devices(pool.disks.0.clone());
        pool.frozen = true;
        let before = readable(&mut pool, volume, blocks);
        // Also of a map that is made from summaries alone.
        for rebuild in [false, true] {
            let options = OpenOptions { rebuild, ..OPEN };
            // Of what was not sealed there is no summary.
            let Ok(mut pool) = Pool::try_open(Devices(crashed.0.clone()), &options) else {
                assert!(rebuild, "{first}");
                continue;
            };
            for _ in 0..2 {
                let after = readable(&mut pool, volume, blocks);
                let is_lost = |&b: &usize| before[b].is_some() && before[b] != after[b];
                let lost: Vec<_> = (0..blocks as usize).filter(is_lost).collect();
                assert!(lost.is_empty(), "{first}, {rebuild}: {} lost, {:?}", lost.len(), lost[0]);
                // Also when everything was counted, and what nothing names is free.
                pool.settle();
            }
            pool.engine.check().unwrap();
        }
        spared += 1;
        skipped += before.iter().filter(|block| block.is_none()).count();
    }
    assert!(skipped > 0 && spared > 10, "{skipped} {spared}");
}
