//! The stream under a connection: unix or TCP, with the few calls that the loop needs.
//!
//! The socket stays in blocking mode for the handshake. Afterwards neither sends nor receives
//! block (`MSG_DONTWAIT`); whoever has to wait waits in `poll`: for data, or with something left
//! to send for either direction, so that both sides' full buffers can't deadlock. A receive that
//! blocks would be woken twice per answer on a unix socket, first when the server takes the
//! request off it (the kernel then tells every sleeper on the socket that there is room to send),
//! and the server would pay for that; common clients wait in `poll` as well.

use std::{
    io::{self, IoSlice},
    net::{Shutdown, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::Timespec,
    io::Errno,
    net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg, sockopt},
};

use crate::uri::NbdAddress;

/// How long connecting and each step of the handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Asked for, so that one call takes a turn's writes at a depth of 32; the kernel may give less.
const SEND_BUFFER_BYTES: usize = 256 << 10;

/// A connected stream.
#[derive(Debug)]
pub(super) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    pub(super) fn connect(address: &NbdAddress) -> io::Result<Self> {
        let socket = match address {
            NbdAddress::Unix(path) => Self::Unix(UnixStream::connect(path)?),
            NbdAddress::Tcp { host, port } => {
                let stream = connect_tcp(host, *port)?;
                stream.set_nodelay(true)?;
                Self::Tcp(stream)
            }
        };
        // Refusal only costs a few more calls.
        let _ = sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES);
        socket.set_timeouts(Some(HANDSHAKE_TIMEOUT))?;
        Ok(socket)
    }

    /// Ends the handshake's time limits: from here on the monitor watches for stalls, and the
    /// kernel need not set a timer for every wait.
    pub(super) fn begin_transmission(&self) -> io::Result<()> {
        self.set_timeouts(None)
    }

    fn set_timeouts(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
            Self::Tcp(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
        }
    }

    /// The process that listens on the other end of a unix socket.
    pub(super) fn server_pid(&self) -> Option<u32> {
        match self {
            Self::Unix(stream) => {
                let peer = sockopt::socket_peercred(stream).ok()?;
                u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
            }
            Self::Tcp(_) => None,
        }
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    /// Ends both directions: whoever waits on the socket wakes up.
    pub(super) fn shut_down(&self) {
        // It may be gone already, which is what was wanted.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    /// Sends what fits now; `None` when nothing does.
    pub(super) fn send_now(&self, slices: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            let result = match slices {
                [one] => send(self, one, flags),
                many => sendmsg(self, many, &mut SendAncillaryBuffer::default(), flags),
            };
            match result {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Receives what is there, waiting for something if `wait`. Zero is the end of the stream,
    /// `None` that nothing is there.
    pub(super) fn receive(&self, into: &mut [u8], wait: bool) -> io::Result<Option<usize>> {
        loop {
            if wait {
                self.wait_for(PollFlags::IN, None)?;
            }
            match recv(self, &mut *into, RecvFlags::DONTWAIT) {
                Ok((bytes, _)) => return Ok(Some(bytes)),
                Err(Errno::AGAIN) if !wait => return Ok(None),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until there is something to receive or room to send.
    pub(super) fn wait_both(&self) -> io::Result<()> {
        self.wait_for(PollFlags::IN | PollFlags::OUT, None)
    }

    /// Waits until there is something to receive, or this long.
    pub(super) fn wait_at_most(&self, time: Duration) -> io::Result<()> {
        let time =
            Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
        self.wait_for(PollFlags::IN, Some(&time))
    }

    fn wait_for(&self, what: PollFlags, time: Option<&Timespec>) -> io::Result<()> {
        let mut fds = [PollFd::new(self, what)];
        loop {
            match poll(&mut fds, time) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    use std::net::ToSocketAddrs;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, HANDSHAKE_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl io::Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(into),
            Self::Tcp(stream) => stream.read(into),
        }
    }
}

impl io::Write for Socket {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(from),
            Self::Tcp(stream) => stream.write(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
