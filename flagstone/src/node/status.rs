//! What a BLOCK_STATUS is answered, context by context.

use super::limits::STATUS_EXTENTS;
use flagstone_block::{BLOCK_SIZE, VolumeId};
use flagstone_engine::{
    DiffError, DiffExtent, DiffKind, DiffSpec, Engine, StatusKind, SubmitError,
};
use flagstone_nbd::proto::{STATE_DIRTY, STATE_DIRTY_ZERO, STATE_HOLE, STATE_ZERO};
use flagstone_nbd::reply::StatusExtent;
use flagstone_nbd::{Context, Difference, Errno};

/// Memory that answers are put together in.
#[derive(Debug)]
pub(super) struct Statuses {
    /// For the reader who asks what is data, too.
    pub(super) extents: Vec<flagstone_engine::StatusExtent>,
    differences: Vec<DiffExtent>,
    pub(super) wire: Vec<StatusExtent>,
}

/// Whether there is an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// In [`Statuses::wire`].
    Yes,
    /// When a page of the map has been read.
    Later,
    /// It can't be told.
    Failed(Errno),
}

/// What is asked about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) volume: VolumeId,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// One extent only.
    pub(super) one: bool,
}

impl Statuses {
    pub(super) fn new() -> Self {
        Self {
            extents: Vec::with_capacity(STATUS_EXTENTS),
            differences: Vec::with_capacity(STATUS_EXTENTS),
            wire: Vec::with_capacity(STATUS_EXTENTS),
        }
    }

    /// Puts together what is asked, or a first part of it.
    pub(super) fn tell(&mut self, engine: &mut Engine, asked: Asked, context: Context) -> Told {
        self.wire.clear();
        match context {
            Context::Allocation => self.allocation(engine, asked),
            Context::Difference(difference) => self.difference(engine, asked, difference),
        }
    }

    fn allocation(&mut self, engine: &Engine, asked: Asked) -> Told {
        let Asked { volume, offset, len, one } = asked;
        let wanted = if one { 1 } else { STATUS_EXTENTS };
        let told = engine.block_status(volume, offset, len, &mut self.extents, wanted);
        match told {
            // The volume has been shrunk since.
            Err(SubmitError::OutOfRange) => return Told::Failed(Errno::Inval),
            Ok(()) if !self.extents.is_empty() => {}
            _ => return Told::Failed(Errno::Shutdown),
        }
        self.wire.extend(self.extents.iter().map(|extent| StatusExtent {
            len: extent.len,
            flags: match extent.kind {
                StatusKind::Data => 0,
                StatusKind::Zero => STATE_ZERO,
                StatusKind::Hole => STATE_HOLE | STATE_ZERO,
            },
        }));
        Told::Yes
    }

    fn difference(&mut self, engine: &mut Engine, asked: Asked, difference: Difference) -> Told {
        let Asked { volume, offset, len, one } = asked;
        let origin = VolumeId(difference.origin as u32);
        let spec = DiffSpec { older: Some(origin), newer: volume };
        let end = offset + len;
        // Between two that differ there may be one that does not.
        let wanted = if one { 1 } else { STATUS_EXTENTS / 2 };
        self.differences.clear();
        let told = match engine.diff(&spec, offset..end, &mut self.differences, wanted) {
            Ok(next) => next.map_or(end, |next| next.min(end)),
            Err(DiffError::Busy) => return Told::Later,
            Err(DiffError::Damaged { .. }) => return Told::Failed(Errno::Io),
            Err(DiffError::NoVolume | DiffError::Stopping) => {
                return Told::Failed(Errno::Shutdown);
            }
        };
        let zeroes = if difference.zeroes { STATE_DIRTY | STATE_DIRTY_ZERO } else { STATE_DIRTY };
        let mut at = offset;
        for extent in &self.differences {
            // Whole blocks were compared, whatever part of them was asked about.
            let (from, to) = (extent.offset.max(at), (extent.offset + extent.len).min(end));
            let flags = if extent.kind == DiffKind::Data { STATE_DIRTY } else { zeroes };
            push(&mut self.wire, from - at, 0);
            push(&mut self.wire, to - from, flags);
            at = to;
        }
        push(&mut self.wire, told.max(at) - at, 0);
        if one {
            self.wire.truncate(1);
        }
        debug_assert!(!self.wire.is_empty(), "at least a block of {BLOCK_SIZE} bytes is told");
        Told::Yes
    }
}

/// Appends an extent, merged with the last if it says the same.
fn push(wire: &mut Vec<StatusExtent>, len: u64, flags: u32) {
    match wire.last_mut() {
        _ if len == 0 => {}
        Some(last) if last.flags == flags => last.len += len,
        _ => wire.push(StatusExtent { len, flags }),
    }
}
