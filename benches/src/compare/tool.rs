//! Other programs, run to their end.

use std::{
    ffi::OsStr,
    process::{Command, Stdio},
};

use super::CompareError;

/// Runs a program and returns its standard output, trimmed.
pub(super) fn output<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = S>,
) -> Result<String, CompareError> {
    output_with(program, arguments, [] as [(&str, &str); 0])
}

/// The same with additions to the environment.
pub(super) fn output_with<S: AsRef<OsStr>, V: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = S>,
    environment: impl IntoIterator<Item = (&'static str, V)>,
) -> Result<String, CompareError> {
    let mut command = Command::new(program);
    command.args(arguments).envs(environment).stdin(Stdio::null());
    let shown = format!("{command:?}");
    let output = command
        .output()
        .map_err(|error| CompareError::Tool { command: shown.clone(), why: error.to_string() })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let why = format!("{}: {}", output.status, stderr.trim());
    Err(CompareError::Tool { command: shown, why })
}
