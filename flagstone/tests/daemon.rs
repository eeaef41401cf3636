//! The daemon from outside: readiness, sockets, signals, volumes, and what survives.

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Daemon, flagstone, run, sturdy};

fn pool(dir: &Path) {
    run(dir, &["pool", "create", "p", "--size", "256M"]).succeeded();
}

/// One HTTP request; status and body.
fn http(socket: &Path, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    // A body that is too large is answered before it is read, and the connection is closed.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn up_serves_a_volume_and_finds_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let daemon = Daemon::start(dir, &["up", "--size", "1G"]);
    assert_eq!((daemon.field("pools"), daemon.field("volumes")), ("1", "1"));
    let data = dir.join("flagstone-data");
    assert_eq!(daemon.field("api"), data.join("api.sock").to_str().unwrap());
    // Without any setting the commands find the daemon of this directory.
    let listed = run(dir, &["--json", "volume", "list"]).succeeded().json();
    assert_eq!(listed["volumes"][0]["name"], "demo");
    assert_eq!(listed["volumes"][0]["size_bytes"], 512 << 20);
    let uuid = listed["volumes"][0]["uuid"].clone();
    assert_eq!(listed["volumes"][0]["uris"][0], daemon.uri("demo"));
    run(dir, &["volume", "create", "more", "--size", "2G"]).succeeded();
    run(dir, &["bench", "nbd", &daemon.uri("demo"), "--rw", "randwrite", "--ops", "100"])
        .succeeded();
    run(dir, &["up"]).failed(3, "in use");
    daemon.stop();
    assert!(!data.join("api.sock").exists());

    let daemon = Daemon::start(dir, &["--json", "up", "--size", "2G"]);
    let ready: Value = serde_json::from_str(&daemon.ready).unwrap();
    assert_eq!(ready["pools"][0]["device_bytes"], 1 << 30);
    assert_eq!(ready["volumes"].as_array().unwrap().len(), 2);
    assert_eq!(ready["volumes"][0]["uuid"], uuid);
    assert!(ready["volumes"][0]["mapped_bytes"].as_u64().unwrap() > 0);
    daemon.signal(Signal::TERM);
    let (status, log) = daemon.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("the pool exists with 1 GiB; --size 2 GiB counts only"), "{log}");
    run(dir, &["pool", "check", "flagstone-data/pool.flagstone"]).succeeded();
}

#[test]
fn volumes_live_through_commands_and_crashes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pool(dir);
    let daemon = Daemon::serve(dir, "p");
    let created = daemon.run(&["--json", "volume", "create", "v", "--size", "1G"]).succeeded();
    assert_eq!(created.json()["uris"], json!([daemon.uri("v")]));
    let again = daemon.run(&["--json", "volume", "create", "v", "--size", "1G"]).succeeded();
    assert_eq!(again.json(), created.json());
    daemon.run(&["volume", "create", "v", "--size", "2G"]).failed(8, "volume resize");
    daemon.run(&["volume", "create", "w", "--size", "1G", "--pool", "q"]).failed(7, "pools are p");
    daemon.run(&["volume", "create", "w", "--size", "1G", "--pool", "p"]).succeeded();
    daemon.run(&["volume", "resize", "v", "--size", "512M"]).failed(8, "--force");
    daemon.run(&["volume", "resize", "v", "--size", "512M", "--discard"]).failed(2, "--force");
    daemon.run(&["volume", "resize", "v", "--size", "512M", "--force"]).succeeded();
    let discard = ["--json", "volume", "resize", "v", "--size", "256M", "--force", "--discard"];
    assert_eq!(daemon.run(&discard).succeeded().json()["size_bytes"], 256_u64 << 20);
    let resized = daemon.run(&["--json", "volume", "resize", "v", "--size", "3G"]).succeeded();
    assert_eq!(resized.json()["size_bytes"], 3_u64 << 30);
    daemon.run(&["volume", "show", "x"]).failed(7, "volume list");
    daemon.run(&["volume", "delete", "x"]).failed(7, "there is no volume");
    daemon.run(&["volume", "delete", "w"]).succeeded();
    daemon.run(&["volume", "delete", "w"]).failed(7, "there is no volume");
    let listed = daemon.run(&["volume", "list"]).succeeded().stdout;
    assert_eq!(listed.lines().count(), 2, "{listed}");
    assert!(listed.contains(&daemon.uri("v")), "{listed}");
    daemon.run(&["volume", "create", "a", "--size", "1G"]).succeeded();
    let page = daemon.run(&["--json", "volume", "list", "--limit", "1"]).succeeded().json();
    assert_eq!((&page["volumes"][0]["name"], &page["next"]), (&json!("a"), &json!("a")));
    let after = ["--json", "volume", "list", "--limit", "1", "--after", "a"];
    let page = daemon.run(&after).succeeded().json();
    assert_eq!((&page["volumes"][0]["name"], &page["next"]), (&json!("v"), &json!(null)));
    daemon.run(&["volume", "delete", "a"]).succeeded();
    daemon.crash();

    let daemon = Daemon::serve(dir, "p");
    let shown = daemon.run(&["--json", "volume", "show", "v"]).succeeded().json();
    assert_eq!(shown["size_bytes"], 3_u64 << 30);
    assert_eq!(shown["uuid"], created.json()["uuid"]);
    daemon.run(&["volume", "show", "w"]).failed(7, "there is no volume");
}

#[test]
fn every_bad_request_has_its_answer() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pool(dir);
    let daemon = Daemon::serve(dir, "p");
    let api = dir.join("api.sock");
    let volume = json!({"name": "v", "size_bytes": 1 << 30}).to_string();
    let other = json!({"name": "v", "size_bytes": 1_u64 << 31}).to_string();
    let odd = json!({"name": "o", "size_bytes": 4097}).to_string();
    let vast = json!({"name": "o", "size_bytes": 1_u64 << 62}).to_string();
    let nowhere = json!({"name": "o", "size_bytes": 4096, "pool": "q"}).to_string();
    let big = " ".repeat(1 << 20);
    for (method, path, body, status, code) in [
        ("POST", "/v1/volumes", volume.as_str(), 201, ""),
        ("POST", "/v1/volumes", &volume, 200, ""),
        ("POST", "/v1/volumes", &other, 409, "volume_exists"),
        ("POST", "/v1/volumes", &odd, 400, "invalid_size"),
        ("POST", "/v1/volumes", &vast, 400, "invalid_size"),
        ("POST", "/v1/volumes", &nowhere, 404, "pool_not_found"),
        ("POST", "/v1/volumes", "{\"name\":\"..\",\"size_bytes\":4096}", 400, "invalid_name"),
        ("POST", "/v1/volumes", "{\"name\":\"a\"}", 422, "invalid_body"),
        ("POST", "/v1/volumes", "{\"nam\":\"a\"}", 422, "invalid_body"),
        ("POST", "/v1/volumes", "{", 400, "malformed_json"),
        ("POST", "/v1/volumes", &big, 413, "body_too_large"),
        ("PATCH", "/v1/volumes/v", "{\"size_bytes\":4096}", 409, "shrink_refused"),
        ("PATCH", "/v1/volumes/w", "{\"size_bytes\":4096}", 404, "volume_not_found"),
        ("PUT", "/v1/volumes/v", "", 405, "method_not_allowed"),
        ("GET", "/v1/volumes/w", "", 404, "volume_not_found"),
        ("GET", "/v1/nothing", "", 404, "not_found"),
        ("DELETE", "/v1/volumes/w", "", 404, "volume_not_found"),
        ("DELETE", "/v1/volumes/v?hard=1", "", 400, "invalid_query"),
        ("GET", "/healthz", "", 200, ""),
        ("DELETE", "/v1/volumes/v", "", 204, ""),
    ] {
        let (answered, text) = http(&api, method, path, body);
        assert_eq!(answered, status, "{method} {path}: {text}");
        if !code.is_empty() {
            let text: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(text["error"]["code"], code, "{method} {path}");
        }
    }
    let (_, metrics) = http(&api, "GET", "/metrics", "");
    assert!(metrics.contains("flagstone_pool_running{pool=\"p\","), "{metrics}");
    assert_eq!(daemon.run(&["--json", "volume", "list"]).json(), json!({"volumes": []}));
}

#[test]
fn a_volume_in_use_is_deleted_only_by_force() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pool(dir);
    let daemon = Daemon::serve(dir, "p");
    daemon.run(&["volume", "create", "v", "--size", "64M"]).succeeded();
    let mut client = UnixStream::connect(dir.join("nbd.sock")).unwrap();
    // Greeting, flags, EXPORT_NAME "v", and the server's answer (NBD proto, "Fixed newstyle
    // negotiation"); without NO_ZEROES 124 zeroes follow.
    let mut greeting = [0; 18];
    client.read_exact(&mut greeting).unwrap();
    client.write_all(&1_u32.to_be_bytes()).unwrap();
    client.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\x01v").unwrap();
    let mut export = [0; 134];
    client.read_exact(&mut export).unwrap();
    assert_eq!(export[..8], (64_u64 << 20).to_be_bytes());

    let shown = daemon.run(&["--json", "volume", "show", "v"]).succeeded().json();
    assert_eq!(shown["connections"], 1);
    daemon.run(&["volume", "delete", "v"]).failed(8, "--force");
    daemon.run(&["volume", "delete", "v", "--force"]).succeeded();
    assert_eq!(client.read(&mut [0]).unwrap_or(0), 0, "the client was disconnected");
}

#[test]
fn sockets_are_private_replaced_when_stale_and_respected_when_live() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pool(dir);
    drop(UnixListener::bind(dir.join("api.sock")).unwrap());
    drop(UnixListener::bind(dir.join("nbd.sock")).unwrap());
    let daemon = Daemon::serve(dir, "p");
    let mode = std::fs::metadata(dir.join("api.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    run(dir, &["pool", "create", "q", "--size", "64M"]).succeeded();
    let serve = |pool: &str, nbd: &str, api: &str| {
        run(dir, &["serve", "--pool", pool, "--nbd-socket", nbd, "--api-socket", api])
    };
    serve("q", "nbd2.sock", "api.sock").failed(3, "api.sock is in use");
    serve("q", "nbd.sock", "api2.sock").failed(3, "nbd.sock is already in use");
    serve("p", "nbd2.sock", "api2.sock").failed(3, "p is in use");
    serve("missing", "nbd2.sock", "api2.sock").failed(4, "missing does not exist");
    serve("api.sock", "nbd2.sock", "api2.sock").failed(2, "neither");
    serve_args(dir, &["--pool", "q", "--pool", "./q"]).failed(2, "./q is given twice");
    serve_args(dir, &["--pool", "q", "--nbd-listen", "192.0.2.1:9"]).failed(1, "192.0.2.1:9");
    assert!(!dir.join("nbd3.sock").exists(), "a failed start leaves nothing behind");
    serve("q", "nbd2.sock", "q").failed(2, "not a socket");
    serve("q", "q", "api2.sock").failed(2, "not a socket");
    serve("q", &"n".repeat(200), "api2.sock");
    serve("q", "nbd2.sock", &"n".repeat(200)).failed(2, "too long");
    std::fs::write(dir.join("blank"), vec![0; 64 << 20]).unwrap();
    serve("blank", "nbd2.sock", "api2.sock").failed(4, "no Flagstone pool");
    assert!(!dir.join("api2.sock").exists(), "a failed start leaves nothing behind");
    drop(daemon);
}

/// `serve` with sockets of its own.
fn serve_args(dir: &Path, args: &[&str]) -> support::Ran {
    let sockets = ["--nbd-socket", "nbd3.sock", "--api-socket", "api3.sock"];
    run(dir, &[&["serve"], args, &sockets[..]].concat())
}

#[test]
fn the_control_socket_has_one_option_with_two_spellings() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pool(dir);
    for option in ["--api", "--api-socket"] {
        let args = ["serve", "--pool", "p", "--nbd-socket", "nbd.sock", option, "api.sock"];
        let daemon = Daemon::start(dir, &args);
        for option in ["--api", "--api-socket"] {
            run(dir, &["volume", "list", option, "api.sock"]).succeeded();
        }
        daemon.stop();
    }
}

#[test]
fn signals_stop_cleanly() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        pool(dir);
        let daemon = Daemon::serve(dir, "p");
        daemon.run(&["volume", "create", "v", "--size", "64M"]).succeeded();
        daemon.signal(signal);
        let (status, log) = daemon.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains("stopping"), "{log}");
        let checked = run(dir, &["--json", "pool", "check", "p"]).succeeded().json();
        assert_eq!(checked["recovery"]["clean"], true);
    }
}

#[test]
fn a_failed_pool_is_told_at_the_end_too() {
    for traffic in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        pool(dir);
        let args = ["serve", "--pool", "p", "--nbd-socket", "nbd.sock", "--api-socket", "api.sock"];
        let daemon = Daemon::spawn(dir, sturdy(dir).args(args));
        daemon.run(&["volume", "create", "v", "--size", "64M"]).succeeded();
        // Without traffic the stop itself is what fails.
        daemon.limit_files(4096);
        if traffic {
            let job = ["--rw", "write", "--ops", "16", "--flush-every", "1"];
            let ran = daemon.run(&[&["bench", "nbd", &daemon.uri("v")], &job[..]].concat());
            assert_ne!(ran.status, 0, "{ran:?}");
            let (_, pools) = http(&dir.join("api.sock"), "GET", "/v1/pools", "");
            let pools: Value = serde_json::from_str(&pools).unwrap();
            assert_eq!(pools["pools"][0]["state"], "failed", "{pools}");
            let (status, _) = http(&dir.join("api.sock"), "GET", "/healthz", "");
            assert_eq!(status, 503);
            daemon.run(&["volume", "create", "w", "--size", "64M"]).failed(1, "has failed");
        }
        daemon.signal(Signal::TERM);
        let (status, log) = daemon.wait();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("error: the pool p has failed and was not closed"), "{log}");
        assert!(log.contains("File too large"), "{log}");
        // Nothing is wrong with the pool itself.
        run(dir, &["pool", "check", "p"]).succeeded();
        Daemon::serve(dir, "p").run(&["volume", "show", "v"]).succeeded();
    }
}

#[test]
fn a_pool_deleted_under_the_daemon_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pool(dir);
    let daemon = Daemon::serve(dir, "p");
    let state = || {
        let (_, pools) = http(&dir.join("api.sock"), "GET", "/v1/pools", "");
        serde_json::from_str::<Value>(&pools).unwrap()["pools"][0]["state"].clone()
    };
    assert_eq!(state(), "running");
    // Under another name it is still there.
    std::fs::rename(dir.join("p"), dir.join("q")).unwrap();
    assert_eq!(state(), "running");
    std::fs::remove_file(dir.join("q")).unwrap();
    assert_eq!(state(), "deleted");
    let (_, metrics) = http(&dir.join("api.sock"), "GET", "/metrics", "");
    assert!(metrics.contains("flagstone_pool_deleted{pool=\"p\","), "{metrics}");
    // It is served as long as the daemon runs.
    daemon.run(&["volume", "create", "v", "--size", "64M"]).succeeded();
    run(dir, &["bench", "nbd", &daemon.uri("v"), "--rw", "randwrite", "--ops", "100"]).succeeded();
    daemon.signal(Signal::TERM);
    let (status, log) = daemon.wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("error: p was deleted while it was served"), "{log}");
}

#[test]
fn the_service_manager_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pool(dir);
    let manager = UnixDatagram::bind(dir.join("notify")).unwrap();
    let args = ["serve", "--pool", "p", "--nbd-socket", "nbd.sock", "--api-socket", "api.sock"];
    let mut command = flagstone(dir);
    command.args(args).env("NOTIFY_SOCKET", dir.join("notify"));
    let daemon = Daemon::spawn(dir, &mut command);
    let mut buffer = [0; 64];
    let mut next = || {
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    assert_eq!(next(), "READY=1\n");
    daemon.signal(Signal::TERM);
    assert_eq!(next(), "STOPPING=1\n");
    assert_eq!(daemon.wait().0.code(), Some(0));
}

#[test]
fn settings_come_from_flags_then_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pool(dir);
    std::fs::write(
        dir.join("f.toml"),
        "pool = [\"p\"]\nnbd-socket = \"other.sock\"\napi-socket = \"api.sock\"\n\
         nbd-listen = \"127.0.0.1:0\"\nmemory = \"64M\"\nmax-connections = 8\n\
         log-format = \"json\"\nlog-level = \"info\"\n",
    )
    .unwrap();
    let daemon = Daemon::start(dir, &["serve", "--config", "f.toml", "--nbd-socket", "nbd.sock"]);
    assert!(dir.join("nbd.sock").exists() && !dir.join("other.sock").exists());
    let tcp = daemon.field("nbd-tcp").to_owned();
    assert!(tcp.starts_with("nbd://127.0.0.1:") && !tcp.contains(":0/"), "{tcp}");
    let volume = daemon.run(&["--json", "volume", "create", "v", "--size", "64M"]).json();
    assert_eq!(volume["uris"], json!([daemon.uri("v"), format!("{tcp}v")]));
    daemon.signal(Signal::TERM);
    let (status, log) = daemon.wait();
    assert_eq!(status.code(), Some(0));
    for line in log.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

#[test]
fn too_little_memory_is_told_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    pool(dir);
    let args = ["serve", "--pool", "p", "--nbd-socket", "n", "--api-socket", "a"];
    run(dir, &[&args[..], &["--memory", "2M"]].concat()).failed(2, "at least");
    run(dir, &[&args[..], &["--max-connections", "4000000000"]].concat()).failed(2, "connections");
}
