//! Power cuts: the real binary on a disk that records, and every image that the disk could have
//! been left with is recovered by the real binary, twice.
//!
//! `FLAGSTONE_POWERCUTS` says how many images; `FLAGSTONE_SEED` repeats the choices (not the timing
//! of the recording, so not the images).

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use flagstone_tests::daemon::{Config, create_pool, directory_in_memory};
use flagstone_tests::disk::{Cutter, Disk};
use flagstone_tests::filesystem::Fuse;
use flagstone_tests::ledger::{Clock, Ledger};
use flagstone_tests::load::{self, Plan, Shared};
use flagstone_tests::programs::{Need, can_run};
use flagstone_tests::random::Random;
use flagstone_tests::recovery::recover;
use flagstone_tests::{BLOCK, MIB, knob};

/// Blocks of the volume.
const BLOCKS: u64 = 2048;

/// Small, because every image is written out whole, and so that segments are used again.
const POOL: u64 = 64 * MIB;

/// Images made from one recording.
const CUTS: u64 = 40;

#[test]
fn power_cuts_at_any_point() {
    let needs = [Need::Program("nbdfuse"), Need::Program("fusermount3"), Need::Fuse];
    if !can_run("power_cuts_at_any_point", &needs) {
        return;
    }
    let mut left = knob("FLAGSTONE_POWERCUTS", CUTS);
    let mut random = Random::from_environment();
    while left > 0 {
        let cuts = left.min(CUTS);
        record_and_cut(cuts, &mut random);
        left -= cuts;
    }
}

/// The same with a disk that lies about flushes: promises must break, and this must be seen.
#[test]
fn a_disk_without_flushes_is_found_out() {
    let needs = [Need::Program("nbdfuse"), Need::Program("fusermount3"), Need::Fuse];
    if !can_run("a_disk_without_flushes_is_found_out", &needs) {
        return;
    }
    let mut random = Random::from_environment();
    let dir = directory_in_memory();
    let (Recording { disk, ledger }, base) = record(dir.path(), &mut random);
    let mut cutter = Cutter::lying(&disk, base);
    let end = disk.position();
    let pool = dir.path().join("image");
    let mut cuts = (1..=10).map(|tenth| {
        let image = cutter.cut((end * tenth / 10) as usize, &mut random);
        fs::write(&pool, image).unwrap();
        recover(dir.path(), &pool, &ledger, end * tenth / 10)
    });
    assert!(cuts.any(|result| result.is_err()), "ten cuts without flushes, and nothing is missed");
}

fn record_and_cut(cuts: u64, random: &mut Random) {
    let dir = directory_in_memory();
    let (recording, base) = record(dir.path(), random);
    let Recording { disk, ledger } = recording;
    // Rising, because the images build on each other.
    let mut positions: Vec<_> = (0..cuts).map(|_| 1 + random.below(disk.position())).collect();
    positions.sort_unstable();
    let mut cutter = Cutter::new(&disk, base);
    let mut gone = 0;
    for &position in &positions {
        let image = cutter.cut(position as usize, random);
        let pool = dir.path().join("image");
        fs::write(&pool, image).unwrap();
        match recover(dir.path(), &pool, &ledger, position) {
            Ok(count) => gone += count,
            Err(why) => {
                let kept = std::env::temp_dir().join(format!("flagstone-cut-{position}.img"));
                fs::copy(&pool, &kept).unwrap();
                panic!("cut at {position} of {}: {why}; see {}", disk.position(), kept.display());
            }
        }
    }
    let (versions, flushes) = ledger.counts();
    println!(
        "{cuts} cuts in {} commands of the disk ({} flushes); {versions} versions of blocks and \
         {flushes} flushes of clients; {gone} versions gone, or sent after their cut",
        disk.position(),
        disk.flushes()
    );
}

struct Recording {
    disk: Disk,
    ledger: Ledger,
}

/// Runs a daemon on a recorded disk: under load, through a clean stop and a start, under load,
/// killed and recovered, and under load again. All that is in the recording.
fn record(dir: &Path, random: &mut Random) -> (Recording, Vec<u8>) {
    let image = dir.join("base");
    create_pool(&image, POOL);
    // A volume that is on the disk for sure before the recording begins.
    let mut config = Config::new(&image, dir);
    let mut daemon = config.start();
    daemon.create_volume("v", BLOCKS * BLOCK as u64);
    daemon.stop_cleanly();
    let base = fs::read(&image).unwrap();
    let disk = Disk::serve(base.clone(), &dir.join("disk.sock"), random.number()).unwrap();
    let fuse = Fuse::mount(&disk.uri(), &dir.join("fuse"));
    config.pool = fuse.file().to_owned();

    let (clock, stop) = (Clock::default(), AtomicBool::new(false));
    let position = || disk.position();
    let shared = Shared { clock: &clock, stop: &stop, position: &position };
    let mut ledger = Ledger::default();
    let mut load = |daemon: &flagstone_tests::daemon::Daemon, requests| {
        let plan = Plan {
            connections: 3,
            depth: 1 + random.below(12) as usize,
            blocks: BLOCKS,
            requests,
            seed: random.number(),
        };
        load::run(&plan, &daemon.address(), "v", &shared, &mut ledger).unwrap();
        if random.chance(70) {
            // Segments die, are free after the next flush, and are written again.
            let address = daemon.address();
            load::discard_all(BLOCKS, &address, "v", &shared, &mut ledger).unwrap();
        }
    };
    let mut daemon = config.start();
    load(&daemon, 200);
    load(&daemon, 200);
    daemon.stop_cleanly();
    daemon.restart();
    load(&daemon, 200);
    load(&daemon, 200);
    daemon.kill();
    daemon.restart();
    load(&daemon, 200);
    assert!(disk.flushes() > 0, "flushes reach the disk");
    daemon.kill();
    drop(daemon);
    drop(fuse);
    fs::remove_file(&image).unwrap();
    (Recording { disk, ledger }, base)
}
