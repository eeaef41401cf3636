//! Reads and writes: what is written is what is read, however it is asked for.

use super::harness::{MIB, Site, pattern};
use flagstone_nbd::Style;
use flagstone_nbd::proto::*;
use flagstone_nbd::reply::StatusExtent;

const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

#[test]
fn every_style_reads_what_was_written_at_any_alignment() {
    let site = Site::new();
    let running = site.start();
    running.volume("vol", 64 * MIB);
    for (seed, style) in STYLES.into_iter().enumerate() {
        let mut wire = running.open("vol", style);
        let base = seed as u64 * 16 * MIB;
        for (i, (offset, len)) in [
            (0, 4096),
            (0, 1),
            (4095, 2),
            (1000, 3000),
            (12288 + 5, 4096),
            (20480, 65536),
            (100_000, 200_001),
            (1 << 20, 3 << 20),
        ]
        .into_iter()
        .enumerate()
        {
            let data = pattern(i as u64 + 1, len);
            wire.write(base + offset, &data);
            assert_eq!(wire.read(base + offset, len as u64), data, "{style:?} {offset} {len}");
        }
    }
}

#[test]
fn the_longest_requests_work() {
    let site = Site::new();
    let running = site.start();
    running.volume("vol", 64 * MIB);
    for style in STYLES {
        let mut wire = running.open("vol", style);
        let data = pattern(9, 32 << 20);
        wire.write(4097, &data);
        assert!(wire.read(4097, 32 << 20) == data, "{style:?}");
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

#[test]
fn a_volume_behaves_like_a_vector() {
    const SIZE: u64 = 4 * MIB;
    let site = Site::new();
    let running = site.start();
    running.volume("vol", SIZE);
    let mut wires = STYLES.map(|style| running.open("vol", style));
    let mut model = vec![0_u8; SIZE as usize];
    let mut random = Random(1);
    for round in 0..1500 {
        let wire = &mut wires[random.below(3) as usize];
        let mut offset = random.below(SIZE);
        let bound = [500, 5000, 50_000, 400_000][random.below(4) as usize];
        let mut len = 1 + random.below(bound);
        if random.below(2) == 0 {
            offset &= !4095;
            len = len.next_multiple_of(4096);
        }
        let len = len.min(SIZE - offset);
        let range = offset as usize..(offset + len) as usize;
        match random.below(8) {
            0..3 => {
                let data = pattern(round, len as usize);
                model[range].copy_from_slice(&data);
                wire.write(offset, &data);
            }
            3 => {
                let flags = if random.below(2) == 0 { CMD_FLAG_NO_HOLE } else { 0 };
                model[range].fill(0);
                assert_eq!(wire.request(CMD_WRITE_ZEROES, flags, offset, len).errors, []);
            }
            4 => {
                assert_eq!(wire.request(CMD_TRIM, CMD_FLAG_FUA, offset, len).errors, []);
                let (first, end) = (offset.next_multiple_of(4096), (offset + len) & !4095);
                if first < end {
                    model[first as usize..end as usize].fill(0);
                }
            }
            5 => {
                let cookie = wire.client.flush();
                assert_eq!(wire.answer(cookie).errors, []);
            }
            _ => assert!(wire.read(offset, len) == model[range], "round {round}"),
        }
    }
    for wire in &mut wires {
        assert!(wire.read(0, SIZE) == model);
    }
}

#[test]
fn deep_pipelines_are_answered_in_full() {
    let site = Site::new();
    let running = site.start();
    running.volume("vol", 32 * MIB);
    for style in STYLES {
        let mut wire = running.open("vol", style);
        for i in 0..4000_u64 {
            wire.client.write(0, i % 4000 * 4096, &pattern(i, 4096));
        }
        // Sent while replies come, since a client that only sends would stall itself.
        let answers = converse(&mut wire);
        assert_eq!(answers.len(), 4000);
        assert!(answers.values().all(|outcome| outcome.errors.is_empty()));
        let cookies: Vec<u64> = (0..4000_u64).map(|i| wire.client.read(i * 4096, 4096)).collect();
        let answers = converse(&mut wire);
        for (i, cookie) in cookies.into_iter().enumerate() {
            assert!(answers[&cookie].data == pattern(i as u64, 4096), "{style:?} block {i}");
        }
    }
}

/// Sends from one thread while another receives.
fn converse(
    wire: &mut super::harness::Wire,
) -> std::collections::BTreeMap<u64, flagstone_nbd::testing::Outcome> {
    use std::io::Write;
    let bytes = wire.client.take_output();
    let mut sender = wire.stream.try_clone().expect("a descriptor is left");
    let sending = std::thread::spawn(move || sender.write_all(&bytes));
    let answers = wire.answers();
    sending.join().expect("no panic").expect("the server reads");
    answers
}

#[test]
fn holes_are_told_as_holes() {
    let site = Site::new();
    let running = site.start();
    running.volume("vol", 32 * MIB);
    let mut wire = running.open("vol", Style::Structured);
    wire.write(MIB, &pattern(3, 4096));
    let cookie = wire.client.read(0, 32 * MIB);
    let outcome = wire.answer(cookie);
    assert_eq!(outcome.holes, 2);
    assert!(outcome.data[MIB as usize..][..4096] == pattern(3, 4096));
    assert!(outcome.data[..MIB as usize].iter().all(|&byte| byte == 0));

    let outcome = wire.request(CMD_BLOCK_STATUS, 0, 0, 32 * MIB);
    let hole = STATE_HOLE | STATE_ZERO;
    let extents = [
        StatusExtent { len: MIB, flags: hole },
        StatusExtent { len: 4096, flags: 0 },
        StatusExtent { len: 31 * MIB - 4096, flags: hole },
    ];
    assert_eq!(outcome.extents, extents);
    let one = wire.request(CMD_BLOCK_STATUS, CMD_FLAG_REQ_ONE, 100, MIB);
    assert_eq!(one.extents, [StatusExtent { len: MIB - 100, flags: hole }]);

    assert_eq!(wire.request(CMD_WRITE_ZEROES, CMD_FLAG_NO_HOLE, 0, 8192).errors, []);
    let outcome = wire.request(CMD_BLOCK_STATUS, 0, 0, 16384);
    assert_eq!(outcome.extents[0], StatusExtent { len: 8192, flags: STATE_ZERO });
}

#[test]
fn many_extents_are_told_in_parts() {
    let site = Site::new();
    let running = site.start();
    running.volume("vol", 32 * MIB);
    for style in [Style::Structured, Style::Extended] {
        let mut wire = running.open("vol", style);
        for i in 0..3000 {
            wire.client.write(0, i * 8192, &[7; 4096]);
        }
        assert!(converse(&mut wire).values().all(|outcome| outcome.errors.is_empty()));
        let mut at = 0;
        let mut parts = 0;
        while at < 3000 * 8192 {
            let outcome = wire.request(CMD_BLOCK_STATUS, 0, at, 3000 * 8192 - at);
            assert_eq!(outcome.errors, []);
            at += outcome.extents.iter().map(|extent| extent.len).sum::<u64>();
            parts += 1;
        }
        assert!(parts > 1);
    }
}

#[test]
fn refused_requests_do_not_end_the_connection() {
    let site = Site::new();
    let running = site.start();
    running.volume("vol", MIB);
    for style in STYLES {
        let mut wire = running.open("vol", style);
        let cookie = wire.client.write(0, MIB - 10, &pattern(1, 5000));
        assert_eq!(wire.answer(cookie).error(), Some(28));
        assert_eq!(wire.request(CMD_READ, 0, MIB, 1).error(), Some(22));
        assert_eq!(wire.request(77, 0, 0, 0).error(), Some(22));
        assert_eq!(wire.request(CMD_CACHE, 0, 0, 4096).errors, []);
        assert_eq!(wire.request(CMD_READ, 0, 0, 0).errors, []);
        wire.write(0, &pattern(2, 4096));
        assert_eq!(wire.read(0, 4096), pattern(2, 4096));
    }
}

#[test]
fn unfragmented_reads_come_in_one_piece() {
    let site = Site::new();
    let running = site.start();
    running.volume("vol", 4 * MIB);
    let mut wire = running.open("vol", Style::Structured);
    let data = pattern(4, 300_000);
    wire.write(50, &data);
    // The client checks that the reply is not fragmented.
    let outcome = wire.request(CMD_READ, CMD_FLAG_DF, 51, 124 << 10);
    assert_eq!(outcome.errors, []);
    assert!(outcome.data == data[1..][..124 << 10]);
    assert_eq!(wire.request(CMD_READ, CMD_FLAG_DF, 0, (124 << 10) + 1).error(), Some(75));
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart() {
    let site = Site::new();
    let data = pattern(5, 1 << 20);
    {
        let running = site.start();
        running.volume("vol", 8 * MIB);
        let mut wire = running.open("vol", Style::Extended);
        wire.write(12345, &data);
        running.stop();
        assert!(wire.is_closed());
    }
    let running = site.start();
    let mut wire = running.open("vol", Style::Simple);
    assert!(wire.read(12345, 1 << 20) == data);
    running.stop();
}

#[test]
fn tcp_serves_too() {
    let mut site = Site::new();
    site.config.nbd_tcp = Some(([127, 0, 0, 1], 0).into());
    let running = site.start();
    let address = running.node.nbd_tcp().expect("it listens");
    let mut stream = std::net::TcpStream::connect(address).expect("it accepts");
    let mut greeting = [0; 18];
    std::io::Read::read_exact(&mut stream, &mut greeting).expect("the server speaks first");
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\x00\x03");
}
