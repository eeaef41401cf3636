//! The kernel's NBD client, asked over generic netlink. Each call may wait for the kernel.

use super::KernelNbdError;
use flagstone_nbd::netlink::{self, Device, MESSAGE_BYTES, Message, Terms};
use rustix::io::Errno;
use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// A kernel that does not answer for so long is broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// A conversation with it.
pub(super) struct Control {
    socket: OwnedFd,
    family: u16,
    sequence: u32,
}

impl Control {
    /// # Errors
    /// `NoClient` if it is not there.
    pub(super) fn open() -> Result<Self, KernelNbdError> {
        let refused = |call| move |errno| KernelNbdError::Refused { call, errno };
        let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
        let socket = rustix::net::socket_with(family, SocketType::RAW, flags, Some(GENERIC))
            .map_err(refused("socket"))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))
            .map_err(refused("setsockopt"))?;
        let mut control = Self { socket, family: 0, sequence: 1 };
        let found = control.call("find the NBD client", &netlink::find_family(1));
        match found {
            Ok(Some(family)) => control.family = family,
            Ok(None) | Err(KernelNbdError::Refused { errno: Errno::NOENT, .. }) => {
                return Err(KernelNbdError::NoClient);
            }
            Err(error) => return Err(error),
        }
        Ok(control)
    }

    /// Makes a device.
    pub(super) fn connect(
        &mut self,
        device: &Device<'_>,
        terms: &Terms,
    ) -> Result<(), KernelNbdError> {
        let sequence = self.next();
        let message = netlink::connect(self.family, sequence, device, terms);
        self.call("connect", &message).map(drop)
    }

    /// Changes one.
    pub(super) fn reconfigure(&mut self, device: &Device<'_>) -> Result<(), KernelNbdError> {
        let sequence = self.next();
        self.call("reconfigure", &netlink::reconfigure(self.family, sequence, device)).map(drop)
    }

    /// Takes one away.
    pub(super) fn disconnect(&mut self, number: u32) -> Result<(), KernelNbdError> {
        let sequence = self.next();
        self.call("disconnect", &netlink::disconnect(self.family, sequence, number)).map(drop)
    }

    fn next(&mut self) -> u32 {
        self.sequence += 1;
        self.sequence
    }

    /// Sends a request and waits for its end; what it was answered with may name a family.
    fn call(&self, call: &'static str, message: &[u8]) -> Result<Option<u16>, KernelNbdError> {
        let refused = |errno| KernelNbdError::Refused { call, errno };
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.socket, message, SendFlags::empty(), &kernel).map_err(refused)?;
        let (mut buffer, mut family) = (vec![0; MESSAGE_BYTES], None);
        loop {
            let received = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty());
            let (_, len) = match received {
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Err(refused(Errno::TIMEDOUT)),
                received => received.map_err(refused)?,
            };
            let mut rest = &buffer[..len.min(MESSAGE_BYTES)];
            while !rest.is_empty() {
                let (message, after) =
                    netlink::split(rest).map_err(|_| KernelNbdError::Answer { call })?;
                rest = after;
                match message {
                    Message::Answer(attributes) => family = attributes.family().or(family),
                    Message::Ended { sequence, .. } if sequence != self.sequence => {}
                    Message::Ended { errno: 0, .. } => return Ok(family),
                    Message::Ended { errno, .. } => {
                        return Err(refused(Errno::from_raw_os_error(errno)));
                    }
                }
            }
        }
    }
}
