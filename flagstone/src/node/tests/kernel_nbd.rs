//! The kernel's NBD client, played by the test: it gets a socket past the handshake, and never an answer that is none.

use super::harness::{MIB, Running, Site, pattern, wait};
use super::waiting::{full, until_waiting};
use crate::node::{ControlError, UblkTarget, UblkVolume};
use flagstone_nbd::Style;
use flagstone_nbd::proto::{CMD_DISC, CMD_READ};
use flagstone_nbd::testing::encode;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const SIMPLE_REPLY_BYTES: usize = 16;

fn volume(running: &Running) -> UblkVolume {
    let target = UblkTarget::Named("vol".into());
    wait(running.node.ublk_volume(target)).expect("it is there")
}

fn attach(running: &Running, number: u32) -> UnixStream {
    let socket = wait(running.node.serve_kernel_nbd(&volume(running), number));
    let stream = UnixStream::from(socket.expect("it can be served"));
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("not zero");
    stream
}

fn send(stream: &mut UnixStream, kind: u16, cookie: u64, offset: u64, len: u64) {
    let mut bytes = Vec::new();
    encode::request(&mut bytes, Style::Simple, 0, kind, cookie, offset, len);
    stream.write_all(&bytes).expect("the node reads");
}

fn send_write(stream: &mut UnixStream, cookie: u64, offset: u64, data: &[u8]) {
    let mut bytes = Vec::new();
    encode::write(&mut bytes, Style::Simple, 0, cookie, offset, data);
    stream.write_all(&bytes).expect("the node reads");
}

/// The error, and the cookie of a simple reply.
fn reply(stream: &mut UnixStream) -> (u32, u64) {
    let mut bytes = [0; SIMPLE_REPLY_BYTES];
    stream.read_exact(&mut bytes).expect("a reply");
    let errno = u32::from_be_bytes(bytes[4..8].try_into().expect("four bytes"));
    (errno, u64::from_be_bytes(bytes[8..].try_into().expect("eight bytes")))
}

#[test]
fn it_is_a_connection_that_keeps_its_volume() {
    let site = Site::new();
    let running = site.start();
    running.volume("vol", 8 * MIB);
    assert_eq!(volume(&running).nbd, None);
    let mut kernel = attach(&running, 7);
    assert_eq!(volume(&running).nbd, Some(7));
    send_write(&mut kernel, 1, 4096, &pattern(1, 8192));
    assert_eq!(reply(&mut kernel), (0, 1));
    send(&mut kernel, CMD_READ, 2, 4096, 8192);
    assert_eq!(reply(&mut kernel), (0, 2));
    let mut data = vec![0; 8192];
    kernel.read_exact(&mut data).expect("what was written");
    assert!(data == pattern(1, 8192));
    // A read beyond the end, then beyond the new end.
    send(&mut kernel, CMD_READ, 3, 8 * MIB, 4096);
    assert_eq!(reply(&mut kernel), (22, 3));
    wait(running.node.resize_volume("vol".into(), 9 * MIB, crate::Shrink::Never))
        .expect("it grows");
    send(&mut kernel, CMD_READ, 4, 8 * MIB, 4096);
    assert_eq!(reply(&mut kernel), (0, 4));
    kernel.read_exact(&mut data[..4096]).expect("zeroes");

    // Not even by force: whoever has the device would get errors.
    let refused = wait(running.node.delete_volume("vol".into(), true));
    let attached = ControlError::Attached { driver: "nbd", number: 7 };
    assert_eq!(refused.map(|_| ()), Err(attached));
    send(&mut kernel, CMD_DISC, 0, 0, 0);
    assert_eq!(kernel.read(&mut [0]).expect("the end"), 0);
    running.until("gone", |stats| stats.connections_now == 0);
    assert_eq!(volume(&running).nbd, None);
    // As long as a device waits for a socket its volume stays what it is.
    let handle = volume(&running).handle;
    wait(running.node.await_kernel_nbd(vec![(7, handle)])).expect("the node runs");
    assert!(wait(running.node.delete_volume("vol".into(), true)).is_err());
    // Detached while it waits, it holds nothing back any more.
    assert_eq!(wait(running.node.leave_kernel_nbd(7)), Ok(true));
    // A socket that the kernel did not take.
    drop(attach(&running, 8));
    running.until("gone", |stats| stats.connections_now == 0);
    assert_eq!(volume(&running).nbd, None);
    wait(running.node.delete_volume("vol".into(), true)).expect("nobody has it");
}

/// Clients can't take what is kept for devices that wait.
#[test]
fn connections_are_kept_for_devices_that_wait() {
    let mut site = Site::new();
    site.config.max_connections = 4;
    let running = site.start();
    running.volume("vol", 8 * MIB);
    let handle = volume(&running).handle;
    wait(running.node.await_kernel_nbd(vec![(7, handle), (8, handle)])).expect("the node runs");
    let clients = [(); 4].map(|()| running.connect());
    let stats = running.until("told", |stats| stats.connections_refused == 2);
    assert_eq!(stats.connections_now, 2);
    let _kernel = attach(&running, 7);
    assert_eq!(volume(&running).nbd, Some(7));
    drop(clients);
}

#[test]
fn a_stop_answers_nothing_that_the_next_process_could_do() {
    let mut site = Site::with_pools(&[64 * MIB]);
    site.config.full_wait = Duration::from_secs(3600);
    let (running, wire, full) = full(&site);
    let mut kernel = attach(&running, 0);
    send_write(&mut kernel, 1, (full + 1) * MIB, &pattern(1, 1 << 20));
    until_waiting(&running, 1);
    drop(wire);
    running.node.shutdown();
    // Neither "no space" nor "shutting down".
    assert_eq!(kernel.read(&mut [0; 64]).unwrap_or(0), 0);
    drop(running);
}
