//! The volumes and snapshots that are exported, by name, over all pools.
//!
//! Ordered by name and kept in step with the engines by [`super::manage`]; asked during
//! handshakes and by the control API, never on the data path. Nothing here walks all volumes: what
//! it costs to make, find, open or delete one does not depend on how many there are.

use super::control::VolumeIo;
use crate::name::split_snapshot_name;
use flagstone_block::VolumeId;
use flagstone_nbd::{Export, Exports};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::rc::Rc;

/// One exported volume or snapshot.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: Rc<str>,
    pub(super) uuid: [u8; 16],
    pub(super) size: u64,
    /// Index of its pool.
    pub(super) pool: u32,
    pub(super) id: VolumeId,
    /// It is a snapshot, of the volume whose name its own begins with.
    pub(super) is_snapshot: bool,
    /// How many snapshots of it there are.
    pub(super) snapshots: u32,
    /// It is a snapshot, or its pool is only read.
    pub(super) read_only: bool,
    /// Connections that have it open.
    pub(super) connections: u32,
    /// What was asked of it, but for what connections have not told yet: see [`super::reactor::Reactor::settle_io`].
    pub(super) io: VolumeIo,
}

impl Entry {
    pub(super) fn handle(&self) -> u64 {
        handle(self.pool, self.id)
    }

    /// The volume's name, of a snapshot.
    pub(super) fn volume_name(&self) -> Option<&str> {
        let parts = split_snapshot_name(&self.name).ok().filter(|_| self.is_snapshot);
        parts.map(|(volume, _)| volume)
    }
}

/// The number under which the NBD session knows a volume.
pub(super) fn handle(pool: u32, id: VolumeId) -> u64 {
    u64::from(pool) << 32 | u64::from(id.0)
}

/// What a pool's volumes and snapshots come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) volumes: u32,
    pub(super) snapshots: u32,
    /// Sum of the volumes' sizes.
    pub(super) bytes: u64,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    /// All volumes and snapshots, those that are being deleted among them.
    entries: HashMap<u64, Entry>,
    /// The volumes that are exported, by name: handles.
    exported: BTreeMap<Rc<str>, u64>,
    /// The snapshots that are, by name, so that those of one volume lie together.
    snapshots: BTreeMap<Rc<str>, u64>,
    /// Names of those that are being deleted: there, but not to be opened any more.
    leaving: HashSet<Rc<str>>,
    /// Of what is exported, by pool.
    totals: Vec<Totals>,
}

impl Catalog {
    /// Whether a volume or snapshot of that name is there, exported or not.
    pub(super) fn is_taken(&self, name: &str) -> bool {
        self.exported.contains_key(name)
            || self.snapshots.contains_key(name)
            || self.leaving.contains(name)
    }

    /// Adds a volume or snapshot; false if there is one of that name.
    pub(super) fn insert(&mut self, mut entry: Entry) -> bool {
        if self.is_taken(&entry.name) {
            return false;
        }
        entry.snapshots = match entry.is_snapshot {
            true => 0,
            false => self.snapshots_from(Some(&entry), None).count() as u32,
        };
        let handle = entry.handle();
        self.count(&entry, true);
        let names = if entry.is_snapshot { &mut self.snapshots } else { &mut self.exported };
        names.insert(Rc::clone(&entry.name), handle);
        self.entries.insert(handle, entry);
        true
    }

    fn count(&mut self, entry: &Entry, comes: bool) {
        let pool = entry.pool as usize;
        if pool >= self.totals.len() {
            self.totals.resize(pool + 1, Totals::default());
        }
        let totals = &mut self.totals[pool];
        if let Some(volume) = entry.volume_name() {
            let volume = self.exported.get(volume).and_then(|handle| self.entries.get_mut(handle));
            let counts = [Some(&mut totals.snapshots), volume.map(|volume| &mut volume.snapshots)];
            for count in counts.into_iter().flatten() {
                *count = if comes { *count + 1 } else { *count - 1 };
            }
            return;
        }
        // A pool may promise more bytes than a number holds.
        match comes {
            true => {
                totals.volumes += 1;
                totals.bytes = totals.bytes.wrapping_add(entry.size);
            }
            false => {
                totals.volumes -= 1;
                totals.bytes = totals.bytes.wrapping_sub(entry.size);
            }
        }
    }

    /// What is exported of a pool.
    pub(super) fn totals(&self, pool: usize) -> Totals {
        self.totals.get(pool).copied().unwrap_or_default()
    }

    /// The volume or snapshot is being deleted.
    pub(super) fn withdraw(&mut self, handle: u64) {
        let Some(entry) = self.entries.get(&handle).cloned() else { return };
        let names = if entry.is_snapshot { &mut self.snapshots } else { &mut self.exported };
        if names.remove(&entry.name).is_some() {
            self.count(&entry, false);
            self.leaving.insert(entry.name);
        }
    }

    /// The deletion did not happen.
    pub(super) fn restore(&mut self, handle: u64) {
        if let Some(entry) = self.remove(handle) {
            self.insert(entry);
        }
    }

    /// Takes out what was withdrawn.
    pub(super) fn remove(&mut self, handle: u64) -> Option<Entry> {
        let entry = self.entries.get(&handle)?;
        if !self.leaving.remove(&entry.name) {
            return None;
        }
        self.entries.remove(&handle)
    }

    /// The exported volume of that name.
    pub(super) fn named(&self, name: &str) -> Option<&Entry> {
        self.entries.get(self.exported.get(name)?)
    }

    /// The exported snapshot of that name.
    pub(super) fn snapshot(&self, name: &str) -> Option<&Entry> {
        self.entries.get(self.snapshots.get(name)?)
    }

    /// All that is exported, and what is being deleted.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The volume or snapshot, if it is exported.
    pub(super) fn exported(&self, handle: u64) -> Option<&Entry> {
        self.get(handle).filter(|entry| !self.leaving.contains(&entry.name))
    }

    pub(super) fn get(&self, handle: u64) -> Option<&Entry> {
        self.entries.get(&handle)
    }

    /// A client has opened the volume or snapshot, or closed it.
    pub(super) fn opened(&mut self, handle: u64, opened: bool) {
        if let Some(entry) = self.entries.get_mut(&handle) {
            match opened {
                true => entry.connections += 1,
                false => entry.connections -= 1,
            }
        }
    }

    /// So much more was asked of it.
    pub(super) fn count_io(&mut self, handle: u64, io: &VolumeIo) {
        if let Some(entry) = self.entries.get_mut(&handle) {
            entry.io.add(io);
        }
    }

    /// The volume has another size.
    pub(super) fn resize(&mut self, handle: u64, size: u64) {
        let Some(mut entry) = self.entries.get(&handle).cloned() else { return };
        let exported = self.exported.contains_key(&entry.name);
        if exported {
            self.count(&entry, false);
        }
        entry.size = size;
        if exported {
            self.count(&entry, true);
        }
        self.entries.insert(handle, entry);
    }

    /// The volumes that are exported, by name, behind the one called `name`, which need not be there.
    pub(super) fn from(&self, name: Option<&str>) -> impl Iterator<Item = &Entry> {
        self.range(&self.exported, name)
    }

    /// The snapshots that are exported, by name, behind the one called `name`, which need not be there;
    /// those of one volume, or all.
    pub(super) fn snapshots_from<'a>(
        &'a self,
        volume: Option<&'a Entry>,
        name: Option<&str>,
    ) -> impl Iterator<Item = &'a Entry> + use<'a> {
        let first = volume.map(|volume| format!("{}@", volume.name));
        // The `@` alone is no snapshot's name, and sorts before all that begin with it.
        let start = name.into_iter().chain(first.as_deref()).max();
        let of_it =
            move |entry: &&Entry| volume.is_none_or(|of| entry.volume_name() == Some(&*of.name));
        self.range(&self.snapshots, start).take_while(of_it)
    }

    fn range<'a>(
        &'a self,
        names: &'a BTreeMap<Rc<str>, u64>,
        name: Option<&str>,
    ) -> impl Iterator<Item = &'a Entry> + use<'a> {
        let start = name.map_or(Bound::Unbounded, Bound::Excluded);
        let handles = names.range::<str, _>((start, Bound::Unbounded));
        handles.filter_map(|(_, handle)| self.entries.get(handle))
    }
}

fn export(entry: &Entry) -> Export<'_> {
    Export {
        handle: entry.handle(),
        name: &entry.name,
        description: "",
        size: entry.size,
        read_only: entry.read_only,
    }
}

impl Catalog {
    /// The volume itself, or the one that it is a snapshot of.
    fn line_of(&self, handle: u64) -> Option<&Entry> {
        let entry = self.get(handle)?;
        match entry.volume_name() {
            Some(volume) => self.named(volume),
            None => Some(entry),
        }
    }
}

impl Exports for Catalog {
    fn find(&self, name: &str) -> Option<Export<'_>> {
        self.named(name).or_else(|| self.snapshot(name)).map(export)
    }

    fn origin(&self, export: u64, name: &str) -> Option<u64> {
        let line = self.line_of(export)?;
        let found = match name.contains('@') {
            true => self.snapshot(name),
            false => self.snapshot(&format!("{}@{name}", line.name)),
        };
        found.filter(|found| found.pool == line.pool).map(Entry::handle)
    }

    fn origin_after(&self, export: u64, after: Option<&str>) -> Option<&str> {
        let line = self.line_of(export)?;
        let after = after.map(|after| format!("{}@{after}", line.name));
        let next = self.snapshots_from(Some(line), after.as_deref()).next()?;
        next.name.split_once('@').map(|(_, name)| name)
    }

    fn after(&self, name: Option<&str>) -> Option<Export<'_>> {
        let both = [self.from(name).next(), self.snapshots_from(None, name).next()];
        both.into_iter().flatten().min_by_key(|entry| &entry.name).map(export)
    }

    /// The only volume, whether it has snapshots or not.
    fn default_export(&self) -> Option<Export<'_>> {
        let mut volumes = self.from(None);
        let first = volumes.next()?;
        volumes.next().is_none().then(|| export(first))
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
            is_snapshot: false,
            snapshots: 0,
            read_only: false,
            connections: 0,
            io: VolumeIo::default(),
        }
    }

    #[test]
    fn names_are_unique_and_ordered() {
        let mut catalog = Catalog::default();
        assert!(catalog.insert(entry("b", 1)));
        assert!(catalog.insert(entry("a", 2)));
        assert!(!catalog.insert(entry("a", 3)));
        let names: Vec<_> = catalog.from(None).map(|entry| &*entry.name).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(catalog.find("b").map(|export| export.handle), Some(1 << 32 | 1));
        assert!(catalog.default_export().is_none());
        assert_eq!(catalog.after(Some("aa")).map(|export| export.handle), Some(1 << 32 | 1));
        assert!(catalog.after(Some("b")).is_none());
    }

    #[test]
    fn snapshots_are_exported_between_volumes_and_listed_beside_them() {
        let mut catalog = Catalog::default();
        for (i, name) in ["a", "a-1", "ab", "b"].into_iter().enumerate() {
            assert!(catalog.insert(entry(name, i as u32)));
        }
        for (i, name) in ["ab@y", "a@2", "a-1@x", "a@1"].into_iter().enumerate() {
            assert!(catalog.insert(Entry { is_snapshot: true, ..entry(name, 10 + i as u32) }));
        }
        assert!(!catalog.insert(entry("a@1", 20)));
        let names = |entries: Vec<&Entry>| entries.iter().map(|e| e.name.to_string()).collect();
        let of = |catalog: &Catalog, volume: Option<&str>, after: Option<&str>| -> Vec<String> {
            let volume = volume.map(|name| catalog.named(name).expect("it is there"));
            names(catalog.snapshots_from(volume, after).collect())
        };
        assert_eq!(of(&catalog, Some("a"), None), ["a@1", "a@2"]);
        assert_eq!(of(&catalog, Some("a"), Some("a@1")), ["a@2"]);
        assert_eq!(of(&catalog, Some("a"), Some("a@2")), [""; 0]);
        assert_eq!(of(&catalog, Some("b"), None), [""; 0]);
        assert_eq!(of(&catalog, None, Some("a@1")), ["a@2", "ab@y"]);
        let volumes: Vec<String> = names(catalog.from(None).collect());
        assert_eq!(volumes, ["a", "a-1", "ab", "b"]);
        let mut exports = vec![catalog.after(None).expect("there are some").name];
        while let Some(next) = catalog.after(exports.last().copied()) {
            exports.push(next.name);
        }
        assert_eq!(exports, ["a", "a-1", "a-1@x", "a@1", "a@2", "ab", "ab@y", "b"]);
        assert!(catalog.named("a@1").is_none() && catalog.snapshot("a").is_none());
        assert_eq!(catalog.totals(1), Totals { volumes: 4, snapshots: 4, bytes: 4 * 4096 });
        assert_eq!(catalog.named("a").map(|a| a.snapshots), Some(2));
        let first = catalog.snapshot("a@1").expect("it is there").handle();
        catalog.withdraw(first);
        assert_eq!(catalog.named("a").map(|a| a.snapshots), Some(1));
        catalog.restore(first);
        assert_eq!(catalog.named("a").map(|a| a.snapshots), Some(2));
        // A volume that has another number from now on still has them.
        let a = handle(1, VolumeId(0));
        catalog.withdraw(a);
        let second = catalog.snapshot("a@2").expect("it is there").handle();
        catalog.withdraw(second);
        catalog.remove(second);
        catalog.remove(a);
        assert!(catalog.insert(entry("a", 30)));
        assert_eq!(catalog.named("a").map(|a| a.snapshots), Some(1));
        assert_eq!(of(&catalog, Some("a"), None), ["a@1"]);
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
        assert_eq!(catalog.totals(1), Totals { volumes: 1, snapshots: 0, bytes: 4096 });
        catalog.resize(handle(1, VolumeId(2)), 8192);
        assert_eq!(catalog.totals(1), Totals { volumes: 1, snapshots: 0, bytes: 8192 });
        assert_eq!(catalog.totals(0), Totals::default());
    }
}
