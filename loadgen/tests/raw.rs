//! The raw driver on files.

use std::{fs, path::PathBuf};

use flagstone_loadgen::{
    Limits, Pattern, RawOptions, Report, RunError, Unobserved, Workload, run_raw,
};

struct File {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

/// A file of `bytes` zeroes.
fn blank(bytes: u64) -> File {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("disk");
    fs::File::create(&path).and_then(|file| file.set_len(bytes)).expect("a file");
    File { _directory: directory, path }
}

fn run(file: &File, workload: &Workload, operations: u64, force: bool) -> Result<Report, RunError> {
    let limits = Limits { duration: None, operations: Some(operations), ..Limits::default() };
    let options = RawOptions { force_destructive: force, ..RawOptions::default() };
    run_raw(&file.path, workload, options, &limits, &mut Unobserved)
}

#[test]
fn mixed_runs_are_counted_and_verified() {
    let file = blank(8 << 20);
    for (block_size, fua) in [(4096, false), (4096, true), (16384, false), (3 * 4096, false)] {
        let workload = Workload {
            read_percent: 50,
            depth: 8,
            block_size,
            fua,
            verify: true,
            flush_every: Some(16),
            ..Workload::default()
        };
        let report = run(&file, &workload, 2000, true).expect("a run");
        assert!(report.clean(), "{report:?}");
        assert_eq!(report.total.operations + report.flush.operations, 2000);
        let verification = report.verification.expect("verified");
        assert_eq!(verification.reads_checked, report.read.operations);
    }
}

#[test]
fn a_file_that_holds_data_is_left_alone() {
    let file = blank(8 << 20);
    let writes = Workload { read_percent: 0, ..Workload::default() };
    let mut data = vec![0; 8 << 20];
    for offset in [0usize, 4096 + 17, 4 << 20, (8 << 20) - 1] {
        data[offset] = 1;
        fs::write(&file.path, &data).expect("written");
        let refused = run(&file, &writes, 1, false).expect_err("it holds data");
        assert!(
            matches!(refused, RunError::HoldsData { offset: o } if o == offset as u64 / 4096 * 4096)
        );
        assert_eq!(fs::read(&file.path).expect("readable"), data, "untouched");
        data[offset] = 0;
    }
    // Reading needs no permission, and a blank file may be written.
    fs::write(&file.path, &data).expect("written");
    run(&file, &Workload::default(), 100, false).expect("reads");
    run(&file, &writes, 100, false).expect("writes to a blank file");
    assert!(run(&file, &writes, 100, false).is_err(), "it is blank no more");
    run(&file, &writes, 100, true).expect("forced");
}

#[test]
fn a_sequential_pass_writes_everything_once() {
    let file = blank(1 << 20);
    let workload = Workload {
        read_percent: 0,
        pattern: Pattern::Sequential,
        verify: true,
        ..Workload::default()
    };
    run(&file, &workload, 256, false).expect("a run");
    let data = fs::read(&file.path).expect("readable");
    assert!(data.chunks(4096).all(|block| block.starts_with(b"FSld")));
}

#[test]
fn nonsense_is_refused() {
    let file = blank(1 << 20);
    let sized = |block_size| Workload { block_size, ..Workload::default() };
    for block_size in [512, 6144, 32 << 20] {
        let error = run(&file, &sized(block_size), 1, false).expect_err("refused");
        assert!(matches!(error, RunError::RawBlockSize { .. }), "{error:?}");
    }
    let nowhere = File { path: "/nonexistent/disk".into(), ..blank(0) };
    assert!(matches!(run(&nowhere, &Workload::default(), 1, false), Err(RunError::Open(_))));
    let empty = blank(0);
    assert!(matches!(run(&empty, &Workload::default(), 1, false), Err(RunError::Workload(_))));
}
