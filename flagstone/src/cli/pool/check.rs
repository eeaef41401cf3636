//! `flagstone pool check`: verifies a stopped pool.

use std::path::{Path, PathBuf};

use flagstone_block::{BLOCK_SIZE, split_offset};
use flagstone_engine::{BadBlock, CheckReport};
use serde::Serialize;

use super::inspect::Recovery;
use crate::cli::Failure;
use crate::exit::Exit;
use crate::output;
use crate::pool::{offline, rebuild};
use crate::progress::Progress;
use crate::size::Human;

/// Verify a stopped pool: every structure and every block of data
///
/// Reads the superblock copies, the journal, the segments' summaries and the metadata as a start
/// would, then every block of every volume, and compares all checksums. What is
/// wrong is named: the volume and block, and where on the device. A running daemon has to be
/// stopped first.
///
/// With --rebuild the pool's map is first made anew from the summaries of all segments, without the
/// leaf pages of the last checkpoint, and written: for when the two are said to disagree. It needs
/// the metadata, which is kept twice, and every summary. This is the only thing that this command
/// ever writes.
///
/// Exit status 0 means that nothing is wrong, 4 that something is. A structure that has lost one of
/// its copies is told in the report, and does not count as wrong: no data is affected.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone pool check /dev/sdb
  flagstone pool check pool.flagstone --json | jq .bad_blocks
  flagstone pool check /dev/sdb --rebuild")]
pub struct Args {
    /// The pool's file or block device
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// Make the map anew from the segments' summaries before verifying
    #[arg(long)]
    rebuild: bool,
}

#[derive(Serialize)]
struct Document<'a> {
    path: &'a Path,
    sound: bool,
    /// The map was made anew before, from this many summaries.
    rebuilt_from_summaries: Option<u32>,
    /// Where the checkpoint and the summaries don't say the same.
    disagreement: Option<Disagrees<'a>>,
    recovery: Recovery,
    verified_blocks: u64,
    verified_bytes: u64,
    /// Segments whose summary is damaged.
    bad_summaries: &'a [u32],
    /// Summaries of which one of two copies is damaged.
    summary_copies_damaged: u32,
    bad_blocks: u64,
    /// The first of them; the engine lists a bounded number.
    listed: Vec<Bad<'a>>,
}

#[derive(Serialize)]
struct Disagrees<'a> {
    volume: &'a str,
    block: u64,
}

#[derive(Serialize)]
struct Bad<'a> {
    volume: &'a str,
    block: u64,
    volume_offset_bytes: u64,
    segment: u32,
    /// Number of the device, and the offset there.
    device: u32,
    device_offset_bytes: u64,
    reason: String,
}

impl<'a> Bad<'a> {
    fn new(bad: &'a BadBlock) -> Self {
        Self {
            volume: &bad.volume,
            block: bad.lba,
            volume_offset_bytes: bad.lba * BLOCK_SIZE as u64,
            segment: bad.segment,
            device: split_offset(bad.offset).0 as u32,
            device_offset_bytes: split_offset(bad.offset).1,
            reason: bad.device.map_or("checksum mismatch".to_owned(), |error| error.to_string()),
        }
    }
}

/// Runs the command.
pub fn run(args: &Args, json: bool) -> Result<Exit, Failure> {
    let rebuilt = args.rebuild.then(|| rebuild::rebuild(&args.path)).transpose();
    let rebuilt = rebuilt.map_err(|error| Failure::new(error.exit(), error))?;
    let rebuilt = rebuilt.map(|report| report.summaries);
    let progress = Progress::bytes("verifying", 0, json);
    let block = BLOCK_SIZE as u64;
    let report = offline::check(&args.path, &mut |done, total| {
        progress.set_total(total * block);
        progress.set(done * block);
    });
    drop(progress);
    let report = report.map_err(|error| Failure::new(error.exit(), error))?;
    if json {
        output::json(&Document {
            path: &args.path,
            sound: report.is_sound(),
            rebuilt_from_summaries: rebuilt,
            disagreement: report
                .disagreement
                .as_ref()
                .map(|found| Disagrees { volume: &found.volume, block: found.lba }),
            recovery: Recovery::new(&report.recovery),
            verified_blocks: report.blocks,
            verified_bytes: report.blocks * block,
            bad_summaries: &report.bad_summaries,
            summary_copies_damaged: report.summary_copies_damaged,
            bad_blocks: report.bad_blocks,
            listed: report.listed.iter().map(Bad::new).collect(),
        })?;
    } else {
        if let Some(summaries) = rebuilt {
            output::line(&format!("the map was made anew from {summaries} summaries"))?;
        }
        output::line(&text(&args.path, &report))?;
    }
    Ok(if report.is_sound() { Exit::Success } else { Exit::Damaged })
}

fn text(path: &Path, report: &CheckReport) -> String {
    let verdict = if report.is_sound() { "sound" } else { "DAMAGED" };
    let recovery = Recovery::new(&report.recovery);
    let mut text = format!(
        "pool {}: {verdict}\n{}\nverified {} blocks of data ({}), {} bad",
        path.display(),
        recovery.text(),
        report.blocks,
        Human(report.blocks * BLOCK_SIZE as u64),
        report.bad_blocks,
    );
    if let Some(found) = &report.disagreement {
        text.push_str(&format!(
            "\n  volume {}, block {}: the checkpoint and the segments' summaries don't say the same; \
             `flagstone pool check --rebuild` trusts the summaries",
            found.volume, found.lba
        ));
    }
    for segment in &report.bad_summaries {
        text.push_str(&format!(
            "\n  the summary of segment {segment} is damaged: its blocks can be read, but neither moved nor found \
             without the map's pages"
        ));
    }
    if report.summary_copies_damaged > 0 {
        text.push_str(&format!(
            "\n{} summaries have one damaged copy; the other is used",
            report.summary_copies_damaged
        ));
    }
    for bad in report.listed.iter().map(Bad::new) {
        text.push_str(&format!(
            "\n  volume {}, block {} (bytes {} to {}): {} (segment {}, device {} offset {})",
            bad.volume,
            bad.block,
            bad.volume_offset_bytes,
            bad.volume_offset_bytes + BLOCK_SIZE as u64,
            bad.reason,
            bad.segment,
            bad.device,
            bad.device_offset_bytes,
        ));
    }
    let unlisted = report.bad_blocks - report.listed.len() as u64;
    if unlisted > 0 {
        text.push_str(&format!("\n  and {unlisted} more"));
    }
    text
}
