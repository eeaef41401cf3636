//! Polled transfers: a second io_uring whose completions are looked for instead of awaited.
//!
//! A ring made to poll (`IORING_SETUP_IOPOLL`) takes nothing but transfers of devices with queues for that, so
//! sockets, timers and flushes stay on the first one. While polled transfers are under way the reactor can't sleep: it looks
//! at both rings in turn. That costs a processor, so it is done only while there are many of them, or where it was
//! asked for: see [`PassthroughMode`].

use rustix::io::Errno;

use std::os::fd::{AsRawFd, BorrowedFd};

use super::setup::register_arena;
use super::{DEVICES_MAX, Ring, Target};
use crate::arena::Arena;
use crate::device::DataPath;
use crate::error::RingError;
use crate::mode::BufferMode;
use crate::uring::{ATTEMPTS, Shape, Submission, Uring, Wait, errno_of};

/// Transfers under way from which on polling pays, if it is left to the ring.
const DEPTH_MIN: u32 = 4;

/// Whether a ring drives devices by commands of their own, and how it learns that they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PassthroughMode {
    /// It does not.
    #[default]
    Off,
    /// By interrupts.
    Interrupts,
    /// Polls while several transfers are under way, if [`crate::SpinPolicy`] allows to poll at all.
    Adaptive,
    /// Polls for every transfer.
    Polled,
}

/// The second ring.
pub(super) struct Poller {
    uring: Uring,
    pub(super) buffers: BufferMode,
    in_flight: u32,
}

impl Poller {
    fn new(first: &Uring, entries: u32, arena: &Arena) -> Result<Self, RingError> {
        let (uring, _) = Uring::new(entries, entries * 4, Shape::Polled, ATTEMPTS)?;
        let table = uring.submitter().register_files_sparse(2 * DEVICES_MAX);
        table.map_err(|e| RingError::Os { call: "io_uring_register", errno: errno_of(&e) })?;
        // The kernel has the arena's pages already (Linux 6.12); otherwise they are counted twice.
        let buffers = match uring.submitter().register_buffers_clone(first.raw_fd()) {
            Ok(()) => BufferMode::Registered,
            Err(_) => register_arena(&uring, arena),
        };
        Ok(Self { uring, buffers, in_flight: 0 })
    }

    /// Makes the files of a device known: the one that takes its commands, and its block device, which is held for as long as one of
    /// them is under way (see [`super::device_io`]). The first one's place; `None` if that can't be.
    pub(super) fn add(
        &mut self,
        device: u32,
        commands: BorrowedFd<'_>,
        block: BorrowedFd<'_>,
    ) -> Option<Target> {
        let submitter = self.uring.submitter();
        submitter.register_files_update(device, &[block.as_raw_fd()]).ok()?;
        let place = DEVICES_MAX + device;
        submitter.register_files_update(place, &[commands.as_raw_fd()]).ok()?;
        Some(Target::Fixed(place))
    }

    /// Lets go of a device's files.
    pub(super) fn remove(&mut self, device: u32) {
        for place in [device, DEVICES_MAX + device] {
            let _ = self.uring.submitter().register_files_update(place, &[-1]);
        }
    }
}

impl Ring {
    /// Makes the second ring, if there is none. `None` if that can't be had: interrupts do as well.
    pub(super) fn poller(&mut self) -> Option<&mut Poller> {
        if self.poller.is_none() {
            match Poller::new(&self.uring, self.mode.sq_entries, &self.arena) {
                Ok(poller) => self.poller = Some(poller),
                Err(error) => tracing::warn!(%error, "no ring that polls; interrupts are used"),
            }
        }
        self.poller.as_mut()
    }

    /// Whether a transfer that is about to be begun is to be polled for.
    pub(super) fn polls_for(&self, path: DataPath) -> bool {
        path == DataPath::PolledPassthrough
            && match self.passthrough {
                PassthroughMode::Polled => true,
                PassthroughMode::Adaptive => self.device_ops >= DEPTH_MIN && self.spin.is_enabled(),
                PassthroughMode::Off | PassthroughMode::Interrupts => false,
            }
    }

    /// Polled transfers that the kernel has, or is about to be given.
    pub(super) fn polled_in_flight(&self) -> u32 {
        self.poller.as_ref().map_or(0, |poller| poller.in_flight)
    }

    /// Queues a polled transfer; false if there is no room now.
    ///
    /// # Safety
    /// As of [`Uring::push`].
    pub(super) unsafe fn push_polled(&mut self, submission: &Submission) -> Result<bool, Errno> {
        for _ in 0..2 {
            let poller = self.poller.as_mut().expect("polled transfers have a ring");
            // SAFETY: the caller's promise.
            if unsafe { poller.uring.push(submission) } {
                poller.in_flight += 1;
                return Ok(true);
            }
            self.look()?;
        }
        Ok(false)
    }

    /// Submits what is queued on the second ring, and has the kernel look once for what has ended.
    pub(super) fn look(&mut self) -> Result<(), Errno> {
        let Some(poller) = self.poller.as_mut().filter(|poller| poller.in_flight > 0) else {
            return Ok(());
        };
        self.counters.enters += 1;
        match poller.uring.enter(Wait::No, false) {
            Err(Errno::INTR | Errno::AGAIN | Errno::BUSY) => Ok(()),
            result => result,
        }
    }

    /// Looks at both rings in turn until there is news, or until `deadline_ns`.
    pub(super) fn look_until(&mut self, deadline_ns: Option<u64>) -> Result<(), Errno> {
        self.produce_first()?;
        loop {
            self.look()?;
            let polled = self.poller.as_mut().is_some_and(|poller| poller.uring.has_completions());
            let news = polled
                || self.uring.has_completions()
                || self.uring.has_task_work()
                || self.waker.is_notified();
            if news || deadline_ns.is_some_and(|deadline| super::monotonic_ns() >= deadline) {
                return self.produce_first();
            }
            std::hint::spin_loop();
        }
    }

    /// Takes what has ended on the second ring.
    pub(super) fn reap_polled(&mut self) -> usize {
        let mut count = 0;
        while let Some(poller) = self.poller.as_mut()
            && let Some(completion) = poller.uring.next_completion()
        {
            poller.in_flight -= 1;
            count += 1;
            self.complete(&completion);
        }
        count
    }

    /// Gives up what the second ring has registered; see `teardown`.
    pub(super) fn release_poller(&mut self) {
        if let Some(poller) = &self.poller {
            let _ = poller.uring.submitter().unregister_files();
            let _ = poller.uring.submitter().unregister_buffers();
        }
    }
}
