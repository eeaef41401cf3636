//! What the node tells of itself, its pools and its volumes: plain values, as they are at one moment.

use std::path::PathBuf;

use crate::node::devices::DeviceStatus;
use flagstone_engine::VolumeSettings;

/// One volume as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeStatus {
    /// Its name, which is also its export's; unique in the node.
    pub name: String,
    /// Its identity for ever.
    pub uuid: [u8; 16],
    /// The path of its pool, as given in [`NodeConfig::pools`](super::NodeConfig::pools).
    pub pool: PathBuf,
    /// Bytes, as clients see it.
    pub size_bytes: u64,
    /// Bytes of it that hold data.
    pub mapped_bytes: u64,
    /// Those that none of its snapshots has: what would be free if it were alone.
    pub exclusive_bytes: u64,
    /// Bytes of zeroes whose space it keeps.
    pub kept_bytes: u64,
    /// Snapshots of it.
    pub snapshots: u32,
    /// The snapshot that it was cloned from, or rolled back to, as long as that is there.
    pub cloned_from: Option<String>,
    /// What its owner has set.
    pub settings: VolumeSettings,
    /// NBD connections that have it open.
    pub connections: u32,
    /// What was asked of it.
    pub io: VolumeIo,
    /// Where it can be reached; NBD URIs.
    pub uris: Vec<String>,
    /// What [`crate::node::local::LocalRequest`] calls it; never that of another volume.
    pub(crate) handle: u64,
}

/// What was asked of a volume, since the daemon has served it: over NBD, by block devices of this machine and by
/// the library.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeIo {
    /// Reads answered.
    pub reads: u64,
    /// Writes answered.
    pub writes: u64,
    /// Flushes answered; one of them covers all volumes of the pool.
    pub flushes: u64,
    /// Discards and zeroings answered.
    pub zeroes: u64,
    /// Those of them that were answered with an error.
    pub errors: u64,
    /// Bytes of data that were read.
    pub read_bytes: u64,
    /// Bytes of data that were written.
    pub written_bytes: u64,
}

impl VolumeIo {
    /// Counts what was counted elsewhere.
    pub(crate) fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.flushes += other.flushes;
        self.zeroes += other.zeroes;
        self.errors += other.errors;
        self.read_bytes += other.read_bytes;
        self.written_bytes += other.written_bytes;
    }
}

/// One snapshot as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotStatus {
    /// Its name with its volume's, `VOLUME@SNAPSHOT`, which is also its export's.
    pub name: String,
    /// Its identity for ever.
    pub uuid: [u8; 16],
    /// The path of its pool, as given in [`NodeConfig::pools`](super::NodeConfig::pools).
    pub pool: PathBuf,
    /// Bytes: what the volume had then.
    pub size_bytes: u64,
    /// Bytes of it that hold data.
    pub mapped_bytes: u64,
    /// NBD connections that have it open.
    pub connections: u32,
    /// Where it can be read; NBD URIs.
    pub uris: Vec<String>,
    /// As in [`VolumeStatus`].
    pub(crate) handle: u64,
}

/// A volume that was rolled back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolledBack {
    /// It, as it is now.
    pub volume: VolumeStatus,
    /// What it was before.
    pub kept: Option<SnapshotStatus>,
}

/// Whether a pool serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolState {
    /// It serves.
    Running,
    /// A device error poisoned it: everything fails until it is opened again.
    Failed {
        /// What happened.
        reason: String,
    },
    /// Devices are missing, or have failed.
    Degraded {
        /// Which.
        reason: String,
        /// It is only read: one is missing that had not failed before.
        read_only: bool,
    },
}

/// Percent of its capacity from which a pool is told to be full.
pub const WARNINGS: [u32; 3] = [75, 85, 93];

/// One pool as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// As given in [`NodeConfig::pools`](super::NodeConfig::pools).
    pub path: PathBuf,
    /// Its identity for ever.
    pub uuid: [u8; 16],
    /// Whether it serves.
    pub state: PoolState,
    /// Bytes of its devices.
    pub device_bytes: u64,
    /// Its devices, by their numbers.
    pub devices: Vec<DeviceStatus>,
    /// Bytes that volumes can use in all.
    pub capacity_bytes: u64,
    /// Bytes that volumes occupy.
    pub used_bytes: u64,
    /// Bytes that can be written now by volumes without a reservation.
    pub free_bytes: u64,
    /// Bytes that reservations hold back beyond what their volumes occupy.
    pub reserved_bytes: u64,
    /// Bytes that are dead but not reclaimed yet: the cleaner's debt.
    pub debt_bytes: u64,
    /// Bytes logged since the last checkpoint: what opening after a crash replays.
    pub log_debt_bytes: u64,
    /// Checkpoints since the pool was opened.
    pub checkpoints: u64,
    /// Memory that the map takes.
    pub map_bytes: u64,
    /// The highest of the [`WARNINGS`] that the pool has reached, in percent of its capacity.
    pub warning_percent: Option<u32>,
    /// Requests that wait for space.
    pub waiting: u32,
    /// Sum of the volumes' sizes, which may exceed the capacity.
    pub provisioned_bytes: u64,
    /// Number of volumes.
    pub volumes: u32,
    /// Number of their snapshots.
    pub snapshots: u32,
    /// The device is driven past the page cache (`O_DIRECT`).
    pub direct_io: bool,
    /// Segments, and how many of them are free.
    pub segments: u32,
    /// See `segments`.
    pub segments_free: u32,
    /// Bytes written for clients since the pool was opened.
    pub written_bytes: u64,
    /// Bytes that the cleaner wrote again since then.
    pub moved_bytes: u64,
    /// Bytes that were written again in sequence since then because they had been scanned.
    pub rewritten_bytes: u64,
    /// Scrubs that came to their end since then.
    pub scrubs: u64,
    /// Bytes that scrubs have read since then.
    pub scrub_read_bytes: u64,
    /// Damaged blocks, of data and metadata, that they found.
    pub scrub_findings: u64,
    /// Damaged metadata that was written anew.
    pub scrub_repairs: u64,
    /// Bytes of free segments that were discarded on the device.
    pub discarded_bytes: u64,
    /// What is live in each segment is still being counted, after the opening: nothing that is dead
    /// is given back before.
    pub counting: bool,
    /// A part of the map can't be read: its blocks are I/O errors, and nothing that is dead is given
    /// back, until the pool is opened again.
    pub map_damaged: bool,
}

/// What the node has done since it started. All counters only rise, except those called `_now`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeStats {
    /// Nanoseconds since the start.
    pub uptime_ns: u64,
    /// Connections that are open.
    pub connections_now: u32,
    /// Connections that were accepted.
    pub connections_accepted: u64,
    /// Connections that were turned away because there were too many.
    pub connections_refused: u64,
    /// Connections that were dropped for a violation of the protocol or the deadline.
    pub connections_dropped: u64,
    /// Requests that have no reply yet.
    pub requests_now: u32,
    /// READ requests answered.
    pub reads: u64,
    /// WRITE requests answered.
    pub writes: u64,
    /// FLUSH requests answered.
    pub flushes: u64,
    /// TRIM and WRITE_ZEROES requests answered.
    pub zeroes: u64,
    /// Other requests answered.
    pub others: u64,
    /// Requests answered with an error, of any kind.
    pub errors: u64,
    /// Bytes sent as data of READs.
    pub read_bytes: u64,
    /// Bytes taken as data of WRITEs.
    pub written_bytes: u64,
    /// Bytes of the buffer arena that are in use.
    pub buffer_bytes_now: u64,
    /// Bytes of the buffer arena in all.
    pub buffer_bytes_total: u64,
    /// Device reads submitted, all pools.
    pub device_reads: u64,
    /// Device writes submitted, all pools.
    pub device_writes: u64,
    /// Device flushes submitted, all pools.
    pub device_flushes: u64,
    /// Calls of `io_uring_enter`.
    pub ring_enters: u64,
}
