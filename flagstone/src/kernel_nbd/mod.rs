//! Volumes as `/dev/nbdN`, for kernels without ublk: attached, detached, listed, resized, and taken over when the daemon starts
//! again.
//!
//! ```text
//!   attach:   the node makes a pair of sockets and serves one -> the kernel is given the other
//!   a start:  for each device that is ours: the same, and the kernel takes the new socket for the old
//!   detach:   disconnect
//! ```
//!
//! Which volume a device belongs to is kept by the kernel, as its back-end identifier. While no daemon is there, requests wait
//! ([`WAIT`]); what it had sent and got no answer to it sends again once it has another socket and [`RESEND`] is over.
//! Requests on a socket that lives are never given up. See docs/decisions/0019-kernel-nbd-by-netlink.md.

mod control;
mod sysfs;

use crate::node::{self, NodeHandle, UblkTarget, UblkVolume};
use control::Control;
use flagstone_block::BLOCK_SIZE;
use flagstone_nbd::netlink::{Device, Terms};
use flagstone_nbd::{Style, transmission_flags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sysfs::Known;
use tokio::sync::Mutex;

/// How long requests wait for a daemon before they fail.
pub const WAIT: Duration = Duration::from_secs(600);
/// How long the kernel waits for an answer until it looks whether there is another socket.
pub const RESEND: Duration = Duration::from_secs(2);
/// What that is for devices of others (`BLK_MQ` has 30 s).
const RESEND_OTHERS: Duration = Duration::from_secs(30);
/// The largest N of `/dev/nbdN`: the kernel's minor numbers have 20 bits, of which 5 are for partitions.
pub const NUMBER_MAX: u32 = (1 << 15) - 1;

/// How long the kernel may take to find out that the process before has ended.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the node takes at most to see that the kernel did not take a socket.
const INTERVAL: Duration = Duration::from_millis(100);

/// The block device with this number.
#[must_use]
pub fn path_of(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{number}"))
}

/// A volume or snapshot as a device of the kernel's NBD client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelNbdDevice {
    /// The N of `/dev/nbdN`.
    pub number: u32,
    /// Where it is.
    pub path: PathBuf,
    /// Its volume or snapshot; `None` if this daemon has none such.
    pub volume: Option<String>,
    /// Bytes, as the kernel has it.
    pub size_bytes: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// This daemon serves it; otherwise its requests wait, or another does.
    pub served: bool,
}

/// Why something with such a device failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelNbdError {
    /// There is no NBD client in the kernel.
    #[error("the kernel's NBD client is not there: load it with `modprobe nbd`")]
    NoClient,
    /// The kernel refused.
    #[error("{call} was refused by the kernel's NBD client: {errno}{}", advice(*.errno))]
    Refused {
        /// What was asked.
        call: &'static str,
        /// The error.
        errno: Errno,
    },
    /// The kernel's answer has no sense.
    #[error("the kernel's NBD client gave no answer that could be understood to {call}")]
    Answer {
        /// What was asked.
        call: &'static str,
    },
    /// A file of the kernel's can't be used.
    #[error("{0}")]
    Sysfs(#[from] io::Error),
    /// The node.
    #[error(transparent)]
    Node(#[from] node::ControlError),
    /// It has no such device.
    #[error("{name:?} is not attached to the kernel's NBD client")]
    NotAttached {
        /// The volume or snapshot.
        name: String,
    },
    /// No device of ours has this number.
    #[error("/dev/nbd{number} is not a device of Flagstone")]
    NotOurs {
        /// Which.
        number: u32,
    },
    /// Another device has the number.
    #[error("/dev/nbd{number} is there already")]
    Taken {
        /// Which.
        number: u32,
    },
    /// Somebody has it in use.
    #[error("/dev/nbd{number} is in use: {by}")]
    InUse {
        /// Which.
        number: u32,
        /// How.
        by: String,
    },
    /// The kernel did not take the socket.
    #[error("/dev/nbd{number} still waits for the process that served it before")]
    NotTaken {
        /// Which.
        number: u32,
    },
    /// The process is ending.
    #[error("the daemon is stopping")]
    Ended,
}

fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM | Errno::ACCESS => "; it needs CAP_SYS_ADMIN",
        _ => "",
    }
}

/// Devices of a node.
#[derive(Clone, Debug)]
pub struct KernelNbd {
    node: NodeHandle,
    /// Held while a device is attached: nobody gets two.
    attaching: Arc<Mutex<()>>,
}

impl KernelNbd {
    /// Of this node.
    #[must_use]
    pub fn new(node: NodeHandle) -> Self {
        Self { node, attaching: Arc::default() }
    }

    /// Makes a device of a volume, or of a snapshot, which can only be read. If it is one already, that one is told, and
    /// nothing is changed.
    ///
    /// # Errors
    /// [`KernelNbdError`]; there is no new device then.
    pub async fn attach(
        &self,
        name: &str,
        number: Option<u32>,
    ) -> Result<(KernelNbdDevice, bool), KernelNbdError> {
        let _only = self.attaching.lock().await;
        let volume = self.node.ublk_volume(UblkTarget::Named(name.to_owned())).await?;
        if let Some(number) = volume.nbd {
            let known = on_thread(move || Ok(sysfs::known(number))).await?;
            let known = known.ok_or(KernelNbdError::NotOurs { number })?;
            return Ok((told(&known, Some(&volume)), false));
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
                // Somebody was faster.
                Err(KernelNbdError::Refused { errno: Errno::BUSY, .. }) => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    tracing::info!(volume = name, "attached as /dev/nbd{candidate}");
                    let known = on_thread(move || Ok(sysfs::known(candidate))).await?;
                    let known = known.ok_or(KernelNbdError::NotOurs { number: candidate })?;
                    return Ok((
                        KernelNbdDevice { served: true, ..told(&known, Some(&volume)) },
                        true,
                    ));
                }
            }
        }
        Err(KernelNbdError::Taken { number: number.unwrap_or(NUMBER_MAX) })
    }

    async fn connect(&self, volume: &UblkVolume, number: u32) -> Result<(), KernelNbdError> {
        let socket = self.node.serve_kernel_nbd(volume, number).await?;
        let volume = volume.clone();
        on_thread(move || {
            let device = Device {
                number,
                size_bytes: Some(volume.size_bytes),
                backend: &sysfs::backend(volume.note),
                socket: Some(descriptor(&socket)),
            };
            let terms = Terms {
                flags: transmission_flags(volume.read_only, Style::Simple),
                block_bytes: BLOCK_SIZE as u64,
                wait_seconds: WAIT.as_secs(),
            };
            Control::open()?.connect(&device, &terms)?;
            if let Err(error) = sysfs::set_patience(number, RESEND.as_millis() as u32) {
                tracing::warn!(%error, "after a restart of the daemon /dev/nbd{number} may wait for half a minute");
            }
            Ok(())
        })
        .await
    }

    /// Takes the device of a volume or snapshot away; without `force` only if it is not in use.
    ///
    /// # Errors
    /// `NotAttached`, `InUse`; [`KernelNbdError`].
    pub async fn detach(&self, name: &str, force: bool) -> Result<(), KernelNbdError> {
        let _only = self.attaching.lock().await;
        let volume = self.node.ublk_volume(UblkTarget::Named(name.to_owned())).await?;
        let not_attached = || KernelNbdError::NotAttached { name: name.to_owned() };
        let number = volume.nbd.ok_or_else(not_attached)?;
        on_thread(move || remove(number, force)).await?;
        tracing::info!(volume = name, "/dev/nbd{number} is detached");
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
            let volume = self.node.ublk_volume(UblkTarget::Noted(known.note)).await.ok();
            devices.push(told(&known, volume.as_ref()));
        }
        Ok(devices)
    }

    /// Tells the kernel that a volume has another size, if it is attached.
    ///
    /// # Errors
    /// [`KernelNbdError`].
    pub async fn resized(&self, name: &str) -> Result<(), KernelNbdError> {
        let volume = self.node.ublk_volume(UblkTarget::Named(name.to_owned())).await?;
        let Some(number) = volume.nbd else { return Ok(()) };
        on_thread(move || {
            let backend = sysfs::backend(volume.note);
            let size_bytes = Some(volume.size_bytes);
            let device = Device { number, size_bytes, backend: &backend, socket: None };
            Control::open()?.reconfigure(&device)
        })
        .await
    }

    /// Serves again all devices of this node's volumes that the process before has left; returns how many. One that can't be is
    /// told in the log, and keeps nobody else from being served.
    ///
    /// # Errors
    /// [`KernelNbdError`], if the kernel can't be asked which there are.
    pub async fn recover(&self) -> Result<u32, KernelNbdError> {
        let known = on_thread(|| Ok(sysfs::devices()?)).await?;
        let mut under_way = Vec::new();
        for known in known {
            let volume = match self.node.ublk_volume(UblkTarget::Noted(known.note)).await {
                Ok(volume) => volume,
                // Another daemon's, or of a pool that this one has not got.
                Err(node::ControlError::NoSuchVolume { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            let this = self.clone();
            under_way.push(tokio::spawn(async move { this.take_over(known, &volume).await }));
        }
        let mut served = 0;
        for task in under_way {
            match task.await.unwrap_or(Err(KernelNbdError::Ended)) {
                Ok(()) => served += 1,
                Err(error) => tracing::error!(%error, "a block device can't be served again"),
            }
        }
        Ok(served)
    }

    async fn take_over(&self, known: Known, volume: &UblkVolume) -> Result<(), KernelNbdError> {
        let number = known.number;
        let begun = Instant::now();
        loop {
            let socket = self.node.serve_kernel_nbd(volume, number).await?;
            let wanted = volume.clone();
            on_thread(move || {
                let backend = sysfs::backend(wanted.note);
                let (size_bytes, socket) = (Some(wanted.size_bytes), Some(descriptor(&socket)));
                Control::open()?.reconfigure(&Device {
                    number,
                    size_bytes,
                    backend: &backend,
                    socket,
                })
            })
            .await?;
            // The kernel does not say whether it has taken the socket. If not nobody has it now, and the node sees its end.
            tokio::time::sleep(INTERVAL).await;
            let target = UblkTarget::Noted(known.note);
            if self.node.ublk_volume(target).await?.nbd == Some(number) {
                let waited_ms = begun.elapsed().as_millis() as u64;
                tracing::info!(volume = volume.name, waited_ms, "/dev/nbd{number} is served again");
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(KernelNbdError::NotTaken { number });
            }
        }
    }
}

/// The devices of Flagstone on this machine, without a daemon: whose they are is not known then.
///
/// # Errors
/// [`KernelNbdError`].
pub fn list_devices() -> Result<Vec<KernelNbdDevice>, KernelNbdError> {
    Ok(sysfs::devices()?.iter().map(|known| told(known, None)).collect())
}

/// Takes a device away, whoever serves it. What waits for it fails.
///
/// # Errors
/// `NotOurs`; `InUse` without `force`.
pub fn remove_device(number: u32, force: bool) -> Result<KernelNbdDevice, KernelNbdError> {
    let known = sysfs::known(number).ok_or(KernelNbdError::NotOurs { number })?;
    remove(number, force)?;
    Ok(told(&known, None))
}

fn remove(number: u32, force: bool) -> Result<(), KernelNbdError> {
    if let Some(by) = sysfs::use_of(number)?.filter(|_| !force) {
        return Err(KernelNbdError::InUse { number, by });
    }
    Control::open()?.disconnect(number)?;
    // The device stays, for whoever connects it next.
    Ok(sysfs::set_patience(number, RESEND_OTHERS.as_millis() as u32)?)
}

fn told(known: &Known, volume: Option<&UblkVolume>) -> KernelNbdDevice {
    KernelNbdDevice {
        number: known.number,
        path: path_of(known.number),
        volume: volume.map(|volume| volume.name.clone()),
        size_bytes: known.size_bytes,
        read_only: known.read_only,
        served: volume.is_some_and(|volume| volume.nbd == Some(known.number)),
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
