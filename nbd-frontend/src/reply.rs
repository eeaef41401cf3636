//! Encoding of transmission replies: pure functions into a caller's buffer.
//!
//! Each appends one message, or the part of one that precedes its data: the caller sends the
//! data from where it lies. No function needs more than [`MAX_HEADER_BYTES`] of room except
//! [`status_chunk`], which fills what there is.
//!
//! Source: NBD proto, "Simple reply message", "Structured reply chunk message", "Extended reply
//! chunk message", "Structured reply types".

use crate::proto::*;
use crate::wire::Out;

/// How replies are framed, negotiated during the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// 16-byte headers; a READ's data follows its header in one piece.
    Simple,
    /// 20-byte chunk headers; other replies without data may be simple ones.
    Structured,
    /// 32-byte headers in both directions, and 64-bit lengths.
    Extended,
}

impl Style {
    /// Bytes in a request's header.
    #[must_use]
    pub const fn request_bytes(self) -> usize {
        match self {
            Self::Simple | Self::Structured => 28,
            Self::Extended => 32,
        }
    }

    /// A READ may be answered in several chunks, in any order, with holes.
    #[must_use]
    pub const fn has_chunks(self) -> bool {
        !matches!(self, Self::Simple)
    }
}

/// What a reply repeats of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// The client's name for the request.
    pub cookie: u64,
    /// The request's offset in bytes; extended replies carry it.
    pub offset: u64,
}

/// Room that any one function here needs, except [`status_chunk`].
pub const MAX_HEADER_BYTES: usize = 128;

fn simple(to: ReplyTo, error: u32, out: &mut Out<'_>) {
    out.u32(SIMPLE_REPLY_MAGIC);
    out.u32(error);
    out.u64(to.cookie);
}

/// Appends a chunk's header; `len` bytes of payload must follow.
fn chunk(style: Style, to: ReplyTo, flags: u16, kind: u16, len: u32, out: &mut Out<'_>) {
    match style {
        Style::Extended => {
            out.u32(EXTENDED_REPLY_MAGIC);
            out.u16(flags);
            out.u16(kind);
            out.u64(to.cookie);
            out.u64(to.offset);
            out.u64(u64::from(len));
        }
        Style::Structured | Style::Simple => {
            debug_assert!(style == Style::Structured, "chunks were not negotiated");
            out.u32(STRUCTURED_REPLY_MAGIC);
            out.u16(flags);
            out.u16(kind);
            out.u64(to.cookie);
            out.u32(len);
        }
    }
}

const fn done_flag(done: bool) -> u16 {
    if done { REPLY_FLAG_DONE } else { 0 }
}

/// Success of anything but a READ or BLOCK_STATUS; for [`Style::Simple`] also the header before
/// a READ's data.
pub fn success(style: Style, to: ReplyTo, out: &mut Out<'_>) {
    match style {
        // The shortest reply that is allowed.
        Style::Simple | Style::Structured => simple(to, 0, out),
        Style::Extended => chunk(style, to, REPLY_FLAG_DONE, REPLY_TYPE_NONE, 0, out),
    }
}

/// The end of a chunked READ whose last content chunk was not marked as the last.
pub fn read_done(style: Style, to: ReplyTo, out: &mut Out<'_>) {
    match style {
        Style::Simple => simple(to, 0, out),
        _ => chunk(style, to, REPLY_FLAG_DONE, REPLY_TYPE_NONE, 0, out),
    }
}

/// Failure of a whole request; final.
pub fn error(style: Style, to: ReplyTo, errno: Errno, out: &mut Out<'_>) {
    if style == Style::Simple {
        return simple(to, errno.code(), out);
    }
    let text = errno.message();
    chunk(style, to, REPLY_FLAG_DONE, REPLY_TYPE_ERROR, 6 + text.len() as u32, out);
    out.u32(errno.code());
    out.u16(text.len() as u16);
    out.put(text.as_bytes());
}

/// Failure at byte `offset` of the export; other parts of the request may have succeeded.
///
/// Chunked styles only. `done` marks it as the reply's last chunk.
pub fn error_at(
    style: Style,
    to: ReplyTo,
    errno: Errno,
    offset: u64,
    done: bool,
    out: &mut Out<'_>,
) {
    let text = errno.message();
    let len = 14 + text.len() as u32;
    chunk(style, to, done_flag(done), REPLY_TYPE_ERROR_OFFSET, len, out);
    out.u32(errno.code());
    out.u16(text.len() as u16);
    out.put(text.as_bytes());
    out.u64(offset);
}

/// What precedes `len` bytes of data that lie at byte `offset` of the export; `len` at least 1.
///
/// Chunked styles only. `done` marks it as the reply's last chunk.
pub fn data(style: Style, to: ReplyTo, offset: u64, len: u32, done: bool, out: &mut Out<'_>) {
    chunk(style, to, done_flag(done), REPLY_TYPE_OFFSET_DATA, 8 + len, out);
    out.u64(offset);
}

/// `len` zero bytes at byte `offset` of the export; `len` at least 1.
///
/// Chunked styles only. `done` marks it as the reply's last chunk.
pub fn hole(style: Style, to: ReplyTo, offset: u64, len: u32, done: bool, out: &mut Out<'_>) {
    chunk(style, to, done_flag(done), REPLY_TYPE_OFFSET_HOLE, 12, out);
    out.u64(offset);
    out.u32(len);
}

/// One extent of a BLOCK_STATUS reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Bytes, at least 1.
    pub len: u64,
    /// `STATE_HOLE` and `STATE_ZERO` of [`crate::proto`], or those of the context.
    pub flags: u32,
}

/// Room that [`status_chunk`] needs for `extents` of them.
#[must_use]
pub const fn block_status_bytes(extents: usize) -> usize {
    32 + 8 + 16 * extents
}

/// Longest extent that a 32-bit descriptor can tell, a whole number of blocks.
const MAX_COMPACT_EXTENT: u64 = 0xffff_f000;

/// The final and only chunk of a BLOCK_STATUS reply for `base:allocation`; see [`status_chunk`].
pub fn block_status(
    style: Style,
    to: ReplyTo,
    extents: &[StatusExtent],
    out: &mut Out<'_>,
) -> usize {
    status_chunk(style, to, BASE_ALLOCATION_ID, true, extents, out)
}

/// The chunk of a BLOCK_STATUS reply for the context `id`: consecutive extents from the request's
/// offset, as many as fit in `out`. At least one must be given and fit. Each context that was selected
/// has one; `done` marks the last.
///
/// Chunked styles only. Returns how many extents were told; fewer than given is a valid reply.
pub fn status_chunk(
    style: Style,
    to: ReplyTo,
    id: u32,
    done: bool,
    extents: &[StatusExtent],
    out: &mut Out<'_>,
) -> usize {
    let wide = style == Style::Extended;
    let (header, prefix, each) = if wide { (32, 8, 16) } else { (20, 4, 8) };
    let fitting = out.room().saturating_sub(header + prefix) / each;
    let mut count = extents.len().min(fitting);
    if !wide {
        // The extent after one that must be cut would not be consecutive any more.
        if let Some(long) = extents[..count].iter().position(|e| e.len > MAX_COMPACT_EXTENT) {
            count = long + 1;
        }
    }
    debug_assert!(count > 0, "a status reply has at least one extent");
    let len = (prefix + each * count) as u32;
    if wide {
        chunk(style, to, done_flag(done), REPLY_TYPE_BLOCK_STATUS_EXT, len, out);
        out.u32(id);
        out.u32(count as u32);
    } else {
        chunk(style, to, done_flag(done), REPLY_TYPE_BLOCK_STATUS, len, out);
        out.u32(id);
    }
    for extent in &extents[..count] {
        if wide {
            out.u64(extent.len);
            out.u64(u64::from(extent.flags));
        } else {
            out.u32(extent.len.min(MAX_COMPACT_EXTENT) as u32);
            out.u32(extent.flags);
        }
    }
    count
}
