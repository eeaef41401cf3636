//! A disk that records: an NBD server that logs every write and flush in the order of arrival, and
//! from the log makes the images that a power cut at any point could have left.
//!
//! The disk is a cache in front of a medium that tears. It answers late and out of order. A flush
//! makes durable those writes that were answered before it arrived, and nothing else; all others
//! are, at a cut, there, lost, or there in some of their 512-byte sectors, each for itself.
//!
//! It is shown to the daemon as a file by nbdfuse, which hands on writes as they come and `fsync` as
//! a flush; what arrives is logged, so whatever it changes on the way is part of the disk.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::nbd::{FLUSH, READ, TRIM, WRITE, WRITE_ZEROES};
use crate::random::Random;

/// What a disk keeps whole.
const SECTOR: usize = 512;

/// Answers that are held back at most, so that others overtake them.
const HELD_MAX: usize = 6;

/// How long an answer is held back when nothing else comes.
const HOLD: Duration = Duration::from_micros(200);

#[derive(Debug)]
enum Command {
    Write { offset: usize, data: Vec<u8> },
    Zero { offset: usize, length: usize },
    Flush,
}

#[derive(Debug)]
struct Entry {
    command: Command,
    /// The length of the log when the answer was sent.
    answered: Option<usize>,
}

#[derive(Debug)]
struct State {
    image: Vec<u8>,
    log: Vec<Entry>,
}

/// The disk. Its threads end when their clients do.
#[derive(Clone, Debug)]
pub struct Disk {
    state: Arc<Mutex<State>>,
    socket: PathBuf,
}

impl Disk {
    /// Serves a disk with this content on a unix socket.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn serve(image: Vec<u8>, socket: &Path, seed: u64) -> io::Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let state = Arc::new(Mutex::new(State { image, log: Vec::new() }));
        let disk = Self { state, socket: socket.to_owned() };
        let server = disk.clone();
        std::thread::spawn(move || {
            for (number, stream) in (0..).zip(listener.incoming().map_while(Result::ok)) {
                let random = Random::new(seed.wrapping_add(number));
                let session = Session { disk: server.clone(), stream, random, held: Vec::new() };
                // A client that goes away is the end of its session, not an error.
                std::thread::spawn(move || session.run().ok());
            }
        });
        Ok(disk)
    }

    /// The URI for nbdfuse.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread of the disk panics")
    }

    /// How many commands it has taken.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.state().log.len() as u64
    }

    /// Flushes that it has answered.
    #[must_use]
    pub fn flushes(&self) -> usize {
        let is_flush = |entry: &&Entry| matches!(entry.command, Command::Flush);
        self.state().log.iter().filter(is_flush).filter(|entry| entry.answered.is_some()).count()
    }

    fn log(&self, command: Command) -> usize {
        let mut state = self.state();
        match &command {
            Command::Write { offset, data } => {
                state.image[*offset..offset + data.len()].copy_from_slice(data);
            }
            Command::Zero { offset, length } => state.image[*offset..offset + length].fill(0),
            Command::Flush => {}
        }
        state.log.push(Entry { command, answered: None });
        state.log.len() - 1
    }

    fn answered(&self, entry: usize) {
        let mut state = self.state();
        let length = state.log.len();
        state.log[entry].answered = Some(length);
    }
}

struct Session {
    disk: Disk,
    stream: UnixStream,
    random: Random,
    /// Answers not sent: the cookie, and the entry of the log.
    held: Vec<([u8; 8], usize)>,
}

impl Session {
    fn run(mut self) -> io::Result<()> {
        self.handshake()?;
        loop {
            if !self.held.is_empty() && (self.held.len() >= HELD_MAX || !self.more_comes()?) {
                self.answer_one()?;
                continue;
            }
            let mut header = [0; 28];
            self.stream.read_exact(&mut header)?;
            let field = |range: std::ops::Range<usize>| {
                header[range].iter().fold(0_u64, |value, &byte| value << 8 | u64::from(byte))
            };
            let cookie: [u8; 8] = header[8..16].try_into().expect("8 bytes");
            let (offset, length) = (field(16..24) as usize, field(24..28) as usize);
            let command = match field(6..8) as u16 {
                READ => {
                    let data = self.disk.state().image[offset..offset + length].to_vec();
                    self.stream.write_all(&reply(cookie, 0))?;
                    self.stream.write_all(&data)?;
                    continue;
                }
                WRITE => {
                    let mut data = vec![0; length];
                    self.stream.read_exact(&mut data)?;
                    Command::Write { offset, data }
                }
                TRIM | WRITE_ZEROES => Command::Zero { offset, length },
                FLUSH => Command::Flush,
                _ => return Ok(()),
            };
            let entry = self.disk.log(command);
            self.held.push((cookie, entry));
        }
    }

    /// Whether another request arrives before the answers have been held back long enough.
    fn more_comes(&self) -> io::Result<bool> {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
        let timeout = HOLD.try_into().expect("a short time");
        Ok(poll(&mut fds, Some(&timeout))? > 0)
    }

    fn answer_one(&mut self) -> io::Result<()> {
        let index = self.random.below(self.held.len() as u64) as usize;
        let (cookie, entry) = self.held.swap_remove(index);
        // Before it is sent: a flush that the answer lets loose must find it noted.
        self.disk.answered(entry);
        self.stream.write_all(&reply(cookie, 0))
    }

    /// Fixed newstyle with `NBD_OPT_GO` and `NBD_OPT_EXPORT_NAME`, which is all that libnbd needs.
    fn handshake(&mut self) -> io::Result<()> {
        // Flags: fixed newstyle, no zeroes. Transmission flags: flush, FUA is not offered (FUSE
        // has none), trim, write zeroes.
        const TRANSMISSION: u16 = 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8;
        self.stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
        self.stream.read_exact(&mut [0; 4])?;
        let mut export = [0; 10];
        export[..8].copy_from_slice(&(self.disk.state().image.len() as u64).to_be_bytes());
        export[8..].copy_from_slice(&TRANSMISSION.to_be_bytes());
        loop {
            let mut header = [0; 16];
            self.stream.read_exact(&mut header)?;
            let number = u32::from_be_bytes(header[8..12].try_into().expect("4 bytes"));
            let length = u32::from_be_bytes(header[12..].try_into().expect("4 bytes"));
            self.stream.read_exact(&mut vec![0; length as usize])?;
            match number {
                1 => return self.stream.write_all(&export),
                7 => {
                    let info = [&[0, 0][..], &export].concat();
                    self.stream.write_all(&option_reply(number, 3, &info))?;
                    return self.stream.write_all(&option_reply(number, 1, &[]));
                }
                // NBD_REP_ERR_UNSUP.
                _ => self.stream.write_all(&option_reply(number, 0x8000_0001, &[]))?,
            }
        }
    }
}

fn reply(cookie: [u8; 8], error: u32) -> [u8; 16] {
    let mut message = [0; 16];
    message[..4].copy_from_slice(&0x6744_6698_u32.to_be_bytes());
    message[4..8].copy_from_slice(&error.to_be_bytes());
    message[8..].copy_from_slice(&cookie);
    message
}

fn option_reply(number: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut message = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    message.extend_from_slice(&number.to_be_bytes());
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&(data.len() as u32).to_be_bytes());
    message.extend_from_slice(data);
    message
}

/// Makes images of a recorded disk at cuts, which must come in rising order.
#[derive(Debug)]
pub struct Cutter {
    disk: Disk,
    /// What is on the medium for sure at the last cut.
    durable: Vec<u8>,
    /// Entries that are part of `durable`.
    done: Vec<bool>,
    /// Flushes do nothing.
    lies: bool,
}

impl Cutter {
    /// For a disk that began with `image`.
    #[must_use]
    pub fn new(disk: &Disk, image: Vec<u8>) -> Self {
        let entries = disk.state().log.len();
        Self { disk: disk.clone(), durable: image, done: vec![false; entries], lies: false }
    }

    /// For a disk that answers flushes and does nothing: one on which promises must break, to show
    /// that the test would see it.
    #[must_use]
    pub fn lying(disk: &Disk, image: Vec<u8>) -> Self {
        Self { lies: true, ..Self::new(disk, image) }
    }

    /// An image that a power cut may leave when the disk had taken `position` commands.
    pub fn cut(&mut self, position: usize, random: &mut Random) -> Vec<u8> {
        let state = self.disk.state.lock().expect("no thread of the disk panics");
        let log = &state.log[..position];
        let flushed = log.iter().enumerate().rev().find(|(_, entry)| {
            !self.lies
                && matches!(entry.command, Command::Flush)
                && entry.answered.is_some_and(|answered| answered <= position)
        });
        let flushed = flushed.map_or(0, |(index, _)| index);
        // Flushes overlap: an earlier one that was answered covers nothing that a later one
        // doesn't, because what it covers was answered before it arrived.
        for (index, entry) in log[..flushed].iter().enumerate() {
            if !self.done[index] && entry.answered.is_some_and(|answered| answered <= flushed) {
                apply(&mut self.durable, &entry.command, |_| true);
                self.done[index] = true;
            }
        }
        let mut image = self.durable.clone();
        // From nothing to everything: each kind of loss has its own bugs.
        let kept = [0, 10, 50, 90, 100][random.below(5) as usize];
        let torn = [0, 20, 60][random.below(3) as usize];
        for (index, entry) in log.iter().enumerate() {
            if self.done[index] {
                continue;
            }
            if random.chance(torn) {
                apply(&mut image, &entry.command, |_| random.chance(50));
            } else if random.chance(kept) {
                apply(&mut image, &entry.command, |_| true);
            }
        }
        image
    }
}

/// Applies those sectors of a command that `keeps` says.
fn apply(image: &mut [u8], command: &Command, mut keeps: impl FnMut(usize) -> bool) {
    let (offset, length) = match command {
        Command::Write { offset, data } => (*offset, data.len()),
        Command::Zero { offset, length } => (*offset, *length),
        Command::Flush => return,
    };
    let mut at = 0;
    while at < length {
        // Sectors lie where the disk has them, not where the command begins.
        let end = ((offset + at) / SECTOR * SECTOR + SECTOR - offset).min(length);
        if keeps(offset + at) {
            let target = &mut image[offset + at..offset + end];
            match command {
                Command::Write { data, .. } => target.copy_from_slice(&data[at..end]),
                _ => target.fill(0),
            }
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(entries: &[(Command, Option<usize>)]) -> Disk {
        let log = entries
            .iter()
            .map(|(command, answered)| {
                let command = match command {
                    Command::Write { offset, data } => {
                        Command::Write { offset: *offset, data: data.clone() }
                    }
                    Command::Zero { offset, length } => {
                        Command::Zero { offset: *offset, length: *length }
                    }
                    Command::Flush => Command::Flush,
                };
                Entry { command, answered: *answered }
            })
            .collect();
        let state = State { image: vec![0; 4096], log };
        Disk { state: Arc::new(Mutex::new(state)), socket: PathBuf::new() }
    }

    fn write(sector: usize, byte: u8) -> Command {
        Command::Write { offset: sector * SECTOR, data: vec![byte; SECTOR] }
    }

    #[test]
    fn a_flush_keeps_what_was_answered_before_it() {
        // Entry 1 is answered only after the flush (entry 2) has arrived.
        let disk =
            disk(&[(write(0, 1), Some(1)), (write(1, 2), Some(3)), (Command::Flush, Some(4))]);
        let mut lost = [0; 2];
        for seed in 0..200 {
            let image = Cutter::new(&disk, vec![0; 4096]).cut(3, &mut Random::new(seed));
            lost[0] += u32::from(image[0] == 0);
            let mut cutter = Cutter::new(&disk, vec![0; 4096]);
            let log = disk.state().log.len();
            assert_eq!(log, 3);
            // The flush was answered when the log was longer than it is: not before this cut.
            let image = cutter.cut(3, &mut Random::new(seed));
            lost[1] += u32::from(image[SECTOR] == 0);
        }
        assert!(lost[0] > 0 && lost[1] > 0, "an unanswered flush keeps nothing: {lost:?}");
    }

    #[test]
    fn an_answered_flush_is_kept() {
        let disk = disk(&[
            (write(0, 1), Some(1)),
            (write(1, 2), Some(3)),
            (Command::Flush, Some(3)),
            (write(2, 3), Some(4)),
        ]);
        let mut lost = [0; 3];
        for seed in 0..200 {
            let image = Cutter::new(&disk, vec![0; 4096]).cut(4, &mut Random::new(seed));
            for (sector, lost) in lost.iter_mut().enumerate() {
                *lost += u32::from(image[sector * SECTOR] == 0);
            }
        }
        assert_eq!(lost[0], 0, "it was answered before the flush");
        assert!(lost[1] > 0, "it was not answered when the flush arrived");
        assert!(lost[2] > 0, "it came after the flush");
    }
}
