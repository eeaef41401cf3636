//! Formatting, opening and recovering a pool.
//!
//! [`load`] reads and writes nothing: superblock, journal, metadata chain, and the summaries of
//! segments sealed since the checkpoint, in that order, ending with the map. The checkpoint's leaf
//! pages are read later (see [`crate::counting`]). If one turned out to be damaged, the superblock
//! says so, and the map is made from the summaries of all segments instead.
//! [`Engine::open`] then makes what only the journal knew durable elsewhere (see `settle.rs`) and,
//! last, writes a superblock that starts the journal anew. Until that superblock is durable every
//! structure that `load` needs is untouched or has grown by what it says anyway, so a crash
//! during recovery changes nothing.

mod finish;
mod format;
mod load;
mod pages;
mod records;
mod replay;
mod scan;
mod settle;
mod window;

pub use finish::OpenOptions;
pub use format::FormatOptions;
pub(crate) use format::every_place;
pub(crate) use load::{Loaded, Source, load};
pub(crate) use replay::summary_of;
pub use scan::identify;
pub(crate) use scan::superblock;

/// What recovery found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The pool had been stopped cleanly; there was nothing to recover.
    pub clean: bool,
    /// Journal blocks replayed.
    pub journal_blocks: u64,
    /// First journal block that could not be proven, if blocks from there on were dropped.
    pub cut_at: Option<u64>,
    /// Valid journal blocks beyond the cut: written, but never known to be durable.
    pub dropped_blocks: u64,
    /// Blocks of the unproven tail whose data was read and verified.
    pub verified_blocks: u64,
    /// Segments whose summary was replayed: those sealed since the last checkpoint.
    pub summaries: u32,
    /// Leaf pages of the map.
    pub leaf_pages: u64,
    /// Leaf pages that are damaged, of those that were read: all in a check, none in an opening.
    pub leaf_pages_damaged: u64,
    /// The map was made from the summaries of all segments: because leaf pages were wanting, or
    /// because that was asked for.
    pub rebuilt: bool,
    /// Metadata pages replayed.
    pub meta_pages: u64,
    /// Metadata pages of which one copy was damaged.
    pub meta_copies_damaged: u64,
    /// Superblock places (of five) that held no valid copy; opening writes those that count anew.
    pub superblocks_damaged: u32,
    /// Segments that were not sealed.
    pub open_segments: u32,
    /// Volumes found.
    pub volumes: u32,
}
