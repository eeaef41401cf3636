//! Commands of drivers, by the one driver that every machine has: sockets (`SOCKET_URING_OP_SIOCINQ`, Linux 6.7).

mod common;

use common::*;
use flagstone_ring::{Command, Event, Ring};
use std::io::Write;
use std::os::unix::net::UnixStream;

/// How many bytes wait to be read: `SOCKET_URING_OP_SIOCINQ` of `linux/io_uring.h`.
fn waiting() -> Command {
    // SAFETY: the socket's driver touches no memory for this command.
    unsafe { Command::new(0, [0; 16]) }
}

fn next_command(ring: &mut Ring) -> (u32, i32) {
    loop {
        ring.submit_and_wait(None).expect("the ring works");
        while let Some(event) = ring.next_event() {
            if let Event::Command { name, result, .. } = event {
                return (name, result);
            }
        }
    }
}

#[test]
fn a_command_brings_the_driver_s_answer_under_its_name() {
    let mut ring = ring(16);
    let (mut near, far) = UnixStream::pair().expect("sockets");
    near.write_all(b"seven b").expect("a small write");
    let file = ring.add_command_file(&far).expect("there is room");
    ring.submit_command(file, 7, waiting());
    let answer = next_command(&mut ring);
    // A kernel before 6.7 has the operation for no socket.
    assert!(answer == (7, 7) || answer == (7, -libc::EOPNOTSUPP), "{answer:?}");
    // One that the driver does not know is refused, by its own word.
    // SAFETY: no driver touches memory for a command that it does not know.
    ring.submit_command(file, 8, unsafe { Command::new(4711, [0; 16]) });
    assert_eq!(next_command(&mut ring), (8, -libc::EOPNOTSUPP));
    assert_eq!(ring.counters().strays, 0);
    ring.remove_command_file(file);
    // Its slot is another's now.
    let other = ring.add_command_file(&near).expect("there is room");
    assert_eq!(other.slot(), file.slot());
    assert_ne!(other, file);
    ring.remove_command_file(file);
    ring.submit_command(other, 9, waiting());
    assert_eq!(next_command(&mut ring).0, 9);
}

#[test]
#[should_panic(expected = "a command for a file that was removed")]
fn a_file_that_was_removed_takes_no_commands() {
    let mut ring = ring(16);
    let (_near, far) = UnixStream::pair().expect("sockets");
    let file = ring.add_command_file(&far).expect("there is room");
    ring.remove_command_file(file);
    ring.submit_command(file, 1, waiting());
}
