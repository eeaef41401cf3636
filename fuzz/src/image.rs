//! Image streams: any bytes, with magic numbers, chain and checksums made right.
//!
//! The first byte of an input says what is *not* made right, zero makes everything right. Then come a header
//! and records; the payload of a record, whose length the record tells, stands behind it.

use flagstone::image::format::{
    CHUNK_BYTES, HEADER_BYTES, MAGIC, RECORD_BYTES, RECORD_MAGIC, VERSION, header, record,
};
use flagstone::image::{Compression, Extent, ImageReader, ImageWriter};
use flagstone_engine::format::field::{Field, Layout};

use crate::fixup::{field, get, put};

const LEAVE_MAGIC: u8 = 1;
const LEAVE_HEADER: u8 = 2;
const LEAVE_CHAIN: u8 = 4;
const LEAVE_PAYLOAD: u8 = 8;

/// Reads a stream; what is handed out must be in order, inside the volume, and survive a round trip.
pub fn image(input: &[u8]) {
    let Some((&leave, bytes)) = input.split_first() else { return };
    let stream = made_right(leave, bytes);
    let Ok(mut reader) = ImageReader::open(&stream[..]) else { return };
    let header = reader.header().clone();
    let mut writer = ImageWriter::begin(Vec::new(), &header, Compression::None).expect("memory");
    let mut end = 0;
    let whole = loop {
        match reader.next() {
            Ok(Some(Extent::Data { offset, data })) => {
                assert!(offset >= end && !data.is_empty() && data.len() <= CHUNK_BYTES);
                end = offset + data.len() as u64;
                writer.data(offset, data).expect("memory");
            }
            Ok(Some(Extent::Zeroes { offset, length })) => {
                assert!(offset >= end && length > 0);
                end = offset.checked_add(length).expect("inside the volume");
                writer.zeroes(offset, length).expect("memory");
            }
            Ok(None) => break true,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                break false;
            }
        }
        assert!(end <= header.size_bytes);
    };
    assert_eq!(reader.tail().totals, writer.tail().totals);
    let (again, _) = writer.finish().expect("memory");
    let mut second = ImageReader::open(&again[..]).expect("it was written");
    assert_eq!(second.header(), &header);
    // Without its end, what was read is not what the header says, unless nothing was left but the end.
    assert!(second.verify().is_ok() || !whole);
}

/// Sets a field of four bytes to a checksum of what comes before it.
fn set_crc(bytes: &mut [u8], layout: &Layout) -> u32 {
    let crc: Field = layout.fields[layout.fields.len() - 1];
    let value = crc32fast::hash(&bytes[..crc.offset]);
    put(bytes, crc, u64::from(value));
    value
}

fn made_right(leave: u8, bytes: &[u8]) -> Vec<u8> {
    let (head, mut rest) = bytes.split_at(bytes.len().min(HEADER_BYTES));
    let mut head = [head, &[0; HEADER_BYTES][head.len()..]].concat();
    if leave & LEAVE_MAGIC == 0 {
        head[..8].copy_from_slice(&MAGIC);
        put(&mut head, const { field(&header::LAYOUT, "VERSION") }, u64::from(VERSION));
        put(&mut head, const { field(&header::LAYOUT, "CHUNK_BYTES") }, CHUNK_BYTES as u64);
    }
    let mut previous = match leave & LEAVE_HEADER {
        0 => set_crc(&mut head, &header::LAYOUT),
        _ => 0,
    };
    let mut stream = head;
    while rest.len() >= RECORD_BYTES {
        let (bytes, behind) = rest.split_at(RECORD_BYTES);
        let mut bytes = bytes.to_vec();
        let stored = get(&bytes, const { field(&record::LAYOUT, "STORED") }) as usize;
        let is_data = bytes[record::LAYOUT.fields[1].offset] == 1;
        let (payload, behind) = behind.split_at(if is_data { stored.min(behind.len()) } else { 0 });
        if leave & LEAVE_MAGIC == 0 {
            bytes[..4].copy_from_slice(&RECORD_MAGIC);
        }
        if leave & LEAVE_PAYLOAD == 0 && is_data {
            let crc = u64::from(crc32fast::hash(payload));
            put(&mut bytes, const { field(&record::LAYOUT, "PAYLOAD_CRC32") }, crc);
        }
        if leave & LEAVE_CHAIN == 0 {
            let chain = const { field(&record::LAYOUT, "PREVIOUS_CRC32") };
            put(&mut bytes, chain, u64::from(previous));
            previous = set_crc(&mut bytes, &record::LAYOUT);
        }
        stream.extend(&bytes);
        stream.extend(payload);
        rest = behind;
    }
    stream.extend(rest);
    stream
}

/// Whole streams, full and incremental, plain and compressed.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    use flagstone::image::format::{Base, Header};
    let base = Base { uuid: [3; 16], size_bytes: 8192, name: "v@a".to_owned() };
    let mut all = Vec::new();
    for (base, name, compression) in [
        (None, "v@b", Compression::None),
        (Some(base.clone()), "v@b", Compression::Zstd(1)),
        (Some(base), "v", Compression::None),
    ] {
        let header = Header {
            volume_uuid: [1; 16],
            snapshot_uuid: [2; 16],
            base,
            size_bytes: 64 << 10,
            data_bytes: 8192,
            name: name.to_owned(),
        };
        let mut writer = ImageWriter::begin(vec![0], &header, compression).expect("memory");
        writer.data(4096, &[7; 4096]).expect("memory");
        writer.zeroes(8192, 8192).expect("memory");
        writer.data(32768, &[9; 4096]).expect("memory");
        all.push(writer.finish().expect("memory").0);
    }
    let whole = all[0].clone();
    all.push([&[LEAVE_CHAIN | LEAVE_HEADER], &whole[1..]].concat());
    all.push(whole[..whole.len() - 20].to_vec());
    all.push([&whole[..], &[0; 50]].concat());
    all
}
