//! One pool of the node: an engine and the devices it is driven on.

use flagstone_block::DeviceError;
use flagstone_engine::{Engine, PoolState};
use flagstone_ring::{Device, DeviceId};
use std::path::PathBuf;

use super::control::{PoolStatus, Reply};
use super::device_path::DevicePath;
use super::waiting::Waiting;
use super::warning::Warning;

/// A device of a pool.
pub(super) struct Member {
    /// Holds the device's lock for as long as the pool is served.
    pub(super) device: Device,
    pub(super) id: DeviceId,
    pub(super) path: DevicePath,
}

/// A change of the devices under way.
pub(super) struct Changing {
    /// Who asked for it.
    pub(super) reply: Reply<PoolStatus>,
    /// The number of the device that is being added, if one is.
    pub(super) joining: Option<usize>,
}

/// See the module's documentation.
pub(super) struct Pool {
    /// As configured: of the device that was named first.
    pub(super) path: PathBuf,
    /// Its devices, by their numbers.
    pub(super) members: Vec<Option<Member>>,
    pub(super) engine: Engine,
    /// Something was given to the engine since it was last pumped.
    pub(super) touched: bool,
    /// What the device failed with, for good: an engine that has stopped only says that it has.
    pub(super) failure: Option<DeviceError>,
    /// Requests that wait for space.
    pub(super) waiting: Waiting,
    /// Who asked for the growth that is under way, and the next device.
    pub(super) growing: Option<(Reply<PoolStatus>, usize)>,
    pub(super) changing: Option<Changing>,
    /// A scrub was begun whose end is not logged yet.
    pub(super) scrubbing: bool,
    /// How full the pool was told to be.
    pub(super) warning: Warning,
    /// That the map is damaged was told.
    pub(super) told_damage: bool,
    /// Which failed devices were told, a bit each.
    pub(super) told_failed: u32,
}

impl Pool {
    /// The device with this number.
    pub(super) fn member(&self, number: usize) -> Option<&Member> {
        self.members.get(number)?.as_ref()
    }

    pub(super) fn put(&mut self, number: usize, member: Member) {
        if self.members.len() <= number {
            self.members.resize_with(number + 1, || None);
        }
        self.members[number] = Some(member);
    }

    /// Whether one of its devices has this name in the ring.
    pub(super) fn has(&self, id: DeviceId) -> bool {
        self.members.iter().flatten().any(|member| member.id == id)
    }

    /// Takes note of devices that failed, or the whole pool, once each.
    pub(super) fn note_failure(&mut self) {
        if self.failure.is_some() {
            return;
        }
        let failed = self.engine.devices().filter(|device| device.failed);
        let failed = failed.fold(0u32, |mask, device| mask | 1 << device.device);
        let running = self.engine.state() == PoolState::Running;
        if running && std::mem::replace(&mut self.told_failed, failed) & failed != failed {
            let what = self.failed_devices().unwrap_or_default();
            tracing::error!(pool = %self.path.display(), "{what}");
        }
        if let PoolState::Failed(error) = self.engine.state() {
            tracing::error!(
                pool = %self.path.display(),
                error = self.reason(error),
                "the pool has failed: it is only read from now on; when its device is well \
                 again, a restart recovers it"
            );
            self.failure = Some(error);
        }
    }
}
