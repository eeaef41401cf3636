//! Load on a file or block device, through the reactor: one thread, registered buffers and file.
//!
//! Requests are whole blocks of 4096 bytes, as all of Flagstone's are. FUA is a write followed by
//! a flush, and its latency is that of both: the reactor has no other durable write.

use std::path::Path;

use flagstone_block::{BLOCK_SIZE, BlockIo, Buffer, Buffers, DeviceCommand, DeviceIo, IoToken};
use flagstone_ring::{
    Device, DeviceId, Event, MAX_BUFFER_BLOCKS, OpenMode, PassthroughMode, Ring, RingConfig,
    RingError, SpinPolicy, SyncDevice,
};

use crate::{
    RunError, ledger_file,
    pace::{LOOK_NANOS, Pacer},
    record::Recorder,
    report::{self, Report, Setup, Verification},
    rng::Rng,
    run::{self, Control, Driver, Limits, Observer},
    verify::{Checked, Ledger},
    workload::{Generator, Kind, Operation, Workload},
};

/// What may be done to the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawOptions {
    /// Writes even when the target holds data.
    pub force_destructive: bool,
    /// Of an NVMe namespace (`/dev/ngXnY`): how completions are learnt of.
    pub polling: PassthroughMode,
}

/// Runs `workload` against the file or block device at `path`.
///
/// Blocks until the run is over; `observer` is called on this thread meanwhile. There is no way
/// to end a request that the kernel doesn't answer, so [`Limits::stall`] fails the run only once
/// the device answers after all.
///
/// # Errors
/// - `Workload`, `RawBlockSize`, `Open`, `Look`: nothing was written.
/// - `HoldsData`: the run would write, the target isn't blank, and force wasn't given.
/// - `Ring`, `AddDevice`: the reactor; writes may have been carried out.
pub fn run_raw(
    path: &Path,
    workload: &Workload,
    options: RawOptions,
    limits: &Limits,
    observer: &mut dyn Observer,
) -> Result<Report, RunError> {
    workload.validate(1)?;
    let bytes = workload.block_size;
    let max = MAX_BUFFER_BLOCKS * BLOCK_SIZE as u32;
    if !bytes.is_multiple_of(BLOCK_SIZE as u32) || bytes > max {
        return Err(RunError::RawBlockSize { bytes, max });
    }
    let mode = if workload.writes() { OpenMode::Exclusive } else { OpenMode::ReadOnly };
    let mut device = flagstone_nvme::open(path, mode)?;
    let passthrough = passthrough(&device, options.polling)?;
    let requests = workload.requests(device.size(), 1)?;
    if workload.writes() && !options.force_destructive {
        let mut sync = SyncDevice::new(device);
        refuse_data(&mut sync)?;
        device = sync.into_device();
    }
    let mut setup = Setup::new(path.display().to_string(), workload, 1, requests);
    setup.direct = Some(device.is_direct());
    let ledger = ledger_file::open(workload, requests)?;
    let mut driver = RawDriver {
        device,
        passthrough,
        workload,
        generator: Generator::new(workload, requests, 0, 1),
        ledger: ledger.as_ref(),
        left: limits.operations.unwrap_or(u64::MAX),
        checked: Checked::new(),
    };
    let drivers = std::slice::from_mut(&mut driver);
    let outcome = run::drive(drivers, bytes, limits, None, observer);
    ledger.as_ref().map_or(Ok(()), |ledger| ledger_file::save(ledger, workload))?;
    let outcome = outcome?;
    let verification = Verification::sum(std::iter::once(driver.checked));
    Ok(report::build(
        setup,
        &outcome.sample,
        outcome.errors,
        outcome.elapsed,
        outcome.used,
        ledger.is_some().then_some(verification),
    ))
}

/// How a ring is to drive the device. What was asked for is had, or an error: a figure for another way would mislead.
fn passthrough(device: &Device, wanted: PassthroughMode) -> Result<PassthroughMode, RunError> {
    match device.passthrough() {
        None => Ok(PassthroughMode::Off),
        Some(Err(reason)) => Err(RunError::Passthrough { reason: reason.to_owned() }),
        Some(Ok(commands)) if wanted == PassthroughMode::Polled && !commands.can_poll() => {
            let reason = "it has no queues that are polled (nvme.poll_queues)".to_owned();
            Err(RunError::Passthrough { reason })
        }
        Some(Ok(_)) => Ok(wanted),
    }
}

/// Bytes at either end where file systems, partition tables, RAID and volume managers sign.
const ENDS_BYTES: u64 = 1 << 20;
/// Blocks looked at in between.
const SAMPLES: u64 = 1024;

/// Errors unless all that is looked at is zero: both ends, and blocks spread over the rest.
fn refuse_data(device: &mut dyn BlockIo) -> Result<(), RunError> {
    let size = device.size();
    let block = BLOCK_SIZE as u64;
    let ends = ENDS_BYTES.min(size);
    let mut buffer = vec![0; BLOCK_SIZE];
    let front = (0..ends).step_by(BLOCK_SIZE);
    let back = (size - ends..size).step_by(BLOCK_SIZE);
    let stride = (size / block).div_ceil(SAMPLES).max(1);
    let between = (0..size / block).step_by(stride as usize).map(|index| index * block);
    for offset in front.chain(back).chain(between) {
        device.read_at(offset, &mut buffer).map_err(|error| RunError::Look { offset, error })?;
        if buffer.iter().any(|&byte| byte != 0) {
            return Err(RunError::HoldsData { offset });
        }
    }
    Ok(())
}

/// What the device is driven with, made on the driving thread.
struct Local {
    ring: Ring,
    device: DeviceId,
    buffers: Vec<Buffer>,
}

/// One request under way, or room for one.
#[derive(Clone, Copy)]
struct Slot {
    operation: Operation,
    /// When it was issued, nanoseconds since the run's start.
    issued: u64,
    /// The oldest sequence that a verified read may return.
    oldest: u32,
    /// The write is done and its flush is under way.
    flushing: bool,
}

struct RawDriver<'a> {
    device: Device,
    passthrough: PassthroughMode,
    workload: &'a Workload,
    generator: Generator,
    ledger: Option<&'a Ledger>,
    /// Requests to issue inside the window.
    left: u64,
    checked: Checked,
}

impl Driver for RawDriver<'_> {
    type Local = Local;

    fn prepare(&mut self) -> Result<Local, RunError> {
        let blocks = self.workload.block_size / BLOCK_SIZE as u32;
        let depth = self.workload.depth;
        // The arena hands out powers of two; one more level leaves room for its own alignment.
        let arena_blocks = blocks.next_power_of_two().saturating_mul(depth).next_power_of_two();
        let mut ring = Ring::new(RingConfig {
            entries: depth.next_power_of_two(),
            arena_blocks,
            spin: SpinPolicy::Auto,
            max_sockets: 1,
            passthrough: self.passthrough,
        })?;
        let device = ring.add_device(&self.device)?;
        let mut buffers = Vec::with_capacity(depth as usize);
        let mut rng = Rng::new(self.workload.seed, 1 << 40);
        for _ in 0..depth {
            let arena = ring.buffers();
            let buffer = arena.alloc(blocks).ok_or(RingError::OutOfRange {
                what: "arena_blocks",
                value: u64::from(arena_blocks),
            })?;
            if self.workload.zero_buffers {
                arena.bytes_mut(buffer).fill(0);
            } else {
                rng.fill(arena.bytes_mut(buffer));
            }
            buffers.push(buffer);
        }
        Ok(Local { ring, device, buffers })
    }

    fn run(
        &mut self,
        local: Local,
        control: &Control<'_>,
        recorder: &mut Recorder<'_>,
    ) -> Result<(), RunError> {
        let idle = Operation { kind: Kind::Flush, request: 0 };
        let slot = Slot { operation: idle, issued: 0, oldest: 0, flushing: false };
        let count = local.buffers.len();
        let mut turn = Turn {
            slots: vec![slot; count],
            free: (0..count).rev().collect(),
            writes: 0,
            pacer: self.workload.rate.map(|rate| Pacer::new(rate, 0, 1)),
            local,
            driver: self,
        };
        let window = recorder.window();
        loop {
            let now = control.clock.now();
            let running = now < window.until && !control.stopped();
            while running
                && (now < window.from || turn.driver.left > 0)
                && !turn.free.is_empty()
                && let Some(at) = turn.pacer.as_mut().map_or(Some(now), |pacer| pacer.take(now))
                && let Some(slot) = turn.free.pop()
            {
                turn.driver.left -= u64::from(now >= window.from);
                turn.issue(slot, at);
            }
            let goes_on = running && turn.driver.left > 0 && !turn.free.is_empty();
            let due = turn.pacer.as_ref().filter(|_| goes_on).map(Pacer::next_at);
            if turn.free.len() == turn.slots.len() && due.is_none() {
                return Ok(());
            }
            let until = due.map(|at| at.min(window.until).min(now + LOOK_NANOS));
            let ring = &mut turn.local.ring;
            let deadline = until.map(|at| ring.now_ns() + at.saturating_sub(now));
            ring.submit_and_wait(deadline)?;
            let now = control.clock.now();
            while let Some(event) = turn.local.ring.next_event() {
                if let Event::Device { token, result, .. } = event {
                    turn.complete(token.0 as usize, result.is_ok(), now, recorder);
                }
            }
            recorder.turn(now);
        }
    }

    fn abort_handle(&self) -> Result<Box<dyn Fn() + Send>, RunError> {
        // Nothing ends a request that a device has accepted.
        Ok(Box::new(|| ()))
    }
}

/// The state of the loop.
struct Turn<'a, 'b> {
    slots: Vec<Slot>,
    free: Vec<usize>,
    writes: u64,
    pacer: Option<Pacer>,
    local: Local,
    driver: &'a mut RawDriver<'b>,
}

impl Turn<'_, '_> {
    fn issue(&mut self, slot: usize, now: u64) {
        let mut operation = self.driver.generator.next();
        let buffer = self.local.buffers[slot];
        let mut oldest = 0;
        match (operation.kind, self.driver.ledger) {
            (Kind::Read, Some(ledger)) => oldest = ledger.begin_read(operation.request),
            (Kind::Write, Some(ledger)) => {
                let generator = &mut self.driver.generator;
                let (request, sequence) = ledger.begin_write_near(generator, operation.request);
                operation.request = request;
                ledger.stamp(request, sequence, self.local.ring.buffers().bytes_mut(buffer));
            }
            (Kind::Write, None) => self.vary(buffer),
            (Kind::Read | Kind::Flush | Kind::Discard, _) => {}
        }
        self.slots[slot] = Slot { operation, issued: now, oldest, flushing: false };
        let offset = operation.request * u64::from(self.driver.workload.block_size);
        let command = match operation.kind {
            Kind::Read => DeviceCommand::Read { offset, buffer },
            Kind::Write => DeviceCommand::Write { offset, buffer },
            Kind::Flush => DeviceCommand::Flush,
            Kind::Discard => {
                DeviceCommand::Discard { offset, bytes: u64::from(self.driver.workload.block_size) }
            }
        };
        self.submit(slot, command);
    }

    fn submit(&mut self, slot: usize, command: DeviceCommand) {
        let token = IoToken(slot as u64);
        self.local.ring.submit_device(self.local.device, DeviceIo { device: 0, token, command });
    }

    /// Makes each block of a payload unlike all before, so that nothing below can deduplicate.
    fn vary(&mut self, buffer: Buffer) {
        for block in self.local.ring.buffers().bytes_mut(buffer).chunks_mut(BLOCK_SIZE) {
            self.writes = self.writes.wrapping_add(1);
            block[..8].copy_from_slice(&self.writes.to_le_bytes());
        }
    }

    fn complete(&mut self, index: usize, succeeded: bool, now: u64, recorder: &mut Recorder<'_>) {
        let slot = self.slots[index];
        let Operation { kind, request } = slot.operation;
        if kind == Kind::Write && self.driver.workload.fua && succeeded && !slot.flushing {
            self.slots[index].flushing = true;
            self.submit(index, DeviceCommand::Flush);
            return;
        }
        if let Some(ledger) = self.driver.ledger {
            match kind {
                Kind::Write => ledger.end_write(request, succeeded),
                Kind::Read if succeeded => {
                    let payload = self.local.ring.buffers().bytes(self.local.buffers[index]);
                    self.driver.checked.note(ledger.check(request, slot.oldest, payload));
                }
                Kind::Read | Kind::Flush | Kind::Discard => {}
            }
        }
        self.free.push(index);
        recorder.answer(kind, slot.issued, now, succeeded);
    }
}
