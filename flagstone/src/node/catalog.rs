//! The volumes that are exported, by name, over all pools.
//!
//! Ordered by name and kept in step with the engines by [`super::manage`]; asked during
//! handshakes and by the control API, never on the data path.

use flagstone_block::VolumeId;
use flagstone_nbd::{Export, Exports};

/// One exported volume.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) uuid: [u8; 16],
    pub(super) size: u64,
    /// Index of its pool.
    pub(super) pool: u32,
    pub(super) id: VolumeId,
    /// Connections that have it open.
    pub(super) connections: u32,
    /// Being deleted: there, but not to be opened any more.
    pub(super) leaving: bool,
}

impl Entry {
    pub(super) fn handle(&self) -> u64 {
        handle(self.pool, self.id)
    }
}

/// The number under which the NBD session knows a volume.
pub(super) fn handle(pool: u32, id: VolumeId) -> u64 {
    u64::from(pool) << 32 | u64::from(id.0)
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    entries: Vec<Entry>,
}

impl Catalog {
    fn position(&self, name: &str) -> Result<usize, usize> {
        self.entries.binary_search_by(|entry| entry.name.as_str().cmp(name))
    }

    /// Adds a volume; false if there is one of that name.
    pub(super) fn insert(&mut self, entry: Entry) -> bool {
        match self.position(&entry.name) {
            Ok(_) => false,
            Err(at) => {
                self.entries.insert(at, entry);
                true
            }
        }
    }

    pub(super) fn remove(&mut self, handle: u64) -> Option<Entry> {
        let at = self.entries.iter().position(|entry| entry.handle() == handle)?;
        Some(self.entries.remove(at))
    }

    pub(super) fn named(&self, name: &str) -> Option<&Entry> {
        self.position(name).ok().map(|at| &self.entries[at])
    }

    pub(super) fn get_mut(&mut self, handle: u64) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.handle() == handle)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }
}

fn export(entry: &Entry) -> Export<'_> {
    Export {
        handle: entry.handle(),
        name: &entry.name,
        description: "",
        size: entry.size,
        read_only: false,
    }
}

impl Exports for Catalog {
    fn find(&self, name: &str) -> Option<Export<'_>> {
        self.named(name).filter(|entry| !entry.leaving).map(export)
    }

    fn nth(&self, index: usize) -> Option<Export<'_>> {
        self.entries.iter().filter(|entry| !entry.leaving).nth(index).map(export)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, id: u32) -> Entry {
        Entry {
            name: name.into(),
            uuid: [0; 16],
            size: 4096,
            pool: 1,
            id: VolumeId(id),
            connections: 0,
            leaving: false,
        }
    }

    #[test]
    fn names_are_unique_and_ordered() {
        let mut catalog = Catalog::default();
        assert!(catalog.insert(entry("b", 1)));
        assert!(catalog.insert(entry("a", 2)));
        assert!(!catalog.insert(entry("a", 3)));
        let names: Vec<_> = catalog.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(catalog.find("b").map(|export| export.handle), Some(1 << 32 | 1));
        assert!(catalog.default_export().is_none());
    }

    #[test]
    fn a_leaving_volume_is_not_exported() {
        let mut catalog = Catalog::default();
        catalog.insert(entry("a", 1));
        catalog.insert(entry("b", 2));
        catalog.get_mut(handle(1, VolumeId(1))).expect("it was inserted").leaving = true;
        assert!(catalog.find("a").is_none());
        assert_eq!(catalog.default_export().map(|export| export.name), Some("b"));
        assert!(catalog.named("a").is_some());
        assert!(catalog.remove(handle(1, VolumeId(1))).is_some());
        assert!(catalog.named("a").is_none());
    }
}
