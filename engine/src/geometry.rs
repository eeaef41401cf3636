//! Where things lie on the devices; pure arithmetic over the superblock's numbers.

use crate::format::device::DeviceState;
use crate::format::meta::PAGE_BLOCKS;
use crate::format::record::SummaryCopy;
use crate::format::segment::SegmentShape;
use crate::format::superblock::{JournalPlace, SLOTS, SUPERBLOCK_END, Superblock, TAIL_BYTES};
use crate::limits::{
    JOURNAL_BLOCKS_MAX, JOURNAL_BLOCKS_MIN, POOL_BYTES_MIN, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN,
    SEGMENTS_MIN,
};
use flagstone_block::{BLOCK_BITS, BLOCK_SIZE, DEVICES, join_offset};

/// The segments of one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Number of the first.
    pub first: u32,
    /// How many; 0 if there is no such device.
    pub segments: u32,
    /// Size of the device in bytes, a multiple of a block.
    pub bytes: u64,
    /// Whether segments of it may be taken.
    pub open: bool,
    /// Whether it is being emptied.
    pub leaving: bool,
    /// Whether it failed, so that it is not written to any more.
    pub failed: bool,
}

/// Layout of one pool. `Copy`, so that it can be used while the engine is borrowed.
///
/// Segments are numbered across the devices, each of which has one range of numbers; there may be
/// gaps where a device was removed. All devices are laid out alike, so that each has room for the
/// journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// What each device holds, by its number.
    pub extents: [Extent; DEVICES],
    /// Slots in the journal ring.
    pub journal_blocks: u32,
    /// Which devices the journal lies on.
    pub journal: JournalPlace,
    /// Byte offset of the first segment on every device.
    pub data_offset: u64,
    /// Segment numbers: all that are in use are below. Never falls.
    pub segments: u32,
    /// Segments of devices that take what is written.
    pub capacity: u32,
    /// Segments of all devices.
    pub in_all: u32,
    /// Division of a segment.
    pub shape: SegmentShape,
}

/// Why no pool fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The device is too small.
    #[error("{bytes} bytes are too few: a pool needs at least 64 MiB and {SEGMENTS_MIN} segments")]
    TooSmall {
        /// Size of the device.
        bytes: u64,
    },
    /// The device is too small to be one of several.
    #[error("{bytes} bytes are too few: a device of this pool needs at least {least}")]
    DeviceTooSmall {
        /// Size of the device.
        bytes: u64,
        /// What it would take.
        least: u64,
    },
    /// The segment size is not a power of two in range.
    #[error("a segment of {bytes} bytes: choose a power of two from 1 MiB to 64 MiB")]
    SegmentSize {
        /// Size asked for.
        bytes: u32,
    },
    /// No devices, or too many.
    #[error("{count} devices: a pool has from 1 to {DEVICES}")]
    Devices {
        /// How many.
        count: usize,
    },
    /// Blocks could not be numbered.
    #[error("the devices are too large together: a pool must be smaller than 4 PiB")]
    TooLarge,
    /// The superblock's numbers contradict each other or the device.
    #[error("the superblock's layout does not fit a device of {device_bytes} bytes")]
    Inconsistent {
        /// Size of the device.
        device_bytes: u64,
    },
}

/// Bytes of a device, rounded down to whole blocks.
fn whole(bytes: u64) -> u64 {
    bytes & !(BLOCK_SIZE as u64 - 1)
}

impl Geometry {
    /// The layout that formatting devices of these sizes, in bytes, gives. The first holds the journal.
    ///
    /// # Errors
    /// `TooSmall`, `DeviceTooSmall`, `SegmentSize`, `Devices`, `TooLarge`.
    pub fn choose(devices: &[u64], segment_bytes: u32) -> Result<Self, GeometryError> {
        if !segment_bytes.is_power_of_two()
            || !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes)
        {
            return Err(GeometryError::SegmentSize { bytes: segment_bytes });
        }
        if devices.is_empty() || devices.len() > DEVICES {
            return Err(GeometryError::Devices { count: devices.len() });
        }
        let all: u64 = devices.iter().map(|bytes| whole(*bytes)).sum();
        if all < POOL_BYTES_MIN {
            return Err(GeometryError::TooSmall { bytes: all });
        }
        // Every device must have room for the ring.
        let least = devices.iter().copied().min().unwrap_or(0);
        let journal_blocks = (whole(least) >> BLOCK_BITS >> 7)
            .clamp(u64::from(JOURNAL_BLOCKS_MIN), u64::from(JOURNAL_BLOCKS_MAX))
            as u32;
        let mut geo = Self::empty(segment_bytes >> BLOCK_BITS, journal_blocks);
        for (device, &bytes) in devices.iter().enumerate() {
            let extent = geo.extent(bytes).map_err(|error| match error {
                GeometryError::DeviceTooSmall { bytes, .. } if devices.len() == 1 => {
                    GeometryError::TooSmall { bytes }
                }
                error => error,
            })?;
            geo = geo.with(device, Extent { first: geo.segments, ..extent });
        }
        if geo.capacity < SEGMENTS_MIN {
            return Err(GeometryError::TooSmall { bytes: all });
        }
        if !geo.can_number() {
            return Err(GeometryError::TooLarge);
        }
        Ok(geo)
    }

    fn empty(segment_blocks: u32, journal_blocks: u32) -> Self {
        let data_offset = (SUPERBLOCK_END + (u64::from(journal_blocks) << BLOCK_BITS))
            .next_multiple_of(u64::from(segment_blocks) << BLOCK_BITS);
        Self {
            extents: [Extent::default(); DEVICES],
            journal_blocks,
            journal: JournalPlace::default(),
            data_offset,
            segments: 0,
            capacity: 0,
            in_all: 0,
            shape: SegmentShape::new(segment_blocks),
        }
    }

    /// What a device of `bytes` bytes would hold; its numbers are still to be chosen.
    fn extent(&self, bytes: u64) -> Result<Extent, GeometryError> {
        let bytes = whole(bytes);
        let segment_bytes = u64::from(self.shape.blocks) << BLOCK_BITS;
        let room = bytes.saturating_sub(TAIL_BYTES).saturating_sub(self.data_offset);
        let segments = room / segment_bytes;
        if segments == 0 {
            let least = self.data_offset + segment_bytes + TAIL_BYTES;
            return Err(GeometryError::DeviceTooSmall { bytes, least });
        }
        let segments = u32::try_from(segments).map_err(|_| GeometryError::TooLarge)?;
        if bytes >> flagstone_block::DEVICE_SHIFT != 0 {
            return Err(GeometryError::TooLarge);
        }
        Ok(Extent { first: 0, segments, bytes, open: true, leaving: false, failed: false })
    }

    /// The layout with another extent for a device.
    fn with(mut self, device: usize, extent: Extent) -> Self {
        self.extents[device] = extent;
        // Numbers of what is no more don't count; they would not matter, either.
        let end = u64::from(extent.first) + u64::from(extent.segments);
        self.segments = self.segments.max(u32::try_from(end).unwrap_or(u32::MAX));
        let open = self.extents.iter().filter(|extent| extent.open);
        self.capacity = open.map(|extent| extent.segments).fold(0, u32::saturating_add);
        let all = self.extents.iter();
        self.in_all = all.map(|extent| extent.segments).fold(0, u32::saturating_add);
        self
    }

    /// Whether so many numbers were in use once, and so few are, that a table of all of them would be
    /// mostly empty.
    #[must_use]
    pub fn is_sparse(&self) -> bool {
        self.segments > self.in_all.saturating_mul(64).saturating_add(1 << 16)
    }

    /// Whether every block can be named by a 40-bit number.
    fn can_number(&self) -> bool {
        self.segments < u32::MAX - 1 && self.pbn(self.segments, 0) < (1 << 40) - 2
    }

    /// Whether a layout that this one becomes can go on with the leaf pages written so far: those
    /// have the size that goes with block numbers up to 8 TiB, or beyond.
    fn can_become(&self, other: &Self) -> bool {
        other.can_number() && other.leaf_page_blocks() == self.leaf_page_blocks()
    }

    /// Numbers for `segments` segments that no device but `but` has: the lowest there are.
    fn place(&self, segments: u32, but: Option<usize>) -> u32 {
        let others = || {
            let used = self.extents.iter().enumerate().filter(|(_, extent)| extent.segments > 0);
            used.filter(move |(device, _)| Some(*device) != but).map(|(_, extent)| extent)
        };
        let free = |first: u32| {
            let end = u64::from(first) + u64::from(segments);
            others()
                .all(|other| end <= u64::from(other.first) || first >= other.first + other.segments)
        };
        let ends = others().map(|other| other.first + other.segments);
        let fits = std::iter::once(0).chain(ends).filter(|first| free(*first)).min();
        fits.unwrap_or(self.segments)
    }

    /// The layout that a superblock describes, checked against the devices; `bytes_of` says how
    /// large those are that are there.
    ///
    /// # Errors
    /// `Inconsistent` if any number is not what formatting would have chosen.
    pub fn of(
        superblock: &Superblock,
        bytes_of: impl Fn(usize) -> Option<u64>,
    ) -> Result<Self, GeometryError> {
        let device_bytes = bytes_of(superblock.device as usize).unwrap_or(0);
        let inconsistent = GeometryError::Inconsistent { device_bytes };
        let segment_bytes = u64::from(superblock.segment_blocks) << BLOCK_BITS;
        if !superblock.segment_blocks.is_power_of_two()
            || segment_bytes < u64::from(SEGMENT_BYTES_MIN)
            || segment_bytes > u64::from(SEGMENT_BYTES_MAX)
            || superblock.journal_blocks < JOURNAL_BLOCKS_MIN
            || superblock.journal_blocks > JOURNAL_BLOCKS_MAX
            || superblock.segments > u64::from(u32::MAX - 1)
        {
            return Err(inconsistent);
        }
        let mut geo = Self::empty(superblock.segment_blocks, superblock.journal_blocks);
        (geo.journal, geo.segments) = (superblock.journal, superblock.segments as u32);
        for (device, row) in superblock.devices.iter() {
            let inconsistent = GeometryError::Inconsistent {
                device_bytes: bytes_of(device).unwrap_or(device_bytes),
            };
            let extent = geo.extent(row.bytes).map_err(|_| inconsistent)?;
            let leaving = row.state == DeviceState::Evacuating;
            let failed = row.failed.is_some();
            let end = u64::from(row.first_segment) + u64::from(row.segments);
            let overlaps = geo.extents.iter().any(|other| {
                other.segments > 0
                    && row.first_segment < other.first + other.segments
                    && u64::from(other.first) < end
            });
            if extent.bytes != row.bytes
                || row.segments != extent.segments
                || end > superblock.segments
                || overlaps
                || (!failed && bytes_of(device).is_some_and(|bytes| bytes < row.bytes))
            {
                return Err(inconsistent);
            }
            let open = !leaving && !failed;
            let (first, segments) = (row.first_segment, row.segments);
            geo = geo.with(device, Extent { first, segments, open, leaving, failed, ..extent });
        }
        let meta = u32::try_from(superblock.meta_segment).ok();
        // The pool fails as a whole with the device that has its journal, or the metadata: no table
        // says otherwise, or what is logged there would be taken for written.
        let kept = [Some(geo.journal.device as usize), meta.and_then(|meta| geo.device_of(meta))];
        if kept.into_iter().flatten().any(|device| geo.extents.get(device).is_none_or(|e| e.failed))
        {
            return Err(inconsistent);
        }
        // Fewer could not hold the metadata chain, its reserve and data at once.
        if geo.in_all < 8
            || geo.capacity == 0
            || !geo.can_number()
            || geo.is_sparse()
            || geo.data_offset != superblock.data_offset
            || !meta.is_some_and(|segment| geo.has(segment))
        {
            return Err(inconsistent);
        }
        Ok(geo)
    }

    /// The device whose segments come last among those that can grow to a size of `bytes` bytes,
    /// and the layout then; `None` if the device has become smaller, or if there are no numbers for
    /// its segments: behind them come another's, or the block numbers end, or the leaf pages written
    /// so far can't hold such numbers.
    #[must_use]
    pub fn grown(&self, device: usize, bytes: u64) -> Option<Self> {
        let now = *self.extents.get(device).filter(|extent| extent.segments > 0)?;
        if whole(bytes) < now.bytes {
            return None;
        }
        let extent = self.extent(bytes).ok()?;
        let next =
            self.extents.iter().filter(|other| other.segments > 0 && other.first > now.first);
        let next = next.map(|other| other.first).min();
        if next
            .is_some_and(|next| u64::from(now.first) + u64::from(extent.segments) > u64::from(next))
        {
            return None;
        }
        let grown =
            self.with(device, Extent { segments: extent.segments, bytes: extent.bytes, ..now });
        self.can_become(&grown).then_some(grown)
    }

    /// The layout with one more device, of `bytes` bytes.
    ///
    /// # Errors
    /// `Devices`, `DeviceTooSmall`, `TooLarge`.
    pub fn joined(&self, bytes: u64) -> Result<(usize, Self), GeometryError> {
        let vacant = self.extents.iter().position(|extent| extent.segments == 0);
        let device = vacant.ok_or(GeometryError::Devices { count: DEVICES + 1 })?;
        let extent = self.extent(bytes)?;
        let first = self.place(extent.segments, None);
        let joined = self.with(device, Extent { first, ..extent });
        if self.can_become(&joined) { Ok((device, joined)) } else { Err(GeometryError::TooLarge) }
    }

    /// The layout when a device takes what is written, or no longer does.
    #[must_use]
    pub fn opened(&self, device: usize, open: bool) -> Self {
        self.with(device, Extent { open, leaving: !open, ..self.extents[device] })
    }

    /// The layout when a device has failed.
    #[must_use]
    pub fn failed(&self, device: usize) -> Self {
        self.with(device, Extent { open: false, failed: true, ..self.extents[device] })
    }

    /// The layout without a device.
    #[must_use]
    pub fn without(&self, device: usize) -> Self {
        self.with(device, Extent::default())
    }

    /// The numbers of the devices.
    pub fn devices(&self) -> impl Iterator<Item = usize> + use<> {
        let extents = self.extents;
        (0..DEVICES).filter(move |&device| extents[device].segments > 0)
    }

    /// Those of them that did not fail.
    pub fn sound_devices(&self) -> impl Iterator<Item = usize> + use<> {
        let extents = self.extents;
        self.devices().filter(move |&device| !extents[device].failed)
    }

    /// The device that a segment lies on; `None` for the number of a device that was removed.
    #[must_use]
    pub fn device_of(&self, segment: u32) -> Option<usize> {
        // There are few; a table would take longer to look into.
        let holds = |extent: &Extent| segment.wrapping_sub(extent.first) < extent.segments;
        self.extents.iter().position(holds)
    }

    /// Whether there is a segment of this number.
    #[must_use]
    pub fn has(&self, segment: u32) -> bool {
        self.device_of(segment).is_some()
    }

    /// Bytes of all devices.
    #[must_use]
    pub fn pool_bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.bytes).sum()
    }

    /// Byte offset of a journal block.
    #[must_use]
    pub fn journal_offset(&self, jseq: u64) -> u64 {
        let slot = (jseq % u64::from(self.journal_blocks)) as u32;
        self.ring_slot(self.journal.device_of(jseq), slot)
    }

    /// Byte offset of a slot of a device's ring.
    #[must_use]
    pub fn ring_slot(&self, device: usize, slot: u32) -> u64 {
        join_offset(device, SUPERBLOCK_END + (u64::from(slot) << BLOCK_BITS))
    }

    /// Byte offset of the copy of a summary.
    pub(crate) fn copy_offset(&self, copy: SummaryCopy) -> u64 {
        let block = u32::from(copy.slot) * self.shape.summary_blocks();
        self.segment_offset(copy.segment, block)
    }

    /// Byte offset of block `block` of `segment`; one that no device has if there is no such
    /// segment.
    #[must_use]
    pub fn segment_offset(&self, segment: u32, block: u32) -> u64 {
        let Some(device) = self.device_of(segment) else {
            return !(BLOCK_SIZE as u64 - 1);
        };
        let blocks = u64::from(segment - self.extents[device].first) * u64::from(self.shape.blocks);
        join_offset(device, self.data_offset + ((blocks + u64::from(block)) << BLOCK_BITS))
    }

    /// Pool block number of block `block` of `segment`.
    #[must_use]
    pub fn pbn(&self, segment: u32, block: u32) -> u64 {
        u64::from(segment) * u64::from(self.shape.blocks) + u64::from(block)
    }

    /// Segment and block of a pool block number.
    #[must_use]
    pub fn locate(&self, pbn: u64) -> (u32, u32) {
        // A power of two; a division here would show in the time that opening takes.
        let blocks = self.shape.blocks;
        ((pbn >> blocks.trailing_zeros()) as u32, pbn as u32 & (blocks - 1))
    }

    /// The places of superblock generation `generation` on a device.
    #[must_use]
    pub fn superblock_places(&self, device: usize, generation: u64) -> [u64; 3] {
        let [one, two] = SLOTS[generation as usize % 2];
        [join_offset(device, one), join_offset(device, two), self.superblock_tail(device)]
    }

    /// Whether `blocks` data blocks from `pbn` lie in one segment's data area; perhaps of a device
    /// that was removed.
    #[must_use]
    pub fn is_data(&self, pbn: u64, blocks: u32) -> bool {
        let (_, block) = self.locate(pbn);
        pbn < self.pbn(self.segments, 0) && block + blocks <= self.shape.data_blocks
    }

    /// Metadata pages in a segment.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.shape.blocks / PAGE_BLOCKS
    }

    /// Bits that a pool block number takes in a leaf page, where two more values are used.
    #[must_use]
    pub fn pbn_bits(&self) -> u32 {
        64 - (self.pbn(self.segments, 0) + 1).leading_zeros()
    }

    /// Blocks of a leaf page: one in pools up to 8 TiB, two in larger ones.
    #[must_use]
    pub fn leaf_page_blocks(&self) -> u32 {
        crate::format::leaf::page_blocks(self.pbn_bits())
    }

    /// Leaf pages in a segment.
    #[must_use]
    pub fn leaf_pages(&self) -> u32 {
        self.shape.blocks / self.leaf_page_blocks()
    }

    /// The third superblock place of a device.
    #[must_use]
    pub fn superblock_tail(&self, device: usize) -> u64 {
        join_offset(device, self.extents[device].bytes.saturating_sub(TAIL_BYTES))
    }
}
