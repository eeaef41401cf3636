//! What to read next, and when.

use super::{Named, Phase, Run, ScrubState, Slot, Stage, Work};
use crate::engine::Engine;
use crate::format::meta::PAGE_BLOCKS;
use crate::leaf_loader::Paging;
use crate::limits::{CLEAN_GAP_BLOCKS, CLEAN_SUMMARIES, SCRUB_BLOCKS, SCRUB_STEPS};
use crate::map::{LEAF_BLOCKS, LeafPage, LeafState, Mapping};
use crate::plant::Plant;
use crate::segment::SegmentState;
use crate::token::Token;
use flagstone_block::{BLOCK_SIZE, Buffers, DeviceCommand, DeviceError, Lba};

/// What a look for something to read came to.
enum Next {
    /// This many items in this many blocks.
    Read(Work, usize, u32),
    /// Nothing yet; look again.
    Again,
    /// Something else has to happen first.
    Wait,
}

impl Engine {
    /// Number of places where the superblock that counts should lie.
    pub(super) fn superblock_places(&self) -> usize {
        3 * self.geo.sound_devices().count()
    }

    /// One of these places: its offset, and its device.
    pub(super) fn superblock_place(&self, place: usize) -> (u64, usize) {
        let device = self.geo.sound_devices().nth(place / 3).unwrap_or_default();
        let places = self.geo.superblock_places(device, self.super_write.generation);
        (places[place % 3], device)
    }

    pub(super) fn issue_scrub_reads(&mut self, bufs: &mut impl Buffers) {
        // Requests come first: while there are any, one read at a time, and a pause after each
        // as long as it took.
        let busy = !self.reads.is_idle() || !self.flight.is_empty();
        let slots = if busy { 1 } else { self.scrub.slots.len() };
        let mut steps = SCRUB_STEPS;
        for i in 0..slots {
            while self.scrub.slots[i].stage == Stage::Idle {
                let Some(run) = &self.scrub.run else { return };
                if run.ending.is_some() || run.phase == Phase::Repair || run.pace_ns > self.now_ns {
                    return;
                }
                if steps == 0 {
                    self.again = true;
                    return;
                }
                steps -= 1;
                match self.next_scrub_read(bufs) {
                    Next::Read(work, items, blocks) => {
                        self.issue_scrub_read(i, work, items, blocks);
                    }
                    Next::Again => {}
                    Next::Wait => return,
                }
            }
        }
    }

    fn issue_scrub_read(&mut self, i: usize, work: Work, items: usize, blocks: u32) {
        let summary = match work {
            Work::Summary { .. } | Work::Copy(_) => self.summaries.pop(),
            _ => None,
        };
        let slot = &mut self.scrub.slots[i];
        *slot = Slot {
            buffer: slot.buffer,
            summary,
            stage: Stage::Reading,
            work,
            at: 0,
            items,
            refused: false,
            alone: None,
            issued_ns: self.now_ns,
        };
        if let Some(segment) = slot.pinned()
            && !self.planted.has(Plant::ScrubUnpinned)
        {
            self.segs.row_mut(segment).pins += 1;
        }
        self.hold_for_scrub(work, true);
        let bytes = u64::from(blocks) * BLOCK_SIZE as u64;
        let rate = self.scrub.report.as_ref().map_or(0, |report| report.rate);
        if let Some(run) = &mut self.scrub.run
            && rate > 0
        {
            let takes = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(rate));
            run.pace_ns = run.pace_ns.max(self.now_ns).saturating_add(takes as u64);
        }
        self.counters.scrub_blocks_read += u64::from(blocks);
        let buffer = self.scrub.slots[i].bytes().part(0, blocks);
        let offset = match work {
            Work::Blocks { segment, first, .. } => self.geo.segment_offset(segment, first),
            _ => self.scrub_offset(work, 0),
        };
        self.emit(Token::ScrubRead(i as u32), DeviceCommand::Read { offset, buffer });
    }

    /// A read of the scrub has ended.
    pub(crate) fn scrub_read_done(&mut self, i: u32, result: Result<(), DeviceError>) {
        let busy = !self.reads.is_idle() || !self.flight.is_empty();
        let slot = &mut self.scrub.slots[i as usize];
        slot.stage = Stage::Ready;
        match &mut slot.alone {
            Some(alone) => *alone = result,
            None => slot.refused = result.is_err(),
        }
        let took = self.now_ns.saturating_sub(slot.issued_ns);
        if let Some(run) = &mut self.scrub.run
            && busy
        {
            run.pace_ns = run.pace_ns.max(self.now_ns.saturating_add(took));
        }
    }

    /// Frees a slot, and lets go of its segment and summary buffer.
    pub(super) fn release_slot(&mut self, i: usize) {
        let slot = &mut self.scrub.slots[i];
        slot.stage = Stage::Idle;
        self.summaries.extend(slot.summary.take());
        if let Some(segment) = slot.pinned()
            && !self.planted.has(Plant::ScrubUnpinned)
        {
            self.segs.row_mut(segment).pins -= 1;
        }
        self.hold_for_scrub(self.scrub.slots[i].work, false);
    }

    /// Keeps what is read from being written meanwhile, or no longer. One read of the journal at a
    /// time is enough.
    fn hold_for_scrub(&mut self, work: Work, hold: bool) {
        match work {
            Work::Superblock { .. } => self.super_write.being_read = hold,
            Work::Journal { first } => self.journal.read_from = hold.then_some(first),
            _ => {}
        }
    }

    fn next_scrub_read(&mut self, bufs: &impl Buffers) -> Next {
        let Some(run) = &self.scrub.run else { return Next::Wait };
        if let Some((segment, slot, leaf)) = run.search {
            return self.search_maps(segment, slot, leaf);
        }
        if let Some((asked, named)) = run.asking {
            return self.ask_leaves(asked, named);
        }
        let phase = run.phase;
        if let Some(next) = self.next_run() {
            return next;
        }
        // The next segment's list would take the place of one that is still being read.
        if matches!(phase, Phase::Segments { .. } | Phase::Later { .. }) && self.scrub.is_reading()
        {
            return Next::Wait;
        }
        let (phase, next) = match phase {
            Phase::Superblocks { place } => self.next_superblock(place),
            Phase::Journal { next, end } => self.next_journal_blocks(next, end),
            Phase::Chain { epoch, page, end } => self.next_pages(epoch, page, end),
            Phase::Leaves { slot, leaf } => self.next_leaf_page(slot, leaf),
            Phase::Copies { next } => self.next_copy(next),
            Phase::Segments { next } => self.next_segment(bufs, next),
            Phase::Later { next } => self.next_later(bufs, next),
            Phase::Repair => (Phase::Repair, Next::Wait),
        };
        if let Some(run) = &mut self.scrub.run {
            run.phase = phase;
        }
        if phase == Phase::Repair
            && let Some(report) = &mut self.scrub.report
        {
            report.state = ScrubState::Repairing;
            self.again = true;
        }
        next
    }

    fn next_superblock(&self, place: usize) -> (Phase, Next) {
        if !self.super_write.is_idle() {
            return (Phase::Superblocks { place }, Next::Wait);
        }
        if place < self.superblock_places() {
            let read = Next::Read(Work::Superblock { place }, 1, 1);
            return (Phase::Superblocks { place: place + 1 }, read);
        }
        let (next, end) = (self.journal.tail_durable, self.journal.durable);
        (Phase::Journal { next, end }, Next::Again)
    }

    fn next_journal_blocks(&self, next: u64, end: u64) -> (Phase, Next) {
        let next = next.max(self.journal.tail_durable);
        if self.journal.read_from.is_some() {
            return (Phase::Journal { next, end }, Next::Wait);
        }
        if next >= end {
            return (self.chain_from_start(), Next::Again);
        }
        let ring = self.journal.ring;
        let blocks = (end - next).min(u64::from(SCRUB_BLOCKS)).min(ring - next % ring);
        let read = Next::Read(Work::Journal { first: next }, blocks as usize, blocks as u32);
        (Phase::Journal { next: next + blocks, end }, read)
    }

    fn chain_from_start(&self) -> Phase {
        Phase::Chain { epoch: self.meta.epoch, page: 0, end: self.meta.durable_pages() }
    }

    fn next_pages(&self, epoch: u64, page: u64, end: u64) -> (Phase, Next) {
        if self.compaction.is_some() {
            return (Phase::Chain { epoch, page, end }, Next::Wait);
        }
        if epoch != self.meta.epoch {
            return (self.chain_from_start(), Next::Again);
        }
        if page >= end {
            return (Phase::Leaves { slot: 0, leaf: 0 }, Next::Again);
        }
        let per_segment = u64::from(self.geo.pages());
        let Some(&segment) = self.meta.segments.get((page / per_segment) as usize) else {
            return (Phase::Leaves { slot: 0, leaf: 0 }, Next::Again);
        };
        let pages = (end - page)
            .min(u64::from(SCRUB_BLOCKS / PAGE_BLOCKS))
            .min(per_segment - page % per_segment);
        let work = Work::Chain { segment, first: page, epoch };
        let blocks = pages as u32 * PAGE_BLOCKS;
        (Phase::Chain { epoch, page: page + pages, end }, Next::Read(work, blocks as usize, blocks))
    }

    fn next_leaf_page(&self, slot: usize, leaf: u64) -> (Phase, Next) {
        // The pages of a checkpoint under way are perhaps not on the device yet.
        if self.compaction.is_some() {
            return (Phase::Leaves { slot, leaf }, Next::Wait);
        }
        if slot == self.volumes.slots() {
            return (Phase::Copies { next: 0 }, Next::Again);
        }
        let (mut leaf, next_volume) = (leaf, Phase::Leaves { slot: slot + 1, leaf: 0 });
        let Some(volume) = self.volumes.slot(slot) else { return (next_volume, Next::Again) };
        for _ in 0..SCRUB_STEPS {
            if leaf >= volume.map.leaves() {
                return (next_volume, Next::Again);
            }
            let (_, leaves) = volume.map.leaf(&self.slab, leaf);
            let (lba, id) = (leaf * LEAF_BLOCKS as u64, volume.info.id);
            leaf += leaves;
            if let Some((_, Some(page))) = self.leaf_at(id, lba) {
                let work = Work::Leaf { volume: id, lba, page };
                let read = Next::Read(work, 1, self.geo.leaf_page_blocks());
                return (Phase::Leaves { slot, leaf }, read);
            }
        }
        (Phase::Leaves { slot, leaf }, Next::Again)
    }

    /// The leaf of `lba`, if it is in memory, and the page that says what it says.
    pub(super) fn leaf_at(&self, volume: u32, lba: u64) -> Option<(Option<u32>, Option<LeafPage>)> {
        match self.volumes.get(volume)?.map.leaf(&self.slab, lba / LEAF_BLOCKS as u64).0 {
            LeafState::Dense(index) => Some((Some(index), self.slab.get(index).page())),
            LeafState::Away(index) => Some((None, Some(self.slab.away_leaf(index).page))),
            _ => None,
        }
    }

    /// Whether the map says that a block lies at `pbn`, or may say so: a leaf that is not in
    /// memory is not read for that.
    pub(super) fn map_names(&self, volume: u32, lba: u64, pbn: u64, crc: u32) -> bool {
        let here = Mapping::Block { pbn, crc };
        self.volumes.get(volume).is_some_and(|volume| {
            volume.map.is_away(&self.slab, Lba(lba)) || volume.map.get(&self.slab, Lba(lba)) == here
        })
    }

    fn next_copy(&self, next: u32) -> (Phase, Next) {
        let copy = self.counted_copies().filter(|copy| copy.of >= next).min_by_key(|copy| copy.of);
        let Some(copy) = copy else { return (Phase::Segments { next: 0 }, Next::Again) };
        if self.compaction.is_some() || !self.may_take_summary() {
            return (Phase::Copies { next }, Next::Wait);
        }
        let read = Next::Read(Work::Copy(copy), 1, self.geo.shape.summary_blocks());
        (Phase::Copies { next: copy.of + 1 }, read)
    }

    fn next_segment(&mut self, bufs: &impl Buffers, next: u32) -> (Phase, Next) {
        if next == self.segs.len() {
            return (Phase::Later { next: 0 }, Next::Again);
        }
        let after = Phase::Segments { next: next + 1 };
        match self.segs.row(next).state {
            SegmentState::Sealed => match self.summary_read(next) {
                Some(read) => (after, read),
                None => (Phase::Segments { next }, Next::Wait),
            },
            SegmentState::Open => {
                self.list_open(bufs, next);
                (after, Next::Again)
            }
            SegmentState::Sealing => {
                if let Some(run) = &mut self.scrub.run {
                    run.later.push(next);
                }
                (after, Next::Again)
            }
            _ => (after, Next::Again),
        }
    }

    fn next_later(&mut self, bufs: &impl Buffers, next: usize) -> (Phase, Next) {
        let segment = self.scrub.run.as_ref().and_then(|run| run.later.get(next).copied());
        let Some(segment) = segment else { return (Phase::Repair, Next::Wait) };
        let (here, after) = (Phase::Later { next }, Phase::Later { next: next + 1 });
        match self.segs.row(segment).state {
            SegmentState::Sealed => match self.summary_read(segment) {
                Some(read) => (after, read),
                None => (here, Next::Wait),
            },
            SegmentState::Sealing => {
                self.flush.want();
                (here, Next::Wait)
            }
            SegmentState::Open => {
                self.list_open(bufs, segment);
                (after, Next::Again)
            }
            _ => (after, Next::Again),
        }
    }

    /// Whether there is a buffer for a summary. Those that are left are for sealing, and for the
    /// cleaner.
    fn may_take_summary(&self) -> bool {
        self.summaries.len() > CLEAN_SUMMARIES + 1
    }

    /// The read of a segment's summary; `None` if there is no buffer for it now.
    fn summary_read(&self, segment: u32) -> Option<Next> {
        if !self.may_take_summary() {
            return None;
        }
        let generation = self.segs.row(segment).generation;
        let work = Work::Summary { segment, generation };
        Some(Next::Read(work, 1, self.geo.shape.summary_blocks()))
    }

    /// Lists the blocks of the segment that user writes go to; those of the cleaner's outputs are
    /// named by nothing yet.
    fn list_open(&mut self, bufs: &impl Buffers, segment: u32) {
        let Some(mut run) = self.scrub.run.take() else { return };
        self.begin_list(&mut run, segment);
        run.asking = (self.slab.away() > 0).then_some((0, 0));
        run.named.clear();
        if let Some(open) = self.open.iter().flatten().find(|open| open.segment == segment) {
            for block in 0..open.next {
                let (lsn, entry) = open.entry(bufs, block);
                let pbn = self.geo.pbn(segment, block);
                let (lba, crc) = (entry.lba, entry.crc);
                let volume = self.volumes.owner(entry.volume, lsn, lba / LEAF_BLOCKS as u64);
                if self.map_names(volume, lba, pbn, crc) {
                    run.named.push(Named { block, volume, lba, crc });
                }
            }
        }
        self.scrub.run = Some(run);
    }

    /// Strikes those blocks off the list that leaves which were not in memory don't name.
    fn ask_leaves(&mut self, mut asked: usize, mut named: usize) -> Next {
        let Some(mut run) = self.scrub.run.take() else { return Next::Wait };
        while let Some(&block) = run.named.get(asked) {
            let Named { volume, lba, crc, .. } = block;
            // Of a leaf that can't be read nobody knows: the block is read to be sure.
            if self.leaves_here(volume, Lba(lba), 1, true) == Paging::Coming {
                break;
            }
            if self.map_names(volume, lba, self.geo.pbn(run.segment, block.block), crc) {
                run.named[named] = block;
                named += 1;
            }
            asked += 1;
        }
        let over = asked == run.named.len();
        run.asking = (!over).then_some((asked, named));
        if over {
            run.named.truncate(named);
        }
        self.scrub.run = Some(run);
        if over { Next::Again } else { Next::Wait }
    }

    /// Looks a little further through the maps for blocks of `segment`, since its summary can't
    /// say which there are; ends with a list of them.
    fn search_maps(&mut self, segment: u32, slot: usize, leaf: u64) -> Next {
        if let Some(volume) = self.volumes.slot(slot)
            && let LeafState::Away(away) = volume.map.leaf(&self.slab, leaf).0
        {
            let (id, page) = (volume.info.id, self.slab.away_leaf(away).page);
            // A leaf that can't be read is passed over: its own damage is reported.
            if self.request_leaf(id, leaf, page) == Paging::Coming {
                return Next::Wait;
            }
        }
        let Some(mut run) = self.scrub.run.take() else { return Next::Wait };
        run.search = match self.volumes.slot(slot) {
            _ if slot == self.volumes.slots() => {
                run.named.sort_unstable_by_key(|named| named.block);
                self.begin_list(&mut run, segment);
                None
            }
            Some(volume) if leaf < volume.map.leaves() => {
                let (state, leaves) = volume.map.leaf(&self.slab, leaf);
                if let LeafState::Dense(index) = state
                    && volume.map.is_different(leaf)
                {
                    for i in (0..LEAF_BLOCKS).filter(|&i| self.slab.get(index).owns(i)) {
                        let Mapping::Block { pbn, crc } = self.slab.get(index).get(i) else {
                            continue;
                        };
                        let (found, block) = self.geo.locate(pbn);
                        if found == segment {
                            let lba = leaf * LEAF_BLOCKS as u64 + i as u64;
                            run.named.push(Named { block, volume: volume.info.id, lba, crc });
                        }
                    }
                }
                Some((segment, slot, leaf + leaves))
            }
            _ => Some((segment, slot + 1, 0)),
        };
        self.scrub.run = Some(run);
        Next::Again
    }

    /// The list that is made now is of the segment as it is.
    pub(super) fn begin_list(&self, run: &mut Run, segment: u32) {
        let generation = self.segs.row(segment).generation;
        (run.segment, run.generation, run.next) = (segment, generation, 0);
    }

    /// The next blocks of the segment at hand: a run of those that the map still names.
    fn next_run(&mut self) -> Option<Next> {
        let run = self.scrub.run.as_ref()?;
        let (segment, mut from) = (run.segment, run.next);
        let row = self.segs.row(segment);
        let filled = [SegmentState::Open, SegmentState::Sealing, SegmentState::Sealed];
        if row.generation != run.generation || !filled.contains(&row.state) {
            // It was emptied meanwhile. Of a leaf that is not in memory that can't be told.
            return None;
        }
        let named = |n: &Named| {
            let pbn = self.geo.pbn(segment, n.block);
            self.map_names(n.volume, n.lba, pbn, n.crc)
        };
        while run.named.get(from).is_some_and(|n| !named(n)) {
            from += 1;
        }
        let mut end = from;
        while let Some(n) = run.named.get(end)
            && n.block - run.named[from].block < SCRUB_BLOCKS
            && (end == from || n.block - run.named[end - 1].block <= CLEAN_GAP_BLOCKS)
        {
            end += 1;
        }
        let found = (end > from).then(|| {
            let first = run.named[from].block;
            let blocks = run.named[end - 1].block - first + 1;
            Next::Read(Work::Blocks { segment, from, first }, end - from, blocks)
        });
        if let Some(run) = &mut self.scrub.run {
            run.next = end;
        }
        found
    }
}
