//! What metadata needs of a pool, and what that leaves to volumes.
//!
//! The engine asks at every turn, several times. So what it takes without anything to come is remembered, with all
//! that it depends on.

use crate::compact::Compaction;
use crate::engine::Engine;
use crate::format::meta::RECORD_BYTES as PAGE_RECORD_BYTES;
use crate::format::record::{
    LEAF_BYTES_MAX, RECORD_BYTES_MAX, SEGMENT_SEAL_BYTES, ZERO_BYTES, write_bytes,
};
use crate::limits::USER_STREAMS;
use crate::map::LEAF_BLOCKS;

/// What metadata needs, and what that was counted from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    from: From,
    /// [`Engine::chain_segments`] of nothing more.
    chain: u32,
    /// [`Engine::leaf_segments`] of nothing more.
    pages: u32,
    /// [`Engine::reserve`].
    reserve: u32,
}

/// All that these depend on. No pool has 0 segments: that stands for nothing counted yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct From {
    capacity: u32,
    in_all: u32,
    leaves: u64,
    reserved_leaves: u64,
    touched: u64,
    record_bytes: usize,
    meta: u32,
    maps: u32,
    meta_leaving: u32,
    copies_taken: u32,
}

impl Engine {
    /// Segments that only metadata may take: a whole copy of the chain that a checkpoint would
    /// write, its reserved next segment, one for the present chain to grow into meanwhile, and
    /// those for a page of every leaf; and again what lies on devices that are being emptied, since
    /// a checkpoint that moves it from there gets nothing back for it; and those for copies of summaries.
    ///
    /// What has grown since the last checkpoint counts twice: the next one gets nothing back for it, and must
    /// leave a reserve behind for the one after that.
    pub(crate) fn reserve(&self) -> u32 {
        self.needs().reserve
    }

    fn needs(&self) -> Needs {
        let from = From {
            capacity: self.geo.capacity,
            in_all: self.geo.in_all,
            leaves: self.slab.leaves() as u64 + self.new_leaves_in_flight(),
            reserved_leaves: self.space.leaves,
            touched: self.touched,
            record_bytes: self.volumes.record_bytes(),
            meta: self.segs.meta(),
            maps: self.segs.maps(),
            meta_leaving: self.segs.meta_leaving(),
            copies_taken: self.copy_segments_taken(),
        };
        let known = self.needs.get();
        if known.from == from {
            debug_assert_eq!(known, self.count_needs(from));
            return known;
        }
        let needs = self.count_needs(from);
        self.needs.set(needs);
        needs
    }

    fn count_needs(&self, from: From) -> Needs {
        let (chain, pages) = (self.chain_segments_with(0, 0, 0), self.count_pages(0));
        let chains = from.meta - from.maps - from.copies_taken;
        let grown = pages.saturating_sub(from.maps) + chain.saturating_sub(chains);
        let reserve = chain + 2 + pages + grown + from.meta_leaving + self.copy_segments_left();
        Needs { from, chain, pages, reserve }
    }

    /// Segments that the pages of all leaves take, those of requests under way and of reservations
    /// among them; or of those of a full pool whose volumes are mapped without gaps, so that a pool's capacity does
    /// not shrink while it is being filled.
    pub(crate) fn leaf_segments(&self, more: u64) -> u32 {
        if more == 0 { self.needs().pages } else { self.count_pages(more) }
    }

    fn count_pages(&self, more: u64) -> u32 {
        let blocks = u64::from(self.geo.capacity) * u64::from(self.geo.shape.data_blocks);
        let under_way = self.new_leaves_in_flight() + more;
        let leaves = self.slab.leaves() as u64 + under_way + self.space.leaves;
        self.segments_of_pages(leaves.max(blocks / LEAF_BLOCKS as u64))
    }

    /// Segments that a compacted chain takes at most.
    pub(crate) fn chain_segments(&self, leaves: u64) -> u32 {
        if leaves == 0 { self.needs().chain } else { self.chain_segments_with(leaves, 0, 0) }
    }

    /// The same, if so many more leaves than now differ from the parent's, and volumes and snapshots have so many
    /// more bytes of records.
    pub(crate) fn chain_segments_with(&self, leaves: u64, touched: u64, records: usize) -> u32 {
        let leaves = leaves + self.slab.leaves() as u64 + self.new_leaves_in_flight();
        let bytes = self.volumes.record_bytes()
            + records
            + self.geo.in_all as usize * SEGMENT_SEAL_BYTES
            + leaves as usize * LEAF_BYTES_MAX
            + (self.touched + touched) as usize * ZERO_BYTES
            + self.space.leaves as usize * (LEAF_BYTES_MAX + ZERO_BYTES)
            + USER_STREAMS * self.geo.shape.data_blocks as usize * write_bytes(1);
        let pages = (bytes / (PAGE_RECORD_BYTES - RECORD_BYTES_MAX) + 1) as u32;
        pages.div_ceil(self.geo.pages())
    }

    /// Blocks that volumes may map in all: without the metadata and what is reserved for it and
    /// for the cleaner, and without a part that must be garbage, so that cleaning can end.
    pub(crate) fn usable_blocks(&self) -> u64 {
        self.usable_blocks_beside(0, 0)
    }

    /// Segments of the metadata chain and of leaf pages, without those of a checkpoint under way:
    /// these lie in what is reserved for them.
    pub(crate) fn meta_segments(&self) -> (u32, u32) {
        let chain = self.compaction.as_ref().map_or(0, Compaction::segments);
        let maps = self.segs.maps();
        (
            self.segs.meta() - maps - chain - self.copy_segments_taken(),
            maps - self.leaf_writer.segments(),
        )
    }

    /// As [`Engine::usable_blocks`], with `leaves` more leaves in the map, and beside `segments` more
    /// segments of metadata.
    pub(crate) fn usable_blocks_beside(&self, leaves: u64, segments: u32) -> u64 {
        let data_blocks = u64::from(self.geo.shape.data_blocks);
        let (chains, maps) = self.meta_segments();
        let (chain, pages) = (self.chain_segments(leaves), self.leaf_segments(leaves));
        let reserve = chain + 2 + pages + self.cleaner_reserve();
        let copies = self.copy_segments().max(self.copy_segments_taken());
        let meta = chains.max(chain) + maps.max(pages) + reserve + copies + segments;
        let usable = u64::from(self.geo.capacity.saturating_sub(meta)) * data_blocks;
        usable.saturating_sub((usable / 32).max(data_blocks))
    }
}
