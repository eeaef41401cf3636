//! A pool of which a device is missing, opened to be read.
//!
//! One that is missing, but had failed before and was parted with (see `devices/failed.rs`), keeps no pool from
//! being written to: what lies on it is an I/O error.
//!
//! Invariants:
//! 1. Nothing is written, to no device: what a later opening with all devices finds is what it would have
//!    found. No request but a read is taken, and no upkeep is done.
//! 2. What is read is right, or an error: everything that says where blocks lie is read to the end, as
//!    always, or the pool is not opened. What lies on the missing device is an I/O error.
//! 3. Where the log ends nobody knows who can't read the data of its unproven tail. What lies on the
//!    missing device counts there: to leave it out would show what it has overwritten. So blocks that no
//!    flush had covered may be read now that an opening with all devices will not find.

use crate::engine::Engine;
use crate::error::{Needed, OpenError};
use crate::format::superblock::Superblock;
use crate::geometry::Geometry;
use flagstone_block::{BlockIo, DEVICES, DeviceError, IoToken};
use std::collections::VecDeque;

/// As in `errno.h`.
const ENXIO: i32 = 6;

/// Which devices of a pool are not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Missing {
    gone: [bool; DEVICES],
    /// One of them is missed: it did not fail before.
    missed: bool,
}

impl Missing {
    /// Those of `superblock` that are not there.
    pub(crate) fn of(superblock: &Superblock, io: &dyn BlockIo) -> Self {
        let mut missing = Self::default();
        for (device, row) in superblock.devices.iter() {
            let gone = io.device_bytes(device).is_none();
            missing.gone[device] = gone;
            missing.missed |= gone && row.failed.is_none();
        }
        missing
    }

    /// Whether any is that the pool needs to be written to: one that failed before is none.
    pub(crate) fn any(&self) -> bool {
        self.missed
    }

    /// Whether this one is.
    pub(crate) fn has(&self, device: usize) -> bool {
        self.gone[device]
    }

    /// Whether a segment lies on one.
    pub(crate) fn holds(&self, geo: &Geometry, segment: u32) -> bool {
        geo.device_of(segment).is_some_and(|device| self.gone[device])
    }

    /// What keeps the pool from being opened without the device that a segment lies on, if that is
    /// missing; otherwise `error`.
    pub(crate) fn explain(
        &self,
        superblock: &Superblock,
        geo: &Geometry,
        error: OpenError,
    ) -> OpenError {
        let (segment, needed) = match error {
            OpenError::MetadataDamaged { segment, .. } => (segment, Needed::Metadata),
            OpenError::SummaryDamaged { segment, .. } => (segment, Needed::Log),
            _ => return error,
        };
        match geo.device_of(segment).filter(|device| self.gone[*device]) {
            Some(device) => needs(superblock, device, needed).unwrap_or(error),
            None => error,
        }
    }
}

/// That a device is needed for this.
fn needs(superblock: &Superblock, device: usize, needed: Needed) -> Option<OpenError> {
    let row = superblock.devices.get(device)?;
    let (uuid, bytes, label) = (row.uuid, row.bytes, row.label);
    Some(OpenError::DeviceNeeded { device, uuid, bytes, label, needed })
}

/// Refuses a pool whose journal is missing.
///
/// # Errors
/// `DeviceNeeded`.
pub(crate) fn check_journal(superblock: &Superblock, missing: &Missing) -> Result<(), OpenError> {
    let journal = superblock.journal;
    let old = (journal.from > superblock.journal_start).then_some(journal.old as usize);
    for device in old.into_iter().chain([journal.device as usize]) {
        if device < DEVICES
            && missing.has(device)
            && let Some(error) = needs(superblock, device, Needed::Journal)
        {
            return Err(error);
        }
    }
    Ok(())
}

/// What a pool that is only read has to remember.
#[derive(Debug, Default)]
pub(crate) struct Degraded {
    missing: Missing,
    /// Commands for what is missing, which nobody will issue.
    refused: VecDeque<IoToken>,
}

impl Degraded {
    pub(crate) fn new(missing: Missing) -> Self {
        Self { missing, refused: VecDeque::new() }
    }

    /// Whether a device is not there.
    pub(crate) fn is_missing(&self, device: usize) -> bool {
        self.missing.has(device)
    }

    /// A command for a device that is missing: it fails with the next turn.
    pub(crate) fn refuse(&mut self, token: IoToken) {
        self.refused.push_back(token);
    }
}

impl Engine {
    /// Whether a device is missing, so that the pool is only read.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        self.degraded.missing.any()
    }

    /// Whether commands have to be failed.
    pub(crate) fn has_refused(&self) -> bool {
        !self.degraded.refused.is_empty()
    }

    /// The next command that has failed.
    pub(crate) fn take_refused(&mut self) -> Option<(IoToken, Result<(), DeviceError>)> {
        let token = self.degraded.refused.pop_front()?;
        Some((token, Err(DeviceError::Os { errno: ENXIO })))
    }

    /// Whether nothing may be written any more.
    pub(crate) fn is_read_only(&self) -> bool {
        self.is_degraded() || self.failed.is_some()
    }
}
