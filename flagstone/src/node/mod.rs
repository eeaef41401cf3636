//! The node: one reactor thread that serves pools over NBD.
//!
//! [`start()`] makes the thread, [`NodeHandle`] speaks to it. What runs on the thread is
//! described in `reactor`'s header; who may hold how much of what, in [`limits`].

mod catalog;
mod clones;
mod connection;
pub mod control;
mod device_path;
pub mod devices;
mod diff;
mod discard;
mod errno;
mod files;
mod finish;
mod grow;
mod kernel_nbd;
pub mod limits;
pub(crate) mod local;
mod manage;
mod pool;
mod reactor;
mod request;
mod resize;
mod run;
mod scrub;
mod serve;
mod slab;
mod snapshots;
mod start;
mod status;
mod stop;
mod submit;
mod transmit;
mod ublk;
mod usage;
mod waiting;
mod walks;
mod warning;

pub use control::{
    ControlError, ControlRequest, FULL_WAIT, FailedPool, NewClone, NewRollback, NewSnapshot,
    NodeConfig, NodeExit, NodeHandle, NodeStats, PoolState, PoolStatus, RolledBack, ServedNbd,
    SettingsChange, SnapshotStatus, VolumeIo, VolumeStatus, WARNINGS,
};
pub use device_path::{DevicePath, NvmePolling};
pub use diff::{DiffPage, DiffQuery, DiffSide, DiffTarget};
pub use discard::DeviceDiscard;
pub use flagstone_engine::{DiffExtent, DiffKind, OnFull, Shrink, VolumeSettings};
pub use local::IoError;
pub use scrub::ScrubAction;
pub(crate) use start::{LocalSender, start_local};
pub use start::{StartError, start};
pub use ublk::{UblkTarget, UblkVolume};
pub use usage::Usage;

#[cfg(test)]
mod tests;
