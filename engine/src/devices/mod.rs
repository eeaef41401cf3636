//! The devices of a pool: growing one, adding one, and emptying one so that it can be removed.
//!
//! ```text
//! add:     JOINING superblocks on the new device -> flush -> superblock that has it -> its segments are free
//! remove:  superblock that says so -> nothing is written there any more
//!            -> journal moves, checkpoint moves metadata, cleaner moves data -> all its segments are absent
//!            -> superblock without it -> its superblocks are wiped
//! ```
//!
//! Each step is one superblock write (see `super_write.rs`), so a crash leaves the pool before it or
//! behind it; what was being emptied goes on being emptied at the next opening.
//!
//! Invariants:
//! 1. Nothing is written to the segments of a device before the superblock that has it, or that has it
//!    so large, is durable on all devices.
//! 2. A device that the superblock names says who it is: a joining superblock, which counts for nothing
//!    else, is durable before any other names the device.
//! 3. A device is removed only when no segment of it is in any state but absent, and no journal block
//!    that counts lies there.
//! 4. The journal moves at one sequence number. No block from there on is written before the
//!    superblock that says so is durable; blocks before it stay until the tail has passed them.

mod change;
mod evacuate;
mod failed;

use crate::engine::Engine;
use crate::error::SubmitError;
use crate::format::device::{DeviceRow, DeviceState, Label};
use crate::geometry::{Geometry, GeometryError};
use crate::limits::SEGMENTS_MIN;
use crate::plant::Plant;
use crate::super_write::SuperWrite;
use flagstone_block::{BLOCK_SIZE, DeviceError, Tag};

pub(crate) use change::Change;
use change::Kind;
pub(crate) use evacuate::Evacuation;
pub(crate) use failed::Failures;

/// A device that is to be added.
#[derive(Clone, Copy, Debug)]
pub struct NewDevice<'a> {
    /// Identity, a random number.
    pub uuid: [u8; 16],
    /// Size in bytes.
    pub bytes: u64,
    /// What it is called, for people.
    pub name: &'a str,
}

/// What a device of the pool is, and holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number, which commands for it carry.
    pub device: usize,
    /// Its identity.
    pub uuid: [u8; 16],
    /// What it was called when it was given to the pool.
    pub label: Label,
    /// Its size in bytes, as the pool knows it.
    pub bytes: u64,
    /// Its segments.
    pub segments: u32,
    /// Those of them that hold nothing.
    pub segments_empty: u32,
    /// Whether it is being emptied.
    pub leaving: bool,
    /// It is being emptied, and something on it can't be moved: it can't be read.
    pub stuck: bool,
    /// The journal lies there.
    pub journal: bool,
    /// It failed a write or a flush: it is not written to any more. If it could not be spared, neither is the
    /// pool.
    pub failed: bool,
    /// What failed it, if known.
    pub reason: Option<DeviceError>,
}

impl Engine {
    /// The devices, by their numbers.
    pub fn devices(&self) -> impl Iterator<Item = DeviceInfo> + '_ {
        self.devices.iter().map(|(device, row)| DeviceInfo {
            device,
            uuid: row.uuid,
            label: row.label,
            bytes: row.bytes,
            segments: row.segments,
            segments_empty: self.segs.empty_on(device),
            leaving: row.state == DeviceState::Evacuating,
            stuck: row.state == DeviceState::Evacuating
                && (self.evacuation.is_stuck(device) || self.is_counting_stuck()),
            journal: self.geo.journal.device as usize == device,
            failed: self.failed_device == Some(device) || self.has_failed(device),
            reason: self.reason(device),
        })
    }

    /// Why a device failed.
    fn reason(&self, device: usize) -> Option<DeviceError> {
        let before = self.devices.get(device).and_then(|row| row.failed);
        let errno = before.and_then(|failure| i32::try_from(failure.errno).ok());
        let before = errno.filter(|errno| *errno > 0).map(|errno| DeviceError::Os { errno });
        let pool = self.failed.filter(|_| self.failed_device == Some(device));
        self.failures.reason(device).or(before).or(pool)
    }

    /// A device that was removed since the last call: no command for it will follow.
    pub fn take_removed(&mut self) -> Option<usize> {
        self.evacuation.take_removed()
    }

    /// Whether changes of devices may be asked for now.
    fn may_change(&self) -> Result<(), SubmitError> {
        self.ready()?;
        if self.change.is_some() { Err(SubmitError::Busy) } else { Ok(()) }
    }

    fn begin_change(&mut self, tag: Option<Tag>, device: usize, kind: Kind, geo: Geometry) {
        let mut devices = self.devices;
        if let Some(row) = &mut devices.0[device] {
            let extent = geo.extents[device];
            (row.bytes, row.segments) = (extent.bytes, extent.segments);
            row.state = if extent.leaving { DeviceState::Evacuating } else { DeviceState::Present };
            if extent.segments == 0 {
                devices.0[device] = None;
            }
        }
        let bytes = self.geo.extents[device].bytes;
        self.change = Some(Change::new(tag, (device, bytes), kind, geo, devices));
        self.again = true;
    }

    /// Grows the pool to a size of `bytes` bytes of one device; the device must have that size already.
    /// The new space may be used when the completion with `tag` is there. Less than a segment more
    /// changes nothing, which is a success.
    ///
    /// # Errors
    /// `Busy` while another device changes, `NoDevice`, `DeviceSize`, `DeviceFailed`, `Failed`, `Stopping`:
    /// nothing happened.
    pub fn grow(&mut self, tag: Tag, device: usize, bytes: u64) -> Result<(), SubmitError> {
        self.may_change()?;
        if self.devices.get(device).is_none() {
            return Err(SubmitError::NoDevice);
        }
        if self.has_failed(device) {
            return Err(SubmitError::DeviceFailed);
        }
        let geo = self.geo.grown(device, bytes).ok_or(SubmitError::DeviceSize)?;
        if geo.extents[device].segments == self.geo.extents[device].segments {
            self.complete(tag, Ok(()));
            return Ok(());
        }
        let mut tag = Some(tag);
        if self.planted.has(Plant::GrowTooSoon) {
            self.fit_to(geo);
            tag.take().into_iter().for_each(|tag| self.complete(tag, Ok(())));
        }
        self.begin_change(tag, device, Kind::Fit, geo);
        Ok(())
    }

    /// Adds a device and returns the number that commands for it carry from now on, which it must be
    /// ready to take. Whatever is on it is lost. With the completion it belongs to the pool; if that
    /// is an error it does not, and no more commands for it follow.
    ///
    /// # Errors
    /// `Busy` while another device changes, or until [`Engine::take_removed`] was asked, `DeviceKnown`, `DeviceUnfit`, `Failed`, `Stopping`: nothing
    /// happened.
    pub fn add_device(&mut self, tag: Tag, new: &NewDevice<'_>) -> Result<usize, SubmitError> {
        self.may_change()?;
        if self.evacuation.has_removed() {
            // Its number is not free before the caller knows that it is gone.
            return Err(SubmitError::Busy);
        }
        if self.devices.by_uuid(&new.uuid).is_some() {
            return Err(SubmitError::DeviceKnown);
        }
        let (device, geo) = self.geo.joined(new.bytes).map_err(SubmitError::DeviceUnfit)?;
        let extent = geo.extents[device];
        let row = DeviceRow {
            uuid: new.uuid,
            bytes: extent.bytes,
            first_segment: extent.first,
            segments: extent.segments,
            state: DeviceState::Present,
            failed: None,
            label: Label::new(new.name),
        };
        let mut devices = self.devices;
        devices.0[device] = Some(row);
        if self.planted.has(Plant::JoinTooSoon) {
            self.devices = devices;
            self.fit_to(geo);
        }
        let place = (device, extent.bytes);
        self.change = Some(Change::new(Some(tag), place, Kind::Join, geo, devices));
        self.again = true;
        Ok(device)
    }

    /// Whether the others have room for what is on a device.
    ///
    /// # Errors
    /// `NoDevice`, `LastDevice`, `NoRoomElsewhere`.
    pub fn can_remove(&mut self, device: usize) -> Result<(), SubmitError> {
        if self.devices.get(device).is_none() {
            return Err(SubmitError::NoDevice);
        }
        let geo = self.geo.opened(device, false);
        if geo.capacity < SEGMENTS_MIN || self.geo.without(device).is_sparse() {
            return Err(SubmitError::LastDevice);
        }
        let before = std::mem::replace(&mut self.geo, geo);
        let usable = self.room_for_all();
        self.geo = before;
        let needed = self.needed_blocks();
        if usable < needed {
            let missing = (needed - usable) * BLOCK_SIZE as u64;
            return Err(SubmitError::NoRoomElsewhere { missing });
        }
        Ok(())
    }

    /// Begins to empty a device: with the completion that is decided, and goes on by itself, also
    /// after a restart. [`Engine::take_removed`] tells the end of it. Once more changes nothing,
    /// which is a success.
    ///
    /// # Errors
    /// As [`Engine::can_remove`], and `Busy` while another device changes, `Failed`, `Stopping`: nothing
    /// happened.
    pub fn remove_device(&mut self, tag: Tag, device: usize) -> Result<(), SubmitError> {
        self.may_change()?;
        if self.devices.get(device).is_some_and(|row| row.state == DeviceState::Evacuating) {
            self.complete(tag, Ok(()));
            return Ok(());
        }
        self.can_remove(device)?;
        let geo = self.geo.opened(device, false);
        self.begin_change(Some(tag), device, Kind::Close, geo);
        // From now on nothing is promised that only this device could keep.
        self.geo = geo;
        Ok(())
    }

    /// Ends the emptying of a device: it takes data again.
    ///
    /// # Errors
    /// `Busy` while another device changes, `NoDevice`, `DeviceFailed`, `Failed`, `Stopping`: nothing happened.
    pub fn keep_device(&mut self, tag: Tag, device: usize) -> Result<(), SubmitError> {
        self.may_change()?;
        if self.has_failed(device) {
            return Err(SubmitError::DeviceFailed);
        }
        match self.devices.get(device).map(|row| row.state) {
            None => return Err(SubmitError::NoDevice),
            Some(DeviceState::Present) => self.complete(tag, Ok(())),
            Some(DeviceState::Evacuating) => {
                let geo = self.geo.opened(device, true);
                self.begin_change(Some(tag), device, Kind::Reopen, geo);
            }
        }
        Ok(())
    }

    /// Remembers what a device is called now; it is written with the next superblock.
    pub fn set_device_name(&mut self, device: usize, name: &str) {
        if let Some(Some(row)) = self.devices.0.get_mut(device) {
            row.label = Label::new(name);
        }
    }

    /// The layout is another one now.
    fn fit_to(&mut self, geo: Geometry) {
        self.geo = geo;
        self.segs.fit(&geo);
        self.slab.grow(&geo);
        self.space.epoch += 1;
    }
}

impl From<GeometryError> for SubmitError {
    fn from(error: GeometryError) -> Self {
        Self::DeviceUnfit(error)
    }
}

/// Whether a superblock write may begin for a change.
fn is_free(super_write: &SuperWrite) -> bool {
    super_write.is_idle()
}
