//! Judging what a recovery found, and going on from there.

use super::{BASE, History, NEVER, Op, OpId, Oracle, Version, Volume, base, never_written};
use crate::content::{Content, Place, describe_bytes, is_zero};
use flagstone_block::BLOCK_SIZE;
use flagstone_engine::{StatusKind, VolumeSettings};
use std::collections::BTreeMap;

/// Which requests must have survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounds {
    /// All that were answered: the process was killed, or stopped cleanly.
    Answered,
    /// All that were answered since a disk failed, and all whose durability was promised: the process was killed
    /// while the pool parted with the disk.
    Parting,
    /// All whose durability was promised: the power went, or the device failed.
    Durable,
    /// None, but those that survived still in prefix order: something was damaged that is there
    /// only once.
    Damaged,
}

/// A volume that the engine has after recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundVolume {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: [u8; 16],
    /// Its size in bytes.
    pub size: u64,
    /// Its settings.
    pub settings: VolumeSettings,
}

/// What a recovery found, told block by block.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The volumes.
    pub volumes: Vec<FoundVolume>,
    /// Identifies the content of everything that was looked at.
    pub digest: u64,
    /// Something could not be read, because of damage at rest.
    pub passed_over: bool,
}

impl Found {
    /// Adds to the digest.
    pub fn mix(&mut self, value: u64) {
        self.digest = crate::rng::mix(self.digest ^ value).wrapping_add(value);
    }
}

impl Oracle {
    /// After recovery, the block at `place` is of `kind` and holds `bytes`.
    ///
    /// # Errors
    /// In words, if no version of it is like that.
    pub fn found(
        &mut self,
        found: &mut Found,
        place: Place,
        kind: StatusKind,
        bytes: &[u8],
    ) -> Result<(), String> {
        let history = self
            .volumes
            .get_mut(&place.volume)
            .and_then(|volume| volume.blocks.get_mut(&place.lba));
        let Some(history) = history else {
            if kind != StatusKind::Hole || !is_zero(bytes) {
                return Err(format!("{} ({kind:?})", never_written(place, bytes)));
            }
            return Ok(());
        };
        let fits = |v: &Version| v.kind == kind && v.content.matches(place, bytes);
        let first = history.versions.iter().position(fits);
        let last = history.versions.iter().rposition(fits);
        let (Some(first), Some(last)) = (first, last) else {
            return Err(format!(
                "after recovery block {} of volume {} is {kind:?} and holds {}; its versions are {}",
                place.lba,
                place.volume,
                describe_bytes(bytes),
                self.describe(place, 0)
            ));
        };
        (history.found, history.lost) = (Some((first as u32, last as u32)), false);
        found.mix(u64::from(place.volume) << 32 ^ place.lba);
        found.mix((first as u64) << 2 | kind as u64);
        Ok(())
    }

    fn required(&self, op: OpId, bounds: Bounds) -> bool {
        let Op { answered, durable, .. } = *self.op(op);
        let durable = durable || answered < self.durable_before;
        match bounds {
            _ if op == BASE => true,
            Bounds::Answered => answered != NEVER,
            Bounds::Parting => answered != NEVER && (durable || answered > self.losses.at()),
            Bounds::Durable => answered != NEVER && durable,
            Bounds::Damaged => false,
        }
    }

    /// Checks promises 1 to 4, 6 and 7 against what was found, and takes it as what there is
    /// from now on. Every block of every volume found must have been told to [`Oracle::found`].
    ///
    /// # Errors
    /// In words, what was promised and is not so.
    pub fn judge(&mut self, found: &Found, bounds: Bounds) -> Result<(), String> {
        let there: BTreeMap<u32, &FoundVolume> = found.volumes.iter().map(|v| (v.id, v)).collect();
        if there.len() != found.volumes.len() {
            return Err("two volumes have the same number".into());
        }
        self.judge_new_volumes(&there)?;
        self.judge_groups(&there)?;
        let survived = self.newest_survivor(&there, bounds)?;
        self.judge_prefix(&there, survived)?;
        self.adopt(&there);
        Ok(())
    }

    /// Whether the volumes are such as may be there, whatever is in them.
    ///
    /// # Errors
    /// In words, what was promised and is not so.
    pub fn judge_volumes(&self, volumes: &[FoundVolume], bounds: Bounds) -> Result<(), String> {
        let there: BTreeMap<u32, &FoundVolume> = volumes.iter().map(|v| (v.id, v)).collect();
        self.judge_new_volumes(&there)?;
        for (id, volume) in &self.volumes {
            let created = self.required(volume.created, bounds);
            let deleted = volume.deleted.is_some_and(|op| self.required(op, bounds));
            match there.get(id) {
                None if created && volume.deleted.is_none() => {
                    return Err(format!("volume {id} ({:?}) is lost", volume.name));
                }
                Some(_) if deleted => {
                    return Err(format!("volume {id} ({:?}) came back", volume.name));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether what a block holds is a version that may be there.
    ///
    /// # Errors
    /// In words, if it is none, or older than what was promised to be there.
    pub fn judge_block(&self, place: Place, bytes: &[u8], bounds: Bounds) -> Result<(), String> {
        let volume = self.volumes.get(&place.volume);
        let Some(history) = volume.and_then(|volume| volume.blocks.get(&place.lba)) else {
            return if is_zero(bytes) { Ok(()) } else { Err(never_written(place, bytes)) };
        };
        let is_required = |v: &Version| !v.optional && self.required(v.op, bounds);
        let oldest = history.versions.iter().rposition(is_required).unwrap_or(0);
        let fits = |v: &Version| v.content.matches(place, bytes);
        if history.versions[oldest..].iter().any(fits) {
            return Ok(());
        }
        Err(format!(
            "block {} of volume {} holds {}; its versions are {}",
            place.lba,
            place.volume,
            describe_bytes(bytes),
            self.describe(place, oldest as u32)
        ))
    }

    fn judge_new_volumes(&self, there: &BTreeMap<u32, &FoundVolume>) -> Result<(), String> {
        for (id, found) in there {
            let Some(volume) = self.volumes.get(id) else {
                return Err(format!("volume {id} ({:?}) is there, but should not be", found.name));
            };
            if volume.name != found.name || volume.uuid != found.uuid {
                return Err(format!("volume {id} is now called {:?}", found.name));
            }
            if !volume.sizes.iter().any(|&(size, _)| size == found.size) {
                return Err(format!("volume {id} has {} bytes, which it never had", found.size));
            }
        }
        Ok(())
    }

    /// What was made in one call is all there, or nothing of it.
    fn judge_groups(&self, there: &BTreeMap<u32, &FoundVolume>) -> Result<(), String> {
        let taken = || self.volumes.iter().filter(|(_, v)| v.created != BASE);
        for (id, one) in taken().filter(|(id, _)| there.contains_key(id)) {
            let left = |(other, v): &(&u32, &Volume)| {
                v.created == one.created && v.deleted.is_none() && !there.contains_key(other)
            };
            if let Some((other, _)) = taken().find(left) {
                return Err(format!("{id} is there, but not {other}, made with it"));
            }
        }
        // A rollback makes one volume and deletes another.
        for (old, volume) in &self.volumes {
            let Some(op) = volume.deleted else { continue };
            let made = |(_, v): &(&u32, &Volume)| v.created == op && v.line.is_none();
            let Some((new, made)) = self.volumes.iter().find(made) else { continue };
            let (old_there, new_there) = (there.contains_key(old), there.contains_key(new));
            if old_there == new_there && (old_there || made.deleted.is_none()) {
                return Err(format!("of {old}, rolled back to be {new}, both are there, or none"));
            }
        }
        Ok(())
    }

    /// Checks what must be there, and returns when the newest request that certainly survived
    /// was accepted.
    fn newest_survivor(
        &self,
        there: &BTreeMap<u32, &FoundVolume>,
        bounds: Bounds,
    ) -> Result<u64, String> {
        let mut newest = 0;
        for (id, volume) in &self.volumes {
            let created = self.required(volume.created, bounds);
            let deleted = volume.deleted.is_some_and(|op| self.required(op, bounds));
            let Some(found) = there.get(id) else {
                if created && volume.deleted.is_none() {
                    return Err(format!("volume {id} ({:?}) is lost", volume.name));
                }
                if let (true, Some(op)) = (created, volume.deleted) {
                    newest = newest.max(self.op(op).accepted);
                }
                continue;
            };
            if deleted {
                return Err(format!("volume {id} ({:?}) came back from deletion", volume.name));
            }
            newest = newest.max(self.op(volume.created).accepted);
            let size = Self::change_found(*id, &volume.sizes, &found.size, |op| {
                self.required(op, bounds)
            })?;
            newest = newest.max(self.op(size).accepted);
            let settings = Self::change_found(*id, &volume.settings, &found.settings, |op| {
                self.required(op, bounds)
            })?;
            newest = newest.max(self.op(settings).accepted);
            for (&lba, history) in volume.blocks.range(..found.size / BLOCK_SIZE as u64) {
                let place = Place { volume: *id, lba };
                let is_required = |v: &Version| !v.optional && self.required(v.op, bounds);
                let oldest = history.versions.iter().rposition(is_required).unwrap_or(0) as u32;
                if history.lost {
                    if !self.may_be_lost(place, oldest) {
                        return Err(format!(
                            "block {lba} of volume {id} can't be read, but was not lost ({bounds:?}, \
                             durable before {}): {}",
                            self.durable_before,
                            self.describe(place, oldest)
                        ));
                    }
                    continue;
                }
                let (first, last) = self.found_versions(place, history)?;
                if last < oldest {
                    return Err(format!(
                        "block {lba} of volume {id} lost a version whose survival was promised \
                         ({bounds:?}, durable before {}): it holds version {first} of {}",
                        self.durable_before,
                        self.describe(place, oldest)
                    ));
                }
                // Equal versions can't be told apart; the older one promises less.
                let certain = first.max(oldest);
                newest = newest.max(self.op(history.versions[certain as usize].op).accepted);
            }
        }
        Ok(newest)
    }

    /// The oldest of the changes that gave a volume what was `found`, and that `must` allows.
    fn change_found<T: PartialEq + std::fmt::Debug>(
        id: u32,
        changes: &[(T, OpId)],
        found: &T,
        must: impl Fn(OpId) -> bool,
    ) -> Result<OpId, String> {
        let oldest = changes.iter().rposition(|(_, op)| must(*op)).unwrap_or(0);
        match changes[oldest..].iter().find(|(value, _)| value == found) {
            Some((_, op)) => Ok(*op),
            None => Err(format!(
                "volume {id} has {found:?}, but {:?} were promised",
                &changes[oldest..]
            )),
        }
    }

    /// First and last version that the block at `place` may be.
    fn found_versions(&self, place: Place, history: &History) -> Result<(u32, u32), String> {
        history.found.ok_or_else(|| {
            format!("block {} of volume {} was not looked at", place.lba, place.volume)
        })
    }

    fn judge_prefix(
        &self,
        there: &BTreeMap<u32, &FoundVolume>,
        survived: u64,
    ) -> Result<(), String> {
        let before = |op: OpId| self.op(op).answered < survived;
        for (id, volume) in &self.volumes {
            let Some(found) = there.get(id) else {
                if before(volume.created) && volume.deleted.is_none() {
                    return Err(format!("volume {id} is lost, but something newer survived"));
                }
                continue;
            };
            if volume.deleted.is_some_and(before) {
                return Err(format!("volume {id} is back, but something newer survived"));
            }
            Self::change_found(*id, &volume.sizes, &found.size, before)?;
            Self::change_found(*id, &volume.settings, &found.settings, before)?;
            // What lies beyond the end went with a growth that did not survive, or a shrink.
            for (&lba, history) in volume.blocks.range(..found.size / BLOCK_SIZE as u64) {
                let place = Place { volume: *id, lba };
                if history.lost {
                    continue;
                }
                let (first, last) = self.found_versions(place, history)?;
                let due = |v: &Version| !v.optional && before(v.op);
                let oldest = history.versions.iter().rposition(due).unwrap_or(0);
                if (last as usize) < oldest {
                    return Err(format!(
                        "prefix order is broken: a request accepted at {survived} survived, but \
                         block {lba} of volume {id} holds version {first} of {}",
                        self.describe(place, oldest as u32)
                    ));
                }
            }
        }
        Ok(())
    }

    fn adopt(&mut self, there: &BTreeMap<u32, &FoundVolume>) {
        let lost = if self.losses.blind { Content::Any } else { Content::Lost };
        self.volumes.retain(|id, _| there.contains_key(id));
        for (id, volume) in &mut self.volumes {
            volume.created = BASE;
            volume.deleted = None;
            volume.sizes = vec![(there[id].size, BASE)];
            volume.settings = vec![(there[id].settings, BASE)];
            let end = there[id].size / BLOCK_SIZE as u64;
            volume.blocks.retain(|&lba, history| {
                if lba >= end {
                    return false;
                }
                let (found, last) = history.found.take().unwrap_or((0, 0));
                // What is there may still be lost: nobody flushes a disk that failed.
                let lossy =
                    history.versions[found as usize..=last as usize].iter().any(|v| v.lossy);
                if std::mem::take(&mut history.lost) {
                    history.seen = 0;
                    history.versions = vec![Version {
                        op: BASE,
                        content: lost.clone(),
                        kind: StatusKind::Data,
                        lossy: true,
                        optional: false,
                    }];
                    return true;
                }
                // Of several that look alike the last is the one that says least: it may be another version than a
                // snapshot has, with the same bytes.
                let mut version = history.versions.swap_remove(last as usize);
                (version.op, version.lossy, version.optional) = (BASE, lossy, false);
                let kept = version.kind != StatusKind::Hole;
                history.versions.clear();
                history.versions.push(version);
                history.seen = 0;
                kept
            });
        }
        self.losses.restarted();
        self.ops.clear();
        self.ops.push(base());
        self.durable_before = 0;
    }
}
