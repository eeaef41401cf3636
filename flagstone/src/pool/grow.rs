//! Growing a stopped pool: opened, grown by its engine, closed.

use std::path::Path;

use flagstone_block::{BlockIo as _, Tag};
use flagstone_engine::OpenOptions;

use super::engine::{EngineError, Offline};

/// What a growth came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grown {
    /// Size of the file or device.
    pub device_bytes: u64,
    /// Segments there were.
    pub segments_before: u32,
    /// Segments there are.
    pub segments: u32,
}

/// Grows the pool at `path` to the size of its file or device.
///
/// # Errors
/// [`EngineError`]. The pool has the old size or the new one.
pub fn grow(path: &Path) -> Result<Grown, EngineError> {
    let (mut pool, _) = Offline::open(path, &OpenOptions::default())?;
    let segments_before = pool.engine.geometry().segments;
    let device_bytes = pool.io.size();
    pool.engine.grow(Tag(1), device_bytes)?;
    pool.wait(Tag(1))?;
    let segments = pool.engine.geometry().segments;
    pool.close()?;
    Ok(Grown { device_bytes, segments_before, segments })
}
