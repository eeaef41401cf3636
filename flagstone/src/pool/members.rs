//! Which files and devices make up which pool: told by what is on them, not by what they are called.
//!
//! The devices of a pool may be given in any order. One that is not among them is looked for in the directories of those
//! that are, then where it was last, then among the machine's block devices, so that what was renamed is found
//! again. Nothing is waited for that does not answer: a block device may be a volume of this very pool, whose daemon
//! is being started. So a path that leads nowhere, or to a dead device, is no error if a device that was not given was
//! known by it last.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use flagstone_block::{BLOCK_SIZE, BlockIo, DeviceError, Devices};
use flagstone_engine::format::device::Label;
use flagstone_engine::format::superblock::{FLAG_JOINING, SLOTS, Superblock};
use flagstone_engine::identify;
use flagstone_ring::{DeviceOpenError, OpenMode, SyncDevice};

use super::offline::is_same;

/// Files of a directory, and block devices, that are looked at for a device that is missing.
const SEARCH_MAX: usize = 4096;
/// Of them at once.
const AT_ONCE: usize = 128;
/// How long files and block devices that are looked at may take to answer: disks may have to spin up.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where the kernel lists block devices.
const BLOCK_DEVICES: &str = "/sys/class/block";

/// The devices of one pool, as far as they were found.
pub struct Gathered {
    /// Of the device that was given first.
    pub path: PathBuf,
    /// The devices, by their numbers in the pool.
    pub devices: Devices<SyncDevice>,
    /// What those of the pool's devices were called that were not given: they were found otherwise, or
    /// are missing.
    not_given: Vec<Label>,
}

/// A device that was opened.
struct Candidate {
    io: SyncDevice,
    says: Option<Superblock>,
}

/// Opens everything at `paths` and sorts it into pools, in the order in which they are named first.
/// What belongs to none is left out, with a warning, if it was removed from one of them; anything
/// else is a pool of its own, which opening will have its say on.
///
/// # Errors
/// [`DeviceOpenError`].
pub fn gather(paths: &[PathBuf], mode: OpenMode) -> Result<Vec<Gathered>, DeviceOpenError> {
    let mut pools: Vec<(Option<[u8; 16]>, Vec<Candidate>)> = Vec::new();
    let mut unopened = Vec::new();
    for path in paths {
        let mut io = match flagstone_nvme::open(path, mode) {
            Ok(device) => SyncDevice::new(device),
            Err(error) if is_for_certain(&error) => return Err(error),
            Err(error) => {
                unopened.push((path, error));
                continue;
            }
        };
        let says = identify(&mut io).ok();
        let pool = says.map(|says| says.pool_uuid);
        let candidate = Candidate { io, says };
        match pools.iter_mut().find(|(other, _)| pool.is_some() && *other == pool) {
            Some((_, candidates)) => candidates.push(candidate),
            None => pools.push((pool, vec![candidate])),
        }
    }
    let several = pools.iter().any(|(pool, _)| pool.is_some());
    let mut gathered = Vec::new();
    let mut unknown = Vec::new();
    for (pool, candidates) in pools {
        match pool {
            Some(_) => gathered.push(assemble(candidates, mode)?),
            None => unknown.extend(candidates),
        }
    }
    let labels: Vec<Label> = gathered.iter().flat_map(|pool| pool.not_given.clone()).collect();
    let was_one = |path: &Path| labels.contains(&Label::new(&path.display().to_string()));
    for (path, error) in unopened {
        if !was_one(path) {
            return Err(error);
        }
        tracing::warn!(%error, "not used: a device of a pool was called so, and is looked for elsewhere");
    }
    for Candidate { mut io, .. } in unknown {
        let device = io.device().path().display().to_string();
        if several && is_wiped(&mut io) {
            tracing::warn!(device, "not used: it belongs to no pool (any more)");
        } else if was_one(Path::new(&device)) && is_dead(&mut io) {
            tracing::warn!(device, "not used: it can't be read");
        } else {
            gathered.push(alone(io));
        }
    }
    Ok(gathered)
}

/// Whether opening failed for a reason that a device which died or was renamed would not give.
fn is_for_certain(error: &DeviceOpenError) -> bool {
    matches!(
        error,
        DeviceOpenError::PermissionDenied { .. }
            | DeviceOpenError::InUse { .. }
            | DeviceOpenError::WrongType { .. }
            | DeviceOpenError::Unfit { .. }
    )
}

/// The devices of the pool that the one at `path` belongs to.
///
/// # Errors
/// [`DeviceOpenError`].
pub fn gather_one(path: &Path, mode: OpenMode) -> Result<Gathered, DeviceOpenError> {
    let mut io = SyncDevice::new(flagstone_nvme::open(path, mode)?);
    let says = identify(&mut io).ok();
    if says.is_none() { Ok(alone(io)) } else { assemble(vec![Candidate { io, says }], mode) }
}

fn alone(io: SyncDevice) -> Gathered {
    let path = io.device().path().to_owned();
    let mut devices = Devices::default();
    devices.put(0, io);
    Gathered { path, devices, not_given: Vec::new() }
}

/// Puts the devices of one pool in their places, and looks for those that are missing.
fn assemble(mut candidates: Vec<Candidate>, mode: OpenMode) -> Result<Gathered, DeviceOpenError> {
    let said = candidates.iter().filter_map(|candidate| candidate.says);
    let counts = said.filter(|says| says.flags & FLAG_JOINING == 0);
    let Some(newest) = counts.max_by_key(|says| says.generation) else {
        // None of them was added to the end.
        let first = candidates.into_iter().next().expect("a pool has a device");
        return Ok(alone(first.io));
    };
    let path = candidates[0].io.device().path().to_owned();
    let paths: Vec<PathBuf> =
        candidates.iter().map(|candidate| candidate.io.device().path().to_owned()).collect();
    let mut devices: Devices<SyncDevice> = Devices::default();
    let mut says_of: Vec<(PathBuf, Superblock)> = Vec::new();
    // Of copies of one device the newest is it.
    candidates.sort_by_key(|candidate| Reverse(candidate.says.map(|says| says.generation)));
    for Candidate { io, says } in candidates {
        let found = says.and_then(|says| Some((newest.devices.by_uuid(&says.own().uuid)?, says)));
        match found {
            Some((device, says)) if devices.get_mut(device).is_none() => {
                says_of.push((io.device().path().to_owned(), says));
                devices.put(device, io);
            }
            Some(_) => {
                let device = io.device().path().display();
                tracing::warn!(%device, "not used: it is a copy of another device of its pool");
            }
            None => {
                let device = io.device().path().display();
                tracing::warn!(%device, "not used: it does not belong to its pool any more");
            }
        }
    }
    let rows = newest.devices.iter();
    let rows: Vec<_> = rows.filter(|(device, _)| devices.get_mut(*device).is_none()).collect();
    let not_given = rows.iter().map(|(_, row)| row.label).collect();
    let labels: Vec<PathBuf> =
        rows.iter().map(|(_, row)| PathBuf::from(row.label.as_str())).collect();
    let mut busy = None;
    // What lies beside those that were given comes first: it may be a copy of a pool whose devices still are where they were.
    let places: [&dyn Fn() -> Vec<PathBuf>; 3] =
        [&|| beside(&paths, &labels), &|| labels.clone(), &block_devices];
    for place in places {
        let rows = newest.devices.iter();
        let left = rows.filter(|(device, _)| devices.get_mut(*device).is_none());
        let left: Vec<[u8; 16]> = left.map(|(_, row)| row.uuid).collect();
        if left.is_empty() {
            break;
        }
        for found in search(place(), &paths, &newest.pool_uuid, &left) {
            // There may be several names for one, of which only one can be opened.
            let mut io = match flagstone_nvme::open(&found, mode) {
                Ok(device) => SyncDevice::new(device),
                Err(error) => {
                    busy.get_or_insert(error);
                    continue;
                }
            };
            if let Ok(says) = identify(&mut io)
                && let Some(device) = newest.devices.by_uuid(&says.own().uuid)
                && devices.get_mut(device).is_none()
            {
                tracing::info!(device = %found.display(), "found by what is on it");
                says_of.push((found, says));
                devices.put(device, io);
            }
        }
    }
    refuse_stale(&says_of)?;
    let all = newest.devices.iter().all(|(device, _)| devices.get_mut(device).is_some());
    if let Some(error) = busy.filter(|_| !all) {
        return Err(error);
    }
    Ok(Gathered { path, devices, not_given })
}

/// Refuses a device that missed what was done with the others: a copy of it, or one that was away meanwhile. All are told of each
/// change of the pool before the next, so that a crash leaves them one apart at most.
fn refuse_stale(devices: &[(PathBuf, Superblock)]) -> Result<(), DeviceOpenError> {
    let Some((newest_path, newest)) = devices.iter().max_by_key(|(.., says)| says.generation)
    else {
        return Ok(());
    };
    for (path, says) in devices {
        // Nothing more is written to one that failed.
        let row = newest.devices.by_uuid(&says.own().uuid).and_then(|at| newest.devices.get(at));
        let failed = row.is_none_or(|row| row.failed.is_some());
        let joining = says.flags & FLAG_JOINING != 0;
        if !failed && !joining && says.generation + 1 < newest.generation {
            let reason = format!(
                "{} is older than {}, which belongs to the same pool: what was written since is not on it, as on a copy that was made \
                 before; name the device that was used last, or leave it out and open the pool with --degraded-read-only",
                path.display(),
                newest_path.display()
            );
            return Err(DeviceOpenError::Unfit { reason });
        }
    }
    Ok(())
}

/// Every block device of the machine but those that a daemon like this one serves: a volume of the very pool whose daemon
/// is being started would answer only when it has started.
fn block_devices() -> Vec<PathBuf> {
    let listed = std::fs::read_dir(BLOCK_DEVICES).into_iter().flatten().flatten();
    let path = |entry: std::fs::DirEntry| {
        // A slash in a name is written as an exclamation mark there.
        Path::new("/dev").join(entry.file_name().to_string_lossy().replace('!', "/"))
    };
    // Reading the size of one without a medium may take seconds.
    let passed_over = ["/dev/sr", "/dev/ublkb", "/dev/nbd"];
    let is_looked_at = |path: &PathBuf| {
        !passed_over.iter().any(|prefix| path.to_string_lossy().starts_with(prefix))
    };
    let mut paths: Vec<PathBuf> = listed.map(path).filter(is_looked_at).collect();
    paths.sort_unstable();
    paths
}

/// The files beside these; first those that are called like one that is missing: others may be old copies of it.
fn beside(paths: &[PathBuf], labels: &[PathBuf]) -> Vec<PathBuf> {
    let directory = |path: &PathBuf| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let directories: HashSet<PathBuf> = paths.iter().map(directory).collect();
    let is_file = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|meta| meta.is_file());
    let entries = directories.iter().flat_map(std::fs::read_dir).flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_file).collect();
    let is_other =
        |path: &PathBuf| labels.iter().all(|label| label.file_name() != path.file_name());
    files.sort_unstable_by_key(|path| (is_other(path), path.clone()));
    files
}

/// Those of `places` that are missing devices of a pool, given devices of it at `paths`.
///
/// All are looked at at once, each on a thread of its own: one that does not answer is not waited for any longer than the
/// others. It may be a volume of this daemon, at the bottom of something else; the read ends when that is served again.
fn search(
    places: Vec<PathBuf>,
    paths: &[PathBuf],
    pool: &[u8; 16],
    missing: &[[u8; 16]],
) -> Vec<PathBuf> {
    let is_new = |path: &PathBuf| !paths.iter().any(|known| is_same(known, path));
    let is_disk = |path: &PathBuf| {
        let kind = std::fs::metadata(path).map(|meta| meta.file_type());
        kind.is_ok_and(|kind| kind.is_file() || kind.is_block_device())
    };
    let candidates: Vec<PathBuf> =
        places.into_iter().take(SEARCH_MAX).filter(is_disk).filter(is_new).collect();
    let mut found = Vec::new();
    for some in candidates.chunks(AT_ONCE) {
        look_at(some, &mut |path, says| {
            if says.pool_uuid == *pool && missing.contains(&says.own().uuid) {
                found.push((Reverse(says.generation), path));
            }
        });
    }
    // The newest of several copies; then as they were named, whichever answered first.
    found.sort_by_key(|(generation, path)| {
        (*generation, candidates.iter().position(|candidate| candidate == path))
    });
    found.into_iter().map(|(_, path)| path).collect()
}

/// Tells what is on those of these that answer and are a pool's.
fn look_at(paths: &[PathBuf], tell_of: &mut dyn FnMut(PathBuf, Superblock)) {
    let (tell, told) = mpsc::channel();
    let mut left = 0;
    for path in paths {
        let (tell, of) = (tell.clone(), path.clone());
        let look = move || {
            let says = Glance::at(&of).ok().and_then(|mut glance| identify(&mut glance).ok());
            // Nobody listens any more when that took too long.
            let _ = tell.send((of, says));
        };
        left += u32::from(std::thread::Builder::new().spawn(look).is_ok());
    }
    let deadline = Instant::now() + PATIENCE;
    while left > 0 {
        let Ok((path, says)) =
            told.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        else {
            tracing::warn!(left, "looking for devices: not all that there are answer");
            break;
        };
        left -= 1;
        if let Some(says) = says {
            tell_of(path, says);
        }
    }
}

/// A file or device that is only looked at: without a lock, since it is probably none of ours.
struct Glance {
    file: File,
    size: u64,
}

impl Glance {
    fn at(path: &Path) -> std::io::Result<Self> {
        let mut file = File::open(path)?;
        let size = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, size })
    }
}

impl BlockIo for Glance {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        self.file.read_exact_at(into, offset).map_err(|_| DeviceError::OutOfRange { offset })
    }

    fn write_at(&mut self, offset: u64, _: &[u8]) -> Result<(), DeviceError> {
        Err(DeviceError::OutOfRange { offset })
    }

    fn flush(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Whether no place of a superblock can be read.
fn is_dead(io: &mut SyncDevice) -> bool {
    let mut block = [0; BLOCK_SIZE];
    SLOTS.into_iter().flatten().all(|offset| io.read_at(offset, &mut block).is_err())
}

/// Whether every place of a superblock reads as zeroes, as a device's that was removed do.
fn is_wiped(io: &mut SyncDevice) -> bool {
    let mut block = [0; BLOCK_SIZE];
    SLOTS
        .into_iter()
        .flatten()
        .all(|offset| io.read_at(offset, &mut block).is_ok() && block.iter().all(|byte| *byte == 0))
}
