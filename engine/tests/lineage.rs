//! Volumes that are cut and deleted, clones of clones, and snapshots that live on for them.

mod support;

use flagstone_block::{BLOCK_SIZE, Buffers, DeviceCommand, DeviceIo, VolumeId, ZeroMode};
use flagstone_engine::{
    CloneSpec, OnFull, OpenOptions, RollbackSpec, SnapshotSpec, VolumeSettings,
};
use support::{OPEN, World, block};

const B: u64 = BLOCK_SIZE as u64;
/// Blocks in a leaf of the map.
const LEAF: u64 = 512;

fn snapshot(world: &mut World, volume: VolumeId, name: &str) -> VolumeId {
    world.snapshot(&[SnapshotSpec { volume, uuid: [9; 16], name }]).unwrap()
}

fn clone(world: &mut World, snapshot: VolumeId, name: &str) -> VolumeId {
    let settings = VolumeSettings::default();
    let spec = CloneSpec { snapshot, uuid: [8; 16], name, settings };
    let tag = world.tag();
    let clone = world.engine.clone_volume(&mut world.arena, tag, &spec).unwrap();
    world.wait(tag).result.unwrap();
    clone
}

/// A pool with a block in each of `leaves` leaves, in their pages, and a snapshot without anything.
fn paged(leaves: u64) -> (World, VolumeId, VolumeId) {
    let mut world = World::format(64 << 20, 1 << 20);
    let volume = world.create("v", leaves * LEAF * B);
    let empty = snapshot(&mut world, volume, "v@empty");
    for leaf in 0..leaves {
        world.write(volume, leaf * LEAF * B, &block(1 + leaf)).unwrap();
    }
    let options = OpenOptions { rebuild: true, ..OPEN };
    (World::open_with(world.stop(), &options).unwrap(), volume, empty)
}

/// What was a volume's when the pool was opened is a snapshot's now, and the volume is gone, before all is
/// counted: whether its pages are still to be read or being read.
#[test]
fn what_was_a_deleted_volumes_is_counted_as_its_snapshots() {
    const LEAVES: u64 = 100;
    for held in [false, true] {
        let (world, volume, empty) = paged(LEAVES);
        let mut world = World::open(world.stop());
        assert!(world.engine.is_counting());
        let tag = world.tag();
        let keep = Some(([7; 16], "v@kept"));
        let spec = RollbackSpec { volume, snapshot: empty, keep };
        world.engine.rollback_volume(&mut world.arena, tag, &spec).unwrap();
        let (mut reads, mut done) = (Vec::new(), false);
        for _ in 0..100 {
            world.engine.pump(&mut world.arena, 0);
            while let Some(io) = world.engine.next_io() {
                match io.command {
                    DeviceCommand::Read { .. } if held || done => reads.push(io),
                    _ => world.perform(io),
                }
            }
            while let Some(completion) = world.engine.next_completion() {
                done |= completion.tag == tag;
            }
            if done {
                break;
            }
        }
        assert!(done);
        reads.into_iter().for_each(|io| world.perform(io));
        (0..200).for_each(|_| world.turn());
        world.engine.check().unwrap();
        assert!(!world.engine.is_counting(), "held {held}");
        let kept = VolumeId(world.engine.volume_by_name("v@kept").unwrap().id);
        for leaf in 0..LEAVES {
            assert!(world.read(kept, leaf * LEAF, 1).unwrap() == block(1 + leaf), "leaf {leaf}");
        }
    }
}

/// Two snapshots that live on, empty, for the clone of a clone, which is deleted while a checkpoint has stated
/// one of them and not yet the other.
#[test]
fn a_checkpoint_states_the_snapshots_that_others_were_cloned_from() {
    let mut world = World::format(64 << 20, 1 << 20);
    // Statements go by slots: its slot is the first, and becomes another's.
    let first = world.create("first", B);
    let volume = world.create("v", 4 * B);
    for i in 0..600 {
        world.create(&format!("filler{i}"), B);
    }
    let older = snapshot(&mut world, volume, "v@s");
    let one = clone(&mut world, older, "one");
    world.delete(first);
    (0..20).for_each(|_| world.turn());
    let newer = snapshot(&mut world, one, "one@s");
    let two = clone(&mut world, newer, "two");
    for id in [volume, older, one, newer] {
        world.delete(id);
        (0..20).for_each(|_| world.turn());
    }
    let log = world.create("log", 64 * B);
    let before = world.engine.counters().compactions;
    let epoch_of = |bytes: &[u8]| u64::from_le_bytes(bytes[24..32].try_into().unwrap());
    let pages = world.disk.blocks.values().filter(|bytes| bytes.starts_with(b"LSBM"));
    let epoch = pages.map(|bytes| epoch_of(&bytes[..])).max().unwrap();
    world.hold = Some(*b"LSBM");
    for stamp in 0..20_000 {
        world.write(log, stamp % 64 * B, &block(stamp)).unwrap();
        let is_old = |io: &DeviceIo| match io.command {
            DeviceCommand::Write { buffer, .. } => epoch_of(world.arena.bytes(buffer)) <= epoch,
            _ => true,
        };
        let (old, new): (Vec<_>, Vec<_>) = world.held.iter().copied().partition(is_old);
        world.held = new;
        old.into_iter().for_each(|io| world.perform(io));
        if !world.held.is_empty() {
            break;
        }
    }
    assert!(!world.held.is_empty(), "there is no checkpoint");
    (0..20).for_each(|_| world.turn());
    world.delete(two);
    (0..20).for_each(|_| world.turn());
    world.release();
    (0..100).for_each(|_| world.turn());
    assert_eq!(world.engine.counters().compactions, before + 1);
    let mut world = world.kill();
    (0..100).for_each(|_| world.turn());
    world.engine.check().unwrap();
    assert!(world.engine.snapshots().next().is_none());
}

/// The page of a leaf of which the volume has a part only can't be read when its snapshot is taken apart. What the
/// volume has of it is the volume's all the same.
#[test]
fn what_is_passed_on_needs_no_page() {
    const LEAVES: u64 = 200;
    let mut world = World::format(64 << 20, 1 << 20);
    let volume = world.create("v", LEAVES * LEAF * B);
    for leaf in 0..LEAVES {
        world.write(volume, leaf * LEAF * B, &[block(1 + leaf), block(1000)].concat()).unwrap();
    }
    let older = snapshot(&mut world, volume, "v@s");
    world.write(volume, 0, &block(2000)).unwrap();
    let options = OpenOptions { rebuild: true, map_memory: Some(0), ..OPEN };
    let world = World::open_with(world.stop(), &options).unwrap();
    let disk = world.stop();
    let pages = disk.blocks.iter().filter(|(_, bytes)| bytes.starts_with(b"LSBL"));
    let pages: Vec<u64> = pages.map(|(at, _)| *at).collect();
    let options = OpenOptions { map_memory: Some(0), ..OPEN };
    let mut refused = 0;
    for page in pages {
        let mut world = World::open_with(disk.clone(), &options).unwrap();
        (0..500).for_each(|_| world.turn());
        (1..LEAVES).for_each(|leaf| drop(world.read(volume, leaf * LEAF, 1).unwrap()));
        world.disk.unreadable = Some(page);
        world.delete(older);
        (0..500).for_each(|_| world.turn());
        refused += u32::from(world.engine.wants_rebuild());
        world.disk.unreadable = None;
        assert!(world.read(volume, 0, 2).unwrap() == [block(2000), block(1000)].concat());
        world.engine.check().unwrap();
    }
    assert!(refused > 0);
}

/// Discards of what a clone has of its snapshot take metadata: of a part of a leaf another leaf, of all of it a
/// statement.
fn discards_in_clones_leave_room_for_checkpoints(len: u64) {
    const LEAVES: u64 = 400;
    let mut world = World::format(64 << 20, 1 << 20);
    let volume = world.create("v", LEAVES * LEAF * B);
    for leaf in 0..LEAVES {
        world.write(volume, leaf * LEAF * B, &[block(1 + leaf), block(1000)].concat()).unwrap();
    }
    let older = snapshot(&mut world, volume, "v@s");
    let clones: Vec<VolumeId> =
        (0..60).map(|i| clone(&mut world, older, &format!("c{i}"))).collect();
    let settings = VolumeSettings { on_full: OnFull::Error, reserved: 0 };
    let filler = world.create_with("filler", 64 << 20, settings).unwrap();
    let mut blocks = 0;
    while world.write(filler, blocks * B, &block(blocks)).is_ok() {
        blocks += 1;
    }
    let mut refused = 0;
    for &id in &clones {
        for leaf in 0..LEAVES {
            let discard = world.zero(id, leaf * LEAF * B, len, ZeroMode::Discard);
            refused += u64::from(discard.is_err());
        }
    }
    assert!(refused > 0 && world.engine.usage().capacity >= world.engine.usage().live);
    let mut world = world.kill();
    (0..100).for_each(|_| world.turn());
    // Overwrites take no space.
    for round in 0..3 {
        for lba in 0..blocks {
            world.write(filler, lba * B, &block(round * 10_000 + lba)).unwrap();
        }
    }
    clones.into_iter().for_each(|id| world.delete(id));
    world.engine.check().unwrap();
    let mut world = world.kill();
    (0..100).for_each(|_| world.turn());
    world.engine.check().unwrap();
}

#[test]
fn discards_of_blocks_in_clones_leave_room_for_checkpoints() {
    discards_in_clones_leave_room_for_checkpoints(B);
}

#[test]
fn discards_of_leaves_in_clones_leave_room_for_checkpoints() {
    discards_in_clones_leave_room_for_checkpoints(LEAF * B);
}

/// Snapshots that take no data take metadata, and overwrites must go on.
#[test]
fn snapshots_of_a_full_pool_are_refused_before_overwrites_are() {
    let mut world = World::format(64 << 20, 1 << 20);
    let volume = world.create("v", 4 * B);
    world.write(volume, 0, &block(1)).unwrap();
    let settings = VolumeSettings { on_full: OnFull::Error, reserved: 0 };
    let filler = world.create_with("filler", 64 << 20, settings).unwrap();
    let mut blocks = 0;
    while world.write(filler, blocks * B, &block(blocks)).is_ok() {
        blocks += 1;
    }
    let mut made = 0;
    for i in 0..30_000 {
        let name = format!("v@{i}");
        if world.snapshot(&[SnapshotSpec { volume, uuid: [9; 16], name: &name }]).is_err() {
            break;
        }
        made += 1;
    }
    assert!(made > 100 && made < 30_000, "{made}");
    for round in 0..2 {
        for lba in 0..blocks {
            world.write(filler, lba * B, &block(round * 10_000 + lba)).unwrap();
        }
    }
    world.engine.check().unwrap();
}

/// Each a clone of a snapshot of the one before it, of which there is nothing any more: with the last one all
/// snapshots are forgotten, on the stack of a small thread.
#[test]
fn the_last_of_a_long_line_of_clones_is_deleted() {
    const CLONES: u64 = 3000;
    let line = || {
        let mut world = World::format(64 << 20, 1 << 20);
        let mut volume = world.create("c", B);
        for i in 0..CLONES {
            let older = snapshot(&mut world, volume, &format!("c{i}@s"));
            let next = clone(&mut world, older, &format!("c{i}"));
            world.delete(volume);
            world.delete(older);
            volume = next;
        }
        (0..20).for_each(|_| world.turn());
        let before = world.engine.space_epoch();
        world.delete(volume);
        (0..200).for_each(|_| world.turn());
        world.engine.check().unwrap();
        assert!(world.engine.space_epoch() >= before + CLONES);
    };
    std::thread::Builder::new().stack_size(512 << 10).spawn(line).unwrap().join().unwrap();
}
