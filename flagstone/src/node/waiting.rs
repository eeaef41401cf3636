//! Requests that wait for space: their volume is told to wait when its pool is full.
//!
//! A request that the engine refuses for want of space is *parked*: a WRITE with what is left of
//! its payload, so that the connection can go on with requests that need no space. The parked of a
//! pool are tried again, oldest first, whenever the engine says that space has come back, and get
//! `ENOSPC` when none of the pool's has moved for the time that the node is given. They are
//! answered at once when the node stops or the pool fails, and forgotten with their connection.
//!
//! Memory: payload is parked in heap memory of at most [`PARKED_BYTES`] in all, of which a
//! connection may take as much as it leaves to others. One that gets none *stalls*: nothing more
//! is read from it until there is room, or its request's time is over.

use super::errno::{Failure, errno};
use super::limits::{PARKED_BYTES, ZERO_CALLS};
use super::local::IoError;
use super::reactor::Reactor;
use super::request::{Current, Name};
use super::submit::Progress;
use flagstone_block::{Durability, VolumeId, ZeroMode};
use flagstone_engine::{OnFull, SubmitError};
use std::collections::VecDeque;

/// How often it is told at most that requests wait.
const TOLD_NS: u64 = 60_000_000_000;

/// What of a request is still to be done.
enum Work {
    /// A WRITE from `offset` on, done up to `done` bytes of `data`, which is to get `bytes` bytes
    /// and is all there if `whole`.
    Write {
        offset: u64,
        data: Vec<u8>,
        bytes: usize,
        done: usize,
        whole: bool,
        durability: Durability,
    },
    /// A WRITE_ZEROES of `next..end`.
    Zero { next: u64, end: u64, mode: ZeroMode, durability: Durability },
    /// A request of this process, which keeps its own accounts.
    Local,
}

/// A parked request.
struct Parked {
    /// The number of its volume in the pool.
    volume: VolumeId,
    /// Its connection, unless it is this process's own.
    connection: Option<u32>,
    /// In the table of requests, or in that of this process's own.
    request: u32,
    since_ns: u64,
    work: Work,
}

/// What waits for space in one pool.
#[derive(Default)]
pub(super) struct Waiting {
    parked: VecDeque<Parked>,
    /// Connections that nothing more is read from, and since when.
    stalled: Vec<(u32, u64)>,
    /// The engine's [`space_epoch`](flagstone_engine::Engine::space_epoch) at the last attempt.
    epoch: u64,
    /// When one of them last got on.
    moved_ns: u64,
    /// When it may be told again that the pool is full.
    told_ns: u64,
    /// The engine was too busy at the last attempt.
    busy: bool,
    /// To be tried again whatever the epoch.
    pub(super) again: bool,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.parked.is_empty() && self.stalled.is_empty()
    }

    /// Requests that wait.
    pub(super) fn len(&self) -> usize {
        self.parked.len() + self.stalled.len()
    }

    /// Since when the one that has waited longest has seen no progress.
    fn oldest_ns(&self) -> Option<u64> {
        let parked = self.parked.front().map(|parked| parked.since_ns);
        let stalled = self.stalled.iter().map(|&(_, since_ns)| since_ns);
        stalled.chain(parked).min().map(|since_ns| since_ns.max(self.moved_ns))
    }
}

/// What an attempt came to.
enum Attempt {
    /// Everything is submitted.
    Done,
    /// There is no space yet.
    Full,
    /// The engine takes nothing at all now.
    Busy,
    /// It will not happen.
    Failed(SubmitError),
}

impl Reactor {
    /// Whether a request of this volume that found no space is to wait for it.
    pub(super) fn waits_for_space(&self, pool: u32, volume: VolumeId) -> bool {
        let engine = &self.pools[pool as usize].engine;
        let settings = engine.volume(volume).map(|info| info.settings);
        self.stop.is_running() && settings.is_some_and(|s| s.on_full == OnFull::Wait)
    }

    /// Parks the WRITE that a connection is receiving, of which `left` bytes from `offset` on are
    /// to come; the connection stalls if there is no memory for them. Returns false if its time
    /// is over.
    pub(super) fn park_write(&mut self, c: u32, offset: u64, left: usize) -> Option<Progress> {
        let now_ns = self.ring.now_ns();
        let connection = &mut self.connections[c as usize];
        let (Some(Current::Write { request, durability, .. }), Some(opened)) =
            (connection.current, connection.opened)
        else {
            return None;
        };
        let since_ns = *connection.full_since_ns.get_or_insert(now_ns);
        // As much as it leaves free to others.
        let others = PARKED_BYTES - self.parked_bytes;
        let fits = connection.parked_bytes + left <= others.saturating_sub(left);
        let pool = &mut self.pools[opened.pool as usize];
        if !fits {
            if now_ns >= since_ns.max(pool.waiting.moved_ns).saturating_add(self.full_wait_ns) {
                return None;
            }
            pool.begin_waiting(now_ns);
            if pool.waiting.stalled.iter().all(|&(other, _)| other != c) {
                pool.waiting.stalled.push((c, since_ns));
            }
            return Some(Progress::Full);
        }
        connection.full_since_ns = None;
        pool.waiting.stalled.retain(|&(other, _)| other != c);
        connection.parked_bytes += left;
        self.parked_bytes += left;
        connection.current = Some(Current::Write { request, durability, parked: true });
        let data = Vec::with_capacity(left);
        let work = Work::Write { offset, data, bytes: left, done: 0, whole: false, durability };
        pool.park(
            now_ns,
            Parked { volume: opened.volume, connection: Some(c), request, since_ns, work },
        );
        Some(Progress::More)
    }

    /// More payload of the parked WRITE that a connection is receiving: `bytes` bytes at the
    /// start of its input, the last of them if `whole`.
    pub(super) fn park_payload(&mut self, c: u32, request: u32, bytes: usize, whole: bool) {
        let connection = &self.connections[c as usize];
        let (Some(opened), Some((buffer, from))) = (connection.opened, connection.input()) else {
            return;
        };
        let waiting = &mut self.pools[opened.pool as usize].waiting;
        // The newest are those whose payload is still coming.
        let mine = |p: &&mut Parked| p.connection.is_some() && p.request == request;
        let parked = waiting.parked.iter_mut().rev().find(mine);
        let Some(Parked { work: Work::Write { data, whole: all, .. }, .. }) = parked else {
            return;
        };
        let input = flagstone_block::Buffers::bytes(self.ring.buffers_ref(), buffer);
        data.extend_from_slice(&input[from..from + bytes]);
        *all = whole;
        // It may be that there was space meanwhile.
        waiting.again |= whole;
    }

    /// Parks a WRITE_ZEROES.
    pub(super) fn park_zero(
        &mut self,
        c: u32,
        request: u32,
        range: (u64, u64),
        mode: ZeroMode,
        durability: Durability,
    ) {
        let Some(opened) = self.connections[c as usize].opened else { return };
        let now_ns = self.ring.now_ns();
        self.connections[c as usize].current = None;
        let work = Work::Zero { next: range.0, end: range.1, mode, durability };
        let parked =
            Parked { volume: opened.volume, connection: Some(c), request, since_ns: now_ns, work };
        self.pools[opened.pool as usize].park(now_ns, parked);
    }

    /// Parks a request of this process.
    pub(super) fn park_local(&mut self, pool: u32, volume: VolumeId, request: u32) {
        let now_ns = self.ring.now_ns();
        let parked =
            Parked { volume, connection: None, request, since_ns: now_ns, work: Work::Local };
        self.pools[pool as usize].park(now_ns, parked);
    }

    /// Tries again what waits, where there is reason to, and ends what has waited too long.
    pub(super) fn retry_waiting(&mut self) {
        for p in 0..self.pools.len() {
            let pool = &self.pools[p];
            if pool.waiting.is_empty() {
                continue;
            }
            let now_ns = self.ring.now_ns();
            let epoch = pool.engine.space_epoch();
            let late = self.waiting_deadline_ns(p).is_some_and(|at_ns| at_ns <= now_ns);
            let refused = pool.failure.is_some() || !self.stop.is_running();
            let Waiting { again, busy, epoch: seen, .. } = pool.waiting;
            if again || busy || seen != epoch || late || refused {
                self.pools[p].waiting.epoch = epoch;
                (self.pools[p].waiting.again, self.pools[p].waiting.busy) = (false, false);
                self.retry_pool(p, now_ns);
            }
        }
    }

    fn retry_pool(&mut self, p: usize, now_ns: u64) {
        for i in 0..self.pools[p].waiting.stalled.len() {
            let (c, _) = self.pools[p].waiting.stalled[i];
            self.enqueue(c);
        }
        let mut full: Vec<VolumeId> = Vec::new();
        let mut left = VecDeque::new();
        while let Some(mut parked) = self.pools[p].waiting.parked.pop_front() {
            let receiving = matches!(parked.work, Work::Write { whole: false, .. });
            let attempt = match full.contains(&parked.volume) || receiving {
                // It would be refused like the one before it; but its time may be over.
                true => Attempt::Full,
                false => self.try_parked(p, &mut parked, now_ns),
            };
            match attempt {
                Attempt::Done => self.end_parked(p, parked, None),
                Attempt::Failed(error) => self.end_parked(p, parked, Some(error)),
                Attempt::Full if self.is_over(p, &parked, now_ns) => {
                    let running = self.stop.is_running();
                    let why = if running { SubmitError::NoSpace } else { SubmitError::Stopping };
                    self.end_parked(p, parked, Some(why));
                }
                Attempt::Full => {
                    // One that is still being received was not tried: it says nothing of those behind it.
                    if !receiving {
                        full.push(parked.volume);
                    }
                    left.push_back(parked);
                }
                // One that has found no space before, long ago, and that nobody can say more to now.
                Attempt::Busy
                    if self.is_late(p, &parked, now_ns.saturating_sub(self.full_wait_ns)) =>
                {
                    self.end_parked(p, parked, Some(SubmitError::NoSpace));
                }
                Attempt::Busy => {
                    self.engine_busy = true;
                    self.pools[p].waiting.busy = true;
                    left.push_back(parked);
                    break;
                }
            }
        }
        let waiting = &mut self.pools[p].waiting;
        left.append(&mut waiting.parked);
        waiting.parked = left;
    }

    /// Whether a request that finds no space has to be told so now.
    fn is_over(&self, p: usize, parked: &Parked, now_ns: u64) -> bool {
        self.is_late(p, parked, now_ns) || !self.waits_for_space(p as u32, parked.volume)
    }

    /// Whether nothing that waits has got on for as long as it may wait.
    fn is_late(&self, p: usize, parked: &Parked, now_ns: u64) -> bool {
        let moved_ns = self.pools[p].waiting.moved_ns;
        now_ns >= parked.since_ns.max(moved_ns).saturating_add(self.full_wait_ns)
    }

    fn try_parked(&mut self, p: usize, parked: &mut Parked, now_ns: u64) -> Attempt {
        if !self.stop.is_running() {
            return Attempt::Failed(SubmitError::Stopping);
        }
        let (attempt, moved) = match &mut parked.work {
            Work::Local => return self.try_local(p, parked, now_ns),
            Work::Write { offset, data, done, durability, .. } => {
                let tag = Name::Request(parked.request).tag();
                let (pool, mut parts) = (&mut self.pools[p], 0);
                let attempt = loop {
                    let (at, rest) = (*offset + *done as u64, &data[*done..]);
                    let bufs = self.ring.buffers();
                    match pool.engine.write(bufs, tag, parked.volume, at, rest, *durability) {
                        Ok(bytes) => {
                            *done += bytes;
                            parts += 1;
                        }
                        Err(error) => break refused(error),
                    }
                    if *done == data.len() {
                        break Attempt::Done;
                    }
                };
                (attempt, parts)
            }
            Work::Zero { next, end, mode, durability } => {
                let tag = Name::Request(parked.request).tag();
                let (pool, mut parts) = (&mut self.pools[p], 0);
                let attempt = loop {
                    if parts as usize == ZERO_CALLS {
                        self.hungry = true;
                        break Attempt::Busy;
                    }
                    let (volume, len) = (parked.volume, *end - *next);
                    let bufs = self.ring.buffers();
                    match pool.engine.zero(bufs, tag, volume, *next, len, *mode, *durability) {
                        Ok(bytes) => {
                            *next += bytes;
                            parts += 1;
                        }
                        Err(error) => break refused(error),
                    }
                    if next == end {
                        break Attempt::Done;
                    }
                };
                (attempt, parts)
            }
        };
        let pool = &mut self.pools[p];
        pool.touched |= moved > 0 || matches!(attempt, Attempt::Busy);
        if moved > 0 {
            pool.waiting.moved_ns = now_ns;
        }
        if let Some(entry) = self.requests.get_mut(parked.request) {
            entry.outstanding += moved;
        }
        attempt
    }

    fn try_local(&mut self, p: usize, parked: &Parked, now_ns: u64) -> Attempt {
        if self.local_is_abandoned(parked.request) {
            return Attempt::Failed(SubmitError::NoSpace);
        }
        let before = self.local_submitted(parked.request);
        let attempt = match self.advance_local(parked.request) {
            Progress::More => Attempt::Done,
            Progress::Full => Attempt::Full,
            Progress::Yields => {
                self.hungry = true;
                Attempt::Busy
            }
            _ => Attempt::Busy,
        };
        if self.local_submitted(parked.request) != before {
            self.pools[p].waiting.moved_ns = now_ns;
        }
        attempt
    }

    /// A parked request is submitted in full, or will not be.
    fn end_parked(&mut self, p: usize, parked: Parked, error: Option<SubmitError>) {
        let Some(c) = parked.connection else {
            if let Some(error) = error {
                self.fail_local(parked.request, IoError::from(error));
            }
            return;
        };
        self.give_parked_memory(c, &parked);
        if let Work::Write { whole: false, durability, .. } = parked.work {
            // What is still to come of it is of no use; behind that it will be answered.
            let connection = &mut self.connections[c as usize];
            connection.session.skip_payload();
            let request = parked.request;
            connection.current = Some(Current::Write { request, durability, parked: false });
            self.enqueue(c);
            return self
                .fail(request, errno(Failure::Submit(error.unwrap_or(SubmitError::NoSpace))));
        }
        // Memory is there for those that stall, and the others may be tried.
        self.pools[p].waiting.again |= !self.pools[p].waiting.stalled.is_empty();
        if let Some(error) = error {
            self.fail(parked.request, errno(Failure::Submit(error)));
        }
        let Some(entry) = self.requests.get_mut(parked.request) else { return };
        entry.submitted = true;
        if entry.is_over() {
            self.finish(parked.request);
        }
    }

    fn give_parked_memory(&mut self, c: u32, parked: &Parked) {
        if let Work::Write { bytes, .. } = &parked.work {
            self.connections[c as usize].parked_bytes -= bytes;
            self.parked_bytes -= bytes;
        }
    }

    /// A connection gets on, or has been told that it will not.
    pub(super) fn unstall(&mut self, c: u32) {
        let connection = &mut self.connections[c as usize];
        if connection.full_since_ns.take().is_some()
            && let Some(opened) = connection.opened
        {
            let waiting = &mut self.pools[opened.pool as usize].waiting;
            waiting.stalled.retain(|&(other, _)| other != c);
        }
    }

    /// Forgets what a connection has parked: all of it, or the request that it is receiving.
    pub(super) fn forget_parked(&mut self, c: u32, only: Option<u32>) {
        let Some(opened) = self.connections[c as usize].opened else { return };
        let p = opened.pool as usize;
        self.unstall(c);
        let all = std::mem::take(&mut self.pools[p].waiting.parked);
        let (gone, left): (VecDeque<_>, _) = all.into_iter().partition(|parked| {
            parked.connection == Some(c) && only.is_none_or(|request| parked.request == request)
        });
        self.pools[p].waiting.parked = left;
        for parked in gone {
            self.give_parked_memory(c, &parked);
            let Some(entry) = self.requests.get_mut(parked.request) else { continue };
            entry.submitted = true;
            entry.abandoned = true;
            if entry.outstanding == 0 && only.is_none() {
                self.forget(parked.request);
            }
        }
    }

    /// Has everything that waits tried or ended in the next turn.
    pub(super) fn wake_waiting(&mut self) {
        for pool in &mut self.pools {
            pool.waiting.again = true;
        }
    }

    fn waiting_deadline_ns(&self, p: usize) -> Option<u64> {
        Some(self.pools[p].waiting.oldest_ns()?.saturating_add(self.full_wait_ns))
    }

    /// When the first of those that wait has to be told.
    pub(super) fn waiting_until_ns(&self) -> Option<u64> {
        (0..self.pools.len()).filter_map(|p| self.waiting_deadline_ns(p)).min()
    }
}

fn refused(error: SubmitError) -> Attempt {
    match error {
        SubmitError::NoSpace => Attempt::Full,
        SubmitError::Busy => Attempt::Busy,
        error => Attempt::Failed(error),
    }
}

impl super::pool::Pool {
    /// Whether something that waits should be tried again.
    pub(super) fn has_news_for_waiting(&self) -> bool {
        let waiting = &self.waiting;
        !waiting.is_empty() && (waiting.again || waiting.epoch != self.engine.space_epoch())
    }

    fn park(&mut self, now_ns: u64, parked: Parked) {
        self.begin_waiting(now_ns);
        self.waiting.parked.push_back(parked);
    }

    /// The first to wait sees how the pool is now.
    fn begin_waiting(&mut self, now_ns: u64) {
        if self.waiting.is_empty() {
            self.waiting.moved_ns = now_ns;
            self.waiting.epoch = self.engine.space_epoch();
            if now_ns >= self.waiting.told_ns {
                self.waiting.told_ns = now_ns + TOLD_NS;
                let pool = self.path.display();
                tracing::warn!(%pool, "the pool is full: writes wait for space");
            }
        }
    }
}
