//! A client of the engine that draws its requests by the seed's weights.

use crate::world::{Check, Submitted, World, WritePart, payload};
use flagstone_block::{BLOCK_SIZE, Buffers, Durability, ZeroMode};
use flagstone_engine::limits::{SCAN_COLD_NS, VOLUME_BYTES};
use flagstone_engine::{OnFull, Shrink, SubmitError, VolumeSettings};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Blocks of what the engine rewrites as one: 2 MiB.
const REGION_BLOCKS: u64 = 512;

/// Times that a run's disk becomes larger, at most.
const GROWTHS_MAX: u32 = 12;

/// A request that the engine takes in parts.
#[derive(Debug)]
enum Job {
    Write {
        volume: u32,
        start: u64,
        bytes: Vec<u8>,
        done: u64,
        stamp: u64,
        durability: Durability,
    },
    Zero {
        volume: u32,
        offset: u64,
        len: u64,
        mode: ZeroMode,
        durability: Durability,
    },
    Read {
        volume: u32,
        first: u64,
        blocks: u32,
    },
    Scan {
        volume: u32,
        next: u64,
        end: u64,
        step: u64,
    },
    /// Nothing for some turns, so that the engine does what it does by itself.
    Rest {
        turns: u64,
    },
    Flush,
    Create {
        name: String,
        size: u64,
        settings: VolumeSettings,
    },
    Snapshot {
        volumes: Vec<u32>,
    },
    Clone {
        snapshot: u32,
        name: String,
        settings: VolumeSettings,
    },
    Rollback {
        volume: u32,
        snapshot: u32,
        keep: bool,
    },
    Delete {
        volume: u32,
    },
    Resize {
        volume: u32,
        size: u64,
        shrink: Shrink,
    },
    Set {
        volume: u32,
        settings: VolumeSettings,
    },
    /// A disk becomes larger by so much.
    Grow {
        bytes: u64,
    },
    AddDisk {
        bytes: u64,
    },
    RemoveDisk {
        keep: bool,
    },
}

/// What came of offering a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Something was accepted, or refused for good.
    Progress,
    /// The engine is busy.
    Busy,
    /// There is nothing to offer.
    Idle,
}

/// The client. It has one request at a time that is not yet taken in full.
#[derive(Debug, Default)]
pub struct Client {
    job: Option<Job>,
    names: u64,
    /// Volumes that were shrunk, and their sizes before.
    shrunk: Vec<(u32, u64)>,
}

impl Client {
    /// Forgets the request at hand, as a client of a process that died does.
    pub fn forget(&mut self) {
        self.job = None;
    }

    /// Offers the request at hand, or the next one.
    pub fn offer(&mut self, world: &mut World) -> Check<Offer> {
        let job = match self.job.take() {
            Some(job) => job,
            None => match self.draw(world)? {
                Some(job) => job,
                None => return Ok(Offer::Progress),
            },
        };
        let (left, offer) = offer(world, job)?;
        self.job = left;
        Ok(offer)
    }

    fn draw(&mut self, world: &mut World) -> Check<Option<Job>> {
        let volumes: Vec<u32> =
            world.oracle.live_volumes().filter(|&v| world.oracle.usable_size(v) > 0).collect();
        let all = world.oracle.live_volumes().count();
        let volumes_max = world.config.volumes_max;
        if volumes.is_empty() {
            return Ok(if all == 0 { Some(self.create(world)) } else { None });
        }
        let any = world.rng.pick(&volumes);
        let snapshots: Vec<u32> =
            volumes.iter().copied().filter(|&v| world.oracle.is_snapshot(v)).collect();
        let heads: Vec<u32> = volumes.into_iter().filter(|&v| world.oracle.line(v) == v).collect();
        // That of a snapshot may be gone.
        let volume = match world.oracle.line(any) {
            line if heads.contains(&line) => line,
            _ if heads.is_empty() => return Ok((all < volumes_max).then(|| self.create(world))),
            _ => world.rng.pick(&heads),
        };
        let size = world.oracle.usable_size(volume);
        let durability = if world.rng.percent(world.config.fua) {
            Durability::Fua
        } else {
            Durability::Completed
        };
        let zero = |world: &mut World, mode| {
            let aligned = world.rng.percent(world.config.whole);
            let (offset, len) = range(world, size, aligned);
            let len = longer(world, size, offset, len, mode);
            Some(Job::Zero { volume, offset, len, mode, durability })
        };
        let weights = world.config.mix.weights();
        Ok(match world.rng.weighted(&weights) {
            which @ (0 | 1) => {
                let (start, len) = range(world, size, which == 0);
                let blocks = (start + len).div_ceil(BLOCK) - start / BLOCK;
                let stamp = world.stamps(blocks);
                let bytes = payload(volume, start, len, stamp);
                Some(Job::Write { volume, start, bytes, done: 0, stamp, durability })
            }
            2 => {
                let (offset, len) = range(world, world.oracle.usable_size(any), true);
                Some(Job::Read {
                    volume: any,
                    first: offset / BLOCK,
                    blocks: (len / BLOCK).min(256) as u32,
                })
            }
            3 => Some(Job::Flush),
            4 => zero(world, ZeroMode::Discard),
            5 => zero(world, ZeroMode::MayUnmap),
            6 => zero(world, ZeroMode::KeepAllocated),
            7 => {
                let (offset, len) = range(world, size, false);
                let extents_max = world.rng.pick(&[1, 3, 1000]);
                world.status(volume, offset, len, extents_max)?;
                world.compare_some()?;
                None
            }
            8 if all < volumes_max => Some(self.create(world)),
            9 if all > 1 => Some(Job::Delete { volume: any }),
            10 => Some(self.resize(world, volume, size)),
            11 => Some(Job::Set { volume, settings: settings(world, size) }),
            12 if world.growths < GROWTHS_MAX => {
                world.growths += 1;
                Some(Job::Grow { bytes: (1 + world.rng.skewed(4 * 256)) * BLOCK })
            }
            13 => Some(scan(world, volume, size)),
            14 => Some(match world.rng.below(8) {
                0..3 => Job::AddDisk { bytes: (16 << 20) + world.rng.skewed(48 << 8) * BLOCK },
                3..7 => Job::RemoveDisk { keep: false },
                _ => Job::RemoveDisk { keep: true },
            }),
            15 if all < volumes_max => {
                let few = world.rng.between(1, 3) as usize;
                Some(Job::Snapshot { volumes: heads.into_iter().take(few).collect() })
            }
            16 if all < volumes_max && !snapshots.is_empty() => {
                self.names += 1;
                let snapshot = world.rng.pick(&snapshots);
                let settings = settings(world, world.oracle.usable_size(snapshot));
                Some(Job::Clone { snapshot, name: format!("clone{}", self.names), settings })
            }
            17 if all < volumes_max && !snapshots.is_empty() => {
                let snapshot = world.rng.pick(&snapshots);
                Some(Job::Rollback { volume, snapshot, keep: world.rng.one_in(2) })
            }
            _ => None,
        })
    }

    /// A volume grows or shrinks; one that was shrunk often gets back what it lost.
    fn resize(&mut self, world: &mut World, volume: u32, size: u64) -> Job {
        if world.rng.one_in(2) && size > BLOCK {
            let (cut, _) = range(world, size, true);
            let shrink = world.rng.pick(&[Shrink::Unused, Shrink::Discard, Shrink::Discard]);
            self.shrunk.push((volume, size));
            return Job::Resize { volume, size: cut.max(BLOCK), shrink };
        }
        let before = self.shrunk.iter().rposition(|&(other, was)| other == volume && was > size);
        if let Some(before) = before.filter(|_| world.rng.percent(70)) {
            let (volume, size) = self.shrunk.swap_remove(before);
            return Job::Resize { volume, size, shrink: Shrink::Never };
        }
        let more = world.rng.skewed(1 << 14) * BLOCK;
        Job::Resize { volume, size: (size + more).min(VOLUME_BYTES), shrink: Shrink::Never }
    }

    fn create(&mut self, world: &mut World) -> Job {
        self.names += 1;
        // Some names are used again after their volume is gone.
        let name = if world.rng.one_in(3) {
            format!("again{}", world.rng.below(3))
        } else {
            format!("volume{}", self.names)
        };
        let size = (1 + world.rng.skewed(4096)) * BLOCK;
        let settings = settings(world, size);
        Job::Create { name, size, settings }
    }
}

/// Settings for a volume of `size` bytes: mostly without a reservation.
pub(crate) fn settings(world: &mut World, size: u64) -> VolumeSettings {
    let on_full = world.rng.pick(&[OnFull::Error, OnFull::Wait]);
    let blocks = (size / BLOCK).min(1 << 14);
    let reserved = match world.rng.below(6) {
        0 => blocks,
        1 => world.rng.below(blocks + 1),
        2 => world.rng.skewed(blocks),
        _ => 0,
    };
    VolumeSettings { on_full, reserved: reserved * BLOCK }
}

/// A range of a volume: mostly in its hot part, as long as the seed likes.
pub(crate) fn range(world: &mut World, size: u64, whole: bool) -> (u64, u64) {
    let blocks = size / BLOCK;
    let hot = world.config.hot_blocks;
    let hot = if hot == 0 || world.rng.one_in(10) { blocks } else { hot.min(blocks) };
    let far = world.config.far && world.rng.one_in(2);
    let first = world.rng.below(hot);
    let first = if far { blocks - 1 - first } else { first };
    let count = (1 + world.rng.below(world.config.blocks_max)).min(blocks - first);
    if whole {
        return (first * BLOCK, count * BLOCK);
    }
    let edge = |world: &mut World| match world.rng.below(4) {
        0 => world.rng.below(8) * 512,
        1 => 0,
        _ => world.rng.below(BLOCK),
    };
    let from = first * BLOCK + edge(world);
    let to = ((first + count) * BLOCK - edge(world)).min(size);
    if to > from { (from, to - from) } else { (to.min(from), from - to + 1) }
}

/// Sometimes a zeroing goes on to anywhere.
pub(crate) fn longer(world: &mut World, size: u64, offset: u64, len: u64, mode: ZeroMode) -> u64 {
    if !world.rng.percent(world.config.long) {
        return len;
    }
    // What is kept allocated is counted block by block.
    let rest = size - offset - len;
    let most = if mode == ZeroMode::KeepAllocated { rest.min(600 * BLOCK) } else { rest };
    let more = world.rng.skewed(most);
    len + if world.rng.one_in(2) { more } else { more / BLOCK * BLOCK }
}

/// A reader of some megabytes in sequence, sometimes after a while in which nothing happened.
fn scan(world: &mut World, volume: u32, size: u64) -> Job {
    let blocks = size / BLOCK;
    let near = world.config.hot_blocks > 0 || world.rng.one_in(2);
    let regions = if near { 1 } else { blocks.div_ceil(REGION_BLOCKS) };
    let next = world.rng.below(regions) * REGION_BLOCKS;
    let next = if world.config.far { (blocks - 1) / REGION_BLOCKS * REGION_BLOCKS } else { next };
    let end = blocks.min(next + REGION_BLOCKS * world.rng.between(1, 3));
    if world.rng.one_in(2) {
        world.now_ns += SCAN_COLD_NS;
    }
    Job::Scan { volume, next, end, step: world.rng.pick(&[8, 32, 64]) }
}

/// Offers `job`; returns what is left of it.
fn offer(world: &mut World, job: Job) -> Check<(Option<Job>, Offer)> {
    let mut job = job;
    let submitted = match &mut job {
        Job::Write { volume, start, bytes, done, stamp, durability } => {
            let part = WritePart {
                volume: *volume,
                offset: *start + *done,
                data: &bytes[*done as usize..],
                stamp: *stamp,
                start: *start,
                durability: *durability,
            };
            match world.write(0, part)? {
                Submitted::Taken(taken) => {
                    *done += taken;
                    if *done < bytes.len() as u64 {
                        return Ok((Some(job), Offer::Progress));
                    }
                    Submitted::Taken(())
                }
                other => other.map(|_| ()),
            }
        }
        Job::Zero { volume, offset, len, mode, durability } => {
            match world.zero(0, *volume, *offset, *len, *mode, *durability)? {
                Submitted::Taken(taken) => {
                    (*offset, *len) = (*offset + taken, *len - taken);
                    if *len > 0 {
                        return Ok((Some(job), Offer::Progress));
                    }
                    Submitted::Taken(())
                }
                other => other.map(|_| ()),
            }
        }
        Job::Read { volume, first, blocks } => {
            let Some(buffer) = world.arena.alloc(*blocks) else {
                // The client's own limit: it waits for its reads.
                return Ok((Some(job), Offer::Busy));
            };
            let submitted = world.read(0, *volume, *first, buffer)?;
            if submitted != Submitted::Taken(()) {
                world.arena.free(buffer);
            }
            submitted
        }
        Job::Scan { volume, next, end, step } => {
            let blocks = (*step).min(*end - *next);
            let Some(buffer) = world.arena.alloc(blocks as u32) else {
                return Ok((Some(job), Offer::Busy));
            };
            let submitted = world.read(0, *volume, *next, buffer)?;
            if submitted != Submitted::Taken(()) {
                world.arena.free(buffer);
            } else if *next + blocks < *end {
                *next += blocks;
                return Ok((Some(job), Offer::Progress));
            } else if world.rng.one_in(2) {
                let turns = world.rng.skewed(100);
                return Ok((Some(Job::Rest { turns }), Offer::Progress));
            }
            submitted
        }
        Job::Rest { turns } => {
            *turns = turns.saturating_sub(1);
            let left = (*turns > 0).then_some(job);
            return Ok((left, Offer::Idle));
        }
        Job::Flush => world.flush(0)?,
        Job::Create { name, size, settings } => world.create(name, *size, *settings)?.map(|_| ()),
        Job::Snapshot { volumes } => world.snapshot(volumes)?,
        Job::Clone { snapshot, name, settings } => {
            world.clone_snapshot(*snapshot, name, *settings)?
        }
        Job::Rollback { volume, snapshot, keep } => world.rollback(*volume, *snapshot, *keep)?,
        Job::Delete { volume } => world.delete(*volume)?,
        Job::Resize { volume, size, shrink } => world.resize(*volume, *size, *shrink)?,
        Job::Set { volume, settings } => world.set(*volume, *settings)?,
        Job::Grow { bytes } => world.grow(*bytes)?,
        Job::AddDisk { bytes } => world.add_disk(*bytes)?,
        Job::RemoveDisk { keep } => world.remove_disk(*keep)?,
    };
    Ok(match submitted {
        Submitted::Taken(()) => (None, Offer::Progress),
        Submitted::Busy => (Some(job), Offer::Busy),
        Submitted::Refused(SubmitError::Busy) => (Some(job), Offer::Busy),
        Submitted::Refused(_) => (None, Offer::Progress),
    })
}
