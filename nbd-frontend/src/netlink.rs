//! Messages to the kernel's NBD client, which takes the sockets of its devices over generic netlink.
//!
//! ```text
//!   message   length u32, type u16, flags u16, sequence u32, port u32      (netlink(7))
//!             command u8, version u8, 0 u16                                (linux/genetlink.h)
//!             attributes: length u16, type u16, content, padding to 4      (linux/netlink.h)
//! ```
//!
//! Numbers are as the machine has them. Commands and attributes: `linux/nbd-netlink.h`. Nothing here does any input or
//! output.

#![expect(clippy::host_endian_bytes, reason = "netlink(7) is spoken with the machine's own kernel")]

/// Longest message that the kernel sends us: it answers with numbers and short names.
pub const MESSAGE_BYTES: usize = 8192;

const HEADER_BYTES: usize = 16;
const GENERIC_BYTES: usize = 4;
const ATTRIBUTE_BYTES: usize = 4;

/// `NLMSG_ERROR`: how a request ended.
const MESSAGE_ERROR: u16 = 2;
/// `GENL_ID_CTRL`: who knows the families.
const FAMILY_CONTROL: u16 = 16;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const FLAGS: u16 = 1 | 4;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// What of an attribute's type is its number: not `NLA_F_NESTED`, nor `NLA_F_NET_BYTEORDER`.
const TYPE_MASK: u16 = (1 << 14) - 1;

/// `CTRL_CMD_GETFAMILY`, and the attributes `CTRL_ATTR_FAMILY_ID` and `CTRL_ATTR_FAMILY_NAME`.
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// `NBD_GENL_FAMILY_NAME`, `NBD_GENL_VERSION`.
const NBD_FAMILY: &str = "nbd";
const NBD_VERSION: u8 = 1;

const CMD_CONNECT: u8 = 1;
const CMD_DISCONNECT: u8 = 2;
const CMD_RECONFIGURE: u8 = 3;

const ATTR_INDEX: u16 = 1;
const ATTR_SIZE_BYTES: u16 = 2;
const ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const ATTR_TIMEOUT: u16 = 4;
const ATTR_SERVER_FLAGS: u16 = 5;
const ATTR_SOCKETS: u16 = 7;
const ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const ATTR_BACKEND_IDENTIFIER: u16 = 10;

const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;

/// What a device is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device<'a> {
    /// The N of `/dev/nbdN`.
    pub number: u32,
    /// Bytes; `None` to leave it.
    pub size_bytes: Option<u64>,
    /// What the kernel keeps with the device, and compares when it gets another socket.
    pub backend: &'a str,
    /// A connected socket of this process, past the handshake, by its file descriptor; `None` to leave it.
    pub socket: Option<u32>,
}

/// How a device begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// NBD proto, "Transmission flags".
    pub flags: u16,
    /// Bytes of a logical block.
    pub block_bytes: u64,
    /// Seconds that requests wait for another socket when the one that there is has ended.
    pub wait_seconds: u64,
}

/// Something that is not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's answer is not a netlink message")]
pub struct Malformed;

/// A message of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// The request with this sequence number has ended: with 0, or an error number.
    Ended {
        /// Of the request.
        sequence: u32,
        /// `errno`, positive.
        errno: i32,
    },
    /// Attributes that it was answered with.
    Answer(Attributes<'a>),
}

/// Attributes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// The content of the first attribute with this number.
    fn get(self, number: u16) -> Option<&'a [u8]> {
        let mut rest = self.0;
        while let Some((kind, content, after)) = split_attribute(rest) {
            if kind & TYPE_MASK == number {
                return Some(content);
            }
            rest = after;
        }
        None
    }

    /// The number of a family, of an answer to [`find_family`].
    #[must_use]
    pub fn family(self) -> Option<u16> {
        Some(u16::from_ne_bytes(self.get(FAMILY_ID)?.try_into().ok()?))
    }
}

fn split_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (head, _) = bytes.split_at_checked(ATTRIBUTE_BYTES)?;
    let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
    let content = bytes.get(ATTRIBUTE_BYTES..len)?;
    let after = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    Some((u16::from_ne_bytes([head[2], head[3]]), content, after))
}

/// The first message of what was received, and what follows it.
///
/// # Errors
/// [`Malformed`].
pub fn split(bytes: &[u8]) -> Result<(Message<'_>, &[u8]), Malformed> {
    let u32_at = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let len = u32_at(0).ok_or(Malformed)? as usize;
    let message = bytes.get(..len).ok_or(Malformed)?;
    let body = message.get(HEADER_BYTES..).ok_or(Malformed)?;
    let rest = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    if message[4..6] == MESSAGE_ERROR.to_ne_bytes() {
        // A negative error number, and the header of the request.
        let error = body.first_chunk().ok_or(Malformed)?;
        let errno = i32::from_ne_bytes(*error).checked_neg().ok_or(Malformed)?;
        let sequence = u32_at(8).ok_or(Malformed)?;
        return Ok((Message::Ended { sequence, errno }, rest));
    }
    let attributes = body.get(GENERIC_BYTES..).ok_or(Malformed)?;
    Ok((Message::Answer(Attributes(attributes)), rest))
}

/// Asks for the number of the NBD client's family; there is none if it is not loaded.
#[must_use]
pub fn find_family(sequence: u32) -> Vec<u8> {
    let mut message = Writer::new(FAMILY_CONTROL, GET_FAMILY, 1, sequence);
    message.text(FAMILY_NAME, NBD_FAMILY);
    message.end()
}

/// Makes a device. Requests that it has sent are never given up as long as the socket lives.
#[must_use]
pub fn connect(family: u16, sequence: u32, device: &Device<'_>, terms: &Terms) -> Vec<u8> {
    let mut message = Writer::new(family, CMD_CONNECT, NBD_VERSION, sequence);
    message.device(device);
    message.u64(ATTR_BLOCK_SIZE_BYTES, terms.block_bytes);
    message.u64(ATTR_TIMEOUT, 0);
    message.u64(ATTR_SERVER_FLAGS, terms.flags.into());
    message.u64(ATTR_DEAD_CONN_TIMEOUT, terms.wait_seconds);
    message.end()
}

/// Gives a device a size, or another socket, which it takes only if its own has ended: it does not tell.
#[must_use]
pub fn reconfigure(family: u16, sequence: u32, device: &Device<'_>) -> Vec<u8> {
    let mut message = Writer::new(family, CMD_RECONFIGURE, NBD_VERSION, sequence);
    message.device(device);
    message.end()
}

/// Takes a device away.
#[must_use]
pub fn disconnect(family: u16, sequence: u32, number: u32) -> Vec<u8> {
    let mut message = Writer::new(family, CMD_DISCONNECT, NBD_VERSION, sequence);
    message.u32(ATTR_INDEX, number);
    message.end()
}

/// A message being made.
struct Writer(Vec<u8>);

impl Writer {
    fn new(family: u16, command: u8, version: u8, sequence: u32) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(family.to_ne_bytes());
        bytes.extend(FLAGS.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        // The port: the kernel knows whose the socket is.
        bytes.extend([0; 4]);
        bytes.extend([command, version, 0, 0]);
        Self(bytes)
    }

    fn device(&mut self, device: &Device<'_>) {
        self.u32(ATTR_INDEX, device.number);
        if let Some(size_bytes) = device.size_bytes {
            self.u64(ATTR_SIZE_BYTES, size_bytes);
        }
        self.text(ATTR_BACKEND_IDENTIFIER, device.backend);
        if let Some(socket) = device.socket {
            let list = self.open(ATTR_SOCKETS | NESTED);
            let item = self.open(SOCK_ITEM | NESTED);
            self.u32(SOCK_FD, socket);
            self.close(item);
            self.close(list);
        }
    }

    fn u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    fn u64(&mut self, kind: u16, value: u64) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// With the zero that ends it (`NLA_STRING`).
    fn text(&mut self, kind: u16, text: &str) {
        let at = self.open(kind);
        self.0.extend(text.as_bytes());
        self.0.push(0);
        self.close(at);
    }

    fn put(&mut self, kind: u16, content: &[u8]) {
        let at = self.open(kind);
        self.0.extend(content);
        self.close(at);
    }

    fn open(&mut self, kind: u16) -> usize {
        let at = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        at
    }

    fn close(&mut self, at: usize) {
        let len = (self.0.len() - at) as u16;
        self.0[at..at + 2].copy_from_slice(&len.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_bytes_that_the_kernel_expects() {
        let family = find_family(7);
        #[rustfmt::skip]
        assert_eq!(family, [
            28, 0, 0, 0, 16, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0,
            3, 1, 0, 0,
            8, 0, 2, 0, b'n', b'b', b'd', 0,
        ]);
        let device =
            Device { number: 3, size_bytes: Some(1 << 20), backend: "abcd", socket: Some(9) };
        let terms = Terms { flags: 0x0d6d, block_bytes: 4096, wait_seconds: 600 };
        #[rustfmt::skip]
        let of_device = [
            8, 0, 1, 0, 3, 0, 0, 0,
            12, 0, 2, 0, 0, 0, 0x10, 0, 0, 0, 0, 0,
            9, 0, 10, 0, b'a', b'b', b'c', b'd', 0, 0, 0, 0,
            16, 0, 7, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 9, 0, 0, 0,
        ];
        #[rustfmt::skip]
        let expected = [
            &[116, 0, 0, 0, 30, 0, 5, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0][..], &of_device,
            &[12, 0, 3, 0, 0, 0x10, 0, 0, 0, 0, 0, 0],
            &[12, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[12, 0, 5, 0, 0x6d, 0x0d, 0, 0, 0, 0, 0, 0],
            &[12, 0, 8, 0, 0x58, 0x02, 0, 0, 0, 0, 0, 0],
        ].concat();
        assert_eq!(connect(30, 8, &device, &terms), expected);
        let again = reconfigure(30, 9, &device);
        assert_eq!((again[0], again[16]), (68, 3));
        assert_eq!(again[20..], of_device);
        let grown = Device { socket: None, ..device };
        assert_eq!(reconfigure(30, 9, &grown).len(), 52);
        #[rustfmt::skip]
        assert_eq!(disconnect(30, 1, 3), [
            28, 0, 0, 0, 30, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 8, 0, 1, 0, 3, 0, 0, 0,
        ]);
    }

    #[test]
    fn answers_are_taken_apart() {
        #[rustfmt::skip]
        let answer = [
            // CTRL_CMD_NEWFAMILY: its name, and its number.
            36, 0, 0, 0, 16, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 1, 2, 0, 0,
            8, 0, 2, 0, b'n', b'b', b'd', 0, 6, 0, 1, 0, 30, 0, 0, 0,
            // NLMSG_ERROR: -EBUSY, and the request's header.
            36, 0, 0, 0, 2, 0, 0, 1, 7, 0, 0, 0, 1, 0, 0, 0,
            0xf0, 0xff, 0xff, 0xff, 28, 0, 0, 0, 16, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0,
        ];
        let (Message::Answer(attributes), rest) = split(&answer).unwrap() else { panic!() };
        assert_eq!(attributes.family(), Some(30));
        assert_eq!(split(rest), Ok((Message::Ended { sequence: 7, errno: 16 }, &[][..])));
        assert_eq!(Attributes(&[]).family(), None);
        assert_eq!(Attributes(&[8, 0, 1, 0, 30, 0, 0, 0]).family(), None);
    }

    #[test]
    fn nothing_that_is_received_breaks_it() {
        let whole = [36, 0, 0, 0, 16, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 1, 2, 0, 0, 8, 0];
        for len in 0..whole.len() {
            assert_eq!(split(&whole[..len]), Err(Malformed), "{len} bytes");
        }
        let mut state = 1_u32;
        let mut bytes = [0; 64];
        for _ in 0..100_000 {
            for byte in &mut bytes {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (state >> 24) as u8 >> (state >> 8 & 7);
            }
            let mut rest = &bytes[..];
            while let Ok((message, after)) = split(rest) {
                if let Message::Answer(attributes) = message {
                    let _ = attributes.family();
                }
                assert!(after.len() < rest.len());
                rest = after;
            }
        }
    }
}
