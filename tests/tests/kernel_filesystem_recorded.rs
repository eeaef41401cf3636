//! A journaling file system on a volume of a pool on an NVMe disk, driven by NVMe commands, whose writes QEMU records.
//!
//! Runs in the lab; see docs/operations/lab.md. What the disk could have been left with at any time is recovered by
//! `kernel_powercut`, on the host, from what this leaves in `FLAGSTONE_RECORDING`.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use flagstone_tests::MIB;
use flagstone_tests::daemon::{Config, directory_in_memory, flagstone};
use flagstone_tests::filesystem::Mount;
use flagstone_tests::kernel;
use flagstone_tests::programs::{Need, can_run, run};
use flagstone_tests::random::Random;
use flagstone_tests::recorded::{self, FILES};

/// Entries of the log so far (`struct log_write_super` of the kernel's `drivers/md/dm-log-writes.c`, after magic and version).
fn entries(log: &Path) -> u64 {
    let mut number = [0; 8];
    File::open(log).and_then(|log| log.read_exact_at(&mut number, 16)).expect("the log");
    u64::from_le_bytes(number)
}

#[test]
fn files_are_made_while_the_disk_is_recorded() {
    let needs = [Need::Lab, Need::Variable("FLAGSTONE_RECORDING"), Need::Program("mkfs.ext4")];
    if !can_run("files_are_made_while_the_disk_is_recorded", &needs) {
        return;
    }
    let recording = PathBuf::from(std::env::var_os("FLAGSTONE_RECORDING").expect("set"));
    let log = recording.join(recorded::LOG);
    let pool = kernel::namespace(6);
    let created = flagstone(&["pool", "create", pool.to_str().unwrap()]);
    assert!(created.status.success(), "{created:?}");
    let dir = directory_in_memory();
    let mut daemon = Config::new(&pool, dir.path()).start();
    daemon.create_volume("v", recorded::VOLUME);
    let device = daemon.ask(&["ublk", "attach", "v"])["device"].as_str().unwrap().to_owned();
    run("mkfs.ext4", ["-q", &device]);
    let mut random = Random::from_environment();
    let mut note = String::new();
    {
        let mount = Mount::new(&device, &dir.path().join("mnt"));
        let directory = File::open(mount.path()).unwrap();
        // What nobody synchronizes goes on beside it.
        let churn = File::create(mount.path().join("churn")).unwrap();
        for number in 0..FILES {
            let mut file = File::create(mount.path().join(recorded::name(number))).unwrap();
            file.write_all(&recorded::content(number)).unwrap();
            file.sync_all().unwrap();
            directory.sync_all().unwrap();
            note += &format!("{}\n", entries(&log));
            let noise = vec![number as u8; 64 << 10];
            churn.write_all_at(&noise, random.below(4 * MIB)).unwrap();
            if number % 8 == 7 {
                let old = mount.path().join(recorded::name(number - 4));
                fs::rename(&old, mount.path().join("renamed")).unwrap();
                fs::rename(mount.path().join("renamed"), &old).unwrap();
            }
            // The device waits, and goes on.
            if number == FILES / 3 {
                daemon.kill();
                daemon.restart();
            }
            if number == FILES * 2 / 3 {
                daemon.stop_cleanly();
                daemon.restart();
            }
        }
    }
    fs::write(recording.join(recorded::NOTE), note).unwrap();
    assert!(daemon.control(&["ublk", "detach", "v"]).status.success());
    daemon.stop_cleanly();
}
