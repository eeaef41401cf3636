//! Adaptive polling: whether to look for completions a little longer before sleeping.
//!
//! Sleeping and being woken costs a few microseconds of latency per round; polling costs a core.
//! So the reactor polls only when the machine has cores to spare and completions have lately
//! arrived so closely that the next one is expected within the poll. Pure policy: no clock here.
//!
//! Invariant: the budget never exceeds [`SPIN_MAX_NS`], so an idle reactor sleeps after one
//! budget at most, and at once when the policy is off.

/// The longest poll, in nanoseconds: about what a sleep and a wake-up cost together.
pub const SPIN_MAX_NS: u64 = 20_000;
/// Arrivals further apart than this, in nanoseconds, are not worth polling for.
pub const BUSY_INTERVAL_NS: u64 = 50_000;
/// One idle night must not take thousands of arrivals to forget.
const SAMPLE_MAX_NS: u64 = 1_000_000;
/// A machine with this many cores or fewer has none to spare for polling.
const CORES_TOO_FEW: usize = 2;

/// When the reactor may poll.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpinPolicy {
    /// Polls under load when the process may run on more than 2 cores.
    #[default]
    Auto,
    /// Never polls: sleeps in `io_uring_enter` at once.
    Never,
    /// Polls under load whatever the number of cores.
    UnderLoad,
}

impl SpinPolicy {
    /// Whether this policy ever polls on a machine with `cores` cores.
    #[must_use]
    pub fn allows(self, cores: usize) -> bool {
        match self {
            Self::Auto => cores > CORES_TOO_FEW,
            Self::Never => false,
            Self::UnderLoad => true,
        }
    }
}

/// The estimate of how closely completions arrive.
#[derive(Clone, Debug)]
pub struct SpinEstimate {
    enabled: bool,
    last_arrival_ns: u64,
    /// Exponentially weighted mean time between arrivals; one eighth of each new sample.
    mean_interval_ns: u64,
}

impl SpinEstimate {
    /// An estimate that starts from "idle". `cores` is what the process may use.
    #[must_use]
    pub fn new(policy: SpinPolicy, cores: usize) -> Self {
        Self { enabled: policy.allows(cores), last_arrival_ns: 0, mean_interval_ns: SAMPLE_MAX_NS }
    }

    /// Whether this estimate can ever grant a budget; if not, nobody needs to read the clock.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// `count` completions arrived together at `now_ns`.
    pub fn arrived(&mut self, now_ns: u64, count: usize) {
        if !self.enabled || count == 0 {
            return;
        }
        let elapsed = now_ns.saturating_sub(self.last_arrival_ns).min(SAMPLE_MAX_NS);
        self.last_arrival_ns = now_ns;
        let sample = elapsed / count as u64;
        self.mean_interval_ns = (self.mean_interval_ns * 7 + sample) / 8;
    }

    /// How long to poll before sleeping, in nanoseconds; 0 means sleep at once.
    #[must_use]
    pub fn budget_ns(&self) -> u64 {
        if !self.enabled || self.mean_interval_ns >= BUSY_INTERVAL_NS {
            return 0;
        }
        (2 * self.mean_interval_ns).min(SPIN_MAX_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(mut estimate: SpinEstimate, interval_ns: u64, arrivals: u64) -> SpinEstimate {
        let start = estimate.last_arrival_ns;
        for index in 1..=arrivals {
            estimate.arrived(start + index * interval_ns, 1);
        }
        estimate
    }

    #[test]
    fn small_machines_never_poll() {
        for cores in [1, 2] {
            let estimate = fed(SpinEstimate::new(SpinPolicy::Auto, cores), 1_000, 1_000);
            assert_eq!(estimate.budget_ns(), 0);
            assert!(!estimate.is_enabled());
        }
        assert_eq!(fed(SpinEstimate::new(SpinPolicy::Never, 64), 1_000, 1_000).budget_ns(), 0);
    }

    #[test]
    fn close_arrivals_earn_twice_their_interval() {
        let estimate = fed(SpinEstimate::new(SpinPolicy::Auto, 4), 5_000, 200);
        let budget = estimate.budget_ns();
        assert!((9_900..=10_100).contains(&budget), "{budget}");
        let estimate = fed(SpinEstimate::new(SpinPolicy::UnderLoad, 1), 30_000, 200);
        assert_eq!(estimate.budget_ns(), SPIN_MAX_NS);
    }

    #[test]
    fn sparse_arrivals_and_a_fresh_start_earn_nothing() {
        assert_eq!(SpinEstimate::new(SpinPolicy::Auto, 4).budget_ns(), 0);
        let estimate = fed(SpinEstimate::new(SpinPolicy::Auto, 4), 60_000, 200);
        assert_eq!(estimate.budget_ns(), 0);
    }

    #[test]
    fn idleness_is_noticed_at_once_and_forgotten_within_a_few_dozen_arrivals() {
        let busy = fed(SpinEstimate::new(SpinPolicy::Auto, 4), 5_000, 200);
        let mut idle = busy.clone();
        idle.arrived(busy.last_arrival_ns + 3_600_000_000_000, 1);
        assert_eq!(idle.budget_ns(), 0, "one long gap ends polling");
        let again = fed(idle, 5_000, 24);
        assert!(again.budget_ns() > 0);
    }

    #[test]
    fn a_batch_counts_as_that_many_arrivals() {
        let mut estimate = SpinEstimate::new(SpinPolicy::Auto, 4);
        for index in 1..200 {
            estimate.arrived(index * 100_000, 20);
        }
        assert!(estimate.budget_ns() > 0);
    }
}
