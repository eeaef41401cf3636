//! Requests of this process, without a socket: the library's reads, writes and flushes.
//!
//! They come through a mailbox of their own, each with the memory that its data lies in or goes
//! to, so that nothing is allocated for them here. A request is handed to its engine part by part,
//! as memory and the engine allow; who comes first is served first. READs take buffers from the
//! shared part of the arena as one connection would. Nothing is cancelled: a request whose asker
//! has gone away is finished, unanswered.

use super::limits::{LOCAL_CALLS, LOCAL_REQUESTS, PIECE_BLOCKS};
use super::reactor::Reactor;
use super::request::Name;
use super::slab::Slab;
use super::submit::Progress;
use flagstone_block::{BLOCK_SIZE, Buffer, Buffers, Durability, Lba, VolumeId, ZeroMode};
use flagstone_engine::{IoFault, SubmitError};
use flagstone_ring::Mailbox;
use std::collections::VecDeque;
use tokio::sync::oneshot;

/// Why a read, write, flush, discard or write-zeroes of the library failed. Of a request that
/// changes something, any part may have happened unless the variant says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// The range does not lie in the volume; nothing happened.
    #[error("the range lies outside the volume")]
    OutOfRange,
    /// The pool is full: delete or discard something.
    #[error("the pool is full")]
    NoSpace,
    /// A block does not have the content that was written, or can't be read.
    #[error("the data at byte {offset} of the volume is damaged")]
    Damaged {
        /// Where the first such block begins, in bytes.
        offset: u64,
    },
    /// A device of the pool failed before all that had been written to this volume, and answered, was flushed to it:
    /// some of that is lost. Told once, by a flush; what was lost is [`IoError::Damaged`].
    #[error("a device of the pool failed, and some of what was written before is lost")]
    Lost,
    /// The pool's device failed. It can still be read; everything else is refused until the pool
    /// is opened again.
    #[error("the pool's device has failed; open the pool again when it is well")]
    PoolFailed,
    /// A device of the pool is missing, and it was opened to be read.
    #[error("a device of the pool is missing, and the pool is only read")]
    ReadOnly,
    /// It is a snapshot; nothing happened.
    #[error("a snapshot can only be read")]
    IsSnapshot,
    /// The volume or snapshot has been deleted.
    #[error("the volume was deleted")]
    VolumeDeleted,
    /// The pool is closed, or is being closed.
    #[error("the pool is closed")]
    Closed,
    /// Too many requests whose futures were dropped are still under way; nothing happened.
    #[error("too many abandoned requests are under way")]
    Busy,
}

impl From<IoError> for std::io::Error {
    fn from(error: IoError) -> Self {
        use std::io::ErrorKind;
        let kind = match error {
            IoError::OutOfRange => ErrorKind::InvalidInput,
            IoError::NoSpace => ErrorKind::StorageFull,
            IoError::Damaged { .. } => ErrorKind::InvalidData,
            IoError::VolumeDeleted => ErrorKind::NotFound,
            IoError::Closed => ErrorKind::NotConnected,
            IoError::Busy => ErrorKind::ResourceBusy,
            IoError::ReadOnly | IoError::IsSnapshot => ErrorKind::ReadOnlyFilesystem,
            IoError::PoolFailed | IoError::Lost => ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

impl From<SubmitError> for IoError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::OutOfRange => Self::OutOfRange,
            SubmitError::NoSpace => Self::NoSpace,
            SubmitError::NoVolume => Self::VolumeDeleted,
            SubmitError::Stopping => Self::Closed,
            SubmitError::ReadOnly => Self::ReadOnly,
            SubmitError::IsSnapshot => Self::IsSnapshot,
            _ => Self::PoolFailed,
        }
    }
}

impl From<IoFault> for IoError {
    fn from(fault: IoFault) -> Self {
        match fault {
            IoFault::BadBlock { lba } => Self::Damaged { offset: Lba(lba).offset() },
            IoFault::Gone => Self::VolumeDeleted,
            IoFault::NoSpace => Self::NoSpace,
            IoFault::Lost => Self::Lost,
            _ => Self::PoolFailed,
        }
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LocalOp {
    /// Fill the data.
    Read,
    /// Store the data.
    Write,
    /// Make so many bytes read as zeroes.
    Zero { len: u64, mode: ZeroMode },
    /// Make durable what was answered before.
    Flush,
}

/// One request, as it crosses to the reactor. Its range may be any, but not empty.
pub(crate) struct LocalRequest {
    /// As [`super::VolumeStatus`] has it.
    pub(crate) handle: u64,
    pub(crate) op: LocalOp,
    /// Bytes into the volume.
    pub(crate) offset: u64,
    pub(crate) data: Vec<u8>,
    /// Gets the data back.
    pub(crate) reply: oneshot::Sender<Result<Vec<u8>, IoError>>,
}

impl LocalRequest {
    fn len(&self) -> u64 {
        match self.op {
            LocalOp::Read | LocalOp::Write => self.data.len() as u64,
            LocalOp::Zero { len, .. } => len,
            LocalOp::Flush => 0,
        }
    }

    fn answer(self, error: Option<IoError>) {
        // The asker may have stopped waiting, which is its own affair.
        let _ = self.reply.send(error.map_or(Ok(self.data), Err));
    }
}

/// A request under way.
struct Request {
    asked: LocalRequest,
    /// Bytes of it that the engine has got.
    submitted_bytes: u64,
    /// No more parts will follow.
    submitted: bool,
    /// Parts that the engine has and has not answered.
    outstanding: u32,
    /// The first failure.
    error: Option<IoError>,
}

/// One part of a read.
struct Piece {
    request: u32,
    buffer: Buffer,
    /// Bytes before the first wanted one.
    skip: usize,
    /// Which bytes of the request's data it is.
    from: usize,
    len: usize,
}

/// See the module's documentation.
pub(super) struct Local {
    mailbox: Option<Mailbox<LocalRequest>>,
    /// There may be mail.
    has_mail: bool,
    requests: Slab<Request>,
    pieces: Slab<Piece>,
    /// Requests that are not submitted in full, in the order of their arrival.
    queue: VecDeque<u32>,
    /// Blocks of the arena that pieces hold.
    shared_blocks: u32,
}

impl Local {
    /// Without a mailbox there will be no requests.
    pub(super) fn new(mailbox: Option<Mailbox<LocalRequest>>) -> Self {
        let room = if mailbox.is_some() { LOCAL_REQUESTS } else { 0 };
        Self {
            mailbox,
            has_mail: false,
            requests: Slab::with_capacity(room),
            pieces: Slab::with_capacity(room),
            queue: VecDeque::with_capacity(room),
            shared_blocks: 0,
        }
    }

    /// Mail may have come.
    pub(super) fn woken(&mut self) {
        self.has_mail = self.mailbox.is_some();
    }

    /// Something could go on if the engine or memory allowed.
    pub(super) fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.requests.len() == 0
    }

    /// Requests under way.
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }
}

impl Reactor {
    /// Takes mail and submits what can be submitted.
    pub(super) fn run_local(&mut self) {
        if self.local.has_mail {
            self.read_local_mail();
        }
        while let Some(&first) = self.local.queue.front() {
            match self.advance_local(first) {
                Progress::More => {
                    self.local.queue.pop_front();
                }
                Progress::Full => {
                    self.local.queue.pop_front();
                    self.park(first);
                }
                // Others get their turn, also those behind it.
                Progress::Yields => {
                    self.hungry = true;
                    return self.local.queue.rotate_left(1);
                }
                // Whatever ends frees what it waits for; the retry only bounds the harm of a
                // wake-up that was missed.
                Progress::Waits | Progress::Blocked | Progress::Busy => {
                    self.engine_busy = true;
                    return;
                }
            }
        }
    }

    fn read_local_mail(&mut self) {
        if self.local.requests.len() == LOCAL_REQUESTS {
            // Of those that wait for space some may have been given up.
            self.wake_waiting();
        }
        while self.local.requests.len() < LOCAL_REQUESTS {
            let Some(asked) = self.local.mailbox.as_mut().and_then(Mailbox::take) else {
                self.local.has_mail = false;
                return;
            };
            if !self.stop.is_running() {
                asked.answer(Some(IoError::Closed));
                continue;
            }
            let request = self.local.requests.insert(Request {
                asked,
                submitted_bytes: 0,
                submitted: false,
                outstanding: 0,
                error: None,
            });
            self.local.queue.push_back(request);
        }
    }

    /// Hands the engine parts of a request; [`Progress::More`] when it has got all it will get.
    pub(super) fn advance_local(&mut self, name: u32) -> Progress {
        for _ in 0..LOCAL_CALLS {
            let Some(request) = self.local.requests.get_mut(name) else { return Progress::More };
            let asked = &request.asked;
            let (done, len) = (request.submitted_bytes, asked.len());
            let at = asked.offset.saturating_add(done);
            let tag = Name::Local(name).tag();
            let volume = VolumeId(asked.handle as u32);
            let pool = (asked.handle >> 32) as usize;
            let outcome = match asked.op {
                LocalOp::Read => match self.fetch_local(name, pool, volume, at, len - done) {
                    Some(outcome) => outcome,
                    None => return Progress::Blocked,
                },
                LocalOp::Write => {
                    let data = &asked.data[done as usize..];
                    let bufs = self.ring.buffers();
                    let engine = &mut self.pools[pool].engine;
                    let taken = engine.write(bufs, tag, volume, at, data, Durability::Completed);
                    taken.map(|bytes| bytes as u64)
                }
                LocalOp::Zero { mode, .. } => {
                    let bufs = self.ring.buffers();
                    let engine = &mut self.pools[pool].engine;
                    engine.zero(bufs, tag, volume, at, len - done, mode, Durability::Completed)
                }
                LocalOp::Flush => self.pools[pool].engine.flush(tag, volume).map(|()| 0),
            };
            self.pools[pool].touched = true;
            let Some(request) = self.local.requests.get_mut(name) else { return Progress::More };
            match outcome {
                Ok(bytes) => {
                    request.outstanding += 1;
                    request.submitted_bytes += bytes;
                    request.submitted = request.submitted_bytes == len;
                }
                Err(SubmitError::Busy) => return Progress::Busy,
                Err(SubmitError::NoSpace) if self.waits_for_space(pool as u32, volume) => {
                    return Progress::Full;
                }
                Err(error) => {
                    let Some(request) = self.local.requests.get_mut(name) else {
                        return Progress::More;
                    };
                    request.error.get_or_insert(error.into());
                    request.submitted = true;
                }
            }
            let request = self.local.requests.get_mut(name);
            if request.is_none_or(|request| request.submitted) {
                self.finish_local(name);
                return Progress::More;
            }
        }
        Progress::Yields
    }

    /// Has a request wait for space.
    fn park(&mut self, name: u32) {
        let Some(request) = self.local.requests.get_mut(name) else { return };
        let handle = request.asked.handle;
        self.park_local((handle >> 32) as u32, VolumeId(handle as u32), name);
    }

    /// Bytes of a request that the engine has got.
    pub(super) fn local_submitted(&mut self, name: u32) -> Option<u64> {
        self.local.requests.get_mut(name).map(|request| request.submitted_bytes)
    }

    /// Whether nobody waits for a request any more.
    pub(super) fn local_is_abandoned(&mut self, name: u32) -> bool {
        let request = self.local.requests.get_mut(name);
        request.is_none_or(|request| request.asked.reply.is_closed())
    }

    /// What is left of a request will not happen.
    pub(super) fn fail_local(&mut self, name: u32, error: IoError) {
        if let Some(request) = self.local.requests.get_mut(name) {
            request.error.get_or_insert(error);
            request.submitted = true;
        }
        self.finish_local(name);
    }

    /// Starts a read of `left` bytes at `at`, or of as many as memory allows; `None` if it allows
    /// none.
    fn fetch_local(
        &mut self,
        request: u32,
        pool: usize,
        volume: VolumeId,
        at: u64,
        left: u64,
    ) -> Option<Result<u64, SubmitError>> {
        let skip = at % BLOCK_SIZE as u64;
        let touched = (skip + left).div_ceil(BLOCK_SIZE as u64);
        let buffer = self.take_local(touched.min(u64::from(PIECE_BLOCKS)) as u32)?;
        let len = (buffer.len() as u64 - skip).min(left);
        let from = self.local.requests.get_mut(request)?.submitted_bytes as usize;
        let (skip, bytes) = (skip as usize, len as usize);
        let piece = self.local.pieces.insert(Piece { request, buffer, skip, from, len: bytes });
        let (tag, lba) = (Name::LocalPiece(piece).tag(), Lba::containing(at));
        let taken = self.pools[pool].engine.read(self.ring.buffers(), tag, volume, lba, buffer);
        if taken.is_err() {
            self.local.pieces.remove(piece);
            self.give_local(buffer);
        }
        Some(taken.map(|()| len))
    }

    /// `wanted` blocks or fewer, as [`Reactor::take_data`] gives them to a connection.
    fn take_local(&mut self, wanted: u32) -> Option<Buffer> {
        let free = self.shared_free();
        let mut blocks = wanted.min(free.saturating_sub(self.local.shared_blocks) / 2);
        while blocks > 0 {
            if let Some(buffer) = self.ring.buffers().alloc(blocks) {
                self.local.shared_blocks += buffer.blocks;
                return Some(buffer);
            }
            blocks /= 2;
        }
        None
    }

    fn give_local(&mut self, buffer: Buffer) {
        self.local.shared_blocks -= buffer.blocks;
        self.ring.buffers().free(buffer);
    }

    /// A part of a write, discard or write-zeroes, or a flush, has ended.
    pub(super) fn local_part_done(&mut self, name: u32, result: Result<(), IoFault>) {
        let Some(request) = self.local.requests.get_mut(name) else { return };
        request.outstanding -= 1;
        if let Err(fault) = result {
            request.error.get_or_insert(fault.into());
        }
        self.finish_local(name);
    }

    /// A part of a read has ended.
    pub(super) fn local_piece_done(&mut self, piece: u32, result: Result<(), IoFault>) {
        let Some(piece) = self.local.pieces.remove(piece) else { return };
        if let Some(request) = self.local.requests.get_mut(piece.request)
            && result.is_ok()
        {
            let bytes = self.ring.buffers_ref().bytes(piece.buffer);
            request.asked.data[piece.from..][..piece.len]
                .copy_from_slice(&bytes[piece.skip..][..piece.len]);
        }
        self.give_local(piece.buffer);
        self.local_part_done(piece.request, result);
    }

    /// Answers a request whose parts are all answered.
    fn finish_local(&mut self, name: u32) {
        let is_over = |request: &mut Request| request.submitted && request.outstanding == 0;
        if !self.local.requests.get_mut(name).is_some_and(is_over) {
            return;
        }
        if let Some(request) = self.local.requests.remove(name) {
            request.asked.answer(request.error);
        }
    }
}
