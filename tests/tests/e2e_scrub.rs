//! A byte of a served pool's file goes bad: a scrub names the volume and the place.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;

use flagstone_tests::MIB;
use flagstone_tests::daemon::{Daemon, check_pool, directory};

const PATTERN: &[u8] = b"this block is about to be damaged";

#[test]
fn a_scrub_names_what_is_damaged() {
    let dir = directory();
    let path = dir.path().join("pool");
    let mut daemon = Daemon::with_volume(dir.path(), 96 * MIB, 64 * MIB);
    let mut client = daemon.connect("v");
    let megabyte: Vec<u8> = (0..MIB).map(|at| (at / 4096) as u8).collect();
    for number in 0..24 {
        client.write(number * MIB, &megabyte, 0).unwrap();
    }
    let mut block = vec![0x5a; 4096];
    block[..PATTERN.len()].copy_from_slice(PATTERN);
    let place = 7 * MIB + 3 * 4096;
    client.write(place, &block, 0).unwrap();
    client.flush().unwrap();

    let pool = path.to_str().unwrap();
    let sound = daemon.control(&["pool", "scrub", pool, "--rate", "0"]);
    assert!(sound.status.success(), "{sound:?}");
    assert!(sound.out.contains("sound") && sound.out.contains("0 bad"), "{sound:?}");

    let bytes = fs::read(&path).unwrap();
    let found = bytes.chunks_exact(4096).position(|block| block.starts_with(PATTERN));
    let offset = found.expect("it lies somewhere") as u64 * 4096;
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0xa5], offset + 1000).unwrap();
    file.sync_all().unwrap();

    let damaged = daemon.control(&["pool", "scrub", pool, "--rate", "0"]);
    assert_eq!(damaged.status.code(), Some(4), "{damaged:?}");
    let line = damaged.out.lines().last().unwrap();
    for part in ["data", "v", &place.to_string(), &offset.to_string(), "checksum mismatch"] {
        assert!(line.split_whitespace().any(|word| part.contains(word)), "{part}: {damaged:?}");
    }
    let told = daemon.control(&["pool", "scrub", pool, "--status", "--json"]);
    assert_eq!(told.status.code(), Some(4), "{told:?}");
    assert!(told.out.contains(&format!("\"volume_offset_bytes\":{place}")), "{told:?}");
    assert!(client.read(place, 4096).is_err());
    assert!(client.read(place + 4096, 4096).unwrap() == megabyte[4 * 4096..5 * 4096]);

    // Overwriting heals.
    client.write(place, &block, 0).unwrap();
    let healed = daemon.control(&["pool", "scrub", pool, "--rate", "64M"]);
    assert!(healed.status.success(), "{healed:?}");
    let begun = daemon.control(&["pool", "scrub", pool, "--rate", "1M", "--no-wait"]);
    assert!(begun.status.success() && begun.out.contains("under way"), "{begun:?}");
    let ended = daemon.control(&["pool", "scrub", pool, "--cancel"]);
    assert!(ended.status.success(), "{ended:?}");
    drop(client);
    daemon.stop_cleanly();
    check_pool(&path);
}
