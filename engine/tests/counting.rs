//! What is live is counted in the background after an opening: what happens meanwhile, and what if a
//! page can't be read.

mod support;

use flagstone_block::{BLOCK_SIZE, BlockIo, DeviceError, VolumeId};
use flagstone_engine::{Engine, OpenOptions};
use std::sync::Arc;
use support::{Arena, Disk, OPEN, World, block};

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
            [(&OPEN, 0, 1), (&OPEN, 0, 2), (&bounded, 0, 9), (&bounded, 1, 1), (&bounded, 1, 9)]
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
    assert!(!world.engine.is_counting_live() && !world.engine.wants_rebuild());
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
    assert!(!world.engine.is_counting_live());
    assert_eq!(world.engine.usage().live, 1000 * B);
}
