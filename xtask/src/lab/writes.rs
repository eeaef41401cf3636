//! Recorded writes: the log that QEMU's `blklogwrites` makes of all that a disk was sent. A request is
//! logged when it is done and before it is answered, so a flush stands behind every write that was
//! answered before it was sent. The log has the format of the kernel's `dm-log-writes` (Linux,
//! Documentation/admin-guide/device-mapper/log-writes.rst): a head in the first sector, then of each
//! request a sector that describes it and, but for discards, its data.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::Trouble;

const MAGIC: u64 = 0x6a_7366_7773_6872;
const VERSION: u64 = 1;

/// A log.
#[derive(Debug)]
pub struct Log {
    file: File,
    /// What was done, in that order.
    pub entries: Vec<Entry>,
}

/// A request that the disk has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    flags: u64,
    /// Where its data lies in the log.
    data: u64,
}

impl Entry {
    /// Whether what was answered before it is durable when it is answered.
    pub fn is_flush(&self) -> bool {
        self.flags & 1 != 0
    }

    /// Whether it is durable itself when it is answered (FUA).
    pub fn is_forced(&self) -> bool {
        self.flags & 2 != 0
    }

    /// Whether it says that its blocks are not needed any more, instead of writing them.
    pub fn is_discard(&self) -> bool {
        self.flags & 4 != 0
    }

    /// For people, and for programs that look for a place to cut.
    pub fn describe(&self) -> String {
        let kinds =
            [(self.is_flush(), "flush"), (self.is_forced(), "fua"), (self.is_discard(), "discard")];
        let kinds: Vec<_> = kinds.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect();
        let kind = if kinds.is_empty() { "write".to_owned() } else { kinds.join("+") };
        format!("{} {} {kind}", self.offset, self.length)
    }
}

impl Log {
    /// Reads what describes the requests. A log that ends too early, because the power of the guest
    /// was cut, has the requests that are there whole.
    pub fn open(path: &Path) -> Result<Self, Trouble> {
        let failed = |error| Trouble::Failed(format!("{}: {error}", path.display()));
        let file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let mut head = [0; 28];
        let read = file.read_exact_at(&mut head, 0);
        let [magic, version, count] = [0, 8, 16].map(|at| word(&head, at));
        let sector = u64::from(u32::from_le_bytes(head[24..].try_into().expect("4 bytes")));
        let is_log = magic == MAGIC && version == VERSION && sector.is_power_of_two();
        if read.is_err() || !is_log || sector < 512 {
            return Err(Trouble::Failed(format!("{}: not a log of writes", path.display())));
        }
        let (mut entries, mut at) = (Vec::new(), sector);
        while (entries.len() as u64) < count && at + sector <= size {
            let mut head = [0; 32];
            file.read_exact_at(&mut head, at).map_err(failed)?;
            let [first, sectors, flags] = [0, 8, 16].map(|at| word(&head, at));
            let (offset, length) = (first.checked_mul(sector), sectors.checked_mul(sector));
            let (Some(offset), Some(length)) = (offset, length) else {
                return Err(Trouble::Failed(format!("{}: damaged at byte {at}", path.display())));
            };
            let entry = Entry { offset, length, flags, data: at + sector };
            if length == 0 && !entry.is_flush() {
                // Counted, but not written when the power was cut: nobody had an answer to it.
                break;
            }
            let end = entry.data.saturating_add(if entry.is_discard() { 0 } else { length });
            if end > size {
                break;
            }
            entries.push(entry);
            at = end;
        }
        Ok(Self { file, entries })
    }

    /// The bytes of an entry from `from` on, which is counted from its first.
    pub fn read(&self, entry: &Entry, from: u64, bytes: &mut [u8]) -> io::Result<()> {
        if entry.is_discard() {
            bytes.fill(0);
            return Ok(());
        }
        self.file.read_exact_at(bytes, entry.data + from)
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A log in a file: per entry the sector, its flags, and a byte that fills its one sector.
    pub fn log(name: &str, entries: &[(u64, u64, u8)]) -> std::path::PathBuf {
        let mut bytes = Vec::new();
        let mut sector = |words: &[u64], fill: u8| {
            let end = bytes.len() + 512;
            words.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
            bytes.resize(end, fill);
        };
        sector(&[MAGIC, VERSION, entries.len() as u64, 512], 0);
        for &(at, flags, fill) in entries {
            let length = if flags & 1 != 0 { 0 } else { 1 };
            sector(&[at, length, flags, 0], 0);
            if length > 0 && flags & 4 == 0 {
                sector(&[], fill);
            }
        }
        let path = std::env::temp_dir().join(format!("xtask-log-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn entries_are_read() {
        let path = log("read", &[(3, 0, 7), (0, 1, 0), (2, 4, 0), (1, 2, 9)]);
        let found = Log::open(&path).unwrap();
        let text: Vec<_> = found.entries.iter().map(Entry::describe).collect();
        assert_eq!(text, ["1536 512 write", "0 0 flush", "1024 512 discard", "512 512 fua"]);
        let mut bytes = [0; 4];
        found.read(&found.entries[3], 100, &mut bytes).unwrap();
        assert_eq!(bytes, [9; 4]);
        // The power was cut while the last one was written.
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(Log::open(&path).unwrap().entries.len(), 3);
        let hole = [&whole[..whole.len() - 1024], &[0; 1024]].concat();
        std::fs::write(&path, hole).unwrap();
        assert_eq!(Log::open(&path).unwrap().entries.len(), 3);
        std::fs::write(&path, [0; 512]).unwrap();
        assert!(Log::open(&path).is_err());
        std::fs::remove_file(path).unwrap();
    }
}
