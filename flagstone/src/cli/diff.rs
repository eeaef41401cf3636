//! `flagstone diff`: what differs between two volumes or snapshots, through a running daemon's control API.

use super::Failure;
use super::api_args::ApiArgs;
use crate::api::client::{Client, ClientError};
use crate::api::diff::{DiffExtent, DiffKind, DiffPage, DiffQuery, DiffSide};
use crate::api::errors::{ApiError, ErrorCode};
use crate::name::{parse_name, parse_snapshot_name};
use crate::node::limits::DIFF_EXTENTS;
use crate::output::{self, Table};
use crate::size::Human;

/// Tell what differs between two snapshots, or a snapshot and its volume
///
/// In blocks of 4096 bytes, exactly, from what says where the blocks lie: no data is read, and it takes the
/// longer the more differs, however large they are. Extents tell whether there is data now, or zeroes where
/// there was data. A block that was overwritten with the same bytes differs; what reads as zeroes in both does
/// not. What lies behind the end of the smaller one is zeroes there.
///
/// The two may be of any kin, but of one pool: snapshots of one volume in either order, a clone and what it
/// was cloned from, or strangers, of which everything differs.
///
/// A volume that is written meanwhile is compared, part by part, as it is at that moment: what was
/// acknowledged before the command began is told, what is written later may be. Take a snapshot first, and
/// compare that, where it is to be one moment.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone diff data@monday data@tuesday
  flagstone diff data@monday data
  flagstone diff --from-nothing data@monday
  flagstone diff data@monday data --json | jq '[.extents[].length_bytes] | add'")]
pub struct Args {
    /// The older of the two: VOLUME@SNAPSHOT or VOLUME; left out with --from-nothing
    #[arg(value_name = "OLDER", value_parser = parse_target)]
    first: String,

    /// The newer: VOLUME@SNAPSHOT, or VOLUME as it is now
    #[arg(value_name = "NEWER", value_parser = parse_target, required_unless_present = "from_nothing")]
    second: Option<String>,

    /// Tell everything that is mapped, as against a volume that was never written
    #[arg(long, conflicts_with = "second")]
    from_nothing: bool,

    /// Begin there, in bytes; with --json, `next` says where to go on
    #[arg(long, value_name = "OFFSET")]
    from: Option<u64>,

    /// Tell so many extents at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,

    #[command(flatten)]
    api: ApiArgs,
}

fn parse_target(text: &str) -> Result<String, String> {
    match text.contains('@') {
        true => parse_snapshot_name(text).map_err(|error| error.to_string()),
        false => parse_name(text).map_err(|error| error.to_string()),
    }
}

/// Runs the command.
pub fn run(args: Args, json: bool) -> Result<(), Failure> {
    let (older, newer) = match args.second {
        Some(second) => (Some(args.first), second),
        None => (None, args.first),
    };
    let query = DiffQuery { older, newer, from: args.from, limit: None };
    let limit = args.limit.map_or(usize::MAX, |limit| limit as usize);
    let page = args.api.call(|client| async move { whole(&client, query, limit).await })?;
    if json {
        return Ok(output::json(&page)?);
    }
    let mut table = Table::new(&["OFFSET>", "LENGTH>", "NOW"]);
    for extent in &page.extents {
        let kind = match extent.kind {
            DiffKind::Data => "data",
            DiffKind::Zero => "zero",
        };
        let (offset, length) = (extent.offset_bytes.to_string(), extent.length_bytes.to_string());
        table.row(vec![offset, length, kind.to_owned()]);
    }
    if !page.extents.is_empty() {
        output::line(&table.render())?;
    }
    output::line(&summary(&page))?;
    if let Some(next) = page.next {
        output::line(&format!("there may be more: --from {next}"))?;
    }
    Ok(())
}

fn summary(page: &DiffPage) -> String {
    let bytes = |kind| {
        let of_kind = page.extents.iter().filter(|extent: &&DiffExtent| extent.kind == kind);
        Human(of_kind.map(|extent| extent.length_bytes).sum())
    };
    let (data, zeroes) = (bytes(DiffKind::Data), bytes(DiffKind::Zero));
    let size = |side: &DiffSide| format!("{} ({})", side.name, Human(side.size_bytes));
    let newer = size(&page.newer);
    match &page.older {
        Some(older) => format!("{} to {newer}: {data} of data, {zeroes} of zeroes", size(older)),
        None => format!("{newer}: {data} of data"),
    }
}

/// One page after the other, up to `limit` extents.
async fn whole(
    client: &Client,
    mut query: DiffQuery,
    limit: usize,
) -> Result<DiffPage, ClientError> {
    let uuids = |page: &DiffPage| {
        (page.older.as_ref().map(|older| older.uuid.clone()), page.newer.uuid.clone())
    };
    query.limit = Some(limit.min(DIFF_EXTENTS) as u32);
    let mut all = client.diff(&query).await?;
    while let Some(next) = all.next
        && all.extents.len() < limit
    {
        query.from = Some(next);
        query.limit = Some((limit - all.extents.len()).min(DIFF_EXTENTS) as u32);
        let page = client.diff(&query).await?;
        if uuids(&all) != uuids(&page) {
            let text = "one of the two was deleted meanwhile, and another made of the same name";
            return Err(ApiError::new(ErrorCode::SnapshotNotFound, text).into());
        }
        all.extents.extend(page.extents);
        all.next = page.next;
    }
    Ok(all)
}
