//! What happened, in words and as a hash.

use std::collections::VecDeque;
use std::io::Write;

/// Steps kept for the report of a failure.
const STEPS: usize = 80;

/// How much is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// The hash only: what many seeds are run with.
    Hash,
    /// The last steps.
    Last,
    /// Every step, printed at once.
    All,
}

/// A seed that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What is wrong, in words.
    pub what: String,
    /// The steps before, oldest first; empty unless they were asked for.
    pub steps: Vec<String>,
}

/// The record of one run.
#[derive(Debug)]
pub struct Log {
    detail: Detail,
    steps: VecDeque<String>,
    hash: u64,
    events: u64,
}

impl Log {
    /// An empty record.
    #[must_use]
    pub fn new(detail: Detail) -> Self {
        Self { detail, steps: VecDeque::new(), hash: 0, events: 0 }
    }

    /// Notes a step; `numbers` identify it, `words` are made only if somebody reads them.
    pub fn step(&mut self, numbers: &[u64], words: impl FnOnce() -> String) {
        for &number in numbers {
            self.hash = (self.hash.rotate_left(5) ^ number).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
        self.events += 1;
        if self.detail == Detail::Hash {
            return;
        }
        let line = format!("{:>6}  {}", self.events, words());
        if self.detail == Detail::All {
            // Whoever reads this may have seen enough.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
        if self.steps.len() == STEPS {
            self.steps.pop_front();
        }
        self.steps.push_back(line);
    }

    /// Equal for equal runs.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Steps noted.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Ends the run as failed.
    pub fn fail(&mut self, what: impl Into<String>) -> Failure {
        Failure { what: what.into(), steps: std::mem::take(&mut self.steps).into() }
    }
}
