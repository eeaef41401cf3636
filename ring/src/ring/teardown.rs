//! Dropping a ring: nothing is unmapped while the kernel may still use it.
//!
//! Sockets are shut down and every operation is asked to end; then completions are taken until
//! none is missing, but for commands of drivers, which touch nothing of the ring's (see `commands`). Commands to a
//! device that hangs can't be cancelled, so the wait has an end: after it, the memory they may touch is leaked rather
//! than given back.

use rustix::net::Shutdown;

use super::{Ring, monotonic_ns};
use crate::ops::Op;
use crate::uring::Wait;

/// How long a drop waits for the kernel, in nanoseconds.
const DRAIN_MAX_NS: u64 = 10_000_000_000;
/// One wait; a completion ends it sooner.
const DRAIN_STEP_NS: u64 = 100_000_000;
/// The same while there is something to be polled for.
const POLL_STEP_NS: u64 = 1_000_000;

impl Drop for Ring {
    fn drop(&mut self) {
        // With another ring's arena in place of its own, this ring can neither drain into it nor
        // unmap it.
        let own_arena = self.arena.identity() == self.arena_identity;
        if !own_arena || !self.drain() {
            tracing::error!(
                operations = self.ops.busy(),
                "the kernel did not end all operations; their memory is kept until exit"
            );
            self.arena.leak();
            std::mem::forget(std::mem::take(&mut self.sockets));
            return;
        }
        // Closing the ring would release these too, but some time later, in the kernel's own time:
        // a device would stay locked and memory accounted after this returns. Not having registered
        // them is the only way for this to fail.
        self.release_poller();
        let _ = self.uring.submitter().unregister_files();
        let _ = self.uring.submitter().unregister_buffers();
    }
}

impl Ring {
    /// Ends every operation; false if some did not end in time.
    fn drain(&mut self) -> bool {
        self.draining = true;
        // Never given to the kernel, so they simply end.
        while let Some(index) = self.queue.pop_front() {
            self.commands -= u32::from(matches!(self.ops.get(index), Op::Command { .. }));
            self.ops.release(index);
        }
        for slot in &self.sockets {
            if let Some(socket) = &slot.open {
                // A connection that the peer has reset is not connected any more; same result.
                let _ = rustix::net::shutdown(&socket.fd, Shutdown::Both);
            }
        }
        let under_way: Vec<u64> = self
            .ops
            .iter()
            // What is polled for can't be asked to end, and does soon.
            .filter(|&(index, op)| !matches!(op, Op::Command { .. }) && !self.is_polled(index))
            .map(|(index, _)| self.ops.user_data(index))
            .collect();
        for target in under_way {
            self.begin(Op::Cancel { target });
        }
        let give_up_ns = monotonic_ns() + DRAIN_MAX_NS;
        while self.ops.busy() > self.commands {
            let now_ns = monotonic_ns();
            if now_ns >= give_up_ns || self.fill().is_err() {
                return false;
            }
            let step_ns = if self.polled_in_flight() > 0 { POLL_STEP_NS } else { DRAIN_STEP_NS };
            let timeout_ns = Some(step_ns.min(give_up_ns - now_ns));
            if self.look().is_err() {
                return false;
            }
            if self.enter(Wait::For { completions: 1, timeout_ns }).is_err() {
                return false;
            }
            self.reap();
            self.events.clear();
        }
        true
    }
}
