//! A plain client of one export: requests are sent ahead, and their results taken in the order that they
//! were sent in. For copying, where the load generator's machinery of closed loops and clocks would only be
//! in the way; handshake, socket and wire format are the same.
//!
//! Invariants:
//! 1. A request is pending from its sending to the taking of its result; answers that come out of order wait.
//! 2. What a read brings is kept as far as it was asked for; the caller bounds that by taking results.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, Read as _, Write as _},
};

use super::{
    exchange::ProtocolError,
    handshake::{self, Export, HandshakeError},
    socket::Socket,
    wire::*,
};
use crate::uri::NbdUri;

/// Why a request has no result. The connection is of no use afterwards, unless the server refused.
#[derive(Debug, thiserror::Error)]
pub enum NbdClientError {
    /// Nobody listens there.
    #[error("can't connect: {0}")]
    Connect(#[source] io::Error),
    /// There is no such export, or no NBD server.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The connection ended.
    #[error("the connection to the server ended: {0}")]
    Io(#[source] io::Error),
    /// The server did what the protocol does not allow.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The server answered with an error.
    #[error("{}", errno_text(*.errno))]
    Refused {
        /// The error value (NBD proto, "Error values").
        errno: u32,
    },
}

/// NBD proto, "Error values", as sentences.
fn errno_text(errno: u32) -> String {
    let text = match errno {
        1 => "the export is read-only",
        5 => "an I/O error: the device failed, or a checksum did not match",
        22 => "the request lies outside the export",
        28 => "no space is left in the pool",
        108 => "the server is shutting down",
        other => return format!("the server answered with error {other}"),
    };
    text.to_owned()
}

/// A connection to an export.
#[derive(Debug)]
pub struct NbdClient {
    socket: Socket,
    export: Export,
    cookie: u64,
    /// In the order of sending: cookie, and bytes that a success brings.
    pending: VecDeque<(u64, usize)>,
    /// Results that came before those of earlier requests.
    early: HashMap<u64, Result<Vec<u8>, u32>>,
}

impl NbdClient {
    /// Connects to the export at `uri`.
    ///
    /// # Errors
    /// [`NbdClientError::Connect`], [`NbdClientError::Handshake`].
    pub fn connect(uri: &NbdUri) -> Result<Self, NbdClientError> {
        let mut socket = Socket::connect(&uri.address).map_err(NbdClientError::Connect)?;
        let export = handshake::negotiate(&mut socket, &uri.name, false)?;
        socket.begin_transmission().map_err(NbdClientError::Connect)?;
        let (pending, early) = (VecDeque::new(), HashMap::new());
        Ok(Self { socket, export, cookie: 0, pending, early })
    }

    /// Size of the export in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.export.size
    }

    /// Requests whose results were not taken yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Asks for `length` bytes from `offset`.
    ///
    /// # Errors
    /// [`NbdClientError::Io`].
    pub fn send_read(&mut self, offset: u64, length: u32) -> Result<(), NbdClientError> {
        self.send(COMMAND_READ, offset, length, length as usize, &[])
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// [`NbdClientError::Io`].
    pub fn send_write(&mut self, offset: u64, data: &[u8]) -> Result<(), NbdClientError> {
        self.send(COMMAND_WRITE, offset, data.len() as u32, 0, data)
    }

    /// Makes `length` bytes from `offset` zeroes, which need not take space.
    ///
    /// # Errors
    /// [`NbdClientError::Io`].
    pub fn send_zeroes(&mut self, offset: u64, length: u32) -> Result<(), NbdClientError> {
        self.send(COMMAND_WRITE_ZEROES, offset, length, 0, &[])
    }

    /// Makes what was answered before durable.
    ///
    /// # Errors
    /// [`NbdClientError::Io`].
    pub fn send_flush(&mut self) -> Result<(), NbdClientError> {
        self.send(COMMAND_FLUSH, 0, 0, 0, &[])
    }

    /// Waits for the result of the oldest request: the data of a read, nothing otherwise. Without any
    /// request that is nothing at once.
    ///
    /// # Errors
    /// [`NbdClientError`].
    pub fn take(&mut self) -> Result<Vec<u8>, NbdClientError> {
        let Some((cookie, _)) = self.pending.front().copied() else { return Ok(Vec::new()) };
        let result = loop {
            if let Some(result) = self.early.remove(&cookie) {
                break result;
            }
            let (answered, result) = self.receive()?;
            self.early.insert(answered, result);
        };
        self.pending.pop_front();
        result.map_err(|errno| NbdClientError::Refused { errno })
    }

    fn send(
        &mut self,
        command: u16,
        offset: u64,
        length: u32,
        brings: usize,
        payload: &[u8],
    ) -> Result<(), NbdClientError> {
        self.cookie += 1;
        let header = request(0, command, self.cookie, offset, length);
        // An answer is short but for reads, whose requests are: neither side waits with full buffers
        // for the other.
        self.socket.write_all(&header).map_err(NbdClientError::Io)?;
        self.socket.write_all(payload).map_err(NbdClientError::Io)?;
        self.pending.push_back((self.cookie, brings));
        Ok(())
    }

    fn receive(&mut self) -> Result<(u64, Result<Vec<u8>, u32>), NbdClientError> {
        let mut header = [0; SIMPLE_REPLY_BYTES];
        self.socket.read_exact(&mut header).map_err(NbdClientError::Io)?;
        let (magic, errno, cookie) = (be32(&header, 0), be32(&header, 4), be64(&header, 8));
        if magic != SIMPLE_REPLY_MAGIC {
            return Err(ProtocolError::Magic { magic }.into());
        }
        let asked = self.pending.iter().find(|(pending, _)| *pending == cookie);
        let Some(&(_, brings)) = asked.filter(|_| !self.early.contains_key(&cookie)) else {
            return Err(ProtocolError::Cookie { cookie }.into());
        };
        if errno != 0 {
            return Ok((cookie, Err(errno)));
        }
        let mut data = vec![0; brings];
        self.socket.read_exact(&mut data).map_err(NbdClientError::Io)?;
        Ok((cookie, Ok(data)))
    }
}

impl Drop for NbdClient {
    fn drop(&mut self) {
        // A polite end; whoever is gone already doesn't mind.
        let _ = self.socket.write_all(&request(0, COMMAND_DISCONNECT, 0, 0, 0));
    }
}
