//! A device that reports success for commands that it has not run: never wrong bytes, but an error for the range.

mod support;

use flagstone_block::{BLOCK_SIZE, VolumeId};
use flagstone_engine::IoFault;
use std::collections::HashSet;
use support::{Numbers, World, block};

const B: u64 = BLOCK_SIZE as u64;
const MIB: u64 = 1 << 20;
const BLOCKS: u64 = 3000;

/// Every block is written once, and some of them again; what each was given, the latest last.
fn write(world: &mut World, volume: VolumeId, versions: &mut [Vec<u64>], count: u64) {
    let mut numbers = Numbers(count);
    for i in 0..count {
        let lba = if i < BLOCKS { i } else { numbers.below(BLOCKS) };
        let stamp = 1 + versions.iter().map(Vec::len).sum::<usize>() as u64;
        world.write(volume, lba * B, &block(stamp)).unwrap();
        versions[lba as usize].push(stamp);
    }
}

#[test]
fn reads_that_were_not_done_are_errors() {
    let mut world = World::format(64 * MIB, MIB as u32);
    let volume = world.create("v", BLOCKS * B);
    let mut versions = vec![Vec::new(); BLOCKS as usize];
    write(&mut world, volume, &mut versions, 2 * BLOCKS);
    world.untrue = (10, 0);
    let (mut right, mut errors) = (0, 0);
    for _ in 0..3 {
        for (lba, stamps) in (0..).zip(&versions) {
            match world.read(volume, lba, 1) {
                Ok(bytes) => {
                    assert!(bytes == block(*stamps.last().unwrap()), "block {lba}");
                    right += 1;
                }
                Err(fault) => {
                    assert_eq!(fault, IoFault::BadBlock { lba });
                    errors += 1;
                }
            }
        }
    }
    assert!(world.untruths > BLOCKS / 5, "{}", world.untruths);
    // Each is read once more before it is given up, so few are not right in the end.
    assert!(errors > 0 && errors * 20 < right, "{errors} errors, {right} right");
    world.untrue = (0, 0);
    for (lba, stamps) in (0..).zip(&versions) {
        assert!(world.read(volume, lba, 1).unwrap() == block(*stamps.last().unwrap()));
    }
}

#[test]
fn writes_that_were_not_done_are_errors_when_they_are_read() {
    let mut world = World::format(64 * MIB, MIB as u32);
    let volume = world.create("v", BLOCKS * B);
    let mut versions = vec![Vec::new(); BLOCKS as usize];
    write(&mut world, volume, &mut versions, 2 * BLOCKS);
    world.untrue = (0, 20);
    write(&mut world, volume, &mut versions, 2 * BLOCKS);
    world.untrue = (0, 0);
    assert!(world.untruths > 50, "{}", world.untruths);
    let mut errors = 0;
    for (lba, stamps) in (0..).zip(&versions) {
        match world.read(volume, lba, 1) {
            Ok(bytes) => assert!(bytes == block(*stamps.last().unwrap()), "block {lba}"),
            Err(fault) => {
                assert_eq!(fault, IoFault::BadBlock { lba });
                errors += 1;
            }
        }
    }
    assert!(errors > 0);
}

/// Records of the log that were not written cut it short there when the pool is opened again: what is found is older, but it
/// is something that was written there.
#[test]
fn after_a_crash_there_is_nothing_that_was_never_written_there() {
    for round in 0..20 {
        let mut world = World::format(64 * MIB, MIB as u32);
        let volume = world.create("v", BLOCKS * B);
        let mut versions = vec![Vec::new(); BLOCKS as usize];
        write(&mut world, volume, &mut versions, BLOCKS);
        world.untrue = (0, 100 + round * 37);
        write(&mut world, volume, &mut versions, 2 * BLOCKS + round * 100);
        // What can't be opened says so.
        let Ok(mut world) = World::try_open(world.disk) else { continue };
        for (lba, stamps) in (0..).zip(&versions) {
            let Ok(bytes) = world.read(volume, lba, 1) else { continue };
            let known: HashSet<Vec<u8>> = stamps.iter().map(|stamp| block(*stamp)).collect();
            assert!(
                known.contains(&bytes) || bytes == vec![0; BLOCK_SIZE],
                "round {round}: block {lba} has what was never written there"
            );
        }
    }
}
