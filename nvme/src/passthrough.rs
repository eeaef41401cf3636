//! The namespace's commands, for a ring to drive it by.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use flagstone_block::{DeviceError, DeviceFault};
use flagstone_ring::{Passthrough, PassthroughCommand, PassthroughOutcome, PassthroughRequest};

use crate::command::{COMMAND_BYTES, Command, DSM_RANGE_BYTES, DsmRange};
use crate::geometry::Geometry;
use crate::status::Status;

/// `NVME_URING_CMD_IO`: `_IOWR('N', 0x80, struct nvme_uring_cmd)`.
pub(crate) const URING_CMD_IO: u32 = 0xc048_4e80;

/// How one namespace is driven.
#[derive(Debug)]
pub(crate) struct Commands {
    pub file: OwnedFd,
    pub nsid: u32,
    pub geometry: Geometry,
    pub transfer_bytes: u32,
    pub can_poll: bool,
    /// The longest range, in bytes, that may be deallocated at once; 0 if there is no command for that.
    pub discard_bytes_max: u64,
}

/// A command in the space that a submission has for it.
pub(crate) fn padded(command: &Command) -> [u8; 80] {
    let mut bytes = [0; 80];
    bytes[..COMMAND_BYTES].copy_from_slice(&command.encode());
    bytes
}

// SAFETY: a command names as its data the address and length of its request and no other memory (there is no metadata), and the
// driver writes to it for a read only (bit 1 of the code of operation says which way data goes; Base 2.0, "Opcode").
unsafe impl Passthrough for Commands {
    fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn transfer_bytes_max(&self) -> u32 {
        self.transfer_bytes
    }

    fn can_poll(&self) -> bool {
        self.can_poll
    }

    fn command(&self, request: PassthroughRequest) -> PassthroughCommand {
        let nsid = self.nsid;
        let command = match request {
            PassthroughRequest::Read { offset, address, bytes } => {
                let (slba, blocks) = self.geometry.range(offset, bytes.into());
                Command::read(nsid, slba, blocks as u32, address, bytes)
            }
            PassthroughRequest::Write { offset, address, bytes } => {
                let (slba, blocks) = self.geometry.range(offset, bytes.into());
                Command::write(nsid, slba, blocks as u32, address, bytes, false)
            }
            PassthroughRequest::Flush => Command::flush(nsid),
            PassthroughRequest::Discard { address, bytes } => {
                Command::deallocate(nsid, bytes / DSM_RANGE_BYTES as u32, address)
            }
        };
        PassthroughCommand { code: URING_CMD_IO, bytes: padded(&command) }
    }

    fn discard_list(&self, offset: u64, bytes: u64, list: &mut [u8]) -> Option<u32> {
        if bytes > self.discard_bytes_max {
            return None;
        }
        let (slba, blocks) = self.geometry.range(offset, bytes);
        let range = DsmRange { slba, blocks: u32::try_from(blocks).ok()? };
        list.get_mut(..DSM_RANGE_BYTES)?.copy_from_slice(&range.encode());
        Some(DSM_RANGE_BYTES as u32)
    }

    fn outcome(&self, result: i32) -> PassthroughOutcome {
        completion(result)
    }
}

/// What the driver's result means (`nvme_uring_cmd_end_io` in the kernel's `drivers/nvme/host/ioctl.c`): 0, a status, or an
/// error number; `EINTR` for a command that was thrown away, by a reset or a time-out.
#[must_use]
pub fn completion(result: i32) -> PassthroughOutcome {
    let command = |fault| DeviceError::Command { fault, status: 0 };
    match result {
        0 => PassthroughOutcome::Done,
        1.. => match u16::try_from(result).map(|raw| Status::new(raw).outcome()) {
            // A result above 0 is never a status of zeroes.
            Ok(PassthroughOutcome::Done) | Err(_) => {
                PassthroughOutcome::Failed(command(DeviceFault::Internal))
            }
            Ok(outcome) => outcome,
        },
        ..0 => match result.wrapping_neg() {
            libc::EINTR | libc::EAGAIN => PassthroughOutcome::Again(command(DeviceFault::Aborted)),
            libc::ENODEV | libc::ENXIO | libc::EBADF | libc::ENOLINK => {
                PassthroughOutcome::Failed(command(DeviceFault::Removed))
            }
            libc::ETIMEDOUT => PassthroughOutcome::Failed(command(DeviceFault::Aborted)),
            errno => PassthroughOutcome::Failed(DeviceError::Os { errno }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(shift: u32) -> Commands {
        Commands {
            file: std::fs::File::open("/dev/null").expect("it is there").into(),
            nsid: 9,
            geometry: Geometry { shift, blocks: 1 << 20 },
            transfer_bytes: 128 << 10,
            can_poll: false,
            discard_bytes_max: 4 << 20,
        }
    }

    #[test]
    fn requests_become_commands_in_the_namespace_s_own_blocks() {
        for (shift, first, blocks) in [(9, 16, 32), (12, 2, 4)] {
            let commands = commands(shift);
            let one = |request| commands.command(request).bytes;
            let (offset, address, bytes) = (8192, 0xabc0_0000, 16384);
            assert_eq!(
                one(PassthroughRequest::Read { offset, address, bytes }),
                padded(&Command::read(9, first, blocks, address, bytes))
            );
            assert_eq!(
                one(PassthroughRequest::Write { offset, address, bytes }),
                padded(&Command::write(9, first, blocks, address, bytes, false))
            );
            assert_eq!(one(PassthroughRequest::Flush), padded(&Command::flush(9)));
            let mut list = vec![0xff; 64];
            assert_eq!(commands.discard_list(offset, 16384, &mut list), Some(16));
            let range = DsmRange { slba: first, blocks };
            assert_eq!((&list[..16], &list[16..]), (&range.encode()[..], &[0xff; 48][..]));
            assert_eq!(
                one(PassthroughRequest::Discard { address, bytes: 16 }),
                padded(&Command::deallocate(9, 1, address))
            );
            let code = commands.command(PassthroughRequest::Flush).code;
            assert_eq!(code, 0xc048_4e80);
        }
    }

    #[test]
    fn what_is_too_long_to_discard_at_once_goes_another_way() {
        let commands = commands(9);
        assert!(commands.discard_list(0, (4 << 20) + 4096, &mut [0; 16]).is_none());
        assert!(commands.discard_list(0, 4096, &mut [0; 15]).is_none());
        let without = Commands { discard_bytes_max: 0, ..commands };
        assert!(without.discard_list(0, 4096, &mut [0; 16]).is_none());
    }

    #[test]
    fn the_driver_s_results_are_told_apart() {
        use PassthroughOutcome::{Again, Done, Failed};
        let error = |fault, status| DeviceError::Command { fault, status };
        let aborted = error(DeviceFault::Aborted, 0);
        assert_eq!(completion(0), Done);
        assert_eq!(completion(0x281), Again(error(DeviceFault::Medium, 0x281)));
        assert_eq!(completion(0x4281), Failed(error(DeviceFault::Medium, 0x4281)));
        assert_eq!(completion(0x371), Again(error(DeviceFault::Aborted, 0x371)));
        // Nothing above 0 is success, whatever its low bits say.
        for result in [0x8000, 0x1_0000, 0x7fff_0000, i32::MAX] {
            assert_eq!(completion(result), Failed(error(DeviceFault::Internal, 0)), "{result:#x}");
        }
        for errno in [libc::EINTR, libc::EAGAIN] {
            assert_eq!(completion(-errno), Again(aborted));
        }
        assert_eq!(completion(-libc::ENODEV), Failed(error(DeviceFault::Removed, 0)));
        assert_eq!(completion(-libc::ETIMEDOUT), Failed(aborted));
        let refused = DeviceError::Os { errno: libc::EINVAL };
        assert_eq!(completion(-libc::EINVAL), Failed(refused));
        assert!(matches!(completion(i32::MIN), Failed(DeviceError::Os { .. })));
    }
}
