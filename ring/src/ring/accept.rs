//! Listeners: accepting all the time, except when the system has no room.
//!
//! Multishot accept where the kernel has it (Linux 5.19), one at a time where not. When descriptors
//! or memory run out (`accept(2)`: `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM`) or the network is in
//! trouble, trying again at once would only spin, so accepting pauses; clients wait in the listen
//! backlog meanwhile.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use io_uring::{opcode, squeue, types};

use super::{Ring, TimerUse, monotonic_ns};
use crate::error::AddError;
use crate::event::{Event, ListenerId};
use crate::ops::Op;
use crate::timers::TimerId;

/// How long accepting pauses when the system is out of descriptors or memory, in nanoseconds.
const ACCEPT_PAUSE_NS: u64 = 100_000_000;
/// Listeners at once: a few addresses, not one per volume.
const LISTENERS_MAX: u32 = 64;

#[derive(Default)]
pub(super) struct ListenerSlot {
    generation: u32,
    open: Option<Listener>,
}

struct Listener {
    fd: OwnedFd,
    accepting: Option<u32>,
    pause: Option<TimerId>,
    closing: bool,
}

impl Ring {
    /// Takes over a listening socket and accepts on it until it is removed.
    ///
    /// # Errors
    /// `Full` after 64 listeners; `Os` if the socket can't be made blocking.
    pub fn add_listener(&mut self, fd: OwnedFd) -> Result<ListenerId, AddError> {
        rustix::io::ioctl_fionbio(&fd, false)
            .map_err(|errno| AddError::Os { call: "ioctl(FIONBIO)", errno })?;
        let free = self.listeners.iter().position(|slot| slot.open.is_none());
        let slot = match free {
            Some(slot) => slot,
            None if self.listeners.len() < LISTENERS_MAX as usize => {
                self.listeners.push(ListenerSlot::default());
                self.listeners.len() - 1
            }
            None => return Err(AddError::Full { limit: LISTENERS_MAX }),
        };
        let accepting = Some(self.begin(Op::Accept { listener: slot as u32 }));
        let entry = &mut self.listeners[slot];
        entry.open = Some(Listener { fd, accepting, pause: None, closing: false });
        Ok(ListenerId { slot: slot as u32, generation: entry.generation })
    }

    /// Stops accepting and closes the listening socket, once the kernel has let go of it.
    /// Connections accepted until then still come as [`Event::Accepted`]. Does nothing if the name
    /// is stale.
    pub fn remove_listener(&mut self, id: ListenerId) {
        let Some(slot) = self.listeners.get_mut(id.slot as usize) else { return };
        if slot.generation != id.generation {
            return;
        }
        let Some(listener) = slot.open.as_mut().filter(|listener| !listener.closing) else {
            return;
        };
        listener.closing = true;
        let (accepting, pause) = (listener.accepting, listener.pause.take());
        if let Some(timer) = pause {
            self.timers.cancel(timer);
        }
        match accepting {
            Some(index) => self.cancel(index),
            None => self.close_listener(id.slot),
        }
    }

    fn close_listener(&mut self, index: u32) {
        let slot = &mut self.listeners[index as usize];
        slot.open = None;
        slot.generation = slot.generation.wrapping_add(1);
    }

    pub(super) fn accept_submission(&self, listener: u32) -> squeue::Entry {
        let listener = self.listeners[listener as usize].open.as_ref();
        let listener = listener.expect("a listener stays open while an accept is under way");
        let fd = types::Fd(listener.fd.as_raw_fd());
        if self.multishot_accept {
            opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build()
        } else {
            opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build()
        }
    }

    pub(super) fn complete_accept(&mut self, index: u32, listener: u32, result: i32, more: bool) {
        if result >= 0 {
            // SAFETY: a non-negative result of an accept is a new descriptor (`accept(2)`) that
            // the kernel has just given to this process and nobody else knows of.
            let fd = unsafe { OwnedFd::from_raw_fd(result) };
            self.accepted(listener, fd);
        }
        if more {
            return;
        }
        let slot = &mut self.listeners[listener as usize];
        let id = ListenerId { slot: listener, generation: slot.generation };
        let Some(open) = slot.open.as_mut() else {
            self.ops.release(index);
            return;
        };
        open.accepting = None;
        if open.closing || self.draining {
            self.ops.release(index);
            self.close_listener(listener);
            return;
        }
        match -result {
            // No multishot accept before Linux 5.19; a listener that is none fails again below.
            libc::EINVAL if self.multishot_accept => self.multishot_accept = false,
            // Nobody's error, or that of one connection that has already gone: go on.
            ..=0 | libc::EINTR | libc::EAGAIN | libc::ECONNABORTED => {}
            errno @ (libc::EBADF | libc::EINVAL | libc::ENOTSOCK | libc::EFAULT) => {
                self.ops.release(index);
                self.close_listener(listener);
                self.events.push_back(Event::ListenerFailed { listener: id, errno });
                return;
            }
            // Out of descriptors or memory, or an error of the network: it takes a while.
            _ => {
                let until_ns = monotonic_ns() + ACCEPT_PAUSE_NS;
                open.pause = Some(self.timers.set(until_ns, TimerUse::Accept(listener)));
                self.counters.accept_pauses += 1;
                self.ops.release(index);
                return;
            }
        }
        open.accepting = Some(index);
        self.queue.push_back(index);
    }

    fn accepted(&mut self, listener: u32, fd: OwnedFd) {
        let generation = self.listeners[listener as usize].generation;
        match self.install_socket(fd) {
            Some(socket) => self.events.push_back(Event::Accepted {
                listener: ListenerId { slot: listener, generation },
                socket,
            }),
            // Closed at once: the client learns it now instead of waiting for an answer.
            None => self.counters.connections_refused += 1,
        }
    }

    pub(super) fn resume_accept(&mut self, listener: u32) {
        let Some(open) = self.listeners[listener as usize].open.as_mut() else { return };
        open.pause = None;
        let index = self.begin(Op::Accept { listener });
        if let Some(open) = self.listeners[listener as usize].open.as_mut() {
            open.accepting = Some(index);
        }
    }
}
