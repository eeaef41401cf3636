//! What the system refuses: io_uring itself, locked memory, descriptors, direct I/O. Each case runs
//! in a process of its own, because the limit would hit every other test too.

mod common;

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;
use flagstone_block::{BlockIo, Buffers, DeviceCommand, ReadAt};
use flagstone_ring::{
    BufferMode, Device, Event, OpenMode, Ring, RingConfig, RingError, SyncDevice, listen_unix,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Set in the processes that the tests below start; names the directory to work in.
const CASE: &str = "FLAGSTONE_RING_TEST_CASE";

fn case_directory() -> Option<PathBuf> {
    std::env::var_os(CASE).map(PathBuf::from)
}

/// This program again, to run one function of it as the case of `directory`.
fn case(name: &str, directory: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test's own program"));
    command.args(["--exact", name, "--nocapture"]).env(CASE, directory);
    command
}

fn succeed(mut command: Command) {
    let output = command.output().expect("it can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    assert!(text.contains("case done"), "{text}");
}

fn done() {
    println!("case done");
}

/// Writes, flushes and reads back through `ring`.
fn round_trip(ring: &mut Ring, device: &Device) {
    let id = ring.add_device(device).expect("room for a device");
    let buffer = ring.buffers().alloc(8).expect("room for 8 blocks");
    pattern(ring.buffers().bytes_mut(buffer), 5);
    assert_eq!(run(ring, id, write(8192, buffer)), Ok(()));
    assert_eq!(run(ring, id, DeviceCommand::Flush), Ok(()));
    ring.buffers().bytes_mut(buffer).fill(0);
    assert_eq!(run(ring, id, read(8192, buffer)), Ok(()));
    assert_eq!(ring.buffers_ref().bytes(buffer), patterned(8 * 4096, 5));
    ring.buffers().free(buffer);
}

#[test]
fn case_little_locked_memory() {
    let Some(directory) = case_directory() else { return };
    let limit = Rlimit { current: Some(16 << 10), maximum: Some(1 << 20) };
    setrlimit(Resource::Memlock, limit).expect("limits can be lowered");
    let device = file(&directory.join("pool"), 1 << 20);
    // Fits the hard limit but not the soft one: raised, registered.
    let mut small = ring(64);
    println!("{}", small.mode());
    assert_eq!(small.mode().buffers, BufferMode::Registered);
    round_trip(&mut small, &device);
    drop(small);
    // Fits neither: unregistered, said so, same result.
    let mut large = ring(4096);
    println!("{}", large.mode());
    assert!(matches!(large.mode().buffers, BufferMode::Unregistered { .. }));
    assert!(large.mode().to_string().contains("RLIMIT_MEMLOCK"));
    round_trip(&mut large, &device);
    done();
}

#[test]
fn an_arena_beyond_the_locked_memory_limit_works_unregistered() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = case("case_little_locked_memory", directory.path());
    if rustix::process::geteuid().is_root() {
        // The limit does not bind root; `nobody` may write here too.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(directory.path(), open).expect("our own directory");
        command.uid(65_534).gid(65_534);
        // The program may lie where only root can reach it.
        let copy = directory.path().join("program");
        std::fs::copy(command.get_program(), &copy).expect("room for a copy");
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        command = Command::new(copy);
        command.args(arguments).env(CASE, directory.path()).uid(65_534).gid(65_534);
        command.current_dir(directory.path());
    }
    succeed(command);
}

/// Makes `io_uring_setup(2)` fail with `EPERM` in this process, as container runtimes do
/// (`seccomp(2)`, `SECCOMP_MODE_FILTER`).
fn forbid_io_uring() {
    let filter = |code: u32, jump_true: u8, jump_false: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt: jump_true,
        jf: jump_false,
        k,
    };
    let mut program = [
        // The number of the system call is the first word of `struct seccomp_data`.
        filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: both calls only read their arguments; `program` and what it points to are alive.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn case_no_io_uring() {
    let Some(directory) = case_directory() else { return };
    forbid_io_uring();
    let refused = Ring::new(RingConfig::default()).err().expect("the filter forbids it");
    assert!(matches!(refused, RingError::Unavailable { .. }), "{refused}");
    let words = refused.to_string();
    assert!(words.contains("io_uring_disabled") && words.contains("seccomp"), "{words}");
    // A pool can still be made and checked.
    let mut io = SyncDevice::new(file(&directory.join("pool"), 1 << 20));
    let data = patterned(40 * 4096, 3);
    io.write_at(4096, &data).expect("in range");
    let mut pieces = vec![vec![0; 4096]; 40];
    let mut reads: Vec<ReadAt<'_>> = pieces
        .iter_mut()
        .enumerate()
        .map(|(index, into)| ReadAt { offset: 4096 * (1 + index as u64), into })
        .collect();
    let mut results = Vec::new();
    io.read_many(&mut reads, &mut results);
    assert!(results.len() == 40 && results.iter().all(Result::is_ok));
    assert_eq!(pieces.concat(), data);
    done();
}

#[test]
fn without_io_uring_the_error_says_what_to_do_and_pools_can_be_checked() {
    let directory = disk_directory();
    succeed(case("case_no_io_uring", directory.path()));
}

#[test]
fn case_no_descriptors() {
    let Some(directory) = case_directory() else { return };
    let mut ring = ring(64);
    let path = directory.join("socket");
    // Not armed yet: the kernel takes note of the limit when it is told to accept.
    ring.add_listener(listen_unix(&path).expect("a fresh path")).expect("room for a listener");
    let clients: Vec<UnixStream> =
        (0..3).map(|_| UnixStream::connect(&path).expect("in the backlog")).collect();
    // The next descriptor would be this one, and the limit forbids it.
    let next = rustix::io::dup(&clients[0]).expect("a descriptor");
    let number = std::os::fd::AsRawFd::as_raw_fd(&next) as u64;
    drop(next);
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(number), maximum: limit.maximum })
        .expect("limits can be lowered");
    let enters = ring.counters().enters;
    assert_quiet(&mut ring, 350_000_000);
    let counters = ring.counters();
    assert!((1..=5).contains(&counters.accept_pauses), "{counters:?}");
    assert!(counters.enters - enters < 20, "paused, not spinning: {counters:?}");
    setrlimit(Resource::Nofile, limit).expect("back to what it was");
    for _ in &clients {
        assert!(matches!(event(&mut ring), Event::Accepted { .. }));
    }
    done();
}

#[test]
fn accepting_pauses_while_descriptors_are_out() {
    let directory = tempfile::tempdir().expect("a directory");
    succeed(case("case_no_descriptors", directory.path()));
}

#[test]
fn case_few_descriptors() {
    let Some(_) = case_directory() else { return };
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum: limit.maximum })
        .expect("limits can be lowered");
    let ring = Ring::new(RingConfig { max_sockets: 1024, ..RingConfig::default() })
        .expect("io_uring is available");
    println!("{}", ring.mode());
    assert!((64..=256).contains(&ring.mode().registered_files));
    done();
}

#[test]
fn a_file_table_beyond_the_descriptor_limit_is_made_smaller() {
    let directory = tempfile::tempdir().expect("a directory");
    succeed(case("case_few_descriptors", directory.path()));
}

#[test]
fn case_no_direct_io() {
    let Some(directory) = case_directory() else { return };
    let path = directory.join("pool");
    let device = file(&path, 1 << 20);
    assert!(!device.is_direct());
    println!("buffered: {}", device.buffered_because().expect("a reason"));
    let mut ring = ring(64);
    round_trip(&mut ring, &device);
    drop(ring);
    let mut io = SyncDevice::new(device);
    let data = patterned(3 * 4096 + 1, 9);
    io.write_at(0, &data[1..]).expect("in range");
    io.flush().expect("a file can be flushed");
    drop(io);
    let device = Device::open(&path, OpenMode::ReadOnly).expect("nobody has it");
    let mut back = vec![0; 3 * 4096];
    SyncDevice::new(device).read_at(0, &mut back).expect("in range");
    assert_eq!(back, data[1..]);
    done();
}

#[test]
fn a_file_system_without_direct_io_is_used_buffered_and_says_so() {
    // ramfs has no direct I/O and can be mounted without a device, in a mount namespace that ends
    // with the process.
    let directory = tempfile::tempdir().expect("a directory");
    let probe = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]).arg(directory.path());
        command
    };
    let possible = probe("mount -t ramfs none \"$1\"").output();
    if !possible.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: this user can't mount a ramfs");
        return;
    }
    let program = case("case_no_direct_io", directory.path());
    let mut command = probe("mount -t ramfs none \"$1\" && shift && exec \"$@\"");
    command.arg(program.get_program()).args(program.get_args()).env(CASE, directory.path());
    succeed(command);
}
