//! A small NBD server in memory that can misbehave on purpose: what the client is tested against.
//!
//! One thread per connection, one request at a time, blocking reads and writes: it doesn't read
//! on while it can't send, which is what a client that only sends would deadlock with.

#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    io::{self, Read, Write},
    net::TcpListener,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// What the server does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Nothing,
    /// Every n-th write is acknowledged and forgotten.
    LoseWrite(u64),
    /// Every n-th write goes to the next block.
    MisplaceWrite(u64),
    /// Every n-th write keeps the old second half.
    TearWrite(u64),
    /// Every n-th read has a bit flipped in it.
    FlipBit(u64),
    /// Every n-th request fails with EIO.
    Error(u64),
    /// After n requests no answer comes any more.
    Stall(u64),
    /// After n requests the connection ends.
    HangUp(u64),
    /// The n-th answer carries a cookie that was never sent.
    WrongCookie(u64),
    /// The n-th answer begins with garbage.
    Garbage(u64),
    /// Replies are written byte by byte.
    Dribble,
}

/// How the server behaves.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    pub size: usize,
    pub fault: Fault,
    /// Agrees to structured replies, and sends reads as two chunks, or as a hole when zero.
    pub structured: bool,
    pub flags: u16,
}

impl Default for Behaviour {
    fn default() -> Self {
        // HAS_FLAGS, SEND_FLUSH, SEND_FUA, CAN_MULTI_CONN.
        Self { size: 1 << 20, fault: Fault::Nothing, structured: false, flags: 0x10d }
    }
}

/// What the server has seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub requests: AtomicU64,
    pub flushes: AtomicU64,
    pub fua_writes: AtomicU64,
    pub disconnects: AtomicU64,
}

pub struct Server {
    pub seen: Arc<Seen>,
    directory: tempfile::TempDir,
}

impl Server {
    /// Serves for as long as the process lives; the socket goes away with the server.
    pub fn start(behaviour: Behaviour) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(directory.path().join("s")).expect("a socket");
        let seen = Arc::new(Seen::default());
        let state = State::new(behaviour, seen.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = state.clone();
                thread::spawn(move || drop(serve(stream, &state)));
            }
        });
        Self { seen, directory }
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///x?socket={}", self.socket().display())
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }
}

/// The same over TCP; returns the URI.
pub fn start_tcp(behaviour: Behaviour) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let state = State::new(behaviour, Arc::new(Seen::default()));
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let state = state.clone();
            thread::spawn(move || drop(serve(stream, &state)));
        }
    });
    format!("nbd://127.0.0.1:{port}/x")
}

#[derive(Clone)]
struct State {
    behaviour: Behaviour,
    data: Arc<Mutex<Vec<u8>>>,
    seen: Arc<Seen>,
}

impl State {
    fn new(behaviour: Behaviour, seen: Arc<Seen>) -> Self {
        Self { behaviour, data: Arc::new(Mutex::new(vec![0; behaviour.size])), seen }
    }
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("4 bytes"))
}

fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("8 bytes"))
}

fn serve(mut stream: impl Read + Write, state: &State) -> io::Result<()> {
    let structured = shake_hands(&mut stream, state)?;
    loop {
        let mut header = [0; 28];
        stream.read_exact(&mut header)?;
        assert_eq!(be32(&header[0..4]), 0x2560_9513);
        let fua = header[5] & 1 != 0;
        let (command, cookie) = (header[7], be64(&header[8..16]));
        let (offset, length) = (be64(&header[16..24]) as usize, be32(&header[24..28]) as usize);
        let mut payload = vec![0; if command == 1 { length } else { 0 }];
        stream.read_exact(&mut payload)?;
        if command == 2 {
            state.seen.disconnects.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let number = state.seen.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let every = |n: u64| number.is_multiple_of(n);
        let fault = state.behaviour.fault;
        let mut failed = matches!(fault, Fault::Error(n) if every(n));
        let mut data = state.data.lock().expect("no panics");
        let inside = offset + length <= data.len();
        match command {
            0 => {
                if inside {
                    payload = data[offset..offset + length].to_vec();
                }
                if matches!(fault, Fault::FlipBit(n) if every(n)) {
                    payload[length / 2] ^= 4;
                }
            }
            1 => {
                state.seen.fua_writes.fetch_add(u64::from(fua), Ordering::Relaxed);
                let (mut at, mut count) = (offset, length);
                match fault {
                    Fault::LoseWrite(n) if every(n) => count = 0,
                    Fault::MisplaceWrite(n) if every(n) => {
                        at = (offset + length) % state.behaviour.size;
                    }
                    Fault::TearWrite(n) if every(n) => count = length / 2,
                    _ => {}
                }
                if inside && !failed {
                    data[at..at + count].copy_from_slice(&payload[..count]);
                }
                payload.clear();
            }
            3 => {
                state.seen.flushes.fetch_add(1, Ordering::Relaxed);
            }
            _ => failed = true,
        }
        drop(data);
        failed |= !inside;
        if failed {
            payload.clear();
        }
        let mut answer = if structured && command == 0 {
            chunks(cookie, offset as u64, &payload, failed)
        } else {
            simple(cookie, &payload, failed)
        };
        match fault {
            Fault::Stall(n) if number > n => continue,
            Fault::HangUp(n) if number > n => return Ok(()),
            Fault::WrongCookie(n) if number == n => answer[12] ^= 0x55,
            Fault::Garbage(n) if number == n => answer[0] ^= 0x55,
            Fault::Dribble => {
                for byte in answer.chunks(1) {
                    stream.write_all(byte)?;
                }
                continue;
            }
            _ => {}
        }
        stream.write_all(&answer)?;
    }
}

/// Returns whether replies are structured.
fn shake_hands(stream: &mut (impl Read + Write), state: &State) -> io::Result<bool> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    stream.read_exact(&mut [0; 4])?;
    let mut structured = false;
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        let option = be32(&header[8..12]);
        let mut data = vec![0; be32(&header[12..16]) as usize];
        stream.read_exact(&mut data)?;
        let reply = |kind: u32, data: &[u8]| {
            let mut bytes = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
            for word in [option, kind, data.len() as u32] {
                bytes.extend_from_slice(&word.to_be_bytes());
            }
            [&bytes, data].concat()
        };
        match option {
            8 if state.behaviour.structured => {
                structured = true;
                stream.write_all(&reply(1, &[]))?;
            }
            7 => {
                let mut info = vec![0, 0];
                info.extend_from_slice(&(state.behaviour.size as u64).to_be_bytes());
                info.extend_from_slice(&state.behaviour.flags.to_be_bytes());
                stream.write_all(&[reply(3, &info), reply(1, &[])].concat())?;
                return Ok(structured);
            }
            _ => stream.write_all(&reply(1 << 31 | 1, &[]))?,
        }
    }
}

fn simple(cookie: u64, payload: &[u8], failed: bool) -> Vec<u8> {
    let mut bytes = 0x6744_6698u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&(u32::from(failed) * 5).to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn chunk(cookie: u64, flags: u16, kind: u16, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let mut bytes = 0x668e_33efu32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
    [bytes, body].concat()
}

/// A read in two chunks, the second half first; a hole for zeroes; an error with a message.
fn chunks(cookie: u64, offset: u64, payload: &[u8], failed: bool) -> Vec<u8> {
    if failed {
        return chunk(cookie, 1, 0x8001, &[&5u32.to_be_bytes(), &3u16.to_be_bytes(), b"bad"]);
    }
    if payload.iter().all(|&byte| byte == 0) {
        let length = (payload.len() as u32).to_be_bytes();
        return chunk(cookie, 1, 2, &[&offset.to_be_bytes(), &length]);
    }
    let (first, second) = payload.split_at(payload.len() / 2);
    let middle = offset + first.len() as u64;
    [
        chunk(cookie, 0, 1, &[&middle.to_be_bytes(), second]),
        chunk(cookie, 0, 1, &[&offset.to_be_bytes(), first]),
        chunk(cookie, 1, 0, &[]),
    ]
    .concat()
}

/// A peer that accepts and says nothing NBD.
pub fn start_stranger(words: &'static [u8]) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).expect("a socket");
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream: UnixStream = stream;
            let _ = stream.write_all(words);
        }
    });
    (directory, format!("nbd+unix:///x?socket={}", path.display()))
}

/// Reads an export with one plain request.
pub fn read_all(stream: &mut UnixStream, bytes: u32) -> Vec<u8> {
    let mut exchange = || -> io::Result<Vec<u8>> {
        stream.read_exact(&mut [0; 18])?;
        stream.write_all(&[0, 0, 0, 3])?;
        stream.write_all(b"IHAVEOPT\0\0\0\x07\0\0\0\x07\0\0\0\x01x\0\0")?;
        // GO is answered with one INFO_EXPORT and the ACK.
        stream.read_exact(&mut [0; 32 + 20])?;
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend_from_slice(&[0; 20]);
        request.extend_from_slice(&bytes.to_be_bytes());
        stream.write_all(&request)?;
        stream.read_exact(&mut [0; 16])?;
        let mut data = vec![0; bytes as usize];
        stream.read_exact(&mut data)?;
        Ok(data)
    };
    exchange().expect("the server answers")
}
