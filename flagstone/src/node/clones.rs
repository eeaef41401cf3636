//! Clones of snapshots, volumes that are rolled back, and volumes that are deleted with their snapshots.
//!
//! A volume that is rolled back has another number in the engine from then on: it leaves the catalog while
//! that is under way, and comes back under its name.

use super::catalog::Entry;
use super::control::{
    ControlError, NewClone, NewRollback, Reply, RolledBack, VolumeIo, VolumeStatus,
};
use super::manage::{Asker, Kind, PendingChange, answer};
use super::reactor::Reactor;
use crate::name::{check_name, split_snapshot_name};
use flagstone_block::VolumeId;
use flagstone_engine::{CloneSpec, RollbackSpec, SubmitError, VolumeSettings};
use std::cell::RefCell;
use std::rc::Rc;

/// A clone that an engine is asked for.
pub(super) struct CloneOf {
    snapshot: VolumeId,
    pub(super) snapshot_name: Rc<str>,
    pub(super) name: String,
    uuid: [u8; 16],
    pub(super) size_bytes: u64,
    pub(super) settings: VolumeSettings,
}

impl CloneOf {
    pub(super) fn spec(&self) -> CloneSpec<'_> {
        let Self { snapshot, uuid, settings, .. } = *self;
        CloneSpec { snapshot, uuid, name: &self.name, settings }
    }

    pub(super) fn entry(&self, pool: u32, id: VolumeId) -> Entry {
        Entry {
            name: self.name.as_str().into(),
            uuid: self.uuid,
            size: self.size_bytes,
            pool,
            id,
            is_snapshot: false,
            snapshots: 0,
            read_only: false,
            connections: 0,
            io: VolumeIo::default(),
        }
    }
}

/// A rollback that an engine is asked for, or makes.
pub(super) struct Back {
    pub(super) handle: u64,
    volume: VolumeId,
    snapshot: VolumeId,
    snapshot_name: Rc<str>,
    size_bytes: u64,
    keep: Option<(String, [u8; 16])>,
}

impl Back {
    pub(super) fn spec(&self) -> RollbackSpec<'_> {
        let keep = self.keep.as_ref().map(|(name, uuid)| (*uuid, name.as_str()));
        RollbackSpec { volume: self.volume, snapshot: self.snapshot, keep }
    }
}

/// Several deletions that one asker waits for.
pub(super) struct Several(RefCell<Left>);

struct Left {
    deletions: u32,
    /// The volume as it was, when its own deletion is done.
    volume: Option<VolumeStatus>,
    error: Option<ControlError>,
    reply: Option<Reply<VolumeStatus>>,
}

impl Several {
    fn one_less(&self, change: impl FnOnce(&mut Left)) {
        let mut left = self.0.borrow_mut();
        change(&mut left);
        left.deletions -= 1;
        if left.deletions > 0 {
            return;
        }
        if let Some(reply) = left.reply.take() {
            let volume = left.volume.take().ok_or(ControlError::PoolFailed);
            answer(reply, left.error.take().map_or(volume, Err));
        }
    }

    pub(super) fn refused(&self, error: ControlError) {
        self.one_less(|left| left.error = Some(error));
    }

    /// One is done: perhaps that of the volume, as it was.
    pub(super) fn done(&self, volume: Option<VolumeStatus>) {
        self.one_less(|left| left.volume = volume.or(left.volume.take()));
    }
}

impl Reactor {
    pub(super) fn clone_snapshot(&mut self, new: NewClone, reply: Reply<VolumeStatus>) {
        match self.check_clone(new) {
            Ok(Wanted::New { pool, clone }) => self.submit_change(PendingChange {
                pool,
                kind: Kind::Clone { clone },
                asker: Asker::Volume(reply),
            }),
            Ok(Wanted::Existing(status)) => answer(reply, Ok(*status)),
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn check_clone(&self, new: NewClone) -> Result<Wanted, ControlError> {
        let NewClone { snapshot, name, uuid, settings } = new;
        if !self.stop.is_running() {
            return Err(ControlError::Stopping);
        }
        if check_name(&name).is_err() {
            return Err(ControlError::BadName { name });
        }
        let base = self.snapshot_named(&snapshot)?;
        if let Some(existing) = self.catalog.named(&name) {
            let status = self.status_of(existing);
            let as_wanted = settings.applied_to(status.settings) == status.settings;
            return match status.cloned_from.as_deref() == Some(&*base.name) && as_wanted {
                true => Ok(Wanted::Existing(Box::new(status))),
                false => Err(ControlError::NameTaken { name }),
            };
        }
        if self.catalog.is_taken(&name) {
            return Err(ControlError::NameTaken { name });
        }
        let defaults = VolumeSettings { on_full: self.default_on_full, reserved: 0 };
        let settings = settings.applied_to(defaults);
        let (snapshot, size_bytes) = (base.id, base.size);
        let snapshot_name = Rc::clone(&base.name);
        let clone = CloneOf { snapshot, snapshot_name, name, uuid, size_bytes, settings };
        Ok(Wanted::New { pool: base.pool, clone })
    }

    pub(super) fn rollback(&mut self, new: NewRollback, reply: Reply<RolledBack>) {
        match self.check_rollback(new) {
            Ok((pool, back)) => {
                self.disconnect(back.handle);
                self.catalog.withdraw(back.handle);
                let kind = Kind::Rollback { back };
                self.submit_change(PendingChange { pool, kind, asker: Asker::Rollback(reply) });
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn check_rollback(&self, new: NewRollback) -> Result<(u32, Back), ControlError> {
        let NewRollback { snapshot: name, keep, force } = new;
        if !self.stop.is_running() {
            return Err(ControlError::Stopping);
        }
        let snapshot = self.snapshot_named(&name)?;
        let volume = self.volume_named(snapshot.volume_name().unwrap_or_default())?;
        self.check_detached(volume.handle())?;
        if volume.connections > 0 && !force {
            return Err(ControlError::InUse { connections: volume.connections });
        }
        let keep = keep.map(|(short, uuid)| {
            let name = format!("{}@{short}", volume.name);
            if check_name(&short).is_err() || split_snapshot_name(&name).is_err() {
                return Err(ControlError::BadSnapshotName { name });
            }
            match self.catalog.is_taken(&name) {
                true => Err(ControlError::SnapshotExists { name }),
                false => Ok((name, uuid)),
            }
        });
        let (handle, size_bytes) = (volume.handle(), snapshot.size);
        let back = Back {
            handle,
            volume: volume.id,
            snapshot: snapshot.id,
            snapshot_name: Rc::clone(&snapshot.name),
            size_bytes,
            keep: keep.transpose()?,
        };
        Ok((volume.pool, back))
    }

    /// An engine has made a rollback durable; the volume has the number `id` now.
    pub(super) fn rolled_back(
        &mut self,
        id: VolumeId,
        back: Back,
    ) -> Result<RolledBack, ControlError> {
        let old = self.catalog.remove(back.handle).ok_or(ControlError::PoolFailed)?;
        let kept = back.keep.map(|(name, uuid)| Entry {
            name: name.into(),
            uuid,
            id: VolumeId(id.0 - 1),
            is_snapshot: true,
            read_only: true,
            connections: 0,
            io: VolumeIo::default(),
            ..old.clone()
        });
        if let Some(kept) = &kept {
            self.catalog.insert(kept.clone());
        }
        let entry = Entry { id, size: back.size_bytes, connections: 0, ..old };
        self.catalog.insert(entry.clone());
        tracing::info!(volume = &*entry.name, bytes = entry.size, "volume rolled back");
        let entry = self.catalog.get(entry.handle()).ok_or(ControlError::PoolFailed)?;
        let kept = kept.map(|kept| self.snapshot_status(&kept));
        Ok(RolledBack { volume: self.status_of(entry), kept })
    }

    /// Deletes a volume and all its snapshots.
    pub(super) fn delete_all(&mut self, volume: Entry, force: bool, reply: Reply<VolumeStatus>) {
        let snapshots = self.catalog.snapshots_from(Some(&volume), None);
        let mut entries: Vec<Entry> = snapshots.cloned().collect();
        entries.push(Entry { snapshots: 0, ..volume });
        let connections = entries.iter().map(|entry| entry.connections).sum();
        if let Err(error) = entries.iter().try_for_each(|e| self.check_detached(e.handle())) {
            return answer(reply, Err(error));
        }
        if connections > 0 && !force {
            return answer(reply, Err(ControlError::InUse { connections }));
        }
        let deletions = entries.len() as u32;
        let left = Left { deletions, volume: None, error: None, reply: Some(reply) };
        let several = Rc::new(Several(RefCell::new(left)));
        for entry in entries {
            self.delete_entry(&entry, force, Asker::Several(Rc::clone(&several)));
        }
    }

    fn snapshot_named(&self, name: &str) -> Result<&Entry, ControlError> {
        let found = self.catalog.snapshot(name);
        found.ok_or_else(|| ControlError::NoSuchSnapshot { name: name.to_owned() })
    }

    /// The snapshot that a volume was cloned from, or rolled back to, if that is still there.
    pub(super) fn base_of(&self, entry: &Entry) -> Option<String> {
        let engine = &self.pools[entry.pool as usize].engine;
        let base = engine.volume(entry.id)?.base?;
        Some(engine.volume(VolumeId(base))?.name.clone())
    }
}

/// What becomes of a request for a clone.
enum Wanted {
    New { pool: u32, clone: CloneOf },
    Existing(Box<VolumeStatus>),
}

/// Why an engine refused a rollback.
pub(super) fn rollback_refusal(error: SubmitError, back: &Back) -> ControlError {
    let kept = back.keep.as_ref().map_or_else(String::new, |(name, _)| name.clone());
    match error {
        SubmitError::NoSpace => ControlError::NoSpace,
        // It was deleted meanwhile.
        SubmitError::NoVolume => {
            ControlError::NoSuchSnapshot { name: back.snapshot_name.to_string() }
        }
        SubmitError::VolumeExists => ControlError::SnapshotExists { name: kept },
        SubmitError::VolumeName => ControlError::BadSnapshotName { name: kept },
        SubmitError::ReservationSize => {
            ControlError::ShrinkReserved { size_bytes: back.size_bytes }
        }
        SubmitError::ReservationUnbacked { available } => {
            ControlError::SnapshotUnbacked { available_bytes: available }
        }
        SubmitError::TooManyVolumes => ControlError::TooManyVolumes,
        SubmitError::Stopping => ControlError::Stopping,
        SubmitError::Busy => ControlError::Overloaded,
        SubmitError::ReadOnly => ControlError::PoolReadOnly,
        _ => ControlError::PoolFailed,
    }
}
