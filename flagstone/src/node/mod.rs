//! The node: one reactor thread that serves pools over NBD.

pub mod control;
pub mod limits;

pub use control::{
    ControlError, ControlRequest, NodeConfig, NodeExit, NodeHandle, NodeStats, PoolState,
    PoolStatus, VolumeStatus,
};
