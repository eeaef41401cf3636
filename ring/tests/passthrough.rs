//! Devices driven by commands of their own: what is submitted, in which pieces, and what becomes of results.
//!
//! The commands here go to `/dev/null`, whose driver takes any and says that it succeeded (`uring_cmd_null` in the kernel's
//! `drivers/char/mem.c`, since Linux 6.0): a device that reports success without having run anything.

mod common;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use flagstone_block::{
    BLOCK_SIZE, Buffers, DeviceCommand, DeviceError, DeviceFault, DeviceIo, IoToken,
};
use flagstone_ring::{
    Allocation, DataPath, Device, DeviceId, Event, Passthrough, PassthroughCommand,
    PassthroughMode, PassthroughOutcome, PassthroughRequest, Ring, RingConfig, SpinPolicy,
};

/// What is to be made of the results, one after the other; success when there are none left.
type Script = Vec<PassthroughOutcome>;

#[derive(Debug)]
struct Null {
    file: File,
    discards: bool,
    asked: Mutex<Vec<PassthroughRequest>>,
    script: Mutex<Script>,
}

impl Null {
    fn new(discards: bool, script: Script) -> Arc<Self> {
        Arc::new(Self {
            file: File::options().read(true).write(true).open("/dev/null").expect("it is there"),
            discards,
            asked: Mutex::default(),
            script: Mutex::new(script.into_iter().rev().collect()),
        })
    }

    fn asked(&self) -> Vec<PassthroughRequest> {
        std::mem::take(&mut self.asked.lock().expect("one thread"))
    }
}

// SAFETY: the driver of /dev/null looks at nothing.
unsafe impl Passthrough for Null {
    fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn transfer_bytes_max(&self) -> u32 {
        2 * BLOCK_SIZE as u32
    }

    fn can_poll(&self) -> bool {
        false
    }

    fn command(&self, request: PassthroughRequest) -> PassthroughCommand {
        self.asked.lock().expect("one thread").push(request);
        PassthroughCommand { code: 7, bytes: [0xee; 80] }
    }

    fn discard_list(&self, offset: u64, bytes: u64, list: &mut [u8]) -> Option<u32> {
        list[..16].copy_from_slice(&[offset.to_le_bytes(), bytes.to_le_bytes()].concat());
        self.discards.then_some(16)
    }

    fn outcome(&self, result: i32) -> PassthroughOutcome {
        assert_eq!(result, 0, "the driver of /dev/null takes commands");
        self.script.lock().expect("one thread").pop().unwrap_or(PassthroughOutcome::Done)
    }
}

struct Bench {
    ring: Ring,
    device: DeviceId,
    commands: Arc<Null>,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new(discards: bool, script: Script) -> Self {
        Self::with(discards, script, PassthroughMode::Interrupts)
    }

    fn with(discards: bool, script: Script, passthrough: PassthroughMode) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("device");
        let device = Device::create_file(&path, 1 << 20, Allocation::Sparse, &mut |_, _| {})
            .expect("a file of our own");
        let commands = Null::new(discards, script);
        let dynamic: Arc<dyn Passthrough> = Arc::clone(&commands) as _;
        let device = device.with_passthrough(&path, Ok(dynamic));
        let config = RingConfig {
            entries: 8,
            arena_blocks: 64,
            spin: SpinPolicy::Never,
            max_sockets: 1,
            passthrough,
        };
        let mut ring = Ring::new(config).expect("a ring");
        let device = ring.add_device(&device).expect("there is room");
        Self { ring, device, commands, _dir: dir }
    }

    fn finish(&mut self, command: DeviceCommand) -> Result<(), DeviceError> {
        let io = DeviceIo { device: 0, token: IoToken(5), command };
        self.ring.submit_device(self.device, io);
        loop {
            self.ring.submit_and_wait(None).expect("it goes on");
            while let Some(event) = self.ring.next_event() {
                if let Event::Device { device, token: IoToken(5), result } = event {
                    assert_eq!(device, self.device);
                    return result;
                }
            }
        }
    }
}

#[test]
fn transfers_go_in_pieces_as_long_as_the_device_takes() {
    let mut bench = Bench::new(true, Script::new());
    assert!(bench.ring.mode().wide);
    assert_eq!(bench.ring.data_path(bench.device), DataPath::Passthrough);
    let buffer = bench.ring.buffers().alloc(5).expect("room");
    let start = bench.ring.buffers().bytes_mut(buffer).as_ptr() as u64;
    assert_eq!(bench.finish(DeviceCommand::Read { offset: 8192, buffer }), Ok(()));
    let piece = |done: u64, bytes| PassthroughRequest::Read {
        offset: 8192 + done,
        address: start + done,
        bytes,
    };
    assert_eq!(bench.commands.asked(), [piece(0, 8192), piece(8192, 8192), piece(16384, 4096)]);
    let short = buffer.part(0, 1);
    assert_eq!(bench.finish(DeviceCommand::Write { offset: 0, buffer: short }), Ok(()));
    let write = PassthroughRequest::Write { offset: 0, address: start, bytes: 4096 };
    assert_eq!(bench.commands.asked(), [write]);
    assert_eq!(bench.finish(DeviceCommand::Flush), Ok(()));
    assert_eq!(bench.commands.asked(), [PassthroughRequest::Flush]);
    let beyond = DeviceCommand::Write { offset: (1 << 20) - 4096, buffer };
    assert!(matches!(bench.finish(beyond), Err(DeviceError::OutOfRange { .. })));
    assert!(bench.commands.asked().is_empty());
}

#[test]
fn a_read_that_says_that_it_succeeded_without_having_run_leaves_what_was_there() {
    let mut bench = Bench::new(true, Script::new());
    let buffer = bench.ring.buffers().alloc(2).expect("room");
    bench.ring.buffers().bytes_mut(buffer).fill(0xd5);
    assert_eq!(bench.finish(DeviceCommand::Read { offset: 0, buffer }), Ok(()));
    assert!(bench.ring.buffers().bytes_mut(buffer).iter().all(|&byte| byte == 0xd5));
}

#[test]
fn discards_name_a_list_in_a_buffer_that_is_given_back() {
    let mut bench = Bench::new(true, Script::new());
    let free = bench.ring.buffers_ref().free_blocks();
    let discard = DeviceCommand::Discard { offset: 65536, bytes: 131_072 };
    assert_eq!(bench.finish(discard), Ok(()));
    let asked = bench.commands.asked();
    assert!(matches!(asked[..], [PassthroughRequest::Discard { bytes: 16, .. }]), "{asked:?}");
    assert_eq!(bench.ring.buffers_ref().free_blocks(), free);
    // Without a buffer for the list it goes the other way, which a file takes, too.
    let all = bench.ring.buffers().alloc(64).expect("all there is");
    assert_eq!(bench.finish(discard), Ok(()));
    assert!(bench.commands.asked().is_empty());
    bench.ring.buffers().free(all);
    let mut without = Bench::new(false, Script::new());
    assert_eq!(without.finish(discard), Ok(()));
    assert!(without.commands.asked().is_empty());
    assert_eq!(without.ring.buffers_ref().free_blocks(), free);
}

#[test]
fn what_was_thrown_away_is_given_again_and_a_failure_is_told() {
    let medium = DeviceError::Command { fault: DeviceFault::Medium, status: 0x281 };
    let aborted = DeviceError::Command { fault: DeviceFault::Aborted, status: 7 };
    let (done, again) = (PassthroughOutcome::Done, PassthroughOutcome::Again(aborted));
    // The second piece is thrown away twice, the third one fails.
    let script = vec![done, again, again, done, PassthroughOutcome::Failed(medium)];
    let mut bench = Bench::new(true, script);
    let buffer = bench.ring.buffers().alloc(6).expect("room");
    assert_eq!(bench.finish(DeviceCommand::Read { offset: 0, buffer }), Err(medium));
    assert_eq!(bench.commands.asked().len(), 5);
    assert_eq!(bench.ring.counters().retries, 2);
    // It is not tried for ever.
    let mut bench = Bench::new(true, vec![again; 1000]);
    let buffer = bench.ring.buffers().alloc(1).expect("room");
    assert_eq!(bench.finish(DeviceCommand::Write { offset: 0, buffer }), Err(aborted));
    assert!(bench.commands.asked().len() < 20);
}

#[test]
fn without_a_ring_for_them_the_file_is_used() {
    let mut bench = Bench::with(true, Script::new(), PassthroughMode::Off);
    assert_eq!(bench.ring.data_path(bench.device), DataPath::Block);
    let buffer = bench.ring.buffers().alloc(1).expect("room");
    assert_eq!(bench.finish(DeviceCommand::Read { offset: 0, buffer }), Ok(()));
    assert!(bench.ring.buffers().bytes_mut(buffer).iter().all(|&byte| byte == 0));
    assert!(bench.commands.asked().is_empty());
}

#[test]
fn a_device_is_let_go_of_and_another_takes_its_place() {
    let mut bench = Bench::new(true, Script::new());
    assert_eq!(bench.finish(DeviceCommand::Flush), Ok(()));
    bench.ring.remove_device(bench.device);
    assert_eq!(Arc::strong_count(&bench.commands), 1);
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("other");
    let other = Device::create_file(&path, 1 << 20, Allocation::Sparse, &mut |_, _| {})
        .expect("a file of our own");
    bench.device = bench.ring.add_device(&other).expect("there is room");
    assert_eq!(bench.ring.data_path(bench.device), DataPath::Block);
    let buffer = bench.ring.buffers().alloc(1).expect("room");
    bench.ring.buffers().bytes_mut(buffer).fill(9);
    assert_eq!(bench.finish(DeviceCommand::Write { offset: 4096, buffer }), Ok(()));
    assert_eq!(std::fs::read(&path).expect("readable")[4096..8192], [9; 4096]);
}
