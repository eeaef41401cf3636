//! What is measured: servers, started on a RAM disk and stopped on drop, and the two ceilings: a server without a disk,
//! and a disk without a server.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader},
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use flagstone_loadgen::{NbdAddress, NbdUri};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use super::{CompareError, Plan, disk::Disk, tool};

/// How long a server may take to accept connections, and to end.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How often its state is looked at meanwhile.
const LOOK_PERIOD: Duration = Duration::from_millis(20);
/// The export's and the volume's name.
const NAME: &str = "compare";
const SNAPSHOT: &str = "before";

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Flagstone, a pool on the disk
    Flagstone,
    /// Flagstone within a program, through its library: a pool on the disk, and nothing that serves. The program's
    /// processor time counts as the server's
    Library,
    /// `qemu-nbd -f raw`
    QemuRaw,
    /// `qemu-nbd -f qcow2`
    QemuQcow2,
    /// `qemu-storage-daemon`, raw
    StorageRaw,
    /// `qemu-storage-daemon`, qcow2
    StorageQcow2,
    /// `nbdkit memory`: no disk, and nothing that lasts
    NbdkitMemory,
    /// `nbdkit file`: through the page cache
    NbdkitFile,
    /// An NBD server that does nothing: the ceiling of the protocol's half
    Null,
    /// The disk itself, driven by the load generator: the ceiling of the disk's half. The generator's processor
    /// time counts as the server's
    #[value(name = "device")]
    #[serde(rename = "device")]
    Raw,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Flagstone,
        Self::Library,
        Self::QemuRaw,
        Self::QemuQcow2,
        Self::StorageRaw,
        Self::StorageQcow2,
        Self::NbdkitMemory,
        Self::NbdkitFile,
        Self::Null,
        Self::Raw,
    ];

    /// Whether somebody would use it instead of Flagstone, and gets the same promises: a disk behind it, and no
    /// page cache between.
    #[must_use]
    pub const fn is_peer(self) -> bool {
        matches!(self, Self::QemuRaw | Self::QemuQcow2 | Self::StorageRaw | Self::StorageQcow2)
    }

    /// A short name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flagstone => "flagstone",
            Self::Library => "library",
            Self::QemuRaw => "qemu-nbd raw",
            Self::QemuQcow2 => "qemu-nbd qcow2",
            Self::StorageRaw => "qsd raw",
            Self::StorageQcow2 => "qsd qcow2",
            Self::NbdkitMemory => "nbdkit memory",
            Self::NbdkitFile => "nbdkit file",
            Self::Null => "null",
            Self::Raw => "device",
        }
    }

    /// Whether it has a qcow2 image.
    #[must_use]
    pub const fn is_qcow2(self) -> bool {
        matches!(self, Self::QemuQcow2 | Self::StorageQcow2)
    }
}

/// Something to measure.
#[derive(Debug)]
pub struct Server {
    /// Which.
    pub kind: Kind,
    // Dropped in this order: the process has the device open.
    process: Option<(Process, NbdUri)>,
    disk: Option<Disk>,
    socket: PathBuf,
}

impl Server {
    /// Makes the device and the image or pool, and starts the server; returns when it accepts
    /// connections. Sockets and logs go to `directory`.
    ///
    /// # Errors
    /// Whatever goes wrong; nothing is left behind.
    pub fn start(kind: Kind, plan: &Plan, directory: &Path) -> Result<Self, CompareError> {
        let disk = match plan.disk_bytes(kind) {
            0 => None,
            bytes => Some(Disk::new(&plan.backing, bytes)?),
        };
        let socket = directory.join(format!("{}.sock", kind.name().replace(' ', "-")));
        let log = socket.with_extension("log");
        let device = disk.as_ref().map_or(Path::new(""), Disk::path);
        let process = match kind {
            Kind::Raw => None,
            Kind::Library => {
                let create = ["pool".as_ref(), "create".as_ref(), device.as_os_str()];
                tool::output(&plan.flagstone, create)?;
                None
            }
            Kind::Flagstone => Some(flagstone(plan, device, &socket, &log)?),
            _ => {
                make_image(kind, plan, device)?;
                Some(peer(kind, plan, device, &socket, &log)?)
            }
        };
        let process = process.map(|process| (process, uri(&socket)));
        Ok(Self { kind, process, disk, socket })
    }

    /// Makes the volume anew: nothing was ever written to it.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub(super) fn renew(&mut self, plan: &Plan) -> Result<(), CompareError> {
        if self.kind == Kind::Flagstone {
            self.ask(plan, &["volume", "delete", NAME, "--force"])?;
            return self
                .ask(plan, &["volume", "create", NAME, "--size", &plan.span_bytes.to_string()]);
        }
        let kind = self.kind;
        self.restart(plan, |device| make_image(kind, plan, device))
    }

    /// Takes a snapshot, or deletes it.
    ///
    /// # Errors
    /// Whatever goes wrong.
    pub(super) fn snapshot(&mut self, plan: &Plan, take: bool) -> Result<(), CompareError> {
        if self.kind == Kind::Flagstone {
            let name = format!("{NAME}@{SNAPSHOT}");
            return match take {
                true => self.ask(plan, &["snapshot", "create", NAME, SNAPSHOT]),
                false => self.ask(plan, &["snapshot", "delete", &name]),
            };
        }
        let what = if take { "-c" } else { "-d" };
        self.restart(plan, |device| {
            let arguments =
                ["snapshot".as_ref(), what.as_ref(), SNAPSHOT.as_ref(), device.as_os_str()];
            tool::output("qemu-img", arguments).map(drop)
        })
    }

    fn ask(&self, plan: &Plan, arguments: &[&str]) -> Result<(), CompareError> {
        let api = self.socket.with_extension("api");
        tool::output_with(&plan.flagstone, arguments, [("FLAGSTONE_API", &api)]).map(drop)
    }

    /// Has something done to a peer's image while nobody serves it.
    fn restart(
        &mut self,
        plan: &Plan,
        change: impl FnOnce(&Path) -> Result<(), CompareError>,
    ) -> Result<(), CompareError> {
        self.process = None;
        let device = self.disk.as_ref().map_or(Path::new(""), Disk::path);
        change(device)?;
        // It would be found, and nobody would listen on it yet.
        let _ = fs::remove_file(&self.socket);
        let log = self.socket.with_extension("log");
        let process = peer(self.kind, plan, device, &self.socket, &log)?;
        self.process = Some((process, uri(&self.socket)));
        Ok(())
    }

    /// The end of its log, if it has one.
    pub(super) fn log(&self) -> String {
        self.process.as_ref().map_or_else(String::new, |(process, _)| process.log_tail())
    }

    /// Its export and its process, or the device if it has neither.
    pub(super) fn target(&self) -> Target<'_> {
        match (&self.process, &self.disk) {
            (Some((process, uri)), _) => Target::Export { uri, pid: process.child.id() },
            (None, Some(disk)) if self.kind == Kind::Library => Target::Pool(disk.path(), NAME),
            (None, Some(disk)) => Target::Device(disk.path()),
            (None, None) => unreachable!("what has no disk is a server"),
        }
    }
}

/// What to send requests to.
pub(super) enum Target<'a> {
    Export {
        uri: &'a NbdUri,
        pid: u32,
    },
    Device(&'a Path),
    /// A pool that nobody serves, and its volume.
    Pool(&'a Path, &'static str),
}

fn uri(socket: &Path) -> NbdUri {
    NbdUri { address: NbdAddress::Unix(socket.to_owned()), name: NAME.into() }
}

/// Makes a peer's image, if it has one.
fn make_image(kind: Kind, plan: &Plan, device: &Path) -> Result<(), CompareError> {
    if kind.is_qcow2() {
        let mut arguments: Vec<OsString> = ["create", "-q", "-f", "qcow2"].map(Into::into).into();
        arguments.push(device.into());
        arguments.push(plan.span_bytes.to_string().into());
        tool::output("qemu-img", arguments)?;
    }
    Ok(())
}

fn flagstone(
    plan: &Plan,
    device: &Path,
    socket: &Path,
    log: &Path,
) -> Result<Process, CompareError> {
    let api = socket.with_extension("api");
    let binary = &plan.flagstone;
    tool::output(binary, ["pool".as_ref(), "create".as_ref(), device.as_os_str()])?;
    let mut command = Command::new(binary);
    command.arg("serve").arg("--pool").arg(device);
    command.arg("--nbd-socket").arg(socket).arg("--api-socket").arg(&api);
    command.stdout(Stdio::piped());
    let mut process = Process::spawn(command, log)?;
    process.wait_for_line("ready")?;
    let size = plan.span_bytes.to_string();
    let create = ["volume", "create", NAME, "--size", &size];
    tool::output_with(binary, create, [("FLAGSTONE_API", &api)])?;
    Ok(process)
}

/// Any server but our own: one that has its export on its command line.
fn peer(
    kind: Kind,
    plan: &Plan,
    device: &Path,
    socket: &Path,
    log: &Path,
) -> Result<Process, CompareError> {
    let mut command = match kind {
        Kind::QemuRaw | Kind::QemuQcow2 => qemu_nbd(kind, plan, device, socket),
        Kind::StorageRaw | Kind::StorageQcow2 => storage_daemon(kind, plan, device, socket),
        Kind::NbdkitMemory => {
            nbdkit(socket, &["memory".into(), plan.span_bytes.to_string().into()])
        }
        Kind::NbdkitFile => nbdkit(socket, &["file".into(), device.into()]),
        Kind::Null => null(plan, socket)?,
        Kind::Flagstone | Kind::Library | Kind::Raw => {
            unreachable!("it is started otherwise, or not at all")
        }
    };
    command.stdout(Stdio::null());
    let mut process = Process::spawn(command, log)?;
    process.wait_for_socket(socket)?;
    Ok(process)
}

/// Connections that a server must be able to take: one more waits for it to get ready.
fn connections(plan: &Plan) -> u32 {
    plan.jobs.iter().map(|job| job.connections).max().unwrap_or(1) + 1
}

fn qemu_nbd(kind: Kind, plan: &Plan, device: &Path, socket: &Path) -> Command {
    let format = if kind.is_qcow2() { "qcow2" } else { "raw" };
    let mut command = Command::new("qemu-nbd");
    command.args([
        "--format",
        format,
        "--cache=none",
        "--aio=io_uring",
        "--persistent",
        "--discard=unmap",
    ]);
    command.arg(format!("--shared={}", connections(plan))).args(["--export-name", NAME]);
    command.arg("--socket").arg(socket).arg(device);
    command
}

fn storage_daemon(kind: Kind, plan: &Plan, device: &Path, socket: &Path) -> Command {
    let format = if kind.is_qcow2() { "qcow2" } else { "raw" };
    let driver = if device.is_file() { "file" } else { "host_device" };
    let mut file = OsString::from(format!(
        "driver={driver},node-name=file,cache.direct=on,discard=unmap,aio=io_uring,filename="
    ));
    file.push(device);
    let mut server =
        OsString::from(format!("addr.type=unix,max-connections={},addr.path=", connections(plan)));
    server.push(socket);
    let mut command = Command::new("qemu-storage-daemon");
    command.arg("--blockdev").arg(file);
    command
        .arg("--blockdev")
        .arg(format!("driver={format},node-name=disk,discard=unmap,file=file"));
    command.arg("--nbd-server").arg(server);
    command.arg("--export");
    command.arg(format!("type=nbd,id=export,node-name=disk,name={NAME},writable=on"));
    command
}

fn nbdkit(socket: &Path, plugin: &[OsString]) -> Command {
    let mut command = Command::new("nbdkit");
    command.arg("--foreground").arg("--unix").arg(socket).args(plugin);
    command
}

/// The server that does nothing lies beside this program.
fn null(plan: &Plan, socket: &Path) -> Result<Command, CompareError> {
    let this = std::env::current_exe().map_err(|error| CompareError::io("compare", error))?;
    let mut command = Command::new(this.with_file_name("nbd-null"));
    command.arg(socket).arg("--gib").arg(plan.span_bytes.div_ceil(1 << 30).to_string());
    Ok(command)
}

/// A child that is asked to end on drop, and made to if it doesn't.
#[derive(Debug)]
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn spawn(mut command: Command, log: &Path) -> Result<Self, CompareError> {
        let shown = format!("{command:?}");
        let stderr = fs::File::create(log).map_err(|error| CompareError::io(log, error))?;
        // In a group of its own: an interrupt from the terminal is for the comparison, which
        // then ends its servers itself.
        let child = command
            .stdin(Stdio::null())
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .map_err(|error| CompareError::Tool { command: shown, why: error.to_string() })?;
        Ok(Self { child, log: log.to_owned() })
    }

    fn wait_for_line(&mut self, beginning: &'static str) -> Result<(), CompareError> {
        let Some(stdout) = self.child.stdout.take() else { return Err(self.failed("no output")) };
        let (found, wait) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line.starts_with(beginning) {
                    // Nobody listens any more when the time is over.
                    let _ = found.send(());
                }
            }
        });
        wait.recv_timeout(START_TIMEOUT).map_err(|_| self.failed("it didn't get ready"))
    }

    fn wait_for_socket(&mut self, socket: &Path) -> Result<(), CompareError> {
        let deadline = Instant::now() + START_TIMEOUT;
        while UnixStream::connect(socket).is_err() {
            if Instant::now() > deadline || self.ended() {
                return Err(self.failed("it doesn't accept connections"));
            }
            thread::sleep(LOOK_PERIOD);
        }
        Ok(())
    }

    fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(5).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join("; ")
    }

    fn failed(&self, what: &str) -> CompareError {
        CompareError::Server { what: what.into(), log: self.log_tail() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended already.
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        while !self.ended() && Instant::now() < deadline {
            thread::sleep(LOOK_PERIOD);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
