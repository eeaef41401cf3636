//! What a scrub says.

use crate::limits::SCRUB_FINDINGS;
use flagstone_block::DeviceError;

/// How far a scrub has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubState {
    /// Reads and verifies.
    Running,
    /// All is read; damaged metadata is being written anew.
    Repairing,
    /// Over.
    Finished,
    /// Ended before its time: it was told to, or the pool stops.
    Cancelled,
    /// Ended before its time: the pool's device failed.
    Failed,
}

/// What is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScrubPlace {
    /// A superblock copy.
    Superblock,
    /// A block of the journal that recovery would need.
    Journal {
        /// Its sequence number.
        jseq: u64,
    },
    /// One copy of a metadata page.
    MetadataPage {
        /// The page's number in its chain.
        page: u64,
    },
    /// The page of a leaf of the map.
    LeafPage {
        /// Name of the volume.
        volume: String,
        /// First block in the volume that it speaks of.
        lba: u64,
    },
    /// The copy of a summary, which lies on another device.
    SummaryCopy {
        /// The segment of which the summary speaks.
        of: u32,
    },
    /// The summary of a segment. Its blocks can be read, but the cleaner can't empty it.
    Summary,
    /// Data.
    Data {
        /// Name of the volume.
        volume: String,
        /// First block in the volume.
        lba: u64,
    },
}

/// Damage, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubFinding {
    /// What is damaged.
    pub place: ScrubPlace,
    /// Segment that it lies in; superblocks and journal lie in none.
    pub segment: Option<u32>,
    /// First byte on the device.
    pub offset: u64,
    /// Blocks in a row, on the device and in the volume.
    pub blocks: u32,
    /// The device's error, or `None` for a wrong checksum.
    pub device: Option<DeviceError>,
    /// What was damaged has been written anew elsewhere.
    pub repaired: bool,
}

impl ScrubFinding {
    /// Whether this is metadata of which the engine knows what it should say.
    pub(super) fn is_repairable(&self) -> bool {
        !matches!(self.place, ScrubPlace::Data { .. } | ScrubPlace::Summary)
    }

    /// Whether `next` is the block behind it, with the same damage.
    fn takes(&self, next: &Self) -> bool {
        let follows = match (&self.place, &next.place) {
            (
                ScrubPlace::Data { volume, lba },
                ScrubPlace::Data { volume: next_volume, lba: next_lba },
            ) => volume == next_volume && lba + u64::from(self.blocks) == *next_lba,
            _ => false,
        };
        follows
            && self.segment == next.segment
            && self.device == next.device
            && self.offset + u64::from(self.blocks) * flagstone_block::BLOCK_SIZE as u64
                == next.offset
    }
}

/// The last scrub, under way or over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubReport {
    /// How far it has come.
    pub state: ScrubState,
    /// Bytes per second that it may read; 0 for no bound.
    pub rate: u64,
    /// Bytes verified.
    pub done: u64,
    /// Bytes that there were to verify when it began.
    pub total: u64,
    /// Blocks of data verified.
    pub data_blocks: u64,
    /// Blocks of data that are damaged.
    pub bad_blocks: u64,
    /// Damaged metadata: superblock copies, journal blocks, copies of metadata pages, leaf pages,
    /// summaries and their copies.
    pub bad_metadata: u64,
    /// How many of those have been written anew.
    pub repaired: u64,
    /// Damage in the order it was found, a bounded number.
    pub findings: Vec<ScrubFinding>,
    /// Findings beyond those.
    pub unlisted: u64,
}

impl ScrubReport {
    /// Whether nothing is damaged, or no longer.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.bad_blocks == 0 && self.bad_metadata == self.repaired
    }

    pub(super) fn add(&mut self, finding: ScrubFinding) {
        match finding.place {
            ScrubPlace::Data { .. } => self.bad_blocks += 1,
            _ => self.bad_metadata += 1,
        }
        if let Some(last) = self.findings.last_mut()
            && last.takes(&finding)
        {
            last.blocks += 1;
        } else if self.findings.len() < SCRUB_FINDINGS {
            self.findings.push(finding);
        } else {
            self.unlisted += 1;
        }
    }
}

/// Why no scrub was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScrubRefused {
    /// One is under way.
    #[error("a scrub is under way already")]
    Running,
    /// The pool's device failed.
    #[error("the pool's device failed")]
    Failed,
    /// The pool is being stopped.
    #[error("the pool is being stopped")]
    Stopping,
}
