//! The checkpoint's leaf pages: which there are, and what they say.

use super::RecoveryReport;
use super::records::{OwnedRecord, Placed};
use super::replay::{Input, Replay};
use crate::error::OpenError;
use crate::format::journal::pool_tag;
use crate::format::leaf::Header;
use crate::format::record::LeafBits;
use crate::geometry::Geometry;
use crate::map::{LEAF_BLOCKS, Leaf, LeafPage, Mapping};
use crate::plant::Plant;
use crate::segment::SegmentState;
use flagstone_block::{BLOCK_SIZE, BlockIo, ReadAt};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Pages read at once.
const PREFETCH: usize = 256;

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
    freed: Vec<u64>,
    /// The statements describe the pool at this LSN or later.
    lsn: u64,
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

    /// The leaves `first..end` of a volume that have a page.
    pub(super) fn of_volume(
        &self,
        volume: u32,
        first: u64,
        end: u64,
    ) -> impl Iterator<Item = Key> + '_ {
        self.named.range((volume, first)..(volume, end.max(first))).map(|(key, _)| *key)
    }
}

/// What replay must know of the leaves that came from pages.
#[derive(Debug)]
pub(super) struct Leaves {
    base: HashMap<Key, Base>,
    /// What no page speaks of was empty at this LSN.
    lsn: u64,
}

#[derive(Clone, Copy, Debug)]
struct Base {
    lsn: u64,
    /// Blocks that the page names in a segment that was freed since.
    stale: LeafBits,
    /// Those of them for which nothing was found yet.
    missing: LeafBits,
}

/// Reads the pages of all volumes that still exist into the maps, without what is stale, and
/// counts what is live. With a bound on memory, leaves beyond it stay in their pages, but for
/// those that `changed` names. `None` if a page is damaged, or names what can't hold data.
pub(super) fn read(
    io: &mut dyn BlockIo,
    input: &Input<'_>,
    state: &mut Replay,
    changed: Option<HashSet<Key>>,
    report: &mut RecoveryReport,
) -> Result<Option<Leaves>, OpenError> {
    let geo = &input.geo;
    let exists = |key: &Key| state.volumes.get(key.0).is_some();
    let named = input.pages.named.iter().filter(|(key, _)| exists(key));
    let mut order: Vec<(Key, u64, LeafPage)> =
        named.map(|(key, (lsn, page))| (*key, *lsn, *page)).collect();
    order.sort_unstable_by_key(|(_, _, page)| page.pbn);
    let page_bytes = geo.leaf_page_blocks() as usize * BLOCK_SIZE;
    let mut buffer = vec![0; PREFETCH.min(order.len()) * page_bytes];
    let mut results = Vec::new();
    let mut leaves = Leaves { base: HashMap::new(), lsn: input.pages.lsn };
    let pool = pool_tag(&input.pool);
    let mut sound = true;
    for part in order.chunks(PREFETCH) {
        let offset = |pbn: u64| {
            let (segment, block) = geo.locate(pbn);
            geo.segment_offset(segment, block)
        };
        let mut reads: Vec<ReadAt<'_>> = buffer
            .chunks_exact_mut(page_bytes)
            .zip(part)
            .map(|(into, (_, _, page))| ReadAt { offset: offset(page.pbn), into })
            .collect();
        io.read_many(&mut reads, &mut results);
        for (((key, lsn, page), read), result) in part.iter().zip(&mut reads).zip(&results) {
            let decode = |bytes: &[u8]| {
                let (header, leaf, crc) = Header::decode(pool, bytes).ok()?;
                let right = crc == page.crc
                    && header.pbn == page.pbn
                    && (header.volume, header.lba / LEAF_BLOCKS as u64) == *key
                    // Narrower if the pool has grown since.
                    && header.width <= geo.pbn_bits()
                    && header.lsn <= *lsn;
                right.then_some(leaf)
            };
            let mut leaf = result.is_ok().then(|| decode(read.into)).flatten();
            if leaf.is_none() && io.read_at(read.offset, read.into).is_ok() {
                // As every read, once more before it is given up.
                leaf = decode(read.into);
            }
            report.leaf_pages += 1;
            match leaf {
                Some(leaf) => {
                    let here = changed.as_ref().is_none_or(|changed| changed.contains(key));
                    sound &= leaves.place(state, input, (*key, *lsn, *page), leaf, here);
                }
                None => report.leaf_pages_damaged += 1,
            }
        }
    }
    Ok((sound && report.leaf_pages_damaged == 0).then_some(leaves))
}

impl Leaves {
    /// Puts a leaf into its map; false if it names a block that can't hold data.
    fn place(
        &mut self,
        state: &mut Replay,
        input: &Input<'_>,
        (key, lsn, page): (Key, u64, LeafPage),
        mut leaf: Leaf,
        here: bool,
    ) -> bool {
        let geo = &input.geo;
        let Some(volume) = state.volumes.get_mut(key.0) else { return true };
        if key.1 * LEAF_BLOCKS as u64 >= volume.blocks() {
            return false;
        }
        let mut stale = LeafBits::default();
        for i in 0..LEAF_BLOCKS {
            let Mapping::Block { pbn, .. } = leaf.get(i) else { continue };
            if !geo.is_data(pbn, 1) {
                return false;
            }
            let segment = geo.locate(pbn).0;
            let freed = input.pages.freed[segment as usize] > lsn;
            if freed && !input.planted.has(Plant::StaleEntriesStay) {
                stale[i / 64] |= 1 << (i % 64);
                leaf.set(i, Mapping::Hole);
            } else if !matches!(
                state.segs.row(segment).state,
                SegmentState::Sealed | SegmentState::Open
            ) {
                return false;
            }
        }
        self.base.insert(key, Base { lsn, stale, missing: stale });
        let whole = stale == LeafBits::default();
        let fits = input.limit.is_none_or(|limit| state.slab.used() < limit);
        if here || !whole || fits {
            volume.map.place(&mut state.slab, key.1, leaf, whole.then_some(page));
        } else {
            for i in 0..LEAF_BLOCKS {
                if let Mapping::Block { pbn, .. } = leaf.get(i) {
                    state.segs.born(geo.locate(pbn).0);
                }
            }
            volume.map.place_away(&mut state.slab, key.1, &leaf, page);
        }
        true
    }

    /// Whether an entry `lsn` for this block is newer than what the page says of it.
    pub(super) fn takes(&mut self, volume: u32, lba: u64, lsn: u64) -> bool {
        let Some(base) = self.base.get_mut(&(volume, lba / LEAF_BLOCKS as u64)) else {
            return lsn > self.lsn;
        };
        let i = lba as usize % LEAF_BLOCKS;
        let (word, bit) = (i / 64, 1 << (i % 64));
        let takes = lsn > base.lsn || base.stale[word] & bit != 0;
        if takes {
            base.missing[word] &= !bit;
        }
        takes
    }

    /// As [`Leaves::takes`], for a discard of the blocks `lba..end` of one leaf.
    pub(super) fn takes_zero(&mut self, volume: u32, lba: u64, end: u64, lsn: u64) -> bool {
        let Some(base) = self.base.get_mut(&(volume, lba / LEAF_BLOCKS as u64)) else {
            return lsn >= self.lsn;
        };
        if lsn > base.lsn {
            for block in lba..end {
                let i = block as usize % LEAF_BLOCKS;
                base.missing[i / 64] &= !(1 << (i % 64));
            }
        }
        lsn > base.lsn
    }

    /// Whether something stale was superseded by nothing.
    pub(super) fn has_stale(&self) -> bool {
        self.base.values().any(|base| base.missing != LeafBits::default())
    }
}
