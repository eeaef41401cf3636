//! Flagstone's vocabulary: what every crate of the data path agrees on.
//!
//! Nothing here does I/O. A *block* is always [`BLOCK_SIZE`] bytes. Ranges are half-open.

mod address;
mod buffer;
mod device;
mod devices;
mod volume;

pub use address::{BLOCK_BITS, BLOCK_SIZE, Lba};
pub use buffer::{Buffer, Buffers};
pub use device::{
    BlockIo, DEVICE_SHIFT, DEVICES, DeviceCommand, DeviceError, DeviceFault, DeviceIo, IoToken,
    ReadAt, join_offset, split_offset,
};
pub use devices::Devices;
pub use volume::{Durability, Tag, VolumeId, ZeroMode};
