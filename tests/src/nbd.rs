//! A small NBD client: fixed newstyle, `NBD_OPT_GO`, simple replies, requests sent ahead of their
//! replies. It sends exactly what it is told to, also nonsense; what a proper client does is for
//! libnbd and QEMU, which other tests use.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::LIMIT;

/// Request types (NBD proto, "Request types").
pub const READ: u16 = 0;
/// Write.
pub const WRITE: u16 = 1;
/// Disconnect.
pub const DISC: u16 = 2;
/// Flush.
pub const FLUSH: u16 = 3;
/// Discard.
pub const TRIM: u16 = 4;
/// Write zeroes.
pub const WRITE_ZEROES: u16 = 6;
/// Command flag: the reply waits for durability.
pub const FUA: u16 = 1;
/// Command flag: zeroes must stay allocated.
pub const NO_HOLE: u16 = 2;

/// Error values (NBD proto, "Error values"): not permitted.
pub const EPERM: u32 = 1;
/// I/O error.
pub const EIO: u32 = 5;
/// Invalid request.
pub const EINVAL: u32 = 22;
/// No space.
pub const ENOSPC: u32 = 28;
/// The server is about to end.
pub const ESHUTDOWN: u32 = 108;

/// Transmission flag: a flush covers all connections.
pub const CAN_MULTI_CONN: u16 = 1 << 8;

const MAGIC_SERVER: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const MAGIC_OPTION: &[u8; 8] = b"IHAVEOPT";
const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const MAGIC_REQUEST: u32 = 0x2560_9513;
const MAGIC_REPLY: u32 = 0x6744_6698;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// TCP.
    Tcp(SocketAddr),
}

/// A connected socket of either kind. No operation on it waits longer than [`LIMIT`].
#[derive(Debug)]
pub enum Stream {
    /// A unix socket.
    Unix(UnixStream),
    /// TCP.
    Tcp(TcpStream),
}

impl Stream {
    /// Connects.
    ///
    /// # Errors
    /// As the system says.
    pub fn connect(address: &Address) -> io::Result<Self> {
        let stream = match address {
            Address::Unix(path) => Self::Unix(UnixStream::connect(path)?),
            Address::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, LIMIT)?;
                stream.set_nodelay(true)?;
                Self::Tcp(stream)
            }
        };
        stream.set_timeout(LIMIT)?;
        Ok(stream)
    }

    /// Makes waiting for the other side end after this time.
    ///
    /// # Errors
    /// As the system says.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))
            }
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(buffer),
            Self::Tcp(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Request type.
    pub kind: u16,
    /// Command flags.
    pub flags: u16,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
    /// What a write sends.
    pub payload: &'a [u8],
}

impl Request<'_> {
    /// The bytes on the wire, without the payload (NBD proto, "Request message").
    #[must_use]
    pub fn header(&self, cookie: u64) -> [u8; 28] {
        let mut header = [0; 28];
        header[..4].copy_from_slice(&MAGIC_REQUEST.to_be_bytes());
        header[4..6].copy_from_slice(&self.flags.to_be_bytes());
        header[6..8].copy_from_slice(&self.kind.to_be_bytes());
        header[8..16].copy_from_slice(&cookie.to_be_bytes());
        header[16..24].copy_from_slice(&self.offset.to_be_bytes());
        header[24..].copy_from_slice(&self.length.to_be_bytes());
        header
    }
}

/// A reply.
#[derive(Debug)]
pub struct Reply {
    /// The request that it answers.
    pub cookie: u64,
    /// 0, or one of the error values.
    pub error: u32,
    /// What a read brought.
    pub data: Vec<u8>,
}

/// A connection in transmission.
#[derive(Debug)]
pub struct Client {
    stream: Stream,
    /// Size of the export in bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    cookie: u64,
    /// What the replies to come answer: bytes of data that each brings.
    pending: HashMap<u64, usize>,
}

impl Client {
    /// Connects and asks for an export.
    ///
    /// # Errors
    /// When the connection fails or the server refuses.
    pub fn connect(address: &Address, export: &str) -> io::Result<Self> {
        let mut stream = Stream::connect(address)?;
        begin(&mut stream)?;
        stream.write_all(&go_option(export))?;
        let (mut size, mut flags) = (None, 0);
        loop {
            let (kind, data) = option_reply(&mut stream)?;
            match kind {
                REPLY_ACK => break,
                REPLY_INFO if data.len() == 12 && data[..2] == [0, 0] => {
                    size = Some(u64::from_be_bytes(data[2..10].try_into().expect("8 bytes")));
                    flags = u16::from_be_bytes(data[10..].try_into().expect("2 bytes"));
                }
                REPLY_INFO => {}
                other => {
                    let why = String::from_utf8_lossy(&data).into_owned();
                    return Err(io::Error::other(format!("refused: {other:#x} {why}")));
                }
            }
        }
        let size = size.ok_or_else(|| io::Error::other("no size was sent"))?;
        Ok(Self { stream, size, flags, cookie: 0, pending: HashMap::new() })
    }

    /// The socket, for tests that break the protocol.
    pub fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// Requests without a reply so far.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Sends a request; its cookie.
    ///
    /// # Errors
    /// When the connection ends.
    pub fn send(&mut self, request: &Request<'_>) -> io::Result<u64> {
        self.cookie += 1;
        let data = if request.kind == READ { request.length as usize } else { 0 };
        self.pending.insert(self.cookie, data);
        let mut message = Vec::with_capacity(28 + request.payload.len());
        message.extend_from_slice(&request.header(self.cookie));
        message.extend_from_slice(request.payload);
        self.stream.write_all(&message)?;
        Ok(self.cookie)
    }

    /// Waits for a reply.
    ///
    /// # Errors
    /// When the connection ends or the server breaks the protocol.
    pub fn receive(&mut self) -> io::Result<Reply> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header)?;
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        if word(0) != MAGIC_REPLY {
            return Err(io::Error::other(format!("not a simple reply: {header:x?}")));
        }
        let cookie = u64::from_be_bytes(header[8..].try_into().expect("8 bytes"));
        let Some(length) = self.pending.remove(&cookie) else {
            return Err(io::Error::other(format!("a reply to nothing: cookie {cookie}")));
        };
        let error = word(4);
        let mut data = vec![0; if error == 0 { length } else { 0 }];
        self.stream.read_exact(&mut data)?;
        Ok(Reply { cookie, error, data })
    }

    /// Sends one request and waits for its reply: the data, or the error value.
    ///
    /// # Panics
    /// When the connection ends, or other requests are in flight.
    pub fn call(&mut self, request: &Request<'_>) -> Result<Vec<u8>, u32> {
        assert!(self.pending.is_empty());
        self.send(request).expect("the connection lives");
        let reply = self.receive().expect("the connection lives");
        if reply.error == 0 { Ok(reply.data) } else { Err(reply.error) }
    }

    /// Reads.
    ///
    /// # Errors
    /// The error value of the reply.
    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, u32> {
        self.call(&Request { kind: READ, flags: 0, offset, length, payload: &[] })
    }

    /// Writes.
    ///
    /// # Errors
    /// The error value of the reply.
    pub fn write(&mut self, offset: u64, payload: &[u8], flags: u16) -> Result<(), u32> {
        let length = payload.len() as u32;
        self.call(&Request { kind: WRITE, flags, offset, length, payload }).map(drop)
    }

    /// Makes what was acknowledged durable.
    ///
    /// # Errors
    /// The error value of the reply.
    pub fn flush(&mut self) -> Result<(), u32> {
        self.call(&Request { kind: FLUSH, flags: 0, offset: 0, length: 0, payload: &[] }).map(drop)
    }

    /// Discards.
    ///
    /// # Errors
    /// The error value of the reply.
    pub fn trim(&mut self, offset: u64, length: u32) -> Result<(), u32> {
        self.call(&Request { kind: TRIM, flags: 0, offset, length, payload: &[] }).map(drop)
    }

    /// Writes zeroes.
    ///
    /// # Errors
    /// The error value of the reply.
    pub fn zero(&mut self, offset: u64, length: u32, flags: u16) -> Result<(), u32> {
        self.call(&Request { kind: WRITE_ZEROES, flags, offset, length, payload: &[] }).map(drop)
    }
}

/// Reads the server's greeting and answers with the client's flags: fixed newstyle, no zeroes.
///
/// # Errors
/// When the connection ends or the other side is no NBD server.
pub fn begin(stream: &mut Stream) -> io::Result<()> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if &greeting[..16] != MAGIC_SERVER {
        return Err(io::Error::other("not an NBD server"));
    }
    stream.write_all(&3_u32.to_be_bytes())
}

/// The bytes of an option.
#[must_use]
pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut message = MAGIC_OPTION.to_vec();
    message.extend_from_slice(&number.to_be_bytes());
    message.extend_from_slice(&(data.len() as u32).to_be_bytes());
    message.extend_from_slice(data);
    message
}

/// The bytes of `NBD_OPT_GO` without information requests.
#[must_use]
pub fn go_option(export: &str) -> Vec<u8> {
    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(export.as_bytes());
    data.extend_from_slice(&[0, 0]);
    option(OPTION_GO, &data)
}

/// Waits for the reply to an option: its type and its data.
///
/// # Errors
/// When the connection ends or the server breaks the protocol.
pub fn option_reply(stream: &mut Stream) -> io::Result<(u32, Vec<u8>)> {
    let mut header = [0; 20];
    stream.read_exact(&mut header)?;
    let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    if header[..8] != MAGIC_OPTION_REPLY.to_be_bytes() || word(16) > 1 << 16 {
        return Err(io::Error::other(format!("not a reply to an option: {header:x?}")));
    }
    let mut data = vec![0; word(16) as usize];
    stream.read_exact(&mut data)?;
    Ok((word(12), data))
}
