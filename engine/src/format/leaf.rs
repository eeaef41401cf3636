//! Leaf page: 2 MiB of a volume's map, as it was at one point of the log.
//!
//! A page is named, with its checksum, by a LEAF record of the metadata chain. It lies in a map
//! segment, is written once and holds nothing that the summaries don't say as well: if it is
//! damaged, opening reads those instead.
//!
//! Block numbers are packed, [`WIDTH`](Header::width) bits each, so that a page is one block in
//! pools up to 8 TiB.

use super::bytes::{get_u16, get_u32, get_u48, get_u64, put_u16, put_u32, put_u48, put_u64};
use super::field::layout;
use super::{BlockKind, DecodeError, finish_block, verify_block};
use crate::map::{LEAF_BLOCKS, Leaf, LeafPage, Mapping};
use flagstone_block::BLOCK_SIZE;

const KIND: BlockKind = BlockKind { magic: *b"LSBL", number: 5 };
/// First byte of the packed block numbers; the checksums follow them.
pub const HEADER_BYTES: usize = 64;
const CRC_BYTES: usize = 4 * LEAF_BLOCKS;
/// Widest block number.
const WIDTH_MAX: u32 = 40;

layout! {
    /// Byte table of a leaf page's header.
    LAYOUT, "leaf page" {
        MAGIC: 0, 4; TYPE: 4, 2; VERSION: 6, 2; CRC32: 8, 4; VOLUME: 12, 4; POOL: 16, 8;
        LSN: 24, 8; LBA: 32, 6; WIDTH: 38, 2; PBN: 40, 6; MAPPED: 48, 2; KEPT: 50, 2;
    }
}

/// Blocks that a page with block numbers of `width` bits takes.
#[must_use]
pub const fn page_blocks(width: u32) -> u32 {
    (HEADER_BYTES + packed_bytes(width) + CRC_BYTES).div_ceil(BLOCK_SIZE) as u32
}

const fn packed_bytes(width: u32) -> usize {
    LEAF_BLOCKS / 8 * width as usize
}

/// What a page says beside the mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of the volume or snapshot that it was written for.
    pub volume: u32,
    /// First block of the leaf in the volume.
    pub lba: u64,
    /// The map had been changed up to this record.
    pub lsn: u64,
    /// Own position: pool block.
    pub pbn: u64,
    /// Bits of a block number.
    pub width: u32,
}

impl Header {
    /// Whether this page, whose checksum is `crc`, is `page` and holds leaf number `leaf`. Whose it is
    /// may have changed since: of a snapshot that was taken later.
    #[must_use]
    pub fn is_of(&self, leaf: u64, page: LeafPage, crc: u32) -> bool {
        (page.pbn, page.crc) == (self.pbn, crc) && self.lba == leaf * LEAF_BLOCKS as u64
    }

    /// Writes the page of `leaf`; returns its checksum. `page` has [`page_blocks`] blocks.
    pub fn encode(&self, pool: [u8; 8], leaf: &Leaf, page: &mut [u8]) -> u32 {
        page.fill(0);
        put_u32(page, at::VOLUME, self.volume);
        page[at::POOL..at::POOL + 8].copy_from_slice(&pool);
        put_u64(page, at::LSN, self.lsn);
        put_u48(page, at::LBA, self.lba);
        put_u16(page, at::WIDTH, self.width as u16);
        put_u48(page, at::PBN, self.pbn);
        put_u16(page, at::MAPPED, leaf.mapped());
        put_u16(page, at::KEPT, leaf.kept());
        let (hole, kept) = marks(self.width);
        let (packed, crcs) = page[HEADER_BYTES..].split_at_mut(packed_bytes(self.width));
        let mut words = packed.chunks_exact_mut(8);
        let (mut bits, mut used) = (0u128, 0);
        for (i, crc_bytes) in crcs.chunks_exact_mut(4).take(LEAF_BLOCKS).enumerate() {
            let (value, crc) = match leaf.get(i) {
                Mapping::Hole => (hole, 0),
                Mapping::Kept => (kept, 0),
                Mapping::Block { pbn, crc } => (pbn, crc),
            };
            crc_bytes.copy_from_slice(&crc.to_le_bytes());
            bits |= u128::from(value) << used;
            used += self.width;
            if used >= 64 {
                // 512 numbers of any width fill whole words.
                let word = words.next().expect("as many words as bits");
                word.copy_from_slice(&(bits as u64).to_le_bytes());
                bits >>= 64;
                used -= 64;
            }
        }
        finish_block(page, KIND)
    }

    /// Decodes a page; also returns the leaf and the page's checksum.
    ///
    /// # Errors
    /// Any [`DecodeError`].
    pub fn decode(pool: [u8; 8], page: &[u8]) -> Result<(Self, Leaf, u32), DecodeError> {
        let crc = verify_block(page, KIND)?;
        if page[at::POOL..at::POOL + 8] != pool {
            return Err(DecodeError::ForeignPool);
        }
        let bad = |at: usize| DecodeError::Field { at: at as u16 };
        let header = Self {
            volume: get_u32(page, at::VOLUME),
            lba: get_u48(page, at::LBA),
            lsn: get_u64(page, at::LSN),
            pbn: get_u48(page, at::PBN),
            width: u32::from(get_u16(page, at::WIDTH)),
        };
        if !(2..=WIDTH_MAX).contains(&header.width)
            || page_blocks(header.width) as usize * BLOCK_SIZE != page.len()
        {
            return Err(bad(at::WIDTH));
        }
        if header.lsn >= super::SEQUENCE_MAX {
            return Err(bad(at::LSN));
        }
        let (hole, kept) = marks(header.width);
        let (packed, crcs) = page[HEADER_BYTES..].split_at(packed_bytes(header.width));
        let mut leaf = Leaf::new();
        let mut words = packed.chunks_exact(8);
        let (mut bits, mut left) = (0u128, 0);
        for i in 0..LEAF_BLOCKS {
            if left < header.width {
                let word = words.next().expect("as many words as bits");
                bits |= u128::from(get_u64(word, 0)) << left;
                left += 64;
            }
            let value = bits as u64 & hole;
            bits >>= header.width;
            left -= header.width;
            if value == kept {
                leaf.set(i, Mapping::Kept);
            } else if value != hole {
                leaf.set(i, Mapping::Block { pbn: value, crc: get_u32(crcs, 4 * i) });
            }
        }
        if leaf.mapped() != get_u16(page, at::MAPPED) {
            return Err(bad(at::MAPPED));
        }
        if leaf.kept() != get_u16(page, at::KEPT) {
            return Err(bad(at::KEPT));
        }
        Ok((header, leaf, crc))
    }
}

/// The values that stand for a hole and for a kept zero.
fn marks(width: u32) -> (u64, u64) {
    let hole = (1 << width) - 1;
    (hole, hole - 1)
}
