//! Tells a service manager that the daemon is ready or stopping.
//!
//! Source: sd_notify(3): one datagram to the unix socket named by `NOTIFY_SOCKET`; a leading `@`
//! stands for the abstract name space. Failing to notify is never fatal.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The daemon accepts connections.
pub const READY: &[u8] = b"READY=1\n";
/// The daemon has begun to stop.
pub const STOPPING: &[u8] = b"STOPPING=1\n";

/// Sends `state` to the service manager, if there is one.
pub fn notify(state: &[u8]) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(%error, ?socket, "the service manager could not be notified");
    }
}

fn send(socket: &OsStr, state: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sends_to_paths_and_abstract_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let server = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), READY).unwrap();
        let mut buffer = [0; 64];
        let received = server.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..received], READY);

        let name = format!("flagstone-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let server = UnixDatagram::bind_addr(&address).unwrap();
        send(OsStr::new(&format!("@{name}")), STOPPING).unwrap();
        let received = server.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..received], STOPPING);
    }
}
