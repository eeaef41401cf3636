//! The command line of the simulator.

use clap::{Parser, Subcommand};
use flagstone_engine::plant::Plant;
use flagstone_sim::config::Theme;
use flagstone_sim::world::Stats;
use flagstone_sim::{Detail, Failure, Outcome, Twist, first_seed_for, run_seed, theme_for};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// As `println!`, but a reader who has seen enough is no error.
macro_rules! say {
    ($($words:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($words)*);
    }};
}

#[derive(Parser)]
#[command(name = "flagstone-sim", about = "Runs the engine on a simulated disk, by seed")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args, Clone, Copy)]
struct TwistArgs {
    /// Plant this bug.
    #[arg(long, value_parser = parse_plant)]
    plant: Option<Plant>,
    /// Force this theme instead of the one that each seed draws.
    #[arg(long, value_parser = parse_theme)]
    theme: Option<Theme>,
    /// Recount all that the engine counts after every event, instead of now and then: some ten times slower.
    #[arg(long)]
    check_every_event: bool,
}

impl From<TwistArgs> for Twist {
    fn from(args: TwistArgs) -> Self {
        let TwistArgs { plant, theme, check_every_event } = args;
        Self { plant, theme, check_every_event }
    }
}

#[derive(Subcommand)]
enum Command {
    /// Run a range of seeds.
    Run {
        /// Half-open range of seeds.
        #[arg(long, default_value = "0..2000", value_parser = parse_range)]
        seeds: (u64, u64),
        /// Threads.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        #[command(flatten)]
        twist: TwistArgs,
        /// Stop after so many failures.
        #[arg(long, default_value_t = 1)]
        failures: u64,
    },
    /// Run one seed and tell what happens in words.
    Replay {
        /// The seed.
        seed: u64,
        #[command(flatten)]
        twist: TwistArgs,
        /// Tell every step, not only the last ones before a failure.
        #[arg(long)]
        verbose: bool,
    },
    /// Plant every bug in turn: each must be found.
    Canary {
        /// Seeds to try per bug, at most.
        #[arg(long, default_value_t = 20_000)]
        seeds: u64,
        /// Threads.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
    },
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("a range looks like 0..2000")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
    let range = (number(from)?, number(to)?);
    if range.0 < range.1 { Ok(range) } else { Err("an empty range".into()) }
}

fn parse_plant(text: &str) -> Result<Plant, String> {
    let named = Plant::ALL.iter().find(|plant| format!("{plant:?}").eq_ignore_ascii_case(text));
    named.copied().ok_or_else(|| format!("no such bug; there are {:?}", Plant::ALL))
}

fn parse_theme(text: &str) -> Result<Theme, String> {
    let named = Theme::ALL.iter().find(|theme| format!("{theme:?}").eq_ignore_ascii_case(text));
    named.copied().ok_or_else(|| format!("no such theme; there are {:?}", Theme::ALL))
}

/// Runs a seed; a panic is a failure like any other.
fn guarded(seed: u64, twist: Twist, detail: Detail) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| run_seed(seed, twist, detail))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let what = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?");
        let failure = Failure { what: format!("panic: {what}"), steps: Vec::new() };
        Outcome { failure: Some(failure), hash: 0, events: 0, stats: Stats::default() }
    })
}

struct Tally {
    seeds: u64,
    failed: Vec<(u64, Failure)>,
    stats: Stats,
}

fn run_range(seeds: (u64, u64), jobs: usize, twist: Twist, failures: u64) -> Tally {
    let next = AtomicU64::new(seeds.0);
    let stop = AtomicBool::new(false);
    let tally = Mutex::new(Tally { seeds: 0, failed: Vec::new(), stats: Stats::default() });
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.1 {
                        break;
                    }
                    let outcome = guarded(seed, twist, Detail::Hash);
                    let Ok(mut tally) = tally.lock() else { break };
                    tally.seeds += 1;
                    tally.stats.add(&outcome.stats);
                    if let Some(failure) = outcome.failure {
                        tally.failed.push((seed, failure));
                        if tally.failed.len() as u64 >= failures {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let mut tally = tally.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    tally.failed.sort_by_key(|(seed, _)| *seed);
    tally
}

fn replay_command(seed: u64, twist: Twist) -> String {
    let features = if twist.plant.is_some() { " --features planted-bugs" } else { "" };
    let mut command =
        format!("cargo run --profile sim -p flagstone-sim{features} -- replay {seed}");
    if let Some(plant) = twist.plant {
        command += &format!(" --plant {plant:?}");
    }
    if let Some(theme) = twist.theme {
        command += &format!(" --theme {theme:?}");
    }
    if twist.check_every_event {
        command += " --check-every-event";
    }
    command
}

fn run(seeds: (u64, u64), jobs: usize, twist: Twist, failures: u64) -> ExitCode {
    let start = Instant::now();
    let tally = run_range(seeds, jobs, twist, failures);
    let seconds = start.elapsed().as_secs_f64();
    for (seed, failure) in &tally.failed {
        say!("seed {seed} failed: {}", failure.what);
        say!("  replay: {}", replay_command(*seed, twist));
    }
    say!(
        "{} seeds in {seconds:.1} s ({:.0} per second), {} failed",
        tally.seeds,
        tally.seeds as f64 / seconds,
        tally.failed.len()
    );
    say!("{:?}", tally.stats);
    if tally.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn replay(seed: u64, twist: Twist, verbose: bool) -> ExitCode {
    let detail = if verbose { Detail::All } else { Detail::Last };
    let outcome = guarded(seed, twist, detail);
    match outcome.failure {
        None => {
            say!("seed {seed} passed: {} steps, hash {:#018x}", outcome.events, outcome.hash);
            say!("{:?}", outcome.stats);
            ExitCode::SUCCESS
        }
        Some(failure) => {
            if !verbose {
                failure.steps.iter().for_each(|step| say!("{step}"));
            }
            say!("seed {seed} failed: {}", failure.what);
            ExitCode::FAILURE
        }
    }
}

fn canary(seeds: u64, jobs: usize) -> ExitCode {
    let mut missed = 0;
    for &plant in Plant::ALL {
        let start = Instant::now();
        let twist = Twist { plant: Some(plant), theme: theme_for(plant), ..Twist::default() };
        let first = first_seed_for(plant);
        let tally = run_range((first, first + seeds), jobs, twist, 1);
        let seconds = start.elapsed().as_secs_f64();
        match tally.failed.first() {
            Some((seed, failure)) => {
                let what: String = failure.what.chars().take(110).collect();
                say!(
                    "{plant:?}: caught by seed {seed} after {} seeds, {seconds:.1} s: {what}",
                    tally.seeds
                );
            }
            None => {
                missed += 1;
                say!("{plant:?}: NOT CAUGHT by {} seeds, {seconds:.1} s", tally.seeds);
            }
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if !matches!(cli.command, Command::Replay { .. }) {
        // Panics are reported with their seed.
        std::panic::set_hook(Box::new(|_| {}));
    }
    match cli.command {
        Command::Run { seeds, jobs, twist, failures } => run(seeds, jobs, twist.into(), failures),
        Command::Replay { seed, twist, verbose } => replay(seed, twist.into(), verbose),
        Command::Canary { seeds, jobs } => canary(seeds, jobs),
    }
}
