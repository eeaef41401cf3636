//! Writing a superblock: both copies of the older slot on every device, a flush of all, the copy at
//! the end of every device, a flush of all.
//!
//! Invariants:
//! 1. Nothing that a superblock makes possible (a segment that is free, a device that takes data) is
//!    done before it is durable on every device that it names. So whichever device a crash leaves
//!    with the newest one, that one is right; and a device that has an older one knows of nothing
//!    that is gone.
//! 2. On every device there is a whole copy at any time.
//!
//! A device that failed (see `devices/failed.rs`) is named, but gets none: what it has is older.

use crate::engine::Engine;
use crate::format::superblock::{SLOTS, Superblock, TAIL_BYTES};
use crate::plant::Plant;
use crate::token::Token;
use flagstone_block::{Buffer, Buffers, DeviceCommand};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    /// On this device.
    Copies(usize),
    CopiesFlush(u64),
    /// On this device.
    Tail(usize),
    TailFlush(u64),
    Done,
}

#[derive(Debug)]
pub(crate) struct SuperWrite {
    buffers: [Buffer; 2],
    stage: Stage,
    pub(crate) io_left: u32,
    /// Generation of the newest superblock on the device.
    pub(crate) generation: u64,
    /// That superblock, or the one that is being written.
    superblock: Superblock,
    /// A scrub reads one of its places.
    pub(crate) being_read: bool,
    /// The next is to be that which says that a device failed.
    pub(crate) reserved: bool,
}

impl SuperWrite {
    pub(crate) fn new(buffers: [Buffer; 2], superblock: Superblock) -> Self {
        let generation = superblock.generation;
        Self {
            buffers,
            stage: Stage::Idle,
            io_left: 0,
            generation,
            superblock,
            being_read: false,
            reserved: false,
        }
    }

    /// The superblock that counts, when none is being written.
    pub(crate) fn current(&self) -> Superblock {
        self.superblock
    }

    pub(crate) fn release(&mut self, bufs: &mut impl Buffers) {
        self.buffers.into_iter().for_each(|buffer| bufs.free(buffer));
    }

    /// Whether a write may begin.
    pub(crate) fn is_idle(&self) -> bool {
        self.may_begin() && !self.reserved
    }

    /// As [`SuperWrite::is_idle`], for the one that it is reserved for.
    pub(crate) fn may_begin(&self) -> bool {
        self.stage == Stage::Idle && !self.being_read
    }

    /// Whether a write ended since the last call.
    pub(crate) fn take_done(&mut self) -> bool {
        let done = self.stage == Stage::Done;
        if done {
            self.stage = Stage::Idle;
        }
        done
    }
}

/// The first device of a superblock from number `from` on that is written to.
fn next_device(superblock: &Superblock, from: usize) -> Option<usize> {
    let sound = superblock.devices.iter().filter(|(_, row)| row.failed.is_none());
    sound.map(|(device, _)| device).find(|device| *device >= from)
}

impl Engine {
    /// The superblock that describes the pool as it is now, except for where its metadata lies.
    pub(crate) fn superblock(&self, flags: u32) -> Superblock {
        Superblock {
            pool_uuid: self.pool,
            generation: self.super_write.generation + 1,
            device: self.geo.journal.device,
            devices: self.devices,
            journal: self.geo.journal,
            segment_blocks: self.geo.shape.blocks,
            segments: u64::from(self.geo.segments),
            data_offset: self.geo.data_offset,
            journal_blocks: self.geo.journal_blocks,
            flags: flags | self.lasting_flags(),
            meta_segment: u64::from(self.meta.segments[0]),
            meta_epoch: self.meta.epoch,
            meta_pages: self.meta.durable_pages(),
            meta_nonce: self.meta.nonce,
            journal_start: self.journal.tail_durable,
            journal_flushed: self.journal.durable,
            next_lsn: self.next_lsn,
            next_generation: self.next_generation,
            next_volume: self.next_volume,
        }
    }

    /// Begins to write `superblock`. Everything it refers to must be durable.
    pub(crate) fn begin_superblock(&mut self, bufs: &mut impl Buffers, superblock: Superblock) {
        debug_assert!(self.super_write.is_idle());
        self.super_write.generation = superblock.generation;
        self.super_write.superblock = superblock;
        self.write_copies(bufs, 0, false);
    }

    /// Writes both copies of the slot, or the copy at the end, to the first device from `from` on; if
    /// there is none, all are written.
    fn write_copies(&mut self, bufs: &mut impl Buffers, from: usize, at_end: bool) {
        let superblock = self.super_write.superblock;
        let only_one = from > 0 && self.planted.has(Plant::SuperblockOnOneDevice);
        let Some(device) = next_device(&superblock, from).filter(|_| !only_one) else {
            let number = self.flush.want();
            self.super_write.stage =
                if at_end { Stage::TailFlush(number) } else { Stage::CopiesFlush(number) };
            return;
        };
        self.super_write.stage = if at_end { Stage::Tail(device) } else { Stage::Copies(device) };
        let superblock = superblock.on(device);
        let slot = SLOTS[superblock.generation as usize % 2];
        // Of the device that it describes, which may have just grown.
        let end = [superblock.own().bytes - TAIL_BYTES];
        let places = if at_end { &end[..] } else { &slot[..] };
        self.super_write.io_left = places.len() as u32;
        for (&offset, buffer) in places.iter().zip(self.super_write.buffers) {
            superblock.encode(offset, bufs.bytes_mut(buffer));
            self.emit_to(device, Token::Superblock, DeviceCommand::Write { offset, buffer });
        }
    }

    pub(crate) fn advance_superblock(&mut self, bufs: &mut impl Buffers) {
        match self.super_write.stage {
            Stage::Copies(device) if self.super_write.io_left == 0 => {
                self.write_copies(bufs, device + 1, false);
            }
            Stage::CopiesFlush(number) if self.flush.is_past(number) => {
                self.write_copies(bufs, 0, true);
            }
            Stage::Tail(device) if self.super_write.io_left == 0 => {
                self.write_copies(bufs, device + 1, true);
            }
            Stage::TailFlush(number) if self.flush.is_past(number) => {
                self.super_write.stage = Stage::Done;
                self.again = true;
            }
            Stage::CopiesFlush(_) | Stage::TailFlush(_) => {
                self.flush.want();
            }
            _ => {}
        }
    }
}
