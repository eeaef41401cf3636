//! `flagstone bench` as people run it, in its own process.

mod support;

use std::fs;

use serde_json::Value;
use support::run;

fn bench(dir: &std::path::Path, args: &[&str]) -> Value {
    run(dir, &[&["bench", "pool", "p", "v", "--json"], args].concat()).succeeded().json()
}

#[test]
fn a_pool_is_driven_in_this_process() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(dir, &["pool", "create", "p", "--size", "256M"]).succeeded();
    run(dir, &["bench", "pool", "p", "v"]).failed(7, "volume");
    // Every block once, in two threads, and verified afterwards.
    let blocks = (32 << 20) / 4096;
    let ops = blocks.to_string();
    let verified = ["--create", "32M", "--verify", "--ledger", "l", "--ops", &ops];
    let first = ["--rw", "write", "--pattern", "shuffled", "--threads", "2", "--hdr", "first"];
    let report = bench(dir, &[&verified[..], &first].concat());
    assert_eq!(report["write"]["operations"], blocks, "{report}");
    assert_eq!(report["setup"]["pattern"], "shuffled");
    let report = bench(dir, &[&verified[..], &["--rw", "read"]].concat());
    assert_eq!(report["verification"]["reads_checked"], blocks, "{report}");
    let latencies = fs::read_to_string(dir.join("first.write.hgrm")).unwrap();
    assert!(latencies.contains(&format!("Total count    = {blocks:>12}")), "{latencies}");

    let report = bench(dir, &["--rw", "randrw", "--fua", "--flush-every", "8", "--ops", "500"]);
    let count = |kind: &str| report[kind]["operations"].as_u64().unwrap();
    assert_eq!((&report["errors"], count("total") + count("flush")), (&0.into(), 500), "{report}");
    assert_eq!(count("flush"), count("write") / 8, "{report}");
    // At this rate the last of a hundred is due after a quarter of a second.
    let report = bench(dir, &["--rate", "400", "--ops", "101"]);
    assert!(report["elapsed_s"].as_f64().unwrap() >= 0.25, "{report}");
    assert_eq!(report["setup"]["rate"], 400);
    let discards = ["--rw", "trim", "--block-size", "1M", "--ops", "32"];
    assert_eq!(bench(dir, &discards)["discard"]["operations"], 32);
    run(dir, &["pool", "check", "p"]).succeeded();
    run(dir, &["bench", "pool", "p", "v", "--rate", "0"]).failed(2, "rate");
    run(dir, &["bench", "pool", "p", "v", "--rw", "trim", "--verify"]).failed(2, "discards");
}
