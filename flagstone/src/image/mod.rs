//! Images of volumes and snapshots as streams: full ones, and increments from one snapshot to a later one.
//!
//! [`format`] has the bytes; [`ImageReader`] and [`ImageWriter`] the stream; [`copy`] moves data between a
//! stream and a volume; [`save`] and [`restore`] see to the snapshots around that.
//!
//! Deliberately not here: where streams lie, and how volumes are reached ([`store`] says what is asked of
//! them). That is the caller's: the command line with a daemon, the library with a pool of its own.

pub mod copy;
pub mod format;
mod reader;
pub mod restore;
pub mod save;
pub mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::io;

pub use reader::{Extent, ImageReader, Tail};
pub use writer::{Compression, ImageWriter};

/// Why a stream was not accepted. Nothing behind the place that is named was used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// It can't be read.
    #[error("it can't be read: {0}")]
    Read(#[source] io::Error),
    /// It is something else.
    #[error("it is no Flagstone image")]
    NotAnImage,
    /// It is of another version, or uses what this release does not know.
    #[error("it is of version {found} of the format, or uses what this release does not know")]
    Version {
        /// Version that its header names.
        found: u16,
    },
    /// It ends before its end.
    #[error("it is cut off after {at} bytes")]
    Truncated {
        /// Bytes that there are.
        at: u64,
    },
    /// Something in it is not as it was written.
    #[error("it is damaged at byte {at}: {what}")]
    Damaged {
        /// Where the record begins that is damaged, in bytes.
        at: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// There is more behind its end.
    #[error("something follows its end at byte {at}")]
    Trailing {
        /// Where the image ends, in bytes.
        at: u64,
    },
}
