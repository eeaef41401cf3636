//! The buffer arena: one mapping that devices and sockets read from and write to.
//!
//! Invariants:
//! 1. A slot that the kernel may write (a read from a device, a receive) is borrowed by nobody:
//!    [`Arena::bytes`] and [`Arena::bytes_mut`] panic on it.
//! 2. A slot that the kernel may read (a write to a device, a send) can be looked at, not changed:
//!    [`Arena::bytes_mut`] panics on it.
//! 3. A slot under any kernel operation is never given back: [`Arena::free`] panics.
//!
//! These checks are what makes the arena's safe face sound, so they run in every build and over
//! every slot of the range. They read four bytes per 4096 that the caller is about to touch.
//! Such a panic is a broken invariant of the caller, never a reaction to input.
//!
//! The mapping lives as long as the arena and never moves. No allocation after `new`.
//! Only [`crate::Ring`] marks slots as under way.

mod buddy;

use std::ops::Range;

use flagstone_block::{BLOCK_SIZE, Buffer, Buffers};
use memmap2::{Advice, MmapMut, MmapRaw};

use self::buddy::Buddy;

/// The most blocks that one buffer can have.
pub const MAX_BUFFER_BLOCKS: u32 = 1 << buddy::MAX_ORDER;

/// Uses of a slot by the kernel: the number of operations that read it, or `WRITTEN`. Wide enough for
/// one block (of zeroes, say) that every part of every send of every socket refers to.
type Use = u32;
const IDLE: Use = 0;
const WRITTEN: Use = Use::MAX;

/// A fixed number of 4 KiB slots, handed out in contiguous runs.
///
/// Content is undefined until written, and never content of another process: the mapping starts
/// as zeroes.
pub struct Arena {
    /// `None` only while being leaked.
    memory: Option<MmapRaw>,
    /// First byte of `memory`.
    base: *mut u8,
    buddy: Buddy,
    uses: Box<[Use]>,
    huge_pages: bool,
}

impl Arena {
    /// Maps `blocks` slots; asks for huge pages, which the system may not give.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn new(blocks: u32) -> std::io::Result<Self> {
        let mapping = MmapMut::map_anon(blocks.max(1) as usize * BLOCK_SIZE)?;
        // Advice only: a kernel without transparent huge pages refuses it and nothing is lost.
        let huge_pages = mapping.advise(Advice::HugePage).is_ok();
        // A child process has no use for the buffers; without this each fork would copy what is
        // pinned. Advice as well: where it is refused, forking is only slower.
        let _ = mapping.advise(Advice::DontFork);
        let memory = MmapRaw::from(mapping);
        Ok(Self {
            base: memory.as_mut_ptr(),
            memory: Some(memory),
            buddy: Buddy::new(blocks),
            uses: vec![IDLE; blocks as usize].into(),
            huge_pages,
        })
    }

    /// Slots in the arena, free or not.
    #[must_use]
    pub fn capacity_blocks(&self) -> u32 {
        self.uses.len() as u32
    }

    /// Slots that are not allocated. They need not be contiguous.
    #[must_use]
    pub fn free_blocks(&self) -> u32 {
        self.buddy.free_slots()
    }

    /// Whether the kernel accepted the request for huge pages.
    #[must_use]
    pub(crate) fn huge_pages(&self) -> bool {
        self.huge_pages
    }

    /// Address of byte `from` of slot `slot`; for the kernel, not to be dereferenced here.
    pub(crate) fn address(&self, slot: u32, from: usize) -> *mut u8 {
        self.base.wrapping_add(slot as usize * BLOCK_SIZE + from)
    }

    /// Which mapping this is: two arenas never agree.
    pub(crate) fn identity(&self) -> *mut u8 {
        self.base
    }

    /// The whole mapping, for registration.
    pub(crate) fn whole(&self) -> (*mut u8, usize) {
        (self.base, self.uses.len() * BLOCK_SIZE)
    }

    /// Keeps the mapping until the process ends; for when the kernel can't be stopped using it.
    pub(crate) fn leak(&mut self) {
        std::mem::forget(self.memory.take());
    }

    /// Marks slots as being written by the kernel.
    ///
    /// # Panics
    /// If the kernel already uses one of them: two owners of the same bytes.
    pub(crate) fn begin_write(&mut self, slots: Range<u32>) {
        for slot in self.uses_of(slots) {
            assert!(*slot == IDLE, "a buffer under way was handed to the kernel to be written");
            *slot = WRITTEN;
        }
    }

    /// The kernel's write into these slots has ended.
    pub(crate) fn end_write(&mut self, slots: Range<u32>) {
        for slot in self.uses_of(slots) {
            debug_assert_eq!(*slot, WRITTEN);
            *slot = IDLE;
        }
    }

    /// Marks slots as being read by the kernel, once more each.
    ///
    /// # Panics
    /// If the kernel is writing one of them.
    pub(crate) fn begin_read(&mut self, slots: Range<u32>) {
        for slot in self.uses_of(slots) {
            assert!(
                *slot < WRITTEN - 1,
                "a buffer being filled was handed to the kernel to be read"
            );
            *slot += 1;
        }
    }

    /// One of the kernel's reads of these slots has ended.
    pub(crate) fn end_read(&mut self, slots: Range<u32>) {
        for slot in self.uses_of(slots) {
            debug_assert!(*slot != IDLE && *slot != WRITTEN);
            *slot -= 1;
        }
    }

    fn uses_of(&mut self, slots: Range<u32>) -> &mut [Use] {
        &mut self.uses[slots.start as usize..slots.end as usize]
    }

    /// Where `buffer` lies in the mapping, checked.
    fn range(&self, buffer: Buffer) -> Range<usize> {
        let slots = slots_of(buffer);
        assert!(slots.end as usize <= self.uses.len(), "the buffer is not from this arena");
        slots.start as usize..slots.end as usize
    }
}

/// The slots of `buffer`.
///
/// # Panics
/// If no arena could have given it.
pub(crate) fn slots_of(buffer: Buffer) -> Range<u32> {
    assert!(buffer.blocks <= MAX_BUFFER_BLOCKS, "no buffer has so many blocks");
    let end = buffer.slot.checked_add(buffer.blocks).expect("the buffer is not from this arena");
    buffer.slot..end
}

/// The slots that bytes `from..from + len` of `buffer` touch.
///
/// # Panics
/// If the bytes don't lie inside `buffer`, or are none.
pub(crate) fn slots_of_bytes(buffer: Buffer, from: usize, len: usize) -> Range<u32> {
    assert!(
        len > 0 && from <= buffer.len() && len <= buffer.len() - from,
        "bytes outside the buffer"
    );
    let start = slots_of(buffer).start;
    start + (from / BLOCK_SIZE) as u32..start + (from + len).div_ceil(BLOCK_SIZE) as u32
}

impl Buffers for Arena {
    fn alloc(&mut self, blocks: u32) -> Option<Buffer> {
        self.buddy.alloc(blocks).map(|slot| Buffer { slot, blocks })
    }

    /// # Panics
    /// If `buffer` is not one that is allocated, or the kernel still uses it.
    fn free(&mut self, buffer: Buffer) {
        let range = self.range(buffer);
        assert!(
            self.uses[range].iter().all(|&uses| uses == IDLE),
            "a buffer was freed while the kernel uses it"
        );
        self.buddy
            .free(buffer.slot, buffer.blocks)
            .expect("a buffer is freed once, whole, as it was allocated");
    }

    /// # Panics
    /// If the kernel is writing a part of it.
    fn bytes(&self, buffer: Buffer) -> &[u8] {
        let range = self.range(buffer);
        assert!(
            self.uses[range].iter().all(|&uses| uses != WRITTEN),
            "a buffer was read while the kernel writes it"
        );
        // SAFETY: `range` checked that the slots lie in the mapping, which lives as long as
        // `self` and was initialised by the kernel to zeroes; the assertion above says that no
        // kernel operation writes these slots, and one can only be started through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.address(buffer.slot, 0), buffer.len()) }
    }

    /// # Panics
    /// If the kernel is reading or writing a part of it.
    fn bytes_mut(&mut self, buffer: Buffer) -> &mut [u8] {
        let range = self.range(buffer);
        assert!(
            self.uses[range].iter().all(|&uses| uses == IDLE),
            "a buffer was changed while the kernel uses it"
        );
        // SAFETY: the slots lie in the mapping (`range`), no kernel operation reads or writes them
        // (the assertion), and `&mut self` excludes every other borrow made by `bytes` and
        // `bytes_mut`, the only two places that make one.
        unsafe { std::slice::from_raw_parts_mut(self.address(buffer.slot, 0), buffer.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panics(work: impl FnOnce() + std::panic::UnwindSafe) -> bool {
        std::panic::catch_unwind(work).is_err()
    }

    fn arena() -> (Arena, Buffer) {
        let mut arena = Arena::new(64).expect("64 pages can be mapped");
        let buffer = arena.alloc(3).expect("64 slots are free");
        (arena, buffer)
    }

    #[test]
    fn bytes_have_the_asked_length_and_parts_are_views() {
        let (mut arena, buffer) = arena();
        assert_eq!(arena.bytes(buffer).len(), 3 * BLOCK_SIZE);
        arena.bytes_mut(buffer.part(1, 1)).fill(7);
        let bytes = arena.bytes(buffer);
        assert_eq!(bytes.as_ptr() as usize % BLOCK_SIZE, 0);
        assert!(bytes[BLOCK_SIZE..2 * BLOCK_SIZE].iter().all(|&byte| byte == 7));
        assert!(bytes[..BLOCK_SIZE].iter().all(|&byte| byte == 0));
        arena.free(buffer);
        assert_eq!(arena.free_blocks(), 64);
    }

    #[test]
    fn a_slot_being_written_is_out_of_reach_and_its_neighbours_are_not() {
        let (mut arena, buffer) = arena();
        arena.begin_write(slots_of(buffer.part(1, 1)));
        assert_eq!(arena.bytes(buffer.part(0, 1)).len(), BLOCK_SIZE);
        assert_eq!(arena.bytes_mut(buffer.part(2, 1)).len(), BLOCK_SIZE);
        let shared = std::panic::AssertUnwindSafe(&arena);
        assert!(panics(|| drop(shared.bytes(buffer).to_vec())));
        let mut unique = std::panic::AssertUnwindSafe(&mut arena);
        assert!(panics(move || unique.free(buffer)));
        arena.end_write(slots_of(buffer.part(1, 1)));
        arena.free(buffer);
    }

    #[test]
    fn a_slot_being_read_can_be_seen_but_not_changed() {
        let (mut arena, buffer) = arena();
        arena.begin_read(slots_of(buffer));
        arena.begin_read(slots_of(buffer.part(0, 1)));
        assert_eq!(arena.bytes(buffer).len(), buffer.len());
        arena.end_read(slots_of(buffer));
        assert_eq!(arena.bytes_mut(buffer.part(1, 2)).len(), 2 * BLOCK_SIZE);
        let mut unique = std::panic::AssertUnwindSafe(&mut arena);
        assert!(panics(move || {
            unique.bytes_mut(buffer);
        }));
        arena.end_read(slots_of(buffer.part(0, 1)));
        arena.free(buffer);
    }

    #[test]
    fn double_free_and_foreign_names_are_caught() {
        let (mut arena, buffer) = arena();
        arena.free(buffer);
        let mut unique = std::panic::AssertUnwindSafe(&mut arena);
        assert!(panics(move || unique.free(buffer)));
        let shared = std::panic::AssertUnwindSafe(&arena);
        assert!(panics(|| drop(shared.bytes(Buffer { slot: 63, blocks: 2 }).to_vec())));
    }

    #[test]
    fn byte_ranges_name_the_slots_they_touch() {
        let buffer = Buffer { slot: 10, blocks: 4 };
        assert_eq!(slots_of_bytes(buffer, 0, 1), 10..11);
        assert_eq!(slots_of_bytes(buffer, 4095, 2), 10..12);
        assert_eq!(slots_of_bytes(buffer, 4096, 4096), 11..12);
        assert_eq!(slots_of_bytes(buffer, 0, 4 * 4096), 10..14);
        for slot in [u32::MAX, u32::MAX - 3] {
            assert!(panics(move || {
                slots_of_bytes(Buffer { slot, blocks: 4 }, 4 * 4096 - 1, 1);
            }));
        }
        for (from, len) in [(1, 4 * 4096), (0, 0), (usize::MAX, 1)] {
            assert!(panics(move || {
                slots_of_bytes(buffer, from, len);
            }));
        }
    }
}
