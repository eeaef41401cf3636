//! Making damaged structures look whole: magic, version, position and checksum set to what the
//! decoder wants, so that what is tested is what comes after them.

use flagstone_block::BLOCK_SIZE;
use flagstone_engine::format::field::{Field, Layout};
use flagstone_engine::format::{FORMAT_VERSION, crc32, journal, meta, segment, superblock};

/// A kind of metadata block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `docs/formats/superblock.md`.
    Superblock,
    /// `docs/formats/journal.md`.
    Journal,
    /// `docs/formats/segment.md`, the footer.
    Footer,
    /// `docs/formats/metadata.md`.
    Page,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Superblock, Self::Journal, Self::Footer, Self::Page];

    /// Magic and type number.
    #[must_use]
    pub const fn magic(self) -> [u8; 6] {
        match self {
            Self::Superblock => *b"LSBS\x01\0",
            Self::Journal => *b"LSBJ\x02\0",
            Self::Footer => *b"LSBG\x03\0",
            Self::Page => *b"LSBM\x04\0",
        }
    }

    /// Byte table.
    #[must_use]
    pub const fn layout(self) -> &'static Layout {
        match self {
            Self::Superblock => &superblock::LAYOUT,
            Self::Journal => &journal::LAYOUT,
            Self::Footer => &segment::LAYOUT,
            Self::Page => &meta::LAYOUT,
        }
    }

    /// The kind of `block` by its magic.
    #[must_use]
    pub fn of(block: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| block.starts_with(&kind.magic()))
    }
}

/// The field `name` of a structure. For constants: a name that does not exist must not compile.
///
/// # Panics
/// If there is none.
#[must_use]
pub const fn field(layout: &Layout, name: &str) -> Field {
    let mut i = 0;
    while i < layout.fields.len() {
        if same(layout.fields[i].name.as_bytes(), name.as_bytes()) {
            return layout.fields[i];
        }
        i += 1;
    }
    panic!("no such field")
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    a.len() == b.len() && i == a.len()
}

/// The bytes of a field, as a little-endian number; zero if the structure is cut off before.
#[must_use]
pub fn get(block: &[u8], field: Field) -> u64 {
    let mut wide = [0; 8];
    if let Some(bytes) = block.get(field.offset..field.offset + field.size) {
        wide[..field.size].copy_from_slice(bytes);
    }
    u64::from_le_bytes(wide)
}

/// Overwrites a field of at most 8 bytes, if the structure is long enough to have it.
pub fn put(block: &mut [u8], field: Field, value: u64) {
    if let Some(bytes) = block.get_mut(field.offset..field.offset + field.size) {
        bytes.copy_from_slice(&value.to_le_bytes()[..field.size]);
    }
}

/// Sets magic and type number.
pub fn set_magic(block: &mut [u8], kind: Kind) {
    block[..6].copy_from_slice(&kind.magic());
}

/// Sets the version of the format.
pub fn set_version(block: &mut [u8]) {
    block[6..8].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
}

/// Sets the checksum; returns the one before and the new one.
pub fn set_checksum(block: &mut [u8]) -> (u32, u32) {
    debug_assert_eq!(block.len(), BLOCK_SIZE);
    let new = crc32(&block[12..]);
    let old = u32::from_le_bytes([block[8], block[9], block[10], block[11]]);
    block[8..12].copy_from_slice(&new.to_le_bytes());
    (old, new)
}
