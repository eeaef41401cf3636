//! Snapshots with the clients that people use: what they hold, that they are only read, that those of
//! one command are one instant, and that they survive a kill and leave nothing behind.

use std::fs;
use std::io::Read as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use flagstone_tests::ask::qemu_io;
use flagstone_tests::daemon::{Daemon, check_pool, directory};
use flagstone_tests::nbd::{EPERM, FUA};
use flagstone_tests::programs::{Need, can_run, run};
use flagstone_tests::{BLOCK, LIMIT, MIB};
use serde_json::Value;

const VOLUME: u64 = 32 * MIB;

#[test]
fn real_clients_read_a_volume_as_it_was() {
    let programs = ["qemu-io", "nbdcopy", "nbdinfo"].map(Need::Program);
    if !can_run("real_clients_read_a_volume_as_it_was", &programs) {
        return;
    }
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), 256 * MIB, VOLUME);
    let empty = daemon.used();
    let wrote = qemu_io(&daemon.uri("v"), &["write -P 17 0 8M", "write -P 34 20M 64k", "flush"]);
    assert!(wrote.status.success(), "{wrote:?}");
    let image = |name: &str| dir.path().join(name);
    let copy = |daemon: &Daemon, export: &str, name: &str| {
        let path = image(name);
        let _ = fs::remove_file(&path);
        run("nbdcopy", [daemon.uri(export).as_str(), path.to_str().unwrap()]);
        fs::read(path).unwrap()
    };
    let before = copy(&daemon, "v", "before");
    let full = daemon.used();
    let taken = daemon.ask(&["snapshot", "create", "v", "monday"]);
    let uri = taken["snapshots"][0]["uris"][0].as_str().unwrap().to_owned();
    assert_eq!(taken["snapshots"][0]["name"], "v@monday");
    assert_eq!(daemon.used(), full, "a snapshot takes no space");
    let wrote = qemu_io(
        &daemon.uri("v"),
        &["write -P 51 4k 1M", "discard 20M 64k", "write -P 68 30M 1M", "flush"],
    );
    assert!(wrote.status.success(), "{wrote:?}");
    assert!(copy(&daemon, "v@monday", "snapshot") == before, "the snapshot has changed");
    let after = copy(&daemon, "v", "after");
    assert!(after != before);

    let info: Value = serde_json::from_str(&run("nbdinfo", ["--json", &uri])).unwrap();
    let export = &info["exports"][0];
    assert_eq!(
        (&export["export-name"], &export["export-size"]),
        (&"v@monday".into(), &VOLUME.into())
    );
    assert_eq!(export["is_read_only"], true);
    let list = run("nbdinfo", ["--list", "--json", &daemon.uri("")]);
    let list: Value = serde_json::from_str(&list).unwrap();
    let listed: Vec<_> =
        list["exports"].as_array().unwrap().iter().map(|export| &export["export-name"]).collect();
    assert_eq!(listed, ["v", "v@monday"]);
    let map: Value = serde_json::from_str(&run("nbdinfo", ["--map", "--json", &uri])).unwrap();
    let number = |extent: &Value, field: &str| extent[field].as_u64().unwrap();
    let data: Vec<_> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|extent| extent["type"] == 0)
        .map(|extent| (number(extent, "offset"), number(extent, "length")))
        .collect();
    assert_eq!(data, [(0, 8 * MIB), (20 * MIB, 64 << 10)]);
    let refused = qemu_io(&uri, &["write -P 1 0 4k"]);
    assert!(!refused.status.success(), "{refused:?}");
    let mut client = daemon.connect("v@monday");
    assert_eq!(client.write(0, &[1; BLOCK], 0), Err(EPERM));
    assert_eq!(client.write(0, &[1; BLOCK], FUA), Err(EPERM));
    assert_eq!(client.trim(0, BLOCK as u32), Err(EPERM));
    assert_eq!(client.zero(0, BLOCK as u32, 0), Err(EPERM));
    assert!(client.read(0, BLOCK as u32).unwrap().iter().all(|&byte| byte == 17));

    daemon.kill();
    daemon.restart();
    assert!(copy(&daemon, "v@monday", "snapshot") == before, "the kill has changed the snapshot");
    assert!(copy(&daemon, "v", "now") == after, "the kill has changed the volume");
    let shown = daemon.ask(&["snapshot", "show", "v@monday"]);
    assert_eq!(shown["mapped_bytes"], 8 * MIB + (64 << 10));
    // 1 MiB of it was overwritten, 64 KiB discarded; the volume has 1 MiB more besides.
    let alone = MIB + (64 << 10);
    assert_eq!(shown["usage"]["exclusive_bytes"], alone, "{shown}");
    assert_eq!(shown["usage"]["shared_bytes"], 7 * MIB, "{shown}");
    assert_eq!(shown["usage"]["frees_bytes"], alone, "{shown}");
    let shown = daemon.ask(&["volume", "show", "v"]);
    assert_eq!(shown["usage"]["exclusive_bytes"], 2 * MIB, "{shown}");
    let listed = daemon.ask(&["snapshot", "list", "--usage"]);
    assert_eq!(listed["snapshots"][0]["usage"]["frees_bytes"], alone, "{listed}");
    assert_eq!(daemon.ask(&["volume", "show", "v"])["snapshots"], 1);

    let output = daemon.control(&["volume", "delete", "v"]);
    assert_eq!(output.status.code(), Some(8), "{output:?}");
    assert!(output.err.contains("flagstone snapshot list"), "{output:?}");
    let output = daemon.control(&["snapshot", "create", "v", "monday"]);
    assert_eq!(output.status.code(), Some(8), "{output:?}");
    let mut client = daemon.connect("v@monday");
    let output = daemon.control(&["snapshot", "delete", "v@monday"]);
    assert_eq!(output.status.code(), Some(8), "{output:?}");
    daemon.ask(&["snapshot", "delete", "v@monday", "--force"]);
    assert!(matches!(client.stream().read(&mut [0]), Ok(0) | Err(_)), "it is still connected");
    assert!(copy(&daemon, "v", "now") == after, "the deletion has changed the volume");
    // 8 MiB of it, with 1 MiB overwritten, and 1 MiB more.
    daemon.until_used(empty + 9 * MIB);
    let output = daemon.control(&["snapshot", "show", "v@monday"]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    daemon.stop_cleanly();
    check_pool(&daemon.config().pool);
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Under writes to the whole volume, snapshots are taken and copied, each twice: while they are new, and when nearly
/// all that they hold was overwritten. A copy is the same each time, and as old as it should be.
#[test]
fn snapshots_are_read_while_the_volume_is_written() {
    const SNAPSHOTS: usize = 6;
    if !can_run("snapshots_are_read_while_the_volume_is_written", &[Need::Program("nbdcopy")]) {
        return;
    }
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), 512 * MIB, VOLUME);
    let blocks = VOLUME / BLOCK as u64;
    let (stop, passes) = (AtomicBool::new(false), AtomicU64::new(0));
    let copy = |daemon: &Daemon, snapshot: usize, name: &str| {
        let path = dir.path().join(name);
        let _ = fs::remove_file(&path);
        run("nbdcopy", [daemon.uri(&format!("v@{snapshot}")).as_str(), path.to_str().unwrap()]);
        fs::read(path).unwrap()
    };
    std::thread::scope(|scope| {
        let (mut client, stop, passes) = (daemon.connect("v"), &stop, &passes);
        scope.spawn(move || {
            // Pass after pass, every block in an order of its own.
            for pass in 1_u64.. {
                for i in 0..blocks {
                    let block = i * 4099 % blocks;
                    let data =
                        [pass.to_le_bytes(), block.to_le_bytes()].concat().repeat(BLOCK / 16);
                    client.write(block * BLOCK as u64, &data, 0).unwrap();
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
                passes.store(pass, Ordering::Release);
            }
        });
        // Also if what follows fails.
        let _stop = StopAtEnd(stop);
        let begun = Instant::now();
        let wait_for = |pass: u64| {
            while passes.load(Ordering::Acquire) < pass {
                assert!(begun.elapsed() < LIMIT, "the writer does not come on");
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        };
        let mut copies = Vec::new();
        for snapshot in 0..SNAPSHOTS {
            wait_for(passes.load(Ordering::Acquire) + 1);
            let before = passes.load(Ordering::Acquire);
            daemon.ask(&["snapshot", "create", "v", &snapshot.to_string()]);
            let after = passes.load(Ordering::Acquire);
            let bytes = copy(&daemon, snapshot, "new");
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            let mut newest = 0;
            for block in 0..blocks {
                let at = (block * BLOCK as u64) as usize;
                let (pass, named) = (word(at), word(at + 8));
                assert_eq!(named, block, "what was read is of another block");
                assert!((before..=after + 1).contains(&pass), "{pass}: from {before} to {after}");
                assert!(bytes[at..at + 16].repeat(BLOCK / 16) == bytes[at..at + BLOCK]);
                newest = newest.max(pass);
            }
            // In the order of the writes: those of the last pass are the first of it.
            let of_last = |i: &u64| word((i * 4099 % blocks) as usize * BLOCK) == newest;
            let written = (0..blocks).take_while(of_last).count();
            let others = (written as u64..blocks).filter(of_last).count();
            assert_eq!(others, 0, "a write is there, and one before it is not");
            copies.push(bytes);
        }
        wait_for(passes.load(Ordering::Acquire) + 1);
        for (snapshot, bytes) in copies.iter().enumerate() {
            assert!(copy(&daemon, snapshot, "old") == *bytes, "snapshot {snapshot} has changed");
        }
    });
    daemon.kill();
    daemon.restart();
    let last = copy(&daemon, SNAPSHOTS - 1, "last");
    let first = copy(&daemon, 0, "first");
    assert!(last != first);
    for snapshot in 0..SNAPSHOTS {
        daemon.ask(&["snapshot", "delete", &format!("v@{snapshot}")]);
    }
    daemon.until_used(VOLUME);
    daemon.stop_cleanly();
    check_pool(&daemon.config().pool);
}

/// A client counts: it writes each number to one volume after the other, and goes on when it has the answer.
/// At one instant no volume is ahead of one before it, and the last is behind the first by one at most.
#[test]
fn snapshots_of_one_command_are_one_instant() {
    const VOLUMES: usize = 32;
    const ROUNDS: usize = 12;
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), 256 * MIB, MIB);
    // As long as those that Kubernetes gives them.
    let names: Vec<_> =
        (0..VOLUMES).map(|i| format!("pvc-0f8fad5b-d9cb-469f-a165-{i:012}")).collect();
    for name in &names {
        daemon.create_volume(name, MIB);
    }
    let empty = daemon.used();
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        let (mut clients, stop, count) =
            (names.iter().map(|name| daemon.connect(name)).collect::<Vec<_>>(), &stop, &count);
        scope.spawn(move || {
            for number in 1_u64.. {
                for client in &mut clients {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    client.write(0, &number.to_le_bytes().repeat(BLOCK / 8), 0).unwrap();
                }
                count.store(number, Ordering::Relaxed);
            }
        });
        for round in 0..ROUNDS {
            // Each has something new to tell.
            let (start, from) = (Instant::now(), count.load(Ordering::Relaxed));
            while count.load(Ordering::Relaxed) < from + 2 {
                assert!(start.elapsed() < LIMIT, "nobody counts any more");
                std::thread::yield_now();
            }
            let round = format!("snapshot-7c9e6679-7425-40de-944b-{round:012}");
            let mut args = vec!["snapshot", "create"];
            args.extend(names.iter().flat_map(|name| [name.as_str(), &round]));
            let floor = count.load(Ordering::Relaxed);
            let taken = daemon.control(&args);
            stop.store(!taken.status.success(), Ordering::Relaxed);
            assert!(taken.status.success(), "{taken:?}");
            seen.push((round, floor, count.load(Ordering::Relaxed)));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let numbers = |daemon: &Daemon, round: &str| -> Vec<u64> {
        let read = |name: &String| {
            let block = daemon.connect(&format!("{name}@{round}")).read(0, BLOCK as u32).unwrap();
            let (words, _) = block.as_chunks::<8>();
            assert!(words.iter().all(|word| *word == words[0]), "a torn block");
            u64::from_le_bytes(words[0])
        };
        names.iter().map(read).collect()
    };
    let before: Vec<_> = seen.iter().map(|(round, ..)| numbers(&daemon, round)).collect();
    for ((round, floor, ceiling), numbers) in seen.iter().zip(&before) {
        assert!(numbers.is_sorted_by(|a, b| a >= b), "{round}: {numbers:?}");
        let (first, last) = (numbers[0], numbers[VOLUMES - 1]);
        assert!(first - last <= 1, "{round}: {numbers:?}");
        // What was acknowledged before is in it, what was sent afterwards is not.
        assert!(last >= *floor && first <= ceiling + 1, "{round}: {floor} {numbers:?} {ceiling}");
    }
    assert!(before.windows(2).all(|pair| pair[0][0] < pair[1][0]), "{before:?}");
    daemon.kill();
    daemon.restart();
    for ((round, ..), before) in seen.iter().zip(&before) {
        assert_eq!(&numbers(&daemon, round), before, "{round}");
    }
    let listed = daemon.ask(&["snapshot", "list"]);
    assert_eq!(listed["snapshots"].as_array().unwrap().len(), VOLUMES * ROUNDS);
    let listed = daemon.ask(&["snapshot", "list", &names[1]]);
    let (listed, begin) = (listed["snapshots"].as_array().unwrap(), format!("{}@", names[1]));
    assert!(listed.iter().all(|snapshot| snapshot["name"].as_str().unwrap().starts_with(&begin)));
    assert_eq!(listed.len(), ROUNDS);
    for (round, ..) in &seen {
        for name in &names {
            daemon.ask(&["snapshot", "delete", &format!("{name}@{round}")]);
        }
    }
    daemon.until_used(empty + (VOLUMES * BLOCK) as u64);
    daemon.stop_cleanly();
    check_pool(&daemon.config().pool);
}
