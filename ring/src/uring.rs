//! The io_uring instance: set-up with fall-backs, submission, and the one system call.
//!
//! Facts used (`io_uring_setup(2)`, `io_uring_enter(2)`, `io_uring_register(2)`):
//! - `SINGLE_ISSUER | DEFER_TASKRUN`: completions are produced only inside `io_uring_enter` with
//!   `GETEVENTS`, by the one thread that made the ring.
//! - `TASKRUN_FLAG`: a bit in the submission ring tells, without a system call, that such work waits.
//! - `SUBMIT_ALL`: one refused submission does not hold back those behind it.
//! - `NO_SQARRAY`: submissions are consumed in ring order, without an index array.
//! - A registered ring descriptor spares the descriptor look-up of each `io_uring_enter`.
//!
//! Deliberately no SQPOLL: its kernel thread competes for the cores that the engine needs.
//! This module does not know what the operations mean: see `ops` and `ring`.

use std::os::fd::{AsRawFd, RawFd};

use io_uring::{Builder, EnterFlags, IoUring, cqueue, squeue, types};
use rustix::io::Errno;

use crate::error::RingError;

/// `IORING_REGISTER_RING_FDS` in `linux/io_uring.h`.
const REGISTER_RING_FDS: libc::c_uint = 20;

/// How the kernel runs the second half of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskRun {
    /// Only when this thread asks for completions (`DEFER_TASKRUN`).
    Deferred,
    /// At any system call of this thread, without interrupting it (`COOP_TASKRUN`).
    Cooperative,
    /// Whenever an operation finishes, interrupting this thread.
    Interrupting,
}

/// What the kernel accepted at set-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    pub task_run: TaskRun,
    pub no_sq_array: bool,
    pub registered_ring_fd: bool,
    /// Takes submissions of 128 bytes.
    pub wide: bool,
    pub sq_entries: u32,
    pub cq_entries: u32,
}

/// The least and the most that one `io_uring_enter` should wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Submit, produce the completions that are ready, return.
    No,
    /// Until this many completions exist (at least 1), or this many nanoseconds have passed.
    For { completions: u32, timeout_ns: Option<u64> },
}

/// `struct io_uring_getevents_arg` of `linux/io_uring.h`.
#[repr(C)]
struct GetEventsArg {
    sigmask: u64,
    sigmask_size: u32,
    min_wait_usec: u32,
    timespec: u64,
}

/// `struct io_uring_rsrc_update` of `linux/io_uring.h`.
#[repr(C)]
struct ResourceUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// The queues, with entries of either size.
enum Queues {
    Narrow(IoUring),
    /// `SQE128 | CQE32`, which passthrough asks for.
    Wide(IoUring<squeue::Entry128, cqueue::Entry32>),
}

/// A submission of either size. Large ones are for wide rings only.
#[derive(Clone)]
pub(crate) enum Submission {
    Small(squeue::Entry),
    Large(squeue::Entry128),
}

impl Submission {
    pub(crate) fn user_data(self, user_data: u64) -> Self {
        match self {
            Self::Small(entry) => Self::Small(entry.user_data(user_data)),
            Self::Large(entry) => Self::Large(entry.user_data(user_data)),
        }
    }
}

impl From<squeue::Entry> for Submission {
    fn from(entry: squeue::Entry) -> Self {
        Self::Small(entry)
    }
}

/// A completion, whatever its size was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub user_data: u64,
    pub result: i32,
    pub flags: u32,
}

/// What kind of ring is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Narrow,
    Wide,
    /// Wide, and completions are polled for (`IORING_SETUP_IOPOLL`).
    Polled,
}

/// Does the same with the queues of either kind.
macro_rules! either {
    ($queues:expr, $ring:ident => $what:expr) => {
        match $queues {
            Queues::Narrow($ring) => $what,
            Queues::Wide($ring) => $what,
        }
    };
}

pub(crate) struct Uring {
    queues: Queues,
    /// Index of the registered ring descriptor, for this thread.
    registered: Option<u32>,
    no_iowait: bool,
}

/// One way to set up a ring: how completions are produced, and whether without an index array.
pub(crate) type Attempt = (TaskRun, bool);

/// All ways, best first.
pub(crate) const ATTEMPTS: &[Attempt] = &[
    (TaskRun::Deferred, true),
    (TaskRun::Deferred, false),
    (TaskRun::Cooperative, false),
    (TaskRun::Interrupting, false),
];

fn prepare<S: squeue::EntryMarker, C: cqueue::EntryMarker>(
    builder: &mut Builder<S, C>,
    cq_entries: u32,
    task_run: TaskRun,
    no_sq_array: bool,
) {
    builder.setup_clamp().setup_cqsize(cq_entries).dontfork();
    match task_run {
        TaskRun::Deferred => {
            builder.setup_single_issuer().setup_defer_taskrun();
            builder.setup_taskrun_flag().setup_submit_all();
        }
        TaskRun::Cooperative => {
            builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
        }
        TaskRun::Interrupting => {}
    }
    if no_sq_array {
        builder.setup_no_sqarray();
    }
}

impl Uring {
    /// Makes a ring in the first way that this kernel takes.
    pub(crate) fn new(
        entries: u32,
        cq_entries: u32,
        shape: Shape,
        attempts: &[Attempt],
    ) -> Result<(Self, Setup), RingError> {
        let mut refused = Errno::INVAL;
        for &(task_run, no_sq_array) in attempts {
            let built = match shape {
                Shape::Narrow => {
                    let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
                    prepare(&mut builder, cq_entries, task_run, no_sq_array);
                    builder.build(entries).map(Queues::Narrow)
                }
                Shape::Wide | Shape::Polled => {
                    let mut builder = IoUring::<squeue::Entry128, cqueue::Entry32>::builder();
                    prepare(&mut builder, cq_entries, task_run, no_sq_array);
                    if shape == Shape::Polled {
                        builder.setup_iopoll();
                    }
                    builder.build(entries).map(Queues::Wide)
                }
            };
            match built {
                Ok(queues) => return Self::finish(queues, task_run, no_sq_array),
                Err(error) => match errno_of(&error) {
                    // An unknown flag; the next attempt asks for less.
                    Errno::INVAL => refused = Errno::INVAL,
                    errno @ (Errno::NOSYS | Errno::PERM | Errno::ACCESS) => {
                        return Err(RingError::Unavailable { errno });
                    }
                    errno => return Err(RingError::Os { call: "io_uring_setup", errno }),
                },
            }
        }
        Err(RingError::Os { call: "io_uring_setup", errno: refused })
    }

    fn finish(
        queues: Queues,
        task_run: TaskRun,
        no_sq_array: bool,
    ) -> Result<(Self, Setup), RingError> {
        let params = either!(&queues, ring => ring.params());
        for (present, feature) in [
            (params.is_feature_ext_arg(), "IORING_FEAT_EXT_ARG"),
            (params.is_feature_nodrop(), "IORING_FEAT_NODROP"),
            (params.is_feature_submit_stable(), "IORING_FEAT_SUBMIT_STABLE"),
            (params.is_feature_fast_poll(), "IORING_FEAT_FAST_POLL"),
            (params.is_feature_linked_file(), "IORING_FEAT_LINKED_FILE"),
        ] {
            if !present {
                return Err(RingError::KernelTooOld { feature });
            }
        }
        let no_iowait = params.is_feature_no_iowait();
        let (sq_entries, cq_entries) = (params.sq_entries(), params.cq_entries());
        let registered = register_ring_fd(either!(&queues, ring => ring.as_raw_fd()));
        let setup = Setup {
            task_run,
            no_sq_array,
            registered_ring_fd: registered.is_some(),
            wide: matches!(queues, Queues::Wide(_)),
            sq_entries,
            cq_entries,
        };
        Ok((Self { queues, registered, no_iowait }, setup))
    }

    /// The ring's registration calls.
    pub(crate) fn submitter(&self) -> io_uring::Submitter<'_> {
        either!(&self.queues, ring => ring.submitter())
    }

    /// The ring's descriptor.
    pub(crate) fn raw_fd(&self) -> RawFd {
        either!(&self.queues, ring => ring.as_raw_fd())
    }

    /// Queues one submission; false if the queue is full.
    ///
    /// # Safety
    /// Every address in `entry` must stay valid, and what the kernel writes must be borrowed by
    /// nobody, until the last completion with its `user_data` has been taken from this ring.
    pub(crate) unsafe fn push(&mut self, submission: &Submission) -> bool {
        // SAFETY: the caller's promise is the one that `push` asks for.
        unsafe {
            match (&mut self.queues, submission) {
                (Queues::Narrow(ring), Submission::Small(entry)) => {
                    ring.submission().push(entry).is_ok()
                }
                (Queues::Wide(ring), Submission::Small(entry)) => {
                    ring.submission().push(&squeue::Entry128::from(entry.clone())).is_ok()
                }
                (Queues::Wide(ring), Submission::Large(entry)) => {
                    ring.submission().push(entry).is_ok()
                }
                (Queues::Narrow(_), Submission::Large(_)) => {
                    unreachable!("large submissions are made for wide rings")
                }
            }
        }
    }

    /// Submissions that the kernel has not taken yet.
    pub(crate) fn unsubmitted(&mut self) -> u32 {
        either!(&mut self.queues, ring => ring.submission().len() as u32)
    }

    /// The next completion that is visible without a system call.
    pub(crate) fn next_completion(&mut self) -> Option<Completion> {
        either!(&mut self.queues, ring => ring.completion().next().map(|entry| Completion {
            user_data: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        }))
    }

    /// Whether a completion is visible without a system call.
    pub(crate) fn has_completions(&mut self) -> bool {
        either!(&mut self.queues, ring => !ring.completion().is_empty())
    }

    /// Whether [`Uring::enter`] would produce completions without waiting. Always false where the
    /// kernel produces them by itself.
    pub(crate) fn has_task_work(&mut self) -> bool {
        either!(&mut self.queues, ring => {
            let queue = ring.submission();
            queue.taskrun() || queue.cq_overflow()
        })
    }

    /// Submits everything queued and produces completions; waits as told.
    ///
    /// A time-out is not an error. `idle` says that only sockets and wake-ups are awaited, which
    /// must not be accounted to the processor as waiting for I/O (`io_uring_enter(2)`,
    /// `IORING_ENTER_NO_IOWAIT`).
    ///
    /// # Errors
    /// `EINTR`, `EAGAIN` and `EBUSY` are passing: what was queued stays queued.
    pub(crate) fn enter(&mut self, wait: Wait, idle: bool) -> Result<(), Errno> {
        let to_submit = self.unsubmitted();
        let mut flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        if idle && self.no_iowait {
            flags |= EnterFlags::NO_IOWAIT;
        }
        let (min_complete, timeout_ns) = match wait {
            Wait::No => (0, None),
            Wait::For { completions, timeout_ns } => (completions, timeout_ns),
        };
        let timespec = timeout_ns.map(|ns| {
            types::Timespec::new().sec(ns / 1_000_000_000).nsec((ns % 1_000_000_000) as u32)
        });
        let arg = GetEventsArg {
            sigmask: 0,
            sigmask_size: 0,
            min_wait_usec: 0,
            timespec: timespec.as_ref().map_or(0, |timespec| std::ptr::from_ref(timespec) as u64),
        };
        let fd = match self.registered {
            Some(index) => {
                flags |= EnterFlags::REGISTERED_RING;
                index as libc::c_int
            }
            None => self.raw_fd(),
        };
        // SAFETY: `arg` and the timespec that it points to outlive the call, which only reads
        // them; what the queued submissions point to is the promise made at `push`.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                fd,
                to_submit,
                min_complete as libc::c_uint,
                flags.bits(),
                std::ptr::from_ref(&arg),
                size_of::<GetEventsArg>(),
            )
        };
        match result {
            0.. => Ok(()),
            _ => match errno_of(&std::io::Error::last_os_error()) {
                Errno::TIME => Ok(()),
                errno => Err(errno),
            },
        }
    }
}

/// Registers the ring's own descriptor for this thread; `None` where the kernel doesn't offer it.
fn register_ring_fd(ring: RawFd) -> Option<u32> {
    let mut update = ResourceUpdate { offset: u32::MAX, reserved: 0, data: ring as u64 };
    // SAFETY: `update` is one `struct io_uring_rsrc_update`, as REGISTER_RING_FDS with a count of
    // 1 expects, and outlives the call, which writes the index into `offset`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring,
            REGISTER_RING_FDS,
            std::ptr::from_mut(&mut update),
            1 as libc::c_uint,
        )
    };
    (result == 1).then_some(update.offset)
}

/// The number behind a system call's error; `EIO` if the library gave none.
pub(crate) fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}
