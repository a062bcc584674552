//! What others may look at without asking the engine's thread.

use tokio::sync::watch;

use millrace_engine::{
    engine::{Counters, Status},
    pages::PagePool,
};

/// As of the end of the last step or command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineState {
    pub status: Status,
    pub counters: Counters,
    /// It is a rank and no member of its group's epoch: it takes no requests.
    pub outside: bool,
}

/// A window on the engine. Cheap to clone.
#[derive(Clone)]
pub struct EngineMonitor {
    pub(super) state: watch::Receiver<EngineState>,
    pub(super) pool: PagePool,
}

impl EngineMonitor {
    /// Page numbers are as of now: pages also come back without a step, when a transfer ends.
    pub fn state(&self) -> EngineState {
        let mut state = *self.state.borrow();
        state.status.free_pages = self.pool.available();
        state.status.leased_pages = self.pool.leased();
        state
    }

    pub fn pool(&self) -> &PagePool {
        &self.pool
    }

    /// Returns after the engine has done something since the last call; never, once it stopped.
    pub async fn changed(&mut self) {
        if self.state.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
