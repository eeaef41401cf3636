//! The loop itself: timers, waking, sleeping, dropping with operations under way.

mod common;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use common::*;
use flagstone_block::{Buffers, DeviceIo, IoToken};
use flagstone_ring::{
    Event, MailError, Ring, RingConfig, RingError, SendPart, SpinPolicy, TaskRun, listen_unix,
};

const MS: u64 = 1_000_000;

#[test]
fn the_mode_is_reported_in_words() {
    let ring = ring(256);
    let mode = ring.mode();
    println!("{mode}");
    assert!(mode.sq_entries >= 64);
    assert_eq!(mode.arena_bytes, 1 << 20);
    let words = mode.to_string();
    assert!(words.starts_with("io_uring "), "{words}");
    assert_eq!(mode.task_run == TaskRun::Deferred, words.contains("defer-taskrun"));
}

#[test]
fn impossible_sizes_are_refused_by_name() {
    let good = RingConfig::default();
    for (config, name) in [
        (RingConfig { entries: 0, ..good }, "entries"),
        (RingConfig { entries: 32_769, ..good }, "entries"),
        (RingConfig { arena_blocks: 0, ..good }, "arena_blocks"),
        (RingConfig { max_sockets: 0, ..good }, "max_sockets"),
    ] {
        match Ring::new(config) {
            Err(RingError::OutOfRange { what, .. }) => assert_eq!(what, name),
            other => panic!("{name}: {:?}", other.err()),
        }
    }
}

#[test]
fn a_round_without_work_ends_at_its_deadline() {
    let mut ring = ring(16);
    for ns in [0, MS, 20 * MS] {
        let deadline = ring.now_ns() + ns;
        ring.submit_and_wait(Some(deadline)).expect("the ring works");
        // Arming the wake-up poll may end the first round early, without an event.
        while ring.now_ns() < deadline {
            ring.submit_and_wait(Some(deadline)).expect("the ring works");
        }
        assert_eq!(ring.next_event(), None);
        assert!(ring.now_ns() < deadline + 1000 * MS);
    }
    ring.submit_and_wait(Some(1)).expect("a deadline in the past is now");
}

#[test]
fn timers_fire_in_order_and_not_early() {
    let mut ring = ring(16);
    let start = ring.now_ns();
    let late = ring.set_timer(start + 30 * MS, 3);
    let cancelled = ring.set_timer(start + 5 * MS, 99);
    let early = ring.set_timer(start + 10 * MS, 1);
    let middle = ring.set_timer(start + 20 * MS, 2);
    assert!(ring.cancel_timer(cancelled));
    for (id, user, due) in [(early, 1, 10), (middle, 2, 20), (late, 3, 30)] {
        assert_eq!(event(&mut ring), Event::Timer { id, user });
        assert!(ring.now_ns() >= start + due * MS);
        assert!(!ring.cancel_timer(id), "it has fired");
    }
    // A timer in the past fires in the next round, even one that would sleep for ever.
    let id = ring.set_timer(0, 4);
    ring.submit_and_wait(None).expect("the ring works");
    assert_eq!(ring.next_event(), Some(Event::Timer { id, user: 4 }));
}

#[test]
fn an_idle_ring_sleeps() {
    let mut ring = ring(16);
    assert_quiet(&mut ring, 10 * MS);
    let before = ring.counters();
    let cpu_before = cpu_ns();
    assert_quiet(&mut ring, 300 * MS);
    let after = ring.counters();
    assert!(after.enters - before.enters <= 4, "one sleep, not many: {after:?}");
    assert_eq!(after.spins, 0);
    assert!(cpu_ns() - cpu_before < 30 * MS, "asleep, not polling");
}

/// CPU time of this thread.
fn cpu_ns() -> u64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    used.tv_sec as u64 * 1_000_000_000 + used.tv_nsec as u64
}

#[test]
fn a_sleeping_ring_is_woken_from_another_thread() {
    let mut ring = ring(16);
    let waker = ring.waker();
    let sleeper = ring.counters().sleeps;
    let other = thread::spawn(move || waker.wake());
    assert_eq!(event(&mut ring), Event::Woken);
    other.join().expect("it only wakes");
    assert!(ring.counters().sleeps >= sleeper);
    assert_quiet(&mut ring, 5 * MS);
    ring.waker().wake();
    assert_eq!(event(&mut ring), Event::Woken);
    assert_quiet(&mut ring, 5 * MS);
}

/// Every mail must be noticed although the ring sleeps without a deadline whenever it has none:
/// one lost wake-up and this test hangs until its watchdog speaks.
fn mail_storm(spin: SpinPolicy, senders: u64, mails: u64, pause: bool) {
    let config =
        RingConfig { entries: 16, arena_blocks: 16, spin, max_sockets: 1, ..RingConfig::default() };
    let mut ring = Ring::new(config).expect("io_uring is available");
    let (sender, mut inbox) = ring.mailbox::<(u64, u64)>(64);
    let answered = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..senders)
        .map(|name| {
            let (sender, answered) = (sender.clone(), Arc::clone(&answered));
            thread::spawn(move || {
                for number in 0..mails {
                    let mut mail = (name, number);
                    while let Err(error) = sender.send(mail) {
                        match error {
                            MailError::Full(back) => mail = back,
                            MailError::Closed(_) => panic!("the box is open"),
                        }
                        thread::yield_now();
                    }
                    // Ping-pong gives the ring time to fall asleep at every moment of a send.
                    if pause {
                        while answered.load(Ordering::Acquire) <= number {
                            thread::yield_now();
                        }
                    }
                }
            })
        })
        .collect();
    let mut next = vec![0; senders as usize];
    let mut total = 0;
    while total < senders * mails {
        match event(&mut ring) {
            Event::Woken => {
                while let Some((name, number)) = inbox.take() {
                    assert_eq!(number, next[name as usize], "in order, none lost");
                    next[name as usize] += 1;
                    total += 1;
                    answered.fetch_add(1, Ordering::Release);
                }
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    for thread in threads {
        thread.join().expect("all mail was sent");
    }
    println!("{:?}", ring.counters());
}

#[test]
fn no_mail_is_lost_under_a_storm() {
    mail_storm(SpinPolicy::Never, 3, 50_000, false);
    mail_storm(SpinPolicy::UnderLoad, 3, 50_000, false);
}

#[test]
fn no_mail_is_lost_when_every_mail_finds_the_ring_falling_asleep() {
    mail_storm(SpinPolicy::Never, 1, 20_000, true);
    mail_storm(SpinPolicy::UnderLoad, 1, 20_000, true);
}

#[test]
fn mail_sent_before_the_first_round_is_seen() {
    let mut ring = ring(16);
    let (sender, mut inbox) = ring.mailbox(4);
    sender.send("early").expect("room");
    assert_eq!(event(&mut ring), Event::Woken);
    assert_eq!(inbox.take(), Some("early"));
    drop(ring);
    assert_eq!(sender.send("nobody wakes"), Ok(()));
    drop(inbox);
    assert_eq!(sender.send("nobody reads"), Err(MailError::Closed("nobody reads")));
}

#[test]
fn a_ring_under_load_polls_only_when_told_that_it_may() {
    for (spin, may) in [(SpinPolicy::Never, false), (SpinPolicy::UnderLoad, true)] {
        let config = RingConfig {
            entries: 16,
            arena_blocks: 16,
            spin,
            max_sockets: 2,
            ..RingConfig::default()
        };
        let mut ring = Ring::new(config).expect("io_uring is available");
        let (left, right) = UnixStream::pair().expect("a socket pair");
        let left = ring.add_socket(left.into()).expect("room");
        let right = ring.add_socket(right.into()).expect("room");
        let inbox = ring.buffers().alloc(1).expect("room");
        let outbox = ring.buffers().alloc(1).expect("room");
        for _ in 0..500 {
            ring.recv(right, inbox, 0, 1).expect("nothing is under way");
            ring.send(left, &[SendPart { buffer: outbox, from: 0, len: 1 }]).expect("as above");
            for _ in 0..2 {
                event(&mut ring);
            }
        }
        // Closely spaced arrivals, then nothing for a while: at most one poll, then sleep.
        let before = ring.counters();
        assert_quiet(&mut ring, 50 * MS);
        let after = ring.counters();
        assert_eq!(after.spins > before.spins, may, "{after:?}");
        assert!(after.spin_ns - before.spin_ns < 10 * MS);
    }
}

#[test]
fn dropping_with_everything_under_way_ends_and_gives_back() {
    let directory = disk_directory();
    let path = directory.path().join("pool");
    for round in 0..20 {
        let device = if round == 0 {
            file(&path, 4 << 20)
        } else {
            flagstone_ring::Device::open(&path, flagstone_ring::OpenMode::Exclusive)
                .expect("the last round let go")
        };
        let mut ring = ring(1024);
        let id = ring.add_device(&device).expect("room");
        let socket_path = directory.path().join(format!("socket-{round}"));
        ring.add_listener(listen_unix(&socket_path).expect("fresh")).expect("room");
        let mut peers = Vec::new();
        for _ in 0..4 {
            let (ours, theirs) = UnixStream::pair().expect("a socket pair");
            let socket = ring.add_socket(OwnedFd::from(ours)).expect("room");
            peers.push(theirs);
            let inbox = ring.buffers().alloc(2).expect("room");
            ring.recv(socket, inbox, 10, 5000).expect("nothing is under way");
            let outbox = ring.buffers().alloc(64).expect("room");
            let parts = [SendPart { buffer: outbox, from: 0, len: outbox.len() }; 8];
            ring.send(socket, &parts).expect("nothing is under way");
        }
        for index in 0..100 {
            let buffer = ring.buffers().alloc(4).expect("room");
            let offset = index * 16384;
            let command = if index % 2 == 0 { read(offset, buffer) } else { write(offset, buffer) };
            ring.submit_device(id, DeviceIo { device: 0, token: IoToken(index), command });
        }
        let command = flagstone_block::DeviceCommand::Flush;
        ring.submit_device(id, DeviceIo { device: 0, token: IoToken(1000), command });
        ring.set_timer(ring.now_ns() + 3_600_000 * MS, 1);
        // Odd rounds drop what was never given to the kernel, even ones what it works on.
        if round % 2 == 0 {
            ring.submit_and_wait(Some(0)).expect("the ring works");
        }
        let start = std::time::Instant::now();
        drop(ring);
        assert!(start.elapsed().as_secs() < 5, "nothing hangs");
    }
}

#[test]
fn rings_come_and_go_without_leaking_descriptors() {
    let open = || std::fs::read_dir("/proc/self/fd").expect("proc is mounted").count();
    // Other tests of this process open and close too, so only a trend can be seen.
    let before = open();
    for _ in 0..200 {
        let mut ring = ring(16);
        ring.submit_and_wait(Some(0)).expect("the ring works");
    }
    assert!(open() < before + 100);
}

#[test]
fn two_owners_of_the_same_bytes_are_caught_before_the_kernel_is() {
    let directory = disk_directory();
    let device = file(&directory.path().join("pool"), 1 << 20);
    let mut ring = ring(16);
    let id = ring.add_device(&device).expect("room");
    let buffer = ring.buffers().alloc(2).expect("room");
    ring.submit_device(id, DeviceIo { device: 0, token: IoToken(0), command: read(0, buffer) });
    let mut unique = std::panic::AssertUnwindSafe(&mut ring);
    let again = std::panic::catch_unwind(move || {
        let command = write(0, buffer.part(1, 1));
        unique.submit_device(id, DeviceIo { device: 0, token: IoToken(1), command });
    });
    assert!(again.is_err());
    assert!(matches!(event(&mut ring), Event::Device { token: IoToken(0), result: Ok(()), .. }));
    // Two writes may share their source.
    for token in 0..2 {
        let command = write(token * 8192, buffer);
        ring.submit_device(id, DeviceIo { device: 0, token: IoToken(token), command });
    }
    for _ in 0..2 {
        assert!(matches!(event(&mut ring), Event::Device { result: Ok(()), .. }));
    }
    ring.buffers().free(buffer);
}

#[test]
fn exchanged_arenas_are_noticed_before_the_kernel_uses_them() {
    let directory = disk_directory();
    let device = file(&directory.path().join("pool"), 1 << 20);
    let mut left = ring(64);
    let mut right = ring(64);
    let id = left.add_device(&device).expect("room");
    let buffer = left.buffers().alloc(8).expect("room");
    left.submit_device(id, DeviceIo { device: 0, token: IoToken(0), command: read(0, buffer) });
    left.submit_and_wait(Some(0)).expect("the ring works");
    std::mem::swap(left.buffers(), right.buffers());
    for ring in [&mut left, &mut right] {
        let mut unique = std::panic::AssertUnwindSafe(ring);
        assert!(std::panic::catch_unwind(move || unique.submit_and_wait(Some(0))).is_err());
    }
    // Both arenas are leaked rather than unmapped under the other ring.
    drop((left, right));
}
