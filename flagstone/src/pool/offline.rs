//! Reading a stopped pool: the device is opened read-only, with a lock that keeps daemons out.

use std::path::{Path, PathBuf};

use flagstone_block::Devices;
use flagstone_engine::{CheckReport, Inspection, OpenError};
use flagstone_ring::{DeviceOpenError, OpenMode, SyncDevice};
use rustix::io::Errno;

use super::Truncated;
use super::members::{Gathered, gather_one};
use crate::exit::Exit;

/// Why a stopped pool can't be read.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The file or device can't be opened.
    #[error(transparent)]
    Device(#[from] DeviceOpenError),
    /// The end of the pool is missing.
    #[error(transparent)]
    Truncated(#[from] Truncated),
    /// There is no pool, or it is so damaged that it can't be opened.
    #[error("{}: {source}", path.display())]
    Pool {
        /// The file or device.
        path: PathBuf,
        /// What is wrong.
        source: OpenError,
    },
}

impl OfflineError {
    /// The exit status that goes with it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Device(error) => device_exit(error),
            Self::Truncated(_) => Exit::Damaged,
            Self::Pool { source, .. } => pool_exit(source),
        }
    }
}

/// The exit status of a device that can't be opened.
#[must_use]
pub fn device_exit(error: &DeviceOpenError) -> Exit {
    match error {
        DeviceOpenError::InUse { .. } => Exit::InUse,
        DeviceOpenError::WrongType { .. } | DeviceOpenError::Unfit { .. } => Exit::Usage,
        DeviceOpenError::NotFound { .. } => Exit::NoPool,
        // A part of the path is a file: there is nothing at its end either.
        DeviceOpenError::Os { errno: Errno::NOTDIR, .. } => Exit::NoPool,
        _ => Exit::Failure,
    }
}

/// The exit status of a pool that can't be opened.
#[must_use]
pub fn pool_exit(error: &OpenError) -> Exit {
    match error {
        OpenError::NoSuperblock { .. } => Exit::NoPool,
        OpenError::Device(_) | OpenError::Memory { .. } => Exit::Failure,
        _ => Exit::Damaged,
    }
}

/// Verifies the pool at `path`. `progress` gets blocks done and blocks in all.
///
/// # Errors
/// [`OfflineError`]: not even an opening would succeed.
pub fn check(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<CheckReport, OfflineError> {
    let Gathered { mut devices, .. } = open(path)?;
    flagstone_engine::check(&mut devices, progress)
        .map_err(|error| explain(error, &mut devices, path))
}

/// Describes the pool at `path`.
///
/// # Errors
/// [`OfflineError`].
pub fn inspect(path: &Path) -> Result<Inspection, OfflineError> {
    let Gathered { mut devices, .. } = open(path)?;
    flagstone_engine::inspect(&mut devices).map_err(|error| explain(error, &mut devices, path))
}

pub(super) fn explain(
    error: OpenError,
    devices: &mut Devices<SyncDevice>,
    path: &Path,
) -> OfflineError {
    match Truncated::behind(&error, devices) {
        Some(truncated) => truncated.into(),
        None => OfflineError::Pool { path: path.to_owned(), source: error },
    }
}

/// Whether both paths lead to the same file, or to the same NVMe namespace.
#[must_use]
pub fn is_same(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let identity = |path: &Path| {
        std::fs::metadata(flagstone_nvme::visible(path)).map(|meta| (meta.dev(), meta.ino())).ok()
    };
    a == b || identity(a).is_some_and(|identity_a| identity(b) == Some(identity_a))
}

fn open(path: &Path) -> Result<Gathered, OfflineError> {
    Ok(gather_one(path, OpenMode::ReadOnly)?)
}
