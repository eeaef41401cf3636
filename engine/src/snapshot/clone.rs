//! Clones, and volumes that become again what a snapshot has.
//!
//! A clone is a volume whose parent is a snapshot: it begins with that one's map, and owns nothing. What the
//! log says of it is a line of its own.
//!
//! A rollback makes a clone that has the volume's name and identity, and deletes the volume; what it held
//! may stay as a snapshot. So its number is another afterwards.
//!
//! Invariants:
//! 1. A clone's map is made when its record is logged: its snapshot does not change any more. Nobody may
//!    read or write it before the record is durable.
//! 2. The records of a rollback are records of one journal block: after a crash all of them are there, or
//!    none.
//! 3. Kept zeroes of the snapshot are promised once more, to the clone.

use super::{BEHIND, SnapshotSpec};
use crate::batch::{Effect, Waiter};
use crate::engine::Engine;
use crate::error::SubmitError;
use crate::format::record::{Record, volume_bytes};
use crate::limits::{NAME_BYTES, VOLUMES};
use crate::plant::Plant;
use crate::volume::{Volume, VolumeInfo, VolumeSettings, VolumeState};
use flagstone_block::{Buffers, Durability, Tag, VolumeId};

/// A volume to be made from a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct CloneSpec<'a> {
    /// The snapshot. Size and content are its.
    pub snapshot: VolumeId,
    /// Identity, chosen by the caller.
    pub uuid: [u8; 16],
    /// Unique in the pool.
    pub name: &'a str,
    /// What its owner sets.
    pub settings: VolumeSettings,
}

/// A volume that is to have a snapshot's content again.
#[derive(Clone, Copy, Debug)]
pub struct RollbackSpec<'a> {
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot: one of the volume's or another.
    pub snapshot: VolumeId,
    /// Identity and name of a snapshot that keeps what the volume has now.
    pub keep: Option<([u8; 16], &'a str)>,
}

impl Engine {
    /// Makes a volume that has what a snapshot has; it serves once the completion with `tag` is there.
    ///
    /// # Errors
    /// `Busy`, `NoSpace`, `NoVolume`, `NotSnapshot`, `VolumeExists`, `VolumeName`, `ReservationSize`,
    /// `ReservationUnbacked`, `TooManyVolumes`, `Failed`, `Stopping`: nothing happened.
    pub fn clone_volume(
        &mut self,
        bufs: &mut impl Buffers,
        tag: Tag,
        spec: &CloneSpec<'_>,
    ) -> Result<VolumeId, SubmitError> {
        self.ready()?;
        self.check_new_name(spec.name)?;
        let (kept, size) = self.check_clone(spec.snapshot, spec.settings)?;
        self.check_new_numbers(1)?;
        self.check_flush_room(Durability::Fua)?;
        self.check_backed(None, spec.settings, size)?;
        if kept > self.room() {
            return Err(SubmitError::NoSpace);
        }
        if self.segs.free() < self.reserve() {
            return Err(self.no_segment());
        }
        self.charge_records(volume_bytes(spec.name))?;
        let batch = self.batch_with_room(bufs, volume_bytes(spec.name), false)?;
        let id = self.log_clone(bufs, batch, spec);
        self.await_batch(
            batch,
            Waiter { tag, durability: Durability::Fua, rmw: None, write: None },
        );
        Ok(id)
    }

    /// Gives a volume the content and the size of a snapshot; what it had is kept as a snapshot, or
    /// given up. The volume has the number that is returned from now on, and serves once the completion
    /// with `tag` is there; the old number is gone at once. The number of the snapshot that is kept is
    /// one less.
    ///
    /// # Errors
    /// `Busy`, `NoSpace`, `NoVolume`, `IsSnapshot`, `NotSnapshot`, `VolumeExists`, `VolumeName`,
    /// `ReservationSize` (the snapshot is smaller than the volume's reservation), `ReservationUnbacked`,
    /// `TooManyVolumes`, `Failed`, `Stopping`: nothing happened.
    pub fn rollback_volume(
        &mut self,
        bufs: &mut impl Buffers,
        tag: Tag,
        spec: &RollbackSpec<'_>,
    ) -> Result<VolumeId, SubmitError> {
        self.ready()?;
        let volume = self.writable(spec.volume)?;
        if volume.is_shrinking() {
            return Err(SubmitError::Busy);
        }
        let (settings, kept_now) = (volume.logged_settings, volume.kept());
        let (uuid, name) = (volume.info.uuid, volume.info.name.clone());
        let id = spec.volume.0;
        let delete = |lsn| Record::VolumeDelete { volume: id, lsn };
        let mut bytes = volume_bytes(&name) + delete(0).encoded_bytes();
        if let Some((_, keep)) = spec.keep {
            self.check_new_name(keep)?;
            bytes += volume_bytes(keep);
        }
        let (kept, size) = self.check_clone(spec.snapshot, settings)?;
        self.check_new_numbers(2)?;
        self.check_flush_room(Durability::Fua)?;
        if kept > self.room() + kept_now {
            return Err(SubmitError::NoSpace);
        }
        if self.segs.free() < self.reserve() {
            return Err(self.no_segment());
        }
        self.charge_records(bytes)?;
        self.close_batch(bufs);
        let mut batch = self.batch_with_room(bufs, bytes, false)?;
        // What was held back for the volume is held back for what takes its place.
        self.set_reserved(spec.volume.0, 0);
        if let Err(error) = self.check_backed(None, settings, size) {
            self.set_reserved(spec.volume.0, settings.reserved);
            return Err(error);
        }
        if let Some((uuid, name)) = spec.keep {
            self.log_snapshot(bufs, batch, &SnapshotSpec { volume: spec.volume, uuid, name });
        }
        if self.planted.has(Plant::SplitRollback) {
            self.close_batch(bufs);
            batch = self.batch_with_room(bufs, bytes, false)?;
        }
        self.log(bufs, batch, Effect::VolumeDelete { volume: id }, delete);
        if let Some(volume) = self.volumes.get_mut(id) {
            volume.state = VolumeState::Deleting;
        }
        let clone = CloneSpec { snapshot: spec.snapshot, uuid, name: &name, settings };
        let id = self.log_clone(bufs, batch, &clone);
        self.await_batch(
            batch,
            Waiter { tag, durability: Durability::Fua, rmw: None, write: None },
        );
        Ok(id)
    }

    /// Kept zeroes that a clone of the snapshot would be promised, and its size.
    fn check_clone(
        &self,
        snapshot: VolumeId,
        settings: VolumeSettings,
    ) -> Result<(u64, u64), SubmitError> {
        let snapshot = self.active(snapshot)?;
        if snapshot.info.snapshot.is_none() {
            return Err(SubmitError::NotSnapshot);
        }
        if !settings.fit(snapshot.info.size) {
            return Err(SubmitError::ReservationSize);
        }
        Ok((snapshot.map.kept(), snapshot.info.size))
    }

    fn set_reserved(&mut self, volume: u32, reserved: u64) {
        if let Some(volume) = self.volumes.get_mut(volume) {
            volume.logged_settings.reserved = reserved;
        }
        self.count_reservation(volume);
    }

    /// Logs the record of a clone to a batch that has room for it, and makes it.
    fn log_clone(&mut self, bufs: &mut impl Buffers, batch: u32, spec: &CloneSpec<'_>) -> VolumeId {
        let CloneSpec { snapshot: VolumeId(base), uuid, name, settings } = *spec;
        let id = self.next_volume;
        self.next_volume += 1;
        let parent = self.volumes.get_mut(base).expect("it was looked up");
        let size = parent.info.size;
        let map = parent.map.child(id);
        parent.children.push(id);
        let name = name.to_owned();
        let info = VolumeInfo { id, uuid, name, size, settings, snapshot: None, base: Some(base) };
        let mut clone = Volume::new(info, VolumeState::Creating, 1);
        (clone.map, clone.parent) = (map, Some(base));
        self.kept += clone.kept();
        let record = clone.record(self.next_lsn);
        self.log_encoded(bufs, batch, Effect::VolumeCreate { volume: id }, &record);
        self.volumes.insert(clone);
        self.count_reservation(id);
        VolumeId(id)
    }

    /// Whether a volume or snapshot can have this name.
    pub(super) fn check_new_name(&self, name: &str) -> Result<(), SubmitError> {
        if name.is_empty() || name.len() > NAME_BYTES || name.starts_with(BEHIND) {
            return Err(SubmitError::VolumeName);
        }
        match self.volumes.named(name) {
            Some(_) => Err(SubmitError::VolumeExists),
            None => Ok(()),
        }
    }

    /// Whether there can be so many more volumes and snapshots.
    pub(super) fn check_new_numbers(&self, count: usize) -> Result<(), SubmitError> {
        let numbers = u32::try_from(count).unwrap_or(u32::MAX);
        let next = self.next_volume.checked_add(numbers);
        match self.volumes.len() + count > VOLUMES || next.is_none_or(|next| next == u32::MAX) {
            true => Err(SubmitError::TooManyVolumes),
            false => Ok(()),
        }
    }
}
