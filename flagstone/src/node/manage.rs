//! Control requests: volumes made, set and deleted, and questions answered. Their size is changed in
//! [`super::resize`], their snapshots taken in [`super::snapshots`].

use super::catalog::Entry;
use super::clones::{Back, CloneOf, Several, rollback_refusal};
use super::control::{
    ControlError, ControlRequest, NodeStats, PoolState, PoolStatus, Reply, RolledBack,
    SettingsChange, SnapshotStatus, VolumeIo, VolumeStatus,
};
use super::limits::LIST_VOLUMES;
use super::reactor::Reactor;
use super::request::Name;
use super::snapshots::Shot;
use crate::name::check_name;
use flagstone_block::{BLOCK_SIZE, VolumeId};
use flagstone_engine::limits::VOLUME_BYTES;
use flagstone_engine::{IoFault, Shrink, SubmitError, VolumeSettings, VolumeSpec};
use std::path::PathBuf;
use std::rc::Rc;

/// A change of the set of volumes and snapshots that an engine could not take yet.
pub(super) struct PendingChange {
    pub(super) pool: u32,
    pub(super) kind: Kind,
    pub(super) asker: Asker,
}

/// Who waits for a change.
pub(super) enum Asker {
    Volume(Reply<VolumeStatus>),
    Snapshot(Reply<SnapshotStatus>),
    Snapshots(Reply<Vec<SnapshotStatus>>),
    Rollback(Reply<RolledBack>),
    /// One of several deletions.
    Several(Rc<Several>),
}

impl Asker {
    /// Nothing came of it.
    pub(super) fn refuse(self, error: ControlError) {
        match self {
            Self::Volume(reply) => answer(reply, Err(error)),
            Self::Snapshot(reply) => answer(reply, Err(error)),
            Self::Snapshots(reply) => answer(reply, Err(error)),
            Self::Rollback(reply) => answer(reply, Err(error)),
            Self::Several(several) => several.refused(error),
        }
    }
}

pub(super) enum Kind {
    Create { name: String, size_bytes: u64, uuid: [u8; 16], settings: VolumeSettings },
    Delete { handle: u64, volume: VolumeId },
    Resize { handle: u64, volume: VolumeId, size_bytes: u64, shrink: Shrink },
    Set { handle: u64, volume: VolumeId, settings: VolumeSettings },
    Snapshot { shots: Vec<Shot> },
    Clone { clone: CloneOf },
    Rollback { back: Back },
}

/// A change that an engine has taken; answered when it is durable.
pub(super) struct Change {
    made: Made,
    asker: Asker,
}

enum Made {
    Created { entry: Entry },
    Deleted { handle: u64 },
    Resized { handle: u64, size_bytes: u64 },
    Set { handle: u64 },
    Snapshots { pool: u32, first: VolumeId, shots: Vec<Shot> },
    RolledBack { id: VolumeId, back: Option<Back> },
}

impl Reactor {
    /// Enters every volume of every pool, and their snapshots. A name that two pools have is served from the first.
    pub(super) fn fill_catalog(&mut self) {
        for (p, pool) in self.pools.iter().enumerate() {
            for info in pool.engine.volumes() {
                let taken = self.catalog.insert(Entry {
                    name: info.name.as_str().into(),
                    uuid: info.uuid,
                    size: info.size,
                    pool: p as u32,
                    id: VolumeId(info.id),
                    is_snapshot: false,
                    snapshots: 0,
                    read_only: pool.engine.is_degraded(),
                    connections: 0,
                    io: VolumeIo::default(),
                });
                if !taken {
                    tracing::warn!(
                        volume = info.name,
                        pool = %pool.path.display(),
                        "not served: another pool has a volume of this name"
                    );
                }
            }
        }
        self.fill_snapshots();
    }

    pub(super) fn read_mail(&mut self) {
        while let Some(request) = self.mailbox.take() {
            match request {
                ControlRequest::Shutdown => self.begin_stop(),
                ControlRequest::ListVolumes { after, limit, reply } => {
                    self.settle_io();
                    let entries = self.catalog.from(after.as_deref()).take(limit.min(LIST_VOLUMES));
                    answer(reply, Ok(entries.map(|entry| self.status_of(entry)).collect()));
                }
                ControlRequest::GetVolume { name, reply } => {
                    self.settle_io();
                    answer(reply, self.volume_named(&name).map(|entry| self.status_of(entry)));
                }
                ControlRequest::ListSnapshots { volume, after, limit, reply } => {
                    answer(reply, self.list_snapshots(volume, after.as_deref(), limit));
                }
                ControlRequest::GetSnapshot { name, reply } => {
                    answer(reply, self.get_snapshot(name));
                }
                ControlRequest::TakeSnapshots { wanted, reply } => {
                    self.take_snapshots(wanted, reply);
                }
                ControlRequest::DeleteSnapshot { name, force, reply } => {
                    self.delete_snapshot(name, force, reply);
                }
                ControlRequest::UblkVolume { target, reply } => {
                    answer(reply, self.ublk_volume(&target));
                }
                ControlRequest::ServeUblk { handle, device, reply } => {
                    let served = self.serve_ublk(handle, &device);
                    answer(reply, served);
                }
                ControlRequest::LeaveUblk { number, reply } => self.leave_ublk(number, reply),
                ControlRequest::AwaitKernelNbd { waiting, reply } => {
                    self.await_kernel_nbd(waiting);
                    answer(reply, Ok(()));
                }
                ControlRequest::ServedKernelNbd { reply } => {
                    answer(reply, Ok(self.served_kernel_nbd()));
                }
                ControlRequest::EndWaits => self.end_waits(),
                ControlRequest::LeaveKernelNbd { number, reply } => {
                    let gone = self.leave_kernel_nbd(number);
                    answer(reply, Ok(gone));
                }
                ControlRequest::ServeKernelNbd { handle, number, reply } => {
                    let served = self.serve_kernel_nbd(handle, number);
                    answer(reply, served);
                }
                ControlRequest::Usage { target, reply } => self.begin_usage(&target, reply),
                ControlRequest::Diff { query, reply } => self.begin_diff(&query, reply),
                ControlRequest::PoolStatus { reply } => {
                    answer(reply, Ok((0..self.pools.len()).map(|p| self.pool_status(p)).collect()));
                }
                ControlRequest::GrowPool { pool, reply } => self.grow(pool, reply),
                ControlRequest::ChangeDevices { pool, change, reply } => {
                    self.change_devices(&pool, change, reply);
                }
                ControlRequest::Scrub { pool, action, reply } => self.scrub(pool, action, reply),
                ControlRequest::Stats { reply } => answer(reply, Ok(self.stats())),
                ControlRequest::CreateVolume { name, size_bytes, uuid, pool, settings, reply } => {
                    self.create(name, size_bytes, uuid, pool, settings, reply);
                }
                ControlRequest::DeleteVolume { name, force, snapshots, reply } => {
                    self.delete(name, force, snapshots, reply);
                }
                ControlRequest::CloneSnapshot { clone, reply } => {
                    self.clone_snapshot(clone, reply);
                }
                ControlRequest::Rollback { rollback, reply } => self.rollback(rollback, reply),
                ControlRequest::ResizeVolume { name, size_bytes, shrink, reply } => {
                    self.resize(name, size_bytes, shrink, reply);
                }
                ControlRequest::SetVolume { name, change, reply } => {
                    self.set(name, change, reply);
                }
            }
        }
    }

    fn create(
        &mut self,
        name: String,
        size_bytes: u64,
        uuid: [u8; 16],
        pool: Option<PathBuf>,
        change: SettingsChange,
        reply: Reply<VolumeStatus>,
    ) {
        if !self.stop.is_running() {
            return answer(reply, Err(ControlError::Stopping));
        }
        if check_name(&name).is_err() {
            return answer(reply, Err(ControlError::BadName { name }));
        }
        if let Err(error) = check_size(size_bytes) {
            return answer(reply, Err(error));
        }
        if let Some(existing) = self.catalog.named(&name) {
            let status = self.status_of(existing);
            let as_wanted = change.applied_to(status.settings) == status.settings;
            let same = existing.size == size_bytes && as_wanted;
            return answer(
                reply,
                if same { Ok(status) } else { Err(ControlError::NameTaken { name }) },
            );
        }
        if self.catalog.is_taken(&name) {
            return answer(reply, Err(ControlError::NameTaken { name }));
        }
        let pool = match self.pool_for(pool) {
            Ok(pool) => pool,
            Err(error) => return answer(reply, Err(error)),
        };
        let defaults = VolumeSettings { on_full: self.default_on_full, reserved: 0 };
        let settings = change.applied_to(defaults);
        let kind = Kind::Create { name, size_bytes, uuid, settings };
        self.submit_change(PendingChange { pool, kind, asker: Asker::Volume(reply) });
    }

    fn pool_for(&self, wanted: Option<PathBuf>) -> Result<u32, ControlError> {
        if let Some(path) = wanted {
            let found = self.pools.iter().position(|pool| pool.path == path);
            return found.map(|p| p as u32).ok_or(ControlError::NoSuchPool { path });
        }
        let serving = (0..self.pools.len()).filter(|&p| self.is_serving(p));
        serving.max_by_key(|&p| self.pools[p].engine.available()).map(|p| p as u32).ok_or_else(
            || match self.pools.iter().any(|pool| pool.engine.is_degraded()) {
                true => ControlError::PoolReadOnly,
                false => ControlError::PoolFailed,
            },
        )
    }

    fn delete(&mut self, name: String, force: bool, snapshots: bool, reply: Reply<VolumeStatus>) {
        match self.volume_named(&name).cloned() {
            Ok(entry) if snapshots => self.delete_all(entry, force, reply),
            Ok(entry) => self.delete_entry(&entry, force, Asker::Volume(reply)),
            Err(error) => answer(reply, Err(error)),
        }
    }

    /// Deletes a volume or a snapshot.
    pub(super) fn delete_entry(&mut self, entry: &Entry, force: bool, asker: Asker) {
        let (handle, pool, volume) = (entry.handle(), entry.pool, entry.id);
        if entry.snapshots > 0 {
            return asker.refuse(ControlError::HasSnapshots { snapshots: entry.snapshots });
        }
        if let Err(error) = self.check_detached(handle) {
            return asker.refuse(error);
        }
        if entry.connections > 0 && !force {
            return asker.refuse(ControlError::InUse { connections: entry.connections });
        }
        self.disconnect(handle);
        self.catalog.withdraw(handle);
        self.submit_change(PendingChange { pool, kind: Kind::Delete { handle, volume }, asker });
    }

    /// Whether an engine is taking a snapshot of this volume.
    fn is_being_taken(&self, pool: u32, volume: VolumeId) -> bool {
        self.changes.iter().any(|change| match &change.made {
            Made::Snapshots { pool: of, shots, .. } => {
                *of == pool && shots.iter().any(|shot| shot.volume == volume)
            }
            _ => false,
        })
    }

    /// How many snapshots of a volume there are that are not being deleted, if any.
    fn late_snapshots(&self, handle: u64) -> Option<u32> {
        let volume = self.catalog.get(handle).filter(|entry| !entry.is_snapshot)?;
        let snapshots = self.catalog.snapshots_from(Some(volume), None).count() as u32;
        (snapshots > 0).then_some(snapshots)
    }

    /// Closes the connections that have a volume or snapshot open.
    pub(super) fn disconnect(&mut self, handle: u64) {
        for c in 0..self.connections.len() as u32 {
            if self.connections[c as usize].opened.is_some_and(|opened| opened.handle == handle) {
                self.kill(c);
            }
        }
    }

    fn set(&mut self, name: String, change: SettingsChange, reply: Reply<VolumeStatus>) {
        let entry = match self.volume_named(&name) {
            Ok(entry) => entry,
            Err(error) => return answer(reply, Err(error)),
        };
        let (handle, pool, volume) = (entry.handle(), entry.pool, entry.id);
        let Some(info) = self.pools[pool as usize].engine.volume(volume) else {
            return answer(reply, Err(ControlError::NoSuchVolume { name }));
        };
        let settings = change.applied_to(info.settings);
        self.submit_change(PendingChange {
            pool,
            kind: Kind::Set { handle, volume, settings },
            asker: Asker::Volume(reply),
        });
    }

    /// Tries the changes again that an engine was too busy for, in order.
    pub(super) fn retry_changes(&mut self) {
        for _ in 0..self.pending_changes.len() {
            if let Some(change) = self.pending_changes.pop_front() {
                self.submit_change(change);
            }
        }
    }

    pub(super) fn submit_change(&mut self, change: PendingChange) {
        let PendingChange { pool: p, kind, asker } = change;
        if let Kind::Delete { handle, volume } = kind {
            // What comes of a snapshot under way is known first; it would be one of a volume that is gone.
            if self.is_being_taken(p, volume) {
                return self.pending_changes.push_back(PendingChange { pool: p, kind, asker });
            }
            if let Some(snapshots) = self.late_snapshots(handle) {
                self.catalog.restore(handle);
                return asker.refuse(ControlError::HasSnapshots { snapshots });
            }
        }
        let pool = &mut self.pools[p as usize];
        pool.touched = true;
        // The name is only known once there is an entry, and the entry once the engine agrees.
        let placeholder = Made::Deleted { handle: u64::MAX };
        let name = self.changes.insert(Change { made: placeholder, asker });
        let tag = Name::Control(name).tag();
        let bufs = self.ring.buffers();
        let outcome = match &kind {
            Kind::Create { name, size_bytes, uuid, settings } => {
                let settings = *settings;
                let spec = VolumeSpec { uuid: *uuid, name, size: *size_bytes, settings };
                pool.engine.create_volume(bufs, tag, &spec).map(|id| Made::Created {
                    entry: Entry {
                        name: name.as_str().into(),
                        uuid: *uuid,
                        size: *size_bytes,
                        pool: p,
                        id,
                        is_snapshot: false,
                        snapshots: 0,
                        read_only: false,
                        connections: 0,
                        io: VolumeIo::default(),
                    },
                })
            }
            Kind::Delete { handle, volume } => pool
                .engine
                .delete_volume(bufs, tag, *volume)
                .map(|()| Made::Deleted { handle: *handle }),
            Kind::Resize { handle, volume, size_bytes, shrink } => pool
                .engine
                .resize_volume(bufs, tag, *volume, *size_bytes, *shrink)
                .map(|()| Made::Resized { handle: *handle, size_bytes: *size_bytes }),
            Kind::Set { handle, volume, settings } => pool
                .engine
                .set_volume(bufs, tag, *volume, *settings)
                .map(|()| Made::Set { handle: *handle }),
            Kind::Snapshot { shots } => {
                let specs: Vec<_> = shots.iter().map(Shot::spec).collect();
                pool.engine.snapshot_volumes(bufs, tag, &specs).map(|first| Made::Snapshots {
                    pool: p,
                    first,
                    shots: Vec::new(),
                })
            }
            Kind::Clone { clone } => pool
                .engine
                .clone_volume(bufs, tag, &clone.spec())
                .map(|id| Made::Created { entry: clone.entry(p, id) }),
            Kind::Rollback { back } => pool
                .engine
                .rollback_volume(bufs, tag, &back.spec())
                .map(|id| Made::RolledBack { id, back: None }),
        };
        match outcome {
            Ok(mut made) => {
                if let Made::Resized { handle, size_bytes } = made {
                    self.resize_begun(handle, size_bytes);
                }
                match (&mut made, kind) {
                    (Made::Snapshots { shots: taken, .. }, Kind::Snapshot { shots }) => {
                        *taken = shots;
                    }
                    (Made::RolledBack { back: made, .. }, Kind::Rollback { back }) => {
                        *made = Some(back);
                    }
                    _ => {}
                }
                if let Some(change) = self.changes.get_mut(name) {
                    change.made = made;
                }
            }
            Err(error) => {
                let Some(Change { asker, .. }) = self.changes.remove(name) else { return };
                if error == SubmitError::Busy {
                    return self.pending_changes.push_back(PendingChange { pool: p, kind, asker });
                }
                if let Kind::Delete { handle, .. } | Kind::Rollback { back: Back { handle, .. } } =
                    kind
                {
                    self.catalog.restore(handle);
                }
                let size_bytes = self.size_of(p, &kind);
                asker.refuse(refusal(error, &kind, size_bytes));
            }
        }
    }

    /// Size of the volume that a change is about.
    fn size_of(&self, pool: u32, kind: &Kind) -> u64 {
        let engine = &self.pools[pool as usize].engine;
        match kind {
            Kind::Create { size_bytes, .. } => *size_bytes,
            Kind::Delete { volume, .. }
            | Kind::Resize { volume, .. }
            | Kind::Set { volume, .. } => engine.volume(*volume).map_or(0, |info| info.size),
            Kind::Clone { clone } => clone.size_bytes,
            Kind::Snapshot { .. } | Kind::Rollback { .. } => 0,
        }
    }

    /// An engine has made a change durable, or failed to.
    pub(super) fn change_done(&mut self, change: u32, result: Result<(), IoFault>) {
        let Some(Change { made, asker }) = self.changes.remove(change) else { return };
        match (made, asker, result) {
            (Made::Resized { handle, size_bytes }, Asker::Volume(reply), result) => {
                self.resized(handle, size_bytes, result, reply);
            }
            (_, asker, Err(_)) => asker.refuse(ControlError::PoolFailed),
            (Made::Created { entry }, Asker::Volume(reply), Ok(())) => {
                let status = self.status_of(&entry);
                tracing::info!(volume = &*entry.name, bytes = entry.size, "volume created");
                self.catalog.insert(entry);
                answer(reply, Ok(status));
            }
            (Made::Set { handle }, Asker::Volume(reply), Ok(())) => {
                let Some(entry) = self.catalog.get(handle) else {
                    return answer(reply, Err(ControlError::PoolFailed));
                };
                let status = self.status_of(entry);
                tracing::info!(volume = &*entry.name, settings = ?status.settings, "volume set");
                // Those that need not wait any more are to be told.
                self.wake_waiting();
                answer(reply, Ok(status));
            }
            (Made::Snapshots { pool, first, shots }, Asker::Snapshots(reply), Ok(())) => {
                answer(reply, Ok(self.snapshots_taken(pool, first, shots)));
            }
            (Made::RolledBack { id, back: Some(back) }, Asker::Rollback(reply), Ok(())) => {
                answer(reply, self.rolled_back(id, back));
            }
            (Made::Deleted { handle }, asker, Ok(())) => {
                let Some(entry) = self.catalog.remove(handle) else {
                    return asker.refuse(ControlError::PoolFailed);
                };
                tracing::info!(name = &*entry.name, "deleted");
                match asker {
                    Asker::Volume(reply) => answer(reply, Ok(self.status_of(&entry))),
                    Asker::Snapshot(reply) => answer(reply, Ok(self.snapshot_status(&entry))),
                    Asker::Several(several) => {
                        several.done((!entry.is_snapshot).then(|| self.status_of(&entry)));
                    }
                    Asker::Snapshots(_) | Asker::Rollback(_) => {}
                }
            }
            // Nobody asks for one thing and waits for another.
            (_, asker, Ok(())) => asker.refuse(ControlError::PoolFailed),
        }
    }

    pub(super) fn status_of(&self, entry: &Entry) -> VolumeStatus {
        let pool = &self.pools[entry.pool as usize];
        let usage = pool.engine.volume_usage(entry.id).unwrap_or_default();
        let settings = pool.engine.volume(entry.id).map(|info| info.settings);
        VolumeStatus {
            name: entry.name.to_string(),
            uuid: entry.uuid,
            pool: pool.path.clone(),
            size_bytes: entry.size,
            mapped_bytes: usage.mapped,
            exclusive_bytes: usage.exclusive,
            kept_bytes: usage.kept,
            snapshots: entry.snapshots,
            cloned_from: self.base_of(entry),
            settings: settings.unwrap_or_default(),
            connections: entry.connections,
            io: entry.io,
            uris: self.endpoints.uris(&entry.name),
            handle: entry.handle(),
        }
    }

    pub(super) fn pool_status(&self, p: usize) -> PoolStatus {
        let pool = &self.pools[p];
        let (usage, counters) = (pool.engine.usage(), pool.engine.counters());
        let totals = self.catalog.totals(p);
        PoolStatus {
            path: pool.path.clone(),
            uuid: pool.engine.pool_uuid(),
            state: match pool.failure {
                Some(error) => PoolState::Failed { reason: pool.reason(error) },
                None if pool.engine.is_degraded() => {
                    PoolState::Degraded { reason: pool.missing(), read_only: true }
                }
                None => match pool.failed_devices() {
                    Some(reason) => PoolState::Degraded { reason, read_only: false },
                    None => PoolState::Running,
                },
            },
            device_bytes: pool.members.iter().flatten().map(|m| m.device.size()).sum(),
            devices: pool.device_statuses(),
            capacity_bytes: usage.capacity,
            used_bytes: usage.live + usage.kept,
            free_bytes: usage.available,
            reserved_bytes: usage.held,
            debt_bytes: usage.debt,
            log_debt_bytes: usage.log_debt,
            checkpoints: counters.compactions,
            map_bytes: usage.map_bytes,
            warning_percent: pool.warning.percent(),
            waiting: pool.waiting.len() as u32,
            provisioned_bytes: totals.bytes,
            volumes: totals.volumes,
            snapshots: totals.snapshots,
            direct_io: pool.members.iter().flatten().all(|m| m.device.is_direct()),
            segments: usage.segments,
            segments_free: usage.segments_free,
            written_bytes: counters.blocks_written * BLOCK_SIZE as u64,
            moved_bytes: counters.blocks_moved * BLOCK_SIZE as u64,
            rewritten_bytes: counters.blocks_rewritten * BLOCK_SIZE as u64,
            scrubs: counters.scrubs,
            scrub_read_bytes: counters.scrub_blocks_read * BLOCK_SIZE as u64,
            scrub_findings: counters.scrub_findings,
            scrub_repairs: counters.scrub_repairs,
            counting: pool.engine.is_counting(),
            map_damaged: pool.engine.wants_rebuild(),
            discarded_bytes: counters.segments_discarded
                * (u64::from(pool.engine.geometry().shape.blocks) * BLOCK_SIZE as u64),
        }
    }

    fn stats(&self) -> NodeStats {
        let (in_use, total) = self.buffer_bytes();
        NodeStats {
            uptime_ns: self.ring.now_ns() - self.started_ns,
            requests_now: (self.requests.len() + self.local.len()) as u32,
            buffer_bytes_now: in_use,
            buffer_bytes_total: total,
            ring_enters: self.ring.counters().enters,
            ..self.stats
        }
    }
}

pub(super) fn check_size(size_bytes: u64) -> Result<(), ControlError> {
    let fits = size_bytes > 0
        && size_bytes.is_multiple_of(BLOCK_SIZE as u64)
        && size_bytes <= VOLUME_BYTES;
    if fits { Ok(()) } else { Err(ControlError::BadSize { size_bytes, max_bytes: VOLUME_BYTES }) }
}

fn refusal(error: SubmitError, kind: &Kind, volume_bytes: u64) -> ControlError {
    let (name, size_bytes) = match kind {
        Kind::Create { name, size_bytes, .. } => (name.clone(), *size_bytes),
        Kind::Resize { size_bytes, .. } => (String::new(), *size_bytes),
        Kind::Clone { clone } => (clone.name.clone(), clone.size_bytes),
        Kind::Rollback { back } => return rollback_refusal(error, back),
        Kind::Snapshot { shots } => {
            let names: Vec<_> = shots.iter().map(|shot| shot.name.as_str()).collect();
            return snapshot_refusal(error, names.join(", "));
        }
        Kind::Delete { .. } | Kind::Set { .. } => (String::new(), 0),
    };
    match error {
        SubmitError::NoSpace => ControlError::NoSpace,
        SubmitError::VolumeExists => ControlError::NameTaken { name },
        SubmitError::VolumeName => ControlError::BadName { name },
        SubmitError::VolumeSize => ControlError::BadSize { size_bytes, max_bytes: VOLUME_BYTES },
        SubmitError::ReservationSize => {
            let reserved_bytes = match kind {
                Kind::Create { settings, .. } | Kind::Set { settings, .. } => settings.reserved,
                Kind::Clone { clone } => clone.settings.reserved,
                Kind::Resize { .. } => return ControlError::ShrinkReserved { size_bytes },
                Kind::Delete { .. } | Kind::Snapshot { .. } | Kind::Rollback { .. } => 0,
            };
            ControlError::BadReservation { reserved_bytes, size_bytes: volume_bytes }
        }
        SubmitError::ReservationUnbacked { available } => {
            ControlError::Unbacked { available_bytes: available }
        }
        SubmitError::VolumeHasData { bytes } => ControlError::ShrinkHasData { bytes, size_bytes },
        SubmitError::TooManyVolumes => ControlError::TooManyVolumes,
        SubmitError::NoVolume => match kind {
            // It was deleted meanwhile.
            Kind::Clone { clone } => {
                ControlError::NoSuchSnapshot { name: clone.snapshot_name.to_string() }
            }
            _ => ControlError::NoSuchVolume { name },
        },
        SubmitError::Stopping => ControlError::Stopping,
        SubmitError::Busy => ControlError::Overloaded,
        SubmitError::ReadOnly => ControlError::PoolReadOnly,
        _ => ControlError::PoolFailed,
    }
}

/// As [`refusal`], of snapshots with these names.
fn snapshot_refusal(error: SubmitError, name: String) -> ControlError {
    match error {
        SubmitError::NoSpace => ControlError::NoSpace,
        // Somebody else's are being taken.
        SubmitError::VolumeExists => ControlError::SnapshotExists { name },
        SubmitError::VolumeName => ControlError::BadSnapshotName { name },
        SubmitError::IsSnapshot => ControlError::IsSnapshot { name },
        SubmitError::TooManySnapshots => ControlError::SnapshotCount,
        SubmitError::TooManyVolumes => ControlError::TooManyVolumes,
        SubmitError::ReservationUnbacked { available } => {
            ControlError::SnapshotUnbacked { available_bytes: available }
        }
        // It was deleted meanwhile.
        SubmitError::NoVolume => ControlError::NoSuchVolume { name },
        SubmitError::Stopping => ControlError::Stopping,
        SubmitError::Busy => ControlError::Overloaded,
        SubmitError::ReadOnly => ControlError::PoolReadOnly,
        _ => ControlError::PoolFailed,
    }
}

/// The asker may have stopped waiting, which is its own affair.
pub(super) fn answer<T>(reply: Reply<T>, result: Result<T, ControlError>) {
    let _ = reply.send(result);
}
