//! Blocks of the log in the order in which replay is quickest.
//!
//! The log has them in the order in which they were written, and so goes to another leaf with each. Of a large
//! volume none of them is in the processor's cache then.
//!
//! Invariant: what belongs to leaves of one number, in whichever volumes, keeps its order: those may be one
//! leaf, shared.

use crate::map::LEAF_BLOCKS;

/// A block of the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub(super) line: u32,
    pub(super) lsn: u64,
    pub(super) lba: u64,
    pub(super) pbn: u64,
    pub(super) crc: u32,
    pub(super) vseq: u64,
    /// Of a block that the cleaner has moved: where it was, if that is still there.
    pub(super) from: Option<u64>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Window {
    writes: Vec<Write>,
    /// Leaf, and index of the write.
    order: Vec<(u64, u32)>,
}

impl Window {
    pub(super) fn len(&self) -> usize {
        self.writes.len()
    }

    pub(super) fn push(&mut self, write: Write) {
        self.order.push((write.lba / LEAF_BLOCKS as u64, self.writes.len() as u32));
        self.writes.push(write);
    }

    /// Empties the window.
    pub(super) fn drain(&mut self, mut each: impl FnMut(Write)) {
        self.order.sort_unstable();
        for &(_, i) in &self.order {
            each(self.writes[i as usize]);
        }
        self.order.clear();
        self.writes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_are_together_and_each_in_the_order_of_the_log() {
        let mut window = Window::default();
        let leaf = LEAF_BLOCKS as u64;
        for (lsn, (line, lba)) in (1..).zip([(1, 5), (1, 3 * leaf), (2, 4), (1, 3 * leaf), (1, 5)])
        {
            window.push(Write { line, lsn, lba, pbn: 0, crc: 0, vseq: 0, from: None });
        }
        let mut lsns = Vec::new();
        window.drain(|write| lsns.push(write.lsn));
        assert_eq!((lsns, window.len()), (vec![1, 3, 5, 2, 4], 0));
    }
}
