//! `flagstone up`: everything at once, in one directory, with nothing to decide.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::api_args::{UP_API_SOCKET, UP_DIR_DEFAULT};
use super::log_args::LogArgs;
use super::{Failure, ready, serve};
use crate::api::types::{CreateVolume, Volume};
use crate::config::parse_address;
use crate::daemon::{self, Ready, Settings};
use crate::node::{DeviceDiscard, NodeConfig};
use crate::output;
use crate::pool::create::{self, CreateOptions};
use crate::size::{Human, parse_block_size, parse_size};

/// The pool's file in the directory.
const POOL_FILE: &str = "pool.flagstone";

/// The NBD socket in the directory.
const NBD_SOCKET: &str = "nbd.sock";

/// The pool's size unless told otherwise.
const POOL_BYTES: u64 = 10 << 30;

/// The demo volume's name.
const VOLUME: &str = "demo";

/// The demo volume's size, if the pool is large enough for it.
const VOLUME_BYTES: u64 = 4 << 30;

/// Serve a demo volume from a directory, made if it is absent
///
/// Makes ./flagstone-data with a sparse pool file and a thin volume called "demo", serves it over
/// NBD on a unix socket in that directory, and prints how to use it. The next run finds everything
/// as it was. Ctrl-C stops; the data stays. To begin anew, remove the directory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone up
  flagstone up --dir /srv/flagstone --size 100G --nbd-listen 127.0.0.1
  flagstone up --json | head -1 | jq -r '.volumes[0].uris[0]'

While it runs, from the same directory:
  flagstone volume create data --size 20G")]
pub struct Args {
    /// Directory for the pool and the sockets
    #[arg(long, value_name = "PATH", default_value = UP_DIR_DEFAULT)]
    dir: PathBuf,

    /// Size of the pool if it is made now; the file is sparse [default: 10G]
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE", value_parser = parse_block_size)]
    size: Option<u64>,

    /// Serve NBD over TCP too, at this address (port 10809 unless given)
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    nbd_listen: Option<SocketAddr>,

    /// Memory for buffers [default: 176M]
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,

    /// Memory for the map of what lies where: 4.6 KiB for every 2 MiB that hold data; what does not
    /// fit is read when it is needed [default: 1G]
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE", value_parser = parse_size)]
    map_memory: Option<u64>,

    /// Give the space of free segments back to the device: auto does where the device can, or a pool
    /// file has holes [default: auto]
    #[arg(long, value_enum, value_name = "WHEN")]
    device_discard: Option<DeviceDiscard>,

    /// Control socket [default: api.sock in the directory]
    #[arg(long, alias = "api", env = "FLAGSTONE_API", value_name = "PATH")]
    api_socket: Option<PathBuf>,

    #[command(flatten)]
    log: LogArgs,
}

/// Runs the command until a signal stops it.
pub fn run(args: Args, json: bool) -> Result<(), Failure> {
    args.log.init("warn")?;
    let failed = |error| Failure::directory(&args.dir, &error);
    let dir = std::path::absolute(&args.dir).map_err(failed)?;
    fs::create_dir_all(&dir).map_err(failed)?;
    let api_socket = match args.api_socket {
        Some(path) => serve::socket(path)?,
        None => dir.join(UP_API_SOCKET),
    };
    let pool = dir.join(POOL_FILE);
    let pool_bytes = make_pool(&pool, args.size, json)?;
    let defaults = NodeConfig::default();
    let settings = Settings {
        node: NodeConfig {
            pools: vec![pool],
            nbd_unix: Some(dir.join(NBD_SOCKET)),
            nbd_tcp: args.nbd_listen,
            memory_bytes: args.memory.unwrap_or(defaults.memory_bytes),
            map_memory: args.map_memory.or(defaults.map_memory),
            device_discard: args.device_discard.unwrap_or(defaults.device_discard),
            degraded: defaults.degraded,
            ..defaults
        },
        api_socket,
        first_volume: Some(CreateVolume {
            name: VOLUME.to_owned(),
            size_bytes: VOLUME_BYTES.min(pool_bytes / 2).next_multiple_of(1 << 20),
            pool: None,
            on_full: None,
            reserved_bytes: None,
        }),
    };
    let announce = |ready: &Ready<'_>| {
        if json { ready::json(ready) } else { output::line(&guide(ready)) }
    };
    daemon::run(settings, announce).map_err(|error| Failure::new(error.exit(), error))
}

/// Makes the pool if it is absent; its size in bytes.
fn make_pool(path: &Path, size: Option<u64>, quiet: bool) -> Result<u64, Failure> {
    // An empty file is what a run that was interrupted at the wrong moment leaves behind.
    if let Some(there) = fs::metadata(path).ok().map(|meta| meta.len()).filter(|&len| len > 0) {
        if let Some(size) = size.filter(|&size| size != there) {
            tracing::warn!(
                pool = %path.display(),
                "the pool exists with {}; --size {} counts only when it is made",
                Human(there),
                Human(size)
            );
        }
        return Ok(there);
    }
    let size = size.unwrap_or(POOL_BYTES);
    let options = CreateOptions {
        path: path.to_owned(),
        more: Vec::new(),
        size_bytes: Some(size),
        segment_bytes: None,
        preallocate: false,
        force: false,
        quiet,
    };
    create::create(&options).map_err(|error| Failure::new(error.exit(), error))?;
    Ok(size)
}

/// The ready line and what a newcomer wants to paste.
fn guide(ready: &Ready<'_>) -> String {
    let mut text = ready::line(ready);
    text.push_str("\n\nVolumes:\n");
    for volume in &ready.snapshot.volumes {
        text.push_str(&format!("  {} ({})\n", volume.name, Human(volume.size_bytes)));
        for uri in &volume.uris {
            text.push_str(&format!("    {uri}\n"));
        }
    }
    if let Some(volume) = ready.snapshot.volumes.first() {
        text.push_str(&try_it(volume, ready));
    }
    text.push_str("\nStop with Ctrl-C. The data stays, and the next run finds it.");
    text
}

fn try_it(volume: &Volume, ready: &Ready<'_>) -> String {
    let uri = volume.uris.first().map_or("", String::as_str);
    let (name, api) = (&volume.name, ready.api_socket.display());
    let sample = (volume.size_bytes >> 20).min(256);
    let socket = ready.endpoints.socket.as_deref().unwrap_or(Path::new("")).display();
    format!(
        "\nTry it:\n\
        \x20 nbdinfo '{uri}'\n\
        \x20 qemu-img convert -n -O raw disk.qcow2 '{uri}'\n\
        \x20 fio --name=try --ioengine=nbd --uri='{uri}' --rw=randrw --bs=4k --iodepth=32 --size={sample}M\n\
        \x20 sudo nbd-client -unix '{socket}' -N {name} /dev/nbd0\n\
        \x20     && sudo mkfs.ext4 /dev/nbd0 && sudo mount /dev/nbd0 /mnt\n\
        \x20 flagstone volume create data --size 20G --api-socket '{api}'\n"
    )
}
