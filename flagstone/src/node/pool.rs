//! One pool of the node: an engine and the device it is driven on.

use flagstone_block::DeviceError;
use flagstone_engine::{Engine, PoolState};
use flagstone_ring::{Device, DeviceId};
use std::path::PathBuf;

use super::control::{PoolStatus, Reply};
use super::waiting::Waiting;
use super::warning::Warning;
use crate::pool::explain;

/// See the module's documentation.
pub(super) struct Pool {
    /// As configured.
    pub(super) path: PathBuf,
    /// Holds the device's lock for as long as the pool is served.
    pub(super) device: Device,
    pub(super) id: DeviceId,
    pub(super) engine: Engine,
    /// Something was given to the engine since it was last pumped.
    pub(super) touched: bool,
    /// What the device failed with, for good: an engine that has stopped only says that it has.
    pub(super) failure: Option<DeviceError>,
    /// Requests that wait for space.
    pub(super) waiting: Waiting,
    /// Who asked for the growth that is under way.
    pub(super) growing: Option<Reply<PoolStatus>>,
    /// A scrub was begun whose end is not logged yet.
    pub(super) scrubbing: bool,
    /// How full the pool was told to be.
    pub(super) warning: Warning,
    /// That the map is damaged was told.
    pub(super) told_damage: bool,
}

impl Pool {
    /// Takes note of the engine's failure, once.
    pub(super) fn note_failure(&mut self) {
        if self.failure.is_some() {
            return;
        }
        if let PoolState::Failed(error) = self.engine.state() {
            tracing::error!(
                pool = %self.path.display(),
                error = explain(error),
                "the pool has failed: it is only read from now on; when its device is well \
                 again, a restart recovers it"
            );
            self.failure = Some(error);
        }
    }
}
