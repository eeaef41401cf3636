//! What the lab keeps between runs: per suite a kernel, its modules, and what the guest starts from.
//!
//! It is made once, under another name, and renamed when it is complete: whoever is interrupted
//! leaves nothing that looks done. A lock keeps two runs from making it at a time.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::archive::Archive;
use super::{Trouble, accelerator, kernel};
use crate::tools;

/// The suite with Debian's newest kernels.
pub const NEWEST: &str = "trixie-backports";
/// The suite with the kernel that most machines have: 6.12.
pub const STABLE: &str = "trixie";

/// Raised when what is kept changes its form: older caches are then made anew.
const LAYOUT: u32 = 1;

/// Programs, and the packages they come in.
const PROGRAMS: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("setpriv", "util-linux"),
];

/// Modules without which the guest does not see the host's files.
const EARLY: [&str; 5] = ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"];

/// The first process of the guest, and what it becomes when the host's files are there.
const INIT: &str = include_str!("guest/init");
const START: &str = include_str!("guest/start");
const POWER_CUT: &str = include_str!("guest/powercut");

/// A kernel that can be started.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
    version: String,
    /// What QEMU is to run the guest's processor with.
    pub accelerator: &'static str,
}

impl Cache {
    /// Sees to everything that a run with the kernel of `suite` needs: packages, kernel, start.
    /// `refresh` looks for a newer kernel.
    pub fn ready(root: &Path, suite: &str, refresh: bool) -> Result<Self, Trouble> {
        is_possible().map_err(Trouble::Unavailable)?;
        let mut missing = tools::missing_packages(&PROGRAMS);
        if !Path::new(kernel::KEYRING).is_file() {
            missing.push("debian-archive-keyring");
        }
        if !missing.is_empty() {
            eprintln!("lab: installing {}", missing.join(" "));
            tools::install_packages(&missing).map_err(Trouble::Unavailable)?;
        }
        let place = place(root);
        fs::create_dir_all(&place).map_err(|error| failed(&place, &error))?;
        let lock = place.join("lock");
        let lock = File::create(&lock)
            .and_then(|file| file.lock().map(|()| file))
            .map_err(|error| failed(&lock, &error))?;
        let directory = place.join(suite);
        let version = match fs::read_to_string(directory.join("version")) {
            Ok(text) if !refresh => text.strip_prefix(&format!("{LAYOUT} ")).map(str::to_owned),
            _ => None,
        };
        let version = version.map_or_else(|| make(suite, &directory), Ok)?;
        let mut cache = Self { directory, version, accelerator: accelerator::EMULATION };
        cache.refresh_start()?;
        cache.accelerator = accelerator::choose(&place, &cache)?;
        // Held until here; the guest only reads what is there now.
        drop(lock);
        Ok(cache)
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let (version, at) = (&self.version, self.directory.display());
        format!("Linux {version}, accelerator {}, in {at}", self.accelerator)
    }

    /// What QEMU starts.
    pub fn kernel(&self) -> PathBuf {
        self.directory.join("kernel")
    }

    /// What the kernel starts from.
    pub fn archive(&self) -> PathBuf {
        self.directory.join("start.cpio")
    }

    /// What the guest sees as `/lab`.
    pub fn guest(&self) -> PathBuf {
        self.directory.join("guest")
    }

    /// Makes the start anew if it is not of these sources.
    fn refresh_start(&self) -> Result<(), Trouble> {
        let programs = [("start", START), ("powercut", POWER_CUT)];
        let stamp = self.directory.join("start.stamp");
        let sources = format!("{INIT}{START}{POWER_CUT}{}", EARLY.join(" "));
        if fs::read_to_string(&stamp).is_ok_and(|text| text == sources) {
            return Ok(());
        }
        let busybox = busybox()?;
        let mut archive = Archive::default();
        for directory in ["bin", "dev", "proc", "modules"] {
            archive.directory(directory);
        }
        archive.file("bin/busybox", &busybox);
        for applet in ["sh", "mount", "mkdir", "insmod", "switch_root", "poweroff"] {
            archive.link(&format!("bin/{applet}"), "busybox");
        }
        archive.file("init", INIT.as_bytes());
        let modules = self.guest().join("lib/modules").join(&self.version);
        let mut order: Vec<PathBuf> = Vec::new();
        for module in EARLY {
            for file in kernel::load_order(&modules, module)? {
                if !order.contains(&file) {
                    order.push(file);
                }
            }
        }
        let mut names = String::new();
        for path in order {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let content = fs::read(&path).map_err(|error| failed(&path, &error))?;
            archive.file(&format!("modules/{name}"), &content);
            names += &format!("{name}\n");
        }
        archive.file("modules/order", names.as_bytes());
        write(&self.archive(), &archive.finish())?;
        write(&self.guest().join("busybox"), &busybox)?;
        for (name, text) in programs {
            write(&self.guest().join(name), text.as_bytes())?;
        }
        write(&stamp, sources.as_bytes())
    }
}

/// Fetches a kernel; its version. What was there stays if that fails.
fn make(suite: &str, directory: &Path) -> Result<String, Trouble> {
    let new = directory.with_extension("new");
    let _ = fs::remove_dir_all(&new);
    fs::create_dir_all(&new).map_err(|error| failed(&new, &error))?;
    let version = kernel::fetch(suite, &new)?;
    write(&new.join("version"), format!("{LAYOUT} {version}").as_bytes())?;
    let _ = fs::remove_dir_all(directory);
    fs::rename(&new, directory).map_err(|error| failed(directory, &error))?;
    Ok(version)
}

/// Whether this kind of machine can run the lab at all.
fn is_possible() -> Result<(), String> {
    if env::consts::ARCH != "x86_64" {
        return Err(format!("its kernels are for x86-64, not {}", env::consts::ARCH));
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !release.lines().any(|line| line == "ID=debian") {
        return Err("it takes kernel and programs from Debian, and this is none".to_owned());
    }
    Ok(())
}

/// Where the lab keeps what it has made: shared by all working copies, if there is a home.
fn place(root: &Path) -> PathBuf {
    if let Some(path) = env::var_os("LAB_CACHE") {
        return path.into();
    }
    let home = env::var_os("HOME").filter(|home| Path::new(home).is_absolute());
    home.map_or_else(
        || root.join("target/lab"),
        |home| Path::new(&home).join(".cache/flagstone-lab"),
    )
}

/// The program that is most of the guest's own system; it must need no library.
fn busybox() -> Result<Vec<u8>, Trouble> {
    let path = tools::find("busybox").unwrap_or_else(|| "busybox".into());
    let bytes = fs::read(&path).map_err(|error| failed(&path, &error))?;
    let head = &bytes[..bytes.len().min(4096)];
    if head.windows(8).any(|part| part == b"ld-linux") {
        let why = "busybox is not the static one; apt-get install -y busybox-static";
        return Err(Trouble::Unavailable(why.to_owned()));
    }
    Ok(bytes)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Trouble> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, bytes)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .map_err(|error| failed(path, &error))
}

fn failed(path: &Path, error: &std::io::Error) -> Trouble {
    Trouble::Failed(format!("{}: {error}", path.display()))
}
