//! `flagstone man`: manual pages.

use std::path::PathBuf;

use clap::CommandFactory as _;

use super::{Cli, Failure};
use crate::output;

/// Write manual pages, one per command, into a directory
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  flagstone man /usr/local/share/man/man1")]
pub struct Args {
    /// The directory; made if it is absent
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let dir = &args.directory;
    let failed = |error| Failure::directory(dir, &error);
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(failed)?;
    if json {
        output::json(&serde_json::json!({ "directory": dir }))?;
    }
    Ok(())
}
