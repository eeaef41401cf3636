//! The segment being filled, and those whose summary is on its way.

use crate::format::segment::{ENTRY_BYTES, Entry, Footer, SegmentShape};
use crate::limits::LSN_SPAN;
use flagstone_block::{BLOCK_SIZE, Buffer, Buffers};

/// The segment that user writes go to.
#[derive(Debug)]
pub(crate) struct OpenSegment {
    pub(crate) segment: u32,
    pub(crate) generation: u64,
    /// Next data block to be written.
    pub(crate) next: u32,
    pub(crate) first_lsn: u64,
    pub(crate) last_lsn: u64,
    /// Journal block that holds the segment's first record; the ring's tail can't pass it.
    pub(crate) first_jseq: u64,
    /// Entry table and footer under construction.
    pub(crate) summary: Buffer,
    /// This many of its first blocks have their records in the metadata chain, because it was
    /// open when the pool was last closed.
    pub(crate) in_meta: u32,
}

impl OpenSegment {
    /// Notes one block that was appended.
    pub(crate) fn push(&mut self, bufs: &mut impl Buffers, lsn: u64, mut entry: Entry) {
        if self.next == 0 {
            self.first_lsn = lsn;
        }
        entry.lsn_delta = u32::try_from(lsn - self.first_lsn).expect("sealed before that");
        let at = self.next as usize * ENTRY_BYTES;
        entry.encode(&mut bufs.bytes_mut(self.summary)[at..at + ENTRY_BYTES]);
        self.last_lsn = lsn;
        self.next += 1;
    }

    /// Entry `i` with its LSN.
    pub(crate) fn entry(&self, bufs: &impl Buffers, i: u32) -> (u64, Entry) {
        let at = i as usize * ENTRY_BYTES;
        let entry = Entry::decode(&bufs.bytes(self.summary)[at..at + ENTRY_BYTES]);
        (self.first_lsn + u64::from(entry.lsn_delta), entry)
    }

    /// Whether the next record's LSN is too far from the first to be written as a delta.
    pub(crate) fn lsn_span_used_up(&self, lsn: u64) -> bool {
        self.next > 0 && lsn - self.first_lsn > LSN_SPAN
    }

    pub(crate) fn described(&self) -> Summary {
        Summary {
            segment: self.segment,
            generation: self.generation,
            first_lsn: self.first_lsn,
            last_lsn: self.last_lsn,
            mean_lsn: self.first_lsn.midpoint(self.last_lsn),
            entries: self.next as u16,
            class: 0,
        }
    }

    /// Completes the summary; returns the footer's checksum.
    pub(crate) fn close(
        &self,
        bufs: &mut impl Buffers,
        pool: &[u8; 16],
        shape: &SegmentShape,
    ) -> u32 {
        let bytes = bufs.bytes_mut(self.summary);
        let summary = &mut bytes[..shape.summary_blocks() as usize * BLOCK_SIZE];
        seal_summary(summary, pool, shape, &self.described())
    }
}

/// What a segment's footer says of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summary {
    pub(crate) segment: u32,
    pub(crate) generation: u64,
    pub(crate) first_lsn: u64,
    pub(crate) last_lsn: u64,
    pub(crate) mean_lsn: u64,
    pub(crate) entries: u16,
    pub(crate) class: u8,
}

/// Writes the footer behind an entry table and clears what is unused between them; returns the
/// footer's checksum. `summary` is `shape.summary_blocks()` long.
pub(crate) fn seal_summary(
    summary: &mut [u8],
    pool: &[u8; 16],
    shape: &SegmentShape,
    described: &Summary,
) -> u32 {
    let &Summary { segment, generation, first_lsn, last_lsn, mean_lsn, entries, class } = described;
    let (table, footer) = summary.split_at_mut(shape.entry_blocks as usize * BLOCK_SIZE);
    let used = usize::from(entries) * ENTRY_BYTES;
    table[used..].fill(0);
    let entries_crc = crate::format::crc32(&table[..used]);
    Footer { segment, generation, first_lsn, last_lsn, mean_lsn, entries_crc, entries, class }
        .encode(pool, footer)
}

/// A full segment on its way from open to sealed.
#[derive(Debug)]
pub(crate) struct Sealing {
    pub(crate) segment: u32,
    /// Given back once the summary is written.
    pub(crate) summary: Option<Buffer>,
    pub(crate) first_jseq: u64,
    /// Journal block of its last record.
    pub(crate) last_jseq: u64,
    pub(crate) resumed: bool,
    /// Holds moved blocks; the map is switched to them when its seal record is retired.
    pub(crate) moved: bool,
    pub(crate) stage: SealStage,
    /// Writes of the summary, or its copy, that are under way.
    pub(crate) writes: u8,
}

/// How far a seal has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SealStage {
    /// The summary is being written.
    Writing,
    /// The summary is on the device.
    Written,
    /// A flush that covers summary and data is under way.
    Flushing,
    /// Summary and data are durable; the seal record may be logged.
    Durable,
    /// The seal record is in this journal block.
    Logged(u64),
}
