//! What the reactor reports to its owner, and the names it uses.

use flagstone_block::{DeviceError, IoToken};

use crate::timers::TimerId;

/// A device added to the ring. Valid as long as the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId(pub(crate) u32);

/// A socket added to or accepted by the ring. Stale after [`Event::Closed`]; using a stale name
/// is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl SocketId {
    /// The index of the socket's slot, below [`crate::RingConfig::max_sockets`]. Reused after
    /// [`Event::Closed`]; for tables of per-connection state beside the ring's own.
    #[must_use]
    pub fn slot(self) -> usize {
        self.slot as usize
    }
}

/// A listening socket added to the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// A file that commands are given to. Stale after it was removed; using a stale name is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CommandFileId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl CommandFileId {
    /// The index of the file's slot: small, and another's once the file was removed.
    #[must_use]
    pub fn slot(self) -> usize {
        self.slot as usize
    }
}

/// Something that happened. Error numbers are positive, as in `errno.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A device command ended. A transfer is complete or an error, never short.
    Device {
        /// The device it was submitted to.
        device: DeviceId,
        /// As submitted.
        token: IoToken,
        /// What became of it.
        result: Result<(), DeviceError>,
    },
    /// A connection was accepted.
    Accepted {
        /// The listener it came through.
        listener: ListenerId,
        /// Its name; nothing is under way on it yet.
        socket: SocketId,
    },
    /// A listener failed for good and accepts nothing any more.
    ListenerFailed {
        /// The listener; its name is stale now.
        listener: ListenerId,
        /// What `accept(2)` said.
        errno: i32,
    },
    /// A receive ended; its buffer belongs to the caller again.
    Received {
        /// The socket.
        socket: SocketId,
        /// Bytes received, 0 when the peer (or a shutdown) ended the stream.
        result: Result<usize, i32>,
    },
    /// A send ended, whole or failed; its buffers belong to the caller again.
    Sent {
        /// The socket.
        socket: SocketId,
        /// On error an unknown prefix was sent, and the stream can't be used any more.
        result: Result<(), i32>,
    },
    /// The last operation of a socket that was shut down has ended and its descriptor is closed.
    Closed {
        /// The socket; its name is stale now.
        socket: SocketId,
    },
    /// A driver's command ended.
    Command {
        /// The file it was given to.
        file: CommandFileId,
        /// As submitted.
        name: u32,
        /// As the driver says: below 0 an error number.
        result: i32,
    },
    /// Another thread woke the ring: look into the mailboxes.
    Woken,
    /// A timer is due.
    Timer {
        /// Its name, stale now.
        id: TimerId,
        /// As given to [`crate::Ring::set_timer`].
        user: u64,
    },
}
