//! Clones and rollbacks with the clients that people use: what they hold, also after kills, and that
//! everything that is deleted comes back to the block.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::time::Instant;

use flagstone_tests::daemon::{Daemon, check_pool, directory};
use flagstone_tests::programs::{Need, can_run, command, finish, run};
use flagstone_tests::{LIMIT, MIB};
use serde_json::Value;

const VOLUME: u64 = 32 * MIB;

/// What a command of the control API says in JSON.
fn ask(daemon: &Daemon, args: &[&str]) -> Value {
    let output = daemon.control(&[args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {output:?}");
    serde_json::from_str(&output.out).unwrap()
}

/// How a command is refused: its exit status, and what it says.
fn refused(daemon: &Daemon, args: &[&str]) -> (i32, String) {
    let output = daemon.control(args);
    assert!(!output.status.success(), "{args:?}: {output:?}");
    (output.status.code().unwrap(), output.err)
}

fn used(daemon: &Daemon) -> u64 {
    ask(daemon, &["pool", "status"])["pools"][0]["used_bytes"].as_u64().unwrap()
}

/// Space comes back in the background.
fn until_used(daemon: &Daemon, wanted: u64) {
    let start = Instant::now();
    while used(daemon) != wanted {
        assert!(start.elapsed() < LIMIT, "{} are used and not {wanted}", used(daemon));
        std::thread::yield_now();
    }
}

fn qemu_io(uri: &str, commands: &[&str]) {
    let mut program = command("qemu-io");
    program.args(["-f", "raw", uri]);
    for text in commands {
        program.args(["-c", text]);
    }
    let output = finish(program);
    assert!(output.status.success(), "{commands:?}: {output:?}");
}

/// The content of an export, as nbdcopy reads it.
fn copy(daemon: &Daemon, dir: &Path, export: &str) -> Vec<u8> {
    let path = dir.join("copy");
    let _ = fs::remove_file(&path);
    run("nbdcopy", [daemon.uri(export).as_str(), path.to_str().unwrap()]);
    fs::read(path).unwrap()
}

#[test]
fn clones_go_their_own_ways_and_leave_nothing_behind() {
    let programs = ["qemu-io", "qemu-img", "nbdcopy"].map(Need::Program);
    if !can_run("clones_go_their_own_ways_and_leave_nothing_behind", &programs) {
        return;
    }
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), 256 * MIB, VOLUME);
    let empty = used(&daemon);
    qemu_io(&daemon.uri("v"), &["write -P 17 0 8M", "write -P 34 20M 64k", "flush"]);
    let golden = copy(&daemon, dir.path(), "v");
    ask(&daemon, &["snapshot", "create", "v", "gold"]);
    let full = used(&daemon);
    let made = ask(&daemon, &["clone", "v@gold", "c1"]);
    assert_eq!((&made["cloned_from"], &made["size_bytes"]), (&"v@gold".into(), &VOLUME.into()));
    ask(&daemon, &["clone", "v@gold", "c2"]);
    assert_eq!(used(&daemon), full, "clones take no space");
    let uri = made["uris"][0].as_str().unwrap();
    let same = run("qemu-img", ["compare", "-f", "raw", "-F", "raw", uri, &daemon.uri("v")]);
    assert!(same.contains("identical"), "{same}");
    qemu_io(uri, &["write -P 51 4M 1M", "discard 0 1M", "flush"]);
    qemu_io(&daemon.uri("v"), &["write -P 68 6M 1M", "flush"]);
    let [c1, v] = ["c1", "v"].map(|name| copy(&daemon, dir.path(), name));
    assert!(
        c1[4 << 20..5 << 20].iter().all(|&byte| byte == 51) && c1[..1 << 20] != golden[..1 << 20]
    );
    assert!(
        copy(&daemon, dir.path(), "c2") == golden && copy(&daemon, dir.path(), "v@gold") == golden
    );
    assert_eq!(used(&daemon), full + 2 * MIB);

    // Clones of clones, kills, and what they come from deleted first.
    ask(&daemon, &["snapshot", "create", "c1", "s"]);
    ask(&daemon, &["clone", "c1@s", "d1"]);
    daemon.kill();
    daemon.restart();
    let (status, text) = refused(&daemon, &["volume", "delete", "v"]);
    assert!(status == 8 && text.contains("--snapshots"), "{status} {text}");
    let deleted = Instant::now();
    ask(&daemon, &["volume", "delete", "v", "--snapshots"]);
    ask(&daemon, &["snapshot", "delete", "c1@s"]);
    ask(&daemon, &["volume", "delete", "c1"]);
    assert!(deleted.elapsed() < LIMIT);
    assert_eq!(refused(&daemon, &["snapshot", "show", "v@gold"]).0, 7);
    daemon.kill();
    daemon.restart();
    assert!(copy(&daemon, dir.path(), "c2") == golden, "a deletion has changed a clone");
    assert!(copy(&daemon, dir.path(), "d1") == c1, "a deletion has changed a clone");
    assert!(v != golden);
    let golden_bytes = 8 * MIB + (64 << 10);
    // 1 MiB of the first clone is overwritten, which the second has; another is discarded.
    until_used(&daemon, empty + golden_bytes + MIB);
    let shown = ask(&daemon, &["volume", "show", "d1"]);
    assert!(shown.get("cloned_from").is_none() && shown["mapped_bytes"] == golden_bytes - MIB);
    ask(&daemon, &["volume", "delete", "c2"]);
    until_used(&daemon, empty + golden_bytes - MIB);
    ask(&daemon, &["volume", "delete", "d1"]);
    until_used(&daemon, empty);
    daemon.stop_cleanly();
    check_pool(&daemon.config().pool);
}

#[test]
fn a_volume_becomes_again_what_it_was() {
    let programs = ["qemu-io", "nbdcopy"].map(Need::Program);
    if !can_run("a_volume_becomes_again_what_it_was", &programs) {
        return;
    }
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), 256 * MIB, VOLUME);
    let empty = used(&daemon);
    qemu_io(&daemon.uri("v"), &["write -P 17 0 8M", "flush"]);
    ask(&daemon, &["snapshot", "create", "v", "monday"]);
    let monday = copy(&daemon, dir.path(), "v");
    qemu_io(&daemon.uri("v"), &["write -P 51 4M 8M", "flush"]);
    ask(&daemon, &["volume", "resize", "v", "--size", "64M"]);
    let tuesday = copy(&daemon, dir.path(), "v");

    let mut client = daemon.connect("v");
    let (status, text) = refused(&daemon, &["volume", "rollback", "v@monday"]);
    assert!(status == 8 && text.contains("--force"), "{status} {text}");
    let back = ask(&daemon, &["volume", "rollback", "v@monday", "--keep", "tuesday", "--force"]);
    assert!(matches!(client.stream().read(&mut [0]), Ok(0) | Err(_)), "it is still connected");
    assert_eq!(back["kept"]["name"], "v@tuesday");
    assert_eq!(
        (&back["volume"]["size_bytes"], &back["volume"]["snapshots"]),
        (&VOLUME.into(), &2.into())
    );
    let check = |daemon: &Daemon| {
        assert!(copy(daemon, dir.path(), "v") == monday);
        assert!(copy(daemon, dir.path(), "v@monday") == monday);
        assert!(copy(daemon, dir.path(), "v@tuesday") == tuesday);
    };
    check(&daemon);
    daemon.kill();
    daemon.restart();
    check(&daemon);

    // And there again, and back for good.
    let again = ask(&daemon, &["volume", "rollback", "v@tuesday"]);
    let kept = again["kept"]["name"].as_str().unwrap().to_owned();
    assert!(kept.starts_with("v@rollback-2"), "{kept}");
    assert!(
        copy(&daemon, dir.path(), "v") == tuesday && copy(&daemon, dir.path(), &kept) == monday
    );
    qemu_io(&daemon.uri("v"), &["write -P 85 16M 1M", "flush"]);
    let last = ask(&daemon, &["volume", "rollback", "v@monday", "--discard"]);
    assert!(last.get("kept").is_none(), "{last}");
    let snapshots = ask(&daemon, &["snapshot", "list", "v"]);
    assert_eq!(snapshots["snapshots"].as_array().unwrap().len(), 3);
    check(&daemon);
    assert_eq!(refused(&daemon, &["volume", "rollback", "v@no"]).0, 7);
    assert_eq!(refused(&daemon, &["volume", "rollback", "v"]).0, 2);
    let both = ["volume", "rollback", "v@monday", "--keep", "x", "--discard"];
    assert_eq!(refused(&daemon, &both).0, 2);
    assert_eq!(refused(&daemon, &["volume", "rollback", "v@monday", "--keep", "tuesday"]).0, 8);
    // 8 MiB of Monday, and 8 MiB that Tuesday had.
    until_used(&daemon, empty + 16 * MIB);
    ask(&daemon, &["volume", "delete", "v", "--snapshots"]);
    until_used(&daemon, empty);
    daemon.stop_cleanly();
    check_pool(&daemon.config().pool);
}
