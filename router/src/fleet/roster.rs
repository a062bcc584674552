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

use super::{
    Delta, Description, Fleet, Gap, Load, Refusal, Refused, RefusedWorker, Role, Worker, WorkerKey,
};
use crate::metrics::{MembershipEvent, Metrics};

/// A worker that does not answer a connect this long is taken to be gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A host that vanished without closing its connections is noticed after these two.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

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
    pub refused: Refused,
    links: HashMap<WorkerKey, Link>,
}

/// The way to a decode worker.
struct Link {
    channel: Channel,
    /// How often its group went on without it.
    evictions: watch::Sender<u64>,
}

/// Resolves when a rank's group goes on without it. What runs there then is lost, also if the rank
/// hangs and cannot say so.
#[derive(Clone)]
pub struct Evicted(watch::Receiver<u64>);

impl Evicted {
    pub async fn wait(&mut self) {
        // A worker that detached may still finish what it has.
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl State {
    /// The way to a decode worker. `None` once it has detached.
    pub fn link(&self, key: WorkerKey) -> Option<(Channel, Evicted)> {
        let link = self.links.get(&key)?;
        let evicted = Evicted(link.evictions.subscribe());
        Some((link.channel.clone(), evicted))
    }
}

impl Roster {
    pub fn new(fleet: Fleet, metrics: Arc<Metrics>) -> Arc<Roster> {
        let state = Mutex::new(State {
            fleet,
            refused: Refused::default(),
            links: HashMap::new(),
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

    /// Some revision can serve: a decode worker takes requests. One whose revision has no prefill
    /// worker that does computes prompts by itself.
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
        let worker_id = description.worker_id.clone();
        let key = state.fleet.attach(description)?;
        state.refused.forget(&worker_id);
        if role == Role::Decode {
            let evictions = watch::Sender::new(0);
            state.links.insert(key, Link { channel, evictions });
        }
        // The fleet may have detached an earlier life of this worker.
        let State { fleet, links, .. } = &mut *state;
        links.retain(|&key, _| fleet.get(key).is_some());
        self.publish(&state);
        Ok(Member {
            roster: Arc::clone(self),
            key,
        })
    }

    /// Remembers for a while that a worker was not admitted.
    pub fn refuse(&self, worker: RefusedWorker) {
        self.lock().refused.add(worker, Instant::now());
    }

    fn publish(&self, state: &State) {
        for role in Role::ALL {
            let attached = state.fleet.workers(role).count();
            let available = state.fleet.available(role).count();
            self.metrics.workers(role, attached, available);
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

    /// For whoever knows whether this rank's group computes with it.
    pub fn standing(&self) -> Standing {
        Standing {
            roster: Arc::clone(&self.roster),
            key: self.key,
        }
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
        let is_available = |state: &State| {
            let worker = state.fleet.get(self.key);
            worker.is_some_and(Worker::is_available)
        };
        let was_available = is_available(&state);
        let outcome = state.fleet.delta(self.key, delta, Instant::now());
        // Deltas are frequent, and few of them let a rank into its group: only those wake anybody.
        if is_available(&state) != was_available {
            self.roster.publish(&state);
        } else {
            self.roster
                .metrics
                .indexed_blocks(state.fleet.indexed_blocks());
        }
        outcome
    }

    pub fn drain(&self) {
        let mut state = self.roster.lock();
        state.fleet.drain(self.key);
        self.roster.publish(&state);
    }
}

/// Whether a rank's group computes with it. Says nothing any more once the rank has detached.
pub struct Standing {
    roster: Arc<Roster>,
    key: WorkerKey,
}

impl Standing {
    /// A rank that is left out takes no new requests, and those it has go on elsewhere.
    pub fn set(&self, is_member: bool) {
        let mut state = self.roster.lock();
        if !state.fleet.leave_out(self.key, !is_member) {
            return;
        }
        if !is_member && let Some(link) = state.links.get(&self.key) {
            link.evictions.send_modify(|count| *count += 1);
        }
        self.roster.publish(&state);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.roster.lock();
        state.links.remove(&self.key);
        if let Some(worker) = state.fleet.detach(self.key) {
            self.roster.metrics.membership(MembershipEvent::Detached);
            let Description {
                worker_id,
                role,
                revision,
                address,
                ..
            } = worker;
            tracing::info!(worker_id, %role, revision, address, "worker detached");
        }
        self.roster.publish(&state);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::super::tests::{description, served};
    use super::*;

    #[tokio::test]
    async fn what_runs_on_a_rank_that_is_left_out_is_lost() {
        let metrics = Arc::new(Metrics::new(&millrace_telemetry::Registry::new(), "m").unwrap());
        let roster = Roster::new(Fleet::new(served(), 10), metrics);
        let member = roster.attach(description("d0", Role::Decode)).unwrap();
        member.snapshot(Load::default(), Vec::new());
        let standing = member.standing();
        let link = |roster: &Roster| roster.lock().link(member.key()).unwrap().1;

        let mut running = link(&roster);
        standing.set(true);
        assert!(roster.is_ready() && running.wait().now_or_never().is_none());
        standing.set(false);
        assert!(!roster.is_ready(), "it takes nothing new");
        assert!(running.wait().now_or_never().is_some());
        standing.set(true);
        assert!(roster.is_ready());
        assert!(
            link(&roster).wait().now_or_never().is_none(),
            "a later request is another's"
        );

        let mut running = link(&roster);
        drop(member);
        assert!(
            running.wait().now_or_never().is_none(),
            "a detached worker may finish"
        );
        standing.set(false);
    }
}
