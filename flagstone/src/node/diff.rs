//! Differences of volumes and snapshots: pages of them, walked in small steps between clients' requests.
//!
//! A page that is asked for is a walk, which takes one step of the engine's in a turn, whoever waits
//! else; walks take turns. One whose asker has gone ends.

use super::catalog::Entry;
use super::control::{ControlError, Reply};
use super::limits::{DIFF_EXTENTS, DIFF_WALKS};
use super::manage::answer;
use super::reactor::Reactor;
use flagstone_engine::{DiffError, DiffExtent, DiffSpec};
use std::collections::VecDeque;

/// A volume or snapshot that is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiffTarget {
    /// By its name; a snapshot's is `VOLUME@SNAPSHOT`.
    Name(String),
    /// By what the node calls it: the same one, even if another has its name now.
    Handle {
        /// The name that it had.
        name: String,
        /// See [`DiffSide`].
        handle: u64,
    },
}

/// One of the two that were compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiffSide {
    /// Its name; a snapshot's is `VOLUME@SNAPSHOT`.
    pub name: String,
    /// Its identity for ever.
    pub uuid: [u8; 16],
    /// Bytes.
    pub size_bytes: u64,
    /// What the node calls it; never that of another.
    pub handle: u64,
}

impl From<&DiffSide> for DiffTarget {
    fn from(side: &DiffSide) -> Self {
        Self::Handle { name: side.name.clone(), handle: side.handle }
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiffQuery {
    /// The older of the two; `None` for nothing, from which all that is mapped differs.
    pub older: Option<DiffTarget>,
    /// The newer; of the same pool.
    pub newer: DiffTarget,
    /// Bytes from the beginning: where the page begins.
    pub from: u64,
    /// Extents at most; not more than [`DIFF_EXTENTS`], whatever is asked for.
    pub limit: usize,
}

/// Differences, in the order of their offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiffPage {
    /// What it was compared with, if that was anything.
    pub older: Option<DiffSide>,
    /// What was compared.
    pub newer: DiffSide,
    /// What differs, from [`DiffQuery::from`] on.
    pub extents: Vec<DiffExtent>,
    /// Where the next page begins, in bytes; `None` if this is the last.
    pub next: Option<u64>,
}

/// A page on its way.
pub(super) struct Walk {
    pool: u32,
    spec: DiffSpec,
    at: u64,
    limit: usize,
    page: DiffPage,
    reply: Reply<DiffPage>,
}

/// What a step came to.
enum Step {
    Over(Result<(), ControlError>),
    /// It goes on, at once or when a page of the map is there.
    GoesOn {
        busy: bool,
    },
}

fn side(entry: &Entry) -> DiffSide {
    DiffSide {
        name: entry.name.to_string(),
        uuid: entry.uuid,
        size_bytes: entry.size,
        handle: entry.handle(),
    }
}

fn missing(name: &str) -> ControlError {
    let name = name.to_owned();
    match name.contains('@') {
        true => ControlError::NoSuchSnapshot { name },
        false => ControlError::NoSuchVolume { name },
    }
}

impl Reactor {
    pub(super) fn begin_diff(&mut self, query: &DiffQuery, reply: Reply<DiffPage>) {
        match self.walk_of(query) {
            Ok((pool, spec, older, newer)) => self.walks.push_back(Walk {
                pool,
                spec,
                at: query.from,
                limit: query.limit.clamp(1, DIFF_EXTENTS),
                page: DiffPage { older, newer, extents: Vec::new(), next: None },
                reply,
            }),
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn walk_of(
        &self,
        query: &DiffQuery,
    ) -> Result<(u32, DiffSpec, Option<DiffSide>, DiffSide), ControlError> {
        if !self.stop.is_running() {
            return Err(ControlError::Stopping);
        }
        if self.walks.len() >= DIFF_WALKS {
            return Err(ControlError::Overloaded);
        }
        let newer = self.compared(&query.newer)?;
        let older = query.older.as_ref().map(|older| self.compared(older)).transpose()?;
        if let Some(older) = older
            && older.pool != newer.pool
        {
            let (older, newer) = (older.name.to_string(), newer.name.to_string());
            return Err(ControlError::NotComparable { older, newer });
        }
        let spec = DiffSpec { older: older.map(|older| older.id), newer: newer.id };
        Ok((newer.pool, spec, older.map(side), side(newer)))
    }

    fn compared(&self, target: &DiffTarget) -> Result<&Entry, ControlError> {
        let (name, found) = match target {
            DiffTarget::Name(name) => {
                (name, self.catalog.named(name).or_else(|| self.catalog.snapshot(name)))
            }
            DiffTarget::Handle { name, handle } => (name, self.catalog.get(*handle)),
        };
        found.ok_or_else(|| missing(name))
    }

    /// Goes on with the walk whose turn it is, or with the first that need not wait.
    pub(super) fn advance_walks(&mut self) {
        for _ in 0..self.walks.len() {
            let Some(mut walk) = self.walks.pop_front() else { return };
            if walk.reply.is_closed() {
                continue;
            }
            match self.step(&mut walk) {
                Step::Over(result) => {
                    let page = walk.page;
                    answer(walk.reply, result.map(|()| page));
                    self.hungry |= !self.walks.is_empty();
                    return;
                }
                Step::GoesOn { busy: false } => {
                    self.hungry = true;
                    return self.walks.push_back(walk);
                }
                Step::GoesOn { busy: true } => {
                    // A leaf page was asked for.
                    self.pools[walk.pool as usize].touched = true;
                    self.engine_busy = true;
                    self.walks.push_back(walk);
                }
            }
        }
    }

    fn step(&mut self, walk: &mut Walk) -> Step {
        if !self.stop.is_running() {
            return Step::Over(Err(ControlError::Stopping));
        }
        let engine = &mut self.pools[walk.pool as usize].engine;
        match engine.diff(&walk.spec, walk.at..u64::MAX, &mut walk.page.extents, walk.limit) {
            Ok(Some(next)) if walk.page.extents.len() < walk.limit => {
                walk.at = next;
                Step::GoesOn { busy: false }
            }
            Ok(next) => {
                walk.page.next = next;
                Step::Over(Ok(()))
            }
            Err(DiffError::Busy) => Step::GoesOn { busy: true },
            Err(DiffError::NoVolume) => {
                let gone = |id: flagstone_block::VolumeId| engine.volume(id).is_none();
                let older = walk.page.older.as_ref();
                let older = older.filter(|_| walk.spec.older.is_some_and(gone));
                Step::Over(Err(missing(&older.unwrap_or(&walk.page.newer).name)))
            }
            Err(DiffError::Damaged { lba }) => Step::Over(Err(ControlError::MapDamaged { lba })),
            Err(DiffError::Stopping) => Step::Over(Err(ControlError::Stopping)),
        }
    }
}

/// Pages that are on their way.
pub(super) type Walks = VecDeque<Walk>;
