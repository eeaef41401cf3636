//! Maps of deleted volumes, until the space of what they map is given back.
//!
//! Invariant (recounted by [`Engine::check`](crate::Engine::check)): `owned` is the sum over the maps.
//! What reads leaves of theirs, or drops them from memory, doesn't change what they own.

use crate::map::{LeafSlab, VolumeMap};
use std::collections::{HashMap, VecDeque};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Graves {
    /// Volumes, in the order in which they are taken apart.
    queue: VecDeque<u32>,
    maps: HashMap<u32, VolumeMap>,
    owned: u64,
}

impl Graves {
    /// Takes the map of a volume that is gone.
    pub(crate) fn bury(&mut self, map: VolumeMap) {
        // One without leaves has nothing to give back.
        if map.leaves() > 0 {
            self.owned += map.owned();
            self.queue.push_back(map.volume());
            self.maps.insert(map.volume(), map);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Blocks that all of them own.
    pub(crate) fn owned(&self) -> u64 {
        self.owned
    }

    pub(crate) fn get(&self, volume: u32) -> Option<&VolumeMap> {
        self.maps.get(&volume)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &VolumeMap> {
        self.maps.values()
    }

    /// Takes something off the first map; `None` if there is none.
    pub(crate) fn reclaim<R>(&mut self, take: impl FnOnce(&mut VolumeMap) -> R) -> Option<R> {
        let map = self.maps.get_mut(self.queue.front()?)?;
        let before = map.owned();
        let taken = take(map);
        self.owned -= before - map.owned();
        Some(taken)
    }

    /// Forgets a leaf that is not in memory.
    pub(crate) fn give_up(&mut self, slab: &mut LeafSlab, volume: u32, leaf: u64) {
        if let Some(map) = self.maps.get_mut(&volume) {
            let before = map.owned();
            map.give_up(slab, leaf);
            self.owned -= before - map.owned();
        }
    }

    /// The first one is empty.
    pub(crate) fn pop(&mut self) {
        if let Some(volume) = self.queue.pop_front() {
            self.maps.remove(&volume);
        }
    }
}
