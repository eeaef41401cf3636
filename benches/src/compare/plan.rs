//! What is compared: the matrix, its sizes and its times.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;

/// What the RAM disks are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// A zram device under a direct-I/O loop device.
    Zram,
    /// A file in `/dev/shm` under a direct-I/O loop device.
    Tmpfs,
}

/// Read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Random reads.
    Read,
    /// Random writes.
    Write,
}

/// One measurement's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// Reads or writes.
    pub operation: Operation,
    /// Requests in flight that were asked for.
    pub depth: u32,
    /// Connections; each has at least one request in flight.
    pub connections: u32,
}

impl Cell {
    /// Requests that are really in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.depth.max(self.connections)
    }
}

/// A whole comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The release binary.
    pub flagstone: PathBuf,
    /// What the RAM disks are made of.
    pub backing: Backing,
    /// Bytes that are read and written.
    pub span_bytes: u64,
    /// Bytes of Flagstone's device. A log keeps overwritten blocks until their segment is free:
    /// with uniform overwrites it levels off near eight spans, less with a cleaner.
    pub pool_bytes: u64,
    /// Bytes per request.
    pub block_size: u32,
    /// The matrix.
    pub operations: Vec<Operation>,
    /// See [`Cell::depth`].
    pub depths: Vec<u32>,
    /// See [`Cell::connections`].
    pub connections: Vec<u32>,
    /// How often every cell is measured.
    pub rounds: u32,
    /// Length of a measurement.
    pub duration: Duration,
    /// Time before each measurement that isn't counted.
    pub rampup: Duration,
}

impl Plan {
    /// The cells: those of each operation together.
    #[must_use]
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for &operation in &self.operations {
            for &depth in &self.depths {
                for &connections in &self.connections {
                    cells.push(Cell { operation, depth, connections });
                }
            }
        }
        cells
    }

    /// Bytes of the other servers' devices: the span, and room for qcow2's tables.
    #[must_use]
    pub fn peer_bytes(&self) -> u64 {
        const MIB: u64 = 1 << 20;
        (self.span_bytes + self.span_bytes / 16 + 16 * MIB).next_multiple_of(MIB)
    }

    /// About how long the measurements take, without setting up.
    #[must_use]
    pub fn estimate(&self, servers: u32) -> Duration {
        let cells = self.cells().len() as u32;
        (self.duration + self.rampup) * (cells * self.rounds * servers)
    }
}
