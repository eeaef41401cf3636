//! What can go wrong with ublk.

use crate::params::ParamsError;
use rustix::io::Errno;
use std::time::Duration;

/// Why a control command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// There is no `/dev/ublk-control`.
    #[error(
        "this kernel has no ublk: /dev/ublk-control does not exist; load its module (modprobe ublk_drv), or serve over NBD"
    )]
    NoUblk,
    /// It may not be opened, or the command may not be given.
    #[error(
        "no permission for ublk; run as root, or have /dev/ublk-control opened to this user for unprivileged devices"
    )]
    NotPermitted,
    /// The kernel's ublk lacks what is needed.
    #[error("this kernel's ublk lacks {feature}; Linux 6.6 or later has it")]
    Lacks {
        /// As in `ublk_cmd.h`.
        feature: &'static str,
    },
    /// io_uring, or its large submissions, can't be had.
    #[error("{call} failed: {errno}")]
    Os {
        /// The system call.
        call: &'static str,
        /// What it said.
        errno: Errno,
    },
    /// There is no such device.
    #[error("there is no ublk device {number}")]
    NoDevice {
        /// The one that was named.
        number: u32,
    },
    /// The kernel did not answer in time. It may still carry the command out.
    #[error(
        "the kernel did not answer {command} of ublk device {number} within {} s; it may still carry it out", limit.as_secs()
    )]
    TimedOut {
        /// As in `ublk_cmd.h`.
        command: &'static str,
        /// Whose.
        number: u32,
        /// How long was waited.
        limit: Duration,
    },
    /// The kernel refused the command.
    #[error("{command} of ublk device {number} was refused: {errno}")]
    Refused {
        /// As in `ublk_cmd.h`.
        command: &'static str,
        /// Whose.
        number: u32,
        /// What it said.
        errno: Errno,
    },
    /// What the kernel tells of a device can't be.
    #[error("what the kernel tells of ublk device {number} can't be: {0}", number = .1)]
    Params(#[source] ParamsError, u32),
}

/// Why a device's queue could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// A system call failed.
    #[error("{path}: {call} failed: {errno}")]
    Os {
        /// The character device.
        path: String,
        /// The system call.
        call: &'static str,
        /// What it said.
        errno: Errno,
    },
    /// The device has another number of queues or requests than this can serve.
    #[error(
        "ublk device {number} has {queues} queues of {depth} requests; only one, of at most 4096, can be served"
    )]
    Shape {
        /// The device.
        number: u32,
        /// `nr_hw_queues`.
        queues: u16,
        /// `queue_depth`.
        depth: u16,
    },
}
