//! Writing an image stream.

use std::io::{self, Write};

use zstd::bulk::Compressor;

use super::format::{CHUNK_BYTES, Header, Record, Stored, Totals};
use super::reader::Tail;

/// How data are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// zstd, at this level: 1 (fast) to 19 (small).
    Zstd(u8),
}

/// A stream that is being written. Records must come in the order of their offsets.
pub struct ImageWriter<W> {
    to: W,
    tail: Tail,
    compressor: Option<Compressor<'static>>,
    scratch: Vec<u8>,
}

impl<W> std::fmt::Debug for ImageWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageWriter").field("tail", &self.tail).finish_non_exhaustive()
    }
}

impl<W: Write> ImageWriter<W> {
    /// Begins a stream: writes the header.
    ///
    /// # Errors
    /// As `to` says, or there is no memory for the compressor.
    pub fn begin(mut to: W, header: &Header, compression: Compression) -> io::Result<Self> {
        let bytes = header.encode();
        to.write_all(&bytes)?;
        let tail = Tail {
            stream_bytes: bytes.len() as u64,
            end_offset: 0,
            crc: u32::from_le_bytes([bytes[508], bytes[509], bytes[510], bytes[511]]),
            totals: Totals::default(),
        };
        Self::resume(to, tail, compression)
    }

    /// Goes on behind the last whole record of a stream; `to` must be there.
    ///
    /// # Errors
    /// There is no memory for the compressor.
    pub fn resume(to: W, tail: Tail, compression: Compression) -> io::Result<Self> {
        let compressor = match compression {
            Compression::None => None,
            Compression::Zstd(level) => Some(Compressor::new(i32::from(level))?),
        };
        Ok(Self { to, tail, compressor, scratch: Vec::new() })
    }

    /// How far the stream got.
    #[must_use]
    pub fn tail(&self) -> Tail {
        self.tail
    }

    /// Appends data: whole blocks, [`CHUNK_BYTES`] at most, behind everything before.
    ///
    /// # Errors
    /// As the stream says.
    pub fn data(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        debug_assert!(data.len() <= CHUNK_BYTES && offset >= self.tail.end_offset);
        let stored = self.compress(data)?;
        let payload = if stored == Stored::Zstd { &self.scratch[..] } else { data };
        let record = Record::Data {
            offset,
            length: data.len() as u32,
            stored,
            stored_bytes: payload.len() as u32,
            payload_crc: crc32fast::hash(payload),
        };
        let (bytes, crc) = record.encode(self.tail.crc);
        self.to.write_all(&bytes)?;
        self.to.write_all(payload)?;
        self.tail.stream_bytes += (bytes.len() + payload.len()) as u64;
        self.tail.totals.data_bytes += data.len() as u64;
        self.note(offset + data.len() as u64, crc);
        Ok(())
    }

    /// Appends zeroes: whole blocks, behind everything before.
    ///
    /// # Errors
    /// As the stream says.
    pub fn zeroes(&mut self, offset: u64, length: u64) -> io::Result<()> {
        debug_assert!(length > 0 && offset >= self.tail.end_offset);
        let (bytes, crc) = Record::Zeroes { offset, length }.encode(self.tail.crc);
        self.to.write_all(&bytes)?;
        self.tail.stream_bytes += bytes.len() as u64;
        self.tail.totals.zero_bytes += length;
        self.note(offset + length, crc);
        Ok(())
    }

    /// Appends the end record, and hands back the stream.
    ///
    /// # Errors
    /// As the stream says.
    pub fn finish(mut self) -> io::Result<(W, Tail)> {
        let (bytes, crc) = Record::End(self.tail.totals).encode(self.tail.crc);
        self.to.write_all(&bytes)?;
        self.to.flush()?;
        self.tail.stream_bytes += bytes.len() as u64;
        self.tail.crc = crc;
        Ok((self.to, self.tail))
    }

    fn note(&mut self, end_offset: u64, crc: u32) {
        self.tail.end_offset = end_offset;
        self.tail.crc = crc;
        self.tail.totals.records += 1;
    }

    /// Leaves the compressed data in `scratch` if that is worth it.
    fn compress(&mut self, data: &[u8]) -> io::Result<Stored> {
        let Some(compressor) = &mut self.compressor else { return Ok(Stored::Plain) };
        self.scratch.resize(zstd::zstd_safe::compress_bound(data.len()), 0);
        let bytes = compressor.compress_to_buffer(data, &mut self.scratch[..])?;
        self.scratch.truncate(bytes);
        Ok(if bytes < data.len() { Stored::Zstd } else { Stored::Plain })
    }
}
