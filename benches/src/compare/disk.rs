//! Disks: block devices backed by memory, zram or a tmpfs file under a loop device with direct I/O, or files on a
//! real disk.
//!
//! The loop device in between gives every server the same asynchronous, uncached path that a
//! disk has; zram alone would run each request in the submitter's context. Everything made here
//! is unmade on drop, in reverse; what can't be is named on standard error.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use flagstone_loadgen::{Limits, Pattern, RawOptions, Unobserved, Workload, run_raw};

use super::{CompareError, plan::Backing, tool};

/// How often something that the kernel still holds for a moment is tried again.
const RETRIES: u32 = 50;
const RETRY_PERIOD: Duration = Duration::from_millis(100);

/// A block device or a file.
#[derive(Debug)]
pub struct Disk {
    // Dropped in this order: the loop device holds what is under it.
    loop_device: Option<LoopDevice>,
    medium: Medium,
}

#[derive(Debug)]
enum Medium {
    Zram(Zram),
    File(File),
}

impl Medium {
    fn path(&self) -> &Path {
        match self {
            Self::Zram(zram) => &zram.path,
            Self::File(file) => &file.0,
        }
    }
}

impl Disk {
    /// Makes a disk of `bytes` bytes, a multiple of 1 MiB, and fills it.
    ///
    /// # Errors
    /// Whatever the kernel or losetup refuses; nothing is left behind.
    pub fn new(backing: &Backing, bytes: u64) -> Result<Self, CompareError> {
        let medium = match backing {
            Backing::Zram => Medium::Zram(Zram::new(bytes)?),
            Backing::Tmpfs => Medium::File(File::new(Path::new("/dev/shm"), bytes)?),
            Backing::Directory(path) => Medium::File(File::new(path, bytes)?),
        };
        let loop_device = match backing.has_loop() {
            true => Some(LoopDevice::new(medium.path())?),
            false => None,
        };
        let disk = Self { loop_device, medium };
        disk.fill(bytes)?;
        Ok(disk)
    }

    /// Writes the whole device once. Memory that a virtual machine uses for the first time (or
    /// again, after its host took it back) costs a fault in the host, several microseconds for
    /// each 4 KiB: a log, which goes through the whole of its device, would pay that during the
    /// measurement, and servers that overwrite in place would not.
    fn fill(&self, bytes: u64) -> Result<(), CompareError> {
        const BLOCK_SIZE: u32 = 1 << 20;
        let workload = Workload {
            block_size: BLOCK_SIZE,
            depth: 4,
            read_percent: 0,
            pattern: Pattern::Sequential,
            ..Workload::default()
        };
        let operations = Some(bytes / u64::from(BLOCK_SIZE));
        let limits = Limits { duration: None, operations, ..Limits::default() };
        let options = RawOptions { force_destructive: true, ..RawOptions::default() };
        run_raw(self.path(), &workload, options, &limits, &mut Unobserved)
            .map(drop)
            .map_err(|source| CompareError::Run { server: "the disk", source })
    }

    /// The block device or file to use.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.loop_device.as_ref().map_or_else(|| self.medium.path(), |device| &device.0)
    }
}

#[derive(Debug)]
struct Zram {
    number: u32,
    path: PathBuf,
}

impl Zram {
    fn new(bytes: u64) -> Result<Self, CompareError> {
        let text = fs::read_to_string("/sys/class/zram-control/hot_add")
            .map_err(|error| CompareError::io("/sys/class/zram-control/hot_add", error))?;
        let number = text.trim().parse().map_err(|_| {
            CompareError::io("/sys/class/zram-control/hot_add", io::ErrorKind::InvalidData.into())
        })?;
        let zram = Self { number, path: format!("/dev/zram{number}").into() };
        // The cheapest compression, where there is a choice: the disk should cost least of all.
        let algorithms = zram.attribute("comp_algorithm");
        if fs::read_to_string(&algorithms).is_ok_and(|all| all.contains("lz4")) {
            write(&algorithms, "lz4")?;
        }
        write(&zram.attribute("disksize"), &bytes.to_string())?;
        Ok(zram)
    }

    fn attribute(&self, name: &str) -> PathBuf {
        format!("/sys/block/zram{}/{name}", self.number).into()
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        let reset = self.attribute("reset");
        let gone = retry(|| fs::write(&reset, "1")).and_then(|()| {
            retry(|| fs::write("/sys/class/zram-control/hot_remove", self.number.to_string()))
        });
        if let Err(error) = gone {
            eprintln!("can't remove {}: {error}", self.path.display());
        }
    }
}

#[derive(Debug)]
struct File(PathBuf);

impl File {
    fn new(directory: &Path, bytes: u64) -> Result<Self, CompareError> {
        let (file, path) = tempfile::Builder::new()
            .prefix("flagstone-compare-")
            .tempfile_in(directory)
            .and_then(|file| file.keep().map_err(|error| error.error))
            .map_err(|error| CompareError::io(directory, error))?;
        let made = Self(path);
        file.set_len(bytes).map_err(|error| CompareError::io(&made.0, error))?;
        Ok(made)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("can't remove {}: {error}", self.0.display());
        }
    }
}

#[derive(Debug)]
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn new(under: &Path) -> Result<Self, CompareError> {
        // Direct I/O needs the loop device's sectors to be those of what is under it.
        let options = ["--show", "--find", "--direct-io=on", "--sector-size=4096"];
        let arguments = options.iter().map(Path::new).chain([under]);
        let device = Self(tool::output("losetup", arguments)?.into());
        let name = device.0.file_name().unwrap_or_default().to_owned();
        let direct = Path::new("/sys/block").join(name).join("loop/dio");
        let on = fs::read_to_string(&direct).map_err(|error| CompareError::io(&direct, error))?;
        if on.trim() != "1" {
            return Err(CompareError::NotDirect { device: device.0.clone() });
        }
        Ok(device)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detach = || tool::output("losetup", [Path::new("--detach"), &self.0]);
        if let Err(error) = retry(detach) {
            eprintln!("can't detach {}: {error}", self.0.display());
        }
    }
}

fn write(path: &Path, text: &str) -> Result<(), CompareError> {
    fs::write(path, text).map_err(|error| CompareError::io(path, error))
}

/// The kernel lets go of a device a little after its last user has closed it.
fn retry<T, E>(mut action: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let mut tries = 0;
    loop {
        match action() {
            Err(_) if tries < RETRIES => tries += 1,
            result => return result,
        }
        thread::sleep(RETRY_PERIOD);
    }
}
