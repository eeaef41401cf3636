//! Opening a pool without one of its disks: what is found is right, or an error, and nothing is written.

use super::{Check, World, planted};
use crate::content::Place;
use crate::disk::FaultRates;
use crate::oracle::FoundVolume;
use crate::rng::Rng;
use flagstone_block::{BLOCK_SIZE, Buffer, Buffers as _, DeviceCommand, Lba, Tag, VolumeId};
use flagstone_engine::{Engine, OpenError, OpenOptions, PoolState, SubmitError};

/// Keeps these chances apart from those that seeds are made of.
const SALT: u64 = 0x6465_6772_6164_6564;
/// Blocks read at once.
const RUN: u64 = 64;

impl World {
    /// Now and then looks at what can be read without one of the disks.
    pub(super) fn look_without_a_disk(&mut self) -> Check {
        let mut rng = Rng::new(self.log.events() ^ SALT);
        let disks = self.disk.disks();
        let damaged = self.disk.is_damaged() || self.moved_bad() || self.is_rebuild_due();
        if disks.len() < 2 || damaged || !rng.one_in(3) {
            return Ok(());
        }
        let missing = rng.pick(&disks);
        let mut copy = self.disk.clone();
        copy.set_rates(FaultRates::default());
        copy.set_trouble(None);
        copy.remove(missing);
        let disk = std::mem::replace(&mut self.disk, copy);
        let looked = self.look_at_the_rest(missing);
        self.disk = disk;
        self.engine = None;
        self.arena.reset();
        looked
    }

    fn look_at_the_rest(&mut self, missing: usize) -> Check {
        self.arena.reset();
        let before = (self.disk.counters().writes, self.disk.counters().flushes);
        let options = OpenOptions {
            session: 1,
            map_memory: self.config.map_memory,
            rebuild: false,
            degraded: true,
            planted: planted(self.plant),
        };
        let opened = Engine::open(&mut self.disk, &mut self.arena, &options);
        let after = (self.disk.counters().writes, self.disk.counters().flushes);
        match opened {
            // It was none of the pool's any more, or not yet: this is an opening like any other.
            Ok((engine, _))
                if !engine.is_degraded()
                    && !engine.devices().any(|device| device.device == missing) =>
            {
                return Ok(());
            }
            Ok((engine, _)) => self.engine = Some(engine),
            // One that failed before may know of a journal that lay elsewhere.
            Err(OpenError::DeviceNeeded { device, .. })
                if device == missing || self.oracle.has_losses() =>
            {
                self.stats.needed += 1;
                return Ok(());
            }
            // All that a new pool has may be a disk without a superblock.
            Err(OpenError::NoSuperblock { .. } | OpenError::DeviceForeign { .. }) => return Ok(()),
            Err(error) => {
                return Err(self.fail(format!("without disk {missing}: {error}")));
            }
        }
        // One that failed before is not needed to write, either.
        let failed = !self.engine().is_degraded();
        if before != after && !failed {
            return Err(self.fail(format!("opening without disk {missing} has written")));
        }
        if self.engine().state() != PoolState::Degraded && !failed {
            return Err(self.fail("a pool with a missing disk is not degraded"));
        }
        self.stats.degraded += 1;
        let volumes: Vec<FoundVolume> = self.found_volumes();
        let bounds = self.bounds;
        if let Err(what) = self.oracle.judge_volumes(&volumes, bounds) {
            return Err(self.fail(format!("without disk {missing}: {what}")));
        }
        let Some(buffer) = self.arena.alloc(RUN as u32) else {
            return Err(self.fail("the arena is too small"));
        };
        for volume in volumes {
            let end = volume.size / BLOCK_SIZE as u64;
            for (first, blocks) in self.oracle.runs(volume.id, RUN) {
                for lba in first..(first + blocks).min(end) {
                    self.look_at_one(missing, buffer.part(0, 1), Place { volume: volume.id, lba })?;
                }
            }
        }
        Ok(())
    }

    /// Reads one block, which is a version that may be there, or an error.
    fn look_at_one(&mut self, missing: usize, buffer: Buffer, place: Place) -> Check {
        let tag = Tag(u64::MAX);
        let mut asked = false;
        for _ in 0..1000 {
            if !asked {
                let engine = self.engine.as_mut().expect("the process lives");
                let (volume, lba) = (VolumeId(place.volume), Lba(place.lba));
                match engine.read(&mut self.arena, tag, volume, lba, buffer) {
                    Ok(()) => asked = true,
                    Err(SubmitError::Busy) => {}
                    Err(error) => {
                        return Err(self.fail(format!("without disk {missing}: {error}")));
                    }
                }
            }
            let engine = self.engine.as_mut().expect("the process lives");
            engine.pump(&mut self.arena, self.now_ns);
            while let Some(io) = self.engine().next_io() {
                let reads = matches!(io.command, DeviceCommand::Read { .. });
                if !reads && self.engine().is_degraded() {
                    return Err(self.fail(format!("{:?} by a pool that is only read", io.command)));
                }
                if let Err(what) = self.disk.submit(io, &self.arena) {
                    return Err(self.fail(what));
                }
            }
            while self.disk.in_flight() > 0 {
                let ended = match self.disk.complete(0, &mut self.arena) {
                    Ok(ended) => ended,
                    Err(what) => return Err(self.fail(what)),
                };
                let engine = self.engine.as_mut().expect("the process lives");
                engine.device_done(&mut self.arena, ended.token, ended.result);
            }
            let Some(completion) = self.engine().next_completion() else { continue };
            if completion.result.is_err() {
                self.stats.missed += 1;
                return Ok(());
            }
            let bounds = self.bounds;
            let bytes = self.arena.bytes(buffer);
            return match self.oracle.judge_block(place, bytes, bounds) {
                Ok(()) => Ok(()),
                Err(what) => Err(self.fail(format!("without disk {missing}: {what}"))),
            };
        }
        Err(self.fail("stuck: a read is never answered"))
    }
}
