//! Exit statuses: what a script may rely on. Documented in `docs/operations/command-line.md`.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Success,
    /// Something failed at run time: an I/O error, no memory, no permission.
    Failure,
    /// The command line or the configuration file is wrong; nothing was touched.
    Usage,
    /// The pool, device or socket is in use by another process.
    InUse,
    /// The pool is damaged.
    Damaged,
    /// There is no pool: nothing at that path, or something else. To a script that wants a pool
    /// this is the same as a damaged one, so the status is too; the code in JSON tells them apart.
    NoPool,
    /// The target holds data, and `--force` was not given.
    HoldsData,
    /// No daemon answers at the control socket.
    Unreachable,
    /// The daemon has no volume, pool or path of that name.
    NotFound,
    /// The daemon refused the request; its message says why.
    Refused,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.status())
    }
}

impl Exit {
    /// The exit status.
    #[must_use]
    pub const fn status(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::InUse => 3,
            Self::Damaged | Self::NoPool => 4,
            Self::HoldsData => 5,
            Self::Unreachable => 6,
            Self::NotFound => 7,
            Self::Refused => 8,
        }
    }

    /// The name that stands for the status in JSON.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Usage => "usage",
            Self::InUse => "in_use",
            Self::Damaged => "damaged",
            Self::NoPool => "no_pool",
            Self::HoldsData => "holds_data",
            Self::Unreachable => "unreachable",
            Self::NotFound => "not_found",
            Self::Refused => "refused",
        }
    }
}
