//! Snapshots: taken, listed, found, deleted. They are exported like volumes, but read-only, and a
//! volume that has some is not deleted.

use super::catalog::Entry;
use super::control::{ControlError, NewSnapshot, Reply, SnapshotStatus, VolumeIo};
use super::limits::LIST_VOLUMES;
use super::manage::{Asker, Kind, PendingChange, answer};
use super::reactor::Reactor;
use crate::name::{check_name, split_snapshot_name};
use flagstone_block::VolumeId;
use flagstone_engine::SnapshotSpec;

/// A snapshot that an engine is asked for, or takes.
pub(super) struct Shot {
    pub(super) volume: VolumeId,
    /// With the volume's.
    pub(super) name: String,
    pub(super) uuid: [u8; 16],
}

impl Shot {
    pub(super) fn spec(&self) -> SnapshotSpec<'_> {
        SnapshotSpec { volume: self.volume, uuid: self.uuid, name: &self.name }
    }
}

impl Reactor {
    /// Enters every snapshot of every volume that is served.
    pub(super) fn fill_snapshots(&mut self) {
        for (p, pool) in self.pools.iter().enumerate() {
            for info in pool.engine.snapshots() {
                let volume = split_snapshot_name(&info.name).ok().map(|(volume, _)| volume);
                let served = volume.and_then(|volume| self.catalog.named(volume));
                let taken = served.is_none_or(|volume| volume.pool == p as u32)
                    && self.catalog.insert(Entry {
                        name: info.name.as_str().into(),
                        uuid: info.uuid,
                        size: info.size,
                        pool: p as u32,
                        id: VolumeId(info.id),
                        is_snapshot: true,
                        snapshots: 0,
                        read_only: true,
                        connections: 0,
                        io: VolumeIo::default(),
                    });
                if !taken {
                    tracing::warn!(
                        snapshot = info.name,
                        pool = %pool.path.display(),
                        "not served: neither is its volume"
                    );
                }
            }
        }
    }

    pub(super) fn take_snapshots(
        &mut self,
        wanted: Vec<NewSnapshot>,
        reply: Reply<Vec<SnapshotStatus>>,
    ) {
        match self.check_snapshots(wanted) {
            Ok((pool, shots)) => self.submit_change(PendingChange {
                pool,
                kind: Kind::Snapshot { shots },
                asker: Asker::Snapshots(reply),
            }),
            Err(error) => answer(reply, Err(error)),
        }
    }

    /// The pool of the volumes, and what its engine is to be asked for.
    fn check_snapshots(&self, wanted: Vec<NewSnapshot>) -> Result<(u32, Vec<Shot>), ControlError> {
        if !self.stop.is_running() {
            return Err(ControlError::Stopping);
        }
        let mut place: Option<(u32, String)> = None;
        let mut shots: Vec<Shot> = Vec::new();
        for new in wanted {
            let (name, uuid) = (new.full_name(), new.uuid);
            if check_name(&new.name).is_err() || split_snapshot_name(&name).is_err() {
                return Err(ControlError::BadSnapshotName { name });
            }
            let entry = self.volume_named(&new.volume)?;
            if self.catalog.is_taken(&name) || shots.iter().any(|shot| shot.name == name) {
                return Err(ControlError::SnapshotExists { name });
            }
            shots.push(Shot { volume: entry.id, name, uuid });
            match &place {
                Some((pool, first)) if *pool != entry.pool => {
                    let (first, second) = (first.clone(), new.volume);
                    return Err(ControlError::DifferentPools { first, second });
                }
                Some(_) => {}
                None => place = Some((entry.pool, new.volume)),
            }
        }
        let (pool, _) = place.ok_or(ControlError::SnapshotCount)?;
        Ok((pool, shots))
    }

    /// The engine has made snapshots durable, the first of them with the number `first`.
    pub(super) fn snapshots_taken(
        &mut self,
        pool: u32,
        first: VolumeId,
        shots: Vec<Shot>,
    ) -> Vec<SnapshotStatus> {
        let mut statuses = Vec::with_capacity(shots.len());
        for (number, shot) in (first.0..).zip(shots) {
            let id = VolumeId(number);
            let info = self.pools[pool as usize].engine.volume(id);
            let entry = Entry {
                name: shot.name.into(),
                uuid: shot.uuid,
                size: info.map_or(0, |info| info.size),
                pool,
                id,
                is_snapshot: true,
                snapshots: 0,
                read_only: true,
                connections: 0,
                io: VolumeIo::default(),
            };
            tracing::info!(snapshot = &*entry.name, bytes = entry.size, "snapshot taken");
            statuses.push(self.snapshot_status(&entry));
            self.catalog.insert(entry);
        }
        statuses
    }

    pub(super) fn list_snapshots(
        &self,
        volume: Option<String>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<SnapshotStatus>, ControlError> {
        let volume = volume.map(|name| self.volume_named(&name)).transpose()?;
        let entries = self.catalog.snapshots_from(volume, after).take(limit.min(LIST_VOLUMES));
        Ok(entries.map(|entry| self.snapshot_status(entry)).collect())
    }

    pub(super) fn get_snapshot(&self, name: String) -> Result<SnapshotStatus, ControlError> {
        let found = self.catalog.snapshot(&name).map(|entry| self.snapshot_status(entry));
        found.ok_or(ControlError::NoSuchSnapshot { name })
    }

    pub(super) fn delete_snapshot(
        &mut self,
        name: String,
        force: bool,
        reply: Reply<SnapshotStatus>,
    ) {
        match self.catalog.snapshot(&name).cloned() {
            Some(entry) => self.delete_entry(&entry, force, Asker::Snapshot(reply)),
            None => answer(reply, Err(ControlError::NoSuchSnapshot { name })),
        }
    }

    /// The exported volume of that name.
    pub(super) fn volume_named(&self, name: &str) -> Result<&Entry, ControlError> {
        self.catalog.named(name).ok_or_else(|| match self.catalog.snapshot(name) {
            Some(_) => ControlError::IsSnapshot { name: name.to_owned() },
            None => ControlError::NoSuchVolume { name: name.to_owned() },
        })
    }

    pub(super) fn snapshot_status(&self, entry: &Entry) -> SnapshotStatus {
        let pool = &self.pools[entry.pool as usize];
        SnapshotStatus {
            name: entry.name.to_string(),
            uuid: entry.uuid,
            pool: pool.path.clone(),
            size_bytes: entry.size,
            mapped_bytes: pool.engine.volume_usage(entry.id).map_or(0, |usage| usage.mapped),
            connections: entry.connections,
            uris: self.endpoints.uris(&entry.name),
            handle: entry.handle(),
        }
    }
}
