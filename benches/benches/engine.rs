//! The engine alone: what a 4 KiB request costs above the device and below the front-end.
//!
//! The device is memory and instant, so the figures are the engine's own work: admission, copy,
//! checksum, records, map, and for writes their share of sealing and freeing segments.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flagstone_block::{
    BLOCK_SIZE, BlockIo, Buffer, Buffers, DeviceCommand, DeviceError, Durability, Lba, Tag,
    VolumeId,
};
use flagstone_engine::{
    DiffSpec, Engine, FormatOptions, OpenOptions, SharedUsage, SnapshotSpec, SubmitError,
    VolumeSpec,
};

const DEVICE_BYTES: usize = 256 << 20;
/// Small, so that random overwrites leave whole segments dead without a cleaner.
const VOLUME_BYTES: u64 = 8 << 20;
const DEPTH: u64 = 32;

struct Memory(Vec<u8>);

impl BlockIo for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        into.copy_from_slice(&self.0[offset as usize..][..into.len()]);
        Ok(())
    }
    fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.0[offset as usize..][..from.len()].copy_from_slice(from);
        Ok(())
    }
    fn flush(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Hands out slots in order; enough for an engine that lives as long as the benchmark.
struct Arena {
    bytes: Vec<u8>,
    next: u32,
}

impl Buffers for Arena {
    fn alloc(&mut self, blocks: u32) -> Option<Buffer> {
        let slot = self.next;
        self.next += blocks;
        (self.next as usize * BLOCK_SIZE <= self.bytes.len()).then_some(Buffer { slot, blocks })
    }
    fn free(&mut self, _: Buffer) {}
    fn bytes(&self, buffer: Buffer) -> &[u8] {
        &self.bytes[buffer.slot as usize * BLOCK_SIZE..][..buffer.len()]
    }
    fn bytes_mut(&mut self, buffer: Buffer) -> &mut [u8] {
        &mut self.bytes[buffer.slot as usize * BLOCK_SIZE..][..buffer.len()]
    }
}

struct World {
    memory: Memory,
    arena: Arena,
    engine: Engine,
    volume: VolumeId,
    buffer: Buffer,
    seed: u64,
}

impl World {
    fn new() -> Self {
        let mut memory = Memory(vec![0; DEVICE_BYTES]);
        let mut arena = Arena { bytes: vec![0; 64 << 20], next: 0 };
        let format = FormatOptions { pool_uuid: [1; 16], nonce: 1, segment_bytes: 4 << 20 };
        Engine::format(&mut memory, &format).expect("the device is large enough");
        let (mut engine, _) = Engine::open(&mut memory, &mut arena, &OpenOptions::default())
            .expect("it was just formatted");
        let spec = VolumeSpec {
            uuid: [1; 16],
            name: "v",
            size: VOLUME_BYTES,
            settings: Default::default(),
        };
        let volume = engine.create_volume(&mut arena, Tag(0), &spec).expect("there is room");
        let buffer = arena.alloc(DEPTH as u32).expect("there is room");
        let mut world = Self { memory, arena, engine, volume, buffer, seed: 1 };
        while world.turn() == 0 {}
        // Sequentially over the whole volume, so that every block is mapped.
        let data = vec![7; BLOCK_SIZE];
        for lba in 0..VOLUME_BYTES / BLOCK_SIZE as u64 {
            world.write(lba, &data);
        }
        while world.turn() > 0 {}
        world
    }

    fn turn(&mut self) -> u64 {
        self.engine.pump(&mut self.arena, 0);
        while let Some(io) = self.engine.next_io() {
            let result = match io.command {
                DeviceCommand::Read { offset, buffer } => {
                    self.memory.read_at(offset, self.arena.bytes_mut(buffer))
                }
                DeviceCommand::Write { offset, buffer } => {
                    self.memory.write_at(offset, self.arena.bytes(buffer))
                }
                DeviceCommand::Flush | DeviceCommand::Discard { .. } => Ok(()),
            };
            self.engine.device_done(&mut self.arena, io.token, result);
        }
        self.engine.pump(&mut self.arena, 0);
        let mut answers = 0;
        while self.engine.next_completion().is_some() {
            answers += 1;
        }
        answers
    }

    fn write(&mut self, lba: u64, data: &[u8]) {
        let offset = Lba(lba).offset();
        loop {
            let (arena, volume) = (&mut self.arena, self.volume);
            let durability = Durability::Completed;
            match self.engine.write(arena, Tag(1), volume, offset, data, durability) {
                Ok(_) => return,
                Err(SubmitError::Busy) => {
                    self.turn();
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn random_lba(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.seed >> 33) % (VOLUME_BYTES / BLOCK_SIZE as u64)
    }
}

fn engine(criterion: &mut Criterion) {
    let mut world = World::new();
    let data = vec![9; BLOCK_SIZE];
    let mut group = criterion.benchmark_group("engine, 4 KiB, depth 32");
    group.throughput(Throughput::Elements(DEPTH));
    group.bench_function("random write", |bencher| {
        bencher.iter(|| {
            for _ in 0..DEPTH {
                let lba = world.random_lba();
                world.write(lba, black_box(&data));
            }
            world.turn()
        });
    });
    group.bench_function("random read", |bencher| {
        bencher.iter(|| {
            for i in 0..DEPTH as u32 {
                let lba = Lba(world.random_lba());
                let into = world.buffer.part(i, 1);
                world
                    .engine
                    .read(&mut world.arena, Tag(2), world.volume, lba, into)
                    .expect("within the bound of reads");
            }
            world.turn()
        });
    });
    group.finish();
}

/// A thin volume of 1 TiB: 10,000 blocks at random, a snapshot, 1,000 more.
fn maps(criterion: &mut Criterion) {
    const BLOCKS: u64 = 1 << 28;
    let mut world = World::new();
    let settings = Default::default();
    let spec = VolumeSpec { uuid: [2; 16], name: "w", size: BLOCKS << 12, settings };
    let made = world.engine.create_volume(&mut world.arena, Tag(0), &spec);
    world.volume = made.expect("there is room");
    while world.turn() == 0 {}
    let data = vec![7; BLOCK_SIZE];
    let scatter = |world: &mut World, blocks: u64| {
        for _ in 0..blocks {
            world.random_lba();
            let lba = (world.seed >> 30) % BLOCKS;
            world.write(lba, &data);
        }
        while world.turn() > 0 {}
    };
    scatter(&mut world, 10_000);
    let spec = SnapshotSpec { volume: world.volume, uuid: [3; 16], name: "w@s" };
    let taken = world.engine.snapshot_volumes(&mut world.arena, Tag(0), &[spec]);
    let snapshot = taken.expect("there is room");
    while world.turn() == 0 {}
    scatter(&mut world, 1000);

    let mut group = criterion.benchmark_group("maps, 1 TiB");
    let spec = DiffSpec { older: Some(snapshot), newer: world.volume };
    let mut out = Vec::with_capacity(2000);
    group.bench_function("differences, 1000 blocks", |bencher| {
        bencher.iter(|| {
            out.clear();
            let mut next = Some(0);
            while let Some(from) = next {
                let told = world.engine.diff(&spec, from..u64::MAX, &mut out, 2000);
                next = told.expect("all of the map is in memory");
            }
            assert!(out.len() > 990);
        });
    });
    group.throughput(Throughput::Elements(10_000));
    group.bench_function("what a snapshot shares, 10,000 leaves", |bencher| {
        bencher.iter(|| {
            let mut usage = SharedUsage::default();
            while let Err(so_far) = world.engine.count_shared(snapshot, usage).expect("it is there")
            {
                usage = so_far;
            }
            usage
        });
    });
    group.finish();
}

criterion_group!(benches, engine, maps);
criterion_main!(benches);
