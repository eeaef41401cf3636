//! Sockets: one receive and one send at a time each, and an orderly end.
//!
//! Life of a slot: free -> open -> closing (shut down, operations still under way) -> free. The
//! generation rises when the descriptor is closed, so a name kept too long matches nothing.
//! Invariants:
//! 1. A slot's frame is changed only while no send of that slot is under way.
//! 2. [`Event::Closed`] comes after the socket's last [`Event::Received`] and [`Event::Sent`].
//! 3. The descriptor is closed only when no operation is under way on it, so its number can't be
//!    reused under one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use flagstone_block::Buffer;
use io_uring::{opcode, squeue};
use rustix::net::Shutdown;

use super::{DEVICES_MAX, Ring, Target, on_target};
use crate::arena::slots_of_bytes;
use crate::error::{AddError, SocketError};
use crate::event::{Event, SocketId};
use crate::frame::SendFrame;
use crate::ops::Op;

pub use crate::frame::{SEND_PARTS_MAX, SendPart};

#[derive(Default)]
pub(super) struct SocketSlot {
    generation: u32,
    pub(super) open: Option<Socket>,
    /// Kept from connection to connection; made for the first.
    frame: Option<Box<SendFrame>>,
}

impl SocketSlot {
    /// How to name the socket of an operation under way.
    fn target(&self) -> Target {
        self.open.as_ref().expect("a socket stays open while an operation is under way").target
    }
}

pub(super) struct Socket {
    pub(super) fd: OwnedFd,
    target: Target,
    /// Operation under way in each direction.
    receiving: Option<u32>,
    sending: Option<u32>,
    closing: bool,
}

impl Ring {
    /// Takes over a connected stream socket.
    ///
    /// # Errors
    /// `Full`: the socket was closed. `Os`: it can't be made blocking, which the kernel needs to
    /// wait on our behalf.
    pub fn add_socket(&mut self, fd: OwnedFd) -> Result<SocketId, AddError> {
        // On a non-blocking socket io_uring would report EAGAIN instead of waiting.
        rustix::io::ioctl_fionbio(&fd, false)
            .map_err(|errno| AddError::Os { call: "ioctl(FIONBIO)", errno })?;
        self.install_socket(fd).ok_or(AddError::Full { limit: self.sockets.len() as u32 })
    }

    pub(super) fn install_socket(&mut self, fd: OwnedFd) -> Option<SocketId> {
        let slot = self.free_sockets.pop()?;
        let target = self.register_file(DEVICES_MAX + slot, fd.as_fd());
        let entry = &mut self.sockets[slot as usize];
        entry.frame.get_or_insert_with(SendFrame::new);
        entry.open = Some(Socket { fd, target, receiving: None, sending: None, closing: false });
        Some(SocketId { slot, generation: entry.generation })
    }

    fn live_socket(&mut self, id: SocketId) -> Option<&mut Socket> {
        let slot = self.sockets.get_mut(id.slot as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        slot.open.as_mut().filter(|socket| !socket.closing)
    }

    /// Sockets open or being closed.
    #[must_use]
    pub fn open_sockets(&self) -> u32 {
        (self.sockets.len() - self.free_sockets.len()) as u32
    }

    /// The descriptor of a socket, for socket options and credentials.
    #[must_use]
    pub fn socket_fd(&self, id: SocketId) -> Option<BorrowedFd<'_>> {
        let slot = self.sockets.get(id.slot as usize)?;
        slot.open.as_ref().filter(|_| slot.generation == id.generation).map(|open| open.fd.as_fd())
    }

    /// Starts to receive 1 to `len` bytes into `buffer` from its byte `from`. One
    /// [`Event::Received`] follows; until then the slots that the bytes touch belong to the kernel.
    ///
    /// # Errors
    /// Nothing was started: the socket is gone, or a receive is under way.
    ///
    /// # Panics
    /// If the bytes don't lie in `buffer`, are none, or are already under way.
    pub fn recv(
        &mut self,
        id: SocketId,
        buffer: Buffer,
        from: usize,
        len: usize,
    ) -> Result<(), SocketError> {
        let socket = self.live_socket(id).ok_or(SocketError::Gone)?;
        if socket.receiving.is_some() {
            return Err(SocketError::Busy);
        }
        self.arena.begin_write(slots_of_bytes(buffer, from, len));
        let index =
            self.begin(Op::Receive { socket: id.slot, buffer, from: from as u32, len: len as u32 });
        if let Some(socket) = self.live_socket(id) {
            socket.receiving = Some(index);
        }
        Ok(())
    }

    /// Starts to send `parts` in order, all of them. One [`Event::Sent`] follows; until then
    /// their slots must not change. Parts of no bytes are skipped.
    ///
    /// # Errors
    /// Nothing was started: the socket is gone, or a send is under way.
    ///
    /// # Panics
    /// If there are more than [`SEND_PARTS_MAX`] parts, one does not lie in its buffer, or the
    /// kernel is writing one.
    pub fn send(&mut self, id: SocketId, parts: &[SendPart]) -> Result<(), SocketError> {
        if self.fill_frame(id, parts)? {
            self.begin_send(id);
        } else {
            self.events.push_back(Event::Sent { socket: id, result: Ok(()) });
        }
        Ok(())
    }

    /// As [`Ring::send`], but gives the socket at once what it takes without waiting. Returns
    /// whether that was everything; then no event follows.
    ///
    /// A send through the ring nearly always ends as it is submitted, and its completion then
    /// ends the wait of that round: one more `io_uring_enter` and one more round per reply.
    ///
    /// # Errors
    /// As [`Ring::send`]. What is wrong with the connection comes as an event.
    ///
    /// # Panics
    /// As [`Ring::send`].
    pub fn send_now(&mut self, id: SocketId, parts: &[SendPart]) -> Result<bool, SocketError> {
        if !self.fill_frame(id, parts)? {
            return Ok(true);
        }
        let slot = &mut self.sockets[id.slot as usize];
        if let (Some(open), Some(frame)) = (&slot.open, &mut slot.frame) {
            // An error is left to the ring's own attempt, which reports it.
            let sent = frame.send_without_waiting(open.fd.as_fd()).unwrap_or(0);
            frame.advance(sent);
            if frame.is_sent() {
                for slots in frame.slots() {
                    self.arena.end_read(slots);
                }
                self.counters.immediate_sends += 1;
                return Ok(true);
            }
        }
        self.begin_send(id);
        Ok(false)
    }

    fn begin_send(&mut self, id: SocketId) {
        let index = self.begin(Op::Send { socket: id.slot });
        if let Some(socket) = self.live_socket(id) {
            socket.sending = Some(index);
        }
    }

    /// Prepares a send; false if there is nothing to send.
    fn fill_frame(&mut self, id: SocketId, parts: &[SendPart]) -> Result<bool, SocketError> {
        assert!(parts.len() <= SEND_PARTS_MAX, "too many parts in one send");
        let socket = self.live_socket(id).ok_or(SocketError::Gone)?;
        if socket.sending.is_some() {
            return Err(SocketError::Busy);
        }
        let frame = self.sockets[id.slot as usize].frame.get_or_insert_with(SendFrame::new);
        frame.clear();
        for part in parts.iter().filter(|part| part.len > 0) {
            let slots = slots_of_bytes(part.buffer, part.from, part.len);
            self.arena.begin_read(slots.clone());
            frame.add(self.arena.address(part.buffer.slot, part.from), part.len, slots);
        }
        if frame.is_sent() {
            return Ok(false);
        }
        frame.seal();
        Ok(true)
    }

    /// Ends a socket: both directions are shut down, operations under way end (their events still
    /// come), then [`Event::Closed`] follows. Bytes whose [`Event::Sent`] came are still
    /// delivered. Does nothing if the name is stale or the socket is already ending.
    pub fn shutdown_socket(&mut self, id: SocketId) {
        let Some(socket) = self.live_socket(id) else { return };
        socket.closing = true;
        // Fails only if the peer has already ended the connection, which is the same.
        let _ = rustix::net::shutdown(&socket.fd, Shutdown::Both);
        let under_way = [socket.receiving, socket.sending];
        for index in under_way.into_iter().flatten() {
            self.cancel(index);
        }
        self.close_if_idle(id.slot);
    }

    fn close_if_idle(&mut self, index: u32) {
        let slot = &mut self.sockets[index as usize];
        let idle = slot.open.take_if(|socket| {
            socket.closing && socket.receiving.is_none() && socket.sending.is_none()
        });
        let Some(socket) = idle else { return };
        let id = SocketId { slot: index, generation: slot.generation };
        slot.generation = slot.generation.wrapping_add(1);
        if let Target::Fixed(file) = socket.target {
            // Clearing an entry of our own table can't be refused; if it were, the next socket in
            // this slot replaces it.
            let _ = self.uring.submitter().register_files_update(file, &[-1]);
        }
        drop(socket);
        self.free_sockets.push(index);
        self.events.push_back(Event::Closed { socket: id });
    }

    pub(super) fn receive_submission(
        &self,
        socket: u32,
        buffer: Buffer,
        from: u32,
        len: u32,
    ) -> squeue::Entry {
        let target = self.sockets[socket as usize].target();
        let address = self.arena.address(buffer.slot, from as usize);
        on_target!(target, fd => opcode::Recv::new(fd, address, len).build())
    }

    pub(super) fn send_submission(&self, socket: u32) -> squeue::Entry {
        let slot = &self.sockets[socket as usize];
        let frame = slot.frame.as_ref().expect("an open socket has a frame");
        // One part needs no message header: cheaper for the kernel to take in.
        on_target!(slot.target(), fd => match frame.only_part() {
            Some((address, len)) => {
                opcode::Send::new(fd, address, len as u32).flags(self.send_flags).build()
            }
            None => opcode::SendMsg::new(fd, frame.header()).flags(self.send_flags as u32).build(),
        })
    }

    pub(super) fn complete_receive(
        &mut self,
        index: u32,
        socket: u32,
        buffer: Buffer,
        from: u32,
        len: u32,
        result: i32,
    ) {
        if is_passing(result) {
            self.counters.retries += 1;
            if self.again(index) {
                return;
            }
        }
        self.ops.release(index);
        self.arena.end_write(slots_of_bytes(buffer, from as usize, len as usize));
        let slot = &mut self.sockets[socket as usize];
        if let Some(open) = &mut slot.open {
            open.receiving = None;
        }
        let id = SocketId { slot: socket, generation: slot.generation };
        let result = if result >= 0 { Ok(result as usize) } else { Err(-result) };
        self.events.push_back(Event::Received { socket: id, result });
        self.close_if_idle(socket);
    }

    pub(super) fn complete_send(&mut self, index: u32, socket: u32, result: i32) {
        let slot = &mut self.sockets[socket as usize];
        let id = SocketId { slot: socket, generation: slot.generation };
        let frame = slot.frame.as_mut().expect("an open socket has a frame");
        let mut outcome = if result >= 0 { Ok(()) } else { Err(-result) };
        let mut unfinished = is_passing(result);
        if unfinished {
            self.counters.retries += 1;
        } else if result > 0 {
            frame.advance(result as usize);
            unfinished = !frame.is_sent();
            self.counters.short_sends += u64::from(unfinished);
        } else if result == 0 {
            // A stream takes at least one byte or gives an error; never loop on this.
            outcome = Err(libc::EPIPE);
        }
        if unfinished {
            if !self.draining {
                self.queue.push_back(index);
                return;
            }
            outcome = Err(libc::ECANCELED);
        }
        for slots in frame.slots() {
            self.arena.end_read(slots);
        }
        if let Some(open) = &mut slot.open {
            open.sending = None;
        }
        self.ops.release(index);
        self.events.push_back(Event::Sent { socket: id, result: outcome });
        self.close_if_idle(socket);
    }
}

fn is_passing(result: i32) -> bool {
    result == -libc::EINTR || result == -libc::EAGAIN
}
