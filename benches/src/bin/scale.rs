//! `scale`: what a hundred thousand volumes and snapshots cost.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use flagstone_benches::scale::{self, Plan};

/// Fills a pool with thin volumes through the control API and measures what they cost: creation,
/// memory, lists, the time to be ready after a clean stop and after `kill -9`, idle CPU, and the
/// latency of one volume before and after.
#[derive(Parser, Debug)]
struct Arguments {
    /// The release binary.
    #[arg(long, default_value = "target/release/flagstone", value_name = "PATH")]
    flagstone: PathBuf,

    /// Where the pool is made: a file that is not there, or a device whose content may go.
    #[arg(long, value_name = "PATH")]
    pool: PathBuf,

    /// Size of a pool file.
    #[arg(long, default_value = "64G", value_name = "SIZE")]
    pool_size: String,

    /// Volumes, of 10 GiB each.
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    volumes: u32,

    /// Volumes of which a snapshot is taken.
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    snapshots: u32,

    /// Clients that create them, each with a connection of its own.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=60))]
    clients: u32,
}

fn main() -> ExitCode {
    let Arguments { flagstone, pool, pool_size, volumes, snapshots, clients } = Arguments::parse();
    let snapshots = snapshots.min(volumes);
    let plan = Plan { flagstone, pool, pool_size, volumes, snapshots, clients };
    match scale::run(&plan, &mut |name, value| println!("{name:<44} {value}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
