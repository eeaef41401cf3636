//! The reactor: io_uring, registered buffers, devices, sockets, timers.
//!
//! The one crate of the single-node data path with `unsafe` code: memory that the kernel reads and
//! writes behind the compiler's back is handed out here, behind a face that is safe to use. The
//! rules that make it so are in the headers of [`Arena`]'s module, of `ops` and of `ring`, and
//! in docs/user-data.md.
//!
//! ```text
//!   owner --submit--> Ring --one io_uring_enter per round--> kernel
//!   owner <--next_event-- Ring <--completions-- kernel
//! ```
//!
//! Nothing here knows what a pool, a volume or a protocol is.

mod arena;
mod counters;
mod device;
mod error;
mod event;
mod frame;
mod mode;
mod net;
mod ops;
mod ring;
mod spin;
mod timers;
mod uring;
mod wake;

pub use arena::{Arena, MAX_BUFFER_BLOCKS};
pub use counters::Counters;
pub use device::{
    Allocation, Backing, CreateFileError, DataPath, Device, DeviceKind, DeviceOpenError, OpenMode,
    Passthrough, PassthroughCommand, PassthroughOutcome, PassthroughRequest, SyncDevice,
};
pub use error::{AddError, RingError, SocketError};
pub use event::{CommandFileId, DeviceId, Event, ListenerId, SocketId};
pub use mode::{BufferMode, RingMode};
pub use net::{ListenError, listen_tcp, listen_unix, set_tcp_options};
pub use ring::{Command, PassthroughMode, Ring, RingConfig, SEND_PARTS_MAX, SendPart};
pub use rustix::io::Errno;
pub use spin::{BUSY_INTERVAL_NS, SPIN_MAX_NS, SpinEstimate, SpinPolicy};
pub use timers::TimerId;
pub use uring::TaskRun;
pub use wake::{MailError, MailSender, Mailbox, Waker};
