//! Metadata page: records that must outlive the journal ring.
//!
//! Pages form a chain through metadata segments. Each page is written twice, in neighbouring
//! blocks, so that one bad block loses nothing. `prev_crc` and `nonce` keep the leftovers of an
//! interrupted attempt out of the chain; `next_segment` says where the chain goes on when this
//! segment is full.

use super::bytes::{get_u16, get_u32, get_u64, put_u16, put_u32, put_u64};
use super::field::layout;
use super::{BlockKind, DecodeError, finish_block, verify_block};
use flagstone_block::BLOCK_SIZE;

const KIND: BlockKind = BlockKind { magic: *b"LSBM", number: 4 };
/// First byte of the records.
pub const HEADER_BYTES: usize = 80;
/// Bytes for records in one page.
pub const RECORD_BYTES: usize = BLOCK_SIZE - HEADER_BYTES;
/// Blocks that a page takes on disk: the page and its copy.
pub const PAGE_BLOCKS: u32 = 2;

layout! {
    /// Byte table of the metadata page's header.
    LAYOUT, "metadata page" {
        MAGIC: 0, 4; TYPE: 4, 2; VERSION: 6, 2; CRC32: 8, 4; RECORDS: 12, 2; USED: 14, 2;
        POOL: 16, 8; EPOCH: 24, 8; PAGE: 32, 8; SEGMENT: 40, 4; INDEX: 44, 4;
        NEXT_SEGMENT: 48, 4; PREV_CRC: 52, 4; NONCE: 56, 8;
    }
}

/// Header of a metadata page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// Records in the page.
    pub records: u16,
    /// Bytes of records.
    pub used: u16,
    /// Epoch of the chain.
    pub epoch: u64,
    /// Number of the page in its chain.
    pub page: u64,
    /// Own position: segment.
    pub segment: u32,
    /// Own position: page of the segment.
    pub index: u32,
    /// Segment in which the chain goes on.
    pub next_segment: u32,
    /// Checksum of the page before.
    pub prev_crc: u32,
    /// As in the superblock that names the chain.
    pub nonce: u64,
}

impl PageHeader {
    /// Completes a page whose records already lie at [`HEADER_BYTES`]; returns its checksum.
    pub fn encode(&self, pool: [u8; 8], block: &mut [u8]) -> u32 {
        block[..HEADER_BYTES].fill(0);
        block[HEADER_BYTES + usize::from(self.used)..].fill(0);
        put_u16(block, at::RECORDS, self.records);
        put_u16(block, at::USED, self.used);
        block[at::POOL..at::POOL + 8].copy_from_slice(&pool);
        put_u64(block, at::EPOCH, self.epoch);
        put_u64(block, at::PAGE, self.page);
        put_u32(block, at::SEGMENT, self.segment);
        put_u32(block, at::INDEX, self.index);
        put_u32(block, at::NEXT_SEGMENT, self.next_segment);
        put_u32(block, at::PREV_CRC, self.prev_crc);
        put_u64(block, at::NONCE, self.nonce);
        finish_block(block, KIND)
    }

    /// Decodes a page; also returns its checksum.
    ///
    /// # Errors
    /// Any [`DecodeError`].
    pub fn decode(
        pool: [u8; 8],
        segment: u32,
        index: u32,
        block: &[u8],
    ) -> Result<(Self, u32), DecodeError> {
        let crc = verify_block(block, KIND)?;
        if block[at::POOL..at::POOL + 8] != pool {
            return Err(DecodeError::ForeignPool);
        }
        let header = Self {
            records: get_u16(block, at::RECORDS),
            used: get_u16(block, at::USED),
            epoch: get_u64(block, at::EPOCH),
            page: get_u64(block, at::PAGE),
            segment: get_u32(block, at::SEGMENT),
            index: get_u32(block, at::INDEX),
            next_segment: get_u32(block, at::NEXT_SEGMENT),
            prev_crc: get_u32(block, at::PREV_CRC),
            nonce: get_u64(block, at::NONCE),
        };
        if header.segment != segment || header.index != index {
            return Err(DecodeError::Position);
        }
        if usize::from(header.used) > RECORD_BYTES {
            return Err(DecodeError::Field { at: at::USED as u16 });
        }
        Ok((header, crc))
    }
}
