//! The NBD codec: a request's header read, a reply's header written.

use std::hint::black_box;

use flagstone_block::BLOCK_SIZE;
use flagstone_nbd::testing::{ExportList, encode};
use flagstone_nbd::{Out, ReplyTo, Session, Step, Style, proto, reply};

use crate::Piece;

/// Requests that lie in a receive buffer together.
const REQUESTS: u64 = 32;
const SIZE: u64 = 1 << 40;

pub(crate) fn pieces() -> Vec<Piece> {
    vec![
        Piece {
            name: "NBD: read request decoded",
            per_run: REQUESTS,
            runs: 500,
            make: || decoded(proto::CMD_READ),
        },
        Piece {
            name: "NBD: write request decoded, payload left where it is",
            per_run: REQUESTS,
            runs: 500,
            make: || decoded(proto::CMD_WRITE),
        },
        Piece {
            name: "NBD: simple reply encoded",
            per_run: REQUESTS,
            runs: 500,
            make: || {
                let mut bytes = vec![0; 4096];
                Box::new(move || {
                    let mut out = Out::new(black_box(&mut bytes));
                    for i in 0..REQUESTS {
                        let to = ReplyTo { cookie: i, offset: i << 12 };
                        reply::success(black_box(Style::Simple), to, &mut out);
                    }
                    black_box(out.len());
                })
            },
        },
        Piece {
            name: "NBD: header of a read's data encoded",
            per_run: REQUESTS,
            runs: 500,
            make: || {
                let mut bytes = vec![0; 4096];
                Box::new(move || {
                    let mut out = Out::new(black_box(&mut bytes));
                    for i in 0..REQUESTS {
                        let (offset, style) = (i << 12, black_box(Style::Structured));
                        let to = ReplyTo { cookie: i, offset };
                        reply::data(style, to, offset, BLOCK_SIZE as u32, true, &mut out);
                    }
                    black_box(out.len());
                })
            },
        },
    ]
}

/// Requests of 4 KiB, one after the other in a buffer.
fn decoded(kind: u16) -> crate::Run {
    let mut input = Vec::new();
    for i in 0..REQUESTS {
        let offset = (i * 7919 % (SIZE >> 12)) << 12;
        encode::request(&mut input, Style::Simple, 0, kind, i, offset, BLOCK_SIZE as u64);
        if kind == proto::CMD_WRITE {
            input.extend([7; BLOCK_SIZE]);
        }
    }
    let mut session = Session::transmitting(SIZE, false);
    let exports = ExportList::default();
    Box::new(move || {
        let mut rest = black_box(&input[..]);
        let mut requests = 0;
        while !rest.is_empty() {
            let received = session.receive(rest, &exports, &mut Out::new(&mut []));
            rest = &rest[received.consumed..];
            match received.step {
                Step::Request(request) => requests += u64::from(black_box(request).len > 0),
                Step::Payload(payload) => {
                    session.payload_used(payload.here);
                    rest = &rest[payload.here..];
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(requests, REQUESTS);
    })
}
