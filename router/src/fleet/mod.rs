//! Who is attached, how busy each of them is, and which prefixes each of them caches.
//!
//! [`Fleet`] is plain state: no clock, no socket, no lock. Time is passed in, and the same sequence
//! of calls gives the same answers, here and in a simulation. Around it, [`roster`] adds the lock
//! and the channels to workers. [`membership`](crate::membership) is the service that they attach to.

mod compatibility;
mod entry;
mod pool;
mod prefix;
mod rank;
mod refused;
pub mod roster;
pub(crate) mod wire;
mod worker;

use std::collections::BTreeMap;
use std::time::Instant;

use millrace_model::blocks::BlockHash;

pub use compatibility::{Compatibility, Mismatch};
pub use entry::{Refusal, Served};
pub use pool::{Pool, Rank};
pub use prefix::Owners;
pub use rank::GroupRank;
pub use refused::{Refused, RefusedWorker};
pub use worker::{Demand, Description, Load, Role, SETTLE, Ticket, Unavailable, Worker, WorkerKey};

use pool::Pools;
use prefix::PrefixIndex;
use worker::Sync;

/// A delta did not have the number that follows its predecessor's: something was lost, and only a
/// new snapshot tells what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected delta {expected}, got {got}")]
pub struct Gap {
    pub expected: u64,
    pub got: u64,
}

/// A change of a worker's state since its last message. `cleared` comes first, then `removed`,
/// then `stored`.
#[derive(Debug, Clone, Default)]
pub struct Delta {
    /// 1, 2, 3, ... after each snapshot.
    pub sequence: u64,
    pub load: Load,
    pub cleared: bool,
    pub removed: Vec<BlockHash>,
    pub stored: Vec<BlockHash>,
}

/// All workers that a router may send requests to: of one or, during a rollout, several revisions of
/// a deployment, whose weights and caches may differ, and whose text does not.
///
/// Invariant: the compatibility of any two attached workers of one revision is equal, so any prefill
/// worker may be paired with any decode worker of its revision.
#[derive(Debug)]
pub struct Fleet {
    served: Served,
    /// Ordered, so that walking it (and thus every choice) is deterministic.
    workers: BTreeMap<WorkerKey, Worker>,
    /// Those of them that take requests.
    pools: Pools,
    index: PrefixIndex,
    next_key: u64,
    next_ticket: u64,
}

impl Fleet {
    /// `max_indexed_blocks` bounds the prefix index: (block, worker) pairs, about 100 bytes each.
    pub fn new(served: Served, max_indexed_blocks: usize) -> Fleet {
        Fleet {
            served,
            workers: BTreeMap::new(),
            pools: Pools::default(),
            index: PrefixIndex::new(max_indexed_blocks),
            next_key: 0,
            next_ticket: 0,
        }
    }

    pub fn served(&self) -> &Served {
        &self.served
    }

    /// Admits a worker. One that was attached under the same id is detached: a process has one
    /// stream, so the older one is a connection that has not been noticed to be dead.
    ///
    /// # Errors
    /// Names the first field that keeps it out.
    pub fn attach(&mut self, description: Description) -> Result<WorkerKey, Refusal> {
        self.check(&description)?;
        let same = self
            .workers
            .iter()
            .find(|(_, w)| w.description.worker_id == description.worker_id);
        if let Some((&key, _)) = same {
            self.detach(key);
        }
        let key = WorkerKey(self.next_key);
        self.next_key += 1;
        self.index.add_worker(
            key,
            usize::try_from(description.kv_pages).unwrap_or(usize::MAX),
        );
        self.workers.insert(key, Worker::new(description));
        Ok(key)
    }

    /// Replaces all that is known of a worker. Its next delta is number 1.
    pub fn snapshot(&mut self, key: WorkerKey, load: Load, blocks: Vec<BlockHash>, now: Instant) {
        let Some(worker) = self.workers.get_mut(&key) else {
            return;
        };
        worker.sync = Sync::Following { next: 1 };
        worker.report(load, now);
        self.pools.place(key, worker);
        self.index.clear(key);
        for block in blocks {
            self.index.insert(key, block);
        }
    }

    /// Applies a change.
    ///
    /// # Errors
    /// [`Gap`] once for each gap: ask the worker for a snapshot. Deltas that are still on their way
    /// when the gap is found are ignored without another error.
    pub fn delta(&mut self, key: WorkerKey, delta: Delta, now: Instant) -> Result<(), Gap> {
        let Some(worker) = self.workers.get_mut(&key) else {
            return Ok(());
        };
        let expected = match worker.sync {
            Sync::Following { next } => next,
            Sync::AwaitingSnapshot { .. } => return Ok(()),
        };
        if delta.sequence != expected {
            worker.sync = Sync::AwaitingSnapshot { had_snapshot: true };
            return Err(Gap {
                expected,
                got: delta.sequence,
            });
        }
        worker.sync = Sync::Following { next: expected + 1 };
        worker.report(delta.load, now);
        self.pools.place(key, worker);
        if delta.cleared {
            self.index.clear(key);
        }
        for block in delta.removed {
            self.index.remove(key, block);
        }
        for block in delta.stored {
            self.index.insert(key, block);
        }
        Ok(())
    }

    /// The worker takes nothing new; what it has, it finishes.
    pub fn drain(&mut self, key: WorkerKey) {
        if let Some(worker) = self.workers.get_mut(&key) {
            worker.draining = true;
            self.pools.place(key, worker);
        }
    }

    /// The group of this rank goes on without it, or takes it in. Whether that is news.
    pub fn leave_out(&mut self, key: WorkerKey, left_out: bool) -> bool {
        let Some(worker) = self.workers.get_mut(&key) else {
            return false;
        };
        let before = std::mem::replace(&mut worker.left_out, left_out);
        self.pools.place(key, worker);
        before != left_out
    }

    /// Forgets a worker. `None` if it was replaced or detached before.
    pub fn detach(&mut self, key: WorkerKey) -> Option<Description> {
        let mut worker = self.workers.remove(&key)?;
        self.index.remove_worker(key);
        self.pools.remove(&mut worker);
        Some(worker.description)
    }

    pub fn get(&self, key: WorkerKey) -> Option<&Worker> {
        self.workers.get(&key)
    }

    /// Attached workers of a role, draining ones included. In order of attachment.
    pub fn workers(&self, role: Role) -> impl Iterator<Item = (WorkerKey, &Worker)> {
        let of_role = move |w: &&Worker| w.description.role == role;
        self.workers
            .iter()
            .map(|(&key, w)| (key, w))
            .filter(move |(_, w)| of_role(w))
    }

    /// Workers of a role that take new requests. In order of attachment.
    pub fn available(&self, role: Role) -> impl Iterator<Item = (WorkerKey, &Worker)> {
        self.workers(role).filter(|(_, w)| w.is_available())
    }

    /// The same workers, by who is asked first.
    pub fn pools(&self, role: Role) -> impl Iterator<Item = &Pool> {
        self.pools.iter().filter(move |pool| pool.role == role)
    }

    /// The model revision of every pool: as a rule the same of all.
    pub fn model_revisions(&self) -> impl Iterator<Item = &str> {
        self.pools.iter().map(|pool| pool.model_revision.as_str())
    }

    /// How many of these leading blocks a worker caches.
    pub fn cached(&self, key: WorkerKey, hashes: &[BlockHash]) -> usize {
        self.index.cached(key, hashes)
    }

    /// The few workers that may cache more of a prompt than others do.
    pub fn owners(&self, hashes: &[BlockHash]) -> Owners<'_> {
        self.index.owners(hashes)
    }

    /// Counts a request into a worker's load until the worker reports it or it ends.
    pub fn assign(&mut self, key: WorkerKey, demand: Demand, now: Instant) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        if let Some(worker) = self.workers.get_mut(&key) {
            worker.assign(ticket, demand, now);
            self.pools.place(key, worker);
        }
        ticket
    }

    /// The request ended, or moved on from this worker.
    pub fn release(&mut self, key: WorkerKey, ticket: Ticket) {
        if let Some(worker) = self.workers.get_mut(&key) {
            worker.release(ticket);
            self.pools.place(key, worker);
        }
    }

    /// (block, worker) pairs in the prefix index.
    pub fn indexed_blocks(&self) -> usize {
        self.index.entries()
    }
}

#[cfg(test)]
mod tests;
