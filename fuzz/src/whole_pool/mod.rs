//! A pool on disk, changed with understanding, then opened and used.
//!
//! An input is `base, steps` and then a list of changes (see [`damage`]): fields of structures
//! get other values, records are added, blocks are moved or lost, and all checksums and links
//! are made right again. Opening must give a typed error or a pool that works: consistent,
//! readable where its checksums say so, writable, and the same after a clean stop.

mod bases;
mod damage;
mod spots;

use crate::arena::Arena;
use crate::disk::Disk;
use crate::input::Input;
use crate::world::World;
use flagstone_block::{BLOCK_SIZE, VolumeId, ZeroMode};
use flagstone_engine::{IoFault, OpenError, SubmitError, check, inspect};
use std::cell::RefCell;

pub(crate) use bases::BASES;
use damage::Damage;

const CHECK: u8 = 1;
const INSPECT: u8 = 2;
const CRASH: u8 = 4;
const DELETE: u8 = 8;

/// Volumes used of each pool; the changes can make many.
const VOLUMES_USED: usize = 4;

thread_local! {
    /// Kept from run to run: an arena's pages and a disk's tables cost more than a run.
    static SPARE: RefCell<Option<(Disk, Arena)>> = const { RefCell::new(None) };
}

/// A damaged pool; see the module.
pub fn whole_pool(input: &[u8]) {
    let mut input = Input::new(input);
    let which = usize::from(input.u8());
    let (base, steps) = (&BASES[which % BASES.len()], input.u8());
    let spare = SPARE.with(|spare| spare.borrow_mut().take());
    let (mut disk, arena) = spare.unwrap_or_else(|| (Disk::new(&base.image), Arena::new()));
    disk.reset(&base.image);
    Damage::new(&mut disk, &base.spots).apply(&mut input);
    let spare = use_pool(disk, arena, steps);
    SPARE.with(|cell| *cell.borrow_mut() = Some(spare));
}

fn use_pool(mut disk: Disk, arena: Arena, steps: u8) -> (Disk, Arena) {
    // The offline faces write nothing and agree with opening.
    let offline = offline(&mut disk, steps);
    let mut world = match World::open(disk, arena, 2) {
        Ok(world) => world,
        Err((error, disk, arena)) => {
            if !matches!(error, OpenError::NoRoom { .. } | OpenError::Record { .. }) {
                assert!(offline.is_none_or(|offline| offline == Err(error)), "{error}");
            }
            // Trying again changes nothing.
            let (again, disk, arena) = match World::open(disk, arena, 3) {
                Err(again) => again,
                Ok(_) => panic!("it opens after it did not: {error}"),
            };
            assert_eq!(again, error);
            return (disk, arena);
        }
    };
    assert!(offline.is_none_or(|offline| offline.is_ok()), "{offline:?}");
    let report = world.report.clone();
    let written = work(&mut world, steps);
    world.engine.check().expect("consistent after use");
    let (disk, arena) = if steps & CRASH == 0 {
        world.stop()
    } else {
        // Everything that was asked for is answered, so nothing is on its way.
        world.die(|| 0)
    };
    let mut world = match World::open(disk, arena, 4) {
        Ok(world) => world,
        // One that was just believed may have been counted up to one that is not.
        Err((OpenError::SequenceTooHigh { .. }, disk, arena)) => return (disk, arena),
        Err((error, ..)) => panic!("it does not open again: {error}; first time: {report:?}"),
    };
    assert!(world.report.clean || steps & CRASH != 0, "{:?}", world.report);
    for (name, lba, block) in written {
        let volume = world.engine.volume_by_name(&name).expect("the volume is still there");
        let volume = VolumeId(volume.id);
        let read = world.read(volume, lba, 1).expect("a block that was written");
        assert_eq!(read.as_deref(), Ok(&block[..]), "block {lba} of {name}");
    }
    world.die(|| 0)
}

/// Whether the pool could be opened, as far as was asked.
fn offline(disk: &mut Disk, steps: u8) -> Option<Result<(), OpenError>> {
    let writes = disk.writes();
    let mut verdict = None;
    if steps & INSPECT != 0 {
        verdict = Some(inspect(disk).map(|inspection| {
            assert_eq!(inspection.segments.len() as u32, inspection.geometry.segments);
        }));
    }
    if steps & CHECK != 0 {
        let checked = check(disk, &mut |done, all| assert!(done <= all)).map(|report| {
            assert_eq!(report.bad_blocks == 0, report.listed.is_empty());
        });
        assert!(verdict.is_none_or(|verdict| verdict == checked), "{verdict:?}, {checked:?}");
        verdict = Some(checked);
    }
    assert_eq!(disk.writes(), writes, "check or inspection wrote something");
    verdict
}

/// Reads, writes and discards a little; returns blocks that must be found again.
fn work(world: &mut World, steps: u8) -> Vec<(String, u64, Vec<u8>)> {
    let mut volumes: Vec<_> = world.engine.volumes().cloned().collect();
    volumes.sort_by_key(|volume| volume.id);
    let mut written = Vec::new();
    for (i, info) in volumes.iter().take(VOLUMES_USED).enumerate() {
        let (id, blocks) = (VolumeId(info.id), info.size / BLOCK_SIZE as u64);
        for lba in [0, 5, 511, 512, 600, blocks - 1] {
            let count = blocks.saturating_sub(lba).min(4) as u32;
            if count == 0 {
                continue;
            }
            match world.read(id, lba, count).expect("a range in the volume") {
                Ok(_) | Err(IoFault::BadBlock { .. }) => {}
                Err(fault) => panic!("a read failed: {fault}"),
            }
        }
        if steps & DELETE != 0 && i == 0 {
            match world.delete(id) {
                Ok(()) => continue,
                Err(error) => panic!("a volume could not be deleted: {error}"),
            }
        }
        let lba = blocks / 2;
        let block = vec![0x33 + i as u8; BLOCK_SIZE];
        match world.write(id, lba * BLOCK_SIZE as u64, &block) {
            Ok(Ok(())) => written.push((info.name.clone(), lba, block)),
            Err(SubmitError::NoSpace) => {}
            other => panic!("a write failed: {other:?}"),
        }
        // Part of a block: what was there is read first, and may be bad.
        match world.write(id, 100, &[1, 2, 3]) {
            Ok(Ok(()) | Err(IoFault::NoSpace | IoFault::BadBlock { .. }))
            | Err(SubmitError::NoSpace) => {}
            other => panic!("a short write failed: {other:?}"),
        }
        for mode in [ZeroMode::Discard, ZeroMode::KeepAllocated] {
            match world.zero(id, 0, BLOCK_SIZE as u64, mode) {
                Ok(Ok(())) => written.push((info.name.clone(), 0, vec![0; BLOCK_SIZE])),
                Err(SubmitError::NoSpace) => {}
                other => panic!("zeroing failed: {other:?}"),
            }
        }
        if lba == 0 {
            written.retain(|(name, at, block)| *name != info.name || *at != 0 || block[0] == 0);
        }
    }
    match world.create("made by the fuzzer", 1 << 20) {
        Ok(_)
        | Err(SubmitError::NoSpace | SubmitError::VolumeExists | SubmitError::TooManyVolumes) => {}
        Err(error) => panic!("a volume could not be created: {error}"),
    }
    world.flush().expect("a flush");
    written
}
