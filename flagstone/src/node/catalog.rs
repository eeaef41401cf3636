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
    /// What is exported, by name.
    entries: Vec<Entry>,
    /// Volumes that are being deleted: there, but not to be opened any more.
    leaving: Vec<Entry>,
}

impl Catalog {
    fn position(&self, name: &str) -> Result<usize, usize> {
        self.entries.binary_search_by(|entry| entry.name.as_str().cmp(name))
    }

    /// Whether a volume of that name is there, exported or not.
    pub(super) fn is_taken(&self, name: &str) -> bool {
        self.position(name).is_ok() || self.leaving.iter().any(|entry| entry.name == name)
    }

    /// Adds a volume; false if there is one of that name.
    pub(super) fn insert(&mut self, entry: Entry) -> bool {
        match self.position(&entry.name) {
            Err(at) if !self.is_taken(&entry.name) => {
                self.entries.insert(at, entry);
                true
            }
            _ => false,
        }
    }

    /// The volume is being deleted.
    pub(super) fn withdraw(&mut self, handle: u64) {
        if let Some(at) = self.entries.iter().position(|entry| entry.handle() == handle) {
            self.leaving.push(self.entries.remove(at));
        }
    }

    /// The volume's deletion did not happen.
    pub(super) fn restore(&mut self, handle: u64) {
        if let Some(entry) = self.remove(handle) {
            self.insert(entry);
        }
    }

    /// Takes out a volume that was withdrawn.
    pub(super) fn remove(&mut self, handle: u64) -> Option<Entry> {
        let at = self.leaving.iter().position(|entry| entry.handle() == handle)?;
        Some(self.leaving.remove(at))
    }

    /// The exported volume of that name.
    pub(super) fn named(&self, name: &str) -> Option<&Entry> {
        self.position(name).ok().map(|at| &self.entries[at])
    }

    pub(super) fn get(&self, handle: u64) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.handle() == handle)
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
        self.named(name).map(export)
    }

    fn nth(&self, index: usize) -> Option<Export<'_>> {
        self.entries.get(index).map(export)
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
    fn a_volume_that_is_being_deleted_keeps_its_name_but_is_not_exported() {
        let mut catalog = Catalog::default();
        catalog.insert(entry("a", 1));
        catalog.insert(entry("b", 2));
        let a = handle(1, VolumeId(1));
        catalog.withdraw(a);
        assert!(catalog.find("a").is_none());
        assert_eq!(catalog.default_export().map(|export| export.name), Some("b"));
        assert!(catalog.is_taken("a"));
        assert!(!catalog.insert(entry("a", 3)));
        catalog.restore(a);
        assert!(catalog.find("a").is_some());
        catalog.withdraw(a);
        assert!(catalog.remove(a).is_some());
        assert!(!catalog.is_taken("a"));
    }
}
