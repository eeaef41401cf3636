//! Taking over what the process before has left: block devices whose requests wait.

use super::own::{self, Known};
use super::{Ublk, UblkError, on_thread};
use crate::node::{ControlError as NodeError, UblkTarget, UblkVolume};
use flagstone_ublk::{Control, ControlError, DeviceInfo, DeviceState, Features};
use rustix::io::Errno;
use std::time::{Duration, Instant};

/// How long the kernel may take to be done with the process before.
const PATIENCE: Duration = Duration::from_secs(30);
const INTERVAL: Duration = Duration::from_millis(20);
/// How long requests that are being served when the process steps back may take.
const QUIESCE: Duration = Duration::from_secs(2);

/// What became of the devices that were left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Served again.
    pub served: u32,
    /// Could not be; told in the log.
    pub failed: u32,
}

impl Ublk {
    /// Serves again all devices of this node's volumes that the process before has left. One that can't be is told in the log,
    /// and keeps nobody else from being served.
    ///
    /// # Errors
    /// [`UblkError`], if the kernel can't be asked which there are.
    pub async fn recover(&self) -> Result<Recovered, UblkError> {
        let mut recovered = Recovered::default();
        let left = on_thread(|| {
            if !own::are_there() {
                return Ok(Vec::new());
            }
            own::devices(&mut Control::open()?)
        })
        .await?;
        let mut under_way = Vec::new();
        for known in left {
            let number = known.info.number;
            let volume = match self.node.ublk_volume(UblkTarget::Noted(known.info.note)).await {
                Ok(volume) => volume,
                // Another daemon's, or of a pool that this one has not got.
                Err(NodeError::NoSuchVolume { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            let ublk = self.clone();
            // All at once: each waits for the kernel to be done with the process before.
            under_way
                .push((number, tokio::spawn(async move { ublk.take_over(known, volume).await })));
        }
        for (number, task) in under_way {
            match task.await.unwrap_or(Err(UblkError::Ended)) {
                Ok(true) => recovered.served += 1,
                Ok(false) => {}
                Err(error) => {
                    recovered.failed += 1;
                    tracing::error!(device = number, %error, "a block device can't be served again");
                }
            }
        }
        Ok(recovered)
    }

    /// Whether it is served now.
    async fn take_over(&self, known: Known, volume: UblkVolume) -> Result<bool, UblkError> {
        let info = known.info;
        if info.state == DeviceState::Dead {
            // Never started, or stopped and not deleted: nobody can have it open.
            on_thread(move || Ok(Control::open()?.delete(&info)?)).await?;
            return Ok(false);
        }
        let begun = Instant::now();
        on_thread(move || start_recovery(&info)).await?;
        self.node.serve_ublk(&volume, info).await?;
        let size_bytes = volume.size_bytes;
        on_thread(move || {
            let mut control = Control::open()?;
            control.end_recovery(&info)?;
            own::set_size(&mut control, &known, size_bytes)
        })
        .await?;
        tracing::info!(
            volume = volume.name,
            device = info.number,
            waited_ms = begun.elapsed().as_millis() as u64,
            "/dev/ublkb{} is served again",
            info.number
        );
        Ok(true)
    }
}

/// Has the kernel keep what is asked of this process's block devices from now on for the next, where it can be told so:
/// then nothing is fetched any more that could not be answered. Where it can't, it finds out when this process ends.
pub async fn step_back() {
    let stepped = on_thread(|| {
        if !own::are_there() {
            return Ok(());
        }
        let mut control = Control::open()?;
        let own_pid = std::process::id() as i32;
        for known in own::devices(&mut control)? {
            let info = known.info;
            let live = info.state == DeviceState::Live && info.pid == own_pid;
            if !live || !info.features.has(Features::QUIESCE) {
                continue;
            }
            if let Err(error) = control.quiesce(&info, QUIESCE) {
                tracing::debug!(device = info.number, %error, "not told to wait");
            }
        }
        Ok(())
    })
    .await;
    if let Err(error) = stepped {
        tracing::warn!(%error, "block devices were not told to wait");
    }
}

/// Waits until the kernel is done with the process before, which takes it a moment after that has ended.
fn start_recovery(info: &DeviceInfo) -> Result<(), UblkError> {
    let mut control = Control::open()?;
    let give_up = Instant::now() + PATIENCE;
    loop {
        match control.start_recovery(info) {
            Err(ControlError::Refused { errno: Errno::BUSY, .. }) if Instant::now() < give_up => {
                std::thread::sleep(INTERVAL);
            }
            result => return Ok(result?),
        }
    }
}
