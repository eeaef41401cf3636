//! An NBD server that does nothing: what the protocol and its sockets cost by themselves.
//!
//! It receives as many requests at once as there are, drops what is to be written, and answers all of them with one
//! vectored write, reads with zeroes. A thread per connection that blocks: two system calls a turn are the least that
//! a server without busy polling can do with.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use flagstone_nbd::{
    Command, Export, Exports, Out, ReplyTo, Session, Step, Style,
    limits::HANDSHAKE_REPLY_BYTES,
    reply::{self, MAX_HEADER_BYTES},
};

/// Bytes received at once.
const INPUT_BYTES: usize = 1 << 20;
/// Replies sent at once, each in up to two pieces; a vectored write takes 1,024.
const REPLIES: usize = 256;
/// What reads are answered with, piece by piece.
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];

/// Serve an NBD export that does nothing, on a Unix socket
#[derive(Debug, Parser)]
struct Args {
    /// The socket; it must not be there yet
    socket: PathBuf,
    /// The export's size in GiB
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..1 << 20))]
    gib: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match serve(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}: {error}", args.socket.display());
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Args) -> io::Result<()> {
    let listener = UnixListener::bind(&args.socket)?;
    let bytes = args.gib << 30;
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            // Clients go without a word.
            let _ = Connection::new(stream, bytes).run();
        });
    }
    Ok(())
}

/// Any name is that of the only export.
struct Only {
    bytes: u64,
}

impl Exports for Only {
    fn find(&self, _name: &str) -> Option<Export<'_>> {
        let (name, description) = ("null", "drops what is written, reads as zeroes");
        Some(Export { handle: 0, name, description, size: self.bytes, read_only: false })
    }

    fn after(&self, name: Option<&str>) -> Option<Export<'_>> {
        if name.is_none() { self.find("") } else { None }
    }
}

/// What is to be sent: a header, and so many zeroes.
struct Reply {
    header: [u8; MAX_HEADER_BYTES],
    len: usize,
    zeroes: u64,
}

struct Connection {
    stream: UnixStream,
    session: Session,
    export: Only,
    input: Vec<u8>,
    start: usize,
    end: usize,
    replies: VecDeque<Reply>,
    /// The write whose payload is being dropped.
    writing: Option<ReplyTo>,
}

impl Connection {
    fn new(stream: UnixStream, bytes: u64) -> Self {
        Self {
            stream,
            session: Session::new(),
            export: Only { bytes },
            input: vec![0; INPUT_BYTES],
            start: 0,
            end: 0,
            replies: VecDeque::with_capacity(REPLIES),
            writing: None,
        }
    }

    fn run(mut self) -> io::Result<()> {
        self.stream.write_all(Session::greeting())?;
        let mut answers = vec![0; HANDSHAKE_REPLY_BYTES];
        while self.session.in_handshake() {
            let mut out = Out::new(&mut answers);
            let input = &self.input[self.start..self.end];
            let received = self.session.receive(input, &self.export, &mut out);
            self.start += received.consumed;
            let len = out.len();
            self.stream.write_all(&answers[..len])?;
            match received.step {
                Step::NeedMore => self.receive()?,
                Step::Close(_) => return Ok(()),
                _ => {}
            }
        }
        loop {
            let more = self.parse();
            self.send()?;
            match more {
                Some(true) => {}
                Some(false) => self.receive()?,
                None => return Ok(()),
            }
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.input.len() {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        match self.stream.read(&mut self.input[self.end..])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            len => {
                self.end += len;
                Ok(())
            }
        }
    }

    /// Answers what was received. Whether there is more of it, or `None` at the end.
    fn parse(&mut self) -> Option<bool> {
        while self.replies.len() < REPLIES {
            let received = self.session.transmission(&self.input[self.start..self.end]);
            self.start += received.consumed;
            match received.step {
                Step::NeedMore => return Some(false),
                Step::Request(request) => match request.command {
                    Command::Write { .. } => self.writing = Some(request.to),
                    Command::Read { .. } => self.answer_read(request.to, request.len),
                    _ => self.answer(request.to, 0, reply::success),
                },
                Step::Payload(payload) => {
                    self.start += payload.here;
                    if self.session.payload_used(payload.here) == 0
                        && let Some(to) = self.writing.take()
                    {
                        self.answer(to, 0, reply::success);
                    }
                }
                Step::Answer(to, Ok(())) => self.answer(to, 0, reply::success),
                Step::Answer(to, Err(errno)) => {
                    self.answer(to, 0, |style, to, out| reply::error(style, to, errno, out));
                }
                Step::Close(_) => return None,
                _ => {}
            }
        }
        Some(true)
    }

    fn answer_read(&mut self, to: ReplyTo, len: u64) {
        self.answer(to, len, |style, to, out| match style {
            Style::Simple => reply::success(style, to, out),
            _ => reply::data(style, to, to.offset, len as u32, true, out),
        });
    }

    fn answer(
        &mut self,
        to: ReplyTo,
        zeroes: u64,
        encode: impl FnOnce(Style, ReplyTo, &mut Out<'_>),
    ) {
        let mut header = [0; MAX_HEADER_BYTES];
        let mut out = Out::new(&mut header);
        encode(self.session.style(), to, &mut out);
        let len = out.len();
        self.replies.push_back(Reply { header, len, zeroes });
    }

    fn send(&mut self) -> io::Result<()> {
        let mut parts = Vec::with_capacity(2 * self.replies.len());
        for reply in &self.replies {
            parts.push(IoSlice::new(&reply.header[..reply.len]));
            let mut left = reply.zeroes as usize;
            while left > 0 {
                let now = left.min(ZEROES.len());
                parts.push(IoSlice::new(&ZEROES[..now]));
                left -= now;
            }
        }
        let mut parts = parts.as_mut_slice();
        while !parts.is_empty() {
            let sent = self.stream.write_vectored(parts)?;
            IoSlice::advance_slices(&mut parts, sent);
        }
        self.replies.clear();
        Ok(())
    }
}
