//! Devices that are shorter than the pool on them.
//!
//! The engine refuses such a pool because its layout does not fit. Here the reason is found, for
//! an error that says what happened: somebody truncated a file, copied a part, shrank a partition.

use std::path::{Path, PathBuf};

use flagstone_block::{BLOCK_SIZE, BlockIo, Devices};
use flagstone_engine::OpenError;
use flagstone_engine::format::superblock::{SLOTS, Superblock};
use flagstone_ring::SyncDevice;

use crate::size::Human;

/// The end of a pool is missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} is shorter than the pool in it: it has {device_bytes} bytes ({}), the pool {pool_bytes} \
     ({}). It was truncated, copied only in part, or is a partition or logical volume that has \
     been shrunk. Restore it from a complete copy, or give the partition or volume its size back; \
     nothing was written to it",
    path.display(), Human(*device_bytes), Human(*pool_bytes)
)]
pub struct Truncated {
    /// The file or device.
    pub path: PathBuf,
    /// Its size in bytes.
    pub device_bytes: u64,
    /// The size that the pool was made with, in bytes.
    pub pool_bytes: u64,
}

impl Truncated {
    /// Whether this is why the pool on these devices could not be opened.
    pub fn behind(error: &OpenError, devices: &mut Devices<SyncDevice>) -> Option<Self> {
        let each = devices.0.iter_mut().flatten();
        each.into_iter().find_map(|io| {
            let path = io.device().path().to_owned();
            Self::of_device(error, io, &path)
        })
    }

    /// Whether the end of this device is missing.
    fn of_device(error: &OpenError, io: &mut dyn BlockIo, path: &Path) -> Option<Self> {
        if !matches!(error, OpenError::Geometry(_)) {
            return None;
        }
        let device_bytes = io.size();
        let newest = superblocks(io).max_by_key(|superblock| superblock.generation)?;
        let pool_bytes = newest.own().bytes;
        let path = path.to_owned();
        (device_bytes < pool_bytes).then_some(Self { path, device_bytes, pool_bytes })
    }
}

/// The valid superblocks at the front, which a truncation leaves.
fn superblocks(io: &mut dyn BlockIo) -> impl Iterator<Item = Superblock> {
    SLOTS.into_iter().flatten().filter_map(move |position| {
        let mut block = [0; BLOCK_SIZE];
        // Out of range is as good as damaged: there is no superblock.
        io.read_at(position, &mut block).ok()?;
        Superblock::decode(position, &block).ok()
    })
}
