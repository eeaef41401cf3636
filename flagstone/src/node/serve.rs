//! Connections: from received bytes to requests under way.

use super::connection::{Opened, Phase, Reply};
use super::errno::{Failure, errno};
use super::limits::{
    REQUESTS_GUARANTEED, REQUESTS_MAX, REQUESTS_SHARED, RESERVE_BLOCKS, TURN_STEPS, WRITE_BYTES,
};
use super::reactor::Reactor;
use super::request::{Current, Kind, Name, Request};
use super::submit::Progress;
use flagstone_block::{BLOCK_SIZE, Buffers, VolumeId};
use flagstone_engine::SubmitError;
use flagstone_nbd::{self as nbd, CloseReason, Command, Out, Payload, Step, Style};

/// What became of the payload at hand.
enum Taken {
    /// Some of it went; go on.
    Some,
    /// The rest of a block has not arrived.
    TooShort,
    /// The engine takes nothing now.
    Busy,
    /// There is no space, and no memory to keep it in.
    Full,
}

impl Reactor {
    /// Moves a connection on as far as its input, its requests and its turn allow.
    pub(super) fn run_connection(&mut self, c: u32) {
        match self.connections[c as usize].phase {
            Phase::Handshake => self.negotiate(c),
            Phase::Serving => {}
            Phase::Free | Phase::Draining | Phase::Dead => return,
        }
        for _ in 0..TURN_STEPS {
            let connection = &self.connections[c as usize];
            if connection.phase != Phase::Serving {
                return;
            }
            let progress = match connection.current {
                Some(current) if !matches!(current, Current::Write { .. }) => {
                    self.advance(c, current)
                }
                _ => self.parse(c),
            };
            match progress {
                Progress::More => {}
                Progress::Waits | Progress::Full => return,
                Progress::Blocked => return self.enqueue(c),
                Progress::Busy => {
                    self.engine_busy = true;
                    return self.enqueue(c);
                }
                Progress::Yields => break,
            }
        }
        self.hungry = true;
        self.enqueue(c);
    }

    /// Takes as many handshake steps as the input and the header buffer allow.
    fn negotiate(&mut self, c: u32) {
        let connection = &mut self.connections[c as usize];
        if connection.sending || connection.receiving {
            return;
        }
        let mut out = Out::new(&mut self.handshake_out);
        let step = loop {
            let input = match connection.input() {
                Some((buffer, from)) => {
                    let bytes = self.ring.buffers_ref().bytes(buffer);
                    &bytes[from..from + (connection.end - connection.start)]
                }
                None => &[],
            };
            let received = connection.session.receive(input, &self.catalog, &mut out);
            connection.start += received.consumed;
            if received.step != Step::Again {
                break received.step;
            }
        };
        let len = out.len();
        if len > 0 {
            let bytes = std::mem::take(&mut self.handshake_out);
            self.send_bytes(c, &bytes[..len]);
            self.handshake_out = bytes;
            // Who lists many exports over a slow line gets on.
            self.limit_handshake(c);
        }
        match step {
            Step::NeedMore => self.need_more(c),
            Step::Opened(opened) => self.opened(c, &opened),
            Step::Close(reason) => self.closed_by_protocol(c, reason),
            // The end of the send brings it back here.
            _ => {}
        }
    }

    fn opened(&mut self, c: u32, opened: &nbd::Opened) {
        let connection = &mut self.connections[c as usize];
        if let Some(timer) = connection.deadline.take() {
            self.ring.cancel_timer(timer);
        }
        connection.phase = Phase::Serving;
        connection.opened = Some(Opened {
            pool: (opened.handle >> 32) as u32,
            volume: VolumeId(opened.handle as u32),
            handle: opened.handle,
            contexts: opened.contexts,
        });
        self.catalog.opened(opened.handle, true);
    }

    /// Parses one step of the input.
    fn parse(&mut self, c: u32) -> Progress {
        let connection = &mut self.connections[c as usize];
        if connection.receiving {
            return Progress::Waits;
        }
        if connection.current.is_none() && !may_start(connection.in_flight(), self.requests.len()) {
            // Its own replies will bring it back, or those of others.
            return Progress::Blocked;
        }
        let input = match connection.input() {
            Some((buffer, from)) => {
                let bytes = self.ring.buffers_ref().bytes(buffer);
                &bytes[from..from + (connection.end - connection.start)]
            }
            None => &[],
        };
        let received = connection.session.transmission(input);
        connection.start += received.consumed;
        match received.step {
            Step::NeedMore => {
                self.need_more(c);
                Progress::Waits
            }
            Step::Request(request) => {
                self.start(c, &request);
                Progress::More
            }
            Step::Payload(payload) => match self.take_payload(c, payload) {
                Taken::Some => Progress::More,
                Taken::Busy => Progress::Busy,
                Taken::Full => Progress::Full,
                Taken::TooShort => {
                    self.need_more(c);
                    Progress::Waits
                }
            },
            Step::PayloadOver => {
                self.payload_over(c);
                Progress::More
            }
            Step::Answer(to, result) => {
                self.stats.others += 1;
                self.stats.errors += u64::from(result.is_err());
                let reply = match result {
                    // A READ of no bytes wants a chunk where chunks are in use.
                    Ok(()) if connection.session.style().has_chunks() => Reply::ReadDone { to },
                    _ => Reply::Done { to, result },
                };
                self.reply(c, reply);
                Progress::More
            }
            Step::Close(reason) => {
                self.closed_by_protocol(c, reason);
                Progress::Waits
            }
            Step::Again | Step::NeedRoom | Step::Opened(_) => Progress::More,
        }
    }

    /// The input is used up as far as it goes.
    fn need_more(&mut self, c: u32) {
        let connection = &mut self.connections[c as usize];
        if !connection.ended {
            return self.want_input(c);
        }
        if connection.phase == Phase::Handshake {
            return self.kill(c);
        }
        self.drain(c);
    }

    fn closed_by_protocol(&mut self, c: u32, reason: CloseReason) {
        if reason.is_clean() {
            return self.take_leave(c);
        }
        self.stats.connections_dropped += 1;
        tracing::debug!(connection = c, %reason, "dropped: the client broke the protocol");
        // A handshake's last replies may explain why.
        if self.connections[c as usize].sending {
            self.drain(c);
        } else {
            self.kill(c);
        }
    }

    /// Reads nothing more; the connection ends when everything that was asked for is answered, but for what waits
    /// for space: nobody does on behalf of a client that has gone.
    pub(super) fn drain(&mut self, c: u32) {
        if matches!(self.connections[c as usize].phase, Phase::Handshake | Phase::Serving) {
            self.forget_parked(c, None);
        }
        self.take_leave(c);
    }

    /// The client reads its answers and goes: "The server MUST handle all outstanding requests" (NBD proto,
    /// `NBD_CMD_DISC`), also those that wait for space.
    fn take_leave(&mut self, c: u32) {
        let connection = &mut self.connections[c as usize];
        if matches!(connection.phase, Phase::Handshake | Phase::Serving) {
            connection.phase = Phase::Draining;
            if let Some(timer) = connection.deadline.take() {
                self.ring.cancel_timer(timer);
            }
            // A WRITE whose payload will not come is none.
            self.abandon_current(c);
            self.list(c);
        }
    }

    /// Enters a request into the table and makes it the one that is being submitted.
    fn start(&mut self, c: u32, wanted: &nbd::Request) {
        let (to, next, end) = (wanted.to, wanted.offset, wanted.offset + wanted.len);
        let simple = self.connections[c as usize].session.style() == Style::Simple;
        let is_run = simple && touched_blocks(next, end) > u64::from(RESERVE_BLOCKS);
        let kind = match wanted.command {
            Command::BlockStatus { one } => {
                self.stats.others += 1;
                let len = wanted.len;
                return self.reply(c, Reply::Status { to, offset: next, len, one, context: 0 });
            }
            Command::Read { .. } if is_run => Kind::Run { begun: false },
            Command::Read { .. } => Kind::Read,
            Command::Write { .. } => Kind::Write,
            Command::Zero { .. } => Kind::Zero,
            Command::Flush => Kind::Flush,
        };
        let request = self.requests.insert(Request {
            connection: c,
            to,
            kind,
            outstanding: 0,
            submitted: false,
            abandoned: false,
            error: None,
            bytes: wanted.len,
        });
        let connection = &mut self.connections[c as usize];
        connection.requests += 1;
        connection.current = match wanted.command {
            Command::Read { .. } if is_run => Some(Current::Run { request, next, end }),
            Command::Read { whole } => {
                Some(Current::Read { request, next, end, whole: whole || simple })
            }
            Command::Write { durability } => {
                Some(Current::Write { request, durability, parked: false })
            }
            Command::Zero { mode, durability } => {
                Some(Current::Zero { request, next, end, mode, durability })
            }
            Command::Flush => Some(Current::Flush { request }),
            Command::BlockStatus { .. } => None,
        };
    }

    /// Hands the engine what it can use of the payload at hand.
    fn take_payload(&mut self, c: u32, payload: Payload) -> Taken {
        let connection = &mut self.connections[c as usize];
        let (Some(Current::Write { request, durability, parked }), Some(opened)) =
            (connection.current, connection.opened)
        else {
            connection.session.skip_payload();
            return Taken::Some;
        };
        if parked {
            return self.keep_payload(c, request, payload);
        }
        let Some(bytes) = usable(payload) else { return Taken::TooShort };
        let Some((buffer, from)) = connection.input() else { return Taken::TooShort };
        // The engine changes the arena while it reads the payload, so it can't read it in there.
        let scratch = &mut self.payload[..bytes];
        scratch.copy_from_slice(&self.ring.buffers_ref().bytes(buffer)[from..from + bytes]);
        let pool = &mut self.pools[opened.pool as usize];
        let taken = pool.engine.write(
            self.ring.buffers(),
            Name::Request(request).tag(),
            opened.volume,
            payload.offset,
            scratch,
            durability,
        );
        match taken {
            Ok(used) => {
                pool.touched = true;
                connection.start += used;
                if let Some(request) = self.requests.get_mut(request) {
                    request.outstanding += 1;
                }
                if connection.session.payload_used(used) == 0 {
                    self.submitted(c, request);
                }
                self.unstall(c);
                Taken::Some
            }
            Err(SubmitError::Busy) => {
                pool.touched = true;
                Taken::Busy
            }
            Err(error) => {
                let waits = error == SubmitError::NoSpace
                    && self.waits_for_space(opened.pool, opened.volume);
                if waits
                    && let Some(taken) = self.park_write(c, payload.offset, payload.left as usize)
                {
                    return if taken == Progress::Full { Taken::Full } else { Taken::Some };
                }
                self.unstall(c);
                self.connections[c as usize].session.skip_payload();
                self.fail(request, errno(Failure::Submit(error)));
                Taken::Some
            }
        }
    }

    /// Keeps the payload at hand of a WRITE that waits for space.
    fn keep_payload(&mut self, c: u32, request: u32, payload: Payload) -> Taken {
        if payload.here == 0 {
            return Taken::TooShort;
        }
        let bytes = payload.here.min(payload.left as usize);
        self.park_payload(c, request, bytes, bytes as u64 == u64::from(payload.left));
        let connection = &mut self.connections[c as usize];
        connection.start += bytes;
        if connection.session.payload_used(bytes) == 0 {
            // It will be answered when there is space; the connection turns to its next one.
            connection.current = None;
        }
        Taken::Some
    }

    /// What was left of a refused payload has passed.
    fn payload_over(&mut self, c: u32) {
        if let Some(Current::Write { request, .. }) = self.connections[c as usize].current {
            self.submitted(c, request);
        }
    }
}

/// Blocks that hold a part of `start..end`.
fn touched_blocks(start: u64, end: u64) -> u64 {
    end.div_ceil(BLOCK_SIZE as u64) - start / BLOCK_SIZE as u64
}

/// Whether a connection with `in_flight` requests may start one more when `taken` of the table's
/// entries are in use. Beyond its guaranteed ones it may have as many as are left to all.
fn may_start(in_flight: usize, taken: usize) -> bool {
    in_flight < REQUESTS_GUARANTEED
        || (in_flight < REQUESTS_MAX && in_flight < REQUESTS_SHARED.saturating_sub(taken))
}

/// How many bytes of a payload the engine can take at once: whole blocks, or the whole of what
/// the request has for one block. `None` if that has not arrived yet.
fn usable(payload: Payload) -> Option<usize> {
    let in_block = payload.offset as usize % BLOCK_SIZE;
    let left = payload.left as usize;
    if in_block == 0 && left >= BLOCK_SIZE {
        let whole = payload.here.min(WRITE_BYTES) / BLOCK_SIZE * BLOCK_SIZE;
        return (whole > 0).then_some(whole);
    }
    let rest = left.min(BLOCK_SIZE - in_block);
    (payload.here >= rest).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_goes_in_whole_blocks_or_by_the_rest_of_one() {
        let usable = |offset, left, here| usable(Payload { offset, left, here });
        assert_eq!(usable(0, 8192, 8192), Some(8192));
        assert_eq!(usable(0, 8192, 5000), Some(4096));
        assert_eq!(usable(0, 8192, 4095), None);
        assert_eq!(usable(0, 100, 100), Some(100));
        assert_eq!(usable(0, 100, 99), None);
        assert_eq!(usable(4000, 8192, 95), None);
        assert_eq!(usable(4000, 8192, 96), Some(96));
        assert_eq!(usable(4000, 10, 10), Some(10));
        assert_eq!(usable(4096, 1 << 25, 1 << 20), Some(WRITE_BYTES));
    }

    #[test]
    fn everyone_has_some_requests_and_nobody_has_all() {
        assert!(may_start(REQUESTS_GUARANTEED - 1, usize::MAX));
        assert!(!may_start(REQUESTS_GUARANTEED, REQUESTS_SHARED));
        assert!(may_start(REQUESTS_MAX - 1, 0));
        assert!(!may_start(REQUESTS_MAX, 0));
        assert!(!may_start(500, REQUESTS_SHARED - 500));
    }
}
