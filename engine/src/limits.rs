//! Every bound of the engine, in one place.
//!
//! At a limit the caller waits (`Busy`) or gets a typed error; nothing grows and no request is
//! dropped. Tests and the simulator reach those that a small pool with many requests reaches, not all:
//! a million volumes, say, are in none of them.

/// Streams of user writes: blocks that will be overwritten soon, and the others.
pub const USER_STREAMS: usize = 2;
/// Pools with fewer segments than this have one such stream only.
pub const USER_STREAMS_SEGMENTS: u32 = 16;
/// Blocks of a write that goes to the stream of long-lived data whatever it replaces (64 KiB).
pub const RUN_BLOCKS: u32 = 16;
/// Blocks of one stream in one batch: past 128 KiB a device gains nothing from a longer write.
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
pub const SUMMARIES: usize = 12;
/// Read buffers of the cleaner, and the blocks of one: together what is live in a segment of 4 MiB,
/// unless it lies in small pieces.
pub const CLEAN_SPANS: usize = 16;
/// See [`CLEAN_SPANS`].
pub const CLEAN_RUN_BLOCKS: u32 = 64;
/// Those of them that are being read at a time at most: more would only hold up the reads of others.
pub const CLEAN_READS: usize = 4;
/// Dead blocks that the cleaner reads along rather than issue another read.
pub const CLEAN_GAP_BLOCKS: u32 = 8;
/// Write buffers of the cleaner, and the blocks of one: one being filled per class, and as many
/// under way.
pub const CLEAN_CHUNKS: usize = 2 * CLEAN_CLASSES;
/// See [`CLEAN_CHUNKS`].
pub const CLEAN_CHUNK_BLOCKS: u32 = 32;
/// Streams of moved blocks, by age.
pub const CLEAN_CLASSES: usize = 3;
/// Pools with fewer segments than this have one such stream only.
pub const CLEAN_CLASSES_SEGMENTS: u32 = 64;
/// Pools with fewer segments than this keep no copies of summaries.
pub const COPIES_SEGMENTS_MIN: u32 = 32;
/// Times that a damaged block is read again before it is moved as it is.
pub const CLEAN_RETRIES: u8 = 4;
/// Summary buffers that the cleaner leaves to user segments.
pub const CLEAN_SUMMARIES: usize = 2;
/// Rows of the segment table that one search for a victim looks at.
pub const CLEAN_SCAN: u32 = 8192;
/// Blocks that the cleaner copies in one step, so that it never holds up requests for long.
pub const CLEAN_STEP_BLOCKS: u32 = 64;
/// The cleaner tries to keep at least this many segments free for user writes: what it has emptied comes
/// back a few segments at a time, since each waits for all outputs that its blocks went to.
pub const CLEAN_AHEAD_SEGMENTS: u32 = 5;
/// What writers may take for what the cleaner gains is at most this many times that, and at least one
/// part in this many.
pub const PACE_RATIO_MAX: u64 = 8;
/// Blocks that writers may save up at least.
pub const PACE_BLOCKS_MIN: u64 = 64;
/// Emptied victims that wait for outputs to be sealed at most, while less than a quarter is left of what
/// the cleaner tries to keep: more than there are outputs, so that sealing these as full as they are pays.
pub const PACE_OWED_SEGMENTS: u32 = 8;
/// A cleaner that has not got on for this long holds nobody up.
pub const PACE_WAIT_NS: u64 = 1_000_000_000;
/// Without a request for this long the cleaner works ahead: longer than the pauses within a burst,
/// short enough that the pause between two is used, and by then the engine has flushed by itself.
pub const IDLE_CLEAN_NS: u64 = 1_000_000_000;
/// While less than this part of the segments is free, idle cleaning takes victims that are half
/// live, one block moved per block gained; with more free, only those that are a quarter live, so
/// that it never adds more than a third to the writes of a burst.
pub const IDLE_FREE_DIVISOR: u32 = 4;
/// A segment that was free for this long (and up to twice as long) is discarded on the device: what a
/// burst of writes takes again at once is not, which would only slow it down.
pub const DISCARD_DELAY_NS: u64 = 1_000_000_000;
/// Bytes per second that are discarded: a disk that frees the space of a deleted terabyte at once has
/// time for nothing else meanwhile.
pub const DISCARD_BYTES_PER_SECOND: u64 = 1 << 30;
/// Read buffers of a scrub, and the blocks of one.
pub const SCRUB_BUFFERS: usize = 2;
/// See [`SCRUB_BUFFERS`].
pub const SCRUB_BLOCKS: u32 = 64;
/// Places that a scrub looks at in one turn without finding anything to read.
pub const SCRUB_STEPS: usize = 256;
/// Findings that a scrub lists by name; further ones are only counted.
pub const SCRUB_FINDINGS: usize = 1000;
/// Turns that a scrub waits for a repair to begin while nothing else is under way.
pub const SCRUB_PATIENCE: u32 = 64;
/// Readers in sequence that are told apart.
pub const SCAN_STREAMS: usize = 16;
/// Shorter reads are no part of a scan: where blocks lie makes no difference to a reader that asks
/// for few at a time.
pub const SCAN_BLOCKS: u32 = 8;
/// How far from the end of the last one a read of the same scan may begin: several are under
/// way at once, and a long one comes in pieces.
pub const SCAN_GAP_BLOCKS: u64 = 256;
/// A region that anything was written to so lately may soon be written to again, which would undo
/// its rewriting.
pub const SCAN_COLD_NS: u64 = 60_000_000_000;
/// Device reads that rewriting a region of 512 blocks must save. With fewer its runs are
/// longer than 64 KiB, where a device is nearly as fast as with longer ones; and a region that was
/// just rewritten has fewer even if other writes came in between.
pub const REWRITE_RUNS: u32 = 32;
/// Regions that wait to be rewritten: 8 GiB, which takes two minutes.
pub const REWRITE_QUEUE: usize = 4096;
/// Blocks that are read and rewritten at a time. This bounds how many device reads clients
/// may find before theirs.
pub const REWRITE_BLOCKS: u32 = 64;
/// What is rewritten per second at most: a few percent of what such devices read and write.
pub const REWRITE_BYTES_PER_S: u64 = 64 << 20;
/// Rewriting takes at most one part in this many of the time: what holds on slow devices.
pub const REWRITE_DUTY: u64 = 4;
/// There is no rewriting when less than this part of the pool is left to be written: the garbage
/// that it makes costs a block moved for each rewritten one there, or more.
pub const REWRITE_ROOM_DIVISOR: u64 = 8;
/// How long rewriting waits for a pool that has no room to spare just now, and how often in a row
/// before it forgets what it was about to do.
pub const REWRITE_HOLD_NS: u64 = 1_000_000_000;
/// See [`REWRITE_HOLD_NS`].
pub const REWRITE_HOLDS: u32 = 60;
/// Metadata pages being filled or written, per chain.
pub const META_PAGES: usize = 4;
/// Maps that are looked at in one turn to switch moved blocks in them; there may be many of one image.
pub const SWITCH_STEPS: usize = 8192;
/// Leaf pages being read.
pub const LEAF_READS: usize = 16;
/// Leaves of the map that may be in memory at least.
pub const MAP_LEAVES_MIN: usize = 2;
/// Leaves that may be in memory beyond their bound and an eighth of it.
pub const LEAF_SLACK: usize = 4;
/// Write buffers for leaf pages, and the blocks of one.
pub const LEAF_CHUNKS: usize = 2;
/// See [`LEAF_CHUNKS`].
pub const LEAF_CHUNK_BLOCKS: u32 = 16;
/// A checkpoint is due after this part of what volumes map was written to the log since the last,
/// so that leaf pages cost about a sixtieth of it ...
pub const CHECKPOINT_LOG_DIVISOR: u64 = 8;
/// ... but not before this much (or a quarter of a small pool) ...
pub const CHECKPOINT_LOG_BYTES_MIN: u64 = 1 << 30;
/// ... and after this much at the latest, which bounds what recovery reads.
pub const CHECKPOINT_LOG_BYTES_MAX: u64 = 16 << 30;
/// Blocks one discard or write-zeroes record may cover (1 GiB), so that applying it is short.
pub const ZERO_BLOCKS: u64 = 1 << 18;
/// Shrinks of volumes under way.
pub const SHRINKS: usize = 16;
/// Discards that a shrink logs in one turn.
pub const SHRINK_RECORDS: usize = 4;
/// Leaves released per step of a background reclaim.
pub const RECLAIM_LEAVES: usize = 16;
/// Volumes in a pool.
pub const VOLUMES: usize = 1 << 20;
/// Bytes of a volume name.
pub const NAME_BYTES: usize = 128;
/// How long a request that was taken waits for space, in nanoseconds.
pub const FULL_WAIT_NS: u64 = 60_000_000_000;
/// Largest volume: what a 40-bit block address of a segment entry can name (4 PiB).
pub const VOLUME_BYTES: u64 = 1 << 52;
/// As [`VOLUME_BYTES`], in blocks.
pub const VOLUME_BLOCKS: u64 = VOLUME_BYTES / flagstone_block::BLOCK_SIZE as u64;

/// Smallest device a pool fits on.
pub const POOL_BYTES_MIN: u64 = 64 << 20;
/// Segments that a new pool has at least: with fewer, metadata, its reserve and the cleaner's
/// would leave nothing for volumes.
pub const SEGMENTS_MIN: u32 = 10;
/// Segment sizes that a pool may be formatted with.
pub const SEGMENT_BYTES_MIN: u32 = 1 << 20;
/// See [`SEGMENT_BYTES_MIN`].
pub const SEGMENT_BYTES_MAX: u32 = 64 << 20;
/// Furthest apart that the LSNs of two blocks of one segment may be: they are written as 32-bit
/// deltas.
pub const LSN_SPAN: u64 = u32::MAX as u64 - 64;
/// Journal ring: 1/128 of the pool between these two, in blocks.
pub const JOURNAL_BLOCKS_MIN: u32 = 2048;
/// See [`JOURNAL_BLOCKS_MIN`].
pub const JOURNAL_BLOCKS_MAX: u32 = 16384;
/// Journal slots that only the engine's own records may take, so that a full ring can always be
/// emptied.
pub const JOURNAL_RESERVE: u64 = 64;
/// Of these, blocks that nothing but the tail's move may take.
pub const JOURNAL_TAILS: u64 = 4;

/// The engine flushes by itself this long after the first write that no flush covers.
pub const SELF_FLUSH_NS: u64 = 1_000_000_000;
/// The engine flushes by itself after this much log, which bounds the unproven tail that
/// recovery has to read.
pub const SELF_FLUSH_BYTES: u64 = 64 << 20;

const _: () = assert!(BATCHES_EAGER < BATCHES);
// Those of the open segments, a victim's, an output's per class and the one being sealed, and
// those left to users.
const _: () = assert!(SUMMARIES >= USER_STREAMS + 1 + CLEAN_CLASSES + 1 + CLEAN_SUMMARIES);
const _: () = assert!(CLEAN_READS <= CLEAN_SPANS);
const _: () = assert!(READ_BLOCKS >= BATCH_BLOCKS);
const _: () = assert!(READ_BLOCKS >= REWRITE_BLOCKS);
const _: () = assert!(JOURNAL_BLOCKS_MIN as u64 > 4 * JOURNAL_RESERVE);
