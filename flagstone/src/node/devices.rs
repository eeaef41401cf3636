//! The devices of a pool while it is served: added, emptied and removed, kept after all.

use super::control::{ControlError, ControlRequest, NodeHandle, PoolStatus, Reply};
use super::device_path::DevicePath;
use super::manage::answer;
use super::pool::{Changing, Member, Pool};
use super::reactor::Reactor;
use super::request::Name;
use crate::pool::create::{self, CreateError, CreateOptions, Target};
use crate::pool::explain;
use flagstone_block::{DeviceError, Tag};
use flagstone_engine::{IoFault, NewDevice, SubmitError};
use flagstone_ring::Device;
use std::path::{Path, PathBuf};

/// What is asked of a pool's devices.
#[derive(Debug)]
pub enum DeviceChange {
    /// Use this one too. It is empty, or what is on it may go.
    Add {
        /// It, opened exclusively.
        device: Box<Device>,
        /// Its identity, a random number.
        uuid: [u8; 16],
    },
    /// Empty one, and let go of it. Answered when that has begun; it goes on after a restart, too.
    Remove {
        /// Its identity as text, or its path.
        device: String,
    },
    /// End the emptying of one, and use it again.
    Keep {
        /// Its identity as text, or its path.
        device: String,
    },
}

/// One device of a pool as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Its number in the pool.
    pub number: u32,
    /// Its identity for ever.
    pub uuid: [u8; 16],
    /// By which it was opened.
    pub path: PathBuf,
    /// Its size, as the pool knows it.
    pub bytes: u64,
    /// Its segments.
    pub segments: u32,
    /// Those of them that hold nothing.
    pub segments_empty: u32,
    /// It is being emptied.
    pub leaving: bool,
    /// Something on it can't be read, and so not be moved.
    pub stuck: bool,
    /// The journal lies there.
    pub journal: bool,
    /// It is not there, and the pool is read without it. Its path is where it was last.
    pub missing: bool,
    /// It failed a write or a flush: nothing is written to it any more. If the pool could not spare it, nothing is
    /// written to the pool.
    pub failed: bool,
    /// Why it failed, in words, if that is known.
    pub reason: Option<String>,
    /// Which way commands take to it; `None` if it is not there.
    pub data_path: Option<DevicePath>,
}

/// Why a device was not added to a pool.
#[derive(Debug, thiserror::Error)]
pub enum AddDeviceError {
    /// It can't be used.
    #[error(transparent)]
    Target(#[from] CreateError),
    /// The pool can't take it.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Makes or examines a file or block device, as for a new pool, so that it can be added to one. Looks
/// at all of a file that holds something, and so may take a while.
///
/// # Errors
/// [`CreateError`].
pub fn prepare_device(
    path: &Path,
    size_bytes: Option<u64>,
    force: bool,
) -> Result<Target, CreateError> {
    let options = CreateOptions {
        path: path.to_owned(),
        more: Vec::new(),
        size_bytes,
        segment_bytes: None,
        preallocate: false,
        force,
        quiet: true,
    };
    create::prepare(&options, path, false)
}

impl NodeHandle {
    /// See [`ControlRequest::ChangeDevices`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn change_devices(
        &self,
        pool: PathBuf,
        change: DeviceChange,
    ) -> Result<PoolStatus, ControlError> {
        self.ask(|reply| ControlRequest::ChangeDevices { pool, change, reply }).await
    }

    /// Adds a device that [`prepare_device`] has made ready.
    ///
    /// # Errors
    /// [`AddDeviceError`].
    pub async fn add_device(
        &self,
        pool: PathBuf,
        target: Target,
    ) -> Result<PoolStatus, AddDeviceError> {
        let made = target.made().then(|| target.device.path().to_owned());
        let device = Box::new(target.cleaned()?);
        let uuid = *uuid::Uuid::new_v4().as_bytes();
        let added = self.change_devices(pool, DeviceChange::Add { device, uuid }).await;
        if let Some(path) = made.filter(|_| added.is_err()) {
            let _ = std::fs::remove_file(path);
        }
        Ok(added?)
    }
}

impl Reactor {
    /// See [`DeviceChange`].
    pub(super) fn change_devices(
        &mut self,
        path: &Path,
        change: DeviceChange,
        reply: Reply<PoolStatus>,
    ) {
        if !self.stop.is_running() {
            return answer(reply, Err(ControlError::Stopping));
        }
        let Some(p) = self.pools.iter().position(|pool| pool.path == *path) else {
            return answer(reply, Err(ControlError::NoSuchPool { path: path.to_owned() }));
        };
        if self.pools[p].changing.is_some() {
            return answer(reply, Err(ControlError::Overloaded));
        }
        let tag = Name::Device(p as u32).tag();
        self.pools[p].touched = true;
        let begun = match change {
            DeviceChange::Add { device, uuid } => self.add_device(p, tag, *device, uuid).map(Some),
            DeviceChange::Remove { device } => {
                self.pools[p].number_of(&device).and_then(|number| {
                    self.pools[p].engine.remove_device(tag, number).map_err(refusal).map(|()| None)
                })
            }
            DeviceChange::Keep { device } => self.pools[p].number_of(&device).and_then(|number| {
                self.pools[p].engine.keep_device(tag, number).map_err(refusal).map(|()| None)
            }),
        };
        match begun {
            Ok(joining) => self.pools[p].changing = Some(Changing { reply, joining }),
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn add_device(
        &mut self,
        p: usize,
        tag: Tag,
        device: Device,
        uuid: [u8; 16],
    ) -> Result<usize, ControlError> {
        let id = self.ring.add_device(&device).map_err(|_| ControlError::TooManyDevices)?;
        let name = device.path().display().to_string();
        let new = NewDevice { uuid, bytes: device.size(), name: &name };
        match self.pools[p].engine.add_device(tag, &new) {
            Ok(number) => {
                let path = DevicePath::of(&self.ring, id, &device);
                path.tell(&device, number);
                self.pools[p].put(number, Member { device, id, path });
                Ok(number)
            }
            Err(error) => {
                self.ring.remove_device(id);
                Err(refusal(error))
            }
        }
    }

    /// A change was made, or not.
    pub(super) fn device_change_done(&mut self, pool: u32, result: Result<(), IoFault>) {
        let Some(Changing { reply, joining }) = self.pools[pool as usize].changing.take() else {
            return;
        };
        if result.is_err() {
            if let Some(number) = joining {
                self.let_go(pool as usize, number);
            }
            return answer(reply, Err(ControlError::DeviceFailed));
        }
        let status = self.pool_status(pool as usize);
        for device in &status.devices {
            let path = device.path.display();
            tracing::info!(pool = %status.path.display(), device = %path, leaving = device.leaving,
                "device of the pool");
        }
        answer(reply, Ok(status));
    }

    /// Lets go of devices that were emptied.
    pub(super) fn take_removed(&mut self, p: usize) {
        while let Some(number) = self.pools[p].engine.take_removed() {
            self.let_go(p, number);
        }
    }

    fn let_go(&mut self, p: usize, number: usize) {
        let pool = &mut self.pools[p];
        let Some(member) = pool.members.get_mut(number).and_then(Option::take) else { return };
        self.ring.remove_device(member.id);
        let device = member.device.path().display();
        tracing::info!(pool = %pool.path.display(), %device, "device is no part of the pool any more");
    }
}

impl Pool {
    /// Number of the device that has this identity, or that was opened by this path.
    fn number_of(&self, wanted: &str) -> Result<usize, ControlError> {
        let found = self.engine.devices().find(|info| {
            let path = self.member(info.device).map(|member| member.device.path());
            uuid::Uuid::from_bytes(info.uuid).hyphenated().to_string() == wanted
                || path.is_some_and(|path| path == Path::new(wanted))
        });
        let unknown = || ControlError::NoSuchDevice { device: wanted.to_owned() };
        found.map(|info| info.device).ok_or_else(unknown)
    }

    /// Every device as it is now.
    pub(super) fn device_statuses(&self) -> Vec<DeviceStatus> {
        let status = |info: flagstone_engine::DeviceInfo| {
            let member = self.member(info.device);
            let last = || PathBuf::from(info.label.as_str());
            let path = member.map_or_else(last, |m| m.device.path().to_owned());
            DeviceStatus {
                number: info.device as u32,
                uuid: info.uuid,
                path,
                bytes: info.bytes,
                segments: info.segments,
                segments_empty: info.segments_empty,
                leaving: info.leaving,
                stuck: info.stuck,
                journal: info.journal,
                missing: member.is_none() && (self.engine.is_degraded() || info.failed),
                failed: info.failed,
                reason: info.reason.map(explain),
                data_path: member.map(|m| m.path.clone()),
            }
        };
        self.engine.devices().map(status).collect()
    }

    /// What a device failed with and, of several, which it was, in words.
    pub(super) fn reason(&self, error: DeviceError) -> String {
        let failed = self.engine.devices().filter(|info| info.failed).last();
        let member = failed.and_then(|info| self.member(info.device));
        match member.filter(|_| self.members.iter().flatten().count() > 1) {
            Some(member) => format!("{}: {}", member.device.path().display(), explain(error)),
            None => explain(error),
        }
    }

    /// Which devices have failed that the pool goes on without, in words.
    pub(super) fn failed_devices(&self) -> Option<String> {
        let statuses = self.device_statuses();
        let named = statuses.iter().filter(|status| status.failed).map(|status| {
            let reason = match &status.reason {
                _ if status.missing => ": it is not there".to_owned(),
                Some(reason) => format!(": {reason}"),
                None => String::new(),
            };
            format!("device {} ({}) has failed{reason}", status.number, status.path.display())
        });
        let named: Vec<String> = named.collect();
        (!named.is_empty()).then(|| {
            format!(
                "{}; the pool goes on without, and what lies there is read as far as it can be: move it with \
                 `flagstone pool remove`",
                named.join(", and ")
            )
        })
    }

    /// Which devices are missing, in words.
    pub(super) fn missing(&self) -> String {
        let statuses = self.device_statuses();
        let missing = statuses.iter().filter(|status| status.missing);
        let named = missing.map(|status| {
            let uuid = uuid::Uuid::from_bytes(status.uuid).hyphenated();
            format!("device {} ({uuid}, last at {})", status.number, status.path.display())
        });
        let named: Vec<String> = named.collect();
        format!(
            "{} is missing: the pool is only read, and what lies there is an I/O error",
            named.join(" and ")
        )
    }
}

fn refusal(error: SubmitError) -> ControlError {
    match error {
        SubmitError::Busy => ControlError::Overloaded,
        SubmitError::Stopping => ControlError::Stopping,
        SubmitError::Failed => ControlError::PoolFailed,
        SubmitError::ReadOnly => ControlError::PoolReadOnly,
        error => ControlError::DeviceRefused { reason: error.to_string() },
    }
}
