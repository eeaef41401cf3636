//! What only a kernel of one's own can have: the lab's disks, and NBD devices.
//!
//! Kernel tests format disks by their names, `/dev/nvme0n1` and so on. On a developer's machine these
//! are not theirs, so every test first needs [`crate::programs::Need::Lab`], and every disk is looked
//! at before it is touched.

use std::fs;
use std::path::{Path, PathBuf};

use crate::daemon::Daemon;
use crate::programs::{self, run, wait_until};

/// What is there in the lab and nowhere else.
pub const POWER_CUT: &str = "/lab/powercut";

/// A disk of the lab, by its number.
///
/// # Panics
/// When it is another disk, or there is none.
#[must_use]
pub fn disk(number: u32) -> PathBuf {
    let name = format!("nvme{number}n1");
    let serial = fs::read_to_string(format!("/sys/block/{name}/device/serial"));
    let serial = serial.unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(serial.trim(), format!("lab{number}"), "{name} is not the lab's");
    Path::new("/dev").join(name)
}

/// The device that takes commands of the lab's disk with that number.
///
/// # Panics
/// When it is another disk, or there is none.
#[must_use]
pub fn namespace(number: u32) -> PathBuf {
    let _ = disk(number);
    PathBuf::from(format!("/dev/ng{number}n1"))
}

/// A part of a disk as a device of its own, `first` and `length` in sectors of 512 bytes; its number
/// must be free. There is no table: the kernel is told, and forgets it with the disk.
#[must_use]
pub fn part(disk: &Path, number: u32, first: u64, length: u64) -> PathBuf {
    let words = [number.into(), first, length].map(|number: u64| number.to_string());
    let device = disk.to_str().expect("devices have names of text");
    run("addpart", [device, &words[0], &words[1], &words[2]]);
    let part = PathBuf::from(format!("{device}p{number}"));
    wait_until("the part of the disk", || part.exists());
    part
}

/// How long the kernel waits for a reply, in seconds. Without a limit, a request that the server had not
/// read when it was killed is waited for until the device is detached.
const REPLY_LIMIT: &str = "20";

/// A volume as the kernel's NBD device.
#[derive(Debug)]
pub struct NbdDevice(String);

impl NbdDevice {
    /// Connects `/dev/nbdNUMBER` to a volume over the daemon's unix socket, with blocks of 4096 bytes.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn attach(daemon: &Daemon, volume: &str, number: u32) -> Self {
        let device = format!("/dev/nbd{number}");
        let socket = daemon.config().nbd_socket();
        let socket = socket.to_str().expect("paths of tests are text");
        let how = ["-N", volume, "-b", "4096", "-t", REPLY_LIMIT, &device];
        run("nbd-client", ["-unix", socket].iter().chain(&how));
        let attached = Self(device);
        wait_until("the device to have a size", || attached.attribute("size") != "0");
        attached
    }

    /// Its device node.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.0
    }

    /// What the kernel says of it: a file below `/sys/block/NAME`.
    ///
    /// # Panics
    /// When there is no such file.
    #[must_use]
    pub fn attribute(&self, name: &str) -> String {
        let path = format!("/sys/block/{}/{name}", self.0.trim_start_matches("/dev/"));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        text.trim().to_owned()
    }
}

impl Drop for NbdDevice {
    fn drop(&mut self) {
        // Nothing can be done about a failure here; what is left behind shows in the next test.
        let mut command = programs::command("nbd-client");
        command.args(["-d", &self.0]);
        let _ = programs::finish(command);
    }
}
