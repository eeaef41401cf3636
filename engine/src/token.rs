//! What an [`IoToken`] means: kind, device, owner and, for reads, the part of the request.
//!
//! ```text
//! 63..56 kind   55..48 device   47..32 index   31..16 first block   15..1 blocks   0 retried
//! ```

use flagstone_block::{DEVICES, IoToken};

/// Which state machine a device command belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    BatchData { batch: u32, stream: u32 },
    BatchJournal(u32),
    Summary(u32),
    MetaPage(u32),
    CompactionPage(u32),
    Superblock,
    Flush,
    CleanSummary,
    CleanRead(u32),
    CleanWrite(u32),
    LeafWrite(u32),
    ScrubRead(u32),
    LeafRead(u32),
    Discard(u32),
    Change,
    LastFlush,
    Read { op: u32, first: u16, blocks: u16, retried: bool },
}

impl Token {
    /// Whether the command is a write, which a flush has still to make durable.
    pub(crate) fn is_write(self) -> bool {
        matches!(
            self,
            Self::BatchData { .. }
                | Self::BatchJournal(_)
                | Self::Summary(_)
                | Self::MetaPage(_)
                | Self::CompactionPage(_)
                | Self::Superblock
                | Self::CleanWrite(_)
                | Self::LeafWrite(_)
        )
    }

    pub(crate) fn encode(self, device: usize) -> IoToken {
        let (kind, index, low) = match self {
            Self::BatchData { batch, stream } => (1, batch, stream),
            Self::BatchJournal(i) => (2, i, 0),
            Self::Summary(segment) => (3, 0, segment),
            Self::MetaPage(page) => (4, 0, page),
            Self::CompactionPage(page) => (5, 0, page),
            Self::Superblock => (6, 0, 0),
            Self::Flush => (7, 0, 0),
            Self::CleanSummary => (9, 0, 0),
            Self::CleanRead(i) => (10, i, 0),
            Self::CleanWrite(i) => (11, i, 0),
            Self::LeafWrite(i) => (12, i, 0),
            Self::ScrubRead(i) => (13, i, 0),
            Self::LeafRead(i) => (14, i, 0),
            Self::Discard(segment) => (15, 0, segment),
            Self::Change => (16, 0, 0),
            Self::LastFlush => (17, 0, 0),
            Self::Read { op, first, blocks, retried } => {
                (8, op, u32::from(first) << 16 | u32::from(blocks) << 1 | u32::from(retried))
            }
        };
        debug_assert!(index < 1 << 16 && device < DEVICES);
        IoToken(kind << 56 | (device as u64) << 48 | u64::from(index) << 32 | u64::from(low))
    }

    /// The token and its device.
    pub(crate) fn decode(token: IoToken) -> Option<(Self, usize)> {
        let device = (token.0 >> 48) as usize & 0xff;
        if device >= DEVICES {
            return None;
        }
        let index = (token.0 >> 32) as u32 & 0xffff;
        let low = token.0 as u32;
        let token = match token.0 >> 56 {
            1 => Self::BatchData { batch: index, stream: low },
            2 => Self::BatchJournal(index),
            3 => Self::Summary(low),
            4 => Self::MetaPage(low),
            5 => Self::CompactionPage(low),
            6 => Self::Superblock,
            7 => Self::Flush,
            8 => Self::Read {
                op: index,
                first: (low >> 16) as u16,
                blocks: (low as u16) >> 1,
                retried: low & 1 != 0,
            },
            9 => Self::CleanSummary,
            10 => Self::CleanRead(index),
            11 => Self::CleanWrite(index),
            12 => Self::LeafWrite(index),
            13 => Self::ScrubRead(index),
            14 => Self::LeafRead(index),
            15 => Self::Discard(low),
            16 => Self::Change,
            17 => Self::LastFlush,
            _ => return None,
        };
        Some((token, device))
    }
}
