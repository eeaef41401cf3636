//! Images of volumes and snapshots, to whatever can be written and from whatever can be read.

use std::io::{Read, Write};
use std::sync::Arc;

use super::block_on::block_on;
use super::pool::{Inner, Pool};
use super::volume::Volume;
use crate::image::copy::{Change, ExportError, Source, Target};
use crate::image::format::Header;
use crate::image::restore::{Keep, RestoreError, Restored, restore};
use crate::image::save::{SaveError, Saving};
use crate::image::store::{Changes, SnapshotFacts, Store, VolumeFacts};
use crate::image::{Compression, ImageReader, ImageWriter};
use crate::node::{ControlError, DiffKind, IoError, NewSnapshot, Shrink, SnapshotStatus};

/// What went wrong with the pool that an image is of, or is brought to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImagePoolError {
    /// Something about its volumes and snapshots.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Reading or writing one of them.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// Why an image was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageExportError {
    /// There is nothing of that name.
    #[error(transparent)]
    Subject(#[from] SaveError<ImagePoolError>),
    /// It broke off.
    #[error(transparent)]
    Copy(#[from] ExportError<ImagePoolError>),
}

impl Pool {
    /// Writes an image of `subject`: a snapshot, `VOLUME@SNAPSHOT`, or a volume as it is now. With `base`,
    /// `VOLUME@SNAPSHOT`, only of what has changed since. `docs/formats/image.md` has the format, which is that
    /// of `flagstone export`; what is written is neither buffered nor flushed here.
    ///
    /// Of a volume a snapshot is taken, and deleted afterwards.
    ///
    /// It waits for the pool and for `to`; don't call it where a future must not block.
    ///
    /// # Errors
    /// [`ImageExportError`].
    ///
    /// ```
    /// # let directory = tempfile::tempdir()?;
    /// # let path = directory.path().join("pool");
    /// use flagstone::image::Compression;
    /// use flagstone::{CreateOptions, Pool};
    ///
    /// # let options = CreateOptions { size_bytes: Some(64 << 20), ..CreateOptions::default() };
    /// let pool = Pool::create(&path, &options)?;
    /// let volume = pool.create_volume("data", 16 << 20)?;
    /// volume.write(4096, b"hello")?;
    /// let mut image = Vec::new();
    /// pool.export("data", None, &mut image, Compression::None)?;
    /// pool.import(&image[..], "copy", &Default::default())?;
    /// let mut hello = [0; 5];
    /// pool.volume("copy")?.read(4096, &mut hello)?;
    /// assert_eq!(&hello, b"hello");
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn export(
        &self,
        subject: &str,
        base: Option<&str>,
        to: impl Write,
        compression: Compression,
    ) -> Result<Header, ImageExportError> {
        let store = PoolStore(self.clone());
        let saving = Saving::begin(&store, subject, base, None)?;
        let mut writer =
            ImageWriter::begin(to, saving.header(), compression).map_err(ExportError::Stream)?;
        saving.run(&mut writer, |_| {})?;
        writer.finish().map_err(ExportError::Stream)?;
        let header = saving.header().clone();
        saving.close().map_err(SaveError::Store)?;
        Ok(header)
    }

    /// Brings the image that `from` gives to the volume `name`, which a full image makes. An increment goes to
    /// the volume that its base was brought to, or that it is of, as long as that has not changed since.
    /// Everything is verified before it is written. At the end a snapshot is taken, as `keep` says.
    ///
    /// Called again with the same image, it goes on where it was interrupted.
    ///
    /// It waits for the pool and for `from`; don't call it where a future must not block.
    ///
    /// # Errors
    /// [`RestoreError`]. Nothing was written that had not been verified.
    pub fn import(
        &self,
        from: impl Read,
        name: &str,
        keep: &Keep,
    ) -> Result<Restored, RestoreError<ImagePoolError>> {
        let mut reader = ImageReader::open(from)?;
        restore(&PoolStore(self.clone()), &mut reader, name, keep, |_| {})
    }
}

/// A pool of this process, as images want it.
struct PoolStore(Pool);

impl PoolStore {
    fn inner(&self) -> &Arc<Inner> {
        self.0.inner()
    }
}

fn facts(status: SnapshotStatus) -> SnapshotFacts {
    let idle = status.connections == 0;
    SnapshotFacts { name: status.name, uuid: status.uuid, size_bytes: status.size_bytes, idle }
}

impl Store for PoolStore {
    type Error = ImagePoolError;
    type Access = Access;

    fn volume(&self, name: &str) -> Result<Option<VolumeFacts>, ImagePoolError> {
        match block_on(self.inner().node.volume(name.to_owned())) {
            Ok(volume) => Ok(Some(VolumeFacts {
                uuid: volume.uuid,
                size_bytes: volume.size_bytes,
                empty: volume.mapped_bytes == 0 && volume.kept_bytes == 0,
            })),
            Err(ControlError::NoSuchVolume { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn snapshots(&self, volume: &str) -> Result<Vec<SnapshotFacts>, ImagePoolError> {
        Ok(self.0.snapshots(Some(volume))?.into_iter().map(facts).collect())
    }

    fn create_volume(&self, name: &str, size_bytes: u64) -> Result<(), ImagePoolError> {
        self.0.create_volume(name, size_bytes)?;
        Ok(())
    }

    fn resize_volume(&self, name: &str, size_bytes: u64) -> Result<(), ImagePoolError> {
        Ok(self.0.resize_volume(name, size_bytes, Shrink::Discard)?)
    }

    fn take_snapshot(
        &self,
        volume: &str,
        name: &str,
        uuid: [u8; 16],
    ) -> Result<(), ImagePoolError> {
        let new = NewSnapshot { volume: volume.to_owned(), name: name.to_owned(), uuid };
        block_on(self.inner().node.take_snapshots(vec![new]))?;
        Ok(())
    }

    fn delete_snapshot(&self, name: &str) -> Result<(), ImagePoolError> {
        match self.0.delete_snapshot(name) {
            Ok(()) | Err(ControlError::NoSuchSnapshot { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn changes(&self, older: Option<&str>, newer: &str) -> Changes<ImagePoolError> {
        Box::new(self.0.diff(older, newer).map(|extent| {
            let extent = extent?;
            let zeroes = extent.kind == DiffKind::Zero;
            Ok(Change { offset: extent.offset, length: extent.len, zeroes })
        }))
    }

    fn open(&self, name: &str) -> Result<Access, ImagePoolError> {
        let volume = match name.contains('@') {
            true => self.0.snapshot(name)?,
            false => self.0.volume(name)?,
        };
        Ok(Access { volume, asked: Default::default() })
    }
}

/// An open volume or snapshot.
struct Access {
    volume: Volume,
    asked: std::collections::VecDeque<(u64, u32)>,
}

impl Source for Access {
    type Error = ImagePoolError;

    fn ask(&mut self, offset: u64, length: u32) -> Result<(), ImagePoolError> {
        self.asked.push_back((offset, length));
        Ok(())
    }

    fn take(&mut self) -> Result<Vec<u8>, ImagePoolError> {
        let Some((offset, length)) = self.asked.pop_front() else { return Ok(Vec::new()) };
        Target::read(self, offset, length)
    }
}

impl Target for Access {
    type Error = ImagePoolError;

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), ImagePoolError> {
        Ok(self.volume.write(offset, data)?)
    }

    fn zeroes(&mut self, offset: u64, length: u64) -> Result<(), ImagePoolError> {
        // A discard of whole blocks, which reads as zeroes.
        Ok(self.volume.discard(offset, length)?)
    }

    fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, ImagePoolError> {
        Ok(block_on(self.volume.read_async(offset, vec![0; length as usize]))?)
    }

    fn flush(&mut self) -> Result<(), ImagePoolError> {
        Ok(self.volume.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CreateOptions, SnapshotStatus};

    const MIB: u64 = 1 << 20;

    fn pool(directory: &tempfile::TempDir, name: &str) -> Pool {
        let size_bytes = Some(256 * MIB);
        let options = CreateOptions { size_bytes, ..CreateOptions::default() };
        Pool::create(directory.path().join(name), &options).expect("nothing is there")
    }

    fn content(pool: &Pool, name: &str) -> Vec<u8> {
        let volume = match name.contains('@') {
            true => pool.snapshot(name).expect("it is there"),
            false => pool.volume(name).expect("it is there"),
        };
        let mut bytes = vec![0; volume.size() as usize];
        volume.read(0, &mut bytes).expect("it lies in the volume");
        bytes
    }

    fn exported(pool: &Pool, subject: &str, base: Option<&str>) -> Vec<u8> {
        let mut image = Vec::new();
        pool.export(subject, base, &mut image, Compression::Zstd(1)).expect("it is there");
        image
    }

    fn snapshots(pool: &Pool, volume: &str) -> Vec<SnapshotStatus> {
        pool.snapshots(Some(volume)).expect("it is open")
    }

    #[test]
    fn a_chain_of_images_makes_the_same_snapshots() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (source, target) = (pool(&directory, "source"), pool(&directory, "target"));
        let volume = source.create_volume("v", 8 * MIB).expect("there is room");
        volume.write(5000, &vec![1; 3_000_000]).expect("there is room");
        volume.snapshot("a").expect("there is room");
        volume.write(MIB, &[2; 10_000]).expect("there is room");
        volume.discard(2 * MIB, 8192).expect("it lies in the volume");
        volume.write_zeroes(7 * MIB, 8192).expect("it lies in the volume");
        source.resize_volume("v", 16 * MIB, Shrink::Never).expect("there is room");
        let volume = source.volume("v").expect("it is there");
        volume.write(15 * MIB, &[3; 4096]).expect("there is room");
        volume.snapshot("b").expect("there is room");
        source.resize_volume("v", 4 * MIB, Shrink::Discard).expect("told to");
        volume.write(0, &[4; 4096]).expect("there is room");
        volume.snapshot("c").expect("there is room");

        let chain = [
            ("a", exported(&source, "v@a", None)),
            ("b", exported(&source, "v@b", Some("v@a"))),
            ("c", exported(&source, "v@c", Some("v@b"))),
        ];
        let missing = target.import(&chain[1].1[..], "v", &Keep::AsItWas);
        assert!(matches!(missing, Err(RestoreError::NoVolume { .. })), "{missing:?}");
        for (i, (name, image)) in chain.iter().enumerate() {
            for was_there in [false, true] {
                let restored = target.import(&image[..], "v", &Keep::AsItWas);
                let restored = restored.expect("it fits");
                assert_eq!(restored.snapshot, Some(format!("v@{name}")));
                assert_eq!((restored.was_there, restored.resumed), (was_there, false));
            }
            let (ours, theirs) = (snapshots(&source, "v"), snapshots(&target, "v"));
            assert_eq!(theirs.len(), i + 1);
            for (ours, theirs) in ours.iter().zip(&theirs) {
                let facts =
                    |s: &SnapshotStatus| (s.name.clone(), s.uuid, s.size_bytes, s.mapped_bytes);
                assert_eq!(facts(ours), facts(theirs));
                assert!(content(&source, &ours.name) == content(&target, &ours.name), "{name}");
            }
        }
        // In one step; and of what has no snapshot.
        target.import(&chain[0].1[..], "w", &Keep::AsItWas).expect("it makes a volume");
        let image = exported(&source, "v@c", Some("v@a"));
        let keep = Keep::Named("other".to_owned());
        target.import(&image[..], "w", &keep).expect("it fits");
        assert!(content(&source, "v@c") == content(&target, "w@other"));
        volume.write(MIB, &[5; 4096]).expect("there is room");
        let image = exported(&source, "v", Some("v@c"));
        let restored = target.import(&image[..], "w", &Keep::AsItWas).expect("it fits");
        assert_eq!((restored.snapshot, restored.imported.totals.data_bytes), (None, 4096));
        assert!(content(&source, "v") == content(&target, "w"));
        assert_eq!((snapshots(&source, "v").len(), snapshots(&target, "w").len()), (3, 2));

        // What does not fit is refused, and leaves nothing behind.
        let refused = |image: &[u8], name: &str| {
            let before = content(&target, name);
            let error = target.import(image, name, &Keep::AsItWas).expect_err("it does not fit");
            assert!(content(&target, name) == before);
            assert!(!snapshots(&target, name).iter().any(|s| s.name.contains("importing")));
            error
        };
        let error = refused(&image, "w");
        assert!(matches!(error, RestoreError::Changed { offset: MIB, .. }), "{error}");
        target.create_volume("other", 4 * MIB).expect("there is room");
        let error = refused(&image, "other");
        assert!(matches!(error, RestoreError::WrongBase { .. }), "{error}");
        target.volume("other").expect("it is there").write(0, b"x").expect("there is room");
        let error = refused(&exported(&source, "v", None), "other");
        assert!(matches!(error, RestoreError::Exists { .. }), "{error}");
        target.resize_volume("v", 8 * MIB, Shrink::Never).expect("there is room");
        let error = refused(&image, "v");
        assert!(matches!(error, RestoreError::Resized { .. }), "{error}");
        let long = "x".repeat(120);
        let error = target.import(&chain[0].1[..], &long, &Keep::AsItWas).expect_err("too long");
        assert!(matches!(error, RestoreError::Name { .. }), "{error}");
        assert!(target.volume(&long).is_err(), "it was made");
        let gone = source.export("v@nobody", None, std::io::sink(), Compression::None);
        assert!(matches!(gone, Err(ImageExportError::Subject(SaveError::NoSnapshot { .. }))));
        let gone = source.export("v", Some("nobody@a"), std::io::sink(), Compression::None);
        assert!(matches!(gone, Err(ImageExportError::Subject(SaveError::NoSnapshot { .. }))));
    }

    #[test]
    fn an_image_that_is_cut_off_is_gone_on_with() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (source, target) = (pool(&directory, "source"), pool(&directory, "target"));
        let volume = source.create_volume("v", 8 * MIB).expect("there is room");
        let noise: Vec<u8> = (0..8 * MIB).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
        volume.write(0, &noise).expect("there is room");
        volume.snapshot("a").expect("there is room");
        let mut image = Vec::new();
        source.export("v@a", None, &mut image, Compression::None).expect("it is there");
        let mut longest = 0;
        for cut in (512..image.len()).step_by(1_500_000).chain([image.len() - 1]) {
            let error = target.import(&image[..cut], "c", &Keep::AsItWas).expect_err("it is cut");
            assert!(matches!(error, RestoreError::Image(_)), "{error}");
            // Marked, and not taken for whole.
            let marks = snapshots(&target, "c");
            assert_eq!(marks.len(), 1);
            assert!(marks[0].name.starts_with("c@importing-"), "{}", marks[0].name);
            let mapped = target.volume("c").and_then(|_| target.volumes()).expect("it is there");
            longest = longest.max(mapped[0].mapped_bytes);
        }
        let other = exported(&source, "v", None);
        let error = target.import(&other[..], "c", &Keep::AsItWas).expect_err("it is another");
        assert!(matches!(error, RestoreError::OtherImport { .. }), "{error}");
        let restored = target.import(&image[..], "c", &Keep::AsItWas).expect("it is whole");
        assert!(restored.resumed && !restored.was_there);
        assert_eq!(restored.imported.kept_bytes, longest);
        assert!(content(&target, "c@a") == noise);
        assert_eq!(snapshots(&target, "c").len(), 1);

        // Somebody else's writes are found.
        let cut = &image[..image.len() - 3_000_000];
        target.import(cut, "d", &Keep::AsItWas).expect_err("it is cut");
        let volume = target.volume("d").expect("it is there");
        let after = exported(&source, "v@a", None);
        volume.write(7 * MIB, &[9; 4096]).expect("there is room");
        let restored = target.import(&after[..], "d", &Keep::AsItWas).expect("it is overwritten");
        assert!(restored.resumed);
        assert!(content(&target, "d@a") == noise);
    }

    #[test]
    fn foreign_writes_are_found() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let pool = pool(&directory, "pool");
        let volume = pool.create_volume("v", 8 * MIB).expect("there is room");
        volume.write(0, &vec![7; 3 << 20]).expect("there is room");
        volume.snapshot("a").expect("there is room");
        let mut image = Vec::new();
        pool.export("v@a", None, &mut image, Compression::None).expect("it is there");
        pool.import(&image[..2_000_000], "c", &Keep::AsItWas).expect_err("it is cut");
        let copy = pool.volume("c").expect("it is there");
        copy.write(5 * MIB, &[9; 4096]).expect("there is room");
        let error = pool.import(&image[..], "c", &Keep::AsItWas).expect_err("it was written to");
        let foreign = matches!(error, RestoreError::Foreign { offset, .. } if offset == 5 * MIB);
        assert!(foreign, "{error}");
        copy.discard(5 * MIB, 4096).expect("it lies in the volume");
        pool.import(&image[..], "c", &Keep::AsItWas).expect("it is as it was");
        assert!(content(&pool, "c") == content(&pool, "v"));
    }
}
