//! Requests of this machine itself: those of one volume don't hold up another's. They are the library's here; those of the
//! kernel's block devices stand in the same queue.
//!
//! The test is the reactor's thread, so that it says when an engine goes on: what is busy stays so until then.

use super::harness::{MIB, Site, pattern, wait};
use crate::node::local::{IoError, LocalOp, LocalRequest, Request};
use crate::node::reactor::Reactor;
use crate::node::start::set_up;
use crate::node::{OnFull, SettingsChange};
use flagstone_block::ZeroMode;
use tokio::sync::oneshot::{Receiver, channel};

/// Long enough that only a hang reaches it.
const PATIENCE_NS: u64 = 30_000_000_000;

const BLOCK: usize = 4096;

/// A reactor that nobody drives, and the volumes "vol", whose requests wait for space, and "other".
struct Still {
    reactor: Reactor,
    volume: u64,
    other: u64,
}

/// A request, and who waits for it.
struct Asked {
    name: u32,
    answer: Receiver<Result<Vec<u8>, IoError>>,
}

impl Still {
    fn new(site: &Site) -> Self {
        let running = site.start();
        running.volume("vol", 1 << 40);
        running.volume("other", 1 << 40);
        running.volume("third", 1 << 40);
        let change = SettingsChange { on_full: Some(OnFull::Wait), ..SettingsChange::default() };
        wait(running.node.set_volume("vol".into(), change)).expect("it is there");
        running.stop();
        let (reactor, _) = set_up(site.config.clone(), true).expect("the pools are fine");
        let handle = |name| reactor.catalog.named(name).expect("it was made").handle();
        let (volume, other) = (handle("vol"), handle("other"));
        let mut still = Self { reactor, volume, other };
        // What an opening leaves to be done is done.
        let warm = still.write(other, 0, pattern(0, BLOCK));
        assert!(still.answer(warm).is_ok());
        still
    }

    fn ask(&mut self, handle: u64, op: LocalOp, offset: u64, data: Vec<u8>) -> Asked {
        let (reply, answer) = channel();
        let asked = LocalRequest { handle, op, offset, data, reply };
        // It comes without an event that would end a sleep.
        self.reactor.hungry = true;
        Asked { name: self.reactor.local.push(Request::of_library(asked)), answer }
    }

    fn write(&mut self, handle: u64, offset: u64, data: Vec<u8>) -> Asked {
        self.ask(handle, LocalOp::Write, offset, data)
    }

    fn read(&mut self, handle: u64, offset: u64, len: usize) -> Result<Vec<u8>, IoError> {
        let asked = self.ask(handle, LocalOp::Read, offset, vec![0; len]);
        self.answer(asked)
    }

    /// Bytes of a request that is under way that the engine has.
    fn submitted(&mut self, asked: &Asked) -> u64 {
        self.reactor.local_submitted(asked.name).expect("it is under way")
    }

    /// Drives the reactor until something is so.
    fn until<T>(&mut self, mut wanted: impl FnMut(&mut Self) -> Option<T>) -> T {
        let give_up_ns = self.reactor.ring.now_ns() + PATIENCE_NS;
        loop {
            if let Some(found) = wanted(self) {
                return found;
            }
            assert!(self.reactor.ring.now_ns() < give_up_ns, "it is held up");
            let deadline_ns = self.reactor.deadline_ns().unwrap_or(give_up_ns).min(give_up_ns);
            self.reactor.step(Some(deadline_ns)).expect("the ring works");
        }
    }

    fn answer(&mut self, mut asked: Asked) -> Result<Vec<u8>, IoError> {
        self.until(|_| asked.answer.try_recv().ok())
    }

    fn stop(mut self) {
        self.reactor.begin_stop();
        self.reactor.run().expect("a clean stop");
    }
}

#[test]
fn a_busy_volume_holds_up_itself_alone() {
    let site = Site::new();
    let mut still = Still::new(&site);
    let (volume, other) = (still.volume, still.other);
    // A part of a block is read, changed and written; until then the engine takes nothing else for that block.
    let part = still.write(volume, 100, pattern(1, 1000));
    let busy = still.write(volume, 0, pattern(2, BLOCK));
    let behind = still.write(volume, MIB, pattern(3, BLOCK));
    let others = [0, MIB].map(|at| still.write(other, at, pattern(4 + at, BLOCK)));
    still.reactor.run_local();
    assert_eq!(still.submitted(&part), 1000);
    assert_eq!(still.submitted(&busy), 0);
    // Of one volume they come one after the other.
    assert_eq!(still.submitted(&behind), 0);
    for asked in &others {
        assert_eq!(still.submitted(asked), BLOCK as u64);
    }
    // Each is done in the end, the busy one after what it waited for.
    for asked in [part, busy, behind].into_iter().chain(others) {
        assert!(still.answer(asked).is_ok());
    }
    assert_eq!(still.read(volume, 0, BLOCK), Ok(pattern(2, BLOCK)));
    assert_eq!(still.read(volume, MIB, BLOCK), Ok(pattern(3, BLOCK)));
    assert_eq!(still.read(other, MIB, BLOCK), Ok(pattern(4 + MIB, BLOCK)));
    still.stop();
}

#[test]
fn a_read_without_memory_holds_up_no_write_of_another_volume() {
    let site = Site::new();
    let mut still = Still::new(&site);
    let (volume, other) = (still.volume, still.other);
    // All memory that reads may have is taken, as reads from a slow device would.
    let taken: Vec<_> = std::iter::from_fn(|| still.reactor.take_local(1)).collect();
    let first = still.ask(volume, LocalOp::Read, 0, vec![0; BLOCK]);
    let behind = still.write(volume, 0, pattern(1, BLOCK));
    let read = still.ask(other, LocalOp::Read, 0, vec![0; BLOCK]);
    let third = still.reactor.catalog.named("third").expect("it was made").handle();
    let others = still.write(third, 0, pattern(2, BLOCK));
    still.reactor.run_local();
    assert_eq!([&first, &behind, &read].map(|asked| still.submitted(asked)), [0, 0, 0]);
    assert_eq!(still.submitted(&others), BLOCK as u64);
    // What comes back is for the read that came first.
    let mut taken = taken.into_iter();
    still.reactor.give_local(taken.next().expect("memory"));
    still.reactor.run_local();
    assert_eq!([&first, &read].map(|asked| still.submitted(asked)), [BLOCK as u64, 0]);
    taken.for_each(|buffer| still.reactor.give_local(buffer));
    // What it was when the read came, whatever was asked for behind it.
    assert_eq!(still.answer(first), Ok(vec![0; BLOCK]));
    for asked in [behind, others] {
        assert!(still.answer(asked).is_ok());
    }
    assert_eq!(still.answer(read), Ok(pattern(0, BLOCK)));
    assert_eq!(still.read(volume, 0, BLOCK), Ok(pattern(1, BLOCK)));
    still.stop();
}

#[test]
fn a_volume_that_waits_for_space_holds_up_no_other() {
    let site = Site::with_pools(&[64 * MIB, 64 * MIB]);
    let mut still = Still::new(&site);
    let (volume, other) = (still.volume, still.other);
    let mut waits = (0..64)
        .find_map(|i| {
            let mut asked = still.write(volume, i * MIB, pattern(i, 1 << 20));
            let answered = still.until(|still| match asked.answer.try_recv() {
                Ok(answer) => Some(Some(answer)),
                Err(_) => {
                    (still.reactor.pools.iter().any(|pool| pool.waiting.len() == 1)).then_some(None)
                }
            });
            match answered {
                Some(answer) => {
                    assert!(answer.is_ok(), "{answer:?}");
                    None
                }
                None => Some(asked),
            }
        })
        .expect("more than the device holds");
    // In the same pool: what takes no space, and what is not to wait for it.
    let overwrite = still.write(other, 0, pattern(100, BLOCK));
    assert!(still.answer(overwrite).is_ok());
    assert_eq!(still.read(other, 0, BLOCK), Ok(pattern(100, BLOCK)));
    let new = still.write(other, MIB, pattern(101, 1 << 20));
    assert_eq!(still.answer(new), Err(IoError::NoSpace));
    let flush = still.ask(other, LocalOp::Flush, 0, Vec::new());
    assert!(still.answer(flush).is_ok());
    assert!(waits.answer.try_recv().is_err());
    // And what makes room for the one that waits.
    let discard = LocalOp::Zero { len: 16 * MIB, mode: ZeroMode::Discard };
    let discard = still.ask(volume, discard, 0, Vec::new());
    assert!(still.answer(discard).is_ok());
    assert!(still.answer(waits).is_ok());
    still.stop();
}
