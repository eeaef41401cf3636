//! Fuzz targets: one function per target, each takes any bytes.
//!
//! A target panics if the code under test breaks a promise, and the code under test may not
//! panic at all. The binaries in `fuzz_targets/` hand these functions to libFuzzer; the test in
//! `tests/` runs them over every committed input, on any machine, without a fuzzer.
//!
//! Checksums are fixed up before anything is decoded (see [`fixup`]): a fuzzer can't guess a
//! CRC, and an attacker who writes to the disk does not have to.
//!
//! How to run them: `docs/operations/fuzzing.md`.
#![allow(clippy::manual_is_multiple_of, clippy::result_large_err)] // style, not soundness, of test code

#[cfg(feature = "product")]
mod api;
mod arena;
mod decoders;
mod disk;
mod engine_ops;
pub mod fixup;
#[cfg(feature = "product")]
mod image;
mod input;
mod nbd;
#[cfg(feature = "product")]
mod nvme;
pub mod seeds;
#[cfg(feature = "product")]
mod text;
pub mod trace;
mod whole_pool;
mod world;

#[cfg(feature = "product")]
pub use api::api_input;
pub use decoders::{journal, metadata, segment, superblock};
pub use engine_ops::engine_ops;
#[cfg(feature = "product")]
pub use image::image;
pub use nbd::{nbd_handshake, nbd_session, nbd_transmission};
#[cfg(feature = "product")]
pub use nvme::{nvme_completion, nvme_identify};
#[cfg(feature = "product")]
pub use text::text_input;
pub use whole_pool::whole_pool;

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name of the binary, and of the folders of its inputs.
    pub name: &'static str,
    /// Runs one input; panics if something is wrong.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "nbd_handshake", run: nbd_handshake },
    Target { name: "nbd_transmission", run: nbd_transmission },
    Target { name: "nbd_session", run: nbd_session },
    Target { name: "superblock", run: superblock },
    Target { name: "journal", run: journal },
    Target { name: "metadata", run: metadata },
    Target { name: "segment", run: segment },
    Target { name: "whole_pool", run: whole_pool },
    Target { name: "engine_ops", run: engine_ops },
    #[cfg(feature = "product")]
    Target { name: "api_input", run: api_input },
    #[cfg(feature = "product")]
    Target { name: "text_input", run: text_input },
    #[cfg(feature = "product")]
    Target { name: "image", run: image },
    #[cfg(feature = "product")]
    Target { name: "nvme_identify", run: nvme_identify },
    #[cfg(feature = "product")]
    Target { name: "nvme_completion", run: nvme_completion },
];
