//! The stream: what goes in comes out; whatever is changed of it is found; interrupted copies go on.

use std::collections::BTreeMap;
use std::convert::Infallible;

use super::copy::{Change, ImportError, Source, Target, export, import};
use super::format::{Base, CHUNK_BYTES, HEADER_BYTES, Header, LAYOUTS};
use super::{Compression, Extent, ImageError, ImageReader, ImageWriter, Tail};

const BLOCK: u64 = 4096;

fn header(size_bytes: u64, data_bytes: u64) -> Header {
    Header {
        volume_uuid: [1; 16],
        snapshot_uuid: [2; 16],
        base: None,
        size_bytes,
        data_bytes,
        name: "v@monday".to_owned(),
    }
}

fn increment(size_bytes: u64, data_bytes: u64) -> Header {
    let base = Base { uuid: [3; 16], size_bytes: BLOCK, name: "v@sunday".to_owned() };
    Header { base: Some(base), ..header(size_bytes, data_bytes) }
}

fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A volume in memory.
#[derive(Default)]
struct Memory {
    bytes: Vec<u8>,
    asked: std::collections::VecDeque<(u64, u32)>,
    /// Writes that are carried out before all others fail.
    writes_left: Option<u32>,
    writes: u32,
}

impl Memory {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::default() }
    }
}

impl Source for Memory {
    type Error = Infallible;

    fn ask(&mut self, offset: u64, length: u32) -> Result<(), Infallible> {
        self.asked.push_back((offset, length));
        Ok(())
    }

    fn take(&mut self) -> Result<Vec<u8>, Infallible> {
        let (offset, length) = self.asked.pop_front().unwrap();
        Ok(self.bytes[offset as usize..][..length as usize].to_vec())
    }
}

impl Target for Memory {
    type Error = &'static str;

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), &'static str> {
        if let Some(left) = &mut self.writes_left {
            *left = left.checked_sub(1).ok_or("interrupted")?;
        }
        self.writes += 1;
        self.bytes[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn zeroes(&mut self, offset: u64, length: u64) -> Result<(), &'static str> {
        self.bytes[offset as usize..][..length as usize].fill(0);
        Ok(())
    }

    fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, &'static str> {
        Ok(self.bytes[offset as usize..][..length as usize].to_vec())
    }

    fn flush(&mut self) -> Result<(), &'static str> {
        Ok(())
    }
}

fn data(offset: u64, length: u64) -> Change {
    Change { offset, length, zeroes: false }
}

fn zeroes(offset: u64, length: u64) -> Change {
    Change { offset, length, zeroes: true }
}

fn stream(bytes: &[u8], header: &Header, changes: &[Change], compression: Compression) -> Vec<u8> {
    let mut writer = ImageWriter::begin(Vec::new(), header, compression).unwrap();
    let mut source = Memory::new(bytes.to_vec());
    export(&mut source, changes.iter().copied().map(Ok), &mut writer, |_| {}).unwrap();
    writer.finish().unwrap().0
}

fn none() -> std::iter::Empty<Result<Change, &'static str>> {
    std::iter::empty()
}

#[test]
fn what_goes_in_comes_out() {
    let size = 5 << 20;
    let mut bytes = noise(7, size);
    bytes[1 << 20..2 << 20].fill(9);
    let changes = [
        data(0, BLOCK),
        zeroes(BLOCK, 3 * BLOCK),
        data(5 * BLOCK, 3 << 20),
        data(size - BLOCK, BLOCK),
    ];
    let total = (3 << 20) + 2 * BLOCK;
    for (compression, header) in
        [(Compression::None, header(size, total)), (Compression::Zstd(3), increment(size, total))]
    {
        let stream = stream(&bytes, &header, &changes, compression);
        let smaller = compression != Compression::None;
        assert_eq!((stream.len() as u64) < total, smaller, "{}", stream.len());
        let mut expected = vec![5; size as usize];
        for change in changes {
            let range = change.offset as usize..(change.offset + change.length) as usize;
            match change.zeroes {
                true => expected[range].fill(0),
                false => expected[range.clone()].copy_from_slice(&bytes[range]),
            }
        }
        let mut reader = ImageReader::open(&stream[..]).unwrap();
        assert_eq!(reader.header(), &header);
        let mut target = Memory::new(vec![5; size as usize]);
        let imported = import(&mut reader, &mut target, none(), |_| {}).unwrap();
        assert!(target.bytes == expected);
        assert_eq!(imported.totals.data_bytes, total);
        assert_eq!(imported.totals.zero_bytes, 3 * BLOCK);
        // Cut at multiples of a chunk: one of the first part of its chunk, two whole ones, one more.
        assert_eq!((imported.totals.records, imported.kept_bytes), (7, 0));
    }
}

fn small(compression: Compression) -> Vec<u8> {
    let mut bytes = noise(3, BLOCK);
    bytes.extend(vec![b'x'; BLOCK as usize]);
    bytes.extend(vec![0; BLOCK as usize]);
    let changes = [data(0, BLOCK), data(BLOCK, BLOCK), zeroes(2 * BLOCK, BLOCK)];
    stream(&bytes, &increment(3 * BLOCK, 2 * BLOCK), &changes, compression)
}

/// What came out before the error must be what went in.
fn read_all(stream: &[u8]) -> Result<BTreeMap<u64, u64>, ImageError> {
    let mut reader = ImageReader::open(stream)?;
    let mut extents = BTreeMap::new();
    let expected = noise(3, BLOCK);
    while let Some(extent) = reader.next()? {
        let (offset, length) = match extent {
            Extent::Data { offset, data } => {
                let good = match offset {
                    0 => data == expected,
                    BLOCK => data.iter().all(|&byte| byte == b'x'),
                    _ => false,
                };
                assert!(good, "unverified data at {offset}");
                (offset, data.len() as u64)
            }
            Extent::Zeroes { offset, length } => {
                assert_eq!((offset, length), (2 * BLOCK, BLOCK));
                (offset, length)
            }
        };
        extents.insert(offset, length);
    }
    Ok(extents)
}

#[test]
fn every_flip_and_every_cut_is_found() {
    for compression in [Compression::None, Compression::Zstd(1)] {
        let stream = small(compression);
        assert_eq!(read_all(&stream).unwrap().len(), 3);
        for at in 0..stream.len() {
            for flip in [1, 0x80, 0xff] {
                let mut damaged = stream.clone();
                damaged[at] ^= flip;
                let error = read_all(&damaged).expect_err(&format!("byte {at} ^ {flip}"));
                let cut =
                    matches!(error, ImageError::Truncated { .. } | ImageError::Trailing { .. });
                assert!(!cut, "byte {at}: {error}");
            }
            match read_all(&stream[..at]) {
                Err(ImageError::NotAnImage) => assert!(at < 8),
                Err(ImageError::Truncated { at: place }) => assert_eq!(place, at as u64),
                other => panic!("cut at {at}: {other:?}"),
            }
        }
        let longer = [&stream[..], b"\0"].concat();
        let Err(ImageError::Trailing { at }) = read_all(&longer) else { panic!("more is found") };
        assert_eq!(at, stream.len() as u64);
    }
}

#[test]
fn records_can_not_change_places() {
    let block = noise(1, BLOCK).repeat(3);
    let changes = [data(0, BLOCK), data(BLOCK, BLOCK), data(2 * BLOCK, BLOCK)];
    let stream = stream(&block, &header(3 * BLOCK, 3 * BLOCK), &changes, Compression::None);
    let record = |i: usize| {
        let from = HEADER_BYTES + i * (40 + BLOCK as usize);
        &stream[from..][..if i == 3 { 40 } else { 40 + BLOCK as usize }]
    };
    let head = &stream[..HEADER_BYTES];
    let orders: [&[usize]; 5] = [&[0, 2, 1, 3], &[0, 0, 1, 2, 3], &[0, 1, 3], &[1, 2, 3], &[3]];
    for order in orders {
        let parts = order.iter().flat_map(|&i| record(i).iter().copied());
        let mixed: Vec<u8> = head.iter().copied().chain(parts).collect();
        let mut reader = ImageReader::open(&mixed[..]).unwrap();
        assert!(matches!(reader.verify(), Err(ImageError::Damaged { .. })), "{order:?}");
    }
}

#[test]
fn a_stream_goes_on_where_it_was_cut() {
    let size = 4 << 20;
    let bytes = noise(11, size);
    let changes = [data(0, 1 << 20), zeroes(1 << 20, BLOCK), data((1 << 20) + BLOCK, 2 << 20)];
    let header = header(size, 3 << 20);
    let whole = stream(&bytes, &header, &changes, Compression::None);
    for cut in (HEADER_BYTES..whole.len()).step_by(99_991).chain([whole.len()]) {
        let part = &whole[..cut];
        let mut reader = ImageReader::open(part).unwrap();
        let truncated = matches!(reader.verify(), Err(ImageError::Truncated { .. }));
        assert_eq!(truncated, cut < whole.len());
        let tail: Tail = reader.tail();
        let kept = part[..tail.stream_bytes as usize].to_vec();
        let mut writer = ImageWriter::resume(kept, tail, Compression::None).unwrap();
        let mut source = Memory::new(bytes.clone());
        export(&mut source, changes.iter().copied().map(Ok), &mut writer, |_| {}).unwrap();
        assert!(writer.finish().unwrap().0 == whole, "cut at {cut}");
    }
}

#[test]
fn an_import_goes_on_where_it_was_interrupted() {
    let size = 8 << 20;
    let bytes = noise(13, size);
    let changes = [data(0, 5 << 20), zeroes(6 << 20, BLOCK), data(7 << 20, 1 << 20)];
    let stream = stream(&bytes, &increment(size, 6 << 20), &changes, Compression::None);
    let mut once = Memory::new(vec![5; size as usize]);
    import(&mut ImageReader::open(&stream[..]).unwrap(), &mut once, none(), |_| {}).unwrap();
    for writes in 0..6 {
        let mut target = Memory::new(vec![5; size as usize]);
        target.writes_left = Some(writes);
        let mut reader = ImageReader::open(&stream[..]).unwrap();
        let error = import(&mut reader, &mut target, none(), |_| {}).unwrap_err();
        assert!(matches!(error, ImportError::Target("interrupted")), "{error:?}");
        target.writes_left = None;
        let before = target.writes;
        // Besides what was written, part of a chunk that was under way, in two pieces.
        let written = u64::from(writes.min(5)) << 20;
        let mut present =
            vec![data(0, written), data(written, BLOCK), data(written + BLOCK, BLOCK)];
        if writes == 5 {
            present.truncate(1);
        }
        present.retain(|change| change.length > 0);
        let mut reader = ImageReader::open(&stream[..]).unwrap();
        let present = present.into_iter().map(Ok);
        let imported = import(&mut reader, &mut target, present, |_| {}).unwrap();
        assert!(target.bytes == once.bytes, "after {writes} writes");
        assert_eq!((imported.kept_bytes, target.writes - before), (written, 6 - writes));
    }
    for foreign in [(5 << 20) + BLOCK, (6 << 20) + BLOCK] {
        let mut target = Memory::new(once.bytes.clone());
        let present = [data(0, 1 << 20), data(foreign, BLOCK)].map(Ok);
        let mut reader = ImageReader::open(&stream[..]).unwrap();
        let error = import(&mut reader, &mut target, present.into_iter(), |_| {}).unwrap_err();
        assert!(matches!(error, ImportError::Foreign { offset } if offset == foreign), "{error:?}");
    }
}

#[test]
fn headers_tell_what_can_not_be() {
    let good = increment(1 << 20, CHUNK_BYTES as u64);
    assert_eq!(Header::decode(&good.encode()).unwrap().0, good);
    let live = Header { name: "v".repeat(128), ..good.clone() };
    assert!(live.is_live() && live.snapshot().is_none());
    assert_eq!(Header::decode(&live.encode()).unwrap().0, live);
    let base = |size_bytes, name: &str| Some(Base { uuid: [0; 16], size_bytes, name: name.into() });
    let bad = [
        Header { name: "a@b@c".to_owned(), ..good.clone() },
        Header { name: String::new(), ..good.clone() },
        Header { name: "a/b".to_owned(), ..good.clone() },
        Header { size_bytes: 4097, ..good.clone() },
        Header { size_bytes: 0, ..good.clone() },
        Header { size_bytes: 1 << 63, ..good.clone() },
        Header { data_bytes: (1 << 20) + 4096, ..good.clone() },
        Header { data_bytes: 1, ..good.clone() },
        Header { base: base(0, "v@a"), ..good.clone() },
        Header { base: base(4096, "v"), ..good.clone() },
    ];
    for header in bad {
        let decoded = Header::decode(&header.encode());
        assert!(matches!(decoded, Err(ImageError::Damaged { at: 0, .. })), "{header:?}");
    }
    let mut newer = good.encode();
    newer[8] = 2;
    let crc = crc32fast::hash(&newer[..508]);
    newer[508..].copy_from_slice(&crc.to_le_bytes());
    assert!(matches!(Header::decode(&newer), Err(ImageError::Version { found: 2 })));
}

#[test]
fn the_document_has_the_byte_tables() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/formats/image.md");
    let text = std::fs::read_to_string(path).unwrap();
    for layout in LAYOUTS {
        let code: Vec<_> = layout.fields.iter().map(|f| (f.offset, f.size, f.name)).collect();
        let documented = flagstone_engine::format::field::documented(&text, layout.name);
        assert_eq!(documented, code, "docs/formats/image.md: {}", layout.name);
    }
}
