//! `flagstone pool check`: what it finds, and what it can make anew.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde_json::Value;
use support::{Daemon, run};

const BLOCK: usize = 4096;

/// A pool with a volume of which more was written than a checkpoint waits for; `ledger` says what.
fn filled(dir: &Path) {
    run(dir, &["pool", "create", "p", "--size", "128M", "--segment-size", "1M"]).succeeded();
    let daemon = Daemon::serve(dir, "p");
    daemon.run(&["volume", "create", "v", "--size", "48M"]).succeeded();
    for rw in ["write", "randwrite"] {
        let ops = ["--rw", rw, "--ops", "3000", "--block-size", "16K"];
        verified(dir, &daemon, &ops);
    }
    daemon.stop();
}

fn verified(dir: &Path, daemon: &Daemon, job: &[&str]) {
    let uri = daemon.uri("v");
    let all = ["bench", "nbd", &uri, "--verify", "--ledger", "ledger"];
    run(dir, &[&all[..], job].concat()).succeeded();
}

/// Blocks of the pool that begin with `magic`.
fn blocks(pool: &File, magic: &[u8; 4]) -> Vec<u64> {
    let blocks = pool.metadata().unwrap().len() / BLOCK as u64;
    let mut begin = [0; 4];
    let mut is_it = |block: &u64| {
        pool.read_exact_at(&mut begin, block * BLOCK as u64).unwrap();
        begin == *magic
    };
    (0..blocks).filter(|block| is_it(block)).collect()
}

fn smash(pool: &File, block: u64) {
    pool.write_all_at(&[0x5a; 64], block * BLOCK as u64 + 100).unwrap();
}

fn check(dir: &Path, args: &[&str], status: i32) -> Value {
    let ran = run(dir, &[&["--json", "pool", "check", "p"], args].concat());
    assert_eq!(ran.status, status, "{}{}", ran.stdout, ran.stderr);
    ran.json()
}

#[test]
fn a_damaged_map_is_told_and_made_anew_from_the_summaries() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    filled(dir);
    assert_eq!(check(dir, &[], 0)["sound"], true);
    let pool = File::options().read(true).write(true).open(dir.join("p")).unwrap();
    let pages = blocks(&pool, b"LSBL");
    assert!(!pages.is_empty(), "there was a checkpoint");
    pages.iter().for_each(|&page| smash(&pool, page));
    let found = check(dir, &[], 4);
    assert_eq!((&found["sound"], &found["bad_blocks"]), (&false.into(), &0.into()));
    assert!(found["recovery"]["leaf_pages_damaged"].as_u64().unwrap() > 0, "{found}");
    let text = run(dir, &["pool", "check", "p"]);
    assert!(text.stdout.contains("pages of the map are damaged"), "{}", text.stdout);
    let rebuilt = check(dir, &["--rebuild"], 0);
    assert_eq!(rebuilt["sound"], true);
    assert!(rebuilt["rebuilt_from_summaries"].as_u64().unwrap() > 0, "{rebuilt}");
    let daemon = Daemon::serve(dir, "p");
    verified(dir, &daemon, &["--rw", "read", "--ops", "3072", "--block-size", "16K"]);
    daemon.stop();
}

#[test]
fn damaged_summaries_are_told_and_everything_else_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    filled(dir);
    // What is written with a new map is a checkpoint: no opening reads the summaries then.
    let sound = check(dir, &["--rebuild"], 0);
    let pool = File::options().read(true).write(true).open(dir.join("p")).unwrap();
    blocks(&pool, b"LSBG").into_iter().for_each(|summary| smash(&pool, summary));
    let found = check(dir, &[], 4);
    assert!(found["bad_summaries"].as_array().unwrap().len() > 40, "{found}");
    assert_eq!(found["verified_blocks"], sound["verified_blocks"]);
    assert_eq!(found["bad_blocks"], 0);
    run(dir, &["pool", "check", "p", "--rebuild"]).failed(4, "summary");
    let daemon = Daemon::serve(dir, "p");
    verified(dir, &daemon, &["--rw", "read", "--ops", "3072", "--block-size", "16K"]);
    daemon.stop();
}
