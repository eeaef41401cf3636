//! `flagstone volume`: volumes of a running daemon, through its control API.

use clap::Subcommand;

use super::Failure;
use super::api_args::{ApiArgs, pool_name};
use super::usage::{WithUsage, shared_lines};
use crate::api::client::{Client, ClientError};
use crate::api::clones::Rollback;
use crate::api::types::{
    CreateVolume, ListQuery, OnFull, PAGE_VOLUMES, Shrink, UpdateVolume, Volume, VolumeList,
};
use crate::api::usage::Usage;
use crate::exit::Exit;
use crate::name::{parse_name, parse_snapshot_name};
use crate::output::{self, Table};
use crate::size::{Human, parse_block_size};

/// Create, list, show, resize, roll back and delete volumes of a running daemon
#[derive(Debug, Subcommand)]
pub enum Command {
    Create(CreateArgs),
    List(ListArgs),
    Show(ShowArgs),
    Resize(ResizeArgs),
    Set(SetArgs),
    Rollback(RollbackArgs),
    Delete(DeleteArgs),
}

/// Create a thin volume and print where it is served
///
/// The volume takes space as it is written, not now; the sum of the volumes' sizes may exceed the
/// pool. It is served at once, and durable when the command returns. Creating it again with the
/// same size is a success that changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone volume create data --size 100G
  qemu-img convert -n -O raw disk.qcow2 \"$(flagstone volume create vm1 --size 40G --json | jq -r '.uris[0]')\"")]
pub struct CreateArgs {
    /// Name: 1 to 128 letters, digits, '.', '_' and '-', starting with a letter or digit
    #[arg(value_name = "NAME", value_parser = parse_name)]
    name: String,

    /// Size that clients see, a multiple of 4096 bytes: 10G, 512MiB, ...
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE", value_parser = parse_block_size)]
    size: u64,

    /// Path or UUID of the pool [default: the one with the most free space]
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,

    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    api: ApiArgs,
}

/// What the owner of a volume may choose, and change.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct SettingsArgs {
    /// What becomes of writes that need space when the pool is full [default: as the daemon is
    /// set, which is wait]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(super) on_full: Option<OnFull>,

    /// Space that no other volume may take, at most the volume's size; 0 for none
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE", value_parser = parse_reservation)]
    pub(super) reserve: Option<u64>,
}

fn parse_reservation(text: &str) -> Result<u64, String> {
    if text.trim() == "0" {
        return Ok(0);
    }
    parse_block_size(text).map_err(|error| error.to_string())
}

/// Change what a volume does when its pool is full, and what is reserved for it
///
/// A reservation is refused if the pool can't back it. It is held back from all other volumes from
/// then on, used or not; the volume's own writes take from it first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone volume set database --on-full wait --reserve 200G
  flagstone volume set scratch --on-full error --reserve 0")]
pub struct SetArgs {
    /// Name of the volume
    #[arg(value_name = "NAME", value_parser = parse_name)]
    name: String,

    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    api: ApiArgs,
}

/// List the volumes, by name
///
/// All of them, unless --limit says how many; then --after goes on behind the last one that was
/// listed. With --json, `next` is the name to go on behind, as long as there are more.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone volume list --json | jq -r '.volumes[].name'
  flagstone volume list --limit 50 --after data")]
pub struct ListArgs {
    /// List so many at most, up to 1000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(PAGE_VOLUMES)))]
    limit: Option<u32>,

    /// List only those whose names come behind this one, which need not be there
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    after: Option<String>,

    #[command(flatten)]
    api: ApiArgs,
}

/// Show a volume, what it shares, and where it is served
///
/// Of what is mapped, `exclusive` is what no other volume or snapshot has, and `shared` what others have
/// too; `frees` is what deleting it would give back: of a volume with snapshots, which can be deleted only
/// with these, its own part of that, beside theirs in `snapshot show`. With --json the three are in `usage`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  nbdinfo \"$(flagstone volume show data --json | jq -r '.uris[0]')\"")]
pub struct ShowArgs {
    /// Name of the volume
    #[arg(value_name = "NAME", value_parser = parse_name)]
    name: String,

    #[command(flatten)]
    api: ApiArgs,
}

/// Change a volume's size
///
/// A client sees the new size when it connects again. A volume shrinks only with --force: clients that
/// have it open get errors beyond the new end from then on, so shrink what is in it (the file system)
/// first. What lies beyond must be unused, or be given up with --discard, for which there is no way
/// back. A shrink that is interrupted leaves the old size; some of what lies beyond may be discarded.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone volume resize data --size 200G
  flagstone volume resize data --size 50G --force --discard")]
pub struct ResizeArgs {
    /// Name of the volume
    #[arg(value_name = "NAME", value_parser = parse_name)]
    name: String,

    /// New size, a multiple of 4096 bytes
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE", value_parser = parse_block_size)]
    size: u64,

    /// Allow the volume to become smaller
    #[arg(long)]
    force: bool,

    /// Discard what lies beyond the new end
    #[arg(long, requires = "force")]
    discard: bool,

    #[command(flatten)]
    api: ApiArgs,
}

/// Delete a volume and its data
///
/// Refused while clients are connected, unless --force is given: then they are disconnected. Refused
/// as well while it has snapshots, unless --snapshots is given: then they are deleted too. Clones of them
/// stay. There is no way back.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone volume delete scratch
  flagstone volume delete golden --snapshots")]
pub struct DeleteArgs {
    /// Name of the volume
    #[arg(value_name = "NAME", value_parser = parse_name)]
    name: String,

    /// Delete it even while clients are connected
    #[arg(long)]
    force: bool,

    /// Delete its snapshots as well
    #[arg(long)]
    snapshots: bool,

    #[command(flatten)]
    api: ApiArgs,
}

/// Give a volume back the content and size that it had when a snapshot was taken
///
/// It takes no longer for a large volume, and copies nothing. What the volume has now is kept as another
/// snapshot, unless --discard is given: the way back is to roll back to that one. All snapshots stay.
///
/// Clients have parts of the volume in caches, which would be wrong: unmount it and disconnect them first, or
/// they are disconnected with --force. They see the old content when they connect again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone volume rollback data@monday
  flagstone volume rollback data@monday --keep before-repair
  flagstone volume rollback ci@clean --discard --force")]
pub struct RollbackArgs {
    /// The snapshot, with its volume's name
    #[arg(value_name = "VOLUME@SNAPSHOT", value_parser = parse_snapshot_name)]
    snapshot: String,

    /// Name of the snapshot that keeps what the volume has now [default: rollback- and date and time, UTC]
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    keep: Option<String>,

    /// Give up what the volume has now
    #[arg(long, conflicts_with = "keep")]
    discard: bool,

    /// Roll back even while clients are connected
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    api: ApiArgs,
}

/// Runs the command.
pub fn run(command: Command, json: bool) -> Result<(), Failure> {
    match command {
        Command::Create(args) => create(args, json),
        Command::List(args) => list(&args, json),
        Command::Show(args) => show(args, json),
        Command::Resize(args) => resize(args, json),
        Command::Set(args) => set(args, json),
        Command::Rollback(args) => roll_back(args, json),
        Command::Delete(args) => delete(args, json),
    }
}

fn create(args: CreateArgs, json: bool) -> Result<(), Failure> {
    let request = CreateVolume {
        name: args.name,
        size_bytes: args.size,
        pool: args.pool.as_deref().map(pool_name),
        on_full: args.settings.on_full,
        reserved_bytes: args.settings.reserve,
    };
    let (volume, new) =
        args.api.call(|client| async move { client.create_volume(&request).await })?;
    if json {
        return Ok(output::json(&volume)?);
    }
    let did = if new { "created" } else { "exists already:" };
    let size = Human(volume.size_bytes);
    output::line(&format!("{did} volume {}, {size}\n{}", volume.name, uris(&volume)))?;
    Ok(())
}

fn list(args: &ListArgs, json: bool) -> Result<(), Failure> {
    let list = args.api.call(|client| list_all(client, args.limit, args.after.clone()))?;
    if json {
        return Ok(output::json(&list)?);
    }
    let VolumeList { volumes, next } = list;
    let mut table =
        Table::new(&["NAME", "SIZE>", "MAPPED>", "RESERVED>", "SNAPSHOTS>", "CLIENTS>", "URI"]);
    for volume in volumes {
        // One row per URI, so that each can be pasted; the figures stand in the first.
        let mut cells = vec![
            volume.name,
            Human(volume.size_bytes).to_string(),
            Human(volume.mapped_bytes).to_string(),
            Human(volume.reserved_bytes).to_string(),
            volume.snapshots.to_string(),
            volume.connections.to_string(),
        ];
        for uri in volume.uris {
            cells.push(uri);
            table.row(std::mem::replace(&mut cells, vec![String::new(); 6]));
        }
    }
    output::line(&table.render())?;
    if let Some(next) = next {
        output::line(&format!("there are more: --after {next}"))?;
    }
    Ok(())
}

/// One page, or all that there are.
async fn list_all(
    client: Client,
    limit: Option<u32>,
    after: Option<String>,
) -> Result<VolumeList, ClientError> {
    let mut query = ListQuery { limit, after };
    let mut list = client.volume_page(&query).await?;
    while limit.is_none()
        && let Some(next) = list.next.take()
    {
        query.after = Some(next);
        let page = client.volume_page(&query).await?;
        list.volumes.extend(page.volumes);
        list.next = page.next;
    }
    Ok(list)
}

fn show(args: ShowArgs, json: bool) -> Result<(), Failure> {
    let (volume, usage) = args.api.call(|client| async move {
        Ok((client.volume(&args.name).await?, client.usage(&args.name).await?))
    })?;
    // What others have given up since they shared it is known only now.
    let volume = Volume { exclusive_bytes: usage.exclusive_bytes, ..volume };
    if json {
        return Ok(output::json(&WithUsage { of: &volume, usage })?);
    }
    Ok(output::line(&describe(&volume, Some(&usage)))?)
}

fn resize(args: ResizeArgs, json: bool) -> Result<(), Failure> {
    let shrink = match (args.force, args.discard) {
        (false, _) => None,
        (true, false) => Some(Shrink::Unused),
        (true, true) => Some(Shrink::Discard),
    };
    let volume = args
        .api
        .call(|client| async move { client.resize_volume(&args.name, args.size, shrink).await })?;
    print_volume(&volume, json)
}

fn set(args: SetArgs, json: bool) -> Result<(), Failure> {
    let SettingsArgs { on_full, reserve } = args.settings;
    if on_full.is_none() && reserve.is_none() {
        return Err(Failure::new(Exit::Usage, "give --on-full, --reserve, or both"));
    }
    let change = UpdateVolume { on_full, reserved_bytes: reserve, ..UpdateVolume::default() };
    let volume =
        args.api.call(|client| async move { client.set_volume(&args.name, &change).await })?;
    print_volume(&volume, json)
}

fn delete(args: DeleteArgs, json: bool) -> Result<(), Failure> {
    let name = args.name.clone();
    args.api.call(|client| async move {
        client.delete_volume(&name, args.force, args.snapshots).await
    })?;
    if json {
        output::json(&serde_json::json!({ "deleted": args.name }))?;
    } else {
        output::line(&format!("deleted volume {}", args.name))?;
    }
    Ok(())
}

fn roll_back(args: RollbackArgs, json: bool) -> Result<(), Failure> {
    let RollbackArgs { snapshot, keep, discard, force, api } = args;
    let (name, how) = (snapshot.clone(), Rollback { keep, discard, force });
    let done = api.call(|client| async move { client.rollback(&name, &how).await })?;
    if json {
        return Ok(output::json(&done)?);
    }
    let size = Human(done.volume.size_bytes);
    output::line(&format!("rolled {} back to {snapshot}, {size}", done.volume.name))?;
    if let Some(kept) = done.kept {
        output::line(&format!("what it had is kept as {}", kept.name))?;
    }
    Ok(())
}

pub(super) fn print_volume(volume: &Volume, json: bool) -> Result<(), Failure> {
    if json {
        return Ok(output::json(volume)?);
    }
    Ok(output::line(&describe(volume, None))?)
}

fn describe(volume: &Volume, usage: Option<&Usage>) -> String {
    format!(
        "name         {}\n\
         size         {} ({} bytes)\n\
         mapped       {}\n\
         exclusive    {}\n\
         {}\
         kept zeroes  {}\n\
         reserved     {}\n\
         when full    {}\n\
         snapshots    {}\n\
         cloned from  {}\n\
         clients      {}\n\
         pool         {}\n\
         uuid         {}\n\
         {}",
        volume.name,
        Human(volume.size_bytes),
        volume.size_bytes,
        Human(volume.mapped_bytes),
        Human(volume.exclusive_bytes),
        usage.map_or(String::new(), shared_lines),
        Human(volume.kept_bytes),
        Human(volume.reserved_bytes),
        volume.on_full.as_str(),
        volume.snapshots,
        volume.cloned_from.as_deref().unwrap_or("-"),
        volume.connections,
        volume.pool,
        volume.uuid,
        uris(volume),
    )
}

fn uris(volume: &Volume) -> String {
    let lines = volume.uris.iter().map(|uri| format!("uri          {uri}"));
    lines.collect::<Vec<_>>().join("\n")
}
