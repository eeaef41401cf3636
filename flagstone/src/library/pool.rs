//! Pools: opening, closing, and their volumes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flagstone_engine::ScrubReport;
use tokio::sync::Semaphore;

use super::block_on::block_on;
use super::{Diff, Volume};
use crate::node::devices::DeviceChange;
use crate::node::devices::{AddDeviceError, prepare_device};
use crate::node::limits::{LOCAL_REQUESTS, LOCAL_WRITES};
use crate::node::{
    self, ControlError, DeviceDiscard, DiffTarget, FULL_WAIT, LocalSender, NewClone, NewRollback,
    NewSnapshot, NodeConfig, NodeExit, NodeHandle, NvmePolling, PoolStatus, ScrubAction,
    SettingsChange, Shrink, SnapshotStatus, StartError, VolumeStatus,
};
use crate::pool::create::{self, CreateError};

/// How a pool is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Memory for buffers in bytes, fixed while the pool is open.
    pub memory_bytes: u64,
    /// Memory for the map of what lies where, in bytes: 4.6 KiB for every 2 MiB that hold data; what
    /// does not fit is read from the device when it is needed. `None` for no bound.
    pub map_memory: Option<u64>,
    /// How long writes wait for space before they fail, where their volume is set to wait.
    pub full_wait: Duration,
    /// When the space of free segments is given back to the device.
    pub device_discard: DeviceDiscard,
    /// When completions of NVMe commands are polled for.
    pub nvme_polling: NvmePolling,
    /// A pool with a device missing is opened without it, to be read: nothing is written, and what lies
    /// on the missing device is an I/O error. Otherwise it is not opened.
    pub degraded: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            map_memory: Some(1 << 30),
            full_wait: FULL_WAIT,
            device_discard: DeviceDiscard::default(),
            nvme_polling: NvmePolling::default(),
            degraded: false,
        }
    }
}

/// How a pool is made.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// Size of the file in bytes, a multiple of 4096 from 64 MiB; needed if the file does not
    /// exist or is empty, refused for a block device.
    pub size_bytes: Option<u64>,
    /// Segment size in bytes, a power of two from 1 MiB to 64 MiB; `None` for what suits the size.
    pub segment_bytes: Option<u32>,
    /// Allocate and zero the whole file now.
    pub preallocate: bool,
    /// Format even if the target holds something, which is lost.
    pub force: bool,
    /// Further files or block devices that the pool is to consist of.
    pub more_devices: Vec<PathBuf>,
    /// How it is opened then.
    pub open: OpenOptions,
}

/// Why a pool could not be made or opened. Nothing is left running or locked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// It could not be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] StartError),
}

/// An open pool. Clones are the same pool.
///
/// It is locked against every other process, and driven by a thread of its own. It is closed by
/// [`Pool::close`], or when the last clone and the last of its volumes are dropped, which waits
/// until everything is durable; the end of the process loses nothing that was acknowledged.
///
/// Its own methods wait for their answers; don't call them where a future must not block.
///
/// ```
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("pool");
/// use flagstone::{CreateOptions, OpenOptions, Pool};
///
/// let options = CreateOptions { size_bytes: Some(64 << 20), ..CreateOptions::default() };
/// let pool = Pool::create(&path, &options)?;
/// let volume = pool.create_volume("data", 16 << 20)?;
/// volume.write(4096, b"hello")?;
/// volume.flush()?;
/// pool.close()?;
///
/// let pool = Pool::open(&path, &OpenOptions::default())?;
/// let mut hello = [0; 5];
/// pool.volume("data")?.read(4096, &mut hello)?;
/// assert_eq!(&hello, b"hello");
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

/// The node, stopped when nobody needs it any more.
pub(super) struct Inner {
    pub(super) node: NodeHandle,
    pub(super) sender: LocalSender,
    /// As many as the reactor takes at a time, so that its mailbox has room.
    pub(super) permits: Semaphore,
    /// Of those, as many as may be taken for what takes space and may have to wait for it.
    pub(super) writes: Semaphore,
}

impl Inner {
    fn close(&self) -> Result<(), NodeExit> {
        self.node.shutdown();
        let outcome = self.node.join();
        // Somebody else may have been first, and still be waiting.
        block_on(self.node.stopped());
        outcome
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "a pool was not closed cleanly");
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("node", &self.inner.node).finish()
    }
}

impl Pool {
    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Formats a file, made if absent, or a block device, and opens it.
    ///
    /// # Errors
    /// [`PoolError`]. A target that holds anything is refused without
    /// [`CreateOptions::force`], one that is in use always.
    pub fn create(path: impl AsRef<Path>, options: &CreateOptions) -> Result<Self, PoolError> {
        let path = path.as_ref();
        create::create(&create::CreateOptions {
            path: path.to_owned(),
            more: options.more_devices.clone(),
            size_bytes: options.size_bytes,
            segment_bytes: options.segment_bytes,
            preallocate: options.preallocate,
            force: options.force,
            quiet: true,
        })?;
        let paths: Vec<PathBuf> =
            std::iter::once(path.to_owned()).chain(options.more_devices.clone()).collect();
        Self::open_devices(&paths, &options.open)
    }

    /// Opens a pool, recovering it if it was not closed.
    ///
    /// # Errors
    /// [`PoolError::Open`].
    pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self, PoolError> {
        Self::open_devices(&[path.as_ref().to_owned()], options)
    }

    /// As [`Pool::open`], for a pool of several files or devices, in any order. Those that are not
    /// given are looked for beside the others.
    ///
    /// # Errors
    /// [`PoolError::Open`].
    pub fn open_devices(paths: &[PathBuf], options: &OpenOptions) -> Result<Self, PoolError> {
        let config = NodeConfig {
            pools: paths.to_vec(),
            memory_bytes: options.memory_bytes,
            map_memory: options.map_memory,
            full_wait: options.full_wait,
            device_discard: options.device_discard,
            nvme_polling: options.nvme_polling,
            degraded: options.degraded,
            // There is no listener; the ring wants room for one.
            max_connections: 1,
            ..NodeConfig::default()
        };
        let (node, sender) = node::start_local(config)?;
        let permits = Semaphore::new(LOCAL_REQUESTS);
        let writes = Semaphore::new(LOCAL_WRITES);
        Ok(Self { inner: Arc::new(Inner { node, sender, permits, writes }) })
    }

    /// Makes a thin volume of `size_bytes`, a multiple of 4096. It is durable when this returns.
    /// One that exists with this name and size is opened as it is.
    ///
    /// # Errors
    /// [`ControlError`]: the name or size can't be, the name is taken, the pool is full or failed.
    pub fn create_volume(&self, name: &str, size_bytes: u64) -> Result<Volume, ControlError> {
        let uuid = *uuid::Uuid::new_v4().as_bytes();
        let made = self.inner.node.create_volume(name.to_owned(), size_bytes, uuid, None);
        Ok(Volume::new(&self.inner, &block_on(made)?))
    }

    /// As [`Pool::create_volume`], with settings that are not the defaults: what becomes of writes
    /// when the pool is full, and what is reserved for the volume.
    ///
    /// # Errors
    /// [`ControlError`]; also [`ControlError::Unbacked`] if the pool can't reserve so much.
    pub fn create_volume_with(
        &self,
        name: &str,
        size_bytes: u64,
        settings: SettingsChange,
    ) -> Result<Volume, ControlError> {
        let (name, uuid) = (name.to_owned(), *uuid::Uuid::new_v4().as_bytes());
        let made = self.inner.node.create_volume_with(name, size_bytes, uuid, None, settings);
        Ok(Volume::new(&self.inner, &block_on(made)?))
    }

    /// Changes a volume's settings; durable when this returns.
    ///
    /// # Errors
    /// [`ControlError`]: there is no such volume, the pool can't reserve so much or has failed.
    pub fn set_volume(
        &self,
        name: &str,
        change: SettingsChange,
    ) -> Result<VolumeStatus, ControlError> {
        block_on(self.inner.node.set_volume(name.to_owned(), change))
    }

    /// Opens a volume.
    ///
    /// # Errors
    /// [`ControlError::NoSuchVolume`], [`ControlError::Stopping`] if the pool is closed.
    pub fn volume(&self, name: &str) -> Result<Volume, ControlError> {
        let found = block_on(self.inner.node.volume(name.to_owned()))?;
        Ok(Volume::new(&self.inner, &found))
    }

    /// Every volume as it is now, by name.
    ///
    /// # Errors
    /// [`ControlError::Stopping`] if the pool is closed.
    pub fn volumes(&self) -> Result<Vec<VolumeStatus>, ControlError> {
        block_on(self.inner.node.volumes(None, usize::MAX))
    }

    /// Changes a volume's size to `size_bytes`, a multiple of 4096, smaller only as `shrink` allows;
    /// durable when this returns. Handles that are open tell the old size, but a larger one may be
    /// used at once, and beyond the end of a smaller one requests fail with
    /// [`IoError::OutOfRange`](crate::IoError::OutOfRange).
    ///
    /// # Errors
    /// [`ControlError`]: there is none, it must or can't shrink so, the pool is full or failed.
    pub fn resize_volume(
        &self,
        name: &str,
        size_bytes: u64,
        shrink: Shrink,
    ) -> Result<(), ControlError> {
        block_on(self.inner.node.resize_volume(name.to_owned(), size_bytes, shrink)).map(drop)
    }

    /// Deletes a volume and its data; durable when this returns. Requests of handles that are
    /// open fail with [`IoError::VolumeDeleted`](crate::IoError::VolumeDeleted).
    ///
    /// # Errors
    /// [`ControlError`]: there is none, it has snapshots, or the pool has failed.
    pub fn delete_volume(&self, name: &str) -> Result<(), ControlError> {
        block_on(self.inner.node.delete_volume(name.to_owned(), true)).map(drop)
    }

    /// Takes snapshots of volumes, given with the names of their snapshots: all of one instant, all or
    /// none, durable when this returns. No write to any of the volumes lies between two of them, and
    /// nothing is copied. They are called `VOLUME@SNAPSHOT`.
    ///
    /// # Errors
    /// [`ControlError`]: a volume is not there, a snapshot of that name is, there are none or too many to be
    /// one instant (33 with names of up to 55 bytes are not, nor 20 with the longest), or the pool is full, failed or only read.
    pub fn take_snapshots(
        &self,
        wanted: &[(&str, &str)],
    ) -> Result<Vec<SnapshotStatus>, ControlError> {
        let new = |&(volume, name): &(&str, &str)| NewSnapshot {
            volume: volume.to_owned(),
            name: name.to_owned(),
            uuid: *uuid::Uuid::new_v4().as_bytes(),
        };
        block_on(self.inner.node.take_snapshots(wanted.iter().map(new).collect()))
    }

    /// Opens a snapshot, `VOLUME@SNAPSHOT`. It can be read; everything else is
    /// [`IoError::IsSnapshot`](crate::IoError::IsSnapshot).
    ///
    /// # Errors
    /// [`ControlError::NoSuchSnapshot`], [`ControlError::Stopping`] if the pool is closed.
    pub fn snapshot(&self, name: &str) -> Result<Volume, ControlError> {
        let found = block_on(self.inner.node.snapshot(name.to_owned()))?;
        Ok(Volume::of_snapshot(&self.inner, &found))
    }

    /// The snapshots of a volume, or of all, as they are now, by name.
    ///
    /// # Errors
    /// [`ControlError::NoSuchVolume`], [`ControlError::Stopping`] if the pool is closed.
    pub fn snapshots(&self, volume: Option<&str>) -> Result<Vec<SnapshotStatus>, ControlError> {
        block_on(self.inner.node.snapshots(volume.map(str::to_owned), None, usize::MAX))
    }

    /// Deletes a snapshot, `VOLUME@SNAPSHOT`; durable when this returns. The space of what only it had
    /// comes back in the background. Requests of handles that are open fail with
    /// [`IoError::VolumeDeleted`](crate::IoError::VolumeDeleted).
    ///
    /// # Errors
    /// [`ControlError`]: there is none, or the pool has failed.
    pub fn delete_snapshot(&self, name: &str) -> Result<(), ControlError> {
        block_on(self.inner.node.delete_snapshot(name.to_owned(), true)).map(drop)
    }

    /// Makes a volume that has what a snapshot, `VOLUME@SNAPSHOT`, has, and opens it; durable when this
    /// returns. It copies nothing, and takes no longer for a large one.
    ///
    /// # Errors
    /// [`ControlError`]: the snapshot is not there, the name can't be or is taken, or the pool is full or
    /// failed.
    pub fn clone_snapshot(&self, snapshot: &str, name: &str) -> Result<Volume, ControlError> {
        self.clone_snapshot_with(snapshot, name, SettingsChange::default())
    }

    /// As [`Pool::clone_snapshot`], with settings that are not the defaults.
    ///
    /// # Errors
    /// [`ControlError`]; also [`ControlError::Unbacked`] if the pool can't reserve so much.
    pub fn clone_snapshot_with(
        &self,
        snapshot: &str,
        name: &str,
        settings: SettingsChange,
    ) -> Result<Volume, ControlError> {
        let (snapshot, name) = (snapshot.to_owned(), name.to_owned());
        let uuid = *uuid::Uuid::new_v4().as_bytes();
        let clone = NewClone { snapshot, name, uuid, settings };
        let made = block_on(self.inner.node.clone_snapshot(clone))?;
        Ok(Volume::new(&self.inner, &made))
    }

    /// Gives a volume back the content and size that it had when `snapshot`, `VOLUME@SNAPSHOT`, was taken;
    /// durable when this returns. What it has now is kept as its snapshot called `keep`, or given up.
    /// Requests of handles that are open fail with [`IoError::VolumeDeleted`](crate::IoError::VolumeDeleted)
    /// from now on: the one that is returned is the volume.
    ///
    /// # Errors
    /// [`ControlError`]: the snapshot or its volume is not there, the name to keep it under can't be or is
    /// taken, or the pool is full or failed.
    pub fn rollback(&self, snapshot: &str, keep: Option<&str>) -> Result<Volume, ControlError> {
        let keep = keep.map(|name| (name.to_owned(), *uuid::Uuid::new_v4().as_bytes()));
        let wanted = NewRollback { snapshot: snapshot.to_owned(), keep, force: true };
        let done = block_on(self.inner.node.rollback(wanted))?;
        Ok(Volume::new(&self.inner, &done.volume))
    }

    /// As [`Pool::delete_volume`], with all snapshots of the volume. Clones of these stay.
    ///
    /// # Errors
    /// [`ControlError`]: there is none, or the pool has failed.
    pub fn delete_volume_and_snapshots(&self, name: &str) -> Result<(), ControlError> {
        let deleted = self.inner.node.delete_volume_and_snapshots(name.to_owned(), true);
        block_on(deleted).map(drop)
    }

    /// What differs between two volumes or snapshots, of which the latter are called `VOLUME@SNAPSHOT`; with
    /// `older` absent, everything that is mapped. What is wrong with the names the first item says.
    #[must_use]
    pub fn diff(&self, older: Option<&str>, newer: &str) -> Diff {
        let target = |name: &str| DiffTarget::Name(name.to_owned());
        Diff::new(&self.inner, older.map(target), target(newer))
    }

    /// The pool as it is now.
    ///
    /// # Errors
    /// [`ControlError::Stopping`] if the pool is closed.
    pub fn status(&self) -> Result<PoolStatus, ControlError> {
        let pools = block_on(self.inner.node.pools())?;
        pools.into_iter().next().ok_or(ControlError::Stopping)
    }

    /// Takes the new space of the file or device, which has become larger; durable when this
    /// returns. Writes that wait for space go on. Nothing new is a success that changes nothing.
    ///
    /// # Errors
    /// [`ControlError`]: the device became smaller, or the pool has failed.
    pub fn grow(&self) -> Result<PoolStatus, ControlError> {
        block_on(self.inner.node.grow_pool(self.status()?.path))
    }

    /// Uses a further file, made if absent (then `size_bytes` is its size), or block device. It
    /// belongs to the pool when this returns.
    ///
    /// # Errors
    /// [`AddDeviceError`]; a target that holds anything is refused without `force`.
    pub fn add_device(
        &self,
        path: impl AsRef<Path>,
        size_bytes: Option<u64>,
        force: bool,
    ) -> Result<PoolStatus, AddDeviceError> {
        let pool = self.status()?.path;
        let target = prepare_device(path.as_ref(), size_bytes, force)?;
        block_on(self.inner.node.add_device(pool, target))
    }

    /// Begins to empty a device, meant by its path or UUID, and lets go of it when it is empty; see
    /// [`PoolStatus::devices`] for how far that is. Goes on at the next opening.
    ///
    /// # Errors
    /// [`ControlError`]: the others have no room for what is on it, for one.
    pub fn remove_device(&self, device: &str) -> Result<PoolStatus, ControlError> {
        let change = DeviceChange::Remove { device: device.to_owned() };
        block_on(self.inner.node.change_devices(self.status()?.path, change))
    }

    /// Ends the emptying of a device, which is used again.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn keep_device(&self, device: &str) -> Result<PoolStatus, ControlError> {
        let change = DeviceChange::Keep { device: device.to_owned() };
        block_on(self.inner.node.change_devices(self.status()?.path, change))
    }

    /// Begins to verify everything that the pool holds while it serves, reading at most
    /// `rate_bytes_per_second`, or without a bound if that is 0. Damaged metadata is written anew.
    ///
    /// # Errors
    /// [`ControlError`]: one is under way, or the pool has failed.
    pub fn start_scrub(&self, rate_bytes_per_second: u64) -> Result<(), ControlError> {
        self.ask_scrub(ScrubAction::Start { rate: rate_bytes_per_second }).map(drop)
    }

    /// How far the scrub is, or what the last one found; `None` if there was none since the pool
    /// was opened.
    ///
    /// # Errors
    /// [`ControlError::Stopping`] if the pool is closed.
    pub fn scrub(&self) -> Result<Option<ScrubReport>, ControlError> {
        self.ask_scrub(ScrubAction::Show)
    }

    /// Ends the scrub; without one, a success that changes nothing.
    ///
    /// # Errors
    /// [`ControlError::Stopping`] if the pool is closed.
    pub fn cancel_scrub(&self) -> Result<(), ControlError> {
        self.ask_scrub(ScrubAction::Cancel).map(drop)
    }

    fn ask_scrub(&self, action: ScrubAction) -> Result<Option<ScrubReport>, ControlError> {
        block_on(self.inner.node.scrub(self.status()?.path, action))
    }

    /// Finishes what is under way, makes everything durable and closes the pool, for its clones and
    /// volumes as well: they fail with [`IoError::Closed`](crate::IoError::Closed) from then on.
    /// Waits for the end. Closing again is a success that changes nothing, whatever came of the
    /// first time.
    ///
    /// # Errors
    /// [`NodeExit`]: the pool was not closed cleanly. What was flushed is there; the next opening
    /// recovers it.
    pub fn close(&self) -> Result<(), NodeExit> {
        self.inner.close()
    }
}
