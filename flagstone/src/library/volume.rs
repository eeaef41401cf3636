//! Volumes: reads, writes, flushes, discards, from any thread.

use std::fmt;
use std::sync::Arc;

use flagstone_block::ZeroMode;
use flagstone_ring::MailError;
use tokio::sync::oneshot;

use super::Diff;
use super::block_on::block_on;
use super::pool::Inner;
use crate::node::local::{LocalOp, LocalRequest};
use crate::node::{
    ControlError, DiffTarget, IoError, NewSnapshot, SnapshotStatus, Usage, VolumeStatus,
};

/// An open volume or snapshot. Clones are the same one.
///
/// Offsets and lengths are bytes and need no alignment, but a write that covers only a part of a
/// 4096-byte block has to read the rest of it first. Requests under way at the same time may
/// happen in any order; where they overlap, the result is one of them for each block.
///
/// Each request has a blocking form, and one that ends in `_async` and gives a future. The futures
/// need no particular runtime, do nothing before they are polled, and own what they need. One
/// that is dropped in the middle leaves its request to be finished, or not: whoever needs to know
/// must wait. At most 1024 requests of a pool are under way at a time; more wait.
#[derive(Clone)]
pub struct Volume {
    inner: Arc<Inner>,
    name: Arc<str>,
    handle: u64,
    size_bytes: u64,
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, size_bytes, .. } = self;
        f.debug_struct("Volume")
            .field("name", name)
            .field("size_bytes", size_bytes)
            .finish_non_exhaustive()
    }
}

impl Volume {
    pub(super) fn new(inner: &Arc<Inner>, status: &VolumeStatus) -> Self {
        Self {
            inner: Arc::clone(inner),
            name: status.name.as_str().into(),
            handle: status.handle,
            size_bytes: status.size_bytes,
        }
    }

    pub(super) fn of_snapshot(inner: &Arc<Inner>, status: &SnapshotStatus) -> Self {
        Self {
            inner: Arc::clone(inner),
            name: status.name.as_str().into(),
            handle: status.handle,
            size_bytes: status.size_bytes,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its size in bytes, when this handle was opened. It may have grown since.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size_bytes
    }

    /// Fills `into` from `offset`. What was never written reads as zeroes.
    ///
    /// # Errors
    /// [`IoError`]; `into` is then as it was.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), IoError> {
        let data = block_on(self.request(LocalOp::Read, offset, vec![0; into.len()]))?;
        into.copy_from_slice(&data);
        Ok(())
    }

    /// Stores `data` at `offset`. It survives the death of this process when this returns, and
    /// power loss after the next flush.
    ///
    /// # Errors
    /// [`IoError`]; any part of it may have been stored.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), IoError> {
        block_on(self.request(LocalOp::Write, offset, data.to_vec())).map(drop)
    }

    /// Makes everything durable that was answered before, of all volumes of the pool: it survives
    /// power loss.
    ///
    /// # Errors
    /// [`IoError`]: nothing is known of what was written since the last success.
    pub fn flush(&self) -> Result<(), IoError> {
        block_on(self.request(LocalOp::Flush, 0, Vec::new())).map(drop)
    }

    /// Gives the space of whole blocks in `len` bytes from `offset` back to the pool; they read as
    /// zeroes then. Parts of blocks at the ends keep their content.
    ///
    /// # Errors
    /// [`IoError`]; any part of it may have been discarded.
    pub fn discard(&self, offset: u64, len: u64) -> Result<(), IoError> {
        block_on(self.zero(offset, len, ZeroMode::Discard)).map(drop)
    }

    /// Makes every byte of `len` from `offset` read as zero, and gives the space of whole blocks
    /// back to the pool.
    ///
    /// # Errors
    /// [`IoError`]; any part of it may have happened.
    pub fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoError> {
        block_on(self.zero(offset, len, ZeroMode::MayUnmap)).map(drop)
    }

    /// Takes a snapshot called `name` and opens it: this volume with all writes that were answered
    /// before, for ever. It is durable when this returns, and can be opened again with
    /// [`Pool::snapshot`](super::Pool::snapshot). [`Pool::take_snapshots`](super::Pool::take_snapshots)
    /// takes those of several volumes at one instant.
    ///
    /// # Errors
    /// [`ControlError`]: there is a snapshot of that name, this is one itself, or the pool is full or
    /// failed.
    pub fn snapshot(&self, name: &str) -> Result<Self, ControlError> {
        block_on(self.snapshot_async(name))
    }

    /// What differs from an older one, of the same pool: one of its snapshots, or what it was cloned from.
    /// Without one, everything that is mapped.
    #[must_use]
    pub fn diff(&self, older: Option<&Self>) -> Diff {
        Diff::new(&self.inner, older.map(Self::target), self.target())
    }

    /// What it has alone, what others have too, and what deleting it would give back.
    ///
    /// # Errors
    /// [`ControlError`]: it is not there any more, or the pool is closed.
    pub fn usage(&self) -> Result<Usage, ControlError> {
        block_on(self.usage_async())
    }

    /// As [`Volume::usage`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn usage_async(&self) -> impl Future<Output = Result<Usage, ControlError>> + Send + use<> {
        let (inner, target) = (Arc::clone(&self.inner), self.target());
        async move { inner.node.usage(target).await }
    }

    fn target(&self) -> DiffTarget {
        DiffTarget::Handle { name: self.name.to_string(), handle: self.handle }
    }

    /// As [`Volume::read`]: fills `into`, whose length says how much, and gives it back.
    ///
    /// # Errors
    /// [`IoError`].
    pub fn read_async(
        &self,
        offset: u64,
        into: Vec<u8>,
    ) -> impl Future<Output = Result<Vec<u8>, IoError>> + Send + 'static {
        self.request(LocalOp::Read, offset, into)
    }

    /// As [`Volume::write`]: stores `data` and gives it back, to be used again.
    ///
    /// # Errors
    /// [`IoError`].
    pub fn write_async(
        &self,
        offset: u64,
        data: Vec<u8>,
    ) -> impl Future<Output = Result<Vec<u8>, IoError>> + Send + 'static {
        self.request(LocalOp::Write, offset, data)
    }

    /// As [`Volume::flush`]. It covers what was answered before the future is first polled.
    ///
    /// # Errors
    /// [`IoError`].
    pub fn flush_async(&self) -> impl Future<Output = Result<(), IoError>> + Send + 'static {
        let flush = self.request(LocalOp::Flush, 0, Vec::new());
        async move { flush.await.map(drop) }
    }

    /// As [`Volume::discard`].
    ///
    /// # Errors
    /// [`IoError`].
    pub fn discard_async(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<(), IoError>> + Send + 'static {
        self.zero(offset, len, ZeroMode::Discard)
    }

    /// As [`Volume::write_zeroes`].
    ///
    /// # Errors
    /// [`IoError`].
    pub fn write_zeroes_async(
        &self,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Result<(), IoError>> + Send + 'static {
        self.zero(offset, len, ZeroMode::MayUnmap)
    }

    /// As [`Volume::snapshot`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn snapshot_async(
        &self,
        name: &str,
    ) -> impl Future<Output = Result<Self, ControlError>> + Send + use<> {
        let inner = Arc::clone(&self.inner);
        let (volume, name) = (self.name.to_string(), name.to_owned());
        async move {
            let uuid = *uuid::Uuid::new_v4().as_bytes();
            let wanted = vec![NewSnapshot { volume, name, uuid }];
            let taken = inner.node.take_snapshots(wanted).await?;
            let status = taken.into_iter().next().ok_or(ControlError::SnapshotCount)?;
            Ok(Self::of_snapshot(&inner, &status))
        }
    }

    fn zero(
        &self,
        offset: u64,
        len: u64,
        mode: ZeroMode,
    ) -> impl Future<Output = Result<(), IoError>> + Send + 'static {
        let zero = self.request(LocalOp::Zero { len, mode }, offset, Vec::new());
        async move { zero.await.map(drop) }
    }

    /// Sends a request to the reactor and waits for its answer.
    fn request(
        &self,
        op: LocalOp,
        offset: u64,
        data: Vec<u8>,
    ) -> impl Future<Output = Result<Vec<u8>, IoError>> + Send + 'static {
        let (inner, handle) = (Arc::clone(&self.inner), self.handle);
        async move {
            let request_len = match op {
                LocalOp::Read | LocalOp::Write => Some(data.len() as u64),
                LocalOp::Zero { len, .. } => Some(len),
                LocalOp::Flush => None,
            };
            if request_len == Some(0) {
                return Ok(data);
            }
            // Held until the answer is here; never refused, because nobody closes the semaphore.
            // Those that may wait for space leave room for others, which may make it.
            let takes_space = match op {
                LocalOp::Write => true,
                LocalOp::Zero { mode, .. } => mode != ZeroMode::Discard,
                LocalOp::Read | LocalOp::Flush => false,
            };
            let _write = match takes_space {
                true => Some(inner.writes.acquire().await.map_err(|_| IoError::Closed)?),
                false => None,
            };
            let _permit = inner.permits.acquire().await.map_err(|_| IoError::Closed)?;
            let (reply, answer) = oneshot::channel();
            let request = LocalRequest { handle, op, offset, data, reply };
            inner.sender.send(request).map_err(|error| match error {
                MailError::Full(_) => IoError::Busy,
                MailError::Closed(_) => IoError::Closed,
            })?;
            // A dropped reply channel means that the reactor ended first.
            answer.await.unwrap_or(Err(IoError::Closed))
        }
    }
}
