//! What volumes and snapshots have alone, at rest: counted by the engine, by the model, and by deleting one.

use super::{Check, Submitted, World};
use flagstone_block::{BLOCK_SIZE, VolumeId};
use flagstone_engine::SharedUsage;

impl World {
    /// Counts what every volume and snapshot has alone. Nothing may be under way.
    pub fn check_shared(&mut self) -> Check {
        if !self.oracle.snapshots_taken {
            return Ok(());
        }
        let all: Vec<u32> = self.oracle.live_volumes().collect();
        for id in all {
            let SharedUsage { exclusive, shared, .. } = self.count_shared(id)?;
            let block = BLOCK_SIZE as u64;
            let (mapped, least, most) = self.oracle.alone(id);
            if exclusive + shared != mapped * block
                || !(least * block..=most * block).contains(&exclusive)
            {
                return Err(self.fail(format!(
                    "volume {id} is said to have {exclusive} bytes alone and to share {shared}, but of \
                     {mapped} blocks it has {least} to {most} alone"
                )));
            }
        }
        Ok(())
    }

    /// Deletes a volume or snapshot, waits, and compares what came back with what was announced.
    pub fn check_frees(&mut self, id: u32) -> Check {
        let frees = self.count_shared(id)?.frees;
        let before = self.taken();
        while self.delete(id)? == Submitted::Busy {
            if !self.pump()? && !self.end_one()? {
                return Err(self.fail("stuck: a volume can't be deleted"));
            }
        }
        self.quiesce()?;
        let back = before - self.taken();
        if back != frees {
            return Err(
                self.fail(format!("deleting volume {id} gave {back} bytes back, not {frees}"))
            );
        }
        Ok(())
    }

    fn taken(&mut self) -> u64 {
        let usage = self.engine().usage();
        usage.live + usage.kept
    }

    fn count_shared(&mut self, id: u32) -> Check<SharedUsage> {
        let mut so_far = SharedUsage::default();
        for _ in 0..1_000_000 {
            match self.engine().count_shared(VolumeId(id), so_far) {
                None => return Err(self.fail(format!("volume {id} can't be counted"))),
                Some(Ok(usage)) => return Ok(usage),
                Some(Err(next)) => so_far = next,
            }
        }
        Err(self.fail("a count does not end"))
    }
}
