//! Requests in flight: what the engine's tags stand for.

use flagstone_block::{Buffer, Durability, Tag, ZeroMode};
use flagstone_nbd::{Errno, ReplyTo};

/// What a request is, as far as its end needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A READ in chunks, or in one buffer.
    Read,
    /// A READ with a simple reply that is longer than what is fetched whole: sent piece by piece,
    /// in order, with nothing in between.
    Run {
        /// The reply's header has left; only more data or the end of the connection may follow.
        begun: bool,
    },
    /// A WRITE.
    Write,
    /// A TRIM or WRITE_ZEROES.
    Zero,
    /// A FLUSH.
    Flush,
}

/// One request of a client, from its header to its last reply.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// Its connection, which lives at least as long.
    pub(super) connection: u32,
    pub(super) to: ReplyTo,
    pub(super) kind: Kind,
    /// Parts that the engine has and has not answered.
    pub(super) outstanding: u32,
    /// No more parts will follow.
    pub(super) submitted: bool,
    /// Nobody waits for its reply any more.
    pub(super) abandoned: bool,
    /// The first failure.
    pub(super) error: Option<Errno>,
    /// Bytes of data, for the counters.
    pub(super) bytes: u64,
}

impl Request {
    pub(super) fn is_over(&self) -> bool {
        self.submitted && self.outstanding == 0
    }
}

/// Memory that holds data of a READ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Data {
    pub(super) buffer: Buffer,
    /// It is the connection's own reserve, not from the shared part of the arena.
    pub(super) reserve: bool,
}

/// One part of a READ: a stretch of blocks that is fetched at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) request: u32,
    pub(super) data: Data,
    /// Bytes before the first wanted one.
    pub(super) skip: u32,
    /// Wanted bytes.
    pub(super) len: u32,
    /// Byte offset of the first wanted one in the volume.
    pub(super) offset: u64,
}

/// What a connection is submitting to the engine; the next request waits until it is done.
#[derive(Clone, Copy, Debug)]
pub(super) enum Current {
    /// Bytes `next..end` are still to be fetched.
    Read { request: u32, next: u64, end: u64, whole: bool },
    /// As [`Current::Read`], one piece at a time, until all of it is on its way to the client.
    Run { request: u32, next: u64, end: u64 },
    /// Payload is to come: for the engine, or to be kept while the request is `parked`.
    Write { request: u32, durability: Durability, parked: bool },
    /// Bytes `next..end` are still to be zeroed.
    Zero { request: u32, next: u64, end: u64, mode: ZeroMode, durability: Durability },
    /// To be handed to the engine.
    Flush { request: u32 },
}

impl Current {
    /// The request that is being submitted.
    pub(super) const fn request(self) -> u32 {
        match self {
            Self::Read { request, .. }
            | Self::Run { request, .. }
            | Self::Write { request, .. }
            | Self::Zero { request, .. }
            | Self::Flush { request } => request,
        }
    }
}

/// What an engine's completion is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// A part of a WRITE, TRIM or WRITE_ZEROES, or a FLUSH.
    Request(u32),
    /// A [`Piece`].
    Piece(u32),
    /// A control request.
    Control(u32),
    /// A part of a request of this process, but not of a read.
    Local(u32),
    /// A part of a read of this process.
    LocalPiece(u32),
    /// The growth of a pool.
    Growth(u32),
    /// A change of a pool's devices.
    Device(u32),
}

impl Name {
    pub(super) fn tag(self) -> Tag {
        let (kind, index) = match self {
            Self::Request(index) => (0, index),
            Self::Piece(index) => (1, index),
            Self::Control(index) => (2, index),
            Self::Local(index) => (3, index),
            Self::LocalPiece(index) => (4, index),
            Self::Growth(index) => (5, index),
            Self::Device(index) => (6, index),
        };
        Tag(kind << 32 | u64::from(index))
    }

    pub(super) fn of(tag: Tag) -> Option<Self> {
        let index = tag.0 as u32;
        match tag.0 >> 32 {
            0 => Some(Self::Request(index)),
            1 => Some(Self::Piece(index)),
            2 => Some(Self::Control(index)),
            3 => Some(Self::Local(index)),
            4 => Some(Self::LocalPiece(index)),
            5 => Some(Self::Growth(index)),
            6 => Some(Self::Device(index)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_lead_back_to_their_names() {
        let names = [Name::Request(0), Name::Piece(u32::MAX), Name::Control(7)];
        for name in names.into_iter().chain([Name::Local(1), Name::LocalPiece(2), Name::Growth(3)])
        {
            assert_eq!(Name::of(name.tag()), Some(name));
        }
        assert_eq!(Name::of(Name::Device(4).tag()), Some(Name::Device(4)));
        assert_eq!(Name::of(Tag(7 << 32)), None);
    }
}
