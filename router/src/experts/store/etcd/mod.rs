//! Epochs in etcd. The only place that knows it.
//!
//! ```text
//! <prefix>/store                  names these contents: a wiped etcd gets another id
//! <prefix>/balancer               who leads; under a lease, so that it goes when the leader does
//! <prefix>/groups/<group>/epoch   experts::Epoch as JSON
//! <prefix>/groups/<group>/plan    experts::Plan as JSON
//! ```
//!
//! One task keeps a session: it reads everything below the prefix, watches from that revision on,
//! and holds or seeks the leader's key. Whatever goes wrong ends the session, and the next begins
//! with a new reading. Resuming the watch at the last revision seen would save nothing, since records
//! are complete, and would wait for ever on an etcd that was wiped and counts from 1 again.
//!
//! A write is one transaction. It compares the revisions it was decided on and that the leader's key
//! is still the one that this router put there, so that of two routers that both believe they lead,
//! one cannot write.

mod keys;
mod leader;
mod session;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{Client, KeyValue};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Base, Change, Kind, Slot, Slots, State, Term, WriteError};
use keys::{Key, Keys};

/// A call that takes longer has failed.
const CALL: Duration = Duration::from_secs(2);

pub struct Etcd {
    shared: Arc<Shared>,
    session: JoinHandle<()>,
}

/// What the session's task, writers and readers share.
struct Shared {
    endpoints: Vec<String>,
    keys: Keys,
    /// Of this router, random.
    name: String,
    ttl: Duration,
    state: watch::Sender<State>,
    link: Mutex<Link>,
    /// Bumped when the leader's key changes.
    leader_changed: watch::Sender<()>,
}

#[derive(Default)]
struct Link {
    client: Option<Client>,
    /// Outlives a session: an etcd that was away for less than the lease's time still has it.
    lease: Option<Lease>,
    /// Who leads, as far as is known.
    leader: Option<Leader>,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    id: i64,
    /// By this router's clock, counted from before it was asked for.
    until: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leader {
    /// Of the write that created the key.
    revision: i64,
    lease: i64,
}

impl Etcd {
    pub fn open(endpoints: Vec<String>, prefix: &str, ttl: Duration) -> Etcd {
        let shared = Arc::new(Shared {
            endpoints,
            keys: Keys::new(prefix),
            name: format!("{:016x}", rand::random::<u64>()),
            // etcd counts in whole seconds.
            ttl: Duration::from_secs(ttl.as_secs().max(1)),
            state: watch::Sender::new(State::default()),
            link: Mutex::default(),
            leader_changed: watch::Sender::new(()),
        });
        let session = tokio::spawn(session::keep(Arc::clone(&shared)));
        Etcd { shared, session }
    }

    pub fn states(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }

    pub async fn write(&self, group: &str, change: Change, base: Base) -> Result<(), WriteError> {
        write::write(&self.shared, group, change, base).await
    }

    pub async fn close(&self) {
        self.session.abort();
        self.shared.set_up(false);
        let link = std::mem::take(&mut *self.shared.link.lock());
        if let (Some(mut client), Some(lease)) = (link.client, link.lease) {
            let revoked = call(client.lease_revoke(lease.id)).await;
            if let Err(error) = revoked {
                tracing::debug!(%error, "the lease runs out by itself");
            }
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.session.abort();
    }
}

/// Why etcd could not be asked, or a session ended.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Etcd(#[from] etcd_client::Error),
    #[error("no answer within {} s", CALL.as_secs())]
    Timeout,
    #[error("etcd ended the watch: {0}")]
    Watch(String),
    /// The watch fell behind and its revisions were thrown away. Nothing is wrong with etcd.
    #[error("revisions up to {0} were compacted before they were seen")]
    Compacted(i64),
}

async fn call<T>(answer: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, Failed> {
    match tokio::time::timeout(CALL, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Failed::Timeout),
    }
}

impl Shared {
    fn set_up(&self, up: bool) {
        self.state.send_if_modified(|state| {
            let changed = state.up != up;
            state.up = up;
            changed
        });
    }

    /// All keys as of `revision`, whatever was known before. Etcd is up.
    fn replace(&self, all: &[KeyValue], revision: i64) {
        let parsed = || {
            all.iter()
                .filter_map(|kv| Some((self.keys.parse(kv.key())?, kv)))
        };
        let mut read = State {
            up: true,
            ..State::default()
        };
        for (key, kv) in parsed() {
            absorb(&mut read, &key, Some(kv), revision);
        }
        // Without a term, until the leader's key is looked at: it may be that of an etcd before.
        self.state.send_replace(read);
        let leader = parsed().find(|(key, _)| *key == Key::Leader);
        self.learn_leader(leader.map(|(_, kv)| kv));
    }

    /// What is told of several keys at once is shown at once: an epoch and the end of its plan are
    /// one change.
    fn learn(&self, news: &[(Key, Option<&KeyValue>, i64)]) {
        self.state.send_if_modified(|state| {
            news.iter().fold(false, |changed, (key, value, revision)| {
                changed | absorb(state, key, *value, *revision)
            })
        });
        let of_leader = news.iter().rfind(|(key, ..)| *key == Key::Leader);
        if let Some((_, value, _)) = of_leader {
            self.learn_leader(*value);
        }
    }

    fn learn_leader(&self, value: Option<&KeyValue>) {
        self.link.lock().leader = value.map(|kv| Leader {
            revision: kv.create_revision(),
            lease: kv.lease(),
        });
        self.settle_term();
        self.leader_changed.send_replace(());
    }

    /// Works out whether this router leads, after its lease or the leader's key changed.
    fn settle_term(&self) {
        let link = self.link.lock();
        let term = match (link.leader, link.lease) {
            (Some(leader), Some(lease)) if leader.lease == lease.id => Some(Term {
                revision: leader.revision,
                until: Some(lease.until),
            }),
            _ => None,
        };
        self.state.send_if_modified(|state| {
            // A term that was merely prolonged wakes nobody.
            let changed = state.term.map(|t| t.revision) != term.map(|t| t.revision);
            state.term = term;
            changed
        });
    }
}

/// Takes in a key's value as of `revision`; `None`: it is not there. Whether that changed anything.
fn absorb(state: &mut State, key: &Key, value: Option<&KeyValue>, revision: i64) -> bool {
    match key {
        Key::Record(group, kind) => {
            let slot = Slot {
                revision: value.map_or(0, KeyValue::mod_revision),
                bytes: value.map(|kv| Arc::from(kv.value())),
                seen: revision,
            };
            state.learn(group, *kind, slot)
        }
        Key::Store => {
            let id = value.map(|kv| format!("etcd-{}", String::from_utf8_lossy(kv.value())));
            let changed = state.id.as_deref() != id.as_deref();
            state.id = id.map(Arc::from);
            changed
        }
        Key::Leader => false,
    }
}

/// Records that are there, as far as is known.
fn records(state: &State) -> Vec<Key> {
    let of_group = |(group, slots): (&String, &Slots)| {
        let kinds = [(Kind::Epoch, &slots.epoch), (Kind::Plan, &slots.plan)];
        let there = kinds.into_iter().filter(|(_, slot)| slot.bytes.is_some());
        let keys = there.map(|(kind, _)| Key::Record(group.clone(), kind));
        keys.collect::<Vec<_>>()
    };
    state.groups.iter().flat_map(of_group).collect()
}
