//! The server's side of a connection: from session steps to engine calls and back.

use super::{BLOCK, Connection, Fetch, Front, Part, Served, errno, fetched};
use crate::client::Offer;
use crate::world::{Check, Submitted, World, WritePart};
use flagstone_block::{BLOCK_SIZE, Buffers, Durability, ZeroMode};
use flagstone_engine::{IoFault, StatusKind, SubmitError};
use flagstone_nbd::reply::{self, StatusExtent};
use flagstone_nbd::testing::ExportList;
use flagstone_nbd::{Command, Errno, Out, Payload, ReplyTo, Request, Step, Style, limits, proto};

/// What a connection is submitting.
#[derive(Clone, Copy, Debug)]
pub(super) enum Current {
    Read { request: u64, next: u64, end: u64, whole: bool },
    Write { request: u64, stamp: u64, start: u64, durability: Durability },
    Zero { request: u64, next: u64, end: u64, mode: ZeroMode, durability: Durability },
    Flush { request: u64 },
}

impl Connection {
    fn send(&mut self, write: impl FnOnce(&mut Out<'_>)) {
        let mut bytes = [0; limits::HANDSHAKE_REPLY_BYTES];
        let mut out = Out::new(&mut bytes);
        write(&mut out);
        let len = out.len();
        self.downstream.extend_from_slice(&bytes[..len]);
    }

    fn answer(&mut self, to: ReplyTo, result: Result<(), Errno>) {
        let style = self.style;
        self.send(|out| match result {
            Ok(()) => reply::success(style, to, out),
            Err(errno) => reply::error(style, to, errno, out),
        });
    }

    fn begin(&mut self, to: ReplyTo, is_read: bool) -> u64 {
        let request = self.next_request;
        self.next_request += 1;
        let served = Served { to, is_read, outstanding: 0, submitted: false, error: None };
        self.served.insert(request, served);
        request
    }

    /// All of a request is with the engine, or refused.
    fn submitted(&mut self, request: u64) {
        self.current = None;
        if let Some(served) = self.served.get_mut(&request) {
            served.submitted = true;
        }
        self.finish_if_over(request);
    }

    fn refuse(&mut self, request: u64, error: SubmitError) {
        let errno = match error {
            SubmitError::NoSpace => Errno::NoSpace,
            SubmitError::NoVolume | SubmitError::Stopping => Errno::Shutdown,
            _ => Errno::Io,
        };
        if let Some(served) = self.served.get_mut(&request) {
            served.error.get_or_insert(errno);
        }
    }

    fn finish_if_over(&mut self, request: u64) {
        let Some(served) = self.served.get(&request) else { return };
        if !served.submitted || served.outstanding > 0 {
            return;
        }
        let (to, error, is_read) = (served.to, served.error, served.is_read);
        self.served.remove(&request);
        let style = self.style;
        match (is_read, error) {
            // Its data went out with the header.
            (true, None) if style == Style::Simple => {}
            (true, None) => self.send(|out| reply::read_done(style, to, out)),
            (_, Some(errno)) => self.answer(to, Err(errno)),
            (false, None) => self.answer(to, Ok(())),
        }
    }
}

impl Front {
    /// Takes one step for connection `c`.
    pub(super) fn serve(&mut self, world: &mut World, c: usize) -> Check<Offer> {
        match self.connections[c].current {
            Some(Current::Write { .. }) | None => self.step(world, c),
            Some(Current::Read { request, next, end, whole }) => {
                self.read(world, c, request, next, end, whole)
            }
            Some(Current::Zero { request, next, end, mode, durability }) => {
                self.zero(world, c, request, next, end, mode, durability)
            }
            Some(Current::Flush { request }) => {
                let owner = self.new_part(Part { connection: c, request, fetch: None });
                let submitted = world.flush(owner)?;
                self.settle_part(c, request, owner, submitted.map(|()| 0));
                if submitted != Submitted::Busy {
                    self.connections[c].submitted(request);
                }
                Ok(offer_of(submitted))
            }
        }
    }

    /// Books what the engine said to a part.
    fn settle_part(&mut self, c: usize, request: u64, owner: u64, submitted: Submitted<u64>) {
        let connection = &mut self.connections[c];
        match submitted {
            Submitted::Taken(_) => {
                if let Some(served) = connection.served.get_mut(&request) {
                    served.outstanding += 1;
                }
            }
            Submitted::Busy => self.drop_part(owner),
            Submitted::Refused(error) => {
                connection.refuse(request, error);
                self.drop_part(owner);
            }
        }
    }

    fn step(&mut self, world: &mut World, c: usize) -> Check<Offer> {
        let connection = &mut self.connections[c];
        let exports = ExportList::one(&connection.name, connection.size);
        let mut bytes = [0; limits::HANDSHAKE_REPLY_BYTES];
        let mut out = Out::new(&mut bytes);
        let received = connection.session.receive(&connection.inbox, &exports, &mut out);
        let len = out.len();
        connection.downstream.extend_from_slice(&bytes[..len]);
        connection.inbox.drain(..received.consumed);
        match received.step {
            Step::NeedMore => Ok(if len > 0 { Offer::Progress } else { Offer::Idle }),
            Step::NeedRoom | Step::Again | Step::Opened(_) => Ok(Offer::Progress),
            Step::PayloadOver => {
                if let Some(Current::Write { request, .. }) = connection.current {
                    connection.submitted(request);
                }
                Ok(Offer::Progress)
            }
            Step::Answer(to, result) => {
                connection.answer(to, result);
                Ok(Offer::Progress)
            }
            Step::Request(request) => self.request(world, c, &request),
            Step::Payload(payload) => self.payload(world, c, payload),
            Step::Close(reason) => Err(world.fail(format!("the session closed: {reason}"))),
        }
    }

    fn request(&mut self, world: &mut World, c: usize, asked: &Request) -> Check<Offer> {
        let connection = &mut self.connections[c];
        let (next, end) = (asked.offset, asked.offset + asked.len);
        if let Command::BlockStatus { one } = asked.command {
            return self.status(world, c, asked, one);
        }
        let request = connection.begin(asked.to, matches!(asked.command, Command::Read { .. }));
        connection.current = Some(match asked.command {
            Command::Read { whole } => {
                let whole = whole || connection.style == Style::Simple;
                Current::Read { request, next, end, whole }
            }
            Command::Write { durability } => {
                let known = connection.asked.get(&asked.to.cookie);
                let Some(sent) = known.filter(|a| (a.offset, a.len) == (next, asked.len)) else {
                    return Err(world.fail("a WRITE that the client did not send"));
                };
                Current::Write { request, stamp: sent.stamp, start: next, durability }
            }
            Command::Flush => Current::Flush { request },
            Command::Zero { mode, durability } => {
                Current::Zero { request, next, end, mode, durability }
            }
            Command::BlockStatus { .. } => return Ok(Offer::Progress),
        });
        Ok(Offer::Progress)
    }

    fn status(&mut self, world: &mut World, c: usize, asked: &Request, one: bool) -> Check<Offer> {
        let connection = &mut self.connections[c];
        let extents_max = if one { 1 } else { 8 };
        let extents = world.status(connection.volume, asked.offset, asked.len, extents_max)?;
        let extents: Vec<StatusExtent> = extents
            .iter()
            .map(|extent| StatusExtent {
                len: extent.len,
                flags: match extent.kind {
                    StatusKind::Data => 0,
                    StatusKind::Zero => proto::STATE_ZERO,
                    StatusKind::Hole => proto::STATE_HOLE | proto::STATE_ZERO,
                },
            })
            .collect();
        let (style, to) = (connection.style, asked.to);
        connection.send(|out| {
            reply::block_status(style, to, &extents, out);
        });
        Ok(Offer::Progress)
    }

    /// Hands payload to the engine: whole blocks, or all that the request has for one block.
    fn payload(&mut self, world: &mut World, c: usize, payload: Payload) -> Check<Offer> {
        let connection = &mut self.connections[c];
        let Some(Current::Write { request, stamp, start, durability }) = connection.current else {
            return Err(world.fail("payload of nothing"));
        };
        let Payload { offset, left, here } = payload;
        let in_block = offset % BLOCK;
        let needed = u64::from(left).min(BLOCK - in_block) as usize;
        if here < needed {
            return Ok(Offer::Idle);
        }
        let data = if in_block == 0 && here >= BLOCK_SIZE {
            // A last partial block that is not all here must wait.
            let whole = here / BLOCK_SIZE * BLOCK_SIZE;
            connection.inbox[..whole].to_vec()
        } else {
            connection.inbox[..needed].to_vec()
        };
        let volume = connection.volume;
        let owner = self.new_part(Part { connection: c, request, fetch: None });
        let part = WritePart { volume, offset, data: &data, stamp, start, durability };
        let submitted = world.write(owner, part)?;
        self.settle_part(c, request, owner, submitted);
        let connection = &mut self.connections[c];
        match submitted {
            Submitted::Taken(taken) => {
                connection.inbox.drain(..taken as usize);
                if connection.session.payload_used(taken as usize) == 0 {
                    connection.submitted(request);
                }
            }
            Submitted::Busy => {}
            // Answered once the payload has passed.
            Submitted::Refused(_) => connection.session.skip_payload(),
        }
        Ok(offer_of(submitted))
    }

    #[allow(clippy::too_many_arguments)] // the fields of what is under way
    fn zero(
        &mut self,
        world: &mut World,
        c: usize,
        request: u64,
        next: u64,
        end: u64,
        mode: ZeroMode,
        durability: Durability,
    ) -> Check<Offer> {
        let volume = self.connections[c].volume;
        let owner = self.new_part(Part { connection: c, request, fetch: None });
        let submitted = world.zero(owner, volume, next, end - next, mode, durability)?;
        self.settle_part(c, request, owner, submitted);
        let connection = &mut self.connections[c];
        match submitted {
            Submitted::Taken(taken) if next + taken < end => {
                let next = next + taken;
                connection.current = Some(Current::Zero { request, next, end, mode, durability });
            }
            Submitted::Busy => {}
            _ => connection.submitted(request),
        }
        Ok(offer_of(submitted))
    }

    fn read(
        &mut self,
        world: &mut World,
        c: usize,
        request: u64,
        next: u64,
        end: u64,
        whole: bool,
    ) -> Check<Offer> {
        let volume = self.connections[c].volume;
        let most = if whole { 256 } else { world.rng.pick(&[1, 3, 16, 64]) };
        let first = next / BLOCK;
        let blocks = (end.div_ceil(BLOCK) - first).min(most);
        let Some(buffer) = world.arena.alloc(blocks as u32) else { return Ok(Offer::Busy) };
        let skip = next - first * BLOCK;
        let len = (blocks * BLOCK - skip).min(end - next);
        let fetch = Fetch { buffer, skip: skip as usize, len: len as usize, offset: next };
        let owner = self.new_part(Part { connection: c, request, fetch: Some(fetch) });
        let submitted = world.read(owner, volume, first, buffer)?;
        self.settle_part(c, request, owner, submitted.map(|()| 0));
        if submitted != Submitted::Taken(()) {
            world.arena.free(buffer);
        }
        let connection = &mut self.connections[c];
        match submitted {
            Submitted::Taken(()) if next + len < end => {
                let next = next + len;
                connection.current = Some(Current::Read { request, next, end, whole });
            }
            Submitted::Busy => {}
            _ => connection.submitted(request),
        }
        Ok(offer_of(submitted))
    }

    /// The engine has answered a part.
    pub(super) fn part_ended(
        &mut self,
        world: &mut World,
        part: Part,
        result: Result<(), IoFault>,
    ) {
        let connection = &mut self.connections[part.connection];
        let style = connection.style;
        let Some(served) = connection.served.get_mut(&part.request) else { return };
        served.outstanding -= 1;
        let to = served.to;
        if let Some(fetch) = part.fetch {
            match result {
                Ok(()) => {
                    let bytes = fetched(world, &fetch).to_vec();
                    connection.send(|out| match style {
                        Style::Simple => reply::success(style, to, out),
                        _ => reply::data(style, to, fetch.offset, fetch.len as u32, false, out),
                    });
                    connection.downstream.extend_from_slice(&bytes);
                }
                Err(fault) if style == Style::Simple => served.error = Some(errno(fault)),
                Err(fault) => {
                    let at = match fault {
                        IoFault::BadBlock { lba } => (lba * BLOCK).max(fetch.offset),
                        _ => fetch.offset,
                    };
                    connection.send(|out| {
                        reply::error_at(style, to, errno(fault), at, false, out);
                    });
                }
            }
            world.arena.free(fetch.buffer);
        } else if let Err(fault) = result {
            served.error.get_or_insert(errno(fault));
        }
        self.connections[part.connection].finish_if_over(part.request);
    }
}

fn offer_of<T>(submitted: Submitted<T>) -> Offer {
    match submitted {
        Submitted::Busy => Offer::Busy,
        _ => Offer::Progress,
    }
}
