//! Requests: what is performed, what is answered at once, what closes.

use flagstone_block::{Durability, ZeroMode};
use flagstone_nbd::limits::*;
use flagstone_nbd::proto::*;
use flagstone_nbd::testing::{ExportList, encode};
use flagstone_nbd::{CloseReason, Command, Errno, Out, ReplyTo, Request, Session, Step, Style};

const SIZE: u64 = 100 << 20;
const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

fn open(style: Style, read_only: bool) -> Session {
    let exports = ExportList::default().with("vol", SIZE, read_only);
    let mut session = Session::new();
    let mut input = encode::client_flags().to_vec();
    match style {
        Style::Simple => {}
        Style::Structured => encode::option(&mut input, OPT_STRUCTURED_REPLY, &[]),
        Style::Extended => encode::option(&mut input, OPT_EXTENDED_HEADERS, &[]),
    }
    if style.has_chunks() {
        let data = encode::meta_data("vol", &[BASE_ALLOCATION]);
        encode::option(&mut input, OPT_SET_META_CONTEXT, &data);
    }
    encode::option(&mut input, OPT_GO, &encode::info_data("vol", &[]));
    let mut input = &input[..];
    let mut buffer = vec![0; HANDSHAKE_REPLY_BYTES];
    loop {
        let received = session.receive(input, &exports, &mut Out::new(&mut buffer));
        input = &input[received.consumed..];
        if let Step::Opened(_) = received.step {
            return session;
        }
    }
}

/// The steps that come of `input`, with whole payloads skipped over as used.
fn steps(session: &mut Session, mut input: &[u8]) -> Vec<Step> {
    let mut steps = Vec::new();
    loop {
        let received = session.transmission(input);
        input = &input[received.consumed..];
        match received.step {
            Step::NeedMore => {
                assert!(input.is_empty());
                return steps;
            }
            Step::Again => {}
            Step::Payload(payload) => {
                steps.push(received.step);
                session.payload_used(payload.here);
                input = &input[payload.here..];
            }
            Step::Close(_) => {
                steps.push(received.step);
                return steps;
            }
            step => steps.push(step),
        }
    }
}

/// The one step that a request without payload comes to.
fn one(style: Style, flags: u16, kind: u16, offset: u64, len: u64) -> Step {
    let mut session = open(style, false);
    let mut input = Vec::new();
    encode::request(&mut input, style, flags, kind, 42, offset, len);
    match steps(&mut session, &input)[..] {
        [step] => step,
        ref other => panic!("{other:?}"),
    }
}

fn refused(offset: u64, errno: Errno) -> Step {
    Step::Answer(ReplyTo { cookie: 42, offset }, Err(errno))
}

fn request(command: Command, offset: u64, len: u64) -> Step {
    Step::Request(Request { to: ReplyTo { cookie: 42, offset }, command, offset, len })
}

#[test]
fn every_command_is_performed_in_every_style() {
    for style in STYLES {
        let read = Command::Read { whole: false };
        assert_eq!(one(style, 0, CMD_READ, 5, 7), request(read, 5, 7));
        assert_eq!(one(style, 0, CMD_FLUSH, 0, 0), request(Command::Flush, 0, 0));
        for (flags, durability) in [(0, Durability::Completed), (CMD_FLAG_FUA, Durability::Fua)] {
            let zero = |mode| request(Command::Zero { mode, durability }, 4096, 8192);
            assert_eq!(one(style, flags, CMD_TRIM, 4096, 8192), zero(ZeroMode::Discard));
            let kind = CMD_WRITE_ZEROES;
            assert_eq!(one(style, flags, kind, 4096, 8192), zero(ZeroMode::MayUnmap));
            assert_eq!(
                one(style, flags | CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO, kind, 4096, 8192),
                zero(ZeroMode::KeepAllocated)
            );
        }
        let to = ReplyTo { cookie: 42, offset: 1 };
        assert_eq!(one(style, 0, CMD_CACHE, 1, 2), Step::Answer(to, Ok(())));
    }
    for style in [Style::Structured, Style::Extended] {
        for (flags, one_extent) in [(0, false), (CMD_FLAG_REQ_ONE, true)] {
            let status = Command::BlockStatus { one: one_extent };
            assert_eq!(one(style, flags, CMD_BLOCK_STATUS, 0, SIZE), request(status, 0, SIZE));
        }
        let read = Command::Read { whole: true };
        assert_eq!(one(style, CMD_FLAG_DF, CMD_READ, 0, 65536), request(read, 0, 65536));
    }
}

#[test]
fn fua_is_accepted_on_every_command() {
    for (kind, len) in [(CMD_READ, 1), (CMD_FLUSH, 0), (CMD_BLOCK_STATUS, 1)] {
        let step = one(Style::Structured, CMD_FLAG_FUA, kind, 0, len);
        assert!(matches!(step, Step::Request(_)), "{step:?}");
    }
}

#[test]
fn unknown_commands_and_flags_are_invalid() {
    for style in STYLES {
        for kind in [8, 9, 0x7fff, 0xffff] {
            assert_eq!(one(style, 0, kind, 0, 4096), refused(0, Errno::Inval));
        }
        for (flags, kind) in [
            (1 << 6, CMD_READ),
            (1 << 15, CMD_FLUSH),
            (CMD_FLAG_NO_HOLE, CMD_READ),
            (CMD_FLAG_NO_HOLE, CMD_TRIM),
            (CMD_FLAG_DF, CMD_TRIM),
            (CMD_FLAG_REQ_ONE, CMD_READ),
            (CMD_FLAG_FAST_ZERO, CMD_TRIM),
        ] {
            assert_eq!(one(style, flags, kind, 0, 0), refused(0, Errno::Inval), "{flags} {kind}");
        }
    }
    assert_eq!(one(Style::Simple, CMD_FLAG_DF, CMD_READ, 0, 4096), refused(0, Errno::Inval));
    assert_eq!(one(Style::Simple, 0, CMD_BLOCK_STATUS, 0, 4096), refused(0, Errno::Inval));
}

#[test]
fn flush_must_have_no_range() {
    assert_eq!(one(Style::Simple, 0, CMD_FLUSH, 0, 1), refused(0, Errno::Inval));
    assert_eq!(one(Style::Simple, 0, CMD_FLUSH, 512, 0), refused(512, Errno::Inval));
}

#[test]
fn past_the_end_has_the_error_that_the_command_wants() {
    for style in STYLES {
        for (offset, len) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 4096)] {
            for (kind, errno) in [
                (CMD_READ, Errno::Inval),
                (CMD_TRIM, Errno::Inval),
                (CMD_CACHE, Errno::Inval),
                (CMD_WRITE_ZEROES, Errno::NoSpace),
            ] {
                assert_eq!(one(style, 0, kind, offset, len), refused(offset, errno));
            }
            if style.has_chunks() {
                let step = one(style, 0, CMD_BLOCK_STATUS, offset, len);
                assert_eq!(step, refused(offset, Errno::Inval));
            }
            let mut input = Vec::new();
            encode::write(&mut input, style, 0, 42, offset, &vec![1; len as usize]);
            let seen = steps(&mut open(style, false), &input);
            assert_eq!(seen, [refused(offset, Errno::NoSpace)]);
        }
        assert!(matches!(one(style, 0, CMD_READ, SIZE - 1, 1), Step::Request(_)));
    }
}

#[test]
fn lengths_are_bounded() {
    let max = u64::from(MAX_PAYLOAD_BYTES);
    for style in STYLES {
        assert!(matches!(one(style, 0, CMD_READ, 0, max), Step::Request(_)));
        assert_eq!(one(style, 0, CMD_READ, 0, max + 1), refused(0, Errno::Inval));
        // Commands without data may span everything.
        assert!(matches!(one(style, 0, CMD_WRITE_ZEROES, 0, SIZE), Step::Request(_)));
        assert!(matches!(one(style, 0, CMD_TRIM, 0, SIZE), Step::Request(_)));
    }
    let whole = u64::from(MAX_UNFRAGMENTED_BYTES);
    let df = |len| one(Style::Structured, CMD_FLAG_DF, CMD_READ, 0, len);
    assert!(matches!(df(whole), Step::Request(_)));
    assert_eq!(df(whole + 1), refused(0, Errno::Overflow));
}

#[test]
fn nothing_to_do_succeeds_at_once() {
    let to = ReplyTo { cookie: 42, offset: 512 };
    for style in STYLES {
        for kind in [CMD_READ, CMD_TRIM, CMD_WRITE_ZEROES, CMD_CACHE] {
            assert_eq!(one(style, 0, kind, 512, 0), Step::Answer(to, Ok(())));
        }
        let mut input = Vec::new();
        encode::write(&mut input, style, 0, 42, 512, &[]);
        assert_eq!(steps(&mut open(style, false), &input), [Step::Answer(to, Ok(()))]);
    }
    // A status reply has at least one extent, and an extent at least one byte.
    let step = one(Style::Structured, 0, CMD_BLOCK_STATUS, 512, 0);
    assert_eq!(step, refused(512, Errno::Inval));
}

#[test]
fn fast_zero_needs_a_whole_block() {
    let zero = |offset, len| one(Style::Simple, CMD_FLAG_FAST_ZERO, CMD_WRITE_ZEROES, offset, len);
    assert_eq!(zero(0, 4095), refused(0, Errno::NotSup));
    assert_eq!(zero(1, 8190), refused(1, Errno::NotSup));
    assert!(matches!(zero(1, 8191), Step::Request(_)));
    assert!(matches!(zero(4096, 4096), Step::Request(_)));
}

#[test]
fn a_read_only_export_is_not_written() {
    for style in STYLES {
        let mut input = Vec::new();
        encode::write(&mut input, style, 0, 42, 0, &[1; 5000]);
        encode::request(&mut input, style, 0, CMD_TRIM, 42, 0, 4096);
        encode::request(&mut input, style, 0, CMD_WRITE_ZEROES, 42, 0, 4096);
        encode::request(&mut input, style, 0, CMD_READ, 42, 0, 4096);
        encode::request(&mut input, style, 0, CMD_FLUSH, 42, 0, 0);
        let seen = steps(&mut open(style, true), &input);
        assert_eq!(seen[..3], [refused(0, Errno::Perm); 3]);
        assert!(matches!(seen[3..], [Step::Request(_), Step::Request(_)]));
    }
}

#[test]
fn a_write_announces_itself_and_then_its_payload() {
    for style in STYLES {
        let mut session = open(style, false);
        let mut input = Vec::new();
        encode::write(&mut input, style, CMD_FLAG_FUA, 42, 100, &[9; 300]);
        let header = style.request_bytes();
        let received = session.transmission(&input);
        assert_eq!(received.consumed, header);
        let command = Command::Write { durability: Durability::Fua };
        assert_eq!(received.step, request(command, 100, 300));
        assert_eq!(session.transmission(&[]).step, Step::NeedMore);
        let Step::Payload(payload) = session.transmission(&input[header..header + 10]).step else {
            panic!("payload was offered");
        };
        assert_eq!((payload.offset, payload.left, payload.here), (100, 300, 10));
        assert_eq!(session.payload_used(4), 296);
        let Step::Payload(payload) = session.transmission(&input[header + 4..]).step else {
            panic!("payload was offered");
        };
        assert_eq!((payload.offset, payload.left, payload.here), (104, 296, 296));
        assert_eq!(session.payload_used(296), 0);
        assert_eq!(session.transmission(&[]).step, Step::NeedMore);
    }
}

#[test]
fn a_payload_that_is_skipped_says_when_it_is_over() {
    let mut session = open(Style::Simple, false);
    let mut input = Vec::new();
    encode::write(&mut input, Style::Simple, 0, 1, 0, &[9; 300]);
    encode::request(&mut input, Style::Simple, 0, CMD_FLUSH, 42, 0, 0);
    session.transmission(&input);
    session.transmission(&input[28..]);
    session.payload_used(100);
    session.skip_payload();
    let seen = steps(&mut session, &input[128..]);
    assert_eq!(seen, [Step::PayloadOver, request(Command::Flush, 0, 0)]);
}

#[test]
fn a_refused_write_is_answered_when_its_payload_has_passed() {
    let style = Style::Simple;
    let mut session = open(style, false);
    let mut input = Vec::new();
    encode::write(&mut input, style, CMD_FLAG_NO_HOLE, 42, 0, &[9; 300]);
    assert_eq!(steps(&mut session, &input[..327]), []);
    assert_eq!(steps(&mut session, &input[327..]), [refused(0, Errno::Inval)]);
}

#[test]
fn oversize_writes_are_skipped_or_close() {
    let mut session = open(Style::Simple, false);
    let mut input = Vec::new();
    encode::request(&mut input, Style::Simple, 0, CMD_WRITE, 42, 0, 33 << 20);
    assert_eq!(steps(&mut session, &input), []);
    let mebibyte = vec![0; 1 << 20];
    for _ in 0..32 {
        assert_eq!(steps(&mut session, &mebibyte), []);
    }
    assert_eq!(steps(&mut session, &mebibyte), [refused(0, Errno::Inval)]);

    for (style, len) in [
        (Style::Simple, u64::from(MAX_SKIPPED_PAYLOAD_BYTES) + 1),
        (Style::Structured, u64::from(u32::MAX)),
        (Style::Extended, u64::from(MAX_PAYLOAD_BYTES) + 1),
        (Style::Extended, u64::MAX),
    ] {
        let flags = if len % 2 == 0 { CMD_FLAG_FUA } else { 0 };
        assert_eq!(one(style, flags, CMD_WRITE, 0, len), Step::Close(CloseReason::PayloadTooLong));
    }
}

#[test]
fn payload_flags_rule_extended_payloads() {
    // A WRITE has a payload even without the flag, for the sake of clients that forget it.
    let mut input = Vec::new();
    encode::request(&mut input, Style::Extended, CMD_FLAG_FUA, CMD_WRITE, 42, 0, 10);
    input.extend_from_slice(&[1; 10]);
    encode::request(&mut input, Style::Extended, 0, CMD_FLUSH, 42, 0, 0);
    let seen = steps(&mut open(Style::Extended, false), &input);
    assert_eq!(seen[0], request(Command::Write { durability: Durability::Fua }, 0, 10));
    assert_eq!(seen[2..], [request(Command::Flush, 0, 0)]);
    // With the flag, other commands have one, which is dropped.
    let mut session = open(Style::Extended, false);
    let mut input = Vec::new();
    let flags = CMD_FLAG_PAYLOAD_LEN;
    encode::request(&mut input, Style::Extended, flags, CMD_BLOCK_STATUS, 42, 0, 12);
    input.extend_from_slice(&[0; 12]);
    encode::request(&mut input, Style::Extended, 0, CMD_FLUSH, 42, 0, 0);
    let seen = steps(&mut session, &input);
    assert_eq!(seen, [refused(0, Errno::Inval), request(Command::Flush, 0, 0)]);
    // In compact headers the flag means nothing.
    let mut input = Vec::new();
    encode::request(&mut input, Style::Structured, flags, CMD_WRITE, 42, 0, 4);
    input.extend_from_slice(&[0; 4]);
    assert_eq!(steps(&mut open(Style::Structured, false), &input), [refused(0, Errno::Inval)]);
}

#[test]
fn extended_lengths_are_64_bits_wide() {
    let exports = ExportList::one("big", 1 << 50);
    let mut session = Session::new();
    let mut input = encode::client_flags().to_vec();
    encode::option(&mut input, OPT_EXTENDED_HEADERS, &[]);
    encode::option(&mut input, OPT_GO, &encode::info_data("big", &[]));
    let mut rest = &input[..];
    let mut buffer = vec![0; HANDSHAKE_REPLY_BYTES];
    while session.in_handshake() {
        rest = &rest[session.receive(rest, &exports, &mut Out::new(&mut buffer)).consumed..];
    }
    let mut input = Vec::new();
    encode::request(&mut input, Style::Extended, 0, CMD_TRIM, 42, 0, 1 << 50);
    let command = Command::Zero { mode: ZeroMode::Discard, durability: Durability::Completed };
    assert_eq!(steps(&mut session, &input), [request(command, 0, 1 << 50)]);
}

#[test]
fn a_wrong_request_magic_closes() {
    for style in STYLES {
        let mut input = Vec::new();
        encode::request(&mut input, style, 0, CMD_READ, 42, 0, 4096);
        input[3] ^= 1;
        let seen = steps(&mut open(style, false), &input);
        assert_eq!(seen, [Step::Close(CloseReason::BadRequestMagic)]);
    }
    let mut input = Vec::new();
    encode::request(&mut input, Style::Extended, 0, CMD_READ, 42, 0, 4096);
    let seen = steps(&mut open(Style::Structured, false), &input);
    assert_eq!(seen, [Step::Close(CloseReason::BadRequestMagic)]);
}

#[test]
fn disc_ends_it_and_nothing_after_it_counts() {
    for style in STYLES {
        let mut session = open(style, false);
        let mut input = Vec::new();
        encode::request(&mut input, style, 0, CMD_DISC, 0, 0, 0);
        encode::request(&mut input, style, 0, CMD_READ, 42, 0, 4096);
        let seen = steps(&mut session, &input);
        assert_eq!(seen, [Step::Close(CloseReason::Disconnected)]);
        assert_eq!(session.transmission(&input).step, Step::Close(CloseReason::Disconnected));
    }
}

#[test]
fn a_server_that_shuts_down_refuses_requests_and_skips_payloads() {
    let mut session = open(Style::Simple, false);
    session.shut_down();
    let mut input = Vec::new();
    encode::write(&mut input, Style::Simple, 0, 42, 0, &[1; 100]);
    encode::request(&mut input, Style::Simple, 0, CMD_READ, 42, 0, 4096);
    assert_eq!(steps(&mut session, &input), [refused(0, Errno::Shutdown); 2]);
}

#[test]
fn a_grown_export_is_judged_by_its_new_size() {
    let mut session = open(Style::Simple, false);
    let mut input = Vec::new();
    encode::request(&mut input, Style::Simple, 0, CMD_READ, 42, SIZE, 4096);
    assert_eq!(steps(&mut session, &input), [refused(SIZE, Errno::Inval)]);
    session.resized(SIZE + 4096);
    assert!(matches!(steps(&mut session, &input)[..], [Step::Request(_)]));
}
