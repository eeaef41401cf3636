//! Reads: map lookup, one device read per physical run, every checksum verified.
//!
//! A segment is pinned while a read is under way in it, so that it can't be freed and written
//! again beneath. A block whose checksum does not match is read once more; then it is reported
//! for its range only.

use crate::engine::Engine;
use crate::error::{IoFault, SubmitError};
use crate::leaf_loader::Paging;
use crate::limits::{READ_BLOCKS, READS};
use crate::map::Mapping;
use crate::plant::Plant;
use crate::token::Token;
use flagstone_block::{
    BLOCK_SIZE, Buffer, Buffers, DeviceCommand, DeviceError, DeviceIo, Lba, Tag, VolumeId,
    split_offset,
};

/// Who waits for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    Client(Tag),
    Rmw(u32),
    Rewriter,
}

#[derive(Debug)]
struct Read {
    reader: Reader,
    buffer: Buffer,
    lba: Lba,
    pending: u32,
    /// First bad block, as an offset into the request.
    bad: Option<u32>,
    pbns: [u64; READ_BLOCKS as usize],
    crcs: [u32; READ_BLOCKS as usize],
}

/// Reads under way. Slots are allocated until the bound is reached, then reused.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    slots: Vec<Read>,
    spare: Vec<u32>,
}

impl Reads {
    pub(crate) fn is_idle(&self) -> bool {
        self.spare.len() == self.slots.len()
    }

    fn take(&mut self, reader: Reader, buffer: Buffer, lba: Lba) -> Option<u32> {
        let i = match self.spare.pop() {
            Some(i) => i,
            None if self.slots.len() < READS => {
                self.slots.push(Read {
                    reader,
                    buffer,
                    lba,
                    pending: 0,
                    bad: None,
                    pbns: [0; READ_BLOCKS as usize],
                    crcs: [0; READ_BLOCKS as usize],
                });
                if self.spare.capacity() < self.slots.len() {
                    self.spare.reserve(self.slots.len());
                }
                (self.slots.len() - 1) as u32
            }
            None => return None,
        };
        let read = &mut self.slots[i as usize];
        (read.reader, read.buffer, read.lba, read.pending, read.bad) =
            (reader, buffer, lba, 0, None);
        Some(i)
    }
}

impl Engine {
    /// Fills `buffer` with the blocks from `first`; holes read as zeroes. The buffer stays the
    /// caller's and must not be touched before the completion.
    ///
    /// # Errors
    /// `Busy`, `OutOfRange` (also if the buffer has more than 256 blocks), `NoVolume`,
    /// `Stopping`: nothing happened. A failed pool still reads.
    pub fn read(
        &mut self,
        bufs: &mut impl Buffers,
        tag: Tag,
        volume: VolumeId,
        first: Lba,
        buffer: Buffer,
    ) -> Result<(), SubmitError> {
        if self.stop.is_begun() {
            return Err(SubmitError::Stopping);
        }
        if buffer.blocks > READ_BLOCKS {
            return Err(SubmitError::OutOfRange);
        }
        let offset = first.0.checked_mul(BLOCK_SIZE as u64).ok_or(SubmitError::OutOfRange)?;
        self.disturb();
        self.check_range(volume, offset, buffer.len() as u64)?;
        match self.leaves_here(volume.0, first, u64::from(buffer.blocks), true) {
            Paging::Here => {
                self.start_read(bufs, Reader::Client(tag), volume.0, first, buffer)?;
                self.note_read(volume.0, first, buffer.blocks);
                Ok(())
            }
            Paging::Coming => Err(SubmitError::Busy),
            Paging::Bad => {
                self.complete(tag, Err(IoFault::BadBlock { lba: first.0 }));
                Ok(())
            }
        }
    }

    pub(crate) fn start_read(
        &mut self,
        bufs: &mut impl Buffers,
        reader: Reader,
        volume: u32,
        first: Lba,
        buffer: Buffer,
    ) -> Result<(), SubmitError> {
        let op = self.reads.take(reader, buffer, first).ok_or(SubmitError::Busy)?;
        let Some(volume) = self.volumes.get(volume) else {
            self.reads.spare.push(op);
            return Err(SubmitError::NoVolume);
        };
        // Runs of physically adjacent blocks become one device read.
        let (mut run_first, mut run_blocks, mut run_pbn) = (0u32, 0u32, 0u64);
        let mut pending = 0;
        for b in 0..=buffer.blocks {
            let mapping = if b < buffer.blocks {
                volume.map.get(&self.slab, Lba(first.0 + u64::from(b)))
            } else {
                Mapping::Hole
            };
            if let Mapping::Block { pbn, crc } = mapping {
                let read = &mut self.reads.slots[op as usize];
                read.pbns[b as usize] = pbn;
                read.crcs[b as usize] = crc;
                if run_blocks > 0
                    && pbn == run_pbn + u64::from(run_blocks)
                    && self.geo.is_data(run_pbn, run_blocks + 1)
                {
                    run_blocks += 1;
                    continue;
                }
            }
            if run_blocks > 0 {
                let (segment, block) = self.geo.locate(run_pbn);
                self.segs.row_mut(segment).pins += 1;
                let token = Token::Read {
                    op,
                    first: run_first as u16,
                    blocks: run_blocks as u16,
                    retried: false,
                };
                let offset = self.geo.segment_offset(segment, block);
                let (device, offset) = split_offset(offset);
                let buffer = buffer.part(run_first, run_blocks);
                self.io_in_flight += 1;
                let token = token.encode(device);
                if self.degraded.is_missing(device) {
                    self.degraded.refuse(token);
                } else {
                    let command = DeviceCommand::Read { offset, buffer };
                    self.out.push_back(DeviceIo { device: device as u8, token, command });
                }
                if reader != Reader::Rewriter {
                    self.counters.blocks_read += u64::from(run_blocks);
                }
                pending += 1;
                run_blocks = 0;
            }
            match mapping {
                Mapping::Block { pbn, .. } => (run_first, run_blocks, run_pbn) = (b, 1, pbn),
                _ if b < buffer.blocks => {
                    bufs.bytes_mut(buffer.part(b, 1)).fill(0);
                    self.counters.blocks_zero_read += u64::from(reader != Reader::Rewriter);
                }
                _ => {}
            }
        }
        self.reads.slots[op as usize].pending = pending;
        if pending == 0 {
            self.finish_read(op);
        }
        Ok(())
    }

    pub(crate) fn read_done(
        &mut self,
        bufs: &mut impl Buffers,
        op: u32,
        first: u16,
        blocks: u16,
        retried: bool,
        result: Result<(), DeviceError>,
    ) {
        let (first, blocks) = (u32::from(first), u32::from(blocks));
        let read = &mut self.reads.slots[op as usize];
        let bad = match result {
            Err(_) => Some(0),
            Ok(()) if self.planted.has(Plant::DropChecksum) => None,
            Ok(()) => {
                let bytes = bufs.bytes(read.buffer.part(first, blocks));
                (0..blocks).find(|&b| {
                    let block = &bytes[b as usize * BLOCK_SIZE..][..BLOCK_SIZE];
                    crate::format::crc32(block) != read.crcs[(first + b) as usize]
                })
            }
        };
        let (segment, block) = self.geo.locate(read.pbns[first as usize]);
        if let Some(b) = bad {
            if !retried {
                let buffer = read.buffer.part(first, blocks);
                self.counters.read_retries += 1;
                let token =
                    Token::Read { op, first: first as u16, blocks: blocks as u16, retried: true };
                let offset = self.geo.segment_offset(segment, block);
                self.emit(token, DeviceCommand::Read { offset, buffer });
                return;
            }
            self.counters.bad_blocks += u64::from(read.reader != Reader::Rewriter);
            let bad = first + b;
            read.bad = Some(read.bad.map_or(bad, |before| before.min(bad)));
        }
        read.pending -= 1;
        let finished = read.pending == 0;
        self.segs.row_mut(segment).pins -= 1;
        if finished {
            self.finish_read(op);
        }
    }

    fn finish_read(&mut self, op: u32) {
        let read = &self.reads.slots[op as usize];
        let result = match read.bad {
            None => Ok(()),
            Some(b) => Err(IoFault::BadBlock { lba: read.lba.0 + u64::from(b) }),
        };
        let reader = read.reader;
        self.reads.spare.push(op);
        match reader {
            Reader::Client(tag) => self.complete(tag, result),
            Reader::Rmw(i) => self.rmw_read_done(i, result),
            Reader::Rewriter => self.rewrite_read_done(result),
        }
    }
}
