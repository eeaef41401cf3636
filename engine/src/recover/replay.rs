//! Replay: summaries and records merged by LSN into the map, or into patches on top of the
//! checkpoint's leaf pages, which are not read (see [`crate::map::Unread`]).

use super::load::{ChainEnd, Source, TailSegment};
use super::pages::{self, Pages};
use super::records::OwnedRecord;
use super::window::{Window, Write};
use crate::counting::Counting;
use crate::degraded::Missing;
use crate::error::OpenError;
use crate::format::record::{STATED, Seal};
use crate::format::segment::{ENTRY_BYTES, Entry, Footer, Source as MovedFrom};
use crate::geometry::Geometry;
use crate::limits::VOLUME_BLOCKS;
use crate::map::{LEAF_BLOCKS, LeafSlab, LeafState, Logged, Mapping, Unread, VolumeMap};
use crate::meta_chain::NO_SEGMENT;
use crate::plant::{Plant, Planted};
use crate::segment::{SegmentState, SegmentTable};
use crate::summary_copies::Copied;
use crate::volume::{Volume, VolumeState, Volumes};
use flagstone_block::{BLOCK_SIZE, BlockIo, Lba, ReadAt};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};

/// Summaries read at once.
const PREFETCH: usize = 32;

const PER_LEAF: u64 = LEAF_BLOCKS as u64;

/// Blocks replayed at once, if nothing else lies between them.
const WINDOW: usize = 1 << 17;

/// The state that replay ends in.
#[derive(Debug)]
pub(crate) struct Replay {
    pub(crate) volumes: Volumes,
    pub(crate) slab: LeafSlab,
    pub(crate) segs: SegmentTable,
    pub(crate) last_lsn: u64,
    /// Highest volume number that anything names, also of a volume that is not there: it must not be
    /// given out again.
    pub(crate) highest_volume: u32,
    /// Summaries replayed, and the blocks that they describe.
    pub(crate) summaries: u32,
    pub(crate) log_since: u64,
    /// Copies of those summaries, in segments that hold nothing else.
    pub(crate) copied: Vec<Copied>,
    pub(super) geo: Geometry,
    /// What no page speaks of was empty at this LSN; `None`: there are no pages, everything is
    /// replayed.
    paged_lsn: Option<u64>,
    /// Volumes and snapshots whose map has begun.
    formed: HashSet<u32>,
    /// The leaves that are still in their pages.
    pub(crate) counting: Option<Counting>,
    missing: Missing,
    pub(super) planted: Planted,
}

/// What the scans found.
pub(super) struct Input<'a> {
    pub(super) geo: Geometry,
    pub(super) pool: [u8; 16],
    pub(super) sealed: &'a [Seal],
    pub(super) changes: &'a [OwnedRecord],
    pub(super) chain: &'a ChainEnd,
    pub(super) tails: &'a [TailSegment],
    pub(super) pages: &'a Pages,
    pub(super) missing: Missing,
    pub(super) planted: Planted,
}

/// A summary being merged.
struct Cursor {
    segment: u32,
    generation: u64,
    first_lsn: u64,
    entries: Vec<u8>,
    /// Blocks in the order of their LSNs. Users' segments are written in that order, the
    /// cleaner's are not.
    order: Vec<u16>,
    next: usize,
}

impl Cursor {
    fn new(seal: &Seal, footer: &Footer, entries: &[u8]) -> Self {
        // An orphan's last may not count.
        let mut order: Vec<u16> = (0..footer.entries.min(seal.entries)).collect();
        if seal.class != 0 {
            order.sort_by_key(|&i| Self::at(entries, i).lsn_delta);
        }
        Self {
            segment: seal.segment,
            generation: seal.generation,
            first_lsn: footer.first_lsn,
            entries: entries.to_vec(),
            order,
            next: 0,
        }
    }

    fn at(entries: &[u8], block: u16) -> Entry {
        let at = usize::from(block) * ENTRY_BYTES;
        Entry::decode(&entries[at..at + ENTRY_BYTES])
    }

    /// The next entry, with its block and its LSN.
    fn entry(&self) -> Option<(u64, u32, Entry)> {
        let &block = self.order.get(self.next)?;
        let entry = Self::at(&self.entries, block);
        let lsn = self.first_lsn.saturating_add(u64::from(entry.lsn_delta));
        Some((lsn, u32::from(block), entry))
    }

    /// Where it comes in the merge. Of two copies of one version the later made wins, so that a
    /// segment that was just emptied stays empty.
    fn place(&self) -> Option<(u64, u64)> {
        self.entry().map(|(lsn, ..)| (lsn, self.generation))
    }
}

/// Makes the map: on top of the checkpoint's pages, or of nothing. `None` if what the checkpoint
/// says of the pages can't be.
pub(super) fn replay(
    io: &mut dyn BlockIo,
    input: &Input<'_>,
    volumes: Volumes,
    source: Source,
) -> Result<Option<Replay>, OpenError> {
    let geo = &input.geo;
    let mut state = Replay {
        volumes,
        slab: LeafSlab::new(geo),
        segs: SegmentTable::new(geo),
        last_lsn: 0,
        highest_volume: 0,
        summaries: 0,
        log_since: 0,
        copied: Vec::new(),
        geo: *geo,
        paged_lsn: None,
        formed: HashSet::new(),
        counting: None,
        missing: input.missing,
        planted: input.planted,
    };
    state.place_segments(input)?;
    let logged = |seal: &&Seal| source == Source::Summaries || !seal.stated;
    let mut sealed: Vec<Seal> = input.sealed.iter().filter(logged).copied().collect();
    state.summaries = sealed.len() as u32;
    let since = input.sealed.iter().filter(|seal| !seal.stated);
    state.log_since = since.map(|seal| u64::from(seal.entries)).sum();
    sealed.sort_by_key(|seal| seal.first_lsn);
    if source != Source::Summaries {
        if !pages::place(input, &mut state) {
            return Ok(None);
        }
        state.paged_lsn = Some(input.pages.lsn);
    }
    let mut changes = input.changes.iter().peekable();
    let mut open: Vec<Cursor> = Vec::new();
    // Next entry of each open summary, by LSN.
    let mut heap: BinaryHeap<Reverse<((u64, u64), usize)>> = BinaryHeap::new();
    let mut ready: VecDeque<Cursor> = VecDeque::new();
    let mut unread = sealed.as_slice();
    let mut writes = Window::default();
    // Summaries tell less than the checkpoint.
    let mut stated =
        (source == Source::Summaries && input.pages.lsn > 0).then_some(input.pages.lsn);
    loop {
        if ready.is_empty() && !unread.is_empty() {
            let (now, later) = unread.split_at(unread.len().min(PREFETCH));
            unread = later;
            state.read_summaries(io, &input.pool, now, &mut ready)?;
        }
        // Open every summary that begins before the next entry or change.
        let next_change = changes.peek().map(|r| r.order());
        let next_entry = heap.peek().map(|Reverse(((lsn, _), _))| *lsn);
        if let Some(summary) = ready.front()
            && next_entry.is_none_or(|lsn| summary.first_lsn <= lsn)
            && next_change.is_none_or(|(lsn, _)| summary.first_lsn <= lsn)
        {
            let summary = ready.pop_front().expect("just seen");
            if let Some(place) = summary.place() {
                heap.push(Reverse((place, open.len())));
                open.push(summary);
            }
            continue;
        }
        let next = next_entry.into_iter().chain(next_change.map(|(lsn, _)| lsn));
        if stated.is_some_and(|stated| next.min().is_none_or(|next| next > stated)) {
            stated = None;
            state.write_window(&mut writes, 1);
            state.restate(input)?;
        }
        match (next_entry, next_change) {
            (None, None) => break,
            (Some(lsn), change) if change.is_none_or(|change| (lsn, false) <= change) => {
                let Some(Reverse((_, i))) = heap.pop() else { break };
                if let Some((lsn, block, entry)) = open[i].entry() {
                    let pbn = geo.pbn(open[i].segment, block);
                    let Entry { volume: line, lba, crc, vseq, source, .. } = entry;
                    let to = open[i].segment;
                    match source {
                        Some(source) if state.is_sound_there(source, to, open[i].generation) => {
                            state.see(line, lsn, vseq);
                        }
                        _ => {
                            let from = source.and_then(|source| state.still_there(source, to));
                            writes.push(Write { line, lsn, lba, pbn, crc, vseq, from });
                        }
                    }
                }
                state.write_window(&mut writes, WINDOW);
                open[i].next += 1;
                match open[i].place() {
                    Some(place) => heap.push(Reverse((place, i))),
                    None => (open[i].entries, open[i].order) = (Vec::new(), Vec::new()),
                }
            }
            _ => match changes.next() {
                Some(&OwnedRecord::Write { volume: line, lsn, lba, pbn, vseq, ref crcs }) => {
                    for (b, &crc) in (0u64..).zip(crcs) {
                        let (lba, pbn) = (lba.saturating_add(b), pbn + b);
                        writes.push(Write { line, lsn, lba, pbn, crc, vseq, from: None });
                    }
                    state.write_window(&mut writes, WINDOW);
                }
                Some(change) => {
                    state.write_window(&mut writes, 1);
                    state.change(change);
                }
                None => {}
            },
        }
    }
    state.write_window(&mut writes, 1);
    if input.planted.has(Plant::CutLate) {
        for change in input.changes {
            if let OwnedRecord::Snapshot { volume, line, .. } = *change {
                state.cut(volume, line);
            }
        }
    }
    let clones: Vec<u32> = state.volumes.iter().map(|volume| volume.info.id).collect();
    clones.into_iter().for_each(|id| state.begin(id));
    if source == Source::Summaries {
        state.find_owners();
    }
    state.take_out_deleted();
    // Of what is dying summaries may bring back what was discarded.
    let beyond = |volume: &Volume| {
        let used = volume.map.used_from(&state.slab, volume.blocks()) > 0;
        used && volume.state != VolumeState::Dying
    };
    if state.volumes.iter().any(beyond) {
        return Err(OpenError::Record { lsn: state.last_lsn });
    }
    state.count_live();
    state.begin_counting(input);
    Ok(Some(state))
}

/// The footer and the entries of a summary, if it is the one that the seal names.
pub(crate) fn summary_of<'a>(
    pool: &[u8; 16],
    geo: &Geometry,
    seal: &Seal,
    bytes: &'a [u8],
) -> Option<(Footer, &'a [u8])> {
    let (table, footer) = bytes.split_at(geo.shape.entry_blocks as usize * BLOCK_SIZE);
    let (footer, crc) = Footer::decode(pool, seal.segment, &geo.shape, footer).ok()?;
    let entries = &table[..usize::from(footer.entries) * ENTRY_BYTES];
    let right = crc == seal.footer_crc
        && footer.generation == seal.generation
        && crate::format::crc32(entries) == footer.entries_crc;
    right.then_some((footer, entries))
}

impl Replay {
    fn read_summaries(
        &mut self,
        io: &mut dyn BlockIo,
        pool: &[u8; 16],
        seals: &[Seal],
        into: &mut VecDeque<Cursor>,
    ) -> Result<(), OpenError> {
        let geo = self.geo;
        let bytes = geo.shape.summary_blocks() as usize * BLOCK_SIZE;
        let mut buffer = vec![0; bytes * seals.len()];
        let mut reads: Vec<ReadAt<'_>> = buffer
            .chunks_exact_mut(bytes)
            .zip(seals)
            .map(|(into, seal)| ReadAt {
                offset: geo.segment_offset(seal.segment, geo.shape.data_blocks),
                into,
            })
            .collect();
        let mut results = Vec::new();
        io.read_many(&mut reads, &mut results);
        for ((seal, read), result) in seals.iter().zip(&mut reads).zip(&results) {
            let whole = |bytes: &[u8]| summary_of(pool, &geo, seal, bytes).is_some();
            // As every read, once more before it is given up.
            let again =
                |io: &mut dyn BlockIo, into: &mut [u8]| io.read_at(read.offset, into).is_ok();
            if (result.is_err() || !whole(read.into)) && !(again(io, read.into) && whole(read.into))
            {
                // Where it was copied to, if it was.
                let place = seal.copy.filter(|copy| geo.has(copy.segment));
                let place = place.map(|copy| geo.copy_offset(copy));
                let copied = place.is_some_and(|offset| io.read_at(offset, read.into).is_ok());
                if !copied || !whole(read.into) {
                    let device = geo.device_of(seal.segment);
                    if self.planted.has(Plant::SkipMissingSummaries)
                        && device.is_some_and(|device| io.device_bytes(device).is_none())
                    {
                        continue;
                    }
                    let (segment, generation) = (seal.segment, seal.generation);
                    return Err(OpenError::SummaryDamaged { segment, generation });
                }
            }
            if let Some((footer, entries)) = summary_of(pool, &geo, seal, read.into) {
                self.segs.row_mut(seal.segment).mean_lsn = footer.mean_lsn;
                into.push_back(Cursor::new(seal, &footer, entries));
            }
        }
        Ok(())
    }

    fn place_segments(&mut self, input: &Input<'_>) -> Result<(), OpenError> {
        let &Input { sealed, chain, tails, pages, .. } = input;
        let geo = input.geo;
        let mut place = |segment: u32, state: SegmentState, lsn: u64| {
            if !geo.has(segment) {
                return Err(OpenError::Record { lsn });
            }
            let row = self.segs.row_mut(segment);
            if !matches!(row.state, SegmentState::Free | SegmentState::Absent) {
                return Err(OpenError::Record { lsn });
            }
            row.state = state;
            Ok(())
        };
        let next = (chain.next_segment != NO_SEGMENT).then_some(chain.next_segment);
        for segment in chain.segments.iter().copied().chain(next) {
            place(segment, SegmentState::Meta, 0)?;
        }
        for tail in tails {
            place(tail.segment, SegmentState::Open, tail.blocks[0].lsn)?;
        }
        for seal in sealed {
            place(seal.segment, SegmentState::Sealed, seal.lsn)?;
        }
        for &segment in pages.segments.keys() {
            place(segment, SegmentState::Map, 0)?;
        }
        for (&segment, &named) in &pages.segments {
            self.segs.row_mut(segment).live = named;
        }
        for seal in sealed.iter().filter(|seal| !seal.stated) {
            let Some(place) = seal.copy.filter(|copy| geo.has(copy.segment)) else { continue };
            let row = self.segs.row_mut(place.segment);
            // One that was given up before its time may hold anything by now.
            if matches!(row.state, SegmentState::Free | SegmentState::Absent) {
                row.state = SegmentState::Copies;
            }
            if row.state == SegmentState::Copies {
                let (of, generation) = (seal.segment, seal.generation);
                self.copied.push(Copied { of, generation, place });
            }
        }
        for seal in sealed {
            let row = self.segs.row_mut(seal.segment);
            row.class = seal.class;
            row.entries = seal.entries;
            row.generation = seal.generation;
            row.first_lsn = seal.first_lsn;
            row.footer_crc = seal.footer_crc;
            row.mean_lsn = seal.mean_lsn;
        }
        Ok(())
    }

    /// Makes the map of a volume or snapshot as it begins: its parent's, or an empty one.
    pub(super) fn form(&mut self, id: u32, lsn: u64) {
        let parent = self.volumes.parent_at(id, lsn).and_then(|parent| self.volumes.get(parent));
        let map = parent.map(|parent| parent.map.child(id));
        if let (Some(map), Some(volume)) = (map, self.volumes.get_mut(id)) {
            volume.map = map;
        }
        self.formed.insert(id);
    }

    /// Makes the map of a clone, if that has not begun: that of the snapshot which it was made from.
    fn begin(&mut self, id: u32) {
        let base = self.volumes.get(id).filter(|volume| volume.info.snapshot.is_none());
        let Some(base) = base.and_then(|volume| volume.info.base) else { return };
        if self.formed.insert(id) {
            let map = self.volumes.get(base).map(|base| base.map.child(id));
            if let (Some(map), Some(volume)) = (map, self.volumes.get_mut(id)) {
                volume.map = map;
            }
        }
    }

    /// A snapshot is taken.
    fn cut(&mut self, snapshot: u32, line: u32) {
        self.begin(line);
        // One that was gone before the checkpoint cuts nothing.
        if self.volumes.get(snapshot).is_none() || !self.formed.insert(snapshot) {
            return;
        }
        let Some(volume) = self.volumes.get_mut(line) else { return };
        let map = volume.map.snapshot(snapshot);
        if let Some(snapshot) = self.volumes.get_mut(snapshot) {
            snapshot.map = map;
        }
    }

    /// Replays what there is, once that is so much.
    fn write_window(&mut self, writes: &mut Window, least: usize) {
        if writes.len() >= least {
            writes.drain(|write| self.write(write));
        }
    }

    /// Whether a segment lies on a device that has failed or is missing.
    fn is_unsound(&self, segment: u32) -> bool {
        let device = self.geo.device_of(segment);
        device.is_none_or(|device| self.geo.extents[device].failed || self.missing.has(device))
    }

    /// The segment that a block was moved from, if that was not freed since.
    fn source_of(&self, source: MovedFrom) -> Option<u32> {
        let segment = self.geo.is_data(source.pbn, 1).then(|| self.geo.locate(source.pbn).0)?;
        let row = self.segs.row(segment);
        (row.state == SegmentState::Sealed && source.is_of(row.generation)).then_some(segment)
    }

    /// Whether a block that was moved to a device which has failed, or is missing, still lies where it was moved from, and
    /// may be read there: then it was not moved. The page of its leaf, or the summary there, says where it is.
    ///
    /// What it was moved to, in `generation`, was begun later than every segment that it was moved from; what has the low
    /// bits of such a one by chance is none.
    fn is_sound_there(&self, source: MovedFrom, to: u32, generation: u64) -> bool {
        let is_sound =
            |from: u32| self.segs.row(from).generation < generation && !self.is_unsound(from);
        self.is_unsound(to) && self.source_of(source).is_some_and(is_sound)
    }

    /// Where a block was moved from, to a segment `to`, if it may be found there: the segment was not freed since. What lies
    /// where nobody reads it any more is no reason to look elsewhere.
    fn still_there(&self, source: MovedFrom, to: u32) -> Option<u64> {
        if self.is_unsound(to) {
            return None;
        }
        if self.planted.has(Plant::FinishAnyMove) {
            return Some(Unread::ANYWHERE);
        }
        self.source_of(source).map(|_| source.pbn)
    }

    /// There is an entry with these numbers: what is made from now on has higher ones.
    fn see(&mut self, line: u32, lsn: u64, vseq: u64) {
        self.last_lsn = self.last_lsn.max(lsn);
        self.highest_volume = self.highest_volume.max(line);
        if let Some(volume) = self.volumes.get_mut(line) {
            volume.next_vseq = volume.next_vseq.max(vseq.saturating_add(1));
        }
    }

    /// An entry of a volume that is gone is history. What is so beyond a volume's end follows from
    /// the discards that a shrink has logged: see [`crate::resize`].
    fn write(&mut self, Write { line, lsn, lba, pbn, crc, vseq, from }: Write) {
        self.see(line, lsn, vseq);
        let mapping = Mapping::Block { pbn, crc };
        let owner = self.volumes.taken_since(line, lsn);
        if owner != line && self.formed.contains(&owner) {
            return self.write_moved(owner, (lsn, from), lba, mapping);
        }
        self.begin(line);
        let Some(volume) = self.volumes.get_mut(line) else { return };
        if lba >= VOLUME_BLOCKS {
            return;
        }
        let over = self.planted.has(Plant::ReplayOverPages);
        let order = if over { u64::MAX } else { lsn };
        let patched = volume.map.patch(&mut self.slab, (lba, lba + 1), (order, from), mapping);
        if !patched && self.paged_lsn.is_none_or(|paged| order > paged) {
            volume.map.set(&mut self.slab, Lba(lba), mapping);
        }
    }

    /// A block that was moved since the checkpoint: all that map it where it was do so here now.
    fn write_moved(
        &mut self,
        owner: u32,
        (lsn, from): (u64, Option<u64>),
        lba: u64,
        mapping: Mapping,
    ) {
        let leaf = lba / LEAF_BLOCKS as u64;
        let mut nodes = vec![owner];
        while let Some(node) = nodes.pop() {
            let Some(volume) = self.volumes.get_mut(node) else { continue };
            nodes.extend(&volume.children);
            if volume.map.is_different(leaf) {
                volume.map.patch(&mut self.slab, (lba, lba + 1), (lsn, from), mapping);
            }
        }
    }

    /// Makes the blocks `lba..end` holes or kept zeroes, but for leaves whose page is newer.
    fn zero(&mut self, volume: u32, lsn: u64, lba: u64, end: u64, keep: bool) {
        let Some(volume) = self.volumes.get_mut(volume) else { return };
        let new = if keep { Mapping::Kept } else { Mapping::Hole };
        // What the checkpoint stated is there already.
        let counts = self.paged_lsn.is_none_or(|paged| lsn > paged);
        let (per_leaf, mut from, mut at) = (LEAF_BLOCKS as u64, lba, lba);
        while at < end {
            let (_, leaves) = volume.map.leaf(&self.slab, at / per_leaf);
            let leaf_end = ((at / per_leaf + leaves) * per_leaf).min(end);
            if volume.map.patch(&mut self.slab, (at, leaf_end), (lsn, None), new) {
                if counts {
                    volume.map.zero(&mut self.slab, from, at, keep, &mut |_| {});
                }
                from = leaf_end;
            }
            at = leaf_end;
        }
        if counts {
            volume.map.zero(&mut self.slab, from, end, keep, &mut |_| {});
        }
    }

    fn change(&mut self, change: &OwnedRecord) {
        self.last_lsn = self.last_lsn.max(change.lsn());
        match *change {
            // See `restate`, and `pages::place`.
            OwnedRecord::Zero { vseq: STATED, .. } => {}
            OwnedRecord::Zero { volume: id, lsn, lba, blocks, keep, vseq } => {
                self.highest_volume = self.highest_volume.max(id);
                self.begin(id);
                let Some(volume) = self.volumes.get_mut(id) else { return };
                volume.next_vseq = volume.next_vseq.max(vseq.saturating_add(1));
                let end = lba.saturating_add(u64::from(blocks)).min(VOLUME_BLOCKS);
                // Each leaf's statement must be made again at the next compaction.
                for leaf in (lba / LEAF_BLOCKS as u64)..end.div_ceil(LEAF_BLOCKS as u64) {
                    volume.map.touch(&mut self.slab, Lba(leaf * LEAF_BLOCKS as u64));
                }
                self.zero(id, lsn, lba, end, keep);
            }
            OwnedRecord::Snapshot { .. } if self.planted.has(Plant::CutLate) => {}
            OwnedRecord::Snapshot { volume, line, .. } => self.cut(volume, line),
            OwnedRecord::Volume { volume, .. } => self.begin(volume),
            _ => {}
        }
    }

    /// Makes the maps what they were at the checkpoint, of what the log until then says: a leaf that is stated is
    /// its map's own, and in it are the holes and kept zeroes that the statement says; any other is the
    /// parent's. The log has neither what was discarded before, nor what a snapshot that is being taken apart has
    /// passed on.
    ///
    /// Children first give up what the log says: what they share with others is not copied then, but where several
    /// state a leaf that the log takes for one.
    fn restate(&mut self, input: &Input<'_>) -> Result<(), OpenError> {
        let order = self.volumes.parents_first(input.pages.lsn);
        let mut statements = pages::statements(input);
        // What a clone began with is in the map that its snapshot has now.
        order.iter().for_each(|&id| self.begin(id));
        let mut logged = Vec::with_capacity(order.len());
        for &id in order.iter().rev() {
            let stated = statements.remove(&id).unwrap_or_default();
            let Some(volume) = self.volumes.get_mut(id) else { continue };
            let mut map = std::mem::replace(&mut volume.map, VolumeMap::new(id));
            let leaf_of = |statement: &OwnedRecord| match *statement {
                OwnedRecord::Leaf { lba, .. } => map.take_leaf(&mut self.slab, lba / PER_LEAF),
                _ => Logged::NOTHING,
            };
            let leaves: Vec<Logged> = stated.iter().copied().map(leaf_of).collect();
            map.let_go(&mut self.slab, usize::MAX);
            logged.push((id, stated, leaves));
        }
        for (id, stated, leaves) in logged.into_iter().rev() {
            self.form(id, input.pages.lsn);
            let Some(volume) = self.volumes.get_mut(id) else { continue };
            for (statement, logged) in stated.into_iter().zip(leaves) {
                match *statement {
                    OwnedRecord::Leaf { lba, lsn, ref marks, .. } => {
                        let leaf = lba / PER_LEAF;
                        let again = volume.map.is_different(leaf);
                        if lba >= VOLUME_BLOCKS || !marks.are_apart() || again {
                            return Err(OpenError::Record { lsn });
                        }
                        volume.map.place_logged(&mut self.slab, logged, leaf, marks);
                    }
                    OwnedRecord::Zero { lba, blocks, keep, .. } => {
                        let end = lba.saturating_add(u64::from(blocks)).min(VOLUME_BLOCKS);
                        for leaf in lba.div_ceil(PER_LEAF)..end / PER_LEAF {
                            volume.map.place_empty(&mut self.slab, leaf, keep);
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Finds out who owns what, in a map that is made without pages: of all that map a block the oldest. The
    /// log does not tell it: a snapshot that is being taken apart has passed blocks to its child, and what it
    /// stated of itself is that it has none.
    fn find_owners(&mut self) {
        for id in self.volumes.parents_first(u64::MAX) {
            let mut next = 0;
            while let Some(leaf) = self.volumes.get(id).and_then(|v| v.map.next_different(next)) {
                next = leaf + 1;
                let Some(volume) = self.volumes.get(id) else { break };
                let LeafState::Dense(index) = volume.map.leaf(&self.slab, leaf).0 else { continue };
                let content = self.slab.get(index);
                let mut owned = content.data();
                let mut parent = volume.parent.and_then(|parent| self.volumes.get(parent));
                while let Some(node) = parent {
                    if let LeafState::Dense(index) = node.map.leaf(&self.slab, leaf).0 {
                        let same = content.same_as(self.slab.get(index));
                        owned.iter_mut().zip(&same).for_each(|(word, same)| *word &= !same);
                    }
                    // What one that is being taken apart has not, an older one may have.
                    let up = node.parent.filter(|_| node.state == VolumeState::Dying);
                    parent = up.and_then(|parent| self.volumes.get(parent));
                }
                if let Some(volume) = self.volumes.get_mut(id) {
                    volume.map.set_owned(&mut self.slab, leaf, &owned);
                }
            }
        }
    }

    /// Volumes that are deleted were there for their snapshots' sake. Nothing of theirs was counted.
    fn take_out_deleted(&mut self) {
        let deleted = |v: &&Volume| v.info.snapshot.is_none() && v.state == VolumeState::Dying;
        let deleted: Vec<u32> = self.volumes.iter().filter(deleted).map(|v| v.info.id).collect();
        for id in deleted {
            if let Some(mut volume) = self.volumes.take_out(id) {
                volume.map.let_go(&mut self.slab, usize::MAX);
            }
        }
    }

    /// Counts, for each segment, the blocks in it that leaves in memory own.
    fn count_live(&mut self) {
        for volume in self.volumes.iter() {
            let mut next = 0;
            while let Some(leaf) = volume.map.next_different(next) {
                next = leaf + 1;
                let LeafState::Dense(index) = volume.map.leaf(&self.slab, leaf).0 else { continue };
                let leaf = self.slab.get(index);
                for i in 0..LEAF_BLOCKS {
                    if let Mapping::Block { pbn, .. } = leaf.get(i)
                        && leaf.owns(i)
                    {
                        self.segs.born(self.geo.locate(pbn).0);
                    }
                }
            }
        }
    }
}
