//! Seeds: the same every time, and none fails.

use flagstone_sim::config::Theme;
use flagstone_sim::{Detail, Twist, run_seed};

/// Few, since tests are built without much optimisation; the command runs many.
const SEEDS: u64 = 60;

#[test]
fn a_seed_always_does_the_same() {
    for seed in 0..20 {
        let (one, other) = (
            run_seed(seed, Twist::default(), Detail::Hash),
            run_seed(seed, Twist::default(), Detail::Last),
        );
        assert_eq!((one.hash, one.events), (other.hash, other.events), "seed {seed}");
        assert!(one.events > 1, "seed {seed} did nothing");
    }
    assert_ne!(
        run_seed(1, Twist::default(), Detail::Hash).hash,
        run_seed(2, Twist::default(), Detail::Hash).hash
    );
}

#[test]
fn seeds_pass() {
    for seed in 0..SEEDS {
        let outcome = run_seed(seed, Twist::default(), Detail::Last);
        if let Some(failure) = outcome.failure {
            panic!("seed {seed}: {}\n{}", failure.what, failure.steps.join("\n"));
        }
    }
}

#[test]
fn seeds_that_once_failed_pass() {
    let list = include_str!("../seeds/regressions.txt");
    let lines = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut count = 0;
    for line in lines {
        let word = line.split_whitespace().next().unwrap_or_default();
        let (seed, theme) = match word.split_once('@') {
            Some((seed, theme)) => (seed, Some(theme)),
            None => (word, None),
        };
        let theme = theme.map(|name| {
            let mut themes = Theme::ALL.iter().copied();
            themes.find(|theme| format!("{theme:?}") == name).expect("a theme")
        });
        let seed: u64 = seed.parse().unwrap_or_else(|_| panic!("not a seed: {line:?}"));
        let outcome = run_seed(seed, Twist { theme, ..Twist::default() }, Detail::Last);
        if let Some(failure) = outcome.failure {
            panic!("seed {seed} ({line}): {}\n{}", failure.what, failure.steps.join("\n"));
        }
        count += 1;
    }
    assert!(count > 0, "the list is empty");
}
