//! Records that outlive the block they were read from.

use crate::degraded::Missing;
use crate::format::device::{DeviceTable, Failure};
use crate::format::record::{LeafMarks, Record, Seal};
use crate::geometry::Geometry;
use crate::volume::VolumeSettings;

/// As [`Record`], owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OwnedRecord {
    Write {
        volume: u32,
        lsn: u64,
        lba: u64,
        pbn: u64,
        vseq: u64,
        crcs: Box<[u32]>,
    },
    Zero {
        volume: u32,
        lsn: u64,
        lba: u64,
        blocks: u32,
        keep: bool,
        vseq: u64,
    },
    Volume {
        volume: u32,
        lsn: u64,
        uuid: [u8; 16],
        size: u64,
        vseq: u64,
        settings: VolumeSettings,
        base: Option<u32>,
        name: String,
    },
    Snapshot {
        volume: u32,
        lsn: u64,
        uuid: [u8; 16],
        size: u64,
        cut: u64,
        line: u32,
        base: Option<u32>,
        deleted: bool,
        name: String,
    },
    VolumeResize {
        volume: u32,
        lsn: u64,
        size: u64,
        vseq: u64,
    },
    VolumeSet {
        volume: u32,
        lsn: u64,
        settings: VolumeSettings,
        vseq: u64,
    },
    VolumeDelete {
        volume: u32,
        lsn: u64,
    },
    Seal(Seal),
    Free {
        segment: u32,
        lsn: u64,
        generation: u64,
    },
    Leaf {
        volume: u32,
        lsn: u64,
        lba: u64,
        page: u64,
        page_crc: u32,
        marks: Box<LeafMarks>,
    },
    Open {
        lsn: u64,
        generation: u64,
    },
    Checkpoint {
        lsn: u64,
    },
}

/// A record and where it was found: a journal block, or the metadata chain.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) record: OwnedRecord,
    pub(super) jseq: Option<u64>,
}

impl Placed {
    /// Whether it says that data lies on a device that is missing.
    pub(super) fn lies_on(&self, missing: &Missing, geo: &Geometry) -> bool {
        match self.record {
            OwnedRecord::Write { pbn, .. } => missing.holds(geo, geo.locate(pbn).0),
            _ => false,
        }
    }

    /// The failure of the device that it says data lies on.
    pub(super) fn failure(&self, devices: &DeviceTable, geo: &Geometry) -> Option<Failure> {
        let OwnedRecord::Write { pbn, .. } = self.record else { return None };
        devices.get(geo.device_of(geo.locate(pbn).0)?)?.failed
    }

    /// Whether it is a write that did not happen, since the device that its data was for failed before.
    pub(super) fn is_void(&self, devices: &DeviceTable, geo: &Geometry) -> bool {
        let since = self.jseq.and_then(|jseq| Some((jseq, self.failure(devices, geo)?.from)));
        since.is_some_and(|(jseq, from)| jseq >= from)
    }
}

impl OwnedRecord {
    pub(super) fn lsn(&self) -> u64 {
        match self {
            Self::Write { lsn, .. }
            | Self::Zero { lsn, .. }
            | Self::Volume { lsn, .. }
            | Self::Snapshot { lsn, .. }
            | Self::VolumeResize { lsn, .. }
            | Self::VolumeSet { lsn, .. }
            | Self::VolumeDelete { lsn, .. }
            | Self::Free { lsn, .. }
            | Self::Leaf { lsn, .. }
            | Self::Open { lsn, .. }
            | Self::Checkpoint { lsn } => *lsn,
            Self::Seal(seal) => seal.lsn,
        }
    }

    /// Replay order: by LSN, statements of a compaction behind the write with their LSN; a snapshot
    /// where it was taken.
    pub(super) fn order(&self) -> (u64, bool) {
        match self {
            Self::Snapshot { cut, .. } => (*cut, true),
            _ => (self.lsn(), !matches!(self, Self::Write { .. })),
        }
    }
}

impl OwnedRecord {
    /// The record, if the metadata chain keeps such: blocks of open segments are described anew,
    /// and that a segment was opened is said by what became of it.
    pub(crate) fn kept(&self) -> Option<Record<'_>> {
        Some(match *self {
            Self::Zero { volume, lsn, lba, blocks, keep, vseq } => {
                Record::Zero { volume, lsn, lba, blocks, keep, vseq }
            }
            Self::Volume { volume, lsn, uuid, size, vseq, settings, base, ref name } => {
                Record::Volume { volume, lsn, uuid, size, vseq, settings, base, name }
            }
            Self::Snapshot { volume, lsn, uuid, size, cut, line, base, deleted, ref name } => {
                Record::Snapshot { volume, lsn, uuid, size, cut, line, base, deleted, name }
            }
            Self::VolumeResize { volume, lsn, size, vseq } => {
                Record::VolumeResize { volume, lsn, size, vseq }
            }
            Self::VolumeSet { volume, lsn, settings, vseq } => {
                Record::VolumeSet { volume, lsn, settings, vseq }
            }
            Self::VolumeDelete { volume, lsn } => Record::VolumeDelete { volume, lsn },
            Self::Seal(seal) => Record::SegmentSeal(seal),
            Self::Free { segment, lsn, generation } => {
                Record::SegmentFree { segment, lsn, generation }
            }
            Self::Write { .. }
            | Self::Leaf { .. }
            | Self::Open { .. }
            | Self::Checkpoint { .. } => {
                return None;
            }
        })
    }
}

impl From<&Record<'_>> for OwnedRecord {
    fn from(record: &Record<'_>) -> Self {
        match *record {
            Record::Write { volume, lsn, lba, pbn, vseq, crcs } => {
                let crcs = crcs
                    .chunks_exact(4)
                    .map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]))
                    .collect();
                Self::Write { volume, lsn, lba, pbn, vseq, crcs }
            }
            Record::Zero { volume, lsn, lba, blocks, keep, vseq } => {
                Self::Zero { volume, lsn, lba, blocks, keep, vseq }
            }
            Record::Volume { volume, lsn, uuid, size, vseq, settings, base, name } => {
                let name = name.to_owned();
                Self::Volume { volume, lsn, uuid, size, vseq, settings, base, name }
            }
            Record::Snapshot { volume, lsn, uuid, size, cut, line, base, deleted, name } => {
                let name = name.to_owned();
                Self::Snapshot { volume, lsn, uuid, size, cut, line, base, deleted, name }
            }
            Record::VolumeResize { volume, lsn, size, vseq } => {
                Self::VolumeResize { volume, lsn, size, vseq }
            }
            Record::VolumeSet { volume, lsn, settings, vseq } => {
                Self::VolumeSet { volume, lsn, settings, vseq }
            }
            Record::VolumeDelete { volume, lsn } => Self::VolumeDelete { volume, lsn },
            Record::SegmentSeal(seal) => Self::Seal(seal),
            Record::SegmentFree { segment, lsn, generation } => {
                Self::Free { segment, lsn, generation }
            }
            Record::Leaf { volume, lsn, lba, page, page_crc, marks } => {
                Self::Leaf { volume, lsn, lba, page, page_crc, marks: Box::new(marks) }
            }
            Record::SegmentOpen { lsn, generation, .. } => Self::Open { lsn, generation },
            Record::Checkpoint { lsn } => Self::Checkpoint { lsn },
        }
    }
}
