//! What the system knows about a process: memory and CPU time.

use std::fs;
use std::time::Duration;

/// Resident memory in bytes (`VmRSS`), and its peak so far (`VmHWM`).
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn memory(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("field");
        let number = line.trim().trim_end_matches(" kB");
        number.parse::<u64>().expect("a number") * 1024
    };
    (kib("VmRSS:"), kib("VmHWM:"))
}

/// CPU time that all its threads have taken, in user and kernel mode.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    // The name in parentheses may hold anything; fields 14 and 15 of proc(5) come after it.
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let fields: Vec<_> = fields.split_whitespace().collect();
    let ticks =
        [fields[11], fields[12]].iter().map(|f| f.parse::<u64>().expect("ticks")).sum::<u64>();
    Duration::from_micros(ticks * 1_000_000 / rustix::param::clock_ticks_per_second())
}
