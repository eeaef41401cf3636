//! What the reactor has done so far, for metrics and for tests of the idle and busy paths.

/// Counts since the ring was made. They only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls of `io_uring_enter`.
    pub enters: u64,
    /// Of those, calls that were allowed to wait.
    pub sleeps: u64,
    /// Polls before a sleep, and time spent in them, in nanoseconds.
    pub spins: u64,
    /// Time spent polling, in nanoseconds.
    pub spin_ns: u64,
    /// Polls that ended because something arrived.
    pub spins_paid: u64,
    /// Submissions queued, continuations of short transfers included.
    pub submissions: u64,
    /// Completions taken.
    pub completions: u64,
    /// Completions that matched no operation; anything but 0 is a bug.
    pub strays: u64,
    /// Submissions that had to wait because the kernel took none.
    pub backlogged: u64,
    /// Device commands submitted again after a short transfer.
    pub short_transfers: u64,
    /// Operations submitted again after `EINTR` or `EAGAIN`.
    pub retries: u64,
    /// Sends that the socket took whole, without the ring.
    pub immediate_sends: u64,
    /// Sends submitted again after a short send.
    pub short_sends: u64,
    /// Connections closed at once because the socket table was full.
    pub connections_refused: u64,
    /// Times that accepting paused because descriptors or memory ran out.
    pub accept_pauses: u64,
    /// Wake-ups by other threads that were reported.
    pub wakes: u64,
}
