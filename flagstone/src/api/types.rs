//! What requests and answers look like. Sizes are bytes, as whole numbers; times are seconds.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::node;

/// What becomes of a write that needs space when the pool is full.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum OnFull {
    /// It waits until there is space again, for 60 seconds without progress at most
    #[default]
    Wait,
    /// It fails at once
    Error,
}

impl OnFull {
    /// As in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Error => "error",
        }
    }
}

impl From<OnFull> for node::OnFull {
    fn from(on_full: OnFull) -> Self {
        match on_full {
            OnFull::Wait => Self::Wait,
            OnFull::Error => Self::Error,
        }
    }
}

impl From<node::OnFull> for OnFull {
    fn from(on_full: node::OnFull) -> Self {
        match on_full {
            node::OnFull::Wait => Self::Wait,
            node::OnFull::Error => Self::Error,
        }
    }
}

/// Asks for a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// 1 to 128 of `A-Z a-z 0-9 . _ -`, the first a letter or digit. Unique in the daemon.
    #[schema(example = "demo")]
    pub name: String,
    /// Size in bytes, a multiple of 4096. The volume is thin: it takes space as it is written.
    #[schema(example = 4294967296_u64)]
    pub size_bytes: u64,
    /// Path (as given to the daemon) or UUID of the pool; without it, the one with the most free
    /// space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// What becomes of writes when the pool is full; without it, what the daemon's setting says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_full: Option<OnFull>,
    /// Bytes that no other volume may take, a multiple of 4096 up to the size. Without it, none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved_bytes: Option<u64>,
}

/// How a volume may become smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shrink {
    /// Only by what holds neither data nor kept zeroes.
    Unused,
    /// What lies beyond the new end is discarded, for good.
    Discard,
}

impl Shrink {
    /// As the node takes it.
    #[must_use]
    pub fn of(shrink: Option<Self>) -> node::Shrink {
        match shrink {
            None => node::Shrink::Never,
            Some(Self::Unused) => node::Shrink::Unused,
            Some(Self::Discard) => node::Shrink::Discard,
        }
    }
}

/// Asks for a new size, or for other settings: either, so that a request happens in full or not at
/// all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateVolume {
    /// New size in bytes, a multiple of 4096; less than the present one only with `shrink`.
    #[schema(example = 8589934592_u64)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Whether the volume may become smaller; goes with `size_bytes` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shrink: Option<Shrink>,
    /// What becomes of writes when the pool is full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_full: Option<OnFull>,
    /// Bytes that no other volume may take, a multiple of 4096 up to the size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved_bytes: Option<u64>,
}

/// Options of a volume's deletion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteVolumeQuery {
    /// Delete even while clients are connected; they are disconnected.
    #[serde(default)]
    pub force: bool,
    /// Delete its snapshots as well.
    #[serde(default)]
    pub snapshots: bool,
}

/// Options of a deletion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteQuery {
    /// Delete even while clients are connected; they are disconnected.
    #[serde(default)]
    pub force: bool,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Its name, which is also its NBD export name.
    pub name: String,
    /// Its identity, which outlives renames and never comes back.
    pub uuid: String,
    /// Path of its pool, as given to the daemon.
    pub pool: String,
    /// Size that clients see, in bytes.
    pub size_bytes: u64,
    /// Bytes that hold data, in whole blocks.
    pub mapped_bytes: u64,
    /// Those that no snapshot has, neither its own nor the one that it was cloned from: equal to `mapped_bytes` if there
    /// is none. What others had, too, and have given up since, is counted in `GET /v1/usage/NAME` only.
    #[serde(default)]
    pub exclusive_bytes: u64,
    /// Bytes of zeroes whose space is kept.
    #[serde(default)]
    pub kept_bytes: u64,
    /// Bytes that no other volume may take, used or not.
    #[serde(default)]
    pub reserved_bytes: u64,
    /// What becomes of writes when the pool is full.
    #[serde(default)]
    pub on_full: OnFull,
    /// Snapshots of it.
    #[serde(default)]
    pub snapshots: u32,
    /// The snapshot that it was cloned from, or rolled back to, as long as that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloned_from: Option<String>,
    /// NBD connections that use it now.
    pub connections: u32,
    /// What was asked of it since the daemon serves it.
    #[serde(default)]
    pub io: VolumeIo,
    /// Where clients reach it, ready to paste: the unix socket's URI first.
    pub uris: Vec<String>,
}

/// Requests and bytes of a volume, over NBD and by block devices of the daemon's machine, since the daemon serves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
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

impl From<crate::node::VolumeIo> for VolumeIo {
    fn from(io: crate::node::VolumeIo) -> Self {
        let crate::node::VolumeIo {
            reads,
            writes,
            flushes,
            zeroes,
            errors,
            read_bytes,
            written_bytes,
        } = io;
        Self { reads, writes, flushes, zeroes, errors, read_bytes, written_bytes }
    }
}

/// Volumes, by name: one page of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeList {
    /// In the order of their names.
    pub volumes: Vec<Volume>,
    /// Where the next page begins: `after` of the request for it. Absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Which volumes are listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// How many at most, 1 to 1000; as many without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Only those whose names come behind this one, which need not be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// Volumes that one page has at most.
pub const PAGE_VOLUMES: u32 = 1000;

/// Whether a pool serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolState {
    /// Reads and writes are served.
    #[default]
    Running,
    /// Its device failed a write or flush: nothing more is written until the daemon is restarted.
    Failed,
    /// Its file has been deleted: it is served as before, and gone when the daemon stops.
    Deleted,
    /// A device is missing or has failed. What lies on the others is read; unless the pool is `read_only`, it is
    /// written to as well.
    Degraded,
}

impl PoolState {
    /// As in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Failed => "failed",
            Self::Deleted => "deleted",
            Self::Degraded => "degraded",
        }
    }
}

/// A file or block device of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolDevice {
    /// Its number in the pool, by which findings of a scrub name it.
    #[serde(default)]
    pub number: u32,
    /// Its identity, made when it was given to the pool.
    pub uuid: String,
    /// By which the daemon has opened it.
    pub path: String,
    /// `present`; `missing` if it is not there; `failed` if it failed a write or flush, after which nothing is
    /// written to it any more; `leaving` while it is being emptied; `stuck` if something on it can't be moved because it can't be read.
    pub state: String,
    /// Why it failed, if it did and that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its size, as far as the pool uses it.
    pub size_bytes: u64,
    /// Its segments.
    pub segments: u32,
    /// Those of them that hold nothing.
    pub segments_empty: u32,
    /// The journal lies there.
    pub journal: bool,
    /// How it is driven: `file`; `block`, through the kernel's block layer; `nvme`, by NVMe commands; `nvme-polled`, the
    /// same with completions that are polled for. None if it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_path: Option<String>,
    /// NVMe commands were asked for (its path is `/dev/ngXnY`) and don't get through: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_path_reason: Option<String>,
}

/// A pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pool {
    /// Its identity, made when it was formatted.
    pub uuid: String,
    /// Its file or device, as given to the daemon; of several the one that was given first.
    pub path: String,
    /// Whether it serves.
    pub state: PoolState,
    /// It takes no writes: it has failed, or a device is missing.
    #[serde(default)]
    pub read_only: bool,
    /// Why it is not just running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Size of its files and devices.
    pub device_bytes: u64,
    /// Its files and devices.
    #[serde(default)]
    pub devices: Vec<PoolDevice>,
    /// Bytes that volumes' data can take in all.
    pub capacity_bytes: u64,
    /// Bytes that volumes' data takes.
    pub used_bytes: u64,
    /// Bytes that can be written now by volumes without a reservation.
    pub free_bytes: u64,
    /// Bytes that reservations hold back beyond what their volumes take.
    #[serde(default)]
    pub reserved_bytes: u64,
    /// Bytes that are dead but not reclaimed yet: what the cleaner owes.
    #[serde(default)]
    pub debt_bytes: u64,
    /// Bytes in segments that were sealed since the last checkpoint began: opening after a crash reads their summaries.
    #[serde(default)]
    pub log_debt_bytes: u64,
    /// Checkpoints since the pool was opened.
    #[serde(default)]
    pub checkpoints: u64,
    /// Memory that the map takes.
    pub map_bytes: u64,
    /// The highest of 75, 85 and 93 percent of the capacity that is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning_percent: Option<u32>,
    /// Requests that wait for space now.
    #[serde(default)]
    pub waiting: u32,
    /// Sum of the volumes' sizes, which may exceed the capacity.
    pub provisioned_bytes: u64,
    /// Volumes in it.
    pub volumes: u32,
    /// Snapshots of them.
    #[serde(default)]
    pub snapshots: u32,
    /// The device is driven past the page cache (`O_DIRECT`).
    pub direct_io: bool,
    /// Segments of the log.
    #[serde(default)]
    pub segments: u32,
    /// Segments that may be written.
    #[serde(default)]
    pub segments_free: u32,
    /// Bytes written for clients since the pool was opened.
    #[serde(default)]
    pub written_bytes: u64,
    /// Bytes that the cleaner has written again since then to set segments free: write
    /// amplification is `1 + (moved_bytes + rewritten_bytes) / written_bytes`.
    #[serde(default)]
    pub moved_bytes: u64,
    /// Bytes that were written again since then, in sequence, because they lay scattered and were
    /// read in sequence.
    #[serde(default)]
    pub rewritten_bytes: u64,
    /// Scrubs that came to their end since then.
    #[serde(default)]
    pub scrubs: u64,
    /// Bytes that scrubs have read since then.
    #[serde(default)]
    pub scrub_read_bytes: u64,
    /// Damaged blocks, of data and metadata, that scrubs have found since then.
    #[serde(default)]
    pub scrub_findings: u64,
    /// Damaged metadata that they had written anew.
    #[serde(default)]
    pub scrub_repairs: u64,
    /// Bytes of free segments that were discarded on the device since then.
    #[serde(default)]
    pub discarded_bytes: u64,
    /// What is live in each segment is still being counted, after the opening: nothing that is dead
    /// is given back before.
    #[serde(default)]
    pub counting: bool,
    /// A part of the map can't be read: its blocks are I/O errors, and nothing that is dead is given
    /// back, until the pool is opened again, which makes the map anew.
    #[serde(default)]
    pub map_damaged: bool,
}

/// Every pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolList {
    /// In the order they were given to the daemon.
    pub pools: Vec<Pool>,
}

/// The daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since it became ready.
    pub uptime_seconds: u64,
    /// The NBD server itself, without an export: for `nbdinfo --list`.
    pub uris: Vec<String>,
    /// Number of pools.
    pub pools: u64,
    /// Number of volumes.
    pub volumes: u64,
    /// NBD connections now.
    pub connections: u32,
}

/// Whether the daemon is healthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`, or `failed` when a pool has failed.
    pub status: String,
}
