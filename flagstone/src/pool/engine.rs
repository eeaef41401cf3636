//! Work on a stopped pool that its engine does: opened, driven to the end, closed.

use std::path::Path;

use flagstone_block::{BlockIo, Buffers, DeviceCommand, DeviceError, Devices, Tag, join_offset};
use flagstone_engine::{
    Engine, Geometry, OpenError, OpenOptions, PoolState, RecoveryReport, SubmitError, own_blocks,
};
use flagstone_ring::{Arena, OpenMode, SyncDevice};

use super::explain as told;
use super::members::gather_one;
use super::offline::{OfflineError, explain};
use crate::exit::Exit;

/// Turns of the engine after which something must be wrong: recovery's leftovers are bounded.
const TURNS_MAX: u64 = 1_000_000;

/// Why work on a stopped pool was not done.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
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

impl EngineError {
    /// The exit status that goes with it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Open(error) => error.exit(),
            _ => Exit::Failure,
        }
    }
}

/// A stopped pool and its engine, on the calling thread. Nobody else can open it meanwhile.
pub(super) struct Offline {
    pub(super) io: Devices<SyncDevice>,
    pub(super) engine: Engine,
    bufs: Arena,
    turns: u64,
}

impl Offline {
    /// Opens the pool at `path`, recovering it if it was not stopped cleanly.
    pub(super) fn open(
        path: &Path,
        options: &OpenOptions,
    ) -> Result<(Self, RecoveryReport), EngineError> {
        let gathered = gather_one(path, OpenMode::Exclusive).map_err(OfflineError::from)?;
        let mut io = gathered.devices;
        let opened = |error, io: &mut Devices<SyncDevice>| explain(error, io, path);
        let geometry = flagstone_engine::geometry(&mut io);
        let geometry = geometry.map_err(|error| opened(error, &mut io))?;
        let blocks = arena_blocks(&geometry);
        let arena = Arena::new(blocks);
        let mut bufs = arena.map_err(|source| EngineError::Memory { blocks, source })?;
        let engine = Engine::open(&mut io, &mut bufs, options);
        let (engine, report) = engine.map_err(|error: OpenError| opened(error, &mut io))?;
        Ok((Self { io, engine, bufs, turns: 0 }, report))
    }

    /// Works until the request with this tag is answered.
    pub(super) fn wait(&mut self, tag: Tag) -> Result<(), EngineError> {
        loop {
            self.turn()?;
            while let Some(completion) = self.engine.next_completion() {
                if completion.tag == tag {
                    return Ok(());
                }
            }
        }
    }

    /// Stops the pool cleanly.
    pub(super) fn close(mut self) -> Result<(), EngineError> {
        self.engine.shutdown();
        while self.engine.state() != PoolState::Stopped {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<(), EngineError> {
        self.turns += 1;
        if self.turns > TURNS_MAX {
            return Err(EngineError::Stuck);
        }
        let (engine, bufs, io) = (&mut self.engine, &mut self.bufs, &mut self.io);
        engine.pump(bufs, self.turns);
        while let Some(command) = engine.next_io() {
            let at = |offset| join_offset(usize::from(command.device), offset);
            let result = match command.command {
                DeviceCommand::Read { offset, buffer } => {
                    io.read_at(at(offset), bufs.bytes_mut(buffer))
                }
                DeviceCommand::Write { offset, buffer } => {
                    io.write_at(at(offset), bufs.bytes(buffer))
                }
                DeviceCommand::Flush => io.flush(),
                // An engine discards nothing unless told.
                DeviceCommand::Discard { .. } => Ok(()),
            };
            engine.device_done(bufs, command.token, result);
        }
        match engine.state() {
            PoolState::Failed(error) => Err(EngineError::Device { error }),
            _ => Ok(()),
        }
    }
}

/// What the engine takes for itself, twice: the arena's allocator may not use every gap.
fn arena_blocks(geometry: &Geometry) -> u32 {
    2 * own_blocks(geometry) + 64
}
