//! From replies to sends: headers into the connection's header buffer, data from where it lies.
//!
//! One send per connection is under way at a time; what is ready by its end goes into the next,
//! so that batches grow with load and cost nothing without it.

use super::connection::{Phase, Reply};
use super::limits::{SEND_PARTS, STATUS_EXTENTS, STATUSES_PER_TURN};
use super::reactor::Reactor;
use super::status::{Asked, Told};
use flagstone_block::{Buffer, Buffers};
use flagstone_nbd::reply::{self, MAX_HEADER_BYTES, block_status_bytes};
use flagstone_nbd::{Errno, Out, Style};
use flagstone_ring::SendPart;

/// The parts of a send as it is put together.
struct Batch {
    parts: [SendPart; SEND_PARTS],
    count: usize,
    headers: Buffer,
    /// Bytes of the header buffer that are in parts already.
    header_end: usize,
}

impl Batch {
    fn new(headers: Buffer) -> Self {
        let nothing = SendPart { buffer: headers, from: 0, len: 0 };
        Self { parts: [nothing; SEND_PARTS], count: 0, headers, header_end: 0 }
    }

    /// Room for a header and the data behind it, and for the headers that end the batch.
    fn has_room(&self) -> bool {
        self.count + 3 <= SEND_PARTS
    }

    /// Closes the run of headers up to `end`.
    fn headers_up_to(&mut self, end: usize) {
        if end > self.header_end {
            let part = SendPart {
                buffer: self.headers,
                from: self.header_end,
                len: end - self.header_end,
            };
            self.header_end = end;
            self.push(part);
        }
    }

    fn push(&mut self, part: SendPart) {
        self.parts[self.count] = part;
        self.count += 1;
    }
}

impl Reactor {
    /// Sends for every connection that has something to send.
    pub(super) fn transmit_listed(&mut self) {
        while let Some(c) = self.listed.pop() {
            self.connections[c as usize].listed = false;
            self.transmit(c);
        }
    }

    /// Sends for those whose next reply waited. Before the engines are pumped, so that who has to wait for
    /// another page is heard in the same turn.
    pub(super) fn retry_stalled(&mut self) {
        for c in std::mem::take(&mut self.stalled) {
            self.transmit(c);
        }
    }

    fn transmit(&mut self, c: u32) {
        let mut statuses = STATUSES_PER_TURN;
        while self.transmit_batch(c, &mut statuses) {}
    }

    /// The connection's next reply waits for the next turn.
    fn stall(&mut self, c: u32) {
        if !self.stalled.contains(&c) {
            self.stalled.push(c);
        }
    }

    /// Sends one batch; returns whether it is all out already, so that the next may follow. Of block statuses, each of
    /// which may mean many looks into the map, no more than `statuses` are told.
    fn transmit_batch(&mut self, c: u32, statuses: &mut u32) -> bool {
        let connection = &mut self.connections[c as usize];
        if connection.sending || !matches!(connection.phase, Phase::Serving | Phase::Draining) {
            return false;
        }
        let Some(socket) = connection.socket else { return false };
        if connection.outbox.is_empty() {
            if connection.phase == Phase::Draining && connection.is_quiet() {
                self.kill(c);
            }
            return false;
        }
        let style = connection.session.style();
        let mut batch = Batch::new(connection.header_buffer);
        let mut out = Out::new(self.ring.buffers().bytes_mut(connection.header_buffer));
        let mut waits = false;
        while let Some(&next) = connection.outbox.front() {
            if !batch.has_room() || out.room() < MAX_HEADER_BYTES {
                break;
            }
            match next {
                Reply::Done { to, result: Ok(()) } => reply::success(style, to, &mut out),
                Reply::Done { to, result: Err(errno) } => reply::error(style, to, errno, &mut out),
                Reply::ReadDone { to } => reply::read_done(style, to, &mut out),
                Reply::Hole { to, offset, len, done } => {
                    reply::hole(style, to, offset, len, done, &mut out);
                }
                Reply::Bad { to, errno, offset, done } => {
                    reply::error_at(style, to, errno, offset, done, &mut out);
                }
                Reply::Data { to, data, skip, len, offset, done } => {
                    if style == Style::Simple {
                        reply::success(style, to, &mut out);
                    } else {
                        reply::data(style, to, offset, len, done, &mut out);
                    }
                    batch.headers_up_to(out.len());
                    let (from, len) = (skip as usize, len as usize);
                    batch.push(SendPart { buffer: data.buffer, from, len });
                    connection.in_send.push(data);
                }
                Reply::More { data, skip, len } => {
                    batch.headers_up_to(out.len());
                    let (from, len) = (skip as usize, len as usize);
                    batch.push(SendPart { buffer: data.buffer, from, len });
                    connection.in_send.push(data);
                }
                Reply::Status { to, offset, len, one, context } => {
                    // Asked for here, where there is room for the answer.
                    let wanted = if one { 1 } else { STATUS_EXTENTS };
                    if !out.is_empty() && out.room() < block_status_bytes(wanted) {
                        break;
                    }
                    // Others first.
                    if *statuses == 0 {
                        waits = true;
                        self.hungry = true;
                        break;
                    }
                    *statuses -= 1;
                    let n = usize::from(context);
                    let known = connection.opened.and_then(|opened| {
                        let (context, id) = opened.contexts.nth(n)?;
                        Some((opened, context, id, opened.contexts.nth(n + 1).is_none()))
                    });
                    let Some((opened, context, id, done)) = known else {
                        reply::error(style, to, Errno::Shutdown, &mut out);
                        connection.outbox.pop_front();
                        continue;
                    };
                    let asked = Asked { volume: opened.volume, offset, len, one };
                    let pool = &mut self.pools[opened.pool as usize];
                    match self.statuses.tell(&mut pool.engine, asked, context) {
                        Told::Yes => {
                            let extents = &self.statuses.wire;
                            reply::status_chunk(style, to, id, done, extents, &mut out);
                        }
                        Told::Later => {
                            // A page of the map was asked for.
                            pool.touched = true;
                            self.engine_busy = true;
                            waits = true;
                            break;
                        }
                        Told::Failed(errno) => reply::error(style, to, errno, &mut out),
                    }
                    let failed = self.statuses.wire.is_empty();
                    if !done && !failed {
                        let context = n as u8 + 1;
                        let next = Reply::Status { to, offset, len, one, context };
                        connection.outbox[0] = next;
                        continue;
                    }
                }
            }
            connection.outbox.pop_front();
        }
        batch.headers_up_to(out.len());
        if waits {
            self.stall(c);
        }
        if batch.count == 0 {
            return false;
        }
        match self.ring.send_now(socket, &batch.parts[..batch.count]) {
            Ok(true) => {
                while let Some(data) = self.connections[c as usize].in_send.pop() {
                    self.give_back(c, data);
                }
                // The room may be what it was waiting for, and no event will say so.
                if !self.connections[c as usize].receiving {
                    self.hungry = true;
                    self.enqueue(c);
                }
                return !waits;
            }
            Ok(false) => self.connections[c as usize].sending = true,
            // The socket is gone, which its own event will say; the data must not wait for it.
            Err(_) => {
                while let Some(data) = self.connections[c as usize].in_send.pop() {
                    self.give_back(c, data);
                }
                self.kill(c);
            }
        }
        false
    }
}
