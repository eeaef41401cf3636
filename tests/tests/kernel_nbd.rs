//! The kernel's NBD client: file systems on `/dev/nbdN` instead of on what nbdfuse shows.
//!
//! Runs in the lab; see docs/operations/lab.md.

use std::fs;
use std::path::Path;
use std::time::Duration;

use flagstone_tests::attached::Attached;
use flagstone_tests::daemon::{Config, Daemon, check_pool, directory_in_memory, flagstone};
use flagstone_tests::filesystem::{Mount, check_files, write_files};
use flagstone_tests::kernel::{self, NbdDevice};
use flagstone_tests::programs::{Need, can_run, command, finish, run, wait_until};
use flagstone_tests::{MIB, knob};

const POOL: u64 = 640 * MIB;

/// The smallest that xfs takes.
const VOLUME: u64 = 320 * MIB;

#[test]
fn ext4() {
    let needs = [Need::Lab, Need::Program("nbd-client"), Need::Program("mkfs.ext4")];
    if can_run("ext4", &needs) {
        let grow = |device: &NbdDevice, _: &Path| drop(run("resize2fs", [device.device()]));
        file_system(1, &["mkfs.ext4", "-q"], &["e2fsck", "-f", "-n"], grow);
    }
}

#[test]
fn xfs() {
    let needs = [Need::Lab, Need::Program("nbd-client"), Need::Program("mkfs.xfs")];
    if can_run("xfs", &needs) {
        let grow = |_: &NbdDevice, at: &Path| drop(run("xfs_growfs", [at]));
        file_system(2, &["mkfs.xfs", "-q"], &["xfs_repair", "-n"], grow);
    }
}

/// Of a pool on that disk, which is driven by NVMe commands: made, written to with verification, trimmed, unmounted, checked, and
/// all found again after a clean restart of the daemon; then grown while it is mounted, the client having connected again, and
/// emptied, which gives the space back.
fn file_system(disk: u32, make: &[&str], check: &[&str], grow: impl Fn(&NbdDevice, &Path)) {
    let on = |words: &[&str], device: &NbdDevice| {
        run(words[0], words[1..].iter().chain([&device.device()]));
    };
    let dir = directory_in_memory();
    let pool = kernel::namespace(disk);
    let created = flagstone(&["pool", "create", "--force", pool.to_str().unwrap()]);
    assert!(created.status.success(), "{created:?}");
    let mut daemon = Config::new(&pool, dir.path()).start();
    daemon.create_volume("v", VOLUME);
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
    check_pool(&pool);
    daemon.restart();
    daemon.ask(&["volume", "resize", "v", "--size", "384M"]);
    let device = NbdDevice::attach(&daemon, "v", 0);
    on(check, &device);
    let at = dir.path().join("mnt");
    let mount = Mount::new(device.device(), &at);
    grow(&device, &at);
    check_files(mount.path());
    let before = daemon.used();
    run("rm", ["-r", at.join("sources").to_str().unwrap()]);
    for file in 0..2 {
        run("rm", [at.join(format!("fio.{file}.0"))]);
    }
    run("sync", ["-f", at.to_str().unwrap()]);
    run("fstrim", [&at]);
    let after = daemon.used();
    assert!(after + 30 * MIB < before, "{before} bytes were used, and now {after}");
    drop(mount);
    on(check, &device);
}

/// The daemon is killed under a mounted file system: writes fail then, and what was synchronized before
/// is there when the file system's own journal has been replayed on the recovered volume.
#[test]
fn a_mounted_file_system_outlives_the_daemon() {
    let needs = [Need::Lab, Need::Program("nbd-client"), Need::Program("mkfs.ext4")];
    if !can_run("a_mounted_file_system_outlives_the_daemon", &needs) {
        return;
    }
    let dir = directory_in_memory();
    let mut daemon = Daemon::with_volume(dir.path(), POOL, VOLUME);
    let at = dir.path().join("mnt");
    {
        let device = NbdDevice::attach(&daemon, "v", 1);
        run("mkfs.ext4", ["-q", device.device()]);
        let mount = Mount::new(device.device(), &at);
        write_files(mount.path());
        fs::write(mount.path().join("late"), vec![b'l'; MIB as usize]).unwrap();
        // It no longer reads what it is sent, so the kernel has requests under way when it ends.
        daemon.pause();
        let mut synchronize = command("sync");
        synchronize.arg(mount.path().join("late"));
        let late = std::thread::spawn(move || finish(synchronize));
        wait_until("requests under way", || {
            device.attribute("inflight").split_whitespace().any(|number| number != "0")
        });
        daemon.kill();
        let late = late.join().unwrap();
        assert!(!late.status.success(), "there is no daemon that could have taken it");
    }
    daemon.restart();
    let device = NbdDevice::attach(&daemon, "v", 2);
    let mount = Mount::new(device.device(), &at);
    check_files(mount.path());
    drop(mount);
    run("e2fsck", ["-f", "-n", device.device()]);
    drop(device);
    daemon.stop_cleanly();
    check_pool(&dir.path().join("pool"));
}

/// Attached by the daemon, the device outlives it: under a load that verifies it is killed, and stopped, `FLAGSTONE_NBD_KILLS` times (3)
/// in all, and the load sees no error. The kernel learns a new size under a mounted file system; what is in use is not taken away.
#[test]
fn attached_by_the_daemon_it_goes_on() {
    let needs = [Need::Lab, Need::Program("fio"), Need::Program("mkfs.ext4")];
    if !can_run("attached_by_the_daemon_it_goes_on", &needs) {
        return;
    }
    let dir = directory_in_memory();
    let mut daemon = Daemon::with_volume(dir.path(), POOL, 128 * MIB);
    let device = Attached::new(&daemon, "nbd", "v");
    assert_eq!(device.bytes(), 128 * MIB);
    for (attribute, value) in [
        ("queue/logical_block_size", "4096"),
        ("queue/write_cache", "write back"),
        ("queue/io_timeout", "2000"),
        ("queue/max_sectors_kb", "128"),
        ("ro", "0"),
    ] {
        assert_eq!(device.attribute(attribute), value, "{attribute}");
    }
    assert_ne!(device.attribute("queue/discard_max_bytes"), "0");
    assert_eq!(Attached::new(&daemon, "nbd", "v").path(), device.path(), "it has one device");
    device.load_through_restarts(&mut daemon, knob("FLAGSTONE_NBD_KILLS", 3));

    run("mkfs.ext4", ["-q", device.path()]);
    let at = dir.path().join("mnt");
    let mount = Mount::new(device.path(), &at);
    fs::write(at.join("file"), vec![b'f'; MIB as usize]).unwrap();
    daemon.ask(&["volume", "resize", "v", "--size", "192M"]);
    wait_until("the device to grow", || device.bytes() == 192 * MIB);
    run("resize2fs", [device.path()]);
    for words in [&["nbd", "detach", "v"][..], &["volume", "delete", "v", "--force"]] {
        let refused = daemon.control(words);
        assert!(!refused.status.success(), "{words:?}: {refused:?}");
    }
    for words in [&["ublk", "attach", "v"][..], &["nbd", "attach", "none"]] {
        assert!(!daemon.control(words).status.success(), "{words:?}");
    }
    daemon.kill();
    daemon.restart();
    assert_eq!(fs::read(at.join("file")).unwrap(), vec![b'f'; MIB as usize]);
    drop(mount);
    run("e2fsck", ["-f", "-n", device.path()]);

    assert!(daemon.control(&["nbd", "detach", "v"]).status.success());
    assert_eq!(device.bytes(), 0);
    daemon.stop_cleanly();
    check_pool(&dir.path().join("pool"));
}

/// Several devices outlive the daemon; a detached one is gone at once, or, if it is still mounted, serves nothing ever again; one
/// that nobody serves can be taken away from those that wait for it.
#[test]
fn devices_are_taken_up_or_away() {
    let needs = [Need::Lab, Need::Program("mkfs.ext4")];
    if !can_run("devices_are_taken_up_or_away", &needs) {
        return;
    }
    let states = |daemon: &Daemon| -> Vec<String> {
        let list = daemon.ask(&["nbd", "list"]);
        let devices = list["devices"].as_array().unwrap().iter();
        let text =
            |device: &serde_json::Value, what: &str| device[what].as_str().map(str::to_owned);
        let both = |d| format!("{} {}", text(d, "volume").unwrap(), text(d, "state").unwrap());
        devices.map(both).collect()
    };
    let dir = directory_in_memory();
    let mut daemon = Daemon::with_volume(dir.path(), POOL, 64 * MIB);
    daemon.create_volume("w", 64 * MIB);
    daemon.ask(&["snapshot", "create", "w", "s"]);
    let mounted = Attached::new(&daemon, "nbd", "v");
    let [writable, snapshot] = ["w", "w@s"].map(|name| Attached::new(&daemon, "nbd", name));
    assert_eq!(snapshot.attribute("ro"), "1");
    daemon.kill();
    daemon.restart();
    assert_eq!(states(&daemon), ["v live", "w live", "w@s live"]);
    // Detached, it is gone: the volume can be attached again, deleted, and the snapshot with it.
    for _ in 0..20 {
        assert!(daemon.control(&["nbd", "detach", "w"]).status.success());
        assert_eq!(Attached::new(&daemon, "nbd", "w").path(), writable.path());
    }
    assert!(daemon.control(&["nbd", "detach", "w"]).status.success());
    assert!(daemon.control(&["nbd", "detach", "w@s"]).status.success());
    assert_eq!(daemon.control(&["nbd", "detach", "w@s"]).status.code(), Some(7));
    assert!(daemon.control(&["volume", "delete", "w", "--snapshots"]).status.success());

    run("mkfs.ext4", ["-q", mounted.path()]);
    let at = dir.path().join("mnt");
    let mount = Mount::new(mounted.path(), &at);
    assert!(daemon.control(&["nbd", "detach", "v", "--force"]).status.success());
    daemon.kill();
    daemon.restart();
    assert_eq!(states(&daemon).iter().filter(|state| state.ends_with("live")).count(), 0);
    let again = Attached::new(&daemon, "nbd", "v");
    assert_ne!(again.path(), mounted.path());
    drop(mount);

    // Whoever waits for it gets an error when it is taken away without a daemon.
    daemon.kill();
    let mut write = command("dd");
    write.args(["if=/dev/zero", "bs=4096", "count=1", "oflag=direct", "conv=notrunc"]);
    write.arg(format!("of={}", again.path()));
    let waits = std::thread::spawn(move || finish(write));
    // What waits for a socket is not yet under way, as the kernel counts.
    std::thread::sleep(Duration::from_millis(500));
    let socket = daemon.config().api_socket();
    let left = flagstone(&["nbd", "list", "--json", "--api", socket.to_str().unwrap()]);
    assert!(left.out.contains(again.path()) && left.out.contains("waiting"), "{left:?}");
    assert!(!waits.is_finished());
    let removed = flagstone(&["nbd", "remove", &again.number().to_string(), "--force"]);
    assert!(removed.status.success(), "{removed:?}");
    assert!(!waits.join().unwrap().status.success());
    daemon.restart();
    wait_until("nothing to be left", || states(&daemon).is_empty());
    daemon.stop_cleanly();
    check_pool(&dir.path().join("pool"));
}

/// A write waits for space: a new size is told when none does any more, a stop is not held up, and the next daemon gets the write.
#[test]
fn a_full_pool_holds_nothing_up() {
    if !can_run("a_full_pool_holds_nothing_up", &[Need::Lab]) {
        return;
    }
    let dir = directory_in_memory();
    let mut daemon = Daemon::with_volume(dir.path(), 96 * MIB, 1024 * MIB);
    daemon.create_volume("other", 32 * MIB);
    let [device, other] = ["v", "other"].map(|name| Attached::new(&daemon, "nbd", name));
    run(
        "dd",
        ["if=/dev/urandom", &format!("of={}", other.path()), "bs=1M", "count=32", "oflag=direct"],
    );
    assert!(daemon.control(&["nbd", "detach", "other"]).status.success());
    let mut fill = command("dd");
    fill.args(["if=/dev/urandom", "bs=1M", "count=50", "oflag=direct", "conv=notrunc"]);
    fill.arg(format!("of={}", device.path()));
    let fill = std::thread::spawn(move || finish(fill));
    let waiting = |daemon: &Daemon| daemon.ask(&["pool", "status"])["pools"][0]["waiting"].as_u64();
    wait_until("a write to wait", || waiting(&daemon) > Some(0));
    daemon.ask(&["volume", "resize", "v", "--size", "1025M"]);
    assert_eq!(device.bytes(), 1024 * MIB);
    daemon.stop_cleanly();
    daemon.restart();
    wait_until("a write to wait again", || waiting(&daemon) > Some(0));
    assert!(daemon.control(&["volume", "delete", "other"]).status.success());
    assert!(fill.join().unwrap().status.success());
    wait_until("the device to grow", || device.bytes() == 1025 * MIB);
    assert!(daemon.control(&["nbd", "detach", "v"]).status.success());
    daemon.stop_cleanly();
}
