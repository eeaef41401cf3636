//! Volumes of a pool: identity, size, map, and lookup by number and by name.

use crate::format::record::volume_bytes;
use crate::map::VolumeMap;
use crate::space::reserved_leaves;
use flagstone_block::BLOCK_SIZE;
use std::collections::HashMap;
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
}

#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) info: VolumeInfo,
    pub(crate) state: VolumeState,
    pub(crate) map: VolumeMap,
    /// Size that the last change gives, also while it is being written: a later growth must not
    /// shrink the volume again, and what a shrink cuts off must not be written to any more.
    pub(crate) logged_size: u64,
    /// As the last change makes them, also while that is being written: what is reserved is held
    /// back from the moment it is asked for.
    pub(crate) logged_settings: VolumeSettings,
    pub(crate) next_vseq: u64,
    /// Blocks that requests under way will add to what it takes: at least those.
    pub(crate) coming: u64,
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
            logged_size: info.size,
            logged_settings: info.settings,
            next_vseq,
            coming: 0,
            discards: 0,
            held: 0,
            held_leaves: 0,
            info,
        }
    }

    /// Blocks that it takes or is about to take.
    pub(crate) fn taken(&self) -> u64 {
        self.map.mapped() + self.map.kept() + self.coming
    }

    /// Blocks of its reservation.
    pub(crate) fn reserved_blocks(&self) -> u64 {
        self.logged_settings.reserved >> flagstone_block::BLOCK_BITS
    }

    /// Map leaves that its reservation may fill.
    pub(crate) fn reserved_leaves(&self) -> u64 {
        let all = reserved_leaves(self.logged_settings.reserved, self.logged_size);
        all.saturating_sub(self.map.dense())
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
        self.by_name.insert(volume.info.name.clone(), volume.info.id);
        self.slots[slot as usize] = Some(Box::new(volume));
    }

    pub(crate) fn remove(&mut self, id: u32) -> Option<Volume> {
        let slot = self.by_id.remove(&id)?;
        let volume = self.slots[slot as usize].take()?;
        self.vacant.push(slot);
        self.by_name.remove(&volume.info.name);
        self.record_bytes -= volume_bytes(&volume.info.name);
        Some(*volume)
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
