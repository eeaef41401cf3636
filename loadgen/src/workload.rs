//! What a run asks for: the job's description, and the generator of single operations.
//!
//! Positions are counted in requests: request `i` covers the bytes
//! `i * block_size .. (i + 1) * block_size`, so every request is aligned to its own size.

use std::path::PathBuf;

use crate::{
    distribution::{Distribution, DistributionError, Permutation, Sampler},
    rng::Rng,
    verify::LEDGER_BLOCKS_MAX,
};

/// The largest request, in bytes: what every NBD server must accept is half of that, and the
/// buffers of a run are this times the depth.
pub const BLOCK_SIZE_MAX: u32 = 32 << 20;
/// The largest number of requests in flight.
pub const DEPTH_MAX: u32 = 4096;
/// The largest number of connections.
pub const CONNECTIONS_MAX: u32 = 256;

/// The order of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Drawn from the distribution.
    Random,
    /// One after the other; each connection walks an equal slice of the span, again and again.
    Sequential,
    /// Anywhere, but every place once before any comes again; each connection does so in an equal slice of the span.
    Shuffled,
}

/// A job, independent of what it is run against.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Bytes per request: a multiple of 512, at most [`BLOCK_SIZE_MAX`].
    pub block_size: u32,
    /// Requests in flight, spread over the connections; at least one per connection.
    pub depth: u32,
    /// Share of reads among reads and writes, 0 to 100.
    pub read_percent: u8,
    /// The order of the requests.
    pub pattern: Pattern,
    /// The spread of a random pattern; a sequential one ignores it.
    pub distribution: Distribution,
    /// Bytes from the start that are used; `None` means all there is.
    pub span_bytes: Option<u64>,
    /// A flush after this many writes of one connection.
    pub flush_every: Option<u32>,
    /// Every write must be durable before it is answered.
    pub fua: bool,
    /// Discards instead of writes. Not with `verify`.
    pub discard: bool,
    /// Requests per second of all connections, sent when their time has come whether or not others were answered (an
    /// open loop); latency counts from that time on, also while a request waits for one of `depth` places. `None` sends
    /// one as soon as another is answered.
    pub rate: Option<u32>,
    /// Writes are stamped and reads are checked.
    pub verify: bool,
    /// With `verify`: the file that says what earlier runs wrote, and that this one adds to.
    pub ledger: Option<PathBuf>,
    /// What is written is zeroes; without it nothing that could be compressed. Not with `verify`.
    pub zero_buffers: bool,
    /// Names the random numbers.
    pub seed: u64,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            block_size: 4096,
            depth: 32,
            read_percent: 100,
            pattern: Pattern::Random,
            distribution: Distribution::Uniform,
            span_bytes: None,
            flush_every: None,
            fua: false,
            discard: false,
            rate: None,
            verify: false,
            ledger: None,
            zero_buffers: false,
            seed: 1,
        }
    }
}

/// Why a job can't be run.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum WorkloadError {
    /// The request size is no multiple of 512 or out of range.
    #[error("the block size is {bytes}: it must be a multiple of 512, from 512 to 32 MiB")]
    BlockSize {
        /// What was asked for.
        bytes: u32,
    },
    /// The depth is out of range.
    #[error("the depth is {depth}: it must be from 1 to {DEPTH_MAX}")]
    Depth {
        /// What was asked for.
        depth: u32,
    },
    /// The number of connections is out of range.
    #[error("{connections} connections: there must be from 1 to {CONNECTIONS_MAX}")]
    Connections {
        /// What was asked for.
        connections: u32,
    },
    /// The share of reads is no percentage.
    #[error("the share of reads is {percent} %: it must be from 0 to 100")]
    Mix {
        /// What was asked for.
        percent: u8,
    },
    /// A flush after every zero writes.
    #[error("a flush after every 0 writes makes no sense: leave the option out for none")]
    FlushEvery,
    /// No request in a second.
    #[error(
        "a rate of 0 requests per second makes no sense: leave the option out for as many as will go"
    )]
    Rate,
    /// What was discarded reads as zeroes or not: nothing can be checked.
    #[error("a run that discards can't be verified")]
    VerifyDiscard,
    /// The distribution's parameters.
    #[error(transparent)]
    Distribution(#[from] DistributionError),
    /// More was asked for than there is.
    #[error("the span of {span} bytes is larger than the target, which has {size}")]
    SpanTooLarge {
        /// What was asked for, in bytes.
        span: u64,
        /// What there is, in bytes.
        size: u64,
    },
    /// Less than the run needs.
    #[error("the span holds {requests} requests of the block size; at least {needed} are needed")]
    SpanTooSmall {
        /// How many there is room for.
        requests: u64,
        /// How many are needed.
        needed: u64,
    },
    /// The table of what was written would be too large.
    #[error("verifying {requests} blocks takes 8 bytes each: at most {max}; use a smaller span")]
    VerifyTooLarge {
        /// How many there are.
        requests: u64,
        /// How many may be.
        max: u64,
    },
}

impl Workload {
    /// Checks everything that can be checked without a target.
    ///
    /// # Errors
    /// The first parameter that is out of range.
    pub fn validate(&self, connections: u32) -> Result<(), WorkloadError> {
        let bytes = self.block_size;
        if bytes == 0 || !bytes.is_multiple_of(512) || bytes > BLOCK_SIZE_MAX {
            return Err(WorkloadError::BlockSize { bytes });
        }
        if self.depth == 0 || self.depth > DEPTH_MAX {
            return Err(WorkloadError::Depth { depth: self.depth });
        }
        if connections == 0 || connections > CONNECTIONS_MAX {
            return Err(WorkloadError::Connections { connections });
        }
        if self.read_percent > 100 {
            return Err(WorkloadError::Mix { percent: self.read_percent });
        }
        if self.flush_every == Some(0) {
            return Err(WorkloadError::FlushEvery);
        }
        if self.rate == Some(0) {
            return Err(WorkloadError::Rate);
        }
        if self.discard && self.verify {
            return Err(WorkloadError::VerifyDiscard);
        }
        Ok(self.distribution.validate()?)
    }

    /// Whether the job changes the target.
    #[must_use]
    pub const fn writes(&self) -> bool {
        self.read_percent < 100
    }

    /// Requests that the span holds on a target of `size` bytes.
    ///
    /// # Errors
    /// `SpanTooLarge`, `SpanTooSmall` or `VerifyTooLarge`.
    pub fn requests(&self, size: u64, connections: u32) -> Result<u64, WorkloadError> {
        let span = self.span_bytes.unwrap_or(size);
        if span > size {
            return Err(WorkloadError::SpanTooLarge { span, size });
        }
        let requests = span / u64::from(self.block_size);
        // A verified run never writes a block twice at once, so it needs a free one to go on.
        let in_flight = u64::from(self.depth.max(connections));
        let needed = if self.verify { in_flight + 1 } else { u64::from(connections) };
        if requests < needed {
            return Err(WorkloadError::SpanTooSmall { requests, needed });
        }
        if self.verify && requests > LEDGER_BLOCKS_MAX {
            return Err(WorkloadError::VerifyTooLarge { requests, max: LEDGER_BLOCKS_MAX });
        }
        Ok(requests)
    }

    /// The depth of connection `index` among `connections`: an even share, and at least one.
    #[must_use]
    pub const fn depth_of(&self, index: u32, connections: u32) -> u32 {
        let share = self.depth / connections + (index < self.depth % connections) as u32;
        if share == 0 { 1 } else { share }
    }

    /// Requests in flight over all connections.
    #[must_use]
    pub const fn depth_total(&self, connections: u32) -> u32 {
        if self.depth < connections { connections } else { self.depth }
    }
}

/// What one request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads one block size.
    Read,
    /// Writes one block size.
    Write,
    /// Makes completed writes durable.
    Flush,
    /// Gives one block size back.
    Discard,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Flush, Self::Discard];

    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
        }
    }
}

/// One operation to issue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub kind: Kind,
    /// Position in requests; zero for a flush.
    pub request: u64,
}

/// The endless stream of one connection's operations.
#[derive(Clone, Debug)]
pub(crate) struct Generator {
    rng: Rng,
    sampler: Sampler,
    walk: Option<Cursor>,
    read_percent: u64,
    changes: Kind,
    flush_every: Option<u32>,
    writes_since_flush: u32,
}

/// A walk through `first..end`, round and round.
#[derive(Clone, Debug)]
struct Cursor {
    first: u64,
    end: u64,
    next: u64,
    /// In this order, counted from `first`.
    order: Option<Permutation>,
}

impl Generator {
    /// The operations of connection `index` of `connections` over `requests` positions.
    pub(crate) fn new(workload: &Workload, requests: u64, index: u32, connections: u32) -> Self {
        let walk = (workload.pattern != Pattern::Random).then(|| {
            let (first, end) = slice_of(requests, index, connections);
            let is_shuffled = workload.pattern == Pattern::Shuffled;
            let order = is_shuffled.then(|| Permutation::new(end - first, workload.seed));
            Cursor { first, end, next: first, order }
        });
        Self {
            rng: Rng::new(workload.seed, u64::from(index)),
            sampler: match walk {
                // Not drawn from, so the cost of a zipf table is not paid.
                Some(_) => Sampler::new(Distribution::Uniform, requests, 0),
                None => Sampler::new(workload.distribution, requests, workload.seed),
            },
            walk,
            changes: if workload.discard { Kind::Discard } else { Kind::Write },
            read_percent: u64::from(workload.read_percent),
            flush_every: workload.flush_every,
            writes_since_flush: 0,
        }
    }

    pub(crate) fn next(&mut self) -> Operation {
        if self.flush_every.is_some_and(|every| self.writes_since_flush >= every) {
            self.writes_since_flush = 0;
            return Operation { kind: Kind::Flush, request: 0 };
        }
        let read = match self.read_percent {
            0 => false,
            100 => true,
            percent => self.rng.below(100) < percent,
        };
        self.writes_since_flush += u32::from(!read);
        let kind = if read { Kind::Read } else { self.changes };
        Operation { kind, request: self.position() }
    }

    /// Another place for the last operation, when the first one can't be used now.
    pub(crate) fn position(&mut self) -> u64 {
        match &mut self.walk {
            Some(cursor) => {
                let (position, first) = (cursor.next, cursor.first);
                cursor.next = if position + 1 == cursor.end { first } else { position + 1 };
                let shuffled = |order: &Permutation| first + order.apply(position - first);
                cursor.order.as_ref().map_or(position, shuffled)
            }
            None => self.sampler.draw(&mut self.rng),
        }
    }
}

/// The half-open part of `0..requests` that connection `index` walks; never empty as long as
/// there are at least as many requests as connections.
pub(crate) fn slice_of(requests: u64, index: u32, connections: u32) -> (u64, u64) {
    let cut = |i: u32| (u128::from(requests) * u128::from(i) / u128::from(connections)) as u64;
    (cut(index), cut(index + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_spread() {
        let workload = Workload { depth: 10, ..Workload::default() };
        let shares: Vec<u32> = (0..4).map(|i| workload.depth_of(i, 4)).collect();
        assert_eq!(shares, [3, 3, 2, 2]);
        let workload = Workload { depth: 1, ..Workload::default() };
        assert_eq!((0..4).map(|i| workload.depth_of(i, 4)).sum::<u32>(), 4);
        assert_eq!(workload.depth_total(4), 4);
    }

    #[test]
    fn slices_cover_the_span_once() {
        for pattern in [Pattern::Sequential, Pattern::Shuffled] {
            let workload = Workload { pattern, ..Workload::default() };
            let mut seen = vec![0; 103];
            for index in 0..4 {
                let mut generator = Generator::new(&workload, 103, index, 4);
                let (first, end) = slice_of(103, index, 4);
                let walk: Vec<_> = (first..end).map(|_| generator.next().request).collect();
                assert_eq!(walk.is_sorted(), pattern == Pattern::Sequential);
                assert_eq!(generator.next().request, walk[0], "starts again");
                walk.iter().for_each(|&request| seen[request as usize] += 1);
            }
            assert!(seen.iter().all(|&n| n == 1), "{seen:?}");
        }
    }

    #[test]
    fn discards_take_the_place_of_writes() {
        let workload = Workload { read_percent: 50, discard: true, ..Workload::default() };
        let mut generator = Generator::new(&workload, 100, 0, 1);
        let kinds: Vec<Kind> = (0..100).map(|_| generator.next().kind).collect();
        assert!(kinds.contains(&Kind::Read) && kinds.contains(&Kind::Discard));
        assert!(!kinds.contains(&Kind::Write));
        let verified = Workload { verify: true, ..workload };
        assert_eq!(verified.validate(1), Err(WorkloadError::VerifyDiscard));
    }

    #[test]
    fn mix_and_flushes_are_kept() {
        let workload = Workload { read_percent: 30, flush_every: Some(10), ..Workload::default() };
        let mut generator = Generator::new(&workload, 1000, 0, 1);
        let (mut reads, mut writes, mut flushes) = (0u32, 0u32, 0u32);
        for _ in 0..100_000 {
            match generator.next().kind {
                Kind::Read => reads += 1,
                Kind::Write => writes += 1,
                Kind::Flush => {
                    flushes += 1;
                    assert_eq!(writes, flushes * 10);
                }
                Kind::Discard => panic!("nothing is to be discarded"),
            }
        }
        let share = f64::from(reads) / f64::from(reads + writes);
        assert!((share - 0.3).abs() < 0.01, "{share}");
        assert!(flushes > 6000);
    }

    #[test]
    fn spans_are_checked() {
        let workload = Workload { span_bytes: Some(8192), ..Workload::default() };
        assert_eq!(workload.requests(8192, 1), Ok(2));
        assert!(matches!(workload.requests(4096, 1), Err(WorkloadError::SpanTooLarge { .. })));
        assert!(matches!(workload.requests(8192, 3), Err(WorkloadError::SpanTooSmall { .. })));
        let verified = Workload { verify: true, depth: 2, ..workload };
        assert!(matches!(verified.requests(8192, 1), Err(WorkloadError::SpanTooSmall { .. })));
    }

    #[test]
    fn nonsense_is_refused() {
        let block_size = Workload { block_size: 1000, ..Workload::default() };
        assert!(matches!(block_size.validate(1), Err(WorkloadError::BlockSize { .. })));
        let depth = Workload { depth: 0, ..Workload::default() };
        assert!(matches!(depth.validate(1), Err(WorkloadError::Depth { .. })));
        let flush = Workload { flush_every: Some(0), ..Workload::default() };
        assert_eq!(flush.validate(1), Err(WorkloadError::FlushEvery));
        assert!(Workload::default().validate(0).is_err());
    }
}
