//! Discards on the device: what is free for long is discarded, once, and nothing else.

mod support;

use flagstone_block::{BLOCK_SIZE, VolumeId};
use flagstone_engine::limits::{DISCARD_BYTES_PER_SECOND, DISCARD_DELAY_NS};
use support::{World, block};

const B: u64 = BLOCK_SIZE as u64;
const MIB: u64 = 1 << 20;

/// Lets time pass until the engine asks for no more of it.
fn rest(world: &mut World) {
    let mut quiet = 0;
    for _ in 0..200_000 {
        world.turn();
        quiet += 1;
        if let Some(at) = world.engine.next_timer_ns() {
            quiet = 0;
            world.now_ns = world.now_ns.max(at);
        } else if quiet == 200 {
            return;
        }
    }
    panic!("no rest: {:?} {:?}", world.engine.usage(), world.engine.counters());
}

fn filled(blocks: u64) -> (World, VolumeId, VolumeId) {
    let mut world = World::format(128 * MIB, 1 << 20);
    world.engine.set_device_discard(true);
    let stays = world.create("stays", blocks * B);
    let goes = world.create("goes", blocks * B);
    for volume in [stays, goes] {
        for lba in 0..blocks {
            world.write(volume, lba * B, &block(lba)).unwrap();
        }
    }
    world.flush();
    (world, stays, goes)
}

fn discarded(world: &World) -> u64 {
    world.disk.discarded.unwrap_or(0)
}

#[test]
fn the_space_of_a_deleted_volume_goes_back_to_the_device() {
    let blocks = 8000;
    let (mut world, stays, goes) = filled(blocks);
    world.delete(goes);
    rest(&mut world);
    let bytes = discarded(&world);
    assert!(bytes > (blocks - 600) * B, "{bytes} {:?}", world.engine.usage());
    assert_eq!(world.engine.counters().segments_discarded * MIB, bytes);
    // Once is enough.
    world.now_ns += 100 * DISCARD_DELAY_NS;
    rest(&mut world);
    assert_eq!(discarded(&world), bytes);
    world.engine.check().unwrap();
    let mut world = world.kill();
    for lba in 0..blocks {
        assert!(world.read(stays, lba, 1).unwrap() == block(lba));
    }
}

#[test]
fn discards_keep_to_their_rate() {
    let (mut world, _, goes) = filled(8000);
    world.delete(goes);
    let mut last = 0;
    for _ in 0..16_000 {
        world.turn();
        let passed = discarded(&world) - last;
        last = discarded(&world);
        assert!(passed <= MIB, "{passed} bytes at once");
        world.now_ns += MIB * 1_000_000_000 / DISCARD_BYTES_PER_SECOND / 2;
    }
    assert!(last > 20 * MIB, "{last}");
    let most = u128::from(world.now_ns) * u128::from(DISCARD_BYTES_PER_SECOND) / 1_000_000_000;
    assert!(u128::from(last) <= most + u128::from(MIB));
}

#[test]
fn what_is_taken_again_is_not_discarded() {
    let (mut world, stays, _) = filled(4000);
    // The same segments become free and are taken again, all the time.
    for round in 0..40 {
        for lba in 0..1000 {
            world.write(stays, lba * B, &block(lba + round)).unwrap();
        }
        world.flush();
        world.now_ns += DISCARD_DELAY_NS / 10;
        world.turn();
    }
    let freed = world.engine.counters().segments_freed;
    let gone = world.engine.counters().segments_discarded;
    assert!(freed > 100 && gone < freed / 4, "{gone} of {freed}");
}

#[test]
fn none_unless_told_and_none_after_a_failure() {
    let (mut world, _, goes) = filled(8000);
    world.engine.set_device_discard(false);
    world.delete(goes);
    rest(&mut world);
    assert_eq!(discarded(&world), 0);
    assert!(!world.engine.discards());

    let (mut world, stays, goes) = filled(8000);
    world.disk.discarded = None;
    world.delete(goes);
    rest(&mut world);
    assert!(!world.engine.discards(), "it can't do that");
    assert_eq!(world.engine.counters().segments_discarded, 0);
    // The pool does not suffer, and has all its segments.
    world.write(stays, 0, &block(7)).unwrap();
    world.flush();
    world.engine.check().unwrap();
}

/// A segment under discard is nobody's, whoever asks: the world refuses what touches it.
#[test]
fn a_segment_under_discard_is_not_taken() {
    let (mut world, stays, goes) = filled(8000);
    world.delete(goes);
    world.hold_discards = true;
    while world.held.is_empty() {
        world.turn();
        world.now_ns += DISCARD_DELAY_NS / 4;
    }
    let blocks = world.engine.usage().available / B;
    let filler = world.create("filler", blocks * B);
    let mut written = 0;
    while written < blocks * 9 / 10 {
        world.write(filler, written * B, &block(written)).unwrap();
        written += 1;
    }
    world.write(stays, 0, &block(1)).unwrap();
    assert_eq!(world.held.len(), 1, "one at a time");
    world.engine.check().unwrap();
    world.release();
    world.flush();
    world.engine.check().unwrap();
}
