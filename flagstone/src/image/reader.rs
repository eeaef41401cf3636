//! Reading an image stream, verifying as it goes.
//!
//! Invariants:
//! 1. What [`ImageReader::next`] hands out was verified: its checksum, its place in the chain, that it lies
//!    in the volume and behind everything before it.
//! 2. Memory is two chunks, whatever the stream says.
//! 3. `None` means that the whole stream was there: totals as in the end record, and nothing behind it.

use std::io::{self, Read};

use zstd::bulk::Decompressor;

use super::ImageError;
use super::format::{CHUNK_BYTES, HEADER_BYTES, Header, RECORD_BYTES, Record, Stored, Totals};

/// A part of the image, in the order of offsets; what lies in none is as in the base, and zeroes in a
/// full image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent<'a> {
    /// Data: whole blocks, up to [`CHUNK_BYTES`].
    Data {
        /// First byte in the volume.
        offset: u64,
        /// What is there.
        data: &'a [u8],
    },
    /// Zeroes where the base may have data.
    Zeroes {
        /// First byte in the volume.
        offset: u64,
        /// Bytes.
        length: u64,
    },
}

/// How far a stream got: enough to go on writing it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Bytes of the stream up to the end of its last whole record, before the end record.
    pub stream_bytes: u64,
    /// Where the last record ends in the volume.
    pub end_offset: u64,
    /// Checksum of the last record, or of the header.
    pub crc: u32,
    /// Sums over the records.
    pub totals: Totals,
}

/// A stream that is being read.
pub struct ImageReader<R> {
    from: R,
    header: Header,
    tail: Tail,
    decompressor: Option<Decompressor<'static>>,
    payload: Vec<u8>,
    data: Vec<u8>,
    ended: bool,
}

impl<R> std::fmt::Debug for ImageReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { header, tail, .. } = self;
        f.debug_struct("ImageReader")
            .field("header", header)
            .field("tail", tail)
            .finish_non_exhaustive()
    }
}

impl<R: Read> ImageReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`ImageError`]: it is none, or of another version, or damaged, or can't be read.
    pub fn open(mut from: R) -> Result<Self, ImageError> {
        let mut bytes = [0; HEADER_BYTES];
        let got = read_fully(&mut from, &mut bytes)?;
        if got < HEADER_BYTES {
            // Too short for one; but if it began as one, that is what the user wants to know.
            let begun = got >= 8 && bytes[..8] == super::format::MAGIC;
            let truncated = ImageError::Truncated { at: got as u64 };
            return Err(if begun { truncated } else { ImageError::NotAnImage });
        }
        let (header, crc) = Header::decode(&bytes)?;
        let tail = Tail {
            stream_bytes: HEADER_BYTES as u64,
            end_offset: 0,
            crc,
            totals: Totals::default(),
        };
        let (payload, data) = (Vec::new(), Vec::new());
        Ok(Self { from, header, tail, decompressor: None, payload, data, ended: false })
    }

    /// What the image is of.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How far the stream was read and verified.
    #[must_use]
    pub fn tail(&self) -> Tail {
        self.tail
    }

    /// The next extent, verified; `None` at the end of a whole stream.
    ///
    /// # Errors
    /// [`ImageError`]: the stream is cut off or damaged at the place that is named, or can't be read.
    /// What was handed out before is right nevertheless.
    #[expect(clippy::should_implement_trait, reason = "what it lends ends with the next call")]
    pub fn next(&mut self) -> Result<Option<Extent<'_>>, ImageError> {
        if self.ended {
            return Ok(None);
        }
        let at = self.tail.stream_bytes;
        let damaged = |what| ImageError::Damaged { at, what };
        let mut bytes = [0; RECORD_BYTES];
        self.fill_record(&mut bytes)?;
        let (record, crc) = Record::decode(&bytes, self.tail.crc).map_err(damaged)?;
        let mut totals = self.tail.totals;
        let (offset, length, stored_bytes) = match record {
            Record::End(said) => {
                if said != totals || totals.data_bytes != self.header.data_bytes {
                    return Err(damaged("the totals are not those of what came before"));
                }
                if read_fully(&mut self.from, &mut [0])? != 0 {
                    return Err(ImageError::Trailing { at: at + RECORD_BYTES as u64 });
                }
                self.ended = true;
                return Ok(None);
            }
            Record::Data { offset, length, stored_bytes, .. } => {
                totals.data_bytes = totals.data_bytes.saturating_add(u64::from(length));
                (offset, u64::from(length), stored_bytes)
            }
            Record::Zeroes { offset, length } => {
                totals.zero_bytes = totals.zero_bytes.saturating_add(length);
                (offset, length, 0)
            }
        };
        totals.records += 1;
        if offset < self.tail.end_offset {
            return Err(damaged("the record overlaps the one before"));
        }
        let end = offset.checked_add(length).filter(|&end| end <= self.header.size_bytes);
        let end_offset = end.ok_or(damaged("the record lies outside the volume"))?;
        if let Record::Data { length, stored, payload_crc, .. } = record {
            self.payload.resize(stored_bytes as usize, 0);
            let got = read_fully(&mut self.from, &mut self.payload)?;
            if got < self.payload.len() {
                return Err(ImageError::Truncated { at: at + (RECORD_BYTES + got) as u64 });
            }
            if crc32fast::hash(&self.payload) != payload_crc {
                return Err(damaged("the checksum of the data does not match"));
            }
            if stored == Stored::Zstd {
                self.decompress(length as usize).map_err(damaged)?;
            } else {
                std::mem::swap(&mut self.payload, &mut self.data);
            }
        }
        let stream_bytes = at + RECORD_BYTES as u64 + u64::from(stored_bytes);
        self.tail = Tail { stream_bytes, end_offset, crc, totals };
        Ok(Some(match record {
            Record::Data { .. } => Extent::Data { offset, data: &self.data },
            _ => Extent::Zeroes { offset, length },
        }))
    }

    /// Reads everything that is left, and hands nothing out.
    ///
    /// # Errors
    /// As [`ImageReader::next`].
    pub fn verify(&mut self) -> Result<Totals, ImageError> {
        while self.next()?.is_some() {}
        Ok(self.tail.totals)
    }

    fn fill_record(&mut self, bytes: &mut [u8; RECORD_BYTES]) -> Result<(), ImageError> {
        let got = read_fully(&mut self.from, bytes)?;
        if got < RECORD_BYTES {
            return Err(ImageError::Truncated { at: self.tail.stream_bytes + got as u64 });
        }
        Ok(())
    }

    fn decompress(&mut self, length: usize) -> Result<(), &'static str> {
        let decompressor = match &mut self.decompressor {
            Some(decompressor) => decompressor,
            none => {
                let new = Decompressor::new().map_err(|_| "there is no memory to decompress")?;
                none.insert(new)
            }
        };
        self.data.resize(length, 0);
        match decompressor.decompress_to_buffer(&self.payload, &mut self.data[..]) {
            Ok(got) if got == length => Ok(()),
            _ => Err("the compressed data don't decompress to what they were"),
        }
    }
}

const _: () = assert!(CHUNK_BYTES <= u32::MAX as usize);

/// Fills `into` as far as the stream goes; how far.
fn read_fully(from: &mut impl Read, into: &mut [u8]) -> Result<usize, ImageError> {
    let mut got = 0;
    while got < into.len() {
        match from.read(&mut into[got..]) {
            Ok(0) => break,
            Ok(bytes) => got += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ImageError::Read(error)),
        }
    }
    Ok(got)
}
