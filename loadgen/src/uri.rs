//! NBD URIs, as the "NBD URI specification" writes them.
//!
//! `nbd://HOST[:PORT]/NAME` and `nbd+unix:///NAME?socket=PATH`. TLS schemes (`nbds`,
//! `nbds+unix`) are known and refused: encryption would be most of what is measured.

use std::{fmt, path::PathBuf, str::FromStr};

/// The port assigned to NBD.
pub const DEFAULT_PORT: u16 = 10809;
/// The longest export name, in bytes (NBD proto, "Values": strings are at most 4096 bytes).
pub const NAME_BYTES_MAX: usize = 4096;

/// Where an export is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    /// How to reach the server.
    pub address: NbdAddress,
    /// The export's name; empty for the server's default export.
    pub name: String,
}

/// How to reach a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// TCP; the host is a name or an address without brackets.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
}

/// Why a string is no usable NBD URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NbdUriError {
    /// Another scheme, or none.
    #[error("an NBD URI begins with nbd:// or nbd+unix://")]
    Scheme,
    /// A scheme with TLS.
    #[error("TLS (nbds://) is not supported: use nbd:// or nbd+unix://")]
    Tls,
    /// `nbd+unix` without a socket.
    #[error("nbd+unix:// needs ?socket=PATH")]
    NoSocket,
    /// `nbd+unix` with a host.
    #[error("nbd+unix:// has no host: write three slashes, nbd+unix:///NAME?socket=PATH")]
    UnixHost,
    /// `nbd` without a host, or with a broken one.
    #[error("nbd:// needs HOST or HOST:PORT")]
    Host,
    /// The port is no number from 1 to 65535.
    #[error("the port must be a number from 1 to 65535")]
    Port,
    /// A `%` that is not followed by two hexadecimal digits, or bytes that are no UTF-8.
    #[error("a % must be followed by two hexadecimal digits, and the result must be UTF-8")]
    Escape,
    /// The export name is too long.
    #[error("the export name is longer than {NAME_BYTES_MAX} bytes")]
    NameTooLong,
}

impl FromStr for NbdUri {
    type Err = NbdUriError;

    fn from_str(text: &str) -> Result<Self, NbdUriError> {
        let (scheme, rest) = text.split_once("://").ok_or(NbdUriError::Scheme)?;
        let (location, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = location.split_once('/').unwrap_or((location, ""));
        let name = unescape(path)?;
        if name.len() > NAME_BYTES_MAX {
            return Err(NbdUriError::NameTooLong);
        }
        let address = match scheme {
            "nbd" => tcp(authority)?,
            "nbd+unix" if !authority.is_empty() => return Err(NbdUriError::UnixHost),
            "nbd+unix" => {
                let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket="));
                match socket.map(unescape).transpose()? {
                    Some(path) if !path.is_empty() => NbdAddress::Unix(path.into()),
                    _ => return Err(NbdUriError::NoSocket),
                }
            }
            "nbds" | "nbds+unix" => return Err(NbdUriError::Tls),
            _ => return Err(NbdUriError::Scheme),
        };
        Ok(Self { address, name })
    }
}

fn tcp(authority: &str) -> Result<NbdAddress, NbdUriError> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (host, port) = bracketed.split_once(']').ok_or(NbdUriError::Host)?;
            match port.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if port.is_empty() => (host, None),
                None => return Err(NbdUriError::Host),
            }
        }
        None => match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let host = unescape(host)?;
    let literal = authority.starts_with('[');
    if host.is_empty() || !host.chars().all(|c| in_host(c, literal)) {
        return Err(NbdUriError::Host);
    }
    let port = match port {
        Some(port) => port.parse().ok().filter(|&p| p > 0).ok_or(NbdUriError::Port)?,
        None => DEFAULT_PORT,
    };
    Ok(NbdAddress::Tcp { host, port })
}

/// What a host name or, as a literal in brackets, an IPv6 address with its zone is made of.
fn in_host(c: char, literal: bool) -> bool {
    c.is_ascii_alphanumeric() || "-._~".contains(c) || (literal && ":%".contains(c))
}

/// Undoes percent-encoding. A `+` stays a plus: this is a URI, not a form.
fn unescape(text: &str) -> Result<String, NbdUriError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let [high, low, tail @ ..] = rest else { return Err(NbdUriError::Escape) };
        let digit = |byte: u8| (byte as char).to_digit(16).ok_or(NbdUriError::Escape);
        bytes.push((digit(*high)? * 16 + digit(*low)?) as u8);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| NbdUriError::Escape)
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            NbdAddress::Unix(path) => {
                write!(f, "nbd+unix:///{}?socket=", Escaped(&self.name))?;
                write!(f, "{}", Escaped(&path.to_string_lossy()))
            }
            NbdAddress::Tcp { host, port } if host.contains([':', '%']) => {
                write!(f, "nbd://[{}]:{port}/{}", Escaped(host), Escaped(&self.name))
            }
            NbdAddress::Tcp { host, port } => {
                write!(f, "nbd://{host}:{port}/{}", Escaped(&self.name))
            }
        }
    }
}

/// Percent-encodes whatever would mean something else in a URI.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => write!(f, "{}", byte as char)?,
                b'-' | b'.' | b'_' | b'~' | b'/' | b'@' | b':' => write!(f, "{}", byte as char)?,
                _ => write!(f, "%{byte:02X}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> NbdAddress {
        NbdAddress::Tcp { host: host.into(), port }
    }

    #[test]
    fn good_uris() {
        let cases = [
            ("nbd://localhost", tcp("localhost", 10809), ""),
            ("nbd://localhost/", tcp("localhost", 10809), ""),
            ("nbd://localhost:1234/disk", tcp("localhost", 1234), "disk"),
            ("nbd://[::1]:1234/a/b", tcp("::1", 1234), "a/b"),
            ("nbd://[::1]", tcp("::1", 10809), ""),
            ("nbd://[fe80::1%25eth0]:7/x", tcp("fe80::1%eth0", 7), "x"),
            ("nbd+unix:///?socket=/run/s", NbdAddress::Unix("/run/s".into()), ""),
            ("nbd+unix:///demo?socket=/run/s", NbdAddress::Unix("/run/s".into()), "demo"),
            ("nbd+unix:///a%20b?x=1&socket=/a%3Fb", NbdAddress::Unix("/a?b".into()), "a b"),
            ("nbd+unix:///v@snap?socket=s", NbdAddress::Unix("s".into()), "v@snap"),
        ];
        for (text, address, name) in cases {
            let uri = NbdUri { address, name: name.into() };
            assert_eq!(text.parse(), Ok(uri.clone()), "{text}");
            assert_eq!(uri.to_string().parse(), Ok(uri), "{text} again");
        }
    }

    #[test]
    fn bad_uris() {
        use NbdUriError as E;
        let cases = [
            ("", E::Scheme),
            ("/run/s", E::Scheme),
            ("http://x/y", E::Scheme),
            ("nbds://x/y", E::Tls),
            ("nbds+unix:///y?socket=s", E::Tls),
            ("nbd://", E::Host),
            ("nbd:///name", E::Host),
            ("nbd://[::1/x", E::Host),
            ("nbd://[::1]x/x", E::Host),
            ("nbd://a]:8]:6/x", E::Host),
            ("nbd://a:8]:6/x", E::Host),
            ("nbd://u@h/x", E::Host),
            ("nbd://a\u{5}b/x", E::Host),
            ("nbd://a%2Fb/x", E::Host),
            ("nbd://h:0/x", E::Port),
            ("nbd://h:65536/x", E::Port),
            ("nbd://h:x/x", E::Port),
            ("nbd+unix:///x", E::NoSocket),
            ("nbd+unix:///x?socket=", E::NoSocket),
            ("nbd+unix://host/x?socket=s", E::UnixHost),
            ("nbd://h/%", E::Escape),
            ("nbd://h/%4", E::Escape),
            ("nbd://h/%zz", E::Escape),
            ("nbd://h/%ff", E::Escape),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<NbdUri>(), Err(error), "{text}");
        }
        let long = format!("nbd://h/{}", "n".repeat(NAME_BYTES_MAX + 1));
        assert_eq!(long.parse::<NbdUri>(), Err(E::NameTooLong));
    }
}
