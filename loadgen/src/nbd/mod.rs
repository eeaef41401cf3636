//! Load on an NBD server: one thread and one socket per connection.

mod connection;
mod exchange;
mod handshake;
mod socket;
mod wire;

use std::time::{SystemTime, UNIX_EPOCH};

pub use exchange::ProtocolError;
pub use handshake::HandshakeError;

use crate::{
    RunError,
    report::{self, Report, Setup, Verification},
    run::{self, Limits, Observer},
    uri::NbdUri,
    verify::{LEDGER_BLOCKS_MAX, Ledger},
    workload::{Generator, Workload, WorkloadError},
};
use connection::Connection;
use exchange::{Checked, Terms};
use handshake::Export;
use socket::Socket;

/// How the server is reached and spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdOptions {
    /// Connections, each with its own thread and its share of the depth.
    pub connections: u32,
    /// Asks for structured replies; a server that has none answers simply.
    pub structured: bool,
    /// The process whose CPU time counts as the server's; `None` asks the socket, which knows
    /// it for unix sockets.
    pub server_pid: Option<u32>,
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self { connections: 1, structured: false, server_pid: None }
    }
}

/// Runs `workload` against the export at `uri`.
///
/// Blocks until the run is over; `observer` is called on this thread meanwhile.
///
/// # Errors
/// - `Workload`: nothing was sent.
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
    let count = options.connections;
    workload.validate(count)?;
    let mut sockets = Vec::with_capacity(count as usize);
    let mut first: Option<Export> = None;
    for _ in 0..count {
        let mut socket = Socket::connect(&uri.address).map_err(RunError::Connect)?;
        let export = handshake::negotiate(&mut socket, &uri.name, options.structured)?;
        socket.begin_transmission().map_err(RunError::Io)?;
        let expected = *first.get_or_insert(export);
        if expected != export {
            return Err(RunError::ExportChanged);
        }
        sockets.push(socket);
    }
    let export = first.ok_or(WorkloadError::Connections { connections: count })?;
    check_export(&export, workload, count)?;
    let requests = workload.requests(export.size, count)?;
    if workload.verify && requests > LEDGER_BLOCKS_MAX {
        let max = LEDGER_BLOCKS_MAX;
        return Err(WorkloadError::VerifyTooLarge { requests, max }.into());
    }
    let server_pid = options.server_pid.or_else(|| sockets.first().and_then(Socket::server_pid));
    let ledger = workload.verify.then(|| Ledger::new(run_name(workload.seed), requests));
    // The zipf table costs some milliseconds, and it is the same for all.
    let mut connections: Vec<Connection<'_>> = sockets
        .into_iter()
        .zip(0..)
        .map(|(socket, index)| {
            let terms = Terms {
                workload,
                generator: Generator::new(workload, requests, index, count),
                ledger: ledger.as_ref(),
                depth: workload.depth_of(index, count),
                structured: export.structured,
                index,
            };
            Connection::new(socket, terms)
        })
        .collect();
    let outcome = run::drive(&mut connections, workload.block_size, limits, server_pid, observer)?;
    let checked = connections.into_iter().map(Connection::into_checked);
    let verification = ledger.is_some().then(|| verification(checked));
    let setup = Setup::new(uri.to_string(), workload, count, requests);
    Ok(report::build(
        setup,
        &outcome.sample,
        outcome.errors,
        outcome.elapsed,
        outcome.used,
        verification,
    ))
}

/// What a run is called in its stamps: unlike any other, so that an earlier run's data is seen
/// as such even with the same seed.
fn run_name(seed: u64) -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    crate::rng::mix64(seed ^ crate::rng::mix64(time.as_nanos() as u64))
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

fn verification(all: impl Iterator<Item = Checked>) -> Verification {
    let mut sum = Verification { reads_checked: 0, faults: 0, examples: Vec::new() };
    for checked in all {
        sum.reads_checked += checked.reads;
        sum.faults += checked.faults;
        sum.examples.extend(checked.examples);
    }
    sum
}
