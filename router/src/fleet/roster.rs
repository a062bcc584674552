//! The fleet as tasks share it: behind one lock, with a channel to each decode worker.
//!
//! Invariant: a channel lives exactly as long as its worker's attachment. Nothing awaits while it
//! holds the lock.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_model::blocks::BlockHash;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

use super::{Delta, Description, Fleet, Gap, Load, Refusal, Role, WorkerKey};
use crate::metrics::{MembershipEvent, Metrics};

/// A worker that does not answer a connect this long is taken to be gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A host that vanished without closing its connections is noticed after these two.
pub(super) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// All attached workers and how to reach them.
pub struct Roster {
    state: Mutex<State>,
    /// Bumped when a worker becomes available or leaves: whoever waits for one looks again.
    changed: watch::Sender<()>,
    metrics: Arc<Metrics>,
}

/// What the lock protects.
pub struct State {
    pub fleet: Fleet,
    channels: HashMap<WorkerKey, Channel>,
}

impl State {
    /// The channel to a decode worker. `None` once it has detached.
    pub fn channel(&self, key: WorkerKey) -> Option<Channel> {
        self.channels.get(&key).cloned()
    }
}

impl Roster {
    pub fn new(fleet: Fleet, metrics: Arc<Metrics>) -> Arc<Roster> {
        let state = Mutex::new(State {
            fleet,
            channels: HashMap::new(),
        });
        Arc::new(Roster {
            state,
            changed: watch::Sender::new(()),
            metrics,
        })
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Notified from now on whenever a worker becomes available or leaves.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Some decode worker takes requests. Prefill workers are not needed for that.
    pub fn is_ready(&self) -> bool {
        self.lock().fleet.available(Role::Decode).next().is_some()
    }

    /// Admits a worker until the returned [`Member`] is dropped. Must be called within a runtime.
    ///
    /// # Errors
    /// Why it may not join.
    pub fn attach(self: &Arc<Self>, description: Description) -> Result<Member, Refusal> {
        let channel = channel(&description.address)?;
        let role = description.role;
        let mut state = self.lock();
        let key = state.fleet.attach(description)?;
        if role == Role::Decode {
            state.channels.insert(key, channel);
        }
        // The fleet may have detached an earlier life of this worker.
        let State { fleet, channels } = &mut *state;
        channels.retain(|&key, _| fleet.get(key).is_some());
        self.publish(&state);
        Ok(Member {
            roster: Arc::clone(self),
            key,
        })
    }

    fn publish(&self, state: &State) {
        for role in Role::ALL {
            self.metrics
                .workers(role, state.fleet.workers(role).count());
        }
        self.metrics.indexed_blocks(state.fleet.indexed_blocks());
        self.changed.send_replace(());
    }
}

/// Connects on first use and again after a failure. Dropped with the worker.
fn channel(address: &str) -> Result<Channel, Refusal> {
    let bad = || Refusal::Address {
        address: address.to_owned(),
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| bad())?;
    if endpoint.uri().port_u16().is_none_or(|port| port == 0) {
        return Err(bad());
    }
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_lazy())
}

/// An attached worker's place in the roster. Dropping it detaches the worker.
pub struct Member {
    roster: Arc<Roster>,
    key: WorkerKey,
}

impl Member {
    pub fn key(&self) -> WorkerKey {
        self.key
    }

    pub fn snapshot(&self, load: Load, blocks: Vec<BlockHash>) {
        let mut state = self.roster.lock();
        state.fleet.snapshot(self.key, load, blocks, Instant::now());
        self.roster.publish(&state);
    }

    /// # Errors
    /// The worker must send a snapshot.
    pub fn delta(&self, delta: Delta) -> Result<(), Gap> {
        let mut state = self.roster.lock();
        let outcome = state.fleet.delta(self.key, delta, Instant::now());
        // Deltas are frequent and make no worker available: nobody is woken.
        self.roster
            .metrics
            .indexed_blocks(state.fleet.indexed_blocks());
        outcome
    }

    pub fn drain(&self) {
        let mut state = self.roster.lock();
        state.fleet.drain(self.key);
        self.roster.publish(&state);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.roster.lock();
        state.channels.remove(&self.key);
        if let Some(worker) = state.fleet.detach(self.key) {
            self.roster.metrics.membership(MembershipEvent::Detached);
            let Description {
                worker_id,
                role,
                address,
                ..
            } = worker;
            tracing::info!(worker_id, %role, address, "worker detached");
        }
        self.roster.publish(&state);
    }
}
