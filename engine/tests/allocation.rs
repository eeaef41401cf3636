//! The data path allocates nothing once its queues have grown to their bounds.

mod support;

use flagstone_block::{
    BLOCK_SIZE, BlockIo, Buffers, DeviceCommand, DeviceError, Durability, Lba, Tag, VolumeId,
    ZeroMode,
};
use flagstone_engine::{Engine, FormatOptions, SubmitError, VolumeSpec};
use support::{Arena, OPEN, block};

/// A device that is one vector, so that it allocates nothing either.
struct Flat(Vec<u8>);

impl BlockIo for Flat {
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

struct Driver {
    disk: Flat,
    arena: Arena,
    engine: Engine,
}

impl Driver {
    fn turn(&mut self) -> u64 {
        self.engine.pump(&mut self.arena, 0);
        while let Some(io) = self.engine.next_io() {
            match io.command {
                DeviceCommand::Read { offset, buffer } => {
                    self.disk.read_at(offset, self.arena.bytes_mut(buffer)).unwrap();
                }
                DeviceCommand::Write { offset, buffer } => {
                    self.disk.write_at(offset, self.arena.bytes(buffer)).unwrap();
                }
                DeviceCommand::Flush | DeviceCommand::Discard { .. } => {}
            }
            self.engine.device_done(&mut self.arena, io.token, Ok(()));
        }
        self.engine.pump(&mut self.arena, 0);
        let mut answered = 0;
        while let Some(completion) = self.engine.next_completion() {
            completion.result.unwrap();
            answered += 1;
        }
        answered
    }

    /// A mix of every request of the data path, at depth 8.
    fn load(
        &mut self,
        volume: VolumeId,
        rounds: u64,
        data: &[u8],
        buffer: flagstone_block::Buffer,
    ) {
        let size = 4u64 << 20;
        for round in 0..rounds {
            for i in 0..8u64 {
                let offset = (round * 8 + i) * 36_864 % (size - 65_536) / 4096 * 4096;
                let tag = Tag(round * 8 + i);
                let result = match i {
                    0..=3 => self
                        .engine
                        .write(
                            &mut self.arena,
                            tag,
                            volume,
                            offset,
                            &data[..BLOCK_SIZE],
                            Durability::Completed,
                        )
                        .map(|_| ()),
                    4 => self
                        .engine
                        .write(
                            &mut self.arena,
                            tag,
                            volume,
                            offset + 512,
                            &data[..1024],
                            Durability::Fua,
                        )
                        .map(|_| ()),
                    5 => self.engine.read(
                        &mut self.arena,
                        tag,
                        volume,
                        Lba::containing(offset),
                        buffer,
                    ),
                    6 => self
                        .engine
                        .zero(
                            &mut self.arena,
                            tag,
                            volume,
                            offset,
                            8192,
                            ZeroMode::Discard,
                            Durability::Completed,
                        )
                        .map(|_| ()),
                    _ => self.engine.flush(tag, VolumeId(0)),
                };
                assert!(matches!(result, Ok(()) | Err(SubmitError::Busy)), "{result:?}");
            }
            self.turn();
        }
        while self.turn() > 0 {}
    }
}

#[test]
fn the_data_path_allocates_nothing() {
    let mut disk = Flat(vec![0; 96 << 20]);
    let mut arena = Arena::new(4096);
    let options = FormatOptions { pool_uuid: [7; 16], nonce: 1, segment_bytes: 1 << 20 };
    Engine::format(&mut disk, &options).unwrap();
    let (engine, _) = Engine::open(&mut disk, &mut arena, &OPEN).unwrap();
    let buffer = arena.alloc(16).unwrap();
    let mut driver = Driver { disk, arena, engine };
    let spec = VolumeSpec { uuid: [1; 16], name: "v", size: 4 << 20, settings: Default::default() };
    let volume = driver.engine.create_volume(&mut driver.arena, Tag(0), &spec).unwrap();
    while driver.turn() == 0 {}
    let data = block(1);
    driver.load(volume, 2000, &data, buffer);
    let before = driver.engine.counters();
    let info = allocation_counter::measure(|| driver.load(volume, 20_000, &data, buffer));
    let after = driver.engine.counters();
    assert!(after.seals > before.seals + 50, "segments were sealed and freed meanwhile");
    assert!(after.segments_freed > before.segments_freed + 50);
    // Metadata compaction makes a chain of its own, which is not the data path.
    let compactions = after.compactions - before.compactions;
    assert!(
        info.count_total <= 8 * compactions,
        "{} allocations, {compactions} compactions",
        info.count_total
    );
}
