//! A node under a steady load allocates nothing once it is warm: from the socket through session,
//! engine and ring to the device and back. The allocator itself counts, for the whole process, so
//! this is the only test here and its clients are made not to allocate either.

use std::alloc::System;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use flagstone::node::{self, NodeConfig};
use flagstone::pool::create::{self, CreateOptions};
use flagstone_nbd::Style;
use flagstone_nbd::proto::*;
use flagstone_nbd::testing::{Client, Event, encode};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Longest wait for anything; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

const BLOCK: usize = 4096;

/// Requests that each connection has in flight.
const DEPTH: u64 = 16;

/// Blocks that are read and written: small, so that segments die and are used again.
const BLOCKS: u64 = 2048;

const READ: u64 = 1 << 32;

/// Calls that got memory, by the whole process.
fn allocations() -> usize {
    let stats = ALLOCATOR.stats();
    stats.allocations + stats.reallocations
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

/// A connection whose buffers are there from the start.
struct Connection {
    stream: UnixStream,
    style: Style,
    out: Vec<u8>,
    payload: Box<[u8; BLOCK]>,
}

impl Connection {
    fn open(socket: &Path, style: Style) -> Self {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Client::new("v", style);
        stream.write_all(&client.take_output()).unwrap();
        let mut events = Vec::new();
        while events.is_empty() {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            client.receive(&byte, &mut events).unwrap();
        }
        assert!(matches!(events[0], Event::Opened { .. }), "{events:?}");
        let out = Vec::with_capacity(DEPTH as usize * (BLOCK + 64));
        Self { stream, style, out, payload: Box::new([7; BLOCK]) }
    }

    /// Sends [`DEPTH`] requests: writes, reads and, in every fourth round, a flush.
    fn send(&mut self, round: u64, random: &mut Random) {
        self.out.clear();
        let (out, style) = (&mut self.out, self.style);
        for number in 0..DEPTH {
            let offset = random.below(BLOCKS) * BLOCK as u64;
            if number == 0 && round.is_multiple_of(4) {
                encode::request(out, style, 0, CMD_FLUSH, number, 0, 0);
            } else if random.below(2) == 0 {
                self.payload[..8].copy_from_slice(&(round << 8 | number).to_le_bytes());
                encode::write(out, style, 0, number, offset, &self.payload[..]);
            } else {
                encode::request(out, style, 0, CMD_READ, number | READ, offset, BLOCK as u64);
            }
        }
        self.stream.write_all(&self.out).unwrap();
    }

    /// Takes the answers to what [`Connection::send`] has sent; all must be successes.
    fn receive(&mut self) {
        let mut answered = 0;
        while answered < DEPTH {
            let mut magic = [0; 4];
            self.stream.read_exact(&mut magic).unwrap();
            match u32::from_be_bytes(magic) {
                SIMPLE_REPLY_MAGIC => {
                    let mut rest = [0; 12];
                    self.stream.read_exact(&mut rest).unwrap();
                    assert_eq!(rest[..4], [0; 4], "an error");
                    let cookie = u64::from_be_bytes(rest[4..].try_into().unwrap());
                    if cookie & READ != 0 {
                        self.stream.read_exact(&mut self.payload[..]).unwrap();
                    }
                    answered += 1;
                }
                magic => {
                    let mut rest = [0; 28];
                    let extended = magic == EXTENDED_REPLY_MAGIC;
                    let rest = if extended { &mut rest[..] } else { &mut rest[..16] };
                    self.stream.read_exact(rest).unwrap();
                    let flags = u16::from_be_bytes([rest[0], rest[1]]);
                    let kind = u16::from_be_bytes([rest[2], rest[3]]);
                    assert_eq!(kind & REPLY_TYPE_FLAG_ERROR, 0, "an error");
                    let at = rest.len() - 4;
                    let mut left = u32::from_be_bytes(rest[at..].try_into().unwrap()) as usize;
                    while left > 0 {
                        let part = left.min(BLOCK);
                        self.stream.read_exact(&mut self.payload[..part]).unwrap();
                        left -= part;
                    }
                    answered += u64::from(flags & REPLY_FLAG_DONE);
                }
            }
        }
    }
}

#[test]
fn a_warm_node_allocates_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let pool = directory.path().join("pool");
    let options = CreateOptions {
        path: pool.clone(),
        more: Vec::new(),
        size_bytes: Some(256 << 20),
        segment_bytes: None,
        preallocate: false,
        force: false,
        quiet: true,
    };
    create::create(&options).unwrap();
    let socket = directory.path().join("nbd.sock");
    let config = NodeConfig {
        pools: vec![pool],
        nbd_unix: Some(socket.clone()),
        memory_bytes: 64 << 20,
        max_connections: 8,
        ..NodeConfig::default()
    };
    let node = node::start(config).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(node.create_volume("v".into(), 64 << 20, [1; 16], None)).unwrap();
    let styles = [Style::Simple, Style::Structured, Style::Extended, Style::Structured];
    let mut connections = styles.map(|style| Connection::open(&socket, style));
    let mut random = Random(1);
    let mut round = |round| {
        for connection in &mut connections {
            connection.send(round, &mut random);
        }
        for connection in &mut connections {
            connection.receive();
        }
    };
    // Long enough for the log to go round the pool and for every queue to find its size.
    let mut rounds = 0..;
    let mut run = |count| rounds.by_ref().take(count).for_each(&mut round);
    run(WARM_ROUNDS);
    let before = allocations();
    assert!(before > 0, "nothing is counted");
    run(ROUNDS);
    let allocated = allocations() - before;
    let stats = runtime.block_on(node.stats()).unwrap();
    let requests = stats.reads + stats.writes + stats.flushes;
    assert_eq!(requests, (WARM_ROUNDS + ROUNDS) as u64 * 4 * DEPTH);
    assert_eq!(stats.errors, 0);
    assert_eq!(allocated, 0, "in {} requests", ROUNDS as u64 * 4 * DEPTH);
    node.shutdown();
    node.join().unwrap();
}

/// Rounds before the count: each writes about 32 blocks.
const WARM_ROUNDS: usize = 3000;

/// Rounds that are counted.
const ROUNDS: usize = 1000;
