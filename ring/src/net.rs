//! Sockets that the ring listens on: addresses claimed politely, options set once.
//!
//! Options set on a listening TCP socket are inherited by what it accepts (`tcp(7)`, `socket(7)`),
//! so connections need no system call of their own.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt;

use crate::uring::errno_of;

/// Owner and group may connect; others may not.
const SOCKET_MODE: u32 = 0o660;
/// Connections waiting to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 1024;
/// A peer that vanished without a word is noticed after idle + probes * interval, about 2 minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 6;

/// Why a listening socket could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Someone answers there already.
    #[error("{address} is already in use: another server is listening there")]
    AddrInUse {
        /// The path or socket address.
        address: String,
    },
    /// Something that is no socket is in the way; it is not touched.
    #[error("{path} exists and is not a socket; remove it or choose another path")]
    NotASocket {
        /// As given.
        path: PathBuf,
    },
    /// The directory is missing, or the path is too long or not allowed.
    #[error("cannot listen on {address}: {call} failed: {errno}")]
    Os {
        /// The path or socket address.
        address: String,
        /// The system call.
        call: &'static str,
        /// What it said.
        errno: Errno,
    },
}

/// Listens on a unix socket at `path`, mode 0660. Replaces a socket file that nobody listens on
/// any more, as a killed server leaves it.
///
/// # Errors
/// `AddrInUse` if a server answers there; `NotASocket` if another kind of file is in the way.
pub fn listen_unix(path: impl AsRef<Path>) -> Result<OwnedFd, ListenError> {
    let path = path.as_ref();
    let fail = |call, error: &io::Error| ListenError::Os {
        address: path.display().to_string(),
        call,
        errno: errno_of(error),
    };
    let in_use = || ListenError::AddrInUse { address: path.display().to_string() };
    let listener = match UnixListener::bind(path) {
        Ok(listener) => listener,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let kind = std::fs::symlink_metadata(path).map_err(|error| fail("stat", &error))?;
            if !kind.file_type().is_socket() {
                return Err(ListenError::NotASocket { path: path.to_owned() });
            }
            match UnixStream::connect(path) {
                // Only a refused connection proves that nobody listens (unix(7), connect(2)).
                Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {}
                Ok(_) => return Err(in_use()),
                // Full backlog, or a datagram socket: someone is there.
                Err(_) => return Err(in_use()),
            }
            std::fs::remove_file(path).map_err(|error| fail("unlink", &error))?;
            UnixListener::bind(path).map_err(|error| match error.kind() {
                // Another server was faster between the two calls.
                io::ErrorKind::AddrInUse => in_use(),
                _ => fail("bind", &error),
            })?
        }
        Err(error) => return Err(fail("bind", &error)),
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))
        .map_err(|error| fail("chmod", &error))?;
    rustix::net::listen(&listener, BACKLOG).map_err(|errno| fail("listen", &errno.into()))?;
    Ok(listener.into())
}

/// Listens on a TCP address; port 0 lets the kernel choose. Accepted connections send without delay
/// and probe silent peers.
///
/// # Errors
/// `AddrInUse` if a server listens there; `Os` otherwise.
pub fn listen_tcp(address: SocketAddr) -> Result<OwnedFd, ListenError> {
    let fail = |call, errno| ListenError::Os { address: address.to_string(), call, errno };
    let listener = TcpListener::bind(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::AddrInUse { address: address.to_string() },
        _ => fail("bind", errno_of(&error)),
    })?;
    set_tcp_options(&listener).map_err(|errno| fail("setsockopt", errno))?;
    rustix::net::listen(&listener, BACKLOG).map_err(|errno| fail("listen", errno))?;
    Ok(listener.into())
}

/// Sends small messages at once and probes a silent peer. For sockets that did not come through
/// [`listen_tcp`].
///
/// # Errors
/// The socket is not TCP.
pub fn set_tcp_options(socket: impl AsFd) -> Result<(), Errno> {
    let socket = socket.as_fd();
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)
}
