//! The library against a vector, and what it does at its edges.

use std::path::PathBuf;

use super::block_on::block_on;
use super::{CreateOptions, OpenOptions, Pool};
use crate::IoError;
use crate::node::{ControlError, DiffExtent, DiffKind, OnFull, SettingsChange, Shrink};

const MIB: u64 = 1 << 20;

struct Site {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Site {
    fn new(size_bytes: u64) -> (Self, Pool) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("pool");
        let options = CreateOptions { size_bytes: Some(size_bytes), ..CreateOptions::default() };
        let pool = Pool::create(&path, &options).expect("nothing is there");
        (Self { _directory: directory, path }, pool)
    }

    fn open(&self) -> Pool {
        Pool::open(&self.path, &OpenOptions::default()).expect("it was closed")
    }
}

/// A small generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (seed.wrapping_mul(31).wrapping_add(at / 7) ^ at) as u8).collect()
}

fn read(volume: &super::Volume, offset: u64, len: u64) -> Vec<u8> {
    let mut into = vec![0; len as usize];
    volume.read(offset, &mut into).expect("it lies in the volume");
    into
}

#[test]
fn a_volume_behaves_like_a_vector_through_closing_and_opening() {
    const SIZE: u64 = 4 * MIB;
    let (site, mut pool) = Site::new(256 * MIB);
    let mut volume = pool.create_volume("v", SIZE).expect("there is room");
    let mut model = vec![0_u8; SIZE as usize];
    let mut random = Random(1);
    for round in 0..1200 {
        let mut offset = random.below(SIZE);
        let bound = [500, 5000, 50_000, 1_000_000][random.below(4) as usize];
        let mut len = 1 + random.below(bound);
        if random.below(2) == 0 {
            offset &= !4095;
            len = len.next_multiple_of(4096);
        }
        let len = len.min(SIZE - offset);
        let range = offset as usize..(offset + len) as usize;
        match random.below(10) {
            0..3 => {
                let data = pattern(round, len as usize);
                model[range].copy_from_slice(&data);
                volume.write(offset, &data).expect("there is room");
            }
            3 => {
                let data = pattern(round, len as usize);
                model[range].copy_from_slice(&data);
                let back = block_on(volume.write_async(offset, data.clone()));
                assert_eq!(back, Ok(data));
            }
            4 => {
                model[range].fill(0);
                volume.write_zeroes(offset, len).expect("it lies in the volume");
            }
            5 => {
                volume.discard(offset, len).expect("it lies in the volume");
                let (first, end) = (offset.next_multiple_of(4096), (offset + len) & !4095);
                if first < end {
                    model[first as usize..end as usize].fill(0);
                }
            }
            6 => volume.flush().expect("a file can be synced"),
            7 if round % 5 == 0 => {
                drop(volume);
                // Both ways of closing it.
                if round % 2 == 0 {
                    pool.close().expect("a clean stop");
                }
                drop(pool);
                pool = site.open();
                volume = pool.volume("v").expect("it was made");
                assert_eq!(volume.size(), SIZE);
            }
            _ => assert!(read(&volume, offset, len) == model[range], "round {round}"),
        }
    }
    assert!(read(&volume, 0, SIZE) == model);
}

#[test]
fn many_threads_and_futures_share_a_pool() {
    let (_site, pool) = Site::new(256 * MIB);
    let volume = pool.create_volume("v", 64 * MIB).expect("there is room");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let volume = volume.clone();
            scope.spawn(move || {
                // More than may be under way at a time; all are started before any is waited for.
                let base = thread * 16 * MIB;
                let offset = |i: u64| base + i * 4096;
                let runtime = tokio::runtime::Builder::new_current_thread().build();
                let runtime = runtime.expect("a runtime without drivers");
                runtime.block_on(async {
                    let writes: Vec<_> = (0..800)
                        .map(|i| volume.write_async(offset(i), pattern(base + i, 4096)))
                        .map(tokio::spawn)
                        .collect();
                    for write in writes {
                        write.await.expect("no panic").expect("there is room");
                    }
                    volume.flush_async().await.expect("a file can be synced");
                    let reads: Vec<_> = (0..800)
                        .map(|i| volume.read_async(offset(i), vec![0; 4096]))
                        .map(tokio::spawn)
                        .collect();
                    for (i, read) in reads.into_iter().enumerate() {
                        let data = read.await.expect("no panic").expect("it was written");
                        assert!(data == pattern(base + i as u64, 4096), "block {i}");
                    }
                });
            });
        }
    });
    assert_eq!(pool.volumes().expect("it is open")[0].mapped_bytes, 4 * 800 * 4096);
}

#[test]
fn a_request_is_larger_than_all_memory() {
    let (_site, pool) = Site::new(512 * MIB);
    let volume = pool.create_volume("v", 256 * MIB).expect("there is room");
    let data = pattern(3, 100 << 20);
    volume.write(5000, &data).expect("there is room");
    assert!(read(&volume, 5000, 100 << 20) == data);
    volume.discard(0, 256 * MIB).expect("it lies in the volume");
    assert!(read(&volume, 0, 256 * MIB).iter().all(|&byte| byte == 0));
}

#[test]
fn damage_is_told_with_its_place_and_spares_the_rest() {
    let (site, pool) = Site::new(64 * MIB);
    let volume = pool.create_volume("v", 4 * MIB).expect("there is room");
    let data: Vec<u8> = (0..256_u64).flat_map(|i| pattern(i * 977, 4096)).collect();
    volume.write(0, &data).expect("there is room");
    drop((volume, pool));
    let mut device = std::fs::read(&site.path).expect("a file of our own");
    let block = &data[100 * 4096..101 * 4096];
    let at = device.chunks_exact(4096).position(|chunk| chunk == block).expect("it was written");
    device[at * 4096 + 17] ^= 1;
    std::fs::write(&site.path, &device).expect("a file of our own");

    let pool = site.open();
    let volume = pool.volume("v").expect("it was made");
    let mut into = vec![7; MIB as usize];
    assert_eq!(volume.read(0, &mut into), Err(IoError::Damaged { offset: 100 * 4096 }));
    assert!(into.iter().all(|&byte| byte == 7), "nothing is handed out");
    assert!(read(&volume, 0, 100 * 4096) == data[..100 * 4096]);
    assert!(read(&volume, 101 * 4096, 50_000) == data[101 * 4096..][..50_000]);
    // Written anew, it is whole again.
    volume.write(100 * 4096, block).expect("there is room");
    assert!(read(&volume, 0, MIB) == data);
}

#[test]
fn futures_that_are_dropped_half_way_harm_nobody() {
    let (_site, pool) = Site::new(256 * MIB);
    let volume = pool.create_volume("v", 64 * MIB).expect("there is room");
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut refused = 0;
    for i in 0..5000 {
        let mut write = Box::pin(volume.write_async(i % 1000 * 4096, pattern(i % 1000, 4096)));
        match write.as_mut().poll(&mut context) {
            std::task::Poll::Ready(Err(IoError::Busy)) => refused += 1,
            // The reactor can be that quick.
            std::task::Poll::Ready(outcome) => drop(outcome.expect("there is room")),
            std::task::Poll::Pending => {}
        }
    }
    assert!(refused < 5000);
    // One that was waited for comes after all that were taken before it.
    while let Err(error) = volume.flush() {
        assert_eq!(error, IoError::Busy);
    }
    volume.write(1000 * 4096, b"x").expect("there is room");
    for i in 0..1000 {
        let found = read(&volume, i * 4096, 4096);
        assert!(found == pattern(i, 4096) || found == [0; 4096], "block {i}");
    }
    pool.close().expect("a clean stop");
}

#[test]
fn a_close_under_load_loses_nothing_and_ends() {
    let (site, mut pool) = Site::new(256 * MIB);
    let mut written = [0_u64; 4];
    for _ in 0..3 {
        let volume = pool.create_volume("v", 16 * MIB).expect("there is room");
        std::thread::scope(|scope| {
            let (told, first_written) = std::sync::mpsc::channel();
            for (thread, written) in written.iter_mut().enumerate() {
                let (volume, told) = (volume.clone(), told.clone());
                scope.spawn(move || {
                    loop {
                        let number = *written + 1;
                        let block = number.to_le_bytes().repeat(512);
                        match volume.write(thread as u64 * 4096, &block) {
                            Ok(()) => *written = number,
                            Err(error) => return assert_eq!(error, IoError::Closed),
                        }
                        // Nobody listens after the first ones.
                        let _ = told.send(());
                    }
                });
            }
            for _ in 0..100 {
                first_written.recv().expect("they write");
            }
            std::thread::scope(|closers| {
                for _ in 0..2 {
                    closers.spawn(|| pool.close().expect("a clean stop"));
                }
            });
        });
        pool = site.open();
        let volume = pool.volume("v").expect("it was made");
        for (thread, written) in written.iter_mut().enumerate() {
            let block = read(&volume, thread as u64 * 4096, 8);
            let found = u64::from_le_bytes(block.try_into().expect("8 bytes"));
            // One that was under way may have happened.
            assert!(found == *written || found == *written + 1, "{found} of {written}");
            *written = found;
        }
    }
}

#[test]
fn edges_are_errors_and_nothing_is_nothing() {
    let (site, pool) = Site::new(64 * MIB);
    let volume = pool.create_volume("v", MIB).expect("there is room");
    assert_eq!(volume.write(MIB - 10, &[1; 11]), Err(IoError::OutOfRange));
    assert_eq!(volume.read(u64::MAX - 4, &mut [0; 10]), Err(IoError::OutOfRange));
    assert_eq!(volume.discard(0, MIB + 1), Err(IoError::OutOfRange));
    assert_eq!(volume.write_zeroes(MIB, u64::MAX), Err(IoError::OutOfRange));
    assert_eq!(volume.write(MIB - 10, &[1; 10]), Ok(()));
    assert_eq!((volume.write(0, &[]), volume.read(0, &mut []), volume.discard(0, 0)), {
        (Ok(()), Ok(()), Ok(()))
    });

    pool.resize_volume("v", 2 * MIB, Shrink::Never).expect("there is room");
    assert_eq!(volume.write(MIB, &[2; 4096]), Ok(()));
    assert_eq!((volume.size(), pool.volume("v").expect("it is there").size()), (MIB, 2 * MIB));
    let refused = pool.resize_volume("v", MIB, Shrink::Never).expect_err("not told to");
    assert!(matches!(refused, ControlError::Shrink { .. }));
    let refused = pool.resize_volume("v", MIB, Shrink::Unused).expect_err("it has data there");
    assert_eq!(refused, ControlError::ShrinkHasData { bytes: 4096, size_bytes: MIB });
    pool.resize_volume("v", MIB, Shrink::Discard).expect("it is discarded");
    assert_eq!(volume.write(MIB, &[2; 4096]), Err(IoError::OutOfRange));
    pool.resize_volume("v", 2 * MIB, Shrink::Never).expect("there is room");
    let mut again = [1; 4096];
    assert_eq!((volume.read(MIB, &mut again), again), (Ok(()), [0; 4096]));
    assert_eq!(volume.write(MIB, &[2; 4096]), Ok(()));

    let error = SettingsChange { on_full: Some(OnFull::Error), ..SettingsChange::default() };
    let big = pool.create_volume_with("big", 1 << 40, error).expect("it is thin");
    let full = (0..64).find_map(|i| big.write(i * MIB, &pattern(i, 1 << 20)).err());
    assert_eq!(full, Some(IoError::NoSpace));
    pool.delete_volume("big").expect("it is there");
    assert_eq!(big.write(0, &[0; 4096]), Err(IoError::VolumeDeleted));
    assert!(matches!(pool.volume("big"), Err(ControlError::NoSuchVolume { .. })));

    // A future that was never polled never began.
    drop(volume.write_async(0, vec![9; 4096]));
    let second = Pool::open(&site.path, &OpenOptions::default());
    assert!(second.is_err_and(|error| error.to_string().contains("in use")));
    assert_eq!(read(&volume, 0, 1), [0]);

    pool.close().expect("a clean stop");
    pool.close().expect("it is closed");
    assert_eq!(volume.write(0, &[1; 4096]), Err(IoError::Closed));
    assert_eq!(volume.flush(), Err(IoError::Closed));
    assert_eq!(pool.volumes(), Err(ControlError::Stopping));
    // Its lock is gone though a handle is left.
    let again = site.open();
    assert_eq!(read(&again.volume("v").expect("it was made"), MIB, 3), [2; 3]);
}

#[test]
fn writes_wait_for_space_and_everything_else_goes_on() {
    let (_site, pool) = Site::new(64 * MIB);
    let wait = SettingsChange { on_full: Some(OnFull::Wait), ..SettingsChange::default() };
    let volume = pool.create_volume_with("v", 1 << 40, wait).expect("it is thin");
    let error = SettingsChange { on_full: Some(OnFull::Error), ..SettingsChange::default() };
    pool.set_volume("v", error).expect("it is there");
    let full = (0..64).find(|&i| volume.write(i * MIB, &pattern(i, 1 << 20)).is_err());
    let full = full.expect("more than the device holds");
    pool.set_volume("v", wait).expect("it is there");
    assert_eq!(pool.volumes().expect("it is open")[0].settings.on_full, OnFull::Wait);

    // More than may be under way at a time: some wait for their turn to wait.
    let writers: Vec<_> = (0..8u64)
        .map(|i| {
            let volume = volume.clone();
            std::thread::spawn(move || volume.write((full + 1 + i) * MIB, &pattern(i, 1 << 20)))
        })
        .collect();
    let parted = {
        let volume = volume.clone();
        std::thread::spawn(move || volume.write((full + 20) * MIB + 7, b"part of a block"))
    };
    while pool.status().expect("it is open").waiting < 9 {
        std::thread::yield_now();
    }
    // Reads, flushes and overwrites don't wait.
    assert_eq!(read(&volume, 5 * MIB, MIB), pattern(5, 1 << 20));
    volume.flush().expect("it is open");
    volume.write(5 * MIB, &pattern(99, 1 << 20)).expect("it takes no space");
    let status = pool.status().expect("it is open");
    assert_eq!((status.waiting, status.warning_percent), (9, Some(93)));
    // Nor does what makes room.
    volume.discard(10 * MIB, 20 * MIB).expect("it is open");
    for writer in writers {
        writer.join().expect("no panic").expect("there is room");
    }
    parted.join().expect("no panic").expect("there is room");
    for i in 0..8 {
        assert_eq!(read(&volume, (full + 1 + i) * MIB, MIB), pattern(i, 1 << 20));
    }
    assert_eq!(read(&volume, (full + 20) * MIB + 7, 15), b"part of a block");
    assert_eq!(read(&volume, 5 * MIB, MIB), pattern(99, 1 << 20));
    assert_eq!(pool.status().expect("it is open").waiting, 0);

    // Deleting the volume, or closing the pool, ends the waiting.
    let more = (0..64).map(|i| (full + 64 + i) * MIB).collect::<Vec<_>>();
    let other = pool.create_volume_with("other", 1 << 40, wait).expect("it is thin");
    let wait_for = |volume: &super::Volume| {
        let (volume, more) = (volume.clone(), more.clone());
        let mut writes = more.into_iter().map(move |at| volume.write(at, &pattern(at, 1 << 20)));
        std::thread::spawn(move || writes.find_map(Result::err))
    };
    let (first, second) = (wait_for(&volume), wait_for(&other));
    while pool.status().expect("it is open").waiting < 2 {
        std::thread::yield_now();
    }
    pool.set_volume("other", error).expect("it is there");
    assert_eq!(second.join().expect("no panic"), Some(IoError::NoSpace));
    pool.close().expect("a clean stop");
    assert_eq!(first.join().expect("no panic"), Some(IoError::Closed));
}

#[test]
fn a_writer_that_nobody_makes_room_for_is_told_in_the_end() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let open =
        OpenOptions { full_wait: std::time::Duration::from_millis(300), ..OpenOptions::default() };
    let options = CreateOptions { size_bytes: Some(64 * MIB), open, ..CreateOptions::default() };
    let pool = Pool::create(directory.path().join("pool"), &options).expect("nothing is there");
    let volume = pool.create_volume("v", 1 << 40).expect("it is thin");
    let start = std::time::Instant::now();
    let full = (0..64).find_map(|i| volume.write(i * MIB, &pattern(i, 1 << 20)).err());
    assert_eq!(full, Some(IoError::NoSpace));
    assert!(start.elapsed() >= std::time::Duration::from_millis(300));
    // What is reserved for a volume can't be waited for by another.
    let reserve = SettingsChange { on_full: None, reserved_bytes: Some(MIB) };
    let refused = pool.create_volume_with("w", MIB, reserve).expect_err("it is full");
    assert!(matches!(refused, ControlError::Unbacked { .. }), "{refused}");
    let odd = SettingsChange { on_full: None, reserved_bytes: Some(1 << 41) };
    let refused = pool.set_volume("v", odd).expect_err("more than its size");
    assert!(matches!(refused, ControlError::BadReservation { .. }), "{refused}");
    volume.discard(0, 24 * MIB).expect("it is open");
    pool.create_volume_with("w", MIB, reserve).expect("there is room");
    assert_eq!(pool.status().expect("it is open").reserved_bytes, MIB);
}

#[test]
fn a_scrub_tells_what_is_damaged() {
    let (site, pool) = Site::new(64 * MIB);
    let volume = pool.create_volume("v", 16 * MIB).expect("there is room");
    volume.write(0, &pattern(1, 1 << 20)).expect("there is room");
    volume.flush().expect("it is open");
    assert_eq!(pool.scrub().expect("it is open"), None);
    pool.close().expect("a clean stop");
    // One bit of the data, wherever it lies.
    let mut bytes = std::fs::read(&site.path).expect("it is a file");
    let block = &pattern(1, 1 << 20)[..4096];
    let at = bytes.chunks(4096).position(|found| found == block).expect("it was written");
    bytes[at * 4096 + 7] ^= 1;
    std::fs::write(&site.path, &bytes).expect("it is a file");

    let pool = site.open();
    pool.start_scrub(0).expect("none is under way");
    let report = loop {
        let report = pool.scrub().expect("it is open").expect("one was begun");
        if report.state == crate::ScrubState::Finished {
            break report;
        }
        std::thread::yield_now();
    };
    assert_eq!((report.bad_blocks, report.bad_metadata), (1, 0), "{report:?}");
    assert_eq!(report.findings[0].offset, at as u64 * 4096, "{report:?}");
    pool.cancel_scrub().expect("it is open");
    pool.close().expect("a clean stop");
    assert_eq!(pool.scrub(), Err(ControlError::Stopping));
}

#[test]
fn without_a_device_a_pool_is_read_if_that_is_asked_for() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (path, second) = (directory.path().join("pool"), directory.path().join("second"));
    let more_devices = vec![second.clone()];
    let size_bytes = Some(96 * MIB);
    let options = CreateOptions { size_bytes, more_devices, ..CreateOptions::default() };
    let pool = Pool::create(&path, &options).expect("nothing is there");
    let volume = pool.create_volume("v", 64 * MIB).expect("there is room");
    for at in 0..60 {
        volume.write(at * MIB, &pattern(at, 1 << 20)).expect("there is room");
    }
    pool.close().expect("a clean stop");
    std::fs::remove_file(&second).expect("it is there");

    let refused = Pool::open(&path, &OpenOptions::default()).expect_err("a device is missing");
    assert!(refused.to_string().contains("second"), "{refused}");
    let degraded = OpenOptions { degraded: true, ..OpenOptions::default() };
    let pool = Pool::open(&path, &degraded).expect("it may do without");
    let state = pool.status().expect("it is open").state;
    assert!(matches!(state, crate::PoolState::Degraded { .. }), "{state:?}");
    let volume = pool.volume("v").expect("it is there");
    let mut right = 0;
    for block in 0..60 * MIB / 4096 {
        let mut into = [0; 4096];
        match volume.read(block * 4096, &mut into) {
            Ok(()) => {
                let (at, from) = (block / 256, (block % 256 * 4096) as usize);
                assert_eq!(into, pattern(at, 1 << 20)[from..from + 4096], "block {block}");
                right += 1;
            }
            Err(error) => assert_eq!(error, IoError::Damaged { offset: block * 4096 }),
        }
    }
    assert!((2000..14_000).contains(&right), "{right}");
    assert_eq!(volume.write(0, b"new"), Err(IoError::ReadOnly));
    volume.flush().expect("nothing was written");
    let refused = pool.create_volume("w", MIB).expect_err("it is only read");
    assert!(matches!(refused, ControlError::PoolReadOnly), "{refused}");
    pool.close().expect("a clean stop");
}

#[test]
fn snapshots_stay_as_they_were_through_closing_and_opening() {
    let (site, pool) = Site::new(128 * MIB);
    let (a, b) = (pool.create_volume("a", 4 * MIB), pool.create_volume("b", 4 * MIB));
    let (a, b) = (a.expect("there is room"), b.expect("there is room"));
    let (old, new) = (pattern(1, 1 << 20), pattern(2, 1 << 20));
    a.write(5000, &old).expect("there is room");
    b.write(0, &old).expect("there is room");
    let first = a.snapshot("first").expect("there is room");
    assert_eq!((first.name(), first.size()), ("a@first", 4 * MIB));
    a.write(5000, &new).expect("there is room");
    let taken = pool.take_snapshots(&[("a", "both"), ("b", "both")]).expect("there is room");
    assert_eq!([&*taken[0].name, &*taken[1].name], ["a@both", "b@both"]);
    b.discard(0, 4 * MIB).expect("it lies in the volume");
    block_on(a.snapshot_async("first")).expect_err("it is there");

    assert_eq!(first.write(0, &old), Err(IoError::IsSnapshot));
    assert_eq!(first.discard(0, MIB), Err(IoError::IsSnapshot));
    assert_eq!(first.write_zeroes(0, MIB), Err(IoError::IsSnapshot));
    assert_eq!(first.flush(), Ok(()));
    assert_eq!(first.read(4 * MIB, &mut [0; 1]), Err(IoError::OutOfRange));
    assert!(matches!(first.snapshot("x"), Err(ControlError::BadSnapshotName { .. })));
    assert!(matches!(pool.volume("a@first"), Err(ControlError::IsSnapshot { .. })));
    assert!(matches!(pool.snapshot("a@x"), Err(ControlError::NoSuchSnapshot { .. })));
    assert_eq!(pool.delete_volume("a"), Err(ControlError::HasSnapshots { snapshots: 2 }));
    pool.close().expect("a clean stop");

    let pool = site.open();
    let names: Vec<_> =
        pool.snapshots(None).expect("it is open").into_iter().map(|found| found.name).collect();
    assert_eq!(names, ["a@both", "a@first", "b@both"]);
    assert_eq!(pool.snapshots(Some("b")).expect("it is open").len(), 1);
    for (name, offset, content) in
        [("a@first", 5000, &old), ("a@both", 5000, &new), ("b@both", 0, &old)]
    {
        let snapshot = pool.snapshot(name).expect("it is there");
        assert!(read(&snapshot, offset, MIB) == **content, "{name}");
        pool.delete_snapshot(name).expect("it is there");
        assert_eq!(snapshot.read(0, &mut [0; 1]), Err(IoError::VolumeDeleted), "{name}");
    }
    assert!(read(&pool.volume("a").expect("it is there"), 5000, MIB) == new);
    pool.delete_volume("a").expect("it has none");
    pool.close().expect("a clean stop");
}

#[test]
fn clones_and_rollbacks_go_their_own_ways_through_closing_and_opening() {
    let (site, pool) = Site::new(128 * MIB);
    let volume = pool.create_volume("v", 4 * MIB).expect("there is room");
    let [one, two, three] = [1, 2, 3].map(|seed| pattern(seed, 1 << 20));
    volume.write(0, &one).expect("there is room");
    volume.snapshot("one").expect("there is room");
    volume.write(0, &two).expect("there is room");

    let clone = pool.clone_snapshot("v@one", "c").expect("there is room");
    assert_eq!((clone.name(), clone.size()), ("c", 4 * MIB));
    assert!(read(&clone, 0, MIB) == one);
    pool.clone_snapshot("v@one", "c").expect("the same again");
    let taken = pool.clone_snapshot("v@one", "v").expect_err("it is another");
    assert!(matches!(taken, ControlError::NameTaken { .. }), "{taken}");
    let missing = pool.clone_snapshot("v@two", "d").expect_err("there is none");
    assert!(matches!(missing, ControlError::NoSuchSnapshot { .. }), "{missing}");
    let wrong = pool.clone_snapshot("v@one", "d@e").expect_err("no such name");
    assert!(matches!(wrong, ControlError::BadName { .. }), "{wrong}");
    let large = SettingsChange { reserved_bytes: Some(8 * MIB), ..SettingsChange::default() };
    let large = pool.clone_snapshot_with("v@one", "d", large).expect_err("it is too much");
    assert!(
        matches!(large, ControlError::BadReservation { size_bytes, .. } if size_bytes == 4 * MIB)
    );
    clone.write(MIB, &three).expect("there is room");
    clone.snapshot("own").expect("there is room");
    let second = pool.clone_snapshot("c@own", "cc").expect("there is room");
    assert!(read(&second, 0, MIB) == one && read(&second, MIB, MIB) == three);

    let missing = pool.rollback("v@two", None).expect_err("there is none");
    assert!(matches!(missing, ControlError::NoSuchSnapshot { .. }), "{missing}");
    let taken = pool.rollback("v@one", Some("one")).expect_err("there is one");
    assert!(matches!(taken, ControlError::SnapshotExists { .. }), "{taken}");
    assert!(read(&volume, 0, MIB) == two, "nothing has happened");
    let back = pool.rollback("v@one", Some("two")).expect("there is room");
    assert_eq!(volume.read(0, &mut [0; 1]), Err(IoError::VolumeDeleted));
    assert!(read(&back, 0, MIB) == one);
    back.write(2 * MIB, &three).expect("there is room");
    let status = pool.volumes().expect("it is open");
    let bases: Vec<_> = status.iter().map(|v| (&*v.name, v.cloned_from.as_deref())).collect();
    assert_eq!(bases, [("c", Some("v@one")), ("cc", Some("c@own")), ("v", Some("v@one"))]);
    assert_eq!(status[2].snapshots, 2);
    pool.close().expect("a clean stop");

    let pool = site.open();
    let read_all = |pool: &Pool, name: &str| {
        let volume = match name.contains('@') {
            true => pool.snapshot(name),
            false => pool.volume(name),
        };
        let volume = volume.expect("it is there");
        [0, MIB, 2 * MIB].map(|at| read(&volume, at, MIB))
    };
    let zeroes = vec![0; 1 << 20];
    let right = |pool: &Pool| {
        assert!(read_all(pool, "v@two") == [two.clone(), zeroes.clone(), zeroes.clone()]);
        assert!(read_all(pool, "cc") == [one.clone(), three.clone(), zeroes.clone()]);
    };
    right(&pool);
    assert!(read_all(&pool, "v") == [one.clone(), zeroes.clone(), three.clone()]);
    // What clones still need stays, whatever is deleted.
    pool.delete_snapshot("v@one").expect("it is there");
    pool.delete_snapshot("c@own").expect("it is there");
    pool.delete_volume("c").expect("it has none");
    assert_eq!(pool.volume("v").map(|v| v.size()), Ok(4 * MIB));
    right(&pool);
    assert_eq!(pool.delete_volume("v"), Err(ControlError::HasSnapshots { snapshots: 1 }));
    pool.close().expect("a clean stop");
    let pool = site.open();
    right(&pool);
    assert_eq!(pool.volumes().expect("it is open")[0].cloned_from, None);
    pool.delete_volume_and_snapshots("v").expect("it is there");
    assert!(pool.snapshots(None).expect("it is open").is_empty());
    assert!(read_all(&pool, "cc") == [one, three, zeroes]);
    pool.close().expect("a clean stop");
}

#[test]
fn differences_are_told_page_by_page() {
    let (site, pool) = Site::new(256 * MIB);
    let volume = pool.create_volume("v", 64 * MIB).expect("there is room");
    let block = [7; 4096];
    for lba in 0..6000 {
        volume.write(lba * 8192, &block).expect("there is room");
    }
    let first = volume.snapshot("first").expect("there is room");
    // More than a page of them, each alone; and a stretch that becomes zeroes.
    for lba in 0..5000 {
        volume.write(lba * 8192, &block).expect("there is room");
    }
    volume.discard(5000 * 8192, 100 * 8192).expect("it lies in the volume");
    let second = volume.snapshot("second").expect("there is room");
    volume.write(60 * MIB, &[1; 10_000]).expect("there is room");

    let data = |offset, len| DiffExtent { offset, len, kind: DiffKind::Data };
    let zero = |offset, len| DiffExtent { offset, len, kind: DiffKind::Zero };
    let all =
        |diff: super::Diff| diff.map(|extent| extent.expect("it is there")).collect::<Vec<_>>();
    let mut due: Vec<_> = (0..5000).map(|lba| data(lba * 8192, 4096)).collect();
    due.extend((5000..5100).map(|lba| zero(lba * 8192, 4096)));
    assert_eq!(all(second.diff(Some(&first))), due);
    assert_eq!(all(pool.diff(Some("v@first"), "v@second")), due);
    due.push(data(60 * MIB, 12_288));
    assert_eq!(all(pool.diff(Some("v@first"), "v")), due);
    assert_eq!(all(volume.diff(Some(&first)).starting_at(5099 * 8192)), due[5099..]);
    assert_eq!(all(volume.diff(Some(&second))), [data(60 * MIB, 12_288)]);
    assert_eq!(all(first.diff(None)).len(), 6000);
    assert_eq!(all(volume.diff(Some(&volume))), []);

    let mut diff = first.diff(None);
    let page = block_on(diff.next_page()).expect("it is there").expect("there are some");
    assert_eq!((page.extents.len(), page.next), (4096, Some(4096 * 8192)));
    assert_eq!((page.older, page.newer.name.as_str()), (None, "v@first"));
    // The pages to come are of the same snapshot, not of another of its name.
    pool.delete_snapshot("v@first").expect("it is there");
    volume.snapshot("first").expect("there is room");
    let gone = block_on(diff.next_page()).expect_err("it is gone");
    assert_eq!(gone, ControlError::NoSuchSnapshot { name: "v@first".to_owned() });
    assert!(matches!(block_on(diff.next_page()), Ok(None)), "it ends after an error");
    let nobody = pool.diff(Some("v"), "w").next().expect("an error");
    assert_eq!(nobody, Err(ControlError::NoSuchVolume { name: "w".to_owned() }));
    pool.close().expect("a clean stop");

    let pool = site.open();
    assert_eq!(all(pool.diff(Some("v@second"), "v")), [data(60 * MIB, 12_288)]);
    pool.close().expect("a clean stop");
    let closed = pool.diff(None, "v").next().expect("an error");
    assert_eq!(closed, Err(ControlError::Stopping));
}

#[test]
fn what_is_shared_is_counted_and_deletion_gives_back_the_rest() {
    let (_site, pool) = Site::new(256 * MIB);
    let volume = pool.create_volume("v", 64 * MIB).expect("there is room");
    volume.write(0, &pattern(1, 8 << 20)).expect("there is room");
    let first = volume.snapshot("first").expect("there is room");
    volume.write(0, &pattern(2, 3 << 20)).expect("there is room");
    volume.discard(7 * MIB, MIB).expect("it lies in the volume");
    let second = volume.snapshot("second").expect("there is room");
    volume.write(MIB, &pattern(3, 1 << 20)).expect("there is room");
    let told = |volume: &super::Volume| {
        let usage = volume.usage().expect("it is there");
        assert_eq!(usage.name, volume.name());
        (usage.exclusive_bytes / MIB, usage.shared_bytes / MIB, usage.frees_bytes / MIB)
    };
    assert_eq!(told(&first), (4, 4, 4));
    assert_eq!(told(&second), (1, 6, 1));
    assert_eq!(told(&volume), (1, 6, 1));
    let used = || pool.status().expect("it is open").used_bytes;
    let before = used();
    pool.delete_snapshot("v@first").expect("it is there");
    // What only it had comes back in the background.
    while used() != before - 4 * MIB {
        assert!(used() >= before - 4 * MIB);
        std::thread::yield_now();
    }
    assert_eq!(told(&second), (1, 6, 1));
    let gone = ControlError::NoSuchSnapshot { name: "v@first".to_owned() };
    assert_eq!(first.usage(), Err(gone));
    pool.close().expect("a clean stop");
}
