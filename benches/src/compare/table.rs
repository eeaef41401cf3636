//! The result as a markdown document, and as a table for programs.

use std::fmt;

use super::{
    Comparison,
    result::{Figures, Row},
    server::Kind,
};

/// Writes a [`Comparison`] as markdown: one table per figure, then which goals are missed.
#[derive(Clone, Copy, Debug)]
pub struct Markdown<'a>(pub &'a Comparison);

/// Writes a [`Comparison`] as tab-separated values, a line per job and server.
#[derive(Clone, Copy, Debug)]
pub struct Tsv<'a>(pub &'a Comparison);

/// A figure that gets a table of its own.
struct Column {
    title: &'static str,
    digits: usize,
    of: fn(&Figures) -> f64,
    /// What stands behind the servers.
    ratio: Option<fn(&Row) -> f64>,
}

const COLUMNS: [Column; 6] = [
    Column { title: "IOPS", digits: 0, of: |f| f.iops, ratio: Some(|row| row.iops_ratio) },
    Column { title: "MiB/s", digits: 0, of: |f| f.mib_per_s, ratio: None },
    Column {
        title: "server CPU us per I/O",
        digits: 2,
        of: |f| f.server_us_per_io,
        ratio: Some(|row| row.cpu_ratio),
    },
    Column { title: "p50 us", digits: 0, of: |f| f.p50_us, ratio: None },
    Column { title: "p99 us", digits: 0, of: |f| f.p99_us, ratio: None },
    Column { title: "p99.9 us", digits: 0, of: |f| f.p99_9_us, ratio: Some(|row| row.tail_ratio) },
];

impl fmt::Display for Markdown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Comparison { environment, plan, rows, .. } = self.0;
        let versions = environment.servers.join(", ");
        writeln!(
            f,
            "{versions}; {}, {} cores, kernel {}, load before {:.1}; {}; {} MiB; medians of {} rounds of {:.1} s.\n",
            environment.cpu,
            environment.cores,
            environment.kernel,
            environment.load_before,
            environment.disks,
            plan.span_bytes >> 20,
            plan.rounds,
            plan.duration.as_secs_f64(),
        )?;
        for column in COLUMNS {
            self.table(f, &column)?;
        }
        let reached = rows.iter().filter(|row| row.missed.is_empty()).count();
        writeln!(f, "Goals reached at {reached} of {} jobs.\n", rows.len())?;
        for row in rows.iter().filter(|row| !row.missed.is_empty()) {
            writeln!(f, "- {}: {}", row.job.name, row.missed.join("; "))?;
        }
        writeln!(
            f,
            "\nRatios are to the best of the qemu servers that take part, those of the library to the disk. \"null\" is an NBD server that does nothing, \"device\" the disk \
             driven by the load generator, whose processor time then counts as the server's: what a server with a disk \
             costs is about the sum of both."
        )
    }
}

impl Markdown<'_> {
    fn table(&self, f: &mut fmt::Formatter<'_>, column: &Column) -> fmt::Result {
        let servers = &self.0.plan.servers;
        write!(f, "| {} |", column.title)?;
        servers.iter().try_for_each(|server| write!(f, " {} |", server.name()))?;
        writeln!(f, "{}", column.ratio.map_or("", |_| " ratio |"))?;
        write!(f, "|---|")?;
        let cells = servers.len() + usize::from(column.ratio.is_some());
        writeln!(f, "{}", "--:|".repeat(cells))?;
        for row in &self.0.rows {
            write!(f, "| {} |", row.job.name)?;
            for &server in servers {
                match row.of(server) {
                    Some(figures) => write!(f, " {:.*} |", column.digits, (column.of)(figures))?,
                    None => write!(f, " |")?,
                }
            }
            match column.ratio {
                Some(ratio) => writeln!(f, " {:.2} |", ratio(row))?,
                None => writeln!(f)?,
            }
        }
        writeln!(f)
    }
}

impl fmt::Display for Tsv<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "job\tserver\tiops\tmib_per_s\tp50_us\tp99_us\tp99_9_us\tserver_us_per_io\tclient_us_per_io"
        )?;
        for row in &self.0.rows {
            for median in &row.medians {
                let g: &Figures = &median.figures;
                let server = median.server.name();
                write!(f, "{}\t{server}", row.job.name)?;
                for value in [
                    g.iops,
                    g.mib_per_s,
                    g.p50_us,
                    g.p99_us,
                    g.p99_9_us,
                    g.server_us_per_io,
                    g.client_us_per_io,
                ] {
                    write!(f, "\t{value:.3}")?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

impl Kind {
    /// A colour of its own in charts, red, green and blue.
    #[must_use]
    pub const fn colour(self) -> (u8, u8, u8) {
        match self {
            Self::Flagstone => (0, 114, 178),
            Self::Library => (86, 180, 233),
            Self::QemuRaw => (213, 94, 0),
            Self::QemuQcow2 => (230, 159, 0),
            Self::StorageRaw => (204, 121, 167),
            Self::StorageQcow2 => (148, 103, 189),
            Self::NbdkitMemory => (0, 158, 115),
            Self::NbdkitFile => (140, 190, 60),
            Self::Null => (170, 170, 170),
            Self::Raw => (90, 90, 90),
        }
    }
}
