//! Segments by the device that they lie on: which takes something, which is being emptied, which is
//! empty.

use super::{NO_DEVICE, Segment, SegmentState, SegmentTable};

impl SegmentTable {
    /// Metadata goes to this device from now on.
    pub(crate) fn set_primary(&mut self, device: usize) {
        self.primary = device;
    }

    /// An absent segment is free, unless its device takes nothing.
    pub(super) fn set_free(&mut self, segment: u32, stale: bool) {
        let row = &mut self.rows[segment as usize];
        let device = usize::from(row.device);
        if !self.closed.has(device) {
            row.state = SegmentState::Free;
            self.absent[device] -= 1;
            self.free.push(device, segment, stale);
        }
    }

    /// A device takes nothing any more if that can be helped: what is free there does not count.
    pub(crate) fn shun(&mut self, device: usize) {
        self.leaving.set(device, true);
        self.free.shun(device, true);
        self.events += 1;
    }

    /// The next device that is being emptied and still takes something.
    pub(crate) fn next_shunned(&self) -> Option<usize> {
        self.leaving.iter().find(|&device| !self.closed.has(device))
    }

    /// A device takes nothing any more: what is free there becomes absent, and what will be.
    pub(crate) fn close(&mut self, device: usize) {
        self.closed.set(device, true);
        for segment in self.free.take_device(device) {
            self.rows[segment as usize].state = SegmentState::Absent;
            self.absent[device] += 1;
        }
        self.stale_least = self.stale_least.min(self.free.stale());
        self.events += 1;
    }

    /// A device failed: it takes nothing any more, and is not emptied unless that is asked for.
    pub(crate) fn fail(&mut self, device: usize) {
        self.failed.set(device, true);
        self.free.shun(device, true);
        self.close(device);
        self.exclude_failed();
    }

    /// What is dead on devices that failed can't be gained by cleaning.
    pub(super) fn exclude_failed(&mut self) {
        for segment in 0..self.len() {
            if self.has_failed(segment) {
                self.exclude(segment);
            }
        }
    }

    /// Free segments that others than this device have.
    pub(crate) fn free_but(&self, device: usize) -> u32 {
        self.free.len_but(device) as u32
    }

    /// Metadata segments of a device.
    pub(crate) fn metas_on(&self, device: usize) -> u32 {
        self.metas[device]
    }

    /// A device takes data again.
    pub(crate) fn reopen(&mut self, device: usize) {
        self.closed.set(device, false);
        self.leaving.set(device, false);
        self.free.shun(device, false);
        for segment in 0..self.len() {
            let row = self.row(segment);
            let is_absent = row.state == SegmentState::Absent && !row.discarding;
            if usize::from(row.device) == device && is_absent {
                self.set_free(segment, false);
            }
        }
        self.events += 1;
    }

    /// Segments of a device that are absent: all of them once it is empty.
    pub(crate) fn absent(&self, device: usize) -> u32 {
        self.absent[device]
    }

    fn rows_on(&self, device: usize) -> impl Iterator<Item = &Segment> {
        self.rows.iter().filter(move |row| usize::from(row.device) == device)
    }

    /// Segments of a device that hold nothing. Looks at every row.
    pub(crate) fn empty_on(&self, device: usize) -> u32 {
        let empty = |row: &&Segment| matches!(row.state, SegmentState::Free | SegmentState::Absent);
        self.rows_on(device).filter(empty).count() as u32
    }

    /// Sealed segments of a device. Looks at every row.
    pub(crate) fn sealed_on(&self, device: usize) -> u32 {
        self.rows_on(device).filter(|row| row.state == SegmentState::Sealed).count() as u32
    }

    /// Segments of a device that are on their way to being free. Looks at every row.
    pub(crate) fn dying_on(&self, device: usize) -> u32 {
        let dying =
            |row: &&Segment| matches!(row.state, SegmentState::Dead | SegmentState::Freeing);
        self.rows_on(device).filter(dying).count() as u32
    }

    /// Metadata segments of devices that are being emptied.
    pub(crate) fn meta_leaving(&self) -> u32 {
        self.leaving.sum_of(&self.metas)
    }

    /// Those of them that lie on devices that take nothing, so that no more can come.
    pub(crate) fn meta_closed(&self) -> u32 {
        self.closed.sum_of(&self.metas)
    }

    /// A device that is empty is no more: its numbers are anybody's.
    pub(crate) fn forget(&mut self, device: usize) {
        for row in &mut self.rows {
            if usize::from(row.device) == device {
                debug_assert_eq!(row.state, SegmentState::Absent);
                row.device = NO_DEVICE;
            }
        }
        (self.absent[device], self.metas[device]) = (0, 0);
        self.closed.set(device, false);
        self.leaving.set(device, false);
        self.failed.set(device, false);
        self.free.shun(device, false);
    }

    /// Whether a segment lies on a device that takes nothing.
    pub(crate) fn is_closed(&self, segment: u32) -> bool {
        self.closed.has(usize::from(self.row(segment).device))
    }

    /// Whether a segment lies on a device that failed.
    pub(crate) fn has_failed(&self, segment: u32) -> bool {
        self.failed.has(usize::from(self.row(segment).device))
    }

    /// Whether nothing is gained by emptying a segment: it does not become free, but absent.
    pub(crate) fn gains_nothing(&self, segment: u32) -> bool {
        self.is_leaving(segment) || self.has_failed(segment)
    }

    /// Whether a device is being emptied.
    pub(crate) fn leaves(&self, device: usize) -> bool {
        self.leaving.has(device)
    }

    /// Whether a segment lies on a device that is being emptied.
    pub(crate) fn is_leaving(&self, segment: u32) -> bool {
        self.leaving.has(usize::from(self.row(segment).device))
    }

    /// Whether any device is being emptied.
    pub(crate) fn any_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// A free segment that was taken off the list counts as absent until it comes back.
    pub(super) fn free_to_absent(&mut self, segment: u32) {
        let row = &mut self.rows[segment as usize];
        row.state = SegmentState::Absent;
        self.absent[usize::from(row.device)] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::Geometry;
    use std::collections::HashSet;

    /// A device takes data again while one of its segments is being discarded: that one is free once.
    #[test]
    fn a_segment_is_free_once_after_its_discard() {
        let geo = Geometry::choose(&[64 << 20, 64 << 20], 1 << 20).unwrap();
        let mut table = SegmentTable::new(&geo);
        table.index_free();
        let free = table.free_all();
        let on_1: Vec<u32> = table.free.take_device(1).collect();
        for &segment in &on_1 {
            table.free_to_absent(segment);
            table.set_free(segment, true);
        }
        let discarded = table.begin_discard().unwrap();
        assert!(on_1.contains(&discarded));
        table.shun(1);
        table.close(1);
        table.reopen(1);
        assert_eq!((table.free_all(), table.absent(1)), (free - 1, 1));
        table.discarded(discarded);
        assert_eq!((table.free_all(), table.absent(1)), (free, 0));
        let listed = [0, 1].map(|device| table.free.take_device(device).collect::<Vec<_>>());
        let each: HashSet<u32> = listed.iter().flatten().copied().collect();
        assert_eq!(each.len(), free as usize);
    }
}
