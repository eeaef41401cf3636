//! Why a run did not come to its end.

use std::io;

use flagstone_block::DeviceError;
use flagstone_ring::{AddError, DeviceOpenError, RingError};

use crate::{HandshakeError, LedgerFileError, ProtocolError, WorkloadError};

/// Why a run did not come to its end. Requests that fail are counted, not reported here.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// NVMe commands were asked for, and don't get through.
    #[error("NVMe commands don't get through: {reason}; its block device can be driven instead")]
    Passthrough {
        /// Why.
        reason: String,
    },
    /// The job makes no sense, or not on this target.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// The file of a verified run's ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerFileError),
    /// The server can't be reached.
    #[error("can't connect to the server")]
    Connect(#[source] io::Error),
    /// The server doesn't offer the export.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The connections were given different exports.
    #[error("the export changed while connecting")]
    ExportChanged,
    /// The export can't be written.
    #[error("the export is read-only")]
    ReadOnly,
    /// The export has no flush.
    #[error("the server doesn't support flush")]
    NoFlush,
    /// The export has no FUA.
    #[error("the server doesn't support FUA")]
    NoFua,
    /// The export has no trim.
    #[error("the server doesn't support trim")]
    NoTrim,
    /// What is written is noted for one export.
    #[error("only one export at a time can be verified")]
    VerifySeveral,
    /// Connections need not see each other's writes.
    #[error("verifying over several connections needs a server with CAN_MULTI_CONN")]
    NoMultiConn,
    /// The server doesn't take requests of this size.
    #[error(
        "the server takes requests of {min} to {max} bytes, in multiples of {min}, not {bytes}"
    )]
    RequestLimits {
        /// What was asked for.
        bytes: u32,
        /// The smallest and the unit.
        min: u32,
        /// The largest.
        max: u32,
    },
    /// The server broke the protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(#[from] ProtocolError),
    /// The connection failed or ended.
    #[error("the connection failed")]
    Io(#[source] io::Error),
    /// A raw run's request size isn't one that the reactor transfers.
    #[error("a raw run's block size must be a multiple of 4096, up to {max}, not {bytes}")]
    RawBlockSize {
        /// What was asked for.
        bytes: u32,
        /// The largest.
        max: u32,
    },
    /// The device can't be opened.
    #[error(transparent)]
    Open(#[from] DeviceOpenError),
    /// The device can't be looked at.
    #[error("can't read {offset} to see whether it holds data: {error}")]
    Look {
        /// Byte offset that can't be read.
        offset: u64,
        /// What the device says.
        error: DeviceError,
    },
    /// A run that writes would destroy something.
    #[error(
        "it holds data (a byte that isn't zero at offset {offset}), and this run would overwrite \
         it; if that is meant, give --force-destructive"
    )]
    HoldsData {
        /// Byte offset of the first block found that isn't zero.
        offset: u64,
    },
    /// The reactor can't be made or failed.
    #[error("the reactor failed: {0}")]
    Ring(#[from] RingError),
    /// The device can't be given to the reactor.
    #[error("the reactor refused the device: {0}")]
    AddDevice(#[from] AddError),
    /// No answer came for too long.
    #[error("no answer for {seconds} s")]
    Stalled {
        /// How long it was waited for.
        seconds: u64,
    },
    /// No thread could be made.
    #[error("can't start a thread")]
    Thread(#[source] io::Error),
    /// A driver's thread panicked.
    #[error("a thread of the load generator panicked")]
    Panicked,
}
