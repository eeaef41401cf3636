//! A node over pools in a temporary directory, and blocking clients of it.

use crate::node::{NodeConfig, NodeHandle, NodeStats, OnFull, start};
use flagstone_block::BlockIo;
use flagstone_engine::{Engine, FormatOptions};
use flagstone_nbd::Style;
use flagstone_nbd::testing::{Client, Event, Outcome};
use flagstone_ring::{Device, OpenMode, SyncDevice};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Long enough that only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) const MIB: u64 = 1 << 20;

/// A directory with formatted pools, and the settings to serve them.
pub(super) struct Site {
    directory: tempfile::TempDir,
    pub(super) config: NodeConfig,
}

impl Site {
    pub(super) fn new() -> Self {
        Self::with_pools(&[128 * MIB])
    }

    pub(super) fn with_pools(sizes: &[u64]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut pools = Vec::new();
        for (i, &size) in sizes.iter().enumerate() {
            let path = directory.path().join(format!("pool{i}"));
            File::create(&path).and_then(|file| file.set_len(size)).expect("a sparse file");
            let device = Device::open(&path, OpenMode::Exclusive).expect("a file of our own");
            let mut io = SyncDevice::new(device);
            let options =
                FormatOptions { pool_uuid: [i as u8 + 1; 16], nonce: 1, segment_bytes: 1 << 20 };
            Engine::format(&mut io, &options).expect("it is large enough");
            io.flush().expect("a file can be synced");
            pools.push(path);
        }
        let config = NodeConfig {
            pools,
            nbd_unix: Some(directory.path().join("nbd.sock")),
            memory_bytes: 64 << 20,
            max_connections: 16,
            on_full: OnFull::Error,
            ..NodeConfig::default()
        };
        Self { directory, config }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn start(&self) -> Running {
        let node = start(self.config.clone()).expect("the pools are fine");
        let socket = self.config.nbd_unix.clone().expect("a unix socket is configured");
        Running { node, socket, ended: false }
    }
}

/// A node that is stopped when dropped.
pub(super) struct Running {
    pub(super) node: NodeHandle,
    socket: PathBuf,
    ended: bool,
}

/// Waits for an answer without a runtime of its own.
pub(super) fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(future)
}

impl Running {
    pub(super) fn volume(&self, name: &str, size: u64) {
        wait(self.node.create_volume(name.into(), size, *b"0123456789abcdef", None))
            .expect("the pool has room");
    }

    pub(super) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).expect("the node listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
        stream.set_write_timeout(Some(PATIENCE)).expect("not zero");
        stream
    }

    pub(super) fn open(&self, name: &str, style: Style) -> Wire {
        let mut wire =
            Wire { stream: self.connect(), client: Client::new(name, style), events: Vec::new() };
        wire.push();
        match wire.next_event() {
            Some(Event::Opened { size, .. }) => assert!(size > 0),
            other => panic!("{other:?}"),
        }
        wire
    }

    pub(super) fn stats(&self) -> NodeStats {
        wait(self.node.stats()).expect("the node runs")
    }

    /// Asks until the counters are as wanted; for what happens after a client is gone.
    pub(super) fn until(&self, what: &str, wanted: impl Fn(&NodeStats) -> bool) -> NodeStats {
        let start = std::time::Instant::now();
        loop {
            let stats = self.stats();
            if wanted(&stats) {
                return stats;
            }
            assert!(start.elapsed() < PATIENCE, "never {what}: {stats:?}");
            std::thread::yield_now();
        }
    }

    /// The counters once nothing is written in the background any more: a checkpoint may follow an opening.
    pub(super) fn at_rest(&self) -> NodeStats {
        let start = std::time::Instant::now();
        let mut before = self.stats();
        loop {
            std::thread::sleep(std::time::Duration::from_millis(200));
            let now = self.stats();
            let io =
                |stats: &NodeStats| (stats.device_writes, stats.device_reads, stats.device_flushes);
            if io(&now) == io(&before) {
                return now;
            }
            assert!(start.elapsed() < PATIENCE, "never at rest: {now:?}");
            before = now;
        }
    }

    pub(super) fn stop(mut self) {
        self.ended = true;
        self.node.shutdown();
        self.node.join().expect("a clean stop");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.node.shutdown();
            let outcome = self.node.join();
            if !std::thread::panicking() {
                outcome.expect("a clean stop");
            }
        }
    }
}

/// A client on a socket.
pub(super) struct Wire {
    pub(super) stream: UnixStream,
    pub(super) client: Client,
    events: Vec<Event>,
}

impl Wire {
    /// Sends what the client wants sent.
    pub(super) fn push(&mut self) {
        let bytes = self.client.take_output();
        self.stream.write_all(&bytes).expect("the server reads");
    }

    /// The next thing the client learns; `None` when the server has closed the connection.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        let mut buffer = [0; 64 << 10];
        while self.events.is_empty() {
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(len) => {
                    let learnt = self.client.receive(&buffer[..len], &mut self.events);
                    learnt.expect("the server keeps to the protocol");
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
        Some(self.events.remove(0))
    }

    /// Waits for the answer to `cookie`; none other may be pending.
    pub(super) fn answer(&mut self, cookie: u64) -> Outcome {
        self.push();
        match self.next_event() {
            Some(Event::Done { cookie: answered, outcome }) => {
                assert_eq!(answered, cookie);
                outcome
            }
            other => panic!("{other:?}"),
        }
    }

    /// The answers to everything that is pending, by cookie.
    pub(super) fn answers(&mut self) -> std::collections::BTreeMap<u64, Outcome> {
        self.push();
        let mut answers = std::collections::BTreeMap::new();
        while self.client.in_flight() > 0 || !self.events.is_empty() {
            match self.next_event() {
                Some(Event::Done { cookie, outcome }) => {
                    assert!(answers.insert(cookie, outcome).is_none());
                }
                other => panic!("{other:?}"),
            }
        }
        answers
    }

    pub(super) fn read(&mut self, offset: u64, len: u64) -> Vec<u8> {
        let cookie = self.client.read(offset, len);
        let outcome = self.answer(cookie);
        assert_eq!(outcome.errors, []);
        outcome.data
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let cookie = self.client.write(0, offset, data);
        assert_eq!(self.answer(cookie).errors, []);
    }

    pub(super) fn request(&mut self, kind: u16, flags: u16, offset: u64, len: u64) -> Outcome {
        let cookie = self.client.request(kind, flags, offset, len);
        self.answer(cookie)
    }

    /// Nothing more comes.
    pub(super) fn is_closed(&mut self) -> bool {
        self.next_event().is_none()
    }
}

/// Bytes that tell where they belong.
pub(super) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
