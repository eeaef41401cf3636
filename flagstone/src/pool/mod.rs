//! Pools that nobody serves: making, checking and describing them.

pub mod create;
pub mod offline;
mod truncated;

pub use truncated::Truncated;
