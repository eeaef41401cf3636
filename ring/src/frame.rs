//! The message header of one send: what `sendmsg(2)` reads, at an address that does not move.
//!
//! Invariant: `header` points to `parts[first..count]` of the same box whenever a send of it is
//! under way; between sends it is only numbers. The box lives in its socket's slot.

use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use flagstone_block::Buffer;
use rustix::io::Errno;

use crate::uring::errno_of;

/// The most parts that one send can have.
pub const SEND_PARTS_MAX: usize = 64;

/// A run of bytes to send: `len` bytes of `buffer` from its byte `from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendPart {
    /// A buffer of the ring's arena, or a part of one.
    pub buffer: Buffer,
    /// First byte, from the start of `buffer`.
    pub from: usize,
    /// Bytes.
    pub len: usize,
}

pub(crate) struct SendFrame {
    header: libc::msghdr,
    parts: [libc::iovec; SEND_PARTS_MAX],
    /// Arena slots of each part, to be released when the send ends.
    slots: [(u32, u32); SEND_PARTS_MAX],
    /// First part not wholly sent.
    first: usize,
    count: usize,
}

impl SendFrame {
    pub(crate) fn new() -> Box<Self> {
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Box::new(Self {
            // SAFETY: every field of `msghdr` is a number or a pointer, for which zero is a value;
            // it means no address, no parts, no control data, no flags.
            header: unsafe { std::mem::zeroed() },
            parts: [nothing; SEND_PARTS_MAX],
            slots: [(0, 0); SEND_PARTS_MAX],
            first: 0,
            count: 0,
        })
    }

    pub(crate) fn clear(&mut self) {
        self.first = 0;
        self.count = 0;
    }

    /// Appends a part. The caller has checked that there is room.
    pub(crate) fn add(&mut self, address: *mut u8, len: usize, slots: Range<u32>) {
        self.parts[self.count] = libc::iovec { iov_base: address.cast(), iov_len: len };
        self.slots[self.count] = (slots.start, slots.end);
        self.count += 1;
    }

    /// Points the header at what is left to send.
    pub(crate) fn seal(&mut self) {
        self.header.msg_iov = self.parts[self.first..].as_mut_ptr();
        // `msg_iovlen` is `size_t` with glibc and `int` with musl.
        self.header.msg_iovlen = (self.count - self.first) as _;
    }

    /// Books `sent` bytes and points the header at the rest.
    pub(crate) fn advance(&mut self, mut sent: usize) {
        while sent > 0 && self.first < self.count {
            let part = &mut self.parts[self.first];
            let taken = sent.min(part.iov_len);
            part.iov_base = part.iov_base.wrapping_byte_add(taken);
            part.iov_len -= taken;
            sent -= taken;
            if part.iov_len == 0 {
                self.first += 1;
            }
        }
        self.seal();
    }

    /// Sends what the socket takes at once; returns the bytes taken.
    ///
    /// # Errors
    /// As `sendmsg(2)`; `EAGAIN` if the socket is full.
    pub(crate) fn send_without_waiting(&self, socket: BorrowedFd<'_>) -> Result<usize, Errno> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `seal` or `advance` pointed the header at `parts` of this box, which point into
        // the arena, whose slots the caller has marked as under way; the call only reads them and
        // keeps nothing.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const self.header, flags) };
        usize::try_from(sent).map_err(|_| errno_of(&std::io::Error::last_os_error()))
    }

    pub(crate) fn is_sent(&self) -> bool {
        self.first == self.count
    }

    /// Address and length of what is left, if that is one part.
    pub(crate) fn only_part(&self) -> Option<(*const u8, usize)> {
        if self.count - self.first != 1 {
            return None;
        }
        let part = self.parts[self.first];
        Some((part.iov_base.cast_const().cast(), part.iov_len))
    }

    pub(crate) fn header(&self) -> *const libc::msghdr {
        &raw const self.header
    }

    /// The arena slots of every part, sent or not.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        self.slots[..self.count].iter().map(|&(start, end)| start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_sends_go_on_at_the_next_byte() {
        let base = std::ptr::null_mut::<u8>().wrapping_add(0x1000);
        let mut frame = SendFrame::new();
        frame.clear();
        frame.add(base, 10, 1..2);
        frame.add(base.wrapping_add(100), 20, 2..3);
        frame.seal();
        assert_eq!(frame.only_part(), None);
        frame.advance(4);
        assert_eq!(frame.header.msg_iovlen, 2);
        assert_eq!(frame.parts[0].iov_len, 6);
        frame.advance(11);
        assert_eq!(frame.only_part().map(|(at, len)| (at as usize, len)), Some((0x1000 + 105, 15)));
        assert!(!frame.is_sent());
        frame.advance(15);
        assert!(frame.is_sent());
        assert_eq!(frame.slots().collect::<Vec<_>>(), [1..2, 2..3]);
    }
}
