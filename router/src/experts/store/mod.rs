//! Where epochs are kept: records that are read by all routers of a deployment and written by the
//! one that leads, each write a compare-and-swap on what it was decided on.
//!
//! A store knows bytes and revisions. What they mean, and whether they make sense, is
//! [`records`](super::records)' to say, the same for every store.

#[cfg(feature = "etcd")]
mod etcd;
mod memory;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use super::config::ExpertsConfig;
use super::view::StoreKind;

/// A key's value. Compared by revision: two writes of the same bytes are two values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Slot {
    /// Of the write that put it there. 0: there is nothing.
    pub revision: i64,
    pub bytes: Option<Arc<[u8]>>,
    /// The store's revision when this was seen. What is older than that is not news.
    seen: i64,
}

/// What the store has of one group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Slots {
    pub epoch: Slot,
    pub plan: Slot,
}

/// This router's turn at leading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    /// Differs from that of any other turn, of any router.
    pub revision: i64,
    /// It is over then, unless it is prolonged. `None`: it has no end.
    pub until: Option<Instant>,
}

/// All that is known of the store now.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Of its contents, not of its address: an etcd that was wiped has another. `None`: not reached yet.
    pub id: Option<Arc<str>>,
    pub up: bool,
    term: Option<Term>,
    groups: BTreeMap<String, Slots>,
}

impl State {
    pub fn slots(&self, group: &str) -> Slots {
        self.groups.get(group).cloned().unwrap_or_default()
    }

    /// `None`: another router leads, or this one cannot be sure that it does.
    pub fn term(&self, now: Instant) -> Option<Term> {
        let lasts = |term: &Term| term.until.is_none_or(|until| now < until);
        self.term.filter(lasts).filter(|_| self.up)
    }

    /// Whether anything changed.
    fn learn(&mut self, group: &str, kind: Kind, slot: Slot) -> bool {
        let slots = self.groups.entry(group.to_owned()).or_default();
        let known = match kind {
            Kind::Epoch => &mut slots.epoch,
            Kind::Plan => &mut slots.plan,
        };
        if slot.seen < known.seen {
            return false;
        }
        let changed = slot.revision != known.revision;
        *known = slot;
        changed
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Epoch,
    Plan,
}

/// A change of one group's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Puts a plan.
    Publish(Vec<u8>),
    /// Puts an epoch and removes the plan, whichever it was: it is done, or void.
    Commit(Vec<u8>),
    /// Removes the plan.
    Withdraw,
}

impl Change {
    /// What becomes of the epoch and of the plan. Outer `None`: nothing.
    fn parts(self) -> (Option<Vec<u8>>, Option<Option<Vec<u8>>>) {
        match self {
            Change::Publish(plan) => (None, Some(Some(plan))),
            Change::Commit(epoch) => (Some(epoch), Some(None)),
            Change::Withdraw => (None, Some(None)),
        }
    }
}

/// What a change was decided on. The write fails if any of it is no longer so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    pub term: Term,
    /// Revisions of the two slots.
    pub epoch: i64,
    pub plan: i64,
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The store's state says what is there instead.
    #[error("another write came first, or another router leads now")]
    Conflict,
    /// Whether it was written is not known; the store's state will say when it is up again.
    #[error("the epoch store cannot be reached: {0}")]
    Unavailable(String),
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "this binary was built without etcd; build it with `--features etcd` (its build needs protoc), or leave --etcd away for a lone router"
    )]
    NotBuilt,
    #[error(
        "`{0}` is not an etcd endpoint; give http://HOST:PORT, as `etcd --listen-client-urls` has it"
    )]
    Endpoint(String),
    #[error("`{0}` cannot begin keys in etcd; give /NAME")]
    Prefix(String),
}

/// The store of one router.
pub enum Store {
    Memory(memory::Memory),
    #[cfg(feature = "etcd")]
    Etcd(etcd::Etcd),
}

impl Store {
    /// The store that `config` names. Must be called within a runtime; returns before an etcd is
    /// reached.
    ///
    /// # Errors
    /// The configuration is wrong, or asks for what this binary lacks.
    pub fn open(config: &ExpertsConfig) -> Result<Store, StoreError> {
        if config.etcd.is_empty() {
            return Ok(Store::Memory(memory::Memory::new()));
        }
        let bad = |endpoint: &&String| {
            let authority = endpoint.strip_prefix("http://").unwrap_or_default();
            authority
                .trim_end_matches('/')
                .rsplit_once(':')
                .is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
        };
        if let Some(endpoint) = config.etcd.iter().find(bad) {
            return Err(StoreError::Endpoint(endpoint.clone()));
        }
        let prefix = config.etcd_prefix.trim_end_matches('/');
        if !prefix.starts_with('/') {
            return Err(StoreError::Prefix(config.etcd_prefix.clone()));
        }
        #[cfg(feature = "etcd")]
        return Ok(Store::Etcd(etcd::Etcd::open(
            config.etcd.clone(),
            prefix,
            config.leader_ttl,
        )));
        #[cfg(not(feature = "etcd"))]
        Err(StoreError::NotBuilt)
    }

    pub fn kind(&self) -> StoreKind {
        match self {
            Store::Memory(_) => StoreKind::Memory,
            #[cfg(feature = "etcd")]
            Store::Etcd(_) => StoreKind::Etcd,
        }
    }

    /// Follows the store's state. The first value may be from before it was reached.
    pub fn states(&self) -> watch::Receiver<State> {
        match self {
            Store::Memory(memory) => memory.states(),
            #[cfg(feature = "etcd")]
            Store::Etcd(etcd) => etcd.states(),
        }
    }

    /// Changes a group's records, if they are what `base` says and its term is not over. The state
    /// shows the change, or what came instead, when this returns.
    ///
    /// # Errors
    /// [`WriteError`]
    pub async fn write(&self, group: &str, change: Change, base: Base) -> Result<(), WriteError> {
        match self {
            Store::Memory(memory) => memory.write(group, change, base),
            #[cfg(feature = "etcd")]
            Store::Etcd(etcd) => etcd.write(group, change, base).await,
        }
    }

    /// Steps down, so that another router need not wait for this one's term to end.
    pub async fn close(&self) {
        match self {
            Store::Memory(_) => {}
            #[cfg(feature = "etcd")]
            Store::Etcd(etcd) => etcd.close().await,
        }
    }
}

#[cfg(test)]
mod tests;
