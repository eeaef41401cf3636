//! CPU time of processes, from `/proc`.
//!
//! `/proc/PID/stat` has the time of all threads that the process has or ever had, kernel workers
//! of its io_uring rings included (they are threads of the process), but in clock ticks of
//! mostly 10 ms. `/proc/PID/task/TID/schedstat` has nanoseconds, but only for threads that still
//! live. The time spent between two samples is therefore the nanoseconds, unless the ticks show
//! more than their rounding explains: then threads have ended meanwhile, also such as began after
//! the first sample, and the ticks are at most four short.
//!
//! Work that the kernel does in its own threads (a loop device's worker, block completions in an
//! interrupt) belongs to nobody and is not counted for anybody; [`machine_cpu`] has it, with all
//! that other processes do.

use std::{collections::BTreeMap, fs, io, time::Duration};

/// The fields of `/proc/PID/stat` that matter here (man page proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    user_ticks: u64,
    system_ticks: u64,
    /// When the process started, in ticks since boot: tells a reused process id.
    started_ticks: u64,
}

/// The command name is in parentheses and may hold spaces and parentheses itself, so fields are
/// counted from the last one on.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, fields) = text.rsplit_once(')')?;
    // The first field after the name is number 3, the state.
    let field = |number: usize| fields.split_ascii_whitespace().nth(number - 3)?.parse().ok();
    Some(Stat { user_ticks: field(14)?, system_ticks: field(15)?, started_ticks: field(22)? })
}

/// Nanoseconds on a CPU: the first of `schedstat`'s three numbers.
fn parse_schedstat(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// The CPU time that a process has used up to a moment.
#[derive(Clone, Debug)]
pub struct ProcessCpu {
    stat: Stat,
    /// Nanoseconds per living thread.
    threads: BTreeMap<u32, u64>,
    tick_nanos: u64,
}

impl ProcessCpu {
    /// The CPU time of process `pid` until now.
    ///
    /// # Errors
    /// When there is no such process, or `/proc` can't be read.
    pub fn sample(pid: u32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let stat = parse_stat(&text).ok_or(io::ErrorKind::InvalidData)?;
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let entry = entry?;
            let Some(thread) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // A thread may end between the listing and the reading, and a kernel without
            // scheduler statistics has no such file: the ticks remain.
            if let Ok(text) = fs::read_to_string(entry.path().join("schedstat"))
                && let Some(nanos) = parse_schedstat(&text)
            {
                threads.insert(thread, nanos);
            }
        }
        let tick_nanos = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
        Ok(Self { stat, threads, tick_nanos })
    }

    /// CPU time used from `earlier` to `self`; `None` when the process id was reused meanwhile.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Option<Duration> {
        if self.stat.started_ticks != earlier.stat.started_ticks {
            return None;
        }
        let ticks = |stat: &Stat| stat.user_ticks + stat.system_ticks;
        let by_ticks = ticks(&self.stat).saturating_sub(ticks(&earlier.stat)) * self.tick_nanos;
        let by_threads: u64 = self
            .threads
            .iter()
            .map(|(id, nanos)| {
                nanos.saturating_sub(earlier.threads.get(id).copied().unwrap_or_default())
            })
            .sum();
        // User and system ticks are each cut off at both ends, so this much of them is noise.
        let by_ticks = by_ticks.saturating_sub(2 * self.tick_nanos);
        Some(Duration::from_nanos(by_threads.max(by_ticks)))
    }
}

/// Busy ticks of all cores: everything in the first line of `/proc/stat` but idle and iowait
/// (proc_stat(5)). The last two columns, of guests, are part of the first two already.
fn parse_machine(text: &str) -> Option<u64> {
    let fields = text.lines().next()?.strip_prefix("cpu ")?;
    let mut busy = 0u64;
    for (index, field) in fields.split_ascii_whitespace().take(8).enumerate() {
        let ticks: u64 = field.parse().ok()?;
        if index != 3 && index != 4 {
            busy = busy.saturating_add(ticks);
        }
    }
    Some(busy)
}

/// CPU time of the whole machine since it started, kernel threads and interrupts included.
#[must_use]
pub(crate) fn machine_cpu() -> Option<Duration> {
    let ticks = parse_machine(&fs::read_to_string("/proc/stat").ok()?)?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Some(Duration::from_nanos(ticks.saturating_mul(1_000_000_000 / per_second)))
}

/// CPU time of this process, all threads.
#[must_use]
pub(crate) fn own_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "4242 (tricky) name (x) S 1 4242 4242 0 -1 4194560 2520 10 0 0 \
        731 269 5 6 20 0 3 0 98765 2703360 1010 18446744073709551615 1 1 0 0 0 0 0";

    #[test]
    fn stat_is_parsed_past_the_name() {
        let stat = Stat { user_ticks: 731, system_ticks: 269, started_ticks: 98765 };
        assert_eq!(parse_stat(LINE), Some(stat));
        for cut in 0..LINE.len() {
            let _ = parse_stat(&LINE[..cut]);
        }
        assert_eq!(parse_stat("1 (x) S 1 2"), None);
        assert_eq!(parse_stat("nothing"), None);
    }

    #[test]
    fn schedstat_is_parsed() {
        assert_eq!(parse_schedstat("506266 42854 2\n"), Some(506_266));
        assert_eq!(parse_schedstat(""), None);
        assert_eq!(parse_schedstat("x 1 2"), None);
    }

    #[test]
    fn machine_time_leaves_idleness_out() {
        let text = "cpu  100 20 30 9999 8888 4 5 6 50 7\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(parse_machine(text), Some(165));
        assert_eq!(parse_machine("cpu  1 x"), None);
        assert_eq!(parse_machine("intr 1"), None);
        assert!(machine_cpu().is_some_and(|time| time > Duration::ZERO));
    }

    fn sample(ticks: u64, threads: &[(u32, u64)]) -> ProcessCpu {
        ProcessCpu {
            stat: Stat { user_ticks: ticks, system_ticks: 0, started_ticks: 7 },
            threads: threads.iter().copied().collect(),
            tick_nanos: 10_000_000,
        }
    }

    #[test]
    fn living_threads_count_in_nanoseconds() {
        let before = sample(10, &[(1, 100_000_000), (2, 50)]);
        // Thread 3 is new, as kernel workers are.
        let after = sample(13, &[(1, 120_000_000), (2, 60), (3, 1_000_000)]);
        assert_eq!(after.since(&before), Some(Duration::from_nanos(21_000_010)));
    }

    #[test]
    fn ended_threads_count_in_ticks() {
        let before = sample(10, &[(1, 100_000_000), (2, 50)]);
        let after = sample(30, &[(1, 120_000_000)]);
        assert_eq!(after.since(&before), Some(Duration::from_millis(180)));
        // Threads that began and ended in between.
        let after = sample(30, &[(1, 120_000_000), (2, 50)]);
        assert_eq!(after.since(&before), Some(Duration::from_millis(180)));
    }

    #[test]
    fn another_process_is_noticed() {
        let before = sample(10, &[(1, 1)]);
        let mut after = sample(11, &[(1, 2)]);
        after.stat.started_ticks = 8;
        assert_eq!(after.since(&before), None);
    }

    #[test]
    fn this_process_can_be_sampled() {
        let before = ProcessCpu::sample(std::process::id()).expect("own /proc entry");
        let own = own_cpu();
        let mut sum = 0u64;
        while own_cpu() - own < Duration::from_millis(50) {
            sum = sum.wrapping_add(std::hint::black_box(1));
        }
        let after = ProcessCpu::sample(std::process::id()).expect("own /proc entry");
        let used = after.since(&before).expect("the same process");
        // The kernel brings a running thread's figure up to date at its ticks only.
        assert!(used >= Duration::from_millis(30), "{used:?}");
    }
}
