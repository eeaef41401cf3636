//! File systems and random file operations on a volume that nbdfuse shows as a file.
//!
//! `FLAGSTONE_FSX_OPS` says how many random operations; `FLAGSTONE_SEED` repeats them;
//! `FLAGSTONE_TRIM_MIB` how much is written, deleted and trimmed.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use flagstone_tests::daemon::{Daemon, check_pool, directory};
use flagstone_tests::filesystem::{Fuse, Loop, Mount};
use flagstone_tests::programs::{Need, can_run, run};
use flagstone_tests::random::Random;
use flagstone_tests::{MIB, knob};
use rustix::fs::FallocateFlags;

const FUSE: [Need<'static>; 3] =
    [Need::Program("nbdfuse"), Need::Program("fusermount3"), Need::Fuse];

/// Random reads, writes, holes and zeroes at any alignment, after each of which the file must be
/// what a copy in memory is; now and then the file is synchronized, opened again, or the daemon
/// killed under it. In the manner of the well-known `fsx`, without what a disk has not: truncation.
#[test]
fn random_operations_on_a_file() {
    const SIZE: u64 = 8 * MIB;
    if !can_run("random_operations_on_a_file", &FUSE) {
        return;
    }
    let operations = knob("FLAGSTONE_FSX_OPS", 4000);
    let mut random = Random::from_environment();
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), 1024 * MIB, SIZE);
    let mut fuse = Fuse::mount(&daemon.uri("v"), &dir.path().join("fuse"));
    let mut file = open(fuse.file());
    let mut model = vec![0; SIZE as usize];
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    let mut unsupported = 0;
    for operation in 0..operations {
        let offset = random.below(SIZE);
        let longest = if random.chance(10) { 300_000 } else { 20_000 };
        let length = (1 + random.below(longest)).min(SIZE - offset);
        // Aligned as often as not.
        let (offset, length) = match random.chance(40) {
            true => (offset & !4095, (length + 4095) & !4095),
            false => (offset, length),
        };
        let length = length.min(SIZE - offset);
        let range = offset as usize..(offset + length) as usize;
        match random.below(100) {
            0..40 => {
                let mut found = vec![0; length as usize];
                file.read_exact_at(&mut found, offset).unwrap();
                let differs = found.iter().zip(&model[range]).position(|(a, b)| a != b);
                assert_eq!(differs, None, "operation {operation}: {length} bytes at {offset}");
            }
            40..80 => {
                random.fill(&mut model[range.clone()]);
                file.write_all_at(&model[range], offset).unwrap();
            }
            80..90 => {
                // nbdfuse makes it a trim, which promises zeroes for whole blocks only.
                let (offset, end) = (offset & !4095, (offset + length) & !4095);
                if offset < end {
                    match rustix::fs::fallocate(&file, punch, offset, end - offset) {
                        Ok(()) => model[offset as usize..end as usize].fill(0),
                        Err(rustix::io::Errno::OPNOTSUPP) => unsupported += 1,
                        Err(error) => panic!("operation {operation}: {error}"),
                    }
                }
            }
            90..97 => match rustix::fs::fallocate(&file, zero, offset, length) {
                Ok(()) => model[range].fill(0),
                Err(rustix::io::Errno::OPNOTSUPP) => unsupported += 1,
                Err(error) => panic!("operation {operation}: {error}"),
            },
            97 => file.sync_all().unwrap(),
            _ => {
                drop(file);
                file = open(fuse.file());
            }
        }
        if operation % 1000 == 999 {
            // What was written has been answered, so it outlives the daemon.
            drop(file);
            drop(fuse);
            daemon.kill();
            daemon.restart();
            fuse = Fuse::mount(&daemon.uri("v"), &dir.path().join("fuse"));
            file = open(fuse.file());
            assert!(fs::read(fuse.file()).unwrap() == model, "after a kill");
        }
    }
    println!("{operations} operations, {unsupported} of them not supported by nbdfuse");
    assert!(fs::read(fuse.file()).unwrap() == model, "at the end");
    drop(file);
    drop(fuse);
    daemon.stop_cleanly();
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[test]
fn ext4() {
    let make = |device: &str| {
        run("mkfs.ext4", ["-q", device]);
    };
    let check = |device: &str| {
        run("e2fsck", ["-f", "-n", device]);
    };
    if can_run("ext4", &[&FUSE[..], &[Need::Program("mkfs.ext4"), Need::Root, Need::Loop]].concat())
    {
        file_system(make, check);
    }
}

#[test]
fn xfs() {
    let make = |device: &str| {
        run("mkfs.xfs", ["-q", device]);
    };
    let check = |device: &str| {
        run("xfs_repair", ["-n", device]);
    };
    if can_run("xfs", &[&FUSE[..], &[Need::Program("mkfs.xfs"), Need::Root, Need::Loop]].concat()) {
        file_system(make, check);
    }
}

/// Copies a tree, removes a part, unmounts, checks, and finds it again after a clean restart of the
/// daemon and after a kill.
fn file_system(make: impl Fn(&str), check: impl Fn(&str)) {
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), 1024 * MIB, 512 * MIB);
    let tree = dir.path().join("tree");
    make_tree(&tree);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    {
        let (_fuse, device) = attach(&daemon, dir.path());
        make(device.device());
        let mount = Mount::new(device.device(), &dir.path().join("mnt"));
        let copy = mount.path().join("copy");
        run("cp", ["-a", &text(&tree), &text(&copy)]);
        // A second copy goes away again: its blocks are written and then free.
        run("cp", ["-a", &text(&tree), &text(&mount.path().join("gone"))]);
        run("sync", ["-f", &text(mount.path())]);
        run("rm", ["-r", &text(&mount.path().join("gone"))]);
        run("fstrim", [&text(mount.path())]);
        run("diff", ["-r", &text(&tree), &text(&copy)]);
        drop(mount);
        check(device.device());
    }
    for kill in [false, true] {
        if kill {
            daemon.kill();
        } else {
            daemon.stop_cleanly();
        }
        daemon.restart();
        let (_fuse, device) = attach(&daemon, dir.path());
        check(device.device());
        let mount = Mount::new(device.device(), &dir.path().join("mnt"));
        let copy = mount.path().join("copy");
        run("diff", ["-r", &text(&tree), &text(&copy)]);
        fs::write(copy.join("more"), vec![b'm'; 100_000]).unwrap();
        fs::write(tree.join("more"), vec![b'm'; 100_000]).unwrap();
    }
}

/// What a file system has deleted and trimmed comes back to the pool: of a file system in use, its
/// usage is what it was, to one percent. `FLAGSTONE_TRIM_MIB` says how much is written and deleted;
/// a quarter of it, or 128 MiB, is there all the time. (The journal of a file system, once written
/// to, is never trimmed: beside an empty one, that is more than one percent.)
#[test]
fn deleted_files_give_their_space_back() {
    let needs = [&FUSE[..], &[Need::Program("mkfs.ext4"), Need::Root, Need::Loop]].concat();
    if !can_run("deleted_files_give_their_space_back", &needs) {
        return;
    }
    let bytes = knob("FLAGSTONE_TRIM_MIB", 64) * MIB;
    let dir = directory();
    let kept = (bytes / 4).max(128 * MIB);
    let size = 2 * bytes + kept + 256 * MIB;
    let mut daemon = Daemon::with_volume(dir.path(), size, size);
    let used = |daemon: &Daemon| {
        let status = daemon.control(&["pool", "status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status.out).unwrap();
        status["pools"][0]["used_bytes"].as_u64().unwrap()
    };
    {
        let (_fuse, device) = attach(&daemon, dir.path());
        run("mkfs.ext4", ["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", device.device()]);
        let mount = Mount::new(device.device(), &dir.path().join("mnt"));
        let at = mount.path().to_str().unwrap().to_owned();
        let mut random = Random::new(11);
        let mut block = vec![0; MIB as usize];
        let mut fill = |name: &str, bytes: u64| {
            let mut file = File::create(mount.path().join(name)).unwrap();
            for _ in 0..bytes / MIB {
                random.fill(&mut block);
                std::io::Write::write_all(&mut file, &block).unwrap();
            }
            file.sync_all().unwrap();
        };
        fill("kept", kept);
        run("sync", ["-f", &at]);
        run("fstrim", [&at]);
        let before = used(&daemon);
        fill("large", bytes);
        run("sync", ["-f", &at]);
        let full = used(&daemon);
        assert!(full >= before + bytes, "{full} bytes, {before} before");
        fs::remove_file(mount.path().join("large")).unwrap();
        run("sync", ["-f", &at]);
        run("fstrim", [&at]);
        run("sync", ["-f", &at]);
        let after = used(&daemon);
        println!("used {before} bytes before, {full} with {bytes} in a file, {after} after fstrim");
        assert!(after.abs_diff(before) <= before / 100, "{after} bytes, {before} before");
    }
    daemon.stop_cleanly();
    check_pool(&dir.path().join("pool"));
}

fn attach(daemon: &Daemon, dir: &Path) -> (Fuse, Loop) {
    let fuse = Fuse::mount(&daemon.uri("v"), &dir.join("fuse"));
    let device = Loop::attach(fuse.file());
    (fuse, device)
}

/// Directories, many small files, a few large ones, a sparse one, links.
fn make_tree(tree: &Path) {
    let mut random = Random::new(5);
    for directory in 0..20 {
        let path = tree.join(format!("directory-{directory}/below"));
        fs::create_dir_all(&path).unwrap();
        for file in 0..40 {
            let mut bytes = vec![0; random.below(9000) as usize];
            random.fill(&mut bytes);
            fs::write(path.join(format!("file-{file}")), bytes).unwrap();
        }
    }
    for file in 0..4 {
        let mut bytes = vec![0; 5_000_000 + random.below(1_000_000) as usize];
        random.fill(&mut bytes);
        fs::write(tree.join(format!("large-{file}")), bytes).unwrap();
    }
    let sparse = File::create(tree.join("sparse")).unwrap();
    sparse.set_len(64 * MIB).unwrap();
    sparse.write_all_at(b"in the middle", 40 * MIB + 17).unwrap();
    std::os::unix::fs::symlink("large-0", tree.join("link")).unwrap();
    fs::hard_link(tree.join("large-1"), tree.join("second-name")).unwrap();
}
