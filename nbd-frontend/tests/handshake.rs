//! The handshake, option by option, down to the bytes.

use flagstone_nbd::limits::*;
use flagstone_nbd::proto::*;
use flagstone_nbd::testing::{ExportList, encode};
use flagstone_nbd::{
    CloseReason, Context, Contexts, Difference, Opened, Out, Session, Step, Style,
};

fn exports() -> ExportList {
    ExportList::one("vol", 1 << 30).with("frozen", 8192, true)
}

/// What came of some input: reply bytes, and the steps that are not just progress.
#[derive(Debug, PartialEq)]
struct Seen {
    sent: Vec<u8>,
    steps: Vec<Step>,
}

fn feed(session: &mut Session, exports: &ExportList, mut input: &[u8]) -> Seen {
    let mut seen = Seen { sent: Vec::new(), steps: Vec::new() };
    let mut buffer = vec![0; HANDSHAKE_REPLY_BYTES];
    loop {
        let mut out = Out::new(&mut buffer);
        let received = session.receive(input, exports, &mut out);
        let len = out.len();
        seen.sent.extend_from_slice(&buffer[..len]);
        input = &input[received.consumed..];
        match received.step {
            Step::NeedMore => {
                assert!(input.is_empty(), "{} bytes were not understood", input.len());
                return seen;
            }
            Step::Again | Step::NeedRoom => {}
            step => {
                seen.steps.push(step);
                if let Step::Close(_) = step {
                    return seen;
                }
            }
        }
    }
}

/// A session past the client's flags.
fn negotiating() -> Session {
    let mut session = Session::new();
    feed(&mut session, &exports(), &encode::client_flags());
    session
}

fn send(session: &mut Session, option: u32, data: &[u8]) -> Seen {
    let mut bytes = Vec::new();
    encode::option(&mut bytes, option, data);
    feed(session, &exports(), &bytes)
}

#[derive(Debug, PartialEq)]
struct Reply {
    option: u32,
    kind: u32,
    data: Vec<u8>,
}

fn replies(mut bytes: &[u8]) -> Vec<Reply> {
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        assert_eq!(bytes[..8], REPLY_MAGIC.to_be_bytes());
        let len = word(16) as usize;
        replies.push(Reply { option: word(8), kind: word(12), data: bytes[20..20 + len].to_vec() });
        bytes = &bytes[20 + len..];
    }
    replies
}

fn kinds(seen: &Seen) -> Vec<u32> {
    replies(&seen.sent).iter().map(|reply| reply.kind).collect()
}

#[test]
fn the_greeting_is_what_the_protocol_says() {
    assert_eq!(Session::greeting(), b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn a_whole_handshake_is_golden() {
    let mut session = Session::new();
    let mut input = b"\x00\x00\x00\x03".to_vec();
    input.extend_from_slice(b"IHAVEOPT\x00\x00\x00\x08\x00\x00\x00\x00");
    input.extend_from_slice(
        b"IHAVEOPT\x00\x00\x00\x0a\x00\x00\x00\x1d\
          \x00\x00\x00\x03vol\x00\x00\x00\x01\x00\x00\x00\x0fbase:allocation"
            .get(..16 + 29)
            .expect("the option is this long"),
    );
    // The query's length is 15 and the option's data 4 + 3 + 4 + 4 + 15 = 30 bytes.
    input[4 + 16 + 15] = 30;
    input.push(b'n');
    input.extend_from_slice(
        b"IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x0b\x00\x00\x00\x03vol\x00\x01\x00\x03",
    );
    let seen = feed(&mut session, &exports(), &input);
    let golden: &[&[u8]] = &[
        b"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x08\x00\x00\x00\x01\x00\x00\x00\x00",
        b"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x0a\x00\x00\x00\x04\x00\x00\x00\x13",
        b"\x00\x00\x00\x01base:allocation",
        b"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x0a\x00\x00\x00\x01\x00\x00\x00\x00",
        b"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x03\x00\x00\x00\x0c",
        b"\x00\x00\x00\x00\x00\x00\x40\x00\x00\x00\x0d\xed",
        b"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x03\x00\x00\x00\x0e",
        b"\x00\x03\x00\x00\x00\x01\x00\x00\x10\x00\x02\x00\x00\x00",
        b"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x01\x00\x00\x00\x00",
    ];
    assert_eq!(seen.sent, golden.concat());
    let opened = Opened {
        handle: 0,
        size: 1 << 30,
        read_only: false,
        style: Style::Structured,
        contexts: Contexts::ALLOCATION,
    };
    assert_eq!(seen.steps, [Step::Opened(opened)]);
}

#[test]
fn unknown_client_flags_close() {
    let mut session = Session::new();
    let seen = feed(&mut session, &exports(), &7_u32.to_be_bytes());
    assert_eq!(seen.steps, [Step::Close(CloseReason::UnknownClientFlags)]);
}

#[test]
fn a_wrong_option_magic_closes() {
    let mut session = negotiating();
    let seen = feed(&mut session, &exports(), b"IHAVEOPS\x00\x00\x00\x03\x00\x00\x00\x00");
    assert_eq!(seen.steps, [Step::Close(CloseReason::BadOptionMagic)]);
}

#[test]
fn a_client_without_fixed_newstyle_may_only_name_an_export() {
    let mut session = Session::new();
    feed(&mut session, &exports(), &0_u32.to_be_bytes());
    let seen = send(&mut session, OPT_LIST, &[]);
    assert_eq!(seen.steps, [Step::Close(CloseReason::OptionBeforeFixedNewstyle)]);

    let mut session = Session::new();
    feed(&mut session, &exports(), &0_u32.to_be_bytes());
    let seen = send(&mut session, OPT_EXPORT_NAME, b"vol");
    assert_eq!(seen.sent.len(), 8 + 2 + 124);
    assert!(seen.sent[10..].iter().all(|&byte| byte == 0));
}

#[test]
fn export_name_opens_or_closes() {
    let seen = send(&mut negotiating(), OPT_EXPORT_NAME, b"frozen");
    let flags = FLAG_HAS_FLAGS
        | FLAG_READ_ONLY
        | FLAG_SEND_FLUSH
        | FLAG_SEND_FUA
        | FLAG_SEND_TRIM
        | FLAG_SEND_WRITE_ZEROES
        | FLAG_CAN_MULTI_CONN
        | FLAG_SEND_CACHE
        | FLAG_SEND_FAST_ZERO;
    let mut expected = 8192_u64.to_be_bytes().to_vec();
    expected.extend_from_slice(&flags.to_be_bytes());
    assert_eq!(seen.sent, expected);
    assert!(matches!(seen.steps[..], [Step::Opened(Opened { handle: 1, read_only: true, .. })]));

    for name in [&b"nope"[..], b"", b"\xff", &[b'x'; MAX_OPTION_BYTES + 1]] {
        let seen = send(&mut negotiating(), OPT_EXPORT_NAME, name);
        assert_eq!(seen.steps, [Step::Close(CloseReason::NoSuchExport)]);
        assert_eq!(seen.sent, b"");
    }
}

#[test]
fn export_name_is_refused_with_extended_headers() {
    let mut session = negotiating();
    send(&mut session, OPT_EXTENDED_HEADERS, &[]);
    let seen = send(&mut session, OPT_EXPORT_NAME, b"vol");
    assert_eq!(seen.steps, [Step::Close(CloseReason::NoSuchExport)]);
}

#[test]
fn abort_is_acknowledged_whatever_it_carries() {
    for data in [&b""[..], b"some data"] {
        let seen = send(&mut negotiating(), OPT_ABORT, data);
        assert_eq!(kinds(&seen), [REP_ACK]);
        assert_eq!(seen.steps, [Step::Close(CloseReason::Aborted)]);
    }
}

#[test]
fn list_tells_names_and_descriptions() {
    let seen = send(&mut negotiating(), OPT_LIST, &[]);
    let replies = replies(&seen.sent);
    assert_eq!(replies.len(), 3);
    assert_eq!(replies[0].kind, REP_SERVER);
    assert_eq!(replies[0].data, b"\x00\x00\x00\x03volvolume vol");
    assert_eq!(replies[1].data, b"\x00\x00\x00\x06frozenvolume frozen");
    assert_eq!(replies[2], Reply { option: OPT_LIST, kind: REP_ACK, data: vec![] });
    assert_eq!(kinds(&send(&mut negotiating(), OPT_LIST, b"x")), [REP_ERR_INVALID]);
}

#[test]
fn a_long_list_takes_many_buffers() {
    let mut many = ExportList::default();
    for i in 0..1000 {
        many = many.with(&format!("{}{i}", "n".repeat(200)), 4096, false);
    }
    let mut session = negotiating();
    let mut bytes = Vec::new();
    encode::option(&mut bytes, OPT_LIST, &[]);
    let seen = feed(&mut session, &many, &bytes);
    let replies = replies(&seen.sent);
    assert_eq!(replies.len(), 1001);
    assert!(replies[..1000].iter().all(|reply| reply.kind == REP_SERVER));
    assert!(replies[999].data[4..].starts_with(many.0[999].name.as_bytes()));
}

#[test]
fn info_answers_what_was_asked_and_goes_on() {
    let mut session = negotiating();
    let wanted = [INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE, 77];
    let seen = send(&mut session, OPT_INFO, &encode::info_data("frozen", &wanted));
    assert_eq!(seen.steps, []);
    let replies = replies(&seen.sent);
    let data: Vec<&[u8]> = replies.iter().map(|reply| &reply.data[..]).collect();
    assert_eq!(data[0], b"\x00\x00\x00\x00\x00\x00\x00\x00\x20\x00\x0d\x6f");
    assert_eq!(data[1], b"\x00\x01frozen");
    assert_eq!(data[2], b"\x00\x02volume frozen");
    assert_eq!(data[3], b"\x00\x03\x00\x00\x00\x01\x00\x00\x10\x00\x02\x00\x00\x00");
    assert_eq!(data[4], b"");
    assert!(session.in_handshake());

    let seen = send(&mut session, OPT_INFO, &encode::info_data("frozen", &[]));
    assert_eq!(kinds(&seen), [REP_INFO, REP_ACK]);
}

#[test]
fn go_refuses_and_then_accepts() {
    let mut session = negotiating();
    let seen = send(&mut session, OPT_GO, &encode::info_data("nope", &[]));
    assert_eq!(kinds(&seen), [REP_ERR_UNKNOWN]);
    let seen = send(&mut session, OPT_GO, &encode::info_data("vol", &[]));
    assert_eq!(kinds(&seen), [REP_INFO, REP_ACK]);
    assert!(matches!(
        seen.steps[..],
        [Step::Opened(Opened { handle: 0, style: Style::Simple, contexts, .. })]
                if contexts.is_empty()
    ));
}

#[test]
fn the_empty_name_is_the_only_export() {
    let two = send(&mut negotiating(), OPT_GO, &encode::info_data("", &[]));
    assert_eq!(kinds(&two), [REP_ERR_UNKNOWN]);
    let one = ExportList::one("vol", 4096);
    let mut bytes = Vec::new();
    encode::option(&mut bytes, OPT_GO, &encode::info_data("", &[INFO_NAME]));
    let seen = feed(&mut negotiating(), &one, &bytes);
    assert_eq!(kinds(&seen), [REP_INFO, REP_INFO, REP_ACK]);
    assert_eq!(replies(&seen.sent)[1].data, b"\x00\x01vol");
}

#[test]
fn malformed_info_is_invalid() {
    let good = encode::info_data("vol", &[INFO_NAME]);
    let mut long_name = good.clone();
    long_name[..4].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut too_many = good.clone();
    too_many[8] = 2;
    let cases: [&[u8]; 6] = [
        b"",
        b"\x00\x00\x00",
        &good[..good.len() - 1],
        &long_name,
        &too_many,
        &encode::info_data("v\0l", &[]),
    ];
    for data in cases {
        assert_eq!(kinds(&send(&mut negotiating(), OPT_GO, data)), [REP_ERR_INVALID], "{data:?}");
    }
    let name = "n".repeat(MAX_STRING_BYTES + 1);
    let seen = send(&mut negotiating(), OPT_INFO, &encode::info_data(&name, &[]));
    assert_eq!(kinds(&seen), [REP_ERR_TOO_BIG]);
}

#[test]
fn tls_and_unknown_options_are_unsupported_and_skipped() {
    let mut session = negotiating();
    assert_eq!(kinds(&send(&mut session, OPT_STARTTLS, &[])), [REP_ERR_UNSUP]);
    assert_eq!(kinds(&send(&mut session, 4, &[1; 100])), [REP_ERR_UNSUP]);
    let long = vec![7; MAX_SKIPPED_OPTION_BYTES as usize];
    assert_eq!(kinds(&send(&mut session, 0xdead, &long)), [REP_ERR_UNSUP]);
    assert_eq!(kinds(&send(&mut session, OPT_GO, &long)), [REP_ERR_TOO_BIG]);
    let seen = send(&mut session, OPT_GO, &encode::info_data("vol", &[]));
    assert_eq!(kinds(&seen), [REP_INFO, REP_ACK]);
}

#[test]
fn endless_options_close() {
    let mut header = IHAVEOPT.to_be_bytes().to_vec();
    header.extend_from_slice(&99_u32.to_be_bytes());
    header.extend_from_slice(&(MAX_SKIPPED_OPTION_BYTES + 1).to_be_bytes());
    let seen = feed(&mut negotiating(), &exports(), &header);
    assert_eq!(seen.steps, [Step::Close(CloseReason::OptionTooLong)]);

    let mut session = negotiating();
    for _ in 0..MAX_OPTIONS {
        assert_eq!(kinds(&send(&mut session, 99, &[])), [REP_ERR_UNSUP]);
    }
    let seen = send(&mut session, 99, &[]);
    assert_eq!(seen.steps, [Step::Close(CloseReason::TooManyOptions)]);
}

#[test]
fn structured_and_extended_are_negotiated_in_order_of_strength() {
    let mut session = negotiating();
    assert_eq!(kinds(&send(&mut session, OPT_STRUCTURED_REPLY, b"x")), [REP_ERR_INVALID]);
    assert_eq!(kinds(&send(&mut session, OPT_STRUCTURED_REPLY, &[])), [REP_ACK]);
    assert_eq!(kinds(&send(&mut session, OPT_EXTENDED_HEADERS, b"x")), [REP_ERR_INVALID]);
    assert_eq!(kinds(&send(&mut session, OPT_EXTENDED_HEADERS, &[])), [REP_ACK]);
    assert_eq!(kinds(&send(&mut session, OPT_STRUCTURED_REPLY, &[])), [REP_ERR_EXT_HEADER_REQD]);
    let seen = send(&mut session, OPT_GO, &encode::info_data("vol", &[]));
    assert_eq!(replies(&seen.sent)[0].data[10..], 0x0ded_u16.to_be_bytes());
    assert!(matches!(seen.steps[..], [Step::Opened(Opened { style: Style::Extended, .. })]));
}

#[test]
fn meta_contexts_are_listed() {
    let mut session = negotiating();
    let all = encode::meta_data("vol", &[]);
    assert_eq!(kinds(&send(&mut session, OPT_LIST_META_CONTEXT, &all)), [REP_ERR_INVALID]);
    send(&mut session, OPT_STRUCTURED_REPLY, &[]);
    for (queries, found) in [
        (&[][..], true),
        (&["base:"][..], true),
        (&["base:allocation"], true),
        (&["x-other:", "base:allocation"], true),
        (&["base:alloc"], false),
        (&["qemu:dirty-bitmap:a"], false),
        (&["no colon"], false),
    ] {
        let data = encode::meta_data("vol", queries);
        let seen = send(&mut session, OPT_LIST_META_CONTEXT, &data);
        let replies = replies(&seen.sent);
        if found {
            assert_eq!(replies[0].data, b"\x00\x00\x00\x00base:allocation", "{queries:?}");
        }
        assert_eq!(replies.len(), 1 + usize::from(found), "{queries:?}");
        assert_eq!(replies.last().map(|reply| reply.kind), Some(REP_ACK));
    }
    let unknown = encode::meta_data("nope", &[]);
    assert_eq!(kinds(&send(&mut session, OPT_LIST_META_CONTEXT, &unknown)), [REP_ERR_UNKNOWN]);
}

/// Negotiates, sends `sets` as NBD_OPT_SET_META_CONTEXT, opens "vol".
fn selected(sets: &[(&str, &[&str])]) -> bool {
    let mut session = negotiating();
    send(&mut session, OPT_STRUCTURED_REPLY, &[]);
    for (name, queries) in sets {
        send(&mut session, OPT_SET_META_CONTEXT, &encode::meta_data(name, queries));
    }
    let seen = send(&mut session, OPT_GO, &encode::info_data("vol", &[]));
    match seen.steps[..] {
        [Step::Opened(opened)] => !opened.contexts.is_empty(),
        _ => panic!("{seen:?}"),
    }
}

#[test]
fn a_meta_context_holds_for_its_export_until_replaced() {
    assert!(selected(&[("vol", &["base:allocation"])]));
    assert!(!selected(&[("vol", &["base:"])]), "the wildcard selects nothing");
    assert!(!selected(&[("vol", &[])]));
    assert!(!selected(&[("frozen", &["base:allocation"])]), "another export");
    assert!(!selected(&[("vol", &["base:allocation"]), ("vol", &[])]));
    assert!(!selected(&[("vol", &["base:allocation"]), ("nope", &["base:allocation"])]));
    assert!(selected(&[("vol", &["base:allocation", "base:allocation"])]));
}

/// A volume with so many snapshots that their contexts take several buffers.
fn with_snapshots(count: usize) -> ExportList {
    let list = ExportList::one("vol", 1 << 20).with("other", 4096, false);
    (0..count).fold(list.with("other@x", 4096, true), |list, i| {
        list.with(&format!("vol@s{i:03}"), 1 << 20, true)
    })
}

fn contexts_of(list: &ExportList, option: u32, name: &str, queries: &[&str]) -> Vec<String> {
    let mut session = Session::new();
    feed(&mut session, list, &encode::client_flags());
    let mut bytes = Vec::new();
    encode::option(&mut bytes, OPT_STRUCTURED_REPLY, &[]);
    feed(&mut session, list, &bytes);
    bytes.clear();
    encode::option(&mut bytes, option, &encode::meta_data(name, queries));
    let seen = feed(&mut session, list, &bytes);
    let mut replies = replies(&seen.sent);
    assert_eq!(replies.pop().map(|reply| reply.kind), Some(REP_ACK));
    let text = |reply: &Reply| {
        let id = u32::from_be_bytes(reply.data[..4].try_into().unwrap());
        format!("{id} {}", String::from_utf8(reply.data[4..].to_vec()).unwrap())
    };
    replies.iter().map(text).collect()
}

#[test]
fn differences_from_snapshots_are_listed_and_selected() {
    let few = with_snapshots(2);
    let list = |name, queries: &[&str]| contexts_of(&few, OPT_LIST_META_CONTEXT, name, queries);
    let all = [
        "0 base:allocation",
        "0 x-flagstone:diff:s000",
        "0 qemu:dirty-bitmap:s000",
        "0 x-flagstone:diff:s001",
        "0 qemu:dirty-bitmap:s001",
    ];
    assert_eq!(list("vol", &[]), all);
    assert_eq!(list("vol@s001", &[]), all);
    assert_eq!(list("vol", &["base:", "qemu:", "x-flagstone:diff:"]), all);
    assert_eq!(list("vol", &["qemu:dirty-bitmap:"]), [all[2], all[4]]);
    assert_eq!(list("vol", &["x-flagstone:", "x-flagstone:diff:s001"]), [all[1], all[3]]);
    assert_eq!(list("vol", &["x-flagstone:diff:s001", "qemu:dirty-bitmap:no"]), [all[3]]);
    assert_eq!(list("other", &[]), [all[0], "0 x-flagstone:diff:x", "0 qemu:dirty-bitmap:x"]);
    assert_eq!(contexts_of(&with_snapshots(0), OPT_LIST_META_CONTEXT, "vol", &[]), [all[0]]);
    let many = contexts_of(&with_snapshots(700), OPT_LIST_META_CONTEXT, "vol", &[]);
    assert_eq!(many.len(), 1 + 2 * 700);
    assert!(many.contains(&"0 qemu:dirty-bitmap:s699".to_owned()));

    let set = |name, queries: &[&str]| contexts_of(&few, OPT_SET_META_CONTEXT, name, queries);
    let queries = ["qemu:dirty-bitmap:s001", "base:allocation", "x-flagstone:diff:vol@s000"];
    let due = ["1 base:allocation", "2 qemu:dirty-bitmap:s001", "3 x-flagstone:diff:vol@s000"];
    assert_eq!(set("vol", &queries), due);
    assert_eq!(set("vol@s000", &["qemu:dirty-bitmap:s000"]), ["2 qemu:dirty-bitmap:s000"]);
    assert!(set("vol", &["qemu:dirty-bitmap:", "x-flagstone:", "qemu:dirty-bitmap:x"]).is_empty());
    let names: Vec<_> = (0..20).map(|i| format!("qemu:dirty-bitmap:s{i:03}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let list = with_snapshots(20);
    for option in [OPT_SET_META_CONTEXT, OPT_LIST_META_CONTEXT] {
        let most = contexts_of(&list, option, "vol", &names[..MAX_DIFFERENCES]);
        assert_eq!(most.len(), MAX_DIFFERENCES);
        let mut session = negotiating();
        send(&mut session, OPT_STRUCTURED_REPLY, &[]);
        let mut bytes = Vec::new();
        encode::option(&mut bytes, option, &encode::meta_data("vol", &names));
        assert_eq!(kinds(&feed(&mut session, &list, &bytes)), [REP_ERR_TOO_BIG]);
    }
}

#[test]
fn what_was_selected_is_told_when_the_export_is_opened() {
    let list = with_snapshots(2);
    let mut session = Session::new();
    feed(&mut session, &list, &encode::client_flags());
    let mut bytes = Vec::new();
    encode::option(&mut bytes, OPT_STRUCTURED_REPLY, &[]);
    let queries = ["x-flagstone:diff:s000", "qemu:dirty-bitmap:s001"];
    encode::option(&mut bytes, OPT_SET_META_CONTEXT, &encode::meta_data("vol", &queries));
    encode::option(&mut bytes, OPT_GO, &encode::info_data("vol", &[]));
    let seen = feed(&mut session, &list, &bytes);
    let [Step::Opened(Opened { contexts, .. })] = seen.steps[..] else { panic!("{seen:?}") };
    let difference = |origin, zeroes| Context::Difference(Difference { origin, zeroes });
    assert_eq!(contexts.nth(0), Some((difference(3, true), 2)));
    assert_eq!(contexts.nth(1), Some((difference(4, false), 3)));
    assert_eq!(contexts.nth(2), None);
}

#[test]
fn malformed_meta_queries_are_invalid() {
    let mut session = negotiating();
    send(&mut session, OPT_STRUCTURED_REPLY, &[]);
    let good = encode::meta_data("vol", &["base:allocation"]);
    let mut trailing = good.clone();
    trailing.push(0);
    let mut more = good.clone();
    more[10] = 2;
    for data in [&good[..good.len() - 1], &trailing, &more, b""] {
        assert_eq!(kinds(&send(&mut session, OPT_SET_META_CONTEXT, data)), [REP_ERR_INVALID]);
    }
    let many = encode::meta_data("vol", &["a:b"; MAX_META_QUERIES as usize + 1]);
    assert_eq!(kinds(&send(&mut session, OPT_SET_META_CONTEXT, &many)), [REP_ERR_TOO_BIG]);
}

#[test]
fn a_server_that_shuts_down_says_so_until_the_client_aborts() {
    let mut session = negotiating();
    session.shut_down();
    assert_eq!(kinds(&send(&mut session, OPT_LIST, &[])), [REP_ERR_SHUTDOWN]);
    let go = encode::info_data("vol", &[]);
    assert_eq!(kinds(&send(&mut session, OPT_GO, &go)), [REP_ERR_SHUTDOWN]);
    assert_eq!(kinds(&send(&mut session, OPT_ABORT, &[])), [REP_ACK]);
}

#[test]
fn a_closed_handshake_stays_closed() {
    let mut session = negotiating();
    send(&mut session, OPT_ABORT, &[]);
    let seen = send(&mut session, OPT_GO, &encode::info_data("vol", &[]));
    assert_eq!(seen.steps, [Step::Close(CloseReason::Aborted)]);
    assert_eq!(seen.sent, b"");
}
