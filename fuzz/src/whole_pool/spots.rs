//! What lies where in a pool: every structure that a change can aim at.

use crate::disk::Image;
use crate::fixup::{Kind, field, get};
use flagstone_block::BLOCK_SIZE;
use flagstone_engine::Geometry;
use flagstone_engine::format::field::{Field, Layout};
use flagstone_engine::format::record::{Records, layout};
use flagstone_engine::format::segment::{ENTRY_BYTES, ENTRY_LAYOUT};
use flagstone_engine::format::superblock::Superblock;
use flagstone_engine::format::{journal, meta, superblock};

/// A structure. What is kept in several copies is changed in all of them.
#[derive(Clone, Debug)]
pub(crate) struct Spot {
    /// Blocks that hold a copy each; the first alone where there is one.
    pub(crate) blocks: Vec<u32>,
    /// Byte offset in the block.
    pub(crate) offset: usize,
    pub(crate) layout: &'static Layout,
    /// Bytes; more than the layout's for records of several checksums.
    pub(crate) bytes: usize,
}

/// All structures of a pool, by kind.
#[derive(Debug)]
pub(crate) struct Spots {
    pub(crate) geo: Geometry,
    pub(crate) superblock: Superblock,
    /// The newest superblock's copies, then older ones.
    pub(crate) superblocks: Vec<Spot>,
    /// Blocks of the journal, in the order of their numbers.
    pub(crate) journal: Vec<Spot>,
    pub(crate) journal_records: Vec<Spot>,
    /// Pages of the chain, in their order.
    pub(crate) pages: Vec<Spot>,
    pub(crate) page_records: Vec<Spot>,
    pub(crate) footers: Vec<Spot>,
    pub(crate) entries: Vec<Spot>,
    /// Blocks that hold data.
    pub(crate) data: Vec<u32>,
}

/// Type number of each record layout, in the order of [`layout::ALL`].
pub(crate) const RECORD_TYPES: [u8; 9] = [1, 2, 3, 4, 5, 6, 7, 8, 15];

/// The layout of a record with this type number.
pub(crate) fn record_layout(kind: u8) -> Option<&'static Layout> {
    RECORD_TYPES.iter().position(|&k| k == kind).map(|i| &layout::ALL[i])
}

fn number(image: &Image, block: u32, field: Field) -> u64 {
    image.0[block as usize].as_deref().map_or(0, |bytes| get(bytes, field))
}

impl Spots {
    pub(crate) fn of(image: &Image) -> Self {
        let kinds: Vec<(u32, Kind)> = (0u32..)
            .zip(&image.0)
            .filter_map(|(i, block)| Some((i, Kind::of(&block.as_deref()?[..])?)))
            .collect();
        let of_kind = |kind: Kind| {
            let blocks: Vec<u32> =
                kinds.iter().filter(|(_, k)| *k == kind).map(|(block, _)| *block).collect();
            blocks
        };
        let whole = |blocks: Vec<u32>, kind: Kind| Spot {
            blocks,
            offset: 0,
            layout: kind.layout(),
            bytes: BLOCK_SIZE,
        };

        let generation = const { field(&superblock::LAYOUT, "GENERATION") };
        let copies = of_kind(Kind::Superblock);
        let newest = copies.iter().map(|&b| number(image, b, generation)).max();
        let (newest, older): (Vec<_>, Vec<_>) =
            copies.into_iter().partition(|&b| Some(number(image, b, generation)) == newest);
        let first = image.0[newest[0] as usize].as_deref().expect("it has a magic");
        let superblock = Superblock::decode(u64::from(newest[0]) * BLOCK_SIZE as u64, &first[..])
            .expect("a sound pool");
        let geo = Geometry::of(&superblock, |device| (device == 0).then(|| image.bytes()))
            .expect("a sound pool");
        let superblocks = vec![whole(newest, Kind::Superblock), whole(older, Kind::Superblock)];

        let jseq = const { field(&journal::LAYOUT, "JSEQ") };
        let mut blocks = of_kind(Kind::Journal);
        blocks.retain(|&b| number(image, b, jseq) >= superblock.journal_start);
        blocks.sort_by_key(|&b| number(image, b, jseq));
        let journal: Vec<Spot> =
            blocks.into_iter().map(|b| whole(vec![b], Kind::Journal)).collect();
        let journal_records =
            journal.iter().flat_map(|spot| records(image, spot, journal::HEADER_BYTES)).collect();

        let (epoch, page) = const { (field(&meta::LAYOUT, "EPOCH"), field(&meta::LAYOUT, "PAGE")) };
        let mut blocks = of_kind(Kind::Page);
        blocks.retain(|&b| number(image, b, epoch) == superblock.meta_epoch);
        blocks.sort_by_key(|&b| (number(image, b, page), b));
        let pages: Vec<Spot> =
            blocks.chunks_exact(2).map(|pair| whole(pair.to_vec(), Kind::Page)).collect();
        let page_records =
            pages.iter().flat_map(|spot| records(image, spot, meta::HEADER_BYTES)).collect();

        let footers: Vec<Spot> =
            of_kind(Kind::Footer).into_iter().map(|b| whole(vec![b], Kind::Footer)).collect();
        let entries = footers.iter().flat_map(|footer| entries(&geo, footer)).collect();
        let first_data = (geo.data_offset / BLOCK_SIZE as u64) as u32;
        let data = (first_data..image.0.len() as u32)
            .filter(|&b| image.0[b as usize].is_some())
            .filter(|&b| {
                let pbn = u64::from(b - first_data);
                geo.is_data(pbn, 1) && !kinds.iter().any(|(k, _)| *k == b)
            })
            .collect();
        Self {
            geo,
            superblock,
            superblocks: superblocks.into_iter().filter(|s| !s.blocks.is_empty()).collect(),
            journal,
            journal_records,
            pages,
            page_records,
            footers,
            entries,
            data,
        }
    }
}

/// The records of a journal block or metadata page; both say how many at the same place.
fn records(image: &Image, spot: &Spot, header: usize) -> Vec<Spot> {
    let Some(block) = image.0[spot.blocks[0] as usize].as_deref() else { return Vec::new() };
    let count = get(block, const { field(&journal::LAYOUT, "RECORDS") }) as u16;
    let used = get(block, const { field(&journal::LAYOUT, "USED") }) as usize;
    let mut offset = header;
    let mut spots = Vec::new();
    for record in Records::new(&block[header..header + used], count) {
        let bytes = record.expect("a sound pool").encoded_bytes();
        let layout = record_layout(block[offset]).expect("a sound pool");
        spots.push(Spot { blocks: spot.blocks.clone(), offset, layout, bytes });
        offset += bytes;
    }
    spots
}

/// The entries that a footer vouches for, in the blocks before it.
fn entries(geo: &Geometry, footer: &Spot) -> Vec<Spot> {
    let first = footer.blocks[0] - geo.shape.entry_blocks;
    let spot = |i: usize| {
        let at = i * ENTRY_BYTES;
        // An entry may straddle two blocks; its fields are then cut off at the first one's end.
        let offset = at % BLOCK_SIZE;
        let bytes = ENTRY_BYTES.min(BLOCK_SIZE - offset);
        Spot {
            blocks: vec![first + (at / BLOCK_SIZE) as u32],
            offset,
            layout: &ENTRY_LAYOUT,
            bytes,
        }
    };
    (0..geo.shape.data_blocks as usize).map(spot).collect()
}
