//! Volumes as block devices of this machine's kernel (ublk): attached, detached, listed, resized, and taken over when the
//! daemon starts again.
//!
//! ```text
//!   attach:   add -> set parameters -> the node fetches -> start    (/dev/ublkbN is there)
//!   a start:  for each device that nobody serves and that is ours: recover -> the node fetches -> go on
//!   detach:   stop -> the node lets go -> delete
//! ```
//!
//! Which volume a device belongs to is kept by the kernel, beside the device ([`UblkVolume::note`]): there is no file that
//! could be lost or lie. The commands may wait for long, so each attach and detach runs on a thread of its own.

mod device;
mod own;
mod recover;

pub use device::{AttachOptions, UblkDevice, UblkError, UblkState};
pub use own::{list_devices, remove_device};
pub use recover::{Recovered, step_back};

use crate::node::{NodeHandle, UblkTarget, UblkVolume};
use flagstone_ublk::{Control, ControlError, DeviceInfo, DeviceState, Features, Params};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Requests of a device under way at once, unless told otherwise.
pub const DEPTH: u16 = 128;
/// And of one that a user without privilege has made: its requests have buffers of their own.
const DEPTH_UNPRIVILEGED: u16 = 32;
/// Longest transfer, in bytes.
const MAX_IO_BYTES: u32 = 1 << 20;
/// And of one without privilege.
const MAX_IO_BYTES_UNPRIVILEGED: u32 = 256 << 10;

/// How long it may take until the device of a user without privilege belongs to that user, which a rule of the administrator's sees to (udev).
const OWNER_PATIENCE: Duration = Duration::from_secs(5);
const OWNER_INTERVAL: Duration = Duration::from_millis(20);

/// The block device with this number.
#[must_use]
pub fn path_of(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{number}"))
}

/// Block devices of a node.
#[derive(Clone, Debug)]
pub struct Ublk {
    node: NodeHandle,
}

impl Ublk {
    /// Of this node.
    #[must_use]
    pub const fn new(node: NodeHandle) -> Self {
        Self { node }
    }

    /// Makes a block device of a volume, or of a snapshot, which can only be read. If it is one already, that one
    /// is told, and nothing is changed.
    ///
    /// # Errors
    /// [`UblkError`]; there is no new device then.
    pub async fn attach(
        &self,
        name: &str,
        options: AttachOptions,
    ) -> Result<(UblkDevice, bool), UblkError> {
        let target = UblkTarget::Named(name.to_owned());
        let volume = self.node.ublk_volume(target).await?;
        if let Some(number) = volume.device {
            let known = on_thread(move || own::known(&mut Control::open()?, number)).await?;
            return Ok((device::of(&known, Some(&volume)), false));
        }
        let wanted = volume.clone();
        let info = on_thread(move || add(&mut Control::open()?, &wanted, options)).await?;
        let started = match self.node.serve_ublk(&volume, info).await {
            Ok(()) => on_thread(move || Ok(Control::open()?.start(&info)?)).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = started {
            self.take_back(info).await;
            return Err(error);
        }
        tracing::info!(
            volume = name,
            device = info.number,
            "attached as /dev/ublkb{}",
            info.number
        );
        let known = own::Known {
            info: DeviceInfo { state: DeviceState::Live, pid: std::process::id() as i32, ..info },
            size_bytes: Some(volume.size_bytes),
        };
        Ok((device::of(&known, Some(&volume)), true))
    }

    /// Undoes what was done for a device that could not be started.
    async fn take_back(&self, info: DeviceInfo) {
        let stopped = on_thread(move || Ok(Control::open()?.stop(&info)?)).await;
        // Deleting waits until nobody has the character device open.
        let left = self.node.leave_ublk(info.number).await;
        let deleted = on_thread(move || Ok(Control::open()?.delete(&info)?)).await;
        if let Some(error) = stopped.err().or_else(|| left.err().map(Into::into)).or(deleted.err())
        {
            tracing::warn!(device = info.number, %error, "a device that could not be started stays behind");
        }
    }

    /// Takes the block device of a volume or snapshot away. Without `force` only if nobody has it open.
    ///
    /// # Errors
    /// `NotAttached`, `InUse`; otherwise it may be half gone, and [`remove_device`] takes away what is left.
    pub async fn detach(&self, name: &str, force: bool) -> Result<UblkDevice, UblkError> {
        let target = UblkTarget::Named(name.to_owned());
        let volume = self.node.ublk_volume(target).await?;
        let not_attached = || UblkError::NotAttached { name: name.to_owned() };
        let number = volume.device.ok_or_else(not_attached)?;
        let known = on_thread(move || own::known(&mut Control::open()?, number)).await?;
        let info = known.info;
        on_thread(move || {
            if !force {
                own::check_unused(info.number)?;
            }
            Ok(Control::open()?.stop(&info)?)
        })
        .await?;
        self.node.leave_ublk(info.number).await?;
        on_thread(move || Ok(Control::open()?.delete(&info)?)).await?;
        tracing::info!(volume = name, device = info.number, "detached");
        Ok(device::of(&known, Some(&volume)))
    }

    /// The block devices of this node's volumes and snapshots, and those of other Flagstone processes.
    ///
    /// # Errors
    /// [`UblkError`].
    pub async fn list(&self) -> Result<Vec<UblkDevice>, UblkError> {
        let known = on_thread(|| own::devices(&mut Control::open()?)).await?;
        let mut devices = Vec::with_capacity(known.len());
        for known in known {
            let volume = self.node.ublk_volume(UblkTarget::Noted(known.info.note)).await.ok();
            devices.push(device::of(&known, volume.as_ref()));
        }
        Ok(devices)
    }

    /// Tells the kernel that a volume has another size, if it is attached. Where the kernel can't be told, the block device
    /// keeps its size until it is attached again.
    ///
    /// # Errors
    /// [`UblkError`].
    pub async fn resized(&self, name: &str) -> Result<(), UblkError> {
        let target = UblkTarget::Named(name.to_owned());
        let UblkVolume { device, size_bytes, .. } = self.node.ublk_volume(target).await?;
        let Some(number) = device else { return Ok(()) };
        on_thread(move || {
            let mut control = Control::open()?;
            let known = own::known(&mut control, number)?;
            own::set_size(&mut control, &known, size_bytes)
        })
        .await
    }
}

/// Adds a device and tells the kernel what it is; takes it back if that fails.
fn add(
    control: &mut Control,
    volume: &UblkVolume,
    options: AttachOptions,
) -> Result<DeviceInfo, UblkError> {
    let features = control.features();
    let privileged = own::is_privileged();
    let recovery = Features::USER_RECOVERY.with(Features::USER_RECOVERY_REISSUE);
    let needed =
        if privileged { recovery.with(Features::USER_COPY) } else { Features::UNPRIVILEGED_DEV };
    for (feature, name) in [
        (Features::CMD_IOCTL_ENCODE, "UBLK_F_CMD_IOCTL_ENCODE"),
        (Features::USER_COPY, "UBLK_F_USER_COPY"),
        (recovery, "UBLK_F_USER_RECOVERY_REISSUE"),
        (Features::UNPRIVILEGED_DEV, "UBLK_F_UNPRIVILEGED_DEV"),
    ] {
        let wanted = needed.has(feature) || feature == Features::CMD_IOCTL_ENCODE;
        if wanted && !features.has(feature) {
            return Err(ControlError::Lacks { feature: name }.into());
        }
    }
    let wanted = needed.with(Features::CMD_IOCTL_ENCODE);
    let wanted = wanted.with(features.common(Features::UPDATE_SIZE.with(Features::QUIESCE)));
    // Both are about recovery, which devices without privilege don't have, or may come to be refused for them.
    let wanted = if privileged { wanted } else { needed.with(Features::CMD_IOCTL_ENCODE) };
    let (depth, max_io_bytes) = if privileged {
        (DEPTH, MAX_IO_BYTES)
    } else {
        (DEPTH_UNPRIVILEGED, MAX_IO_BYTES_UNPRIVILEGED)
    };
    let info = control.add(&DeviceInfo {
        number: options.number.unwrap_or(u32::MAX),
        queues: 1,
        depth: options.depth.unwrap_or(depth),
        max_io_bytes,
        state: DeviceState::Dead,
        pid: 0,
        features: wanted,
        note: volume.note,
        owner_uid: 0,
        owner_gid: 0,
    })?;
    let params = Params {
        size_bytes: volume.size_bytes,
        max_io_bytes: info.max_io_bytes,
        read_only: volume.read_only,
    };
    let give_up = Instant::now() + OWNER_PATIENCE;
    loop {
        match control.set_params(&info, &params) {
            Ok(()) => return Ok(info),
            // Its character device is not this user's yet.
            Err(ControlError::NotPermitted) if !privileged && Instant::now() < give_up => {
                std::thread::sleep(OWNER_INTERVAL);
            }
            Err(error) => {
                let _ = control.delete(&info);
                return Err(error.into());
            }
        }
    }
}

/// Runs what may wait for the kernel on a thread that serves nobody.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, UblkError> + Send + 'static,
) -> Result<T, UblkError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(UblkError::Ended))
}
