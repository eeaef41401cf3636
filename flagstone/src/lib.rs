//! The flagstone library and binary: daemon, command line, control API.
//!
//! To embed a pool into a program, start at [`Pool`]. The modules are the parts of the daemon and
//! the command, and change with them.

pub mod api;
pub mod bench;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod exit;
pub mod image;
pub mod kernel_nbd;
mod library;
pub mod logging;
pub mod name;
pub mod node;
pub mod notify;
pub mod output;
pub mod pool;
pub mod probe;
pub mod progress;
pub mod size;
pub mod ublk;
pub mod uri;

pub use flagstone_engine::{ScrubFinding, ScrubPlace, ScrubReport, ScrubState};
pub use library::{
    CreateOptions, Diff, ImageExportError, ImagePoolError, OpenOptions, Pool, PoolError, Volume,
};
pub use node::devices::{AddDeviceError, DeviceStatus};
pub use node::{
    ControlError, DeviceDiscard, DiffExtent, DiffKind, DiffPage, DiffSide, IoError, NodeExit,
    NvmePolling, OnFull, PoolState, PoolStatus, SettingsChange, Shrink, SnapshotStatus, Usage,
    VolumeIo, VolumeStatus,
};
