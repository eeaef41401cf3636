//! `flagstone pool`: pools that no daemon has open, and the state of those that one has.

mod check;
mod create;
mod devices;
mod grow;
mod inspect;
mod scrub;
mod status;

use std::path::Path;

use clap::Subcommand;

use super::Failure;
use crate::api::types::Pool;
use crate::exit::Exit;
use crate::pool::offline::is_same;

/// Make, check, describe and grow pools; show the state of those being served
#[derive(Debug, Subcommand)]
pub enum Command {
    Create(create::Args),
    Check(check::Args),
    Inspect(inspect::Args),
    Status(status::Args),
    Grow(grow::Args),
    Add(devices::Add),
    Remove(devices::Remove),
    Scrub(scrub::Args),
}

/// Whether this is a device of the pool.
fn lies_on(pool: &Pool, path: &Path) -> bool {
    let devices = pool.devices.iter().map(|device| &device.path).chain([&pool.path]);
    devices.into_iter().any(|device| is_same(Path::new(device), path))
}

/// Runs the command.
pub fn run(command: Command, json: bool) -> Result<Exit, Failure> {
    match command {
        Command::Create(args) => create::run(args, json).map(|()| Exit::Success),
        Command::Check(args) => check::run(&args, json),
        Command::Inspect(args) => inspect::run(&args, json).map(|()| Exit::Success),
        Command::Status(args) => status::run(&args, json).map(|()| Exit::Success),
        Command::Grow(args) => grow::run(&args, json).map(|()| Exit::Success),
        Command::Add(args) => devices::add(&args, json).map(|()| Exit::Success),
        Command::Remove(args) => devices::remove(&args, json).map(|()| Exit::Success),
        Command::Scrub(args) => scrub::run(&args, json),
    }
}
