//! Rewriting of regions that are read in sequence: what it gains, what it must not do, and when it
//! must not happen.

mod support;

use flagstone_block::{
    BLOCK_SIZE, Buffers, DeviceCommand, DeviceIo, Durability, VolumeId, ZeroMode,
};
use flagstone_engine::IoFault;
use flagstone_engine::limits::{REWRITE_BLOCKS, REWRITE_BYTES_PER_S, SCAN_COLD_NS};
use support::{World, block};

const B: u64 = BLOCK_SIZE as u64;
const MIB: u64 = 1 << 20;
/// Blocks of a region.
const REGION: u64 = 512;

/// The stamps of a volume's blocks.
struct Content(Vec<u64>);

/// A volume of `regions` regions that was written in sequence, and every other block of which was
/// then overwritten on its own; a while ago.
fn scattered(world: &mut World, regions: u64) -> (VolumeId, Content) {
    let blocks = regions * REGION;
    let volume = world.create("data", blocks * B);
    let mut content = Content((0..blocks).map(|lba| lba + 1).collect());
    for lba in 0..blocks {
        world.write(volume, lba * B, &block(lba + 1)).unwrap();
    }
    for i in 0..blocks / 2 {
        let lba = i * 2 * 7919 % blocks;
        content.0[lba as usize] = lba + 1_000_000;
        world.write(volume, lba * B, &block(lba + 1_000_000)).unwrap();
    }
    world.flush();
    world.now_ns += SCAN_COLD_NS + 1_000_000_000;
    (volume, content)
}

/// Reads the volume from beginning to end, verifies it, and returns how many device reads it took.
fn scan(world: &mut World, volume: VolumeId, content: &Content) -> u64 {
    let before = world.disk.reads;
    for lba in (0..content.0.len() as u64).step_by(64) {
        let bytes = world.read(volume, lba, 64).unwrap();
        for (i, found) in bytes.chunks_exact(BLOCK_SIZE).enumerate() {
            let stamp = content.0[lba as usize + i];
            let expected = if stamp == 0 { vec![0; BLOCK_SIZE] } else { block(stamp) };
            assert!(found == expected, "block {}", lba + i as u64);
        }
    }
    world.disk.reads - before
}

/// Lets everything that is under way, and the time that it waits for, go by.
fn rest(world: &mut World) {
    for _ in 0..100_000 {
        world.turn();
        match world.engine.next_timer_ns() {
            Some(at) => world.now_ns = world.now_ns.max(at),
            None => return world.engine.check().unwrap(),
        }
    }
    panic!("the engine never rests");
}

#[test]
fn the_second_scan_is_in_sequence() {
    let mut world = World::format(256 * MIB, 1 << 20);
    let (volume, content) = scattered(&mut world, 4);
    let usage = world.engine.usage().live;
    let first = scan(&mut world, volume, &content);
    assert!(first > 3 * REGION, "{first}");
    rest(&mut world);
    assert_eq!(world.engine.counters().blocks_rewritten, 4 * REGION);
    let second = scan(&mut world, volume, &content);
    assert!(second * 20 < first, "{second} device reads after {first}");
    assert_eq!(world.engine.usage().live, usage);
    rest(&mut world);
    world.now_ns += 2 * SCAN_COLD_NS;
    scan(&mut world, volume, &content);
    rest(&mut world);
    assert_eq!(world.engine.counters().blocks_rewritten, 4 * REGION, "not once more");
    let mut world = world.kill();
    assert!(scan(&mut world, volume, &content) * 20 < first);
    let mut world = World::open(world.stop());
    assert!(scan(&mut world, volume, &content) * 20 < first);
}

#[test]
fn holes_stay_holes() {
    let mut world = World::format(256 * MIB, 1 << 20);
    let (volume, mut content) = scattered(&mut world, 2);
    for lba in (0..2 * REGION).step_by(10) {
        world.zero(volume, lba * B, 3 * B, ZeroMode::Discard).unwrap();
        let end = content.0.len().min(lba as usize + 3);
        content.0[lba as usize..end].fill(0);
    }
    let mapped = content.0.iter().filter(|stamp| **stamp != 0).count() as u64;
    world.now_ns += 2 * SCAN_COLD_NS;
    let first = scan(&mut world, volume, &content);
    rest(&mut world);
    assert_eq!(world.engine.counters().blocks_rewritten, mapped);
    assert_eq!(world.engine.usage().live, mapped * B);
    assert!(scan(&mut world, volume, &content) * 4 < first, "a read per stretch of data remains");
    let mut world = world.kill();
    scan(&mut world, volume, &content);
    assert_eq!(world.engine.usage().live, mapped * B);
}

/// Device reads that rewriting asks for: of single blocks, while the cleaner reads longer runs.
fn take_reads(world: &mut World) -> Vec<DeviceIo> {
    let mut reads = Vec::new();
    for _ in 0..10_000 {
        world.engine.pump(&mut world.arena, world.now_ns);
        while let Some(io) = world.engine.next_io() {
            match io.command {
                DeviceCommand::Read { buffer, .. } if buffer.blocks == 1 => reads.push(io),
                _ => world.perform(io),
            }
        }
        if !reads.is_empty() {
            return reads;
        }
        world.now_ns = world.now_ns.max(world.engine.next_timer_ns().unwrap_or(0));
    }
    panic!("nothing is read");
}

/// Begins to rewrite, changes a block while it is being read, and goes on.
fn changed_meanwhile(change: impl Fn(&mut World, VolumeId, u64)) -> (World, VolumeId, Content) {
    let mut world = World::format(256 * MIB, 1 << 20);
    let (volume, content) = scattered(&mut world, 2);
    scan(&mut world, volume, &content);
    let mut parts = 0;
    // The first part is read already; each of the others is changed in the middle.
    for part in 1..2 * REGION / u64::from(REWRITE_BLOCKS) {
        let reads = take_reads(&mut world);
        change(&mut world, volume, part * u64::from(REWRITE_BLOCKS) + 10);
        for io in reads {
            world.perform(io);
        }
        parts += 1;
    }
    rest(&mut world);
    assert!(parts > 4);
    (world, volume, content)
}

#[test]
fn a_write_meanwhile_wins() {
    let (mut world, volume, mut content) = changed_meanwhile(|world, volume, lba| {
        // Answered before, while and after what was read is there.
        let tag = world.tag();
        let data = block(lba + 5_000_000);
        let durability = Durability::Completed;
        let taken = world.engine.write(&mut world.arena, tag, volume, lba * B, &data, durability);
        assert_eq!(taken, Ok(BLOCK_SIZE));
    });
    for part in 1..2 * REGION / u64::from(REWRITE_BLOCKS) {
        let lba = part * u64::from(REWRITE_BLOCKS) + 10;
        content.0[lba as usize] = lba + 5_000_000;
    }
    scan(&mut world, volume, &content);
    assert_eq!(world.engine.counters().blocks_rewritten, u64::from(REWRITE_BLOCKS));
    let mut world = world.kill();
    scan(&mut world, volume, &content);
}

#[test]
fn a_discard_meanwhile_wins() {
    let (mut world, volume, mut content) = changed_meanwhile(|world, volume, lba| {
        world.zero(volume, lba * B, B, ZeroMode::Discard).unwrap();
    });
    for part in 1..2 * REGION / u64::from(REWRITE_BLOCKS) {
        content.0[(part * u64::from(REWRITE_BLOCKS) + 10) as usize] = 0;
    }
    scan(&mut world, volume, &content);
    let mapped = content.0.iter().filter(|stamp| **stamp != 0).count() as u64;
    assert_eq!(world.engine.usage().live, mapped * B);
    let mut world = world.kill();
    scan(&mut world, volume, &content);
    assert_eq!(world.engine.usage().live, mapped * B);
}

#[test]
fn a_part_of_a_block_that_is_written_meanwhile_wins() {
    let (mut world, volume, content) = changed_meanwhile(|world, volume, lba| {
        let tag = world.tag();
        let data = [7; 100];
        let durability = Durability::Completed;
        let offset = lba * B + 50;
        world.engine.write(&mut world.arena, tag, volume, offset, &data, durability).unwrap();
    });
    for part in 1..2 * REGION / u64::from(REWRITE_BLOCKS) {
        let lba = part * u64::from(REWRITE_BLOCKS) + 10;
        let mut expected = block(content.0[lba as usize]);
        expected[50..150].fill(7);
        assert!(world.read(volume, lba, 1).unwrap() == expected, "block {lba}");
    }
}

#[test]
fn what_was_written_lately_is_left_alone() {
    let mut world = World::format(256 * MIB, 1 << 20);
    let (volume, mut content) = scattered(&mut world, 4);
    content.0[700] = 9;
    world.write(volume, 700 * B, &block(9)).unwrap();
    scan(&mut world, volume, &content);
    rest(&mut world);
    assert_eq!(world.engine.counters().blocks_rewritten, 3 * REGION);
    world.now_ns += 2 * SCAN_COLD_NS;
    scan(&mut world, volume, &content);
    rest(&mut world);
    assert_eq!(world.engine.counters().blocks_rewritten, 4 * REGION);
}

#[test]
fn reads_that_are_no_scan_bring_nothing_about() {
    let mut world = World::format(256 * MIB, 1 << 20);
    let (volume, content) = scattered(&mut world, 4);
    for i in 0..1000u64 {
        let lba = i * 104_729 % (4 * REGION - 64);
        world.read(volume, lba, 8).unwrap();
    }
    for lba in 0..4 * REGION {
        assert!(world.read(volume, lba, 1).unwrap() == block(content.0[lba as usize]));
    }
    rest(&mut world);
    assert_eq!(world.engine.counters().blocks_rewritten, 0);
}

#[test]
fn a_pool_that_is_nearly_full_is_left_alone() {
    let mut world = World::format(64 * MIB, 1 << 20);
    let (volume, content) = scattered(&mut world, 2);
    let ballast = world.create("ballast", 64 * MIB);
    let mut lba = 0;
    while world.engine.usage().available > world.engine.usage().capacity / 10 {
        world.write(ballast, lba * B, &block(lba)).unwrap();
        lba += 1;
    }
    world.now_ns += 2 * SCAN_COLD_NS;
    scan(&mut world, volume, &content);
    rest(&mut world);
    assert_eq!(world.engine.counters().blocks_rewritten, 0);
    world.delete(ballast);
    rest(&mut world);
    scan(&mut world, volume, &content);
    rest(&mut world);
    // The cleaner was at work, and some of it may lie in order already.
    let rewritten = world.engine.counters().blocks_rewritten;
    assert!((REGION..=2 * REGION).contains(&rewritten), "{rewritten}");
}

#[test]
fn the_budget_holds() {
    let mut world = World::format(512 * MIB, 1 << 20);
    let (volume, content) = scattered(&mut world, 16);
    scan(&mut world, volume, &content);
    let (from_ns, before) = (world.now_ns, world.engine.counters().blocks_rewritten);
    let mut ended_ns = 0;
    for _ in 0..1000 {
        world.now_ns += 1_000_000;
        world.turn();
        let bytes = (world.engine.counters().blocks_rewritten - before) * B;
        let passed_ns = world.now_ns - from_ns;
        let part = u64::from(REWRITE_BLOCKS) * B;
        assert!(bytes <= passed_ns * REWRITE_BYTES_PER_S / 1_000_000_000 + part, "{bytes}");
        if ended_ns == 0 && world.engine.counters().blocks_rewritten == 16 * REGION {
            ended_ns = passed_ns;
        }
    }
    assert!(ended_ns > 0, "{:?}", world.engine.counters());
}

/// A slow device: what a part takes is followed by three times as long without.
#[test]
fn a_slow_device_is_left_alone_most_of_the_time() {
    let mut world = World::format(256 * MIB, 1 << 20);
    let (volume, content) = scattered(&mut world, 4);
    scan(&mut world, volume, &content);
    for _ in 0..5 {
        let reads = take_reads(&mut world);
        world.now_ns += 100_000_000;
        for io in reads {
            world.perform(io);
        }
        world.turn();
        let ended_ns = world.now_ns;
        let next = take_reads(&mut world);
        assert!(world.now_ns >= ended_ns + 300_000_000);
        world.now_ns += 1_000_000;
        for io in next {
            world.perform(io);
        }
    }
}

#[test]
fn damaged_blocks_stay_where_they_are() {
    let mut world = World::format(256 * MIB, 1 << 20);
    let (volume, content) = scattered(&mut world, 2);
    let damaged = 300u64;
    let at = world.disk.find(&block(content.0[damaged as usize])).unwrap();
    scan(&mut world, volume, &content);
    world.disk.flip(at, 100, 4);
    rest(&mut world);
    let part = u64::from(REWRITE_BLOCKS);
    assert_eq!(world.engine.counters().blocks_rewritten, 2 * REGION - part);
    assert_eq!(world.engine.counters().bad_blocks, 0, "nobody was told");
    assert_eq!(world.read(volume, damaged, 1), Err(IoFault::BadBlock { lba: damaged }));
    world.disk.flip(at, 100, 4);
    scan(&mut world, volume, &content);
}

#[test]
fn a_stop_does_not_wait_for_it() {
    let mut world = World::format(256 * MIB, 1 << 20);
    let (volume, content) = scattered(&mut world, 4);
    scan(&mut world, volume, &content);
    let reads = take_reads(&mut world);
    world.engine.shutdown();
    world.engine.pump(&mut world.arena, world.now_ns);
    for io in reads {
        world.perform(io);
    }
    let mut world = World::open(world.stop());
    assert!(world.report.clean);
    scan(&mut world, volume, &content);
}

#[test]
fn a_volume_may_be_deleted_meanwhile() {
    let mut world = World::format(256 * MIB, 1 << 20);
    let (volume, content) = scattered(&mut world, 4);
    scan(&mut world, volume, &content);
    let reads = take_reads(&mut world);
    world.delete(volume);
    for io in reads {
        world.perform(io);
    }
    rest(&mut world);
    assert_eq!(world.engine.usage().live, 0);
}

/// Every device read of a large scattered request is under way at once.
#[test]
fn a_scattered_read_fans_out() {
    let mut world = World::format(256 * MIB, 1 << 20);
    let (volume, _) = scattered(&mut world, 2);
    let buffers: Vec<_> = (0..4).map(|_| world.arena.alloc(256).unwrap()).collect();
    for (i, buffer) in (0u64..).zip(&buffers) {
        let (tag, lba) = (world.tag(), flagstone_block::Lba(i * 256));
        world.engine.read(&mut world.arena, tag, volume, lba, *buffer).unwrap();
    }
    let mut under_way = Vec::new();
    while let Some(io) = world.engine.next_io() {
        under_way.push(io);
    }
    assert!(under_way.len() >= 1000, "{}", under_way.len());
    for io in under_way.into_iter().rev() {
        world.perform(io);
    }
    let mut answered = 0;
    while let Some(completion) = world.engine.next_completion() {
        completion.result.unwrap();
        answered += 1;
    }
    assert_eq!(answered, 4);
    buffers.into_iter().for_each(|buffer| world.arena.free(buffer));
}
