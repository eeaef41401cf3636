//! Devices through the ring and through the blocking face: files on disk and in memory, a loop
//! device where the test may make one, exclusion, refusals.

mod common;

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use flagstone_block::{BlockIo, Buffers, DeviceCommand, DeviceError, DeviceIo, IoToken, ReadAt};
use flagstone_ring::{
    Allocation, Backing, CreateFileError, Device, DeviceKind, DeviceOpenError, Event, OpenMode,
    SyncDevice,
};

const MIB: u64 = 1 << 20;

/// Writes, flushes and reads back through a ring, many commands at once.
fn exercise(device: &Device) {
    let mut ring = ring(2048);
    let id = ring.add_device(device).expect("room for a device");
    let mut expected = Vec::new();
    let mut in_flight = HashSet::new();
    for index in 0..100_u64 {
        let blocks = 1 + (index % 9) as u32;
        let buffer = ring.buffers().alloc(blocks).expect("the arena is large enough");
        pattern(ring.buffers().bytes_mut(buffer), index + 1);
        let offset = index * 10 * 4096;
        ring.submit_device(
            id,
            DeviceIo { device: 0, token: IoToken(index), command: write(offset, buffer) },
        );
        in_flight.insert(index);
        expected.push((offset, buffer));
    }
    assert_eq!(ring.device_in_flight(id), 100);
    while !in_flight.is_empty() {
        match event(&mut ring) {
            Event::Device { device, token, result } if device == id => {
                assert_eq!(result, Ok(()));
                assert!(in_flight.remove(&token.0), "one event per command");
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(run(&mut ring, id, DeviceCommand::Flush), Ok(()));
    assert_eq!(ring.device_commands_in_flight(), 0);
    for (index, &(offset, written)) in expected.iter().enumerate() {
        let buffer = ring.buffers().alloc(written.blocks).expect("the arena is large enough");
        assert_eq!(run(&mut ring, id, read(offset, buffer)), Ok(()));
        assert_eq!(
            ring.buffers_ref().bytes(buffer),
            patterned(written.len(), index as u64 + 1),
            "at {offset}"
        );
        ring.buffers().free(buffer);
    }
    for (_, buffer) in expected {
        ring.buffers().free(buffer);
    }
    assert_eq!(ring.buffers_ref().free_blocks(), 2048);
    assert_eq!(ring.counters().strays, 0);
}

/// The same device through the blocking face, with slices of every alignment.
fn exercise_blocking(device: Device) {
    let size = device.size();
    let mut io = SyncDevice::new(device);
    let data = patterned(3 * MIB as usize + 4096 + 1, 42);
    io.write_at(4096, &data[1..]).expect("in range");
    io.flush().expect("a device can be flushed");
    let mut back = vec![0; data.len()];
    io.read_at(4096, &mut back[1..]).expect("in range");
    assert_eq!(back[1..], data[1..]);

    let mut pieces: Vec<Vec<u8>> =
        (0..200_usize).map(|index| vec![0; 4096 * (1 + index % 50)]).collect();
    let mut reads: Vec<ReadAt<'_>> = pieces
        .iter_mut()
        .enumerate()
        .map(|(index, into)| ReadAt { offset: 4096 * (1 + index as u64), into })
        .collect();
    let beyond = 77;
    reads[beyond].offset = size;
    let mut results = Vec::new();
    io.read_many(&mut reads, &mut results);
    assert_eq!(results.len(), 200);
    for (index, result) in results.iter().enumerate() {
        if index == beyond {
            assert_eq!(*result, Err(DeviceError::OutOfRange { offset: size }));
            continue;
        }
        assert_eq!(*result, Ok(()));
        let from = 1 + index * 4096;
        assert_eq!(pieces[index], data[from..from + pieces[index].len()], "read {index}");
    }

    for (offset, len) in
        [(size, 4096), (size - 4096, 8192), (1, 4096), (0, 100), (u64::MAX - 1, 4096)]
    {
        let mut into = vec![0; len];
        let refused = Err(DeviceError::OutOfRange { offset });
        assert_eq!(io.read_at(offset, &mut into), refused);
        assert_eq!(io.write_at(offset, &into), refused);
    }
}

fn exercise_file(path: &Path) {
    let device = file(path, 8 * MIB);
    assert_eq!(device.kind(), DeviceKind::File);
    assert_eq!(device.size(), 8 * MIB);
    assert_eq!(device.is_direct(), device.buffered_because().is_none());
    println!("{}: direct {}", path.display(), device.is_direct());
    exercise(&device);
    exercise_blocking(device);
}

#[test]
fn a_file_on_disk() {
    let directory = disk_directory();
    exercise_file(&directory.path().join("pool"));
}

#[test]
fn a_file_in_memory() {
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else {
        println!("SKIPPED: no /dev/shm here");
        return;
    };
    exercise_file(&directory.path().join("pool"));
}

/// A discarded range reads as zeroes, takes no space and may be written again; what lies around it
/// stays. Returns what the device said, if it can't discard.
fn exercise_discard(device: &Device, backing: &Path) -> Option<DeviceError> {
    let mut ring = ring(1024);
    let id = ring.add_device(device).expect("room for a device");
    let buffer = ring.buffers().alloc(256).expect("the arena is large enough");
    pattern(ring.buffers().bytes_mut(buffer), 5);
    for mib in 0..4 {
        assert_eq!(run(&mut ring, id, write(mib * MIB, buffer)), Ok(()));
    }
    assert_eq!(run(&mut ring, id, DeviceCommand::Flush), Ok(()));
    let allocated = || std::fs::metadata(backing).expect("it is there").blocks() * 512;
    let before = allocated();
    let discard = DeviceCommand::Discard { offset: MIB, bytes: 2 * MIB };
    if let Err(error) = run(&mut ring, id, discard) {
        return Some(error);
    }
    assert!(before - allocated() >= 2 * MIB, "{before} {}", allocated());
    for (mib, stays) in [(0, true), (1, false), (2, false), (3, true)] {
        ring.buffers().bytes_mut(buffer).fill(7);
        assert_eq!(run(&mut ring, id, read(mib * MIB, buffer)), Ok(()));
        let want = if stays { patterned(MIB as usize, 5) } else { vec![0; MIB as usize] };
        assert!(ring.buffers_ref().bytes(buffer) == want, "MiB {mib}");
    }
    assert_eq!(run(&mut ring, id, write(MIB, buffer)), Ok(()));
    let beyond = DeviceCommand::Discard { offset: device.size() - MIB, bytes: 2 * MIB };
    let refused = run(&mut ring, id, beyond);
    assert!(matches!(refused, Err(DeviceError::OutOfRange { .. })), "{refused:?}");
    assert_eq!(ring.device_commands_in_flight(), 0);
    None
}

#[test]
fn discards_give_space_back() {
    let directory = disk_directory();
    let path = directory.path().join("pool");
    let device = file(&path, 8 * MIB);
    let said = exercise_discard(&device, &path);
    assert!(said.is_none(), "{said:?}: the build directory is on a file system with holes");
    drop(device);
    let device = Device::open(&path, OpenMode::Exclusive).expect("a file");
    assert!(device.discard_pays(), "it has holes now");
    drop(device);
    let Some(disk) = Loop::over(&path, 4096) else {
        println!("SKIPPED: this user can't make a loop device");
        return;
    };
    let device = Device::open(&disk.0, OpenMode::Exclusive).expect("a fresh loop device");
    let said = exercise_discard(&device, &path);
    println!("loop device: pays {}, said {said:?}", device.discard_pays());
    assert_eq!(said.is_none(), device.discard_pays());
}

/// A loop device over a file, detached when the test ends.
struct Loop(PathBuf);

impl Loop {
    fn over(path: &Path, sector_bytes: u32) -> Option<Self> {
        let sector = sector_bytes.to_string();
        let arguments = ["--find", "--show", "--sector-size", sector.as_str()];
        let output = Command::new("losetup").args(arguments).arg(path).output().ok()?;
        let name = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| Self(PathBuf::from(name.trim())))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_block_device() {
    let directory = disk_directory();
    let path = directory.path().join("disk");
    drop(file(&path, 8 * MIB));
    for sector_bytes in [512, 4096] {
        let Some(disk) = Loop::over(&path, sector_bytes) else {
            println!("SKIPPED: this user can't make a loop device");
            return;
        };
        let device = Device::open(&disk.0, OpenMode::Exclusive).expect("a fresh loop device");
        assert_eq!(device.kind(), DeviceKind::Block);
        assert_eq!(device.size(), 8 * MIB);
        assert_eq!(device.logical_block_bytes(), sector_bytes);
        assert!(device.is_direct());
        assert!(matches!(
            Device::open(&disk.0, OpenMode::Exclusive),
            Err(DeviceOpenError::InUse { .. })
        ));
        exercise(&device);
        exercise_blocking(device);
    }
}

#[test]
fn one_owner_or_several_readers() {
    let directory = disk_directory();
    let path = directory.path().join("pool");
    let other_name = directory.path().join("hard-link");
    let owner = file(&path, MIB);
    std::fs::hard_link(&path, &other_name).expect("same file system");
    for name in [&path, &other_name] {
        for mode in [OpenMode::Exclusive, OpenMode::ReadOnly] {
            let refused = Device::open(name, mode).expect_err("the owner has it");
            assert!(matches!(refused, DeviceOpenError::InUse { .. }));
            assert!(refused.to_string().contains("stop that first"), "{refused}");
        }
    }
    // A ring keeps the lock after the device's own handle is gone.
    let mut ring = ring(16);
    ring.add_device(&owner).expect("room for a device");
    drop(owner);
    assert!(matches!(Device::open(&path, OpenMode::Exclusive), Err(DeviceOpenError::InUse { .. })));
    drop(ring);
    let reader = Device::open(&path, OpenMode::ReadOnly).expect("nobody has it");
    assert!(reader.is_read_only());
    let second = Device::open(&path, OpenMode::ReadOnly).expect("readers share");
    assert!(matches!(Device::open(&path, OpenMode::Exclusive), Err(DeviceOpenError::InUse { .. })));
    drop((reader, second));
    Device::open(&path, OpenMode::Exclusive).expect("nobody has it any more");
}

/// What is in use is asked for again, for the sake of holders that go away by themselves; but not for good.
#[test]
fn an_owner_is_waited_for_a_moment_and_no_longer() {
    let directory = disk_directory();
    let path = directory.path().join("pool");
    drop(file(&path, MIB));
    let disk = Loop::over(&path, 4096);
    if disk.is_none() {
        println!("SKIPPED: this user can't make a loop device");
    }
    // A file is locked, a block device claimed besides.
    for path in [Some(&path), disk.as_ref().map(|disk| &disk.0)].into_iter().flatten() {
        let mut owner = Device::open(path, OpenMode::Exclusive).expect("nobody has it");
        for mode in [OpenMode::Exclusive, OpenMode::ReadOnly] {
            let start = Instant::now();
            let leaving = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                drop(owner);
            });
            let opened = Device::open(path, mode).expect("its owner goes away");
            // Not before: whoever gets it has it alone.
            assert!(start.elapsed() >= Duration::from_millis(100), "{:?}", start.elapsed());
            leaving.join().expect("no panic");
            drop(opened);
            owner = Device::open(path, OpenMode::Exclusive).expect("nobody has it any more");
        }
        let start = Instant::now();
        let refused = Device::open(path, OpenMode::Exclusive).expect_err("the owner stays");
        let waited = start.elapsed();
        assert!(matches!(&refused, DeviceOpenError::InUse { path: told } if told == path));
        assert!(waited >= Duration::from_secs(1) && waited < Duration::from_secs(5), "{waited:?}");
        drop(owner);
    }
}

/// Names the pool for the process that the next test starts and kills.
const VICTIM_PATH: &str = "FLAGSTONE_RING_TEST_VICTIM";

/// Not a test by itself: what the process to be killed does.
#[test]
fn victim() {
    let Some(path) = std::env::var_os(VICTIM_PATH) else { return };
    let device = Device::open(PathBuf::from(path), OpenMode::Exclusive).expect("nobody has it");
    let mut ring = ring(1024);
    let id = ring.add_device(&device).expect("room for a device");
    let buffers: Vec<_> =
        (0..1024).map(|_| ring.buffers().alloc(1).expect("1024 blocks")).collect();
    for index in 0..1024_u64 {
        let command = write(index % 256 * 4096, buffers[index as usize]);
        ring.submit_device(id, DeviceIo { device: 0, token: IoToken(index), command });
    }
    let mut announced = false;
    loop {
        let Event::Device { token, result: Ok(()), .. } = event(&mut ring) else { return };
        if !std::mem::replace(&mut announced, true) {
            println!("writing");
        }
        let command = write(token.0 % 256 * 4096, buffers[token.0 as usize]);
        ring.submit_device(id, DeviceIo { device: 0, token, command });
    }
}

#[test]
fn a_killed_owner_lets_go_at_once() {
    let directory = disk_directory();
    let path = directory.path().join("pool");
    drop(file(&path, MIB));
    for _ in 0..5 {
        let mut victim = Command::new(std::env::current_exe().expect("this test's own program"))
            .args(["--exact", "victim", "--nocapture"])
            .env(VICTIM_PATH, &path)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it can be started");
        let output = victim.stdout.take().expect("piped");
        let started =
            BufReader::new(output).lines().any(|line| line.is_ok_and(|l| l.ends_with("writing")));
        assert!(started, "the victim ended early");
        victim.kill().expect("it runs");
        victim.wait().expect("it was killed");
        drop(Device::open(&path, OpenMode::Exclusive).expect("its owner is dead"));
    }
}

#[test]
fn a_write_through_a_read_only_device_is_an_error() {
    let directory = disk_directory();
    let path = directory.path().join("pool");
    drop(file(&path, MIB));
    let device = Device::open(&path, OpenMode::ReadOnly).expect("nobody has it");
    let mut ring = ring(16);
    let id = ring.add_device(&device).expect("room for a device");
    let buffer = ring.buffers().alloc(1).expect("room for a block");
    let result = run(&mut ring, id, write(0, buffer));
    assert_eq!(result, Err(DeviceError::Os { errno: 9 /* EBADF */ }));
    let mut io = SyncDevice::new(device);
    assert_eq!(io.write_at(0, &[0; 4096]), Err(DeviceError::Os { errno: 9 }));
}

#[test]
fn what_is_no_device_is_refused_by_kind() {
    let directory = disk_directory();
    let missing = directory.path().join("missing");
    assert!(matches!(
        Device::open(&missing, OpenMode::Exclusive),
        Err(DeviceOpenError::NotFound { .. })
    ));
    for path in [directory.path(), Path::new("/dev/null")] {
        assert!(matches!(
            Device::open(path, OpenMode::Exclusive),
            Err(DeviceOpenError::WrongType { .. })
        ));
    }
    let empty = directory.path().join("empty");
    std::fs::write(&empty, b"less than a block").expect("a small file");
    assert_eq!(Device::open(&empty, OpenMode::Exclusive).expect("a regular file").size(), 0);
}

#[test]
fn creation_is_complete_or_leaves_nothing() {
    let directory = disk_directory();
    let path = directory.path().join("pool");
    for size in [0, 4095, 4097] {
        let refused = Device::create_file(&path, size, Allocation::Sparse, &mut |_, _| {});
        assert!(matches!(refused, Err(CreateFileError::BadSize { .. })));
    }
    let mut reports = Vec::new();
    let mut progress = |done, total| reports.push((done, total));
    let device = Device::create_file(&path, 9 * MIB, Allocation::Preallocated, &mut progress)
        .expect("9 MiB fit");
    assert_eq!(device.backing(), Backing::Allocated);
    assert_eq!(reports, [(4 * MIB, 9 * MIB), (8 * MIB, 9 * MIB), (9 * MIB, 9 * MIB)]);
    let metadata = std::fs::metadata(&path).expect("it exists");
    assert!(metadata.blocks() * 512 >= 9 * MIB);
    assert_eq!(metadata.mode() & 0o777, 0o600);
    drop(device);
    let again = Device::create_file(&path, MIB, Allocation::Sparse, &mut |_, _| {});
    assert!(matches!(again, Err(CreateFileError::AlreadyExists { .. })));

    let sparse = file(&directory.path().join("sparse"), 64 * MIB);
    assert_eq!(sparse.backing(), Backing::Sparse);

    let huge = directory.path().join("huge");
    let refused = Device::create_file(&huge, 1 << 50, Allocation::Preallocated, &mut |_, _| {});
    assert!(matches!(refused, Err(CreateFileError::NoSpace { .. })), "{refused:?}");
    assert!(!huge.exists());
}

#[test]
fn a_short_transfer_never_looks_like_success() {
    let directory = disk_directory();
    let path = directory.path().join("pool");
    let device = file(&path, MIB);
    let mut ring = ring(256);
    let id = ring.add_device(&device).expect("room for a device");
    // The file shrinks under the device, as when someone truncates it.
    let shrunk = std::fs::OpenOptions::new().write(true).open(&path).expect("it exists");
    shrunk.set_len(MIB - 8 * 4096).expect("shorter");
    let buffer = ring.buffers().alloc(16).expect("room for 16 blocks");
    assert_eq!(
        run(&mut ring, id, read(MIB - 16 * 4096, buffer)),
        Err(DeviceError::Short { done: 8 * 4096, wanted: 16 * 4096 })
    );
    assert_eq!(
        run(&mut ring, id, read(MIB - 4 * 4096, buffer.part(0, 4))),
        Err(DeviceError::Short { done: 0, wanted: 4 * 4096 })
    );
    let mut io = SyncDevice::new(device);
    let mut into = vec![0; 16 * 4096];
    assert_eq!(
        io.read_at(MIB - 16 * 4096, &mut into),
        Err(DeviceError::Short { done: 8 * 4096, wanted: 16 * 4096 })
    );
}

#[test]
fn commands_outside_the_device_never_reach_it() {
    let directory = disk_directory();
    let device = file(&directory.path().join("pool"), MIB);
    let mut ring = ring(16);
    let id = ring.add_device(&device).expect("room for a device");
    let buffer = ring.buffers().alloc(2).expect("room for 2 blocks");
    for offset in [MIB, MIB - 4096, u64::MAX - 4095, 1] {
        for command in [read(offset, buffer), write(offset, buffer)] {
            assert_eq!(run(&mut ring, id, command), Err(DeviceError::OutOfRange { offset }));
        }
    }
    ring.buffers().free(buffer);
}

#[test]
fn more_commands_than_the_queue_has_room_for_are_all_carried_out() {
    let directory = disk_directory();
    let device = file(&directory.path().join("pool"), 16 * MIB);
    let mut ring = ring(4096);
    let id = ring.add_device(&device).expect("room for a device");
    let mut buffers = Vec::new();
    for index in 0..4000_u64 {
        let buffer = ring.buffers().alloc(1).expect("4096 blocks");
        pattern(ring.buffers().bytes_mut(buffer), index);
        let command = write(index * 4096, buffer);
        ring.submit_device(id, DeviceIo { device: 0, token: IoToken(index), command });
        buffers.push(buffer);
    }
    let mut seen = vec![false; 4000];
    for _ in 0..4000 {
        match event(&mut ring) {
            Event::Device { token, result: Ok(()), .. } => {
                assert!(!std::mem::replace(&mut seen[token.0 as usize], true));
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(ring.device_commands_in_flight(), 0);
    for index in [0, 1, 1999, 3999_u64] {
        let buffer = buffers[index as usize];
        ring.buffers().bytes_mut(buffer).fill(0);
        assert_eq!(run(&mut ring, id, read(index * 4096, buffer)), Ok(()));
        assert_eq!(ring.buffers_ref().bytes(buffer), patterned(4096, index));
    }
}
