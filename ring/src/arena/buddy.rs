//! Buddy allocator over slot numbers.
//!
//! Invariants (checked by `Buddy::check` in tests):
//! 1. Every slot belongs to exactly one piece: free, or part of one allocation.
//! 2. A free piece of order `k` is `1 << k` slots long and starts at a multiple of its length.
//! 3. Two free buddies of the same order never exist side by side; they are one larger piece.
//!
//! A request that is not a power of two takes the next power of two and gives the tail back at
//! once, so that 33 blocks cost 33 blocks and not 64. Work is O(log n) per call; nothing is
//! allocated after `new`. It knows nothing of memory: see [`super::Arena`].

/// The largest piece: `1 << MAX_ORDER` slots.
pub(super) const MAX_ORDER: usize = 10;
const ORDERS: usize = MAX_ORDER + 1;
const NONE: u32 = u32::MAX;

/// What the slot at the start of a piece says about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Head {
    /// Not the start of anything: inside a free piece or an allocation.
    Inside,
    /// Start of a free piece of this order.
    Free(u8),
    /// Start of an allocation of this many slots, 1 to 1024.
    Allocated(u16),
}

#[derive(Clone, Copy)]
struct Links {
    next: u32,
    previous: u32,
}

/// Why a `free` was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotAllocated;

pub(super) struct Buddy {
    heads: Box<[Head]>,
    links: Box<[Links]>,
    /// First free piece of each order.
    lists: [u32; ORDERS],
    free_slots: u32,
}

impl Buddy {
    pub(super) fn new(slots: u32) -> Self {
        let mut buddy = Self {
            heads: vec![Head::Inside; slots as usize].into(),
            links: vec![Links { next: NONE, previous: NONE }; slots as usize].into(),
            lists: [NONE; ORDERS],
            free_slots: 0,
        };
        // From the end, so that the lists hand out low addresses first.
        let largest = 1 << MAX_ORDER;
        let whole = slots - slots % largest;
        buddy.release_run(whole, slots);
        for start in (0..whole).step_by(largest as usize).rev() {
            buddy.release(start, MAX_ORDER);
        }
        buddy
    }

    pub(super) fn free_slots(&self) -> u32 {
        self.free_slots
    }

    /// A run of `count` slots, 1 to 1024, starting at a multiple of its rounded-up length.
    pub(super) fn alloc(&mut self, count: u32) -> Option<u32> {
        if count == 0 || count > 1 << MAX_ORDER {
            return None;
        }
        let order = count.next_power_of_two().trailing_zeros() as usize;
        let from = (order..ORDERS).find(|&candidate| self.lists[candidate] != NONE)?;
        let start = self.lists[from];
        self.unlink(start, from);
        self.free_slots -= 1 << from;
        for split in (order..from).rev() {
            self.push(start + (1 << split), split);
            self.free_slots += 1 << split;
        }
        self.release_run(start + count, start + (1 << order));
        self.heads[start as usize] = Head::Allocated(count as u16);
        Some(start)
    }

    /// Gives back the run that `alloc` returned at `start` with this `count`.
    pub(super) fn free(&mut self, start: u32, count: u32) -> Result<(), NotAllocated> {
        match self.heads.get(start as usize) {
            Some(&Head::Allocated(held)) if u32::from(held) == count => {}
            _ => return Err(NotAllocated),
        }
        self.heads[start as usize] = Head::Inside;
        self.release_run(start, start + count);
        Ok(())
    }

    /// Frees `start..end`, cut into the fewest aligned power-of-two pieces.
    fn release_run(&mut self, mut start: u32, end: u32) {
        while start < end {
            let alignment = start.trailing_zeros().min(MAX_ORDER as u32);
            let length = (end - start).ilog2();
            let order = alignment.min(length) as usize;
            self.release(start, order);
            start += 1 << order;
        }
    }

    /// Frees one piece and joins it with its free buddies.
    fn release(&mut self, mut start: u32, mut order: usize) {
        self.free_slots += 1 << order;
        while order < MAX_ORDER {
            let buddy = start ^ (1 << order);
            if self.heads.get(buddy as usize) != Some(&Head::Free(order as u8)) {
                break;
            }
            self.unlink(buddy, order);
            start = start.min(buddy);
            order += 1;
        }
        self.push(start, order);
    }

    fn push(&mut self, start: u32, order: usize) {
        let next = self.lists[order];
        if next != NONE {
            self.links[next as usize].previous = start;
        }
        self.links[start as usize] = Links { next, previous: NONE };
        self.heads[start as usize] = Head::Free(order as u8);
        self.lists[order] = start;
    }

    fn unlink(&mut self, start: u32, order: usize) {
        let Links { next, previous } = self.links[start as usize];
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        if previous == NONE {
            self.lists[order] = next;
        } else {
            self.links[previous as usize].next = next;
        }
        self.heads[start as usize] = Head::Inside;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Buddy {
        /// Walks all slots and asserts the module's invariants.
        fn check(&self) {
            let slots = self.heads.len() as u32;
            let mut at = 0;
            let mut free = 0;
            while at < slots {
                match self.heads[at as usize] {
                    Head::Free(order) => {
                        let length = 1_u32 << order;
                        assert_eq!(at % length, 0, "a free piece is aligned to its length");
                        let buddy = at ^ length;
                        assert!(
                            order as usize == MAX_ORDER
                                || self.heads.get(buddy as usize) != Some(&Head::Free(order)),
                            "free buddies are joined"
                        );
                        free += length;
                        at += length;
                    }
                    Head::Allocated(count) => at += u32::from(count),
                    Head::Inside => panic!("slot {at} belongs to nothing"),
                }
            }
            assert_eq!(at, slots);
            assert_eq!(free, self.free_slots);
        }
    }

    #[test]
    fn odd_requests_take_no_more_than_they_asked_for() {
        let mut buddy = Buddy::new(64);
        let start = buddy.alloc(33).expect("64 slots are free");
        assert_eq!(buddy.free_slots(), 31);
        buddy.check();
        assert_eq!(buddy.free(start, 32), Err(NotAllocated));
        assert_eq!(buddy.free(start + 1, 33), Err(NotAllocated));
        buddy.free(start, 33).expect("as allocated");
        assert_eq!(buddy.free(start, 33), Err(NotAllocated));
        buddy.check();
        assert_eq!(buddy.alloc(64), Some(0));
    }

    #[test]
    fn sizes_outside_the_range_are_refused() {
        let mut buddy = Buddy::new(4096);
        assert_eq!(buddy.alloc(0), None);
        assert_eq!(buddy.alloc(1025), None);
        assert_eq!(buddy.alloc(u32::MAX), None);
        assert!(buddy.alloc(1024).is_some());
        assert_eq!(buddy.free(1 << 20, 1), Err(NotAllocated));
    }

    #[test]
    fn a_tail_that_is_no_power_of_two_is_usable() {
        let mut buddy = Buddy::new(1024 + 700);
        buddy.check();
        assert_eq!(buddy.free_slots(), 1724);
        let mut held = Vec::new();
        while let Some(start) = buddy.alloc(1) {
            held.push(start);
        }
        assert_eq!(held.len(), 1724);
        buddy.check();
        for start in held {
            buddy.free(start, 1).expect("held");
        }
        buddy.check();
        assert!(buddy.alloc(1024).is_some());
    }

    #[test]
    fn random_use_keeps_the_invariants_and_loses_nothing() {
        let mut buddy = Buddy::new(3000);
        let mut held: Vec<(u32, u32)> = Vec::new();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for step in 0..20_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let roll = state >> 33;
            if roll % 5 < 3 || held.is_empty() {
                let count = 1 + (roll as u32 / 5) % if roll.is_multiple_of(97) { 1024 } else { 40 };
                if let Some(start) = buddy.alloc(count) {
                    assert!(
                        held.iter().all(|&(s, c)| start + count <= s || s + c <= start),
                        "runs never overlap"
                    );
                    held.push((start, count));
                }
            } else {
                let (start, count) = held.swap_remove(roll as usize % held.len());
                buddy.free(start, count).expect("held");
            }
            if step % 64 == 0 {
                buddy.check();
            }
        }
        for (start, count) in held {
            buddy.free(start, count).expect("held");
        }
        buddy.check();
        assert_eq!(buddy.free_slots(), 3000);
    }
}
