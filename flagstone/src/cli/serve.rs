//! `flagstone serve`: the daemon.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::api_args::API_SOCKET_DEFAULT;
use super::log_args::LogArgs;
use super::{Failure, ready};
use crate::api::types::OnFull;
use crate::config::{FileConfig, parse_address, parse_seconds};
use crate::daemon::{self, Settings};
use crate::exit::Exit;
use crate::logging::LEVEL_DEFAULT;
use crate::node::{DeviceDiscard, NodeConfig, NvmePolling};
use crate::output;
use crate::size::parse_size;

/// Where the NBD socket is unless told otherwise.
const NBD_SOCKET_DEFAULT: &str = "/run/flagstone/nbd.sock";

/// Serve the volumes of one or more pools over NBD
///
/// Opens the pools (recovering them if the last run did not end cleanly), serves every volume as
/// an NBD export of its own name, and answers the control API. One line starting with "ready" is
/// printed to standard output when connections are accepted; logs go to standard error. SIGTERM,
/// SIGINT or SIGHUP stops cleanly; a second one ends the process at once, and the next start recovers.
///
/// A pool is locked while it is served: a second daemon is refused. A socket that nobody listens
/// on is replaced; a live one is not.
///
/// A pool whose device fails a write is only read from then on, while the others go on; the daemon
/// then ends with status 1 when it is stopped, and names the pool.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "The ready line:
  ready nbd=URI [nbd-tcp=URI] api=PATH pools=N volumes=N
  Fields are separated by one blank; values hold none (percent-encoded). With --json it is one
  JSON document instead. Under a service manager (NOTIFY_SOCKET), READY=1 is sent as well.

Configuration file (TOML; what a flag also says, the flag decides):
  pool = [\"/dev/sdb\"]                     # or one path
  nbd-socket = \"/run/flagstone/nbd.sock\"
  nbd-listen = \"127.0.0.1:10809\"
  api-socket = \"/run/flagstone/api.sock\"
  memory = \"512M\"
  map-memory = \"2G\"
  max-connections = 256
  on-full = \"wait\"                        # or \"error\"; for volumes to be created
  full-wait = 60                          # seconds
  device-discard = \"auto\"                 # or \"on\" or \"off\"
  nvme-polling = \"auto\"                   # or \"always\" or \"never\"
  degraded-read-only = false              # or true: without devices that are missing
  log-level = \"info\"
  log-format = \"json\"

Examples:
  flagstone serve --pool /dev/sdb
  flagstone serve --pool pool.flagstone --nbd-socket ./nbd.sock --api-socket ./api.sock
  flagstone serve --config /etc/flagstone.toml --log-format json")]
pub struct Args {
    /// Pool to serve: a file or block device; may be given several times
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pool: Vec<PathBuf>,

    /// Unix socket for NBD [default: /run/flagstone/nbd.sock]
    #[arg(long, value_name = "PATH")]
    nbd_socket: Option<PathBuf>,

    /// Serve NBD over TCP too, at this address (port 10809 unless given)
    ///
    /// NBD has no passwords: whoever reaches the address can read and write every volume.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    nbd_listen: Option<SocketAddr>,

    /// Unix socket of the control API, mode 0600 [default: /run/flagstone/api.sock]
    #[arg(long, alias = "api", env = "FLAGSTONE_API", value_name = "PATH")]
    api_socket: Option<PathBuf>,

    /// Read settings from a TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Memory for buffers, fixed at start [default: 176M]
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,

    /// Memory for the map of what lies where: 4.6 KiB for every 2 MiB that hold data; what does not
    /// fit is read when it is needed [default: 1G]
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE", value_parser = parse_size)]
    map_memory: Option<u64>,

    /// NBD connections at a time; more are turned away [default: 128]
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: Option<u32>,

    /// What new volumes do when their pool is full, unless told otherwise [default: wait]
    #[arg(long, value_enum, value_name = "WHAT")]
    on_full: Option<OnFull>,

    /// How long writes wait for space without any progress of their pool, in seconds [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    full_wait: Option<Duration>,

    /// Give the space of free segments back to the device: auto does where the device can, or a pool
    /// file has holes [default: auto]
    #[arg(long, value_enum, value_name = "WHEN")]
    device_discard: Option<DeviceDiscard>,

    /// When completions of NVMe commands are polled for instead of awaited (pools on /dev/ngXnY): auto does
    /// while several are under way, on machines with more than two cores [default: auto]
    #[arg(long, value_enum, value_name = "WHEN")]
    nvme_polling: Option<NvmePolling>,

    /// Serve a pool with a device missing without it, read-only; otherwise the daemon does not start
    ///
    /// Nothing is written. What lies on the missing device is an I/O error, everything else is read as it
    /// was written last. The device with the journal can't be missing. With all devices there, the pool is
    /// served as always.
    #[arg(long)]
    degraded_read_only: bool,

    #[command(flatten)]
    log: LogArgs,
}

/// Runs the command until a signal stops it.
pub fn run(args: Args, json: bool) -> Result<(), Failure> {
    let file = match &args.config {
        Some(path) => FileConfig::read(path).map_err(|error| Failure::new(Exit::Usage, error))?,
        None => FileConfig::default(),
    };
    let log = LogArgs {
        log_level: args.log.log_level.clone().or_else(|| file.log_level.clone()),
        log_format: args.log.log_format.or(file.log_format),
    };
    log.init(LEVEL_DEFAULT)?;
    let settings = settings(args, file)?;
    let announce = |ready: &daemon::Ready<'_>| {
        if json { ready::json(ready) } else { output::line(&ready::line(ready)) }
    };
    daemon::run(settings, announce).map_err(|error| Failure::new(error.exit(), error))
}

/// The flags, then the file, then the defaults.
fn settings(args: Args, file: FileConfig) -> Result<Settings, Failure> {
    let pools = if args.pool.is_empty() { file.pools } else { args.pool };
    if pools.is_empty() {
        return Err(Failure::new(
            Exit::Usage,
            "no pool to serve; give --pool PATH (flagstone pool create makes one)",
        ));
    }
    let nbd_socket = args.nbd_socket.or(file.nbd_socket);
    let api_socket = args.api_socket.or(file.api_socket);
    let nbd_socket =
        nbd_socket.map_or_else(|| default_socket(Path::new(NBD_SOCKET_DEFAULT)), socket)?;
    let api_socket =
        api_socket.map_or_else(|| default_socket(Path::new(API_SOCKET_DEFAULT)), socket)?;
    if nbd_socket == api_socket {
        return Err(Failure::new(
            Exit::Usage,
            format!(
                "{} can't be both the NBD socket and the control socket; give --nbd-socket and \
                 --api-socket different paths",
                api_socket.display()
            ),
        ));
    }
    let defaults = NodeConfig::default();
    let node = NodeConfig {
        pools,
        nbd_unix: Some(nbd_socket),
        nbd_tcp: args.nbd_listen.or(file.nbd_listen),
        memory_bytes: args.memory.or(file.memory).unwrap_or(defaults.memory_bytes),
        map_memory: args.map_memory.or(file.map_memory).or(defaults.map_memory),
        max_connections: args
            .max_connections
            .or(file.max_connections)
            .unwrap_or(defaults.max_connections),
        handshake_timeout: defaults.handshake_timeout,
        on_full: args.on_full.or(file.on_full).map_or(defaults.on_full, OnFull::into),
        full_wait: args.full_wait.or(file.full_wait).unwrap_or(defaults.full_wait),
        device_discard: args
            .device_discard
            .or(file.device_discard)
            .unwrap_or(defaults.device_discard),
        nvme_polling: args.nvme_polling.or(file.nvme_polling).unwrap_or(defaults.nvme_polling),
        kernel_nbd_reserve: defaults.kernel_nbd_reserve,
        degraded: args.degraded_read_only || file.degraded_read_only.unwrap_or(defaults.degraded),
    };
    Ok(Settings { node, api_socket, first_volume: None })
}

/// A socket's absolute path. That its directory is there is asked now, not when the pools have
/// been opened, which can take a while.
pub(super) fn socket(path: PathBuf) -> Result<PathBuf, Failure> {
    let absolute = std::path::absolute(&path)
        .map_err(|error| Failure::new(Exit::Usage, format!("{}: {error}", path.display())))?;
    match absolute.parent() {
        // Named, it is made as if it were not.
        directory if directory == Path::new(API_SOCKET_DEFAULT).parent() => {
            default_socket(&absolute)
        }
        Some(directory) if !directory.is_dir() => Err(Failure::new(
            Exit::Usage,
            format!(
                "{}: there is no directory {}; make it, or choose another path for the socket",
                path.display(),
                directory.display()
            ),
        )),
        _ => Ok(absolute),
    }
}

/// A default socket, with its directory made: nobody else makes /run/flagstone.
fn default_socket(path: &Path) -> Result<PathBuf, Failure> {
    let made = path.parent().map_or(Ok(()), |directory| match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err((directory, error)),
        _ => Ok(()),
    });
    match made {
        Ok(()) => Ok(path.to_owned()),
        Err((directory, error)) => Err(Failure::new(
            Exit::Failure,
            format!(
                "{}: {error}; make it, run as root, or choose sockets with --nbd-socket and \
                 --api-socket",
                directory.display()
            ),
        )),
    }
}
