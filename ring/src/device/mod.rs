//! Devices: regular files and block devices that hold a pool.
//!
//! `open` decides how a device can be driven, once and visibly: direct where the file system
//! allows, buffered where not. `create` makes new files. `sync` is the blocking face used to
//! format, recover and check. Serving drives a device through [`crate::Ring::submit_device`].

mod create;
mod open;
mod passthrough;
mod sync;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

pub use self::create::{Allocation, CreateFileError};
pub use self::open::{DeviceOpenError, OpenMode};
pub use self::passthrough::{
    DataPath, Passthrough, PassthroughCommand, PassthroughOutcome, PassthroughRequest,
};
pub use self::sync::SyncDevice;

/// What kind of file a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A regular file.
    File,
    /// A block device: a disk, a partition, a loop or mapped device.
    Block,
}

/// Whether the file's blocks are all allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A block device, or a file with at least as many blocks as its size needs.
    Allocated,
    /// A file with holes: writes may find the file system full.
    Sparse,
}

/// An open, locked device.
///
/// The lock is held until this value and every ring that it was added to are gone.
#[derive(Debug)]
pub struct Device {
    file: OwnedFd,
    path: PathBuf,
    kind: DeviceKind,
    size_bytes: u64,
    logical_block_bytes: u32,
    backing: Backing,
    /// Why `O_DIRECT` is not in use, if so.
    buffered: Option<Errno>,
    read_only: bool,
    passthrough: Option<Result<Arc<dyn Passthrough>, String>>,
}

impl Device {
    /// Size in bytes, rounded down to whole 4096-byte blocks: as it was when it was opened, or when
    /// [`Device::refresh_size`] was last called.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size_bytes
    }

    /// Looks at the size again, and returns it. One that has become smaller is taken as it was:
    /// what lies beyond the end fails when it is used, as it would have.
    ///
    /// # Errors
    /// What the system said; nothing has changed.
    pub fn refresh_size(&mut self) -> Result<u64, Errno> {
        let end = rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0))?;
        let block = flagstone_block::BLOCK_SIZE as u64;
        self.size_bytes = self.size_bytes.max(end - end % block);
        Ok(self.size_bytes)
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// File or block device.
    #[must_use]
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// Whether I/O bypasses the page cache (`O_DIRECT`).
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.buffered.is_none()
    }

    /// Why I/O goes through the page cache, for the log; `None` if it doesn't.
    #[must_use]
    pub fn buffered_because(&self) -> Option<Errno> {
        self.buffered
    }

    /// The unit of direct I/O in bytes, a power of two from 512 to 4096.
    #[must_use]
    pub fn logical_block_bytes(&self) -> u32 {
        self.logical_block_bytes
    }

    /// Whether its blocks were all allocated when it was opened.
    #[must_use]
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// Whether a discard gives space back, as far as can be told beforehand: for a file that had
    /// holes when it was opened, and a block device that says that it can.
    #[must_use]
    pub fn discard_pays(&self) -> bool {
        match self.kind {
            DeviceKind::File => self.backing == Backing::Sparse,
            DeviceKind::Block => self.discard_bytes_max().is_some_and(|bytes| bytes > 0),
        }
    }

    /// `discard_max_bytes` of the device, or of the one that it is a partition of (the kernel's
    /// `Documentation/ABI/stable/sysfs-block`).
    fn discard_bytes_max(&self) -> Option<u64> {
        let number = rustix::fs::fstat(&self.file).ok()?.st_rdev;
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        let device = format!("/sys/dev/block/{major}:{minor}");
        let limit = |queue: &str| {
            std::fs::read_to_string(format!("{device}/{queue}/discard_max_bytes")).ok()
        };
        limit("queue").or_else(|| limit("../queue"))?.trim().parse().ok()
    }

    /// Calls it `path`, and has rings that can ([`crate::RingConfig::passthrough`]) drive it by commands of its own; or says
    /// why they don't although that was asked for.
    #[must_use]
    pub fn with_passthrough(
        mut self,
        path: &Path,
        commands: Result<Arc<dyn Passthrough>, String>,
    ) -> Self {
        path.clone_into(&mut self.path);
        self.passthrough = Some(commands);
        self
    }

    /// Its own commands, if it was asked to be driven by them, or why that can't be.
    #[must_use]
    pub fn passthrough(&self) -> Option<Result<&Arc<dyn Passthrough>, &str>> {
        self.passthrough.as_ref().map(|commands| commands.as_ref().map_err(String::as_str))
    }

    /// Whether it was opened to read only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
