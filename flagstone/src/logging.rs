//! Logs: to standard error, never to standard output, which is for results.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The filter used when nothing is said.
pub const LEVEL_DEFAULT: &str = "info";

/// Checks a filter such as `info`, `debug` or `warn,flagstone::api=debug`.
///
/// # Errors
/// The part that can't be understood.
pub fn check_filter(filter: &str) -> Result<(), ParseError> {
    EnvFilter::builder().parse(filter).map(drop)
}

/// Sends log lines that pass `filter` to standard error. Later calls change nothing, so that a
/// library user's own subscriber wins.
///
/// # Errors
/// As [`check_filter`].
pub fn init(filter: &str, format: LogFormat) -> Result<(), ParseError> {
    let filter = EnvFilter::builder().parse(filter)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let _already_set = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
