//! The node's face to the control thread: requests with reply channels, plain answers.
//!
//! A [`NodeHandle`] is `Clone + Send + Sync` and may be used from any thread, in or out of an
//! async runtime. Each method sends one [`ControlRequest`] to the reactor thread and waits for
//! its answer; nothing here touches a volume. A request is either performed in full or not at
//! all, and its answer says which; a future dropped half-way does not cancel its request.

mod error;
mod handle;
mod status;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::oneshot;

use super::device_path::NvmePolling;
use super::devices::DeviceChange;
use super::diff::{DiffPage, DiffQuery, DiffTarget};
use super::discard::DeviceDiscard;
use super::scrub::ScrubAction;
use super::ublk::{UblkTarget, UblkVolume};
use super::usage::Usage;
use flagstone_engine::{OnFull, ScrubReport, Shrink, VolumeSettings};
use flagstone_ublk::DeviceInfo;

pub use error::{ControlError, FailedPool, NodeExit};
pub use handle::NodeHandle;
pub(super) use handle::Post;
pub use status::{
    NodeStats, PoolState, PoolStatus, RolledBack, SnapshotStatus, VolumeIo, VolumeStatus, WARNINGS,
};

/// How long writes wait for space unless told otherwise.
pub const FULL_WAIT: Duration = Duration::from_secs(60);

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Pools to open: files or block devices. At least one, at most 64.
    pub pools: Vec<PathBuf>,
    /// Where to listen for NBD on a unix socket. A stale socket is replaced, a live one refused.
    pub nbd_unix: Option<PathBuf>,
    /// Where to listen for NBD over TCP; port 0 lets the system choose.
    pub nbd_tcp: Option<SocketAddr>,
    /// Memory for buffers in bytes; fixed at start, see [`super::limits`] for the least.
    pub memory_bytes: u64,
    /// Memory for the maps of all pools in bytes, each an equal part; `None` for no bound.
    pub map_memory: Option<u64>,
    /// NBD connections at a time, handshakes included; more are turned away at accept.
    pub max_connections: u32,
    /// How long a client may take for each step of choosing an export.
    pub handshake_timeout: Duration,
    /// What a new volume does when its pool is full, unless its maker says otherwise.
    pub on_full: OnFull,
    /// How long writes wait for space, where their volume waits.
    pub full_wait: Duration,
    /// When the space of free segments is given back to the device.
    pub device_discard: DeviceDiscard,
    /// When completions of NVMe commands are polled for.
    pub nvme_polling: NvmePolling,
    /// Connections that are kept for devices of the kernel's NBD client until these are served again.
    pub kernel_nbd_reserve: u32,
    /// A pool with a device missing is opened without it, to be read only; otherwise it is not opened.
    pub degraded: bool,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            pools: Vec::new(),
            nbd_unix: None,
            nbd_tcp: None,
            memory_bytes: 176 << 20,
            map_memory: Some(1 << 30),
            max_connections: 128,
            handshake_timeout: Duration::from_secs(30),
            on_full: OnFull::default(),
            full_wait: FULL_WAIT,
            device_discard: DeviceDiscard::default(),
            nvme_polling: NvmePolling::default(),
            kernel_nbd_reserve: 0,
            degraded: false,
        }
    }
}

/// A device of the kernel's NBD client that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServedNbd {
    /// The N of `/dev/nbdN`.
    pub number: u32,
    /// Of the volume, as [`UblkVolume`] has it.
    pub handle: u64,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Its size.
    pub size_bytes: u64,
    /// Requests of its pool wait for space.
    pub full: bool,
}

/// What is to be changed of a volume's settings, or chosen at its creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SettingsChange {
    /// What becomes of writes when the pool is full.
    pub on_full: Option<OnFull>,
    /// Bytes that no other volume may take, a multiple of 4096 up to the volume's size.
    pub reserved_bytes: Option<u64>,
}

impl SettingsChange {
    /// `settings` with this change.
    #[must_use]
    pub fn applied_to(self, settings: VolumeSettings) -> VolumeSettings {
        VolumeSettings {
            on_full: self.on_full.unwrap_or(settings.on_full),
            reserved: self.reserved_bytes.unwrap_or(settings.reserved),
        }
    }
}

/// A snapshot to be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSnapshot {
    /// Name of the volume.
    pub volume: String,
    /// Name of the snapshot, without the volume's; see [`crate::name::check_name`].
    pub name: String,
    /// Its identity.
    pub uuid: [u8; 16],
}

impl NewSnapshot {
    /// `VOLUME@SNAPSHOT`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}@{}", self.volume, self.name)
    }
}

/// A clone to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewClone {
    /// What it is to have, `VOLUME@SNAPSHOT`. It will be in the same pool.
    pub snapshot: String,
    /// Unique in the node; see [`crate::name::check_name`].
    pub name: String,
    /// Its identity.
    pub uuid: [u8; 16],
    /// Settings that are not the defaults.
    pub settings: SettingsChange,
}

/// A volume to be rolled back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRollback {
    /// What the volume is to have again, `VOLUME@SNAPSHOT`.
    pub snapshot: String,
    /// Name, without the volume's, and identity of a snapshot that keeps what it has now.
    pub keep: Option<(String, [u8; 16])>,
    /// Close the connections that have it open, instead of refusing.
    pub force: bool,
}

/// The channel that a request's answer goes to.
pub type Reply<T> = oneshot::Sender<Result<T, ControlError>>;

/// What the control thread can ask of the reactor.
#[derive(Debug)]
pub enum ControlRequest {
    /// Make a volume. Answered when it is durable; the same request again is answered with the
    /// volume there is.
    CreateVolume {
        /// Unique in the node; see [`crate::name::check_name`].
        name: String,
        /// Bytes, a multiple of 4096.
        size_bytes: u64,
        /// Its identity.
        uuid: [u8; 16],
        /// Where; without it, the pool with the most free space.
        pool: Option<PathBuf>,
        /// Settings that are not the defaults.
        settings: SettingsChange,
        /// The volume.
        reply: Reply<VolumeStatus>,
    },
    /// Delete a volume and its data. Answered when that is durable.
    DeleteVolume {
        /// Which.
        name: String,
        /// Close the connections that have it open, instead of refusing.
        force: bool,
        /// Delete its snapshots as well, instead of refusing.
        snapshots: bool,
        /// The volume as it was.
        reply: Reply<VolumeStatus>,
    },
    /// Change a volume's size. Answered when that is durable. Connected clients see the old size
    /// until they connect again; they may use a larger one at once, and get errors beyond the end
    /// of a smaller one.
    ResizeVolume {
        /// Which.
        name: String,
        /// Bytes, a multiple of 4096.
        size_bytes: u64,
        /// Whether that may be less than now.
        shrink: Shrink,
        /// The volume.
        reply: Reply<VolumeStatus>,
    },
    /// Change a volume's settings. Answered when that is durable.
    SetVolume {
        /// Which.
        name: String,
        /// What is to change.
        change: SettingsChange,
        /// The volume.
        reply: Reply<VolumeStatus>,
    },
    /// The volumes behind one, ordered by name.
    ListVolumes {
        /// Where to go on: the last name of the page before, or nothing.
        after: Option<String>,
        /// How many at most; fewer than these and than [`super::limits::LIST_VOLUMES`] are all that is
        /// left.
        limit: usize,
        /// The volumes.
        reply: Reply<Vec<VolumeStatus>>,
    },
    /// One volume.
    GetVolume {
        /// Which.
        name: String,
        /// The volume.
        reply: Reply<VolumeStatus>,
    },
    /// Take snapshots, all at one instant, all or none. Answered when they are durable.
    TakeSnapshots {
        /// Which; the volumes must be of one pool.
        wanted: Vec<NewSnapshot>,
        /// The snapshots, in the same order.
        reply: Reply<Vec<SnapshotStatus>>,
    },
    /// The snapshots behind one, ordered by name, `VOLUME@SNAPSHOT`.
    ListSnapshots {
        /// Those of this volume only.
        volume: Option<String>,
        /// Where to go on: the last name of the page before, or nothing.
        after: Option<String>,
        /// As in [`ControlRequest::ListVolumes`].
        limit: usize,
        /// The snapshots.
        reply: Reply<Vec<SnapshotStatus>>,
    },
    /// One snapshot.
    GetSnapshot {
        /// Which, `VOLUME@SNAPSHOT`.
        name: String,
        /// The snapshot.
        reply: Reply<SnapshotStatus>,
    },
    /// Delete a snapshot. Answered when that is durable; the space of what only it had comes back
    /// in the background.
    DeleteSnapshot {
        /// Which, `VOLUME@SNAPSHOT`.
        name: String,
        /// Close the connections that have it open, instead of refusing.
        force: bool,
        /// The snapshot as it was.
        reply: Reply<SnapshotStatus>,
    },
    /// Make a volume that has what a snapshot has. Answered when it is durable; the same request again
    /// is answered with the volume there is.
    CloneSnapshot {
        /// What is asked for.
        clone: NewClone,
        /// The volume.
        reply: Reply<VolumeStatus>,
    },
    /// Give a volume the content and size that a snapshot of it has. Answered when that is durable.
    Rollback {
        /// What is asked for.
        rollback: NewRollback,
        /// The volume, and what it was.
        reply: Reply<RolledBack>,
    },
    /// What differs between two volumes or snapshots.
    Diff {
        /// Between which, and where to begin.
        query: DiffQuery,
        /// A page of it.
        reply: Reply<DiffPage>,
    },
    /// What a volume or snapshot has alone.
    Usage {
        /// Which.
        target: DiffTarget,
        /// What it has.
        reply: Reply<Usage>,
    },
    /// All pools, in the order they were given.
    PoolStatus {
        /// The pools.
        reply: Reply<Vec<PoolStatus>>,
    },
    /// Take the new space of a pool's device, which has become larger. Answered when that is
    /// durable; a device that has not is a success that changes nothing.
    GrowPool {
        /// Its path, as given in [`NodeConfig::pools`].
        pool: PathBuf,
        /// The pool.
        reply: Reply<PoolStatus>,
    },
    /// Add, empty or keep a device of a pool.
    ChangeDevices {
        /// Its path, as in [`PoolStatus::path`].
        pool: PathBuf,
        /// What to do.
        change: DeviceChange,
        /// The pool.
        reply: Reply<PoolStatus>,
    },
    /// Begin, show or end a pool's scrub. Answered at once.
    Scrub {
        /// Its path, as given in [`NodeConfig::pools`].
        pool: PathBuf,
        /// What is to be done.
        action: ScrubAction,
        /// The scrub under way or the last one since the start, if any.
        reply: Reply<Option<ScrubReport>>,
    },
    /// Counters.
    Stats {
        /// The counters.
        reply: Reply<NodeStats>,
    },
    /// What a block device of the kernel is to serve.
    UblkVolume {
        /// Which.
        target: UblkTarget,
        /// What is known of it.
        reply: Reply<UblkVolume>,
    },
    /// Begin to serve a block device that was added to the kernel, or is to be recovered.
    ServeUblk {
        /// Of the volume, as [`UblkVolume`] has it.
        handle: u64,
        /// The device.
        device: DeviceInfo,
        /// Answered when its requests are being fetched.
        reply: Reply<()>,
    },
    /// Let go of a block device that the kernel was told to stop.
    LeaveUblk {
        /// Its number.
        number: u32,
        /// Answered when nothing of it is under way, and its character device is closed.
        reply: Reply<()>,
    },
    /// Begin to serve a device of the kernel's NBD client.
    ServeKernelNbd {
        /// Of the volume, as [`UblkVolume`] has it.
        handle: u64,
        /// The N of `/dev/nbdN`.
        number: u32,
        /// The socket that the kernel is to be given.
        reply: Reply<OwnedFd>,
    },
    /// Keep connections for devices of the kernel's NBD client that wait for one, and their volumes.
    AwaitKernelNbd {
        /// The N of `/dev/nbdN`, and the volume as [`UblkVolume`] has it.
        waiting: Vec<(u32, u64)>,
        /// Answered at once.
        reply: Reply<()>,
    },
    /// Which devices of the kernel's NBD client are served.
    ServedKernelNbd {
        /// All of them.
        reply: Reply<Vec<ServedNbd>>,
    },
    /// Tell all requests that wait for space that there is none: a stop can't wait for them.
    EndWaits,
    /// Cut the connection for a device of the kernel's NBD client.
    LeaveKernelNbd {
        /// The N of `/dev/nbdN`.
        number: u32,
        /// Whether nothing of it is under way any more.
        reply: Reply<bool>,
    },
    /// Stop accepting, finish what is under way, make everything durable, end the thread.
    Shutdown,
}
