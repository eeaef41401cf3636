//! The node with real sockets, rings and files, against a client that checks every rule.

mod control;
mod faults;
mod harness;
mod io;
mod kernel_nbd;
mod local;
mod snapshots;
mod waiting;
