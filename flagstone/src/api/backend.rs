//! What the API server asks of the daemon. The server knows no more than this, so that its
//! behaviour can be tested without pools.

use std::future::Future;
use std::pin::Pin;

use super::clones::{CreateClone, RolledBack};
use super::devices::{AddDevice, DeviceAction};
use super::diff::{DiffPage, DiffQuery};
use super::errors::ApiError;
use super::kernel_nbd::{AttachNbd, NbdAttached};
use super::scrub::Scrub;
use super::snapshots::{NewSnapshot, SnapshotInfo};
use super::types::{CreateVolume, Pool, Volume};
use super::ublk::{AttachVolume, Attached};
use super::usage::Usage;
use crate::node::{NodeStats, ScrubAction, SettingsChange, Shrink};

/// An answer to come.
pub type Reply<T> = Pin<Box<dyn Future<Output = Result<T, ApiError>> + Send>>;

/// How a creation went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// The volume is new.
    New(Volume),
    /// There was a volume of that name already, and nothing was changed.
    Existing(Volume),
}

/// Everything that can be observed, at one moment or nearly.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// In the order they were given to the daemon.
    pub pools: Vec<Pool>,
    /// The first ones, by name: as many as were asked for.
    pub volumes: Vec<Volume>,
    /// Of the whole daemon.
    pub stats: NodeStats,
}

impl Snapshot {
    /// How many volumes there are in all.
    #[must_use]
    pub fn volume_count(&self) -> u64 {
        self.pools.iter().map(|pool| u64::from(pool.volumes)).sum()
    }
}

/// The daemon, as the API sees it. Names and sizes have been checked by the caller.
pub trait Backend: Send + Sync + 'static {
    /// Everything that can be observed now, with `volumes` volumes at most.
    fn snapshot(&self, volumes: usize) -> Reply<Snapshot>;

    /// `limit` volumes at most, by name, behind the one called `after`, which need not be there.
    fn volumes(&self, after: Option<String>, limit: usize) -> Reply<Vec<Volume>>;

    /// One volume.
    fn volume(&self, name: String) -> Reply<Volume>;

    /// Makes a volume; durable when answered. An existing one of that name is returned as it is.
    fn create_volume(&self, request: CreateVolume) -> Reply<Created>;

    /// Changes a volume's size; durable when answered. The same size again is a success.
    fn resize_volume(&self, name: String, size_bytes: u64, shrink: Shrink) -> Reply<Volume>;

    /// Changes a volume's settings; durable when answered. The same again is a success.
    fn set_volume(&self, name: String, change: SettingsChange) -> Reply<Volume>;

    /// Deletes a volume, with its `snapshots` or if it has none; durable when answered. With `force` its
    /// clients are disconnected.
    fn delete_volume(&self, name: String, force: bool, snapshots: bool) -> Reply<()>;

    /// Takes snapshots, all of one instant, all or none; durable when answered.
    fn take_snapshots(&self, wanted: Vec<NewSnapshot>) -> Reply<Vec<SnapshotInfo>>;

    /// `limit` snapshots at most, of one volume or of all, by name, behind the one called `after`,
    /// which need not be there.
    fn snapshots(
        &self,
        volume: Option<String>,
        after: Option<String>,
        limit: usize,
    ) -> Reply<Vec<SnapshotInfo>>;

    /// One snapshot, by its name with the volume's.
    fn one_snapshot(&self, name: String) -> Reply<SnapshotInfo>;

    /// Deletes a snapshot; durable when answered. With `force` its clients are disconnected.
    fn delete_snapshot(&self, name: String, force: bool) -> Reply<()>;

    /// Makes a volume that has what a snapshot has; durable when answered. An existing one of that name
    /// that was cloned from the snapshot is returned as it is.
    fn create_clone(&self, request: CreateClone) -> Reply<Created>;

    /// Rolls the volume of a snapshot, meant by its name with the volume's, back to it; durable when
    /// answered. What it was is kept as a snapshot called `keep`. With `force` its clients are disconnected.
    fn rollback(&self, snapshot: String, keep: Option<String>, force: bool) -> Reply<RolledBack>;

    /// What differs between two volumes or snapshots: one page of it.
    fn diff(&self, query: DiffQuery) -> Reply<DiffPage>;

    /// What a volume or snapshot has alone.
    fn usage(&self, name: String) -> Reply<Usage>;

    /// Takes the new space of a pool's device; durable when answered. `pool` is its UUID or path.
    fn grow_pool(&self, pool: String) -> Reply<Pool>;

    /// Adds a device to a pool, meant by its path or UUID; durable when answered.
    fn add_device(&self, pool: String, request: AddDevice) -> Reply<Pool>;

    /// Empties a device of a pool, or keeps it after all; decided for good when answered.
    fn change_device(&self, pool: String, device: String, action: DeviceAction) -> Reply<Pool>;

    /// Begins, shows or ends the scrub of a pool, meant by its path or UUID.
    fn scrub(&self, pool: String, action: ScrubAction) -> Reply<Scrub>;

    /// Attaches a volume or snapshot as a block device; the flag says whether it is new.
    fn attach(&self, request: AttachVolume) -> Reply<(Attached, bool)>;

    /// Takes the block device of a volume or snapshot away; with `force` even if it is in use.
    fn detach(&self, name: String, force: bool) -> Reply<()>;

    /// The block devices that Flagstone has made on this machine.
    fn attached(&self) -> Reply<Vec<Attached>>;

    /// Attaches a volume or snapshot to the kernel's NBD client, unless it is already: whether it is new.
    fn attach_nbd(&self, request: AttachNbd) -> Reply<(NbdAttached, bool)>;

    /// Takes its device away; with `force` while it is in use, too.
    fn detach_nbd(&self, name: String, force: bool) -> Reply<()>;

    /// The devices of the kernel's NBD client that Flagstone has made on this machine.
    fn attached_nbd(&self) -> Reply<Vec<NbdAttached>>;

    /// URIs of the NBD server itself.
    fn server_uris(&self) -> Vec<String>;
}
