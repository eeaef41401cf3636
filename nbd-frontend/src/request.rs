//! Requests of the transmission phase: decoding and judging.
//!
//! Source: NBD proto, "Request message", "Request types", "Command flags", "Error values".

use crate::limits::{MAX_PAYLOAD_BYTES, MAX_UNFRAGMENTED_BYTES};
use crate::proto::*;
use crate::reply::{ReplyTo, Style};
use crate::wire::Fields;
use flagstone_block::{BLOCK_BITS, BLOCK_SIZE, Durability, ZeroMode};

/// What a client wants done with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send the range's bytes.
    Read {
        /// One content chunk only; the range is then at most
        /// [`crate::limits::MAX_UNFRAGMENTED_BYTES`].
        whole: bool,
    },
    /// Store the payload that follows as [`crate::Step::Payload`].
    Write {
        /// When it counts as done.
        durability: Durability,
    },
    /// Make everything that was answered so far survive power loss.
    Flush,
    /// Leave zeroes, or for [`ZeroMode::Discard`] whatever is cheapest.
    Zero {
        /// What may become of the space.
        mode: ZeroMode,
        /// When it counts as done.
        durability: Durability,
    },
    /// Tell which parts are allocated.
    BlockStatus {
        /// One extent only, no longer than the range.
        one: bool,
    },
}

/// A request that was found valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What its reply must repeat.
    pub to: ReplyTo,
    /// What to do.
    pub command: Command,
    /// First byte of the range in the export.
    pub offset: u64,
    /// Bytes in the range; zero only for [`Command::Flush`].
    pub len: u64,
}

/// A request's header as it stands on the wire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    pub(crate) to: ReplyTo,
    pub(crate) len: u64,
}

/// What the judge needs to know of the export.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) style: Style,
    pub(crate) size: u64,
    pub(crate) read_only: bool,
    pub(crate) block_status: bool,
}

/// A valid header's meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// To be performed.
    Perform(Request),
    /// Succeeds without anything to do.
    Nothing,
}

impl Header {
    /// `None`: not all of it is there. `Some(Err)`: not a request at all.
    pub(crate) fn decode(style: Style, input: &[u8]) -> Option<Result<Self, ()>> {
        if input.len() < style.request_bytes() {
            return None;
        }
        let mut fields = Fields(input);
        let magic = fields.u32()?;
        let (flags, kind) = (fields.u16()?, fields.u16()?);
        let to = ReplyTo { cookie: fields.u64()?, offset: fields.u64()? };
        let (expected, len) = match style {
            Style::Extended => (EXTENDED_REQUEST_MAGIC, fields.u64()?),
            Style::Simple | Style::Structured => (REQUEST_MAGIC, u64::from(fields.u32()?)),
        };
        Some(if magic == expected { Ok(Self { flags, kind, to, len }) } else { Err(()) })
    }

    /// Bytes of payload that follow the header, whatever becomes of the request.
    pub(crate) fn payload(&self, style: Style) -> u64 {
        // A WRITE without the flag is against the rules of extended headers, but QEMU's client (10.0)
        // sends it so, with its payload behind it, and QEMU's server takes it so.
        let has_payload = self.kind == CMD_WRITE
            || (style == Style::Extended && self.flags & CMD_FLAG_PAYLOAD_LEN != 0);
        if has_payload { self.len } else { 0 }
    }

    /// Decides whether the request is to be performed. The first reason to refuse wins, in the
    /// order: command, flags, permission, length, range.
    pub(crate) fn judge(&self, terms: &Terms) -> Result<Verdict, Errno> {
        // Existing clients set FUA on any command, so it is always allowed.
        let (allowed, writes, past_end) = match self.kind {
            CMD_READ => {
                (if terms.style.has_chunks() { CMD_FLAG_DF } else { 0 }, false, Errno::Inval)
            }
            CMD_WRITE => (
                if terms.style == Style::Extended { CMD_FLAG_PAYLOAD_LEN } else { 0 },
                true,
                Errno::NoSpace,
            ),
            CMD_FLUSH | CMD_CACHE => (0, false, Errno::Inval),
            CMD_TRIM => (0, true, Errno::Inval),
            CMD_WRITE_ZEROES => (CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO, true, Errno::NoSpace),
            CMD_BLOCK_STATUS => (CMD_FLAG_REQ_ONE, false, Errno::Inval),
            _ => return Err(Errno::Inval),
        };
        if self.flags & !(allowed | CMD_FLAG_FUA) != 0 {
            return Err(Errno::Inval);
        }
        if writes && terms.read_only {
            return Err(Errno::Perm);
        }
        let durability =
            if self.flags & CMD_FLAG_FUA != 0 { Durability::Fua } else { Durability::Completed };
        let command = match self.kind {
            CMD_FLUSH => {
                // "length and offset are reserved, and MUST be set to all-zero".
                let request = Request { to: self.to, command: Command::Flush, offset: 0, len: 0 };
                let valid = self.to.offset == 0 && self.len == 0;
                return if valid { Ok(Verdict::Perform(request)) } else { Err(Errno::Inval) };
            }
            CMD_READ => Command::Read { whole: self.flags & CMD_FLAG_DF != 0 },
            CMD_WRITE => Command::Write { durability },
            CMD_TRIM => Command::Zero { mode: ZeroMode::Discard, durability },
            CMD_WRITE_ZEROES => {
                let mode = if self.flags & CMD_FLAG_NO_HOLE != 0 {
                    ZeroMode::KeepAllocated
                } else {
                    ZeroMode::MayUnmap
                };
                Command::Zero { mode, durability }
            }
            CMD_BLOCK_STATUS => {
                if !terms.block_status || self.len == 0 {
                    return Err(Errno::Inval);
                }
                Command::BlockStatus { one: self.flags & CMD_FLAG_REQ_ONE != 0 }
            }
            // A hint that needs nothing done: reads verify what they fetch, whenever they do.
            _ => {
                self.check_range(terms, past_end)?;
                return Ok(Verdict::Nothing);
            }
        };
        if matches!(command, Command::Read { .. } | Command::Write { .. })
            && self.len > u64::from(MAX_PAYLOAD_BYTES)
        {
            return Err(Errno::Inval);
        }
        self.check_range(terms, past_end)?;
        if command == (Command::Read { whole: true })
            && self.len > u64::from(MAX_UNFRAGMENTED_BYTES)
        {
            return Err(Errno::Overflow);
        }
        if self.len == 0 {
            return Ok(Verdict::Nothing);
        }
        if self.flags & CMD_FLAG_FAST_ZERO != 0 && !self.covers_a_block() {
            // Parts of blocks are zeroed by rewriting them, which a write could do as fast.
            return Err(Errno::NotSup);
        }
        Ok(Verdict::Perform(Request {
            to: self.to,
            command,
            offset: self.to.offset,
            len: self.len,
        }))
    }

    fn check_range(&self, terms: &Terms, past_end: Errno) -> Result<(), Errno> {
        match self.to.offset.checked_add(self.len) {
            Some(end) if end <= terms.size => Ok(()),
            _ => Err(past_end),
        }
    }

    fn covers_a_block(&self) -> bool {
        let first = self.to.offset.div_ceil(BLOCK_SIZE as u64);
        (self.to.offset + self.len) >> BLOCK_BITS > first
    }
}
