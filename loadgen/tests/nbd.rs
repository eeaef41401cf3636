//! The NBD client against a server in memory, behaving and misbehaving.

mod common;

use std::{sync::atomic::Ordering, time::Duration};

use common::{Behaviour, Fault, Server, start_stranger, start_tcp};
use flagstone_loadgen::{
    Distribution, FaultKind, HandshakeError, Interval, Limits, NbdOptions, Observer, Pattern,
    Report, RunError, Unobserved, Workload, run_nbd, run_nbd_all,
};

fn by_count(operations: u64) -> Limits {
    Limits { duration: None, operations: Some(operations), ..Limits::default() }
}

fn mixed() -> Workload {
    Workload { read_percent: 50, depth: 16, ..Workload::default() }
}

fn run(
    uri: &str,
    workload: &Workload,
    connections: u32,
    limits: &Limits,
) -> Result<Report, RunError> {
    let uri = uri.parse().expect("a valid URI");
    let options = NbdOptions { connections, structured: true, ..NbdOptions::default() };
    run_nbd(&uri, workload, &options, limits, &mut Unobserved)
}

#[test]
fn every_operation_is_counted_once() {
    for structured in [false, true] {
        for (connections, threads) in [(1, 1), (3, 1), (3, 2), (3, 3)] {
            let server = Server::start(Behaviour { structured, ..Behaviour::default() });
            let options = NbdOptions { connections, threads, structured, ..Default::default() };
            let workload = Workload { flush_every: Some(10), fua: true, ..mixed() };
            let uri = server.uri().parse().expect("valid");
            let report = run_nbd(&uri, &workload, &options, &by_count(5000), &mut Unobserved)
                .expect("a clean run");
            assert!(report.clean());
            let flushes = report.flush.operations;
            assert_eq!(report.total.operations + flushes, 5000);
            assert_eq!(report.read.operations + report.write.operations + flushes, 5000);
            assert_eq!(server.seen.requests.load(Ordering::Relaxed), 5000);
            assert_eq!(server.seen.flushes.load(Ordering::Relaxed), flushes);
            assert_eq!(server.seen.fua_writes.load(Ordering::Relaxed), report.write.operations);
            assert!(flushes >= report.write.operations / 10 - 3);
            let latency = report.read.latency.expect("there were reads");
            assert!(latency.min_us > 0.0 && latency.min_us <= latency.p50_us);
            assert!(latency.p50_us <= latency.p99_us && latency.p99_us <= latency.max_us);
            assert_eq!(report.cpu.server_pid, Some(std::process::id()));
        }
    }
}

#[test]
fn several_exports_are_driven_at_the_same_time() {
    let servers = [1, 2, 3].map(|_| Server::start(Behaviour::default()));
    let uris: Vec<_> = servers.iter().map(|server| server.uri().parse().expect("valid")).collect();
    let run = |workload: &Workload, connections, operations| {
        let options = NbdOptions { connections, ..NbdOptions::default() };
        run_nbd_all(&uris, workload, &options, &by_count(operations), &mut Unobserved)
    };
    let report = run(&mixed(), 2, 6000).expect("a clean run");
    assert_eq!(report.total.operations, 6000);
    assert_eq!(report.setup.connections, 6);
    assert_eq!(report.exports.len(), 3);
    for (export, (server, uri)) in report.exports.iter().zip(servers.iter().zip(&uris)) {
        assert_eq!(export.target, uri.to_string());
        assert_eq!(server.seen.requests.load(Ordering::Relaxed), 2000);
        assert!((export.iops * report.elapsed_s - 2000.0).abs() < 0.5);
    }
    let verified = run(&Workload { verify: true, ..mixed() }, 1, 300);
    assert!(matches!(verified, Err(RunError::VerifySeveral)), "{verified:?}");
}

#[test]
fn verified_runs_accept_a_right_server() {
    for structured in [false, true] {
        let server = Server::start(Behaviour { structured, ..Behaviour::default() });
        for workload in [
            Workload { verify: true, ..mixed() },
            Workload { verify: true, block_size: 512, ..mixed() },
            Workload {
                verify: true,
                distribution: Distribution::Zipf { theta: 1.2 },
                span_bytes: Some(18 * 4096),
                ..mixed()
            },
            Workload { verify: true, block_size: 16384, pattern: Pattern::Sequential, ..mixed() },
        ] {
            let report = run(&server.uri(), &workload, 3, &by_count(3000)).expect("a clean run");
            let verification = report.verification.expect("verified");
            assert_eq!(verification.faults, 0, "{verification:?}");
            assert_eq!(verification.reads_checked, report.read.operations);
        }
    }
}

#[test]
fn verified_runs_name_what_is_wrong() {
    let cases = [
        (Fault::LoseWrite(50), &[FaultKind::Missing, FaultKind::Stale][..]),
        (Fault::MisplaceWrite(50), &[FaultKind::Misplaced, FaultKind::Missing, FaultKind::Stale]),
        (Fault::TearWrite(50), &[FaultKind::Damaged, FaultKind::Missing]),
        (Fault::FlipBit(50), &[FaultKind::Damaged]),
    ];
    for (fault, kinds) in cases {
        let server = Server::start(Behaviour { fault, ..Behaviour::default() });
        let workload = Workload { verify: true, ..mixed() };
        let report = run(&server.uri(), &workload, 2, &by_count(4000)).expect("a run");
        assert!(!report.clean());
        let verification = report.verification.expect("verified");
        assert!(verification.faults > 0, "{fault:?} went unnoticed");
        assert!(
            verification.examples.iter().all(|example| kinds.contains(&example.kind)),
            "{fault:?}: {:?}",
            verification.examples
        );
    }
}

#[test]
fn errors_are_counted_and_the_run_goes_on() {
    for structured in [false, true] {
        let behaviour = Behaviour { structured, fault: Fault::Error(100), ..Default::default() };
        let server = Server::start(behaviour);
        let workload = Workload { verify: true, ..mixed() };
        let report = run(&server.uri(), &workload, 1, &by_count(5000)).expect("a run");
        assert_eq!(report.errors, 50);
        assert_eq!(report.total.operations, 4950);
        assert_eq!(report.verification.as_ref().expect("verified").faults, 0);
        assert!(!report.clean());
    }
}

#[test]
fn replies_may_come_in_any_pieces() {
    for structured in [false, true] {
        let behaviour = Behaviour { structured, fault: Fault::Dribble, ..Default::default() };
        let server = Server::start(behaviour);
        let workload = Workload { verify: true, block_size: 512, ..mixed() };
        let report = run(&server.uri(), &workload, 1, &by_count(300)).expect("a clean run");
        assert!(report.clean());
    }
}

/// Requests and replies of 32 MiB each way are far more than any socket buffers; a client that
/// only sent until it was done would wait for ever, and so would this server.
#[test]
fn full_buffers_on_both_sides_do_not_deadlock() {
    let server = Server::start(Behaviour { size: 64 << 20, ..Behaviour::default() });
    let workload =
        Workload { read_percent: 50, block_size: 1 << 20, depth: 32, ..Workload::default() };
    for connections in [1, 2] {
        let report = run(&server.uri(), &workload, connections, &by_count(300)).expect("a run");
        assert_eq!(report.total.operations, 300);
    }
}

#[test]
fn a_silent_server_ends_the_run() {
    for connections in [1, 4] {
        let behaviour = Behaviour { fault: Fault::Stall(500), ..Behaviour::default() };
        let server = Server::start(behaviour);
        let limits = Limits { stall: Duration::from_millis(300), ..Limits::default() };
        let result = run(&server.uri(), &mixed(), connections, &limits);
        assert!(matches!(result, Err(RunError::Stalled { .. })), "{result:?}");
    }
}

#[test]
fn broken_servers_are_named() {
    type Expected = fn(&RunError) -> bool;
    let cases: [(Fault, Expected); 3] = [
        (Fault::HangUp(500), |error| matches!(error, RunError::Io(_))),
        (Fault::WrongCookie(500), |error| matches!(error, RunError::Protocol(_))),
        (Fault::Garbage(500), |error| matches!(error, RunError::Protocol(_))),
    ];
    for (fault, expected) in cases {
        for connections in [1, 3] {
            let server = Server::start(Behaviour { fault, ..Behaviour::default() });
            let error = run(&server.uri(), &mixed(), connections, &by_count(5000))
                .expect_err("the run breaks off");
            assert!(expected(&error), "{fault:?}: {error:?}");
        }
    }
    let (_directory, uri) = start_stranger(b"220 mail.example ESMTP\r\n");
    let error = run(&uri, &mixed(), 1, &by_count(1)).expect_err("no NBD server");
    assert!(matches!(error, RunError::Handshake(HandshakeError::NotNbd)), "{error:?}");
    let error = run("nbd+unix:///x?socket=/nonexistent/s", &mixed(), 1, &by_count(1));
    assert!(matches!(error, Err(RunError::Connect(_))));
}

#[test]
fn what_the_export_cannot_do_is_refused_first() {
    let read_only = Server::start(Behaviour { flags: 0x3, ..Behaviour::default() });
    let error = run(&read_only.uri(), &mixed(), 1, &by_count(1)).expect_err("read-only");
    assert!(matches!(error, RunError::ReadOnly));
    assert!(run(&read_only.uri(), &Workload::default(), 1, &by_count(100)).is_ok());

    let plain = Server::start(Behaviour { flags: 0x1, ..Behaviour::default() });
    let workload = Workload { flush_every: Some(1), ..mixed() };
    let error = run(&plain.uri(), &workload, 1, &by_count(1)).expect_err("no flush");
    assert!(matches!(error, RunError::NoFlush));
    let error =
        run(&plain.uri(), &Workload { fua: true, ..mixed() }, 1, &by_count(1)).expect_err("no FUA");
    assert!(matches!(error, RunError::NoFua));
    let workload = Workload { verify: true, ..mixed() };
    let error = run(&plain.uri(), &workload, 2, &by_count(1)).expect_err("not multi-conn");
    assert!(matches!(error, RunError::NoMultiConn));
    let workload = Workload { span_bytes: Some(2 << 20), ..mixed() };
    let error = run(&plain.uri(), &workload, 1, &by_count(1)).expect_err("too large");
    assert!(matches!(error, RunError::Workload(_)));
    assert_eq!(plain.seen.requests.load(Ordering::Relaxed), 0);
}

/// With as many operations as the span has requests, a sequential run writes each exactly once,
/// whatever the number of connections: what a warm-up relies on.
#[test]
fn a_sequential_pass_writes_everything_once() {
    let server = Server::start(Behaviour::default());
    let workload = Workload {
        read_percent: 0,
        pattern: Pattern::Sequential,
        verify: true,
        depth: 7,
        ..Workload::default()
    };
    run(&server.uri(), &workload, 3, &by_count(256)).expect("a clean run");
    // Every block must begin with a stamp's magic.
    let mut probe = std::os::unix::net::UnixStream::connect(server.socket()).expect("connects");
    let data = common::read_all(&mut probe, 1 << 20);
    assert!(data.chunks(4096).all(|block| block.starts_with(b"FSld")));
}

#[test]
fn the_window_is_respected_over_tcp() {
    #[derive(Default)]
    struct Intervals(Vec<Interval>, f64);
    impl Observer for Intervals {
        fn progress(&mut self, share: f64, _: u64) {
            self.1 = share;
        }
        fn interval(&mut self, interval: &Interval) {
            self.0.push(*interval);
        }
    }
    let uri = start_tcp(Behaviour::default()).parse().expect("valid");
    let limits = Limits {
        duration: Some(Duration::from_millis(700)),
        rampup: Duration::from_millis(200),
        interval: Some(Duration::from_millis(200)),
        ..Limits::default()
    };
    let mut observer = Intervals::default();
    let options = NbdOptions { connections: 2, ..NbdOptions::default() };
    let report = run_nbd(&uri, &mixed(), &options, &limits, &mut observer).expect("a clean run");
    assert!((report.elapsed_s - 0.7).abs() < 1e-9);
    assert!(report.total.operations > 0 && report.cpu.server_pid.is_none());
    assert!(report.cpu.client_us_per_io > 0.0 && report.cpu.client_cores > 0.0);
    let in_intervals: u64 = observer.0.iter().map(|i| i.read.operations + i.write.operations).sum();
    assert!(!observer.0.is_empty() && in_intervals > 0);
    assert!(in_intervals <= report.total.operations);
    assert!(observer.1 > 0.0);
}
