//! Project tasks, run as `cargo xtask TASK`.
//!
//! Only the standard library: this crate stands before everything else that is built, and a task
//! that checks the project must not wait for the project's dependencies.

mod compare;
mod instructions;
mod kernel_tests;
mod lab;
mod report;
mod step;
mod test;
mod tidy;
mod tools;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

const HELP: &str = "\
Tasks of the Flagstone project

Usage: cargo xtask TASK

  test     everything: tools, format, lints, tidy, all tests, simulator, fuzz corpora,
           end-to-end tests with real clients, kernel tests in the lab
  ci       the same; what CI runs
  tidy     rules about the sources that no compiler checks
  tools    install the programs that the end-to-end tests drive
  kernel-tests [SUITE]
           the kernel tests alone; all of them with the kernel of that Debian suite, if one is named
  compare [OPTIONS]
           Flagstone beside qemu-nbd, qemu-storage-daemon, nbdkit and the ceilings, in one interleaved run:
           `cargo xtask compare --help` says how
  instructions [--write]
           instructions that each hot piece of the data path takes, beside those in
           benches/pieces/instructions.tsv; with --write that file is written anew
  lab      run a command on a real kernel, in QEMU: `cargo xtask lab` says how

docs/operations/testing.md describes the parts of `test` and the knobs of the longer runs.";

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let (task, rest) = match args.split_first() {
        Some((task, rest)) => (Some(task.as_str()), rest),
        None => (None, &[][..]),
    };
    if let Some(extra) = rest.first()
        && !matches!(task, Some("compare" | "lab" | "kernel-tests" | "instructions"))
    {
        eprintln!("error: unexpected argument {extra:?}\n\n{HELP}");
        return ExitCode::from(2);
    }
    match task {
        Some("test" | "ci") => test::run(&root()),
        Some("tidy") => exit(tidy::run(&root())),
        Some("tools") => exit(tools::install()),
        Some("kernel-tests") => test::kernel(&root(), rest),
        Some("compare") => compare::run(&root(), rest),
        Some("instructions") => instructions::run(&root(), rest),
        Some("lab") => lab::run(&root(), rest),
        Some("help" | "--help" | "-h") => {
            println!("{HELP}");
            ExitCode::SUCCESS
        }
        Some(other) => {
            eprintln!("error: no task {other:?}\n\n{HELP}");
            ExitCode::from(2)
        }
        None => {
            eprintln!("{HELP}");
            ExitCode::from(2)
        }
    }
}

fn exit(result: Result<String, String>) -> ExitCode {
    match result {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(said) => {
            eprintln!("{said}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's directory: the parent of this crate's.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").into()
}
