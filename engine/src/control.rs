//! Creating, setting and deleting volumes. Each is durable when it completes. Their size is changed in
//! [`crate::resize`].

use crate::batch::{Effect, Waiter};
use crate::engine::Engine;
use crate::error::SubmitError;
use crate::format::record::{RECORD_BYTES_MAX, Record, volume_bytes};
use crate::limits::{NAME_BYTES, VOLUME_BYTES, VOLUMES};
use crate::volume::{Volume, VolumeInfo, VolumeSettings, VolumeState};
use flagstone_block::{BLOCK_SIZE, Buffers, Durability, Tag, VolumeId};

/// A volume to be created.
#[derive(Clone, Copy, Debug)]
pub struct VolumeSpec<'a> {
    /// Identity, chosen by the caller.
    pub uuid: [u8; 16],
    /// Unique in the pool.
    pub name: &'a str,
    /// Bytes, a multiple of 4096.
    pub size: u64,
    /// What its owner sets.
    pub settings: VolumeSettings,
}

pub(crate) fn check_size(size: u64) -> Result<(), SubmitError> {
    if size == 0 || !size.is_multiple_of(BLOCK_SIZE as u64) || size > VOLUME_BYTES {
        return Err(SubmitError::VolumeSize);
    }
    Ok(())
}

impl Engine {
    /// Creates a thin volume; it serves once the completion with `tag` is there.
    ///
    /// # Errors
    /// `Busy`, `NoSpace`, `VolumeExists`, `VolumeName`, `VolumeSize`, `ReservationSize`,
    /// `ReservationUnbacked`, `TooManyVolumes`, `Failed`, `Stopping`: nothing happened.
    pub fn create_volume(
        &mut self,
        bufs: &mut impl Buffers,
        tag: Tag,
        spec: &VolumeSpec<'_>,
    ) -> Result<VolumeId, SubmitError> {
        self.ready()?;
        let behind = spec.name.starts_with(crate::snapshot::BEHIND);
        if spec.name.is_empty() || spec.name.len() > NAME_BYTES || behind {
            return Err(SubmitError::VolumeName);
        }
        check_size(spec.size)?;
        if self.volumes.named(spec.name).is_some() {
            return Err(SubmitError::VolumeExists);
        }
        if self.volumes.len() >= VOLUMES || self.next_volume == u32::MAX {
            return Err(SubmitError::TooManyVolumes);
        }
        if !spec.settings.fit(spec.size) {
            return Err(SubmitError::ReservationSize);
        }
        self.check_flush_room(Durability::Fua)?;
        self.check_backed(None, spec.settings, spec.size)?;
        if self.segs.free() < self.reserve() {
            // What compaction needs is gone already, unless it is about to give some back.
            return Err(self.no_segment());
        }
        self.charge_records(volume_bytes(spec.name))?;
        let batch = self.batch_with_room(bufs, RECORD_BYTES_MAX, false)?;
        let id = self.next_volume;
        self.next_volume += 1;
        let record = Record::Volume {
            volume: id,
            lsn: self.next_lsn,
            uuid: spec.uuid,
            size: spec.size,
            vseq: 0,
            settings: spec.settings,
            base: None,
            name: spec.name,
        };
        self.log_encoded(bufs, batch, Effect::VolumeCreate { volume: id }, &record);
        self.await_batch(
            batch,
            Waiter { tag, durability: Durability::Fua, rmw: None, write: None },
        );
        let VolumeSpec { uuid, name, size, settings } = *spec;
        let name = name.to_owned();
        let info = VolumeInfo { id, uuid, name, size, settings, snapshot: None, base: None };
        self.volumes.insert(Volume::new(info, VolumeState::Creating, 1));
        self.count_reservation(id);
        Ok(VolumeId(id))
    }

    /// Changes what the owner of a volume may set. A reservation counts from now on, not only
    /// from the completion on; space that is no longer reserved is anybody's at once.
    ///
    /// # Errors
    /// `Busy`, `NoVolume`, `ReservationSize`, `ReservationUnbacked`, `Failed`, `Stopping`: nothing
    /// happened.
    pub fn set_volume(
        &mut self,
        bufs: &mut impl Buffers,
        tag: Tag,
        volume: VolumeId,
        settings: VolumeSettings,
    ) -> Result<(), SubmitError> {
        self.ready()?;
        let vol = self.writable(volume)?;
        // Not what it is being grown to: the growth may be lost and this may not.
        if !settings.fit(vol.end()) {
            return Err(SubmitError::ReservationSize);
        }
        let (same, size) = (vol.logged_settings == settings, vol.logged_size);
        self.check_flush_room(Durability::Fua)?;
        if same {
            self.answer_without_record(tag, Durability::Fua);
            return Ok(());
        }
        self.check_backed(Some(volume.0), settings, size)?;
        self.check_chain_room()?;
        let batch = self.batch_with_room(bufs, RECORD_BYTES_MAX, false)?;
        let vol = self.volumes.get_mut(volume.0).ok_or(SubmitError::NoVolume)?;
        let vseq = vol.next_vseq;
        vol.next_vseq += 1;
        vol.logged_settings = settings;
        self.count_reservation(volume.0);
        let effect = Effect::VolumeSet { volume: volume.0, settings };
        self.log(bufs, batch, effect, |lsn| Record::VolumeSet {
            volume: volume.0,
            lsn,
            settings,
            vseq,
        });
        self.await_batch(
            batch,
            Waiter { tag, durability: Durability::Fua, rmw: None, write: None },
        );
        Ok(())
    }

    /// Deletes a volume or a snapshot: refuses its requests at once, returns its space in the
    /// background. Snapshots of it, and what was cloned from these, stay as they are.
    ///
    /// # Errors
    /// `Busy`, `NoVolume`, `Failed`, `Stopping`: nothing happened.
    pub fn delete_volume(
        &mut self,
        bufs: &mut impl Buffers,
        tag: Tag,
        volume: VolumeId,
    ) -> Result<(), SubmitError> {
        self.ready()?;
        if self.active(volume)?.is_shrinking() {
            return Err(SubmitError::Busy);
        }
        self.check_flush_room(Durability::Fua)?;
        let batch = self.batch_with_room(bufs, RECORD_BYTES_MAX, true)?;
        let effect = Effect::VolumeDelete { volume: volume.0 };
        self.log(bufs, batch, effect, |lsn| Record::VolumeDelete { volume: volume.0, lsn });
        self.await_batch(
            batch,
            Waiter { tag, durability: Durability::Fua, rmw: None, write: None },
        );
        if let Some(volume) = self.volumes.get_mut(volume.0) {
            volume.state = VolumeState::Deleting;
        }
        Ok(())
    }
}
