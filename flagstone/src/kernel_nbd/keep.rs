//! Devices that wait for a socket get one: those that the process before has left, and any whose connection has ended.

use super::sysfs::{self, Known};
use super::{KernelNbd, KernelNbdError, Ours, looked_at, on_thread};
use crate::node::{ControlError, UblkTarget, UblkVolume};
use std::convert::Infallible;
use std::time::{Duration, Instant};

/// How long a start waits for the kernel to find out that the process before has ended. What is not served by then is served
/// later.
const START: Duration = Duration::from_secs(5);
/// How often is looked whether a device waits.
const LOOK: Duration = Duration::from_secs(2);

/// A device that waits for a socket, and its volume.
type Waiting = (u32, u64);

impl KernelNbd {
    /// Serves again all devices of this node's volumes that the process before has left; returns how many. One that can't be is
    /// told in the log, keeps nobody else from being served, and is tried again later.
    ///
    /// # Errors
    /// [`KernelNbdError`], if the kernel can't be asked which there are.
    pub async fn recover(&self) -> Result<u32, KernelNbdError> {
        self.alone(|this, mut ours| async move { this.recover_alone(&mut ours).await }).await
    }

    async fn recover_alone(&self, ours: &mut Ours) -> Result<u32, KernelNbdError> {
        let looked = || Ok(sysfs::devices()?.into_iter().map(looked_at).collect::<Vec<_>>());
        let mut left = Vec::new();
        for known in on_thread(looked).await?.into_iter().filter(|known| !known.is_detached()) {
            match self.node.ublk_volume(UblkTarget::Uuid(known.uuid)).await {
                Ok(volume) => left.push((known, volume)),
                // Another daemon's, or of a pool that this one has not got.
                Err(ControlError::NoSuchVolume { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let wait = |left: &[(Known, UblkVolume)]| -> Vec<Waiting> {
            left.iter().map(|(known, volume)| (known.number, volume.handle)).collect()
        };
        ours.extend(left.iter().map(|(known, _)| known.number));
        self.node.await_kernel_nbd(wait(&left)).await?;
        let mut under_way = Vec::new();
        for (known, volume) in left {
            let this = self.clone();
            let volume_too = volume.clone();
            let task = tokio::spawn(async move { this.take_over_soon(&known, &volume).await });
            under_way.push((known, volume_too, task));
        }
        let (mut served, mut waiting) = (0, Vec::new());
        for (known, volume, task) in under_way {
            match task.await.unwrap_or(Err(KernelNbdError::Ended)) {
                Ok(()) => served += 1,
                Err(error) => {
                    tracing::error!(volume = volume.name, %error, "a block device can't be served again yet");
                    waiting.push((known, volume));
                }
            }
        }
        self.node.await_kernel_nbd(wait(&waiting)).await?;
        Ok(served)
    }

    async fn take_over_soon(
        &self,
        known: &Known,
        volume: &UblkVolume,
    ) -> Result<(), KernelNbdError> {
        let give_up = Instant::now() + START;
        while !self.take_over(known, volume).await? {
            self.check_running()?;
            if Instant::now() > give_up {
                return Err(KernelNbdError::NotTaken { number: known.number });
            }
        }
        Ok(())
    }

    /// Serves devices again whose connection has ended though this process goes on, and tells the kernel sizes that it could not
    /// be told before.
    pub async fn watch(&self) -> Infallible {
        let mut interval = tokio::time::interval(LOOK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            if self.ours.try_lock().is_ok_and(|ours| ours.is_empty()) {
                continue;
            }
            let looked =
                self.alone(|this, mut ours| async move { this.look_after(&mut ours).await });
            if let Err(error) = looked.await {
                tracing::debug!(%error, "devices of the NBD client can't be looked after");
            }
        }
    }

    async fn look_after(&self, ours: &mut Ours) -> Result<(), KernelNbdError> {
        let served = self.node.served_kernel_nbd().await?;
        let is_served = |number: &u32| served.iter().any(|device| device.number == *number);
        let not_served: Vec<u32> = ours.iter().copied().filter(|n| !is_served(n)).collect();
        let mut waiting = Vec::new();
        for number in not_served {
            match self.look(number).await {
                Ok(Looked::Serves) => {}
                Ok(Looked::Waits(waits)) => waiting.extend(waits),
                Ok(Looked::Gone) => drop(ours.remove(&number)),
                Err(error) => tracing::debug!(%error, "/dev/nbd{number} can't be looked at"),
            }
        }
        self.node.await_kernel_nbd(waiting).await?;
        self.tell_sizes().await
    }

    async fn look(&self, number: u32) -> Result<Looked, KernelNbdError> {
        let looked = move || Ok(sysfs::known(number).map(looked_at));
        let known = on_thread(looked).await?.filter(|known| !known.is_detached());
        let Some(known) = known else { return Ok(Looked::Gone) };
        let volume = match self.node.ublk_volume(UblkTarget::Uuid(known.uuid)).await {
            // Being deleted, perhaps, or rolled back.
            Err(ControlError::NoSuchVolume { .. }) => return Ok(Looked::Waits(None)),
            volume => volume?,
        };
        if self.take_over(&known, &volume).await.unwrap_or_else(|error| {
            tracing::debug!(volume = volume.name, %error, "a block device can't be served again yet");
            false
        }) {
            return Ok(Looked::Serves);
        }
        Ok(Looked::Waits(Some((number, volume.handle))))
    }
}

/// What was found of a device.
enum Looked {
    Serves,
    Waits(Option<Waiting>),
    /// It is ours no more.
    Gone,
}
