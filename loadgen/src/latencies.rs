//! All latencies of a run, for those who plot.

use std::io::{self, Write};

use crate::{record::Sample, workload::Kind};

/// See the module's description.
#[derive(Clone, Debug)]
pub struct Latencies(pub(crate) Sample);

/// Steps for each halving of the distance to 100 %, as HdrHistogram's own tools have them.
const TICKS: u32 = 5;

impl Latencies {
    /// The kinds of requests that there were.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(|&kind| !self.0.of(kind).is_empty())
    }

    /// Writes the distribution of one kind as HdrHistogram's tools and plotters read it (`.hgrm`); values are
    /// microseconds.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_percentiles(&self, kind: Kind, out: &mut dyn Write) -> io::Result<()> {
        let histogram = self.0.of(kind);
        let us = |nanos: f64| nanos / 1000.0;
        writeln!(
            out,
            "{:>12} {:>14} {:>10} {:>14}\n",
            "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
        )?;
        for value in histogram.iter_quantiles(TICKS) {
            let (at, quantile) = (us(value.value_iterated_to() as f64), value.quantile());
            write!(
                out,
                "{at:>12.3} {quantile:>14.12} {:>10}",
                histogram.count_between(0, value.value_iterated_to())
            )?;
            match quantile < 1.0 {
                true => writeln!(out, " {:>14.2}", 1.0 / (1.0 - quantile))?,
                false => writeln!(out)?,
            }
        }
        let (mean, deviation) = (us(histogram.mean()), us(histogram.stdev()));
        writeln!(out, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]")?;
        let (max, count) = (us(histogram.max() as f64), histogram.len());
        writeln!(out, "#[Max     = {max:>12.3}, Total count    = {count:>12}]")?;
        let (buckets, digits) = (histogram.buckets(), histogram.sigfig());
        writeln!(
            out,
            "#[Buckets = {buckets:>12}, SubBuckets     = {:>12}]",
            2 * 10_u32.pow(u32::from(digits))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Cell, Recorder, Window};

    #[test]
    fn percentiles_are_in_order_and_end_with_all() {
        let cell = Cell::new();
        let window = Window { from: 0, until: u64::MAX, interval: None };
        let mut recorder = Recorder::new(window, &cell);
        for us in 1..=10_000_u64 {
            recorder.answer(Kind::Write, 0, us * 1000, true);
        }
        let latencies = Latencies(recorder.finish().sample);
        assert_eq!(latencies.kinds().collect::<Vec<_>>(), [Kind::Write]);
        let mut text = Vec::new();
        latencies.write_percentiles(Kind::Write, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let rows: Vec<Vec<f64>> = text
            .lines()
            .skip(2)
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().map(|word| word.parse().unwrap()).collect())
            .collect();
        assert!(rows.is_sorted_by(|a, b| a[0] <= b[0] && a[1] <= b[1] && a[2] <= b[2]), "{text}");
        let last = rows.last().unwrap();
        assert_eq!((last[1], last[2]), (1.0, 10_000.0), "{text}");
        let median = rows.iter().find(|row| row[1] >= 0.5).unwrap();
        assert!((median[0] / 5000.0 - 1.0).abs() < 0.01, "{text}");
        assert!(text.ends_with("]\n"));
    }
}
