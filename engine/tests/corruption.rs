//! One byte of a pool's image is changed, anywhere: in superblocks, journal, metadata chain, leaf
//! pages, summaries or data. Whatever is then read is what was written, or an error for the
//! damaged block alone, or the pool refuses to open and says why. Never another byte.
//!
//! `FLAGSTONE_FLIPS` sets how many bytes are tried (300 unless told otherwise),
//! `FLAGSTONE_FLIP_SEED` which. Run with `--nocapture` to see what came of each kind of place.

mod support;

use flagstone_block::{BLOCK_SIZE, VolumeId, ZeroMode};
use flagstone_engine::format::journal::pool_tag;
use flagstone_engine::format::meta::{HEADER_BYTES, PageHeader};
use flagstone_engine::format::record::{Record, Records};
use flagstone_engine::format::superblock::{SLOTS, SUPERBLOCK_END};
use flagstone_engine::{CheckReport, Inspection, OpenError, RecoveryReport, SegmentState};
use std::collections::{BTreeMap, HashSet};
use support::{Disk, Numbers, World, block};

/// Blocks of a volume that one leaf page speaks of.
const LEAF_BLOCKS: u64 = 512;

const B: u64 = BLOCK_SIZE as u64;
const MIB: u64 = 1 << 20;
/// Blocks of the two volumes that stay.
const SIZES: [(&str, u64); 2] = [("one", 2000), ("two", 600)];
/// Blocks written last, none of which a flush is known to cover.
const TAIL: u64 = 40;

/// Kinds of places on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Area {
    Superblock,
    Journal,
    Chain,
    LeafPage,
    Summary,
    Data,
    /// Segments that are free, and pages of earlier checkpoints.
    Unused,
}

/// How many of a hundred flips go where.
const WEIGHTS: [(Area, u64); 7] = [
    (Area::Superblock, 10),
    (Area::Journal, 20),
    (Area::Chain, 15),
    (Area::LeafPage, 15),
    (Area::Summary, 15),
    (Area::Data, 20),
    (Area::Unused, 5),
];

/// What came of a flip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// Nothing depends on the byte.
    Harmless,
    /// Another copy, or another way to the same, took its place; opening or the check says so.
    Survived,
    /// The block can't be read.
    IoError,
    /// The pool does not open.
    Refused,
    /// The log was cut at a write that was never flushed.
    Cut,
}

/// A pool's image and what it holds.
struct Image {
    name: &'static str,
    disk: Disk,
    areas: BTreeMap<Area, Vec<u64>>,
    /// Per volume, a stamp per block; 0 for zeroes.
    stamps: Vec<Vec<u64>>,
    /// The last writes: blocks of the first volume, in order, with their stamp before and after.
    tail: Vec<(u64, u64, u64)>,
    /// What opening and checking report of the image as it is.
    report: RecoveryReport,
    check: CheckReport,
}

/// Writes, discards, deletions, checkpoints and cleaning, until the pool has been through it all.
fn worn() -> (World, Vec<Vec<u64>>) {
    let mut world = World::format(64 * MIB, MIB as u32);
    let mut numbers = Numbers(5);
    let mut stamps: Vec<Vec<u64>> = SIZES.iter().map(|(_, n)| vec![0; *n as usize]).collect();
    let ids = SIZES.map(|(name, blocks)| world.create(name, blocks * B));
    let mut gone = 0;
    for stamp in 1..=24_000u64 {
        let v = usize::from(numbers.below(4) == 0);
        let lba = numbers.below(SIZES[v].1);
        if stamp % 211 == 0 {
            let blocks = 24.min(SIZES[v].1 - lba);
            let mode = if stamp % 2 == 0 { ZeroMode::Discard } else { ZeroMode::KeepAllocated };
            world.zero(ids[v], lba * B, blocks * B, mode).unwrap();
            stamps[v][lba as usize..(lba + blocks) as usize].fill(0);
        } else {
            world.write(ids[v], lba * B, &block(stamp)).unwrap();
            stamps[v][lba as usize] = stamp;
        }
        if stamp % 2000 == 0 {
            // Volumes come, fill most of what is left, and go.
            let name = format!("gone {gone}");
            gone += 1;
            let id = world.create(&name, 7000 * B);
            for lba in 0..6500 {
                world.write(id, lba * B, &block(1 << 40 | lba)).unwrap();
            }
            world.delete(id);
        }
    }
    let counters = world.engine.counters();
    assert!(counters.compactions > 3 && counters.segments_cleaned > 0, "{counters:?}");
    world.engine.check().unwrap();
    (world, stamps)
}

impl Image {
    fn stopped() -> Self {
        let (world, stamps) = worn();
        Self::of("stopped", world.stop(), stamps, Vec::new())
    }

    fn killed() -> Self {
        let (mut world, mut stamps) = worn();
        world.flush();
        let id = VolumeId(world.engine.volume_by_name("one").unwrap().id);
        let mut tail = Vec::new();
        for i in 0..=TAIL {
            let (lba, stamp) = (i * 37 % SIZES[0].1, 1 << 50 | i);
            tail.push((lba, stamps[0][lba as usize], stamp));
            world.write(id, lba * B, &block(stamp)).unwrap();
            stamps[0][lba as usize] = stamp;
        }
        Self::of("killed", world.disk, stamps, tail)
    }

    fn of(
        name: &'static str,
        mut disk: Disk,
        stamps: Vec<Vec<u64>>,
        tail: Vec<(u64, u64, u64)>,
    ) -> Self {
        let inspection = flagstone_engine::inspect(&mut disk).unwrap();
        let geo = inspection.geometry;
        let mut areas: BTreeMap<Area, Vec<u64>> = BTreeMap::new();
        let (chain, pages) = pages(&disk, &inspection);
        let last = geo.superblock_tail(0);
        let superblocks: Vec<u64> = SLOTS.into_iter().flatten().chain([last]).collect();
        for &block in disk.blocks.keys() {
            let offset = block * B;
            let area = if superblocks.contains(&offset) {
                Area::Superblock
            } else if (SUPERBLOCK_END..geo.data_offset).contains(&offset) {
                Area::Journal
            } else {
                let (segment, at) = geo.locate((offset - geo.data_offset) / B);
                match inspection.segments[segment as usize].state {
                    SegmentState::Meta if chain.contains(&block) => Area::Chain,
                    SegmentState::Map if pages.contains(&block) => Area::LeafPage,
                    SegmentState::Open => Area::Data,
                    SegmentState::Sealed if at < geo.shape.data_blocks => Area::Data,
                    SegmentState::Sealed => Area::Summary,
                    _ => Area::Unused,
                }
            };
            areas.entry(area).or_default().push(block);
        }
        for blocks in areas.values_mut() {
            blocks.sort_unstable();
        }
        let report = World::open(disk.clone()).report;
        let check = flagstone_engine::check(&mut disk, &mut |_, _| {}).unwrap();
        assert!(check.is_sound(), "{check:?}");
        let image = Self { name, disk, areas, stamps, tail, report, check };
        assert_eq!(image.judge(image.disk.clone(), 0), Outcome::Harmless);
        image
    }

    /// Opens the damaged disk, reads everything and compares.
    fn judge(&self, mut disk: Disk, damaged: u64) -> Outcome {
        let check = flagstone_engine::check(&mut disk, &mut |_, _| {});
        let mut world = match World::try_open(disk) {
            Ok(world) => world,
            Err(error) => {
                assert!(check.is_err(), "the check overlooks {error}");
                return Outcome::Refused;
            }
        };
        let (mut bad, mut lost) = self.read_all(&mut world);
        if world.engine.wants_rebuild() {
            // A leaf's page can't be read: until the next opening, which makes it anew, neither
            // can the leaf.
            let leaf = |&(v, lba, _): &(usize, u64, u64)| (v, lba / LEAF_BLOCKS);
            assert!(bad.iter().all(|one| leaf(one) == leaf(&bad[0])), "{bad:?}");
            world.engine.check().unwrap();
            world = World::open(world.stop());
            assert!(world.report.rebuilt && !world.engine.wants_rebuild());
            (bad, lost) = self.read_all(&mut world);
        }
        let bad: Vec<u64> = bad.into_iter().map(|(.., stamp)| stamp).collect();
        world.engine.check().unwrap();
        if !bad.is_empty() {
            // One block, the one that was damaged, and the check knows it.
            let bytes = &self.disk.blocks[&damaged];
            assert!(bad.len() == 1 && bytes[..] == content(bad[0])[..], "{bad:?}");
            let check = check.expect("what opens can be checked");
            assert_eq!((check.bad_blocks, check.listed[0].offset), (1, damaged * B));
            assert_eq!(lost, []);
            return Outcome::IoError;
        }
        let report = world.report.clone();
        if !lost.is_empty() {
            // Only the end of the log, and said so, unless nothing was left to tell.
            lost.sort_unstable();
            let first = lost[0];
            assert!(lost.iter().copied().eq(first..self.tail.len()), "holes in the log: {lost:?}");
            assert!(lost.len() == 1 || report.cut_at.is_some(), "{lost:?} are lost in silence");
            return Outcome::Cut;
        }
        self.goes_on(world);
        // An error of the check alone is a damaged summary, which nothing that opens needs.
        let as_before = report == self.report
            && check.is_ok_and(|check| check.is_sound() && check.recovery == self.check.recovery);
        if as_before { Outcome::Harmless } else { Outcome::Survived }
    }

    /// Reads every block: what is refused, as volume, block and stamp, and which of the last writes
    /// are lost.
    fn read_all(&self, world: &mut World) -> (Vec<(usize, u64, u64)>, Vec<usize>) {
        let (mut bad, mut lost) = (Vec::new(), Vec::new());
        for (v, (name, blocks)) in SIZES.into_iter().enumerate() {
            let id = VolumeId(world.engine.volume_by_name(name).expect("the volume is there").id);
            for first in (0..blocks).step_by(16) {
                let run = 16.min(blocks - first) as u32;
                let bytes = world.read(id, first, run).ok();
                for lba in first..first + u64::from(run) {
                    let at = ((lba - first) * B) as usize;
                    let alone = match &bytes {
                        Some(bytes) => Ok(bytes[at..at + BLOCK_SIZE].to_vec()),
                        None => world.read(id, lba, 1),
                    };
                    let stamp = self.stamps[v][lba as usize];
                    match alone {
                        Err(_) => bad.push((v, lba, stamp)),
                        Ok(bytes) if bytes == content(stamp) => {}
                        Ok(bytes) => {
                            let of_tail = |&(at, before, _): &(u64, u64, u64)| {
                                v == 0 && at == lba && bytes == content(before)
                            };
                            let op = self.tail.iter().position(of_tail);
                            lost.push(op.unwrap_or_else(|| panic!("volume {v}, block {lba}")));
                        }
                    }
                }
            }
        }
        (bad, lost)
    }

    /// A pool that opened works on, and opens again.
    fn goes_on(&self, mut world: World) {
        let id = VolumeId(world.engine.volume_by_name("one").unwrap().id);
        for lba in 0..20 {
            world.write(id, lba * B, &block(1 << 60 | lba)).unwrap();
        }
        let mut world = World::open(world.stop());
        for lba in 0..40 {
            let stamp = if lba < 20 { 1 << 60 | lba } else { self.stamps[0][lba as usize] };
            assert!(world.read(id, lba, 1).unwrap() == content(stamp), "block {lba}");
        }
    }
}

/// Blocks of the present metadata chain, and of the leaf pages that it names.
fn pages(disk: &Disk, inspection: &Inspection) -> (HashSet<u64>, HashSet<u64>) {
    let geo = &inspection.geometry;
    let pool = pool_tag(&inspection.superblock.pool_uuid);
    let (mut chain, mut pages) = (HashSet::new(), HashSet::new());
    for &segment in &inspection.meta_segments {
        for at in 0..geo.shape.blocks {
            let place = geo.segment_offset(segment, at) / B;
            let Some(bytes) = disk.blocks.get(&place) else { continue };
            let header = PageHeader::decode(pool, segment, at / 2, &bytes[..]);
            let Ok((header, _)) = header else { continue };
            if header.epoch != inspection.superblock.meta_epoch {
                continue;
            }
            chain.insert(place);
            let used = HEADER_BYTES + usize::from(header.used);
            for record in Records::new(&bytes[HEADER_BYTES..used], header.records) {
                if let Ok(Record::Leaf { page, .. }) = record {
                    let (segment, block) = geo.locate(page);
                    pages.insert(geo.segment_offset(segment, block) / B);
                }
            }
        }
    }
    (chain, pages)
}

fn content(stamp: u64) -> Vec<u8> {
    if stamp == 0 { vec![0; BLOCK_SIZE] } else { block(stamp) }
}

fn number_from(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn no_flipped_byte_is_ever_returned() {
    let flips = number_from("FLAGSTONE_FLIPS", 300);
    let seed = number_from("FLAGSTONE_FLIP_SEED", 1);
    println!("{flips} flips, seed {seed}");
    let images = [Image::stopped(), Image::killed()];
    let mut table: BTreeMap<(&str, Area, Outcome), u64> = BTreeMap::new();
    let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for flip in 0..flips {
        let image = &images[(flip % 2) as usize];
        let mut at = numbers.below(WEIGHTS.iter().map(|(_, weight)| weight).sum());
        let area = WEIGHTS.iter().find(|(_, weight)| {
            let here = at < *weight;
            at = at.wrapping_sub(*weight);
            here
        });
        let area = area.expect("the weights were summed up").0;
        let blocks = image.areas.get(&area).unwrap_or_else(|| panic!("no {area:?}"));
        let place = blocks[numbers.below(blocks.len() as u64) as usize];
        // Metadata blocks are full at the front.
        let within = if numbers.below(2) == 0 { 256 } else { B };
        let (byte, mask) = (numbers.below(within) as usize, 1 + numbers.below(255) as u8);
        println!("flip {flip}: {} {area:?} block {place} byte {byte} mask {mask}", image.name);
        let mut disk = image.disk.clone();
        disk.flip(place, byte, mask);
        let outcome = image.judge(disk, place);
        // All else that a pool needs to open is there twice.
        assert!(outcome != Outcome::Refused || area == Area::Journal);
        *table.entry((image.name, area, outcome)).or_default() += 1;
    }
    for ((image, area, outcome), count) in &table {
        println!("{image:8} {area:<11?} {outcome:<9?} {count}");
    }
    let seen = |wanted| table.keys().any(|(_, _, outcome)| *outcome == wanted);
    assert!(seen(Outcome::IoError) && seen(Outcome::Survived) && seen(Outcome::Harmless));
}

/// Which blocks were overwritten in a segment nobody can tell if neither its summary nor the copy can be read.
#[test]
fn a_summary_and_its_copy_are_missed() {
    let mut image = Image::killed();
    let disk = image.disk.clone();
    let geo = flagstone_engine::inspect(&mut image.disk).unwrap();
    let copies = geo.segments.iter().filter(|s| s.state == SegmentState::Copies);
    let (shape, first) = (geo.geometry.shape, |s: u32| geo.geometry.segment_offset(s, 0) / B);
    let copies = copies.flat_map(|s| first(s.segment)..first(s.segment) + u64::from(shape.blocks));
    let copies: Vec<u64> = copies.filter(|at| disk.blocks.contains_key(at)).collect();
    assert!(!copies.is_empty());
    let damage =
        |disk: &mut Disk, blocks: &[u64]| blocks.iter().for_each(|at| disk.flip(*at, 9, 1));
    for (of_copies, of_summaries) in [(true, false), (false, true), (true, true)] {
        let mut disk = disk.clone();
        if of_copies {
            damage(&mut disk, &copies);
        }
        if of_summaries {
            damage(&mut disk, &image.areas[&Area::Summary]);
        }
        match World::try_open(disk) {
            Ok(_) => assert!(!of_copies || !of_summaries),
            Err(OpenError::SummaryDamaged { .. }) => assert!(of_copies && of_summaries),
            Err(error) => panic!("{error}"),
        }
    }
}
