//! Streams of user writes: apart on the device, one to everything else.

mod support;

use flagstone_block::{BLOCK_SIZE, VolumeId};
use support::{World, block};

const B: u64 = BLOCK_SIZE as u64;
const MIB: u64 = 1 << 20;

/// A pool with blocks in both streams' open segments: `blocks` written once, every fourth twice.
fn two_streams(blocks: u64) -> (World, VolumeId) {
    let mut world = World::format(64 * MIB, 1 << 20);
    let volume = world.create("data", blocks * B);
    for lba in 0..blocks {
        world.write(volume, lba * B, &block(lba + 1)).unwrap();
    }
    for lba in (0..blocks).step_by(4) {
        world.write(volume, lba * B, &block(lba + 1_000_000)).unwrap();
    }
    let counters = world.engine.counters();
    assert_eq!(counters.blocks_cold, blocks, "new blocks are not known to be short-lived");
    assert_eq!(counters.blocks_written, blocks + blocks.div_ceil(4));
    (world, volume)
}

fn verify(world: &mut World, volume: VolumeId, blocks: u64) {
    for lba in 0..blocks {
        let stamp = if lba % 4 == 0 { lba + 1_000_000 } else { lba + 1 };
        assert!(world.read(volume, lba, 1).unwrap() == block(stamp), "block {lba}");
    }
    world.engine.check().unwrap();
}

/// Segments that hold data.
fn data_segments(world: &World) -> u32 {
    let usage = world.engine.usage();
    usage.segments - usage.segments_free - usage.segments_meta
}

#[test]
fn both_open_segments_survive_a_kill_and_are_filled_on() {
    let (mut world, volume) = two_streams(100);
    world.flush();
    let before = data_segments(&world);
    for _ in 0..5 {
        world = world.kill();
        verify(&mut world, volume, 100);
        world.write(volume, 4 * B, &block(4 + 1_000_000)).unwrap();
    }
    assert_eq!(data_segments(&world), before, "no segment was sealed half full");
}

#[test]
fn both_open_segments_survive_a_stop_and_are_filled_on() {
    let (mut world, volume) = two_streams(100);
    let before = data_segments(&world);
    for _ in 0..5 {
        world = World::open(world.stop());
        assert!(world.report.clean);
        verify(&mut world, volume, 100);
        world.write(volume, 4 * B, &block(4 + 1_000_000)).unwrap();
    }
    assert_eq!(data_segments(&world), before, "no segment was sealed half full");
}

/// The stream that is hardly written to must not hold the journal's tail for ever.
#[test]
fn a_slow_stream_does_not_hold_up_the_journal() {
    let (mut world, volume) = two_streams(8);
    for i in 0..20_000u64 {
        world.write(volume, i % 8 * B, &block(i)).unwrap();
    }
    assert_eq!(world.engine.counters().blocks_cold, 8);
    let mut world = world.kill();
    for i in 20_000 - 8..20_000u64 {
        assert!(world.read(volume, i % 8, 1).unwrap() == block(i));
    }
    world.engine.check().unwrap();
}

/// One batch carries both: a journal block per write would double the cost of mixed traffic.
#[test]
fn a_batch_carries_both_streams() {
    let (mut world, volume) = two_streams(100);
    let long = vec![7; 16 * BLOCK_SIZE];
    let before = world.engine.counters();
    let mut left = 0;
    for i in 0..6u64 {
        let (tag, lba) = (world.tag(), i % 3 * 4);
        let durability = flagstone_block::Durability::Completed;
        let data = if i % 2 == 0 { &long[..BLOCK_SIZE] } else { &long[..] };
        let offset = if i % 2 == 0 { lba } else { 64 } * B;
        let data = &data[..data.len().min((100 * B - offset) as usize)];
        world.engine.write(&mut world.arena, tag, volume, offset, data, durability).unwrap();
        left += 1;
    }
    while left > 0 {
        world.turn();
        while let Some(completion) = world.engine.next_completion() {
            completion.result.unwrap();
            left -= 1;
        }
    }
    let after = world.engine.counters();
    assert_eq!(after.blocks_cold - before.blocks_cold, 3 * 16);
    assert!(after.batches - before.batches <= 4, "{}", after.batches - before.batches);
}

/// What is at rest and what is not end up in segments of their own, so that the cleaner finds
/// whole segments of garbage.
#[test]
fn what_is_overwritten_lies_apart() {
    let mut world = World::format(128 * MIB, 1 << 20);
    let blocks = world.engine.usage().available / B * 8 / 10;
    let volume = world.create("data", blocks * B);
    let mut stamp = 1;
    let mut write = |world: &mut World, lba: u64| {
        world.write(volume, lba * B, &block(stamp)).unwrap();
        stamp += 1;
    };
    // Not in rounds: what is written over in the order in which it lies leaves whole segments of garbage.
    let mut random = 0x9e37_79b9_u64;
    let mut draw = |below: u64| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    // A block of ten is written all the time, the others now and then.
    (0..blocks).for_each(|lba| write(&mut world, lba));
    let mut before = world.engine.counters();
    for i in 0..4 * blocks {
        if i == 2 * blocks {
            before = world.engine.counters();
        }
        let hot = draw(blocks / 10) * 10;
        write(&mut world, if i % 10 == 0 { draw(blocks) } else { hot });
    }
    let after = world.engine.counters();
    let moved = after.blocks_moved - before.blocks_moved;
    let written = after.blocks_written - before.blocks_written;
    // In one stream it is 1.35 times.
    assert!(moved * 4 < written * 5, "{moved} of {written}");
    world.engine.check().unwrap();
}
