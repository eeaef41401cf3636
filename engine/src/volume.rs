//! Volumes of a pool: identity, size, map, and lookup by number and by name.
//!
//! A snapshot is one of them: a cut of its volume's versions. What it has in common with those that came after it,
//! they inherit from its map.
//!
//! Invariants:
//! 1. Each block of the pool that maps name is owned by exactly one leaf of one map, the oldest's that maps it: the first
//!    snapshot's that was taken since it was written, or the volume's. `Volumes::owner` finds it by line and LSN, past
//!    deleted snapshots that have passed it on.
//! 2. A copy that a child makes of a leaf owns nothing of what its parent owns.
//! 3. The parent of a volume or snapshot is the snapshot that was taken before, or, for the first of a clone, the one that it
//!    was cloned from; one that is gone is left out. Each is among its parent's children, and nobody is an ancestor of its own.
//! 4. A number is never used twice. A name belongs to one volume or snapshot, and to none that is deleted.

use crate::format::record::{Record, volume_bytes};
use crate::map::VolumeMap;
use crate::space::reserved_leaves;
use flagstone_block::BLOCK_SIZE;
use hashbrown::HashTable;
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

/// Where a volume is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VolumeState {
    /// Its record is being written; requests are refused.
    Creating,
    /// Serves requests.
    Active,
    /// Its delete record is being written; requests are refused.
    Deleting,
    /// It is deleted, but a checkpoint under way is still to state what was cut from it since.
    Leaving,
    /// A snapshot that is deleted; what it has passes to its child, or dies.
    Dying,
}

/// What becomes of a write that needs space when the pool has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFull {
    /// It is refused.
    Error,
    /// Whoever drives the engine holds it until there is space again, or for so long that there
    /// seems to come none. The engine itself refuses it as well, but for what it has taken already.
    #[default]
    Wait,
}

/// What the owner of a volume may set, and change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeSettings {
    /// What becomes of writes when the pool is full.
    pub on_full: OnFull,
    /// Bytes that are the volume's alone whether it uses them or not: a multiple of 4096, not
    /// more than its size.
    pub reserved: u64,
}

impl VolumeSettings {
    /// Whether a volume of `size` bytes can have them.
    #[must_use]
    pub fn fit(&self, size: u64) -> bool {
        self.reserved <= size && self.reserved.is_multiple_of(BLOCK_SIZE as u64)
    }
}

/// What the outside may know of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Number in the pool, never used twice.
    pub id: u32,
    /// Identity.
    pub uuid: [u8; 16],
    /// Unique in the pool.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// What its owner has set.
    pub settings: VolumeSettings,
    /// What it is a snapshot of; `None` for a volume that can be written to.
    pub snapshot: Option<Cut>,
    /// The snapshot that the volume, or the volume of the snapshot, was cloned from.
    pub base: Option<u32>,
}

/// Where a snapshot was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Number of the volume.
    pub line: u32,
    /// What has this LSN or a lower one belongs to the snapshot.
    pub lsn: u64,
}

/// A volume or a snapshot.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) info: VolumeInfo,
    pub(crate) state: VolumeState,
    pub(crate) map: VolumeMap,
    /// The snapshot whose map this one's inherits from.
    pub(crate) parent: Option<u32>,
    /// Those whose parent this is.
    pub(crate) children: SmallVec<[u32; 4]>,
    /// Leaves up to this one have passed to the child: of a snapshot that is dying.
    pub(crate) passed: u64,
    /// It is being taken apart, or waits for its turn.
    pub(crate) queued: bool,
    /// The line that all it had has passed to. What the log says of its own line up to its cut is about
    /// that one now.
    pub(crate) heir: Option<u32>,
    /// Size that the last change gives, also while it is being written: a later growth must not
    /// shrink the volume again, and what a shrink cuts off must not be written to any more.
    pub(crate) logged_size: u64,
    /// As the last change makes them, also while that is being written: what is reserved is held
    /// back from the moment it is asked for.
    pub(crate) logged_settings: VolumeSettings,
    pub(crate) next_vseq: u64,
    /// Blocks that requests under way will add to what it takes: at least those.
    pub(crate) coming: u64,
    /// Snapshots of it whose records are under way: what it owns will be theirs, and counts as that already.
    pub(crate) cuts: u32,
    /// Discards under way. What they cover looks mapped, but will not be.
    pub(crate) discards: u32,
    /// Blocks held back for it: what it takes falls so short of its reservation.
    pub(crate) held: u64,
    /// Blocks of its reservation, as far as they are counted.
    pub(crate) counted_reserved: u64,
    /// Map leaves that are counted for its reservation.
    pub(crate) held_leaves: u64,
    /// Where it was written to since the last flush.
    pub(crate) unflushed: Unflushed,
    /// What was acknowledged of it is lost with a device, and no flush of it has failed yet.
    pub(crate) lost: bool,
}

/// The devices that were written to, a bit each, by the number of flushes issued until then.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Unflushed {
    issued: u64,
    since: u32,
    /// As long as some of it may be needed.
    before: u32,
}

impl Unflushed {
    /// Data that lies on a device is in the map, after flush `issued` was issued; `sound` was the last that
    /// has covered all.
    pub(crate) fn note(&mut self, device: usize, issued: u64, sound: u64) {
        if self.issued != issued {
            let (since, before) = (self.since, self.before);
            self.before = if self.issued >= sound { since } else { 0 };
            self.before |= if self.issued > sound { before } else { 0 };
            (self.issued, self.since) = (issued, 0);
        }
        self.since |= 1 << device;
    }

    /// Whether anything on a device was not covered by flush `sound`.
    pub(crate) fn on(&self, device: usize, sound: u64) -> bool {
        let since = if self.issued >= sound { self.since } else { 0 };
        let before = if self.issued > sound { self.before } else { 0 };
        (since | before) & 1 << device != 0
    }
}

impl Volume {
    pub(crate) fn new(info: VolumeInfo, state: VolumeState, next_vseq: u64) -> Self {
        Self {
            state,
            map: VolumeMap::new(info.id),
            parent: None,
            children: SmallVec::new(),
            passed: 0,
            queued: false,
            heir: None,
            logged_size: info.size,
            logged_settings: info.settings,
            next_vseq,
            coming: 0,
            cuts: 0,
            discards: 0,
            held: 0,
            counted_reserved: 0,
            held_leaves: 0,
            unflushed: Unflushed::default(),
            lost: false,
            info,
        }
    }

    /// Number of the volume whose versions it is made of.
    pub(crate) fn line(&self) -> u32 {
        self.info.snapshot.map_or(self.info.id, |cut| cut.line)
    }

    /// Whether it is a deleted snapshot that has nothing in this leaf: what it had is its child's, perhaps
    /// since before the last opening.
    fn has_passed(&self, leaf: u64) -> bool {
        let has = self.map.is_different(leaf) && self.map.has_leaf(leaf);
        self.state == VolumeState::Dying && self.children.len() <= 1 && !has
    }

    /// The record that says what it is, made at `lsn`.
    pub(crate) fn record(&self, lsn: u64) -> Record<'_> {
        let VolumeInfo { id, uuid, size, settings, snapshot, base, ref name } = self.info;
        match snapshot {
            Some(Cut { line, lsn: cut }) => {
                let deleted = self.state == VolumeState::Dying;
                Record::Snapshot { volume: id, lsn, uuid, size, cut, line, base, deleted, name }
            }
            None => {
                let vseq = self.next_vseq;
                Record::Volume { volume: id, lsn, uuid, size, vseq, settings, base, name }
            }
        }
    }

    /// Blocks that it takes or is about to take.
    pub(crate) fn taken(&self) -> u64 {
        if self.cuts > 0 { self.taken_when_cut() } else { self.taken_when_cut() + self.map.owned() }
    }

    /// The same once a snapshot has what it owns.
    pub(crate) fn taken_when_cut(&self) -> u64 {
        self.map.kept() + self.coming
    }

    /// Leaves of its own.
    pub(crate) fn dense(&self) -> u64 {
        if self.cuts > 0 { 0 } else { self.map.dense() }
    }

    /// Blocks of its reservation.
    pub(crate) fn reserved_blocks(&self) -> u64 {
        self.logged_settings.reserved >> flagstone_block::BLOCK_BITS
    }

    /// Map leaves that its reservation may fill.
    pub(crate) fn reserved_leaves(&self) -> u64 {
        self.reserved_leaves_when_cut().saturating_sub(self.dense())
    }

    /// The same if it has no leaf of its own.
    pub(crate) fn reserved_leaves_when_cut(&self) -> u64 {
        reserved_leaves(self.logged_settings.reserved, self.logged_size)
    }

    /// Kept zeroes that are charged: a snapshot's are its volume's.
    pub(crate) fn kept(&self) -> u64 {
        if self.info.snapshot.is_some() { 0 } else { self.map.kept() }
    }

    /// Bytes that requests may be about: a growth counts when it is durable, a shrink from the
    /// moment it is asked for.
    pub(crate) fn end(&self) -> u64 {
        self.info.size.min(self.logged_size)
    }

    pub(crate) fn is_shrinking(&self) -> bool {
        self.logged_size < self.info.size
    }

    /// As [`Volume::end`], in blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.end() >> flagstone_block::BLOCK_BITS
    }
}

/// Volume numbers are small and dense: the number itself spreads well enough.
#[derive(Debug, Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 << 8 | u64::from(byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }
    fn write_u32(&mut self, id: u32) {
        self.0 = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// The snapshots of a volume, oldest first: LSN of the cut, and number. Most volumes have few.
type Cuts = SmallVec<[(u64, u32); 1]>;

/// All volumes of a pool.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    slots: Vec<Option<Box<Volume>>>,
    vacant: Vec<u32>,
    by_id: HashMap<u32, u32, BuildHasherDefault<IdHasher>>,
    /// Numbers, found by names that their volumes have: there may be a great many.
    by_name: HashTable<u32>,
    name_hash: RandomState,
    /// The snapshots of each volume, by their cuts.
    lines: HashMap<u32, Cuts, BuildHasherDefault<IdHasher>>,
    /// How many volumes and snapshots there are of lines that begin at a snapshot.
    bases: HashMap<u32, u32, BuildHasherDefault<IdHasher>>,
    /// Snapshots that were there for such lines only, of which there is nothing any more.
    idle: Vec<u32>,
    record_bytes: usize,
}

impl Volumes {
    pub(crate) fn get(&self, id: u32) -> Option<&Volume> {
        self.slots[*self.by_id.get(&id)? as usize].as_deref()
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut Volume> {
        self.slots[*self.by_id.get(&id)? as usize].as_deref_mut()
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Volume> {
        let hash = self.name_hash.hash_one(name);
        self.get(*self.by_name.find(hash, |id| self.is_called(*id, name))?)
    }

    fn is_called(&self, id: u32, name: &str) -> bool {
        self.get(id).is_some_and(|volume| volume.info.name == name)
    }

    /// Gives a name to a volume; whoever had it has it no more.
    fn give_name(&mut self, id: u32) {
        self.drop_name_of(|named, name| named.info.name == name, id);
        let Self { slots, by_id, by_name, name_hash, .. } = self;
        let hash = |id: &u32| {
            let slot = by_id.get(id).and_then(|slot| slots[*slot as usize].as_deref());
            name_hash.hash_one(slot.map_or("", |volume| &volume.info.name))
        };
        by_name.insert_unique(hash(&id), id, hash);
    }

    /// Takes the name of a volume from it, if it is still its own.
    fn drop_name(&mut self, id: u32) {
        self.drop_name_of(|named, _| named.info.id == id, id);
    }

    fn drop_name_of(&mut self, whose: impl Fn(&Volume, &str) -> bool, id: u32) {
        let Self { slots, by_id, by_name, name_hash, .. } = self;
        let get = |id: u32| by_id.get(&id).and_then(|slot| slots[*slot as usize].as_deref());
        let Some(volume) = get(id) else { return };
        let name = volume.info.name.as_str();
        let is_it = |named: &u32| get(*named).is_some_and(|named| whose(named, name));
        if let Ok(entry) = by_name.find_entry(name_hash.hash_one(name), is_it) {
            entry.remove();
        }
    }

    pub(crate) fn insert(&mut self, volume: Volume) {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.record_bytes += volume_bytes(&volume.info.name);
        let (id, named) = (volume.info.id, volume.state != VolumeState::Dying);
        self.by_id.insert(id, slot);
        if let Some(Cut { line, lsn }) = volume.info.snapshot {
            let cuts = self.lines.entry(line).or_default();
            let at = cuts.partition_point(|(cut, _)| *cut < lsn);
            cuts.insert(at, (lsn, volume.info.id));
        }
        if let Some(base) = volume.info.base {
            *self.bases.entry(base).or_default() += 1;
        }
        self.slots[slot as usize] = Some(Box::new(volume));
        if named {
            self.give_name(id);
        }
    }

    fn remove(&mut self, id: u32) -> Option<Volume> {
        self.drop_name(id);
        let slot = self.by_id.remove(&id)?;
        let volume = self.slots[slot as usize].take()?;
        self.vacant.push(slot);
        if let Some(Cut { line, .. }) = volume.info.snapshot
            && let Some(cuts) = self.lines.get_mut(&line)
        {
            cuts.retain(|(_, id)| *id != volume.info.id);
            if cuts.is_empty() {
                self.lines.remove(&line);
            }
        }
        self.record_bytes -= volume_bytes(&volume.info.name);
        if let Some(base) = volume.info.base
            && let Some(count) = self.bases.get_mut(&base)
        {
            *count -= 1;
            if *count == 0 {
                self.bases.remove(&base);
                // It was there to say where what its line logged has gone.
                if self.get(base).is_some_and(|base| base.heir.is_some()) {
                    self.idle.push(base);
                }
            }
        }
        Some(*volume)
    }

    /// Whether there are snapshots that nothing needs any more.
    pub(crate) fn has_idle(&self) -> bool {
        !self.idle.is_empty()
    }

    /// Forgets one of them; another may be idle then, that it came from. A checkpoint under way may have stated
    /// it and not yet that other, without which it can't be, so none is forgotten meanwhile.
    pub(crate) fn forget_idle(&mut self) -> bool {
        let idle = self.idle.pop();
        idle.is_some_and(|id| self.remove(id).is_some())
    }

    /// A snapshot is deleted; its name is free.
    pub(crate) fn let_die(&mut self, id: u32) {
        self.end(id, VolumeState::Dying);
    }

    /// A volume is deleted that is still to be stated; its name is free.
    pub(crate) fn leave(&mut self, id: u32) {
        self.end(id, VolumeState::Leaving);
    }

    fn end(&mut self, id: u32, state: VolumeState) {
        let Some(volume) = self.get_mut(id) else { return };
        volume.state = state;
        self.drop_name(id);
    }

    /// Takes a volume or snapshot out; its children become its parent's.
    pub(crate) fn take_out(&mut self, id: u32) -> Option<Volume> {
        let volume = self.remove(id)?;
        for child in &volume.children {
            if let Some(child) = self.get_mut(*child) {
                child.parent = volume.parent;
            }
        }
        if let Some(parent) = volume.parent.and_then(|parent| self.get_mut(parent)) {
            parent.children.retain(|child| *child != id);
            parent.children.extend_from_slice(&volume.children);
        }
        Some(volume)
    }

    /// The snapshots of a volume with their cuts, oldest first.
    pub(crate) fn snapshots(&self, line: u32) -> &[(u64, u32)] {
        self.lines.get(&line).map_or(&[], SmallVec::as_slice)
    }

    /// Whether a line begins at this snapshot of which there is something.
    pub(crate) fn is_base(&self, id: u32) -> bool {
        self.bases.contains_key(&id)
    }

    /// What a snapshot had has passed to its only child, a clone. It stays to say so, as long as there is
    /// something of that one's line.
    pub(crate) fn hollow(&mut self, id: u32) {
        let Some(snapshot) = self.get_mut(id) else { return };
        let (parent, children) = (snapshot.parent.take(), std::mem::take(&mut snapshot.children));
        snapshot.queued = false;
        let Some(&child) = children.first() else { return };
        let heir = self.get_mut(child).map(|child| {
            child.parent = parent;
            child.line()
        });
        if let Some(parent) = parent.and_then(|parent| self.get_mut(parent)) {
            parent.children.iter_mut().filter(|c| **c == id).for_each(|c| *c = child);
        }
        if let Some(snapshot) = self.get_mut(id) {
            (snapshot.heir, snapshot.passed) = (heir, 0);
        }
    }

    /// The first snapshot that was taken of a volume since this LSN, or the volume.
    pub(crate) fn taken_since(&self, line: u32, lsn: u64) -> u32 {
        let cuts = self.snapshots(line);
        let at = cuts.partition_point(|(cut, _)| *cut < lsn);
        cuts.get(at).map_or(line, |(_, id)| *id)
    }

    /// Who owns what was written to leaf `leaf` of a volume with this LSN, if it is still there: the
    /// first snapshot that was taken since, or the volume; or who has taken over what that one had.
    pub(crate) fn owner(&self, line: u32, lsn: u64, leaf: u64) -> u32 {
        let mut line = line;
        'lines: loop {
            let cuts = self.snapshots(line);
            let at = cuts.partition_point(|(cut, _)| *cut < lsn);
            let taken = cuts[at..].iter().filter_map(|(_, id)| self.get(*id));
            for snapshot in taken.filter(|s| s.state != VolumeState::Creating) {
                if !snapshot.has_passed(leaf) {
                    return snapshot.info.id;
                }
                let child = snapshot.children.first().and_then(|child| self.get(*child));
                let heir = snapshot.heir.or_else(|| child.map(Volume::line));
                if let Some(heir) = heir.filter(|heir| *heir != line) {
                    line = heir;
                    continue 'lines;
                }
            }
            return line;
        }
    }

    /// Finds the parent of each, from the snapshots that there are.
    pub(crate) fn link(&mut self) {
        for slot in self.slots.iter_mut().flatten() {
            let (line, lsn) = match slot.info.snapshot {
                Some(Cut { line, lsn }) => (line, lsn),
                None => (slot.info.id, u64::MAX),
            };
            let cuts = self.lines.get(&line).map_or(&[][..], SmallVec::as_slice);
            let at = cuts.partition_point(|(cut, _)| *cut < lsn);
            slot.parent = at.checked_sub(1).map(|i| cuts[i].1).or(slot.info.base);
            slot.children.clear();
        }
        let edges: Vec<(u32, u32)> =
            self.iter().filter_map(|child| Some((child.parent?, child.info.id))).collect();
        for (parent, child) in edges {
            if let Some(parent) = self.get_mut(parent) {
                parent.children.push(child);
            }
        }
    }

    /// Whether nobody is an ancestor of its own.
    pub(crate) fn is_forest(&self) -> bool {
        let mut rooted = HashSet::new();
        self.iter().all(|volume| {
            let mut chain = HashSet::new();
            let mut next = Some(volume.info.id);
            while let Some(node) = next.and_then(|id| self.get(id)) {
                if rooted.contains(&node.info.id) {
                    break;
                }
                if !chain.insert(node.info.id) {
                    return false;
                }
                next = node.parent;
            }
            rooted.extend(chain);
            true
        })
    }

    /// The volumes and snapshots that there were, or may have been, when the log had come to `lsn`, parents
    /// before their children.
    pub(crate) fn parents_first(&self, lsn: u64) -> Vec<u32> {
        let mut order = Vec::with_capacity(self.len());
        let mut seen = HashSet::new();
        for volume in self.iter() {
            let mut chain = Vec::new();
            let mut next = Some(volume.info.id);
            while let Some(node) = next.and_then(|id| self.get(id)) {
                if !seen.insert(node.info.id) {
                    break;
                }
                chain.push(node.info.id);
                next = node.parent;
            }
            order.extend(chain.into_iter().rev());
        }
        // A clone comes after the snapshot that it was made from.
        let there = |id: &u32| {
            let Some(volume) = self.get(*id) else { return false };
            let cut = |snapshot: &Volume| snapshot.info.snapshot;
            let base = volume.info.base.and_then(|base| self.get(base)).and_then(cut);
            cut(volume).or(base).is_none_or(|cut| cut.lsn <= lsn)
        };
        order.retain(there);
        order
    }

    /// The parent that a volume or snapshot had when the log had come to `lsn`.
    pub(crate) fn parent_at(&self, id: u32, lsn: u64) -> Option<u32> {
        let mut parent = self.get(id)?.parent;
        while let Some(node) = parent.and_then(|id| self.get(id)) {
            if node.info.snapshot.is_none_or(|cut| cut.lsn <= lsn) {
                break;
            }
            parent = node.parent;
        }
        parent
    }

    /// Bytes of all volumes' records in the metadata.
    pub(crate) fn record_bytes(&self) -> usize {
        self.record_bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Slots, for walks that go on later: a slot keeps its volume while the volume lives.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn slot(&self, slot: usize) -> Option<&Volume> {
        self.slots.get(slot)?.as_deref()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Volume> {
        self.slots.iter().filter_map(Option::as_deref)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Volume> {
        self.slots.iter_mut().filter_map(Option::as_deref_mut)
    }
}
