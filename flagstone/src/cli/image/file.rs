//! The file that an image is exported to. It has another name, `FILE.partial`, until it is whole and durable.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::super::Failure;
use crate::exit::Exit;
use crate::image::format::Header;
use crate::image::{ImageError, ImageReader, Tail};

/// What is read and written in one call.
pub(super) const BUFFER_BYTES: usize = 1 << 20;

/// Where an image goes, while it is not whole.
#[derive(Debug)]
pub(super) struct Partial {
    path: PathBuf,
    partial: PathBuf,
    file: File,
}

/// What was there of an image before.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) header: Header,
    pub(super) tail: Tail,
}

impl Partial {
    /// Opens, or makes, `path` with `.partial` behind its name, for this process alone. With `force`, there
    /// may be a file called `path`.
    ///
    /// # Errors
    /// There is one, another process writes the image, or it can't be made.
    pub(super) fn open(path: &Path, force: bool) -> Result<Self, Failure> {
        if path.is_dir() || path.file_name().is_none() {
            let text = format!("{} is a directory; name a file", path.display());
            return Err(Failure::new(Exit::Usage, text));
        }
        if !force && fs::symlink_metadata(path).is_ok() {
            let text = format!("{} is there already; --force replaces it", path.display());
            return Err(Failure::new(Exit::HoldsData, text));
        }
        // Not what is being served, or written to.
        if let Ok(there) = File::open(path)
            && flock(&there, FlockOperation::NonBlockingLockExclusive).is_err()
        {
            let text = format!("{} is in use, by a daemon or another program", path.display());
            return Err(Failure::new(Exit::InUse, text));
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let failed = |error: io::Error| failure(&partial, &error);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&partial).map_err(failed)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let text = format!("{}: another export is writing it", partial.display());
            return Err(Failure::new(Exit::InUse, text));
        }
        Ok(Self { path: path.to_owned(), partial, file })
    }

    /// Its name while it is not whole.
    pub(super) fn name(&self) -> &Path {
        &self.partial
    }

    /// Verifies what is there. Nothing, if there is nothing, or not even a header.
    ///
    /// # Errors
    /// It is no image, or can't be read.
    pub(super) fn begun(&self) -> Result<Option<Begun>, Failure> {
        if self.file.metadata().map_err(|error| failure(&self.partial, &error))?.len() == 0 {
            return Ok(None);
        }
        let reader = ImageReader::open(BufReader::with_capacity(BUFFER_BYTES, &self.file));
        let mut reader = match reader {
            Ok(reader) => reader,
            Err(ImageError::Truncated { .. } | ImageError::Damaged { .. }) => return Ok(None),
            Err(error) => {
                let text = format!(
                    "{}: {error}; --restart begins anew, and what it holds is lost",
                    self.partial.display()
                );
                return Err(Failure::new(Exit::HoldsData, text));
            }
        };
        // What is damaged is written anew, as what was never written.
        if let Err(ImageError::Read(error)) = reader.verify() {
            return Err(failure(&self.partial, &error));
        }
        let (header, tail) = (reader.header().clone(), reader.tail());
        Ok(Some(Begun { header, tail }))
    }

    /// Where to write what comes behind the first `bytes`; what was there is cut off.
    ///
    /// # Errors
    /// As the system says.
    pub(super) fn writer(&self, bytes: u64) -> io::Result<BufWriter<&File>> {
        self.file.set_len(bytes)?;
        (&self.file).seek(SeekFrom::Start(bytes))?;
        Ok(BufWriter::with_capacity(BUFFER_BYTES, &self.file))
    }

    /// Makes it durable and gives it its name.
    ///
    /// # Errors
    /// As the system says.
    pub(super) fn complete(self) -> Result<(), Failure> {
        self.file.sync_all().map_err(|error| failure(&self.partial, &error))?;
        fs::rename(&self.partial, &self.path).map_err(|error| failure(&self.path, &error))?;
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(|error| failure(directory, &error))
    }

    /// Removes it: nobody can go on with it.
    pub(super) fn discard(self) {
        let _ = fs::remove_file(&self.partial);
    }
}

/// What the system says of a file.
pub(super) fn failure(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Failure, format!("{}: {error}", path.display()))
}
