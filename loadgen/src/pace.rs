//! When requests are due in an open loop.
//!
//! A load that sends a request only when another was answered asks for less while a server stalls, and its percentiles
//! don't show that. Here each request has a time of its own; if it can't be sent then, because all places are taken or
//! the driver was late, its latency counts from that time all the same.

/// How long a driver may sleep that waits for a time: so soon it notices that the run was broken off, in nanoseconds.
pub(crate) const LOOK_NANOS: u64 = 100_000_000;

/// The times of one connection's requests, in nanoseconds since the run's start.
#[derive(Clone, Debug)]
pub(crate) struct Pacer {
    /// Between two of them.
    period: f64,
    /// The first.
    first: f64,
    taken: u64,
}

impl Pacer {
    /// Of connection `index` among `connections` that have `rate` requests per second together: they come one after the
    /// other.
    pub(crate) fn new(rate: u32, index: u32, connections: u32) -> Self {
        let all = 1e9 / f64::from(rate);
        Self { period: all * f64::from(connections), first: all * f64::from(index), taken: 0 }
    }

    /// When the next is due.
    pub(crate) fn next_at(&self) -> u64 {
        (self.first + self.period * self.taken as f64) as u64
    }

    /// The time of the next, if that has come.
    pub(crate) fn take(&mut self, now: u64) -> Option<u64> {
        let at = self.next_at();
        (at <= now).then(|| {
            self.taken += 1;
            at
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_turns_and_nothing_is_left_out() {
        let mut pacers: Vec<Pacer> = (0..4).map(|index| Pacer::new(1000, index, 4)).collect();
        let mut seen = Vec::new();
        // One that is looked at late has them all the same.
        for now in [0, 1_500_000, 9_999_999] {
            for pacer in &mut pacers {
                while let Some(at) = pacer.take(now) {
                    seen.push(at);
                }
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..10).map(|i| i * 1_000_000).collect::<Vec<_>>());
        assert_eq!(pacers[2].next_at(), 10_000_000);
    }
}
