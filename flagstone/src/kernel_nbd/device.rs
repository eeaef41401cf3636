//! What is told of a device, and what can go wrong with one.

use super::path_of;
use super::sysfs::Known;
use crate::node::{self, UblkVolume};
use rustix::io::Errno;
use std::io;
use std::path::PathBuf;

/// What a device is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelNbdState {
    /// This daemon serves it.
    Live,
    /// Its requests wait, or another daemon serves it.
    Waiting,
    /// It was detached, and somebody still has it open.
    Detached,
}

/// A volume or snapshot as a device of the kernel's NBD client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelNbdDevice {
    /// The N of `/dev/nbdN`.
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
    pub state: KernelNbdState,
}

pub(super) fn of(known: &Known, volume: Option<&UblkVolume>) -> KernelNbdDevice {
    let served = volume.is_some_and(|volume| volume.nbd == Some(known.number));
    KernelNbdDevice {
        number: known.number,
        path: path_of(known.number),
        volume: volume.map(|volume| volume.name.clone()),
        size_bytes: known.size_bytes,
        read_only: known.read_only,
        state: match (known.is_detached(), served) {
            (true, _) => KernelNbdState::Detached,
            (false, true) => KernelNbdState::Live,
            (false, false) => KernelNbdState::Waiting,
        },
    }
}

/// Why something with such a device failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelNbdError {
    /// There is no NBD client in the kernel.
    #[error("the kernel's NBD client is not there: load it with `modprobe nbd`")]
    NoClient,
    /// It does not keep whose its devices are.
    #[error("the kernel's NBD client is too old: devices that outlive the daemon need Linux 5.14")]
    Old,
    /// The kernel refused.
    #[error("{call} was refused by the kernel's NBD client: {errno}{}", advice(*.errno))]
    Refused {
        /// What was asked.
        call: &'static str,
        /// The error.
        errno: Errno,
    },
    /// The kernel's answer has no sense.
    #[error("the kernel's NBD client gave no answer that could be understood to {call}")]
    Answer {
        /// What was asked.
        call: &'static str,
    },
    /// A file of the kernel's can't be used.
    #[error("{0}")]
    Sysfs(#[from] io::Error),
    /// The node.
    #[error(transparent)]
    Node(#[from] node::ControlError),
    /// It has no such device.
    #[error("{name:?} is not attached to the kernel's NBD client")]
    NotAttached {
        /// The volume or snapshot.
        name: String,
    },
    /// No device of ours has this number.
    #[error("/dev/nbd{number} is not a device of Flagstone")]
    NotOurs {
        /// Which.
        number: u32,
    },
    /// Another device has the number.
    #[error("/dev/nbd{number} is there already, or was detached and is still open")]
    Taken {
        /// Which.
        number: u32,
    },
    /// Somebody has it in use.
    #[error("/dev/nbd{number} is in use: {by}")]
    InUse {
        /// Which.
        number: u32,
        /// How.
        by: String,
    },
    /// It could be written to, and its volume can't.
    #[error("/dev/nbd{number} waits: it could be written to, and its volume can only be read now")]
    ReadOnly {
        /// Which.
        number: u32,
    },
    /// The kernel did not take the socket.
    #[error("/dev/nbd{number} still waits for the process that served it before")]
    NotTaken {
        /// Which.
        number: u32,
    },
    /// The process is ending.
    #[error("the daemon is stopping")]
    Ended,
}

fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM | Errno::ACCESS => "; it needs CAP_SYS_ADMIN",
        _ => "",
    }
}
