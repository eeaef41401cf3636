//! `flagstone pool scrub`: verifies a pool while it is served.

use std::path::Path;
use std::time::Duration;

use crate::api::client::ClientError;
use crate::api::errors::ErrorCode;
use crate::api::scrub::{Damaged, Finding, RATE_DEFAULT, Scrub, ScrubState, StartScrub};
use crate::api::types::Pool;
use crate::cli::Failure;
use crate::cli::api_args::ApiArgs;
use crate::cli::pool::lies_on;
use crate::exit::Exit;
use crate::output::{self, Table};
use crate::progress::Progress;
use crate::size::{Human, parse_size};

/// How often the daemon is asked how far it is.
const POLL: Duration = Duration::from_millis(200);

/// Verify a pool while it is served: all data and metadata that counts
///
/// The daemon reads every live block and all metadata, at the given rate and behind its clients'
/// requests, and compares all checksums. Damaged metadata is written anew if it is kept twice or lies
/// in memory; damaged summaries of segments are only listed. Damaged data is listed, with its place
/// in the volume and on the device; it reads again once it is overwritten. Ending this command does
/// not end the scrub: the same command again shows it, --cancel ends it.
///
/// Exit status 0 means that nothing is wrong, or not any more, 4 that something is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone pool scrub
  flagstone pool scrub /dev/sdb
  flagstone pool scrub pool.flagstone --rate 0
  flagstone pool scrub pool.flagstone --json | jq '.findings[] | select(.what == \"data\")'")]
pub struct Args {
    /// The pool's file or block device, or its UUID; needed if the daemon serves several
    #[arg(value_name = "POOL")]
    pool: Option<String>,

    /// Bytes per second to read at most; 0 for no bound
    #[arg(long, value_name = "SIZE", value_parser = parse_rate, default_value_t = RATE_DEFAULT,
        hide_default_value = true)]
    rate: u64,

    /// Begin it, and don't wait for its end
    #[arg(long)]
    no_wait: bool,

    /// Only show the scrub under way, or what the last one found
    #[arg(long, conflicts_with_all = ["no_wait", "rate"])]
    status: bool,

    /// End the scrub under way
    #[arg(long, conflicts_with_all = ["no_wait", "rate", "status"])]
    cancel: bool,

    #[command(flatten)]
    api: ApiArgs,
}

fn parse_rate(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { parse_size(text).map_err(|error| error.to_string()) }
}

/// Runs the command.
pub fn run(args: &Args, json: bool) -> Result<Exit, Failure> {
    let pool = find(args)?;
    let uuid = pool.uuid.as_str();
    let show = || args.api.call(|client| async move { client.scrub(uuid).await });
    let scrub = if args.status {
        show()?
    } else if args.cancel {
        args.api.call(|client| async move { client.cancel_scrub(uuid).await })?
    } else {
        let begun = begin(args, uuid)?;
        if args.no_wait { begun } else { wait(begun, json, show)? }
    };
    if json {
        output::json(&scrub)?;
    } else {
        output::line(&text(&pool, &scrub))?;
    }
    match scrub.state {
        ScrubState::Failed => {
            Err(Failure::new(Exit::Failure, "the pool's device failed during the scrub"))
        }
        _ if scrub.sound || scrub.state == ScrubState::Never => Ok(Exit::Success),
        _ => Ok(Exit::Damaged),
    }
}

/// The pool that is meant, as its daemon shows it.
fn find(args: &Args) -> Result<Pool, Failure> {
    let mut pools = args.api.call(|client| async move { client.pools().await })?;
    let Some(wanted) = &args.pool else {
        return match pools.len() {
            1 => Ok(pools.remove(0)),
            _ => Err(Failure::new(
                Exit::Usage,
                "the daemon serves several pools; name one, as `flagstone pool status` lists them",
            )),
        };
    };
    let is_meant = |pool: &Pool| {
        pool.uuid == *wanted || pool.path == *wanted || lies_on(pool, Path::new(wanted))
    };
    pools.into_iter().find(is_meant).ok_or_else(|| {
        let what = format!(
            "the daemon does not serve {wanted}; `flagstone pool status` lists its pools, and \
             `flagstone pool check` verifies one that is not served"
        );
        Failure::new(Exit::NotFound, what)
    })
}

/// Begins a scrub; one that is under way already will do.
fn begin(args: &Args, uuid: &str) -> Result<Scrub, Failure> {
    let request = StartScrub { rate_bytes_per_second: Some(args.rate) };
    args.api.call(|client| async move {
        match client.start_scrub(uuid, &request).await {
            Err(ClientError::Refused(error)) if error.code == ErrorCode::ScrubRunning => {
                client.scrub(uuid).await
            }
            begun => begun,
        }
    })
}

fn wait(
    mut scrub: Scrub,
    quiet: bool,
    show: impl Fn() -> Result<Scrub, Failure>,
) -> Result<Scrub, Failure> {
    let progress = Progress::bytes("scrubbing", scrub.total_bytes, quiet);
    while matches!(scrub.state, ScrubState::Running | ScrubState::Repairing) {
        std::thread::sleep(POLL);
        scrub = show()?;
        progress.set_total(scrub.total_bytes);
        progress.set(scrub.done_bytes);
    }
    Ok(scrub)
}

fn text(pool: &Pool, scrub: &Scrub) -> String {
    let path = &pool.path;
    let verdict = if scrub.sound { "sound" } else { "DAMAGED" };
    let far = format!("{} of {}", Human(scrub.done_bytes), Human(scrub.total_bytes));
    let state = match scrub.state {
        ScrubState::Never => {
            return format!("pool {path}: no scrub since the daemon started");
        }
        ScrubState::Running => format!("scrub under way, {far}"),
        ScrubState::Repairing => "damaged metadata is being written anew".to_owned(),
        ScrubState::Finished => verdict.to_owned(),
        ScrubState::Cancelled => format!("scrub cancelled at {far}"),
        ScrubState::Failed => format!("device failed at {far}"),
    };
    let mut text = format!(
        "pool {path}: {state}\nverified {} blocks of data, {} bad; damaged metadata: {}, repaired: {}",
        scrub.verified_blocks, scrub.bad_blocks, scrub.bad_metadata, scrub.repaired,
    );
    if !scrub.findings.is_empty() {
        let mut table = Table::new(&[
            "DAMAGED",
            "VOLUME",
            "VOLUME OFFSET>",
            "BYTES>",
            "DEVICE",
            "DEVICE OFFSET>",
            "SEGMENT>",
            "REASON",
            "",
        ]);
        scrub.findings.iter().for_each(|finding| table.row(row(pool, finding)));
        text.push('\n');
        text.push_str(&table.render());
    }
    if scrub.unlisted > 0 {
        text.push_str(&format!("\nand {} more", scrub.unlisted));
    }
    text
}

fn row(pool: &Pool, finding: &Finding) -> [String; 9] {
    let device = pool.devices.iter().find(|device| device.number == finding.device);
    let what = match finding.what {
        Damaged::Superblock => "superblock copy",
        Damaged::Journal => "journal block",
        Damaged::MetadataPage => "metadata page copy",
        Damaged::LeafPage => "map page",
        Damaged::SummaryCopy => "copy of a segment summary",
        Damaged::Summary => "segment summary",
        Damaged::Data => "data",
        Damaged::Other => "?",
    };
    let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    [
        what.to_owned(),
        finding.volume.clone().unwrap_or_else(|| "-".to_owned()),
        number(finding.volume_offset_bytes),
        finding.bytes.to_string(),
        device.map_or_else(|| finding.device.to_string(), |device| device.path.clone()),
        finding.device_offset_bytes.to_string(),
        number(finding.segment.map(u64::from)),
        finding.reason.clone(),
        if finding.repaired { "repaired".to_owned() } else { String::new() },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::PoolDevice;

    #[test]
    fn rates() {
        assert_eq!(parse_rate("0"), Ok(0));
        assert_eq!(parse_rate("64M"), Ok(RATE_DEFAULT));
        parse_rate("fast").unwrap_err();
    }

    #[test]
    fn findings_are_told_with_their_place() {
        let finding = Finding {
            what: Damaged::Data,
            volume: Some("vm1".to_owned()),
            volume_offset_bytes: Some(8192),
            bytes: 4096,
            device: 2,
            device_offset_bytes: 77_824,
            segment: Some(3),
            reason: "checksum mismatch".to_owned(),
            repaired: false,
        };
        let scrub = Scrub {
            state: ScrubState::Finished,
            verified_blocks: 10,
            bad_blocks: 1,
            findings: vec![finding],
            ..Scrub::default()
        };
        let disk =
            |number, path: &str| PoolDevice { number, path: path.into(), ..PoolDevice::default() };
        let devices = vec![disk(0, "/p"), disk(2, "/third")];
        let pool = Pool { path: "/p".to_owned(), devices, ..Pool::default() };
        let text = text(&pool, &scrub);
        assert!(text.starts_with("pool /p: DAMAGED\nverified 10 blocks of data, 1 bad"), "{text}");
        let line = text.lines().last().unwrap();
        for part in ["vm1", "8192", "/third", "77824", "checksum mismatch"] {
            assert!(line.contains(part), "{line}");
        }
    }
}
