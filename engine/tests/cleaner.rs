//! The cleaner: overwriting goes on for ever, and what was moved is what was written.

mod support;

use flagstone_block::{BLOCK_SIZE, VolumeId, ZeroMode};
use flagstone_engine::SubmitError;
use support::{Numbers, World, block};

const B: u64 = BLOCK_SIZE as u64;
const MIB: u64 = 1 << 20;

/// A volume and what it should hold: a stamp per block, 0 for a hole.
struct Model {
    volume: VolumeId,
    stamps: Vec<u64>,
    next: u64,
}

impl Model {
    fn new(world: &mut World, name: &str, blocks: u64) -> Self {
        let volume = world.create(name, blocks * B);
        Self { volume, stamps: vec![0; blocks as usize], next: 1 }
    }

    fn write(&mut self, world: &mut World, lba: u64) -> Result<(), SubmitError> {
        world.write(self.volume, lba * B, &block(self.next))?;
        self.stamps[lba as usize] = self.next;
        self.next += 1;
        Ok(())
    }

    fn discard(&mut self, world: &mut World, lba: u64, blocks: u64) {
        world.zero(self.volume, lba * B, blocks * B, ZeroMode::Discard).unwrap();
        self.stamps[lba as usize..][..blocks as usize].fill(0);
    }

    fn verify(&self, world: &mut World) {
        for (lba, &stamp) in (0u64..).zip(&self.stamps) {
            let want = if stamp == 0 { vec![0; BLOCK_SIZE] } else { block(stamp) };
            assert!(world.read(self.volume, lba, 1).unwrap() == want, "block {lba}");
        }
    }
}

/// Fills a volume to `live` of what the pool has room for, then overwrites it at random `times`
/// over; returns the write amplification of the second half.
fn overwrite(
    size: u64,
    live: f64,
    times: u64,
    mut pick: impl FnMut(&mut Numbers, u64) -> u64,
) -> f64 {
    let mut world = World::format(size, 1 << 20);
    let blocks = (world.engine.usage().available as f64 / B as f64 * live) as u64;
    let mut model = Model::new(&mut world, "data", blocks);
    for lba in 0..blocks {
        model.write(&mut world, lba).unwrap();
    }
    let mut numbers = Numbers(7);
    let mut before = world.engine.counters();
    for i in 0..times * blocks {
        if i == times * blocks / 2 {
            before = world.engine.counters();
        }
        let lba = pick(&mut numbers, blocks);
        model.write(&mut world, lba).unwrap();
    }
    world.engine.check().unwrap();
    model.verify(&mut world);
    let after = world.engine.counters();
    let mut world = world.kill();
    model.verify(&mut world);
    let mut world = World::open(world.stop());
    assert!(world.report.clean);
    model.verify(&mut world);
    let moved = after.blocks_moved - before.blocks_moved;
    1.0 + moved as f64 / (after.blocks_written - before.blocks_written) as f64
}

#[test]
fn a_volume_is_overwritten_for_ever() {
    let amplification = overwrite(96 * MIB, 0.8, 8, |numbers, blocks| numbers.below(blocks));
    assert!((1.1..5.5).contains(&amplification), "{amplification}");
}

#[test]
fn hot_blocks_are_told_from_cold_ones() {
    let hot = |numbers: &mut Numbers, blocks: u64| {
        if numbers.below(100) < 95 { numbers.below(blocks / 20) } else { numbers.below(blocks) }
    };
    let amplification = overwrite(160 * MIB, 0.8, 6, hot);
    assert!((1.02..2.2).contains(&amplification), "{amplification}");
}

/// Everything that the pool says is available can be written, and then overwritten.
#[test]
fn a_full_pool_is_overwritten_and_emptied() {
    let mut world = World::format(64 * MIB, 1 << 20);
    let mut model = Model::new(&mut world, "data", 16 << 10);
    let mut full = 0;
    while let Ok(()) = model.write(&mut world, full) {
        full += 1;
    }
    assert!(world.engine.usage().available < 40 * B, "{:?}", world.engine.usage());
    let mut numbers = Numbers(3);
    for _ in 0..2 * full {
        model.write(&mut world, numbers.below(full)).unwrap();
    }
    // New blocks are still refused, and cost nothing.
    assert_eq!(model.write(&mut world, full + 5).unwrap_err(), SubmitError::NoSpace);
    for lba in (0..full).step_by(2) {
        model.discard(&mut world, lba, 1);
    }
    for lba in 0..full / 3 {
        model.write(&mut world, full + lba).unwrap();
    }
    model.verify(&mut world);
    world.engine.check().unwrap();
    let mut world = world.kill();
    model.verify(&mut world);
    let whole = model.stamps.len() as u64;
    model.discard(&mut world, 0, whole);
    world.flush();
    assert_eq!(world.engine.usage().live, 0);
}

/// Segments whose live blocks can't be moved stay; everything else goes on.
#[test]
fn a_damaged_block_stays_where_it_is() {
    let mut world = World::format(64 * MIB, 1 << 20);
    let blocks = world.engine.usage().available / B * 7 / 10;
    let mut model = Model::new(&mut world, "data", blocks);
    for lba in 0..blocks {
        model.write(&mut world, lba).unwrap();
    }
    world.flush();
    // One byte of a block of the first segment, found by its content.
    let wanted = block(model.stamps[17]);
    let place = world.disk.find(&wanted).expect("it lies somewhere");
    world.disk.flip(place, 100, 1);
    let mut numbers = Numbers(11);
    for _ in 0..4 * blocks {
        let lba = 18 + numbers.below(blocks - 18);
        model.write(&mut world, lba).unwrap();
    }
    assert!(world.engine.counters().clean_bad_blocks > 0);
    assert!(world.read(model.volume, 17, 1).is_err());
    for lba in (0..blocks).filter(|&lba| lba != 17) {
        let want = block(model.stamps[lba as usize]);
        assert!(world.read(model.volume, lba, 1).unwrap() == want, "block {lba}");
    }
    // Overwritten, it is as good as new.
    model.write(&mut world, 17).unwrap();
    model.verify(&mut world);
}

/// A sector that can't be read must not cost the blocks that are read together with it, however
/// short of space the pool is; and what it holds is there again when it can be read again.
#[test]
fn an_unreadable_block_costs_nobody_else() {
    let mut world = World::format(64 * MIB, 1 << 20);
    let blocks = world.engine.usage().available / B * 97 / 100;
    let mut model = Model::new(&mut world, "data", blocks);
    for lba in 0..blocks {
        model.write(&mut world, lba).unwrap();
    }
    world.flush();
    let wanted = block(model.stamps[17]);
    world.disk.unreadable = Some(world.disk.find(&wanted).expect("it lies somewhere"));
    let mut numbers = Numbers(13);
    for _ in 0..2 * blocks {
        let lba = 100 + numbers.below(blocks - 100);
        model.write(&mut world, lba).unwrap();
    }
    assert!(world.engine.counters().clean_bad_blocks > 0, "it was never met");
    assert_eq!(world.engine.counters().clean_bad_moved, 0);
    assert!(world.read(model.volume, 17, 1).is_err());
    world.disk.unreadable = None;
    model.verify(&mut world);
    world.engine.check().unwrap();
}

/// The space of a deleted volume can be written as soon as the deletion is answered.
#[test]
fn a_deleted_volume_makes_room_at_once() {
    let mut world = World::format(64 * MIB, 1 << 20);
    let mut first = Model::new(&mut world, "first", 16 << 10);
    let mut second = Model::new(&mut world, "second", 16 << 10);
    let mut full = 0;
    while let Ok(()) = first.write(&mut world, full) {
        full += 1;
    }
    world.delete(first.volume);
    for lba in 0..full - 100 {
        second.write(&mut world, lba).unwrap();
    }
    second.verify(&mut world);
    world.engine.check().unwrap();
}

/// A device that refuses to read for a while costs no segment for longer than that.
#[test]
fn what_can_be_read_again_is_moved_after_all() {
    let mut world = World::format(64 * MIB, 1 << 20);
    let blocks = world.engine.usage().available / B * 98 / 100;
    let mut model = Model::new(&mut world, "data", blocks);
    for lba in 0..blocks {
        model.write(&mut world, lba).unwrap();
    }
    world.flush();
    let wanted = block(model.stamps[17]);
    let first = world.disk.find(&wanted).expect("it lies somewhere");
    world.disk.unreadable = Some(first);
    let mut numbers = Numbers(17);
    while world.engine.counters().clean_bad_blocks == 0 {
        model.write(&mut world, 100 + numbers.below(blocks - 100)).unwrap();
    }
    world.disk.unreadable = None;
    for _ in 0..3 * blocks {
        model.write(&mut world, 100 + numbers.below(blocks - 100)).unwrap();
    }
    let moved = world.disk.blocks.iter().any(|(at, bytes)| *at != first && bytes[..] == wanted[..]);
    assert!(moved, "{:?}", world.engine.counters());
    model.verify(&mut world);
    world.engine.check().unwrap();
}
