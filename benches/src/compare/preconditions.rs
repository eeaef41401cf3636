//! What must be there before anything is made: each missing thing is named with its remedy.

use std::{fs, path::Path};

use super::{CompareError, Plan, plan::Backing, server::Kind, tool};

/// Memory that must remain for everything else.
const SPARE_BYTES: u64 = 1 << 30;
/// A load average above this disturbs the measurements.
const IDLE_LOAD_MAX: f64 = 0.5;

/// The programs' versions, for the record.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Environment {
    /// The version of each program that serves.
    pub servers: Vec<String>,
    /// What the disks are made of, in words.
    pub disks: String,
    /// The kernel's release.
    pub kernel: String,
    /// The processor's model.
    pub cpu: String,
    /// Cores.
    pub cores: usize,
    /// The load average of the minute before: what else was going on.
    pub load_before: f64,
    /// What may spoil the figures.
    pub warnings: Vec<String>,
}

impl Kind {
    /// The programs that it takes, each with its Debian package; the first is the server.
    fn programs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Flagstone | Self::Library | Self::Null | Self::Raw => &[],
            Self::QemuRaw => &[("qemu-nbd", "qemu-utils")],
            Self::QemuQcow2 => &[("qemu-nbd", "qemu-utils"), ("qemu-img", "qemu-utils")],
            Self::StorageRaw => &[("qemu-storage-daemon", "qemu-system-common")],
            Self::StorageQcow2 => {
                &[("qemu-storage-daemon", "qemu-system-common"), ("qemu-img", "qemu-utils")]
            }
            Self::NbdkitMemory | Self::NbdkitFile => &[("nbdkit", "nbdkit")],
        }
    }
}

/// Checks everything, or says what is missing and what to do.
///
/// # Errors
/// [`CompareError::Missing`] with all that is missing.
pub fn check(plan: &Plan) -> Result<Environment, CompareError> {
    let mut missing = Vec::new();
    if plan.backing.has_loop() && !rustix::process::geteuid().is_root() {
        missing.push("root: making zram and loop devices needs it; run it with sudo".to_owned());
    }
    let mut programs: Vec<_> = plan.servers.iter().flat_map(|kind| kind.programs()).collect();
    programs.sort_unstable();
    programs.dedup();
    if plan.backing.has_loop() {
        programs.push(&("losetup", "mount"));
    }
    for (program, package) in programs {
        if tool::output(program, ["--version"]).is_err() {
            missing.push(format!(
                "{program}: apt-get install {package}, or leave it out of --servers"
            ));
        }
    }
    let flagstone = tool::output(&plan.flagstone, ["--version"]).unwrap_or_else(|error| {
        missing.push(format!(
            "the flagstone binary ({error}): cargo build --release -p flagstone, and --flagstone \
             PATH if it lies elsewhere"
        ));
        String::new()
    });
    if plan.backing.has_loop()
        && !Path::new("/dev/loop-control").exists()
        && tool::output("modprobe", ["loop"]).is_err()
    {
        missing.push("loop devices: a kernel with CONFIG_BLK_DEV_LOOP".to_owned());
    }
    let zram = Path::new("/sys/class/zram-control/hot_add");
    if plan.backing == Backing::Zram && !zram.exists() {
        // The module is there if this succeeds; the class appears with it.
        let loaded = tool::output("modprobe", ["zram"]).is_ok();
        if !loaded || !zram.exists() {
            missing.push("zram: a kernel with CONFIG_ZRAM, or --backing tmpfs".to_owned());
        }
    }
    let needed: u64 = plan.servers.iter().map(|&kind| plan.disk_bytes(kind)).sum();
    if plan.backing.has_loop()
        && let Some(available) = available_memory()
        && available < needed + SPARE_BYTES
    {
        missing.push(format!(
            "memory: {} MiB are needed and {} MiB available; use a smaller --span and --pool-size",
            (needed + SPARE_BYTES) >> 20,
            available >> 20
        ));
    }
    if !missing.is_empty() {
        return Err(CompareError::Missing { what: missing.join("\n  ") });
    }
    let load_before = load_average().unwrap_or_default();
    let mut warnings = Vec::new();
    if load_before > IDLE_LOAD_MAX {
        warnings.push(format!("the machine isn't idle (load {load_before:.1}): expect noise"));
    }
    Ok(Environment {
        servers: versions(plan, flagstone),
        disks: match &plan.backing {
            Backing::Zram => "zram under loop devices with direct I/O".to_owned(),
            Backing::Tmpfs => "tmpfs under loop devices with direct I/O".to_owned(),
            Backing::Directory(path) => format!("files in {}", path.display()),
        },
        kernel: tool::output("uname", ["-r"])?,
        cpu: cpu_model().unwrap_or_default(),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        load_before,
        warnings,
    })
}

fn versions(plan: &Plan, flagstone: String) -> Vec<String> {
    let mut programs: Vec<&str> =
        plan.servers.iter().filter_map(|kind| kind.programs().first()).map(|p| p.0).collect();
    programs.dedup();
    let version = |program| {
        let said = tool::output(program, ["--version"]).unwrap_or_default();
        said.lines().next().unwrap_or_default().to_owned()
    };
    std::iter::once(flagstone).chain(programs.into_iter().map(version)).collect()
}

fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

fn load_average() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

fn cpu_model() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
