//! Clients that write all the time and keep a [`Ledger`] of it.
//!
//! Each connection owns every n-th chunk of the volume, so that a block is never under two requests
//! and each connection can keep its own part of the ledger without locks. Reads in between check
//! that a client sees what it wrote.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::BLOCK;
use crate::ledger::{Clock, Content, Cut, Flush, Ledger, stamp};
use crate::nbd::{self, Address, Client, Reply, Request};
use crate::random::Random;

/// Blocks in a chunk; no request leaves its chunk.
const CHUNK: u64 = 64;

/// What the clients do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many there are.
    pub connections: u64,
    /// Requests of each in flight.
    pub depth: usize,
    /// The volume's size in blocks.
    pub blocks: u64,
    /// Requests of each at most.
    pub requests: u64,
    /// Where the randomness comes from.
    pub seed: u64,
}

/// What the clients share.
pub struct Shared<'a> {
    /// Orders their events.
    pub clock: &'a Clock,
    /// Ends them: what is in flight is still waited for.
    pub stop: &'a AtomicBool,
    /// The disk's position now.
    pub position: &'a (dyn Fn() -> u64 + Sync),
}

/// How the clients ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// All that was sent is answered.
    Answered,
    /// At least one lost its connection.
    Disconnected,
}

/// Runs clients against a volume until they are through, stopped, or disconnected. What they did
/// is added to `ledger`.
///
/// # Errors
/// When a read brings something else than what was written, or a request gets an error other than
/// "no space".
pub fn run(
    plan: &Plan,
    address: &Address,
    export: &str,
    shared: &Shared<'_>,
    ledger: &mut Ledger,
) -> Result<End, String> {
    let parts: Vec<_> = (0..plan.connections)
        .map(|own| ledger.take(|lba| lba / CHUNK % plan.connections == own))
        .collect();
    let results: Vec<_> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..)
            .zip(parts)
            .map(|(own, part)| {
                scope.spawn(move || {
                    let client = Client::connect(address, export);
                    let client = client.map_err(|error| format!("connect: {error}"))?;
                    let random = Random::new(plan.seed.wrapping_add(own << 32));
                    let mut worker = Worker {
                        plan,
                        own,
                        shared,
                        client,
                        random,
                        ledger: part,
                        busy: HashSet::new(),
                        in_flight: HashMap::new(),
                    };
                    worker.run().map(|end| (end, worker.ledger))
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("no panic")).collect()
    });
    let mut all = End::Answered;
    for result in results {
        let (end, part) = result?;
        ledger.merge(part);
        if end == End::Disconnected {
            all = End::Disconnected;
        }
    }
    Ok(all)
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    kind: Kind,
    tick: u64,
    first: u64,
    count: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Change { forced: bool },
    Flush,
}

struct Worker<'a> {
    plan: &'a Plan,
    own: u64,
    shared: &'a Shared<'a>,
    client: Client,
    random: Random,
    ledger: Ledger,
    busy: HashSet<u64>,
    in_flight: HashMap<u64, Sent>,
}

impl Worker<'_> {
    fn run(&mut self) -> Result<End, String> {
        let mut left = self.plan.requests;
        loop {
            let stopping = left == 0 || self.shared.stop.load(Ordering::Relaxed);
            if !stopping && self.client.in_flight() < self.plan.depth {
                left -= 1;
                if self.send().is_err() {
                    return Ok(End::Disconnected);
                }
                continue;
            }
            if self.client.in_flight() == 0 {
                return Ok(End::Answered);
            }
            match self.client.receive() {
                Ok(reply) => self.answered(&reply)?,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    return Err(format!("no reply to {:?}", self.in_flight));
                }
                Err(_) => return Ok(End::Disconnected),
            }
        }
    }

    /// Sends one request, of a random kind. A range that is busy is left alone: nothing is sent.
    fn send(&mut self) -> std::io::Result<()> {
        let dice = self.random.below(100);
        if dice < 4 {
            let tick = self.shared.clock.tick();
            let sent = Sent { kind: Kind::Flush, tick, first: 0, count: 0 };
            return self.post(sent, &request(nbd::FLUSH, 0, 0, 0, &[]));
        }
        let (first, count) = self.range(dice);
        if (first..first + count).any(|lba| self.busy.contains(&lba)) {
            return Ok(());
        }
        let (offset, length) = (first * BLOCK as u64, count as u32 * BLOCK as u32);
        if dice < 14 {
            let sent = Sent { kind: Kind::Read, tick: 0, first, count };
            return self.post(sent, &request(nbd::READ, 0, offset, length, &[]));
        }
        let forced = self.random.chance(5);
        let flags = if forced { nbd::FUA } else { 0 };
        let tick = self.shared.clock.tick();
        let sent = Sent { kind: Kind::Change { forced }, tick, first, count };
        let known = self.ledger.versions(first).last().is_some_and(|v| v.acknowledged.is_some());
        let mut change = |content| {
            for lba in first..first + count {
                self.ledger.sent(lba, tick, content);
            }
        };
        if dice < 18 {
            change(Content::Zeroes);
            return self.post(sent, &request(nbd::TRIM, flags, offset, length, &[]));
        }
        if dice < 22 {
            change(Content::Zeroes);
            let flags = flags | if self.random.chance(50) { nbd::NO_HOLE } else { 0 };
            return self.post(sent, &request(nbd::WRITE_ZEROES, flags, offset, length, &[]));
        }
        if dice < 32 && count == 1 && known {
            // Behind the stamp's number, so that the version it rests on can be told.
            let from = 16 + self.random.below(BLOCK as u64 - 17);
            let to = from + 1 + self.random.below(BLOCK as u64 - from);
            change(Content::Patch { from: from as u16, to: to as u16 });
            let bytes = &stamp(tick, first)[from as usize..to as usize];
            let length = bytes.len() as u32;
            return self.post(sent, &request(nbd::WRITE, flags, offset + from, length, bytes));
        }
        change(Content::Stamp);
        let payload: Vec<_> = (first..first + count).flat_map(|lba| stamp(tick, lba)).collect();
        self.post(sent, &request(nbd::WRITE, flags, offset, length, &payload))
    }

    /// A range of blocks in one of this client's chunks. Half of all requests go to the first
    /// eighth of the volume, so that blocks are overwritten and segments die.
    fn range(&mut self, dice: u64) -> (u64, u64) {
        let chunks = (self.plan.blocks / CHUNK / self.plan.connections).max(1);
        let chunks = if self.random.chance(50) { chunks.div_ceil(8) } else { chunks };
        let chunk = self.random.below(chunks) * self.plan.connections + self.own;
        let count = match dice {
            22..60 => 1,
            14..22 => 1 + self.random.below(CHUNK),
            _ => 1 + self.random.below(16),
        };
        (chunk * CHUNK + self.random.below(CHUNK - count + 1), count)
    }

    fn post(&mut self, sent: Sent, request: &Request<'_>) -> std::io::Result<()> {
        self.busy.extend(sent.first..sent.first + sent.count);
        let cookie = self.client.send(request)?;
        self.in_flight.insert(cookie, sent);
        Ok(())
    }

    fn answered(&mut self, reply: &Reply) -> Result<(), String> {
        let sent = self.in_flight.remove(&reply.cookie).expect("the client knows its requests");
        for lba in sent.first..sent.first + sent.count {
            self.busy.remove(&lba);
        }
        match (sent.kind, reply.error) {
            (Kind::Read, 0) => self.check_read(sent, &reply.data)?,
            (Kind::Flush, 0) => {
                let position = (self.shared.position)();
                self.ledger.flushed(Flush { sent: sent.tick, position });
            }
            (Kind::Change { forced }, 0) => {
                let forced = forced.then(|| (self.shared.position)());
                let tick = self.shared.clock.tick();
                for lba in sent.first..sent.first + sent.count {
                    self.ledger.acknowledged(lba, tick, forced);
                }
            }
            // Whether a change without space happened in part is not promised.
            (Kind::Change { .. }, nbd::ENOSPC) => {}
            // While the daemon stops, nothing is promised any more.
            (_, nbd::ESHUTDOWN) => {}
            (_, error) => return Err(format!("error {error} to {sent:?}")),
        }
        Ok(())
    }

    /// A read brings the newest version, or, after a change that failed, one of those since the
    /// last success.
    fn check_read(&self, sent: Sent, data: &[u8]) -> Result<(), String> {
        for (lba, block) in (sent.first..).zip(data.chunks_exact(BLOCK)) {
            let versions = self.ledger.versions(lba);
            let sure = versions.iter().rposition(|v| v.acknowledged.is_some()).unwrap_or(0);
            let fits = |version| self.ledger.content(lba, version) == block;
            if !(sure..versions.len()).rev().any(fits) {
                return Err(format!("block {lba} reads as something else than was written to it"));
            }
        }
        Ok(())
    }
}

fn request(kind: u16, flags: u16, offset: u64, length: u32, payload: &[u8]) -> Request<'_> {
    Request { kind, flags, offset, length, payload }
}

/// Discards a whole volume of `blocks` blocks, so that the space can be used again.
///
/// # Errors
/// When the connection fails or the discard gets an error.
pub fn discard_all(
    blocks: u64,
    address: &Address,
    export: &str,
    shared: &Shared<'_>,
    ledger: &mut Ledger,
) -> Result<(), String> {
    let mut client = Client::connect(address, export).map_err(|error| error.to_string())?;
    let tick = shared.clock.tick();
    for lba in 0..blocks {
        ledger.sent(lba, tick, Content::Zeroes);
    }
    let length = (blocks * BLOCK as u64) as u32;
    client.trim(0, length).map_err(|error| format!("error {error} to a discard"))?;
    let answered = shared.clock.tick();
    for lba in 0..blocks {
        ledger.acknowledged(lba, answered, None);
    }
    Ok(())
}

/// Reads a whole volume.
///
/// # Errors
/// When the connection fails or a read gets an error.
pub fn read_all(address: &Address, export: &str) -> Result<Vec<u8>, String> {
    const PART: u64 = 1 << 20;
    let mut client = Client::connect(address, export).map_err(|error| error.to_string())?;
    let mut all = Vec::with_capacity(client.size as usize);
    while (all.len() as u64) < client.size {
        let offset = all.len() as u64;
        let length = PART.min(client.size - offset) as u32;
        let data = client.read(offset, length);
        all.extend(data.map_err(|error| format!("error {error} at byte {offset}"))?);
    }
    Ok(all)
}

/// Reads a whole volume and compares it with the ledger.
///
/// # Errors
/// When it can't be read or what is there breaks a promise.
pub fn verify(
    address: &Address,
    export: &str,
    ledger: &Ledger,
    cut: Cut,
) -> Result<crate::ledger::Survivors, String> {
    ledger.verify(&read_all(address, export)?, cut)
}
