//! The ledger of verified runs in a file, so that a later run can check what earlier ones wrote: after the
//! server was killed, with another kind of load, or at the end of several.
//!
//! The format is private to this program: `MAGIC`, block size (4 bytes), name of the runs (8), number of
//! blocks (8), 8 bytes per block, CRC-32 of all that (4); little endian. A file is replaced as a whole.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    verify::{Ledger, run_name},
    workload::Workload,
};

const MAGIC: &[u8; 8] = b"FSledgr1";
const HEADER_BYTES: usize = 28;

/// What is wrong with a ledger's file.
#[derive(Debug, thiserror::Error)]
pub enum LedgerFileError {
    /// It can't be read or written.
    #[error("can't read or write the ledger {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It is no ledger, or was damaged.
    #[error("{path} is no ledger of verified runs, or a damaged one")]
    NotALedger {
        /// The file.
        path: PathBuf,
    },
    /// It is about blocks of another size, or about another number of them.
    #[error(
        "the ledger {path} is about {blocks} blocks of {block_size} bytes; a run that goes on with it \
         must have the same --block-size and --span"
    )]
    OtherBlocks {
        /// The file.
        path: PathBuf,
        /// How many blocks it is about.
        blocks: u64,
        /// Their size in bytes.
        block_size: u32,
    },
}

/// The ledger of `workload` over `requests` blocks: what its file says if there is one, else an empty one;
/// none if it does not verify.
pub(crate) fn open(workload: &Workload, requests: u64) -> Result<Option<Ledger>, LedgerFileError> {
    if !workload.verify {
        return Ok(None);
    }
    let new = || Ledger::new(run_name(workload.seed), requests);
    let Some(path) = &workload.ledger else { return Ok(Some(new())) };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A run whose ledger can't be kept is not begun.
            let ledger = new();
            save(&ledger, workload)?;
            return Ok(Some(ledger));
        }
        Err(source) => return Err(LedgerFileError::Io { path: path.clone(), source }),
    };
    parse(&bytes, path, workload.block_size, requests).map(Some)
}

fn parse(
    bytes: &[u8],
    path: &Path,
    block_size: u32,
    requests: u64,
) -> Result<Ledger, LedgerFileError> {
    let path = || path.to_owned();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    let Some(end) = bytes.len().checked_sub(4).filter(|&end| end >= HEADER_BYTES) else {
        return Err(LedgerFileError::NotALedger { path: path() });
    };
    if &bytes[..8] != MAGIC || crc32fast::hash(&bytes[..end]) != word(end) {
        return Err(LedgerFileError::NotALedger { path: path() });
    }
    if word(8) != block_size || long(20) != requests {
        let (blocks, block_size) = (long(20), word(8));
        return Err(LedgerFileError::OtherBlocks { path: path(), blocks, block_size });
    }
    if (end - HEADER_BYTES) as u64 != requests * 8 {
        return Err(LedgerFileError::NotALedger { path: path() });
    }
    Ok(Ledger::resume(
        long(12),
        bytes[HEADER_BYTES..end]
            .chunks_exact(8)
            .map(|entry| u64::from_le_bytes(entry.try_into().expect("8 bytes"))),
    ))
}

/// Writes the ledger to the workload's file, if it has one. To be called however the run ended: what was
/// under way then may have been carried out or not.
pub(crate) fn save(ledger: &Ledger, workload: &Workload) -> Result<(), LedgerFileError> {
    let Some(path) = &workload.ledger else { return Ok(()) };
    let mut bytes = Vec::with_capacity(HEADER_BYTES + 4 + ledger.len() * 8);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&workload.block_size.to_le_bytes());
    bytes.extend_from_slice(&ledger.run().to_le_bytes());
    bytes.extend_from_slice(&(ledger.len() as u64).to_le_bytes());
    ledger.entries().for_each(|entry| bytes.extend_from_slice(&entry.to_le_bytes()));
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    let mut beside = path.clone().into_os_string();
    beside.push(".new");
    fs::write(&beside, &bytes)
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|source| LedgerFileError::Io { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_run_knows_what_was_written() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("ledger");
        let workload = Workload { verify: true, ledger: Some(path.clone()), ..Workload::default() };
        let first = open(&workload, 8).expect("new").expect("verifies");
        let sequence = first.begin_write(3).expect("not busy");
        let mut old = vec![0; 4096];
        first.stamp(3, sequence, &mut old);
        first.end_write(3, true);
        // Under way when the run broke off.
        let unknown = first.begin_write(5).expect("not busy");
        let mut perhaps = vec![0; 4096];
        first.stamp(5, unknown, &mut perhaps);
        save(&first, &workload).expect("written");

        let second = open(&workload, 8).expect("there").expect("verifies");
        assert_eq!(second.check(3, second.begin_read(3), &old), Ok(()));
        assert!(second.check(3, second.begin_read(3), &[0; 4096]).is_err());
        assert_eq!(second.check(5, second.begin_read(5), &perhaps), Ok(()));
        assert_eq!(second.check(5, second.begin_read(5), &[0; 4096]), Ok(()));
        assert_eq!(second.begin_write(3), Some(2), "goes on counting");
        assert_eq!(second.begin_write(5), Some(2), "is not busy any more");

        let other = open(&workload, 9);
        assert!(matches!(other, Err(LedgerFileError::OtherBlocks { blocks: 8, .. })));
        let mut bytes = fs::read(&path).expect("there");
        for at in [0, 9, 40, bytes.len() - 1] {
            bytes[at] ^= 1;
            fs::write(&path, &bytes).expect("written");
            let damaged = open(&workload, 8);
            assert!(matches!(damaged, Err(LedgerFileError::NotALedger { .. })), "byte {at}");
            bytes[at] ^= 1;
        }
        fs::write(&path, &bytes[..20]).expect("written");
        assert!(matches!(open(&workload, 8), Err(LedgerFileError::NotALedger { .. })));
    }

    #[test]
    fn a_run_whose_ledger_cant_be_kept_is_not_begun() {
        let ledger = Some("/nonexistent/ledger".into());
        let workload = Workload { verify: true, ledger, ..Workload::default() };
        assert!(matches!(open(&workload, 8), Err(LedgerFileError::Io { .. })));
    }
}
