//! The node's face to the control thread: requests with reply channels, plain answers.
//!
//! A [`NodeHandle`] is `Clone + Send + Sync` and may be used from any thread, in or out of an
//! async runtime. Each method sends one [`ControlRequest`] to the reactor thread and waits for
//! its answer; nothing here touches a volume. A request is either performed in full or not at
//! all, and its answer says which; a future dropped half-way does not cancel its request.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::discard::DeviceDiscard;
use super::files::PoolFile;
use super::limits::LIST_VOLUMES;
use super::scrub::ScrubAction;
use flagstone_engine::{OnFull, ScrubReport, Shrink, VolumeSettings};

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
    /// How long a client may take to choose an export.
    pub handshake_timeout: Duration,
    /// What a new volume does when its pool is full, unless its maker says otherwise.
    pub on_full: OnFull,
    /// How long writes wait for space, where their volume waits.
    pub full_wait: Duration,
    /// When the space of free segments is given back to the device.
    pub device_discard: DeviceDiscard,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            pools: Vec::new(),
            nbd_unix: None,
            nbd_tcp: None,
            memory_bytes: 256 << 20,
            map_memory: Some(1 << 30),
            max_connections: 128,
            handshake_timeout: Duration::from_secs(30),
            on_full: OnFull::default(),
            full_wait: FULL_WAIT,
            device_discard: DeviceDiscard::default(),
        }
    }
}

/// One volume as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeStatus {
    /// Its name, which is also its export's; unique in the node.
    pub name: String,
    /// Its identity for ever.
    pub uuid: [u8; 16],
    /// The path of its pool, as given in [`NodeConfig::pools`].
    pub pool: PathBuf,
    /// Bytes, as clients see it.
    pub size_bytes: u64,
    /// Bytes of it that hold data.
    pub mapped_bytes: u64,
    /// Those that it shares with no other volume: all of them, as long as there are no snapshots.
    pub exclusive_bytes: u64,
    /// Bytes of zeroes whose space it keeps.
    pub kept_bytes: u64,
    /// What its owner has set.
    pub settings: VolumeSettings,
    /// NBD connections that have it open.
    pub connections: u32,
    /// Where it can be reached; NBD URIs.
    pub uris: Vec<String>,
    /// What [`super::local::LocalRequest`] calls it; never that of another volume.
    pub(crate) handle: u64,
}

/// Whether a pool serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolState {
    /// It serves.
    Running,
    /// A device error poisoned it: everything fails until it is opened again.
    Failed {
        /// What happened.
        reason: String,
    },
}

/// Percent of its capacity from which a pool is told to be full.
pub const WARNINGS: [u32; 3] = [75, 85, 93];

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

/// One pool as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// As given in [`NodeConfig::pools`].
    pub path: PathBuf,
    /// Its identity for ever.
    pub uuid: [u8; 16],
    /// Whether it serves.
    pub state: PoolState,
    /// Bytes of the device.
    pub device_bytes: u64,
    /// Bytes that volumes can use in all.
    pub capacity_bytes: u64,
    /// Bytes that volumes occupy.
    pub used_bytes: u64,
    /// Bytes that can be written now by volumes without a reservation.
    pub free_bytes: u64,
    /// Bytes that reservations hold back beyond what their volumes occupy.
    pub reserved_bytes: u64,
    /// Bytes that are dead but not reclaimed yet: the cleaner's debt.
    pub debt_bytes: u64,
    /// Bytes logged since the last checkpoint: what opening after a crash replays.
    pub log_debt_bytes: u64,
    /// Checkpoints since the pool was opened.
    pub checkpoints: u64,
    /// Memory that the map takes.
    pub map_bytes: u64,
    /// The highest of the [`WARNINGS`] that the pool has reached, in percent of its capacity.
    pub warning_percent: Option<u32>,
    /// Requests that wait for space.
    pub waiting: u32,
    /// Sum of the volumes' sizes, which may exceed the capacity.
    pub provisioned_bytes: u64,
    /// Number of volumes.
    pub volumes: u32,
    /// The device is driven past the page cache (`O_DIRECT`).
    pub direct_io: bool,
    /// Segments, and how many of them are free.
    pub segments: u32,
    /// See `segments`.
    pub segments_free: u32,
    /// Bytes written for clients since the pool was opened.
    pub written_bytes: u64,
    /// Bytes that the cleaner wrote again since then.
    pub moved_bytes: u64,
    /// Bytes that were written again in sequence since then because they had been scanned.
    pub rewritten_bytes: u64,
    /// Scrubs that came to their end since then.
    pub scrubs: u64,
    /// Bytes that scrubs have read since then.
    pub scrub_read_bytes: u64,
    /// Damaged blocks, of data and metadata, that they found.
    pub scrub_findings: u64,
    /// Damaged metadata that was written anew.
    pub scrub_repairs: u64,
    /// Bytes of free segments that were discarded on the device.
    pub discarded_bytes: u64,
    /// What is live in each segment is still being counted, after the opening: nothing that is dead
    /// is given back before.
    pub counting: bool,
    /// A part of the map can't be read: its blocks are I/O errors, and nothing that is dead is given
    /// back, until the pool is opened again.
    pub map_damaged: bool,
}

/// What the node has done since it started. All counters only rise, except those called `_now`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeStats {
    /// Nanoseconds since the start.
    pub uptime_ns: u64,
    /// Connections that are open.
    pub connections_now: u32,
    /// Connections that were accepted.
    pub connections_accepted: u64,
    /// Connections that were turned away because there were too many.
    pub connections_refused: u64,
    /// Connections that were dropped for a violation of the protocol or the deadline.
    pub connections_dropped: u64,
    /// Requests that have no reply yet.
    pub requests_now: u32,
    /// READ requests answered.
    pub reads: u64,
    /// WRITE requests answered.
    pub writes: u64,
    /// FLUSH requests answered.
    pub flushes: u64,
    /// TRIM and WRITE_ZEROES requests answered.
    pub zeroes: u64,
    /// Other requests answered.
    pub others: u64,
    /// Requests answered with an error, of any kind.
    pub errors: u64,
    /// Bytes sent as data of READs.
    pub read_bytes: u64,
    /// Bytes taken as data of WRITEs.
    pub written_bytes: u64,
    /// Bytes of the buffer arena that are in use.
    pub buffer_bytes_now: u64,
    /// Bytes of the buffer arena in all.
    pub buffer_bytes_total: u64,
    /// Device reads submitted, all pools.
    pub device_reads: u64,
    /// Device writes submitted, all pools.
    pub device_writes: u64,
    /// Device flushes submitted, all pools.
    pub device_flushes: u64,
    /// Calls of `io_uring_enter`.
    pub ring_enters: u64,
}

/// Why a control request was refused. Nothing has changed, except where it says so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// No volume of that name.
    #[error("there is no volume {name:?}")]
    NoSuchVolume {
        /// The name asked for.
        name: String,
    },
    /// No pool at that path.
    #[error("there is no pool at {}", path.display())]
    NoSuchPool {
        /// The path asked for.
        path: PathBuf,
    },
    /// A volume of that name exists already, with another size or identity.
    #[error("there is a volume {name:?} already")]
    NameTaken {
        /// The name asked for.
        name: String,
    },
    /// Not a name that a volume can have.
    #[error("{name:?} can't be a volume's name")]
    BadName {
        /// The name asked for.
        name: String,
    },
    /// Not a size that a volume can have: zero, too large, or not a multiple of 4096.
    #[error(
        "{size_bytes} bytes can't be a volume's size: it must be a multiple of 4096, from 4096 to {max_bytes}"
    )]
    BadSize {
        /// The size asked for.
        size_bytes: u64,
        /// The largest there can be.
        max_bytes: u64,
    },
    /// The size is smaller than the volume's, and it was not to be shrunk.
    #[error(
        "{size_bytes} bytes is less than the volume's {current_bytes}, and a volume shrinks only when \
         forced to"
    )]
    Shrink {
        /// The size asked for.
        size_bytes: u64,
        /// The size it has.
        current_bytes: u64,
    },
    /// The volume holds data beyond the size that it was to be shrunk to.
    #[error("the volume holds {bytes} bytes beyond {size_bytes}")]
    ShrinkHasData {
        /// How many: data, and zeroes whose space is kept.
        bytes: u64,
        /// The size asked for.
        size_bytes: u64,
    },
    /// More is reserved for the volume than the size that it was to be shrunk to.
    #[error("more than {size_bytes} bytes are reserved for the volume")]
    ShrinkReserved {
        /// The size asked for.
        size_bytes: u64,
    },
    /// A volume can't be shrunk, because the map of what is to be cut off is damaged. A part of it may
    /// have been discarded.
    #[error("what says where block {lba} of the volume lies is damaged")]
    ShrinkDamaged {
        /// The first block that the damage is about.
        lba: u64,
    },
    /// Not a reservation that the volume can have.
    #[error(
        "{reserved_bytes} bytes can't be reserved for a volume of {size_bytes}: a reservation is a \
         multiple of 4096 up to the volume's size"
    )]
    BadReservation {
        /// The reservation asked for.
        reserved_bytes: u64,
        /// The volume's size.
        size_bytes: u64,
    },
    /// The pool can't give one volume so much.
    #[error("the pool can't reserve that: it can back {available_bytes} bytes for the volume")]
    Unbacked {
        /// Largest reservation that the volume could have now.
        available_bytes: u64,
    },
    /// Clients have it open.
    #[error("{connections} clients have the volume open")]
    InUse {
        /// How many connections.
        connections: u32,
    },
    /// The pool has no space for it.
    #[error("the pool is full")]
    NoSpace,
    /// As many volumes as a pool can hold.
    #[error("the pool has as many volumes as it can hold")]
    TooManyVolumes,
    /// The pool's device failed. A change that was under way may or may not have happened.
    #[error("the pool's device has failed; see the log")]
    PoolFailed,
    /// The pool's device has a size that no pool can have.
    #[error(
        "the device is smaller than the pool, or too large for it: a pool of up to 8 TiB can't \
         grow beyond that"
    )]
    DeviceSize,
    /// A scrub of the pool is under way.
    #[error("a scrub of the pool is under way already")]
    Scrubbing,
    /// More control requests than the node takes at a time.
    #[error("too many control requests are waiting; try again")]
    Overloaded,
    /// The node is stopping or has stopped. A change under way may or may not have happened.
    #[error("the node is stopping")]
    Stopping,
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
    /// Stop accepting, finish what is under way, make everything durable, end the thread.
    Shutdown,
}

/// A pool whose device failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedPool {
    /// As given in [`NodeConfig::pools`].
    pub path: PathBuf,
    /// What the device said.
    pub reason: String,
}

fn list(pools: &[FailedPool]) -> String {
    let sentence = |pool: &FailedPool| {
        format!("the pool {} has failed and was not closed: {}", pool.path.display(), pool.reason)
    };
    pools.iter().map(sentence).collect::<Vec<_>>().join("; ")
}

/// Why a running node ended badly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeExit {
    /// Devices failed, while serving or at the stop; the next opening recovers their pools.
    #[error(
        "{}; everything that was flushed before is there: when the device is well again, the next \
         start recovers the pool",
        list(pools)
    )]
    FailedPools {
        /// Which; at least one.
        pools: Vec<FailedPool>,
    },
    /// The reactor can't go on.
    #[error("the reactor failed: {reason}")]
    Reactor {
        /// What happened.
        reason: String,
    },
    /// The reactor thread panicked: a bug.
    #[error("the reactor thread panicked")]
    Panicked,
}

/// What the reactor does not share with the handle but the handle needs.
pub(super) type Post =
    Arc<dyn Fn(ControlRequest) -> Result<(), (ControlError, Box<ControlRequest>)> + Send + Sync>;

/// The reactor thread, until somebody has waited for its end.
pub(super) type Thread = Arc<Mutex<Option<JoinHandle<Result<(), NodeExit>>>>>;

/// A running node. Dropping all handles does not stop it; [`NodeHandle::shutdown`] does.
#[derive(Clone)]
pub struct NodeHandle {
    pub(super) post: Post,
    pub(super) thread: Thread,
    pub(super) stopped: watch::Receiver<bool>,
    pub(super) nbd_tcp: Option<SocketAddr>,
    pub(super) files: Arc<[PoolFile]>,
}

impl fmt::Debug for NodeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeHandle").field("nbd_tcp", &self.nbd_tcp).finish_non_exhaustive()
    }
}

impl NodeHandle {
    /// Sends any request. [`ControlError::Stopping`] and [`ControlError::Overloaded`] are the only
    /// refusals; the others come through the request's reply channel.
    ///
    /// # Errors
    /// The request was not taken.
    pub fn send(&self, request: ControlRequest) -> Result<(), ControlError> {
        (self.post)(request).map_err(|(error, _)| error)
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(Reply<T>) -> ControlRequest,
    ) -> Result<T, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.send(request(reply))?;
        // A dropped reply channel means that the reactor ended first.
        answer.await.unwrap_or(Err(ControlError::Stopping))
    }

    /// See [`ControlRequest::CreateVolume`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn create_volume(
        &self,
        name: String,
        size_bytes: u64,
        uuid: [u8; 16],
        pool: Option<PathBuf>,
    ) -> Result<VolumeStatus, ControlError> {
        self.create_volume_with(name, size_bytes, uuid, pool, SettingsChange::default()).await
    }

    /// See [`ControlRequest::CreateVolume`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn create_volume_with(
        &self,
        name: String,
        size_bytes: u64,
        uuid: [u8; 16],
        pool: Option<PathBuf>,
        settings: SettingsChange,
    ) -> Result<VolumeStatus, ControlError> {
        let request =
            |reply| ControlRequest::CreateVolume { name, size_bytes, uuid, pool, settings, reply };
        self.ask(request).await
    }

    /// See [`ControlRequest::SetVolume`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn set_volume(
        &self,
        name: String,
        change: SettingsChange,
    ) -> Result<VolumeStatus, ControlError> {
        self.ask(|reply| ControlRequest::SetVolume { name, change, reply }).await
    }

    /// See [`ControlRequest::DeleteVolume`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn delete_volume(
        &self,
        name: String,
        force: bool,
    ) -> Result<VolumeStatus, ControlError> {
        self.ask(|reply| ControlRequest::DeleteVolume { name, force, reply }).await
    }

    /// See [`ControlRequest::ResizeVolume`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn resize_volume(
        &self,
        name: String,
        size_bytes: u64,
        shrink: Shrink,
    ) -> Result<VolumeStatus, ControlError> {
        self.ask(|reply| ControlRequest::ResizeVolume { name, size_bytes, shrink, reply }).await
    }

    /// See [`ControlRequest::ListVolumes`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn volumes(
        &self,
        mut after: Option<String>,
        limit: usize,
    ) -> Result<Vec<VolumeStatus>, ControlError> {
        let mut volumes = Vec::new();
        loop {
            // The reactor is asked for a few at a time, so that clients' requests come in between.
            let part = (limit - volumes.len()).min(LIST_VOLUMES);
            let from = after.take();
            let page = |reply| ControlRequest::ListVolumes { after: from, limit: part, reply };
            let page = self.ask(page).await?;
            let is_last = page.len() < part;
            volumes.extend(page);
            if is_last || volumes.len() == limit {
                return Ok(volumes);
            }
            after = volumes.last().map(|volume| volume.name.clone());
        }
    }

    /// See [`ControlRequest::GetVolume`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn volume(&self, name: String) -> Result<VolumeStatus, ControlError> {
        self.ask(|reply| ControlRequest::GetVolume { name, reply }).await
    }

    /// See [`ControlRequest::PoolStatus`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn pools(&self) -> Result<Vec<PoolStatus>, ControlError> {
        self.ask(|reply| ControlRequest::PoolStatus { reply }).await
    }

    /// See [`ControlRequest::GrowPool`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn grow_pool(&self, pool: PathBuf) -> Result<PoolStatus, ControlError> {
        self.ask(|reply| ControlRequest::GrowPool { pool, reply }).await
    }

    /// See [`ControlRequest::Scrub`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn scrub(
        &self,
        pool: PathBuf,
        action: ScrubAction,
    ) -> Result<Option<ScrubReport>, ControlError> {
        self.ask(|reply| ControlRequest::Scrub { pool, action, reply }).await
    }

    /// See [`ControlRequest::Stats`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn stats(&self) -> Result<NodeStats, ControlError> {
        self.ask(|reply| ControlRequest::Stats { reply }).await
    }

    /// The address that the NBD server really listens at, if it does over TCP.
    #[must_use]
    pub const fn nbd_tcp(&self) -> Option<SocketAddr> {
        self.nbd_tcp
    }

    /// The pools whose files have been deleted while they are served, as given in
    /// [`NodeConfig::pools`]: their data will be gone when the node ends. Asks the file system.
    pub fn deleted_pools(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().filter(|file| file.is_deleted()).map(PoolFile::path)
    }

    /// Begins the clean stop. Asking again changes nothing; a node that has ended is fine too.
    pub fn shutdown(&self) {
        // Each attempt fails only while the mailbox is full, which the reactor is emptying.
        let mut request = ControlRequest::Shutdown;
        while let Err((ControlError::Overloaded, back)) = (self.post)(request) {
            request = *back;
            std::thread::yield_now();
        }
    }

    /// Completes when the reactor thread has ended, for whatever reason.
    pub async fn stopped(&self) {
        let mut stopped = self.stopped.clone();
        // An error means that the sender is gone, and with it the thread.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }

    /// Waits until the reactor thread has ended and says how. Blocks; the first caller gets the
    /// reason, later ones `Ok`.
    ///
    /// # Errors
    /// [`NodeExit`]: it did not end well.
    pub fn join(&self) -> Result<(), NodeExit> {
        let thread = self.thread.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        match thread {
            Some(thread) => thread.join().unwrap_or(Err(NodeExit::Panicked)),
            None => Ok(()),
        }
    }
}
