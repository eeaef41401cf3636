//! The handle: one method per request, each a message to the reactor thread and its answer.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::sync::{oneshot, watch};

use super::super::diff::{DiffPage, DiffQuery, DiffTarget};
use super::super::files::PoolFile;
use super::super::limits::LIST_VOLUMES;
use super::super::scrub::ScrubAction;
use super::super::ublk::{UblkTarget, UblkVolume};
use super::super::usage::Usage;
use super::{
    ControlError, ControlRequest, NewClone, NewRollback, NewSnapshot, NodeExit, NodeStats,
    PoolStatus, Reply, RolledBack, ServedNbd, SettingsChange, SnapshotStatus, VolumeStatus,
};
use flagstone_engine::{ScrubReport, Shrink};
use flagstone_ublk::DeviceInfo;

/// What the reactor does not share with the handle but the handle needs.
pub(in crate::node) type Post =
    Arc<dyn Fn(ControlRequest) -> Result<(), (ControlError, Box<ControlRequest>)> + Send + Sync>;

/// The reactor thread, until somebody has waited for its end.
pub(in crate::node) type Thread = Arc<Mutex<Option<JoinHandle<Result<(), NodeExit>>>>>;

/// A running node. Dropping all handles does not stop it; [`NodeHandle::shutdown`] does.
#[derive(Clone)]
pub struct NodeHandle {
    pub(in crate::node) post: Post,
    pub(in crate::node) thread: Thread,
    pub(in crate::node) stopped: watch::Receiver<bool>,
    pub(in crate::node) nbd_tcp: Option<SocketAddr>,
    pub(in crate::node) files: Arc<[PoolFile]>,
}

impl fmt::Debug for NodeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeHandle").field("nbd_tcp", &self.nbd_tcp).finish_non_exhaustive()
    }
}

impl NodeHandle {
    /// Sends any request. [`ControlError::Stopping`] and [`ControlError::Overloaded`] are the only
    /// refusals; the others come through the request's reply channel.
    ///
    /// # Errors
    /// The request was not taken.
    pub fn send(&self, request: ControlRequest) -> Result<(), ControlError> {
        (self.post)(request).map_err(|(error, _)| error)
    }

    pub(in crate::node) async fn ask<T>(
        &self,
        request: impl FnOnce(Reply<T>) -> ControlRequest,
    ) -> Result<T, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.send(request(reply))?;
        // A dropped reply channel means that the reactor ended first.
        answer.await.unwrap_or(Err(ControlError::Stopping))
    }

    /// See [`ControlRequest::CreateVolume`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn create_volume(
        &self,
        name: String,
        size_bytes: u64,
        uuid: [u8; 16],
        pool: Option<PathBuf>,
    ) -> Result<VolumeStatus, ControlError> {
        self.create_volume_with(name, size_bytes, uuid, pool, SettingsChange::default()).await
    }

    /// See [`ControlRequest::CreateVolume`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn create_volume_with(
        &self,
        name: String,
        size_bytes: u64,
        uuid: [u8; 16],
        pool: Option<PathBuf>,
        settings: SettingsChange,
    ) -> Result<VolumeStatus, ControlError> {
        let request =
            |reply| ControlRequest::CreateVolume { name, size_bytes, uuid, pool, settings, reply };
        self.ask(request).await
    }

    /// See [`ControlRequest::UblkVolume`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn ublk_volume(&self, target: UblkTarget) -> Result<UblkVolume, ControlError> {
        self.ask(|reply| ControlRequest::UblkVolume { target, reply }).await
    }

    /// See [`ControlRequest::ServeUblk`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn serve_ublk(
        &self,
        volume: &UblkVolume,
        device: DeviceInfo,
    ) -> Result<(), ControlError> {
        let handle = volume.handle;
        self.ask(|reply| ControlRequest::ServeUblk { handle, device, reply }).await
    }

    /// See [`ControlRequest::LeaveUblk`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn leave_ublk(&self, number: u32) -> Result<(), ControlError> {
        self.ask(|reply| ControlRequest::LeaveUblk { number, reply }).await
    }

    /// See [`ControlRequest::ServeKernelNbd`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn serve_kernel_nbd(
        &self,
        volume: &UblkVolume,
        number: u32,
    ) -> Result<OwnedFd, ControlError> {
        let handle = volume.handle;
        self.ask(|reply| ControlRequest::ServeKernelNbd { handle, number, reply }).await
    }

    /// See [`ControlRequest::AwaitKernelNbd`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn await_kernel_nbd(&self, waiting: Vec<(u32, u64)>) -> Result<(), ControlError> {
        self.ask(|reply| ControlRequest::AwaitKernelNbd { waiting, reply }).await
    }

    /// See [`ControlRequest::ServedKernelNbd`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn served_kernel_nbd(&self) -> Result<Vec<ServedNbd>, ControlError> {
        self.ask(|reply| ControlRequest::ServedKernelNbd { reply }).await
    }

    /// See [`ControlRequest::EndWaits`].
    pub fn end_waits(&self) {
        // A node that has no room for it is asked again, or ends.
        let _ = (self.post)(ControlRequest::EndWaits);
    }

    /// See [`ControlRequest::LeaveKernelNbd`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn leave_kernel_nbd(&self, number: u32) -> Result<bool, ControlError> {
        self.ask(|reply| ControlRequest::LeaveKernelNbd { number, reply }).await
    }

    /// See [`ControlRequest::SetVolume`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn set_volume(
        &self,
        name: String,
        change: SettingsChange,
    ) -> Result<VolumeStatus, ControlError> {
        self.ask(|reply| ControlRequest::SetVolume { name, change, reply }).await
    }

    /// See [`ControlRequest::DeleteVolume`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn delete_volume(
        &self,
        name: String,
        force: bool,
    ) -> Result<VolumeStatus, ControlError> {
        let snapshots = false;
        self.ask(|reply| ControlRequest::DeleteVolume { name, force, snapshots, reply }).await
    }

    /// As [`NodeHandle::delete_volume`], with all snapshots of the volume.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn delete_volume_and_snapshots(
        &self,
        name: String,
        force: bool,
    ) -> Result<VolumeStatus, ControlError> {
        let snapshots = true;
        self.ask(|reply| ControlRequest::DeleteVolume { name, force, snapshots, reply }).await
    }

    /// See [`ControlRequest::CloneSnapshot`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn clone_snapshot(&self, clone: NewClone) -> Result<VolumeStatus, ControlError> {
        self.ask(|reply| ControlRequest::CloneSnapshot { clone, reply }).await
    }

    /// See [`ControlRequest::Rollback`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn rollback(&self, rollback: NewRollback) -> Result<RolledBack, ControlError> {
        self.ask(|reply| ControlRequest::Rollback { rollback, reply }).await
    }

    /// See [`ControlRequest::ResizeVolume`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn resize_volume(
        &self,
        name: String,
        size_bytes: u64,
        shrink: Shrink,
    ) -> Result<VolumeStatus, ControlError> {
        self.ask(|reply| ControlRequest::ResizeVolume { name, size_bytes, shrink, reply }).await
    }

    /// See [`ControlRequest::ListVolumes`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn volumes(
        &self,
        mut after: Option<String>,
        limit: usize,
    ) -> Result<Vec<VolumeStatus>, ControlError> {
        let mut volumes = Vec::new();
        loop {
            // The reactor is asked for a few at a time, so that clients' requests come in between.
            let part = (limit - volumes.len()).min(LIST_VOLUMES);
            let from = after.take();
            let page = |reply| ControlRequest::ListVolumes { after: from, limit: part, reply };
            let page = self.ask(page).await?;
            let is_last = page.len() < part;
            volumes.extend(page);
            if is_last || volumes.len() == limit {
                return Ok(volumes);
            }
            after = volumes.last().map(|volume| volume.name.clone());
        }
    }

    /// See [`ControlRequest::GetVolume`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn volume(&self, name: String) -> Result<VolumeStatus, ControlError> {
        self.ask(|reply| ControlRequest::GetVolume { name, reply }).await
    }

    /// See [`ControlRequest::TakeSnapshots`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn take_snapshots(
        &self,
        wanted: Vec<NewSnapshot>,
    ) -> Result<Vec<SnapshotStatus>, ControlError> {
        self.ask(|reply| ControlRequest::TakeSnapshots { wanted, reply }).await
    }

    /// See [`ControlRequest::ListSnapshots`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn snapshots(
        &self,
        volume: Option<String>,
        mut after: Option<String>,
        limit: usize,
    ) -> Result<Vec<SnapshotStatus>, ControlError> {
        let mut snapshots = Vec::new();
        loop {
            // As the volumes are asked for.
            let part = (limit - snapshots.len()).min(LIST_VOLUMES);
            let (volume, from) = (volume.clone(), after.take());
            let page =
                |reply| ControlRequest::ListSnapshots { volume, after: from, limit: part, reply };
            let page = self.ask(page).await?;
            let is_last = page.len() < part;
            snapshots.extend(page);
            if is_last || snapshots.len() == limit {
                return Ok(snapshots);
            }
            after = snapshots.last().map(|snapshot| snapshot.name.clone());
        }
    }

    /// See [`ControlRequest::GetSnapshot`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn snapshot(&self, name: String) -> Result<SnapshotStatus, ControlError> {
        self.ask(|reply| ControlRequest::GetSnapshot { name, reply }).await
    }

    /// See [`ControlRequest::DeleteSnapshot`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn delete_snapshot(
        &self,
        name: String,
        force: bool,
    ) -> Result<SnapshotStatus, ControlError> {
        self.ask(|reply| ControlRequest::DeleteSnapshot { name, force, reply }).await
    }

    /// See [`ControlRequest::Diff`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn diff(&self, query: DiffQuery) -> Result<DiffPage, ControlError> {
        self.ask(|reply| ControlRequest::Diff { query, reply }).await
    }

    /// See [`ControlRequest::Usage`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn usage(&self, target: DiffTarget) -> Result<Usage, ControlError> {
        self.ask(|reply| ControlRequest::Usage { target, reply }).await
    }

    /// See [`ControlRequest::PoolStatus`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn pools(&self) -> Result<Vec<PoolStatus>, ControlError> {
        self.ask(|reply| ControlRequest::PoolStatus { reply }).await
    }

    /// See [`ControlRequest::GrowPool`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn grow_pool(&self, pool: PathBuf) -> Result<PoolStatus, ControlError> {
        self.ask(|reply| ControlRequest::GrowPool { pool, reply }).await
    }

    /// See [`ControlRequest::Scrub`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn scrub(
        &self,
        pool: PathBuf,
        action: ScrubAction,
    ) -> Result<Option<ScrubReport>, ControlError> {
        self.ask(|reply| ControlRequest::Scrub { pool, action, reply }).await
    }

    /// See [`ControlRequest::Stats`].
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn stats(&self) -> Result<NodeStats, ControlError> {
        self.ask(|reply| ControlRequest::Stats { reply }).await
    }

    /// The address that the NBD server really listens at, if it does over TCP.
    #[must_use]
    pub const fn nbd_tcp(&self) -> Option<SocketAddr> {
        self.nbd_tcp
    }

    /// The pools whose files have been deleted while they are served, as given in
    /// [`NodeConfig::pools`](super::NodeConfig::pools): their data will be gone when the node ends. Asks the file system.
    pub fn deleted_pools(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().filter(|file| file.is_deleted()).map(PoolFile::path)
    }

    /// Begins the clean stop. Asking again changes nothing; a node that has ended is fine too.
    pub fn shutdown(&self) {
        // Each attempt fails only while the mailbox is full, which the reactor is emptying.
        let mut request = ControlRequest::Shutdown;
        while let Err((ControlError::Overloaded, back)) = (self.post)(request) {
            request = *back;
            std::thread::yield_now();
        }
    }

    /// Completes when the reactor thread has ended, for whatever reason.
    pub async fn stopped(&self) {
        let mut stopped = self.stopped.clone();
        // An error means that the sender is gone, and with it the thread.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }

    /// Waits until the reactor thread has ended and says how. Blocks; the first caller gets the
    /// reason, later ones `Ok`.
    ///
    /// # Errors
    /// [`NodeExit`]: it did not end well.
    pub fn join(&self) -> Result<(), NodeExit> {
        let thread = self.thread.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        match thread {
            Some(thread) => thread.join().unwrap_or(Err(NodeExit::Panicked)),
            None => Ok(()),
        }
    }
}
