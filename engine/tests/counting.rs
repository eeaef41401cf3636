//! What is live is counted in the background after an opening: what happens meanwhile, and what if a
//! page can't be read.

mod support;

use flagstone_block::{
    BLOCK_SIZE, BlockIo, Buffers, DeviceError, Durability, Lba, VolumeId, ZeroMode,
};
use flagstone_engine::limits::SCAN_COLD_NS;
use flagstone_engine::{Engine, OpenOptions, SubmitError};
use std::sync::Arc;
use support::{Arena, Disk, Numbers, OPEN, World, block};

const B: u64 = BLOCK_SIZE as u64;
const LEAF: u64 = 512;

/// Where blocks of a kind lie.
fn blocks_of(disk: &Disk, magic: [u8; 4]) -> Vec<u64> {
    let of_kind = |(_, bytes): &(&u64, &Arc<[u8; BLOCK_SIZE]>)| bytes[..4] == magic;
    let mut found: Vec<u64> = disk.blocks.iter().filter(of_kind).map(|(at, _)| *at).collect();
    found.sort_unstable();
    found
}

fn damage(disk: &mut Disk, blocks: &[u64]) {
    blocks.iter().for_each(|&at| disk.flip(at, 1000, 1));
}

/// A pool with a block in each of `leaves` leaves, whose pages are the checkpoint that was just made.
fn paged(leaves: u64) -> (World, VolumeId) {
    let mut world = World::format(64 << 20, 1 << 20);
    let volume = world.create("data", leaves * LEAF * B);
    for leaf in 0..leaves {
        world.write(volume, leaf * LEAF * B, &block(leaf)).unwrap();
    }
    (checkpointed(world), volume)
}

fn checkpointed(world: World) -> World {
    World::open_with(world.stop(), &OpenOptions { rebuild: true, ..OPEN }).unwrap()
}

/// As [`paged`], killed after a second block was written to each leaf, and with one copy of each page
/// of the chain damaged: opening has to read all leaf pages, and to write a checkpoint.
fn to_be_checkpointed(leaves: u64) -> (Disk, VolumeId) {
    let (mut world, volume) = paged(leaves);
    for leaf in 0..leaves {
        world.write(volume, (leaf * LEAF + 1) * B, &block(1000 + leaf)).unwrap();
    }
    world.flush();
    let mut disk = world.disk;
    let copies = blocks_of(&disk, *b"LSBM").into_iter().step_by(2);
    damage(&mut disk, &copies.collect::<Vec<u64>>());
    (disk, volume)
}

fn verify(world: &mut World, volume: VolumeId, leaves: u64) {
    for leaf in 0..leaves {
        assert_eq!(world.read(volume, leaf * LEAF, 1).unwrap(), block(leaf));
        assert_eq!(world.read(volume, leaf * LEAF + 1, 1).unwrap(), block(1000 + leaf));
    }
    world.engine.check().unwrap();
}

/// A device that refuses some reads of a block.
struct Refuses {
    disk: Disk,
    block: u64,
    /// Reads of it until then, and how many it refuses.
    after: u32,
    times: u32,
}

impl BlockIo for Refuses {
    fn size(&self) -> u64 {
        self.disk.size
    }
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        if offset == self.block * B {
            if self.after > 0 {
                self.after -= 1;
            } else if self.times > 0 {
                self.times -= 1;
                return Err(DeviceError::Os { errno: 5 });
            }
        }
        self.disk.read_at(offset, into)
    }
    fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.disk.write_at(offset, from)
    }
    fn flush(&mut self) -> Result<(), DeviceError> {
        self.disk.flush()
    }
}

/// Whether it is refused when the leaf is counted or, with a map that does not fit its memory, when
/// the checkpoint needs it once more: opening tries again, and then does without the page.
#[test]
fn opening_goes_on_when_it_must_read_a_page_and_can_not() {
    const LEAVES: u64 = 20;
    let (disk, volume) = to_be_checkpointed(LEAVES);
    let bounded = OpenOptions { map_memory: Some(0), ..OPEN };
    let mut rebuilt = 0;
    for page in blocks_of(&disk, *b"LSBL") {
        for (options, after, times) in
            [(&OPEN, 0, 1), (&OPEN, 0, 2), (&bounded, 0, 30), (&bounded, 1, 1), (&bounded, 1, 30)]
        {
            let mut io = Refuses { disk: disk.clone(), block: page, after, times };
            let (_, report) = Engine::open(&mut io, &mut Arena::new(4096), options).unwrap();
            assert!(!report.rebuilt || times > 1);
            rebuilt += u64::from(report.rebuilt);
            verify(&mut World::open(io.disk), volume, LEAVES);
        }
    }
    // Some that must be moved are in memory.
    assert!(rebuilt > 2 * LEAVES, "{rebuilt}");
}

/// A page was refused for a moment, so that the map was to be made anew, and now a summary is damaged
/// that is not needed for anything else.
#[test]
fn a_damaged_summary_does_not_keep_a_pool_with_good_pages_from_opening() {
    const LEAVES: u64 = 20;
    let (mut world, volume) = paged(LEAVES);
    let other = world.create("other", 8 << 20);
    for n in 0..1000 {
        world.write(other, n * B, &block(5000 + n)).unwrap();
    }
    let disk = checkpointed(world).stop();
    let mut world = World::open(disk.clone());
    for page in blocks_of(&disk, *b"LSBL") {
        world = World::open(disk.clone());
        world.disk.unreadable = Some(page);
        (0..100).for_each(|_| world.turn());
        if world.engine.wants_rebuild() {
            break;
        }
    }
    assert!(world.engine.wants_rebuild());
    world.disk.unreadable = None;
    let mut disk = world.stop();
    let summaries = blocks_of(&disk, *b"LSBG");
    damage(&mut disk, &summaries);
    let mut world = World::open(disk);
    assert!(!world.report.rebuilt);
    for leaf in 0..LEAVES {
        assert_eq!(world.read(volume, leaf * LEAF, 1).unwrap(), block(leaf));
    }
    (0..100).for_each(|_| world.turn());
    assert!(!world.engine.is_counting() && !world.engine.wants_rebuild());
    world.engine.check().unwrap();
}

/// What leaves with damaged pages mapped is nobody's any more, at once and for good.
#[test]
fn a_volume_whose_pages_are_damaged_can_be_deleted() {
    let (world, volume) = paged(200);
    let mut disk = world.stop();
    let pages = blocks_of(&disk, *b"LSBL");
    damage(&mut disk, &pages);
    let mut world = World::open(disk);
    let new = world.create("new", 8 << 20);
    let available = world.engine.usage().available;
    world.delete(volume);
    for n in 0..1000 {
        world.write(new, n * B, &block(n)).unwrap();
        world.engine.check().unwrap();
        assert!(world.engine.usage().available > available / 2);
    }
    (0..100).for_each(|_| world.turn());
    assert!(!world.engine.is_counting());
    assert_eq!(world.engine.usage().live, 1000 * B);
}

/// A pool all of whose pages are damaged, and where they are: it never knows what is live.
fn damaged(leaves: u64) -> (World, VolumeId, Vec<u64>) {
    let (world, volume) = paged(leaves);
    let mut disk = world.stop();
    let pages = blocks_of(&disk, *b"LSBL");
    damage(&mut disk, &pages);
    let mut world = World::open(disk);
    (0..100).for_each(|_| world.turn());
    assert!(world.engine.wants_rebuild() && world.engine.is_counting());
    (world, volume, pages)
}

/// Opened anew, whether stopped or killed, it is whole again.
fn verify_rebuilt(world: World, volume: VolumeId, leaves: u64) {
    let killed = World::open(world.disk.clone());
    for mut world in [killed, World::open(world.stop())] {
        assert!(world.report.rebuilt);
        for leaf in 0..leaves {
            assert_eq!(world.read(volume, leaf * LEAF, 1).unwrap(), block(leaf));
        }
        world.engine.check().unwrap();
    }
}

/// Requests are not held until a checkpoint that never comes.
#[test]
fn a_pool_that_can_not_be_counted_becomes_full() {
    let (mut world, volume, _) = damaged(20);
    let new = world.create("new", 8 << 20);
    let mut n = 0;
    let error = loop {
        match world.write(new, n % 2048 * B, &block(n)) {
            Ok(()) => n += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, SubmitError::NoSpace, "after {n}");
    world.engine.check().unwrap();
    verify_rebuilt(world, volume, 20);
}

/// Records without number must not take what the next opening needs for its checkpoint.
#[test]
fn a_flood_of_discards_ends_while_there_is_no_checkpoint() {
    const DEPTH: usize = 2000;
    let (mut world, volume, _) = damaged(20);
    let new = world.create("new", 8 << 20);
    world.write(new, 0, &block(1)).unwrap();
    let (mut sent, mut in_flight, mut turns) = (0u64, 0, 0);
    loop {
        let (tag, mode) = (world.tag(), ZeroMode::Discard);
        let (engine, arena) = (&mut world.engine, &mut world.arena);
        match engine.zero(arena, tag, new, B, B, mode, Durability::Completed) {
            Ok(_) => (sent, in_flight, turns) = (sent + 1, in_flight + 1, 0),
            Err(SubmitError::NoSpace) => break,
            Err(error) => assert_eq!(error, SubmitError::Busy),
        }
        assert!(sent < 2_000_000 && turns < 1000, "{sent} discards: {:?}", world.engine.usage());
        if turns > 0 || in_flight == DEPTH {
            world.turn();
        }
        turns += 1;
        while let Some(completion) = world.engine.next_completion() {
            completion.result.unwrap();
            in_flight -= 1;
        }
    }
    while in_flight > 0 {
        world.turn();
        in_flight -= std::iter::from_fn(|| world.engine.next_completion()).count();
    }
    world.engine.check().unwrap();
    verify_rebuilt(world, volume, 20);
}

/// When segments run out the pages are read once more.
#[test]
fn pages_that_could_not_be_read_for_a_while_are_counted_later() {
    let (mut world, volume, pages) = damaged(20);
    damage(&mut world.disk, &pages);
    let mut numbers = Numbers(3);
    for n in 0..20_000 {
        world.write(volume, (1 + numbers.below(300)) * B, &block(n)).unwrap();
    }
    assert!(!world.engine.is_counting());
    world.engine.check().unwrap();
}

/// The last page is being read for a client when another needs a segment that the cleaner will give.
#[test]
fn nobody_is_refused_while_the_last_page_is_read_for_a_request() {
    let mut world = World::format(64 << 20, 1 << 20);
    let volume = world.create("data", 24 << 20);
    let mut numbers = Numbers(5);
    let mut n = 0;
    while world.engine.counters().segments_cleaned < 20 || world.engine.usage().segments_free > 10 {
        world.write(volume, numbers.below(6144) * B, &block(n)).unwrap();
        n += 1;
    }
    let mut world = World::open(checkpointed(world).stop());
    let buffer = world.arena.alloc(1).unwrap();
    let tag = world.tag();
    let (engine, arena) = (&mut world.engine, &mut world.arena);
    engine.read(arena, tag, volume, Lba(0), buffer).unwrap_err();
    let held = engine.next_io().unwrap();
    let write = |world: &mut World, n: u64| {
        let (tag, at) = (world.tag(), (600 + n % 100) * B);
        let (engine, arena) = (&mut world.engine, &mut world.arena);
        let written = engine.write(arena, tag, volume, at, &block(n), Durability::Completed);
        world.turn();
        while world.engine.next_completion().is_some() {}
        written
    };
    let mut refused = 0;
    for n in 0..10_000 {
        if let Err(error) = write(&mut world, n) {
            assert_eq!(error, SubmitError::Busy, "write {n}");
            refused += 1;
        }
    }
    assert!(refused > 100 && world.engine.is_counting());
    world.perform(held);
    for n in 0..10_000 {
        let written = write(&mut world, n);
        assert!(matches!(written, Ok(_) | Err(SubmitError::Busy)), "write {n}: {written:?}");
    }
    assert!(!world.engine.is_counting() && world.engine.counters().segments_cleaned > 0);
    world.engine.check().unwrap();
}

/// Nothing is gained from rewriting in sequence what can't be given back.
#[test]
fn nothing_is_rewritten_that_would_only_take_space() {
    let (mut world, _) = paged(20);
    let volume = world.create("scattered", LEAF * B);
    for lba in (0..LEAF).chain((0..LEAF).step_by(2)) {
        world.write(volume, lba * B, &block(lba)).unwrap();
    }
    let disk = checkpointed(world).stop();
    let of_first = |at: &u64| disk.blocks[at][12..16] != volume.0.to_le_bytes();
    let pages: Vec<u64> = blocks_of(&disk, *b"LSBL").into_iter().filter(of_first).collect();
    for broken in [true, false] {
        let mut disk = disk.clone();
        if broken {
            damage(&mut disk, &pages);
        }
        let mut world = World::open(disk);
        (0..100).for_each(|_| world.turn());
        assert_eq!(world.engine.is_counting(), broken);
        for _ in 0..2 {
            world.now_ns += 2 * SCAN_COLD_NS;
            (0..LEAF).step_by(64).for_each(|lba| _ = world.read(volume, lba, 64).unwrap());
            for _ in 0..1000 {
                world.turn();
                world.now_ns = world.now_ns.max(world.engine.next_timer_ns().unwrap_or(0));
            }
        }
        assert_eq!(world.engine.counters().blocks_rewritten == 0, broken);
    }
}

/// However many pages there are, a stop does not wait for them.
#[test]
fn a_stop_does_not_wait_for_the_count() {
    let (world, _) = paged(600);
    let mut world = World::open(world.stop());
    world.engine.shutdown();
    for _ in 0..1000 {
        world.turn();
    }
    assert!(world.engine.is_stopped());
    assert!(world.engine.counters().leaves_read < 100, "{:?}", world.engine.counters());
}

/// Its leaves may have taken all the memory that there is for leaves.
#[test]
fn a_deleted_volume_gives_its_memory_back() {
    const LEAVES: u64 = 40;
    let (world, volume) = paged(LEAVES);
    let options = OpenOptions { map_memory: Some(0), ..OPEN };
    let mut world = World::open_with(world.stop(), &options).unwrap();
    let other = world.create("other", 40 * LEAF * B);
    // No checkpoint ends.
    world.hold = Some(*b"LSBL");
    for n in 0..2000 {
        let (tag, at) = (world.tag(), (LEAVES - 1 - n / 5 % 6) * LEAF * B);
        let (engine, arena) = (&mut world.engine, &mut world.arena);
        let _ = engine.write(arena, tag, volume, at, &block(n), Durability::Completed);
        world.turn();
    }
    let full = world.engine.usage().map_bytes;
    assert!(full > 5 * 4096, "{full}");
    world.delete(volume);
    world.release();
    for leaf in 0..40 {
        world.write(other, leaf * LEAF * B, &block(leaf)).unwrap();
    }
    (0..100).for_each(|_| world.turn());
    assert_eq!(world.engine.usage().live, 40 * B);
    world.engine.check().unwrap();
}
