//! The reactor: one io_uring, its arena, devices, sockets, listeners and timers.
//!
//! Owned and driven by the thread that made it. The owner submits, calls
//! [`Ring::submit_and_wait`] once per round, then takes events until there are none; nothing is
//! ever called back. Invariants:
//!
//! 1. Every accepted operation ends in exactly one event.
//! 2. An operation's buffer slots are marked in the arena from its acceptance to its event.
//! 3. Nothing that the kernel may touch is unmapped or freed while an operation is under way:
//!    dropping the ring cancels and drains first, and leaks the memory if the kernel won't let go.
//! 4. The arena is the one that the ring was made with: `Arena::identity` is compared before every
//!    use, because a `&mut` can be exchanged for that of another ring.
//! 5. Submissions wait in `queue` until the next round and are never dropped; one
//!    `io_uring_enter` per round submits all of them and waits.
//!
//! It decides nothing about requests: what to submit and what an event means is the owner's.
//! No allocation after the first rounds, no lock, no blocking call besides `io_uring_enter` and,
//! at set-up and tear-down of a connection, the registration of its descriptor.

mod accept;
mod commands;
mod device_io;
mod polling;
mod setup;
mod sockets;
mod teardown;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::os::fd::RawFd;

use io_uring::{cqueue, opcode, types};
use rustix::io::Errno;

use self::accept::ListenerSlot;
use self::commands::CommandFile;
use self::device_io::RingDevice;
use self::polling::Poller;
use self::sockets::SocketSlot;
use crate::arena::Arena;
use crate::counters::Counters;
use crate::error::RingError;
use crate::event::Event;
use crate::mode::RingMode;
use crate::ops::{Op, OpTable};
use crate::spin::{SpinEstimate, SpinPolicy};
use crate::timers::{TimerId, Timers};
use crate::uring::{Completion, Submission, Uring, Wait};
use crate::wake::{MailSender, Mailbox, Waker, mailbox};

pub use self::commands::Command;
pub use self::polling::PassthroughMode;
pub use self::sockets::{SEND_PARTS_MAX, SendPart};

/// Registered files set aside for devices; sockets follow.
const DEVICES_MAX: u32 = 64;

/// Sizes of a ring, all fixed at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Submission queue entries, 1 to 32768; the kernel rounds up to a power of two. More
    /// submissions than this in one round are given to the kernel in several calls.
    pub entries: u32,
    /// 4 KiB slots in the buffer arena, at least 1: the memory that I/O in flight may use.
    pub arena_blocks: u32,
    /// When to poll before sleeping.
    pub spin: SpinPolicy,
    /// Sockets open at once, at least 1; connections beyond are closed as they arrive.
    pub max_sockets: u32,
    /// Whether devices that have commands of their own are driven by them.
    pub passthrough: PassthroughMode,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self {
            entries: 256,
            arena_blocks: 16_384,
            spin: SpinPolicy::Auto,
            max_sockets: 1024,
            passthrough: PassthroughMode::Off,
        }
    }
}

/// Two writes alone under way are nearly always the data and the journal block of one commit,
/// and only the later of them moves anything on: waking for both at once saves a wake-up of the
/// two or three that a lone small request costs. Whatever else happens counts as one of the two;
/// if the device is slow it waits for no longer than this. (A shorter limit, or
/// `min_wait_usec`, costs more than it saves where arming a timer leaves a virtual machine.)
const PAIR_WAIT_NS: u64 = 5_000_000;

/// How a submission names a file.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// Index in the registered file table.
    Fixed(u32),
    /// A descriptor that the ring owns.
    Fd(RawFd),
}

/// Builds a submission for either kind of [`Target`].
macro_rules! on_target {
    ($target:expr, $fd:ident => $entry:expr) => {
        match $target {
            Target::Fixed(index) => {
                let $fd = io_uring::types::Fixed(index);
                $entry
            }
            Target::Fd(raw) => {
                let $fd = io_uring::types::Fd(raw);
                $entry
            }
        }
    };
}
use on_target;

/// What a timer is for.
#[derive(Clone, Copy)]
enum TimerUse {
    User(u64),
    /// Try again to accept on this listener slot.
    Accept(u32),
}

/// The reactor. See the module's header for its rules.
pub struct Ring {
    // Dropped first: the kernel's side ends before the memory that it might use.
    uring: Uring,
    poller: Option<Poller>,
    passthrough: PassthroughMode,
    arena: Arena,
    arena_identity: *mut u8,
    ops: OpTable,
    /// Operations to be submitted, in order.
    queue: VecDeque<u32>,
    events: VecDeque<Event>,
    devices: Vec<RingDevice>,
    device_ops: u32,
    /// Those of them that are writes.
    device_writes: u32,
    sockets: Box<[SocketSlot]>,
    free_sockets: Vec<u32>,
    listeners: Vec<ListenerSlot>,
    command_files: Vec<CommandFile>,
    /// Their commands under way.
    commands: u32,
    timers: Timers<TimerUse>,
    waker: Waker,
    spin: SpinEstimate,
    mode: RingMode,
    counters: Counters,
    multishot_accept: bool,
    send_flags: i32,
    /// Being dropped: operations that would be submitted again end instead.
    draining: bool,
    /// `SINGLE_ISSUER` and the registered ring descriptor bind a ring to its thread.
    not_send: PhantomData<*const ()>,
}

impl Ring {
    /// Which optional facilities are in use.
    #[must_use]
    pub fn mode(&self) -> RingMode {
        self.mode
    }

    /// What the ring has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Operations accepted and not ended, the ring's own included.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.ops.busy()
    }

    /// Device commands accepted and not ended.
    #[must_use]
    pub fn device_commands_in_flight(&self) -> u32 {
        self.device_ops
    }

    /// The buffer arena.
    pub fn buffers(&mut self) -> &mut Arena {
        &mut self.arena
    }

    /// The buffer arena, to look at.
    #[must_use]
    pub fn buffers_ref(&self) -> &Arena {
        &self.arena
    }

    /// Nanoseconds of `CLOCK_MONOTONIC`, the clock of every deadline here.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        monotonic_ns()
    }

    /// A handle by which any thread can wake this ring.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// A mailbox for at most `capacity` (at least 1) messages from other threads. Each arrival is
    /// followed by [`Event::Woken`], one for many if they come close together.
    #[must_use]
    pub fn mailbox<T: Send>(&self, capacity: usize) -> (MailSender<T>, Mailbox<T>) {
        mailbox(self.waker.clone(), capacity)
    }

    /// Arms a timer: [`Event::Timer`] follows at or after `deadline_ns` of [`Ring::now_ns`].
    pub fn set_timer(&mut self, deadline_ns: u64, user: u64) -> TimerId {
        self.timers.set(deadline_ns, TimerUse::User(user))
    }

    /// Disarms a timer. Returns whether it was armed; false if its event was already queued.
    pub fn cancel_timer(&mut self, id: TimerId) -> bool {
        self.timers.cancel(id)
    }

    /// The next event of this round.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Submits everything queued, then waits until there is an event, or until `deadline_ns` of
    /// [`Ring::now_ns`], or for ever if `None`. Returns at once if events are already queued.
    ///
    /// It may return without any event: on a signal, or after a wake-up that was already reported.
    ///
    /// # Errors
    /// `Os`: `io_uring_enter` failed for a reason that does not pass. The ring is unusable.
    pub fn submit_and_wait(&mut self, deadline_ns: Option<u64>) -> Result<(), RingError> {
        if self.timers.next_deadline_ns().is_some() {
            self.fire_timers();
        }
        let result = self.fill().and_then(|()| {
            if self.events.is_empty() && self.queue.is_empty() {
                self.wait(deadline_ns)
            } else {
                self.produce()
            }
        });
        if self.waker.stay_awake() {
            self.counters.wakes += 1;
            self.events.push_back(Event::Woken);
        }
        self.reap();
        if self.timers.next_deadline_ns().is_some() {
            self.fire_timers();
        }
        result.map_err(|errno| RingError::Os { call: "io_uring_enter", errno })
    }

    /// Polls if that has lately paid, then sleeps until a completion, a wake-up or a deadline.
    fn wait(&mut self, deadline_ns: Option<u64>) -> Result<(), Errno> {
        let deadline_ns = match (deadline_ns, self.timers.next_deadline_ns()) {
            (Some(caller), Some(timer)) => Some(caller.min(timer)),
            (caller, timer) => caller.or(timer),
        };
        if self.polled_in_flight() > 0 {
            return self.look_until(deadline_ns);
        }
        let budget_ns = self.spin.budget_ns();
        if budget_ns > 0 && self.poll_for_news(budget_ns, deadline_ns)? {
            return self.produce();
        }
        let timeout_ns = deadline_ns.map(|deadline| deadline.saturating_sub(monotonic_ns()));
        if timeout_ns == Some(0) || !self.waker.fall_asleep() {
            return self.enter(Wait::No);
        }
        let pair = self.device_ops == 2 && self.device_writes == 2;
        let (completions, timeout_ns) = if pair {
            (2, Some(timeout_ns.map_or(PAIR_WAIT_NS, |ns| ns.min(PAIR_WAIT_NS))))
        } else {
            (1, timeout_ns)
        };
        self.enter(Wait::For { completions, timeout_ns })
    }

    /// Submits, and has the kernel produce completions that are ready; no system call if there is
    /// neither.
    fn produce(&mut self) -> Result<(), Errno> {
        self.look()?;
        self.produce_first()
    }

    /// The same, of the ring that everything but polled transfers is on.
    fn produce_first(&mut self) -> Result<(), Errno> {
        if self.uring.unsubmitted() == 0 && !self.uring.has_task_work() {
            return Ok(());
        }
        self.enter(Wait::No)
    }

    /// Submits, then looks for news without sleeping for up to `budget_ns`.
    fn poll_for_news(&mut self, budget_ns: u64, deadline_ns: Option<u64>) -> Result<bool, Errno> {
        self.produce()?;
        let start = monotonic_ns();
        let end = deadline_ns.unwrap_or(u64::MAX).min(start + budget_ns);
        self.counters.spins += 1;
        loop {
            let found = self.uring.has_completions()
                || self.uring.has_task_work()
                || self.waker.is_notified();
            let now = monotonic_ns();
            if found || now >= end {
                self.counters.spin_ns += now - start;
                self.counters.spins_paid += u64::from(found);
                return Ok(found);
            }
            // Reading the clock costs about as much as a look into the ring.
            for _ in 0..8 {
                std::hint::spin_loop();
            }
        }
    }

    /// One `io_uring_enter`; conditions that pass by themselves are not errors.
    fn enter(&mut self, wait: Wait) -> Result<(), Errno> {
        self.counters.enters += 1;
        self.counters.sleeps += u64::from(wait != Wait::No);
        match self.uring.enter(wait, self.device_ops == 0) {
            Err(Errno::INTR | Errno::AGAIN | Errno::BUSY) => Ok(()),
            result => result,
        }
    }

    /// Moves queued operations into the submission queue, submitting when that is full.
    fn fill(&mut self) -> Result<(), Errno> {
        self.check_arena();
        while let Some(&index) = self.queue.front() {
            let entry = self.submission(index);
            if self.is_polled(index) {
                // SAFETY: as below.
                if unsafe { self.push_polled(&entry)? } {
                    self.queue.pop_front();
                    self.counters.submissions += 1;
                    continue;
                }
                self.counters.backlogged += self.queue.len() as u64;
                return Ok(());
            }
            // SAFETY: the addresses in an entry made by `submission` are in the arena, in slots
            // marked as under way since the operation was accepted, or in the frame of a socket
            // whose slot is held until the operation ends; both marks and slot are released only
            // by `complete`, on the last completion, and `drop` drains before it unmaps.
            if unsafe { self.uring.push(&entry) } {
                self.queue.pop_front();
                self.counters.submissions += 1;
                continue;
            }
            let before = self.uring.unsubmitted();
            self.enter(Wait::No)?;
            if self.uring.unsubmitted() == before {
                // The kernel takes nothing now. Completions may make room; the next round retries.
                self.counters.backlogged += self.queue.len() as u64;
                return Ok(());
            }
        }
        Ok(())
    }

    /// The submission for an operation, built from its entry in the table.
    fn submission(&self, index: u32) -> Submission {
        let entry: Submission = match self.ops.get(index) {
            Op::Device(op) => self.device_submission(&op),
            Op::Receive { socket, buffer, from, len } => {
                self.receive_submission(socket, buffer, from, len).into()
            }
            Op::Send { socket } => self.send_submission(socket).into(),
            Op::Accept { listener } => self.accept_submission(listener).into(),
            Op::Command { file, command, .. } => self.command_submission(file, &command).into(),
            Op::Wake => opcode::PollAdd::new(types::Fd(self.waker.raw_fd()), libc::POLLIN as u32)
                .multi(true)
                .build()
                .into(),
            Op::Cancel { target } => opcode::AsyncCancel::new(target).build().into(),
        };
        entry.user_data(self.ops.user_data(index))
    }

    /// # Panics
    /// If the owner exchanged the arena for another ring's: marks and memory would not agree.
    fn check_arena(&self) {
        assert!(self.arena.identity() == self.arena_identity, "the ring's arena was exchanged");
    }

    /// Accepts an operation; it is submitted in the next round.
    fn begin(&mut self, op: Op) -> u32 {
        self.check_arena();
        let index = self.ops.take(op);
        self.queue.push_back(index);
        index
    }

    /// Asks the kernel to end an operation early.
    fn cancel(&mut self, index: u32) {
        let target = self.ops.user_data(index);
        self.begin(Op::Cancel { target });
    }

    /// Submits an operation again; false if the ring is being dropped and it ends instead.
    fn again(&mut self, index: u32) -> bool {
        if !self.draining {
            self.queue.push_back(index);
        }
        !self.draining
    }

    /// Takes all visible completions and turns them into events.
    fn reap(&mut self) {
        self.check_arena();
        let mut count = 0;
        while let Some(completion) = self.uring.next_completion() {
            count += 1;
            self.complete(&completion);
        }
        count += self.reap_polled();
        self.counters.completions += count as u64;
        if count > 0 && self.spin.is_enabled() {
            self.spin.arrived(monotonic_ns(), count);
        }
    }

    fn complete(&mut self, completion: &Completion) {
        let Some((index, op)) = self.ops.lookup(completion.user_data) else {
            self.counters.strays += 1;
            return;
        };
        let more = cqueue::more(completion.flags);
        match op {
            Op::Device(op) => self.complete_device(index, op, completion.result),
            Op::Receive { socket, buffer, from, len } => {
                self.complete_receive(index, socket, buffer, from, len, completion.result);
            }
            Op::Send { socket } => self.complete_send(index, socket, completion.result),
            Op::Accept { listener } => {
                self.complete_accept(index, listener, completion.result, more);
            }
            Op::Command { file, name, .. } => {
                self.complete_command(index, file, name, completion.result);
            }
            // The wake-up itself was seen in the waker's state; only the watch is renewed.
            Op::Wake => {
                if !more && !self.again(index) {
                    self.ops.release(index);
                }
            }
            Op::Cancel { .. } => self.ops.release(index),
        }
    }

    fn fire_timers(&mut self) {
        let now_ns = monotonic_ns();
        while let Some((id, user)) = self.timers.take_due(now_ns) {
            match user {
                TimerUse::User(user) => self.events.push_back(Event::Timer { id, user }),
                TimerUse::Accept(listener) => self.resume_accept(listener),
            }
        }
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds; without a system call where the vDSO has it.
fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
