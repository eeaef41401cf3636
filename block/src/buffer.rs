//! Buffers: runs of 4 KiB slots in an arena that the engine borrows by name.
//!
//! The engine never owns memory that a device writes to. It holds [`Buffer`] names and asks
//! [`Buffers`] for the bytes, so that the same code runs over registered memory in production
//! and over plain vectors in the simulator.

use crate::BLOCK_SIZE;

/// A run of whole blocks in an arena. A name, not memory: copying it copies no bytes, and
/// whoever allocated it is the one who frees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Buffer {
    /// Index of the first 4 KiB slot in the arena.
    pub slot: u32,
    /// Length in blocks, at least 1.
    pub blocks: u32,
}

impl Buffer {
    /// Length in bytes.
    #[must_use]
    pub const fn len(self) -> usize {
        self.blocks as usize * BLOCK_SIZE
    }

    /// Never true: an empty buffer can't be allocated.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.blocks == 0
    }

    /// The part of this buffer that starts at block `first` and is `blocks` long.
    ///
    /// # Panics
    /// If the part does not lie inside the buffer.
    #[must_use]
    pub const fn part(self, first: u32, blocks: u32) -> Self {
        assert!(first + blocks <= self.blocks);
        Self { slot: self.slot + first, blocks }
    }
}

/// The arena that owns the bytes behind [`Buffer`] names.
pub trait Buffers {
    /// A contiguous, 4 KiB-aligned run of `blocks` blocks with undefined content, or `None` when
    /// the arena has no such run left. Never grows the arena.
    fn alloc(&mut self, blocks: u32) -> Option<Buffer>;

    /// Gives back a whole buffer exactly as [`Buffers::alloc`] returned it.
    fn free(&mut self, buffer: Buffer);

    /// The bytes of `buffer`, or of a [`Buffer::part`] of one.
    fn bytes(&self, buffer: Buffer) -> &[u8];

    /// The bytes of `buffer`, to be changed.
    fn bytes_mut(&mut self, buffer: Buffer) -> &mut [u8];
}
