//! Exit statuses: what a script may rely on. Documented in `docs/operations/command-line.md`.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// Something failed at run time: an I/O error, no memory, no permission.
    Failure = 1,
    /// The command line or the configuration file is wrong; nothing was touched.
    Usage = 2,
    /// The pool, device or socket is in use by another process.
    InUse = 3,
    /// The pool is damaged, or there is none: not at that path, or not in what is there.
    Damaged = 4,
    /// The target holds data, and `--force` was not given.
    HoldsData = 5,
    /// No daemon answers at the control socket.
    Unreachable = 6,
    /// The daemon has no volume, pool or path of that name.
    NotFound = 7,
    /// The daemon refused the request; its message says why.
    Refused = 8,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// The name that stands for the status in JSON.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Usage => "usage",
            Self::InUse => "in_use",
            Self::Damaged => "damaged",
            Self::HoldsData => "holds_data",
            Self::Unreachable => "unreachable",
            Self::NotFound => "not_found",
            Self::Refused => "refused",
        }
    }
}
