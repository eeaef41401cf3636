//! What is told of a block device, and what can go wrong with one.

use super::own::Known;
use super::path_of;
use crate::node::{self, UblkVolume};
use flagstone_ublk::{ControlError, DeviceState};
use std::path::PathBuf;

/// How a device is to be attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachOptions {
    /// The N of `/dev/ublkbN`; without it, the next that is free.
    pub number: Option<u32>,
    /// Requests under way at once, from 1 to 4096.
    pub depth: Option<u16>,
}

/// What a device is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UblkState {
    /// A process serves it.
    Live,
    /// Nobody does; its requests wait for the process that serves its pool.
    Waiting,
    /// There is no block device: it was not started, or is being stopped.
    Dead,
    /// Something that this version does not know.
    Unknown,
}

/// A block device of a volume or snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UblkDevice {
    /// The N of `/dev/ublkbN`.
    pub number: u32,
    /// Where it is.
    pub path: PathBuf,
    /// Its volume or snapshot; `None` if this daemon has none such.
    pub volume: Option<String>,
    /// Bytes, as the kernel has it.
    pub size_bytes: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// What it is doing.
    pub state: UblkState,
    /// The process that serves it, or served it last.
    pub pid: Option<u32>,
    /// Requests under way at once.
    pub depth: u16,
    /// Its features, as in `ublk_cmd.h` without `UBLK_F_`.
    pub features: Vec<String>,
}

pub(super) fn of(known: &Known, volume: Option<&UblkVolume>) -> UblkDevice {
    let info = &known.info;
    UblkDevice {
        number: info.number,
        path: path_of(info.number),
        volume: volume.map(|volume| volume.name.clone()),
        size_bytes: known.size_bytes.unwrap_or(0),
        read_only: volume.is_some_and(|volume| volume.read_only),
        state: match info.state {
            DeviceState::Live => UblkState::Live,
            DeviceState::Quiesced | DeviceState::FailIo => UblkState::Waiting,
            DeviceState::Dead => UblkState::Dead,
            DeviceState::Other(_) => UblkState::Unknown,
        },
        pid: u32::try_from(info.pid).ok().filter(|pid| *pid > 0),
        depth: info.depth,
        features: info.features.names().collect(),
    }
}

/// Why something with a block device failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UblkError {
    /// The kernel.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The node.
    #[error(transparent)]
    Node(#[from] node::ControlError),
    /// It has no block device.
    #[error("{name:?} is not attached")]
    NotAttached {
        /// The volume or snapshot.
        name: String,
    },
    /// No device of ours has this number.
    #[error("/dev/ublkb{number} is not a device of Flagstone")]
    NotOurs {
        /// Which.
        number: u32,
    },
    /// Somebody has it open.
    #[error("{} is in use: it is mounted, or a program has it open", path_of(*number).display())]
    InUse {
        /// Which.
        number: u32,
    },
    /// A process serves it.
    #[error("{} is served by process {pid}; detach it there", path_of(*number).display())]
    Served {
        /// Which.
        number: u32,
        /// The process.
        pid: u32,
    },
    /// The process is ending.
    #[error("the daemon is stopping")]
    Ended,
}
