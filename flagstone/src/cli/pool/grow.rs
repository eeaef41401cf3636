//! `flagstone pool grow`: takes the new space of a file or device that has become larger.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::api::types::Pool;
use crate::cli::Failure;
use crate::cli::api_args::ApiArgs;
use crate::cli::pool::lies_on;
use crate::output;
use crate::pool::grow::{self, Grown};
use crate::size::Human;

/// Take the new space of a pool's file or device that has become larger
///
/// Make it larger first: `truncate -s +10G FILE`, `lvextend`, or whatever made the device. A pool that
/// a daemon serves is grown by that daemon while it serves, and writes that wait for space go on;
/// any other pool is opened, grown and closed. A crash on the way leaves the old size or the new
/// one. If nothing is new, nothing changes, and that is a success.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  truncate -s 20G pool.flagstone && flagstone pool grow pool.flagstone
  lvextend -L +100G vg/pool && flagstone pool grow /dev/vg/pool")]
pub struct Args {
    /// The pool's file or block device
    #[arg(value_name = "PATH")]
    path: PathBuf,

    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Serialize)]
struct Document<'a> {
    path: &'a Path,
    /// A daemon did it.
    online: bool,
    device_bytes: u64,
    segments_before: u32,
    segments: u32,
}

/// Runs the command.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let (online, grown) = match served(args) {
        Some(before) => (true, grow_online(args, &before)?),
        None => {
            let grown = grow::grow(&args.path);
            (false, grown.map_err(|error| Failure::new(error.exit(), error))?)
        }
    };
    let Grown { device_bytes, segments_before, segments } = grown;
    if json {
        let path = &args.path;
        let document = Document { path, online, device_bytes, segments_before, segments };
        return Ok(output::json(&document)?);
    }
    let path = args.path.display();
    let text = match segments - segments_before {
        0 => format!("pool {path}: nothing is new, {segments} segments as before"),
        more => format!(
            "grown pool {path}: {more} segments more, {segments} in all on {}{}",
            Human(device_bytes),
            if online { ", while it is served" } else { "" }
        ),
    };
    Ok(output::line(&text)?)
}

/// The pool as a daemon shows it, if one answers and serves it. A pool of the same UUID that is
/// not this file is not meant: it may be a copy.
fn served(args: &Args) -> Option<Pool> {
    let pools = args.api.call(|client| async move { client.pools().await }).ok()?;
    pools.into_iter().find(|pool| lies_on(pool, &args.path))
}

fn grow_online(args: &Args, before: &Pool) -> Result<Grown, Failure> {
    let pool = args.api.call(|client| async move { client.grow_pool(&before.uuid).await })?;
    let (segments_before, segments) = (before.segments, pool.segments);
    Ok(Grown { device_bytes: pool.device_bytes, segments_before, segments })
}
