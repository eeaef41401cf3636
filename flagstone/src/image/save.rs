//! Saving: which snapshot an image is of, and that a passing one is deleted afterwards.
//!
//! Invariants:
//! 1. An image is of one snapshot, and says which: what goes on later, or is added to it, finds the same.
//! 2. A snapshot that was taken for the image alone is deleted when the [`Saving`] is closed or dropped. One
//!    whose process was killed is deleted by the next export of its volume, or gone on with.

use std::io::Write;
use std::process;

use super::ImageWriter;
use super::copy::{Change, ExportError, export};
use super::format::{Base, Header};
use super::store::{SnapshotFacts, Store};

/// What the names of passing snapshots begin with; the process and a number follow.
const PASSING: &str = "export-";

/// Why nothing can be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError<E> {
    /// The store says no.
    #[error(transparent)]
    Store(#[from] E),
    /// There is no such volume.
    #[error("there is no volume {name}")]
    NoVolume {
        /// Its name.
        name: String,
    },
    /// There is no such snapshot.
    #[error("there is no snapshot {name}")]
    NoSnapshot {
        /// `VOLUME@SNAPSHOT`.
        name: String,
    },
}

/// An image that is being saved.
#[derive(Debug)]
pub struct Saving<'a, S: Store> {
    store: &'a S,
    header: Header,
    /// `VOLUME@SNAPSHOT`.
    subject: String,
    base: Option<String>,
    /// The subject was taken for this and is to be deleted.
    passing: bool,
}

impl<'a, S: Store> Saving<'a, S> {
    /// Begins an image of `subject`: a snapshot, `VOLUME@SNAPSHOT`, or a volume as it is now, of which a passing
    /// snapshot is taken. With `base`, `VOLUME@SNAPSHOT`, of what has changed since. If `begun` is the header
    /// of an image of the same, of which a part is there, its passing snapshot is used again.
    ///
    /// # Errors
    /// [`SaveError`].
    pub fn begin(
        store: &'a S,
        subject: &str,
        base: Option<&str>,
        begun: Option<&Header>,
    ) -> Result<Self, SaveError<S::Error>> {
        let volume_name = subject.split('@').next().unwrap_or_default();
        let volume = store.volume(volume_name)?;
        let volume = volume.ok_or_else(|| SaveError::NoVolume { name: volume_name.to_owned() })?;
        let snapshots = store.snapshots(volume_name)?;
        let base = base.map(|name| find_base(store, volume_name, &snapshots, name)).transpose()?;
        let passing = !subject.contains('@');
        let snapshot = if passing {
            let begun = begun.filter(|begun| begun.is_live()).map(|begun| begun.snapshot_uuid);
            pass(store, volume_name, &snapshots, begun)?
        } else {
            find(&snapshots, subject)?
        };
        let mut saving = Self {
            store,
            header: Header {
                volume_uuid: volume.uuid,
                snapshot_uuid: snapshot.uuid,
                base: base.clone(),
                size_bytes: snapshot.size_bytes,
                data_bytes: 0,
                name: subject.to_owned(),
            },
            subject: snapshot.name,
            base: base.map(|base| base.name),
            passing,
        };
        let mut data_bytes = 0;
        for change in saving.changes() {
            let change = change?;
            data_bytes += if change.zeroes { 0 } else { change.length };
        }
        saving.header.data_bytes = data_bytes;
        Ok(saving)
    }

    /// What the image is of, and how much.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The snapshot that was taken for this image alone.
    #[must_use]
    pub fn passing(&self) -> Option<&str> {
        self.passing.then_some(&*self.subject)
    }

    /// Appends everything that is not there yet to `writer`. `progress` is told how many bytes of data are.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn run<W: Write>(
        &self,
        writer: &mut ImageWriter<W>,
        progress: impl FnMut(u64),
    ) -> Result<(), ExportError<S::Error>> {
        let mut source = self.store.open(&self.subject).map_err(ExportError::Source)?;
        export(&mut source, self.changes(), writer, progress)
    }

    /// Deletes the passing snapshot, if there is one. What is there of the image can't be gone on with then.
    ///
    /// # Errors
    /// The store says no; it is still there.
    pub fn close(mut self) -> Result<(), S::Error> {
        self.end()
    }

    fn end(&mut self) -> Result<(), S::Error> {
        if self.passing {
            self.store.delete_snapshot(&self.subject)?;
            self.passing = false;
        }
        Ok(())
    }

    /// What goes into the image: nothing behind the end of a volume that has become smaller.
    fn changes(&self) -> impl Iterator<Item = Result<Change, S::Error>> + use<S> {
        let size = self.header.size_bytes;
        within(self.store.changes(self.base.as_deref(), &self.subject), size)
    }
}

impl<S: Store> Drop for Saving<'_, S> {
    fn drop(&mut self) {
        // Who wants to know calls `close`.
        let _ = self.end();
    }
}

/// Those of `changes` that lie before `size`.
pub(super) fn within<E>(
    changes: impl Iterator<Item = Result<Change, E>>,
    size: u64,
) -> impl Iterator<Item = Result<Change, E>> {
    changes.filter_map(move |change| match change {
        Ok(change) if change.offset >= size => None,
        Ok(change) => {
            Some(Ok(Change { length: change.length.min(size - change.offset), ..change }))
        }
        error => Some(error),
    })
}

fn find<E>(snapshots: &[SnapshotFacts], name: &str) -> Result<SnapshotFacts, SaveError<E>> {
    let found = snapshots.iter().find(|snapshot| snapshot.name == name);
    found.cloned().ok_or_else(|| SaveError::NoSnapshot { name: name.to_owned() })
}

fn find_base<S: Store>(
    store: &S,
    volume: &str,
    snapshots: &[SnapshotFacts],
    name: &str,
) -> Result<Base, SaveError<S::Error>> {
    let other = name.split('@').next().unwrap_or_default();
    let found = if other == volume {
        find(snapshots, name)?
    } else if store.volume(other)?.is_some() {
        find(&store.snapshots(other)?, name)?
    } else {
        return Err(SaveError::NoSnapshot { name: name.to_owned() });
    };
    Ok(Base { uuid: found.uuid, size_bytes: found.size_bytes, name: found.name })
}

/// A passing snapshot of `volume`: that of `begun` if it is still there, else a new one. Those of processes that
/// were killed are deleted.
fn pass<S: Store>(
    store: &S,
    volume: &str,
    snapshots: &[SnapshotFacts],
    begun: Option<[u8; 16]>,
) -> Result<SnapshotFacts, SaveError<S::Error>> {
    // Who has a part of the image to go on with knows that its writer is gone.
    let mine = |snapshot: &&SnapshotFacts| {
        begun == Some(snapshot.uuid) && passing_pid(&snapshot.name).is_some()
    };
    if let Some(snapshot) = snapshots.iter().find(mine) {
        return Ok(snapshot.clone());
    }
    for snapshot in snapshots.iter().filter(|snapshot| is_left_behind(snapshot)) {
        // It costs space, nothing else; the next one tries again.
        let _ = store.delete_snapshot(&snapshot.name);
    }
    let uuid = uuid::Uuid::new_v4();
    let short = &uuid.simple().to_string()[..8];
    let name = format!("{PASSING}{}-{short}", process::id());
    store.take_snapshot(volume, &name, *uuid.as_bytes())?;
    let name = format!("{volume}@{name}");
    let taken = store.snapshots(volume)?.into_iter().find(|snapshot| snapshot.name == name);
    taken.ok_or(SaveError::NoSnapshot { name })
}

/// Whether `name`, `VOLUME@SNAPSHOT`, is that of a passing snapshot.
pub(super) fn is_passing(name: &str) -> bool {
    passing_pid(name).is_some()
}

/// The process that took a passing snapshot; `None` for all others.
fn passing_pid(name: &str) -> Option<u32> {
    let (_, name) = name.split_once('@')?;
    let (pid, number) = name.strip_prefix(PASSING)?.split_once('-')?;
    let hexadecimal = number.len() == 8 && number.bytes().all(|b| b.is_ascii_hexdigit());
    if hexadecimal { pid.parse().ok() } else { None }
}

/// Whether it is a passing snapshot whose process is gone.
fn is_left_behind(snapshot: &SnapshotFacts) -> bool {
    passing_pid(&snapshot.name).is_some_and(|pid| {
        let runs = std::path::Path::new("/proc").join(pid.to_string()).exists();
        snapshot.idle && !runs
    })
}
