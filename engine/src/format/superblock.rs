//! Superblock: the fixed-place root of a pool, on every one of its devices.
//!
//! Slot A (even generations) and slot B (odd) each hold two copies; a third place at the end of
//! the device holds the newest after format and clean stop. An update writes the older slot's
//! copies, so one torn update and one bad sector are both survived. Everything a superblock
//! refers to is flushed before it is written.
//!
//! The copies on different devices say the same, but for which device they lie on. The highest
//! generation on any device counts for all of them. An update is acted upon only once every device
//! has it, so that any one of them knows enough: either what counts, or what nobody has replaced yet.

use super::bytes::{get_u32, get_u64, put_u32, put_u64};
use super::device::{DeviceRow, DeviceTable};
use super::field::layout;
use super::{BlockKind, DecodeError, finish_block, verify_block};
use flagstone_block::BLOCK_SIZE;

const KIND: BlockKind = BlockKind { magic: *b"LSBS", number: 1 };

/// Byte offsets of slot A's and slot B's copies.
pub const SLOTS: [[u64; 2]; 2] = [[0, 64 << 10], [1 << 20, (1 << 20) + (64 << 10)]];
/// The third place: this far before the end of the device.
pub const TAIL_BYTES: u64 = 1 << 20;
/// First byte after the superblock slots.
pub const SUPERBLOCK_END: u64 = 2 << 20;

/// Set when the pool was stopped cleanly: the journal holds nothing.
pub const FLAG_CLEAN: u32 = 1;
/// Set when a leaf page could not be read: the next opening makes the map from the summaries.
pub const FLAG_REBUILD: u32 = 2;
/// Set on a device that is about to be added: it says which device this is, and counts for
/// nothing else.
pub const FLAG_JOINING: u32 = 4;

layout! {
    /// Byte table of the superblock.
    LAYOUT, "superblock" {
        MAGIC: 0, 4; TYPE: 4, 2; VERSION: 6, 2; CRC32: 8, 4; LENGTH: 12, 4;
        POOL_UUID: 16, 16; GENERATION: 32, 8; DEVICE: 40, 4; JOURNAL_DEVICE: 44, 4;
        BLOCK_BYTES: 48, 4; SEGMENT_BLOCKS: 52, 4; SEGMENTS: 56, 8; DATA_OFFSET: 64, 8;
        JOURNAL_BLOCKS: 72, 4; FLAGS: 76, 4;
        FEATURES_COMPAT: 80, 8; FEATURES_INCOMPAT: 88, 8; FEATURES_RO_COMPAT: 96, 8;
        META_SEGMENT: 104, 8; META_EPOCH: 112, 8; META_PAGES: 120, 8;
        JOURNAL_START: 128, 8; NEXT_LSN: 136, 8; NEXT_GENERATION: 144, 8; POSITION: 152, 8;
        META_NONCE: 160, 8; NEXT_VOLUME: 168, 4; JOURNAL_OLD_DEVICE: 172, 4;
        CHECKPOINT_PBN: 176, 8; CHECKPOINT_CRC: 184, 4; CHECKPOINT_LENGTH: 188, 4;
        CHECKPOINT_LSN: 192, 8; JOURNAL_FROM: 200, 8;
        JOURNAL_FLUSHED: 208, 8; TABLE: 1024, 3072;
    }
}

/// Which devices' rings the journal lies in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalPlace {
    /// Device of the blocks from `from` on.
    pub device: u32,
    /// Device of those before.
    pub old: u32,
    /// See `device`.
    pub from: u64,
}

impl JournalPlace {
    /// The device that holds block `jseq`.
    #[must_use]
    pub fn device_of(&self, jseq: u64) -> usize {
        (if jseq < self.from { self.old } else { self.device }) as usize
    }
}

/// A decoded superblock. The checkpoint fields are reserved and written as zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The pool's identity.
    pub pool_uuid: [u8; 16],
    /// Raised at every superblock write; the highest valid one counts.
    pub generation: u64,
    /// Number of the device that this copy lies on.
    pub device: u32,
    /// All devices.
    pub devices: DeviceTable,
    /// Where the journal lies.
    pub journal: JournalPlace,
    /// Blocks in a segment.
    pub segment_blocks: u32,
    /// Segment numbers that are or were in use: every device's range lies below.
    pub segments: u64,
    /// Byte offset of the first segment of every device.
    pub data_offset: u64,
    /// Slots in the journal ring, which starts at [`SUPERBLOCK_END`].
    pub journal_blocks: u32,
    /// [`FLAG_CLEAN`], [`FLAG_REBUILD`].
    pub flags: u32,
    /// First segment of the metadata chain.
    pub meta_segment: u64,
    /// Epoch of the metadata chain; pages of other epochs are stale.
    pub meta_epoch: u64,
    /// Pages of that chain that were durable when this superblock was written.
    pub meta_pages: u64,
    /// Told apart from the leftovers of an interrupted attempt by this number.
    pub meta_nonce: u64,
    /// Sequence number of the first journal block that counts.
    pub journal_start: u64,
    /// Journal blocks below this one were durable when this superblock was written.
    pub journal_flushed: u64,
    /// No record with this LSN or above exists outside the journal.
    pub next_lsn: u64,
    /// Next segment generation.
    pub next_generation: u64,
    /// Next volume number.
    pub next_volume: u32,
}

impl Superblock {
    /// The device that this copy lies on.
    ///
    /// # Panics
    /// If the table does not have it; no superblock that was decoded is like that.
    #[must_use]
    pub fn own(&self) -> &DeviceRow {
        self.devices.get(self.device as usize).expect("decoding checks it")
    }

    /// The copy for another device.
    #[must_use]
    pub fn on(&self, device: usize) -> Self {
        Self { device: device as u32, ..*self }
    }

    /// Whether two copies say the same, wherever they lie.
    #[must_use]
    pub fn says_same(&self, other: &Self) -> bool {
        other.on(self.device as usize) == *self
    }

    /// Encodes the copy that lies at byte `position` of the device.
    pub fn encode(&self, position: u64, block: &mut [u8]) {
        block.fill(0);
        put_u32(block, at::LENGTH, BLOCK_SIZE as u32);
        block[at::POOL_UUID..at::POOL_UUID + 16].copy_from_slice(&self.pool_uuid);
        put_u64(block, at::GENERATION, self.generation);
        put_u32(block, at::DEVICE, self.device);
        put_u32(block, at::JOURNAL_DEVICE, self.journal.device);
        put_u32(block, at::JOURNAL_OLD_DEVICE, self.journal.old);
        put_u64(block, at::JOURNAL_FROM, self.journal.from);
        self.devices.encode(block);
        put_u32(block, at::BLOCK_BYTES, BLOCK_SIZE as u32);
        put_u32(block, at::SEGMENT_BLOCKS, self.segment_blocks);
        put_u64(block, at::SEGMENTS, self.segments);
        put_u64(block, at::DATA_OFFSET, self.data_offset);
        put_u32(block, at::JOURNAL_BLOCKS, self.journal_blocks);
        put_u32(block, at::FLAGS, self.flags);
        put_u64(block, at::META_SEGMENT, self.meta_segment);
        put_u64(block, at::META_EPOCH, self.meta_epoch);
        put_u64(block, at::META_PAGES, self.meta_pages);
        put_u64(block, at::META_NONCE, self.meta_nonce);
        put_u64(block, at::JOURNAL_START, self.journal_start);
        put_u64(block, at::JOURNAL_FLUSHED, self.journal_flushed);
        put_u64(block, at::NEXT_LSN, self.next_lsn);
        put_u64(block, at::NEXT_GENERATION, self.next_generation);
        put_u32(block, at::NEXT_VOLUME, self.next_volume);
        put_u64(block, at::POSITION, position);
        finish_block(block, KIND);
    }

    /// Decodes the copy read from byte `position`.
    ///
    /// # Errors
    /// Any [`DecodeError`] but `ForeignPool`; an unknown incompatible feature is a `Field` error.
    pub fn decode(position: u64, block: &[u8]) -> Result<Self, DecodeError> {
        verify_block(block, KIND)?;
        if get_u64(block, at::POSITION) != position {
            return Err(DecodeError::Position);
        }
        for (at, want) in [
            (at::LENGTH, BLOCK_SIZE as u32),
            (at::BLOCK_BYTES, BLOCK_SIZE as u32),
            (at::FEATURES_INCOMPAT, 0),
            (at::FEATURES_INCOMPAT + 4, 0),
        ] {
            if get_u32(block, at) != want {
                return Err(DecodeError::Field { at: at as u16 });
            }
        }
        for (at, least) in [
            (at::GENERATION, 1),
            (at::META_EPOCH, 1),
            (at::META_PAGES, 0),
            (at::JOURNAL_START, 1),
            (at::NEXT_LSN, 1),
            (at::NEXT_GENERATION, 1),
        ] {
            if !(least..super::SEQUENCE_MAX).contains(&get_u64(block, at)) {
                return Err(DecodeError::Field { at: at as u16 });
            }
        }
        for at in [at::JOURNAL_FROM, at::JOURNAL_FLUSHED] {
            if get_u64(block, at) >= super::SEQUENCE_MAX {
                return Err(DecodeError::Field { at: at as u16 });
            }
        }
        let devices = DeviceTable::decode(block)?;
        for field in [at::DEVICE, at::JOURNAL_DEVICE, at::JOURNAL_OLD_DEVICE] {
            if devices.get(get_u32(block, field) as usize).is_none() {
                return Err(DecodeError::Field { at: field as u16 });
            }
        }
        let device = get_u32(block, at::DEVICE);
        let mut pool_uuid = [0; 16];
        pool_uuid.copy_from_slice(&block[at::POOL_UUID..at::POOL_UUID + 16]);
        Ok(Self {
            pool_uuid,
            generation: get_u64(block, at::GENERATION),
            device,
            devices,
            journal: JournalPlace {
                device: get_u32(block, at::JOURNAL_DEVICE),
                old: get_u32(block, at::JOURNAL_OLD_DEVICE),
                from: get_u64(block, at::JOURNAL_FROM),
            },
            segment_blocks: get_u32(block, at::SEGMENT_BLOCKS),
            segments: get_u64(block, at::SEGMENTS),
            data_offset: get_u64(block, at::DATA_OFFSET),
            journal_blocks: get_u32(block, at::JOURNAL_BLOCKS),
            flags: get_u32(block, at::FLAGS),
            meta_segment: get_u64(block, at::META_SEGMENT),
            meta_epoch: get_u64(block, at::META_EPOCH),
            meta_pages: get_u64(block, at::META_PAGES),
            meta_nonce: get_u64(block, at::META_NONCE),
            journal_start: get_u64(block, at::JOURNAL_START),
            journal_flushed: get_u64(block, at::JOURNAL_FLUSHED),
            next_lsn: get_u64(block, at::NEXT_LSN),
            next_generation: get_u64(block, at::NEXT_GENERATION),
            next_volume: get_u32(block, at::NEXT_VOLUME),
        })
    }
}
