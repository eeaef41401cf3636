//! Clients that vanish, dawdle or lie, and pools that fill up: nobody else notices, and all memory
//! comes back.

use super::harness::{MIB, Site, pattern};
use crate::node::limits::FETCH_BLOCKS;
use flagstone_nbd::Style;
use flagstone_nbd::proto::*;
use flagstone_nbd::testing::{Event, encode};
use std::io::Write;
use std::net::Shutdown;

#[test]
fn a_client_that_vanishes_leaves_nothing_behind() {
    let site = Site::new();
    let running = site.start();
    running.volume("vol", 32 * MIB);
    let before = running.at_rest().buffer_bytes_now;
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        // In the middle of a payload, of a header, and of replies.
        for cut in [10, 28 + 5000, 28 + 100_000] {
            let mut wire = running.open("vol", style);
            let mut bytes = Vec::new();
            encode::write(&mut bytes, style, 0, 1, 4096, &pattern(1, 200_000));
            wire.stream.write_all(&bytes[..cut]).expect("the server reads");
        }
        let mut wire = running.open("vol", style);
        for i in 0..50 {
            wire.client.read(i * 4096, 1 << 20);
        }
        wire.push();
    }
    let after = running.until("all gone", |stats| {
        stats.connections_now == 0 && stats.requests_now == 0 && stats.buffer_bytes_now == before
    });
    assert_eq!(after.connections_accepted, 12);
}

#[test]
fn a_half_closed_client_still_gets_its_answers() {
    let site = Site::new();
    let running = site.start();
    running.volume("vol", 8 * MIB);
    let mut wire = running.open("vol", Style::Structured);
    let cookies: Vec<u64> = (0..20).map(|i| wire.client.read(i * 4096, 300_000)).collect();
    wire.push();
    wire.stream.shutdown(Shutdown::Write).expect("it is open");
    let answers = wire.answers();
    assert!(cookies.iter().all(|cookie| answers[cookie].errors.is_empty()));
    assert!(wire.is_closed());
}

#[test]
fn disc_finishes_what_is_in_flight() {
    let site = Site::new();
    let running = site.start();
    running.volume("vol", 8 * MIB);
    let mut wire = running.open("vol", Style::Structured);
    for i in 0..20 {
        wire.client.write(0, i * 8192, &pattern(i, 8192));
    }
    wire.client.disconnect();
    let answers = wire.answers();
    assert_eq!(answers.len(), 20);
    assert!(answers.values().all(|outcome| outcome.errors.is_empty()));
    assert!(wire.is_closed());
}

#[test]
fn clients_that_read_no_replies_stall_only_themselves() {
    let site = Site::new();
    let running = site.start();
    running.volume("vol", 32 * MIB);
    let mut good = running.open("vol", Style::Structured);
    for i in 0..32 {
        good.write(i * MIB, &pattern(i, 1 << 20));
    }
    let before = running.at_rest().buffer_bytes_now;
    let mut bad = Vec::new();
    for client in 0..12 {
        let style = if client % 2 == 0 { Style::Simple } else { Style::Structured };
        let mut wire = running.open("vol", style);
        if client < 4 {
            // Read until all memory that it may have holds what it does not take.
            wire.client.read(0, 32 * MIB);
        }
        for i in 0..32 {
            wire.client.read(i * MIB, 1 << 20);
        }
        wire.push();
        bad.push(wire);
    }
    for i in 0..32 {
        assert!(good.read(i * MIB, 1 << 20) == pattern(i, 1 << 20));
    }
    let stats = running.stats();
    assert!(stats.buffer_bytes_now <= stats.buffer_bytes_total);
    // Each can still be served once it reads.
    let mut late = bad.pop().expect("there are some");
    for (i, outcome) in late.answers().into_values().enumerate() {
        assert_eq!(outcome.errors, []);
        assert!(outcome.data == pattern(i as u64, 1 << 20));
    }
    drop(bad);
    drop(late);
    drop(good);
    running.until("all given back", |stats| {
        stats.connections_now == 0 && stats.buffer_bytes_now == before
    });
}

#[test]
fn noise_closes_its_own_connection_only() {
    let site = Site::new();
    let running = site.start();
    running.volume("vol", MIB);
    let mut good = running.open("vol", Style::Structured);
    for seed in 0..12 {
        let mut stream = running.connect();
        // The server may close before all of it is sent.
        let _ = stream.write_all(&pattern(seed, 300_000));
    }
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let mut wire = running.open("vol", style);
        let _ = wire.stream.write_all(&pattern(7, 100_000));
        assert!(wire.is_closed());
    }
    good.write(0, &pattern(1, 4096));
    assert_eq!(good.read(0, 4096), pattern(1, 4096));
    drop(good);
    running.until("all gone", |stats| stats.connections_now == 0);
}

#[test]
fn a_full_pool_says_so_reads_on_and_recovers() {
    let site = Site::with_pools(&[64 * MIB]);
    let running = site.start();
    running.volume("vol", 256 * MIB);
    let mut wire = running.open("vol", Style::Structured);
    let mut written = 0;
    let full = loop {
        let cookie = wire.client.write(0, written * MIB, &pattern(written, 1 << 20));
        match wire.answer(cookie).error() {
            None => written += 1,
            Some(errno) => break errno,
        }
        assert!(written < 64, "more than the device holds");
    };
    assert_eq!(full, 28);
    assert!(written >= 38, "only {written} MiB of 64 could be used");
    for i in 0..written {
        assert!(wire.read(i * MIB, 1 << 20) == pattern(i, 1 << 20), "MiB {i}");
    }
    assert_eq!(wire.request(CMD_TRIM, 0, 0, 256 * MIB).errors, []);
    let cookie = wire.client.flush();
    assert_eq!(wire.answer(cookie).errors, []);
    for i in 0..8 {
        wire.write(i * MIB, &pattern(i + 100, 1 << 20));
    }
    assert!(wire.read(0, 1 << 20) == pattern(100, 1 << 20));
}

#[test]
fn a_damaged_block_is_an_error_for_its_piece_alone() {
    let site = Site::new();
    let running = site.start();
    running.volume("vol", 8 * MIB);
    let mut wire = running.open("vol", Style::Structured);
    let data = pattern(1, 1 << 20);
    wire.write(0, &data);
    let late = pattern(2, 4096);
    wire.write(4 * MIB, &late);
    drop(wire);
    running.stop();
    // Find two blocks on the device and change a byte of each.
    let path = &site.config.pools[0];
    let mut device = std::fs::read(path).expect("a file of our own");
    for block in [&data[100 * 4096..101 * 4096], &late] {
        let at = device.chunks_exact(4096).position(|chunk| chunk == block);
        device[at.expect("it was written") * 4096 + 17] ^= 1;
    }
    std::fs::write(path, &device).expect("a file of our own");

    let running = site.start();
    let mut wire = running.open("vol", Style::Structured);
    let cookie = wire.client.read(0, 1 << 20);
    let outcome = wire.answer(cookie);
    assert_eq!(outcome.errors, [(5, Some(100 * 4096))]);
    // Pieces are 64 blocks long: the second one is missing, the others are whole.
    assert!(outcome.data[..64 * 4096] == data[..64 * 4096]);
    assert!(outcome.data[128 * 4096..] == data[128 * 4096..]);
    assert_eq!(wire.read(99 * 4096, 4096), data[99 * 4096..100 * 4096]);
    assert_eq!(wire.request(CMD_READ, 0, 100 * 4096 + 5, 10).errors, [(5, Some(100 * 4096 + 5))]);

    let mut simple = running.open("vol", Style::Simple);
    assert_eq!(simple.request(CMD_READ, 0, 90 * 4096, 65536).error(), Some(5));
    assert_eq!(simple.read(99 * 4096, 4096), data[99 * 4096..100 * 4096]);
    // A long simple read that fails in its first piece is refused ...
    assert_eq!(simple.request(CMD_READ, 0, 90 * 4096, 1 << 19).error(), Some(5));
    // ... as is one of whose first pieces any is known to be bad before the first has left ...
    let before = running.at_rest().buffer_bytes_now;
    for _ in 0..20 {
        let mut simple = running.open("vol", Style::Simple);
        let bad = simple.client.read(0, 1 << 20);
        let good = simple.client.read(2 * MIB, 1 << 20);
        simple.push();
        match simple.next_event() {
            Some(Event::Done { cookie, outcome }) => {
                assert_eq!((cookie, outcome.error()), (bad, Some(5)));
                assert_eq!(simple.answer(good).errors, []);
            }
            // ... and later it can only be cut off.
            other => assert_eq!(other, None),
        }
    }
    let mut simple = running.open("vol", Style::Simple);
    simple.client.read(4 * MIB - u64::from(FETCH_BLOCKS) * 4096, 4 * MIB);
    simple.push();
    assert!(simple.is_closed());
    running.until("all given back", |stats| stats.buffer_bytes_now == before);
}
