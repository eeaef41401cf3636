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

/// Words that are levels.
const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// Why a filter is none.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// A part of it can't be understood.
    #[error(transparent)]
    Part(#[from] ParseError),
    /// A word alone is a level, and this is none: taken for the name of what is to be logged, it would turn off all else.
    #[error(
        "{word:?} is no level: one of error, warn, info, debug, trace and off, or TARGET=LEVEL"
    )]
    Level {
        /// The word.
        word: String,
    },
}

/// Checks a filter such as `info`, `debug` or `warn,flagstone::api=debug`. An empty one says nothing.
///
/// # Errors
/// [`FilterError`].
pub fn check_filter(filter: &str) -> Result<(), FilterError> {
    let words = filter.split(',').map(str::trim).filter(|word| !word.is_empty());
    let is_word = |word: &&str| word.chars().all(|c| c.is_ascii_alphanumeric());
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    if let Some(word) = words.filter(is_word).find(|word| !is_level(word)) {
        return Err(FilterError::Level { word: word.to_owned() });
    }
    Ok(EnvFilter::builder().parse(filter).map(drop)?)
}

/// Sends log lines that pass `filter` to standard error. Later calls change nothing, so that a
/// library user's own subscriber wins.
///
/// # Errors
/// As [`check_filter`].
pub fn init(filter: &str, format: LogFormat) -> Result<(), FilterError> {
    check_filter(filter)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        let good =
            ["", "info", "WARN", "off", "warn,flagstone::api=debug", "flagstone::api", "a=trace"];
        for filter in good {
            assert!(check_filter(filter).is_ok(), "{filter:?}");
        }
        for filter in ["loud", "verbose", "info,loud", "warn, 7"] {
            let error = check_filter(filter).unwrap_err();
            assert!(matches!(error, FilterError::Level { .. }), "{filter:?}: {error}");
        }
        assert!(matches!(check_filter("a=loud"), Err(FilterError::Part(_))));
    }
}
