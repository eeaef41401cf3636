//! Clean stop: what is under way ends, what only the journal knows goes to the metadata chain,
//! and a superblock says that the journal holds nothing.

use crate::engine::Engine;
use crate::format::meta::RECORD_BYTES;
use crate::format::record::write_bytes;
use crate::format::superblock::{FLAG_CLEAN, Superblock};
use crate::limits::USER_STREAMS;
use crate::segment::SealStage;
use flagstone_block::Buffers;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Running,
    Draining,
    KeepingOpenSegments,
    WritingPages,
    Flushing(u64),
    Superblock,
    Finished,
    Stopped,
}

#[derive(Debug)]
pub(crate) struct Stop {
    stage: Stage,
}

impl Stop {
    pub(crate) fn new() -> Self {
        Self { stage: Stage::Running }
    }

    pub(crate) fn is_begun(&self) -> bool {
        self.stage != Stage::Running
    }

    /// Whether the journal has ended: the superblock that is to come says that it holds nothing.
    pub(crate) fn has_drained(&self) -> bool {
        !matches!(self.stage, Stage::Running | Stage::Draining)
    }
}

impl Engine {
    /// Begins a clean stop: refuses new requests, ends those under way. Go on pumping until
    /// [`Engine::is_stopped`].
    pub fn shutdown(&mut self) {
        if !self.stop.is_begun() {
            self.stop.stage = Stage::Draining;
            self.set_full_wait_ns(0);
        }
    }

    /// Whether the stop has ended and every buffer was given back.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.stage == Stage::Stopped
    }

    /// Whether a stop leaves what was deleted to the next opening, which knows of it: taking it apart may need every page of
    /// its map. Nobody who was accepted waits for the space.
    pub(crate) fn leaves_deleted(&self) -> bool {
        if !self.stop.is_begun() {
            return false;
        }
        let waits = !self.rmws.is_idle()
            || self.failures.has_again()
            || !self.shrinks.is_empty()
            // Leaves of deleted volumes make room only when these are taken apart; and what was not counted of them yet, and
            // can't be, is counted no more then.
            || self.stop_wants_pages()
            || (self.is_counting() && !self.graves.is_empty());
        !waits
    }

    pub(crate) fn advance_stop(&mut self, bufs: &mut impl Buffers) {
        let stage = self.stop.stage;
        match stage {
            Stage::Draining => {
                let durable = |jseq: u64| jseq < self.journal.durable;
                let sealed = self
                    .sealing
                    .iter()
                    .all(|s| matches!(s.stage, SealStage::Logged(jseq) if durable(jseq)));
                let durable = self.journal.durable == self.journal.next;
                let logged = self.is_quiet() && sealed && durable;
                let quiet = logged
                    && self.rmws.is_idle()
                    && self.compaction.is_none()
                    && !self.rebuild.writing
                    && self.shrinks.is_empty()
                    && self.change.is_none()
                    && !self.stop_wants_checkpoint()
                    && !self.failures.has_again()
                    && self.cleaner.is_idle()
                    && self.scrub.is_idle();
                if quiet && self.open_segments_fit_chain() {
                    self.stop.stage = Stage::KeepingOpenSegments;
                } else if quiet {
                    for stream in 0..USER_STREAMS {
                        self.seal_open(bufs, stream);
                    }
                } else if !(logged && self.leaf_loader.is_reading()) {
                    // A page that is being read needs no flush, and one after the other could keep
                    // it from being read.
                    self.flush.want();
                }
            }
            Stage::KeepingOpenSegments if self.keep_open_segments(bufs) => {
                self.meta.close_page(bufs, &self.geo, &mut self.segs, self.pool_tag);
                self.stop.stage = Stage::WritingPages;
            }
            Stage::WritingPages => {
                if self.meta.is_written() {
                    self.stop.stage = Stage::Flushing(self.flush.want());
                } else {
                    self.flush.want();
                }
            }
            Stage::Flushing(number) if self.flush.is_past(number) => {
                // A turn of the ring ahead, so that no block on the device counts any more, not
                // even one that recovery could not read.
                let journal_start = self.journal.next + self.journal.ring;
                let superblock = Superblock { journal_start, ..self.superblock(FLAG_CLEAN) };
                self.begin_superblock(bufs, superblock);
                self.stop.stage = Stage::Superblock;
            }
            Stage::Superblock if self.super_write.take_done() => self.stop.stage = Stage::Finished,
            _ => {}
        }
        self.again |= stage != self.stop.stage;
    }

    /// Whether the chain has pages for the records of the open segments' blocks. If a nearly full
    /// pool could not give it another segment, these are sealed instead.
    fn open_segments_fit_chain(&self) -> bool {
        let records = self.open.iter().flatten().map(|open| (open.next - open.in_meta) as usize);
        let records: usize = records.sum();
        let per_page = RECORD_BYTES / write_bytes(1);
        records == 0 || self.meta.pages_ahead() as usize > records.div_ceil(per_page)
    }

    /// Gives the buffers back once nothing uses them; a failed pool stops without ceremony.
    pub(crate) fn finish_stop(&mut self, bufs: &mut impl Buffers) {
        let over = match self.stop.stage {
            Stage::Finished => true,
            Stage::Running | Stage::Stopped => false,
            _ => self.is_read_only() && self.flight.is_empty(),
        };
        if !over || self.io_in_flight > 0 || !self.reads.is_idle() || !self.out.is_empty() {
            return;
        }
        self.stop.stage = Stage::Stopped;
        self.release_buffers(bufs);
    }

    /// Gives every buffer back.
    pub(crate) fn release_buffers(&mut self, bufs: &mut impl Buffers) {
        for batch in self.batches.drain(..) {
            batch.release(bufs);
        }
        let open = std::mem::take(&mut self.open).into_iter().flatten().map(|open| open.summary);
        let sealing = self.sealing.drain(..).filter_map(|s| s.summary);
        let orphans = self.failures.orphans.drain(..).filter_map(|orphan| orphan.open);
        let orphans = orphans.map(|open| open.summary);
        let summaries = self.summaries.drain(..).chain(sealing).chain(open).chain(orphans);
        summaries.for_each(|buffer| bufs.free(buffer));
        self.meta.release(bufs);
        if let Some(compaction) = &mut self.compaction {
            compaction.chain.release(bufs);
        }
        self.super_write.release(bufs);
        self.release_change(bufs);
        self.rmws.release(bufs);
        self.rewriter.release(bufs);
        self.cleaner.release(bufs);
        self.scrub.release(bufs);
        self.leaf_writer.release(bufs);
        self.leaf_loader.release(bufs);
    }
}
