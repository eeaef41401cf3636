//! Which block a request is for: uniform, zipf, or a hot part.
//!
//! Every draw is O(1). The skewed distributions draw a *rank* (0 is the most popular) and send it
//! through a [`Permutation`], so that the popular blocks lie scattered over the span: contiguous
//! hot blocks would share map leaves and segments, which real hot data rarely does.

use crate::rng::{Rng, mix64};

/// How requests are spread over the span.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// Every block alike.
    Uniform,
    /// The block of rank `r` (from 1) is asked for with probability proportional to `r^-theta`.
    Zipf {
        /// The exponent: above 0, at most 4, not 1 (the generator has a pole there).
        theta: f64,
    },
    /// `accesses_percent` of the requests go to `blocks_percent` of the blocks.
    Hot {
        /// Share of the requests, 1 to 99.
        accesses_percent: u8,
        /// Share of the blocks, 1 to 99.
        blocks_percent: u8,
    },
}

/// Why a distribution is no distribution.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum DistributionError {
    /// The exponent is out of range.
    #[error("zipf's theta is {theta}: it must be above 0, at most 4, and not within 0.001 of 1")]
    Theta {
        /// What was asked for.
        theta: f64,
    },
    /// A share is out of range.
    #[error("a hot part is given as ACCESSES/BLOCKS in percent, each from 1 to 99")]
    Share,
}

impl Distribution {
    /// Checks the parameters.
    ///
    /// # Errors
    /// The parameter that is out of range.
    pub fn validate(self) -> Result<(), DistributionError> {
        match self {
            Self::Uniform => Ok(()),
            Self::Zipf { theta } => {
                if theta > 0.0 && theta <= 4.0 && (theta - 1.0).abs() >= 0.001 {
                    Ok(())
                } else {
                    Err(DistributionError::Theta { theta })
                }
            }
            Self::Hot { accesses_percent, blocks_percent } => {
                let share = 1..=99;
                if share.contains(&accesses_percent) && share.contains(&blocks_percent) {
                    Ok(())
                } else {
                    Err(DistributionError::Share)
                }
            }
        }
    }
}

/// Draws block numbers below a fixed count.
#[derive(Clone, Debug)]
pub(crate) enum Sampler {
    Uniform { blocks: u64 },
    Zipf { zipf: Zipf, scatter: Permutation },
    Hot { hot_blocks: u64, blocks: u64, hot_percent: u64, scatter: Permutation },
}

impl Sampler {
    /// A sampler of `0..blocks`, where `blocks` is at least 1. The scattering depends on `seed`
    /// alone, so that all connections of a run agree on which blocks are hot.
    pub(crate) fn new(distribution: Distribution, blocks: u64, seed: u64) -> Self {
        assert!(blocks > 0, "nothing to draw from");
        match distribution {
            Distribution::Uniform => Self::Uniform { blocks },
            Distribution::Zipf { theta } => Self::Zipf {
                zipf: Zipf::new(blocks, theta),
                scatter: Permutation::new(blocks, seed),
            },
            Distribution::Hot { accesses_percent, blocks_percent } => Self::Hot {
                hot_blocks: (u128::from(blocks) * u128::from(blocks_percent) / 100).max(1) as u64,
                blocks,
                hot_percent: u64::from(accesses_percent),
                scatter: Permutation::new(blocks, seed),
            },
        }
    }

    pub(crate) fn draw(&self, rng: &mut Rng) -> u64 {
        match self {
            Self::Uniform { blocks } => rng.below(*blocks),
            Self::Zipf { zipf, scatter } => scatter.apply(zipf.rank(rng.unit())),
            Self::Hot { hot_blocks, blocks, hot_percent, scatter } => {
                let hot = rng.below(100) < *hot_percent || hot_blocks == blocks;
                let rank = if hot {
                    rng.below(*hot_blocks)
                } else {
                    hot_blocks + rng.below(blocks - hot_blocks)
                };
                scatter.apply(rank)
            }
        }
    }
}

/// The zipf generator of Gray, Sundaresan, Englert, Baclawski, Weinberger: "Quickly generating
/// billion-record synthetic databases", SIGMOD 1994, figure 3. The first two ranks are exact,
/// the rest follow a closed approximation of the inverse distribution function.
#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    blocks: u64,
    zeta_n: f64,
    second: f64,
    alpha: f64,
    eta: f64,
}

impl Zipf {
    pub(crate) fn new(blocks: u64, theta: f64) -> Self {
        let zeta_n = zeta(blocks, theta);
        let second = 1.0 + 0.5f64.powf(theta);
        let n = blocks as f64;
        let eta = (1.0 - (2.0 / n).powf(1.0 - theta)) / (1.0 - second / zeta_n);
        Self { blocks, zeta_n, second, alpha: 1.0 / (1.0 - theta), eta }
    }

    /// The rank (from 0) that the uniform number `unit` in `[0, 1)` stands for.
    pub(crate) fn rank(&self, unit: f64) -> u64 {
        let scaled = unit * self.zeta_n;
        if scaled < 1.0 || self.blocks == 1 {
            return 0;
        }
        if scaled < self.second || self.blocks == 2 {
            return 1;
        }
        let rank = self.blocks as f64 * (self.eta * unit - self.eta + 1.0).powf(self.alpha);
        // The conversion saturates, and the approximation may reach one past the last rank.
        (rank as u64).min(self.blocks - 1)
    }
}

/// The sum of `i^-theta` for `i` in `1..=n`: exact for the first million terms, then the
/// Euler-Maclaurin remainder, so that a span of any size starts at once.
fn zeta(n: u64, theta: f64) -> f64 {
    const EXACT_TERMS: u64 = 1_000_000;
    let exact = n.min(EXACT_TERMS);
    // From the smallest term on, to lose least to rounding.
    let head: f64 = (1..=exact).rev().map(|i| (i as f64).powf(-theta)).sum();
    if n <= EXACT_TERMS {
        return head;
    }
    let (m, n) = (exact as f64, n as f64);
    let integral = (n.powf(1.0 - theta) - m.powf(1.0 - theta)) / (1.0 - theta);
    let ends = (n.powf(-theta) - m.powf(-theta)) / 2.0;
    let slope = theta / 12.0 * (m.powf(-theta - 1.0) - n.powf(-theta - 1.0));
    head + integral + ends + slope
}

/// A bijection of `0..count` that looks random: a four-round Feistel network over the next even
/// power of two, walked until it lands inside (at most four steps on average).
#[derive(Clone, Debug)]
pub(crate) struct Permutation {
    count: u64,
    half_bits: u32,
    keys: [u64; 4],
}

impl Permutation {
    pub(crate) fn new(count: u64, seed: u64) -> Self {
        let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
        let keys = std::array::from_fn(|round| mix64(seed ^ mix64(round as u64 + 0xfe)));
        Self { count, half_bits: bits.div_ceil(2).max(1), keys }
    }

    pub(crate) fn apply(&self, index: u64) -> u64 {
        debug_assert!(index < self.count);
        let mask = (1u64 << self.half_bits) - 1;
        let mut value = index;
        loop {
            let (mut left, mut right) = (value >> self.half_bits, value & mask);
            for key in self.keys {
                (left, right) = (right, left ^ (mix64(right ^ key) & mask));
            }
            value = left << self.half_bits | right;
            if value < self.count {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: u64 = 10_000;
    const DRAWS: u64 = 2_000_000;

    fn rank_counts(theta: f64) -> Vec<u64> {
        let zipf = Zipf::new(BLOCKS, theta);
        let mut rng = Rng::new(42, 0);
        let mut counts = vec![0; BLOCKS as usize];
        for _ in 0..DRAWS {
            counts[zipf.rank(rng.unit()) as usize] += 1;
        }
        counts
    }

    /// The cumulative shares must follow the exact distribution: within half a percentage point
    /// for the two exact ranks and within two for the approximated rest.
    #[test]
    fn zipf_follows_the_law() {
        for theta in [0.5, 0.8, 0.99, 1.2, 2.0] {
            let counts = rank_counts(theta);
            let total = zeta(BLOCKS, theta);
            let (mut seen, mut law) = (0u64, 0.0);
            for (rank, count) in counts.iter().enumerate() {
                seen += count;
                law += ((rank + 1) as f64).powf(-theta);
                let difference = (seen as f64 / DRAWS as f64 - law / total).abs();
                let allowed = if rank < 2 { 0.005 } else { 0.03 };
                assert!(difference < allowed, "theta {theta} rank {rank}: off by {difference}");
            }
        }
    }

    #[test]
    fn zipf_reaches_the_whole_range_and_no_further() {
        for blocks in [1, 2, 3, 10, u64::MAX >> 12] {
            let zipf = Zipf::new(blocks, 0.99);
            assert_eq!(zipf.rank(0.0), 0);
            let last = zipf.rank(1.0 - f64::EPSILON / 2.0);
            assert!(last < blocks && last as f64 >= blocks as f64 * 0.99 - 1.0, "{blocks}: {last}");
        }
    }

    #[test]
    fn zeta_remainder_matches_the_sum() {
        for theta in [0.5, 0.99, 1.5] {
            let n = 3_000_000u64;
            let exact: f64 = (1..=n).rev().map(|i| (i as f64).powf(-theta)).sum();
            assert!((zeta(n, theta) / exact - 1.0).abs() < 1e-12, "theta {theta}");
        }
    }

    #[test]
    fn permutation_is_a_bijection() {
        for count in [1u64, 2, 3, 5, 64, 1000, 4097] {
            let permutation = Permutation::new(count, 9);
            let mut seen = vec![false; count as usize];
            for index in 0..count {
                let to = permutation.apply(index) as usize;
                assert!(!std::mem::replace(&mut seen[to], true), "{count}: {to} twice");
            }
        }
    }

    #[test]
    fn hot_part_gets_its_share() {
        let hot = Distribution::Hot { accesses_percent: 80, blocks_percent: 20 };
        let sampler = Sampler::new(hot, BLOCKS, 3);
        let mut rng = Rng::new(5, 0);
        let mut counts = vec![0u64; BLOCKS as usize];
        for _ in 0..DRAWS {
            counts[sampler.draw(&mut rng) as usize] += 1;
        }
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let top: u64 = counts[..BLOCKS as usize / 5].iter().sum();
        let share = top as f64 / DRAWS as f64;
        assert!((share - 0.8).abs() < 0.005, "{share}");
        assert!(counts.iter().all(|&c| c > 0), "cold blocks are asked for too");
    }

    #[test]
    fn zipf_scattering_keeps_the_counts() {
        let sampler = Sampler::new(Distribution::Zipf { theta: 0.99 }, BLOCKS, 3);
        let mut rng = Rng::new(42, 0);
        let mut counts = vec![0u64; BLOCKS as usize];
        for _ in 0..DRAWS {
            counts[sampler.draw(&mut rng) as usize] += 1;
        }
        let mut ranks = rank_counts(0.99);
        counts.sort_unstable();
        ranks.sort_unstable();
        assert_eq!(counts, ranks, "the same draws, in other places");
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = [0.0, -1.0, 1.0, 1.0005, 5.0, f64::NAN];
        assert!(refused.iter().all(|&theta| Distribution::Zipf { theta }.validate().is_err()));
        let hot = Distribution::Hot { accesses_percent: 100, blocks_percent: 20 };
        assert_eq!(hot.validate(), Err(DistributionError::Share));
        assert_eq!(Distribution::Zipf { theta: 0.99 }.validate(), Ok(()));
    }
}
