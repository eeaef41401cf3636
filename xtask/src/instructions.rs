//! `cargo xtask instructions`: how many instructions each hot piece of the data path takes, which the machine's noise
//! does not move, beside what it took when `benches/pieces/instructions.tsv` was written.
//!
//! Valgrind's callgrind counts; the pieces are those that `cargo bench -p flagstone-pieces` times.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// What each took, by name: beside the manifest of the pieces.
const FILE: &str = "benches/pieces/instructions.tsv";

/// More than this many percent more than in [`FILE`] is a failure. Counts of two runs of one program differ by less than 1 %:
/// by where memory lies, and what hash tables are seeded with.
const PERCENT: f64 = 3.0;

/// Pieces of a few instructions may differ by so many before that.
const LEAST: f64 = 2.0;

/// The C library copies and fills from these many bytes on with an instruction that repeats itself.
const REPEAT_NEVER: &str = "glibc.cpu.x86_rep_movsb_threshold=2000000000:\
                            glibc.cpu.x86_rep_stosb_threshold=2000000000";

/// Counts all of them; with `--write`, and writes the file anew.
pub fn run(root: &Path, args: &[String]) -> ExitCode {
    let write = match args {
        [] => false,
        [write] if write == "--write" => true,
        _ => {
            eprintln!("error: only --write may be given");
            return ExitCode::from(2);
        }
    };
    match count_all(root).and_then(|counts| judge(root, &counts, write)) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Each piece's name, and the instructions that one takes.
fn count_all(root: &Path) -> Result<Vec<(String, f64)>, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "-p", "flagstone-pieces", "--bin", "pieces"]);
    output(build.current_dir(root).stderr(Stdio::inherit()))?;
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let pieces = target.join("release/pieces");
    let list = output(Command::new(&pieces).arg("list"))?.0;
    let mut counts = Vec::new();
    for line in list.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, runs, per_run] = fields[..] else { return Err(format!("no piece: {line:?}")) };
        let number = |text: &str| text.parse::<f64>().map_err(|_| format!("no piece: {line:?}"));
        counts.push((name.to_owned(), count(&pieces, name)? / number(runs)? / number(per_run)?));
    }
    Ok(counts)
}

/// The instructions of all runs of a piece.
fn count(pieces: &Path, name: &str) -> Result<f64, String> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    valgrind.arg("--toggle-collect=*measured*").arg(pieces).args(["run", name]);
    // Copying 4 KiB by a repeated instruction would count as 4096, and hide all else.
    valgrind.env("GLIBC_TUNABLES", REPEAT_NEVER);
    let told = output(&mut valgrind)?.1;
    let collected = told.lines().find_map(|line| line.split_once("Collected : "));
    let counted = collected.and_then(|(_, number)| number.trim().parse().ok());
    counted.filter(|count| *count > 0.0).ok_or(format!("{name}: valgrind counted nothing:\n{told}"))
}

/// What a command that succeeds writes to its standard output and to its standard error.
fn output(command: &mut Command) -> Result<(String, String), String> {
    let name = command.get_program().display().to_string();
    let output = command.output().map_err(|error| match name.as_str() {
        "valgrind" => format!("valgrind: {error}; `cargo xtask tools` installs it"),
        _ => format!("{name}: {error}"),
    })?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    if output.status.success() { Ok((out, err)) } else { Err(format!("{name} failed: {err}")) }
}

fn judge(root: &Path, counts: &[(String, f64)], write: bool) -> Result<String, String> {
    let path = root.join(FILE);
    let text = match fs::read_to_string(&path) {
        Err(error) if !write => return Err(format!("{FILE}: {error}")),
        text => text.unwrap_or_default(),
    };
    let before = parse(&text)?;
    let (table, more) = compare(counts, &before);
    if write {
        let lines = counts.iter().map(|(name, count)| format!("{name}\t{count:.1}\n"));
        fs::write(&path, lines.collect::<String>()).map_err(|error| format!("{FILE}: {error}"))?;
        return Ok(format!("{table}\nwritten to {FILE}"));
    }
    if more.is_empty() {
        return Ok(table);
    }
    Err(format!(
        "{table}\n{} take more than {PERCENT} % more instructions than in {FILE}, or are not in it. If that is \
         meant, say why where you change it: `cargo xtask instructions --write`",
        more.join(", ")
    ))
}

fn parse(text: &str) -> Result<BTreeMap<&str, f64>, String> {
    let line = |line: &'_ str| -> Result<(usize, f64), String> {
        let wrong = || format!("{FILE}: no piece and number: {line:?}");
        let (name, count) = line.rsplit_once('\t').ok_or_else(wrong)?;
        Ok((name.len(), count.parse().map_err(|_| wrong())?))
    };
    text.lines().map(|text| line(text).map(|(name, count)| (&text[..name], count))).collect()
}

/// A line per piece, and the names of those that take more than they may.
fn compare(counts: &[(String, f64)], before: &BTreeMap<&str, f64>) -> (String, Vec<String>) {
    let (mut table, mut more) = (String::new(), Vec::new());
    for (name, count) in counts {
        let was = before.get(name.as_str()).copied();
        let change =
            was.map_or(String::from("new"), |was| format!("{:+.1} %", (count - was) / was * 100.0));
        // Writing to a string can't fail.
        let _ = writeln!(table, "{name:58} {count:>12.1} {change:>9}");
        let most = was.map_or(0.0, |was| (was * (1.0 + PERCENT / 100.0)).max(was + LEAST));
        if *count > most {
            more.push(name.clone());
        }
    }
    for name in before.keys().filter(|name| counts.iter().all(|(counted, _)| counted != *name)) {
        let _ = writeln!(table, "{name:58} {:>12} {:>9}", "-", "gone");
    }
    (table, more)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn more(count: f64, file: &str) -> Vec<String> {
        compare(&[("a: b".into(), count)], &parse(file).unwrap()).1
    }

    #[test]
    fn what_takes_more_than_it_may_is_named() {
        assert!(more(1030.0, "a: b\t1000.0\n").is_empty());
        assert_eq!(more(1031.0, "a: b\t1000.0\n"), ["a: b"]);
        assert!(more(10.0, "a: b\t1000.0\nc: d\t5.0\n").is_empty());
        assert_eq!(more(10.0, "c: d\t5.0\n"), ["a: b"], "a new one has to be written");
        assert!(more(12.0, "a: b\t10.0\n").is_empty(), "a few instructions");
    }

    #[test]
    fn a_file_that_is_none_is_told() {
        assert!(parse("a: b\n").is_err());
        assert!(parse("a: b\tmany\n").is_err());
    }
}
