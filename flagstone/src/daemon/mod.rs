//! The daemon: a node on its reactor thread, and the control API in front of it.
//!
//! This thread runs the API, waits for signals, and stops everything in order: no new control
//! request, then the node (which makes everything durable), then the sockets. The first SIGTERM,
//! SIGINT or SIGHUP begins that; the second ends the process at once, which loses nothing that was
//! acknowledged.

pub mod backend;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::time::Duration;

use flagstone_ring::ListenError;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::api::backend::{Backend as _, Created, Snapshot};
use crate::api::errors::ApiError;
use crate::api::routes::{self, Context};
use crate::api::server::{ApiSocket, BindError};
use crate::api::types::CreateVolume;
use crate::exit::Exit;
use crate::kernel_nbd::{KernelNbd, devices_left};
use crate::node::{self, NodeConfig, NodeExit, NodeHandle, StartError};
use crate::notify;
use crate::pool::offline;
use crate::ublk::{Ublk, step_back};
use crate::uri::NbdEndpoints;

use self::backend::NodeBackend;

/// How often is asked whether the pools' files are still there.
const FILE_INTERVAL: Duration = Duration::from_secs(10);

/// What a daemon is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Pools, NBD sockets and limits. The unix socket's path should be absolute: it is printed.
    pub node: NodeConfig,
    /// Path of the control socket.
    pub api_socket: PathBuf,
    /// A volume to be made if the pools hold none.
    pub first_volume: Option<CreateVolume>,
}

/// What a daemon says when it is ready.
#[derive(Debug)]
pub struct Ready<'a> {
    /// Where NBD is served.
    pub endpoints: &'a NbdEndpoints,
    /// The control socket.
    pub api_socket: &'a Path,
    /// Pools and volumes as they are now.
    pub snapshot: Snapshot,
}

/// Why a daemon did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The control thread can't run.
    #[error("the control thread can't be set up: {0}")]
    Setup(io::Error),
    /// The control socket can't be had.
    #[error("control socket: {0}")]
    Api(#[from] BindError),
    /// The node did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The node refused what the daemon needs at its start.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// Readiness could not be announced.
    #[error("standard output: {0}")]
    Announce(io::Error),
    /// The node ended by itself, or badly.
    #[error(transparent)]
    Node(#[from] NodeExit),
    /// Files of pools were deleted while they were served.
    #[error("{} was deleted while it was served; what was in it is lost", list(pools))]
    Deleted {
        /// Which, as given; at least one.
        pools: Vec<PathBuf>,
    },
    /// The node ended by itself and gave no reason.
    #[error("the reactor ended unasked; see the log")]
    Ended,
}

impl DaemonError {
    /// The exit status that goes with it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Api(BindError::Live { .. }) => Exit::InUse,
            Self::Api(BindError::TooLong { .. } | BindError::NotASocket { .. }) => Exit::Usage,
            Self::Start(error) => start_exit(error),
            _ => Exit::Failure,
        }
    }
}

fn list(pools: &[PathBuf]) -> String {
    pools.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Runs a daemon until it is told to stop. `announce` is called once, when connections are
/// accepted.
///
/// # Errors
/// [`DaemonError`].
pub fn run(
    settings: Settings,
    announce: impl FnOnce(&Ready<'_>) -> io::Result<()>,
) -> Result<(), DaemonError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DaemonError::Setup)?;
    let result = runtime.block_on(serve(settings, announce));
    // A start that was interrupted may still be opening pools; the process ends without it.
    runtime.shutdown_background();
    result
}

async fn serve(
    settings: Settings,
    announce: impl FnOnce(&Ready<'_>) -> io::Result<()>,
) -> Result<(), DaemonError> {
    let mut signals = Signals::new().map_err(DaemonError::Setup)?;
    // Before the pools: a second daemon is told at once, and early clients wait for the first.
    let socket = ApiSocket::bind(&settings.api_socket)?;
    let nbd_unix = settings.node.nbd_unix.clone();
    let node_config = NodeConfig { kernel_nbd_reserve: devices_left(), ..settings.node };
    let start = tokio::task::spawn_blocking(move || node::start(node_config));
    let node = tokio::select! {
        started = start => started.map_err(|error| DaemonError::Setup(error.into()))??,
        signal = signals.next() => {
            tracing::info!(signal, "stopped while opening the pools");
            return Ok(());
        }
    };
    let endpoints = NbdEndpoints { socket: nbd_unix, listen: node.nbd_tcp() };
    let backend = NodeBackend::new(node.clone(), endpoints.clone());
    let kernel_nbd = backend.kernel_nbd().clone();
    let served = async {
        take_over(&node, backend.kernel_nbd()).await;
        let snapshot = first_snapshot(&backend, settings.first_volume).await?;
        let ready = Ready { endpoints: &endpoints, api_socket: &settings.api_socket, snapshot };
        announce(&ready).map_err(DaemonError::Announce)?;
        notify::notify(notify::READY);
        let (stop_api, api_stopped) = oneshot::channel::<()>();
        let router = routes::router(Context::new(Arc::new(backend)));
        let api = tokio::spawn(socket.serve(router, async {
            // A dropped sender means the same.
            let _ = api_stopped.await;
        }));
        let ended = tokio::select! {
            signal = signals.next() => {
                tracing::info!(signal, "stopping; a second signal ends the process at once");
                Ok(())
            }
            () = node.stopped() => Err(DaemonError::Ended),
            never = watch_files(&node) => match never {},
            never = kernel_nbd.watch() => match never {},
        };
        notify::notify(notify::STOPPING);
        drop(stop_api);
        tokio::select! {
            _ = api => {}
            signal = signals.next() => exit_now(signal),
        }
        ended
    }
    .await;
    tokio::select! {
        () = step_back() => {}
        signal = signals.next() => exit_now(signal),
    }
    // A device whose size is being changed needs the node until that is over.
    let _rest = tokio::select! {
        rest = kernel_nbd.rest() => rest,
        signal = signals.next() => exit_now(signal),
    };
    let deleted: Vec<_> = node.deleted_pools().map(Path::to_owned).collect();
    node.shutdown();
    tokio::select! {
        () = node.stopped() => {}
        signal = signals.next() => exit_now(signal),
    }
    // How the node ended says more than that it did.
    join(node).await?;
    served?;
    if deleted.is_empty() { Ok(()) } else { Err(DaemonError::Deleted { pools: deleted }) }
}

/// Serves the block devices again that the daemon before has left: programs are waiting for them.
async fn take_over(node: &NodeHandle, kernel_nbd: &KernelNbd) {
    match Ublk::new(node.clone()).recover().await {
        Ok(recovered) if recovered.served > 0 => {
            tracing::info!(devices = recovered.served, "block devices are served again");
        }
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "block devices that were left can't be looked for"),
    }
    match kernel_nbd.recover().await {
        Ok(0) => {}
        Ok(devices) => tracing::info!(devices, "devices of the NBD client are served again"),
        Err(error) => tracing::error!(%error, "devices of the NBD client can't be looked for"),
    }
}

/// Looks from time to time whether the pools' files still have names, and tells once if not: while
/// the daemon runs, the data can still be saved.
async fn watch_files(node: &NodeHandle) -> Infallible {
    let mut interval = tokio::time::interval(FILE_INTERVAL);
    let mut told = BTreeSet::new();
    loop {
        interval.tick().await;
        for path in node.deleted_pools() {
            if told.insert(path) {
                tracing::error!(
                    pool = %path.display(),
                    "the pool's file has been deleted: it is still served, but all that is in it \
                     is gone when this daemon stops; copy its volumes elsewhere before that"
                );
            }
        }
    }
}

async fn join(node: NodeHandle) -> Result<(), DaemonError> {
    let joined = tokio::task::spawn_blocking(move || node.join()).await;
    joined.map_err(|error| DaemonError::Setup(error.into()))?.map_err(DaemonError::Node)
}

/// Volumes that are told with the ready line.
const READY_VOLUMES: usize = 100;

async fn first_snapshot(
    backend: &NodeBackend,
    first_volume: Option<CreateVolume>,
) -> Result<Snapshot, DaemonError> {
    let snapshot = backend.snapshot(READY_VOLUMES).await?;
    let Some(request) = first_volume.filter(|_| snapshot.volumes.is_empty()) else {
        return Ok(snapshot);
    };
    let (Created::New(volume) | Created::Existing(volume)) = backend.create_volume(request).await?;
    tracing::info!(volume = volume.name, size_bytes = volume.size_bytes, "first volume made");
    Ok(backend.snapshot(READY_VOLUMES).await?)
}

/// Ends the process without the clean stop, as the second signal asks.
fn exit_now(signal: i32) -> ! {
    tracing::warn!(signal, "ended at once; the next start recovers the pools");
    // As a shell reports a process that the signal itself has ended.
    process::exit(128 + signal)
}

/// The signals that stop a daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// The terminal is gone; absent if the process is to outlive it, as with `nohup`.
    hangup: Option<Signal>,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: match ignores_hangup() {
                true => None,
                false => Some(signal(SignalKind::hangup())?),
            },
        })
    }

    /// The next signal's number.
    async fn next(&mut self) -> i32 {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        let kind = tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = hangup => SignalKind::hangup(),
        };
        kind.as_raw_value()
    }
}

/// Whether whoever started the process had it ignore SIGHUP (`proc_pid_status(5)`, `SigIgn`).
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (SignalKind::hangup().as_raw_value() - 1) & 1 == 1
}

/// The exit status of a node that did not start.
pub(crate) fn start_exit(error: &StartError) -> Exit {
    match error {
        StartError::OutOfRange { .. }
        | StartError::NoListener
        | StartError::PoolTwice { .. }
        | StartError::Memory { .. }
        | StartError::Listen(ListenError::NotASocket { .. }) => Exit::Usage,
        StartError::Listen(ListenError::AddrInUse { .. }) => Exit::InUse,
        StartError::Device(error) => offline::device_exit(error),
        StartError::Pool { error, .. } => offline::pool_exit(error),
        StartError::Truncated(_) => Exit::Damaged,
        _ => Exit::Failure,
    }
}
