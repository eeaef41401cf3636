//! Runs one command of a task, shows what it prints, and counts the tests in it.
//!
//! Counting reads the summary lines of the test harness (`test result: ok. 3 passed; ...`), which
//! have been stable since Rust 1.0 and need no unstable output format. A command that prints none
//! counts as one check.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a step may take when nobody watches it. A hang is then a failure with a name instead
/// of a run that is killed from outside.
const LIMIT: Duration = Duration::from_secs(25 * 60);

/// What a command left behind.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tests, seeds or checks that passed.
    pub passed: u64,
    /// Those that failed.
    pub failed: u64,
    /// Lines that say why a test could not run on this machine.
    pub skipped: Vec<String>,
    /// Names of the tests that failed.
    pub failures: Vec<String>,
}

/// Runs `command` to its end, with its output shown as it comes.
pub fn run(command: Command) -> Result<Counts, String> {
    println!("{}", command_line(&command));
    run_into(command, std::io::stdout(), std::io::stderr())
}

/// As [`run`], with its output shown at the end, all at once: for one that runs beside others.
pub fn run_aside(name: &str, command: Command) -> Result<Counts, String> {
    let shown = Shown::default();
    let title = format!("\n== {name}, which went on beside others\n{}\n", command_line(&command));
    let result = run_into(command, shown.clone(), shown.clone());
    let mut text = title.into_bytes();
    text.extend_from_slice(&shown.0.lock().unwrap_or_else(PoisonError::into_inner));
    if let Err(why) = &result {
        text.extend_from_slice(format!("{name}: {why}\n").as_bytes());
    }
    // Output that nobody reads any more doesn't end the step.
    let _ = std::io::stdout().write_all(&text);
    result
}

fn command_line(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    format!("$ {}", words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" "))
}

/// Output for later.
#[derive(Clone, Default)]
struct Shown(Arc<Mutex<Vec<u8>>>);

impl Write for Shown {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn run_into(
    mut command: Command,
    out: impl Write + Send + 'static,
    err: impl Write + Send + 'static,
) -> Result<Counts, String> {
    let watched = std::io::stdin().is_terminal();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if !watched {
        // Its own group, so that a step that hangs can be ended with all its children. At a
        // terminal it stays in ours, where Ctrl-C reaches it.
        command.process_group(0);
    }
    let text = format!("{command:?}");
    let mut child = command.spawn().map_err(|error| format!("{text}: {error}"))?;
    let (lines, received) = mpsc::channel();
    let readers = [
        copy(child.stdout.take().expect("piped above"), out, lines.clone()),
        copy(child.stderr.take().expect("piped above"), err, lines),
    ];
    let deadline = Instant::now() + LIMIT;
    let mut counts = Counts::default();
    let mut saw_summary = false;
    let mut timed_out = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match received.recv_timeout(if watched { Duration::MAX } else { left }) {
            Ok(line) => saw_summary |= counts.read(&line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                timed_out = true;
                end_group(&child);
                break;
            }
        }
    }
    let status = child.wait().map_err(|error| format!("{text}: {error}"))?;
    for reader in readers {
        // A panic there is a failed write to our own output: nothing is left to report it on.
        let _ = reader.join();
    }
    conclude(counts, saw_summary, timed_out, status)
}

fn conclude(
    mut counts: Counts,
    saw_summary: bool,
    timed_out: bool,
    status: ExitStatus,
) -> Result<Counts, String> {
    if timed_out {
        counts.failed += 1;
        counts.failures.push(format!("ended after {} minutes", LIMIT.as_secs() / 60));
    } else if !saw_summary {
        *(if status.success() { &mut counts.passed } else { &mut counts.failed }) += 1;
    } else if !status.success() && counts.failed == 0 {
        // A test process that was killed prints no summary of its own.
        counts.failed = 1;
        counts.failures.push(status.to_string());
    }
    Ok(counts)
}

fn end_group(child: &Child) {
    let group = format!("-{}", child.id());
    // Without `kill` the step stays; the wait that follows then lasts as long as it does.
    let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
}

fn copy(
    from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
    lines: mpsc::Sender<String>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(from);
        let mut raw = Vec::new();
        while reader.read_until(b'\n', &mut raw).is_ok_and(|bytes| bytes > 0) {
            let line = String::from_utf8_lossy(&raw).into_owned();
            // Output that nobody reads any more doesn't end the step.
            let _ = to.write_all(line.as_bytes()).and_then(|()| to.flush());
            let _ = lines.send(line);
            raw.clear();
        }
    })
}

impl Counts {
    /// Adds what another command of the same step counted.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
        self.failures.extend(other.failures);
    }

    /// Takes what a line of output says; whether it was a summary.
    fn read(&mut self, line: &str) -> bool {
        let line = line.trim_end();
        if let Some(why) = line.strip_prefix("SKIPPED: ") {
            self.skipped.push(why.to_owned());
        }
        if let Some(name) = line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... FAILED")) {
            self.failures.push(name.to_owned());
        }
        if let Some((passed, failed)) = simulated(line) {
            self.passed += passed;
            self.failed += failed;
            return true;
        }
        let Some(summary) = line.strip_prefix("test result: ") else { return false };
        for part in summary.split(['.', ';']) {
            match part.trim().split_once(' ') {
                Some((number, "passed")) => self.passed += number.parse().unwrap_or(0),
                Some((number, "failed")) => self.failed += number.parse().unwrap_or(0),
                _ => {}
            }
        }
        true
    }
}

/// What the simulator says: `2000 seeds in 3.1 s (645 per second), 0 failed`, and of a planted bug
/// `NAME: caught by seed ...` or `NAME: NOT CAUGHT ...`.
fn simulated(line: &str) -> Option<(u64, u64)> {
    if let Some((seeds, rest)) = line.split_once(" seeds in ") {
        let failed: u64 = rest.rsplit_once(", ")?.1.strip_suffix(" failed")?.parse().ok()?;
        return Some((seeds.parse::<u64>().ok()?.checked_sub(failed)?, failed));
    }
    let (name, rest) = line.split_once(": ")?;
    let is_name = name.chars().all(|c| c.is_ascii_alphanumeric());
    match rest {
        _ if is_name && rest.starts_with("caught by ") => Some((1, 0)),
        _ if is_name && rest.starts_with("NOT CAUGHT ") => Some((0, 1)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Counts {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        // Not shown: whoever counts this crate's own tests would count these summaries too.
        run_into(command, std::io::sink(), std::io::sink()).unwrap()
    }

    #[test]
    fn summaries_are_added_up() {
        let counts = shell(
            "echo 'test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out'
             echo 'test a::b ... FAILED'; echo 'SKIPPED: c needs d' >&2
             echo 'test result: FAILED. 2 passed; 1 failed; 0 ignored; finished in 0.01s'; exit 101",
        );
        assert_eq!(counts.passed, 5);
        assert_eq!(counts.failed, 1);
        assert_eq!(counts.failures, ["a::b"]);
        assert_eq!(counts.skipped, ["c needs d"]);
    }

    #[test]
    fn the_simulator_counts_seeds_and_bugs() {
        assert_eq!(simulated("2000 seeds in 22.2 s (90 per second), 3 failed"), Some((1997, 3)));
        assert_eq!(simulated("SkipFlush: caught by seed 0 after 2 seeds, 0.0 s: x"), Some((1, 0)));
        assert_eq!(simulated("SkipFlush: NOT CAUGHT by 20 seeds, 1.0 s"), Some((0, 1)));
        assert_eq!(simulated("Stats { seeds in all: 3 }"), None);
        assert_eq!(simulated("test a ... ok"), None);
    }

    #[test]
    fn a_command_without_a_summary_is_one_check() {
        assert_eq!(shell("true"), Counts { passed: 1, ..Counts::default() });
        assert_eq!(shell("exit 3"), Counts { failed: 1, ..Counts::default() });
    }

    #[test]
    fn a_test_process_that_dies_is_a_failure() {
        let counts = shell("echo 'test result: ok. 3 passed; 0 failed'; kill -KILL $$");
        assert_eq!((counts.passed, counts.failed), (3, 1));
    }
}
