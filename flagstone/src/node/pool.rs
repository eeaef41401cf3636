//! One pool of the node: an engine and the device it is driven on.

use flagstone_engine::Engine;
use flagstone_ring::{Device, DeviceId};
use std::path::PathBuf;

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
}
