//! `flagstone bench`: drives an NBD export, a file, a block device or a pool of its own and reports what came of it.
//!
//! Only the command line: what a run does and measures is `flagstone_loadgen`'s. Nothing here
//! needs a daemon.

mod pool;

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};
use flagstone_loadgen::{
    Console, Distribution, Limits, NbdOptions, NbdUri, Pattern, RawOptions, Report, RunError, Text,
    Workload, run_nbd_all, run_raw,
};
use flagstone_ring::DeviceOpenError;

use crate::{
    daemon::{backend::api_error, start_exit},
    exit::Exit,
    library::PoolError,
    node::{ControlError, NodeExit, NvmePolling},
    output,
    size::parse_size,
};

/// Measure throughput, latency and CPU time per request
///
/// Keeps a fixed number of requests in flight (closed loop), or sends them at a fixed rate (--rate, open loop), and
/// prints IOPS, MiB/s, latency percentiles, and the CPU time that client and server spend per request. With --verify it
/// also checks that every read returns what was written.
#[derive(Args, Debug)]
#[command(after_long_help = "Examples:
  flagstone bench nbd 'nbd+unix:///demo?socket=./flagstone-data/nbd.sock'
  flagstone bench nbd nbd://host:10809/demo --rw randwrite --depth 64 --connections 4
  flagstone bench nbd URI --mix 70 --distribution zipf:0.99 --verify --interval 1s
  flagstone bench nbd URI --rw randread --rate 20000 --hdr before
  flagstone bench raw /dev/nvme0n1 --depth 128
  flagstone bench pool disk.img demo --create 10G --rw write --pattern shuffled")]
pub struct BenchArgs {
    #[command(subcommand)]
    target: Target,
}

#[derive(Subcommand, Debug)]
enum Target {
    /// Drives an export of an NBD server.
    Nbd(NbdArgs),
    /// Drives a file or block device through the reactor; writing destroys what it holds.
    Raw(RawArgs),
    /// Drives a volume in this process, through the library; nobody else may have the pool open.
    Pool(pool::PoolArgs),
}

impl Target {
    const fn job(&self) -> &JobArgs {
        match self {
            Self::Nbd(nbd) => &nbd.job,
            Self::Raw(raw) => &raw.job,
            Self::Pool(pool) => &pool.job,
        }
    }
}

/// What is driven directly, and how.
#[derive(Args, Debug)]
struct RawArgs {
    /// A regular file, a block device, or an NVMe namespace (/dev/ngXnY), which is driven by commands of its own.
    path: PathBuf,

    /// Write even if the target holds data, which is lost then.
    #[arg(long)]
    force_destructive: bool,

    /// Of an NVMe namespace (/dev/ngXnY): when completions are polled for instead of awaited
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    nvme_polling: NvmePolling,

    #[command(flatten)]
    job: JobArgs,
}

/// What is driven over NBD, and how.
#[derive(Args, Debug)]
struct NbdArgs {
    /// nbd+unix:///NAME?socket=PATH or nbd://HOST:PORT/NAME; several are driven at the same time, and it is told what each did.
    #[arg(value_name = "URI", required = true)]
    uris: Vec<NbdUri>,

    /// Connections to each export; the depth is spread over all, at least one request each.
    #[arg(long, default_value_t = 1, value_name = "N")]
    connections: u32,

    /// Threads that drive the connections; 0 means half the cores.
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: u32,

    /// Ask for structured replies.
    #[arg(long)]
    structured: bool,

    /// Process whose CPU time is the server's; found by itself for unix sockets.
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,

    #[command(flatten)]
    job: JobArgs,
}

/// What is asked for, whatever the target.
#[derive(Args, Debug)]
struct JobArgs {
    /// Requests in flight.
    #[arg(long, default_value_t = 32, value_name = "N")]
    depth: u32,

    /// Bytes per request, a multiple of 512.
    #[arg(long, default_value = "4K", value_name = "SIZE", value_parser = parse_size)]
    block_size: u64,

    /// Share of reads, in percent; without it and --rw everything is read.
    #[arg(long, value_name = "READ%", value_parser = parse_percent, conflicts_with = "rw")]
    mix: Option<u8>,

    /// Kind and order of the requests in one word; randrw and rw read half of the time, trim and randtrim discard.
    #[arg(long, value_enum, value_name = "KIND")]
    rw: Option<ReadWrite>,

    /// Order of the requests, also of those that --rw names; shuffled ones are anywhere, but every place comes once
    /// before any comes again.
    #[arg(long, value_enum, value_name = "PATTERN")]
    pattern: Option<PatternArg>,

    /// uniform, or zipf:THETA.
    #[arg(long, default_value = "uniform", value_name = "DIST", value_parser = parse_distribution)]
    distribution: Distribution,

    /// ACCESSES/BLOCKS: so many percent of the requests go to so many percent of the blocks.
    #[arg(long, value_name = "A/B", value_parser = parse_hot, conflicts_with = "distribution")]
    hot: Option<Distribution>,

    /// Use only this much from the start; everything without it.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    span: Option<u64>,

    /// How long to measure, for example 30s or 5m; 10s when --ops is not given either.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    duration: Option<Duration>,

    /// How many requests to issue; the run ends with the last, or with --duration.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    ops: Option<u64>,

    /// Time at the start that is not measured.
    #[arg(long, default_value = "0s", value_name = "TIME", value_parser = parse_duration)]
    rampup: Duration,

    /// A line to standard error this often.
    #[arg(long, value_name = "TIME", value_parser = parse_interval)]
    interval: Option<Duration>,

    /// Requests per second, sent when their time has come whether or not others are answered, as long as --depth allows;
    /// latency counts from that time on.
    #[arg(long, value_name = "IOPS")]
    rate: Option<u32>,

    /// Write the distributions of the latencies to PREFIX.read.hgrm, PREFIX.write.hgrm and so on, for HdrHistogram's
    /// plotters.
    #[arg(long, value_name = "PREFIX")]
    hdr: Option<PathBuf>,

    /// A flush after so many writes of a connection.
    #[arg(long, value_name = "N")]
    flush_every: Option<u32>,

    /// Writes must be durable before they are answered.
    #[arg(long)]
    fua: bool,

    /// Stamp what is written (place, sequence, checksum) and check what is read.
    #[arg(long)]
    verify: bool,

    /// With --verify: note in this file what was written, and check what earlier runs with it wrote.
    #[arg(long, value_name = "FILE", requires = "verify")]
    ledger: Option<PathBuf>,

    /// Write zeroes: for disks in memory that compress, where random content would need all of it.
    #[arg(long, conflicts_with = "verify")]
    zero_buffers: bool,

    /// Names the random numbers.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,

    /// Without any answer for this long the run fails.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = parse_interval)]
    stall: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PatternArg {
    Random,
    Sequential,
    Shuffled,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ReadWrite {
    Read,
    Write,
    Rw,
    Randread,
    Randwrite,
    Randrw,
    Trim,
    Randtrim,
}

impl ReadWrite {
    /// The share of reads, and the order.
    const fn parts(self) -> (u8, Pattern) {
        match self {
            Self::Trim => (0, Pattern::Sequential),
            Self::Randtrim => (0, Pattern::Random),
            Self::Read => (100, Pattern::Sequential),
            Self::Write => (0, Pattern::Sequential),
            Self::Rw => (50, Pattern::Sequential),
            Self::Randread => (100, Pattern::Random),
            Self::Randwrite => (0, Pattern::Random),
            Self::Randrw => (50, Pattern::Random),
        }
    }
}

impl JobArgs {
    fn workload(&self) -> Workload {
        let named = self.pattern.map(|pattern| match pattern {
            PatternArg::Random => Pattern::Random,
            PatternArg::Sequential => Pattern::Sequential,
            PatternArg::Shuffled => Pattern::Shuffled,
        });
        let (read_percent, usual) =
            self.rw.map_or((self.mix.unwrap_or(100), Pattern::Random), ReadWrite::parts);
        let pattern = named.unwrap_or(usual);
        Workload {
            // Too large a size is refused by the workload's own check, with its limits.
            block_size: u32::try_from(self.block_size).unwrap_or(u32::MAX),
            depth: self.depth,
            read_percent,
            pattern,
            distribution: self.hot.unwrap_or(self.distribution),
            span_bytes: self.span,
            flush_every: self.flush_every,
            fua: self.fua,
            discard: matches!(self.rw, Some(ReadWrite::Trim | ReadWrite::Randtrim)),
            rate: self.rate,
            verify: self.verify,
            ledger: self.ledger.clone(),
            zero_buffers: self.zero_buffers,
            seed: self.seed,
        }
    }

    fn limits(&self) -> Limits {
        let default = self.ops.is_none().then_some(Duration::from_secs(10));
        Limits {
            duration: self.duration.or(default),
            operations: self.ops,
            rampup: self.rampup,
            interval: self.interval,
            stall: self.stall,
        }
    }
}

/// Why there is no clean report.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The run did not come to its end.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The pool could not be opened.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The volume is not there, or can't be made.
    #[error(transparent)]
    Volume(#[from] ControlError),
    /// The pool could not be closed cleanly.
    #[error(transparent)]
    Close(#[from] NodeExit),
    /// The report can't be written.
    #[error("can't write the report")]
    Output(#[from] std::io::Error),
    /// A distribution of latencies can't be written.
    #[error("can't write {}", path.display())]
    Hdr {
        /// To this file.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// The report was printed, and it is not clean.
    #[error("{errors} requests failed, {faults} reads returned wrong data")]
    NotClean {
        /// Requests that failed.
        errors: u64,
        /// Reads that returned what they must not.
        faults: u64,
    },
}

impl BenchError {
    /// The exit status of the command.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Run(
                RunError::Workload(_) | RunError::RawBlockSize { .. } | RunError::VerifySeveral,
            ) => Exit::Usage,
            Self::Run(RunError::HoldsData { .. }) => Exit::HoldsData,
            Self::Run(RunError::Open(DeviceOpenError::InUse { .. })) => Exit::InUse,
            Self::Pool(PoolError::Open(error)) => start_exit(error),
            Self::Volume(error) => api_error(error.clone()).code.exit(),
            Self::Run(_)
            | Self::Pool(PoolError::Create(_))
            | Self::Close(_)
            | Self::Output(_)
            | Self::Hdr { .. }
            | Self::NotClean { .. } => Exit::Failure,
        }
    }
}

/// Runs the command and prints its report: text, or one JSON document.
///
/// # Errors
/// [`BenchError`]; [`BenchError::exit`] is the exit status that goes with it.
pub fn run(args: &BenchArgs, json: bool) -> Result<(), BenchError> {
    let report = match &args.target {
        Target::Nbd(nbd) => {
            let options = NbdOptions {
                connections: nbd.connections,
                threads: nbd.threads,
                structured: nbd.structured,
                server_pid: nbd.server_pid,
            };
            let mut console = Console::new(json);
            let (workload, limits) = (nbd.job.workload(), nbd.job.limits());
            run_nbd_all(&nbd.uris, &workload, &options, &limits, &mut console)?
        }
        Target::Raw(raw) => {
            let options = RawOptions {
                force_destructive: raw.force_destructive,
                polling: raw.nvme_polling.mode(),
            };
            let mut console = Console::new(json);
            let (workload, limits) = (raw.job.workload(), raw.job.limits());
            run_raw(&raw.path, &workload, options, &limits, &mut console)?
        }
        Target::Pool(args) => pool::run(args, json)?,
    };
    print(&report, json)?;
    if let Some(prefix) = &args.target.job().hdr {
        write_latencies(&report, prefix)?;
    }
    if report.clean() {
        return Ok(());
    }
    let faults = report.verification.as_ref().map_or(0, |v| v.faults);
    Err(BenchError::NotClean { errors: report.errors, faults })
}

fn write_latencies(report: &Report, prefix: &Path) -> Result<(), BenchError> {
    for kind in report.latencies.kinds() {
        let mut path = prefix.as_os_str().to_owned();
        path.push(format!(".{}.hgrm", kind.name()));
        let path = PathBuf::from(path);
        let write = || {
            let mut out = BufWriter::new(File::create(&path)?);
            report.latencies.write_percentiles(kind, &mut out)?;
            out.flush()
        };
        write().map_err(|error| BenchError::Hdr { path: path.clone(), error })?;
    }
    Ok(())
}

fn print(report: &Report, json: bool) -> std::io::Result<()> {
    if json { output::json(report) } else { output::line(Text(report).to_string().trim_end()) }
}

fn parse_percent(text: &str) -> Result<u8, String> {
    let digits = text.strip_suffix('%').unwrap_or(text);
    digits.parse().ok().filter(|&p| p <= 100).ok_or_else(|| "a percentage from 0 to 100".into())
}

fn parse_distribution(text: &str) -> Result<Distribution, String> {
    let distribution = match text.split_once(':') {
        None if text == "uniform" => Distribution::Uniform,
        Some(("zipf", theta)) => {
            let theta = f64::from_str(theta).map_err(|_| "zipf:THETA needs a number, as 0.99")?;
            Distribution::Zipf { theta }
        }
        _ => return Err("uniform, or zipf:THETA".into()),
    };
    distribution.validate().map_err(|error| error.to_string())?;
    Ok(distribution)
}

fn parse_hot(text: &str) -> Result<Distribution, String> {
    let parse = || {
        let (accesses, blocks) = text.split_once('/')?;
        let (accesses_percent, blocks_percent) = (accesses.parse().ok()?, blocks.parse().ok()?);
        Some(Distribution::Hot { accesses_percent, blocks_percent })
    };
    let distribution = parse().ok_or("two percentages, as 80/20")?;
    distribution.validate().map_err(|error| error.to_string())?;
    Ok(distribution)
}

/// A time with its unit: ms, s (also without one), m or h.
fn parse_duration(text: &str) -> Result<Duration, String> {
    const HELP: &str = "a number with ms, s, m or h, as 500ms or 30s";
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let number: f64 = number.trim().parse().map_err(|_| HELP)?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "" | "s" => number,
        "m" | "min" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(HELP.into()),
    };
    // A month is more than any run, and far from every overflow in nanoseconds.
    if !(0.0..=2_678_400.0).contains(&seconds) {
        return Err("a time from 0 to 744h".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// A time between two reports.
pub(crate) fn parse_interval(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if duration < Duration::from_millis(100) {
        return Err("a time of at least 100ms".into());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn job(arguments: &[&str]) -> Result<(Workload, Limits), clap::Error> {
        let fixed = ["bench", "nbd", "nbd+unix:///x?socket=/s"];
        let command = Command::try_parse_from(fixed.iter().chain(arguments))?;
        let Target::Nbd(nbd) = command.bench.target else { panic!("the nbd subcommand") };
        Ok((nbd.job.workload(), nbd.job.limits()))
    }

    #[test]
    fn defaults_read_at_random_for_ten_seconds() {
        let (workload, limits) = job(&[]).expect("valid");
        assert_eq!(workload, Workload::default());
        assert_eq!(limits.duration, Some(Duration::from_secs(10)));
        let (_, limits) = job(&["--ops", "100"]).expect("valid");
        assert_eq!((limits.duration, limits.operations), (None, Some(100)));
    }

    #[test]
    fn options_reach_the_workload() {
        let (workload, limits) = job(&[
            "--rw=randrw",
            "--depth=4",
            "--block-size=64K",
            "--distribution=zipf:0.99",
            "--span=1G",
            "--rampup=500ms",
            "--interval=1s",
            "--flush-every=8",
            "--verify",
        ])
        .expect("valid");
        assert_eq!((workload.read_percent, workload.pattern), (50, Pattern::Random));
        assert_eq!((workload.depth, workload.block_size), (4, 65536));
        assert_eq!(workload.distribution, Distribution::Zipf { theta: 0.99 });
        assert_eq!(workload.span_bytes, Some(1 << 30));
        assert_eq!(limits.rampup, Duration::from_millis(500));
        assert_eq!(limits.interval, Some(Duration::from_secs(1)));
        let (workload, _) = job(&["--mix=70%", "--hot=80/20"]).expect("valid");
        assert_eq!(workload.read_percent, 70);
        let hot = Distribution::Hot { accesses_percent: 80, blocks_percent: 20 };
        assert_eq!(workload.distribution, hot);
        assert!(!workload.zero_buffers);
        assert!(job(&["--zero-buffers"]).expect("valid").0.zero_buffers);
    }

    #[test]
    fn an_order_of_its_own_takes_the_place_of_the_kinds() {
        let (workload, _) = job(&["--rw=write", "--pattern=shuffled"]).expect("valid");
        assert_eq!((workload.read_percent, workload.pattern), (0, Pattern::Shuffled));
        let (workload, _) = job(&["--rw=trim", "--rate=10"]).expect("valid");
        assert_eq!((workload.discard, workload.pattern), (true, Pattern::Sequential));
        assert_eq!((workload.read_percent, workload.rate), (0, Some(10)));
    }

    #[test]
    fn nonsense_is_refused() {
        for arguments in [
            &["--mix=101"][..],
            &["--mix=50", "--rw=read"],
            &["--distribution=zipf:1"],
            &["--distribution=zipf"],
            &["--hot=80"],
            &["--hot=80/0"],
            &["--hot=80/20", "--distribution=uniform"],
            &["--duration=5x"],
            &["--duration=-1s"],
            &["--interval=1ms"],
            &["--ops=0"],
            &["--ledger=file"],
            &["--zero-buffers", "--verify"],
        ] {
            assert!(job(arguments).is_err(), "{arguments:?}");
        }
    }
}
