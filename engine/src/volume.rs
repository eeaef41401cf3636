//! Volumes of a pool: identity, size, map, and lookup by number and by name.

use crate::format::record::{Record, volume_bytes};
use crate::map::VolumeMap;
use crate::space::reserved_leaves;
use flagstone_block::BLOCK_SIZE;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// Where a volume is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VolumeState {
    /// Its record is being written; requests are refused.
    Creating,
    /// Serves requests.
    Active,
    /// Its delete record is being written; requests are refused.
    Deleting,
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
    pub(crate) children: Vec<u32>,
    /// Leaves up to this one have passed to the child: of a snapshot that is dying.
    pub(crate) passed: u64,
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
    /// Map leaves that are counted for its reservation.
    pub(crate) held_leaves: u64,
}

impl Volume {
    pub(crate) fn new(info: VolumeInfo, state: VolumeState, next_vseq: u64) -> Self {
        Self {
            state,
            map: VolumeMap::new(info.id),
            parent: None,
            children: Vec::new(),
            passed: 0,
            logged_size: info.size,
            logged_settings: info.settings,
            next_vseq,
            coming: 0,
            cuts: 0,
            discards: 0,
            held: 0,
            held_leaves: 0,
            info,
        }
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

/// All volumes of a pool.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    slots: Vec<Option<Box<Volume>>>,
    vacant: Vec<u32>,
    by_id: HashMap<u32, u32, BuildHasherDefault<IdHasher>>,
    by_name: HashMap<String, u32>,
    /// The snapshots of each volume, by their cuts.
    lines: HashMap<u32, Vec<(u64, u32)>, BuildHasherDefault<IdHasher>>,
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
        self.get(*self.by_name.get(name)?)
    }

    pub(crate) fn insert(&mut self, volume: Volume) {
        let slot = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.record_bytes += volume_bytes(&volume.info.name);
        self.by_id.insert(volume.info.id, slot);
        if volume.state != VolumeState::Dying {
            self.by_name.insert(volume.info.name.clone(), volume.info.id);
        }
        if let Some(Cut { line, lsn }) = volume.info.snapshot {
            let cuts = self.lines.entry(line).or_default();
            let at = cuts.partition_point(|(cut, _)| *cut < lsn);
            cuts.insert(at, (lsn, volume.info.id));
        }
        self.slots[slot as usize] = Some(Box::new(volume));
    }

    pub(crate) fn remove(&mut self, id: u32) -> Option<Volume> {
        let slot = self.by_id.remove(&id)?;
        let volume = self.slots[slot as usize].take()?;
        self.vacant.push(slot);
        if volume.state != VolumeState::Dying {
            self.by_name.remove(&volume.info.name);
        }
        if let Some(Cut { line, .. }) = volume.info.snapshot
            && let Some(cuts) = self.lines.get_mut(&line)
        {
            cuts.retain(|(_, id)| *id != volume.info.id);
            if cuts.is_empty() {
                self.lines.remove(&line);
            }
        }
        self.record_bytes -= volume_bytes(&volume.info.name);
        Some(*volume)
    }

    /// A snapshot is deleted; its name is free.
    pub(crate) fn let_die(&mut self, id: u32) {
        let Some(snapshot) = self.get_mut(id) else { return };
        snapshot.state = VolumeState::Dying;
        let name = snapshot.info.name.clone();
        self.by_name.remove(&name);
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
            parent.children.extend(&volume.children);
        }
        Some(volume)
    }

    /// The snapshots of a volume with their cuts, oldest first.
    pub(crate) fn snapshots(&self, line: u32) -> &[(u64, u32)] {
        self.lines.get(&line).map_or(&[], Vec::as_slice)
    }

    /// Who owns what was written to leaf `leaf` of a volume with this LSN, if it is still there: the
    /// first snapshot that was taken since, or the volume.
    pub(crate) fn owner(&self, line: u32, lsn: u64, leaf: u64) -> u32 {
        let cuts = self.snapshots(line);
        let at = cuts.partition_point(|(cut, _)| *cut < lsn);
        let taken = |id: u32| {
            let has = |s: &Volume| match s.state {
                VolumeState::Creating => false,
                // What has passed to the child has left nothing behind, also after an opening.
                VolumeState::Dying => leaf >= s.passed && s.map.has_leaf(leaf),
                _ => true,
            };
            self.get(id).is_some_and(has)
        };
        cuts[at..].iter().find(|(_, id)| taken(*id)).map_or(line, |(_, id)| *id)
    }

    /// Finds the parent of each, from the snapshots that there are.
    pub(crate) fn link(&mut self) {
        for slot in self.slots.iter_mut().flatten() {
            let (line, lsn) = match slot.info.snapshot {
                Some(Cut { line, lsn }) => (line, lsn),
                None => (slot.info.id, u64::MAX),
            };
            let cuts = self.lines.get(&line).map_or(&[][..], Vec::as_slice);
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

    /// All volumes and the snapshots with cuts up to `lsn`, parents before their children.
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
        let there = |id: &u32| {
            let cut = self.get(*id).and_then(|volume| volume.info.snapshot);
            cut.is_none_or(|cut| cut.lsn <= lsn)
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
}
