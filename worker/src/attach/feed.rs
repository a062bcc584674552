//! One stream of updates for all routers.
//!
//! The page pool tells its changes once, so one task takes them and every router's link gets a
//! copy. A link that starts, or that fell behind, begins with a snapshot; snapshot and updates are
//! cut under one lock, so that nothing is told twice or not at all.

use std::{collections::HashSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::broadcast, time::Instant};

use millrace_engine::pages::CacheChanges;
use millrace_model::blocks::BlockHash;

use super::changes::NetChanges;
use crate::engine::{EngineMonitor, EngineState};

/// Updates come at most this often, however fast the engine steps.
const PERIOD: Duration = Duration::from_millis(20);
/// And at least this often, so that a router can tell a quiet worker from a hung one.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Updates kept for a slow link before it has to start over with a snapshot: about a second of them.
const BACKLOG: usize = 64;

pub struct Feed {
    monitor: EngineMonitor,
    shown: Mutex<Shown>,
}

/// What the routers have been told, or are about to be.
struct Shown {
    blocks: HashSet<BlockHash>,
    load: Load,
    updates: broadcast::Sender<Arc<Update>>,
}

/// How busy the worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    pub running: usize,
    pub waiting: usize,
    /// Known tokens not yet computed.
    pub waiting_tokens: usize,
    /// Free or evictable.
    pub free_pages: usize,
    pub leased_pages: usize,
    /// A rank that is no member of its group's epoch: takes nothing.
    pub outside: bool,
}

impl From<EngineState> for Load {
    fn from(state: EngineState) -> Load {
        let EngineState {
            status, outside, ..
        } = state;
        Load {
            // A sequence that a peer prefills holds a place among the running ones.
            running: status.running + status.remote,
            waiting: status.waiting,
            waiting_tokens: status.waiting_tokens,
            free_pages: status.free_pages,
            leased_pages: status.leased_pages,
            outside,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    pub load: Load,
    pub changes: CacheChanges,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub load: Load,
    pub blocks: Vec<BlockHash>,
}

impl Feed {
    pub fn new(monitor: EngineMonitor) -> Arc<Feed> {
        let shown = Shown {
            blocks: HashSet::new(),
            load: monitor.state().into(),
            updates: broadcast::Sender::new(BACKLOG),
        };
        Arc::new(Feed {
            monitor,
            shown: Mutex::new(shown),
        })
    }

    /// All that is known now, and what follows on it.
    pub fn subscribe(&self) -> (Snapshot, broadcast::Receiver<Arc<Update>>) {
        let shown = self.shown.lock();
        let snapshot = Snapshot {
            load: shown.load,
            blocks: shown.blocks.iter().copied().collect(),
        };
        (snapshot, shown.updates.subscribe())
    }

    /// Publishes updates for ever.
    pub async fn run(self: Arc<Feed>) {
        let mut monitor = self.monitor.clone();
        let mut last = Instant::now();
        loop {
            let heartbeat = tokio::select! {
                () = monitor.changed() => {
                    tokio::time::sleep_until(last + PERIOD).await;
                    false
                }
                () = tokio::time::sleep_until(last + HEARTBEAT) => true,
            };
            let load = self.monitor.state().into();
            let changes = self.monitor.pool().take_changes();
            if self.shown.lock().publish(load, &changes, heartbeat) {
                last = Instant::now();
            }
        }
    }
}

impl Shown {
    /// Whether there was anything to tell.
    fn publish(&mut self, load: Load, changes: &CacheChanges, always: bool) -> bool {
        let mut net = NetChanges::default();
        net.add(changes);
        let changes = net.into_changes();
        if !always && load == self.load && changes == CacheChanges::default() {
            return false;
        }
        self.load = load;
        self.blocks.extend(&changes.stored);
        for hash in &changes.removed {
            self.blocks.remove(hash);
        }
        // Without a link nobody needs it: the next one starts with a snapshot.
        let _ = self.updates.send(Arc::new(Update { load, changes }));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown() -> Shown {
        Shown {
            blocks: HashSet::new(),
            load: Load::default(),
            updates: broadcast::Sender::new(BACKLOG),
        }
    }

    fn changes(stored: &[u128], removed: &[u128]) -> CacheChanges {
        let hashes = |list: &[u128]| list.iter().copied().map(BlockHash).collect();
        CacheChanges {
            stored: hashes(stored),
            removed: hashes(removed),
        }
    }

    #[test]
    fn nothing_is_said_when_nothing_changed_but_for_the_heartbeat() {
        let mut shown = shown();
        let mut updates = shown.updates.subscribe();
        let idle = Load::default();
        assert!(!shown.publish(idle, &CacheChanges::default(), false));
        assert!(
            !shown.publish(idle, &changes(&[5], &[5]), false),
            "it came and went"
        );
        assert!(updates.try_recv().is_err());
        assert!(shown.publish(idle, &CacheChanges::default(), true));
        assert_eq!(updates.try_recv().unwrap().load, idle);
    }

    #[test]
    fn what_was_told_adds_up_to_the_snapshot() {
        let mut shown = shown();
        let mut updates = shown.updates.subscribe();
        let busy = Load {
            running: 3,
            ..Load::default()
        };
        assert!(shown.publish(busy, &changes(&[1, 2, 3], &[]), false));
        assert!(shown.publish(busy, &changes(&[4], &[1, 3]), false));
        assert!(shown.publish(Load::default(), &changes(&[1], &[4]), false));

        let mut told = HashSet::new();
        while let Ok(update) = updates.try_recv() {
            told.extend(&update.changes.stored);
            told.retain(|hash| !update.changes.removed.contains(hash));
        }
        assert_eq!(told, HashSet::from([BlockHash(1), BlockHash(2)]));
        assert_eq!(told, shown.blocks);
        assert_eq!(shown.load, Load::default());
    }
}
