//! Which files and devices make up which pool: told by what is on them, not by what they are called.
//!
//! The devices of a pool may be given in any order. One that is not among them is looked for in the
//! directories of those that are, so that a file that was renamed is found again.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use flagstone_block::{BLOCK_SIZE, BlockIo, DeviceError, Devices};
use flagstone_engine::format::superblock::{FLAG_JOINING, SLOTS, Superblock};
use flagstone_engine::identify;
use flagstone_ring::{Device, DeviceOpenError, OpenMode, SyncDevice};

use super::offline::is_same;

/// Files of a directory that are looked at for a device that is missing.
const SEARCH_MAX: usize = 4096;

/// The devices of one pool, as far as they were found.
pub struct Gathered {
    /// Of the device that was given first.
    pub path: PathBuf,
    /// The devices, by their numbers in the pool.
    pub devices: Devices<SyncDevice>,
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
    for path in paths {
        let mut io = SyncDevice::new(Device::open(path, mode)?);
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
    for (pool, candidates) in pools {
        if pool.is_some() {
            gathered.push(assemble(candidates, mode)?);
            continue;
        }
        for Candidate { mut io, .. } in candidates {
            let path = io.device().path().to_owned();
            if several && is_wiped(&mut io) {
                tracing::warn!(device = %path.display(), "not used: it belongs to no pool (any more)");
                continue;
            }
            gathered.push(alone(io));
        }
    }
    Ok(gathered)
}

/// The devices of the pool that the one at `path` belongs to.
///
/// # Errors
/// [`DeviceOpenError`].
pub fn gather_one(path: &Path, mode: OpenMode) -> Result<Gathered, DeviceOpenError> {
    let mut io = SyncDevice::new(Device::open(path, mode)?);
    let says = identify(&mut io).ok();
    if says.is_none() { Ok(alone(io)) } else { assemble(vec![Candidate { io, says }], mode) }
}

fn alone(io: SyncDevice) -> Gathered {
    let path = io.device().path().to_owned();
    let mut devices = Devices::default();
    devices.put(0, io);
    Gathered { path, devices }
}

/// Puts the devices of one pool in their places, and looks for those that are missing.
fn assemble(candidates: Vec<Candidate>, mode: OpenMode) -> Result<Gathered, DeviceOpenError> {
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
    for Candidate { io, says } in candidates {
        let own = says.map(|says| says.own().uuid);
        match own.and_then(|uuid| newest.devices.by_uuid(&uuid)) {
            Some(device) if devices.get_mut(device).is_none() => devices.put(device, io),
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
    let missing: Vec<[u8; 16]> = newest
        .devices
        .iter()
        .filter(|(device, _)| devices.get_mut(*device).is_none())
        .map(|(_, row)| row.uuid)
        .collect();
    if !missing.is_empty() {
        for found in search(&paths, &newest.pool_uuid, &missing) {
            let mut io = SyncDevice::new(Device::open(&found, mode)?);
            let own = identify(&mut io).ok().map(|says| says.own().uuid);
            if let Some(device) = own.and_then(|uuid| newest.devices.by_uuid(&uuid)) {
                tracing::info!(device = %found.display(), "found by what is on it");
                devices.put(device, io);
            }
        }
    }
    Ok(Gathered { path, devices })
}

/// Looks for devices of a pool among the files beside those that are known.
fn search(paths: &[PathBuf], pool: &[u8; 16], missing: &[[u8; 16]]) -> Vec<PathBuf> {
    let mut found: Vec<([u8; 16], PathBuf)> = Vec::new();
    let directory = |path: &PathBuf| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let directories: HashSet<PathBuf> = paths.iter().map(directory).collect();
    for directory in directories {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.take(SEARCH_MAX).flatten() {
            let path = entry.path();
            let is_file = std::fs::metadata(&path).is_ok_and(|meta| meta.is_file());
            if !is_file || paths.iter().any(|known| is_same(known, &path)) {
                continue;
            }
            let Ok(file) = File::open(&path) else { continue };
            let Ok(says) = identify(&mut Glance(file)) else { continue };
            let uuid = says.own().uuid;
            let is_new = found.iter().all(|(other, _)| *other != uuid);
            if says.pool_uuid == *pool && missing.contains(&uuid) && is_new {
                found.push((uuid, path));
            }
        }
    }
    found.into_iter().map(|(_, path)| path).collect()
}

/// A file that is only looked at: without a lock, since it is probably none of ours.
struct Glance(File);

impl BlockIo for Glance {
    fn size(&self) -> u64 {
        self.0.metadata().map_or(0, |meta| meta.len())
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        self.0.read_exact_at(into, offset).map_err(|_| DeviceError::OutOfRange { offset })
    }

    fn write_at(&mut self, offset: u64, _: &[u8]) -> Result<(), DeviceError> {
        Err(DeviceError::OutOfRange { offset })
    }

    fn flush(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Whether every place of a superblock reads as zeroes, as a device's that was removed do.
fn is_wiped(io: &mut SyncDevice) -> bool {
    let mut block = [0; BLOCK_SIZE];
    SLOTS
        .into_iter()
        .flatten()
        .all(|offset| io.read_at(offset, &mut block).is_ok() && block.iter().all(|byte| *byte == 0))
}
