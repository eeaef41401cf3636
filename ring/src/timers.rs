//! Timers: an indexed binary heap of deadlines.
//!
//! Invariants (checked by `Timers::check` in tests):
//! 1. A parent's deadline is never later than its children's; equal deadlines fire in the order
//!    in which they were set.
//! 2. Each armed slot knows its place in the heap, so cancelling removes it at once and a
//!    cancelled timer leaves nothing behind.
//! 3. A [`TimerId`] that has fired or was cancelled names nothing any more.
//!
//! Set, cancel and fire are O(log n). Allocates only when more timers are armed than ever before.
//! No clock here: time is an argument, in nanoseconds of any monotonic clock.

/// The name of one armed timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerId {
    slot: u32,
    generation: u32,
}

#[derive(Clone, Copy)]
struct Slot<T> {
    deadline_ns: u64,
    /// Order of setting; breaks ties between equal deadlines.
    sequence: u64,
    generation: u32,
    /// Index into `heap`; meaningless while the slot is free.
    place: u32,
    user: Option<T>,
}

/// A set of timers, each carrying a `T`.
pub(crate) struct Timers<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    heap: Vec<u32>,
    sequence: u64,
}

impl<T: Copy> Timers<T> {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self {
            slots: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            heap: Vec::with_capacity(capacity),
            sequence: 0,
        }
    }

    /// When the earliest timer is due, if one is armed.
    pub(crate) fn next_deadline_ns(&self) -> Option<u64> {
        self.heap.first().map(|&slot| self.slots[slot as usize].deadline_ns)
    }

    pub(crate) fn set(&mut self, deadline_ns: u64, user: T) -> TimerId {
        let place = self.heap.len() as u32;
        self.sequence += 1;
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(Slot {
                    deadline_ns: 0,
                    sequence: 0,
                    generation: 0,
                    place: 0,
                    user: None,
                });
                // Every slot may be free at once; room for that is made now, not on a cancel.
                self.free.reserve(self.slots.len());
                self.slots.len() as u32 - 1
            }
        };
        let entry = &mut self.slots[slot as usize];
        entry.deadline_ns = deadline_ns;
        entry.sequence = self.sequence;
        entry.place = place;
        entry.user = Some(user);
        let id = TimerId { slot, generation: entry.generation };
        self.heap.push(slot);
        self.sift_up(place as usize);
        id
    }

    /// Disarms a timer. Returns whether it was armed.
    pub(crate) fn cancel(&mut self, id: TimerId) -> bool {
        match self.slots.get(id.slot as usize) {
            Some(slot) if slot.generation == id.generation && slot.user.is_some() => {
                self.remove(slot.place as usize);
                true
            }
            _ => false,
        }
    }

    /// Takes the earliest timer whose deadline is at or before `now_ns`.
    pub(crate) fn take_due(&mut self, now_ns: u64) -> Option<(TimerId, T)> {
        if self.next_deadline_ns()? > now_ns {
            return None;
        }
        let slot = self.heap[0];
        let id = TimerId { slot, generation: self.slots[slot as usize].generation };
        self.remove(0).map(|user| (id, user))
    }

    fn remove(&mut self, place: usize) -> Option<T> {
        let slot = self.heap.swap_remove(place);
        if let Some(&moved) = self.heap.get(place) {
            self.slots[moved as usize].place = place as u32;
            self.sift_up(place);
            self.sift_down(self.slots[moved as usize].place as usize);
        }
        let entry = &mut self.slots[slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(slot);
        entry.user.take()
    }

    fn before(&self, left: u32, right: u32) -> bool {
        let key = |slot: u32| {
            let slot = &self.slots[slot as usize];
            (slot.deadline_ns, slot.sequence)
        };
        key(left) < key(right)
    }

    fn swap(&mut self, left: usize, right: usize) {
        self.heap.swap(left, right);
        self.slots[self.heap[left] as usize].place = left as u32;
        self.slots[self.heap[right] as usize].place = right as u32;
    }

    fn sift_up(&mut self, mut place: usize) {
        while place > 0 {
            let parent = (place - 1) / 2;
            if !self.before(self.heap[place], self.heap[parent]) {
                break;
            }
            self.swap(place, parent);
            place = parent;
        }
    }

    fn sift_down(&mut self, mut place: usize) {
        loop {
            let left = 2 * place + 1;
            let mut least = place;
            for child in [left, left + 1] {
                if child < self.heap.len() && self.before(self.heap[child], self.heap[least]) {
                    least = child;
                }
            }
            if least == place {
                return;
            }
            self.swap(place, least);
            place = least;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Timers<u64> {
        fn check(&self) {
            for (place, &slot) in self.heap.iter().enumerate() {
                assert_eq!(self.slots[slot as usize].place as usize, place);
                assert!(self.slots[slot as usize].user.is_some());
                if place > 0 {
                    assert!(!self.before(slot, self.heap[(place - 1) / 2]));
                }
            }
            assert_eq!(self.heap.len() + self.free.len(), self.slots.len());
        }
    }

    #[test]
    fn fires_in_order_of_deadline_then_of_setting() {
        let mut timers = Timers::with_capacity(4);
        for (deadline, user) in [(30, 1), (10, 2), (20, 3), (10, 4)] {
            timers.set(deadline, user);
        }
        assert_eq!(timers.next_deadline_ns(), Some(10));
        assert!(timers.take_due(9).is_none());
        let fired: Vec<u64> =
            std::iter::from_fn(|| timers.take_due(25)).map(|(_, user)| user).collect();
        assert_eq!(fired, [2, 4, 3]);
        assert_eq!(timers.next_deadline_ns(), Some(30));
    }

    #[test]
    fn a_cancelled_or_fired_name_is_dead_even_when_its_slot_is_reused() {
        let mut timers = Timers::with_capacity(1);
        let first = timers.set(10, 1);
        assert!(timers.cancel(first));
        assert!(!timers.cancel(first));
        let second = timers.set(20, 2);
        assert!(!timers.cancel(first));
        assert_eq!(timers.take_due(20), Some((second, 2)));
        assert!(!timers.cancel(second));
        assert_eq!(timers.next_deadline_ns(), None);
    }

    #[test]
    fn random_use_agrees_with_a_sorted_list() {
        let mut timers = Timers::with_capacity(8);
        let mut model: Vec<(u64, u64, TimerId)> = Vec::new();
        let mut state = 88_172_645_463_325_252_u64;
        let mut now = 0;
        for user in 0..20_000_u64 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            match state % 4 {
                0 | 1 => {
                    let deadline = now + state % 1_000;
                    model.push((deadline, user, timers.set(deadline, user)));
                }
                2 if !model.is_empty() => {
                    let (_, _, id) = model.swap_remove((state >> 8) as usize % model.len());
                    assert!(timers.cancel(id));
                }
                _ => {
                    now += state % 400;
                    model.sort_unstable_by_key(|&(deadline, user, _)| (deadline, user));
                    let due = model.partition_point(|&(deadline, ..)| deadline <= now);
                    for (_, user, id) in model.drain(..due) {
                        assert_eq!(timers.take_due(now), Some((id, user)));
                    }
                    assert_eq!(timers.take_due(now), None);
                }
            }
            timers.check();
        }
    }
}
