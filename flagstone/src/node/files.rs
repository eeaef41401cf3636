//! The pools' files as the rest of the system sees them: whether they still have a name.
//!
//! A file that is deleted lives on while it is open, so a node goes on serving what will be gone
//! when it ends. Asked from the control thread, through descriptors of its own that keep no lock.

use flagstone_ring::{Device, DeviceKind};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// One pool's file; nothing is known of block devices.
#[derive(Debug)]
pub(super) struct PoolFile {
    path: PathBuf,
    file: Option<OwnedFd>,
}

impl PoolFile {
    pub(super) fn new(path: &Path, device: &Device) -> Self {
        // O_PATH makes a description that shares neither position nor lock with the device's.
        let by_number = format!("/proc/self/fd/{}", device.as_fd().as_raw_fd());
        let open =
            || rustix::fs::open(by_number, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok();
        let file = if device.kind() == DeviceKind::File { open() } else { None };
        Self { path: path.to_owned(), file }
    }

    /// As configured.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file has no name any more.
    pub(super) fn is_deleted(&self) -> bool {
        self.file
            .as_ref()
            .is_some_and(|file| rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink == 0))
    }
}
