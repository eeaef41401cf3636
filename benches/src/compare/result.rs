//! Medians and ratios.

use serde::Serialize;

use super::{Cell, Plan, plan::Operation, preconditions::Environment, server::Kind};

/// One measurement.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measurement {
    /// Which server.
    pub server: Kind,
    /// Which cell.
    pub cell: Cell,
    /// Counted from zero.
    pub round: u32,
    /// Requests per second.
    pub iops: f64,
    /// Median latency.
    pub p50_us: f64,
    /// The 99th percentile.
    pub p99_us: f64,
    /// The server's CPU time per request.
    pub server_us_per_io: f64,
    /// The load generator's.
    pub client_us_per_io: f64,
}

/// Medians of one server in one cell.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "as in `Measurement`")]
pub struct Median {
    pub server: Kind,
    pub iops: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub server_us_per_io: f64,
    pub client_us_per_io: f64,
}

/// One cell: all servers, and how Flagstone compares with the better of its peers.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its parameters.
    pub cell: Cell,
    /// One per server.
    pub medians: Vec<Median>,
    /// Flagstone's requests per second in those of the peer that has most.
    pub iops_ratio: f64,
    /// Flagstone's CPU time per request in that of the peer that needs least.
    pub cpu_ratio: f64,
    /// The ratio that is aimed at: equal at depth 1, 1.5 otherwise.
    pub iops_goal: f64,
    /// The CPU ratio that is aimed at.
    pub cpu_goal: f64,
}

impl Row {
    /// Whether both goals are reached.
    #[must_use]
    pub fn reached(&self) -> bool {
        self.iops_ratio >= self.iops_goal && self.cpu_ratio < self.cpu_goal
    }

    /// The median of one server.
    #[must_use]
    pub fn of(&self, server: Kind) -> Option<&Median> {
        self.medians.iter().find(|median| median.server == server)
    }
}

/// The whole result.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Where it was measured.
    pub environment: Environment,
    /// What was measured.
    pub plan: Plan,
    /// The table.
    pub rows: Vec<Row>,
    /// What the medians are of.
    pub measurements: Vec<Measurement>,
}

impl Comparison {
    /// Puts the rows together; cells that weren't measured on all servers are left out.
    #[must_use]
    pub fn new(environment: Environment, plan: Plan, measurements: Vec<Measurement>) -> Self {
        let rows = plan.cells().into_iter().filter_map(|cell| row(cell, &measurements)).collect();
        Self { environment, plan, rows, measurements }
    }
}

fn row(cell: Cell, measurements: &[Measurement]) -> Option<Row> {
    let medians: Vec<Median> = Kind::ALL
        .into_iter()
        .filter_map(|server| {
            let of = |field: fn(&Measurement) -> f64| {
                let all = measurements.iter().filter(|m| m.server == server && m.cell == cell);
                median(all.map(field).collect())
            };
            Some(Median {
                server,
                iops: of(|m| m.iops)?,
                p50_us: of(|m| m.p50_us)?,
                p99_us: of(|m| m.p99_us)?,
                server_us_per_io: of(|m| m.server_us_per_io)?,
                client_us_per_io: of(|m| m.client_us_per_io)?,
            })
        })
        .collect();
    let ours = medians.iter().find(|median| median.server == Kind::Flagstone)?;
    let peers = || medians.iter().filter(|median| median.server.is_peer());
    let best_iops = peers().map(|peer| peer.iops).reduce(f64::max)?;
    let least_cpu = peers().map(|peer| peer.server_us_per_io).reduce(f64::min)?;
    Some(Row {
        cell,
        iops_ratio: ours.iops / best_iops,
        cpu_ratio: ours.server_us_per_io / least_cpu,
        iops_goal: if cell.depth == 1 { 1.0 } else { 1.5 },
        cpu_goal: 0.5,
        medians,
    })
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

impl Operation {
    /// Its name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn ratios_are_to_the_better_peer() {
        let cell = Cell { operation: Operation::Read, depth: 32, connections: 1 };
        let measurement = |server, round, iops, server_us_per_io| Measurement {
            server,
            cell,
            round,
            iops,
            p50_us: 1.0,
            p99_us: 2.0,
            server_us_per_io,
            client_us_per_io: 1.0,
        };
        let all = [
            measurement(Kind::Flagstone, 0, 300.0, 3.0),
            measurement(Kind::Flagstone, 1, 900.0, 3.0),
            measurement(Kind::Flagstone, 2, 300.0, 3.0),
            measurement(Kind::QemuRaw, 0, 150.0, 10.0),
            measurement(Kind::QemuQcow2, 0, 100.0, 8.0),
            measurement(Kind::QemuQcow2Metadata, 0, 120.0, 9.0),
            measurement(Kind::Null, 0, 1000.0, 0.5),
            measurement(Kind::Raw, 0, 600.0, 1.0),
        ];
        let row = row(cell, &all).expect("complete");
        assert_eq!((row.iops_ratio, row.cpu_ratio), (2.0, 0.375));
        assert!(row.reached());
        assert_eq!(row.of(Kind::QemuRaw).expect("measured").iops, 150.0);
        assert!(super::row(Cell { depth: 1, ..cell }, &all).is_none());
    }
}
