//! The result as a markdown document.

use std::fmt;

use super::{Comparison, result::Row, server::Kind};

/// Writes a [`Comparison`] as markdown: one table of throughput, one of CPU time and latency.
#[derive(Clone, Copy, Debug)]
pub struct Markdown<'a>(pub &'a Comparison);

impl fmt::Display for Markdown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Comparison { environment, plan, rows, .. } = self.0;
        writeln!(
            f,
            "{} beside {}; {}, {} cores, kernel {}, load before {:.1}; {:?} under loop devices with direct I/O; {} B \
             random over {} MiB; medians of {} rounds of {:.1} s.\n",
            environment.flagstone,
            environment.qemu,
            environment.cpu,
            environment.cores,
            environment.kernel,
            environment.load_before,
            plan.backing,
            plan.block_size,
            plan.span_bytes >> 20,
            plan.rounds,
            plan.duration.as_secs_f64(),
        )?;
        head(f, "IOPS")?;
        for row in rows {
            line(f, row, |server| row.of(server).map(|m| m.iops), 0, row.iops_ratio)?;
        }
        writeln!(f)?;
        head(f, "server CPU us per I/O")?;
        for row in rows {
            line(f, row, |server| row.of(server).map(|m| m.server_us_per_io), 2, row.cpu_ratio)?;
        }
        writeln!(f)?;
        head(f, "p99 us")?;
        for row in rows {
            let p99 = |server: Kind| row.of(server).map(|m| m.p99_us);
            let peers = Kind::ALL.into_iter().filter(|server| server.is_peer());
            let best = peers.filter_map(p99).reduce(f64::min).unwrap_or(f64::NAN);
            line(f, row, p99, 0, p99(Kind::Flagstone).unwrap_or(f64::NAN) / best)?;
        }
        let reached = rows.iter().filter(|row| row.reached()).count();
        writeln!(
            f,
            "\nGoals (IOPS at least 1.5 times the better peer, equal at depth 1; CPU per I/O below \
             half of the lesser): reached in {reached} of {} rows.",
            rows.len()
        )?;
        for row in rows.iter().filter(|row| !row.reached()) {
            writeln!(
                f,
                "- {} depth {} connections {}: IOPS x{:.2} (goal {:.1}), CPU x{:.2} (goal {:.1})",
                row.cell.operation.name(),
                row.cell.depth,
                row.cell.connections,
                row.iops_ratio,
                row.iops_goal,
                row.cpu_ratio,
                row.cpu_goal,
            )?;
        }
        writeln!(
            f,
            "\n\"no disk\" is an NBD server that does nothing, \"no server\" the device driven by the load generator: \
             what Flagstone does costs at least the sum of both."
        )?;
        let servers = rows.iter().flat_map(|row| &row.medians).filter(|m| m.server != Kind::Raw);
        let client = servers.map(|m| m.client_us_per_io);
        let (least, most) = client.fold((f64::MAX, 0.0f64), |(l, m), us| (l.min(us), m.max(us)));
        if most > 0.0 {
            writeln!(f, "\nThe load generator itself took {least:.1} to {most:.1} us per I/O.")?;
        }
        Ok(())
    }
}

fn head(f: &mut fmt::Formatter<'_>, what: &str) -> fmt::Result {
    write!(f, "| {what} | in flight | connections |")?;
    for server in Kind::ALL {
        write!(f, " {} |", server.name())?;
    }
    writeln!(f, " ratio to better peer |")?;
    write!(f, "|---|--:|--:|")?;
    for _ in Kind::ALL {
        write!(f, "--:|")?;
    }
    writeln!(f, "--:|")
}

fn line(
    f: &mut fmt::Formatter<'_>,
    row: &Row,
    value: impl Fn(Kind) -> Option<f64>,
    digits: usize,
    ratio: f64,
) -> fmt::Result {
    let cell = row.cell;
    write!(f, "| {} | {} | {} |", cell.operation.name(), cell.in_flight(), cell.connections)?;
    for server in Kind::ALL {
        match value(server) {
            Some(value) => write!(f, " {value:.digits$} |")?,
            None => write!(f, " |")?,
        }
    }
    writeln!(f, " {ratio:.2} |")
}
