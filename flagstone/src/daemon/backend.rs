//! The API's questions, put to the node.

use std::path::{Path, PathBuf};

use crate::api::backend::{Backend, Created, Reply, Snapshot};
use crate::api::clones::{CreateClone, RolledBack};
use crate::api::devices::{AddDevice, DeviceAction};
use crate::api::diff::{DiffPage, DiffQuery};
use crate::api::errors::{ApiError, ErrorCode};
use crate::api::kernel_nbd::{AttachNbd, NbdAttached};
use crate::api::scrub::Scrub;
use crate::api::snapshots::{NewSnapshot, SnapshotInfo};
use crate::api::types::{CreateVolume, OnFull, Pool, PoolDevice, PoolState, Volume};
use crate::api::ublk::{AttachVolume, Attached, AttachedState};
use crate::api::usage::Usage;
use crate::kernel_nbd::{KernelNbd, KernelNbdDevice, KernelNbdError, KernelNbdState};
use crate::node::devices::DeviceChange;
use crate::node::devices::{AddDeviceError, DeviceStatus, prepare_device};
use crate::node::{
    self, ControlError, NewClone, NewRollback, NodeHandle, PoolStatus, ScrubAction, SettingsChange,
    Shrink, SnapshotStatus, VolumeStatus,
};
use crate::pool::create::CreateError;
use crate::pool::offline::is_same;
use crate::ublk::{AttachOptions, Ublk, UblkDevice, UblkError, UblkState};
use crate::uri::NbdEndpoints;

/// A node behind the API.
#[derive(Clone, Debug)]
pub struct NodeBackend {
    node: NodeHandle,
    kernel_nbd: KernelNbd,
    endpoints: NbdEndpoints,
}

impl NodeBackend {
    /// `endpoints` are where `node` serves.
    #[must_use]
    pub fn new(node: NodeHandle, endpoints: NbdEndpoints) -> Self {
        Self { kernel_nbd: KernelNbd::new(node.clone()), node, endpoints }
    }

    /// The devices of the kernel's NBD client.
    #[must_use]
    pub const fn kernel_nbd(&self) -> &KernelNbd {
        &self.kernel_nbd
    }

    /// The pool that a client means by its path or UUID.
    async fn find_pool(&self, wanted: &str) -> Result<PathBuf, ApiError> {
        let pools = self.node.pools().await.map_err(api_error)?;
        let is_meant =
            |pool: &&PoolStatus| pool.path.as_os_str() == wanted || uuid_text(pool.uuid) == wanted;
        // Clients may call it otherwise than the daemon's command line, or name another of its devices.
        let lies_on = |pool: &&PoolStatus| {
            pool.devices.iter().any(|device| is_same(&device.path, Path::new(wanted)))
        };
        match pools.iter().find(is_meant).or_else(|| pools.iter().find(lies_on)) {
            Some(pool) => Ok(pool.path.clone()),
            None => {
                let known: Vec<_> = pools.iter().map(|p| p.path.display().to_string()).collect();
                Err(ApiError::new(
                    ErrorCode::PoolNotFound,
                    format!("there is no pool \"{wanted}\"; the pools are {}", known.join(", ")),
                ))
            }
        }
    }

    async fn create(self, request: CreateVolume) -> Result<Created, ApiError> {
        let pool = match &request.pool {
            Some(wanted) => Some(self.find_pool(wanted).await?),
            None => None,
        };
        let elsewhere = |volume: &VolumeStatus| pool.as_ref().is_some_and(|p| *p != volume.pool);
        let uuid = *uuid::Uuid::new_v4().as_bytes();
        let name = request.name.clone();
        let settings = SettingsChange {
            on_full: request.on_full.map(OnFull::into),
            reserved_bytes: request.reserved_bytes,
        };
        let (size, place) = (request.size_bytes, pool.clone());
        let made = self.node.create_volume_with(name, size, uuid, place, settings).await;
        let existing = match made {
            Ok(made) if made.uuid == uuid => return Ok(Created::New(volume(made))),
            Ok(existing) => existing,
            Err(ControlError::NameTaken { name }) => {
                self.node.volume(name).await.map_err(api_error)?
            }
            Err(error) => return Err(api_error(error)),
        };
        if elsewhere(&existing) {
            return Err(ApiError::new(
                ErrorCode::VolumeExists,
                format!(
                    "the volume \"{}\" exists in the pool {}; choose another name",
                    existing.name,
                    existing.pool.display()
                ),
            ));
        }
        Ok(Created::Existing(volume(existing)))
    }
}

impl Backend for NodeBackend {
    fn snapshot(&self, volumes: usize) -> Reply<Snapshot> {
        let node = self.node.clone();
        Box::pin(async move {
            let pools = node.pools().await.map_err(api_error)?;
            let volumes = node.volumes(None, volumes).await.map_err(api_error)?;
            let stats = node.stats().await.map_err(api_error)?;
            let is_deleted = |status: &PoolStatus| node.deleted_pools().any(|p| *p == status.path);
            let pools = pools.into_iter().map(|status| pool(is_deleted(&status), status)).collect();
            let volumes = volumes.into_iter().map(volume).collect();
            Ok(Snapshot { pools, volumes, stats })
        })
    }

    fn volumes(&self, after: Option<String>, limit: usize) -> Reply<Vec<Volume>> {
        let node = self.node.clone();
        Box::pin(async move {
            let volumes = node.volumes(after, limit).await.map_err(api_error)?;
            Ok(volumes.into_iter().map(volume).collect())
        })
    }

    fn volume(&self, name: String) -> Reply<Volume> {
        let node = self.node.clone();
        Box::pin(async move { node.volume(name).await.map(volume).map_err(api_error) })
    }

    fn create_volume(&self, request: CreateVolume) -> Reply<Created> {
        Box::pin(self.clone().create(request))
    }

    fn resize_volume(&self, name: String, size_bytes: u64, shrink: Shrink) -> Reply<Volume> {
        let (node, nbd) = (self.node.clone(), self.kernel_nbd.clone());
        Box::pin(async move {
            let resized = node.resize_volume(name.clone(), size_bytes, shrink).await;
            let resized = resized.map_err(api_error)?;
            if let Err(error) = Ublk::new(node).resized(&name).await {
                tracing::warn!(volume = name, %error, "the kernel was not told the new size of its block device");
            }
            nbd.resized(name).await;
            Ok(volume(resized))
        })
    }

    fn set_volume(&self, name: String, change: SettingsChange) -> Reply<Volume> {
        let node = self.node.clone();
        Box::pin(async move { node.set_volume(name, change).await.map(volume).map_err(api_error) })
    }

    fn delete_volume(&self, name: String, force: bool, snapshots: bool) -> Reply<()> {
        let node = self.node.clone();
        Box::pin(async move {
            let deleted = match snapshots {
                true => node.delete_volume_and_snapshots(name, force).await,
                false => node.delete_volume(name, force).await,
            };
            deleted.map(drop).map_err(api_error)
        })
    }

    fn take_snapshots(&self, wanted: Vec<NewSnapshot>) -> Reply<Vec<SnapshotInfo>> {
        let node = self.node.clone();
        let with_uuid = |new: NewSnapshot| node::NewSnapshot {
            volume: new.volume,
            name: new.name,
            // The caller has checked that it is one.
            uuid: *new
                .uuid
                .and_then(|uuid| uuid::Uuid::try_parse(&uuid).ok())
                .unwrap_or_else(uuid::Uuid::new_v4)
                .as_bytes(),
        };
        let wanted = wanted.into_iter().map(with_uuid).collect();
        Box::pin(async move {
            let taken = node.take_snapshots(wanted).await.map_err(api_error)?;
            Ok(taken.into_iter().map(snapshot).collect())
        })
    }

    fn snapshots(
        &self,
        volume: Option<String>,
        after: Option<String>,
        limit: usize,
    ) -> Reply<Vec<SnapshotInfo>> {
        let node = self.node.clone();
        Box::pin(async move {
            let found = node.snapshots(volume, after, limit).await.map_err(api_error)?;
            Ok(found.into_iter().map(snapshot).collect())
        })
    }

    fn one_snapshot(&self, name: String) -> Reply<SnapshotInfo> {
        let node = self.node.clone();
        Box::pin(async move { node.snapshot(name).await.map(snapshot).map_err(api_error) })
    }

    fn delete_snapshot(&self, name: String, force: bool) -> Reply<()> {
        let node = self.node.clone();
        Box::pin(async move {
            node.delete_snapshot(name, force).await.map(drop).map_err(|error| match error {
                ControlError::InUse { connections } => ApiError::new(
                    ErrorCode::SnapshotInUse,
                    format!(
                        "{connections} clients have the snapshot open; disconnect them first, or \
                         delete it with --force"
                    ),
                ),
                error => api_error(error),
            })
        })
    }

    fn create_clone(&self, request: CreateClone) -> Reply<Created> {
        let node = self.node.clone();
        let CreateClone { snapshot, name, on_full, reserved_bytes } = request;
        let settings = SettingsChange { on_full: on_full.map(OnFull::into), reserved_bytes };
        let uuid = *uuid::Uuid::new_v4().as_bytes();
        Box::pin(async move {
            let clone = NewClone { snapshot, name, uuid, settings };
            let made = node.clone_snapshot(clone).await.map_err(api_error)?;
            Ok(match made.uuid == uuid {
                true => Created::New(volume(made)),
                false => Created::Existing(volume(made)),
            })
        })
    }

    fn rollback(&self, snapshot: String, keep: Option<String>, force: bool) -> Reply<RolledBack> {
        let node = self.node.clone();
        let keep = keep.map(|name| (name, *uuid::Uuid::new_v4().as_bytes()));
        Box::pin(async move {
            let wanted = NewRollback { snapshot, keep, force };
            let done = node.rollback(wanted).await.map_err(|error| match error {
                ControlError::InUse { connections } => ApiError::new(
                    ErrorCode::VolumeInUse,
                    format!(
                        "{connections} clients have the volume open; disconnect them first, or roll \
                         it back with --force"
                    ),
                ),
                error => api_error(error),
            })?;
            Ok(RolledBack { volume: volume(done.volume), kept: done.kept.map(self::snapshot) })
        })
    }

    fn diff(&self, query: DiffQuery) -> Reply<DiffPage> {
        let node = self.node.clone();
        Box::pin(
            async move { node.diff(query.into()).await.map(DiffPage::from).map_err(api_error) },
        )
    }

    fn usage(&self, name: String) -> Reply<Usage> {
        let node = self.node.clone();
        Box::pin(async move {
            let counted = node.usage(node::DiffTarget::Name(name)).await;
            counted.map(Usage::from).map_err(api_error)
        })
    }

    fn grow_pool(&self, wanted: String) -> Reply<Pool> {
        let backend = self.clone();
        Box::pin(async move {
            let path = backend.find_pool(&wanted).await?;
            backend.node.grow_pool(path).await.map(|status| pool(false, status)).map_err(api_error)
        })
    }

    fn add_device(&self, wanted: String, request: AddDevice) -> Reply<Pool> {
        let backend = self.clone();
        Box::pin(async move {
            let pool_path = backend.find_pool(&wanted).await?;
            let AddDevice { path, size_bytes, force } = request;
            let prepare = move || prepare_device(Path::new(&path), size_bytes, force);
            // Looks at what is there, which may take a while.
            let target = tokio::task::spawn_blocking(prepare).await;
            let ended = |_| ApiError::new(ErrorCode::Internal, "the examination broke off");
            let target = target.map_err(ended)?.map_err(unfit)?;
            let added = backend.node.add_device(pool_path, target).await;
            added.map(|status| pool(false, status)).map_err(|error| match error {
                AddDeviceError::Target(error) => unfit(error),
                AddDeviceError::Control(error) => api_error(error),
            })
        })
    }

    fn change_device(&self, wanted: String, device: String, action: DeviceAction) -> Reply<Pool> {
        let backend = self.clone();
        Box::pin(async move {
            let path = backend.find_pool(&wanted).await?;
            let change = match action {
                DeviceAction::Remove => DeviceChange::Remove { device },
                DeviceAction::Keep => DeviceChange::Keep { device },
            };
            let changed = backend.node.change_devices(path, change).await;
            changed.map(|status| pool(false, status)).map_err(api_error)
        })
    }

    fn scrub(&self, wanted: String, action: ScrubAction) -> Reply<Scrub> {
        let backend = self.clone();
        Box::pin(async move {
            let path = backend.find_pool(&wanted).await?;
            let report = backend.node.scrub(path, action).await.map_err(api_error)?;
            Ok(report.map_or_else(Scrub::default, Scrub::from))
        })
    }

    fn attach(&self, request: AttachVolume) -> Reply<(Attached, bool)> {
        let ublk = Ublk::new(self.node.clone());
        let options = AttachOptions { number: request.number, depth: request.queue_depth };
        Box::pin(async move {
            let (device, new) = ublk.attach(&request.volume, options).await.map_err(ublk_error)?;
            Ok((attached(device), new))
        })
    }

    fn detach(&self, name: String, force: bool) -> Reply<()> {
        let ublk = Ublk::new(self.node.clone());
        Box::pin(async move { ublk.detach(&name, force).await.map(drop).map_err(ublk_error) })
    }

    fn attached(&self) -> Reply<Vec<Attached>> {
        let ublk = Ublk::new(self.node.clone());
        Box::pin(async move {
            let devices = ublk.list().await.map_err(ublk_error)?;
            Ok(devices.into_iter().map(attached).collect())
        })
    }

    fn attach_nbd(&self, request: AttachNbd) -> Reply<(NbdAttached, bool)> {
        let nbd = self.kernel_nbd.clone();
        Box::pin(async move {
            let attached = nbd.attach(request.volume, request.number).await;
            attached.map(|(device, new)| (nbd_attached(device), new)).map_err(kernel_nbd_error)
        })
    }

    fn detach_nbd(&self, name: String, force: bool) -> Reply<()> {
        let nbd = self.kernel_nbd.clone();
        Box::pin(async move { nbd.detach(name, force).await.map_err(kernel_nbd_error) })
    }

    fn attached_nbd(&self) -> Reply<Vec<NbdAttached>> {
        let nbd = self.kernel_nbd.clone();
        Box::pin(async move {
            let devices = nbd.list().await.map_err(kernel_nbd_error)?;
            Ok(devices.into_iter().map(nbd_attached).collect())
        })
    }

    fn server_uris(&self) -> Vec<String> {
        self.endpoints.uris("")
    }
}

fn uuid_text(uuid: [u8; 16]) -> String {
    uuid::Uuid::from_bytes(uuid).hyphenated().to_string()
}

fn volume(status: VolumeStatus) -> Volume {
    Volume {
        name: status.name,
        uuid: uuid_text(status.uuid),
        pool: status.pool.display().to_string(),
        size_bytes: status.size_bytes,
        mapped_bytes: status.mapped_bytes,
        exclusive_bytes: status.exclusive_bytes,
        kept_bytes: status.kept_bytes,
        reserved_bytes: status.settings.reserved,
        on_full: status.settings.on_full.into(),
        snapshots: status.snapshots,
        cloned_from: status.cloned_from,
        connections: status.connections,
        io: status.io.into(),
        uris: status.uris,
    }
}

fn snapshot(status: SnapshotStatus) -> SnapshotInfo {
    SnapshotInfo {
        name: status.name,
        uuid: uuid_text(status.uuid),
        pool: status.pool.display().to_string(),
        size_bytes: status.size_bytes,
        mapped_bytes: status.mapped_bytes,
        connections: status.connections,
        uris: status.uris,
    }
}

fn device(status: &DeviceStatus) -> PoolDevice {
    let state = match (status.leaving, status.stuck) {
        (true, true) => "stuck",
        (true, false) if status.failed => "leaving",
        _ if status.missing => "missing",
        (true, false) => "leaving",
        (false, _) if status.failed => "failed",
        (false, _) => "present",
    };
    PoolDevice {
        number: status.number,
        uuid: uuid_text(status.uuid),
        path: status.path.display().to_string(),
        state: state.to_owned(),
        reason: status.reason.clone(),
        size_bytes: status.bytes,
        segments: status.segments,
        segments_empty: status.segments_empty,
        journal: status.journal,
        data_path: status.data_path.as_ref().map(|path| path.name.to_owned()),
        data_path_reason: status.data_path.as_ref().and_then(|path| path.reason.clone()),
    }
}

fn unfit(error: CreateError) -> ApiError {
    ApiError::new(ErrorCode::DeviceUnfit, error.to_string())
}

fn pool(deleted: bool, status: PoolStatus) -> Pool {
    let read_only = match &status.state {
        node::PoolState::Running => false,
        node::PoolState::Failed { .. } => true,
        node::PoolState::Degraded { read_only, .. } => *read_only,
    };
    let (state, reason) = match status.state {
        node::PoolState::Running if deleted => (
            PoolState::Deleted,
            Some("its file has been deleted, and with the daemon its data will be gone".to_owned()),
        ),
        node::PoolState::Running => (PoolState::Running, None),
        node::PoolState::Failed { reason } => (PoolState::Failed, Some(reason)),
        node::PoolState::Degraded { reason, .. } => (PoolState::Degraded, Some(reason)),
    };
    Pool {
        uuid: uuid_text(status.uuid),
        path: status.path.display().to_string(),
        state,
        read_only,
        reason,
        device_bytes: status.device_bytes,
        devices: status.devices.iter().map(device).collect(),
        capacity_bytes: status.capacity_bytes,
        used_bytes: status.used_bytes,
        free_bytes: status.free_bytes,
        reserved_bytes: status.reserved_bytes,
        debt_bytes: status.debt_bytes,
        log_debt_bytes: status.log_debt_bytes,
        checkpoints: status.checkpoints,
        map_bytes: status.map_bytes,
        warning_percent: status.warning_percent,
        waiting: status.waiting,
        provisioned_bytes: status.provisioned_bytes,
        volumes: status.volumes,
        snapshots: status.snapshots,
        direct_io: status.direct_io,
        segments: status.segments,
        segments_free: status.segments_free,
        written_bytes: status.written_bytes,
        moved_bytes: status.moved_bytes,
        rewritten_bytes: status.rewritten_bytes,
        scrubs: status.scrubs,
        scrub_read_bytes: status.scrub_read_bytes,
        scrub_findings: status.scrub_findings,
        scrub_repairs: status.scrub_repairs,
        discarded_bytes: status.discarded_bytes,
        counting: status.counting,
        map_damaged: status.map_damaged,
    }
}

/// A block device, as the API tells it.
pub(crate) fn attached(device: UblkDevice) -> Attached {
    Attached {
        device: device.path.display().to_string(),
        number: device.number,
        volume: device.volume,
        size_bytes: device.size_bytes,
        read_only: device.read_only,
        state: match device.state {
            UblkState::Live => AttachedState::Live,
            UblkState::Waiting => AttachedState::Waiting,
            UblkState::Dead => AttachedState::Dead,
            UblkState::Unknown => AttachedState::Unknown,
        },
        pid: device.pid,
        queue_depth: device.depth,
        features: device.features,
    }
}

/// A device of the kernel's NBD client, as the API tells it.
pub(crate) fn nbd_attached(device: KernelNbdDevice) -> NbdAttached {
    NbdAttached {
        device: device.path.display().to_string(),
        number: device.number,
        volume: device.volume,
        size_bytes: device.size_bytes,
        read_only: device.read_only,
        state: match device.state {
            KernelNbdState::Live => AttachedState::Live,
            KernelNbdState::Waiting => AttachedState::Waiting,
            KernelNbdState::Detached => AttachedState::Dead,
        },
    }
}

fn kernel_nbd_error(error: KernelNbdError) -> ApiError {
    let (code, advice) = match error {
        KernelNbdError::Node(error) => return api_error(error),
        KernelNbdError::Ended => return ApiError::stopping(),
        KernelNbdError::NotAttached { .. } | KernelNbdError::NotOurs { .. } => {
            (ErrorCode::NotAttached, "; `flagstone nbd list` shows what is")
        }
        KernelNbdError::InUse { .. } => (
            ErrorCode::VolumeInUse,
            "; unmount it first, or detach it with --force, and lose what was not written",
        ),
        KernelNbdError::NoClient | KernelNbdError::Old => (ErrorCode::NbdUnavailable, ""),
        KernelNbdError::Taken { .. } => (ErrorCode::NbdRefused, "; choose another number"),
        _ => (ErrorCode::NbdRefused, ""),
    };
    ApiError::new(code, format!("{error}{advice}"))
}

fn ublk_error(error: UblkError) -> ApiError {
    use flagstone_ublk::ControlError as Kernel;
    let (code, advice) = match &error {
        UblkError::Node(error) => return api_error(error.clone()),
        UblkError::Ended => return ApiError::stopping(),
        UblkError::NotAttached { .. } | UblkError::NotOurs { .. } => {
            (ErrorCode::NotAttached, "; `flagstone ublk list` shows what is")
        }
        UblkError::InUse { .. } => (
            ErrorCode::VolumeInUse,
            "; unmount it first, or detach it with --force, and lose what was not written",
        ),
        UblkError::Served { .. } => (ErrorCode::UblkRefused, ""),
        UblkError::Control(Kernel::NoUblk | Kernel::Lacks { .. }) => {
            (ErrorCode::UblkUnavailable, "")
        }
        UblkError::Control(Kernel::Refused { command: "ADD_DEV", errno, .. })
            if *errno == rustix::io::Errno::EXIST =>
        {
            (ErrorCode::UblkRefused, "; there is such a device already, choose another number")
        }
        UblkError::Control(_) => (ErrorCode::UblkRefused, ""),
    };
    ApiError::new(code, format!("{error}{advice}"))
}

/// The one place where the node's refusals become the API's.
pub(crate) fn api_error(error: ControlError) -> ApiError {
    let (code, advice) = match &error {
        ControlError::NoSuchVolume { name } => return ApiError::volume_not_found(name),
        ControlError::NoSuchSnapshot { name } => return ApiError::snapshot_not_found(name),
        ControlError::Stopping => return ApiError::stopping(),
        ControlError::SnapshotExists { .. } => {
            (ErrorCode::SnapshotExists, "; choose another name, or delete it first")
        }
        ControlError::BadSnapshotName { .. } => (ErrorCode::InvalidName, ""),
        ControlError::IsSnapshot { .. } => (ErrorCode::ReadOnlySnapshot, ""),
        ControlError::HasSnapshots { .. } => (
            ErrorCode::VolumeHasSnapshots,
            "; `flagstone snapshot list VOLUME` shows them, and `flagstone volume delete --snapshots` \
             deletes them with it",
        ),
        ControlError::SnapshotCount => (ErrorCode::SnapshotCount, ""),
        ControlError::SnapshotUnbacked { .. } => (
            ErrorCode::ReservationUnbacked,
            "; make the reservation smaller, delete snapshots or volumes, or grow the pool",
        ),
        ControlError::DifferentPools { .. } => {
            (ErrorCode::DifferentPools, "; take their snapshots one by one")
        }
        ControlError::NotComparable { .. } => (ErrorCode::DifferentPools, ""),
        ControlError::MapDamaged { .. } => (
            ErrorCode::MapDamaged,
            "; `flagstone pool scrub` repairs metadata, or the next start of the daemon",
        ),
        ControlError::NoSuchPool { .. } => (ErrorCode::PoolNotFound, ""),
        ControlError::NameTaken { .. } => (ErrorCode::VolumeExists, ""),
        ControlError::BadName { .. } => (ErrorCode::InvalidName, ""),
        ControlError::BadSize { .. } => (ErrorCode::InvalidSize, ""),
        ControlError::Shrink { .. } => (
            ErrorCode::ShrinkRefused,
            "; with --force (\"shrink\": \"unused\") it does, if nothing lies beyond",
        ),
        ControlError::ShrinkHasData { .. } => (
            ErrorCode::ShrinkRefused,
            "; discard them from within, or with --force --discard (\"shrink\": \"discard\")",
        ),
        ControlError::ShrinkReserved { .. } => (
            ErrorCode::ShrinkRefused,
            "; make the reservation smaller first, with `flagstone volume set --reserve`",
        ),
        ControlError::ShrinkDamaged { .. } => {
            (ErrorCode::ShrinkRefused, "; a part of what lies beyond may have been discarded")
        }
        ControlError::BadReservation { .. } => (ErrorCode::InvalidReservation, ""),
        ControlError::Unbacked { .. } => {
            (ErrorCode::ReservationUnbacked, "; ask for less, delete volumes, or grow the pool")
        }
        ControlError::InUse { .. } => {
            (ErrorCode::VolumeInUse, "; disconnect them first, or delete it with --force")
        }
        ControlError::NoSpace => {
            (ErrorCode::PoolFull, "; delete volumes, discard data, or grow the pool")
        }
        ControlError::TooManyVolumes => (ErrorCode::TooManyVolumes, "; delete some"),
        ControlError::PoolFailed => (
            ErrorCode::PoolFailed,
            "; when the device is well again, restart the daemon, which recovers the pool",
        ),
        ControlError::PoolReadOnly => {
            (ErrorCode::PoolReadOnly, "; restart the daemon when the device is there again")
        }
        ControlError::DeviceSize => (ErrorCode::InvalidSize, ""),
        ControlError::NoSuchDevice { .. } => (ErrorCode::DeviceNotFound, ""),
        ControlError::DeviceRefused { .. } | ControlError::TooManyDevices => {
            (ErrorCode::DeviceRefused, "")
        }
        ControlError::DeviceFailed => (ErrorCode::DeviceUnfit, ""),
        ControlError::Scrubbing => (ErrorCode::ScrubRunning, "; wait for its end, or cancel it"),
        ControlError::Ublk { .. } => (ErrorCode::UblkRefused, ""),
        ControlError::KernelNbd { .. } => (ErrorCode::NbdRefused, ""),
        ControlError::KernelNbdLeaving { .. } => (ErrorCode::Busy, ""),
        ControlError::Attached { driver: "ublk", .. } => {
            (ErrorCode::VolumeInUse, "; detach it first, with `flagstone ublk detach`")
        }
        ControlError::Attached { .. } => {
            (ErrorCode::VolumeInUse, "; detach it first, with `flagstone nbd detach`")
        }
        ControlError::Overloaded => (ErrorCode::Busy, ""),
    };
    ApiError::new(code, format!("{error}{advice}"))
}
