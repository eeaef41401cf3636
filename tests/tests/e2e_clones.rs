//! Clones and rollbacks with the clients that people use: what they hold, also after kills, and that
//! everything that is deleted comes back to the block.

use std::io::Read as _;
use std::time::Instant;

use flagstone_tests::ask;
use flagstone_tests::daemon::{Daemon, check_pool, directory};
use flagstone_tests::programs::{Need, can_run, run};
use flagstone_tests::{LIMIT, MIB};

const VOLUME: u64 = 32 * MIB;

/// How a command is refused: its exit status, and what it says.
fn refused(daemon: &Daemon, args: &[&str]) -> (i32, String) {
    let output = daemon.control(args);
    assert!(!output.status.success(), "{args:?}: {output:?}");
    (output.status.code().unwrap(), output.err)
}

fn qemu_io(uri: &str, commands: &[&str]) {
    let output = ask::qemu_io(uri, commands);
    assert!(output.status.success(), "{commands:?}: {output:?}");
}

#[test]
fn clones_go_their_own_ways_and_leave_nothing_behind() {
    let programs = ["qemu-io", "qemu-img", "nbdcopy"].map(Need::Program);
    if !can_run("clones_go_their_own_ways_and_leave_nothing_behind", &programs) {
        return;
    }
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), 256 * MIB, VOLUME);
    let empty = daemon.used();
    qemu_io(&daemon.uri("v"), &["write -P 17 0 8M", "write -P 34 20M 64k", "flush"]);
    let golden = daemon.copy("v", dir.path());
    daemon.ask(&["snapshot", "create", "v", "gold"]);
    let full = daemon.used();
    let made = daemon.ask(&["clone", "v@gold", "c1"]);
    assert_eq!((&made["cloned_from"], &made["size_bytes"]), (&"v@gold".into(), &VOLUME.into()));
    daemon.ask(&["clone", "v@gold", "c2"]);
    assert_eq!(daemon.used(), full, "clones take no space");
    let uri = made["uris"][0].as_str().unwrap();
    let same = run("qemu-img", ["compare", "-f", "raw", "-F", "raw", uri, &daemon.uri("v")]);
    assert!(same.contains("identical"), "{same}");
    qemu_io(uri, &["write -P 51 4M 1M", "discard 0 1M", "flush"]);
    qemu_io(&daemon.uri("v"), &["write -P 68 6M 1M", "flush"]);
    let [c1, v] = ["c1", "v"].map(|name| daemon.copy(name, dir.path()));
    assert!(
        c1[4 << 20..5 << 20].iter().all(|&byte| byte == 51) && c1[..1 << 20] != golden[..1 << 20]
    );
    assert!(daemon.copy("c2", dir.path()) == golden && daemon.copy("v@gold", dir.path()) == golden);
    assert_eq!(daemon.used(), full + 2 * MIB);

    // Clones of clones, kills, and what they come from deleted first.
    daemon.ask(&["snapshot", "create", "c1", "s"]);
    daemon.ask(&["clone", "c1@s", "d1"]);
    daemon.kill();
    daemon.restart();
    let (status, text) = refused(&daemon, &["volume", "delete", "v"]);
    assert!(status == 8 && text.contains("--snapshots"), "{status} {text}");
    let deleted = Instant::now();
    daemon.ask(&["volume", "delete", "v", "--snapshots"]);
    daemon.ask(&["snapshot", "delete", "c1@s"]);
    daemon.ask(&["volume", "delete", "c1"]);
    assert!(deleted.elapsed() < LIMIT);
    assert_eq!(refused(&daemon, &["snapshot", "show", "v@gold"]).0, 7);
    daemon.kill();
    daemon.restart();
    assert!(daemon.copy("c2", dir.path()) == golden, "a deletion has changed a clone");
    assert!(daemon.copy("d1", dir.path()) == c1, "a deletion has changed a clone");
    assert!(v != golden);
    let golden_bytes = 8 * MIB + (64 << 10);
    // 1 MiB of the first clone is overwritten, which the second has; another is discarded.
    daemon.until_used(empty + golden_bytes + MIB);
    let shown = daemon.ask(&["volume", "show", "d1"]);
    assert!(shown.get("cloned_from").is_none() && shown["mapped_bytes"] == golden_bytes - MIB);
    daemon.ask(&["volume", "delete", "c2"]);
    daemon.until_used(empty + golden_bytes - MIB);
    daemon.ask(&["volume", "delete", "d1"]);
    daemon.until_used(empty);
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
    let empty = daemon.used();
    qemu_io(&daemon.uri("v"), &["write -P 17 0 8M", "flush"]);
    daemon.ask(&["snapshot", "create", "v", "monday"]);
    let monday = daemon.copy("v", dir.path());
    qemu_io(&daemon.uri("v"), &["write -P 51 4M 8M", "flush"]);
    daemon.ask(&["volume", "resize", "v", "--size", "64M"]);
    let tuesday = daemon.copy("v", dir.path());

    let mut client = daemon.connect("v");
    let (status, text) = refused(&daemon, &["volume", "rollback", "v@monday"]);
    assert!(status == 8 && text.contains("--force"), "{status} {text}");
    let back = daemon.ask(&["volume", "rollback", "v@monday", "--keep", "tuesday", "--force"]);
    assert!(matches!(client.stream().read(&mut [0]), Ok(0) | Err(_)), "it is still connected");
    assert_eq!(back["kept"]["name"], "v@tuesday");
    assert_eq!(
        (&back["volume"]["size_bytes"], &back["volume"]["snapshots"]),
        (&VOLUME.into(), &2.into())
    );
    let check = |daemon: &Daemon| {
        assert!(daemon.copy("v", dir.path()) == monday);
        assert!(daemon.copy("v@monday", dir.path()) == monday);
        assert!(daemon.copy("v@tuesday", dir.path()) == tuesday);
    };
    check(&daemon);
    daemon.kill();
    daemon.restart();
    check(&daemon);

    // And there again, and back for good.
    let again = daemon.ask(&["volume", "rollback", "v@tuesday"]);
    let kept = again["kept"]["name"].as_str().unwrap().to_owned();
    assert!(kept.starts_with("v@rollback-2"), "{kept}");
    assert!(daemon.copy("v", dir.path()) == tuesday && daemon.copy(&kept, dir.path()) == monday);
    qemu_io(&daemon.uri("v"), &["write -P 85 16M 1M", "flush"]);
    let last = daemon.ask(&["volume", "rollback", "v@monday", "--discard"]);
    assert!(last.get("kept").is_none(), "{last}");
    let snapshots = daemon.ask(&["snapshot", "list", "v"]);
    assert_eq!(snapshots["snapshots"].as_array().unwrap().len(), 3);
    check(&daemon);
    assert_eq!(refused(&daemon, &["volume", "rollback", "v@no"]).0, 7);
    assert_eq!(refused(&daemon, &["volume", "rollback", "v"]).0, 2);
    let both = ["volume", "rollback", "v@monday", "--keep", "x", "--discard"];
    assert_eq!(refused(&daemon, &both).0, 2);
    assert_eq!(refused(&daemon, &["volume", "rollback", "v@monday", "--keep", "tuesday"]).0, 8);
    // 8 MiB of Monday, and 8 MiB that Tuesday had.
    daemon.until_used(empty + 16 * MIB);
    daemon.ask(&["volume", "delete", "v", "--snapshots"]);
    daemon.until_used(empty);
    daemon.stop_cleanly();
    check_pool(&daemon.config().pool);
}
