//! The jobs: what each server is asked to do, and how much better than its peers Flagstone is to be at it.

use flagstone_loadgen::{Pattern, Workload};
use serde::Serialize;

/// One job.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Job {
    /// As it is chosen and shown.
    pub name: &'static str,
    /// Bytes per request.
    pub block_size: u32,
    /// Requests in flight, over all connections.
    pub depth: u32,
    /// Connections.
    pub connections: u32,
    /// Share of reads, in percent.
    pub read_percent: u8,
    /// One request after the other, instead of anywhere.
    pub sequential: bool,
    /// A flush after so many writes.
    pub flush_every: Option<u32>,
    /// Each write is to be durable when it is answered.
    pub fua: bool,
    /// What is aimed at.
    pub goal: Goal,
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
    /// More requests per second than a server that has no disk but its memory.
    pub ahead_of_memory: bool,
    /// The 99.9th percentile of the latency is not above the best peer's.
    pub tail: bool,
}

const TIMES: Goal =
    Goal { iops: 1.0, cpu_us: None, of_null: None, ahead_of_memory: false, tail: false };

const RANDOM: Job = Job {
    name: "",
    block_size: 4096,
    depth: 32,
    connections: 1,
    read_percent: 100,
    sequential: false,
    flush_every: None,
    fua: false,
    goal: TIMES,
};

const SEQUENTIAL: Job = Job { block_size: 128 << 10, depth: 8, sequential: true, ..RANDOM };

const fn times(iops: f64) -> Goal {
    Goal { iops, ..TIMES }
}

const fn deep(iops: f64, cpu_us: f64) -> Goal {
    Goal { iops, cpu_us: Some(cpu_us), of_null: None, ahead_of_memory: true, tail: true }
}

const fn alone(iops: f64, of_null: f64) -> Goal {
    Goal { iops, of_null: Some(of_null), ..TIMES }
}

/// All of them.
pub const JOBS: [Job; 15] = [
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
            pattern: if self.sequential { Pattern::Sequential } else { Pattern::Random },
            span_bytes: Some(span_bytes),
            flush_every: self.flush_every,
            fua: self.fua,
            seed,
            ..Workload::default()
        }
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
