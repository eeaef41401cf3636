//! The journal ring's sequence numbers.
//!
//! Invariants:
//! 1. A slot is overwritten only if a *durable* block claims a tail beyond it. With a claim that
//!    is merely written, a power cut could tear the overwriting block and leave a chain that
//!    starts before it.
//! 2. The tail passes a block only when each of its records is durable elsewhere: the data
//!    record's segment has a durable seal record, everything else is in a durable metadata page.

use crate::limits::{JOURNAL_RESERVE, JOURNAL_TAILS};

/// What a block is begun for. Each may use less of what is kept than the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Requests.
    User,
    /// The engine's own records.
    Internal,
    /// The tail that it claims.
    Tail,
}

#[derive(Debug)]
pub(crate) struct Journal {
    /// Slots.
    pub(crate) ring: u64,
    /// Sequence number of the next block to be begun.
    pub(crate) next: u64,
    /// Blocks below this one are on the device, and their records are applied.
    pub(crate) retired: u64,
    /// Blocks below this one are durable.
    pub(crate) durable: u64,
    /// Tail that a durable block, or the superblock, claims.
    pub(crate) tail_durable: u64,
    /// Tail that the newest retired block claims.
    pub(crate) tail_retired: u64,
    /// Checksum of the last block that was closed.
    pub(crate) prev_crc: u32,
    /// A scrub reads blocks from this one on; their slots are not to be written meanwhile.
    pub(crate) read_from: Option<u64>,
    /// No block may be begun: the journal is about to move to another device.
    pub(crate) held: bool,
}

impl Journal {
    pub(crate) fn new(ring: u32, start: u64, tail: u64, prev_crc: u32) -> Self {
        Self {
            ring: u64::from(ring),
            next: start,
            retired: start,
            durable: start,
            tail_durable: tail,
            tail_retired: tail,
            prev_crc,
            read_from: None,
            held: false,
        }
    }

    fn used(&self) -> u64 {
        self.next - self.read_from.unwrap_or(self.tail_durable).min(self.tail_durable)
    }

    /// Whether a block may be begun.
    pub(crate) fn has_slot(&self, slot: Slot) -> bool {
        let reserve = match slot {
            Slot::User => JOURNAL_RESERVE,
            Slot::Internal => JOURNAL_TAILS + 1,
            Slot::Tail => 1,
        };
        !self.held && self.used() + reserve < self.ring
    }

    /// Whether it is time to move the tail.
    pub(crate) fn is_pressed(&self) -> bool {
        self.used() > self.ring / 4 * 3
    }
}
