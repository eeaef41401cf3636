//! A pool that runs full: clients get "no space", everything else goes on, and what is discarded
//! can be written again.

use flagstone_tests::MIB;
use flagstone_tests::daemon::{Daemon, check_pool, directory};
use flagstone_tests::nbd::{Client, ENOSPC};
use flagstone_tests::programs::{Need, can_run, command, finish, run, wait_until};

const POOL: u64 = 96 * MIB;
const VOLUME: u64 = 256 * MIB;

/// Writes whole mebibytes from `from` on until there is no space; how many went.
fn fill(client: &mut Client, from: u64) -> u64 {
    for number in from..VOLUME / MIB {
        match client.write(number * MIB, &pattern(number), 0) {
            Ok(()) => {}
            Err(ENOSPC) => return number - from,
            Err(error) => panic!("error {error} at {number} MiB"),
        }
    }
    panic!("an over-committed volume can't be written whole");
}

fn pattern(number: u64) -> Vec<u8> {
    (0..MIB).map(|at| (number * 31 + at / 4096 * 7 + 1) as u8).collect()
}

#[test]
fn a_full_pool_says_so_and_goes_on() {
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), POOL, VOLUME);
    daemon.set_volume("v", &["--on-full", "error"]);
    daemon.create_volume("other", 8 * MIB);
    let mut other = daemon.connect("other");
    other.write(0, &[9; 8192], 0).unwrap();
    let mut client = daemon.connect("v");
    let written = fill(&mut client, 0);
    assert!(written * MIB > POOL / 2, "only {written} MiB of {POOL} bytes could be used");

    // Again and again: it stays an error, and nothing else. (Of the first MiB that did not fit a
    // part may have been written; that can be overwritten.)
    for number in 0..200 {
        let at = (written + 1 + number % 8) * MIB;
        assert_eq!(client.write(at, &[1; 1 << 16], 0), Err(ENOSPC), "attempt {number}");
    }
    client.flush().unwrap();
    for number in 0..written {
        assert!(client.read(number * MIB, MIB as u32).unwrap() == pattern(number), "{number}");
    }
    assert!(other.read(0, 8192).unwrap() == [9; 8192]);

    // Full pools start, and can be checked.
    daemon.stop_cleanly();
    check_pool(&dir.path().join("pool"));
    daemon.restart();
    daemon.kill();
    check_pool(&dir.path().join("pool"));
    daemon.restart();
    let mut client = daemon.connect("v");
    for number in 0..written {
        assert!(client.read(number * MIB, MIB as u32).unwrap() == pattern(number), "{number}");
    }

    // Discarding makes room.
    client.trim(0, (32 * MIB) as u32).unwrap();
    client.flush().unwrap();
    let mut again = 0;
    wait_until("discarded space to be free", || {
        again += fill(&mut client, written + again);
        again >= 16
    });
    for number in 32..written + again {
        assert!(client.read(number * MIB, MIB as u32).unwrap() == pattern(number), "{number}");
    }
    assert!(client.read(0, MIB as u32).unwrap().iter().all(|&byte| byte == 0));

    // So does deleting a volume.
    drop(client);
    let deleted = daemon.control(&["volume", "delete", "v", "--force"]);
    assert!(deleted.status.success(), "{deleted:?}");
    daemon.create_volume("w", VOLUME);
    daemon.set_volume("w", &["--on-full", "error"]);
    let mut client = daemon.connect("w");
    let mut afresh = 0;
    wait_until("a deleted volume's space to be free", || {
        afresh += fill(&mut client, afresh);
        afresh + 4 >= written
    });
    assert!(daemon.connect("other").read(0, 8192).unwrap() == [9; 8192]);
    daemon.stop_cleanly();
    check_pool(&dir.path().join("pool"));
}

#[test]
fn real_clients_are_told_that_there_is_no_space() {
    if !can_run("real_clients_are_told_that_there_is_no_space", &[Need::Program("qemu-io")]) {
        return;
    }
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), POOL, VOLUME);
    daemon.set_volume("v", &["--on-full", "error"]);
    let mut io = command("qemu-io");
    io.args(["-f", "raw", "-t", "none"]);
    for step in 0..16 {
        io.args(["-c", &format!("write -P 1 {}M 16M", step * 16)]);
    }
    io.arg(daemon.uri("v"));
    let output = finish(io);
    let said = output.out + &output.err;
    assert!(said.contains("No space left on device"), "{said}");
    run("qemu-io", ["-f", "raw", "-c", "read -P 1 0 16M", &daemon.uri("v")]);
    assert!(daemon.is_alive());
    daemon.stop_cleanly();
}
