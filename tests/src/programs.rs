//! Other people's programs: whether they are there, and running them with a limit.

use std::ffi::OsStr;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::LIMIT;

/// Where a program is. Administration programs count, though a user's PATH often leaves them out.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut candidates = std::env::split_paths(&path).chain(system).map(|dir| dir.join(program));
    candidates.find(|candidate| candidate.is_file())
}

/// Whether a test can run here. If not, a line on standard error says what it lacks: one that the
/// test harness can't swallow, because a test that didn't run must not look like one that passed.
#[must_use]
pub fn can_run(test: &str, needs: &[Need<'_>]) -> bool {
    let lacks: Vec<_> = needs.iter().filter_map(Need::lack).collect();
    if !lacks.is_empty() {
        let line = format!("SKIPPED: {test} needs {}\n", lacks.join(", "));
        // Not `eprintln!`, which the harness captures.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    lacks.is_empty()
}

/// What a test needs of the machine.
#[derive(Clone, Copy, Debug)]
pub enum Need<'a> {
    /// A program in the path.
    Program(&'a str),
    /// FUSE, for nbdfuse.
    Fuse,
    /// The right to mount and to make loop devices.
    Root,
    /// A loop device that can be made.
    Loop,
    /// A kernel and disks of one's own: `cargo xtask lab`.
    Lab,
    /// A variable of the environment that says where something is.
    Variable(&'a str),
}

impl Need<'_> {
    fn lack(&self) -> Option<String> {
        match self {
            Self::Program(name) => find(name).is_none().then(|| format!("the program {name}")),
            Self::Fuse => {
                let open = std::fs::File::options().read(true).write(true).open("/dev/fuse");
                open.err().map(|error| format!("/dev/fuse ({error})"))
            }
            Self::Root => (!rustix::process::geteuid().is_root()).then(|| "root".to_owned()),
            Self::Variable(name) => std::env::var_os(name).is_none().then(|| (*name).to_owned()),
            Self::Lab => {
                let inside = Path::new(crate::kernel::POWER_CUT).exists();
                (!inside).then(|| "the lab (cargo xtask lab)".to_owned())
            }
            Self::Loop => {
                let path = Path::new("/dev/loop-control");
                let open = std::fs::File::options().read(true).write(true).open(path);
                open.err().map(|error| format!("{} ({error})", path.display()))
            }
        }
    }
}

/// What a program said.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Starts to describe a command; the program is looked up as [`find`] does.
#[must_use]
pub fn command(program: &str) -> Command {
    Command::new(find(program).unwrap_or_else(|| program.into()))
}

/// Runs `program` and returns its standard output.
///
/// # Panics
/// When it fails or takes too long; with all that it said.
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    let mut command = command(program);
    command.args(args);
    succeed(command)
}

/// Runs `command`, which must succeed, and returns its standard output.
///
/// # Panics
/// When it fails or takes too long; with all that it said.
pub fn succeed(command: Command) -> String {
    let text = format!("{command:?}");
    let output = finish(command);
    assert!(
        output.status.success(),
        "{text}: {}\n--- out\n{}\n--- err\n{}",
        output.status,
        output.out,
        output.err
    );
    output.out
}

/// Runs `command` to its end, however it ends.
///
/// # Panics
/// When it can't be started or takes longer than twice [`LIMIT`].
pub fn finish(mut command: Command) -> Output {
    let text = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{text}: {error}"));
    let out = collect(child.stdout.take().expect("piped"));
    let err = collect(child.stderr.take().expect("piped"));
    let status = wait(&mut child, 2 * LIMIT);
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let (out, err) = (out.join().expect("reader"), err.join().expect("reader"));
    let Some(status) = status else { panic!("{text}: no end\n--- out\n{out}\n--- err\n{err}") };
    Output { status, out, err }
}

fn collect(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits for the end of `child`, but not longer than `limit`.
///
/// # Panics
/// When the system refuses to say.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    // A descriptor of the process becomes readable at its end: no polling, no signal handler.
    let pid = rustix::process::Pid::from_child(child);
    let flags = rustix::process::PidfdFlags::empty();
    let pidfd = rustix::process::pidfd_open(pid, flags).expect("a child has a pidfd");
    let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        let timeout = left.try_into().expect("a short time");
        // An interrupted wait is tried again.
        let _ = rustix::event::poll(&mut fds, Some(&timeout));
    }
}

/// Waits until `condition` holds, looking every few milliseconds: for states of other programs that
/// nothing announces.
///
/// # Panics
/// When it doesn't come to hold within [`LIMIT`]; `what` says what was waited for.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
