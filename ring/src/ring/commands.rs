//! Commands of a driver (`IORING_OP_URING_CMD`, 16 bytes each) for files that are not devices of a pool.
//!
//! What a command means, and which memory it names, is the affair of whoever makes it: see [`Command::new`]. Such
//! commands may wait for as long as nobody asks anything of the driver, and many drivers don't let go
//! of them when asked to; so dropping the ring does not wait for them. The kernel ends them when it
//! closes the ring. Their files are not in the registered table: before Linux 6.13 the kernel waits, when that is given up, for all
//! that use it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use io_uring::{opcode, squeue, types};

use super::Ring;
use crate::error::AddError;
use crate::event::{CommandFileId, Event};
use crate::ops::Op;
use crate::uring::errno_of;

/// Files that commands are given to.
const COMMAND_FILES_MAX: u32 = 256;

/// A driver's command: its operation code, and the bytes that go with it.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    pub(crate) code: u32,
    pub(crate) bytes: [u8; 16],
}

impl Command {
    /// A command as the driver defines it.
    ///
    /// # Safety
    /// Whatever memory the driver touches because of this command must stay valid, and what it writes be borrowed by
    /// nobody, until the command's completion; if that never comes because the ring was dropped, until the process ends.
    #[must_use]
    pub const unsafe fn new(code: u32, bytes: [u8; 16]) -> Self {
        Self { code, bytes }
    }
}

/// A file that commands are given to.
#[derive(Default)]
pub(super) struct CommandFile {
    /// A duplicate; `None` if the slot is free.
    fd: Option<OwnedFd>,
    in_flight: u32,
    generation: u32,
}

impl Ring {
    /// Makes a file usable by [`Ring::submit_command`]. The ring keeps it open until
    /// [`Ring::remove_command_file`].
    ///
    /// # Errors
    /// `Full` with 256 files; `Os` if the descriptor can't be duplicated.
    pub fn add_command_file(&mut self, file: impl AsFd) -> Result<CommandFileId, AddError> {
        let vacant = self.command_files.iter().position(|file| file.fd.is_none());
        let slot = vacant.unwrap_or(self.command_files.len());
        if slot >= COMMAND_FILES_MAX as usize {
            return Err(AddError::Full { limit: COMMAND_FILES_MAX });
        }
        let fd = file
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| AddError::Os { call: "dup", errno: errno_of(&error) })?;
        if vacant.is_none() {
            self.command_files.push(CommandFile::default());
        }
        let entry = &mut self.command_files[slot];
        entry.fd = Some(fd);
        Ok(CommandFileId { slot: slot as u32, generation: entry.generation })
    }

    /// Lets go of a file, whose commands must have ended.
    ///
    /// # Panics
    /// If some have not.
    pub fn remove_command_file(&mut self, id: CommandFileId) {
        let Some(entry) = self.command_files.get_mut(id.slot as usize) else { return };
        if entry.generation != id.generation || entry.fd.is_none() {
            return;
        }
        assert_eq!(entry.in_flight, 0, "a file is removed when its commands have ended");
        entry.generation = entry.generation.wrapping_add(1);
        entry.fd = None;
    }

    /// Accepts a command; exactly one [`Event::Command`] with `name` will follow, unless the ring is dropped before.
    ///
    /// # Panics
    /// If the file was removed.
    pub fn submit_command(&mut self, file: CommandFileId, name: u32, command: Command) {
        let entry = &mut self.command_files[file.slot as usize];
        assert!(
            entry.generation == file.generation && entry.fd.is_some(),
            "a command for a file that was removed"
        );
        entry.in_flight += 1;
        self.commands += 1;
        self.begin(Op::Command { file: file.slot, name, command });
    }

    pub(super) fn command_submission(&self, file: u32, command: &Command) -> squeue::Entry {
        let fd = self.command_files[file as usize].fd.as_ref();
        let fd = types::Fd(fd.expect("a file with commands is not removed").as_raw_fd());
        opcode::UringCmd16::new(fd, command.code).cmd(command.bytes).build()
    }

    pub(super) fn complete_command(&mut self, index: u32, file: u32, name: u32, result: i32) {
        self.ops.release(index);
        self.commands -= 1;
        let entry = &mut self.command_files[file as usize];
        entry.in_flight -= 1;
        let id = CommandFileId { slot: file, generation: entry.generation };
        self.events.push_back(Event::Command { file: id, name, result });
    }
}
