//! Free segments, by device: which is taken next.
//!
//! Data goes to every device in proportion to what is free there, and to another one each time, so
//! that devices are written to in parallel and become full together. Metadata goes to the journal's
//! device as long as there is room: so most of what the loss of a device takes is its own blocks.
//!
//! Invariant: which segment is taken never changes what is acknowledged or recovered.

use flagstone_block::DEVICES;
use std::collections::VecDeque;

#[derive(Debug, Default)]
struct Queue {
    free: VecDeque<u32>,
    /// Those whose content the device need not keep; oldest first. They are taken first, newest
    /// first: what is free for long is discarded, or has never been used.
    stale: VecDeque<u32>,
    /// What this device is behind, in segments, with what is due to it.
    credit: i64,
    /// Taken from only if the others have nothing.
    shunned: bool,
}

impl Queue {
    fn len(&self) -> usize {
        self.free.len() + self.stale.len()
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct FreeList {
    devices: [Queue; DEVICES],
    /// Segments of devices that are not shunned.
    len: usize,
    /// Of all.
    all: usize,
    stale: usize,
}

impl FreeList {
    pub(super) fn new() -> Self {
        Self { devices: std::array::from_fn(|_| Queue::default()), len: 0, all: 0, stale: 0 }
    }

    /// Room for so many segments of a device without another allocation.
    pub(super) fn reserve(&mut self, device: usize, segments: usize) {
        let queue = &mut self.devices[device];
        queue.free.reserve(segments.saturating_sub(queue.free.len()));
        queue.stale.reserve(segments.saturating_sub(queue.stale.len()));
    }

    /// Free segments of devices that are not shunned.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// As [`FreeList::len`], without a device.
    pub(super) fn len_but(&self, device: usize) -> usize {
        let queue = &self.devices[device];
        self.len - if queue.shunned { 0 } else { queue.len() }
    }

    /// All free segments.
    pub(super) fn all(&self) -> usize {
        self.all
    }

    /// From now on a device is taken from only if the others have nothing, or no longer.
    pub(super) fn shun(&mut self, device: usize, shunned: bool) {
        self.devices[device].shunned = shunned;
        let open = self.devices.iter().filter(|queue| !queue.shunned);
        self.len = open.map(Queue::len).sum();
    }

    /// Those of them that may be discarded.
    pub(super) fn stale(&self) -> usize {
        self.stale
    }

    pub(super) fn push(&mut self, device: usize, segment: u32, stale: bool) {
        let queue = &mut self.devices[device];
        if stale {
            queue.stale.push_back(segment);
        } else {
            queue.free.push_back(segment);
        }
        self.len += usize::from(!queue.shunned);
        self.all += 1;
        self.stale += usize::from(stale);
    }

    /// Takes a segment for data.
    pub(super) fn take(&mut self) -> Option<u32> {
        if self.len == 0 {
            return self.pop_most();
        }
        // Smooth weighted round robin.
        let mut best: Option<usize> = None;
        for device in 0..DEVICES {
            let free = self.devices[device].len();
            if free == 0 || self.devices[device].shunned {
                continue;
            }
            self.devices[device].credit += free as i64;
            if best.is_none_or(|best| self.devices[device].credit > self.devices[best].credit) {
                best = Some(device);
            }
        }
        let device = best?;
        self.devices[device].credit -= self.len as i64;
        self.pop(device)
    }

    /// Takes a segment of this device or, if it has none, of the one that has most.
    pub(super) fn take_near(&mut self, device: usize) -> Option<u32> {
        let near = if self.devices[device].shunned { None } else { self.pop(device) };
        near.or_else(|| self.pop_most())
    }

    /// Takes a segment of the device that has most; of a shunned one if no other has any.
    fn pop_most(&mut self) -> Option<u32> {
        let rank = |queue: &Queue| (!queue.shunned && queue.len() > 0, queue.len());
        let most = (0..DEVICES).max_by_key(|&device| rank(&self.devices[device]))?;
        self.pop(most)
    }

    fn pop(&mut self, device: usize) -> Option<u32> {
        let queue = &mut self.devices[device];
        let stale = queue.stale.pop_back();
        self.stale -= usize::from(stale.is_some());
        let segment = stale.or_else(|| queue.free.pop_front())?;
        self.len -= usize::from(!queue.shunned);
        self.all -= 1;
        Some(segment)
    }

    /// Takes the segment that may be discarded and is free for longest, of the device that has
    /// most of them.
    pub(super) fn take_oldest_stale(&mut self) -> Option<u32> {
        let queue = self.devices.iter_mut().max_by_key(|queue| queue.stale.len())?;
        let segment = queue.stale.pop_front()?;
        self.len -= usize::from(!queue.shunned);
        (self.all, self.stale) = (self.all - 1, self.stale - 1);
        Some(segment)
    }

    /// Nothing is to be discarded any more.
    pub(super) fn keep_stale(&mut self) {
        for queue in &mut self.devices {
            queue.free.extend(queue.stale.drain(..));
        }
        self.stale = 0;
    }

    /// Takes all that is free on a device.
    pub(super) fn take_device(&mut self, device: usize) -> impl Iterator<Item = u32> + use<> {
        let queue = std::mem::take(&mut self.devices[device]);
        self.len -= if queue.shunned { 0 } else { queue.len() };
        self.all -= queue.len();
        self.stale -= queue.stale.len();
        queue.free.into_iter().chain(queue.stale)
    }

    pub(super) fn clear(&mut self) {
        for queue in &mut self.devices {
            queue.free.clear();
            queue.stale.clear();
        }
        (self.len, self.all, self.stale) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_take_turns_in_proportion_to_what_is_free() {
        let mut list = FreeList::new();
        for segment in 0..30 {
            list.push(usize::from(segment >= 20), segment, false);
        }
        let taken: Vec<u32> = (0..9).map(|_| list.take().unwrap()).collect();
        let second = taken.iter().filter(|segment| **segment >= 20).count();
        assert_eq!(second, 3, "{taken:?}");
        assert!(taken.chunks(3).all(|three| three.iter().any(|segment| *segment >= 20)));
        assert_eq!(list.take_near(1), Some(23));
        assert_eq!(list.take_device(1).count(), 6);
        assert_eq!(list.take_near(1), Some(6));
        assert_eq!(list.len(), 13);
        list.push(2, 40, true);
        list.shun(2, true);
        assert_eq!((list.len(), list.all(), list.take_near(2)), (13, 14, Some(7)));
        list.push(0, 7, false);
        let rest: Vec<u32> = std::iter::from_fn(|| list.take()).collect();
        assert_eq!((rest.len(), rest.last()), (14, Some(&40)));
    }
}
