//! Every bound of the node, in one place.
//!
//! Memory is one arena of fixed size. Each pool's engine takes its own buffers from it at open, each
//! connection slot its three buffers at start; what is left is shared for the data of READs. A
//! connection may take from the shared part as much as it leaves free, so that n greedy ones end
//! with 1/(n+1) of it each and a newcomer always finds something. Without any of it a connection
//! goes on with its own reserve.

use flagstone_block::BLOCK_SIZE;

/// Pools that one node may serve.
pub const MAX_POOLS: usize = 32;

/// Connections that one node may be configured for.
pub const MAX_CONNECTIONS: u32 = 16_384;

/// Control requests that may wait for the reactor.
pub const CONTROL_QUEUE: usize = 256;

/// Blocks that a connection receives into: how far it is read ahead. This and the next two are
/// powers of two because the arena's allocator packs those without gaps.
pub const RECEIVE_BLOCKS: u32 = 32;

/// Blocks for the headers and handshake replies of one send.
pub const HEADER_BLOCKS: u32 = 4;

/// Blocks of READ data that each connection may hold whatever the others do. A READ that touches
/// no more blocks than this can always be fetched whole before any of it is sent, which every
/// unfragmented one needs.
pub const RESERVE_BLOCKS: u32 = 32;
/// READs of whole blocks up to this length are answered when all of it is there, in any reply style.
pub const READ_BYTES_WHOLE: u64 = RESERVE_BLOCKS as u64 * BLOCK_SIZE as u64;

/// Blocks that one connection slot takes from the arena at start.
pub const CONNECTION_BLOCKS: u32 = RECEIVE_BLOCKS + HEADER_BLOCKS + RESERVE_BLOCKS;

/// Longest piece of a READ that is fetched and sent as one, in blocks.
pub const PIECE_BLOCKS: u32 = 64;

/// Shortest piece that a READ is split into when the arena is short, in blocks.
pub const PIECE_BLOCKS_MIN: u32 = 8;

/// Blocks of READ data that are fetched for one connection at a time, or wait for a piece that goes
/// before them: how many pieces of long READs the device has at once. This bounds what the requests
/// of others find before them; a single piece may be longer.
pub const FETCH_BLOCKS: u32 = 512;

/// From this length on the map is asked for holes before a READ's data is fetched, in bytes.
pub const HOLE_READ_BYTES: u64 = 32 << 10;

/// The least that must remain shared once every buffer is placed, in blocks.
pub const SHARED_BLOCKS_MIN: u32 = 512;

/// Shared blocks that READs leave for the engines, per pool.
pub const ENGINE_MARGIN_BLOCKS: u32 = 64;

/// Requests in flight that each connection may always have.
pub const REQUESTS_GUARANTEED: usize = 16;

/// Requests in flight that one connection may have at most.
pub const REQUESTS_MAX: usize = 1024;

/// Requests in flight beyond the guaranteed ones, for all connections together.
pub const REQUESTS_SHARED: usize = 8192;

/// Volumes in one answer of the reactor to who lists them: what takes it a fraction of a millisecond.
pub const LIST_VOLUMES: usize = 256;

/// Extents in one page of differences.
pub const DIFF_EXTENTS: usize = 4096;

/// Pages of differences, and counts of what is shared, on their way at a time.
pub const WALKS: usize = 64;

/// Requests of this process in flight, where it embeds the node.
pub const LOCAL_REQUESTS: usize = 1024;

/// Engine calls for one request of this process before others get their turn.
pub const LOCAL_CALLS: usize = 64;

/// Bytes of payload that may be parked while writes wait for space, for all connections together:
/// the one memory that is not part of the arena, because it is used in full pools only.
pub const PARKED_BYTES: usize = 64 << 20;

/// Of the requests of this process in flight, how many may be such as take space: those that wait
/// for it must leave room for others.
pub const LOCAL_WRITES: usize = LOCAL_REQUESTS / 4 * 3;

/// Engine calls of one zeroing in a row, before others get their turn: a discard of a huge range.
pub const ZERO_CALLS: usize = 16;

/// Steps that a connection may take before others get their turn.
pub const TURN_STEPS: u32 = 256;

/// Bytes of a WRITE given to the engine at a time.
pub const WRITE_BYTES: usize = 64 << 10;

/// Parts of one send, kept below what the ring takes so that a header always has room.
pub const SEND_PARTS: usize = flagstone_ring::SEND_PARTS_MAX;

/// Extents in one BLOCK_STATUS reply.
pub const STATUS_EXTENTS: usize = 1000;
/// Block statuses that a connection is told in one turn: each may take as many looks into the map as 256 MiB have blocks.
pub const STATUSES_PER_TURN: u32 = 8;

/// How long clients may take to receive their last replies when the node stops, in nanoseconds.
pub const DRAIN_NS: u64 = 10_000_000_000;

/// How soon work is tried again that waits for an engine which has nothing under way, in
/// nanoseconds. It only bounds the harm of a wake-up that was missed.
pub const RETRY_NS: u64 = 10_000_000;

const _: () = {
    let header_bytes = HEADER_BLOCKS as usize * BLOCK_SIZE;
    assert!(header_bytes >= flagstone_nbd::limits::HANDSHAKE_REPLY_BYTES);
    assert!(header_bytes >= flagstone_nbd::reply::block_status_bytes(STATUS_EXTENTS));
    assert!(RECEIVE_BLOCKS as usize * BLOCK_SIZE > flagstone_nbd::limits::MAX_INPUT_BYTES);
    assert!(RESERVE_BLOCKS >= PIECE_BLOCKS_MIN);
    assert!(FETCH_BLOCKS >= 2 * PIECE_BLOCKS && FETCH_BLOCKS >= RESERVE_BLOCKS);
    assert!(PARKED_BYTES / 2 >= flagstone_nbd::limits::MAX_PAYLOAD_BYTES as usize);
    // One that is not aligned touches a block more.
    let unfragmented_blocks = flagstone_nbd::limits::MAX_UNFRAGMENTED_BYTES as usize / BLOCK_SIZE;
    assert!(RESERVE_BLOCKS as usize > unfragmented_blocks);
    assert!(WRITE_BYTES.is_multiple_of(BLOCK_SIZE) && WRITE_BYTES >= BLOCK_SIZE);
    assert!(SEND_PARTS <= flagstone_ring::SEND_PARTS_MAX);
};
