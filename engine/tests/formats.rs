//! Disk formats: the documents agree with the code, records survive a round trip, and decoders
//! take anything.

use flagstone_block::BLOCK_SIZE;
use flagstone_engine::format::field::{Layout, documented};
use flagstone_engine::format::record::{Record, Records, Seal, SummaryCopy, layout};
use flagstone_engine::format::segment::{Footer, SegmentShape};
use flagstone_engine::format::superblock::Superblock;
use flagstone_engine::format::{device, journal, leaf, meta, segment, superblock};
use flagstone_engine::{OnFull, VolumeSettings};
use proptest::prelude::*;

#[test]
fn every_byte_table_agrees_with_the_code() {
    let mut layouts: Vec<(&str, &Layout)> = vec![
        ("superblock", &superblock::LAYOUT),
        ("superblock", &device::LAYOUT),
        ("journal", &journal::LAYOUT),
        ("segment", &segment::ENTRY_LAYOUT),
        ("segment", &segment::LAYOUT),
        ("metadata", &meta::LAYOUT),
        ("leaf", &leaf::LAYOUT),
    ];
    layouts.extend(layout::ALL.iter().map(|layout| ("record", layout)));
    for (document, layout) in layouts {
        let path = format!("{}/../docs/formats/{document}.md", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap();
        let code: Vec<_> = layout.fields.iter().map(|f| (f.offset, f.size, f.name)).collect();
        assert_eq!(documented(&text, layout.name), code, "{path}: {}", layout.name);
    }
}

#[test]
fn a_four_mebibyte_segment_holds_1013_data_blocks() {
    let shape = SegmentShape::new(1024);
    assert_eq!((shape.data_blocks, shape.entry_blocks, shape.summary_blocks()), (1013, 10, 11));
}

fn any_record() -> impl Strategy<Value = (u8, Vec<u64>, Vec<u8>, String)> {
    let numbers = prop::collection::vec(0..1u64 << 40, 24);
    (0u8..11, numbers, prop::collection::vec(any::<u8>(), 4..=128), "[a-z0-9]{1,128}")
}

/// Any settings.
fn settings(n: &[u64]) -> VolumeSettings {
    let on_full = if n[6].is_multiple_of(2) { OnFull::Error } else { OnFull::Wait };
    VolumeSettings { on_full, reserved: n[5] }
}

proptest! {
    #[test]
    fn records_survive_a_round_trip((kind, n, bytes, name) in any_record()) {
        let volume = n[0] as u32;
        let lsn = n[1];
        let crcs = &bytes[..bytes.len() & !3];
        let record = match kind {
            0 => Record::Write { volume, lsn, lba: n[2], pbn: n[3], vseq: n[4], crcs },
            1 => Record::Zero { volume, lsn, lba: n[2], blocks: n[3] as u32 % (1 << 18) + 1, keep: n[4] % 2 == 0, vseq: n[5] },
            2 => Record::Volume { volume, lsn, uuid: [n[2] as u8; 16], size: n[3], vseq: n[4], settings: settings(&n), base: (n[7] % 2 == 0).then_some(n[7] as u32), name: &name },
            10 => Record::Snapshot { volume, lsn, uuid: [n[2] as u8; 16], size: n[3], cut: n[4].min(lsn), line: n[5] as u32, deleted: n[8] % 2 == 0, base: (n[6] % 2 == 0).then_some(n[6] as u32), name: &name },
            3 => Record::VolumeResize { volume, lsn, size: n[2], vseq: n[3] },
            9 => Record::VolumeSet { volume, lsn, settings: settings(&n), vseq: n[4] },
            4 => Record::VolumeDelete { volume, lsn },
            5 => Record::SegmentSeal(Seal { segment: n[2] as u32, lsn, class: n[3] as u8, entries: n[4] as u16, generation: n[5], first_lsn: n[6], footer_crc: n[7] as u32, mean_lsn: n[8], stated: n[9] % 2 == 0, copy: (n[9] % 3 == 0).then(|| SummaryCopy { segment: n[8] as u32, slot: n[7] as u8 }) }),
            6 => Record::SegmentFree { segment: n[2] as u32, lsn, generation: n[3] },
            7 => {
                let kept = if n[3] % 2 == 0 { [0; 8] } else { std::array::from_fn(|i| n[i + 8] | 1) };
                let inherited = if n[2] % 2 == 0 { [0; 8] } else { std::array::from_fn(|i| n[i + 4] | 2) };
                let holes = if n[4] % 2 == 0 { [0; 8] } else { std::array::from_fn(|i| n[i + 16]) };
                Record::Leaf { volume, lsn, lba: n[2] & !511, page: n[5], page_crc: n[6] as u32, marks: flagstone_engine::format::record::LeafMarks { holes, kept, inherited } }
            }
            _ => Record::SegmentOpen { segment: n[2] as u32, lsn, class: n[3] as u8, generation: n[4] },
        };
        let mut block = [0xee; 512];
        let used = record.encode(&mut block).unwrap();
        prop_assert_eq!(used, record.encoded_bytes());
        prop_assert_eq!(used % 8, 0);
        prop_assert_eq!(Record::decode(&block[..used]), Ok((record, used)));
        prop_assert!(Record::decode(&block[..used - 1]).is_err());
        prop_assert_eq!(record.encode(&mut block[..used - 1]), None);
    }

    #[test]
    fn decoders_take_anything(bytes in prop::collection::vec(any::<u8>(), 0..BLOCK_SIZE), records in 0u16..200) {
        for record in Records::new(&bytes, records) {
            let _ = record;
        }
        let mut block = vec![0; BLOCK_SIZE];
        block[..bytes.len()].copy_from_slice(&bytes);
        let _ = Superblock::decode(0, &block);
        let _ = journal::JournalHeader::decode([0; 8], 2048, 0, &block);
        let _ = meta::PageHeader::decode([0; 8], 0, 0, &block);
        let _ = Footer::decode(&[0; 16], 0, &SegmentShape::new(1024), &block);
    }
}
