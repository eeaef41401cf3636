//! A table of items that are named by small numbers.
//!
//! Names are reused after removal; whoever holds one must know that its item is still there.
//! Allocates only when it grows beyond its first capacity.

#[derive(Debug)]
enum Entry<T> {
    Vacant { next: u32 },
    Taken(T),
}

const NONE: u32 = u32::MAX;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: u32,
    len: usize,
}

impl<T> Slab<T> {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { entries: Vec::with_capacity(capacity), free: NONE, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn insert(&mut self, item: T) -> u32 {
        self.len += 1;
        match self.entries.get_mut(self.free as usize) {
            Some(entry) => {
                let name = self.free;
                let Entry::Vacant { next } = *entry else {
                    unreachable!("the free list is vacant")
                };
                self.free = next;
                *entry = Entry::Taken(item);
                name
            }
            None => {
                self.entries.push(Entry::Taken(item));
                (self.entries.len() - 1) as u32
            }
        }
    }

    pub(super) fn remove(&mut self, name: u32) -> Option<T> {
        let entry = self.entries.get_mut(name as usize)?;
        if let Entry::Vacant { .. } = entry {
            return None;
        }
        let Entry::Taken(item) = std::mem::replace(entry, Entry::Vacant { next: self.free }) else {
            return None;
        };
        self.free = name;
        self.len -= 1;
        Some(item)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Taken(item) => Some(item),
            Entry::Vacant { .. } => None,
        })
    }

    pub(super) fn get_mut(&mut self, name: u32) -> Option<&mut T> {
        match self.entries.get_mut(name as usize)? {
            Entry::Taken(item) => Some(item),
            Entry::Vacant { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_reused_and_stale_names_find_nothing() {
        let mut slab = Slab::with_capacity(2);
        let a = slab.insert('a');
        let b = slab.insert('b');
        assert_eq!((a, b, slab.len()), (0, 1, 2));
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.get_mut(a), None);
        let c = slab.insert('c');
        assert_eq!(c, a);
        assert_eq!(slab.insert('d'), 2);
        assert_eq!(slab.get_mut(c), Some(&mut 'c'));
        assert_eq!(slab.get_mut(9), None);
        assert_eq!(slab.len(), 3);
    }
}
