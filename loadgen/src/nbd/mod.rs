//! Load on an NBD server, over one or more connections on one or more threads.

mod client;
mod exchange;
mod handshake;
mod line;
mod socket;
mod wire;
mod worker;

pub use client::{NbdClient, NbdClientError};
pub use exchange::ProtocolError;
pub use handshake::HandshakeError;

use crate::{
    RunError, ledger_file,
    pace::Pacer,
    report::{self, ExportFigures, Report, Setup, Verification},
    run::{self, Limits, Observer},
    uri::NbdUri,
    workload::{Generator, Workload, WorkloadError, slice_of},
};
use exchange::Terms;
use handshake::Export;
use line::Line;
use socket::Socket;
use worker::Worker;

/// How the server is reached and spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdOptions {
    /// Connections to each export, each with its share of the depth.
    pub connections: u32,
    /// Threads that drive them; zero means half the cores. Never more than connections.
    pub threads: u32,
    /// Asks for structured replies; a server that has none answers simply.
    pub structured: bool,
    /// The process whose CPU time counts as the server's; `None` asks the socket, which knows
    /// it for unix sockets.
    pub server_pid: Option<u32>,
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self { connections: 1, threads: 0, structured: false, server_pid: None }
    }
}

/// Runs `workload` against the export at `uri`.
///
/// Blocks until the run is over; `observer` is called on this thread meanwhile.
///
/// # Errors
/// - `Workload`: nothing was sent. `Ledger`: nothing was written, or it could not be saved afterwards.
/// - `Connect`, `Handshake`, `ReadOnly`, `NoFlush`, `NoFua`, `NoMultiConn`, `RequestLimits`:
///   nothing was read or written.
/// - `Protocol`, `Io`, `Stalled`: the run broke off; writes may have been carried out.
///
/// Requests that the server answers with an error don't end the run; the report counts them.
pub fn run_nbd(
    uri: &NbdUri,
    workload: &Workload,
    options: &NbdOptions,
    limits: &Limits,
    observer: &mut dyn Observer,
) -> Result<Report, RunError> {
    run_nbd_all(std::slice::from_ref(uri), workload, options, limits, observer)
}

/// As [`run_nbd`], against several exports at the same time, each over as many connections. Operations, depth and rate are
/// those of all; each export has its own order of requests, over its own span. The report tells what each of them did.
///
/// # Errors
/// As [`run_nbd`]; `VerifySeveral`.
pub fn run_nbd_all(
    uris: &[NbdUri],
    workload: &Workload,
    options: &NbdOptions,
    limits: &Limits,
    observer: &mut dyn Observer,
) -> Result<Report, RunError> {
    let each = options.connections;
    let count = each.saturating_mul(uris.len() as u32);
    workload.validate(count)?;
    if workload.verify && uris.len() > 1 {
        return Err(RunError::VerifySeveral);
    }
    let mut connected = Vec::with_capacity(count as usize);
    let mut span = 0;
    for uri in uris {
        let mut first: Option<Export> = None;
        let from = connected.len();
        for _ in 0..each {
            let (socket, export) = connect(uri, options.structured)?;
            if *first.get_or_insert(export) != export {
                return Err(RunError::ExportChanged);
            }
            connected.push((socket, export, 0));
        }
        let export = first.ok_or(WorkloadError::Connections { connections: count })?;
        check_export(&export, workload, each)?;
        let requests = workload.requests(export.size, each)?;
        connected[from..].iter_mut().for_each(|(.., of)| *of = requests);
        span += requests;
    }
    let server_pid =
        options.server_pid.or_else(|| connected.first().and_then(|(first, ..)| first.server_pid()));
    let ledger = ledger_file::open(workload, span)?;
    let mut lines = connected.into_iter().zip(0..).map(|((socket, export, requests), index)| {
        let terms = Terms {
            workload,
            generator: Generator::new(workload, requests, index % each, each),
            ledger: ledger.as_ref(),
            depth: workload.depth_of(index, count),
            structured: export.structured,
            index,
        };
        // A sequential connection that gets as many operations as its slice has requests covers
        // it exactly once: both are cut alike.
        let operations = limits.operations.map(|all| {
            let (first, end) = slice_of(all, index, count);
            end - first
        });
        let pacer = workload.rate.map(|rate| Pacer::new(rate, index, count));
        Line::new(socket, terms, operations, pacer)
    });
    let threads = thread_count(options.threads, count);
    let mut workers: Vec<Worker<'_>> = (0..threads)
        .map(|thread| {
            let (first, end) = slice_of(u64::from(count), thread, threads);
            Worker::new(lines.by_ref().take((end - first) as usize).collect())
        })
        .collect();
    let outcome = run::drive(&mut workers, workload.block_size, limits, server_pid, observer);
    // Also of a run that broke off: that is when it is wanted.
    ledger.as_ref().map_or(Ok(()), |ledger| ledger_file::save(ledger, workload))?;
    let outcome = outcome?;
    let lines: Vec<Line<'_>> = workers.into_iter().flat_map(Worker::into_lines).collect();
    let seconds = outcome.elapsed.as_secs_f64().max(1e-9);
    let answered = lines.chunks(each as usize).map(|of| of.iter().map(Line::answered).sum::<u64>());
    let exports = uris.iter().zip(answered).map(|(uri, answered)| ExportFigures {
        target: uri.to_string(),
        iops: answered as f64 / seconds,
    });
    let exports = if uris.len() > 1 { exports.collect() } else { Vec::new() };
    let verification = Verification::sum(lines.into_iter().map(Line::close));
    let target = match uris {
        [uri] => uri.to_string(),
        _ => format!("{} exports", uris.len()),
    };
    let setup = Setup::new(target, workload, count, span);
    let report = report::build(
        setup,
        &outcome.sample,
        outcome.errors,
        outcome.elapsed,
        outcome.used,
        ledger.is_some().then_some(verification),
    );
    Ok(Report { exports, ..report })
}

fn connect(uri: &NbdUri, structured: bool) -> Result<(Socket, Export), RunError> {
    let mut socket = Socket::connect(&uri.address).map_err(RunError::Connect)?;
    let export = handshake::negotiate(&mut socket, &uri.name, structured)?;
    socket.begin_transmission().map_err(RunError::Io)?;
    Ok((socket, export))
}

/// Threads to use. With few cores a thread per connection would only take time from the server.
fn thread_count(asked: u32, connections: u32) -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let threads = if asked == 0 { cores / 2 } else { asked };
    threads.clamp(1, connections)
}

fn check_export(export: &Export, workload: &Workload, connections: u32) -> Result<(), RunError> {
    let has = |flag| export.flags & flag != 0;
    if workload.writes() && has(wire::TRANSMIT_READ_ONLY) {
        return Err(RunError::ReadOnly);
    }
    if workload.flush_every.is_some() && !has(wire::TRANSMIT_SEND_FLUSH) {
        return Err(RunError::NoFlush);
    }
    if workload.fua && workload.writes() && !has(wire::TRANSMIT_SEND_FUA) {
        return Err(RunError::NoFua);
    }
    if workload.discard && workload.writes() && !has(wire::TRANSMIT_SEND_TRIM) {
        return Err(RunError::NoTrim);
    }
    if workload.verify && connections > 1 && !has(wire::TRANSMIT_CAN_MULTI_CONN) {
        return Err(RunError::NoMultiConn);
    }
    if let Some((min, max)) = export.limits {
        let bytes = workload.block_size;
        if bytes < min || bytes > max || !bytes.is_multiple_of(min.max(1)) {
            return Err(RunError::RequestLimits { bytes, min, max });
        }
    }
    Ok(())
}
