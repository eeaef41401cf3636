//! Rules about the text of files: length, unfinished code, tests that don't run, hosts of package
//! registries.

use super::File;

/// A file that is longer can't be read in one sitting.
const LINES_MAX: usize = 800;

/// What no Rust source may contain, and why. Cut in two so that this file may name them.
const BANNED: [(&str, &str, &str); 4] = [
    ("to", "do!(", "finish it or open an issue"),
    ("unimpl", "emented!(", "finish it or open an issue"),
    ("#[ign", "ore", "a test runs, or skips with a line that says why"),
    ("FI", "XME", "fix it or open an issue"),
];

/// Hosts of package registries: which one is used is the machine's setting, not the project's.
const HOSTS: [(&str, &str); 8] = [
    ("crates", ".io"),
    ("registry.npm", "js"),
    ("proxy.golang", ".org"),
    ("pypi", ".org"),
    ("deb.debian", ".org"),
    ("archive.ubuntu", ".com"),
    ("docker", ".io/"),
    ("rubygems", ".org"),
];

pub(super) fn check(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in files {
        let is_rust = file.path.ends_with(".rs");
        let lines = file.text.lines().count();
        if is_rust && lines > LINES_MAX {
            complaints.push(format!("{}: {lines} lines, more than {LINES_MAX}: cut it", file.path));
        }
        // Cargo writes its lock files, with the name of the registry in every entry.
        let is_lock = file.path.ends_with("Cargo.lock");
        for (number, line) in file.text.lines().enumerate() {
            let number = number + 1;
            if is_rust {
                for (a, b, why) in BANNED {
                    if contains(line, a, b) {
                        complaints.push(format!("{}:{number}: {a}{b}: {why}", file.path));
                    }
                }
            }
            for (a, b) in HOSTS {
                if !is_lock && contains(line, a, b) {
                    complaints.push(format!("{}:{number}: names a registry's host", file.path));
                }
            }
        }
    }
    complaints
}

/// Whether `line` contains `a` followed at once by `b`.
fn contains(line: &str, a: &str, b: &str) -> bool {
    line.match_indices(a).any(|(at, _)| line[at + a.len()..].starts_with(b))
}

#[cfg(test)]
mod tests {
    use super::super::tests::file;
    use super::*;

    #[test]
    fn unfinished_code_is_found() {
        let complaints = check(&[file("x.rs", &format!("fn f() {{\n    {}{}) }}", "to", "do!("))]);
        assert_eq!(complaints.len(), 1);
        assert!(complaints[0].starts_with("x.rs:2: "), "{complaints:?}");
        assert!(check(&[file("x.md", &format!("{}{})", "to", "do!("))]).is_empty());
    }

    #[test]
    fn long_files_are_found() {
        assert!(check(&[file("x.rs", &"\n".repeat(LINES_MAX))]).is_empty());
        assert_eq!(check(&[file("x.rs", &"\n".repeat(LINES_MAX + 1))]).len(), 1);
    }

    #[test]
    fn registry_hosts_are_found() {
        let line = format!("see https://{}{}", "crates", ".io/x");
        assert_eq!(check(&[file("README.md", &line)]).len(), 1);
        assert!(check(&[file("fuzz/Cargo.lock", &line)]).is_empty());
    }
}
