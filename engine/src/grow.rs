//! Growing: the device has become larger, and the pool takes the new space.
//!
//! One superblock write says so, in the order of every other: both copies of the older slot, a
//! flush, the copy at the end, which is the *new* end. Until that is durable the pool is as large
//! as it was, and nothing is written to the new segments but that copy; so a crash leaves a pool
//! of the old or of the new size. The copy at the old end is never looked for again: it lies in
//! the new segments, and is older than those of both slots.

use crate::engine::Engine;
use crate::error::{IoFault, SubmitError};
use crate::format::superblock::Superblock;
use crate::geometry::Geometry;
use crate::plant::Plant;
use flagstone_block::{Buffers, Tag};

/// A growth under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Growth {
    /// Who is answered, if nobody was.
    tag: Option<Tag>,
    geo: Geometry,
    /// Its superblock is being written.
    writing: bool,
}

impl Engine {
    /// Grows the pool to a device of `device_bytes` bytes; the device must have that size already.
    /// The new space may be used when the completion with `tag` is there. Less than a segment more
    /// changes nothing, which is a success.
    ///
    /// # Errors
    /// `Busy` while another growth is under way, `DeviceSize`, `Failed`, `Stopping`: nothing
    /// happened.
    pub fn grow(&mut self, tag: Tag, device_bytes: u64) -> Result<(), SubmitError> {
        self.ready()?;
        if self.growth.is_some() {
            return Err(SubmitError::Busy);
        }
        let geo = self.geo.grown(device_bytes).ok_or(SubmitError::DeviceSize)?;
        if geo.segments == self.geo.segments {
            self.complete(tag, Ok(()));
            return Ok(());
        }
        let mut tag = Some(tag);
        if self.planted.has(Plant::GrowTooSoon) {
            self.end_growth(geo, tag.take());
        }
        self.growth = Some(Growth { tag, geo, writing: false });
        self.again = true;
        Ok(())
    }

    /// Takes a growth as far as it can go.
    pub(crate) fn advance_growth(&mut self, bufs: &mut impl Buffers) {
        let Some(growth) = &mut self.growth else { return };
        if !growth.writing {
            // A checkpoint has a superblock of its own to write; after it there is room for this.
            if self.compaction.is_some() || !self.super_write.is_idle() {
                return;
            }
            growth.writing = true;
            let geo = growth.geo;
            let superblock = Superblock {
                device_bytes: geo.device_bytes,
                segments: u64::from(geo.segments),
                ..self.superblock(0)
            };
            self.begin_superblock(bufs, superblock);
        } else if self.super_write.take_done() {
            let Growth { tag, geo, .. } = *growth;
            self.growth = None;
            self.end_growth(geo, tag);
            self.again = true;
        }
    }

    /// After a device failure.
    pub(crate) fn fail_growth(&mut self) {
        if let Some(tag) = self.growth.take().and_then(|growth| growth.tag) {
            self.complete(tag, Err(IoFault::Device));
        }
    }

    fn end_growth(&mut self, geo: Geometry, tag: Option<Tag>) {
        self.segs.grow(geo.segments);
        self.slab.grow(&geo);
        self.geo = geo;
        self.space.epoch += 1;
        if let Some(tag) = tag {
            self.complete(tag, Ok(()));
        }
    }
}
