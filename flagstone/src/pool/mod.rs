//! Pools that nobody serves: making, checking and describing them.

pub mod create;
mod engine;
pub mod grow;
pub mod members;
pub mod offline;
pub mod rebuild;
mod truncated;

use flagstone_block::DeviceError;
use rustix::io::Errno;

pub use engine::EngineError;
pub use truncated::Truncated;

/// What a device said, and what to do where that is known.
#[must_use]
pub fn explain(error: DeviceError) -> String {
    let full = [Errno::NOSPC, Errno::DQUOT].map(Errno::raw_os_error);
    match error {
        DeviceError::Os { errno } if full.contains(&errno) => format!(
            "{error}: the file system that holds the pool's file is full; make room there (a pool \
             made with --preallocate has all its space from the start)"
        ),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_system_under_the_pool_is_told_as_that() {
        let explained = |errno: Errno| explain(DeviceError::Os { errno: errno.raw_os_error() });
        for errno in [Errno::NOSPC, Errno::DQUOT] {
            assert!(explained(errno).contains("make room there"), "{}", explained(errno));
        }
        assert!(!explained(Errno::IO).contains("room"));
    }
}
