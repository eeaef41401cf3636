//! One run: threads that drive the target, and the monitor that watches them.
//!
//! The monitor (the calling thread) sleeps until the measured window begins, an interval ends,
//! the display wants news, or all drivers are done. It reads the server's CPU time at the two
//! ends of the window, and ends drivers that have stopped getting answers.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use crate::{
    RunError,
    cpu::{ProcessCpu, machine_cpu, own_cpu},
    record::{Cell, Clock, Measured, Recorder, Sample, Window},
    report::{CpuUsed, Interval},
    workload::Kind,
};

/// When a run ends and what it reports meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The length of the measured window; `None` when `operations` ends it.
    pub duration: Option<Duration>,
    /// Requests to issue after the ramp-up, over all connections.
    pub operations: Option<u64>,
    /// Time at the start that is not measured.
    pub rampup: Duration,
    /// How often the observer gets an [`Interval`].
    pub interval: Option<Duration>,
    /// Without any answer for this long the run fails.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            duration: Some(Duration::from_secs(10)),
            operations: None,
            rampup: Duration::ZERO,
            interval: None,
            stall: Duration::from_secs(30),
        }
    }
}

/// Gets news while a run goes on, on the thread that started it.
pub trait Observer {
    /// About ten times a second: the share of the run that is done, and answers so far.
    fn progress(&mut self, share: f64, answers: u64) {
        let _ = (share, answers);
    }
    /// At the end of each interval, when there are intervals.
    fn interval(&mut self, interval: &Interval) {
        let _ = interval;
    }
}

/// An observer that looks away.
#[derive(Clone, Copy, Debug)]
pub struct Unobserved;

impl Observer for Unobserved {}

/// What a driver has to know about the run.
pub(crate) struct Control<'a> {
    pub clock: Clock,
    stop: &'a AtomicBool,
}

impl Control<'_> {
    /// Whether another driver failed, so that nothing more should be issued.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Something that keeps requests in flight until its time is over.
pub(crate) trait Driver: Send {
    /// What can only be made on the thread that uses it.
    type Local;

    /// Makes ready on the driver's thread; the clock starts when all drivers are.
    fn prepare(&mut self) -> Result<Self::Local, RunError>;

    /// Runs to the end; on return nothing is in flight.
    fn run(
        &mut self,
        local: Self::Local,
        control: &Control<'_>,
        recorder: &mut Recorder<'_>,
    ) -> Result<(), RunError>;

    /// How to end [`Driver::run`] from another thread when answers stay away.
    fn abort_handle(&self) -> Result<Box<dyn Fn() + Send>, RunError>;
}

/// The sum of what all drivers measured.
pub(crate) struct Outcome {
    pub sample: Sample,
    pub errors: u64,
    pub elapsed: Duration,
    pub used: CpuUsed,
}

/// How often the display gets news.
const PROGRESS_PERIOD: Duration = Duration::from_millis(100);
/// How long after an interval's end it is read: drivers publish at their first turn after it.
const PUBLISH_GRACE: Duration = Duration::from_millis(20);

/// Runs `drivers` side by side under `limits`.
pub(crate) fn drive<D: Driver>(
    drivers: &mut [D],
    block_size: u32,
    limits: &Limits,
    server_pid: Option<u32>,
    observer: &mut dyn Observer,
) -> Result<Outcome, RunError> {
    let aborts = drivers.iter().map(Driver::abort_handle).collect::<Result<Vec<_>, _>>()?;
    let cells: Vec<Cell> = drivers.iter().map(|_| Cell::new()).collect();
    let stop = AtomicBool::new(false);
    let window = Window {
        from: nanos(limits.rampup),
        until: limits.duration.map_or(u64::MAX, |d| nanos(limits.rampup + d)),
        interval: limits.interval.map(nanos),
    };
    let start = &OnceLock::new();
    thread::scope(|scope| {
        let monitor = thread::current();
        let (ready, prepared) = mpsc::channel();
        let mut threads = Vec::with_capacity(drivers.len());
        for (index, (driver, cell)) in drivers.iter_mut().zip(&cells).enumerate() {
            let (stop, ready, monitor) = (&stop, ready.clone(), monitor.clone());
            let body = move || {
                let local = driver.prepare();
                // The receiver lives until all drivers are ready.
                let _ = ready.send(());
                let clock = wait_for(start);
                let result = local.and_then(|local| {
                    let mut recorder = Recorder::new(window, cell);
                    driver.run(local, &Control { clock, stop }, &mut recorder)?;
                    Ok(recorder.finish())
                });
                if result.is_err() {
                    stop.store(true, Ordering::Relaxed);
                }
                monitor.unpark();
                result
            };
            let named = thread::Builder::new().name(format!("load-{index}"));
            match named.spawn_scoped(scope, body) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    start_all(start, &threads);
                    return Err(RunError::Thread(error));
                }
            }
        }
        // One message per driver; a driver that panicked instead only drops its sender.
        drop(ready);
        prepared.iter().take(threads.len()).for_each(drop);
        let clock = start_all(start, &threads);
        let mut watch =
            Watch { clock, window, limits, block_size, cells: &cells, observer, server_pid };
        let finished = || threads.iter().all(thread::ScopedJoinHandle::is_finished);
        let watched = watch.until(finished, &stop, &aborts);
        let mut results = Vec::with_capacity(threads.len());
        for thread in threads {
            results.push(thread.join().unwrap_or(Err(RunError::Panicked)));
        }
        collect(results, watched, window, limits.operations)
    })
}

/// Starts the clock and wakes the drivers that wait for it.
fn start_all<T>(start: &OnceLock<Clock>, threads: &[thread::ScopedJoinHandle<'_, T>]) -> Clock {
    let clock = *start.get_or_init(Clock::start);
    threads.iter().for_each(|thread| thread.thread().unpark());
    clock
}

fn wait_for(start: &OnceLock<Clock>) -> Clock {
    loop {
        if let Some(clock) = start.get() {
            return *clock;
        }
        thread::park();
    }
}

/// Adds up the drivers' figures. A stalled run is reported as such, whatever the drivers say
/// about their connections, which the monitor has cut; of several failures the first counts.
fn collect(
    results: Vec<Result<Measured, RunError>>,
    watched: Watched,
    window: Window,
    operations: Option<u64>,
) -> Result<Outcome, RunError> {
    if let Some(seconds) = watched.stalled_seconds {
        return Err(RunError::Stalled { seconds });
    }
    let mut sample = Sample::new();
    let (mut errors, mut last) = (0, window.from);
    for result in results {
        let measured = result?;
        sample.add(&measured.sample);
        errors += measured.errors;
        last = last.max(measured.last);
    }
    // Those of the ramp-up are not counted.
    let answered = Kind::ALL.into_iter().map(|kind| sample.of(kind).len()).sum::<u64>() + errors;
    let is_over = window.until == u64::MAX || operations.is_some_and(|all| answered >= all);
    let end = if is_over { last } else { window.until };
    Ok(Outcome {
        sample,
        errors,
        elapsed: Duration::from_nanos(end - window.from),
        used: watched.used,
    })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 4)
}

/// The monitor's view.
struct Watch<'a> {
    clock: Clock,
    window: Window,
    limits: &'a Limits,
    block_size: u32,
    cells: &'a [Cell],
    observer: &'a mut dyn Observer,
    server_pid: Option<u32>,
}

#[derive(Default)]
struct Watched {
    used: CpuUsed,
    stalled_seconds: Option<u64>,
}

/// CPU times at one end of the window.
struct CpuMark {
    client: Duration,
    server: Option<ProcessCpu>,
    machine: Option<Duration>,
}

impl Watch<'_> {
    /// Watches until `finished`; `finished` may only become true with an unpark of this thread.
    fn until(
        &mut self,
        finished: impl Fn() -> bool,
        stop: &AtomicBool,
        aborts: &[Box<dyn Fn() + Send>],
    ) -> Watched {
        let mut watched = Watched::default();
        let (mut first, mut last) = (None, None);
        let mut interval_at = self.window.interval.map(|length| self.window.from + length);
        let mut alive = (0, self.clock.now());
        let mut aborted = false;
        loop {
            let now = self.clock.now();
            if first.is_none() && now >= self.window.from {
                first = Some(self.mark());
            }
            if last.is_none() && now >= self.window.until {
                last = Some(self.mark());
            }
            if finished() {
                break;
            }
            let answers: u64 = self.cells.iter().map(Cell::answers).sum();
            if answers != alive.0 {
                alive = (answers, now);
            }
            let silent = Duration::from_nanos(now - alive.1);
            if silent >= self.limits.stall {
                watched.stalled_seconds.get_or_insert(silent.as_secs());
            }
            let failed = stop.load(Ordering::Relaxed) || watched.stalled_seconds.is_some();
            if failed && !aborted {
                // One dead connection ends the run; the others may be waiting for a server
                // that will never answer them either.
                stop.store(true, Ordering::Relaxed);
                aborts.iter().for_each(|abort| abort());
                aborted = true;
            }
            if let Some(at) = interval_at
                && now >= at + nanos(PUBLISH_GRACE)
            {
                self.report_interval(at);
                interval_at = self.window.interval.map(|length| at + length);
            }
            self.observer.progress(self.share(now, answers), answers);
            let mut next = now + nanos(PROGRESS_PERIOD);
            for at in [self.window.from, self.window.until] {
                if at > now {
                    next = next.min(at);
                }
            }
            thread::park_timeout(Duration::from_nanos(next - now));
        }
        // Runs that end by count end when the last driver is done.
        let last = last.unwrap_or_else(|| self.mark());
        let first = first.unwrap_or(CpuMark { client: last.client, server: None, machine: None });
        watched.used = CpuUsed {
            client: last.client.saturating_sub(first.client),
            server_pid: self.server_pid,
            server: match (&first.server, &last.server) {
                (Some(first), Some(last)) => last.since(first),
                _ => None,
            },
            machine: match (first.machine, last.machine) {
                (Some(first), Some(last)) => Some(last.saturating_sub(first)),
                _ => None,
            },
        };
        watched
    }

    fn mark(&self) -> CpuMark {
        CpuMark {
            client: own_cpu(),
            server: self.server_pid.and_then(|pid| ProcessCpu::sample(pid).ok()),
            machine: machine_cpu(),
        }
    }

    fn share(&self, now: u64, answers: u64) -> f64 {
        match (self.limits.duration, self.limits.operations) {
            (Some(_), _) => now as f64 / self.window.until as f64,
            (None, Some(operations)) => answers as f64 / operations.max(1) as f64,
            (None, None) => 0.0,
        }
        .min(1.0)
    }

    fn report_interval(&mut self, at: u64) {
        let mut sample = Sample::new();
        for cell in self.cells {
            cell.take(&mut sample);
        }
        let since = Duration::from_nanos(at - self.window.from);
        let length = self.limits.interval.unwrap_or(since);
        self.observer.interval(&Interval::of(&sample, self.block_size, since, length));
    }
}
