//! What blocks hold: content that tells where it belongs and which write it came from.
//!
//! Every 64-bit word of a stamped block depends on the stamp, the volume, the block's number and
//! the word's place, so that no mixture of two blocks equals a third. The first word of each
//! sector is the stamp itself, so that a mixture can be told in words.

use crate::rng::mix;
use flagstone_block::BLOCK_SIZE;
use std::rc::Rc;

/// Bytes of the unit that a disk writes atomically.
pub const SECTOR: usize = 512;
/// Sectors in a block.
pub const SECTORS: usize = BLOCK_SIZE / SECTOR;

/// One block's bytes, shared between disk images.
pub type Block = Rc<[u8; BLOCK_SIZE]>;

const WORDS_PER_SECTOR: usize = SECTOR / 8;
const STEP: u64 = 0xd6e8_feb8_6659_fd93;

/// What a block of a volume holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// Zeroes.
    Zero,
    /// The pattern of this stamp, as written to this volume: others may have it by a clone.
    Stamp(u64, u32),
    /// Part of one pattern over something else.
    Bytes(Block),
    /// It was lost with a disk: it can't be read.
    Lost,
    /// Nobody knows: it could not be read when that was to be found out.
    Any,
    /// One of these: part of a pattern over what may be the one or the other.
    OneOf(Rc<[Content]>),
}

/// A block's place in the pool's name space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Volume number.
    pub volume: u32,
    /// Block number in it.
    pub lba: u64,
}

fn base(stamp: u64, place: Place) -> u64 {
    mix(stamp ^ mix(u64::from(place.volume) << 40 ^ place.lba))
}

/// Word `i` of a stamped block.
fn word(stamp: u64, base: u64, i: usize) -> u64 {
    if i.is_multiple_of(WORDS_PER_SECTOR) {
        stamp
    } else {
        base.wrapping_add((i as u64).wrapping_mul(STEP))
    }
}

/// Writes the pattern of `stamp` for the block at `place`.
pub fn fill(stamp: u64, place: Place, block: &mut [u8]) {
    let base = base(stamp, place);
    for (i, bytes) in block.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&word(stamp, base, i).to_le_bytes());
    }
}

impl Content {
    /// Whether `block` holds exactly this.
    #[must_use]
    pub fn matches(&self, place: Place, block: &[u8]) -> bool {
        match self {
            Self::Lost => false,
            Self::Any => true,
            Self::OneOf(these) => these.iter().any(|one| one.matches(place, block)),
            Self::Zero => is_zero(block),
            Self::Bytes(bytes) => bytes[..] == *block,
            Self::Stamp(stamp, volume) => {
                let base = base(*stamp, Place { volume: *volume, ..place });
                block[..8] == stamp.to_le_bytes()
                    && block
                        .chunks_exact(8)
                        .enumerate()
                        .all(|(i, bytes)| bytes == word(*stamp, base, i).to_le_bytes())
            }
        }
    }

    /// Whether this has `bytes` from byte `from` on.
    #[must_use]
    pub fn matches_part(&self, place: Place, from: usize, bytes: &[u8]) -> bool {
        if bytes.len() == BLOCK_SIZE {
            return self.matches(place, bytes);
        }
        if let Self::OneOf(these) = self {
            return these.iter().any(|one| one.matches_part(place, from, bytes));
        }
        let mut block = [0; BLOCK_SIZE];
        self.write_to(place, &mut block);
        block[from..from + bytes.len()] == *bytes
    }

    /// Writes the bytes out.
    pub fn write_to(&self, place: Place, block: &mut [u8]) {
        match self {
            Self::OneOf(these) => these[0].write_to(place, block),
            Self::Zero | Self::Lost | Self::Any => block.fill(0),
            Self::Bytes(bytes) => block.copy_from_slice(&bytes[..]),
            Self::Stamp(stamp, volume) => fill(*stamp, Place { volume: *volume, ..place }, block),
        }
    }

    /// This with bytes `from..to` replaced by those of `new`.
    #[must_use]
    pub fn overlaid(&self, place: Place, from: usize, to: usize, new: &Content) -> Self {
        if let Self::Any = self {
            return Self::Any;
        }
        if let Self::OneOf(these) = self {
            return these.iter().map(|one| one.overlaid(place, from, to, new)).collect();
        }
        let mut block = [0; BLOCK_SIZE];
        self.write_to(place, &mut block);
        let mut over = [0; BLOCK_SIZE];
        new.write_to(place, &mut over);
        block[from..to].copy_from_slice(&over[from..to]);
        Self::Bytes(Rc::new(block))
    }

    /// In words.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Zero => "zeroes".into(),
            Self::Lost => "what is lost".into(),
            Self::Any => "anything".into(),
            Self::OneOf(these) => {
                let words: Vec<String> = these.iter().map(Self::describe).collect();
                words.join(" or ")
            }
            Self::Stamp(stamp, _) => format!("stamp {stamp}"),
            Self::Bytes(bytes) => describe_bytes(&bytes[..]),
        }
    }
}

impl FromIterator<Content> for Content {
    /// What is one of these.
    fn from_iter<T: IntoIterator<Item = Content>>(these: T) -> Self {
        let mut these: Vec<Content> = these.into_iter().collect();
        match these.len() {
            1 => these.remove(0),
            _ if these.iter().any(|one| matches!(one, Self::Any)) => Self::Any,
            _ => Self::OneOf(these.into()),
        }
    }
}

/// Whether all bytes are zero.
#[must_use]
pub fn is_zero(block: &[u8]) -> bool {
    let (words, rest) = block.as_chunks::<8>();
    words.iter().all(|word| *word == [0; 8]) && rest.iter().all(|byte| *byte == 0)
}

/// What the sectors of a block seem to hold, in words.
#[must_use]
pub fn describe_bytes(block: &[u8]) -> String {
    let mut parts: Vec<(String, usize)> = Vec::new();
    for sector in block.chunks(SECTOR) {
        let first = sector.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
        let name = if is_zero(sector) {
            "zeroes".to_owned()
        } else if first < 1 << 40 {
            format!("stamp {first}")
        } else {
            format!("{first:#018x}..")
        };
        match parts.last_mut() {
            Some((last, count)) if *last == name => *count += 1,
            _ => parts.push((name, 1)),
        }
    }
    let parts: Vec<String> =
        parts.into_iter().map(|(name, sectors)| format!("{sectors} sectors of {name}")).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_matches_its_own_stamp_and_place_only() {
        let place = Place { volume: 3, lba: 9 };
        let mut block = [0; BLOCK_SIZE];
        fill(77, place, &mut block);
        assert!(Content::Stamp(77, 3).matches(place, &block));
        assert!(!Content::Stamp(78, 3).matches(place, &block));
        assert!(!Content::Stamp(77, 3).matches(Place { lba: 10, ..place }, &block));
        assert!(!Content::Stamp(77, 4).matches(place, &block));
        let mut other = [0; BLOCK_SIZE];
        fill(78, place, &mut other);
        for sector in 1..SECTORS {
            let mut mixed = block;
            mixed[sector * SECTOR..].copy_from_slice(&other[sector * SECTOR..]);
            assert!(!Content::Stamp(77, 3).matches(place, &mixed));
            assert!(!Content::Stamp(78, 3).matches(place, &mixed));
        }
        assert!(!Content::Zero.matches(place, &block));
        let over = Content::Stamp(77, 3).overlaid(place, 100, 200, &Content::Stamp(78, 3));
        block[100..200].copy_from_slice(&other[100..200]);
        assert!(over.matches(place, &block));
    }

    #[test]
    fn what_may_be_the_one_or_the_other_matches_both_and_no_third() {
        let place = Place { volume: 3, lba: 9 };
        let base: Content = [Content::Stamp(1, 3), Content::Stamp(2, 3)].into_iter().collect();
        let over = base.overlaid(place, 100, 200, &Content::Stamp(5, 3));
        for stamp in 1..4 {
            let mut block = [0; BLOCK_SIZE];
            Content::Stamp(stamp, 3)
                .overlaid(place, 100, 200, &Content::Stamp(5, 3))
                .write_to(place, &mut block);
            assert_eq!(over.matches(place, &block), stamp < 3);
            assert_eq!(over.matches_part(place, 0, &block[..200]), stamp < 3);
        }
    }
}
