//! The server's side of the NBD protocol: bytes in, effects out.
//!
//! A [`Session`] is one connection's state machine. Its owner feeds it received bytes and gets
//! one [`Step`] at a time: "send these handshake replies", "perform this request", "the next
//! bytes are payload", "close". Replies of the transmission phase are encoded by the pure
//! functions of [`reply`], so that the owner can gather headers and data from wherever they lie.
//!
//! Invariants:
//! 1. A session holds no received byte: what it can't use yet stays with the caller, who offers
//!    it again with more behind it. [`limits::MAX_INPUT_BYTES`] is always enough.
//! 2. What a session does depends on the bytes, never on how they were cut.
//! 3. Every request that a client sends gets exactly one [`Step::Request`] or [`Step::Answer`],
//!    except `NBD_CMD_DISC`, which has no reply.
//! 4. A [`Request`] lies inside the export and carries only flags that its command allows.
//! 5. Nothing a client sends can make a session allocate or panic.
//!
//! Not here: sockets, clocks (the handshake's deadline is the owner's), memory for data, the
//! limit on requests in flight (the owner stops calling [`Session::receive`]), TLS.
//!
//! Source: `doc/proto.md` of the NBD project, cited below by heading as "NBD proto", and its
//! extension "extended headers". What is supported of it: `docs/protocols/nbd.md`.

mod context;
mod export;
mod handshake;
pub mod limits;
pub mod netlink;
mod option;
pub mod proto;
pub mod reply;
mod request;
mod session;
mod wire;

#[cfg(feature = "testing")]
pub mod testing;

pub use context::{Context, Contexts, Difference};
pub use export::{Export, Exports, transmission_flags};
pub use proto::Errno;
pub use reply::{ReplyTo, Style};
pub use request::{Command, Request};
pub use session::{CloseReason, Opened, Payload, Received, Session, Step};
pub use wire::Out;
