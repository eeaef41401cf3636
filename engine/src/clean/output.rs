//! Outputs: segments of moved blocks, from the first block to the switch of the map.
//!
//! Invariants of the switch:
//! 1. It begins only when the seal record of the output is retired: its data and summary are durable then.
//! 2. An entry is switched only if it still names the old place, and the segment there is still in the generation in
//!    which the block was read. If its leaf can't be read it stays, and the old segment with it.
//! 3. No entry is switched while a checkpoint states the maps that may have inherited it: all of them are to be stated with
//!    the same copy. The switch waits until that has ended.
//! 4. The output counts as sealed when the last entry is done with. A checkpoint until then states its seal as one whose
//!    entries no page holds.

use super::{Output, OutputStage, Target};
use crate::engine::Engine;
use crate::format::segment::{ENTRY_BYTES, Entry, Source};
use crate::leaf_loader::Paging;
use crate::limits::{CLEAN_CHUNK_BLOCKS, CLEAN_SUMMARIES, LEAF_READS, LSN_SPAN, SWITCH_STEPS};
use crate::map::Mapping;
use crate::plant::Plant;
use crate::segment::{SealStage, Sealing, SegmentState, Summary, seal_summary};
use crate::token::Token;
use flagstone_block::{BLOCK_SIZE, Buffers, DeviceCommand, Lba};

impl Output {
    /// Whether the LSN is near enough to the others to be written as a delta.
    fn spans(&self, lsn: u64) -> bool {
        self.last_lsn.max(lsn) - self.first_lsn.min(lsn) <= LSN_SPAN
    }
}

impl Engine {
    /// An output that takes a block with this LSN: of its class or, if no segment can be had for
    /// that, any. `None` if there is none now.
    pub(super) fn output_for(&mut self, lsn: u64) -> Option<u32> {
        // One output after the other when segments are few: partly filled ones gain nothing.
        let pressed = self.is_pressed();
        let first = self.cleaner.filling.iter().position(Option::is_some).filter(|_| pressed);
        let wanted = first.unwrap_or_else(|| self.class_of(lsn));
        if let Some(o) = self.cleaner.filling[wanted] {
            if self.cleaner.outputs[o as usize].spans(lsn) {
                return Some(o);
            }
            self.close_output(o);
        }
        if let Some(o) = self.begin_output(wanted) {
            return Some(o);
        }
        let mut filling = self.cleaner.filling.into_iter().flatten();
        filling.find(|&o| self.cleaner.outputs[o as usize].spans(lsn))
    }

    fn begin_output(&mut self, class: usize) -> Option<u32> {
        let idle = |output: &Output| output.stage == OutputStage::Idle;
        let o = self.cleaner.outputs.iter().position(idle)?;
        if self.summaries.len() <= CLEAN_SUMMARIES || !self.has_output_room() {
            return None;
        }
        let segment = self.segs.take(SegmentState::Open)?;
        let generation = self.next_generation;
        self.next_generation += 1;
        let row = self.segs.row_mut(segment);
        row.generation = generation;
        row.class = class as u8 + 1;
        let output = &mut self.cleaner.outputs[o];
        output.stage = OutputStage::Filling;
        (output.segment, output.generation, output.class) = (segment, generation, class);
        (output.first_lsn, output.last_lsn, output.lsn_sum) = (u64::MAX, 0, 0);
        output.summary = self.summaries.pop();
        self.cleaner.filling[class] = Some(o as u32);
        Some(o as u32)
    }

    /// The chunk that output `o` is filling, with room for a block.
    pub(super) fn chunk_of(&mut self, o: u32) -> Option<u32> {
        if let Some(c) = self.cleaner.outputs[o as usize].chunk {
            return Some(c);
        }
        let c = self.cleaner.chunks.iter().position(|chunk| chunk.idle)? as u32;
        let output = &mut self.cleaner.outputs[o as usize];
        let chunk = &mut self.cleaner.chunks[c as usize];
        (chunk.output, chunk.first, chunk.blocks) = (o, output.targets.len() as u32, 0);
        chunk.idle = false;
        output.chunk = Some(c);
        Some(c)
    }

    /// Notes a block that was copied to the chunk of output `o`; sends what is full.
    pub(super) fn append_target(&mut self, o: u32, target: Target) {
        let output = &mut self.cleaner.outputs[o as usize];
        output.targets.push(target);
        output.first_lsn = output.first_lsn.min(target.moved.lsn);
        output.last_lsn = output.last_lsn.max(target.moved.lsn);
        output.lsn_sum += u128::from(target.moved.lsn);
        self.counters.blocks_moved += 1;
        let full = output.targets.len() as u32 == self.geo.shape.data_blocks;
        let chunk = output.chunk.map_or(0, |c| self.cleaner.chunks[c as usize].blocks);
        if full {
            self.close_output(o);
        } else if chunk == CLEAN_CHUNK_BLOCKS {
            self.send_chunk(o);
        }
    }

    fn send_chunk(&mut self, o: u32) {
        let output = &mut self.cleaner.outputs[o as usize];
        let Some(c) = output.chunk.take() else { return };
        output.writes += 1;
        let chunk = self.cleaner.chunks[c as usize];
        let offset = self.geo.segment_offset(output.segment, chunk.first);
        let buffer = chunk.buffer.part(0, chunk.blocks);
        self.flush.dirty(self.now_ns, buffer.len() as u64);
        self.emit(Token::CleanWrite(c), DeviceCommand::Write { offset, buffer });
    }

    /// A chunk is on the device.
    pub(crate) fn clean_write_done(&mut self, c: u32) {
        let chunk = &mut self.cleaner.chunks[c as usize];
        chunk.idle = true;
        self.cleaner.outputs[chunk.output as usize].writes -= 1;
    }

    /// Ends an output: no more blocks.
    pub(super) fn close_output(&mut self, o: u32) {
        self.send_chunk(o);
        let output = &mut self.cleaner.outputs[o as usize];
        output.stage = OutputStage::Closing;
        self.cleaner.emptied = 0;
        if self.cleaner.filling[output.class] == Some(o) {
            self.cleaner.filling[output.class] = None;
        }
    }

    /// Writes the summaries of outputs whose data is on the device.
    pub(super) fn advance_outputs(&mut self, bufs: &mut impl Buffers) {
        for o in 0..self.cleaner.outputs.len() {
            let output = &self.cleaner.outputs[o];
            if output.stage != OutputStage::Closing
                || output.writes > 0
                || self.sealing.len() == self.sealing.capacity()
            {
                continue;
            }
            if output.targets.is_empty() {
                // It was begun for a block that then found no buffer.
                let segment = output.segment;
                self.summaries.extend(self.cleaner.outputs[o].summary.take());
                self.cleaner.outputs[o].stage = OutputStage::Idle;
                self.segs.release(segment);
                self.cleaner.exhausted_at = None;
                continue;
            }
            self.write_output_summary(bufs, o);
        }
        // A seal sets segments free; that is worth a flush of its own when they are needed.
        let sealing = self.sealing.iter().any(|s| s.moved && s.stage == SealStage::Written);
        if sealing && self.is_seal_urgent() {
            self.flush.want();
        }
    }

    fn write_output_summary(&mut self, bufs: &mut impl Buffers, o: usize) {
        let shape = self.geo.shape;
        let output = &mut self.cleaner.outputs[o];
        let Some(summary) = output.summary.take() else { return };
        output.stage = OutputStage::Sealing;
        // Higher than that of every segment its blocks came from, so that recovery prefers the
        // copies and what was emptied stays empty.
        let generation = self.next_generation;
        self.next_generation += 1;
        output.generation = generation;
        let bytes = &mut bufs.bytes_mut(summary)[..shape.summary_blocks() as usize * BLOCK_SIZE];
        for (target, at) in output.targets.iter().zip(bytes.chunks_exact_mut(ENTRY_BYTES)) {
            let Target { moved, segment, generation } = target;
            let from = self.geo.pbn(*segment, moved.block);
            let entry = Entry {
                volume: moved.volume,
                crc: moved.crc,
                lba: moved.lba,
                vseq: moved.vseq,
                lsn_delta: (moved.lsn - output.first_lsn) as u32,
                source: Some(Source::new(from, *generation)),
            };
            entry.encode(at);
        }
        let mean_lsn = (output.lsn_sum / output.targets.len() as u128) as u64;
        let described = Summary {
            segment: output.segment,
            generation,
            first_lsn: output.first_lsn,
            last_lsn: output.last_lsn,
            mean_lsn,
            entries: output.targets.len() as u16,
            class: output.class as u8 + 1,
        };
        let footer_crc = seal_summary(bytes, &self.pool, &shape, &described);
        let row = self.segs.row_mut(output.segment);
        row.state = SegmentState::Sealing;
        row.generation = generation;
        row.entries = described.entries;
        row.first_lsn = described.first_lsn;
        row.mean_lsn = mean_lsn;
        row.footer_crc = footer_crc;
        let stage = SealStage::Writing;
        let segment = output.segment;
        let writes = self.write_summary(segment, generation, summary);
        self.sealing.push(Sealing {
            segment,
            summary: Some(summary),
            // No journal record refers to it before its seal.
            first_jseq: u64::MAX,
            last_jseq: 0,
            resumed: false,
            moved: true,
            stage,
            writes,
        });
    }

    /// The seal record `lsn` of `segment` is retired: if moved blocks lie there, the map entries
    /// that still name their old places are switched; the segment counts as sealed after that.
    pub(crate) fn begin_switch(&mut self, segment: u32, lsn: u64) {
        let sealing = |output: &super::Output| {
            output.stage == OutputStage::Sealing && output.segment == segment
        };
        match self.cleaner.outputs.iter().position(sealing) {
            Some(o) => {
                self.cleaner.outputs[o].stage = OutputStage::Switching { next: 0, lsn };
                self.advance_switch(o, 0, lsn);
            }
            None => self.end_seal(segment, lsn),
        }
    }

    /// Forgets an output that is not sealed, and of which nothing is under way.
    pub(super) fn abandon_output(&mut self, o: usize) {
        let output = &mut self.cleaner.outputs[o];
        output.stage = OutputStage::Idle;
        output.targets.clear();
        let (segment, class) = (output.segment, output.class);
        if let Some(c) = output.chunk.take() {
            self.cleaner.chunks[c as usize].idle = true;
        }
        self.summaries.extend(output.summary.take());
        if self.cleaner.filling[class] == Some(o as u32) {
            self.cleaner.filling[class] = None;
        }
        self.segs.release(segment);
        self.cleaner.exhausted_at = None;
        self.again = true;
    }

    /// Gives up the outputs on a device that failed, but for those whose seal is on its way: what was copied
    /// there is where it was, and may be copied again.
    pub(crate) fn give_up_outputs(&mut self, device: usize) {
        for o in 0..self.cleaner.outputs.len() {
            let Output { stage, segment, .. } = self.cleaner.outputs[o];
            let sealing = self.sealing.iter().find(|sealing| sealing.segment == segment);
            let durable = sealing
                .is_some_and(|s| matches!(s.stage, SealStage::Durable | SealStage::Logged(_)));
            let given_up = match stage {
                OutputStage::Filling | OutputStage::Closing => true,
                OutputStage::Sealing => !durable,
                OutputStage::Idle | OutputStage::Switching { .. } => false,
            };
            if !given_up || self.geo.device_of(segment) != Some(device) {
                continue;
            }
            for k in 0..self.cleaner.outputs[o].targets.len() {
                let Target { segment, generation, .. } = self.cleaner.outputs[o].targets[k];
                let row = self.segs.row_mut(segment);
                row.left_alone &= row.generation != generation;
            }
            self.abandon_output(o);
        }
    }

    /// A planted bug: switches before the seal record is written.
    pub(crate) fn switch_early(&mut self, segment: u32) {
        let Some(o) = self.cleaner.outputs.iter().position(|output| output.segment == segment)
        else {
            return;
        };
        let targets = std::mem::take(&mut self.cleaner.outputs[o].targets);
        self.heirs.forget();
        for (block, target) in (0u32..).zip(&targets) {
            self.switch_entry(segment, block, target, self.applied_lsn);
        }
        self.cleaner.outputs[o].stage = OutputStage::Idle;
    }

    fn end_seal(&mut self, segment: u32, lsn: u64) {
        let epoch = self.next_checkpoint_epoch();
        self.segs.sealed(segment, lsn, epoch);
        self.log_since += u64::from(self.segs.row(segment).entries);
        self.counters.seals += 1;
    }

    /// Goes on with the switches that had to wait for leaves of the map.
    pub(crate) fn advance_switches(&mut self) {
        for o in 0..self.cleaner.outputs.len() {
            if let OutputStage::Switching { next, lsn } = self.cleaner.outputs[o].stage {
                self.advance_switch(o, next, lsn);
            }
        }
    }

    /// Whether the seal record of `segment` is retired, but not all of its entries are switched.
    pub(crate) fn is_switching(&self, segment: u32) -> bool {
        self.cleaner.outputs.iter().any(|output| {
            matches!(output.stage, OutputStage::Switching { .. }) && output.segment == segment
        })
    }

    fn advance_switch(&mut self, o: usize, next: usize, lsn: u64) {
        let output = &mut self.cleaner.outputs[o];
        let segment = output.segment;
        let targets = std::mem::take(&mut output.targets);
        let mut at = next;
        self.heirs.forget();
        let mut waits = false;
        while at < targets.len() {
            if self.heirs.steps() >= SWITCH_STEPS {
                let moved = &targets[at].moved;
                let owner = self.owner_of(moved);
                if !self.heirs.has_list_of(owner, moved.leaf().1, SWITCH_STEPS) {
                    break;
                }
            }
            if !self.switch_entry(segment, at as u32, &targets[at], lsn) {
                waits = true;
                break;
            }
            at += 1;
        }
        let over = at == targets.len();
        self.again |= !over && !waits;
        // Leaves that are read for a switch that waits for a checkpoint would be gone again when that has ended,
        // and it may need to read some itself.
        if waits && !self.is_being_stated(self.owner_of(&targets[at].moved)) {
            let same_leaf = |a: &Target, b: &Target| a.moved.leaf() == b.moved.leaf();
            for leaf in targets[at..].chunk_by(same_leaf).take(LEAF_READS) {
                let moved = &leaf[0].moved;
                let owner = self.owner_of(moved);
                self.prefetch_leaf(owner, Lba(moved.lba));
            }
        }
        let output = &mut self.cleaner.outputs[o];
        output.targets = targets;
        output.stage = OutputStage::Switching { next: at, lsn };
        if over {
            output.targets.clear();
            output.stage = OutputStage::Idle;
            self.end_seal(segment, lsn);
        }
        self.again |= over || at > next;
    }

    /// Switches one map entry if it still names the block's old place; false if its leaf must be
    /// read first.
    fn switch_entry(&mut self, segment: u32, block: u32, target: &Target, lsn: u64) -> bool {
        let moved = &target.moved;
        // What is not switched to is where it was, on a device that can be read, and may be moved again.
        if self.geo.device_of(segment).is_some_and(|device| self.has_failed(device)) {
            let row = self.segs.row_mut(target.segment);
            row.left_alone &= row.generation != target.generation;
            return true;
        }
        let owner = self.owner_of(moved);
        if self.is_being_stated(owner) {
            return false;
        }
        let same = self.segs.row(target.segment).generation == target.generation;
        let live = match self.liveness(target.segment, moved) {
            Some(live) => same && live,
            None if !same => false,
            None => match self.leaves_here(owner, Lba(moved.lba), 1, true) {
                Paging::Coming => return false,
                // The page is damaged: the entry stays, and the old segment with it.
                _ => return true,
            },
        };
        let blind = self.planted.has(Plant::SwitchBlindly);
        let new = Mapping::Block { pbn: self.geo.pbn(segment, block), crc: moved.crc };
        if live {
            let old = self.geo.pbn(target.segment, moved.block);
            let from = Mapping::Block { pbn: old, crc: moved.crc };
            if !self.move_block(owner, Lba(moved.lba), from, new) {
                return false;
            }
            self.segs.born(segment);
            self.segs.died(target.segment, lsn);
        } else if blind && self.volumes.get(moved.volume).is_some() {
            self.map_block(moved.volume, Lba(moved.lba), new, lsn);
        }
        true
    }
}
