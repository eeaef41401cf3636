//! The deterministic simulator: the engine and the NBD session as they are, on a seeded disk and
//! a seeded clock, watched by a naive model.
//!
//! A seed determines everything: what the clients do, in which order the disk ends commands, where
//! the process is killed or the power cut, what is torn, lost or damaged. See
//! `docs/simulator.md`; the fault model is in [`disk`], the promises that are checked in
//! [`oracle`], what a seed may do in [`config`].
//!
//! Not simulated: threads (a pool has one owner), the reactor, sockets beyond their bytes.

pub mod arena;
pub mod client;
pub mod config;
pub mod content;
pub mod disk;
pub mod log;
pub mod nbd;
pub mod oracle;
pub mod rng;
pub mod scenario;
pub mod world;

pub use config::{first_seed_for, theme_for};
pub use log::{Detail, Failure};
pub use scenario::{Outcome, run_seed};
pub use world::Twist;
