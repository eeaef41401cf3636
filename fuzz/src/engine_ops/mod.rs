//! The engine under a list of operations, against a naive model.
//!
//! An input is `base` and then operations: requests of every kind, the device finishing its
//! commands in any order, time passing, a device failure, and the ends of lives: clean stop,
//! death of the process, power cut with writes lost and torn. After each end the pool is opened
//! again and must hold what [`model`] and [`crash`] allow.

mod bases;
mod crash;
mod model;
mod requests;

use crate::arena::Arena;
use crate::disk::Disk;
use crate::input::Input;
use crate::trace::say;
use crate::world::World;
use bases::BASES;
use crash::End;
use model::Model;
use requests::Pending;
use std::cell::RefCell;
use std::collections::HashMap;

/// Operations of one input.
const OPERATIONS: usize = 100;
/// Lives of one input: each costs a recovery.
const LIVES: u32 = 4;

thread_local! {
    /// Kept from run to run: an arena's pages and a disk's tables cost more than a run.
    static SPARE: RefCell<Option<(Disk, Arena)>> = const { RefCell::new(None) };
}

/// A list of operations; see the module.
pub fn engine_ops(input: &[u8]) {
    let mut input = Input::new(input);
    // A full pool takes longer to open, so most runs begin with an empty one.
    let base = &BASES[match input.u8() % 16 {
        0..10 => 0,
        10..13 => 1,
        13 | 14 => 2,
        _ => 3,
    }];
    let spare = SPARE.with(|spare| spare.borrow_mut().take());
    let (mut disk, arena) = spare.unwrap_or_else(|| (Disk::new(&base.image), Arena::new()));
    disk.reset(&base.image);
    disk.track();
    let mut run = Run::begin(open(disk, arena, 1), base.model());
    for _ in 0..OPERATIONS {
        if input.is_empty() {
            break;
        }
        run = run.operation(&mut input);
    }
    let spare = run.end();
    SPARE.with(|cell| *cell.borrow_mut() = Some(spare));
}

fn open(disk: Disk, arena: Arena, session: u64) -> World {
    match World::open(disk, arena, session) {
        Ok(world) => world,
        Err((error, ..)) => panic!("the pool does not open: {error}"),
    }
}

struct Run {
    world: World,
    model: Model,
    pending: HashMap<u64, Pending>,
    /// The next write's pattern.
    stamp: u32,
    lives: u32,
    /// The device failed a read in this life: blocks may be reported as damaged.
    read_failed: bool,
    /// The device failed a write or a flush in this life: the pool is poisoned.
    write_failed: bool,
}

impl Run {
    fn begin(world: World, model: Model) -> Self {
        Self {
            world,
            model,
            pending: HashMap::new(),
            stamp: 1 << 24,
            lives: 1,
            read_failed: false,
            write_failed: false,
        }
    }

    fn operation(mut self, input: &mut Input<'_>) -> Self {
        let what = input.u8();
        match what % 16 {
            0..=2 => self.write(what, input),
            3 => self.write_part(what, input),
            4 => self.zero(what, input),
            5 => self.read(input),
            6 => self.flush(),
            7 => {
                self.world.pump();
                self.deliver();
            }
            8 | 9 => {
                if self.world.queued() > 0 {
                    let which = usize::from(input.u8()) % self.world.queued();
                    self.world.finish(which);
                }
            }
            10 => self.turn(),
            11 => self.create(what, input),
            12 => self.delete(what, input),
            13 => self.resize(input),
            14 => {
                self.world.now_ns += u64::from(input.u8()) << 24;
                self.world.pump();
                self.deliver();
                self.block_status(input);
            }
            _ => match what >> 4 {
                // A failed device ends a life early, so it must be rare.
                0 if self.world.queued() > 0 => {
                    let which = usize::from(input.u8()) % self.world.queued();
                    let is_read = self.world.fail(which);
                    self.read_failed |= is_read;
                    self.write_failed |= !is_read;
                }
                1..6 if self.lives < LIVES => return self.stop(),
                6..11 if self.lives < LIVES => return self.crash(End::Kill, input),
                11.. if self.lives < LIVES => return self.crash(End::PowerCut, input),
                _ => {}
            },
        }
        self
    }

    /// The device finishes everything, the engine everything that follows from it.
    fn turn(&mut self) {
        self.world.turn();
        self.deliver();
    }

    /// Lets everything that was asked for be answered.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            self.turn();
            if self.pending.is_empty() {
                return;
            }
        }
        panic!("requests are never answered: {:?}", self.pending);
    }

    fn next_life(self, end: End, fate: impl FnMut() -> u8, power: Option<&mut Input<'_>>) -> Self {
        let Self { world, mut model, stamp, lives, .. } = self;
        say!("{end:?}");
        let (mut disk, arena) = world.die(fate);
        if let Some(input) = power {
            disk.cut_power(|| sectors(input));
        }
        let lives = lives + 1;
        let mut world = open(disk, arena, u64::from(lives));
        model.settle(&mut world, end);
        Self { stamp, lives, ..Self::begin(world, model) }
    }

    /// Stops cleanly and opens again.
    fn stop(mut self) -> Self {
        self.world.engine.shutdown();
        for _ in 0..10_000 {
            self.turn();
            if self.world.engine.is_stopped() {
                assert!(self.pending.is_empty(), "a stop left requests unanswered");
                assert_eq!(self.world.arena.in_use(), 0, "buffers leaked");
                let failed = self.write_failed;
                let next = self.next_life(End::Kill, || 0, None);
                assert!(failed || next.world.report.clean, "{:?}", next.world.report);
                return next;
            }
        }
        panic!("the stop does not end");
    }

    /// The process dies, perhaps because the power fails.
    fn crash(mut self, end: End, input: &mut Input<'_>) -> Self {
        // Answers that the engine had ready may or may not have reached their clients.
        self.deliver();
        self.world.engine.check().expect("consistent before the end");
        let mut arrived = input.clone();
        match end {
            End::Kill => self.next_life(end, || sectors(input), None),
            End::PowerCut => {
                let _ = input.u64();
                self.next_life(end, || sectors(&mut arrived), Some(input))
            }
        }
    }

    /// Compares everything a last time.
    fn end(mut self) -> (Disk, Arena) {
        self.finish();
        self.world.engine.check().expect("consistent at the end");
        if !self.read_failed {
            self.model.settle(&mut self.world, End::Kill);
        }
        self.world.die(|| 0)
    }
}

/// How much of a write that was on its way arrived: all or nothing, or it was torn.
fn sectors(input: &mut Input<'_>) -> u8 {
    match input.u8() {
        0..100 => 0,
        100..200 => u8::MAX,
        n => n % 8,
    }
}
