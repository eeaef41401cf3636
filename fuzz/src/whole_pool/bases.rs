//! The pools that the changes start from, made once per process and always the same.

use super::spots::Spots;
use crate::disk::Image;
use crate::world::{World, image};
use flagstone_block::{BLOCK_SIZE, VolumeId, ZeroMode};
use std::sync::LazyLock;

/// The smallest device a pool fits on.
pub(crate) const POOL_BYTES: u64 = 64 << 20;

/// A pool as it lies on disk, and what lies where.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) image: Image,
    pub(crate) spots: Spots,
}

impl Base {
    fn new(stop: bool, fill: impl FnOnce(&mut World)) -> Self {
        let image = image(POOL_BYTES, stop, fill);
        let spots = Spots::of(&image);
        Self { image, spots }
    }
}

/// In the order of an input's first byte.
pub(crate) static BASES: LazyLock<[Base; 4]> = LazyLock::new(|| {
    [
        // Used and stopped: everything is in the metadata chain and sealed summaries.
        Base::new(true, used),
        // Used and killed: the journal holds the end, part of it behind the last flush.
        Base::new(false, |world| {
            used(world);
            busy(world);
        }),
        // Formatted.
        Base::new(true, |_| {}),
        // Killed before anything was flushed.
        Base::new(false, busy),
    ]
});

fn block(stamp: u32) -> [u8; BLOCK_SIZE] {
    let mut block = [0; BLOCK_SIZE];
    for (i, word) in (0u32..).zip(block.chunks_exact_mut(4)) {
        word.copy_from_slice(&(stamp.wrapping_mul(0x9e37_79b9) ^ i).to_le_bytes());
    }
    block
}

fn blocks(first: u32, count: u32) -> Vec<u8> {
    (first..first + count).flat_map(block).collect()
}

fn write(world: &mut World, volume: VolumeId, lba: u64, data: &[u8]) {
    let offset = lba * BLOCK_SIZE as u64;
    world.write(volume, offset, data).expect("room").expect("a sound device");
}

fn zero(world: &mut World, volume: VolumeId, lba: u64, count: u64, mode: ZeroMode) {
    let (offset, len) = (lba * BLOCK_SIZE as u64, count * BLOCK_SIZE as u64);
    world.zero(volume, offset, len, mode).expect("room").expect("a sound device");
}

/// Three volumes, one of them gone; sealed segments, one of them freed; holes, kept zeroes.
fn used(world: &mut World) {
    let a = world.create("a", 16 << 20).expect("room");
    let b = world.create("b", 1 << 30).expect("room");
    let c = world.create("c", 4 << 20).expect("room");
    write(world, c, 0, &blocks(1000, 250));
    for i in 0..10 {
        write(world, a, u64::from(i) * 30, &blocks(i * 30, 30));
    }
    world.flush().expect("a flush");
    write(world, b, 5, &blocks(2000, 3));
    write(world, b, 262_100, &blocks(2100, 20));
    world.write(b, 100, b"part of a block").expect("room").expect("a sound device");
    zero(world, a, 100, 50, ZeroMode::Discard);
    zero(world, a, 200, 20, ZeroMode::KeepAllocated);
    zero(world, a, 1000, 600, ZeroMode::KeepAllocated);
    zero(world, b, 262_110, 4, ZeroMode::MayUnmap);
    world.delete(c).expect("it is there");
    world.resize(a, 17 << 20).expect("larger than before");
    for i in 0..10 {
        write(world, a, 600 + u64::from(i) * 31, &blocks(3000 + i * 31, 31));
    }
    world.flush().expect("a flush");
}

/// Records of most kinds that are only in the journal.
fn busy(world: &mut World) {
    let d = world.create("d", 8 << 20).expect("room");
    for i in 0..6 {
        write(world, d, u64::from(i) * 7, &blocks(5000 + i * 9, 9));
    }
    zero(world, d, 3, 4, ZeroMode::Discard);
    world.flush().expect("a flush");
    let e = world.create("e", 2 << 20).expect("room");
    write(world, e, 1, &blocks(6000, 2));
    world.resize(d, 9 << 20).expect("larger than before");
    write(world, d, 20, &blocks(6100, 30));
    zero(world, d, 30, 600, ZeroMode::KeepAllocated);
    world.delete(e).expect("it is there");
    for i in 0..4 {
        write(world, d, 700 + u64::from(i), &blocks(7000 + i, 1));
    }
    world.write(d, 4096 * 900 + 17, &[9; 600]).expect("room").expect("a sound device");
}
