//! Clients that speak NBD to the engine: real sessions on both sides, bytes in any cut between.
//!
//! The client side knows what it sent and judges what it gets by the model, from the moment it
//! sent a request to the moment it has the reply. The server side maps requests to engine calls
//! the way the node does. What is not here: sockets, limits on memory, several pools.

mod server;

use crate::client::Offer;
use crate::config::Mix;
use crate::content::Place;
use crate::world::{Check, Owner, World, payload};
use flagstone_block::{BLOCK_SIZE, Buffer, Buffers, ZeroMode};
use flagstone_engine::IoFault;
use flagstone_nbd::testing::{Client, Event, Outcome};
use flagstone_nbd::{Errno, ReplyTo, Session, Style, proto};
use std::collections::BTreeMap;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// What a client asked and has no reply to.
#[derive(Debug)]
struct Asked {
    kind: u16,
    offset: u64,
    len: u64,
    /// Stamp of a WRITE's first block.
    stamp: u64,
    /// Of a READ's blocks, the oldest versions that they may have.
    oldest: Vec<u32>,
    full_before: u64,
    bad_before: u64,
}

/// A request as the server sees it.
#[derive(Debug)]
struct Served {
    to: ReplyTo,
    is_read: bool,
    outstanding: u32,
    submitted: bool,
    error: Option<Errno>,
}

/// A part of a request that the engine has.
#[derive(Clone, Copy, Debug)]
struct Part {
    connection: usize,
    request: u64,
    /// Of a READ: where its bytes go and which of them are wanted.
    fetch: Option<Fetch>,
}

#[derive(Clone, Copy, Debug)]
struct Fetch {
    buffer: Buffer,
    skip: usize,
    len: usize,
    offset: u64,
}

#[derive(Debug)]
struct Connection {
    volume: u32,
    size: u64,
    name: String,
    style: Style,
    client: Client,
    session: Session,
    /// On the way to the server, at the server, on the way to the client.
    upstream: Vec<u8>,
    inbox: Vec<u8>,
    downstream: Vec<u8>,
    opened: bool,
    current: Option<server::Current>,
    served: BTreeMap<u64, Served>,
    next_request: u64,
    asked: BTreeMap<u64, Asked>,
}

/// All connections of one life.
#[derive(Debug, Default)]
pub struct Front {
    connections: Vec<Connection>,
    parts: Vec<Option<Part>>,
    vacant: Vec<usize>,
}

impl Front {
    /// Forgets everything, as a crash does.
    pub fn forget(&mut self) {
        self.connections.clear();
        self.parts.clear();
        self.vacant.clear();
    }

    /// Gives back what the front holds, before a clean stop: nothing is under way any more.
    ///
    /// # Errors
    /// As [`Front::offer`].
    pub fn finish(&mut self, world: &mut World) -> Check {
        self.absorb(world)?;
        self.forget();
        Ok(())
    }

    /// Moves some bytes, sends a request, or serves one.
    ///
    /// # Errors
    /// A broken promise of the engine or of the protocol.
    pub fn offer(&mut self, world: &mut World) -> Check<Offer> {
        if self.connections.is_empty() {
            self.connect(world);
        }
        if self.connections.is_empty() {
            return Ok(Offer::Idle);
        }
        let mut moved = self.absorb(world)?;
        let mut busy = false;
        let count = self.connections.len();
        let start = world.rng.below(count as u64) as usize;
        for i in (start..count).chain(0..start) {
            moved |= self.ask(world, i);
            moved |= self.carry(world, i)?;
            match self.serve(world, i)? {
                Offer::Progress => moved = true,
                Offer::Busy => busy = true,
                Offer::Idle => {}
            }
            if moved && world.rng.one_in(2) {
                break;
            }
        }
        Ok(match (moved, busy) {
            (true, _) => Offer::Progress,
            (false, true) => Offer::Busy,
            (false, false) => Offer::Idle,
        })
    }

    fn connect(&mut self, world: &mut World) {
        let volumes: Vec<u32> = world.oracle.live_volumes().collect();
        if volumes.is_empty() {
            return;
        }
        for _ in 0..world.rng.between(1, 4) {
            let volume = world.rng.pick(&volumes);
            let style = world.rng.pick(&[Style::Simple, Style::Structured, Style::Extended]);
            let name = world.oracle.volume(volume).map_or(String::new(), |v| v.name.clone());
            world.log.step(&[60, u64::from(volume), style as u64], || {
                format!("connection {} to volume {volume}, {style:?}", self.connections.len())
            });
            self.connections.push(Connection {
                volume,
                size: world.oracle.usable_size(volume),
                client: Client::new(&name, style),
                name,
                style,
                session: Session::new(),
                upstream: Vec::new(),
                inbox: Vec::new(),
                downstream: Session::greeting().to_vec(),
                opened: false,
                current: None,
                served: BTreeMap::new(),
                next_request: 0,
                asked: BTreeMap::new(),
            });
        }
    }

    /// Takes the engine's answers.
    fn absorb(&mut self, world: &mut World) -> Check<bool> {
        let answers = std::mem::take(&mut world.answers);
        let any = !answers.is_empty();
        for (owner, result) in answers {
            let i = owner as usize - 1;
            let Some(part) = self.parts[i].take() else {
                return Err(world.fail("an answer to a part that nobody waits for"));
            };
            self.vacant.push(i);
            self.part_ended(world, part, result);
        }
        Ok(any)
    }

    fn new_part(&mut self, part: Part) -> Owner {
        let i = self.vacant.pop().unwrap_or_else(|| {
            self.parts.push(None);
            self.parts.len() - 1
        });
        self.parts[i] = Some(part);
        i as Owner + 1
    }

    /// The engine did not take the part after all.
    fn drop_part(&mut self, owner: Owner) {
        let i = owner as usize - 1;
        self.parts[i] = None;
        self.vacant.push(i);
    }

    /// The client of connection `c` sends a request, if it likes.
    fn ask(&mut self, world: &mut World, c: usize) -> bool {
        let depth = world.config.depth;
        let connection = &mut self.connections[c];
        if !connection.opened || connection.client.in_flight() >= depth || world.rng.one_in(3) {
            return false;
        }
        let Mix { write, partial, read, flush, discard, zero, keep, status, .. } = world.config.mix;
        let weights = [write, partial, read, flush, discard, zero, keep, status];
        let fua = if world.rng.percent(world.config.fua) { proto::CMD_FLAG_FUA } else { 0 };
        let which = world.rng.weighted(&weights);
        let aligned = match which {
            0 => true,
            1 => false,
            _ => world.rng.percent(world.config.whole),
        };
        let (offset, mut len) = crate::client::range(world, connection.size, aligned);
        if let 4..=6 = which {
            let keep = if which == 6 { ZeroMode::KeepAllocated } else { ZeroMode::Discard };
            len = crate::client::longer(world, connection.size, offset, len, keep);
            len = len.min(u64::from(u32::MAX));
        }
        let (mut stamp, mut oldest) = (0, Vec::new());
        let blocks = (offset + len).div_ceil(BLOCK) - offset / BLOCK;
        let client = &mut connection.client;
        let (kind, cookie) = match which {
            0 | 1 => {
                stamp = world.stamps(blocks);
                let bytes = payload(connection.volume, offset, len, stamp);
                (proto::CMD_WRITE, client.write(fua, offset, &bytes))
            }
            2 => {
                oldest = world.oracle.begin_read(connection.volume, offset / BLOCK, blocks);
                let whole = connection.style.has_chunks() && len <= 65536 && world.rng.one_in(4);
                let flags = if whole { proto::CMD_FLAG_DF } else { 0 };
                (proto::CMD_READ, client.request(proto::CMD_READ, flags, offset, len))
            }
            3 => (proto::CMD_FLUSH, client.flush()),
            4 => (proto::CMD_TRIM, client.request(proto::CMD_TRIM, fua, offset, len)),
            5 | 6 => {
                let flags = fua | if which == 6 { proto::CMD_FLAG_NO_HOLE } else { 0 };
                let kind = proto::CMD_WRITE_ZEROES;
                (kind, client.request(kind, flags, offset, len))
            }
            _ if !connection.style.has_chunks() => return false,
            _ => {
                let flags = if world.rng.one_in(3) { proto::CMD_FLAG_REQ_ONE } else { 0 };
                let kind = proto::CMD_BLOCK_STATUS;
                (kind, client.request(kind, flags, offset, len))
            }
        };
        let (full_before, bad_before) = (world.stats.full, world.stats.bad_blocks);
        let asked = Asked { kind, offset, len, stamp, oldest, full_before, bad_before };
        connection.asked.insert(cookie, asked);
        world.log.step(&[61, c as u64, u64::from(kind), offset, len], || {
            format!("client {c} sends {cookie}: command {kind}, bytes {offset}..{}", offset + len)
        });
        let bytes = connection.client.take_output();
        connection.upstream.extend_from_slice(&bytes);
        true
    }

    /// Bytes travel, in any cut.
    fn carry(&mut self, world: &mut World, c: usize) -> Check<bool> {
        let connection = &mut self.connections[c];
        let first = connection.client.take_output();
        connection.upstream.extend_from_slice(&first);
        let mut moved = false;
        // The server takes no more than it can use: it stops reading when it is busy.
        if !connection.upstream.is_empty() && connection.inbox.len() < 64 << 10 {
            let count = cut(world, connection.upstream.len());
            connection.inbox.extend(connection.upstream.drain(..count));
            moved = true;
        }
        if !connection.downstream.is_empty() {
            let count = cut(world, connection.downstream.len());
            let bytes: Vec<u8> = connection.downstream.drain(..count).collect();
            let mut events = Vec::new();
            if let Err(violation) = connection.client.receive(&bytes, &mut events) {
                return Err(world.fail(format!("connection {c}: {violation}")));
            }
            for event in events {
                self.heard(world, c, event)?;
            }
            moved = true;
        }
        Ok(moved)
    }

    fn heard(&mut self, world: &mut World, c: usize, event: Event) -> Check {
        let connection = &mut self.connections[c];
        match event {
            Event::Opened { size, .. } if size == connection.size => {
                connection.opened = true;
                Ok(())
            }
            Event::Done { cookie, outcome } => {
                let Some(asked) = connection.asked.remove(&cookie) else {
                    return Err(world.fail(format!("connection {c}: a reply to {cookie}")));
                };
                let volume = connection.volume;
                world.log.step(&[62, c as u64, cookie], || {
                    format!("client {c} hears of {cookie}: {:?}", outcome.errors)
                });
                judge(world, volume, &asked, &outcome)
            }
            // The only option that may be refused is one that the server does not know.
            other => Err(world.fail(format!("connection {c}: unexpected {other:?}"))),
        }
    }
}

/// Holds a reply against the model.
fn judge(world: &mut World, volume: u32, asked: &Asked, outcome: &Outcome) -> Check {
    if let Some(errno) = outcome.error() {
        let full = world.stats.full > asked.full_before;
        let bad = world.stats.bad_blocks > asked.bad_before;
        let known = errno == Errno::NoSpace.code() && full
            || errno == Errno::Io.code()
                && (bad || world.device_failed() || world.oracle.has_losses());
        if known {
            return Ok(());
        }
        return Err(world.fail(format!("a request failed with error {errno} without a reason")));
    }
    if asked.kind != proto::CMD_READ {
        return Ok(());
    }
    let first = asked.offset / BLOCK;
    for (b, &oldest) in (0..).zip(&asked.oldest) {
        let place = Place { volume, lba: first + b };
        let start = place.lba * BLOCK;
        let from = asked.offset.max(start);
        let to = (asked.offset + asked.len).min(start + BLOCK);
        let bytes = &outcome.data[(from - asked.offset) as usize..(to - asked.offset) as usize];
        let in_block = (from - start) as usize;
        if let Err(what) = world.oracle.end_read(place, oldest, in_block, bytes) {
            return Err(world.fail(format!("over NBD, {what}")));
        }
    }
    Ok(())
}

/// How many of `count` bytes travel together.
fn cut(world: &mut World, count: usize) -> usize {
    match world.rng.below(4) {
        0 => 1 + world.rng.below(count.min(64) as u64) as usize,
        1 => 1 + world.rng.below(count as u64) as usize,
        _ => count,
    }
}

/// The reply's error for what the engine said.
fn errno(fault: IoFault) -> Errno {
    match fault {
        IoFault::NoSpace => Errno::NoSpace,
        IoFault::Gone => Errno::Shutdown,
        _ => Errno::Io,
    }
}

/// Bytes of a part that was fetched.
fn fetched<'a>(world: &'a World, fetch: &Fetch) -> &'a [u8] {
    &world.arena.bytes(fetch.buffer)[fetch.skip..fetch.skip + fetch.len]
}
