//! nbdfuse mounts, loop devices and mounted file systems, each undone when dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::LIMIT;
use crate::programs::{self, run, wait_until};

/// An export that nbdfuse shows as a file.
#[derive(Debug)]
pub struct Fuse {
    directory: PathBuf,
    file: PathBuf,
    child: Child,
}

impl Fuse {
    /// Shows `uri` as a file called `disk` in `directory`, which is made.
    ///
    /// # Panics
    /// When nbdfuse ends or the file doesn't appear.
    #[must_use]
    pub fn mount(uri: &str, directory: &Path) -> Self {
        fs::create_dir_all(directory).expect("a mount point");
        let file = directory.join("disk");
        let mut command = programs::command("nbdfuse");
        command.arg(&file).arg(uri).stdin(Stdio::null());
        let child = command.spawn().expect("nbdfuse starts");
        let mut fuse = Self { directory: directory.to_owned(), file, child };
        wait_until("nbdfuse to show the file", || {
            let ended = fuse.child.try_wait().expect("own child");
            assert!(ended.is_none(), "nbdfuse ended: {ended:?}");
            fuse.file.is_file()
        });
        fuse
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // Lazily: whoever still has the file open must not keep the test from ending.
        let unmount = |lazy: &[&str]| {
            let mut command = programs::command("fusermount3");
            command.arg("-u").args(lazy).arg(&self.directory);
            command.stdin(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        if !unmount(&[]) {
            unmount(&["-z"]);
        }
        if programs::wait(&mut self.child, LIMIT / 4).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A loop device.
#[derive(Debug)]
pub struct Loop(String);

impl Loop {
    /// Makes one of a file.
    #[must_use]
    pub fn attach(file: &Path) -> Self {
        let out = run("losetup", [Path::new("--find"), Path::new("--show"), file]);
        Self(out.trim().to_owned())
    }

    /// Its device node.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        quietly("losetup", &["--detach", &self.0]);
    }
}

/// A mounted file system.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts `device` at `directory`, which is made.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn new(device: &str, directory: &Path) -> Self {
        fs::create_dir_all(directory).expect("a mount point");
        run("mount", [device.as_ref(), directory.as_os_str()]);
        Self(directory.to_owned())
    }

    /// Mounts one in memory, of so many bytes, at `directory`, which is made.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn in_memory(bytes: u64, directory: &Path) -> Self {
        fs::create_dir_all(directory).expect("a mount point");
        let size = format!("size={bytes}");
        let options = ["-t", "tmpfs", "-o", &size, "tmpfs"].map(AsRef::as_ref);
        run("mount", options.into_iter().chain([directory.as_os_str()]));
        Self(directory.to_owned())
    }

    /// One that is mounted already.
    #[must_use]
    pub fn of(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        quietly("umount", &[self.0.to_str().expect("paths of tests are text")]);
    }
}

/// Fills a mounted file system: a tree of small files, and files that fio writes at random places, past
/// the page cache, so that they can be verified.
pub fn write_files(root: &Path) {
    let text = |path: &Path| path.to_str().expect("paths of tests are text").to_owned();
    run("cp", ["-r", SOURCES, &text(&root.join("sources"))]);
    fio(root, &["--do_verify=0", "--end_fsync=1"]);
    run("sync", ["-f", &text(root)]);
}

/// Finds what [`write_files`] has written.
pub fn check_files(root: &Path) {
    let copy = root.join("sources");
    run("diff", ["-r", SOURCES, copy.to_str().expect("paths of tests are text")]);
    fio(root, &["--verify_only"]);
}

/// Many small files that are there wherever the tests are built: these.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../engine/src");

fn fio(root: &Path, mode: &[&str]) {
    let directory = format!("--directory={}", root.display());
    let job = ["--name=fio", "--size=16M", "--bsrange=4k-64k", "--rw=randwrite", "--randseed=7"];
    let how = ["--ioengine=libaio", "--iodepth=8", "--direct=1", "--verify=crc32c"];
    // Otherwise it looks for the state of the run that wrote, in the current directory.
    let state = ["--verify_state_save=0", "--verify_fatal=1", "--numjobs=2", "--thread"];
    run("fio", [&directory[..]].iter().chain(&job).chain(&how).chain(&state).chain(mode));
}

fn quietly(program: &str, args: &[&str]) {
    // Nothing can be done about a failure here; what is left behind shows in the next test.
    let mut command: Command = programs::command(program);
    let _ = command.args(args).stdin(Stdio::null()).status();
}
