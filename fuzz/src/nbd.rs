//! The NBD server's side: handshake, transmission, and a whole conversation.
//!
//! The first two feed any bytes to a session, once whole and once cut in pieces, and want the
//! same from both. The third plays a client that knows the protocol and checks every reply
//! against an owner that answers out of order, in pieces, with errors, while the export grows
//! and the server shuts down.

use crate::input::Input;
use flagstone_nbd::limits::{HANDSHAKE_REPLY_BYTES, MAX_INPUT_BYTES};
use flagstone_nbd::proto::{CMD_DISC, CMD_FLAG_PAYLOAD_LEN, CMD_WRITE, STATE_HOLE, STATE_ZERO};
use flagstone_nbd::reply::{self, MAX_HEADER_BYTES, StatusExtent};
use flagstone_nbd::testing::{self, Client, Event, ExportList};
use flagstone_nbd::{Command, Errno, Out, Request, Session, Step, Style};

const EXPORT_BYTES: u64 = 1 << 30;
/// Requests of one conversation: enough for any interleaving that matters.
const ACTIONS: usize = 200;

/// Any bytes from the first one on.
pub fn nbd_handshake(input: &[u8]) {
    testing::fuzz_handshake(input);
}

/// Any bytes after a handshake.
pub fn nbd_transmission(input: &[u8]) {
    testing::fuzz_transmission(input);
}

/// The owner of a session: what a node is in the product.
struct Server {
    session: Session,
    exports: ExportList,
    size: u64,
    input: Vec<u8>,
    output: Vec<u8>,
    opened: bool,
    closed: bool,
    /// The WRITE whose payload comes next, and whether that is being dropped.
    receiving: Option<(Request, bool)>,
    pending: Vec<Request>,
}

impl Server {
    fn new(read_only: bool) -> Self {
        Self {
            session: Session::new(),
            exports: ExportList::default().with("vol", EXPORT_BYTES, read_only),
            size: EXPORT_BYTES,
            input: Vec::new(),
            output: Session::greeting().to_vec(),
            opened: false,
            closed: false,
            receiving: None,
            pending: Vec::new(),
        }
    }

    fn put(&mut self, encode: impl FnOnce(&mut Out<'_>)) {
        let mut buffer = [0; MAX_HEADER_BYTES];
        let mut out = Out::new(&mut buffer);
        encode(&mut out);
        let len = out.len();
        self.output.extend_from_slice(&buffer[..len]);
    }

    /// Takes bytes from the client; `skip` gives up on a payload that is met on the way.
    fn receive(&mut self, bytes: &[u8], skip: bool) {
        self.input.extend_from_slice(bytes);
        let mut buffer = vec![0; HANDSHAKE_REPLY_BYTES];
        while !self.closed {
            let mut out = Out::new(&mut buffer);
            let received = self.session.receive(&self.input, &self.exports, &mut out);
            let len = out.len();
            assert!(!self.opened || len == 0, "handshake replies during transmission");
            self.output.extend_from_slice(&buffer[..len]);
            assert!(received.consumed <= self.input.len());
            self.input.drain(..received.consumed);
            let style = self.session.style();
            match received.step {
                Step::NeedMore => {
                    assert!(self.input.len() < MAX_INPUT_BYTES);
                    return;
                }
                Step::Request(request) => {
                    let end = request.offset.checked_add(request.len);
                    assert!(end.is_some_and(|end| end <= self.size), "outside the export");
                    if let Command::Write { .. } = request.command {
                        assert!(self.receiving.is_none());
                        self.receiving = Some((request, false));
                    } else {
                        self.pending.push(request);
                    }
                }
                Step::Payload(payload) => {
                    let (request, dropped) = self.receiving.as_mut().expect("a WRITE came before");
                    assert!(!*dropped, "payload that was to be skipped");
                    assert_eq!(
                        payload.offset + u64::from(payload.left),
                        request.offset + request.len
                    );
                    if skip {
                        *dropped = true;
                        self.session.skip_payload();
                    } else {
                        self.input.drain(..payload.here);
                        if self.session.payload_used(payload.here) == 0 {
                            let (request, _) = self.receiving.take().expect("just seen");
                            self.pending.push(request);
                        }
                    }
                }
                Step::PayloadOver => {
                    let (request, dropped) = self.receiving.take().expect("a WRITE was skipped");
                    assert!(dropped);
                    self.put(|out| reply::error(style, request.to, Errno::NoSpace, out));
                }
                Step::Answer(to, Ok(())) => self.put(|out| reply::read_done(style, to, out)),
                Step::Answer(to, Err(errno)) => self.put(|out| reply::error(style, to, errno, out)),
                Step::Opened(opened) => {
                    assert_eq!((opened.handle, opened.size), (0, EXPORT_BYTES));
                    self.session.resized(self.size);
                    self.opened = true;
                }
                Step::Close(reason) => {
                    assert!(reason.is_clean(), "closed a well-behaved client: {reason}");
                    self.closed = true;
                }
                Step::Again | Step::NeedRoom => {}
            }
        }
    }

    /// Answers one of the pending requests in a way that `input` chooses.
    fn answer(&mut self, input: &mut Input<'_>) {
        if self.pending.is_empty() {
            return;
        }
        let which = usize::from(input.u8()) % self.pending.len();
        let request = self.pending.swap_remove(which);
        let (style, to) = (self.session.style(), request.to);
        let how = input.u8();
        if how % 8 == 7 {
            return self.put(|out| reply::error(style, to, Errno::Io, out));
        }
        match request.command {
            Command::Flush | Command::Write { .. } | Command::Zero { .. } => {
                self.put(|out| reply::success(style, to, out));
            }
            Command::Read { .. } if style == Style::Simple => {
                self.put(|out| reply::success(style, to, out));
                self.data(request.len);
            }
            Command::Read { whole: true } => self.piece(&request, 0, request.len, true, how & 1),
            Command::Read { whole: false } => self.pieces(&request, how, input),
            Command::BlockStatus { one } => self.extents(&request, one, input),
        }
    }

    fn data(&mut self, len: u64) {
        self.output.resize(self.output.len() + len as usize, 0x5a);
    }

    /// One chunk for `from..to` of a READ: data, a hole or an error.
    fn piece(&mut self, request: &Request, from: u64, to: u64, done: bool, kind: u8) {
        let (style, name) = (self.session.style(), request.to);
        let (at, len) = (request.offset + from, (to - from) as u32);
        match kind % 3 {
            0 => {
                self.put(|out| reply::data(style, name, at, len, done, out));
                self.data(u64::from(len));
            }
            1 => self.put(|out| reply::hole(style, name, at, len, done, out)),
            _ => self.put(|out| reply::error_at(style, name, Errno::Io, at, done, out)),
        }
    }

    fn pieces(&mut self, request: &Request, how: u8, input: &mut Input<'_>) {
        let mut cuts = vec![0, request.len];
        for _ in 0..how % 4 {
            cuts.push(u64::from(input.u16()) % request.len);
        }
        cuts.sort_unstable();
        cuts.dedup();
        let mut pieces: Vec<_> = cuts.windows(2).map(|w| (w[0], w[1])).collect();
        if how & 16 != 0 {
            pieces.reverse();
        }
        let separate_end = how & 32 != 0;
        let last = pieces.len() - 1;
        for (i, (from, to)) in pieces.into_iter().enumerate() {
            self.piece(request, from, to, i == last && !separate_end, input.u8());
        }
        if separate_end {
            let (style, to) = (self.session.style(), request.to);
            self.put(|out| reply::read_done(style, to, out));
        }
    }

    fn extents(&mut self, request: &Request, one: bool, input: &mut Input<'_>) {
        let mut extents = Vec::new();
        let mut left = request.len;
        while left > 0 && extents.len() < 8 {
            let len = match input.u8() {
                0 => left,
                n => (u64::from(n) << (n % 24)).min(left),
            };
            left -= len;
            let flags = if len % 3 == 0 { 0 } else { STATE_HOLE | STATE_ZERO };
            extents.push(StatusExtent { len, flags });
        }
        if one {
            extents.truncate(1);
        }
        let room = 1 + usize::from(input.u8()) % extents.len();
        let mut buffer = vec![0; reply::block_status_bytes(room)];
        let mut out = Out::new(&mut buffer);
        let told = reply::block_status(self.session.style(), request.to, &extents, &mut out);
        assert!(told >= 1 && told <= extents.len());
        let len = out.len();
        self.output.extend_from_slice(&buffer[..len]);
    }
}

/// A client that knows the protocol; see the module.
pub fn nbd_session(input: &[u8]) {
    let mut input = Input::new(input);
    let first = input.u8();
    let style = [Style::Simple, Style::Structured, Style::Extended][usize::from(first) % 3];
    let mut client = Client::new("vol", style);
    let mut server = Server::new(first & 8 != 0);
    let mut to_server = Vec::new();
    let mut events = Vec::new();
    let (mut asked, mut disconnected, mut stopping) = (0, false, false);
    for _ in 0..ACTIONS {
        if input.is_empty() {
            break;
        }
        let action = input.u8();
        match action % 8 {
            0 if server.opened && !disconnected => {
                let kind = u16::from(input.u8()) % 10;
                let flags = input.u16() & !CMD_FLAG_PAYLOAD_LEN;
                let (offset, len) = range(style, &mut input);
                if kind != CMD_WRITE && kind != CMD_DISC {
                    client.request(kind, flags, offset, len);
                    asked += 1;
                }
            }
            1 if server.opened && !disconnected => {
                let flags = input.u16() & !CMD_FLAG_PAYLOAD_LEN;
                let (offset, len) = range(style, &mut input);
                client.write(flags, offset, &vec![1; (len % 9000) as usize]);
                asked += 1;
            }
            2 if action & 64 != 0 && server.opened && !disconnected => {
                client.disconnect();
                disconnected = true;
            }
            3 if action & 64 != 0 => {
                server.session.shut_down();
                stopping = true;
            }
            4 if server.opened => {
                server.size += u64::from(input.u16()) * 4096;
                server.session.resized(server.size);
            }
            5 => server.answer(&mut input),
            6 => {
                let len = usize::from(input.u8()).min(server.output.len());
                let bytes: Vec<u8> = server.output.drain(..len).collect();
                client.receive(&bytes, &mut events).expect("the server keeps to the protocol");
            }
            _ => {
                to_server.extend(client.take_output());
                let len = (usize::from(input.u8()) * 8).min(to_server.len());
                let bytes: Vec<u8> = to_server.drain(..len).collect();
                server.receive(&bytes, action & 128 != 0);
            }
        }
    }
    // Whatever was asked is answered, once.
    to_server.extend(client.take_output());
    server.receive(&to_server, false);
    while !server.pending.is_empty() {
        server.answer(&mut input);
    }
    client.receive(&server.output, &mut events).expect("the server keeps to the protocol");
    let done = events.iter().filter(|event| matches!(event, Event::Done { .. })).count();
    let refused = events.iter().any(|event| matches!(event, Event::Refused { .. }));
    assert_eq!((done, client.in_flight()), (asked, 0), "every request has one reply");
    assert!(stopping || !refused, "a good option was refused");
    assert_eq!(server.closed, disconnected);
}

/// Where requests begin and end: mostly inside, now and then anywhere.
fn range(style: Style, input: &mut Input<'_>) -> (u64, u64) {
    let shape = input.u8();
    let near = u64::from(input.u16());
    let offset = match shape & 3 {
        0 => near,
        1 => near << 12,
        2 => EXPORT_BYTES - near,
        _ => input.u64(),
    };
    let len = match shape >> 2 & 7 {
        0 => u64::from(input.u8()),
        1..4 => u64::from(input.u16()),
        4 => u64::from(input.u8() & 63) << 12,
        5 => 0,
        // Refused as a READ; longer than 32 bits where that is possible.
        6 => (33 << 20) + near,
        _ => input.u64() >> (shape >> 5) | 1 << 26,
    };
    // Only extended headers have room for more.
    (offset, if style == Style::Extended { len } else { len & 0xffff_ffff })
}
