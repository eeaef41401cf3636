//! `flagstone top`: what volumes are asked for, now.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::thread;
use std::time::{Duration, Instant};

use rustix::termios::tcgetwinsize;
use serde::Serialize;

use super::Failure;
use super::api_args::ApiArgs;
use crate::api::types::{Pool, Volume, VolumeIo};
use crate::bench::parse_interval;
use crate::output::{self, Table};
use crate::size::Human;

/// Volumes that are shown where nothing says how high the screen is.
const ROWS: usize = 20;
/// Lines of the screen that are not volumes', beside one for each pool.
const OTHER_LINES: usize = 6;
/// Looking takes at most one part of so many of the daemon's time: it looks less often where there are very many volumes.
const TIME_PARTS: u32 = 5;

/// Show what the volumes of a running daemon are asked for, the busiest first
///
/// Over NBD, as block devices of this machine, and all together, once a second until Ctrl-C. A pool's
/// AMPLIFICATION is how many blocks are being written per block that clients write: the cleaner moves live blocks
/// to set segments free. Where the output is no terminal, one table follows the other; with --json one document per line.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flagstone top
  flagstone top --interval 5s --count 12 --json | jq -c '.volumes[] | [.name, .writes_per_s]'")]
pub struct Args {
    /// Time between two looks, from 100ms on
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = parse_interval)]
    interval: Duration,

    /// End after so many tables
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Volumes to show [default: as many as the screen has room for; all with --json]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    #[command(flatten)]
    api: ApiArgs,
}

/// What a look at the daemon saw.
struct Look {
    at: Instant,
    pools: Vec<Pool>,
    volumes: Vec<Volume>,
}

/// What happened between two looks.
#[derive(Debug, Serialize)]
struct View {
    /// Seconds between them.
    elapsed_s: f64,
    pools: Vec<PoolView>,
    total: Rates,
    /// The busiest first, then by name.
    volumes: Vec<VolumeView>,
}

#[derive(Debug, Serialize)]
struct PoolView {
    path: String,
    state: &'static str,
    capacity_bytes: u64,
    used_bytes: u64,
    free_bytes: u64,
    waiting: u32,
    written_bytes_per_s: f64,
    moved_bytes_per_s: f64,
}

#[derive(Debug, Serialize)]
struct VolumeView {
    name: String,
    pool: String,
    size_bytes: u64,
    mapped_bytes: u64,
    connections: u32,
    #[serde(flatten)]
    rates: Rates,
}

/// Of a volume, or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct Rates {
    reads_per_s: f64,
    writes_per_s: f64,
    flushes_per_s: f64,
    zeroes_per_s: f64,
    errors_per_s: f64,
    read_bytes_per_s: f64,
    written_bytes_per_s: f64,
}

/// Runs the command.
pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let screen = std::io::stdout().is_terminal() && !json;
    let mut before = look(&args.api)?;
    let mut shown = 0;
    loop {
        let took = before.at.elapsed();
        thread::sleep(args.interval.max(took * TIME_PARTS).saturating_sub(took));
        let after = look(&args.api)?;
        let mut view = View::between(&before, &after);
        let rows = match args.limit {
            Some(limit) => limit,
            None if json => usize::MAX,
            None => rows_of_screen(view.pools.len()).filter(|_| screen).unwrap_or(ROWS),
        };
        view.volumes.truncate(rows);
        if json {
            output::json(&view)?;
        } else if screen {
            output::bytes(in_place(&view.render(after.volumes.len())).as_bytes())?;
        } else {
            output::line(&view.render(after.volumes.len()))?;
        }
        shown += 1;
        if args.count.is_some_and(|count| shown >= count) {
            return Ok(());
        }
        before = after;
    }
}

fn look(api: &ApiArgs) -> Result<Look, Failure> {
    // The clock is read first: what is slow is not counted as idle.
    let at = Instant::now();
    let (pools, volumes) =
        api.call(|client| async move { Ok((client.pools().await?, client.volumes().await?)) })?;
    Ok(Look { at, pools, volumes })
}

fn rows_of_screen(pools: usize) -> Option<usize> {
    let lines = usize::from(tcgetwinsize(std::io::stdout()).ok()?.ws_row);
    (lines > 0).then(|| lines.saturating_sub(OTHER_LINES + pools).max(1))
}

/// From the screen's upper left corner on, and nothing of what was there before.
fn in_place(text: &str) -> String {
    let lines = text.lines().map(|line| format!("{line}\x1b[K\n")).collect::<String>();
    format!("\x1b[H{lines}\x1b[J")
}

impl View {
    fn between(before: &Look, after: &Look) -> Self {
        let elapsed_s = after.at.duration_since(before.at).as_secs_f64().max(1e-9);
        let rate = |from: u64, to: u64| to.saturating_sub(from) as f64 / elapsed_s;
        let known: HashMap<&str, VolumeIo> =
            before.volumes.iter().map(|volume| (volume.uuid.as_str(), volume.io)).collect();
        let mut total = Rates::default();
        let view = |volume: &Volume| {
            let was = known.get(volume.uuid.as_str()).copied().unwrap_or_default();
            let rates = Rates::between(&was, &volume.io, elapsed_s);
            total.add(&rates);
            VolumeView {
                name: volume.name.clone(),
                pool: volume.pool.clone(),
                size_bytes: volume.size_bytes,
                mapped_bytes: volume.mapped_bytes,
                connections: volume.connections,
                rates,
            }
        };
        let mut volumes: Vec<VolumeView> = after.volumes.iter().map(view).collect();
        volumes.sort_by(|a, b| b.rates.requests().total_cmp(&a.rates.requests()));
        let pools = after.pools.iter().map(|pool| {
            let was = before.pools.iter().find(|was| was.uuid == pool.uuid).unwrap_or(pool);
            PoolView {
                path: pool.path.clone(),
                state: pool.state.as_str(),
                capacity_bytes: pool.capacity_bytes,
                used_bytes: pool.used_bytes,
                free_bytes: pool.free_bytes,
                waiting: pool.waiting,
                written_bytes_per_s: rate(was.written_bytes, pool.written_bytes),
                moved_bytes_per_s: rate(was.moved_bytes, pool.moved_bytes),
            }
        });
        Self { elapsed_s, pools: pools.collect(), total, volumes }
    }

    /// `of` volumes there are in all.
    fn render(&self, of: usize) -> String {
        let mut pools = Table::new(&[
            "POOL",
            "STATE",
            "CAPACITY>",
            "USED>",
            "FREE>",
            "WAITING>",
            "WRITTEN/S>",
            "MOVED/S>",
            "AMPLIFICATION>",
        ]);
        for pool in &self.pools {
            let written = pool.written_bytes_per_s;
            let amplification = (written + pool.moved_bytes_per_s) / written;
            pools.row([
                pool.path.clone(),
                pool.state.to_owned(),
                Human(pool.capacity_bytes).to_string(),
                Human(pool.used_bytes).to_string(),
                Human(pool.free_bytes).to_string(),
                pool.waiting.to_string(),
                Human(written as u64).to_string(),
                Human(pool.moved_bytes_per_s as u64).to_string(),
                if written > 0.0 { format!("{amplification:.2}") } else { "-".to_owned() },
            ]);
        }
        let mut volumes = Table::new(&[
            "VOLUME",
            "READS/S>",
            "READ/S>",
            "WRITES/S>",
            "WRITTEN/S>",
            "FLUSHES/S>",
            "ZEROES/S>",
            "ERRORS/S>",
            "CLIENTS>",
            "MAPPED>",
            "SIZE>",
        ]);
        for volume in &self.volumes {
            volumes.row(volume.rates.cells(&volume.name).into_iter().chain([
                volume.connections.to_string(),
                Human(volume.mapped_bytes).to_string(),
                Human(volume.size_bytes).to_string(),
            ]));
        }
        volumes.row(self.total.cells(&format!("all {of} volumes")));
        let mut text = pools.render();
        // Writing to a string can't fail.
        let _ = write!(text, "\n\n{}", volumes.render());
        if self.volumes.len() < of {
            let _ = write!(text, "\n{} are not shown", of - self.volumes.len());
        }
        text
    }
}

impl Rates {
    fn between(was: &VolumeIo, is: &VolumeIo, seconds: f64) -> Self {
        let rate = |of: fn(&VolumeIo) -> u64| of(is).saturating_sub(of(was)) as f64 / seconds;
        Self {
            reads_per_s: rate(|io| io.reads),
            writes_per_s: rate(|io| io.writes),
            flushes_per_s: rate(|io| io.flushes),
            zeroes_per_s: rate(|io| io.zeroes),
            errors_per_s: rate(|io| io.errors),
            read_bytes_per_s: rate(|io| io.read_bytes),
            written_bytes_per_s: rate(|io| io.written_bytes),
        }
    }

    fn add(&mut self, other: &Self) {
        self.reads_per_s += other.reads_per_s;
        self.writes_per_s += other.writes_per_s;
        self.flushes_per_s += other.flushes_per_s;
        self.zeroes_per_s += other.zeroes_per_s;
        self.errors_per_s += other.errors_per_s;
        self.read_bytes_per_s += other.read_bytes_per_s;
        self.written_bytes_per_s += other.written_bytes_per_s;
    }

    fn requests(&self) -> f64 {
        self.reads_per_s + self.writes_per_s + self.flushes_per_s + self.zeroes_per_s
    }

    fn cells(&self, name: &str) -> [String; 8] {
        let number = |rate: f64| format!("{rate:.0}");
        [
            name.to_owned(),
            number(self.reads_per_s),
            Human(self.read_bytes_per_s as u64).to_string(),
            number(self.writes_per_s),
            Human(self.written_bytes_per_s as u64).to_string(),
            number(self.flushes_per_s),
            number(self.zeroes_per_s),
            number(self.errors_per_s),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, reads: u64, written_bytes: u64) -> Volume {
        let io = VolumeIo { reads, written_bytes, ..VolumeIo::default() };
        let json = serde_json::json!({
            "name": name, "uuid": name, "pool": "p", "size_bytes": 1 << 30, "mapped_bytes": 4096,
            "connections": 1, "uris": [], "io": io,
        });
        serde_json::from_value(json).unwrap()
    }

    fn between(before: Vec<Volume>, after: Vec<Volume>) -> View {
        let at = Instant::now();
        let before = Look { at, pools: Vec::new(), volumes: before };
        let at = at + Duration::from_secs(2);
        View::between(&before, &Look { at, pools: Vec::new(), volumes: after })
    }

    #[test]
    fn the_busiest_come_first() {
        let before = vec![volume("a", 100, 0), volume("b", 0, 0), volume("c", 7, 0)];
        let after = vec![volume("a", 110, 8192), volume("b", 1000, 0), volume("d", 40, 0)];
        let view = between(before, after);
        let names: Vec<&str> = view.volumes.iter().map(|volume| volume.name.as_str()).collect();
        assert_eq!(names, ["b", "d", "a"]);
        let rates = |name| view.volumes.iter().find(|volume| volume.name == name).unwrap().rates;
        assert_eq!((rates("a").reads_per_s, rates("a").written_bytes_per_s), (5.0, 4096.0));
        assert_eq!((rates("b").reads_per_s, rates("d").reads_per_s), (500.0, 20.0));
        assert_eq!((view.total.reads_per_s, view.total.written_bytes_per_s), (525.0, 4096.0));
    }

    #[test]
    fn a_daemon_that_began_anew_counts_from_nothing() {
        let view = between(vec![volume("a", 100, 4096)], vec![volume("a", 10, 0)]);
        assert_eq!(view.volumes[0].rates, Rates::default());
    }

    #[test]
    fn what_there_is_no_room_for_is_told() {
        let mut view = between(Vec::new(), vec![volume("a", 2, 0), volume("b", 0, 0)]);
        view.volumes.truncate(1);
        let text = view.render(2);
        assert!(text.contains("all 2 volumes") && text.ends_with("1 are not shown"), "{text}");
        assert_eq!(in_place("x\ny"), "\x1b[Hx\x1b[K\ny\x1b[K\n\x1b[J");
    }
}
