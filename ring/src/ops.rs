//! The operation table: what each `user_data` of the ring means.
//!
//! The contract is written down in docs/user-data.md. Invariants:
//! 1. An entry is taken before its submission is queued and released only when its last
//!    completion has been seen; a failing `io_uring_enter` releases nothing.
//! 2. `user_data` is `generation << 32 | index`. Releasing an entry raises its generation, so a
//!    completion that comes twice or too late matches nothing and changes nothing.
//! 3. An entry describes its operation completely: the submission can be built from it again,
//!    which is how short transfers, interrupted calls and a full submission queue are handled.
//!
//! Memory that the kernel may touch is not in the entries: buffers are in the arena, message
//! headers in the socket's slot, and both are held until the entry is released.
//! Allocates only when more operations are under way than ever before.

use flagstone_block::{Buffer, IoToken};

use crate::ring::Command;

const NONE: u32 = u32::MAX;

/// What a device command transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    Read,
    Write,
    Flush,
    /// Of so many bytes; there is no buffer.
    Discard(u64),
    /// A discard of what a list of so many bytes says, which is in the buffer. The buffer is the ring's own.
    List(u32),
}

/// A device command under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceOp {
    /// Index in the ring's device table.
    pub device: u32,
    pub token: IoToken,
    pub transfer: Transfer,
    /// Byte offset on the device; unused by a flush.
    pub offset: u64,
    /// Unused by a flush or discard.
    pub buffer: Buffer,
    /// Bytes transferred by earlier submissions of this command.
    pub done: u32,
    /// Submissions that ended in `EINTR` or `EAGAIN` since the last progress.
    pub retries: u8,
    pub route: Route,
}

impl DeviceOp {
    /// What is left of a transfer, but at most `most` bytes.
    pub(crate) fn piece(&self, most: u32) -> u32 {
        (self.buffer.len() as u32 - self.done).min(most)
    }
}

/// Which way a device command takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Through the file.
    File,
    /// As a command of the device's own.
    Own,
    /// The same, on the ring that polls.
    Polled,
}

/// One operation that the kernel has, or is about to be given.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Device(DeviceOp),
    /// Receive into bytes `from..from + len` of `buffer`.
    Receive {
        socket: u32,
        buffer: Buffer,
        from: u32,
        len: u32,
    },
    /// Send what the socket's frame describes.
    Send {
        socket: u32,
    },
    /// Accept connections, for as long as the kernel says that more will come.
    Accept {
        listener: u32,
    },
    /// A driver's command.
    Command {
        file: u32,
        name: u32,
        command: Command,
    },
    /// Watch the eventfd that other threads ring.
    Wake,
    /// Ask that the operation with this `user_data` end early; its own completion still comes.
    Cancel {
        target: u64,
    },
}

struct Entry {
    generation: u32,
    next_free: u32,
    op: Option<Op>,
}

/// All operations under way.
pub(crate) struct OpTable {
    entries: Vec<Entry>,
    free: u32,
    busy: u32,
}

impl OpTable {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let mut table = Self { entries: Vec::with_capacity(capacity), free: NONE, busy: 0 };
        for _ in 0..capacity {
            table.add_entry();
        }
        table
    }

    /// Operations that have not ended.
    pub(crate) fn busy(&self) -> u32 {
        self.busy
    }

    fn add_entry(&mut self) {
        let index = self.entries.len() as u32;
        assert!(index < NONE, "more operations than a user_data can name");
        self.entries.push(Entry { generation: 0, next_free: self.free, op: None });
        self.free = index;
    }

    /// Takes an entry. Its index names the operation until [`OpTable::release`].
    pub(crate) fn take(&mut self, op: Op) -> u32 {
        if self.free == NONE {
            self.add_entry();
        }
        let index = self.free;
        let entry = &mut self.entries[index as usize];
        self.free = entry.next_free;
        entry.op = Some(op);
        self.busy += 1;
        index
    }

    /// The `user_data` to submit for `index`.
    pub(crate) fn user_data(&self, index: u32) -> u64 {
        u64::from(self.entries[index as usize].generation) << 32 | u64::from(index)
    }

    /// The operation that a completion's `user_data` names, or `None` if it ended before.
    pub(crate) fn lookup(&self, user_data: u64) -> Option<(u32, Op)> {
        let index = user_data as u32;
        let entry = self.entries.get(index as usize)?;
        if entry.generation != (user_data >> 32) as u32 {
            return None;
        }
        entry.op.map(|op| (index, op))
    }

    /// The operation at `index`.
    ///
    /// # Panics
    /// If the entry was released: the caller kept an index for too long.
    pub(crate) fn get(&self, index: u32) -> Op {
        self.entries[index as usize].op.expect("an operation is released once, at its end")
    }

    /// Replaces the description of an operation that will be submitted again.
    pub(crate) fn update(&mut self, index: u32, op: Op) {
        let entry = &mut self.entries[index as usize];
        debug_assert!(entry.op.is_some());
        entry.op = Some(op);
    }

    /// The operation has ended: its last completion was seen.
    pub(crate) fn release(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        debug_assert!(entry.op.is_some());
        entry.op = None;
        entry.generation = entry.generation.wrapping_add(1);
        entry.next_free = self.free;
        self.free = index;
        self.busy -= 1;
    }

    /// Indices and operations under way.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, Op)> + '_ {
        self.entries
            .iter()
            .enumerate()
            .filter_map(|(index, entry)| entry.op.map(|op| (index as u32, op)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_name_matches_nothing_even_when_its_entry_is_reused() {
        let mut table = OpTable::with_capacity(1);
        let first = table.take(Op::Wake);
        let name = table.user_data(first);
        assert!(table.lookup(name).is_some());
        table.release(first);
        assert!(table.lookup(name).is_none());
        let second = table.take(Op::Send { socket: 3 });
        assert_eq!(second, first);
        assert!(table.lookup(name).is_none());
        assert!(matches!(table.lookup(table.user_data(second)), Some((_, Op::Send { socket: 3 }))));
        assert_eq!(table.busy(), 1);
    }

    #[test]
    fn names_that_were_never_given_match_nothing() {
        let table = OpTable::with_capacity(4);
        for name in [0, 3, 4, u64::MAX, 1 << 32, u64::from(u32::MAX)] {
            assert!(table.lookup(name).is_none());
        }
    }

    #[test]
    fn the_generation_wraps_without_losing_the_entry() {
        let mut table = OpTable::with_capacity(1);
        table.entries[0].generation = u32::MAX;
        let index = table.take(Op::Wake);
        let name = table.user_data(index);
        assert_eq!(name, u64::from(u32::MAX) << 32);
        table.release(index);
        assert!(table.lookup(name).is_none());
        let again = table.take(Op::Wake);
        assert_eq!(table.user_data(again), 0);
    }

    #[test]
    fn it_grows_when_more_is_under_way_than_expected() {
        let mut table = OpTable::with_capacity(2);
        let taken: Vec<u32> = (0..10).map(|_| table.take(Op::Wake)).collect();
        assert_eq!(table.busy(), 10);
        assert_eq!(table.iter().count(), 10);
        for index in taken {
            table.release(index);
        }
        assert_eq!(table.busy(), 0);
    }
}
