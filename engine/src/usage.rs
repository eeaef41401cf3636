//! What a volume or snapshot takes that no other has, and what deleting it gives back: counted leaf by leaf
//! from what is known of all leaves without reading any.
//!
//! Of each block a leaf knows whether it is inherited from the parent's. Two nodes map the same block if one
//! inherits it from the other, or both from a third, through all in between.
//!
//! Invariants:
//! 1. What is *exclusive* to a volume or snapshot is mapped by no other that its owner can see. Deleted
//!    snapshots that are still being taken apart, or live on because several need them, are not seen: what
//!    they have is their descendants'.
//! 2. What deleting it *frees* is what nobody maps then, the nodes left out that must be kept for others:
//!    one with several children keeps all that it has, and one that was kept for two goes with the first.
//! 3. A call looks at so much at most ([`STEPS`]), whatever the size; it keeps nothing between calls.
//!
//! A volume that is written meanwhile, or snapshots that come and go, are counted as they are when the walk
//! comes to them.

use crate::engine::Engine;
use crate::format::record::LeafBits;
use crate::map::{LEAF_BLOCKS, LeafState, NODE_LEAVES, VolumeMap};
use crate::volume::{Volume, VolumeState};
use flagstone_block::{BLOCK_SIZE, VolumeId};

/// What one call does at most: leaves that are absent and skipped at once, and nodes whose leaf is looked
/// at; one leaf more.
const STEPS: u32 = 4096;
/// What the leaf that is counted costs beside.
const LEAF_STEPS: u32 = 8;

/// A count of what a volume or snapshot shares, as far as it has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharedUsage {
    /// Bytes mapped that no other volume or snapshot maps.
    pub exclusive: u64,
    /// Bytes mapped that others map too.
    pub shared: u64,
    /// Bytes that come back to the pool when it is deleted, its kept zeroes among them.
    pub frees: u64,
    /// Where the count goes on.
    next: u64,
}

const NONE: LeafBits = [0; LEAF_BLOCKS / 64];

fn count(bits: &LeafBits) -> u64 {
    bits.iter().map(|word| u64::from(word.count_ones())).sum::<u64>() * BLOCK_SIZE as u64
}

fn and(a: &LeafBits, b: &LeafBits) -> LeafBits {
    std::array::from_fn(|i| a[i] & b[i])
}

fn and_not(a: &LeafBits, b: &LeafBits) -> LeafBits {
    std::array::from_fn(|i| a[i] & !b[i])
}

fn add(to: &mut LeafBits, bits: &LeafBits) {
    to.iter_mut().zip(bits).for_each(|(to, bits)| *to |= bits);
}

/// Whether the owner of the pool can see it.
fn is_seen(volume: &Volume) -> bool {
    use VolumeState::{Active, Creating, Deleting};
    matches!(volume.state, Creating | Active | Deleting)
}

impl Engine {
    /// Goes on counting what a volume or snapshot shares, from `so_far`, which begins as the default;
    /// gives the whole count when it is through, or how far it has come. `None` if there is no such volume.
    ///
    /// It may be called as often as there is time; between calls everything may change.
    #[must_use]
    pub fn count_shared(
        &self,
        id: VolumeId,
        so_far: SharedUsage,
    ) -> Option<Result<SharedUsage, SharedUsage>> {
        let node = self.volumes.get(id.0).filter(|volume| volume.state == VolumeState::Active)?;
        let (mut usage, mut steps) = (so_far, STEPS);
        let going = self.going_with(node);
        let maps = || {
            let gone = going.after.iter().filter_map(|id| self.volumes.get(*id));
            gone.chain([node]).map(|volume| &volume.map)
        };
        // Nodes that go with it may have more than it has.
        let leaves = maps().map(VolumeMap::leaves).max().unwrap_or(0);
        while usage.next < leaves {
            let leaf = usage.next;
            let Some(left) = steps.checked_sub(1) else { return Some(Err(usage)) };
            let absent = |map: &VolumeMap| match map.leaf(&self.slab, leaf) {
                (LeafState::Untouched, leaves) => leaves,
                (LeafState::AllHole | LeafState::AllKept, _) => 1,
                (LeafState::Dense(_) | LeafState::Away(_), _) => 0,
            };
            // What is absent in all of them is absent up to the end of a map node.
            let absent = maps().map(absent).min().unwrap_or(0);
            if absent > 0 {
                steps = left;
                usage.next += absent.min(NODE_LEAVES as u64 - leaf % NODE_LEAVES as u64);
                continue;
            }
            steps = left.saturating_sub(self.count_leaf(node, &going, leaf, &mut usage));
            usage.next += 1;
        }
        usage.frees += node.kept() * BLOCK_SIZE as u64;
        Some(Ok(usage))
    }

    /// Counts one leaf; returns how many nodes were looked at.
    fn count_leaf(&self, node: &Volume, going: &Going, leaf: u64, usage: &mut SharedUsage) -> u32 {
        let mut looked = LEAF_STEPS;
        let mapped = self.leaf_bits(node, leaf).0;
        let shared = self.seen_elsewhere(node, leaf, &mapped, &mut looked);
        usage.shared += count(&shared);
        usage.exclusive += count(&mapped) - count(&shared);
        for id in &going.after {
            let Some(gone) = self.volumes.get(*id) else { continue };
            let (data, inherited) = self.leaf_bits(gone, leaf);
            let owned = and_not(&data, &inherited);
            let mut dies = |going: &[u32]| {
                let stays = |child: &Volume| !going.contains(&child.info.id);
                and_not(&owned, &self.inherited_below(gone, None, leaf, &owned, stays, &mut looked))
            };
            let mut frees = dies(&going.after);
            if going.anyhow.contains(id) {
                frees = and_not(&frees, &dies(&going.anyhow));
            }
            usage.frees += count(&frees);
        }
        looked
    }

    /// Which blocks of a node's leaf have data, and which of these are its parent's.
    fn leaf_bits(&self, node: &Volume, leaf: u64) -> (LeafBits, LeafBits) {
        let (data, owned) = match node.map.leaf(&self.slab, leaf).0 {
            LeafState::Dense(index) => {
                let leaf = self.slab.get(index);
                (leaf.data(), leaf.owned())
            }
            LeafState::Away(away) => {
                let leaf = self.slab.away_leaf(away);
                (leaf.data(), leaf.owned_bits())
            }
            _ => return (NONE, NONE),
        };
        // A leaf that is the parent's is so as a whole.
        let own = node.map.is_different(leaf);
        (data, if own { and_not(&data, &owned) } else { data })
    }

    /// Those of `bits`, which a node maps, that others map that are seen.
    fn seen_elsewhere(
        &self,
        node: &Volume,
        leaf: u64,
        bits: &LeafBits,
        looked: &mut u32,
    ) -> LeafBits {
        let mut found = self.inherited_below(node, None, leaf, bits, is_seen, looked);
        let (mut at, mut left) = (node, and_not(&self.leaf_bits(node, leaf).1, &found));
        while left != NONE
            && let Some(parent) = at.parent.and_then(|parent| self.volumes.get(parent))
        {
            *looked += 1;
            if is_seen(parent) {
                add(&mut found, &left);
                break;
            }
            let but = Some(at.info.id);
            add(&mut found, &self.inherited_below(parent, but, leaf, &left, is_seen, looked));
            left = and_not(&and(&left, &self.leaf_bits(parent, leaf).1), &found);
            at = parent;
        }
        found
    }

    /// Those of `bits`, which a node maps, that the nearest descendants inherit of whom `counts` is true,
    /// those through `but` left out.
    fn inherited_below(
        &self,
        node: &Volume,
        but: Option<u32>,
        leaf: u64,
        bits: &LeafBits,
        counts: impl Fn(&Volume) -> bool,
        looked: &mut u32,
    ) -> LeafBits {
        let mut found = NONE;
        let mut through = vec![(node, *bits)];
        while let Some((node, bits)) = through.pop() {
            let children = node.children.iter().filter(|child| but != Some(**child));
            for child in children.filter_map(|child| self.volumes.get(*child)) {
                // Many clones of one snapshot have what the first has.
                let open = and_not(&bits, &found);
                if open == NONE {
                    break;
                }
                *looked += 1;
                let inherits = and(&open, &self.leaf_bits(child, leaf).1);
                if counts(child) {
                    add(&mut found, &inherits);
                } else if inherits != NONE {
                    through.push((child, inherits));
                }
            }
        }
        found
    }

    /// The nodes that go anyhow of those around this one, and with it when it is deleted. A node goes, if
    /// nobody sees it, when one child at most is left of it.
    fn going_with(&self, node: &Volume) -> Going {
        let mut unseen: Vec<u32> = Vec::new();
        let mut around: Vec<u32> = node.children.to_vec();
        let mut at = node;
        while let Some(parent) = at.parent.and_then(|parent| self.volumes.get(parent))
            && !is_seen(parent)
        {
            unseen.push(parent.info.id);
            around.extend(parent.children.iter().filter(|child| **child != at.info.id));
            at = parent;
        }
        while let Some(child) = around.pop().and_then(|id| self.volumes.get(id)) {
            if !is_seen(child) {
                unseen.push(child.info.id);
                around.extend(&child.children);
            }
        }
        let anyhow = self.going(&unseen);
        unseen.push(node.info.id);
        Going { after: self.going(&unseen), anyhow }
    }

    /// Those of the nodes that nobody sees that go.
    fn going(&self, unseen: &[u32]) -> Vec<u32> {
        let mut gone: Vec<u32> = Vec::new();
        loop {
            let goes = |id: &&u32| !gone.contains(id) && self.children_left(**id, &gone) <= 1;
            match unseen.iter().find(goes) {
                Some(&id) => gone.push(id),
                None => return gone,
            }
        }
    }

    /// Children that a node has, or will have of those that go; two if there are more.
    fn children_left(&self, id: u32, gone: &[u32]) -> usize {
        let (mut nodes, mut left) = (vec![id], 0);
        while let Some(node) = nodes.pop().and_then(|id| self.volumes.get(id)) {
            for child in &node.children {
                if gone.contains(child) {
                    nodes.push(*child);
                } else {
                    left += 1;
                }
                if left == 2 {
                    return left;
                }
            }
        }
        left
    }
}

/// Nodes that go.
struct Going {
    /// Whether or not the one in question is deleted.
    anyhow: Vec<u32>,
    /// When it is.
    after: Vec<u32>,
}
