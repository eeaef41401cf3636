//! Snapshots: taken, read by clients, refused what changes them, deleted.

use super::harness::{MIB, Running, Site, pattern, wait};
use crate::node::{ControlError, NewSnapshot, SettingsChange, Shrink, SnapshotStatus};
use flagstone_nbd::Style;
use flagstone_nbd::proto::*;

fn take(running: &Running, wanted: &[(&str, &str)]) -> Result<Vec<SnapshotStatus>, ControlError> {
    let new = |(i, &(volume, name)): (usize, &(&str, &str))| NewSnapshot {
        volume: volume.to_owned(),
        name: name.to_owned(),
        uuid: [i as u8 + 1; 16],
    };
    wait(running.node.take_snapshots(wanted.iter().enumerate().map(new).collect()))
}

fn names(
    running: &Running,
    volume: Option<&str>,
    after: Option<&str>,
    limit: usize,
) -> Vec<String> {
    let (volume, after) = (volume.map(str::to_owned), after.map(str::to_owned));
    let list = wait(running.node.snapshots(volume, after, limit)).expect("it answers");
    list.into_iter().map(|snapshot| snapshot.name).collect()
}

#[test]
fn a_snapshot_is_its_volume_as_it_was_and_is_only_read() {
    let site = Site::new();
    let running = site.start();
    running.volume("v", 4 * MIB);
    let (old, new) = (pattern(1, 1 << 20), pattern(2, 1 << 20));
    let mut head = running.open("v", Style::Structured);
    head.write(0, &old);
    let taken = take(&running, &[("v", "s")]).expect("there is room");
    assert_eq!((taken[0].name.as_str(), taken[0].uuid), ("v@s", [1; 16]));
    assert_eq!((taken[0].size_bytes, taken[0].mapped_bytes), (4 * MIB, MIB));
    assert!(taken[0].uris[0].starts_with("nbd+unix:///v@s?socket=/"), "{:?}", taken[0].uris);
    head.write(0, &new[..4096]);
    head.write(2 * MIB, &new);

    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let mut snapshot = running.open("v@s", style);
        assert!(snapshot.read(0, MIB) == old, "{style:?}");
        assert!(snapshot.read(2 * MIB, MIB).iter().all(|&byte| byte == 0), "{style:?}");
        for kind in [CMD_TRIM, CMD_WRITE_ZEROES] {
            assert_eq!(snapshot.request(kind, 0, 0, 4096).error(), Some(1), "{style:?}");
        }
        let cookie = snapshot.client.write(0, 0, &new[..4096]);
        assert_eq!(snapshot.answer(cookie).error(), Some(1), "{style:?}");
        assert_eq!(snapshot.request(CMD_FLUSH, 0, 0, 0).error(), None, "{style:?}");
    }
    // The empty name still stands for the only volume.
    assert!(running.open("", Style::Simple).read(2 * MIB, MIB) == new);
    let volume = wait(running.node.volume("v".into())).expect("it is there");
    assert_eq!((volume.snapshots, volume.mapped_bytes), (1, 2 * MIB));
    assert_eq!(volume.exclusive_bytes, MIB + 4096);
    let pool = &wait(running.node.pools()).expect("it answers")[0];
    assert_eq!((pool.volumes, pool.snapshots, pool.provisioned_bytes), (1, 1, 4 * MIB));

    drop(head);
    running.stop();
    let running = site.start();
    assert!(running.open("v@s", Style::Structured).read(0, MIB) == old);
    assert!(running.open("v", Style::Structured).read(0, 4096) == new[..4096]);
    let shown = wait(running.node.snapshot("v@s".into())).expect("it is there");
    assert_eq!((shown.uuid, shown.size_bytes, shown.mapped_bytes), ([1; 16], 4 * MIB, MIB));
}

#[test]
fn several_are_taken_or_none_and_listed_by_volume() {
    let site = Site::with_pools(&[128 * MIB, 128 * MIB]);
    let running = site.start();
    for name in ["a", "a-1", "b"] {
        let pool = Some(site.path("pool0"));
        wait(running.node.create_volume(name.into(), MIB, [7; 16], pool)).expect("there is room");
    }
    let pool = Some(site.path("pool1"));
    wait(running.node.create_volume("far".into(), MIB, [8; 16], pool)).expect("there is room");
    let taken = take(&running, &[("b", "x"), ("a", "x"), ("a-1", "x")]).expect("there is room");
    let taken: Vec<_> = taken.iter().map(|snapshot| snapshot.name.as_str()).collect();
    assert_eq!(taken, ["b@x", "a@x", "a-1@x"]);
    take(&running, &[("a", "y")]).expect("there is room");
    take(&running, &[("far", "x")]).expect("there is room");

    let missing = ControlError::NoSuchVolume { name: "c".into() };
    assert_eq!(take(&running, &[("a", "z"), ("c", "z")]), Err(missing.clone()));
    let exists = |name: &str| ControlError::SnapshotExists { name: name.into() };
    assert_eq!(take(&running, &[("b", "z"), ("a", "x")]), Err(exists("a@x")));
    assert_eq!(take(&running, &[("b", "z"), ("b", "z")]), Err(exists("b@z")));
    let name = String::from("a@x@y");
    assert_eq!(take(&running, &[("a", "x@y")]), Err(ControlError::BadSnapshotName { name }));
    let is_one = ControlError::IsSnapshot { name: "a@x".into() };
    assert_eq!(
        take(&running, &[("a@x", "y")]),
        Err(ControlError::BadSnapshotName { name: "a@x@y".into() })
    );
    assert_eq!(take(&running, &[]), Err(ControlError::SnapshotCount));
    let many: Vec<_> = (0..200).map(|i| format!("n{i}")).collect();
    let many: Vec<_> = many.iter().map(|name| ("a", name.as_str())).collect();
    assert_eq!(take(&running, &many), Err(ControlError::SnapshotCount));
    let (first, second) = ("a".into(), "far".into());
    let apart = ControlError::DifferentPools { first, second };
    assert_eq!(take(&running, &[("a", "z"), ("far", "z")]), Err(apart));

    assert_eq!(names(&running, None, None, 9), ["a-1@x", "a@x", "a@y", "b@x", "far@x"]);
    assert_eq!(names(&running, Some("a"), None, 9), ["a@x", "a@y"]);
    assert_eq!(names(&running, Some("a"), None, 1), ["a@x"]);
    assert_eq!(names(&running, Some("a"), Some("a@x"), 1), ["a@y"]);
    assert_eq!(names(&running, None, Some("a@x"), 2), ["a@y", "b@x"]);
    let listed = wait(running.node.snapshots(Some("c".into()), None, 9));
    assert_eq!(listed, Err(missing));
    let volumes = wait(running.node.volumes(None, usize::MAX)).expect("it answers");
    let volumes: Vec<_> = volumes.iter().map(|v| (v.name.as_str(), v.snapshots)).collect();
    assert_eq!(volumes, [("a", 2), ("a-1", 1), ("b", 1), ("far", 1)]);

    let resized = wait(running.node.resize_volume("a@x".into(), 2 * MIB, Shrink::Never));
    assert_eq!(resized, Err(is_one.clone()));
    let set = wait(running.node.set_volume("a@x".into(), SettingsChange::default()));
    assert_eq!(set, Err(is_one.clone()));
    assert_eq!(wait(running.node.delete_volume("a@x".into(), true)), Err(is_one));
}

#[test]
fn what_is_deleted_is_gone_and_a_volume_goes_after_its_snapshots() {
    let site = Site::new();
    let running = site.start();
    running.volume("v", 4 * MIB);
    let mut head = running.open("v", Style::Structured);
    head.write(0, &pattern(1, 1 << 20));
    take(&running, &[("v", "s")]).expect("there is room");
    head.write(0, &pattern(2, 1 << 20));
    take(&running, &[("v", "t")]).expect("there is room");
    let used = || wait(running.node.pools()).expect("it answers")[0].used_bytes;
    assert_eq!(used(), 2 * MIB);

    // Also with force: nobody is disconnected for nothing.
    let refused = wait(running.node.delete_volume("v".into(), true));
    assert_eq!(refused, Err(ControlError::HasSnapshots { snapshots: 2 }));
    assert!(head.read(0, MIB) == pattern(2, 1 << 20));
    let mut client = running.open("v@s", Style::Structured);
    let in_use = wait(running.node.delete_snapshot("v@s".into(), false));
    assert_eq!(in_use, Err(ControlError::InUse { connections: 1 }));
    assert_eq!(wait(running.node.snapshot("v@s".into())).expect("it is there").connections, 1);
    let deleted = wait(running.node.delete_snapshot("v@s".into(), true)).expect("it is forced");
    assert_eq!(deleted.name, "v@s");
    assert!(client.is_closed());
    let gone = Err(ControlError::NoSuchSnapshot { name: "v@s".into() });
    assert_eq!(wait(running.node.snapshot("v@s".into())), gone);
    assert_eq!(wait(running.node.delete_snapshot("v@s".into(), false)), gone);
    // In the background.
    running.until("given back", |_| used() == MIB);

    take(&running, &[("v", "s")]).expect("the name is free");
    for name in ["v@s", "v@t"] {
        wait(running.node.delete_snapshot(name.into(), false)).expect("nobody has it open");
    }
    assert!(head.read(0, MIB) == pattern(2, 1 << 20));
    wait(running.node.delete_volume("v".into(), true)).expect("it has none");
    running.until("given back", |_| used() == 0);
    running.stop();
    let running = site.start();
    assert_eq!(names(&running, None, None, 9), [""; 0]);
}

/// Else it would be the snapshot of a volume that is gone.
#[test]
fn a_volume_is_not_deleted_while_a_snapshot_of_it_is_on_its_way() {
    let site = Site::new();
    let running = site.start();
    for _ in 0..20 {
        running.volume("v", 4 * MIB);
        let wanted = NewSnapshot { volume: "v".into(), name: "s".into(), uuid: [1; 16] };
        let taken = running.node.take_snapshots(vec![wanted]);
        let deleted = running.node.delete_volume("v".into(), true);
        let (taken, deleted) = wait(async { tokio::join!(taken, deleted) });
        assert_eq!(taken.expect("there is room").len(), 1);
        assert_eq!(deleted, Err(ControlError::HasSnapshots { snapshots: 1 }));
        let volume = wait(running.node.volume("v".into())).expect("it is there");
        assert_eq!(volume.snapshots, 1);
        wait(running.node.delete_volume_and_snapshots("v".into(), false)).expect("nobody has it");
        assert_eq!(names(&running, None, None, 9), [""; 0]);
    }
}
