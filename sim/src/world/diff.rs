//! Differences of volumes and snapshots, asked for in between and at rest, and judged by the model.

use super::{Check, World};
use flagstone_block::{BLOCK_SIZE, VolumeId};
use flagstone_engine::{DiffError, DiffSpec};

/// A comparison that goes on when it is asked for again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Comparing {
    older: Option<u32>,
    newer: u32,
    /// Next byte.
    at: u64,
}

/// Sizes of pages.
const EXTENTS: [usize; 4] = [1, 7, 100, 4096];
/// Turns in which a comparison must get on: each lets a device answer.
const WAITS: u32 = 100_000;

impl World {
    /// Takes a comparison a step further, or begins one. Draws nothing, so that a seed without snapshots
    /// is what it was.
    pub fn compare_some(&mut self) -> Check {
        if !self.oracle.snapshots_taken {
            return Ok(());
        }
        let comparing = match self.comparing.take() {
            Some(comparing) => comparing,
            None => {
                let all: Vec<u32> = self.oracle.live_volumes().collect();
                let pick = |n: u64| all.get(n as usize % all.len().max(1)).copied();
                let n = self.stats.requests;
                let Some(newer) = pick(n) else { return Ok(()) };
                let older = pick(n / 7).filter(|_| !n.is_multiple_of(5));
                Comparing { older, newer, at: 0 }
            }
        };
        self.comparing = self.compare_step(comparing)?;
        Ok(())
    }

    /// Compares every volume and snapshot with nothing, and with the one before it.
    pub fn compare_all(&mut self) -> Check {
        self.comparing = None;
        if !self.oracle.snapshots_taken {
            return Ok(());
        }
        let all: Vec<u32> = self.oracle.live_volumes().collect();
        for (i, &newer) in all.iter().enumerate() {
            let before = i.checked_sub(1).map(|i| all[i]);
            for older in [None, before, all.last().copied()] {
                let (mut next, mut waited) = (Some(Comparing { older, newer, at: 0 }), 0);
                while let Some(comparing) = next {
                    next = self.compare_step(comparing)?;
                    if next.is_none_or(|next| next.at != comparing.at) {
                        waited = 0;
                        continue;
                    }
                    // An engine that wants another turn must not keep its devices from answering.
                    let (turned, ended) = (self.pump()?, self.end_one()?);
                    waited += 1;
                    if !(turned || ended) || waited > WAITS {
                        return Err(self.fail("stuck: two volumes can't be compared"));
                    }
                }
            }
        }
        Ok(())
    }

    /// One step; `None` if that was the last.
    fn compare_step(&mut self, comparing: Comparing) -> Check<Option<Comparing>> {
        let Comparing { older, newer, at } = comparing;
        let spec = DiffSpec { older: older.map(VolumeId), newer: VolumeId(newer) };
        let extents_max = EXTENTS[self.stats.requests as usize % EXTENTS.len()];
        let mut out = Vec::new();
        let told = self.engine().diff(&spec, at..u64::MAX, &mut out, extents_max);
        self.log.step(&[60, u64::from(newer), at, out.len() as u64], || {
            format!("compare {older:?} with {newer} from {at}: {told:?}, {} extents", out.len())
        });
        let next = match told {
            Ok(next) => next,
            Err(DiffError::Busy) => return Ok(Some(comparing)),
            // One that is being created or deleted.
            Err(DiffError::NoVolume | DiffError::Stopping) => return Ok(None),
            Err(DiffError::Damaged { .. }) => {
                let told = self.engine().counters().leaf_pages_bad;
                if self.bad_leaves_told < told || self.device_failed || self.moved_bad() {
                    self.bad_leaves_told = told.min(self.bad_leaves_told + 1);
                    return Ok(None);
                }
                return Err(self.fail("a leaf is told to be damaged, but is not"));
            }
        };
        let block = BLOCK_SIZE as u64;
        let seen = next.unwrap_or(u64::MAX);
        if seen < at || out.len() > extents_max {
            return Err(self.fail(format!("compared from {at} to {seen}: {out:?}")));
        }
        if !self.device_failed && !self.moved_bad() {
            let range = (at / block, seen / block);
            if let Err(what) = self.oracle.differences((older, newer), range, &out) {
                return Err(self.fail(what));
            }
        }
        Ok(next.map(|at| Comparing { at, ..comparing }))
    }
}
