//! Writing leaf pages: the map's leaves as they are now, into map segments.
//!
//! A checkpoint gives each leaf that has changed a page of its own; a leaf that has not keeps the
//! page that it has. Pages go to segments taken for this checkpoint, one after the other, and are
//! never written twice. Which map segments still hold a page that counts is known when the
//! checkpoint ends: those that no LEAF record of the new chain names are free then. Segments of
//! which less than half is in use are emptied by the next checkpoint, so that map segments never
//! take much more than twice what their pages need; when segments are short, all that are not
//! full.
//!
//! Invariants:
//! 1. A page that the present chain names is neither overwritten nor freed.
//! 2. The superblock that makes a new page count is written after a flush that covers the page.

use crate::engine::Engine;
use crate::format::leaf::Header;
use crate::geometry::Geometry;
use crate::limits::{LEAF_CHUNK_BLOCKS, LEAF_CHUNKS};
use crate::map::{LEAF_BLOCKS, Leaf, LeafPage};
use crate::plant::Plant;
use crate::segment::SegmentState;
use crate::token::Token;
use flagstone_block::{BLOCK_SIZE, Buffer, Buffers, DeviceCommand};
use std::collections::HashMap;

/// Blocks that it takes from the arena.
pub(crate) const OWN_BLOCKS: u32 = LEAF_CHUNKS as u32 * LEAF_CHUNK_BLOCKS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    Filling,
    Writing,
}

/// A run of pages in a buffer.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    buffer: Buffer,
    stage: Stage,
    segment: u32,
    first: u32,
    blocks: u32,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct LeafWriter {
    chunks: Vec<Chunk>,
    /// Segment being filled and its next block.
    place: Option<(u32, u32)>,
    /// Segments taken by the checkpoint under way.
    taken: u32,
    /// The LSN up to which what it states had been changed.
    lsn: u64,
    /// Pages that it must read, and could not.
    refused: u32,
    /// Pages that the chain under construction names, by segment.
    named: HashMap<u32, u32>,
}

impl LeafWriter {
    /// Takes its buffers from the arena; `None` if that is too small.
    pub(crate) fn new(bufs: &mut impl Buffers) -> Option<Self> {
        let mut chunks = Vec::with_capacity(LEAF_CHUNKS);
        for _ in 0..LEAF_CHUNKS {
            let buffer = bufs.alloc(LEAF_CHUNK_BLOCKS)?;
            chunks.push(Chunk { buffer, stage: Stage::Idle, segment: 0, first: 0, blocks: 0 });
        }
        // Room for the pages of half a tebibyte; more is found when it is needed.
        Some(Self { chunks, named: HashMap::with_capacity(256), ..Self::default() })
    }

    /// Gives every buffer back.
    pub(crate) fn release(&mut self, bufs: &mut impl Buffers) {
        self.chunks.drain(..).for_each(|chunk| bufs.free(chunk.buffer));
    }

    /// Segments taken by the checkpoint under way.
    pub(crate) fn segments(&self) -> u32 {
        self.taken
    }

    /// A page that the checkpoint must read could not be read; returns how often that was so.
    pub(crate) fn refused(&mut self) -> u32 {
        self.refused += 1;
        self.refused
    }

    /// A chunk is on the device.
    pub(crate) fn written(&mut self, chunk: u32) {
        self.chunks[chunk as usize].stage = Stage::Idle;
    }

    /// Whether every page is on the device.
    pub(crate) fn is_written(&self) -> bool {
        self.chunks.iter().all(|chunk| chunk.stage == Stage::Idle)
    }

    /// Whether this page is not on the device yet.
    pub(crate) fn is_pending(&self, geo: &Geometry, page: LeafPage) -> bool {
        let (segment, block) = geo.locate(page.pbn);
        self.chunks.iter().any(|chunk| {
            chunk.stage != Stage::Idle
                && chunk.segment == segment
                && (chunk.first..chunk.first + chunk.blocks).contains(&block)
        })
    }

    /// The chain under construction names this page.
    pub(crate) fn name(&mut self, geo: &Geometry, page: LeafPage) {
        *self.named.entry(geo.locate(page.pbn).0).or_default() += 1;
    }
}

impl Engine {
    /// Segments that `leaves` leaf pages take.
    pub(crate) fn segments_of_pages(&self, leaves: u64) -> u32 {
        leaves.div_ceil(u64::from(self.geo.leaf_pages())) as u32
    }

    /// Whether the pages of all leaves would fit in fewer segments than they lie in now.
    pub(crate) fn leaf_pages_are_loose(&self) -> bool {
        self.segs.maps() > self.segments_of_pages(self.slab.leaves() as u64)
    }

    /// Begins a checkpoint's pages: marks the map segments that it is to empty. When segments are
    /// short these are all that have room for another page.
    pub(crate) fn begin_leaf_pages(&mut self) {
        self.leaf_writer.named.clear();
        self.leaf_writer.lsn = self.applied_lsn;
        let pages = self.geo.leaf_pages();
        let short = self.segs.free() <= self.floor() + self.segs.maps();
        let enough = if short { pages } else { pages / 2 };
        for segment in 0..self.segs.len() {
            if self.segs.row(segment).state != SegmentState::Map
                || (self.slab.paged(segment) >= enough && !self.segs.is_leaving(segment))
            {
                continue;
            }
            let row = self.segs.row_mut(segment);
            row.left_alone = true;
            if self.planted.has(Plant::FreePagesEarly) {
                row.live = 0;
                self.segs.release(segment);
            }
        }
    }

    /// The page of a leaf: the one that it has, unless that is to move, or a new one. `None` if
    /// there is no room for it now.
    pub(crate) fn leaf_page(
        &mut self,
        bufs: &mut impl Buffers,
        volume: u32,
        lba: u64,
        index: u32,
    ) -> Option<LeafPage> {
        debug_assert!(lba.is_multiple_of(LEAF_BLOCKS as u64));
        if let Some(page) = self.slab.get(index).page()
            && !self.segs.row(self.geo.locate(page.pbn).0).left_alone
        {
            return Some(page);
        }
        let content = self.slab.get(index).clone();
        let page = self.write_leaf_page(bufs, volume, lba, &content)?;
        self.slab.set_page(index, page);
        Some(page)
    }

    /// Writes a new page for a leaf. `None` if there is no room for it now.
    pub(crate) fn write_leaf_page(
        &mut self,
        bufs: &mut impl Buffers,
        volume: u32,
        lba: u64,
        content: &Leaf,
    ) -> Option<LeafPage> {
        let blocks = self.geo.leaf_page_blocks();
        let c = self.leaf_chunk(blocks)?;
        let chunk = &mut self.leaf_writer.chunks[c];
        let pbn = self.geo.pbn(chunk.segment, chunk.first + chunk.blocks);
        let width = self.geo.pbn_bits();
        let header = Header { volume, lba, lsn: self.leaf_writer.lsn, pbn, width };
        let buffer = chunk.buffer.part(chunk.blocks, blocks);
        chunk.blocks += blocks;
        let crc = header.encode(self.pool_tag, content, bufs.bytes_mut(buffer));
        let page = LeafPage { pbn, crc };
        self.counters.leaf_pages += 1;
        Some(page)
    }

    /// A chunk being filled, with room for `blocks` blocks.
    fn leaf_chunk(&mut self, blocks: u32) -> Option<usize> {
        let filling = |chunk: &Chunk| chunk.stage == Stage::Filling;
        if let Some(c) = self.leaf_writer.chunks.iter().position(filling) {
            let chunk = self.leaf_writer.chunks[c];
            let end = chunk.first + chunk.blocks + blocks;
            if chunk.blocks + blocks <= LEAF_CHUNK_BLOCKS && end <= self.geo.shape.blocks {
                return Some(c);
            }
            self.send_leaf_chunk(c);
        }
        let idle = |chunk: &Chunk| chunk.stage == Stage::Idle;
        let c = self.leaf_writer.chunks.iter().position(idle)?;
        let (segment, first) = match self.leaf_writer.place {
            Some((segment, next)) if next + blocks <= self.geo.shape.blocks => (segment, next),
            _ => {
                let segment = self.segs.take(SegmentState::Map)?;
                self.leaf_writer.taken += 1;
                (segment, 0)
            }
        };
        self.leaf_writer.place = Some((segment, first));
        let chunk = &mut self.leaf_writer.chunks[c];
        (chunk.stage, chunk.segment, chunk.first, chunk.blocks) =
            (Stage::Filling, segment, first, 0);
        Some(c)
    }

    fn send_leaf_chunk(&mut self, c: usize) {
        let chunk = &mut self.leaf_writer.chunks[c];
        chunk.stage = Stage::Writing;
        let chunk = *chunk;
        self.leaf_writer.place = Some((chunk.segment, chunk.first + chunk.blocks));
        let offset = self.geo.segment_offset(chunk.segment, chunk.first);
        let buffer = chunk.buffer.part(0, chunk.blocks);
        self.flush.dirty(self.now_ns, (chunk.blocks as usize * BLOCK_SIZE) as u64);
        self.emit(Token::LeafWrite(c as u32), DeviceCommand::Write { offset, buffer });
    }

    /// Sends what is left of a checkpoint's pages.
    pub(crate) fn send_leaf_pages(&mut self) {
        for c in 0..self.leaf_writer.chunks.len() {
            if self.leaf_writer.chunks[c].stage == Stage::Filling {
                self.send_leaf_chunk(c);
            }
        }
    }

    /// The chain that names the new pages counts: map segments with none of them are free.
    pub(crate) fn end_leaf_pages(&mut self) {
        for segment in 0..self.segs.len() {
            if self.segs.row(segment).state != SegmentState::Map {
                continue;
            }
            let named = self.leaf_writer.named.get(&segment).copied().unwrap_or(0);
            let row = self.segs.row_mut(segment);
            (row.live, row.left_alone) = (named, false);
            // Leaves of volumes that are being deleted are in no chain, but still to be read.
            if named == 0 && row.pins == 0 && self.slab.paged(segment) == 0 {
                self.segs.release(segment);
            }
        }
        self.leaf_writer.named.clear();
        (self.leaf_writer.place, self.leaf_writer.taken) = (None, 0);
        self.leaf_writer.refused = 0;
    }
}
