//! Pools of several files: one is emptied and removed and another added under verified load, with
//! `kill -9` in the middle; renamed files are found; a missing one is named, and the pool read without it.
//! The same with block devices.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flagstone_tests::daemon::{Config, Daemon, check_pool, directory, flagstone};
use flagstone_tests::filesystem::{Loop, Mount};
use flagstone_tests::ledger::{Clock, Cut, Ledger};
use flagstone_tests::load::{self, Plan, Shared};
use flagstone_tests::programs::{Need, Output, can_run};
use flagstone_tests::random::Random;
use flagstone_tests::{BLOCK, MIB};

/// Blocks of the volume under load.
const BLOCKS: u64 = 4096;
/// Bytes of the volume that is written once, and has to be moved.
const REST: u64 = 96 * MIB;

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

fn create(paths: &[PathBuf], size: u64) {
    let size = size.to_string();
    let mut args = vec!["pool", "create", "--size", &size];
    args.extend(paths.iter().map(|path| text(path)));
    let output = flagstone(&args);
    assert!(output.status.success(), "{output:?}");
}

fn ok(output: Output) -> Output {
    assert!(output.status.success(), "{output:?}");
    output
}

/// The devices of the only pool: path, and state.
fn devices(daemon: &Daemon) -> Vec<(String, String)> {
    let output = ok(daemon.control(&["pool", "status", "--json"]));
    let status: serde_json::Value = serde_json::from_str(&output.out).expect("JSON");
    let devices = status["pools"][0]["devices"].as_array().expect("a list").clone();
    let field = |device: &serde_json::Value, name: &str| device[name].as_str().unwrap().to_owned();
    devices.iter().map(|device| (field(device, "path"), field(device, "state"))).collect()
}

/// What the volume that is written once holds from `at` on.
fn rest(at: u64) -> Vec<u8> {
    let word = |i: u64| (at / 8 + i).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..MIB / 8).flat_map(word).collect()
}

fn write_rest(daemon: &Daemon) {
    daemon.create_volume("rest", REST);
    let mut client = daemon.connect("rest");
    for at in (0..REST).step_by(MIB as usize) {
        client.write(at, &rest(at), 0).unwrap();
    }
}

fn verify_rest(daemon: &Daemon) {
    let mut client = daemon.connect("rest");
    for at in (0..REST).step_by(MIB as usize) {
        assert!(client.read(at, MIB as u32).unwrap() == rest(at), "at {at}");
    }
}

#[test]
fn one_of_three_is_emptied_under_load_and_another_added_through_three_kills() {
    let mut random = Random::from_environment();
    let dir = directory();
    let paths: Vec<PathBuf> = (0..3).map(|i| dir.path().join(format!("disk{i}"))).collect();
    create(&paths, 128 * MIB);
    let mut daemon = Config::new(&paths[0], dir.path()).start();
    assert_eq!(devices(&daemon).len(), 3, "the others lie beside it");
    write_rest(&daemon);
    daemon.create_volume("v", BLOCKS * BLOCK as u64);
    let clock = Clock::default();
    let mut ledger = Ledger::default();
    let fourth = dir.path().join("disk3");
    for kill in 0..3u64 {
        let stop = AtomicBool::new(false);
        let shared = Shared { clock: &clock, stop: &stop, position: &|| 0 };
        let plan = Plan {
            connections: 3,
            depth: 8,
            blocks: BLOCKS,
            requests: u64::MAX,
            seed: random.number(),
        };
        let address = daemon.address();
        let lifetime = Duration::from_millis(20 + random.below(300));
        let result = std::thread::scope(|scope| {
            let clients = scope.spawn(|| load::run(&plan, &address, "v", &shared, &mut ledger));
            let device = text(&paths[1]);
            if devices(&daemon).iter().any(|(path, _)| path == device) {
                ok(daemon.control(&["pool", "remove", device, "--no-wait"]));
            }
            if kill == 1 {
                ok(daemon.control(&["pool", "add", text(&fourth), "--size", "160M"]));
            }
            std::thread::sleep(lifetime);
            daemon.kill();
            stop.store(true, Ordering::Relaxed);
            clients.join().expect("no panic")
        });
        result.unwrap_or_else(|why| panic!("kill {kill}, before it: {why}"));
        daemon.restart();
        let found = load::verify(&daemon.address(), "v", &ledger, Cut::Process);
        let survivors = found.unwrap_or_else(|why| panic!("kill {kill}: {why}"));
        ledger.settle(&survivors);
        verify_rest(&daemon);
    }
    let device = text(&paths[1]);
    if devices(&daemon).iter().any(|(path, _)| path == device) {
        let output = ok(daemon.control(&["pool", "remove", device, "--json"]));
        assert!(output.out.contains("\"removed\""), "{output:?}");
    }
    let mut left: Vec<String> = devices(&daemon).into_iter().map(|(path, _)| path).collect();
    left.sort();
    assert_eq!(left, [&paths[0], &paths[2], &fourth].map(|path| text(path)));
    load::verify(&daemon.address(), "v", &ledger, Cut::Process).unwrap();
    verify_rest(&daemon);
    daemon.stop_cleanly();
    // It is nobody's any more, and the pool can do without it.
    std::fs::remove_file(&paths[1]).unwrap();
    check_pool(&paths[0]);
    let mut daemon = Config::new(&fourth, dir.path()).start();
    load::verify(&daemon.address(), "v", &ledger, Cut::Process).unwrap();
    daemon.stop_cleanly();
}

#[test]
fn renamed_files_are_found_and_a_missing_one_is_named() {
    let dir = directory();
    let paths: Vec<PathBuf> = (0..3).map(|i| dir.path().join(format!("disk{i}"))).collect();
    create(&paths, 96 * MIB);
    let mut daemon = Config::new(&paths[0], dir.path()).start();
    daemon.create_volume("v", 8 * MIB);
    let content = vec![7; 4 * MIB as usize];
    daemon.connect("v").write(0, &content, 0).unwrap();
    daemon.stop_cleanly();

    // In each other's names.
    let aside = dir.path().join("aside");
    std::fs::rename(&paths[0], &aside).unwrap();
    std::fs::rename(&paths[1], &paths[0]).unwrap();
    std::fs::rename(&aside, &paths[1]).unwrap();
    let new = dir.path().join("new name");
    std::fs::rename(&paths[2], &new).unwrap();
    let mut daemon = Config::new(&paths[0], dir.path()).start();
    assert_eq!(daemon.connect("v").read(0, content.len() as u32).unwrap(), content);
    daemon.stop_cleanly();

    // A name that none of them had is a mistake.
    let mut config = Config::new(&paths[0], dir.path());
    config.args.extend(["--pool".to_owned(), "/nowhere/pool".to_owned()]);
    let refused = flagstone_tests::programs::finish(config.command());
    assert!(refused.err.contains("/nowhere/pool does not exist"), "{refused:?}");

    // Elsewhere it is found only if it is given.
    let other = directory();
    let moved = other.path().join("moved");
    std::fs::copy(&new, &moved).unwrap();
    std::fs::remove_file(&new).unwrap();
    let output = flagstone(&["pool", "check", text(&paths[0])]);
    assert!(!output.status.success(), "{output:?}");
    assert!(output.err.contains("is missing") && output.err.contains("new name"), "{output:?}");
    let mut config = Config::new(&paths[1], dir.path());
    config.args.extend(["--pool".to_owned(), text(&moved).to_owned()]);
    let mut daemon = config.start();
    assert_eq!(daemon.connect("v").read(0, content.len() as u32).unwrap(), content);
    let refused = daemon.control(&["pool", "remove", "/nowhere"]);
    assert!(
        !refused.status.success() && refused.err.contains("has a device /nowhere"),
        "{refused:?}"
    );
    daemon.stop_cleanly();
}

#[test]
fn any_device_names_its_pool_and_nothing_is_exported_over_it() {
    let dir = directory();
    let paths: Vec<PathBuf> = (0..2).map(|i| dir.path().join(format!("disk{i}"))).collect();
    create(&paths, 96 * MIB);
    let mut daemon = Config::new(&paths[0], dir.path()).start();
    let second = text(&paths[1]);
    ok(daemon.control(&["volume", "create", "v", "--size", "8M", "--pool", second]));
    ok(daemon.control(&["pool", "scrub", second]));
    std::fs::File::options().write(true).open(&paths[1]).unwrap().set_len(192 * MIB).unwrap();
    let grown = ok(daemon.control(&["pool", "grow", second]));
    assert!(grown.out.contains("segments more"), "{grown:?}");
    ok(daemon.control(&["snapshot", "create", "v", "s"]));
    let refused = daemon.control(&["export", "v@s", second, "--force"]);
    assert!(refused.status.code() == Some(3) && refused.err.contains("is in use"), "{refused:?}");
    let nowhere = daemon.control(&["volume", "create", "w", "--size", "8M", "--pool", "/nowhere"]);
    assert!(nowhere.status.code() == Some(7), "{nowhere:?}");
    daemon.stop_cleanly();
    check_pool(&paths[0]);
}

#[test]
fn an_old_copy_of_a_device_is_not_taken_for_it() {
    let dir = directory();
    let paths: Vec<PathBuf> = (0..2).map(|i| dir.path().join(format!("disk{i}"))).collect();
    create(&paths, 96 * MIB);
    let run = |version: u8| {
        let mut daemon = Config::new(&paths[0], dir.path()).start();
        daemon.create_volume("v", 32 * MIB);
        let mut client = daemon.connect("v");
        for at in 0..32 {
            client.write(at * MIB, &vec![version; MIB as usize], 0).unwrap();
        }
        drop(client);
        daemon.stop_cleanly();
    };
    run(1);
    let old = dir.path().join("old");
    std::fs::copy(&paths[1], &old).unwrap();
    run(2);
    // It lies beside a newer one of another name, or is given with it: the newer one is used.
    let new = dir.path().join("zzz");
    std::fs::rename(&paths[1], &new).unwrap();
    for given in [&[][..], &[&old, &new], &[&new, &old]] {
        let mut config = Config::new(&paths[0], dir.path());
        for path in given {
            config.args.extend(["--pool".to_owned(), text(path).to_owned()]);
        }
        let mut daemon = config.start();
        let mut client = daemon.connect("v");
        for at in 0..32 {
            assert!(client.read(at * MIB, MIB as u32).unwrap() == [2; MIB as usize], "{given:?}");
        }
        drop(client);
        daemon.stop_cleanly();
    }
    // Alone it is refused, whoever finds it; and nothing is written.
    let aside = directory();
    std::fs::rename(&new, aside.path().join("new")).unwrap();
    let refusals = [vec![&paths[0]], vec![&paths[0], &old], vec![&old]];
    for given in refusals {
        let mut config = Config::new(given[0], dir.path());
        for path in &given[1..] {
            config.args.extend(["--pool".to_owned(), text(path).to_owned()]);
        }
        let refused = flagstone_tests::programs::finish(config.command());
        let told = format!("{} is older than {}", text(&old), text(&paths[0]));
        assert!(!refused.status.success() && refused.err.contains(&told), "{refused:?}");
    }
    let output = flagstone(&["pool", "check", text(&old)]);
    assert!(!output.status.success() && output.err.contains("is older than"), "{output:?}");
    std::fs::rename(aside.path().join("new"), &paths[1]).unwrap();
    std::fs::remove_file(&old).unwrap();
    check_pool(&paths[0]);
}

#[test]
fn a_device_whose_blocks_have_no_room_elsewhere_is_refused_with_the_reason() {
    let dir = directory();
    let paths: Vec<PathBuf> = (0..2).map(|i| dir.path().join(format!("disk{i}"))).collect();
    create(&paths, 64 * MIB);
    let mut daemon = Config::new(&paths[0], dir.path()).start();
    let spare = dir.path().join("spare");
    ok(daemon.control(&["pool", "add", text(&spare), "--size", "64M"]));
    write_rest(&daemon);
    let refused = daemon.control(&["pool", "remove", text(&paths[1])]);
    assert!(!refused.status.success(), "{refused:?}");
    assert!(refused.err.contains("no room"), "{refused:?}");
    // What holds data is not taken.
    let data = dir.path().join("data");
    std::fs::write(&data, vec![1; 96 * MIB as usize]).unwrap();
    let refused = daemon.control(&["pool", "add", text(&data)]);
    assert!(!refused.status.success() && refused.err.contains("holds"), "{refused:?}");
    ok(daemon.control(&["pool", "add", text(&data), "--force"]));
    let output = ok(daemon.control(&["pool", "remove", text(&paths[1])]));
    assert!(output.out.contains("removed"), "{output:?}");
    assert_eq!(devices(&daemon).len(), 3);
    verify_rest(&daemon);
    daemon.stop_cleanly();
    check_pool(&paths[0]);
}

#[test]
fn without_a_file_the_rest_is_read_when_asked_and_nothing_is_written() {
    let dir = directory();
    let paths: Vec<PathBuf> = (0..3).map(|i| dir.path().join(format!("disk{i}"))).collect();
    create(&paths, 96 * MIB);
    let mut daemon = Config::new(&paths[0], dir.path()).start();
    write_rest(&daemon);
    // Again, so that there is something older to be shown by mistake.
    let mut client = daemon.connect("rest");
    let new = vec![0x5a; MIB as usize];
    for at in (0..REST).step_by(2 * MIB as usize) {
        client.write(at, &new, 0).unwrap();
    }
    drop(client);
    daemon.kill();
    let away = directory();
    let aside = away.path().join("disk2");
    std::fs::copy(&paths[2], &aside).unwrap();
    std::fs::remove_file(&paths[2]).unwrap();
    let sum = |path: &Path| crc32(&std::fs::read(path).unwrap());
    let before = [sum(&paths[0]), sum(&paths[1])];

    let config = Config::new(&paths[0], dir.path());
    let refused = flagstone_tests::programs::finish(config.command());
    assert!(!refused.status.success(), "{refused:?}");
    for word in ["is missing", "disk2", "--degraded-read-only"] {
        assert!(refused.err.contains(word), "{word}: {refused:?}");
    }
    let mut config = config;
    config.args.push("--degraded-read-only".to_owned());
    let mut daemon = config.start();
    let states: Vec<String> = devices(&daemon).into_iter().map(|(_, state)| state).collect();
    assert_eq!(states, ["present", "present", "missing"]);
    let status = ok(daemon.control(&["pool", "status", "--json"])).out;
    assert!(status.contains("\"degraded\"") && status.contains("disk2"), "{status}");
    let mut client = daemon.connect("rest");
    let (mut right, mut wrong) = (0, 0);
    for at in (0..REST).step_by(BLOCK) {
        match client.read(at, BLOCK as u32) {
            Ok(bytes) => {
                let whole = at / MIB * MIB;
                let in_it = (at - whole) as usize..(at - whole) as usize + BLOCK;
                let due = if (at / MIB).is_multiple_of(2) { &new } else { &rest(whole) };
                assert!(bytes == due[in_it], "at {at}");
                right += 1;
            }
            Err(errno) => {
                assert_eq!(errno, 5, "at {at}");
                wrong += 1;
            }
        }
    }
    assert!(right > wrong && wrong > 1000, "{right} right, {wrong} not");
    assert_eq!(client.write(0, &new, 0), Err(1), "EPERM");
    client.flush().unwrap();
    let refused = daemon.control(&["volume", "create", "other", "--size", "1M"]);
    assert!(!refused.status.success() && refused.err.contains("only read"), "{refused:?}");
    drop(client);
    daemon.stop_cleanly();
    assert_eq!([sum(&paths[0]), sum(&paths[1])], before);

    // With everything there the flag makes no difference.
    std::fs::copy(&aside, &paths[2]).unwrap();
    let mut daemon = config.start();
    let mut client = daemon.connect("rest");
    for at in (0..REST).step_by(MIB as usize) {
        let due = if (at / MIB).is_multiple_of(2) { new.clone() } else { rest(at) };
        assert!(client.read(at, MIB as u32).unwrap() == due, "at {at}");
    }
    client.write(0, &rest(0), 0).unwrap();
    drop(client);
    daemon.stop_cleanly();
    check_pool(&paths[0]);

    // Without the journal nothing can be told.
    std::fs::remove_file(&paths[0]).unwrap();
    let mut config = Config::new(&paths[1], dir.path());
    config.args.push("--degraded-read-only".to_owned());
    let refused = flagstone_tests::programs::finish(config.command());
    assert!(refused.err.contains("holds the journal"), "{refused:?}");
}

fn crc32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[test]
fn block_devices_and_files_are_one_pool_and_found_again_under_other_names() {
    let name = "block_devices_and_files_are_one_pool_and_found_again_under_other_names";
    if !can_run(name, &[Need::Program("losetup"), Need::Root, Need::Loop]) {
        return;
    }
    let (dir, images) = (directory(), directory());
    let image = |i: u32| {
        let path = images.path().join(format!("image{i}"));
        std::fs::File::create(&path).unwrap().set_len(128 * MIB).unwrap();
        path
    };
    let (one, two, three) = (image(1), image(2), image(3));
    let file = dir.path().join("file");
    let loops = [Loop::attach(&one), Loop::attach(&two)];
    let paths = [file.clone(), loops[0].device().into(), loops[1].device().into()];
    create(&paths, 128 * MIB);
    let mut daemon = Config::new(&file, dir.path()).start();
    assert_eq!(devices(&daemon).len(), 3, "found by what is on them");
    write_rest(&daemon);
    daemon.create_volume("v", BLOCKS * BLOCK as u64);
    let (clock, mut ledger) = (Clock::default(), Ledger::default());
    let mut random = Random::from_environment();
    let stop = AtomicBool::new(false);
    let shared = Shared { clock: &clock, stop: &stop, position: &|| 0 };
    let seed = random.number();
    let plan = Plan { connections: 3, depth: 8, blocks: BLOCKS, requests: u64::MAX, seed };
    let third = Loop::attach(&three);
    let address = daemon.address();
    let result = std::thread::scope(|scope| {
        let clients = scope.spawn(|| load::run(&plan, &address, "v", &shared, &mut ledger));
        ok(daemon.control(&["pool", "add", third.device()]));
        ok(daemon.control(&["pool", "remove", loops[0].device(), "--no-wait"]));
        std::thread::sleep(Duration::from_millis(20 + random.below(200)));
        daemon.kill();
        stop.store(true, Ordering::Relaxed);
        clients.join().expect("no panic")
    });
    result.unwrap_or_else(|why| panic!("before the kill: {why}"));

    // Under each other's names, as far as the kernel gives them again.
    drop((loops, third));
    let loops = [Loop::attach(&three), Loop::attach(&two), Loop::attach(&one)];
    let mut daemon = Config::new(&file, dir.path()).start();
    let found = load::verify(&daemon.address(), "v", &ledger, Cut::Process);
    ledger.settle(&found.unwrap_or_else(|why| panic!("after the kill: {why}")));
    verify_rest(&daemon);
    let gone = loops[2].device();
    if devices(&daemon).iter().any(|(path, _)| path == gone) {
        ok(daemon.control(&["pool", "remove", gone]));
    }
    let mut left: Vec<String> = devices(&daemon).into_iter().map(|(path, _)| path).collect();
    left.sort();
    let mut due = [text(&file), loops[0].device(), loops[1].device()];
    due.sort_unstable();
    assert_eq!(left, due);
    load::verify(&daemon.address(), "v", &ledger, Cut::Process).unwrap();
    verify_rest(&daemon);
    daemon.stop_cleanly();

    // A device that is gone leaves a name behind that can't be opened.
    let [first, second, _] = loops;
    let name = second.device().to_owned();
    drop(second);
    let mut config = Config::new(Path::new(&name), dir.path());
    config.args.extend(["--pool".to_owned(), text(&file).to_owned()]);
    config.args.push("--degraded-read-only".to_owned());
    let mut daemon = config.start();
    let states = devices(&daemon);
    assert_eq!(states.iter().filter(|(_, state)| state == "missing").count(), 1, "{states:?}");
    daemon.stop_cleanly();
    let again = Loop::attach(&two);
    check_pool(&file);
    drop((first, again));
}

/// The only pool, as `pool status` tells it.
fn pool_status(daemon: &Daemon) -> serde_json::Value {
    let output = ok(daemon.control(&["pool", "status", "--json"]));
    let status: serde_json::Value = serde_json::from_str(&output.out).expect("JSON");
    status["pools"][0].clone()
}

#[test]
fn a_device_that_fails_takes_nothing_but_its_own_blocks_with_it() {
    let name = "a_device_that_fails_takes_nothing_but_its_own_blocks_with_it";
    if !can_run(name, &[Need::Root, Need::Program("mount")]) {
        return;
    }
    let dir = directory();
    // A file in a file system that has less room than the file says.
    let small = Mount::in_memory(24 * MIB, &dir.path().join("small"));
    let paths = [dir.path().join("disk0"), dir.path().join("disk1"), small.path().join("disk2")];
    create(&paths, 160 * MIB);
    let mut config = Config::new(&paths[0], dir.path());
    config.args.extend(["--pool".to_owned(), text(&paths[2]).to_owned()]);
    let mut daemon = config.start();
    let states = |daemon: &Daemon| -> Vec<String> {
        devices(daemon).into_iter().map(|(_, state)| state).collect()
    };
    // A third of it would go there: what fails is written elsewhere, and no client hears of it.
    write_rest(&daemon);
    daemon.connect("rest").flush().unwrap();
    assert_eq!(states(&daemon), ["present", "present", "failed"]);
    let status = pool_status(&daemon);
    assert_eq!((&status["state"], &status["read_only"]), (&"degraded".into(), &false.into()));
    for told in [status["reason"].to_string(), daemon.log()] {
        assert!(told.contains("disk2") && told.contains("has failed"), "{told}");
    }
    assert!(status["devices"][2]["reason"].to_string().contains("No space left"), "{status}");
    verify_rest(&daemon);
    let refused = daemon.control(&["pool", "remove", text(&paths[2]), "--cancel"]);
    assert!(!refused.status.success(), "{refused:?}");

    daemon.kill();
    let mut daemon = config.start();
    assert_eq!(states(&daemon), ["present", "present", "failed"]);
    verify_rest(&daemon);
    daemon.stop_cleanly();

    // It is gone for good, and the pool does without.
    drop(small);
    let mut daemon = config.start();
    assert_eq!(states(&daemon), ["present", "present", "missing"]);
    let mut client = daemon.connect("rest");
    let (mut right, mut wrong) = (0, 0);
    for at in (0..REST).step_by(BLOCK) {
        let whole = at / MIB * MIB;
        match client.read(at, BLOCK as u32) {
            Ok(bytes) => {
                assert!(bytes == rest(whole)[(at - whole) as usize..][..BLOCK], "at {at}");
                right += 1;
            }
            Err(errno) => {
                assert_eq!(errno, 5, "at {at}");
                wrong += 1;
            }
        }
    }
    assert!(right > wrong && wrong > 1000, "{right} right, {wrong} not");
    let uuid = pool_status(&daemon)["devices"][2]["uuid"].as_str().unwrap().to_owned();
    let stuck = daemon.control(&["pool", "remove", &uuid]);
    assert!(!stuck.status.success() && stuck.err.contains("can't be emptied"), "{stuck:?}");
    // What is overwritten is well again, and what nobody needs any more can go.
    for at in (0..REST).step_by(MIB as usize) {
        client.write(at, &rest(at), 0).unwrap();
    }
    client.flush().unwrap();
    verify_rest(&daemon);
    // Its emptying has gone on by itself, perhaps to its end; otherwise this waits for that.
    let removed = daemon.control(&["pool", "remove", &uuid]);
    let gone = removed.err.contains("no pool of the daemon has a device");
    assert!(removed.status.success() || gone, "{removed:?}");
    assert_eq!(states(&daemon), ["present", "present"]);
    drop(client);
    daemon.stop_cleanly();
    check_pool(&paths[0]);
}
