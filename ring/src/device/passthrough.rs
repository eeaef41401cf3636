//! Devices that take commands of their own (`IORING_OP_URING_CMD`) beside the kernel's block layer.
//!
//! What such a command looks like is the affair of whoever implements [`Passthrough`]; here it is only
//! submitted, and its result handed back to be judged. The block device stays open for exclusion, for whatever
//! has no command of its own, and for the blocking face.

use std::fmt;
use std::os::fd::BorrowedFd;

use flagstone_block::DeviceError;

/// What a command is to do. Addresses are of this process's memory, in the ring's arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassthroughRequest {
    /// Fill `bytes` of memory from byte `offset` of the device.
    Read {
        /// Byte offset on the device, a multiple of its logical block.
        offset: u64,
        /// Destination.
        address: u64,
        /// Length: a multiple of the logical block, at most [`Passthrough::transfer_bytes_max`].
        bytes: u32,
    },
    /// Write `bytes` of memory at byte `offset` of the device.
    Write {
        /// Byte offset on the device, a multiple of its logical block.
        offset: u64,
        /// Source.
        address: u64,
        /// Length, as of a read.
        bytes: u32,
    },
    /// Make all writes that completed survive power loss.
    Flush,
    /// Discard what the list says that [`Passthrough::discard_list`] made.
    Discard {
        /// Where the list lies.
        address: u64,
        /// Its length.
        bytes: u32,
    },
}

/// A driver's command, for a ring with submissions of 128 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassthroughCommand {
    /// The driver's code of operation (`cmd_op`).
    pub code: u32,
    /// What goes with it.
    pub bytes: [u8; 80],
}

/// The command set of a device.
///
/// # Safety
/// A command that [`Passthrough::command`] makes must cause the kernel to touch no memory of this process but that
/// of its request, and to write only there if the request is a read.
pub unsafe trait Passthrough: fmt::Debug + Send + Sync {
    /// The file that commands are given to.
    fn file(&self) -> BorrowedFd<'_>;

    /// The longest transfer of one command, in bytes: a multiple of 4096, at least 4096.
    fn transfer_bytes_max(&self) -> u32;

    /// Whether completions can be polled for: such a command was tried, and worked.
    fn can_poll(&self) -> bool;

    /// The command for a request.
    fn command(&self, request: PassthroughRequest) -> PassthroughCommand;

    /// Writes the list of what is to be discarded, and returns its length; `None` if the device has no command for that.
    fn discard_list(&self, offset: u64, bytes: u64, list: &mut [u8]) -> Option<u32>;

    /// What became of a command, from what the driver returned: 0, a status of the device's own above it, or an
    /// error number below.
    fn outcome(&self, result: i32) -> PassthroughOutcome;
}

/// What became of a device's own command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassthroughOutcome {
    /// It was done.
    Done,
    /// It failed, and would again.
    Failed(DeviceError),
    /// It failed, and another attempt may succeed. Commands are such that doing them twice does no harm.
    Again(DeviceError),
}

/// How a ring drives a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPath {
    /// Through the kernel's block layer, or a file system.
    Block,
    /// By commands of its own; completions come by interrupt.
    Passthrough,
    /// The same; while many transfers are under way, completions are polled for.
    PolledPassthrough,
}

impl fmt::Display for DataPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Block => "block",
            Self::Passthrough => "passthrough",
            Self::PolledPassthrough => "polled passthrough",
        })
    }
}
