//! Journal block: one slot of the ring, the commit record of one batch.
//!
//! The block with sequence number `jseq` lies in slot `jseq % ring`. `prev_crc` chains it to its
//! predecessor, so that a leftover of an earlier life never continues a chain. What a header
//! claims (`tail`, `flushed`, `meta_pages`) was durable when the block was composed, so the claim
//! of *any* valid block may be believed, also of one beyond the end of the chain.

use super::bytes::{get_u16, get_u32, get_u64, put_u16, put_u32, put_u64};
use super::field::layout;
use super::{BlockKind, DecodeError, finish_block, verify_block};
use flagstone_block::BLOCK_SIZE;

const KIND: BlockKind = BlockKind { magic: *b"LSBJ", number: 2 };
/// First byte of the records.
pub const HEADER_BYTES: usize = 80;
/// Bytes for records in one block.
pub const RECORD_BYTES: usize = BLOCK_SIZE - HEADER_BYTES;

layout! {
    /// Byte table of the journal block's header.
    LAYOUT, "journal block" {
        MAGIC: 0, 4; TYPE: 4, 2; VERSION: 6, 2; CRC32: 8, 4; RECORDS: 12, 2; USED: 14, 2;
        POOL: 16, 8; JSEQ: 24, 8; FIRST_LSN: 32, 8; TAIL: 40, 8; FLUSHED: 48, 8;
        PREV_CRC: 56, 4; SLOT: 60, 4; META_PAGES: 64, 8; META_EPOCH: 72, 8;
    }
}

/// Header of a journal block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalHeader {
    /// Records in the block.
    pub records: u16,
    /// Bytes of records.
    pub used: u16,
    /// Sequence number.
    pub jseq: u64,
    /// LSN of the first record, or the next LSN if there is none.
    pub first_lsn: u64,
    /// Blocks before this one are covered elsewhere.
    pub tail: u64,
    /// Every block below this one was on stable media when this one was composed.
    pub flushed: u64,
    /// Checksum of the block before.
    pub prev_crc: u32,
    /// Metadata pages that were durable when this block was composed.
    pub meta_pages: u64,
    /// Epoch of the chain that these pages belong to.
    pub meta_epoch: u64,
}

/// First half of a pool's UUID: enough to tell foreign journal and metadata blocks.
#[must_use]
pub fn pool_tag(uuid: &[u8; 16]) -> [u8; 8] {
    let mut tag = [0; 8];
    tag.copy_from_slice(&uuid[..8]);
    tag
}

impl JournalHeader {
    /// Completes a block whose records already lie at [`HEADER_BYTES`]; returns its checksum.
    pub fn encode(&self, pool: [u8; 8], ring: u32, block: &mut [u8]) -> u32 {
        block[..HEADER_BYTES].fill(0);
        block[HEADER_BYTES + usize::from(self.used)..].fill(0);
        put_u16(block, at::RECORDS, self.records);
        put_u16(block, at::USED, self.used);
        block[at::POOL..at::POOL + 8].copy_from_slice(&pool);
        put_u64(block, at::JSEQ, self.jseq);
        put_u64(block, at::FIRST_LSN, self.first_lsn);
        put_u64(block, at::TAIL, self.tail);
        put_u64(block, at::FLUSHED, self.flushed);
        put_u32(block, at::PREV_CRC, self.prev_crc);
        put_u32(block, at::SLOT, (self.jseq % u64::from(ring)) as u32);
        put_u64(block, at::META_PAGES, self.meta_pages);
        put_u64(block, at::META_EPOCH, self.meta_epoch);
        finish_block(block, KIND)
    }

    /// Decodes the block read from `slot` of a ring of `ring` slots; also returns its checksum.
    ///
    /// # Errors
    /// Any [`DecodeError`].
    pub fn decode(
        pool: [u8; 8],
        ring: u32,
        slot: u32,
        block: &[u8],
    ) -> Result<(Self, u32), DecodeError> {
        let crc = verify_block(block, KIND)?;
        if block[at::POOL..at::POOL + 8] != pool {
            return Err(DecodeError::ForeignPool);
        }
        let header = Self {
            records: get_u16(block, at::RECORDS),
            used: get_u16(block, at::USED),
            jseq: get_u64(block, at::JSEQ),
            first_lsn: get_u64(block, at::FIRST_LSN),
            tail: get_u64(block, at::TAIL),
            flushed: get_u64(block, at::FLUSHED),
            prev_crc: get_u32(block, at::PREV_CRC),
            meta_pages: get_u64(block, at::META_PAGES),
            meta_epoch: get_u64(block, at::META_EPOCH),
        };
        if get_u32(block, at::SLOT) != slot || header.jseq % u64::from(ring) != u64::from(slot) {
            return Err(DecodeError::Position);
        }
        if usize::from(header.used) > RECORD_BYTES {
            return Err(DecodeError::Field { at: at::USED as u16 });
        }
        for (at, value) in [
            (at::JSEQ, header.jseq),
            (at::FIRST_LSN, header.first_lsn),
            (at::FLUSHED, header.flushed),
            (at::META_PAGES, header.meta_pages),
        ] {
            if value >= super::SEQUENCE_MAX {
                return Err(DecodeError::Field { at: at as u16 });
            }
        }
        if header.tail > header.jseq {
            return Err(DecodeError::Field { at: at::TAIL as u16 });
        }
        Ok((header, crc))
    }
}
