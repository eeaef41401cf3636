//! How full a pool is, told once per threshold that it crosses.
//!
//! A threshold is told again only after the pool was a little below it, so that one that hovers
//! there does not fill the log.

use super::control::WARNINGS;
use super::pool::Pool;
use crate::size::Human;

/// Percent below a threshold from which it counts as left.
const SLACK_PERCENT: u64 = 1;

/// The threshold that a pool has reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Warning {
    reached: Option<usize>,
}

impl Warning {
    pub(super) fn percent(self) -> Option<u32> {
        self.reached.map(|i| WARNINGS[i])
    }

    /// Takes note of `used` of `capacity` bytes; returns the threshold that is to be told.
    fn update(&mut self, used: u64, capacity: u64) -> Option<u32> {
        let reached =
            |percent: u64| u128::from(used) * 100 >= u128::from(capacity) * u128::from(percent);
        let now = WARNINGS.iter().rposition(|&percent| reached(u64::from(percent)));
        if now > self.reached {
            self.reached = now;
            return self.percent();
        }
        while let Some(i) = self.reached
            && !reached(u64::from(WARNINGS[i]) - SLACK_PERCENT)
        {
            self.reached = i.checked_sub(1);
        }
        None
    }
}

impl Pool {
    /// Looks at how full the pool is, and whether its map is whole; cheap enough for every turn.
    pub(super) fn note_state(&mut self) {
        let (used, capacity) = self.engine.fullness();
        if let Some(percent) = self.warning.update(used, capacity) {
            tracing::warn!(
                pool = %self.path.display(),
                used = %Human(used),
                capacity = %Human(capacity),
                "the pool is {percent} % full"
            );
        }
        if self.engine.wants_rebuild() && !std::mem::replace(&mut self.told_damage, true) {
            tracing::error!(
                pool = %self.path.display(),
                "a part of the map can't be read: what lies there is an I/O error, and nothing that \
                 is dead is given back, until the pool is started again, which makes the map anew"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_threshold_is_told_once_per_crossing() {
        let mut warning = Warning::default();
        let told: Vec<_> = [10, 74, 75, 75, 76, 74, 75, 73, 75, 90, 99, 100, 92, 93, 0, 93]
            .map(|used| warning.update(used, 100))
            .into();
        let expected = [(2, 75), (8, 75), (9, 85), (10, 93), (15, 93)];
        for (i, told) in told.into_iter().enumerate() {
            let due = expected.iter().find(|(at, _)| *at == i).map(|(_, percent)| *percent);
            assert_eq!(told, due, "step {i}");
        }
        assert_eq!(warning.percent(), Some(93));
        assert_eq!(Warning::default().update(0, 0), Some(93), "nothing can be written");
    }
}
