//! Changing a volume's size, while it is in use.
//!
//! A growth is one record. A shrink discards what lies beyond the new end, like a client's discards,
//! and then logs the same record; it goes on in the background, a few records per turn, and reads
//! leaves that are not in memory as any discard does. Invariants:
//! 1. From the moment a shrink is accepted no request may be about what lies beyond the new end, and
//!    the discards begin when no read-modify-write is under way there. So every write beyond it comes
//!    before them in the log.
//! 2. The record that makes a volume smaller comes behind the discards. So beyond the end of a volume
//!    nothing is mapped and nothing kept, now and at every replay, which therefore does not look at
//!    sizes: entries beyond the end are superseded like those of any discarded block.
//! 3. Leaves beyond the end stay *touched*, and every checkpoint states them as holes. So when the
//!    volume grows again, nothing old is there, not even if the map is made from summaries alone.
//! 4. Of one volume one shrink is under way, and no other change of its size, nor its deletion.
//!
//! A crash amid a shrink leaves the volume as large as it was, with some of the discards done.

use crate::batch::{Effect, Waiter};
use crate::control::check_size;
use crate::engine::Engine;
use crate::error::{IoFault, SubmitError};
use crate::format::record::{RECORD_BYTES_MAX, Record, ZERO_BYTES};
use crate::limits::{SHRINK_RECORDS, SHRINKS, ZERO_BLOCKS};
use crate::map::{LEAF_BLOCKS, LeafState};
use crate::plant::Plant;
use flagstone_block::{BLOCK_BITS, Buffers, Durability, Tag, VolumeId};

/// Whether a volume may become smaller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shrink {
    /// It may not.
    #[default]
    Never,
    /// Only by what holds neither data nor kept zeroes.
    Unused,
    /// What lies beyond the new end is discarded.
    Discard,
}

/// A shrink under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shrinking {
    tag: Tag,
    volume: u32,
    /// Block up to which everything beyond the new end is discarded.
    next: u64,
}

/// How far a shrink came in a turn.
enum Step {
    /// Its record is logged.
    Logged,
    /// It goes on when something has happened, or in the next turn.
    Waits,
    Fails(IoFault),
}

impl Engine {
    /// Changes a volume's size to `size` bytes, smaller only as `shrink` allows. What a shrink cuts
    /// off is out of range from now on, and its discards stay done if it fails.
    ///
    /// # Errors
    /// `Busy`, `NoVolume`, `IsSnapshot`, `VolumeSize`, `VolumeHasData`, `ReservationSize` (it must be made
    /// smaller first), `ReservationUnbacked` (what is reserved may lie in more leaves of the map then), `Failed`,
    /// `Stopping`: nothing happened.
    pub fn resize_volume(
        &mut self,
        bufs: &mut impl Buffers,
        tag: Tag,
        volume: VolumeId,
        size: u64,
        shrink: Shrink,
    ) -> Result<(), SubmitError> {
        self.ready()?;
        check_size(size)?;
        let vol = self.writable(volume)?;
        let (logged, shrinking, settings) =
            (vol.logged_size, vol.is_shrinking(), vol.logged_settings);
        if shrinking {
            return Err(SubmitError::Busy);
        }
        self.check_flush_room(Durability::Fua)?;
        if size < logged {
            return self.begin_shrink(tag, volume, size, shrink);
        }
        if size == logged {
            self.answer_without_record(tag, Durability::Fua);
            return Ok(());
        }
        self.check_backed(Some(volume.0), settings, size)?;
        self.check_chain_room()?;
        let batch = self.batch_with_room(bufs, RECORD_BYTES_MAX, false)?;
        if let Some(vol) = self.volumes.get_mut(volume.0) {
            vol.logged_size = size;
        }
        self.count_reservation(volume.0);
        self.log_resize(bufs, batch, tag, volume.0, size);
        Ok(())
    }

    fn log_resize(
        &mut self,
        bufs: &mut impl Buffers,
        batch: u32,
        tag: Tag,
        volume: u32,
        size: u64,
    ) {
        let Some(vol) = self.volumes.get_mut(volume) else { return };
        let vseq = vol.next_vseq;
        vol.next_vseq += 1;
        let effect = Effect::VolumeResize { volume, size };
        let record = |lsn| Record::VolumeResize { volume, lsn, size, vseq };
        self.log(bufs, batch, effect, record);
        self.await_batch(
            batch,
            Waiter { tag, durability: Durability::Fua, rmw: None, write: None },
        );
    }

    fn begin_shrink(
        &mut self,
        tag: Tag,
        volume: VolumeId,
        size: u64,
        shrink: Shrink,
    ) -> Result<(), SubmitError> {
        let vol = self.active(volume)?;
        if shrink == Shrink::Never {
            return Err(SubmitError::VolumeSize);
        }
        let growing = vol.logged_size > vol.info.size;
        if growing || self.shrinks.len() == SHRINKS {
            return Err(SubmitError::Busy);
        }
        if !vol.logged_settings.fit(size) || !vol.info.settings.fit(size) {
            return Err(SubmitError::ReservationSize);
        }
        let (first, end) = (size >> BLOCK_BITS, vol.info.size >> BLOCK_BITS);
        if shrink == Shrink::Unused {
            let guarded = self.rmws.unguarded(volume.0, first, end - first) < end - first;
            if guarded || self.is_changing(volume.0, first) {
                return Err(SubmitError::Busy);
            }
            let blocks = vol.map.used_from(&self.slab, first);
            if blocks > 0 {
                return Err(SubmitError::VolumeHasData { bytes: blocks << BLOCK_BITS });
            }
        }
        if let Some(vol) = self.volumes.get_mut(volume.0) {
            vol.logged_size = size;
        }
        self.count_reservation(volume.0);
        self.shrinks.push_back(Shrinking { tag, volume: volume.0, next: first });
        self.again = true;
        Ok(())
    }

    /// Whether a record under way is about blocks of a volume from `first` on.
    fn is_changing(&self, volume: u32, first: u64) -> bool {
        self.effects_under_way().any(|effect| match effect {
            Effect::Write { volume: of, lba, blocks, .. } => {
                of == volume && lba + u64::from(blocks) > first
            }
            Effect::Zero { volume: of, lba, blocks, .. } => of == volume && lba + blocks > first,
            _ => false,
        })
    }

    /// Takes each shrink as far as it can go in one turn.
    pub(crate) fn advance_shrinks(&mut self, bufs: &mut impl Buffers) {
        for _ in 0..self.shrinks.len() {
            let Some(mut shrink) = self.shrinks.pop_front() else { return };
            match self.advance_shrink(bufs, &mut shrink) {
                Step::Logged => self.again = true,
                Step::Waits => self.shrinks.push_back(shrink),
                Step::Fails(fault) => {
                    if let Some(vol) = self.volumes.get_mut(shrink.volume) {
                        vol.logged_size = vol.info.size;
                    }
                    self.count_reservation(shrink.volume);
                    self.complete(shrink.tag, Err(fault));
                }
            }
        }
    }

    fn advance_shrink(&mut self, bufs: &mut impl Buffers, shrink: &mut Shrinking) -> Step {
        let Shrinking { tag, volume, .. } = *shrink;
        let Some(vol) = self.volumes.get(volume) else { return Step::Fails(IoFault::Gone) };
        let (size, old_blocks) = (vol.logged_size, vol.info.size >> BLOCK_BITS);
        let first = size >> BLOCK_BITS;
        if self.rmws.unguarded(volume, first, old_blocks - first) < old_blocks - first {
            return Step::Waits;
        }
        for _ in 0..SHRINK_RECORDS {
            let Some((lba, blocks)) = self.next_to_discard(volume, shrink.next, old_blocks) else {
                let Ok(batch) = self.batch_with_room(bufs, RECORD_BYTES_MAX, false) else {
                    return Step::Waits;
                };
                self.log_resize(bufs, batch, tag, volume, size);
                return Step::Logged;
            };
            let blocks = match self.zero_prefix(volume, lba, blocks) {
                Some(0) => return Step::Waits,
                Some(blocks) => blocks,
                None => return Step::Fails(IoFault::BadBlock { lba }),
            };
            if !self.planted.has(Plant::ShrinkKeepsData) {
                // A leaf that was kept zeroes as a whole, or a snapshot's, and is cut in two has entries.
                let leaves = self.new_ends(volume, lba, blocks);
                let room = self.check_chain_room().and_then(|()| self.charge_leaves(leaves, 0));
                match room.and_then(|()| self.charge_statements(volume, (lba, blocks), leaves)) {
                    Ok(()) => {}
                    Err(SubmitError::NoSpace) => return Step::Fails(IoFault::NoSpace),
                    Err(_) => return Step::Waits,
                }
                let Ok(batch) = self.batch_with_room(bufs, ZERO_BYTES, false) else {
                    return Step::Waits;
                };
                self.expect_new_leaves(batch, leaves);
                self.log_zero(bufs, batch, volume, (lba, blocks), false, 0);
            }
            shrink.next = lba + blocks;
        }
        self.again = true;
        Step::Waits
    }

    /// The next blocks from `lba` on that one record discards: those of adjacent leaves that were ever
    /// written to, or that a write under way is about.
    fn next_to_discard(&self, volume: u32, lba: u64, end: u64) -> Option<(u64, u64)> {
        let map = &self.volumes.get(volume)?.map;
        let per_leaf = LEAF_BLOCKS as u64;
        let mut from = None;
        let mut at = lba;
        while at < end {
            let (state, leaves) = map.leaf(&self.slab, at / per_leaf);
            if state == LeafState::Untouched {
                if from.is_some() {
                    break;
                }
                at = (at / per_leaf).saturating_add(leaves).saturating_mul(per_leaf);
                continue;
            }
            let first = *from.get_or_insert(at);
            if at - first + per_leaf > ZERO_BLOCKS {
                break;
            }
            at = (at / per_leaf + 1) * per_leaf;
        }
        from.map(|from| (from, at.min(end) - from))
    }

    /// After a device failure.
    pub(crate) fn fail_shrinks(&mut self) {
        while let Some(shrink) = self.shrinks.pop_front() {
            self.complete(shrink.tag, Err(IoFault::Device));
        }
    }
}

const _: () = assert!(ZERO_BLOCKS >= LEAF_BLOCKS as u64);
