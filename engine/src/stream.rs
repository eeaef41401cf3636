//! Streams of user writes: which of the open segments a block goes to.
//!
//! Blocks that are overwritten soon and blocks that stay must not lie in one segment: the former
//! leave holes that can be used again only if the latter are moved. What a block will do is
//! inferred from what its predecessor did, after SepBIT (see [`Engine::class_of`]); the
//! predecessor's age is that of its segment, so it costs no memory per block.
//!
//! Invariant: where a block goes never changes what is acknowledged or recovered. Streams share the
//! journal, and recovery orders all of their segments by LSN.

use crate::engine::Engine;
use crate::geometry::Geometry;
use crate::limits::{RUN_BLOCKS, USER_STREAMS, USER_STREAMS_SEGMENTS};
use crate::map::Mapping;
use crate::segment::SegmentState;
use flagstone_block::Lba;

/// Stream of blocks that will be overwritten soon; the only one of a small pool.
pub(crate) const HOT: usize = 0;
const COLD: usize = 1;

/// Streams in use: each holds a segment open, which a small pool can't spare.
pub(crate) fn user_streams(geo: &Geometry) -> usize {
    if geo.in_all >= USER_STREAMS_SEGMENTS { USER_STREAMS } else { 1 }
}

impl Engine {
    /// The stream for `blocks` blocks from `lba`.
    pub(crate) fn stream_of(&self, volume: u32, lba: Lba, blocks: u32) -> usize {
        if user_streams(&self.geo) == 1 {
            return HOT;
        }
        if blocks >= RUN_BLOCKS {
            return COLD;
        }
        let Some(volume) = self.volumes.get(volume) else { return COLD };
        let Mapping::Block { pbn, .. } = volume.map.get(&self.slab, lba) else { return COLD };
        let row = self.segs.row(self.geo.locate(pbn).0);
        let age = match row.state {
            SegmentState::Open => 0,
            _ => self.applied_lsn.saturating_sub(row.mean_lsn),
        };
        match self.cleaner.lifetime() {
            Some(lifetime) if age >= lifetime => COLD,
            _ => HOT,
        }
    }
}
