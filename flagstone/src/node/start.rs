//! Starting a node: the thread, its ring, the pools and the listening sockets.

use super::control::{ControlError, NodeConfig, NodeExit, NodeHandle, Post};
use super::device_path::DevicePath;
use super::files::PoolFile;
use super::limits::{CONTROL_QUEUE, LOCAL_REQUESTS, MAX_CONNECTIONS, MAX_POOLS, SHARED_BLOCKS_MIN};
use super::local::LocalRequest;
use super::pool::{Member, Pool};
use super::reactor::{Parts, Reactor};
use super::waiting::Waiting;
use super::warning::Warning;
use crate::pool::members::{Gathered, gather};
use crate::pool::{Truncated, explain, offline};
use crate::size::Human;
use crate::uri::NbdEndpoints;
use flagstone_block::BLOCK_SIZE;
use flagstone_engine::{Engine, OpenError, OpenOptions};
use flagstone_nvme::is_namespace;
use flagstone_ring::{
    AddError, DeviceOpenError, ListenError, MailError, MailSender, OpenMode, PassthroughMode, Ring,
    RingConfig, RingError, SpinPolicy, listen_tcp, listen_unix,
};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use tokio::sync::watch;

/// Submission queue entries: a round seldom has more to submit.
const RING_ENTRIES: u32 = 512;

/// Why a node could not be started. Nothing is left running, locked or listening.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is out of its range.
    #[error("{what} must be from {least} to {most}, not {value}")]
    OutOfRange {
        /// The setting.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The least it may be.
        least: u64,
        /// The most it may be.
        most: u64,
    },
    /// Nowhere to serve.
    #[error("neither a unix socket nor a TCP address to serve NBD on")]
    NoListener,
    /// The same pool twice.
    #[error("{} is given twice", path.display())]
    PoolTwice {
        /// As configured.
        path: PathBuf,
    },
    /// A pool's device can't be opened.
    #[error(transparent)]
    Device(#[from] DeviceOpenError),
    /// A pool can't be opened.
    #[error("{}: {}", path.display(), told(error))]
    Pool {
        /// As configured.
        path: PathBuf,
        /// Why.
        error: OpenError,
    },
    /// The end of a pool is missing.
    #[error(transparent)]
    Truncated(#[from] Truncated),
    /// A socket can't be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The memory setting doesn't suffice.
    #[error(
        "{} of memory for buffers is too little for {connections} connections and {pools} pools: \
         at least {} ({least_bytes} bytes) are needed; raise the memory setting or lower the \
         number of connections", Human(*given_bytes), Human(*least_bytes)
    )]
    Memory {
        /// The setting.
        given_bytes: u64,
        /// What it would take at least.
        least_bytes: u64,
        /// The setting.
        connections: u32,
        /// Pools to be served.
        pools: usize,
    },
    /// io_uring can't be used.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A device or socket can't be given to the ring.
    #[error(transparent)]
    Add(#[from] AddError),
    /// The thread can't be made.
    #[error("the reactor thread can't be started: {error}")]
    Thread {
        /// What the system said.
        error: std::io::Error,
    },
}

fn told(error: &OpenError) -> String {
    match error {
        OpenError::Device(error) => explain(*error),
        OpenError::DeviceMissing { .. } => format!(
            "{error}: connect it, or give its path; with --degraded-read-only the pool is opened \
             without it, to be read"
        ),
        _ => error.to_string(),
    }
}

/// What the thread tells its starter once it serves.
pub(super) struct Ready {
    post: Post,
    nbd_tcp: Option<SocketAddr>,
    files: Arc<[PoolFile]>,
    local: Option<LocalSender>,
}

/// Where requests of this process go.
pub(crate) type LocalSender = MailSender<LocalRequest>;

/// Opens the pools, recovering them where needed, and serves them on a thread of their own.
/// Returns when connections are accepted.
///
/// # Errors
/// [`StartError`]. Nothing is left running.
pub fn start(config: NodeConfig) -> Result<NodeHandle, StartError> {
    if config.nbd_unix.is_none() && config.nbd_tcp.is_none() {
        return Err(StartError::NoListener);
    }
    start_thread(config, false).map(|(node, _)| node)
}

/// As [`start()`], for this process itself, through the sender: there need be no listener.
///
/// # Errors
/// [`StartError`]. Nothing is left running.
pub(crate) fn start_local(config: NodeConfig) -> Result<(NodeHandle, LocalSender), StartError> {
    let (node, sender) = start_thread(config, true)?;
    let ended = || StartError::Thread { error: std::io::Error::other("it has no mailbox") };
    Ok((node, sender.ok_or_else(ended)?))
}

fn start_thread(
    config: NodeConfig,
    local: bool,
) -> Result<(NodeHandle, Option<LocalSender>), StartError> {
    check(&config)?;
    let (ready, is_ready) = mpsc::sync_channel(1);
    let (stopping, stopped) = watch::channel(false);
    let thread = std::thread::Builder::new()
        .name("flagstone-node".into())
        .spawn(move || {
            let outcome = serve(config, local, &ready);
            // Nobody may be waiting, which is fine.
            let _ = stopping.send(true);
            outcome
        })
        .map_err(|error| StartError::Thread { error })?;
    match is_ready.recv() {
        Ok(Ok(ready)) => {
            let node = NodeHandle {
                post: ready.post,
                thread: Arc::new(Mutex::new(Some(thread))),
                stopped,
                nbd_tcp: ready.nbd_tcp,
                files: ready.files,
            };
            Ok((node, ready.local))
        }
        Ok(Err(error)) => {
            // It has told why and is on its way out.
            let _ = thread.join();
            Err(error)
        }
        Err(mpsc::RecvError) => {
            let panicked = thread.join().is_err();
            let what = if panicked { "it panicked" } else { "it ended at once" };
            Err(StartError::Thread { error: std::io::Error::other(what) })
        }
    }
}

fn check(config: &NodeConfig) -> Result<(), StartError> {
    let in_range = |what, value: u64, least: u64, most: u64| {
        if (least..=most).contains(&value) {
            Ok(())
        } else {
            Err(StartError::OutOfRange { what, value, least, most })
        }
    };
    in_range("the number of pools' devices", config.pools.len() as u64, 1, MAX_POOLS as u64)?;
    in_range(
        "the number of connections",
        u64::from(config.max_connections),
        1,
        u64::from(MAX_CONNECTIONS),
    )?;
    let block = BLOCK_SIZE as u64;
    in_range("the memory in bytes", config.memory_bytes, 1 << 20, u64::from(u32::MAX) * block)?;
    for (i, path) in config.pools.iter().enumerate() {
        if config.pools[..i].iter().any(|other| offline::is_same(other, path)) {
            return Err(StartError::PoolTwice { path: path.clone() });
        }
    }
    Ok(())
}

/// The thread: sets everything up, says so, and serves until it is told to stop.
fn serve(
    config: NodeConfig,
    local: bool,
    ready: &mpsc::SyncSender<Result<Ready, StartError>>,
) -> Result<(), NodeExit> {
    let (mut reactor, told) = match set_up(config, local) {
        Ok(set_up) => set_up,
        Err(error) => {
            let _ = ready.send(Err(error));
            return Ok(());
        }
    };
    if ready.send(Ok(told)).is_err() {
        // The starter is gone, and with it whoever could use or stop the node.
        reactor.begin_stop();
    }
    reactor.run()
}

pub(super) fn set_up(config: NodeConfig, local: bool) -> Result<(Reactor, Ready), StartError> {
    let arena_blocks = (config.memory_bytes / BLOCK_SIZE as u64) as u32;
    let wanted = config.pools.iter().any(|path| is_namespace(path));
    let passthrough = if wanted { config.nvme_polling.mode() } else { PassthroughMode::Off };
    let mut ring = Ring::new(RingConfig {
        entries: RING_ENTRIES,
        arena_blocks,
        spin: SpinPolicy::Auto,
        max_sockets: config.max_connections,
        passthrough,
    })?;
    tracing::info!(mode = %ring.mode(), "reactor ready");
    let connection_blocks = Reactor::connection_blocks(config.max_connections);
    let too_small = |needed_blocks: u64| StartError::Memory {
        given_bytes: config.memory_bytes,
        least_bytes: needed_blocks * BLOCK_SIZE as u64,
        connections: config.max_connections,
        pools: config.pools.len(),
    };

    let full_wait_ns = u64::try_from(config.full_wait.as_nanos()).unwrap_or(u64::MAX);
    let mut pools = Vec::with_capacity(config.pools.len());
    let gathered = gather(&config.pools, OpenMode::Exclusive)?;
    let count = gathered.len() as u64;
    for Gathered { path, devices: mut io, .. } in gathered {
        // Pools share the bound alike.
        let map_memory = config.map_memory.map(|bytes| bytes / count);
        let degraded = config.degraded;
        let options = OpenOptions { map_memory, degraded, ..OpenOptions::default() };
        let opened = Engine::open(&mut io, ring.buffers(), &options);
        let (mut engine, report) = opened.map_err(|error| match error {
            OpenError::Memory { blocks } => {
                too_small(u64::from(blocks) + connection_blocks + u64::from(SHARED_BLOCKS_MIN))
            }
            error => match Truncated::behind(&error, &mut io) {
                Some(truncated) => truncated.into(),
                None => StartError::Pool { path: path.clone(), error },
            },
        })?;
        engine.set_full_wait_ns(full_wait_ns);
        let mut members = Vec::new();
        for (number, io) in io.0.into_iter().enumerate() {
            let Some(io) = io else {
                members.push(None);
                continue;
            };
            let device = io.into_device();
            engine.set_device_name(number, &device.path().display().to_string());
            let id = ring.add_device(&device)?;
            let path = DevicePath::of(&ring, id, &device);
            path.tell(&device, number);
            members.push(Some(Member { device, id, path }));
        }
        let all = members.iter().flatten();
        let discards = all.into_iter().all(|m| config.device_discard.applies(&m.device));
        engine.set_device_discard(discards);
        tracing::info!(pool = %path.display(), devices = members.len(), ?report, "pool opened");
        let mut pool = Pool {
            path,
            members,
            engine,
            touched: true,
            failure: None,
            waiting: Waiting::default(),
            growing: None,
            changing: None,
            scrubbing: false,
            warning: Warning::default(),
            told_damage: false,
            told_failed: 0,
        };
        pool.note_failure();
        if pool.engine.is_degraded() {
            tracing::warn!(pool = %pool.path.display(), "{}", pool.missing());
        }
        pools.push(pool);
    }
    let used = u64::from(arena_blocks - ring.buffers_ref().free_blocks());
    let needed = used + connection_blocks + u64::from(SHARED_BLOCKS_MIN);
    if needed > u64::from(arena_blocks) {
        return Err(too_small(needed));
    }

    // Listening comes last: whoever connects is served.
    let unix: Option<OwnedFd> = config.nbd_unix.as_deref().map(listen_unix).transpose()?;
    let tcp: Option<OwnedFd> = config.nbd_tcp.map(listen_tcp).transpose().inspect_err(|_| {
        if let Some(socket) = &config.nbd_unix {
            // Made just now, and nobody will ever listen on it.
            let _ = std::fs::remove_file(socket);
        }
    })?;
    let nbd_tcp = tcp.as_ref().and_then(local_address);
    let (sender, mailbox) = ring.mailbox(CONTROL_QUEUE);
    let (local, local_mailbox) =
        if local { Some(ring.mailbox(LOCAL_REQUESTS)) } else { None }.unzip();
    let endpoints = NbdEndpoints { socket: config.nbd_unix.clone(), listen: nbd_tcp };
    let handshake_ns = u64::try_from(config.handshake_timeout.as_nanos()).unwrap_or(u64::MAX / 2);
    let files = pools
        .iter()
        .flat_map(|pool| pool.members.iter().flatten().map(move |m| (&pool.path, &m.device)))
        .map(|(path, device)| PoolFile::new(path, device))
        .collect();
    let parts = Parts {
        pools,
        endpoints,
        mailbox,
        local: local_mailbox,
        handshake_ns: handshake_ns.min(u64::MAX / 2),
        full_wait_ns,
        kernel_nbd_reserve: config.kernel_nbd_reserve.min(config.max_connections / 2),
        default_on_full: config.on_full,
        max_connections: config.max_connections,
    };
    let mut reactor = Reactor::new(ring, parts).ok_or_else(|| too_small(needed * 2))?;
    for fd in [unix, tcp].into_iter().flatten() {
        let listener = reactor.ring.add_listener(fd)?;
        reactor.listeners.push(listener);
    }
    let post: Post = Arc::new(move |request| {
        sender.send(request).map_err(|error| match error {
            MailError::Full(request) => (ControlError::Overloaded, Box::new(request)),
            MailError::Closed(request) => (ControlError::Stopping, Box::new(request)),
        })
    });
    Ok((reactor, Ready { post, nbd_tcp, files, local }))
}

fn local_address(fd: &OwnedFd) -> Option<SocketAddr> {
    let listener = std::net::TcpListener::from(fd.try_clone().ok()?);
    listener.local_addr().ok()
}
