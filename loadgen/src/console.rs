//! Reports for people: the table at the end, a line per interval, a progress bar.

use std::{
    fmt::{self, Write as _},
    io::{IsTerminal, stderr},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    report::{Figures, Interval, Latency, Report},
    run::Observer,
};

/// Writes a [`Report`] as a few lines of text.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a>(pub &'a Report);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        let setup = &report.setup;
        writeln!(
            f,
            "{}: {} B, depth {}, {} connection{}, {} % reads, {}, span {} MiB, {:.2} s{}",
            setup.target,
            setup.block_size,
            setup.depth,
            setup.connections,
            if setup.connections == 1 { "" } else { "s" },
            setup.read_percent,
            setup.distribution,
            setup.span_bytes >> 20,
            report.elapsed_s,
            setup
                .rate
                .map_or_else(String::new, |rate| format!(", {rate} requests per second asked for")),
        )?;
        writeln!(
            f,
            "{:>7} {:>10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "", "IOPS", "MiB/s", "mean us", "p50", "p90", "p99", "p99.9", "p99.99", "max",
        )?;
        let rows = [
            ("read", &report.read),
            ("write", &report.write),
            ("flush", &report.flush),
            ("discard", &report.discard),
            ("total", &report.total),
        ];
        let kinds = [&report.read, &report.write, &report.discard];
        let mixed = kinds.iter().filter(|figures| figures.operations > 0).count() > 1;
        for (name, figures) in rows {
            if figures.operations > 0 && (name != "total" || mixed) {
                figures_line(f, name, figures)?;
            }
        }
        if setup.direct == Some(false) {
            writeln!(f, "buffered: the file system has no direct I/O, the page cache takes part")?;
        }
        if report.total.operations + report.flush.operations == 0 {
            writeln!(f, "no request was answered in the measured window")?;
        }
        let cpu = &report.cpu;
        write!(f, "CPU per I/O: client {:.2} us", cpu.client_us_per_io)?;
        if let (Some(us), Some(cores), Some(pid)) =
            (cpu.server_us_per_io, cpu.server_cores, cpu.server_pid)
        {
            write!(f, ", server {us:.2} us (process {pid}, {cores:.2} cores busy)")?;
        }
        match cpu.machine_us_per_io {
            Some(us) => writeln!(f, ", whole machine {us:.2} us")?,
            None => writeln!(f)?,
        }
        if let [first, rest @ ..] = &report.exports[..] {
            let slowest = rest.iter().fold(first.iops, |least, export| least.min(export.iops));
            let fastest = rest.iter().fold(first.iops, |most, export| most.max(export.iops));
            let mean = report.exports.iter().map(|export| export.iops).sum::<f64>()
                / report.exports.len() as f64;
            writeln!(
                f,
                "IOPS of an export: {mean:.0} in the mean, {slowest:.0} the slowest, {fastest:.0} the fastest"
            )?;
        }
        if let Some(verification) = &report.verification {
            let (reads, faults) = (verification.reads_checked, verification.faults);
            writeln!(f, "verified: {reads} reads checked, {faults} wrong")?;
            for fault in &verification.examples {
                writeln!(
                    f,
                    "  offset {}: {:?}, expected write {} or later, found {}",
                    fault.offset, fault.kind, fault.expected, fault.found
                )?;
            }
        }
        if report.errors > 0 {
            writeln!(f, "errors: {} requests failed", report.errors)?;
        }
        Ok(())
    }
}

fn figures_line(f: &mut fmt::Formatter<'_>, name: &str, figures: &Figures) -> fmt::Result {
    write!(f, "{name:>7} {:>10.0} {:>10.1}", figures.iops, figures.mib_per_s)?;
    if let Some(latency) = figures.latency {
        let Latency { mean_us, p50_us, p90_us, p99_us, p99_9_us, p99_99_us, max_us, .. } = latency;
        for us in [mean_us, p50_us, p90_us, p99_us, p99_9_us, p99_99_us, max_us] {
            write!(f, " {us:>9.1}")?;
        }
    }
    writeln!(f)
}

/// Shows a run on standard error: interval lines, and a progress bar when that is a terminal.
#[derive(Debug)]
pub struct Console {
    bar: ProgressBar,
}

/// Steps of the bar.
const BAR_STEPS: u64 = 1000;

impl Console {
    /// A display; `quiet` shows interval lines only.
    #[must_use]
    pub fn new(quiet: bool) -> Self {
        let shown = !quiet && stderr().is_terminal();
        let target = if shown {
            ProgressDrawTarget::stderr_with_hz(5)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(BAR_STEPS), target);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent:>3}% {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { bar }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Console {
    fn progress(&mut self, share: f64, answers: u64) {
        if self.bar.is_hidden() {
            return;
        }
        self.bar.set_message(format!("{answers} requests"));
        self.bar.set_position((share * BAR_STEPS as f64) as u64);
    }

    fn interval(&mut self, interval: &Interval) {
        let mut line = format!("{:>7.1} s", interval.at_s);
        let kinds = [
            ("read", &interval.read),
            ("write", &interval.write),
            ("flush", &interval.flush),
            ("discard", &interval.discard),
        ];
        for (name, figures) in kinds {
            if let Some(latency) = figures.latency {
                let _ = write!(
                    line,
                    "  {name} {:.0} IOPS {:.1} MiB/s p50 {:.0} p99 {:.0} max {:.0} us",
                    figures.iops, figures.mib_per_s, latency.p50_us, latency.p99_us, latency.max_us
                );
            }
        }
        if kinds.iter().all(|(_, figures)| figures.operations == 0) {
            line.push_str("  no answers");
        }
        self.bar.suspend(|| eprintln!("{line}"));
    }
}
