//! The figures of a run, as numbers with their units in their names.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{
    Latencies,
    distribution::Distribution,
    record::Sample,
    verify::{Checked, Fault},
    workload::{Kind, Pattern, Workload},
};

/// Latency in microseconds. Percentiles are those of an HDR histogram with three digits: each is
/// the upper end of its bucket.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Latency {
    pub min_us: f64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p99_9_us: f64,
    pub p99_99_us: f64,
    pub max_us: f64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Option<Self> {
        if histogram.is_empty() {
            return None;
        }
        let us = |nanos: u64| nanos as f64 / 1000.0;
        let at = |quantile| us(histogram.value_at_quantile(quantile));
        Some(Self {
            min_us: us(histogram.min()),
            mean_us: histogram.mean() / 1000.0,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p99_9_us: at(0.999),
            p99_99_us: at(0.9999),
            max_us: us(histogram.max()),
        })
    }
}

/// The figures of one kind of requests, or of reads and writes together.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figures {
    /// Requests answered without an error in the window.
    pub operations: u64,
    /// The same per second.
    pub iops: f64,
    /// Bytes moved per second, in units of 2^20; zero for flushes.
    pub mib_per_s: f64,
    /// How long they took; absent when there were none.
    pub latency: Option<Latency>,
}

impl Figures {
    fn of(histogram: &Histogram<u64>, bytes_each: u32, elapsed: Duration) -> Self {
        let operations = histogram.len();
        let iops = operations as f64 / elapsed.as_secs_f64().max(1e-9);
        Self {
            operations,
            iops,
            mib_per_s: iops * f64::from(bytes_each) / f64::from(1 << 20),
            latency: Latency::of(histogram),
        }
    }
}

/// CPU time used in the window, by whom it can be said.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cpu {
    /// Seconds of CPU per second of this process.
    pub client_cores: f64,
    /// This process, per answered request, in microseconds.
    pub client_us_per_io: f64,
    /// The server's process, where it is known.
    pub server_pid: Option<u32>,
    /// Seconds of CPU per second of the server, all its threads.
    pub server_cores: Option<f64>,
    /// The server, per answered request, in microseconds.
    pub server_us_per_io: Option<f64>,
    /// The whole machine, per answered request, in microseconds: client, server, the kernel's own
    /// threads, and whatever else runs. Says something on an otherwise idle machine only.
    pub machine_us_per_io: Option<f64>,
}

/// What verification found.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// Reads that were compared.
    pub reads_checked: u64,
    /// Reads that returned what they must not.
    pub faults: u64,
    /// The first of them.
    pub examples: Vec<Fault>,
}

impl Verification {
    pub(crate) fn sum(all: impl Iterator<Item = Checked>) -> Self {
        let mut sum = Self { reads_checked: 0, faults: 0, examples: Vec::new() };
        for checked in all {
            sum.reads_checked += checked.reads;
            sum.faults += checked.faults;
            sum.examples.extend(checked.examples);
        }
        sum
    }
}

/// How the run was set up, resolved: what was really used.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the names are those of the options")]
pub struct Setup {
    pub target: String,
    pub connections: u32,
    pub depth: u32,
    pub block_size: u32,
    pub read_percent: u8,
    pub pattern: &'static str,
    pub distribution: String,
    pub span_bytes: u64,
    pub flush_every: Option<u32>,
    pub fua: bool,
    /// Requests per second of an open loop.
    pub rate: Option<u32>,
    pub seed: u64,
    /// Whether a raw target bypasses the page cache; absent for servers.
    pub direct: Option<bool>,
}

impl Setup {
    pub(crate) fn new(
        target: String,
        workload: &Workload,
        connections: u32,
        requests: u64,
    ) -> Self {
        let pattern = match workload.pattern {
            Pattern::Random => "random",
            Pattern::Sequential => "sequential",
            Pattern::Shuffled => "shuffled",
        };
        let distribution = match workload.distribution {
            _ if workload.pattern != Pattern::Random => pattern.into(),
            Distribution::Uniform => "uniform".into(),
            Distribution::Zipf { theta } => format!("zipf:{theta}"),
            Distribution::Hot { accesses_percent, blocks_percent } => {
                format!("hot:{accesses_percent}/{blocks_percent}")
            }
        };
        Self {
            target,
            connections,
            depth: workload.depth_total(connections),
            block_size: workload.block_size,
            read_percent: workload.read_percent,
            pattern,
            distribution,
            span_bytes: requests * u64::from(workload.block_size),
            flush_every: workload.flush_every,
            fua: workload.fua,
            rate: workload.rate,
            seed: workload.seed,
            direct: None,
        }
    }
}

/// One of several exports that were driven at the same time.
#[derive(Clone, Debug, Serialize)]
pub struct ExportFigures {
    /// Its URI.
    pub target: String,
    /// Reads, writes and discards per second.
    pub iops: f64,
}

/// A finished run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How it was set up.
    pub setup: Setup,
    /// Length of the measured window.
    pub elapsed_s: f64,
    /// Reads, writes and discards together, without flushes.
    pub total: Figures,
    /// Reads.
    pub read: Figures,
    /// Writes.
    pub write: Figures,
    /// Flushes.
    pub flush: Figures,
    /// Discards.
    pub discard: Figures,
    /// Requests that failed in the window.
    pub errors: u64,
    /// CPU time.
    pub cpu: Cpu,
    /// Present when the run verified.
    pub verification: Option<Verification>,
    /// What each of several exports did; none for one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exports: Vec<ExportFigures>,
    /// All latencies.
    #[serde(skip)]
    pub latencies: Latencies,
}

impl Report {
    /// Whether every request was answered without an error, and every check passed.
    #[must_use]
    pub fn clean(&self) -> bool {
        self.errors == 0 && self.verification.as_ref().is_none_or(|v| v.faults == 0)
    }
}

/// CPU seconds of a window, before they are divided.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CpuUsed {
    pub client: Duration,
    pub server_pid: Option<u32>,
    pub server: Option<Duration>,
    pub machine: Option<Duration>,
}

/// Puts a report together.
pub(crate) fn build(
    setup: Setup,
    sample: &Sample,
    errors: u64,
    elapsed: Duration,
    used: CpuUsed,
    verification: Option<Verification>,
) -> Report {
    let bytes = setup.block_size;
    let figures = |kind, bytes| Figures::of(sample.of(kind), bytes, elapsed);
    let mut all = sample.of(Kind::Read).clone();
    for kind in [Kind::Write, Kind::Discard] {
        all.add(sample.of(kind)).expect("same bounds");
    }
    let answered = (all.len() + sample.of(Kind::Flush).len()).max(1) as f64;
    let seconds = elapsed.as_secs_f64().max(1e-9);
    let per_io = |time: Duration| time.as_secs_f64() * 1e6 / answered;
    Report {
        total: Figures::of(&all, bytes, elapsed),
        read: figures(Kind::Read, bytes),
        write: figures(Kind::Write, bytes),
        flush: figures(Kind::Flush, 0),
        discard: figures(Kind::Discard, bytes),
        setup,
        elapsed_s: elapsed.as_secs_f64(),
        errors,
        cpu: Cpu {
            client_cores: used.client.as_secs_f64() / seconds,
            client_us_per_io: per_io(used.client),
            server_pid: used.server_pid,
            server_cores: used.server.map(|time| time.as_secs_f64() / seconds),
            server_us_per_io: used.server.map(per_io),
            machine_us_per_io: used.machine.map(per_io),
        },
        verification,
        exports: Vec::new(),
        latencies: Latencies(sample.clone()),
    }
}

/// The figures of one interval, while the run goes on.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Interval {
    /// End of the interval, seconds since the measured window began.
    pub at_s: f64,
    /// Reads.
    pub read: Figures,
    /// Writes.
    pub write: Figures,
    /// Flushes.
    pub flush: Figures,
    /// Discards.
    pub discard: Figures,
}

impl Interval {
    pub(crate) fn of(sample: &Sample, block_size: u32, at: Duration, length: Duration) -> Self {
        let figures = |kind, bytes| Figures::of(sample.of(kind), bytes, length);
        Self {
            at_s: at.as_secs_f64(),
            read: figures(Kind::Read, block_size),
            write: figures(Kind::Write, block_size),
            flush: figures(Kind::Flush, 0),
            discard: figures(Kind::Discard, block_size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Cell, Recorder, Window};

    fn setup() -> Setup {
        Setup::new("x".into(), &Workload::default(), 1, 100)
    }

    /// A thousand latencies of 1 to 1000 µs have known percentiles.
    #[test]
    fn percentiles_and_rates() {
        let cell = Cell::new();
        let window = Window { from: 0, until: u64::MAX, interval: None };
        let mut recorder = Recorder::new(window, &cell);
        for us in 1..=1000u64 {
            recorder.answer(Kind::Read, 0, us * 1000, true);
        }
        recorder.answer(Kind::Flush, 0, 5_000_000, true);
        let sample = recorder.finish().sample;
        let used = CpuUsed {
            client: Duration::from_millis(2),
            server_pid: Some(7),
            server: Some(Duration::from_millis(10)),
            machine: None,
        };
        let report = build(setup(), &sample, 0, Duration::from_secs(2), used, None);
        assert_eq!(report.total.operations, 1000);
        assert!((report.total.iops - 500.0).abs() < 1e-6);
        assert!((report.read.mib_per_s - 500.0 * 4096.0 / 1_048_576.0).abs() < 1e-6);
        assert_eq!(report.flush.operations, 1);
        let latency = report.read.latency.expect("there were reads");
        let near = |value: f64, wanted: f64| (value / wanted - 1.0).abs() < 0.002;
        assert!(near(latency.p50_us, 500.0), "{latency:?}");
        assert!(near(latency.p90_us, 900.0), "{latency:?}");
        assert!(near(latency.p99_us, 990.0), "{latency:?}");
        assert!(near(latency.p99_9_us, 999.0), "{latency:?}");
        assert!(near(latency.p99_99_us, 1000.0), "{latency:?}");
        assert!(near(latency.max_us, 1000.0), "{latency:?}");
        assert!(near(latency.mean_us, 500.5), "{latency:?}");
        assert!(near(report.cpu.client_us_per_io, 2000.0 / 1001.0));
        assert!(near(report.cpu.server_us_per_io.expect("known"), 10_000.0 / 1001.0));
        assert!(near(report.cpu.server_cores.expect("known"), 0.005));
        assert!(report.write.latency.is_none());
    }

    #[test]
    fn an_empty_run_divides_by_nothing() {
        let report = build(setup(), &Sample::new(), 3, Duration::ZERO, CpuUsed::default(), None);
        assert!(report.total.iops == 0.0 && !report.clean());
        let text = serde_json::to_string(&report).expect("serializes");
        assert!(!text.contains("NaN") && text.contains("\"errors\":3"), "{text}");
    }
}
