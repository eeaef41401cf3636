//! The clean stop: clients first, then the engines, then the thread.
//!
//! 1. Nothing is accepted any more; new requests get `NBD_ESHUTDOWN`, handshakes end. Block devices of the kernel get no
//!    answer any more: the next process does.
//! 2. Each connection is closed as soon as everything that it asked for is answered, or when
//!    [`DRAIN_NS`] is over.
//! 3. The engines seal, flush and write their superblocks.

use super::connection::Phase;
use super::control::{FailedPool, NodeExit};
use super::limits::DRAIN_NS;
use super::reactor::Reactor;
use flagstone_block::Buffers;
use flagstone_engine::PoolState;

/// Where the node is between serving and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Running,
    /// Clients get their last replies, until then.
    Draining {
        deadline_ns: u64,
    },
    /// The engines are closing.
    Closing,
}

impl Stop {
    pub(super) fn is_running(self) -> bool {
        self == Self::Running
    }
}

impl Reactor {
    pub(super) fn begin_stop(&mut self) {
        if !self.stop.is_running() {
            return;
        }
        tracing::info!("stopping");
        self.stop = Stop::Draining { deadline_ns: self.ring.now_ns() + DRAIN_NS };
        for listener in std::mem::take(&mut self.listeners) {
            self.ring.remove_listener(listener);
        }
        // While the name still leads here: it must not be taken from whoever comes next.
        if let Some(path) = &self.endpoints.socket {
            let _ = std::fs::remove_file(path);
        }
        for c in 0..self.connections.len() as u32 {
            if self.connections[c as usize].kernel.is_some() {
                self.kill(c);
            }
        }
        // Whoever waits for space is told now.
        self.wake_waiting();
        for pool in &mut self.pools {
            pool.engine.set_full_wait_ns(0);
            pool.touched = true;
        }
        for c in 0..self.connections.len() as u32 {
            match self.connections[c as usize].phase {
                Phase::Handshake => self.kill(c),
                Phase::Serving => self.connections[c as usize].session.shut_down(),
                Phase::Free | Phase::Draining | Phase::Dead => {}
            }
        }
    }

    /// Whoever waits for space is told that there is none, from now on.
    pub(super) fn end_waits(&mut self) {
        self.full_wait_ns = 0;
        for pool in &mut self.pools {
            pool.engine.set_full_wait_ns(0);
            pool.touched = true;
        }
        self.wake_waiting();
    }

    pub(super) fn stop_deadline_ns(&self) -> Option<u64> {
        match self.stop {
            Stop::Draining { deadline_ns } => Some(deadline_ns),
            Stop::Running | Stop::Closing => None,
        }
    }

    /// Takes the stop as far as it can go; `Some` when the node has ended.
    pub(super) fn advance_stop(&mut self) -> Option<Result<(), NodeExit>> {
        if let Stop::Draining { deadline_ns } = self.stop {
            let late = self.ring.now_ns() >= deadline_ns;
            for c in 0..self.connections.len() as u32 {
                let connection = &self.connections[c as usize];
                let alive = matches!(connection.phase, Phase::Serving | Phase::Draining);
                if alive && (late || connection.is_quiet()) {
                    self.kill(c);
                }
            }
            let idle = self.requests.len() == 0 && self.changes.len() == 0 && self.local.is_idle();
            if !idle || self.free_connections.len() < self.connections.len() {
                return None;
            }
            self.stop = Stop::Closing;
            for pool in &mut self.pools {
                pool.engine.shutdown();
                pool.touched = true;
            }
            // The engines begin in the next turn.
            return None;
        }
        if self.stop != Stop::Closing {
            return None;
        }
        let is_over = |state| matches!(state, PoolState::Stopped | PoolState::Failed(_));
        if !self.pools.iter().all(|pool| is_over(pool.engine.state())) {
            return None;
        }
        if self.ring.device_commands_in_flight() > 0 {
            return None;
        }
        Some(self.ended())
    }

    fn ended(&mut self) -> Result<(), NodeExit> {
        let fixed: Vec<_> = self.fixed_buffers().collect();
        for buffer in fixed {
            self.ring.buffers().free(buffer);
        }
        let failed = self.pools.iter().filter_map(|pool| Some((pool, pool.failure?)));
        let failed: Vec<_> = failed
            .map(|(pool, error)| FailedPool { path: pool.path.clone(), reason: pool.reason(error) })
            .collect();
        if !failed.is_empty() {
            return Err(NodeExit::FailedPools { pools: failed });
        }
        let arena = self.ring.buffers_ref();
        debug_assert_eq!(arena.free_blocks(), arena.capacity_blocks(), "a buffer was leaked");
        Ok(())
    }
}
