//! Space: what a volume may still take, and what is held back for whom.
//!
//! A volume *takes* the blocks that it maps, the zeroes that it keeps, and what requests under
//! way will add to those. A reservation is held back from all others as far as the volume does not
//! take it yet, so the volume's own writes are served from it first.
//!
//! Invariants (recounted by [`Engine::check`]):
//! 1. `coming` and `promising` are what the records and read-modify-writes under way will add at
//!    most; what is charged twice while under way, because two of them are about the same hole,
//!    is right again when they are applied.
//! 2. `held` is the sum over the volumes of what their reservations exceed what they take by.
//! 3. All of it follows from the records and the map, so that it is exact after every crash.
//!
//! While anything is reserved, the segments that metadata may grow by until the next checkpoint has ended are held
//! back, too: otherwise a reservation would be backed by space that metadata takes later. That goes for one that is
//! used up as well, since a discard makes room in it again.

use crate::batch::Effect;
use crate::engine::Engine;
use crate::error::SubmitError;
use crate::plant::Plant;
use crate::volume::{OnFull, Volume, VolumeSettings};
use flagstone_block::{BLOCK_BITS, BLOCK_SIZE, Lba, VolumeId};

/// The pool's counters. Those of each volume are in [`Volume`].
#[derive(Debug, Default)]
pub(crate) struct Space {
    /// Blocks that were holes and that requests under way will map.
    pub(crate) coming: u64,
    /// Kept zero blocks that records under way will add.
    pub(crate) promising: u64,
    /// Blocks held back for reservations.
    pub(crate) held: u64,
    /// Blocks that are reserved, used up or not.
    pub(crate) reserved: u64,
    /// Map leaves that reservations may fill.
    pub(crate) leaves: u64,
    /// See [`Engine::space_epoch`].
    pub(crate) epoch: u64,
}

/// What a volume takes of its pool, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeUsage {
    /// Blocks that hold data.
    pub mapped: u64,
    /// Those of them that none of its snapshots has; of a snapshot, that no older one has.
    pub exclusive: u64,
    /// Zeroes whose space is kept.
    pub kept: u64,
    /// What its reservation still holds back from others.
    pub held: u64,
}

impl Engine {
    /// What a volume takes.
    #[must_use]
    pub fn volume_usage(&self, id: VolumeId) -> Option<VolumeUsage> {
        let volume = self.volumes.get(id.0)?;
        let block = BLOCK_SIZE as u64;
        let (mapped, exclusive) = (volume.map.mapped() * block, volume.map.owned() * block);
        let (kept, held) = (volume.map.kept() * block, volume.held * block);
        Some(VolumeUsage { mapped, exclusive, kept, held })
    }

    /// Rises whenever a request that was refused for want of space may have become possible. A
    /// request that waits need not be tried again before.
    #[must_use]
    pub fn space_epoch(&self) -> u64 {
        self.space.epoch + self.segs.released()
    }

    /// Bytes that volumes take, and bytes that they may take in all: how full the pool is, without
    /// looking at every segment as [`Engine::usage`] does.
    #[must_use]
    pub fn fullness(&self) -> (u64, u64) {
        let taken = self.segs.live() + self.kept;
        (taken * BLOCK_SIZE as u64, self.usable_blocks() * BLOCK_SIZE as u64)
    }

    /// Blocks promised to kept zeroes, with those whose record is still under way.
    pub(crate) fn promised(&self) -> u64 {
        self.kept + self.space.promising
    }

    /// Blocks that user writes may add before the pool is full, promises left aside.
    pub(crate) fn available_blocks(&self) -> u64 {
        self.usable_blocks().saturating_sub(self.taken_blocks())
    }

    pub(crate) fn taken_blocks(&self) -> u64 {
        // What deleted volumes still map is on its way back.
        self.segs.live() - self.graves.owned() + self.space.coming
    }

    /// Blocks that a volume may add for which `held` blocks are held back already.
    fn room_beside(&self, held: u64) -> u64 {
        self.room_but(held, 0)
    }

    /// As [`Engine::room_beside`], as if `blocks` blocks under way took nothing.
    fn room_but(&self, held: u64, blocks: u64) -> u64 {
        if self.space.reserved == 0 || self.planted.has(Plant::TakeReserved) {
            let taken = (self.taken_blocks() + self.promised()).saturating_sub(blocks);
            return self.usable_blocks().saturating_sub(taken);
        }
        let others = self.space.held - held;
        let taken = (self.taken_blocks() + self.promised() + others).saturating_sub(blocks);
        // A write without a reservation may make two new leaves, and the metadata a segment longer.
        let unreserved = self.usable_blocks_beside(2, self.slack_segments(2)).saturating_sub(taken);
        // What metadata may grow by is held back for reservations, not from them.
        unreserved.max(held.min(self.usable_blocks().saturating_sub(taken)))
    }

    /// Blocks that volumes take, or were promised.
    pub(crate) fn needed_blocks(&self) -> u64 {
        self.taken_blocks() + self.promised() + self.space.held
    }

    /// Blocks that there are for those.
    pub(crate) fn room_for_all(&self) -> u64 {
        match self.space.reserved {
            0 => self.usable_blocks(),
            _ => self.usable_blocks_beside(2, self.slack_segments(2)),
        }
    }

    /// Whether there may be room once what is under way is applied: holes that two requests are
    /// about are charged twice until then, a checkpoint makes metadata shorter, and snapshots that are taken
    /// apart, perhaps for the second time since a crash, give back what only they have.
    fn may_settle(&self, volume: &Volume) -> bool {
        let under_way = self.space.coming + self.space.promising;
        self.is_compacting()
            || self.takes_dying()
            || volume.coming > 0
            || self.are_copies_in_the_way()
            || self.new_leaves_in_flight() > 0
            || (under_way > 0 && self.room_but(volume.held, under_way) > 0)
    }

    /// Blocks that a volume without a reservation may add.
    pub(crate) fn room(&self) -> u64 {
        self.room_beside(0)
    }

    /// Segments that metadata may grow by until the next checkpoint has ended, with `leaves` more
    /// leaves in the map.
    fn slack_segments(&self, leaves: u64) -> u32 {
        // Map segments are at least half full, but for the last of each checkpoint.
        let pages = self.leaf_segments(leaves);
        let (chains, maps) = self.meta_segments();
        let maps = (2 * pages + 2).saturating_sub(pages.max(maps));
        let longest = 2 * (self.meta_baseline as u32).max(self.chain_segments(leaves)) + 3;
        let chain = longest.saturating_sub(chains);
        chain + maps
    }

    /// How many of `blocks` blocks from `lba` may be written, at least one: what would take space
    /// that the pool does not have, or that is held back for others, is refused. An overwrite
    /// takes none: the cleaner gets back what it leaves behind. Where a discard under way may
    /// come first, the answer is `Busy` instead of `NoSpace`.
    pub(crate) fn charge(&self, volume: u32, lba: Lba, blocks: u32) -> Result<u32, SubmitError> {
        let volume = self.volumes.get(volume).ok_or(SubmitError::NoVolume)?;
        let mut room = self.room_beside(volume.held);
        if room >= u64::from(blocks) {
            return Ok(blocks);
        }
        let changes = self.will_differ(volume, lba.0, u64::from(blocks));
        for b in 0..blocks {
            let is_hole = volume.map.write_takes(&self.slab, Lba(lba.0 + u64::from(b)));
            if is_hole || changes {
                if room == 0 {
                    return match b {
                        // Until a discard or a snapshot is applied, what is written after it counts twice.
                        0 if is_hole && !self.may_settle(volume) && volume.discards == 0 => {
                            Err(SubmitError::NoSpace)
                        }
                        0 => Err(SubmitError::Busy),
                        _ => Ok(b),
                    };
                }
                room -= 1;
            }
        }
        Ok(blocks)
    }

    /// How many of `blocks` blocks from `lba` take space that they do not take yet, at most.
    pub(crate) fn new_blocks(&self, volume: &Volume, lba: u64, blocks: u32) -> u32 {
        if self.will_differ(volume, lba, u64::from(blocks)) {
            return blocks;
        }
        let is_hole = |b: &u32| volume.map.write_takes(&self.slab, Lba(lba + u64::from(*b)));
        (0..blocks).filter(is_hole).count() as u32
    }

    /// Blocks of `lba..lba + blocks` that will be newly kept, at most. Counting the mapped ones
    /// among them takes a walk, which is made only if there is not room for all.
    pub(crate) fn newly_kept(
        &self,
        volume: &Volume,
        lba: u64,
        blocks: u64,
    ) -> Result<u64, SubmitError> {
        if self.will_differ(volume, lba, blocks) {
            let room = self.room_beside(volume.held) >= blocks;
            return if room { Ok(blocks) } else { Err(SubmitError::Busy) };
        }
        let kept = volume.map.kept_in(&self.slab, lba, lba + blocks);
        let room = self.room_beside(volume.held);
        if room >= blocks - kept {
            return Ok(blocks - kept);
        }
        let is_hole = |at: &u64| volume.map.write_takes(&self.slab, Lba(*at));
        let mut holes = 0;
        for _ in (lba..lba + blocks).filter(is_hole) {
            holes += 1;
            if holes > room {
                let settles = self.may_settle(volume);
                return Err(if settles { SubmitError::Busy } else { SubmitError::NoSpace });
            }
        }
        Ok(holes)
    }

    /// Whether something under way, which a request now would come after, makes any of these blocks holes or
    /// a snapshot's: a discard of them, or a snapshot.
    fn will_differ(&self, volume: &Volume, first: u64, count: u64) -> bool {
        if volume.cuts > 0 {
            return true;
        }
        volume.discards > 0
            && self.effects_under_way().any(|effect| {
                matches!(effect, Effect::Zero { volume: of, lba, blocks, keep: false, .. }
                    if of == volume.info.id && lba < first + count && first < lba + blocks)
            })
    }

    /// A request that is under way will add `blocks` blocks to what a volume takes.
    pub(crate) fn begin_taking(&mut self, volume: u32, blocks: u64) {
        self.space.coming += blocks;
        if let Some(volume) = self.volumes.get_mut(volume) {
            volume.coming += blocks;
        }
        self.recount_held(volume);
    }

    /// It has, or it will not. What the volume takes now is to be recounted.
    pub(crate) fn end_taking(&mut self, volume: u32, blocks: u64) {
        self.space.coming -= blocks;
        if let Some(volume) = self.volumes.get_mut(volume) {
            volume.coming -= blocks;
        }
    }

    /// A record under way will keep or discard blocks of a volume.
    pub(crate) fn begin_zero(&mut self, volume: u32, keep: bool, promised: u64) {
        self.space.promising += promised;
        if let Some(volume) = self.volumes.get_mut(volume) {
            volume.coming += promised;
            volume.discards += u32::from(!keep);
        }
        self.recount_held(volume);
    }

    /// It is about to be applied.
    pub(crate) fn end_zero(&mut self, volume: u32, keep: bool, promised: u64) {
        if !self.planted.has(Plant::KeepPromise) {
            self.space.promising -= promised;
        }
        if let Some(volume) = self.volumes.get_mut(volume) {
            volume.coming -= promised;
            volume.discards -= u32::from(!keep);
        }
    }

    /// What is held back for a volume, after a change of what it takes.
    pub(crate) fn recount_held(&mut self, volume: u32) {
        let Some(volume) = self.volumes.get_mut(volume) else { return };
        let held = volume.reserved_blocks().saturating_sub(volume.taken());
        self.space.held = self.space.held + held - volume.held;
        volume.held = held;
        let reserved = volume.reserved_blocks();
        self.space.reserved = self.space.reserved + reserved - volume.counted_reserved;
        volume.counted_reserved = reserved;
        let leaves = volume.reserved_leaves();
        self.space.leaves = self.space.leaves + leaves - volume.held_leaves;
        volume.held_leaves = leaves;
    }

    /// After a change of a volume's reservation or size.
    pub(crate) fn count_reservation(&mut self, id: u32) {
        self.recount_held(id);
        // It may have become less.
        self.space.epoch += 1;
    }

    /// After recovery.
    pub(crate) fn count_reservations(&mut self) {
        let ids: Vec<u32> = self.volumes.iter().map(|volume| volume.info.id).collect();
        ids.into_iter().for_each(|id| self.count_reservation(id));
    }

    /// A volume is gone, and with it what was held back for it.
    pub(crate) fn release_reservation(&mut self, volume: &Volume) {
        self.space.held -= volume.held;
        self.space.reserved -= volume.counted_reserved;
        self.space.leaves -= volume.held_leaves;
        self.space.epoch += 1;
    }

    /// Whether the pool can give a volume this reservation: a volume that is to be made, or the
    /// one that has the number `id`.
    pub(crate) fn check_backed(
        &mut self,
        id: Option<u32>,
        settings: VolumeSettings,
        size: u64,
    ) -> Result<(), SubmitError> {
        let volume = id.and_then(|id| self.volumes.get(id));
        let (taken, held, leaves) =
            volume.map_or((0, 0, 0), |v| (v.taken(), v.held, v.held_leaves));
        let reserved = settings.reserved >> BLOCK_BITS;
        let dense = volume.map_or(0, Volume::dense);
        let wanted_leaves = reserved_leaves(settings.reserved, size).saturating_sub(dense);
        // Also one that is used up already: metadata is set aside for it.
        if reserved <= volume.map_or(0, |v| v.counted_reserved) && wanted_leaves <= leaves {
            return Ok(());
        }
        let wanted = reserved.saturating_sub(taken);
        let before = self.space.leaves;
        self.space.leaves = before - leaves + wanted_leaves;
        let others = self.space.held - held + self.promised();
        let usable = self.usable_blocks_beside(0, self.slack_segments(0));
        let room = usable.checked_sub(self.taken_blocks() + others);
        self.space.leaves = before;
        if room.is_some_and(|room| wanted <= room) {
            return Ok(());
        }
        let room = room.unwrap_or(0);
        Err(SubmitError::ReservationUnbacked { available: (taken + room) << BLOCK_BITS })
    }

    /// Whether requests of a volume are to wait for space.
    pub(crate) fn waits(&self, volume: u32) -> bool {
        self.volumes.get(volume).is_some_and(|v| v.info.settings.on_full == OnFull::Wait)
    }
}

/// Map leaves that a reservation of `reserved` bytes may fill in a volume of `size` bytes.
pub(crate) fn reserved_leaves(reserved: u64, size: u64) -> u64 {
    let leaf_bytes = (crate::map::LEAF_BLOCKS * BLOCK_SIZE) as u64;
    (reserved >> BLOCK_BITS).min(size.div_ceil(leaf_bytes))
}
