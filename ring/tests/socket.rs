//! Sockets through the ring: echo with short sends, orderly ends, stale names, listeners.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use common::*;
use flagstone_block::{Buffer, Buffers};
use flagstone_ring::{
    AddError, Event, ListenError, Ring, SEND_PARTS_MAX, SendPart, SocketError, SocketId,
    listen_tcp, listen_unix,
};

fn pair(ring: &mut Ring) -> (SocketId, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    (ring.add_socket(OwnedFd::from(ours)).expect("room for a socket"), theirs)
}

fn part(buffer: Buffer, from: usize, len: usize) -> SendPart {
    SendPart { buffer, from, len }
}

#[test]
fn a_long_message_survives_a_small_send_buffer_and_a_slow_reader() {
    let mut ring = ring(1024);
    let (socket, mut peer) = pair(&mut ring);
    let fd = ring.socket_fd(socket).expect("open");
    rustix::net::sockopt::set_socket_send_buffer_size(fd, 4096).expect("a size");
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        let mut bite = [0; 777];
        loop {
            match peer.read(&mut bite).expect("a stream") {
                0 => return all,
                count => all.extend_from_slice(&bite[..count]),
            }
        }
    });
    let mut expected = Vec::new();
    for round in 0..4_u64 {
        let mut parts = Vec::new();
        for index in 0..SEND_PARTS_MAX {
            let buffer = ring.buffers().alloc(3).expect("room for 3 blocks");
            pattern(ring.buffers().bytes_mut(buffer), round * 1000 + index as u64);
            let (from, len) = (index * 7, 5000 + index * 13);
            expected.extend_from_slice(&ring.buffers_ref().bytes(buffer)[from..from + len]);
            parts.push(part(buffer, from, len));
        }
        ring.send(socket, &parts).expect("nothing is under way");
        assert_eq!(ring.send(socket, &parts), Err(SocketError::Busy));
        assert_eq!(event(&mut ring), Event::Sent { socket, result: Ok(()) });
        for part in parts {
            ring.buffers().free(part.buffer);
        }
    }
    ring.shutdown_socket(socket);
    assert_eq!(event(&mut ring), Event::Closed { socket });
    assert_eq!(reader.join().expect("the reader ends"), expected);
    assert_eq!(ring.buffers_ref().free_blocks(), 1024);
}

#[test]
fn bytes_arrive_where_they_were_asked_for() {
    let mut ring = ring(64);
    let (socket, mut peer) = pair(&mut ring);
    let buffer = ring.buffers().alloc(2).expect("room for 2 blocks");
    ring.buffers().bytes_mut(buffer).fill(0xee);
    ring.recv(socket, buffer, 4000, 200).expect("nothing is under way");
    assert_eq!(ring.recv(socket, buffer, 0, 1), Err(SocketError::Busy));
    peer.write_all(&[1; 150]).expect("room in the socket");
    assert_eq!(event(&mut ring), Event::Received { socket, result: Ok(150) });
    let bytes = ring.buffers_ref().bytes(buffer);
    assert!(bytes[..4000].iter().all(|&byte| byte == 0xee));
    assert!(bytes[4000..4150].iter().all(|&byte| byte == 1));
    assert!(bytes[4150..].iter().all(|&byte| byte == 0xee));
    drop(peer);
    ring.recv(socket, buffer, 0, 1).expect("nothing is under way");
    assert_eq!(event(&mut ring), Event::Received { socket, result: Ok(0) });
    assert_quiet(&mut ring, 1_000_000);
    assert_eq!(ring.open_sockets(), 1, "a socket stays until it is shut down");
    ring.shutdown_socket(socket);
    assert_eq!(event(&mut ring), Event::Closed { socket });
}

#[test]
fn empty_parts_are_skipped_and_an_empty_send_ends_at_once() {
    let mut ring = ring(64);
    let (socket, mut peer) = pair(&mut ring);
    let buffer = ring.buffers().alloc(1).expect("room for a block");
    ring.buffers().bytes_mut(buffer)[..6].copy_from_slice(b"abcdef");
    ring.send(socket, &[]).expect("nothing is under way");
    assert_eq!(event(&mut ring), Event::Sent { socket, result: Ok(()) });
    let parts = [part(buffer, 3, 0), part(buffer, 4, 2), part(buffer, 0, 0), part(buffer, 0, 1)];
    ring.send(socket, &parts).expect("nothing is under way");
    assert_eq!(event(&mut ring), Event::Sent { socket, result: Ok(()) });
    let mut got = [0; 3];
    peer.read_exact(&mut got).expect("three bytes");
    assert_eq!(&got, b"efa");
}

#[test]
fn shutting_down_ends_both_directions_then_closes() {
    let mut ring = ring(256);
    let (socket, peer) = pair(&mut ring);
    let inbox = ring.buffers().alloc(1).expect("room for a block");
    let outbox = ring.buffers().alloc(128).expect("room for 128 blocks");
    ring.recv(socket, inbox, 0, 4096).expect("nothing is under way");
    // Longer than the socket holds, and nobody reads.
    let parts: Vec<SendPart> = (0..16).map(|_| part(outbox, 0, outbox.len())).collect();
    ring.send(socket, &parts).expect("nothing is under way");
    assert_quiet(&mut ring, 5_000_000);
    ring.shutdown_socket(socket);
    ring.shutdown_socket(socket);
    assert_eq!(ring.recv(socket, inbox, 0, 1), Err(SocketError::Gone));
    assert_eq!(ring.send(socket, &[part(inbox, 0, 1)]), Err(SocketError::Gone));
    let (mut received, mut sent) = (false, false);
    loop {
        match event(&mut ring) {
            Event::Received { socket: id, result } if id == socket => {
                assert!(matches!(result, Ok(0) | Err(_)));
                assert!(!std::mem::replace(&mut received, true));
            }
            Event::Sent { socket: id, result: Err(_) } if id == socket => {
                assert!(!std::mem::replace(&mut sent, true));
            }
            Event::Closed { socket: id } if id == socket => break,
            other => panic!("unexpected {other:?}"),
        }
    }
    assert!(received && sent, "both operations end before the socket closes");
    ring.buffers().free(inbox);
    ring.buffers().free(outbox);
    drop(peer);
    assert_quiet(&mut ring, 1_000_000);
}

#[test]
fn a_peer_that_vanishes_is_an_event_not_a_signal() {
    let mut ring = ring(256);
    let (socket, peer) = pair(&mut ring);
    drop(peer);
    let buffer = ring.buffers().alloc(1).expect("room for a block");
    ring.send(socket, &[part(buffer, 0, 4096)]).expect("nothing is under way");
    assert_eq!(event(&mut ring), Event::Sent { socket, result: Err(32 /* EPIPE */) });
    ring.shutdown_socket(socket);
    assert_eq!(event(&mut ring), Event::Closed { socket });
}

#[test]
fn stale_names_do_nothing() {
    let mut ring = ring(64);
    let (old, _old_peer) = pair(&mut ring);
    ring.shutdown_socket(old);
    assert_eq!(event(&mut ring), Event::Closed { socket: old });
    let (new, mut peer) = pair(&mut ring);
    assert_eq!(new.slot(), old.slot(), "the slot is used again");
    assert_ne!(new, old);
    let buffer = ring.buffers().alloc(1).expect("room for a block");
    assert_eq!(ring.recv(old, buffer, 0, 1), Err(SocketError::Gone));
    assert_eq!(ring.send(old, &[part(buffer, 0, 1)]), Err(SocketError::Gone));
    assert!(ring.socket_fd(old).is_none());
    ring.shutdown_socket(old);
    ring.recv(new, buffer, 0, 4).expect("the new socket lives");
    peer.write_all(b"live").expect("room in the socket");
    assert_eq!(event(&mut ring), Event::Received { socket: new, result: Ok(4) });
}

#[test]
fn a_full_table_refuses_and_recovers() {
    let mut ring = ring(64);
    let mut open: Vec<_> = (0..16).map(|_| pair(&mut ring)).collect();
    let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
    assert_eq!(ring.add_socket(ours.into()), Err(AddError::Full { limit: 16 }));
    assert_eq!(theirs.read(&mut [0]).expect("closed"), 0);
    let (socket, _peer) = open.pop().expect("16 are open");
    ring.shutdown_socket(socket);
    assert_eq!(event(&mut ring), Event::Closed { socket });
    pair(&mut ring);
    assert_eq!(ring.open_sockets(), 16);
}

fn accepted(ring: &mut Ring) -> SocketId {
    match event(ring) {
        Event::Accepted { socket, .. } => socket,
        other => panic!("unexpected {other:?}"),
    }
}

fn echo_once(ring: &mut Ring, socket: SocketId, peer: &mut (impl Read + Write)) {
    let buffer = ring.buffers().alloc(1).expect("room for a block");
    peer.write_all(b"ping").expect("room in the socket");
    ring.recv(socket, buffer, 0, 4096).expect("nothing is under way");
    assert_eq!(event(ring), Event::Received { socket, result: Ok(4) });
    ring.send(socket, &[part(buffer, 0, 4)]).expect("nothing is under way");
    assert_eq!(event(ring), Event::Sent { socket, result: Ok(()) });
    let mut got = [0; 4];
    peer.read_exact(&mut got).expect("four bytes");
    assert_eq!(&got, b"ping");
    ring.buffers().free(buffer);
}

#[test]
fn a_tcp_listener_accepts_until_it_is_removed() {
    let mut ring = ring(64);
    let fd = listen_tcp("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let address: SocketAddr =
        rustix::net::getsockname(&fd).expect("bound").try_into().expect("an internet address");
    assert!(matches!(listen_tcp(address), Err(ListenError::AddrInUse { .. })));
    let listener = ring.add_listener(fd).expect("room for a listener");
    for _ in 0..3 {
        let mut peer = TcpStream::connect(address).expect("someone listens");
        let socket = accepted(&mut ring);
        let fd = ring.socket_fd(socket).expect("open");
        assert!(rustix::net::sockopt::tcp_nodelay(fd).expect("an option"), "inherited");
        assert!(rustix::net::sockopt::socket_keepalive(fd).expect("an option"), "inherited");
        echo_once(&mut ring, socket, &mut peer);
    }
    ring.remove_listener(listener);
    ring.remove_listener(listener);
    assert_quiet(&mut ring, 5_000_000);
    assert!(TcpStream::connect(address).is_err());
    assert_eq!(ring.open_sockets(), 3, "accepted connections live on");
}

#[test]
fn a_unix_listener_replaces_a_dead_socket_and_respects_a_live_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("nbd.sock");
    drop(UnixListener::bind(&path).expect("a fresh path"));
    assert!(path.exists(), "the dead server's file is left");
    let mut ring = ring(64);
    let fd = listen_unix(&path).expect("nobody listens there");
    let mode = std::fs::metadata(&path).expect("it exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert!(matches!(listen_unix(&path), Err(ListenError::AddrInUse { .. })));
    let listener = ring.add_listener(fd).expect("room for a listener");
    // The probe above was a connection too; it is gone already.
    let probe = accepted(&mut ring);
    ring.shutdown_socket(probe);
    assert_eq!(event(&mut ring), Event::Closed { socket: probe });
    let mut peer = UnixStream::connect(&path).expect("the ring listens");
    let socket = accepted(&mut ring);
    echo_once(&mut ring, socket, &mut peer);
    ring.remove_listener(listener);

    let file = directory.path().join("notes.txt");
    std::fs::write(&file, b"precious").expect("a file");
    assert!(matches!(listen_unix(&file), Err(ListenError::NotASocket { .. })));
    assert_eq!(std::fs::read(&file).expect("untouched"), b"precious");
}

#[test]
fn connections_beyond_the_table_are_closed_and_counted() {
    let mut ring = ring(64);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("nbd.sock");
    ring.add_listener(listen_unix(&path).expect("a fresh path")).expect("room for a listener");
    let mut peers: Vec<UnixStream> =
        (0..17).map(|_| UnixStream::connect(&path).expect("in the backlog")).collect();
    for _ in 0..16 {
        accepted(&mut ring);
    }
    let mut last = peers.pop().expect("17 peers");
    while ring.counters().connections_refused == 0 {
        ring.submit_and_wait(None).expect("the ring works");
    }
    assert_eq!(last.read(&mut [0]).expect("closed"), 0);
}
