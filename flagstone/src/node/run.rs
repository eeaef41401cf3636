//! Runs: the replies to READs of clients without structured replies that are longer than what is
//! fetched whole.
//!
//! A simple reply is one header and all the bytes behind it, in order and with nothing in between.
//! So a run's pieces are fetched side by side, as many as [`FETCH_BLOCKS`] allows, but leave in the
//! order of their bytes; other replies wait until it has ended. Invariants:
//! 1. The pieces of a run get their memory in the order of their bytes, and a run begins while the
//!    connection's reserve is free. So the piece that is next to leave always has memory or can
//!    have it, whatever the ones behind it hold.
//! 2. `parts` holds the pieces of the run `running` that have not left, in order; all of them
//!    count in `fetching_blocks`.
//! 3. A run that fails before its header has left is answered with the error at once; the rest of
//!    its pieces are awaited, and dropped. One that fails later ends the connection.
//!
//! What is asked of the engine, and when, is in [`super::submit`].
//!
//! [`FETCH_BLOCKS`]: super::limits::FETCH_BLOCKS

use super::connection::Reply;
use super::errno::{Failure, errno};
use super::reactor::Reactor;
use super::request::{Data, Kind, Piece};
use super::submit::Progress;
use flagstone_engine::IoFault;
use flagstone_nbd::Errno;

/// A piece of a run that has not left.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    /// The engine has it: a number in the node's table of pieces.
    Fetching(u32),
    /// Its data is here, and waits for the pieces before it.
    Here { data: Data, skip: u32, len: u32 },
}

impl Reactor {
    /// Submits the next piece of a run.
    pub(super) fn advance_run(&mut self, c: u32, request: u32, next: u64, end: u64) -> Progress {
        let connection = &mut self.connections[c as usize];
        if connection.running.is_none() && connection.reserve_taken {
            // By an earlier read, whose reply would be held until the run has ended: which might
            // need the reserve.
            return Progress::Blocked;
        }
        if *connection.running.get_or_insert(request) != request {
            // The other's end brings the connection back.
            return Progress::Waits;
        }
        self.fetch(c, request, next, end, end, false)
    }

    /// A piece of a run that is wanted has come, or can't.
    pub(super) fn part_fetched(
        &mut self,
        c: u32,
        number: u32,
        piece: &Piece,
        result: Result<(), IoFault>,
    ) {
        let Piece { request, data, skip, len, .. } = *piece;
        let parts = &mut self.connections[c as usize].parts;
        let place = parts.iter().position(|part| matches!(part, Part::Fetching(n) if *n == number));
        let Some(place) = place else {
            debug_assert!(false, "a piece of another run");
            return;
        };
        parts[place] = Part::Here { data, skip, len };
        match result {
            Ok(()) => self.send_parts(c, request),
            Err(fault) => self.read_failed(request, piece.offset, errno(Failure::Io(fault))),
        }
    }

    /// Queues what no piece goes before any more, and ends the run with its last piece.
    fn send_parts(&mut self, c: u32, request: u32) {
        loop {
            let parts = &mut self.connections[c as usize].parts;
            let Some(&Part::Here { data, skip, len }) = parts.front() else { break };
            parts.pop_front();
            self.fetch_ended(c, data.buffer.blocks);
            self.stats.read_bytes += u64::from(len);
            self.connections[c as usize].io.read_bytes += u64::from(len);
            let Some(entry) = self.requests.get_mut(request) else { return };
            if entry.kind == (Kind::Run { begun: true }) {
                self.connections[c as usize].outbox.push_back(Reply::More { data, skip, len });
                self.list(c);
                continue;
            }
            entry.kind = Kind::Run { begun: true };
            let (to, offset) = (entry.to, 0);
            self.reply(c, Reply::Data { to, data, skip, len, offset, done: true });
            // From here to its end nothing else may be sent.
            self.connections[c as usize].in_run = true;
        }
        if self.requests.get_mut(request).is_some_and(|entry| entry.is_over()) {
            self.finish(request);
        }
    }

    /// A part of a run can't be had; its error is entered already.
    pub(super) fn run_failed(&mut self, c: u32, request: u32, begun: bool, errno: Errno) {
        // The connection may have turned to its next request.
        let connection = &mut self.connections[c as usize];
        connection.current.take_if(|current| current.request() == request);
        self.drop_parts(c);
        let Some(entry) = self.requests.get_mut(request) else { return };
        entry.submitted = true;
        let (to, over) = (entry.to, entry.is_over());
        if begun {
            // "the server MUST immediately initiate a hard disconnect" (NBD proto, NBD_CMD_READ).
            self.kill(c);
            if over {
                self.forget(request);
            }
            return;
        }
        self.reply(c, Reply::Done { to, result: Err(errno) });
        self.enqueue(c);
        if over {
            self.finish(request);
        }
    }

    /// Forgets the pieces of a run that will not be sent. Those that the engine has give their
    /// memory back when it answers.
    pub(super) fn drop_parts(&mut self, c: u32) {
        while let Some(part) = self.connections[c as usize].parts.pop_front() {
            if let Part::Here { data, .. } = part {
                self.connections[c as usize].fetching_blocks -= data.buffer.blocks;
                self.give_back(c, data);
            }
        }
    }

    /// The run's reply is complete, or there is none: others may be sent again.
    pub(super) fn end_run(&mut self, c: u32) {
        let connection = &mut self.connections[c as usize];
        connection.in_run = false;
        connection.running = None;
        connection.outbox.extend(connection.held.drain(..));
        self.list(c);
        // The next request may be a run too.
        self.enqueue(c);
    }
}
