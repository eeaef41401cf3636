//! The table of a pool's devices, which every superblock holds.
//!
//! A device's number is its row: it stays the same for as long as the device belongs to the pool, and
//! block numbers of the pool need not name it. A device owns a range of the pool's segment numbers.

use super::bytes::{get_u32, get_u64, put_u32, put_u64};
use super::field::layout;
use super::{DecodeError, SEQUENCE_MAX};
use flagstone_block::DEVICES;

/// Where the table begins in a superblock.
pub const TABLE_AT: usize = 1024;
/// Bytes of a row.
pub const ROW_BYTES: usize = 96;
/// Bytes of a label.
pub const LABEL_BYTES: usize = 48;

layout! {
    /// Byte table of one row; all zeroes if there is no such device.
    LAYOUT, "device" {
        UUID: 0, 16; BYTES: 16, 8; FIRST_SEGMENT: 24, 4; SEGMENTS: 28, 4; STATE: 32, 1;
        ERRNO: 36, 4; LABEL: 40, 48; FAILED_FROM: 88, 8;
    }
}

const _: () = assert!(TABLE_AT + DEVICES * ROW_BYTES == flagstone_block::BLOCK_SIZE);

/// What a device is to its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// Takes what is written.
    Present,
    /// Takes nothing; what lies there is being moved to others.
    Evacuating,
}

/// That a device failed a write or a flush, and the pool went on without it. It is not written to any
/// more, and what it holds may have been lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Writes in journal blocks from this one on whose data lies there did not happen. Not 0.
    pub from: u64,
    /// What the system said, as in `errno.h`; 0 if nothing.
    pub errno: u32,
}

/// What a device was called when it was last given to the pool: for people, cut at the front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label([u8; LABEL_BYTES]);

impl Label {
    /// The label made from the end of a name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut from = name.len().saturating_sub(LABEL_BYTES);
        while !name.is_char_boundary(from) {
            from += 1;
        }
        let mut label = [0; LABEL_BYTES];
        label[..name.len() - from].copy_from_slice(&name.as_bytes()[from..]);
        Self(label)
    }

    /// As text; empty if it is none.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(LABEL_BYTES);
        std::str::from_utf8(&self.0[..end]).unwrap_or("")
    }
}

/// One device of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRow {
    /// Identity, chosen when it was given to the pool.
    pub uuid: [u8; 16],
    /// Size in bytes when it was given to the pool, or last grown to.
    pub bytes: u64,
    /// Number of its first segment.
    pub first_segment: u32,
    /// Number of its segments.
    pub segments: u32,
    /// Whether it is in use.
    pub state: DeviceState,
    /// Whether it failed.
    pub failed: Option<Failure>,
    /// What it was called.
    pub label: Label,
}

impl DeviceRow {
    fn encode(&self, row: &mut [u8]) {
        row[at::UUID..at::UUID + 16].copy_from_slice(&self.uuid);
        put_u64(row, at::BYTES, self.bytes);
        put_u32(row, at::FIRST_SEGMENT, self.first_segment);
        put_u32(row, at::SEGMENTS, self.segments);
        row[at::STATE] = match self.state {
            DeviceState::Present => 1,
            DeviceState::Evacuating => 2,
        };
        if let Some(Failure { from, errno }) = self.failed {
            put_u64(row, at::FAILED_FROM, from);
            put_u32(row, at::ERRNO, errno);
        }
        row[at::LABEL..at::LABEL + LABEL_BYTES].copy_from_slice(&self.label.0);
    }

    fn decode(row: &[u8]) -> Result<Option<Self>, DecodeError> {
        let impossible = DecodeError::Field { at: (TABLE_AT + at::STATE) as u16 };
        let unused = at::STATE + 1..at::ERRNO;
        let vacant = row[at::STATE] == 0;
        if row[if vacant { 0..ROW_BYTES } else { unused }].iter().any(|byte| *byte != 0) {
            return Err(impossible);
        }
        let state = match row[at::STATE] {
            0 => return Ok(None),
            1 => DeviceState::Present,
            2 => DeviceState::Evacuating,
            _ => return Err(impossible),
        };
        let (from, errno) = (get_u64(row, at::FAILED_FROM), get_u32(row, at::ERRNO));
        if from >= SEQUENCE_MAX || (from == 0 && errno != 0) {
            return Err(DecodeError::Field { at: (TABLE_AT + at::FAILED_FROM) as u16 });
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&row[at::UUID..at::UUID + 16]);
        let mut label = [0; LABEL_BYTES];
        label.copy_from_slice(&row[at::LABEL..at::LABEL + LABEL_BYTES]);
        Ok(Some(Self {
            uuid,
            bytes: get_u64(row, at::BYTES),
            first_segment: get_u32(row, at::FIRST_SEGMENT),
            segments: get_u32(row, at::SEGMENTS),
            state,
            failed: (from > 0).then_some(Failure { from, errno }),
            label: Label(label),
        }))
    }
}

/// The devices of a pool, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceTable(pub [Option<DeviceRow>; DEVICES]);

impl DeviceTable {
    /// The devices there are, with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &DeviceRow)> {
        self.0.iter().enumerate().filter_map(|(device, row)| Some((device, row.as_ref()?)))
    }

    /// Whether any of them failed.
    #[must_use]
    pub fn any_failed(&self) -> bool {
        self.iter().any(|(_, row)| row.failed.is_some())
    }

    /// Whether a device is there that did not fail.
    #[must_use]
    pub fn is_sound(&self, device: usize) -> bool {
        self.get(device).is_none_or(|row| row.failed.is_none())
    }

    /// The device with this number.
    #[must_use]
    pub fn get(&self, device: usize) -> Option<&DeviceRow> {
        self.0.get(device)?.as_ref()
    }

    /// Number of the device with this identity.
    #[must_use]
    pub fn by_uuid(&self, uuid: &[u8; 16]) -> Option<usize> {
        self.iter().find(|(_, row)| row.uuid == *uuid).map(|(device, _)| device)
    }

    pub(super) fn encode(&self, block: &mut [u8]) {
        for (device, row) in self.iter() {
            row.encode(&mut block[TABLE_AT + device * ROW_BYTES..][..ROW_BYTES]);
        }
    }

    pub(super) fn decode(block: &[u8]) -> Result<Self, DecodeError> {
        let mut table = Self::default();
        for (row, bytes) in table.0.iter_mut().zip(block[TABLE_AT..].chunks_exact(ROW_BYTES)) {
            *row = DeviceRow::decode(bytes)?;
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_the_end_of_a_name_cut_between_characters() {
        assert_eq!(Label::new("/data/a.img").as_str(), "/data/a.img");
        assert_eq!(Label::new("").as_str(), "");
        let long = format!("\u{e9}{}", "x".repeat(LABEL_BYTES - 1));
        assert_eq!(Label::new(&long).as_str(), "x".repeat(LABEL_BYTES - 1));
    }
}
