//! One connection: a socket and its exchange, and the turn of receive, handle, refill, send.

use std::io::{self, IoSlice, Write};

use super::{
    exchange::{Exchange, SLICES_MAX, Terms},
    socket::Socket,
    wire::{COMMAND_DISCONNECT, request},
};
use crate::{
    RunError,
    pace::{LOOK_NANOS, Pacer},
    record::Recorder,
    run::Control,
    verify::Checked,
};

/// Bytes received per call. Large enough for a turn of 32 replies of 4 KiB, small enough to stay
/// in a core's cache.
const RECEIVE_BYTES: usize = 144 << 10;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wants {
    /// Replies.
    Replies,
    /// Replies, or room to send what is left.
    RepliesAndRoom,
    /// Nothing: it is done.
    Nothing,
}

/// One connection.
pub(super) struct Line<'a> {
    socket: Socket,
    exchange: Exchange<'a>,
    /// Requests to issue inside the window.
    left: u64,
    pacer: Option<Pacer>,
    buffer: Vec<u8>,
    /// The beginning of a header that the last receive cut off, at the buffer's front.
    kept: usize,
}

impl<'a> Line<'a> {
    /// A connection that issues `operations` requests, or an unlimited number.
    pub(super) fn new(
        socket: Socket,
        terms: Terms<'a>,
        operations: Option<u64>,
        pacer: Option<Pacer>,
    ) -> Self {
        Self {
            socket,
            exchange: Exchange::new(terms),
            left: operations.unwrap_or(u64::MAX),
            pacer,
            buffer: vec![0; RECEIVE_BYTES],
            kept: 0,
        }
    }

    pub(super) const fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Puts requests into free slots, as long as the run goes on, and sends what can be sent.
    pub(super) fn refill(
        &mut self,
        control: &Control<'_>,
        recorder: &Recorder<'_>,
    ) -> Result<Wants, RunError> {
        let window = recorder.window();
        let now = control.clock.now();
        let pacer = &mut self.pacer;
        let next = || pacer.as_mut().map_or(Some(now), |pacer| pacer.take(now));
        if now < window.from {
            self.exchange.fill(u64::MAX, next);
        } else if now < window.until && !control.stopped() {
            self.left -= self.exchange.fill(self.left, next);
        }
        while self.exchange.wants_to_send() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let used = self.exchange.gather(&mut slices);
            match self.socket.send_now(&slices[..used]).map_err(RunError::Io)? {
                Some(bytes) => self.exchange.sent(bytes),
                None => return Ok(Wants::RepliesAndRoom),
            }
        }
        let waits = self.due_at(control, recorder).is_some();
        Ok(if self.exchange.idle() && !waits { Wants::Nothing } else { Wants::Replies })
    }

    /// When the next request of an open loop is to be sent, or the end of the run is to be seen.
    pub(super) fn due_at(&self, control: &Control<'_>, recorder: &Recorder<'_>) -> Option<u64> {
        let (window, now) = (recorder.window(), control.clock.now());
        let goes_on = now < window.until && self.left > 0 && !control.stopped();
        let pacer = self.pacer.as_ref().filter(|_| goes_on && self.exchange.has_room())?;
        Some(pacer.next_at().min(window.until).min(now + LOOK_NANOS))
    }

    /// Receives what is there, or waits for something first, and handles it.
    pub(super) fn receive(
        &mut self,
        wait: bool,
        control: &Control<'_>,
        recorder: &mut Recorder<'_>,
    ) -> Result<(), RunError> {
        let into = &mut self.buffer[self.kept..];
        let Some(got) = self.socket.receive(into, wait).map_err(RunError::Io)? else {
            return Ok(());
        };
        if got == 0 {
            return Err(RunError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        let now = control.clock.now();
        let end = self.kept + got;
        let used = self.exchange.receive(&self.buffer[..end], now, recorder)?;
        self.buffer.copy_within(used..end, 0);
        self.kept = end - used;
        recorder.turn(now);
        Ok(())
    }

    /// Reads, writes and discards that were answered in the measured window, without an error.
    pub(super) const fn answered(&self) -> u64 {
        self.exchange.answered()
    }

    /// Says good-bye and gives back what verification found.
    pub(super) fn close(mut self) -> Checked {
        // The server closes in return; there is no reply to wait for, and nothing to lose.
        let _ = self.socket.write_all(&request(0, COMMAND_DISCONNECT, 0, 0, 0));
        self.exchange.into_checked()
    }
}
