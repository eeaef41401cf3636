//! Deliberate bugs, for testing the tests.
//!
//! Compiled in only with the feature `planted-bugs`. The simulator plants one at a time and must
//! find it; a fault model that can't find a known bug says nothing about unknown ones.

/// A bug that can be planted when a pool is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Plant {
    /// A flush is answered without flushing the device.
    SkipFlush,
    /// A write is answered before its journal record is on the device.
    AcknowledgeEarly,
    /// Batches are answered in the order in which they complete.
    AcknowledgeOutOfOrder,
    /// FUA is ignored.
    IgnoreFua,
    /// Reads skip the checksum.
    DropChecksum,
    /// A dead segment is reused at once.
    ReuseTooSoon,
    /// Recovery skips a record that can't be proven and goes on behind it.
    ReplaySkips,
    /// Recovery believes the journal without reading the data.
    ReplayUnproven,
    /// The seal record is logged before the flush.
    SealBeforeFlush,
    /// The journal tail passes records that are covered nowhere else.
    TailTooFar,
    /// Discards don't reach the metadata chain.
    ForgetDiscards,
    /// Volume deletions don't reach the metadata chain.
    ForgetDeletes,
    /// Read-modify-write takes no guard.
    Unguarded,
    /// What a scan has brought about to be rewritten is read before what was logged earlier is
    /// applied.
    RewriteUnsettled,
    /// It is rewritten although a record about it was logged since it was read.
    RewriteStale,
    /// It is rewritten although it is damaged.
    RewriteDamaged,
    /// Holes in it are written too.
    RewriteHoles,
    /// A failed data write counts as done.
    IgnoreWriteErrors,
    /// The superblock is written before what it refers to is flushed.
    SuperblockFirst,
    /// A checkpoint leaves the holes out.
    CompactWithoutHoles,
    /// A checkpoint does not wait for its leaf pages.
    LeafPagesLate,
    /// Recovery applies entries that a leaf's page already holds or has superseded.
    ReplayOverPages,
    /// Recovery doesn't look for entries of a page whose segment was freed since.
    StaleEntriesStay,
    /// A segment is freed although not every leaf was counted after the opening.
    FreeUncounted,
    /// A checkpoint names the page of a leaf, but not what was logged of it before the opening.
    ForgetPatches,
    /// Leaves are dropped from memory although a record under way is about them.
    DropBusyLeaves,
    /// A map segment that is to be emptied is freed before the superblock names the new pages.
    FreePagesEarly,
    /// The cleaner switches map entries that have changed since it read the block.
    SwitchBlindly,
    /// Moved blocks count as new versions.
    MoveAsNew,
    /// The seal of moved blocks is logged before the flush.
    SealMovedBeforeFlush,
    /// The map is switched to moved blocks when their summary is written, before their seal.
    SwitchBeforeSeal,
    /// User writes take the segments that are reserved for the cleaner.
    UsersTakeReserve,
    /// Writers wait for what the cleaner earns them even while it has nothing to do.
    PaceForGood,
    /// Volumes take what is reserved for others.
    TakeReserved,
    /// Changes of a volume's settings don't reach the metadata chain.
    ForgetSettings,
    /// Metadata compaction leaves the settings of volumes out.
    CompactWithoutSettings,
    /// What a discard gives back of a reserved volume becomes anybody's.
    LoseReturned,
    /// A read-modify-write that fails keeps the space that it was to take.
    KeepCharge,
    /// Requests for zeroes that keep their space are charged for good if they are answered.
    KeepPromise,
    /// A scrub's reads don't pin segments, and what no longer counts is reported.
    ScrubUnpinned,
    /// A damaged leaf page that a scrub reports as repaired stays in use.
    ScrubKeepsPage,
    /// A growth is answered, and its segments are used, before the superblock that has them is
    /// durable.
    GrowTooSoon,
    /// The journal tail passes the records of one stream's open segment.
    TailOfOneStream,
    /// A clean stop keeps the records of one stream's open segment only.
    KeepOneStream,
    /// Opening after a crash forgets what only the journal knew.
    SettleForgets,
    /// Opening after a crash ends the journal before what it knew is durable elsewhere.
    SettleTooSoon,
    /// A dead segment is discarded before what superseded it, and its free record, are durable.
    DiscardTooSoon,
    /// A segment that was to be discarded is, although it was taken meanwhile.
    DiscardTaken,
    /// A shrink does not discard what it cuts off.
    ShrinkKeepsData,
    /// A checkpoint states nothing of leaves beyond the end of a volume.
    CompactWithinSize,
    /// Requests may be about what a shrink under way cuts off.
    ShrinkAdmits,
    /// A flush asks the journal's device only.
    FlushOneDevice,
    /// A superblock counts when it is durable on one device.
    SuperblockOnOneDevice,
    /// The segments of a device are used before the superblock that has it is durable.
    JoinTooSoon,
    /// A device is removed before the records that free its segments are durable.
    RemoveTooSoon,
    /// When the journal moves to another device, its blocks on the old one are forgotten.
    JournalForgetsOld,
    /// A block that a snapshot has too dies when it is overwritten.
    InheritedDies,
    /// Snapshots that are to be one instant are logged one by one.
    SplitGroup,
    /// Replay takes snapshots after everything else that was logged.
    CutLate,
    /// A deleted snapshot's blocks die, also those that others go on with.
    PassNothing,
    /// A deleted snapshot is taken apart while a checkpoint states it.
    DieWhileStating,
    /// A checkpoint states a deleted snapshot as if it were not.
    ReviveDeleted,
    /// A block that was moved is switched in the map of its owner alone.
    MoveOwnerOnly,
    /// An opening finishes moves of blocks that were written again since.
    FinishAnyMove,
    /// A deleted snapshot is taken apart although several children have what it has.
    DieForOne,
    /// Nobody says that what a line logged is a clone's now.
    NoHeir,
    /// A volume is gone before the checkpoint under way has stated what was cut from it since.
    LeaveUnstated,
    /// Of a rollback's records not all are in one journal block.
    SplitRollback,
    /// A map made from summaries does without volumes that are gone.
    ForgetGhosts,
    /// A pool that is opened without a device cuts the log at the first data that lies there.
    CutAtMissing,
    /// A pool that is opened without a device leaves out summaries that lie there.
    SkipMissingSummaries,
    /// Requests are taken and answered although no superblock says that a device failed.
    PartSilently,
    /// What is written again supersedes what was accepted later.
    AgainOverNewer,
    /// Recovery applies writes that did not happen, because their device failed.
    ReplayVoid,
    /// Recovery cuts the log at data that a device which failed has lost.
    ProveFailed,
    /// The journal's tail passes the records of segments that will never have a summary.
    ForgetOrphans,
    /// The flush of one volume that fails for what was lost is that of all.
    TellOneVolume,
    /// Nobody is told what was lost with a device.
    KeepLossSecret,
}

impl Plant {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::SkipFlush,
        Self::AcknowledgeEarly,
        Self::AcknowledgeOutOfOrder,
        Self::IgnoreFua,
        Self::DropChecksum,
        Self::ReuseTooSoon,
        Self::ReplaySkips,
        Self::ReplayUnproven,
        Self::SealBeforeFlush,
        Self::TailTooFar,
        Self::ForgetDiscards,
        Self::ForgetDeletes,
        Self::Unguarded,
        Self::RewriteUnsettled,
        Self::RewriteStale,
        Self::RewriteDamaged,
        Self::RewriteHoles,
        Self::IgnoreWriteErrors,
        Self::SuperblockFirst,
        Self::CompactWithoutHoles,
        Self::LeafPagesLate,
        Self::ReplayOverPages,
        Self::StaleEntriesStay,
        Self::FreePagesEarly,
        Self::FreeUncounted,
        Self::ForgetPatches,
        Self::DropBusyLeaves,
        Self::SwitchBlindly,
        Self::MoveAsNew,
        Self::SealMovedBeforeFlush,
        Self::SwitchBeforeSeal,
        Self::UsersTakeReserve,
        Self::PaceForGood,
        Self::TakeReserved,
        Self::ForgetSettings,
        Self::CompactWithoutSettings,
        Self::LoseReturned,
        Self::KeepCharge,
        Self::KeepPromise,
        Self::ScrubUnpinned,
        Self::ScrubKeepsPage,
        Self::GrowTooSoon,
        Self::TailOfOneStream,
        Self::KeepOneStream,
        Self::SettleForgets,
        Self::SettleTooSoon,
        Self::DiscardTooSoon,
        Self::DiscardTaken,
        Self::ShrinkKeepsData,
        Self::CompactWithinSize,
        Self::ShrinkAdmits,
        Self::FlushOneDevice,
        Self::SuperblockOnOneDevice,
        Self::JoinTooSoon,
        Self::RemoveTooSoon,
        Self::JournalForgetsOld,
        Self::InheritedDies,
        Self::SplitGroup,
        Self::CutLate,
        Self::PassNothing,
        Self::DieWhileStating,
        Self::ReviveDeleted,
        Self::MoveOwnerOnly,
        Self::FinishAnyMove,
        Self::DieForOne,
        Self::NoHeir,
        Self::LeaveUnstated,
        Self::SplitRollback,
        Self::ForgetGhosts,
        Self::CutAtMissing,
        Self::SkipMissingSummaries,
        Self::PartSilently,
        Self::AgainOverNewer,
        Self::ReplayVoid,
        Self::ProveFailed,
        Self::ForgetOrphans,
        Self::TellOneVolume,
        Self::KeepLossSecret,
    ];
}

/// The planted bug, if any. Without the feature it is a constant, and the checks vanish.
#[derive(Clone, Copy, Debug, Default)]
pub struct Planted(#[cfg(feature = "planted-bugs")] pub Option<Plant>);

impl Planted {
    /// No bug.
    #[cfg(feature = "planted-bugs")]
    pub const NONE: Self = Self(None);
    /// No bug.
    #[cfg(not(feature = "planted-bugs"))]
    pub const NONE: Self = Self();

    /// Whether `plant` is in force.
    #[must_use]
    #[inline]
    pub fn has(self, plant: Plant) -> bool {
        #[cfg(feature = "planted-bugs")]
        {
            self.0 == Some(plant)
        }
        #[cfg(not(feature = "planted-bugs"))]
        {
            let _ = plant;
            false
        }
    }
}
