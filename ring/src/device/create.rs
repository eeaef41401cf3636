//! Creating a pool's file.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flagstone_block::{BLOCK_SIZE, BlockIo, DeviceError};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::open::backing_of;
use super::{Device, DeviceOpenError, OpenMode, SyncDevice};
use crate::uring::errno_of;

/// Bytes written between two reports of progress.
const STEP_BYTES: u64 = 4 << 20;

/// How a new file gets its space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// As it is written: small at first, but a full file system is noticed late.
    Sparse,
    /// At once, and written with zeroes, so that no later write has to allocate or convert blocks.
    Preallocated,
}

/// Why a file could not be created. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateFileError {
    /// The path exists; it is not touched.
    #[error("{path} already exists")]
    AlreadyExists {
        /// As given.
        path: PathBuf,
    },
    /// The size is zero or not a multiple of 4096 bytes.
    #[error("{size} bytes is not a whole number of 4096-byte blocks")]
    BadSize {
        /// As given, in bytes.
        size: u64,
    },
    /// The file system has not that much room.
    #[error("{path}: the file system has no room for {size} bytes")]
    NoSpace {
        /// As given.
        path: PathBuf,
        /// As given, in bytes.
        size: u64,
    },
    /// Written, but it can't be opened as a device.
    #[error(transparent)]
    Open(#[from] DeviceOpenError),
    /// A system call failed.
    #[error("{path}: {call} failed: {errno}")]
    Os {
        /// As given.
        path: PathBuf,
        /// The system call.
        call: &'static str,
        /// What it said.
        errno: Errno,
    },
}

impl Device {
    /// Creates a file of `size` bytes, a multiple of 4096, with mode 0600, and opens it exclusively.
    /// It and its directory entry survive power loss when this returns. `progress` is called with
    /// the bytes written so far and `size`, from time to time if there is much to write.
    ///
    /// # Errors
    /// See [`CreateFileError`]. A file that could not be completed is removed again.
    pub fn create_file(
        path: impl AsRef<Path>,
        size: u64,
        allocation: Allocation,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, CreateFileError> {
        let path = path.as_ref();
        if size == 0 || !size.is_multiple_of(BLOCK_SIZE as u64) {
            return Err(CreateFileError::BadSize { size });
        }
        let created =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        let file = created.map(OwnedFd::from).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                CreateFileError::AlreadyExists { path: path.to_owned() }
            }
            _ => os(path, size, "open", errno_of(&error)),
        })?;
        let result = fill(path, &file, size, allocation, progress);
        if result.is_err() {
            // What failed first is the error to tell; the file is of no use either way.
            let _ = std::fs::remove_file(path);
        }
        result
    }
}

fn fill(
    path: &Path,
    file: &OwnedFd,
    size: u64,
    allocation: Allocation,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Device, CreateFileError> {
    rustix::fs::ftruncate(file, size).map_err(|errno| os(path, size, "ftruncate", errno))?;
    if allocation == Allocation::Preallocated {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
            // Not every file system reserves; writing the zeroes allocates as well.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(errno) => return Err(os(path, size, "fallocate", errno)),
        }
    }
    let mut device = SyncDevice::new(Device::open(path, OpenMode::Exclusive)?);
    if allocation == Allocation::Preallocated {
        // Reserved blocks are marked unwritten; the first write to each would have to change that
        // in the file system's journal. Writing them now keeps that off the data path.
        let zeroes = vec![0; STEP_BYTES as usize];
        let mut at = 0;
        while at < size {
            let step = STEP_BYTES.min(size - at);
            device
                .write_at(at, &zeroes[..step as usize])
                .map_err(|error| os(path, size, "write", device_errno(error)))?;
            at += step;
            progress(at, size);
        }
    }
    rustix::fs::fsync(file).map_err(|errno| os(path, size, "fsync", errno))?;
    sync_directory(path).map_err(|error| os(path, size, "fsync", errno_of(&error)))?;
    let mut device = device.into_device();
    // It was opened before it was filled.
    let stat = rustix::fs::fstat(file).map_err(|errno| os(path, size, "fstat", errno))?;
    device.backing = backing_of(device.kind, &stat, size);
    Ok(device)
}

/// Makes the directory entry of `path` survive power loss (`fsync(2)`: calling it on a file "does
/// not necessarily ensure that the entry in the directory containing the file has also reached disk").
fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = std::fs::File::open(parent)?;
    match rustix::fs::fsync(directory.as_fd()) {
        // Some file systems can't sync a directory; then there is nothing more to do.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn device_errno(error: DeviceError) -> Errno {
    match error {
        DeviceError::Os { errno } => Errno::from_raw_os_error(errno),
        _ => Errno::IO,
    }
}

fn os(path: &Path, size: u64, call: &'static str, errno: Errno) -> CreateFileError {
    let path = path.to_owned();
    match errno {
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => CreateFileError::NoSpace { path, size },
        _ => CreateFileError::Os { path, call, errno },
    }
}
