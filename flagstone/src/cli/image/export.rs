//! `flagstone export`: a volume or snapshot, or what has changed since another, as a stream.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::Serialize;

use super::file::{BUFFER_BYTES, Begun, Partial, failure};
use super::remote::Remote;
use super::{About, about, interrupt};
use crate::api::client::Client;
use crate::cli::Failure;
use crate::cli::api_args::ApiArgs;
use crate::exit::Exit;
use crate::image::copy::ExportError;
use crate::image::format::{HEADER_BYTES, Header};
use crate::image::save::{SaveError, Saving};
use crate::image::store::Store as _;
use crate::image::{Compression, ImageWriter, Tail};
use crate::name::{parse_name, parse_snapshot_name, split_snapshot_name};
use crate::output;
use crate::progress::Progress;
use crate::size::Human;

/// Write an image of a volume or snapshot, all of it or what has changed
///
/// The image is a stream with checksums, of what is mapped only: to a file, or to standard output, which must
/// not be a terminal. `flagstone import` makes a volume of it, in this pool or anywhere else, and verifies it.
///
/// Of a volume itself the image is of one instant: a snapshot is taken, and deleted afterwards. Of a snapshot,
/// VOLUME@SNAPSHOT, increments can be made later: --from names the snapshot that is there already where the
/// image is to go, and only what has changed since is written. Keep the snapshot that the next increment begins
/// at.
///
/// A file is called FILE.partial until it is whole and durable. If the command is interrupted, by whatever, run
/// it again: what is there is verified, and gone on with. That needs the snapshot, so of a volume itself it is
/// possible only after kill -9 or the end of the daemon; otherwise it begins anew.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone export data@monday monday.img
  flagstone export data@tuesday --from monday tuesday.img --compress zstd
  flagstone export data | ssh backup flagstone import - data
  flagstone export data@tuesday --from data@monday | ssh backup flagstone import - data")]
pub struct Args {
    /// What to export: VOLUME@SNAPSHOT, or VOLUME as it is now
    #[arg(value_name = "VOLUME[@SNAPSHOT]", value_parser = parse_subject)]
    subject: String,

    /// File to write, or '-' for standard output [default: -]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    /// File to write, or '-' for standard output
    #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
    output: Option<PathBuf>,

    /// Write only what has changed since this snapshot: of the same volume, unless VOLUME@ is given
    #[arg(long, value_name = "[VOLUME@]SNAPSHOT", value_parser = parse_subject)]
    from: Option<String>,

    /// Compress data: none, zstd, or zstd:LEVEL with LEVEL from 1 (fast) to 19 (small)
    #[arg(long, value_name = "HOW", default_value = "none", value_parser = parse_compression)]
    compress: Compression,

    /// Replace FILE if it is there
    #[arg(long)]
    force: bool,

    /// Go on with FILE.partial where an export was interrupted, which is the default
    #[arg(long, conflicts_with = "restart")]
    resume: bool,

    /// Begin anew even if there is a part of the image
    #[arg(long)]
    restart: bool,

    #[command(flatten)]
    api: ApiArgs,
}

fn parse_subject(text: &str) -> Result<String, String> {
    match text.contains('@') {
        true => parse_snapshot_name(text).map_err(|error| error.to_string()),
        false => parse_name(text).map_err(|error| error.to_string()),
    }
}

fn parse_compression(text: &str) -> Result<Compression, String> {
    let level = match text {
        "none" => return Ok(Compression::None),
        "zstd" => 3,
        _ => {
            let level = text.strip_prefix("zstd:").and_then(|level| level.parse().ok());
            level
                .filter(|level| (1..=19).contains(level))
                .ok_or("none, zstd, or zstd:LEVEL with LEVEL from 1 to 19 is possible")?
        }
    };
    Ok(Compression::Zstd(level))
}

/// What was exported, for JSON.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(flatten)]
    about: About,
    zero_bytes: u64,
    stream_bytes: u64,
    resumed_at_bytes: u64,
}

/// Runs the command.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let result = run_to_the_end(args, json);
    if result.is_err() {
        interrupt::yield_to_signal();
    }
    result
}

fn run_to_the_end(args: &Args, json: bool) -> Result<(), Failure> {
    let volume = args.subject.split('@').next().unwrap_or_default();
    let base = args.from.as_ref().map(|from| match from.contains('@') {
        true => from.clone(),
        false => format!("{volume}@{from}"),
    });
    if let Some(base) = &base {
        split_snapshot_name(base).map_err(|error| Failure::new(Exit::Usage, error))?;
    }
    let job = Job { args, base, json, passing: Arc::default() };
    let path = args.output.as_deref().or(args.file.as_deref());
    match path {
        Some(path) if path != Path::new("-") => {
            if is_special(path) {
                let file = File::options().write(true).open(path);
                let file = file.map_err(|error| failure(path, &error))?;
                return job.to_stream(&file, &path.display().to_string());
            }
            job.to_file(path)
        }
        _ => {
            // Not what looks for the ends of lines in everything that passes.
            let out = io::stdout().as_fd().try_clone_to_owned().map(File::from)?;
            if out.is_terminal() {
                let text = "an image is nothing for a terminal: name a file with -o, or redirect the \
                            output";
                return Err(Failure::new(Exit::Usage, text));
            }
            job.to_stream(&out, "standard output")
        }
    }
}

/// Whether `path` is there and can't be replaced by a file: a pipe, a device.
fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| {
        let kind = metadata.file_type();
        kind.is_fifo() || kind.is_char_device() || kind.is_block_device() || kind.is_socket()
    })
}

struct Job<'a> {
    args: &'a Args,
    base: Option<String>,
    json: bool,
    /// The snapshot that was taken for this alone, as long as a signal has to delete it.
    passing: Arc<Mutex<Option<String>>>,
}

impl Job<'_> {
    fn remote(&self) -> Result<Remote, Failure> {
        let client = self.args.api.client();
        Remote::new(client, None).map_err(|error| Failure::new(Exit::Failure, error))
    }

    fn begin<'r>(
        &self,
        remote: &'r Remote,
        begun: Option<&Header>,
    ) -> Result<Saving<'r, Remote>, Failure> {
        let begin = || {
            let base = self.base.as_deref();
            let saving = Saving::begin(remote, &self.args.subject, base, begun);
            if let (Ok(saving), Ok(mut passing)) = (&saving, self.passing.lock()) {
                *passing = saving.passing().map(str::to_owned);
            }
            saving
        };
        interrupt::undivided(begin).map_err(|error| match error {
            SaveError::Store(error) => error.into(),
            error @ SaveError::NoVolume { .. } => {
                Failure::coded(Exit::NotFound, "volume_not_found", error)
            }
            error @ SaveError::NoSnapshot { .. } => {
                Failure::coded(Exit::NotFound, "snapshot_not_found", error)
            }
        })
    }

    fn is_live(&self) -> bool {
        !self.args.subject.contains('@')
    }

    /// What a signal does: the passing snapshot goes, and a part of an image that needs it.
    fn watch(&self, partial: Option<&Path>) -> Result<(), Failure> {
        let (passing, client) = (Arc::clone(&self.passing), self.args.api.client());
        let partial = partial.map(Path::to_owned);
        let leave = move || {
            let passing = passing.lock().ok().and_then(|mut passing| passing.take());
            let gone = passing.is_some_and(|name| delete(&name, client).is_ok());
            match partial {
                Some(path) if gone => {
                    let _ = fs::remove_file(path);
                    "interrupted".to_owned()
                }
                Some(path) => {
                    format!("interrupted; {}", hint(&path))
                }
                None => "interrupted".to_owned(),
            }
        };
        interrupt::on_signal(leave).map_err(|error| Failure::new(Exit::Failure, error))
    }

    /// To something that can't be gone on with.
    fn to_stream(&self, file: &File, place: &str) -> Result<(), Failure> {
        self.watch(None)?;
        let remote = self.remote()?;
        let saving = self.begin(&remote, None)?;
        let to = BufWriter::with_capacity(BUFFER_BYTES, file);
        let failed = |error: io::Error| Failure::new(Exit::Failure, format!("{place}: {error}"));
        let writer = ImageWriter::begin(to, saving.header(), self.args.compress).map_err(failed)?;
        let tail = self.write(&saving, writer, place)?;
        // It may have been redirected to a file.
        if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            file.sync_all().map_err(failed)?;
        }
        let header = saving.header().clone();
        saving.close()?;
        if self.json {
            // Standard output may be the image.
            let report = self.report(None, &header, tail, 0);
            let text = serde_json::to_string(&report).map_err(io::Error::from)?;
            let _ = writeln!(io::stderr(), "{text}");
        }
        Ok(())
    }

    fn to_file(&self, path: &Path) -> Result<(), Failure> {
        let partial = Partial::open(path, self.args.force)?;
        let begun = match self.args.restart {
            true => None,
            false => partial.begun()?,
        };
        self.watch(Some(partial.name()))?;
        let remote = self.remote()?;
        let saving = match self.begin(&remote, begun.as_ref().map(|begun| &begun.header)) {
            Ok(saving) => saving,
            Err(error) => {
                if begun.is_none() {
                    partial.discard();
                }
                return Err(error);
            }
        };
        let from = self.start(saving.header(), &partial, begun)?;
        let name = partial.name().display().to_string();
        let written = self.write_file(&saving, &partial, &name, from);
        let header = saving.header().clone();
        let live = self.is_live();
        let tail = match written {
            Ok(tail) => tail,
            Err(error) if live => {
                if saving.close().is_ok() {
                    partial.discard();
                    return Err(error);
                }
                return Err(error.and(&hint(partial.name())));
            }
            Err(error) => return Err(error.and(&hint(partial.name()))),
        };
        partial.complete()?;
        saving.close()?;
        let report =
            self.report(Some(path), &header, tail, from.map_or(0, |tail| tail.stream_bytes));
        if self.json {
            return Ok(output::json(&report)?);
        }
        let resumed = match report.resumed_at_bytes {
            0 => String::new(),
            bytes => format!(", of which {} were there already", Human(bytes)),
        };
        let (file, stream) = (path.display(), Human(tail.stream_bytes));
        output::line(&format!("exported {}\nto {file}, {stream}{resumed}", about(&header)))?;
        Ok(())
    }

    /// Where to go on with what was `begun`; `None` for the beginning.
    fn start(
        &self,
        header: &Header,
        partial: &Partial,
        begun: Option<Begun>,
    ) -> Result<Option<Tail>, Failure> {
        let Some(begun) = begun else { return Ok(None) };
        if begun.header.is_same_image(header) {
            // The end record, if it was there, is written anew.
            return Ok(Some(begun.tail));
        }
        let same_volume = begun.header.volume_uuid == header.volume_uuid;
        if begun.header.is_live() && header.is_live() && same_volume {
            // Its snapshot is gone, and so is any use of it.
            return Ok(None);
        }
        let text = format!(
            "{} is a part of another image: {}. --restart begins anew, and it is lost",
            partial.name().display(),
            about(&begun.header)
        );
        Err(Failure::new(Exit::HoldsData, text))
    }

    fn write_file(
        &self,
        saving: &Saving<'_, Remote>,
        partial: &Partial,
        name: &str,
        from: Option<Tail>,
    ) -> Result<Tail, Failure> {
        let failed = |error: io::Error| Failure::new(Exit::Failure, format!("{name}: {error}"));
        let writer = match from {
            None => {
                let to = partial.writer(0).map_err(failed)?;
                ImageWriter::begin(to, saving.header(), self.args.compress)
            }
            Some(tail) => {
                let to = partial.writer(tail.stream_bytes).map_err(failed)?;
                ImageWriter::resume(to, tail, self.args.compress)
            }
        };
        self.write(saving, writer.map_err(failed)?, name)
    }

    fn write<W: Write>(
        &self,
        saving: &Saving<'_, Remote>,
        mut writer: ImageWriter<W>,
        place: &str,
    ) -> Result<Tail, Failure> {
        let progress = Progress::bytes("exporting", saving.header().data_bytes, self.json);
        let failed = |error: io::Error| Failure::new(Exit::Failure, format!("{place}: {error}"));
        saving.run(&mut writer, |done| progress.set(done)).map_err(|error| match error {
            ExportError::Source(error) => error.into(),
            ExportError::Stream(error) => failed(error),
        })?;
        let (_, tail) = writer.finish().map_err(failed)?;
        Ok(tail)
    }

    fn report(&self, path: Option<&Path>, header: &Header, tail: Tail, resumed: u64) -> Report {
        Report {
            file: path.map(|path| path.display().to_string()),
            about: header.into(),
            zero_bytes: tail.totals.zero_bytes,
            stream_bytes: tail.stream_bytes,
            resumed_at_bytes: resumed,
        }
    }
}

fn hint(partial: &Path) -> String {
    let far = fs::metadata(partial).map_or(0, |metadata| metadata.len());
    if far <= HEADER_BYTES as u64 {
        return "run the same command again".to_owned();
    }
    format!("run the same command again to go on with {}", partial.display())
}

fn delete(snapshot: &str, client: Client) -> Result<(), Failure> {
    let remote = Remote::new(client, None).map_err(|error| Failure::new(Exit::Failure, error))?;
    Ok(remote.delete_snapshot(snapshot)?)
}
