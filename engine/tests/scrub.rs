//! Scrub: finds what is damaged while the pool serves, names it, and has metadata written anew.

mod support;

use flagstone_block::{BLOCK_SIZE, DeviceError, VolumeId, ZeroMode};
use flagstone_engine::format::superblock::SLOTS;
use flagstone_engine::{
    Inspection, OpenOptions, ScrubFinding, ScrubPlace, ScrubRefused, ScrubReport, ScrubState,
    SegmentState,
};
use support::{Disk, Numbers, OPEN, World, block};

const B: u64 = BLOCK_SIZE as u64;
const MIB: u64 = 1 << 20;
const BLOCKS: u64 = 4000;

/// A pool with checkpoints and sealed segments behind it, and the stamp of each block.
fn worn() -> (World, VolumeId, Vec<u64>) {
    let mut world = World::format(64 * MIB, MIB as u32);
    let volume = world.create("data", BLOCKS * B);
    let mut stamps = vec![0; BLOCKS as usize];
    let mut numbers = Numbers(3);
    for stamp in 1..=16_000 {
        let lba = numbers.below(BLOCKS);
        world.write(volume, lba * B, &block(stamp)).unwrap();
        stamps[lba as usize] = stamp;
    }
    world.zero(volume, 100 * B, 50 * B, ZeroMode::Discard).unwrap();
    stamps[100..150].fill(0);
    world.flush();
    assert!(world.engine.counters().compactions > 2);
    (world, volume, stamps)
}

fn verify(world: &mut World, volume: VolumeId, stamps: &[u64]) {
    for (lba, &stamp) in (0..).zip(stamps) {
        let wanted = if stamp == 0 { vec![0; BLOCK_SIZE] } else { block(stamp) };
        assert!(world.read(volume, lba, 1).unwrap() == wanted, "block {lba}");
    }
    world.engine.check().unwrap();
}

fn finish(world: &mut World) -> ScrubReport {
    for _ in 0..100_000 {
        world.turn();
        let report = world.engine.scrub().unwrap();
        if !matches!(report.state, ScrubState::Running | ScrubState::Repairing) {
            return report.clone();
        }
    }
    panic!("the scrub does not end: {:?}", world.engine.scrub());
}

fn scrub(world: &mut World) -> ScrubReport {
    world.engine.start_scrub(0).unwrap();
    let report = finish(world);
    assert_eq!(report.state, ScrubState::Finished);
    world.engine.check().unwrap();
    report
}

fn inspect(disk: &Disk) -> Inspection {
    flagstone_engine::inspect(&mut disk.clone()).unwrap()
}

/// Blocks on the device whose first bytes are `magic`, that a fresh look at the device takes for
/// part of the state that counts.
fn pages(disk: &Disk, magic: [u8; 4], state: SegmentState) -> Vec<u64> {
    let inspection = inspect(disk);
    let geo = inspection.geometry;
    let mut found: Vec<u64> = disk
        .blocks
        .iter()
        .filter(|(at, bytes)| bytes[..4] == magic && **at * B >= geo.data_offset)
        .map(|(at, _)| *at)
        .filter(|at| {
            let (segment, _) = geo.locate((at * B - geo.data_offset) / B);
            inspection.segments[segment as usize].state == state
        })
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn a_sound_pool_has_no_findings() {
    let (mut world, volume, stamps) = worn();
    let report = scrub(&mut world);
    assert!(report.is_sound() && report.findings.is_empty(), "{report:?}");
    let live = stamps.iter().filter(|stamp| **stamp != 0).count() as u64;
    assert_eq!(report.data_blocks, live, "every live block, those of open segments too");
    assert_eq!(report.done, report.total);
    assert_eq!(world.engine.counters().scrubs, 1);
    verify(&mut world, volume, &stamps);
    world.stop();
}

#[test]
fn damaged_data_is_named() {
    let (mut world, volume, stamps) = worn();
    let mut damaged = Vec::new();
    for lba in [7, 2001, 3999] {
        let place = world.disk.find(&block(stamps[lba])).unwrap();
        world.disk.flip(place, 4000, 0x80);
        damaged.push((lba as u64, place));
    }
    // One in an open segment, and one that the device refuses.
    world.write(volume, 11 * B, &block(1 << 40)).unwrap();
    let place = world.disk.find(&block(1 << 40)).unwrap();
    world.disk.flip(place, 0, 1);
    damaged.push((11, place));
    let refused = world.disk.find(&block(stamps[1000])).unwrap();
    world.disk.unreadable = Some(refused);
    // What is dead may be damaged.
    world.write(volume, 12 * B, &block(1 << 41)).unwrap();
    let dead = world.disk.find(&block(stamps[12])).unwrap();
    world.disk.flip(dead, 5, 5);
    let report = scrub(&mut world);
    assert_eq!((report.bad_blocks, report.bad_metadata), (5, 0), "{report:?}");
    for (lba, place) in damaged {
        let wanted = ScrubPlace::Data { volume: "data".into(), lba };
        let found = report.findings.iter().find(|f| f.place == wanted).unwrap();
        assert_eq!((found.offset, found.blocks, found.device), (place * B, 1, None));
        assert!(found.segment.is_some() && !found.repaired);
    }
    let wanted = ScrubPlace::Data { volume: "data".into(), lba: 1000 };
    let found = report.findings.iter().find(|f| f.place == wanted).unwrap();
    assert_eq!(found.offset, refused * B);
    assert_eq!(found.device, Some(DeviceError::Os { errno: 5 }));
    assert!(!report.is_sound());
}

#[test]
fn neighbours_are_one_range() {
    let mut world = World::format(64 * MIB, MIB as u32);
    let volume = world.create("data", 64 * B);
    let data: Vec<u8> = (0..32).flat_map(block).collect();
    world.write(volume, 8 * B, &data).unwrap();
    for stamp in 10..15 {
        let place = world.disk.find(&block(stamp)).unwrap();
        world.disk.flip(place, 9, 9);
    }
    let report = scrub(&mut world);
    let [ScrubFinding { place, blocks, .. }] = &report.findings[..] else {
        panic!("{report:?}");
    };
    assert_eq!(*place, ScrubPlace::Data { volume: "data".into(), lba: 18 });
    assert_eq!((*blocks, report.bad_blocks), (5, 5));
}

#[test]
fn damaged_metadata_is_written_anew() {
    let (mut world, volume, mut stamps) = worn();
    // A page of the chain, both copies of another; leaf pages; superblocks but one; the journal.
    for lba in 0..20 {
        world.write(volume, lba * B, &block(1 << 42 | lba)).unwrap();
        stamps[lba as usize] = 1 << 42 | lba;
    }
    world.flush();
    let inspection = inspect(&world.disk);
    let geo = inspection.geometry;
    let leaves = pages(&world.disk, *b"LSBL", SegmentState::Map);
    let chain = geo.segment_offset(inspection.meta_segments[0], 0) / B;
    for at in [chain, chain + 2, chain + 3] {
        world.disk.flip(at, 77, 7);
    }
    let [one, _] = SLOTS[inspection.superblock.generation as usize % 2];
    world.disk.flip(one / B, 99, 1);
    world.disk.flip(geo.superblock_tail(0) / B, 1, 1);
    world.disk.flip(geo.journal_offset(inspection.next_jseq - 3) / B, 60, 1);
    leaves.iter().for_each(|&at| world.disk.flip(at, 1000, 1));

    let report = scrub(&mut world);
    let count = |wanted: fn(&ScrubPlace) -> bool| {
        report.findings.iter().filter(|f| wanted(&f.place)).count()
    };
    assert_eq!(count(|p| matches!(p, ScrubPlace::Superblock)), 2, "{report:?}");
    assert_eq!(count(|p| matches!(p, ScrubPlace::MetadataPage { .. })), 3, "{report:?}");
    assert_eq!(count(|p| matches!(p, ScrubPlace::Journal { .. })), 1, "{report:?}");
    assert_eq!(report.bad_blocks, 0);
    assert_eq!(report.repaired, report.bad_metadata);
    assert!(report.findings.iter().all(|f| f.repaired), "{report:?}");
    assert!(report.is_sound());

    // What is there now is whole, for whoever opens it next.
    let check = flagstone_engine::check(&mut world.disk.clone(), &mut |_, _| {}).unwrap();
    assert!(check.is_sound(), "{check:?}");
    let recovery = &check.recovery;
    assert_eq!((recovery.superblocks_damaged, recovery.meta_copies_damaged), (0, 0));
    assert_eq!((recovery.leaf_pages_damaged, recovery.rebuilt), (0, false));
    assert!(scrub(&mut world).findings.is_empty());
    let mut world = world.kill();
    verify(&mut world, volume, &stamps);
}

/// Leaves that have not changed since their page was written, with that page damaged.
#[test]
fn damaged_leaf_pages_are_found() {
    let (world, volume, stamps) = worn();
    // A rebuild writes a page for each leaf, and nothing has changed since.
    let options = OpenOptions { rebuild: true, ..OPEN };
    let mut world = World::open_with(world.disk, &options).unwrap();
    let leaves = pages(&world.disk, *b"LSBL", SegmentState::Map);
    leaves.iter().for_each(|&at| world.disk.flip(at, 1000, 1));
    let report = scrub(&mut world);
    let found: Vec<u64> = report
        .findings
        .iter()
        .filter_map(|f| match &f.place {
            ScrubPlace::LeafPage { volume, lba } if volume == "data" => Some(*lba),
            _ => None,
        })
        .collect();
    assert_eq!(found, (0..BLOCKS.div_ceil(512)).map(|leaf| leaf * 512).collect::<Vec<_>>());
    assert!(report.is_sound());
    let mut world = world.kill();
    assert_eq!(world.report.leaf_pages_damaged, 0);
    verify(&mut world, volume, &stamps);
}

/// A summary has no second copy. But what it is needed for at an opening is done before.
#[test]
fn a_damaged_summary_is_reported_and_not_needed() {
    let (mut world, volume, stamps) = worn();
    // What is being cleaned would be emptied under the scrub.
    (0..10_000).for_each(|_| world.turn());
    let inspection = inspect(&world.disk);
    let shape = inspection.geometry.shape;
    let sealed: Vec<u32> = inspection
        .segments
        .iter()
        .filter(|s| s.state == SegmentState::Sealed && s.live > 0)
        .map(|s| s.segment)
        .collect();
    for &segment in &sealed {
        let at = inspection.geometry.segment_offset(segment, shape.data_blocks) / B;
        world.disk.flip(at, 10, 1);
    }
    // Its blocks are verified all the same.
    let place = world.disk.find(&block(stamps[3000])).unwrap();
    world.disk.flip(place, 1, 1);
    let report = scrub(&mut world);
    let live = stamps.iter().filter(|stamp| **stamp != 0).count() as u64;
    assert_eq!((report.data_blocks, report.bad_blocks), (live, 1));
    world.disk.flip(place, 1, 1);
    let named: Vec<u32> = report
        .findings
        .iter()
        .filter(|f| f.place == ScrubPlace::Summary)
        .filter_map(|f| f.segment)
        .collect();
    assert_eq!(named, sealed);
    assert!(!report.is_sound() && report.repaired == 0);
    let mut world = World::open(world.disk);
    verify(&mut world, volume, &stamps);
}

#[test]
fn it_runs_beside_everything_else() {
    let (mut world, volume, mut stamps) = worn();
    let mut numbers = Numbers(9);
    let before = world.engine.counters();
    for round in 0..6 {
        world.engine.start_scrub(0).unwrap();
        assert_eq!(world.engine.start_scrub(0), Err(ScrubRefused::Running));
        for i in 0..4000u64 {
            let (lba, stamp) = (numbers.below(BLOCKS), (1 + round) << 32 | i);
            world.write(volume, lba * B, &block(stamp)).unwrap();
            stamps[lba as usize] = stamp;
        }
        let report = finish(&mut world);
        assert_eq!(report.state, ScrubState::Finished);
        assert!(report.findings.is_empty(), "{report:?}");
    }
    let after = world.engine.counters();
    assert!(after.compactions > before.compactions && after.segments_freed > before.segments_freed);
    verify(&mut world, volume, &stamps);
    world.stop();
}

#[test]
fn it_keeps_to_its_rate() {
    let (mut world, volume, stamps) = worn();
    let rate = 8 * MIB;
    world.engine.start_scrub(rate).unwrap();
    let second = 1_000_000_000;
    let begun = world.now_ns;
    let mut read = 0;
    loop {
        world.turn();
        let counters = world.engine.counters();
        let report = world.engine.scrub().unwrap();
        if report.state == ScrubState::Finished {
            break;
        }
        let bytes = counters.scrub_blocks_read * B;
        // One read goes ahead of its time.
        let due = (world.now_ns - begun) * rate / second + 64 * B;
        assert!(bytes <= due, "{bytes} bytes are read, {due} are due");
        read = bytes;
        // Between two reads nothing has to be done.
        if let Some(at) = world.engine.next_timer_ns() {
            world.now_ns = world.now_ns.max(at);
        }
    }
    assert!(read > 10 * MIB, "{read}");
    verify(&mut world, volume, &stamps);
}

#[test]
fn it_can_be_cancelled_and_begun_again() {
    let (mut world, ..) = worn();
    world.engine.start_scrub(MIB).unwrap();
    for _ in 0..5 {
        world.turn();
    }
    world.engine.cancel_scrub();
    let report = finish(&mut world);
    assert_eq!(report.state, ScrubState::Cancelled);
    assert!(report.done < report.total);
    assert!(scrub(&mut world).is_sound());
    world.engine.cancel_scrub();
    assert_eq!(world.engine.scrub().unwrap().state, ScrubState::Finished);
    world.stop();
}

#[test]
fn a_stop_ends_it() {
    for turns in 0..40 {
        let mut world = World::format(64 * MIB, MIB as u32);
        let volume = world.create("data", 1000 * B);
        for lba in 0..600 {
            world.write(volume, lba * B, &block(lba)).unwrap();
        }
        world.engine.start_scrub(0).unwrap();
        for _ in 0..turns {
            world.turn();
        }
        let mut world = World::open(world.stop());
        assert!(world.report.clean);
        assert_eq!(world.read(volume, 599, 1).unwrap(), block(599));
        assert_eq!(world.engine.scrub(), None);
    }
}

#[test]
fn a_failed_pool_ends_it() {
    let (mut world, volume, _) = worn();
    world.engine.start_scrub(0).unwrap();
    world.turn();
    world.disk.fail_from = Some(0);
    assert!(world.write(volume, 0, &block(1)).is_err());
    assert_eq!(finish(&mut world).state, ScrubState::Failed);
    assert_eq!(world.engine.start_scrub(0), Err(ScrubRefused::Failed));
    world.stop();
}

/// A repair that has to move the pages of many leaves that are not in memory takes as long as it
/// takes.
#[test]
fn a_repair_waits_for_a_long_checkpoint() {
    const LEAVES: u64 = 110;
    let options = OpenOptions { map_memory: Some(0), ..OPEN };
    let disk = World::format(64 * MIB, MIB as u32).stop();
    let mut world = World::open_with(disk, &options).unwrap();
    let volume = world.create("data", LEAVES * 512 * B);
    for leaf in 0..LEAVES {
        world.write(volume, leaf * 512 * B, &block(leaf + 1)).unwrap();
    }
    let disk = world.stop();
    // All pages lie in segments of which little is used: the next checkpoint moves them.
    let mut world = World::open_with(disk, &options).unwrap();
    let newest = world.engine.geometry().superblock_tail(0) / B;
    world.disk.flip(newest, 100, 1);
    let copies = pages(&world.disk, *b"LSBM", SegmentState::Meta);
    world.disk.flip(copies[0], 100, 1);
    let report = scrub(&mut world);
    assert_eq!((report.bad_metadata, report.repaired), (2, 2), "{report:?}");
    assert!(report.is_sound());
}
