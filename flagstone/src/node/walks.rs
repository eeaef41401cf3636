//! Control requests that take long: walks over maps, a step of the engine's in a turn of the reactor,
//! whoever else waits. Walks take turns; one whose asker has gone ends.

use super::control::ControlError;
use super::diff::Comparison;
use super::limits::WALKS;
use super::reactor::Reactor;
use super::usage::Count;
use std::collections::VecDeque;

/// An answer on its way.
pub(super) enum Walk {
    Comparison(Box<Comparison>),
    Count(Count),
}

/// Those that there are.
pub(super) type Walks = VecDeque<Walk>;

/// What a step came to.
pub(super) enum Step {
    Over(Result<(), ControlError>),
    /// It goes on, at once or when a page of the map is there.
    GoesOn {
        busy: bool,
    },
}

/// There is no volume or snapshot of that name.
pub(super) fn missing(name: &str) -> ControlError {
    let name = name.to_owned();
    match name.contains('@') {
        true => ControlError::NoSuchSnapshot { name },
        false => ControlError::NoSuchVolume { name },
    }
}

impl Walk {
    fn pool(&self) -> u32 {
        match self {
            Self::Comparison(comparison) => comparison.pool,
            Self::Count(count) => count.pool,
        }
    }

    fn is_forgotten(&self) -> bool {
        match self {
            Self::Comparison(comparison) => comparison.reply.is_closed(),
            Self::Count(count) => count.reply.is_closed(),
        }
    }

    fn end(self, result: Result<(), ControlError>) {
        match self {
            Self::Comparison(comparison) => comparison.end(result),
            Self::Count(count) => count.end(result),
        }
    }
}

impl Reactor {
    /// Whether another walk may begin.
    pub(super) fn check_walk(&self) -> Result<(), ControlError> {
        if !self.stop.is_running() {
            return Err(ControlError::Stopping);
        }
        if self.walks.len() >= WALKS {
            return Err(ControlError::Overloaded);
        }
        Ok(())
    }

    /// Goes on with the walk whose turn it is, or with the first that need not wait.
    pub(super) fn advance_walks(&mut self) {
        for _ in 0..self.walks.len() {
            let Some(mut walk) = self.walks.pop_front() else { return };
            if walk.is_forgotten() {
                continue;
            }
            let step = match &mut walk {
                _ if !self.stop.is_running() => Step::Over(Err(ControlError::Stopping)),
                Walk::Comparison(comparison) => self.compare_step(comparison),
                Walk::Count(count) => self.count_step(count),
            };
            match step {
                Step::Over(result) => {
                    walk.end(result);
                    self.hungry |= !self.walks.is_empty();
                    return;
                }
                Step::GoesOn { busy: false } => {
                    self.hungry = true;
                    return self.walks.push_back(walk);
                }
                Step::GoesOn { busy: true } => {
                    // A leaf page was asked for.
                    self.pools[walk.pool() as usize].touched = true;
                    self.engine_busy = true;
                    self.walks.push_back(walk);
                }
            }
        }
    }
}
