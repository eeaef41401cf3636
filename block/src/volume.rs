//! Names and modes of volume requests.

/// A volume's number in its pool; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub u32);

/// The submitter's name for a request; comes back with its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub u64);

/// When a write counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Data and journal record are on the device: survives a crash of this process.
    Completed,
    /// Also flushed, with everything acknowledged before: survives power loss.
    Fua,
}

/// What a request that leaves zeroes behind may do with the space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroMode {
    /// A hint: whole blocks become holes, partial blocks at the ends keep their content.
    Discard,
    /// Every byte reads as zero; whole blocks become holes.
    MayUnmap,
    /// Every byte reads as zero; the space stays charged to the volume.
    KeepAllocated,
}
