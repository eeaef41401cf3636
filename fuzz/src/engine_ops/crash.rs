//! After a crash: what the pool holds must be something that the model allows, and becomes what
//! the model holds.

use super::model::{Cell, Existence, Model, Op, Volume};
use crate::world::World;
use flagstone_block::{BLOCK_SIZE, VolumeId};

/// Blocks of one read.
const READ_BLOCKS: u64 = 64;

/// How a life ended, and so what must have survived it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The process died: whatever was answered.
    Kill,
    /// The power failed: whatever was flushed.
    PowerCut,
}

impl Model {
    fn must_survive(&self, op: Op, end: End) -> bool {
        let fate = &self.fates[op as usize];
        fate.durable || (end == End::Kill && fate.acknowledged.is_some())
    }

    /// Compares the pool with what may be there, then forgets everything but what is.
    pub(super) fn settle(&mut self, world: &mut World, end: End) {
        // The last request that is known to have survived: all that was answered before it was
        // sent must be there too.
        let mut survivor = 0;
        self.settle_volumes(world, end, &mut survivor);
        let mut observed = Vec::new();
        for volume in &self.volumes {
            observed.push(self.observe(world, volume, end, &mut survivor));
        }
        for (volume, observed) in self.volumes.iter().zip(&observed) {
            for ((lba, cell), found) in volume.cells.iter().zip(observed) {
                self.check_prefix(&volume.name, *lba, cell, *found, survivor);
            }
        }
        for (volume, observed) in self.volumes.iter_mut().zip(observed) {
            for (cell, found) in volume.cells.values_mut().zip(observed) {
                cell.base = cell.version(found).clone();
                cell.versions.clear();
            }
        }
        self.fates.clear();
    }

    fn settle_volumes(&mut self, world: &World, end: End, survivor: &mut u64) {
        let found: Vec<_> = world.engine.volumes().cloned().collect();
        for info in &found {
            let known = self.volume(info.id).unwrap_or_else(|| panic!("{info:?} came back"));
            assert_eq!(known.name, info.name);
        }
        let mut volumes = std::mem::take(&mut self.volumes);
        volumes.retain_mut(|volume| {
            let info = found.iter().find(|info| info.id == volume.id);
            let sent = |op: Op| self.fates[op as usize].sent;
            match (volume.existence, info) {
                (Existence::Creating(op), Some(_)) => *survivor = sent(op).max(*survivor),
                (Existence::Creating(op), None) => assert!(!self.must_survive(op, end)),
                (Existence::Active, found) => assert!(found.is_some(), "{} is gone", volume.name),
                (Existence::Deleting(op), None) => *survivor = sent(op).max(*survivor),
                (Existence::Deleting(op), Some(_)) => assert!(!self.must_survive(op, end)),
            }
            let Some(info) = info else { return false };
            volume.existence = Existence::Active;
            let blocks = info.size / BLOCK_SIZE as u64;
            // A growth to the size that there was proves nothing.
            if blocks != volume.blocks {
                let grown = volume.growths.iter().find(|(_, size)| *size == blocks);
                let (op, _) = grown.unwrap_or_else(|| panic!("{blocks} blocks: {volume:?}"));
                *survivor = sent(*op).max(*survivor);
            }
            volume.blocks = blocks;
            volume.growths.clear();
            true
        });
        self.volumes = volumes;
    }

    /// Reads the blocks of `volume` that were written to; for each the newest version that it
    /// could be.
    fn observe(
        &self,
        world: &mut World,
        volume: &Volume,
        end: End,
        survivor: &mut u64,
    ) -> Vec<usize> {
        let mut observed = Vec::with_capacity(volume.cells.len());
        let mut cells = volume.cells.iter().peekable();
        while let Some(first) = cells.peek().map(|(lba, _)| **lba) {
            let mut run = Vec::new();
            while let Some((_, cell)) = cells.next_if(|(lba, _)| {
                **lba == first + run.len() as u64 && (run.len() as u64) < READ_BLOCKS
            }) {
                run.push(cell);
            }
            // A growth that did not survive takes nothing with it that was written to.
            let id = VolumeId(volume.id);
            let here = volume.blocks.saturating_sub(first).min(run.len() as u64);
            let bytes = if here == 0 {
                Vec::new()
            } else {
                let read = world.read(id, first, here as u32).expect("inside the volume");
                read.unwrap_or_else(|fault| panic!("{} at {first}: {fault}", volume.name))
            };
            for (i, cell) in run.into_iter().enumerate() {
                let due = cell.newest(|op| self.must_survive(op, end));
                let Some(bytes) = bytes.get(i * BLOCK_SIZE..(i + 1) * BLOCK_SIZE) else {
                    assert_eq!(due, 0, "block {} beyond the end survived", first + i as u64);
                    observed.push(0);
                    continue;
                };
                let is = |v: &usize| cell.version(*v).is(bytes);
                let Some(newest) = (due..=cell.versions.len()).rev().find(is) else {
                    let older = (0..due).rev().find(is);
                    panic!(
                        "{} block {}: of {} versions {due} must be there, but it is {older:?}, {end:?}",
                        volume.name,
                        first + i as u64,
                        cell.versions.len(),
                    );
                };
                // Two versions may look alike: it proves only that the older one survived.
                let oldest = (0..=newest).find(is).unwrap_or(newest);
                if oldest > 0 {
                    let op = cell.versions[oldest - 1].0;
                    *survivor = self.fates[op as usize].sent.max(*survivor);
                }
                observed.push(newest);
            }
        }
        observed
    }

    fn check_prefix(&self, name: &str, lba: u64, cell: &Cell, found: usize, survivor: u64) {
        let before = |op: Op| self.fates[op as usize].acknowledged.is_some_and(|at| at < survivor);
        let due = cell.newest(before);
        assert!(
            found >= due,
            "{name} block {lba}: version {due} was answered before something that survived was \
             sent, but version {found} is there"
        );
    }
}
