//! Appending data to a batch: copy, checksum, record, and the segment's entry.

use super::Effect;
use crate::engine::Engine;
use crate::format::record::Record;
use crate::format::segment::Entry;
use crate::limits::{BATCH_BLOCKS, BATCH_BLOCKS_EAGER, BATCHES_EAGER};
use crate::stream::HOT;
use flagstone_block::{BLOCK_SIZE, Buffer, Buffers, Lba};

/// Where blocks may be appended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) batch: u32,
    pub(crate) stream: usize,
    /// How many there is room for.
    pub(crate) blocks: u32,
}

/// Where the blocks of a write come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    /// Whole blocks of a client's request.
    Bytes(&'a [u8]),
    /// The first block of a buffer.
    Block(Buffer),
    /// What was there before, to be written in sequence.
    Moved(Buffer),
    /// Whole blocks that were to be written to a device that failed.
    Again(Buffer),
}

impl Engine {
    /// Copies whole blocks to where `place` has room for them, and logs them.
    #[allow(clippy::too_many_arguments)] // the fields of one record
    pub(crate) fn append_blocks(
        &mut self,
        bufs: &mut impl Buffers,
        place: Place,
        volume: u32,
        lba: u64,
        source: Source<'_>,
    ) {
        let Place { batch: i, stream, .. } = place;
        let open = self.open[stream].as_ref().expect("data_room opened a segment");
        let (segment, first) = (open.segment, open.next);
        let batch = &mut self.batches[i as usize];
        let run = &mut batch.runs[stream];
        if run.blocks == 0 {
            run.pbn = self.geo.pbn(segment, first);
        }
        let at = run.blocks;
        let blocks = match source {
            Source::Bytes(data) => {
                bufs.bytes_mut(run.data)[at as usize * BLOCK_SIZE..][..data.len()]
                    .copy_from_slice(data);
                (data.len() / BLOCK_SIZE) as u32
            }
            Source::Block(from) => {
                copy_blocks(bufs, from.part(0, 1), run.data, at);
                1
            }
            Source::Moved(from) | Source::Again(from) => {
                copy_blocks(bufs, from, run.data, at);
                from.blocks
            }
        };
        let mut crcs = [0; 4 * BATCH_BLOCKS as usize];
        let bytes = &bufs.bytes(run.data)[at as usize * BLOCK_SIZE..];
        let crcs_at = stream as u32 * BATCH_BLOCKS + at;
        for b in 0..blocks as usize {
            let crc = crate::format::crc32(&bytes[b * BLOCK_SIZE..][..BLOCK_SIZE]);
            batch.crcs[crcs_at as usize + b] = crc;
            crcs[4 * b..4 * b + 4].copy_from_slice(&crc.to_le_bytes());
        }
        run.blocks += blocks;
        self.spend(blocks);
        let run = &self.batches[i as usize].runs[stream];
        let pbn = run.pbn + u64::from(at);
        let (new_leaves, _) = self.leaves_taken(volume, lba, u64::from(blocks));
        self.expect_new_leaves(i, new_leaves);
        let vol = self.volumes.get_mut(volume).expect("the caller looked it up");
        let vseq = vol.next_vseq;
        vol.next_vseq += 1;
        self.touched += u64::from(vol.map.touch(&mut self.slab, Lba(lba)));
        self.touched += u64::from(vol.map.touch(&mut self.slab, Lba(lba + u64::from(blocks) - 1)));
        let lsn = self.next_lsn;
        let record =
            Record::Write { volume, lsn, lba, pbn, vseq, crcs: &crcs[..4 * blocks as usize] };
        let vol = self.volumes.get(volume).expect("just looked up");
        let new = self.new_blocks(vol, lba, blocks);
        self.begin_taking(volume, u64::from(new));
        let effect = Effect::Write { volume, lba, pbn, crcs: crcs_at, blocks, new };
        self.log_encoded(bufs, i, effect, &record);
        let open = self.open[stream].as_mut().expect("still open");
        for b in 0..blocks {
            let entry = Entry {
                volume,
                crc: self.batches[i as usize].crcs[(crcs_at + b) as usize],
                lba: lba + u64::from(b),
                vseq,
                lsn_delta: 0,
                source: None,
            };
            open.push(bufs, lsn, entry);
        }
        if let Source::Moved(_) = source {
            self.counters.blocks_rewritten += u64::from(blocks);
        } else if let Source::Again(_) = source {
            self.counters.blocks_again += u64::from(blocks);
        } else {
            self.counters.blocks_written += u64::from(blocks);
            self.counters.blocks_cold += if stream == HOT { 0 } else { u64::from(blocks) };
        }
        self.flush.dirty(self.now_ns, u64::from(blocks) * BLOCK_SIZE as u64);
        if self.open[stream].as_ref().is_some_and(|o| o.next == self.geo.shape.data_blocks) {
            self.seal_open(bufs, stream);
        } else {
            // A burst becomes several batches while the device has room for them: they are
            // written in parallel, and the first is answered while the last is on its way.
            let full =
                if self.flight.len() < BATCHES_EAGER { BATCH_BLOCKS_EAGER } else { BATCH_BLOCKS };
            let runs = &self.batches[i as usize].runs;
            if runs.iter().map(|run| run.blocks).sum::<u32>() >= full {
                self.close_batch(bufs);
            }
        }
    }
}

/// Copies the blocks of one buffer to another, from block `at` of that on.
fn copy_blocks(bufs: &mut impl Buffers, from: Buffer, to: Buffer, at: u32) {
    for b in 0..from.blocks as usize {
        // Through the stack: a buffer can't be read while another is written.
        let mut block = [0; BLOCK_SIZE];
        block.copy_from_slice(&bufs.bytes(from)[b * BLOCK_SIZE..][..BLOCK_SIZE]);
        bufs.bytes_mut(to)[(at as usize + b) * BLOCK_SIZE..][..BLOCK_SIZE].copy_from_slice(&block);
    }
}
