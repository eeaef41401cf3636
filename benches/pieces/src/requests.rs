//! What a request costs above the device and below the front-end: admission, copy, checksum, records,
//! map, and for writes their share of sealing and freeing segments.

use std::hint::black_box;

use flagstone_block::{BLOCK_SIZE, Durability, Lba, Tag};

use crate::world::{READS, World};
use crate::{Piece, Run};

const DEVICE_BYTES: usize = 256 << 20;
/// Segments of the size that pools have.
const SEGMENT_BYTES: u32 = 4 << 20;
/// Small, so that random overwrites leave whole segments dead without a cleaner.
const PERCENT: u64 = 5;
/// Blocks of a long write.
const LONG: u64 = 16;

pub(crate) fn pieces() -> Vec<Piece> {
    vec![
        Piece {
            name: "engine: random write, depth 32",
            per_run: READS,
            runs: 100,
            make: || writes(READS),
        },
        Piece { name: "engine: random write, depth 1", per_run: 1, runs: 1000, make: || writes(1) },
        Piece {
            name: "engine: write and flush, depth 1",
            per_run: 1,
            runs: 1000,
            make: || {
                let (mut world, data) = (world(), vec![9; BLOCK_SIZE]);
                Box::new(move || {
                    let lba = world.random_lba();
                    world.write(lba, black_box(&data));
                    while world.turn() == 0 {}
                    world.engine.flush(Tag(3), world.volume).expect("nobody else flushes");
                    while world.turn() == 0 {}
                })
            },
        },
        Piece {
            name: "engine: FUA write, depth 1",
            per_run: 1,
            runs: 1000,
            make: || {
                let (mut world, data) = (world(), vec![9; BLOCK_SIZE]);
                Box::new(move || {
                    let offset = Lba(world.random_lba()).offset();
                    let (arena, data) = (&mut world.arena, black_box(&data));
                    let fua = Durability::Fua;
                    let taken = world.engine.write(arena, Tag(1), world.volume, offset, data, fua);
                    assert_eq!(taken.expect("there is room"), BLOCK_SIZE);
                    while world.turn() == 0 {}
                })
            },
        },
        Piece {
            // Segments are filled, sealed and freed all the time: of one in sixteen requests' blocks.
            name: "engine: sequential write, per block of 64 KiB",
            per_run: 8 * LONG,
            runs: 100,
            make: || {
                let (mut world, data) = (world(), vec![9; LONG as usize * BLOCK_SIZE]);
                let mut lba = 0;
                Box::new(move || {
                    for _ in 0..8 {
                        world.write(lba, black_box(&data));
                        lba = (lba + LONG) % 2048;
                    }
                    world.settle();
                })
            },
        },
        Piece {
            name: "engine: random read, depth 32",
            per_run: READS,
            runs: 100,
            make: || reads(READS),
        },
        Piece { name: "engine: random read, depth 1", per_run: 1, runs: 1000, make: || reads(1) },
    ]
}

fn world() -> World {
    World::new(DEVICE_BYTES, SEGMENT_BYTES, PERCENT)
}

fn writes(depth: u64) -> Run {
    let (mut world, data) = (world(), vec![9; BLOCK_SIZE]);
    Box::new(move || {
        for _ in 0..depth {
            let lba = world.random_lba();
            world.write(lba, black_box(&data));
        }
        world.settle();
    })
}

fn reads(depth: u64) -> Run {
    let mut world = world();
    Box::new(move || {
        for i in 0..depth as u32 {
            let (lba, into) = (Lba(world.random_lba()), world.buffer.part(i, 1));
            world
                .engine
                .read(&mut world.arena, Tag(2), world.volume, lba, into)
                .expect("within the bound of reads");
        }
        world.settle();
    })
}
