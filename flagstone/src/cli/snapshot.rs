//! `flagstone snapshot`: snapshots of a running daemon's volumes, through its control API.

use clap::Subcommand;

use super::Failure;
use super::api_args::ApiArgs;
use super::usage::{WithUsage, list_usage, shared_lines};
use crate::api::client::{Client, ClientError};
use crate::api::snapshots::{
    CreateSnapshots, NewSnapshot, SnapshotInfo, SnapshotList, SnapshotQuery,
};
use crate::api::types::PAGE_VOLUMES;
use crate::exit::Exit;
use crate::name::{parse_name, parse_snapshot_name, split_snapshot_name};
use crate::output::{self, Table};
use crate::size::Human;

/// Take, list, show and delete snapshots of a running daemon's volumes
#[derive(Debug, Subcommand)]
pub enum Command {
    Create(CreateArgs),
    List(ListArgs),
    Show(ShowArgs),
    Delete(DeleteArgs),
}

/// Take snapshots of one or several volumes, all at one instant
///
/// A snapshot is its volume as it is now, for ever: it is read as VOLUME@SNAPSHOT, and never written.
/// Taking one copies nothing and does not hold writes up, however large the volume is. It takes space only
/// as the volume is overwritten, since what it holds can't be given back then.
///
/// Several in one command are one instant: no write to any of the volumes, in whatever order their
/// clients send them, is in one snapshot while an earlier one is missing in another. All of them are taken or none; the
/// volumes must be of one pool, and one command takes what fits one block of the log: 33 snapshots with names of up
/// to 55 bytes, 20 with the longest.
///
/// What was acknowledged to clients before is in the snapshot; what they still hold in caches is not, so
/// that it is what a power cut would leave. Have them flush (fsfreeze, FLUSH TABLES WITH READ LOCK, ...)
/// where more is wanted. The snapshot is durable when the command returns. A name that there is already is refused.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone snapshot create data monday
  flagstone snapshot create database monday journal monday
  nbdcopy \"$(flagstone snapshot create data now --json | jq -r '.snapshots[0].uris[0]')\" data.img")]
pub struct CreateArgs {
    /// The volume, and the name of its snapshot: letters, digits, '.', '_' and '-', starting with a
    /// letter or digit; with the volume's name at most 127 in all
    #[arg(value_names = ["VOLUME", "NAME"], num_args = 2.., required = true, value_parser = parse_name)]
    names: Vec<String>,

    #[command(flatten)]
    api: ApiArgs,
}

/// List the snapshots of a volume, or of all, by name
///
/// All of them, unless --limit says how many; then --after goes on behind the last one that was
/// listed. With --json, `next` is the name to go on behind, as long as there are more.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone snapshot list data
  flagstone snapshot list --json | jq -r '.snapshots[].name'
  flagstone snapshot list data --usage
  flagstone snapshot list --limit 50 --after data@monday")]
pub struct ListArgs {
    /// List those of this volume only
    #[arg(value_name = "VOLUME", value_parser = parse_name)]
    volume: Option<String>,

    /// List so many at most, up to 1000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(PAGE_VOLUMES)))]
    limit: Option<u32>,

    /// List only those whose names come behind this one, which need not be there
    #[arg(long, value_name = "VOLUME@SNAPSHOT", value_parser = parse_snapshot_name)]
    after: Option<String>,

    /// Count what only each of them has, and what deleting it would give back
    ///
    /// Takes the longer the more data there is: seconds per TiB of each.
    #[arg(long)]
    usage: bool,

    #[command(flatten)]
    api: ApiArgs,
}

/// Show a snapshot, what only it has, and where it can be read
///
/// Of what is mapped, `exclusive` is what no other volume or snapshot has, and `shared` what others have
/// too; `frees` is what deleting it would give back. With --json the three are in `usage`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone snapshot show data@monday
  nbdinfo --map \"$(flagstone snapshot show data@monday --json | jq -r '.uris[0]')\"")]
pub struct ShowArgs {
    /// Name of the snapshot, with its volume's
    #[arg(value_name = "VOLUME@SNAPSHOT", value_parser = parse_snapshot_name)]
    name: String,

    #[command(flatten)]
    api: ApiArgs,
}

/// Delete a snapshot
///
/// The volume and its other snapshots stay as they are. The command returns at once, also for large
/// ones; the space of what only this snapshot had comes back in the background. Refused while clients are
/// connected to it, unless --force is given: then they are disconnected. There is no way back.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  flagstone snapshot delete data@monday")]
pub struct DeleteArgs {
    /// Name of the snapshot, with its volume's
    #[arg(value_name = "VOLUME@SNAPSHOT", value_parser = parse_snapshot_name)]
    name: String,

    /// Delete it even while clients are connected
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    api: ApiArgs,
}

/// Runs the command.
pub fn run(command: Command, json: bool) -> Result<(), Failure> {
    match command {
        Command::Create(args) => create(&args, json),
        Command::List(args) => list(&args, json),
        Command::Show(args) => show(args, json),
        Command::Delete(args) => delete(args, json),
    }
}

fn create(args: &CreateArgs, json: bool) -> Result<(), Failure> {
    let (pairs, []) = args.names.as_chunks::<2>() else {
        let text = "give a volume and a name for its snapshot, and again for each further volume";
        return Err(Failure::new(Exit::Usage, text));
    };
    let mut snapshots = Vec::with_capacity(pairs.len());
    for [volume, name] in pairs {
        split_snapshot_name(&format!("{volume}@{name}"))
            .map_err(|error| Failure::new(Exit::Usage, error))?;
        snapshots.push(NewSnapshot::new(volume, name));
    }
    let request = CreateSnapshots { snapshots };
    let taken = args.api.call(|client| async move { client.create_snapshots(&request).await })?;
    if json {
        return Ok(output::json(&taken)?);
    }
    for snapshot in taken.snapshots {
        let size = Human(snapshot.size_bytes);
        let uris = uris(&snapshot);
        output::line(&format!("created snapshot {}, {size}\n{uris}", snapshot.name))?;
    }
    Ok(())
}

fn list(args: &ListArgs, json: bool) -> Result<(), Failure> {
    let query =
        SnapshotQuery { volume: args.volume.clone(), limit: args.limit, after: args.after.clone() };
    let list = args.api.call(|client| list_all(client, query))?;
    if args.usage {
        return list_usage(&args.api, list, json);
    }
    if json {
        return Ok(output::json(&list)?);
    }
    let mut table = Table::new(&["NAME", "SIZE>", "MAPPED>", "CLIENTS>", "URI"]);
    for snapshot in list.snapshots {
        // As volumes are listed.
        let mut cells = vec![
            snapshot.name,
            Human(snapshot.size_bytes).to_string(),
            Human(snapshot.mapped_bytes).to_string(),
            snapshot.connections.to_string(),
        ];
        for uri in snapshot.uris {
            cells.push(uri);
            table.row(std::mem::replace(&mut cells, vec![String::new(); 4]));
        }
    }
    output::line(&table.render())?;
    if let Some(next) = list.next {
        output::line(&format!("there are more: --after {next}"))?;
    }
    Ok(())
}

/// One page, or all that there are.
async fn list_all(client: Client, mut query: SnapshotQuery) -> Result<SnapshotList, ClientError> {
    let mut list = client.snapshot_page(&query).await?;
    while query.limit.is_none()
        && let Some(next) = list.next.take()
    {
        query.after = Some(next);
        let page = client.snapshot_page(&query).await?;
        list.snapshots.extend(page.snapshots);
        list.next = page.next;
    }
    Ok(list)
}

fn show(args: ShowArgs, json: bool) -> Result<(), Failure> {
    let (snapshot, usage) = args.api.call(|client| async move {
        Ok((client.snapshot(&args.name).await?, client.usage(&args.name).await?))
    })?;
    if json {
        return Ok(output::json(&WithUsage { of: &snapshot, usage })?);
    }
    let text = format!(
        "name         {}\n\
         size         {} ({} bytes)\n\
         mapped       {}\n\
         exclusive    {}\n\
         {}\
         clients      {}\n\
         pool         {}\n\
         uuid         {}\n\
         {}",
        snapshot.name,
        Human(snapshot.size_bytes),
        snapshot.size_bytes,
        Human(snapshot.mapped_bytes),
        Human(usage.exclusive_bytes),
        shared_lines(&usage),
        snapshot.connections,
        snapshot.pool,
        snapshot.uuid,
        uris(&snapshot),
    );
    Ok(output::line(&text)?)
}

fn delete(args: DeleteArgs, json: bool) -> Result<(), Failure> {
    let name = args.name.clone();
    args.api.call(|client| async move { client.delete_snapshot(&name, args.force).await })?;
    if json {
        output::json(&serde_json::json!({ "deleted": args.name }))?;
    } else {
        output::line(&format!("deleted snapshot {}", args.name))?;
    }
    Ok(())
}

fn uris(snapshot: &SnapshotInfo) -> String {
    let lines = snapshot.uris.iter().map(|uri| format!("uri          {uri}"));
    lines.collect::<Vec<_>>().join("\n")
}
