//! Entry points for fuzzers: any bytes, in any cut, must leave the session in order.

use super::{ExportList, encode};
use crate::limits::{HANDSHAKE_REPLY_BYTES, MAX_INPUT_BYTES, MAX_PAYLOAD_BYTES};
use crate::proto::*;
use crate::request::{Command, Request};
use crate::session::{Session, Step};
use crate::wire::Out;

fn exports() -> ExportList {
    ExportList::one("vol", 1 << 30).with("read-only", 1 << 40, true)
}

/// What a session did, in a form that doesn't depend on how its input was cut.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Trace {
    /// Handshake replies.
    pub(crate) sent: Vec<u8>,
    /// Everything but payload.
    pub(crate) steps: Vec<Step>,
    /// Payload bytes: where in the export, and their sum.
    pub(crate) payload: Vec<(u64, u64)>,
    /// Bytes not consumed at the end.
    pub(crate) left: usize,
}

/// Feeds `input` to `session`, cut where `cut` says: it gets the number of bytes left and
/// returns how many to add, at least 1.
///
/// # Panics
/// If the session breaks one of its promises.
pub(crate) fn drive(
    session: &mut Session,
    exports: &ExportList,
    input: &[u8],
    mut cut: impl FnMut(usize) -> usize,
) -> Trace {
    let mut trace = Trace::default();
    let mut buffer = vec![0; HANDSHAKE_REPLY_BYTES + 64];
    let (mut start, mut end) = (0, 0);
    let mut idle = 0;
    loop {
        let mut out = Out::new(&mut buffer);
        let offered = &input[start..end];
        let received = session.receive(offered, exports, &mut out);
        let sent = out.len();
        trace.sent.extend_from_slice(&buffer[..sent]);
        assert!(received.consumed <= offered.len(), "consumed more than was offered");
        let rest = &offered[received.consumed..];
        start += received.consumed;
        idle = if received.consumed > 0 || sent > 0 { 0 } else { idle + 1 };
        assert!(idle < 4, "the session makes no progress");
        match received.step {
            Step::NeedMore => {
                assert!(offered.len() - received.consumed < MAX_INPUT_BYTES, "wants too much");
                if end == input.len() {
                    trace.left = end - start;
                    return trace;
                }
                end += cut(input.len() - end).clamp(1, input.len() - end);
                idle = 0;
            }
            Step::NeedRoom => assert!(sent > 0, "a whole empty buffer is not enough"),
            Step::Again => {}
            Step::Payload(payload) => {
                assert!(payload.here >= 1 && payload.here <= rest.len());
                assert!(payload.here <= payload.left as usize);
                let sum = rest[..payload.here].iter().map(|&byte| u64::from(byte)).sum::<u64>();
                match trace.payload.last_mut() {
                    Some((next, total)) if *next == payload.offset => {
                        *next += payload.here as u64;
                        *total += sum;
                    }
                    _ => trace.payload.push((payload.offset + payload.here as u64, sum)),
                }
                session.payload_used(payload.here);
                start += payload.here;
                idle = 0;
            }
            step => {
                trace.steps.push(step);
                match step {
                    Step::Request(request) => check(&request),
                    Step::Close(_) => {
                        trace.left = input.len() - start;
                        return trace;
                    }
                    _ => {}
                }
            }
        }
    }
}

fn check(request: &Request) {
    if request.command == Command::Flush {
        return;
    }
    assert!(request.len > 0);
    assert!(request.offset.checked_add(request.len).is_some_and(|end| end <= 1 << 40));
    if let Command::Read { .. } | Command::Write { .. } = request.command {
        assert!(request.len <= u64::from(MAX_PAYLOAD_BYTES));
    }
}

/// The same input whole and cut by `seed`: both must do the same.
fn whole_and_cut(seed: u8, prefix: &[u8], input: &[u8]) {
    let exports = exports();
    let open = || {
        let mut session = Session::new();
        drive(&mut session, &exports, prefix, |left| left);
        session
    };
    let whole = drive(&mut open(), &exports, input, |left| left);
    let mut state = u32::from(seed);
    let cut = drive(&mut open(), &exports, input, |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        1 + (state >> 24) as usize % (1 + usize::from(seed))
    });
    assert_eq!(whole, cut, "what a session does depends on how its input was cut");
}

/// Arbitrary bytes from the first one on. The first byte of `data` chooses how they are cut.
///
/// # Panics
/// If the session breaks one of its promises.
pub fn fuzz_handshake(data: &[u8]) {
    if let Some((&seed, input)) = data.split_first() {
        whole_and_cut(seed, &[], input);
    }
}

/// Arbitrary bytes after a handshake. The first two bytes of `data` choose how they are cut, the
/// style and the export.
///
/// # Panics
/// If the session breaks one of its promises.
pub fn fuzz_transmission(data: &[u8]) {
    let [seed, kind, input @ ..] = data else { return };
    let name = if kind & 4 == 0 { "vol" } else { "read-only" };
    let mut prefix = encode::client_flags().to_vec();
    match kind & 3 {
        0 => {}
        1 => encode::option(&mut prefix, OPT_STRUCTURED_REPLY, &[]),
        _ => encode::option(&mut prefix, OPT_EXTENDED_HEADERS, &[]),
    }
    if kind & 8 != 0 {
        let data = encode::meta_data(name, &[BASE_ALLOCATION]);
        encode::option(&mut prefix, OPT_SET_META_CONTEXT, &data);
    }
    encode::option(&mut prefix, OPT_GO, &encode::info_data(name, &[]));
    whole_and_cut(*seed, &prefix, input);
}
