//! Kernel tests: the test binaries `kernel_*` of the package `flagstone-tests`, built here and run in
//! the lab, all of them in one boot; and some of them on another kernel, in another guest beside it.
//!
//! The last of them doesn't end: it writes to a disk whose writes are recorded, until it cuts the
//! power. What the disk could have been left with is then recovered on this machine, which is much
//! faster than in the guest.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::lab::{self, Cache, Trouble};
use crate::step::{self, Counts};

/// The files of these tests begin with this.
pub const PREFIX: &str = "kernel";

/// The test binary that records in the guest and recovers here, and its tests for that.
const POWER_CUT: &str = "kernel_powercut";
const RECORDS: &str = "records_until_the_power_is_cut";
const RECOVERS: [&str; 3] = [
    "crash_images_are_recovered",
    "a_disk_without_flushes_is_found_out",
    "file_system_images_are_recovered",
];

/// Bytes of the recorded disk.
const RECORDED: u64 = 96 << 20;

/// What the guest does: every binary to its end, then the one that cuts the power. That one is left
/// out when something failed, so that the status tells of it.
const SCRIPT: &str = r#"
last=$1; shift; status=0
for binary in "$@"; do "$binary" --test-threads=1 || status=$?; done
[ "$status" = 0 ] || exit "$status"
exec "$last" --exact --nocapture "$RECORDS"
"#;

/// Some of them on another kernel: a file system over a pool that NVMe commands drive, and the daemon ended under a load.
const SCRIPT_ASIDE: &str = r#"
status=0
for binary in "$@"; do "$binary" --test-threads=1 ext4 killed_under attached_by || status=$?; done
exit "$status"
"#;

/// Those of which: on both of the kernel's drivers.
const ASIDE: [&str; 2] = ["kernel_nbd-", "kernel_ublk-"];

/// How a command is run: with its output shown as it comes, or at the end.
pub type RunOne = fn(Command) -> Result<Counts, String>;

/// Runs them with the kernel of `suite` and, at the same time, some that are about its block devices with
/// that of `aside`; `cargo` is the command that tests the workspace.
pub fn run(
    root: &Path,
    suite: &str,
    aside: Option<&str>,
    cargo: Command,
    run_one: RunOne,
) -> Result<Counts, String> {
    let mut skipped = Vec::new();
    let mut ready = Vec::new();
    for suite in [Some(suite), aside].into_iter().flatten() {
        match lab::suite(Some(suite)).and_then(|suite| Cache::ready(root, &suite, false)) {
            Ok(cache) => {
                println!("{}", cache.describe());
                ready.push(suite);
            }
            Err(Trouble::Unavailable(why)) => {
                let why = format!("those on the kernel of {suite}: the lab can't run here: {why}");
                println!("SKIPPED: {why}");
                skipped.push(why);
            }
            Err(Trouble::Usage(why) | Trouble::Failed(why)) => return Err(why),
        }
    }
    let mut counts = Counts { skipped, ..Counts::default() };
    if ready.is_empty() {
        return Ok(counts);
    }
    let binaries = build(cargo)?;
    let beside = aside.filter(|aside| ready.contains(aside)).map(|aside| {
        let binaries = binaries.clone();
        let aside = aside.to_owned();
        std::thread::spawn(move || run_aside(&aside, &binaries))
    });
    if ready.contains(&suite) {
        counts.add(run_all(suite, &binaries, run_one)?);
    }
    if let Some(beside) = beside {
        counts.add(beside.join().map_err(|_| "the second guest's thread panicked")??);
    }
    Ok(counts)
}

/// A guest with the lab's disks.
fn guest(suite: &str, recording: &Recording) -> Result<Command, String> {
    let lab = std::env::current_exe().map_err(|error| format!("own path: {error}"))?;
    let mut guest = Command::new(&lab);
    guest.args(["lab", "--kernel", suite, "--disk", "disk.img", "--log", "writes.log"]);
    guest.args(["--nvme", "1G", "--nvme", "1G,logical_block_size=4096"]);
    // With metadata in each block; with a sector that can't be read, at 100 MiB.
    guest.args(["--nvme", "128M,ms=8", "--nvme", "256M,unreadable=204800"]);
    // To be pulled out.
    guest.args(["--nvme", "256M"]);
    // For a file system; recorded, too.
    guest.args(["--disk", "fs.img,recorded=fs.log", "--timeout", "600"]);
    guest.current_dir(&recording.0);
    Ok(guest)
}

fn run_all(suite: &str, binaries: &[PathBuf], run_one: RunOne) -> Result<Counts, String> {
    let is_last = |path: &&PathBuf| name(path).starts_with(POWER_CUT);
    let last = binaries.iter().find(is_last).ok_or("no test binary cuts the power")?;
    let others = binaries.iter().filter(|path| !is_last(path));
    let recording = Recording::new("first")?;
    let mut guest = guest(suite, &recording)?;
    let lab = PathBuf::from(guest.get_program());
    guest.args(["--expect-cut", "--", "sh", "-c", SCRIPT, "sh"]);
    guest.arg(last).args(others);
    guest.env("RECORDS", RECORDS).env("FLAGSTONE_RECORDING", &recording.0);
    let mut counts = run_one(guest)?;
    if counts.failed == 0 {
        let mut host = Command::new(last);
        host.arg("--exact").args(RECOVERS).env("FLAGSTONE_LAB", lab);
        host.env("FLAGSTONE_RECORDING", &recording.0).current_dir(&recording.0);
        counts.add(run_one(host)?);
    }
    if counts.failed > 0 {
        println!("what was recorded stays in {}", recording.keep().display());
    }
    Ok(counts)
}

fn run_aside(suite: &str, binaries: &[PathBuf]) -> Result<Counts, String> {
    let is_meant = |path: &&PathBuf| ASIDE.iter().any(|aside| name(path).starts_with(aside));
    let recording = Recording::new("second")?;
    let mut guest = guest(suite, &recording)?;
    guest.args(["--", "sh", "-c", SCRIPT_ASIDE, "sh"]).args(binaries.iter().filter(is_meant));
    step::run_aside(&format!("kernel tests: {suite}"), guest)
}

/// Builds the test binaries; where they are, by name.
fn build(mut cargo: Command) -> Result<Vec<PathBuf>, String> {
    cargo.args(["--no-run", "--message-format=json", "--test", &format!("{PREFIX}*")]);
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("building: {}", output.status));
    }
    let mut paths: Vec<_> = executables(&String::from_utf8_lossy(&output.stdout)).collect();
    paths.sort_unstable_by_key(|path| name(path));
    Ok(paths)
}

/// The kernel tests among the executables that cargo names, a JSON document per line. Their paths are
/// taken as they stand there: those that need escapes are not for a shell either.
fn executables(messages: &str) -> impl Iterator<Item = PathBuf> {
    let path = |line: &str| {
        let (_, rest) = line.split_once("\"executable\":\"")?;
        Some(PathBuf::from(rest.split_once('"')?.0))
    };
    messages.lines().filter_map(path).filter(|path| name(path).starts_with(PREFIX))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The directory that guest and host share: the recorded disk, how it began, the log of its writes,
/// and what the guest noted of its promises.
struct Recording(PathBuf);

impl Recording {
    fn new(which: &str) -> Result<Self, String> {
        let name = format!("flagstone-kernel-{}-{which}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let failed = |error| format!("{}: {error}", path.display());
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).map_err(failed)?;
        let recording = Self(path.clone());
        for name in ["base.img", "disk.img", "fs-base.img", "fs.img"] {
            File::create(path.join(name))
                .and_then(|file| file.set_len(RECORDED))
                .map_err(failed)?;
        }
        Ok(recording)
    }

    /// Leaves it for whoever looks into a failure.
    fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found() {
        let text = "{\"reason\":\"compiler-artifact\",\"executable\":\"/t/deps/kernel_nbd-1f\",\"x\":1}\n\
                    {\"reason\":\"compiler-artifact\",\"executable\":null}\n\
                    {\"executable\":\"/t/flagstone\"}\n";
        assert_eq!(executables(text).collect::<Vec<_>>(), [Path::new("/t/deps/kernel_nbd-1f")]);
    }
}
