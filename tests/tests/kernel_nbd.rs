//! The kernel's NBD client: file systems on `/dev/nbdN` instead of on what nbdfuse shows.
//!
//! Runs in the lab; see docs/operations/lab.md.

use flagstone_tests::MIB;
use flagstone_tests::daemon::{Daemon, check_pool, directory_in_memory};
use flagstone_tests::filesystem::{Mount, check_files, write_files};
use flagstone_tests::kernel::NbdDevice;
use flagstone_tests::programs::{Need, can_run, run};

const POOL: u64 = 640 * MIB;

/// The smallest that xfs takes.
const VOLUME: u64 = 320 * MIB;

#[test]
fn ext4() {
    let needs = [Need::Lab, Need::Program("nbd-client"), Need::Program("mkfs.ext4")];
    if can_run("ext4", &needs) {
        file_system(&["mkfs.ext4", "-q"], &["e2fsck", "-f", "-n"]);
    }
}

#[test]
fn xfs() {
    let needs = [Need::Lab, Need::Program("nbd-client"), Need::Program("mkfs.xfs")];
    if can_run("xfs", &needs) {
        file_system(&["mkfs.xfs", "-q"], &["xfs_repair", "-n"]);
    }
}

/// Made, written to with verification, trimmed, unmounted, checked, and all found again after a clean
/// restart of the daemon.
fn file_system(make: &[&str], check: &[&str]) {
    let on = |words: &[&str], device: &NbdDevice| {
        run(words[0], words[1..].iter().chain([&device.device()]));
    };
    let dir = directory_in_memory();
    let mut daemon = Daemon::with_volume(dir.path(), POOL, VOLUME);
    {
        let device = NbdDevice::attach(&daemon, "v", 0);
        assert_eq!(device.attribute("size"), (VOLUME / 512).to_string());
        // The kernel must know that there is something to flush, and what can be discarded.
        assert_eq!(device.attribute("queue/write_cache"), "write back");
        assert_ne!(device.attribute("queue/discard_max_bytes"), "0");
        on(make, &device);
        let mount = Mount::new(device.device(), &dir.path().join("mnt"));
        write_files(mount.path());
        run("fstrim", [mount.path()]);
        check_files(mount.path());
        drop(mount);
        on(check, &device);
    }
    daemon.stop_cleanly();
    check_pool(&dir.path().join("pool"));
    daemon.restart();
    let device = NbdDevice::attach(&daemon, "v", 0);
    on(check, &device);
    let mount = Mount::new(device.device(), &dir.path().join("mnt"));
    check_files(mount.path());
}
