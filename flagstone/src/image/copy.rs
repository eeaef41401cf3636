//! The two loops: from a volume to a stream, and from a stream to a volume.
//!
//! Invariants:
//! 1. Nothing is written to a volume that the reader has not verified.
//! 2. What is read ahead is at most [`AHEAD_BYTES`] in [`AHEAD_REQUESTS`] requests.
//! 3. An import that goes on where another was interrupted ends with the same volume: every extent of the
//!    stream is either found there or written, and what was changed elsewhere meanwhile is an error.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::iter::Peekable;

use super::format::{CHUNK_BYTES, Totals};
use super::{Extent, ImageError, ImageReader, ImageWriter};

/// Bytes that are asked for ahead at most.
pub const AHEAD_BYTES: u64 = 8 << 20;

/// Requests that are under way at most.
pub const AHEAD_REQUESTS: usize = 32;

/// A range of a volume that differs from its base, or has data where there is no base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// First byte, a multiple of 4096.
    pub offset: u64,
    /// Bytes, a multiple of 4096, more than none.
    pub length: u64,
    /// It reads as zeroes now.
    pub zeroes: bool,
}

/// What an image is made of: data are asked for, and taken in the same order.
pub trait Source {
    /// Why that fails.
    type Error;

    /// Asks for `length` bytes from `offset`.
    ///
    /// # Errors
    /// The source can't be reached.
    fn ask(&mut self, offset: u64, length: u32) -> Result<(), Self::Error>;

    /// Waits for what was asked for first and not taken yet.
    ///
    /// # Errors
    /// It can't be read.
    fn take(&mut self) -> Result<Vec<u8>, Self::Error>;
}

/// Where an image is brought to. What is written may be under way when a method returns; then a later one
/// tells that it failed.
pub trait Target {
    /// Why that fails.
    type Error;

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// It, or something before it, can't be written.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Self::Error>;

    /// Makes `length` bytes from `offset` zeroes that take no space.
    ///
    /// # Errors
    /// They, or something before them, can't be written.
    fn zeroes(&mut self, offset: u64, length: u64) -> Result<(), Self::Error>;

    /// Reads what is there, after everything that was written before.
    ///
    /// # Errors
    /// It can't be read, or something before can't be written.
    fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, Self::Error>;

    /// Makes everything durable that was written.
    ///
    /// # Errors
    /// Something can't be written.
    fn flush(&mut self) -> Result<(), Self::Error>;
}

/// Why an export ended early.
#[derive(Debug, thiserror::Error)]
pub enum ExportError<E> {
    /// The volume can't be read, or what has changed can't be told.
    #[error(transparent)]
    Source(E),
    /// The stream can't be written.
    #[error("the image can't be written: {0}")]
    Stream(#[source] std::io::Error),
}

/// Why an import ended early.
#[derive(Debug, thiserror::Error)]
pub enum ImportError<E> {
    /// The stream is not what it should be.
    #[error("the image can't be used: {0}")]
    Image(#[from] ImageError),
    /// The volume can't be written, or what has changed in it can't be told.
    #[error(transparent)]
    Target(E),
    /// Something was written to the volume that is not in the stream.
    #[error(
        "the volume was written to by somebody else, at byte {offset}, after the import of this image \
         had begun"
    )]
    Foreign {
        /// Where, in bytes.
        offset: u64,
    },
}

/// Appends `changes`, in the order of their offsets, to `writer`; what lies before its tail is there
/// already. `progress` is told how many bytes of the volume's data are in the stream.
///
/// # Errors
/// [`ExportError`]. The stream can be gone on with at [`ImageWriter::tail`], if it still can be written.
pub fn export<S: Source, W: Write>(
    source: &mut S,
    changes: impl Iterator<Item = Result<Change, S::Error>>,
    writer: &mut ImageWriter<W>,
    mut progress: impl FnMut(u64),
) -> Result<(), ExportError<S::Error>> {
    let skip = writer.tail().end_offset;
    let mut changes = changes.filter_map(|change| match change {
        Ok(change) => clip(change, skip).map(Ok),
        error => Some(error),
    });
    let mut pieces: VecDeque<Change> = VecDeque::new();
    let mut left: Option<Change> = None;
    let mut ahead_bytes = 0;
    loop {
        while ahead_bytes < AHEAD_BYTES && pieces.len() < AHEAD_REQUESTS {
            if left.is_none() {
                left = changes.next().transpose().map_err(ExportError::Source)?;
            }
            let Some(change) = left.take() else { break };
            let (piece, rest) = cut(change);
            left = rest;
            if !piece.zeroes {
                source.ask(piece.offset, piece.length as u32).map_err(ExportError::Source)?;
                ahead_bytes += piece.length;
            }
            pieces.push_back(piece);
        }
        let Some(piece) = pieces.pop_front() else { return Ok(()) };
        if piece.zeroes {
            writer.zeroes(piece.offset, piece.length).map_err(ExportError::Stream)?;
        } else {
            let data = source.take().map_err(ExportError::Source)?;
            ahead_bytes -= piece.length;
            writer.data(piece.offset, &data).map_err(ExportError::Stream)?;
        }
        progress(writer.tail().totals.data_bytes);
    }
}

/// What of `change` lies behind `skip`.
fn clip(change: Change, skip: u64) -> Option<Change> {
    let end = change.offset + change.length;
    let offset = change.offset.max(skip);
    (offset < end).then(|| Change { offset, length: end - offset, ..change })
}

/// The first record of `change`, and the rest: data are cut at multiples of a chunk.
fn cut(change: Change) -> (Change, Option<Change>) {
    let chunk = CHUNK_BYTES as u64;
    let room = chunk - change.offset % chunk;
    if change.zeroes || change.length <= room {
        return (change, None);
    }
    let (offset, length) = (change.offset + room, change.length - room);
    (Change { length: room, ..change }, Some(Change { offset, length, ..change }))
}

/// What an import did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Sums over the stream.
    pub totals: Totals,
    /// Bytes of data that were there already, from an import that was interrupted.
    pub kept_bytes: u64,
}

/// Brings what `reader` gives to `target`, to the end, and makes it durable.
///
/// `present` is where the target differs from what the stream begins with, in the order of offsets: nowhere,
/// unless this import was interrupted before. What is there is compared with the stream, and written only
/// where it differs. `progress` is told how many bytes of data were gone through.
///
/// # Errors
/// [`ImportError`]. What was written then is right as far as it goes; the same call with the same stream
/// goes on.
pub fn import<T: Target, R: Read>(
    reader: &mut ImageReader<R>,
    target: &mut T,
    present: impl Iterator<Item = Result<Change, T::Error>>,
    mut progress: impl FnMut(u64),
) -> Result<Imported, ImportError<T::Error>> {
    let mut present = Present { changes: present.peekable(), from: 0 };
    let mut kept_bytes = 0;
    let mut done = 0;
    while let Some(extent) = reader.next()? {
        match extent {
            Extent::Data { offset, data } => {
                let begun = present.is_within(offset, data.len() as u64)?;
                let length = data.len() as u32;
                let same =
                    begun && target.read(offset, length).map_err(ImportError::Target)?[..] == *data;
                if same {
                    kept_bytes += u64::from(length);
                } else {
                    target.write(offset, data).map_err(ImportError::Target)?;
                }
                done += u64::from(length);
                progress(done);
            }
            Extent::Zeroes { offset, length } => {
                present.is_within(offset, length)?;
                target.zeroes(offset, length).map_err(ImportError::Target)?;
            }
        }
    }
    present.is_within(u64::MAX, 0)?;
    target.flush().map_err(ImportError::Target)?;
    Ok(Imported { totals: reader.tail().totals, kept_bytes })
}

/// Goes along what has changed in the target, beside the stream.
struct Present<I: Iterator> {
    changes: Peekable<I>,
    /// What lies before is accounted for.
    from: u64,
}

impl<I, E> Present<I>
where
    I: Iterator<Item = Result<Change, E>>,
{
    /// Whether something has changed in the `length` bytes from `offset`, where the stream has an extent. A
    /// change before, where it has none, is an error.
    fn is_within(&mut self, offset: u64, length: u64) -> Result<bool, ImportError<E>> {
        let end = offset.saturating_add(length);
        let mut within = false;
        loop {
            let (first, last) = match self.changes.peek() {
                None => break,
                Some(Ok(change)) => (change.offset.max(self.from), change.offset + change.length),
                Some(Err(_)) => match self.changes.next() {
                    Some(Err(error)) => return Err(ImportError::Target(error)),
                    _ => break,
                },
            };
            if first >= last {
                self.changes.next();
                continue;
            }
            if first < offset {
                return Err(ImportError::Foreign { offset: first });
            }
            if first >= end {
                break;
            }
            within = true;
            if last > end {
                break;
            }
            self.changes.next();
        }
        self.from = end;
        Ok(within)
    }
}
