//! Writing records.

use super::super::bytes::{put_u16, put_u32, put_u48, put_u64};
use super::*;

const fn volume_flags(settings: VolumeSettings) -> u8 {
    match settings.on_full {
        OnFull::Error => 0,
        OnFull::Wait => VOLUME_WAITS,
    }
}

fn put_bits(b: &mut [u8], at: usize, bits: &LeafBits) {
    for (i, word) in bits.iter().enumerate() {
        put_u64(b, at + 8 * i, *word);
    }
}

impl Record<'_> {
    /// Encodes at the start of `b`; returns the bytes used, or `None` if `b` is too short.
    pub fn encode(&self, b: &mut [u8]) -> Option<usize> {
        let bytes = self.encoded_bytes();
        let b = b.get_mut(..bytes)?;
        b.fill(0);
        let head = |b: &mut [u8], kind: u8, flags: u8, count: u16, volume: u32, lsn: u64| {
            b[0] = kind;
            b[1] = flags;
            put_u16(b, 2, count);
            put_u32(b, 4, volume);
            put_u64(b, 8, lsn);
        };
        match *self {
            Self::Write { volume, lsn, lba, pbn, vseq, crcs } => {
                use layout::write::at;
                head(b, WRITE, 0, (crcs.len() / 4) as u16, volume, lsn);
                put_u48(b, at::LBA, lba);
                put_u48(b, at::PBN, pbn);
                put_u64(b, at::VSEQ, vseq);
                b[at::CRCS..at::CRCS + crcs.len()].copy_from_slice(crcs);
            }
            Self::Zero { volume, lsn, lba, blocks, keep, vseq } => {
                use layout::zero::at;
                head(b, ZERO, if keep { ZERO_KEEP } else { 0 }, 0, volume, lsn);
                put_u48(b, at::LBA, lba);
                put_u32(b, at::BLOCKS, blocks);
                put_u64(b, at::VSEQ, vseq);
            }
            Self::Volume { volume, lsn, uuid, size, vseq, settings, base, name } => {
                use layout::volume::at;
                head(b, VOLUME, volume_flags(settings), 0, volume, lsn);
                put_u64(b, at::RESERVED, settings.reserved);
                b[at::UUID..at::UUID + 16].copy_from_slice(&uuid);
                put_u64(b, at::SIZE, size);
                put_u64(b, at::VSEQ, vseq);
                put_u16(b, at::NAME_BYTES, name.len() as u16);
                put_u32(b, at::BASE, base.unwrap_or(u32::MAX));
                b[at::NAME..at::NAME + name.len()].copy_from_slice(name.as_bytes());
            }
            Self::Snapshot { volume, lsn, uuid, size, cut, line, base, deleted, name } => {
                use layout::snapshot::at;
                head(b, SNAPSHOT, u8::from(deleted) * SNAPSHOT_DELETED, 0, volume, lsn);
                b[at::UUID..at::UUID + 16].copy_from_slice(&uuid);
                put_u64(b, at::SIZE, size);
                put_u64(b, at::CUT, cut);
                put_u32(b, at::LINE, line);
                put_u32(b, at::BASE, base.unwrap_or(u32::MAX));
                put_u16(b, at::NAME_BYTES, name.len() as u16);
                b[at::NAME..at::NAME + name.len()].copy_from_slice(name.as_bytes());
            }
            Self::VolumeResize { volume, lsn, size, vseq } => {
                use layout::volume_resize::at;
                head(b, VOLUME_RESIZE, 0, 0, volume, lsn);
                put_u64(b, at::SIZE, size);
                put_u64(b, at::VSEQ, vseq);
            }
            Self::VolumeSet { volume, lsn, settings, vseq } => {
                use layout::volume_set::at;
                head(b, VOLUME_SET, volume_flags(settings), 0, volume, lsn);
                put_u64(b, at::RESERVED, settings.reserved);
                put_u64(b, at::VSEQ, vseq);
            }
            Self::VolumeDelete { volume, lsn } => head(b, VOLUME_DELETE, 0, 0, volume, lsn),
            Self::Checkpoint { lsn } => head(b, CHECKPOINT, 0, 0, 0, lsn),
            Self::SegmentSeal(seal) => {
                use layout::segment_seal::at;
                let stated = if seal.stated { SEAL_STATED } else { 0 };
                let copied = if seal.copy.is_some() { SEAL_COPIED } else { 0 };
                head(b, SEGMENT_SEAL, stated | copied, 0, 0, seal.lsn);
                if let Some(copy) = seal.copy {
                    put_u32(b, at::COPY_SEGMENT, copy.segment);
                    b[at::COPY_SLOT] = copy.slot;
                }
                put_u64(b, at::MEAN_LSN, seal.mean_lsn);
                put_u32(b, at::SEGMENT, seal.segment);
                b[at::CLASS] = seal.class;
                put_u16(b, at::ENTRIES, seal.entries);
                put_u64(b, at::GENERATION, seal.generation);
                put_u64(b, at::FIRST_LSN, seal.first_lsn);
                put_u32(b, at::FOOTER_CRC, seal.footer_crc);
            }
            Self::SegmentFree { segment, lsn, generation } => {
                use layout::segment_free::at;
                head(b, SEGMENT_FREE, 0, 0, 0, lsn);
                put_u32(b, at::SEGMENT, segment);
                put_u64(b, at::GENERATION, generation);
            }
            Self::Leaf { volume, lsn, lba, page, page_crc, marks } => {
                use layout::leaf::at;
                let flags = leaf_flags(&marks);
                head(b, LEAF, flags, 0, volume, lsn);
                put_u48(b, at::LBA, lba);
                put_u48(b, at::PAGE, page);
                put_u32(b, at::PAGE_CRC, page_crc);
                let LeafMarks { holes, kept, inherited } = &marks;
                let bitmaps = [(LEAF_HOLES, holes), (LEAF_KEPT, kept), (LEAF_INHERITED, inherited)];
                let present = bitmaps.iter().filter(|(flag, _)| flags & flag != 0);
                for (i, (_, bits)) in present.enumerate() {
                    put_bits(b, at::BITMAPS + i * BITMAP_BYTES, bits);
                }
            }
            Self::SegmentOpen { segment, lsn, class, generation } => {
                use layout::segment_open::at;
                head(b, SEGMENT_OPEN, 0, 0, 0, lsn);
                put_u32(b, at::SEGMENT, segment);
                b[at::CLASS] = class;
                put_u64(b, at::GENERATION, generation);
            }
        }
        Some(bytes)
    }
}
