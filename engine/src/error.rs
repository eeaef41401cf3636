//! Errors of the engine: one enum per operation, small and matchable.

use crate::format::DecodeError;
use crate::format::device::Label;
use crate::geometry::GeometryError;
use flagstone_block::DeviceError;

/// Why two volumes or snapshots can't be compared, or not now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiffError {
    /// A part of the map is being read; ask again after the next completion. Never an error for a client.
    #[error("busy: ask again after the next completion")]
    Busy,
    /// One of the two is not there.
    #[error("no such volume or snapshot")]
    NoVolume,
    /// What says where these blocks lie can't be read.
    #[error("what says where block {lba} and those behind it lie is damaged")]
    Damaged {
        /// The first block that it is about; 512 of them.
        lba: u64,
    },
    /// The engine is stopping.
    #[error("the pool is being closed")]
    Stopping,
}

/// Why a request was not accepted. Nothing happened and no completion will follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// A bound is reached; submit again after the next completion. Never an error for a client.
    #[error("busy: submit again after the next completion")]
    Busy,
    /// No segment is free, and none is about to be.
    #[error("the pool is full")]
    NoSpace,
    /// The range does not lie in the volume, or is empty.
    #[error("the range lies outside the volume")]
    OutOfRange,
    /// No such volume.
    #[error("no such volume")]
    NoVolume,
    /// A volume of this name exists.
    #[error("a volume of this name exists")]
    VolumeExists,
    /// The name is empty, too long, or not UTF-8 that a record can hold.
    #[error("a volume name has 1 to {} bytes", crate::limits::NAME_BYTES)]
    VolumeName,
    /// The size is zero, too large or not a multiple of 4096, or smaller than now although the
    /// volume was not to be shrunk.
    #[error("a volume's size is a multiple of 4096 up to 4 PiB, and it only shrinks if told to")]
    VolumeSize,
    /// A volume that was to be shrunk holds data or kept zeroes beyond its new end.
    #[error("the volume holds {bytes} bytes beyond its new end")]
    VolumeHasData {
        /// How many.
        bytes: u64,
    },
    /// The reservation is not a multiple of 4096, or exceeds the volume's size.
    #[error("a reservation is a multiple of 4096 up to the volume's size")]
    ReservationSize,
    /// The pool can't give so much to one volume alone.
    #[error("the pool can't back that reservation: {available} bytes at most")]
    ReservationUnbacked {
        /// Largest reservation that the volume could have now, in bytes.
        available: u64,
    },
    /// The device is smaller than the pool, or too large for it to grow to.
    #[error(
        "the device is smaller than the pool, or too large for it: a pool of up to 8 TiB can't \
         grow beyond that"
    )]
    DeviceSize,
    /// No such device.
    #[error("the pool has no such device")]
    NoDevice,
    /// The device belongs to the pool.
    #[error("the device belongs to the pool already")]
    DeviceKnown,
    /// The device can't be added.
    #[error(transparent)]
    DeviceUnfit(GeometryError),
    /// The device failed: it can only be removed.
    #[error("the device failed: it can only be removed")]
    DeviceFailed,
    /// Without the device there would not be enough for a pool.
    #[error(
        "without that device the pool would be too small: the others need {} segments; add a device first",
        crate::limits::SEGMENTS_MIN
    )]
    LastDevice,
    /// The other devices have no room for what volumes take.
    #[error(
        "the other devices have no room for what volumes take: {missing} bytes are missing; delete \
         or discard something, or add a device first"
    )]
    NoRoomElsewhere {
        /// How much.
        missing: u64,
    },
    /// The pool holds as many volumes as it may.
    #[error("the pool holds {} volumes, the most it may", crate::limits::VOLUMES)]
    TooManyVolumes,
    /// A snapshot can't be written to.
    #[error("a snapshot can only be read")]
    IsSnapshot,
    /// What is cloned, or rolled back to, is a snapshot.
    #[error("only a snapshot can be cloned, or rolled back to: take one first")]
    NotSnapshot,
    /// So many snapshots, or none, can't be taken at once.
    #[error("one call takes one or more snapshots whose names fit one block of the journal")]
    TooManySnapshots,
    /// The device failed a write or a flush; the pool accepts nothing more until it is reopened.
    #[error("the pool's device failed; reopen the pool")]
    Failed,
    /// A device is missing; the pool is only read.
    #[error("a device of the pool is missing: it is only read")]
    ReadOnly,
    /// A clean stop has begun.
    #[error("the pool is being closed")]
    Stopping,
}

/// Why an accepted request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IoFault {
    /// A block does not have the content that was written, or can't be read.
    #[error("block {lba} of the volume is damaged")]
    BadBlock {
        /// First bad block of the request.
        lba: u64,
    },
    /// The device failed; the outcome of a write is unknown.
    #[error("the pool's device failed")]
    Device,
    /// The volume was deleted meanwhile.
    #[error("the volume was deleted")]
    Gone,
    /// The pool filled up before a read-modify-write could be written.
    #[error("the pool is full")]
    NoSpace,
    /// Something that was acknowledged is lost: it had not been flushed when a device failed. Told once.
    #[error("a device of the pool failed before all that was written was flushed to it")]
    Lost,
}

/// Why a device could not be formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// No pool fits.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A device, for people.
fn name(device: usize, uuid: &[u8; 16], label: &Label, bytes: Option<u64>) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let (a, b) = (hex.split_at(8), |from: usize, to: usize| hex[from..to].to_owned());
    let uuid = [a.0.to_owned(), b(8, 12), b(12, 16), b(16, 20), b(20, 32)].join("-");
    let label = match label.as_str() {
        "" => String::new(),
        label => format!(", known as {label}"),
    };
    let bytes = bytes.map(|bytes| format!(", {bytes} bytes")).unwrap_or_default();
    format!("device {device} of the pool ({uuid}{label}{bytes})")
}

/// What a missing device is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Needed {
    /// The journal.
    #[error("it holds the journal")]
    Journal,
    /// The metadata chain.
    #[error("it holds metadata")]
    Metadata,
    /// Summaries of which there is no copy.
    #[error(
        "it alone knows what was written to it since the last checkpoint, so that no block could be \
         trusted to be the newest"
    )]
    Log,
}

/// Why a pool could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No valid superblock in any of the five places of any device.
    #[error("no Flagstone pool here: no superblock copy is valid ({first})")]
    NoSuperblock {
        /// What is wrong with the first copy.
        first: DecodeError,
    },
    /// The journal goes with a newer superblock than any that could be read.
    #[error(
        "superblock {generation} is not the newest: the journal belongs to metadata epoch {epoch}, \
         whose superblock can't be read in any of its three places"
    )]
    SuperblockStale {
        /// Generation of the newest superblock that was found.
        generation: u64,
        /// Epoch that a journal block names, or a superblock that could not be read at first.
        epoch: u64,
    },
    /// A device of the pool is not there.
    #[error("{} is missing", name(*device, uuid, label, Some(*bytes)))]
    DeviceMissing {
        /// Its number.
        device: usize,
        /// Its identity.
        uuid: [u8; 16],
        /// Its size.
        bytes: u64,
        /// What it was called.
        label: Label,
    },
    /// A device of the pool is not there, and without it the pool can't even be read.
    #[error(
        "{} is missing, and without it the pool can't be read either: {needed}",
        name(*device, uuid, label, Some(*bytes))
    )]
    DeviceNeeded {
        /// Its number.
        device: usize,
        /// Its identity.
        uuid: [u8; 16],
        /// Its size.
        bytes: u64,
        /// What it was called.
        label: Label,
        /// What for.
        needed: Needed,
    },
    /// What is there in a device's place is another one.
    #[error("{} is not the one that was given for it", name(*device, uuid, label, None))]
    DeviceForeign {
        /// Its number.
        device: usize,
        /// Its identity.
        uuid: [u8; 16],
        /// What it was called.
        label: Label,
    },
    /// The superblock describes a pool that does not fit the device.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A journal block that was durable is damaged or missing.
    #[error("journal block {jseq} was flushed but is damaged; blocks up to {flushed} are needed")]
    JournalDamaged {
        /// Sequence number of the block.
        jseq: u64,
        /// Blocks below this one were durable.
        flushed: u64,
    },
    /// A metadata page that was durable is damaged in both copies, or missing.
    #[error(
        "metadata page {page} (segment {segment}) is damaged in both copies; {needed} pages are needed"
    )]
    MetadataDamaged {
        /// Number of the page in its chain.
        page: u64,
        /// Segment it should lie in.
        segment: u32,
        /// Pages that were durable.
        needed: u64,
    },
    /// The summary of a sealed segment is damaged.
    #[error("the summary of segment {segment} (generation {generation}) is damaged")]
    SummaryDamaged {
        /// Segment number.
        segment: u32,
        /// Generation that was sealed.
        generation: u64,
    },
    /// A record is right in itself but can't be.
    #[error("record {lsn} refers to something that can't be")]
    Record {
        /// The record's LSN.
        lsn: u64,
    },
    /// A number that only rises by counting is higher than anything could have counted.
    #[error("sequence number {value} is higher than any pool gets")]
    SequenceTooHigh {
        /// The number.
        value: u64,
    },
    /// Too few segments are free to write the metadata anew.
    #[error("{free} free segments are too few to recover into")]
    NoRoom {
        /// Free segments.
        free: u32,
    },
    /// The arena is too small for the engine's own buffers.
    #[error("the buffer arena is too small: the engine needs {blocks} blocks of its own")]
    Memory {
        /// Blocks needed.
        blocks: u32,
    },
}
