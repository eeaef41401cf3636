//! Growing a pool whose device has become larger, while it is served.

use super::control::{ControlError, PoolStatus, Reply};
use super::manage::answer;
use super::reactor::Reactor;
use super::request::Name;
use crate::size::Human;
use flagstone_engine::{IoFault, SubmitError};
use std::path::PathBuf;

impl Reactor {
    /// Looks at the device's size and has the engine take what is new.
    pub(super) fn grow(&mut self, path: PathBuf, reply: Reply<PoolStatus>) {
        if !self.stop.is_running() {
            return answer(reply, Err(ControlError::Stopping));
        }
        let Some(p) = self.pools.iter().position(|pool| pool.path == path) else {
            return answer(reply, Err(ControlError::NoSuchPool { path }));
        };
        let pool = &mut self.pools[p];
        if pool.growing.is_some() {
            return answer(reply, Err(ControlError::Overloaded));
        }
        let Ok(bytes) = pool.device.refresh_size() else {
            return answer(reply, Err(ControlError::PoolFailed));
        };
        self.ring.refresh_device(pool.id, &pool.device);
        pool.touched = true;
        match pool.engine.grow(Name::Growth(p as u32).tag(), bytes) {
            Ok(()) => pool.growing = Some(reply),
            Err(error) => answer(reply, Err(refusal(error))),
        }
    }

    /// The engine has taken what is new, or failed to.
    pub(super) fn growth_done(&mut self, pool: u32, result: Result<(), IoFault>) {
        let Some(reply) = self.pools[pool as usize].growing.take() else { return };
        if result.is_err() {
            return answer(reply, Err(ControlError::PoolFailed));
        }
        let status = self.pool_status(pool as usize);
        let (path, capacity) = (status.path.display(), Human(status.capacity_bytes));
        tracing::info!(pool = %path, %capacity, segments = status.segments, "pool grown");
        answer(reply, Ok(status));
    }
}

fn refusal(error: SubmitError) -> ControlError {
    match error {
        SubmitError::Busy => ControlError::Overloaded,
        SubmitError::Stopping => ControlError::Stopping,
        SubmitError::DeviceSize => ControlError::DeviceSize,
        _ => ControlError::PoolFailed,
    }
}
