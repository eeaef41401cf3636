//! Flagstone beside the servers that people use and beside the ceilings, on disks of the same kind, in one interleaved
//! run.
//!
//! Every server has a disk of its own, all are up during the whole run, and each job is
//! measured on all of them one after the other, in another order each round: whatever
//! else the machine does meanwhile hits all alike. Figures are medians over the rounds.

pub mod chart;
pub mod disk;
pub mod job;
mod library;
pub mod plan;
pub mod preconditions;
pub mod result;
pub mod run;
pub mod server;
pub mod table;
mod tool;

pub use job::{JOBS, Job};
pub use plan::{Backing, Plan};
pub use result::Comparison;
pub use run::{CompareError, News, run};
pub use server::Kind;
