//! Clients whose writes wait for space.

use super::harness::{Running, Site, Wire, pattern, wait};
use crate::node::{OnFull, SettingsChange};
use flagstone_nbd::Style;
use flagstone_nbd::proto::{CMD_FLAG_NO_HOLE, CMD_TRIM, CMD_WRITE_ZEROES};
use flagstone_nbd::testing::Event;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const ENOSPC: u32 = 28;

fn set(running: &Running, on_full: OnFull) {
    let change = SettingsChange { on_full: Some(on_full), ..SettingsChange::default() };
    wait(running.node.set_volume("vol".into(), change)).expect("it is there");
}

/// A pool filled to the last MiB, and how many are in it.
pub(super) fn full(site: &Site) -> (Running, Wire, u64) {
    let running = site.start();
    running.volume("vol", 1 << 40);
    set(&running, OnFull::Error);
    let mut wire = running.open("vol", Style::Structured);
    let full = (0..64).find(|&i| {
        let cookie = wire.client.write(0, i * MIB, &pattern(i, 1 << 20));
        wire.answer(cookie).error().is_some()
    });
    set(&running, OnFull::Wait);
    (running, wire, full.expect("more than the device holds"))
}

pub(super) fn until_waiting(running: &Running, count: u32) {
    let start = Instant::now();
    while wait(running.node.pools()).expect("it runs")[0].waiting != count {
        assert!(start.elapsed() < Duration::from_secs(20), "they never wait");
        std::thread::yield_now();
    }
}

#[test]
fn one_connection_writes_reads_and_discards_while_it_waits() {
    let site = Site::with_pools(&[64 * MIB]);
    let (running, mut wire, full) = full(&site);
    // Writes of many sizes, aligned and not, and zeroes that take space.
    let mut waiting = Vec::new();
    for i in 1..=6 {
        waiting.push(wire.client.write(0, (full + i) * MIB, &pattern(i, (i * MIB) as usize / 8)));
    }
    waiting.push(wire.client.write(0, (full + 8) * MIB + 100, &pattern(8, 9000)));
    waiting.push(wire.client.request(CMD_WRITE_ZEROES, CMD_FLAG_NO_HOLE, (full + 9) * MIB, MIB));
    // Behind them, in the same stream.
    let read = wire.client.read(3 * MIB, MIB);
    let flush = wire.client.flush();
    let overwrite = wire.client.write(0, 0, &pattern(77, 1 << 20));
    wire.push();
    for _ in 0..3 {
        match wire.next_event() {
            Some(Event::Done { cookie, outcome }) => {
                assert!([read, flush, overwrite].contains(&cookie), "{cookie}");
                assert_eq!(outcome.errors, []);
                assert!(cookie != read || outcome.data == pattern(3, 1 << 20));
            }
            other => panic!("{other:?}"),
        }
    }
    until_waiting(&running, 8);
    let trim = wire.client.request(CMD_TRIM, 0, 10 * MIB, 16 * MIB);
    let answers = wire.answers();
    assert_eq!(answers.len(), 9);
    for cookie in waiting.into_iter().chain([trim]) {
        assert_eq!(answers[&cookie].errors, [], "{cookie}");
    }
    for i in 1..=6 {
        let bytes = i * MIB / 8;
        assert!(wire.read((full + i) * MIB, bytes) == pattern(i, bytes as usize), "{i}");
    }
    assert!(wire.read((full + 8) * MIB + 100, 9000) == pattern(8, 9000));
    assert!(wire.read(0, MIB) == pattern(77, 1 << 20));
    until_waiting(&running, 0);
}

/// "The server MUST handle all outstanding requests" of a client that says that it goes (NBD proto, `NBD_CMD_DISC`).
#[test]
fn what_waits_is_done_although_its_client_has_taken_leave() {
    let site = Site::with_pools(&[64 * MIB]);
    let (running, mut wire, full) = full(&site);
    let mut leaving = running.open("vol", Style::Structured);
    let cookie = leaving.client.write(0, (full + 1) * MIB, &pattern(1, 1 << 20));
    leaving.client.disconnect();
    leaving.push();
    until_waiting(&running, 1);
    let trim = wire.client.request(CMD_TRIM, 0, 10 * MIB, 16 * MIB);
    assert_eq!(wire.answer(trim).errors, []);
    assert_eq!(leaving.answer(cookie).errors, []);
    assert!(leaving.is_closed());
    assert!(wire.read((full + 1) * MIB, MIB) == pattern(1, 1 << 20));
    until_waiting(&running, 0);
}

/// More payload than may be kept: the connections that get no memory for it are read no further,
/// and all the same everything is written in the end.
#[test]
fn more_payload_than_there_is_memory_for_waits_in_the_sockets() {
    let site = Site::with_pools(&[64 * MIB]);
    let (running, mut wire, full) = full(&site);
    let writers: Vec<_> = (0..4)
        .map(|i| {
            let mut wire = running.open("vol", Style::Structured);
            std::thread::spawn(move || {
                let at = (full + 40 + i) * MIB;
                // The same places again and again: little space, much payload.
                let cookies: Vec<_> =
                    (0..30).map(|_| wire.client.write(0, at, &pattern(i, 1 << 20))).collect();
                let answers = wire.answers();
                assert!(cookies.iter().all(|cookie| answers[cookie].errors.is_empty()));
                assert!(wire.read(at, MIB) == pattern(i, 1 << 20));
            })
        })
        .collect();
    let start = Instant::now();
    while wait(running.node.pools()).expect("it runs")[0].waiting < 40 {
        assert!(start.elapsed() < Duration::from_secs(20), "they never wait");
        std::thread::yield_now();
    }
    assert_eq!(wire.request(CMD_TRIM, 0, 0, 8 * MIB).errors, []);
    writers.into_iter().for_each(|writer| writer.join().expect("no panic"));
    until_waiting(&running, 0);
}

#[test]
fn waiting_ends_with_the_time_the_client_or_the_node() {
    let mut site = Site::with_pools(&[64 * MIB]);
    site.config.full_wait = Duration::from_millis(400);
    let (running, mut wire, full) = full(&site);
    let start = Instant::now();
    let late = wire.client.write(0, (full + 1) * MIB, &pattern(1, 1 << 20));
    assert_eq!(wire.answer(late).error(), Some(ENOSPC));
    assert!(start.elapsed() >= site.config.full_wait);
    // One whose payload does not come is told as well, and the connection goes on.
    let mut slow = running.open("vol", Style::Structured);
    let cookie = slow.client.write(0, (full + 2) * MIB, &pattern(2, 1 << 20));
    let bytes = slow.client.take_output();
    use std::io::Write as _;
    slow.stream.write_all(&bytes[..bytes.len() / 2]).expect("the server reads");
    until_waiting(&running, 1);
    until_waiting(&running, 0);
    slow.stream.write_all(&bytes[bytes.len() / 2..]).expect("the server reads");
    assert_eq!(slow.answer(cookie).error(), Some(ENOSPC));
    assert!(slow.read(MIB, MIB) == pattern(1, 1 << 20));
    // Who goes away is forgotten, in the middle of a payload too.
    for part in [1, 2] {
        let mut gone = running.open("vol", Style::Structured);
        gone.client.write(0, (full + 3) * MIB, &pattern(3, 1 << 20));
        let bytes = gone.client.take_output();
        gone.stream.write_all(&bytes[..bytes.len() / part]).expect("the server reads");
        until_waiting(&running, 1);
        drop(gone);
        until_waiting(&running, 0);
    }
    drop((wire, slow));
    running.stop();

    site.config.full_wait = Duration::from_secs(3600);
    let running = site.start();
    let mut wire = running.open("vol", Style::Structured);
    let refused = wire.client.write(0, (full + 4) * MIB, &pattern(1, 1 << 20));
    wire.push();
    until_waiting(&running, 1);
    // One that may fail is told that there is no space; the stop tells the rest.
    set(&running, OnFull::Error);
    assert_eq!(wire.answer(refused).error(), Some(ENOSPC));
    set(&running, OnFull::Wait);
    let stopped = wire.client.write(0, (full + 4) * MIB, &pattern(1, 1 << 20));
    wire.push();
    until_waiting(&running, 1);
    let start = Instant::now();
    running.node.shutdown();
    assert_eq!(wire.answer(stopped).error(), Some(108));
    drop(running);
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
}
