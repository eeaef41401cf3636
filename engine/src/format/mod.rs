//! On-disk structures: the only place that knows byte offsets.
//!
//! All numbers are little-endian. Every metadata block is 4096 bytes (a leaf page one or two such) and starts with
//! `magic u32, type u16, version u16, crc32 u32`; the CRC (CRC-32/ISO-HDLC) covers bytes
//! 12..4096. Every block also carries the pool it belongs to and its own position, so that a
//! misdirected or stale block is recognised. Decoders take arbitrary bytes and never panic.
//!
//! The byte tables are `docs/formats/*.md`; a test compares them with the constants here.

pub(crate) mod bytes;
pub mod device;
pub mod field;
pub mod journal;
pub mod leaf;
pub mod meta;
pub mod record;
pub mod segment;
pub mod superblock;

use bytes::{get_u16, get_u32, put_u16, put_u32};
use flagstone_block::BLOCK_SIZE;

/// Version written by this release; others are refused.
pub const FORMAT_VERSION: u16 = 1;

/// Sequence numbers, LSNs and generations stay below this; a larger one on disk can't be, and
/// refusing it keeps later arithmetic from overflowing.
pub const SEQUENCE_MAX: u64 = 1 << 62;

/// What kind of metadata block this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockKind {
    /// First four bytes.
    pub magic: [u8; 4],
    /// Type number.
    pub number: u16,
}

/// Why a metadata block was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not a block of this kind at all: never written, or something else.
    #[error("no such structure here")]
    Magic,
    /// Written by another version of the format.
    #[error("format version {found} is not known; this release knows version {FORMAT_VERSION}")]
    Version {
        /// The version found.
        found: u16,
    },
    /// The checksum does not match: torn or damaged.
    #[error("checksum mismatch")]
    Checksum,
    /// Right in itself, but of another pool.
    #[error("belongs to another pool")]
    ForeignPool,
    /// Right in itself, but written for another place.
    #[error("written for another place")]
    Position,
    /// A field has a value that can't be.
    #[error("field at byte {at} has an impossible value")]
    Field {
        /// Byte offset of the field in its structure.
        at: u16,
    },
}

/// CRC-32/ISO-HDLC of `bytes`: the checksum of every block of data and metadata.
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// Writes magic, type, version and, last, the checksum, which covers all of `block`.
pub(crate) fn finish_block(block: &mut [u8], kind: BlockKind) -> u32 {
    debug_assert!(block.len().is_multiple_of(BLOCK_SIZE));
    block[..4].copy_from_slice(&kind.magic);
    put_u16(block, 4, kind.number);
    put_u16(block, 6, FORMAT_VERSION);
    let crc = crc32(&block[12..]);
    put_u32(block, 8, crc);
    crc
}

/// Checks what [`finish_block`] wrote; returns the block's checksum.
pub(crate) fn verify_block(block: &[u8], kind: BlockKind) -> Result<u32, DecodeError> {
    if block.is_empty()
        || !block.len().is_multiple_of(BLOCK_SIZE)
        || block[..4] != kind.magic
        || get_u16(block, 4) != kind.number
    {
        return Err(DecodeError::Magic);
    }
    let crc = get_u32(block, 8);
    if crc32(&block[12..]) != crc {
        return Err(DecodeError::Checksum);
    }
    match get_u16(block, 6) {
        FORMAT_VERSION => Ok(crc),
        found => Err(DecodeError::Version { found }),
    }
}
