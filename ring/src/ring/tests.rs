//! What the public face can't reach: each way to set up a ring, and sends that the kernel cuts short.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::thread;

use flagstone_block::{Buffers, DeviceCommand, DeviceIo, IoToken};

use super::*;
use crate::device::{Allocation, Device};
use crate::net::listen_unix;
use crate::uring::ATTEMPTS;

const CONFIG: RingConfig = RingConfig {
    entries: 8,
    arena_blocks: 256,
    spin: SpinPolicy::Never,
    max_sockets: 4,
    passthrough: PassthroughMode::Off,
};

fn event(ring: &mut Ring) -> Event {
    let give_up = ring.now_ns() + 20_000_000_000;
    loop {
        if let Some(event) = ring.next_event() {
            return event;
        }
        assert!(ring.now_ns() < give_up, "no event came");
        ring.submit_and_wait(Some(give_up)).expect("the ring works");
    }
}

#[test]
fn every_way_to_set_up_a_ring_carries_all_kinds_of_work() {
    for (number, attempt) in ATTEMPTS.iter().enumerate() {
        for spin in [SpinPolicy::Never, SpinPolicy::UnderLoad] {
            let config = RingConfig { spin, ..CONFIG };
            let mut ring = match Ring::build(config, &[*attempt]) {
                Ok(ring) => ring,
                Err(error) => {
                    println!("SKIPPED {attempt:?}: {error}");
                    continue;
                }
            };
            assert_eq!(ring.mode().task_run, attempt.0);
            println!("{}", ring.mode());
            work(&mut ring, number);
            assert_eq!(ring.counters().strays, 0);
        }
    }
}

fn work(ring: &mut Ring, number: usize) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(format!("pool-{number}"));
    let device = Device::create_file(path, 1 << 20, Allocation::Sparse, &mut |_, _| {});
    let device = ring.add_device(&device.expect("a new file")).expect("room");
    // More than the submission queue holds.
    let buffers: Vec<_> = (0..64).map(|_| ring.buffers().alloc(1).expect("room")).collect();
    for (index, &buffer) in buffers.iter().enumerate() {
        ring.buffers().bytes_mut(buffer).fill(index as u8 + 1);
        let command = DeviceCommand::Write { offset: index as u64 * 4096, buffer };
        ring.submit_device(device, DeviceIo { device: 0, token: IoToken(index as u64), command });
    }
    for _ in &buffers {
        assert!(matches!(event(ring), Event::Device { result: Ok(()), .. }));
    }
    ring.submit_device(
        device,
        DeviceIo { device: 0, token: IoToken(0), command: DeviceCommand::Flush },
    );
    assert!(matches!(event(ring), Event::Device { result: Ok(()), .. }));
    let big = ring.buffers().alloc(64).expect("room");
    let command = DeviceCommand::Read { offset: 0, buffer: big };
    ring.submit_device(device, DeviceIo { device: 0, token: IoToken(0), command });
    assert!(matches!(event(ring), Event::Device { result: Ok(()), .. }));
    for index in 0..64 {
        assert!(ring.buffers_ref().bytes(big.part(index, 1)).iter().all(|&b| b == index as u8 + 1));
    }

    let socket_path = directory.path().join("socket");
    ring.add_listener(listen_unix(&socket_path).expect("a fresh path")).expect("room");
    let waker = ring.waker();
    let client = thread::spawn(move || {
        let mut stream = UnixStream::connect(socket_path).expect("the ring listens");
        std::io::Write::write_all(&mut stream, b"hello").expect("room in the socket");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("a stream");
        waker.wake();
        answer
    });
    let Event::Accepted { socket, .. } = event(ring) else { panic!("nobody connected") };
    ring.recv(socket, big, 0, 5).expect("nothing is under way");
    assert_eq!(event(ring), Event::Received { socket, result: Ok(5) });
    let parts =
        [SendPart { buffer: big, from: 0, len: 5 }, SendPart { buffer: big, from: 4096, len: 1 }];
    ring.send(socket, &parts).expect("nothing is under way");
    assert_eq!(event(ring), Event::Sent { socket, result: Ok(()) });
    ring.shutdown_socket(socket);
    assert_eq!(event(ring), Event::Closed { socket });
    assert_eq!(event(ring), Event::Woken);
    assert_eq!(client.join().expect("the client ends"), b"hello\x02");
    let id = ring.set_timer(ring.now_ns() + 1_000_000, 9);
    assert_eq!(event(ring), Event::Timer { id, user: 9 });
    assert_eq!(ring.in_flight(), 2, "the wake-up watch and the accept");
}

#[test]
fn sends_that_the_kernel_cuts_short_go_on() {
    let mut ring = Ring::new(CONFIG).expect("io_uring is available");
    // As on a kernel that gives back what fitted instead of waiting for room.
    ring.send_flags = libc::MSG_NOSIGNAL;
    let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
    rustix::net::sockopt::set_socket_send_buffer_size(&ours, 4096).expect("a size");
    let socket = ring.add_socket(ours.into()).expect("room");
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        let mut bite = [0; 1000];
        loop {
            match theirs.read(&mut bite).expect("a stream") {
                0 => return all,
                count => all.extend_from_slice(&bite[..count]),
            }
        }
    });
    let mut expected = Vec::new();
    let mut parts = Vec::new();
    for index in 0..30_usize {
        let buffer = ring.buffers().alloc(5).expect("room");
        for (at, byte) in ring.buffers().bytes_mut(buffer).iter_mut().enumerate() {
            *byte = (at * 7 + index) as u8;
        }
        let (from, len) = (index, 20_000 - index * 11);
        expected.extend_from_slice(&ring.buffers_ref().bytes(buffer)[from..from + len]);
        parts.push(SendPart { buffer, from, len });
    }
    ring.send(socket, &parts).expect("nothing is under way");
    assert_eq!(event(&mut ring), Event::Sent { socket, result: Ok(()) });
    let alone = SendPart { buffer: parts[0].buffer, from: 1, len: 20_000 };
    expected.extend_from_slice(&ring.buffers_ref().bytes(alone.buffer)[1..20_001]);
    ring.send(socket, &[alone]).expect("nothing is under way");
    assert_eq!(event(&mut ring), Event::Sent { socket, result: Ok(()) });
    assert!(ring.counters().short_sends > 0, "{:?}", ring.counters());
    ring.shutdown_socket(socket);
    assert_eq!(reader.join().expect("the reader ends"), expected);
    assert_eq!(event(&mut ring), Event::Closed { socket });
    for part in parts {
        ring.buffers().free(part.buffer);
    }
}

#[test]
fn completions_that_name_nothing_change_nothing() {
    let mut ring = Ring::new(CONFIG).expect("io_uring is available");
    // A submission from outside the table, as a late completion of a released entry would look.
    let stray = opcode::Nop::new().build().user_data(u64::MAX);
    // SAFETY: a no-operation refers to no memory.
    assert!(unsafe { ring.uring.push(&stray.into()) });
    ring.submit_and_wait(Some(ring.now_ns() + 10_000_000)).expect("the ring works");
    assert_eq!(ring.counters().strays, 1);
    assert_eq!(ring.next_event(), None);
    assert_eq!(ring.in_flight(), 1);
}
