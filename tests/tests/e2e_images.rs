//! Images: what is exported and imported is what other programs read, increment by increment; wrong bases and
//! damaged streams are refused; and what was interrupted, by whatever, goes on and ends alike.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use flagstone_tests::daemon::{Config, Daemon, binary, check_pool, create_pool, directory};
use flagstone_tests::programs::{Need, Output, can_run, finish, run, succeed, wait, wait_until};
use flagstone_tests::random::Random;
use flagstone_tests::{BLOCK, LIMIT, MIB};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const VOLUME: u64 = 96 * MIB;

fn fails(daemon: &Daemon, args: &[&str], status: i32, says: &str) -> Output {
    let output = daemon.control(args);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {output:?}");
    assert!(output.err.contains(says), "{args:?}: {output:?}");
    output
}

/// A command that is not waited for.
fn start(daemon: &Daemon, args: &[&str], stdin: Stdio, stdout: Stdio) -> Child {
    let mut command = Command::new(binary());
    command.args(args).env("FLAGSTONE_API", daemon.config().api_socket());
    command.stdin(stdin).stdout(stdout).stderr(Stdio::null()).spawn().unwrap()
}

fn exit_of(mut child: Child) -> Option<i32> {
    wait(&mut child, LIMIT).expect("an end").code()
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// A second daemon beside the first.
fn second(directory: &Path, name: &str, pool_bytes: u64, args: &[&str]) -> Daemon {
    let directory = directory.join(name);
    fs::create_dir(&directory).unwrap();
    let pool = directory.join("pool");
    create_pool(&pool, pool_bytes);
    let mut config = Config::new(&pool, &directory);
    config.args.extend(args.iter().map(|&arg| arg.to_owned()));
    config.start()
}

/// Writes, zeroes and discards here and there.
fn change(daemon: &Daemon, volume: &str, random: &mut Random, times: u64) {
    let mut client = daemon.connect(volume);
    let blocks = client.size / BLOCK as u64;
    for _ in 0..times {
        let length = (1 + random.below(400)).min(blocks);
        let offset = random.below(blocks - length + 1) * BLOCK as u64;
        let length = length as u32 * BLOCK as u32;
        match random.below(6) {
            0 => client.trim(offset, length).unwrap(),
            1 => client.zero(offset, length, 0).unwrap(),
            _ => {
                let mut data = vec![0; length as usize];
                random.fill(&mut data);
                client.write(offset, &data, 0).unwrap();
            }
        }
    }
    client.flush().unwrap();
}

/// Random data all over.
fn fill(daemon: &Daemon, volume: &str, random: &mut Random) {
    let mut client = daemon.connect(volume);
    let mut data = vec![0; MIB as usize];
    for offset in (0..client.size).step_by(data.len()) {
        random.fill(&mut data);
        client.write(offset, &data, 0).unwrap();
    }
    client.flush().unwrap();
}

fn mapped(daemon: &Daemon, volume: &str) -> u64 {
    let output = daemon.control(&["volume", "show", volume, "--json"]);
    let shown: Value = serde_json::from_str(&output.out).unwrap_or_default();
    shown["mapped_bytes"].as_u64().unwrap_or(0)
}

fn snapshots(daemon: &Daemon) -> Vec<String> {
    let listed = daemon.ask(&["snapshot", "list"]);
    let listed = listed["snapshots"].as_array().unwrap().iter();
    listed.map(|snapshot| snapshot["name"].as_str().unwrap().to_owned()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn images_are_what_other_programs_read() {
    let programs = ["nbdcopy", "qemu-img", "sh"].map(Need::Program);
    if !can_run("images_are_what_other_programs_read", &programs) {
        return;
    }
    let dir = directory();
    let mut random = Random::from_environment();
    let mut source = Daemon::with_volume(dir.path(), 1024 * MIB, VOLUME);
    let mut target = second(dir.path(), "target", 1024 * MIB, &[]);
    let image = |name: &str| dir.path().join(format!("{name}.img"));
    let names = ["a", "b", "c"];
    for (i, name) in names.iter().enumerate() {
        if i == 2 {
            source.ask(&["volume", "resize", "v", "--size", "128M"]);
        }
        change(&source, "v", &mut random, if i == 0 { 60 } else { 12 });
        source.ask(&["snapshot", "create", "v", name]);
    }
    change(&source, "v", &mut random, 20);
    // To a file, to a file compressed, and through a pipe; as other people's tools would have it.
    let full = source.ask(&["export", "v@a", text(&image("a"))]);
    assert_eq!(full["size_bytes"], VOLUME);
    assert_eq!(full["data_bytes"], source.ask(&["snapshot", "show", "v@a"])["mapped_bytes"]);
    let increment = source.ask(&[
        "export",
        "v@b",
        "--from",
        "a",
        "-o",
        text(&image("b")),
        "--compress",
        "zstd",
    ]);
    assert_eq!(increment["base"], "v@a");
    assert!(increment["data_bytes"].as_u64() < full["data_bytes"].as_u64());
    assert!(!image("a.img.partial").exists());
    for name in ["a", "b"] {
        let checked = target.ask(&["import", "--check", text(&image(name))]);
        assert_eq!(checked["sound"], true);
        assert_eq!(checked["stream_bytes"], fs::metadata(image(name)).unwrap().len());
        let imported = target.ask(&["import", text(&image(name)), "copy"]);
        assert_eq!(imported["snapshot"], format!("copy@{name}"));
    }
    let pipe = |from: &Daemon, export: &str, to: &Daemon, import: &str| {
        let mut shell = Command::new("sh");
        let line = format!(
            "'{bin}' export {export} --api-socket '{}' | '{bin}' import {import} --api-socket '{}'",
            from.config().api_socket().display(),
            to.config().api_socket().display(),
            bin = binary().display(),
        );
        shell.args(["-c", &line]);
        succeed(shell)
    };
    pipe(&source, "v@c --from v@b -", &target, "- copy");
    for name in names {
        let (ours, theirs) = (format!("v@{name}"), format!("copy@{name}"));
        let expected = source.copy(&ours, dir.path());
        assert!(target.copy(&theirs, dir.path()) == expected, "{name}");
        let (a, b) = (source.uri(&ours), target.uri(&theirs));
        run("qemu-img", ["compare", "-f", "raw", "-F", "raw", &a, &b]);
        let fact = |daemon: &Daemon, name: &str, field: &str| {
            daemon.ask(&["snapshot", "show", name])[field].clone()
        };
        for field in ["mapped_bytes", "size_bytes", "uuid"] {
            assert_eq!(fact(&source, &ours, field), fact(&target, &theirs, field), "{name}");
        }
    }
    // Of the volume as it is now: no snapshot is left, here or there.
    pipe(&source, "v --from c", &target, "copy");
    let expected = source.copy("v", dir.path());
    assert!(target.copy("copy", dir.path()) == expected);
    assert_eq!(mapped(&source, "v"), mapped(&target, "copy"));
    assert_eq!(snapshots(&source), ["v@a", "v@b", "v@c"]);
    assert_eq!(snapshots(&target), ["copy@a", "copy@b", "copy@c"]);
    // Back from the copy to a volume that was lost.
    pipe(&target, "copy", &source, "restored --snapshot again");
    assert!(source.copy("restored@again", dir.path()) == expected);
    source.stop_cleanly();
    target.stop_cleanly();
    check_pool(&source.config().pool);
    check_pool(&target.config().pool);
}

#[test]
fn what_does_not_fit_is_refused() {
    if !can_run("what_does_not_fit_is_refused", &[Need::Program("nbdcopy")]) {
        return;
    }
    let dir = directory();
    let mut random = Random::from_environment();
    let mut daemon = Daemon::with_volume(dir.path(), 512 * MIB, 16 * MIB);
    let image = |name: &str| dir.path().join(format!("{name}.img"));
    for name in ["a", "b", "c"] {
        change(&daemon, "v", &mut random, 10);
        daemon.ask(&["snapshot", "create", "v", name]);
    }
    daemon.ask(&["export", "v@a", text(&image("a"))]);
    daemon.ask(&["export", "v@b", "--from", "a", text(&image("ab"))]);
    daemon.ask(&["export", "v@c", "--from", "b", text(&image("bc"))]);
    fails(&daemon, &["export", "v@a", text(&image("a"))], 5, "--force");
    daemon.ask(&["export", "v@a", text(&image("a")), "--force"]);
    fails(&daemon, &["export", "v@x", text(&image("x"))], 7, "no snapshot v@x");
    fails(&daemon, &["export", "x", text(&image("x"))], 7, "no volume x");
    fails(&daemon, &["export", "v@c", "--from", "x", text(&image("x"))], 7, "no snapshot v@x");
    assert_eq!(
        fs::read_dir(dir.path())
            .unwrap()
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                name.to_str().unwrap().contains("x.img")
            })
            .count(),
        0
    );
    fails(&daemon, &["export", "v@a", "/dev/full"], 1, "No space left on device");
    fails(&daemon, &["export", "v@a", "/proc/nowhere/x"], 1, "/proc/nowhere/x");
    fails(&daemon, &["export", "v@a", text(dir.path()), "--force"], 2, "is a directory");

    fails(&daemon, &["import", text(&image("ab")), "copy"], 7, "increment on v@a");
    fails(&daemon, &["import", text(&image("a")), "v@b"], 2, "VOLUME@SNAPSHOT");
    fails(&daemon, &["import", text(&daemon.config().pool), "copy"], 4, "no Flagstone image");
    fails(&daemon, &["import", text(&image("none")), "copy"], 1, "No such file");
    daemon.ask(&["import", text(&image("a")), "copy"]);
    fails(&daemon, &["import", text(&image("bc")), "copy"], 8, "increment on v@b");
    daemon.ask(&["volume", "create", "other", "--size", "16M"]);
    fails(&daemon, &["import", text(&image("ab")), "other"], 8, "increment on v@a");
    daemon.connect("other").write(0, &[1; BLOCK], 0).unwrap();
    fails(&daemon, &["import", text(&image("a")), "other"], 5, "volume other already");
    daemon.connect("copy").write(5 << 20, &[1; BLOCK], 0).unwrap();
    fails(&daemon, &["import", text(&image("ab")), "copy"], 8, "changed since copy@a");
    fails(&daemon, &["import", text(&image("bc")), "copy", "--json"], 8, "\"code\":\"wrong_base\"");
    let kept = ["copy@a", "v@a", "v@b", "v@c"];
    assert_eq!(snapshots(&daemon), kept, "something was left behind");
    daemon.ask(&["import", text(&image("a")), "second"]);
    daemon.ask(&["import", text(&image("ab")), "second"]);
    daemon.ask(&["import", text(&image("bc")), "second"]);
    assert!(daemon.copy("second@c", dir.path()) == daemon.copy("v@c", dir.path()));
    // There already: a success that changes nothing.
    let again = daemon.ask(&["import", text(&image("ab")), "second"]);
    assert_eq!(again["was_there"], true);
    daemon.stop_cleanly();
    check_pool(&daemon.config().pool);
}

#[test]
fn damaged_streams_are_refused() {
    let dir = directory();
    let mut daemon = Daemon::with_volume(dir.path(), 256 * MIB, MIB);
    let mut client = daemon.connect("v");
    client.write(0, &[7; 3 * BLOCK], 0).unwrap();
    daemon.ask(&["snapshot", "create", "v", "a"]);
    client.write(8 * BLOCK as u64, &[8; BLOCK], 0).unwrap();
    client.trim(0, BLOCK as u32).unwrap();
    daemon.ask(&["snapshot", "create", "v", "b"]);
    let path = dir.path().join("image");
    daemon.ask(&["export", "v@b", "--from", "a", text(&path)]);
    let whole = fs::read(&path).unwrap();
    let damaged = dir.path().join("damaged");
    let base = dir.path().join("base");
    daemon.ask(&["export", "v@a", text(&base)]);
    daemon.ask(&["import", text(&base), "copy"]);
    let mut places: Vec<usize> = (0..whole.len()).step_by(61).collect();
    places.extend(whole.len() - 3..whole.len());
    for (i, &at) in places.iter().enumerate() {
        let mut bytes = whole.clone();
        if i % 2 == 0 {
            bytes[at] ^= 1 << (i % 8)
        } else {
            bytes.truncate(at)
        };
        fs::write(&damaged, &bytes).unwrap();
        let output = daemon.control(&["import", "--check", text(&damaged)]);
        assert_eq!(output.status.code(), Some(4), "byte {at}: {output:?}");
        let output = daemon.control(&["import", text(&damaged), "copy"]);
        assert_eq!(output.status.code(), Some(4), "byte {at}: {output:?}");
        assert!(snapshots(&daemon).iter().all(|name| name != "copy@b"), "byte {at}");
    }
    // What was begun with them goes on with the right one.
    daemon.ask(&["import", text(&path), "copy"]);
    let read = |export: &str| daemon.connect(export).read(0, MIB as u32).unwrap();
    assert!(read("copy@b") == read("v@b"));
    assert_eq!(snapshots(&daemon), ["copy@a", "copy@b", "v@a", "v@b"]);
    daemon.stop_cleanly();
    check_pool(&daemon.config().pool);
}

/// Ends an export to `path` by `end` while it writes, and returns what is there then.
fn interrupt_export(
    daemon: &mut Daemon,
    subject: &str,
    path: &Path,
    end: impl Fn(&mut Daemon, &Child),
) -> PathBuf {
    let partial = PathBuf::from(format!("{}.partial", path.display()));
    // It can be faster than the signal: then once more.
    for _ in 0..20 {
        let child = start(daemon, &["export", subject, text(path)], Stdio::null(), Stdio::null());
        wait_until("a part of the image", || {
            let length = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
            length(&partial) > 3 * MIB || path.exists()
        });
        end(daemon, &child);
        exit_of(child);
        if partial.exists() {
            assert!(!path.exists(), "it has its name before it is whole");
            return partial;
        }
        fs::remove_file(path).unwrap();
    }
    panic!("it is always faster");
}

#[test]
fn an_interrupted_export_goes_on() {
    let dir = directory();
    let mut random = Random::from_environment();
    let mut daemon = Daemon::with_volume(dir.path(), 512 * MIB, VOLUME);
    fill(&daemon, "v", &mut random);
    daemon.ask(&["snapshot", "create", "v", "a"]);
    fill(&daemon, "v", &mut random);
    let whole = dir.path().join("whole");
    daemon.ask(&["export", "v@a", text(&whole)]);
    let whole = fs::read(whole).unwrap();
    let path = dir.path().join("image");
    let go_on = |daemon: &Daemon, how: &str| {
        let report = daemon.ask(&["export", "v@a", text(&path)]);
        assert!(report["resumed_at_bytes"].as_u64().unwrap() > 2 * MIB, "{how}: {report}");
        assert!(fs::read(&path).unwrap() == whole, "{how}: another image");
        fs::remove_file(&path).unwrap();
    };
    interrupt_export(&mut daemon, "v@a", &path, |_, child| signal(child, Signal::KILL));
    go_on(&daemon, "killed");
    let partial =
        interrupt_export(&mut daemon, "v@a", &path, |_, child| signal(child, Signal::INT));
    // What is damaged of it is found and written anew.
    let mut bytes = fs::read(&partial).unwrap();
    let at = bytes.len() - MIB as usize / 2;
    bytes[at] ^= 4;
    fs::write(&partial, &bytes).unwrap();
    go_on(&daemon, "interrupted, and damaged");
    interrupt_export(&mut daemon, "v@a", &path, |daemon, _| daemon.kill());
    fails(&daemon, &["export", "v@a", text(&path)], 6, "no daemon answers");
    daemon.restart();
    go_on(&daemon, "the daemon was killed");

    // A part of one image is no part of another.
    let partial =
        interrupt_export(&mut daemon, "v@a", &path, |_, child| signal(child, Signal::TERM));
    daemon.ask(&["snapshot", "create", "v", "b"]);
    fails(&daemon, &["export", "v@b", text(&path)], 5, "--restart");
    fails(&daemon, &["export", "v@a", "--from", "b", text(&path)], 5, "--restart");
    let report = daemon.ask(&["export", "v@b", text(&path), "--restart"]);
    assert_eq!(report["resumed_at_bytes"], 0);
    assert!(path.exists() && !partial.exists());
    fs::write(&partial, b"something that is no image").unwrap();
    fails(&daemon, &["export", "v@a", text(&path), "--force"], 5, "no Flagstone image");
    daemon.stop_cleanly();
    check_pool(&daemon.config().pool);
}

#[test]
fn an_export_of_a_volume_leaves_no_snapshot() {
    let dir = directory();
    let mut random = Random::from_environment();
    let mut daemon = Daemon::with_volume(dir.path(), 512 * MIB, VOLUME);
    fill(&daemon, "v", &mut random);
    let begin = |daemon: &Daemon| {
        let mut child = start(daemon, &["export", "v"], Stdio::null(), Stdio::piped());
        let mut stream = child.stdout.take().unwrap();
        stream.read_exact(&mut [0; 4096]).unwrap();
        assert_eq!(snapshots(daemon).len(), 1);
        (child, stream)
    };
    // It waits in a pipe that nobody reads.
    for by in [Signal::INT, Signal::TERM] {
        let (child, stream) = begin(&daemon);
        signal(&child, by);
        assert_eq!(exit_of(child), Some(128 + by.as_raw()));
        assert_eq!(snapshots(&daemon), [""; 0]);
        drop(stream);
    }
    let (child, stream) = begin(&daemon);
    drop(stream);
    assert_eq!(exit_of(child), Some(1));
    assert_eq!(snapshots(&daemon), [""; 0]);
    // Killed, it can't; the next one does.
    let (child, _stream) = begin(&daemon);
    signal(&child, Signal::KILL);
    exit_of(child);
    assert_eq!(snapshots(&daemon).len(), 1);
    wait_until("its connection to end", || {
        let shown = daemon.ask(&["snapshot", "list"]);
        shown["snapshots"][0]["connections"] == 0
    });
    let path = dir.path().join("image");
    daemon.ask(&["export", "v", text(&path)]);
    assert_eq!(snapshots(&daemon), [""; 0]);
    fails(&daemon, &["export", "v", "/dev/full"], 1, "No space left");
    assert_eq!(snapshots(&daemon), [""; 0]);
    // Killed while it wrote to a file, it goes on with the same snapshot, at once.
    let whole = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    interrupt_export(&mut daemon, "v", &path, |_, child| signal(child, Signal::KILL));
    let mut client = daemon.connect("v");
    client.write(0, &[1; 16 * BLOCK], 0).unwrap();
    let report = daemon.ask(&["export", "v", text(&path)]);
    assert!(report["resumed_at_bytes"].as_u64().unwrap() > 2 * MIB, "{report}");
    // All but the header, which names the snapshot, and what goes by that.
    let again = fs::read(&path).unwrap();
    assert!(again.len() == whole.len() && again[512 + 40..][..BLOCK] == whole[512 + 40..][..BLOCK]);
    assert_eq!(snapshots(&daemon), [""; 0]);
    // Interrupted in a way that it can do something about, it leaves nothing to go on with.
    fs::remove_file(&path).unwrap();
    let child = start(&daemon, &["export", "v", text(&path)], Stdio::null(), Stdio::null());
    wait_until("its snapshot", || path.exists() || !snapshots(&daemon).is_empty());
    signal(&child, Signal::INT);
    exit_of(child);
    assert!(!dir.path().join("image.partial").exists());
    assert_eq!(snapshots(&daemon), [""; 0]);
    daemon.stop_cleanly();
    check_pool(&daemon.config().pool);
}

#[test]
fn an_interrupted_import_goes_on() {
    let dir = directory();
    let mut random = Random::from_environment();
    let mut daemon = Daemon::with_volume(dir.path(), 1024 * MIB, VOLUME);
    fill(&daemon, "v", &mut random);
    daemon.ask(&["snapshot", "create", "v", "a"]);
    change(&daemon, "v", &mut random, 200);
    daemon.ask(&["snapshot", "create", "v", "b"]);
    let (full, increment) = (dir.path().join("full"), dir.path().join("increment"));
    daemon.ask(&["export", "v@a", text(&full)]);
    daemon.ask(&["export", "v@b", "--from", "a", text(&increment), "--compress", "zstd:1"]);
    let read = |daemon: &Daemon, export: &str| -> Vec<u8> {
        let mut client = daemon.connect(export);
        let part = |offset| client.read(offset, MIB as u32).unwrap();
        (0..VOLUME).step_by(MIB as usize).flat_map(part).collect()
    };
    let (a, b) = (read(&daemon, "v@a"), read(&daemon, "v@b"));
    // The import waits for the rest of the stream when it is ended.
    let interrupt = |daemon: &mut Daemon, image: &Path, volume: &str, how: &str| {
        let bytes = fs::read(image).unwrap();
        let before = mapped(daemon, volume);
        let mut child = start(daemon, &["import", "-", volume], Stdio::piped(), Stdio::null());
        let mut stream = child.stdin.take().unwrap();
        let half = bytes.len() * 2 / 3;
        stream.write_all(&bytes[..half]).unwrap();
        let marked = |name: &String| name.starts_with(&format!("{volume}@importing-"));
        wait_until("something to be imported", || {
            snapshots(daemon).iter().any(marked) && mapped(daemon, volume) != before
        });
        match how {
            "the daemon was killed" => {
                daemon.kill();
                // Both the write and the end of the import tell.
                let _ = stream.write_all(&bytes[half..]);
                drop(stream);
                assert_eq!(exit_of(child), Some(1));
                daemon.restart();
            }
            "it was killed" => {
                signal(&child, Signal::KILL);
                exit_of(child);
            }
            _ => {
                signal(&child, Signal::INT);
                assert_eq!(exit_of(child), Some(130));
            }
        }
        assert!(snapshots(daemon).iter().any(marked), "{how}: it is not marked");
    };
    for (i, how) in
        ["it was killed", "it was interrupted", "the daemon was killed"].iter().enumerate()
    {
        let volume = format!("c{i}");
        interrupt(&mut daemon, &full, &volume, how);
        fails(&daemon, &["import", text(&increment), &volume], 8, "another image");
        let report = daemon.ask(&["import", text(&full), &volume]);
        assert_eq!(report["resumed"], true, "{how}");
        assert!(report["kept_bytes"].as_u64().unwrap() > 0, "{how}: {report}");
        assert!(read(&daemon, &format!("{volume}@a")) == a, "{how}: another volume");
        interrupt(&mut daemon, &increment, &volume, how);
        let report = daemon.ask(&["import", text(&increment), &volume]);
        assert_eq!(report["resumed"], true, "{how}");
        assert!(read(&daemon, &format!("{volume}@b")) == b, "{how}: another volume");
        assert!(read(&daemon, &format!("{volume}@a")) == a, "{how}: its base has changed");
        assert_eq!(snapshots(&daemon).iter().filter(|name| name.contains("importing")).count(), 0);
        let mapped = |name: &str| daemon.ask(&["snapshot", "show", name])["mapped_bytes"].clone();
        assert_eq!(mapped("v@b"), mapped(&format!("{volume}@b")));
        for name in ["a", "b"] {
            daemon.ask(&["snapshot", "delete", &format!("{volume}@{name}")]);
        }
        daemon.ask(&["volume", "delete", &volume]);
    }
    daemon.stop_cleanly();
    check_pool(&daemon.config().pool);
}

#[test]
fn a_full_pool_is_told() {
    let dir = directory();
    let mut random = Random::from_environment();
    let source = Daemon::with_volume(dir.path(), 512 * MIB, VOLUME);
    fill(&source, "v", &mut random);
    let image = dir.path().join("image");
    source.ask(&["export", "v", text(&image)]);
    let mut target = second(dir.path(), "target", 64 * MIB, &["--on-full", "error"]);
    fails(&target, &["import", text(&image), "copy"], 1, "no space is left in the pool");
    // With more room it goes on.
    let pool = target.config().pool.clone();
    File::options().write(true).open(&pool).unwrap().set_len(512 * MIB).unwrap();
    target.ask(&["pool", "grow", text(&pool)]);
    let report = target.ask(&["import", text(&image), "copy"]);
    assert!(report["kept_bytes"].as_u64().unwrap() > 16 * MIB, "{report}");
    let read = |daemon: &Daemon, export: &str, offset| {
        daemon.connect(export).read(offset, MIB as u32).unwrap()
    };
    for offset in (0..VOLUME).step_by(MIB as usize) {
        assert!(read(&source, "v", offset) == read(&target, "copy", offset));
    }
    target.stop_cleanly();
    check_pool(&target.config().pool);
}

#[test]
fn a_terminal_gets_no_image() {
    if !can_run("a_terminal_gets_no_image", &[Need::Program("script")]) {
        return;
    }
    let dir = directory();
    let daemon = Daemon::with_volume(dir.path(), 128 * MIB, MIB);
    for (command, says) in [("export v", "nothing for a terminal"), ("import c", "from a terminal")]
    {
        let mut script = Command::new("script");
        let line = format!(
            "'{}' {command} --api-socket '{}'",
            binary().display(),
            daemon.config().api_socket().display()
        );
        script.args(["-q", "-e", "-c", &line, "/dev/null"]);
        let output = finish(script);
        assert!(output.out.contains(says), "{output:?}");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}
