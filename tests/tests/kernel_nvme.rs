//! Pools on NVMe disks, through the kernel's block layer and by NVMe commands: with a file system on top, and with a disk that
//! is reset, goes away, can't be read in places, or should not be used.
//!
//! Runs in the lab; see docs/operations/lab.md.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use flagstone_tests::daemon::{Config, Daemon, binary, check_pool, directory_in_memory, flagstone};
use flagstone_tests::filesystem::{Mount, check_files, write_files};
use flagstone_tests::kernel::{self, NbdDevice};
use flagstone_tests::programs::{self, Need, Output, can_run, run, wait_until};
use flagstone_tests::{LIMIT, MIB};

const VOLUME: u64 = 320 * MIB;

/// A file system on a volume of a pool on a disk, through the block layer; found again after the daemon was stopped, and
/// after it was killed. The same by NVMe commands is in `kernel_ublk`.
#[test]
fn a_file_system_over_the_block_layer() {
    let needs = [Need::Lab, Need::Program("nbd-client"), Need::Program("mkfs.ext4")];
    if !can_run("a_file_system_over_the_block_layer", &needs) {
        return;
    }
    let dir = directory_in_memory();
    let pool = kernel::disk(1);
    let created = flagstone(&["pool", "create", "--force", pool.to_str().unwrap()]);
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

/// A pool on a disk that is driven by commands, with a volume.
fn served(pool: &Path, dir: &Path, volume: u64, polling: &str) -> Daemon {
    let created = flagstone(&["pool", "create", "--force", pool.to_str().unwrap()]);
    assert!(created.status.success(), "{created:?}");
    let mut config = Config::new(pool, dir);
    config.args.extend(["--nvme-polling", polling].map(str::to_owned));
    let daemon = config.start();
    daemon.create_volume("v", volume);
    daemon
}

/// How the pool's device is driven, and its state.
fn device(daemon: &Daemon) -> (String, String, Option<String>) {
    let status = daemon.ask(&["pool", "status"]);
    let device = &status["pools"][0]["devices"][0];
    let text = |name: &str| device[name].as_str().map(str::to_owned);
    (text("data_path").unwrap_or_default(), text("state").unwrap_or_default(), text("reason"))
}

/// A load that verifies what it reads, until it is told to end.
fn load(daemon: &Daemon, words: &[&str]) -> Child {
    let mut command = std::process::Command::new(binary());
    command.args(["bench", "nbd", &daemon.uri("v"), "--mix", "50", "--verify"]);
    command.args(words).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().expect("the binary starts")
}

fn succeeds(mut load: Child) {
    let (ended, said) = ended(&mut load);
    assert!(ended.success(), "{ended:?}: {said}");
}

/// How a load ended, and what it said.
fn ended(load: &mut Child) -> (ExitStatus, String) {
    let ended = programs::wait(load, LIMIT).expect("the load ends");
    let mut said = String::new();
    std::io::Read::read_to_string(&mut load.stderr.take().unwrap(), &mut said).unwrap();
    (ended, said)
}

/// Polled for while there is something to wait for; nothing is done when there is nothing to do.
#[test]
fn polled_transfers_are_right_and_idle_is_silent() {
    if !can_run("polled_transfers_are_right_and_idle_is_silent", &[Need::Lab]) {
        return;
    }
    let dir = directory_in_memory();
    for (number, block) in [(1, "512"), (2, "4096")] {
        let pool = kernel::namespace(number);
        let sys = format!("/sys/block/nvme{number}n1/queue/logical_block_size");
        assert_eq!(fs::read_to_string(sys).unwrap().trim(), block);
        let mut daemon = served(&pool, dir.path(), 64 * MIB, "always");
        assert_eq!(device(&daemon).0, "nvme-polled");
        succeeds(load(&daemon, &["--ops", "3000"]));
        // Longer than one command can transfer.
        succeeds(load(&daemon, &["--ops", "40", "--block-size", "2M", "--depth", "2"]));
        succeeds(load(&daemon, &["--ops", "300", "--flush-every", "3", "--depth", "1"]));
        let spent = |daemon: &Daemon| {
            let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
            let fields: Vec<u64> =
                stat.rsplit(')').next().unwrap().split(' ').flat_map(str::parse).collect();
            // User and system time, in hundredths of a second (proc_pid_stat(5)): 14 and 15, of which the first two are names.
            fields[10] + fields[11]
        };
        std::thread::sleep(Duration::from_secs(1));
        let before = spent(&daemon);
        std::thread::sleep(Duration::from_secs(3));
        let idle = spent(&daemon) - before;
        assert!(idle < 60, "{idle} hundredths of a second of 3 s without a request");
        daemon.stop_cleanly();
        check_pool(&pool);
    }
}

/// A reset throws away what is under way; it is given once more, and nobody notices but by the clock.
#[test]
fn a_controller_that_is_reset_under_load_is_not_noticed() {
    if !can_run("a_controller_that_is_reset_under_load_is_not_noticed", &[Need::Lab]) {
        return;
    }
    let pool = kernel::namespace(1);
    let control = fs::canonicalize("/sys/block/nvme1n1/device").unwrap();
    let reset_under_load = |polling: &str| {
        let dir = directory_in_memory();
        let mut daemon = served(&pool, dir.path(), 64 * MIB, polling);
        let mut load = load(&daemon, &["--duration", "4s"]);
        for _ in 0..3 {
            std::thread::sleep(Duration::from_secs(1));
            fs::write(control.join("reset_controller"), "1").expect("a reset");
        }
        let (ended, said) = ended(&mut load);
        // Now and then the emulated controller ends a flush with a write fault when it is reset. A disk that says that has
        // lost something, for all that anybody knows, and the pool does not go on as if nothing was.
        if !ended.success() && daemon.log().contains("medium error") {
            daemon.stop();
            return false;
        }
        assert!(ended.success(), "{ended:?}: {said}");
        assert_eq!(device(&daemon).1, "present");
        daemon.stop_cleanly();
        check_pool(&pool);
        true
    };
    for polling in ["never", "always"] {
        assert!((0..3).any(|_| reset_under_load(polling)), "each time something was lost");
    }
}

/// One sector can't be read: an error for its block, by its name, and for no other.
#[test]
fn a_sector_that_cannot_be_read_is_a_medium_error() {
    if !can_run("a_sector_that_cannot_be_read_is_a_medium_error", &[Need::Lab]) {
        return;
    }
    let dir = directory_in_memory();
    let pool = kernel::namespace(4);
    let daemon = served(&pool, dir.path(), 150 * MIB, "never");
    assert_eq!(device(&daemon).0, "nvme");
    let mut client = daemon.connect("v");
    let content = vec![0x5c; MIB as usize];
    for at in (0..150 * MIB).step_by(MIB as usize) {
        client.write(at, &content, 0).expect("written");
    }
    client.flush().expect("flushed");
    let mut bad = 0;
    let piece = 64 << 10;
    for at in (0..150 * MIB).step_by(piece) {
        if client.read(at, piece as u32).is_ok_and(|read| read == content[..piece]) {
            continue;
        }
        for at in (at..at + piece as u64).step_by(4096) {
            match client.read(at, 4096) {
                Ok(read) => assert!(read == content[..4096], "wrong bytes at {at}"),
                Err(_) => bad += 1,
            }
        }
    }
    assert_eq!(bad, 1, "blocks that can't be read");
    let scrub = daemon.control(&["pool", "scrub", pool.to_str().unwrap()]);
    let said = format!("{}{}", scrub.out, scrub.err);
    assert!(!scrub.status.success() && said.contains("medium error"), "{scrub:?}");
}

/// What somebody else uses, or what does not fit, is refused with its reason; what holds something, unless it is forced.
#[test]
fn namespaces_that_should_not_be_used_are_refused() {
    let needs = [Need::Lab, Need::Program("mkfs.ext4"), Need::Program("wipefs")];
    if !can_run("namespaces_that_should_not_be_used_are_refused", &needs) {
        return;
    }
    let dir = directory_in_memory();
    let (pool, disk) = (kernel::namespace(1), kernel::disk(1));
    let disk = disk.to_str().unwrap();
    let create = |more: &[&str]| -> Output {
        flagstone(&[&["pool", "create", pool.to_str().unwrap()], more].concat())
    };
    let refused = |more: &[&str], status: i32, why: &str| {
        let output = create(more);
        let right = output.status.code() == Some(status) && output.err.contains(why);
        assert!(right, "status {status} and {why:?} were expected: {output:?}");
    };
    run("wipefs", ["-qa", disk]);
    run("mkfs.ext4", ["-qF", disk]);
    refused(&[], 5, "ext4");
    {
        let _mount = Mount::new(disk, &dir.path().join("mnt"));
        refused(&["--force"], 3, "mounted");
        let serving =
            flagstone(&["serve", "--pool", pool.to_str().unwrap(), "--api-socket", "/none/api"]);
        assert!(!serving.status.success(), "{serving:?}");
    }
    run("wipefs", ["-qa", disk]);
    // A DOS table with one partition, of type 83h, of 100 MiB at 1 MiB.
    let mut table = vec![0; 512];
    (table[450], table[510], table[511]) = (0x83, 0x55, 0xaa);
    table[454..458].copy_from_slice(&2048u32.to_le_bytes());
    table[458..462].copy_from_slice(&204_800u32.to_le_bytes());
    fs::File::options().write(true).open(disk).unwrap().write_all(&table).unwrap();
    run("sync", [disk]);
    refused(&[], 5, "partition table");
    let part = kernel::part(&kernel::disk(1), 1, 2048, 204_800);
    let part = part.to_str().unwrap();
    run("mkfs.ext4", ["-qF", part]);
    {
        let _mount = Mount::new(part, &dir.path().join("mnt"));
        refused(&["--force"], 3, "nvme1n1p1");
    }
    if programs::find("dmsetup").is_some() {
        run("dmsetup", ["create", "held", "--table", &format!("0 2048 linear {part} 0")]);
        refused(&["--force"], 3, "dm-0");
        run("dmsetup", ["remove", "held"]);
    }
    run("delpart", [disk, "1"]);
    refused(&[disk, "--force"], 2, "twice");
    let made = create(&["--force"]);
    assert!(made.status.success(), "{made:?}");
    // Whoever serves it keeps others away, by either of its names.
    let mut daemon = Config::new(&pool, dir.path()).start();
    for name in [pool.to_str().unwrap(), disk] {
        let output = flagstone(&["pool", "create", "--force", name]);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
    }
    daemon.stop_cleanly();
    // Each block of this one carries metadata.
    let odd = kernel::namespace(3);
    let output = flagstone(&["pool", "create", odd.to_str().unwrap()]);
    let refused = output.status.code() == Some(2) && output.err.contains("metadata");
    assert!(refused, "{output:?}");
}

/// The disk is pulled out under load: the pool says so and stops, and takes nobody with it.
#[test]
fn a_disk_that_is_pulled_out_is_told_as_that() {
    if !can_run("a_disk_that_is_pulled_out_is_told_as_that", &[Need::Lab]) {
        return;
    }
    let dir = directory_in_memory();
    let pool = kernel::namespace(5);
    let mut daemon = served(&pool, dir.path(), 64 * MIB, "never");
    let mut load = load(&daemon, &["--duration", "6s"]);
    std::thread::sleep(Duration::from_secs(1));
    let slot = fs::canonicalize("/sys/block/nvme5n1/device/device").unwrap();
    fs::write(slot.join("remove"), "1").expect("pulled out");
    wait_until("the device to fail", || device(&daemon).1 == "failed");
    let (_, _, reason) = device(&daemon);
    assert!(reason.as_deref().is_some_and(|reason| reason.contains("removed")), "{reason:?}");
    let ended = programs::wait(&mut load, LIMIT).expect("the load ends");
    assert!(!ended.success(), "{ended:?}");
    assert!(daemon.is_alive());
    assert_eq!(daemon.ask(&["volume", "list"])["volumes"].as_array().unwrap().len(), 1);
    let _ = daemon.stop();
}
