//! The daemon that is measured.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{Plan, ScaleError};

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    binary: PathBuf,
    socket: PathBuf,
    /// Its control socket.
    pub api: PathBuf,
    /// From its start to its ready line.
    pub ready: Duration,
}

impl Daemon {
    /// Starts it; returns when it is ready.
    pub fn start(plan: &Plan, directory: &Path) -> Result<Self, ScaleError> {
        let (socket, api) = (directory.join("nbd.sock"), directory.join("api.sock"));
        let log = directory.join("log");
        let mut command = Command::new(&plan.flagstone);
        command.arg("serve").arg("--pool").arg(&plan.pool);
        command.arg("--nbd-socket").arg(&socket).arg("--api-socket").arg(&api);
        command.stdout(Stdio::piped()).stderr(File::create(&log)?);
        let start = Instant::now();
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let ready = start.elapsed();
        let daemon = Self { child, binary: plan.flagstone.clone(), socket, api, ready };
        if line.starts_with("ready") {
            return Ok(daemon);
        }
        let why = fs::read_to_string(&log)?;
        Err(ScaleError::Failed { what: "serve".into(), why })
    }

    /// The command line.
    pub fn flagstone(&self) -> Command {
        Command::new(&self.binary)
    }

    /// Where a volume is served.
    pub fn uri(&self, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", self.socket.display())
    }

    /// Memory that it occupies now.
    pub fn memory_mib(&self) -> io::Result<u64> {
        self.status("VmRSS:")
    }

    /// The most that it has occupied.
    pub fn peak_mib(&self) -> io::Result<u64> {
        self.status("VmHWM:")
    }

    fn status(&self, field: &str) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.map(|kib| kib >> 10).ok_or_else(|| io::Error::other(format!("no {field}")))
    }

    /// CPU time that it has used.
    pub fn cpu(&self) -> io::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name may hold anything, but ends with the last parenthesis.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Stops it cleanly.
    pub fn stop(mut self) -> Result<(), ScaleError> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).map_err(io::Error::from)?;
        let status = self.child.wait()?;
        if status.success() {
            return Ok(());
        }
        Err(ScaleError::Failed { what: "the clean stop".into(), why: status.to_string() })
    }

    /// As `kill -9`.
    pub fn kill(mut self) -> Result<(), ScaleError> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has ended already, as a rule.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
