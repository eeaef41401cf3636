//! An engine, its device and its arena, driven one event at a time.

use crate::arena::Arena;
use crate::disk::{Disk, Image};
use crate::trace::say;
use flagstone_block::{
    BlockIo as _, Buffers as _, DeviceCommand, DeviceError, DeviceIo, Durability, Lba, Tag,
    VolumeId, ZeroMode,
};
use flagstone_engine::plant::Planted;
use flagstone_engine::{
    Completion, Engine, FormatOptions, IoFault, OpenError, OpenOptions, RecoveryReport, Shrink,
    SubmitError, VolumeSpec,
};

/// Turns after which something that should end has not.
const TURNS_MAX: u32 = 20_000;

/// Segments are as small as they may be, so that few writes fill one.
pub(crate) const FORMAT: FormatOptions =
    FormatOptions { pool_uuid: [7; 16], nonce: 1, segment_bytes: 1 << 20 };

/// How an engine is opened; the number only has to differ from life to life.
pub(crate) fn options(session: u64) -> OpenOptions {
    OpenOptions {
        session,
        map_memory: None,
        rebuild: false,
        degraded: false,
        planted: Planted::NONE,
    }
}

/// A command that the device has not finished.
#[derive(Clone, Copy, Debug)]
struct Queued {
    io: DeviceIo,
    /// Writes that had completed when it was issued: what a flush makes durable.
    covers: u64,
}

/// A pool being served.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) disk: Disk,
    pub(crate) arena: Arena,
    pub(crate) engine: Engine,
    pub(crate) report: RecoveryReport,
    pub(crate) now_ns: u64,
    queue: Vec<Queued>,
    next_tag: u64,
}

impl World {
    /// Opens the pool on `disk`. An error gives disk and arena back.
    pub(crate) fn open(
        mut disk: Disk,
        mut arena: Arena,
        session: u64,
    ) -> Result<Self, (OpenError, Disk, Arena)> {
        arena.reset();
        match Engine::open(&mut disk, &mut arena, &options(session)) {
            Ok((engine, report)) => {
                say!("opened: {report:?}");
                engine.check().expect("consistent after opening");
                let queue = Vec::new();
                Ok(Self { disk, arena, engine, report, now_ns: 0, queue, next_tag: 1 })
            }
            Err(error) => {
                say!("not opened: {error}");
                Err((error, disk, arena))
            }
        }
    }

    /// Commands that the device has not finished.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// One turn of a reactor, without waiting for the device.
    pub(crate) fn pump(&mut self) {
        self.engine.pump(&mut self.arena, self.now_ns);
        while let Some(io) = self.engine.next_io() {
            say!("  device gets {:?} {:?}", io.token, io.command);
            self.queue.push(Queued { io, covers: self.disk.writes() });
        }
    }

    /// The device finishes one of its commands.
    pub(crate) fn finish(&mut self, which: usize) {
        let Queued { io, covers } = self.queue.remove(which);
        say!("  device finishes {:?}", io.token);
        let result = match io.command {
            DeviceCommand::Read { offset, buffer } => {
                self.disk.read_at(offset, self.arena.bytes_mut(buffer))
            }
            DeviceCommand::Write { offset, buffer } => {
                self.disk.write_at(offset, self.arena.bytes(buffer))
            }
            DeviceCommand::Flush => {
                self.disk.settle(covers);
                Ok(())
            }
            // An engine discards nothing unless told.
            DeviceCommand::Discard { .. } => Ok(()),
        };
        self.engine.device_done(&mut self.arena, io.token, result);
    }

    /// The device fails one of its commands; returns whether it was a read.
    pub(crate) fn fail(&mut self, which: usize) -> bool {
        let Queued { io, .. } = self.queue.remove(which);
        say!("  device fails {:?}", io.token);
        let error = DeviceError::Os { errno: 5 };
        self.engine.device_done(&mut self.arena, io.token, Err(error));
        matches!(io.command, DeviceCommand::Read { .. })
    }

    /// Pumps and lets the device finish everything, in order, until neither has work.
    pub(crate) fn turn(&mut self) {
        self.pump();
        while !self.queue.is_empty() {
            self.finish(0);
        }
        self.pump();
    }

    /// Dies: what the device was doing gets as far as `fate` says, in sectors of 512 bytes. Gives
    /// back disk and arena.
    pub(crate) fn die(mut self, mut fate: impl FnMut() -> u8) -> (Disk, Arena) {
        for queued in &self.queue {
            if let DeviceCommand::Write { offset, buffer } = queued.io.command {
                let sectors = fate();
                say!("  {sectors} sectors arrive of {:?}", queued.io.command);
                self.disk.write_part(offset, self.arena.bytes(buffer), sectors);
            }
        }
        (self.disk, self.arena)
    }

    /// Stops cleanly. Gives back disk and arena.
    pub(crate) fn stop(mut self) -> (Disk, Arena) {
        self.engine.shutdown();
        for _ in 0..TURNS_MAX {
            self.turn();
            while self.engine.next_completion().is_some() {}
            if self.engine.is_stopped() {
                assert_eq!(self.arena.in_use(), 0, "buffers leaked");
                return (self.disk, self.arena);
            }
        }
        panic!("the stop does not end");
    }

    /// A name for the next request.
    pub(crate) fn tag(&mut self) -> Tag {
        self.next_tag += 1;
        Tag(self.next_tag)
    }

    fn wait(&mut self, tag: Tag) -> Completion {
        for _ in 0..TURNS_MAX {
            self.turn();
            while let Some(completion) = self.engine.next_completion() {
                if completion.tag == tag {
                    return completion;
                }
            }
        }
        panic!("a request is never answered");
    }

    /// Submits until the engine accepts or refuses, and waits for the answer.
    fn submit<T>(
        &mut self,
        mut request: impl FnMut(&mut Engine, &mut Arena, Tag) -> Result<T, SubmitError>,
    ) -> Result<(T, Completion), SubmitError> {
        let tag = self.tag();
        for _ in 0..TURNS_MAX {
            match request(&mut self.engine, &mut self.arena, tag) {
                Ok(value) => return Ok((value, self.wait(tag))),
                Err(SubmitError::Busy) => self.turn(),
                Err(error) => return Err(error),
            }
        }
        panic!("busy for ever");
    }

    pub(crate) fn create(&mut self, name: &str, size: u64) -> Result<VolumeId, SubmitError> {
        let spec = VolumeSpec { uuid: [1; 16], name, size, settings: Default::default() };
        let (id, completion) = self.submit(|e, a, t| e.create_volume(a, t, &spec))?;
        completion.result.map(|()| id).map_err(|_| SubmitError::Failed)
    }

    pub(crate) fn delete(&mut self, volume: VolumeId) -> Result<(), SubmitError> {
        let ((), completion) = self.submit(|e, a, t| e.delete_volume(a, t, volume))?;
        completion.result.map_err(|_| SubmitError::Failed)
    }

    pub(crate) fn resize(&mut self, volume: VolumeId, size: u64) -> Result<(), SubmitError> {
        let ((), completion) =
            self.submit(|e, a, t| e.resize_volume(a, t, volume, size, Shrink::Never))?;
        completion.result.map_err(|_| SubmitError::Failed)
    }

    pub(crate) fn write(
        &mut self,
        volume: VolumeId,
        offset: u64,
        data: &[u8],
    ) -> Result<Result<(), IoFault>, SubmitError> {
        let mut done = 0;
        while done < data.len() {
            let (at, data) = (offset + done as u64, &data[done..]);
            let (taken, completion) =
                self.submit(|e, a, t| e.write(a, t, volume, at, data, Durability::Completed))?;
            if completion.result.is_err() {
                return Ok(completion.result);
            }
            done += taken;
        }
        Ok(Ok(()))
    }

    pub(crate) fn zero(
        &mut self,
        volume: VolumeId,
        offset: u64,
        len: u64,
        mode: ZeroMode,
    ) -> Result<Result<(), IoFault>, SubmitError> {
        let mut done = 0;
        while done < len {
            let (at, len) = (offset + done, len - done);
            let (taken, completion) =
                self.submit(|e, a, t| e.zero(a, t, volume, at, len, mode, Durability::Completed))?;
            if completion.result.is_err() {
                return Ok(completion.result);
            }
            done += taken;
        }
        Ok(Ok(()))
    }

    pub(crate) fn flush(&mut self) -> Result<(), SubmitError> {
        let ((), completion) = self.submit(|e, _, t| e.flush(t, VolumeId(0)))?;
        completion.result.map_err(|_| SubmitError::Failed)
    }

    pub(crate) fn read(
        &mut self,
        volume: VolumeId,
        lba: u64,
        blocks: u32,
    ) -> Result<Result<Vec<u8>, IoFault>, SubmitError> {
        let buffer = self.arena.alloc(blocks).expect("room for one reader");
        let submitted = self.submit(|e, a, t| e.read(a, t, volume, Lba(lba), buffer));
        let bytes = self.arena.bytes(buffer).to_vec();
        self.arena.free(buffer);
        let ((), completion) = submitted?;
        Ok(completion.result.map(|()| bytes))
    }
}

/// Formats a device of `bytes` bytes, lets `fill` use the pool, and tells what is on the device
/// at the end: after a clean stop, or as it stands.
pub(crate) fn image(bytes: u64, stop: bool, fill: impl FnOnce(&mut World)) -> Image {
    let empty: &'static Image = Box::leak(Box::new(Image::empty(bytes)));
    let mut disk = Disk::new(empty);
    Engine::format(&mut disk, &FORMAT).expect("the device is large enough");
    let mut world = World::open(disk, Arena::new(), 1).unwrap_or_else(|(error, ..)| {
        panic!("a fresh pool does not open: {error}");
    });
    fill(&mut world);
    let (disk, _) = if stop { world.stop() } else { world.die(|| 0) };
    disk.to_image()
}
