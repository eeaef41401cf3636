//! The daemon as a process: started on files of its own, ended with its value.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::LIMIT;
use crate::nbd::{Address, Client};
use crate::programs::{self, Output};

/// The binary under test: `FLAGSTONE_BIN`, or the one that was built with these tests.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("FLAGSTONE_BIN") {
        return path.into();
    }
    // This program is target/PROFILE/deps/NAME-HASH.
    let own = std::env::current_exe().expect("own path");
    let profile = own.parent().and_then(Path::parent).expect("built by cargo");
    let path = profile.join("flagstone");
    assert!(path.is_file(), "{}: build it (cargo build -p flagstone)", path.display());
    path
}

/// Runs the binary to its end.
pub fn flagstone(args: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(args).env_remove("FLAGSTONE_API").env_remove("FLAGSTONE_LOG");
    programs::finish(command)
}

/// A directory for one test: pool, sockets, logs. Removed at its end.
#[must_use]
pub fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("flagstone-e2e-").tempdir().expect("a temporary directory")
}

/// A directory in memory where the machine has one, for images that are made by the hundred.
#[must_use]
pub fn directory_in_memory() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let mut builder = tempfile::Builder::new();
    let made = builder.prefix("flagstone-e2e-").tempdir_in(shm);
    made.unwrap_or_else(|_| directory())
}

/// Formats a pool file.
///
/// # Panics
/// When that fails.
pub fn create_pool(path: &Path, size_bytes: u64) {
    let size = size_bytes.to_string();
    let output = flagstone(&["pool", "create", text(path), "--size", &size]);
    assert!(output.status.success(), "{output:?}");
}

/// Verifies a stopped pool.
///
/// # Panics
/// When anything in it is wrong.
pub fn check_pool(path: &Path) {
    try_check_pool(path).unwrap_or_else(|why| panic!("{why}"));
}

/// Verifies a stopped pool.
///
/// # Errors
/// When anything in it is wrong.
pub fn try_check_pool(path: &Path) -> Result<(), String> {
    let output = flagstone(&["pool", "check", text(path)]);
    if output.status.success() {
        return Ok(());
    }
    Err(format!("pool check: {}\n{}\n{}", output.status, output.out, output.err))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

/// How a daemon is to be started.
#[derive(Clone, Debug)]
pub struct Config {
    /// The pool.
    pub pool: PathBuf,
    /// Where the sockets and the log go.
    pub directory: PathBuf,
    /// Serve on TCP too, at a port that the system chooses.
    pub tcp: bool,
    /// Further arguments of `serve`.
    pub args: Vec<String>,
}

impl Config {
    /// A daemon on `pool`, with its sockets in `directory`, with little memory, because many tests
    /// run at a time.
    #[must_use]
    pub fn new(pool: &Path, directory: &Path) -> Self {
        let args = ["--memory", "64M"].map(str::to_owned).to_vec();
        Self { pool: pool.to_owned(), directory: directory.to_owned(), tcp: false, args }
    }

    /// The command line.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command.arg("serve").arg("--pool").arg(&self.pool);
        command.arg("--nbd-socket").arg(self.nbd_socket());
        command.arg("--api-socket").arg(self.api_socket());
        if self.tcp {
            command.args(["--nbd-listen", "127.0.0.1:0"]);
        }
        command.args(&self.args).env_remove("FLAGSTONE_LOG").env_remove("NOTIFY_SOCKET");
        command
    }

    /// The NBD socket.
    #[must_use]
    pub fn nbd_socket(&self) -> PathBuf {
        self.directory.join("nbd.sock")
    }

    /// The control API's socket.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.directory.join("api.sock")
    }

    /// The log, added to by every start.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Starts it and waits for its `ready` line.
    ///
    /// # Panics
    /// When it ends or says nothing in time; with its log.
    #[must_use]
    pub fn start(&self) -> Daemon {
        let log = File::options().create(true).append(true).open(self.log()).expect("a log");
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().expect("the binary starts");
        let out = child.stdout.take().expect("piped");
        let (lines, received) = mpsc::channel();
        // Reads on after the line, so that the daemon never finds its output closed.
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).for_each(|line| {
                let _ = lines.send(line);
            });
        });
        let mut daemon = Daemon { config: self.clone(), child, ready: String::new() };
        match received.recv_timeout(LIMIT) {
            Ok(line) if line.starts_with("ready ") => daemon.ready = line,
            other => panic!("no ready line but {other:?}"),
        }
        daemon
    }
}

/// A running daemon. Dropped, it is killed; if the test is failing, its log is shown.
#[derive(Debug)]
pub struct Daemon {
    config: Config,
    child: Child,
    ready: String,
}

impl Daemon {
    /// A pool of `pool_bytes` and one volume called `v` on it, served on both kinds of sockets.
    #[must_use]
    pub fn with_volume(directory: &Path, pool_bytes: u64, volume_bytes: u64) -> Self {
        let pool = directory.join("pool");
        create_pool(&pool, pool_bytes);
        let mut config = Config::new(&pool, directory);
        config.tcp = true;
        let daemon = config.start();
        daemon.create_volume("v", volume_bytes);
        daemon
    }

    /// How it was started.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs one of the commands that reach it through the control API.
    pub fn control(&self, args: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(args).env("FLAGSTONE_API", self.config.api_socket());
        programs::finish(command)
    }

    /// Creates a volume.
    ///
    /// # Panics
    /// When that fails.
    pub fn create_volume(&self, name: &str, size_bytes: u64) {
        let size = size_bytes.to_string();
        let output = self.control(&["volume", "create", name, "--size", &size]);
        assert!(output.status.success(), "{output:?}");
    }

    /// Changes the settings of a volume.
    ///
    /// # Panics
    /// When that fails.
    pub fn set_volume(&self, name: &str, settings: &[&str]) {
        let mut args = vec!["volume", "set", name];
        args.extend(settings);
        let output = self.control(&args);
        assert!(output.status.success(), "{output:?}");
    }

    /// The URI of a volume on the unix socket.
    #[must_use]
    pub fn uri(&self, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", self.config.nbd_socket().display())
    }

    /// The URI of a volume over TCP.
    #[must_use]
    pub fn tcp_uri(&self, volume: &str) -> String {
        format!("nbd://{}/{volume}", self.tcp_address())
    }

    /// The address of the unix socket.
    #[must_use]
    pub fn address(&self) -> Address {
        Address::Unix(self.config.nbd_socket())
    }

    /// Where it listens for TCP.
    ///
    /// # Panics
    /// When it was not asked to.
    #[must_use]
    pub fn tcp_address(&self) -> SocketAddr {
        let field = self.ready.split(' ').find_map(|field| field.strip_prefix("nbd-tcp=nbd://"));
        let text = field.expect("the ready line names the port").trim_end_matches('/');
        text.parse().expect("an address")
    }

    /// Connects to a volume.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn connect(&self, volume: &str) -> Client {
        Client::connect(&self.address(), volume).expect("connect")
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("own child").is_none()
    }

    /// `kill -9`: it gets no chance to do anything.
    ///
    /// # Panics
    /// When it had ended before, which it must never do by itself.
    pub fn kill(&mut self) {
        assert!(self.is_alive(), "it ended by itself\n{}", self.log());
        self.child.kill().expect("kill");
        self.child.wait().expect("own child");
    }

    /// SIGSTOP: it lives, and does nothing until it is killed.
    ///
    /// # Panics
    /// When the signal can't be sent.
    pub fn pause(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("signal");
    }

    /// Starts it again after its end.
    pub fn restart(&mut self) {
        *self = self.config.start();
    }

    /// SIGTERM, and how it ended.
    ///
    /// # Panics
    /// When it doesn't end in time.
    pub fn stop(&mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal");
        let status = programs::wait(&mut self.child, LIMIT);
        status.unwrap_or_else(|| panic!("it doesn't stop"))
    }

    /// SIGTERM, and the status that stands for success.
    ///
    /// # Panics
    /// When it ends with another one, or not.
    pub fn stop_cleanly(&mut self) {
        let status = self.stop();
        assert!(status.success(), "{status}\n{}", self.log());
    }

    /// The end of its log.
    #[must_use]
    pub fn log(&self) -> String {
        let log = std::fs::read_to_string(self.config.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// How long a clean stop and a start may take together; for tests that look at the clock.
    pub const RESTART_LIMIT: Duration = Duration::from_secs(20);
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let ended = self.child.try_wait();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("--- daemon: {ended:?} before the end of the test\n{}", self.log());
        }
    }
}
