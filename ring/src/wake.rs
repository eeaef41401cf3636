//! Waking the reactor from other threads, and mail for it.
//!
//! One atomic word per ring says what the reactor is doing:
//!
//! ```text
//!            ring, before it sleeps (CAS)
//!   AWAKE ---------------------------------> ASLEEP
//!     ^                                        |
//!     |  ring, once per round (swap)           | sender (swap), then it writes the eventfd
//!     |                                        v
//!     +---------------------------------- NOTIFIED <--- sender (swap) from AWAKE: no system call
//! ```
//!
//! Why no mail is ever slept through: a sender puts its mail into the queue *before* its swap to
//! `NOTIFIED`; all changes of the word are read-modify-writes of one location, so they have one
//! order that both sides see. Either the sender's swap comes before the ring's CAS, and the CAS
//! fails because the word is not `AWAKE`; or it comes after, finds `ASLEEP`, and the sender writes
//! the eventfd, on which the ring keeps a poll. The swap releases and the ring's read of
//! `NOTIFIED` acquires, so the mail is visible when the ring looks. A sender that finds `NOTIFIED`
//! need do nothing: the ring has not looked since, and will.
//!
//! The eventfd is never read: the poll is edge-triggered by each write, and its counter of 2^64
//! writes does not fill.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use crossbeam::queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const NOTIFIED: u32 = 2;

struct Shared {
    state: AtomicU32,
    eventfd: OwnedFd,
}

/// Wakes one ring from any thread; the ring answers with [`crate::Event::Woken`].
#[derive(Clone)]
pub struct Waker {
    shared: Arc<Shared>,
}

impl Waker {
    pub(crate) fn new() -> Result<Self, Errno> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { shared: Arc::new(Shared { state: AtomicU32::new(AWAKE), eventfd }) })
    }

    /// Makes the ring report [`crate::Event::Woken`] after everything this thread did before.
    ///
    /// Never blocks; costs a system call only if the ring sleeps or is about to.
    pub fn wake(&self) {
        if self.shared.state.swap(NOTIFIED, Ordering::AcqRel) == ASLEEP {
            // The only failure would be a full counter, and a full counter has been seen.
            let _ = rustix::io::write(self.shared.eventfd.as_fd(), &1_u64.to_ne_bytes());
        }
    }

    /// The ring intends to sleep. False: it must not, there is a wake-up to report.
    pub(crate) fn fall_asleep(&self) -> bool {
        self.shared
            .state
            .compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// The ring is awake. Returns whether there is a wake-up to report.
    pub(crate) fn stay_awake(&self) -> bool {
        // The plain read spares the common case, no mail, a locked instruction.
        self.shared.state.load(Ordering::Relaxed) != AWAKE
            && self.shared.state.swap(AWAKE, Ordering::AcqRel) == NOTIFIED
    }

    /// Whether a wake-up is waiting to be reported.
    pub(crate) fn is_notified(&self) -> bool {
        self.shared.state.load(Ordering::Relaxed) == NOTIFIED
    }

    /// The descriptor that the ring polls.
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.shared.eventfd.as_raw_fd()
    }
}

struct Post<T> {
    queue: ArrayQueue<T>,
    closed: AtomicBool,
}

impl<T> Post<T> {
    /// Drops what is left now rather than with the last sender, so that a sender who waits for an
    /// answer channel inside its mail learns that none will come.
    fn empty(&self) {
        while self.queue.pop().is_some() {}
    }
}

/// The sending half of a mailbox: any thread, any number of clones.
pub struct MailSender<T> {
    post: Arc<Post<T>>,
    waker: Waker,
}

impl<T> Clone for MailSender<T> {
    fn clone(&self) -> Self {
        Self { post: Arc::clone(&self.post), waker: self.waker.clone() }
    }
}

/// Why mail was not taken; it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MailError<T> {
    /// The mailbox is full; the reactor is behind.
    #[error("the mailbox is full")]
    Full(T),
    /// Nobody will read it: the [`Mailbox`] was dropped.
    #[error("the mailbox is gone")]
    Closed(T),
}

impl<T> MailSender<T> {
    /// Puts `mail` into the box and wakes the ring if it sleeps. Never blocks.
    ///
    /// Mail that was taken can still be dropped unread, when the reader goes away first.
    ///
    /// # Errors
    /// The mail comes back if the box is full or its reader is gone.
    pub fn send(&self, mail: T) -> Result<(), MailError<T>> {
        if self.post.closed.load(Ordering::Acquire) {
            return Err(MailError::Closed(mail));
        }
        self.post.queue.push(mail).map_err(MailError::Full)?;
        // Pairs with the fence in `Mailbox::drop`: either the drop sees this mail or this sees the
        // drop, so nothing stays in a box that nobody reads.
        fence(Ordering::SeqCst);
        if self.post.closed.load(Ordering::Relaxed) {
            self.post.empty();
        } else {
            self.waker.wake();
        }
        Ok(())
    }
}

/// The receiving half, read by the reactor after [`crate::Event::Woken`].
pub struct Mailbox<T> {
    post: Arc<Post<T>>,
}

impl<T> Mailbox<T> {
    /// The oldest mail, if any. After [`crate::Event::Woken`], take until `None`.
    #[must_use]
    pub fn take(&mut self) -> Option<T> {
        self.post.queue.pop()
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        self.post.closed.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        self.post.empty();
    }
}

/// A mailbox of `capacity` (at least 1) whose senders ring `waker`.
pub(crate) fn mailbox<T>(waker: Waker, capacity: usize) -> (MailSender<T>, Mailbox<T>) {
    let post =
        Arc::new(Post { queue: ArrayQueue::new(capacity.max(1)), closed: AtomicBool::new(false) });
    (MailSender { post: Arc::clone(&post), waker }, Mailbox { post })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_up_before_sleep_forbids_it_and_is_reported_once() {
        let waker = Waker::new().expect("an eventfd");
        assert!(!waker.stay_awake());
        waker.wake();
        waker.wake();
        assert!(!waker.fall_asleep());
        assert!(waker.stay_awake());
        assert!(!waker.stay_awake());
        assert!(waker.fall_asleep());
        waker.wake();
        assert!(waker.is_notified());
        assert!(waker.stay_awake());
    }

    #[test]
    fn sleeping_without_mail_reports_nothing() {
        let waker = Waker::new().expect("an eventfd");
        assert!(waker.fall_asleep());
        assert!(!waker.stay_awake());
        assert!(waker.fall_asleep());
    }

    #[test]
    fn a_full_box_and_a_dropped_box_hand_the_mail_back() {
        let (sender, mut inbox) = mailbox(Waker::new().expect("an eventfd"), 2);
        assert_eq!(sender.send(1), Ok(()));
        assert_eq!(sender.send(2), Ok(()));
        assert_eq!(sender.send(3), Err(MailError::Full(3)));
        assert_eq!(inbox.take(), Some(1));
        assert_eq!(sender.send(4), Ok(()));
        drop(inbox);
        assert_eq!(sender.send(5), Err(MailError::Closed(5)));
    }
}
