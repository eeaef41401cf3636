//! Between engine and disk: commands out, completions back, upkeep, quiet.

use super::{Check, Request, World};
use crate::config::Order;
use flagstone_engine::PoolState;

/// Rounds after which a machine that should be quiet is not.
const ROUNDS: u32 = 200_000;

impl World {
    /// Lets the engine do its upkeep and takes what it has to say; returns whether there was
    /// anything.
    pub fn pump(&mut self) -> Check<bool> {
        let engine = self.engine.as_mut().expect("the process lives");
        engine.pump(&mut self.arena, self.now_ns);
        self.take_removed_disks();
        self.note_late_failure();
        self.check_scrub()?;
        Ok(self.drain()? | self.has_turn_left())
    }

    /// A pool that went on without a disk may fail as a whole later: it is short of something.
    fn note_late_failure(&mut self) {
        let poisoned = self
            .engine
            .as_ref()
            .is_some_and(|engine| matches!(engine.state(), PoolState::Failed(_)));
        self.device_failed |= poisoned && !self.failing.is_empty();
    }

    /// Whether the engine asks for another turn at once.
    fn has_turn_left(&self) -> bool {
        let timer = self.engine.as_ref().and_then(flagstone_engine::Engine::next_timer_ns);
        timer.is_some_and(|at| at <= self.now_ns)
    }

    /// Takes commands and answers from the engine; returns whether there were any.
    pub fn drain(&mut self) -> Check<bool> {
        let mut any = false;
        while let Some(io) = self.engine().next_io() {
            any = true;
            self.log
                .step(&[20, io.token.0], || format!("  issue {:#x} {:?}", io.token.0, io.command));
            if let Err(what) = self.disk.submit(io, &self.arena) {
                return Err(self.fail(what));
            }
        }
        while let Some(completion) = self.engine().next_completion() {
            any = true;
            self.completed(completion)?;
        }
        Ok(any)
    }

    /// Ends one command in flight, if there is any, in the order that the seed prefers.
    pub fn end_one(&mut self) -> Check<bool> {
        let count = self.disk.in_flight();
        if count == 0 {
            return Ok(false);
        }
        let any = self.rng.below(count as u64) as usize;
        let wants = |rank: u8| move |&i: &usize, disk: &crate::disk::Disk| disk.rank(i) == rank;
        let is_flush = wants(2);
        // Whatever is preferred, nothing waits for ever.
        let fair = if self.config.order == Order::ReadsLast { 97 } else { 85 };
        let order = if self.rng.percent(fair) { self.config.order } else { Order::Any };
        let i = match order {
            Order::Any => any,
            Order::Oldest => 0,
            Order::Newest => count - 1,
            Order::FlushesLast => {
                let start = (0..count).map(|i| (any + i) % count);
                start.clone().find(|i| !is_flush(i, &self.disk)).unwrap_or(any)
            }
            Order::ReadsLast => {
                let mut start = (0..count).map(|i| (any + i) % count);
                start.find(|&i| self.disk.rank(i) > 0).unwrap_or(any)
            }
            Order::FlushesFirst => (0..count).find(|i| is_flush(i, &self.disk)).unwrap_or(any),
        };
        self.end(i)?;
        Ok(true)
    }

    fn end(&mut self, i: usize) -> Check {
        let ended = match self.disk.complete(i, &mut self.arena) {
            Ok(ended) => ended,
            Err(what) => return Err(self.fail(what)),
        };
        self.log.step(&[21, ended.token.0, u64::from(ended.result.is_ok())], || {
            format!(
                "  done {:#x}: {} of {} bytes at {}: {:?}",
                ended.token.0, ended.name, ended.len, ended.offset, ended.result
            )
        });
        let mut failed = false;
        match &ended.read {
            Some((buffer, touched)) => self.note_touched(*buffer, touched),
            // A discard that fails says nothing of the device.
            None => failed = ended.result.is_err() && ended.name != "discard",
        }
        let engine = self.engine.as_mut().expect("the process lives");
        let is_member = engine.devices().any(|device| device.device == ended.disk);
        engine.device_done(&mut self.arena, ended.token, ended.result);
        // One that is about to be added need not harm the others.
        let poisoned = matches!(engine.state(), PoolState::Failed(_));
        if failed && is_member && !poisoned {
            self.spared(ended.disk);
        }
        self.stats.needed_disks += u64::from(failed && poisoned && !self.device_failed);
        self.device_failed |= failed && poisoned;
        Ok(())
    }

    /// A disk failed that the pool can do without.
    fn spared(&mut self, disk: usize) {
        if self.failing.contains(&disk) || !self.fails_anew(disk) {
            return;
        }
        self.log.step(&[64, disk as u64], || format!("disk {disk} fails, the pool goes on"));
        self.failing.push(disk);
        self.stats.spared += 1;
        self.oracle.disk_failed();
    }

    /// Whether the engine takes a disk for one that has just failed.
    fn fails_anew(&mut self, disk: usize) -> bool {
        let engine = self.engine();
        engine.is_parting() && engine.devices().any(|device| device.device == disk && device.failed)
    }

    /// Remembers which blocks of which read a fault touched: only those may be reported.
    fn note_touched(&mut self, buffer: flagstone_block::Buffer, touched: &[u32]) {
        if touched.is_empty() && !self.any_touched {
            return;
        }
        self.any_touched = true;
        let owner = self.slots.iter_mut().flatten().find_map(|slot| match &mut slot.request {
            Request::Read { buffer: whole, attempts, .. }
                if (whole.slot..whole.slot + whole.blocks).contains(&buffer.slot) =>
            {
                Some((buffer.slot - whole.slot, attempts))
            }
            _ => None,
        });
        match owner {
            Some((first, attempts)) => {
                // An attempt counts for the whole run: a second one that hits another block
                // leaves neither of them readable.
                for b in 0..buffer.blocks {
                    let attempt = &mut attempts[(first + b) as usize];
                    attempt.count = if touched.is_empty() { 0 } else { attempt.count + 1 };
                    attempt.touched = touched.contains(&b);
                }
            }
            None => self.own_reads_touched += u64::from(!touched.is_empty()),
        }
    }

    /// When requests that wait for space give up, if that is all that there is: parts of blocks, which were
    /// taken before a device that is leaving took the space with it.
    fn gives_up_at(&mut self) -> Option<u64> {
        let mut requests = self.slots.iter().flatten().map(|slot| &slot.request);
        let parts =
            requests.all(|request| matches!(request, Request::Change { part: Some(_), .. }));
        (parts && self.engine().usage().available == 0).then(|| self.engine().next_timer_ns())?
    }

    /// Runs until every request is answered, without help from the clock: nothing that a client
    /// waits for may depend on a timer.
    pub fn settle(&mut self) -> Check {
        for _ in 0..ROUNDS {
            let news = self.pump()?;
            let ended = self.end_one()?;
            if !news && !ended {
                if self.outstanding() == 0 {
                    return Ok(());
                }
                // What was taken when there was more room waits for space, and gives up in time.
                if self.oracle.has_losses()
                    && self.engine().is_holding()
                    && let Some(at) = self.engine().next_timer_ns()
                {
                    self.now_ns = self.now_ns.max(at);
                    continue;
                }
                // One more turn, in case the last completion has left something to do.
                if !self.pump()? && self.disk.in_flight() == 0 {
                    if let Some(at) = self.gives_up_at() {
                        self.now_ns = self.now_ns.max(at);
                        continue;
                    }
                    let waiting = self.outstanding();
                    let requests = self.slots.iter().flatten().map(|slot| &slot.request);
                    let requests = format!("{:?}", requests.collect::<Vec<_>>());
                    let usage = self.engine().usage();
                    self.log.step(&[61], || format!("{usage:?}; unanswered: {requests}"));
                    return Err(self.fail(format!("stuck: {waiting} requests are never answered")));
                }
            }
        }
        Err(self.fail("no end of activity"))
    }

    /// Runs until the engine has nothing to do at all, at whatever time.
    pub fn quiesce(&mut self) -> Check {
        self.settle()?;
        for _ in 0..ROUNDS {
            let news = self.pump()?;
            let ended = self.end_one()?;
            if news || ended {
                continue;
            }
            match self.engine().next_timer_ns() {
                Some(at) => self.now_ns = self.now_ns.max(at),
                None if self.unflushed() > 0 && !self.device_failed => {
                    return Err(self.fail("the engine rests, but not all is flushed"));
                }
                None => return Ok(()),
            }
        }
        Err(self.fail("the engine never comes to rest"))
    }

    /// The device failed, or it did not; the engine must know.
    pub fn check_state(&mut self) -> Check {
        let failed = matches!(self.engine().state(), PoolState::Failed(_));
        if failed != self.device_failed {
            let state = self.engine().state();
            return Err(self.fail(format!("the pool is {state:?}, unlike its device")));
        }
        Ok(())
    }
}
