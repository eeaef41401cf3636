//! From the engines' answers to replies.

use super::connection::{Phase, Reply};
use super::errno::{Failure, errno};
use super::reactor::Reactor;
use super::request::{Current, Kind, Piece};
use flagstone_block::{BLOCK_SIZE, Lba};
use flagstone_engine::IoFault;
use flagstone_nbd::{Errno, Style};

impl Reactor {
    /// A part of a WRITE, TRIM or WRITE_ZEROES, or a FLUSH, has ended.
    pub(super) fn part_done(&mut self, request: u32, result: Result<(), IoFault>) {
        let Some(entry) = self.requests.get_mut(request) else { return };
        entry.outstanding -= 1;
        if let Err(fault) = result {
            entry.error.get_or_insert(errno(Failure::Io(fault)));
        }
        if entry.is_over() {
            self.finish(request);
        }
    }

    /// A piece of a READ has ended.
    pub(super) fn piece_done(&mut self, piece: u32, result: Result<(), IoFault>) {
        let Some(fetched) = self.pieces.remove(piece) else { return };
        let Some(entry) = self.requests.get_mut(fetched.request) else { return };
        entry.outstanding -= 1;
        let (c, to, over) = (entry.connection, entry.to, entry.is_over());
        let dead = self.connections[c as usize].phase == Phase::Dead;
        let is_run = matches!(entry.kind, Kind::Run { .. });
        // Nobody waits for it any more: a run that has failed is answered already.
        let useless = dead || entry.abandoned || (is_run && entry.error.is_some());
        if is_run && !useless {
            return self.part_fetched(c, piece, &fetched, result);
        }
        self.fetch_ended(c, fetched.data.buffer.blocks);
        if useless {
            self.give_back(c, fetched.data);
            match over {
                true if is_run && !dead => self.finish(fetched.request),
                true => self.forget(fetched.request),
                false => {}
            }
            return;
        }
        if let Err(fault) = result {
            self.give_back(c, fetched.data);
            let offset = fault_offset(fault, fetched.offset, fetched.len);
            return self.read_failed(fetched.request, offset, errno(Failure::Io(fault)));
        }
        self.stats.read_bytes += u64::from(fetched.len);
        self.connections[c as usize].io.read_bytes += u64::from(fetched.len);
        let Piece { data, skip, len, offset, .. } = fetched;
        self.reply(c, Reply::Data { to, data, skip, len, offset, done: over });
        if over {
            self.finish(fetched.request);
        }
    }

    /// Less is being fetched for a connection, which it may wait for.
    pub(super) fn fetch_ended(&mut self, c: u32, blocks: u32) {
        let connection = &mut self.connections[c as usize];
        connection.fetching_blocks -= blocks;
        if let Some(Current::Read { .. } | Current::Run { .. }) = connection.current {
            self.enqueue(c);
        }
    }

    /// A READ, or a part of it, can't be answered with data.
    pub(super) fn read_failed(&mut self, request: u32, offset: u64, errno: Errno) {
        let Some(entry) = self.requests.get_mut(request) else { return };
        entry.error.get_or_insert(errno);
        let (c, to, over) = (entry.connection, entry.to, entry.is_over());
        let style = self.connections[c as usize].session.style();
        match entry.kind {
            Kind::Run { begun } => return self.run_failed(c, request, begun, errno),
            _ if style == Style::Simple => self.reply(c, Reply::Done { to, result: Err(errno) }),
            _ => self.reply(c, Reply::Bad { to, errno, offset, done: over }),
        }
        if over {
            self.finish(request);
        }
    }

    /// Every part of a request is answered: sends the reply that is still due, if any, and takes
    /// the request off the table.
    pub(super) fn finish(&mut self, request: u32) {
        let Some(entry) = self.requests.get_mut(request) else { return };
        let (c, to, kind, error) = (entry.connection, entry.to, entry.kind, entry.error);
        let (stats, io) = (&mut self.stats, &mut self.connections[c as usize].io);
        match kind {
            Kind::Read | Kind::Run { .. } => {
                (stats.reads, io.reads) = (stats.reads + 1, io.reads + 1)
            }
            Kind::Write => {
                let bytes = if error.is_none() { entry.bytes } else { 0 };
                (stats.writes, io.writes) = (stats.writes + 1, io.writes + 1);
                stats.written_bytes += bytes;
                io.written_bytes += bytes;
            }
            Kind::Zero => (stats.zeroes, io.zeroes) = (stats.zeroes + 1, io.zeroes + 1),
            Kind::Flush => (stats.flushes, io.flushes) = (stats.flushes + 1, io.flushes + 1),
        }
        stats.errors += u64::from(error.is_some());
        io.errors += u64::from(error.is_some());
        let silent = entry.abandoned || self.connections[c as usize].phase == Phase::Dead;
        match kind {
            // Their last chunk is their reply.
            Kind::Read => {}
            Kind::Run { .. } => self.end_run(c),
            _ if silent => {}
            _ => {
                let result = match error {
                    None => Ok(()),
                    Some(errno) => Err(errno),
                };
                self.reply(c, Reply::Done { to, result });
            }
        }
        self.forget(request);
    }

    /// Takes a request off the table. Its connection may be over with it.
    pub(super) fn forget(&mut self, request: u32) {
        if let Some(entry) = self.requests.remove(request) {
            let c = entry.connection;
            self.connections[c as usize].requests -= 1;
            self.connections[c as usize].running.take_if(|running| *running == request);
            match self.connections[c as usize].phase {
                Phase::Dead => self.release_if_over(c),
                // It may have been waiting for this to be allowed another, or to be closed.
                _ => self.list(c),
            }
        }
    }

    /// Queues a reply, behind a run if there is one.
    pub(super) fn reply(&mut self, c: u32, reply: Reply) {
        let connection = &mut self.connections[c as usize];
        debug_assert_ne!(connection.phase, Phase::Dead, "nobody would receive it");
        if connection.in_run {
            connection.held.push_back(reply);
        } else {
            connection.outbox.push_back(reply);
        }
        self.list(c);
    }

    /// Drops what would have been sent, and gives back its memory.
    pub(super) fn drop_replies(&mut self, c: u32) {
        loop {
            let connection = &mut self.connections[c as usize];
            let next = connection.outbox.pop_front().or_else(|| connection.held.pop_front());
            match next {
                None => break,
                Some(Reply::Data { data, .. } | Reply::More { data, .. }) => {
                    self.give_back(c, data);
                }
                Some(_) => {}
            }
        }
        self.connections[c as usize].in_run = false;
        self.connections[c as usize].running = None;
    }
}

/// Where in a piece a fault lies: the damaged block if it is told and lies inside.
fn fault_offset(fault: IoFault, offset: u64, len: u32) -> u64 {
    match fault {
        IoFault::BadBlock { lba } => {
            let damaged = Lba(lba).offset().max(offset);
            let last = offset + u64::from(len) - 1;
            debug_assert!(damaged <= last / BLOCK_SIZE as u64 * BLOCK_SIZE as u64 + 4095);
            damaged.min(last)
        }
        _ => offset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_where_it_lies_but_never_outside_the_piece() {
        let bad = |lba| IoFault::BadBlock { lba };
        assert_eq!(fault_offset(bad(2), 4096, 12288), 8192);
        assert_eq!(fault_offset(bad(1), 5000, 100), 5000);
        assert_eq!(fault_offset(IoFault::Device, 5000, 100), 5000);
    }
}
