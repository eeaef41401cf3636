//! The naive model: for every block the list of what was written to it, and what became of each
//! request.
//!
//! A request that has not been answered may or may not have happened, so a block has several
//! values that a crash may leave. Which ones is all that this module decides.

use crate::disk::Block;
use flagstone_block::BLOCK_SIZE;
use std::collections::BTreeMap;
use std::rc::Rc;

/// What a block holds.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Zero,
    /// A pattern that names its write.
    Stamp(u32),
    /// Parts of several writes.
    Bytes(Rc<Block>),
}

impl Content {
    pub(super) fn bytes(&self) -> Block {
        let mut block = [0; BLOCK_SIZE];
        match self {
            Self::Zero => {}
            Self::Stamp(stamp) => fill(&mut block, *stamp),
            Self::Bytes(bytes) => block = **bytes,
        }
        block
    }

    pub(super) fn is(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Zero => *bytes == ZEROES,
            Self::Stamp(_) => *bytes == self.bytes(),
            Self::Bytes(block) => block[..] == *bytes,
        }
    }
}

const ZEROES: Block = [0; BLOCK_SIZE];
const NOISE: Block = {
    let mut noise = [0; BLOCK_SIZE];
    let mut i = 0;
    while i < BLOCK_SIZE {
        noise[i] = (i % 251) as u8 | 1;
        i += 1;
    }
    noise
};

/// Fills a block with the pattern of `stamp`, which every sector of 512 bytes tells.
pub(super) fn fill(block: &mut [u8], stamp: u32) {
    block.copy_from_slice(&NOISE);
    for sector in block.chunks_exact_mut(512) {
        sector[..4].copy_from_slice(&stamp.to_le_bytes());
    }
}

/// Number of a request that changes something, in the order in which they were sent.
pub(super) type Op = u32;

/// What became of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fate {
    /// When it was sent, and answered with success. Times only rise.
    pub(super) sent: u64,
    pub(super) acknowledged: Option<u64>,
    /// Must survive a power cut.
    pub(super) durable: bool,
}

/// One block: what it held when this life began, and what was written since.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub(super) base: Content,
    pub(super) versions: Vec<(Op, Content)>,
}

impl Cell {
    pub(super) fn latest(&self) -> &Content {
        self.versions.last().map_or(&self.base, |(_, content)| content)
    }

    /// Version `i`: 0 is what was there before.
    pub(super) fn version(&self, i: usize) -> &Content {
        if i == 0 { &self.base } else { &self.versions[i - 1].1 }
    }

    /// The newest version whose request `counts`; 0 if none does.
    pub(super) fn newest(&self, mut counts: impl FnMut(Op) -> bool) -> usize {
        self.versions.iter().rposition(|(op, _)| counts(*op)).map_or(0, |i| i + 1)
    }
}

/// Whether a volume is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existence {
    Creating(Op),
    Active,
    Deleting(Op),
}

/// A volume as it should be.
#[derive(Clone, Debug)]
pub(super) struct Volume {
    pub(super) id: u32,
    pub(super) name: String,
    pub(super) existence: Existence,
    /// Blocks now; `growths` are under way.
    pub(super) blocks: u64,
    pub(super) growths: Vec<(Op, u64)>,
    /// Blocks below this one held their own number as a stamp when the first life began.
    pub(super) filled: u64,
    pub(super) cells: BTreeMap<u64, Cell>,
}

impl Volume {
    pub(super) fn initial(&self, lba: u64) -> Content {
        if lba < self.filled { Content::Stamp(lba as u32) } else { Content::Zero }
    }

    pub(super) fn latest(&self, lba: u64) -> Content {
        self.cells.get(&lba).map_or_else(|| self.initial(lba), |cell| cell.latest().clone())
    }

    /// Notes that request `op` puts `content` into block `lba`.
    pub(super) fn put(&mut self, lba: u64, op: Op, content: Content) {
        let base = self.initial(lba);
        let cell = self.cells.entry(lba).or_insert(Cell { base, versions: Vec::new() });
        cell.versions.push((op, content));
    }

    /// Blocks, once everything under way has happened.
    pub(super) fn blocks_last(&self) -> u64 {
        self.growths.last().map_or(self.blocks, |(_, blocks)| *blocks)
    }
}

/// All volumes and requests of a pool.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) volumes: Vec<Volume>,
    pub(super) fates: Vec<Fate>,
    now: u64,
}

impl Model {
    /// A moment later than all before.
    pub(super) fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// Begins a request that changes something.
    pub(super) fn send(&mut self) -> Op {
        let sent = self.tick();
        self.fates.push(Fate { sent, acknowledged: None, durable: false });
        (self.fates.len() - 1) as Op
    }

    /// The request succeeded; with `fua` it must survive a power cut.
    pub(super) fn acknowledge(&mut self, op: Op, fua: bool) {
        let now = self.tick();
        let fate = &mut self.fates[op as usize];
        fate.acknowledged = Some(now);
        fate.durable |= fua;
        let sent = fate.sent;
        if fua {
            self.flushed(sent);
        }
    }

    /// A flush that was sent at `sent` succeeded.
    pub(super) fn flushed(&mut self, sent: u64) {
        for fate in &mut self.fates {
            fate.durable |= fate.acknowledged.is_some_and(|at| at < sent);
        }
    }

    pub(super) fn is_acknowledged(&self, op: Op) -> bool {
        self.fates[op as usize].acknowledged.is_some()
    }

    pub(super) fn volume_mut(&mut self, id: u32) -> Option<&mut Volume> {
        self.volumes.iter_mut().find(|volume| volume.id == id)
    }

    pub(super) fn volume(&self, id: u32) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.id == id)
    }

    /// Takes back a request that failed without doing anything.
    pub(super) fn retract(&mut self, id: u32, lba: u64, op: Op) {
        let Some(volume) = self.volume_mut(id) else { return };
        if let Some(cell) = volume.cells.get_mut(&lba) {
            cell.versions.retain(|(other, _)| *other != op);
        }
    }
}
