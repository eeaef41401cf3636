//! One connection slot: its buffers, which are there for good, and the state of whoever uses it.
//!
//! Life: free -> handshake -> serving -> (draining) -> dead -> free. A dead connection's socket is
//! shut down; the slot is free again when the ring has closed the socket and the engines have
//! answered everything. Invariants:
//! 1. The receive buffer is looked at only while no receive is under way, the header buffer
//!    changed only while no send is.
//! 2. Every reply in `outbox` and `held` and every piece in `parts` belongs to this connection, and
//!    the data in them is accounted in `shared_blocks` or `reserve_taken` until the send that
//!    carries it has ended.

use super::control::VolumeIo;
use super::limits::{FETCH_BLOCKS, PIECE_BLOCKS};
use super::request::{Current, Data};
use super::run::Part;
use flagstone_block::{BLOCK_SIZE, Buffer, VolumeId};
use flagstone_nbd::{Contexts, Errno, ReplyTo, Session};
use flagstone_ring::{SocketId, TimerId};
use std::collections::VecDeque;

/// One message to a client, or a part of one, not yet encoded.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reply {
    /// Success or failure of a request without data.
    Done { to: ReplyTo, result: Result<(), Errno> },
    /// The end of a READ whose chunks are all sent, or a READ of no bytes.
    ReadDone { to: ReplyTo },
    /// A chunk of data, or in the simple style the whole reply.
    Data { to: ReplyTo, data: Data, skip: u32, len: u32, offset: u64, done: bool },
    /// A chunk of zeroes.
    Hole { to: ReplyTo, offset: u64, len: u32, done: bool },
    /// A chunk that could not be read.
    Bad { to: ReplyTo, errno: Errno, offset: u64, done: bool },
    /// Data that continues a simple reply.
    More { data: Data, skip: u32, len: u32 },
    /// A BLOCK_STATUS to be answered when its turn to be sent comes.
    /// Its contexts have a chunk each; this is the next one's number.
    Status { to: ReplyTo, offset: u64, len: u64, one: bool, context: u8 },
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Free,
    Handshake,
    Serving,
    /// Nothing more is read; replies are still sent.
    Draining,
    /// The socket is shut down.
    Dead,
}

/// The volume that a connection has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) pool: u32,
    pub(super) volume: VolumeId,
    pub(super) handle: u64,
    /// What BLOCK_STATUS tells.
    pub(super) contexts: Contexts,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) receive_buffer: Buffer,
    pub(super) header_buffer: Buffer,
    pub(super) reserve: Buffer,

    pub(super) phase: Phase,
    /// Raised whenever the slot is taken, so that a timer that comes late is recognised.
    pub(super) generation: u32,
    pub(super) socket: Option<SocketId>,
    pub(super) session: Session,
    pub(super) opened: Option<Opened>,
    /// The client is the kernel of this machine, by this process's doing: for the `/dev/nbdN` with this N.
    pub(super) kernel: Option<u32>,
    pub(super) deadline: Option<TimerId>,

    /// Received bytes that are not yet consumed: `start..end` of the receive buffer.
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) receiving: bool,
    /// The client sends no more.
    pub(super) ended: bool,
    pub(super) current: Option<Current>,

    pub(super) outbox: VecDeque<Reply>,
    /// Replies that must wait until a run is over.
    pub(super) held: VecDeque<Reply>,
    pub(super) in_run: bool,
    /// The request whose run has begun to be fetched. The next run waits until it has ended: its
    /// pieces carry no name, and only the order tells whose they are.
    pub(super) running: Option<u32>,
    /// The pieces of that run which are not in `outbox` yet, in the order of their bytes.
    pub(super) parts: VecDeque<Part>,
    /// Blocks of READs that are being fetched or belong to `parts`.
    pub(super) fetching_blocks: u32,
    pub(super) sending: bool,
    /// Data in the send that is under way.
    pub(super) in_send: Vec<Data>,

    /// Since when it has had no space for the payload at hand, nor memory to keep it in.
    pub(super) full_since_ns: Option<u64>,
    /// Bytes of payload that are kept while its writes wait for space.
    pub(super) parked_bytes: usize,

    /// Requests of this connection in the node's table.
    pub(super) requests: u32,
    /// What it has asked of its volume and the volume's entry does not count yet.
    pub(super) io: VolumeIo,
    pub(super) shared_blocks: u32,
    pub(super) reserve_taken: bool,

    /// Waits for its turn in the node's queue.
    pub(super) queued: bool,
    /// Is in the node's list of connections with something to send.
    pub(super) listed: bool,
}

impl Connection {
    pub(super) fn new(receive_buffer: Buffer, header_buffer: Buffer, reserve: Buffer) -> Self {
        Self {
            receive_buffer,
            header_buffer,
            reserve,
            phase: Phase::Free,
            generation: 0,
            socket: None,
            session: Session::new(),
            opened: None,
            kernel: None,
            deadline: None,
            start: 0,
            end: 0,
            receiving: false,
            ended: false,
            current: None,
            outbox: VecDeque::with_capacity(64),
            held: VecDeque::new(),
            in_run: false,
            running: None,
            parts: VecDeque::with_capacity((FETCH_BLOCKS / PIECE_BLOCKS) as usize),
            fetching_blocks: 0,
            sending: false,
            in_send: Vec::with_capacity(super::limits::SEND_PARTS),
            full_since_ns: None,
            parked_bytes: 0,
            requests: 0,
            io: VolumeIo::default(),
            shared_blocks: 0,
            reserve_taken: false,
            queued: false,
            listed: false,
        }
    }

    /// Takes the slot for a new client.
    pub(super) fn begin(&mut self, socket: SocketId) {
        debug_assert_eq!(self.phase, Phase::Free);
        self.phase = Phase::Handshake;
        self.generation = self.generation.wrapping_add(1);
        self.socket = Some(socket);
        self.session = Session::new();
        self.start = 0;
        self.end = 0;
        self.ended = false;
        self.full_since_ns = None;
        self.kernel = None;
    }

    /// Requests that have no complete reply under way yet.
    pub(super) fn in_flight(&self) -> usize {
        self.requests as usize + self.outbox.len() + self.held.len()
    }

    /// The blocks of the receive buffer that hold unconsumed bytes, and where in them the first
    /// one lies; `None` if there are none.
    pub(super) fn input(&self) -> Option<(Buffer, usize)> {
        if self.start == self.end {
            return None;
        }
        let first = self.start / BLOCK_SIZE;
        let blocks = self.end.div_ceil(BLOCK_SIZE) - first;
        Some((
            self.receive_buffer.part(first as u32, blocks as u32),
            self.start - first * BLOCK_SIZE,
        ))
    }

    /// Everything that was asked for is on its way or done.
    pub(super) fn is_quiet(&self) -> bool {
        self.requests == 0
            && self.current.is_none()
            && self.outbox.is_empty()
            && self.held.is_empty()
            && !self.sending
    }
}
