//! Pools on NVMe disks, through the kernel's block layer, with a file system on top.
//!
//! Runs in the lab; see docs/operations/lab.md.

use flagstone_tests::MIB;
use flagstone_tests::daemon::{Config, check_pool, directory_in_memory, flagstone};
use flagstone_tests::filesystem::{Mount, check_files, write_files};
use flagstone_tests::kernel::{self, NbdDevice};
use flagstone_tests::programs::{Need, can_run, run};

const VOLUME: u64 = 320 * MIB;

#[test]
fn a_disk_with_sectors_of_512_bytes() {
    on_disk("a_disk_with_sectors_of_512_bytes", 1);
}

#[test]
fn a_disk_with_sectors_of_4096_bytes() {
    on_disk("a_disk_with_sectors_of_4096_bytes", 2);
}

/// A file system on a volume of a pool on that disk; found again after the daemon was stopped, and
/// after it was killed.
fn on_disk(test: &str, number: u32) {
    let needs = [Need::Lab, Need::Program("nbd-client"), Need::Program("mkfs.ext4")];
    if !can_run(test, &needs) {
        return;
    }
    let dir = directory_in_memory();
    let pool = kernel::disk(number);
    let created = flagstone(&["pool", "create", pool.to_str().unwrap()]);
    assert!(created.status.success(), "{created:?}");
    let mut daemon = Config::new(&pool, dir.path()).start();
    daemon.create_volume("v", VOLUME);
    let at = dir.path().join("mnt");
    {
        let device = NbdDevice::attach(&daemon, "v", 3);
        run("mkfs.ext4", ["-q", device.device()]);
        let mount = Mount::new(device.device(), &at);
        write_files(mount.path());
        run("fstrim", [mount.path()]);
    }
    for kill in [false, true] {
        if kill {
            daemon.kill();
        } else {
            daemon.stop_cleanly();
        }
        check_pool(&pool);
        daemon.restart();
        let device = NbdDevice::attach(&daemon, "v", 3);
        run("e2fsck", ["-f", "-n", device.device()]);
        let mount = Mount::new(device.device(), &at);
        check_files(mount.path());
    }
    daemon.stop_cleanly();
}
