//! Differences, told by the daemon, against images compared byte for byte.

use std::fs;
use std::time::{Duration, Instant};

use flagstone_tests::daemon::{Daemon, directory};
use flagstone_tests::nbd::Client;
use flagstone_tests::programs::{Need, can_run, command, find, run, succeed};
use flagstone_tests::random::Random;
use flagstone_tests::{BLOCK, MIB};
use serde_json::Value;

const VOLUME: u64 = 64 * MIB;
const BLOCKS: u64 = VOLUME / BLOCK as u64;

/// Offset, length, and whether it is data.
type Extent = (u64, u64, bool);

fn extents(page: &Value) -> Vec<Extent> {
    let number = |extent: &Value, field: &str| extent[field].as_u64().unwrap();
    let extent = |extent: &Value| {
        let data = match extent["kind"].as_str() {
            Some("data") => true,
            Some("zero") => false,
            kind => panic!("{kind:?}"),
        };
        (number(extent, "offset_bytes"), number(extent, "length_bytes"), data)
    };
    page["extents"].as_array().unwrap().iter().map(extent).collect()
}

/// The blocks in which two images differ, as the longest extents of one kind.
fn compared(older: &[u8], newer: &[u8]) -> Vec<Extent> {
    let zeroes = [0; BLOCK];
    let mut all: Vec<Extent> = Vec::new();
    let longer = older.len().max(newer.len());
    for at in (0..longer).step_by(BLOCK) {
        let block = |image: &[u8]| image.get(at..at + BLOCK).unwrap_or(&zeroes).to_vec();
        let (then, now) = (block(older), block(newer));
        if then == now {
            continue;
        }
        let data = now != zeroes;
        match all.last_mut() {
            Some((offset, len, kind)) if *offset + *len == at as u64 && *kind == data => {
                *len += BLOCK as u64;
            }
            _ => all.push((at as u64, BLOCK as u64, data)),
        }
    }
    all
}

/// Overwrites and discards at random.
fn change(client: &mut Client, random: &mut Random, requests: u64) {
    for _ in 0..requests {
        let lba = random.below(BLOCKS);
        let blocks = (1 + random.below(8)).min(BLOCKS - lba);
        let (offset, len) = (lba * BLOCK as u64, (blocks * BLOCK as u64) as u32);
        match random.below(8) {
            0 => client.trim(offset, len).unwrap(),
            1 => client.zero(offset, len, 0).unwrap(),
            _ => {
                let mut data = vec![0; len as usize];
                random.fill(&mut data);
                client.write(offset, &data, 0).unwrap();
            }
        }
    }
}

#[test]
fn differences_are_those_of_the_images() {
    let programs = ["nbdcopy", "qemu-img"].map(Need::Program);
    if !can_run("differences_are_those_of_the_images", &programs) {
        return;
    }
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), 512 * MIB, VOLUME);
    let mut random = Random::from_environment();
    let mut client = daemon.connect("v");
    let mut images = vec![("none".to_owned(), Vec::new())];
    for (requests, name) in [(3000, "a"), (400, "b"), (400, "c")] {
        change(&mut client, &mut random, requests);
        daemon.ask(&["snapshot", "create", "v", name]);
        let name = format!("v@{name}");
        let path = daemon.copy_to(&name, dir.path());
        images.push((name, fs::read(path).unwrap()));
    }
    change(&mut client, &mut random, 200);
    let path = daemon.copy_to("v", dir.path());
    images.push(("v".to_owned(), fs::read(path).unwrap()));
    drop(client);

    let compare = |daemon: &Daemon| {
        for (older, then) in &images {
            for (newer, now) in &images[1..] {
                let page = match older.as_str() {
                    "none" => daemon.ask(&["diff", "--from-nothing", newer]),
                    older => daemon.ask(&["diff", older, newer]),
                };
                assert!(page["next"].is_null(), "{page}");
                assert_eq!(page["newer"]["size_bytes"], VOLUME);
                assert!(extents(&page) == compared(then, now), "{older} to {newer}");
            }
        }
    };
    compare(&daemon);
    daemon.kill();
    daemon.restart();
    compare(&daemon);

    // What an incremental backup does: the changed blocks of the newer on an image of the older.
    let mut image = images[1].1.clone();
    let mut source = daemon.connect("v@c");
    for (offset, len, data) in extents(&daemon.ask(&["diff", "v@a", "v@c"])) {
        let into = &mut image[offset as usize..(offset + len) as usize];
        match data {
            true => into.copy_from_slice(&source.read(offset, len as u32).unwrap()),
            false => into.fill(0),
        }
    }
    let path = dir.path().join("restored.img");
    fs::write(&path, image).unwrap();
    let uri = daemon.uri("v@c");
    run("qemu-img", ["compare", "-f", "raw", "-F", "raw", path.to_str().unwrap(), &uri]);
    drop(source);

    // In parts, it is the same.
    let whole = extents(&daemon.ask(&["diff", "v@a", "v"]));
    let (mut parts, mut from) = (Vec::new(), Some(0));
    while let Some(at) = from {
        let at = at.to_string();
        let page = daemon.ask(&["diff", "v@a", "v", "--limit", "50", "--from", &at]);
        parts.extend(extents(&page));
        from = page["next"].as_u64();
    }
    assert!(parts == whole);

    let refused = daemon.control(&["diff", "v@nothing", "v"]);
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
    let told = daemon.control(&["diff", "v@c", "v@c"]);
    assert!(told.out.contains("0 B of data"), "{told:?}");
    let told = daemon.control(&["diff", "v@b", "v"]);
    assert!(told.out.trim_start().starts_with("OFFSET"), "{told:?}");
    daemon.stop_cleanly();
}

/// A thousand blocks of a terabyte, from the command line, start of the process with it.
#[test]
fn little_of_a_huge_volume_is_told_at_once() {
    const TIB: u64 = 1 << 40;
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), 512 * MIB, TIB);
    let mut client = daemon.connect("v");
    let mut random = Random::from_environment();
    let mut write = |count: u64| {
        let mut blocks: Vec<u64> = (0..count).map(|_| random.below(TIB / BLOCK as u64)).collect();
        for lba in &blocks {
            client.write(lba * BLOCK as u64, &[7; BLOCK], 0).unwrap();
        }
        blocks.sort_unstable();
        blocks.dedup();
        blocks
    };
    write(10_000);
    daemon.ask(&["snapshot", "create", "v", "before"]);
    let changed = write(1000);
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let start = Instant::now();
        let page = daemon.ask(&["diff", "v@before", "v"]);
        best = best.min(start.elapsed());
        let found = extents(&page).into_iter().map(|(offset, len, data)| {
            assert!(data);
            (offset, len)
        });
        let blocks = found.flat_map(|(offset, len)| {
            (offset / BLOCK as u64..(offset + len) / BLOCK as u64).collect::<Vec<_>>()
        });
        assert_eq!(blocks.collect::<Vec<_>>(), changed);
    }
    println!("1,000 changed blocks of 1 TiB: {best:?}");
    assert!(best < Duration::from_millis(100), "{best:?}");
    daemon.stop_cleanly();
}

/// What `nbdinfo --map=CONTEXT` says of an export: offset, length, flags; what differs alone.
fn map(daemon: &Daemon, export: &str, context: &str) -> Vec<(u64, u64, u64)> {
    let map = run("nbdinfo", [&format!("--map={context}"), "--json", &daemon.uri(export)]);
    let map: Value = serde_json::from_str(&map).unwrap();
    let number = |extent: &Value, field: &str| extent[field].as_u64().unwrap();
    let all = map.as_array().unwrap();
    let told: u64 = all.iter().map(|extent| number(extent, "length")).sum();
    assert_eq!(told, VOLUME, "{context}");
    let extent = |e: &Value| (number(e, "offset"), number(e, "length"), number(e, "type"));
    all.iter().map(extent).filter(|(_, _, kind)| *kind != 0).collect()
}

#[test]
fn nbd_clients_are_told_what_differs_from_a_snapshot() {
    let test = "nbd_clients_are_told_what_differs_from_a_snapshot";
    if !can_run(test, &["nbdinfo", "nbdsh"].map(Need::Program)) {
        return;
    }
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), 512 * MIB, VOLUME);
    let mut random = Random::from_environment();
    let mut client = daemon.connect("v");
    for name in ["a", "b"] {
        change(&mut client, &mut random, 2000);
        daemon.ask(&["snapshot", "create", "v", name]);
    }
    change(&mut client, &mut random, 1000);
    drop(client);
    daemon.kill();
    // Nothing of the map is in memory after the start, and little fits.
    let exports = [("v@b", "a"), ("v", "a"), ("v", "b"), ("v@a", "b"), ("v@b", "b")];
    let usual = daemon.config().clone();
    for memory in ["128K", "1G"] {
        let mut config = usual.clone();
        config.args.extend(["--map-memory".to_owned(), memory.to_owned()]);
        daemon = config.start();
        for (export, from) in exports {
            let page = daemon.ask(&["diff", &format!("v@{from}"), export]);
            let due = extents(&page);
            let own: Vec<_> = due.iter().map(|e| (e.0, e.1, if e.2 { 1 } else { 3 })).collect();
            assert_eq!(map(&daemon, export, &format!("x-flagstone:diff:{from}")), own);
            assert_eq!(map(&daemon, export, &format!("x-flagstone:diff:v@{from}")), own);
            let mut dirty: Vec<(u64, u64, u64)> = Vec::new();
            for (offset, len, _) in due {
                match dirty.last_mut() {
                    Some((from, before, _)) if *from + *before == offset => *before += len,
                    _ => dirty.push((offset, len, 1)),
                }
            }
            assert_eq!(map(&daemon, export, &format!("qemu:dirty-bitmap:{from}")), dirty);
        }
        daemon.kill();
    }
    daemon = usual.start();

    let list = run("nbdinfo", ["--json", &daemon.uri("v")]);
    let list: Value = serde_json::from_str(&list).unwrap();
    let contexts = &list["exports"][0]["contexts"];
    let due = ["base:allocation", "x-flagstone:diff:a", "qemu:dirty-bitmap:a"];
    assert_eq!(contexts.as_array().unwrap().len(), 5, "{list}");
    assert!(due.iter().all(|due| contexts.as_array().unwrap().contains(&(*due).into())), "{list}");

    // As QEMU's block layer asks: what is dirty it shows as a hole.
    if find("qemu-img").is_some() {
        let options = format!(
            "driver=nbd,server.type=unix,server.path={},export=v,x-dirty-bitmap=qemu:dirty-bitmap:a",
            daemon.config().nbd_socket().display()
        );
        let told = run("qemu-img", ["map", "--output=json", "--image-opts", &options]);
        let told: Value = serde_json::from_str(&told).unwrap();
        let dirty = told.as_array().unwrap().iter().filter(|extent| extent["data"] == false);
        let dirty = dirty.map(|e| (e["start"].as_u64().unwrap(), e["length"].as_u64().unwrap()));
        let due = map(&daemon, "v", "qemu:dirty-bitmap:a").into_iter().map(|e| (e.0, e.1));
        assert_eq!(dirty.collect::<Vec<_>>(), due.collect::<Vec<_>>());
    }

    // Several at once, one extent at a time, and ranges that are no whole blocks.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/differences.py");
    let mut nbdsh = command("nbdsh");
    nbdsh.args(["-c", &format!("exec(open({script:?}).read())")]);
    nbdsh.env("EXPORT", daemon.uri("v"));
    // It wants the Python that its library was made for.
    let path = std::env::var("PATH").unwrap_or_default();
    nbdsh.env("PATH", format!("/usr/bin:{path}"));
    let told = succeed(nbdsh);
    assert_eq!(told.trim(), "fine");

    // A snapshot that is gone is offered no more, and told nothing of.
    let output = daemon.control(&["snapshot", "delete", "v@a"]);
    assert!(output.status.success(), "{output:?}");
    let list = run("nbdinfo", ["--json", &daemon.uri("v")]);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["exports"][0]["contexts"].as_array().unwrap().len(), 3, "{list}");
    daemon.stop_cleanly();
}
