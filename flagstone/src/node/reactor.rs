//! The loop: one turn takes the ring's events, moves connections and engines on, and sends.
//!
//! ```text
//!   events --> connections parse --> engines --> device commands --\
//!     ^                                 |                           ring, one io_uring_enter
//!     |                                 v                          /
//!     \--------------------- completions --> replies, batched ----/
//! ```
//!
//! Everything of a node lives in [`Reactor`], on one thread; nothing here locks, blocks or, once
//! queues have grown to what the load needs, allocates. The parts: [`super::serve`] parses and
//! starts requests, [`super::submit`] hands them to the engines, [`super::finish`] takes what
//! they answer, [`super::run`] puts the pieces of long simple replies in order,
//! [`super::transmit`] sends, [`super::local`] serves this process itself, [`super::ublk`] the kernel's block devices, [`super::manage`] performs
//! control requests, [`super::walks`] those that take long, [`super::stop`] ends it.

use super::catalog::Catalog;
use super::connection::{Connection, Phase};
use super::control::{ControlRequest, NodeExit, NodeStats, VolumeIo};
use super::limits::{
    CONNECTION_BLOCKS, ENGINE_MARGIN_BLOCKS, HEADER_BLOCKS, RECEIVE_BLOCKS, REQUESTS_GUARANTEED,
    REQUESTS_SHARED, RESERVE_BLOCKS, RETRY_NS, WRITE_BYTES,
};
use super::local::{Local, LocalRequest};
use super::manage::{Change, PendingChange};
use super::pool::Pool;
use super::request::{Data, Name, Piece, Request};
use super::slab::Slab;
use super::status::Statuses;
use super::stop::Stop;
use super::ublk::Ublk;
use super::walks::Walks;
use crate::uri::NbdEndpoints;
use flagstone_block::{Buffer, Buffers, DeviceCommand};
use flagstone_engine::{OnFull, PoolState};
use flagstone_nbd::Session;
use flagstone_ring::{Event, ListenerId, Mailbox, Ring, SendPart, SocketId, TimerId};
use std::collections::VecDeque;

/// Rounds between connections and engines in one turn; what is left then waits for the next turn.
const ROUNDS: usize = 16;

/// See the module's documentation.
pub(super) struct Reactor {
    pub(super) ring: Ring,
    pub(super) pools: Vec<Pool>,
    pub(super) catalog: Catalog,
    pub(super) endpoints: NbdEndpoints,
    pub(super) listeners: Vec<ListenerId>,
    pub(super) mailbox: Mailbox<ControlRequest>,
    pub(super) handshake_ns: u64,

    pub(super) connections: Vec<Connection>,
    pub(super) free_connections: Vec<u32>,
    /// Which connection uses a socket slot of the ring.
    pub(super) by_socket: Vec<Option<u32>>,

    pub(super) requests: Slab<Request>,
    pub(super) pieces: Slab<Piece>,
    pub(super) changes: Slab<Change>,
    /// Control requests that an engine was too busy to take.
    pub(super) pending_changes: VecDeque<PendingChange>,
    /// Answers on their way for which maps are walked.
    pub(super) walks: Walks,

    /// Requests of this machine itself.
    pub(super) local: Local,
    /// Block devices of the kernel.
    pub(super) ublk: Ublk,

    /// Connections kept for the kernel: of devices that wait for one.
    pub(super) kernel_nbd_reserve: u32,
    /// Those devices, with their volumes.
    pub(super) kernel_nbd_waiting: Vec<(u32, u64)>,

    /// Connections that want a turn: blocked ones are tried again each time something happened.
    pub(super) queue: VecDeque<u32>,
    /// A connection used up its turn with work left, so there must be no sleep.
    pub(super) hungry: bool,
    /// An engine was too busy for somebody in this turn.
    pub(super) engine_busy: bool,
    /// Connections with something to send.
    pub(super) listed: Vec<u32>,

    /// What new volumes do when their pool is full, unless told otherwise.
    pub(super) default_on_full: OnFull,
    /// How long requests wait for space.
    pub(super) full_wait_ns: u64,
    /// Bytes of payload of requests that do.
    pub(super) parked_bytes: usize,

    /// Payload on its way from a receive buffer to an engine.
    pub(super) payload: Vec<u8>,
    /// Handshake replies before they go to a header buffer.
    pub(super) handshake_out: Vec<u8>,
    pub(super) statuses: Statuses,
    /// Connections whose next reply waits for a page of the map.
    pub(super) stalled: Vec<u32>,

    pub(super) stop: Stop,
    pub(super) stats: NodeStats,
    pub(super) started_ns: u64,
}

/// What [`Reactor::new`] needs beyond the ring.
pub(super) struct Parts {
    pub(super) pools: Vec<Pool>,
    pub(super) endpoints: NbdEndpoints,
    pub(super) mailbox: Mailbox<ControlRequest>,
    pub(super) local: Option<Mailbox<LocalRequest>>,
    pub(super) handshake_ns: u64,
    pub(super) full_wait_ns: u64,
    pub(super) default_on_full: OnFull,
    pub(super) max_connections: u32,
    pub(super) kernel_nbd_reserve: u32,
}

impl Reactor {
    /// Places every connection's buffers; `None` if the arena is too small for them.
    pub(super) fn new(mut ring: Ring, parts: Parts) -> Option<Self> {
        let mut connections = Vec::with_capacity(parts.max_connections as usize);
        for _ in 0..parts.max_connections {
            let bufs = ring.buffers();
            connections.push(Connection::new(
                bufs.alloc(RECEIVE_BLOCKS)?,
                bufs.alloc(HEADER_BLOCKS)?,
                bufs.alloc(RESERVE_BLOCKS)?,
            ));
        }
        let requests = REQUESTS_GUARANTEED * parts.max_connections as usize + REQUESTS_SHARED;
        let started_ns = ring.now_ns();
        let mut reactor = Self {
            started_ns,
            pools: parts.pools,
            catalog: Catalog::default(),
            endpoints: parts.endpoints,
            listeners: Vec::new(),
            mailbox: parts.mailbox,
            handshake_ns: parts.handshake_ns,
            connections,
            free_connections: (0..parts.max_connections).rev().collect(),
            by_socket: vec![None; parts.max_connections as usize],
            requests: Slab::with_capacity(requests),
            pieces: Slab::with_capacity(requests),
            changes: Slab::with_capacity(16),
            pending_changes: VecDeque::new(),
            walks: Walks::new(),
            local: Local::new(parts.local),
            ublk: Ublk::default(),
            kernel_nbd_reserve: parts.kernel_nbd_reserve,
            kernel_nbd_waiting: Vec::new(),
            queue: VecDeque::with_capacity(parts.max_connections as usize),
            full_wait_ns: parts.full_wait_ns,
            default_on_full: parts.default_on_full,
            parked_bytes: 0,
            hungry: false,
            engine_busy: false,
            listed: Vec::with_capacity(parts.max_connections as usize),
            payload: vec![0; WRITE_BYTES],
            handshake_out: vec![0; HEADER_BLOCKS as usize * flagstone_block::BLOCK_SIZE],
            statuses: Statuses::new(),
            stalled: Vec::new(),
            stop: Stop::Running,
            stats: NodeStats::default(),
            ring,
        };
        reactor.fill_catalog();
        Some(reactor)
    }

    /// Blocks of the arena that [`Reactor::new`] takes for `connections` of them, as the arena's
    /// allocator rounds them.
    pub(super) const fn connection_blocks(connections: u32) -> u64 {
        CONNECTION_BLOCKS as u64 * connections as u64
    }

    /// Serves until a stop has ended.
    pub(super) fn run(&mut self) -> Result<(), NodeExit> {
        loop {
            self.step(self.deadline_ns())?;
            if let Some(outcome) = self.advance_stop() {
                return outcome;
            }
        }
    }

    /// Waits for events, until `deadline_ns` if none come, and does what there is to be done.
    pub(super) fn step(&mut self, deadline_ns: Option<u64>) -> Result<(), NodeExit> {
        self.ring
            .submit_and_wait(deadline_ns)
            .map_err(|error| NodeExit::Reactor { reason: error.to_string() })?;
        while let Some(event) = self.ring.next_event() {
            self.handle(event);
        }
        self.turn();
        Ok(())
    }

    fn turn(&mut self) {
        self.hungry = false;
        self.engine_busy = false;
        let now_ns = self.ring.now_ns();
        self.advance_walks();
        self.retry_stalled();
        for _ in 0..ROUNDS {
            self.retry_changes();
            self.retry_waiting();
            self.run_queue();
            self.run_local();
            if !self.pump(now_ns) {
                break;
            }
        }
        self.transmit_listed();
        // Who is first to try again changes from turn to turn, so that nobody is always last.
        if self.queue.len() > 1 {
            self.queue.rotate_left(1);
        }
    }

    /// When the loop must go on without any event.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        if self.hungry || self.pools.iter().any(|pool| pool.touched) {
            return Some(0);
        }
        let engines = self.pools.iter().filter_map(|pool| pool.engine.next_timer_ns()).min();
        let waiting = self.engine_busy || !self.pending_changes.is_empty();
        let retry = waiting.then(|| self.ring.now_ns() + RETRY_NS);
        let waiting = self.waiting_until_ns();
        [engines, retry, waiting, self.stop_deadline_ns()].into_iter().flatten().min()
    }

    /// Gives a turn to everyone who was waiting for one when it began.
    fn run_queue(&mut self) {
        for _ in 0..self.queue.len() {
            let Some(c) = self.queue.pop_front() else { return };
            self.connections[c as usize].queued = false;
            self.run_connection(c);
        }
    }

    /// Pumps the engines that have reason to be, submits what they emit and takes what they
    /// answer. Returns whether another round could achieve something.
    fn pump(&mut self, now_ns: u64) -> bool {
        let mut answered = false;
        for p in 0..self.pools.len() {
            let pool = &mut self.pools[p];
            let due = pool.engine.next_timer_ns().is_some_and(|at| at <= now_ns);
            if !pool.touched && !due {
                continue;
            }
            pool.touched = false;
            pool.engine.pump(self.ring.buffers(), now_ns);
            if matches!(pool.engine.state(), PoolState::Failed(_)) {
                pool.note_failure();
            }
            pool.note_state();
            pool.note_scrub();
            while let Some(io) = pool.engine.next_io() {
                match io.command {
                    DeviceCommand::Read { .. } => self.stats.device_reads += 1,
                    DeviceCommand::Write { .. } => self.stats.device_writes += 1,
                    DeviceCommand::Flush => self.stats.device_flushes += 1,
                    // The pool's own counter tells how many ended well.
                    DeviceCommand::Discard { .. } => {}
                }
                // The engine names only devices that it was given.
                if let Some(member) = pool.member(usize::from(io.device)) {
                    self.ring.submit_device(member.id, io);
                }
            }
            self.take_removed(p);
            while let Some(completion) = self.pools[p].engine.next_completion() {
                answered = true;
                match Name::of(completion.tag) {
                    Some(Name::Request(request)) => self.part_done(request, completion.result),
                    Some(Name::Piece(piece)) => self.piece_done(piece, completion.result),
                    Some(Name::Control(change)) => self.change_done(change, completion.result),
                    Some(Name::Local(part)) => self.local_part_done(part, completion.result),
                    Some(Name::LocalPiece(piece)) => {
                        self.local_piece_done(piece, completion.result);
                    }
                    Some(Name::Growth(pool)) => self.growth_done(pool, completion.result),
                    Some(Name::Device(pool)) => self.device_change_done(pool, completion.result),
                    None => debug_assert!(false, "a tag that was never given out"),
                }
            }
        }
        let waiting =
            !self.queue.is_empty() || !self.pending_changes.is_empty() || self.local.is_waiting();
        let waiting = waiting || self.pools.iter().any(|pool| pool.has_news_for_waiting());
        (answered && waiting) || self.pools.iter().any(|pool| pool.touched)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Device { device, token, result } => {
                let Some(pool) = self.pools.iter_mut().find(|pool| pool.has(device)) else {
                    return;
                };
                // Once the pool has failed, its other writes under way have nothing to add.
                if let Err(error) = result
                    && pool.failure.is_none()
                {
                    tracing::error!(pool = %pool.path.display(), %error, "a device command failed");
                }
                pool.engine.device_done(self.ring.buffers(), token, result);
                pool.touched = true;
                if result.is_err() {
                    pool.note_failure();
                }
            }
            Event::Accepted { socket, .. } => self.accepted(socket),
            Event::ListenerFailed { errno, .. } => {
                tracing::error!(errno, "a listening socket failed; it accepts nothing any more");
            }
            Event::Received { socket, result } => {
                if let Some(c) = self.owner(socket) {
                    self.received(c, result);
                }
            }
            Event::Sent { socket, result } => {
                if let Some(c) = self.owner(socket) {
                    self.sent(c, result);
                }
            }
            Event::Closed { socket } => {
                if let Some(c) = self.by_socket[socket.slot()].take() {
                    self.connections[c as usize].socket = None;
                    self.release_if_over(c);
                }
            }
            Event::Woken => {
                self.read_mail();
                self.local.woken();
            }
            Event::Command { file, name, result } => self.ublk_event(file, name, result),
            Event::Timer { id, user } => self.handshake_timed_out(id, user),
        }
    }

    fn owner(&self, socket: SocketId) -> Option<u32> {
        self.by_socket[socket.slot()]
            .filter(|&c| self.connections[c as usize].socket == Some(socket))
    }

    fn accepted(&mut self, socket: SocketId) {
        self.stats.connections_accepted += 1;
        let has_room = self.free_connections.len() > self.kernel_nbd_reserve as usize;
        let takes = self.stop.is_running() && has_room;
        let free = if takes { self.free_connections.pop() } else { None };
        let Some(c) = free else {
            // Its slot may still be waiting for an engine to answer the client before it.
            self.stats.connections_refused += 1;
            self.ring.shutdown_socket(socket);
            return;
        };
        self.by_socket[socket.slot()] = Some(c);
        let connection = &mut self.connections[c as usize];
        connection.begin(socket);
        self.limit_handshake(c);
        self.stats.connections_now += 1;
        self.send_bytes(c, Session::greeting());
        self.want_input(c);
    }

    /// From now on the client has its time for the next step of its handshake.
    pub(super) fn limit_handshake(&mut self, c: u32) {
        let connection = &mut self.connections[c as usize];
        if let Some(timer) = connection.deadline.take() {
            self.ring.cancel_timer(timer);
        }
        let name = u64::from(connection.generation) << 32 | u64::from(c);
        let deadline_ns = self.ring.now_ns() + self.handshake_ns;
        connection.deadline = Some(self.ring.set_timer(deadline_ns, name));
    }

    fn handshake_timed_out(&mut self, timer: TimerId, name: u64) {
        let (c, generation) = (name as u32, (name >> 32) as u32);
        let connection = &mut self.connections[c as usize];
        // It may have been renewed by what was received in the same turn.
        let due = connection.deadline == Some(timer);
        if due && connection.generation == generation && connection.phase == Phase::Handshake {
            connection.deadline = None;
            self.stats.connections_dropped += 1;
            tracing::debug!(connection = c, "dropped: its handshake did not go on");
            self.kill(c);
        }
    }

    fn received(&mut self, c: u32, result: Result<usize, i32>) {
        let connection = &mut self.connections[c as usize];
        connection.receiving = false;
        match result {
            Ok(0) | Err(_) => connection.ended = true,
            Ok(bytes) => connection.end += bytes,
        }
        if connection.phase == Phase::Dead {
            self.release_if_over(c);
        } else {
            self.run_connection(c);
        }
    }

    fn sent(&mut self, c: u32, result: Result<(), i32>) {
        self.connections[c as usize].sending = false;
        while let Some(data) = self.connections[c as usize].in_send.pop() {
            self.give_back(c, data);
        }
        let connection = &mut self.connections[c as usize];
        match connection.phase {
            Phase::Dead => self.release_if_over(c),
            _ if result.is_err() => self.kill(c),
            Phase::Handshake => self.run_connection(c),
            _ => {
                self.list(c);
                // The data that was sent may be what it was waiting for.
                self.enqueue(c);
            }
        }
    }

    /// Gives the connection a turn when the present ones are over.
    pub(super) fn enqueue(&mut self, c: u32) {
        let connection = &mut self.connections[c as usize];
        if !connection.queued {
            connection.queued = true;
            self.queue.push_back(c);
        }
    }

    /// Has the connection looked at when this turn sends.
    pub(super) fn list(&mut self, c: u32) {
        let connection = &mut self.connections[c as usize];
        if !connection.listed {
            connection.listed = true;
            self.listed.push(c);
        }
    }

    /// Receives more, behind what is there.
    pub(super) fn want_input(&mut self, c: u32) {
        let connection = &mut self.connections[c as usize];
        let Some(socket) = connection.socket else { return };
        if connection.receiving || connection.ended {
            return;
        }
        if connection.start > 0 {
            let all = connection.receive_buffer;
            let kept = connection.start..connection.end;
            self.ring.buffers().bytes_mut(all).copy_within(kept, 0);
            connection.end -= connection.start;
            connection.start = 0;
        }
        let room = connection.receive_buffer.len() - connection.end;
        match self.ring.recv(socket, connection.receive_buffer, connection.end, room) {
            Ok(()) => connection.receiving = true,
            Err(_) => connection.ended = true,
        }
    }

    /// Sends bytes that are no transmission reply. The header buffer must be free.
    pub(super) fn send_bytes(&mut self, c: u32, bytes: &[u8]) {
        let connection = &mut self.connections[c as usize];
        let Some(socket) = connection.socket else { return };
        debug_assert!(!connection.sending);
        let buffer = connection.header_buffer;
        self.ring.buffers().bytes_mut(buffer)[..bytes.len()].copy_from_slice(bytes);
        let part = SendPart { buffer, from: 0, len: bytes.len() };
        connection.sending = self.ring.send(socket, &[part]).is_ok();
    }

    /// Memory for data of a READ: `wanted` blocks, or fewer but not less than `least`, from the
    /// shared part or the connection's reserve.
    pub(super) fn take_data(&mut self, c: u32, wanted: u32, least: u32) -> Option<Data> {
        // As much as it leaves free to others: used + n <= free - n.
        let free = self.shared_free();
        let connection = &mut self.connections[c as usize];
        let arena = self.ring.buffers();
        let allowed = free.saturating_sub(connection.shared_blocks) / 2;
        let mut blocks = wanted.min(allowed);
        while blocks >= least {
            if let Some(buffer) = arena.alloc(blocks) {
                connection.shared_blocks += blocks;
                return Some(Data { buffer, reserve: false });
            }
            if blocks == least {
                break;
            }
            blocks = (blocks / 2).max(least);
        }
        if connection.reserve_taken || connection.reserve.blocks < least {
            return None;
        }
        connection.reserve_taken = true;
        let buffer = connection.reserve.part(0, wanted.min(connection.reserve.blocks));
        Some(Data { buffer, reserve: true })
    }

    /// Blocks that are free for data of READs.
    pub(super) fn shared_free(&self) -> u32 {
        let margin = ENGINE_MARGIN_BLOCKS * self.pools.len() as u32;
        self.ring.buffers_ref().free_blocks().saturating_sub(margin)
    }

    pub(super) fn give_back(&mut self, c: u32, data: Data) {
        let connection = &mut self.connections[c as usize];
        if data.reserve {
            connection.reserve_taken = false;
        } else {
            connection.shared_blocks -= data.buffer.blocks;
            self.ring.buffers().free(data.buffer);
        }
    }

    /// Ends a connection at once. What the engines still have for it is finished, unanswered.
    pub(super) fn kill(&mut self, c: u32) {
        let connection = &mut self.connections[c as usize];
        if matches!(connection.phase, Phase::Dead | Phase::Free) {
            return;
        }
        self.forget_parked(c, None);
        let connection = &mut self.connections[c as usize];
        connection.phase = Phase::Dead;
        if let Some(timer) = connection.deadline.take() {
            self.ring.cancel_timer(timer);
        }
        if let Some(socket) = connection.socket {
            self.ring.shutdown_socket(socket);
        }
        if let Some(opened) = connection.opened.take() {
            self.catalog.count_io(opened.handle, &std::mem::take(&mut connection.io));
            self.catalog.opened(opened.handle, false);
        }
        self.stats.connections_now -= 1;
        self.drop_replies(c);
        self.drop_parts(c);
        self.abandon_current(c);
        self.release_if_over(c);
    }

    /// Has volumes count what their connections have counted: before somebody looks. Requests count where
    /// they are answered, so that nobody looks a volume up for each.
    pub(super) fn settle_io(&mut self) {
        for connection in &mut self.connections {
            if let Some(opened) = &connection.opened
                && connection.io != VolumeIo::default()
            {
                self.catalog.count_io(opened.handle, &std::mem::take(&mut connection.io));
            }
        }
    }

    /// Frees the slot once nothing refers to it any more.
    pub(super) fn release_if_over(&mut self, c: u32) {
        let connection = &mut self.connections[c as usize];
        let over = connection.phase == Phase::Dead
            && connection.socket.is_none()
            && connection.requests == 0;
        if over {
            debug_assert!(!connection.sending && !connection.receiving);
            debug_assert!(connection.shared_blocks == 0 && !connection.reserve_taken);
            debug_assert!(connection.fetching_blocks == 0 && connection.parts.is_empty());
            (connection.phase, connection.kernel) = (Phase::Free, None);
            self.free_connections.push(c);
        }
    }

    /// Whether the pool takes requests, for the control API.
    pub(super) fn is_serving(&self, pool: usize) -> bool {
        self.pools[pool].engine.state() == PoolState::Running
    }

    /// Bytes of the arena in use and in all.
    pub(super) fn buffer_bytes(&self) -> (u64, u64) {
        let arena = self.ring.buffers_ref();
        let block = flagstone_block::BLOCK_SIZE as u64;
        let total = u64::from(arena.capacity_blocks()) * block;
        (total - u64::from(arena.free_blocks()) * block, total)
    }

    /// The buffers of every connection slot, to be given back when the node ends.
    pub(super) fn fixed_buffers(&self) -> impl Iterator<Item = Buffer> + '_ {
        self.connections.iter().flat_map(|connection| {
            [connection.receive_buffer, connection.header_buffer, connection.reserve]
        })
    }
}
