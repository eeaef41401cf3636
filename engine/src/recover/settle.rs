//! The end of a recovered journal: what only it knows goes to the metadata chain, and a
//! superblock says that the journal begins anew.
//!
//! The pool's map is not written: that would take as long as the pool is large, and before the
//! first request. What was logged since the last checkpoint stays so, until the next one.
//!
//! Invariants:
//! 1. What goes to the chain was read back, and flushed, before: a page of it proves the log up to
//!    its records to a recovery that comes after a crash in this one.
//! 2. Nothing that goes there is newer than the point where the log was cut. If the device gives
//!    back later what it refused now, the next recovery cuts the log at the first write behind
//!    the seal of its segment (see `load`).

use super::finish::drive;
use super::load::{TailBlock, TailSegment};
use super::records::OwnedRecord;
use crate::engine::Engine;
use crate::error::OpenError;
use crate::format::meta::RECORD_BYTES;
use crate::format::record::{Record, write_bytes};
use crate::format::superblock::Superblock;
use crate::plant::Plant;
use flagstone_block::{BlockIo, Buffers};

impl Engine {
    /// Whether the chain has pages for these records and for those of the open segments' blocks.
    pub(super) fn fits_chain(&self, unkept: &[OwnedRecord], orphans: &[TailSegment]) -> bool {
        let bytes: usize = unkept.iter().filter_map(|r| Some(r.kept()?.encoded_bytes())).sum();
        // A record that does not fit a page's rest begins the next page.
        let pages = bytes.div_ceil(RECORD_BYTES / 2) + 1;
        let blocks: usize =
            self.open.iter().flatten().map(|open| (open.next - open.in_meta) as usize).sum();
        let blocks = blocks + orphans.iter().map(|tail| tail.blocks.len()).sum::<usize>();
        let pages = pages + blocks.div_ceil(RECORD_BYTES / write_bytes(1));
        self.meta.pages_ahead() as usize > pages
    }

    /// Ends the journal that was recovered. The chain must have room.
    pub(super) fn settle<B: Buffers>(
        &mut self,
        io: &mut dyn BlockIo,
        bufs: &mut B,
        unkept: &[OwnedRecord],
        orphans: &[TailSegment],
    ) -> Result<(), OpenError> {
        let jseq = self.journal.retired - 1;
        for tail in orphans {
            for at in tail.in_meta..tail.blocks.len() as u32 {
                self.keep_block(io, bufs, tail, at, jseq)?;
            }
        }
        let forgets = self.planted.has(Plant::SettleForgets);
        for record in unkept.iter().filter_map(OwnedRecord::kept).filter(|_| !forgets) {
            self.turn_until(io, bufs, |engine, _| {
                let room = engine.meta.has_room(record.encoded_bytes());
                if !room {
                    engine.flush.want();
                }
                room
            })?;
            self.meta.append(bufs, &self.geo, &mut self.segs, self.pool_tag, jseq, &record);
        }
        self.turn_until(io, bufs, Self::keep_open_segments)?;
        // The next page may be there, written before the crash, and only not readable just now. It must not count
        // when it can be read again: what comes from now on builds on the log without it. So another takes its place.
        self.turn_until(io, bufs, |engine, _| {
            let room = engine.meta.has_room(0);
            if !room {
                engine.flush.want();
            }
            room
        })?;
        self.meta.begin_page(jseq);
        self.meta.close_page(bufs, &self.geo, &mut self.segs, self.pool_tag);
        let pages = if self.planted.has(Plant::SettleTooSoon) { 0 } else { self.meta.page };
        self.turn_until(io, bufs, |engine, _| {
            engine.flush.want();
            engine.meta.durable_pages() >= pages
        })?;
        let superblock = Superblock { journal_start: self.journal.next, ..self.superblock(0) };
        self.begin_superblock(bufs, superblock);
        self.turn_until(io, bufs, |engine, _| engine.super_write.take_done())
    }

    /// Puts the record of a block that no summary will describe into the chain.
    fn keep_block<B: Buffers>(
        &mut self,
        io: &mut dyn BlockIo,
        bufs: &mut B,
        tail: &TailSegment,
        at: u32,
        jseq: u64,
    ) -> Result<(), OpenError> {
        self.turn_until(io, bufs, |engine, _| {
            let room = engine.meta.has_room(write_bytes(1));
            if !room {
                engine.flush.want();
            }
            room
        })?;
        let TailBlock { volume, lba, lsn, vseq, crc } = tail.blocks[at as usize];
        let (pbn, crcs) = (self.geo.pbn(tail.segment, at), crc.to_le_bytes());
        let record = Record::Write { volume, lsn, lba, pbn, vseq, crcs: &crcs };
        self.meta.append(bufs, &self.geo, &mut self.segs, self.pool_tag, jseq, &record);
        Ok(())
    }

    /// Works, while opening, until `done`. What stands still would do so for ever.
    pub(super) fn turn_until<B: Buffers>(
        &mut self,
        io: &mut dyn BlockIo,
        bufs: &mut B,
        mut done: impl FnMut(&mut Self, &mut B) -> bool,
    ) -> Result<(), OpenError> {
        let mut still = false;
        while !done(self, bufs) {
            if still {
                return Err(OpenError::NoRoom { free: self.segs.free() });
            }
            self.pump(bufs, 0);
            still = !drive(io, bufs, self)? && !self.again;
        }
        Ok(())
    }
}
