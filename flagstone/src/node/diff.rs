//! Differences of volumes and snapshots: pages of them, walked in small steps between clients' requests.

use super::catalog::Entry;
use super::control::{ControlError, Reply};
use super::limits::DIFF_EXTENTS;
use super::manage::answer;
use super::reactor::Reactor;
use super::walks::{Step, Walk, missing};
use flagstone_engine::{DiffError, DiffExtent, DiffSpec};

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
pub(super) struct Comparison {
    pub(super) pool: u32,
    spec: DiffSpec,
    at: u64,
    limit: usize,
    page: DiffPage,
    pub(super) reply: Reply<DiffPage>,
}

impl Comparison {
    /// It has come to its end.
    pub(super) fn end(self, result: Result<(), ControlError>) {
        answer(self.reply, result.map(|()| self.page));
    }
}

fn side(entry: &Entry) -> DiffSide {
    DiffSide {
        name: entry.name.to_string(),
        uuid: entry.uuid,
        size_bytes: entry.size,
        handle: entry.handle(),
    }
}

impl Reactor {
    pub(super) fn begin_diff(&mut self, query: &DiffQuery, reply: Reply<DiffPage>) {
        match self.walk_of(query) {
            Ok((pool, spec, older, newer)) => {
                self.walks.push_back(Walk::Comparison(Box::new(Comparison {
                    pool,
                    spec,
                    at: query.from,
                    limit: query.limit.clamp(1, DIFF_EXTENTS),
                    page: DiffPage { older, newer, extents: Vec::new(), next: None },
                    reply,
                })));
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn walk_of(
        &self,
        query: &DiffQuery,
    ) -> Result<(u32, DiffSpec, Option<DiffSide>, DiffSide), ControlError> {
        self.check_walk()?;
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

    pub(super) fn compared(&self, target: &DiffTarget) -> Result<&Entry, ControlError> {
        let (name, found) = match target {
            DiffTarget::Name(name) => {
                (name, self.catalog.named(name).or_else(|| self.catalog.snapshot(name)))
            }
            DiffTarget::Handle { name, handle } => (name, self.catalog.get(*handle)),
        };
        found.ok_or_else(|| missing(name))
    }

    pub(super) fn compare_step(&mut self, walk: &mut Comparison) -> Step {
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
