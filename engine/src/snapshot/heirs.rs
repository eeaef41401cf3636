//! Moving a block that others may have inherited: all maps that name it are switched at once.
//!
//! Of a leaf most of those below its owner have nothing of their own, and there may be a hundred thousand clones of
//! one image. So they are looked for once for the blocks of one leaf that the cleaner moves in one turn, and only those
//! that differ are asked for each block.
//!
//! Invariant: the list is of the snapshots and clones as they are. It is forgotten before anything else than moves can
//! happen.

use crate::compact::Compaction;
use crate::engine::Engine;
use crate::map::{LEAF_BLOCKS, LeafState, Mapping};
use crate::plant::Plant;
use crate::volume::VolumeState;
use flagstone_block::Lba;

/// Who differs in a leaf among those who may have inherited it from its owner.
#[derive(Debug, Default)]
pub(crate) struct Heirs {
    /// Whose list it is: owner, and number of the leaf.
    of: Option<(u32, u64)>,
    /// The owner, and those that differ, each with the place in this list of the one above it; that one comes first.
    nodes: Vec<(u32, u32)>,
    /// Whether what is below each has what it has: as long as a block is moved.
    pass: Vec<bool>,
    /// Still to be looked at.
    stack: Vec<(u32, u32)>,
    /// Maps that were looked at since the list was forgotten.
    steps: usize,
    /// Those of them that were looked at to move a block, not to make a list.
    moves: usize,
}

impl Heirs {
    /// Things may have changed.
    pub(crate) fn forget(&mut self) {
        (self.of, self.steps, self.moves) = (None, 0, 0);
    }

    /// Maps that were looked at since then.
    pub(crate) fn steps(&self) -> usize {
        self.steps
    }

    /// Whether this is whose list there is, and the blocks of one turn have not taken `most` steps: to make it once
    /// more in the next turn would take longer than to go on.
    pub(crate) fn has_list_of(&self, owner: u32, leaf: u64, most: usize) -> bool {
        self.of == Some((owner, leaf)) && self.moves < most
    }
}

impl Engine {
    /// Whether a checkpoint states leaves in which others may have inherited what `owner` has, so that nothing
    /// of it is moved meanwhile.
    pub(crate) fn is_being_stated(&self, owner: u32) -> bool {
        let inherited = self.volumes.get(owner).is_some_and(|owner| !owner.children.is_empty());
        let stating = self.compaction.as_ref().is_some_and(Compaction::is_stating);
        inherited && stating
    }

    /// Switches all maps that name `from`, from its owner on, to another copy of the block; false if the
    /// owner's leaf must be read first, which begins then. Those who inherit it are known without. False
    /// as well while a checkpoint states the leaves: all must be in it with the same copy.
    pub(crate) fn move_block(&mut self, owner: u32, lba: Lba, from: Mapping, to: Mapping) -> bool {
        let (leaf, block) = (lba.0 / LEAF_BLOCKS as u64, lba.0 as usize % LEAF_BLOCKS);
        if self.is_being_stated(owner) {
            return false;
        }
        if self.heirs.of != Some((owner, leaf)) {
            self.find_heirs(owner, leaf);
        }
        self.heirs.pass.clear();
        self.heirs.steps += self.heirs.nodes.len();
        self.heirs.moves += self.heirs.nodes.len();
        for i in 0..self.heirs.nodes.len() {
            let (node, above) = self.heirs.nodes[i];
            let reached = i == 0 || self.heirs.pass[above as usize];
            let passes = match reached {
                true => self.move_in((node, i == 0), (leaf, block), from, to),
                false => Some(false),
            };
            let Some(passes) = passes else { return false };
            self.heirs.pass.push(passes);
        }
        true
    }

    /// Who can read a block that `owner` has: it or, if it is deleted, one that has inherited the block. Perhaps
    /// nobody can any more.
    pub(crate) fn reader_of(&self, owner: u32, lba: Lba) -> Option<u32> {
        let (leaf, block) = (lba.0 / LEAF_BLOCKS as u64, lba.0 as usize % LEAF_BLOCKS);
        let mut stack = vec![owner];
        while let Some(node) = stack.pop() {
            let Some(volume) = self.volumes.get(node) else { continue };
            let gone = matches!(volume.state, VolumeState::Dying | VolumeState::Leaving);
            let inherits = match volume.map.leaf(&self.slab, leaf).0 {
                _ if node == owner || !volume.map.is_different(leaf) => true,
                LeafState::Dense(index) => {
                    let content = self.slab.get(index);
                    matches!(content.get(block), Mapping::Block { .. }) && !content.owns(block)
                }
                LeafState::Away(away) => {
                    let paged = self.slab.away_leaf(away);
                    paged.bit(block) == (false, false) && !paged.owns(block)
                }
                // What it had has passed to its child, which may inherit the rest from further up.
                _ => gone,
            };
            match (inherits, gone) {
                (true, false) => return Some(node),
                (true, true) => stack.extend_from_slice(&volume.children),
                (false, _) => {}
            }
        }
        None
    }

    /// Lists the heirs of a leaf.
    fn find_heirs(&mut self, owner: u32, leaf: u64) {
        let Heirs { of, nodes, stack, steps, .. } = &mut self.heirs;
        *of = Some((owner, leaf));
        nodes.clear();
        stack.clear();
        stack.push((owner, 0));
        while let Some((node, above)) = stack.pop() {
            *steps += 1;
            let Some(volume) = self.volumes.get(node) else { continue };
            let mut above = above;
            if node == owner || volume.map.is_different(leaf) {
                nodes.push((node, above));
                above = nodes.len() as u32 - 1;
            }
            if !self.planted.has(Plant::MoveOwnerOnly) {
                stack.extend(volume.children.iter().map(|child| (*child, above)));
            }
        }
    }

    /// Switches the map of one of them; whether those below may have the block from it. `None` if the owner's leaf
    /// must be read first.
    fn move_in(
        &mut self,
        (node, is_owner): (u32, bool),
        (leaf, block): (u64, usize),
        from: Mapping,
        to: Mapping,
    ) -> Option<bool> {
        let Some(volume) = self.volumes.get(node) else { return Some(false) };
        match volume.map.leaf(&self.slab, leaf).0 {
            LeafState::Dense(index) => {
                let content = self.slab.get(index);
                if content.get(block) != from {
                    return Some(false);
                }
                let owns = content.owns(block);
                let content = self.slab.get_mut(index);
                let _ = if owns { content.set(block, to) } else { content.inherit(block, to) };
            }
            LeafState::Away(away) => {
                let paged = self.slab.away_leaf(away);
                let data = paged.bit(block) == (false, false);
                if is_owner && data {
                    let page = paged.page;
                    self.request_leaf(node, leaf, page);
                    return None;
                }
                if !data || paged.owns(block) {
                    return Some(false);
                }
                self.slab.note_moved(away, block, to);
            }
            // What it had has passed to its child, which may inherit the rest from further up.
            _ => return Some(volume.state == VolumeState::Dying),
        }
        Some(true)
    }
}
