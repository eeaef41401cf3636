//! NVMe namespaces driven by commands of their own, through the kernel's driver.
//!
//! ```text
//!   /dev/ngXnY --identify--> Geometry, Limits --probe--> Namespace --> ring::Passthrough
//! ```
//!
//! The codec ([`Command`], [`IdentifyController`], [`IdentifyNamespace`], [`DsmRange`], [`Status`]) is bytes in, bytes
//! out, after the NVM Express Base Specification 2.0 and the NVM Command Set Specification 1.0; it reads nothing
//! that it was not given, and takes any bytes. [`Namespace`] opens the device and tries whether commands get through.
//!
//! `unsafe` is in `admin` (the driver's ioctls), `probe` (a ring of its own for one read) and `passthrough` (the promise that
//! commands name no memory but that of their request).

mod admin;
mod command;
mod geometry;
mod identify;
mod limits;
mod namespace;
mod open;
mod passthrough;
mod probe;
mod status;

pub use flagstone_ring::PassthroughOutcome;

pub use command::{COMMAND_BYTES, Command, DSM_RANGE_BYTES, DsmRange, Opcode, Zeroing};
pub use geometry::{Geometry, GeometryError};
pub use identify::{
    Capabilities, IDENTIFY_BYTES, IdentifyController, IdentifyNamespace, LbaFormat, ShortIdentify,
};
pub use limits::Limits;
pub use namespace::{Namespace, NamespaceError, block_device};
pub use open::{is_namespace, open, visible};
pub use passthrough::completion;
pub use probe::ProbeError;
pub use status::{Status, StatusType};
