//! `flagstone import`: a volume from a stream that `flagstone export` wrote.

use std::fs::File;
use std::io::{self, BufReader, IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::file::{BUFFER_BYTES, failure};
use super::remote::{Remote, RemoteError};
use super::{About, about, interrupt, unusable};
use crate::cli::Failure;
use crate::cli::api_args::{ApiArgs, pool_name};
use crate::exit::Exit;
use crate::image::format::RECORD_BYTES;
use crate::image::restore::{Keep, RestoreError, Restored, restore};
use crate::image::{ImageError, ImageReader};
use crate::name::parse_name;
use crate::output;
use crate::progress::Progress;
use crate::size::Human;

/// Make a volume of an image, or bring it to a later state with an increment
///
/// A full image makes the volume NAME, or fills one of its size that was never written to. An increment goes to
/// the volume that its base was imported to, or exported from, as long as that has not changed since: anything
/// else is refused, with the reason. Everything is verified before it is written, and what is not mapped in the
/// source takes no space.
///
/// At the end a snapshot is taken of the same name as the exported one, with its identity, which the next
/// increment asks for. An image of a volume itself leaves no snapshot, unless --snapshot names one, and is no base
/// of increments.
///
/// If the command is interrupted, by whatever, run it again with the same image, from a file or exported anew
/// from the same snapshot: it goes on where it was. Until it is whole, the volume has a snapshot called
/// importing-..., which marks that; who gives it up deletes the snapshot and the volume. Don't write to the
/// volume meanwhile. Importing what is there already verifies the image and changes nothing.
#[derive(Debug, clap::Args)]
#[command(allow_missing_positional = true)]
#[command(after_help = "Examples:
  flagstone import monday.img data
  flagstone import tuesday.img data
  flagstone import --check tuesday.img
  ssh source flagstone export data@monday | flagstone import - data")]
pub struct Args {
    /// File with the image, or '-' for standard input [default: -]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    /// Name of the volume
    #[arg(value_name = "NAME", value_parser = parse_name, required_unless_present = "check")]
    name: Option<String>,

    /// File with the image, or '-' for standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
    input: Option<PathBuf>,

    /// Name of the snapshot that is taken at the end [default: as in the image]
    #[arg(long, value_name = "SNAPSHOT", value_parser = parse_name)]
    snapshot: Option<String>,

    /// Take no snapshot at the end; no increment can follow then
    #[arg(long, conflicts_with = "snapshot")]
    no_snapshot: bool,

    /// Path or UUID of the pool to make the volume in [default: the one with the most free space]
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,

    /// Only tell what the image in FILE ('-': standard input) is, and verify all of it; no daemon is needed
    #[arg(long, value_name = "FILE", conflicts_with_all = ["file", "name", "input", "snapshot", "no_snapshot", "pool"])]
    check: Option<PathBuf>,

    #[command(flatten)]
    api: ApiArgs,
}

/// What was imported, for JSON.
#[derive(Debug, Serialize)]
struct Report {
    volume: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<String>,
    image: About,
    zero_bytes: u64,
    kept_bytes: u64,
    resumed: bool,
    was_there: bool,
}

/// What was verified, for JSON.
#[derive(Debug, Serialize)]
struct Checked {
    image: About,
    zero_bytes: u64,
    stream_bytes: u64,
    records: u64,
    sound: bool,
}

/// Runs the command.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    if let Some(path) = &args.check {
        return check(path, json);
    }
    let result = bring(args, json);
    if result.is_err() {
        interrupt::yield_to_signal();
    }
    result
}

/// What a stream is called in messages, and the stream.
fn open(path: &Path) -> Result<(String, Box<dyn Read>), Failure> {
    if path != Path::new("-") {
        let file = File::open(path).map_err(|error| failure(path, &error))?;
        return Ok((path.display().to_string(), Box::new(file)));
    }
    let input = io::stdin().lock();
    if input.is_terminal() {
        let text = "no image comes from a terminal: name a file, or redirect the input";
        return Err(Failure::new(Exit::Usage, text));
    }
    Ok(("standard input".to_owned(), Box::new(input)))
}

fn check(path: &Path, json: bool) -> Result<(), Failure> {
    let (place, stream) = open(path)?;
    let total = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let stream = BufReader::with_capacity(BUFFER_BYTES, stream);
    let mut reader = ImageReader::open(stream).map_err(|error| unusable(&place, &error))?;
    let progress = Progress::bytes("verifying", total, json);
    loop {
        let more = reader.next().map(|extent| extent.is_some());
        progress.set(reader.tail().stream_bytes);
        match more {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => return Err(unusable(&place, &error)),
        }
    }
    drop(progress);
    let (header, tail) = (reader.header(), reader.tail());
    if json {
        return Ok(output::json(&Checked {
            image: header.into(),
            zero_bytes: tail.totals.zero_bytes,
            stream_bytes: tail.stream_bytes + RECORD_BYTES as u64,
            records: tail.totals.records,
            sound: true,
        })?);
    }
    Ok(output::line(&format!("{}\nsound: {place} is whole and undamaged", about(header)))?)
}

fn bring(args: &Args, json: bool) -> Result<(), Failure> {
    // The parser sees to it.
    let name = args.name.as_deref().unwrap_or_default();
    let path = args.input.as_deref().or(args.file.as_deref()).unwrap_or(Path::new("-"));
    let keep = match &args.snapshot {
        _ if args.no_snapshot => Keep::Nothing,
        None => Keep::AsItWas,
        Some(snapshot) => Keep::Named(snapshot.clone()),
    };
    let (place, stream) = open(path)?;
    let stream = BufReader::with_capacity(BUFFER_BYTES, stream);
    let mut reader = ImageReader::open(stream).map_err(|error| unusable(&place, &error))?;
    let header = reader.header().clone();
    let again = format!("import the whole image to {name} again to go on");
    let text = format!("interrupted; {again}");
    interrupt::on_signal(move || text).map_err(|error| Failure::new(Exit::Failure, error))?;
    let remote = Remote::new(args.api.client(), args.pool.as_deref().map(pool_name));
    let remote = remote.map_err(|error| Failure::new(Exit::Failure, error))?;
    let progress = Progress::bytes("importing", header.data_bytes, json);
    let restored = restore(&remote, &mut reader, name, &keep, |done| progress.set(done));
    drop(progress);
    let restored = restored.map_err(|error| refused(error, &place, &again))?;
    if json {
        let totals = restored.imported.totals;
        return Ok(output::json(&Report {
            volume: name.to_owned(),
            snapshot: restored.snapshot,
            image: (&header).into(),
            zero_bytes: totals.zero_bytes,
            kept_bytes: restored.imported.kept_bytes,
            resumed: restored.resumed,
            was_there: restored.was_there,
        })?);
    }
    let Restored { snapshot, imported, was_there, resumed } = restored;
    let did = match was_there {
        true => "verified, and there already:".to_owned(),
        false => format!("imported to {name}:"),
    };
    let mut text = format!("{did} {}", about(&header));
    if resumed && !was_there {
        text.push_str(&format!("\n{} were there already", Human(imported.kept_bytes)));
    }
    if let Some(snapshot) = snapshot {
        text.push_str(&format!("\nsnapshot {snapshot}"));
    }
    Ok(output::line(&text)?)
}

fn refused(error: RestoreError<RemoteError>, place: &str, again: &str) -> Failure {
    let (exit, code) = match error {
        RestoreError::Image(error @ (ImageError::Truncated { .. } | ImageError::Read(_))) => {
            return unusable(place, &error).and(again);
        }
        RestoreError::Image(error) => return unusable(place, &error),
        RestoreError::Store(error) => return Failure::from(error).and(again),
        RestoreError::Name { .. } => (Exit::Usage, "invalid_name"),
        RestoreError::NoVolume { .. } => (Exit::NotFound, "volume_not_found"),
        RestoreError::Exists { .. } => (Exit::HoldsData, "volume_exists"),
        RestoreError::SnapshotExists { .. } => (Exit::HoldsData, "snapshot_exists"),
        RestoreError::WrongBase { .. } => (Exit::Refused, "wrong_base"),
        RestoreError::Changed { .. } | RestoreError::Resized { .. } => {
            (Exit::Refused, "changed_since_base")
        }
        RestoreError::OtherImport { .. } => (Exit::Refused, "other_import"),
        RestoreError::Foreign { .. } => (Exit::Refused, "written_meanwhile"),
    };
    Failure::coded(exit, code, error)
}
