//! Changing a volume's size: what the clients that have it open see of it.
//!
//! A growth counts when it is durable. What a shrink cuts off is out of range from the moment the
//! engine has accepted it, so that the sessions answer requests beyond the new end from then on as
//! the protocol wants; if it fails, the old end counts again.

use super::connection::Phase;
use super::control::{ControlError, Reply, VolumeStatus};
use super::manage::{Asker, Kind, PendingChange, answer, check_size};
use super::reactor::Reactor;
use flagstone_engine::{IoFault, Shrink};

impl Reactor {
    pub(super) fn resize(
        &mut self,
        name: String,
        size_bytes: u64,
        shrink: Shrink,
        reply: Reply<VolumeStatus>,
    ) {
        let entry = match self.volume_named(&name) {
            Ok(entry) => entry,
            Err(error) => return answer(reply, Err(error)),
        };
        if let Err(error) = check_size(size_bytes) {
            return answer(reply, Err(error));
        }
        let (handle, pool, volume, current) = (entry.handle(), entry.pool, entry.id, entry.size);
        if size_bytes < current && shrink == Shrink::Never {
            let error = ControlError::Shrink { size_bytes, current_bytes: current };
            return answer(reply, Err(error));
        }
        // Even the same size goes to the engine: another change of it may be under way.
        let kind = Kind::Resize { handle, volume, size_bytes, shrink };
        self.submit_change(PendingChange { pool, kind, asker: Asker::Volume(reply) });
    }

    /// The engine has taken a resize.
    pub(super) fn resize_begun(&mut self, handle: u64, size_bytes: u64) {
        if self.catalog.get(handle).is_some_and(|entry| size_bytes < entry.size) {
            self.set_size(handle, size_bytes);
        }
    }

    /// A resize is durable, or has failed.
    pub(super) fn resized(
        &mut self,
        handle: u64,
        size_bytes: u64,
        result: Result<(), IoFault>,
        reply: Reply<VolumeStatus>,
    ) {
        let engine = |entry: &super::catalog::Entry| &self.pools[entry.pool as usize].engine;
        let now = self.catalog.get(handle).and_then(|entry| engine(entry).volume(entry.id));
        let now = now.map(|info| info.size);
        if let Err(fault) = result {
            if let Some(size_bytes) = now {
                self.set_size(handle, size_bytes);
            }
            return answer(
                reply,
                Err(match fault {
                    IoFault::BadBlock { lba } => ControlError::ShrinkDamaged { lba },
                    IoFault::NoSpace => ControlError::NoSpace,
                    _ => ControlError::PoolFailed,
                }),
            );
        }
        self.set_size(handle, size_bytes);
        let Some(entry) = self.catalog.get(handle) else {
            return answer(reply, Err(ControlError::PoolFailed));
        };
        tracing::info!(volume = &*entry.name, bytes = size_bytes, "volume resized");
        answer(reply, Ok(self.status_of(entry)));
    }

    /// Tells everyone who has the volume open.
    fn set_size(&mut self, handle: u64, size_bytes: u64) {
        self.catalog.resize(handle, size_bytes);
        for connection in &mut self.connections {
            let is_open = connection.opened.is_some_and(|opened| opened.handle == handle);
            if is_open && connection.phase == Phase::Serving {
                connection.session.resized(size_bytes);
            }
        }
    }
}
