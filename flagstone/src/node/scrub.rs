//! Scrubs of pools that are being served: begun, looked at, ended.

use std::path::PathBuf;

use flagstone_engine::{ScrubRefused, ScrubReport};

use super::control::{ControlError, Reply};
use super::manage::answer;
use super::reactor::Reactor;

/// What is asked of a pool's scrub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrubAction {
    /// Begin one.
    Start {
        /// Bytes per second that it may read; 0 for no bound.
        rate: u64,
    },
    /// Say how far it is, or what the last one found.
    Show,
    /// End it.
    Cancel,
}

impl Reactor {
    /// Does what is asked and answers with the pool's scrub as it is then.
    pub(super) fn scrub(
        &mut self,
        path: PathBuf,
        action: ScrubAction,
        reply: Reply<Option<ScrubReport>>,
    ) {
        let Some(pool) = self.pools.iter_mut().find(|pool| pool.path == path) else {
            return answer(reply, Err(ControlError::NoSuchPool { path }));
        };
        match action {
            ScrubAction::Start { rate } => {
                if let Err(refused) = pool.engine.start_scrub(rate) {
                    return answer(reply, Err(refusal(refused)));
                }
                tracing::info!(pool = %pool.path.display(), rate, "scrub begun");
                pool.scrubbing = true;
                pool.touched = true;
            }
            ScrubAction::Show => {}
            ScrubAction::Cancel => {
                pool.engine.cancel_scrub();
                pool.touched = true;
            }
        }
        answer(reply, Ok(pool.engine.scrub().cloned()));
    }
}

impl super::pool::Pool {
    /// Logs what a scrub has found, once it is over.
    pub(super) fn note_scrub(&mut self) {
        if !self.scrubbing || self.engine.is_scrubbing() {
            return;
        }
        self.scrubbing = false;
        let Some(report) = self.engine.scrub() else { return };
        let pool = self.path.display();
        let (state, blocks) = (report.state, report.data_blocks);
        let (bad_blocks, bad_metadata) = (report.bad_blocks, report.bad_metadata);
        let repaired = report.repaired;
        if report.findings.is_empty() {
            tracing::info!(%pool, ?state, blocks, "scrub over: nothing is damaged");
        } else {
            tracing::warn!(
                %pool, ?state, blocks, bad_blocks, bad_metadata, repaired,
                "scrub over: damage was found; `flagstone pool scrub --status` lists it"
            );
        }
    }
}

fn refusal(refused: ScrubRefused) -> ControlError {
    match refused {
        ScrubRefused::Running => ControlError::Scrubbing,
        ScrubRefused::Failed => ControlError::PoolFailed,
        ScrubRefused::Stopping => ControlError::Stopping,
    }
}
