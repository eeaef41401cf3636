//! An opening that could not read something, and died, harms nothing: the next one can read it again.

mod support;

use flagstone_block::{BLOCK_SIZE, VolumeId};
use flagstone_engine::Engine;
use support::{Arena, Disk, OPEN, World, block};

const B: u64 = BLOCK_SIZE as u64;
/// Where a journal block has its number.
const JSEQ: usize = 24;

/// A pool whose log has just gone through the end of a segment, and the blocks of its journal, newest first.
fn killed(blocks: u64) -> (Disk, VolumeId, Vec<u64>) {
    let mut world = World::format(96 << 20, 1 << 20);
    let volume = world.create("data", 8 << 20);
    for stamp in 1..=blocks {
        world.write(volume, (stamp - 1) * B, &block(stamp)).unwrap();
    }
    world.flush();
    // The seal of the first segment is logged, and nothing behind it is flushed.
    for _ in 0..4 {
        world.turn();
    }
    let disk = world.disk;
    let mut journal: Vec<(u64, u64)> = disk
        .blocks
        .iter()
        .filter(|(_, bytes)| bytes.starts_with(b"LSBJ"))
        .map(|(at, bytes)| (u64::from_le_bytes(bytes[JSEQ..JSEQ + 8].try_into().unwrap()), *at))
        .collect();
    journal.sort_unstable_by(|a, b| b.cmp(a));
    (disk, volume, journal.into_iter().map(|(_, at)| at).collect())
}

#[test]
fn an_opening_that_could_not_read_a_block_of_the_journal_and_died_harms_nothing() {
    let mut died = 0;
    for blocks in [252, 253, 300, 504] {
        let (disk, volume, journal) = killed(blocks);
        for &unreadable in &journal[..6] {
            for writes in 0..12 {
                let mut disk = disk.clone();
                disk.unreadable = Some(unreadable);
                disk.fail_from = Some(disk.writes + writes);
                let first = Engine::open(&mut disk, &mut Arena::new(4096), &OPEN);
                (disk.unreadable, disk.fail_from) = (None, None);
                let what = format!("{blocks} blocks, block {unreadable}, {writes} writes");
                let mut world = match World::try_open(disk) {
                    Ok(world) => world,
                    Err(error) => panic!("{what}: {error}"),
                };
                died += u32::from(first.is_err());
                for stamp in 1..=blocks {
                    let there = world.read(volume, stamp - 1, 1);
                    let there = there.unwrap_or_else(|error| panic!("{what}: {stamp}: {error:?}"));
                    // An opening that came to its end has cut the log at what it could not read.
                    let gone = first.is_ok() && there.iter().all(|byte| *byte == 0);
                    assert!(gone || there == block(stamp), "{what}: block {stamp}");
                }
                world.engine.check().unwrap();
            }
        }
    }
    assert!(died > 100, "{died}");
}
