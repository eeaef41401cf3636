//! Who is using a file or block device right now, as the kernel tells it.
//!
//! This only explains and widens the exclusive open that guards a device in any case: the kernel
//! answers `EBUSY` without saying who, and it does not guard regular files at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A reason not to touch a device or file, whatever the user insists on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// A file system on it is mounted.
    Mounted {
        /// Where.
        at: PathBuf,
    },
    /// The kernel swaps to it.
    Swap,
    /// Another block device (LVM, md, dm-crypt, ...) is built on it.
    Holder {
        /// The kernel's name of that device.
        device: String,
    },
    /// A loop device presents the file.
    Loop {
        /// The kernel's name of the loop device.
        device: String,
    },
    /// One of its partitions is in use.
    Partition {
        /// The kernel's name of the partition.
        name: String,
        /// How.
        by: Box<Use>,
    },
}

impl std::fmt::Display for Use {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mounted { at } => write!(f, "it is mounted at {}", at.display()),
            Self::Swap => write!(f, "the system swaps to it"),
            Self::Holder { device } => write!(f, "the device {device} is built on it"),
            Self::Loop { device } => write!(f, "the loop device {device} presents it"),
            Self::Partition { name, by } => write!(f, "its partition {name} is in use: {by}"),
        }
    }
}

impl Use {
    /// What would end this use.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Mounted { at } => format!("unmount it first: umount {}", at.display()),
            Self::Swap => "take it out of use first: swapoff PATH".to_owned(),
            Self::Holder { device } => {
                format!("stop {device} first (vgchange -an, mdadm --stop, cryptsetup close, ...)")
            }
            Self::Loop { device } => format!("detach it first: losetup -d /dev/{device}"),
            Self::Partition { by, .. } => by.remedy(),
        }
    }
}

/// Where the kernel's view is found; tests give it a made-up one.
#[derive(Clone, Debug)]
pub struct Kernel {
    proc: PathBuf,
    sys: PathBuf,
}

impl Default for Kernel {
    fn default() -> Self {
        Self { proc: "/proc".into(), sys: "/sys".into() }
    }
}

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNumber {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl DeviceNumber {
    /// As `/sys` has it, `MAJOR:MINOR`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl Kernel {
    /// Every use of the block device `number`, known as `path`, and of its partitions.
    ///
    /// # Errors
    /// The kernel's tables can't be read.
    pub fn uses_of_device(&self, path: &Path, number: DeviceNumber) -> io::Result<Vec<Use>> {
        let mut uses = self.uses_of_one(path, number)?;
        let sys = self.sys.join(format!("dev/block/{}:{}", number.major, number.minor));
        for partition in list(&sys)? {
            if !partition.join("partition").exists() {
                continue;
            }
            let name = file_name(&partition);
            let Some(number) = fs::read_to_string(partition.join("dev"))
                .ok()
                .and_then(|s| DeviceNumber::parse(&s))
            else {
                continue;
            };
            let device = Path::new("/dev").join(&name);
            for by in self.uses_of_one(&device, number)? {
                uses.push(Use::Partition { name: name.clone(), by: Box::new(by) });
            }
        }
        Ok(uses)
    }

    fn uses_of_one(&self, path: &Path, number: DeviceNumber) -> io::Result<Vec<Use>> {
        let mut uses = Vec::new();
        for mount in self.mounts()? {
            if mount.number == number || mount.source == path {
                uses.push(Use::Mounted { at: mount.at });
            }
        }
        if self.swaps()?.iter().any(|swap| swap == path) {
            uses.push(Use::Swap);
        }
        let sys = self.sys.join(format!("dev/block/{}:{}", number.major, number.minor));
        for holder in list(&sys.join("holders"))? {
            uses.push(Use::Holder { device: file_name(&holder) });
        }
        Ok(uses)
    }

    /// Every use of the regular file `path`, which must be absolute and free of symbolic links.
    ///
    /// # Errors
    /// The kernel's tables can't be read.
    pub fn uses_of_file(&self, path: &Path) -> io::Result<Vec<Use>> {
        let mut uses = Vec::new();
        if self.swaps()?.iter().any(|swap| swap == path) {
            uses.push(Use::Swap);
        }
        for device in list(&self.sys.join("block"))? {
            let Ok(backing) = fs::read_to_string(device.join("loop/backing_file")) else {
                continue;
            };
            if Path::new(backing.trim_end_matches('\n')) == path {
                uses.push(Use::Loop { device: file_name(&device) });
            }
        }
        Ok(uses)
    }

    fn mounts(&self) -> io::Result<Vec<Mount>> {
        let text = read_or_empty(&self.proc.join("self/mountinfo"))?;
        Ok(text.lines().filter_map(Mount::parse).collect())
    }

    fn swaps(&self) -> io::Result<Vec<PathBuf>> {
        let text = read_or_empty(&self.proc.join("swaps"))?;
        let names = text.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        Ok(names.map(|name| PathBuf::from(unescape(name))).collect())
    }
}

struct Mount {
    number: DeviceNumber,
    at: PathBuf,
    source: PathBuf,
}

impl Mount {
    /// Source: proc_pid_mountinfo(5): ID PARENT MAJOR:MINOR ROOT MOUNT-POINT OPTIONS [TAGS] - TYPE SOURCE.
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ');
        let number = DeviceNumber::parse(fields.nth(2)?)?;
        let at = PathBuf::from(unescape(fields.nth(1)?));
        let source = PathBuf::from(unescape(after.split(' ').nth(1)?));
        Some(Self { number, at, source })
    }
}

/// Undoes the kernel's `\ooo` escapes of blanks and backslashes.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'\\'
            && let Some(digits) = tail.get(..3)
            && digits.iter().all(|d| (b'0'..=b'7').contains(d))
        {
            let value = digits.iter().fold(0_u32, |value, d| value * 8 + u32::from(d - b'0'));
            bytes.push(value as u8);
            rest = &tail[3..];
        } else {
            bytes.push(byte);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The entries of a directory in order; none if it does not exist.
fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>()?;
    paths.sort();
    Ok(paths)
}

/// A kernel without swap has no `/proc/swaps`.
fn read_or_empty(path: &Path) -> io::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> (tempfile::TempDir, Kernel) {
        let dir = tempfile::tempdir().unwrap();
        let kernel = Kernel { proc: dir.path().join("proc"), sys: dir.path().join("sys") };
        fs::create_dir_all(kernel.proc.join("self")).unwrap();
        fs::write(
            kernel.proc.join("self/mountinfo"),
            "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
             40 22 0:45 / /mnt/b\\040c rw - btrfs /dev/sdb rw\n\
             broken line\n",
        )
        .unwrap();
        fs::write(
            kernel.proc.join("swaps"),
            "Filename\tType\tSize\tUsed\tPriority\n/dev/sda2 partition 1 0 -2\n/swap\\040file file 1 0 -3\n",
        )
        .unwrap();
        let sda = kernel.sys.join("dev/block/8:0");
        for (name, number) in [("sda1", "8:1\n"), ("sda2", "8:2\n"), ("sda3", "8:3\n")] {
            fs::create_dir_all(sda.join(name)).unwrap();
            fs::write(sda.join(name).join("partition"), "1\n").unwrap();
            fs::write(sda.join(name).join("dev"), number).unwrap();
        }
        fs::create_dir_all(sda.join("queue")).unwrap();
        fs::create_dir_all(kernel.sys.join("dev/block/8:32/holders/dm-3")).unwrap();
        fs::create_dir_all(kernel.sys.join("block/loop7/loop")).unwrap();
        fs::write(kernel.sys.join("block/loop7/loop/backing_file"), "/images/a b\n").unwrap();
        (dir, kernel)
    }

    #[test]
    fn finds_each_use() {
        let (_dir, kernel) = kernel();
        let device = |path: &str, major, minor| {
            kernel.uses_of_device(Path::new(path), DeviceNumber { major, minor }).unwrap()
        };
        let mounted = |at: &str| Use::Mounted { at: at.into() };
        assert_eq!(device("/dev/sda1", 8, 1), [mounted("/")]);
        assert_eq!(device("/dev/sdb", 8, 16), [mounted("/mnt/b c")], "btrfs: by its source");
        assert_eq!(device("/dev/sda2", 8, 2), [Use::Swap]);
        assert_eq!(device("/dev/sdc", 8, 32), [Use::Holder { device: "dm-3".to_owned() }]);
        assert_eq!(device("/dev/sdd", 8, 48), []);
        let partition = |name: &str, by| Use::Partition { name: name.to_owned(), by: Box::new(by) };
        assert_eq!(
            device("/dev/sda", 8, 0),
            [partition("sda1", mounted("/")), partition("sda2", Use::Swap)]
        );
        assert_eq!(kernel.uses_of_file(Path::new("/swap file")).unwrap(), [Use::Swap]);
        assert_eq!(
            kernel.uses_of_file(Path::new("/images/a b")).unwrap(),
            [Use::Loop { device: "loop7".to_owned() }]
        );
        assert_eq!(kernel.uses_of_file(Path::new("/images/c")).unwrap(), []);
    }

    #[test]
    fn reads_this_machine() {
        Kernel::default().uses_of_file(Path::new("/nowhere")).unwrap();
        Kernel::default()
            .uses_of_device(Path::new("/dev/null"), DeviceNumber { major: 1, minor: 3 })
            .unwrap();
    }
}
