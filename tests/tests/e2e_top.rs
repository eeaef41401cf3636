//! What volumes are asked for is counted, and `flagstone top` shows it.

use std::sync::atomic::{AtomicBool, Ordering};

use flagstone_tests::MIB;
use flagstone_tests::daemon::{Config, Daemon, create_pool, directory};

fn io_of(daemon: &Daemon, volume: &str) -> serde_json::Value {
    let output = daemon.control(&["volume", "show", volume, "--json"]);
    assert!(output.status.success(), "{output:?}");
    let shown: serde_json::Value = serde_json::from_str(&output.out).expect("JSON");
    shown["io"].clone()
}

#[test]
fn requests_are_counted_by_volume() {
    let dir = directory();
    let pool = dir.path().join("pool");
    create_pool(&pool, 256 * MIB);
    let daemon = Config::new(&pool, dir.path()).start();
    for name in ["busy", "idle"] {
        daemon.create_volume(name, 32 * MIB);
    }
    let mut client = daemon.connect("busy");
    for i in 0..10 {
        client.write(i * 8192, &[1; 8192], 0).unwrap();
    }
    for i in 0..5 {
        client.read(i * 8192, 4096).unwrap();
    }
    client.read(0, MIB as u32).unwrap();
    client.trim(0, 4096).unwrap();
    client.flush().unwrap();
    client.write(32 * MIB, &[1; 4096], 0).unwrap_err();
    let counted = serde_json::json!({
        "reads": 6, "writes": 10, "flushes": 1, "zeroes": 1, "errors": 0,
        "read_bytes": 5 * 4096 + MIB, "written_bytes": 10 * 8192,
    });
    let told = io_of(&daemon, "busy");
    assert_eq!(told, counted, "what is refused unseen is not counted");
    // Also when the client has gone, and of another one.
    drop(client);
    daemon.connect("busy").write(0, &[1; 4096], 0).unwrap();
    assert_eq!(io_of(&daemon, "busy")["writes"], 11);
    assert_eq!(io_of(&daemon, "idle")["writes"], 0);
}

#[test]
fn the_busiest_volumes_come_first() {
    let dir = directory();
    let pool = dir.path().join("pool");
    create_pool(&pool, 256 * MIB);
    let daemon = Config::new(&pool, dir.path()).start();
    for name in ["a-idle", "b-idle", "z-busy"] {
        daemon.create_volume(name, 32 * MIB);
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = daemon.connect("z-busy");
            for i in (0..).take_while(|_| !over.load(Ordering::Relaxed)) {
                client.write(i % 1024 * 4096, &[1; 4096], 0).unwrap();
            }
        });
        let json = daemon.control(&[
            "top",
            "--interval",
            "300ms",
            "--count",
            "2",
            "--limit",
            "2",
            "--json",
        ]);
        let text = daemon.control(&["top", "--interval", "300ms", "--count", "1", "--limit", "1"]);
        over.store(true, Ordering::Relaxed);
        assert!(json.status.success() && text.status.success(), "{json:?} {text:?}");
        let views: Vec<serde_json::Value> =
            json.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(views.len(), 2);
        for view in &views {
            let volumes = view["volumes"].as_array().expect("a list");
            assert_eq!(volumes.len(), 2, "{view}");
            assert_eq!(
                (&volumes[0]["name"], &volumes[1]["name"]),
                (&"z-busy".into(), &"a-idle".into())
            );
            let rate = |of: &serde_json::Value, name: &str| of[name].as_f64().expect("a number");
            let writes = rate(&volumes[0], "writes_per_s");
            assert!(writes > 1.0 && rate(&volumes[1], "writes_per_s") == 0.0, "{view}");
            assert!((rate(&volumes[0], "written_bytes_per_s") / writes - 4096.0).abs() < 1.0);
            assert!((rate(&view["total"], "writes_per_s") - writes).abs() < 1e-6, "{view}");
            assert!(rate(&view["pools"][0], "written_bytes_per_s") > 0.0, "{view}");
        }
        let lines: Vec<&str> = text.out.lines().collect();
        let at = lines.iter().position(|line| line.starts_with("VOLUME")).expect("a table");
        assert!(
            lines[at + 1].starts_with("z-busy") && text.out.contains("2 are not shown"),
            "{text:?}"
        );
    });
}
