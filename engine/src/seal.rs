//! Sealing segments, and freeing those in which nothing is live.

use crate::batch::Effect;
use crate::engine::Engine;
use crate::format::record::{Record, SEGMENT_SEAL_BYTES};
use crate::format::segment::{ENTRY_BYTES, Footer};
use crate::leaf_loader::Paging;
use crate::limits::RECLAIM_LEAVES;
use crate::map::{LeafState, Reclaim};
use crate::plant::Plant;
use crate::segment::{SealStage, Sealing, SegmentState};
use flagstone_block::{BLOCK_SIZE, Buffers};

const SEGMENT_FREE_BYTES: usize = 32;
/// Leaves of a map that no longer counts let go in one turn.
const FORK_LEAVES: usize = 256;
/// Forks whose memory is kept for the next checkpoint.
const SPARE_FORKS: usize = 64;

impl Engine {
    /// Ends the open segment of a stream: sends its last batch and its summary.
    pub(crate) fn seal_open(&mut self, bufs: &mut impl Buffers, stream: usize) {
        self.close_batch(bufs);
        let Some(open) = self.open[stream].take() else { return };
        let shape = self.geo.shape;
        let footer_crc = open.close(bufs, &self.pool, &shape);
        let row = self.segs.row_mut(open.segment);
        row.state = SegmentState::Sealing;
        row.entries = open.next as u16;
        row.first_lsn = open.first_lsn;
        row.mean_lsn = open.described().mean_lsn;
        row.footer_crc = footer_crc;
        let generation = row.generation;
        let writes = self.write_summary(open.segment, generation, open.summary);
        self.sealing.push(Sealing {
            segment: open.segment,
            summary: Some(open.summary),
            first_jseq: open.first_jseq,
            last_jseq: self.journal.next - 1,
            resumed: open.in_meta > 0,
            moved: false,
            stage: SealStage::Writing,
            writes,
        });
    }

    /// The footer and the entries of a sealed segment's summary; `None` if it is not the one that
    /// the seal record names.
    pub(crate) fn summary_entries<'a>(
        &self,
        segment: u32,
        summary: &'a [u8],
    ) -> Option<(Footer, &'a [u8])> {
        let shape = self.geo.shape;
        let summary = &summary[..shape.summary_blocks() as usize * BLOCK_SIZE];
        let (table, footer) = summary.split_at(shape.entry_blocks as usize * BLOCK_SIZE);
        let (footer, crc) = Footer::decode(&self.pool, segment, &shape, footer).ok()?;
        let entries = &table[..usize::from(footer.entries) * ENTRY_BYTES];
        let row = self.segs.row(segment);
        // A row may have what it had in an earlier life, if it never got a summary in this one.
        let right = (crc, footer.generation) == (row.footer_crc, row.generation)
            && crate::format::crc32(entries) == footer.entries_crc;
        right.then_some((footer, entries))
    }

    pub(crate) fn summary_written(&mut self, segment: u32) {
        if let Some(sealing) = self.sealing.iter_mut().find(|s| s.segment == segment) {
            sealing.writes -= 1;
            if sealing.writes > 0 {
                return;
            }
            let unflushed = self.planted.has(Plant::SealBeforeFlush)
                || (sealing.moved && self.planted.has(Plant::SealMovedBeforeFlush));
            sealing.stage = if unflushed { SealStage::Durable } else { SealStage::Written };
            self.summaries.extend(sealing.summary.take());
            if sealing.moved && self.planted.has(Plant::SwitchBeforeSeal) {
                self.switch_early(segment);
            }
        }
    }

    /// Logs the seal record of segments whose data and summary are durable.
    pub(crate) fn advance_seals(&mut self, bufs: &mut impl Buffers) {
        let durable = self.journal.durable;
        self.sealing.retain(|s| !matches!(s.stage, SealStage::Logged(jseq) if jseq < durable));
        for k in 0..self.sealing.len() {
            if self.sealing[k].stage != SealStage::Durable
                || self.sealing[k].last_jseq >= self.journal.retired
            {
                continue;
            }
            let Ok(batch) = self.batch_with_room(bufs, SEGMENT_SEAL_BYTES, true) else { return };
            let segment = self.sealing[k].segment;
            let row = *self.segs.row(segment);
            let copy = self.summary_copies.of(segment, row.generation);
            self.log(bufs, batch, Effect::SegmentSeal { segment }, |lsn| {
                Record::SegmentSeal(row.seal(segment, lsn, false, copy))
            });
            self.sealing[k].stage = SealStage::Logged(self.batch_jseq(batch));
        }
    }

    /// Logs the free record of dead segments whose superseding records are durable.
    pub(crate) fn advance_segments(&mut self, bufs: &mut impl Buffers) {
        // A read that ends late may let go of a dead segment; the next opening frees it.
        if self.stop.has_drained() {
            return;
        }
        let lsn_durable =
            if self.planted.has(Plant::ReuseTooSoon) { u64::MAX } else { self.flush.lsn_durable };
        while let Some(segment) = self.segs.next_dead(lsn_durable) {
            let Ok(batch) = self.batch_with_room(bufs, SEGMENT_FREE_BYTES, true) else { return };
            let generation = self.segs.row(segment).generation;
            self.log(bufs, batch, Effect::SegmentFree { segment }, |lsn| Record::SegmentFree {
                segment,
                lsn,
                generation,
            });
            self.segs.freed(self.batch_jseq(batch));
            self.counters.segments_freed += 1;
            if self.planted.has(Plant::ReuseTooSoon) {
                self.segs.settle(u64::MAX);
            }
        }
        // With no segment to spare, the way to free is worth a flush of its own.
        if self.segs.free() <= self.floor() + 1
            && (self.is_quiet() || !self.cleaner.is_idle())
            && (self.segs.dead_waits_for().is_some_and(|lsn| lsn > self.flush.lsn_durable)
                || self.segs.has_freeing(self.journal.retired))
        {
            self.flush.want();
        }
    }

    /// Takes deleted volumes apart, a few leaves per turn.
    pub(crate) fn advance_reclaim(&mut self) {
        if self.graves.is_empty() {
            return;
        }
        // Many small volumes may take no longer than a large one.
        for _ in 0..RECLAIM_LEAVES {
            let (segs, geo, lsn) = (&mut self.segs, self.geo, self.applied_lsn);
            let mut dead = |pbn| segs.died(geo.locate(pbn).0, lsn);
            let (slab, leaves) = (&mut self.slab, RECLAIM_LEAVES);
            let taken = self.graves.reclaim(|map| {
                let before = map.dense();
                let reclaim = map.reclaim(slab, leaves, &mut dead);
                (map.volume(), before - map.dense(), reclaim)
            });
            let Some((volume, taken, reclaim)) = taken else { return };
            match reclaim {
                Reclaim::Done => {
                    self.graves.pop();
                    if self.graves.is_empty() {
                        self.graves_are_empty();
                    }
                }
                Reclaim::GoOn => return,
                Reclaim::Away(leaf) if self.reclaim_away(volume, leaf) => {}
                Reclaim::Away(_) => return,
            }
            if taken > 1 {
                return;
            }
        }
    }

    /// Takes the maps that a checkpoint has stated apart, a few leaves per turn.
    pub(crate) fn advance_forks(&mut self) {
        let Some(fork) = self.forks.front_mut() else { return };
        if fork.let_go(&mut self.slab, FORK_LEAVES)
            && let Some(fork) = self.forks.pop_front()
            && self.spare_forks.len() < SPARE_FORKS
        {
            self.spare_forks.push(fork);
        }
    }

    /// The next leaf of a deleted volume is not in memory; returns whether it is gone without being
    /// read. It needs no room: it may be that volume's leaves that there is none for.
    fn reclaim_away(&mut self, volume: u32, leaf: u64) -> bool {
        let state = self.graves.get(volume).map(|map| map.leaf(&self.slab, leaf).0);
        let Some(LeafState::Away(away)) = state else { return false };
        if self.forget_uncounted(volume, leaf) {
            return true;
        }
        let page = self.slab.away_leaf(away).page;
        let bad = self.request_reclaim(volume, leaf, page) == Paging::Bad;
        if bad {
            self.graves.give_up(&mut self.slab, volume, leaf);
        }
        bad
    }

    /// Moves the journal's tail when the ring is filling up, a block of it is damaged, or it lies on a
    /// device that is to be removed: whatever holds it is pushed on to
    /// where it no longer needs the journal, then a block that claims the new tail is written.
    pub(crate) fn relieve_journal(&mut self, bufs: &mut impl Buffers) {
        // What a stop has found in the journal goes to the chain; what was logged now would be lost with the rest of it.
        if self.stop.has_drained() {
            return;
        }
        let tail = self.journal.tail_durable;
        let wanted = self.scrub.wants_tail_beyond(tail)
            || self.leaving_wants_tail().is_some_and(|wanted| tail < wanted);
        if !self.journal.is_pressed() && !wanted {
            return;
        }
        let meta = self.meta.holds_tail();
        let compaction = self.compaction.as_ref().and_then(|c| c.chain.holds_tail());
        let sealing = self.sealing.iter().map(|s| s.first_jseq).min();
        let orphans = self.failures.holds_tail();
        let others =
            [meta, compaction, sealing, orphans].into_iter().flatten().min().unwrap_or(u64::MAX);
        let open = (0..).zip(&self.open).filter_map(|(i, o)| Some((o.as_ref()?.first_jseq, i)));
        if let Some((_, stream)) = open.min().filter(|&(jseq, _)| jseq <= others) {
            self.seal_open(bufs, stream);
        }
        if meta.is_some_and(|jseq| jseq < self.journal.durable) {
            self.meta.close_page(bufs, &self.geo, &mut self.segs, self.pool_tag);
        }
        if compaction.is_some_and(|jseq| jseq < self.journal.durable)
            && let Some(compaction) = &mut self.compaction
        {
            compaction.chain.close_page(bufs, &self.geo, &mut self.segs, self.pool_tag);
        }
        // One that moves nothing takes a slot for nothing; and without one nothing can be moved any more.
        let moves = self.journal_tail(self.journal.next) > self.journal.tail_retired;
        if moves && self.is_quiet() && !self.flush.is_in_flight() {
            self.force_batch(bufs);
        }
        self.flush.want();
    }
}
