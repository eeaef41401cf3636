//! Load on anything that takes requests and answers them: the caller brings the target.
//!
//! FUA is a write followed by a flush, and its latency is that of both.

use std::time::Duration;

use crate::{
    RunError, ledger_file,
    pace::{LOOK_NANOS, Pacer},
    record::Recorder,
    report::{self, Report, Setup, Verification},
    rng::Rng,
    run::{self, Control, Driver, Limits, Observer},
    verify::{Checked, Ledger},
    workload::{Generator, Kind, Operation, Workload, slice_of},
};

/// What a request is about, and the memory for it.
#[derive(Debug)]
pub struct TargetRequest {
    /// What is to be done.
    pub kind: Kind,
    /// First byte.
    pub offset: u64,
    /// What is written, or room for what is read; as long as what is discarded.
    pub data: Vec<u8>,
}

/// A request that is over.
#[derive(Debug)]
pub struct TargetAnswer {
    /// As it was begun.
    pub slot: usize,
    /// Its memory, with what was read; `None` if the request failed.
    pub data: Option<Vec<u8>>,
}

/// One connection to a target, used by one thread.
pub trait Target: Send {
    /// Begins a request in a slot whose last one is over.
    fn begin(&mut self, slot: usize, request: TargetRequest);

    /// A request that is over, if there is one.
    fn answer(&mut self) -> Option<TargetAnswer>;

    /// Sleeps until there may be an answer, for `time` at most.
    fn wait(&mut self, time: Option<Duration>);
}

/// Runs `workload` on `targets`, all of which are connections to what is called `name` and has `size` bytes. Each gets a
/// thread.
///
/// Blocks until the run is over; `observer` is called on this thread meanwhile.
///
/// # Errors
/// - `Workload`: nothing was asked. `Ledger`: nothing was written, or it could not be saved afterwards.
/// - `Stalled`: a target went without answers for [`Limits::stall`], and then answered after all.
pub fn run_target<T: Target>(
    name: String,
    size: u64,
    targets: Vec<T>,
    workload: &Workload,
    limits: &Limits,
    observer: &mut dyn Observer,
) -> Result<Report, RunError> {
    let count = targets.len() as u32;
    workload.validate(count)?;
    let requests = workload.requests(size, count)?;
    let ledger = ledger_file::open(workload, requests)?;
    let driver = |(target, index)| TargetDriver {
        target,
        workload,
        generator: Generator::new(workload, requests, index, count),
        ledger: ledger.as_ref(),
        slots: (0..workload.depth_of(index, count))
            .map(|slot| Slot::new(workload, index, slot))
            .collect(),
        free: (0..workload.depth_of(index, count) as usize).rev().collect(),
        left: limits.operations.map_or(u64::MAX, |all| {
            let (first, end) = slice_of(all, index, count);
            end - first
        }),
        pacer: workload.rate.map(|rate| Pacer::new(rate, index, count)),
        writes: 0,
        checked: Checked::new(),
    };
    let mut drivers: Vec<_> = targets.into_iter().zip(0..).map(driver).collect();
    let outcome = run::drive(&mut drivers, workload.block_size, limits, None, observer);
    ledger.as_ref().map_or(Ok(()), |ledger| ledger_file::save(ledger, workload))?;
    let outcome = outcome?;
    let verification = Verification::sum(drivers.into_iter().map(|driver| driver.checked));
    Ok(report::build(
        Setup::new(name, workload, count, requests),
        &outcome.sample,
        outcome.errors,
        outcome.elapsed,
        outcome.used,
        ledger.is_some().then_some(verification),
    ))
}

/// One request under way, or room for one.
struct Slot {
    operation: Operation,
    /// When it was due, nanoseconds since the run's start.
    issued: u64,
    /// The oldest sequence that a verified read may return.
    oldest: u32,
    /// The write is done and its flush is under way.
    flushing: bool,
    data: Vec<u8>,
}

impl Slot {
    fn new(workload: &Workload, index: u32, slot: u32) -> Self {
        let mut data = vec![0; workload.block_size as usize];
        if !workload.zero_buffers {
            Rng::new(workload.seed, u64::from(index) << 32 | u64::from(slot) | 1 << 62)
                .fill(&mut data);
        }
        let operation = Operation { kind: Kind::Flush, request: 0 };
        Self { operation, issued: 0, oldest: 0, flushing: false, data }
    }
}

struct TargetDriver<'a, T> {
    target: T,
    workload: &'a Workload,
    generator: Generator,
    ledger: Option<&'a Ledger>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Requests to issue inside the window.
    left: u64,
    pacer: Option<Pacer>,
    writes: u64,
    checked: Checked,
}

impl<T: Target> Driver for TargetDriver<'_, T> {
    type Local = ();

    fn prepare(&mut self) -> Result<(), RunError> {
        Ok(())
    }

    fn run(
        &mut self,
        (): (),
        control: &Control<'_>,
        recorder: &mut Recorder<'_>,
    ) -> Result<(), RunError> {
        let window = recorder.window();
        loop {
            let now = control.clock.now();
            let running = now < window.until && !control.stopped();
            while running
                && (now < window.from || self.left > 0)
                && !self.free.is_empty()
                && let Some(at) = self.pacer.as_mut().map_or(Some(now), |pacer| pacer.take(now))
                && let Some(slot) = self.free.pop()
            {
                self.left -= u64::from(now >= window.from);
                self.issue(slot, at);
            }
            let goes_on = running && self.left > 0 && !self.free.is_empty();
            let due = self.pacer.as_ref().filter(|_| goes_on).map(Pacer::next_at);
            if self.free.len() == self.slots.len() && due.is_none() {
                return Ok(());
            }
            let until = due.map(|at| at.min(window.until).min(now + LOOK_NANOS));
            self.target.wait(until.map(|at| Duration::from_nanos(at.saturating_sub(now))));
            let now = control.clock.now();
            while let Some(answer) = self.target.answer() {
                self.complete(answer, now, recorder);
            }
            recorder.turn(now);
        }
    }

    fn abort_handle(&self) -> Result<Box<dyn Fn() + Send>, RunError> {
        // Nothing ends a request that a target has accepted.
        Ok(Box::new(|| ()))
    }
}

impl<T: Target> TargetDriver<'_, T> {
    fn issue(&mut self, index: usize, at: u64) {
        let mut operation = self.generator.next();
        let slot = &mut self.slots[index];
        (slot.oldest, slot.flushing, slot.issued) = (0, false, at);
        match (operation.kind, self.ledger) {
            (Kind::Read, Some(ledger)) => slot.oldest = ledger.begin_read(operation.request),
            (Kind::Write, Some(ledger)) => {
                let (request, sequence) =
                    ledger.begin_write_near(&mut self.generator, operation.request);
                operation.request = request;
                ledger.stamp(request, sequence, &mut slot.data);
            }
            (Kind::Write, None) => {
                // Unlike all before, so that nothing below can deduplicate.
                for block in slot.data.chunks_mut(4096) {
                    self.writes = self.writes.wrapping_add(1);
                    block[..8].copy_from_slice(&self.writes.to_le_bytes());
                }
            }
            (Kind::Read | Kind::Flush | Kind::Discard, _) => {}
        }
        slot.operation = operation;
        self.begin(index, operation.kind);
    }

    fn begin(&mut self, index: usize, kind: Kind) {
        let slot = &mut self.slots[index];
        let offset = slot.operation.request * u64::from(self.workload.block_size);
        let data = std::mem::take(&mut slot.data);
        self.target.begin(index, TargetRequest { kind, offset, data });
    }

    fn complete(&mut self, answer: TargetAnswer, now: u64, recorder: &mut Recorder<'_>) {
        let slot = &mut self.slots[answer.slot];
        let Operation { kind, request } = slot.operation;
        let succeeded = answer.data.is_some();
        slot.data = answer.data.unwrap_or_else(|| vec![0; self.workload.block_size as usize]);
        if kind == Kind::Write && self.workload.fua && succeeded && !slot.flushing {
            slot.flushing = true;
            return self.begin(answer.slot, Kind::Flush);
        }
        if let Some(ledger) = self.ledger {
            match kind {
                Kind::Write => ledger.end_write(request, succeeded),
                Kind::Read if succeeded => {
                    self.checked.note(ledger.check(request, slot.oldest, &slot.data));
                }
                Kind::Read | Kind::Flush | Kind::Discard => {}
            }
        }
        self.free.push(answer.slot);
        recorder.answer(kind, slot.issued, now, succeeded);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::{Arc, Mutex};
    use std::thread;

    use super::*;
    use crate::{Pattern, Unobserved};

    const BYTES: u64 = 1 << 20;

    /// Memory that answers the oldest request when it is waited for, after a pause.
    struct Memory {
        bytes: Arc<Mutex<Vec<u8>>>,
        asked: VecDeque<(usize, TargetRequest)>,
        over: VecDeque<TargetAnswer>,
        pause: Duration,
        begun: Arc<Mutex<Vec<(Kind, u64)>>>,
        loses: bool,
    }

    impl Target for Memory {
        fn begin(&mut self, slot: usize, request: TargetRequest) {
            self.begun.lock().unwrap().push((request.kind, request.offset));
            self.asked.push_back((slot, request));
        }

        fn answer(&mut self) -> Option<TargetAnswer> {
            self.over.pop_front()
        }

        fn wait(&mut self, time: Option<Duration>) {
            let Some((slot, mut request)) = self.asked.pop_front() else {
                return thread::sleep(time.unwrap());
            };
            thread::sleep(self.pause);
            let mut bytes = self.bytes.lock().unwrap();
            let place = &mut bytes[request.offset as usize..][..request.data.len()];
            match request.kind {
                Kind::Read => request.data.copy_from_slice(place),
                Kind::Write if self.loses => {}
                Kind::Write => place.copy_from_slice(&request.data),
                Kind::Flush | Kind::Discard => {}
            }
            self.over.push_back(TargetAnswer { slot, data: Some(request.data) });
        }
    }

    fn memories(count: usize, pause: Duration, loses: bool) -> Vec<Memory> {
        let bytes = Arc::new(Mutex::new(vec![0; BYTES as usize]));
        let memory = |_| Memory {
            bytes: Arc::clone(&bytes),
            asked: VecDeque::new(),
            over: VecDeque::new(),
            pause,
            begun: Arc::default(),
            loses,
        };
        (0..count).map(memory).collect()
    }

    fn run(targets: Vec<Memory>, workload: &Workload, operations: u64) -> Report {
        let limits = Limits { duration: None, operations: Some(operations), ..Limits::default() };
        run_target("memory".into(), BYTES, targets, workload, &limits, &mut Unobserved).unwrap()
    }

    #[test]
    fn what_is_read_is_checked() {
        let workload = Workload { read_percent: 50, verify: true, ..Workload::default() };
        let report = run(memories(2, Duration::ZERO, false), &workload, 4000);
        assert!(report.clean() && report.verification.unwrap().reads_checked > 1000);
        let report = run(memories(2, Duration::ZERO, true), &workload, 4000);
        assert!(report.verification.unwrap().faults > 100);
    }

    #[test]
    fn a_durable_write_is_a_write_and_a_flush() {
        let targets = memories(1, Duration::ZERO, false);
        let begun = Arc::clone(&targets[0].begun);
        let workload = Workload { read_percent: 0, fua: true, depth: 1, ..Workload::default() };
        let report = run(targets, &workload, 10);
        assert_eq!((report.write.operations, report.flush.operations), (10, 0));
        let kinds: Vec<Kind> = begun.lock().unwrap().iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [Kind::Write, Kind::Flush].repeat(10));
    }

    #[test]
    fn shuffled_requests_meet_every_place_once() {
        let targets = memories(3, Duration::ZERO, false);
        let begun: Vec<_> = targets.iter().map(|target| Arc::clone(&target.begun)).collect();
        let (read_percent, pattern) = (0, Pattern::Shuffled);
        let workload = Workload { read_percent, pattern, ..Workload::default() };
        run(targets, &workload, BYTES / 4096);
        let all = begun.iter().flat_map(|begun| begun.lock().unwrap().clone());
        let mut offsets: Vec<u64> = all.map(|(_, offset)| offset).collect();
        assert!(!offsets.is_sorted());
        offsets.sort_unstable();
        assert!(offsets.into_iter().eq((0..BYTES).step_by(4096)));
    }

    /// A target that takes 2 ms each, asked a thousand times a second, falls behind: the later a request was due, the
    /// longer it takes. In a closed loop all would take the same.
    #[test]
    fn an_open_loop_tells_how_long_requests_waited() {
        let pause = Duration::from_millis(2);
        let workload = Workload { depth: 4, ..Workload::default() };
        let closed = run(memories(1, pause, false), &workload, 100);
        let open = Workload { rate: Some(1000), ..workload };
        let open = run(memories(1, pause, false), &open, 100);
        let p90 = |report: &Report| report.read.latency.unwrap().p90_us;
        assert!(p90(&open) > 80_000.0, "{:?}", open.read.latency);
        assert!(p90(&open) > 2.0 * p90(&closed), "{:?} {:?}", open.read, closed.read);
    }

    #[test]
    fn an_open_loop_keeps_its_rate() {
        let workload = Workload { rate: Some(500), ..Workload::default() };
        let report = run(memories(2, Duration::ZERO, false), &workload, 100);
        // The last of a hundred is due after 198 ms.
        assert!(report.elapsed_s >= 0.19, "{}", report.elapsed_s);
    }
}
