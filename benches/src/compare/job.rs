//! The jobs: what each server is asked to do, and how much better than its peers Flagstone is to be at it.

use flagstone_loadgen::{Pattern, Workload};
use serde::Serialize;

use super::server::Kind;

/// One job.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Job {
    /// As it is chosen and shown.
    pub name: &'static str,
    /// Who takes part.
    pub among: Among,
    /// What is done before each measurement.
    pub prepare: Prepare,
    /// Bytes per request.
    pub block_size: u32,
    /// Requests in flight, over all connections.
    pub depth: u32,
    /// Connections.
    pub connections: u32,
    /// Share of reads, in percent.
    pub read_percent: u8,
    /// Which place comes after which.
    pub order: Order,
    /// Discards instead of writes.
    pub discard: bool,
    /// A flush after so many writes.
    pub flush_every: Option<u32>,
    /// Each write is to be durable when it is answered.
    pub fua: bool,
    /// What is aimed at.
    pub goal: Goal,
}

/// Who takes part in a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Among {
    /// Everybody who serves, and the disk.
    Servers,
    /// Those who have thin volumes and snapshots.
    Thin,
    /// Flagstone within a program, and the disk.
    Library,
}

impl Among {
    /// Whether something takes part.
    #[must_use]
    pub const fn has(self, kind: Kind) -> bool {
        match self {
            Self::Servers => !matches!(kind, Kind::Library),
            Self::Thin => matches!(kind, Kind::Flagstone) || kind.is_qcow2(),
            Self::Library => matches!(kind, Kind::Library | Kind::Raw),
        }
    }

    /// Who is to be better than others.
    #[must_use]
    pub const fn subject(self) -> Kind {
        match self {
            Self::Servers | Self::Thin => Kind::Flagstone,
            Self::Library => Kind::Library,
        }
    }

    /// Whom it is compared with.
    #[must_use]
    pub const fn is_peer(self, kind: Kind) -> bool {
        match self {
            Self::Servers | Self::Thin => kind.is_peer(),
            Self::Library => matches!(kind, Kind::Raw),
        }
    }
}

/// What is done before each measurement, and is not measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Prepare {
    /// Nothing: the span was written once, and perhaps overwritten.
    Nothing,
    /// The span is written.
    Filled,
    /// The volume is new.
    Fresh,
    /// The span is written, and a snapshot is taken.
    Snapshot,
}

/// Which place comes after which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Any.
    Random,
    /// The next.
    Sequential,
    /// Any that was not there yet; with the last the measurement ends.
    Once,
}

/// What a job is to show.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Goal {
    /// Requests per second in those of the best of the peers, at least.
    pub iops: f64,
    /// Processor time of the server per request in microseconds, at most.
    pub cpu_us: Option<f64>,
    /// Requests per second in those of the server that does nothing, at least.
    pub of_null: Option<f64>,
    /// Requests per second in its own at the job of this name, at least.
    pub of_own: Option<(&'static str, f64)>,
    /// More requests per second than a server that has no disk but its memory.
    pub ahead_of_memory: bool,
    /// The 99.9th percentile of the latency is not above the best peer's.
    pub tail: bool,
}

const fn times(iops: f64) -> Goal {
    Goal { iops, cpu_us: None, of_null: None, of_own: None, ahead_of_memory: false, tail: false }
}

const RANDOM: Job = Job {
    name: "",
    among: Among::Servers,
    prepare: Prepare::Nothing,
    block_size: 4096,
    depth: 32,
    connections: 1,
    read_percent: 100,
    order: Order::Random,
    discard: false,
    flush_every: None,
    fua: false,
    goal: times(1.0),
};

const SEQUENTIAL: Job = Job { block_size: 128 << 10, depth: 8, order: Order::Sequential, ..RANDOM };

const FIRST: Job = Job { read_percent: 0, order: Order::Once, among: Among::Thin, ..RANDOM };

const WITHIN: Job = Job { among: Among::Library, ..RANDOM };

const fn deep(iops: f64, cpu_us: f64) -> Goal {
    Goal { cpu_us: Some(cpu_us), ahead_of_memory: true, tail: true, ..times(iops) }
}

const fn alone(iops: f64, of_null: f64) -> Goal {
    Goal { of_null: Some(of_null), ..times(iops) }
}

const fn as_overwrites(iops: f64, least: f64) -> Goal {
    Goal { of_own: Some(("randwrite-d32", least)), ..times(iops) }
}

/// All of them.
pub const JOBS: [Job; 22] = [
    Job { name: "randread-d32", goal: deep(3.0, 2.8), ..RANDOM },
    Job { name: "randwrite-d32", read_percent: 0, goal: deep(3.5, 2.4), ..RANDOM },
    Job { name: "randread-d32-c4", connections: 4, goal: times(3.0), ..RANDOM },
    Job { name: "randwrite-d32-c4", read_percent: 0, connections: 4, goal: times(3.0), ..RANDOM },
    Job { name: "mix70-d32", read_percent: 70, goal: times(3.0), ..RANDOM },
    Job { name: "randread-d1", depth: 1, goal: alone(1.5, 0.6), ..RANDOM },
    Job { name: "randwrite-d1", depth: 1, read_percent: 0, goal: alone(1.5, 0.6), ..RANDOM },
    Job {
        name: "write-flush-d1",
        depth: 1,
        read_percent: 0,
        flush_every: Some(1),
        goal: times(1.7),
        ..RANDOM
    },
    Job { name: "fua-d1", depth: 1, read_percent: 0, fua: true, goal: times(1.7), ..RANDOM },
    Job { name: "fua-d32", read_percent: 0, fua: true, goal: times(3.0), ..RANDOM },
    Job { name: "read-128k-d8", goal: times(1.25), ..SEQUENTIAL },
    Job { name: "write-128k-d8", read_percent: 0, goal: times(1.1), ..SEQUENTIAL },
    Job { name: "read-1m-d8", block_size: 1 << 20, goal: times(1.6), ..SEQUENTIAL },
    Job {
        name: "write-1m-d8",
        block_size: 1 << 20,
        read_percent: 0,
        goal: times(1.6),
        ..SEQUENTIAL
    },
    Job { name: "randread-64k-d8", block_size: 64 << 10, depth: 8, goal: times(1.0), ..RANDOM },
    Job {
        name: "discard-64k-d8",
        prepare: Prepare::Filled,
        block_size: 64 << 10,
        depth: 8,
        discard: true,
        among: Among::Servers,
        goal: times(4.0),
        ..FIRST
    },
    Job {
        name: "first-writes-d32",
        prepare: Prepare::Fresh,
        goal: as_overwrites(5.0, 0.95),
        ..FIRST
    },
    Job {
        name: "after-snapshot-d32",
        prepare: Prepare::Snapshot,
        goal: as_overwrites(50.0, 0.9),
        ..FIRST
    },
    Job { name: "library-randread-d32", goal: times(0.85), ..WITHIN },
    Job { name: "library-randwrite-d32", read_percent: 0, goal: times(1.2), ..WITHIN },
    Job { name: "library-randread-d128", depth: 128, goal: times(0.85), ..WITHIN },
    Job { name: "library-randwrite-d128", depth: 128, read_percent: 0, goal: times(1.2), ..WITHIN },
];

impl Job {
    /// The job of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        JOBS.into_iter().find(|job| job.name == name)
    }

    /// What the load generator is to do on the first `span_bytes` bytes, the same for every server.
    #[must_use]
    pub fn workload(&self, span_bytes: u64, seed: u64) -> Workload {
        Workload {
            block_size: self.block_size,
            depth: self.depth,
            read_percent: self.read_percent,
            pattern: match self.order {
                Order::Random => Pattern::Random,
                Order::Sequential => Pattern::Sequential,
                Order::Once => Pattern::Shuffled,
            },
            discard: self.discard,
            span_bytes: Some(span_bytes),
            flush_every: self.flush_every,
            fua: self.fua,
            seed,
            ..Workload::default()
        }
    }

    /// After so many requests a measurement ends, if it has an end of its own.
    #[must_use]
    pub fn operations(&self, span_bytes: u64) -> Option<u64> {
        (self.order == Order::Once).then(|| span_bytes / u64::from(self.block_size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_has_a_name_of_its_own_and_can_be_run() {
        for job in JOBS {
            assert_eq!(Job::named(job.name), Some(job));
            assert_eq!(job.workload(64 << 20, 1).validate(job.connections), Ok(()));
        }
    }
}
