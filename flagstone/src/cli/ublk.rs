//! `flagstone ublk`: volumes as block devices of this machine.

use clap::Subcommand;

use super::Failure;
use super::api_args::ApiArgs;
use crate::api::ublk::{
    AttachVolume, Attached, AttachedList, AttachedState, DEPTH_MAX, NUMBER_MAX,
};
use crate::daemon::backend::attached;
use crate::exit::Exit;
use crate::name::{parse_name, parse_snapshot_name};
use crate::output::{self, Table};
use crate::size::Human;
use crate::ublk::{UblkError, list_devices, remove_device};
use flagstone_ublk::{Control, ControlError};

/// Attach volumes as block devices of this machine (/dev/ublkbN)
///
/// A block device is served by the daemon through the kernel's ublk driver: any file system, database or virtual
/// machine can use it. When the daemon stops, is replaced or dies, requests wait; when `flagstone serve` is back they go on,
/// and nobody has got an error.
#[derive(Debug, Subcommand)]
pub enum Command {
    Attach(AttachArgs),
    Detach(DetachArgs),
    List(ListArgs),
    Remove(RemoveArgs),
    Features(FeaturesArgs),
}

/// Attach a volume or a snapshot as a block device
///
/// Prints where it is. A volume that is attached already stays so, which is a success. A snapshot can only
/// be read. The device goes with `flagstone ublk detach`, not with the daemon.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mkfs.ext4 \"$(flagstone ublk attach data --json | jq -r .device)\"
  flagstone ublk attach data --number 7          # as /dev/ublkb7
  mount -o ro \"$(flagstone ublk attach data@monday --json | jq -r .device)\" /mnt")]
pub struct AttachArgs {
    /// Name of the volume, or VOLUME@SNAPSHOT
    #[arg(value_name = "VOLUME[@SNAPSHOT]", value_parser = parse_either)]
    volume: String,

    /// Have it as /dev/ublkbN [default: the next that is free]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=i64::from(NUMBER_MAX)))]
    number: Option<u32>,

    /// Requests under way at once [default: 128]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(DEPTH_MAX)))]
    queue_depth: Option<u16>,

    #[command(flatten)]
    api: ApiArgs,
}

/// Take the block device of a volume or snapshot away
///
/// Refused while it is mounted or claimed by another driver, unless --force is given: whoever uses it then gets I/O errors.
/// What was written stays in the volume.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  umount /mnt && flagstone ublk detach data")]
pub struct DetachArgs {
    /// Name of the volume, or VOLUME@SNAPSHOT
    #[arg(value_name = "VOLUME[@SNAPSHOT]", value_parser = parse_either)]
    volume: String,

    /// Even while it is in use
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    api: ApiArgs,
}

/// List the block devices that Flagstone has made on this machine
///
/// Without a daemon too: then whose volumes they are is not known.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone ublk list
  flagstone ublk list --json | jq -r '.devices[] | \"\\(.device) \\(.volume)\"'")]
pub struct ListArgs {
    #[command(flatten)]
    api: ApiArgs,
}

/// Take a block device away that no daemon serves any more
///
/// For devices whose daemon, or pool, will not come back: what waits for them fails then. Needs no daemon; a device that
/// is being served is refused.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  flagstone ublk remove 0")]
pub struct RemoveArgs {
    /// The N of /dev/ublkbN
    #[arg(value_name = "N")]
    number: u32,

    /// Even while it is mounted or claimed
    #[arg(long)]
    force: bool,
}

/// Show what this kernel's ublk can do
#[derive(Debug, clap::Args)]
pub struct FeaturesArgs {}

/// Runs the command.
pub fn run(command: Command, json: bool) -> Result<(), Failure> {
    match command {
        Command::Attach(args) => attach(args, json),
        Command::Detach(args) => detach(args, json),
        Command::List(args) => list(&args, json),
        Command::Remove(args) => remove(&args, json),
        Command::Features(FeaturesArgs {}) => features(json),
    }
}

pub(super) fn parse_either(text: &str) -> Result<String, String> {
    if text.contains('@') {
        parse_snapshot_name(text).map_err(|error| error.to_string())
    } else {
        parse_name(text).map_err(|error| error.to_string())
    }
}

fn attach(args: AttachArgs, json: bool) -> Result<(), Failure> {
    let AttachArgs { volume, number, queue_depth, api } = args;
    let request = AttachVolume { volume, number, queue_depth };
    let (device, new) = api.call(|client| async move { client.attach(&request).await })?;
    if json {
        return Ok(output::json(&device)?);
    }
    let volume = device.volume.as_deref().unwrap_or("?");
    let how = if new { "attached" } else { "was attached already," };
    Ok(output::line(&format!("{how} {volume} as {}", device.device))?)
}

fn detach(args: DetachArgs, json: bool) -> Result<(), Failure> {
    let (name, force) = (args.volume.clone(), args.force);
    args.api.call(|client| async move { client.detach(&name, force).await })?;
    if json {
        return Ok(output::json(&serde_json::json!({ "detached": args.volume }))?);
    }
    Ok(output::line(&format!("detached {}", args.volume))?)
}

fn list(args: &ListArgs, json: bool) -> Result<(), Failure> {
    let devices = match args.api.call(|client| async move { client.attached().await }) {
        Ok(devices) => devices,
        Err(failure) if failure.exit() == Exit::Unreachable => {
            list_devices().map_err(failure_of)?.into_iter().map(attached).collect()
        }
        Err(failure) => return Err(failure),
    };
    if json {
        return Ok(output::json(&AttachedList { devices })?);
    }
    let mut table = Table::new(&["DEVICE", "VOLUME", "SIZE>", "STATE", "PID>", "DEPTH>"]);
    for device in &devices {
        table.row(vec![
            device.device.clone(),
            device.volume.clone().unwrap_or_else(|| "-".to_owned()),
            Human(device.size_bytes).to_string(),
            state_of(device),
            device.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            device.queue_depth.to_string(),
        ]);
    }
    Ok(output::line(&table.render())?)
}

fn state_of(device: &Attached) -> String {
    state(device.state, device.read_only)
}

pub(super) fn state(state: AttachedState, read_only: bool) -> String {
    let state = match state {
        AttachedState::Live => "live",
        AttachedState::Waiting => "waiting",
        AttachedState::Dead => "dead",
        AttachedState::Unknown => "unknown",
    };
    let read_only = if read_only { ", read-only" } else { "" };
    format!("{state}{read_only}")
}

fn remove(args: &RemoveArgs, json: bool) -> Result<(), Failure> {
    let device = attached(remove_device(args.number, args.force).map_err(failure_of)?);
    if json {
        return Ok(output::json(&serde_json::json!({ "removed": device.device }))?);
    }
    Ok(output::line(&format!("removed {}", device.device))?)
}

fn features(json: bool) -> Result<(), Failure> {
    let control = Control::open().map_err(|error| failure_of(error.into()))?;
    let names: Vec<String> = control.features().names().collect();
    if json {
        let mask = control.features().0;
        return Ok(output::json(&serde_json::json!({ "mask": mask, "features": names }))?);
    }
    Ok(output::line(&format!("{}\n{}", control.features(), names.join("\n")))?)
}

fn failure_of(error: UblkError) -> Failure {
    let exit = match &error {
        UblkError::InUse { .. } | UblkError::Served { .. } => Exit::InUse,
        UblkError::NotOurs { .. } | UblkError::Control(ControlError::NoDevice { .. }) => {
            Exit::NotFound
        }
        _ => Exit::Failure,
    };
    Failure::new(exit, error)
}
