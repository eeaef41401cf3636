//! Every bound of the engine, in one place.
//!
//! At a limit the caller waits (`Busy`) or gets a typed error; nothing grows and nothing is
//! dropped. Each bound is reached by a test.

/// Blocks of data in one batch: past 128 KiB a device gains nothing from a longer write.
pub const BATCH_BLOCKS: u32 = 32;
/// A batch of this size leaves at once while fewer than [`BATCHES_EAGER`] are in flight.
pub const BATCH_BLOCKS_EAGER: u32 = 8;
/// Batches being filled or written. More in flight only lengthens the queue in the device.
pub const BATCHES: usize = 16;
/// While fewer batches than this are in flight a batch leaves at once, full or not; beyond it,
/// waiting for company costs no latency because the device is busy anyway.
pub const BATCHES_EAGER: usize = 4;
/// Records of one batch; the journal block is usually full first.
pub const BATCH_RECORDS: usize = 128;
/// Read requests under way.
pub const READS: usize = 1024;
/// Blocks of one read request.
pub const READ_BLOCKS: u32 = 256;
/// Read-modify-write requests under way, each holding one guarded block.
pub const RMWS: usize = 64;
/// Flush and FUA requests waiting for a device flush.
pub const FLUSH_WAITERS: usize = 4096;
/// Summaries under construction or being written.
pub const SUMMARIES: usize = 4;
/// Metadata pages being filled or written, per chain.
pub const META_PAGES: usize = 4;
/// Blocks one discard or write-zeroes record may cover (1 GiB), so that applying it is short.
pub const ZERO_BLOCKS: u64 = 1 << 18;
/// Leaves released per step of a background reclaim.
pub const RECLAIM_LEAVES: usize = 16;
/// Volumes in a pool.
pub const VOLUMES: usize = 1 << 20;
/// Bytes of a volume name.
pub const NAME_BYTES: usize = 128;
/// Largest volume: what a 40-bit block address of a segment entry can name (4 PiB).
pub const VOLUME_BYTES: u64 = 1 << 52;

/// Smallest device a pool fits on.
pub const POOL_BYTES_MIN: u64 = 64 << 20;
/// Segment sizes that a pool may be formatted with.
pub const SEGMENT_BYTES_MIN: u32 = 1 << 20;
/// See [`SEGMENT_BYTES_MIN`].
pub const SEGMENT_BYTES_MAX: u32 = 64 << 20;
/// Journal ring: 1/128 of the pool between these two, in blocks.
pub const JOURNAL_BLOCKS_MIN: u32 = 2048;
/// See [`JOURNAL_BLOCKS_MIN`].
pub const JOURNAL_BLOCKS_MAX: u32 = 16384;
/// Journal slots that only the engine's own records may take, so that a full ring can always be
/// emptied.
pub const JOURNAL_RESERVE: u64 = 64;

/// The engine flushes by itself this long after the first write that no flush covers.
pub const SELF_FLUSH_NS: u64 = 1_000_000_000;
/// The engine flushes by itself after this much log, which bounds the unproven tail that
/// recovery has to read.
pub const SELF_FLUSH_BYTES: u64 = 64 << 20;

const _: () = assert!(BATCHES_EAGER < BATCHES);
const _: () = assert!(READ_BLOCKS >= BATCH_BLOCKS);
const _: () = assert!(JOURNAL_BLOCKS_MIN as u64 > 4 * JOURNAL_RESERVE);
