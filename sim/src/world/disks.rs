//! Disks that come and go while the pool is in use, and which of them the pool must have.

use super::{Check, Request, Submitted, World};
use crate::disk::{Layout, Trouble};
use flagstone_engine::{DeviceInfo, NewDevice, SubmitError};
use std::collections::BTreeSet;

/// Disks that a run has at once, at most.
const DISKS_MAX: usize = 6;

type Uuid = [u8; 16];

/// What is known of the pool's devices, whatever crashes come.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// All that ever were given to the pool.
    known: BTreeSet<Uuid>,
    /// These belong to it, and are not being emptied.
    certain: BTreeSet<Uuid>,
    /// These are being emptied, or gone.
    leaving: BTreeSet<Uuid>,
}

/// A change of the pool's devices that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DiskChange {
    Add(Uuid),
    Remove(Uuid),
    Keep(Uuid),
}

impl World {
    /// The disks of a new pool.
    pub(super) fn first_disks(&mut self) {
        let sizes: Vec<u64> =
            std::iter::once(self.config.pool_bytes).chain(self.config.more_disks.clone()).collect();
        for disk in self.disk.disks() {
            if disk >= sizes.len() {
                self.disk.remove(disk);
            }
        }
        for (disk, bytes) in sizes.into_iter().enumerate() {
            if self.disk.bytes(disk) < bytes {
                self.disk.put(disk, bytes);
            }
        }
        self.members = Members::default();
    }

    /// Gives the pool another disk.
    pub fn add_disk(&mut self, bytes: u64) -> Check<Submitted<()>> {
        let devices = self.engine().devices().count();
        if devices >= DISKS_MAX {
            return Ok(Submitted::Refused(SubmitError::NoDevice));
        }
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&self.rng.next().to_le_bytes());
        let tag = self.peek_tag();
        let new = NewDevice { uuid, bytes, name: "added" };
        let disk = match self.engine().add_device(tag, &new) {
            Ok(disk) => disk,
            Err(error) => return self.change_refused("add a disk", error),
        };
        self.disk.put(disk, bytes);
        self.members.known.insert(uuid);
        if let Ok((_, geometry)) = self.engine().geometry().joined(bytes) {
            self.segments.1 = self.segments.1.max(geometry.segments);
        }
        self.enter(0, Request::Disk(DiskChange::Add(uuid)))?;
        self.log.step(&[60, bytes], || format!("add disk {disk} of {bytes} bytes"));
        Ok(Submitted::Taken(()))
    }

    /// Has a disk emptied, or kept after all.
    pub fn remove_disk(&mut self, keep: bool) -> Check<Submitted<()>> {
        let devices: Vec<DeviceInfo> = self.engine().devices().collect();
        // The one with the journal is a matter of its own.
        let journal = devices.iter().find(|device| device.journal).copied();
        let any = self.rng.pick(&devices);
        let device = journal.filter(|_| self.rng.one_in(2)).unwrap_or(any);
        let tag = self.peek_tag();
        let done = match keep {
            true => self.engine().keep_device(tag, device.device),
            false => self.engine().remove_device(tag, device.device),
        };
        if let Err(error) = done {
            return self.change_refused("remove or keep a disk", error);
        }
        let change = match keep {
            true => DiskChange::Keep(device.uuid),
            false => DiskChange::Remove(device.uuid),
        };
        self.members.certain.remove(&device.uuid);
        self.members.leaving.remove(&device.uuid);
        self.enter(0, Request::Disk(change))?;
        self.log
            .step(&[61, device.device as u64], || format!("disk {}: {change:?}", device.device));
        Ok(Submitted::Taken(()))
    }

    /// Blocks that a power cut may lose, but for those of disks that failed.
    pub fn unflushed(&mut self) -> usize {
        let failed = self.engine.as_ref().map(|engine| {
            engine.devices().filter(|device| device.failed).map(|device| device.device).collect()
        });
        let failed: Vec<usize> = failed.unwrap_or_default();
        self.disk.pending_but(&failed)
    }

    /// Has a disk begin to fail after a while, now and then.
    pub fn begin_trouble(&mut self) {
        if self.config.trouble == 0 || !self.rng.percent(self.config.trouble) {
            return;
        }
        let devices: Vec<DeviceInfo> = self.engine().devices().collect();
        let others: Vec<DeviceInfo> =
            devices.iter().filter(|device| !device.journal).copied().collect();
        let any = others.is_empty() || self.rng.one_in(8);
        let device = self.rng.pick(if any { &devices } else { &others });
        let (writes, flushes) =
            self.rng.pick(&[(100, 100), (100, 100), (100, 0), (0, 100), (20, 20), (20, 0)]);
        let reads = self.rng.percent(self.config.trouble_reads);
        let trouble = Trouble {
            disk: device.device,
            after: self.rng.skewed(300),
            lasts: self.rng.pick(&[1, 1, 2, 20, u64::MAX, u64::MAX]),
            writes,
            flushes,
            reads: if reads { self.rng.pick(&[30, 100]) } else { 0 },
        };
        if reads {
            self.oracle.blind();
        }
        self.log.step(&[65, device.device as u64], || format!("{trouble:?}"));
        self.disk.set_trouble(Some(trouble));
    }

    fn change_refused(&mut self, what: &str, error: SubmitError) -> Check<Submitted<()>> {
        self.log.step(&[62], || format!("{what} refused: {error}"));
        match error {
            SubmitError::Busy => Ok(Submitted::Busy),
            SubmitError::Failed if self.device_failed => Ok(Submitted::Refused(error)),
            SubmitError::NoRoomElsewhere { .. }
            | SubmitError::LastDevice
            | SubmitError::DeviceUnfit(_)
            | SubmitError::DeviceFailed
            | SubmitError::Stopping => Ok(Submitted::Refused(error)),
            _ => Err(self.fail(format!("{what} refused: {error}"))),
        }
    }

    pub(super) fn disk_changed(&mut self, change: DiskChange, done: bool) {
        match change {
            DiskChange::Add(uuid) | DiskChange::Keep(uuid) if done => {
                self.members.certain.insert(uuid);
            }
            DiskChange::Remove(uuid) if done => {
                self.members.leaving.insert(uuid);
            }
            // It is none of the pool's, so nobody flushes it.
            DiskChange::Add(_) if !self.device_failed => self.take_strange_disks(),
            _ => {}
        }
    }

    /// Takes away the disks that are none of the pool's.
    fn take_strange_disks(&mut self) {
        let devices: Vec<usize> = self.engine().devices().map(|device| device.device).collect();
        for disk in self.disk.disks() {
            if !devices.contains(&disk) {
                self.disk.remove(disk);
            }
        }
    }

    /// Takes away the disks that the pool has removed.
    pub(super) fn take_removed_disks(&mut self) {
        while let Some(disk) = self.engine().take_removed() {
            self.log.step(&[63, disk as u64], || format!("disk {disk} is removed"));
            self.disk.remove(disk);
            self.stats.disks_removed += 1;
        }
        if let Some(engine) = &self.engine {
            self.layout = Some(Layout::new(*engine.geometry()));
        }
    }

    /// The pool has the devices that it must have; others are taken away.
    pub(super) fn check_members(&mut self) -> Check {
        let devices: Vec<DeviceInfo> = self.engine().devices().collect();
        if self.members.known.is_empty() {
            self.members.known.extend(devices.iter().map(|device| device.uuid));
            self.members.certain = self.members.known.clone();
        }
        let known = |device: &&DeviceInfo| !self.members.known.contains(&device.uuid);
        let stranger = devices.iter().find(known);
        let found = |uuid: &Uuid| devices.iter().find(|device| device.uuid == *uuid);
        let lost = self.members.certain.iter().find(|&uuid| found(uuid).is_none_or(|d| d.leaving));
        let back =
            self.members.leaving.iter().find(|&uuid| found(uuid).is_some_and(|d| !d.leaving));
        if stranger.is_some() || lost.is_some() || back.is_some() {
            let what = format!("stranger {stranger:?}, lost {lost:?}, back {back:?}: {devices:?}");
            return Err(self.fail(what));
        }
        for device in &devices {
            if device.leaving {
                self.members.leaving.insert(device.uuid);
            } else {
                self.members.certain.insert(device.uuid);
            }
        }
        self.take_strange_disks();
        Ok(())
    }

    /// At rest, and with room, nothing is left of devices that were to be removed.
    pub fn check_evacuated(&mut self) -> Check {
        let usage = self.engine().usage();
        let floor = usage.segments_free <= usage.segments_reserved + 1;
        let told = self.bad_leaves_told > 0 || self.engine().counters().leaf_pages_bad > 0;
        let told = told || self.engine().wants_rebuild() || self.engine().is_counting();
        if floor || told || self.moved_bad() || self.device_failed || self.disk.is_damaged() {
            return Ok(());
        }
        // What was damaged for a while, and is repaired, is not tried for ever.
        let damaged = self.disk.counters().tainted_reads > self.tainted_at_open;
        let left = self.engine().devices().find(|device| device.leaving);
        match left {
            Some(device) if device.stuck && (damaged || device.failed) => Ok(()),
            Some(device) => {
                Err(self.fail(format!("at rest, but {device:?} is not empty: {usage:?}")))
            }
            None => Ok(()),
        }
    }
}
