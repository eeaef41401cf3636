//! The map of a thin volume of 1 TiB with ten thousand leaves.

use std::hint::black_box;

use flagstone_block::{BLOCK_SIZE, Tag, VolumeId};
use flagstone_engine::{DiffSpec, SharedUsage, SnapshotSpec, VolumeSpec};

use crate::Piece;
use crate::world::World;

const BLOCKS: u64 = 1 << 28;
const LEAVES: u64 = 10_000;

pub(crate) fn pieces() -> Vec<Piece> {
    vec![
        Piece {
            name: "map: block looked up",
            per_run: 64,
            runs: 200,
            make: || {
                let (mut world, lbas) = scattered();
                let mut extents = Vec::with_capacity(4);
                Box::new(move || {
                    for _ in 0..64 {
                        let offset = lbas[world.random_below(LEAVES) as usize] << 12;
                        let (volume, len) = (world.volume, BLOCK_SIZE as u64);
                        let told = world.engine.block_status(volume, offset, len, &mut extents, 1);
                        assert!(told.is_ok() && black_box(&extents).len() == 1);
                    }
                })
            },
        },
        Piece {
            name: "map: write to a leaf of ten thousand, depth 32",
            per_run: 32,
            runs: 100,
            make: || {
                let (mut world, lbas) = scattered();
                let data = vec![9; BLOCK_SIZE];
                Box::new(move || {
                    for _ in 0..32 {
                        let lba = lbas[world.random_below(LEAVES) as usize];
                        world.write(lba, black_box(&data));
                    }
                    world.settle();
                })
            },
        },
        Piece {
            name: "map: differences, 1000 blocks of 1 TiB",
            per_run: 1,
            runs: 3,
            make: || {
                let (mut world, snapshot) = with_snapshot();
                scatter(&mut world, 1000);
                let spec = DiffSpec { older: Some(snapshot), newer: world.volume };
                let mut out = Vec::with_capacity(2000);
                Box::new(move || {
                    out.clear();
                    let mut next = Some(0);
                    while let Some(from) = next {
                        let told = world.engine.diff(&spec, from..u64::MAX, &mut out, 2000);
                        next = told.expect("all of the map is in memory");
                    }
                    assert!(out.len() > 990);
                })
            },
        },
        Piece {
            name: "map: leaf that a snapshot shares, counted",
            per_run: LEAVES,
            runs: 3,
            make: || {
                let (world, snapshot) = with_snapshot();
                Box::new(move || {
                    let mut usage = SharedUsage::default();
                    while let Err(so_far) =
                        world.engine.count_shared(snapshot, usage).expect("it is there")
                    {
                        usage = so_far;
                    }
                    black_box(usage);
                })
            },
        },
    ]
}

/// A volume with blocks all over it, and which ones.
fn scattered() -> (World, Vec<u64>) {
    let mut world = World::new(256 << 20, 4 << 20, 1);
    let settings = Default::default();
    let spec = VolumeSpec { uuid: [2; 16], name: "w", size: BLOCKS << 12, settings };
    let made = world.engine.create_volume(&mut world.arena, Tag(0), &spec);
    world.volume = made.expect("there is room");
    while world.turn() == 0 {}
    let lbas = scatter(&mut world, LEAVES);
    (world, lbas)
}

fn with_snapshot() -> (World, VolumeId) {
    let (mut world, _) = scattered();
    let spec = SnapshotSpec { volume: world.volume, uuid: [3; 16], name: "w@s" };
    let taken = world.engine.snapshot_volumes(&mut world.arena, Tag(0), &[spec]);
    let snapshot = taken.expect("there is room");
    while world.turn() == 0 {}
    (world, snapshot)
}

fn scatter(world: &mut World, blocks: u64) -> Vec<u64> {
    let data = vec![7; BLOCK_SIZE];
    let lbas: Vec<u64> = (0..blocks).map(|_| world.random_below(BLOCKS)).collect();
    lbas.iter().for_each(|lba| world.write(*lba, &data));
    world.settle();
    lbas
}
