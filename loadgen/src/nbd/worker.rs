//! A thread's connections: one, waiting in `poll`, or several behind an epoll.
//!
//! Several connections on one thread cost less than as many threads when there are few cores:
//! the thread goes from one readable socket to the next without sleeping in between, and the
//! server's core isn't fought for.

use std::time::Duration;

use rustix::{event::epoll, fd::OwnedFd, fs::Timespec, io::Errno};

use super::line::{Line, Wants};
use crate::{
    RunError,
    record::Recorder,
    run::{Control, Driver},
};

/// Connections driven by one thread.
pub(super) struct Worker<'a> {
    lines: Vec<Line<'a>>,
}

impl<'a> Worker<'a> {
    pub(super) const fn new(lines: Vec<Line<'a>>) -> Self {
        Self { lines }
    }

    pub(super) fn into_lines(self) -> Vec<Line<'a>> {
        self.lines
    }
}

impl Driver for Worker<'_> {
    type Local = ();

    fn prepare(&mut self) -> Result<(), RunError> {
        Ok(())
    }

    fn run(
        &mut self,
        (): (),
        control: &Control<'_>,
        recorder: &mut Recorder<'_>,
    ) -> Result<(), RunError> {
        match &mut self.lines[..] {
            [line] => run_one(line, control, recorder),
            lines => run_many(lines, control, recorder),
        }
    }

    fn abort_handle(&self) -> Result<Box<dyn Fn() + Send>, RunError> {
        let sockets = self.lines.iter().map(|line| line.socket().try_clone());
        let sockets = sockets.collect::<Result<Vec<_>, _>>().map_err(RunError::Io)?;
        Ok(Box::new(move || sockets.iter().for_each(|socket| socket.shut_down())))
    }
}

/// A turn is one send and one receive, as long as the socket takes what is sent.
fn run_one(
    line: &mut Line<'_>,
    control: &Control<'_>,
    recorder: &mut Recorder<'_>,
) -> Result<(), RunError> {
    loop {
        let wait = match line.refill(control, recorder)? {
            Wants::Nothing => return Ok(()),
            Wants::Replies => match line.due_at(control, recorder) {
                None => true,
                Some(at) => {
                    let left = Duration::from_nanos(at.saturating_sub(control.clock.now()));
                    line.socket().wait_at_most(left).map_err(RunError::Io)?;
                    false
                }
            },
            // Waiting for room alone could last for ever: the server may first want its own
            // replies taken.
            Wants::RepliesAndRoom => {
                line.socket().wait_both().map_err(RunError::Io)?;
                false
            }
        };
        line.receive(wait, control, recorder)?;
    }
}

/// A turn is one wait, and one send and one receive for each socket that has something.
fn run_many(
    lines: &mut [Line<'_>],
    control: &Control<'_>,
    recorder: &mut Recorder<'_>,
) -> Result<(), RunError> {
    let os = |errno: Errno| RunError::Io(errno.into());
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(os)?;
    let mut watched = vec![Wants::Replies; lines.len()];
    let mut busy = lines.len();
    for (index, line) in lines.iter_mut().enumerate() {
        let name = epoll::EventData::new_u64(index as u64);
        epoll::add(&epoll, line.socket(), name, epoll::EventFlags::IN).map_err(os)?;
        let wants = line.refill(control, recorder)?;
        watch(&epoll, line, index, &mut watched[index], wants).map_err(os)?;
        busy -= usize::from(wants == Wants::Nothing);
    }
    let mut events = Vec::with_capacity(lines.len());
    while busy > 0 {
        events.clear();
        let due = lines.iter().filter_map(|line| line.due_at(control, recorder)).min();
        let left = due.map(|at| timespec(at.saturating_sub(control.clock.now())));
        match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(os(errno)),
        }
        if due.is_some() {
            for (index, line) in lines.iter_mut().enumerate() {
                if watched[index] != Wants::Nothing {
                    let wants = line.refill(control, recorder)?;
                    watch(&epoll, line, index, &mut watched[index], wants).map_err(os)?;
                    busy -= usize::from(wants == Wants::Nothing);
                }
            }
        }
        for event in &events {
            let index = event.data.u64() as usize;
            if watched[index] == Wants::Nothing {
                continue;
            }
            let line = &mut lines[index];
            line.receive(false, control, recorder)?;
            let wants = line.refill(control, recorder)?;
            watch(&epoll, line, index, &mut watched[index], wants).map_err(os)?;
            busy -= usize::from(wants == Wants::Nothing);
        }
    }
    Ok(())
}

fn timespec(nanos: u64) -> Timespec {
    let (seconds, nanos) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    Timespec { tv_sec: seconds as i64, tv_nsec: nanos as i64 }
}

/// Watches a socket for what its connection wants; mostly that is what it already does.
fn watch(
    epoll: &OwnedFd,
    line: &Line<'_>,
    index: usize,
    watched: &mut Wants,
    wants: Wants,
) -> Result<(), Errno> {
    if *watched == wants {
        return Ok(());
    }
    *watched = wants;
    let flags = match wants {
        Wants::Replies => epoll::EventFlags::IN,
        Wants::RepliesAndRoom => epoll::EventFlags::IN | epoll::EventFlags::OUT,
        Wants::Nothing => return epoll::delete(epoll, line.socket()),
    };
    epoll::modify(epoll, line.socket(), epoll::EventData::new_u64(index as u64), flags)
}
