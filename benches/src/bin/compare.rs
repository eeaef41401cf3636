//! `compare`: Flagstone beside qemu-nbd on RAM-backed block devices.
//!
//! Needs root, for zram and loop devices; removes whatever it makes, also when interrupted.

use std::{
    io::Write,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use clap::{Parser, ValueEnum};
use flagstone_benches::compare::{self, Backing, Plan, plan::Operation, table::Markdown};

/// Measures Flagstone beside `qemu-nbd -f raw` and `-f qcow2` (`--cache=none --aio=io_uring`)
/// on RAM-backed block devices, interleaved, and prints medians and ratios.
#[derive(Parser, Debug)]
struct Arguments {
    /// The release binary.
    #[arg(long, default_value = "target/release/flagstone", value_name = "PATH")]
    flagstone: PathBuf,

    /// What the RAM disks are made of.
    #[arg(long, value_enum, default_value_t = BackingArgument::Zram)]
    backing: BackingArgument,

    /// MiB that are read and written.
    #[arg(long, default_value_t = 256, value_name = "MIB", value_parser = clap::value_parser!(u64).range(16..=1 << 20))]
    span: u64,

    /// MiB of Flagstone's device; sixteen spans without it.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(64..=1 << 24))]
    pool_size: Option<u64>,

    /// Operations to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [OperationArgument::Read, OperationArgument::Write])]
    operations: Vec<OperationArgument>,

    /// Requests in flight, over all connections.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 32], value_name = "N,...")]
    depths: Vec<u32>,

    /// Numbers of connections.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4], value_name = "N,...")]
    connections: Vec<u32>,

    /// How often every cell is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,

    /// Length of a measurement, in milliseconds.
    #[arg(long, default_value_t = 2500, value_name = "MS", value_parser = clap::value_parser!(u64).range(100..=600_000))]
    duration: u64,

    /// Time before it that isn't counted, in milliseconds.
    #[arg(long, default_value_t = 300, value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=60_000))]
    rampup: u64,

    /// Print one JSON document with all measurements instead of the table.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BackingArgument {
    Zram,
    Tmpfs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OperationArgument {
    Read,
    Write,
}

impl Arguments {
    fn plan(&self) -> Plan {
        Plan {
            flagstone: self.flagstone.clone(),
            backing: match self.backing {
                BackingArgument::Zram => Backing::Zram,
                BackingArgument::Tmpfs => Backing::Tmpfs,
            },
            span_bytes: self.span << 20,
            pool_bytes: self.pool_size.unwrap_or(self.span * 16) << 20,
            block_size: 4096,
            operations: self
                .operations
                .iter()
                .map(|operation| match operation {
                    OperationArgument::Read => Operation::Read,
                    OperationArgument::Write => Operation::Write,
                })
                .collect(),
            depths: self.depths.clone(),
            connections: self.connections.clone(),
            rounds: self.rounds,
            duration: Duration::from_millis(self.duration),
            rampup: Duration::from_millis(self.rampup),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match compare_and_print(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error}");
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
    let plan = arguments.plan();
    let estimate = plan.estimate(compare::server::Kind::ALL.len() as u32);
    eprintln!("about {} s of measurements, after setting up", estimate.as_secs());
    let comparison = compare::run(&plan, &interrupted)?;
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &comparison)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", Markdown(&comparison))?;
    }
    Ok(())
}
