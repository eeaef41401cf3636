//! Why setting up or driving the reactor failed. One enum per operation; none on the data path.

use rustix::io::Errno;

/// Why [`crate::Ring::new`] failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// io_uring is switched off or blocked for this process (`ENOSYS`, `EPERM`, `EACCES`).
    #[error(
        "io_uring is not available here ({errno}). Check that `sysctl kernel.io_uring_disabled` \
         is 0 (1 admits only privileged processes and kernel.io_uring_group), and in a container \
         that the seccomp profile allows io_uring_setup, io_uring_enter and io_uring_register \
         (the default profiles of Docker and containerd don't)"
    )]
    Unavailable {
        /// What `io_uring_setup(2)` said.
        errno: Errno,
    },
    /// The kernel's io_uring lacks something that has no substitute.
    #[error("this kernel's io_uring lacks {feature}; Linux 5.17 or later is needed")]
    KernelTooOld {
        /// The missing feature, as its manual page names it.
        feature: &'static str,
    },
    /// A size in [`crate::RingConfig`] is zero or beyond what the ring can number.
    #[error("ring configuration: {what} = {value} is out of range")]
    OutOfRange {
        /// The setting.
        what: &'static str,
        /// Its refused value.
        value: u64,
    },
    /// The rings' own memory counts as locked, and the limit is too low even for that.
    #[error(
        "io_uring needs more locked memory than RLIMIT_MEMLOCK allows ({limit_bytes:?} bytes); \
         raise it (`ulimit -l`, or LimitMEMLOCK= in a systemd unit)"
    )]
    LockedMemory {
        /// The hard limit, `None` if there is none.
        limit_bytes: Option<u64>,
    },
    /// The buffer arena could not be mapped.
    #[error("cannot map {bytes} bytes of buffers: {errno}; lower the memory setting")]
    Memory {
        /// Bytes asked for.
        bytes: u64,
        /// What `mmap(2)` said.
        errno: Errno,
    },
    /// A system call failed that has no substitute.
    #[error("{call} failed: {errno}")]
    Os {
        /// The system call, as its manual page names it.
        call: &'static str,
        /// What it said.
        errno: Errno,
    },
}

/// Why a file, socket or listener could not be given to the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// The ring's table for this kind of object is full.
    #[error("the ring's table is full ({limit} entries)")]
    Full {
        /// Entries in the table.
        limit: u32,
    },
    /// A system call on the descriptor failed.
    #[error("{call} failed: {errno}")]
    Os {
        /// The system call, as its manual page names it.
        call: &'static str,
        /// What it said.
        errno: Errno,
    },
}

/// Why a socket operation was not started. Nothing happened and no event will follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    /// The name is stale, or the socket is being shut down.
    #[error("the socket is closed or being closed")]
    Gone,
    /// An operation in the same direction is under way; two could not be told apart in order.
    #[error("an operation in this direction is already under way")]
    Busy,
}
