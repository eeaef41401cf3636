//! Comparing two maps: what they share is passed over without being looked at.

use super::{LEAF, Node, UNTOUCHED, VolumeMap};
use crate::map::NODE_LEAVES;

/// What a map of which nothing is known says.
static NOTHING: [u32; NODE_LEAVES] = [UNTOUCHED; NODE_LEAVES];

/// What a step of a walk over two maps finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlike {
    /// This leaf may differ: not both maps have the same one, and at least one of them has data.
    Leaf(u64),
    /// Up to this leaf they are alike; further nobody has looked.
    LikeUntil(u64),
}

impl VolumeMap {
    /// Looks for the first leaf in `from..end` in which the map may differ from `other`, or from a map
    /// without anything. A node that both share, or neither has, costs one step of `steps`, any other four.
    #[must_use]
    pub fn next_unlike(
        &self,
        other: Option<&Self>,
        from: u64,
        end: u64,
        steps: &mut u32,
    ) -> Unlike {
        let highest = |map: &Self| map.leaves();
        let end = end.min(highest(self).max(other.map_or(0, highest)));
        let mut at = from;
        while at < end {
            let number = at as usize / NODE_LEAVES;
            let first = (number * NODE_LEAVES) as u64;
            let (ours, theirs) = (self.node(number), other.and_then(|other| other.node(number)));
            let same = match (ours, theirs) {
                (None, None) => true,
                (Some(ours), Some(theirs)) => std::ptr::eq(ours, theirs),
                _ => false,
            };
            let Some(left) = steps.checked_sub(if same { 1 } else { 4 }) else {
                return Unlike::LikeUntil(at);
            };
            *steps = left;
            if !same {
                let (ours, theirs) = (ours.unwrap_or(&NOTHING), theirs.unwrap_or(&NOTHING));
                let slots = (at - first) as usize..;
                let pairs = ours[slots.clone()].iter().zip(&theirs[slots]);
                let unlike = |(a, b): (&u32, &u32)| a != b && (*a >= LEAF || *b >= LEAF);
                if let Some(i) = pairs.map(unlike).position(|unlike| unlike)
                    && at + (i as u64) < end
                {
                    return Unlike::Leaf(at + i as u64);
                }
            }
            at = first + NODE_LEAVES as u64;
        }
        Unlike::LikeUntil(u64::MAX)
    }

    fn node(&self, number: usize) -> Option<&[u32; NODE_LEAVES]> {
        self.nodes.get(number).and_then(Option::as_ref).map(|node: &Node| &**node)
    }
}
