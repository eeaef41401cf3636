//! The run itself: start everything, write the span once, measure round by round, stop.

use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use flagstone_loadgen::{
    Limits, NbdOptions, Pattern, RawOptions, Report, RunError, Unobserved, Workload, run_nbd,
    run_raw,
};

use super::{
    Comparison, Job, Plan,
    job::{Order, Prepare},
    library, preconditions,
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
    #[error("{server} failed {errors} of {requests} requests{hint}; its log: {log}")]
    Errors {
        /// Which server.
        server: &'static str,
        /// How many.
        errors: u64,
        /// Of how many.
        requests: u64,
        /// The end of its log.
        log: String,
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
    let all = plan.measurements();
    for round in 0..plan.rounds {
        for (number, job) in plan.jobs.iter().enumerate() {
            // Another order each time: whoever comes first after a write-heavy neighbour must
            // not always be the same.
            let turn = (round as usize + number) % servers.len();
            servers.rotate_left(turn);
            for server in servers.iter_mut().filter(|server| job.among.has(server.kind)) {
                go_on()?;
                let name = server.kind.name();
                news.progress(
                    measurements.len() as f64 / f64::from(all),
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
    drive(server, plan, &workload, 1, &limits).map(drop)
}

/// Makes ready for a job what it is done to.
fn prepare(server: &mut Server, plan: &Plan, job: &Job) -> Result<(), CompareError> {
    match job.prepare {
        Prepare::Nothing => Ok(()),
        Prepare::Filled => warm_up(server, plan),
        Prepare::Fresh => server.renew(plan),
        Prepare::Snapshot => {
            warm_up(server, plan)?;
            server.snapshot(plan, true)
        }
    }
}

/// Leaves what other jobs expect.
fn tidy_up(server: &mut Server, plan: &Plan, job: &Job) -> Result<(), CompareError> {
    if job.prepare == Prepare::Snapshot {
        server.snapshot(plan, false)?;
    }
    if job.order == Order::Once { warm_up(server, plan) } else { Ok(()) }
}

fn measure(
    server: &mut Server,
    plan: &Plan,
    job: &Job,
    round: u32,
) -> Result<Measurement, CompareError> {
    prepare(server, plan, job)?;
    // The same requests for every server, others in every round.
    let workload = job.workload(plan.span_bytes, u64::from(round) + 1);
    let operations = job.operations(plan.span_bytes);
    // What comes once only is measured from the first on.
    let rampup = if operations.is_some() { Duration::ZERO } else { plan.rampup };
    let limits = Limits { duration: Some(plan.duration), operations, rampup, ..Limits::default() };
    let figures = drive(server, plan, &workload, job.connections, &limits)?;
    tidy_up(server, plan, job)?;
    Ok(Measurement { server: server.kind, job: job.name, round, figures })
}

fn drive(
    server: &Server,
    plan: &Plan,
    workload: &Workload,
    connections: u32,
    limits: &Limits,
) -> Result<Figures, CompareError> {
    let name = server.kind.name();
    let run = |source| CompareError::Run { server: name, source };
    let driven = match server.target() {
        Target::Export { uri, pid } => {
            let options =
                NbdOptions { connections, server_pid: Some(pid), ..NbdOptions::default() };
            run_nbd(uri, workload, &options, limits, &mut Unobserved)
                .map(|report| Driven::of(&report, false))
                .map_err(run)?
        }
        Target::Device(path) => {
            let workload = Workload { depth: workload.depth.max(connections), ..workload.clone() };
            let options = RawOptions { force_destructive: true, ..RawOptions::default() };
            run_raw(path, &workload, options, limits, &mut Unobserved)
                .map(|report| Driven::of(&report, true))
                .map_err(run)?
        }
        Target::Pool(path, volume) => {
            let report = library::run(plan, path, volume, workload, limits)?;
            serde_json::from_str::<Driven>(&report).map_err(|error| CompareError::Tool {
                command: "flagstone bench pool".into(),
                why: format!("{error}: {report}"),
            })?
        }
    };
    if driven.errors > 0 || driven.total.operations == 0 {
        let hint = match server.kind {
            Kind::Flagstone | Kind::Library => {
                ": the pool may be full; give it a larger --pool-size"
            }
            _ => "",
        };
        let (errors, requests) = (driven.errors, driven.errors + driven.total.operations);
        let log = server.log();
        return Err(CompareError::Errors { server: name, errors, requests, log, hint });
    }
    Ok(driven.figures())
}

/// What matters of a report, also of one that another process has printed.
#[derive(serde::Deserialize)]
struct Driven {
    errors: u64,
    total: Total,
    cpu: Cpu,
    /// There is no server: all of the processor time is its own.
    #[serde(default = "yes")]
    alone: bool,
}

const fn yes() -> bool {
    true
}

#[derive(serde::Deserialize)]
struct Total {
    operations: u64,
    iops: f64,
    mib_per_s: f64,
    latency: Option<Latency>,
}

#[derive(Clone, Copy, serde::Deserialize)]
struct Latency {
    p50_us: f64,
    p99_us: f64,
    p99_9_us: f64,
}

#[derive(serde::Deserialize)]
struct Cpu {
    client_us_per_io: f64,
    server_us_per_io: Option<f64>,
}

impl Driven {
    fn of(report: &Report, alone: bool) -> Self {
        let total = &report.total;
        let latency = |l: flagstone_loadgen::Latency| Latency {
            p50_us: l.p50_us,
            p99_us: l.p99_us,
            p99_9_us: l.p99_9_us,
        };
        Self {
            errors: report.errors,
            total: Total {
                operations: total.operations,
                iops: total.iops,
                mib_per_s: total.mib_per_s,
                latency: total.latency.map(latency),
            },
            cpu: Cpu {
                client_us_per_io: report.cpu.client_us_per_io,
                server_us_per_io: report.cpu.server_us_per_io,
            },
            alone,
        }
    }

    fn figures(&self) -> Figures {
        let client_us = self.cpu.client_us_per_io;
        let (server_us_per_io, client_us_per_io) = match self.alone {
            true => (client_us, 0.0),
            false => (self.cpu.server_us_per_io.unwrap_or_default(), client_us),
        };
        let latency = |of: fn(Latency) -> f64| self.total.latency.map_or(0.0, of);
        Figures {
            iops: self.total.iops,
            mib_per_s: self.total.mib_per_s,
            p50_us: latency(|l| l.p50_us),
            p99_us: latency(|l| l.p99_us),
            p99_9_us: latency(|l| l.p99_9_us),
            server_us_per_io,
            client_us_per_io,
        }
    }
}
