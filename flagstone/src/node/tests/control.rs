//! Control requests, limits and the clean stop.

use super::harness::{MIB, Site, pattern, wait};
use crate::node::limits::LIST_VOLUMES;
use crate::node::{ControlError, ControlRequest, SettingsChange, Shrink, StartError, start};
use flagstone_nbd::Style;
use flagstone_nbd::proto::*;
use flagstone_nbd::testing::{Client, Event};
use std::io::{Read, Write};

const UUID: [u8; 16] = [9; 16];

/// What a connected client sees of a volume that becomes smaller, and larger again.
#[test]
fn a_client_of_a_volume_that_shrinks_gets_errors_beyond_its_end() {
    let site = Site::new();
    let running = site.start();
    let node = &running.node;
    running.volume("v", 4 * MIB);
    let shrink = |size, shrink| wait(node.resize_volume("v".into(), size, shrink));
    let mut wire = running.open("v", Style::Structured);
    wire.write(0, &pattern(1, 4 << 20));
    let holds = ControlError::ShrinkHasData { bytes: 3 * MIB, size_bytes: MIB };
    assert_eq!(shrink(MIB, Shrink::Unused), Err(holds));
    let reserved_bytes = Some(2 * MIB);
    let change = SettingsChange { reserved_bytes, ..SettingsChange::default() };
    wait(node.set_volume("v".into(), change)).expect("there is room");
    let reserved = ControlError::ShrinkReserved { size_bytes: MIB };
    assert_eq!(shrink(MIB, Shrink::Discard), Err(reserved));
    let change = SettingsChange { reserved_bytes: Some(0), ..SettingsChange::default() };
    wait(node.set_volume("v".into(), change)).expect("it is less");
    assert_eq!(shrink(MIB, Shrink::Discard).expect("it may").size_bytes, MIB);

    let cookie = wire.client.write(0, MIB, &pattern(2, 4096));
    assert_eq!(wire.answer(cookie).error(), Some(28));
    assert_eq!(wire.request(CMD_READ, 0, MIB - 10, 11).error(), Some(22));
    assert_eq!(wire.request(CMD_TRIM, 0, MIB, 4096).error(), Some(22));
    assert!(wire.read(0, MIB) == pattern(1, 4 << 20)[..1 << 20]);
    assert_eq!(wait(node.volume("v".into())).expect("it is there").mapped_bytes, MIB);
    shrink(4 * MIB, Shrink::Never).expect("it may grow");
    assert!(wire.read(MIB, 3 * MIB).iter().all(|&byte| byte == 0));
    let mut late = running.open("v", Style::Simple);
    assert!(late.read(MIB - 4096, 8192)[4096..].iter().all(|&byte| byte == 0));
    shrink(4096, Shrink::Discard).expect("it may");
    shrink(4096, Shrink::Never).expect("it is so already");
    running.stop();
    let running = site.start();
    assert_eq!(wait(running.node.volume("v".into())).expect("it is there").size_bytes, 4096);
    assert_eq!(running.open("v", Style::Simple).read(0, 4096), pattern(1, 4096));
}

#[test]
fn volumes_are_made_listed_grown_and_deleted() {
    let site = Site::new();
    let running = site.start();
    let node = &running.node;
    let made = wait(node.create_volume("b".into(), MIB, UUID, None)).expect("there is room");
    assert_eq!((made.name.as_str(), made.size_bytes, made.uuid), ("b", MIB, UUID));
    assert_eq!((made.mapped_bytes, made.connections), (0, 0));
    assert!(made.uris[0].starts_with("nbd+unix:///b?socket=/"), "{:?}", made.uris);
    let again = wait(node.create_volume("b".into(), MIB, [1; 16], None)).expect("it is there");
    assert_eq!(again.uuid, UUID);
    running.volume("a", 2 * MIB);
    let names: Vec<_> = wait(node.volumes(None, usize::MAX))
        .expect("it answers")
        .into_iter()
        .map(|volume| volume.name)
        .collect();
    assert_eq!(names, ["a", "b"]);

    let mut wire = running.open("b", Style::Structured);
    assert_eq!(wire.request(CMD_READ, 0, MIB, 4096).error(), Some(22));
    let grown = wait(node.resize_volume("b".into(), 2 * MIB, Shrink::Never)).expect("it can grow");
    assert_eq!((grown.size_bytes, grown.connections), (2 * MIB, 1));
    wire.write(MIB, &pattern(1, 4096));
    assert_eq!(wait(node.volume("b".into())).expect("it is there").mapped_bytes, 4096);

    let in_use = wait(node.delete_volume("b".into(), false));
    assert_eq!(in_use, Err(ControlError::InUse { connections: 1 }));
    let deleted = wait(node.delete_volume("b".into(), true)).expect("it is forced");
    assert_eq!(deleted.name, "b");
    assert!(wire.is_closed());
    assert!(matches!(wait(node.volume("b".into())), Err(ControlError::NoSuchVolume { .. })));
    let status = &wait(node.pools()).expect("it answers")[0];
    assert_eq!((status.volumes, status.provisioned_bytes), (1, 2 * MIB));
}

#[test]
fn a_volume_is_there_after_a_restart_and_a_deleted_one_is_not() {
    let site = Site::new();
    let running = site.start();
    running.volume("keep", MIB);
    running.volume("drop", MIB);
    wait(running.node.resize_volume("keep".into(), 3 * MIB, Shrink::Never)).expect("it can grow");
    wait(running.node.delete_volume("drop".into(), false)).expect("nobody uses it");
    running.stop();
    let running = site.start();
    let volumes = wait(running.node.volumes(None, usize::MAX)).expect("it answers");
    assert_eq!(volumes.len(), 1);
    assert_eq!((volumes[0].name.as_str(), volumes[0].size_bytes), ("keep", 3 * MIB));
}

#[test]
fn wrong_control_requests_say_what_is_wrong() {
    let site = Site::new();
    let running = site.start();
    let node = &running.node;
    running.volume("vol", MIB);
    let create = |name: &str, size| wait(node.create_volume(name.into(), size, UUID, None));
    assert!(matches!(create("", MIB), Err(ControlError::BadName { .. })));
    assert!(matches!(create("a@b", MIB), Err(ControlError::BadName { .. })));
    assert!(matches!(create("x", 0), Err(ControlError::BadSize { .. })));
    assert!(matches!(create("x", 4097), Err(ControlError::BadSize { .. })));
    assert!(matches!(create("x", 1 << 60), Err(ControlError::BadSize { .. })));
    assert!(matches!(create("vol", 2 * MIB), Err(ControlError::NameTaken { .. })));
    let elsewhere = wait(node.create_volume("x".into(), MIB, UUID, Some("/nowhere".into())));
    assert!(matches!(elsewhere, Err(ControlError::NoSuchPool { .. })));
    let shrunk = wait(node.resize_volume("vol".into(), 4096, Shrink::Never));
    assert_eq!(shrunk, Err(ControlError::Shrink { size_bytes: 4096, current_bytes: MIB }));
    let missing = wait(node.delete_volume("x".into(), true));
    assert!(matches!(missing, Err(ControlError::NoSuchVolume { .. })));
}

#[test]
fn several_pools_share_one_name_space() {
    let site = Site::with_pools(&[128 * MIB, 256 * MIB]);
    let running = site.start();
    let node = &running.node;
    let first = site.config.pools[0].clone();
    let made = wait(node.create_volume("here".into(), MIB, UUID, Some(first.clone())));
    assert_eq!(made.expect("there is room").pool, first);
    // The larger one has more free space.
    let made = wait(node.create_volume("there".into(), MIB, UUID, None)).expect("there is room");
    assert_eq!(made.pool, site.config.pools[1]);
    let taken = wait(node.create_volume("here".into(), 2 * MIB, UUID, None));
    assert!(matches!(taken, Err(ControlError::NameTaken { .. })));
    let mut here = running.open("here", Style::Structured);
    let mut there = running.open("there", Style::Structured);
    here.write(0, &pattern(1, 4096));
    there.write(0, &pattern(2, 4096));
    assert_eq!(here.read(0, 4096), pattern(1, 4096));
    assert_eq!(there.read(0, 4096), pattern(2, 4096));
}

#[test]
fn a_node_that_can_not_start_says_why_and_leaves_nothing() {
    let site = Site::new();
    let running = site.start();
    // The pool is locked and the socket is answered.
    assert!(matches!(start(site.config.clone()), Err(StartError::Device(_))));
    running.stop();
    assert!(!site.path("nbd.sock").exists());

    let with = |change: &dyn Fn(&mut crate::node::NodeConfig)| {
        let mut config = site.config.clone();
        change(&mut config);
        start(config).map(|_| ())
    };
    assert!(matches!(with(&|c| c.pools.clear()), Err(StartError::OutOfRange { .. })));
    assert!(matches!(with(&|c| c.max_connections = 0), Err(StartError::OutOfRange { .. })));
    assert!(matches!(with(&|c| c.nbd_unix = None), Err(StartError::NoListener)));
    assert!(matches!(
        with(&|c| c.pools.push(c.pools[0].clone())),
        Err(StartError::PoolTwice { .. })
    ));
    assert!(matches!(with(&|c| c.memory_bytes = 8 << 20), Err(StartError::Memory { .. })));
    assert!(matches!(with(&|c| c.pools = vec![site.path("missing")]), Err(StartError::Device(_))));
    // The least that the error names suffices.
    let least = match with(&|c| c.memory_bytes = 8 << 20) {
        Err(StartError::Memory { least_bytes, .. }) => least_bytes,
        other => panic!("{other:?}"),
    };
    let mut config = site.config.clone();
    config.memory_bytes = least;
    let node = start(config).expect("it said so");
    node.shutdown();
    node.join().expect("a clean stop");
}

#[test]
fn many_volumes_are_listed_page_by_page() {
    let site = Site::with_pools(&[64 * MIB, 64 * MIB]);
    let running = site.start();
    let node = &running.node;
    let name = |i: usize| format!("v{i:04}");
    let count = 2 * LIST_VOLUMES + 100;
    let made: Vec<_> = (0..count)
        .map(|i| {
            // All at once, as far as the queue goes: they share the journal's blocks.
            loop {
                let (reply, answer) = tokio::sync::oneshot::channel();
                let sent = node.send(ControlRequest::CreateVolume {
                    name: name((i * 7919) % count),
                    size_bytes: MIB,
                    uuid: UUID,
                    pool: Some(site.config.pools[i % 2].clone()),
                    settings: SettingsChange::default(),
                    reply,
                });
                match sent {
                    Ok(()) => return answer,
                    Err(ControlError::Overloaded) => std::thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            }
        })
        .collect();
    for answer in made {
        wait(answer).expect("it answers").expect("there is room");
    }
    let list = |after: Option<&str>, limit| {
        let listed = wait(node.volumes(after.map(str::to_owned), limit)).expect("it answers");
        listed.into_iter().map(|volume| volume.name).collect::<Vec<_>>()
    };
    let all: Vec<_> = (0..count).map(name).collect();
    assert_eq!(list(None, usize::MAX), all);
    assert_eq!(list(None, 0), Vec::<String>::new());
    assert_eq!(list(None, LIST_VOLUMES + 1), all[..=LIST_VOLUMES]);
    assert_eq!(list(Some("v0009~"), 3), all[10..13]);
    assert_eq!(list(Some(&all[count - 2]), 10), all[count - 1..]);
    wait(node.delete_volume(name(11), false)).expect("nobody uses it");
    assert_eq!(list(Some("v0010"), 2), all[12..14]);
    let pools = wait(node.pools()).expect("it answers");
    assert_eq!(pools.iter().map(|pool| pool.volumes).sum::<u32>() as usize, count - 1);
    let provisioned: u64 = pools.iter().map(|pool| pool.provisioned_bytes).sum();
    assert_eq!(provisioned, (count as u64 - 1) * MIB);

    // The stock list has them all too.
    let mut stream = running.connect();
    stream.read_exact(&mut [0; 18]).expect("the server speaks first");
    stream.write_all(&3_u32.to_be_bytes()).expect("it listens");
    stream.write_all(b"IHAVEOPT\0\0\0\x03\0\0\0\0").expect("it listens");
    let mut listed = Vec::new();
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header).expect("it answers");
        let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|i| header[at + i]));
        let mut data = vec![0; word(16) as usize];
        stream.read_exact(&mut data).expect("it answers");
        if word(12) == 1 {
            break;
        }
        listed.push(String::from_utf8(data.split_off(4)).expect("a name"));
    }
    assert_eq!(listed, list(None, usize::MAX));
    running.stop();
    let running = site.start();
    let found = wait(running.node.volumes(None, usize::MAX)).expect("it answers");
    assert_eq!(found.len(), count - 1);
}

#[test]
fn more_connections_than_allowed_are_turned_away() {
    let site = Site::new();
    let running = site.start();
    running.volume("vol", MIB);
    let mut wires: Vec<_> = (0..16).map(|_| running.open("vol", Style::Structured)).collect();
    let mut one_more = running.connect();
    assert_eq!(one_more.read(&mut [0; 18]).expect("it is closed at once"), 0);
    wires.pop();
    running.until("one less", |stats| stats.connections_now == 15);
    let mut wire = running.open("vol", Style::Structured);
    assert_eq!(wire.read(0, 4096), [0; 4096]);
}

#[test]
fn a_client_that_chooses_nothing_is_dropped() {
    let mut site = Site::new();
    site.config.handshake_timeout = std::time::Duration::from_millis(50);
    let running = site.start();
    running.volume("vol", MIB);
    let mut wire = running.open("vol", Style::Simple);
    let mut silent = running.connect();
    let mut greeting = Vec::new();
    silent.read_to_end(&mut greeting).expect("the server closes it");
    assert_eq!(greeting.len(), 18);
    assert_eq!(running.stats().connections_dropped, 1);
    // One that has chosen may stay.
    assert_eq!(wire.read(0, 4096), [0; 4096]);
}

#[test]
fn a_client_whose_handshake_goes_on_may_take_its_time() {
    let mut site = Site::new();
    site.config.handshake_timeout = std::time::Duration::from_secs(2);
    let running = site.start();
    running.volume("vol", MIB);
    let mut slow = running.connect();
    let mut greeting = [0; 18];
    slow.read_exact(&mut greeting).expect("the server greets");
    std::io::Write::write_all(&mut slow, &3u32.to_be_bytes()).expect("the server reads");
    for _ in 0..6 {
        std::thread::sleep(std::time::Duration::from_millis(500));
        // NBD_OPT_LIST of one export: its name, and the acknowledgement.
        let list = [b"IHAVEOPT".as_slice(), &3u32.to_be_bytes(), &0u32.to_be_bytes()].concat();
        std::io::Write::write_all(&mut slow, &list).expect("the server reads");
        let mut reply = [0; 2 * 20 + 4 + 3];
        slow.read_exact(&mut reply).expect("the server answers");
    }
    assert_eq!(running.stats().connections_dropped, 0);
}

#[test]
fn exports_can_be_listed_by_a_stock_handshake() {
    let site = Site::new();
    let running = site.start();
    running.volume("only", MIB);
    // The empty name is the only export.
    let mut wire = running.open("", Style::Extended);
    assert_eq!(wire.read(0, 1), [0]);
    running.volume("second", MIB);
    let mut client = Client::new("", Style::Structured);
    let mut stream = running.connect();
    std::io::Write::write_all(&mut stream, &client.take_output()).expect("the server reads");
    let mut events = Vec::new();
    let mut buffer = [0; 4096];
    while events.len() < 2 {
        let len = stream.read(&mut buffer).expect("the server answers");
        client.receive(&buffer[..len], &mut events).expect("it keeps to the protocol");
    }
    assert!(matches!(events[1], Event::Refused { option: OPT_GO, kind: REP_ERR_UNKNOWN }));
}

#[test]
fn a_stop_answers_what_was_asked_and_closes() {
    let site = Site::new();
    let running = site.start();
    running.volume("vol", 8 * MIB);
    let mut wire = running.open("vol", Style::Structured);
    let mut idle = running.open("vol", Style::Structured);
    let cookie = wire.client.write(0, 0, &pattern(1, 1 << 20));
    assert_eq!(wire.answer(cookie).errors, []);
    running.stop();
    assert!(idle.is_closed());
    assert!(wire.is_closed());
}
