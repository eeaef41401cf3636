//! Helpers shared by the integration tests.
#![allow(dead_code)] // Each test binary uses its own part.

use std::path::{Path, PathBuf};

use flagstone_block::{Buffer, DeviceCommand, DeviceError, DeviceIo, IoToken};
use flagstone_ring::{Allocation, Device, DeviceId, Event, Ring, RingConfig, SpinPolicy};

/// A test never waits longer than this for the kernel.
const PATIENCE_NS: u64 = 20_000_000_000;

pub fn ring(arena_blocks: u32) -> Ring {
    let config = RingConfig {
        entries: 64,
        arena_blocks,
        spin: SpinPolicy::Auto,
        max_sockets: 16,
        ..RingConfig::default()
    };
    Ring::new(config).expect("io_uring is available where these tests run")
}

/// The next event; fails the test if none comes.
pub fn event(ring: &mut Ring) -> Event {
    let give_up = ring.now_ns() + PATIENCE_NS;
    loop {
        if let Some(event) = ring.next_event() {
            return event;
        }
        assert!(ring.now_ns() < give_up, "no event came");
        ring.submit_and_wait(Some(give_up)).expect("the ring works");
    }
}

/// Runs rounds for a short while and asserts that nothing is reported.
pub fn assert_quiet(ring: &mut Ring, ns: u64) {
    let until = ring.now_ns() + ns;
    while ring.now_ns() < until {
        ring.submit_and_wait(Some(until)).expect("the ring works");
        assert_eq!(ring.next_event(), None);
    }
}

pub fn run(ring: &mut Ring, device: DeviceId, command: DeviceCommand) -> Result<(), DeviceError> {
    ring.submit_device(device, DeviceIo { device: 0, token: IoToken(77), command });
    match event(ring) {
        Event::Device { token: IoToken(77), result, device: from } if from == device => result,
        other => panic!("unexpected {other:?}"),
    }
}

pub fn read(offset: u64, buffer: Buffer) -> DeviceCommand {
    DeviceCommand::Read { offset, buffer }
}

pub fn write(offset: u64, buffer: Buffer) -> DeviceCommand {
    DeviceCommand::Write { offset, buffer }
}

pub fn file(path: &Path, size: u64) -> Device {
    Device::create_file(path, size, Allocation::Sparse, &mut |_, _| {}).expect("a new file")
}

/// A directory on the file system of the build: ext4, xfs, btrfs or whatever is there.
pub fn disk_directory() -> tempfile::TempDir {
    let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    tempfile::tempdir_in(root).expect("a directory on disk")
}

/// Different bytes for every block and seed.
pub fn pattern(bytes: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
}

pub fn patterned(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    pattern(&mut bytes, seed);
    bytes
}
