//! What saving and restoring images asks of whoever has the volumes: a daemon, or a pool in this process.

use std::error::Error;

use super::copy::{Change, Source, Target};

/// A volume, as far as an image is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeFacts {
    /// Its identity.
    pub uuid: [u8; 16],
    /// Its size in bytes.
    pub size_bytes: u64,
    /// It holds no data, and no zeroes whose space is kept.
    pub empty: bool,
}

/// A snapshot, as far as an image is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// `VOLUME@SNAPSHOT`.
    pub name: String,
    /// Its identity.
    pub uuid: [u8; 16],
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Nobody has it open, as far as can be told.
    pub idle: bool,
}

/// What differs, in the order of offsets.
pub type Changes<E> = Box<dyn Iterator<Item = Result<Change, E>>>;

/// Whoever has volumes and snapshots. All changes are durable when a method returns.
pub trait Store {
    /// Why something can't be done.
    type Error: Error;
    /// An open volume or snapshot.
    type Access: Source<Error = Self::Error> + Target<Error = Self::Error>;

    /// The volume of that name.
    ///
    /// # Errors
    /// It can't be told.
    fn volume(&self, name: &str) -> Result<Option<VolumeFacts>, Self::Error>;

    /// The snapshots of a volume that is there.
    ///
    /// # Errors
    /// It can't be told.
    fn snapshots(&self, volume: &str) -> Result<Vec<SnapshotFacts>, Self::Error>;

    /// Makes a volume.
    ///
    /// # Errors
    /// It can't be made.
    fn create_volume(&self, name: &str, size_bytes: u64) -> Result<(), Self::Error>;

    /// Gives a volume another size; what lies behind the end of a smaller one is gone.
    ///
    /// # Errors
    /// It can't have it.
    fn resize_volume(&self, name: &str, size_bytes: u64) -> Result<(), Self::Error>;

    /// Takes a snapshot with this identity.
    ///
    /// # Errors
    /// It can't be taken.
    fn take_snapshot(&self, volume: &str, name: &str, uuid: [u8; 16]) -> Result<(), Self::Error>;

    /// Deletes a snapshot, `VOLUME@SNAPSHOT`; one that is not there is deleted.
    ///
    /// # Errors
    /// It can't be deleted.
    fn delete_snapshot(&self, name: &str) -> Result<(), Self::Error>;

    /// Where `newer` differs from `older`; without that, where it has data. Both are volumes or snapshots.
    fn changes(&self, older: Option<&str>, newer: &str) -> Changes<Self::Error>;

    /// Opens a volume or snapshot.
    ///
    /// # Errors
    /// It can't be opened.
    fn open(&self, name: &str) -> Result<Self::Access, Self::Error>;
}
