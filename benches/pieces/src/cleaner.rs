//! Overwrites of a pool that is full: each pays for the cleaner's choice of victims, and for what it moves.

use std::hint::black_box;

use flagstone_block::BLOCK_SIZE;

use crate::Piece;
use crate::world::World;

/// Small segments, so that there are many to choose from.
const SEGMENT_BYTES: u32 = 1 << 20;
const DEVICE_BYTES: usize = 160 << 20;

pub(crate) fn pieces() -> Vec<Piece> {
    vec![Piece {
        name: "cleaner: random overwrite, 80 % live, depth 32",
        per_run: 32,
        runs: 300,
        make: || {
            let mut world = World::new(DEVICE_BYTES, SEGMENT_BYTES, 80);
            let data = vec![9; BLOCK_SIZE];
            let mut round = move || {
                for _ in 0..32 {
                    let lba = world.random_lba();
                    world.write(lba, black_box(&data));
                }
                world.settle();
            };
            // Until nothing is left that was never cleaned.
            (0..1500).for_each(|_| round());
            Box::new(round)
        },
    }]
}
