//! What is on a device or file, and who uses it: asked before a pool is made on it.
//!
//! [`kind`] says what a path is and refuses what the kernel knows to be in use; [`examine`] says
//! what it holds. Both only read. Whoever acts on the answers opens the device exclusively first.

mod signatures;
mod usage;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use flagstone_nvme::visible;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

pub use signatures::Found;
pub use usage::{DeviceNumber, Kernel, Use};

/// What kind of thing a target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A block device.
    BlockDevice,
}

/// Why a target can't be examined.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Neither a file nor a block device.
    #[error("{} is {what}; a pool needs a regular file or a block device", path.display())]
    Unsuitable {
        /// The target.
        path: PathBuf,
        /// "a directory", ...
        what: &'static str,
    },
    /// In use: not even `--force` may touch it.
    #[error("{} is in use: {}", path.display(), list(uses))]
    InUse {
        /// The target.
        path: PathBuf,
        /// By whom; at least one.
        uses: Vec<Use>,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The target.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
}

fn list(uses: &[Use]) -> String {
    let sentences = uses.iter().map(|by| format!("{by} ({})", by.remedy()));
    sentences.collect::<Vec<_>>().join("; ")
}

/// What a target holds. Empty `found` and `data_at == None`: nothing that anybody would miss.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Signatures, the most telling first.
    pub found: Vec<Found>,
    /// For a regular file without a known signature: the byte offset of something that is not
    /// zero, in the first run of data that has one.
    pub data_at: Option<u64>,
}

impl Report {
    /// Whether anything was found.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.found.is_empty() && self.data_at.is_none()
    }

    /// What was found, as part of a sentence: "an XFS file system and a DOS partition table".
    #[must_use]
    pub fn describe(&self) -> String {
        let mut names: Vec<String> = self.found.iter().map(|f| f.what.to_owned()).collect();
        if let Some(offset) = self.data_at {
            names.push(format!("data of an unknown kind (at byte {offset})"));
        }
        match names.split_last() {
            None => "nothing".to_owned(),
            Some((last, [])) => last.clone(),
            Some((last, others)) => format!("{} and {last}", others.join(", ")),
        }
    }
}

/// What is at `path`: file or block device, if nobody uses it as far as the kernel tells.
///
/// Other processes of this program are kept away by the lock of the opened device, not by this.
///
/// # Errors
/// [`ProbeError`]; `Io` with `NotFound` if there is nothing at `path`.
pub fn kind(path: &Path) -> Result<Kind, ProbeError> {
    let io_error = |source| ProbeError::Io { path: path.to_owned(), source };
    let path = &*visible(path);
    // Looked at before anything is opened: opening a FIFO or a tape has effects.
    let meta = std::fs::metadata(path).map_err(io_error)?;
    let file_type = meta.file_type();
    let kind = if file_type.is_file() {
        Kind::File
    } else if file_type.is_block_device() {
        Kind::BlockDevice
    } else {
        let what = match file_type {
            t if t.is_dir() => "a directory",
            t if t.is_char_device() => "a character device",
            t if t.is_fifo() => "a FIFO",
            t if t.is_socket() => "a socket",
            _ => "of an unknown kind",
        };
        return Err(ProbeError::Unsuitable { path: path.to_owned(), what });
    };
    let uses = uses(path, kind, meta.rdev()).map_err(io_error)?;
    if uses.is_empty() { Ok(kind) } else { Err(ProbeError::InUse { path: path.to_owned(), uses }) }
}

/// Looks for anything on `path` that somebody might miss. Reads a file's data through to the
/// first byte that is not zero; `progress` is told how many bytes are behind it.
///
/// # Errors
/// The target can't be read.
pub fn examine(
    path: &Path,
    kind: Kind,
    progress: &mut dyn FnMut(u64),
) -> Result<Report, ProbeError> {
    let io_error = |source| ProbeError::Io { path: path.to_owned(), source };
    let file = File::open(visible(path)).map_err(io_error)?;
    let size = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|e| io_error(e.into()))?;
    let found = signatures::scan(&file, size).map_err(io_error)?;
    // A used disk is full of somebody's old bytes, and a missing signature is how people say that
    // they are done with them; a file has only bytes that somebody put there.
    let data_at = if found.is_empty() && kind == Kind::File {
        first_nonzero(&file, size, progress).map_err(io_error)?
    } else {
        None
    };
    Ok(Report { found, data_at })
}

fn uses(path: &Path, kind: Kind, rdev: u64) -> io::Result<Vec<Use>> {
    let path = std::fs::canonicalize(path)?;
    match kind {
        Kind::File => Kernel::default().uses_of_file(&path),
        Kind::BlockDevice => {
            let number =
                DeviceNumber { major: rustix::fs::major(rdev), minor: rustix::fs::minor(rdev) };
            Kernel::default().uses_of_device(&path, number)
        }
    }
}

/// The offset of a byte that is not zero, skipping the file's holes.
fn first_nonzero(file: &File, size: u64, progress: &mut dyn FnMut(u64)) -> io::Result<Option<u64>> {
    let mut chunk = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        at = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole from here on.
            Err(Errno::NXIO) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let want = chunk.len().min(usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX));
        let got = file.read_at(&mut chunk[..want], at)?;
        if got == 0 {
            return Ok(None);
        }
        if let Some(index) = chunk[..got].iter().position(|&byte| byte != 0) {
            return Ok(Some(at + index as u64));
        }
        at += got as u64;
        progress(at);
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
