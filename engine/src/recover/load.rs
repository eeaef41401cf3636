//! Reading a pool: from superblock to map, without writing.

use super::pages::{self, Pages};
use super::records::{OwnedRecord, Placed};
use super::replay::{Input, Replay, replay};
use super::{RecoveryReport, scan};
use crate::degraded::{Missing, check_journal};
use crate::error::OpenError;
use crate::format::SEQUENCE_MAX;
use crate::format::record::Seal;
use crate::format::superblock::{FLAG_CLEAN, FLAG_REBUILD, Superblock};
use crate::geometry::Geometry;
use crate::limits::{LSN_SPAN, NAME_BYTES, VOLUME_BYTES};
use crate::meta_chain::NO_SEGMENT;
use crate::plant::{Plant, Planted};
use crate::snapshot::in_full;
use crate::volume::{Cut, Volume, VolumeInfo, VolumeSettings, VolumeState, Volumes};
use flagstone_block::{BLOCK_SIZE, BlockIo, ReadAt};
use std::collections::{BTreeMap, HashMap, HashSet};

/// No pool gets here by counting. Refusing what claims so, far below the format's own bound,
/// leaves the numbers of this life room: what it writes must decode at the next opening.
const SEQUENCE_TRUSTED: u64 = SEQUENCE_MAX / 2;

/// One block of a segment that is not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TailBlock {
    pub(crate) volume: u32,
    pub(crate) lba: u64,
    pub(crate) lsn: u64,
    pub(crate) vseq: u64,
    pub(crate) crc: u32,
}

/// A segment that is not sealed, and its blocks from 0.
#[derive(Clone, Debug, Default)]
pub(crate) struct TailSegment {
    pub(crate) segment: u32,
    pub(crate) blocks: Vec<TailBlock>,
    /// The first of them that the metadata chain does not describe.
    pub(crate) in_meta: u32,
}

/// Everything that opening or checking needs.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) superblock: Superblock,
    pub(crate) geo: Geometry,
    pub(crate) replay: Replay,
    pub(crate) report: RecoveryReport,
    /// Oldest first.
    pub(crate) tails: Vec<TailSegment>,
    /// Highest LSN of any record, and of those that count.
    pub(crate) last_lsn: u64,
    pub(crate) valid_lsn: u64,
    pub(crate) next_generation: u64,
    pub(crate) next_volume: u32,
    /// First sequence number that no block on the device has.
    pub(crate) next_jseq: u64,
    pub(crate) chain: ChainEnd,
    pub(crate) journal_empty: bool,
    /// Devices that are not there.
    pub(crate) missing: Missing,
    /// What must go to the metadata chain before the journal may forget it, oldest first.
    pub(crate) unkept: Vec<OwnedRecord>,
}

/// Where the metadata chain ends.
#[derive(Clone, Debug)]
pub(crate) struct ChainEnd {
    pub(crate) segments: Vec<u32>,
    pub(crate) next_segment: u32,
    pub(crate) index: u32,
    pub(crate) page: u64,
    pub(crate) prev_crc: u32,
}

/// What the map is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The checkpoint's leaf pages, unread, and what was logged since; the summaries if the
    /// superblock says that a page is damaged.
    Checkpoint,
    /// The same with all pages read; if one is damaged, the summaries.
    Pages,
    /// The summaries of all segments.
    Summaries,
}

/// Reads everything but data and leaf pages, and the data of the unproven tail.
pub(crate) fn load(
    io: &mut dyn BlockIo,
    planted: Planted,
    source: Source,
) -> Result<Loaded, OpenError> {
    load_from(io, planted, source, false)
}

/// As [`load`]; if it may be `degraded`, without the devices that are missing.
pub(crate) fn load_from(
    io: &mut dyn BlockIo,
    planted: Planted,
    source: Source,
    degraded: bool,
) -> Result<Loaded, OpenError> {
    let mut report = RecoveryReport::default();
    let superblock = scan::superblock(io, degraded, &mut report)?;
    let geo = Geometry::of(&superblock, |device| io.device_bytes(device))?;
    let missing = Missing::of(&superblock, io);
    check_journal(&superblock, &missing)?;
    let loaded = load_log(io, planted, source, (superblock, geo, missing), report);
    loaded.map_err(|error| missing.explain(&superblock, &geo, error))
}

fn load_log(
    io: &mut dyn BlockIo,
    planted: Planted,
    source: Source,
    (superblock, geo, missing): (Superblock, Geometry, Missing),
    mut report: RecoveryReport,
) -> Result<Loaded, OpenError> {
    let journal = scan::journal(io, &geo, &superblock)?;
    let meta = scan::meta_chain(io, &geo, &superblock, journal.meta_pages, &mut report)?;
    report.meta_pages = meta.page;
    report.journal_blocks = journal.chain.len() as u64;
    report.dropped_blocks = journal.beyond;
    if journal.beyond > 0 {
        report.cut_at = Some(journal.tail + journal.chain.len() as u64);
    }
    let mut records = meta.records;
    for block in &journal.chain {
        block.records(&mut records)?;
    }
    let known_lsn = superblock.next_lsn - 1;
    let last_lsn = records.iter().map(|r| r.record.lsn()).max().unwrap_or(0).max(known_lsn);
    let next_generation = highest_generation(&records).max(superblock.next_generation);
    let next_volume = highest_volume(&records).max(superblock.next_volume);

    // None is in the chain: they were not retired.
    if superblock.devices.any_failed() && !planted.has(Plant::ReplayVoid) {
        records.retain(|record| !record.is_void(&superblock.devices, &geo));
    }

    // A page of the chain was written when everything up to its records was durable.
    let in_chain = records.iter().filter(|r| r.jseq.is_none());
    let kept_lsn = in_chain.map(|r| r.record.lsn()).max().unwrap_or(0);
    let proven = Proven { jseq: journal.flushed, lsn: kept_lsn };
    // Segment states decide which writes need proof, and the cut decides which segment records
    // count: repeat until nothing more is cut.
    let (segments, tail_writes) = loop {
        let segments = SegmentStates::of(&records, &geo)?;
        let tail_writes = segments.tail_writes(&records, &geo)?;
        let unproven = match segments.cut_before(&records, &geo) {
            Some(first) => Some(first),
            None => {
                let there: Vec<usize> = tail_writes
                    .iter()
                    .copied()
                    .filter(|&i| !records[i].lies_on(&missing, &geo))
                    .filter(|&i| {
                        records[i].failure(&superblock.devices, &geo).is_none()
                            || planted.has(Plant::ProveFailed)
                    })
                    .collect();
                let tail = if planted.has(Plant::CutAtMissing) { &tail_writes } else { &there };
                prove(io, &geo, &records, tail, proven, planted, &mut report)?
            }
        };
        let Some(first) = unproven else { break (segments, tail_writes) };
        report.cut_at = records[first].jseq;
        if planted.has(Plant::ReplaySkips) {
            records.remove(first);
        } else {
            let cut = records[first].record.lsn();
            records.retain(|r| r.jseq.is_none() || r.record.lsn() < cut);
        }
    };
    let unkept = unkept(&records);
    let valid_lsn = records.iter().map(|r| r.record.lsn()).max().unwrap_or(0);
    let tails = tail_segments(&records, &tail_writes, &geo)?;
    report.open_segments = tails.len() as u32;
    let volume_rows = volume_rows(&records, planted)?;
    report.volumes = volume_rows.iter().filter(|(.., dead)| !dead).count() as u32;
    let pages = Pages::of(&records, segments.freed, &geo)?;
    report.leaf_pages = pages.len() as u64;
    let sealed: Vec<Seal> = segments.sealed.into_values().collect();
    let in_tail: Vec<bool> = {
        let mut flags = vec![false; records.len()];
        tail_writes.iter().for_each(|&i| flags[i] = true);
        flags
    };
    let mut changes: Vec<OwnedRecord> = records
        .into_iter()
        .zip(in_tail)
        .filter(|(r, tail)| *tail || !matches!(r.record, OwnedRecord::Write { .. }))
        .map(|(r, _)| r.record)
        .collect();
    changes.sort_by_key(OwnedRecord::order);
    let chain = ChainEnd {
        segments: meta.segments,
        next_segment: if geo.has(meta.next_segment) { meta.next_segment } else { NO_SEGMENT },
        index: meta.index,
        page: meta.page,
        prev_crc: meta.prev_crc,
    };
    let input = Input {
        geo,
        pool: superblock.pool_uuid,
        sealed: &sealed,
        changes: &changes,
        chain: &chain,
        tails: &tails,
        pages: &pages,
        missing,
        planted,
    };
    let flagged = superblock.flags & FLAG_REBUILD != 0;
    let from_pages = |io: &mut dyn BlockIo, report: &mut RecoveryReport| {
        let mut replay = replay(io, &input, volumes(&volume_rows)?, Source::Checkpoint)?;
        if source == Source::Pages {
            let pool = &superblock.pool_uuid;
            replay = replay.and_then(|r| pages::read(io, &geo, pool, r, report));
        }
        Ok::<_, OpenError>(replay)
    };
    let paged = match source {
        Source::Checkpoint | Source::Pages if !flagged => from_pages(io, &mut report)?,
        _ => None,
    };
    let replay = match paged {
        Some(replay) => replay,
        None => match replay(io, &input, volumes(&volume_rows)?, Source::Summaries) {
            // A summary is worse to lose than a page: without that the pool serves all but a leaf,
            // or all if the page was refused for a moment only.
            Err(damaged @ OpenError::SummaryDamaged { .. })
                if flagged && source != Source::Summaries =>
            {
                from_pages(io, &mut report)?.ok_or(damaged)?
            }
            replay => {
                report.rebuilt = true;
                replay?.expect("only pages can be found wanting")
            }
        },
    };
    report.summaries = replay.summaries;
    let highest = [
        superblock.generation,
        superblock.meta_epoch,
        next_generation,
        last_lsn.max(replay.last_lsn),
        journal.last_seen.max(superblock.journal_start),
    ];
    let next_vseq = replay.volumes.iter().map(|volume| volume.next_vseq);
    if let Some(value) = highest.into_iter().chain(next_vseq).find(|&n| n >= SEQUENCE_TRUSTED) {
        return Err(OpenError::SequenceTooHigh { value });
    }
    let journal_empty = journal.chain.is_empty() && journal.beyond == 0;
    report.clean = journal_empty && superblock.flags & FLAG_CLEAN != 0;
    let last_jseq = journal.last_seen.max(superblock.journal_start - 1).max(journal.tail - 1);
    // A block that could not be read just now may be readable the next time. It lies within one
    // turn of the ring, and must not count any more.
    let skipped = if journal_empty { 0 } else { u64::from(geo.journal_blocks) };
    Ok(Loaded {
        superblock,
        geo,
        last_lsn: last_lsn.max(replay.last_lsn),
        valid_lsn,
        next_generation,
        next_volume: next_volume.max(replay.highest_volume.saturating_add(1)),
        next_jseq: last_jseq + 1 + skipped,
        replay,
        report,
        tails,
        chain,
        journal_empty,
        missing,
        unkept,
    })
}

/// The records that only the journal has, in its order.
fn unkept(records: &[Placed]) -> Vec<OwnedRecord> {
    let (mut only, mut in_chain) = (Vec::new(), HashMap::<u64, Vec<&OwnedRecord>>::new());
    let from_journal = |r: &&Placed| r.jseq.is_some() && r.record.kept().is_some();
    let oldest = records.iter().filter(from_journal).map(|r| r.record.lsn()).min();
    let Some(oldest) = oldest else { return only };
    for placed in records.iter().filter(|r| r.jseq.is_none() && r.record.lsn() >= oldest) {
        in_chain.entry(placed.record.lsn()).or_default().push(&placed.record);
    }
    for Placed { record, .. } in records.iter().filter(from_journal) {
        if !in_chain.get(&record.lsn()).is_some_and(|same| same.contains(&record)) {
            only.push(record.clone());
        }
    }
    only
}

fn highest_generation(records: &[Placed]) -> u64 {
    let generation = |r: &Placed| match r.record {
        OwnedRecord::Seal(Seal { generation, .. })
        | OwnedRecord::Free { generation, .. }
        | OwnedRecord::Open { generation, .. } => generation,
        _ => 0,
    };
    records.iter().map(generation).max().unwrap_or(0).saturating_add(1)
}

fn highest_volume(records: &[Placed]) -> u32 {
    let volume = |r: &Placed| match r.record {
        OwnedRecord::Volume { volume, .. }
        | OwnedRecord::Snapshot { volume, .. }
        | OwnedRecord::VolumeDelete { volume, .. } => volume,
        _ => 0,
    };
    records.iter().map(volume).max().unwrap_or(0).saturating_add(1)
}

/// Which segments are sealed, and up to which LSN each was freed.
struct SegmentStates {
    sealed: BTreeMap<u32, Seal>,
    freed: HashMap<u32, u64>,
}

impl SegmentStates {
    fn of(records: &[Placed], geo: &Geometry) -> Result<Self, OpenError> {
        let mut states = Self { sealed: BTreeMap::new(), freed: HashMap::new() };
        let mut ordered: Vec<&OwnedRecord> = records
            .iter()
            .map(|r| &r.record)
            .filter(|r| matches!(r, OwnedRecord::Seal(_) | OwnedRecord::Free { .. }))
            .collect();
        // A free record and a statement with its LSN: the statement was made before the segment
        // was freed, or it would not have been made. A seal and its statement: the pages hold what it says.
        ordered.sort_by_key(|r| match r {
            OwnedRecord::Seal(seal) => (r.lsn(), false, seal.stated),
            _ => (r.lsn(), true, false),
        });
        for record in ordered {
            match *record {
                OwnedRecord::Seal(seal) => {
                    if seal.segment >= geo.segments
                        || u32::from(seal.entries) > geo.shape.data_blocks
                    {
                        return Err(OpenError::Record { lsn: seal.lsn });
                    }
                    states.sealed.insert(seal.segment, seal);
                }
                OwnedRecord::Free { segment, lsn, .. } => {
                    if segment >= geo.segments {
                        return Err(OpenError::Record { lsn });
                    }
                    states.sealed.remove(&segment);
                    states.freed.insert(segment, lsn);
                }
                _ => {}
            }
        }
        Ok(states)
    }

    /// Writes into segments that are neither sealed nor freed since: only the journal, or the
    /// metadata chain for a resumed segment, describes them. Indices, in LSN order.
    fn tail_writes(&self, records: &[Placed], geo: &Geometry) -> Result<Vec<usize>, OpenError> {
        let mut tail = Vec::new();
        for (i, placed) in records.iter().enumerate() {
            let OwnedRecord::Write { lsn, pbn, ref crcs, .. } = placed.record else { continue };
            if !geo.is_data(pbn, crcs.len() as u32) {
                return Err(OpenError::Record { lsn });
            }
            let (segment, _) = geo.locate(pbn);
            let freed = self.freed.get(&segment).is_some_and(|&freed| lsn < freed);
            if !freed && !self.sealed.contains_key(&segment) {
                tail.push(i);
            }
        }
        tail.sort_by_key(|&i| records[i].record.lsn());
        Ok(tail)
    }

    /// The first write behind the seal of its segment: an earlier recovery could not prove it and
    /// cut the log there, but did not live to end the journal. Now that cut counts.
    fn cut_before(&self, records: &[Placed], geo: &Geometry) -> Option<usize> {
        let behind = |&i: &usize| {
            let OwnedRecord::Write { lsn, pbn, .. } = records[i].record else { return false };
            let seal = self.sealed.get(&geo.locate(pbn).0);
            records[i].jseq.is_some() && seal.is_some_and(|seal| seal.lsn < lsn)
        };
        (0..records.len()).filter(behind).min_by_key(|&i| records[i].record.lsn())
    }
}

/// What is known to be durable: journal blocks below `jseq`, and records up to `lsn`.
#[derive(Clone, Copy, Debug)]
struct Proven {
    jseq: u64,
    lsn: u64,
}

/// Reads the data of writes that no flush is known to cover; the first whose data is not there
/// is where the log is cut. Below the last known flush nothing is cut: damage there shows when it
/// is read.
fn prove(
    io: &mut dyn BlockIo,
    geo: &Geometry,
    records: &[Placed],
    tail: &[usize],
    proven: Proven,
    planted: Planted,
    report: &mut RecoveryReport,
) -> Result<Option<usize>, OpenError> {
    if planted.has(Plant::ReplayUnproven) {
        return Ok(None);
    }
    let unproven = tail.iter().copied().filter(|&i| {
        let unflushed = records[i].jseq.is_some_and(|jseq| jseq >= proven.jseq);
        unflushed && records[i].record.lsn() > proven.lsn
    });
    let unproven: Vec<usize> = unproven.collect();
    let mut bytes = vec![0; 1 << 20];
    let mut results = Vec::new();
    let mut at = 0;
    while at < unproven.len() {
        // As many records as fit the buffer, read together.
        let mut reads = Vec::new();
        let mut rest = bytes.as_mut_slice();
        let first = at;
        while at < unproven.len() {
            let OwnedRecord::Write { pbn, ref crcs, .. } = records[unproven[at]].record else {
                break;
            };
            let len = crcs.len() * BLOCK_SIZE;
            if len > rest.len() {
                break;
            }
            let (into, after) = rest.split_at_mut(len);
            rest = after;
            let (segment, block) = geo.locate(pbn);
            reads.push(ReadAt { offset: geo.segment_offset(segment, block), into });
            at += 1;
        }
        io.read_many(&mut reads, &mut results);
        for ((&i, read), result) in unproven[first..at].iter().zip(&reads).zip(&results) {
            let OwnedRecord::Write { ref crcs, .. } = records[i].record else { continue };
            report.verified_blocks += crcs.len() as u64;
            let right = result.is_ok() && matches(read.into, crcs);
            // As every read, once more before it is given up: the cut is for good.
            let right = right || {
                let mut again = vec![0; read.into.len()];
                io.read_at(read.offset, &mut again).is_ok() && matches(&again, crcs)
            };
            if !right {
                return Ok(Some(i));
            }
        }
    }
    Ok(None)
}

/// Whether every block has its checksum.
fn matches(bytes: &[u8], crcs: &[u32]) -> bool {
    let blocks = bytes.chunks_exact(BLOCK_SIZE);
    blocks.zip(crcs).all(|(block, crc)| crate::format::crc32(block) == *crc)
}

/// Gathers the blocks of each unsealed segment; they must follow each other from block 0.
fn tail_segments(
    records: &[Placed],
    tail: &[usize],
    geo: &Geometry,
) -> Result<Vec<TailSegment>, OpenError> {
    let mut by_segment: BTreeMap<u32, BTreeMap<u32, TailBlock>> = BTreeMap::new();
    let mut in_chain: HashSet<(u32, u32)> = HashSet::new();
    for &i in tail {
        let OwnedRecord::Write { volume, lsn, lba, pbn, vseq, ref crcs } = records[i].record else {
            continue;
        };
        let (segment, first) = geo.locate(pbn);
        let blocks = by_segment.entry(segment).or_default();
        for (b, &crc) in (0u32..).zip(crcs) {
            let block = TailBlock { volume, lba: lba + u64::from(b), lsn, vseq, crc };
            if records[i].jseq.is_none() {
                in_chain.insert((segment, first + b));
            }
            // A resumed segment's blocks may stand in the chain and, again, in a newer chain.
            if blocks.insert(first + b, block).is_some_and(|before| before != block) {
                return Err(OpenError::Record { lsn });
            }
        }
    }
    let mut tails = Vec::new();
    for (segment, blocks) in by_segment {
        let lsn = blocks.values().next().map_or(0, |b| b.lsn);
        let ordered = blocks.values().is_sorted_by_key(|b| b.lsn);
        let spanned =
            blocks.values().next_back().is_some_and(|b| b.lsn.saturating_sub(lsn) > LSN_SPAN);
        if !blocks.keys().copied().eq(0..blocks.len() as u32) || !ordered || spanned {
            return Err(OpenError::Record { lsn });
        }
        let kept = (0u32..).take_while(|&b| in_chain.contains(&(segment, b))).count();
        let blocks = blocks.into_values().collect();
        tails.push(TailSegment { segment, blocks, in_meta: kept as u32 });
    }
    tails.sort_by_key(|tail| tail.blocks.last().map_or(0, |b| b.lsn));
    Ok(tails)
}

/// A volume or snapshot, its next sequence number, the LSN of its record, and whether it was deleted.
type VolumeRow = (VolumeInfo, u64, u64, bool);

/// The volume table: the last word about each volume.
fn volume_rows(records: &[Placed], planted: Planted) -> Result<Vec<VolumeRow>, OpenError> {
    let mut ordered: Vec<&OwnedRecord> = records.iter().map(|r| &r.record).collect();
    ordered.sort_by_key(|r| r.lsn());
    let mut table: BTreeMap<u32, (VolumeInfo, u64, u64)> = BTreeMap::new();
    let mut dead = HashSet::new();
    let checkpoints = ordered.iter().filter_map(|record| match record {
        OwnedRecord::Checkpoint { lsn } => Some(*lsn),
        _ => None,
    });
    let checkpoint = checkpoints.max().unwrap_or(0);
    // A volume has the same name for ever. The record that gave it may have been stated later than a snapshot was taken.
    let named = ordered.iter().filter_map(|record| match record {
        OwnedRecord::Volume { volume, name, .. } => Some((*volume, name.as_str())),
        _ => None,
    });
    let names: HashMap<u32, &str> = named.collect();
    for record in ordered {
        match record {
            OwnedRecord::Snapshot { volume, lsn, uuid, size, cut, line, base, deleted, name } => {
                if *size == 0 || size % BLOCK_SIZE as u64 != 0 || *size > VOLUME_BYTES {
                    return Err(OpenError::Record { lsn: *lsn });
                }
                let Some(name) = in_full(names.get(line).copied(), name) else {
                    // Of a volume that is gone since a checkpoint, which has stated the snapshot if there is one.
                    if *lsn > checkpoint {
                        return Err(OpenError::Record { lsn: *lsn });
                    }
                    continue;
                };
                if name.len() > NAME_BYTES {
                    return Err(OpenError::Record { lsn: *lsn });
                }
                let snapshot = Some(Cut { line: *line, lsn: *cut });
                let (id, uuid, settings) = (*volume, *uuid, VolumeSettings::default());
                let info =
                    VolumeInfo { id, uuid, name, size: *size, settings, snapshot, base: *base };
                dead.extend(deleted.then_some(*volume));
                table.insert(*volume, (info, 1, *lsn));
            }
            OwnedRecord::Volume { volume, lsn, uuid, size, vseq, settings, base, name } => {
                if *size == 0 || size % BLOCK_SIZE as u64 != 0 || *size > VOLUME_BYTES {
                    return Err(OpenError::Record { lsn: *lsn });
                }
                let (id, uuid, name) = (*volume, *uuid, name.clone());
                let (size, settings) = (*size, *settings);
                let info =
                    VolumeInfo { id, uuid, name, size, settings, snapshot: None, base: *base };
                if !info.settings.fit(info.size) {
                    return Err(OpenError::Record { lsn: *lsn });
                }
                table.insert(*volume, (info, (*vseq).max(1), *lsn));
            }
            OwnedRecord::VolumeResize { volume, lsn, size, vseq } => {
                if let Some((info, next, _)) = table.get_mut(volume) {
                    let fits = *size > 0 && size % BLOCK_SIZE as u64 == 0 && *size <= VOLUME_BYTES;
                    if !fits || !info.settings.fit(*size) {
                        return Err(OpenError::Record { lsn: *lsn });
                    }
                    info.size = *size;
                    *next = (*next).max(vseq + 1);
                }
            }
            OwnedRecord::VolumeSet { volume, lsn, settings, vseq } => {
                if let Some((info, next, _)) = table.get_mut(volume) {
                    if !settings.fit(info.size) {
                        return Err(OpenError::Record { lsn: *lsn });
                    }
                    info.settings = *settings;
                    *next = (*next).max(vseq + 1);
                }
            }
            // What a snapshot has passes to others: that is done again, unless the checkpoint, which would
            // have stated it, was made when it was over.
            OwnedRecord::VolumeDelete { volume, lsn } if *lsn > checkpoint => {
                dead.insert(*volume);
            }
            OwnedRecord::VolumeDelete { volume, .. } if !dead.contains(volume) => {
                table.remove(volume);
            }
            _ => {}
        }
    }
    // The log cuts snapshots out of the volume that they were taken of, also of one that is gone.
    let lines = table.values().filter_map(|(info, ..)| Some(info.snapshot?.line));
    let lines: HashSet<u32> = lines.collect();
    table.retain(|id, (info, ..)| {
        info.snapshot.is_some() || !dead.contains(id) || lines.contains(id)
    });
    if !planted.has(Plant::ForgetGhosts) {
        add_ghosts(&mut table, &mut dead);
    }
    let row = |(id, (info, vseq, lsn))| (info, vseq, lsn, dead.contains(&id));
    Ok(table.into_iter().map(row).collect())
}

/// Volumes that are gone, but for snapshots of them: the log is about these by the volumes' numbers.
fn add_ghosts(table: &mut BTreeMap<u32, (VolumeInfo, u64, u64)>, dead: &mut HashSet<u32>) {
    let ghost = |(info, _, lsn): &(VolumeInfo, u64, u64)| {
        let line = info.snapshot?.line;
        let settings = VolumeSettings::default();
        let name = String::new();
        let ghost = VolumeInfo { id: line, name, uuid: [0; 16], settings, snapshot: None, ..*info };
        (!table.contains_key(&line)).then_some((line, (ghost, 1, *lsn)))
    };
    let ghosts: Vec<_> = table.values().filter_map(ghost).collect();
    dead.extend(ghosts.iter().map(|(line, _)| *line));
    table.extend(ghosts);
}

/// The volumes, with empty maps.
fn volumes(rows: &[VolumeRow]) -> Result<Volumes, OpenError> {
    let mut volumes = Volumes::default();
    for (info, next_vseq, lsn, dead) in rows {
        // A name is given again only after the delete record of the volume that had it.
        if !dead && volumes.named(&info.name).is_some() {
            return Err(OpenError::Record { lsn: *lsn });
        }
        let state = if *dead { VolumeState::Dying } else { VolumeState::Active };
        volumes.insert(Volume::new(info.clone(), state, *next_vseq));
    }
    volumes.link();
    // A clone's snapshot is there as long as the clone is, and none came from itself.
    for (info, _, lsn, _) in rows {
        let base = |base: u32| volumes.get(base).is_some_and(|v| v.info.snapshot.is_some());
        if !info.base.is_none_or(base) {
            return Err(OpenError::Record { lsn: *lsn });
        }
    }
    match volumes.is_forest() {
        true => Ok(volumes),
        false => Err(OpenError::Record { lsn: 0 }),
    }
}
