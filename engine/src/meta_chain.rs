//! The chain of metadata pages: where records live on after their journal slot is reused.
//!
//! Invariants:
//! 1. A page is written only after a flush made every record in it durable in the journal, so
//!    that the chain never holds a record beyond the point where recovery cuts the journal.
//! 2. Pages are written once, in order of their numbers within a segment; a page counts as
//!    durable only when it and all before it are.
//!
//! The chain's next segment is always reserved ahead, since every page names it.

use crate::format::meta::{HEADER_BYTES, PAGE_BLOCKS, PageHeader, RECORD_BYTES};
use crate::format::record::Record;
use crate::geometry::Geometry;
use crate::limits::META_PAGES;
use crate::segment::{SegmentState, SegmentTable};
use flagstone_block::{BLOCK_SIZE, Buffer, Buffers};
use std::collections::VecDeque;

/// "No segment" in a page's header.
pub(crate) const NO_SEGMENT: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageStage {
    Waiting,
    Writing,
    Written,
}

#[derive(Clone, Copy, Debug)]
struct Page {
    number: u64,
    buffer: Buffer,
    offset: u64,
    /// Journal blocks of its oldest and newest record.
    jseq: (u64, u64),
    stage: PageStage,
}

#[derive(Debug)]
pub(crate) struct MetaChain {
    pub(crate) epoch: u64,
    pub(crate) nonce: u64,
    /// Segments in order; the last is being filled.
    pub(crate) segments: Vec<u32>,
    pub(crate) next_segment: u32,
    /// Place of the page being filled, in its segment and in the chain.
    pub(crate) index: u32,
    pub(crate) page: u64,
    pub(crate) prev_crc: u32,
    fill: Option<Buffer>,
    used: usize,
    records: u16,
    fill_jseq: (u64, u64),
    pages: VecDeque<Page>,
    spare: Vec<Buffer>,
    durable: u64,
    pages_per_segment: u32,
}

/// The memory of a chain that is no more, for the next: a checkpoint allocates nothing.
#[derive(Debug)]
pub(crate) struct Remains {
    segments: Vec<u32>,
    pages: VecDeque<Page>,
    spare: Vec<Buffer>,
}

impl Remains {
    /// Memory for a chain of up to `segments` segments without another allocation.
    pub(crate) fn new(segments: usize) -> Self {
        Self {
            segments: Vec::with_capacity(segments),
            pages: VecDeque::with_capacity(META_PAGES),
            spare: Vec::with_capacity(META_PAGES),
        }
    }
}

impl MetaChain {
    /// A chain that begins in `first`; gives `remains` back if the arena is exhausted.
    pub(crate) fn begin(
        bufs: &mut impl Buffers,
        epoch: u64,
        nonce: u64,
        (first, next_segment): (u32, u32),
        pages_per_segment: u32,
        remains: Remains,
    ) -> Result<Self, Remains> {
        let Remains { mut segments, pages, mut spare } = remains;
        for _ in 0..META_PAGES {
            match bufs.alloc(PAGE_BLOCKS) {
                Some(buffer) => spare.push(buffer),
                None => {
                    spare.drain(..).for_each(|buffer| bufs.free(buffer));
                    return Err(Remains { segments, pages, spare });
                }
            }
        }
        segments.push(first);
        Ok(Self {
            epoch,
            nonce,
            segments,
            next_segment,
            index: 0,
            page: 0,
            prev_crc: 0,
            fill: None,
            used: 0,
            records: 0,
            fill_jseq: (0, 0),
            pages,
            spare,
            durable: 0,
            pages_per_segment,
        })
    }

    /// Ends a chain: gives its buffers back, and its segments to `free`.
    pub(crate) fn end(mut self, bufs: &mut impl Buffers, mut free: impl FnMut(u32)) -> Remains {
        self.release(bufs);
        let next = (self.next_segment != NO_SEGMENT).then_some(self.next_segment);
        self.segments.drain(..).chain(next).for_each(&mut free);
        Remains { segments: self.segments, pages: self.pages, spare: self.spare }
    }

    /// A chain that continues behind `page` pages; `None` if the arena is exhausted.
    pub(crate) fn new(
        bufs: &mut impl Buffers,
        epoch: u64,
        nonce: u64,
        mut segments: Vec<u32>,
        next_segment: u32,
        place: (u32, u64, u32),
        pages_per_segment: u32,
    ) -> Option<Self> {
        let mut spare = Vec::with_capacity(META_PAGES);
        for _ in 0..META_PAGES {
            match bufs.alloc(PAGE_BLOCKS) {
                Some(buffer) => spare.push(buffer),
                None => {
                    spare.into_iter().for_each(|buffer| bufs.free(buffer));
                    return None;
                }
            }
        }
        let (index, page, prev_crc) = place;
        // Compaction replaces the chain long before it has doubled this often.
        segments.reserve(segments.len() + 16);
        Some(Self {
            epoch,
            nonce,
            segments,
            next_segment,
            index,
            page,
            prev_crc,
            fill: None,
            used: 0,
            records: 0,
            fill_jseq: (0, 0),
            pages: VecDeque::with_capacity(META_PAGES),
            spare,
            durable: page,
            pages_per_segment,
        })
    }

    /// Gives every buffer back.
    pub(crate) fn release(&mut self, bufs: &mut impl Buffers) {
        let pages = self.pages.drain(..).map(|page| page.buffer);
        pages.chain(self.fill.take()).chain(self.spare.drain(..)).for_each(|b| bufs.free(b));
    }

    fn segment(&self) -> u32 {
        *self.segments.last().expect("a chain has a segment")
    }

    /// Whether records of `bytes` bytes in all, at most one page's worth, can be appended.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.has_room_beside(bytes, 0)
    }

    /// As [`MetaChain::has_room`], leaving `pages` page buffers to others.
    pub(crate) fn has_room_beside(&self, bytes: usize, pages: usize) -> bool {
        let goes_on = self.index + 1 < self.pages_per_segment || self.next_segment != NO_SEGMENT;
        match self.fill {
            Some(_) if self.used + bytes <= RECORD_BYTES => true,
            Some(_) => self.spare.len() > pages && goes_on,
            None => self.spare.len() > pages && self.index < self.pages_per_segment,
        }
    }

    /// Pages that can still be begun in the segments that the chain has.
    pub(crate) fn pages_ahead(&self) -> u32 {
        let next = if self.next_segment == NO_SEGMENT { 0 } else { self.pages_per_segment };
        (self.pages_per_segment - self.index.min(self.pages_per_segment)) + next
    }

    /// Appends a record that lies in journal block `jseq`. There must be room.
    pub(crate) fn append(
        &mut self,
        bufs: &mut impl Buffers,
        geo: &Geometry,
        segs: &mut SegmentTable,
        pool: [u8; 8],
        jseq: u64,
        record: &Record<'_>,
    ) {
        if self.used + record.encoded_bytes() > RECORD_BYTES {
            self.close_page(bufs, geo, segs, pool);
        }
        let fill = self.begin_page(jseq);
        let page = &mut bufs.bytes_mut(fill)[..BLOCK_SIZE];
        let bytes = record.encode(&mut page[HEADER_BYTES + self.used..]).expect("it fits");
        self.used += bytes;
        self.records += 1;
        self.fill_jseq.1 = jseq;
    }

    /// The page being filled, or one that is begun now; there must be room. It may be closed without a record.
    pub(crate) fn begin_page(&mut self, jseq: u64) -> Buffer {
        match self.fill {
            Some(fill) => fill,
            None => {
                let fill = self.spare.pop().expect("has_room was asked");
                self.fill_jseq = (jseq, jseq);
                *self.fill.insert(fill)
            }
        }
    }

    /// Ends the page being filled, if one was begun.
    pub(crate) fn close_page(
        &mut self,
        bufs: &mut impl Buffers,
        geo: &Geometry,
        segs: &mut SegmentTable,
        pool: [u8; 8],
    ) {
        let Some(buffer) = self.fill.take() else { return };
        if self.next_segment == NO_SEGMENT {
            self.next_segment = segs.take(SegmentState::Meta).unwrap_or(NO_SEGMENT);
        }
        let segment = self.segment();
        let header = PageHeader {
            records: self.records,
            used: self.used as u16,
            epoch: self.epoch,
            page: self.page,
            segment,
            index: self.index,
            next_segment: self.next_segment,
            prev_crc: self.prev_crc,
            nonce: self.nonce,
        };
        let (page, copy) = bufs.bytes_mut(buffer).split_at_mut(BLOCK_SIZE);
        self.prev_crc = header.encode(pool, page);
        copy.copy_from_slice(page);
        self.pages.push_back(Page {
            number: self.page,
            buffer,
            offset: geo.segment_offset(segment, self.index * PAGE_BLOCKS),
            jseq: self.fill_jseq,
            stage: PageStage::Waiting,
        });
        self.page += 1;
        self.used = 0;
        self.records = 0;
        self.index += 1;
        if self.index == geo.pages() && self.next_segment != NO_SEGMENT {
            self.segments.push(self.next_segment);
            self.next_segment = segs.take(SegmentState::Meta).unwrap_or(NO_SEGMENT);
            self.index = 0;
        }
        // Else, if the segment is full: `has_room` says so until compaction replaces the chain.
    }

    /// The next page that may be written, given that journal blocks below `durable` are durable:
    /// its number, offset and buffer.
    pub(crate) fn next_write(&mut self, durable: u64) -> Option<(u64, u64, Buffer)> {
        let page = self.pages.iter_mut().find(|page| page.stage == PageStage::Waiting)?;
        if page.jseq.1 >= durable {
            return None;
        }
        page.stage = PageStage::Writing;
        Some((page.number, page.offset, page.buffer))
    }

    /// Whether a page waits for the journal to be flushed.
    pub(crate) fn wants_flush(&self) -> bool {
        self.pages.iter().any(|page| page.stage != PageStage::Writing)
    }

    /// Whether the device still reads a page's buffer.
    pub(crate) fn is_writing(&self) -> bool {
        self.pages.iter().any(|page| page.stage == PageStage::Writing)
    }

    /// Page `number` (its low 32 bits) is on the device.
    pub(crate) fn written(&mut self, number: u32) {
        if let Some(page) = self.pages.iter_mut().find(|page| page.number as u32 == number) {
            page.stage = PageStage::Written;
        }
    }

    /// Pages, from the chain's start, that are all on the device.
    pub(crate) fn written_pages(&self) -> u64 {
        let written = |page: &&Page| page.stage == PageStage::Written;
        self.durable + self.pages.iter().take_while(written).count() as u64
    }

    /// Pages, from the chain's start, that are all durable.
    pub(crate) fn durable_pages(&self) -> u64 {
        self.durable
    }

    /// A flush made the first `pages` pages durable.
    pub(crate) fn flushed(&mut self, pages: u64) {
        while let Some(page) = self.pages.front()
            && page.number < pages
        {
            self.spare.push(page.buffer);
            self.pages.pop_front();
        }
        self.durable = self.durable.max(pages);
    }

    /// Everything appended is in a page, and every page is on the device.
    pub(crate) fn is_written(&self) -> bool {
        self.fill.is_none() && self.written_pages() == self.page
    }

    /// The oldest journal block with a record that only this chain will cover.
    pub(crate) fn holds_tail(&self) -> Option<u64> {
        let fill = self.fill.map(|_| self.fill_jseq.0);
        self.pages.iter().map(|page| page.jseq.0).chain(fill).min()
    }
}
