//! Growing a stopped pool: opened, grown by its engine, closed.

use std::path::Path;

use flagstone_block::{BlockIo as _, Tag};
use flagstone_engine::OpenOptions;

use super::engine::{EngineError, Offline};

/// What a growth came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grown {
    /// Size of its files and devices.
    pub device_bytes: u64,
    /// Segments there were.
    pub segments_before: u32,
    /// Segments there are.
    pub segments: u32,
}

/// Grows the pool that `path` belongs to, to the size of its files or devices.
///
/// # Errors
/// [`EngineError`]. The pool has the old size or the new one.
pub fn grow(path: &Path) -> Result<Grown, EngineError> {
    let (mut pool, _) = Offline::open(path, &OpenOptions::default())?;
    let segments_before = pool.engine.geometry().in_all;
    let device_bytes = pool.io.size();
    let devices: Vec<usize> = pool.engine.geometry().devices().collect();
    for device in devices {
        let bytes = pool.io.device_bytes(device).unwrap_or(0);
        pool.engine.grow(Tag(1), device, bytes)?;
        pool.wait(Tag(1))?;
    }
    let segments = pool.engine.geometry().in_all;
    pool.close()?;
    Ok(Grown { device_bytes, segments_before, segments })
}
