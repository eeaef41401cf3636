//! The result as charts (SVG): per job a bar for each server, as many times as long as the best peer's as its figure is
//! larger.

use std::path::{Path, PathBuf};

use plotters::prelude::*;

use super::{
    Comparison,
    result::{Figures, Row},
    server::Kind,
};

/// A chart can't be drawn.
#[derive(Debug, thiserror::Error)]
#[error("can't draw {path}: {why}")]
pub struct ChartError {
    /// Which.
    path: PathBuf,
    /// What the library says.
    why: String,
}

/// What a chart shows.
struct Subject {
    file: &'static str,
    title: &'static str,
    of: fn(&Figures) -> f64,
    /// The best of two.
    better: fn(f64, f64) -> f64,
}

const SUBJECTS: [Subject; 3] = [
    Subject {
        file: "iops.svg",
        title: "Requests per second, in those of the best qemu server (longer is better)",
        of: |f| f.iops,
        better: f64::max,
    },
    Subject {
        file: "cpu.svg",
        title: "Server CPU per request, in that of the best qemu server (shorter is better)",
        of: |f| f.server_us_per_io,
        better: f64::min,
    },
    Subject {
        file: "p99.9.svg",
        title: "99.9th percentile of the latency, in that of the best qemu server (shorter is better)",
        of: |f| f.p99_9_us,
        better: f64::min,
    },
];

const WIDTH: u32 = 960;
const BAR: u32 = 11;
/// Bars longer than this many times the best peer's are cut.
const LONGEST: f64 = 12.0;

/// Draws the charts into a directory, and returns their paths.
///
/// # Errors
/// A file can't be written.
pub fn draw(comparison: &Comparison, directory: &Path) -> Result<Vec<PathBuf>, ChartError> {
    SUBJECTS
        .iter()
        .map(|subject| {
            let path = directory.join(subject.file);
            match draw_one(comparison, subject, &path) {
                Ok(()) => Ok(path),
                Err(error) => Err(ChartError { path, why: error.to_string() }),
            }
        })
        .collect()
}

fn draw_one(
    comparison: &Comparison,
    subject: &Subject,
    path: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    let servers = &comparison.plan.servers;
    let per_row = servers.len() as u32 + 1;
    let bars = per_row * comparison.rows.len() as u32;
    let root = SVGBackend::new(path, (WIDTH, bars * BAR + 140)).into_drawing_area();
    root.fill(&WHITE)?;
    let ratios = |row: &Row| -> Vec<(Kind, f64)> {
        let peers = row.medians.iter().filter(|median| median.server.is_peer());
        let best = peers.map(|median| (subject.of)(&median.figures)).reduce(subject.better);
        let best = best.filter(|best| *best > 0.0).unwrap_or(1.0);
        let all = servers.iter().filter_map(|&server| Some((server, row.of(server)?)));
        all.map(|(server, figures)| (server, (subject.of)(figures) / best)).collect()
    };
    let longest = comparison.rows.iter().flat_map(ratios).map(|(_, ratio)| ratio);
    let longest = longest.fold(1.0, f64::max).min(LONGEST);
    let mut chart = ChartBuilder::on(&root)
        .caption(subject.title, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(130)
        .build_cartesian_2d(0.0..longest * 1.08, 0.0..f64::from(bars))?;
    let jobs = comparison.rows.len();
    let row_at = |y: &f64| {
        let row = (f64::from(bars) - y) / f64::from(per_row);
        let row = row.floor().max(0.0) as usize;
        comparison.rows.get(row).map_or_else(String::new, |row| row.job.name.to_owned())
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(2 * jobs)
        .y_label_formatter(&|_| String::new())
        .x_desc("times the best qemu server")
        .draw()?;
    for &server in servers {
        let (r, g, b) = server.colour();
        let colour = RGBColor(r, g, b);
        let mut boxes = Vec::new();
        let mut ends = Vec::new();
        for (i, row) in comparison.rows.iter().enumerate() {
            let Some(place) = servers.iter().position(|&s| s == server) else { continue };
            let top = f64::from(bars) - f64::from(i as u32 * per_row + place as u32) - 0.5;
            let Some((_, ratio)) = ratios(row).into_iter().find(|(s, _)| *s == server) else {
                continue;
            };
            let long = ratio.min(longest);
            boxes.push(Rectangle::new([(0.0, top), (long, top - 0.85)], colour.filled()));
            ends.push(Text::new(format!("{ratio:.2}"), (long, top), ("sans-serif", 10)));
        }
        chart
            .draw_series(boxes)?
            .label(server.name())
            .legend(move |(x, y)| Rectangle::new([(x, y - 4), (x + 10, y + 4)], colour.filled()));
        chart.draw_series(ends)?;
    }
    let names = (0..jobs).map(|i| {
        let y = f64::from(bars) - f64::from(i as u32 * per_row) - f64::from(per_row) / 2.0;
        let style = ("sans-serif", 12).into_text_style(&root);
        EmptyElement::at((0.0, y)) + Text::new(row_at(&y), (-125, -6), style)
    });
    chart.plotting_area().strip_coord_spec();
    chart.draw_series(names)?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}
