//! What is known of a leaf that is not in memory: its page, and on top of that what was logged since.
//!
//! While the pool serves that is only where blocks were moved that the leaf has of an older snapshot's:
//! which these are is known without reading it.
//!
//! Opening reads no leaf pages. What the log says of a leaf is kept beside it until its page is read,
//! for a request or because everything is counted after an opening (see [`crate::counting`]). Then
//! the two become one.
//!
//! A page holds its leaf as it was at the LSN of the record that names it, and an entry up to that LSN is
//! history: unless the page names a segment that was freed since. Then the block was moved, or
//! superseded by something later. Moved blocks keep their LSN, so the newest entry up to the page's LSN
//! takes the place of the stale one; it is what was moved, or something later supersedes it in turn.
//! Which of them it is only the page can tell: such an entry is kept as unsure.
//!
//! Nor is an entry history that says that the cleaner has moved the block from where the page says that it is: the map
//! was about to be switched when the process ended, and is now. Otherwise what was moved would lie there twice, and
//! cleaning would have gained nothing.
//!
//! Invariants:
//! 1. A patch has one entry per block at most: the last that replay came across. Replay goes by LSN,
//!    so what is sure comes after all that is unsure.
//! 2. Holes and kept zeroes of a leaf that is away are those of the page and the patch together.
//! 3. A leaf that was counted has no unsure entries.

use super::{LEAF_BLOCKS, Leaf, Mapping};

/// One block of a leaf.
#[derive(Clone, Copy, Debug)]
struct Entry {
    block: u16,
    /// Counts whatever the page says.
    sure: bool,
    mapping: Mapping,
    /// Counts if this is where the page says that the block is.
    from: Option<u64>,
}

impl Entry {
    /// Whether it is data with this checksum.
    fn is_of(&self, wanted: u32) -> bool {
        matches!(self.mapping, Mapping::Block { crc, .. } if crc == wanted)
    }
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Unread {
    /// The page is right at this LSN.
    lsn: u64,
    counted: bool,
    /// In the order of blocks.
    entries: Vec<Entry>,
}

/// What an entry of a page is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It counts.
    Good,
    /// It names a segment that was freed since.
    Stale,
    /// It names what can't hold its block.
    Wrong,
}

impl Unread {
    /// Of a planted bug: it was moved from wherever the page says that it is.
    pub const ANYWHERE: u64 = u64::MAX;

    /// A leaf whose page is right at `lsn`.
    #[must_use]
    pub fn new(lsn: u64) -> Self {
        Self { lsn, counted: false, entries: Vec::new() }
    }

    /// A leaf that was counted, whose page says all.
    pub(super) fn counted() -> Self {
        Self { lsn: 0, counted: true, entries: Vec::new() }
    }

    /// The LSN at which the page is right.
    #[must_use]
    pub fn lsn(&self) -> u64 {
        self.lsn
    }

    /// Whether what the leaf maps is in the segments' live counts.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        self.counted
    }

    /// Notes what the record `lsn` says of `block`, and where that was moved from; returns whether that is sure.
    pub(super) fn note(
        &mut self,
        block: usize,
        (lsn, from): (u64, Option<u64>),
        mapping: Mapping,
    ) -> bool {
        self.enter(Entry { block: block as u16, sure: lsn > self.lsn, mapping, from })
    }

    /// Notes that `block` lies elsewhere than the page says.
    pub(super) fn note_moved(&mut self, block: usize, mapping: Mapping) {
        self.enter(Entry { block: block as u16, sure: true, mapping, from: None });
    }

    fn enter(&mut self, entry: Entry) -> bool {
        match self.entries.binary_search_by_key(&entry.block, |e| e.block) {
            Ok(i) => self.entries[i] = entry,
            Err(i) => self.entries.insert(i, entry),
        }
        entry.sure
    }

    /// Makes what the page says what the leaf says. `judge` gives a verdict on each data block that
    /// the page alone speaks of. False if the page can't be right: then nothing of it counts. Of a
    /// snapshot that is `dying` what is stale may have died before the opening.
    pub fn apply(
        &mut self,
        leaf: &mut Leaf,
        dying: bool,
        mut judge: impl FnMut(u64) -> Verdict,
    ) -> bool {
        let mut gone = Vec::new();
        let mut entries = self.entries.iter_mut().peekable();
        for block in 0..LEAF_BLOCKS {
            let entry = entries.next_if(|entry| usize::from(entry.block) == block);
            match (entry, leaf.get(block)) {
                (Some(entry), _) if entry.sure => {
                    leaf.set(block, entry.mapping);
                }
                (entry, Mapping::Block { pbn, crc }) => match (judge(pbn), entry) {
                    (Verdict::Good, Some(entry))
                        if [Some(pbn), Some(Self::ANYWHERE)].contains(&entry.from) =>
                    {
                        entry.sure = true;
                        leaf.set(block, entry.mapping);
                    }
                    (Verdict::Good, _) => {}
                    // Of a snapshot that is dying it may be an older one's block that was moved.
                    (Verdict::Stale, Some(entry)) if !dying || entry.is_of(crc) => {
                        entry.sure = true;
                        leaf.set(block, entry.mapping);
                    }
                    (Verdict::Stale, _) if dying => {
                        leaf.set(block, Mapping::Hole);
                        gone.push(block);
                    }
                    _ => return false,
                },
                _ => {}
            }
        }
        gone.into_iter().for_each(|block| _ = self.note(block, (u64::MAX, None), Mapping::Hole));
        true
    }

    /// Notes that the leaf was counted; what is still unsure is history.
    pub fn count(&mut self) {
        self.counted = true;
        self.entries.retain(|entry| entry.sure);
    }

    /// Whether the page alone says what the leaf says.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(pbn: u64) -> Mapping {
        Mapping::Block { pbn, crc: pbn as u32 }
    }

    fn page(blocks: &[(usize, u64)]) -> Leaf {
        let mut leaf = Leaf::new();
        blocks.iter().for_each(|&(i, pbn)| _ = leaf.set(i, block(pbn)));
        leaf
    }

    #[test]
    fn what_was_logged_later_takes_the_place_of_what_the_page_says() {
        let mut unread = Unread::new(10);
        assert!(unread.note(3, (11, None), block(100)));
        assert!(unread.note(4, (12, None), Mapping::Hole));
        let mut leaf = page(&[(3, 1), (4, 2), (5, 3)]);
        assert!(unread.apply(&mut leaf, false, |_| Verdict::Good));
        assert_eq!((leaf.get(3), leaf.get(4)), (block(100), Mapping::Hole));
        assert_eq!(leaf.get(5), block(3));
    }

    #[test]
    fn an_older_entry_counts_only_where_the_page_is_stale() {
        let mut unread = Unread::new(10);
        assert!(!unread.note(3, (5, None), block(100)));
        assert!(!unread.note(4, (6, None), block(101)));
        assert!(!unread.note(5, (6, None), block(102)));
        let judge = |pbn| if pbn == 1 { Verdict::Stale } else { Verdict::Good };
        let mut leaf = page(&[(3, 1), (4, 2)]);
        assert!(unread.apply(&mut leaf, false, judge));
        assert_eq!((leaf.get(3), leaf.get(4)), (block(100), block(2)));
        assert_eq!(leaf.get(5), Mapping::Hole, "what the page says is a hole was discarded");
        unread.count();
        // Only what was moved is still needed, and now whatever the page says.
        let mut again = page(&[(3, 1), (4, 2)]);
        assert!(unread.apply(&mut again, false, |_| Verdict::Good));
        assert_eq!((again.get(3), again.get(4)), (block(100), block(2)));
    }

    #[test]
    fn a_block_that_was_being_moved_lies_where_it_was_moved_to() {
        let mut unread = Unread::new(10);
        assert!(!unread.note(3, (5, Some(1)), block(100)));
        assert!(!unread.note(4, (6, Some(7)), block(101)));
        let mut leaf = page(&[(3, 1), (4, 2), (5, 3)]);
        assert!(unread.apply(&mut leaf, false, |_| Verdict::Good));
        assert_eq!(leaf.get(3), block(100));
        assert_eq!(leaf.get(4), block(2), "it was written again before the page was");
        unread.count();
        let mut again = page(&[(3, 1), (4, 2), (5, 3)]);
        assert!(unread.apply(&mut again, false, |_| Verdict::Good));
        assert_eq!((again.get(3), again.get(4)), (block(100), block(2)));
    }

    #[test]
    fn a_page_that_names_what_is_gone_for_good_is_wrong() {
        let mut unread = Unread::new(10);
        assert!(!unread.apply(&mut page(&[(3, 1)]), false, |_| Verdict::Stale));
        assert!(!unread.apply(&mut page(&[(3, 1)]), false, |_| Verdict::Wrong));
        assert!(unread.note(3, (11, None), Mapping::Kept));
        assert!(unread.apply(&mut page(&[(3, 1)]), false, |_| Verdict::Wrong));
    }
}
