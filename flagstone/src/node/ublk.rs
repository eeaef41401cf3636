//! Block devices of the kernel (ublk): their requests come through the ring and become requests of
//! [`super::local`].
//!
//! ```text
//!   /dev/ublkbN -> kernel -> fetch completes -> descriptor -> request -> engine -> commit, and fetch the next
//! ```
//!
//! A device is made, started and deleted by a control thread ([`crate::ublk`]); here it is only served. Each of its requests
//! has a number and is either the kernel's (a fetch is under way) or ours, until its result is committed.
//! When the process dies, or stops, the kernel keeps those that are ours, and all that come, for the next process that
//! serves the device, and sends them again: so what could not be done when the node stops is not
//! answered at all. That is why each may be done twice, which changes nothing: the second time comes before
//! anything that was asked after an answer.

use super::catalog::Entry;
use super::control::{ControlError, Reply};
use super::local::{Asker, IoError, LocalOp, Parts, Request as LocalRequest};
use super::manage::answer;
use super::reactor::Reactor;
use flagstone_block::{Durability, ZeroMode};
use flagstone_ring::CommandFileId;
use flagstone_ublk::{DeviceInfo, IoCommand, Operation, Queue, result_of};
use rustix::io::Errno;
use rustix::mm::MlockAllFlags;
use rustix::process::{Resource, Rlimit, getrlimit};

/// What a block device is to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UblkTarget {
    /// A volume, or a snapshot as `VOLUME@SNAPSHOT`.
    Named(String),
    /// The one with this note; see [`UblkVolume::note`].
    Noted(u64),
    /// The one with this UUID, if there are not several.
    Uuid([u8; 16]),
}

/// What a block device needs to know of its volume or snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UblkVolume {
    /// Its name.
    pub name: String,
    /// What the kernel keeps for us with the device, by which the next process finds the volume: the
    /// first half of its UUID.
    pub note: u64,
    /// Its UUID.
    pub uuid: [u8; 16],
    /// Bytes.
    pub size_bytes: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// The device that serves it, if it is attached to this node.
    pub device: Option<u32>,
    /// The N of `/dev/nbdN`, if the kernel's NBD client has it from this node.
    pub nbd: Option<u32>,
    pub(crate) handle: u64,
}

/// A device that is served.
struct Device {
    number: u32,
    queue: Queue,
    file: CommandFileId,
    /// Of the volume or snapshot.
    handle: u64,
    /// Requests that are ours.
    ours: u32,
    /// Who waits for its end.
    leaving: Option<Reply<()>>,
}

/// All devices, by the slots that the ring gave their files.
#[derive(Default)]
pub(super) struct Ublk {
    devices: Vec<Option<Device>>,
    /// The process was made fit to serve the machine that it runs on.
    prepared: bool,
}

impl Ublk {
    fn get(&mut self, slot: u32) -> Option<&mut Device> {
        self.devices.get_mut(slot as usize)?.as_mut()
    }

    /// Copies bytes of a write; false if the device is gone.
    pub(super) fn take(&mut self, slot: u32, tag: u16, from: usize, into: &mut [u8]) -> bool {
        self.get(slot).is_some_and(|device| device.queue.take(tag, from, into).is_ok())
    }

    /// Gives a read its bytes; false if the device is gone.
    pub(super) fn give(&mut self, slot: u32, tag: u16, from: usize, data: &[u8]) -> bool {
        self.get(slot).is_some_and(|device| device.queue.give(tag, from, data).is_ok())
    }

    /// The device that serves a volume or snapshot.
    fn number_of(&self, handle: u64) -> Option<u32> {
        let mut devices = self.devices.iter().flatten();
        devices.find(|device| device.handle == handle).map(|device| device.number)
    }
}

/// Whoever serves a block device of its own machine must not need that device to go on: when memory is short the kernel writes to it, and
/// waits. So this thread's own requests for memory don't wait for writing (`PR_SET_IO_FLUSHER`, prctl(2)), and what it
/// touches stays in memory (mlockall(2)): a page of it could lie on a swap device that it serves. Each needs a privilege; without, the
/// daemon serves, and says so.
fn prepare() {
    if let Err(errno) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::warn!(%errno, "PR_SET_IO_FLUSHER was refused: under memory pressure this daemon and its block devices may wait for each other");
    }
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    // With a limit a later request for memory would fail once it is reached, which is worse.
    let none = Rlimit { current: None, maximum: None };
    let unlimited = getrlimit(Resource::Memlock) == none
        || rustix::process::setrlimit(Resource::Memlock, none).is_ok();
    let locked = if unlimited { rustix::mm::mlockall(flags) } else { Err(Errno::PERM) };
    if let Err(errno) = locked {
        tracing::warn!(%errno, "mlockall was refused: keep swap off the block devices that this daemon serves (LimitMEMLOCK=infinity)");
    }
}

impl Reactor {
    /// What is known of a volume or snapshot that a device is to serve.
    pub(super) fn ublk_volume(&self, target: &UblkTarget) -> Result<UblkVolume, ControlError> {
        let found = match target {
            UblkTarget::Named(name) => {
                self.catalog.named(name).or_else(|| self.catalog.snapshot(name))
            }
            UblkTarget::Noted(note) => self.catalog.iter().find(|entry| note_of(entry) == *note),
            UblkTarget::Uuid(uuid) => {
                let exported = |entry: &&Entry| self.catalog.exported(entry.handle()).is_some();
                let mut found = self.catalog.iter().filter(|e| e.uuid == *uuid).filter(exported);
                found.next().filter(|_| found.next().is_none())
            }
        };
        let entry = found.ok_or_else(|| match target {
            UblkTarget::Named(name) if name.contains('@') => {
                ControlError::NoSuchSnapshot { name: name.clone() }
            }
            UblkTarget::Named(name) => ControlError::NoSuchVolume { name: name.clone() },
            UblkTarget::Noted(note) => ControlError::NoSuchVolume { name: format!("{note:016x}") },
            UblkTarget::Uuid(uuid) => {
                let name = format!("{:032x}", u128::from_be_bytes(*uuid));
                ControlError::NoSuchVolume { name }
            }
        })?;
        Ok(UblkVolume {
            name: entry.name.to_string(),
            note: note_of(entry),
            uuid: entry.uuid,
            size_bytes: entry.size,
            read_only: entry.read_only,
            device: self.ublk.number_of(entry.handle()),
            nbd: self.kernel_nbd_of(entry.handle()),
            handle: entry.handle(),
        })
    }

    /// Refuses what a block device can't bear: it can't be taken away from here, whoever attached it detaches it.
    pub(super) fn check_detached(&self, handle: u64) -> Result<(), ControlError> {
        self.check_no_ublk(handle)?;
        match self.kernel_nbd_for(handle) {
            Some(number) => Err(ControlError::Attached { driver: "nbd", number }),
            None => Ok(()),
        }
    }

    pub(super) fn check_no_ublk(&self, handle: u64) -> Result<(), ControlError> {
        match self.ublk.number_of(handle) {
            Some(number) => Err(ControlError::Attached { driver: "ublk", number }),
            None => Ok(()),
        }
    }

    /// See [`prepare`].
    pub(super) fn prepare_for_kernel(&mut self) {
        if !std::mem::replace(&mut self.ublk.prepared, true) {
            prepare();
        }
    }

    /// Begins to serve a device that was added, or is to be recovered.
    pub(super) fn serve_ublk(
        &mut self,
        handle: u64,
        info: &DeviceInfo,
    ) -> Result<(), ControlError> {
        if !self.stop.is_running() {
            return Err(ControlError::Stopping);
        }
        if self.catalog.get(handle).is_none() {
            return Err(ControlError::NoSuchVolume { name: String::new() });
        }
        self.prepare_for_kernel();
        let refused = |reason: String| ControlError::Ublk { number: info.number, reason };
        self.check_detached(handle)?;
        let queue = Queue::open(info).map_err(|error| refused(error.to_string()))?;
        let file =
            self.ring.add_command_file(&queue).map_err(|error| refused(error.to_string()))?;
        let depth = queue.depth();
        let device = Device { number: info.number, queue, file, handle, ours: 0, leaving: None };
        let slot = file.slot();
        if self.ublk.devices.len() <= slot {
            self.ublk.devices.resize_with(slot + 1, || None);
        }
        self.ublk.devices[slot] = Some(device);
        self.catalog.opened(handle, true);
        for tag in 0..depth {
            self.command_ublk(slot as u32, IoCommand::Fetch { tag });
        }
        tracing::info!(device = info.number, depth, "serving /dev/ublkb{}", info.number);
        Ok(())
    }

    /// Waits until the kernel has taken back every request of a device, which it does once it was stopped; answers then, and
    /// at once if there is no such device.
    pub(super) fn leave_ublk(&mut self, number: u32, reply: Reply<()>) {
        let mut devices = self.ublk.devices.iter_mut().enumerate();
        let found = devices.find(|(_, d)| d.as_ref().is_some_and(|d| d.number == number));
        let Some((slot, Some(device))) = found else { return answer(reply, Ok(())) };
        device.leaving = Some(reply);
        self.forget_ublk(slot as u32);
    }

    fn command_ublk(&mut self, slot: u32, command: IoCommand) {
        let Some(device) = self.ublk.get(slot) else { return };
        let (file, name) = (device.file, u32::from(command.tag()));
        let command = device.queue.begin(command);
        self.ring.submit_command(file, name, command);
    }

    /// A fetch, with or without a commit before it, has ended.
    pub(super) fn ublk_event(&mut self, file: CommandFileId, name: u32, result: i32) {
        let (slot, tag) = (file.slot() as u32, name as u16);
        let Some(device) = self.ublk.get(slot).filter(|device| device.file == file) else { return };
        device.queue.ended();
        if !result_of(result) {
            return self.forget_ublk(slot);
        }
        if !self.stop.is_running() {
            // The next process gets it.
            return;
        }
        device.ours += 1;
        let request = match device.queue.request(tag) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(device = device.number, %error, "a request can't be served");
                return self.commit(slot, tag, Err(IoError::OutOfRange));
            }
        };
        let (op, durability) = match request.operation {
            Operation::Read => (LocalOp::Read, Durability::Completed),
            Operation::Write { fua } => (LocalOp::Write, durability(fua)),
            Operation::Flush => (LocalOp::Flush, Durability::Completed),
            Operation::Discard => (zero(request.len, ZeroMode::Discard), Durability::Completed),
            Operation::WriteZeroes { keep_allocated, fua } => {
                let mode =
                    if keep_allocated { ZeroMode::KeepAllocated } else { ZeroMode::MayUnmap };
                (zero(request.len, mode), durability(fua))
            }
        };
        if request.len == 0 && !matches!(op, LocalOp::Flush) {
            return self.commit(slot, tag, Ok(0));
        }
        self.local.push(LocalRequest {
            handle: device.handle,
            op,
            durability,
            offset: request.offset,
            len: request.len,
            asker: Asker::Kernel { device: slot, tag },
            progress: Parts::default(),
        });
    }

    /// Tells the kernel what became of a request, and asks for the next.
    pub(super) fn commit(&mut self, slot: u32, tag: u16, outcome: Result<u32, IoError>) {
        let Some(device) = self.ublk.get(slot) else { return };
        device.ours -= 1;
        let result = match outcome {
            Ok(bytes) => bytes as i32,
            // It was not done because of the stop: the next process gets it.
            Err(IoError::Closed) if !self.stop.is_running() => return,
            Err(error) => -errno(error),
        };
        self.command_ublk(slot, IoCommand::CommitAndFetch { tag, result });
    }

    /// Forgets a device of which nothing is under way any more, if somebody waits for that.
    fn forget_ublk(&mut self, slot: u32) {
        let is_over = |device: &mut Device| {
            device.leaving.is_some() && device.queue.under_way() == 0 && device.ours == 0
        };
        if !self.ublk.get(slot).is_some_and(is_over) {
            return;
        }
        let Some(mut device) = self.ublk.devices[slot as usize].take() else { return };
        self.ring.remove_command_file(device.file);
        self.catalog.opened(device.handle, false);
        if let Some(reply) = device.leaving.take() {
            // The character device has to be closed when the answer is there.
            drop(device);
            answer(reply, Ok(()));
        }
    }
}

fn note_of(entry: &Entry) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = entry.uuid;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

const fn zero(len: u64, mode: ZeroMode) -> LocalOp {
    LocalOp::Zero { len, mode }
}

const fn durability(fua: bool) -> Durability {
    if fua { Durability::Fua } else { Durability::Completed }
}

/// As `errno_to_blk_status` of the kernel understands it: what it does not know is `EIO`.
fn errno(error: IoError) -> i32 {
    match error {
        IoError::NoSpace => Errno::NOSPC.raw_os_error(),
        IoError::OutOfRange => Errno::INVAL.raw_os_error(),
        _ => Errno::IO.raw_os_error(),
    }
}
