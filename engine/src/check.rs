//! Offline check and inspection of a pool, and the running engine's own consistency check.
//!
//! The offline faces load a pool exactly as opening does, write nothing, and read every block.

use crate::batch::Effect;
use crate::counting::Counting;
use crate::engine::Engine;
use crate::error::OpenError;
use crate::format::leaf::Header;
use crate::format::superblock::Superblock;
use crate::geometry::Geometry;
use crate::map::{LEAF_BLOCKS, Leaf, LeafState, Mapping, Verdict, VolumeMap};
use crate::plant::Planted;
use crate::recover::{Loaded, RecoveryReport, Source, load, summary_of};
use crate::segment::SegmentState;
use crate::summary_copies::Copied;
use crate::volume::{Volume, VolumeInfo, VolumeState};
use flagstone_block::{BLOCK_SIZE, BlockIo, DeviceError, Lba, ReadAt};
use std::borrow::Cow;
use std::collections::HashMap;

/// Problems listed by name; further ones are only counted.
const PROBLEMS_LISTED: usize = 1000;

/// Something wrong that does not keep the pool from opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadBlock {
    /// Name of the volume.
    pub volume: String,
    /// Block in the volume.
    pub lba: u64,
    /// Segment it lies in.
    pub segment: u32,
    /// Byte offset on the device.
    pub offset: u64,
    /// The device's error, or `None` for a wrong checksum.
    pub device: Option<DeviceError>,
}

/// What an offline check found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// What recovery would do, including damaged copies of metadata that is kept twice.
    pub recovery: RecoveryReport,
    /// Data blocks read and verified.
    pub blocks: u64,
    /// Damaged data blocks.
    pub bad_blocks: u64,
    /// The first of them.
    pub listed: Vec<BadBlock>,
    /// Where the checkpoint's leaf pages and the summaries don't say the same. Not looked for if summaries are damaged.
    pub disagreement: Option<Disagreement>,
    /// Segments whose summary is damaged, with its copy if it has one. Their blocks can be read, as the leaf pages name
    /// them; the cleaner can't empty them, and the map can't be made anew.
    pub bad_summaries: Vec<u32>,
    /// Summaries of which one copy is damaged and the other is not.
    pub summary_copies_damaged: u32,
}

/// A block of which the leaf pages say something else than the summaries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    /// Name of the volume.
    pub volume: String,
    /// Block in the volume.
    pub lba: u64,
    /// What opening makes of it.
    pub pages: Mapping,
    /// What the summaries make of it.
    pub summaries: Mapping,
}

impl CheckReport {
    /// Whether every block of data and metadata can be read. A single damaged copy of metadata
    /// that is kept twice is no damage: a power cut leaves such copies, and opening goes on with
    /// the other.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.bad_blocks == 0
            && self.disagreement.is_none()
            && self.bad_summaries.is_empty()
            && self.recovery.leaf_pages_damaged == 0
    }
}

/// A row of the segment table.
#[derive(Clone, Copy, Debug)]
pub struct SegmentInfo {
    /// Segment number.
    pub segment: u32,
    /// State.
    pub state: SegmentState,
    /// Live blocks.
    pub live: u32,
    /// Blocks written in this generation.
    pub entries: u32,
    /// Generation, where known.
    pub generation: u64,
}

/// The structure of a pool.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The superblock that counts.
    pub superblock: Superblock,
    /// The layout.
    pub geometry: Geometry,
    /// What recovery would do.
    pub recovery: RecoveryReport,
    /// All segments.
    pub segments: Vec<SegmentInfo>,
    /// Segments of the metadata chain, in order.
    pub meta_segments: Vec<u32>,
    /// Volumes, and bytes that each maps and keeps as zeroes.
    pub volumes: Vec<(VolumeInfo, u64, u64)>,
    /// First journal sequence number that is free.
    pub next_jseq: u64,
    /// Highest LSN in use.
    pub last_lsn: u64,
}

/// Verifies a stopped pool: all metadata, every data block. `progress` gets blocks done and
/// blocks in all.
///
/// # Errors
/// See [`OpenError`]: the pool could not be opened either, or both a page of its map and a summary are damaged.
pub fn check(
    io: &mut dyn BlockIo,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<CheckReport, OpenError> {
    let loaded = load(io, Planted::default(), Source::Pages)?;
    let recovery = loaded.report.clone();
    let mut report = CheckReport { recovery, ..CheckReport::default() };
    check_summaries(io, &loaded, &mut report);
    if report.bad_summaries.is_empty() {
        let summaries = load(io, Planted::default(), Source::Summaries)?;
        report.disagreement = disagreement(&loaded, &summaries);
    }
    let total = loaded.replay.segs.live();
    let mut buffer = vec![0; LEAF_BLOCKS * BLOCK_SIZE];
    progress(0, total);
    for volume in loaded.replay.volumes.iter() {
        let mut leaf = 0;
        while leaf < volume.map.leaves() {
            let (state, leaves) = volume.map.leaf(&loaded.replay.slab, leaf);
            // What others inherit is looked at where it is owned.
            if let LeafState::Dense(index) = state
                && volume.map.is_different(leaf)
            {
                check_leaf(io, &loaded, volume, leaf, index, &mut buffer, &mut report);
                progress(report.blocks, total);
            }
            leaf += leaves;
        }
    }
    Ok(report)
}

/// Makes the map of a stopped pool both ways, from the leaf pages and from the summaries, and
/// compares them.
///
/// # Errors
/// See [`OpenError`].
pub fn compare_maps(
    io: &mut dyn BlockIo,
    planted: Planted,
) -> Result<Option<Disagreement>, OpenError> {
    let pages = load(io, planted, Source::Pages)?;
    let summaries = load(io, planted, Source::Summaries)?;
    Ok(disagreement(&pages, &summaries))
}

/// The first block of which two ways to load a pool don't say the same. Of two copies of one
/// version either will do.
fn disagreement(pages: &Loaded, summaries: &Loaded) -> Option<Disagreement> {
    let same = |a: Mapping, b: Mapping| match (a, b) {
        (Mapping::Block { crc: a, .. }, Mapping::Block { crc: b, .. }) => a == b,
        _ => a == b,
    };
    // What a snapshot that is dying still has is nobody's business.
    let lives = |volume: &&Volume| volume.state != VolumeState::Dying;
    for volume in pages.replay.volumes.iter().filter(lives) {
        let other = summaries.replay.volumes.get(volume.info.id)?;
        let leaves = volume.map.leaves().max(other.map.leaves());
        let mut leaf = 0;
        while leaf < leaves {
            let (one, skip) = volume.map.leaf(&pages.replay.slab, leaf);
            let (two, skip_too) = other.map.leaf(&summaries.replay.slab, leaf);
            let empty = |state| matches!(state, LeafState::Untouched | LeafState::AllHole);
            if empty(one) && empty(two) {
                leaf += skip.min(skip_too);
                continue;
            }
            let lba = leaf * LEAF_BLOCKS as u64;
            for lba in lba..(lba + LEAF_BLOCKS as u64).min(volume.blocks()) {
                let pages = volume.map.get(&pages.replay.slab, Lba(lba));
                let summaries = other.map.get(&summaries.replay.slab, Lba(lba));
                if !same(pages, summaries) {
                    let volume = volume.info.name.clone();
                    return Some(Disagreement { volume, lba, pages, summaries });
                }
            }
            leaf += 1;
        }
    }
    None
}

/// Reads the summaries of all sealed segments, and their copies.
fn check_summaries(io: &mut dyn BlockIo, loaded: &Loaded, report: &mut CheckReport) {
    let (geo, pool) = (&loaded.geo, &loaded.superblock.pool_uuid);
    let mut summary = vec![0; geo.shape.summary_blocks() as usize * BLOCK_SIZE];
    for segment in 0..loaded.replay.segs.len() {
        let row = loaded.replay.segs.row(segment);
        if row.state != SegmentState::Sealed || loaded.missing.holds(geo, segment) {
            continue;
        }
        let seal = row.seal(segment, 0, true, None);
        let mut is_whole = |offset: u64| {
            // As every read, once more before it is given up.
            (0..2).any(|_| {
                io.read_at(offset, &mut summary).is_ok()
                    && summary_of(pool, geo, &seal, &summary).is_some()
            })
        };
        let here = is_whole(geo.segment_offset(segment, geo.shape.data_blocks));
        let copied = |copied: &&Copied| (copied.of, copied.generation) == (segment, row.generation);
        let copy = loaded.replay.copied.iter().find(copied);
        let copy = copy.map(|copied| is_whole(geo.copy_offset(copied.place)));
        match (here, copy) {
            (true, None | Some(true)) => {}
            (true, Some(false)) | (false, Some(true)) => report.summary_copies_damaged += 1,
            (false, None | Some(false)) => report.bad_summaries.push(segment),
        }
    }
}

fn check_leaf(
    io: &mut dyn BlockIo,
    loaded: &Loaded,
    volume: &Volume,
    leaf: u64,
    index: u32,
    buffer: &mut [u8],
    report: &mut CheckReport,
) {
    let geo = &loaded.geo;
    let entries = loaded.replay.slab.get(index);
    let mut blocks: Vec<(u64, u32, u64, &Volume)> = (0..LEAF_BLOCKS)
        .filter(|&i| entries.owns(i))
        .filter_map(|i| {
            let Mapping::Block { pbn, crc } = entries.get(i) else { return None };
            let reader = reader(loaded, volume, leaf, i)?;
            Some((pbn, crc, leaf * LEAF_BLOCKS as u64 + i as u64, reader))
        })
        .collect();
    blocks.sort_unstable_by_key(|&(pbn, ..)| pbn);
    let offset = |pbn: u64| {
        let (segment, block) = geo.locate(pbn);
        geo.segment_offset(segment, block)
    };
    let mut reads: Vec<ReadAt<'_>> = buffer
        .chunks_exact_mut(BLOCK_SIZE)
        .zip(&blocks)
        .map(|(into, &(pbn, ..))| ReadAt { offset: offset(pbn), into })
        .collect();
    let mut results = Vec::new();
    io.read_many(&mut reads, &mut results);
    for ((&(pbn, crc, lba, reader), read), result) in blocks.iter().zip(&reads).zip(results) {
        report.blocks += 1;
        let device = result.err();
        if device.is_none() && crate::format::crc32(read.into) == crc {
            continue;
        }
        report.bad_blocks += 1;
        if report.listed.len() < PROBLEMS_LISTED {
            let (segment, _) = geo.locate(pbn);
            let volume = reader.info.name.clone();
            report.listed.push(BadBlock { volume, lba, segment, offset: offset(pbn), device });
        }
    }
}

/// Who can read block `i` of a leaf that `volume` maps: it, or one that inherits it. What only a deleted
/// snapshot still maps may have been overwritten since.
fn reader<'a>(loaded: &'a Loaded, volume: &'a Volume, leaf: u64, i: usize) -> Option<&'a Volume> {
    if volume.state != VolumeState::Dying {
        return Some(volume);
    }
    let inherits = |child: &&Volume| {
        if !child.map.is_different(leaf) {
            return volume.map.has_leaf(leaf);
        }
        match child.map.leaf(&loaded.replay.slab, leaf).0 {
            LeafState::Dense(index) => {
                let entries = loaded.replay.slab.get(index);
                matches!(entries.get(i), Mapping::Block { .. }) && !entries.owns(i)
            }
            // What it had has passed to its child, which may inherit the rest from further up.
            _ => child.state == VolumeState::Dying,
        }
    };
    let children = volume.children.iter().filter_map(|child| loaded.replay.volumes.get(*child));
    children.filter(inherits).find_map(|child| reader(loaded, child, leaf, i))
}

/// The layout of a pool, from its superblocks alone.
///
/// # Errors
/// See [`OpenError`].
pub fn geometry(io: &mut dyn BlockIo) -> Result<Geometry, OpenError> {
    let superblock = crate::recover::superblock(io, false, &mut RecoveryReport::default())?;
    Ok(Geometry::of(&superblock, |device| io.device_bytes(device))?)
}

/// Describes a stopped pool without reading its data.
///
/// # Errors
/// See [`OpenError`].
pub fn inspect(io: &mut dyn BlockIo) -> Result<Inspection, OpenError> {
    let loaded = load(io, Planted::default(), Source::Pages)?;
    let segs = &loaded.replay.segs;
    let mut segments: Vec<SegmentInfo> = (0..segs.len())
        .map(|segment| {
            let row = segs.row(segment);
            SegmentInfo {
                segment,
                state: row.state,
                live: row.live,
                entries: u32::from(row.entries),
                generation: row.generation,
            }
        })
        .collect();
    for tail in &loaded.tails {
        segments[tail.segment as usize].entries = tail.blocks.len() as u32;
    }
    let block = BLOCK_SIZE as u64;
    let volumes = loaded.replay.volumes.iter();
    let volumes = volumes.map(|v| (v.info.clone(), v.map.mapped() * block, v.map.kept() * block));
    Ok(Inspection {
        superblock: loaded.superblock,
        geometry: loaded.geo,
        volumes: volumes.collect(),
        segments,
        meta_segments: loaded.chain.segments,
        next_jseq: loaded.next_jseq,
        last_lsn: loaded.last_lsn,
        recovery: loaded.report,
    })
}

/// An invariant that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Inconsistency {
    /// A segment's live count differs from the map's.
    #[error("segment {segment}: live count {counted}, but the map names {mapped} of its blocks")]
    Live {
        /// Segment number.
        segment: u32,
        /// Count in the table.
        counted: u32,
        /// Count over the maps.
        mapped: u32,
    },
    /// What is still to be counted differs from what nobody has read.
    #[error("{counted} leaves are to be counted, but {left} are unread, or have other blocks")]
    Uncounted {
        /// The counter.
        counted: usize,
        /// Leaves that are unread.
        left: usize,
    },
    /// A map entry names a block of a segment that can't hold live data, or a leaf's page lies in
    /// one that holds no pages.
    #[error("segment {segment} is {state:?} but holds live data, or a leaf page")]
    State {
        /// Segment number.
        segment: u32,
        /// Its state.
        state: SegmentState,
    },
    /// The free list and the states disagree.
    #[error("{listed} segments are on the free list, {free} are free")]
    Free {
        /// Length of the list.
        listed: u32,
        /// Segments in state Free.
        free: u32,
    },
    /// The kept zero blocks differ from the maps'.
    #[error("{counted} kept zero blocks are counted, the maps have {mapped}")]
    Kept {
        /// The counter.
        counted: u64,
        /// Sum over the maps.
        mapped: u64,
    },
    /// What requests under way will take differs from what is counted.
    #[error("{counted} blocks are counted as about to be taken, but {due} are")]
    Coming {
        /// The counter: of the pool, or of a volume.
        counted: u64,
        /// Sum over what is under way.
        due: u64,
    },
    /// What is held back for reservations differs from what they are short of.
    #[error("{counted} blocks are counted as held back, but {due} are due")]
    Held {
        /// The counter: of the pool, or of a volume.
        counted: u64,
        /// What follows from reservation and map.
        due: u64,
    },
    /// The leaves that were ever written to differ from the maps'.
    #[error("{counted} leaves are counted as written to, the maps have {touched}")]
    Touched {
        /// The counter.
        counted: u64,
        /// Sum over the maps.
        touched: u64,
    },
    /// What deleted volumes still map differs from their maps.
    #[error("{counted} blocks are counted as mapped by deleted volumes, the maps have {mapped}")]
    Graves {
        /// The counter.
        counted: u64,
        /// Sum over the maps.
        mapped: u64,
    },
    /// A block is nobody's: it is not the leaf's own, and the parent does not have it.
    #[error("volume {volume}: block {i} of leaf {leaf} is inherited, but the parent has another")]
    Inherited {
        /// Number of the volume or snapshot.
        volume: u32,
        /// Number of the leaf.
        leaf: u64,
        /// Block in it.
        i: usize,
    },
    /// A leaf counts as the parent's, and is another.
    #[error("volume {volume}: leaf {leaf} is said to be the parent's, but the parent has another")]
    Shared {
        /// Number of the volume or snapshot.
        volume: u32,
        /// Number of the leaf.
        leaf: u64,
    },
    /// Something is mapped or kept beyond the end of a volume.
    #[error("volume {volume} has blocks beyond its end")]
    Beyond {
        /// Number of the volume.
        volume: u32,
    },
}

/// The data blocks of a leaf, and where they lie.
fn blocks_of(leaf: &Leaf) -> impl Iterator<Item = (usize, u64)> {
    (0..LEAF_BLOCKS).filter_map(|i| match leaf.get(i) {
        Mapping::Block { pbn, .. } => Some((i, pbn)),
        _ => None,
    })
}

impl Engine {
    /// What a leaf says, if it was counted and can be read.
    fn content(
        &self,
        state: LeafState,
        read: &mut dyn FnMut(u64, &mut [u8]) -> bool,
        page: &mut [u8],
    ) -> Option<Cow<'_, Leaf>> {
        static EMPTY: Leaf = Leaf::new();
        match state {
            LeafState::Dense(index) => Some(Cow::Borrowed(self.slab.get(index))),
            LeafState::Away(away) => {
                let place = self.slab.away_leaf(away).page;
                let (segment, block) = self.geo.locate(place.pbn);
                let unread = self.slab.unread(away);
                if unread.is_some_and(|unread| !unread.is_counted())
                    || !read(self.geo.segment_offset(segment, block), page)
                {
                    return None;
                }
                let (_, mut content, crc) = Header::decode(self.pool_tag, page).ok()?;
                if let Some(unread) = unread {
                    unread.clone().apply(&mut content, false, |_| Verdict::Good);
                }
                (crc == place.crc).then_some(Cow::Owned(content))
            }
            _ => Some(Cow::Borrowed(&EMPTY)),
        }
    }

    fn leaf_owns(&self, state: LeafState, i: usize) -> bool {
        match state {
            LeafState::Dense(index) => self.slab.get(index).owns(i),
            LeafState::Away(away) => self.slab.away_leaf(away).owns(i),
            _ => false,
        }
    }

    /// Recounts everything that is kept as a counter. For tests and the simulator: it walks all
    /// maps.
    ///
    /// # Errors
    /// The first [`Inconsistency`].
    pub fn check(&self) -> Result<(), Inconsistency> {
        self.check_with(&mut |_, _| false)
    }

    /// As [`Engine::check`]; `read` reads from the device the leaves that are not in memory. If it
    /// can't, live counts are not checked.
    ///
    /// # Errors
    /// The first [`Inconsistency`].
    pub fn check_with(
        &self,
        read: &mut dyn FnMut(u64, &mut [u8]) -> bool,
    ) -> Result<(), Inconsistency> {
        let mut page = vec![0; self.geo.leaf_page_blocks() as usize * BLOCK_SIZE];
        let mut content = |state| self.content(state, read, &mut page);
        let (mut complete, mut left, mut blocks) = (true, 0, 0);
        let mut mapped = vec![0u32; self.segs.len() as usize];
        for map in self.volumes.iter().map(|v| &v.map).chain(self.graves.iter()) {
            let mut leaf = 0;
            while leaf < map.leaves() {
                let (state, leaves) = map.leaf(&self.slab, leaf);
                let found = content(state);
                let place = match state {
                    LeafState::Dense(index) => self.slab.get(index).page(),
                    LeafState::Away(away) => {
                        let uncounted = self.slab.unread(away).is_some_and(|u| !u.is_counted());
                        if uncounted && map.is_different(leaf) {
                            left += 1;
                            blocks += self.slab.away_leaf(away).owned();
                        }
                        complete &= found.is_some() || uncounted;
                        Some(self.slab.away_leaf(away).page)
                    }
                    _ => None,
                };
                if let Some(place) = place {
                    let segment = self.geo.locate(place.pbn).0;
                    let state = self.segs.row(segment).state;
                    if state != SegmentState::Map {
                        return Err(Inconsistency::State { segment, state });
                    }
                }
                let found = found.filter(|_| map.is_different(leaf));
                for (i, pbn) in found.iter().flat_map(|leaf| blocks_of(leaf)) {
                    if self.leaf_owns(state, i) {
                        mapped[self.geo.locate(pbn).0 as usize] += 1;
                        continue;
                    }
                    // What is inherited is the parent's, or that one's parent's if it is being taken apart.
                    let Some(child) = self.volumes.get(map.volume()) else { continue };
                    let mut node = Some(child);
                    loop {
                        node = node.and_then(|child| self.volumes.get(child.parent?));
                        let Some(parent) = node else {
                            return Err(Inconsistency::Inherited { volume: map.volume(), leaf, i });
                        };
                        let Some(theirs) = content(parent.map.leaf(&self.slab, leaf).0) else {
                            break;
                        };
                        match theirs.get(i) {
                            Mapping::Block { pbn: same, .. } if same == pbn => break,
                            Mapping::Hole if parent.state == VolumeState::Dying => {}
                            _ => node = None,
                        }
                    }
                }
                leaf += leaves;
            }
        }
        self.check_shared()?;
        let counted = self.counting.as_ref().map_or(0, Counting::left);
        if (counted, self.segs.uncounted()) != (left, blocks) {
            return Err(Inconsistency::Uncounted { counted, left });
        }
        for (segment, mapped) in (0u32..).zip(mapped) {
            let row = self.segs.row(segment);
            if complete && row.live != mapped && row.state != SegmentState::Map {
                return Err(Inconsistency::Live { segment, counted: row.live, mapped });
            }
            let may_live = matches!(
                row.state,
                SegmentState::Open | SegmentState::Sealing | SegmentState::Sealed
            );
            if mapped > 0 && !may_live {
                return Err(Inconsistency::State { segment, state: row.state });
            }
        }
        let (listed, free) =
            (self.segs.free_all(), self.segs.census()[SegmentState::Free as usize]);
        if listed != free {
            return Err(Inconsistency::Free { listed, free });
        }
        let mapped = self.volumes.iter().map(Volume::kept).sum();
        if mapped != self.kept {
            return Err(Inconsistency::Kept { counted: self.kept, mapped });
        }
        // What is dying may have been made from summaries that tell of what was discarded since.
        let exact = |v: &Volume| !v.is_shrinking() && v.state != VolumeState::Dying;
        let beyond = |v: &&Volume| exact(v) && v.map.used_from(&self.slab, v.blocks()) > 0;
        if let Some(volume) = self.volumes.iter().find(beyond) {
            return Err(Inconsistency::Beyond { volume: volume.info.id });
        }
        let mapped = self.graves.iter().map(VolumeMap::owned).sum();
        if mapped != self.graves.owned() {
            return Err(Inconsistency::Graves { counted: self.graves.owned(), mapped });
        }
        self.check_space()?;
        let touched = self.volumes.iter().map(|v| v.map.touched()).sum();
        if touched != self.touched {
            return Err(Inconsistency::Touched { counted: self.touched, touched });
        }
        Ok(())
    }

    /// Looks whether what is said to be a parent's is.
    fn check_shared(&self) -> Result<(), Inconsistency> {
        for volume in self.volumes.iter() {
            let parent = volume.parent.and_then(|parent| self.volumes.get(parent));
            let (mut leaf, end) = (0, parent.map_or(0, |parent| parent.map.leaves()));
            while leaf < volume.map.leaves().max(end) {
                let (state, skip) = volume.map.leaf(&self.slab, leaf);
                let (theirs, theirs_skip) = match parent {
                    Some(parent) => parent.map.leaf(&self.slab, leaf),
                    None => (LeafState::Untouched, u64::MAX),
                };
                let leaves = skip.min(theirs_skip);
                if !volume.map.is_different(leaf) && state != theirs {
                    return Err(Inconsistency::Shared { volume: volume.info.id, leaf });
                }
                leaf += leaves;
            }
        }
        Ok(())
    }

    /// Recounts what is under way and what is held back.
    fn check_space(&self) -> Result<(), Inconsistency> {
        let mut coming: HashMap<u32, u64> = HashMap::new();
        let (mut new_blocks, mut promising) = (0, 0);
        for effect in self.effects_under_way() {
            let (volume, blocks) = match effect {
                Effect::Write { volume, new, .. } => {
                    new_blocks += u64::from(new);
                    (volume, u64::from(new))
                }
                Effect::Zero { volume, promised, .. } => {
                    promising += promised;
                    (volume, promised)
                }
                _ => continue,
            };
            *coming.entry(volume).or_default() += blocks;
        }
        for volume in self.rmws.charged() {
            new_blocks += 1;
            *coming.entry(volume).or_default() += 1;
        }
        let compare = |counted: u64, due: u64| match counted == due {
            true => Ok(()),
            false => Err(Inconsistency::Coming { counted, due }),
        };
        compare(self.space.coming, new_blocks)?;
        compare(self.space.promising, promising)?;
        let (mut held, mut reserved) = (0, 0);
        for volume in self.volumes.iter() {
            compare(volume.coming, coming.get(&volume.info.id).copied().unwrap_or(0))?;
            let due = volume.reserved_blocks().saturating_sub(volume.taken());
            if volume.held != due {
                return Err(Inconsistency::Held { counted: volume.held, due });
            }
            held += due;
            reserved += volume.reserved_blocks();
        }
        if reserved != self.space.reserved {
            return Err(Inconsistency::Held { counted: self.space.reserved, due: reserved });
        }
        if held != self.space.held {
            return Err(Inconsistency::Held { counted: self.space.held, due: held });
        }
        Ok(())
    }
}
