//! `compare`: Flagstone beside what people run today, and beside the ceilings. `cargo xtask compare` builds and runs it.
//!
//! Needs root, for zram and loop devices; removes whatever it makes, also when interrupted.

use std::{
    fs,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use clap::{Parser, ValueEnum};
use flagstone_benches::compare::{
    self, Backing, Comparison, JOBS, Job, Kind, News, Plan,
    table::{Markdown, Tsv},
};
use indicatif::{ProgressBar, ProgressStyle};

/// Measures Flagstone beside qemu-nbd, qemu-storage-daemon and nbdkit, beside a server that does nothing and beside the
/// disk itself, in one interleaved run, and prints medians and ratios
///
/// Each has a disk of its own in memory, all take requests from the same client, and each job is measured on all of
/// them in turn, in another order each round.
#[derive(Parser, Debug)]
#[command(name = "compare")]
struct Arguments {
    /// The release binary
    #[arg(long, default_value = "target/release/flagstone", value_name = "PATH")]
    flagstone: PathBuf,

    /// How thorough to be: quick takes less than five minutes
    #[arg(long, value_enum, default_value_t = Mode::Quick)]
    mode: Mode,

    /// What the disks are made of
    #[arg(long, value_enum, default_value_t = BackingArgument::Zram, conflicts_with = "device")]
    backing: BackingArgument,

    /// A directory on a real disk: files in it, without the page cache, are the disks instead
    #[arg(long, value_name = "DIRECTORY")]
    device: Option<PathBuf>,

    /// MiB that are read and written
    #[arg(long, default_value_t = 256, value_name = "MIB", value_parser = clap::value_parser!(u64).range(16..=1 << 20))]
    span: u64,

    /// MiB of Flagstone's disk; sixteen spans without it
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(64..=1 << 24))]
    pool_size: Option<u64>,

    /// What is compared; everything without it
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SERVER,...")]
    servers: Vec<Kind>,

    /// What they do; everything without it, --list-jobs names it
    #[arg(long, value_delimiter = ',', value_name = "JOB,...", value_parser = job)]
    jobs: Vec<Job>,

    /// Name the jobs and end
    #[arg(long)]
    list_jobs: bool,

    /// How often every job is measured [default: 1, 5 with --mode full]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,

    /// Length of a measurement, in milliseconds [default: 1000, 3000 with --mode full]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(100..=600_000))]
    duration: Option<u64>,

    /// Time before it that isn't counted, in milliseconds
    #[arg(long, default_value_t = 300, value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=60_000))]
    rampup: u64,

    /// Write compare.md, compare.tsv, compare.json and charts (SVG) into this directory, too
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,

    /// Print one JSON document with all measurements instead of the tables
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Once, a second each
    Quick,
    /// Five times, three seconds each
    Full,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BackingArgument {
    Zram,
    Tmpfs,
}

fn job(name: &str) -> Result<Job, String> {
    let names = || JOBS.map(|job| job.name).join(", ");
    Job::named(name).ok_or_else(|| format!("there is no such job; there are {}", names()))
}

impl Arguments {
    fn plan(&self) -> Plan {
        let (rounds, duration_ms) = match self.mode {
            Mode::Quick => (1, 1000),
            Mode::Full => (5, 3000),
        };
        Plan {
            flagstone: self.flagstone.clone(),
            backing: match (&self.device, self.backing) {
                (Some(directory), _) => Backing::Directory(directory.clone()),
                (None, BackingArgument::Zram) => Backing::Zram,
                (None, BackingArgument::Tmpfs) => Backing::Tmpfs,
            },
            span_bytes: self.span << 20,
            pool_bytes: self.pool_size.unwrap_or(self.span * 16) << 20,
            servers: all_if_none(&self.servers, &Kind::ALL),
            jobs: all_if_none(&self.jobs, &JOBS),
            rounds: self.rounds.unwrap_or(rounds),
            duration: Duration::from_millis(self.duration.unwrap_or(duration_ms)),
            rampup: Duration::from_millis(self.rampup),
        }
    }
}

fn all_if_none<T: Copy>(chosen: &[T], all: &[T]) -> Vec<T> {
    if chosen.is_empty() { all.to_vec() } else { chosen.to_vec() }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list_jobs {
        JOBS.iter().for_each(|job| println!("{}", job.name));
        return ExitCode::SUCCESS;
    }
    match compare_and_print(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare_and_print(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    // A signal is noticed at the end of the measurement under way; then everything is unmade.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in
        [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
    {
        signal_hook::flag::register(signal, interrupted.clone())?;
    }
    if let Some(directory) = &arguments.output {
        fs::create_dir_all(directory)?;
    }
    let plan = arguments.plan();
    let mut shown = Shown::new();
    shown.say(&format!("about {} s of measurements, after setting up", plan.estimate().as_secs()));
    let comparison = compare::run(&plan, &interrupted, &mut shown)?;
    shown.bar.finish_and_clear();
    if let Some(directory) = &arguments.output {
        write(&comparison, directory)?;
    }
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &comparison)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", Markdown(&comparison))?;
    }
    Ok(())
}

fn write(comparison: &Comparison, directory: &Path) -> Result<(), Box<dyn std::error::Error>> {
    fs::write(directory.join("compare.md"), Markdown(comparison).to_string())?;
    fs::write(directory.join("compare.tsv"), Tsv(comparison).to_string())?;
    fs::write(directory.join("compare.json"), serde_json::to_vec_pretty(comparison)?)?;
    compare::chart::draw(comparison, directory)?;
    Ok(())
}

/// Lines on standard error, and a progress bar if that is a terminal.
struct Shown {
    bar: ProgressBar,
}

/// Steps of the bar.
const STEPS: u64 = 1000;

impl Shown {
    fn new() -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new(STEPS)
        } else {
            ProgressBar::hidden()
        };
        let style = ProgressStyle::with_template("{bar:30} {percent}% {eta} left  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar }
    }
}

impl News for Shown {
    fn say(&mut self, what: &str) {
        self.bar.suspend(|| eprintln!("{what}"));
    }

    fn progress(&mut self, share: f64, next: &str) {
        if self.bar.is_hidden() {
            eprintln!("{next}");
        }
        self.bar.set_position((share * STEPS as f64) as u64);
        self.bar.set_message(next.to_owned());
    }
}
