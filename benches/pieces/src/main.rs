//! `pieces`: runs one of them, for `cargo xtask instructions` to count.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use flagstone_pieces::{Run, pieces};

/// Every hot piece of the data path by itself.
#[derive(Parser, Debug)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// One line per piece: its name, how many times it is run, and how many a run does, separated
    /// by tabs.
    List,
    /// Runs a piece as many times as `list` says; what [`measured`] does is what counts.
    Run {
        /// As `list` has it.
        name: String,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::List => {
            for piece in pieces() {
                println!("{}\t{}\t{}", piece.name, piece.runs, piece.per_run);
            }
        }
        Command::Run { name } => {
            let Some(piece) = pieces().into_iter().find(|piece| piece.name == name) else {
                eprintln!("error: no piece {name:?}; `pieces list` has them");
                return ExitCode::from(2);
            };
            let mut run = (piece.make)();
            // What is done once only, such as choosing the checksum's instructions.
            run();
            measured(&mut run, piece.runs);
        }
    }
    ExitCode::SUCCESS
}

/// Callgrind counts inside this function and nowhere else.
#[inline(never)]
fn measured(run: &mut Run, runs: u64) {
    for _ in 0..runs {
        run();
    }
}
