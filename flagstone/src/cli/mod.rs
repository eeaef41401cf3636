//! The command line: one file per command.
//!
//! Results go to standard output (text, or one JSON document with `--json`), everything else to
//! standard error; the exit status is one of [`Exit`]. Whatever can be checked without touching
//! a device or a daemon is checked by the argument parser. No command asks questions.

mod api_args;
mod api_doc;
mod clone;
mod completions;
mod diff;
mod failure;
mod image;
mod log_args;
mod man;
mod nbd;
mod pool;
mod ready;
mod serve;
mod snapshot;
mod top;
mod ublk;
mod up;
mod usage;
mod volume;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use failure::Failure;

use crate::bench::{self, BenchArgs};
use crate::exit::Exit;

/// Userspace block storage: thin, checksummed, crash-safe volumes over NBD and as block devices.
///
/// Flagstone pools files and block devices, keeps them log-structured, and serves thin volumes over
/// NBD and as block devices of this machine. A write that was acknowledged survives the death of the daemon; a write that was flushed
/// survives a power cut. No byte is returned whose checksum was not verified.
#[derive(Debug, Parser)]
#[command(
    name = "flagstone",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_long_help = AFTER_HELP
)]
pub struct Cli {
    /// Print results as JSON on standard output, errors as JSON on standard error
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  Serve a demo volume from ./flagstone-data and be told how to use it:
    flagstone up

  Format a disk, serve it, and make a volume:
    flagstone pool create /dev/sdb
    flagstone serve --pool /dev/sdb
    flagstone volume create data --size 100G

Sizes:
  A whole number and a unit: 4096 (bytes), 64K, 512MiB, 10G, 2T. Units are powers of 1024.

Environment:
  FLAGSTONE_API   path of the daemon's control socket
  FLAGSTONE_LOG   what the daemon logs: error, warn, info, debug, trace, or a filter such as
                  warn,flagstone::api=debug

Exit status:
  0  success
  1  something failed at run time, or a pool failed while it was served
  2  wrong usage or configuration; nothing was touched
  3  the pool, device or socket is in use
  4  the pool or image is damaged, or there is none (at that path, or in what is there)
  5  the target holds data and --force was not given
  6  no daemon answers at the control socket
  7  the daemon has no such volume, snapshot or pool
  8  the daemon refused the request
  A daemon that a second signal ends at once, and an export or import that a signal ends, exit with
  128 plus the signal's number.";

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Args),
    Serve(Box<serve::Args>),
    #[command(subcommand)]
    Pool(pool::Command),
    #[command(subcommand)]
    Volume(volume::Command),
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    Clone(clone::Args),
    #[command(subcommand)]
    Ublk(ublk::Command),
    #[command(subcommand)]
    Nbd(nbd::Command),
    Diff(diff::Args),
    Export(Box<image::export::Args>),
    Import(Box<image::import::Args>),
    Top(top::Args),
    Bench(Box<BenchArgs>),
    ApiDoc(api_doc::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.json;
    match cli.run() {
        Ok(exit) => exit.into(),
        Err(failure) => {
            failure.report(json);
            failure.exit().into()
        }
    }
}

impl Cli {
    fn run(self) -> Result<Exit, Failure> {
        let json = self.json;
        match self.command {
            Command::Up(args) => up::run(args, json).map(|()| Exit::Success),
            Command::Serve(args) => serve::run(*args, json).map(|()| Exit::Success),
            Command::Pool(command) => pool::run(command, json),
            Command::Volume(command) => volume::run(command, json).map(|()| Exit::Success),
            Command::Snapshot(command) => snapshot::run(command, json).map(|()| Exit::Success),
            Command::Clone(args) => clone::run(args, json).map(|()| Exit::Success),
            Command::Ublk(command) => ublk::run(command, json).map(|()| Exit::Success),
            Command::Nbd(command) => nbd::run(command, json).map(|()| Exit::Success),
            Command::Diff(args) => diff::run(args, json).map(|()| Exit::Success),
            Command::Top(args) => top::run(&args, json).map(|()| Exit::Success),
            Command::Export(args) => image::export::run(&args, json).map(|()| Exit::Success),
            Command::Import(args) => image::import::run(&args, json).map(|()| Exit::Success),
            Command::Bench(args) => {
                bench::run(&args, json)?;
                Ok(Exit::Success)
            }
            Command::ApiDoc(args) => api_doc::run(&args).map(|()| Exit::Success),
            Command::Completions(args) => completions::run(&args).map(|()| Exit::Success),
            Command::Man(args) => man::run(&args, json).map(|()| Exit::Success),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
