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
        let known = on_thread(looked).await?;
        let mut under_way = Vec::new();
        for known in known.into_iter().filter(|known| !known.is_detached()) {
            let Some(volume) = self.volume_of(&known).await? else { continue };
            ours.insert(known.number);
            let this = self.clone();
            under_way.push((
                known.number,
                tokio::spawn(async move {
                    let give_up = Instant::now() + START;
                    while !this.take_over(&known, &volume).await? {
                        if Instant::now() > give_up {
                            return Err(KernelNbdError::NotTaken { number: known.number });
                        }
                    }
                    Ok(())
                }),
            ));
        }
        let (mut served, mut waiting) = (0, 0);
        for (number, task) in under_way {
            match task.await.unwrap_or(Err(KernelNbdError::Ended)) {
                Ok(()) => served += 1,
                Err(error) => {
                    waiting += 1;
                    tracing::error!(%error, "/dev/nbd{number} can't be served again yet");
                }
            }
        }
        self.node.reserve_kernel_nbd(waiting).await?;
        Ok(served)
    }

    /// The volume or snapshot of a device; none if it is another daemon's, of a pool that this one has not got, or not
    /// fit for the device.
    async fn volume_of(&self, known: &Known) -> Result<Option<UblkVolume>, KernelNbdError> {
        match self.node.ublk_volume(UblkTarget::Uuid(known.uuid)).await {
            Ok(volume) if volume.read_only != known.read_only => {
                let (number, name) = (known.number, volume.name);
                tracing::warn!(
                    volume = name,
                    "/dev/nbd{number} waits: it can be written to, and its volume can't"
                );
                Ok(None)
            }
            Ok(volume) => Ok(Some(volume)),
            Err(ControlError::NoSuchVolume { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Serves devices again whose connection has ended though this process goes on.
    pub async fn watch(&self) -> Infallible {
        let mut interval = tokio::time::interval(LOOK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let looked = self.alone(|this, mut ours| async move {
                let numbers: Vec<u32> = ours.iter().copied().collect();
                let mut waiting = 0;
                for number in numbers {
                    match this.look(number).await {
                        Ok(Looked::Serves) => {}
                        Ok(Looked::Waits) => waiting += 1,
                        Ok(Looked::Gone) => drop(ours.remove(&number)),
                        Err(error) => {
                            waiting += 1;
                            tracing::debug!(%error, "/dev/nbd{number} can't be served again yet");
                        }
                    }
                }
                Ok(this.node.reserve_kernel_nbd(waiting).await?)
            });
            if let Err(error) = looked.await {
                tracing::debug!(%error, "devices of the NBD client can't be looked after");
            }
        }
    }

    async fn look(&self, number: u32) -> Result<Looked, KernelNbdError> {
        let known = on_thread(move || Ok(sysfs::known(number))).await?;
        let Some(known) = known.filter(|known| !known.is_detached()) else {
            return Ok(Looked::Gone);
        };
        let volume = match self.node.ublk_volume(UblkTarget::Uuid(known.uuid)).await {
            Err(ControlError::NoSuchVolume { .. }) => return Ok(Looked::Gone),
            volume => volume?,
        };
        if volume.nbd == Some(number) {
            return Ok(Looked::Serves);
        }
        if on_thread(move || Ok(looked_at(known))).await?.is_detached() {
            return Ok(Looked::Gone);
        }
        Ok(if self.take_over(&known, &volume).await? { Looked::Serves } else { Looked::Waits })
    }
}

/// What was found of a device.
enum Looked {
    Serves,
    Waits,
    /// It is ours no more.
    Gone,
}
