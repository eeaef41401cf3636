//! Growing a pool whose device has become larger, while it is served.

use super::control::{ControlError, PoolStatus, Reply};
use super::manage::answer;
use super::reactor::Reactor;
use super::request::Name;
use crate::size::Human;
use flagstone_engine::{IoFault, SubmitError};
use std::path::PathBuf;

impl Reactor {
    /// Looks at the sizes of all devices and has the engine take what is new.
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
        for member in pool.members.iter_mut().flatten() {
            if member.device.refresh_size().is_err() {
                return answer(reply, Err(ControlError::PoolFailed));
            }
            self.ring.refresh_device(member.id, &member.device);
        }
        pool.growing = Some((reply, 0));
        self.grow_next(p);
    }

    /// Has the engine take what is new on the next device, or says that all is done.
    fn grow_next(&mut self, p: usize) {
        let pool = &mut self.pools[p];
        let Some((reply, mut number)) = pool.growing.take() else { return };
        while number < pool.members.len() {
            // One that failed stays as it is.
            let failed =
                pool.engine.devices().any(|device| device.device == number && device.failed);
            let Some(member) = pool.members[number].as_ref().filter(|_| !failed) else {
                number += 1;
                continue;
            };
            let bytes = member.device.size();
            pool.touched = true;
            match pool.engine.grow(Name::Growth(p as u32).tag(), number, bytes) {
                Ok(()) => pool.growing = Some((reply, number + 1)),
                Err(error) => answer(reply, Err(refusal(error))),
            }
            return;
        }
        let status = self.pool_status(p);
        let (path, capacity) = (status.path.display(), Human(status.capacity_bytes));
        tracing::info!(pool = %path, %capacity, segments = status.segments, "pool grown");
        answer(reply, Ok(status));
    }

    /// The engine has taken what is new, or failed to.
    pub(super) fn growth_done(&mut self, pool: u32, result: Result<(), IoFault>) {
        if result.is_ok() {
            return self.grow_next(pool as usize);
        }
        if let Some((reply, _)) = self.pools[pool as usize].growing.take() {
            answer(reply, Err(ControlError::PoolFailed));
        }
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
