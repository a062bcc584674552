//! Who could be asked next: workers that take requests, least busy first.
//!
//! A choice among a thousand workers then looks at the few at the front, instead of at all of them.

use std::collections::BTreeSet;

use super::worker::{Role, Worker, WorkerKey};

/// Where a worker stands among those it is compared with. The lesser is asked first: by cost, then by
/// how many requests it was given, then by who attached first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// In tokens. In a [`Pool`], of a sequence that asks for nothing: [`Worker::backlog`].
    pub cost: u64,
    pub assigned: u64,
    pub worker: WorkerKey,
}

impl Rank {
    /// With `cost` on top.
    pub fn plus(self, cost: u64) -> Rank {
        Rank {
            cost: self.cost.saturating_add(cost),
            ..self
        }
    }
}

/// Workers of one role and revision that take new requests; at least one.
#[derive(Debug)]
pub struct Pool {
    pub role: Role,
    pub revision: String,
    /// No prefill worker of the revision is to come, so these say. Those that say otherwise are in
    /// another pool.
    pub aggregated: bool,
    /// The same of all: the fleet admits no other.
    pub model_revision: String,
    ranks: BTreeSet<Rank>,
}

impl Pool {
    /// Least first.
    pub fn ranks(&self) -> impl Iterator<Item = Rank> {
        self.ranks.iter().copied()
    }

    /// `worker` is in this pool while it takes requests.
    pub fn is_of(&self, worker: &Worker) -> bool {
        let description = &worker.description;
        self.role == description.role
            && self.aggregated == description.aggregated
            && self.revision == description.revision
    }
}

/// All pools that have workers: two as a rule, and four during a rollout.
#[derive(Debug, Default)]
pub(super) struct Pools(Vec<Pool>);

impl Pools {
    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.0.iter()
    }

    /// Puts a worker where it now belongs. To be called after every change of it.
    pub fn place(&mut self, key: WorkerKey, worker: &mut Worker) {
        let now = worker.is_available().then(|| Rank {
            cost: worker.backlog(),
            assigned: worker.assigned,
            worker: key,
        });
        self.replace(worker, now);
    }

    /// Forgets a worker.
    pub fn remove(&mut self, worker: &mut Worker) {
        self.replace(worker, None);
    }

    fn replace(&mut self, worker: &mut Worker, now: Option<Rank>) {
        let before = std::mem::replace(&mut worker.rank, now);
        if before == now {
            return;
        }
        let at = self.0.iter().position(|pool| pool.is_of(worker));
        let at = at.unwrap_or_else(|| {
            let description = &worker.description;
            self.0.push(Pool {
                role: description.role,
                revision: description.revision.clone(),
                aggregated: description.aggregated,
                model_revision: worker.model_revision().to_owned(),
                ranks: BTreeSet::new(),
            });
            self.0.len() - 1
        });
        let ranks = &mut self.0[at].ranks;
        if let Some(before) = before {
            ranks.remove(&before);
        }
        ranks.extend(now);
        if ranks.is_empty() {
            self.0.remove(at);
        }
    }
}
