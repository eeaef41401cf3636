//! The blocking face of a device: used to format, open, recover and check a pool.
//!
//! Callers' slices need no alignment, direct I/O does, so bytes go through an aligned buffer; a
//! slice that happens to be aligned is used as it is. Many reads at once keep a queue in flight
//! through a small ring of their own, because recovery of a large pool is a question of queue depth.
//! Where io_uring is not available the reads go one by one: slower, same result.
//!
//! Nothing here is for the data path: calls block, and the buffers are made on first use.

use std::os::fd::AsFd;

use flagstone_block::{
    BLOCK_SIZE, BlockIo, Buffer, Buffers, DeviceCommand, DeviceError, DeviceIo, IoToken, ReadAt,
};
use rustix::io::Errno;

use super::Device;
use crate::arena::{Arena, MAX_BUFFER_BLOCKS};
use crate::event::{DeviceId, Event};
use crate::ring::{PassthroughMode, Ring, RingConfig};
use crate::spin::SpinPolicy;

/// Reads in flight in [`BlockIo::read_many`].
const QUEUE_DEPTH: usize = 64;
/// Blocks per read in flight: long enough for streaming, short enough to share the queue.
const PIECE_BLOCKS: u32 = 32;
const PIECE_BYTES: usize = PIECE_BLOCKS as usize * BLOCK_SIZE;
/// Blocks per transfer of a single read or write.
const BOUNCE_BLOCKS: u32 = 256;
const _: () = assert!(BOUNCE_BLOCKS <= MAX_BUFFER_BLOCKS);

/// A [`Device`] as a [`BlockIo`].
pub struct SyncDevice {
    device: Device,
    bounce: Option<(Arena, Buffer)>,
    queue: Queue,
}

/// The ring for many reads.
enum Queue {
    Unused,
    Ready(Box<Ring>, DeviceId),
    /// No ring can be had; not tried again.
    Refused,
}

impl SyncDevice {
    /// Wraps an open device. Buffers and queue are made when first needed.
    #[must_use]
    pub fn new(device: Device) -> Self {
        Self { device, bounce: None, queue: Queue::Unused }
    }

    /// The device, to be driven otherwise. Its lock is kept.
    #[must_use]
    pub fn into_device(self) -> Device {
        self.device
    }

    /// The device, to look at or to add to a ring.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    fn check(&self, offset: u64, len: usize) -> Result<(), DeviceError> {
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= self.device.size());
        if inside && offset.is_multiple_of(BLOCK_SIZE as u64) && len.is_multiple_of(BLOCK_SIZE) {
            Ok(())
        } else {
            Err(DeviceError::OutOfRange { offset })
        }
    }

    /// Whether the slice can be given to the kernel as it is.
    fn usable(&self, bytes: &[u8]) -> bool {
        !self.device.is_direct() || bytes.as_ptr().addr().is_multiple_of(BLOCK_SIZE)
    }
}

/// The aligned buffer for transfers of unaligned slices.
fn bounce(slot: &mut Option<(Arena, Buffer)>) -> Result<(&mut Arena, Buffer), DeviceError> {
    if slot.is_none() {
        let refused = DeviceError::Os { errno: libc::ENOMEM };
        let mut arena = Arena::new(BOUNCE_BLOCKS).map_err(|_| refused)?;
        let buffer = arena.alloc(BOUNCE_BLOCKS).ok_or(refused)?;
        *slot = Some((arena, buffer));
    }
    match slot {
        Some((arena, buffer)) => Ok((arena, *buffer)),
        None => unreachable!("made just now"),
    }
}

/// Reads until `into` is full.
fn read_fully(device: &Device, mut offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
    let wanted = into.len();
    let mut done = 0;
    while done < wanted {
        match rustix::io::pread(device.as_fd(), &mut into[done..], offset) {
            Ok(0) => return Err(short(done, wanted)),
            Ok(count) => {
                done += count;
                offset += count as u64;
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(os(errno)),
        }
    }
    Ok(())
}

/// Writes until `from` is used up.
fn write_fully(device: &Device, mut offset: u64, from: &[u8]) -> Result<(), DeviceError> {
    let wanted = from.len();
    let mut done = 0;
    while done < wanted {
        match rustix::io::pwrite(device.as_fd(), &from[done..], offset) {
            Ok(0) => return Err(short(done, wanted)),
            Ok(count) => {
                done += count;
                offset += count as u64;
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(os(errno)),
        }
    }
    Ok(())
}

fn short(done: usize, wanted: usize) -> DeviceError {
    DeviceError::Short { done: done as u32, wanted: wanted as u32 }
}

fn os(errno: Errno) -> DeviceError {
    DeviceError::Os { errno: errno.raw_os_error() }
}

impl BlockIo for SyncDevice {
    fn size(&self) -> u64 {
        self.device.size()
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        self.check(offset, into.len())?;
        if self.usable(into) {
            return read_fully(&self.device, offset, into);
        }
        let (arena, buffer) = bounce(&mut self.bounce)?;
        let mut at = offset;
        for piece in into.chunks_mut(buffer.len()) {
            let part = buffer.part(0, (piece.len() / BLOCK_SIZE) as u32);
            read_fully(&self.device, at, arena.bytes_mut(part))?;
            piece.copy_from_slice(arena.bytes(part));
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.check(offset, from.len())?;
        if self.usable(from) {
            return write_fully(&self.device, offset, from);
        }
        let (arena, buffer) = bounce(&mut self.bounce)?;
        let mut at = offset;
        for piece in from.chunks(buffer.len()) {
            let part = buffer.part(0, (piece.len() / BLOCK_SIZE) as u32);
            arena.bytes_mut(part).copy_from_slice(piece);
            write_fully(&self.device, at, arena.bytes(part))?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// `fdatasync(2)`. Not repeated on failure: the kernel reports a lost write once, so a second
    /// call could claim what is not so.
    fn flush(&mut self) -> Result<(), DeviceError> {
        rustix::fs::fdatasync(self.device.as_fd()).map_err(os)
    }

    fn read_many(&mut self, reads: &mut [ReadAt<'_>], results: &mut Vec<Result<(), DeviceError>>) {
        results.clear();
        if let Queue::Unused = self.queue {
            self.queue = make_queue(&self.device);
        }
        let Queue::Ready(ring, device) = &mut self.queue else {
            for read in reads {
                let result = self.read_at(read.offset, read.into);
                results.push(result);
            }
            return;
        };
        if !read_queued(ring, *device, reads, results) {
            // The ring failed in the middle: whatever it did is done again, one by one.
            self.queue = Queue::Refused;
            self.read_many(reads, results);
        }
    }
}

fn make_queue(device: &Device) -> Queue {
    let config = RingConfig {
        entries: QUEUE_DEPTH as u32,
        arena_blocks: QUEUE_DEPTH as u32 * PIECE_BLOCKS,
        spin: SpinPolicy::Never,
        max_sockets: 1,
        passthrough: PassthroughMode::Off,
    };
    let Ok(mut ring) = Ring::new(config) else { return Queue::Refused };
    match ring.add_device(device) {
        Ok(id) => Queue::Ready(Box::new(ring), id),
        Err(_) => Queue::Refused,
    }
}

/// A piece of a read that is in flight.
#[derive(Clone, Copy)]
struct Piece {
    read: usize,
    from: usize,
    buffer: Buffer,
}

/// Reads everything through the ring; false if the ring itself failed.
fn read_queued(
    ring: &mut Ring,
    device: DeviceId,
    reads: &mut [ReadAt<'_>],
    results: &mut Vec<Result<(), DeviceError>>,
) -> bool {
    results.resize(reads.len(), Ok(()));
    let mut pieces: [Option<Piece>; QUEUE_DEPTH] = [None; QUEUE_DEPTH];
    let mut in_flight = 0;
    // The next piece to start.
    let (mut read, mut from) = (0, 0);
    loop {
        while read < reads.len() && in_flight < QUEUE_DEPTH {
            let len = reads[read].into.len();
            if from == 0 && !len.is_multiple_of(BLOCK_SIZE) {
                results[read] = Err(DeviceError::OutOfRange { offset: reads[read].offset });
            }
            if from >= len || results[read].is_err() {
                (read, from) = (read + 1, 0);
                continue;
            }
            let blocks = ((len - from).min(PIECE_BYTES) / BLOCK_SIZE) as u32;
            let Some(buffer) = ring.buffers().alloc(blocks) else { break };
            let free = pieces.iter().position(Option::is_none).expect("fewer than 64 in flight");
            pieces[free] = Some(Piece { read, from, buffer });
            in_flight += 1;
            let offset = reads[read].offset.saturating_add(from as u64);
            let command = DeviceCommand::Read { offset, buffer };
            ring.submit_device(
                device,
                DeviceIo { device: 0, token: IoToken(free as u64), command },
            );
            from += buffer.len();
        }
        if in_flight == 0 {
            return true;
        }
        if ring.submit_and_wait(None).is_err() {
            return false;
        }
        while let Some(event) = ring.next_event() {
            let Event::Device { token, result, .. } = event else { continue };
            let Some(piece) = pieces[token.0 as usize].take() else { continue };
            in_flight -= 1;
            match result {
                Ok(()) => {
                    let end = piece.from + piece.buffer.len();
                    let into = &mut reads[piece.read].into[piece.from..end];
                    into.copy_from_slice(ring.buffers_ref().bytes(piece.buffer));
                }
                Err(error) => results[piece.read] = Err(error),
            }
            ring.buffers().free(piece.buffer);
        }
    }
}
