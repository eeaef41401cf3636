//! A pool's life in the simplest world: write, read, discard, stop, kill, fill up.

mod support;

use flagstone_block::{BLOCK_SIZE, BlockIo, Durability, ZeroMode};
use flagstone_engine::format::superblock::{SLOTS, Superblock, TAIL_BYTES};
use flagstone_engine::{Engine, OpenError, PoolState, StatusKind, SubmitError};
use support::{Arena, Disk, OPEN, World, block};

const MIB: u64 = 1 << 20;
const B: u64 = BLOCK_SIZE as u64;

#[test]
fn what_was_written_is_read_back_after_stop_and_kill() {
    let mut world = World::format(64 * MIB, 1 << 20);
    let volume = world.create("v", 16 * MIB);
    for lba in 0..100 {
        world.write(volume, lba * 3 * B, &block(lba)).unwrap();
    }
    let world = World::open(world.stop());
    assert!(world.report.clean);
    let mut world = world.kill();
    for lba in 0..100 {
        assert_eq!(world.read(volume, lba * 3, 1).unwrap(), block(lba));
        assert_eq!(world.read(volume, lba * 3 + 1, 1).unwrap(), vec![0; BLOCK_SIZE]);
    }
    world.write(volume, 0, &block(1000)).unwrap();
    let mut world = world.kill();
    assert!(!world.report.clean);
    assert_eq!(world.read(volume, 0, 1).unwrap(), block(1000));
    assert_eq!(world.read(volume, 3, 1).unwrap(), block(1));
    world.engine.check().unwrap();
}

#[test]
fn overwriting_for_ever_reuses_segments_and_wraps_the_journal() {
    let mut world = World::format(64 * MIB, 1 << 20);
    let volume = world.create("v", 8 * MIB);
    let blocks = 8 * MIB / B;
    let mut stamps = vec![0u64; blocks as usize];
    // One block per batch: each takes a journal slot, so this wraps the ring several times.
    for round in 1..=6u64 {
        for lba in 0..blocks {
            let stamp = round << 32 | lba;
            world.write(volume, lba * B, &block(stamp)).unwrap();
            stamps[lba as usize] = stamp;
        }
        if round == 3 {
            world = world.kill();
        }
        if round == 4 {
            world = World::open(world.stop());
        }
        world.engine.check().unwrap();
    }
    let mut world = world.kill();
    for lba in 0..blocks {
        assert_eq!(world.read(volume, lba, 1).unwrap(), block(stamps[lba as usize]), "block {lba}");
    }
}

#[test]
fn a_full_pool_says_so_reads_on_and_takes_back_what_is_discarded() {
    let mut world = World::format(64 * MIB, 1 << 20);
    let volume = world.create("v", 128 * MIB);
    let data = vec![0x5a; MIB as usize];
    let mut at = 0;
    let error = loop {
        match world.write(volume, at, &data) {
            Ok(()) => at += MIB,
            Err(error) => break error,
        }
    };
    assert_eq!(error, SubmitError::NoSpace);
    assert!(at > 35 * MIB, "only {at} bytes fit");
    assert_eq!(world.read(volume, 0, 256).unwrap(), data);
    world.flush();
    world.zero(volume, 0, at, ZeroMode::Discard).unwrap();
    world.flush();
    for round in 0..3 {
        for offset in 0..at / MIB - 4 {
            world
                .write(volume, offset * MIB, &data)
                .unwrap_or_else(|e| panic!("round {round} {offset}: {e}"));
        }
        world.zero(volume, 0, at, ZeroMode::Discard).unwrap();
    }
    let mut world = world.kill();
    assert_eq!(world.read(volume, 0, 1).unwrap(), vec![0; BLOCK_SIZE]);
    world.delete(volume);
    let live = world.engine.usage().live;
    assert_eq!(live, 0);
}

#[test]
fn partial_blocks_are_merged() {
    let mut world = World::format(64 * MIB, 1 << 20);
    let volume = world.create("v", MIB);
    let mut model = vec![0u8; MIB as usize];
    let mut seed = 1u64;
    for i in 0..300u64 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let offset = (seed >> 20) % (MIB - 20_000);
        let len = (seed >> 45) % 20_000 + 1;
        let range = offset as usize..(offset + len) as usize;
        if i % 4 == 0 {
            world.zero(volume, offset, len, ZeroMode::MayUnmap).unwrap();
            model[range].fill(0);
        } else {
            let data = vec![i as u8; len as usize];
            world.write(volume, offset, &data).unwrap();
            model[range].copy_from_slice(&data);
        }
    }
    assert_eq!(world.read(volume, 0, 256).unwrap(), model);
    let mut world = world.kill();
    assert_eq!(world.read(volume, 0, 256).unwrap(), model);
}

#[test]
fn discards_survive_though_older_summaries_still_name_the_blocks() {
    let mut world = World::format(64 * MIB, 1 << 20);
    let volume = world.create("v", 8 * MIB);
    world.write(volume, 0, &vec![1; 4 * MIB as usize]).unwrap();
    world.flush();
    // Every other block goes, so no segment is freed and every summary is replayed.
    for lba in (0..1024).step_by(2) {
        world.zero(volume, lba * B, B, ZeroMode::Discard).unwrap();
    }
    world.zero(volume, 2 * B + B, B, ZeroMode::KeepAllocated).unwrap();
    // Each reopening compacts the metadata: the holes must be stated again each time.
    for _ in 0..3 {
        world.write(volume, 6 * MIB, &block(1)).unwrap();
        world = world.kill();
    }
    world = World::open(world.stop());
    for lba in 0..1024u64 {
        let hole = lba % 2 == 0 || lba == 3;
        assert_eq!(world.read(volume, lba, 1).unwrap()[0], u8::from(!hole), "block {lba}");
    }
    let mut extents = Vec::new();
    world.engine.block_status(volume, 0, 5 * B, &mut extents, 100).unwrap();
    let kinds: Vec<_> = extents.iter().map(|e| e.kind).collect();
    use StatusKind::{Data, Hole, Zero};
    assert_eq!(kinds, [Hole, Data, Hole, Zero, Hole]);
}

#[test]
fn volumes_come_and_go() {
    let mut world = World::format(64 * MIB, 1 << 20);
    let a = world.create("a", MIB);
    let b = world.create("b", MIB);
    world.write(a, 0, &block(1)).unwrap();
    world.write(b, 0, &block(2)).unwrap();
    world.delete(a);
    let c = world.create("a", 2 * MIB);
    assert_ne!(a, c);
    let mut world = world.kill();
    assert_eq!(world.engine.volume_by_name("a").map(|v| (v.id, v.size)), Some((c.0, 2 * MIB)));
    assert_eq!(world.read(c, 0, 1).unwrap(), vec![0; BLOCK_SIZE]);
    assert_eq!(world.read(b, 0, 1).unwrap(), block(2));
    assert!(world.engine.volume(a).is_none());
}

#[test]
fn a_failed_write_poisons_the_pool_and_reads_go_on() {
    let mut world = World::format(64 * MIB, 1 << 20);
    let volume = world.create("v", MIB);
    world.write(volume, 0, &block(1)).unwrap();
    world.disk.fail_from = Some(world.disk.writes);
    assert_eq!(world.write(volume, 0, &block(2)), Err(SubmitError::Failed));
    assert!(matches!(world.engine.state(), PoolState::Failed(_)));
    assert_eq!(world.write(volume, 0, &block(3)), Err(SubmitError::Failed));
    assert_eq!(world.read(volume, 0, 1).unwrap(), block(1));
    world.stop();
}

#[test]
fn a_bad_block_fails_its_own_range_only() {
    let mut world = World::format(64 * MIB, 1 << 20);
    let volume = world.create("v", MIB);
    for lba in 0..8 {
        world.write_with(volume, lba * B, &block(lba), Durability::Fua).unwrap();
    }
    let victim = block(3);
    let place = world.disk.find(&victim).unwrap();
    world.disk.flip(place, 99, 4);
    assert_eq!(world.read(volume, 0, 3).unwrap()[..BLOCK_SIZE], block(0));
    assert_eq!(world.read(volume, 2, 3), Err(flagstone_engine::IoFault::BadBlock { lba: 3 }));
    assert_eq!(world.read(volume, 4, 4).unwrap()[..BLOCK_SIZE], block(4));
    let mut disk = world.stop();
    let report = flagstone_engine::check(&mut disk, &mut |_, _| {}).unwrap();
    assert_eq!((report.blocks, report.bad_blocks), (8, 1));
    assert_eq!((report.listed[0].lba, report.listed[0].offset), (3, place * B));
    // Overwriting heals.
    let mut world = World::open(disk);
    world.write(volume, 3 * B, &block(9)).unwrap();
    assert_eq!(world.read(volume, 3, 1).unwrap(), block(9));
}

#[test]
fn damaged_superblock_copies_are_written_anew() {
    let world = World::format(64 * MIB, 1 << 20);
    let mut disk = world.stop();
    // All but one copy of each slot go, and the one at the end.
    for place in [0, MIB, 63 * MIB] {
        disk.flip(place / B, 700, 1);
    }
    let report = flagstone_engine::check(&mut disk, &mut |_, _| {}).unwrap();
    assert!(report.is_sound());
    assert_eq!(report.recovery.superblocks_damaged, 3);
    let mut disk = World::open(disk).stop();
    let report = flagstone_engine::check(&mut disk, &mut |_, _| {}).unwrap();
    assert_eq!(report.recovery.superblocks_damaged, 0);
}

#[test]
fn keeping_a_huge_range_costs_neither_memory_nor_space_twice() {
    let mut world = World::format(4 << 30, 4 << 20);
    let volume = world.create("v", 3 << 30);
    world.write(volume, 5 * MIB, &block(1)).unwrap();
    let range = (MIB + B, (3 << 30) - 2 * MIB);
    world.zero(volume, range.0, range.1, ZeroMode::KeepAllocated).unwrap();
    let kept = world.engine.usage().kept;
    assert_eq!(kept, range.1);
    // Again: nothing more is charged, though the pool has no room for a second time.
    world.zero(volume, range.0, range.1, ZeroMode::KeepAllocated).unwrap();
    assert_eq!(world.engine.usage().kept, kept);
    world.write(volume, 100 * MIB, &block(2)).unwrap();
    world.write(volume, 200 * MIB + 512, &[7; 512]).unwrap();
    world.zero(volume, 300 * MIB, 10 * MIB + B, ZeroMode::Discard).unwrap();
    for _ in 0..2 {
        world.engine.check().unwrap();
        assert_eq!(world.engine.usage().kept, kept - 10 * MIB - 3 * B);
        assert_eq!(world.read(volume, 100 * MIB / B, 1).unwrap(), block(2));
        assert_eq!(world.read(volume, 200 * MIB / B, 1).unwrap()[512..1024], [7; 512]);
        let mut extents = Vec::new();
        world.engine.block_status(volume, 299 * MIB, 20 * MIB, &mut extents, 9).unwrap();
        let found: Vec<_> = extents.iter().map(|e| (e.len, e.kind)).collect();
        use StatusKind::{Hole, Zero};
        assert_eq!(found, [(MIB, Zero), (10 * MIB + B, Hole), (9 * MIB - B, Zero)]);
        world = world.kill();
    }
    let mut world = World::open(world.stop());
    assert_eq!(world.engine.usage().kept, kept - 10 * MIB - 3 * B);
    world.delete(volume);
    world.engine.check().unwrap();
    assert_eq!(world.engine.usage().kept, 0);
}

/// All copies of the newest superblock gone, an older one left: what that describes was given up
/// long ago, and opening it would bring back an old pool and overwrite the new.
#[test]
fn an_old_superblock_is_no_substitute_for_the_newest() {
    let mut world = World::format(64 << 20, 1 << 20);
    let volume = world.create("data", 1 << 20);
    // A checkpoint writes the next superblock.
    for stamp in 0.. {
        world.write(volume, stamp % 256 * B, &block(stamp)).unwrap();
        if world.engine.counters().compactions > 0 {
            break;
        }
    }
    world.write(volume, 0, &block(1)).unwrap();
    world.flush();
    let mut disk = world.disk;
    let generation = |disk: &mut Disk, offset| {
        let mut bytes = [0; BLOCK_SIZE];
        disk.read_at(offset, &mut bytes).unwrap();
        Superblock::decode(offset, &bytes).map_or(0, |superblock| superblock.generation)
    };
    let tail = disk.size() - TAIL_BYTES;
    let places: Vec<u64> = SLOTS.into_iter().flatten().chain([tail]).collect();
    let newest = places.iter().map(|&at| generation(&mut disk, at)).max().unwrap();
    for at in places {
        if generation(&mut disk, at) == newest {
            disk.write_at(at, &[0x5a; BLOCK_SIZE]).unwrap();
        }
    }
    let mut arena = Arena::new(4096);
    let error = Engine::open(&mut disk, &mut arena, &OPEN).unwrap_err();
    let (generation, epoch) = (newest - 1, 2);
    assert_eq!(error, OpenError::SuperblockStale { generation, epoch });
}

/// Whichever place of a superblock can't be read at an opening: afterwards all of them can. One of the
/// older slot may hold the first copy of an update that was cut short, and must not come back as
/// the newest when what it names is gone.
#[test]
fn an_opening_leaves_no_place_of_a_superblock_unreadable() {
    for place in [0, 64 << 10, 1 << 20, (1 << 20) + (64 << 10)] {
        let mut world = World::format(64 << 20, 1 << 20);
        let volume = world.create("data", 1 << 20);
        world.write(volume, 0, &block(1)).unwrap();
        world.flush();
        let mut disk = world.disk;
        disk.write_at(place, &block(2)).unwrap();
        let mut world = World::open(disk);
        assert_eq!(world.report.superblocks_damaged, 1);
        assert!(world.read(volume, 0, 1).unwrap() == block(1));
        let report = flagstone_engine::check(&mut world.disk, &mut |_, _| {}).unwrap();
        assert_eq!(report.recovery.superblocks_damaged, 0, "{place}");
    }
}
