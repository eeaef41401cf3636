//! ublk: block devices of the Linux kernel whose requests this process serves.
//!
//! ```text
//!   /dev/ublk-control <--- Control: add, start, stop, recover, delete; may wait, has time-outs
//!   /dev/ublkcN       <--- Queue: descriptors mapped, data copied by pread and pwrite
//!   /dev/ublkbN       what others open
//! ```
//!
//! Everything here follows `include/uapi/linux/ublk_cmd.h` of the kernel; docs/protocols/ublk.md has the tables. Data
//! is copied by `UBLK_F_USER_COPY` where the kernel allows it, so the kernel never holds an address of ours; an
//! unprivileged device can't have that, and gets one buffer for each request of its queue.
//!
//! The commands that fetch requests and commit their results (`UBLK_U_IO_FETCH_REQ`,
//! `UBLK_U_IO_COMMIT_AND_FETCH_REQ`) are submitted to the reactor's own ring, as 16 bytes that
//! [`IoCommand::encode`] makes. Why not a library: docs/decisions/0017.

mod control;
mod error;
mod features;
mod info;
mod params;
mod queue;
mod request;
mod uapi;

pub use control::{Control, DeviceNumber, device_numbers};
pub use error::{ControlError, QueueError};
pub use features::Features;
pub use info::{DeviceInfo, DeviceState};
pub use params::{Params, ParamsError};
pub use queue::{MAX_DEPTH, Queue};
pub use request::{IoCommand, Operation, Request, RequestError, SECTOR_BYTES, result_of};
