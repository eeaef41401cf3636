//! What a daemon says of itself, and what its exports hold.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use crate::LIMIT;
use crate::daemon::Daemon;
use crate::programs::{Output, command, finish, run};

impl Daemon {
    /// What a command of the control API says in JSON.
    ///
    /// # Panics
    /// When the command fails.
    pub fn ask(&self, args: &[&str]) -> Value {
        let output = self.control(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_str(&output.out).unwrap()
    }

    /// Bytes of the pool that are used.
    ///
    /// # Panics
    /// When the daemon does not say.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.ask(&["pool", "status"])["pools"][0]["used_bytes"].as_u64().unwrap()
    }

    /// Waits until that many bytes are used: space comes back in the background.
    ///
    /// # Panics
    /// When it takes too long.
    pub fn until_used(&self, wanted: u64) {
        let start = Instant::now();
        while self.used() != wanted {
            assert!(start.elapsed() < LIMIT, "{} are used and not {wanted}", self.used());
            std::thread::yield_now();
        }
    }

    /// An export as nbdcopy reads it: the file with the copy.
    ///
    /// # Panics
    /// When it can't be copied.
    pub fn copy_to(&self, export: &str, directory: &Path) -> PathBuf {
        let path = directory.join(format!("{export}.img"));
        let _ = fs::remove_file(&path);
        run("nbdcopy", [self.uri(export).as_str(), path.to_str().unwrap()]);
        path
    }

    /// The content of an export, as nbdcopy reads it.
    ///
    /// # Panics
    /// When it can't be copied.
    pub fn copy(&self, export: &str, directory: &Path) -> Vec<u8> {
        fs::read(self.copy_to(export, directory)).unwrap()
    }
}

/// What becomes of commands of qemu-io.
///
/// # Panics
/// When it can't be run.
pub fn qemu_io(uri: &str, commands: &[&str]) -> Output {
    let mut program = command("qemu-io");
    program.args(["-f", "raw", uri]);
    for text in commands {
        program.args(["-c", text]);
    }
    finish(program)
}
