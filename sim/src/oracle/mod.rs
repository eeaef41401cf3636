//! The naive model that says what the engine may answer.
//!
//! For every block of every volume it keeps all versions that requests since the last recovery
//! gave it, in the order in which the requests were accepted, which is the order in which they
//! take effect. Each version remembers its request, and each request when it was accepted and
//! when it was answered. From that follow the promises that [`Oracle::judge`] checks after a
//! crash and [`Oracle::end_read`] while serving:
//!
//! 1. *Kill*: everything answered is there.
//! 2. *Power cut*: everything answered before a flush (or a FUA request) was accepted that was
//!    answered itself is there, and so is every FUA request and volume change that was answered.
//! 3. *Prefix order*: if a request survived, so did all that were answered before it was
//!    accepted.
//! 4. *Atomicity*: a block is exactly one of its versions.
//! 5. *Reads*: a read returns, for each block, a version that was current at some moment between
//!    submission and completion; and never an older one than an earlier read returned.
//! 6. *Zeroes*: a discarded or zeroed block is such a version like any other.
//! 7. *Volumes*: a change that was answered is there; a deleted volume does not come back.
//! 8. *Reservations*: a volume is not refused space that is reserved for it.
//!
//! 9. *Losses*: see [`loss`].
//!
//! The model is deliberately ignorant of the log, the journal and the map.

mod diff;
mod judge;
mod loss;

pub use judge::{Bounds, Found, FoundVolume};

use crate::content::{Content, Place, describe_bytes, is_zero};
use flagstone_block::BLOCK_SIZE;
use flagstone_engine::{StatusExtent, StatusKind, VolumeSettings};
use std::collections::BTreeMap;

/// A request since the last recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpId(u32);

/// What was there when the pool was opened.
const BASE: OpId = OpId(0);
const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Op {
    accepted: u64,
    answered: u64,
    /// Its answer promised durability.
    durable: bool,
}

#[derive(Clone, Debug)]
struct Version {
    op: OpId,
    content: Content,
    kind: StatusKind,
    /// It may be unreadable, since a disk failed before it was durable.
    lossy: bool,
    /// Of a snapshot: what was under way when it was taken, and a disk failed, may have come after it.
    optional: bool,
}

#[derive(Clone, Debug)]
struct History {
    versions: Vec<Version>,
    /// A read returned this version; none before it is current any more.
    seen: u32,
    /// What was found after a crash: first and last version that it may be.
    found: Option<(u32, u32)>,
    /// After a crash it could not be read.
    lost: bool,
}

/// A volume as the model knows it.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: [u8; 16],
    created: OpId,
    /// The volume that it is a snapshot of.
    line: Option<u32>,
    deleted: Option<OpId>,
    sizes: Vec<(u64, OpId)>,
    settings: Vec<(VolumeSettings, OpId)>,
    blocks: BTreeMap<u64, History>,
}

/// The model of one pool.
#[derive(Clone, Debug)]
pub struct Oracle {
    clock: u64,
    ops: Vec<Op>,
    /// Requests answered before this moment are durable.
    durable_before: u64,
    volumes: BTreeMap<u32, Volume>,
    /// There was a snapshot.
    pub snapshots_taken: bool,
    losses: loss::Losses,
}

impl Default for Oracle {
    fn default() -> Self {
        Self {
            clock: 1,
            ops: vec![base()],
            durable_before: 0,
            volumes: BTreeMap::new(),
            snapshots_taken: false,
            losses: loss::Losses::default(),
        }
    }
}

fn base() -> Op {
    Op { accepted: 0, answered: 0, durable: true }
}

impl Oracle {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn accept(&mut self) -> OpId {
        let accepted = self.tick();
        self.ops.push(Op { accepted, answered: NEVER, durable: false });
        OpId(self.ops.len() as u32 - 1)
    }

    fn op(&self, id: OpId) -> &Op {
        &self.ops[id.0 as usize]
    }

    /// A volume by its number, also one that is being created or deleted.
    #[must_use]
    pub fn volume(&self, id: u32) -> Option<&Volume> {
        self.volumes.get(&id)
    }

    /// Numbers of all volumes that were not deleted, in order.
    pub fn live_volumes(&self) -> impl Iterator<Item = u32> {
        self.volumes.iter().filter(|(_, v)| v.deleted.is_none()).map(|(&id, _)| id)
    }

    /// Bytes `offset..offset + len` of a volume were accepted for writing, where block `lba` of
    /// the request carries `stamp + (lba - first_lba)`.
    pub fn write(
        &mut self,
        volume: u32,
        offset: u64,
        len: u64,
        stamp: u64,
        first_lba: u64,
    ) -> OpId {
        let op = self.accept();
        let block = BLOCK_SIZE as u64;
        let end = offset + len;
        for lba in offset / block..end.div_ceil(block) {
            let new = Content::Stamp(stamp + (lba - first_lba), volume);
            self.change(op, volume, lba, offset, end, &new, StatusKind::Data);
        }
        op
    }

    /// Bytes `offset..offset + len` were accepted for zeroing. A discard changes whole blocks
    /// only.
    pub fn zero(
        &mut self,
        volume: u32,
        offset: u64,
        len: u64,
        kind: StatusKind,
        whole_only: bool,
    ) -> OpId {
        let op = self.accept();
        let block = BLOCK_SIZE as u64;
        let end = offset + len;
        let (first_whole, end_whole) = (offset.div_ceil(block), end / block);
        if first_whole < end_whole {
            if kind == StatusKind::Hole {
                // What was never written to is a hole already.
                let Some(volume) = self.volumes.get_mut(&volume) else { return op };
                for (_, history) in volume.blocks.range_mut(first_whole..end_whole) {
                    history.versions.push(Version {
                        op,
                        content: Content::Zero,
                        kind,
                        lossy: false,
                        optional: false,
                    });
                }
            } else {
                for lba in first_whole..end_whole {
                    self.change(op, volume, lba, offset, end, &Content::Zero, kind);
                }
            }
        }
        if !whole_only {
            for lba in offset / block..end.div_ceil(block) {
                if !(first_whole..end_whole).contains(&lba) {
                    self.change(op, volume, lba, offset, end, &Content::Zero, StatusKind::Data);
                }
            }
        }
        op
    }

    /// Adds a version of one block: `new` within bytes `offset..end` of the volume.
    #[allow(clippy::too_many_arguments)] // one version
    fn change(
        &mut self,
        op: OpId,
        volume: u32,
        lba: u64,
        offset: u64,
        end: u64,
        new: &Content,
        kind: StatusKind,
    ) {
        let Some(model) = self.volumes.get_mut(&volume) else { return };
        let history = model.blocks.entry(lba).or_insert_with(History::untouched);
        let start = lba * BLOCK_SIZE as u64;
        let from = offset.saturating_sub(start) as usize;
        let to = (end - start).min(BLOCK_SIZE as u64) as usize;
        let content = if from == 0 && to == BLOCK_SIZE {
            new.clone()
        } else {
            history.last().overlaid(Place { volume, lba }, from, to, new)
        };
        history.versions.push(Version { op, content, kind, lossy: false, optional: false });
    }

    /// A change of part of one block did not happen. Nothing can have been accepted for that
    /// block since, but for a shrink, which waits.
    ///
    /// # Errors
    /// In words, if something was.
    pub fn undo(&mut self, op: OpId, place: Place) -> Result<(), String> {
        let Some(volume) = self.volumes.get_mut(&place.volume) else { return Ok(()) };
        let Some(history) = volume.blocks.get_mut(&place.lba) else { return Ok(()) };
        let sizes = &volume.sizes;
        let cut = |version: &Version| sizes.iter().any(|(_, op)| *op == version.op);
        match history.versions.iter().rposition(|version| !cut(version)) {
            Some(at) if history.versions[at].op == op => {
                history.versions.remove(at);
                Ok(())
            }
            _ => Err(format!(
                "block {} of volume {} was given away while its guard was held",
                place.lba, place.volume
            )),
        }
    }

    /// A request that changes blocks was answered.
    pub fn answered(&mut self, id: OpId, durable: bool) {
        let now = self.tick();
        let op = &mut self.ops[id.0 as usize];
        op.answered = now;
        op.durable |= durable;
        if durable {
            self.durable_before = self.durable_before.max(op.accepted);
        }
        self.not_lost(id);
    }

    /// A flush of a volume was answered.
    pub fn answered_flush(&mut self, op: OpId, volume: u32) {
        self.answered(op, true);
        self.flushed(volume, op);
    }

    /// A flush was accepted.
    pub fn flush(&mut self) -> OpId {
        self.accept()
    }

    /// A volume's creation was accepted.
    pub fn create(
        &mut self,
        id: u32,
        name: &str,
        uuid: [u8; 16],
        size: u64,
        settings: VolumeSettings,
    ) -> Result<OpId, String> {
        let op = self.accept();
        self.create_by(op, id, name, uuid, size, settings)?;
        Ok(op)
    }

    fn create_by(
        &mut self,
        op: OpId,
        id: u32,
        name: &str,
        uuid: [u8; 16],
        size: u64,
        settings: VolumeSettings,
    ) -> Result<(), String> {
        if self.volumes.contains_key(&id) {
            return Err(format!("volume number {id} was given out twice"));
        }
        let volume = Volume {
            name: name.to_owned(),
            uuid,
            created: op,
            line: None,
            deleted: None,
            sizes: vec![(size, op)],
            settings: vec![(settings, op)],
            blocks: BTreeMap::new(),
        };
        self.volumes.insert(id, volume);
        Ok(())
    }

    /// Whether it is certain what a snapshot of a volume has: of writes under way all, if they are of whole
    /// blocks. What must read first comes when it has.
    #[must_use]
    pub fn is_certain(&self, id: u32) -> bool {
        let Some(volume) = self.volumes.get(&id) else { return false };
        let answered = |op: OpId| self.op(op).answered != NEVER;
        let part = |v: &Version| {
            matches!(v.content, Content::Bytes(_) | Content::OneOf(_)) && !answered(v.op)
        };
        let whole = |history: &History| !history.versions.iter().any(part);
        volume.deleted.is_none()
            && answered(volume.created)
            && volume.sizes.iter().all(|&(_, op)| answered(op))
            && volume.blocks.values().all(whole)
    }

    /// The volume that this is a snapshot of, or the volume itself.
    #[must_use]
    pub fn line(&self, id: u32) -> u32 {
        self.volumes.get(&id).and_then(|volume| volume.line).unwrap_or(id)
    }

    /// Whether this is a snapshot that serves.
    #[must_use]
    pub fn is_snapshot(&self, id: u32) -> bool {
        self.volumes.get(&id).is_some_and(|v| v.line.is_some() && v.deleted.is_none())
            && self.usable_size(id) > 0
    }

    /// Snapshots of volumes of which all is certain were accepted in one call: number, name and identity of each.
    pub fn snapshot(&mut self, taken: &[(u32, u32, String, [u8; 16])]) -> OpId {
        let op = self.accept();
        self.snapshots_taken = true;
        for (line, id, name, uuid) in taken {
            let Some(volume) = self.volumes.get(line) else { continue };
            let size = volume.sizes.last().map_or(0, |&(size, _)| size);
            let blocks = self.now(volume, op);
            let snapshot = Volume {
                name: name.clone(),
                uuid: *uuid,
                created: op,
                line: Some(*line),
                deleted: None,
                sizes: vec![(size, op)],
                settings: vec![(VolumeSettings::default(), op)],
                blocks,
            };
            self.volumes.insert(*id, snapshot);
        }
        op
    }

    /// What all blocks of a volume may be now, for one that has the same from `op` on.
    fn now(&self, volume: &Volume, op: OpId) -> BTreeMap<u64, History> {
        let answered = |v: &Version| !v.optional && self.op(v.op).answered != NEVER;
        let now = |history: &History| {
            let oldest = history.versions.iter().rposition(answered).unwrap_or(0);
            let mut versions = history.versions.get(oldest..)?.to_vec();
            versions.first_mut()?.op = op;
            Some(History { versions, seen: 0, found: None, lost: false })
        };
        let blocks = volume.blocks.iter();
        blocks.filter_map(|(&lba, history)| Some((lba, now(history)?))).collect()
    }

    /// A clone of a snapshot was accepted.
    ///
    /// # Errors
    /// In words, if its number is taken.
    pub fn clone_of(
        &mut self,
        snapshot: u32,
        id: u32,
        name: &str,
        uuid: [u8; 16],
        settings: VolumeSettings,
    ) -> Result<OpId, String> {
        let size = self.usable_size(snapshot);
        let op = self.create(id, name, uuid, size, settings)?;
        self.give(snapshot, id, op);
        Ok(op)
    }

    /// Volume `id`, made by `op`, has what a snapshot has.
    fn give(&mut self, snapshot: u32, id: u32, op: OpId) {
        let blocks = self.volumes.get(&snapshot).map(|snapshot| self.now(snapshot, op));
        if let (Some(blocks), Some(volume)) = (blocks, self.volumes.get_mut(&id)) {
            volume.blocks = blocks;
        }
    }

    /// A volume's rollback to a snapshot was accepted; it has number `id` from now on, and what it had is
    /// snapshot `kept`, with name and identity.
    ///
    /// # Errors
    /// In words, if its number is taken.
    pub fn rollback(
        &mut self,
        volume: u32,
        snapshot: u32,
        id: u32,
        kept: Option<(u32, String, [u8; 16])>,
    ) -> Result<OpId, String> {
        let Some(old) = self.volumes.get(&volume) else { return Ok(BASE) };
        let (name, uuid) = (old.name.clone(), old.uuid);
        let (settings, size) = (self.settings(volume), self.usable_size(snapshot));
        let op = match kept {
            Some((kept, name, uuid)) => self.snapshot(&[(volume, kept, name, uuid)]),
            None => self.accept(),
        };
        self.delete_by(volume, op);
        self.create_by(op, id, &name, uuid, size, settings)?;
        self.give(snapshot, id, op);
        Ok(op)
    }

    /// A volume's deletion was accepted.
    pub fn delete(&mut self, id: u32) -> OpId {
        let op = self.accept();
        self.delete_by(id, op);
        op
    }

    fn delete_by(&mut self, id: u32, op: OpId) {
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.deleted = Some(op);
        }
    }

    /// A change of a volume's size was accepted. What is cut off is discarded.
    pub fn resize(&mut self, id: u32, size: u64) -> OpId {
        let op = self.accept();
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.sizes.push((size, op));
            for (_, history) in volume.blocks.range_mut(size / BLOCK_SIZE as u64..) {
                let hole = StatusKind::Hole;
                history.versions.push(Version {
                    op,
                    content: Content::Zero,
                    kind: hole,
                    lossy: false,
                    optional: false,
                });
            }
        }
        op
    }

    /// Blocks beyond `size` bytes that hold data or are kept zeroes, as the last request left them.
    #[must_use]
    pub fn used_from(&self, id: u32, size: u64) -> u64 {
        let Some(volume) = self.volumes.get(&id) else { return 0 };
        let beyond = volume.blocks.range(size / BLOCK_SIZE as u64..);
        let last = |history: &History| history.versions.last().map(|version| version.kind);
        beyond.filter(|(_, h)| last(h).is_some_and(|kind| kind != StatusKind::Hole)).count() as u64
    }

    /// A change of a volume's settings was accepted.
    pub fn set(&mut self, id: u32, settings: VolumeSettings) -> OpId {
        let op = self.accept();
        if let Some(volume) = self.volumes.get_mut(&id) {
            volume.settings.push((settings, op));
        }
        op
    }

    /// The settings that a volume was given last.
    #[must_use]
    pub fn settings(&self, id: u32) -> VolumeSettings {
        let last = self.volumes.get(&id).and_then(|volume| volume.settings.last());
        last.map_or(VolumeSettings::default(), |&(settings, _)| settings)
    }

    /// Blocks that a volume may certainly still take, whatever others do: what it takes at most
    /// falls so short of its reservation.
    #[must_use]
    pub fn reserved_room(&self, id: u32) -> u64 {
        let Some(volume) = self.volumes.get(&id) else { return 0 };
        let answered = |&(_, op): &(VolumeSettings, OpId)| self.op(op).answered != NEVER;
        let last = volume.settings.iter().rposition(answered).unwrap_or(0);
        let reserved = volume.settings[last..].iter().map(|(settings, _)| settings.reserved);
        let reserved = reserved.min().unwrap_or(0) / BLOCK_SIZE as u64;
        if reserved == 0 {
            return 0;
        }
        let may_take = |history: &&History| {
            let oldest = self.oldest(history) as usize;
            history.versions[oldest..].iter().any(|v| v.kind != StatusKind::Hole)
        };
        let taken = volume.blocks.values().filter(may_take).count() as u64;
        reserved.saturating_sub(taken)
    }

    /// Size that every request sent from now on may count on, 0 until the volume serves.
    #[must_use]
    pub fn usable_size(&self, id: u32) -> u64 {
        let Some(volume) = self.volumes.get(&id) else { return 0 };
        let answered = |&(_, op): &(u64, OpId)| self.op(op).answered != NEVER;
        let Some(last) = volume.sizes.iter().rposition(answered) else { return 0 };
        volume.sizes[last..].iter().map(|&(size, _)| size).min().unwrap_or(0)
    }

    /// Whether a volume was ever to have more than `size` bytes.
    #[must_use]
    pub fn was_grown_beyond(&self, id: u32, size: u64) -> bool {
        self.volumes.get(&id).is_some_and(|v| v.sizes.iter().any(|&(other, _)| other > size))
    }

    /// A read begins: for each block, the oldest version that it may return.
    #[must_use]
    pub fn begin_read(&self, volume: u32, first: u64, blocks: u64) -> Vec<u32> {
        let mut oldest = vec![0; blocks as usize];
        let Some(volume) = self.volumes.get(&volume) else { return oldest };
        for (&lba, history) in volume.blocks.range(first..first + blocks) {
            oldest[(lba - first) as usize] = self.oldest(history);
        }
        oldest
    }

    fn oldest(&self, history: &History) -> u32 {
        let answered =
            |version: &Version| !version.optional && self.op(version.op).answered != NEVER;
        let last = history.versions.iter().rposition(answered).unwrap_or(0);
        history.seen.max(last as u32)
    }

    /// A read that began with `oldest` returned `bytes` from byte `from` of the block at `place`.
    ///
    /// # Errors
    /// In words, if it may not.
    pub fn end_read(
        &mut self,
        place: Place,
        oldest: u32,
        from: usize,
        bytes: &[u8],
    ) -> Result<(), String> {
        let history = self
            .volumes
            .get_mut(&place.volume)
            .and_then(|volume| volume.blocks.get_mut(&place.lba));
        let Some(history) = history else {
            return if is_zero(bytes) { Ok(()) } else { Err(never_written(place, bytes)) };
        };
        let candidates = history.versions.iter().enumerate().skip(oldest as usize);
        for (i, version) in candidates {
            if version.content.matches_part(place, from, bytes) {
                // A part may look like more versions than the one that was read.
                if bytes.len() == BLOCK_SIZE {
                    history.seen = history.seen.max(i as u32);
                }
                return Ok(());
            }
        }
        Err(format!(
            "a read of block {} of volume {} returned {}; it may return {}",
            place.lba,
            place.volume,
            describe_bytes(bytes),
            self.describe(place, oldest)
        ))
    }

    /// `extents` were told for a range of a volume at this moment.
    ///
    /// # Errors
    /// In words, if they can't be.
    pub fn status(&self, volume: u32, offset: u64, extents: &[StatusExtent]) -> Result<(), String> {
        let Some(model) = self.volumes.get(&volume) else { return Ok(()) };
        let mut at = offset;
        for extent in extents {
            let end = at + extent.len;
            let blocks = at / BLOCK_SIZE as u64..end.div_ceil(BLOCK_SIZE as u64);
            let mut touched = 0;
            for (&lba, history) in model.blocks.range(blocks.clone()) {
                touched += 1;
                let oldest = self.oldest(history) as usize;
                if !history.versions[oldest..].iter().any(|v| v.kind == extent.kind) {
                    return Err(format!(
                        "block {lba} of volume {volume} is said to be {:?}; it is {}",
                        extent.kind,
                        self.describe(Place { volume, lba }, oldest as u32)
                    ));
                }
            }
            if extent.kind != StatusKind::Hole && touched < blocks.end - blocks.start {
                return Err(format!(
                    "blocks {blocks:?} of volume {volume} are said to be {:?}, but some were never \
                     written to",
                    extent.kind
                ));
            }
            at = end;
        }
        Ok(())
    }

    /// Blocks of data and blocks of kept zeroes that a volume has when nothing is under way.
    #[must_use]
    pub fn usage(&self, volume: u32) -> (u64, u64) {
        let Some(model) = self.volumes.get(&volume) else { return (0, 0) };
        let (mut data, mut kept) = (0, 0);
        for history in model.blocks.values() {
            match history.versions.last().map(|v| v.kind) {
                Some(StatusKind::Data) => data += 1,
                Some(StatusKind::Zero) => kept += 1,
                _ => {}
            }
        }
        (data, kept)
    }

    /// Blocks that were ever written to, as runs of at most `blocks_max`; small gaps are in.
    #[must_use]
    pub fn runs(&self, volume: u32, blocks_max: u64) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let Some(model) = self.volumes.get(&volume) else { return runs };
        for &lba in model.blocks.keys() {
            match runs.last_mut() {
                Some((first, blocks))
                    if lba - *first < blocks_max && lba - *first - *blocks < 4 =>
                {
                    *blocks = lba - *first + 1;
                }
                _ => runs.push((lba, 1)),
            }
        }
        runs
    }

    fn describe(&self, place: Place, oldest: u32) -> String {
        let history = self.volumes.get(&place.volume).and_then(|v| v.blocks.get(&place.lba));
        let Some(history) = history else { return "nothing but zeroes".into() };
        let mut words = Vec::new();
        for (i, version) in history.versions.iter().enumerate() {
            let op = self.op(version.op);
            let answer = match (op.answered, op.durable) {
                _ if version.op == BASE => "from before".to_owned(),
                (NEVER, _) => "not answered".to_owned(),
                (at, true) => format!("durable, answered at {at}"),
                (at, false) => format!("answered at {at}"),
            };
            let mark = if (i as u32) < oldest { "(too old) " } else { "" };
            words.push(format!(
                "{mark}{:?} {} [accepted at {}, {answer}]",
                version.kind,
                version.content.describe(),
                op.accepted
            ));
        }
        let skipped = words.len().saturating_sub(8);
        format!("{}{}", if skipped > 0 { ".. " } else { "" }, words[skipped..].join(" / "))
    }
}

impl History {
    fn untouched() -> Self {
        let (content, kind) = (Content::Zero, StatusKind::Hole);
        let version = Version { op: BASE, content, kind, lossy: false, optional: false };
        Self { versions: vec![version], seen: 0, found: None, lost: false }
    }

    /// What the last change left: if that need not have come here, perhaps what was there before it.
    fn last(&self) -> Content {
        let seen = &self.versions[self.seen as usize..];
        let certain = seen.iter().rposition(|version| !version.optional).unwrap_or(0);
        seen[certain..].iter().map(|version| version.content.clone()).collect()
    }
}

fn never_written(place: Place, bytes: &[u8]) -> String {
    format!(
        "block {} of volume {} was never written to, but holds {}",
        place.lba,
        place.volume,
        describe_bytes(bytes)
    )
}
