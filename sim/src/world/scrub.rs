//! Scrubs: what they report must be damaged, and on a sound disk they find nothing.

use super::{Check, World};
use crate::disk::Area;
use flagstone_block::{BLOCK_SIZE, Buffers, Lba, Tag, VolumeId};
use flagstone_engine::{BadBlock, OpenError, ScrubPlace, ScrubState};

/// How much of the report of a scrub was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    findings: usize,
    /// Blocks of the last of them.
    blocks: u32,
    /// Reads of the engine's own that a fault had touched when the scrub began.
    touched_before: u64,
}

impl World {
    /// Begins a scrub or, now and then, ends the one under way.
    pub fn toggle_scrub(&mut self) {
        let rate = self.rng.pick(&[0, 0, 0, 1 << 20, 64 << 20]);
        let cancel = self.rng.one_in(4);
        let begun = self.engine().start_scrub(rate);
        if begun.is_ok() {
            self.scrubbed = Seen { touched_before: self.own_reads_touched, ..Seen::default() };
        } else if cancel {
            self.engine().cancel_scrub();
        }
        self.log.step(&[60, rate], || format!("scrub at {rate} bytes per second: {begun:?}"));
    }

    /// Whatever a scrub has reported since the last look is damaged now.
    pub(super) fn check_scrub(&mut self) -> Check {
        let Some(report) = self.engine.as_ref().and_then(flagstone_engine::Engine::scrub) else {
            return Ok(());
        };
        let seen = self.scrubbed;
        let Some(last) = report.findings.last() else { return Ok(()) };
        if (report.findings.len(), last.blocks) == (seen.findings, seen.blocks) {
            return Ok(());
        }
        let mut wrong = None;
        let from = seen.findings.saturating_sub(1);
        for (i, finding) in report.findings.iter().enumerate().skip(from) {
            let known = if i + 1 == seen.findings { seen.blocks } else { 0 };
            // Several blocks of one finding: of a summary or a leaf page any may be damaged.
            let whole = !matches!(finding.place, ScrubPlace::Data { .. });
            let mut blocks = known..finding.blocks;
            let is_bad = |b: u32| self.disk.is_bad(finding.offset, b);
            let right = if whole { blocks.any(is_bad) } else { blocks.all(is_bad) };
            if !right {
                wrong.get_or_insert_with(|| format!("a scrub reports what is sound: {finding:?}"));
            }
        }
        (self.scrubbed.findings, self.scrubbed.blocks) = (report.findings.len(), last.blocks);
        // Damage that was moved lies in the content, and the disk knows nothing of it.
        let excused = self.own_reads_touched > seen.touched_before
            || self.moved_bad()
            || self.oracle.has_losses();
        match wrong.filter(|_| !excused) {
            Some(what) => Err(self.fail(what)),
            None => Ok(()),
        }
    }

    /// Blocks that cleaning and rewriting have put elsewhere.
    fn relocated(&mut self) -> u64 {
        let counters = self.engine().counters();
        counters.blocks_moved + counters.blocks_rewritten
    }

    /// Scrubs a pool that rests: nothing is found while nothing is damaged; then what is damaged
    /// is found, and what has a second copy is repaired.
    pub fn scrub_at_rest(&mut self) -> Check {
        let before = (self.relocated(), self.engine().usage().live);
        self.scrub_to_the_end()?;
        // What is moved meanwhile is read twice; what is deleted and had a leaf that could not be read may go.
        let moved = (self.relocated(), self.engine().usage().live) != before;
        let live = self.engine().usage().live / BLOCK_SIZE as u64;
        let report = self.engine().scrub().cloned();
        let sound = report.as_ref().is_some_and(|report| {
            report.findings.is_empty() && (report.data_blocks == live || moved)
        });
        if !sound {
            return Err(self.fail(format!("of {live} sound blocks a scrub says {report:?}")));
        }
        for _ in 0..self.rng.between(1, 3) {
            let area = self.rng.pick(&[
                Area::Superblock,
                Area::MetaCopy,
                Area::LeafPage,
                Area::LeafPage,
                Area::Data,
                Area::Summary,
                Area::SummaryCopy,
            ]);
            self.rot_area(area);
        }
        let moved_before = self.relocated();
        self.scrub_to_the_end()?;
        // What is moved meanwhile is read twice, or has left what is damaged.
        let moved = self.relocated() != moved_before;
        let report = self.engine().scrub().cloned().unwrap_or_else(|| unreachable!());
        // Damaged pages of leaves that are not in memory wait for the next opening.
        let lost = report.findings.iter().any(|finding| {
            !finding.repaired && matches!(finding.place, ScrubPlace::LeafPage { .. })
        });
        let lost = lost && self.config.map_memory.is_some();
        if report.data_blocks != live && !lost && !moved {
            return Err(self.fail(format!("of {live} blocks a scrub read others: {report:?}")));
        }
        let found =
            |wanted: fn(&ScrubPlace) -> bool| report.findings.iter().any(|f| wanted(&f.place));
        // A device that has grown, unlike its pool, has no copy at its end.
        let devices: Vec<(usize, u64)> =
            self.engine().devices().map(|device| (device.device, device.bytes)).collect();
        let grown = |(disk, bytes): &&(usize, u64)| self.disk.bytes(*disk) != *bytes;
        let missing = devices.iter().filter(grown).count() as u32;
        let mut copy = self.disk.clone();
        copy.reseed(crate::rng::Rng::new(0));
        match flagstone_engine::check(&mut copy, &mut |_, _| {}) {
            Ok(check) => {
                let recovery = &check.recovery;
                let pages = found(|p| matches!(p, ScrubPlace::LeafPage { .. }));
                let superblocks = found(|p| matches!(p, ScrubPlace::Superblock));
                let summaries = found(|p| matches!(p, ScrubPlace::Summary));
                let copies = found(|p| matches!(p, ScrubPlace::SummaryCopy { .. }));
                // Recovery may take the copy that lies in a segment which is not emptied yet: it
                // is the same version, but a scrub reads the one that counts. Either may be the
                // damaged one.
                let (mut older, mut newer) = (0, 0);
                for block in &check.listed {
                    let volume = self.engine().volume_by_name(&block.volume).map(|v| v.id);
                    if let Some(volume) = volume
                        && self.is_readable(VolumeId(volume), block.lba)?
                    {
                        older += 1;
                    }
                }
                let ever_moved = self.stats.blocks_moved + self.engine().counters().blocks_moved;
                for finding in report.findings.iter().filter(|_| ever_moved > 0) {
                    let ScrubPlace::Data { volume, lba } = &finding.place else { continue };
                    let Some(id) = self.engine().volume_by_name(volume).map(|v| v.id) else {
                        continue;
                    };
                    for i in 0..u64::from(finding.blocks) {
                        let (lba, offset) = (lba + i, finding.offset + i * BLOCK_SIZE as u64);
                        // Of several that have a block the two may name different ones.
                        let is_it = |b: &BadBlock| {
                            b.offset == offset || (b.volume == *volume && b.lba == lba)
                        };
                        let listed = check.listed.iter().any(is_it);
                        if !listed && !self.is_readable(VolumeId(id), lba)? {
                            newer += 1;
                        }
                    }
                }
                let left = recovery.meta_copies_damaged > 0
                    || (copies && !summaries && check.summary_copies_damaged > 0)
                    || (pages && !lost && recovery.leaf_pages_damaged > 0)
                    || (superblocks && recovery.superblocks_damaged > missing)
                    || (!summaries
                        && !lost
                        && !moved
                        && check.bad_blocks + newer != report.bad_blocks + older);
                if left {
                    return Err(self.fail(format!("a scrub left {check:?}; it said {report:?}")));
                }
            }
            // The check makes the map from summaries too.
            Err(OpenError::SummaryDamaged { .. }) => {}
            Err(error) => {
                return Err(self.fail(format!("a scrub left {error}; it said {report:?}")));
            }
        }
        self.disk.repair();
        Ok(())
    }

    /// Whether a pool at rest can read a block, wherever it looks for it.
    fn is_readable(&mut self, volume: VolumeId, lba: u64) -> Check<bool> {
        let Some(buffer) = self.arena.alloc(1) else {
            return Err(self.fail("the arena is too small"));
        };
        let tag = Tag(u64::MAX);
        let mut taken = false;
        for _ in 0..1000 {
            let engine = self.engine.as_mut().expect("the process lives");
            // It is refused while a leaf of the map has to be read first.
            taken = taken || engine.read(&mut self.arena, tag, volume, Lba(lba), buffer).is_ok();
            engine.pump(&mut self.arena, self.now_ns);
            if let Some(completion) = engine.next_completion() {
                self.arena.free(buffer);
                return Ok(completion.result.is_ok());
            }
            while let Some(io) = self.engine().next_io() {
                self.disk.submit(io, &self.arena).map_err(|what| self.log.fail(what))?;
            }
            while self.disk.in_flight() > 0 {
                let ended = self.disk.complete(0, &mut self.arena);
                let ended = ended.map_err(|what| self.log.fail(what))?;
                let engine = self.engine.as_mut().expect("the process lives");
                engine.device_done(&mut self.arena, ended.token, ended.result);
            }
        }
        Err(self.fail("stuck: a read of a pool at rest is never answered"))
    }

    fn scrub_to_the_end(&mut self) -> Check {
        if let Err(error) = self.engine().start_scrub(0) {
            return Err(self.fail(format!("a scrub was refused: {error}")));
        }
        self.scrubbed = Seen { touched_before: self.own_reads_touched, ..Seen::default() };
        self.quiesce()?;
        let state = self.engine().scrub().map(|report| report.state);
        if state != Some(ScrubState::Finished) {
            return Err(self.fail(format!("stuck: a scrub does not end: {state:?}")));
        }
        Ok(())
    }
}
