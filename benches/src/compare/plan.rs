//! What is compared: servers, jobs, sizes and times.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;

use super::{job::Job, server::Kind};

/// What the disks are made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// A zram device under a direct-I/O loop device.
    Zram,
    /// A file in `/dev/shm` under a direct-I/O loop device.
    Tmpfs,
    /// Files in this directory of a real disk.
    Directory(PathBuf),
}

impl Backing {
    /// Whether there are loop devices over memory.
    #[must_use]
    pub const fn has_loop(&self) -> bool {
        matches!(self, Self::Zram | Self::Tmpfs)
    }
}

/// A whole comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The release binary.
    pub flagstone: PathBuf,
    /// What the disks are made of.
    pub backing: Backing,
    /// Bytes that are read and written.
    pub span_bytes: u64,
    /// Bytes of Flagstone's device. A log leaves behind what is overwritten until the cleaner comes for it.
    pub pool_bytes: u64,
    /// What is compared, Flagstone among it.
    pub servers: Vec<Kind>,
    /// What they do.
    pub jobs: Vec<Job>,
    /// How often every job is measured.
    pub rounds: u32,
    /// Length of a measurement.
    pub duration: Duration,
    /// Time before each measurement that isn't counted.
    pub rampup: Duration,
}

impl Plan {
    /// Bytes of the other servers' devices: the span; for qcow2 the same twice more for what a snapshot keeps and kept, and its
    /// tables.
    #[must_use]
    pub fn peer_bytes(&self, server: Kind) -> u64 {
        const MIB: u64 = 1 << 20;
        let spans = if server.is_qcow2() { 3 } else { 1 };
        (spans * self.span_bytes + self.span_bytes / 8 + 32 * MIB).next_multiple_of(MIB)
    }

    /// Bytes of the disk that a server gets; 0 for none.
    #[must_use]
    pub fn disk_bytes(&self, server: Kind) -> u64 {
        match server {
            Kind::Flagstone | Kind::Library => self.pool_bytes,
            Kind::Null | Kind::NbdkitMemory => 0,
            _ => self.peer_bytes(server),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn measurements(&self) -> u32 {
        let takes_part =
            |job: &Job| self.servers.iter().filter(|&&kind| job.among.has(kind)).count();
        self.jobs.iter().map(takes_part).sum::<usize>() as u32 * self.rounds
    }

    /// About how long the measurements take, without setting up.
    #[must_use]
    pub fn estimate(&self) -> Duration {
        (self.duration + self.rampup) * self.measurements()
    }
}
