//! The run itself: start everything, write the span once, measure round by round, stop.

use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use flagstone_loadgen::{
    Limits, NbdOptions, Pattern, RawOptions, Report, RunError, Unobserved, Workload, run_nbd,
    run_raw,
};

use super::{
    Comparison, Job, Plan, preconditions,
    result::{Figures, Measurement},
    server::{Kind, Server, Target},
};

/// Why there is no comparison. Everything that was made is unmade again.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// Something isn't there.
    #[error("missing:\n  {what}")]
    Missing {
        /// One line each, with the remedy.
        what: String,
    },
    /// A program failed.
    #[error("{command}: {why}")]
    Tool {
        /// As it was run.
        command: String,
        /// What it said.
        why: String,
    },
    /// A file or attribute can't be used.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The loop device goes through the page cache.
    #[error("{device} has no direct I/O on this kernel: the figures would be the page cache's")]
    NotDirect {
        /// Which.
        device: PathBuf,
    },
    /// A server did not come up.
    #[error("{what}: {log}")]
    Server {
        /// What is wrong.
        what: String,
        /// The end of its log.
        log: String,
    },
    /// A measurement broke off.
    #[error("measuring {server}: {source}")]
    Run {
        /// Which server.
        server: &'static str,
        /// Why.
        source: RunError,
    },
    /// A server answered requests with errors, so its figures mean nothing.
    #[error("{server} failed {errors} requests{hint}")]
    Errors {
        /// Which server.
        server: &'static str,
        /// How many.
        errors: u64,
        /// What may help.
        hint: &'static str,
    },
    /// A signal came.
    #[error("interrupted")]
    Interrupted,
}

impl CompareError {
    pub(super) fn io(path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), source }
    }
}

/// Hears how a comparison gets on.
pub trait News {
    /// Something has begun.
    fn say(&mut self, what: &str);
    /// This share of the measurements is done, and this one is next.
    fn progress(&mut self, share: f64, next: &str);
}

/// Runs the comparison. Ends early when `interrupted`.
///
/// # Errors
/// [`CompareError`]; devices and servers are gone then too.
pub fn run(
    plan: &Plan,
    interrupted: &AtomicBool,
    news: &mut dyn News,
) -> Result<Comparison, CompareError> {
    let go_on = || {
        let stop = interrupted.load(Ordering::Relaxed);
        if stop { Err(CompareError::Interrupted) } else { Ok(()) }
    };
    let environment = preconditions::check(plan)?;
    for what in &environment.warnings {
        news.say(&format!("warning: {what}"));
    }
    let directory = tempfile::Builder::new()
        .prefix("flagstone-compare-")
        .tempdir()
        .map_err(|error| CompareError::io(std::env::temp_dir(), error))?;
    let mut servers = Vec::with_capacity(plan.servers.len());
    for &kind in &plan.servers {
        go_on()?;
        news.say(&format!("starting {} and writing {} MiB", kind.name(), plan.span_bytes >> 20));
        let server = Server::start(kind, plan, directory.path())?;
        warm_up(&server, plan)?;
        servers.push(server);
    }
    let mut measurements = Vec::new();
    let all = plan.rounds as usize * plan.jobs.len() * servers.len();
    for round in 0..plan.rounds {
        for (number, job) in plan.jobs.iter().enumerate() {
            // Another order each time: whoever comes first after a write-heavy neighbour must
            // not always be the same.
            let turn = (round as usize + number) % servers.len();
            servers.rotate_left(turn);
            for server in &servers {
                go_on()?;
                let name = server.kind.name();
                news.progress(
                    measurements.len() as f64 / all as f64,
                    &format!("round {} of {}: {}, {name}", round + 1, plan.rounds, job.name),
                );
                measurements.push(measure(server, plan, job, round)?);
            }
            servers.rotate_right(turn);
        }
    }
    Ok(Comparison::new(environment, plan.clone(), measurements))
}

/// Writes the whole span once, in order, so that reads have something to read and later writes
/// find all tables made.
fn warm_up(server: &Server, plan: &Plan) -> Result<(), CompareError> {
    const BLOCK_SIZE: u32 = 64 << 10;
    let workload = Workload {
        block_size: BLOCK_SIZE,
        depth: 8,
        read_percent: 0,
        pattern: Pattern::Sequential,
        span_bytes: Some(plan.span_bytes),
        ..Workload::default()
    };
    let operations = Some(plan.span_bytes / u64::from(BLOCK_SIZE));
    let limits = Limits { duration: None, operations, ..Limits::default() };
    drive(server, &workload, 1, &limits).map(drop)
}

fn measure(
    server: &Server,
    plan: &Plan,
    job: &Job,
    round: u32,
) -> Result<Measurement, CompareError> {
    // The same requests for every server, others in every round.
    let workload = job.workload(plan.span_bytes, u64::from(round) + 1);
    let limits = Limits { duration: Some(plan.duration), rampup: plan.rampup, ..Limits::default() };
    let report = drive(server, &workload, job.connections, &limits)?;
    let client_us = report.cpu.client_us_per_io;
    let (server_us_per_io, client_us_per_io) = match server.kind {
        Kind::Raw => (client_us, 0.0),
        _ => (report.cpu.server_us_per_io.unwrap_or_default(), client_us),
    };
    let latency = report.total.latency;
    let figures = Figures {
        iops: report.total.iops,
        mib_per_s: report.total.mib_per_s,
        p50_us: latency.map_or(0.0, |latency| latency.p50_us),
        p99_us: latency.map_or(0.0, |latency| latency.p99_us),
        p99_9_us: latency.map_or(0.0, |latency| latency.p99_9_us),
        server_us_per_io,
        client_us_per_io,
    };
    Ok(Measurement { server: server.kind, job: job.name, round, figures })
}

fn drive(
    server: &Server,
    workload: &Workload,
    connections: u32,
    limits: &Limits,
) -> Result<Report, CompareError> {
    let name = server.kind.name();
    let report = match server.target() {
        Target::Export { uri, pid } => {
            let options =
                NbdOptions { connections, server_pid: Some(pid), ..NbdOptions::default() };
            run_nbd(uri, workload, &options, limits, &mut Unobserved)
        }
        Target::Device(path) => {
            let workload = Workload { depth: workload.depth.max(connections), ..workload.clone() };
            let options = RawOptions { force_destructive: true, ..RawOptions::default() };
            run_raw(path, &workload, options, limits, &mut Unobserved)
        }
    };
    let report = report.map_err(|source| CompareError::Run { server: name, source })?;
    if report.errors > 0 || report.total.operations == 0 {
        let hint = match server.kind {
            Kind::Flagstone => ": the pool may be full; give it a larger --pool-size",
            _ => "",
        };
        return Err(CompareError::Errors { server: name, errors: report.errors, hint });
    }
    Ok(report)
}
