//! Volumes as block devices that the daemon itself has attached, by ublk or by the kernel's NBD client, and the daemon ended under a
//! load on one.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::LIMIT;
use crate::daemon::Daemon;
use crate::programs::{self, wait_until};

/// A volume as a block device, which stays until it is detached.
#[derive(Debug)]
pub struct Attached {
    driver: &'static str,
    number: u64,
    path: String,
}

impl Attached {
    /// Attaches a volume with `flagstone DRIVER attach`.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn new(daemon: &Daemon, driver: &'static str, volume: &str) -> Self {
        let device = daemon.ask(&[driver, "attach", volume]);
        let told = (device["volume"].as_str(), device["state"].as_str());
        assert_eq!(told, (Some(volume), Some("live")), "{device}");
        let path = device["device"].as_str().expect("it has a path").to_owned();
        Self { driver, number: device["number"].as_u64().expect("it has a number"), path }
    }

    /// Its device node.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The N of that.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What the kernel says of it: a file below `/sys/block/NAME`.
    ///
    /// # Panics
    /// When there is no such file.
    #[must_use]
    pub fn attribute(&self, name: &str) -> String {
        let path = format!("/sys/block/{}/{name}", self.path.trim_start_matches("/dev/"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        text.trim().to_owned()
    }

    /// Its size.
    ///
    /// # Panics
    /// When the kernel does not tell.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.attribute("size").parse::<u64>().expect("a number") * 512
    }

    /// Whether there is any of it.
    #[must_use]
    pub fn exists(&self) -> bool {
        Path::new(&self.path).exists() || Path::new(&format!("/dev/ublkc{}", self.number)).exists()
    }

    /// Requests that the kernel has had done on it.
    fn done(&self) -> u64 {
        let stat = self.attribute("stat");
        let field = |i: usize| {
            let text = stat.split_whitespace().nth(i).expect("a field");
            text.parse::<u64>().expect("a number")
        };
        field(0) + field(4)
    }

    /// Has fio write to it and verify what it reads, and ends and restarts the daemon under that, `rounds` times: by a kill, but
    /// for the last time, which is a clean stop. The load must see no error. Tells how long it paused each time.
    ///
    /// # Panics
    /// When the load sees one, or does not go on.
    pub fn load_through_restarts(&self, daemon: &mut Daemon, rounds: u64) -> Vec<Duration> {
        self.load_through(daemon, rounds, |_, _| ())
    }

    /// As [`Attached::load_through_restarts`]; `before` is called with the number of each round before its end.
    ///
    /// # Panics
    /// As there.
    pub fn load_through(
        &self,
        daemon: &mut Daemon,
        rounds: u64,
        mut before: impl FnMut(u64, &mut Daemon),
    ) -> Vec<Duration> {
        let mut fio = programs::command("fio");
        fio.args(["--name=v", "--direct=1", "--ioengine=libaio", "--iodepth=16", "--bs=4k"]);
        fio.args(["--rw=randrw", "--verify=crc32c", "--verify_backlog=128", "--verify_fatal=1"]);
        fio.args(["--size=64m", "--time_based", "--runtime=3600", "--verify_state_save=0"]);
        let directory = daemon.config().nbd_socket();
        fio.current_dir(directory.parent().expect("it lies in a directory"));
        fio.arg(format!("--filename={}", self.path));
        let mut fio = fio.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("fio starts");
        let mut pauses = Vec::new();
        for round in 0..rounds {
            let begun = self.done();
            wait_until("the load to get on", || self.done() > begun + 200);
            before(round, daemon);
            let paused = Instant::now();
            if round + 1 == rounds {
                daemon.stop_cleanly();
            } else {
                daemon.kill();
            }
            daemon.restart();
            let stopped = self.done();
            wait_until("the load to go on", || self.done() > stopped);
            pauses.push(paused.elapsed());
            let ended = fio.try_wait().expect("own child");
            assert!(ended.is_none(), "the load ended in round {round}: {ended:?}");
            let devices = daemon.ask(&[self.driver, "list"]);
            assert_eq!(devices["devices"].as_array().expect("a list").len(), 1, "{devices}");
        }
        let term = Command::new("kill").arg(fio.id().to_string()).status().expect("kill runs");
        assert!(term.success());
        let ended = programs::wait(&mut fio, LIMIT).expect("fio ends");
        let mut said = String::new();
        fio.stderr.take().expect("it is piped").read_to_string(&mut said).expect("text");
        assert!(!said.contains("verify"), "{ended:?}: {said}");
        assert!(!said.contains("error"), "{ended:?}: {said}");
        pauses.sort_unstable();
        let at = |percent: usize| {
            pauses[(pauses.len() * percent / 100).min(pauses.len() - 1)].as_millis()
        };
        println!(
            "{rounds} restarts; the load paused for {} ms (median), {} ms (p99)",
            at(50),
            at(99)
        );
        pauses
    }
}
