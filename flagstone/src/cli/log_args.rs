//! `--log-level` and `--log-format`, for commands that run a daemon.

use super::Failure;
use crate::exit::Exit;
use crate::logging::{self, LEVEL_DEFAULT, LogFormat, check_filter};

/// What is logged, and how.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct LogArgs {
    /// What to log: error, warn, info, debug, trace, or a filter such as warn,flagstone::api=debug
    #[arg(long, env = "FLAGSTONE_LOG", value_name = "LEVEL", value_parser = parse_filter)]
    pub log_level: Option<String>,

    /// How log lines look on standard error
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

fn parse_filter(text: &str) -> Result<String, String> {
    check_filter(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

impl LogArgs {
    /// Starts logging, at `level` if nothing was said.
    pub fn init(&self, level: &str) -> Result<(), Failure> {
        // One that is empty says nothing.
        let said = [self.log_level.as_deref(), Some(level), Some(LEVEL_DEFAULT)];
        let level = said.into_iter().flatten().find(|level| !level.is_empty());
        let level = level.unwrap_or(LEVEL_DEFAULT);
        logging::init(level, self.log_format.unwrap_or_default())
            .map_err(|error| Failure::new(Exit::Usage, error))
    }
}
