//! Looking at everything: what a recovery found, and whether the accounts are right.

use super::{Check, World};
use crate::content::Place;
use crate::oracle::{Found, FoundVolume};
use flagstone_block::{BLOCK_SIZE, Buffer, Buffers, Lba, Tag, VolumeId};
use flagstone_engine::limits::{CLEAN_CLASSES, USER_STREAMS};
use flagstone_engine::{IoFault, StatusKind, SubmitError, VolumeUsage};

/// Blocks read at once.
const RUN: u64 = 256;

impl World {
    /// Reads every block that was ever written, of every volume, straight from the freshly
    /// opened engine. With damage on the disk, damaged blocks may be missing, and nothing else.
    pub(super) fn look(&mut self) -> Check<Found> {
        let mut found = Found { volumes: self.found_volumes(), ..Found::default() };
        // Before the engine, at work meanwhile, has taken what is left.
        let Some(buffer) = self.arena.alloc(RUN as u32) else {
            return Err(self.fail("the arena is too small"));
        };
        for volume in found.volumes.clone() {
            found.mix(u64::from(volume.id));
            found.mix(volume.size);
            let end = volume.size / BLOCK_SIZE as u64;
            for (first, blocks) in self.oracle.runs(volume.id, RUN) {
                let blocks = blocks.min(end.saturating_sub(first));
                if blocks > 0 {
                    self.look_at(&mut found, buffer, volume.id, first, blocks)?;
                }
            }
            // What was never written to must read as a hole, wherever it is.
            let lba = self.rng.below(end);
            let blocks = (end - lba).min(8);
            self.look_at(&mut Found::default(), buffer, volume.id, lba, blocks)?;
        }
        self.arena.free(buffer);
        Ok(found)
    }

    /// The volumes, by their numbers.
    pub(super) fn found_volumes(&mut self) -> Vec<FoundVolume> {
        let mut volumes: Vec<FoundVolume> = Vec::new();
        let engine = self.engine.as_ref().expect("a pool is open");
        for volume in engine.volumes().chain(engine.snapshots()) {
            volumes.push(FoundVolume {
                id: volume.id,
                name: volume.name.clone(),
                uuid: volume.uuid,
                size: volume.size,
                settings: volume.settings,
            });
        }
        volumes.sort_by_key(|volume| volume.id);
        volumes
    }

    fn look_at(
        &mut self,
        found: &mut Found,
        buffer: Buffer,
        volume: u32,
        first: u64,
        blocks: u64,
    ) -> Check {
        let buffer = buffer.part(0, blocks as u32);
        let kinds = self.kinds(volume, first, blocks)?;
        let tag = Tag(u64::MAX);
        let touched_before = self.disk.counters().tainted_reads;
        let mut turns = 0;
        loop {
            let engine = self.engine.as_mut().expect("the process lives");
            let volume = VolumeId(volume);
            match engine.read(&mut self.arena, tag, volume, Lba(first), buffer) {
                Ok(()) => break,
                // A leaf of the map has to be read first.
                Err(SubmitError::Busy) if turns < 1000 => turns += 1,
                Err(error) => {
                    return Err(self.fail(format!("a read after recovery was refused: {error}")));
                }
            }
            engine.pump(&mut self.arena, self.now_ns);
            self.run_disk()?;
        }
        let result = self.read_now(tag)?;
        match result {
            Ok(()) => {
                for ((b, bytes), kind) in
                    (0..).zip(self.arena.bytes(buffer).chunks_exact(BLOCK_SIZE)).zip(kinds)
                {
                    let place = Place { volume, lba: first + b };
                    if let Err(what) = self.oracle.found(found, place, kind, bytes) {
                        return Err(self.log.fail(what));
                    }
                }
            }
            // Of several blocks each alone, to tell which it is.
            Err(IoFault::BadBlock { .. }) if self.oracle.has_losses() && blocks > 1 => {
                for lba in first..first + blocks {
                    self.look_at(found, buffer, volume, lba, 1)?;
                }
            }
            Err(IoFault::BadBlock { .. }) if self.oracle.has_losses() => {
                self.stats.lost += 1;
                let place = Place { volume, lba: first };
                let damaged = self.disk.counters().tainted_reads > touched_before;
                match self.oracle.found_lost(found, place, kinds[0]) {
                    // What is damaged at rest is looked at once more when it is repaired.
                    Err(what) if !damaged => return Err(self.log.fail(what)),
                    _ => {}
                }
            }
            Err(IoFault::BadBlock { .. })
                if self.disk.counters().tainted_reads > touched_before || self.moved_bad() =>
            {
                found.passed_over = true;
            }
            Err(fault) => {
                return Err(self.fail(format!(
                    "after recovery, blocks {first}..{} of volume {volume} can't be read: {fault}",
                    first + blocks
                )));
            }
        }
        Ok(())
    }

    /// Runs the disk until nothing is under way.
    fn run_disk(&mut self) -> Check {
        self.submit_all()?;
        while self.disk.in_flight() > 0 {
            self.end_first()?;
            self.submit_all()?;
        }
        Ok(())
    }

    fn submit_all(&mut self) -> Check {
        while let Some(io) = self.engine().next_io() {
            if let Err(what) = self.disk.submit(io, &self.arena) {
                return Err(self.fail(what));
            }
        }
        Ok(())
    }

    fn end_first(&mut self) -> Check {
        let ended = match self.disk.complete(0, &mut self.arena) {
            Ok(ended) => ended,
            Err(what) => return Err(self.fail(what)),
        };
        let engine = self.engine.as_mut().expect("the process lives");
        engine.device_done(&mut self.arena, ended.token, ended.result);
        Ok(())
    }

    /// Runs the disk for one read alone.
    fn read_now(&mut self, tag: Tag) -> Check<Result<(), IoFault>> {
        for _ in 0..10_000 {
            self.submit_all()?;
            if let Some(completion) = self.engine().next_completion() {
                if completion.tag != tag {
                    return Err(self.fail("an answer that nobody waits for"));
                }
                return Ok(completion.result);
            }
            if self.disk.in_flight() == 0 {
                return Err(self.fail("stuck: a read is never answered"));
            }
            self.end_first()?;
        }
        Err(self.fail("no end of reads"))
    }

    fn kinds(&mut self, volume: u32, first: u64, blocks: u64) -> Check<Vec<StatusKind>> {
        let mut kinds = Vec::with_capacity(blocks as usize);
        let mut out = Vec::new();
        let block = BLOCK_SIZE as u64;
        while (kinds.len() as u64) < blocks {
            let at = first + kinds.len() as u64;
            let len = (blocks - kinds.len() as u64) * block;
            let engine = self.engine.as_ref().expect("the process lives");
            let asked = engine.block_status(VolumeId(volume), at * block, len, &mut out, 64);
            if let Err(error) = asked {
                return Err(self.fail(format!("block status refused: {error}")));
            }
            for extent in &out {
                kinds.extend(std::iter::repeat_n(extent.kind, (extent.len / block) as usize));
            }
        }
        Ok(kinds)
    }

    /// The engine's own recount agrees with its counters, at any moment.
    pub fn check_engine(&mut self) -> Check {
        let (engine, disk) = (self.engine.as_ref().expect("a pool is open"), &self.disk);
        let mut read = |offset, into: &mut [u8]| disk.peek(offset, into);
        match engine.check_with(&mut read) {
            Ok(()) => Ok(()),
            Err(what) => Err(self.fail(format!("the engine's accounts are wrong: {what}"))),
        }
    }

    /// The stopped pool passes the offline check, which sees no damage.
    pub fn check_offline(&mut self) -> Check {
        if self.oracle.has_losses() {
            return Ok(());
        }
        match flagstone_engine::check(&mut self.disk, &mut |_, _| {}) {
            Ok(report) if report.is_sound() && (!report.recovery.rebuilt || self.rebuild_due) => {
                Ok(())
            }
            Ok(report) => Err(self.fail(format!("the offline check found {report:?}"))),
            Err(error) => Err(self.fail(format!("the offline check failed: {error}"))),
        }
    }

    /// With nothing under way, the engine's accounts agree with the model and each other.
    pub fn check_accounts(&mut self) -> Check {
        if self.oracle.snapshots_taken || self.unsure {
            // What they share with their volumes the engine's own recount knows.
            return Ok(());
        }
        let block = BLOCK_SIZE as u64;
        let volumes: Vec<u32> = self.oracle.live_volumes().collect();
        let (mut live, mut kept, mut held) = (0, 0, 0);
        for volume in volumes {
            let (data, zeroes) = self.oracle.usage(volume);
            let told = self.engine().volume_usage(VolumeId(volume));
            let reserved = self.oracle.settings(volume).reserved;
            let mapped = data * block;
            let due = VolumeUsage {
                mapped,
                exclusive: mapped,
                kept: zeroes * block,
                held: reserved.saturating_sub(mapped + zeroes * block),
            };
            held += due.held;
            if told != Some(due) {
                return Err(self.fail(format!(
                    "volume {volume} has {data} blocks of data and {zeroes} of kept zeroes, but is \
                     said to use {told:?} bytes"
                )));
            }
            live += data;
            kept += zeroes;
        }
        let usage = self.engine().usage();
        if (usage.live, usage.kept, usage.held) != (live * block, kept * block, held) {
            return Err(self.fail(format!(
                "{live} blocks of data, {kept} of kept zeroes, {held} bytes held back are there, but \
                 the pool says {usage:?}"
            )));
        }
        let taken = usage.live + usage.kept + usage.held;
        if usage.available + taken > usage.capacity.max(taken) {
            return Err(self.fail(format!("more is available than is left over: {usage:?}")));
        }
        Ok(())
    }

    /// With every volume deleted and nothing under way, all space is back but what metadata, the
    /// open segments, and those that the cleaner was filling take.
    pub fn check_empty(&mut self) -> Check {
        let usage = self.engine().usage();
        if usage.live != 0 || usage.kept != 0 {
            return Err(self.fail(format!("nothing is left, but the pool says {usage:?}")));
        }
        let open = (USER_STREAMS + CLEAN_CLASSES) as u32;
        if usage.segments_free + usage.segments_meta + open < usage.segments {
            return Err(self.fail(format!("segments are lost: {usage:?}")));
        }
        Ok(())
    }
}
