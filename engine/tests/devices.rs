//! Pools of several devices: formatted, added to, emptied, and opened when something is missing.

mod support;

use flagstone_block::{
    BLOCK_SIZE, DeviceCommand, Devices, Durability, Tag, VolumeId, split_offset,
};
use flagstone_engine::{
    Engine, Needed, NewDevice, OpenError, OpenOptions, PoolState, ScrubFinding, ScrubPlace,
    ScrubState, SegmentState, SubmitError, check, identify, inspect,
};
use std::collections::BTreeSet;
use support::devices::{MIB, Pool};
use support::{Arena, Disk, OPEN};

#[test]
fn what_is_written_is_spread_in_proportion_to_the_sizes() {
    let mut pool = Pool::format(&[40 * MIB, 80 * MIB, 40 * MIB]);
    let volume = pool.create(60 * MIB);
    let blocks = 48 * MIB / BLOCK_SIZE as u64;
    pool.fill(volume, blocks, 1);
    let used: Vec<u32> = pool.devices().iter().map(|d| d.segments - d.segments_empty).collect();
    assert!(used[1] > used[0] && used[1] > used[2], "{used:?}");
    assert!(used.iter().all(|used| *used >= 5), "{used:?}");
    pool.verify(volume, blocks, 1);
    let mut pool = pool.kill();
    pool.verify(volume, blocks, 1);
    let mut pool = Pool::open(pool.stop());
    pool.verify(volume, blocks, 1);
    pool.engine.check().unwrap();
}

#[test]
fn a_device_is_added_and_another_emptied_the_first_one_too() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB]);
    let volume = pool.create(40 * MIB);
    let blocks = 30 * MIB / BLOCK_SIZE as u64;
    pool.fill(volume, blocks, 1);
    let capacity = pool.engine.usage().capacity;
    let refused = pool.engine.remove_device(Tag(1 << 40), 0);
    assert!(matches!(refused, Err(SubmitError::NoRoomElsewhere { .. })), "{refused:?}");

    let third = pool.add(9, 64 * MIB);
    assert_eq!(third, 2);
    assert!(pool.engine.usage().capacity > capacity + 40 * MIB);
    // The one with journal and metadata; on the way everything is overwritten.
    pool.remove(0);
    pool.fill(volume, blocks, 2);
    pool.settle();
    assert_eq!(pool.engine.take_removed(), Some(0));
    pool.disks.0[0] = None;
    let left: Vec<usize> = pool.devices().iter().map(|device| device.device).collect();
    assert_eq!(left, [1, 2]);
    pool.verify(volume, blocks, 2);
    pool.engine.check().unwrap();
    let mut pool = pool.kill();
    pool.verify(volume, blocks, 2);
    // Its number is free for another.
    assert_eq!(pool.add(10, 64 * MIB), 0);
    pool.fill(volume, blocks, 3);
    let mut pool = Pool::open(pool.stop());
    pool.verify(volume, blocks, 3);
    assert_eq!(pool.devices()[0].uuid, [10; 16]);
    assert_eq!(pool.devices()[0].label.as_str(), "/new");
}

#[test]
fn an_evacuation_goes_on_after_a_crash_at_any_time_and_can_be_ended() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB, 48 * MIB]);
    let volume = pool.create(40 * MIB);
    let blocks = 20 * MIB / BLOCK_SIZE as u64;
    pool.fill(volume, blocks, 1);
    pool.remove(1);
    for turns in 0..60 {
        for _ in 0..turns {
            pool.turn();
        }
        pool = pool.kill();
        let leaving: Vec<usize> =
            pool.devices().iter().filter(|d| d.leaving).map(|d| d.device).collect();
        assert!(leaving == [1] || pool.devices().len() == 2, "{leaving:?}");
    }
    pool.settle();
    pool.verify(volume, blocks, 1);
    assert_eq!(pool.devices().len(), 2);

    pool.remove(2);
    let tag = pool.next_tag();
    pool.engine.keep_device(tag, 2).unwrap();
    pool.wait(tag);
    pool.settle();
    assert!(pool.devices().iter().all(|device| !device.leaving));
    pool.fill(volume, blocks, 2);
    assert!(pool.devices()[1].segments_empty < pool.devices()[1].segments);
    pool.engine.check().unwrap();
    let mut pool = pool.kill();
    pool.verify(volume, blocks, 2);
}

#[test]
fn a_device_that_is_missing_is_named_and_a_stranger_is_no_substitute() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB]);
    pool.engine.set_device_name(1, "/data/second.img");
    let mut disks = pool.stop();
    let uuid = identify(disks.get_mut(1).unwrap()).unwrap().own().uuid;
    let second = disks.0[1].take().unwrap();
    let error = Engine::open(&mut disks, &mut Arena::new(4096), &OPEN).unwrap_err();
    assert!(matches!(error, OpenError::DeviceMissing { device: 1, uuid: u, .. } if u == uuid));
    assert!(error.to_string().contains("/data/second.img"), "{error}");
    disks.put(1, Disk::new(48 * MIB));
    let error = Engine::open(&mut disks, &mut Arena::new(4096), &OPEN).unwrap_err();
    assert!(matches!(error, OpenError::DeviceForeign { device: 1, .. }), "{error}");
    // In each other's place they are not taken for themselves.
    let first = disks.0[0].replace(second.clone()).unwrap();
    disks.put(1, first.clone());
    assert!(Engine::open(&mut disks, &mut Arena::new(4096), &OPEN).is_err());
    disks.put(0, first);
    disks.put(1, second);
    Engine::open(&mut disks, &mut Arena::new(4096), &OPEN).unwrap();
}

#[test]
fn a_device_that_was_about_to_be_added_is_none_of_the_pools() {
    let mut pool = Pool::format(&[64 * MIB]);
    let new = NewDevice { uuid: [9; 16], bytes: 48 * MIB, name: "" };
    let device = pool.engine.add_device(Tag(1), &new).unwrap();
    pool.disks.put(device, Disk::new(48 * MIB));
    // Its own places are written one after the other before anything else is.
    for _ in 0..4 {
        pool.turn();
    }
    let says = identify(pool.disks.get_mut(device).unwrap()).unwrap();
    assert_eq!((says.own().uuid, says.pool_uuid), ([9; 16], [7; 16]));
    let mut pool = pool.kill();
    assert_eq!(pool.devices().len(), 1);
    assert_eq!(pool.add(9, 48 * MIB), 1);
    assert_eq!(pool.engine.add_device(Tag(2), &new), Err(SubmitError::DeviceKnown));
    assert_eq!(pool.engine.remove_device(Tag(2), 5), Err(SubmitError::NoDevice));
}

#[test]
fn devices_that_nobody_wrote_to_are_not_flushed() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB, 48 * MIB]);
    let volume = pool.create(4 * MIB);
    pool.settle();
    let tag = pool.next_tag();
    let data = [5; BLOCK_SIZE];
    let (arena, engine) = (&mut pool.arena, &mut pool.engine);
    engine.write(arena, tag, volume, 0, &data, Durability::Fua).unwrap();
    let (mut written, mut flushed) = (BTreeSet::new(), BTreeSet::new());
    while pool.engine.next_completion().is_none() {
        pool.engine.pump(&mut pool.arena, pool.now_ns);
        while let Some(io) = pool.engine.next_io() {
            match io.command {
                DeviceCommand::Write { .. } => written.insert(io.device),
                DeviceCommand::Flush => flushed.insert(io.device),
                _ => false,
            };
            pool.engine.device_done(&mut pool.arena, io.token, Ok(()));
        }
    }
    assert_eq!(written, flushed);
    assert!(written.len() < 3, "{written:?}");
}

const DEGRADED: OpenOptions = OpenOptions { degraded: true, ..OPEN };

/// How often each disk was written to.
fn writes(disks: &Devices<Disk>) -> Vec<u64> {
    disks.0.iter().flatten().map(|disk| disk.writes).collect()
}

#[test]
fn without_a_device_what_lies_on_the_others_is_read_and_nothing_is_written() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB, 48 * MIB]);
    let volume = pool.create(60 * MIB);
    let blocks = 50 * MIB / BLOCK_SIZE as u64;
    pool.fill(volume, blocks, 1);
    pool.settle();
    pool.fill(volume, blocks, 2);
    let mut killed = pool.disks;
    let missing = killed.0[1].take().unwrap();
    let refused = Pool::try_open(Devices(killed.0.clone()), &OPEN).err().unwrap();
    assert!(matches!(refused, OpenError::DeviceMissing { device: 1, .. }), "{refused}");
    let before = writes(&killed);

    let mut pool = Pool::try_open(killed, &DEGRADED).unwrap();
    assert_eq!(pool.engine.state(), PoolState::Degraded);
    let right = pool.read_all(volume, blocks, 2);
    assert!(right > blocks / 3 && right < blocks * 9 / 10, "{right} of {blocks}");
    let data = [0; BLOCK_SIZE];
    let (arena, engine) = (&mut pool.arena, &mut pool.engine);
    let written = engine.write(arena, Tag(1 << 40), volume, 0, &data, Durability::Completed);
    assert_eq!(written, Err(SubmitError::ReadOnly));
    assert_eq!(engine.remove_device(Tag(1 << 40), 1), Err(SubmitError::ReadOnly));
    let tag = pool.next_tag();
    pool.engine.flush(tag, VolumeId(0)).unwrap();
    pool.wait(tag);
    pool.settle();
    let mut disks = pool.stop();
    assert_eq!(writes(&disks), before);

    // With it, everything is there, and it takes writes again.
    disks.put(1, missing);
    let mut pool = Pool::try_open(disks, &DEGRADED).unwrap();
    assert_eq!(pool.engine.state(), PoolState::Running);
    pool.verify(volume, blocks, 2);
    pool.fill(volume, blocks, 3);
    pool.verify(volume, blocks, 3);
}

#[test]
fn what_was_written_to_a_missing_device_since_the_checkpoint_is_never_shown_as_it_was() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB, 48 * MIB]);
    let volume = pool.create(30 * MIB);
    let blocks = 24 * MIB / BLOCK_SIZE as u64;
    pool.fill(volume, blocks, 1);
    pool.settle();
    let mut opened = 0;
    for version in 2..12 {
        pool.fill(volume, blocks, version);
        for missing in 1..3 {
            let mut disks = Devices(pool.disks.0.clone());
            disks.0[missing] = None;
            // Where copies could not be made it says so, rather than to guess.
            match Pool::try_open(disks, &DEGRADED) {
                Ok(mut left) => {
                    opened += 1;
                    assert!(left.read_all(volume, blocks, version) > blocks / 4);
                }
                Err(error) => panic!("{error}"),
            }
        }
        pool.settle();
    }
    assert_eq!(opened, 20);
    assert!(pool.engine.counters().compactions < 12, "{:?}", pool.engine.counters());
}

/// What a first opening has needed a second may need: nothing else is put there before a checkpoint counts.
#[test]
fn copies_of_summaries_are_kept_by_an_opening() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB, 48 * MIB]);
    let volume = pool.create(30 * MIB);
    let blocks = 24 * MIB / BLOCK_SIZE as u64;
    let mut seen = 0;
    for version in 1..12 {
        pool.fill(volume, blocks, version);
        let mut disks = Devices(pool.disks.0.clone());
        let segments = inspect(&mut disks).unwrap().segments;
        seen += segments.iter().filter(|segment| segment.state == SegmentState::Copies).count();
        pool.settle();
    }
    assert!(seen > 0);
}

/// A scrub reads them too; one that is damaged no longer matters once a checkpoint counts.
#[test]
fn damaged_copies_of_summaries_are_found_and_replaced() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB, 48 * MIB]);
    let volume = pool.create(30 * MIB);
    let blocks = 24 * MIB / BLOCK_SIZE as u64;
    pool.fill(volume, blocks, 1);
    pool.settle();
    assert_eq!(copies_found(&mut pool), 0);
    // Everything in segments of copies: whatever counts there is damaged.
    let inspection = inspect(&mut Devices(pool.disks.0.clone())).unwrap();
    let geo = inspection.geometry;
    let copies = inspection.segments.iter().filter(|s| s.state == SegmentState::Copies);
    let mut damaged = 0;
    for segment in copies {
        for block in 0..geo.shape.blocks {
            let (device, offset) = split_offset(geo.segment_offset(segment.segment, block));
            assert_eq!(device, 0);
            let disk = pool.disks.0[device].as_mut().unwrap();
            let at = offset / BLOCK_SIZE as u64;
            if disk.blocks.contains_key(&at) {
                disk.flip(at, 100, 4);
                damaged += 1;
            }
        }
    }
    assert!(damaged > 0);
    let found = copies_found(&mut pool);
    assert!(found > 0);
    let report = pool.engine.scrub().unwrap();
    assert!(report.is_sound() && report.repaired == found as u64, "{report:?}");
    assert_eq!(copies_found(&mut pool), 0);
    // And every device but the first may go.
    for missing in 1..3 {
        let mut disks = Devices(pool.disks.0.clone());
        assert_eq!(check(&mut disks, &mut |_, _| {}).unwrap().summary_copies_damaged, 0);
        disks.0[missing] = None;
        let mut left = Pool::try_open(disks, &DEGRADED).unwrap();
        assert!(left.read_all(volume, blocks, 1) > blocks / 4);
    }
    pool.verify(volume, blocks, 1);
}

/// Damaged copies of summaries that a scrub finds.
fn copies_found(pool: &mut Pool) -> usize {
    pool.engine.start_scrub(0).unwrap();
    while pool.engine.is_scrubbing() {
        pool.turn();
    }
    let report = pool.engine.scrub().unwrap();
    assert_eq!(report.state, ScrubState::Finished);
    let is_copy = |f: &&ScrubFinding| matches!(f.place, ScrubPlace::SummaryCopy { .. });
    let found = report.findings.iter().filter(is_copy).count();
    assert_eq!(found, report.findings.len(), "{report:?}");
    found
}

#[test]
fn a_pool_can_not_be_read_without_its_journal() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB, 48 * MIB]);
    let volume = pool.create(20 * MIB);
    pool.fill(volume, 1000, 1);
    pool.engine.set_device_name(0, "/dev/first");
    let mut disks = pool.stop();
    disks.0[0] = None;
    let error = Pool::try_open(disks, &DEGRADED).err().unwrap();
    assert!(
        matches!(error, OpenError::DeviceNeeded { device: 0, needed: Needed::Journal, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("/dev/first"), "{error}");
}
