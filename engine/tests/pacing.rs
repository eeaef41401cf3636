//! Writers beside the cleaner, on a device that takes time: as free segments become few they are
//! slowed down little by little, and never stopped.
//!
//! Time is the test's own, so that the figures are the same in every run and on every machine:
//! what is transferred goes through one pipe, command by command, and each command takes a
//! while beside that.

mod support;

use flagstone_block::{BLOCK_SIZE, DeviceCommand, DeviceIo, Durability, Tag, VolumeId};
use flagstone_engine::SubmitError;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use support::{Numbers, World};

const B: u64 = BLOCK_SIZE as u64;
const MIB: u64 = 1 << 20;
const DEPTH: usize = 32;

/// A device: bytes per second, and what a command takes beside its transfer.
#[derive(Clone, Copy)]
struct Speed {
    bytes_per_s: u64,
    latency_ns: u64,
}

const FAST: Speed = Speed { bytes_per_s: 1_000_000_000, latency_ns: 50_000 };
const SLOW: Speed = Speed { bytes_per_s: 200_000_000, latency_ns: 500_000 };

#[derive(Clone, Copy)]
enum Pick {
    Uniform,
    /// So many percent of the writes go to so many percent of the blocks.
    Hot(u64, u64),
}

impl Pick {
    fn next(self, numbers: &mut Numbers, blocks: u64) -> u64 {
        match self {
            Self::Hot(percent, part) if numbers.below(100) < percent => {
                numbers.below(blocks * part / 100)
            }
            _ => numbers.below(blocks),
        }
    }
}

/// Writers with a request each, over one connection: a request that is refused as busy is tried
/// again before those behind it.
struct Bench {
    world: World,
    volume: VolumeId,
    blocks: u64,
    speed: Speed,
    pick: Pick,
    numbers: Numbers,
    now_ns: u64,
    pipe_ns: u64,
    /// Commands under way, by when they end.
    ends: BinaryHeap<Reverse<(u64, u64)>>,
    commands: HashMap<u64, DeviceIo>,
    next: u64,
    /// Requests that are not taken yet, and since when.
    queue: VecDeque<(u64, u64)>,
    since: HashMap<Tag, u64>,
    data: Vec<u8>,
    /// Latencies, and when each request ended.
    done: Vec<(u64, u64)>,
}

impl Bench {
    /// A pool with one volume, which takes `live` percent of it and was written in order.
    fn new(size: u64, segment: u32, live: u64, speed: Speed, pick: Pick) -> Self {
        let mut world = World::format(size, segment);
        let blocks = world.engine.usage().available / B * live / 100;
        let volume = world.create("data", blocks * B);
        let data = vec![7; 32 * BLOCK_SIZE];
        for lba in (0..blocks).step_by(32) {
            let bytes = &data[..(blocks - lba).min(32) as usize * BLOCK_SIZE];
            world.write(volume, lba * B, bytes).unwrap();
        }
        world.flush();
        let now_ns = world.now_ns;
        Self {
            world,
            volume,
            blocks,
            speed,
            pick,
            numbers: Numbers(7),
            now_ns,
            pipe_ns: now_ns,
            ends: BinaryHeap::new(),
            commands: HashMap::new(),
            next: 0,
            queue: VecDeque::new(),
            since: HashMap::new(),
            data,
            done: Vec::new(),
        }
    }

    fn ask(&mut self) {
        let lba = self.pick.next(&mut self.numbers, self.blocks);
        self.queue.push_back((lba, self.now_ns));
    }

    fn submit(&mut self) {
        while let Some(&(lba, since)) = self.queue.front() {
            let tag = self.world.tag();
            self.data[..8].copy_from_slice(&tag.0.to_le_bytes());
            let (engine, arena) = (&mut self.world.engine, &mut self.world.arena);
            let block = &self.data[..BLOCK_SIZE];
            match engine.write(arena, tag, self.volume, lba * B, block, Durability::Completed) {
                Ok(_) => {
                    self.since.insert(tag, since);
                    self.queue.pop_front();
                }
                Err(SubmitError::Busy) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Takes what the engine has to say; returns whether there was anything.
    fn drain(&mut self) -> bool {
        let mut any = false;
        while let Some(io) = self.world.engine.next_io() {
            any = true;
            let bytes = match io.command {
                DeviceCommand::Read { buffer, .. } | DeviceCommand::Write { buffer, .. } => {
                    buffer.len() as u64
                }
                _ => 0,
            };
            self.pipe_ns =
                self.pipe_ns.max(self.now_ns) + bytes * 1_000_000_000 / self.speed.bytes_per_s;
            self.next += 1;
            self.ends.push(Reverse((self.pipe_ns + self.speed.latency_ns, self.next)));
            self.commands.insert(self.next, io);
        }
        while let Some(completion) = self.world.engine.next_completion() {
            any = true;
            completion.result.unwrap();
            let since = self.since.remove(&completion.tag).unwrap();
            self.done.push((self.now_ns - since, self.now_ns));
            self.ask();
        }
        any
    }

    /// Overwrites `ops` blocks.
    fn run(&mut self, ops: u64) {
        let end = self.done.len() + ops as usize;
        while self.queue.len() + self.since.len() < DEPTH {
            self.ask();
        }
        while self.done.len() < end {
            self.submit();
            self.world.engine.pump(&mut self.world.arena, self.now_ns);
            if self.drain() {
                continue;
            }
            let timer = self.world.engine.next_timer_ns();
            let next = self.ends.peek().map(|Reverse((at, _))| *at);
            let at = timer.into_iter().chain(next).min().expect("stuck: nothing is under way");
            if next.is_none() {
                // A request that waits must not depend on a timer.
                assert!(timer.is_some_and(|at| at <= self.now_ns), "stuck: only time may help");
            }
            self.now_ns = self.now_ns.max(at);
            while let Some(&Reverse((at, id))) = self.ends.peek()
                && at <= self.now_ns
            {
                self.ends.pop();
                let io = self.commands.remove(&id).unwrap();
                self.world.perform(io);
            }
        }
    }

    /// Overwrites every block `times` times on average and says what that was like.
    fn measure(&mut self, times: f64) -> Figures {
        self.done.clear();
        let (from_ns, before) = (self.now_ns, self.world.engine.counters());
        self.run((self.blocks as f64 * times) as u64);
        let after = self.world.engine.counters();
        let (moved, written) = (
            after.blocks_moved - before.blocks_moved,
            after.blocks_written - before.blocks_written,
        );
        let mut latencies: Vec<u64> = self.done.iter().map(|&(ns, _)| ns / 1000).collect();
        latencies.sort_unstable();
        let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
        let span = self.now_ns - from_ns;
        const WINDOW_NS: u64 = 10_000_000;
        let mut windows = vec![0u64; (span / WINDOW_NS) as usize];
        for &(_, ended) in &self.done {
            if let Some(count) = windows.get_mut(((ended - from_ns) / WINDOW_NS) as usize) {
                *count += 1;
            }
        }
        windows.sort_unstable();
        let iops = self.done.len() as f64 * 1e9 / span as f64;
        let per_window = iops * WINDOW_NS as f64 / 1e9;
        Figures {
            iops,
            amplification: 1.0 + moved as f64 / written as f64,
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: at(1.0),
            least: windows[0] as f64 / per_window,
            low: windows[windows.len() / 100] as f64 / per_window,
        }
    }
}

/// What writers saw. `least` and `low`: the worst 10 ms and the worst hundredth of all 10 ms, as parts
/// of the mean throughput.
#[derive(Clone, Copy, Debug)]
struct Figures {
    iops: f64,
    amplification: f64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
    least: f64,
    low: f64,
}

fn print(what: &str, f: Figures) {
    println!(
        "{what:34} {:7.0} IOPS, WA {:.3}, p50 {} p99 {} p99.9 {} max {} us, 10 ms: {:.2} {:.2}",
        f.iops, f.amplification, f.p50_us, f.p99_us, f.p999_us, f.max_us, f.least, f.low
    );
}

/// Segments of 1 MiB for small pools.
fn run(mib: u64, speed: Speed, live: u64, pick: Pick) -> Figures {
    let segment = if mib < 1024 { MIB } else { 4 * MIB } as u32;
    let mut bench = Bench::new(mib * MIB, segment, live, speed, pick);
    bench.run(bench.blocks);
    bench.measure(2.0)
}

/// No 10 ms without writes, and no write that waits for a whole segment to be cleaned: that takes 8 ms,
/// and more than one is often needed.
#[test]
fn writers_are_slowed_down_evenly() {
    let figures = run(256, FAST, 80, Pick::Uniform);
    print("uniform", figures);
    assert!(figures.low > 0.2 && figures.p999_us < 8000, "{figures:?}");
    let figures = run(256, FAST, 80, Pick::Hot(95, 5));
    print("95/5", figures);
    assert!(figures.low > 0.2 && figures.p999_us < 8000, "{figures:?}");
}

/// The figures of docs/decisions/0015. `PACE_MIB` is the pool's size, `PACE_ONLY` a part of the names of
/// what is to be measured; without them there is nothing to do.
#[test]
fn table() {
    let Ok(mib) = std::env::var("PACE_MIB") else { return };
    let mib = mib.parse().unwrap();
    let only = std::env::var("PACE_ONLY").unwrap_or_default();
    for (name, speed) in [("fast", FAST), ("slow", SLOW)] {
        for live in [80, 90] {
            for (kind, pick) in [("uniform", Pick::Uniform), ("95/5", Pick::Hot(95, 5))] {
                let what = format!("{mib} MiB {name} {live} % {kind}");
                if what.contains(&only) {
                    print(&what, run(mib, speed, live, pick));
                }
            }
        }
    }
}
