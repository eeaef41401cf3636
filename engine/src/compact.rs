//! Checkpoint: a fresh metadata chain that describes the pool as it is, so that recovery reads
//! what was logged since and nothing else.
//!
//! The new chain states the volumes, the sealed segments, the blocks of segments that were open
//! when the pool was last closed, and every leaf of the map that was ever written to: where its
//! page lies, and its holes. Leaves that have changed since their last page get a new one (see
//! [`crate::leaf_writer`]). While the chain is being written, new records go to both chains, so
//! it does not stop anything; the switch is one superblock write.
//!
//! A checkpoint begins by sharing all maps that have leaves of their own, and states these as they were then, at one
//! LSN: what changes meanwhile is copied first. Replay orders a statement behind the records with its LSN.
//! The pages hold every entry of a segment that is stated as sealed and was in the maps when they were
//! shared; its summary need not be read.
//!
//! The holes are there for when a page is damaged: the map can then be made anew from all
//! summaries, and without them old ones would bring discarded blocks back.

use crate::engine::Engine;
use crate::format::record::{LeafMarks, RECORD_BYTES_MAX, Record, STATED, write_bytes};
use crate::leaf_loader::Paging;
use crate::limits::{
    CHECKPOINT_LOG_BYTES_MAX, CHECKPOINT_LOG_BYTES_MIN, CHECKPOINT_LOG_DIVISOR, USER_STREAMS,
    ZERO_BLOCKS,
};
use crate::map::{LEAF_BLOCKS, LeafPage, LeafState, Verdict, VolumeMap};
use crate::meta_chain::{MetaChain, NO_SEGMENT, Remains};
use crate::plant::Plant;
use crate::segment::{OpenSegment, SegmentState};
use crate::token::Token;
use crate::volume::{Volume, VolumeSettings, VolumeState};
use flagstone_block::{BLOCK_SIZE, Buffers, DeviceCommand, DeviceError};

/// Records stated per turn, so that a large pool's compaction does not hold up its requests.
const STATEMENTS_PER_TURN: usize = 256;

/// Times that a checkpoint tries to read a page that it must read, at least twice each.
const PATCHED_READS: u32 = 8;
/// As in `errno.h`.
const EIO: i32 = 5;

/// What is stated next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cursor {
    Volumes {
        slot: usize,
    },
    Segments {
        segment: u32,
    },
    OpenSegment {
        stream: usize,
        block: u32,
    },
    /// Of those that were open on a device that failed.
    Orphan {
        number: usize,
        block: u32,
    },
    Leaves {
        map: usize,
        leaf: u64,
    },
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Stating,
    /// Until the pages below this one are on the device: those hold the statements. What has been
    /// appended since is still in the journal; waiting for that too would never end under load.
    Writing(u64),
    Flushing(u64),
    Superblock,
    /// The new chain counts; the device may still be writing pages of both, whose tokens tell
    /// the old chain from the new.
    Switching,
}

#[derive(Debug)]
pub(crate) struct Compaction {
    pub(crate) chain: MetaChain,
    /// The maps as they were at `lsn`.
    frozen: Vec<VolumeMap>,
    lsn: u64,
    cursor: Cursor,
    stage: Stage,
}

impl Compaction {
    /// Segments of the new chain, its reserved next one among them.
    pub(crate) fn segments(&self) -> u32 {
        self.chain.segments.len() as u32 + u32::from(self.chain.next_segment != NO_SEGMENT)
    }

    /// The LSN that the maps are stated at.
    pub(crate) fn lsn(&self) -> u64 {
        self.lsn
    }

    /// Whether its superblock is being written, or was, and the chains are not switched yet.
    pub(crate) fn is_switching(&self) -> bool {
        matches!(self.stage, Stage::Superblock | Stage::Switching)
    }

    /// Whether leaves are still being stated.
    pub(crate) fn is_stating(&self) -> bool {
        self.stage == Stage::Stating
    }

    /// Whether the new chain takes `bytes` bytes of new records now. While it is being stated, a
    /// page is left to the statements: a flood of discards would otherwise take every one that a
    /// flush gives back, and the compaction would never end.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        let kept = usize::from(self.stage == Stage::Stating && self.cursor != Cursor::End);
        self.chain.has_room_beside(bytes, kept)
    }
}

impl Engine {
    /// Begins a compaction, if the arena and the segments allow it now.
    pub(crate) fn begin_compaction(&mut self, bufs: &mut impl Buffers) -> bool {
        let Some(first) = self.segs.take(SegmentState::Meta) else { return false };
        let next = self.segs.take(SegmentState::Meta).unwrap_or(NO_SEGMENT);
        let epoch = self.meta.epoch + 1;
        let nonce = self.session ^ epoch;
        let remains = self.meta_remains.take().unwrap_or_else(|| Remains::new(16));
        let place = (first, next);
        let mut chain = match MetaChain::begin(bufs, epoch, nonce, place, self.geo.pages(), remains)
        {
            Ok(chain) => chain,
            Err(remains) => {
                self.meta_remains = Some(remains);
                self.segs.release(first);
                if next != NO_SEGMENT {
                    self.segs.release(next);
                }
                return false;
            }
        };
        let lsn = self.applied_lsn;
        let jseq = self.journal.retired - 1;
        let record = Record::Checkpoint { lsn };
        chain.append(bufs, &self.geo, &mut self.segs, self.pool_tag, jseq, &record);
        self.leaving_checkpoint_begun();
        self.begin_summary_copies();
        self.begin_leaf_pages();
        self.failures.checkpoint_begun();
        self.log_since = 0;
        self.scrub.checkpoint_begun(epoch);
        // Of one that has nothing of its own there is nothing to state.
        let stated = |volume: &&Volume| {
            volume.state != VolumeState::Creating && volume.map.next_different(0).is_some()
        };
        let (mut frozen, spare) = (std::mem::take(&mut self.spare_frozen), &mut self.spare_forks);
        let volumes = self.volumes.iter().filter(stated);
        frozen.extend(volumes.map(|volume| volume.map.fork(spare.pop())));
        let (cursor, stage) = (Cursor::Volumes { slot: 0 }, Stage::Stating);
        self.compaction = Some(Compaction { chain, frozen, lsn, cursor, stage });
        true
    }

    pub(crate) fn advance_meta(&mut self, bufs: &mut impl Buffers) {
        let durable = self.journal.durable;
        let switching = self.compaction.as_ref().is_some_and(|c| c.stage == Stage::Switching);
        while !switching && let Some((page, offset, buffer)) = self.meta.next_write(durable) {
            self.flush.dirty(self.now_ns, buffer.len() as u64);
            self.emit(Token::MetaPage(page as u32), DeviceCommand::Write { offset, buffer });
        }
        if let Some(mut compaction) = self.compaction.take() {
            while !switching
                && let Some((page, offset, buffer)) = compaction.chain.next_write(durable)
            {
                self.emit(
                    Token::CompactionPage(page as u32),
                    DeviceCommand::Write { offset, buffer },
                );
            }
            if compaction.chain.wants_flush() {
                self.flush.want();
            }
            self.compaction = Some(compaction);
        } else if self.super_write.is_idle()
            && !self.opening
            && !self.is_counting()
            && (!self.stop.is_begun() || self.stop_wants_pages() || self.stop_wants_checkpoint())
            && self.compaction_due()
            && !self.seals_on_failed()
        {
            self.begin_compaction(bufs);
        }
    }

    /// The epoch of the next checkpoint that begins: one under way states maps as they were when it began.
    pub(crate) fn next_checkpoint_epoch(&self) -> u64 {
        self.meta.epoch + 1 + u64::from(self.compaction.is_some())
    }

    /// Whether the chain has grown so much, or segments are so few, that it should be shortened.
    pub(crate) fn compaction_due(&self) -> bool {
        let segments = self.meta.segments.len();
        // What it states now would take this many at most.
        let needed = self.chain_segments(0) as usize;
        self.log_since >= self.checkpoint_interval()
            || self.leaves_want_pages()
            || segments > 2 * self.meta_baseline + 1
            || (segments > self.meta_baseline && self.meta.next_segment == NO_SEGMENT)
            || (segments > needed
                && (self.segs.free() <= self.floor() || self.available_blocks() == 0))
            || (self.leaf_pages_are_loose() && self.is_reserve_short())
            || self.scrub.wants_checkpoint()
            || self.leaving_wants_checkpoint()
            || self.copies_want_checkpoint()
            || self.failures_want_checkpoint()
    }

    /// Blocks of log after which a checkpoint is due.
    fn checkpoint_interval(&self) -> u64 {
        let block = BLOCK_SIZE as u64;
        let pool = u64::from(self.geo.capacity) * u64::from(self.geo.shape.data_blocks);
        let least = (CHECKPOINT_LOG_BYTES_MIN / block).min(pool / 4);
        let most = CHECKPOINT_LOG_BYTES_MAX / block;
        (self.segs.live() / CHECKPOINT_LOG_DIVISOR).clamp(least, most)
    }

    pub(crate) fn advance_compaction(&mut self, bufs: &mut impl Buffers) {
        let Some(mut compaction) = self.compaction.take() else { return };
        let before = (compaction.stage, compaction.cursor);
        match compaction.stage {
            Stage::Stating => {
                for _ in 0..STATEMENTS_PER_TURN {
                    if compaction.cursor == Cursor::End
                        || !compaction.chain.has_room(RECORD_BYTES_MAX)
                    {
                        break;
                    }
                    if !self.state_next(bufs, &mut compaction) {
                        break;
                    }
                }
                // A resumed segment that is being sealed is covered by its seal record, which
                // reaches this chain when it is retired.
                if compaction.cursor == Cursor::End {
                    self.send_leaf_pages();
                    if self.sealing.iter().any(|s| s.resumed) {
                        self.flush.want();
                    } else {
                        compaction.chain.close_page(bufs, &self.geo, &mut self.segs, self.pool_tag);
                        compaction.stage = Stage::Writing(compaction.chain.page);
                    }
                }
            }
            Stage::Writing(pages) => {
                if self.planted.has(Plant::SuperblockFirst) {
                    compaction.stage = Stage::Flushing(0);
                } else if compaction.chain.written_pages() >= pages
                    && (self.leaf_writer.is_written() || self.planted.has(Plant::LeafPagesLate))
                {
                    compaction.stage = Stage::Flushing(self.flush.want());
                }
            }
            Stage::Flushing(number) if self.flush.is_past(number) && self.super_write.is_idle() => {
                let superblock = crate::format::superblock::Superblock {
                    meta_segment: u64::from(compaction.chain.segments[0]),
                    meta_epoch: compaction.chain.epoch,
                    meta_nonce: compaction.chain.nonce,
                    meta_pages: compaction.chain.durable_pages(),
                    ..self.superblock(0)
                };
                self.begin_superblock(bufs, superblock);
                compaction.stage = Stage::Superblock;
            }
            Stage::Superblock if self.super_write.take_done() => {
                compaction.stage = Stage::Switching;
            }
            Stage::Switching
                if !self.meta.is_writing()
                    && !compaction.chain.is_writing()
                    && !self.scrub.is_reading_pages() =>
            {
                self.switch_chain(bufs, compaction);
                return;
            }
            _ => {}
        }
        self.again |= before != (compaction.stage, compaction.cursor);
        self.compaction = Some(compaction);
    }

    fn switch_chain(&mut self, bufs: &mut impl Buffers, mut compaction: Compaction) {
        self.forks.extend(compaction.frozen.drain(..));
        self.spare_frozen = compaction.frozen;
        let old = std::mem::replace(&mut self.meta, compaction.chain);
        let segs = &mut self.segs;
        self.meta_remains = Some(old.end(bufs, |segment| segs.release(segment)));
        self.end_leaf_pages();
        self.end_summary_copies();
        self.end_orphans();
        self.bury_leaving();
        self.meta_baseline = self.meta.segments.len();
        self.again = true;
        self.counters.compactions += 1;
    }

    /// Makes the next statement; false if that must wait for a leaf page to be written.
    fn state_next(&mut self, bufs: &mut impl Buffers, compaction: &mut Compaction) -> bool {
        let step = match compaction.cursor {
            Cursor::Leaves { map, leaf } => self.leaf_statement(bufs, compaction, map, leaf),
            cursor => Some(self.statement(bufs, compaction, cursor)),
        };
        let Some((next, record)) = step else { return false };
        compaction.cursor = next;
        // True once everything retired so far is durable.
        let jseq = self.journal.retired - 1;
        let crc_bytes;
        let record = match record {
            None => return true,
            Some(Statement::Volume(slot)) => {
                let Some(volume) = self.volumes.slot(slot) else { return true };
                let mut record = volume.record(self.applied_lsn);
                if let Record::Volume { settings, .. } = &mut record
                    && self.planted.has(Plant::CompactWithoutSettings)
                {
                    *settings = VolumeSettings::default();
                }
                if let Record::Snapshot { deleted, .. } = &mut record
                    && self.planted.has(Plant::ReviveDeleted)
                {
                    *deleted = false;
                }
                compaction.chain.append(
                    bufs,
                    &self.geo,
                    &mut self.segs,
                    self.pool_tag,
                    jseq,
                    &record,
                );
                return true;
            }
            Some(Statement::Block { volume, lsn, lba, pbn, vseq, crc }) => {
                crc_bytes = u32::to_le_bytes(crc);
                Record::Write { volume, lsn, lba, pbn, vseq, crcs: &crc_bytes }
            }
            Some(Statement::Plain(record)) => record,
        };
        compaction.chain.append(bufs, &self.geo, &mut self.segs, self.pool_tag, jseq, &record);
        true
    }

    /// What stands at `cursor`, and where the next statement is.
    fn statement(
        &self,
        bufs: &impl Buffers,
        compaction: &Compaction,
        cursor: Cursor,
    ) -> (Cursor, Option<Statement>) {
        let lsn = self.applied_lsn;
        match cursor {
            Cursor::Volumes { slot } if slot == self.volumes.slots() => {
                (Cursor::Segments { segment: 0 }, None)
            }
            Cursor::Volumes { slot } => {
                let stated =
                    self.volumes.slot(slot).is_some_and(|v| v.state != VolumeState::Creating);
                (Cursor::Volumes { slot: slot + 1 }, stated.then_some(Statement::Volume(slot)))
            }
            Cursor::Segments { segment } if segment == self.segs.len() => {
                (Cursor::OpenSegment { stream: 0, block: 0 }, None)
            }
            Cursor::Segments { segment } => {
                let row = self.segs.row(segment);
                // One whose entries are being switched to has a seal record that may stand in
                // the old chain only, but no page holds its entries yet.
                let switching = self.is_switching(segment);
                let sealed = matches!(row.state, SegmentState::Sealed | SegmentState::Dead);
                let in_maps = !switching && row.in_map_epoch <= compaction.chain.epoch;
                // Most rows need no look for one.
                let may_have = (sealed || switching) && !in_maps;
                let copy =
                    may_have.then(|| self.summary_copies.of(segment, row.generation)).flatten();
                let seal = row.seal(segment, lsn, in_maps, copy);
                let record = Statement::Plain(Record::SegmentSeal(seal));
                // What the pages don't say of it only the journal does.
                let unstated = self.failures.is_unstated(segment);
                let record = ((sealed && !unstated) || switching).then_some(record);
                (Cursor::Segments { segment: segment + 1 }, record)
            }
            Cursor::OpenSegment { stream, .. } if stream == USER_STREAMS => {
                (Cursor::Orphan { number: 0, block: 0 }, None)
            }
            Cursor::OpenSegment { stream, block } => match &self.open[stream] {
                Some(open) if block < open.in_meta => (
                    Cursor::OpenSegment { stream, block: block + 1 },
                    Some(self.block_statement(bufs, open, block)),
                ),
                _ => (Cursor::OpenSegment { stream: stream + 1, block: 0 }, None),
            },
            Cursor::Orphan { number, block } => match self.failures.orphans.get(number) {
                Some(orphan) => match &orphan.open {
                    Some(open) if block < open.in_meta && !orphan.stated => (
                        Cursor::Orphan { number, block: block + 1 },
                        Some(self.block_statement(bufs, open, block)),
                    ),
                    _ => (Cursor::Orphan { number: number + 1, block: 0 }, None),
                },
                None => (Cursor::Leaves { map: 0, leaf: 0 }, None),
            },
            Cursor::Leaves { .. } | Cursor::End => (Cursor::End, None),
        }
    }

    /// The record of block `block` of an open segment.
    fn block_statement(&self, bufs: &impl Buffers, open: &OpenSegment, block: u32) -> Statement {
        let (lsn, entry) = open.entry(bufs, block);
        Statement::Block {
            volume: entry.volume,
            lsn,
            lba: entry.lba,
            pbn: self.geo.pbn(open.segment, block),
            vseq: entry.vseq,
            crc: entry.crc,
        }
    }

    /// As [`Engine::statement`], for a leaf of the map; `None` if its page can't be written now.
    fn leaf_statement(
        &mut self,
        bufs: &mut impl Buffers,
        compaction: &Compaction,
        number: usize,
        leaf: u64,
    ) -> Option<(Cursor, Option<Statement>)> {
        let Some(map) = compaction.frozen.get(number) else { return Some((Cursor::End, None)) };
        let next_volume = (Cursor::Leaves { map: number + 1, leaf: 0 }, None);
        let (id, lsn) = (map.volume(), compaction.lsn);
        if self.volumes.get(id).is_none() {
            return Some(next_volume);
        }
        let mut leaf = leaf;
        // What is not different is the parent's to state.
        while let Some(different) = map.next_different(leaf) {
            if self.planted.has(Plant::CompactWithinSize)
                && self
                    .volumes
                    .get(id)
                    .is_some_and(|v| different * LEAF_BLOCKS as u64 >= v.blocks())
            {
                break;
            }
            leaf = different;
            let (state, _) = map.leaf(&self.slab, leaf);
            let lba = leaf * LEAF_BLOCKS as u64;
            match state {
                LeafState::Untouched => leaf += 1,
                LeafState::AllHole | LeafState::AllKept => {
                    let mut end = leaf + 1;
                    while map.is_different(end)
                        && map.leaf(&self.slab, end).0 == state
                        && (end + 1) * LEAF_BLOCKS as u64 - lba <= ZERO_BLOCKS
                    {
                        end += 1;
                    }
                    let blocks = (end * LEAF_BLOCKS as u64 - lba) as u32;
                    let keep = state == LeafState::AllKept;
                    let record = Record::Zero { volume: id, lsn, lba, blocks, keep, vseq: STATED };
                    let forgotten = self.planted.has(Plant::CompactWithoutHoles);
                    let record = (!forgotten).then_some(Statement::Plain(record));
                    return Some((Cursor::Leaves { map: number, leaf: end }, record));
                }
                LeafState::Dense(_) | LeafState::Away(_) => {
                    let (page, mut marks) = self.page_to_state(bufs, id, leaf, state)?;
                    self.leaf_writer.name(&self.geo, page);
                    if self.planted.has(Plant::CompactWithoutHoles) {
                        marks.holes = Default::default();
                    }
                    let LeafPage { pbn: page, crc: page_crc } = page;
                    let record = Record::Leaf { volume: id, lsn, lba, page, page_crc, marks };
                    let next = Cursor::Leaves { map: number, leaf: leaf + 1 };
                    return Some((next, Some(Statement::Plain(record))));
                }
            }
        }
        Some(next_volume)
    }

    /// The page of a leaf and its holes and kept zeroes, for its statement; `None` if it must be
    /// written, or read, first.
    fn page_to_state(
        &mut self,
        bufs: &mut impl Buffers,
        volume: u32,
        leaf: u64,
        state: LeafState,
    ) -> Option<(LeafPage, LeafMarks)> {
        let lba = leaf * LEAF_BLOCKS as u64;
        match state {
            LeafState::Dense(index) => {
                let page = self.leaf_page(bufs, volume, lba, index)?;
                Some((page, self.slab.get(index).marks()))
            }
            LeafState::Away(index) => {
                let away = self.slab.away_leaf(index);
                let (page, marks) = (away.page, away.marks());
                let patched =
                    self.slab.unread(index).is_some() && !self.planted.has(Plant::ForgetPatches);
                let moves = self.segs.row(self.geo.locate(page.pbn).0).left_alone;
                if !patched && (!moves || self.opening) {
                    return Some((page, marks));
                }
                if let Some(moved) = self.leaf_loader.take_moved(page) {
                    let mut content = moved.1.clone();
                    if let Some(unread) = self.slab.unread(index) {
                        unread.clone().apply(&mut content, false, |_| Verdict::Good);
                    }
                    let Some(page) = self.write_leaf_page(bufs, volume, lba, &content) else {
                        self.leaf_loader.keep_moved(moved);
                        return None;
                    };
                    self.slab.move_away(index, page);
                    return Some((page, marks));
                }
                match self.request_move(volume, leaf, page) {
                    Paging::Bad if patched => {
                        // What was logged of it must not be forgotten, and can't be kept: if this
                        // goes on, the checkpoint can't end.
                        if self.leaf_writer.refused() == PATCHED_READS {
                            self.fail(DeviceError::Os { errno: EIO });
                        }
                        self.again = true;
                        None
                    }
                    // It stays where it is, and its segment with it.
                    Paging::Bad => Some((page, marks)),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Copies the records of the open segments' blocks that are not there yet to the chain, as
    /// many as there is room for; returns whether all are. For a clean stop, so that no segment
    /// need be sealed half full.
    pub(crate) fn keep_open_segments(&mut self, bufs: &mut impl Buffers) -> bool {
        let streams = if self.planted.has(Plant::KeepOneStream) { 1 } else { USER_STREAMS };
        (0..streams).all(|stream| self.keep_open_segment(bufs, stream))
    }

    fn keep_open_segment(&mut self, bufs: &mut impl Buffers, stream: usize) -> bool {
        loop {
            let Some(open) = &self.open[stream] else { return true };
            let block = open.in_meta;
            if block == open.next {
                return true;
            }
            if !self.meta.has_room(write_bytes(1)) {
                self.flush.want();
                return false;
            }
            let Statement::Block { volume, lsn, lba, pbn, vseq, crc } =
                self.block_statement(bufs, open, block)
            else {
                return true;
            };
            let crcs = u32::to_le_bytes(crc);
            let record = Record::Write { volume, lsn, lba, pbn, vseq, crcs: &crcs };
            let jseq = self.journal.retired - 1;
            self.meta.append(bufs, &self.geo, &mut self.segs, self.pool_tag, jseq, &record);
            if let Some(open) = &mut self.open[stream] {
                open.in_meta += 1;
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Statement {
    Volume(usize),
    Block { volume: u32, lsn: u64, lba: u64, pbn: u64, vseq: u64, crc: u32 },
    Plain(Record<'static>),
}
