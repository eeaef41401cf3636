//! Restoring: which volume an image is brought to, that it fits there, and what an interrupted import left.
//!
//! An import marks the volume with a snapshot, `importing-...`, of what was there when it began; it is deleted
//! when the image is whole and durable. So an interrupted one is seen by everybody, belongs to one image (the
//! marker's identity is made from those of the image and its base), and can be gone on with: what differs from
//! the marker has been written.
//!
//! The snapshot that is taken at the end has the identity of the one that the image is of. That is how an
//! increment finds its base.
//!
//! Invariants:
//! 1. A full image goes to a volume that was made for it, or was never written to.
//! 2. An increment goes to a volume that does not differ from the base: it has a snapshot of the base's
//!    identity, and every block is as in that.
//! 3. The volume has the snapshot of the image if and only if it had the whole content of the image then.

use std::io::Read;

use super::copy::{ImportError, Imported, import};
use super::format::{Base, Header};
use super::save::{self, within};
use super::store::{SnapshotFacts, Store, VolumeFacts};
use super::{ImageError, ImageReader};
use crate::name::{SnapshotNameError, split_snapshot_name};

/// What the names of markers begin with; a number follows.
const IMPORTING: &str = "importing-";

/// What snapshot is taken when an image is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// One of the name that it had; none if the image is of a volume itself.
    #[default]
    AsItWas,
    /// One of this name.
    Named(String),
    /// None: no increment can follow.
    Nothing,
}

/// Why an image was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError<E> {
    /// The stream is not what it should be.
    #[error("the image can't be used: {0}")]
    Image(#[from] ImageError),
    /// The store says no.
    #[error(transparent)]
    Store(E),
    /// A snapshot that is to be taken can't have its name.
    #[error("{name}: {source}")]
    Name {
        /// `VOLUME@SNAPSHOT`: that of the image, or the marker.
        name: String,
        /// What is wrong with it.
        source: SnapshotNameError,
    },
    /// There is a volume of that name already.
    #[error(
        "there is a volume {name} already: a full image makes a volume, or fills one of its size that was \
         never written to; choose another name, or delete it first"
    )]
    Exists {
        /// Its name.
        name: String,
    },
    /// An increment needs a volume.
    #[error(
        "there is no volume {name}: this is an increment on {base}, which has to be imported there first"
    )]
    NoVolume {
        /// Its name.
        name: String,
        /// What the base was called.
        base: String,
    },
    /// The volume does not have the snapshot that the increment begins at.
    #[error(
        "this is an increment on {base} ({uuid}), and {name} has no snapshot of that identity: import \
         the image of {base} first"
    )]
    WrongBase {
        /// The volume's name.
        name: String,
        /// What the base was called.
        base: String,
        /// Its identity.
        uuid: uuid::Uuid,
    },
    /// The volume is not as it was at the base.
    #[error(
        "{name} has changed since {base}, at byte {offset}: an increment can only be brought to a volume \
         that is as its base; `flagstone volume rollback {base}` makes it so, and keeps what it has as a \
         snapshot"
    )]
    Changed {
        /// The volume's name.
        name: String,
        /// The base's name there.
        base: String,
        /// The first place that differs, in bytes.
        offset: u64,
    },
    /// The volume has another size than the base.
    #[error(
        "{name} has been resized since {base}: an increment can only be brought to a volume that is as \
         its base"
    )]
    Resized {
        /// The volume's name.
        name: String,
        /// The base's name there.
        base: String,
    },
    /// The import of another image was interrupted.
    #[error(
        "{marker} marks the import of another image that was interrupted: import that one again to \
         go on with it, or delete the snapshot and the volume"
    )]
    OtherImport {
        /// The marker.
        marker: String,
    },
    /// The snapshot that is to be taken is there, of something else.
    #[error(
        "there is a snapshot {name} already, of something else; choose another name for this one"
    )]
    SnapshotExists {
        /// `VOLUME@SNAPSHOT`.
        name: String,
    },
    /// Somebody else wrote to the volume.
    #[error(
        "somebody else has written to {name}, at byte {offset}, since the import of this image began; \
         it can't be gone on with"
    )]
    Foreign {
        /// The volume's name.
        name: String,
        /// Where, in bytes.
        offset: u64,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The snapshot that the volume has now: `VOLUME@SNAPSHOT`.
    pub snapshot: Option<String>,
    /// What was in the image, and how much of it was there from an interrupted import.
    pub imported: Imported,
    /// It went on where another was interrupted.
    pub resumed: bool,
    /// The volume had the image's snapshot before: nothing was changed.
    pub was_there: bool,
}

/// Brings the image that `reader` gives to the volume `name`, which a full image makes. `progress` is told how
/// many bytes of data were gone through. Called again with the same image, it goes on where it was interrupted;
/// with one that is there already it verifies the stream and is a success that changes nothing.
///
/// # Errors
/// [`RestoreError`]. Nothing that was not verified was written.
pub fn restore<S: Store, R: Read>(
    store: &S,
    reader: &mut ImageReader<R>,
    name: &str,
    keep: &Keep,
    progress: impl FnMut(u64),
) -> Result<Restored, RestoreError<S::Error>> {
    let header = reader.header().clone();
    let wanted = match keep {
        Keep::AsItWas => header.snapshot(),
        Keep::Named(name) => Some(name.as_str()),
        Keep::Nothing => None,
    };
    let wanted = wanted.map(|snapshot| format!("{name}@{snapshot}"));
    let marker = Marker::new(name, &header);
    for name in wanted.iter().chain([&marker.full_name]) {
        split_snapshot_name(name)
            .map_err(|source| RestoreError::Name { name: name.clone(), source })?;
    }
    let volume = store.volume(name).map_err(RestoreError::Store)?;
    let snapshots = match &volume {
        Some(_) => store.snapshots(name).map_err(RestoreError::Store)?,
        None => Vec::new(),
    };
    let begun = snapshots.iter().any(|snapshot| snapshot.uuid == marker.uuid);
    // The passing snapshot of an image that is being written this moment is none.
    let is_it = |there: &&SnapshotFacts| {
        there.uuid == header.snapshot_uuid && !save::is_passing(&there.name)
    };
    if let Some(there) = snapshots.iter().find(is_it) {
        // What is left of an import that was whole is its marker.
        let totals = reader.verify()?;
        if begun {
            store.delete_snapshot(&marker.full_name).map_err(RestoreError::Store)?;
        }
        let imported = Imported { totals, kept_bytes: totals.data_bytes };
        let snapshot = Some(there.name.clone());
        return Ok(Restored { snapshot, imported, resumed: begun, was_there: true });
    }
    if let Some(taken) = snapshots.iter().find(|there| Some(&there.name) == wanted.as_ref()) {
        return Err(RestoreError::SnapshotExists { name: taken.name.clone() });
    }
    let place = Place { store, name, snapshots: &snapshots, header: &header, marker: &marker };
    if !begun {
        place.prepare(volume.as_ref())?;
    }
    let size = store.volume(name).map_err(RestoreError::Store)?.map(|volume| volume.size_bytes);
    if size != Some(header.size_bytes) {
        store.resize_volume(name, header.size_bytes).map_err(RestoreError::Store)?;
    }
    let present = within(store.changes(Some(&marker.full_name), name), header.size_bytes);
    let mut target = store.open(name).map_err(RestoreError::Store)?;
    let imported = import(reader, &mut target, present, progress).map_err(|error| match error {
        ImportError::Image(error) => RestoreError::Image(error),
        ImportError::Target(error) => RestoreError::Store(error),
        ImportError::Foreign { offset } => RestoreError::Foreign { name: name.to_owned(), offset },
    })?;
    drop(target);
    if let Some((_, snapshot)) = wanted.as_deref().and_then(|wanted| wanted.split_once('@')) {
        let taken = store.take_snapshot(name, snapshot, header.snapshot_uuid);
        taken.map_err(RestoreError::Store)?;
    }
    store.delete_snapshot(&marker.full_name).map_err(RestoreError::Store)?;
    Ok(Restored { snapshot: wanted, imported, resumed: begun, was_there: false })
}

struct Marker {
    name: String,
    full_name: String,
    uuid: [u8; 16],
}

impl Marker {
    /// The identity of an image in a volume: of what it is, and on what. Not a random one, so that every
    /// stream of this image has the same.
    fn new(volume: &str, header: &Header) -> Self {
        let base = header.base.as_ref().map_or([0; 16], |base| base.uuid);
        let mut uuid: [u8; 16] =
            std::array::from_fn(|i| header.snapshot_uuid[i] ^ base[(i + 5) % 16].rotate_left(3));
        // Another one than the snapshot's own, of a full image too.
        uuid.iter_mut().zip(b"flagstone import").for_each(|(byte, salt)| *byte ^= salt);
        let name =
            format!("{IMPORTING}{}", &uuid::Uuid::from_bytes(uuid).simple().to_string()[..8]);
        Self { full_name: format!("{volume}@{name}"), name, uuid }
    }
}

/// Where an image is to go that was not begun there.
struct Place<'a, S> {
    store: &'a S,
    name: &'a str,
    snapshots: &'a [SnapshotFacts],
    header: &'a Header,
    marker: &'a Marker,
}

impl<S: Store> Place<'_, S> {
    /// Sees to it that the volume is there, fits, and is marked.
    fn prepare(&self, volume: Option<&VolumeFacts>) -> Result<(), RestoreError<S::Error>> {
        let of_other = |snapshot: &&SnapshotFacts| {
            snapshot.name.split_once('@').is_some_and(|(_, name)| name.starts_with(IMPORTING))
        };
        if let Some(other) = self.snapshots.iter().find(of_other) {
            return Err(RestoreError::OtherImport { marker: other.name.clone() });
        }
        match &self.header.base {
            None => self.prepare_full(volume),
            Some(base) => self.prepare_increment(volume, base),
        }
    }

    fn prepare_full(&self, volume: Option<&VolumeFacts>) -> Result<(), RestoreError<S::Error>> {
        let size = self.header.size_bytes;
        match volume {
            None => self.store.create_volume(self.name, size).map_err(RestoreError::Store)?,
            // One that was made and not marked yet, or by the user for this image.
            Some(volume)
                if volume.empty && volume.size_bytes == size && self.snapshots.is_empty() => {}
            Some(_) => return Err(RestoreError::Exists { name: self.name.to_owned() }),
        }
        self.mark()
    }

    fn prepare_increment(
        &self,
        volume: Option<&VolumeFacts>,
        base: &Base,
    ) -> Result<(), RestoreError<S::Error>> {
        let name = self.name.to_owned();
        let Some(volume) = volume else {
            return Err(RestoreError::NoVolume { name, base: base.name.clone() });
        };
        let Some(there) = self.snapshots.iter().find(|snapshot| snapshot.uuid == base.uuid) else {
            let (base, uuid) = (base.name.clone(), uuid::Uuid::from_bytes(base.uuid));
            return Err(RestoreError::WrongBase { name, base, uuid });
        };
        if volume.size_bytes != there.size_bytes {
            return Err(RestoreError::Resized { name, base: there.name.clone() });
        }
        // The marker, not the volume, is compared: that does not change any more.
        self.mark()?;
        let first = self.store.changes(Some(&there.name), &self.marker.full_name).next();
        match first.transpose() {
            Ok(None) => Ok(()),
            other => {
                self.store.delete_snapshot(&self.marker.full_name).map_err(RestoreError::Store)?;
                Err(match other {
                    Err(error) => RestoreError::Store(error),
                    Ok(change) => {
                        let offset = change.map_or(0, |change| change.offset);
                        RestoreError::Changed { name, base: there.name.clone(), offset }
                    }
                })
            }
        }
    }

    fn mark(&self) -> Result<(), RestoreError<S::Error>> {
        let marked = self.store.take_snapshot(self.name, &self.marker.name, self.marker.uuid);
        marked.map_err(RestoreError::Store)
    }
}
