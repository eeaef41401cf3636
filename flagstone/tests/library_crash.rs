//! What the library acknowledged is there after its process was killed.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use flagstone::{CreateOptions, OpenOptions, Pool};

/// Tells the process that is to be killed where its pool is.
const POOL: &str = "FLAGSTONE_TEST_POOL";

/// Blocks that are written over and over.
const BLOCKS: u64 = 100;

/// Acknowledged writes that are waited for before the kill.
const WRITES: u64 = 1000;

/// Writes numbered blocks, telling each when it is acknowledged, until it is killed.
fn write_for_ever(path: &Path) {
    let options = CreateOptions { size_bytes: Some(64 << 20), ..CreateOptions::default() };
    let pool = Pool::create(path, &options).unwrap();
    let volume = pool.create_volume("v", BLOCKS * 4096).unwrap();
    for number in 1_u64.. {
        let block = number.to_le_bytes().repeat(512);
        volume.write(number % BLOCKS * 4096, &block).unwrap();
        println!("\nacknowledged {number}");
    }
}

#[test]
fn what_was_acknowledged_survives_the_process() {
    if let Some(path) = std::env::var_os(POOL) {
        return write_for_ever(path.as_ref());
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_was_acknowledged_survives_the_process", "--nocapture"])
        .env(POOL, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let number = |line: String| line.strip_prefix("acknowledged ")?.parse::<u64>().ok();
    let mut last = lines.by_ref().filter_map(number).find(|&number| number >= WRITES).unwrap();
    child.kill().unwrap();
    // Told before the kill, read after it.
    last = lines.filter_map(number).last().unwrap_or(last);
    child.wait().unwrap();

    let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
    let volume = pool.volume("v").unwrap();
    for slot in 0..BLOCKS {
        let mut block = vec![0; 4096];
        volume.read(slot * 4096, &mut block).unwrap();
        let found = u64::from_le_bytes(block[..8].try_into().unwrap());
        assert_eq!(block, found.to_le_bytes().repeat(512), "a torn block");
        assert_eq!(found % BLOCKS, slot);
        // The newest acknowledged one of this slot, or one that was under way behind the last.
        assert!(found + BLOCKS > last && found <= last + 1, "{found} of {last} in slot {slot}");
    }
    pool.close().unwrap();
}
