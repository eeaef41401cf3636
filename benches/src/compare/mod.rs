//! Flagstone beside `qemu-nbd`, on the same RAM-backed block devices, in one interleaved run.
//!
//! Every server has a device of its own, all are up during the whole run, and each cell of the
//! matrix is measured on all of them one after the other, in another order each round: whatever
//! else the machine does meanwhile hits all alike. Figures are medians over the rounds.

pub mod plan;
pub mod preconditions;
pub mod ram_disk;
pub mod result;
pub mod run;
pub mod server;
pub mod table;
mod tool;

pub use plan::{Backing, Cell, Plan};
pub use result::Comparison;
pub use run::{CompareError, run};
