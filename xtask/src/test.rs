//! `cargo xtask test`: every check and every test of the project.
//!
//! The simulator and the fuzz inputs go on beside the kernel tests, whose guest has little use for more than one
//! processor, and beside the end-to-end tests, which often wait; they give way to both.
//!
//! Two builds: the test profile for unit, integration and end-to-end tests, and the `sim` profile for the simulator,
//! which is worth its time only when it is fast; and, of the few crates whose instructions are counted, a release
//! build. Every cargo command below names the whole workspace, because cargo unifies features over the packages
//! that it is told of: with another set it would build the dependencies again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::report::{self, Row};
use crate::step::{self, Counts};
use crate::{kernel_tests, lab, tidy, tools};

/// The end-to-end tests' files, in the package `flagstone-tests`, begin with this.
const END_TO_END: &str = "e2e";

/// Seeds that the simulator runs, and at most so many to catch each planted bug.
const SEEDS: &str = "0..2000";
const CANARY_SEEDS: &str = "20000";

/// Themes that no seed draws by itself, and seeds of each.
const MORE_THEMES: [&str; 5] = ["Snapshots", "Clones", "Trees", "Failing", "Scrub"];
const THEME_SEEDS: &str = "0..80";

/// Runs all steps. One that fails doesn't stop the others, but nothing is tested that wasn't built.
pub fn run(root: &Path) -> ExitCode {
    let mut rows = Vec::new();
    let begun = Instant::now();
    let mut step = |name, run: &mut dyn FnMut() -> Result<Counts, String>| {
        println!("\n== {name}");
        let start = Instant::now();
        let result = run();
        if let Err(why) = &result {
            eprintln!("{name}: {why}");
        }
        let good = result.as_ref().is_ok_and(|counts| counts.failed == 0);
        rows.push(Row { name, took: start.elapsed(), result });
        good
    };
    step("tools", &mut || Ok(tool_counts(tools::install())));
    step("format", &mut || {
        let mut counts = step::run(cargo(root, &["fmt", "--all", "--check"]))?;
        counts.add(step::run(fuzz(root, &["fmt", "--check"]))?);
        Ok(counts)
    });
    step("tidy", &mut || tidy::run(root).map(|_| Counts { passed: 1, ..Counts::default() }));
    let built = step("build", &mut || {
        step::run(cargo(root, &["build", "--workspace", "--bins", "--tests"]))
    });
    step("lints", &mut || {
        let lint = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        step::run(cargo(root, &lint))
    });
    step("lints: fuzz", &mut || {
        step::run(fuzz(root, &["clippy", "--all-targets", "--", "-D", "warnings"]))
    });
    if built {
        step("unit and integration tests", &mut || step::run(crate_tests(root)?));
        step("documentation tests", &mut || {
            step::run(cargo(root, &["test", "--workspace", "--doc", "--no-fail-fast"]))
        });
        println!("\n== simulator, fuzz inputs: begun, shown as they end");
        let beside = {
            let root = root.to_owned();
            std::thread::spawn(move || beside(&root))
        };
        step("kernel tests", &mut || {
            let (newest, stable) = (lab::NEWEST, Some(lab::STABLE));
            kernel_tests::run(root, newest, stable, workspace_tests(root), step::run)
        });
        step("end-to-end tests", &mut || step::run(end_to_end(root)));
        rows.extend(beside.join().unwrap_or_else(|_| {
            let result = Err("their thread panicked".to_owned());
            vec![Row { name: "simulator, fuzz inputs", took: begun.elapsed(), result }]
        }));
    }
    let good = report::is_good(&rows);
    print!("{}", report::render(&rows, begun.elapsed()));
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The steps that need no quiet, one after the other.
fn beside(root: &Path) -> Vec<Row> {
    let timed = |name, commands: Vec<Command>| {
        let start = Instant::now();
        let mut counts = Counts::default();
        let mut result = Ok(());
        for command in commands {
            result = result.and(step::run_aside(name, command).map(|more| counts.add(more)));
        }
        Row { name, took: start.elapsed(), result: result.map(|()| counts) }
    };
    let theme = |theme| simulator(root, &["run", "--seeds", THEME_SEEDS, "--theme", theme]);
    vec![
        timed("simulator", vec![simulator(root, &["run", "--seeds", SEEDS])]),
        timed("simulator: more themes", MORE_THEMES.map(theme).into()),
        timed(
            "simulator: planted bugs",
            vec![simulator(root, &["canary", "--seeds", CANARY_SEEDS])],
        ),
        timed("instructions", vec![instructions(root)]),
        timed("fuzz inputs", vec![gently(fuzz(root, &["test", "--no-fail-fast"]))]),
    ]
}

/// Runs the kernel tests alone, with the kernel of one suite only if one is named.
pub fn kernel(root: &Path, args: &[String]) -> ExitCode {
    let (suite, aside) = match args {
        [] => (lab::NEWEST, Some(lab::STABLE)),
        [suite] => (suite.as_str(), None),
        _ => {
            eprintln!("error: one suite at a time");
            return ExitCode::from(2);
        }
    };
    let start = Instant::now();
    let result =
        step::run(cargo(root, &["build", "--workspace", "--bins"])).and_then(|built| match built {
            Counts { failed: 0, .. } => {
                kernel_tests::run(root, suite, aside, workspace_tests(root), step::run)
            }
            _ => Err("nothing is tested that wasn't built".to_owned()),
        });
    let rows = [Row { name: "kernel tests", took: start.elapsed(), result }];
    print!("{}", report::render(&rows, start.elapsed()));
    if report::is_good(&rows) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A machine where a program can't be installed still runs the rest: what is missing shows as
/// skipped here and in each test that needed it.
fn tool_counts(result: Result<String, String>) -> Counts {
    match result {
        Ok(said) => {
            println!("{said}");
            Counts { passed: 1, ..Counts::default() }
        }
        Err(why) => Counts { skipped: vec![why], ..Counts::default() },
    }
}

/// Unit tests and every crate's own integration tests: all targets but the end-to-end ones, and
/// those for a kernel of their own.
fn crate_tests(root: &Path) -> Result<Command, String> {
    let mut command = cargo(root, &["test", "--workspace", "--no-fail-fast", "--lib", "--bins"]);
    for name in test_targets(root)? {
        if !name.starts_with(END_TO_END) && !name.starts_with(kernel_tests::PREFIX) {
            command.args(["--test", &name]);
        }
    }
    Ok(command)
}

/// The simulator, built with the planted bugs in it: they are off unless asked for, and one build
/// then serves both runs.
fn simulator(root: &Path, args: &[&str]) -> Command {
    let mut command = cargo(root, &["run", "--quiet", "--profile", "sim", "-p", "flagstone-sim"]);
    command.args(["--features", "planted-bugs", "--"]).args(args);
    gently(command)
}

/// What hot pieces cost, by this program.
fn instructions(root: &Path) -> Command {
    let own = std::env::current_exe().unwrap_or_else(|_| "xtask".into());
    let mut command = Command::new(own);
    command.arg("instructions").current_dir(root);
    gently(command)
}

/// The command, giving way to others.
fn gently(command: Command) -> Command {
    let mut gentle = Command::new("nice");
    gentle.args(["-n", "19"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => gentle.env(name, value),
            None => gentle.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        gentle.current_dir(directory);
    }
    gentle
}

/// A cargo command for the workspace of the fuzz targets, which is one of its own.
fn fuzz(root: &Path, args: &[&str]) -> Command {
    let (task, rest) = args.split_first().expect("a cargo command");
    let mut command = cargo(root, &[task, "--manifest-path", "fuzz/Cargo.toml"]);
    command.args(rest);
    // The same directory, so that what both workspaces build alike is built once.
    command.env("CARGO_TARGET_DIR", target_directory(root));
    command
}

fn target_directory(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

fn workspace_tests(root: &Path) -> Command {
    cargo(root, &["test", "--workspace"])
}

fn end_to_end(root: &Path) -> Command {
    let targets = format!("{END_TO_END}*");
    cargo(root, &["test", "--workspace", "--no-fail-fast", "--test", &targets])
}

/// The names of all files `CRATE/tests/NAME.rs` of the workspace's members.
fn test_targets(root: &Path) -> Result<Vec<String>, String> {
    let failed = |path: &Path, error| format!("{}: {error}", path.display());
    let manifest = root.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).map_err(|error| failed(&manifest, error))?;
    let mut names = Vec::new();
    for member in members(&text) {
        let directory = root.join(member).join("tests");
        if !directory.is_dir() {
            continue;
        }
        for file in fs::read_dir(&directory).map_err(|error| failed(&directory, error))? {
            let path = file.map_err(|error| failed(&directory, error))?.path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
            }
        }
    }
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// What the workspace's manifest lists as `members`.
fn members(manifest: &str) -> impl Iterator<Item = &str> {
    let list = manifest.split_once("\nmembers = [").and_then(|(_, rest)| rest.split_once(']'));
    list.map_or("", |(list, _)| list).split(',').map(|name| name.trim().trim_matches('"'))
}

fn cargo(root: &Path, args: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(args).current_dir(root);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_listed() {
        let text = "[workspace]\nmembers = [\"block\",\n  \"ring\"]\nexclude = [\"fuzz\"]\n";
        assert_eq!(members(text).collect::<Vec<_>>(), ["block", "ring"]);
    }

    #[test]
    fn end_to_end_targets_are_among_the_test_targets() {
        let names = test_targets(&crate::root()).unwrap();
        assert!(names.iter().any(|name| name.starts_with(END_TO_END)));
        assert!(names.iter().any(|name| name.starts_with(kernel_tests::PREFIX)));
        assert!(names.iter().any(|name| !name.starts_with(END_TO_END)));
    }
}
