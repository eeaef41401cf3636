//! Byte tables of the record types, in the order of their numbers.

use crate::format::field::Layout;
macro_rules! record_layouts {
    ($($module:ident, $title:literal { $($name:ident : $offset:literal, $size:literal;)* })*) => {
        $(#[allow(missing_docs)] pub mod $module {
            crate::format::field::layout! {
                /// Byte table of the record.
                LAYOUT, $title { $($name : $offset, $size;)* }
            }
        })*
        /// All of them.
        pub const ALL: &[Layout] = &[$($module::LAYOUT),*];
    };
}
record_layouts! {
    write, "record WRITE" {
        TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8;
        LBA: 16, 6; EPOCH_LOW: 22, 2; PBN: 24, 6; EPOCH_HIGH: 30, 2; VSEQ: 32, 8; CRCS: 40, 4;
    }
    zero, "record ZERO" {
        TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8;
        LBA: 16, 6; EPOCH_LOW: 22, 2; BLOCKS: 24, 4; EPOCH_HIGH: 30, 2; VSEQ: 32, 8;
    }
    volume, "record VOLUME" {
        TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8;
        UUID: 16, 16; SIZE: 32, 8; VSEQ: 40, 8; NAME_BYTES: 48, 2; BASE: 52, 4; RESERVED: 56, 8; NAME: 64, 1;
    }
    volume_resize, "record VOLUME_RESIZE" {
        TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8; SIZE: 16, 8; VSEQ: 24, 8;
    }
    volume_set, "record VOLUME_SET" {
        TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8; RESERVED: 16, 8; VSEQ: 24, 8;
    }
    volume_delete, "record VOLUME_DELETE" {
        TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8; VSEQ: 16, 8;
    }
    segment_seal, "record SEGMENT_SEAL" {
        TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8;
        SEGMENT: 16, 4; CLASS: 20, 1; COPY_SLOT: 21, 1; ENTRIES: 22, 2; GENERATION: 24, 8;
        FIRST_LSN: 32, 8; FOOTER_CRC: 40, 4; COPY_SEGMENT: 44, 4; MEAN_LSN: 48, 8;
    }
    segment_free, "record SEGMENT_FREE" {
        TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8;
        SEGMENT: 16, 4; GENERATION: 24, 8;
    }
    leaf, "record LEAF" {
        TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8;
        LBA: 16, 6; PAGE: 24, 6; PAGE_CRC: 32, 4; BITMAPS: 40, 192;
    }
    snapshot, "record SNAPSHOT" {
        TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8;
        UUID: 16, 16; SIZE: 32, 8; CUT: 40, 8; NAME_BYTES: 48, 2; LINE: 52, 4; BASE: 56, 4; NAME: 64, 1;
    }
    segment_open, "record SEGMENT_OPEN" {
        TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8;
        SEGMENT: 16, 4; CLASS: 20, 1; GENERATION: 24, 8;
    }
    checkpoint, "record CHECKPOINT" {
        TYPE: 0, 1; FLAGS: 1, 1; COUNT: 2, 2; VOLUME: 4, 4; LSN: 8, 8;
    }
}
