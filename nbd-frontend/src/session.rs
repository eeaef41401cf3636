//! One connection, from the greeting to the close.
//!
//! See the crate's invariants. The transmission phase lives here; the handshake and the judging
//! of requests have their own modules.

use crate::context::Contexts;
use crate::export::Exports;
use crate::handshake::{GREETING, Handshake};
use crate::limits::{MAX_PAYLOAD_BYTES, MAX_SKIPPED_PAYLOAD_BYTES};
use crate::proto::{CMD_DISC, Errno};
use crate::reply::{ReplyTo, Style};
use crate::request::{Command, Header, Request, Terms, Verdict};
use crate::wire::Out;

/// Why a connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// `NBD_OPT_ABORT`: send the replies that are queued first.
    #[error("the client ended the handshake")]
    Aborted,
    /// `NBD_CMD_DISC`: finish and answer the requests that are in flight first.
    #[error("the client disconnected")]
    Disconnected,
    /// Client flags that the server didn't offer.
    #[error("unknown client flags")]
    UnknownClientFlags,
    /// An option that doesn't start with `IHAVEOPT`.
    #[error("not an option")]
    BadOptionMagic,
    /// A client that doesn't know fixed newstyle sent something else than an export name.
    #[error("an option before fixed newstyle was negotiated")]
    OptionBeforeFixedNewstyle,
    /// Beyond [`crate::limits::MAX_SKIPPED_OPTION_BYTES`].
    #[error("an option longer than the server skips")]
    OptionTooLong,
    /// Beyond [`crate::limits::MAX_OPTIONS`].
    #[error("too many options in one handshake")]
    TooManyOptions,
    /// `NBD_OPT_EXPORT_NAME` can't be refused in any other way.
    #[error("no such export, by NBD_OPT_EXPORT_NAME")]
    NoSuchExport,
    /// A request with another magic than was negotiated.
    #[error("not a request")]
    BadRequestMagic,
    /// Beyond what is skipped of a refused payload.
    #[error("a payload longer than the server skips")]
    PayloadTooLong,
}

impl CloseReason {
    /// The client asked for it; anything else is a violation, for which the connection is
    /// dropped at once.
    #[must_use]
    pub const fn is_clean(self) -> bool {
        matches!(self, Self::Aborted | Self::Disconnected)
    }
}

/// The export that a client chose, and what was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// [`crate::Export::handle`].
    pub handle: u64,
    /// Bytes.
    pub size: u64,
    /// Writes get `NBD_EPERM`.
    pub read_only: bool,
    /// How replies are framed.
    pub style: Style,
    /// What BLOCK_STATUS is to tell.
    pub contexts: Contexts,
}

/// Payload of the WRITE that was announced last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Where in the export the next byte goes.
    pub offset: u64,
    /// Bytes of payload still to come, those at hand included; at least 1.
    pub left: u32,
    /// How many of them are in the input now; at least 1.
    pub here: usize,
}

/// What the session wants from its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Offer what was not consumed again, with more behind it.
    NeedMore,
    /// Send what is in the reply buffer and offer an empty one. Handshake only.
    NeedRoom,
    /// Progress was made; offer the rest, if only to hear [`Step::NeedMore`].
    Again,
    /// The handshake is over. Send what is in the reply buffer before any other reply.
    Opened(Opened),
    /// Perform this. A [`Command::Write`] is followed by its [`Step::Payload`]s.
    Request(Request),
    /// Of the input's front, `here` bytes are payload: use some and say how many with
    /// [`Session::payload_used`], or drop it all with [`Session::skip_payload`].
    Payload(Payload),
    /// The payload that [`Session::skip_payload`] dropped has passed.
    PayloadOver,
    /// Send this reply; there is nothing else to do.
    Answer(ReplyTo, Result<(), Errno>),
    /// Read nothing more. For a reason that [`CloseReason::is_clean`], finish what is under way
    /// first.
    Close(CloseReason),
}

/// What [`Session::receive`] made of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes of the input that are done with.
    pub consumed: usize,
    /// What to do before the rest is offered.
    pub step: Step,
}

#[derive(Debug)]
enum Phase {
    Handshake(Handshake),
    /// A request's header comes next.
    Header,
    /// Payload for `offset` comes next.
    Payload {
        offset: u64,
        left: u32,
    },
    /// Payload that nobody wants comes next, then perhaps an answer is due. It has to wait:
    /// clients may take a reply to a request they are still sending for a mistake.
    Skip {
        left: u32,
        answer: Option<(ReplyTo, Errno)>,
    },
    Closed(CloseReason),
}

/// One connection's protocol state. No buffers, no allocation.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    terms: Terms,
    shutting_down: bool,
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

impl Session {
    /// A session before the client's first byte. The server speaks first: send
    /// [`Session::greeting`].
    #[must_use]
    pub fn new() -> Self {
        Self {
            phase: Phase::Handshake(Handshake::new()),
            terms: Terms { style: Style::Simple, size: 0, read_only: true, block_status: false },
            shutting_down: false,
        }
    }

    /// A session past its handshake, with simple replies: the kernel's client gets its socket like that.
    #[must_use]
    pub fn transmitting(size: u64, read_only: bool) -> Self {
        Self {
            phase: Phase::Header,
            terms: Terms { style: Style::Simple, size, read_only, block_status: false },
            shutting_down: false,
        }
    }

    /// The bytes that open every connection.
    #[must_use]
    pub const fn greeting() -> &'static [u8; 18] {
        &GREETING
    }

    /// How transmission replies are framed; meaningful once [`Step::Opened`] was returned.
    #[must_use]
    pub const fn style(&self) -> Style {
        self.terms.style
    }

    /// Still negotiating.
    #[must_use]
    pub const fn in_handshake(&self) -> bool {
        matches!(self.phase, Phase::Handshake(_))
    }

    /// The export has grown to `size` bytes; requests are judged by it from now on.
    pub fn resized(&mut self, size: u64) {
        self.terms.size = size;
    }

    /// From now on options get `NBD_REP_ERR_SHUTDOWN` and requests `NBD_ESHUTDOWN`.
    /// NBD proto, "Terminating the transmission phase".
    pub fn shut_down(&mut self) {
        self.shutting_down = true;
        if let Phase::Handshake(handshake) = &mut self.phase {
            handshake.shutting_down = true;
        }
    }

    /// Takes the next step that `input`, the received bytes not yet consumed, allows.
    ///
    /// `out` takes handshake replies and is untouched during transmission. Call again with the
    /// rest of the input until the answer is [`Step::NeedMore`].
    pub fn receive(&mut self, input: &[u8], exports: &dyn Exports, out: &mut Out<'_>) -> Received {
        if let Phase::Handshake(handshake) = &mut self.phase {
            let received = handshake.receive(input, exports, out);
            if let Step::Opened(opened) = received.step {
                self.terms = Terms {
                    style: opened.style,
                    size: opened.size,
                    read_only: opened.read_only,
                    block_status: !opened.contexts.is_empty(),
                };
                self.phase = Phase::Header;
            }
            return received;
        }
        self.transmission(input)
    }

    /// As [`Session::receive`], for a session that is past its handshake.
    ///
    /// # Panics
    /// If it is not.
    pub fn transmission(&mut self, input: &[u8]) -> Received {
        match self.phase {
            Phase::Handshake(_) => unreachable!("the owner saw no Step::Opened yet"),
            Phase::Header => self.header(input),
            Phase::Payload { offset, left } => {
                let here = input.len().min(left as usize);
                let step = if here == 0 {
                    Step::NeedMore
                } else {
                    Step::Payload(Payload { offset, left, here })
                };
                Received { consumed: 0, step }
            }
            Phase::Skip { left, answer } => {
                let consumed = input.len().min(left as usize);
                let left = left - consumed as u32;
                if left > 0 {
                    self.phase = Phase::Skip { left, answer };
                    return Received { consumed, step: Step::NeedMore };
                }
                self.phase = Phase::Header;
                let step = match answer {
                    Some((to, errno)) => Step::Answer(to, Err(errno)),
                    None => Step::PayloadOver,
                };
                Received { consumed, step }
            }
            Phase::Closed(reason) => Received { consumed: 0, step: Step::Close(reason) },
        }
    }

    /// The owner has used `bytes` of the payload at hand, and will offer what follows them next.
    /// Returns how many bytes of this payload are still to come.
    ///
    /// # Panics
    /// If that much payload is not due.
    pub fn payload_used(&mut self, bytes: usize) -> u32 {
        let Phase::Payload { offset, left } = self.phase else {
            panic!("no payload is due");
        };
        assert!(bytes <= left as usize, "{bytes} bytes used of {left}");
        let used = bytes as u32;
        self.phase = if used == left {
            Phase::Header
        } else {
            Phase::Payload { offset: offset + u64::from(used), left: left - used }
        };
        left - used
    }

    /// The owner wants no more of this payload; what is left of it will be dropped. The reply is
    /// still the owner's to send, best after [`Step::PayloadOver`].
    ///
    /// Does nothing when no payload is due.
    pub fn skip_payload(&mut self) {
        if let Phase::Payload { left, .. } = self.phase {
            self.phase = Phase::Skip { left, answer: None };
        }
    }

    fn close(&mut self, consumed: usize, reason: CloseReason) -> Received {
        self.phase = Phase::Closed(reason);
        Received { consumed, step: Step::Close(reason) }
    }

    fn header(&mut self, input: &[u8]) -> Received {
        let style = self.terms.style;
        let consumed = style.request_bytes();
        let header = match Header::decode(style, input) {
            None => return Received { consumed: 0, step: Step::NeedMore },
            Some(Err(())) => return self.close(consumed, CloseReason::BadRequestMagic),
            Some(Ok(header)) => header,
        };
        if header.kind == CMD_DISC {
            return self.close(consumed, CloseReason::Disconnected);
        }
        let payload = header.payload(style);
        let bound = match style {
            // "A server SHOULD initiate hard disconnect" beyond the maximum payload.
            Style::Extended => MAX_PAYLOAD_BYTES,
            Style::Simple | Style::Structured => MAX_SKIPPED_PAYLOAD_BYTES,
        };
        let Ok(payload) = u32::try_from(payload) else {
            return self.close(consumed, CloseReason::PayloadTooLong);
        };
        if payload > bound {
            return self.close(consumed, CloseReason::PayloadTooLong);
        }
        let verdict =
            if self.shutting_down { Err(Errno::Shutdown) } else { header.judge(&self.terms) };
        let step = match verdict {
            Ok(Verdict::Perform(request)) => {
                if let Command::Write { .. } = request.command {
                    self.phase = Phase::Payload { offset: request.offset, left: payload };
                }
                Step::Request(request)
            }
            Ok(Verdict::Nothing) => Step::Answer(header.to, Ok(())),
            Err(errno) if payload > 0 => {
                self.phase = Phase::Skip { left: payload, answer: Some((header.to, errno)) };
                Step::Again
            }
            Err(errno) => Step::Answer(header.to, Err(errno)),
        };
        Received { consumed, step }
    }
}
