//! `flagstone pool add` and `flagstone pool remove`: the devices of a pool that is being served.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::api::devices::{AddDevice, DeviceAction};
use crate::api::types::{Pool, PoolDevice};
use crate::cli::Failure;
use crate::cli::api_args::ApiArgs;
use crate::exit::Exit;
use crate::output;
use crate::pool::offline;
use crate::progress::Progress;
use crate::size::{Human, parse_block_size};

/// Between two looks at how far an evacuation is.
const LOOK: Duration = Duration::from_millis(250);

/// Add a file or block device to a pool of a running daemon
///
/// The pool has its space at once, and what is written from then on is spread over it, too. As with
/// `pool create`, a file that does not exist is made, and what holds data is refused without
/// --force. Start the daemon with this device's path as well from now on; it also finds a file that lies
/// beside another of the pool's.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone pool add /dev/sdc
  flagstone pool add more.flagstone --size 100G --pool pool.flagstone")]
pub struct Add {
    /// The file or block device
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// Size of a file that is made
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE", value_parser = parse_block_size)]
    size: Option<u64>,

    /// Add it even if it holds data, which is lost
    #[arg(long)]
    force: bool,

    /// The pool, by UUID or by the path of one of its devices; needed if the daemon serves several
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,

    #[command(flatten)]
    api: ApiArgs,
}

/// Empty a device of a pool of a running daemon, and remove it
///
/// What lies on it is moved to the others while the pool serves; then the pool lets go of it. That is
/// refused if the others have no room. It goes on by itself, also after a crash or a restart of the
/// daemon: this command only watches, and may be run again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone pool remove /dev/sdb
  flagstone pool remove /dev/sdb --no-wait && flagstone pool status
  flagstone pool remove /dev/sdb --cancel")]
pub struct Remove {
    /// The device, by path or UUID
    #[arg(value_name = "DEVICE")]
    device: String,

    /// Don't wait until it is empty
    #[arg(long, conflicts_with = "cancel")]
    no_wait: bool,

    /// End the emptying: the device is used again
    #[arg(long)]
    cancel: bool,

    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Serialize)]
struct Document<'a> {
    pool: &'a str,
    device: &'a str,
    path: &'a str,
    /// `leaving`, `removed`, or `present` again.
    state: &'a str,
}

/// Runs `pool add`.
pub fn add(args: &Add, json: bool) -> Result<(), Failure> {
    let pools = args.api.call(|client| async move { client.pools().await })?;
    let pool = which(&pools, args.pool.as_deref())?;
    let path = std::path::absolute(&args.path)
        .map_err(|error| Failure::new(Exit::Usage, format!("{}: {error}", args.path.display())))?;
    let request =
        AddDevice { path: path.display().to_string(), size_bytes: args.size, force: args.force };
    let after = args.api.call(|client| {
        let request = &request;
        async move { client.add_device(&pool.uuid, request).await }
    })?;
    if json {
        return Ok(output::json(&after)?);
    }
    let text = format!(
        "added {} to pool {}: {} devices, capacity {}",
        path.display(),
        after.path,
        after.devices.len(),
        Human(after.capacity_bytes)
    );
    Ok(output::line(&text)?)
}

/// Runs `pool remove`.
pub fn remove(args: &Remove, json: bool) -> Result<(), Failure> {
    let pools = args.api.call(|client| async move { client.pools().await })?;
    let (pool, device) = find(&pools, &args.device)?;
    let action = if args.cancel { DeviceAction::Keep } else { DeviceAction::Remove };
    let after = args.api.call(|client| {
        let action = action.clone();
        async move { client.change_device(&pool.uuid, &device.uuid, action).await }
    })?;
    let state = match (args.cancel, args.no_wait) {
        (true, _) => "present",
        (false, true) => "leaving",
        (false, false) => {
            watch(args, &after, device, json)?;
            "removed"
        }
    };
    if json {
        let (pool, path) = (pool.uuid.as_str(), device.path.as_str());
        return Ok(output::json(&Document { pool, device: &device.uuid, path, state })?);
    }
    let text = match state {
        "removed" => removed(pool, device),
        "present" => format!("{} stays in pool {}", device.path, pool.path),
        _ => format!("{} is being emptied; `flagstone pool status` shows how far", device.path),
    };
    Ok(output::line(&text)?)
}

/// A start that names the device alone does not find the pool any more.
fn removed(pool: &Pool, device: &PoolDevice) -> String {
    let text = format!("removed {} from pool {}", device.path, pool.path);
    match pool.devices.iter().find(|other| other.uuid != device.uuid) {
        Some(other) if device.path == pool.path => format!(
            "{text}; from now on start the daemon with --pool {}, or another of its devices",
            other.path
        ),
        _ => text,
    }
}

/// Waits until the device is gone.
fn watch(args: &Remove, pool: &Pool, device: &PoolDevice, json: bool) -> Result<(), Failure> {
    let left = |pool: &Pool| pool.devices.iter().find(|d| d.uuid == device.uuid).cloned();
    let in_use = |d: &PoolDevice| u64::from(d.segments - d.segments_empty);
    let Some(first) = left(pool) else { return Ok(()) };
    let segment = device.size_bytes / u64::from(device.segments.max(1));
    let total = in_use(&first).max(1);
    let progress = Progress::bytes("emptying", total * segment, json);
    loop {
        let pools = args.api.call(|client| async move { client.pools().await })?;
        let Some(now) = pools.iter().find(|p| p.uuid == pool.uuid).and_then(left) else {
            return Ok(());
        };
        if now.state == "stuck" {
            let what = format!(
                "{}: {} segments can't be emptied, since something on them can't be read; a scrub \
                 tells what",
                device.path,
                in_use(&now)
            );
            return Err(Failure::new(Exit::Failure, what));
        }
        if now.state != "leaving" {
            let what = format!("{} is used again: somebody ended its emptying", device.path);
            return Err(Failure::new(Exit::Refused, what));
        }
        progress.set(total.saturating_sub(in_use(&now)) * segment);
        std::thread::sleep(LOOK);
    }
}

/// The pool that is meant.
fn which<'a>(pools: &'a [Pool], wanted: Option<&str>) -> Result<&'a Pool, Failure> {
    let known = || pools.iter().map(|pool| pool.path.as_str()).collect::<Vec<_>>().join(", ");
    match (wanted, pools) {
        (None, [only]) => Ok(only),
        (None, _) => {
            let what =
                format!("the daemon serves several pools; say which with --pool: {}", known());
            Err(Failure::new(Exit::Usage, what))
        }
        (Some(wanted), _) => {
            let meant = |pool: &&Pool| {
                pool.uuid == wanted || pool.devices.iter().any(|device| is_meant(device, wanted))
            };
            pools.iter().find(meant).ok_or_else(|| {
                let what = format!("the daemon serves no pool {wanted}, but {}", known());
                Failure::new(Exit::NotFound, what)
            })
        }
    }
}

fn find<'a>(pools: &'a [Pool], wanted: &str) -> Result<(&'a Pool, &'a PoolDevice), Failure> {
    let mut all = pools.iter().flat_map(|pool| pool.devices.iter().map(move |d| (pool, d)));
    all.find(|(_, device)| is_meant(device, wanted)).ok_or_else(|| {
        let what = format!(
            "no pool of the daemon has a device {wanted}; `flagstone pool status` lists them"
        );
        Failure::new(Exit::NotFound, what)
    })
}

fn is_meant(device: &PoolDevice, wanted: &str) -> bool {
    device.uuid == wanted || offline::is_same(Path::new(&device.path), Path::new(wanted))
}
