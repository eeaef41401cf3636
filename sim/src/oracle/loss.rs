//! What a failed disk may take with it.
//!
//! 1. What was flushed, or was promised to be durable, is never lost; unless the disk can't be read.
//! 2. What was answered, and is not durable, may be: then it is an error to read it, and never what was there
//!    before. So may a write with FUA that waits for its flush, if it is told that it failed.
//! 3. What was not answered either happened or did not; it is no error. It may happen after a snapshot that was
//!    accepted later and is not answered either.
//! 4. A volume that has lost something is told by its next flush, once. If that says nothing, nothing is lost.

use super::{BASE, Found, NEVER, OpId, Oracle, Version};
use crate::content::{Content, Place};
use flagstone_engine::StatusKind;
use std::collections::BTreeSet;

/// What is known of losses.
#[derive(Clone, Debug, Default)]
pub(super) struct Losses {
    /// A disk failed.
    any: bool,
    /// When the last did.
    at: u64,
    /// Any block may be unreadable: the disk's reads fail too.
    pub(super) blind: bool,
    /// Volumes whose next flush may fail.
    due: BTreeSet<u32>,
    /// Volumes that were told since the last failure.
    told: BTreeSet<u32>,
    /// Requests with FUA.
    fua: BTreeSet<OpId>,
}

impl Losses {
    /// When the last disk failed.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Another life begins, which nobody tells anything.
    pub(super) fn restarted(&mut self) {
        *self = Self { any: self.any, blind: self.blind, ..Self::default() };
    }
}

impl Oracle {
    /// A request is not answered before what it writes is durable.
    pub fn is_fua(&mut self, op: OpId) {
        self.losses.fua.insert(op);
    }

    /// Any block may be unreadable from now on.
    pub fn blind(&mut self) {
        (self.losses.any, self.losses.blind) = (true, true);
    }

    /// Whether a disk failed that the pool could do without.
    #[must_use]
    pub fn has_losses(&self) -> bool {
        self.losses.any
    }

    /// A disk failed, and the pool goes on.
    pub fn disk_failed(&mut self) {
        self.losses.any = true;
        self.losses.at = self.tick();
        self.losses.told.clear();
        let (ops, durable_before) = (&self.ops, self.durable_before);
        for (id, volume) in &mut self.volumes {
            let created = volume.created;
            for version in volume.blocks.values_mut().flat_map(|history| &mut history.versions) {
                let op = &ops[version.op.0 as usize];
                let durable = op.durable || op.answered < durable_before;
                // Where it was under way when this volume was made from another.
                let other = op.accepted < ops[created.0 as usize].accepted;
                version.optional |= other && op.answered == NEVER;
                let held = op.answered == NEVER
                    && !self.losses.fua.contains(&version.op)
                    // What a snapshot under way has was answered, perhaps.
                    && version.op != created;
                if !durable && !held {
                    version.lossy = true;
                    self.losses.due.insert(*id);
                }
            }
        }
    }

    /// A flush that was accepted at `op` says that something of this volume is lost.
    ///
    /// # Errors
    /// In words, if nothing can be, or if that was told before.
    pub fn told(&mut self, volume: u32, op: OpId) -> Result<(), String> {
        let late = self.op(op).accepted > self.losses.at;
        let due = self.losses.due.remove(&volume);
        let waited = self.losses.told.contains(&volume) && !late;
        self.losses.told.insert(volume);
        if due || waited || self.losses.blind {
            return Ok(());
        }
        Err(format!("a flush of volume {volume} says that something is lost, but nothing is"))
    }

    /// A flush of a volume said nothing: what was answered before it was accepted is not lost, unless that was
    /// told before.
    pub(super) fn flushed(&mut self, volume: u32, op: OpId) {
        // What others have written, and what was taken over from them, it says nothing of.
        let due = self.losses.due.contains(&volume) && !self.is_snapshot(volume);
        if self.losses.told.contains(&volume) || !due {
            return;
        }
        let accepted = self.op(op).accepted;
        let ops = &self.ops;
        let Some(volume) = self.volumes.get_mut(&volume) else { return };
        let created = volume.created;
        for version in volume.blocks.values_mut().flat_map(|history| &mut history.versions) {
            // What was told in another life is not told again; nor what was lost before this was made from another.
            let own = version.op != BASE && version.op != created;
            if own && ops[version.op.0 as usize].answered < accepted {
                version.lossy = false;
            }
        }
    }

    /// A write was answered as it should be: it is not among what was lost before.
    pub(super) fn not_lost(&mut self, op: OpId) {
        if !self.losses.any || self.op(op).accepted > self.losses.at {
            return;
        }
        for volume in self.volumes.values_mut().filter(|volume| volume.created != op) {
            let versions = volume.blocks.values_mut().flat_map(|history| &mut history.versions);
            versions.filter(|v| v.op == op).for_each(|version| version.lossy = false);
        }
    }

    /// Whether a block may be unreadable because it was lost with a disk; `oldest` is the first version that it
    /// may have.
    #[must_use]
    pub fn may_be_lost(&self, place: Place, oldest: u32) -> bool {
        if self.losses.blind {
            return true;
        }
        let volume = self.volumes.get(&place.volume);
        let Some(history) = volume.and_then(|volume| volume.blocks.get(&place.lba)) else {
            return false;
        };
        let versions = history.versions.iter().skip(oldest as usize);
        versions.into_iter().any(Version::is_lossy)
    }

    /// The oldest version that a read of a block may return now.
    #[must_use]
    pub fn oldest_of(&self, place: Place) -> u32 {
        let volume = self.volumes.get(&place.volume);
        let history = volume.and_then(|volume| volume.blocks.get(&place.lba));
        history.map_or(0, |history| self.oldest(history))
    }

    /// After recovery, a block can't be read.
    ///
    /// # Errors
    /// In words, if it can't have been lost.
    pub fn found_lost(
        &mut self,
        found: &mut Found,
        place: Place,
        kind: StatusKind,
    ) -> Result<(), String> {
        let blind = self.losses.blind;
        let volume = self.volumes.get_mut(&place.volume);
        let history = volume.and_then(|volume| volume.blocks.get_mut(&place.lba));
        let lossy = |history: &super::History| {
            kind == StatusKind::Data && (blind || history.versions.iter().any(Version::is_lossy))
        };
        match history {
            Some(history) if lossy(history) => {
                (history.found, history.lost) = (None, true);
                found.mix(u64::from(place.volume) << 32 ^ place.lba ^ u64::MAX);
                Ok(())
            }
            _ => Err(format!(
                "block {} of volume {} ({kind:?}) can't be read, but was not lost: {}",
                place.lba,
                place.volume,
                self.describe(place, 0)
            )),
        }
    }
}

impl Version {
    /// Whether it may be unreadable, or is.
    pub(super) fn is_lossy(&self) -> bool {
        self.lossy || matches!(self.content, Content::Lost | Content::Any)
    }
}
