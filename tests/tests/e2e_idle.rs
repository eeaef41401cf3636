//! A daemon that has nothing to do does nothing.

use std::time::Duration;

use flagstone_tests::daemon::{Config, create_pool, directory};
use flagstone_tests::{MIB, process};

/// How long is watched.
const WATCHED: Duration = Duration::from_secs(5);

#[test]
fn a_hundred_idle_volumes_cost_next_to_nothing() {
    let dir = directory();
    let pool = dir.path().join("pool");
    create_pool(&pool, 1024 * MIB);
    let daemon = Config::new(&pool, dir.path()).start();
    let clients: Vec<_> = (0..100)
        .map(|number| {
            let name = format!("volume-{number}");
            daemon.create_volume(&name, 1024 * MIB);
            let mut client = daemon.connect(&name);
            client.write(0, &[number as u8; 8192], 0).unwrap();
            client
        })
        .collect();
    // What was written last is flushed by itself within a second; that is not idling.
    std::thread::sleep(Duration::from_secs(2));
    let before = process::cpu_time(daemon.pid());
    std::thread::sleep(WATCHED);
    let taken = process::cpu_time(daemon.pid()) - before;
    println!("{taken:?} of CPU time in {WATCHED:?}; resident {:?}", process::memory(daemon.pid()));
    assert!(taken < WATCHED / 100, "{taken:?} of CPU time in {WATCHED:?} of idling");
    drop(clients);
}
