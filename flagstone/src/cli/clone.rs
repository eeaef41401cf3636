//! `flagstone clone`: a volume from a snapshot, through a running daemon's control API.

use super::Failure;
use super::api_args::ApiArgs;
use super::volume::{SettingsArgs, print_volume};
use crate::api::clones::CreateClone;
use crate::name::{parse_name, parse_snapshot_name};

/// Make a volume that has what a snapshot has
///
/// It takes no longer for a large snapshot, and copies nothing: the clone shares the snapshot's blocks, and
/// takes space as it is written to. It is a volume like any other, as fast as any, in the snapshot's pool and
/// of its size (`volume resize` changes that); there may be any number, clones of their snapshots too. The
/// snapshot may be deleted, and its volume: what clones still have of it stays until they don't.
///
/// Cloning the same snapshot under the same name again is a success that changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone clone golden@v3 vm17
  flagstone clone database@nightly test-run --on-full error
  flagstone snapshot create data now && flagstone clone data@now data-copy")]
pub struct Args {
    /// The snapshot, with its volume's name
    #[arg(value_name = "VOLUME@SNAPSHOT", value_parser = parse_snapshot_name)]
    snapshot: String,

    /// Name of the new volume: 1 to 128 letters, digits, '.', '_' and '-', starting with a letter or digit
    #[arg(value_name = "NAME", value_parser = parse_name)]
    name: String,

    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    api: ApiArgs,
}

/// Runs the command.
pub fn run(args: Args, json: bool) -> Result<(), Failure> {
    let SettingsArgs { on_full, reserve } = args.settings;
    let (snapshot, name) = (args.snapshot, args.name);
    let request = CreateClone { snapshot, name, on_full, reserved_bytes: reserve };
    let volume = args.api.call(|client| async move { client.create_clone(&request).await })?;
    print_volume(&volume, json)
}
