//! Formatting files and block devices as a pool, without harming anything that is there.
//!
//! The order is: is the request possible at all, is the target free, does it hold anything, and
//! only then write. `force` overrides the third question, never the second.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use flagstone_block::{BLOCK_SIZE, BlockIo, DeviceError, Devices};
use flagstone_engine::{Engine, FormatError, FormatOptions, Geometry, GeometryError};
use flagstone_ring::{Allocation, CreateFileError, Device, DeviceOpenError, OpenMode, SyncDevice};

use super::offline::is_same;
use crate::exit::Exit;
use crate::probe::{self, Found, Kind, ProbeError};
use crate::progress::Progress;
use crate::size::Human;

/// Segment size unless told otherwise, in bytes.
pub const SEGMENT_BYTES_DEFAULT: u32 = 4 << 20;
/// The same for pools below [`SMALL_POOL_BYTES`]. Metadata and cleaner keep some segments for
/// themselves, of which a small pool should not consist.
pub const SEGMENT_BYTES_SMALL: u32 = 1 << 20;
/// See [`SEGMENT_BYTES_SMALL`].
pub const SMALL_POOL_BYTES: u64 = 1 << 30;

/// Bytes written between two reports of progress.
const STEP_BYTES: u64 = 4 << 20;

/// What pool to make.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// The file or block device; the first of several, which the journal goes to.
    pub path: PathBuf,
    /// The others.
    pub more: Vec<PathBuf>,
    /// Size of each file in bytes; needed if it does not exist or is empty. A device is used as it
    /// is.
    pub size_bytes: Option<u64>,
    /// Segment size in bytes, a power of two from 1 MiB to 64 MiB; `None` for what suits the size.
    pub segment_bytes: Option<u32>,
    /// Allocate and zero the whole file now.
    pub preallocate: bool,
    /// Format even if the target holds something.
    pub force: bool,
    /// Show no progress.
    pub quiet: bool,
}

/// A pool that was made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CreatedPool {
    /// As given.
    pub path: PathBuf,
    /// Its identity.
    pub uuid: String,
    /// Its files and devices, in the order of their numbers.
    pub devices: Vec<CreatedDevice>,
    /// Size of all of them.
    pub size_bytes: u64,
    /// Bytes of data that its segments can hold, some of which metadata takes.
    pub capacity_bytes: u64,
    /// Segment size.
    pub segment_bytes: u32,
    /// Number of segments.
    pub segments: u32,
    /// What was there and was overwritten by force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overwritten: Option<String>,
}

/// One device of a pool that was made.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CreatedDevice {
    /// As given.
    pub path: PathBuf,
    /// Its size.
    pub size_bytes: u64,
}

/// A file or device that is ready to be used, held so that nobody else takes it.
pub struct Target {
    /// It, opened exclusively.
    pub device: Device,
    /// What is there and is to be overwritten.
    overwritten: Option<(String, Vec<Found>)>,
    /// It was made just now.
    made: bool,
}

/// Why no pool was made. Unless it says otherwise nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// It can't be examined, or is in use.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// It holds something.
    #[error(
        "{} holds {what}. If nobody needs it any more, --force formats over it; otherwise choose \
         another path",
        path.display()
    )]
    HoldsData {
        /// The target.
        path: PathBuf,
        /// What it holds.
        what: String,
    },
    /// The same target twice.
    #[error("{} is given twice", path.display())]
    Twice {
        /// The target.
        path: PathBuf,
    },
    /// A file to be made, and no size.
    #[error(
        "{} {state}; give the pool's size with --size, for example --size 10G",
        path.display()
    )]
    SizeMissing {
        /// The target.
        path: PathBuf,
        /// "does not exist" or "is empty".
        state: &'static str,
    },
    /// A flag that is for files only.
    #[error("{} is a block device: {flag} is for files (a device is used as it is)", path.display())]
    FileOnly {
        /// The target.
        path: PathBuf,
        /// The flag.
        flag: &'static str,
    },
    /// No pool has this shape.
    #[error("{}: {source}", path.display())]
    Shape {
        /// The target.
        path: PathBuf,
        /// What does not fit.
        source: GeometryError,
    },
    /// Larger than any pool can be.
    #[error("{}: {} is too large; a pool must be smaller than 4 PiB", path.display(), Human(*size_bytes))]
    TooLarge {
        /// The target.
        path: PathBuf,
        /// The size asked for, in bytes.
        size_bytes: u64,
    },
    /// The file's directory is not there.
    #[error("{}: there is no directory {}; make it first", path.display(), directory.display())]
    NoDirectory {
        /// The target.
        path: PathBuf,
        /// What it should lie in.
        directory: PathBuf,
    },
    /// The file can't be made.
    #[error(transparent)]
    File(#[from] CreateFileError),
    /// The target can't be opened.
    #[error(transparent)]
    Open(#[from] DeviceOpenError),
    /// The file can't be resized or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The target.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Formatting failed for another reason; part of the target may have been written.
    #[error("{}: {source}", path.display())]
    Format {
        /// The target.
        path: PathBuf,
        /// The reason.
        source: FormatError,
    },
    /// The device failed; part of it may have been written.
    #[error("{}: writing failed: {source}; the target may be partly overwritten", path.display())]
    Device {
        /// The target.
        path: PathBuf,
        /// Its error.
        source: DeviceError,
    },
}

impl CreateError {
    /// The exit status that goes with it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Probe(ProbeError::InUse { .. })
            | Self::Open(DeviceOpenError::InUse { .. })
            | Self::File(CreateFileError::Open(DeviceOpenError::InUse { .. })) => Exit::InUse,
            Self::HoldsData { .. } => Exit::HoldsData,
            Self::Probe(ProbeError::Unsuitable { .. })
            | Self::Open(DeviceOpenError::Unfit { .. })
            | Self::SizeMissing { .. }
            | Self::Twice { .. }
            | Self::FileOnly { .. }
            | Self::TooLarge { .. }
            | Self::NoDirectory { .. }
            | Self::Shape { .. } => Exit::Usage,
            _ => Exit::Failure,
        }
    }
}

/// Makes a pool.
///
/// # Errors
/// [`CreateError`].
pub fn create(options: &CreateOptions) -> Result<CreatedPool, CreateError> {
    let one = options.more.is_empty();
    if let Some(size_bytes) = options.size_bytes
        && one
    {
        shape(options, &options.path, &[size_bytes])?;
    }
    let paths: Vec<&PathBuf> = std::iter::once(&options.path).chain(&options.more).collect();
    for (i, path) in paths.iter().enumerate() {
        if paths[..i].iter().any(|other| is_same(other, path)) {
            return Err(CreateError::Twice { path: (*path).clone() });
        }
    }
    let mut targets = Vec::new();
    for path in &paths {
        match prepare(options, path, one) {
            Ok(target) => targets.push(target),
            Err(error) => {
                unmake(&targets);
                return Err(error);
            }
        }
    }
    let made: Vec<PathBuf> = targets.iter().filter(|t| t.made).map(|t| t.path()).collect();
    format(options, targets).inspect_err(|_| {
        // They did not exist before; the reason is told in any case.
        made.iter().for_each(|path| drop(std::fs::remove_file(path)));
    })
}

fn unmake(targets: &[Target]) {
    for target in targets.iter().filter(|target| target.made) {
        let _ = std::fs::remove_file(target.device.path());
    }
}

impl Target {
    /// Whether the file was made just now.
    #[must_use]
    pub const fn made(&self) -> bool {
        self.made
    }

    fn path(&self) -> PathBuf {
        self.device.path().to_owned()
    }

    /// Takes away what must not be found again on a device that is used for something else, by udev
    /// for one: a pool's own structures don't cover every place where a signature may lie.
    ///
    /// # Errors
    /// [`CreateError::Device`].
    pub fn cleaned(self) -> Result<Device, CreateError> {
        let path = self.path();
        let size_bytes = self.device.size();
        let mut io = SyncDevice::new(self.device);
        for found in self.overwritten.iter().flat_map(|(_, found)| found) {
            let block = found.offset / BLOCK_SIZE as u64 * BLOCK_SIZE as u64;
            if block + BLOCK_SIZE as u64 <= size_bytes {
                io.write_at(block, &[0; BLOCK_SIZE]).map_err(|e| device_error(&path, e))?;
            }
        }
        Ok(io.into_device())
    }
}

/// Makes a file, or looks at what is there: refused if it holds anything, without `force`. With
/// `as_pool` it must have the size for a pool of its own.
///
/// # Errors
/// [`CreateError`].
pub fn prepare(options: &CreateOptions, path: &Path, as_pool: bool) -> Result<Target, CreateError> {
    match probe::kind(path) {
        Ok(Kind::File) => in_file(options, path, as_pool),
        Ok(Kind::BlockDevice) => on_device(options, path, as_pool),
        Err(ProbeError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            in_new_file(options, path)
        }
        Err(error) => Err(error.into()),
    }
}

fn in_new_file(options: &CreateOptions, path: &Path) -> Result<Target, CreateError> {
    let Some(size_bytes) = options.size_bytes else {
        let path = path.to_owned();
        return Err(CreateError::SizeMissing { path, state: "does not exist" });
    };
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty())
        && !directory.is_dir()
    {
        let (path, directory) = (path.to_owned(), directory.to_owned());
        return Err(CreateError::NoDirectory { path, directory });
    }
    let allocation =
        if options.preallocate { Allocation::Preallocated } else { Allocation::Sparse };
    let progress = Progress::bytes("allocating", size_bytes, options.quiet);
    let device =
        Device::create_file(path, size_bytes, allocation, &mut |done, _| progress.set(done))?;
    Ok(Target { device, overwritten: None, made: true })
}

fn in_file(options: &CreateOptions, path: &Path, as_pool: bool) -> Result<Target, CreateError> {
    let io_error = |source| CreateError::Io { path: path.to_owned(), source };
    // Held from the first look to the last write, so that no other process formats or serves it.
    let mut device = flagstone_nvme::open(path, OpenMode::Exclusive)?;
    let present = std::fs::metadata(path).map_err(io_error)?.len();
    if present == 0 && options.size_bytes.is_none() {
        return Err(CreateError::SizeMissing { path: path.to_owned(), state: "is empty" });
    }
    let size_bytes = options.size_bytes.unwrap_or(present);
    if as_pool {
        shape(options, path, &[size_bytes])?;
    }
    let overwritten = examine(options, path, Kind::File, present)?;
    if size_bytes != present {
        let file = File::options().write(true).open(path).map_err(io_error)?;
        file.set_len(size_bytes).map_err(io_error)?;
        // A device's size is fixed while it is open.
        drop(device);
        device = flagstone_nvme::open(path, OpenMode::Exclusive)?;
    }
    if options.preallocate {
        device = zero(options, device)?;
    }
    Ok(Target { device, overwritten, made: false })
}

fn on_device(options: &CreateOptions, path: &Path, as_pool: bool) -> Result<Target, CreateError> {
    if as_pool {
        let file_only = |flag| Err(CreateError::FileOnly { path: path.to_owned(), flag });
        if options.size_bytes.is_some() {
            return file_only("--size");
        }
        if options.preallocate {
            return file_only("--preallocate");
        }
    }
    let device = flagstone_nvme::open(path, OpenMode::Exclusive)?;
    if as_pool {
        shape(options, path, &[device.size()])?;
    }
    let overwritten = examine(options, path, Kind::BlockDevice, device.size())?;
    Ok(Target { device, overwritten, made: false })
}

impl CreateOptions {
    fn segment_bytes(&self, size_bytes: u64) -> u32 {
        let small = size_bytes < SMALL_POOL_BYTES;
        let suits = if small { SEGMENT_BYTES_SMALL } else { SEGMENT_BYTES_DEFAULT };
        self.segment_bytes.unwrap_or(suits)
    }
}

/// Whether a pool of these sizes is possible; `path` is for the message.
fn shape(options: &CreateOptions, path: &Path, sizes: &[u64]) -> Result<(), CreateError> {
    let (path, size_bytes) =
        (path.to_owned(), sizes.iter().fold(0, |a: u64, b| a.saturating_add(*b)));
    match Geometry::choose(sizes, options.segment_bytes(size_bytes)) {
        Ok(_) => Ok(()),
        // More blocks than can be numbered.
        Err(GeometryError::TooLarge) => Err(CreateError::TooLarge { path, size_bytes }),
        Err(source) => Err(CreateError::Shape { path, source }),
    }
}

/// What is on the target and may be overwritten; refused if it may not.
fn examine(
    options: &CreateOptions,
    path: &Path,
    kind: Kind,
    size_bytes: u64,
) -> Result<Option<(String, Vec<Found>)>, CreateError> {
    let progress = Progress::bytes("looking for data", size_bytes, options.quiet);
    let report = probe::examine(path, kind, &mut |done| progress.set(done))?;
    if report.is_blank() {
        return Ok(None);
    }
    let what = report.describe();
    if options.force {
        return Ok(Some((what, report.found)));
    }
    Err(CreateError::HoldsData { path: path.to_owned(), what })
}

/// Writes zeroes all over `device`, which allocates every block of a file.
fn zero(options: &CreateOptions, device: Device) -> Result<Device, CreateError> {
    let size = device.size();
    let progress = Progress::bytes("allocating", size, options.quiet);
    let zeroes = vec![0; STEP_BYTES as usize];
    let path = device.path().to_owned();
    let mut device = SyncDevice::new(device);
    let mut at = 0;
    while at < size {
        let step = STEP_BYTES.min(size - at);
        device.write_at(at, &zeroes[..step as usize]).map_err(|e| device_error(&path, e))?;
        at += step;
        progress.set(at);
    }
    Ok(device.into_device())
}

fn format(options: &CreateOptions, targets: Vec<Target>) -> Result<CreatedPool, CreateError> {
    let path = &options.path;
    let sizes: Vec<u64> = targets.iter().map(|target| target.device.size()).collect();
    shape(options, path, &sizes)?;
    let overwritten: Vec<String> =
        targets.iter().filter_map(|t| Some(t.overwritten.as_ref()?.0.clone())).collect();
    let made = targets
        .iter()
        .map(|target| CreatedDevice { path: target.path(), size_bytes: target.device.size() });
    let created: Vec<CreatedDevice> = made.collect();
    let mut devices = Devices::default();
    for (number, target) in targets.into_iter().enumerate() {
        devices.put(number, SyncDevice::new(target.cleaned()?));
    }
    let size_bytes = sizes.iter().sum();
    let uuid = uuid::Uuid::new_v4();
    let format = FormatOptions {
        pool_uuid: *uuid.as_bytes(),
        nonce: uuid::Uuid::new_v4().as_u64_pair().0,
        segment_bytes: options.segment_bytes(size_bytes),
    };
    let geometry = Engine::format(&mut devices, &format).map_err(|error| match error {
        FormatError::Geometry(source) => CreateError::Shape { path: path.clone(), source },
        FormatError::Device(source) => device_error(path, source),
        other => CreateError::Format { path: path.clone(), source: other },
    })?;
    let segment_data_bytes = u64::from(geometry.shape.data_blocks) * BLOCK_SIZE as u64;
    Ok(CreatedPool {
        path: path.clone(),
        uuid: uuid.hyphenated().to_string(),
        devices: created,
        size_bytes,
        capacity_bytes: u64::from(geometry.in_all) * segment_data_bytes,
        segment_bytes: format.segment_bytes,
        segments: geometry.in_all,
        overwritten: (!overwritten.is_empty()).then(|| overwritten.join("; ")),
    })
}

fn device_error(path: &Path, source: DeviceError) -> CreateError {
    CreateError::Device { path: path.to_owned(), source }
}
