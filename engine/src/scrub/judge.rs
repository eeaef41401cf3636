//! Whether what was read is right, and what is said if it is not.

use super::{Named, ScrubFinding, ScrubPlace, Slot, Stage, Work};
use crate::engine::Engine;
use crate::format::journal::JournalHeader;
use crate::format::leaf;
use crate::format::meta::{PAGE_BLOCKS, PageHeader};
use crate::format::segment::{ENTRY_BYTES, Entry};
use crate::format::superblock::Superblock;
use crate::map::LEAF_BLOCKS;
use crate::plant::Plant;
use crate::segment::SegmentState;
use crate::summary_copies::Copied;
use crate::token::Token;
use flagstone_block::{BLOCK_SIZE, Buffer, Buffers, DeviceCommand, DeviceError, Lba, split_offset};

impl Slot {
    pub(super) fn bytes(&self) -> Buffer {
        self.summary.unwrap_or(self.buffer)
    }

    /// The segment that must not be freed while this is under way.
    pub(super) fn pinned(&self) -> Option<u32> {
        match self.work {
            Work::Summary { segment, .. } | Work::Blocks { segment, .. } => Some(segment),
            _ => None,
        }
    }
}

impl Engine {
    fn named(&self, from: usize, item: usize) -> Option<Named> {
        self.scrub.run.as_ref()?.named.get(from + item).copied()
    }

    /// Blocks of one item.
    fn scrub_item_blocks(&self, work: Work) -> u32 {
        match work {
            Work::Leaf { .. } => self.geo.leaf_page_blocks(),
            Work::Summary { .. } | Work::Copy(_) => self.geo.shape.summary_blocks(),
            _ => 1,
        }
    }

    /// Where an item lies in the buffer, in blocks.
    fn scrub_item_at(&self, work: Work, item: usize) -> u32 {
        match work {
            Work::Journal { .. } | Work::Chain { .. } => item as u32,
            Work::Blocks { from, first, .. } => {
                self.named(from, item).map_or(0, |named| named.block - first)
            }
            _ => 0,
        }
    }

    /// Where an item lies on the device.
    pub(super) fn scrub_offset(&self, work: Work, item: usize) -> u64 {
        match work {
            Work::Superblock { place } => self.superblock_place(place).0,
            Work::Journal { first } => self.geo.journal_offset(first + item as u64),
            Work::Chain { segment, first, .. } => {
                let index = (first % u64::from(self.geo.pages())) as u32;
                self.geo.segment_offset(segment, index * PAGE_BLOCKS + item as u32)
            }
            Work::Leaf { page, .. } => {
                let (segment, block) = self.geo.locate(page.pbn);
                self.geo.segment_offset(segment, block)
            }
            Work::Copy(copy) => self.geo.copy_offset(copy.place),
            Work::Summary { segment, .. } => {
                self.geo.segment_offset(segment, self.geo.shape.data_blocks)
            }
            Work::Blocks { segment, from, .. } => {
                let block = self.named(from, item).map_or(0, |named| named.block);
                self.geo.segment_offset(segment, block)
            }
        }
    }

    /// Judges what a slot has read, up to an item that must be read again.
    pub(super) fn judge_slot(&mut self, bufs: &impl Buffers, i: usize) {
        loop {
            let slot = self.scrub.slots[i];
            if slot.at == slot.items {
                return self.end_slot(i);
            }
            let (work, item) = (slot.work, slot.at);
            let part =
                slot.bytes().part(self.scrub_item_at(work, item), self.scrub_item_blocks(work));
            let read = match slot.alone {
                Some(result) => result.is_ok(),
                None => !slot.refused,
            };
            let right = read && self.is_right(bufs.bytes(part), work, item);
            if right {
                if let Work::Summary { segment, .. } = work {
                    self.list_sealed(bufs, segment, part);
                }
            } else if self.still_counts(work, item) {
                let Some(result) = slot.alone else {
                    // As every read, once more before it is given up, alone, so that a
                    // neighbour's damage is not taken for its own.
                    self.counters.read_retries += 1;
                    let slot = &mut self.scrub.slots[i];
                    (slot.alone, slot.stage) = (Some(Ok(())), Stage::Reading);
                    let offset = self.scrub_offset(work, item);
                    let command = DeviceCommand::Read { offset, buffer: part };
                    return self.emit(Token::ScrubRead(i as u32), command);
                };
                self.report_damage(work, item, result.err());
            }
            let slot = &mut self.scrub.slots[i];
            (slot.at, slot.alone) = (item + 1, None);
        }
    }

    fn end_slot(&mut self, i: usize) {
        let slot = self.scrub.slots[i];
        let blocks = slot.items as u64 * u64::from(self.scrub_item_blocks(slot.work));
        if let Some(report) = &mut self.scrub.report {
            report.done = (report.done + blocks * BLOCK_SIZE as u64).min(report.total);
            if let Work::Blocks { .. } = slot.work {
                report.data_blocks += blocks;
            }
        }
        self.release_slot(i);
    }

    fn is_right(&self, bytes: &[u8], work: Work, item: usize) -> bool {
        match work {
            Work::Superblock { place } => {
                let (offset, device) = self.superblock_place(place);
                let (_, position) = split_offset(offset);
                Superblock::decode(position, bytes)
                    .is_ok_and(|found| found == self.super_write.current().on(device))
            }
            Work::Journal { first } => {
                let (jseq, ring) = (first + item as u64, self.geo.journal_blocks);
                let slot = (jseq % u64::from(ring)) as u32;
                JournalHeader::decode(self.pool_tag, ring, slot, bytes)
                    .is_ok_and(|(header, _)| header.jseq == jseq)
            }
            Work::Chain { segment, first, epoch } => {
                let page = first + item as u64 / u64::from(PAGE_BLOCKS);
                let index = (page % u64::from(self.geo.pages())) as u32;
                PageHeader::decode(self.pool_tag, segment, index, bytes).is_ok_and(|(header, _)| {
                    header.page == page && header.epoch == epoch && header.nonce == self.meta.nonce
                })
            }
            Work::Leaf { page, .. } => leaf::Header::decode(self.pool_tag, bytes)
                .is_ok_and(|(header, _, crc)| crc == page.crc && header.pbn == page.pbn),
            Work::Copy(Copied { of: segment, .. }) | Work::Summary { segment, .. } => {
                self.summary_entries(segment, bytes).is_some()
            }
            Work::Blocks { from, .. } => {
                self.named(from, item).is_none_or(|named| crate::format::crc32(bytes) == named.crc)
            }
        }
    }

    /// Whether anything still needs what an item was read for.
    fn still_counts(&self, work: Work, item: usize) -> bool {
        match work {
            Work::Superblock { .. } => true,
            Work::Journal { first } => first + item as u64 >= self.journal.tail_durable,
            Work::Chain { epoch, .. } => self.meta.epoch == epoch,
            Work::Leaf { volume, lba, page } => {
                self.leaf_at(volume, lba).is_some_and(|(_, now)| now == Some(page))
            }
            Work::Copy(copy) => self.counted_copies().any(|counted| counted == copy),
            Work::Summary { segment, generation } => {
                let row = self.segs.row(segment);
                row.state == SegmentState::Sealed && row.generation == generation
            }
            Work::Blocks { segment, from, .. } => {
                self.planted.has(Plant::ScrubUnpinned)
                    || self.named(from, item).is_some_and(|named| {
                        let pbn = self.geo.pbn(segment, named.block);
                        self.map_names(named.volume, named.lba, pbn, named.crc)
                    })
            }
        }
    }

    fn report_damage(&mut self, work: Work, item: usize, device: Option<DeviceError>) {
        let name = |id: u32| {
            self.volumes.get(id).map_or_else(String::new, |volume| volume.info.name.clone())
        };
        let (place, segment) = match work {
            Work::Superblock { .. } => (ScrubPlace::Superblock, None),
            Work::Journal { first } => (ScrubPlace::Journal { jseq: first + item as u64 }, None),
            Work::Chain { segment, first, .. } => {
                let page = first + item as u64 / u64::from(PAGE_BLOCKS);
                (ScrubPlace::MetadataPage { page }, Some(segment))
            }
            Work::Leaf { volume, lba, page } => {
                let segment = self.geo.locate(page.pbn).0;
                (ScrubPlace::LeafPage { volume: name(volume), lba }, Some(segment))
            }
            Work::Copy(copy) => (ScrubPlace::SummaryCopy { of: copy.of }, Some(copy.place.segment)),
            Work::Summary { segment, .. } => (ScrubPlace::Summary, Some(segment)),
            Work::Blocks { segment, from, .. } => {
                let Some(named) = self.named(from, item) else { return };
                let reader = self.reader_of(named.volume, Lba(named.lba));
                // What only a deleted snapshot still has harms nobody.
                let Some(reader) = reader else { return };
                let place = ScrubPlace::Data { volume: name(reader), lba: named.lba };
                (place, Some(segment))
            }
        };
        let finding = ScrubFinding {
            place,
            segment,
            offset: self.scrub_offset(work, item),
            blocks: self.scrub_item_blocks(work),
            device,
            repaired: false,
        };
        self.counters.scrub_findings += 1;
        if let Some(report) = &mut self.scrub.report {
            report.add(finding);
        }
        self.want_repair(work, item);
        if let (Work::Summary { segment, .. }, Some(run)) = (work, &mut self.scrub.run) {
            run.named.clear();
            run.asking = None;
            run.search = Some((segment, 0, 0));
        }
    }

    /// Lists the blocks of a sealed segment that the map names.
    fn list_sealed(&mut self, bufs: &impl Buffers, segment: u32, summary: Buffer) {
        let Some(mut run) = self.scrub.run.take() else { return };
        self.begin_list(&mut run, segment);
        run.asking = (self.slab.away() > 0).then_some((0, 0));
        run.named.clear();
        if let Some((footer, entries)) = self.summary_entries(segment, bufs.bytes(summary)) {
            for (block, entry) in (0u32..).zip(entries.chunks_exact(ENTRY_BYTES)) {
                let Entry { volume: line, lba, crc, lsn_delta, .. } = Entry::decode(entry);
                let lsn = footer.first_lsn + u64::from(lsn_delta);
                let volume = self.volumes.owner(line, lsn, lba / LEAF_BLOCKS as u64);
                if self.map_names(volume, lba, self.geo.pbn(segment, block), crc) {
                    run.named.push(Named { block, volume, lba, crc });
                }
            }
        }
        self.scrub.run = Some(run);
    }
}
