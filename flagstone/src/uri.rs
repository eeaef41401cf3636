//! NBD URIs of exports, ready to paste into a client.
//!
//! Source: the NBD URI specification (`nbd://`, `nbd+unix:///EXPORT?socket=PATH`).

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Where exports are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NbdEndpoints {
    /// Absolute path of the unix socket, if there is one.
    pub socket: Option<std::path::PathBuf>,
    /// The TCP address as bound, if there is one.
    pub listen: Option<SocketAddr>,
}

impl NbdEndpoints {
    /// The URIs of `export`, the unix socket's first. An empty name stands for the server itself,
    /// as `nbdinfo --list` wants it.
    #[must_use]
    pub fn uris(&self, export: &str) -> Vec<String> {
        let unix = self.socket.as_deref().map(|socket| unix_uri(export, socket));
        let tcp = self.listen.map(|address| tcp_uri(export, address));
        unix.into_iter().chain(tcp).collect()
    }
}

/// What RFC 3986 allows in a path besides, and a snapshot's name has.
const IN_PATH: &[u8] = b"@";

/// `nbd+unix:///EXPORT?socket=PATH`.
#[must_use]
pub fn unix_uri(export: &str, socket: &Path) -> String {
    let mut uri = String::from("nbd+unix:///");
    percent_encode(&mut uri, export.as_bytes(), IN_PATH);
    uri.push_str("?socket=");
    percent_encode(&mut uri, socket.as_os_str().as_bytes(), b"/");
    uri
}

/// `nbd://HOST:PORT/EXPORT`. A server bound to every address is reached as localhost from here,
/// so that the URI works where it is printed.
#[must_use]
pub fn tcp_uri(export: &str, address: SocketAddr) -> String {
    let mut uri = String::from("nbd://");
    if address.ip().is_unspecified() {
        let _ = write!(uri, "localhost:{}", address.port());
    } else {
        let _ = write!(uri, "{address}");
    }
    uri.push('/');
    percent_encode(&mut uri, export.as_bytes(), IN_PATH);
    uri
}

/// Appends `bytes`, escaping everything but RFC 3986's unreserved characters and `keep`.
pub fn percent_encode(out: &mut String, bytes: &[u8], keep: &[u8]) {
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_uris_escape_what_a_query_cannot_hold() {
        assert_eq!(
            unix_uri("demo", Path::new("/run/flagstone/nbd.sock")),
            "nbd+unix:///demo?socket=/run/flagstone/nbd.sock"
        );
        assert_eq!(
            unix_uri("a", Path::new("/tmp/my dir&x")),
            "nbd+unix:///a?socket=/tmp/my%20dir%26x"
        );
    }

    #[test]
    fn tcp_uris_name_a_reachable_host() {
        let uri = |address: &str| tcp_uri("v", address.parse().unwrap());
        assert_eq!(uri("10.0.0.1:10809"), "nbd://10.0.0.1:10809/v");
        let snapshot = tcp_uri("v@s", "10.0.0.1:10809".parse().unwrap());
        assert_eq!(snapshot, "nbd://10.0.0.1:10809/v@s");
        assert_eq!(uri("0.0.0.0:10809"), "nbd://localhost:10809/v");
        assert_eq!(uri("[::1]:10809"), "nbd://[::1]:10809/v");
        assert_eq!(uri("[::]:10809"), "nbd://localhost:10809/v");
    }
}
