//! Reading the fixed places: superblocks, the journal ring and the metadata chain.

use super::RecoveryReport;
use super::records::{OwnedRecord, Placed};
use crate::error::OpenError;
use crate::format::DecodeError;
use crate::format::journal::{HEADER_BYTES, JournalHeader, pool_tag};
use crate::format::meta::{self, PAGE_BLOCKS, PageHeader};
use crate::format::record::Records;
use crate::format::superblock::{FLAG_JOINING, JournalPlace, SLOTS, Superblock, TAIL_BYTES};
use crate::geometry::Geometry;
use crate::meta_chain::NO_SEGMENT;
use flagstone_block::{BLOCK_SIZE, BlockIo, DEVICES, join_offset};
use std::ops::Range;

/// Bytes per read of the ring and the chain.
const READ_BYTES: usize = 1 << 20;

/// The best of what one device says, whatever it says of the others: `None` if no copy is valid.
/// `first_error` gets what is wrong with the first bad one.
fn device_superblock(
    io: &mut dyn BlockIo,
    device: usize,
    damaged: &mut u32,
    first_error: &mut Option<DecodeError>,
) -> Option<Superblock> {
    let end = io.device_bytes(device)? & !(BLOCK_SIZE as u64 - 1);
    let tail = end.saturating_sub(TAIL_BYTES);
    let mut best: Option<Superblock> = None;
    let mut block = [0; BLOCK_SIZE];
    for position in SLOTS.into_iter().flatten().chain([tail]) {
        if position + BLOCK_SIZE as u64 > end {
            continue;
        }
        // An unreadable place is a damaged copy, not the end; but, as every read, it is tried
        // once more before it is given up: the copy may be the newest.
        let mut read = || match io.read_at(join_offset(device, position), &mut block) {
            Ok(()) => Superblock::decode(position, &block),
            Err(_) => Err(DecodeError::Checksum),
        };
        let found = read().or_else(|_| read());
        match found {
            // One of a device that is only about to be added says nothing but who it is.
            Ok(superblock) => {
                let rank = |s: &Superblock| (s.flags & FLAG_JOINING == 0, s.generation);
                if best.is_none_or(|b| rank(&superblock) > rank(&b)) {
                    best = Some(superblock);
                }
            }
            Err(error) => {
                *damaged += 1;
                first_error.get_or_insert(error);
            }
        }
    }
    best
}

/// What a device says of itself and its pool, whichever pool it belongs to.
///
/// # Errors
/// `NoSuperblock`.
pub fn identify(io: &mut dyn BlockIo) -> Result<Superblock, OpenError> {
    let mut first = None;
    device_superblock(io, 0, &mut 0, &mut first)
        .ok_or(OpenError::NoSuperblock { first: first.unwrap_or(DecodeError::Magic) })
}

/// The superblock that counts: the highest generation with a valid copy on any device. Every device
/// that it names must be there, in its place; or, to be `degraded`, those that are must.
pub(crate) fn superblock(
    io: &mut dyn BlockIo,
    degraded: bool,
    report: &mut RecoveryReport,
) -> Result<Superblock, OpenError> {
    let mut first_error = None;
    let mut found = [None; DEVICES];
    for (device, found) in found.iter_mut().enumerate() {
        let damaged = &mut report.superblocks_damaged;
        *found = device_superblock(io, device, damaged, &mut first_error)
            .map(|s| (s.own().uuid, s.pool_uuid, s));
    }
    let counts = found.iter().flatten().map(|(.., s)| s).filter(|s| s.flags & FLAG_JOINING == 0);
    let Some(best) = counts.max_by_key(|s| s.generation).copied() else {
        let first = first_error.unwrap_or(DecodeError::Magic);
        return Err(OpenError::NoSuperblock { first });
    };
    for (device, row) in best.devices.iter() {
        let (bytes, label) = (row.bytes, row.label);
        if io.device_bytes(device).is_none() {
            if degraded || row.failed.is_some() {
                continue;
            }
            return Err(OpenError::DeviceMissing { device, uuid: row.uuid, bytes, label });
        }
        // One without any valid copy can only be trusted to be the only one.
        let is_it = match &found[device] {
            Some((uuid, pool, _)) => (*uuid, *pool) == (row.uuid, best.pool_uuid),
            None => best.devices.iter().count() == 1,
        };
        // What lies on one that failed is believed for its checksums only.
        if !is_it && row.failed.is_none() {
            return Err(OpenError::DeviceForeign { device, uuid: row.uuid, label });
        }
    }
    Ok(best)
}

/// A valid journal block.
#[derive(Debug)]
pub(super) struct JournalBlock {
    pub(super) header: JournalHeader,
    pub(super) crc: u32,
    block: Box<[u8]>,
}

/// What the ring says.
#[derive(Debug)]
pub(super) struct JournalScan {
    /// Blocks from the tail to the first that is missing.
    pub(super) chain: Vec<JournalBlock>,
    pub(super) tail: u64,
    /// Every block below this one was durable.
    pub(super) flushed: u64,
    /// Highest sequence number of any valid block, or one below the start.
    pub(super) last_seen: u64,
    /// Pages of the present metadata chain that were durable.
    pub(super) meta_pages: u64,
    /// Valid blocks beyond the end of the chain.
    pub(super) beyond: u64,
}

/// Reads the ring and follows the chain from the highest tail that any block claims.
pub(super) fn journal(
    io: &mut dyn BlockIo,
    geo: &Geometry,
    superblock: &Superblock,
) -> Result<JournalScan, OpenError> {
    let ring = geo.journal_blocks;
    let pool = pool_tag(&superblock.pool_uuid);
    let start = superblock.journal_start;
    let mut slots: Vec<Option<JournalBlock>> = Vec::new();
    slots.resize_with(ring as usize, || None);
    let mut bytes = vec![0; READ_BYTES];
    let (mut tail, mut last_seen) = (start, start.saturating_sub(1));
    // A superblock knows of a flush that no later block tells of.
    let mut flushed = start.max(superblock.journal_flushed);
    let mut meta_pages = superblock.meta_pages;
    let mut again = [0; BLOCK_SIZE];
    let JournalPlace { device, old, from } = superblock.journal;
    // Blocks from before the journal moved lie on the device that it came from.
    let parts = [(old, 0..from), (device, from..u64::MAX)];
    let parts = parts.into_iter().filter(|(_, jseqs)| jseqs.end > start);
    let slots_of = |(device, jseqs): (u32, Range<u64>)| {
        let steps = (0..ring).step_by(READ_BYTES / BLOCK_SIZE);
        steps.map(move |slot| (device as usize, jseqs.clone(), slot))
    };
    for (device, jseqs, slot) in parts.flat_map(slots_of) {
        let blocks = (ring - slot).min((READ_BYTES / BLOCK_SIZE) as u32);
        let part = &mut bytes[..blocks as usize * BLOCK_SIZE];
        let offset = geo.ring_slot(device, slot);
        if io.read_at(offset, part).is_err() {
            // One bad sector must not hide its neighbours.
            for (b, block) in part.chunks_exact_mut(BLOCK_SIZE).enumerate() {
                if io.read_at(offset + (b * BLOCK_SIZE) as u64, block).is_err() {
                    block.fill(0);
                }
            }
        }
        for (b, block) in part.chunks_exact(BLOCK_SIZE).enumerate() {
            let at = slot + b as u32;
            let mut decoded = JournalHeader::decode(pool, ring, at, block).map(|it| (it, block));
            // The magic is not covered by the checksum.
            if decoded.is_err() && !is_empty(block) {
                // As every read, once more before it is given up.
                let offset = offset + (b * BLOCK_SIZE) as u64;
                if io.read_at(offset, &mut again).is_ok() {
                    decoded =
                        JournalHeader::decode(pool, ring, at, &again).map(|it| (it, &again[..]));
                }
            }
            let Ok(((header, crc), block)) = decoded else { continue };
            if header.jseq < start || !jseqs.contains(&header.jseq) {
                continue;
            }
            tail = tail.max(header.tail);
            flushed = flushed.max(header.flushed);
            last_seen = last_seen.max(header.jseq);
            if header.meta_epoch > superblock.meta_epoch {
                // Only a superblock that was durable before gave the chain that epoch.
                return Err(OpenError::SuperblockStale {
                    generation: superblock.generation,
                    epoch: header.meta_epoch,
                });
            }
            if header.meta_epoch == superblock.meta_epoch {
                meta_pages = meta_pages.max(header.meta_pages);
            }
            // Of two devices the same slot may be in use.
            let newest = slots[at as usize].as_ref().map_or(0, |block| block.header.jseq);
            if header.jseq > newest {
                slots[at as usize] = Some(JournalBlock { header, crc, block: block.into() });
            }
        }
    }
    let mut chain: Vec<JournalBlock> = Vec::new();
    loop {
        let jseq = tail + chain.len() as u64;
        let slot = (jseq % u64::from(ring)) as usize;
        let linked = |block: &JournalBlock| {
            block.header.jseq == jseq
                && chain.last().is_none_or(|last| last.crc == block.header.prev_crc)
        };
        match slots[slot].take_if(|block| linked(block)) {
            Some(block) => chain.push(block),
            None => break,
        }
    }
    let end = tail + chain.len() as u64;
    if end < flushed {
        return Err(OpenError::JournalDamaged { jseq: end, flushed });
    }
    let beyond = slots.iter().flatten().filter(|block| block.header.jseq >= end).count() as u64;
    Ok(JournalScan { chain, tail, flushed, last_seen, meta_pages, beyond })
}

/// Whether nothing was written there.
fn is_empty(block: &[u8]) -> bool {
    let (words, rest) = block.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}

impl JournalBlock {
    /// The block's records.
    pub(super) fn records(&self, into: &mut Vec<Placed>) -> Result<(), OpenError> {
        let used = HEADER_BYTES + usize::from(self.header.used);
        for record in Records::new(&self.block[HEADER_BYTES..used], self.header.records) {
            let record = record.map_err(|_| OpenError::Record { lsn: self.header.first_lsn })?;
            into.push(Placed { record: OwnedRecord::from(&record), jseq: Some(self.header.jseq) });
        }
        Ok(())
    }
}

/// What the metadata chain says, and where it ends.
#[derive(Debug)]
pub(super) struct MetaScan {
    pub(super) records: Vec<Placed>,
    pub(super) segments: Vec<u32>,
    pub(super) next_segment: u32,
    pub(super) index: u32,
    pub(super) page: u64,
    pub(super) prev_crc: u32,
}

/// Follows the chain; each page from whichever copy is valid.
pub(super) fn meta_chain(
    io: &mut dyn BlockIo,
    geo: &Geometry,
    superblock: &Superblock,
    needed: u64,
    report: &mut RecoveryReport,
) -> Result<MetaScan, OpenError> {
    let pool = pool_tag(&superblock.pool_uuid);
    let mut scan = MetaScan {
        records: Vec::new(),
        segments: vec![superblock.meta_segment as u32],
        next_segment: NO_SEGMENT,
        index: 0,
        page: 0,
        prev_crc: 0,
    };
    let mut bytes = vec![0; READ_BYTES];
    let pages_per_read = (READ_BYTES / BLOCK_SIZE) as u32 / PAGE_BLOCKS;
    loop {
        let segment = *scan.segments.last().expect("never empty");
        if scan.index.is_multiple_of(pages_per_read) {
            let pages = pages_per_read.min(geo.pages() - scan.index);
            let part = &mut bytes[..(pages * PAGE_BLOCKS) as usize * BLOCK_SIZE];
            let offset = geo.segment_offset(segment, scan.index * PAGE_BLOCKS);
            if io.read_at(offset, part).is_err() {
                for (b, block) in part.chunks_exact_mut(BLOCK_SIZE).enumerate() {
                    if io.read_at(offset + (b * BLOCK_SIZE) as u64, block).is_err() {
                        block.fill(0);
                    }
                }
            }
        }
        let at = (scan.index % pages_per_read * PAGE_BLOCKS) as usize * BLOCK_SIZE;
        let copies = [&bytes[at..at + BLOCK_SIZE], &bytes[at + BLOCK_SIZE..at + 2 * BLOCK_SIZE]];
        let decode = |block: &[u8]| {
            PageHeader::decode(pool, segment, scan.index, block).ok().filter(|(header, _)| {
                header.epoch == superblock.meta_epoch
                    && header.nonce == superblock.meta_nonce
                    && header.page == scan.page
                    && header.prev_crc == scan.prev_crc
            })
        };
        let mut decoded = copies.map(decode);
        let mut again = [0; PAGE_BLOCKS as usize * BLOCK_SIZE];
        let copies = match decoded {
            // As every read, once more before it is given up.
            [None, None] => {
                for (b, block) in (0..).zip(again.chunks_exact_mut(BLOCK_SIZE)) {
                    let offset = geo.segment_offset(segment, scan.index * PAGE_BLOCKS + b);
                    if io.read_at(offset, block).is_err() {
                        block.fill(0);
                    }
                }
                let copies = [&again[..BLOCK_SIZE], &again[BLOCK_SIZE..]];
                decoded = copies.map(decode);
                copies
            }
            _ => copies,
        };
        let Some(copy) = decoded.iter().position(Option::is_some) else {
            if scan.page < needed {
                return Err(OpenError::MetadataDamaged { page: scan.page, segment, needed });
            }
            return Ok(scan);
        };
        if decoded.iter().any(Option::is_none) {
            report.meta_copies_damaged += 1;
        }
        let (header, crc) = decoded[copy].expect("position found it");
        let used = meta::HEADER_BYTES + usize::from(header.used);
        for record in Records::new(&copies[copy][meta::HEADER_BYTES..used], header.records) {
            let record = record.map_err(|_| OpenError::MetadataDamaged {
                page: scan.page,
                segment,
                needed,
            })?;
            scan.records.push(Placed { record: OwnedRecord::from(&record), jseq: None });
        }
        scan.page += 1;
        scan.prev_crc = crc;
        scan.next_segment = header.next_segment;
        scan.index += 1;
        if scan.index == geo.pages() {
            if !geo.has(header.next_segment) || scan.segments.contains(&header.next_segment) {
                if scan.page < needed {
                    return Err(OpenError::MetadataDamaged { page: scan.page, segment, needed });
                }
                return Ok(scan);
            }
            scan.segments.push(header.next_segment);
            scan.next_segment = NO_SEGMENT;
            scan.index = 0;
        }
    }
}
