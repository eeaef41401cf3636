//! Every committed input and every seed, on any machine: no fuzzer, no C++ compiler.

use flagstone_fuzz::{TARGETS, Target, seeds::seeds};
use std::path::{Path, PathBuf};

/// Names the input when a target panics: libFuzzer would, a test would not.
struct Running(String);

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the input was {}", self.0);
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn replay(target: &Target) {
    for (i, seed) in seeds(target.name).iter().enumerate() {
        let _running = Running(format!("seed {i} of {}", target.name));
        (target.run)(seed);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut replayed = 0;
    for folder in ["corpus", "regressions"] {
        for file in files(&root.join(folder).join(target.name)) {
            let _running = Running(file.display().to_string());
            (target.run)(&std::fs::read(&file).unwrap());
            replayed += 1;
        }
    }
    assert!(replayed > 0, "{} has no committed inputs", target.name);
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test] fn $name() {
            replay(TARGETS.iter().find(|target| target.name == stringify!($name)).unwrap());
        })*

        #[test]
        fn every_target_is_replayed() {
            let mut names = [$(stringify!($name)),*];
            let mut targets: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            names.sort_unstable();
            targets.sort_unstable();
            assert_eq!(targets, names);
            // Inputs of a target that was renamed would be replayed by nobody.
            for folder in ["corpus", "regressions"] {
                let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
                for path in files(&folder) {
                    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                    assert!(targets.contains(&name.as_str()), "{}", path.display());
                }
            }
        }
    };
}

targets! {
    nbd_handshake nbd_transmission nbd_session superblock journal metadata segment whole_pool
    engine_ops api_input text_input image nvme_identify nvme_completion
}
