//! The map: volume block -> pool block and checksum.
//!
//! A radix tree per volume: a vector of nodes of 1 GiB, each with 512 leaves of 2 MiB. A leaf is
//! untouched, all hole, all kept zeroes, dense, or away; dense leaves live in a slab shared by all
//! volumes, so that a leaf is a number and a lookup is two array accesses. Of a leaf that is away
//! its page knows where its blocks lie; which of them are holes is in memory.
//!
//! Invariants:
//! 1. A leaf that was ever written to is never "untouched" again: metadata compaction must
//!    state its holes, or an older summary would bring its blocks back.
//! 2. A leaf that has a page says what the page says: every change takes the page from it.
//! 3. What is known of a leaf that is away is in its page and in the patch on top of it (see
//!    `unread.rs`); a leaf in memory has no patch.
//! 4. `Leaf::mapped` and `Leaf::kept` equal the number of such entries.

mod differs;
mod leaf;
mod paged;
mod slab;
mod tree;
mod unread;

pub use leaf::{Leaf, LeafPage, Mapping};
pub use paged::PagedLeaf;
pub use slab::{Candidate, LeafSlab, Place};
pub use tree::{LeafState, Logged, Reclaim, Takes, Unlike, VolumeMap};
pub use unread::{Unread, Verdict};

/// Blocks in a leaf: 2 MiB.
pub const LEAF_BLOCKS: usize = 512;
/// Leaves in a node: 1 GiB.
pub const NODE_LEAVES: usize = 512;
