//! Every decoder of the disk format, with the checksums made right.
//!
//! The first byte of an input says what is *not* made right, so that those paths are reached
//! too; zero makes everything right. What decodes must encode to the same fields, and what was
//! encoded must decode to the same values.

use crate::fixup::{self, Kind, field, get, put};
use flagstone_block::{BLOCK_SIZE, split_offset};
use flagstone_engine::Geometry;
use flagstone_engine::format::field::{Field, Layout};
use flagstone_engine::format::journal::{self as j, JournalHeader};
use flagstone_engine::format::meta::{self as m, PageHeader};
use flagstone_engine::format::record::{Record, Records};
use flagstone_engine::format::segment::{
    self as g, ENTRY_BYTES, ENTRY_LAYOUT, Entry, Footer, SegmentShape,
};
use flagstone_engine::format::superblock::{self as s, SUPERBLOCK_END, Superblock, TAIL_BYTES};
use flagstone_engine::format::{SEQUENCE_MAX, crc32};

const POOL: [u8; 16] = [7; 16];
const RING: u32 = 2048;
const SEGMENT_BLOCKS: u32 = 256;

const LEAVE_MAGIC: u8 = 1;
const LEAVE_VERSION: u8 = 2;
const LEAVE_CHECKSUM: u8 = 4;
const LEAVE_POSITION: u8 = 8;
const LEAVE_POOL: u8 = 16;

/// A block that begins with `bytes`, made right except for what `leave` names. `position` sets
/// the fields that say where the block lies and whose it is.
fn block(kind: Kind, leave: u8, bytes: &[u8], position: impl FnOnce(&mut [u8], u8)) -> Vec<u8> {
    let mut block = vec![0; BLOCK_SIZE];
    let len = bytes.len().min(BLOCK_SIZE);
    block[..len].copy_from_slice(&bytes[..len]);
    if leave & LEAVE_MAGIC == 0 {
        fixup::set_magic(&mut block, kind);
    }
    if leave & LEAVE_VERSION == 0 {
        fixup::set_version(&mut block);
    }
    position(&mut block, leave);
    if leave & LEAVE_CHECKSUM == 0 {
        fixup::set_checksum(&mut block);
    }
    block
}

/// Both blocks have the same bytes in every field of `layout` but those named.
fn same_fields(layout: &Layout, a: &[u8], b: &[u8], except: &[Field]) {
    for field in layout.fields.iter().filter(|field| !except.contains(field)) {
        let range = field.offset..field.offset + field.size;
        assert_eq!(a[range.clone()], b[range], "{}: {}", layout.name, field.name);
    }
}

/// The superblock, and the geometry it describes.
pub fn superblock(input: &[u8]) {
    let Some((&leave, bytes)) = input.split_first() else { return };
    let bytes = block(Kind::Superblock, leave, bytes, |block, leave| {
        if leave & LEAVE_POSITION == 0 {
            put(block, const { field(&s::LAYOUT, "POSITION") }, 0);
            put(block, const { field(&s::LAYOUT, "LENGTH") }, BLOCK_SIZE as u64);
            put(block, const { field(&s::LAYOUT, "BLOCK_BYTES") }, BLOCK_SIZE as u64);
            put(block, const { field(&s::LAYOUT, "FEATURES_INCOMPAT") }, 0);
        }
    });
    let Ok(superblock) = Superblock::decode(0, &bytes) else { return };
    let mut again = vec![0xee; BLOCK_SIZE];
    superblock.encode(0, &mut again);
    assert_eq!(Superblock::decode(0, &again), Ok(superblock));
    const RESERVED: [Field; 7] = [
        field(&s::LAYOUT, "CRC32"),
        field(&s::LAYOUT, "FEATURES_COMPAT"),
        field(&s::LAYOUT, "FEATURES_RO_COMPAT"),
        field(&s::LAYOUT, "CHECKPOINT_PBN"),
        field(&s::LAYOUT, "CHECKPOINT_CRC"),
        field(&s::LAYOUT, "CHECKPOINT_LENGTH"),
        field(&s::LAYOUT, "CHECKPOINT_LSN"),
    ];
    same_fields(&s::LAYOUT, &bytes, &again, &RESERVED);
    for device_bytes in [0, 64 << 20, superblock.own().bytes, u64::MAX] {
        let Ok(geo) = Geometry::of(&superblock, |_| Some(device_bytes)) else { continue };
        let segment_bytes = u64::from(geo.shape.blocks) * BLOCK_SIZE as u64;
        for device in geo.devices() {
            let on_device = |offset| split_offset(offset).1;
            let last_slot = geo.ring_slot(device, geo.journal_blocks - 1);
            assert!(geo.data_offset >= on_device(last_slot));
            assert!(on_device(geo.ring_slot(device, 0)) >= SUPERBLOCK_END);
            let extent = geo.extents[device];
            let last = extent.first + extent.segments - 1;
            assert!(geo.device_of(last) == Some(device) && last < geo.segments);
            let end = on_device(geo.segment_offset(last, 0)) + segment_bytes;
            assert!(end <= extent.bytes - TAIL_BYTES && extent.bytes <= device_bytes);
        }
        let last = geo.pbn(geo.segments, 0) - 1;
        assert_eq!(geo.locate(last), (geo.segments - 1, geo.shape.blocks - 1));
        assert!(!geo.is_data(last, 1));
        assert!(geo.is_data(0, geo.shape.data_blocks));
    }
}

/// Walks records; each that decodes must survive a round trip. Returns the bytes they took.
fn check_records(bytes: &[u8], records: u16) -> usize {
    let mut used = 0;
    for record in Records::new(bytes, records) {
        let Ok(record) = record else { return used };
        let len = record.encoded_bytes();
        assert!(len % 8 == 0 && used + len <= bytes.len());
        assert!(record.lsn() < SEQUENCE_MAX);
        let mut again = vec![0xee; len];
        assert_eq!(record.encode(&mut again), Some(len));
        assert_eq!(Record::decode(&again), Ok((record, len)));
        assert_eq!(record.encode(&mut again[..len - 1]), None);
        used += len;
    }
    used
}

/// A journal block and its records.
pub fn journal(input: &[u8]) {
    let Some((&leave, bytes)) = input.split_first() else { return };
    let mut slot = 0;
    let pool = j::pool_tag(&POOL);
    let bytes = block(Kind::Journal, leave, bytes, |block, leave| {
        slot = (get(block, const { field(&j::LAYOUT, "JSEQ") }) % u64::from(RING)) as u32;
        if leave & LEAVE_POSITION == 0 {
            put(block, const { field(&j::LAYOUT, "SLOT") }, u64::from(slot));
        }
        if leave & LEAVE_POOL == 0 {
            put(block, const { field(&j::LAYOUT, "POOL") }, u64::from_le_bytes(pool));
        }
    });
    let Ok((header, crc)) = JournalHeader::decode(pool, RING, slot, &bytes) else { return };
    assert_eq!(crc, crc32(&bytes[12..]));
    assert!(JournalHeader::decode(pool, RING, (slot + 1) % RING, &bytes).is_err());
    let used = usize::from(header.used);
    check_records(&bytes[j::HEADER_BYTES..j::HEADER_BYTES + used], header.records);
    let mut again = bytes.clone();
    let crc = header.encode(pool, RING, &mut again);
    assert_eq!(JournalHeader::decode(pool, RING, slot, &again), Ok((header, crc)));
    same_fields(&j::LAYOUT, &bytes, &again, &[const { field(&j::LAYOUT, "CRC32") }]);
}

/// A metadata page and its records.
pub fn metadata(input: &[u8]) {
    let Some((&leave, bytes)) = input.split_first() else { return };
    let pool = j::pool_tag(&POOL);
    let (segment, index) = (3, 5);
    let bytes = block(Kind::Page, leave, bytes, |block, leave| {
        if leave & LEAVE_POSITION == 0 {
            put(block, const { field(&m::LAYOUT, "SEGMENT") }, u64::from(segment));
            put(block, const { field(&m::LAYOUT, "INDEX") }, u64::from(index));
        }
        if leave & LEAVE_POOL == 0 {
            put(block, const { field(&m::LAYOUT, "POOL") }, u64::from_le_bytes(pool));
        }
    });
    let Ok((header, crc)) = PageHeader::decode(pool, segment, index, &bytes) else { return };
    assert_eq!(crc, crc32(&bytes[12..]));
    assert!(PageHeader::decode(pool, segment, index + 1, &bytes).is_err());
    let used = usize::from(header.used);
    check_records(&bytes[m::HEADER_BYTES..m::HEADER_BYTES + used], header.records);
    let mut again = bytes.clone();
    let crc = header.encode(pool, &mut again);
    assert_eq!(PageHeader::decode(pool, segment, index, &again), Ok((header, crc)));
    same_fields(&m::LAYOUT, &bytes, &again, &[const { field(&m::LAYOUT, "CRC32") }]);
}

/// A segment's footer and entries. The input holds the footer's fields, then the entries.
pub fn segment(input: &[u8]) {
    let Some((&leave, bytes)) = input.split_first() else { return };
    let shape = SegmentShape::new(SEGMENT_BLOCKS);
    let number = 11;
    let (fields, entries) = bytes.split_at(bytes.len().min(80));
    let mut table = vec![0; shape.entry_blocks as usize * BLOCK_SIZE];
    let len = entries.len().min(table.len());
    table[..len].copy_from_slice(&entries[..len]);
    let bytes = block(Kind::Footer, leave, fields, |block, leave| {
        if leave & LEAVE_POSITION == 0 {
            put(block, const { field(&g::LAYOUT, "SEGMENT") }, number);
        }
        if leave & LEAVE_POOL == 0 {
            let pool = const { field(&g::LAYOUT, "POOL_UUID") };
            block[pool.offset..pool.offset + pool.size].copy_from_slice(&POOL);
        }
        let used = get(block, const { field(&g::LAYOUT, "ENTRIES") }) as usize * ENTRY_BYTES;
        if let Some(used) = table.get(..used) {
            put(block, const { field(&g::LAYOUT, "ENTRIES_CRC") }, u64::from(crc32(used)));
        }
    });
    let number = number as u32;
    let Ok((footer, crc)) = Footer::decode(&POOL, number, &shape, &bytes) else { return };
    assert_eq!(crc, crc32(&bytes[12..]));
    assert!(Footer::decode(&POOL, number + 1, &shape, &bytes).is_err());
    let mut again = vec![0xee; BLOCK_SIZE];
    let crc = footer.encode(&POOL, &mut again);
    assert_eq!(Footer::decode(&POOL, number, &shape, &again), Ok((footer, crc)));
    const UNUSED: [Field; 1] = [field(&g::LAYOUT, "CRC32")];
    same_fields(&g::LAYOUT, &bytes, &again, &UNUSED);
    let used = &table[..usize::from(footer.entries) * ENTRY_BYTES];
    assert_eq!(crc32(used), footer.entries_crc);
    for bytes in used.chunks_exact(ENTRY_BYTES) {
        let entry = Entry::decode(bytes);
        let mut again = [0xee; ENTRY_BYTES];
        entry.encode(&mut again);
        assert_eq!(Entry::decode(&again), entry);
        // Sources count only where a flag says so.
        const RESERVED: [Field; 4] = [
            field(&ENTRY_LAYOUT, "FLAGS"),
            field(&ENTRY_LAYOUT, "SOURCE_PBN"),
            field(&ENTRY_LAYOUT, "SOURCE_GENERATION"),
            field(&ENTRY_LAYOUT, "NODE"),
        ];
        same_fields(&ENTRY_LAYOUT, bytes, &again, &RESERVED);
    }
}
