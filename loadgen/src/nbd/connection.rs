//! Drives one connection: the loop of send, receive, handle.

use std::io::{self, IoSlice, Write};

use super::{
    exchange::{Checked, Exchange, SLICES_MAX, Terms},
    socket::Socket,
    wire::{COMMAND_DISCONNECT, request},
};
use crate::{
    RunError,
    record::Recorder,
    run::{Control, Driver},
};

/// Bytes received per call. Large enough for a turn of 32 replies of 4 KiB, small enough to stay
/// in a core's cache.
const RECEIVE_BYTES: usize = 144 << 10;

/// One connection and what it is to do.
pub(super) struct Connection<'a> {
    socket: Socket,
    exchange: Option<Exchange<'a>>,
    checked: Checked,
}

impl<'a> Connection<'a> {
    pub(super) fn new(socket: Socket, terms: Terms<'a>) -> Self {
        Self { socket, exchange: Some(Exchange::new(terms)), checked: Checked::default() }
    }

    pub(super) fn into_checked(self) -> Checked {
        self.checked
    }
}

impl Driver for Connection<'_> {
    fn run(&mut self, control: &Control<'_>, recorder: &mut Recorder<'_>) -> Result<(), RunError> {
        let Some(mut exchange) = self.exchange.take() else { return Ok(()) };
        transmit(&self.socket, &mut exchange, control, recorder)?;
        self.checked = exchange.into_checked();
        // The server closes in return; there is no reply to wait for, and nothing to lose.
        let _ = self.socket.write_all(&request(0, COMMAND_DISCONNECT, 0, 0, 0));
        Ok(())
    }

    fn abort_handle(&self) -> Result<Box<dyn Fn() + Send>, RunError> {
        let socket = self.socket.try_clone().map_err(RunError::Io)?;
        Ok(Box::new(move || socket.shut_down()))
    }
}

/// Keeps the exchange's slots busy until the run is over, then waits for what is under way.
fn transmit(
    socket: &Socket,
    exchange: &mut Exchange<'_>,
    control: &Control<'_>,
    recorder: &mut Recorder<'_>,
) -> Result<(), RunError> {
    let window = recorder.window();
    let mut left = control.operations.unwrap_or(u64::MAX);
    let mut buffer = vec![0; RECEIVE_BYTES];
    // The beginning of a header that the last receive cut off, moved to the buffer's front.
    let mut kept = 0;
    loop {
        let now = control.clock.now();
        if now < window.from {
            exchange.fill(u64::MAX, now);
        } else if now < window.until && !control.stopped() {
            left -= exchange.fill(left, now);
        }
        let all_sent = send_now(socket, exchange)?;
        if exchange.idle() {
            return Ok(());
        }
        if !all_sent {
            socket.wait_both().map_err(RunError::Io)?;
        }
        let Some(got) = socket.receive(&mut buffer[kept..], all_sent).map_err(RunError::Io)? else {
            continue;
        };
        if got == 0 {
            return Err(RunError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        let now = control.clock.now();
        let end = kept + got;
        let used = exchange.receive(&buffer[..end], now, recorder)?;
        buffer.copy_within(used..end, 0);
        kept = end - used;
        recorder.turn(now);
    }
}

/// Sends until everything is sent or the socket is full; whether everything is.
fn send_now(socket: &Socket, exchange: &mut Exchange<'_>) -> Result<bool, RunError> {
    while exchange.wants_to_send() {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let used = exchange.gather(&mut slices);
        match socket.send_now(&slices[..used]).map_err(RunError::Io)? {
            Some(bytes) => exchange.sent(bytes),
            None => return Ok(false),
        }
    }
    Ok(true)
}
