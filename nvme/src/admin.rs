//! Identify commands through the driver's ioctls (`linux/nvme_ioctl.h`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::identify::IDENTIFY_BYTES;
use crate::status::Status;

/// `NVME_IOCTL_ID`: `_IO('N', 0x40)`.
const IOCTL_ID: libc::Ioctl = 0x4e40;
/// `NVME_IOCTL_ADMIN_CMD`: `_IOWR('N', 0x41, struct nvme_admin_cmd)`.
const IOCTL_ADMIN: libc::Ioctl = 0xc048_4e41u32 as libc::Ioctl;
/// Operation code of Identify (Base 2.0, "Opcodes for Admin Commands").
const IDENTIFY: u8 = 0x06;
/// An answer takes no time; without one the device is of no use.
const TIMEOUT_MS: u32 = 10_000;

/// What is identified (CNS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The namespace with this number: 00h.
    Namespace(u32),
    /// The controller: 01h.
    Controller,
}

/// Why there is no identify data.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentifyFailure {
    /// The system call failed.
    #[error(transparent)]
    Os(#[from] io::Error),
    /// The controller refused.
    #[error("{0}")]
    Status(Status),
}

/// `struct nvme_admin_cmd`.
#[repr(C)]
#[derive(Default)]
struct AdminCommand {
    opcode: u8,
    flags: u8,
    reserved: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    address: u64,
    metadata_bytes: u32,
    data_bytes: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

const _: () = assert!(size_of::<AdminCommand>() == 72);

/// The number of the namespace that `device` stands for.
pub(crate) fn namespace_id(device: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: NVME_IOCTL_ID takes no argument.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), IOCTL_ID) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result.cast_unsigned()) }
}

/// Identify data of a namespace or its controller.
pub(crate) fn identify(
    device: BorrowedFd<'_>,
    subject: Subject,
) -> Result<Box<[u8; IDENTIFY_BYTES]>, IdentifyFailure> {
    let mut data = Box::new([0; IDENTIFY_BYTES]);
    let (nsid, cns) = match subject {
        Subject::Namespace(nsid) => (nsid, 0),
        Subject::Controller => (0, 1),
    };
    let mut command = AdminCommand {
        opcode: IDENTIFY,
        nsid,
        address: data.as_mut_ptr() as u64,
        data_bytes: IDENTIFY_BYTES as u32,
        cdw10: cns,
        timeout_ms: TIMEOUT_MS,
        ..AdminCommand::default()
    };
    // SAFETY: `command` is the structure that NVME_IOCTL_ADMIN_CMD reads and writes, and outlives the call; it names
    // `data`, which is as long as it says, is written by the kernel before the call returns, and not touched meanwhile.
    let result =
        unsafe { libc::ioctl(device.as_raw_fd(), IOCTL_ADMIN, std::ptr::from_mut(&mut command)) };
    match result {
        0 => Ok(data),
        ..0 => Err(io::Error::last_os_error().into()),
        status => Err(IdentifyFailure::Status(Status::new(status as u16))),
    }
}
