//! What the end-to-end tests share: the daemon as a process, the programs that talk to it, a
//! small NBD client of its own, and a ledger of what was promised.
//!
//! Nothing here uses the product's crates: the tests stand where a user stands. Every wait has an
//! end ([`LIMIT`]), every port is chosen by the system, and whatever was started is ended when its
//! value is dropped, also when a test panics.

pub mod ask;
pub mod attached;
pub mod daemon;
pub mod disk;
pub mod filesystem;
pub mod kernel;
pub mod ledger;
pub mod load;
pub mod nbd;
pub mod process;
pub mod programs;
pub mod random;
pub mod recorded;
pub mod recovery;

use std::time::Duration;

/// How long anything may take that should take no time: a start, a stop, a reply. Long, because a
/// machine may be busy with other things; a test that waits this long has failed.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Bytes in a block.
pub const BLOCK: usize = 4096;

/// One mebibyte.
pub const MIB: u64 = 1 << 20;

/// A number from the environment, for the runs that take longer than the test command may.
///
/// # Panics
/// When the variable is set to something else than a number: a knob that is misspelt must not
/// quietly mean the default.
#[must_use]
pub fn knob(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is not a number"))
    })
}
