//! `flagstone completions`: completion scripts for shells.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, Failure};
use crate::output;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone completions bash > /usr/share/bash-completion/completions/flagstone
  flagstone completions zsh > \"${fpath[1]}/_flagstone\"
  flagstone completions fish > ~/.config/fish/completions/flagstone.fish")]
pub struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "flagstone", &mut script);
    Ok(output::bytes(&script)?)
}
