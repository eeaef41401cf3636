//! One disk that begins to fail: its writes and flushes, for a while or for good, and perhaps its reads.

use super::Disk;

/// What fails of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Which one.
    pub disk: usize,
    /// Its commands until that begins.
    pub after: u64,
    /// Its commands until that ends.
    pub lasts: u64,
    /// Of a hundred writes, how many fail.
    pub writes: u32,
    /// Of a hundred flushes.
    pub flushes: u32,
    /// Of a hundred reads.
    pub reads: u32,
}

/// A command that may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Write,
    Flush,
    Read,
}

impl Disk {
    /// From now on a disk is in trouble, or none is.
    pub fn set_trouble(&mut self, trouble: Option<Trouble>) {
        self.trouble = trouble;
    }

    /// The disk that is in trouble.
    #[must_use]
    pub fn trouble(&self) -> Option<Trouble> {
        self.trouble
    }

    /// Whether a command for `disk` fails because that is in trouble.
    pub(super) fn is_troubled(&mut self, disk: usize, kind: Kind) -> bool {
        let Some(trouble) = &mut self.trouble else { return false };
        if trouble.disk != disk {
            return false;
        }
        if trouble.after > 0 {
            trouble.after -= u64::from(kind != Kind::Read);
            return false;
        }
        if trouble.lasts == 0 {
            return false;
        }
        trouble.lasts -= u64::from(kind != Kind::Read);
        let percent = match kind {
            Kind::Write => trouble.writes,
            Kind::Flush => trouble.flushes,
            Kind::Read => trouble.reads,
        };
        percent > 0 && self.rng.percent(percent)
    }
}
