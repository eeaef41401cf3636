//! Growing a pool: with the device, crash-safely, while it is used.

mod support;

use flagstone_block::{BLOCK_SIZE, BlockIo, DeviceCommand, VolumeId};
use flagstone_engine::{Engine, SubmitError, inspect};
use support::{Arena, OPEN, World};

const MIB: u64 = 1 << 20;

fn fill(world: &mut World, volume: VolumeId, mut at: u64) -> u64 {
    let data: Vec<u8> = (0..MIB as usize).map(|i| (i / BLOCK_SIZE) as u8).collect();
    while world.write(volume, at, &data).is_ok() {
        at += MIB;
    }
    at
}

fn verify(world: &mut World, volume: VolumeId, end: u64) {
    for at in (0..end).step_by(BLOCK_SIZE) {
        let expected = (at % MIB / BLOCK_SIZE as u64) as u8;
        let block = world.read(volume, at / BLOCK_SIZE as u64, 1).unwrap();
        assert!(block.iter().all(|byte| *byte == expected), "byte {at}");
    }
}

#[test]
fn a_full_pool_grows_with_its_device_and_takes_more() {
    let mut world = World::format(64 * MIB, MIB as u32);
    let v = world.create("v", 1 << 30);
    let before = world.engine.usage();
    let full = fill(&mut world, v, 0);
    // Smaller is no growth, and the same size none either.
    assert_eq!(world.grow(63 * MIB), Err(SubmitError::DeviceSize));
    assert!(world.grow(64 * MIB + 4096).is_ok());
    assert_eq!(world.engine.usage().segments, before.segments);

    let epoch = world.engine.space_epoch();
    world.disk.size = 96 * MIB;
    world.grow(96 * MIB).unwrap();
    assert!(world.engine.space_epoch() > epoch);
    let after = world.engine.usage();
    assert_eq!(after.segments, before.segments + 32);
    assert!(after.capacity > before.capacity + 24 * MIB, "{after:?}");
    world.engine.check().unwrap();
    let more = fill(&mut world, v, full);
    assert!(more >= full + 24 * MIB, "{more} {full}");
    verify(&mut world, v, more);
    // Over the place where the old tail copy lay.
    let mut world = world.kill();
    assert_eq!(world.engine.usage().segments, after.segments);
    verify(&mut world, v, more);
    let mut world = World::open(world.stop());
    assert!(world.report.clean);
    assert_eq!(world.report.superblocks_damaged, 0);
    verify(&mut world, v, more);
    // Truncated to the old size it is no pool, whatever lies at the old end.
    let mut disk = world.stop();
    disk.size = 64 * MIB;
    let opened = Engine::open(&mut disk, &mut Arena::new(4096), &OPEN);
    assert!(opened.is_err());
}

/// Every write of the growth may be the last: the pool opens with the old size or the new one,
/// and with everything in it.
#[test]
fn a_crash_at_any_write_leaves_the_old_size_or_the_new() {
    let mut sizes = std::collections::BTreeSet::new();
    for cut in 0..12 {
        let mut world = World::format(64 * MIB, MIB as u32);
        let v = world.create("v", 1 << 30);
        world.write(v, 0, &vec![7; 3 * MIB as usize]).unwrap();
        world.flush();
        world.disk.size = 80 * MIB;
        let tag = world.tag();
        world.engine.grow(tag, 0, 80 * MIB).unwrap();
        let (mut writes, mut answered) = (0, false);
        'turns: for _ in 0..20 {
            world.engine.pump(&mut world.arena, 0);
            while let Some(io) = world.engine.next_io() {
                if let DeviceCommand::Write { offset, buffer } = io.command {
                    if writes == cut {
                        break 'turns;
                    }
                    writes += 1;
                    world
                        .disk
                        .write_at(offset, flagstone_block::Buffers::bytes(&world.arena, buffer))
                        .unwrap();
                }
                world.engine.device_done(&mut world.arena, io.token, Ok(()));
            }
            answered |= world.engine.next_completion().is_some();
        }
        let mut disk = world.disk;
        let before = inspect(&mut disk).unwrap().geometry.segments;
        let mut world = World::open(disk);
        let segments = world.engine.usage().segments;
        assert_eq!(before, segments, "inspect tells what opening finds");
        sizes.insert(segments);
        assert!(!answered || segments == *sizes.last().unwrap(), "{segments} after {cut} writes");
        assert!(
            world.read(v, 2 * MIB / BLOCK_SIZE as u64, 256).unwrap().iter().all(|byte| *byte == 7)
        );
        // And it can be grown then.
        world.grow(80 * MIB).unwrap();
        world.engine.check().unwrap();
        assert!(fill(&mut world, v, 4 * MIB) > 40 * MIB);
    }
    assert_eq!(sizes.len(), 2, "{sizes:?}");
}
