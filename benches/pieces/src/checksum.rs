//! The checksum of a block: paid once per 4 KiB written and once per 4 KiB read.

use std::hint::black_box;

use flagstone_block::BLOCK_SIZE;
use flagstone_engine::format::crc32;

use crate::Piece;

/// Blocks of a whole batch: they lie in the second cache.
const BLOCKS: usize = 32;

pub(crate) fn pieces() -> Vec<Piece> {
    vec![
        Piece {
            name: "checksum: block",
            per_run: BLOCKS as u64,
            runs: 50,
            make: || {
                let bytes = bytes();
                Box::new(move || {
                    black_box(checksums(black_box(&bytes)));
                })
            },
        },
        Piece {
            name: "checksum: block copied and checksummed",
            per_run: BLOCKS as u64,
            runs: 50,
            make: || {
                let (from, mut to) = (bytes(), vec![0; BLOCKS * BLOCK_SIZE]);
                Box::new(move || {
                    to.copy_from_slice(black_box(&from));
                    black_box(checksums(black_box(&to)));
                })
            },
        },
    ]
}

fn bytes() -> Vec<u8> {
    (0..BLOCKS * BLOCK_SIZE).map(|i| ((i * 31) >> 3) as u8).collect()
}

fn checksums(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(BLOCK_SIZE).map(crc32).fold(0, |sum, crc| sum ^ crc)
}
