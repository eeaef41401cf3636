//! Every planted bug is found: a fault model that misses known bugs says nothing of others.

#![cfg(feature = "planted-bugs")]

use flagstone_engine::plant::Plant;
use flagstone_sim::{Detail, Twist, first_seed_for, run_seed, theme_for};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Each is found by far fewer, from where the search for it begins.
const SEEDS: u64 = 2_000;

#[test]
fn every_planted_bug_is_found() {
    // An assertion of the engine that fails is a find, not a mishap of the test.
    std::panic::set_hook(Box::new(|_| {}));
    let finds = |plant: Plant, seed: u64| {
        let twist = Twist { plant: Some(plant), theme: theme_for(plant), ..Twist::default() };
        let run = || run_seed(seed, twist, Detail::Hash).failure.is_some();
        catch_unwind(AssertUnwindSafe(run)).unwrap_or(true)
    };
    let missed: Vec<Plant> = Plant::ALL
        .iter()
        .copied()
        .filter(|&plant| {
            let first = first_seed_for(plant);
            !(first..first + SEEDS).any(|seed| finds(plant, seed))
        })
        .collect();
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
