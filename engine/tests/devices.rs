//! Pools of several devices: formatted, added to, emptied, and opened when something is missing.

mod support;

use flagstone_block::{
    BLOCK_SIZE, BlockIo, Buffers as _, DeviceCommand, DeviceError, DeviceIo, Devices, Durability,
    Lba, Tag, VolumeId, join_offset,
};
use flagstone_engine::format::device::Failure;
use flagstone_engine::format::superblock::{SLOTS, Superblock};
use flagstone_engine::{
    DeviceInfo, Engine, FormatOptions, Geometry, IoFault, Needed, NewDevice, OpenError,
    OpenOptions, PoolState, SegmentState, SnapshotSpec, SubmitError, VolumeSettings, VolumeSpec,
    check, identify, inspect,
};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use support::{Arena, Disk, OPEN};

const MIB: u64 = 1 << 20;
const OPTIONS: FormatOptions =
    FormatOptions { pool_uuid: [7; 16], nonce: 1, segment_bytes: MIB as u32 };

struct Pool {
    engine: Engine,
    arena: Arena,
    disks: Devices<Disk>,
    now_ns: u64,
    tag: u64,
    /// A device whose flushes fail.
    flush_fails: Option<usize>,
    /// A device, and the version of blocks that it takes no writes of.
    version_fails: Option<(usize, u8)>,
    /// Writes of more than a block to the first device are held back from now on: those of a checkpoint.
    holds: bool,
    held: Vec<DeviceIo>,
}

fn disks(sizes: &[u64]) -> Devices<Disk> {
    let mut disks = Devices::default();
    for (device, size) in sizes.iter().enumerate() {
        disks.put(device, Disk::new(*size));
    }
    disks
}

impl Pool {
    fn format(sizes: &[u64]) -> Self {
        let mut disks = disks(sizes);
        Engine::format(&mut disks, &OPTIONS).unwrap();
        Self::open(disks)
    }

    fn open(disks: Devices<Disk>) -> Self {
        Self::try_open(disks, &OPEN).unwrap()
    }

    fn try_open(mut disks: Devices<Disk>, options: &OpenOptions) -> Result<Self, OpenError> {
        let mut arena = Arena::new(4096);
        let (engine, _) = Engine::open(&mut disks, &mut arena, options)?;
        let (flush_fails, version_fails) = (None, None);
        let (holds, held) = (false, Vec::new());
        Ok(Self {
            engine,
            arena,
            disks,
            now_ns: 1,
            tag: 0,
            flush_fails,
            version_fails,
            holds,
            held,
        })
    }

    /// The process dies.
    fn kill(self) -> Self {
        Self::open(self.disks)
    }

    fn turn(&mut self) -> bool {
        self.engine.pump(&mut self.arena, self.now_ns);
        let mut any = false;
        while let Some(io) = self.engine.next_io() {
            any = true;
            let is_long =
                matches!(io.command, DeviceCommand::Write { buffer, .. } if buffer.blocks > 1);
            if self.holds && io.device == 0 && is_long {
                self.held.push(io);
                continue;
            }
            self.perform(io);
        }
        any
    }

    fn perform(&mut self, io: DeviceIo) {
        let at = |offset| join_offset(usize::from(io.device), offset);
        let result = match io.command {
            DeviceCommand::Read { offset, buffer } => {
                self.disks.read_at(at(offset), self.arena.bytes_mut(buffer))
            }
            DeviceCommand::Write { buffer, .. }
                if self.version_fails
                    == Some((usize::from(io.device), self.arena.bytes(buffer)[8])) =>
            {
                Err(DeviceError::Os { errno: 5 })
            }
            DeviceCommand::Write { offset, buffer } => {
                self.disks.write_at(at(offset), self.arena.bytes(buffer))
            }
            DeviceCommand::Flush if self.flush_fails == Some(usize::from(io.device)) => {
                Err(DeviceError::Os { errno: 5 })
            }
            DeviceCommand::Flush | DeviceCommand::Discard { .. } => Ok(()),
        };
        self.engine.device_done(&mut self.arena, io.token, result);
    }

    fn wait(&mut self, tag: Tag) {
        assert_eq!(self.answer(tag), Ok(()));
    }

    fn answer(&mut self, tag: Tag) -> Result<(), IoFault> {
        for _ in 0..100_000 {
            self.turn();
            if let Some(done) = self.engine.next_completion() {
                assert_eq!(done.tag, tag);
                return done.result;
            }
        }
        panic!("never answered");
    }

    fn next_tag(&mut self) -> Tag {
        self.tag += 1;
        Tag(self.tag)
    }

    fn create(&mut self, size: u64) -> VolumeId {
        self.create_named("v", size)
    }

    fn create_named(&mut self, name: &str, size: u64) -> VolumeId {
        let tag = self.next_tag();
        let settings = VolumeSettings::default();
        let spec = VolumeSpec { uuid: [1; 16], name, size, settings };
        let id = self.engine.create_volume(&mut self.arena, tag, &spec).unwrap();
        self.wait(tag);
        id
    }

    /// Asks for one block to be written, and does not wait; false if that can't be now.
    fn submit(&mut self, volume: VolumeId, block: u64, version: u8) -> bool {
        let mut data = [version; BLOCK_SIZE];
        data[..8].copy_from_slice(&block.to_le_bytes());
        let tag = self.next_tag();
        let (arena, engine, at) = (&mut self.arena, &mut self.engine, block * BLOCK_SIZE as u64);
        match engine.write(arena, tag, volume, at, &data, Durability::Completed) {
            Ok(_) => true,
            Err(SubmitError::Busy) => false,
            Err(error) => panic!("block {block}: {error}"),
        }
    }

    /// Takes what was answered: all went well.
    fn take_answers(&mut self) {
        while let Some(done) = self.engine.next_completion() {
            assert_eq!(done.result, Ok(()));
        }
    }

    /// Writes a whole volume: each block has its number in it, and a version.
    fn fill(&mut self, volume: VolumeId, blocks: u64, version: u8) {
        for block in 0..blocks {
            let mut data = [version; BLOCK_SIZE];
            data[..8].copy_from_slice(&block.to_le_bytes());
            let tag = self.next_tag();
            let at = block * BLOCK_SIZE as u64;
            for _ in 0..10_000 {
                let (arena, engine) = (&mut self.arena, &mut self.engine);
                match engine.write(arena, tag, volume, at, &data, Durability::Completed) {
                    Ok(_) => break,
                    Err(SubmitError::Busy) => drop(self.turn()),
                    Err(error) => panic!("block {block}: {error}"),
                }
            }
            self.wait(tag);
        }
    }

    fn verify(&mut self, volume: VolumeId, blocks: u64, version: u8) {
        assert_eq!(self.read_all(volume, blocks, version), blocks);
    }

    /// Reads a whole volume: each block is right, or an error. Returns how many are right.
    fn read_all(&mut self, volume: VolumeId, blocks: u64, version: u8) -> u64 {
        let buffer = self.arena.alloc(1).unwrap();
        let mut right = 0;
        for block in 0..blocks {
            let tag = self.next_tag();
            while let Err(error) =
                self.engine.read(&mut self.arena, tag, volume, Lba(block), buffer)
            {
                assert_eq!(error, SubmitError::Busy);
                self.turn();
            }
            if let Err(fault) = self.answer(tag) {
                assert_eq!(fault, IoFault::BadBlock { lba: block });
                continue;
            }
            let bytes = self.arena.bytes(buffer);
            assert_eq!(bytes[..8], block.to_le_bytes(), "block {block}");
            assert!(bytes[8..].iter().all(|byte| *byte == version), "block {block}");
            right += 1;
        }
        self.arena.free(buffer);
        right
    }

    fn add(&mut self, uuid: u8, bytes: u64) -> usize {
        let tag = self.next_tag();
        let new = NewDevice { uuid: [uuid; 16], bytes, name: "/new" };
        let device = self.engine.add_device(tag, &new).unwrap();
        self.disks.put(device, Disk::new(bytes));
        self.wait(tag);
        device
    }

    fn remove(&mut self, device: usize) {
        let tag = self.next_tag();
        self.engine.remove_device(tag, device).unwrap();
        self.wait(tag);
    }

    fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.turn() {
                match self.engine.next_timer_ns() {
                    Some(at) => self.now_ns = self.now_ns.max(at),
                    None => return,
                }
            }
        }
        panic!("no end of activity");
    }

    fn flush(&mut self, volume: VolumeId) -> Result<(), IoFault> {
        let tag = self.next_tag();
        while let Err(error) = self.engine.flush(tag, volume) {
            assert_eq!(error, SubmitError::Busy);
            self.turn();
        }
        self.answer(tag)
    }

    /// From now on a device takes no writes.
    fn fail_writes(&mut self, device: usize) {
        let disk = self.disks.get_mut(device).unwrap();
        disk.fail_from = Some(disk.writes);
    }

    fn failed(&self) -> Vec<bool> {
        self.engine.devices().map(|device| device.failed).collect()
    }

    fn devices(&self) -> Vec<DeviceInfo> {
        self.engine.devices().collect()
    }

    fn stop(mut self) -> Devices<Disk> {
        self.engine.shutdown();
        while !self.engine.is_stopped() {
            self.turn();
        }
        self.disks
    }
}

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

#[test]
fn a_pool_goes_on_without_a_device_that_fails_a_write_and_nothing_is_lost() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB, 48 * MIB]);
    let volume = pool.create(30 * MIB);
    let blocks = 24 * MIB / BLOCK_SIZE as u64;
    pool.fill(volume, blocks, 1);
    pool.fail_writes(2);
    // What is under way there is written elsewhere: every write is answered as it should be.
    pool.fill(volume, blocks, 2);
    assert_eq!(
        (pool.engine.state(), pool.failed()),
        (PoolState::Running, vec![false, false, true])
    );
    assert!(pool.engine.counters().blocks_again > 0);
    assert_eq!(pool.flush(volume), Ok(()));
    pool.verify(volume, blocks, 2);
    let written = pool.disks.get_mut(2).unwrap().writes;
    let mut pool = pool.kill();
    pool.verify(volume, blocks, 2);
    pool.fill(volume, blocks / 2, 3);
    pool.settle();
    assert_eq!(pool.disks.get_mut(2).unwrap().writes, written, "written to, although it failed");
    let reason = pool.devices()[2].reason;
    assert_eq!(reason, Some(DeviceError::Os { errno: 5 }));
    // It can be done without, emptied, and nothing else.
    let tag = pool.next_tag();
    assert_eq!(pool.engine.keep_device(tag, 2), Err(SubmitError::DeviceFailed));
    assert_eq!(pool.engine.grow(tag, 2, 64 * MIB), Err(SubmitError::DeviceFailed));
    pool.remove(2);
    pool.settle();
    assert_eq!(pool.engine.take_removed(), Some(2));
    pool.verify(volume, blocks / 2, 3);
    pool.disks.0[2] = None;
    let mut pool = pool.kill();
    assert_eq!(pool.failed(), [false, false]);
    assert_eq!(pool.read_all(volume, blocks / 2, 3), blocks / 2);
}

#[test]
fn what_a_failed_flush_has_lost_is_told_once_to_each_volume() {
    // Nearly all segments lie on the second.
    let mut pool = Pool::format(&[40 * MIB, 240 * MIB]);
    let one = pool.create_named("one", 20 * MIB);
    let other = pool.create_named("other", 20 * MIB);
    let idle = pool.create_named("idle", 20 * MIB);
    pool.fill(idle, 600, 1);
    pool.settle();
    pool.fill(one, 50, 1);
    pool.fill(other, 50, 1);
    pool.flush_fails = Some(1);
    assert_eq!(pool.flush(one), Err(IoFault::Lost));
    assert_eq!(pool.engine.state(), PoolState::Running);
    assert_eq!(pool.flush(one), Ok(()));
    assert_eq!(pool.flush(idle), Ok(()));
    assert_eq!(pool.flush(other), Err(IoFault::Lost));
    assert_eq!(pool.flush(other), Ok(()));
    // This disk has kept what it was given, and checksums say so.
    pool.verify(one, 50, 1);
    pool.fill(one, 50, 2);
    let mut pool = pool.kill();
    pool.verify(one, 50, 2);
    pool.verify(other, 50, 1);
    assert_eq!(pool.failed(), [false, true]);
}

#[test]
fn blocks_on_a_dead_device_are_errors_until_they_are_overwritten_and_the_pool_opens_without_it() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB, 48 * MIB]);
    let volume = pool.create(40 * MIB);
    let blocks = 24 * MIB / BLOCK_SIZE as u64;
    pool.fill(volume, blocks, 1);
    pool.settle();
    pool.disks.0[2] = None;
    let right = pool.read_all(volume, blocks, 1);
    assert!(right > blocks / 2 && right < blocks, "{right} of {blocks}");
    // Sooner or later something is written there.
    let more = pool.create_named("more", 20 * MIB);
    pool.fill(more, 2_000, 4);
    pool.settle();
    assert_eq!(
        (pool.engine.state(), pool.failed()),
        (PoolState::Running, vec![false, false, true])
    );
    let mut pool = pool.kill();
    assert_eq!(
        (pool.engine.state(), pool.failed()),
        (PoolState::Running, vec![false, false, true])
    );
    assert_eq!(pool.read_all(volume, blocks, 1), right);
    pool.verify(more, 2_000, 4);
    pool.fill(volume, blocks, 2);
    pool.verify(volume, blocks, 2);
    pool.remove(2);
    pool.settle();
    assert_eq!(pool.devices().len(), 2);
    let mut pool = pool.kill();
    pool.verify(volume, blocks, 2);
}

#[test]
fn what_cannot_be_read_of_a_failed_device_keeps_it_in_the_pool() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB, 48 * MIB]);
    let volume = pool.create(40 * MIB);
    let blocks = 16 * MIB / BLOCK_SIZE as u64;
    pool.fill(volume, blocks, 1);
    pool.settle();
    pool.disks.0[1] = None;
    let more = pool.create_named("more", 20 * MIB);
    pool.fill(more, 2_000, 4);
    pool.remove(1);
    pool.settle();
    let device = pool.devices()[1];
    assert!(device.failed && device.leaving && device.stuck, "{device:?}");
    pool.fill(volume, blocks, 2);
    pool.fill(more, 2_000, 5);
    pool.settle();
    assert_eq!(pool.devices().len(), 2);
    pool.verify(volume, blocks, 2);
}

/// The checkpoint that follows a failure states all that was sealed there: also what was about to be.
#[test]
fn after_the_checkpoint_that_follows_its_failure_a_device_is_not_needed() {
    for first in 245..256 {
        // Nearly all segments lie on the second.
        let mut pool = Pool::format(&[40 * MIB, 240 * MIB]);
        let volume = pool.create(20 * MIB);
        pool.settle();
        let disk = pool.disks.get_mut(1).unwrap();
        disk.fail_from = Some(disk.writes + first);
        let mut blocks = 0;
        // Each turn flushes what the one before has written.
        while !pool.failed()[1] {
            blocks += u64::from(pool.submit(volume, blocks, 1));
            pool.now_ns += 2_000_000_000;
            pool.turn();
            pool.take_answers();
        }
        let before = pool.engine.counters().compactions;
        for turns in 0.. {
            pool.turn();
            pool.take_answers();
            if pool.engine.counters().compactions > before {
                break;
            }
            assert!(turns < 100_000, "no checkpoint after write {first}");
        }
        // Nor are copies of summaries kept any longer: a pool as small as this is now makes none.
        let mut disks = pool.disks;
        let there: HashSet<_> = disks.0[1].take().unwrap().blocks.into_values().collect();
        disks.get_mut(0).unwrap().blocks.retain(|_, block| !there.contains(block));
        if let Err(error) = Pool::try_open(disks, &OPEN) {
            panic!("write {first} failed: {error}");
        }
    }
}

/// The summary of a segment may have been written, all of it, when writes that it tells of failed. They did not
/// happen, and a snapshot that was taken behind them has what was there before.
#[test]
fn what_did_not_happen_is_left_out_of_a_map_from_summaries() {
    // As many blocks as a segment has.
    let full = 252;
    let mut checked = 0;
    for already in full - 8..=full {
        let mut pool = Pool::format(&[40 * MIB, 240 * MIB]);
        let volume = pool.create(20 * MIB);
        pool.fill(volume, 252, 1);
        pool.fill(volume, already, 1);
        assert_eq!(pool.flush(volume), Ok(()));
        pool.version_fails = Some((1, 9));
        while !pool.submit(volume, 5, 9) {
            pool.turn();
        }
        let tag = pool.next_tag();
        let spec = SnapshotSpec { volume, uuid: [2; 16], name: "v@s" };
        let taken = pool.engine.snapshot_volumes(&mut pool.arena, tag, &[spec]);
        assert_eq!(taken.map(drop), Ok(()));
        assert!(pool.submit(volume, 6, 9));
        pool.settle();
        pool.take_answers();
        assert_eq!(pool.failed(), [false, true]);
        let mut disks = Devices(pool.disks.0.clone());
        // A segment that has no summary at all can't be told of by it.
        let Ok(report) = check(&mut disks, &mut |_, _| {}) else { continue };
        checked += 1;
        assert_eq!(report.disagreement, None, "{already} blocks before");
    }
    assert!(checked > 0);
}

/// Blocks of which a page of the map that can't be read would have to tell whether they count.
#[test]
fn a_device_that_cannot_be_emptied_for_want_of_the_map_is_left_in_peace() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB, 48 * MIB]);
    let volume = pool.create(40 * MIB);
    let blocks = 24 * MIB / BLOCK_SIZE as u64;
    pool.fill(volume, blocks, 1);
    let disks = pool.stop();
    // So little that nearly all of the map is away.
    let options = OpenOptions { map_memory: Some(16 << 10), ..OPEN };
    let mut pool = Pool::try_open(disks, &options).unwrap();
    pool.settle();
    let mut flipped = 0;
    for disk in pool.disks.0.iter_mut().flatten() {
        let is_page =
            |(&at, bytes): (&u64, &Arc<[u8; BLOCK_SIZE]>)| bytes.starts_with(b"LSBL").then_some(at);
        let pages: Vec<u64> = disk.blocks.iter().filter_map(is_page).collect();
        pages.iter().for_each(|&page| disk.flip(page, 100, 1));
        flipped += pages.len();
    }
    assert!(flipped > 10);
    let tag = pool.next_tag();
    pool.engine.remove_device(tag, 1).unwrap();
    pool.settle();
    pool.take_answers();
    let device = pool.devices()[1];
    assert!(device.leaving && device.stuck, "{device:?}");
    // Blocks were moved as far as that goes, and nothing is tried over and over.
    let reads = pool.disks.0.iter().flatten().map(|disk| disk.reads).sum::<u64>();
    pool.settle();
    assert_eq!(pool.disks.0.iter().flatten().map(|disk| disk.reads).sum::<u64>(), reads);
}

/// What was not sealed on a failed device holds the journal's tail until a checkpoint counts, however long that takes.
#[test]
fn a_journal_that_a_failed_device_holds_has_slots_left_when_the_checkpoint_ends() {
    // Nearly all segments lie on the second.
    let mut pool = Pool::format(&[40 * MIB, 240 * MIB]);
    let volume = pool.create(24 * MIB);
    pool.fill(volume, 300, 1);
    // Into a segment of its own, which is not filled for long.
    pool.fill(volume, 8, 2);
    let mut next = 300;
    while next < 1_300 {
        next += u64::from(pool.submit(volume, next, 1));
        pool.turn();
        pool.take_answers();
    }
    pool.holds = true;
    pool.fail_writes(1);
    for _ in 0..5_000 {
        next += u64::from(pool.submit(volume, next, 1));
        pool.now_ns += 1_000_000;
        pool.turn();
        pool.take_answers();
    }
    assert_eq!(pool.failed(), [false, true]);
    assert!(!pool.held.is_empty() && next < 2_500, "the journal is not full after {next} blocks");
    pool.holds = false;
    for io in std::mem::take(&mut pool.held) {
        pool.perform(io);
    }
    pool.settle();
    pool.take_answers();
    assert_eq!(pool.flush(volume), Ok(()));
    pool.fill(volume, 300, 3);
    pool.verify(volume, 300, 3);
}

#[test]
fn a_pool_fails_with_the_device_of_its_journal() {
    let mut pool = Pool::format(&[48 * MIB, 48 * MIB, 48 * MIB]);
    let volume = pool.create(40 * MIB);
    pool.fill(volume, 1_000, 1);
    pool.settle();
    pool.fail_writes(0);
    let tag = pool.next_tag();
    let data = [2; BLOCK_SIZE];
    let (arena, engine) = (&mut pool.arena, &mut pool.engine);
    engine.write(arena, tag, volume, 0, &data, Durability::Completed).unwrap();
    assert_eq!(pool.answer(tag), Err(IoFault::Device));
    assert!(matches!(pool.engine.state(), PoolState::Failed(_)));
    assert_eq!(pool.failed(), [true, false, false]);
    pool.verify(volume, 1_000, 1);
}

/// A table like that is nobody's doing but an attacker's: opened, what is logged would go nowhere.
#[test]
fn no_superblock_names_the_device_of_the_journal_as_failed() {
    let mut disks = disks(&[48 * MIB, 48 * MIB]);
    Engine::format(&mut disks, &OPTIONS).unwrap();
    let mut bytes = [0; BLOCK_SIZE];
    disks.read_at(join_offset(0, SLOTS[0][0]), &mut bytes).unwrap();
    let mut superblock = Superblock::decode(SLOTS[0][0], &bytes).unwrap();
    let mut geometry = |failed: [bool; 2]| {
        for (device, failed) in failed.into_iter().enumerate() {
            let row = superblock.devices.0[device].as_mut().unwrap();
            row.failed = failed.then_some(Failure { from: 1, errno: 5 });
        }
        Geometry::of(&superblock, |_| Some(48 * MIB))
    };
    geometry([false, false]).unwrap();
    geometry([false, true]).unwrap();
    geometry([true, false]).unwrap_err();
    geometry([true, true]).unwrap_err();
}
