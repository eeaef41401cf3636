//! What the library says when the device fails under it. The failure is a limit on file sizes, which
//! holds for the whole process, so this is the only test here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flagstone::{CreateOptions, IoError, NodeExit, OpenOptions, Pool, PoolState};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Every write to a file behind its first `bytes` fails with `EFBIG`.
fn limit_files(bytes: Option<u64>) {
    let limit = Rlimit { current: bytes, maximum: getrlimit(Resource::Fsize).maximum };
    setrlimit(Resource::Fsize, limit).unwrap();
}

#[test]
fn a_failed_pool_is_read_but_not_written_and_opens_again() {
    // Whoever handles the signal is not ended by it.
    let told = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::clone(&told)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    let options = CreateOptions { size_bytes: Some(64 << 20), ..CreateOptions::default() };
    let pool = Pool::create(&path, &options).unwrap();
    let volume = pool.create_volume("v", 4 << 20).unwrap();
    volume.write(0, &[1; 8192]).unwrap();
    volume.flush().unwrap();

    limit_files(Some(4096));
    assert_eq!(volume.write(4096, &[2; 4096]), Err(IoError::PoolFailed));
    assert!(told.load(Ordering::Relaxed), "the limit is what failed it");
    limit_files(None);
    // Nothing more is acknowledged, though the device would do it again.
    assert_eq!(volume.write(0, &[2; 4096]), Err(IoError::PoolFailed));
    assert_eq!(volume.flush(), Err(IoError::PoolFailed));
    let mut block = [0; 4096];
    volume.read(0, &mut block).unwrap();
    assert_eq!(block, [1; 4096]);
    assert!(matches!(pool.status().unwrap().state, PoolState::Failed { .. }));
    let Err(NodeExit::FailedPools { pools }) = pool.close() else { panic!("it did not fail") };
    assert_eq!(pools[0].path, path);
    assert!(pools[0].reason.contains("File too large"), "{pools:?}");
    drop((volume, pool));

    let pool = Pool::open(&path, &OpenOptions::default()).unwrap();
    let volume = pool.volume("v").unwrap();
    volume.read(0, &mut block).unwrap();
    assert_eq!(block, [1; 4096]);
    volume.write(0, &[3; 4096]).unwrap();
    pool.close().unwrap();
}
