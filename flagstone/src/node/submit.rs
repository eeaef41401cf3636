//! From requests to engine calls, part by part, as memory and the engines allow.

use super::connection::Reply;
use super::errno::{Failure, errno};
use super::limits::{FETCH_BLOCKS, HOLE_READ_BYTES, PIECE_BLOCKS, PIECE_BLOCKS_MIN, ZERO_CALLS};
use super::reactor::Reactor;
use super::request::{Current, Kind, Name, Piece};
use super::run::Part;
use flagstone_block::{BLOCK_SIZE, Buffer, Durability, Lba, ZeroMode};
use flagstone_engine::{StatusKind, SubmitError};
use flagstone_nbd::Errno;

/// Whether a connection can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// At once.
    More,
    /// When its next event comes, which will find it.
    Waits,
    /// Perhaps when anything has happened: memory is needed, or answers to earlier requests.
    Blocked,
    /// As soon as the engine takes requests again.
    Busy,
    /// When there is space again.
    Full,
    /// At once, but others first.
    Yields,
}

impl Reactor {
    /// Submits more of what the connection is at.
    pub(super) fn advance(&mut self, c: u32, current: Current) -> Progress {
        match current {
            Current::Read { request, next, end, whole } => {
                self.advance_read(c, request, next, end, whole)
            }
            Current::Run { request, next, end } => self.advance_run(c, request, next, end),
            Current::Zero { request, next, end, mode, durability } => {
                self.advance_zero(c, request, next, end, mode, durability)
            }
            Current::Flush { request } => self.advance_flush(c, request),
            Current::Write { .. } => Progress::More,
        }
    }

    /// The connection is done submitting this request and turns to its next one.
    pub(super) fn submitted(&mut self, c: u32, request: u32) {
        self.connections[c as usize].current = None;
        let Some(entry) = self.requests.get_mut(request) else { return };
        entry.submitted = true;
        let over = entry.is_over();
        // The last chunk of a READ ends it; the others end here if everything is answered.
        if over && !matches!(entry.kind, Kind::Read | Kind::Run { .. }) {
            self.finish(request);
        }
    }

    /// The engine refused a part of a request; what it has of it is awaited.
    pub(super) fn fail(&mut self, request: u32, errno: Errno) {
        if let Some(entry) = self.requests.get_mut(request) {
            entry.error.get_or_insert(errno);
        }
    }

    /// Forgets what the connection was submitting; no reply will be sent for it.
    pub(super) fn abandon_current(&mut self, c: u32) {
        self.unstall(c);
        if let Some(Current::Write { request, parked: true, .. }) =
            self.connections[c as usize].current
        {
            self.forget_parked(c, Some(request));
        }
        let Some(current) = self.connections[c as usize].current.take() else { return };
        if self.connections[c as usize].running == Some(current.request()) {
            self.drop_parts(c);
        }
        let request = current.request();
        if let Some(entry) = self.requests.get_mut(request) {
            entry.submitted = true;
            entry.abandoned = true;
            if entry.outstanding == 0 {
                self.forget(request);
            }
        }
    }

    fn advance_read(&mut self, c: u32, request: u32, next: u64, end: u64, whole: bool) -> Progress {
        if !whole && end - next >= HOLE_READ_BYTES {
            match self.next_extent(c, next, end) {
                Ok((len, true)) => {
                    let done = self.read_ends(c, request, next + len, end, whole);
                    if let Some(entry) = self.requests.get_mut(request) {
                        let (to, over) = (entry.to, done && entry.outstanding == 0);
                        let hole = Reply::Hole { to, offset: next, len: len as u32, done: over };
                        self.reply(c, hole);
                        if over {
                            self.finish(request);
                        }
                    }
                    return Progress::More;
                }
                Ok((len, false)) => {
                    return self.fetch(c, request, next, next + len, end, whole);
                }
                Err(error) => {
                    self.refuse_read(c, request, next, error);
                    return Progress::More;
                }
            }
        }
        self.fetch(c, request, next, end, end, whole)
    }

    /// Length of what lies at `next`, up to `end`, and whether it is zeroes without data. Data is
    /// told up to the length of a piece, since that is all that is fetched at once.
    fn next_extent(&mut self, c: u32, next: u64, end: u64) -> Result<(u64, bool), SubmitError> {
        let Some(opened) = self.connections[c as usize].opened else {
            return Err(SubmitError::NoVolume);
        };
        let engine = &self.pools[opened.pool as usize].engine;
        let near = (end - next).min(u64::from(PIECE_BLOCKS) * BLOCK_SIZE as u64);
        engine.block_status(opened.volume, next, near, &mut self.statuses.extents, 1)?;
        match self.statuses.extents.first() {
            Some(extent) if extent.kind == StatusKind::Data => return Ok((extent.len, false)),
            Some(extent) if extent.len < near => return Ok((extent.len, true)),
            _ => {}
        }
        // Nothing near: how far does it go?
        engine.block_status(opened.volume, next, end - next, &mut self.statuses.extents, 1)?;
        Ok((self.statuses.extents.first().map_or(near, |extent| extent.len), true))
    }

    /// Fetches one piece of `next..limit`, as long as memory allows, of a READ up to `end`.
    pub(super) fn fetch(
        &mut self,
        c: u32,
        request: u32,
        next: u64,
        limit: u64,
        end: u64,
        whole: bool,
    ) -> Progress {
        let Some(opened) = self.connections[c as usize].opened else {
            self.refuse_read(c, request, next, SubmitError::NoVolume);
            return Progress::More;
        };
        let skip = next % BLOCK_SIZE as u64;
        let blocks = (skip + (limit - next)).div_ceil(BLOCK_SIZE as u64);
        let wanted = blocks.min(u64::from(PIECE_BLOCKS)) as u32;
        let fetching = self.connections[c as usize].fetching_blocks;
        if fetching > 0 && fetching + wanted > FETCH_BLOCKS {
            // The end of a piece brings the connection back.
            return Progress::Waits;
        }
        let least = if whole { wanted } else { wanted.min(PIECE_BLOCKS_MIN) };
        let Some(data) = self.take_data(c, wanted, least) else { return Progress::Blocked };
        let len = (u64::from(data.buffer.blocks) * BLOCK_SIZE as u64 - skip).min(limit - next);
        // A piece may have got more blocks than its bytes touch only if the reserve was cut.
        let touched = (skip + len).div_ceil(BLOCK_SIZE as u64) as u32;
        let into = Buffer { slot: data.buffer.slot, blocks: touched };
        let piece = self.pieces.insert(Piece {
            request,
            data,
            skip: skip as u32,
            len: len as u32,
            offset: next,
        });
        let pool = &mut self.pools[opened.pool as usize];
        let tag = Name::Piece(piece).tag();
        let lba = Lba::containing(next);
        pool.touched = true;
        match pool.engine.read(self.ring.buffers(), tag, opened.volume, lba, into) {
            Ok(()) => {
                let connection = &mut self.connections[c as usize];
                connection.fetching_blocks += data.buffer.blocks;
                if let Some(entry) = self.requests.get_mut(request) {
                    entry.outstanding += 1;
                    if let Kind::Run { .. } = entry.kind {
                        connection.parts.push_back(Part::Fetching(piece));
                    }
                }
                self.read_ends(c, request, next + len, end, whole);
                Progress::More
            }
            Err(error) => {
                self.pieces.remove(piece);
                self.give_back(c, data);
                if error == SubmitError::Busy {
                    return Progress::Busy;
                }
                self.refuse_read(c, request, next, error);
                Progress::More
            }
        }
    }

    /// Books that a READ is submitted up to `next`; returns whether that is all of it.
    fn read_ends(&mut self, c: u32, request: u32, next: u64, end: u64, whole: bool) -> bool {
        if next == end {
            self.submitted(c, request);
            return true;
        }
        let current = &mut self.connections[c as usize].current;
        *current = match *current {
            Some(Current::Run { .. }) => Some(Current::Run { request, next, end }),
            _ => Some(Current::Read { request, next, end, whole }),
        };
        false
    }

    /// The engine refused a READ from `next` on; what was submitted before is answered.
    fn refuse_read(&mut self, c: u32, request: u32, next: u64, error: SubmitError) {
        self.submitted(c, request);
        self.read_failed(request, next, errno(Failure::Submit(error)));
    }

    fn advance_zero(
        &mut self,
        c: u32,
        request: u32,
        mut next: u64,
        end: u64,
        mode: ZeroMode,
        durability: Durability,
    ) -> Progress {
        let Some(opened) = self.connections[c as usize].opened else {
            self.fail(request, errno(Failure::Submit(SubmitError::NoVolume)));
            self.submitted(c, request);
            return Progress::More;
        };
        self.pools[opened.pool as usize].touched = true;
        let tag = Name::Request(request).tag();
        let mut progress = Progress::Yields;
        for _ in 0..ZERO_CALLS {
            let (volume, len) = (opened.volume, end - next);
            let (pool, bufs) = (&mut self.pools[opened.pool as usize], self.ring.buffers());
            match pool.engine.zero(bufs, tag, volume, next, len, mode, durability) {
                Ok(bytes) => {
                    next += bytes;
                    if let Some(entry) = self.requests.get_mut(request) {
                        entry.outstanding += 1;
                    }
                    if next == end {
                        self.submitted(c, request);
                        return Progress::More;
                    }
                }
                Err(SubmitError::Busy) => {
                    progress = Progress::Busy;
                    break;
                }
                Err(SubmitError::NoSpace) if self.waits_for_space(opened.pool, opened.volume) => {
                    self.park_zero(c, request, (next, end), mode, durability);
                    return Progress::More;
                }
                Err(error) => {
                    self.fail(request, errno(Failure::Submit(error)));
                    self.submitted(c, request);
                    return Progress::More;
                }
            }
        }
        let current = Current::Zero { request, next, end, mode, durability };
        self.connections[c as usize].current = Some(current);
        progress
    }

    fn advance_flush(&mut self, c: u32, request: u32) -> Progress {
        let Some(opened) = self.connections[c as usize].opened else {
            self.fail(request, errno(Failure::Submit(SubmitError::NoVolume)));
            self.submitted(c, request);
            return Progress::More;
        };
        let pool = &mut self.pools[opened.pool as usize];
        pool.touched = true;
        match pool.engine.flush(Name::Request(request).tag(), opened.volume) {
            Ok(()) => {
                if let Some(entry) = self.requests.get_mut(request) {
                    entry.outstanding += 1;
                }
            }
            Err(SubmitError::Busy) => return Progress::Busy,
            Err(error) => self.fail(request, errno(Failure::Submit(error))),
        }
        self.submitted(c, request);
        Progress::More
    }
}
