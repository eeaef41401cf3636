//! Which of the ring's optional facilities are in use, to be logged once at start.

use std::fmt;

use rustix::io::Errno;

use crate::uring::TaskRun;

/// How device commands name the arena's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferMode {
    /// Pinned and mapped once, at start.
    Registered,
    /// Pinned for each command: slower, same result. Registration was refused, most often with
    /// `ENOMEM` because the arena is larger than `RLIMIT_MEMLOCK`.
    Unregistered {
        /// Why, as `io_uring_register(2)` said.
        errno: Errno,
    },
}

/// The facilities in use by one ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingMode {
    /// How completions are produced.
    pub task_run: TaskRun,
    /// Submissions without an index array (Linux 6.6).
    pub no_sq_array: bool,
    /// The ring's own descriptor is registered (Linux 5.18).
    pub registered_ring_fd: bool,
    /// Whether it can drive devices by commands of their own: its submissions have 128 bytes (Linux 5.19).
    pub wide: bool,
    /// Whether the arena is registered.
    pub buffers: BufferMode,
    /// Entries in the registered file table; 0 if the kernel offers none.
    pub registered_files: u32,
    /// Whether the kernel took the advice to back the arena with huge pages.
    pub huge_pages: bool,
    /// Whether the ring polls under load before it sleeps.
    pub spins: bool,
    /// Entries in the submission queue.
    pub sq_entries: u32,
    /// Entries in the completion queue.
    pub cq_entries: u32,
    /// Bytes in the arena.
    pub arena_bytes: u64,
}

impl fmt::Display for RingMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let task_run = match self.task_run {
            TaskRun::Deferred => "single-issuer+defer-taskrun",
            TaskRun::Cooperative => "coop-taskrun",
            TaskRun::Interrupting => "plain",
        };
        write!(f, "io_uring {task_run}, sq {} cq {}", self.sq_entries, self.cq_entries)?;
        if self.no_sq_array {
            write!(f, ", no sq array")?;
        }
        if self.registered_ring_fd {
            write!(f, ", registered ring fd")?;
        }
        if self.wide {
            write!(f, ", wide")?;
        }
        write!(f, ", {} MiB of buffers", self.arena_bytes >> 20)?;
        match self.buffers {
            BufferMode::Registered => write!(f, " registered")?,
            BufferMode::Unregistered { errno } => {
                write!(f, " unregistered ({errno}; raise RLIMIT_MEMLOCK)")?;
            }
        }
        if self.huge_pages {
            write!(f, " (huge pages advised)")?;
        }
        match self.registered_files {
            0 => write!(f, ", files unregistered")?,
            files => write!(f, ", {files} registered files")?,
        }
        write!(f, ", {}", if self.spins { "polls under load" } else { "never polls" })
    }
}
