//! Who reads in sequence: a few streams, told apart by where the next read should begin.

use crate::limits::{SCAN_BLOCKS, SCAN_GAP_BLOCKS, SCAN_STREAMS};
use crate::map::LEAF_BLOCKS;

/// A reader that may be reading in sequence.
#[derive(Clone, Copy, Debug, Default)]
struct Scan {
    volume: u32,
    /// Behind the furthest read.
    next: u64,
    /// Blocks read of the leaf that `next` lies in.
    blocks: u64,
    /// When it was met last, in reads; 0 for never.
    met: u64,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Scans {
    slots: [Scan; SCAN_STREAMS],
    reads: u64,
}

impl Scans {
    /// Notes a read of a volume that has `end` blocks. Returns the number of the leaf that its
    /// stream has come to the end of, if it has read most of it.
    ///
    /// Requests of one reader may come a little out of order, because they are under way at once.
    pub(super) fn note(&mut self, volume: u32, lba: u64, blocks: u32, end: u64) -> Option<u64> {
        if blocks < SCAN_BLOCKS && lba + u64::from(blocks) < end {
            return None;
        }
        self.reads += 1;
        let (blocks, per_leaf) = (u64::from(blocks), LEAF_BLOCKS as u64);
        let near = |i: &usize| {
            let scan = &self.slots[*i];
            scan.met > 0 && scan.volume == volume && lba.abs_diff(scan.next) <= SCAN_GAP_BLOCKS
        };
        // One that ended hereabouts is not as near as one that goes on here.
        let nearest = (0..SCAN_STREAMS).filter(near);
        let nearest = nearest.min_by_key(|i| lba.abs_diff(self.slots[*i].next));
        let i = nearest.unwrap_or_else(|| {
            let oldest = (0..SCAN_STREAMS).min_by_key(|i| self.slots[*i].met).unwrap_or(0);
            self.slots[oldest] = Scan { volume, next: lba, blocks: 0, met: 0 };
            oldest
        });
        let scan = &mut self.slots[i];
        scan.met = self.reads;
        if scan.next >= end {
            // It came to the end of the volume, which may have been cut off since, and begins anew
            // near it.
            (scan.next, scan.blocks) = (lba, 0);
        }
        let leaf = scan.next / per_leaf;
        let leaf_end = ((leaf + 1) * per_leaf).min(end);
        let to = lba + blocks;
        if to < leaf_end {
            // What lies in the leaf before was counted as far as it matters.
            scan.blocks += to.saturating_sub(lba.max(leaf * per_leaf));
            scan.next = scan.next.max(to);
            return None;
        }
        let read = scan.blocks + leaf_end.saturating_sub(lba.max(leaf * per_leaf));
        let whole = leaf_end - leaf * per_leaf;
        scan.next = scan.next.max(to);
        scan.blocks = scan.next - (scan.next / per_leaf * per_leaf).max(lba.min(scan.next));
        (read >= whole - whole / 8).then_some(leaf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leaves that a sequence of reads, each a first block and a length, comes to the end of.
    fn leaves(reads: impl IntoIterator<Item = (u64, u32)>, end: u64) -> Vec<u64> {
        let mut scans = Scans::default();
        reads.into_iter().filter_map(|(lba, blocks)| scans.note(1, lba, blocks, end)).collect()
    }

    #[test]
    fn a_scan_is_told_at_the_end_of_each_leaf() {
        for blocks in [8, 24, 32, 64, 100, 256] {
            let step = u64::from(blocks);
            let reads = (0..2048 / step).map(|i| (i * step, blocks));
            let expected: Vec<u64> = (0..2048 / step * step / 512).collect();
            assert_eq!(leaves(reads, 4096), expected, "{blocks}");
        }
    }

    #[test]
    fn the_last_leaf_of_a_volume_may_be_short() {
        assert_eq!(leaves((0..10).map(|i| (i * 10, 10)), 100), [0]);
        assert_eq!(leaves([(512, 44)], 556), [1]);
    }

    #[test]
    fn a_volume_may_end_before_the_place_that_a_scan_has_come_to() {
        let mut scans = Scans::default();
        assert_eq!(scans.note(1, 1500, 100, 4096), None);
        assert_eq!(scans.note(1, 1480, 8, 1490), None);
        assert_eq!(scans.note(1, 1488, 2, 1490), None);
    }

    #[test]
    fn a_reader_with_several_requests_under_way_is_one_scan() {
        let order = [2, 0, 1, 3, 5, 4, 7, 6];
        let reads = (0..4u64).flat_map(|i| order.map(|k| ((i * 8 + k) * 64, 64)));
        let found = leaves(reads, 4096);
        assert!(found.len() >= 3, "{found:?}");
    }

    #[test]
    fn what_begins_in_the_middle_or_leaves_out_much_is_none() {
        assert_eq!(leaves((4..8).map(|i| (i * 64, 64)), 4096), []);
        assert_eq!(leaves((0..16).map(|i| (i * 64, 32)), 4096), []);
        assert_eq!(leaves((0..512).map(|i| (i, 1)), 4096), [], "one device read each anyway");
        let far = (0..1000u64).map(|i| (i * 7919 % 100_000, 32));
        assert_eq!(leaves(far, 1 << 20), []);
    }

    #[test]
    fn a_volume_is_scanned_again_and_again() {
        for end in [40, 500, 512, 1000, 1024] {
            let scan = (0..u64::div_ceil(end, 20)).map(|i| (i * 20, 20.min(end - i * 20) as u32));
            let expected: Vec<u64> = (0..u64::div_ceil(end, 512)).collect();
            let found = leaves(scan.clone().chain(scan.clone()).chain(scan), end);
            assert_eq!(found, expected.repeat(3), "{end}");
        }
    }

    #[test]
    fn several_scans_are_told_apart() {
        let mut scans = Scans::default();
        let mut found = 0;
        for i in 0..64u64 {
            for reader in 0..8u32 {
                found += u32::from(
                    scans
                        .note(reader / 2, (u64::from(reader) << 20) + i * 32, 32, 1 << 30)
                        .is_some(),
                );
            }
        }
        assert_eq!(found, 8 * 4);
    }
}
