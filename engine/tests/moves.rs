//! The order of moved blocks: a segment that several streams were written to comes apart into
//! runs of each.

mod support;

use flagstone_block::{BLOCK_SIZE, Buffers, DeviceCommand, Lba, VolumeId};
use support::{World, block};

const B: u64 = BLOCK_SIZE as u64;
const MIB: u64 = 1 << 20;

/// Volumes that are written at the same time, `run` blocks of one after `run` blocks of the other.
fn interleaved(world: &mut World, volumes: u64, blocks: u64, run: u64) -> Vec<VolumeId> {
    let create = |v| world.create(&format!("v{v}"), blocks * B);
    let volumes: Vec<VolumeId> = (0..volumes).map(create).collect();
    for lba in (0..blocks).step_by(run as usize) {
        for &volume in &volumes {
            let bytes: Vec<u8> = (lba..lba + run).flat_map(block).collect();
            world.write(volume, lba * B, &bytes).unwrap();
        }
    }
    world.flush();
    volumes
}

/// Device reads that reading all of it in pieces of 1 MiB takes, per piece.
fn reads_per_mib(world: &mut World, volumes: &[VolumeId], blocks: u64) -> f64 {
    world.flush();
    let buffer = world.arena.alloc(256).unwrap();
    let mut reads = 0u32;
    for &volume in volumes {
        for lba in (0..blocks / 256 * 256).step_by(256) {
            let tag = world.tag();
            world.engine.read(&mut world.arena, tag, volume, Lba(lba), buffer).unwrap();
            while let Some(io) = world.engine.next_io() {
                reads += u32::from(matches!(io.command, DeviceCommand::Read { .. }));
                world.perform(io);
            }
            assert!(world.wait(tag).result.is_ok());
        }
    }
    world.arena.free(buffer);
    f64::from(reads) / (blocks / 256 * volumes.len() as u64) as f64
}

/// Device reads per MiB of what is left of four volumes that were written at the same time, before
/// and after the cleaner has moved it.
fn come_apart(run: u64) -> (f64, f64) {
    let mut world = World::format(64 * MIB, 1 << 20);
    let blocks = world.engine.usage().available / B * 8 / 10 / 4 / 256 * 256;
    let volumes = interleaved(&mut world, 4, blocks, run);
    world.delete(volumes[0]);
    world.delete(volumes[2]);
    let left = [volumes[1], volumes[3]];
    let before = reads_per_mib(&mut world, &left, blocks);
    // What was deleted must be collected for this: the other half of each segment is moved.
    let filler = world.create("filler", 4 * blocks * B);
    let mut lba = 0;
    while world.write(filler, lba * B, &block(lba)).is_ok() {
        lba += 1;
    }
    let after = reads_per_mib(&mut world, &left, blocks);
    for volume in left {
        for lba in 0..blocks {
            assert!(world.read(volume, lba, 1).unwrap() == block(lba), "block {lba}");
        }
    }
    world.engine.check().unwrap();
    (before, after)
}

#[test]
fn interleaved_streams_come_apart_when_they_are_moved() {
    let (before, after) = come_apart(4);
    println!("in runs of 16 KiB: {before:.1} reads per MiB, {after:.1} after cleaning");
    assert!(after < before / 3.0, "{before} {after}");
    let (before, after) = come_apart(1);
    println!("in runs of 4 KiB: {before:.1} reads per MiB, {after:.1} after cleaning");
    assert!(after < before / 3.0, "{before} {after}");
}
