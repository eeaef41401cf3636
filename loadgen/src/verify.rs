//! Verified runs: what was written where, and whether a read may return what it returned.
//!
//! Every write carries a *stamp* in each unit of its payload: who wrote it (the run), where it
//! belongs and as which write of its block (the sequence), with a checksum over the unit. The
//! [`Ledger`] knows for each block which sequence was acknowledged last and which was issued
//! last. A read is right when its stamp names a sequence from the acknowledged one at the read's
//! issue to the issued one at its completion: older is a lost write, newer is impossible.
//!
//! Invariants: a block has at most one write under way (so "the last" is defined), over all
//! connections; a failed write leaves its block in either state. The checks hold for any number
//! of connections because the ledger is shared; its entries are single atomic words.
//!
//! It deliberately doesn't judge blocks that this run has not written: what they hold is
//! somebody else's.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{rng::mix64, workload::Generator};

/// Blocks that a ledger may have: 2 GiB of table.
pub const LEDGER_BLOCKS_MAX: u64 = 1 << 28;

/// Bytes with a stamp of their own: the atomicity that is promised, or less for small requests.
const UNIT_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;
const MAGIC: u32 = u32::from_le_bytes(*b"FSld");

/// The size of a stamped unit in requests of `block_size` bytes.
pub(crate) const fn unit_bytes(block_size: usize) -> usize {
    if block_size.is_multiple_of(UNIT_BYTES) { UNIT_BYTES } else { SECTOR_BYTES }
}

/// What a stamp says about its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Names the run, so that what an earlier one left is not taken for this one's.
    pub run: u64,
    /// Byte offset of the unit on the target.
    pub offset: u64,
    /// Counts the writes of its block, from 1.
    pub sequence: u32,
}

/// What lies in a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// An intact stamp of this run.
    Stamp(Stamp),
    /// A stamp of this run whose checksum is wrong.
    Damaged,
    /// Nothing of this run.
    Foreign,
}

impl Stamp {
    /// Stamps `unit`, keeping most of its bytes. The first eight bytes of every 512-byte sector
    /// depend on the sequence: a unit torn between two writes can't have a right checksum.
    pub(crate) fn write(self, unit: &mut [u8]) {
        for (index, sector) in unit.chunks_exact_mut(SECTOR_BYTES).enumerate() {
            let salt = self.run ^ (u64::from(self.sequence) << 8) ^ index as u64;
            sector[..8].copy_from_slice(&mix64(self.offset ^ mix64(salt)).to_le_bytes());
        }
        unit[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        unit[8..16].copy_from_slice(&self.run.to_le_bytes());
        unit[16..24].copy_from_slice(&self.offset.to_le_bytes());
        unit[24..28].copy_from_slice(&self.sequence.to_le_bytes());
        let checksum = crc32fast::hash(&unit[8..]);
        unit[4..8].copy_from_slice(&checksum.to_le_bytes());
    }

    fn read(unit: &[u8], run: u64) -> Found {
        let word = |at: usize| u32::from_le_bytes(unit[at..at + 4].try_into().expect("4 bytes"));
        let long = |at: usize| u64::from_le_bytes(unit[at..at + 8].try_into().expect("8 bytes"));
        if word(0) != MAGIC || long(8) != run {
            return Found::Foreign;
        }
        if crc32fast::hash(&unit[8..]) != word(4) {
            return Found::Damaged;
        }
        Found::Stamp(Self { run, offset: long(16), sequence: word(24) })
    }
}

/// What is wrong with a block that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// Not this run's data, where an acknowledged write should be.
    Missing,
    /// This run's data with a wrong checksum: damaged or torn.
    Damaged,
    /// Intact data of another place.
    Misplaced,
    /// Older than the last acknowledged write.
    Stale,
    /// Newer than anything that was sent.
    Impossible,
}

/// One block that read wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// Byte offset of the unit on the target.
    pub offset: u64,
    /// What is wrong.
    pub kind: FaultKind,
    /// The oldest sequence that would have been right.
    pub expected: u32,
    /// The sequence found, zero when there was none.
    pub found: u32,
}

/// Faults that a connection keeps with their details.
const EXAMPLES_MAX: usize = 8;

/// What verified reads showed.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    pub reads: u64,
    pub faults: u64,
    pub examples: Vec<Fault>,
}

impl Checked {
    pub(crate) fn new() -> Self {
        Self { reads: 0, faults: 0, examples: Vec::with_capacity(EXAMPLES_MAX) }
    }

    /// Counts one checked read.
    pub(crate) fn note(&mut self, result: Result<(), Fault>) {
        self.reads += 1;
        if let Err(fault) = result {
            self.faults += 1;
            if self.examples.len() < EXAMPLES_MAX {
                self.examples.push(fault);
            }
        }
    }
}

/// What a run is called in its stamps: unlike any other, so that an earlier run's data is seen
/// as such even with the same seed.
pub(crate) fn run_name(seed: u64) -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    mix64(seed ^ mix64(time.as_nanos() as u64))
}

/// One block's state in a word: the sequence acknowledged last (bits 0 to 31), the one issued
/// last (32 to 62), and whether a write is under way (63).
#[derive(Clone, Copy)]
struct Entry(u64);

impl Entry {
    const BUSY: u64 = 1 << 63;
    const SEQUENCE_MAX: u32 = i32::MAX as u32;

    const fn new(acknowledged: u32, issued: u32, busy: bool) -> Self {
        let busy = if busy { Self::BUSY } else { 0 };
        Self(acknowledged as u64 | (issued as u64) << 32 | busy)
    }
    const fn acknowledged(self) -> u32 {
        self.0 as u32
    }
    const fn issued(self) -> u32 {
        (self.0 >> 32) as u32 & Self::SEQUENCE_MAX
    }
    const fn busy(self) -> bool {
        self.0 & Self::BUSY != 0
    }
}

/// The state of every block, shared by all connections of a run.
#[derive(Debug)]
pub(crate) struct Ledger {
    run: u64,
    entries: Vec<AtomicU64>,
}

impl Ledger {
    /// A ledger in which nothing was written yet. `requests` is at most [`LEDGER_BLOCKS_MAX`].
    pub(crate) fn new(run: u64, requests: u64) -> Self {
        assert!(requests <= LEDGER_BLOCKS_MAX, "checked by the caller");
        Self { run, entries: (0..requests).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The ledger that `entries` of earlier runs make up. No write is under way any more.
    pub(crate) fn resume(run: u64, entries: impl Iterator<Item = u64>) -> Self {
        Self { run, entries: entries.map(|entry| AtomicU64::new(entry & !Entry::BUSY)).collect() }
    }

    /// Names the run, and those that go on with its ledger.
    pub(crate) fn run(&self) -> u64 {
        self.run
    }

    /// How many blocks it is about.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What it knows of each block, for [`Ledger::resume`].
    pub(crate) fn entries(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().map(|entry| entry.load(Ordering::Acquire))
    }

    fn entry(&self, request: u64) -> &AtomicU64 {
        &self.entries[request as usize]
    }

    /// Begins the next write of a block: its sequence, or `None` while another one is under way.
    pub(crate) fn begin_write(&self, request: u64) -> Option<u32> {
        let entry = self.entry(request);
        let old = Entry(entry.load(Ordering::Acquire));
        if old.busy() || old.issued() == Entry::SEQUENCE_MAX {
            return None;
        }
        let sequence = old.issued() + 1;
        let new = Entry::new(old.acknowledged(), sequence, true);
        // Losing the race means that another connection writes the block now.
        entry
            .compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
            .then_some(sequence)
    }

    /// Begins a write of `request`, or of another block when that one is busy: which one, and the
    /// sequence.
    ///
    /// The popular blocks of a skewed run are often busy; another draw keeps the distribution's
    /// shape better than the neighbour would. A ledger has more blocks than there can be writes
    /// under way ([`crate::Workload::requests`]), so the walk in the end finds a free one.
    pub(crate) fn begin_write_near(
        &self,
        generator: &mut Generator,
        mut request: u64,
    ) -> (u64, u32) {
        const DRAWS: u32 = 16;
        for _ in 0..DRAWS {
            if let Some(sequence) = self.begin_write(request) {
                return (request, sequence);
            }
            request = generator.position();
        }
        loop {
            if let Some(sequence) = self.begin_write(request) {
                return (request, sequence);
            }
            request = (request + 1) % self.entries.len() as u64;
        }
    }

    /// Ends the write that is under way. After a failure both contents are right from now on.
    pub(crate) fn end_write(&self, request: u64, succeeded: bool) {
        let entry = self.entry(request);
        // Only the writer changes a busy entry, so a plain store loses nothing.
        let old = Entry(entry.load(Ordering::Acquire));
        let acknowledged = if succeeded { old.issued() } else { old.acknowledged() };
        entry.store(Entry::new(acknowledged, old.issued(), false).0, Ordering::Release);
    }

    /// The oldest sequence that a read issued now may return.
    pub(crate) fn begin_read(&self, request: u64) -> u32 {
        Entry(self.entry(request).load(Ordering::Acquire)).acknowledged()
    }

    /// Stamps the payload of a write.
    pub(crate) fn stamp(&self, request: u64, sequence: u32, payload: &mut [u8]) {
        let first = request * payload.len() as u64;
        let unit_bytes = unit_bytes(payload.len());
        for (index, unit) in payload.chunks_exact_mut(unit_bytes).enumerate() {
            let offset = first + (index * unit_bytes) as u64;
            Stamp { run: self.run, offset, sequence }.write(unit);
        }
    }

    /// Checks what a read returned, where `oldest` is what [`Ledger::begin_read`] said. Returns
    /// the first fault; units of one request may come from different writes, which is no fault:
    /// the promise of atomicity ends at the unit.
    pub(crate) fn check(&self, request: u64, oldest: u32, payload: &[u8]) -> Result<(), Fault> {
        let newest = Entry(self.entry(request).load(Ordering::Acquire)).issued();
        let first = request * payload.len() as u64;
        let unit_bytes = unit_bytes(payload.len());
        for (index, unit) in payload.chunks_exact(unit_bytes).enumerate() {
            let offset = first + (index * unit_bytes) as u64;
            let fault = |kind, found| Err(Fault { offset, kind, expected: oldest, found });
            match Stamp::read(unit, self.run) {
                Found::Foreign if oldest == 0 => {}
                Found::Foreign => return fault(FaultKind::Missing, 0),
                Found::Damaged => return fault(FaultKind::Damaged, 0),
                Found::Stamp(stamp) if stamp.offset != offset => {
                    return fault(FaultKind::Misplaced, stamp.sequence);
                }
                Found::Stamp(stamp) if stamp.sequence < oldest => {
                    return fault(FaultKind::Stale, stamp.sequence);
                }
                Found::Stamp(stamp) if stamp.sequence > newest => {
                    return fault(FaultKind::Impossible, stamp.sequence);
                }
                Found::Stamp(_) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 8192;

    fn written(ledger: &Ledger, request: u64) -> Vec<u8> {
        let sequence = ledger.begin_write(request).expect("not busy");
        let mut payload = vec![0x5a; BLOCK];
        ledger.stamp(request, sequence, &mut payload);
        ledger.end_write(request, true);
        payload
    }

    fn kind(result: Result<(), Fault>) -> FaultKind {
        result.expect_err("a fault").kind
    }

    #[test]
    fn right_reads_pass() {
        let ledger = Ledger::new(1, 4);
        assert_eq!(ledger.check(2, ledger.begin_read(2), &[0; BLOCK]), Ok(()), "never written");
        let payload = written(&ledger, 2);
        assert_eq!(ledger.check(2, ledger.begin_read(2), &payload), Ok(()));
    }

    #[test]
    fn every_fault_is_named() {
        let ledger = Ledger::new(1, 4);
        let old = written(&ledger, 2);
        let new = written(&ledger, 2);
        let oldest = ledger.begin_read(2);
        assert_eq!(kind(ledger.check(2, oldest, &old)), FaultKind::Stale);
        assert_eq!(kind(ledger.check(2, oldest, &[0; BLOCK])), FaultKind::Missing);
        let other = written(&ledger, 3);
        assert_eq!(kind(ledger.check(2, oldest, &other)), FaultKind::Misplaced);
        let mut flipped = new.clone();
        flipped[5000] ^= 1;
        assert_eq!(kind(ledger.check(2, oldest, &flipped)), FaultKind::Damaged);
        for tear in (512..4096).step_by(512) {
            let mut torn = new.clone();
            torn[..tear].copy_from_slice(&old[..tear]);
            assert_eq!(kind(ledger.check(2, oldest, &torn)), FaultKind::Damaged, "at {tear}");
        }
        // What another run left behind counts as nothing, not as this run's data.
        let foreign = written(&Ledger::new(2, 4), 2);
        assert_eq!(kind(ledger.check(2, oldest, &foreign)), FaultKind::Missing);
        let mut future = vec![0; BLOCK];
        ledger.stamp(2, 9, &mut future);
        assert_eq!(kind(ledger.check(2, oldest, &future)), FaultKind::Impossible);
    }

    #[test]
    fn a_write_under_way_may_or_may_not_be_seen() {
        let ledger = Ledger::new(1, 4);
        let old = written(&ledger, 0);
        let oldest = ledger.begin_read(0);
        let sequence = ledger.begin_write(0).expect("not busy");
        assert_eq!(ledger.begin_write(0), None, "one at a time");
        let mut new = old.clone();
        ledger.stamp(0, sequence, &mut new);
        assert_eq!(ledger.check(0, oldest, &old), Ok(()));
        assert_eq!(ledger.check(0, oldest, &new), Ok(()));
        ledger.end_write(0, false);
        let oldest = ledger.begin_read(0);
        assert_eq!(ledger.check(0, oldest, &old), Ok(()), "a failed write promises nothing");
        assert_eq!(ledger.check(0, oldest, &new), Ok(()));
    }

    #[test]
    fn small_requests_have_small_units() {
        let ledger = Ledger::new(1, 16);
        let sequence = ledger.begin_write(7).expect("not busy");
        let mut payload = vec![0; 1536];
        ledger.stamp(7, sequence, &mut payload);
        ledger.end_write(7, true);
        assert_eq!(ledger.check(7, 1, &payload), Ok(()));
    }
}
