//! A pool as a power cut left it: checked, recovered, compared with what clients were promised.

use std::path::Path;

use crate::BLOCK;
use crate::daemon::{Config, try_check_pool};
use crate::ledger::{Cut, Ledger};
use crate::load;

/// Recovers the image `pool` twice, with sockets in `dir`, and compares its volume `v` with what was
/// promised when the disk had come to `position`; how many versions of blocks are not there.
///
/// # Errors
/// What is wrong.
pub fn recover(dir: &Path, pool: &Path, ledger: &Ledger, position: u64) -> Result<usize, String> {
    try_check_pool(pool)?;
    let config = Config::new(pool, dir);
    let mut daemon = config.start();
    let first = load::read_all(&daemon.address(), "v")?;
    let survivors = ledger.verify(&first, Cut::Power(position))?;
    // Recovery again, from what the first one left when it was killed.
    daemon.kill();
    daemon.restart();
    let second = load::read_all(&daemon.address(), "v")?;
    if first != second {
        return Err("the second recovery found something else than the first".to_owned());
    }
    let mut client = daemon.connect("v");
    let written = client.write(0, &[1; BLOCK], 0).and_then(|()| client.flush());
    // The pool may have been cut when it was full.
    if written.is_err_and(|error| error != crate::nbd::ENOSPC) {
        return Err("it doesn't write after the recovery".to_owned());
    }
    daemon.stop_cleanly();
    try_check_pool(pool)?;
    Ok(survivors.lost)
}
