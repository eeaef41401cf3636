//! Growing a stopped pool: opened, grown by its engine, closed.

use std::path::Path;

use flagstone_block::{BlockIo, Buffers, DeviceCommand, DeviceError, Tag};
use flagstone_engine::{
    Engine, Geometry, OpenError, OpenOptions, PoolState, SubmitError, own_blocks,
};
use flagstone_ring::{Arena, Device, OpenMode, SyncDevice};

use super::explain as told;
use super::offline::{OfflineError, explain};
use crate::exit::Exit;

/// Turns of the engine after which something must be wrong: recovery's leftovers are bounded.
const TURNS_MAX: u32 = 1_000_000;

/// What a growth came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grown {
    /// Size of the file or device.
    pub device_bytes: u64,
    /// Segments there were.
    pub segments_before: u32,
    /// Segments there are.
    pub segments: u32,
}

/// Why a pool was not grown. It has the old size or the new one.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// It can't be opened.
    #[error(transparent)]
    Open(#[from] OfflineError),
    /// There is no memory for buffers.
    #[error("no memory for {blocks} buffers of 4096 bytes: {source}")]
    Memory {
        /// How many.
        blocks: u32,
        /// What the system said.
        source: std::io::Error,
    },
    /// The engine refused.
    #[error(transparent)]
    Refused(#[from] SubmitError),
    /// The device failed.
    #[error("{}", told(*error))]
    Device {
        /// What it said.
        error: DeviceError,
    },
    /// The engine did not end.
    #[error("the pool could not be closed; the next start recovers it")]
    Stuck,
}

impl GrowError {
    /// The exit status that goes with it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Open(error) => error.exit(),
            _ => Exit::Failure,
        }
    }
}

/// Grows the pool at `path` to the size of its file or device.
///
/// # Errors
/// [`GrowError`].
pub fn grow(path: &Path) -> Result<Grown, GrowError> {
    let device = Device::open(path, OpenMode::Exclusive).map_err(OfflineError::from)?;
    let mut io = SyncDevice::new(device);
    let opened = |error, io: &mut SyncDevice| explain(error, io, path);
    let geometry = flagstone_engine::geometry(&mut io).map_err(|error| opened(error, &mut io))?;
    let blocks = arena_blocks(&geometry);
    let arena = Arena::new(blocks);
    let mut bufs = arena.map_err(|source| GrowError::Memory { blocks, source })?;
    let engine = Engine::open(&mut io, &mut bufs, &OpenOptions::default());
    let (mut engine, _) = engine.map_err(|error: OpenError| opened(error, &mut io))?;
    let segments_before = engine.geometry().segments;
    let outcome = drive(&mut io, &mut bufs, &mut engine);
    let segments = engine.geometry().segments;
    outcome.map(|()| Grown { device_bytes: io.size(), segments_before, segments })
}

/// What the engine takes for itself, twice: the arena's allocator may not use every gap.
fn arena_blocks(geometry: &Geometry) -> u32 {
    2 * own_blocks(geometry) + 64
}

fn drive(io: &mut SyncDevice, bufs: &mut Arena, engine: &mut Engine) -> Result<(), GrowError> {
    let tag = Tag(1);
    engine.grow(tag, io.size())?;
    let mut grown = None;
    for turn in 0..TURNS_MAX {
        engine.pump(bufs, u64::from(turn));
        while let Some(command) = engine.next_io() {
            let result = match command.command {
                DeviceCommand::Read { offset, buffer } => {
                    io.read_at(offset, bufs.bytes_mut(buffer))
                }
                DeviceCommand::Write { offset, buffer } => io.write_at(offset, bufs.bytes(buffer)),
                DeviceCommand::Flush => io.flush(),
            };
            engine.device_done(bufs, command.token, result);
        }
        while let Some(completion) = engine.next_completion() {
            if completion.tag == tag {
                grown = Some(completion.result);
                engine.shutdown();
            }
        }
        match engine.state() {
            PoolState::Failed(error) => return Err(GrowError::Device { error }),
            PoolState::Stopped if grown.is_some() => return Ok(()),
            _ => {}
        }
    }
    Err(GrowError::Stuck)
}
