//! What many volumes cost: made over the control API, listed, served, and found again.

mod api;
mod daemon;

use std::{
    fmt::Display,
    io,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use api::Api;
use daemon::Daemon;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The release binary.
    pub flagstone: PathBuf,
    /// Where the pool is made.
    pub pool: PathBuf,
    /// Size of a pool file, as the command line takes it.
    pub pool_size: String,
    /// Volumes, of 10 GiB each.
    pub volumes: u32,
    /// Volumes of which a snapshot is taken.
    pub snapshots: u32,
    /// Clients that create them.
    pub clients: u32,
}

/// Bytes of each volume.
const VOLUME_BYTES: u64 = 10 << 30;
/// Name of the snapshot of each volume.
const SNAPSHOT: &str = "first";
/// How long an idle daemon is looked at.
const IDLE: Duration = Duration::from_secs(5);

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum ScaleError {
    /// The system refused something.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A command failed.
    #[error("{what}: {why}")]
    Failed {
        /// What was tried.
        what: String,
        /// What it said.
        why: String,
    },
    /// An answer was no JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// Name of volume `i`.
fn name(i: u32) -> String {
    format!("volume-{i:07}")
}

/// Measures; each figure goes to `tell` as soon as it is known.
///
/// # Errors
/// Whatever goes wrong.
pub fn run(plan: &Plan, tell: &mut dyn FnMut(&str, &dyn Display)) -> Result<(), ScaleError> {
    let directory = tempfile::tempdir()?;
    let mut create = Command::new(&plan.flagstone);
    create.args(["pool", "create", "--force"]).arg(&plan.pool);
    if !plan.pool.exists() {
        create.args(["--size", &plan.pool_size]);
    }
    output(create)?;
    let mut daemon = Daemon::start(plan, directory.path())?;
    tell("ready, no volume, s", &seconds(daemon.ready));
    tell("memory, no volume, MiB", &daemon.memory_mib()?);
    Api::connect(&daemon.api)?.create(&name(0), VOLUME_BYTES)?;
    latency(&daemon, 0, "one volume", tell)?;

    let start = Instant::now();
    create_all(plan, &daemon)?;
    let took = start.elapsed();
    tell("volumes created", &plan.volumes);
    tell("clients", &plan.clients);
    tell("created per second", &(f64::from(plan.volumes) / took.as_secs_f64()).round());
    if plan.snapshots > 0 {
        let start = Instant::now();
        each(plan, 0..plan.snapshots, |api, i| api.snapshot(&name(i), SNAPSHOT), &daemon)?;
        let rate = f64::from(plan.snapshots) / start.elapsed().as_secs_f64();
        tell("snapshots taken", &plan.snapshots);
        tell("taken per second", &rate.round());
    }
    // Written to, so that there is something to be found again.
    latency(&daemon, plan.volumes / 2, "one of all", tell)?;
    tell("memory, all volumes, MiB", &daemon.memory_mib()?);
    tell("memory at most, MiB", &daemon.peak_mib()?);
    let cpu = daemon.cpu()?;
    thread::sleep(IDLE);
    tell("CPU of 5 s at rest, ms", &(daemon.cpu()? - cpu).as_millis());
    requests(&daemon, plan, tell)?;

    let stopped = Instant::now();
    daemon.stop()?;
    tell("clean stop, s", &seconds(stopped.elapsed()));
    daemon = Daemon::start(plan, directory.path())?;
    tell("ready after a clean stop, s", &seconds(daemon.ready));
    tell("memory after that, MiB", &daemon.memory_mib()?);
    tell("memory at most, MiB", &daemon.peak_mib()?);
    latency(&daemon, plan.volumes / 3, "after a clean stop", tell)?;
    daemon.kill()?;
    daemon = Daemon::start(plan, directory.path())?;
    tell("ready after kill -9, s", &seconds(daemon.ready));
    tell("memory after that, MiB", &daemon.memory_mib()?);
    tell("memory at most, MiB", &daemon.peak_mib()?);
    count(&daemon, plan)?;
    // Right after the creation the journal holds what no checkpoint has seen.
    let start = Instant::now();
    let deleted = plan.volumes.min(10_000);
    let snapshots = plan.snapshots.min(deleted);
    let delete = |api: &mut Api, i| api.delete_snapshot(&name(i), SNAPSHOT);
    each(plan, 0..snapshots, delete, &daemon)?;
    if snapshots > 0 {
        let rate = f64::from(snapshots) / start.elapsed().as_secs_f64();
        tell("snapshots deleted per second", &rate.round());
    }
    let start = Instant::now();
    delete_first(plan, &daemon, deleted)?;
    let rate = f64::from(deleted) / start.elapsed().as_secs_f64();
    tell("deleted per second", &rate.round());
    daemon.kill()?;
    daemon = Daemon::start(plan, directory.path())?;
    tell("ready after deletions and kill -9, s", &seconds(daemon.ready));
    daemon.stop()
}

fn create_all(plan: &Plan, daemon: &Daemon) -> Result<(), ScaleError> {
    each(plan, 1..plan.volumes, |api, i| api.create(&name(i), VOLUME_BYTES), daemon)
}

/// Lists everything, and fails if it is not all that was made.
fn count(daemon: &Daemon, plan: &Plan) -> Result<(), ScaleError> {
    let mut api = Api::connect(&daemon.api)?;
    for (kind, made) in [("volumes", plan.volumes), ("snapshots", plan.snapshots)] {
        let listed = api.count(kind)?;
        if listed != made {
            let why = format!("{listed} of {made} {kind} are there");
            return Err(ScaleError::Failed { what: "listing".into(), why });
        }
    }
    Ok(())
}

fn delete_first(plan: &Plan, daemon: &Daemon, count: u32) -> Result<(), ScaleError> {
    each(plan, 0..count, |api, i| api.delete(&name(i)), daemon)
}

/// Does something for each number, with all clients at once.
fn each(
    plan: &Plan,
    numbers: std::ops::Range<u32>,
    call: impl Fn(&mut Api, u32) -> Result<(), ScaleError> + Sync,
    daemon: &Daemon,
) -> Result<(), ScaleError> {
    let next = AtomicU32::new(numbers.start);
    thread::scope(|scope| {
        let client = || -> Result<(), ScaleError> {
            let mut api = Api::connect(&daemon.api)?;
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= numbers.end {
                    return Ok(());
                }
                call(&mut api, i)?;
            }
        };
        let clients: Vec<_> = (0..plan.clients).map(|_| scope.spawn(client)).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client panicked"))
    })
}

/// How long single requests take when there are all volumes.
fn requests(
    daemon: &Daemon,
    plan: &Plan,
    tell: &mut dyn FnMut(&str, &dyn Display),
) -> Result<(), ScaleError> {
    let start = Instant::now();
    count(daemon, plan)?;
    tell("list of all, s", &seconds(start.elapsed()));
    let mut api = Api::connect(&daemon.api)?;
    let middle = format!("/v1/volumes/{}", name(plan.volumes / 2));
    for (what, path) in [
        ("one page, us", "/v1/volumes?limit=100"),
        ("one volume, us", &middle),
        ("pools, us", "/v1/pools"),
        ("status, us", "/v1/status"),
        ("metrics, us", "/metrics"),
    ] {
        let mut times = Vec::new();
        for _ in 0..20 {
            let start = Instant::now();
            api.get(path)?;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        tell(what, &times[times.len() / 2].as_micros());
    }
    Ok(())
}

/// Latency of 4 KiB requests at depth 1 to volume `i`.
fn latency(
    daemon: &Daemon,
    i: u32,
    when: &str,
    tell: &mut dyn FnMut(&str, &dyn Display),
) -> Result<(), ScaleError> {
    for kind in ["randwrite", "randread"] {
        let mut bench = daemon.flagstone();
        bench.args(["bench", "nbd", &daemon.uri(&name(i)), "--rw", kind, "--depth", "1"]);
        bench.args(["--span", "64M", "--duration", "2s", "--json"]);
        let report: serde_json::Value = serde_json::from_slice(&output(bench)?)?;
        let of = |what: &str| report["total"]["latency"][what].as_f64().unwrap_or(0.0).round();
        let (p50, p99) = (of("p50_us"), of("p99_us"));
        tell(&format!("{kind} p50 / p99, {when}, us"), &format!("{p50} / {p99}"));
    }
    Ok(())
}

fn seconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64())
}

fn output(mut command: Command) -> Result<Vec<u8>, ScaleError> {
    let output = command.output()?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(ScaleError::Failed { what: format!("{command:?}"), why });
    }
    Ok(output.stdout)
}
