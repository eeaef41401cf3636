//! Making a ring: sizes checked, memory mapped, facilities registered or done without.

use std::collections::VecDeque;
use std::marker::PhantomData;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::polling::PassthroughMode;
use super::sockets::SocketSlot;
use super::{DEVICES_MAX, Ring, RingConfig};
use crate::arena::Arena;
use crate::counters::Counters;
use crate::error::RingError;
use crate::mode::{BufferMode, RingMode};
use crate::ops::{Op, OpTable};
use crate::spin::SpinEstimate;
use crate::timers::Timers;
use crate::uring::{ATTEMPTS, Attempt, Shape, Uring, errno_of};
use crate::wake::Waker;

/// `MSG_NOSIGNAL`: a peer that is gone is an error, not `SIGPIPE`. `MSG_WAITALL`: the kernel itself
/// continues short sends where it can (`io_uring_prep_send(3)`).
const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
/// The largest submission queue (`IORING_MAX_ENTRIES` in the kernel).
const ENTRIES_MAX: u32 = 32_768;
/// The longest run of memory that one registered buffer may cover (`io_uring_register(2)`).
const REGISTERED_BYTES_MAX: usize = 1 << 30;
/// A registered buffer's index is this many bits of the slot number away.
pub(super) const REGISTERED_SLOT_BITS: u32 = 18;
const _: () = assert!(flagstone_block::BLOCK_SIZE << REGISTERED_SLOT_BITS == REGISTERED_BYTES_MAX);

impl Ring {
    /// Makes a ring for the calling thread, which must be the one that drives it.
    ///
    /// # Errors
    /// See [`RingError`]. Facilities with a substitute (registration, deferred task work, huge
    /// pages) never fail it; [`Ring::mode`] tells what came of them.
    pub fn new(config: RingConfig) -> Result<Self, RingError> {
        Self::build(config, ATTEMPTS)
    }

    /// As [`Ring::new`], with only some of the ways to set up the io_uring.
    pub(super) fn build(config: RingConfig, attempts: &[Attempt]) -> Result<Self, RingError> {
        for (what, value, max) in [
            ("entries", config.entries, ENTRIES_MAX),
            ("arena_blocks", config.arena_blocks, u32::MAX >> 1),
            ("max_sockets", config.max_sockets, 1 << 20),
        ] {
            if value == 0 || value > max {
                return Err(RingError::OutOfRange { what, value: u64::from(value) });
            }
        }
        // Room for what is usually under way at once; more is kept by the kernel, not lost
        // (IORING_FEAT_NODROP).
        let cq_entries = (config.entries * 4).clamp(1024, 2 * ENTRIES_MAX);
        let wide = config.passthrough != PassthroughMode::Off;
        let shapes: &[Shape] = if wide { &[Shape::Wide, Shape::Narrow] } else { &[Shape::Narrow] };
        let mut made = Err(RingError::Os { call: "io_uring_setup", errno: Errno::INVAL });
        for &shape in shapes {
            // Before Linux 5.19 there are none that are wide.
            if matches!(made, Err(RingError::Os { errno: Errno::INVAL, .. })) {
                made =
                    with_locked_memory(|| Uring::new(config.entries, cq_entries, shape, attempts));
            }
        }
        let (uring, setup) = made?;
        let arena = Arena::new(config.arena_blocks).map_err(|error| RingError::Memory {
            bytes: u64::from(config.arena_blocks) << flagstone_block::BLOCK_BITS,
            errno: errno_of(&error),
        })?;
        let buffers = register_arena(&uring, &arena);
        // With commands of their own devices have two files each.
        let more = if setup.wide { DEVICES_MAX } else { 0 };
        let wanted = DEVICES_MAX + config.max_sockets + more;
        let registered_files = register_file_table(&uring, wanted);
        let waker = Waker::new().map_err(|errno| RingError::Os { call: "eventfd", errno })?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = SpinEstimate::new(config.spin, cores);
        let mode = RingMode {
            task_run: setup.task_run,
            no_sq_array: setup.no_sq_array,
            registered_ring_fd: setup.registered_ring_fd,
            buffers,
            registered_files,
            huge_pages: arena.huge_pages(),
            spins: spin.is_enabled(),
            wide: setup.wide,
            sq_entries: setup.sq_entries,
            cq_entries: setup.cq_entries,
            arena_bytes: u64::from(config.arena_blocks) << flagstone_block::BLOCK_BITS,
        };
        // A round's worth of operations; both grow with use and then stay.
        let operations = (config.entries as usize * 4).max(1024);
        let mut ring = Self {
            uring,
            poller: None,
            passthrough: config.passthrough,
            arena_identity: arena.identity(),
            arena,
            ops: OpTable::with_capacity(operations),
            queue: VecDeque::with_capacity(operations),
            events: VecDeque::with_capacity(operations),
            devices: Vec::new(),
            device_ops: 0,
            device_writes: 0,
            sockets: (0..config.max_sockets).map(|_| SocketSlot::default()).collect(),
            free_sockets: (0..config.max_sockets).rev().collect(),
            listeners: Vec::new(),
            command_files: Vec::new(),
            commands: 0,
            timers: Timers::with_capacity(64),
            waker,
            spin,
            mode,
            counters: Counters::default(),
            multishot_accept: true,
            send_flags: SEND_FLAGS,
            draining: false,
            not_send: PhantomData,
        };
        ring.begin(Op::Wake);
        Ok(ring)
    }
}

/// Sets up a ring whose memory counts as locked (`io_uring_setup(2)`, `ENOMEM`): if the soft limit
/// forbids it, once more with the hard one.
fn with_locked_memory<T>(mut setup: impl FnMut() -> Result<T, RingError>) -> Result<T, RingError> {
    let short = |result: &Result<T, RingError>| {
        matches!(result, Err(RingError::Os { call: "io_uring_setup", errno: Errno::NOMEM }))
    };
    let mut result = setup();
    if short(&result) && raise_memlock() {
        result = setup();
    }
    if short(&result) {
        let limit_bytes = getrlimit(Resource::Memlock).maximum;
        return Err(RingError::LockedMemory { limit_bytes });
    }
    result
}

/// Registers the arena in pieces of at most 1 GiB. On `ENOMEM` the soft limit of locked memory is
/// raised to the hard one and it is tried once more (`io_uring_register(2)`, `RLIMIT_MEMLOCK`).
pub(super) fn register_arena(uring: &Uring, arena: &Arena) -> BufferMode {
    let (base, len) = arena.whole();
    let pieces: Vec<libc::iovec> = (0..len)
        .step_by(REGISTERED_BYTES_MAX)
        .map(|from| libc::iovec {
            iov_base: base.wrapping_add(from).cast(),
            iov_len: (len - from).min(REGISTERED_BYTES_MAX),
        })
        .collect();
    let register = || {
        // SAFETY: the pieces lie in the arena's mapping, which outlives the ring: the ring's
        // fields are dropped after the io_uring, and a mapping that can't be drained is leaked.
        unsafe { uring.submitter().register_buffers(&pieces) }
    };
    let mut result = register();
    if result.as_ref().is_err_and(|error| errno_of(error) == Errno::NOMEM) && raise_memlock() {
        result = register();
    }
    match result {
        Ok(()) => BufferMode::Registered,
        Err(error) => BufferMode::Unregistered { errno: errno_of(&error) },
    }
}

/// Raises the soft limit of locked memory to the hard limit; whether that changed anything.
fn raise_memlock() -> bool {
    let limit = getrlimit(Resource::Memlock);
    limit.current != limit.maximum
        && setrlimit(Resource::Memlock, Rlimit { current: limit.maximum, maximum: limit.maximum })
            .is_ok()
}

/// An empty registered file table of up to `wanted` entries, fewer where `RLIMIT_NOFILE` forbids
/// (`io_uring_register(2)`, `EMFILE`), none where the kernel doesn't offer it. Files beyond its end
/// are used by descriptor.
fn register_file_table(uring: &Uring, wanted: u32) -> u32 {
    let mut entries = wanted;
    while entries >= DEVICES_MAX {
        match uring.submitter().register_files_sparse(entries) {
            Ok(()) => return entries,
            Err(error) if errno_of(&error) == Errno::MFILE => entries /= 2,
            Err(_) => return 0,
        }
    }
    0
}
