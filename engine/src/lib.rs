//! The log-structured store, without any I/O of its own.
//!
//! Requests and device completions go in, device commands and answers come out; see
//! [`Engine`]. `docs/promises.md` says what is promised, `docs/formats` what lies on disk.

mod batch;
mod check;
mod clean;
mod compact;
mod control;
mod counting;
mod degraded;
mod devices;
mod diff;
mod discard;
mod engine;
mod error;
mod flush;
pub mod format;
mod geometry;
mod graves;
mod journal;
mod leaf_loader;
mod leaf_writer;
pub mod limits;
mod map;
mod meta_chain;
pub mod plant;
mod read;
mod recover;
mod reserve;
mod resize;
mod rewrite;
mod rmw;
mod scrub;
mod seal;
mod segment;
mod snapshot;
mod space;
mod status;
mod stop;
mod stream;
mod summary_copies;
mod super_write;
mod token;
mod usage;
mod volume;
mod write;
mod zero;

pub use check::{
    BadBlock, CheckReport, Disagreement, Inconsistency, Inspection, SegmentInfo, check,
    compare_maps, geometry, inspect,
};
pub use control::VolumeSpec;
pub use devices::{DeviceInfo, NewDevice};
pub use diff::{DiffExtent, DiffKind, DiffSpec};
pub use engine::{Completion, Counters, Engine, PoolState, PoolUsage, own_blocks};
pub use error::{DiffError, FormatError, IoFault, Needed, OpenError, SubmitError};
pub use geometry::{Extent, Geometry, GeometryError};
pub use recover::{FormatOptions, OpenOptions, RecoveryReport, identify};
pub use resize::Shrink;
pub use scrub::{ScrubFinding, ScrubPlace, ScrubRefused, ScrubReport, ScrubState};
pub use segment::SegmentState;
pub use snapshot::{CloneSpec, RollbackSpec, SnapshotSpec};
pub use space::VolumeUsage;
pub use status::{StatusExtent, StatusKind};
pub use usage::SharedUsage;
pub use volume::{Cut, OnFull, VolumeInfo, VolumeSettings};
