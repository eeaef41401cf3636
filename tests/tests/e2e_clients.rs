//! The clients that people use, on a served volume: libnbd's tools, QEMU's tools, fio.

use std::fs;
use std::path::Path;

use flagstone_tests::MIB;
use flagstone_tests::daemon::{Daemon, directory};
use flagstone_tests::nbd::{CAN_MULTI_CONN, Client, READ, Request};
use flagstone_tests::programs::{Need, can_run, command, finish, run, succeed};
use flagstone_tests::random::Random;
use serde_json::Value;

const VOLUME: u64 = 64 * MIB;

/// A file of a volume's size with data, zeroes and holes in it.
fn sample(path: &std::path::Path, seed: u64) {
    let mut random = Random::new(seed);
    let mut bytes = vec![0; VOLUME as usize];
    for chunk in bytes.chunks_mut(MIB as usize / 2) {
        if random.chance(40) {
            random.fill(chunk);
        }
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn nbdinfo_describes_exports() {
    if !can_run("nbdinfo_describes_exports", &[Need::Program("nbdinfo")]) {
        return;
    }
    let dir = directory();
    let daemon = Daemon::with_volume(dir.path(), 128 * MIB, VOLUME);
    daemon.create_volume("other", 8 * MIB);
    for uri in [daemon.uri("v"), daemon.tcp_uri("v")] {
        let info: Value = serde_json::from_str(&run("nbdinfo", ["--json", &uri])).unwrap();
        assert_eq!(info["protocol"], "newstyle-fixed");
        assert_eq!(info["structured"], true);
        let export = &info["exports"][0];
        assert_eq!(export["export-name"], "v");
        assert_eq!(export["export-size"], VOLUME);
        assert_eq!(export["is_read_only"], false);
        for can in [
            "can_flush",
            "can_fua",
            "can_multi_conn",
            "can_trim",
            "can_zero",
            "can_df",
            "can_cache",
        ] {
            assert_eq!(export[can], true, "{can}");
        }
        assert_eq!(export["contexts"][0], "base:allocation");
        assert_eq!(export["block_size_minimum"], 1);
        assert_eq!(export["block_size_preferred"], 4096);
    }
    let list = run("nbdinfo", ["--list", "--json", &daemon.uri("")]);
    let list: Value = serde_json::from_str(&list).unwrap();
    let names: Vec<_> =
        list["exports"].as_array().unwrap().iter().map(|export| &export["export-name"]).collect();
    assert_eq!(names, ["other", "v"]);
    let mut missing = command("nbdinfo");
    missing.arg(daemon.uri("nobody"));
    let output = finish(missing);
    assert!(!output.status.success(), "{output:?}");
}

#[test]
fn nbdinfo_maps_what_is_allocated() {
    if !can_run("nbdinfo_maps_what_is_allocated", &[Need::Program("nbdinfo")]) {
        return;
    }
    let dir = directory();
    let daemon = Daemon::with_volume(dir.path(), 128 * MIB, VOLUME);
    let mut client = daemon.connect("v");
    client.write(MIB, &[7; 8192], 0).unwrap();
    client.write(3 * MIB, &[8; 4096], 0).unwrap();
    client.trim(3 * MIB, 4096).unwrap();
    let map: Value =
        serde_json::from_str(&run("nbdinfo", ["--map", "--json", &daemon.uri("v")])).unwrap();
    let extents: Vec<_> = map
        .as_array()
        .unwrap()
        .iter()
        .map(|extent| {
            let number = |field: &str| extent[field].as_u64().unwrap();
            (number("offset"), number("length"), number("type"))
        })
        .collect();
    assert_eq!(extents, [(0, MIB, 3), (MIB, 8192, 0), (MIB + 8192, VOLUME - MIB - 8192, 3)]);
    let totals: Value =
        serde_json::from_str(&run("nbdinfo", ["--map", "--totals", "--json", &daemon.uri("v")]))
            .unwrap();
    let data = totals.as_array().unwrap().iter().find(|total| total["type"] == 0).unwrap();
    assert_eq!(data["size"], 8192);
}

#[test]
fn nbdcopy_both_ways() {
    if !can_run("nbdcopy_both_ways", &[Need::Program("nbdcopy")]) {
        return;
    }
    let dir = directory();
    let daemon = Daemon::with_volume(dir.path(), 192 * MIB, VOLUME);
    let (original, copy) = (dir.path().join("original"), dir.path().join("copy"));
    sample(&original, 1);
    let (from, to) = (original.to_str().unwrap(), copy.to_str().unwrap());
    run("nbdcopy", ["--flush", from, &daemon.uri("v")]);
    run("nbdcopy", [&daemon.uri("v"), to]);
    assert!(fs::read(&original).unwrap() == fs::read(&copy).unwrap(), "the copy differs");
    // From volume to volume, many requests at a time, over TCP and the unix socket at once.
    daemon.create_volume("second", VOLUME);
    run(
        "nbdcopy",
        ["--connections=4", "--requests=32", &daemon.tcp_uri("v"), &daemon.uri("second")],
    );
    fs::remove_file(&copy).unwrap();
    run("nbdcopy", [&daemon.tcp_uri("second"), to]);
    assert!(fs::read(&original).unwrap() == fs::read(&copy).unwrap(), "the second copy differs");
}

#[test]
fn nbdsh_speaks_the_whole_protocol() {
    if !can_run("nbdsh_speaks_the_whole_protocol", &[Need::Program("nbdsh")]) {
        return;
    }
    let dir = directory();
    let daemon = Daemon::with_volume(dir.path(), 128 * MIB, VOLUME);
    for uri in [daemon.uri("v"), daemon.tcp_uri("v")] {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/protocol.py");
        let mut nbdsh = command("nbdsh");
        nbdsh.args(["--base-allocation", "-u", &uri]);
        nbdsh.args(["-c", &format!("exec(open({script:?}).read())")]);
        // The system's Python has the module; another one that comes first in PATH may not.
        let path = std::env::var("PATH").unwrap_or_default();
        nbdsh.env("PATH", format!("/usr/bin:{path}"));
        let out = succeed(nbdsh);
        assert!(out.contains("all good"), "{out}");
        daemon.connect("v").trim(0, VOLUME as u32).unwrap();
    }
}

#[test]
fn qemu_img_converts_compares_and_maps() {
    if !can_run("qemu_img_converts_compares_and_maps", &[Need::Program("qemu-img")]) {
        return;
    }
    let dir = directory();
    let daemon = Daemon::with_volume(dir.path(), 192 * MIB, VOLUME);
    let original = dir.path().join("original");
    sample(&original, 2);
    let file = original.to_str().unwrap();
    let uri = daemon.uri("v");
    run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", file, &uri]);
    run("qemu-img", ["compare", "-f", "raw", "-F", "raw", file, &uri]);
    run("qemu-img", ["compare", "-f", "raw", "-F", "raw", file, &daemon.tcp_uri("v")]);
    let info: Value =
        serde_json::from_str(&run("qemu-img", ["info", "--output=json", &uri])).unwrap();
    assert_eq!(info["virtual-size"], VOLUME);
    // Zeroes were not stored: the volume's map is the file's.
    let bytes = fs::read(&original).unwrap();
    let map = run("qemu-img", ["map", "--output=json", "-f", "raw", &uri]);
    let map: Value = serde_json::from_str(&map).unwrap();
    let mut at = 0;
    for extent in map.as_array().unwrap() {
        let (start, length) =
            (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap());
        assert_eq!(start, at, "the map has no gaps");
        at += length;
        let zero = bytes[start as usize..at as usize].iter().all(|&byte| byte == 0);
        assert_eq!(extent["zero"].as_bool().unwrap(), zero, "{extent}");
    }
    assert_eq!(at, VOLUME);
    // By way of another format, and back.
    let qcow = dir.path().join("copy.qcow2");
    let qcow = qcow.to_str().unwrap();
    run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", &uri, qcow]);
    run("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", &uri, qcow]);
    run("qemu-img", ["convert", "-n", "-f", "qcow2", "-O", "raw", qcow, &uri]);
    run("qemu-img", ["compare", "-f", "raw", "-F", "raw", file, &uri]);
}

#[test]
fn qemu_io_patterns() {
    if !can_run("qemu_io_patterns", &[Need::Program("qemu-io")]) {
        return;
    }
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), 192 * MIB, VOLUME);
    let io = |daemon: &Daemon, commands: &[&str]| {
        let uri = daemon.uri("v");
        let mut args = vec!["-f", "raw", "-t", "none"];
        for command in commands {
            args.extend(["-c", command]);
        }
        args.push(&uri);
        let out = run("qemu-io", args);
        assert!(!out.contains("failed"), "{out}");
    };
    io(
        &daemon,
        &[
            "write -P 0x11 0 1M",
            "write -P 0x22 513 70000",
            "write -f -P 0x33 2M 64k",
            "aio_write -P 0x44 3M 1M",
            "aio_write -P 0x55 5M 1M",
            "aio_flush",
            "write -z 3M 256k",
            "write -z -u 5M 256k",
            "discard 2M 4k",
            "writev -P 0x66 8M 4k 8k 512",
            "flush",
        ],
    );
    let checks = [
        "read -P 0x11 0 513",
        "read -P 0x22 513 70000",
        "read -P 0x11 70513 4000",
        "read -P 0 2M 4k",
        "read -P 0x33 2101248 60k",
        "read -P 0 3M 256k",
        "read -P 0x44 3328k 768k",
        "read -P 0 5M 256k",
        "read -P 0x55 5376k 768k",
        "read -P 0x66 8M 12800",
        "read -P 0 8401408 512",
    ];
    io(&daemon, &checks);
    daemon.kill();
    daemon.restart();
    io(&daemon, &checks);
    daemon.stop_cleanly();
    daemon.restart();
    io(&daemon, &checks);
}

/// Whether a test that needs fio with its NBD engine can run.
fn has_fio(test: &str) -> bool {
    if !can_run(test, &[Need::Program("fio")]) {
        return false;
    }
    let has_nbd = run("fio", ["--enghelp"]).lines().any(|line| line.trim() == "nbd");
    if !has_nbd {
        assert!(!can_run(test, &[Need::Program("fio's nbd engine")]));
    }
    has_nbd
}

#[test]
fn fio_verifies_several_volumes() {
    if !has_fio("fio_verifies_several_volumes") {
        return;
    }
    let dir = directory();
    let daemon = Daemon::with_volume(dir.path(), 512 * MIB, VOLUME);
    daemon.create_volume("w", VOLUME);
    // fio's nbd engine takes one URI per job and one connection per job; a job verifies what it
    // wrote. Two jobs per volume, in parts of it that don't overlap.
    let mut job = String::from(
        "[global]\nioengine=nbd\nrw=randwrite\nverify=crc32c\nverify_fatal=1\ndo_verify=1\n\
         iodepth=16\nsize=24m\nrandrepeat=0\n",
    );
    let jobs = [
        ("a", daemon.uri("v"), "0", "bs=4k"),
        ("b", daemon.tcp_uri("v"), "32m", "bsrange=4k-64k"),
        ("c", daemon.uri("w"), "0", "bsrange=512-16k\nbs_unaligned=1"),
        ("d", daemon.uri("w"), "32m", "bs=128k\nfsync=16"),
    ];
    for (name, uri, offset, more) in &jobs {
        job.push_str(&format!("[{name}]\nuri={uri}\noffset={offset}\n{more}\n"));
    }
    let path = dir.path().join("job.fio");
    fs::write(&path, job).unwrap();
    let mut fio = command("fio");
    fio.arg("--output-format=json").arg(&path).current_dir(dir.path());
    let output = finish(fio);
    assert!(output.status.success(), "{output:?}");
    let json = &output.out[output.out.find('{').expect("JSON")..];
    let report: Value = serde_json::from_str(json).unwrap();
    for job in report["jobs"].as_array().unwrap() {
        assert_eq!(job["error"], 0, "{job}");
        assert!(job["read"]["io_bytes"].as_u64().unwrap() > 0, "nothing was verified");
    }
}

/// The job files that come with the project.
#[test]
fn fio_job_files_run() {
    if !has_fio("fio_job_files_run") {
        return;
    }
    let dir = directory();
    let daemon = Daemon::with_volume(dir.path(), 512 * MIB, VOLUME);
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/fio");
    let fio = |file: &str, change: &dyn Fn(String) -> String| {
        let text = fs::read_to_string(files.join(file)).unwrap();
        let path = dir.path().join(file);
        fs::write(&path, change(text)).unwrap();
        let mut fio = command("fio");
        fio.arg("--output-format=json").arg(&path).current_dir(dir.path());
        fio.env("URI", daemon.uri("v"));
        let output = finish(fio);
        assert!(output.status.success(), "{file}: {output:?}");
        let report: Value =
            serde_json::from_str(&output.out[output.out.find('{').expect("JSON")..]).unwrap();
        for job in report["jobs"].as_array().unwrap() {
            assert_eq!(job["error"], 0, "{file}: {job}");
            let bytes = |kind: &str| job[kind]["io_bytes"].as_u64().unwrap();
            assert!(bytes("read") + bytes("write") > 0, "{file}: {job}");
        }
    };
    fio("nbd-verify.fio", &|text| text);
    let short = |text: String| {
        text.replace("runtime=10", "runtime=1").replace("ramp_time=1", "ramp_time=0")
    };
    fio("nbd.fio", &short);
    // Those for block devices are run in the lab; here only whether fio understands them.
    let device = dir.path().join("device");
    fs::File::create(&device).unwrap().set_len(64 * MIB).unwrap();
    for file in ["block.fio", "block-verify.fio"] {
        let mut fio = command("fio");
        fio.arg("--parse-only")
            .arg(files.join(file))
            .current_dir(dir.path())
            .env("DEVICE", &device);
        let output = finish(fio);
        assert!(output.status.success(), "{file}: {output:?}");
    }
}

#[test]
fn a_flush_covers_all_connections() {
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), 128 * MIB, VOLUME);
    let mut unix = daemon.connect("v");
    let mut tcp =
        Client::connect(&flagstone_tests::nbd::Address::Tcp(daemon.tcp_address()), "v").unwrap();
    assert_ne!(unix.flags & CAN_MULTI_CONN, 0);
    assert_ne!(tcp.flags & CAN_MULTI_CONN, 0);
    for round in 1..=20_u8 {
        let offset = u64::from(round) * 12288;
        unix.write(offset, &[round; 8192], 0).unwrap();
        assert!(tcp.read(offset, 8192).unwrap() == [round; 8192], "seen by the other at once");
        tcp.flush().unwrap();
    }
    daemon.kill();
    daemon.restart();
    let mut client = daemon.connect("v");
    for round in 1..=20_u8 {
        assert!(client.read(u64::from(round) * 12288, 8192).unwrap() == [round; 8192]);
    }
}

/// A client without structured replies gets each READ in one reply, however large. With many under
/// way, of which some are slow because their blocks lie scattered, none may get into another's.
#[test]
fn large_reads_of_a_simple_client_keep_apart() {
    const BLOCK: usize = 4096;
    let blocks = VOLUME as usize / BLOCK;
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), 256 * MIB, VOLUME);
    let mut client = Client::connect(&daemon.address(), "v").unwrap();
    let mut random = Random::from_environment();
    let mut stamps = vec![0u64; blocks];
    let content = |stamps: &[u64]| -> Vec<u8> {
        stamps.iter().flat_map(|stamp| stamp.to_le_bytes().repeat(BLOCK / 8)).collect()
    };
    for first in (0..blocks).step_by(256) {
        let range = first..first + 256;
        range.clone().for_each(|b| stamps[b] = b as u64 + 1);
        client.write((first * BLOCK) as u64, &content(&stamps[range]), 0).unwrap();
    }
    // Half of the stretches of 1 MiB are scattered.
    for n in 0..4000u64 {
        let b = random.below(blocks as u64 / 2);
        let b = (b / 256 * 512 + b % 256) as usize;
        stamps[b] = 1_000_000 + n;
        client.write((b * BLOCK) as u64, &content(&stamps[b..=b]), 0).unwrap();
    }
    let mut asked = std::collections::HashMap::new();
    const READS: u32 = 3000;
    let mut sent = 0;
    while sent < READS || client.in_flight() > 0 {
        if sent < READS {
            sent += 1;
            let most = match random.below(100) {
                0..30 => 8,
                30..99 => 400,
                _ => (32 * MIB) as usize / BLOCK,
            };
            let length = 1 + random.below(most as u64) as usize;
            let first = random.below((blocks - length) as u64) as usize;
            let (offset, bytes) = ((first * BLOCK) as u64, (length * BLOCK) as u32);
            let read = Request { kind: READ, flags: 0, offset, length: bytes, payload: &[] };
            asked.insert(client.send(&read).unwrap(), first..first + length);
        }
        if client.in_flight() < 16 && sent < READS {
            continue;
        }
        let reply = client.receive().unwrap();
        let range = asked.remove(&reply.cookie).unwrap();
        assert_eq!(reply.error, 0);
        assert!(reply.data == content(&stamps[range.clone()]), "blocks {range:?}");
    }
    daemon.stop_cleanly();
}
