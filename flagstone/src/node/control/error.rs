//! Why a control request is refused, and why a node ends: small, matchable kinds. What the user can do
//! about it is told by who knows the user's face: the API's and the command line's.

use std::path::PathBuf;

/// Where the device of a driver is.
fn device_path(driver: &str, number: u32) -> String {
    let letter = if driver == "ublk" { "b" } else { "" };
    format!("/dev/{driver}{letter}{number}")
}

/// Why a control request was refused. Nothing has changed, except where it says so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// No volume of that name.
    #[error("there is no volume {name:?}")]
    NoSuchVolume {
        /// The name asked for.
        name: String,
    },
    /// It is attached as a block device of this machine.
    #[error("it is attached as {}", device_path(driver, *number))]
    Attached {
        /// `ublk` or `nbd`.
        driver: &'static str,
        /// The device's number.
        number: u32,
    },
    /// A device of the kernel's NBD client can't be served.
    #[error("/dev/nbd{number} can't be served: {reason}")]
    KernelNbd {
        /// Its number.
        number: u32,
        /// Why.
        reason: String,
    },
    /// A block device can't be served.
    #[error("ublk device {number} can't be served: {reason}")]
    Ublk {
        /// Its number.
        number: u32,
        /// Why.
        reason: String,
    },
    /// The last connection for a device of the kernel's NBD client has not ended yet.
    #[error("what /dev/nbd{number} asked for before is not over yet")]
    KernelNbdLeaving {
        /// Its number.
        number: u32,
    },
    /// No snapshot of that name.
    #[error("there is no snapshot {name:?}")]
    NoSuchSnapshot {
        /// The name asked for, with the volume's.
        name: String,
    },
    /// A snapshot of that name exists already.
    #[error("there is a snapshot {name:?} already")]
    SnapshotExists {
        /// The name asked for, with the volume's.
        name: String,
    },
    /// Not a name that a snapshot can have.
    #[error("{name:?} can't be a snapshot's name")]
    BadSnapshotName {
        /// The name asked for, with the volume's.
        name: String,
    },
    /// What was asked for can't be done to a snapshot.
    #[error("{name:?} is a snapshot, which can only be read and deleted")]
    IsSnapshot {
        /// Its name, with the volume's.
        name: String,
    },
    /// The volume has snapshots, and was to be deleted without them.
    #[error("the volume has {snapshots} snapshots")]
    HasSnapshots {
        /// How many.
        snapshots: u32,
    },
    /// None were asked for, or so many that they can't be one instant.
    #[error(
        "one call takes snapshots of volumes of one pool whose names fit one block of the log: 33 \
         with names of up to 55 bytes, 20 with the longest"
    )]
    SnapshotCount,
    /// The pool can't back the reservations of the volumes beside their snapshots.
    #[error(
        "the pool can't back what is reserved for the volumes beside their snapshots: it has \
         {available_bytes} bytes, and what is reserved may all be overwritten"
    )]
    SnapshotUnbacked {
        /// What it could back in addition.
        available_bytes: u64,
    },
    /// The volumes to be snapshotted at one instant lie in different pools.
    #[error(
        "the volumes {first:?} and {second:?} lie in different pools, and one instant is one only \
         within a pool"
    )]
    DifferentPools {
        /// A volume.
        first: String,
        /// Another, of another pool.
        second: String,
    },
    /// What is to be compared lies in different pools.
    #[error("{older:?} and {newer:?} lie in different pools, which share nothing")]
    NotComparable {
        /// The older of the two.
        older: String,
        /// The newer.
        newer: String,
    },
    /// Two volumes or snapshots can't be compared, because the map of one is damaged.
    #[error("what says where block {lba} and those behind it lie is damaged")]
    MapDamaged {
        /// The first block that the damage is about.
        lba: u64,
    },
    /// No pool at that path.
    #[error("there is no pool at {}", path.display())]
    NoSuchPool {
        /// The path asked for.
        path: PathBuf,
    },
    /// A volume of that name exists already, with another size or identity.
    #[error("there is a volume {name:?} already")]
    NameTaken {
        /// The name asked for.
        name: String,
    },
    /// Not a name that a volume can have.
    #[error("{name:?} can't be a volume's name")]
    BadName {
        /// The name asked for.
        name: String,
    },
    /// Not a size that a volume can have: zero, too large, or not a multiple of 4096.
    #[error(
        "{size_bytes} bytes can't be a volume's size: it must be a multiple of 4096, from 4096 to {max_bytes}"
    )]
    BadSize {
        /// The size asked for.
        size_bytes: u64,
        /// The largest there can be.
        max_bytes: u64,
    },
    /// The size is smaller than the volume's, and it was not to be shrunk.
    #[error(
        "{size_bytes} bytes is less than the volume's {current_bytes}, and a volume shrinks only when \
         forced to"
    )]
    Shrink {
        /// The size asked for.
        size_bytes: u64,
        /// The size it has.
        current_bytes: u64,
    },
    /// The volume holds data beyond the size that it was to be shrunk to.
    #[error("the volume holds {bytes} bytes beyond {size_bytes}")]
    ShrinkHasData {
        /// How many: data, and zeroes whose space is kept.
        bytes: u64,
        /// The size asked for.
        size_bytes: u64,
    },
    /// More is reserved for the volume than the size that it was to be shrunk to.
    #[error("more than {size_bytes} bytes are reserved for the volume")]
    ShrinkReserved {
        /// The size asked for.
        size_bytes: u64,
    },
    /// A volume can't be shrunk, because the map of what is to be cut off is damaged. A part of it may
    /// have been discarded.
    #[error("what says where block {lba} of the volume lies is damaged")]
    ShrinkDamaged {
        /// The first block that the damage is about.
        lba: u64,
    },
    /// Not a reservation that the volume can have.
    #[error(
        "{reserved_bytes} bytes can't be reserved for a volume of {size_bytes}: a reservation is a \
         multiple of 4096 up to the volume's size"
    )]
    BadReservation {
        /// The reservation asked for.
        reserved_bytes: u64,
        /// The volume's size.
        size_bytes: u64,
    },
    /// The pool can't give one volume so much.
    #[error("the pool can't reserve that: it can back {available_bytes} bytes for the volume")]
    Unbacked {
        /// Largest reservation that the volume could have now.
        available_bytes: u64,
    },
    /// Clients have it open.
    #[error("{connections} clients have the volume open")]
    InUse {
        /// How many connections.
        connections: u32,
    },
    /// The pool has no space for it.
    #[error("the pool is full")]
    NoSpace,
    /// As many volumes as a pool can hold.
    #[error("the pool has as many volumes as it can hold")]
    TooManyVolumes,
    /// The pool's device failed. A change that was under way may or may not have happened.
    #[error("the pool's device has failed; see the log")]
    PoolFailed,
    /// A device of the pool is missing, and it was opened to be read.
    #[error("a device of the pool is missing, and the pool is only read")]
    PoolReadOnly,
    /// The pool's device has a size that no pool can have.
    #[error(
        "the device is smaller than the pool, or too large for it: a pool of up to 8 TiB can't \
         grow beyond that"
    )]
    DeviceSize,
    /// The pool has no such device.
    #[error(
        "the pool has no device {device}: give its path or its UUID as `pool status` shows them"
    )]
    NoSuchDevice {
        /// As asked for.
        device: String,
    },
    /// The engine refused a change of the devices.
    #[error("{reason}")]
    DeviceRefused {
        /// Why.
        reason: String,
    },
    /// The device that was to be added failed; the pool is as it was.
    #[error("the device failed and was not added")]
    DeviceFailed,
    /// The node drives as many devices as it can.
    #[error("the daemon has as many devices as it can drive")]
    TooManyDevices,
    /// A scrub of the pool is under way.
    #[error("a scrub of the pool is under way already")]
    Scrubbing,
    /// More control requests than the node takes at a time.
    #[error("too many control requests are waiting; try again")]
    Overloaded,
    /// The node is stopping or has stopped. A change under way may or may not have happened.
    #[error("the node is stopping")]
    Stopping,
}

/// A pool whose device failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedPool {
    /// As given in [`NodeConfig::pools`](super::NodeConfig::pools).
    pub path: PathBuf,
    /// What the device said.
    pub reason: String,
}

fn list(pools: &[FailedPool]) -> String {
    let sentence = |pool: &FailedPool| {
        format!("the pool {} has failed and was not closed: {}", pool.path.display(), pool.reason)
    };
    pools.iter().map(sentence).collect::<Vec<_>>().join("; ")
}

/// Why a running node ended badly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeExit {
    /// Devices failed, while serving or at the stop; the next opening recovers their pools.
    #[error(
        "{}; everything that was flushed before is there: when the device is well again, the next \
         start recovers the pool",
        list(pools)
    )]
    FailedPools {
        /// Which; at least one.
        pools: Vec<FailedPool>,
    },
    /// The reactor can't go on.
    #[error("the reactor failed: {reason}")]
    Reactor {
        /// What happened.
        reason: String,
    },
    /// The reactor thread panicked: a bug.
    #[error("the reactor thread panicked")]
    Panicked,
}
