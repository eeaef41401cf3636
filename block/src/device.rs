//! What the engine asks of a device: commands it emits, and the blocking face used at open.

use crate::Buffer;

/// The engine's name for one command under way; comes back with its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IoToken(pub u64);

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
/// Buffers need no alignment; offsets and lengths are multiples of 4096.
pub trait BlockIo {
    /// Size in bytes, fixed while open.
    fn size(&self) -> u64;

    /// Fills `into` from `offset`.
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError>;

    /// Writes `from` at `offset`; not durable before [`BlockIo::flush`].
    fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<(), DeviceError>;

    /// Makes everything written so far survive power loss.
    fn flush(&mut self) -> Result<(), DeviceError>;

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
