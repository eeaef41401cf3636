//! Snapshots: volumes as they were at one point of the pool's order.
//!
//! A snapshot is one record: a cut of its volume's versions, at the record's LSN. Everything that was logged
//! for the volume before belongs to it, everything after does not. See
//! docs/decisions/0014-snapshots-are-cuts-of-a-line.md.
//!
//! Invariants:
//! 1. Records are applied in the order of their LSNs, so the map is cut exactly where the log is.
//! 2. Snapshots that are taken in one call are records of one journal block with nothing in between: after
//!    a crash all of them are there or none, and no write lies between two of them.
//! 3. All that map a block map the same copy of it, in memory and in every checkpoint.
//! 4. A snapshot is never written to. What it owns dies when it is deleted and its child does not have
//!    it.

mod clone;
mod delete;
mod heirs;

pub use clone::{CloneSpec, RollbackSpec};
pub(crate) use heirs::Heirs;

use crate::batch::{Effect, Waiter};
use crate::engine::Engine;
use crate::error::SubmitError;
use crate::format::journal::RECORD_BYTES;
use crate::format::record::{Record, volume_bytes};
use crate::plant::Plant;
use crate::volume::{Cut, Volume, VolumeInfo, VolumeSettings, VolumeState};
use flagstone_block::{Buffers, Durability, Tag, VolumeId};

/// What begins the name of a snapshot that goes on behind its volume's.
pub(crate) const BEHIND: char = '@';

/// A snapshot's name as it is logged: what comes behind its volume's name, if that is how it begins.
fn behind<'a>(volume: &str, name: &'a str) -> &'a str {
    name.strip_prefix(volume).filter(|rest| rest.starts_with(BEHIND)).unwrap_or(name)
}

/// A snapshot's name in full; `None` if it goes on behind a name that is not known.
pub(crate) fn in_full(volume: Option<&str>, logged: &str) -> Option<String> {
    if !logged.starts_with(BEHIND) {
        return Some(logged.to_owned());
    }
    volume.map(|volume| format!("{volume}{logged}"))
}

/// A snapshot to be taken.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotSpec<'a> {
    /// The volume.
    pub volume: VolumeId,
    /// Identity, chosen by the caller.
    pub uuid: [u8; 16],
    /// Unique among the volumes and snapshots of the pool.
    pub name: &'a str,
}

impl Engine {
    /// Takes snapshots of volumes, all at the same instant. They are there once the completion with
    /// `tag` is; their numbers, from `VolumeId` on in the order of `specs`, can be read from like those
    /// of volumes.
    ///
    /// # Errors
    /// `Busy`, `NoSpace`, `NoVolume`, `IsSnapshot` for a snapshot of a snapshot, `VolumeExists`,
    /// `VolumeName`, `TooManyVolumes`, `TooManySnapshots`, `ReservationUnbacked`, `Failed`, `Stopping`:
    /// nothing happened.
    pub fn snapshot_volumes(
        &mut self,
        bufs: &mut impl Buffers,
        tag: Tag,
        specs: &[SnapshotSpec<'_>],
    ) -> Result<VolumeId, SubmitError> {
        self.ready()?;
        // In the log a name may be shorter than where the snapshot is stated.
        let (mut bytes, mut logged) = (0, 0);
        for (i, spec) in specs.iter().enumerate() {
            let volume = self.writable(spec.volume)?;
            if volume.is_shrinking() {
                return Err(SubmitError::Busy);
            }
            logged += volume_bytes(behind(&volume.info.name, spec.name));
            self.check_new_name(spec.name)?;
            if specs[..i].iter().any(|other| other.name == spec.name) {
                return Err(SubmitError::VolumeExists);
            }
            bytes += volume_bytes(spec.name);
        }
        self.check_new_numbers(specs.len())?;
        if specs.is_empty() || logged > RECORD_BYTES {
            return Err(SubmitError::TooManySnapshots);
        }
        self.check_flush_room(Durability::Fua)?;
        self.check_overwritable(specs)?;
        if self.segs.free() < self.reserve() {
            return Err(self.no_segment());
        }
        self.charge_records(bytes)?;
        // A batch of their own: it has room for as many records as fit one block.
        self.close_batch(bufs);
        let mut batch = self.batch_with_room(bufs, logged, false)?;
        let first = self.next_volume;
        for spec in specs {
            self.log_snapshot(bufs, batch, spec);
            if self.planted.has(Plant::SplitGroup) {
                self.close_batch(bufs);
                batch = self.batch_with_room(bufs, logged, false)?;
            }
        }
        self.await_batch(
            batch,
            Waiter { tag, durability: Durability::Fua, rmw: None, write: None },
        );
        Ok(VolumeId(first))
    }

    /// Logs the record of a snapshot to a batch that has room for it.
    fn log_snapshot(&mut self, bufs: &mut impl Buffers, batch: u32, spec: &SnapshotSpec<'_>) {
        // What is being rewritten would lie elsewhere than in the snapshot, and seem changed.
        self.note_change(spec.volume.0, 0, u64::MAX);
        let Some(volume) = self.volumes.get(spec.volume.0) else { return };
        let (size, base) = (volume.logged_size, volume.info.base);
        let id = self.next_volume;
        self.next_volume += 1;
        let cut = Cut { line: spec.volume.0, lsn: self.next_lsn };
        let info = VolumeInfo {
            id,
            uuid: spec.uuid,
            name: spec.name.to_owned(),
            size,
            settings: VolumeSettings::default(),
            snapshot: Some(cut),
            base,
        };
        let line = volume.info.name.clone();
        let snapshot = Volume::new(info, VolumeState::Creating, 1);
        let mut record: Record<'_> = snapshot.record(cut.lsn);
        if let Record::Snapshot { name, .. } = &mut record {
            *name = behind(&line, name);
        }
        self.log_encoded(bufs, batch, Effect::Snapshot { volume: id }, &record);
        self.volumes.insert(snapshot);
        if let Some(volume) = self.volumes.get_mut(spec.volume.0) {
            volume.cuts += 1;
        }
        self.recount_held(spec.volume.0);
    }

    /// Whether the pool could take all that these volumes' reservations promise, once nothing of them
    /// is theirs alone any more.
    fn check_overwritable(&mut self, specs: &[SnapshotSpec<'_>]) -> Result<(), SubmitError> {
        let (mut more, mut leaves) = (0, 0);
        for volume in specs.iter().filter_map(|spec| self.volumes.get(spec.volume.0)) {
            let held = volume.reserved_blocks().saturating_sub(volume.taken_when_cut());
            more += held.saturating_sub(volume.held);
            leaves += volume.reserved_leaves_when_cut().saturating_sub(volume.held_leaves);
        }
        self.space.leaves += leaves;
        let room = self.room();
        self.space.leaves -= leaves;
        if more <= room {
            return Ok(());
        }
        Err(SubmitError::ReservationUnbacked { available: room << flagstone_block::BLOCK_BITS })
    }

    /// The record of a snapshot is retired: its volume's map is cut.
    pub(crate) fn cut(&mut self, snapshot: u32) {
        let Some(cut) = self.volumes.get(snapshot).and_then(|s| s.info.snapshot) else { return };
        let Some(volume) = self.volumes.get_mut(cut.line) else { return };
        volume.cuts -= 1;
        if let Some(counting) = &mut self.counting {
            counting.cut(cut.line, snapshot);
        }
        let map = volume.map.snapshot(snapshot);
        let parent = volume.parent.replace(snapshot);
        if let Some(volume) = self.volumes.get_mut(snapshot) {
            (volume.map, volume.parent) = (map, parent);
            volume.children.push(cut.line);
            volume.state = VolumeState::Active;
        }
        if let Some(parent) = parent.and_then(|parent| self.volumes.get_mut(parent)) {
            parent.children.iter_mut().filter(|c| **c == cut.line).for_each(|c| *c = snapshot);
        }
        self.recount_held(cut.line);
    }

    /// A volume that may be written to.
    pub(crate) fn writable(&self, volume: VolumeId) -> Result<&Volume, SubmitError> {
        let volume = self.active(volume)?;
        if volume.info.snapshot.is_some() { Err(SubmitError::IsSnapshot) } else { Ok(volume) }
    }
}
