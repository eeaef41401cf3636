//! Device commands: submitted, continued when short, ended with one event.
//!
//! A transfer that the kernel cut short is continued from the last whole logical block; one that
//! makes no such progress ends as [`DeviceError::Short`]. So a short transfer is never taken for
//! success. A discard is `fallocate(2)` with `PUNCH_HOLE`: a file loses its blocks there; a block
//! device zeroes the range in the way that unmaps, or says `EOPNOTSUPP` (`blkdev_fallocate` in the
//! kernel's `block/fops.c`), on a kernel thread that may wait. `EINTR` and `EAGAIN` are submitted
//! again, a bounded number of times without progress.
//!
//! A device with commands of its own (see [`Passthrough`]) gets those instead, in pieces as long as it takes, one after
//! the other; its results are judged by it. What it has no command for goes through the file as well. Both of its
//! files are in the tables of every ring that has its commands: a table is given up only when nothing of its ring is under way
//! any more. So the block device stays locked, even after the process was killed, until the last command has
//! ended: otherwise who comes next could be overtaken by a write of who was before.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use flagstone_block::{
    BLOCK_SIZE, Buffer, Buffers, DeviceCommand, DeviceError, DeviceFault, DeviceIo,
};
use io_uring::{opcode, squeue, types};

use super::polling::PassthroughMode;
use super::setup::REGISTERED_SLOT_BITS;
use super::{DEVICES_MAX, Ring, Target, on_target};
use crate::arena::{MAX_BUFFER_BLOCKS, slots_of};
use crate::device::{DataPath, Device, Passthrough, PassthroughOutcome, PassthroughRequest};
use crate::error::AddError;
use crate::event::{DeviceId, Event};
use crate::mode::BufferMode;
use crate::ops::{DeviceOp, Op, Route, Transfer};
use crate::uring::{Submission, errno_of};

fn is_medium(error: DeviceError) -> bool {
    matches!(error, DeviceError::Command { fault: DeviceFault::Medium, .. })
}

const NO_BUFFER: Buffer = Buffer { slot: 0, blocks: 0 };

/// Submissions of one command that may end in `EINTR` or `EAGAIN` without progress in between.
const RETRIES_MAX: u8 = 100;
/// Attempts of a device's own command after one that might have succeeded; as many as the kernel's driver makes for its own.
const OWN_RETRIES_MAX: u8 = 5;

/// A device as the ring knows it.
pub(super) struct RingDevice {
    /// A duplicate: shares the open file description, and so the lock, of the [`Device`].
    /// `None` once it was removed.
    fd: Option<OwnedFd>,
    target: Target,
    /// Its own commands, if it is driven by them.
    own: Option<Own>,
    size_bytes: u64,
    /// Granularity of progress within a transfer.
    logical_block_bytes: u32,
    in_flight: u32,
}

/// A device's own commands.
struct Own {
    commands: Arc<dyn Passthrough>,
    /// The file that takes them.
    target: Target,
    /// The same, on the ring that polls.
    polled: Option<Target>,
    path: DataPath,
}

impl Ring {
    /// Makes a device usable by [`Ring::submit_device`]. The ring keeps the device open, and its
    /// lock held, until [`Ring::remove_device`], or until the ring is dropped.
    ///
    /// # Errors
    /// `Full` with 64 devices; `Os` if the descriptor can't be duplicated.
    pub fn add_device(&mut self, device: &Device) -> Result<DeviceId, AddError> {
        let vacant = self.devices.iter().position(|device| device.fd.is_none());
        let index = vacant.unwrap_or(self.devices.len()) as u32;
        if index >= DEVICES_MAX {
            return Err(AddError::Full { limit: DEVICES_MAX });
        }
        let fd = device
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| AddError::Os { call: "dup", errno: errno_of(&error) })?;
        let commands = device.passthrough().and_then(Result::ok);
        let target = self.register_file(index, fd.as_fd());
        let own = match (commands, target) {
            (Some(commands), Target::Fixed(_)) => self.own_commands(index, commands, fd.as_fd()),
            _ => None,
        };
        let device = RingDevice {
            target,
            own,
            fd: Some(fd),
            size_bytes: device.size(),
            logical_block_bytes: device.logical_block_bytes(),
            in_flight: 0,
        };
        match self.devices.get_mut(index as usize) {
            Some(vacant) => *vacant = device,
            None => self.devices.push(device),
        }
        Ok(DeviceId(index))
    }

    /// Lets go of a device, which must have nothing in flight.
    ///
    /// # Panics
    /// If it has.
    pub fn remove_device(&mut self, id: DeviceId) {
        let Some(device) = self.devices.get_mut(id.0 as usize) else { return };
        assert_eq!(device.in_flight, 0, "a device is removed when its commands have ended");
        (device.fd, device.size_bytes) = (None, 0);
        let own = device.own.take().map(|own| own.target);
        for target in [Some(device.target), own].into_iter().flatten() {
            if let Target::Fixed(index) = target {
                // Otherwise the kernel would keep the file, and its lock.
                let _ = self.uring.submitter().register_files_update(index, &[-1]);
            }
        }
        if let Some(poller) = &mut self.poller {
            poller.remove(id.0);
        }
    }

    /// Whether and how the device's own commands are used.
    #[must_use]
    pub fn data_path(&self, id: DeviceId) -> DataPath {
        let own = self.devices.get(id.0 as usize).and_then(|device| device.own.as_ref());
        own.map_or(DataPath::Block, |own| own.path)
    }

    fn own_commands(
        &mut self,
        index: u32,
        commands: &Arc<dyn Passthrough>,
        block: BorrowedFd<'_>,
    ) -> Option<Own> {
        if !self.mode.wide {
            return None;
        }
        let place = DEVICES_MAX + self.sockets.len() as u32 + index;
        let target @ Target::Fixed(_) = self.register_file(place, commands.file()) else {
            return None;
        };
        let wanted = match self.passthrough {
            PassthroughMode::Off | PassthroughMode::Interrupts => false,
            PassthroughMode::Adaptive => self.spin.is_enabled(),
            PassthroughMode::Polled => true,
        };
        let poller = if wanted && commands.can_poll() { self.poller() } else { None };
        let polled = poller.and_then(|poller| poller.add(index, commands.file(), block));
        let path = match polled {
            Some(_) => DataPath::PolledPassthrough,
            None => DataPath::Passthrough,
        };
        Some(Own { commands: Arc::clone(commands), target, polled, path })
    }

    /// Takes note that a device has become larger; see [`Device::refresh_size`].
    pub fn refresh_device(&mut self, id: DeviceId, device: &Device) {
        if let Some(known) = self.devices.get_mut(id.0 as usize) {
            known.size_bytes = known.size_bytes.max(device.size());
        }
    }

    /// Commands accepted and not ended on one device.
    #[must_use]
    pub fn device_in_flight(&self, device: DeviceId) -> u32 {
        self.devices.get(device.0 as usize).map_or(0, |device| device.in_flight)
    }

    /// Accepts a command; exactly one [`Event::Device`] with its token will follow. The command's
    /// buffer belongs to the kernel until then. A flush covers the writes whose events were taken
    /// before it was submitted (`fsync(2)`, `fdatasync`).
    ///
    /// # Panics
    /// If `device` is not of this ring, or the buffer is not of this arena or already under way.
    pub fn submit_device(&mut self, device: DeviceId, io: DeviceIo) {
        let target = &mut self.devices[device.0 as usize];
        let (transfer, offset, buffer) = match io.command {
            DeviceCommand::Read { offset, buffer } => (Transfer::Read, offset, buffer),
            DeviceCommand::Write { offset, buffer } => (Transfer::Write, offset, buffer),
            DeviceCommand::Flush => (Transfer::Flush, 0, NO_BUFFER),
            DeviceCommand::Discard { offset, bytes } => {
                (Transfer::Discard(bytes), offset, NO_BUFFER)
            }
        };
        let len = match transfer {
            Transfer::Flush | Transfer::List(_) => None,
            Transfer::Discard(bytes) => Some(bytes),
            Transfer::Read | Transfer::Write => {
                assert!(
                    (1..=MAX_BUFFER_BLOCKS).contains(&buffer.blocks),
                    "a transfer is 1 to {MAX_BUFFER_BLOCKS} blocks"
                );
                Some(buffer.len() as u64)
            }
        };
        if let Some(len) = len {
            let inside = offset.checked_add(len).is_some_and(|end| end <= target.size_bytes);
            if !inside || offset % BLOCK_SIZE as u64 != 0 {
                self.events.push_back(Event::Device {
                    device,
                    token: io.token,
                    result: Err(DeviceError::OutOfRange { offset }),
                });
                return;
            }
        }
        let path = target.own.as_ref().map(|own| own.path);
        let (route, transfer, buffer) = match (path, transfer) {
            (None, _) => (Route::File, transfer, buffer),
            (Some(_), Transfer::Discard(bytes)) => match self.discard_list(device, offset, bytes) {
                Some((list, buffer)) => (Route::Own, list, buffer),
                None => (Route::File, transfer, buffer),
            },
            (Some(path), Transfer::Read | Transfer::Write) if self.polls_for(path) => {
                (Route::Polled, transfer, buffer)
            }
            (Some(_), _) => (Route::Own, transfer, buffer),
        };
        let target = &mut self.devices[device.0 as usize];
        match transfer {
            Transfer::Read => self.arena.begin_write(slots_of(buffer)),
            Transfer::Write | Transfer::List(_) => self.arena.begin_read(slots_of(buffer)),
            Transfer::Flush | Transfer::Discard(_) => {}
        }
        target.in_flight += 1;
        self.device_ops += 1;
        self.device_writes += u32::from(transfer == Transfer::Write);
        self.begin(Op::Device(DeviceOp {
            device: device.0,
            token: io.token,
            transfer,
            offset,
            buffer,
            done: 0,
            retries: 0,
            route,
        }));
    }

    /// The list of what is to be discarded, if the device has a command for that and there is a buffer for it now.
    fn discard_list(
        &mut self,
        device: DeviceId,
        offset: u64,
        bytes: u64,
    ) -> Option<(Transfer, Buffer)> {
        let own = self.devices[device.0 as usize].own.as_ref()?;
        let buffer = self.arena.alloc(1)?;
        let list = own.commands.discard_list(offset, bytes, self.arena.bytes_mut(buffer));
        if list.is_none() {
            self.arena.free(buffer);
        }
        Some((Transfer::List(list?), buffer))
    }

    /// Whether an operation is on the ring that polls.
    pub(super) fn is_polled(&self, index: u32) -> bool {
        matches!(self.ops.get(index), Op::Device(DeviceOp { route: Route::Polled, .. }))
    }

    pub(super) fn device_submission(&self, op: &DeviceOp) -> Submission {
        if op.route == Route::File {
            self.file_submission(op).into()
        } else {
            self.own_submission(op)
        }
    }

    fn own_submission(&self, op: &DeviceOp) -> Submission {
        let own = self.devices[op.device as usize].own.as_ref();
        let own = own.expect("a device is driven one way while it is there");
        let address = self.arena.address(op.buffer.slot, op.done as usize) as u64;
        let offset = op.offset + u64::from(op.done);
        let bytes = op.piece(own.commands.transfer_bytes_max());
        let request = match op.transfer {
            Transfer::Read => PassthroughRequest::Read { offset, address, bytes },
            Transfer::Write => PassthroughRequest::Write { offset, address, bytes },
            Transfer::List(bytes) => PassthroughRequest::Discard { address, bytes },
            Transfer::Flush | Transfer::Discard(_) => PassthroughRequest::Flush,
        };
        let command = own.commands.command(request);
        let buffers = match (op.route, &self.poller) {
            (Route::Polled, Some(poller)) => poller.buffers,
            _ => self.mode.buffers,
        };
        let with_memory = op.transfer != Transfer::Flush;
        let index = (with_memory && buffers == BufferMode::Registered)
            .then_some((op.buffer.slot >> REGISTERED_SLOT_BITS) as u16);
        let target = own.polled.filter(|_| op.route == Route::Polled).unwrap_or(own.target);
        Submission::Large(on_target!(target, fd => {
            opcode::UringCmd80::new(fd, command.code).cmd(command.bytes).buf_index(index).build()
        }))
    }

    fn file_submission(&self, op: &DeviceOp) -> squeue::Entry {
        let target = self.devices[op.device as usize].target;
        // Of the empty buffer: the arena's first byte, and unused.
        let address = self.arena.address(op.buffer.slot, op.done as usize);
        let len = op.buffer.len() as u32 - op.done;
        let offset = op.offset + u64::from(op.done);
        let registered = self.mode.buffers == BufferMode::Registered;
        let index = (op.buffer.slot >> REGISTERED_SLOT_BITS) as u16;
        on_target!(target, fd => match (op.transfer, registered) {
            (Transfer::Read, true) => {
                opcode::ReadFixed::new(fd, address, len, index).offset(offset).build()
            }
            (Transfer::Read, false) => opcode::Read::new(fd, address, len).offset(offset).build(),
            (Transfer::Write, true) => {
                opcode::WriteFixed::new(fd, address, len, index).offset(offset).build()
            }
            (Transfer::Write, false) => opcode::Write::new(fd, address, len).offset(offset).build(),
            (Transfer::Flush | Transfer::List(_), _) => {
                opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build()
            }
            (Transfer::Discard(bytes), _) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(fd, bytes).offset(op.offset).mode(mode).build()
            }
        })
    }

    pub(super) fn complete_device(&mut self, index: u32, mut op: DeviceOp, result: i32) {
        let outcome = match op.route {
            Route::Own | Route::Polled => self.own_outcome(&mut op, result),
            Route::File => match op.transfer {
                Transfer::Flush | Transfer::Discard(_) if result >= 0 => Some(Ok(())),
                _ if result >= 0 => self.progress(&mut op, result as u32),
                _ => self.device_retry(&mut op, -result),
            },
        };
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => {
                self.ops.update(index, Op::Device(op));
                if self.again(index) {
                    return;
                }
                Err(DeviceError::Os { errno: libc::ECANCELED })
            }
        };
        self.ops.release(index);
        match op.transfer {
            Transfer::Read => self.arena.end_write(slots_of(op.buffer)),
            Transfer::Write => self.arena.end_read(slots_of(op.buffer)),
            Transfer::List(_) => {
                self.arena.end_read(slots_of(op.buffer));
                self.arena.free(op.buffer);
            }
            Transfer::Flush | Transfer::Discard(_) => {}
        }
        self.devices[op.device as usize].in_flight -= 1;
        self.device_ops -= 1;
        self.device_writes -= u32::from(op.transfer == Transfer::Write);
        let device = DeviceId(op.device);
        self.events.push_back(Event::Device { device, token: op.token, result: outcome });
    }

    /// What became of a device's own command; `None` if there is more to submit.
    fn own_outcome(&mut self, op: &mut DeviceOp, result: i32) -> Option<Result<(), DeviceError>> {
        let own = self.devices[op.device as usize].own.as_ref();
        let commands = &own.expect("a device is driven one way while it is there").commands;
        let piece = op.piece(commands.transfer_bytes_max());
        match (commands.outcome(result), op.transfer) {
            (PassthroughOutcome::Done, Transfer::Read | Transfer::Write) => {
                self.progress(op, piece)
            }
            (PassthroughOutcome::Done, _) => Some(Ok(())),
            // Who says that a flush of something has failed and then that one succeeded has lost it.
            (PassthroughOutcome::Again(error), Transfer::Flush) if is_medium(error) => {
                Some(Err(error))
            }
            // Each attempt may have waited for a time-out of the driver's.
            (PassthroughOutcome::Again(_), _) if op.retries < OWN_RETRIES_MAX => {
                op.retries += 1;
                self.counters.retries += 1;
                None
            }
            (PassthroughOutcome::Failed(error) | PassthroughOutcome::Again(error), _) => {
                Some(Err(error))
            }
        }
    }

    /// Books `bytes` more; `None` if the rest is to be submitted.
    fn progress(&mut self, op: &mut DeviceOp, bytes: u32) -> Option<Result<(), DeviceError>> {
        let wanted = op.buffer.len() as u32;
        let reached = op.done.saturating_add(bytes);
        if reached >= wanted {
            return Some(Ok(()));
        }
        // O_DIRECT goes on at whole logical blocks only; part of one is transferred once more.
        let whole = reached - reached % self.devices[op.device as usize].logical_block_bytes;
        if whole <= op.done {
            return Some(Err(DeviceError::Short { done: reached, wanted }));
        }
        op.done = whole;
        op.retries = 0;
        self.counters.short_transfers += u64::from(op.route == Route::File);
        None
    }

    /// `None` if the error passes by itself and the command is to be submitted again.
    fn device_retry(&mut self, op: &mut DeviceOp, errno: i32) -> Option<Result<(), DeviceError>> {
        let passing = errno == libc::EINTR || errno == libc::EAGAIN;
        if !passing || op.retries >= RETRIES_MAX {
            return Some(Err(DeviceError::Os { errno }));
        }
        op.retries += 1;
        self.counters.retries += 1;
        None
    }

    /// Puts a descriptor into the registered file table, if there is room at `index`.
    pub(super) fn register_file(&mut self, index: u32, fd: BorrowedFd<'_>) -> Target {
        let raw = fd.as_raw_fd();
        if index < self.mode.registered_files
            && self.uring.submitter().register_files_update(index, &[raw]).is_ok()
        {
            return Target::Fixed(index);
        }
        Target::Fd(raw)
    }
}
