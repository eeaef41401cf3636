//! `flagstone bench pool`: a volume driven through the library, in this process.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use clap::Args;
use flagstone_loadgen::{Console, Kind, Report, Target, TargetAnswer, TargetRequest, run_target};

use super::{BenchError, JobArgs};
use crate::library::{OpenOptions, Pool, Volume};
use crate::node::{IoError, NvmePolling};
use crate::size::parse_size;

/// What is driven in this process, and how.
#[derive(Args, Debug)]
pub(super) struct PoolArgs {
    /// A file or block device of the pool; its others are found.
    pool: PathBuf,

    /// The volume. What it holds is overwritten, if anything is written.
    volume: String,

    /// Make the volume, this large, if there is none of that name.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    create: Option<u64>,

    /// Threads that send requests; the depth is spread over them, at least one request each.
    #[arg(long, default_value_t = 1, value_name = "N")]
    threads: u32,

    /// Memory for the volumes' map; what does not fit is read from the pool
    #[arg(long, default_value = "1G", value_name = "SIZE", value_parser = parse_size)]
    map_memory: u64,

    /// Of NVMe namespaces (/dev/ngXnY): when completions are polled for instead of awaited
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    nvme_polling: NvmePolling,

    #[command(flatten)]
    pub(super) job: JobArgs,
}

/// Opens the pool, drives the volume, and closes the pool.
pub(super) fn run(args: &PoolArgs, json: bool) -> Result<Report, BenchError> {
    let (workload, limits) = (args.job.workload(), args.job.limits());
    workload.validate(args.threads).map_err(flagstone_loadgen::RunError::from)?;
    let options = OpenOptions {
        map_memory: Some(args.map_memory),
        nvme_polling: args.nvme_polling,
        ..OpenOptions::default()
    };
    let pool = Pool::open(&args.pool, &options)?;
    let volume = match (pool.volume(&args.volume), args.create) {
        (Err(_), Some(bytes)) => pool.create_volume(&args.volume, bytes)?,
        (found, _) => found?,
    };
    let name = format!("{} of {}", volume.name(), args.pool.display());
    let targets = (0..args.threads).map(|_| Library::new(volume.clone())).collect();
    let mut console = Console::new(json);
    let report = run_target(name, volume.size(), targets, &workload, &limits, &mut console);
    drop(volume);
    pool.close()?;
    Ok(report?)
}

type Answer = Pin<Box<dyn Future<Output = Result<Vec<u8>, IoError>> + Send>>;

/// Slots whose requests are to be polled, and who sleeps until there are any.
#[derive(Default)]
struct Woken {
    slots: Mutex<Vec<usize>>,
    sleeper: OnceLock<Thread>,
}

struct SlotWaker {
    slot: usize,
    woken: Arc<Woken>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut slots = self.woken.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.push(self.slot);
        // Only the first finds somebody asleep.
        if slots.len() == 1
            && let Some(sleeper) = self.woken.sleeper.get()
        {
            sleeper.unpark();
        }
    }
}

/// The library's requests, of one thread.
struct Library {
    volume: Volume,
    under_way: Vec<Option<Answer>>,
    wakers: Vec<Waker>,
    woken: Arc<Woken>,
    /// Taken from `woken`.
    polling: Vec<usize>,
    over: VecDeque<TargetAnswer>,
}

impl Library {
    fn new(volume: Volume) -> Self {
        Self {
            volume,
            under_way: Vec::new(),
            wakers: Vec::new(),
            woken: Arc::default(),
            polling: Vec::new(),
            over: VecDeque::new(),
        }
    }

    /// Sends a request that was not polled yet; takes the answer of one that is over.
    fn poll(&mut self, slot: usize) {
        let Some(answer) = &mut self.under_way[slot] else { return };
        let polled = answer.as_mut().poll(&mut Context::from_waker(&self.wakers[slot]));
        if let Poll::Ready(result) = polled {
            self.under_way[slot] = None;
            self.over.push_back(TargetAnswer { slot, data: result.ok() });
        }
    }

    fn take_woken(&mut self) {
        let mut slots = self.woken.slots.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *slots, &mut self.polling);
    }
}

impl Target for Library {
    fn begin(&mut self, slot: usize, request: TargetRequest) {
        let TargetRequest { kind, offset, data } = request;
        let volume = &self.volume;
        let answer: Answer = match kind {
            Kind::Read => Box::pin(volume.read_async(offset, data)),
            Kind::Write => Box::pin(volume.write_async(offset, data)),
            Kind::Flush => {
                let flush = volume.flush_async();
                Box::pin(async move { flush.await.map(|()| data) })
            }
            Kind::Discard => {
                let discard = volume.discard_async(offset, data.len() as u64);
                Box::pin(async move { discard.await.map(|()| data) })
            }
        };
        self.woken.sleeper.get_or_init(thread::current);
        for slot in self.under_way.len()..=slot {
            self.under_way.push(None);
            self.wakers.push(Arc::new(SlotWaker { slot, woken: Arc::clone(&self.woken) }).into());
        }
        self.under_way[slot] = Some(answer);
        self.poll(slot);
    }

    fn answer(&mut self) -> Option<TargetAnswer> {
        self.over.pop_front()
    }

    fn wait(&mut self, time: Option<Duration>) {
        if self.over.is_empty() {
            self.take_woken();
            if self.polling.is_empty() {
                match time {
                    Some(time) => thread::park_timeout(time),
                    None => thread::park(),
                }
                self.take_woken();
            }
        }
        let mut polling = std::mem::take(&mut self.polling);
        for slot in polling.drain(..) {
            self.poll(slot);
        }
        self.polling = polling;
    }
}
