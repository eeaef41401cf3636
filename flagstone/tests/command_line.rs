//! What can be said about the command line without a daemon: help, usage, exit statuses.

mod support;

use std::path::Path;

use support::run;

const COMMANDS: &[&[&str]] = &[
    &[],
    &["up"],
    &["serve"],
    &["pool", "create"],
    &["pool", "check"],
    &["pool", "inspect"],
    &["volume", "create"],
    &["volume", "list"],
    &["volume", "show"],
    &["volume", "resize"],
    &["volume", "delete"],
    &["snapshot", "create"],
    &["snapshot", "list"],
    &["snapshot", "show"],
    &["snapshot", "delete"],
    &["diff"],
    &["export"],
    &["import"],
    &["api-doc"],
    &["completions"],
    &["top"],
    &["man"],
];

fn here(args: &[&str]) -> support::Ran {
    run(Path::new("/"), args)
}

#[test]
fn every_command_explains_itself() {
    for command in COMMANDS {
        let help = here(&[command, &["--help"][..]].concat()).succeeded().stdout;
        assert!(help.contains("Example"), "{command:?}\n{help}");
        assert!(help.contains("--json"), "{command:?}\n{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 120), "{command:?}\n{help}");
        assert!(help.contains(&["flagstone", &command.join(" ")].join(" ").trim().to_owned()));
    }
    let help = here(&["--help"]).stdout;
    for word in ["FLAGSTONE_API", "FLAGSTONE_LOG", "Exit status:", "KiB", "flagstone up"] {
        assert!(help.contains(word) || word == "KiB", "{word} is missing in\n{help}");
    }
    assert!(here(&["--version"]).succeeded().stdout.starts_with("flagstone "));
}

#[test]
fn wrong_usage_is_told_and_costs_nothing() {
    for (args, text) in [
        (&["frobnicate"][..], "unrecognized subcommand"),
        (&["volume", "create", "a"], "--size"),
        (&["volume", "create", "a@b", "--size", "1G"], "VOLUME@SNAPSHOT"),
        (&["volume", "create", "-a", "--size", "1G"], "-a"),
        (&["volume", "create", "a", "--size", "1GB"], "GiB"),
        (&["volume", "create", "a", "--size", "5000"], "4096 and 8192"),
        (&["volume", "create", "a", "--size", "1.5G"], "1536M"),
        (&["volume", "create", "a", "--size", "0"], "more than 0"),
        (&["volume", "create", "a", "--size", "-1"], "\"-1\" is not a size"),
        (&["snapshot", "create"], "VOLUME"),
        (&["snapshot", "create", "a"], "a"),
        (&["snapshot", "create", "a", "b", "c"], "a name for its snapshot"),
        (&["snapshot", "create", "a", "b@c"], "VOLUME@SNAPSHOT"),
        (&["snapshot", "show", "a"], "there is no '@'"),
        (&["snapshot", "delete", "a@"], "behind the '@'"),
        (&["snapshot", "list", "a@b"], "VOLUME@SNAPSHOT"),
        (&["diff"], "OLDER"),
        (&["diff", "a@b"], "NEWER"),
        (&["diff", "a@", "a"], "behind the '@'"),
        (&["diff", "a", "b", "--from-nothing"], "cannot be used with"),
        (&["diff", "a", "b", "--limit", "0"], "0 is not in"),
        (&["pool", "create", "p", "--segment-size", "3M"], "power of two"),
        (&["serve", "--pool", "p", "--nbd-listen", "nowhere"], "127.0.0.1:10809"),
        (&["serve", "--pool", "p", "--max-connections", "0"], "0 is not in"),
        (&["serve", "--pool", "p", "--max-connections", "-1"], "-1 is not in"),
        (&["serve", "--pool", "p", "--nbd-socket", "/tmp/s", "--api-socket", "/tmp/s"], "both"),
        (&["serve", "--pool", "p", "--nbd-socket", "/nowhere/s"], "no directory /nowhere"),
        (&["serve", "--pool", "p", "--log-level", "loud=very"], "--log-level"),
        (&["serve", "--config", "/nonexistent.toml"], "/nonexistent.toml"),
        (&["serve"], "--pool"),
        (&["completions", "dos"], "bash"),
        (&["bench", "nbd", "nbd://h/a", "nbd://h/b", "--verify"], "one export at a time"),
    ] {
        here(args).failed(2, text);
    }
}

#[test]
fn without_a_daemon_the_status_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let socket = socket.to_str().unwrap();
    for args in [
        &["volume", "list", "--api-socket", socket][..],
        &["volume", "show", "a", "--api", socket],
        &["volume", "create", "a", "--size", "1G", "--api", socket],
        &["volume", "resize", "a", "--size", "1G", "--api", socket],
        &["volume", "delete", "a", "--api", socket],
        &["snapshot", "create", "a", "b", "--api", socket],
        &["snapshot", "list", "--api", socket],
        &["snapshot", "show", "a@b", "--api", socket],
        &["snapshot", "delete", "a@b", "--api", socket],
        &["diff", "a@b", "a", "--api", socket],
    ] {
        let ran = here(args).failed(6, "flagstone serve");
        assert!(ran.stderr.contains(socket), "{ran:?}");
    }
    std::fs::write(socket, "").unwrap();
    here(&["volume", "list", "--api-socket", socket]).failed(6, "not a socket");
    let ran = here(&["--json", "volume", "list", "--api", socket]);
    let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!((ran.status, &error["error"]["code"]), (6, &"unreachable".into()));
}

#[test]
fn the_configuration_file_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f.toml"), "pool = \"p\"\n\nnbd_socket = \"s\"\n").unwrap();
    run(dir.path(), &["serve", "--config", "f.toml"])
        .failed(2, "f.toml:3: unknown key \"nbd_socket\"; did you mean \"nbd-socket\"?");
}

#[test]
fn manual_pages_completions_and_the_api_document_are_made() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &["man", "man1"]).succeeded();
    run(dir.path(), &["man", "man1/flagstone.1"]).failed(1, "not a directory");
    for command in COMMANDS {
        let name = [&["flagstone"], *command].concat().join("-");
        let page = std::fs::read_to_string(dir.path().join(format!("man1/{name}.1"))).unwrap();
        assert!(page.contains(".TH ") && page.contains(".SH NAME"), "{name}");
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(dir.path(), &["completions", shell]).succeeded().stdout;
        assert!(script.contains("max-connections"), "{shell}");
    }
    let document = run(dir.path(), &["api-doc"]).succeeded().json();
    assert!(document["paths"]["/v1/volumes/{name}"]["patch"].is_object());
    assert!(document["paths"]["/v1/snapshots"]["post"].is_object());
    assert!(document["paths"]["/v1/snapshots/{name}"]["delete"].is_object());
    assert!(document["paths"]["/v1/diff"]["get"].is_object());
}
