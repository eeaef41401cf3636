//! Segment table: state, live count and generation of every segment.
//!
//! ```text
//! Free -> Open -> Sealing -> Sealed -> Dead -> Freeing -> Free
//!   |-> Meta (chain of metadata pages, or reserved as its next segment) -> Free
//!   |-> Map (leaf pages) -> Free
//!   \-> Copies (of summaries) -> Free
//! ```
//!
//! Invariants (checked by `Engine::check` in tests):
//! 1. A segment is in exactly one state; `free` lists exactly the free ones.
//! 2. `live` is the number of map entries that name the segment's blocks; of those that were counted, as
//!    long as that goes on after an opening. Until then no segment dies.
//! 3. Dead becomes Freeing only once what superseded its last block is durable and no read is
//!    under way in it; Freeing becomes Free only once its SEGMENT_FREE record is durable.
//!    Otherwise a crash could bring back a map entry whose block was overwritten.
//! 4. A free segment that is being discarded on the device is in no list, so nobody takes it.
//! 5. What becomes free on a device that takes nothing any more, or that failed, is absent, as are the numbers of
//!    devices that were removed: nobody takes it, and it does not count as free.

mod device_set;
mod devices;

use self::device_set::DeviceSet;
use super::free::FreeList;
use crate::format::record::{Seal, SummaryCopy};
use crate::geometry::Geometry;
use flagstone_block::DEVICES;
use std::collections::VecDeque;

/// Where a segment is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// May be taken.
    Free,
    /// Being filled with data.
    Open,
    /// Full; its summary is not yet known to be durable.
    Sealing,
    /// Its seal record is written.
    Sealed,
    /// Sealed, and nothing in it is live.
    Dead,
    /// Its free record is written, but not known to be durable.
    Freeing,
    /// Holds metadata pages, or is reserved for them.
    Meta,
    /// Holds leaf pages; its live count is that of the pages that the present chain names.
    Map,
    /// Holds copies of summaries.
    Copies,
    /// Holds nothing, and is not to be taken: its device is being removed, or was.
    Absent,
}

impl SegmentState {
    /// Number of states.
    pub const COUNT: usize = 10;

    fn is_metadata(self) -> bool {
        matches!(self, Self::Meta | Self::Map | Self::Copies)
    }
}

/// The number belongs to no device.
const NO_DEVICE: u8 = u8::MAX;

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub(crate) state: SegmentState,
    /// Number of its device, or [`NO_DEVICE`].
    device: u8,
    pub(crate) class: u8,
    pub(crate) entries: u16,
    pub(crate) live: u32,
    pub(crate) pins: u32,
    pub(crate) footer_crc: u32,
    pub(crate) generation: u64,
    pub(crate) first_lsn: u64,
    /// Mean LSN of its blocks: how old they are.
    pub(crate) mean_lsn: u64,
    /// The checkpoint of the chain with this epoch, and all later ones, state maps that have all that lies in it and
    /// counts.
    pub(crate) in_map_epoch: u64,
    /// Filled, in this life, by user writes that were taken for short-lived.
    pub(crate) hot: bool,
    /// No victim for the cleaner: it is being emptied, or can't be.
    pub(crate) left_alone: bool,
    /// Sealed and left to itself because something of it could not be read; worth another try
    /// when segments run out.
    holds_bad: bool,
    /// Sealed, but not counted among those that cleaning can gain from.
    excluded: bool,
    /// Absent, and free when a discard of it has ended.
    discarding: bool,
}

impl Segment {
    /// The record that it is sealed.
    pub(crate) fn seal(
        &self,
        segment: u32,
        lsn: u64,
        stated: bool,
        copy: Option<SummaryCopy>,
    ) -> Seal {
        Seal {
            segment,
            lsn,
            class: self.class,
            entries: self.entries,
            generation: self.generation,
            first_lsn: self.first_lsn,
            footer_crc: self.footer_crc,
            mean_lsn: self.mean_lsn,
            stated,
            copy,
        }
    }
}

/// All segments of a pool.
#[derive(Debug)]
pub struct SegmentTable {
    rows: Vec<Segment>,
    free: FreeList,
    /// Least number of free segments that are not discarded since [`SegmentTable::ripen`].
    stale_least: usize,
    /// Whether segments that become free are to be discarded.
    discards: bool,
    /// Devices that are being emptied: they take nothing any more, or only what the cleaner needs
    /// so that the others have room.
    leaving: DeviceSet,
    /// Those of them that take nothing, and devices that failed.
    closed: DeviceSet,
    /// Devices that failed.
    failed: DeviceSet,
    /// Absent segments of each device.
    absent: [u32; DEVICES],
    /// The device that metadata goes to.
    primary: usize,
    /// Metadata segments of each device.
    metas: [u32; DEVICES],
    /// Free segments that are being discarded.
    discarding: u32,
    /// Dead segments with the LSN that must be durable before they may be freed.
    dead: VecDeque<(u32, u64)>,
    /// Freeing segments with the journal block that must be durable.
    freeing: VecDeque<(u32, u64)>,
    live: u64,
    /// Live blocks of which nobody has counted yet in which segment they lie; `None` when all are.
    uncounted: Option<u64>,
    /// Whether segments in which nothing is live are queued to be freed.
    buries: bool,
    events: u64,
    /// Sealed segments that cleaning can gain from, and live blocks in them.
    sealed: [(u32, u64); DEVICES + 1],
    /// Rows with `holds_bad`.
    holding_bad: u32,
    meta: u32,
    released: u64,
    /// Those of them that hold leaf pages.
    maps: u32,
}

/// Where a segment is counted among the sealed ones.
fn place(row: &Segment) -> usize {
    usize::from(row.device).min(DEVICES)
}

impl SegmentTable {
    /// A table of free segments.
    #[must_use]
    pub fn new(geo: &Geometry) -> Self {
        let mut table = Self {
            rows: Vec::new(),
            free: FreeList::new(),
            stale_least: 0,
            discards: false,
            leaving: DeviceSet::default(),
            closed: DeviceSet::default(),
            failed: DeviceSet::default(),
            absent: [0; DEVICES],
            primary: 0,
            metas: [0; DEVICES],
            discarding: 0,
            dead: VecDeque::with_capacity(geo.segments as usize),
            freeing: VecDeque::with_capacity(geo.segments as usize),
            live: 0,
            uncounted: None,
            buries: true,
            events: 0,
            sealed: [(0, 0); DEVICES + 1],
            holding_bad: 0,
            meta: 0,
            released: 0,
            maps: 0,
        };
        table.fit(geo);
        table
    }

    /// Numbers that `geo` gives to devices, and that had none, become free segments of theirs.
    pub(crate) fn fit(&mut self, geo: &Geometry) {
        let row = Segment {
            state: SegmentState::Absent,
            device: NO_DEVICE,
            class: 0,
            entries: 0,
            live: 0,
            pins: 0,
            footer_crc: 0,
            generation: 0,
            first_lsn: 0,
            mean_lsn: 0,
            in_map_epoch: 0,
            hot: false,
            left_alone: false,
            holds_bad: false,
            excluded: false,
            discarding: false,
        };
        let segments = geo.segments as usize;
        self.rows.resize(segments.max(self.rows.len()), row);
        for device in geo.devices() {
            let extent = geo.extents[device];
            self.leaving.set(device, extent.leaving);
            self.failed.set(device, extent.failed);
            let closed = self.closed.has(device) && !extent.open;
            self.closed.set(device, closed || extent.failed);
            self.free.shun(device, !extent.open);
            self.free.reserve(device, extent.segments as usize);
            for segment in extent.first..extent.first + extent.segments {
                let row = &mut self.rows[segment as usize];
                if row.device == NO_DEVICE {
                    row.device = device as u8;
                    self.absent[device] += 1;
                    self.set_free(segment, false);
                }
            }
        }
        self.primary = geo.journal.device as usize;
        self.dead.reserve(segments.saturating_sub(self.dead.len()));
        self.freeing.reserve(segments.saturating_sub(self.freeing.len()));
        self.events += 1;
    }

    /// Rises whenever there may be more to clean than before.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    /// Fills the free list from the states; once, when states are known.
    pub(crate) fn index_free(&mut self) {
        self.free.clear();
        self.meta = self.rows.iter().filter(|row| row.state.is_metadata()).count() as u32;
        self.maps = self.census()[SegmentState::Map as usize];
        self.sealed = [(0, 0); DEVICES + 1];
        for row in self.rows.iter().filter(|row| row.state == SegmentState::Sealed) {
            let (segments, live) = &mut self.sealed[place(row)];
            (*segments, *live) = (*segments + 1, *live + u64::from(row.live));
        }
        self.exclude_failed();
        (self.absent, self.metas) = ([0; DEVICES], [0; DEVICES]);
        for segment in 0..self.len() {
            let row = &mut self.rows[segment as usize];
            let device = usize::from(row.device);
            if device < DEVICES {
                self.metas[device] += u32::from(row.state.is_metadata());
            }
            if device < DEVICES && matches!(row.state, SegmentState::Free | SegmentState::Absent) {
                row.state = SegmentState::Absent;
                self.absent[device] += 1;
                self.set_free(segment, false);
            }
        }
    }

    pub(crate) fn row(&self, segment: u32) -> &Segment {
        &self.rows[segment as usize]
    }

    pub(crate) fn row_mut(&mut self, segment: u32) -> &mut Segment {
        &mut self.rows[segment as usize]
    }

    /// Number of segments.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // a pool always has segments
    pub fn len(&self) -> u32 {
        self.rows.len() as u32
    }

    /// Free segments, without those of devices that are being emptied.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.free.len() as u32
    }

    /// As [`SegmentTable::free`], with those of devices that are being emptied: what the cleaner may
    /// take.
    pub(crate) fn free_all(&self) -> u32 {
        self.free.all() as u32
    }

    /// From now on segments that become free are to be discarded on the device, or not.
    pub(crate) fn set_discards(&mut self, discards: bool) {
        self.discards = discards;
        if !discards {
            self.free.keep_stale();
        }
    }

    /// Free segments that are not discarded yet.
    pub(crate) fn stale(&self) -> u32 {
        self.free.stale() as u32
    }

    /// How many segments were free, and not discarded, ever since the last call.
    pub(crate) fn ripen(&mut self) -> u32 {
        std::mem::replace(&mut self.stale_least, self.free.stale()) as u32
    }

    /// The segment that is free for longest, to be discarded: nobody takes it until
    /// [`SegmentTable::discarded`].
    pub(crate) fn begin_discard(&mut self) -> Option<u32> {
        let segment = self.free.take_oldest_stale()?;
        self.free_to_absent(segment);
        self.rows[segment as usize].discarding = true;
        self.stale_least = self.stale_least.saturating_sub(1);
        self.discarding += 1;
        Some(segment)
    }

    /// The discard of a segment has ended, somehow.
    pub(crate) fn discarded(&mut self, segment: u32) {
        self.discarding -= 1;
        self.released += 1;
        self.rows[segment as usize].discarding = false;
        self.set_free(segment, false);
    }

    /// A planted bug: a segment that must not be discarded yet.
    pub(crate) fn newest_dead(&self) -> Option<u32> {
        self.dead.back().map(|&(segment, _)| segment)
    }

    /// Segments on their way to being free.
    #[must_use]
    pub fn dying(&self) -> u32 {
        (self.dead.len() + self.freeing.len()) as u32 + self.discarding
    }

    /// Segments that hold metadata, leaf pages among it, or are reserved as its next.
    #[must_use]
    pub fn meta(&self) -> u32 {
        self.meta
    }

    /// Segments that hold leaf pages.
    pub(crate) fn maps(&self) -> u32 {
        self.maps
    }

    /// The cleaner can't empty this segment: what is dead in it can't be gained.
    pub(crate) fn exclude(&mut self, segment: u32) {
        let row = &mut self.rows[segment as usize];
        if row.state == SegmentState::Sealed && !row.excluded {
            row.excluded = true;
            let (segments, live) = &mut self.sealed[place(row)];
            (*segments, *live) = (*segments - 1, *live - u64::from(row.live));
        }
    }

    /// As [`SegmentTable::exclude`], until [`SegmentTable::take_bad`]: something of the segment
    /// can't be read just now.
    pub(crate) fn hold_bad(&mut self, segment: u32) {
        self.exclude(segment);
        let row = &mut self.rows[segment as usize];
        if row.state == SegmentState::Sealed && !row.holds_bad {
            row.holds_bad = true;
            self.holding_bad += 1;
        }
    }

    /// Whether the segment is one of those that something could not be read of; from now on it
    /// is not.
    pub(crate) fn take_bad(&mut self, segment: u32) -> bool {
        let row = &mut self.rows[segment as usize];
        self.holding_bad -= u32::from(row.holds_bad);
        std::mem::take(&mut row.holds_bad)
    }

    /// Whether the segment is worth another try.
    pub(crate) fn holds_bad(&self, segment: u32) -> bool {
        self.row(segment).holds_bad
    }

    /// Segments that are worth another try.
    pub(crate) fn holding_bad(&self) -> u32 {
        self.holding_bad
    }

    /// Whether there is so much room between the live blocks of sealed segments that putting
    /// them closer together would set a segment free. Those of a device that is being emptied become none.
    #[must_use]
    pub fn can_gain(&self, data_blocks: u32) -> bool {
        let counts = |device: &usize| !self.leaving.has(*device);
        let sealed = (0..self.sealed.len()).filter(counts).map(|device| self.sealed[device]);
        let (segments, live) = sealed.fold((0, 0), |(n, sum), (m, live)| (n + m, sum + live));
        u64::from(segments) * u64::from(data_blocks) >= live + u64::from(data_blocks)
    }

    /// Live blocks in all segments, counted or not.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.live + self.uncounted()
    }

    /// Live blocks of which it is not known yet in which segment they lie.
    pub(crate) fn uncounted(&self) -> u64 {
        self.uncounted.unwrap_or(0)
    }

    /// There are live blocks that are not counted. Until all are, no segment is buried; unless
    /// `bury`, a planted bug.
    pub(crate) fn begin_counting(&mut self, blocks: u64, bury: bool) {
        self.uncounted = Some(blocks);
        self.buries = bury;
    }

    /// One of them lies in `segment`.
    pub(crate) fn count(&mut self, segment: u32) {
        self.born(segment);
        let row = &self.rows[segment as usize];
        self.sealed[place(row)].1 += u64::from(row.state == SegmentState::Sealed && !row.excluded);
        self.counted(1);
    }

    /// So many of them are counted now, or gone.
    pub(crate) fn counted(&mut self, blocks: u64) {
        if let Some(uncounted) = &mut self.uncounted {
            *uncounted -= blocks;
        }
    }

    /// All are.
    pub(crate) fn end_counting(&mut self) {
        self.uncounted = None;
        self.buries = true;
        self.events += 1;
    }

    /// Takes a free segment into `state`.
    pub(crate) fn take(&mut self, state: SegmentState) -> Option<u32> {
        let segment = if state.is_metadata() {
            self.free.take_near(self.primary)?
        } else {
            self.free.take()?
        };
        self.stale_least = self.stale_least.min(self.free.stale());
        let row = self.row_mut(segment);
        debug_assert_eq!((row.state, row.live, row.pins), (SegmentState::Free, 0, 0));
        row.state = state;
        (row.left_alone, row.holds_bad, row.excluded) = (false, false, false);
        row.hot = false;
        row.class = 0;
        let device = usize::from(row.device);
        self.metas[device] += u32::from(state.is_metadata());
        self.meta += u32::from(state.is_metadata());
        self.maps += u32::from(state == SegmentState::Map);
        Some(segment)
    }

    /// Puts a segment on the free list.
    pub(crate) fn release(&mut self, segment: u32) {
        let row = self.row_mut(segment);
        debug_assert_eq!((row.live, row.pins), (0, 0));
        let state = std::mem::replace(&mut row.state, SegmentState::Absent);
        self.meta -= u32::from(state.is_metadata());
        self.maps -= u32::from(state == SegmentState::Map);
        self.released += 1;
        let device = usize::from(self.row(segment).device);
        self.absent[device] += 1;
        self.metas[device] -= u32::from(state.is_metadata());
        self.set_free(segment, self.discards);
    }

    /// A map entry now names a block of `segment`.
    pub(crate) fn born(&mut self, segment: u32) {
        self.rows[segment as usize].live += 1;
        self.live += 1;
    }

    /// A map entry no longer does, because of the record `lsn`.
    pub(crate) fn died(&mut self, segment: u32, lsn: u64) {
        self.events += 1;
        let row = &mut self.rows[segment as usize];
        row.live -= 1;
        self.live -= 1;
        if row.state == SegmentState::Sealed {
            self.sealed[place(row)].1 -= u64::from(!row.excluded);
            if row.live == 0 {
                self.bury(segment, lsn);
            }
        }
    }

    /// The seal record of `segment` is written.
    /// The checkpoint of the chain `in_map_epoch`, and all later ones, state maps that have what lies there.
    pub(crate) fn sealed(&mut self, segment: u32, lsn: u64, in_map_epoch: u64) {
        self.events += 1;
        let row = self.row_mut(segment);
        (row.state, row.in_map_epoch) = (SegmentState::Sealed, in_map_epoch);
        let (live, at) = (u64::from(row.live), place(row));
        self.sealed[at] = (self.sealed[at].0 + 1, self.sealed[at].1 + live);
        if self.has_failed(segment) {
            self.exclude(segment);
        }
        if live == 0 {
            self.bury(segment, lsn);
        }
    }

    fn bury(&mut self, segment: u32, lsn: u64) {
        if !self.buries {
            return;
        }
        self.take_bad(segment);
        let row = self.row(segment);
        let (at, counts) = (place(row), u32::from(!row.excluded));
        self.sealed[at].0 -= counts;
        self.row_mut(segment).state = SegmentState::Dead;
        self.dead.push_back((segment, lsn));
    }

    /// Queues the sealed segments in which nothing is live: after recovery.
    pub(crate) fn bury_empty(&mut self, lsn: u64) {
        for segment in 0..self.len() {
            let row = self.row(segment);
            if row.state == SegmentState::Sealed && row.live == 0 {
                self.bury(segment, lsn);
            }
        }
    }

    /// A dead segment that may be freed now that `lsn_durable` is durable. The caller logs the
    /// record and calls [`SegmentTable::freed`].
    pub(crate) fn next_dead(&self, lsn_durable: u64) -> Option<u32> {
        let &(segment, lsn) = self.dead.front()?;
        (lsn <= lsn_durable && self.row(segment).pins == 0).then_some(segment)
    }

    /// The LSN that the oldest dead segment waits for.
    pub(crate) fn dead_waits_for(&self) -> Option<u64> {
        self.dead.front().map(|&(_, lsn)| lsn)
    }

    /// The segment that `next_dead` named is being freed by a record in journal block `jseq`.
    pub(crate) fn freed(&mut self, jseq: u64) {
        let (segment, _) = self.dead.pop_front().expect("next_dead named it");
        self.freeing.push_back((segment, jseq));
    }

    /// The free record is on the device. Until then the segment counts as dead, and metadata
    /// compaction states it as sealed: the record could still be lost.
    pub(crate) fn free_logged(&mut self, segment: u32) {
        if self.row(segment).state == SegmentState::Dead {
            self.row_mut(segment).state = SegmentState::Freeing;
        }
    }

    /// Whether a segment waits for its free record, in a journal block below `retired`, to
    /// become durable.
    pub(crate) fn has_freeing(&self, retired: u64) -> bool {
        self.freeing.front().is_some_and(|&(_, jseq)| jseq < retired)
    }

    /// Journal blocks below `durable` are durable: frees what waited for that.
    pub(crate) fn settle(&mut self, durable: u64) {
        while let Some(&(segment, jseq)) = self.freeing.front()
            && jseq < durable
        {
            self.freeing.pop_front();
            self.release(segment);
        }
    }

    /// Segments that were set free, of all kinds.
    pub(crate) fn released(&self) -> u64 {
        self.released
    }

    /// Dead blocks in segments that were filled and are not free. Looks at every row.
    pub(crate) fn dead_blocks(&self) -> u64 {
        use SegmentState::{Dead, Freeing, Sealed, Sealing};
        let filled = |row: &&Segment| matches!(row.state, Sealing | Sealed | Dead | Freeing);
        let rows = self.rows.iter().filter(filled);
        rows.map(|row| u64::from(u32::from(row.entries).saturating_sub(row.live))).sum()
    }

    /// Segments per state, in the order of [`SegmentState`].
    #[must_use]
    pub fn census(&self) -> [u32; SegmentState::COUNT] {
        let mut census = [0; SegmentState::COUNT];
        for row in &self.rows {
            census[row.state as usize] += 1;
        }
        census
    }
}
