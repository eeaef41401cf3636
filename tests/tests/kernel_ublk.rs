//! Volumes as block devices of the kernel: file systems on them, the daemon killed under them, and nothing left behind.
//!
//! Runs in the lab; see docs/operations/lab.md.

use std::path::Path;
use std::time::Instant;

use flagstone_tests::attached::Attached;
use flagstone_tests::daemon::{Config, Daemon, check_pool, directory_in_memory, flagstone};
use flagstone_tests::filesystem::{Mount, check_files, write_files};
use flagstone_tests::kernel;
use flagstone_tests::programs::{self, Need, can_run, run, wait_until};
use flagstone_tests::{MIB, knob};

const POOL: u64 = 640 * MIB;
/// The smallest that xfs takes.
const VOLUME: u64 = 320 * MIB;

fn features() -> Vec<String> {
    let output = flagstone(&["ublk", "features", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let told: serde_json::Value = serde_json::from_str(&output.out).unwrap();
    let names = told["features"].as_array().unwrap().iter();
    names.map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[test]
fn ext4() {
    if can_run("ext4", &[Need::Lab, Need::Program("mkfs.ext4"), Need::Program("resize2fs")]) {
        let grow = |device: &Attached, _: &Path| drop(run("resize2fs", [device.path()]));
        file_system(1, &["mkfs.ext4", "-q"], &["e2fsck", "-f", "-n"], grow);
    }
}

#[test]
fn xfs() {
    if can_run("xfs", &[Need::Lab, Need::Program("mkfs.xfs"), Need::Program("xfs_growfs")]) {
        let grow = |_: &Attached, at: &Path| drop(run("xfs_growfs", [at]));
        file_system(2, &["mkfs.xfs", "-q"], &["xfs_repair", "-n"], grow);
    }
}

/// Of a pool on that disk, which is driven by NVMe commands: made, written to with verification, grown while it is mounted, emptied and trimmed, and checked; the daemon is
/// stopped and started again meanwhile, under a mounted file system.
fn file_system(disk: u32, make: &[&str], check: &[&str], grow: impl Fn(&Attached, &Path)) {
    let on = |words: &[&str], device: &Attached| {
        run(words[0], words[1..].iter().chain([&device.path()]));
    };
    let dir = directory_in_memory();
    let at = dir.path().join("mnt");
    let pool = kernel::namespace(disk);
    let created = flagstone(&["pool", "create", "--force", pool.to_str().unwrap()]);
    assert!(created.status.success(), "{created:?}");
    let mut daemon = Config::new(&pool, dir.path()).start();
    daemon.create_volume("v", VOLUME);
    let device = Attached::new(&daemon, "ublk", "v");
    assert_eq!(device.bytes(), VOLUME);
    for (attribute, value) in [
        ("queue/logical_block_size", "4096"),
        ("queue/max_hw_sectors_kb", "1024"),
        ("queue/write_cache", "write back"),
        ("queue/fua", "1"),
        ("queue/discard_granularity", "4096"),
        ("queue/write_zeroes_max_bytes", "1073741824"),
        ("ro", "0"),
    ] {
        assert_eq!(device.attribute(attribute), value, "{attribute}");
    }
    on(make, &device);
    let mount = Mount::new(device.path(), &at);
    write_files(mount.path());
    daemon.stop_cleanly();
    check_pool(&pool);
    daemon.restart();
    check_files(mount.path());
    // In use it is not taken away, nor what it serves.
    for words in [["ublk", "detach", "v"], ["volume", "delete", "v"]] {
        let refused = daemon.control(&words);
        assert!(!refused.status.success(), "{words:?}: {refused:?}");
    }
    daemon.ask(&["volume", "resize", "v", "--size", "384M"]);
    if features().iter().any(|name| name == "UPDATE_SIZE") {
        wait_until("the device to grow", || device.bytes() == 384 * MIB);
        grow(&device, &at);
    }
    // What is deleted comes back.
    run("sync", ["-f", at.to_str().unwrap()]);
    let before = daemon.used();
    run("rm", ["-r", at.join("sources").to_str().unwrap()]);
    for file in 0..2 {
        run("rm", [at.join(format!("fio.{file}.0"))]);
    }
    run("sync", ["-f", at.to_str().unwrap()]);
    run("fstrim", [&at]);
    assert!(
        daemon.used() + 30 * MIB < before,
        "{before} bytes were used, and now {}",
        daemon.used()
    );
    drop(mount);
    on(check, &device);
    let gone = daemon.control(&["ublk", "detach", "v"]);
    assert!(gone.status.success() && !device.exists(), "{gone:?}");
    daemon.stop_cleanly();
}

/// The job file that comes with the project for block devices.
#[test]
fn fio_verifies() {
    if !can_run("fio_verifies", &[Need::Lab, Need::Program("fio")]) {
        return;
    }
    let dir = directory_in_memory();
    let mut daemon = Daemon::with_volume(dir.path(), POOL, 64 * MIB);
    let device = Attached::new(&daemon, "ublk", "v");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/fio/block-verify.fio");
    let mut fio = programs::command("fio");
    fio.arg("--output-format=json").arg(file).current_dir(dir.path()).env("DEVICE", device.path());
    let output = programs::finish(fio);
    assert!(output.status.success(), "{output:?}");
    let report = &output.out[output.out.find('{').expect("JSON")..];
    let report: serde_json::Value = serde_json::from_str(report).unwrap();
    let jobs = report["jobs"].as_array().unwrap();
    assert_eq!(jobs.len(), 4);
    for job in jobs {
        let bytes = |kind: &str| job[kind]["io_bytes"].as_u64().unwrap();
        assert!(job["error"] == 0 && bytes("write") + bytes("trim") == 16 * MIB, "{job}");
    }
    assert!(daemon.control(&["ublk", "detach", "v"]).status.success());
    daemon.stop_cleanly();
    check_pool(&dir.path().join("pool"));
}

/// The daemon is killed under a load that verifies what it reads, `FLAGSTONE_UBLK_KILLS` times (4): the load sees no error.
#[test]
fn killed_under_a_load_that_verifies() {
    if !can_run("killed_under_a_load_that_verifies", &[Need::Lab, Need::Program("fio")]) {
        return;
    }
    let dir = directory_in_memory();
    let mut daemon = Daemon::with_volume(dir.path(), POOL, 128 * MIB);
    let device = Attached::new(&daemon, "ublk", "v");
    device.load_through_restarts(&mut daemon, knob("FLAGSTONE_UBLK_KILLS", 4));
    assert!(daemon.control(&["ublk", "detach", "v"]).status.success());
    daemon.stop_cleanly();
    check_pool(&dir.path().join("pool"));
}

/// The device of the only pool that is being emptied: its path, and how many of its segments hold nothing.
fn leaving(daemon: &Daemon) -> Option<(String, u64)> {
    let status = daemon.ask(&["pool", "status"]);
    let devices = status["pools"][0]["devices"].as_array().unwrap().iter();
    let mut found = devices.filter(|device| device["state"] == "leaving").map(|device| {
        let path = device["path"].as_str().unwrap().to_owned();
        (path, device["segments_empty"].as_u64().unwrap())
    });
    found.next_back()
}

/// Disks of the pool are emptied and others are added under a load that verifies what it reads, and the daemon is killed
/// three times while one is just being emptied: the load sees no error.
#[test]
fn disks_come_and_go_under_a_load_through_three_kills() {
    const DISK: u64 = 160 * MIB;
    let name = "disks_come_and_go_under_a_load_through_three_kills";
    if !can_run(name, &[Need::Lab, Need::Program("fio")]) {
        return;
    }
    let dir = directory_in_memory();
    let disk = |i: usize| dir.path().join(format!("disk{i}")).to_str().unwrap().to_owned();
    let size = DISK.to_string();
    let made = flagstone(&["pool", "create", "--size", &size, &disk(0), &disk(1), &disk(2)]);
    assert!(made.status.success(), "{made:?}");
    let mut daemon = Config::new(Path::new(&disk(0)), dir.path()).start();
    daemon.create_volume("v", 128 * MIB);
    daemon.create_volume("rest", 96 * MIB);
    let mut client = daemon.connect("rest");
    for at in 0..96 {
        client.write(at * MIB, &[at as u8; MIB as usize], 0).unwrap();
    }
    drop(client);
    let device = Attached::new(&daemon, "ublk", "v");
    let (mut added, mut removed, mut interrupted) = (3, 0, 0);
    device.load_through(&mut daemon, 4, |round, daemon| {
        // It goes on by itself after a kill, perhaps to its end.
        interrupted += u32::from(leaving(daemon).is_some());
        wait_until("the disk to be empty", || leaving(daemon).is_none());
        if round < 3 {
            let output = daemon.control(&["pool", "add", &disk(added), "--size", &size]);
            assert!(output.status.success(), "{output:?}");
            added += 1;
            // The first has the journal and stays. The daemon is killed as soon as it has begun.
            removed += 1;
            let output = daemon.control(&["pool", "remove", &disk(removed), "--no-wait"]);
            assert!(output.status.success(), "{output:?}");
        }
    });
    println!("{interrupted} of 3 were seen to go on after a kill");
    let status = daemon.ask(&["pool", "status"]);
    let left = status["pools"][0]["devices"].as_array().unwrap();
    assert_eq!(left.len(), 3, "{status}");
    let mut client = daemon.connect("rest");
    for at in 0..96 {
        let bytes = client.read(at * MIB, MIB as u32).unwrap();
        assert!(bytes.iter().all(|byte| *byte == at as u8), "MiB {at}");
    }
    drop(client);
    assert!(daemon.control(&["ublk", "detach", "v"]).status.success());
    daemon.stop_cleanly();
    check_pool(Path::new(&disk(0)));
}

/// Many at a time, each once however often it is asked for; then the daemon dies, and another takes them over. Detaching leaves nothing behind.
#[test]
fn many_at_a_time() {
    const DEVICES: usize = 12;
    if !can_run("many_at_a_time", &[Need::Lab]) {
        return;
    }
    let dir = directory_in_memory();
    let mut daemon = Daemon::with_volume(dir.path(), POOL, MIB);
    let names: Vec<String> = (0..DEVICES).map(|i| format!("n{i}")).collect();
    names.iter().for_each(|name| daemon.create_volume(name, 1 << 30));
    let all = |daemon: &Daemon, what: &str| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = names
                .iter()
                .map(|name| scope.spawn(move || daemon.control(&["ublk", what, name])))
                .collect();
            for thread in threads {
                let output = thread.join().unwrap();
                assert!(output.status.success(), "{output:?}");
            }
        });
    };
    let begun = Instant::now();
    all(&daemon, "attach");
    println!("{DEVICES} devices attached in {} ms", begun.elapsed().as_millis());
    all(&daemon, "attach");
    let live = |daemon: &Daemon| {
        let list = daemon.ask(&["ublk", "list"]);
        let devices = list["devices"].as_array().unwrap().iter();
        devices.filter(|device| device["state"] == "live").count()
    };
    assert_eq!(live(&daemon), DEVICES);
    daemon.kill();
    let begun = Instant::now();
    daemon.restart();
    println!("taken over in {} ms", begun.elapsed().as_millis());
    assert_eq!(live(&daemon), DEVICES);
    all(&daemon, "detach");
    assert_eq!(live(&daemon), 0);
    let left = std::fs::read_dir("/sys/class/ublk-char").unwrap().count();
    assert_eq!(left, 0, "devices are left behind");
    daemon.stop_cleanly();
}

/// A snapshot is read-only; a device whose daemon does not come back can be removed, but not one that is served.
#[test]
fn snapshots_and_devices_that_nobody_serves() {
    if !can_run("snapshots_and_devices_that_nobody_serves", &[Need::Lab]) {
        return;
    }
    let dir = directory_in_memory();
    let mut daemon = Daemon::with_volume(dir.path(), POOL, 16 * MIB);
    let volume = Attached::new(&daemon, "ublk", "v");
    let write = |path: &str, byte: u8| {
        let mut dd = programs::command("dd");
        let from = format!("if={}", dir.path().join(format!("{byte}")).display());
        std::fs::write(dir.path().join(format!("{byte}")), vec![byte; 8192]).unwrap();
        dd.args([
            &from,
            &format!("of={path}"),
            "bs=4096",
            "count=2",
            "oflag=direct",
            "conv=notrunc",
        ]);
        programs::finish(dd).status.success()
    };
    assert!(write(volume.path(), 1));
    daemon.ask(&["snapshot", "create", "v", "s"]);
    let snapshot = Attached::new(&daemon, "ublk", "v@s");
    assert!(write(volume.path(), 2));
    assert_eq!(snapshot.attribute("ro"), "1");
    assert!(!write(snapshot.path(), 3));
    let first = |device: &Attached| std::fs::read(device.path()).unwrap()[..8192].to_vec();
    assert_eq!((first(&snapshot), first(&volume)), (vec![1; 8192], vec![2; 8192]));
    let number = volume.number().to_string();
    let remove = |number: &str| flagstone(&["ublk", "remove", number]).status.code();
    assert_eq!(remove(&number), Some(3), "a device that is served was removed");
    daemon.kill();
    let waiting = || {
        let output = flagstone(&["ublk", "list", "--json", "--api-socket", "/nowhere"]);
        output.out.matches("waiting").count()
    };
    wait_until("the kernel to see that the daemon is gone", || waiting() == 2);
    assert_eq!(remove(&number), Some(0));
    assert_eq!(remove(&snapshot.number().to_string()), Some(0));
    assert!(!volume.exists() && !snapshot.exists());
    assert_eq!(remove(&number), Some(7));
    // Nothing is left to be taken over.
    daemon.restart();
    assert!(daemon.ask(&["ublk", "list"])["devices"].as_array().unwrap().is_empty());
    daemon.stop_cleanly();
}
