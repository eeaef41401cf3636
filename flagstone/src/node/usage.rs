//! What a volume or snapshot shares with others, counted in small steps between clients' requests.

use super::control::{ControlError, Reply};
use super::diff::DiffTarget;
use super::manage::answer;
use super::reactor::Reactor;
use super::walks::{Step, Walk, missing};
use flagstone_block::VolumeId;
use flagstone_engine::SharedUsage;

/// What a volume or snapshot takes of its pool, and shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Its name; a snapshot's is `VOLUME@SNAPSHOT`.
    pub name: String,
    /// Its identity for ever.
    pub uuid: [u8; 16],
    /// Bytes that no other volume or snapshot has.
    pub exclusive_bytes: u64,
    /// Bytes that others have too.
    pub shared_bytes: u64,
    /// Bytes that come back to the pool when it is deleted.
    pub frees_bytes: u64,
}

/// A count on its way.
pub(super) struct Count {
    pub(super) pool: u32,
    volume: VolumeId,
    so_far: SharedUsage,
    usage: Usage,
    pub(super) reply: Reply<Usage>,
}

impl Count {
    /// It has come to its end.
    pub(super) fn end(self, result: Result<(), ControlError>) {
        answer(self.reply, result.map(|()| self.usage));
    }
}

impl Reactor {
    pub(super) fn begin_usage(&mut self, target: &DiffTarget, reply: Reply<Usage>) {
        let found = self.check_walk().and_then(|()| self.compared(target));
        match found {
            Ok(entry) => {
                let usage = Usage {
                    name: entry.name.to_string(),
                    uuid: entry.uuid,
                    exclusive_bytes: 0,
                    shared_bytes: 0,
                    frees_bytes: 0,
                };
                let (pool, volume, so_far) = (entry.pool, entry.id, SharedUsage::default());
                let count = Count { pool, volume, so_far, usage, reply };
                self.walks.push_back(Walk::Count(count));
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    pub(super) fn count_step(&self, count: &mut Count) -> Step {
        let engine = &self.pools[count.pool as usize].engine;
        match engine.count_shared(count.volume, count.so_far) {
            None => Step::Over(Err(missing(&count.usage.name))),
            Some(Err(so_far)) => {
                count.so_far = so_far;
                Step::GoesOn { busy: false }
            }
            Some(Ok(SharedUsage { exclusive, shared, frees, .. })) => {
                let usage = &mut count.usage;
                (usage.exclusive_bytes, usage.shared_bytes) = (exclusive, shared);
                usage.frees_bytes = frees;
                Step::Over(Ok(()))
            }
        }
    }
}
