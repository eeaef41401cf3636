//! Micro-benchmarks and comparisons with other servers.
//!
//! `benches/*.rs` are criterion's (`cargo bench -p flagstone-benches`); [`compare`] is the
//! side-by-side run of `cargo run --release -p flagstone-benches --bin compare`; [`scale`] measures many
//! volumes (`--bin scale`).

pub mod compare;
pub mod scale;
