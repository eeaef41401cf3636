//! Volumes as `/dev/nbdN`: the kernel's NBD client is a connection like any other, but one that this process has made.
//!
//! ```text
//!   /dev/nbdN -> kernel -> socket pair -> connection (past its handshake) -> as every NBD request
//! ```
//!
//! When the socket ends the kernel keeps what was not answered, and all that comes, and sends it through the next socket that it
//! gets ([`crate::kernel_nbd`]). So such a connection is cut when the node stops: an answer that the daemon is stopping would be an
//! I/O error for whoever uses the device. A request may be done twice, which changes nothing, as for [`super::ublk`].

use super::connection::{Opened, Phase};
use super::control::{ControlError, ServedNbd};
use super::reactor::Reactor;
use flagstone_block::VolumeId;
use flagstone_nbd::{Contexts, Session};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::os::fd::OwnedFd;

/// Bytes that may be on their way to the kernel, or from it: two of its longest requests.
const SOCKET_BYTES: usize = 4 << 20;

impl Reactor {
    /// The `/dev/nbdN` that a volume or snapshot is served as: its N.
    pub(super) fn kernel_nbd_of(&self, handle: u64) -> Option<u32> {
        let mut serving = self
            .connections
            .iter()
            .filter(|connection| connection.phase == Phase::Serving && !connection.ended);
        let is_it = |opened: Opened| opened.handle == handle;
        serving.find_map(|c| c.kernel.filter(|_| c.opened.is_some_and(is_it)))
    }

    /// Whether there is anything of a connection for `/dev/nbdN`.
    fn is_kernel_nbd_there(&self, number: u32) -> bool {
        self.connections.iter().any(|connection| connection.kernel == Some(number))
    }

    /// Devices that wait for a socket: what is asked of them is about the volumes as they are.
    pub(super) fn await_kernel_nbd(&mut self, waiting: Vec<(u32, u64)>) {
        let most = self.connections.len() as u32 / 2;
        self.kernel_nbd_reserve = (waiting.len() as u32).min(most);
        self.kernel_nbd_waiting = waiting;
    }

    /// The `/dev/nbdN` of a volume or snapshot, which is served or waits: its N.
    pub(super) fn kernel_nbd_for(&self, handle: u64) -> Option<u32> {
        let waits = || self.kernel_nbd_waiting.iter().find(|waiting| waiting.1 == handle);
        self.kernel_nbd_of(handle).or_else(|| Some(waits()?.0))
    }

    pub(super) fn served_kernel_nbd(&self) -> Vec<ServedNbd> {
        let served = self.connections.iter().filter_map(|connection| {
            let is_served = connection.phase == Phase::Serving && !connection.ended;
            let (number, opened) = (connection.kernel.filter(|_| is_served)?, connection.opened?);
            let entry = self.catalog.get(opened.handle)?;
            Some(ServedNbd {
                number,
                handle: opened.handle,
                uuid: entry.uuid,
                size_bytes: entry.size,
                full: !self.pools[opened.pool as usize].waiting.is_empty(),
            })
        });
        served.collect()
    }

    /// Cuts the connection for `/dev/nbdN`, which waits for none any more; whether nothing of it is under way.
    pub(super) fn leave_kernel_nbd(&mut self, number: u32) -> bool {
        let mut waiting = std::mem::take(&mut self.kernel_nbd_waiting);
        waiting.retain(|waiting| waiting.0 != number);
        self.await_kernel_nbd(waiting);
        for c in 0..self.connections.len() as u32 {
            if self.connections[c as usize].kernel == Some(number) {
                self.kill(c);
            }
        }
        !self.is_kernel_nbd_there(number)
    }

    /// Begins to serve a volume or snapshot as `/dev/nbdN`: the other end of the connection is for the kernel.
    pub(super) fn serve_kernel_nbd(
        &mut self,
        handle: u64,
        number: u32,
    ) -> Result<OwnedFd, ControlError> {
        if !self.stop.is_running() {
            return Err(ControlError::Stopping);
        }
        let Some(entry) = self.catalog.exported(handle) else {
            return Err(ControlError::NoSuchVolume { name: String::new() });
        };
        let session = Session::transmitting(entry.size, entry.read_only);
        if let Some(served) = self.kernel_nbd_of(handle) {
            return Err(ControlError::Attached { driver: "nbd", number: served });
        }
        self.check_no_ublk(handle)?;
        if self.is_kernel_nbd_there(number) {
            // What the old connection asked for must have ended before the kernel asks again.
            return Err(ControlError::KernelNbdLeaving { number });
        }
        self.prepare_for_kernel();
        let refused = |reason: String| ControlError::KernelNbd { number, reason };
        let flags = SocketFlags::CLOEXEC;
        let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let (ours, kernels) = pair.map_err(|errno| refused(errno.to_string()))?;
        for socket in [&ours, &kernels] {
            // Without the privilege they have what the system gives all.
            let _ = sockopt::set_socket_send_buffer_size_force(socket, SOCKET_BYTES);
        }
        let Some(c) = self.free_connections.pop() else { return Err(ControlError::Overloaded) };
        let socket = match self.ring.add_socket(ours) {
            Ok(socket) => socket,
            Err(error) => {
                self.free_connections.push(c);
                return Err(refused(error.to_string()));
            }
        };
        self.by_socket[socket.slot()] = Some(c);
        let connection = &mut self.connections[c as usize];
        connection.begin(socket);
        connection.session = session;
        connection.phase = Phase::Serving;
        connection.kernel = Some(number);
        connection.opened = Some(Opened {
            pool: (handle >> 32) as u32,
            volume: VolumeId(handle as u32),
            handle,
            contexts: Contexts::default(),
        });
        self.catalog.opened(handle, true);
        self.stats.connections_accepted += 1;
        self.stats.connections_now += 1;
        self.want_input(c);
        tracing::debug!(device = number, "a connection for /dev/nbd{number}");
        Ok(kernels)
    }
}
