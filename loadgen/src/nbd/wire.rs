//! The numbers of the NBD protocol that this client uses, by the headings of "NBD proto".
//!
//! Everything on the wire is big-endian.

/// "Newstyle negotiation": the server's greeting, `NBDMAGIC` then `IHAVEOPT`.
pub(super) const INIT_MAGIC: [u8; 16] = *b"NBDMAGICIHAVEOPT";
/// What each option request begins with.
pub(super) const OPTION_MAGIC: [u8; 8] = *b"IHAVEOPT";
/// What each option reply begins with.
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// "Handshake flags": the server speaks fixed newstyle.
pub(super) const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// "Handshake flags": no 124 zeroes after EXPORT_NAME.
pub(super) const FLAG_NO_ZEROES: u16 = 1 << 1;

/// "Option types".
pub(super) const OPT_GO: u32 = 7;
pub(super) const OPT_STRUCTURED_REPLY: u32 = 8;

/// "Option reply types".
pub(super) const REP_ACK: u32 = 1;
pub(super) const REP_INFO: u32 = 3;
/// Set in the types that are errors.
pub(super) const REP_ERROR_BIT: u32 = 1 << 31;
pub(super) const REP_ERR_UNSUP: u32 = REP_ERROR_BIT | 1;
pub(super) const REP_ERR_POLICY: u32 = REP_ERROR_BIT | 2;
pub(super) const REP_ERR_UNKNOWN: u32 = REP_ERROR_BIT | 6;

/// `NBD_INFO_*`, in replies to GO.
pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

/// "Transmission flags".
pub(super) const TRANSMIT_READ_ONLY: u16 = 1 << 1;
pub(super) const TRANSMIT_SEND_FLUSH: u16 = 1 << 2;
pub(super) const TRANSMIT_SEND_FUA: u16 = 1 << 3;
pub(super) const TRANSMIT_SEND_TRIM: u16 = 1 << 5;
pub(super) const TRANSMIT_CAN_MULTI_CONN: u16 = 1 << 8;

/// "Request message": its magic and the length without payload.
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const REQUEST_BYTES: usize = 28;
/// "Command flags": force unit access.
pub(super) const COMMAND_FLAG_FUA: u16 = 1 << 0;
/// "Request types".
pub(super) const COMMAND_READ: u16 = 0;
pub(super) const COMMAND_WRITE: u16 = 1;
pub(super) const COMMAND_DISCONNECT: u16 = 2;
pub(super) const COMMAND_FLUSH: u16 = 3;
pub(super) const COMMAND_TRIM: u16 = 4;
pub(super) const COMMAND_WRITE_ZEROES: u16 = 6;

/// "Simple reply message".
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(super) const SIMPLE_REPLY_BYTES: usize = 16;
/// "Structured reply chunk message".
pub(super) const CHUNK_MAGIC: u32 = 0x668e_33ef;
pub(super) const CHUNK_BYTES: usize = 20;
/// "Structured reply flags": the last chunk.
pub(super) const CHUNK_FLAG_DONE: u16 = 1 << 0;
/// "Structured reply types".
pub(super) const CHUNK_NONE: u16 = 0;
pub(super) const CHUNK_OFFSET_DATA: u16 = 1;
pub(super) const CHUNK_OFFSET_HOLE: u16 = 2;
/// Set in the types that are errors.
pub(super) const CHUNK_ERROR_BIT: u16 = 1 << 15;

/// Encodes a "Request message" with a 32-bit length.
pub(super) fn request(
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u32,
) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..28].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Reads a big-endian number at `at`; the caller has checked the length.
pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("2 bytes"))
}

/// As [`be16`].
pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// As [`be16`].
pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}
