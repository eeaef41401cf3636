//! What was measured: histograms of one connection, and what all of them publish meanwhile.
//!
//! Times are nanoseconds since the run's base instant ([`Clock`]). Only completions inside the
//! measured window count: after the ramp-up, before the end. Recording one costs a few
//! nanoseconds and touches nothing shared; the shared cell is written once per turn (progress)
//! and once per interval (histograms).

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use hdrhistogram::Histogram;

use crate::workload::Kind;

/// Latencies are told apart from here on, in nanoseconds.
const LATENCY_NANOS_MIN: u64 = 64;
/// Longer ones count as this: an hour.
const LATENCY_NANOS_MAX: u64 = 3_600_000_000_000;
/// Significant decimal digits of a recorded latency.
const LATENCY_DIGITS: u8 = 3;

/// The time base of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since the start.
    pub(crate) fn now(self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// When completions count, in nanoseconds since the start; half-open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub from: u64,
    /// `u64::MAX` when the number of operations ends the run.
    pub until: u64,
    /// Length of an interval, when intervals are reported.
    pub interval: Option<u64>,
}

/// Latencies of the kinds of requests.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    histograms: [Histogram<u64>; Kind::ALL.len()],
}

impl Sample {
    pub(crate) fn new() -> Self {
        let one = || {
            Histogram::new_with_bounds(LATENCY_NANOS_MIN, LATENCY_NANOS_MAX, LATENCY_DIGITS)
                .expect("constant bounds are valid")
        };
        Self { histograms: Kind::ALL.map(|_| one()) }
    }

    pub(crate) fn of(&self, kind: Kind) -> &Histogram<u64> {
        &self.histograms[index(kind)]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.histograms.iter_mut().zip(&other.histograms) {
            if !theirs.is_empty() {
                mine.add(theirs).expect("same bounds");
            }
        }
    }

    pub(crate) fn reset(&mut self) {
        for histogram in &mut self.histograms {
            if !histogram.is_empty() {
                histogram.reset();
            }
        }
    }
}

const fn index(kind: Kind) -> usize {
    match kind {
        Kind::Read => 0,
        Kind::Write => 1,
        Kind::Flush => 2,
        Kind::Discard => 3,
    }
}

/// What one connection shows to the others while it runs. Alone on its cache lines.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Cell {
    /// Answers of any kind since the start: progress, and life.
    answers: AtomicU64,
    published: Mutex<Sample>,
}

impl Cell {
    pub(crate) fn new() -> Self {
        Self { answers: AtomicU64::new(0), published: Mutex::new(Sample::new()) }
    }

    pub(crate) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Adds what was published since the last call to `sum`.
    pub(crate) fn take(&self, sum: &mut Sample) {
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        sum.add(&published);
        published.reset();
    }
}

/// What one connection measured.
#[derive(Debug)]
pub(crate) struct Measured {
    pub sample: Sample,
    /// Failed requests in the window; they are in no histogram.
    pub errors: u64,
    /// The last completion in the window, nanoseconds since the start.
    pub last: u64,
}

/// Records one connection's completions.
#[derive(Debug)]
pub(crate) struct Recorder<'a> {
    window: Window,
    cell: &'a Cell,
    answers: u64,
    errors: u64,
    last: u64,
    publish_at: u64,
    current: Sample,
    total: Sample,
}

impl<'a> Recorder<'a> {
    pub(crate) fn new(window: Window, cell: &'a Cell) -> Self {
        let publish_at = window.interval.map_or(u64::MAX, |interval| window.from + interval);
        Self {
            window,
            cell,
            answers: 0,
            errors: 0,
            last: window.from,
            publish_at,
            current: Sample::new(),
            total: Sample::new(),
        }
    }

    pub(crate) const fn window(&self) -> Window {
        self.window
    }

    /// One answer that arrived `now` to a request sent at `sent`. Returns whether it counts: it is none of an error, and in
    /// the window.
    pub(crate) fn answer(&mut self, kind: Kind, sent: u64, now: u64, succeeded: bool) -> bool {
        self.answers += 1;
        if now < self.window.from || now >= self.window.until {
            return false;
        }
        self.last = now;
        if succeeded {
            self.current.histograms[index(kind)].saturating_record(now - sent);
        } else {
            self.errors += 1;
        }
        succeeded
    }

    /// Shows the others how far this connection is; once per turn.
    pub(crate) fn turn(&mut self, now: u64) {
        self.cell.answers.store(self.answers, Ordering::Relaxed);
        if now >= self.publish_at {
            self.publish(now);
        }
    }

    #[cold]
    fn publish(&mut self, now: u64) {
        self.total.add(&self.current);
        self.cell.published.lock().unwrap_or_else(PoisonError::into_inner).add(&self.current);
        self.current.reset();
        if let Some(interval) = self.window.interval {
            let periods = (now - self.window.from) / interval + 1;
            self.publish_at = self.window.from + periods * interval;
        }
    }

    pub(crate) fn finish(mut self) -> Measured {
        self.total.add(&self.current);
        Measured { sample: self.total, errors: self.errors, last: self.last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_window_counts() {
        let cell = Cell::new();
        let window = Window { from: 1000, until: 2000, interval: None };
        let mut recorder = Recorder::new(window, &cell);
        for (sent, now) in [(0, 999), (0, 1000), (1000, 1999), (1000, 2000)] {
            recorder.answer(Kind::Read, sent, now, true);
        }
        recorder.answer(Kind::Write, 1000, 1500, false);
        recorder.turn(2000);
        assert_eq!(cell.answers(), 5);
        let measured = recorder.finish();
        assert_eq!(measured.sample.of(Kind::Read).len(), 2);
        assert_eq!(measured.sample.of(Kind::Write).len(), 0);
        assert_eq!((measured.errors, measured.last), (1, 1500));
    }

    #[test]
    fn intervals_add_up() {
        let cell = Cell::new();
        let window = Window { from: 0, until: 10_000, interval: Some(1000) };
        let mut recorder = Recorder::new(window, &cell);
        let mut seen = Sample::new();
        for now in (100..10_000).step_by(100) {
            recorder.answer(Kind::Write, now - 50, now, true);
            recorder.turn(now);
            if now.is_multiple_of(3000) {
                cell.take(&mut seen);
            }
        }
        cell.take(&mut seen);
        assert_eq!(seen.of(Kind::Write).len(), 90, "all but the interval under way");
        assert_eq!(recorder.finish().sample.of(Kind::Write).len(), 99);
    }

    #[test]
    fn long_latencies_saturate() {
        let cell = Cell::new();
        let window = Window { from: 0, until: u64::MAX, interval: None };
        let mut recorder = Recorder::new(window, &cell);
        recorder.answer(Kind::Read, 0, u64::MAX / 2, true);
        assert!(recorder.finish().sample.of(Kind::Read).max() >= LATENCY_NANOS_MAX);
    }
}
