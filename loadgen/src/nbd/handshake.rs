//! Fixed newstyle negotiation up to the transmission phase, over any blocking stream.
//!
//! Asks for NO_ZEROES, optionally for structured replies, then for the export with GO. Servers
//! without GO (before 2017) are refused with a clear error.

use std::io::{self, Read, Write};

use super::wire::*;

/// The longest option reply that is read; longer ones are a broken or hostile server.
const REPLY_BYTES_MAX: u32 = 64 << 10;
/// Replies to one option before the server is taken for broken.
const REPLIES_MAX: u32 = 256;

/// What the server says about the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Export {
    pub size: u64,
    pub flags: u16,
    /// Smallest and largest request in bytes, where the server says so.
    pub limits: Option<(u32, u32)>,
    /// Whether replies are structured.
    pub structured: bool,
}

/// Why no export came out of the negotiation.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection failed or ended.
    #[error("the connection failed during the handshake")]
    Io(#[from] io::Error),
    /// The greeting is not that of an NBD server.
    #[error("the peer is no NBD server: its greeting is wrong")]
    NotNbd,
    /// An old server.
    #[error("the server doesn't speak the fixed newstyle handshake with GO")]
    TooOld,
    /// There is no such export.
    #[error("the server has no such export: {message}")]
    UnknownExport {
        /// What the server says.
        message: String,
    },
    /// The server refuses an option.
    #[error("the server refused option {option} with reply {reply:#x}: {message}")]
    Refused {
        /// The option's number.
        option: u32,
        /// The reply's number.
        reply: u32,
        /// What the server says.
        message: String,
    },
    /// The server sent something that the protocol doesn't allow here.
    #[error("the server broke the protocol during the handshake")]
    Protocol,
}

/// Negotiates `name`.
pub(super) fn negotiate(
    stream: &mut (impl Read + Write),
    name: &str,
    structured: bool,
) -> Result<Export, HandshakeError> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if greeting[..8] != INIT_MAGIC[..8] {
        return Err(HandshakeError::NotNbd);
    }
    let flags = be16(&greeting, 16);
    if greeting[..16] != INIT_MAGIC || flags & FLAG_FIXED_NEWSTYLE == 0 {
        return Err(HandshakeError::TooOld);
    }
    let ours = flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
    stream.write_all(&u32::from(ours).to_be_bytes())?;
    let structured = structured && ask_structured(stream)?;
    go(stream, name, structured)
}

fn send_option(stream: &mut impl Write, option: u32, data: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(16 + data.len());
    message.extend_from_slice(&OPTION_MAGIC);
    message.extend_from_slice(&option.to_be_bytes());
    message.extend_from_slice(&(data.len() as u32).to_be_bytes());
    message.extend_from_slice(data);
    stream.write_all(&message)
}

fn read_reply(stream: &mut impl Read, option: u32) -> Result<(u32, Vec<u8>), HandshakeError> {
    let mut header = [0; 20];
    stream.read_exact(&mut header)?;
    let length = be32(&header, 16);
    let fits = length <= REPLY_BYTES_MAX;
    if be64(&header, 0) != OPTION_REPLY_MAGIC || be32(&header, 8) != option || !fits {
        return Err(HandshakeError::Protocol);
    }
    let mut data = vec![0; length as usize];
    stream.read_exact(&mut data)?;
    Ok((be32(&header, 12), data))
}

/// Whether the server agreed.
fn ask_structured(stream: &mut (impl Read + Write)) -> Result<bool, HandshakeError> {
    send_option(stream, OPT_STRUCTURED_REPLY, &[])?;
    match read_reply(stream, OPT_STRUCTURED_REPLY)? {
        (REP_ACK, _) => Ok(true),
        (REP_ERR_UNSUP | REP_ERR_POLICY, _) => Ok(false),
        (reply, message) => Err(refused(OPT_STRUCTURED_REPLY, reply, &message)),
    }
}

fn go(
    stream: &mut (impl Read + Write),
    name: &str,
    structured: bool,
) -> Result<Export, HandshakeError> {
    let mut data = Vec::with_capacity(name.len() + 8);
    data.extend_from_slice(&(name.len() as u32).to_be_bytes());
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&1u16.to_be_bytes());
    data.extend_from_slice(&INFO_BLOCK_SIZE.to_be_bytes());
    send_option(stream, OPT_GO, &data)?;

    let (mut export, mut limits) = (None, None);
    for _ in 0..REPLIES_MAX {
        match read_reply(stream, OPT_GO)? {
            (REP_INFO, data) if data.len() >= 2 => match (be16(&data, 0), data.len()) {
                (INFO_EXPORT, 12) => export = Some((be64(&data, 2), be16(&data, 10))),
                (INFO_BLOCK_SIZE, 14) => limits = Some((be32(&data, 2), be32(&data, 10))),
                (INFO_EXPORT | INFO_BLOCK_SIZE, _) => return Err(HandshakeError::Protocol),
                _ => {}
            },
            (REP_ACK, _) => {
                let (size, flags) = export.ok_or(HandshakeError::Protocol)?;
                return Ok(Export { size, flags, limits, structured });
            }
            (REP_ERR_UNSUP, _) => return Err(HandshakeError::TooOld),
            (REP_ERR_UNKNOWN, message) => {
                return Err(HandshakeError::UnknownExport { message: text(&message) });
            }
            (reply, message) => return Err(refused(OPT_GO, reply, &message)),
        }
    }
    Err(HandshakeError::Protocol)
}

fn refused(option: u32, reply: u32, message: &[u8]) -> HandshakeError {
    if reply & REP_ERROR_BIT == 0 {
        return HandshakeError::Protocol;
    }
    HandshakeError::Refused { option, reply, message: text(message) }
}

/// A message for people; control characters must not reach their terminal.
fn text(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(256)];
    String::from_utf8_lossy(shown).chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// A peer whose answers are all there from the start.
    struct Scripted {
        answers: Cursor<Vec<u8>>,
        sent: Vec<u8>,
    }

    impl Read for Scripted {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.answers.read(into)
        }
    }

    impl Write for Scripted {
        fn write(&mut self, from: &[u8]) -> io::Result<usize> {
            self.sent.extend_from_slice(from);
            Ok(from.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn greeting(flags: u16) -> Vec<u8> {
        [&INIT_MAGIC[..], &flags.to_be_bytes()].concat()
    }

    fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        for word in [option, kind, data.len() as u32] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        [&bytes, data].concat()
    }

    fn info_export(size: u64, flags: u16) -> Vec<u8> {
        [&INFO_EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &flags.to_be_bytes()].concat()
    }

    fn run(answers: &[Vec<u8>], structured: bool) -> (Result<Export, HandshakeError>, Vec<u8>) {
        let mut peer = Scripted { answers: Cursor::new(answers.concat()), sent: Vec::new() };
        let result = negotiate(&mut peer, "disk", structured);
        (result, peer.sent)
    }

    #[test]
    fn a_plain_export() {
        let answers = [
            greeting(3),
            reply(OPT_GO, REP_INFO, &info_export(1 << 30, 5)),
            reply(OPT_GO, REP_INFO, &[0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0]),
            reply(OPT_GO, REP_ACK, &[]),
        ];
        let (result, sent) = run(&answers, false);
        let export = result.expect("negotiated");
        let limits = Some((1, 32 << 20));
        assert_eq!(export, Export { size: 1 << 30, flags: 5, limits, structured: false });
        assert_eq!(sent[..4], [0, 0, 0, 3]);
        assert!(sent.ends_with(b"\0\0\0\x04disk\0\x01\0\x03"));
    }

    #[test]
    fn structured_replies_are_optional() {
        for (answer, structured) in [(REP_ACK, true), (REP_ERR_UNSUP, false)] {
            let answers = [
                greeting(3),
                reply(OPT_STRUCTURED_REPLY, answer, &[]),
                reply(OPT_GO, REP_INFO, &info_export(4096, 1)),
                reply(OPT_GO, REP_ACK, &[]),
            ];
            assert_eq!(run(&answers, true).0.expect("negotiated").structured, structured);
        }
    }

    #[test]
    fn broken_peers_are_named() {
        use HandshakeError as E;
        let fails = |answers: &[Vec<u8>]| run(answers, false).0.expect_err("refused");
        assert!(matches!(fails(&[b"HTTP/1.1 400 Bad Request".to_vec()]), E::NotNbd));
        assert!(matches!(fails(&[greeting(0)]), E::TooOld));
        assert!(matches!(fails(&[greeting(3)]), E::Io(_)));
        let unknown = reply(OPT_GO, REP_ERR_UNKNOWN, b"no \x1b[31mdisk");
        let E::UnknownExport { message } = fails(&[greeting(3), unknown]) else {
            panic!("another error")
        };
        assert_eq!(message, "no [31mdisk");
        let unsupported = reply(OPT_GO, REP_ERR_UNSUP, b"");
        assert!(matches!(fails(&[greeting(3), unsupported]), E::TooOld));
        let no_export = reply(OPT_GO, REP_ACK, b"");
        assert!(matches!(fails(&[greeting(3), no_export]), E::Protocol));
        let short = reply(OPT_GO, REP_INFO, &[0, 0, 1]);
        assert!(matches!(fails(&[greeting(3), short]), E::Protocol));
        let mut long = reply(OPT_GO, REP_INFO, &[]);
        long[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(matches!(fails(&[greeting(3), long]), E::Protocol));
        let endless = vec![reply(OPT_GO, REP_INFO, &[0, 9]); 1000].concat();
        assert!(matches!(fails(&[greeting(3), endless]), E::Protocol));
    }
}
