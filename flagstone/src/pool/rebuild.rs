//! Making a stopped pool's map anew, without the pages of its last checkpoint.

use std::path::Path;

use flagstone_engine::{OpenOptions, RecoveryReport};

use super::engine::{EngineError, Offline};

/// Makes the map of the pool at `path` from the summaries of all its segments, writes a checkpoint
/// of it, and closes the pool. Returns what was found.
///
/// # Errors
/// [`EngineError`]. The pool is as it was, or rebuilt.
pub fn rebuild(path: &Path) -> Result<RecoveryReport, EngineError> {
    let options = OpenOptions { rebuild: true, ..OpenOptions::default() };
    let (pool, report) = Offline::open(path, &options)?;
    pool.close()?;
    Ok(report)
}
