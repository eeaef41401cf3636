//! Runs the real binary: commands to their end, daemons until they are told to stop.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;

/// Longest wait for anything; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The command, with nothing of the caller's environment that it reads.
pub fn flagstone(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flagstone"));
    command.current_dir(dir).env_remove("FLAGSTONE_API").env_remove("FLAGSTONE_LOG");
    command.env_remove("NOTIFY_SOCKET");
    command
}

/// The command with SIGXFSZ ignored, as by a service manager: a write beyond the limit of
/// [`Daemon::limit_files`] is then an error and not the end.
pub fn sturdy(dir: &Path) -> Command {
    let plain = flagstone(dir);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(plain.get_program());
    for (key, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    command.current_dir(dir);
    command
}

/// How a command ended and what it printed.
#[derive(Debug)]
pub struct Ran {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    fn new(output: Output) -> Self {
        Self {
            status: output.status.code().expect("the command was ended by a signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Standard output as one JSON document.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.status, 0, "{self:?}");
        self
    }

    /// Ended with `status`, with nothing on standard output and `text` on standard error.
    #[track_caller]
    pub fn failed(self, status: i32, text: &str) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        assert!(self.stderr.contains(text), "{text:?} is missing in {self:?}");
        self
    }
}

/// Runs a command in `dir`.
pub fn run(dir: &Path, args: &[&str]) -> Ran {
    Ran::new(flagstone(dir).args(args).stdin(Stdio::null()).output().unwrap())
}

/// A daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    /// Everything that was printed up to the ready line, which is the last.
    pub ready: String,
    pub dir: PathBuf,
}

impl Daemon {
    /// Starts a daemon in `dir` and waits until it is ready.
    pub fn start(dir: &Path, args: &[&str]) -> Self {
        Self::spawn(dir, flagstone(dir).args(args))
    }

    /// Starts `command` and waits until it is ready.
    pub fn spawn(dir: &Path, command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (found, ready) = mpsc::channel();
        let stdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            // Read to its end, so that the daemon never waits for a reader.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line.starts_with("ready ") || line.starts_with('{') {
                    let _ = found.send(line);
                }
            }
        });
        let ready = ready.recv_timeout(PATIENCE);
        let mut daemon = Self { child, ready: String::new(), dir: dir.to_owned() };
        match ready {
            Ok(ready) => daemon.ready = ready,
            Err(error) => {
                let _ = daemon.child.kill();
                let mut stderr = String::new();
                let _ = daemon.child.stderr.take().unwrap().read_to_string(&mut stderr);
                panic!("the daemon did not become ready ({error}): {stderr}");
            }
        }
        daemon
    }

    /// `flagstone serve` on `pool`, with its sockets in `dir`.
    pub fn serve(dir: &Path, pool: &str) -> Self {
        Self::start(
            dir,
            &["serve", "--pool", pool, "--nbd-socket", "nbd.sock", "--api-socket", "api.sock"],
        )
    }

    /// The value of `key` in the ready line.
    pub fn field(&self, key: &str) -> &str {
        let fields = self.ready.split(' ').filter_map(|field| field.split_once('='));
        fields.into_iter().find(|(k, _)| *k == key).map_or("", |(_, value)| value)
    }

    /// The URI of an export on the unix socket.
    pub fn uri(&self, export: &str) -> String {
        self.field("nbd").replacen(":///", &format!(":///{export}"), 1)
    }

    /// Runs an online command against this daemon.
    pub fn run(&self, args: &[&str]) -> Ran {
        let mut command = flagstone(&self.dir);
        command.args(args).env("FLAGSTONE_API", self.dir.join("api.sock")).stdin(Stdio::null());
        Ran::new(command.output().unwrap())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end; exit status and what was logged.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let mut stderr = self.child.stderr.take().unwrap();
        let (sender, ended) = mpsc::channel();
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            let _ = sender.send(text);
        });
        // Standard error is closed when the process ends.
        let text = ended.recv_timeout(PATIENCE).expect("the daemon did not end");
        (self.child.wait().unwrap(), text)
    }

    /// From now on every write to a file behind its first `bytes` fails with `EFBIG`. The daemon
    /// must have been started by [`sturdy`].
    pub fn limit_files(&self, bytes: u64) {
        let limit = Rlimit { current: Some(bytes), maximum: None };
        prlimit(Some(Pid::from_child(&self.child)), Resource::Fsize, limit).unwrap();
    }

    /// Stops it cleanly.
    #[track_caller]
    pub fn stop(self) {
        self.signal(Signal::TERM);
        let (status, log) = self.wait();
        assert_eq!(status.code(), Some(0), "{log}");
    }

    /// Ends it as a crash would.
    pub fn crash(self) {
        self.signal(Signal::KILL);
        self.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
