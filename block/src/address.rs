//! Block addresses and the one block size.

/// Bytes in a block, on disk and in every volume.
pub const BLOCK_SIZE: usize = 4096;
/// `1 << BLOCK_BITS == BLOCK_SIZE`.
pub const BLOCK_BITS: u32 = 12;

const _: () = assert!(1 << BLOCK_BITS == BLOCK_SIZE);

/// A block number inside one volume, in units of [`BLOCK_SIZE`] bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lba(pub u64);

impl Lba {
    /// The block that holds byte `offset` of the volume.
    #[must_use]
    pub const fn containing(offset: u64) -> Self {
        Self(offset >> BLOCK_BITS)
    }

    /// Byte offset of the block's first byte.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.0 << BLOCK_BITS
    }
}
