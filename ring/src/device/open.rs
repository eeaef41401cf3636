//! Opening a device: exclusively, directly where possible, with its size and alignment known.
//!
//! Exclusion is by `flock(2)` on the file (two names of one inode exclude each other) and, for block
//! devices, by `O_EXCL` as well, which also keeps away mounts and other exclusive users (`open(2)`:
//! "O_EXCL can be used without O_CREAT if pathname refers to a block device"). The locks end with the
//! process, however it ends. They are advisory: a program that doesn't ask is not stopped.
//!
//! Direct I/O is proven by a read, not believed: some file systems accept the flag at `open` and
//! refuse each transfer.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flagstone_block::{BLOCK_SIZE, Buffers};
use rustix::fs::{AtFlags, FileType, FlockOperation, OFlags, SeekFrom, StatxFlags};
use rustix::io::Errno;

use super::{Backing, Device, DeviceKind};
use crate::arena::Arena;
use crate::uring::errno_of;

/// The smallest unit that any disk has.
const SECTOR_BYTES: u32 = 512;
/// A device in use is asked for again this long, because two holders go away by themselves: the
/// ring of a killed process, whose files the kernel closes a little after the process has ended, and
/// udev, which locks a block device while it looks at it (systemd, "Locking Block Device Access").
const IN_USE_PATIENCE: Duration = Duration::from_secs(1);
const IN_USE_INTERVAL: Duration = Duration::from_millis(10);

/// What a device is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// To read and write, while nobody else has it open.
    Exclusive,
    /// To read, while nobody has it open to write.
    ReadOnly,
}

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceOpenError {
    /// No such file.
    #[error("{path} does not exist")]
    NotFound {
        /// As given.
        path: PathBuf,
    },
    /// The user may not open it this way.
    #[error("no permission to open {path}; run as its owner or change its mode")]
    PermissionDenied {
        /// As given.
        path: PathBuf,
    },
    /// Someone else has it open, or it is mounted.
    #[error(
        "{path} is in use: another flagstone process has it open, or it is mounted or claimed by \
         another program; stop that first"
    )]
    InUse {
        /// As given.
        path: PathBuf,
    },
    /// Neither a regular file nor a block device.
    #[error("{path} is neither a regular file nor a block device")]
    WrongType {
        /// As given.
        path: PathBuf,
    },
    /// What it is keeps it from being used.
    #[error("{reason}")]
    Unfit {
        /// A sentence with its path.
        reason: String,
    },
    /// Its unit of direct I/O is larger than a block.
    #[error(
        "{path} transfers units of {needed} bytes; Flagstone's blocks have 4096, so it can't be used"
    )]
    AlignmentTooLarge {
        /// As given.
        path: PathBuf,
        /// The unit it needs, in bytes.
        needed: u32,
    },
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
    /// Opens and locks `path`.
    ///
    /// # Errors
    /// See [`DeviceOpenError`]. Nothing stays open or locked. `InUse` takes a second.
    pub fn open(path: impl AsRef<Path>, mode: OpenMode) -> Result<Self, DeviceOpenError> {
        let give_up = Instant::now() + IN_USE_PATIENCE;
        loop {
            match Self::try_open(path.as_ref(), mode) {
                Err(DeviceOpenError::InUse { .. }) if Instant::now() < give_up => {
                    std::thread::sleep(IN_USE_INTERVAL);
                }
                result => return result,
            }
        }
    }

    fn try_open(path: &Path, mode: OpenMode) -> Result<Self, DeviceOpenError> {
        let kind = kind_of(path, rustix::fs::stat(path).map_err(|e| os(path, "stat", e))?.st_mode)?;
        let (file, mut buffered) = open_file(path, kind, mode)?;
        // The name may lead elsewhere by now; what counts is what was opened.
        let stat = rustix::fs::fstat(&file).map_err(|errno| os(path, "fstat", errno))?;
        if kind_of(path, stat.st_mode)? != kind {
            return Err(DeviceOpenError::WrongType { path: path.to_owned() });
        }
        lock(path, file.as_fd(), mode)?;
        let end = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|e| os(path, "lseek", e))?;
        let told = told_alignment(file.as_fd(), kind);
        let logical_block_bytes = logical_block_bytes(path, told)?;
        if buffered.is_none() {
            // Some file systems take the flag, tell that they can't, and go through the page cache.
            buffered = match told {
                Some(0) => Some(Errno::OPNOTSUPP),
                _ if end >= BLOCK_SIZE as u64 => probe_direct(path, file.as_fd())?,
                _ => None,
            };
            if buffered.is_some() {
                make_buffered(path, file.as_fd())?;
            }
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            kind,
            size_bytes: end - end % BLOCK_SIZE as u64,
            logical_block_bytes,
            backing: backing_of(kind, &stat, end),
            buffered,
            read_only: mode == OpenMode::ReadOnly,
            passthrough: None,
        })
    }
}

pub(super) fn os(path: &Path, call: &'static str, errno: Errno) -> DeviceOpenError {
    let path = path.to_owned();
    match errno {
        Errno::NOENT => DeviceOpenError::NotFound { path },
        Errno::ACCESS | Errno::PERM | Errno::ROFS => DeviceOpenError::PermissionDenied { path },
        _ => DeviceOpenError::Os { path, call, errno },
    }
}

fn kind_of(path: &Path, mode: u32) -> Result<DeviceKind, DeviceOpenError> {
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => Ok(DeviceKind::File),
        FileType::BlockDevice => Ok(DeviceKind::Block),
        _ => Err(DeviceOpenError::WrongType { path: path.to_owned() }),
    }
}

/// Whether a file of `size` bytes has holes. `st_blocks` counts 512 bytes each whatever the file
/// system's block (`stat(2)`).
pub(super) fn backing_of(kind: DeviceKind, stat: &rustix::fs::Stat, size: u64) -> Backing {
    let allocated = (stat.st_blocks as u64).saturating_mul(512);
    match kind {
        DeviceKind::File if allocated < size => Backing::Sparse,
        _ => Backing::Allocated,
    }
}

/// Opens with `O_DIRECT`, or without where that is refused; then says why.
fn open_file(
    path: &Path,
    kind: DeviceKind,
    mode: OpenMode,
) -> Result<(OwnedFd, Option<Errno>), DeviceOpenError> {
    let exclusive = if kind == DeviceKind::Block { libc::O_EXCL } else { 0 };
    let attempt = |direct: i32| {
        OpenOptions::new()
            .read(true)
            .write(mode == OpenMode::Exclusive)
            .custom_flags(direct | exclusive | libc::O_NOCTTY)
            .open(path)
            .map(OwnedFd::from)
            .map_err(|error| errno_of(&error))
    };
    let (result, buffered) = match attempt(libc::O_DIRECT) {
        // "The filesystem does not support the O_DIRECT flag" (open(2)).
        Err(refused @ (Errno::INVAL | Errno::OPNOTSUPP)) => (attempt(0), Some(refused)),
        result => (result, None),
    };
    match result {
        Ok(file) => Ok((file, buffered)),
        Err(Errno::BUSY | Errno::TXTBSY) => Err(DeviceOpenError::InUse { path: path.to_owned() }),
        Err(errno) => Err(os(path, "open", errno)),
    }
}

fn lock(path: &Path, file: BorrowedFd<'_>, mode: OpenMode) -> Result<(), DeviceOpenError> {
    let operation = match mode {
        OpenMode::Exclusive => FlockOperation::NonBlockingLockExclusive,
        OpenMode::ReadOnly => FlockOperation::NonBlockingLockShared,
    };
    loop {
        match rustix::fs::flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(DeviceOpenError::InUse { path: path.to_owned() });
            }
            Err(errno) => return Err(os(path, "flock", errno)),
        }
    }
}

/// The unit of direct transfers in bytes, 0 if the file can't do them, `None` if nobody tells: files
/// tell by `statx(2)` (`STATX_DIOALIGN`, Linux 6.1), block devices by `BLKSSZGET`.
fn told_alignment(file: BorrowedFd<'_>, kind: DeviceKind) -> Option<u32> {
    match kind {
        DeviceKind::Block => rustix::fs::ioctl_blksszget(file).ok(),
        DeviceKind::File => rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
            .ok()
            .filter(|statx| statx.stx_mask & StatxFlags::DIOALIGN.bits() != 0)
            .map(|statx| statx.stx_dio_offset_align.max(statx.stx_dio_mem_align)),
    }
}

/// The logical block from what was told; the smallest one if nothing was, and the probe decides.
fn logical_block_bytes(path: &Path, told: Option<u32>) -> Result<u32, DeviceOpenError> {
    let needed = told.unwrap_or(0).max(SECTOR_BYTES).next_power_of_two();
    if needed > BLOCK_SIZE as u32 {
        return Err(DeviceOpenError::AlignmentTooLarge { path: path.to_owned(), needed });
    }
    Ok(needed)
}

/// Turns `O_DIRECT` off, so that what is done and what is said agree.
fn make_buffered(path: &Path, file: BorrowedFd<'_>) -> Result<(), DeviceOpenError> {
    let flags = rustix::fs::fcntl_getfl(file).map_err(|e| os(path, "fcntl(F_GETFL)", e))?;
    rustix::fs::fcntl_setfl(file, flags - OFlags::DIRECT).map_err(|e| os(path, "fcntl(F_SETFL)", e))
}

/// Reads the first block directly. Returns why that is refused, if it is.
fn probe_direct(path: &Path, file: BorrowedFd<'_>) -> Result<Option<Errno>, DeviceOpenError> {
    let mut block = aligned_block(path)?;
    let buffer = block.alloc(1).expect("a fresh arena of one block has one");
    loop {
        match rustix::io::pread(file, block.bytes_mut(buffer), 0) {
            // A device with a bad first block can still be opened: what it means is the pool's.
            Ok(_) | Err(Errno::IO) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(refused @ (Errno::INVAL | Errno::OPNOTSUPP)) => return Ok(Some(refused)),
            Err(errno) => return Err(os(path, "pread", errno)),
        }
    }
}

fn aligned_block(path: &Path) -> Result<Arena, DeviceOpenError> {
    Arena::new(1).map_err(|error| os(path, "mmap", errno_of(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_larger_than_a_block_is_refused_in_words() {
        let path = Path::new("/dev/large");
        for (told, expected) in
            [(None, 512), (Some(0), 512), (Some(4), 512), (Some(512), 512), (Some(4096), 4096)]
        {
            assert_eq!(logical_block_bytes(path, told).expect("small enough"), expected);
        }
        for needed in [8192, 16_384, 131_072] {
            let refused = logical_block_bytes(path, Some(needed)).expect_err("too large");
            assert!(refused.to_string().contains(&needed.to_string()), "{refused}");
        }
    }
}
