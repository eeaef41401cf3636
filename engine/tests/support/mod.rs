//! A device in memory and an arena of vectors, driven synchronously: the simplest world in which
//! an engine runs. Faults and reordering are the simulator's business.
#![allow(dead_code)] // each test binary uses its part

pub mod devices;

use flagstone_block::{
    BLOCK_SIZE, BlockIo, Buffer, Buffers, DeviceCommand, DeviceError, DeviceIo, Durability, Lba,
    Tag, VolumeId, ZeroMode,
};
use flagstone_engine::{
    Completion, Engine, FormatOptions, OpenError, OpenOptions, RecoveryReport, Shrink,
    SnapshotSpec, SubmitError, VolumeSettings, VolumeSpec,
};
use std::collections::HashMap;
use std::sync::Arc;

/// First-fit arena.
pub struct Arena {
    bytes: Vec<u8>,
    used: Vec<bool>,
}

impl Arena {
    pub fn new(blocks: usize) -> Self {
        Self { bytes: vec![0xaa; blocks * BLOCK_SIZE], used: vec![false; blocks] }
    }
    pub fn in_use(&self) -> usize {
        self.used.iter().filter(|used| **used).count()
    }
}

impl Buffers for Arena {
    fn alloc(&mut self, blocks: u32) -> Option<Buffer> {
        let blocks = blocks as usize;
        let at = (0..=self.used.len().checked_sub(blocks)?)
            .find(|&at| self.used[at..at + blocks].iter().all(|used| !used))?;
        self.used[at..at + blocks].fill(true);
        Some(Buffer { slot: at as u32, blocks: blocks as u32 })
    }
    fn free(&mut self, buffer: Buffer) {
        let range = buffer.slot as usize..(buffer.slot + buffer.blocks) as usize;
        assert!(self.used[range.clone()].iter().all(|used| *used), "freed twice");
        self.used[range].fill(false);
    }
    fn bytes(&self, buffer: Buffer) -> &[u8] {
        &self.bytes[buffer.slot as usize * BLOCK_SIZE..][..buffer.len()]
    }
    fn bytes_mut(&mut self, buffer: Buffer) -> &mut [u8] {
        &mut self.bytes[buffer.slot as usize * BLOCK_SIZE..][..buffer.len()]
    }
}

/// A sparse device. Clones share the blocks that neither has written since.
#[derive(Clone)]
pub struct Disk {
    pub size: u64,
    pub blocks: HashMap<u64, Arc<[u8; BLOCK_SIZE]>>,
    pub writes: u64,
    pub reads: u64,
    /// Every write from this one on fails.
    pub fail_from: Option<u64>,
    /// Reads of this block fail, and of everything read together with it.
    pub unreadable: Option<u64>,
    /// Bytes that were discarded; `None` if the device can't do that.
    pub discarded: Option<u64>,
}

impl Disk {
    pub fn new(size: u64) -> Self {
        Self {
            size,
            blocks: HashMap::new(),
            writes: 0,
            reads: 0,
            fail_from: None,
            unreadable: None,
            discarded: Some(0),
        }
    }

    /// Damages byte `at` of block `block`, which was written before.
    pub fn flip(&mut self, block: u64, at: usize, mask: u8) {
        Arc::make_mut(self.blocks.get_mut(&block).unwrap())[at] ^= mask;
    }

    /// Drops what lies there.
    pub fn discard(&mut self, offset: u64, bytes: u64) -> Result<(), DeviceError> {
        if self.discarded.is_none() {
            return Err(DeviceError::Os { errno: 95 });
        }
        let range = offset / BLOCK_SIZE as u64..(offset + bytes) / BLOCK_SIZE as u64;
        self.blocks.retain(|block, _| !range.contains(block));
        self.discarded = self.discarded.map(|sum| sum + bytes);
        Ok(())
    }

    /// Where a block with these bytes lies.
    pub fn find(&self, bytes: &[u8]) -> Option<u64> {
        self.blocks.iter().find(|(_, block)| block[..] == *bytes).map(|(at, _)| *at)
    }
}

impl BlockIo for Disk {
    fn size(&self) -> u64 {
        self.size
    }
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        if offset + into.len() as u64 > self.size {
            return Err(DeviceError::OutOfRange { offset });
        }
        self.reads += 1;
        let first = offset / BLOCK_SIZE as u64;
        let read = first..first + (into.len() / BLOCK_SIZE) as u64;
        if self.unreadable.is_some_and(|block| read.contains(&block)) {
            return Err(DeviceError::Os { errno: 5 });
        }
        for (i, block) in into.chunks_exact_mut(BLOCK_SIZE).enumerate() {
            match self.blocks.get(&(offset / BLOCK_SIZE as u64 + i as u64)) {
                Some(bytes) => block.copy_from_slice(&bytes[..]),
                None => block.fill(0),
            }
        }
        Ok(())
    }
    fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<(), DeviceError> {
        if offset + from.len() as u64 > self.size {
            return Err(DeviceError::OutOfRange { offset });
        }
        self.writes += 1;
        if self.fail_from.is_some_and(|first| self.writes > first) {
            return Err(DeviceError::Os { errno: 5 });
        }
        for (i, block) in from.chunks_exact(BLOCK_SIZE).enumerate() {
            let mut bytes = [0; BLOCK_SIZE];
            bytes.copy_from_slice(block);
            self.blocks.insert(offset / BLOCK_SIZE as u64 + i as u64, Arc::new(bytes));
        }
        Ok(())
    }
    fn flush(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// A pool being served.
pub struct World {
    pub disk: Disk,
    pub arena: Arena,
    pub engine: Engine,
    pub report: RecoveryReport,
    pub now_ns: u64,
    /// Writes of what begins with these bytes are held back.
    pub hold: Option<[u8; 4]>,
    /// Discards are held back.
    pub hold_discards: bool,
    pub held: Vec<DeviceIo>,
    /// Of so many reads, and of so many writes, one says that it succeeded and was not done; 0: none.
    pub untrue: (u64, u64),
    /// How many there were.
    pub untruths: u64,
    chance: Numbers,
    next_tag: u64,
}

pub const OPEN: OpenOptions = OpenOptions {
    session: 7,
    map_memory: None,
    rebuild: false,
    degraded: false,
    planted: flagstone_engine::plant::Planted::NONE,
};

impl World {
    pub fn format(size: u64, segment_bytes: u32) -> Self {
        let mut disk = Disk::new(size);
        let options = FormatOptions { pool_uuid: [7; 16], nonce: 1, segment_bytes };
        Engine::format(&mut disk, &options).unwrap();
        Self::open(disk)
    }

    pub fn open(disk: Disk) -> Self {
        Self::try_open(disk).unwrap()
    }

    pub fn try_open(disk: Disk) -> Result<Self, OpenError> {
        Self::open_with(disk, &OPEN)
    }

    pub fn open_with(mut disk: Disk, options: &OpenOptions) -> Result<Self, OpenError> {
        let mut arena = Arena::new(4096);
        let (engine, report) = Engine::open(&mut disk, &mut arena, options)?;
        engine.check().unwrap();
        let held = Vec::new();
        Ok(Self {
            disk,
            arena,
            engine,
            report,
            now_ns: 0,
            hold: None,
            hold_discards: false,
            held,
            untrue: (0, 0),
            untruths: 0,
            chance: Numbers(99),
            next_tag: 1,
        })
    }

    /// As `kill -9`: what was completed is on the device.
    pub fn kill(self) -> Self {
        Self::open(self.disk)
    }

    pub fn stop(mut self) -> Disk {
        self.engine.shutdown();
        for _ in 0..10_000 {
            self.turn();
            if self.engine.is_stopped() {
                assert_eq!(self.arena.in_use(), 0, "buffers leaked");
                return self.disk;
            }
        }
        panic!("the stop does not end");
    }

    /// One turn of a reactor whose device is instant.
    pub fn turn(&mut self) {
        self.engine.pump(&mut self.arena, self.now_ns);
        while let Some(io) = self.engine.next_io() {
            match (self.hold, io.command) {
                (Some(magic), DeviceCommand::Write { buffer, .. })
                    if self.arena.bytes(buffer).starts_with(&magic) =>
                {
                    self.held.push(io);
                }
                (_, DeviceCommand::Discard { .. }) if self.hold_discards => self.held.push(io),
                _ => self.perform(io),
            }
        }
        self.engine.pump(&mut self.arena, self.now_ns);
    }

    /// Does what a device command says and tells the engine.
    pub fn perform(&mut self, io: DeviceIo) {
        if let DeviceCommand::Read { offset, .. } | DeviceCommand::Write { offset, .. } = io.command
        {
            for held in &self.held {
                if let DeviceCommand::Discard { offset: from, bytes } = held.command {
                    assert!(!(from..from + bytes).contains(&offset), "{io:?}, under discard");
                }
            }
        }
        let one_of = match io.command {
            DeviceCommand::Read { .. } => self.untrue.0,
            DeviceCommand::Write { .. } => self.untrue.1,
            _ => 0,
        };
        if one_of > 0 && self.chance.below(one_of) == 0 {
            self.untruths += 1;
            return self.engine.device_done(&mut self.arena, io.token, Ok(()));
        }
        let result = match io.command {
            DeviceCommand::Read { offset, buffer } => {
                self.disk.read_at(offset, self.arena.bytes_mut(buffer))
            }
            DeviceCommand::Write { offset, buffer } => {
                self.disk.write_at(offset, self.arena.bytes(buffer))
            }
            DeviceCommand::Flush => self.disk.flush(),
            DeviceCommand::Discard { offset, bytes } => self.disk.discard(offset, bytes),
        };
        self.engine.device_done(&mut self.arena, io.token, result);
    }

    /// Performs the writes that were held back, and holds none any more.
    pub fn release(&mut self) {
        self.hold = None;
        self.hold_discards = false;
        for io in std::mem::take(&mut self.held) {
            self.perform(io);
        }
        self.turn();
    }

    pub fn tag(&mut self) -> Tag {
        self.next_tag += 1;
        Tag(self.next_tag)
    }

    pub fn wait(&mut self, tag: Tag) -> Completion {
        for _ in 0..1000 {
            self.turn();
            while let Some(completion) = self.engine.next_completion() {
                if completion.tag == tag {
                    return completion;
                }
            }
        }
        panic!("stuck: no completion");
    }

    fn submit<T>(
        &mut self,
        mut request: impl FnMut(&mut Engine, &mut Arena, Tag) -> Result<T, SubmitError>,
    ) -> Result<(T, Completion), SubmitError> {
        let tag = self.tag();
        for _ in 0..100_000 {
            match request(&mut self.engine, &mut self.arena, tag) {
                Ok(value) => return Ok((value, self.wait(tag))),
                Err(SubmitError::Busy) => self.turn(),
                Err(error) => return Err(error),
            }
        }
        panic!("busy for ever: {:?} {:?}", self.engine.usage(), self.engine.counters());
    }

    pub fn create(&mut self, name: &str, size: u64) -> VolumeId {
        self.create_with(name, size, VolumeSettings::default()).unwrap()
    }

    pub fn create_with(
        &mut self,
        name: &str,
        size: u64,
        settings: VolumeSettings,
    ) -> Result<VolumeId, SubmitError> {
        let spec = VolumeSpec { uuid: [1; 16], name, size, settings };
        let (id, completion) = self.submit(|e, a, t| e.create_volume(a, t, &spec))?;
        completion.result.unwrap();
        Ok(id)
    }

    pub fn grow(&mut self, device_bytes: u64) -> Result<(), SubmitError> {
        self.submit(|e, _, t| e.grow(t, 0, device_bytes))?.1.result.unwrap();
        Ok(())
    }

    pub fn set(&mut self, volume: VolumeId, settings: VolumeSettings) -> Result<(), SubmitError> {
        let set = self.submit(|e, a, t| e.set_volume(a, t, volume, settings))?;
        set.1.result.unwrap();
        Ok(())
    }

    pub fn snapshot(&mut self, specs: &[SnapshotSpec<'_>]) -> Result<VolumeId, SubmitError> {
        let (id, completion) =
            self.submit(|engine, arena, tag| engine.snapshot_volumes(arena, tag, specs))?;
        completion.result.unwrap();
        Ok(id)
    }

    pub fn resize(
        &mut self,
        volume: VolumeId,
        size: u64,
        shrink: Shrink,
    ) -> Result<(), SubmitError> {
        let resized = self.submit(|e, a, t| e.resize_volume(a, t, volume, size, shrink))?;
        resized.1.result.unwrap();
        Ok(())
    }

    pub fn delete(&mut self, volume: VolumeId) {
        self.submit(|e, a, t| e.delete_volume(a, t, volume)).unwrap().1.result.unwrap();
    }

    pub fn write(&mut self, volume: VolumeId, offset: u64, data: &[u8]) -> Result<(), SubmitError> {
        self.write_with(volume, offset, data, Durability::Completed)
    }

    pub fn write_with(
        &mut self,
        volume: VolumeId,
        offset: u64,
        data: &[u8],
        durability: Durability,
    ) -> Result<(), SubmitError> {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (taken, completion) =
                self.submit(|e, a, t| e.write(a, t, volume, at, &data[done..], durability))?;
            match completion.result {
                Ok(()) => {}
                Err(flagstone_engine::IoFault::NoSpace) => return Err(SubmitError::NoSpace),
                Err(_) => return Err(SubmitError::Failed),
            }
            done += taken;
        }
        Ok(())
    }

    pub fn zero(
        &mut self,
        volume: VolumeId,
        offset: u64,
        len: u64,
        mode: ZeroMode,
    ) -> Result<(), SubmitError> {
        let mut done = 0;
        while done < len {
            let (taken, completion) = self.submit(|e, a, t| {
                e.zero(a, t, volume, offset + done, len - done, mode, Durability::Completed)
            })?;
            completion.result.unwrap();
            done += taken;
        }
        Ok(())
    }

    pub fn flush(&mut self) {
        self.submit(|e, _, t| e.flush(t, VolumeId(0))).unwrap().1.result.unwrap();
    }

    pub fn read(
        &mut self,
        volume: VolumeId,
        lba: u64,
        blocks: u32,
    ) -> Result<Vec<u8>, flagstone_engine::IoFault> {
        let buffer = self.arena.alloc(blocks).unwrap();
        let (_, completion) =
            self.submit(|e, a, t| e.read(a, t, volume, Lba(lba), buffer)).unwrap();
        let bytes = self.arena.bytes(buffer).to_vec();
        self.arena.free(buffer);
        completion.result.map(|()| bytes)
    }
}

/// A block whose content names it.
pub fn block(stamp: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK_SIZE);
    for i in 0..BLOCK_SIZE as u64 / 8 {
        bytes.extend((stamp.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i).to_le_bytes());
    }
    bytes
}

/// Numbers that look random and are the same in every run.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
