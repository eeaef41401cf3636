//! Closed-loop load generator for files, block devices and NBD servers.
//!
//! Keeps a fixed number of requests in flight and measures how long each takes: throughput at a
//! depth, HDR percentiles, and the CPU time that client and server spend per request. It is the
//! measuring device, so it spends as little as it can itself: per turn and connection one send,
//! one receive and two readings of the clock, whatever the number of replies in it.
//!
//! Being closed-loop, it shows latency *at a depth*, not at an arrival rate: a stall delays the
//! requests behind it instead of queueing them, so percentiles under overload look better than
//! an open-loop client would see.
//!
//! Entry points: [`run_nbd`], [`run_raw`] and the types [`Workload`], [`Limits`], [`Report`]. [`NbdClient`] has
//! nothing to do with load: it is handshake, socket and wire format for who only wants to copy.

mod console;
mod cpu;
mod distribution;
mod error;
mod latencies;
mod ledger_file;
mod nbd;
mod pace;
mod raw;
mod record;
mod report;
mod rng;
mod run;
mod target;
mod uri;
mod verify;
mod workload;

pub use console::{Console, Text};
pub use cpu::ProcessCpu;
pub use distribution::{Distribution, DistributionError};
pub use error::RunError;
pub use latencies::Latencies;
pub use ledger_file::LedgerFileError;
pub use nbd::{
    HandshakeError, NbdClient, NbdClientError, NbdOptions, ProtocolError, run_nbd, run_nbd_all,
};
pub use raw::{RawOptions, run_raw};
pub use report::{Cpu, ExportFigures, Figures, Interval, Latency, Report, Setup, Verification};
pub use run::{Limits, Observer, Unobserved};
pub use target::{Target, TargetAnswer, TargetRequest, run_target};
pub use uri::{NbdAddress, NbdUri, NbdUriError};
pub use verify::{Fault, FaultKind};
pub use workload::{
    BLOCK_SIZE_MAX, CONNECTIONS_MAX, DEPTH_MAX, Kind, Pattern, Workload, WorkloadError,
};
