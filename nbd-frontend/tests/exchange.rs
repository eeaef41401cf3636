//! A client and a server over a byte vector: what is written is what is read, in every style.

use std::collections::BTreeMap;

use flagstone_block::ZeroMode;
use flagstone_nbd::limits::HANDSHAKE_REPLY_BYTES;
use flagstone_nbd::proto::*;
use flagstone_nbd::reply::{self, MAX_HEADER_BYTES, StatusExtent};
use flagstone_nbd::testing::{Client, Event, ExportList, Outcome};
use flagstone_nbd::{Command, Out, Request, Session, Step, Style};
use proptest::collection::vec;
use proptest::prelude::*;

const SIZE: usize = 64 << 10;
const PIECE: usize = 3000;

/// A server whose volume is a vector, and which answers each request at once.
struct Server {
    session: Session,
    exports: ExportList,
    volume: Vec<u8>,
    input: Vec<u8>,
    output: Vec<u8>,
    writing: Option<Request>,
}

impl Server {
    fn new() -> Self {
        Self {
            session: Session::new(),
            exports: ExportList::one("vol", SIZE as u64),
            volume: vec![0; SIZE],
            input: Vec::new(),
            output: Session::greeting().to_vec(),
            writing: None,
        }
    }

    fn put(&mut self, encode: impl FnOnce(&mut Out<'_>)) {
        let mut buffer = [0; MAX_HEADER_BYTES];
        let mut out = Out::new(&mut buffer);
        encode(&mut out);
        let len = out.len();
        self.output.extend_from_slice(&buffer[..len]);
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        let mut buffer = vec![0; HANDSHAKE_REPLY_BYTES];
        loop {
            let mut out = Out::new(&mut buffer);
            let received = self.session.receive(&self.input, &self.exports, &mut out);
            let len = out.len();
            self.output.extend_from_slice(&buffer[..len]);
            self.input.drain(..received.consumed);
            let style = self.session.style();
            match received.step {
                Step::NeedMore => return,
                Step::Request(request) => self.perform(request),
                Step::Payload(payload) => {
                    let at = payload.offset as usize;
                    let data = self.input.drain(..payload.here);
                    self.volume[at..at + payload.here].copy_from_slice(data.as_slice());
                    drop(data);
                    if self.session.payload_used(payload.here) == 0 {
                        let request = self.writing.take().expect("a write was announced");
                        self.put(|out| reply::success(style, request.to, out));
                    }
                }
                Step::Answer(to, Ok(())) => self.put(|out| reply::read_done(style, to, out)),
                Step::Answer(to, Err(errno)) => self.put(|out| reply::error(style, to, errno, out)),
                Step::Close(reason) => panic!("{reason}"),
                Step::Again | Step::NeedRoom | Step::Opened(_) | Step::PayloadOver => {}
            }
        }
    }

    fn perform(&mut self, request: Request) {
        let style = self.session.style();
        let (to, start, len) = (request.to, request.offset as usize, request.len as usize);
        match request.command {
            Command::Write { .. } => self.writing = Some(request),
            Command::Flush => self.put(|out| reply::success(style, to, out)),
            Command::Zero { mode, .. } => {
                if mode != ZeroMode::Discard {
                    self.volume[start..start + len].fill(0);
                }
                self.put(|out| reply::success(style, to, out));
            }
            Command::Read { whole } if whole || style == Style::Simple => {
                if style == Style::Simple {
                    self.put(|out| reply::success(style, to, out));
                } else {
                    self.put(|out| reply::data(style, to, request.offset, len as u32, true, out));
                }
                self.output.extend_from_slice(&self.volume[start..start + len]);
            }
            Command::Read { .. } => {
                // Backwards, since chunks may come in any order.
                let pieces: Vec<usize> = (start..start + len).step_by(PIECE).collect();
                for &from in pieces.iter().rev() {
                    let to_end = (from + PIECE).min(start + len);
                    let piece = self.volume[from..to_end].to_vec();
                    let (offset, len) = (from as u64, piece.len() as u32);
                    if piece.iter().all(|&byte| byte == 0) {
                        self.put(|out| reply::hole(style, to, offset, len, false, out));
                    } else {
                        self.put(|out| reply::data(style, to, offset, len, false, out));
                        self.output.extend_from_slice(&piece);
                    }
                }
                self.put(|out| reply::read_done(style, to, out));
            }
            Command::BlockStatus { one } => {
                let half = StatusExtent { len: request.len.div_ceil(2), flags: 0 };
                let rest = StatusExtent { len: request.len - half.len, flags: STATE_ZERO };
                let extents = if one || rest.len == 0 { &[half][..] } else { &[half, rest] };
                self.put(|out| {
                    reply::block_status(style, to, extents, out);
                });
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Read { offset: u64, len: u64, whole: bool },
    Write { offset: u64, len: usize, byte: u8 },
    Zeroes { offset: u64, len: u64 },
    Status { offset: u64, len: u64, one: bool },
    Flush,
}

fn op() -> impl Strategy<Value = Op> {
    let size = SIZE as u64;
    prop_oneof![
        (0..size, 0..20_000_u64, any::<bool>()).prop_map(|(offset, len, whole)| Op::Read {
            offset,
            len,
            whole
        }),
        (0..size, 0..20_000_usize, any::<u8>()).prop_map(|(offset, len, byte)| Op::Write {
            offset,
            len,
            byte
        }),
        (0..size, 0..20_000_u64).prop_map(|(offset, len)| Op::Zeroes { offset, len }),
        (0..size, 0..20_000_u64, any::<bool>()).prop_map(|(offset, len, one)| Op::Status {
            offset,
            len,
            one
        }),
        Just(Op::Flush),
    ]
}

/// What the server must answer, by a naive model.
fn expected(model: &mut [u8], op: &Op, style: Style) -> (Option<u32>, Vec<u8>) {
    let fits = |offset: u64, len: u64| offset + len <= SIZE as u64;
    match *op {
        Op::Read { offset, len, whole } => {
            if (whole && style == Style::Simple) || !fits(offset, len) {
                return (Some(22), Vec::new());
            }
            (None, model[offset as usize..][..len as usize].to_vec())
        }
        Op::Write { offset, len, byte } => {
            if !fits(offset, len as u64) {
                return (Some(28), Vec::new());
            }
            model[offset as usize..][..len].fill(byte);
            (None, Vec::new())
        }
        Op::Zeroes { offset, len } => {
            if !fits(offset, len) {
                return (Some(28), Vec::new());
            }
            model[offset as usize..][..len as usize].fill(0);
            (None, Vec::new())
        }
        Op::Status { offset, len, .. } => {
            let bad = style == Style::Simple || len == 0 || !fits(offset, len);
            (bad.then_some(22), Vec::new())
        }
        Op::Flush => (None, Vec::new()),
    }
}

fn send(client: &mut Client, op: &Op) -> u64 {
    match *op {
        Op::Read { offset, len, whole } => {
            client.request(CMD_READ, if whole { CMD_FLAG_DF } else { 0 }, offset, len)
        }
        Op::Write { offset, len, byte } => client.write(CMD_FLAG_FUA, offset, &vec![byte; len]),
        Op::Zeroes { offset, len } => client.request(CMD_WRITE_ZEROES, 0, offset, len),
        Op::Status { offset, len, one } => {
            let flags = if one { CMD_FLAG_REQ_ONE } else { 0 };
            client.request(CMD_BLOCK_STATUS, flags, offset, len)
        }
        Op::Flush => client.flush(),
    }
}

fn exchange(client: &mut Client, server: &mut Server, cut: usize) -> Vec<Event> {
    let mut events = Vec::new();
    for piece in client.take_output().chunks(cut) {
        server.receive(piece);
    }
    for piece in std::mem::take(&mut server.output).chunks(cut) {
        client.receive(piece, &mut events).expect("the server keeps to the protocol");
    }
    events
}

fn converse(style: Style, cut: usize, ops: &[Op]) {
    let mut client = Client::new("vol", style);
    let mut server = Server::new();
    let opened = exchange(&mut client, &mut server, cut);
    assert!(matches!(opened[..], [Event::Opened { size, .. }] if size == SIZE as u64));
    let mut model = vec![0; SIZE];
    let mut wanted = BTreeMap::new();
    for op in ops {
        let cookie = send(&mut client, op);
        wanted.insert(cookie, expected(&mut model, op, style));
    }
    let mut answers: BTreeMap<u64, Outcome> = BTreeMap::new();
    for event in exchange(&mut client, &mut server, cut) {
        match event {
            Event::Done { cookie, outcome } => assert!(answers.insert(cookie, outcome).is_none()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(client.in_flight(), 0);
    assert_eq!(answers.len(), wanted.len());
    for (cookie, (errno, data)) in wanted {
        let outcome = &answers[&cookie];
        assert_eq!(outcome.error(), errno);
        if errno.is_none() {
            assert_eq!(outcome.data, data);
        }
    }
    assert_eq!(server.volume, model);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_is_written_is_read(
        style in prop_oneof![Just(Style::Simple), Just(Style::Structured), Just(Style::Extended)],
        cut in prop_oneof![1_usize..50, 1000_usize..9000],
        ops in vec(op(), 0..30),
    ) {
        converse(style, cut, &ops);
    }
}

#[test]
fn a_refused_export_is_reported() {
    let mut client = Client::new("nope", Style::Structured);
    let events = exchange(&mut client, &mut Server::new(), 7);
    let refused = |option| Event::Refused { option, kind: REP_ERR_UNKNOWN };
    assert_eq!(events, [refused(OPT_SET_META_CONTEXT), refused(OPT_GO)]);
}
