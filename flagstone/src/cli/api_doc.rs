//! `flagstone api-doc`: the control API's OpenAPI document.

use super::Failure;
use crate::api::routes;
use crate::exit::Exit;
use crate::output;

/// Print the control API's OpenAPI document
///
/// The same document that a running daemon serves at GET /v1/openapi.json.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  flagstone api-doc > openapi.json")]
pub struct Args {}

/// Runs the command. The document is JSON with and without `--json`.
pub fn run(_: &Args) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(&routes::document())
        .map_err(|error| Failure::new(Exit::Failure, error))?;
    Ok(output::line(&text)?)
}
