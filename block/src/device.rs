//! What the engine asks of a device: commands it emits, and the blocking face used at open.

use crate::Buffer;

/// The engine's name for one command under way; comes back with its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IoToken(pub u64);

/// Devices that a pool may have.
pub const DEVICES: usize = 32;

/// Where the number of the device begins in an offset that is about all devices of a pool, as
/// [`BlockIo`] takes it. Below it are bytes from the device's start.
pub const DEVICE_SHIFT: u32 = 48;

/// The device that an offset of a pool lies on, and the bytes from that device's start.
#[must_use]
pub const fn split_offset(offset: u64) -> (usize, u64) {
    ((offset >> DEVICE_SHIFT) as usize, offset & ((1 << DEVICE_SHIFT) - 1))
}

/// The offset, of a pool, of byte `offset` of device `device`.
#[must_use]
pub const fn join_offset(device: usize, offset: u64) -> u64 {
    ((device as u64) << DEVICE_SHIFT) | offset
}

/// One command for a pool's device. Offsets are bytes from its start, multiples of 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceCommand {
    /// Fill `buffer` from `offset`.
    Read {
        /// Byte offset on the device.
        offset: u64,
        /// Destination; its length is the length of the read.
        buffer: Buffer,
    },
    /// Write `buffer` at `offset`. Completion says nothing about durability.
    Write {
        /// Byte offset on the device.
        offset: u64,
        /// Source; its length is the length of the write.
        buffer: Buffer,
    },
    /// Make every write that completed before this command was issued survive power loss.
    Flush,
    /// What lies there is of no use any more. Until it completes any part of the range may hold
    /// anything; after that, and after a crash, too, until it is written again. A failure means
    /// that the device does not do that, or not now, and nothing else.
    Discard {
        /// Byte offset on the device.
        offset: u64,
        /// Length, a multiple of 4096.
        bytes: u64,
    },
}

/// A command with the name its completion must carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceIo {
    /// Number of the device in its pool: 0 where there is one only.
    pub device: u8,
    /// Passed back unchanged.
    pub token: IoToken,
    /// What to do.
    pub command: DeviceCommand,
}

/// Why a device command failed. Carries the operating system's number, never a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The operating system refused or failed the command.
    #[error("device error: {}", std::io::Error::from_raw_os_error(*errno))]
    Os {
        /// As in `errno.h`, positive.
        errno: i32,
    },
    /// The device itself failed the command, and said so with a status of its own.
    #[error("{fault} (status {status:#x})")]
    Command {
        /// What that means.
        fault: DeviceFault,
        /// As the device says it; of NVMe the status field of the completion.
        status: u16,
    },
    /// Fewer bytes were transferred than asked for.
    #[error("the device transferred {done} of {wanted} bytes")]
    Short {
        /// Bytes transferred.
        done: u32,
        /// Bytes asked for.
        wanted: u32,
    },
    /// The range lies outside the device.
    #[error("offset {offset} lies outside the device")]
    OutOfRange {
        /// Byte offset of the refused command.
        offset: u64,
    },
}

/// What a device means by failing a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFault {
    /// The medium: what was written can't be read, or can't be written here.
    #[error("the device has a medium error there")]
    Medium,
    /// The device is gone, or can't be reached.
    #[error("the device was removed, or can't be reached any more")]
    Removed,
    /// The command was thrown away, again and again: resets of the controller, or time-outs.
    #[error("the device did not do the command in time and was reset")]
    Aborted,
    /// It can't be written to.
    #[error("the device is write-protected or reserved for another host")]
    Protected,
    /// It has no room.
    #[error("the device has no room left for what it promised to hold")]
    NoSpace,
    /// It doesn't take the command as it is.
    #[error("the device refuses the command")]
    Refused,
    /// A fault inside of it, or one that has no name here.
    #[error("the device has an internal error")]
    Internal,
}

impl DeviceError {
    /// The closest number of `errno.h`, positive.
    #[must_use]
    pub const fn errno(self) -> i32 {
        const EIO: i32 = 5;
        const ENXIO: i32 = 6;
        const ENODEV: i32 = 19;
        const EINVAL: i32 = 22;
        const ENOSPC: i32 = 28;
        const EROFS: i32 = 30;
        const ENODATA: i32 = 61;
        const ETIMEDOUT: i32 = 110;
        match self {
            Self::Os { errno } => errno,
            Self::Command { fault, .. } => match fault {
                DeviceFault::Medium => ENODATA,
                DeviceFault::Removed => ENODEV,
                DeviceFault::Aborted => ETIMEDOUT,
                DeviceFault::Protected => EROFS,
                DeviceFault::NoSpace => ENOSPC,
                DeviceFault::Refused => EINVAL,
                DeviceFault::Internal => EIO,
            },
            Self::Short { .. } => EIO,
            Self::OutOfRange { .. } => ENXIO,
        }
    }
}

/// One element of [`BlockIo::read_many`].
#[derive(Debug)]
pub struct ReadAt<'a> {
    /// Byte offset on the device, a multiple of 4096.
    pub offset: u64,
    /// Destination; a whole number of blocks.
    pub into: &'a mut [u8],
}

/// A device driven one call at a time: used to format, open, recover and check a pool, where
/// there is nobody to serve meanwhile. Serving uses [`DeviceCommand`]s.
///
/// Buffers need no alignment; offsets and lengths are multiples of 4096. Of a pool with several
/// devices this is all of them at once: see [`join_offset`] and [`crate::Devices`].
pub trait BlockIo {
    /// Size in bytes, fixed while open; of several devices the sum.
    fn size(&self) -> u64;

    /// Size of device `device` in bytes; `None` if it is not there.
    fn device_bytes(&self, device: usize) -> Option<u64> {
        (device == 0).then(|| self.size())
    }

    /// Fills `into` from `offset`.
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError>;

    /// Writes `from` at `offset`; not durable before [`BlockIo::flush`].
    fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<(), DeviceError>;

    /// Makes everything written so far survive power loss.
    fn flush(&mut self) -> Result<(), DeviceError>;

    /// As [`BlockIo::flush`], of those devices only whose numbers are `wanted`.
    fn flush_devices(&mut self, wanted: &dyn Fn(usize) -> bool) -> Result<(), DeviceError> {
        if wanted(0) { self.flush() } else { Ok(()) }
    }

    /// Performs many reads, in any order or at once; `results[i]` answers `reads[i]`.
    ///
    /// The default goes one by one; a device with a queue should keep it full.
    fn read_many(&mut self, reads: &mut [ReadAt<'_>], results: &mut Vec<Result<(), DeviceError>>) {
        results.clear();
        for read in reads {
            results.push(self.read_at(read.offset, read.into));
        }
    }
}
