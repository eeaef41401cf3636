//! `flagstone pool inspect`: describes a stopped pool.

use std::path::{Path, PathBuf};

use flagstone_engine::{Inspection, RecoveryReport, SegmentInfo, SegmentState};
use serde::Serialize;

use crate::cli::Failure;
use crate::output::{self, Table};
use crate::pool::offline;
use crate::size::Human;

/// Describe a stopped pool: superblock, journal, segments, volumes
///
/// Reads the metadata as a start would, and no data; writes nothing. A running daemon has to be
/// stopped first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone pool inspect pool.flagstone
  flagstone pool inspect /dev/sdb --json | jq '.volumes[].name'
  flagstone pool inspect /dev/sdb --segments")]
pub struct Args {
    /// The pool's file or block device
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// List every segment too
    #[arg(long)]
    segments: bool,
}

/// What the next start would do, in JSON.
#[derive(Serialize)]
pub struct Recovery {
    clean: bool,
    journal_blocks: u64,
    cut_at: Option<u64>,
    dropped_blocks: u64,
    verified_blocks: u64,
    summaries: u32,
    meta_pages: u64,
    meta_copies_damaged: u64,
    superblocks_damaged: u32,
    /// Pages of the map that can't be used.
    leaf_pages_damaged: u64,
    /// The map was made from the segments' summaries.
    rebuilt: bool,
    open_segments: u32,
    volumes: u32,
}

impl Recovery {
    /// From the engine's report.
    pub fn new(report: &RecoveryReport) -> Self {
        Self {
            clean: report.clean,
            journal_blocks: report.journal_blocks,
            cut_at: report.cut_at,
            dropped_blocks: report.dropped_blocks,
            verified_blocks: report.verified_blocks,
            summaries: report.summaries,
            meta_pages: report.meta_pages,
            meta_copies_damaged: report.meta_copies_damaged,
            superblocks_damaged: report.superblocks_damaged,
            leaf_pages_damaged: report.leaf_pages_damaged,
            rebuilt: report.rebuilt,
            open_segments: report.open_segments,
            volumes: report.volumes,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = if self.clean {
            "stopped cleanly".to_owned()
        } else {
            format!(
                "not stopped cleanly: the next start replays {} journal blocks and {} summaries",
                self.journal_blocks, self.summaries
            )
        };
        if let Some(cut) = self.cut_at {
            text.push_str(&format!(
                "\nthe log ends before journal block {cut}, the first that can't be proven; {} \
                 later ones were never flushed and are dropped",
                self.dropped_blocks
            ));
        }
        if self.superblocks_damaged > 0 {
            text.push_str(&format!(
                "\n{} of 5 superblock copies are damaged; the next opening writes them anew",
                self.superblocks_damaged
            ));
        }
        if self.meta_copies_damaged > 0 {
            text.push_str(&format!(
                "\n{} metadata pages have one damaged copy; the other is used",
                self.meta_copies_damaged
            ));
        }
        if self.leaf_pages_damaged > 0 {
            text.push_str(&format!(
                "\n{} pages of the map are damaged: a start refuses what they map until the next start, which makes the \
                 map anew from the segments' summaries, as `flagstone pool check --rebuild` does at once",
                self.leaf_pages_damaged
            ));
        }
        text
    }
}

#[derive(Serialize)]
struct Document<'a> {
    path: &'a Path,
    uuid: String,
    generation: u64,
    device_bytes: u64,
    segment_bytes: u64,
    segments_total: u32,
    segment_data_blocks: u32,
    data_offset_bytes: u64,
    segments_by_state: Vec<ByState>,
    live_blocks: u64,
    journal: Journal,
    metadata: Metadata<'a>,
    recovery: Recovery,
    volumes: Vec<Volume<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    segments: Option<Vec<Segment>>,
}

#[derive(Serialize)]
struct ByState {
    state: &'static str,
    segments: u32,
    live_blocks: u64,
}

#[derive(Serialize)]
struct Journal {
    blocks: u32,
    first_sequence: u64,
    next_sequence: u64,
    last_lsn: u64,
}

#[derive(Serialize)]
struct Metadata<'a> {
    epoch: u64,
    pages: u64,
    segments: &'a [u32],
}

#[derive(Serialize)]
struct Volume<'a> {
    id: u32,
    name: &'a str,
    uuid: String,
    size_bytes: u64,
    mapped_bytes: u64,
    kept_bytes: u64,
}

#[derive(Serialize)]
struct Segment {
    segment: u32,
    state: &'static str,
    generation: u64,
    written_blocks: u32,
    live_blocks: u32,
}

const STATES: [SegmentState; SegmentState::COUNT] = [
    SegmentState::Free,
    SegmentState::Open,
    SegmentState::Sealing,
    SegmentState::Sealed,
    SegmentState::Dead,
    SegmentState::Freeing,
    SegmentState::Meta,
    SegmentState::Map,
    SegmentState::Copies,
    SegmentState::Absent,
];

const fn state_name(state: SegmentState) -> &'static str {
    match state {
        SegmentState::Free => "free",
        SegmentState::Open => "open",
        SegmentState::Sealing => "sealing",
        SegmentState::Sealed => "sealed",
        SegmentState::Dead => "dead",
        SegmentState::Freeing => "freeing",
        SegmentState::Meta => "metadata",
        SegmentState::Map => "map",
        SegmentState::Copies => "copies",
        SegmentState::Absent => "absent",
    }
}

fn by_state(segments: &[SegmentInfo]) -> Vec<ByState> {
    let count = |state| {
        let mut row = ByState { state: state_name(state), segments: 0, live_blocks: 0 };
        for segment in segments.iter().filter(|segment| segment.state == state) {
            row.segments += 1;
            row.live_blocks += u64::from(segment.live);
        }
        row
    };
    STATES.into_iter().map(count).filter(|row| row.segments > 0).collect()
}

fn uuid_text(uuid: [u8; 16]) -> String {
    uuid::Uuid::from_bytes(uuid).hyphenated().to_string()
}

impl<'a> Document<'a> {
    fn new(args: &'a Args, inspection: &'a Inspection) -> Self {
        let Inspection { superblock, geometry, segments, .. } = inspection;
        let segment = |s: &SegmentInfo| Segment {
            segment: s.segment,
            state: state_name(s.state),
            generation: s.generation,
            written_blocks: s.entries,
            live_blocks: s.live,
        };
        let volumes = inspection.volumes.iter().map(|(info, mapped, kept)| Volume {
            id: info.id,
            name: &info.name,
            uuid: uuid_text(info.uuid),
            size_bytes: info.size,
            mapped_bytes: *mapped,
            kept_bytes: *kept,
        });
        let block = flagstone_block::BLOCK_SIZE as u64;
        Self {
            path: &args.path,
            uuid: uuid_text(superblock.pool_uuid),
            generation: superblock.generation,
            device_bytes: geometry.pool_bytes(),
            segment_bytes: u64::from(geometry.shape.blocks) * block,
            segments_total: geometry.segments,
            segment_data_blocks: geometry.shape.data_blocks,
            data_offset_bytes: geometry.data_offset,
            segments_by_state: by_state(segments),
            live_blocks: segments.iter().map(|s| u64::from(s.live)).sum(),
            journal: Journal {
                blocks: geometry.journal_blocks,
                first_sequence: superblock.journal_start,
                next_sequence: inspection.next_jseq,
                last_lsn: inspection.last_lsn,
            },
            metadata: Metadata {
                epoch: superblock.meta_epoch,
                pages: inspection.recovery.meta_pages,
                segments: &inspection.meta_segments,
            },
            recovery: Recovery::new(&inspection.recovery),
            volumes: volumes.collect(),
            segments: args.segments.then(|| segments.iter().map(segment).collect()),
        }
    }

    fn text(&self) -> String {
        let mut text = format!(
            "pool {}\n\
             uuid          {}\n\
             superblock    generation {}\n\
             device        {}\n\
             segments      {} of {}, {} data blocks each, from byte {}\n\
             journal       {} blocks, sequence {} to {}, last LSN {}\n\
             metadata      {} pages in segments {:?}, epoch {}\n\
             state         {}\n",
            self.path.display(),
            self.uuid,
            self.generation,
            Human(self.device_bytes),
            self.segments_total,
            Human(self.segment_bytes),
            self.segment_data_blocks,
            self.data_offset_bytes,
            self.journal.blocks,
            self.journal.first_sequence,
            self.journal.next_sequence,
            self.journal.last_lsn,
            self.metadata.pages,
            self.metadata.segments,
            self.metadata.epoch,
            self.recovery.text(),
        );
        let mut table = Table::new(&["STATE", "SEGMENTS>", "LIVE BLOCKS>"]);
        for row in &self.segments_by_state {
            let cells = [row.segments.to_string(), row.live_blocks.to_string()];
            table.row([row.state.to_owned()].into_iter().chain(cells));
        }
        text.push_str(&format!("\n{}\n", table.render()));
        let mut table = Table::new(&["VOLUME", "ID>", "SIZE>", "MAPPED>", "KEPT>", "UUID"]);
        for volume in &self.volumes {
            table.row([
                volume.name.to_owned(),
                volume.id.to_string(),
                Human(volume.size_bytes).to_string(),
                Human(volume.mapped_bytes).to_string(),
                Human(volume.kept_bytes).to_string(),
                volume.uuid.clone(),
            ]);
        }
        text.push_str(&format!("\n{}", table.render()));
        if let Some(segments) = &self.segments {
            let mut table = Table::new(&["SEGMENT>", "STATE", "GENERATION>", "WRITTEN>", "LIVE>"]);
            for segment in segments {
                table.row([
                    segment.segment.to_string(),
                    segment.state.to_owned(),
                    segment.generation.to_string(),
                    segment.written_blocks.to_string(),
                    segment.live_blocks.to_string(),
                ]);
            }
            text.push_str(&format!("\n\n{}", table.render()));
        }
        text
    }
}

/// Runs the command.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let inspection =
        offline::inspect(&args.path).map_err(|error| Failure::new(error.exit(), error))?;
    let document = Document::new(args, &inspection);
    if json {
        output::json(&document)?
    } else {
        output::line(&document.text())?
    }
    Ok(())
}
