//! A power cut of a whole machine: the binary writes to a real NVMe driver's disk, whose writes QEMU
//! records, until the power of the virtual machine is cut. Every image that the disk could have been
//! left with must be sound and keep what was promised.
//!
//! Two parts. One runs in the lab and ends with it; the other recovers, on the host, what the first
//! has left in `FLAGSTONE_RECORDING`: the disk (`disk.img`), how it began (`base.img`), its log
//! (`writes.log`) and the ledger; and likewise what `kernel_filesystem_recorded` has left there. `cargo xtask test` runs both. `FLAGSTONE_POWERCUTS` says how many
//! images; `FLAGSTONE_SEED` chooses the same of a recording that was kept.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use flagstone_tests::daemon::{Config, Daemon, directory_in_memory, flagstone, try_check_pool};
use flagstone_tests::filesystem::{Loop, Mount};
use flagstone_tests::kernel::{self, POWER_CUT};
use flagstone_tests::ledger::{Clock, Ledger};
use flagstone_tests::load::{self, Plan, Shared};
use flagstone_tests::programs::{Need, can_run, command, finish, run, succeed};
use flagstone_tests::random::Random;
use flagstone_tests::recorded;
use flagstone_tests::recovery::recover;
use flagstone_tests::{BLOCK, MIB, knob};
use rustix::fs::OFlags;

/// Blocks of the volume.
const BLOCKS: u64 = 2048;

/// The disk's first part; marks lie behind it.
const POOL: u64 = 64 * MIB;
const MARKS: u64 = MIB;

/// Images made from the recording.
const CUTS: u64 = 40;

/// Writes by which the log of the disk tells how far the clients had come: what was acknowledged when
/// the n-th mark was asked for stands before it.
struct Marks(Mutex<(File, u64)>);

impl Marks {
    fn new(disk: &Path) -> Self {
        // Past the page cache and without a flush of its own: only a write.
        let direct = OFlags::DIRECT.bits() as i32;
        let file = File::options().write(true).custom_flags(direct).open(disk);
        Self(Mutex::new((file.expect("the part for marks"), 0)))
    }

    /// Makes the next mark; its number.
    fn next(&self) -> u64 {
        // One after the other, so that their order in the log is that of their numbers.
        let mut state = self.0.lock().expect("no panic while it is held");
        state.1 += 1;
        let (file, number) = &*state;
        let memory = vec![0; 2 * BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        let block = &memory[start..start + BLOCK];
        file.write_all_at(block, number % (MARKS / BLOCK as u64) * BLOCK as u64).expect("a mark");
        *number
    }
}

#[test]
fn records_until_the_power_is_cut() {
    let Some(recording) = recording("records_until_the_power_is_cut", &[Need::Lab]) else { return };
    let mut random = Random::from_environment();
    let disk = kernel::disk(0);
    let pool = kernel::part(&disk, 1, 0, POOL / 512);
    let marks = Marks::new(&kernel::part(&disk, 2, POOL / 512, MARKS / 512));
    let created = flagstone(&["pool", "create", pool.to_str().unwrap()]);
    assert!(created.status.success(), "{created:?}");
    let dir = directory_in_memory();
    let mut daemon = Config::new(&pool, dir.path()).start();
    daemon.create_volume("v", BLOCKS * BLOCK as u64);
    // There is a volume from here on.
    marks.next();

    let (clock, stop) = (Clock::default(), AtomicBool::new(false));
    let position = || marks.next();
    let shared = Shared { clock: &clock, stop: &stop, position: &position };
    let mut ledger = Ledger::default();
    let mut load = |daemon: &Daemon| {
        let depth = 1 + random.below(12) as usize;
        let seed = random.number();
        let plan = Plan { connections: 3, depth, blocks: BLOCKS, requests: 150, seed };
        load::run(&plan, &daemon.address(), "v", &shared, &mut ledger).unwrap();
        if random.chance(70) {
            // Segments die, are free after the next flush, and are written again.
            let address = daemon.address();
            load::discard_all(BLOCKS, &address, "v", &shared, &mut ledger).unwrap();
        }
    };
    load(&daemon);
    load(&daemon);
    daemon.stop_cleanly();
    daemon.restart();
    load(&daemon);
    daemon.kill();
    daemon.restart();
    load(&daemon);
    let (versions, flushes) = ledger.counts();
    println!("{versions} versions of blocks, {flushes} flushes, {} marks", marks.next());
    let note = File::create(recording.join("ledger")).unwrap();
    note.write_all_at(ledger.to_text().as_bytes(), 0).unwrap();
    note.sync_all().unwrap();
    // The daemon is still at work behind its clients.
    let ended = Command::new(POWER_CUT).status();
    panic!("the power is still there: {ended:?}");
}

#[test]
fn crash_images_are_recovered() {
    let Some(recording) = Recorded::open("crash_images_are_recovered") else { return };
    let mut random = Random::from_environment();
    let dir = directory_in_memory();
    // What the cut has left by itself comes first.
    let pool = dir.path().join("image");
    fs::copy(recording.directory.join("disk.img"), &pool).unwrap();
    recording.check(&pool, dir.path(), recording.entries).unwrap();
    let (cuts, mut gone) = (knob("FLAGSTONE_POWERCUTS", CUTS), 0);
    for _ in 0..cuts {
        let entry = recording.first + 1 + random.below(recording.entries - recording.first);
        let mut how = vec!["--seed".to_owned(), random.number().to_string()];
        match random.below(3) {
            0 => {}
            1 => how.extend(["--torn", "512"].map(str::to_owned)),
            _ => how.extend(["--torn", "4096"].map(str::to_owned)),
        }
        if random.chance(50) {
            how.push("--reorder".to_owned());
        }
        recording.replay(&pool, entry, &how);
        match recording.check(&pool, dir.path(), entry) {
            Ok(count) => gone += count,
            Err(why) => panic!("cut before entry {entry} with {how:?}: {why}"),
        }
    }
    println!(
        "{cuts} cuts in {} entries of the log; {gone} versions gone, or sent after their cut",
        recording.entries
    );
}

/// The same with a disk that lies about flushes: promises must break, and this must be seen.
#[test]
fn a_disk_without_flushes_is_found_out() {
    let Some(recording) = Recorded::open("a_disk_without_flushes_is_found_out") else { return };
    let mut random = Random::from_environment();
    let dir = directory_in_memory();
    let pool = dir.path().join("image");
    let after = recording.entries - recording.first;
    let mut cuts = (1..=10).map(|tenth| {
        let entry = recording.first + after * tenth / 10;
        // The volume itself was there before the disk began to lie.
        let (seed, from) = (random.number().to_string(), recording.first.to_string());
        let how = ["--seed", &seed, "--from", &from, "--ignore-flushes"].map(str::to_owned);
        recording.replay(&pool, entry, &how);
        recording.check(&pool, dir.path(), entry)
    });
    assert!(cuts.any(|result| result.is_err()), "ten cuts without flushes, and nothing is missed");
}

/// A journaling file system, from images of its disk: every file that was synchronized before the cut is there, and the
/// file system is sound once its journal was replayed.
#[test]
fn file_system_images_are_recovered() {
    let needs = [
        Need::Variable("FLAGSTONE_LAB"),
        Need::Root,
        Need::Loop,
        Need::Program("nbdcopy"),
        Need::Program("e2fsck"),
    ];
    let Some(directory) = recording("file_system_images_are_recovered", &needs) else { return };
    let lab = PathBuf::from(std::env::var_os("FLAGSTONE_LAB").expect("set"));
    let note = fs::read_to_string(directory.join(recorded::NOTE)).expect("the note");
    let synchronized: Vec<u64> = note.lines().map(|line| line.parse().expect("a number")).collect();
    assert_eq!(synchronized.len() as u64, recorded::FILES);
    let mut random = Random::from_environment();
    let dir = directory_in_memory();
    let image = dir.path().join("image");
    let (first, last) = (synchronized[0], *synchronized.last().expect("files"));
    let replay = |entry: u64, how: &[&str]| {
        let mut replay = Command::new(&lab);
        replay.args(["lab", "replay", recorded::LOG, "--base", recorded::BASE]);
        replay.args(["--at", &entry.to_string()]).args(how);
        replay.arg("--out").arg(&image).current_dir(&directory);
        succeed(replay);
    };
    let (cuts, mut found) = (knob("FLAGSTONE_POWERCUTS", CUTS / 2), 0);
    for cut in 0..cuts {
        // The first one has everything.
        let entry = if cut == 0 { last } else { first + random.below(last - first + 1) };
        let seed = random.number().to_string();
        let mut how = vec!["--seed", &seed];
        match random.below(3) {
            0 => {}
            1 => how.extend(["--torn", "512"]),
            _ => how.extend(["--torn", "4096"]),
        }
        if random.chance(50) {
            how.push("--reorder");
        }
        replay(entry, &how);
        let there = synchronized.iter().take_while(|&&entries| entries <= entry).count() as u64;
        match find_files(&image, dir.path(), there) {
            Ok(()) => found += there,
            Err(why) => panic!("cut before entry {entry} with {how:?}: {why}"),
        }
    }
    println!("{cuts} cuts in {last} entries of the log; {found} files found");
    // With a disk that lies about flushes something must be missed.
    let mut lies = (1..=10).map(|tenth| {
        let entry = first + (last - first) * tenth / 10;
        let (seed, from) = (random.number().to_string(), first.to_string());
        replay(entry, &["--seed", &seed, "--from", &from, "--ignore-flushes"]);
        let there = synchronized.iter().take_while(|&&entries| entries <= entry).count() as u64;
        find_files(&image, dir.path(), there)
    });
    assert!(lies.any(|result| result.is_err()), "ten cuts without flushes, and nothing is missed");
}

/// Recovers a pool, then the file system on its volume; the first so many files must be there.
fn find_files(pool: &Path, dir: &Path, there: u64) -> Result<(), String> {
    try_check_pool(pool)?;
    let volume = dir.join("volume");
    let mut daemon = Config::new(pool, dir).start();
    run("nbdcopy", [&daemon.uri("v"), volume.to_str().unwrap()]);
    daemon.kill();
    {
        let device = Loop::attach(&volume);
        let at = dir.join("mnt");
        fs::create_dir_all(&at).expect("a mount point");
        let mut mount = command("mount");
        mount.arg(device.device()).arg(&at);
        let mounted = finish(mount);
        if !mounted.status.success() {
            return Err(format!("it can't be mounted: {mounted:?}"));
        }
        let mount = Mount::of(&at);
        for number in 0..there {
            let file = fs::read(mount.path().join(recorded::name(number)));
            let file = file.map_err(|error| format!("file {number} of {there}: {error}"))?;
            if file != recorded::content(number) {
                return Err(format!("file {number} of {there} has something else in it"));
            }
        }
    }
    // With its journal replayed there is nothing to repair.
    let mut check = command("e2fsck");
    check.args(["-f", "-n"]).arg(&volume);
    let checked = finish(check);
    if checked.status.success() { Ok(()) } else { Err(format!("e2fsck: {checked:?}")) }
}

/// Where the recording is, or is to be. Without one nothing can be tested, and a line says so.
fn recording(test: &str, needs: &[Need<'_>]) -> Option<PathBuf> {
    let needs = [&[Need::Variable("FLAGSTONE_RECORDING")], needs].concat();
    can_run(test, &needs).then(|| std::env::var_os("FLAGSTONE_RECORDING").expect("set").into())
}

/// What the guest has left.
struct Recorded {
    directory: PathBuf,
    lab: PathBuf,
    ledger: Ledger,
    /// Entries of the log.
    entries: u64,
    /// The entry of the first mark.
    first: u64,
    /// The entries of all marks, in their order.
    marks: Vec<u64>,
}

impl Recorded {
    fn open(test: &str) -> Option<Self> {
        let directory = recording(test, &[Need::Variable("FLAGSTONE_LAB")])?;
        let lab = PathBuf::from(std::env::var_os("FLAGSTONE_LAB").expect("set"));
        let text = fs::read_to_string(directory.join("ledger")).expect("a ledger");
        let ledger = Ledger::from_text(&text).expect("a ledger");
        let mut list = Command::new(&lab);
        list.args(["lab", "replay", "writes.log", "--list"]).current_dir(&directory);
        let list = succeed(list);
        let is_mark = |line: &str| {
            let offset: u64 =
                line.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("offset");
            offset >= POOL
        };
        let marks: Vec<_> = (0..).zip(list.lines()).filter(|(_, line)| is_mark(line)).collect();
        let marks: Vec<_> = marks.into_iter().map(|(index, _)| index).collect();
        assert!(list.contains(" flush\n"), "flushes reach the disk");
        let first = *marks.first().expect("the first mark");
        Some(Self { directory, lab, ledger, entries: list.lines().count() as u64, first, marks })
    }

    /// Makes the image of a cut before `entry`.
    fn replay(&self, image: &Path, entry: u64, how: &[String]) {
        let mut replay = Command::new(&self.lab);
        replay.args([
            "lab",
            "replay",
            "writes.log",
            "--base",
            "base.img",
            "--at",
            &entry.to_string(),
        ]);
        replay.arg("--out").arg(image).args(how).current_dir(&self.directory);
        succeed(replay);
    }

    /// Recovers an image of a cut before `entry`; how many versions of blocks are gone.
    fn check(&self, image: &Path, dir: &Path, entry: u64) -> Result<usize, String> {
        File::options().write(true).open(image).and_then(|file| file.set_len(POOL)).unwrap();
        let marks = self.marks.iter().take_while(|&&mark| mark < entry).count();
        recover(dir, image, &self.ledger, marks as u64)
    }
}
