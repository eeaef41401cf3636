//! What the model says of differences: whether what was told of a range of two volumes can be.

use super::Oracle;
use crate::content::Content;
use flagstone_block::BLOCK_SIZE;
use flagstone_engine::{DiffExtent, DiffKind, StatusKind};
use std::collections::BTreeMap;

/// A block that nobody has ever written to.
const UNTOUCHED: (StatusKind, &Content) = (StatusKind::Hole, &Content::Zero);

impl Oracle {
    /// `extents` were told at this moment for blocks `first..end` of two volumes or snapshots.
    ///
    /// # Errors
    /// In words, if they can't be.
    pub fn differences(
        &self,
        (older, newer): (Option<u32>, u32),
        (first, end): (u64, u64),
        extents: &[DiffExtent],
    ) -> Result<(), String> {
        let block = BLOCK_SIZE as u64;
        let mut told: BTreeMap<u64, DiffKind> = BTreeMap::new();
        for extent in extents {
            let blocks = extent.offset / block..(extent.offset + extent.len) / block;
            let apart = told.last_key_value().is_none_or(|(last, _)| *last < blocks.start);
            if blocks.is_empty() || blocks.start < first || blocks.end > end || !apart {
                return Err(format!("malformed differences in {first}..{end}: {extents:?}"));
            }
            told.extend(blocks.map(|lba| (lba, extent.kind)));
        }
        let blocks_of = |id: u32| self.volumes.get(&id).map(|volume| &volume.blocks);
        let known = [older, Some(newer)].into_iter().flatten().filter_map(blocks_of);
        let known = known.flat_map(|blocks| blocks.range(first..end).map(|(lba, _)| *lba));
        let mut all: Vec<u64> = known.chain(told.keys().copied()).collect();
        all.sort_unstable();
        all.dedup();
        for lba in all {
            let now = self.may_be(newer, lba);
            let then = older.map_or(vec![UNTOUCHED], |older| self.may_be(older, lba));
            let told = told.get(&lba);
            let kind = |version: (StatusKind, &Content)| match version.0 {
                StatusKind::Data => DiffKind::Data,
                _ => DiffKind::Zero,
            };
            let pairs = then.iter().flat_map(|then| now.iter().map(move |now| (*then, *now)));
            let fits = |(then, now)| match (told, same(then, now)) {
                (_, None) => told.is_none_or(|told| *told == DiffKind::Data),
                (None, Some(same)) => same,
                (Some(told), Some(same)) => !same && *told == kind(now),
            };
            if !pairs.into_iter().any(fits) {
                let words = |versions: &[(StatusKind, &Content)]| {
                    let words =
                        versions.iter().map(|(kind, c)| format!("{kind:?} {}", c.describe()));
                    words.collect::<Vec<_>>().join(" / ")
                };
                return Err(format!(
                    "block {lba} of {newer} is told to be {told:?} against {older:?}, but it is {} and \
                     was {}",
                    words(&now),
                    words(&then)
                ));
            }
        }
        Ok(())
    }

    /// With nothing under way: blocks of data that a volume or snapshot has, and how many of them no other has,
    /// at least and at most, since the model can't always tell two versions apart.
    #[must_use]
    pub fn alone(&self, id: u32) -> (u64, u64, u64) {
        let Some(volume) = self.volumes.get(&id) else { return (0, 0, 0) };
        let (mut mapped, mut least, mut most) = (0, 0, 0);
        for (&lba, history) in &volume.blocks {
            let Some(version) = history.versions.last().filter(|v| v.kind == StatusKind::Data)
            else {
                continue;
            };
            let others =
                self.volumes.iter().filter(|(other, v)| **other != id && v.deleted.is_none());
            let others = others.filter_map(|(_, other)| other.blocks.get(&lba)?.versions.last());
            let known = others
                .map(|other| same((version.kind, &version.content), (other.kind, &other.content)));
            let known: Vec<Option<bool>> = known.collect();
            mapped += 1;
            least += u64::from(known.iter().all(|same| *same == Some(false)));
            most += u64::from(!known.contains(&Some(true)));
        }
        (mapped, least, most)
    }

    /// What a block may be now.
    fn may_be(&self, volume: u32, lba: u64) -> Vec<(StatusKind, &Content)> {
        let history = self.volumes.get(&volume).and_then(|volume| volume.blocks.get(&lba));
        let Some(history) = history else { return vec![UNTOUCHED] };
        let current = &history.versions[self.oldest(history) as usize..];
        current.iter().map(|version| (version.kind, &version.content)).collect()
    }
}

/// Whether two blocks are the same version; `None` if the model can't tell, because one that was changed
/// in part may look as it did before.
fn same(then: (StatusKind, &Content), now: (StatusKind, &Content)) -> Option<bool> {
    match (then, now) {
        ((StatusKind::Data, then), (StatusKind::Data, now)) => match (then, now) {
            (Content::Stamp(then, _), Content::Stamp(now, _)) => Some(then == now),
            (Content::Zero, Content::Zero) => None,
            (Content::Lost | Content::Any | Content::OneOf(_), _)
            | (_, Content::Lost | Content::Any | Content::OneOf(_)) => None,
            (Content::Bytes(then), Content::Bytes(now)) if then != now => Some(false),
            (Content::Bytes(_), Content::Bytes(_)) => None,
            // A part of a block over nothing may be zeroes, or all of a stamp.
            (Content::Bytes(_), _) | (_, Content::Bytes(_)) => None,
            _ => Some(false),
        },
        ((StatusKind::Data, _), _) | (_, (StatusKind::Data, _)) => Some(false),
        _ => Some(true),
    }
}
