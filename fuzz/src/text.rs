//! What people type: sizes, names, addresses, configuration files, NBD URIs.
//!
//! The first byte chooses the parser, the rest is the text.

use flagstone::config::{FileConfig, KEYS, nearest, parse_address};
use flagstone::name::{NAME_BYTES_MAX, check_name};
use flagstone::size::{Human, SizeError, check_blocks, parse_block_size, parse_size};
use flagstone::uri::{NbdEndpoints, percent_encode};
use flagstone_loadgen::{NbdAddress, NbdUri};
use std::path::{Path, PathBuf};

/// One parser; see the module.
pub fn text_input(input: &[u8]) {
    let Some((&which, bytes)) = input.split_first() else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match which % 5 {
        0 => size(text),
        1 => name(text),
        2 => config(text),
        3 => uri(text),
        _ => endpoints(text),
    }
}

fn size(text: &str) {
    match parse_size(text) {
        Ok(bytes) => {
            assert!(i64::try_from(bytes).is_ok());
            assert_eq!(parse_size(&bytes.to_string()), Ok(bytes));
            assert_eq!(parse_block_size(text).is_ok(), check_blocks(bytes).is_ok());
            // What looks exact is exact, and may be typed back.
            let human = Human(bytes).to_string();
            if !human.contains('.') {
                assert_eq!(parse_size(&human), Ok(bytes), "{human}");
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Err(SizeError::NotBlocks { bytes, below, above }) = parse_block_size(text) {
        assert!(check_blocks(below).is_ok() && bytes % 4096 != 0);
        assert!(bytes < above && above % 4096 == 0);
    }
}

fn name(text: &str) {
    let good = !text.is_empty()
        && text.len() <= NAME_BYTES_MAX
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    match check_name(text) {
        Ok(()) => assert!(good),
        Err(error) => assert!(!good && !error.to_string().is_empty()),
    }
    let _ = nearest(text, &KEYS);
}

fn config(text: &str) {
    match FileConfig::parse(Path::new("f.toml"), text) {
        Ok(config) => {
            assert_ne!(config.max_connections, Some(0));
            assert!(config.memory.is_none_or(|bytes| i64::try_from(bytes).is_ok()));
            let empty = |path: &PathBuf| path.as_os_str().is_empty();
            assert!(!config.pools.iter().any(empty) && !config.nbd_socket.iter().any(empty));
        }
        Err(error) => assert!(error.to_string().starts_with("f.toml")),
    }
}

fn uri(text: &str) {
    match text.parse::<NbdUri>() {
        Ok(uri) => {
            let again = uri.to_string();
            assert_eq!(again.parse(), Ok(uri), "{again}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The URIs that the daemon prints must mean to a client what they meant to the daemon.
fn endpoints(text: &str) {
    let mut parts = text.splitn(3, '\n');
    let mut part = || parts.next().unwrap_or_default();
    let (export, socket, listen) = (part(), part(), part());
    // As bound: nobody is reached at port 0.
    let listen = parse_address(listen).ok().filter(|address| address.port() != 0);
    let socket = (!socket.is_empty()).then(|| PathBuf::from(socket));
    let endpoints = NbdEndpoints { socket: socket.clone(), listen };
    let uris = endpoints.uris(export);
    assert_eq!(uris.len(), usize::from(socket.is_some()) + usize::from(listen.is_some()));
    if export.len() > flagstone_engine::limits::NAME_BYTES {
        return;
    }
    for uri in uris {
        assert!(uri.is_ascii());
        let parsed: NbdUri = uri.parse().unwrap_or_else(|error| panic!("{uri}: {error}"));
        assert_eq!(parsed.name, export, "{uri}");
        match parsed.address {
            NbdAddress::Unix(path) => assert_eq!(Some(path), socket),
            NbdAddress::Tcp { port, .. } => assert_eq!(Some(port), listen.map(|l| l.port())),
        }
    }
    let mut encoded = String::new();
    percent_encode(&mut encoded, text.as_bytes(), b"/");
    assert!(encoded.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%/".contains(&b)));
}
