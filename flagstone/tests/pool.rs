//! `flagstone pool`: what is formatted, what is refused, what a check finds.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{Daemon, run};

fn file(dir: &Path, name: &str, size: u64) -> File {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(dir.join(name))
        .unwrap();
    file.set_len(size).unwrap();
    file
}

#[test]
fn a_new_pool_is_sparse_sound_and_describable() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let made = run(dir, &["--json", "pool", "create", "p", "--size", "1G"]).succeeded().json();
    assert_eq!(made["size_bytes"], 1 << 30);
    assert_eq!(made["segment_bytes"], 4 << 20);
    let meta = fs::metadata(dir.join("p")).unwrap();
    assert_eq!(meta.len(), 1 << 30);
    assert!(meta.blocks() * 512 < 16 << 20, "not sparse: {} sectors", meta.blocks());

    let checked = run(dir, &["--json", "pool", "check", "p"]).succeeded().json();
    assert_eq!((&checked["sound"], &checked["bad_blocks"]), (&true.into(), &0.into()));
    let inspected = run(dir, &["--json", "pool", "inspect", "p"]).succeeded().json();
    assert_eq!(inspected["uuid"], made["uuid"]);
    assert_eq!(inspected["volumes"], Value::Array(Vec::new()));
    let total: u64 = inspected["segments_by_state"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["segments"].as_u64().unwrap())
        .sum();
    assert_eq!(total, made["segments"].as_u64().unwrap());
    let text = run(dir, &["pool", "inspect", "p", "--segments"]).succeeded().stdout;
    assert!(text.contains(made["uuid"].as_str().unwrap()) && text.contains("GENERATION"), "{text}");
    assert!(run(dir, &["pool", "check", "p"]).succeeded().stdout.contains("sound"));
    let rebuilt = run(dir, &["--json", "pool", "check", "p", "--rebuild"]).succeeded().json();
    assert_eq!((&rebuilt["sound"], &rebuilt["rebuilt_from_summaries"]), (&true.into(), &0.into()));
}

#[test]
fn sizes_and_shapes_have_limits() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(dir, &["pool", "create", "p"]).failed(2, "--size");
    run(dir, &["pool", "create", "p", "--size", "63M"]).failed(2, "64 MiB");
    run(dir, &["pool", "create", "p", "--size", "100M", "--segment-size", "64M"])
        .failed(2, "10 segments");
    run(dir, &["pool", "create", "missing/p", "--size", "64M"])
        .failed(2, "there is no directory missing");
    run(dir, &["pool", "create", "p", "--size", "5P"]).failed(2, "smaller than 4 PiB");
    run(dir, &["pool", "create", "p", "--size", "-5G"]).failed(2, "\"-5G\" is not a size");
    assert!(!dir.join("p").exists());
    file(dir, "empty", 0);
    run(dir, &["pool", "create", "empty"]).failed(2, "is empty");
    run(dir, &["pool", "create", "empty", "--size", "64M"]).succeeded();
    run(dir, &["pool", "create", "small", "--size", "64M", "--segment-size", "1M"]).succeeded();
    run(dir, &["pool", "check", "small"]).succeeded();
}

#[test]
fn preallocated_means_allocated() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let blocks = |name: &str| fs::metadata(dir.join(name)).unwrap().blocks() * 512;
    run(dir, &["pool", "create", "new", "--size", "64M", "--preallocate"]).succeeded();
    assert!(blocks("new") >= 64 << 20);
    file(dir, "old", 80 << 20);
    run(dir, &["pool", "create", "old", "--preallocate"]).succeeded();
    assert!(blocks("old") >= 80 << 20);
    run(dir, &["pool", "check", "old"]).succeeded();
}

#[test]
fn what_holds_data_is_refused_without_force() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(dir, &["pool", "create", "pool", "--size", "64M"]).succeeded();
    file(dir, "text", 64 << 20).write_all_at(b"dear diary", 5_000_000).unwrap();
    file(dir, "gpt", 64 << 20).write_all_at(b"EFI PART", 512).unwrap();
    file(dir, "xfs", 64 << 20).write_all_at(b"XFSB", 0).unwrap();
    file(dir, "md", 64 << 20).write_all_at(b"\xfc\x4e\x2b\xa9", (64 << 20) - 8192).unwrap();
    for (name, what) in [
        ("pool", "a Flagstone pool"),
        ("text", "data of an unknown kind (at byte 5000000)"),
        ("gpt", "a GPT partition table"),
        ("xfs", "an XFS file system"),
        ("md", "(md) member"),
    ] {
        let before = fs::read(dir.join(name)).unwrap();
        let ran = run(dir, &["pool", "create", name]).failed(5, what);
        assert!(ran.stderr.contains("--force"), "{ran:?}");
        let ran = run(dir, &["--json", "pool", "create", name, "--size", "64M"]);
        assert!(ran.status == 5 && ran.stderr.contains("holds_data"), "{ran:?}");
        assert!(before == fs::read(dir.join(name)).unwrap(), "{name} was changed");

        let forced = run(dir, &["--json", "pool", "create", name, "--force"]).succeeded().json();
        assert!(forced["overwritten"].as_str().unwrap().contains(what), "{forced}");
        run(dir, &["pool", "check", name]).succeeded();
        // Nothing is left that could be taken for what was there.
        run(dir, &["pool", "create", name]).failed(5, &format!("{name} holds a Flagstone pool."));
    }
}

#[test]
fn what_cannot_be_a_pool_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(dir, &["pool", "create", ".", "--force"]).failed(2, "is a directory");
    run(dir, &["pool", "create", "/dev/null", "--force"]).failed(2, "character device");
    file(dir, "file", 0);
    run(dir, &["pool", "check", "missing"]).failed(4, "missing does not exist");
    run(dir, &["pool", "check", "missing", "--rebuild"]).failed(4, "missing does not exist");
    run(dir, &["pool", "inspect", "missing"]).failed(4, "missing does not exist");
    for name in ["missing", "file"] {
        let ran = run(dir, &["--json", "pool", "check", name]).failed(4, "no_pool");
        serde_json::from_str::<Value>(&ran.stderr).unwrap();
    }
    run(dir, &["pool", "check", "file/missing"]).failed(4, "Not a directory");
    run(dir, &["pool", "inspect", "."]).failed(2, "neither");
    file(dir, "blank", 64 << 20);
    run(dir, &["pool", "check", "blank"]).failed(4, "no Flagstone pool");
    run(dir, &["pool", "inspect", "blank"]).failed(4, "no Flagstone pool");
}

#[test]
fn a_served_pool_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(dir, &["pool", "create", "p", "--size", "64M"]).succeeded();
    let daemon = Daemon::serve(dir, "p");
    for args in [
        &["pool", "create", "p", "--force"][..],
        &["pool", "check", "p"],
        &["pool", "inspect", "p"],
    ] {
        run(dir, args).failed(3, "in use");
    }
    drop(daemon);
    run(dir, &["pool", "check", "p"]).succeeded();
}

#[test]
fn a_check_names_the_damaged_block() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(dir, &["pool", "create", "p", "--size", "64M"]).succeeded();
    let daemon = Daemon::serve(dir, "p");
    daemon.run(&["volume", "create", "v", "--size", "1M"]).succeeded();
    // No block twice, in order, the first of them flushed: what was not flushed may be lost and
    // is no damage. Recovery knows of a flush by the records after it.
    let uri = daemon.uri("v");
    let job = ["--rw", "write", "--ops", "240", "--depth", "1", "--flush-every", "60"];
    run(dir, &[&["bench", "nbd", &uri], &job[..]].concat()).succeeded();
    daemon.crash();
    let checked = run(dir, &["--json", "pool", "check", "p"]).succeeded().json();
    let written = &checked["verified_blocks"];
    assert!(written.as_u64().unwrap() > 200, "{checked}");

    let inspected = run(dir, &["--json", "pool", "inspect", "p", "--segments"]).succeeded().json();
    let segments = inspected["segments"].as_array().unwrap();
    let full = segments.iter().find(|s| s["live_blocks"] == *written).unwrap();
    let number = |value: &Value| value.as_u64().unwrap();
    let offset = number(&inspected["data_offset_bytes"])
        + number(&full["segment"]) * number(&inspected["segment_bytes"]);
    let pool = File::options().read(true).write(true).open(dir.join("p")).unwrap();
    let mut byte = [0];
    pool.read_exact_at(&mut byte, offset + 77).unwrap();
    pool.write_all_at(&[byte[0] ^ 4], offset + 77).unwrap();

    let ran = run(dir, &["--json", "pool", "check", "p"]);
    let checked = ran.json();
    assert_eq!((ran.status, &checked["bad_blocks"]), (4, &1.into()), "{checked}");
    let bad = &checked["listed"][0];
    assert_eq!((&bad["volume"], &bad["reason"]), (&"v".into(), &"checksum mismatch".into()));
    assert_eq!(bad["device_offset_bytes"], offset);
    let ran = run(dir, &["pool", "check", "p"]);
    assert!(ran.status == 4 && ran.stdout.contains("volume v, block"), "{ran:?}");
}

#[test]
fn a_truncated_pool_is_told_with_both_sizes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // In the data, in the journal, and behind the first superblock.
    for (left, human) in [(100 << 20, "100 MiB"), (3 << 20, "3 MiB"), (4096, "4 KiB")] {
        run(dir, &["pool", "create", "p", "--size", "256M", "--force"]).succeeded();
        File::options().write(true).open(dir.join("p")).unwrap().set_len(left).unwrap();
        for args in [
            &["pool", "check", "p"][..],
            &["pool", "inspect", "p"],
            &["serve", "--pool", "p", "--nbd-socket", "n", "--api-socket", "a"],
        ] {
            let ran = run(dir, args).failed(4, "p is shorter than the pool in it");
            let sizes = format!("{left} bytes ({human}), the pool 268435456 (256 MiB)");
            assert!(ran.stderr.contains(&sizes), "{ran:?}");
            assert!(ran.stderr.contains("Restore it"), "{ran:?}");
        }
        run(dir, &["--json", "pool", "check", "p"]).failed(4, "\"damaged\"");
        assert_eq!(fs::metadata(dir.join("p")).unwrap().len(), left);
    }
}

/// A loop device, detached when dropped.
struct Loop(String);

impl Loop {
    /// `None` where none can be attached: that needs root.
    fn attach(file: &Path) -> Option<Self> {
        let attached =
            Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        let device = String::from_utf8(attached.stdout).unwrap().trim().to_owned();
        attached.status.success().then_some(Self(device))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_block_device_is_formatted_only_when_free() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    file(dir, "disk", 128 << 20);
    let Some(device) = Loop::attach(&dir.join("disk")) else {
        eprintln!("skipped: no loop device can be attached here");
        return;
    };
    run(dir, &["pool", "create", "disk"]).failed(3, "loop device");
    run(dir, &["pool", "create", &device.0, "--size", "64M"]).failed(2, "block device");
    run(dir, &["pool", "create", &device.0]).succeeded();
    run(dir, &["pool", "create", &device.0]).failed(5, "a Flagstone pool");
    run(dir, &["pool", "check", &device.0]).succeeded();
    let daemon = Daemon::serve(dir, &device.0);
    run(dir, &["pool", "create", &device.0, "--force"]).failed(3, "in use");
    drop(daemon);
}

#[test]
fn a_mounted_file_system_is_never_formatted_over() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    file(dir, "disk", 128 << 20);
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(dir.join("disk")).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: mkfs.ext4 is not installed");
        return;
    }
    let Some(device) = Loop::attach(&dir.join("disk")) else {
        eprintln!("skipped: no loop device can be attached here");
        return;
    };
    run(dir, &["pool", "create", &device.0]).failed(5, "ext4");
    fs::create_dir(dir.join("mnt")).unwrap();
    let mut mount = Command::new("mount");
    mount.arg(&device.0).arg(dir.join("mnt")).stderr(Stdio::null());
    if !mount.status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: nothing can be mounted here");
        return;
    }
    let ran = run(dir, &["pool", "create", &device.0, "--force"]);
    assert!(Command::new("umount").arg(dir.join("mnt")).status().unwrap().success());
    ran.failed(3, "it is mounted at");
}

#[test]
fn a_copy_of_a_pool_is_made_of_what_lies_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    fs::create_dir(&first).unwrap();
    fs::create_dir(&second).unwrap();
    let a = first.join("a");
    let b = first.join("b");
    let both = [a.to_str().unwrap(), b.to_str().unwrap()];
    run(dir.path(), &["pool", "create", both[0], both[1], "--size", "64M"]).succeeded();
    // Served once, so that the pool knows its devices by these paths.
    Daemon::serve(dir.path(), both[0]).stop();
    for name in ["a", "b"] {
        fs::copy(first.join(name), second.join(name)).unwrap();
    }
    // An old copy of one beside the others is not taken for it.
    fs::copy(first.join("b"), first.join("an-old-b")).unwrap();
    let daemon = Daemon::serve(dir.path(), both[0]);
    let status = daemon.run(&["--json", "pool", "status"]).succeeded().json();
    assert_eq!(status["pools"][0]["devices"][1]["path"], both[1], "{status}");
    let copy = second.join("a");
    let checked = run(dir.path(), &["--json", "pool", "check", copy.to_str().unwrap()]);
    assert_eq!(checked.succeeded().json()["sound"], true);
    daemon.stop();
    // One that is moved is found where it was last, if it is not beside the other.
    fs::remove_file(second.join("b")).unwrap();
    fs::remove_file(&a).unwrap();
    let checked = run(dir.path(), &["--json", "pool", "check", copy.to_str().unwrap()]);
    assert_eq!(checked.succeeded().json()["sound"], true);
}
