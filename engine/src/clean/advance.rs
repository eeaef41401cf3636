//! Emptying a victim: its summary, its live blocks, and their copies.

use super::choose::Search;
use super::idle::Need;
use super::{Move, OutputStage, Span, SpanStage, Target, Victim, VictimStage, Window};
use crate::engine::Engine;
use crate::format::segment::{ENTRY_BYTES, Entry};
use crate::leaf_loader::Paging;
use crate::limits::{
    CLEAN_GAP_BLOCKS, CLEAN_RETRIES, CLEAN_RUN_BLOCKS, CLEAN_STEP_BLOCKS, CLEAN_SUMMARIES,
    LEAF_READS,
};
use crate::map::Mapping;
use crate::plant::Plant;
use crate::token::Token;
use flagstone_block::{BLOCK_SIZE, Buffers, DeviceCommand, DeviceError, Lba};

/// What became of a block that was to be copied.
enum Copied {
    Done,
    /// No output or buffer is to be had now.
    Waits,
}

impl Engine {
    /// Takes the cleaner as far as it can go.
    pub(crate) fn advance_cleaner(&mut self, bufs: &mut impl Buffers) {
        // A read-modify-write that was accepted before a stop may still need the space.
        if self.stop.is_begun() && self.rmws.is_idle() && !self.failures.has_again() {
            return self.abandon_cleaning();
        }
        self.copy_window(bufs);
        self.fill_window();
        self.read_spans();
        self.end_victim();
        let need = self.cleaning_need();
        if self.cleaner.victim.is_none() && need != Need::Nothing {
            self.begin_victim(need);
        }
        self.begin_leaving();
        self.advance_outputs(bufs);
    }

    fn begin_victim(&mut self, need: Need) {
        // There is no use in another search before the table changes.
        let now = (self.segs.events(), need);
        if self.cleaner.exhausted_at == Some(now) {
            return self.close_outputs_if_starved();
        }
        if self.summaries.len() <= CLEAN_SUMMARIES {
            return;
        }
        let segment = match self.choose_victim(need) {
            Search::Found(segment) => segment,
            Search::GoOn => {
                // Otherwise requests will bring the next turn.
                self.again |= need != Need::Due;
                return;
            }
            Search::Nothing => {
                // What changed while the search went on may have been looked at before that.
                self.cleaner.exhausted_at = Some((self.cleaner.searched_from, need));
                if need == Need::Idle {
                    self.close_outputs_if_idle();
                }
                return self.close_outputs_if_starved();
            }
        };
        self.cleaner.starved = false;
        self.take_victim(segment);
    }

    /// Begins to empty a sealed segment.
    pub(super) fn take_victim(&mut self, segment: u32) {
        self.learn_lifetime(segment);
        let summary = self.summaries.pop().expect("just counted");
        let again = self.segs.take_bad(segment);
        let row = self.segs.row_mut(segment);
        row.left_alone = true;
        // It may die meanwhile, but must not be written again under the reads.
        row.pins += 1;
        let generation = row.generation;
        self.cleaner.victim = Some(Victim {
            segment,
            generation,
            stage: VictimStage::ReadingSummary { retried: false },
            summary: Some(summary),
            again,
            next: 0,
        });
        self.read_summary(segment, summary);
    }

    fn read_summary(&mut self, segment: u32, summary: flagstone_block::Buffer) {
        let shape = self.geo.shape;
        let offset = self.geo.segment_offset(segment, shape.data_blocks);
        let buffer = summary.part(0, shape.summary_blocks());
        self.emit(Token::CleanSummary, DeviceCommand::Read { offset, buffer });
    }

    /// The victim's summary was read, or could not be.
    pub(crate) fn clean_summary_read(
        &mut self,
        bufs: &mut impl Buffers,
        result: Result<(), DeviceError>,
    ) {
        let Some(mut victim) = self.cleaner.victim.take() else { return };
        let VictimStage::ReadingSummary { retried } = victim.stage else { return };
        let Some(summary) = victim.summary else { return };
        if result.is_ok() && self.list_moves(bufs, &victim, summary) {
            self.summaries.push(summary);
            victim.summary = None;
            victim.stage = VictimStage::Moving;
            self.pace_victim(victim.segment);
            self.cleaner.victim = Some(victim);
        } else if !retried && !self.stop.is_begun() {
            victim.stage = VictimStage::ReadingSummary { retried: true };
            self.read_summary(victim.segment, summary);
            self.cleaner.victim = Some(victim);
        } else {
            // What it holds can still be read; it can only not be moved.
            self.summaries.push(summary);
            self.segs.row_mut(victim.segment).pins -= 1;
            if !victim.again {
                self.segs.hold_bad(victim.segment);
                self.counters.summaries_damaged += u64::from(!self.stop.is_begun());
            }
        }
        self.again = true;
    }

    /// Lists the live blocks of the victim; false if its summary is damaged.
    fn list_moves(
        &mut self,
        bufs: &impl Buffers,
        victim: &Victim,
        summary: flagstone_block::Buffer,
    ) -> bool {
        let Some((footer, entries)) = self.summary_entries(victim.segment, bufs.bytes(summary))
        else {
            return false;
        };
        self.cleaner.moves.clear();
        for (block, entry) in (0u32..).zip(entries.chunks_exact(ENTRY_BYTES)) {
            let entry = Entry::decode(entry);
            let moved = Move {
                block,
                volume: entry.volume,
                lba: entry.lba,
                vseq: entry.vseq,
                lsn: footer.first_lsn + u64::from(entry.lsn_delta),
                crc: entry.crc,
            };
            if self.liveness(victim.segment, &moved) != Some(false) {
                self.cleaner.moves.push(moved);
            }
        }
        true
    }

    /// Who owns a block that is moved, if it is still there.
    pub(super) fn owner_of(&self, moved: &Move) -> u32 {
        self.volumes.owner(moved.volume, moved.lsn, moved.leaf().1)
    }

    /// Whether the map names the block where it was read; `None` if the leaf that would know is
    /// not in memory.
    pub(super) fn liveness(&self, segment: u32, moved: &Move) -> Option<bool> {
        let owner = self.owner_of(moved);
        let Some(volume) = self.volumes.get(owner) else { return Some(false) };
        let lba = Lba(moved.lba);
        if volume.map.is_away(&self.slab, lba) {
            return None;
        }
        let here = Mapping::Block { pbn: self.geo.pbn(segment, moved.block), crc: moved.crc };
        Some(volume.map.get(&self.slab, lba) == here)
    }

    /// As [`Engine::liveness`] of move `at`, and begins to read the leaf, and those of the next
    /// moves.
    fn liveness_or_ask(&mut self, segment: u32, at: usize, to: usize) -> Result<bool, Paging> {
        let moved = self.cleaner.moves[at];
        if let Some(live) = self.liveness(segment, &moved) {
            return Ok(live);
        }
        let owner = self.owner_of(&moved);
        let paging = self.leaves_here(owner, Lba(moved.lba), 1, true);
        if paging == Paging::Coming {
            let mut last = moved.leaf();
            let mut left = LEAF_READS / 2;
            for next in at + 1..to {
                let moved = self.cleaner.moves[next];
                if moved.leaf() != last {
                    (last, left) = (moved.leaf(), left - 1);
                    if left == 0 {
                        break;
                    }
                    let owner = self.owner_of(&moved);
                    self.prefetch_leaf(owner, Lba(moved.lba));
                }
            }
        }
        Err(paging)
    }

    /// Gives every read buffer a run of live blocks, across small gaps, since one long read costs
    /// less than two short ones; what is to be copied from them is sorted.
    fn fill_window(&mut self) {
        let Some(victim) = &mut self.cleaner.victim else { return };
        let idle = |span: &Span| span.stage == SpanStage::Idle;
        if victim.stage != VictimStage::Moving || !self.cleaner.spans.iter().all(idle) {
            return;
        }
        let first_move = victim.next;
        for span in &mut self.cleaner.spans {
            let moves = &self.cleaner.moves[victim.next..];
            let Some(first) = moves.first().map(|m| m.block) else { break };
            let mut count = 1;
            while count < moves.len()
                && moves[count].block - first < CLEAN_RUN_BLOCKS
                && moves[count].block - moves[count - 1].block <= CLEAN_GAP_BLOCKS
            {
                count += 1;
            }
            span.stage = SpanStage::Waiting;
            span.first = first;
            span.blocks = moves[count - 1].block - first + 1;
            span.moves = count as u32;
            victim.next += count;
        }
        let window = first_move..victim.next;
        self.cleaner.window = Window { at: window.start, to: window.end, ..Window::default() };
        self.cleaner.moves[window].sort_unstable_by_key(|moved| (moved.volume, moved.lba));
    }

    /// Begins to read runs of the window.
    fn read_spans(&mut self) {
        let Some(victim) = &self.cleaner.victim else { return };
        let segment = victim.segment;
        let reading = |span: &&Span| span.stage == SpanStage::Reading;
        let under_way = self.cleaner.spans.iter().filter(reading).count();
        let mut left = self.clean_reads().saturating_sub(under_way);
        for i in 0..self.cleaner.spans.len() {
            let span = &mut self.cleaner.spans[i];
            if span.stage != SpanStage::Waiting || left == 0 {
                continue;
            }
            left -= 1;
            span.stage = SpanStage::Reading;
            let offset = self.geo.segment_offset(segment, span.first);
            let buffer = span.buffer.part(0, span.blocks);
            self.counters.clean_blocks_read += u64::from(span.blocks);
            self.emit(Token::CleanRead(i as u32), DeviceCommand::Read { offset, buffer });
        }
    }

    /// A run of the victim was read, or could not be.
    pub(crate) fn clean_read_done(&mut self, i: u32, result: Result<(), DeviceError>) {
        let span = &mut self.cleaner.spans[i as usize];
        span.stage = SpanStage::Ready;
        let moves = std::mem::take(&mut span.moves);
        // A run that can't be read in one piece may be read block by block.
        let window = &mut self.cleaner.window;
        window.refused = result.is_err() && window.retries > 0;
        self.earn(moves);
    }

    /// Copies what was read to outputs, as far as buffers and this turn's share go.
    fn copy_window(&mut self, bufs: &mut impl Buffers) {
        let Some(victim) = &self.cleaner.victim else { return };
        let (segment, generation, again) = (victim.segment, victim.generation, victim.again);
        let under_way = |span: &Span| matches!(span.stage, SpanStage::Waiting | SpanStage::Reading);
        if self.cleaner.spans.iter().any(under_way) {
            return;
        }
        let mut left = CLEAN_STEP_BLOCKS;
        while self.cleaner.window.at < self.cleaner.window.to {
            if left == 0 {
                self.again = true;
                return;
            }
            let Window { at, to, retries, refused } = self.cleaner.window;
            let moved = self.cleaner.moves[at];
            let live = match self.liveness_or_ask(segment, at, to) {
                Ok(live) => live,
                Err(Paging::Coming) => return,
                Err(_) => {
                    // Nobody knows whether this block counts: it stays, and its segment. The second time
                    // there is nothing to be gained from that in this life.
                    if !again {
                        self.segs.hold_bad(segment);
                    }
                    false
                }
            };
            if live {
                left -= 1;
                let (i, block) = self.cleaner.place_of(moved.block);
                let good = crate::format::crc32(bufs.bytes(block)) == moved.crc;
                let short = again || self.is_pressed() || self.segs.is_leaving(segment);
                if !good && retries < if short { CLEAN_RETRIES } else { 1 } {
                    // As every read, once more before it is given up, alone, so that a
                    // neighbour's damage is not taken for its own; and more often when the
                    // damaged block is to be moved, which is for good.
                    self.cleaner.window.retries += 1;
                    self.cleaner.spans[i].stage = SpanStage::Reading;
                    self.counters.read_retries += 1;
                    let offset = self.geo.segment_offset(segment, moved.block);
                    let command = DeviceCommand::Read { offset, buffer: block };
                    return self.emit(Token::CleanRead(i as u32), command);
                }
                // A damaged block stays where it is, and its segment with it: another read may
                // do better. When segments run out it is moved as it is, still damaged; but
                // not one that the device can't read at all just now.
                if good || (short && !refused) {
                    let target = Target { moved, segment, generation };
                    if let Copied::Waits = self.copy_block(bufs, block, target) {
                        return;
                    }
                    self.counters.clean_bad_moved += u64::from(!good);
                } else {
                    self.counters.clean_bad_blocks += 1;
                    // The second time, long after the first, there is nothing to be gained
                    // from this segment in this life.
                    if !again {
                        self.segs.hold_bad(segment);
                    }
                }
            }
            self.cleaner.window = Window { at: at + 1, to, ..Window::default() };
            self.earn(1);
        }
        self.cleaner.spans.iter_mut().for_each(|span| span.stage = SpanStage::Idle);
    }

    fn copy_block(
        &mut self,
        bufs: &mut impl Buffers,
        from: flagstone_block::Buffer,
        mut target: Target,
    ) -> Copied {
        let Some(o) = self.output_for(target.moved.lsn) else { return Copied::Waits };
        let Some(c) = self.chunk_of(o) else { return Copied::Waits };
        let chunk = &mut self.cleaner.chunks[c as usize];
        let at = chunk.buffer.part(chunk.blocks, 1);
        chunk.blocks += 1;
        // Through the stack: a buffer can't be read while another is written.
        let mut block = [0; BLOCK_SIZE];
        block.copy_from_slice(&bufs.bytes(from)[..BLOCK_SIZE]);
        bufs.bytes_mut(at)[..BLOCK_SIZE].copy_from_slice(&block);
        if self.planted.has(Plant::MoveAsNew) {
            target.moved.lsn = self.next_lsn;
        }
        self.append_target(o, target);
        Copied::Done
    }

    /// Lets go of a victim once all of it is copied.
    fn end_victim(&mut self) {
        let Some(victim) = &self.cleaner.victim else { return };
        let over = victim.stage == VictimStage::Moving
            && victim.next == self.cleaner.moves.len()
            && self.cleaner.spans.iter().all(|span| span.stage == SpanStage::Idle);
        if over {
            self.segs.row_mut(victim.segment).pins -= 1;
            self.counters.segments_cleaned += 1;
            self.cleaner.victim = None;
            self.again = true;
            self.cleaner.emptied += 1;
            self.close_outputs_if_owed();
        }
    }

    /// For a stop: begins nothing, lets the device finish, forgets what is not being sealed. The
    /// copies are of no use then, and the originals are where they were.
    fn abandon_cleaning(&mut self) {
        for span in &mut self.cleaner.spans {
            if span.stage != SpanStage::Reading {
                span.stage = SpanStage::Idle;
            }
        }
        let reading = self.cleaner.spans.iter().any(|span| span.stage == SpanStage::Reading);
        if let Some(victim) = &self.cleaner.victim
            && victim.stage == VictimStage::Moving
            && !reading
        {
            self.segs.row_mut(victim.segment).pins -= 1;
            self.cleaner.victim = None;
            self.again = true;
        }
        for o in 0..self.cleaner.outputs.len() {
            let output = &self.cleaner.outputs[o];
            let begun = matches!(output.stage, OutputStage::Filling | OutputStage::Closing);
            if begun && output.writes == 0 {
                self.abandon_output(o);
            }
        }
    }
}
