//! What a client sends, as bytes.

use crate::proto::*;
use crate::reply::Style;

/// The client's flags: fixed newstyle, without the 124 zeroes.
#[must_use]
pub fn client_flags() -> [u8; 4] {
    (FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES).to_be_bytes()
}

/// Appends an option. NBD proto, "Newstyle negotiation".
pub fn option(bytes: &mut Vec<u8>, option: u32, data: &[u8]) {
    bytes.extend_from_slice(&IHAVEOPT.to_be_bytes());
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
#[must_use]
pub fn info_data(name: &str, requests: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(requests.len() as u16).to_be_bytes());
    for request in requests {
        data.extend_from_slice(&request.to_be_bytes());
    }
    data
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[must_use]
pub fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend_from_slice(&(query.len() as u32).to_be_bytes());
        data.extend_from_slice(query.as_bytes());
    }
    data
}

/// Appends a request's header; a payload is the caller's to append.
pub fn request(
    bytes: &mut Vec<u8>,
    style: Style,
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    len: u64,
) {
    let magic = if style == Style::Extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
    bytes.extend_from_slice(&magic.to_be_bytes());
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    if style == Style::Extended {
        bytes.extend_from_slice(&len.to_be_bytes());
    } else {
        bytes.extend_from_slice(&(len as u32).to_be_bytes());
    }
}

/// Appends a whole WRITE.
pub fn write(bytes: &mut Vec<u8>, style: Style, flags: u16, cookie: u64, offset: u64, data: &[u8]) {
    let flags = if style == Style::Extended { flags | CMD_FLAG_PAYLOAD_LEN } else { flags };
    request(bytes, style, flags, CMD_WRITE, cookie, offset, data.len() as u64);
    bytes.extend_from_slice(data);
}
