//! The NBD client against servers that others wrote. Where one is not installed its test says so
//! on standard error and checks nothing.

use std::{
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use flagstone_loadgen::{Limits, NbdOptions, Unobserved, Workload, run_nbd};

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing is left.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server, or returns `None` when its program is not installed.
fn start(command: &mut Command, socket: &Path) -> Option<Server> {
    let child = match command.stdin(Stdio::null()).spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("SKIPPED: {:?}: {error}", command.get_program());
            return None;
        }
    };
    let server = Server(child);
    let deadline = Instant::now() + Duration::from_secs(20);
    while UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < deadline, "{command:?} accepts no connections");
        std::thread::yield_now();
    }
    Some(server)
}

/// Runs of all shapes, verified where the server keeps a read from seeing half of a write that
/// is under way, and the server's CPU time found through the socket.
fn exercise(socket: &Path, server: &Server, verify: bool) {
    let uri = format!("nbd+unix:///?socket={}", socket.display()).parse().expect("valid");
    let limits = Limits { duration: None, operations: Some(3000), ..Limits::default() };
    for structured in [false, true] {
        for (connections, block_size) in [(1, 4096), (4, 4096), (1, 512), (2, 256 << 10)] {
            let workload = Workload {
                block_size,
                depth: 16,
                read_percent: 50,
                flush_every: Some(50),
                fua: true,
                verify,
                ..Workload::default()
            };
            let options = NbdOptions { connections, structured, ..NbdOptions::default() };
            let report =
                run_nbd(&uri, &workload, &options, &limits, &mut Unobserved).expect("a run");
            assert!(report.clean(), "{report:?}");
            assert_eq!(report.total.operations + report.flush.operations, 3000);
            assert_eq!(report.cpu.server_pid, Some(server.0.id()));
            assert!(report.cpu.server_us_per_io.is_some_and(|us| us > 0.0), "{:?}", report.cpu);
        }
    }
}

#[test]
fn nbdkit() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let socket = directory.path().join("s");
    let mut command = Command::new("nbdkit");
    command.arg("--foreground").arg("--unix").arg(&socket).args(["memory", "16M"]);
    if let Some(server) = start(&mut command, &socket) {
        exercise(&socket, &server, true);
    }
}

#[test]
fn qemu_nbd() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (socket, image) = (directory.path().join("s"), directory.path().join("disk"));
    std::fs::File::create(&image).and_then(|file| file.set_len(16 << 20)).expect("a file");
    let mut command = Command::new("qemu-nbd");
    command.args(["--format=raw", "--persistent", "--shared=8", "--socket"]);
    command.arg(&socket).arg(&image);
    if let Some(server) = start(&mut command, &socket) {
        // Its file's page cache lets a read see half of a write.
        exercise(&socket, &server, false);
    }
}
