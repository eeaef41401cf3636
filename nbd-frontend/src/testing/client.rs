//! A client that trusts nothing: it checks every rule about replies that it can.

use super::encode;
use crate::proto::*;
use crate::reply::{StatusExtent, Style};
use crate::wire::Fields;
use std::collections::BTreeMap;

/// A rule of the protocol that the server broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("protocol violation by the server: {0}")]
pub struct Violation(pub &'static str);

/// How a request ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Error numbers, with the offset in the export where one was given.
    pub errors: Vec<(u32, Option<u64>)>,
    /// A READ's bytes; where an error or nothing covers them they are zero.
    pub data: Vec<u8>,
    /// A BLOCK_STATUS's extents.
    pub extents: Vec<StatusExtent>,
    /// Content chunks that were holes.
    pub holes: usize,
}

impl Outcome {
    /// The first error's number.
    #[must_use]
    pub fn error(&self) -> Option<u32> {
        self.errors.first().map(|(errno, _)| *errno)
    }
}

/// What a client learnt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The handshake is over.
    Opened {
        /// Bytes.
        size: u64,
        /// Transmission flags.
        flags: u16,
    },
    /// The server refused an option.
    Refused {
        /// The option.
        option: u32,
        /// The reply's type.
        kind: u32,
    },
    /// A request was answered in full.
    Done {
        /// The request's name.
        cookie: u64,
        /// How it ended.
        outcome: Outcome,
    },
}

#[derive(Debug)]
struct Pending {
    kind: u16,
    flags: u16,
    offset: u64,
    len: u64,
    outcome: Outcome,
    /// What the content chunks covered so far, as offsets relative to the request.
    covered: Vec<(u64, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Greeting,
    Options,
    Transmission,
}

/// One connection's client side: bytes out through [`Client::take_output`], bytes in through
/// [`Client::receive`].
#[derive(Debug)]
pub struct Client {
    style: Style,
    phase: Phase,
    opened: Option<(u64, u16)>,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    pending: BTreeMap<u64, Pending>,
    next_cookie: u64,
}

impl Client {
    /// A client that wants export `name` in the given style, with `base:allocation` where that
    /// is possible. It sends its whole handshake ahead.
    #[must_use]
    pub fn new(name: &str, style: Style) -> Self {
        let mut outbox = encode::client_flags().to_vec();
        match style {
            Style::Simple => {}
            Style::Structured => encode::option(&mut outbox, OPT_STRUCTURED_REPLY, &[]),
            Style::Extended => encode::option(&mut outbox, OPT_EXTENDED_HEADERS, &[]),
        }
        if style.has_chunks() {
            let data = encode::meta_data(name, &[BASE_ALLOCATION]);
            encode::option(&mut outbox, OPT_SET_META_CONTEXT, &data);
        }
        let requests = [INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE];
        encode::option(&mut outbox, OPT_GO, &encode::info_data(name, &requests));
        Self {
            style,
            phase: Phase::Greeting,
            opened: None,
            inbox: Vec::new(),
            outbox,
            pending: BTreeMap::new(),
            next_cookie: 1,
        }
    }

    /// Bytes to send to the server.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.outbox)
    }

    /// Requests without a complete reply.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Sends any request but a WRITE; returns its cookie.
    pub fn request(&mut self, kind: u16, flags: u16, offset: u64, len: u64) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        encode::request(&mut self.outbox, self.style, flags, kind, cookie, offset, len);
        self.track(cookie, kind, flags, offset, len);
        cookie
    }

    /// Sends a READ.
    pub fn read(&mut self, offset: u64, len: u64) -> u64 {
        self.request(CMD_READ, 0, offset, len)
    }

    /// Sends a WRITE; returns its cookie.
    pub fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        encode::write(&mut self.outbox, self.style, flags, cookie, offset, data);
        self.track(cookie, CMD_WRITE, flags, offset, data.len() as u64);
        cookie
    }

    /// Sends a FLUSH.
    pub fn flush(&mut self) -> u64 {
        self.request(CMD_FLUSH, 0, 0, 0)
    }

    /// Sends a DISC, which has no reply.
    pub fn disconnect(&mut self) {
        encode::request(&mut self.outbox, self.style, 0, CMD_DISC, 0, 0, 0);
    }

    fn track(&mut self, cookie: u64, kind: u16, flags: u16, offset: u64, len: u64) {
        let mut outcome = Outcome::default();
        if kind == CMD_READ && len <= u64::from(crate::limits::MAX_PAYLOAD_BYTES) {
            outcome.data = vec![0; len as usize];
        }
        let covered = Vec::new();
        let pending = Pending { kind, flags, offset, len, outcome, covered };
        self.pending.insert(cookie, pending);
    }

    /// Takes what the server sent, in any cut.
    ///
    /// # Errors
    /// A [`Violation`]; the client is useless after it.
    pub fn receive(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), Violation> {
        self.inbox.extend_from_slice(bytes);
        let inbox = std::mem::take(&mut self.inbox);
        let mut rest = &inbox[..];
        while let Some(used) = self.step(rest, events)? {
            rest = &rest[used..];
        }
        self.inbox = rest.to_vec();
        Ok(())
    }

    /// `None`: more bytes are needed.
    fn step(&mut self, input: &[u8], events: &mut Vec<Event>) -> Result<Option<usize>, Violation> {
        match self.phase {
            Phase::Greeting => self.greeting(input),
            Phase::Options => self.option_reply(input, events),
            Phase::Transmission => self.reply(input, events),
        }
    }

    fn greeting(&mut self, input: &[u8]) -> Result<Option<usize>, Violation> {
        let mut fields = Fields(input);
        let (Some(passwd), Some(magic), Some(flags)) = (fields.u64(), fields.u64(), fields.u16())
        else {
            return Ok(None);
        };
        if passwd != INIT_PASSWD || magic != IHAVEOPT {
            return Err(Violation("greeting"));
        }
        if flags != FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES {
            return Err(Violation("handshake flags"));
        }
        self.phase = Phase::Options;
        Ok(Some(18))
    }

    fn option_reply(
        &mut self,
        input: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<Option<usize>, Violation> {
        let mut fields = Fields(input);
        let (Some(magic), Some(option), Some(kind), Some(len)) =
            (fields.u64(), fields.u32(), fields.u32(), fields.u32())
        else {
            return Ok(None);
        };
        if magic != REPLY_MAGIC {
            return Err(Violation("option reply magic"));
        }
        let Some(data) = fields.bytes(len as usize) else { return Ok(None) };
        match kind {
            REP_ACK if !data.is_empty() => return Err(Violation("data in NBD_REP_ACK")),
            REP_ACK if option == OPT_GO => {
                let (size, flags) =
                    self.opened.ok_or(Violation("NBD_OPT_GO without NBD_INFO_EXPORT"))?;
                self.phase = Phase::Transmission;
                events.push(Event::Opened { size, flags });
            }
            REP_ACK => {}
            REP_INFO => {
                let mut fields = Fields(data);
                match fields.u16().ok_or(Violation("short NBD_REP_INFO"))? {
                    INFO_EXPORT => match (fields.u64(), fields.u16(), fields.0) {
                        (Some(size), Some(flags), []) => self.opened = Some((size, flags)),
                        _ => return Err(Violation("length of NBD_INFO_EXPORT")),
                    },
                    INFO_BLOCK_SIZE if data.len() != 14 => {
                        return Err(Violation("length of NBD_INFO_BLOCK_SIZE"));
                    }
                    _ => {}
                }
            }
            _ if kind & REP_FLAG_ERROR != 0 => {
                if std::str::from_utf8(data).is_err() {
                    return Err(Violation("an error message that is not UTF-8"));
                }
                events.push(Event::Refused { option, kind });
            }
            _ => {}
        }
        Ok(Some(20 + data.len()))
    }

    fn reply(&mut self, input: &[u8], events: &mut Vec<Event>) -> Result<Option<usize>, Violation> {
        let Some(magic) = Fields(input).u32() else { return Ok(None) };
        match (magic, self.style) {
            (SIMPLE_REPLY_MAGIC, Style::Simple | Style::Structured) => {
                self.simple_reply(input, events)
            }
            (STRUCTURED_REPLY_MAGIC, Style::Structured)
            | (EXTENDED_REPLY_MAGIC, Style::Extended) => self.chunk(input, events),
            _ => Err(Violation("reply magic")),
        }
    }

    fn simple_reply(
        &mut self,
        input: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<Option<usize>, Violation> {
        let mut fields = Fields(input);
        let (Some(_), Some(errno), Some(cookie)) = (fields.u32(), fields.u32(), fields.u64())
        else {
            return Ok(None);
        };
        let pending = self.pending.get(&cookie).ok_or(Violation("unknown cookie"))?;
        if self.style == Style::Structured && pending.kind == CMD_READ {
            return Err(Violation("simple reply to a READ with structured replies"));
        }
        let mut used = 16;
        let has_data = pending.kind == CMD_READ && errno == 0;
        let data = if has_data {
            let Some(data) = fields.bytes(pending.len as usize) else { return Ok(None) };
            used += data.len();
            data
        } else {
            &[]
        };
        let mut pending = self.pending.remove(&cookie).ok_or(Violation("unknown cookie"))?;
        if errno != 0 {
            pending.outcome.errors.push((errno, None));
        } else if pending.kind == CMD_BLOCK_STATUS {
            return Err(Violation("BLOCK_STATUS succeeded without extents"));
        } else {
            pending.outcome.data.copy_from_slice(data);
        }
        events.push(Event::Done { cookie, outcome: pending.outcome });
        Ok(Some(used))
    }

    fn chunk(&mut self, input: &[u8], events: &mut Vec<Event>) -> Result<Option<usize>, Violation> {
        const SHORT: Violation = Violation("chunk payload too short");
        let extended = self.style == Style::Extended;
        let header_bytes = if extended { 32 } else { 20 };
        let mut fields = Fields(input);
        if input.len() < header_bytes {
            return Ok(None);
        }
        let _magic = fields.u32();
        let (flags, kind) = (fields.u16().ok_or(SHORT)?, fields.u16().ok_or(SHORT)?);
        let cookie = fields.u64().ok_or(SHORT)?;
        let echoed = if extended { fields.u64() } else { None };
        let len = if extended {
            fields.u64().ok_or(SHORT)?
        } else {
            u64::from(fields.u32().ok_or(SHORT)?)
        };
        let len = usize::try_from(len).map_err(|_| Violation("chunk length"))?;
        let Some(payload) = fields.bytes(len) else { return Ok(None) };
        let pending = self.pending.get_mut(&cookie).ok_or(Violation("unknown cookie"))?;
        if echoed.is_some_and(|offset| offset != pending.offset) {
            return Err(Violation("extended reply's offset"));
        }
        if flags & !REPLY_FLAG_DONE != 0 {
            return Err(Violation("unknown reply flag"));
        }
        pending.content(kind, payload, extended)?;
        if flags & REPLY_FLAG_DONE != 0 {
            let pending = self.pending.remove(&cookie).ok_or(Violation("unknown cookie"))?;
            let outcome = pending.finish()?;
            events.push(Event::Done { cookie, outcome });
        } else if kind == REPLY_TYPE_NONE {
            return Err(Violation("NBD_REPLY_TYPE_NONE without DONE"));
        }
        Ok(Some(header_bytes + len))
    }
}

impl Pending {
    fn content(&mut self, kind: u16, payload: &[u8], extended: bool) -> Result<(), Violation> {
        const SHORT: Violation = Violation("chunk payload length");
        let mut fields = Fields(payload);
        match kind {
            REPLY_TYPE_NONE if payload.is_empty() => {}
            REPLY_TYPE_OFFSET_DATA => {
                let offset = fields.u64().ok_or(SHORT)?;
                let start = self.cover(offset, fields.0.len() as u64)?;
                self.outcome.data[start..start + fields.0.len()].copy_from_slice(fields.0);
            }
            REPLY_TYPE_OFFSET_HOLE => {
                let (offset, len) = (fields.u64().ok_or(SHORT)?, fields.u32().ok_or(SHORT)?);
                if !fields.0.is_empty() {
                    return Err(SHORT);
                }
                self.cover(offset, u64::from(len))?;
                self.outcome.holes += 1;
            }
            REPLY_TYPE_BLOCK_STATUS | REPLY_TYPE_BLOCK_STATUS_EXT => {
                self.status(kind == REPLY_TYPE_BLOCK_STATUS_EXT, payload, extended)?;
            }
            REPLY_TYPE_ERROR | REPLY_TYPE_ERROR_OFFSET => {
                let errno = fields.u32().ok_or(SHORT)?;
                let text = fields.u16().ok_or(SHORT)?;
                fields.bytes(usize::from(text)).ok_or(SHORT)?;
                let offset = if kind == REPLY_TYPE_ERROR_OFFSET {
                    let offset = fields.u64().ok_or(SHORT)?;
                    if offset < self.offset || offset - self.offset >= self.len {
                        return Err(Violation("error offset outside the request"));
                    }
                    Some(offset)
                } else {
                    None
                };
                if errno == 0 || !fields.0.is_empty() {
                    return Err(Violation("error chunk"));
                }
                self.outcome.errors.push((errno, offset));
            }
            _ => return Err(Violation("chunk type")),
        }
        Ok(())
    }

    /// Returns where in the READ's data the chunk goes.
    fn cover(&mut self, offset: u64, len: u64) -> Result<usize, Violation> {
        if self.kind != CMD_READ {
            return Err(Violation("content chunk for something else than a READ"));
        }
        let start = offset.checked_sub(self.offset).ok_or(Violation("content before the range"))?;
        if len == 0 || start + len > self.len {
            return Err(Violation("content outside the range"));
        }
        if self.covered.iter().any(|&(from, to)| start < to && from < start + len) {
            return Err(Violation("content chunks overlap"));
        }
        if self.flags & CMD_FLAG_DF != 0 && !self.covered.is_empty() {
            return Err(Violation("a fragmented reply in spite of NBD_CMD_FLAG_DF"));
        }
        self.covered.push((start, start + len));
        Ok(start as usize)
    }

    fn status(&mut self, wide: bool, payload: &[u8], extended: bool) -> Result<(), Violation> {
        const SHORT: Violation = Violation("status chunk's length");
        if wide != extended || self.kind != CMD_BLOCK_STATUS || !self.outcome.extents.is_empty() {
            return Err(Violation("status chunk"));
        }
        let mut fields = Fields(payload);
        if fields.u32().ok_or(SHORT)? != BASE_ALLOCATION_ID {
            return Err(Violation("metadata context identifier"));
        }
        if wide {
            let count = fields.u32().ok_or(SHORT)?;
            if fields.0.len() as u64 != u64::from(count) * 16 {
                return Err(SHORT);
            }
        }
        let mut told = 0;
        while !fields.0.is_empty() {
            if told >= self.len {
                return Err(Violation("an extent past the end of the request"));
            }
            let (len, flags) = if wide {
                let (len, flags) = (fields.u64().ok_or(SHORT)?, fields.u64().ok_or(SHORT)?);
                (len, u32::try_from(flags).map_err(|_| Violation("status flags"))?)
            } else {
                (u64::from(fields.u32().ok_or(SHORT)?), fields.u32().ok_or(SHORT)?)
            };
            if len == 0 {
                return Err(Violation("an empty extent"));
            }
            told += len;
            self.outcome.extents.push(StatusExtent { len, flags });
        }
        let one = self.flags & CMD_FLAG_REQ_ONE != 0;
        if self.outcome.extents.is_empty()
            || (one && (self.outcome.extents.len() > 1 || told > self.len))
        {
            return Err(Violation("number of extents"));
        }
        Ok(())
    }

    fn finish(self) -> Result<Outcome, Violation> {
        if self.outcome.errors.is_empty() {
            let covered: u64 = self.covered.iter().map(|(from, to)| to - from).sum();
            if self.kind == CMD_READ && covered != self.len {
                return Err(Violation("a READ succeeded without all of its data"));
            }
            if self.kind == CMD_BLOCK_STATUS && self.outcome.extents.is_empty() {
                return Err(Violation("BLOCK_STATUS succeeded without extents"));
            }
        }
        Ok(self.outcome)
    }
}
