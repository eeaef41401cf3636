//! The simulated disks of a pool, and their fault model.
//!
//! - A write that completed is *pending* until a flush that was issued after its completion
//!   completes; then it is durable. Reads see pending writes.
//! - **Process kill**: everything that completed stays, pending or not. Of a write in flight, any
//!   subset of its 512-byte sectors may be there.
//! - **Power cut**: of every pending write and every write in flight, any subset of its sectors
//!   may be there, in any order: a later write of a place may survive while an earlier one does
//!   not, and the other way round. Nothing durable is touched.
//! - Each disk has its own flushes: one that was not asked may lose what it holds.
//! - A discard leaves of each block zeroes, garbage or what was there, as it completes; before that
//!   any part of it. It counts as a write that nobody misses: nothing needs a flush for it.
//! - Commands in flight complete in any order.
//! - One disk may begin to fail its commands, for a while or for good.
//! - A failed write leaves any subset of its sectors; a failed flush drops any subset of the
//!   pending writes.
//! - A read may fail, or return a flipped bit once and be right the next time.
//! - **Damage at rest**: a flipped bit, a zeroed sector, a block that was written elsewhere
//!   (misdirected: its own place keeps the old content), or a sector that can't be read until it
//!   is written again. Damage lies *over* the true content, so that it can be repaired, and so
//!   that the disk knows of every read that it touched.
//!
//! Not modelled: a flush that lies, and a disk that shrinks.

mod crash;
mod damage;
mod store;
mod sync;
mod trouble;

pub use crash::{CrashKind, CrashStyle};
pub use damage::{Area, Layout};
pub use trouble::Trouble;

use crate::arena::Arena;
use crate::content::{Block, SECTOR};
use crate::rng::Rng;
use flagstone_block::{
    BLOCK_SIZE, Buffer, Buffers, DeviceCommand, DeviceError, DeviceIo, IoToken, join_offset,
};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use store::Store;
use trouble::Kind;

/// Faults that strike commands, in commands per million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultRates {
    /// Reads that fail.
    pub read_error: u32,
    /// Reads with one bit flipped on the way.
    pub read_flip: u32,
    /// Writes that fail.
    pub write_error: u32,
    /// Flushes that fail.
    pub flush_error: u32,
    /// Writes that land elsewhere.
    pub misdirect: u32,
    /// Discards that fail.
    pub discard_error: u32,
}

/// A block with writes that no flush covers.
#[derive(Clone, Debug)]
struct Pending {
    durable: Option<Block>,
    /// Sequence number of the command and what it wrote, oldest first.
    writes: Vec<(u64, Block)>,
}

#[derive(Clone, Debug)]
enum Command {
    Read {
        first: u32,
        buffer: Buffer,
    },
    Write {
        first: u32,
        blocks: Vec<Block>,
        buffer: Buffer,
    },
    /// Covers writes to one disk with a sequence number below this one.
    Flush {
        disk: usize,
        covers: u64,
    },
    Discard {
        first: u32,
        count: u32,
    },
}

#[derive(Clone, Debug)]
struct InFlight {
    token: IoToken,
    command: Command,
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// As submitted.
    pub token: IoToken,
    /// For the engine.
    pub result: Result<(), DeviceError>,
    /// Which disk it was for.
    pub disk: usize,
    /// For a read: its buffer, and which of its blocks a fault touched.
    pub read: Option<(Buffer, Vec<u32>)>,
    /// In words.
    pub name: &'static str,
    /// Byte offset on the device.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// What the disk did so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskCounters {
    /// Write commands completed, by command or blocking call.
    pub writes: u64,
    /// Flushes completed.
    pub flushes: u64,
    /// Reads that a fault touched.
    pub tainted_reads: u64,
    /// Writes or flushes that failed.
    pub failures: u64,
    /// Writes that landed elsewhere.
    pub misdirected: u64,
    /// Discards completed.
    pub discards: u64,
}

/// The disks of a pool, or the only one. Cloning them is cheap: the copies share their blocks.
#[derive(Clone, Debug)]
pub struct Disk {
    current: Store,
    pending: BTreeMap<u32, Pending>,
    /// What reads see instead of the true content.
    damaged: BTreeMap<u32, Block>,
    /// Blocks with a sector that can't be read until it is written.
    unreadable: BTreeSet<u32>,
    /// Blocks, of those that are there only once, whose last read a fault touched.
    doubtful: BTreeSet<u32>,
    in_flight: Vec<InFlight>,
    /// Sequence numbers of discards.
    discards: BTreeSet<u64>,
    seq: u64,
    rates: FaultRates,
    trouble: Option<Trouble>,
    rng: Rng,
    /// Blocking writes and flushes until the process dies.
    calls_left: Option<u64>,
    dead: bool,
    counters: DiskCounters,
}

const EIO: DeviceError = DeviceError::Os { errno: 5 };
const EOPNOTSUPP: DeviceError = DeviceError::Os { errno: 95 };

impl Disk {
    /// No disk yet.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        Self {
            current: Store::new(),
            pending: BTreeMap::new(),
            damaged: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            doubtful: BTreeSet::new(),
            in_flight: Vec::new(),
            discards: BTreeSet::new(),
            seq: 0,
            rates: FaultRates::default(),
            trouble: None,
            rng,
            calls_left: None,
            dead: false,
            counters: DiskCounters::default(),
        }
    }

    /// Puts an empty disk of `bytes` bytes, a multiple of 4096, in a place of the pool.
    pub fn put(&mut self, disk: usize, bytes: u64) {
        self.remove(disk);
        self.current.put(disk, (bytes / BLOCK_SIZE as u64) as usize);
    }

    /// Takes a disk away, with everything on it.
    pub fn remove(&mut self, disk: usize) {
        self.current.remove(disk);
        let other = |block: u32| store::split(block).0 != disk;
        self.pending.retain(|block, _| other(*block));
        self.damaged.retain(|block, _| other(*block));
        self.unreadable.retain(|block| other(*block));
        self.doubtful.retain(|block| other(*block));
    }

    /// The places where there is a disk.
    #[must_use]
    pub fn disks(&self) -> Vec<usize> {
        self.current.disks().collect()
    }

    /// A disk becomes larger, if it is not; what is new reads as zeroes. Returns its size.
    pub fn enlarge(&mut self, disk: usize, bytes: u64) -> u64 {
        self.current.enlarge(disk, (bytes / BLOCK_SIZE as u64) as usize);
        self.bytes(disk)
    }

    /// Size of a disk; 0 if it is not there.
    #[must_use]
    pub fn bytes(&self, disk: usize) -> u64 {
        self.current.blocks(disk).unwrap_or(0) as u64 * BLOCK_SIZE as u64
    }

    /// Sets which faults strike from now on.
    pub fn set_rates(&mut self, rates: FaultRates) {
        self.rates = rates;
    }

    /// Goes on with another sequence of chances.
    pub fn reseed(&mut self, rng: Rng) {
        self.rng = rng;
    }

    /// What it did so far.
    #[must_use]
    pub fn counters(&self) -> DiskCounters {
        self.counters
    }

    /// Commands in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Blocks with writes that a power cut may lose.
    #[must_use]
    pub fn pending_blocks(&self) -> usize {
        self.pending_but(&[])
    }

    /// As [`Disk::pending_blocks`], without those of some disks.
    #[must_use]
    pub fn pending_but(&self, disks: &[usize]) -> usize {
        let missed =
            |pending: &Pending| pending.writes.iter().any(|(seq, _)| !self.discards.contains(seq));
        let counts = |(block, _): &(&u32, &Pending)| !disks.contains(&store::split(**block).0);
        let counted = self.pending.iter().filter(counts);
        counted.filter(|(_, pending)| missed(pending)).count()
    }

    /// Whether command `i` in flight is a flush, a write or a read: 2, 1, 0.
    #[must_use]
    pub fn rank(&self, i: usize) -> u8 {
        match self.in_flight[i].command {
            Command::Read { .. } => 0,
            Command::Write { .. } | Command::Discard { .. } => 1,
            Command::Flush { .. } => 2,
        }
    }

    /// Takes a command.
    ///
    /// # Errors
    /// In words, a command that no correct engine sends.
    pub fn submit(&mut self, io: DeviceIo, arena: &Arena) -> Result<(), String> {
        let disk = usize::from(io.device);
        if self.current.blocks(disk).is_none() {
            return Err(format!("{:?} for disk {disk}, which is not there", io.command));
        }
        let command = match io.command {
            DeviceCommand::Flush => Command::Flush { disk, covers: self.seq },
            DeviceCommand::Read { offset, buffer } => {
                let first = self.check_range("read", disk, offset, buffer.len() as u64)?;
                Command::Read { first, buffer }
            }
            DeviceCommand::Discard { offset, bytes } => {
                let first = self.check_range("discard", disk, offset, bytes)?;
                Command::Discard { first, count: (bytes / BLOCK_SIZE as u64) as u32 }
            }
            DeviceCommand::Write { offset, buffer } => {
                let first = self.check_range("write", disk, offset, buffer.len() as u64)?;
                let blocks = arena.bytes(buffer).chunks_exact(BLOCK_SIZE).map(share).collect();
                Command::Write { first, blocks, buffer }
            }
        };
        if let Some(other) = self.in_flight.iter().find(|f| conflicts(&f.command, &command)) {
            return Err(format!("{command} overlaps {} in flight", other.command));
        }
        self.in_flight.push(InFlight { token: io.token, command });
        Ok(())
    }

    fn check_range(&self, what: &str, disk: usize, offset: u64, len: u64) -> Result<u32, String> {
        let end = offset + len;
        if !offset.is_multiple_of(BLOCK_SIZE as u64) || end > self.bytes(disk) {
            return Err(format!("a {what} of bytes {offset}..{end}, outside disk {disk}"));
        }
        Ok(store::number(join_offset(disk, offset)))
    }

    /// Ends command `i` in flight.
    ///
    /// # Errors
    /// In words, if the engine changed the bytes of a write under way.
    pub fn complete(&mut self, i: usize, arena: &mut Arena) -> Result<Ended, String> {
        let InFlight { token, command } = self.in_flight.remove(i);
        match command {
            Command::Read { first, buffer } => {
                let (result, touched) = self.read_blocks(first, arena.bytes_mut(buffer));
                let offset = u64::from(first) * BLOCK_SIZE as u64;
                let (len, read) = (buffer.len() as u64, Some((buffer, touched)));
                let disk = store::split(first).0;
                Ok(Ended { token, result, disk, read, name: "read", offset, len })
            }
            Command::Write { first, blocks, buffer } => {
                let now = arena.bytes(buffer).chunks_exact(BLOCK_SIZE);
                if !now.zip(&blocks).all(|(now, then)| now == &then[..]) {
                    return Err(format!(
                        "the bytes of a write of {} blocks at block {first} changed in flight",
                        blocks.len()
                    ));
                }
                let (offset, len) = (u64::from(first) * BLOCK_SIZE as u64, buffer.len() as u64);
                let result = self.write_blocks(first, &blocks);
                let disk = store::split(first).0;
                Ok(Ended { token, result, disk, read: None, name: "write", offset, len })
            }
            Command::Discard { first, count } => {
                let failed = self.strikes(self.rates.discard_error);
                let result = if failed { Err(EOPNOTSUPP) } else { Ok(()) };
                self.discard_blocks(first, count);
                let (offset, len) = (u64::from(first), u64::from(count));
                let block = BLOCK_SIZE as u64;
                let (offset, len) = (offset * block, len * block);
                let disk = store::split(first).0;
                Ok(Ended { token, result, disk, read: None, name: "discard", offset, len })
            }
            Command::Flush { disk, covers } => {
                let result = self.flush_blocks(disk, covers);
                Ok(Ended { token, result, disk, read: None, name: "flush", offset: 0, len: 0 })
            }
        }
    }

    fn strikes(&mut self, per_million: u32) -> bool {
        per_million > 0 && self.rng.below(1_000_000) < u64::from(per_million)
    }

    /// What the device holds, without faults; true, for callers that could be refused.
    pub fn peek(&self, offset: u64, into: &mut [u8]) -> bool {
        let first = store::number(offset) as usize;
        for (block, into) in (first..).zip(into.chunks_exact_mut(BLOCK_SIZE)) {
            match &self.current[block] {
                Some(bytes) => into.copy_from_slice(&bytes[..]),
                None => into.fill(0),
            }
        }
        true
    }

    /// Returns also which blocks, counted from `first`, a fault touched.
    fn read_blocks(&mut self, first: u32, into: &mut [u8]) -> (Result<(), DeviceError>, Vec<u32>) {
        let (result, touched) = self.read_with_faults(first, into);
        if !touched.is_empty() || !self.doubtful.is_empty() {
            for b in 0..(into.len() / BLOCK_SIZE) as u32 {
                self.doubtful.remove(&(first + b));
            }
            // Judged now: recovery may put something else there.
            let single = |block: &u32| {
                let bytes = &self.current[*block as usize];
                !bytes.as_ref().is_some_and(|bytes| damage::has_copies(&bytes[..]))
            };
            self.doubtful.extend(touched.iter().map(|b| first + b).filter(single));
        }
        (result, touched)
    }

    fn read_with_faults(
        &mut self,
        first: u32,
        into: &mut [u8],
    ) -> (Result<(), DeviceError>, Vec<u32>) {
        let count = (into.len() / BLOCK_SIZE) as u32;
        let mut touched = Vec::new();
        if self.strikes(self.rates.read_error)
            || self.is_troubled(store::split(first).0, Kind::Read)
        {
            self.counters.tainted_reads += 1;
            let short = DeviceError::Short { done: 0, wanted: into.len() as u32 };
            let error = if self.rng.one_in(4) { short } else { EIO };
            return (Err(error), (0..count).collect());
        }
        for (block, into) in (first..).zip(into.chunks_exact_mut(BLOCK_SIZE)) {
            match &self.current[block as usize] {
                Some(bytes) => into.copy_from_slice(&bytes[..]),
                None => into.fill(0),
            }
        }
        if !self.damaged.is_empty() || !self.unreadable.is_empty() {
            let range = first..first + count;
            for (&block, bytes) in self.damaged.range(range.clone()) {
                let b = block - first;
                touched.push(b);
                into[b as usize * BLOCK_SIZE..][..BLOCK_SIZE].copy_from_slice(&bytes[..]);
            }
            if self.unreadable.range(range.clone()).next().is_some() {
                self.counters.tainted_reads += 1;
                return (Err(EIO), (0..count).collect());
            }
        }
        if self.strikes(self.rates.read_flip) {
            // Where there is nothing, nobody would notice.
            let start = self.rng.below(u64::from(count)) as u32;
            let mut blocks = (0..count).map(|i| (start + i) % count);
            let written = |b: &u32| self.current[(first + b) as usize].is_some();
            let block = blocks.find(written).unwrap_or(start) as usize;
            let bit = block * BLOCK_SIZE * 8 + self.rng.below(BLOCK_SIZE as u64 * 8) as usize;
            into[bit / 8] ^= 1 << (bit % 8);
            touched.push((bit / 8 / BLOCK_SIZE) as u32);
        }
        self.counters.tainted_reads += u64::from(!touched.is_empty());
        (Ok(()), touched)
    }

    fn write_blocks(&mut self, first: u32, blocks: &[Block]) -> Result<(), DeviceError> {
        self.counters.writes += 1;
        if self.strikes(self.rates.write_error)
            || self.is_troubled(store::split(first).0, Kind::Write)
        {
            self.counters.failures += 1;
            self.write_part(first, blocks);
            return Err(EIO);
        }
        let seq = self.next_seq();
        let misdirected = self.strikes(self.rates.misdirect);
        for (block, bytes) in (first..).zip(blocks) {
            let before = misdirected.then(|| self.shown(block));
            self.store(block, seq, bytes.clone());
            if let Some(before) = before {
                self.damaged.insert(block, before);
            }
        }
        if misdirected {
            self.misdirect(first, blocks);
        }
        Ok(())
    }

    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq - 1
    }

    /// Writes any subset of the sectors.
    fn write_part(&mut self, first: u32, blocks: &[Block]) {
        let seq = self.next_seq();
        let style = self.rng.below(4);
        for (block, bytes) in (first..).zip(blocks) {
            let mask = match style {
                0 => 0,
                1 => 0xff,
                2 => ((1u32 << self.rng.below(9)) - 1) as u8,
                _ => self.rng.next() as u8,
            };
            if mask != 0 {
                let torn = merged(self.current[block as usize].as_ref(), bytes, mask);
                self.store(block, seq, torn);
            }
        }
    }

    /// Leaves zeroes, garbage, what was there, or any of these.
    fn discard_blocks(&mut self, first: u32, count: u32) {
        self.counters.discards += 1;
        let seq = self.next_seq();
        self.discards.insert(seq);
        let mut garbage = zeroes();
        if let Some(bytes) = Rc::get_mut(&mut garbage) {
            bytes.fill_with(|| self.rng.next() as u8);
        }
        let style = self.rng.below(4);
        for block in first..first + count {
            match if style < 3 { style } else { self.rng.below(3) } {
                0 => self.store(block, seq, zeroes()),
                1 => self.store(block, seq, garbage.clone()),
                _ => {}
            }
        }
    }

    fn store(&mut self, block: u32, seq: u64, bytes: Block) {
        let current = &mut self.current[block as usize];
        let pending = self
            .pending
            .entry(block)
            .or_insert_with(|| Pending { durable: current.clone(), writes: Vec::new() });
        pending.writes.push((seq, bytes.clone()));
        *current = Some(bytes);
        if !self.damaged.is_empty() {
            self.damaged.remove(&block);
        }
        if !self.unreadable.is_empty() {
            self.unreadable.remove(&block);
        }
    }

    fn flush_blocks(&mut self, disk: usize, covers: u64) -> Result<(), DeviceError> {
        self.counters.flushes += 1;
        if self.strikes(self.rates.flush_error) || self.is_troubled(disk, Kind::Flush) {
            self.counters.failures += 1;
            self.drop_some_pending(disk);
            return Err(EIO);
        }
        self.pending.retain(|block, pending| {
            if store::split(*block).0 != disk {
                return true;
            }
            let covered = pending.writes.iter().take_while(|(seq, _)| *seq < covers).count();
            if covered > 0 {
                pending.durable = Some(pending.writes[covered - 1].1.clone());
                pending.writes.drain(..covered);
            }
            !pending.writes.is_empty()
        });
        Ok(())
    }

    fn drop_some_pending(&mut self, disk: usize) {
        let percent = self.rng.pick(&[0, 20, 100]);
        let here = |block: &u32| store::split(*block).0 == disk;
        let blocks: Vec<u32> = self.pending.keys().copied().filter(here).collect();
        for block in blocks {
            if !self.rng.percent(percent) {
                continue;
            }
            if let Some(pending) = self.pending.remove(&block) {
                self.current[block as usize] = pending.durable;
            }
        }
    }

    /// What a read of `block` returns.
    fn shown(&self, block: u32) -> Block {
        let true_content = || self.current[block as usize].clone();
        self.damaged.get(&block).cloned().or_else(true_content).unwrap_or_else(zeroes)
    }
}

fn zeroes() -> Block {
    Rc::new([0; BLOCK_SIZE])
}

fn share(bytes: &[u8]) -> Block {
    let mut block = zeroes();
    if let Some(own) = Rc::get_mut(&mut block) {
        own.copy_from_slice(bytes);
    }
    block
}

/// `old` with the sectors in `mask` replaced by those of `new`.
fn merged(old: Option<&Block>, new: &Block, mask: u8) -> Block {
    if mask == 0xff {
        return new.clone();
    }
    let mut bytes = old.map_or([0; BLOCK_SIZE], |old| **old);
    for sector in (0..8).filter(|s| mask >> s & 1 != 0) {
        let range = sector * SECTOR..(sector + 1) * SECTOR;
        bytes[range.clone()].copy_from_slice(&new[range]);
    }
    Rc::new(bytes)
}

fn span(command: &Command) -> Option<(u64, u64, bool)> {
    match command {
        Command::Read { first, buffer } => {
            Some((u64::from(*first), u64::from(*first + buffer.blocks), false))
        }
        Command::Write { first, blocks, .. } => {
            Some((u64::from(*first), u64::from(*first) + blocks.len() as u64, true))
        }
        Command::Discard { first, count } => {
            Some((u64::from(*first), u64::from(*first + *count), true))
        }
        Command::Flush { .. } => None,
    }
}

/// Two commands in flight whose outcome together is undefined.
fn conflicts(one: &Command, other: &Command) -> bool {
    match (span(one), span(other)) {
        (Some((a, b, writes)), Some((c, d, also))) => (writes || also) && a < d && c < b,
        _ => false,
    }
}

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match span(self) {
            Some((first, end, true)) => write!(f, "a write of blocks {first}..{end}"),
            Some((first, end, false)) => write!(f, "a read of blocks {first}..{end}"),
            None => write!(f, "a flush"),
        }
    }
}
