//! An engine over memory: instant, so that what is measured is the engine's own work.

use flagstone_block::{
    BLOCK_SIZE, BlockIo, Buffer, Buffers, DeviceCommand, DeviceError, Durability, Lba, Tag,
    VolumeId,
};
use flagstone_engine::{Engine, FormatOptions, OpenOptions, SubmitError, VolumeSpec};

/// Buffers for payloads of reads.
pub(crate) const READS: u64 = 32;

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
pub(crate) struct Arena {
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

/// A pool with one volume, all of which is mapped.
pub(crate) struct World {
    memory: Memory,
    pub(crate) arena: Arena,
    pub(crate) engine: Engine,
    pub(crate) volume: VolumeId,
    /// A block for each of [`READS`].
    pub(crate) buffer: Buffer,
    blocks: u64,
    seed: u64,
}

impl World {
    /// A device of so many bytes, of which the volume takes so many percent of what volumes may take.
    pub(crate) fn new(device_bytes: usize, segment_bytes: u32, percent: u64) -> Self {
        let mut memory = Memory(vec![0; device_bytes]);
        let mut arena = Arena { bytes: vec![0; 64 << 20], next: 0 };
        let format = FormatOptions { pool_uuid: [1; 16], nonce: 1, segment_bytes };
        Engine::format(&mut memory, &format).expect("the device is large enough");
        let (mut engine, _) = Engine::open(&mut memory, &mut arena, &OpenOptions::default())
            .expect("it was just formatted");
        let blocks = engine.usage().available / BLOCK_SIZE as u64 * percent / 100;
        let settings = Default::default();
        let spec = VolumeSpec { uuid: [1; 16], name: "v", size: blocks << 12, settings };
        let volume = engine.create_volume(&mut arena, Tag(0), &spec).expect("there is room");
        let buffer = arena.alloc(READS as u32).expect("there is room");
        let mut world = Self { memory, arena, engine, volume, buffer, blocks, seed: 1 };
        while world.turn() == 0 {}
        // Sequentially over the whole volume, so that every block is mapped.
        let data = vec![7; BLOCK_SIZE];
        for lba in 0..blocks {
            world.write(lba, &data);
        }
        world.settle();
        world
    }

    /// Lets device and engine get on; returns how many requests were answered.
    pub(crate) fn turn(&mut self) -> u64 {
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

    /// Until nothing is under way.
    pub(crate) fn settle(&mut self) {
        while self.turn() > 0 {}
    }

    /// Submits a write, all of it.
    pub(crate) fn write(&mut self, lba: u64, data: &[u8]) {
        let (offset, mut done) = (Lba(lba).offset(), 0);
        while done < data.len() {
            let (arena, volume) = (&mut self.arena, self.volume);
            let durability = Durability::Completed;
            let at = offset + done as u64;
            match self.engine.write(arena, Tag(1), volume, at, &data[done..], durability) {
                Ok(taken) => done += taken,
                Err(SubmitError::Busy) => {
                    self.turn();
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// A block of the volume.
    pub(crate) fn random_lba(&mut self) -> u64 {
        self.random_below(self.blocks)
    }

    pub(crate) fn random_below(&mut self, bound: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.seed >> 30) % bound
    }
}
