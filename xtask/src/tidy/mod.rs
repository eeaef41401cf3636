//! `cargo xtask tidy`: rules about the sources that no compiler checks.
//!
//! Each rule is a file of its own and returns complaints, one line each: what is wrong, where, and
//! what to do about it.

mod crates;
mod links;
mod sources;

use std::fs;
use std::path::{Path, PathBuf};

/// One file of the project.
struct File {
    /// Relative to the project's root, with `/` between the parts.
    path: String,
    text: String,
}

/// Checks all rules.
pub fn run(root: &Path) -> Result<String, String> {
    let mut files = Vec::new();
    collect(root, root, &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let mut complaints = sources::check(&files);
    complaints.extend(crates::check(&files));
    complaints.extend(links::check(root, &files));
    if complaints.is_empty() {
        return Ok(format!("{} files are tidy", files.len()));
    }
    Err(format!("{}\n{} complaints", complaints.join("\n"), complaints.len()))
}

/// Directories that hold no sources of ours: what is built, and inputs of the fuzz targets.
const SKIPPED: [&str; 6] =
    [".git", "target", "flagstone-data", "corpus", "regressions", "artifacts"];

fn collect(root: &Path, directory: &Path, files: &mut Vec<File>) -> Result<(), String> {
    let failed = |path: &Path, error| format!("{}: {error}", path.display());
    for entry in fs::read_dir(directory).map_err(|error| failed(directory, error))? {
        let path: PathBuf = entry.map_err(|error| failed(directory, error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !SKIPPED.contains(&&*name) {
                collect(root, &path, files)?;
            }
        } else if path.is_file()
            && let Ok(text) = fs::read_to_string(&path)
        {
            // What isn't text isn't a source either.
            let relative = path.strip_prefix(root).unwrap_or(&path);
            files.push(File { path: relative.to_string_lossy().into_owned(), text });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn what_is_built_is_not_read() {
        let mut files = Vec::new();
        let root = crate::root();
        collect(&root, &root, &mut files).unwrap();
        assert!(files.iter().any(|file| file.path == "xtask/src/tidy/mod.rs"));
        assert!(!files.iter().any(|file| file.path.split('/').any(|part| part == "target")));
    }
}
