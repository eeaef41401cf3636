//! Rules about the crates: who may depend on whom, and who may use `unsafe`.
//!
//! The manifests are read line by line: a table header, then `name...` keys. That is all that the
//! project's manifests use, and anything else in them would be found by its missing edge.

use super::File;

/// The crates, by directory, and what each may depend on among them. Development dependencies are
/// free, but for `sim` (see [`DEV_TOO`]).
const EDGES: [(&str, &[&str]); 14] = [
    ("block", &[]),
    ("engine", &["block"]),
    ("nbd-frontend", &["block"]),
    ("ring", &["block"]),
    ("ublk-frontend", &["block", "ring"]),
    ("nvme", &["block", "ring"]),
    ("loadgen", &["block", "nvme", "ring"]),
    ("flagstone", &["block", "engine", "nbd-frontend", "ublk-frontend", "nvme", "ring", "loadgen"]),
    ("sim", &["block", "engine", "nbd-frontend"]),
    ("benches", &["block", "loadgen", "nbd-frontend", "ring", "ublk-frontend"]),
    ("benches/pieces", &["block", "engine", "nbd-frontend"]),
    ("fuzz", &["block", "engine", "nbd-frontend", "nvme", "loadgen", "flagstone"]),
    ("tests", &[]),
    ("xtask", &[]),
];

/// The simulator must not be able to reach a real device, not even in its own tests.
const DEV_TOO: &str = "sim";

/// The crates that may use `unsafe`.
const UNSAFE: [&str; 3] = ["ring", "nvme", "ublk-frontend"];

pub(super) fn check(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files {
        let Some(name) = file.path.strip_suffix("/Cargo.toml") else { continue };
        let Some((_, allowed)) = EDGES.iter().find(|(krate, _)| *krate == name) else {
            complaints.push(format!("{}: not in the list of crates; add its edges", file.path));
            continue;
        };
        let manifest = Manifest::read(&file.text);
        let dev: &[_] = if name == DEV_TOO { &manifest.dev } else { &[] };
        for dependency in manifest.normal.iter().chain(dev) {
            if !allowed.contains(&dependency.as_str()) {
                complaints.push(format!("{}: must not depend on {dependency}", file.path));
            }
        }
        if !UNSAFE.contains(&name) && !manifest.forbids_unsafe {
            complaints.push(format!("{}: must inherit the workspace's lints", file.path));
        }
    }
    let workspace = files.iter().find(|file| file.path == "Cargo.toml");
    if !workspace.is_some_and(|file| file.text.contains("\nunsafe_code = \"forbid\"\n")) {
        complaints.push("Cargo.toml: the workspace's lints must forbid unsafe_code".to_owned());
    }
    complaints
}

#[derive(Default)]
struct Manifest {
    normal: Vec<String>,
    dev: Vec<String>,
    forbids_unsafe: bool,
}

impl Manifest {
    fn read(text: &str) -> Self {
        let mut manifest = Self::default();
        let mut table = "";
        for line in text.lines().map(str::trim) {
            if let Some(header) = line.strip_prefix('[') {
                table = header.trim_end_matches(']');
                continue;
            }
            let key = line.split(['.', '=', ' ']).next().unwrap_or("").trim_matches('"');
            let list = match table {
                "lints" | "lints.rust" => {
                    // A crate outside the workspace, as `fuzz`, says it itself.
                    let key_and_value = line.replace(' ', "");
                    manifest.forbids_unsafe |= key_and_value == "workspace=true"
                        || key_and_value == "unsafe_code=\"forbid\"";
                    continue;
                }
                "dev-dependencies" => &mut manifest.dev,
                _ if table.ends_with("dependencies") => &mut manifest.normal,
                _ => continue,
            };
            list.extend(directory(key).map(str::to_owned));
        }
        manifest
    }
}

/// The directory of one of our packages.
fn directory(package: &str) -> Option<&str> {
    match package {
        "flagstone" | "xtask" => Some(package),
        "flagstone-nbd" => Some("nbd-frontend"),
        "flagstone-ublk" => Some("ublk-frontend"),
        _ => package.strip_prefix("flagstone-"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::file;
    use super::*;

    const ROOT: &str = "[workspace.lints.rust]\nunsafe_code = \"forbid\"\n";

    fn check_one(path: &str, dependencies: &str) -> Vec<String> {
        let text = format!("[lints]\nworkspace = true\n\n{dependencies}");
        check(&[file("Cargo.toml", ROOT), file(path, &text)])
    }

    #[test]
    fn edges() {
        let good = "[dependencies]\nflagstone-block.workspace = true\nlibc = \"1\"\n";
        assert!(check_one("engine/Cargo.toml", good).is_empty());
        let bad = "[dependencies]\nflagstone-ring = { workspace = true }\n";
        assert_eq!(
            check_one("engine/Cargo.toml", bad),
            ["engine/Cargo.toml: must not depend on ring"]
        );
        let dev = "[dev-dependencies]\nflagstone-ring.workspace = true\n";
        assert!(check_one("engine/Cargo.toml", dev).is_empty());
        assert_eq!(check_one("sim/Cargo.toml", dev), ["sim/Cargo.toml: must not depend on ring"]);
    }

    #[test]
    fn lints_are_inherited_but_where_unsafe_is_allowed() {
        let text = "[package]\nname = \"x\"\n";
        assert!(check(&[file("Cargo.toml", ROOT), file("ring/Cargo.toml", text)]).is_empty());
        assert_eq!(check(&[file("Cargo.toml", ROOT), file("sim/Cargo.toml", text)]).len(), 1);
        assert_eq!(check(&[file("Cargo.toml", "[workspace]\n")]).len(), 1);
    }
}
