//! The programs that the end-to-end tests drive, and the packages they come in.
//!
//! Installing needs root, or sudo without a password, and a system that has `apt-get`. Elsewhere
//! what is missing is said, and the tests that need it are skipped, each with a line that says so.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

/// A program, and the Debian package that has it.
const TOOLS: [(&str, &str); 17] = [
    ("fio", "fio"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdfuse", "libnbd-bin"),
    ("nbdsh", "python3-libnbd"),
    ("nbdkit", "nbdkit"),
    ("nbd-client", "nbd-client"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("xfs_repair", "xfsprogs"),
    ("fusermount3", "fuse3"),
    ("losetup", "mount"),
    ("mount", "mount"),
    ("setpriv", "util-linux"),
    ("valgrind", "valgrind"),
];

/// Installs what is missing; what it did, or what is left to do.
pub fn install() -> Result<String, String> {
    let missing = missing_packages(&TOOLS);
    if missing.is_empty() {
        return Ok("every program is there".to_owned());
    }
    install_packages(&missing)?;
    let left = missing_packages(&TOOLS);
    if left.is_empty() {
        Ok(format!("installed {}", missing.join(" ")))
    } else {
        Err(format!("installed, but still missing: {}", left.join(" ")))
    }
}

/// Installs packages by name, or says what is to be done by hand.
pub fn install_packages(packages: &[&str]) -> Result<(), String> {
    let by_hand = format!("install by hand: apt-get install -y {}", packages.join(" "));
    let Some(prefix) = superuser() else {
        return Err(format!("missing, and neither root nor sudo without a password; {by_hand}"));
    };
    if find("apt-get").is_none() {
        return Err(format!("missing, and this system has no apt-get; {by_hand}"));
    }
    // The list of packages may be stale or absent, as in a bare container.
    let installed = apt(prefix, &["install"], packages)
        || (apt(prefix, &["update"], &[]) && apt(prefix, &["install"], packages));
    if installed { Ok(()) } else { Err(format!("installing failed; {by_hand}")) }
}

/// Brings the machine's lists of packages up to date.
pub fn update_lists() -> Result<(), String> {
    let updated = superuser().is_some_and(|prefix| apt(prefix, &["update"], &[]));
    if updated { Ok(()) } else { Err("apt-get update failed, or needs root".to_owned()) }
}

/// The packages of those programs that are not there.
pub fn missing_packages(tools: &[(&str, &'static str)]) -> Vec<&'static str> {
    let mut packages: Vec<_> = tools
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|&(_, package)| package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn apt(prefix: &[&str], task: &[&str], packages: &[&str]) -> bool {
    let words: Vec<_> = prefix
        .iter()
        .chain(&["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-q"])
        .chain(&["--no-install-recommends"])
        .chain(task)
        .chain(packages)
        .collect();
    println!("$ {}", words.iter().map(|word| **word).collect::<Vec<_>>().join(" "));
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// How to become root: not at all, by sudo, or `None` if neither goes.
fn superuser() -> Option<&'static [&'static str]> {
    let output = |program: &str, args: &[&str]| {
        Command::new(program).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()
    };
    if output("id", &["-u"]).is_some_and(|out| out.stdout == b"0\n") {
        return Some(&[]);
    }
    output("sudo", &["-n", "true"])
        .is_some_and(|out| out.status.success())
        .then_some(&["sudo", "-n"])
}

/// Where a program is. Administration programs count, though a user's PATH often leaves them out.
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(|dir| Path::new(dir).to_owned());
    env::split_paths(&path)
        .chain(system)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}
