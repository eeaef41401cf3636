//! Block status: which parts of a volume are data, zeroes or holes.

use crate::engine::Engine;
use crate::error::SubmitError;
use crate::map::{LEAF_BLOCKS, LeafState};
use flagstone_block::{BLOCK_SIZE, Lba, VolumeId};

/// What a stretch of a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusKind {
    /// Written data.
    Data,
    /// Reads as zero, charged nothing.
    Hole,
    /// Reads as zero, its space is kept.
    Zero,
}

/// A stretch of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Bytes.
    pub len: u64,
    /// What it is.
    pub kind: StatusKind,
}

/// Blocks looked at in one call, so that a question about a huge volume stays short. The answer
/// then covers a prefix, as the protocols allow.
const BLOCKS_MAX: u64 = 1 << 16;

impl Engine {
    /// Describes `offset..offset + len` of a volume in `out`, which is cleared first: merged
    /// extents from `offset` on, at most `extents_max` (at least 1), possibly covering a prefix
    /// only, never empty.
    ///
    /// # Errors
    /// `OutOfRange`, `NoVolume`.
    pub fn block_status(
        &self,
        volume: VolumeId,
        offset: u64,
        len: u64,
        out: &mut Vec<StatusExtent>,
        extents_max: usize,
    ) -> Result<(), SubmitError> {
        out.clear();
        self.check_range(volume, offset, len)?;
        let map = &self.active(volume)?.map;
        let end = offset + len;
        let per_leaf = LEAF_BLOCKS as u64;
        let (mut at, mut looked) = (offset, 0);
        while at < end && looked < BLOCKS_MAX {
            let lba = Lba::containing(at);
            let (state, leaves) = map.leaf(&self.slab, lba.0 / per_leaf);
            let (kind, next) = match state {
                LeafState::Dense(_) | LeafState::Away(_) => {
                    looked += 1;
                    (map.kind(&self.slab, lba), Lba(lba.0 + 1).offset())
                }
                state => {
                    looked += 64;
                    let kept = state == LeafState::AllKept;
                    let kind = if kept { StatusKind::Zero } else { StatusKind::Hole };
                    (kind, (lba.0 / per_leaf + leaves) * per_leaf * BLOCK_SIZE as u64)
                }
            };
            let bytes = next.min(end) - at;
            let full = out.len() >= extents_max.max(1);
            match out.last_mut() {
                Some(last) if last.kind == kind => last.len += bytes,
                _ if full => break,
                _ => out.push(StatusExtent { len: bytes, kind }),
            }
            at += bytes;
        }
        Ok(())
    }
}
