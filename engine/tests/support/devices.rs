//! A pool of several devices in memory, driven synchronously, of which some fail.

use super::{Arena, Disk, OPEN};
use flagstone_block::{
    BLOCK_SIZE, BlockIo, Buffers as _, DeviceCommand, DeviceError, DeviceIo, Devices, Durability,
    Lba, Tag, VolumeId, join_offset,
};
use flagstone_engine::format::superblock::SUPERBLOCK_END;
use flagstone_engine::{
    DeviceInfo, Engine, FormatOptions, IoFault, NewDevice, OpenError, OpenOptions, SubmitError,
    VolumeSettings, VolumeSpec,
};

pub const MIB: u64 = 1 << 20;
pub const OPTIONS: FormatOptions =
    FormatOptions { pool_uuid: [7; 16], nonce: 1, segment_bytes: MIB as u32 };

pub struct Pool {
    pub engine: Engine,
    pub arena: Arena,
    pub disks: Devices<Disk>,
    pub now_ns: u64,
    pub tag: u64,
    /// A device whose flushes fail.
    pub flush_fails: Option<usize>,
    /// A device, and the version of blocks that it takes no writes of.
    pub version_fails: Option<(usize, u8)>,
    /// Writes of more than a block to the first device are held back from now on: those of a checkpoint.
    pub holds: bool,
    /// Nothing is done but reads, from now on.
    pub frozen: bool,
    /// Writes to the journal are held back.
    pub holds_journal: bool,
    /// Summaries written to devices other than the first.
    pub summaries: u64,
    pub held: Vec<DeviceIo>,
}

pub fn disks(sizes: &[u64]) -> Devices<Disk> {
    let mut disks = Devices::default();
    for (device, size) in sizes.iter().enumerate() {
        disks.put(device, Disk::new(*size));
    }
    disks
}

impl Pool {
    pub fn format(sizes: &[u64]) -> Self {
        let mut disks = disks(sizes);
        Engine::format(&mut disks, &OPTIONS).unwrap();
        Self::open(disks)
    }

    pub fn open(disks: Devices<Disk>) -> Self {
        Self::try_open(disks, &OPEN).unwrap()
    }

    pub fn try_open(mut disks: Devices<Disk>, options: &OpenOptions) -> Result<Self, OpenError> {
        let mut arena = Arena::new(4096);
        let (engine, _) = Engine::open(&mut disks, &mut arena, options)?;
        let (flush_fails, version_fails) = (None, None);
        let (holds, holds_journal, frozen) = (false, false, false);
        let (held, summaries) = (Vec::new(), 0);
        Ok(Self {
            engine,
            arena,
            disks,
            now_ns: 1,
            tag: 0,
            flush_fails,
            version_fails,
            holds,
            frozen,
            holds_journal,
            summaries,
            held,
        })
    }

    /// The process dies.
    pub fn kill(self) -> Self {
        Self::open(self.disks)
    }

    pub fn turn(&mut self) -> bool {
        self.engine.pump(&mut self.arena, self.now_ns);
        let mut any = false;
        while let Some(io) = self.engine.next_io() {
            any = true;
            let is_long =
                matches!(io.command, DeviceCommand::Write { buffer, .. } if buffer.blocks > 1);
            let journal = SUPERBLOCK_END..self.engine.geometry().data_offset;
            let is_journal = self.holds_journal
                && io.device == 0
                && matches!(io.command, DeviceCommand::Write { offset, .. } if journal.contains(&offset));
            let is_read = matches!(io.command, DeviceCommand::Read { .. });
            if (self.holds && io.device == 0 && is_long) || (self.frozen && !is_read) || is_journal
            {
                self.held.push(io);
                continue;
            }
            self.perform(io);
        }
        any
    }

    pub fn perform(&mut self, io: DeviceIo) {
        let geo = self.engine.geometry();
        if let DeviceCommand::Write { offset, .. } = io.command
            && io.device > 0
            && let Some(from) = offset.checked_sub(geo.data_offset)
        {
            let block = (from / BLOCK_SIZE as u64) % u64::from(geo.shape.blocks);
            self.summaries += u64::from(block >= u64::from(geo.shape.data_blocks));
        }
        let at = |offset| join_offset(usize::from(io.device), offset);
        let result = match io.command {
            DeviceCommand::Read { offset, buffer } => {
                self.disks.read_at(at(offset), self.arena.bytes_mut(buffer))
            }
            DeviceCommand::Write { buffer, .. }
                if self.version_fails
                    == Some((usize::from(io.device), self.arena.bytes(buffer)[8])) =>
            {
                Err(DeviceError::Os { errno: 5 })
            }
            DeviceCommand::Write { offset, buffer } => {
                self.disks.write_at(at(offset), self.arena.bytes(buffer))
            }
            DeviceCommand::Flush if self.flush_fails == Some(usize::from(io.device)) => {
                Err(DeviceError::Os { errno: 5 })
            }
            DeviceCommand::Flush | DeviceCommand::Discard { .. } => Ok(()),
        };
        self.engine.device_done(&mut self.arena, io.token, result);
    }

    /// Does what was held back.
    pub fn release_held(&mut self) {
        (self.holds, self.holds_journal) = (false, false);
        for io in std::mem::take(&mut self.held) {
            self.perform(io);
        }
    }

    pub fn wait(&mut self, tag: Tag) {
        assert_eq!(self.answer(tag), Ok(()));
    }

    pub fn answer(&mut self, tag: Tag) -> Result<(), IoFault> {
        for _ in 0..100_000 {
            self.turn();
            if let Some(done) = self.engine.next_completion() {
                assert_eq!(done.tag, tag);
                return done.result;
            }
        }
        panic!("never answered");
    }

    pub fn next_tag(&mut self) -> Tag {
        self.tag += 1;
        Tag(self.tag)
    }

    pub fn create(&mut self, size: u64) -> VolumeId {
        self.create_named("v", size)
    }

    pub fn create_named(&mut self, name: &str, size: u64) -> VolumeId {
        let tag = self.next_tag();
        let settings = VolumeSettings::default();
        let spec = VolumeSpec { uuid: [1; 16], name, size, settings };
        let id = self.engine.create_volume(&mut self.arena, tag, &spec).unwrap();
        self.wait(tag);
        id
    }

    /// Asks for one block to be written, and does not wait; false if that can't be now.
    pub fn submit(&mut self, volume: VolumeId, block: u64, version: u8) -> bool {
        let mut data = [version; BLOCK_SIZE];
        data[..8].copy_from_slice(&block.to_le_bytes());
        let tag = self.next_tag();
        let (arena, engine, at) = (&mut self.arena, &mut self.engine, block * BLOCK_SIZE as u64);
        match engine.write(arena, tag, volume, at, &data, Durability::Completed) {
            Ok(_) => true,
            Err(SubmitError::Busy) => false,
            Err(error) => panic!("block {block}: {error}"),
        }
    }

    /// Takes what was answered: all went well.
    pub fn take_answers(&mut self) {
        while let Some(done) = self.engine.next_completion() {
            assert_eq!(done.result, Ok(()));
        }
    }

    /// Writes a whole volume: each block has its number in it, and a version.
    pub fn fill(&mut self, volume: VolumeId, blocks: u64, version: u8) {
        for block in 0..blocks {
            let mut data = [version; BLOCK_SIZE];
            data[..8].copy_from_slice(&block.to_le_bytes());
            let tag = self.next_tag();
            let at = block * BLOCK_SIZE as u64;
            for _ in 0..10_000 {
                let (arena, engine) = (&mut self.arena, &mut self.engine);
                match engine.write(arena, tag, volume, at, &data, Durability::Completed) {
                    Ok(_) => break,
                    Err(SubmitError::Busy) => drop(self.turn()),
                    Err(error) => panic!("block {block}: {error}"),
                }
            }
            self.wait(tag);
        }
    }

    pub fn verify(&mut self, volume: VolumeId, blocks: u64, version: u8) {
        assert_eq!(self.read_all(volume, blocks, version), blocks);
    }

    /// Reads a whole volume: each block is right, or an error. Returns how many are right.
    pub fn read_all(&mut self, volume: VolumeId, blocks: u64, version: u8) -> u64 {
        let buffer = self.arena.alloc(1).unwrap();
        let mut right = 0;
        for block in 0..blocks {
            let tag = self.next_tag();
            while let Err(error) =
                self.engine.read(&mut self.arena, tag, volume, Lba(block), buffer)
            {
                assert_eq!(error, SubmitError::Busy);
                self.turn();
            }
            if let Err(fault) = self.answer(tag) {
                assert_eq!(fault, IoFault::BadBlock { lba: block });
                continue;
            }
            let bytes = self.arena.bytes(buffer);
            assert_eq!(bytes[..8], block.to_le_bytes(), "block {block}");
            assert!(bytes[8..].iter().all(|byte| *byte == version), "block {block}");
            right += 1;
        }
        self.arena.free(buffer);
        right
    }

    pub fn add(&mut self, uuid: u8, bytes: u64) -> usize {
        let tag = self.next_tag();
        let new = NewDevice { uuid: [uuid; 16], bytes, name: "/new" };
        let device = self.engine.add_device(tag, &new).unwrap();
        self.disks.put(device, Disk::new(bytes));
        self.wait(tag);
        device
    }

    pub fn remove(&mut self, device: usize) {
        let tag = self.next_tag();
        self.engine.remove_device(tag, device).unwrap();
        self.wait(tag);
    }

    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.turn() {
                match self.engine.next_timer_ns() {
                    Some(at) => self.now_ns = self.now_ns.max(at),
                    None => return,
                }
            }
        }
        panic!("no end of activity");
    }

    pub fn flush(&mut self, volume: VolumeId) -> Result<(), IoFault> {
        let tag = self.next_tag();
        while let Err(error) = self.engine.flush(tag, volume) {
            assert_eq!(error, SubmitError::Busy);
            self.turn();
        }
        self.answer(tag)
    }

    /// From now on a device takes no writes.
    pub fn fail_writes(&mut self, device: usize) {
        let disk = self.disks.get_mut(device).unwrap();
        disk.fail_from = Some(disk.writes);
    }

    pub fn failed(&self) -> Vec<bool> {
        self.engine.devices().map(|device| device.failed).collect()
    }

    pub fn devices(&self) -> Vec<DeviceInfo> {
        self.engine.devices().collect()
    }

    pub fn stop(mut self) -> Devices<Disk> {
        self.engine.shutdown();
        while !self.engine.is_stopped() {
            self.turn();
        }
        self.disks
    }
}
