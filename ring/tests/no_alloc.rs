//! The data path allocates nothing once it is warm: device reads, writes and flushes, receives,
//! sends, timers and mail, counted by the allocator itself. One test, so that nothing else counts.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};

use common::*;
use flagstone_block::{Buffer, Buffers, DeviceCommand, DeviceIo, IoToken};
use flagstone_ring::{DeviceId, Event, MailSender, Mailbox, Ring, SendPart, SocketId};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the one that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above; the block came from there.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above; the block came from there.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Bench {
    ring: Ring,
    device: DeviceId,
    left: SocketId,
    right: SocketId,
    sender: MailSender<u64>,
    inbox: Mailbox<u64>,
    buffers: Vec<Buffer>,
}

impl Bench {
    /// One round of everything. Returns the number of events.
    fn round(&mut self, round: u64) -> u32 {
        let ring = &mut self.ring;
        self.buffers.clear();
        for index in 0..48 {
            let blocks = 1 + ((round + index) % 20) as u32;
            let buffer = ring.buffers().alloc(blocks).expect("the arena is large enough");
            let offset = index * 32 * 4096;
            let command = match (round + index) % 3 {
                0 => read(offset, buffer),
                1 => write(offset, buffer),
                _ => DeviceCommand::Flush,
            };
            ring.submit_device(self.device, DeviceIo { device: 0, token: IoToken(index), command });
            self.buffers.push(buffer);
        }
        let inbox = ring.buffers().alloc(8).expect("the arena is large enough");
        let outbox = ring.buffers().alloc(2).expect("the arena is large enough");
        ring.recv(self.right, inbox, 0, 8 * 4096).expect("nothing is under way");
        let parts = [SendPart { buffer: outbox, from: 0, len: 100 }; 30];
        ring.send(self.left, &parts).expect("nothing is under way");
        self.buffers.extend([inbox, outbox]);
        let now = ring.now_ns();
        ring.set_timer(now, round);
        let cancelled = ring.set_timer(now + 1_000_000_000, round);
        assert!(ring.cancel_timer(cancelled));
        self.sender.send(round).expect("room for a mail");
        let (mut left, mut received) = (48 + 3, 0);
        while left > 0 || received < 3000 {
            match event(ring) {
                Event::Device { result: Ok(()), .. }
                | Event::Sent { result: Ok(()), .. }
                | Event::Timer { .. } => left -= 1,
                Event::Woken => {
                    assert_eq!(self.inbox.take(), Some(round));
                    left -= 1;
                }
                Event::Received { result: Ok(count), .. } => {
                    received += count;
                    if received < 3000 {
                        ring.recv(self.right, inbox, 0, 8 * 4096).expect("nothing is under way");
                    }
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        for &buffer in &self.buffers {
            ring.buffers().free(buffer);
        }
        48 + 4
    }
}

#[test]
fn a_warm_data_path_allocates_nothing() {
    let directory = disk_directory();
    let device = file(&directory.path().join("pool"), 8 << 20);
    let mut ring = ring(4096);
    let id = ring.add_device(&device).expect("room for a device");
    let (left, right) = UnixStream::pair().expect("a socket pair");
    let left = ring.add_socket(left.into()).expect("room for a socket");
    let right = ring.add_socket(right.into()).expect("room for a socket");
    let (sender, inbox) = ring.mailbox(8);
    let buffers = Vec::with_capacity(64);
    let mut bench = Bench { ring, device: id, left, right, sender, inbox, buffers };
    for round in 0..20 {
        bench.round(round);
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let mut events = 0;
    for round in 20..220 {
        events += bench.round(round);
    }
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert!(events > 10_000);
    assert_eq!(allocations, 0, "in {events} events");
}
