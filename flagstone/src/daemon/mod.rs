//! The daemon: a node on its reactor thread, and the control API in front of it.

pub mod backend;
