//! Every bound of the node, in one place.

/// Pools that one node may serve.
pub const MAX_POOLS: usize = 64;

/// Control requests that may wait for the reactor.
pub const CONTROL_QUEUE: usize = 256;

/// Bytes received ahead of a connection's parsing, in whole blocks.
pub const RECEIVE_BYTES: usize = 128 << 10;

/// Data of READs that every connection may always hold, whatever the others do.
pub const READ_BYTES_GUARANTEED: usize = 128 << 10;

/// Longest piece of a READ that is fetched and sent as one.
pub const PIECE_BYTES: usize = 256 << 10;
