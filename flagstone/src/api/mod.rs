//! The control API: HTTP and JSON over a unix socket.
//!
//! [`types`] and [`errors`] are the vocabulary that server and client share, [`backend`] is what
//! the server asks of the daemon, [`routes`] the endpoints with their OpenAPI document,
//! [`server`] the socket, [`client`] the command line's side, [`metrics`] `/metrics`.
//!
//! Nothing here knows about pools' insides, rings or threads.

pub mod backend;
pub mod client;
pub mod clones;
pub mod devices;
pub mod diff;
pub mod errors;
pub mod kernel_nbd;
pub mod metrics;
pub mod routes;
pub mod scrub;
pub mod server;
pub mod snapshots;
pub mod types;
pub mod ublk;
pub mod usage;

#[cfg(test)]
mod tests;
