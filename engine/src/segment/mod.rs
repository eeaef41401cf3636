//! Segments: which are free, being written, sealed or dying; and the one being filled.

mod free;
mod open;
mod table;

pub(crate) use open::{OpenSegment, SealStage, Sealing, Summary, seal_summary};
pub use table::{SegmentState, SegmentTable};
