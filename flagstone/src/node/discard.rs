//! Whether free segments are discarded on a pool's device.

use flagstone_ring::Device;

/// When the space of free segments is given back to the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceDiscard {
    /// Where it pays: on block devices that can do it, and in files that had holes when they were
    /// opened. One that was allocated in full stays so.
    #[default]
    Auto,
    /// Always, unless the device refuses.
    On,
    /// Never.
    Off,
}

impl DeviceDiscard {
    /// For a device that is being opened.
    pub(super) fn applies(self, device: &Device) -> bool {
        match self {
            Self::Auto => device.discard_pays(),
            Self::On => true,
            Self::Off => false,
        }
    }
}
