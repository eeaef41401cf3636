//! `kill -9` under load: nothing acknowledged is lost, each block is one whole version of itself.
//!
//! `FLAGSTONE_KILLS` says how many times; `FLAGSTONE_SEED` repeats a run's choices (not its timing).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flagstone_tests::daemon::{Config, Daemon, check_pool, create_pool, directory};
use flagstone_tests::ledger::{Clock, Cut, Ledger};
use flagstone_tests::load::{self, Plan, Shared};
use flagstone_tests::random::Random;
use flagstone_tests::{BLOCK, MIB, knob};

/// Blocks of the volume under load: small, so that it is overwritten many times.
const BLOCKS: u64 = 4096;

/// Some of the load fills it: then writes fail, and the next discard makes room.
const POOL: u64 = 256 * MIB;

#[test]
fn kill_under_load() {
    let kills = knob("FLAGSTONE_KILLS", 10);
    let mut random = Random::from_environment();
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), POOL, BLOCKS * BLOCK as u64);
    let pool = dir.path().join("pool");
    let clock = Clock::default();
    let mut ledger = Ledger::default();
    let (mut versions, mut lost) = (0, 0);
    for kill in 1..=kills {
        let stop = AtomicBool::new(false);
        let shared = Shared { clock: &clock, stop: &stop, position: &|| 0 };
        let connections = 1 + random.below(6);
        let depth = [1, 4, 16, 64][random.below(4) as usize];
        let plan =
            Plan { connections, depth, blocks: BLOCKS, requests: u64::MAX, seed: random.number() };
        let lifetime = Duration::from_millis(20 + random.below(480));
        let address = daemon.address();
        let result = std::thread::scope(|scope| {
            let clients = scope.spawn(|| load::run(&plan, &address, "v", &shared, &mut ledger));
            // Any moment is as good as any other: that is the test.
            std::thread::sleep(lifetime);
            daemon.kill();
            stop.store(true, Ordering::Relaxed);
            clients.join().expect("no panic")
        });
        result.unwrap_or_else(|why| panic!("kill {kill}, before it: {why}"));
        check_pool(&pool);
        // Every other time, the recovery is killed too, as soon as it is over.
        if random.chance(50) {
            daemon.restart();
            daemon.kill();
        }
        daemon.restart();
        let found = load::verify(&daemon.address(), "v", &ledger, Cut::Process);
        let survivors = found.unwrap_or_else(|why| panic!("kill {kill}: {why}"));
        versions += ledger.counts().0;
        lost += survivors.lost;
        ledger.settle(&survivors);
        if random.chance(60) {
            // Segments die, and are used again under the next load.
            let done = load::discard_all(BLOCKS, &daemon.address(), "v", &shared, &mut ledger);
            done.unwrap_or_else(|why| panic!("kill {kill}: {why}"));
        }
        if kill % 8 == 0 {
            let all = daemon.control(&["volume", "delete", "v", "--force"]);
            assert!(all.status.success(), "{all:?}");
            daemon.create_volume("v", BLOCKS * BLOCK as u64);
            ledger = Ledger::default();
        }
    }
    println!("{kills} kills, {versions} versions of blocks, {lost} unacknowledged ones lost");
    assert!(versions as u64 > kills * 50, "too little load: {versions} versions");
    daemon.stop_cleanly();
    check_pool(&pool);
}

#[test]
fn kill_while_volumes_come_and_go() {
    let kills = knob("FLAGSTONE_KILLS", 10).div_ceil(2);
    let mut random = Random::from_environment();
    let dir = directory();
    let pool = dir.path().join("pool");
    create_pool(&pool, 256 * MIB);
    let config = Config::new(&pool, dir.path());
    // What a command that returned has promised: these volumes exist, with these sizes.
    let mut promised: std::collections::BTreeMap<String, u64> = Default::default();
    let mut daemon = config.start();
    for kill in 1..=kills {
        for step in 0..1 + random.below(6) {
            let name = format!("v{kill}-{step}");
            let size = (1 + random.below(64)) * MIB;
            daemon.create_volume(&name, size);
            daemon.connect(&name).write(0, &[kill as u8; 8192], 0).unwrap();
            promised.insert(name, size);
            if random.chance(40)
                && let Some((name, _)) = promised.pop_first()
            {
                let output = daemon.control(&["volume", "delete", &name, "--force"]);
                assert!(output.status.success(), "{output:?}");
            }
            if random.chance(40)
                && let Some((name, size)) = promised.last_key_value()
            {
                let (name, size) = (name.clone(), size + MIB);
                let output =
                    daemon.control(&["volume", "resize", &name, "--size", &size.to_string()]);
                assert!(output.status.success(), "{output:?}");
                promised.insert(name, size);
            }
        }
        // One more command is under way when the power of the process ends.
        let late = format!("late{kill}");
        let mut create = std::process::Command::new(flagstone_tests::daemon::binary());
        create.args(["volume", "create", &late, "--size", "8M"]);
        create.arg("--api-socket").arg(config.api_socket());
        create.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut create = create.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(random.below(20)));
        daemon.kill();
        let said = create.wait().unwrap();
        check_pool(&pool);
        daemon = config.start();
        let list = daemon.control(&["volume", "list", "--json"]);
        let list: serde_json::Value = serde_json::from_str(&list.out).unwrap();
        let mut found: std::collections::BTreeMap<String, u64> = Default::default();
        for volume in list["volumes"].as_array().unwrap() {
            let name = volume["name"].as_str().unwrap().to_owned();
            found.insert(name, volume["size_bytes"].as_u64().unwrap());
        }
        if said.success() {
            promised.insert(late, 8 * MIB);
        } else if found.contains_key(&late) {
            // It was made, but nobody was told.
            promised.insert(late, 8 * MIB);
        }
        assert_eq!(found, promised, "kill {kill}");
        for name in promised.keys().filter(|name| name.starts_with('v')) {
            let mut client = daemon.connect(name);
            let first = client.read(0, 8192).unwrap();
            assert!(
                first.iter().all(|&byte| byte == first[0] && byte != 0),
                "{name}: {}",
                first[0]
            );
        }
    }
    daemon.stop_cleanly();
    check_pool(&pool);
}
