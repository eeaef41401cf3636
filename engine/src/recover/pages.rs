//! The checkpoint's leaf pages: which there are, and what is known of them without reading them.

use super::RecoveryReport;
use super::records::{OwnedRecord, Placed};
use super::replay::{Input, Replay};
use crate::counting::{Counting, Known};
use crate::error::OpenError;
use crate::format::journal::pool_tag;
use crate::format::leaf::Header;
use crate::format::record::STATED;
use crate::geometry::Geometry;
use crate::limits::VOLUME_BLOCKS;
use crate::map::{LEAF_BLOCKS, LeafPage, LeafState, PagedLeaf};
use crate::plant::Plant;
use crate::volume::VolumeState;
use flagstone_block::{BLOCK_SIZE, BlockIo, ReadAt};
use std::collections::{BTreeMap, HashMap};

/// Pages read at once.
const PREFETCH: usize = 256;

const PER_LEAF: u64 = LEAF_BLOCKS as u64;

/// A leaf: volume, and number in it.
type Key = (u32, u64);

/// The pages that the metadata chain names.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// The newest page of each leaf, and the LSN at which it was right.
    named: BTreeMap<Key, (u64, LeafPage)>,
    /// Map segments, and how many pages of each are named.
    pub(super) segments: BTreeMap<u32, u32>,
    /// The LSN that each segment was last freed at, 0 for never: looked up for every block that is
    /// mapped.
    pub(super) freed: Vec<u64>,
    /// The statements describe the pool at this LSN or later: what no page speaks of was empty then.
    pub(super) lsn: u64,
}

impl Pages {
    pub(super) fn of(
        records: &[Placed],
        freed: HashMap<u32, u64>,
        geo: &Geometry,
    ) -> Result<Self, OpenError> {
        let mut pages = Self { freed: vec![0; geo.segments as usize], ..Self::default() };
        for (segment, lsn) in freed {
            pages.freed[segment as usize] = lsn;
        }
        for placed in records {
            match placed.record {
                OwnedRecord::Checkpoint { lsn } => pages.lsn = pages.lsn.max(lsn),
                OwnedRecord::Leaf { volume, lsn, lba, page, page_crc, .. } => {
                    let (segment, block) = geo.locate(page);
                    let blocks = geo.leaf_page_blocks();
                    if page >= geo.pbn(geo.segments, 0) || block + blocks > geo.shape.blocks {
                        return Err(OpenError::Record { lsn });
                    }
                    *pages.segments.entry(segment).or_default() += 1;
                    let page = LeafPage { pbn: page, crc: page_crc };
                    let newest = pages
                        .named
                        .entry((volume, lba / LEAF_BLOCKS as u64))
                        .or_insert((lsn, page));
                    if newest.0 <= lsn {
                        *newest = (lsn, page);
                    }
                }
                _ => {}
            }
        }
        Ok(pages)
    }

    /// Leaves that have a page.
    pub(super) fn len(&self) -> usize {
        self.named.len()
    }
}

/// What the checkpoint states of each volume and snapshot.
pub(super) fn statements<'a>(input: &Input<'a>) -> HashMap<u32, Vec<&'a OwnedRecord>> {
    let mut statements: HashMap<u32, Vec<&OwnedRecord>> = HashMap::new();
    for change in input.changes {
        let id = match *change {
            OwnedRecord::Leaf { volume, lsn, lba, page, page_crc, .. } => {
                let page = LeafPage { pbn: page, crc: page_crc };
                let newest = input.pages.named.get(&(volume, lba / LEAF_BLOCKS as u64));
                if newest != Some(&(lsn, page)) {
                    continue;
                }
                volume
            }
            OwnedRecord::Zero { volume, vseq: STATED, .. } => volume,
            _ => continue,
        };
        statements.entry(id).or_default().push(change);
    }
    statements
}

/// Puts the leaves of all volumes and snapshots that still exist into the maps, unread. False if a
/// record speaks of what its volume doesn't have.
pub(super) fn place(input: &Input<'_>, state: &mut Replay) -> bool {
    let mut statements = statements(input);
    for id in state.volumes.parents_first(input.pages.lsn) {
        state.form(id, input.pages.lsn);
        let Some(volume) = state.volumes.get_mut(id) else { continue };
        for statement in statements.remove(&id).unwrap_or_default() {
            match *statement {
                OwnedRecord::Leaf { lsn, lba, page, page_crc, ref marks, .. } => {
                    let page = LeafPage { pbn: page, crc: page_crc };
                    // Beyond the volume's present end there may be what a shrink has discarded since.
                    let beyond = lba >= VOLUME_BLOCKS;
                    let content = PagedLeaf::unread(page, marks, lsn);
                    let leaf = lba / LEAF_BLOCKS as u64;
                    let map = &mut volume.map;
                    if beyond
                        || !marks.are_apart()
                        || !map.place_away(&mut state.slab, leaf, content)
                    {
                        return false;
                    }
                }
                OwnedRecord::Zero { lba, blocks: count, keep, .. } => {
                    let end = lba.saturating_add(u64::from(count)).min(VOLUME_BLOCKS);
                    for leaf in lba.div_ceil(PER_LEAF)..end / PER_LEAF {
                        volume.map.place_empty(&mut state.slab, leaf, keep);
                    }
                }
                _ => {}
            }
        }
    }
    true
}

/// Reads all pages that are still needed, for who can't go on without, and counts what is live.
/// `None` if one of them is damaged, or contradicts what was logged since.
pub(super) fn read(
    io: &mut dyn BlockIo,
    geo: &Geometry,
    pool: &[u8; 16],
    mut state: Replay,
    report: &mut RecoveryReport,
) -> Option<Replay> {
    let Some(mut counting) = state.counting.take() else { return Some(state) };
    let order = counting.take_order();
    let page_bytes = geo.leaf_page_blocks() as usize * BLOCK_SIZE;
    let mut buffer = vec![0; PREFETCH.min(order.len()) * page_bytes];
    let mut results = Vec::new();
    let pool = pool_tag(pool);
    for part in order.chunks(PREFETCH) {
        let away = |key: &Key| match state.volumes.get(key.0)?.map.leaf(&state.slab, key.1).0 {
            LeafState::Away(away) => Some((*key, away, state.slab.away_leaf(away).page)),
            _ => None,
        };
        let part: Vec<(Key, u32, LeafPage)> = part.iter().filter_map(away).collect();
        let offset = |pbn: u64| {
            let (segment, block) = geo.locate(pbn);
            geo.segment_offset(segment, block)
        };
        let mut reads: Vec<ReadAt<'_>> = buffer
            .chunks_exact_mut(page_bytes)
            .zip(&part)
            .map(|(into, (.., page))| ReadAt { offset: offset(page.pbn), into })
            .collect();
        io.read_many(&mut reads, &mut results);
        for ((&(key, away, page), read), result) in part.iter().zip(&mut reads).zip(&results) {
            let decode = |bytes: &[u8]| {
                let (header, leaf, crc) = Header::decode(pool, bytes).ok()?;
                header.is_of(key.1, page, crc).then_some(leaf)
            };
            let mut leaf = result.is_ok().then(|| decode(read.into)).flatten();
            if leaf.is_none() && io.read_at(read.offset, read.into).is_ok() {
                // As every read, once more before it is given up.
                leaf = decode(read.into);
            }
            let read = leaf.and_then(|mut leaf| {
                let mut unread = state.slab.take_unread(away)?;
                let paged = state.slab.away_leaf(away);
                let dying = state.volumes.get(key.0).is_some_and(|v| v.state == VolumeState::Dying);
                let known = Known { marks: paged.marks(), owned: paged.owned(), dying };
                let right = counting.count(geo, &mut state.segs, &known, &mut unread, &mut leaf);
                right.then(|| (leaf, unread.is_empty()))
            });
            let Some((leaf, clean)) = read else {
                report.leaf_pages_damaged += 1;
                continue;
            };
            state.slab.bring_back(away, leaf, clean);
        }
    }
    state.segs.end_counting();
    (report.leaf_pages_damaged == 0).then_some(state)
}

impl Replay {
    /// Prepares the counting of the leaves that are still in their pages, in the order of these.
    pub(super) fn begin_counting(&mut self, input: &Input<'_>) {
        let (mut blocks, mut unread) = (0, Vec::new());
        for volume in self.volumes.iter() {
            let mut next = 0;
            while let Some(leaf) = volume.map.next_different(next) {
                next = leaf + 1;
                if let LeafState::Away(away) = volume.map.leaf(&self.slab, leaf).0 {
                    let paged = self.slab.away_leaf(away);
                    blocks += paged.owned();
                    unread.push((paged.page.pbn, (volume.info.id, leaf)));
                }
            }
        }
        if !unread.is_empty() {
            unread.sort_unstable();
            let order = unread.into_iter().map(|(_, key)| key).collect();
            self.segs.begin_counting(blocks, self.planted.has(Plant::FreeUncounted));
            self.counting = Some(Counting::new(order, input.pages.freed.clone(), self.planted));
        }
    }
}
