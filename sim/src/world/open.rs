//! Formatting, crashing, and opening again: with crashes during recovery, and twice.

use super::{Check, World, planted};
use crate::disk::{Area, CrashKind, CrashStyle, Disk, FaultRates, Layout};
use crate::oracle::{Bounds, Found};
use crate::rng::Rng;
use flagstone_engine::{Engine, FormatOptions, OpenError, OpenOptions, RecoveryReport};

impl World {
    /// Makes a pool; sometimes only at the second attempt.
    pub fn format(&mut self) -> Check {
        let mut options = FormatOptions {
            pool_uuid: [0; 16],
            nonce: self.rng.next(),
            segment_bytes: self.config.segment_bytes,
        };
        self.first_disks();
        self.disk.set_trouble(None);
        if self.rng.one_in(8) {
            self.disk.die_after(self.rng.below(14));
        }
        loop {
            options.pool_uuid[..8].copy_from_slice(&self.rng.next().to_le_bytes());
            let geometry = match Engine::format(&mut self.disk, &options) {
                Ok(geometry) => geometry,
                Err(_) if self.disk.take_death() => continue,
                Err(error) => return Err(self.fail(format!("format failed: {error}"))),
            };
            if !self.disk.take_death() {
                self.layout = Some(Layout::new(geometry));
                self.segments = (geometry.segments, geometry.segments);
                let bytes = self.config.pool_bytes;
                self.log.step(&[30, bytes], || {
                    format!("format {bytes} bytes: {} segments", geometry.segments)
                });
                self.bounds = Bounds::Answered;
                return Ok(());
            }
        }
    }

    fn layout(&self) -> Layout {
        self.layout.expect("the pool was formatted")
    }

    /// The process or the machine stops.
    pub fn crash(&mut self, kind: CrashKind) {
        let style = CrashStyle::draw(&mut self.rng);
        let (in_flight, pending) = (self.disk.in_flight(), self.disk.pending_blocks());
        self.log.step(&[31, kind as u64], || {
            format!(
                "CRASH {kind:?} with {in_flight} commands in flight and {pending} blocks not \
                 flushed; {style:?}"
            )
        });
        if let Some(engine) = &self.engine {
            self.layout = Some(Layout::new(*engine.geometry()));
            // What was flushed is certain only once it is durable which disk failed.
            if engine.is_parting() && self.bounds == Bounds::Answered {
                self.bounds = Bounds::Parting;
            }
        }
        self.disk.crash(kind, style, &self.layout());
        self.bury();
        self.stats.crashes += 1;
        self.bounds = match kind {
            _ if self.bounds == Bounds::Damaged => Bounds::Damaged,
            CrashKind::Kill
                if !self.device_failed
                    && matches!(self.bounds, Bounds::Answered | Bounds::Parting) =>
            {
                self.bounds
            }
            _ => Bounds::Durable,
        };
        self.device_failed = false;
        self.unsure = false;
        self.failing.clear();
        self.bad_leaves_told = 0;
    }

    /// Whether the superblock may tell the next opening to make the map anew.
    pub fn is_rebuild_due(&self) -> bool {
        self.rebuild_due
    }

    /// The process ended after a clean stop.
    pub fn stopped(&mut self) {
        self.bury();
        self.failing.clear();
        self.unsure = false;
        self.bounds = Bounds::Answered;
    }

    /// Whether a damaged block was moved at some time: the damage is then in its content, and
    /// undoing that of the disk brings it no more back.
    pub fn moved_bad(&self) -> bool {
        let now = self.engine.as_ref().map_or(0, |engine| engine.counters().clean_bad_moved);
        // What was lost with a disk stays what it is, wherever it is moved to.
        let lost = self.oracle.has_losses() && self.config.rot == 0;
        self.stats.bad_moved + now > 0 && !lost
    }

    /// The process is gone, with everything it had in memory.
    pub(crate) fn bury(&mut self) {
        if let Some(engine) = self.engine.take() {
            let counters = engine.counters();
            if engine.wants_rebuild() {
                self.rebuild_due = true;
                self.unfounded_rebuild |=
                    self.disk.counters().tainted_reads == self.tainted_at_open;
            }
            self.stats.segments_freed += counters.segments_freed;
            self.stats.seals += counters.seals;
            self.stats.compactions += counters.compactions;
            self.stats.batches += counters.batches;
            self.stats.segments_cleaned += counters.segments_cleaned;
            self.stats.blocks_moved += counters.blocks_moved;
            self.stats.bad_moved += counters.clean_bad_moved;
            self.stats.again += counters.blocks_again;
            self.stats.discards += counters.segments_discarded;
            self.stats.blocks_rewritten += counters.blocks_rewritten;
            self.stats.ring_turns += counters.batches / u64::from(engine.geometry().journal_blocks);
            self.stats.compactions_serving +=
                counters.compactions.saturating_sub(self.compactions_at_open);
        }
        self.forget_requests();
        self.arena.reset();
    }

    /// Damages something at rest, as the seed likes.
    pub fn rot(&mut self) {
        let mut any = |areas: &[Area]| self.rng.pick(areas);
        let area = any(&[
            Area::Superblock,
            Area::MetaCopy,
            Area::MetaCopy,
            Area::LeafPage,
            Area::Data,
            Area::Data,
            Area::Data,
            Area::Summary,
            Area::Journal,
        ]);
        self.rot_area(area);
    }

    /// Damages a block that is for `area`.
    pub fn rot_area(&mut self, area: Area) {
        let layout = self.layout();
        let block = self.disk.rot(area, &layout);
        self.log.step(&[33, block.map_or(0, u64::from)], || format!("damage {area:?}: {block:?}"));
    }

    fn attempt(&mut self) -> Result<(Engine, RecoveryReport), OpenError> {
        self.arena.reset();
        self.stats.recoveries += 1;
        let map_memory = self.config.map_memory;
        let (session, planted) = (self.rng.next(), planted(self.plant));
        let options = OpenOptions { session, map_memory, rebuild: false, degraded: false, planted };
        Engine::open(&mut self.disk, &mut self.arena, &options)
    }

    /// Opens the pool and holds what it finds against the model. On the way the process may die
    /// again, and what is found may be compared with what another attempt finds.
    pub fn open(&mut self) -> Check<RecoveryReport> {
        self.look_without_a_disk()?;
        let settled = self.disk.pending_blocks() == 0 && self.disk.is_sound();
        let exhaustive = settled && self.rng.percent(self.config.exhaustive);
        let twice = settled && (exhaustive || self.rng.one_in(8));
        // A segment that a disk failed before it was sealed has no summary.
        if twice && !self.oracle.has_losses() {
            self.compare_maps()?;
        }
        let reference = if twice { Some(self.look_aside(None)?) } else { None };
        if exhaustive {
            self.crash_everywhere(reference.as_ref())?;
        }
        let recrashes = self.rng.between(0, self.config.recrashes);
        let report = self.open_through(recrashes)?;
        self.check_size()?;
        self.check_members()?;
        self.disk.set_rates(FaultRates::default());
        let trouble = self.disk.trouble();
        self.disk.set_trouble(None);
        let mut found = self.look()?;
        if self.moved_bad() {
            // The cleaner was at work while leaves were read. What the damage took is gone for good,
            // and the model does not know what that was.
            return Ok(report);
        }
        // The cleaner may have moved meanwhile what could not be read, and its old place been written.
        if self.disk.is_damaged() || found.passed_over {
            let words = "damage is repaired";
            self.log.step(&[34], || words.into());
            self.disk.repair();
            found = self.look()?;
        }
        if let Some(reference) = reference {
            self.compare(&reference, &found)?;
        }
        let bounds = self.bounds;
        self.log.step(&[35, found.digest], || {
            format!("opened; {} volumes, judged by {bounds:?}; {report:?}", found.volumes.len())
        });
        if let Err(what) = self.oracle.judge(&found, bounds) {
            return Err(self.fail(what));
        }
        self.disk.set_trouble(trouble);
        self.bounds = Bounds::Answered;
        self.check_accounts()?;
        self.check_engine()?;
        Ok(report)
    }

    /// The leaf pages and what was logged since say the same as all the summaries.
    fn compare_maps(&mut self) -> Check {
        let mut copy = self.disk.clone();
        copy.reseed(Rng::new(0));
        match flagstone_engine::compare_maps(&mut copy, planted(self.plant)) {
            Ok(None) => Ok(()),
            Ok(Some(what)) => Err(self.fail(format!("pages and summaries disagree: {what:?}"))),
            Err(error) => Err(self.fail(format!("the maps can't be compared: {error}"))),
        }
    }

    /// A growth that was answered is there; one that was not may be.
    fn check_size(&mut self) -> Check {
        let geometry = *self.engine().geometry();
        let (least, most) = self.segments;
        let damaged = self.bounds == Bounds::Damaged || self.disk.is_damaged();
        let least_due = if damaged { 0 } else { least };
        if !(least_due..=most).contains(&geometry.segments) {
            let found = geometry.segments;
            return Err(self.fail(format!("{found} segments, not {least} to {most}")));
        }
        self.segments.0 = geometry.segments;
        self.layout = Some(Layout::new(geometry));
        Ok(())
    }

    fn open_through(&mut self, mut recrashes: u64) -> Check<RecoveryReport> {
        loop {
            if recrashes > 0 {
                let calls = self.rng.skewed(40);
                self.disk.die_after(calls);
            }
            let before = self.disk.counters();
            self.disk.begin_doubt();
            let opened = self.attempt();
            let died = self.disk.take_death();
            let touched = self.disk.counters().tainted_reads > before.tainted_reads;
            let wrote = self.disk.counters().writes > before.writes;
            // Superblocks and metadata pages are there more than once. Anything else may end the
            // log early, and what an attempt has written rests on what it found.
            if self.disk.doubts() && (wrote || opened.is_ok()) {
                self.bounds = Bounds::Damaged;
            }
            match opened {
                Ok((mut engine, report)) if !died => {
                    if self.unfounded_rebuild || (report.rebuilt && !touched && !self.rebuild_due) {
                        let what = format!("leaf pages were found wanting: {report:?}");
                        return Err(self.fail(what));
                    }
                    if report.journal_blocks == 0 {
                        // Nothing was written that would tell the new journal from the old.
                        let layout = self.layout();
                        self.disk.lose_doubtful_journal(&layout);
                    }
                    let counters = engine.counters();
                    if (counters.batches, counters.segments_cleaned) != (0, 0) {
                        let what = format!("opening wrote to the journal: {counters:?}");
                        return Err(self.fail(what));
                    }
                    // With a damaged summary it did without, and the next tries again.
                    self.rebuild_due &= touched && !report.rebuilt;
                    self.tainted_at_open = before.tainted_reads;
                    self.compactions_at_open = counters.compactions;
                    engine.set_device_discard(self.config.discard);
                    self.engine = Some(engine);
                    return Ok(report);
                }
                Ok(_) => return Err(self.fail("opening succeeded although the device was gone")),
                Err(error) if died => {
                    let kind = self.rng.pick(&[CrashKind::Kill, CrashKind::Power]);
                    self.log.step(&[36], || format!("died while opening ({error})"));
                    self.crash(kind);
                    recrashes -= 1;
                }
                Err(error) if self.disk.counters().failures > before.failures => {
                    self.log.step(&[37], || format!("opening failed with the device ({error})"));
                    self.disk.set_rates(FaultRates::default());
                    self.disk.set_trouble(None);
                    self.bounds = match self.bounds {
                        Bounds::Answered | Bounds::Parting => Bounds::Durable,
                        other => other,
                    };
                }
                Err(error) if touched => {
                    self.log.step(&[38], || format!("not opened: {error}; damage is repaired"));
                    self.disk.repair();
                    self.disk.set_rates(FaultRates::default());
                }
                Err(error) => return Err(self.fail(format!("opening failed: {error}"))),
            }
        }
    }

    /// What would be found on this disk, without changing it. `die_after` blocking calls the
    /// process dies once and then tries again; `None` if it does not get there.
    fn look_aside(&mut self, die_after: Option<u64>) -> Check<Found> {
        let seed = self.rng.next();
        let mut copy = self.disk.clone();
        copy.reseed(Rng::new(seed));
        let disk = std::mem::replace(&mut self.disk, copy);
        let found = self.look_on_copy(die_after);
        self.disk = disk;
        self.engine = None;
        self.arena.reset();
        found
    }

    fn look_on_copy(&mut self, die_after: Option<u64>) -> Check<Found> {
        if let Some(calls) = die_after {
            self.disk.die_after(calls);
            let first = self.attempt();
            if self.disk.take_death() {
                let kind = self.rng.pick(&[CrashKind::Kill, CrashKind::Power]);
                let style = CrashStyle::draw(&mut self.rng);
                let layout = self.layout();
                self.disk.crash(kind, style, &layout);
            } else if let Err(error) = first {
                return Err(self.fail(format!("opening failed: {error}")));
            }
        }
        match self.attempt() {
            Ok((engine, _)) => {
                self.engine = Some(engine);
                self.look()
            }
            Err(error) => Err(self.fail(format!("opening a second time failed: {error}"))),
        }
    }

    /// Dies at every blocking write and flush of a recovery in turn: each time the next recovery
    /// must find the same.
    fn crash_everywhere(&mut self, reference: Option<&Found>) -> Check {
        let mut copy = self.disk.clone();
        let before = copy.counters();
        copy.reseed(Rng::new(0));
        let disk: Disk = std::mem::replace(&mut self.disk, copy);
        let opened = self.attempt();
        let after = self.disk.counters();
        self.disk = disk;
        self.arena.reset();
        if let Err(error) = opened {
            return Err(self.fail(format!("opening failed: {error}")));
        }
        let calls = after.writes - before.writes + after.flushes - before.flushes;
        self.log.step(&[39, calls], || format!("recovery dies at each of its {calls} calls"));
        for call in 0..=calls {
            self.log.step(&[40, call], || format!("  dies at call {call}"));
            let found = self.look_aside(Some(call))?;
            if let Some(reference) = reference {
                self.compare(reference, &found)?;
            }
        }
        Ok(())
    }

    fn compare(&mut self, one: &Found, other: &Found) -> Check {
        if one.volumes != other.volumes || one.digest != other.digest {
            return Err(self.fail("two recoveries of the same disk found different things"));
        }
        Ok(())
    }
}
