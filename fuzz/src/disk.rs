//! A device in memory: an image that never changes, and what was written since on top of it.
//!
//! Going back to the image costs as much as was written, so that a run of the fuzzer does not
//! pay for the pool that it starts from. What no flush covers yet can be lost or torn.

use crate::trace::say;
use flagstone_block::{BLOCK_SIZE, BlockIo, DeviceError};
use std::collections::BTreeMap;

/// Content of one block.
pub(crate) type Block = [u8; BLOCK_SIZE];

const BLOCK_BYTES: u64 = BLOCK_SIZE as u64;

/// What is on a device; `None` is zeroes.
#[derive(Clone, Debug)]
pub(crate) struct Image(pub(crate) Vec<Option<Box<Block>>>);

impl Image {
    /// A device of `bytes` zeroes.
    pub(crate) fn empty(bytes: u64) -> Self {
        Self(vec![None; (bytes / BLOCK_BYTES) as usize])
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.len() as u64 * BLOCK_BYTES
    }
}

/// A block as it was before a write that no flush covers.
#[derive(Debug)]
struct Undo {
    /// Number of the write.
    write: u64,
    block: u32,
    old: Option<Box<Block>>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Disk {
    image: &'static Image,
    /// For each block its place in `changed` plus one, or zero.
    index: Vec<u32>,
    changed: Vec<(u32, Box<Block>)>,
    spare: Vec<Box<Block>>,
    writes: u64,
    undo: Option<Vec<Undo>>,
}

impl Disk {
    pub(crate) fn new(image: &'static Image) -> Self {
        Self {
            image,
            index: vec![0; image.0.len()],
            changed: Vec::new(),
            spare: Vec::new(),
            writes: 0,
            undo: None,
        }
    }

    /// Goes back to an image of the same size.
    pub(crate) fn reset(&mut self, image: &'static Image) {
        assert_eq!(self.index.len(), image.0.len());
        self.image = image;
        for (block, bytes) in self.changed.drain(..) {
            self.index[block as usize] = 0;
            self.spare.push(bytes);
        }
        self.writes = 0;
        self.undo = None;
    }

    /// From now on remembers what a power cut could undo.
    pub(crate) fn track(&mut self) {
        self.undo = Some(Vec::new());
    }

    /// What is on the device now.
    pub(crate) fn to_image(&self) -> Image {
        let blocks = 0..self.index.len() as u32;
        Image(blocks.map(|block| self.block(block).map(|bytes| Box::new(*bytes))).collect())
    }

    /// Number of the next write.
    pub(crate) fn writes(&self) -> u64 {
        self.writes
    }

    /// Content of a block; `None` is zeroes.
    pub(crate) fn block(&self, block: u32) -> Option<&Block> {
        match self.index[block as usize] {
            0 => self.image.0[block as usize].as_deref(),
            i => Some(&self.changed[i as usize - 1].1),
        }
    }

    /// Content of a block, to be changed behind the pool's back.
    pub(crate) fn block_mut(&mut self, block: u32) -> &mut Block {
        if self.index[block as usize] == 0 {
            let mut bytes = self.spare.pop().unwrap_or_else(|| Box::new([0; BLOCK_SIZE]));
            match self.image.0[block as usize].as_deref() {
                Some(from) => *bytes = *from,
                None => bytes.fill(0),
            }
            self.changed.push((block, bytes));
            self.index[block as usize] = self.changed.len() as u32;
        }
        &mut self.changed[self.index[block as usize] as usize - 1].1
    }

    fn check(&self, offset: u64, bytes: usize) -> Result<u32, DeviceError> {
        assert!(
            offset.is_multiple_of(BLOCK_BYTES) && bytes.is_multiple_of(BLOCK_SIZE),
            "not aligned"
        );
        match offset.checked_add(bytes as u64) {
            Some(end) if end <= self.size() => Ok((offset / BLOCK_BYTES) as u32),
            _ => Err(DeviceError::OutOfRange { offset }),
        }
    }

    /// The writes numbered below `write` survive a power cut from now on.
    pub(crate) fn settle(&mut self, write: u64) {
        if let Some(undo) = &mut self.undo {
            undo.retain(|undo| undo.write >= write);
        }
    }

    /// Cuts the power: `fate` says of each block write that no flush covers how many of its
    /// sectors of 512 bytes, from the first, reached the medium.
    pub(crate) fn cut_power(&mut self, mut fate: impl FnMut() -> u8) {
        let mut by_block: BTreeMap<u32, Vec<Option<Box<Block>>>> = BTreeMap::new();
        for undo in self.undo.as_mut().map(std::mem::take).unwrap_or_default() {
            by_block.entry(undo.block).or_default().push(undo.old);
        }
        for (block, olds) in by_block {
            let last = self.block(block).map(|bytes| Box::new(*bytes));
            let mut versions: Vec<Block> =
                olds.into_iter().chain([last]).map(|v| v.map_or([0; BLOCK_SIZE], |v| *v)).collect();
            let news = versions.split_off(1);
            let mut content = versions[0];
            for new in news {
                let bytes = 512 * usize::from(fate().min(8));
                say!("  block {block}: the first {bytes} bytes of a write survive");
                content[..bytes].copy_from_slice(&new[..bytes]);
            }
            *self.block_mut(block) = content;
        }
    }

    /// A write that was on its way when the process died: the first `sectors` of it arrived.
    pub(crate) fn write_part(&mut self, offset: u64, from: &[u8], sectors: u8) {
        let mut left = usize::from(sectors) * 512;
        for (i, new) in from.chunks_exact(BLOCK_SIZE).enumerate() {
            let bytes = left.min(BLOCK_SIZE);
            if bytes == 0 {
                break;
            }
            left -= bytes;
            let block = (offset / BLOCK_BYTES) as u32 + i as u32;
            self.block_mut(block)[..bytes].copy_from_slice(&new[..bytes]);
        }
    }
}

impl BlockIo for Disk {
    fn size(&self) -> u64 {
        self.image.bytes()
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        let first = self.check(offset, into.len())?;
        for (block, into) in (first..).zip(into.chunks_exact_mut(BLOCK_SIZE)) {
            match self.block(block) {
                Some(bytes) => into.copy_from_slice(bytes),
                None => into.fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<(), DeviceError> {
        let first = self.check(offset, from.len())?;
        let write = self.writes;
        self.writes += 1;
        for (block, from) in (first..).zip(from.chunks_exact(BLOCK_SIZE)) {
            if self.undo.is_some() {
                let old = self.block(block).map(|bytes| Box::new(*bytes));
                if let Some(undo) = &mut self.undo {
                    undo.push(Undo { write, block, old });
                }
            }
            self.block_mut(block).copy_from_slice(from);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DeviceError> {
        self.settle(self.writes);
        Ok(())
    }
}
