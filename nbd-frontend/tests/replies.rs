//! Reply encoders, down to the bytes.

use flagstone_nbd::proto::{STATE_HOLE, STATE_ZERO};
use flagstone_nbd::reply::{self, MAX_HEADER_BYTES, StatusExtent};
use flagstone_nbd::{Errno, Out, ReplyTo, Style};

const TO: ReplyTo = ReplyTo { cookie: 0x0102_0304_0506_0708, offset: 0x1000 };
const COOKIE: &[u8] = b"\x01\x02\x03\x04\x05\x06\x07\x08";
const OFFSET: &[u8] = b"\x00\x00\x00\x00\x00\x00\x10\x00";

fn bytes(encode: impl FnOnce(&mut Out<'_>)) -> Vec<u8> {
    let mut buffer = [0; MAX_HEADER_BYTES];
    let mut out = Out::new(&mut buffer);
    encode(&mut out);
    let len = out.len();
    buffer[..len].to_vec()
}

#[test]
fn simple_replies() {
    let ok = bytes(|out| reply::success(Style::Simple, TO, out));
    assert_eq!(ok, [b"\x67\x44\x66\x98\x00\x00\x00\x00", COOKIE].concat());
    let failed = bytes(|out| reply::error(Style::Simple, TO, Errno::NoSpace, out));
    assert_eq!(failed, [b"\x67\x44\x66\x98\x00\x00\x00\x1c", COOKIE].concat());
    assert_eq!(bytes(|out| reply::success(Style::Structured, TO, out)), ok);
}

#[test]
fn structured_chunks() {
    let magic: &[u8] = b"\x66\x8e\x33\xef";
    let data = bytes(|out| reply::data(Style::Structured, TO, 0x1200, 512, false, out));
    let expected: &[&[u8]] = &[magic, b"\0\0\0\x01", COOKIE, b"\0\0\x02\x08\0\0\0\0\0\0\x12\x00"];
    assert_eq!(data, expected.concat());
    let hole = bytes(|out| reply::hole(Style::Structured, TO, 0x1200, 512, true, out));
    let expected: &[&[u8]] =
        &[magic, b"\0\x01\0\x02", COOKIE, b"\0\0\0\x0c\0\0\0\0\0\0\x12\x00\0\0\x02\x00"];
    assert_eq!(hole, expected.concat());
    let done = bytes(|out| reply::read_done(Style::Structured, TO, out));
    assert_eq!(done, [magic, b"\0\x01\0\0", COOKIE, b"\0\0\0\0"].concat());
}

#[test]
fn errors_carry_a_sentence_and_fit_the_header_room() {
    let all = [
        Errno::Perm,
        Errno::Io,
        Errno::NoMem,
        Errno::Inval,
        Errno::NoSpace,
        Errno::Overflow,
        Errno::NotSup,
        Errno::Shutdown,
    ];
    for style in [Style::Structured, Style::Extended] {
        let header = if style == Style::Extended { 32 } else { 20 };
        for errno in all {
            let text = errno.message();
            assert!(text.len() <= 64);
            let whole = bytes(|out| reply::error(style, TO, errno, out));
            assert_eq!(whole.len(), header + 6 + text.len());
            assert_eq!(whole[4..8], [0, 1, 0x80, 1]);
            assert_eq!(whole[header..header + 4], errno.code().to_be_bytes());
            assert_eq!(&whole[header + 6..], text.as_bytes());
            let part = bytes(|out| reply::error_at(style, TO, errno, 0x1200, false, out));
            assert_eq!(part[4..8], [0, 0, 0x80, 2]);
            assert_eq!(part[part.len() - 8..], 0x1200_u64.to_be_bytes());
            assert_eq!(part.len(), header + 14 + text.len());
        }
    }
}

#[test]
fn extended_replies_repeat_the_request_offset() {
    let magic: &[u8] = b"\x6e\x8a\x27\x8c";
    let ok = bytes(|out| reply::success(Style::Extended, TO, out));
    assert_eq!(ok, [magic, b"\0\x01\0\0", COOKIE, OFFSET, &[0; 8]].concat());
    let data = bytes(|out| reply::data(Style::Extended, TO, 0x1200, 512, true, out));
    let len_and_offset = b"\0\0\0\0\0\0\x02\x08\0\0\0\0\0\0\x12\x00";
    assert_eq!(data, [magic, b"\0\x01\0\x01", COOKIE, OFFSET, len_and_offset].concat());
}

#[test]
fn block_status_in_both_widths() {
    let extents = [
        StatusExtent { len: 4096, flags: 0 },
        StatusExtent { len: 8192, flags: STATE_HOLE | STATE_ZERO },
    ];
    let mut buffer = [0; 128];
    let mut out = Out::new(&mut buffer);
    assert_eq!(reply::block_status(Style::Structured, TO, &extents, &mut out), 2);
    let len = out.len();
    let expected: &[&[u8]] = &[
        b"\x66\x8e\x33\xef\0\x01\0\x05",
        COOKIE,
        b"\0\0\0\x14\0\0\0\x01\0\0\x10\0\0\0\0\0\0\0\x20\0\0\0\0\x03",
    ];
    assert_eq!(buffer[..len], expected.concat());

    let mut out = Out::new(&mut buffer);
    assert_eq!(reply::block_status(Style::Extended, TO, &extents, &mut out), 2);
    let len = out.len();
    assert_eq!(len, reply::block_status_bytes(2));
    let expected: &[&[u8]] = &[
        b"\x6e\x8a\x27\x8c\0\x01\0\x06",
        COOKIE,
        OFFSET,
        b"\0\0\0\0\0\0\0\x28\0\0\0\x01\0\0\0\x02",
        b"\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\0\0",
        b"\0\0\0\0\0\0\x20\0\0\0\0\0\0\0\0\x03",
    ];
    assert_eq!(buffer[..len], expected.concat());
}

#[test]
fn block_status_tells_what_fits() {
    let extents = [StatusExtent { len: 4096, flags: 0 }; 10];
    let mut buffer = [0; 20 + 4 + 3 * 8 + 7];
    let mut out = Out::new(&mut buffer);
    assert_eq!(reply::block_status(Style::Structured, TO, &extents, &mut out), 3);
    assert_eq!(out.len(), 20 + 4 + 3 * 8);
}

#[test]
fn a_long_extent_is_cut_and_ends_a_compact_reply() {
    let extents = [StatusExtent { len: 1 << 33, flags: 0 }, StatusExtent { len: 4096, flags: 3 }];
    let mut buffer = [0; 128];
    let mut out = Out::new(&mut buffer);
    assert_eq!(reply::block_status(Style::Structured, TO, &extents, &mut out), 1);
    assert_eq!(buffer[24..28], 0xffff_f000_u32.to_be_bytes());
}
