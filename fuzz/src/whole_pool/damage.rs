//! Changes to a pool on disk, and the repair of every checksum and link that they break.
//!
//! A change is one byte that says what, and what that needs; see [`Damage::change`]. Numbers
//! select by remainder, so that every byte means something.

use super::spots::{Spot, Spots, record_layout};
use crate::disk::{Block, Disk};
use crate::fixup::{Kind, field, get, put, set_checksum, set_magic, set_version};
use crate::input::Input;
use flagstone_block::BLOCK_SIZE;
use flagstone_engine::format::field::{Field, Layout};
use flagstone_engine::format::record::layout::{segment_seal, write};
use flagstone_engine::format::segment::ENTRY_BYTES;
use flagstone_engine::format::superblock::SUPERBLOCK_END;
use flagstone_engine::format::{crc32, journal, meta, segment};
use std::collections::BTreeSet;

/// Changes of one input.
const CHANGES: usize = 64;
/// Change only the first copy of what is kept twice.
const ONE_COPY: u8 = 128;
/// Make a write record's checksums those of the data it names.
const PROVEN: u8 = 64;

/// Numbers at which arithmetic turns over.
const SPECIAL: [u64; 16] = [
    0,
    1,
    u64::MAX,
    1 << 63,
    (1 << 62) - 1,
    1 << 62,
    (1 << 61) - 1,
    1 << 61,
    1 << 52,
    (1 << 48) - 1,
    (1 << 48) - 512,
    1 << 40,
    u32::MAX as u64,
    1 << 31,
    u16::MAX as u64,
    1 << 20,
];

const RECORDS: Field = field(&journal::LAYOUT, "RECORDS");
const USED: Field = field(&journal::LAYOUT, "USED");
const PREV_CRC_JOURNAL: Field = field(&journal::LAYOUT, "PREV_CRC");
const PREV_CRC_PAGE: Field = field(&meta::LAYOUT, "PREV_CRC");
const LSN: Field = field(&write::LAYOUT, "LSN");

/// A pool being changed.
#[derive(Debug)]
pub(crate) struct Damage<'a> {
    disk: &'a mut Disk,
    spots: &'a Spots,
    journal: Vec<Spot>,
    added: Vec<Spot>,
    next_lsn: u64,
    /// Blocks whose checksum must be made right.
    touched: BTreeSet<u32>,
    /// Write records whose checksums must be made right.
    proven: Vec<Spot>,
}

impl<'a> Damage<'a> {
    pub(crate) fn new(disk: &'a mut Disk, spots: &'a Spots) -> Self {
        let lsn = |spot: &Spot| {
            let block = disk.block(spot.blocks[0]);
            block.map_or(0, |block| get(&block[spot.offset..], LSN))
        };
        let records = spots.journal_records.iter().chain(&spots.page_records);
        let highest = records.map(lsn).max().unwrap_or(0);
        Self {
            next_lsn: (highest + 1).max(spots.superblock.next_lsn),
            disk,
            spots,
            journal: spots.journal.clone(),
            added: Vec::new(),
            touched: BTreeSet::new(),
            proven: Vec::new(),
        }
    }

    /// Makes all changes of `input`, then everything right.
    pub(crate) fn apply(mut self, input: &mut Input<'_>) {
        for _ in 0..CHANGES {
            if input.is_empty() {
                break;
            }
            self.change(input);
        }
        self.prove_writes();
        self.fix_footers();
        self.fix_chain(&self.journal.clone(), PREV_CRC_JOURNAL);
        self.fix_chain(&self.spots.pages, PREV_CRC_PAGE);
        for block in self.touched {
            let bytes = self.disk.block_mut(block);
            if Kind::of(&bytes[..]).is_some() {
                set_checksum(bytes);
            }
        }
    }

    fn bytes(&self, block: u32) -> Block {
        self.disk.block(block).copied().unwrap_or([0; BLOCK_SIZE])
    }

    fn touch(&mut self, block: u32) -> &mut Block {
        self.touched.insert(block);
        self.disk.block_mut(block)
    }

    fn change(&mut self, input: &mut Input<'_>) {
        let what = input.u8();
        match what % 12 {
            0..=3 => {
                if let Some(spot) = self.spot(input) {
                    self.set_field(&spot, what, input);
                }
            }
            4 => {
                let Some(spot) = self.spot(input) else { return };
                let at = spot.offset + usize::from(input.u16()) % spot.bytes;
                let len = 1 + usize::from(input.u8()) % 8;
                let bytes = input.bytes(len.min(BLOCK_SIZE - at));
                for block in copies(&spot, what) {
                    self.touch(block)[at..at + bytes.len()].copy_from_slice(bytes);
                }
            }
            5 | 6 => {
                // Say again what some record says, now.
                let Some(record) = self.record(input) else { return };
                let block = self.bytes(record.blocks[0]);
                let mut bytes = block[record.offset..record.offset + record.bytes].to_vec();
                put(&mut bytes, LSN, self.next_lsn);
                self.next_lsn += 1;
                self.append(what % 12 == 6, &bytes, record.layout);
            }
            7 => {
                let to_pages = input.u8() & 1 != 0;
                let len = usize::from(input.u8());
                let bytes = input.bytes(len).to_vec();
                let layout = bytes.first().and_then(|&kind| record_layout(kind));
                self.append(to_pages, &bytes, layout.unwrap_or(&write::LAYOUT));
            }
            8 => self.add_journal_block(input),
            9 => {
                let (Some(from), Some(to)) = (self.spot(input), self.spot(input)) else { return };
                let bytes = self.bytes(from.blocks[0]);
                for block in copies(&to, what) {
                    *self.touch(block) = bytes;
                }
            }
            10 => {
                let Some(spot) = self.spot(input) else { return };
                for block in copies(&spot, what) {
                    self.disk.block_mut(block).fill(0);
                }
            }
            _ => {
                // Damage that its checksum shows, unless that is made right by another change.
                let data = &self.spots.data;
                let in_data = input.u8() & 1 != 0 && !data.is_empty();
                let which = usize::from(input.u16());
                let block = if in_data {
                    data[which % data.len()]
                } else {
                    let Some(spot) = self.spot(input) else { return };
                    spot.blocks[which % spot.blocks.len()]
                };
                self.disk.block_mut(block)[usize::from(input.u16()) % BLOCK_SIZE] ^= 1;
            }
        }
    }

    fn spot(&self, input: &mut Input<'_>) -> Option<Spot> {
        let spots = match input.u8() % 8 {
            0 => &self.spots.superblocks,
            1 => &self.journal,
            2 => &self.spots.journal_records,
            3 => &self.spots.pages,
            4 => &self.spots.page_records,
            5 => &self.spots.footers,
            6 => &self.spots.entries,
            _ => &self.added,
        };
        let which = usize::from(input.u16());
        if spots.is_empty() { None } else { Some(spots[which % spots.len()].clone()) }
    }

    fn record(&self, input: &mut Input<'_>) -> Option<Spot> {
        let which = usize::from(input.u16());
        let (a, b) = (&self.spots.journal_records, &self.spots.page_records);
        let all = a.len() + b.len();
        if all == 0 {
            return None;
        }
        let which = which % all;
        Some(a.get(which).unwrap_or_else(|| &b[which - a.len()]).clone())
    }

    fn set_field(&mut self, spot: &Spot, what: u8, input: &mut Input<'_>) {
        let field = spot.layout.fields[usize::from(input.u8()) % spot.layout.fields.len()];
        let at = spot.offset + field.offset;
        if at + field.size.min(8) > BLOCK_SIZE {
            return;
        }
        let field = Field { offset: 0, size: field.size.min(8), name: field.name };
        let old = get(&self.bytes(spot.blocks[0])[at..], field);
        let new = match input.u8() % 8 {
            0 => u64::from(input.u8()),
            1 => u64::from(input.u16()),
            2 => u64::from(input.u32()),
            3 => input.u64(),
            4 => old.wrapping_add_signed(i64::from(input.u8() as i8)),
            5 => SPECIAL[usize::from(input.u8()) % SPECIAL.len()],
            6 => old ^ 1 << (input.u8() % 64),
            _ => self.plausible(input.u8()),
        };
        for block in copies(spot, what) {
            put(&mut self.touch(block)[at..], field, new);
        }
        if what & PROVEN != 0 && spot.layout.name == write::LAYOUT.name {
            self.proven.push(spot.clone());
        }
    }

    /// Numbers that mean something in this pool.
    fn plausible(&self, which: u8) -> u64 {
        let (geo, superblock) = (&self.spots.geo, &self.spots.superblock);
        let near = u64::from(which >> 4);
        match which % 8 {
            0 => u64::from(geo.segments) - near,
            1 => self.next_lsn + near,
            2 => u64::from(geo.shape.data_blocks) - near,
            3 => geo.pbn(which as u32 >> 3, 0) + near,
            4 => superblock.journal_start + near,
            5 => superblock.meta_pages + near,
            6 => u64::from(superblock.next_volume) + near,
            _ => superblock.next_generation + near,
        }
    }

    /// Adds a record behind the last one of the journal or the metadata chain, if there is room.
    fn append(&mut self, to_pages: bool, record: &[u8], layout: &'static Layout) {
        if !to_pages && self.journal.is_empty() {
            self.add_journal_block(&mut Input::new(&[]));
        }
        let spots = if to_pages { &self.spots.pages } else { &self.journal };
        let Some(spot) = spots.last().cloned() else { return };
        let header = if to_pages { meta::HEADER_BYTES } else { journal::HEADER_BYTES };
        let block = self.bytes(spot.blocks[0]);
        let used = get(&block, USED) as usize;
        let offset = header + used;
        if offset + record.len() > BLOCK_SIZE || record.is_empty() {
            return;
        }
        for &block in &spot.blocks {
            let block = self.touch(block);
            block[offset..offset + record.len()].copy_from_slice(record);
            let records = get(block, RECORDS);
            put(block, RECORDS, records + 1);
            put(block, USED, (used + record.len()) as u64);
        }
        self.added.push(Spot { blocks: spot.blocks, offset, layout, bytes: record.len() });
    }

    /// Adds an empty block to the journal, linked to the last one.
    fn add_journal_block(&mut self, input: &mut Input<'_>) {
        const JSEQ: Field = field(&journal::LAYOUT, "JSEQ");
        let skip = u64::from(input.u8() % 8);
        let superblock = &self.spots.superblock;
        let mut block = [0; BLOCK_SIZE];
        let mut jseq = superblock.journal_start;
        match self.journal.last() {
            Some(last) => {
                block = self.bytes(last.blocks[0]);
                let crc = u32::from_le_bytes([block[8], block[9], block[10], block[11]]);
                put(&mut block, PREV_CRC_JOURNAL, u64::from(crc));
                jseq = get(&block, JSEQ).wrapping_add(1);
            }
            None => {
                set_magic(&mut block, Kind::Journal);
                set_version(&mut block);
                let pool = journal::pool_tag(&superblock.pool_uuid);
                for (name, value) in [
                    ("POOL", u64::from_le_bytes(pool)),
                    ("TAIL", jseq),
                    ("FLUSHED", jseq),
                    ("META_PAGES", superblock.meta_pages),
                    ("META_EPOCH", superblock.meta_epoch),
                ] {
                    put(&mut block, field(&journal::LAYOUT, name), value);
                }
            }
        }
        let jseq = jseq.wrapping_add(skip);
        let slot = jseq % u64::from(self.spots.geo.journal_blocks);
        block[journal::HEADER_BYTES..].fill(0);
        put(&mut block, RECORDS, 0);
        put(&mut block, USED, 0);
        put(&mut block, JSEQ, jseq);
        put(&mut block, const { field(&journal::LAYOUT, "FIRST_LSN") }, self.next_lsn);
        put(&mut block, const { field(&journal::LAYOUT, "SLOT") }, slot);
        let at = (SUPERBLOCK_END / BLOCK_SIZE as u64 + slot) as u32;
        *self.touch(at) = block;
        let spot =
            Spot { blocks: vec![at], offset: 0, layout: &journal::LAYOUT, bytes: BLOCK_SIZE };
        self.journal.retain(|other| other.blocks != spot.blocks);
        self.journal.push(spot);
    }

    /// Gives write records the checksums of the data that they name.
    fn prove_writes(&mut self) {
        for spot in std::mem::take(&mut self.proven) {
            let block = self.bytes(spot.blocks[0]);
            let record = &block[spot.offset..spot.offset + spot.bytes];
            let crcs = const { field(&write::LAYOUT, "CRCS") }.offset;
            if record.len() < crcs {
                continue;
            }
            let count = get(record, const { field(&write::LAYOUT, "COUNT") });
            let pbn = get(record, const { field(&write::LAYOUT, "PBN") });
            let first = self.spots.geo.data_offset / BLOCK_SIZE as u64;
            for i in 0..count.min((record.len() - crcs) as u64 / 4) {
                let Some(block) = first.checked_add(pbn + i) else { break };
                if block * BLOCK_SIZE as u64 >= self.spots.geo.pool_bytes() {
                    break;
                }
                let crc = crc32(&self.bytes(block as u32));
                let at = spot.offset + crcs + 4 * i as usize;
                for &copy in &spot.blocks {
                    self.touch(copy)[at..at + 4].copy_from_slice(&crc.to_le_bytes());
                }
            }
        }
    }

    /// Footers vouch for their entries, and seal records for footers.
    fn fix_footers(&mut self) {
        let entry_blocks = self.spots.geo.shape.entry_blocks;
        let spots = self.spots;
        for footer in &spots.footers {
            let block = footer.blocks[0];
            let table = block - entry_blocks..block;
            if self.touched.range(table.start..=block).next().is_none() {
                continue;
            }
            let mut bytes = self.bytes(block);
            let entries = get(&bytes, const { field(&segment::LAYOUT, "ENTRIES") }) as usize;
            let table: Vec<u8> = table.flat_map(|b| self.bytes(b)).collect();
            if let Some(used) = table.get(..entries * ENTRY_BYTES) {
                let crc = u64::from(crc32(used));
                put(&mut bytes, const { field(&segment::LAYOUT, "ENTRIES_CRC") }, crc);
            }
            let (old, new) = set_checksum(&mut bytes);
            *self.touch(block) = bytes;
            let seals = spots.journal_records.iter().chain(&spots.page_records);
            let seals: Vec<Spot> = seals
                .chain(&self.added)
                .filter(|spot| spot.layout.name == segment_seal::LAYOUT.name)
                .cloned()
                .collect();
            for seal in seals {
                const FOOTER_CRC: Field = field(&segment_seal::LAYOUT, "FOOTER_CRC");
                let bytes = self.bytes(seal.blocks[0]);
                if get(&bytes[seal.offset..], FOOTER_CRC) == u64::from(old) {
                    for &copy in &seal.blocks {
                        let offset = seal.offset;
                        put(&mut self.touch(copy)[offset..], FOOTER_CRC, u64::from(new));
                    }
                }
            }
        }
    }

    /// Makes checksums right, and with them the links of the blocks that follow.
    fn fix_chain(&mut self, chain: &[Spot], link: Field) {
        let mut before: Option<(u32, u32)> = None;
        for spot in chain {
            let mut this = None;
            for &block in &spot.blocks {
                let bytes = self.bytes(block);
                let linked = before
                    .is_some_and(|(old, new)| old != new && get(&bytes, link) == u64::from(old));
                if !linked && !self.touched.contains(&block) {
                    continue;
                }
                let bytes = self.disk.block_mut(block);
                if let Some((_, new)) = before
                    && linked
                {
                    put(bytes, link, u64::from(new));
                }
                let change = set_checksum(bytes);
                this.get_or_insert(change);
            }
            before = this;
        }
    }
}

/// The blocks of a spot that a change reaches.
fn copies(spot: &Spot, what: u8) -> impl Iterator<Item = u32> + use<> {
    let reached = if what & ONE_COPY != 0 { 1 } else { spot.blocks.len() };
    spot.blocks.clone().into_iter().take(reached)
}
