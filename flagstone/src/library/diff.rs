//! Differences of volumes and snapshots, page by page.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use super::block_on::block_on;
use super::pool::Inner;
use crate::node::limits::DIFF_EXTENTS;
use crate::node::{ControlError, DiffExtent, DiffPage, DiffQuery, DiffTarget};

/// What differs between two volumes or snapshots, in the order of offsets: an iterator that asks for a page
/// at a time, or [`Diff::next_page`] for who must not wait.
///
/// In blocks of 4096 bytes, exactly, from what says where the blocks lie: no data is read. Extents tell whether
/// there is data now, or zeroes where there was data; what is zeroes in both does not differ, and what lies
/// behind the end of the smaller one is zeroes. A block that was overwritten with the same bytes differs.
///
/// A volume that is written meanwhile is compared, part by part, as it is when it is asked about: what was
/// answered before is told. Compare a snapshot where it is to be one moment.
///
/// It ends after an error.
pub struct Diff {
    inner: Arc<Inner>,
    query: DiffQuery,
    extents: VecDeque<DiffExtent>,
    over: bool,
}

impl fmt::Debug for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { query, over, .. } = self;
        f.debug_struct("Diff").field("query", query).field("over", over).finish_non_exhaustive()
    }
}

impl Diff {
    pub(super) fn new(inner: &Arc<Inner>, older: Option<DiffTarget>, newer: DiffTarget) -> Self {
        let query = DiffQuery { older, newer, from: 0, limit: DIFF_EXTENTS };
        Self { inner: Arc::clone(inner), query, extents: VecDeque::new(), over: false }
    }

    /// Goes on at `offset` bytes from the beginning, and forgets what it has asked for.
    #[must_use]
    pub fn starting_at(mut self, offset: u64) -> Self {
        self.query.from = offset;
        self.extents.clear();
        self.over = false;
        self
    }

    /// The next page, of some thousands of extents at most; `None` after the last. Not to be mixed with
    /// the iterator, which asks for pages of its own.
    ///
    /// # Errors
    /// [`ControlError`]: one of the two is not there, or not any more, they lie in different pools, or the
    /// map of one is damaged.
    pub async fn next_page(&mut self) -> Result<Option<DiffPage>, ControlError> {
        if self.over {
            return Ok(None);
        }
        self.over = true;
        let page = self.inner.node.diff(self.query.clone()).await?;
        // From now on these two, whatever is called by their names.
        self.query.older = page.older.as_ref().map(DiffTarget::from);
        self.query.newer = DiffTarget::from(&page.newer);
        if let Some(next) = page.next {
            (self.query.from, self.over) = (next, false);
        }
        Ok(Some(page))
    }
}

impl Iterator for Diff {
    type Item = Result<DiffExtent, ControlError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.extents.is_empty() {
            match block_on(self.next_page()) {
                Ok(page) => self.extents = page?.extents.into(),
                Err(error) => return Some(Err(error)),
            }
        }
        self.extents.pop_front().map(Ok)
    }
}
