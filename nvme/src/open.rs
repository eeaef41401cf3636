//! Opening what a pool lies on, by any of its names.
//!
//! `/dev/ngXnY` names an NVMe namespace and asks that it be driven by commands of its own. Its block device is opened
//! exclusively first, and stays open: it keeps away whoever else might use the namespace, and takes over where commands
//! don't get through.

use std::borrow::Cow;
use std::os::fd::AsFd as _;
use std::path::Path;

use flagstone_ring::{Device, DeviceOpenError, OpenMode};

use crate::namespace::{Namespace, NamespaceError, block_device};

/// Opens a file, a block device, or an NVMe namespace; of the last, [`Device::passthrough`] says whether its commands get through.
///
/// # Errors
/// See [`DeviceOpenError`].
pub fn open(path: &Path, mode: OpenMode) -> Result<Device, DeviceOpenError> {
    let unfit = |error: NamespaceError| DeviceOpenError::Unfit { reason: error.to_string() };
    let Some(block) = block_device(path).map_err(unfit)? else { return Device::open(path, mode) };
    let device = Device::open(&block, mode)?;
    let namespace = match Namespace::open(path, &block, device.as_fd()) {
        Ok(namespace) => namespace,
        // A disk that is dying, or that this process may not give commands to, is still a block device.
        Err(error @ (NamespaceError::Identify { .. } | NamespaceError::Os { .. })) => {
            return Ok(device.with_passthrough(path, Err(error.to_string())));
        }
        Err(error) => return Err(unfit(error)),
    };
    let commands = namespace.commands.map_err(|error| error.to_string());
    let (name, model) = (path.display(), namespace.controller.model);
    let (block_bytes, polls) = (namespace.geometry.block_bytes(), namespace.not_polled.is_none());
    tracing::info!(device = %name, model, block_bytes, polls, "NVMe namespace");
    if let Some(reason) = &namespace.not_polled {
        tracing::debug!(device = %name, %reason, "completions can't be polled for");
    }
    Ok(device.with_passthrough(path, commands))
}

/// Whether a path asks for NVMe commands.
#[must_use]
pub fn is_namespace(path: &Path) -> bool {
    matches!(block_device(path), Ok(Some(_)))
}

/// Where what is at `path` can be looked at: the block device of an NVMe namespace, otherwise the path itself.
#[must_use]
pub fn visible(path: &Path) -> Cow<'_, Path> {
    match block_device(path) {
        Ok(Some(block)) => Cow::Owned(block),
        _ => Cow::Borrowed(path),
    }
}
