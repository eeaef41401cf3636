//! Opening a namespace: which block device it is, what it says of itself, and whether commands get through.
//!
//! `/dev/ngXnY` takes commands without asking who else uses the namespace: no mount, no partition, no other program is
//! in their way. So the block device of the same namespace is opened exclusively beside it by whoever uses this, and kept
//! open; [`block_device`] tells which that is.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flagstone_ring::Passthrough;

use crate::admin::{IdentifyFailure, Subject, identify, namespace_id};
use crate::geometry::{Geometry, GeometryError};
use crate::identify::{IdentifyController, IdentifyNamespace};
use crate::limits::Limits;
use crate::passthrough::Commands;
use crate::probe::{Completions, ProbeError, probe};

/// Where the kernel lists devices.
const SYS: &str = "/sys";
/// The class of the devices that take commands.
const CLASS: &str = "nvme-generic";

/// Why a namespace can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NamespaceError {
    /// It has no block device, which would keep others away.
    #[error(
        "{} has no block device: the kernel does not know its format, or hides it behind another path",
        path.display()
    )]
    NoBlockDevice {
        /// As given.
        path: PathBuf,
    },
    /// The block device that it should be is another namespace.
    #[error("{} and {} are not the same namespace", path.display(), block.display())]
    Different {
        /// As given.
        path: PathBuf,
        /// The block device with the name that belongs to it.
        block: PathBuf,
    },
    /// It is zoned, or has another command set than that for blocks.
    #[error("{} is a zoned namespace; Flagstone needs one that can be written anywhere", path.display())]
    Zoned {
        /// As given.
        path: PathBuf,
    },
    /// Its format does not fit.
    #[error("{}: {source}", path.display())]
    Format {
        /// As given.
        path: PathBuf,
        /// Why.
        source: GeometryError,
    },
    /// The controller did not say what it is.
    #[error("{}: the controller does not identify itself: {reason}", path.display())]
    Identify {
        /// As given.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A system call failed.
    #[error("{}: {source}", path.display())]
    Os {
        /// As given, or what was looked for.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// A namespace that was opened.
#[derive(Debug)]
pub struct Namespace {
    /// What its controller says of itself.
    pub controller: IdentifyController,
    /// Its blocks.
    pub geometry: Geometry,
    /// Its commands, if they get through.
    pub commands: Result<Arc<dyn Passthrough>, ProbeError>,
    /// Why completions can't be polled for, if so.
    pub not_polled: Option<ProbeError>,
}

/// The block device of the namespace that `path` takes commands for; `None` if it is no such device.
///
/// # Errors
/// It is one, and can't be used: see [`NamespaceError`].
pub fn block_device(path: &Path) -> Result<Option<PathBuf>, NamespaceError> {
    let Some(name) = generic_name(path) else { return Ok(None) };
    // With several ways to a namespace the kernel names each of them: ngXcYnZ.
    let block = name.strip_prefix("ng").filter(|rest| !rest.contains('c'));
    let none = || NamespaceError::NoBlockDevice { path: path.to_owned() };
    let block = format!("nvme{}", block.ok_or_else(none)?);
    let sys = Path::new(SYS).join("class/block").join(&block);
    if !sys.exists() {
        return Err(none());
    }
    let device = |sys: &Path| fs::canonicalize(sys.join("device"));
    let same =
        device(&sys).ok() == device(&Path::new(SYS).join("class").join(CLASS).join(&name)).ok();
    let block = Path::new("/dev").join(block);
    if same {
        Ok(Some(block))
    } else {
        Err(NamespaceError::Different { path: path.to_owned(), block })
    }
}

/// The kernel's name of a device that takes commands of a namespace.
fn generic_name(path: &Path) -> Option<String> {
    // What can't be looked at, whoever opens it will say.
    let meta = fs::metadata(path).ok().filter(|meta| meta.file_type().is_char_device())?;
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let sys = Path::new(SYS).join(format!("dev/char/{major}:{minor}"));
    let sys = fs::canonicalize(sys).ok()?;
    let class = fs::canonicalize(sys.join("subsystem")).unwrap_or_default();
    class.file_name().filter(|class| *class == CLASS)?;
    Some(sys.file_name()?.to_string_lossy().into_owned())
}

impl Namespace {
    /// Opens the namespace that `path` takes commands for, and tries whether they get through. `held` is its block device, `block`, open exclusively:
    /// see the module's header.
    ///
    /// # Errors
    /// See [`NamespaceError`]. That commands don't get through is none: see [`Namespace::commands`].
    pub fn open(path: &Path, block: &Path, held: BorrowedFd<'_>) -> Result<Self, NamespaceError> {
        let os = |source| NamespaceError::Os { path: path.to_owned(), source };
        let silent = |failure: IdentifyFailure| NamespaceError::Identify {
            path: path.to_owned(),
            reason: failure.to_string(),
        };
        let file = File::options().read(true).write(true).open(path).map_err(os)?;
        let file = OwnedFd::from(file);
        // Names may lead elsewhere by now, or in a container: what counts is what was opened.
        let different =
            || NamespaceError::Different { path: path.to_owned(), block: block.to_owned() };
        let number = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).map(|stat| stat.st_rdev).ok();
        let class = Path::new(SYS).join("class");
        let expected = |class: PathBuf| fs::read_to_string(class.join("dev")).ok();
        let generic = generic_name(path).ok_or_else(different)?;
        let name = block.file_name().unwrap_or_default();
        let same = |fd, class| {
            let text = |n| format!("{}:{}", rustix::fs::major(n), rustix::fs::minor(n));
            let (number, expected) = (number(fd), expected(class));
            number.map(text).is_some_and(|n| expected.is_some_and(|e| e.trim() == n))
        };
        if !same(file.as_fd(), class.join(CLASS).join(generic))
            || !same(held, class.join("block").join(name))
        {
            return Err(different());
        }
        let nsid = namespace_id(file.as_fd()).map_err(os)?;
        if namespace_id(held).map_err(os)? != nsid {
            return Err(different());
        }
        let queue = Queue::of(block);
        if queue.text("zoned").is_some_and(|zoned| zoned != "none") {
            return Err(NamespaceError::Zoned { path: path.to_owned() });
        }
        let data = identify(file.as_fd(), Subject::Namespace(nsid)).map_err(silent)?;
        let namespace = IdentifyNamespace::parse(&data[..]).expect("the data is whole");
        let data = identify(file.as_fd(), Subject::Controller).map_err(silent)?;
        let controller = IdentifyController::parse(&data[..]).expect("the data is whole");
        let geometry = Geometry::of(&namespace)
            .map_err(|source| NamespaceError::Format { path: path.to_owned(), source })?;
        let end = rustix::fs::seek(held, rustix::fs::SeekFrom::End(0));
        if end.map_err(|errno| os(errno.into()))? != geometry.bytes() {
            return Err(different());
        }
        let limits = Limits {
            mdts: controller.mdts,
            driver_bytes: queue.number("max_hw_sectors_kb").map(|kib| kib << 10),
            // One more than there are pages, where the first one is not whole.
            segments: queue.number("max_segments").map(|count| count.saturating_sub(1)),
        };
        let discards = controller.capabilities.dataset_management;
        let discard_bytes_max = queue.number("discard_max_bytes").filter(|_| discards);
        let trial = |completions| probe(file.as_fd(), nsid, geometry.shift, completions);
        let transport = class.join("block").join(name).join("device/transport");
        let transport = fs::read_to_string(transport).unwrap_or_default();
        let (works, polled) = if transport.trim() != "pcie" {
            // Over a network, or several paths, the block layer waits for a path that is lost; commands would fail.
            let transport = transport.trim().to_owned();
            (Err(ProbeError::Transport { transport }), None)
        } else {
            match trial(Completions::Interrupts) {
                // Without such queues a polled command works as well: its interrupt is waited for.
                Ok(()) if queue.text("io_poll").is_none_or(|io_poll| io_poll != "1") => {
                    (Ok(()), Some(ProbeError::NoPollQueues))
                }
                Ok(()) => (Ok(()), trial(Completions::Polled).err()),
                Err(error) => (Err(error), None),
            }
        };
        let commands = works.map(|()| {
            let commands: Arc<dyn Passthrough> = Arc::new(Commands {
                file,
                nsid,
                geometry,
                transfer_bytes: limits.transfer_bytes(geometry.shift),
                can_poll: polled.is_none(),
                discard_bytes_max: discard_bytes_max.unwrap_or(0),
            });
            commands
        });
        Ok(Self { controller, geometry, commands, not_polled: polled })
    }
}

/// The kernel's description of a block device's queue.
struct Queue(PathBuf);

impl Queue {
    fn of(block: &Path) -> Self {
        let name = block.file_name().unwrap_or_default();
        Self(Path::new(SYS).join("class/block").join(name).join("queue"))
    }

    fn text(&self, name: &str) -> Option<String> {
        Some(fs::read_to_string(self.0.join(name)).ok()?.trim().to_owned())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_no_commands_is_no_namespace() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        fs::write(&file, b"").expect("written");
        let (nothing, beyond) = (dir.path().join("nothing"), file.join("beyond"));
        for path in [Path::new("/dev/null"), &file, dir.path(), &nothing, &beyond] {
            assert!(block_device(path).expect("can be looked at").is_none(), "{path:?}");
        }
    }
}
