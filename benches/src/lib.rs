//! Comparisons with other servers, and with many volumes.
//!
//! [`compare`] is the side-by-side run of `cargo run --release -p flagstone-benches --bin compare`; [`scale`] measures many
//! volumes (`--bin scale`).

pub mod compare;
pub mod scale;
