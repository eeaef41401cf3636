//! What is in the file system whose disk is recorded, known to who makes it and to who recovers it.

use crate::MIB;
use crate::random::Random;

/// The log of the disk's writes, in the directory of the recording.
pub const LOG: &str = "fs.log";
/// How the disk began.
pub const BASE: &str = "fs-base.img";
/// By file, how many entries the log had when it and its name had been synchronized; a line each.
pub const NOTE: &str = "fs-note";
/// Bytes of the volume.
pub const VOLUME: u64 = 48 * MIB;
/// Files that are made.
pub const FILES: u64 = 60;

/// The name of a file.
#[must_use]
pub fn name(number: u64) -> String {
    format!("file{number}")
}

/// What is in it.
#[must_use]
pub fn content(number: u64) -> Vec<u8> {
    let mut random = Random::new(number);
    let length = 1 + random.below(40_000) as usize;
    (0..length).map(|_| random.number() as u8).collect()
}
