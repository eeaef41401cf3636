//! The end of a run: what took how long, what failed, what this machine could not test.

use std::fmt::Write as _;
use std::time::Duration;

use crate::step::Counts;

/// One line of the table.
pub struct Row {
    /// What the step is called.
    pub name: &'static str,
    /// How long it took.
    pub took: Duration,
    /// How it ended: what it counted, or why it could not run.
    pub result: Result<Counts, String>,
}

/// The whole report of what took `total`, less than the sum where steps went on beside others. Its last line is
/// `N passed, N failed`, alone.
pub fn render(rows: &[Row], total: Duration) -> String {
    let mut text = String::from("\n");
    let (mut passed, mut failed) = (0, 0);
    for row in rows {
        let (good, bad) = match &row.result {
            Ok(counts) => (counts.passed, counts.failed),
            Err(_) => (0, 1),
        };
        passed += good;
        failed += bad;
        line(&mut text, row.name, row.took, &format!("{good:>6} passed {bad:>4} failed"));
    }
    line(&mut text, "total", total, "");
    for row in rows {
        match &row.result {
            Err(why) => add(&mut text, &format!("failed: {}: {why}", row.name)),
            Ok(counts) => {
                for name in &counts.failures {
                    add(&mut text, &format!("failed: {}: {name}", row.name));
                }
                for why in &counts.skipped {
                    add(&mut text, &format!("skipped: {}: {why}", row.name));
                }
                if counts.failed > 0 && counts.failures.is_empty() {
                    add(&mut text, &format!("failed: {}", row.name));
                }
            }
        }
    }
    add(&mut text, &format!("{passed} passed, {failed} failed"));
    text
}

/// Whether every step ran and nothing in it failed.
pub fn is_good(rows: &[Row]) -> bool {
    rows.iter().all(|row| row.result.as_ref().is_ok_and(|counts| counts.failed == 0))
}

fn line(text: &mut String, name: &str, took: Duration, rest: &str) {
    let seconds = took.as_secs();
    let time = format!("{}:{:02}", seconds / 60, seconds % 60);
    add(text, format!("{name:<28}{time:>6} {rest}").trim_end());
}

fn add(text: &mut String, line: &str) {
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, result: Result<Counts, String>) -> Row {
        Row { name, took: Duration::from_secs(61), result }
    }

    #[test]
    fn the_last_line_is_the_sum() {
        let counts = Counts {
            passed: 7,
            failed: 1,
            skipped: vec!["x needs y".to_owned()],
            failures: vec!["a::b".to_owned()],
        };
        let rows = [row("one", Ok(counts)), row("two", Err("not there".to_owned()))];
        let text = render(&rows, rows.iter().map(|row| row.took).sum());
        assert!(text.contains("failed: one: a::b\n"), "{text}");
        assert!(text.contains("skipped: one: x needs y\n"), "{text}");
        assert!(text.contains("failed: two: not there\n"), "{text}");
        assert!(text.contains(&format!("{:<28}  2:02\n", "total")), "{text}");
        assert!(text.ends_with("\n7 passed, 2 failed\n"), "{text}");
        assert!(!is_good(&rows));
    }
}
