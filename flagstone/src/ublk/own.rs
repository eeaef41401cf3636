//! Which of the machine's ublk devices are ours, and what can be done with them without a daemon.

use super::device::{self, UblkDevice, UblkError};
use super::path_of;
use flagstone_ublk::{Control, ControlError, DeviceInfo, DeviceState, Features, device_numbers};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// A device as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) info: DeviceInfo,
    /// `None` if it was never told.
    pub(super) size_bytes: Option<u64>,
}

/// Whether this process may make devices that outlive it.
pub(super) fn is_privileged() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether the kernel has any ublk devices: asked where most machines have none, or no ublk.
pub(super) fn are_there() -> bool {
    device_numbers().is_ok_and(|numbers| !numbers.is_empty())
}

/// All devices with a note, which those of other makers have none of, with blocks like ours.
pub(super) fn devices(control: &mut Control) -> Result<Vec<Known>, UblkError> {
    let mut devices = Vec::new();
    for number in device_numbers()? {
        let info = match control.info(number) {
            Ok(info) => info,
            // It went away meanwhile, or is somebody else's.
            Err(ControlError::NoDevice { .. } | ControlError::NotPermitted) => continue,
            Err(error) => return Err(error.into()),
        };
        if info.note == 0 || info.queues != 1 {
            continue;
        }
        match control.params(&info) {
            Ok(params) => devices.push(Known { info, size_bytes: Some(params.size_bytes) }),
            Err(ControlError::NoDevice { .. } | ControlError::NotPermitted) => {}
            // Added, and left before it was told what it is.
            Err(ControlError::Params(..)) if info.state == DeviceState::Dead => {
                devices.push(Known { info, size_bytes: None });
            }
            Err(ControlError::Params(..)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(devices)
}

/// What the kernel knows of a device of ours.
pub(super) fn known(control: &mut Control, number: u32) -> Result<Known, UblkError> {
    let info = control.info(number)?;
    let size_bytes = Some(control.params(&info)?.size_bytes);
    Ok(Known { info, size_bytes })
}

/// Refuses if somebody has the block device open in a way that excludes others, as a mount does, or holds it, as the
/// device-mapper does.
pub(super) fn check_unused(number: u32) -> Result<(), UblkError> {
    // Given with O_EXCL, a block device that is mounted or claimed can't be opened (open(2)).
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(path_of(number), flags, Mode::empty()) {
        Err(Errno::BUSY) => Err(UblkError::InUse { number }),
        // Gone, or not started.
        _ => Ok(()),
    }
}

/// Tells the kernel a device's size, if it is another one.
pub(super) fn set_size(
    control: &mut Control,
    known: &Known,
    size_bytes: u64,
) -> Result<(), UblkError> {
    if known.size_bytes == Some(size_bytes) || known.info.state == DeviceState::Dead {
        return Ok(());
    }
    let number = known.info.number;
    if !known.info.features.has(Features::UPDATE_SIZE) {
        tracing::warn!(
            device = number,
            "this kernel can't change the size of /dev/ublkb{number}; it has the new one when it is attached again"
        );
        return Ok(());
    }
    control.update_size(&known.info, size_bytes)?;
    tracing::info!(device = number, size_bytes, "/dev/ublkb{number} has another size");
    Ok(())
}

/// The devices of Flagstone on this machine, without a daemon: whose they are is not known then.
///
/// # Errors
/// [`UblkError`].
pub fn list_devices() -> Result<Vec<UblkDevice>, UblkError> {
    let known = devices(&mut Control::open()?)?;
    Ok(known.iter().map(|known| device::of(known, None)).collect())
}

/// Takes a device away that no process serves. What waits for it fails.
///
/// # Errors
/// `NotOurs`; `Served` if a process does; `InUse` without `force` if somebody has it open.
pub fn remove_device(number: u32, force: bool) -> Result<UblkDevice, UblkError> {
    let mut control = Control::open()?;
    let known = devices(&mut control)?.into_iter().find(|known| known.info.number == number);
    let known = known.ok_or(UblkError::NotOurs { number })?;
    if known.info.state == DeviceState::Live {
        let pid = u32::try_from(known.info.pid).unwrap_or(0);
        return Err(UblkError::Served { number, pid });
    }
    if !force {
        check_unused(number)?;
    }
    control.stop(&known.info)?;
    control.delete(&known.info)?;
    Ok(device::of(&known, None))
}
