//! Opening: from what was loaded to an engine that serves.

use super::RecoveryReport;
use super::load::{Loaded, Source, TailSegment, load, load_from};
use super::records::OwnedRecord;
use super::superblock;
use crate::batch::Batch;
use crate::clean::Cleaner;
use crate::counting::Rebuild;
use crate::degraded::Degraded;
use crate::devices::Failures;
use crate::discard::Discards;
use crate::engine::{Engine, own_blocks};
use crate::error::OpenError;
use crate::flush::FlushState;
use crate::format::journal::pool_tag;
use crate::format::segment::{ENTRY_BYTES, Entry, Footer, SegmentShape};
use crate::format::superblock::{FLAG_JOINING, Superblock};
use crate::graves::Graves;
use crate::journal::Journal;
use crate::leaf_loader::{LeafLoader, leaves_in};
use crate::leaf_writer::LeafWriter;
use crate::limits::{BATCH_BLOCKS, BATCHES, FULL_WAIT_NS, SUMMARIES, USER_STREAMS};
use crate::meta_chain::{MetaChain, NO_SEGMENT, Remains};
use crate::plant::Planted;
use crate::read::Reads;
use crate::rewrite::Rewriter;
use crate::rmw::Rmws;
use crate::scrub::Scrub;
use crate::segment::{OpenSegment, SegmentState, Summary, seal_summary};
use crate::snapshot::Heirs;
use crate::stop::Stop;
use crate::stream::user_streams;
use crate::summary_copies::SummaryCopies;
use crate::super_write::SuperWrite;
use crate::volume::{Volume, VolumeState};
use flagstone_block::{BLOCK_SIZE, BlockIo, Buffers, DeviceCommand, join_offset, split_offset};
use std::cell::Cell;
use std::collections::VecDeque;

/// Seals that may be under way; more than a flush interval's worth of segments.
const SEALING: usize = 64;

/// How a pool is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// A random number: tells this life's metadata from the leftovers of another.
    pub session: u64,
    /// Bytes of memory that the map's leaves may take; `None` for no bound. Any bound
    /// will do; a very small one makes nearly every request read a page first.
    pub map_memory: Option<u64>,
    /// The map is made from the summaries of all segments, without the pages of the last checkpoint, and
    /// a new checkpoint of it. Takes longer; for pages that are not to be trusted. What the metadata chain states,
    /// which leaves there are and what in them are holes, counts all the same: the summaries don't tell.
    pub rebuild: bool,
    /// If devices are missing, the pool is opened without them, to be read only: nothing is written, and
    /// what lies on them is an error. Otherwise it is not opened then.
    pub degraded: bool,
    /// A deliberate bug; see [`crate::plant`].
    pub planted: Planted,
}

impl Engine {
    /// Opens a pool: recovers it if it was not stopped cleanly, and takes the engine's own
    /// buffers from `bufs` (see [`own_blocks`]).
    ///
    /// # Errors
    /// See [`OpenError`]. Nothing that a later attempt needs has been changed.
    pub fn open(
        io: &mut dyn BlockIo,
        bufs: &mut impl Buffers,
        options: &OpenOptions,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        if options.degraded {
            let loaded = load_from(io, options.planted, Source::Checkpoint, true)?;
            if loaded.missing.any() {
                return Self::open_degraded(bufs, loaded, options);
            }
        }
        // After a kill the device may still hold back what is about to be read. Nothing may be
        // built on it, or given to a client, that a power cut can take away again.
        let devices = superblock(io, false, &mut RecoveryReport::default())?.devices;
        io.flush_devices(&|device| devices.is_sound(device))?;
        let source = if options.rebuild { Source::Summaries } else { Source::Checkpoint };
        let mut loaded = load(io, options.planted, source)?;
        repair_superblocks(io, &loaded)?;
        let orphans = take_orphans(&mut loaded);
        seal_old_tails(io, &mut loaded)?;
        let report = loaded.report.clone();
        let ended = loaded.journal_empty && loaded.unkept.is_empty();
        let damaged = report.rebuilt || report.meta_copies_damaged > 0;
        let unkept = std::mem::take(&mut loaded.unkept);
        let mut engine = Self::assemble(bufs, loaded, options)?;
        engine.count_reservations();
        let segments = orphans.iter().map(|tail| tail.segment).collect();
        let depends = devices.any_failed() && report.summaries > 0;
        engine.failures = Failures::new(segments, depends);
        if !ended && !damaged && !options.rebuild && engine.fits_chain(&unkept, &orphans) {
            engine.settle(io, bufs, &unkept, &orphans)?;
            if unkept.iter().any(|record| matches!(record, OwnedRecord::Seal(_))) {
                // What was sealed just now has no copy of its summary.
                engine.want_copies();
            }
        } else if !ended || report.rebuilt {
            if let Some(counting) = &mut engine.counting {
                counting.urgent = true;
            }
            engine.turn_until(io, bufs, |engine, _| !engine.may_count())?;
            if !engine.is_counting() {
                // All that is open now goes to the new chain.
                engine.open.iter_mut().flatten().for_each(|open| open.in_meta = open.next);
                if !engine.begin_compaction(bufs) {
                    return Err(OpenError::NoRoom { free: engine.segs.free() });
                }
                let ended = |engine: &Self| engine.compaction.is_none() || engine.failed.is_some();
                engine.turn_until(io, bufs, |engine, _| ended(engine))?;
            }
            if engine.is_counting() || engine.compaction.is_some() {
                // A page can't be read. Nothing was written that counts.
                engine.release_buffers(bufs);
                let session = !options.session;
                return Self::open(io, bufs, &OpenOptions { session, rebuild: true, ..*options });
            }
        }
        engine.opening = false;
        engine.segs.bury_empty(engine.applied_lsn);
        Ok((engine, report))
    }

    /// Opens what is left of a pool, to be read.
    fn open_degraded(
        bufs: &mut impl Buffers,
        mut loaded: Loaded,
        options: &OpenOptions,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        // Where their blocks lie is in the map, and nothing will be added to them.
        loaded.tails.clear();
        let report = loaded.report.clone();
        let mut engine = Self::assemble(bufs, loaded, options)?;
        engine.count_reservations();
        engine.opening = false;
        Ok((engine, report))
    }

    fn assemble(
        bufs: &mut impl Buffers,
        loaded: Loaded,
        options: &OpenOptions,
    ) -> Result<Self, OpenError> {
        let geo = loaded.geo;
        let memory = OpenError::Memory { blocks: own_blocks(&geo) };
        let mut take = |blocks: u32| bufs.alloc(blocks).ok_or(memory);
        let mut batches = Vec::with_capacity(BATCHES + 1);
        for _ in 0..=BATCHES {
            let mut data = [take(BATCH_BLOCKS)?; USER_STREAMS];
            for buffer in &mut data[1..] {
                *buffer = take(BATCH_BLOCKS)?;
            }
            batches.push(Batch::new(data, take(1)?));
        }
        let mut summaries = Vec::with_capacity(SUMMARIES);
        for _ in 0..SUMMARIES {
            summaries.push(take(geo.shape.summary_blocks())?);
        }
        let super_buffers = [take(1)?, take(1)?];
        let change_buffer = take(1)?;
        let rmws = Rmws::new(bufs, Self::guards_off(options.planted)).ok_or(memory)?;
        let cleaner = Cleaner::new(bufs, &geo).ok_or(memory)?;
        let leaf_writer = LeafWriter::new(bufs).ok_or(memory)?;
        let scrub = Scrub::new(bufs).ok_or(memory)?;
        let rewriter = Rewriter::new(bufs).ok_or(memory)?;
        let limit = options.map_memory.map(leaves_in);
        let leaf_loader = LeafLoader::new(bufs, limit).ok_or(memory)?;
        let mut segs = loaded.replay.segs;
        segs.index_free();
        let superblock = loaded.superblock;
        let mut chain = loaded.chain;
        if chain.next_segment == NO_SEGMENT {
            chain.next_segment = segs.take(SegmentState::Meta).unwrap_or(NO_SEGMENT);
        }
        let meta_baseline = chain.segments.len();
        let meta = MetaChain::new(
            bufs,
            superblock.meta_epoch,
            superblock.meta_nonce,
            chain.segments,
            chain.next_segment,
            (chain.index, chain.page, chain.prev_crc),
            geo.pages(),
        )
        .ok_or(memory)?;
        let mut next_generation = loaded.next_generation;
        // The newest goes to the first stream: which was whose is not known any more.
        let mut open = [const { None }; USER_STREAMS];
        for (open, tail) in open.iter_mut().zip(loaded.tails.iter().rev()) {
            let summary = summaries.pop().expect("several were taken");
            segs.row_mut(tail.segment).generation = next_generation;
            *open = Some(resume(bufs, tail, summary, next_generation, loaded.next_jseq));
            next_generation += 1;
        }
        let kept = loaded.replay.volumes.iter().map(Volume::kept).sum();
        let touched = loaded.replay.volumes.iter().map(|v| v.map.touched()).sum();
        // Children first: one of them may be half taken apart, and its parent's children must not be
        // looked for in what is left of it.
        let volumes = &loaded.replay.volumes;
        let dies = |id: &u32| volumes.get(*id).is_some_and(|v| v.state == VolumeState::Dying);
        let dying: Vec<u32> =
            volumes.parents_first(u64::MAX).into_iter().rev().filter(dies).collect();
        let (out, done) = Self::new_queues();
        let mut engine = Self {
            geo,
            devices: superblock.devices,
            pool: superblock.pool_uuid,
            pool_tag: pool_tag(&superblock.pool_uuid),
            session: options.session,
            planted: options.planted,
            now_ns: 0,
            out,
            done,
            io_in_flight: 0,
            segs,
            slab: loaded.replay.slab,
            volumes: loaded.replay.volumes,
            next_volume: loaded.next_volume,
            graves: Graves::default(),
            dying: VecDeque::new(),
            leaving: Vec::new(),
            heirs: Heirs::default(),
            forks: VecDeque::new(),
            spare_forks: Vec::new(),
            spare_frozen: Vec::new(),
            kept,
            space: Default::default(),
            shrinks: VecDeque::new(),
            change: None,
            change_buffer,
            failures: Failures::default(),
            evacuation: Default::default(),
            full_wait_ns: FULL_WAIT_NS,
            stall: None,
            touched,
            next_lsn: loaded.last_lsn + 1,
            applied_lsn: loaded.last_lsn,
            next_generation,
            open,
            sealing: Vec::with_capacity(SEALING),
            summaries,
            batches,
            spare_batches: (0..=BATCHES as u32).rev().collect(),
            filling: None,
            leaves_coming: 0,
            flight: VecDeque::with_capacity(BATCHES + 1),
            journal: Journal::new(geo.journal_blocks, loaded.next_jseq, loaded.next_jseq, 0),
            meta,
            meta_baseline,
            meta_remains: Some(Remains::new(2 * meta_baseline + 16)),
            compaction: None,
            leaf_writer,
            leaf_loader,
            counting: loaded.replay.counting,
            rebuild: Rebuild::default(),
            degraded: Degraded::new(loaded.missing),
            needs: Cell::default(),
            summary_copies: SummaryCopies::new(loaded.replay.summaries > 0, loaded.replay.copied),
            log_since: loaded.replay.log_since,
            super_write: SuperWrite::new(super_buffers, superblock),
            flush: FlushState::new(loaded.last_lsn),
            reads: Reads::default(),
            rmws,
            rewriter,
            cleaner,
            discards: Discards::default(),
            scrub,
            again: false,
            opening: true,
            failed: None,
            failed_device: None,
            stop: Stop::new(),
            counters: Default::default(),
        };
        dying.into_iter().for_each(|id| engine.may_die(id));
        Ok(engine)
    }
}

/// Goes on filling a segment that was not full, so that neither a restart nor a crash wastes
/// its rest. Its records move to the metadata chain.
fn resume(
    bufs: &mut impl Buffers,
    tail: &TailSegment,
    summary: flagstone_block::Buffer,
    generation: u64,
    next_jseq: u64,
) -> OpenSegment {
    let mut open = OpenSegment {
        segment: tail.segment,
        generation,
        next: 0,
        first_lsn: 0,
        last_lsn: 0,
        first_jseq: next_jseq,
        summary,
        in_meta: tail.in_meta,
    };
    for block in &tail.blocks {
        open.push(bufs, block.lsn, block.entry());
    }
    open
}

impl super::load::TailBlock {
    fn entry(&self) -> Entry {
        Entry {
            volume: self.volume,
            crc: self.crc,
            lba: self.lba,
            vseq: self.vseq,
            lsn_delta: 0,
            source: None,
        }
    }
}

/// Writes the superblock that counts to those of its places that don't hold it: because they are
/// damaged, or because a crash cut its update short, so that there is one copy only. Those of the
/// other slot are older and are replaced by the next update; but where one can't be read nobody knows
/// that. It may be the first copy of an update that was cut short, and must not be there again, as the
/// newest, after what it names was overwritten: it is replaced now. Doing it twice is harmless.
fn repair_superblocks(io: &mut dyn BlockIo, loaded: &Loaded) -> Result<(), OpenError> {
    let superblock = &loaded.superblock;
    let (mut block, mut found) = ([0; BLOCK_SIZE], [0; BLOCK_SIZE]);
    let mut repaired = false;
    for device in loaded.geo.sound_devices() {
        for offset in loaded.geo.superblock_places(device, superblock.generation) {
            superblock.on(device).encode(split_offset(offset).1, &mut block);
            if io.read_at(offset, &mut found).is_err() || found != block {
                io.write_at(offset, &block)?;
                repaired = true;
            }
        }
    }
    let sound = |device: usize| superblock.devices.is_sound(device);
    if repaired {
        io.flush_devices(&sound)?;
    }
    let mut replaced = false;
    for device in loaded.geo.sound_devices() {
        let [one, two, _] = loaded.geo.superblock_places(device, superblock.generation + 1);
        for offset in [one, two] {
            let position = split_offset(offset).1;
            let mut read = || match io.read_at(offset, &mut found) {
                Ok(()) => Superblock::decode(position, &found).ok(),
                Err(_) => None,
            };
            match read().or_else(read) {
                // It could not be read before.
                Some(newer)
                    if newer.generation > superblock.generation
                        && newer.flags & FLAG_JOINING == 0 =>
                {
                    let (generation, epoch) = (superblock.generation, newer.meta_epoch);
                    return Err(OpenError::SuperblockStale { generation, epoch });
                }
                Some(_) => continue,
                None => {}
            }
            superblock.on(device).encode(position, &mut block);
            io.write_at(offset, &block)?;
            replaced = true;
        }
    }
    if replaced {
        io.flush_devices(&sound)?;
    }
    Ok(())
}

/// Writes the summaries of unsealed segments but for the newest that are not full, one per stream:
/// those are resumed. Their entries lie where nothing else does, so doing it twice is harmless.
/// Their seals come after everything that counts.
fn seal_old_tails(io: &mut dyn BlockIo, loaded: &mut Loaded) -> Result<(), OpenError> {
    let shape = loaded.geo.shape;
    let mut resumed = Vec::new();
    for tail in std::mem::take(&mut loaded.tails).into_iter().rev() {
        let full = tail.blocks.len() as u32 == shape.data_blocks;
        let list = if full || resumed.len() == user_streams(&loaded.geo) {
            &mut loaded.tails
        } else {
            &mut resumed
        };
        list.push(tail);
    }
    resumed.reverse();
    let mut summary = vec![0; shape.summary_blocks() as usize * BLOCK_SIZE];
    let sealed = !loaded.tails.is_empty();
    for tail in loaded.tails.drain(..) {
        let (Some(first), Some(last)) = (tail.blocks.first(), tail.blocks.last()) else { continue };
        for (i, block) in tail.blocks.iter().enumerate() {
            let lsn_delta = u32::try_from(block.lsn - first.lsn)
                .map_err(|_| OpenError::Record { lsn: block.lsn })?;
            Entry { lsn_delta, ..block.entry() }
                .encode(&mut summary[i * ENTRY_BYTES..(i + 1) * ENTRY_BYTES]);
        }
        let generation = loaded.next_generation;
        loaded.next_generation += 1;
        let described = Summary {
            segment: tail.segment,
            generation,
            first_lsn: first.lsn,
            last_lsn: last.lsn,
            mean_lsn: first.lsn.midpoint(last.lsn),
            entries: tail.blocks.len() as u16,
            class: 0,
        };
        let pool = &loaded.superblock.pool_uuid;
        let footer_crc = seal_summary(&mut summary, pool, &shape, &described);
        let offset = loaded.geo.segment_offset(tail.segment, shape.data_blocks);
        // One that says the same stays: its seal may be logged, where it could not be read just now, and count at the
        // next opening if this one dies.
        let there = summary_there(io, offset, pool, &shape, &described, &summary);
        let (generation, footer_crc) = match there {
            Some((there, crc)) if there.generation < generation => (there.generation, crc),
            _ => {
                io.write_at(offset, &summary)?;
                (generation, footer_crc)
            }
        };
        let row = loaded.replay.segs.row_mut(tail.segment);
        row.state = SegmentState::Sealed;
        row.entries = tail.blocks.len() as u16;
        row.generation = generation;
        row.first_lsn = first.lsn;
        row.mean_lsn = described.mean_lsn;
        row.footer_crc = footer_crc;
        let seal = row.seal(tail.segment, loaded.valid_lsn, false, None);
        loaded.unkept.push(OwnedRecord::Seal(seal));
    }
    loaded.tails.extend(resumed);
    if sealed {
        let devices = loaded.superblock.devices;
        io.flush_devices(&|device| devices.is_sound(device))?;
    }
    Ok(())
}

/// The footer of a summary at `offset` that has the entries of `summary`, and its checksum.
fn summary_there(
    io: &mut dyn BlockIo,
    offset: u64,
    pool: &[u8; 16],
    shape: &SegmentShape,
    described: &Summary,
    summary: &[u8],
) -> Option<(Footer, u32)> {
    let mut there = vec![0; summary.len()];
    io.read_at(offset, &mut there).ok()?;
    let table = summary.len() - BLOCK_SIZE;
    let (footer, crc) = Footer::decode(pool, described.segment, shape, &there[table..]).ok()?;
    let used = usize::from(described.entries) * ENTRY_BYTES;
    let same = (footer.first_lsn, footer.last_lsn, footer.entries, footer.class)
        == (described.first_lsn, described.last_lsn, described.entries, described.class)
        && there[..used] == summary[..used]
        && footer.entries_crc == crate::format::crc32(&summary[..used]);
    same.then_some((footer, crc))
}

/// Takes the unsealed segments that lie on devices which failed: they are not filled any more, nor do they get
/// a summary (see `devices/failed.rs`).
fn take_orphans(loaded: &mut Loaded) -> Vec<TailSegment> {
    let failed = |tail: &TailSegment| {
        loaded.geo.device_of(tail.segment).is_some_and(|device| loaded.geo.extents[device].failed)
    };
    let (orphans, tails) = std::mem::take(&mut loaded.tails).into_iter().partition(failed);
    loaded.tails = tails;
    let orphans: Vec<TailSegment> = orphans;
    for tail in &orphans {
        let row = loaded.replay.segs.row_mut(tail.segment);
        row.state = SegmentState::Sealed;
        row.entries = tail.blocks.len() as u16;
        row.generation = loaded.next_generation;
        row.first_lsn = tail.blocks.first().map_or(0, |block| block.lsn);
        row.mean_lsn = row.first_lsn.midpoint(tail.blocks.last().map_or(0, |block| block.lsn));
        loaded.next_generation += 1;
    }
    orphans
}

/// Performs the engine's commands one by one; returns whether there were any.
pub(super) fn drive(
    io: &mut dyn BlockIo,
    bufs: &mut impl Buffers,
    engine: &mut Engine,
) -> Result<bool, OpenError> {
    let mut moved = false;
    while let Some(command) = engine.next_io() {
        moved = true;
        // A read that fails is no failure of the pool: the engine tries again, or does without.
        let read = matches!(command.command, DeviceCommand::Read { .. });
        let at = |offset| join_offset(usize::from(command.device), offset);
        let result = match command.command {
            DeviceCommand::Read { offset, buffer } => {
                io.read_at(at(offset), bufs.bytes_mut(buffer))
            }
            DeviceCommand::Write { offset, buffer } => io.write_at(at(offset), bufs.bytes(buffer)),
            DeviceCommand::Flush => {
                io.flush_devices(&|device| device == usize::from(command.device))
            }
            // There are none during an opening.
            DeviceCommand::Discard { .. } => Ok(()),
        };
        engine.device_done(bufs, command.token, result);
        if !read {
            result?;
        }
    }
    Ok(moved)
}
