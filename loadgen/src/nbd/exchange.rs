//! One connection's transmission phase without the socket: requests out, replies in.
//!
//! [`Exchange::fill`] turns free slots into requests, [`Exchange::gather`] offers what is to be
//! sent as slices for one vectored call, [`Exchange::receive`] consumes reply bytes in pieces of
//! any size. Payloads of reads are thrown away unless the run verifies.
//!
//! Invariants:
//! 1. A slot is free, or its cookie is known to the server; cookies are never used twice.
//! 2. A slot's payload isn't changed before its reply came, and a reply to a request that was
//!    not completely sent breaks the protocol.
//! 3. Nothing is allocated after [`Exchange::new`].

use std::{collections::VecDeque, io::IoSlice};

use super::wire::*;
use crate::{
    record::Recorder,
    rng::Rng,
    verify::{Checked, Ledger},
    workload::{Generator, Kind, Operation, Workload},
};

/// Slices offered per vectored call: a depth of 32 writes in one go, and a kilobyte of stack.
pub(super) const SLICES_MAX: usize = 64;
/// The longest header that has to be seen in one piece: a chunk's, with an offset and a length.
const HEADER_BYTES_MAX: usize = CHUNK_BYTES + 12;
/// Longest error message in a structured reply (NBD proto: strings are at most 4096 bytes).
const ERROR_CHUNK_BYTES_MAX: u32 = 2 + 4 + 4096 + 8;

/// What the server did that the protocol doesn't allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Not a reply at all.
    #[error("a reply begins with {magic:#010x}, which is no reply's magic")]
    Magic {
        /// What it begins with.
        magic: u32,
    },
    /// A reply to a request that is not under way.
    #[error("a reply to cookie {cookie:#x}, which is not under way")]
    Cookie {
        /// The cookie.
        cookie: u64,
    },
    /// A reply before the request was completely sent.
    #[error("a reply came before its request was completely sent")]
    Early,
    /// A chunk whose length or range does not fit its request or its type.
    #[error("a chunk of type {kind} and {length} bytes doesn't fit its request")]
    Chunk {
        /// Type of the chunk.
        kind: u16,
        /// Its length.
        length: u32,
    },
    /// A successful read whose chunks don't make up the request.
    #[error("a read of {wanted} bytes was answered with {got}")]
    Incomplete {
        /// Bytes asked for.
        wanted: u32,
        /// Bytes that came.
        got: u32,
    },
}

/// One request under way, or room for one.
#[derive(Clone, Copy, Debug)]
struct Slot {
    operation: Operation,
    busy: bool,
    /// Completely handed to the socket.
    sent: bool,
    failed: bool,
    /// How often the slot was used: the upper half of the cookie.
    generation: u32,
    /// When it was issued, nanoseconds since the run's start.
    issued: u64,
    /// Bytes of a structured read so far.
    received: u32,
    /// The oldest sequence that a verified read may return.
    oldest: u32,
}

/// A part of what is to be sent.
#[derive(Clone, Copy, Debug)]
enum Piece {
    /// This many bytes of `headers`, after those of the pieces before.
    Headers(usize),
    /// The payload of a slot.
    Payload(u32),
    /// The end of a request: nothing to send, but a slot that is now sent.
    Sent(u32),
}

/// Where in the reply stream the next byte belongs.
#[derive(Clone, Copy, Debug)]
enum Parse {
    Header,
    /// Data for a read: `at` is the position in the slot's payload.
    Data {
        slot: u32,
        at: usize,
        left: usize,
        done: bool,
    },
    /// Bytes of no interest; the reply then ends if `done`.
    Skip {
        slot: u32,
        left: usize,
        done: bool,
    },
}

/// What an exchange needs to know about its connection.
pub(super) struct Terms<'a> {
    pub workload: &'a Workload,
    pub generator: Generator,
    /// Present in verified runs.
    pub ledger: Option<&'a Ledger>,
    pub depth: u32,
    pub structured: bool,
    /// Tells the payloads of connections apart.
    pub index: u32,
}

/// See the module's description.
pub(super) struct Exchange<'a> {
    generator: Generator,
    ledger: Option<&'a Ledger>,
    structured: bool,
    block_bytes: usize,
    write_flags: u16,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// `block_bytes` per slot: what writes send, and what verified reads receive.
    payload: Vec<u8>,
    headers: Vec<u8>,
    headers_at: usize,
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are sent.
    piece_at: usize,
    parse: Parse,
    writes: u64,
    /// See [`Exchange::answered`].
    answered: u64,
    checked: Checked,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(terms: Terms<'a>) -> Self {
        let depth = terms.depth as usize;
        let block_bytes = terms.workload.block_size as usize;
        let with_payload = terms.workload.writes() || terms.ledger.is_some();
        let mut payload = vec![0; if with_payload { depth * block_bytes } else { 0 }];
        if !terms.workload.zero_buffers {
            Rng::new(terms.workload.seed, u64::from(terms.index) | 1 << 40).fill(&mut payload);
        }
        let slot = Slot {
            operation: Operation { kind: Kind::Flush, request: 0 },
            busy: false,
            sent: false,
            failed: false,
            generation: 0,
            issued: 0,
            received: 0,
            oldest: 0,
        };
        Self {
            generator: terms.generator,
            ledger: terms.ledger,
            structured: terms.structured,
            block_bytes,
            write_flags: if terms.workload.fua { COMMAND_FLAG_FUA } else { 0 },
            slots: vec![slot; depth],
            free: (0..terms.depth).rev().collect(),
            payload,
            // Requests that wait for the socket are at most all slots; sent headers stay in
            // front of them until half of this is used up.
            headers: Vec::with_capacity(2 * depth * REQUEST_BYTES),
            headers_at: 0,
            pieces: VecDeque::with_capacity(3 * depth),
            piece_at: 0,
            parse: Parse::Header,
            writes: 0,
            answered: 0,
            checked: Checked::new(),
        }
    }

    /// Whether nothing is under way.
    pub(super) fn idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Reads, writes and discards that were answered in the measured window, without an error.
    pub(super) const fn answered(&self) -> u64 {
        self.answered
    }

    pub(super) fn into_checked(self) -> Checked {
        self.checked
    }

    /// Whether there is room for a request.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Issues up to `most` requests, as of the times that `next` names, until that names none; returns how many.
    pub(super) fn fill(&mut self, most: u64, mut next: impl FnMut() -> Option<u64>) -> u64 {
        let mut issued = 0;
        while issued < most
            && self.has_room()
            && let Some(at) = next()
            && let Some(slot) = self.free.pop()
        {
            self.issue(slot, at);
            issued += 1;
        }
        issued
    }

    fn issue(&mut self, slot: u32, now: u64) {
        let mut operation = self.generator.next();
        let mut oldest = 0;
        if let Some(ledger) = self.ledger {
            match operation.kind {
                Kind::Read => oldest = ledger.begin_read(operation.request),
                Kind::Write => {
                    let (request, sequence) =
                        ledger.begin_write_near(&mut self.generator, operation.request);
                    operation.request = request;
                    let at = slot as usize * self.block_bytes;
                    let payload = &mut self.payload[at..at + self.block_bytes];
                    ledger.stamp(request, sequence, payload);
                }
                Kind::Flush | Kind::Discard => {}
            }
        }
        let entry = &mut self.slots[slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.operation = operation;
        entry.busy = true;
        entry.sent = false;
        entry.failed = false;
        entry.issued = now;
        entry.received = 0;
        entry.oldest = oldest;
        let cookie = u64::from(entry.generation) << 32 | u64::from(slot);
        let (flags, command, length) = match operation.kind {
            Kind::Read => (0, COMMAND_READ, self.block_bytes as u32),
            Kind::Write => (self.write_flags, COMMAND_WRITE, self.block_bytes as u32),
            Kind::Flush => (0, COMMAND_FLUSH, 0),
            Kind::Discard => (self.write_flags, COMMAND_TRIM, self.block_bytes as u32),
        };
        let offset = operation.request * self.block_bytes as u64;
        self.push_header(request(flags, command, cookie, offset, length));
        if operation.kind == Kind::Write {
            if self.ledger.is_none() {
                self.vary_payload(slot);
            }
            self.pieces.push_back(Piece::Payload(slot));
        }
        self.pieces.push_back(Piece::Sent(slot));
    }

    fn push_header(&mut self, header: [u8; REQUEST_BYTES]) {
        if self.headers.len() + REQUEST_BYTES > self.headers.capacity() {
            self.headers.drain(..self.headers_at);
            self.headers_at = 0;
        }
        self.headers.extend_from_slice(&header);
        // Headers that follow each other go out as one slice; the marks between them take part.
        self.pieces.push_back(Piece::Headers(REQUEST_BYTES));
    }

    /// Makes each 4 KiB of a payload unlike all before, so that no layer below can deduplicate.
    fn vary_payload(&mut self, slot: u32) {
        let at = slot as usize * self.block_bytes;
        for page in self.payload[at..at + self.block_bytes].chunks_mut(4096) {
            self.writes = self.writes.wrapping_add(1);
            page[..8].copy_from_slice(&self.writes.to_le_bytes());
        }
    }

    /// Whether something is left to send.
    pub(super) fn wants_to_send(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// Fills `slices` with what to send next; returns how many are used.
    pub(super) fn gather<'b>(&'b self, slices: &mut [IoSlice<'b>; SLICES_MAX]) -> usize {
        let mut used = 0;
        let mut skip = self.piece_at;
        let mut from = self.headers_at;
        // The end of a run of headers that is not yet a slice.
        let mut until = from;
        for piece in &self.pieces {
            match *piece {
                Piece::Headers(bytes) => until += bytes - skip,
                Piece::Payload(slot) => {
                    if until > from {
                        slices[used] = IoSlice::new(&self.headers[from..until]);
                        used += 1;
                        from = until;
                    }
                    let at = slot as usize * self.block_bytes;
                    slices[used] = IoSlice::new(&self.payload[at + skip..at + self.block_bytes]);
                    used += 1;
                }
                Piece::Sent(_) => {}
            }
            skip = 0;
            // Two more must always fit: headers and a payload.
            if used + 2 > SLICES_MAX {
                return used;
            }
        }
        if until > from {
            slices[used] = IoSlice::new(&self.headers[from..until]);
            used += 1;
        }
        used
    }

    /// Notes that `bytes` of what was gathered are sent.
    pub(super) fn sent(&mut self, mut bytes: usize) {
        while let Some(piece) = self.pieces.front() {
            let length = match *piece {
                Piece::Headers(length) => length,
                Piece::Payload(_) => self.block_bytes,
                Piece::Sent(slot) => {
                    self.slots[slot as usize].sent = true;
                    0
                }
            };
            let step = bytes.min(length - self.piece_at);
            if matches!(piece, Piece::Headers(_)) {
                self.headers_at += step;
            }
            bytes -= step;
            self.piece_at += step;
            if self.piece_at < length {
                return;
            }
            self.piece_at = 0;
            self.pieces.pop_front();
        }
        debug_assert_eq!(bytes, 0, "more was sent than was offered");
        self.headers.clear();
        self.headers_at = 0;
    }

    /// Consumes reply bytes that arrived at `now`. Returns how many were consumed: all but the
    /// beginning of a header, fewer than 32 bytes.
    ///
    /// # Errors
    /// The server broke the protocol; the connection is of no more use.
    pub(super) fn receive(
        &mut self,
        bytes: &[u8],
        now: u64,
        recorder: &mut Recorder<'_>,
    ) -> Result<usize, ProtocolError> {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            match &mut self.parse {
                Parse::Header => match self.header(rest, now, recorder)? {
                    0 => return Ok(at),
                    used => at += used,
                },
                Parse::Data { slot, at: position, left, done } => {
                    let step = rest.len().min(*left);
                    if self.ledger.is_some() {
                        let to = *slot as usize * self.block_bytes + *position;
                        self.payload[to..to + step].copy_from_slice(&rest[..step]);
                    }
                    at += step;
                    *position += step;
                    *left -= step;
                    if *left > 0 {
                        return Ok(at);
                    }
                    let (slot, done) = (*slot, *done);
                    self.parse = Parse::Header;
                    if done {
                        self.complete(slot, now, recorder)?;
                    }
                }
                Parse::Skip { slot, left, done } => {
                    let step = rest.len().min(*left);
                    at += step;
                    *left -= step;
                    if *left > 0 {
                        return Ok(at);
                    }
                    let (slot, done) = (*slot, *done);
                    self.parse = Parse::Header;
                    if done {
                        self.complete(slot, now, recorder)?;
                    }
                }
            }
        }
    }

    /// Consumes one header; zero when it isn't all there.
    fn header(
        &mut self,
        bytes: &[u8],
        now: u64,
        recorder: &mut Recorder<'_>,
    ) -> Result<usize, ProtocolError> {
        if bytes.len() < SIMPLE_REPLY_BYTES {
            return Ok(0);
        }
        match be32(bytes, 0) {
            SIMPLE_REPLY_MAGIC => self.simple(bytes, now, recorder),
            CHUNK_MAGIC if self.structured => self.chunk(bytes, now, recorder),
            magic => Err(ProtocolError::Magic { magic }),
        }
    }

    fn simple(
        &mut self,
        bytes: &[u8],
        now: u64,
        recorder: &mut Recorder<'_>,
    ) -> Result<usize, ProtocolError> {
        let error = be32(bytes, 4);
        let slot = self.lookup(be64(bytes, 8))?;
        let entry = &mut self.slots[slot as usize];
        entry.failed = error != 0;
        if error == 0 && entry.operation.kind == Kind::Read {
            // NBD proto, "Structured reply chunk message": once negotiated, a read must not get
            // a simple reply. Being lenient here would only hide a broken server.
            if self.structured {
                return Err(ProtocolError::Magic { magic: SIMPLE_REPLY_MAGIC });
            }
            entry.received = self.block_bytes as u32;
            self.parse = Parse::Data { slot, at: 0, left: self.block_bytes, done: true };
        } else {
            self.complete(slot, now, recorder)?;
        }
        Ok(SIMPLE_REPLY_BYTES)
    }

    fn chunk(
        &mut self,
        bytes: &[u8],
        now: u64,
        recorder: &mut Recorder<'_>,
    ) -> Result<usize, ProtocolError> {
        if bytes.len() < CHUNK_BYTES {
            return Ok(0);
        }
        let done = be16(bytes, 4) & CHUNK_FLAG_DONE != 0;
        let kind = be16(bytes, 6);
        let slot = self.lookup(be64(bytes, 8))?;
        let length = be32(bytes, 16);
        let bad = Err(ProtocolError::Chunk { kind, length });
        let entry = &mut self.slots[slot as usize];
        let first = entry.operation.request * self.block_bytes as u64;
        // The position inside the request of `count` bytes at `offset`, when they lie inside.
        let inside = |offset: u64, count: u64| {
            let position = offset.checked_sub(first)?;
            (count > 0 && position.checked_add(count)? <= self.block_bytes as u64)
                .then_some(position as usize)
        };
        let reading = entry.operation.kind == Kind::Read;
        match kind {
            CHUNK_NONE if length == 0 && done => {
                self.complete(slot, now, recorder)?;
                Ok(CHUNK_BYTES)
            }
            CHUNK_OFFSET_DATA if reading && length > 8 => {
                if bytes.len() < CHUNK_BYTES + 8 {
                    return Ok(0);
                }
                let count = length - 8;
                let Some(at) = inside(be64(bytes, CHUNK_BYTES), u64::from(count)) else {
                    return bad;
                };
                entry.received = entry.received.saturating_add(count);
                self.parse = Parse::Data { slot, at, left: count as usize, done };
                Ok(CHUNK_BYTES + 8)
            }
            CHUNK_OFFSET_HOLE if reading && length == 12 => {
                if bytes.len() < CHUNK_BYTES + 12 {
                    return Ok(0);
                }
                let count = be32(bytes, CHUNK_BYTES + 8);
                let Some(at) = inside(be64(bytes, CHUNK_BYTES), u64::from(count)) else {
                    return bad;
                };
                entry.received = entry.received.saturating_add(count);
                if self.ledger.is_some() {
                    let to = slot as usize * self.block_bytes + at;
                    self.payload[to..to + count as usize].fill(0);
                }
                if done {
                    self.complete(slot, now, recorder)?;
                }
                Ok(CHUNK_BYTES + 12)
            }
            _ if kind & CHUNK_ERROR_BIT != 0 && (6..=ERROR_CHUNK_BYTES_MAX).contains(&length) => {
                entry.failed = true;
                self.parse = Parse::Skip { slot, left: length as usize, done };
                Ok(CHUNK_BYTES)
            }
            _ => bad,
        }
    }

    fn lookup(&self, cookie: u64) -> Result<u32, ProtocolError> {
        let slot = cookie as u32;
        match self.slots.get(slot as usize) {
            Some(entry) if entry.busy && u64::from(entry.generation) == cookie >> 32 => {
                if entry.sent { Ok(slot) } else { Err(ProtocolError::Early) }
            }
            _ => Err(ProtocolError::Cookie { cookie }),
        }
    }

    fn complete(
        &mut self,
        slot: u32,
        now: u64,
        recorder: &mut Recorder<'_>,
    ) -> Result<(), ProtocolError> {
        let entry = &mut self.slots[slot as usize];
        entry.busy = false;
        let entry = *entry;
        let Operation { kind, request } = entry.operation;
        if kind == Kind::Read && !entry.failed && entry.received != self.block_bytes as u32 {
            let wanted = self.block_bytes as u32;
            return Err(ProtocolError::Incomplete { wanted, got: entry.received });
        }
        if let Some(ledger) = self.ledger {
            match kind {
                Kind::Write => ledger.end_write(request, !entry.failed),
                Kind::Read if !entry.failed => {
                    let at = slot as usize * self.block_bytes;
                    let payload = &self.payload[at..at + self.block_bytes];
                    self.checked.note(ledger.check(request, entry.oldest, payload));
                }
                Kind::Read | Kind::Flush | Kind::Discard => {}
            }
        }
        self.free.push(slot);
        let counts = recorder.answer(kind, entry.issued, now, !entry.failed);
        self.answered += u64::from(counts && kind != Kind::Flush);
        Ok(())
    }
}

const _: () = assert!(HEADER_BYTES_MAX == 32, "as the documentation of `receive` says");
