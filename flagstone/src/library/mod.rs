//! The embeddable face: a pool in this process, without daemon, socket or runtime.
//!
//! [`Pool`] opens a pool and drives it on a reactor thread of its own; [`Volume`] reads and writes,
//! from any thread, blocking or as plain futures. What is promised is what the daemon promises
//! (`docs/promises.md`): an acknowledged write survives the death of the process, a flushed one
//! power loss, and no byte is returned whose checksum was not verified.

mod block_on;
mod diff;
mod image;
mod pool;
#[cfg(test)]
mod tests;
mod volume;

pub use diff::Diff;
pub use image::{ImageExportError, ImagePoolError};
pub use pool::{CreateOptions, OpenOptions, Pool, PoolError};
pub use volume::Volume;
