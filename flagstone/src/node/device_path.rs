//! Which way commands take to a pool's device.

use flagstone_ring::{DataPath, Device, DeviceId, PassthroughMode, Ring};

/// When completions of NVMe commands are polled for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum NvmePolling {
    /// While several transfers are under way, on a machine with more than two cores.
    #[default]
    Auto,
    /// For every transfer: lowest latency, and a core that is busy while there is anything to wait for.
    Always,
    /// Never: by interrupts.
    Never,
}

impl NvmePolling {
    /// For a ring with devices that are to be driven by commands of their own.
    pub(crate) fn mode(self) -> PassthroughMode {
        match self {
            Self::Auto => PassthroughMode::Adaptive,
            Self::Always => PassthroughMode::Polled,
            Self::Never => PassthroughMode::Interrupts,
        }
    }
}

/// Which way commands take to a device, and why it is not the one that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePath {
    /// As the API says it: `file`, `block`, `nvme` or `nvme-polled`.
    pub name: &'static str,
    /// NVMe commands were asked for, but it is the block device that is used.
    pub reason: Option<String>,
}

impl DevicePath {
    /// Of a device that a ring drives.
    pub(super) fn of(ring: &Ring, id: DeviceId, device: &Device) -> Self {
        let name = match (ring.data_path(id), device.kind()) {
            (DataPath::Passthrough, _) => "nvme",
            (DataPath::PolledPassthrough, _) => "nvme-polled",
            (DataPath::Block, flagstone_ring::DeviceKind::File) => "file",
            (DataPath::Block, flagstone_ring::DeviceKind::Block) => "block",
        };
        let reason = match device.passthrough() {
            Some(Err(reason)) => Some(reason.to_owned()),
            Some(Ok(_)) if ring.data_path(id) == DataPath::Block => {
                let why = if ring.mode().wide {
                    "there is no room for it"
                } else {
                    "the daemon was started without such a device, or its kernel is older than Linux 5.19: a restart may help"
                };
                Some(why.to_owned())
            }
            _ => None,
        };
        Self { name, reason }
    }

    /// Says it, in the log.
    pub(super) fn tell(&self, device: &Device, number: usize) {
        let (name, direct, data_path) = (device.path().display(), device.is_direct(), self.name);
        tracing::info!(device = %name, number, direct, data_path, "device opened");
        if let Some(reason) = &self.reason {
            tracing::warn!(device = %name, reason, "driven as a block device, not by NVMe commands");
        }
    }
}
