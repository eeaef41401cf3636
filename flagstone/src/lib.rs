//! The flagstone library and binary: daemon, command line, control API.

pub mod api;
pub mod bench;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod exit;
pub mod logging;
pub mod name;
pub mod node;
pub mod notify;
pub mod output;
pub mod pool;
pub mod probe;
pub mod progress;
pub mod size;
pub mod uri;
