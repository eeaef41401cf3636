//! `cargo xtask compare`: the release builds, and then the comparison with them.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Builds what is compared, and runs `compare` with these arguments.
pub fn run(root: &Path, args: &[String]) -> ExitCode {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "-p", "flagstone", "-p", "flagstone-benches", "--bins"]);
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let release = target.join("release");
    let mut compare = Command::new(release.join("compare"));
    compare.arg("--flagstone").arg(release.join("flagstone")).args(args);
    for command in [build.current_dir(root), &mut compare] {
        match command.status() {
            Ok(status) if status.success() => {}
            Ok(_) => return ExitCode::FAILURE,
            Err(error) => {
                eprintln!("error: {}: {error}", command.get_program().display());
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
