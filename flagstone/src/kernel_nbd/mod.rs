//! Volumes as `/dev/nbdN`, for kernels without ublk: attached, detached, listed, resized, and taken over when the daemon starts
//! again.
//!
//! ```text
//!   attach:   the node makes a pair of sockets and serves one -> the kernel is given the other
//!   a start:  for each device that is ours: the same, and the kernel takes the new socket for the old
//!   detach:   disconnect -> the node lets go
//! ```
//!
//! Which volume a device belongs to is kept by the kernel, as its back-end identifier. While no daemon is there, requests wait
//! ([`WAIT`]); what it had sent and got no answer to it sends again once it has another socket: it looks every [`RESEND`].
//! Requests on a socket that lives are never given up. See docs/decisions/0019-kernel-nbd-by-netlink.md.
//!
//! Invariants:
//! 1. One thing is done with devices at a time, to its end, also when whoever asked is gone; a stop waits for it. A
//!    change of size waits for what is under way on the device, and so needs the node until it is over.
//! 2. A size is told only to a device whose socket is this node's: on others the kernel would wait for
//!    requests that wait for a socket.

mod control;
mod device;
mod keep;
mod sysfs;

pub use device::{KernelNbdDevice, KernelNbdError, KernelNbdState};

use crate::node::{NodeHandle, UblkTarget, UblkVolume};
use control::Control;
use flagstone_block::BLOCK_SIZE;
use flagstone_nbd::netlink::{Device, Terms};
use flagstone_nbd::{Style, transmission_flags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use sysfs::Known;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// How long requests wait for a daemon before they fail.
pub const WAIT: Duration = Duration::from_secs(24 * 60 * 60);
/// How long the kernel waits for an answer until it looks whether there is another socket.
pub const RESEND: Duration = Duration::from_secs(2);
/// The largest N of `/dev/nbdN`: the kernel's minor numbers have 20 bits, of which 5 are for partitions.
pub const NUMBER_MAX: u32 = (1 << 15) - 1;

/// How long an attach waits for a device that was left, and a detach for the node.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often is looked.
const INTERVAL: Duration = Duration::from_millis(10);
/// How long a stop waits for what is being done until it ends what that may be waiting for.
const STOP_PATIENCE: Duration = Duration::from_secs(1);
/// How long the request of a user waits for the kernel to have taken a new size.
const RESIZE_PATIENCE: Duration = Duration::from_secs(5);

/// The block device with this number.
#[must_use]
pub fn path_of(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{number}"))
}

/// Devices of Flagstone that are there now, whoever's they are: so many connections may be wanted at the start.
#[must_use]
pub fn devices_left() -> u32 {
    let known = sysfs::devices().unwrap_or_default();
    known.iter().filter(|known| !known.is_detached()).count() as u32
}

/// Numbers of the devices that this node serves, or is to serve.
type Ours = BTreeSet<u32>;

/// Devices of a node.
#[derive(Clone, Debug)]
pub struct KernelNbd {
    node: NodeHandle,
    /// Held by what is being done.
    ours: Arc<Mutex<Ours>>,
    stopping: Arc<AtomicBool>,
}

impl KernelNbd {
    /// Of this node.
    #[must_use]
    pub fn new(node: NodeHandle) -> Self {
        Self { node, ours: Arc::default(), stopping: Arc::default() }
    }

    /// Waits until what is being done is over, and lets nothing else begin as long as the answer is kept. Requests that wait
    /// for space, which a change of size may be waiting for, are told that there is none.
    pub async fn rest(&self) -> impl Send + use<> {
        self.stopping.store(true, Ordering::Relaxed);
        let turn = Arc::clone(&self.ours).lock_owned();
        tokio::pin!(turn);
        tokio::select! {
            turn = &mut turn => return turn,
            () = tokio::time::sleep(STOP_PATIENCE) => self.node.end_waits(),
        }
        turn.await
    }

    fn check_running(&self) -> Result<(), KernelNbdError> {
        if self.stopping.load(Ordering::Relaxed) { Err(KernelNbdError::Ended) } else { Ok(()) }
    }

    /// Makes a device of a volume, or of a snapshot, which can only be read. If it is one already, that one is told, and
    /// nothing is changed.
    ///
    /// # Errors
    /// [`KernelNbdError`]; there is no new device then.
    pub async fn attach(
        &self,
        name: String,
        number: Option<u32>,
    ) -> Result<(KernelNbdDevice, bool), KernelNbdError> {
        self.alone(
            |this, mut ours| async move { this.attach_alone(&mut ours, &name, number).await },
        )
        .await
    }

    async fn attach_alone(
        &self,
        ours: &mut Ours,
        name: &str,
        number: Option<u32>,
    ) -> Result<(KernelNbdDevice, bool), KernelNbdError> {
        let mut volume = self.volume(name).await?;
        if let Some(known) = find(&volume).await? {
            // One that waits is not left to wait, and there are never two.
            ours.insert(known.number);
            let give_up = Instant::now() + PATIENCE;
            while volume.nbd != Some(known.number) && !self.take_over(&known, &volume).await? {
                self.check_running()?;
                if Instant::now() > give_up {
                    return Err(KernelNbdError::NotTaken { number: known.number });
                }
                volume = self.volume(name).await?;
            }
            let volume = self.volume(name).await?;
            return Ok((device::of(&known, Some(&volume)), false));
        }
        on_thread(|| Control::open().map(drop)).await?;
        let candidates = match number {
            Some(number) => number..number + 1,
            None => 0..NUMBER_MAX + 1,
        };
        for candidate in candidates {
            if on_thread(move || Ok(sysfs::is_taken(candidate))).await? {
                continue;
            }
            match self.connect(&volume, candidate).await {
                // Somebody was faster, or still has it open since it was detached.
                Err(KernelNbdError::Refused { errno: Errno::BUSY | Errno::EXIST, .. }) => {
                    self.leave(candidate).await?;
                }
                Err(error) => return Err(error),
                Ok(known) => {
                    ours.insert(candidate);
                    tracing::info!(volume = name, "attached as /dev/nbd{candidate}");
                    let volume = self.volume(name).await?;
                    // It may have been resized meanwhile.
                    self.tell_size(candidate, volume.uuid, volume.size_bytes).await?;
                    return Ok((device::of(&known, Some(&volume)), true));
                }
            }
        }
        Err(KernelNbdError::Taken { number: number.unwrap_or(NUMBER_MAX) })
    }

    async fn connect(&self, volume: &UblkVolume, number: u32) -> Result<Known, KernelNbdError> {
        let socket = self.node.serve_kernel_nbd(volume, number).await?;
        let volume = volume.clone();
        on_thread(move || {
            let device = Device {
                number,
                size_bytes: Some(volume.size_bytes),
                backend: &sysfs::backend(volume.uuid),
                socket: Some(descriptor(&socket)),
            };
            let terms = Terms {
                flags: transmission_flags(volume.read_only, Style::Simple),
                block_bytes: BLOCK_SIZE as u64,
                wait_seconds: WAIT.as_secs(),
            };
            let mut control = Control::open()?;
            control.connect(&device, &terms)?;
            let Some(known) = sysfs::known(number) else {
                control.disconnect(number)?;
                return Err(KernelNbdError::Old);
            };
            sysfs::set_queue(number);
            Ok(known)
        })
        .await
    }

    /// Gives a device that waits another socket; whether the kernel took it.
    async fn take_over(&self, known: &Known, volume: &UblkVolume) -> Result<bool, KernelNbdError> {
        let number = known.number;
        if volume.read_only && !known.read_only {
            return Err(KernelNbdError::ReadOnly { number });
        }
        let socket = match self.node.serve_kernel_nbd(volume, number).await {
            // The connection before has still something under way.
            Err(crate::node::ControlError::KernelNbdLeaving { .. }) => {
                tokio::time::sleep(INTERVAL).await;
                return Ok(false);
            }
            socket => socket?,
        };
        let uuid = volume.uuid;
        on_thread(move || {
            let backend = sysfs::backend(uuid);
            let socket = Some(descriptor(&socket));
            Control::open()?.reconfigure(&Device {
                number,
                size_bytes: None,
                backend: &backend,
                socket,
            })
        })
        .await?;
        // The kernel does not say whether it has taken the socket. If not nobody has it now, and the node sees its end.
        tokio::time::sleep(10 * INTERVAL).await;
        let volume = self.node.ublk_volume(UblkTarget::Uuid(uuid)).await?;
        if volume.nbd != Some(number) {
            return Ok(false);
        }
        tracing::info!(volume = volume.name, "/dev/nbd{number} is served again");
        on_thread(move || {
            sysfs::set_queue(number);
            Ok(())
        })
        .await?;
        Ok(true)
    }

    /// Tells the kernel the size of a volume that this node serves as a device, if it has another one.
    async fn tell_size(
        &self,
        number: u32,
        uuid: [u8; 16],
        size_bytes: u64,
    ) -> Result<(), KernelNbdError> {
        on_thread(move || {
            let known = sysfs::known_of(number, uuid).ok_or(KernelNbdError::NotOurs { number })?;
            if known.size_bytes == size_bytes {
                return Ok(());
            }
            let (backend, size_bytes) = (sysfs::backend(uuid), Some(size_bytes));
            let device = Device { number, size_bytes, backend: &backend, socket: None };
            Control::open()?.reconfigure(&device)
        })
        .await
    }

    /// Takes the device of a volume or snapshot away; without `force` only if it is not in use.
    ///
    /// # Errors
    /// `NotAttached`, `InUse`; [`KernelNbdError`].
    pub async fn detach(&self, name: String, force: bool) -> Result<(), KernelNbdError> {
        self.alone(|this, mut ours| async move {
            let volume = this.volume(&name).await?;
            let Some(Known { number, uuid, .. }) = find(&volume).await? else {
                return Err(KernelNbdError::NotAttached { name });
            };
            let served = volume.nbd;
            let removed = on_thread(move || {
                if served == Some(number) && !force && sysfs::is_claimed(number) {
                    let by = "it is mounted, or a program has it open".to_owned();
                    return Err(KernelNbdError::InUse { number, by });
                }
                remove(number, uuid, force)
            })
            .await;
            let is_anothers = matches!(removed, Err(KernelNbdError::NotOurs { .. }));
            if !is_anothers {
                removed?;
            }
            ours.remove(&number);
            this.leave(number).await?;
            if is_anothers {
                // Somebody else was faster.
                return Err(KernelNbdError::NotAttached { name });
            }
            tracing::info!(volume = name, "/dev/nbd{number} is detached");
            Ok(())
        })
        .await
    }

    /// Has the node let go of a device.
    async fn leave(&self, number: u32) -> Result<(), KernelNbdError> {
        let give_up = Instant::now() + PATIENCE;
        while !self.node.leave_kernel_nbd(number).await? {
            if Instant::now() > give_up {
                return Err(KernelNbdError::NotTaken { number });
            }
            tokio::time::sleep(INTERVAL).await;
        }
        Ok(())
    }

    /// The devices of this node's volumes and snapshots, and those of other Flagstone processes.
    ///
    /// # Errors
    /// [`KernelNbdError`].
    pub async fn list(&self) -> Result<Vec<KernelNbdDevice>, KernelNbdError> {
        let known = on_thread(|| Ok(sysfs::devices()?)).await?;
        let mut devices = Vec::with_capacity(known.len());
        for known in known {
            let volume = self.node.ublk_volume(UblkTarget::Uuid(known.uuid)).await.ok();
            let served = volume.as_ref().is_some_and(|volume| volume.nbd == Some(known.number));
            let known =
                if served { known } else { on_thread(move || Ok(looked_at(known))).await? };
            devices.push(device::of(&known, volume.as_ref()));
        }
        Ok(devices)
    }

    /// Tells the kernel that a volume has another size, if it is attached. What is under way on the device must end before: who
    /// asked waits for that for some seconds only, and then it is done later.
    pub async fn resized(&self, name: String) {
        let is_attached = self.volume(&name).await.is_ok_and(|volume| volume.nbd.is_some());
        if is_attached {
            let this = self.clone();
            let telling = tokio::spawn(async move {
                let told = this.alone(|this, turn| async move {
                    let _turn = turn;
                    this.tell_sizes().await
                });
                if let Err(error) = told.await {
                    tracing::warn!(volume = name, %error, "the kernel's NBD client was not told the new size");
                }
            });
            let _ = tokio::time::timeout(RESIZE_PATIENCE, telling).await;
        }
    }

    /// Tells the kernel the sizes of all that is served. Not while requests of a pool wait for space: the kernel would wait for
    /// them, and whoever else asks it for something over netlink, for the kernel.
    async fn tell_sizes(&self) -> Result<(), KernelNbdError> {
        for device in self.node.served_kernel_nbd().await?.iter().filter(|device| !device.full) {
            self.tell_size(device.number, device.uuid, device.size_bytes).await?;
        }
        Ok(())
    }

    async fn volume(&self, name: &str) -> Result<UblkVolume, KernelNbdError> {
        Ok(self.node.ublk_volume(UblkTarget::Named(name.to_owned())).await?)
    }

    /// Does something with devices when nothing else is done with them, to its end.
    async fn alone<T: Send + 'static, F>(
        &self,
        work: impl FnOnce(Self, Turn) -> F,
    ) -> Result<T, KernelNbdError>
    where
        F: Future<Output = Result<T, KernelNbdError>> + Send + 'static,
    {
        let turn = Arc::clone(&self.ours).lock_owned().await;
        self.check_running()?;
        let task = tokio::spawn(work(self.clone(), turn));
        task.await.unwrap_or(Err(KernelNbdError::Ended))
    }
}

/// The devices of Flagstone on this machine, without a daemon: whose they are is not known then.
///
/// # Errors
/// [`KernelNbdError`].
pub fn list_devices() -> Result<Vec<KernelNbdDevice>, KernelNbdError> {
    let known = sysfs::devices()?.into_iter().map(looked_at);
    Ok(known.map(|known| device::of(&known, None)).collect())
}

/// Takes a device away, whoever serves it. What waits for it fails.
///
/// # Errors
/// `NotOurs`; `InUse` without `force`.
pub fn remove_device(number: u32, force: bool) -> Result<KernelNbdDevice, KernelNbdError> {
    let known = sysfs::known(number).ok_or(KernelNbdError::NotOurs { number })?;
    remove(number, known.uuid, force)?;
    Ok(device::of(&known, None))
}

fn remove(number: u32, uuid: [u8; 16], force: bool) -> Result<(), KernelNbdError> {
    if let Some(by) = sysfs::use_of(number)?.filter(|_| !force) {
        return Err(KernelNbdError::InUse { number, by });
    }
    let mut control = Control::open()?;
    // The kernel disconnects by number alone, whoever has it by now: so this is asked last.
    sysfs::known_of(number, uuid).ok_or(KernelNbdError::NotOurs { number })?;
    control.disconnect(number)?;
    let after = sysfs::known(number);
    if after.is_some_and(|after| after.uuid != uuid) {
        // Another has it already, and its queue.
        return Ok(());
    }
    if after.is_some() {
        // Somebody has it open, so the kernel keeps it, and would take a socket for it: that must not be.
        let backend = sysfs::backend(uuid);
        let device = Device { number, size_bytes: Some(0), backend: &backend, socket: None };
        // Most kernels take none for it anyway, and refuse.
        if let Err(error) = control.reconfigure(&device).or_else(is_over) {
            tracing::warn!(%error, "/dev/nbd{number} is still open, and may be served again by the next daemon");
        }
    }
    sysfs::reset_queue(number);
    Ok(())
}

/// The device of a volume or snapshot, if it has one.
async fn find(volume: &UblkVolume) -> Result<Option<Known>, KernelNbdError> {
    let (uuid, served) = (volume.uuid, volume.nbd);
    on_thread(move || {
        if let Some(number) = served {
            // If it was taken away the node may not have seen that yet.
            return Ok(sysfs::known_of(number, uuid));
        }
        let of_it = sysfs::devices()?.into_iter().filter(|known| known.uuid == uuid);
        Ok(of_it.map(looked_at).find(|known| !known.is_detached()))
    })
    .await
}

/// A device that this node does not serve, with what the kernel would take for it: one that was detached and is still open
/// looks like one that waits.
fn looked_at(known: Known) -> Known {
    let Known { number, uuid, .. } = known;
    let backend = sysfs::backend(uuid);
    let nothing = Device { number, size_bytes: None, backend: &backend, socket: None };
    let asked = Control::open().and_then(|mut control| control.reconfigure(&nothing));
    let over = asked.is_err_and(|error| is_over(error).is_ok());
    Known { size_bytes: if over { 0 } else { known.size_bytes }, ..known }
}

/// The kernel's answer if a device was disconnected.
fn is_over(error: KernelNbdError) -> Result<(), KernelNbdError> {
    match error {
        KernelNbdError::Refused { errno: Errno::INVAL, .. } => Ok(()),
        error => Err(error),
    }
}

/// As the kernel is told of it. A file descriptor is not negative.
fn descriptor(socket: &OwnedFd) -> u32 {
    socket.as_raw_fd().unsigned_abs()
}

/// Runs what may wait for the kernel on a thread that serves nobody.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KernelNbdError> + Send + 'static,
) -> Result<T, KernelNbdError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(KernelNbdError::Ended))
}

/// The turn of whoever does something with devices.
type Turn = OwnedMutexGuard<Ours>;
