//! What is written for each write beside its data: a record, a journal block, a summary's entry.

use std::hint::black_box;

use flagstone_block::BLOCK_SIZE;
use flagstone_engine::format::journal::{HEADER_BYTES, JournalHeader};
use flagstone_engine::format::record::{Record, Records};
use flagstone_engine::format::segment::{ENTRY_BYTES, Entry};

use crate::Piece;

/// Writes of one block in a journal block.
const RECORDS: u64 = 32;

pub(crate) fn pieces() -> Vec<Piece> {
    vec![
        Piece {
            name: "journal: write record encoded",
            per_run: RECORDS,
            runs: 500,
            make: || {
                let mut block = vec![0; BLOCK_SIZE];
                Box::new(move || {
                    black_box(encode(black_box(&mut block)));
                })
            },
        },
        Piece {
            name: "journal: write record decoded",
            per_run: RECORDS,
            runs: 500,
            make: || {
                let mut block = vec![0; BLOCK_SIZE];
                let used = encode(&mut block);
                Box::new(move || {
                    let records = black_box(&block[HEADER_BYTES..][..used]);
                    let lsns = Records::new(records, RECORDS as u16)
                        .map(|record| record.expect("it was just encoded").lsn());
                    assert_eq!(lsns.max(), Some(RECORDS - 1));
                })
            },
        },
        Piece {
            name: "journal: block completed",
            per_run: 1,
            runs: 500,
            make: || {
                let mut block = vec![0; BLOCK_SIZE];
                let used = encode(&mut block) as u16;
                let mut jseq = 0;
                Box::new(move || {
                    jseq += 1;
                    let header = JournalHeader {
                        records: RECORDS as u16,
                        used,
                        jseq,
                        first_lsn: jseq * RECORDS,
                        tail: 0,
                        flushed: 0,
                        prev_crc: 7,
                        meta_pages: 1,
                        meta_epoch: 1,
                    };
                    black_box(header.encode([1; 8], 4096, black_box(&mut block)));
                })
            },
        },
        Piece {
            name: "summary: entry encoded",
            per_run: RECORDS,
            runs: 500,
            make: || {
                let mut table = vec![0; RECORDS as usize * ENTRY_BYTES];
                Box::new(move || {
                    for (i, bytes) in
                        black_box(&mut table).chunks_exact_mut(ENTRY_BYTES).enumerate()
                    {
                        let (lba, lsn_delta) = (i as u64 * 7919, i as u32);
                        let entry =
                            Entry { volume: 1, crc: 7, lba, vseq: lba, lsn_delta, source: None };
                        entry.encode(bytes);
                    }
                })
            },
        },
    ]
}

/// Fills a journal block with records of one block each; returns the bytes they take.
fn encode(block: &mut [u8]) -> usize {
    let mut used = 0;
    for lsn in 0..RECORDS {
        let crcs = &[1, 2, 3, 4][..];
        let record =
            Record::Write { volume: 1, lsn, lba: lsn * 7919, pbn: lsn << 3, vseq: lsn, crcs };
        used += record.encode(&mut block[HEADER_BYTES + used..]).expect("there is room");
    }
    used
}
