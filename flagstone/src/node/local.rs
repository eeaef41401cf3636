//! Requests of this machine, without a socket: reads, writes and flushes of the library, and those of the
//! kernel's block devices ([`super::ublk`]).
//!
//! The library's come through a mailbox of their own, each with the memory that its data lies in or goes
//! to, so that nothing is allocated for them here. The kernel's keep their data in the kernel, from where it is
//! copied part by part. A request is handed to its engine part by part,
//! as memory and the engine allow; who comes first is served first. READs take buffers from the
//! shared part of the arena as one connection would. Nothing is cancelled: a request whose asker
//! has gone away is finished, unanswered.

use super::control::VolumeIo;
use super::limits::{LOCAL_CALLS, LOCAL_REQUESTS, PIECE_BLOCKS, WRITE_BYTES};
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

/// One request of the library, as it crosses to the reactor. Its range may be any, but not empty.
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

/// Who asks, and where the data is.
pub(super) enum Asker {
    /// The library.
    Library { data: Vec<u8>, reply: oneshot::Sender<Result<Vec<u8>, IoError>> },
    /// The kernel, through request `tag` of a block device.
    Kernel { device: u32, tag: u16 },
}

/// A request under way.
pub(super) struct Request {
    /// As [`LocalRequest::handle`].
    pub(super) handle: u64,
    pub(super) op: LocalOp,
    pub(super) durability: Durability,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) asker: Asker,
    pub(super) progress: Parts,
}

/// How far a request has come.
#[derive(Default)]
pub(super) struct Parts {
    /// Bytes of it that the engine has got.
    submitted_bytes: u64,
    /// No more parts will follow.
    submitted: bool,
    /// Parts that the engine has and has not answered.
    outstanding: u32,
    /// The first failure.
    error: Option<IoError>,
}

impl Request {
    pub(super) fn of_library(asked: LocalRequest) -> Self {
        let len = match asked.op {
            LocalOp::Read | LocalOp::Write => asked.data.len() as u64,
            LocalOp::Zero { len, .. } => len,
            LocalOp::Flush => 0,
        };
        Self {
            handle: asked.handle,
            op: asked.op,
            durability: Durability::Completed,
            offset: asked.offset,
            len,
            asker: Asker::Library { data: asked.data, reply: asked.reply },
            progress: Parts::default(),
        }
    }

    const fn pool(&self) -> usize {
        (self.handle >> 32) as usize
    }

    const fn volume(&self) -> VolumeId {
        VolumeId(self.handle as u32)
    }
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
    /// Those of them that are the library's.
    of_library: usize,
    /// Requests that are not submitted in full, in the order of their arrival.
    queue: VecDeque<u32>,
    /// Volumes whose engine was too busy for a request in this pass.
    busy: Vec<u64>,
    /// Blocks of the arena that pieces hold.
    shared_blocks: u32,
}

impl Local {
    /// Without a mailbox there will be no requests of the library.
    pub(super) fn new(mailbox: Option<Mailbox<LocalRequest>>) -> Self {
        let room = if mailbox.is_some() { LOCAL_REQUESTS } else { 0 };
        Self {
            mailbox,
            has_mail: false,
            requests: Slab::with_capacity(room),
            pieces: Slab::with_capacity(room),
            of_library: 0,
            queue: VecDeque::with_capacity(room),
            busy: Vec::new(),
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

    /// Takes a request, which is begun in this turn or the next; returns its name.
    pub(super) fn push(&mut self, request: Request) -> u32 {
        self.of_library += usize::from(matches!(request.asker, Asker::Library { .. }));
        let name = self.requests.insert(request);
        self.queue.push_back(name);
        name
    }
}

impl Reactor {
    /// Takes mail and submits what can be submitted.
    pub(super) fn run_local(&mut self) {
        if self.local.has_mail {
            self.read_local_mail();
        }
        self.local.busy.clear();
        // What memory comes back is the first read's.
        let mut starved = false;
        for _ in 0..self.local.queue.len() {
            let Some(first) = self.local.queue.pop_front() else { return };
            let Some(request) = self.local.requests.get_mut(first) else { continue };
            let handle = request.handle;
            // Those of one volume come one after the other; nobody waits for another volume's.
            let behind = self.local.busy.contains(&handle);
            let progress = match request.op {
                _ if behind => Progress::Waits,
                LocalOp::Read if starved => Progress::Blocked,
                _ => self.advance_local(first),
            };
            match progress {
                Progress::More => {}
                Progress::Full => self.park(first),
                // Others get their turn, also those behind it.
                Progress::Yields => {
                    self.hungry = true;
                    self.local.queue.push_back(first);
                }
                Progress::Waits => self.local.queue.push_back(first),
                // Whatever ends frees what it waits for; the retry only bounds the harm of a
                // wake-up that was missed.
                Progress::Busy | Progress::Blocked => {
                    starved |= progress == Progress::Blocked;
                    self.engine_busy = true;
                    self.local.busy.push(handle);
                    self.local.queue.push_back(first);
                }
            }
        }
    }

    fn read_local_mail(&mut self) {
        if self.local.of_library == LOCAL_REQUESTS {
            // Of those that wait for space some may have been given up.
            self.wake_waiting();
        }
        while self.local.of_library < LOCAL_REQUESTS {
            let Some(asked) = self.local.mailbox.as_mut().and_then(Mailbox::take) else {
                self.local.has_mail = false;
                return;
            };
            if self.stop.is_running() {
                self.local.push(Request::of_library(asked));
            } else {
                // The asker may have stopped waiting, which is its own affair.
                let _ = asked.reply.send(Err(IoError::Closed));
            }
        }
    }

    /// Hands the engine parts of a request; [`Progress::More`] when it has got all it will get.
    pub(super) fn advance_local(&mut self, name: u32) -> Progress {
        for _ in 0..LOCAL_CALLS {
            let Some(request) = self.local.requests.get_mut(name) else { return Progress::More };
            let (done, len) = (request.progress.submitted_bytes, request.len);
            let at = request.offset.saturating_add(done);
            let tag = Name::Local(name).tag();
            let (pool, volume, durability) = (request.pool(), request.volume(), request.durability);
            let outcome = match request.op {
                LocalOp::Read => match self.fetch_local(name, pool, volume, at, len - done) {
                    Some(outcome) => outcome,
                    None => return Progress::Blocked,
                },
                LocalOp::Write => self.write_local(name, at),
                LocalOp::Zero { mode, .. } => {
                    let bufs = self.ring.buffers();
                    let engine = &mut self.pools[pool].engine;
                    engine.zero(bufs, tag, volume, at, len - done, mode, durability)
                }
                LocalOp::Flush => self.pools[pool].engine.flush(tag, volume).map(|()| 0),
            };
            self.pools[pool].touched = true;
            let Some(request) = self.local.requests.get_mut(name) else { return Progress::More };
            let progress = &mut request.progress;
            match outcome {
                Ok(bytes) => {
                    progress.outstanding += 1;
                    progress.submitted_bytes += bytes;
                    progress.submitted = progress.submitted_bytes == len;
                }
                Err(SubmitError::Busy) => return Progress::Busy,
                Err(SubmitError::NoSpace) if self.waits_for_space(pool as u32, volume) => {
                    return Progress::Full;
                }
                Err(error) => {
                    let Some(request) = self.local.requests.get_mut(name) else {
                        return Progress::More;
                    };
                    request.progress.error.get_or_insert(error.into());
                    request.progress.submitted = true;
                }
            }
            let request = self.local.requests.get_mut(name);
            if request.is_none_or(|request| request.progress.submitted) {
                self.finish_local(name);
                return Progress::More;
            }
        }
        Progress::Yields
    }

    /// Hands the engine the next part of a write, which begins at `at`.
    fn write_local(&mut self, name: u32, at: u64) -> Result<u64, SubmitError> {
        let tag = Name::Local(name).tag();
        let Some(request) = self.local.requests.get_mut(name) else {
            return Err(SubmitError::NoVolume);
        };
        let (volume, durability) = (request.volume(), request.durability);
        let (done, left) = {
            let done = request.progress.submitted_bytes as usize;
            (done, request.len as usize - done)
        };
        let engine = &mut self.pools[request.pool()].engine;
        let bufs = self.ring.buffers();
        let taken = match &request.asker {
            Asker::Library { data, .. } => {
                engine.write(bufs, tag, volume, at, &data[done..], durability)
            }
            &Asker::Kernel { device, tag: number } => {
                let part = &mut self.payload[..left.min(WRITE_BYTES)];
                if !self.ublk.take(device, number, done, part) {
                    // The device is being taken away: whoever asked is not told any more.
                    return Err(SubmitError::Stopping);
                }
                engine.write(bufs, tag, volume, at, part, durability)
            }
        };
        taken.map(|bytes| bytes as u64)
    }

    /// Has a request wait for space.
    fn park(&mut self, name: u32) {
        let Some(request) = self.local.requests.get_mut(name) else { return };
        let handle = request.handle;
        self.park_local((handle >> 32) as u32, VolumeId(handle as u32), name);
    }

    /// Bytes of a request that the engine has got.
    pub(super) fn local_submitted(&mut self, name: u32) -> Option<u64> {
        self.local.requests.get_mut(name).map(|request| request.progress.submitted_bytes)
    }

    /// Whether nobody waits for a request any more.
    pub(super) fn local_is_abandoned(&mut self, name: u32) -> bool {
        let Some(request) = self.local.requests.get_mut(name) else { return true };
        matches!(&request.asker, Asker::Library { reply, .. } if reply.is_closed())
    }

    /// What is left of a request will not happen.
    pub(super) fn fail_local(&mut self, name: u32, error: IoError) {
        if let Some(request) = self.local.requests.get_mut(name) {
            request.progress.error.get_or_insert(error);
            request.progress.submitted = true;
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
        let from = self.local.requests.get_mut(request)?.progress.submitted_bytes as usize;
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
    pub(super) fn take_local(&mut self, wanted: u32) -> Option<Buffer> {
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

    pub(super) fn give_local(&mut self, buffer: Buffer) {
        self.local.shared_blocks -= buffer.blocks;
        self.ring.buffers().free(buffer);
    }

    /// A part of a write, discard or write-zeroes, or a flush, has ended.
    pub(super) fn local_part_done(&mut self, name: u32, result: Result<(), IoFault>) {
        let Some(request) = self.local.requests.get_mut(name) else { return };
        request.progress.outstanding -= 1;
        if let Err(fault) = result {
            request.progress.error.get_or_insert(fault.into());
        }
        self.finish_local(name);
    }

    /// A part of a read has ended.
    pub(super) fn local_piece_done(&mut self, piece: u32, result: Result<(), IoFault>) {
        let Some(piece) = self.local.pieces.remove(piece) else { return };
        if let Some(request) = self.local.requests.get_mut(piece.request)
            && result.is_ok()
        {
            let bytes = &self.ring.buffers_ref().bytes(piece.buffer)[piece.skip..][..piece.len];
            match &mut request.asker {
                Asker::Library { data, .. } => {
                    data[piece.from..][..piece.len].copy_from_slice(bytes);
                }
                &mut Asker::Kernel { device, tag } => {
                    if !self.ublk.give(device, tag, piece.from, bytes) {
                        request.progress.error.get_or_insert(IoError::Closed);
                    }
                }
            }
        }
        self.give_local(piece.buffer);
        self.local_part_done(piece.request, result);
    }

    /// Answers a request whose parts are all answered.
    fn finish_local(&mut self, name: u32) {
        let is_over =
            |request: &mut Request| request.progress.submitted && request.progress.outstanding == 0;
        if !self.local.requests.get_mut(name).is_some_and(is_over) {
            return;
        }
        let Some(request) = self.local.requests.remove(name) else { return };
        let error = request.progress.error;
        self.catalog.count_io(request.handle, &counted(request.op, request.len, error.is_some()));
        match request.asker {
            Asker::Library { data, reply } => {
                self.local.of_library -= 1;
                // The asker may have stopped waiting, which is its own affair.
                let _ = reply.send(error.map_or(Ok(data), Err));
            }
            Asker::Kernel { device, tag } => {
                let bytes = match request.op {
                    LocalOp::Read | LocalOp::Write => request.len,
                    LocalOp::Zero { .. } | LocalOp::Flush => 0,
                };
                self.commit(device, tag, error.map_or(Ok(bytes as u32), Err));
            }
        }
    }
}

/// A request of the library or the kernel, as its volume counts it.
fn counted(op: LocalOp, len: u64, failed: bool) -> VolumeIo {
    let (one, bytes) = (VolumeIo::default(), if failed { 0 } else { len });
    let io = match op {
        LocalOp::Read => VolumeIo { reads: 1, read_bytes: bytes, ..one },
        LocalOp::Write => VolumeIo { writes: 1, written_bytes: bytes, ..one },
        LocalOp::Zero { .. } => VolumeIo { zeroes: 1, ..one },
        LocalOp::Flush => VolumeIo { flushes: 1, ..one },
    };
    VolumeIo { errors: u64::from(failed), ..io }
}
