//! Medians and ratios.

use serde::Serialize;

use super::{Plan, job::Job, preconditions::Environment, server::Kind};

/// One measurement.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Measurement {
    /// Which server.
    pub server: Kind,
    /// Which job.
    pub job: &'static str,
    /// Counted from zero.
    pub round: u32,
    /// What was found.
    #[serde(flatten)]
    pub figures: Figures,
}

/// What a measurement finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Figures {
    pub iops: f64,
    pub mib_per_s: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p99_9_us: f64,
    /// The server's processor time per request.
    pub server_us_per_io: f64,
    /// The load generator's.
    pub client_us_per_io: f64,
}

/// Medians of one server at one job, each figure's own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Median {
    /// Which server.
    pub server: Kind,
    /// Its figures.
    #[serde(flatten)]
    pub figures: Figures,
}

/// One job: all servers, and how Flagstone compares with them.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was done.
    pub job: Job,
    /// One per server.
    pub medians: Vec<Median>,
    /// Flagstone's requests per second in those of the peer that has most; of the library, in the disk's.
    pub iops_ratio: f64,
    /// Its 99.9th percentile in that of the peer that has the lowest.
    pub tail_ratio: f64,
    /// Its processor time per request in that of the peer that needs least.
    pub cpu_ratio: f64,
    /// Its requests per second in those of the server that does nothing.
    pub of_null: Option<f64>,
    /// Its requests per second in its own at the job that the goal names.
    pub of_own: Option<f64>,
    /// Its requests per second in those of the server that has no disk but its memory.
    pub of_memory: Option<f64>,
    /// What is missing of the job's goal, in words.
    pub missed: Vec<String>,
}

impl Row {
    /// The figures of one server.
    #[must_use]
    pub fn of(&self, server: Kind) -> Option<&Figures> {
        self.medians.iter().find(|median| median.server == server).map(|median| &median.figures)
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
    /// Puts the rows together; what Flagstone or all of its peers were not measured at is left out.
    #[must_use]
    pub fn new(environment: Environment, plan: Plan, measurements: Vec<Measurement>) -> Self {
        let rows = plan.jobs.iter().filter_map(|&job| row(job, &measurements)).collect();
        Self { environment, plan, rows, measurements }
    }
}

fn row(job: Job, measurements: &[Measurement]) -> Option<Row> {
    let median_of = |server| {
        let of = |field: fn(&Figures) -> f64| {
            let all = measurements.iter().filter(|m| m.server == server && m.job == job.name);
            median(all.map(|m| field(&m.figures)).collect())
        };
        let figures = Figures {
            iops: of(|f| f.iops)?,
            mib_per_s: of(|f| f.mib_per_s)?,
            p50_us: of(|f| f.p50_us)?,
            p99_us: of(|f| f.p99_us)?,
            p99_9_us: of(|f| f.p99_9_us)?,
            server_us_per_io: of(|f| f.server_us_per_io)?,
            client_us_per_io: of(|f| f.client_us_per_io)?,
        };
        Some(Median { server, figures })
    };
    let medians: Vec<Median> = Kind::ALL.into_iter().filter_map(median_of).collect();
    let of = |server| medians.iter().find(|m| m.server == server).map(|m| m.figures);
    let ours = of(job.among.subject())?;
    let peers = || medians.iter().filter(|m| job.among.is_peer(m.server)).map(|m| m.figures);
    let own = job.goal.of_own.and_then(|(name, _)| {
        let is_it = |m: &&Measurement| m.server == job.among.subject() && m.job == name;
        median(measurements.iter().filter(is_it).map(|m| m.figures.iops).collect())
    });
    let most_iops = peers().map(|peer| peer.iops).reduce(f64::max)?;
    let lowest_tail = peers().map(|peer| peer.p99_9_us).reduce(f64::min)?;
    let least_cpu = peers().map(|peer| peer.server_us_per_io).reduce(f64::min)?;
    let in_those_of = |server| of(server).map(|figures| ours.iops / figures.iops);
    let mut row = Row {
        job,
        iops_ratio: ours.iops / most_iops,
        tail_ratio: ours.p99_9_us / lowest_tail,
        cpu_ratio: ours.server_us_per_io / least_cpu,
        of_null: in_those_of(Kind::Null),
        of_own: own.map(|own| ours.iops / own),
        of_memory: in_those_of(Kind::NbdkitMemory),
        missed: Vec::new(),
        medians,
    };
    row.missed = missed(&row, &ours);
    Some(row)
}

fn missed(row: &Row, ours: &Figures) -> Vec<String> {
    let mut missed = Vec::new();
    let goal = row.job.goal;
    if row.iops_ratio < goal.iops {
        missed.push(format!("{:.2} of {:.2} times the best peer", row.iops_ratio, goal.iops));
    }
    if let Some(most) = goal.cpu_us.filter(|most| ours.server_us_per_io > *most) {
        missed.push(format!("{:.2} us of processor time instead of {most}", ours.server_us_per_io));
    }
    if let (Some(least), Some(is)) = (goal.of_null, row.of_null)
        && is < least
    {
        missed.push(format!("{is:.2} of the server without a disk instead of {least}"));
    }
    if let (Some((name, least)), Some(is)) = (goal.of_own, row.of_own)
        && is < least
    {
        missed.push(format!("{is:.2} of its own {name} instead of {least}"));
    }
    if let Some(is) = row.of_memory.filter(|is| goal.ahead_of_memory && *is < 1.0) {
        missed.push(format!("{is:.2} of nbdkit's memory disk"));
    }
    if goal.tail && row.tail_ratio > 1.0 {
        missed.push(format!("p99.9 {:.2} times the best peer's", row.tail_ratio));
    }
    missed
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
    fn ratios_are_to_the_best_peer_and_ceilings_are_none() {
        let job = Job::named("randread-d32").expect("there is one");
        let measurement = |server, round, iops, server_us_per_io, p99_9_us| {
            let figures = Figures { iops, server_us_per_io, p99_9_us, ..Figures::default() };
            Measurement { server, job: job.name, round, figures }
        };
        let all = [
            measurement(Kind::Flagstone, 0, 300.0, 3.0, 90.0),
            measurement(Kind::Flagstone, 1, 900.0, 3.0, 70.0),
            measurement(Kind::Flagstone, 2, 300.0, 3.0, 80.0),
            measurement(Kind::QemuRaw, 0, 150.0, 10.0, 100.0),
            measurement(Kind::StorageQcow2, 0, 120.0, 8.0, 160.0),
            measurement(Kind::NbdkitMemory, 0, 400.0, 4.0, 40.0),
            measurement(Kind::Null, 0, 1000.0, 0.5, 10.0),
            measurement(Kind::Raw, 0, 600.0, 1.0, 20.0),
        ];
        let row = row(job, &all).expect("complete");
        assert_eq!((row.iops_ratio, row.cpu_ratio, row.tail_ratio), (2.0, 0.375, 0.8));
        assert_eq!((row.of_null, row.of_memory), (Some(0.3), Some(0.75)));
        assert_eq!(row.of(Kind::QemuRaw).expect("measured").iops, 150.0);
        assert_eq!(row.missed.len(), 3, "{:?}", row.missed);
        let other = Job::named("randread-d1").expect("there is one");
        assert!(super::row(other, &all).is_none());
    }
}
