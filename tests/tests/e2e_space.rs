//! Pools without space: writers that wait, writers that fail, and space that comes back by discard,
//! by deletion and by growing, also while the daemon is killed.
//!
//! `FLAGSTONE_FULL_KILLS` says how often it is killed; `FLAGSTONE_SEED` repeats a run's choices.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flagstone_tests::daemon::{Config, Daemon, check_pool, create_pool, directory, flagstone};
use flagstone_tests::ledger::{Clock, Cut, Ledger};
use flagstone_tests::load::{self, Plan, Shared};
use flagstone_tests::nbd::{Address, Client, ENOSPC, FLUSH, Request, TRIM, WRITE};
use flagstone_tests::programs::wait_until;
use flagstone_tests::random::Random;
use flagstone_tests::{BLOCK, MIB, knob};
use serde_json::Value;

const POOL: u64 = 96 * MIB;

fn pattern(number: u64) -> Vec<u8> {
    (0..MIB).map(|at| (number * 31 + at / 4096 * 7 + 1) as u8).collect()
}

fn json(output: &flagstone_tests::programs::Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_str(&output.out).expect("JSON")
}

fn pool_status(daemon: &Daemon) -> Value {
    json(&daemon.control(&["pool", "status", "--json"]))["pools"][0].clone()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a number"))
}

/// Makes the pool's file larger and has the daemon take what is new.
fn grow(config: &Config, by: u64) -> bool {
    let file = File::options().write(true).open(&config.pool).expect("the pool");
    let size = file.metadata().expect("a file").len() + by;
    file.set_len(size).expect("a sparse file");
    let mut command = std::process::Command::new(flagstone_tests::daemon::binary());
    command.args(["pool", "grow"]).arg(&config.pool);
    command.arg("--api-socket").arg(config.api_socket());
    flagstone_tests::programs::finish(command).status.success()
}

/// Fills a volume that is told to fail until it does; how many MiB fit.
fn fill(client: &mut Client, from: u64) -> u64 {
    let full = (from..).find(|&number| {
        let result = client.write(number * MIB, &pattern(number), 0);
        assert!(matches!(result, Ok(()) | Err(ENOSPC)), "{result:?}");
        result.is_err()
    });
    full.expect("an over-committed volume can't be written whole")
}

#[test]
fn waiting_writers_go_on_after_a_discard_a_deletion_and_growth() {
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), POOL, 1 << 30);
    daemon.create_volume("w", 1 << 30);
    daemon.create_volume("fodder", 1 << 30);
    for name in ["v", "fodder"] {
        daemon.set_volume(name, &["--on-full", "error"]);
    }
    let list = json(&daemon.control(&["volume", "list", "--json"]));
    let modes: Vec<_> =
        list["volumes"].as_array().expect("a list").iter().map(|v| v["on_full"].clone()).collect();
    assert_eq!(modes, ["error", "error", "wait"]);
    let mut fodder = daemon.connect("fodder");
    for number in 0..16 {
        fodder.write(number * MIB, &pattern(number), 0).unwrap();
    }
    drop(fodder);
    let mut failing = daemon.connect("v");
    let full = fill(&mut failing, 0);
    assert!(full > 16, "only {full} MiB");
    assert_eq!(number(&pool_status(&daemon)["warning_percent"]), 93);
    let metrics = daemon.log();
    assert!(metrics.contains("the pool is 93 % full"), "{metrics}");

    // What makes room, each time for a writer that waits while others are refused.
    let mut written = 0;
    let config = daemon.config().clone();
    let mut wait_for = |daemon: &Daemon, failing: &mut Client, make_room: &mut dyn FnMut()| {
        let mut waiting = daemon.connect("w");
        let (first, end) = (written, written + 12);
        written = end;
        let writer = std::thread::spawn(move || {
            for number in first..end {
                waiting.write(number * MIB, &pattern(number + 100), 0).unwrap();
            }
            waiting.flush().unwrap();
        });
        wait_until("the writer to wait", || number(&pool_status(daemon)["waiting"]) > 0);
        assert_eq!(failing.write((full + 1) * MIB, &pattern(1), 0), Err(ENOSPC));
        assert!(failing.read(0, MIB as u32).unwrap() == pattern(0));
        assert!(!writer.is_finished());
        make_room();
        writer.join().expect("the writer got on");
        assert_eq!(number(&pool_status(daemon)["waiting"]), 0);
        let mut reader = daemon.connect("w");
        for number in first..end {
            assert!(reader.read(number * MIB, MIB as u32).unwrap() == pattern(number + 100));
        }
        // As full again as it was.
        while failing.write((full + 1) * MIB, &pattern(1), 0).is_ok() {
            let more = fill(failing, full + 2);
            failing.trim((full + 1) * MIB, MIB as u32).unwrap();
            failing.flush().unwrap();
            let _ = more;
            if fill(failing, more) == more {
                break;
            }
        }
    };
    let mut discard = daemon.connect("v");
    wait_for(&daemon, &mut failing, &mut || discard.trim(0, 14 * MIB as u32).unwrap());
    // The first MiB is read again each time.
    while failing.write(0, &pattern(0), 0).is_err() {
        failing.trim((full - 1) * MIB, MIB as u32).unwrap();
        failing.flush().unwrap();
    }
    wait_for(&daemon, &mut failing, &mut || {
        let output = daemon.control(&["volume", "delete", "fodder"]);
        assert!(output.status.success(), "{output:?}");
    });
    let before = number(&pool_status(&daemon)["capacity_bytes"]);
    wait_for(&daemon, &mut failing, &mut || assert!(grow(&config, 32 * MIB)));
    assert!(number(&pool_status(&daemon)["capacity_bytes"]) > before + 24 * MIB);
    drop((failing, discard));
    daemon.stop_cleanly();
    check_pool(&config.pool);
    daemon.restart();
    let mut reader = daemon.connect("w");
    for number in 0..written {
        assert!(reader.read(number * MIB, MIB as u32).unwrap() == pattern(number + 100));
    }
}

#[test]
fn waiting_has_an_end() {
    let dir = directory();
    let pool = dir.path().join("pool");
    create_pool(&pool, 64 * MIB);
    let mut config = Config::new(&pool, dir.path());
    config.args.extend(["--full-wait", "1", "--on-full", "wait"].map(str::to_owned));
    let mut daemon = config.start();
    daemon.create_volume("v", 1 << 30);
    let mut client = daemon.connect("v");
    let start = Instant::now();
    let full = fill(&mut client, 0);
    assert!(start.elapsed() >= Duration::from_secs(1));
    // Who waits when the daemon stops, or its client goes, holds nothing up.
    let hold = |client: &mut Client, cookie: &mut u64| {
        let payload = pattern(1);
        let (offset, length) = ((full + 1) * MIB, MIB as u32);
        *cookie = client
            .send(&Request { kind: WRITE, flags: 0, offset, length, payload: &payload })
            .unwrap();
    };
    daemon.stop_cleanly();
    config.args.extend(["--full-wait", "3600"].map(str::to_owned));
    let at = config.args.iter().position(|arg| arg == "1").expect("given above");
    config.args.drain(at - 1..=at);
    daemon = config.start();
    let (mut gone, mut stays, mut cookie) = (daemon.connect("v"), daemon.connect("v"), 0);
    hold(&mut gone, &mut cookie);
    hold(&mut stays, &mut cookie);
    wait_until("both to wait", || number(&pool_status(&daemon)["waiting"]) == 2);
    drop(gone);
    wait_until("one to be forgotten", || number(&pool_status(&daemon)["waiting"]) == 1);
    let start = Instant::now();
    daemon.stop_cleanly();
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
    check_pool(&pool);
}

#[test]
fn a_reservation_is_there_when_it_is_needed() {
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), POOL, 1 << 30);
    daemon.set_volume("v", &["--on-full", "error"]);
    let refused = daemon.control(&["volume", "create", "r", "--size", "1G", "--reserve", "200M"]);
    assert!(!refused.status.success() && refused.err.contains("can't reserve"), "{refused:?}");
    let made = daemon.control(&["volume", "create", "r", "--size", "1G", "--reserve", "24M"]);
    assert!(made.status.success(), "{made:?}");
    daemon.set_volume("r", &["--on-full", "error"]);
    let mut greedy = daemon.connect("v");
    fill(&mut greedy, 0);
    assert_eq!(number(&pool_status(&daemon)["reserved_bytes"]), 24 * MIB);
    daemon.kill();
    daemon.restart();
    assert_eq!(number(&pool_status(&daemon)["reserved_bytes"]), 24 * MIB);
    let mut client = daemon.connect("r");
    for number in 0..24 {
        client.write(number * MIB, &pattern(number), 0).unwrap();
    }
    assert_eq!(number(&pool_status(&daemon)["reserved_bytes"]), 0);
    let shown = json(&daemon.control(&["volume", "show", "r", "--json"]));
    assert_eq!(number(&shown["mapped_bytes"]), 24 * MIB);
    assert_eq!(number(&shown["exclusive_bytes"]), 24 * MIB);
    assert_eq!(number(&shown["reserved_bytes"]), 24 * MIB);
    drop((client, greedy));
    daemon.stop_cleanly();
    check_pool(&dir.path().join("pool"));
}

/// Blocks of each volume under load: together far more than there is space for.
const BLOCKS: u64 = 12288;
/// Size up to which the pool grows meanwhile.
const GROWN: u64 = 88 * MIB;

/// Makes room, again and again, in every way there is, until the daemon is gone.
fn make_room(config: &Config, address: &Address, seed: u64, stop: &AtomicBool) -> [u32; 3] {
    let mut random = Random::new(seed);
    let mut done = [0; 3];
    let command = |args: &[&str]| {
        let mut command = std::process::Command::new(flagstone_tests::daemon::binary());
        command.args(args).env("FLAGSTONE_API", config.api_socket());
        flagstone_tests::programs::finish(command).status.success()
    };
    while !stop.load(Ordering::Relaxed) {
        match random.below(4) {
            0 => {
                let gone = command(&["volume", "delete", "fodder", "--force"]);
                command(&["volume", "create", "fodder", "--size", "64M", "--on-full", "error"]);
                done[0] += u32::from(gone);
            }
            1 => {
                let size = std::fs::metadata(&config.pool).map_or(0, |meta| meta.len());
                let more = if size < GROWN && random.chance(25) { MIB } else { 0 };
                done[1] += u32::from(grow(config, more) && more > 0);
            }
            _ => {
                // Some of it is discarded, and some written again.
                let Ok(mut client) = Client::connect(address, "fodder") else { continue };
                let offset = random.below(60) * MIB;
                let (length, payload) = (MIB as u32 * 4, pattern(offset));
                let trim = Request { kind: TRIM, flags: 0, offset, length, payload: &[] };
                let write = Request {
                    kind: WRITE,
                    flags: 0,
                    offset,
                    length: MIB as u32,
                    payload: &payload,
                };
                let flush = Request { kind: FLUSH, flags: 0, offset: 0, length: 0, payload: &[] };
                for request in [trim, flush, write] {
                    let answered = client.send(&request).and_then(|_| client.receive());
                    let Ok(_) = answered else { break };
                    done[2] += 1;
                }
            }
        }
    }
    done
}

/// What inspecting counts from records and map, what checking counts by looking at every entry,
/// and what the daemon says, agree.
fn accounts(pool: &Path) -> Vec<(String, u64, u64)> {
    let path = pool.to_str().expect("text");
    let inspected = json(&flagstone(&["pool", "inspect", path, "--json"]));
    let checked = json(&flagstone(&["pool", "check", path, "--json"]));
    let volumes: Vec<_> = inspected["volumes"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|v| {
            let name = v["name"].as_str().expect("text").to_owned();
            (name, number(&v["mapped_bytes"]), number(&v["kept_bytes"]))
        })
        .collect();
    let mapped: u64 = volumes.iter().map(|(_, mapped, _)| mapped).sum();
    assert_eq!(number(&checked["verified_bytes"]), mapped);
    volumes
}

#[test]
fn kills_in_a_full_pool() {
    let kills = knob("FLAGSTONE_FULL_KILLS", 10);
    let mut random = Random::from_environment();
    let dir = directory();
    let pool = dir.path().join("pool");
    create_pool(&pool, 64 * MIB);
    let config = Config::new(&pool, dir.path());
    let mut daemon = config.start();
    for (name, mode) in [("wait", "wait"), ("fail", "error")] {
        daemon.create_volume(name, BLOCKS * BLOCK as u64);
        daemon.set_volume(name, &["--on-full", mode, "--reserve", "1M"]);
    }
    let fodder = ["volume", "create", "fodder", "--size", "64M", "--on-full", "error"];
    daemon.control(&fodder);
    let clock = Clock::default();
    let mut ledgers = [Ledger::default(), Ledger::default()];
    let (mut versions, mut room, mut waited) = (0, [0; 3], 0);
    for kill in 1..=kills {
        // Full before it begins, as far as the fodder goes.
        daemon.control(&fodder);
        let mut filler = daemon.connect("fodder");
        (0..64).take_while(|&n| filler.write(n * MIB, &pattern(n), 0).is_ok()).for_each(drop);
        drop(filler);
        let stop = AtomicBool::new(false);
        let shared = Shared { clock: &clock, stop: &stop, position: &|| 0 };
        let plan = |random: &mut Random| Plan {
            connections: 1 + random.below(3),
            depth: [4, 16, 64][random.below(3) as usize],
            blocks: BLOCKS,
            requests: u64::MAX,
            seed: random.number(),
        };
        let plans = [plan(&mut random), plan(&mut random)];
        let (seed, lifetime) = (random.number(), Duration::from_millis(100 + random.below(900)));
        let address = daemon.address();
        std::thread::scope(|scope| {
            let [waiting, failing] = &mut ledgers;
            let (address, shared, stop, config) = (&address, &shared, &stop, &config);
            let first = scope.spawn(|| load::run(&plans[0], address, "wait", shared, waiting));
            let second = scope.spawn(|| load::run(&plans[1], address, "fail", shared, failing));
            let third = scope.spawn(|| make_room(config, address, seed, stop));
            // On a busy machine the clients may take longer to connect than they are given.
            wait_until("the clients to connect", || {
                let list = json(&daemon.control(&["volume", "list", "--json"]));
                let volumes = list["volumes"].as_array().expect("a list").clone();
                [("wait", &plans[0]), ("fail", &plans[1])].iter().all(|(name, plan)| {
                    let volume = volumes.iter().find(|v| v["name"] == *name).expect("made");
                    number(&volume["connections"]) >= plan.connections
                })
            });
            std::thread::sleep(lifetime);
            let status = daemon.control(&["pool", "status", "--json"]);
            waited += u32::from(number(&json(&status)["pools"][0]["waiting"]) > 0);
            daemon.kill();
            stop.store(true, Ordering::Relaxed);
            for client in [first, second] {
                let result = client.join().expect("no panic");
                result.unwrap_or_else(|why| panic!("kill {kill}, before it: {why}"));
            }
            let done = third.join().expect("no panic");
            room.iter_mut().zip(done).for_each(|(all, done)| *all += done);
        });
        let before = accounts(&pool);
        if random.chance(30) {
            daemon.restart();
            daemon.kill();
            assert_eq!(accounts(&pool), before, "a recovery changes no account");
        }
        daemon.restart();
        let list = json(&daemon.control(&["volume", "list", "--json"]));
        let told: Vec<_> = list["volumes"].as_array().expect("a list").clone();
        let bytes = |v: &Value, key: &str| number(&v[key]);
        let status = pool_status(&daemon);
        let (mut used, mut held) = (0, 0);
        for volume in &told {
            let name = volume["name"].as_str().expect("text").to_owned();
            let found = (name, bytes(volume, "mapped_bytes"), bytes(volume, "kept_bytes"));
            assert!(before.contains(&found), "kill {kill}: {found:?} in {before:?}");
            used += found.1 + found.2;
            held += bytes(volume, "reserved_bytes").saturating_sub(found.1 + found.2);
        }
        assert_eq!(told.len(), before.len());
        assert_eq!((bytes(&status, "used_bytes"), bytes(&status, "reserved_bytes")), (used, held));
        for (name, ledger) in ["wait", "fail"].into_iter().zip(&mut ledgers) {
            let found = load::verify(&daemon.address(), name, ledger, Cut::Process);
            let survivors = found.unwrap_or_else(|why| panic!("kill {kill}, {name}: {why}"));
            versions += ledger.counts().0;
            ledger.settle(&survivors);
        }
    }
    let [deleted, grown, discarded] = room;
    println!(
        "{kills} kills, in {waited} of them writers waited; {versions} versions of blocks; space came \
         back by {deleted} deletions, {grown} growths, {discarded} discards and writes"
    );
    assert!(versions as u64 > kills * 20, "too little load: {versions} versions");
    daemon.stop_cleanly();
    check_pool(&pool);
    accounts(&pool);
}
