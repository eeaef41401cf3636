//! `flagstone nbd`: volumes as devices of the kernel's NBD client.

use clap::Subcommand;

use super::Failure;
use super::api_args::ApiArgs;
use super::ublk::{parse_either, state};
use crate::api::kernel_nbd::{AttachNbd, NbdAttachedList};
use crate::daemon::backend::nbd_attached;
use crate::exit::Exit;
use crate::kernel_nbd::{KernelNbdError, NUMBER_MAX, list_devices, remove_device};
use crate::output::{self, Table};
use crate::size::Human;

/// Attach volumes by the kernel's NBD client (/dev/nbdN)
///
/// For kernels without ublk (see `flagstone ublk`), which is faster and goes on sooner. The client must be loaded: `modprobe nbd`.
/// When the daemon stops, is replaced or dies, requests wait, for a day at most; when `flagstone serve` is
/// back they go on, those that were under way within some seconds, and nobody has got an error.
#[derive(Debug, Subcommand)]
pub enum Command {
    Attach(AttachArgs),
    Detach(DetachArgs),
    List(ListArgs),
    Remove(RemoveArgs),
}

/// Attach a volume or a snapshot as /dev/nbdN
///
/// Prints where it is. A volume that is attached already stays so, which is a success. A snapshot can only be read. The
/// device goes with `flagstone nbd detach`, not with the daemon.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  modprobe nbd
  mkfs.ext4 \"$(flagstone nbd attach data --json | jq -r .device)\"
  flagstone nbd attach data --number 7           # as /dev/nbd7")]
pub struct AttachArgs {
    /// Name of the volume, or VOLUME@SNAPSHOT
    #[arg(value_name = "VOLUME[@SNAPSHOT]", value_parser = parse_either)]
    volume: String,

    /// Have it as /dev/nbdN [default: the next that is free]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=i64::from(NUMBER_MAX)))]
    number: Option<u32>,

    #[command(flatten)]
    api: ApiArgs,
}

/// Take the /dev/nbdN of a volume or snapshot away
///
/// Refused while it is mounted, swapped to or claimed by another driver, unless --force is given: whoever uses it then gets I/O errors.
/// What was written stays in the volume.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  umount /mnt && flagstone nbd detach data")]
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

/// List the /dev/nbdN that Flagstone has made on this machine
///
/// Without a daemon too: then whose volumes they are is not known.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  flagstone nbd list --json | jq -r '.devices[] | \"\\(.device) \\(.volume)\"'")]
pub struct ListArgs {
    #[command(flatten)]
    api: ApiArgs,
}

/// Take a /dev/nbdN away without the daemon
///
/// For devices whose daemon, or pool, will not come back: what waits for them fails then.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  flagstone nbd remove 0")]
pub struct RemoveArgs {
    /// The N of /dev/nbdN
    #[arg(value_name = "N")]
    number: u32,

    /// Even while it is in use
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub fn run(command: Command, json: bool) -> Result<(), Failure> {
    match command {
        Command::Attach(args) => attach(args, json),
        Command::Detach(args) => detach(args, json),
        Command::List(args) => list(&args, json),
        Command::Remove(args) => remove(&args, json),
    }
}

fn attach(args: AttachArgs, json: bool) -> Result<(), Failure> {
    let AttachArgs { volume, number, api } = args;
    let request = AttachNbd { volume, number };
    let (device, new) = api.call(|client| async move { client.attach_nbd(&request).await })?;
    if json {
        return Ok(output::json(&device)?);
    }
    let volume = device.volume.as_deref().unwrap_or("?");
    let how = if new { "attached" } else { "was attached already," };
    Ok(output::line(&format!("{how} {volume} as {}", device.device))?)
}

fn detach(args: DetachArgs, json: bool) -> Result<(), Failure> {
    let (name, force) = (args.volume.clone(), args.force);
    args.api.call(|client| async move { client.detach_nbd(&name, force).await })?;
    if json {
        return Ok(output::json(&serde_json::json!({ "detached": args.volume }))?);
    }
    Ok(output::line(&format!("detached {}", args.volume))?)
}

fn list(args: &ListArgs, json: bool) -> Result<(), Failure> {
    let devices = match args.api.call(|client| async move { client.attached_nbd().await }) {
        Ok(devices) => devices,
        Err(failure) if failure.exit() == Exit::Unreachable => {
            list_devices().map_err(failure_of)?.into_iter().map(nbd_attached).collect()
        }
        Err(failure) => return Err(failure),
    };
    if json {
        return Ok(output::json(&NbdAttachedList { devices })?);
    }
    let mut table = Table::new(&["DEVICE", "VOLUME", "SIZE>", "STATE"]);
    for device in &devices {
        table.row(vec![
            device.device.clone(),
            device.volume.clone().unwrap_or_else(|| "-".to_owned()),
            Human(device.size_bytes).to_string(),
            state(device.state, device.read_only),
        ]);
    }
    Ok(output::line(&table.render())?)
}

fn remove(args: &RemoveArgs, json: bool) -> Result<(), Failure> {
    let device = nbd_attached(remove_device(args.number, args.force).map_err(failure_of)?);
    if json {
        return Ok(output::json(&serde_json::json!({ "removed": device.device }))?);
    }
    Ok(output::line(&format!("removed {}", device.device))?)
}

fn failure_of(error: KernelNbdError) -> Failure {
    let exit = match &error {
        KernelNbdError::InUse { .. } => Exit::InUse,
        KernelNbdError::NotOurs { .. } => Exit::NotFound,
        _ => Exit::Failure,
    };
    Failure::new(exit, error)
}
